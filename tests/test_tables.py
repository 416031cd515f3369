"""A narrow terminal wraps a table's lines; it takes no figure and no column from it."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from profiler import store
from profiler.power.report import fit_power
from profiler.show import show, show_devices
from profiler.tables import plain_table
from solver.channel import channel_of
from solver.channel_report import print_channel
from solver.front import trade_offs
from solver.front_view import print_front
from solver.problem import SolveOptions, pose
from solver.scenario import solve
from solver.show.report import print_report
from tests.solver.test_scenario import fleet
from tests.synthetic import make_profile

LETTER = Path(__file__).resolve().parents[1] / "profiles" / "letter"


def table() -> Any:
    made = plain_table()
    made.add_column("what was measured")
    made.add_column("delay of a round", justify="right", no_wrap=True)
    made.add_column("energy", justify="right", no_wrap=True)
    made.add_row("a device with a long name", "16.81 s", "0.4011-0.4039")
    return made


def lines(made: Any, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(made, crop=False)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def test_where_there_is_room_nothing_folds() -> None:
    heading, _, row = lines(table(), 100)
    assert heading.split() == ["what", "was", "measured", "delay", "of", "a", "round", "energy"]
    assert row.split() == ["a", "device", "with", "a", "long", "name", "16.81", "s", "0.4011-0.4039"]


@pytest.mark.parametrize("width", [50, 40, 30, 10])
def test_words_and_headings_fold_before_a_figure_does(width: int) -> None:
    text = lines(table(), width)
    assert max(map(len, text)) <= max(width, 40)
    assert any("16.81 s  0.4011-0.4039" in line for line in text)
    assert "…" not in "".join(text)


def test_a_table_is_no_wider_than_the_terminal_while_words_can_fold() -> None:
    for width in range(45, 100):
        assert max(map(len, lines(table(), width))) <= width


def figures(text: str) -> Counter[str]:
    """Every figure that stands in the text in one piece, with its sign, range or percent."""
    return Counter(word for word in text.split() if re.fullmatch(r"[-+]?\d[\d.,e]*(-\d[\d.]*)?%?", word))


def decided(console: Console) -> None:
    print_report(solve(fleet(), SolveOptions(rounds=3)), console)


def fronts(console: Console) -> None:
    problem = pose(fleet(), SolveOptions())
    print_front(problem, trade_offs(problem), console)


def letters(console: Console) -> None:
    print_report(solve(store.load_fleet(LETTER), SolveOptions()), console)


def channel(console: Console) -> None:
    found = channel_of("poor")
    assert found is not None
    print_channel(found, console)


def profile(console: Console) -> None:
    show(make_profile("jetson", provenance="emulated"), console)


@pytest.mark.parametrize("told", [decided, fronts, letters, channel, profile])
@pytest.mark.parametrize("width", [80, 60, 40])
def test_every_figure_stands_whole_on_a_narrow_terminal(told: Any, width: int) -> None:
    wide, narrow = io.StringIO(), io.StringIO()
    told(Console(file=wide, width=300))
    told(Console(file=narrow, width=width))
    assert len(figures(wide.getvalue())) > 5
    assert not figures(wide.getvalue()) - figures(narrow.getvalue())
    assert "…" not in narrow.getvalue()


@pytest.mark.parametrize("sweeps", ["a", "abcde"])
def test_the_commands_that_make_their_own_console_cut_nothing(
    sweeps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"dev-{d},{mhz},{mhz / 50 + (mhz / 300) ** 3}\n" for d in sweeps for mhz in range(300, 900, 100))
    path = tmp_path / "sweep.csv"
    path.write_text("device,frequency_mhz,power_w\n" + rows)
    shown = {}
    for width in ("200", "40"):
        monkeypatch.setenv("COLUMNS", width)
        fit_power([path], model="auto", as_json=False, plot=None, dry_run=True)
        shown[width] = capsys.readouterr().out
        show_devices()
        shown[width] += capsys.readouterr().out
    assert not figures(shown["200"]) - figures(shown["40"])
    assert "…" not in shown["40"]
    assert shown["40"].count("server") >= shown["200"].count("server")  # the role of every board
