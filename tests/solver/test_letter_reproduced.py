"""The letter's simulation run again: its CSV is what card-solve decides, its verdicts follow from what was tried, its search can be redone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.profile import BadInput, Profile
from solver.letter import fleet as letterfleet
from solver.letter.figures import write_plots, write_tables
from solver.letter.reproduce import ASSUMING, CLAIMS, NOT, REPRODUCED, Reproduction, reproduce, verdict
from solver.letter.search import PLAUSIBLE, draws, search, sensitivities
from solver.letter.sets import (
    DEVICE_ONLY,
    LETTER_PCT,
    SERVER_ONLY,
    STATES,
    WIDE,
    Base,
    Settings,
    evaluate,
    profiles,
    stated,
)
from solver.problem import SolveOptions, pose
from solver.scenario import solve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fleet() -> list[Profile]:
    return letterfleet.profiles()


@pytest.fixture(scope="module")
def result(fleet: list[Profile]) -> Reproduction:
    return reproduce(fleet, rounds=6, seed=3, draw=64)


@pytest.fixture(scope="module")
def base(fleet: list[Profile]) -> Base:
    return Base.of(pose(fleet, SolveOptions(method="card", evaluate="letter")))


@pytest.fixture(scope="module")
def usual(fleet: list[Profile], base: Base) -> Settings:
    return stated(pose(fleet, SolveOptions(method="card")), base, dict.fromkeys(STATES, (500000000.0, 1000000000.0)))


def with_server(fleet: list[Profile], **changes: Any) -> list[Profile]:
    return [p.model_copy(update=changes) if p.role == "server" else p for p in fleet]


def verdicts(result: Reproduction) -> dict[str, str]:
    return {t.claim.name: t.verdict for t in result.tested}


def pair_by_solve(fleet: list[Profile], base: Base, settings: Settings) -> tuple[float, float]:
    """The pair of one set through profiles and `solve`, ratio of means over the three states."""
    sums = np.zeros(4)
    for state in STATES:
        solution = solve(
            profiles(fleet, base, settings, state), SolveOptions(method="card", compression=float(settings.phi[0]))
        )
        ours, theirs = solution.decisions.costs, solution.baselines
        joules = (ours.energy_j, theirs[SERVER_ONLY].costs.energy_j)
        assert joules[0] is not None
        assert joules[1] is not None
        sums += [
            ours.delay_s.sum(), theirs[DEVICE_ONLY].costs.delay_s.sum(), joules[0].sum(), joules[1].sum(),
        ]  # fmt: skip
    return 100 * (1 - sums[0] / sums[1]), 100 * (1 - sums[2] / sums[3])


# ------------------------------------------------------------------------------------------------------------ figures


def test_the_tables_of_the_figures_are_what_card_solve_prints(result: Reproduction, tmp_path: Path) -> None:
    write_tables(result, tmp_path)
    rows = {
        name: list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("fig3a", "fig3b", "fig4a", "fig4b")
    }
    for state in STATES:
        command = f"--profiles profiles/letter --method card --channel {state} --rounds 6 --seed 3 --json"
        program = "import sys; from cli import solve_main; solve_main()"
        done = subprocess.run(
            [sys.executable, "-c", program, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        for name, column in (("fig3a", "cut"), ("fig3b", "frequency_hz")):
            ours = [(int(r["round"]), r["device"], float(r[column])) for r in rows[name] if r["channel"] == state]
            assert ours == [(d["round"], d["device"], d[column]) for d in answer["decisions"]]
        for name, column in (("fig4a", "delay_s"), ("fig4b", "energy_j")):
            means = {r["method"]: float(r[f"mean_{column}"]) for r in rows[name] if r["channel"] == state}
            listed = {"card": answer["decisions"], **answer["baselines"]}
            assert means == pytest.approx({m: np.mean([d[column] for d in listed[m]]) for m in means}, rel=1e-12)
            assert set(means) == {"card", SERVER_ONLY, DEVICE_ONLY}


def test_the_figures_are_drawn(result: Reproduction, tmp_path: Path) -> None:
    assert [p.name for p in write_plots(result, tmp_path)] == ["fig3a.png", "fig3b.png", "fig4a.png", "fig4b.png"]
    assert all(p.stat().st_size > 5000 for p in tmp_path.iterdir())


def test_the_pair_of_the_stated_set_is_what_the_documents_say(fleet: list[Profile]) -> None:
    delay, energy = reproduce(fleet, rounds=100, draw=4).outcome.pair_pct()
    assert delay[0] == pytest.approx(64.5, abs=0.3)  # rates move it by tenths of a point
    assert energy[0] == pytest.approx(49.9, abs=0.2)


def test_the_summary_holds_every_claim_and_no_infinity(result: Reproduction) -> None:
    summary = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert [c["claim"] for c in summary["claims"]] == [c.name for c in CLAIMS]
    assert {c["verdict"] for c in summary["claims"]} <= {REPRODUCED, ASSUMING, NOT}
    assert summary["rounds"] == 6
    assert any(a["quantity"].endswith("F_min in Hz") for a in summary["assumptions"])


# ----------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("at_stated", "share", "found", "expected"),
    [
        (True, 1.0, False, REPRODUCED),
        (True, 0.4, False, ASSUMING),
        (False, 0.01, False, ASSUMING),
        (False, 0.0, True, ASSUMING),
        (False, 0.0, False, NOT),
        (True, None, False, ASSUMING),
        (False, None, False, NOT),
    ],
)
def test_a_verdict_says_where_a_claim_holds(at_stated: bool, share: float | None, found: bool, expected: str) -> None:
    assert verdict(at_stated, share, found) == expected


def test_the_cuts_are_the_ends_whatever_is_drawn_and_the_whole_section_never_holds(result: Reproduction) -> None:
    said = verdicts(result)
    assert said["the cut is either the last or the first"] == REPRODUCED
    assert said["both percentages at once"] == ASSUMING
    assert said["xi is one of this server's"] == NOT
    assert said["both statements about Fig. 4(b)"] == NOT
    assert said["all of these at once"] == NOT


def test_a_xi_that_the_board_can_draw_turns_its_verdict_and_no_other(
    fleet: list[Profile], result: Reproduction
) -> None:
    fit = fleet[0].power_fit
    assert fit is not None
    other = with_server(fleet, power_fit=fit.model_copy(update={"xi_w_per_hz3": 1e-26}))
    mild = reproduce(other, rounds=6, seed=3, draw=64)
    assert verdicts(mild) == {**verdicts(result), "xi is one of this server's": REPRODUCED}
    assert mild.outcome.pair_pct()[0] == pytest.approx(result.outcome.pair_pct()[0])
    assert mild.outcome.pair_pct()[1] == pytest.approx(result.outcome.pair_pct()[1])


def test_another_f_min_turns_what_holds_at_the_stated_set(fleet: list[Profile], result: Reproduction) -> None:
    hardware = fleet[0].hardware
    assert hardware.clocks is not None
    fast = hardware.model_copy(update={"clocks": hardware.clocks.model_copy(update={"min_hz": 1.5e9})})
    other = reproduce(with_server(fleet, hardware=fast), rounds=2, draw=8)
    before, after = ({t.claim.name: t.at_stated for t in r.tested} for r in (result, other))
    assert before["the cut moves from 31 to 1 as devices weaken"]
    assert not after["the cut moves from 31 to 1 as devices weaken"]  # all are 31
    assert not before["energy similar to device-only"]
    assert after["energy similar to device-only"]


def test_layers_that_differ_make_other_cuts_and_turn_the_verdict(fleet: list[Profile]) -> None:
    """S(c) with a narrow place in the middle: the best cut is there."""
    sizes = fleet[0].sizes
    cuts = [
        row.model_copy(update={"smashed_bytes": 1000, "gradient_bytes": 1000})
        if row.cut == 16
        else row.model_copy(update={"smashed_bytes": 10**9, "gradient_bytes": 10**9})
        for row in sizes.cuts
    ]
    other = [p.model_copy(update={"sizes": sizes.model_copy(update={"cuts": cuts})}) for p in fleet]
    tested = {t.claim.name: t for t in reproduce(other, rounds=2, draw=8).tested}
    assert not tested["the cut is either the last or the first"].at_stated
    assert tested["the cut is either the last or the first"].verdict != REPRODUCED


def test_a_fleet_of_another_model_is_run_but_not_varied(fleet: list[Profile]) -> None:
    other = [p.model_copy(update={"workload": p.workload.model_copy(update={"model": "gpt2"})}) for p in fleet]
    result = reproduce(other, rounds=2)
    assert result.found == []
    assert all(t.share_of_draws is None for t in result.tested)
    assert result.not_varied is not None
    assert "gpt2" in result.not_varied
    with pytest.raises(BadInput, match=r"workload\.model is gpt2, expected one of letter-1b-32l"):
        reproduce(other, rounds=2, full_search=True)


# ------------------------------------------------------------------------------------------------------------- search


def test_every_drawn_set_costs_what_solve_says(fleet: list[Profile], base: Base) -> None:
    for wide in (False, True):
        sets = draws(base, 16, own_links=True, seed=7, wide=wide)
        delay, energy = evaluate(base, sets).pair_pct()
        for k in range(len(sets)):
            assert pair_by_solve(fleet, base, sets.only(k)) == pytest.approx((delay[k], energy[k]), abs=1e-6)


def test_the_search_is_the_same_for_a_seed_and_its_best_set_gives_its_pair_through_solve(
    fleet: list[Profile], base: Base, usual: Settings
) -> None:
    found = [search(base, usual, own_links=True, seed=5, sample=2048, steps=40) for _ in range(2)]
    assert found[0].as_json() == found[1].as_json()
    assert pair_by_solve(fleet, base, found[0].settings) == pytest.approx(
        (found[0].delay_pct, found[0].energy_pct), abs=1e-6
    )
    for name, value in found[0].settings.as_json().items():
        for p in PLAUSIBLE:
            if p.name == name:
                assert p.low * (1 - 1e-9) <= value <= p.high * (1 + 1e-9), name


def test_the_pair_is_met_where_devices_have_links_of_their_own_and_not_with_one_for_all(
    base: Base, usual: Settings
) -> None:
    own, one = (search(base, usual, own_links=links, seed=0, sample=4096) for links in (True, False))
    assert own.distance_points < 0.2
    assert own.delay_pct == pytest.approx(LETTER_PCT[0], abs=0.2)
    assert 3 < one.distance_points < 6


def test_xi_and_the_asymmetry_of_the_link_cannot_move_the_pair_and_f_min_can(base: Base, usual: Settings) -> None:
    points = {s.name: s.points for s in sensitivities(base, usual)}
    assert points["xi_w_per_hz3"] < 1e-9
    assert points["downlink's share of 1/up + 1/down"] < 1e-9
    assert points["f_min_ghz"] > 20


@pytest.mark.parametrize("parameter", [*PLAUSIBLE, *WIDE], ids=lambda p: p.name)
def test_a_share_of_a_range_and_its_value_belong_together(parameter: Any) -> None:
    shares = np.linspace(0, 1, 11)
    values = parameter.at(shares)
    assert values.min() >= parameter.low * (1 - 1e-9)
    assert values.max() <= parameter.high * (1 + 1e-9)
    again = parameter.at(np.array([parameter.share(float(v)) for v in values]))
    assert again == pytest.approx(values, rel=1e-9)
