"""What a person reads says what was decided, what it saves, what did not fit and what was not measured."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from profiler.profile import BadInput
from profiler.units import ranges
from solver.figures import new_figure
from solver.scenario import Solution, SolveOptions, solve
from solver.show.html import page
from solver.show.plots import View, composition, write_plots
from solver.show.report import print_report
from tests.solver.test_scenario import fleet, letterlike, limited


def printed(solution: Solution) -> str:
    out = io.StringIO()
    print_report(solution, Console(file=out, width=400))
    return out.getvalue()


def test_the_table_has_a_row_for_every_device_with_its_cut_and_clock() -> None:
    solution = solve(fleet(), SolveOptions(method="exact"))
    lines = printed(solution).splitlines()
    for m, device in enumerate(solution.problem.devices):
        (line,) = [text for text in lines if text.lstrip().startswith(device.name + " ")]
        cells = line.split()
        assert cells[1] == str(solution.decisions.cut[m])
        assert cells[2] == f"{solution.decisions.frequency_hz[m] / 1e9:.3f}"


def test_many_rounds_are_summed_up_by_device() -> None:
    solution = solve(fleet(), SolveOptions(rounds=200, channel="poor"))
    text = printed(solution)
    assert "means over 200 rounds" in text
    rows = [line.split() for line in text.splitlines() if line.lstrip().startswith(("fast ", "slow "))]
    assert [row[0] for row in rows] == ["fast", "slow"]
    assert float(rows[1][3]) == pytest.approx(solution.decisions.costs.delay_s[1::2].mean(), rel=1e-3)


def test_cuts_left_out_for_memory_are_named_with_what_they_need() -> None:
    server, fast, slow = fleet()
    text = printed(solve([server, limited(fast, 150_000_000), slow], SolveOptions()))
    assert "fast: cuts 2-3 left out: they need 200.0 MB to 300.0 MB on fast, which has 150.0 MB" in text
    assert "no fit" in text
    assert "warning: device-only does not fit in memory for fast" in text


@pytest.mark.parametrize("rounds", [1, 3, 100])
def test_names_and_figures_survive_a_narrow_terminal(rounds: int) -> None:
    out = io.StringIO()
    named = [p.model_copy(update={"name": f"emulated-{p.name}-board"}) for p in fleet()]
    print_report(solve(named, SolveOptions(rounds=rounds)), Console(file=out, width=80))
    rows = [line for line in out.getvalue().splitlines() if line.lstrip().startswith("emulated")]
    assert len(rows) == (2 if rounds == 100 else 2 * rounds)
    for row in rows:
        assert "…" not in row
        assert row.rstrip().endswith(("%", "same"))


def test_what_was_not_measured_is_said_and_so_is_that_all_was() -> None:
    assert "assumed: channel state" in printed(solve(fleet(), SolveOptions()))
    sure = SolveOptions(uplink_mbps=1, downlink_mbps=1, compression=1.0)
    assert "Every quantity used was measured" in printed(solve(fleet(), sure))


def test_unknown_energy_is_shown_as_unknown() -> None:
    assert "energy ?" in printed(solve(fleet(power_fit=None), SolveOptions(w=1.0)))


def test_there_is_a_plot_for_every_device(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for make in (fleet, letterlike):
        paths = write_plots(solve(make(), SolveOptions(rounds=2)), tmp_path / "plots")
        assert [p.name for p in paths] == ["fast.png", "slow.png"]
        assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in paths)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BadInput, match=r"fast.png: cannot be written"):
        write_plots(solve(fleet(), SolveOptions()), blocked)


def test_the_clock_beside_the_cuts_is_told_as_the_servers() -> None:
    pytest.importorskip("matplotlib")
    solution = solve(fleet(), SolveOptions())
    axes = new_figure(11, 4.2).subplots()
    composition(View.of(solution, 0), axes, energy=True)
    clock = f"server at {solution.decisions.frequency_hz[0] / 1e9:.3f} GHz"
    assert axes.get_xlabel() == f"cut layer c: layers 1..c on the device; {clock}"
    assert f"fast: cut {solution.decisions.cut[0]}, with the {clock}" in page(solution)


def test_runs_of_numbers_are_written_short() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges([]) == ""
