"""The shipped fleet is the letter's Tables I and II, and CARD on it does what the letter says it does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiler.profile import Profile
from profiler.store import load_fleet
from solver.scenario import SolveOptions, solve

ROOT = Path(__file__).resolve().parents[2]
LETTER = ROOT / "profiles" / "letter"


@pytest.fixture(scope="module")
def fleet() -> list[Profile]:
    return load_fleet(LETTER)


def test_the_shipped_profiles_are_what_their_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, LETTER / "make.py", tmp_path], check=True, env={"PYTHONPATH": str(ROOT)})
    shipped = sorted(LETTER.glob("*.json"))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [p.name for p in shipped]
    for path in shipped:
        assert json.loads((tmp_path / path.name).read_text()) == json.loads(path.read_text())


def test_they_hold_the_figures_of_tables_i_and_ii(fleet: list[Profile]) -> None:
    rows = []
    for p in fleet:
        clocks = p.hardware.clocks
        assert clocks is not None
        rows.append((p.name, clocks.max_hz, p.hardware.cores, p.hardware.flops_per_core_cycle))
        assert p.compression is not None
        assert p.compression.phi == 0.1
    assert rows == [
        ("device-1", 1.3e9, 2048, 2.0),
        ("device-2", 1.0e9, 2048, 2.0),
        ("device-3", 0.7e9, 1792, 2.0),
        ("device-4", 0.7e9, 1024, 2.0),
        ("device-5", 0.5e9, 512, 2.0),
        ("rtx-4060ti", 2.46e9, 3072, 2.0),
    ]
    assert fleet[-1].power_fit is not None
    assert fleet[-1].power_fit.xi_w_per_hz3 == 1e-25


def test_nothing_in_them_claims_to_be_measured(fleet: list[Profile]) -> None:
    for p in fleet:
        blocks = [p.hardware, p.hardware.clocks, p.flops, p.sizes, p.compression, p.power_fit]
        for block in blocks:
            assert block is None or (block.provenance in ("literature", "assumed") and block.source)


def test_their_model_has_32_equal_layers_and_the_parameters_of_llama_3_2_1b_but_for_1_in_10_000(
    fleet: list[Profile],
) -> None:
    for p in fleet:
        assert p.workload.layers == 32
        assert abs(p.workload.parameters - 1_235_814_400) < 32 * 3 * 2048  # one step of the FFN's width
        rows = p.flops.segments[1:-1]
        assert all(row == rows[0] for row in rows)


@pytest.mark.parametrize("channel", ["good", "normal", "poor"])
@pytest.mark.parametrize("method", ["card", "exact"])
def test_every_cut_is_the_first_or_the_last_and_moves_to_the_first_as_devices_weaken(
    fleet: list[Profile], channel: str, method: str
) -> None:
    cuts = solve(fleet, SolveOptions(method=method, channel=channel)).decisions.cut.tolist()
    assert set(cuts) == {1, 31}
    assert cuts == sorted(cuts, reverse=True)


def test_delay_falls_far_below_device_only_and_energy_far_below_server_only(fleet: list[Profile]) -> None:
    """70.8 % and 53.1 % in the letter, with parameters that it does not give."""
    summary = solve(fleet, SolveOptions(method="card")).summary()
    assert summary["delay_reduction_vs_device_only_pct"] == pytest.approx(70.8, abs=8)
    assert summary["energy_reduction_vs_server_only_pct"] == pytest.approx(53.1, abs=5)


def test_card_is_the_joint_optimum_here(fleet: list[Profile]) -> None:
    card, exact = (solve(fleet, SolveOptions(method=m, rounds=20)) for m in ("card", "exact"))
    assert card.decisions.cut.tolist() == exact.decisions.cut.tolist()
    assert card.decisions.cost == pytest.approx(exact.decisions.cost, abs=1e-12)


def test_a_tenfold_xi_changes_the_joules_and_nothing_else(fleet: list[Profile]) -> None:
    assert fleet[-1].power_fit is not None
    fit = fleet[-1].power_fit.model_copy(update={"xi_w_per_hz3": 1e-26})
    other = [*fleet[:-1], fleet[-1].model_copy(update={"power_fit": fit})]
    a, b = (solve(f, SolveOptions(method="card")) for f in (fleet, other))
    assert a.decisions.cut.tolist() == b.decisions.cut.tolist()
    assert a.decisions.frequency_hz == pytest.approx(b.decisions.frequency_hz)
    assert a.decisions.cost == pytest.approx(b.decisions.cost)
    assert a.decisions.costs.energy_j == pytest.approx(10 * b.decisions.costs.energy_j)
    assert a.summary()["energy_reduction_vs_server_only_pct"] == pytest.approx(
        b.summary()["energy_reduction_vs_server_only_pct"]
    )


def test_solving_it_needs_neither_torch_nor_pandas_nor_scipy_and_little_time() -> None:
    program = (
        "import sys; from pathlib import Path; from profiler.store import load_fleet; "
        "from solver.scenario import SolveOptions, solve; import solver.show.report; "
        f"solve(load_fleet(Path({str(LETTER)!r})), SolveOptions(method='card')).as_json(); "
        "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert done.stdout.strip() == "[]"
    assert min(seconds) < 1.0
