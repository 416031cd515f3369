"""The reason given beside a decision is the true one: held against the whole table of cuts and clocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solver.problem import SolveOptions
from solver.scenario import Solution, solve
from solver.show.reasons import PARTS, TERMS, explain
from tests.solver.test_report import printed
from tests.solver.test_scenario import METHODS, fleet, letterlike, limited, measured_continuous, read_table, recomputed


def every(solution: Solution) -> Any:
    return explain(solution, range(len(solution.decisions.cut)))


@pytest.mark.parametrize("evaluate", [None, "letter"])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_the_next_best_cut_of_exact_is_the_second_of_the_whole_table(
    w: float, evaluate: str | None, tmp_path: Path
) -> None:
    solution = solve(fleet(), SolveOptions(method="exact", w=w, evaluate=evaluate, rounds=4))
    decider = solution if evaluate is None else solve(fleet(), SolveOptions(method="exact", w=w, rounds=4))
    table, why, supported = read_table(decider, tmp_path), every(solution), set(solution.problem.clocks.supported_hz)
    for n, label, m in solution.places():
        name = solution.problem.devices[m].name
        rows = [r for r in table if (r["device"], int(r["round"])) == (name, label)]
        costs = {at: u for at, u in recomputed(rows, w).items() if at[1] in supported}
        best = min(u for (cut, _), u in costs.items() if cut != solution.decisions.cut[n])
        mine = costs[int(why.next_best.cut[n]), float(why.next_best.frequency_hz[n])]
        assert why.next_best.cut[n] != solution.decisions.cut[n]
        assert mine == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("make", [fleet, letterlike, measured_continuous])
def test_no_point_of_any_other_cut_is_better_than_the_next_best(make: Any) -> None:
    solution = solve(make(), SolveOptions(method="exact", w=0.4))
    why, problem = every(solution), solution.problem
    hz = problem.clocks.supported_hz
    if len(hz) == 0:
        hz = np.linspace(problem.clocks.f_min_hz, problem.clocks.f_max_hz, 5001)
    for n in range(len(solution.decisions.cut)):
        place = problem.places
        costs = problem.evaluated.at(
            place.device[n],
            place.uplink_bps[n],
            place.downlink_bps[n],
            np.arange(problem.evaluated.cuts)[:, None],
            hz[None, :],
        )
        u = why.by_delay[n] * (costs.delay_s - solution.extremes.d_min_s[n])
        u = u + why.by_energy[n] * (costs.energy_j - solution.extremes.e_min_j[n])
        u[solution.decisions.cut[n] - 1] = np.inf
        assert why.next_best.cost[n] <= u.min() + 1e-12
        assert why.next_best.cost[n] >= solution.decisions.cost[n] - 1e-12


def test_card_ranks_cuts_at_its_own_continuous_clock_in_the_letters_model() -> None:
    solution = solve(fleet(), SolveOptions(method="card", w=0.3))
    problem, why = solution.problem, every(solution)
    for n in range(len(solution.decisions.cut)):
        place, f = problem.places, solution.optimal_hz[n]
        costs = problem.letter.at(
            place.device[n], place.uplink_bps[n], place.downlink_bps[n], np.arange(problem.letter.cuts), f
        )
        low, high = problem.clocks.f_min_hz, problem.clocks.f_max_hz
        edge = problem.letter.at(
            place.device[n],
            place.uplink_bps[n],
            place.downlink_bps[n],
            np.arange(problem.letter.cuts)[:, None],
            np.array([low, high])[None, :],
        )
        u = 0.3 * costs.delay_s / np.ptp(edge.delay_s) + 0.7 * costs.energy_j / np.ptp(edge.energy_j)
        order = np.argsort(u, kind="stable") + 1
        assert solution.decisions.cut[n] == order[0]
        assert why.next_best.cut[n] == order[1]
        assert why.next_best.frequency_hz[n] == solution.decisions.frequency_hz[n]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("w", [0.0, 0.2, 0.7, 1.0])
def test_what_the_terms_move_adds_up_to_the_difference_of_u_and_the_deciding_one_moves_most(
    method: str, w: float
) -> None:
    solution = solve(fleet(), SolveOptions(method=method, w=w, rounds=3, channel="poor"))
    why = every(solution)
    moves, gap = why.moves(why.next_best), why.next_best.cost - why.chosen.cost
    assert moves.sum(1) == pytest.approx(gap, abs=1e-12)
    assert why.chosen.cost == pytest.approx(solution.decisions.cost, abs=1e-15)
    for n, term in enumerate(why.deciding()):
        leading = moves[n, TERMS.index(term)]
        assert leading == (moves[n].min() if gap[n] < 0 else moves[n].max())
    assert why.shares().sum(1) == pytest.approx(np.ones(len(gap)))


def test_a_better_cut_that_memory_rules_out_is_named_with_the_machine_and_what_it_would_give() -> None:
    server, fast, slow = fleet()
    free = solve([server, fast, slow], SolveOptions(method="exact"))
    assert free.decisions.cut[0] == 3
    solution = solve([server, limited(fast, 250_000_000), slow], SolveOptions(method="exact"))
    why = every(solution)
    assert why.ruled_out.there.tolist() == [True, False]
    row = why.as_json()[0]["ruled_out_by_memory"]
    assert (row["cut"], row["machine"]) == (3, "fast")
    assert (row["delay_s"], row["energy_j"]) == (free.decisions.costs.delay_s[0], free.decisions.costs.energy_j[0])
    assert "Without memory limits it would be cut 3 (delay " in why.sentences()[0]
    assert "which needs 300.0 MB on fast, which has 250.0 MB." in why.sentences()[0]
    alone = explain(solve([server, limited(fast, 150_000_000), slow], SolveOptions(method="exact")), [0])
    assert "No other cut fits in memory." in alone.sentences()[0]
    assert alone.as_json()[0]["next_best"] is None


def test_a_fixed_cut_is_told_which_cut_would_have_been_better() -> None:
    solution = solve(fleet(), SolveOptions(method="server-only", w=0.2))
    best = solve(fleet(), SolveOptions(method="exact", w=0.2, f_min_ghz=0.5, f_max_ghz=0.5))
    assert best.decisions.cut[0] == 3
    assert "Cut 3 would be better by these figures: it saves" in every(solution).sentences()[0]


def test_a_part_of_the_decisions_has_the_same_reasons_as_all_of_them() -> None:
    solution = solve(fleet(), SolveOptions(rounds=20, channel="poor", w=0.6))
    whole, some = every(solution), explain(solution, [31, 4, 17])
    assert some.sentences() == [whole.sentences()[n] for n in (31, 4, 17)]


def test_json_bears_the_reasons_and_no_nan_even_where_power_is_not_known() -> None:
    for solution in (solve(fleet(), SolveOptions(rounds=2)), solve(fleet(power_fit=None), SolveOptions(w=1.0))):
        answer = json.loads(json.dumps(solution.as_json(), allow_nan=False))
        for row in answer["decisions"]:
            why = row["why"]
            assert set(why["delay_shares_pct"]) == {name.removesuffix("_s") for name in PARTS}
            assert sum(why["delay_shares_pct"].values()) == pytest.approx(100)
            assert why["next_best"]["cut"] != row["cut"]
            assert why["next_best"]["cost"] >= row["cost"] - 1e-12
            assert why["next_best"]["decided_by"] in (*TERMS, None)
            assert why["text"].endswith(".")


def test_the_terminal_says_why_once_for_each_device() -> None:
    text = printed(solve(fleet(), SolveOptions(rounds=3)))
    assert text.count("Why cut ") == 2
    assert "Why cut 3 on fast (as in round " in text
    assert "Next best is cut " in text


def test_a_million_decisions_are_not_explained_where_only_a_few_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from solver.show import report

    asked: list[int] = []
    monkeypatch.setattr(report, "explain", lambda solution, rows: asked.append(len(rows)) or explain(solution, rows))
    printed(solve(fleet(), SolveOptions(rounds=5000)))
    assert asked == [2]


def test_with_a_limit_the_next_best_cut_keeps_it_too_and_none_is_invented() -> None:
    free = solve(fleet(), SolveOptions(w=1.0))
    slack = solve(fleet(), SolveOptions(max_delay_s=2 * float(free.decisions.costs.delay_s.max())))
    why = every(slack)
    assert why.next_best.met.all()
    assert (why.next_best.costs.delay_s <= 2 * free.decisions.costs.delay_s.max()).all()
    assert set(why.deciding()) == {"energy"}
    assert "Next best is cut" in why.sentences()[0]
    assert why.sentences()[0].endswith(" J.")
    tight = solve(fleet(), SolveOptions(max_delay_s=float(free.decisions.costs.delay_s.min())))
    assert every(tight).sentences()[0].endswith("No other cut keeps the limit.")
    assert every(tight).sentences()[1].endswith("No cut and clock keeps the limit: this is the nearest.")


def test_with_a_price_reasons_are_told_in_joules() -> None:
    solution = solve(fleet(), SolveOptions(price_j_per_s=20.0))
    why = every(solution)
    assert why.moves(why.next_best).sum(1) == pytest.approx(why.next_best.cost - why.chosen.cost)
    assert "; price D + E +" in why.sentences()[0]
