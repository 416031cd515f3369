"""The Pareto front, its hull and knee, and every w at which a decision flips: held against looking at every point and every decision."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from profiler.profile import BadInput, PowerPrediction, Profile
from solver import front
from solver.front import Losses, TradeOff, trade_offs
from solver.problem import SolveOptions, pose
from solver.scenario import solve
from tests.solver.test_scenario import fleet, letterlike
from tests.synthetic import make_profile

integer_points = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40)


def beaten(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    return any(p[0] <= point[0] and p[1] <= point[1] and p != point for p in points)


def noisy_fleet(seed: int, layers: int = 6, clocks: int = 9) -> list[Profile]:
    """Watts and layer times of the server jump from clock to clock; the second device is slower and short of memory."""
    rng = np.random.default_rng(seed)
    hz = np.sort(rng.uniform(0.3e9, 2.5e9, clocks))
    watts = 15 + 60 * (hz / 2.5e9) ** 3 * rng.uniform(0.6, 1.6, clocks)
    server = make_profile("srv", "server", layers=layers)
    assert server.hardware.clocks is not None
    assert server.power_fit is not None
    grid = server.hardware.clocks.model_copy(
        update={
            "supported_hz": hz.tolist(),
            "min_hz": float(hz[0]),
            "max_hz": float(hz[-1]),
            "operating_hz": float(hz[-1]),
        }
    )
    rows = [PowerPrediction(frequency_hz=f, power_w=p, low_w=p, high_w=p) for f, p in zip(hz, watts, strict=True)]
    server = server.model_copy(
        update={
            "hardware": server.hardware.model_copy(update={"clocks": grid}),
            "power_fit": server.power_fit.model_copy(update={"predictions": rows}),
            "timings": [unequal(t, rng.uniform(0.3, 3.0, len(t.segments))) for t in server.timings],
        }
    )
    devices = []
    for name, factor, memory in (("quick", 0.5, 10**9), ("slow", 6.0, 4 * 10**8)):
        device = make_profile(name, layers=layers)
        scale = factor * rng.uniform(0.3, 3.0, layers + 2)
        devices.append(
            device.model_copy(
                update={
                    "timings": [unequal(t, scale) for t in device.timings],
                    "hardware": device.hardware.model_copy(update={"memory_bytes": memory}),
                }
            )
        )
    return [server, *devices]


def unequal(timing: Any, factors: Any) -> Any:
    def scaled(row: Any, by: float) -> Any:
        parts = {
            x: getattr(row, x).model_copy(update={"median_s": getattr(row, x).median_s * by})
            for x in ("forward", "backward")
        }
        return row.model_copy(update=parts)

    rows = [scaled(row, float(by)) for row, by in zip(timing.segments, factors, strict=True)]
    return timing.model_copy(update={"segments": rows})


def decided(profiles: list[Profile], method: str, w: float, m: int) -> tuple[int, float]:
    decisions = solve(profiles, SolveOptions(method=method, w=w)).decisions
    return int(decisions.cut[m]), float(decisions.frequency_hz[m])


# ---------------------------------------------------------------------------------------------------------- geometry


@settings(max_examples=200, deadline=None)
@given(integer_points)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    delay, energy = (np.array(x, dtype=float) for x in zip(*points, strict=True))
    found = front.pareto(delay, energy)
    assert [(delay[k], energy[k]) for k in found] == sorted({p for p in points if not beaten(p, points)})
    assert all(k == points.index(points[k]) for k in found)  # of equal points the first


@settings(max_examples=200, deadline=None)
@given(integer_points)
def test_corners_of_the_hull_are_the_points_below_every_line_between_two_others(points: list[tuple[int, int]]) -> None:
    on_front = sorted({p for p in points if not beaten(p, points)})
    delay, energy = (np.array(x, dtype=float) for x in zip(*on_front, strict=True))
    expected = []
    for k, (d, e) in enumerate(on_front):
        spans = itertools.product(on_front[:k], on_front[k + 1 :])
        if all((e - e1) * (d2 - d1) < (e2 - e1) * (d - d1) for (d1, e1), (d2, e2) in spans):
            expected.append(k)
    assert front.lower_hull(delay, energy).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(integer_points)
def test_a_corner_is_found_by_some_price_and_no_other_point_is_alone_best_at_any(points: list[tuple[int, int]]) -> None:
    on_front = sorted({p for p in points if not beaten(p, points)})
    delay, energy = (np.array(x, dtype=float) for x in zip(*on_front, strict=True))
    corners = front.lower_hull(delay, energy)
    slopes = sorted((energy[a] - energy[b]) / (delay[b] - delay[a]) for a, b in itertools.pairwise(corners))
    bounds = [0.0, *slopes, (slopes or [1.0])[-1] * 2 + 1]
    found = set()
    for low, high in itertools.pairwise(bounds):
        cost = (low + high) / 2 * delay + energy
        found.add(int(cost.argmin()))
        assert (cost == cost.min()).sum() == 1
    assert found == set(corners.tolist())


@settings(max_examples=100, deadline=None)
@given(integer_points)
def test_the_knee_lies_farthest_below_the_chord_of_the_scaled_front_and_some_price_finds_it(
    points: list[tuple[int, int]],
) -> None:
    on_front = sorted({p for p in points if not beaten(p, points)})
    delay, energy = (np.array(x, dtype=float) for x in zip(*on_front, strict=True))
    found = front.knee(delay, energy)

    def below(k: int) -> float:
        x = (delay[k] - delay[0]) / (delay[-1] - delay[0])
        return float(1 - x - (energy[k] - energy[-1]) / (energy[0] - energy[-1]))

    if len(on_front) < 3 or max(below(k) for k in range(len(on_front))) < 1e-9:
        assert found is None
    else:
        assert found is not None
        assert below(found) == pytest.approx(max(below(k) for k in range(len(on_front))))
        price = (energy[0] - energy[-1]) / (delay[-1] - delay[0])
        cost = price * delay + energy
        assert cost[found] == pytest.approx(cost.min())


# ------------------------------------------------------------------------------------------------------- one fleet


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_feasible_cut_and_clock_is_a_point_and_the_front_of_a_fleet_is_what_brute_force_finds(seed: int) -> None:
    problem = pose(noisy_fleet(seed), SolveOptions())
    for m, each in enumerate(trade_offs(problem)):
        points = []
        for c in range(problem.decider.cuts):
            for f in problem.clocks.supported_hz.tolist():
                if problem.feasible[m, c]:
                    costs = problem.decider.at(m, problem.places.uplink_bps[m], problem.places.downlink_bps[m], c, f)
                    assert costs.energy_j is not None
                    points.append((float(costs.delay_s), float(costs.energy_j)))
        assert sorted(points) == sorted(zip(each.points.delay_s.tolist(), each.points.energy_j.tolist(), strict=True))
        on_front = each.front_points()
        assert list(zip(on_front.delay_s.tolist(), on_front.energy_j.tolist(), strict=True)) == sorted(
            {p for p in points if not beaten(p, points)}
        )
        assert problem.feasible[m, on_front.cut - 1].all()
    assert not problem.feasible.all()  # the slow device is short of memory


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["exact", "card"])
def test_between_two_flips_the_decision_stays_and_across_a_flip_it_changes(seed: int, method: str) -> None:
    profiles = noisy_fleet(seed)
    for m, each in enumerate(trade_offs(pose(profiles, SolveOptions()))):
        over_w = each.exact if method == "exact" else each.printed
        assert over_w.w[0] == 0
        assert over_w.w[-1] == 1
        assert (np.diff(over_w.w) >= 0).all()
        assert len(over_w) > 2
        shown = [(int(c), float(f)) for c, f in zip(over_w.begin.cut, over_w.begin.frequency_hz, strict=True)]
        assert all(a != b for a, b in itertools.pairwise(shown))
        for i, point in enumerate(shown):
            low, high = over_w.w[i], over_w.w[i + 1]
            if high - low > 1e-6:
                for w in (low + 3e-9, 0.6 * low + 0.4 * high, high - 3e-9):
                    assert decided(profiles, method, float(w), m) == point


@pytest.mark.parametrize("method", ["exact", "card"])
def test_no_decision_over_a_fine_grid_of_w_is_missing_from_the_plateaus(method: str) -> None:
    profiles = noisy_fleet(5)
    found = trade_offs(pose(profiles, SolveOptions()))
    for w in np.linspace(0, 1, 83):
        for m, each in enumerate(found):
            over_w = each.exact if method == "exact" else each.printed
            i = int(np.clip(np.searchsorted(over_w.w, w, side="right") - 1, 0, len(over_w) - 1))
            assert decided(profiles, method, float(w), m) == (over_w.begin.cut[i], over_w.begin.frequency_hz[i])


def test_what_w_reaches_is_what_the_exact_decision_is_at_some_w() -> None:
    only_limits = 0
    for seed in range(3):
        for each in trade_offs(pose(noisy_fleet(seed), SolveOptions())):
            reached = {k for k in range(len(each.front)) if each.reach(k) is not None}
            assert reached == set(np.flatnonzero(each.supported).tolist())
            only_limits += len(each.front) - len(reached)
    assert only_limits > 0


def test_where_eq_16s_clock_moves_the_box_the_flips_move_with_it() -> None:
    """Energy is least between two listed clocks. While f* passes there, E_min is lower than any listed clock's."""
    profiles = noisy_fleet(0, clocks=4)
    problem = pose(profiles, SolveOptions())
    least = [float(solve(profiles, SolveOptions(w=w)).extremes.e_min_j[0]) for w in np.linspace(0.02, 0.98, 25)]
    assert max(least) > min(least)
    for m, each in enumerate(trade_offs(problem)):
        for w in each.exact.flips.tolist():
            assert decided(profiles, "exact", w - 1e-10, m) != decided(profiles, "exact", w + 1e-10, m)


def test_over_a_range_of_clocks_the_cut_flips_where_it_is_said_to_and_the_clock_moves_between() -> None:
    profiles = letterlike()
    flips = 0
    for m, each in enumerate(trade_offs(pose(profiles, SolveOptions()))):
        assert not each.listed
        for over_w, method in ((each.exact, "exact"), (each.printed, "card")):
            for i, w in enumerate(over_w.flips.tolist()):
                flips += 1
                assert decided(profiles, method, w - 2e-9, m)[0] == over_w.end.cut[i]
                assert decided(profiles, method, w + 2e-9, m)[0] == over_w.begin.cut[i + 1] != over_w.end.cut[i]
            assert over_w.begin.frequency_hz[0] < over_w.end.frequency_hz[-1]
    assert flips


def test_a_price_of_the_same_size_as_w_gives_the_same_decision() -> None:
    profiles = noisy_fleet(1)
    for w in (0.05, 0.2, 0.7):
        found = trade_offs(pose(profiles, SolveOptions(w=w)))
        for m, each in enumerate(found):
            assert each.price_j_per_s is not None
            priced = solve(profiles, SolveOptions(price_j_per_s=each.price_j_per_s)).decisions
            assert (priced.cut[m], priced.frequency_hz[m]) == decided(profiles, "exact", w, m)
            assert (each.chosen.cut[0], each.chosen.frequency_hz[0]) == decided(profiles, "exact", w, m)
            assert (each.printed_chosen.cut[0], each.printed_chosen.frequency_hz[0]) == decided(profiles, "card", w, m)


# ------------------------------------------------------------------------------------------- Algorithm 1 against exact


@pytest.mark.parametrize("seed", range(3))
def test_what_algorithm_1_loses_is_its_cost_less_the_optimums(seed: int) -> None:
    profiles = noisy_fleet(seed)
    found = trade_offs(pose(profiles, SolveOptions()))
    assert any(each.losses.worst is not None for each in found)
    for m, each in enumerate(found):
        lost = each.losses
        for k in (0, 100, len(lost.w) // 2, int(lost.cost.argmax())):
            w = float(lost.w[k])
            ours, theirs = (solve(profiles, SolveOptions(method=x, w=w)).decisions for x in ("exact", "card"))
            assert lost.cost[k] == pytest.approx(theirs.cost[m] - ours.cost[m], abs=1e-12)
            delay = 100 * (theirs.costs.delay_s[m] / ours.costs.delay_s[m] - 1)
            assert lost.delay_pct[k] == pytest.approx(delay, abs=1e-9)
        inside = np.zeros(len(lost.w), dtype=bool)
        for low, high in lost.stretches:
            inside |= (lost.w >= low) & (lost.w <= high)
        assert (inside == (lost.cost > front.LOSS)).all()
        assert 0 <= lost.share_of_w <= 1


def test_on_the_cubic_law_over_a_range_of_clocks_algorithm_1_never_loses() -> None:
    for each in trade_offs(pose(letterlike(), SolveOptions())):
        assert each.losses.worst is None
        assert each.losses.share_of_w == 0
        assert each.as_json()["algorithm_1_against_exact"]["worst"] is None


# ------------------------------------------------------------------------------------------------------- as reported


def test_json_and_csv_say_the_same_and_hold_no_nan(tmp_path: Path) -> None:
    problem = pose(noisy_fleet(2), SolveOptions())
    found = trade_offs(problem)
    answer = json.loads(json.dumps(front.as_json(problem, found), allow_nan=False))
    with front.write_csv(found, tmp_path / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == front.COLUMNS
    for each in answer["devices"]:
        mine = [r for r in rows if r["device"] == each["device"]]
        assert len(mine) == each["points"]
        on_front = [r for r in mine if r["on_front"] == "true"]
        assert {(float(r["delay_s"]), float(r["energy_j"])) for r in on_front} == {
            (p["delay_s"], p["energy_j"]) for p in each["front"]
        }
        reached = {
            int(r["cut"]) * 1e12 + float(r["frequency_hz"]): (r["w_from"], r["w_to"])
            for r in on_front
            if r["reached_by_w"] == "true"
        }
        assert {k: (float(a), float(b)) for k, (a, b) in reached.items()} == {
            p["cut"] * 1e12 + p["frequency_hz"]: (p["w_from"], p["w_to"]) for p in each["front"] if p["reached_by_w"]
        }
        knees = [r for r in mine if r["knee"] == "true"]
        assert [float(r["delay_s"]) for r in knees] == ([] if each["knee"] is None else [each["knee"]["delay_s"]])
        assert each["exact_over_w"][0]["w_from"] == 0
        assert each["exact_over_w"][-1]["w_to"] == 1


def test_the_round_asked_for_is_the_one_looked_at_and_an_unknown_one_is_refused_in_one_line(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{r},{name},{mbps},{mbps}" for r, mbps in ((1, 500), (2, 5)) for name in ("fast", "slow")]
    trace.write_text("\n".join(["round,device,uplink_mbps,downlink_mbps", *rows]) + "\n")
    problem = pose(fleet(), SolveOptions(channel=str(trace)))
    first, second = trade_offs(problem), trade_offs(problem, 2)
    assert [each.round for each in second] == [2, 2]
    alone = trade_offs(pose(fleet(), SolveOptions(uplink_mbps=5.0, downlink_mbps=5.0)))
    for before, after, same in zip(first, second, alone, strict=True):
        assert (after.points.delay_s > before.points.delay_s).all()
        assert after.as_json() == {**same.as_json(), "round": 2}
    with pytest.raises(BadInput, match=r"^--round 9: expected one of the rounds 1 to 2$"):
        trade_offs(problem, 9)


def test_without_power_there_is_no_front_and_one_line_says_why() -> None:
    profiles = fleet(power_fit=None)
    with pytest.raises(BadInput, match="profile srv: its power is not known") as error:
        trade_offs(pose(profiles, SolveOptions(w=1.0)))
    assert "\n" not in str(error.value)


def test_a_limit_marks_another_point_of_the_front_and_one_that_nobody_keeps_is_refused() -> None:
    found = trade_offs(pose(noisy_fleet(0), SolveOptions()))
    quick = found[0].front_points()
    limit = float(quick.delay_s[len(quick) // 2])
    marked: TradeOff = trade_offs(pose(noisy_fleet(0), SolveOptions(max_delay_s=limit)))[0]
    assert marked.keeps_limit
    assert marked.chosen.delay_s[0] == limit
    least = min(float(each.points.delay_s.min()) for each in found)
    with pytest.raises(BadInput, match=r"^--max-delay-s .* no cut and clock of any device keeps it"):
        trade_offs(pose(noisy_fleet(0), SolveOptions(max_delay_s=0.99 * least)))


@pytest.mark.parametrize("make", [fleet, letterlike])
def test_the_report_names_knee_decisions_and_losses_and_the_plots_are_drawn(make: Any, tmp_path: Path) -> None:
    from solver.front_view import print_front, write_plots

    problem = pose(make(), SolveOptions())
    found = trade_offs(problem)
    out = io.StringIO()
    print_front(problem, found, Console(file=out, width=100))
    text = out.getvalue()
    for each in found:
        assert each.device in text
    for word in ("knee", "w = 0.2 lets a second cost", "exact, w = 0.2", "Algorithm 1, w = 0.2", "from w"):
        assert word in text
    assert "nan" not in text
    paths = write_plots(problem, found, tmp_path)
    assert [path.name for path in paths] == ["front-fast.png", "front-slow.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_a_range_whose_ends_read_the_same_is_one_figure() -> None:
    from solver.front_view import print_front

    problem = pose(noisy_fleet(0, clocks=2), SolveOptions())
    only = np.zeros_like(problem.feasible)
    only[:, 0] = True
    problem = replace(
        problem, feasible=only, clocks=replace(problem.clocks, f_min_hz=1e9, f_max_hz=1e9, supported_hz=np.array([1e9]))
    )
    found = trade_offs(problem)
    cost, none = np.array([0, 0.1, 0, 0.1, 0.1, 0]), np.zeros(6)
    lost = Losses(np.array([0, 0.884, 0.89, 0.9, 0.95, 1]), cost, none, none)
    worse = [replace(each, losses=lost) for each in found]
    out = io.StringIO()
    print_front(problem, worse, Console(file=out, width=200))
    assert "(0.884, 0.9 to 0.95)" in out.getvalue()
    ranges = re.findall(r"(\d[\d.]*) ?\w* to (\d[\d.]*)", out.getvalue())
    assert ranges
    assert all(low != high for low, high in ranges)


def test_one_cut_at_one_clock_is_a_front_of_one_point_without_knee_or_flips() -> None:
    problem = pose(noisy_fleet(0, clocks=2), SolveOptions())
    only = np.zeros_like(problem.feasible)
    only[:, 0] = True
    clocks = replace(problem.clocks, f_min_hz=1e9, f_max_hz=1e9, supported_hz=np.array([1e9]))
    for each in trade_offs(replace(problem, feasible=only, clocks=clocks)):
        assert len(each.points) == len(each.front) == len(each.exact) == 1
        assert each.knee is None
        assert each.price_j_per_s is None
        assert each.reach(0) == (0.0, 1.0)
        assert math.isfinite(each.losses.cost.max())
