"""A price, a deadline and an energy budget: every answer is the best of all points, found again by looking at each of them."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput
from solver.clocktimes import ServerTime
from solver.costs import Choice, CostModel, Mask, Places, ServerClocks, ServerPower
from solver.extremes import Extremes
from solver.objective import Objective, weight_or_other
from solver.problem import SolveOptions, pose
from solver.scenario import solve
from tests.solver.test_scenario import fleet, letterlike


def a_world(
    seed: int, *, listed: bool = True, devices: int = 2, rounds: int = 2
) -> tuple[CostModel, Places, ServerClocks]:
    """A random fleet: power and times of the server jump from clock to clock, some cuts do not fit, idle and device energy may count."""
    rng = np.random.default_rng(seed)
    cuts, count = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    hz = np.sort(rng.uniform(0.3e9, 2.5e9, count))
    watts = rng.uniform(10, 200, count)
    if count == 1:
        time = ServerTime(np.empty(0), rng.uniform(0, 0.1, (cuts, 1)), rng.uniform(0.1, 3, (cuts, 1)) * 1e9)
    else:
        seconds = rng.uniform(0.1, 5, (cuts, count))  # they may rise with the clock
        x = 1 / hz
        slopes = (seconds[:, :-1] - seconds[:, 1:]) / (x[:-1] - x[1:])
        slopes = np.column_stack([seconds[:, 0] * hz[0], slopes, seconds[:, -1] * hz[-1]])
        anchor = np.concatenate([[0], np.arange(count)])
        time = ServerTime(hz, seconds[:, anchor] - slopes * x[anchor], slopes)
    model = CostModel(
        name="profile",
        epochs=3,
        device_compute_s=np.sort(rng.uniform(0, 10, (devices, cuts)), axis=1),
        uplink_bits=rng.uniform(1e5, 1e8, (devices, cuts)),
        downlink_bits=rng.uniform(1e5, 1e8, (devices, cuts)),
        adapter_bits=rng.uniform(1e4, 1e6, (devices, cuts)),
        round_trip_s=rng.uniform(0, 0.1, devices),
        server_time=time,
        server_power=ServerPower.table(hz, watts),
        idle_w=float(rng.choice([0.0, 12.5])),
        device_j=None if rng.random() < 0.5 else rng.uniform(0, 50, (devices, cuts)),
    )
    feasible = rng.random((devices, cuts)) < 0.7
    feasible[~feasible.any(1), 0] = True
    device = np.tile(np.arange(devices), rounds)
    rates = rng.uniform(1e7, 1e9, (2, len(device)))
    clocks = ServerClocks(hz[0] * 0.9, hz[-1] * 1.1, hz if listed else np.empty(0))
    return model, Places(device, rates[0], rates[1], feasible), clocks


def every_point(model: CostModel, places: Places, n: int, clocks_hz: Any) -> list[tuple[float, float, int, float]]:
    """(delay, energy, cut index, clock) of every feasible cut and given clock of place n, one after the other."""
    m, points = int(places.device[n]), []
    for c in range(model.cuts):
        if places.feasible[m, c]:
            for f in clocks_hz:
                costs = model.at(m, places.uplink_bps[n], places.downlink_bps[n], c, f)
                assert costs.energy_j is not None
                points.append((float(costs.delay_s), float(costs.energy_j), c, float(f)))
    return points


def reached(model: CostModel, places: Places, choice: Choice, n: int) -> tuple[float, float]:
    costs = model.at(
        places.device[n], places.uplink_bps[n], places.downlink_bps[n], choice.cut_index[n], choice.frequency_hz[n]
    )
    assert costs.energy_j is not None
    return float(costs.delay_s), float(costs.energy_j)


def choose(goal: Objective, model: CostModel, places: Places, clocks: ServerClocks) -> tuple[Choice, Mask]:
    nothing = Extremes(*(np.zeros(len(places)) for _ in range(4)))  # a price and a limit need no extremes
    choice, met = goal.choose(model, places, clocks, nothing)
    for n, m in enumerate(places.device):
        assert places.feasible[m, choice.cut_index[n]]
    return choice, met


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(["delay", "energy"]), st.booleans())
def test_within_a_limit_the_best_of_all_points_is_found_and_ties_go_to_less_of_what_is_limited(
    seed: int, share: float, limited: str, at_a_point: bool
) -> None:
    model, places, clocks = a_world(seed)
    k = 0 if limited == "delay" else 1
    everywhere = [p[k] for n in range(len(places)) for p in every_point(model, places, n, clocks.supported_hz)]
    limit = min(everywhere) + share * (max(everywhere) - min(everywhere))
    if at_a_point:  # to the bit what one point takes
        limit = min(everywhere, key=lambda value: abs(value - limit))
    goal = Objective(max_delay_s=limit) if k == 0 else Objective(max_energy_j=limit)
    choice, met = choose(goal, model, places, clocks)
    for n in range(len(places)):
        points = every_point(model, places, n, clocks.supported_hz)
        within = [p for p in points if p[k] <= limit]
        mine = reached(model, places, choice, n)
        assert met[n] == bool(within)
        if within:
            best = min((p[1 - k], p[k]) for p in within)
            assert mine[k] <= limit
            assert mine[1 - k] == pytest.approx(best[0], rel=1e-12)
            assert mine[k] <= best[1] * (1 + 1e-12) or mine[1 - k] < best[0]
        else:
            least = min((p[k], p[1 - k]) for p in points)
            assert (mine[k], mine[1 - k]) == pytest.approx(least, rel=1e-12)


def test_of_equal_energies_the_least_delay_is_taken_and_of_equal_delays_the_least_energy() -> None:
    power = ServerPower.table([1e9, 2e9], [64.0, 64.0])
    # Seconds 1 and 2 at both clocks; cut 3 takes as many joules as cut 1 and is slower.
    time = ServerTime(np.empty(0), np.array([[1.0], [2.0], [1.0]]), np.zeros((3, 1)))
    zero = np.zeros((1, 3))
    model = CostModel("profile", 1, np.array([[4.0, 3.0, 6.0]]), zero, zero, zero, np.zeros(1), time, power)
    places = Places(np.zeros(1, dtype=np.intp), np.ones(1), np.ones(1), np.ones((1, 3), dtype=bool))
    clocks = ServerClocks(1e9, 2e9, np.array([1e9, 2e9]))
    choice, met = choose(Objective(max_delay_s=8.0), model, places, clocks)
    assert (choice.cut_index[0], choice.frequency_hz[0], met[0]) == (0, 1e9, True)  # 5 s, 64 J, before 7 s, 64 J
    choice, met = choose(Objective(max_energy_j=128.0), model, places, clocks)
    assert (choice.cut_index[0], choice.frequency_hz[0], met[0]) == (0, 1e9, True)  # 5 s, 64 J, before 5 s, 128 J


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1e4))
def test_a_price_finds_the_point_of_least_price_times_delay_plus_energy(seed: int, price: float) -> None:
    model, places, clocks = a_world(seed)
    choice, met = choose(Objective(price_j_per_s=price), model, places, clocks)
    assert met.all()
    for n in range(len(places)):
        delay, energy = reached(model, places, choice, n)
        best = min(price * d + e for d, e, _, _ in every_point(model, places, n, clocks.supported_hz))
        assert price * delay + energy == pytest.approx(best, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 1), st.sampled_from(["delay", "energy"]), st.booleans())
def test_over_a_range_of_clocks_nothing_on_a_fine_grid_beats_the_answer_within_the_limit(
    seed: int, share: float, limited: str, cubic: bool
) -> None:
    model, places, clocks = a_world(seed, listed=False, devices=1, rounds=2)
    if cubic:
        model = replace(model, server_power=ServerPower.cubic(1e-26))
    k = 0 if limited == "delay" else 1
    grid = np.linspace(clocks.f_min_hz, clocks.f_max_hz, 2001)
    for n in range(len(places)):
        m, every = int(places.device[n]), np.arange(model.cuts)[:, None]
        costs = model.at(m, places.uplink_bps[n], places.downlink_bps[n], every, grid[None, :])
        assert costs.energy_j is not None
        figures = [np.where(places.feasible[m][:, None], x, math.inf) for x in (costs.delay_s, costs.energy_j)]
        finite = figures[k][np.isfinite(figures[k])]
        limit = float(finite.min() + share * (finite.max() - finite.min()))
        goal = Objective(max_delay_s=limit) if k == 0 else Objective(max_energy_j=limit)
        choice, met = choose(goal, model, places, clocks)
        mine = reached(model, places, choice, n)
        assert met[n]
        assert mine[k] <= limit
        assert mine[1 - k] <= figures[1 - k][figures[k] <= limit].min() * (1 + 1e-12)


def test_over_a_range_of_clocks_the_limit_is_met_to_the_last_bits_where_it_binds() -> None:
    problem = pose(letterlike(), SolveOptions())
    loose = solve(letterlike(), SolveOptions(price_j_per_s=1e-6)).decisions
    tight = solve(letterlike(), SolveOptions(price_j_per_s=1e9)).decisions
    assert loose.costs.energy_j is not None
    for n in range(len(problem.places)):
        limit = float(0.7 * tight.costs.delay_s[n] + 0.3 * loose.costs.delay_s[n])
        found = solve(letterlike(), SolveOptions(max_delay_s=limit)).decisions
        assert found.costs.delay_s[n] == pytest.approx(limit, rel=1e-14)
        assert found.costs.delay_s[n] <= limit


def test_a_limit_reaches_a_point_that_no_weight_and_no_price_reaches() -> None:
    """The curve bulges: 2 s and 9 J lies above the line from (1 s, 10 J) to (3 s, 1 J)."""
    zero = np.zeros((1, 1))
    hz = [1e9, 2e9, 3e9]
    time = ServerTime(np.array([1.5e9, 2.5e9]), np.array([[3.0, 2.0, 1.0]]), np.zeros((1, 3)))
    model = CostModel(
        "profile", 1, zero, zero, zero, zero, np.zeros(1), time, ServerPower.table(hz, [1 / 3, 4.5, 10.0])
    )
    places = Places(np.zeros(1, dtype=np.intp), np.ones(1), np.ones(1), np.ones((1, 1), dtype=bool))
    clocks = ServerClocks(1e9, 3e9, np.array(hz))
    assert choose(Objective(max_delay_s=2.5), model, places, clocks)[0].frequency_hz[0] == 2e9
    assert choose(Objective(max_energy_j=9.5), model, places, clocks)[0].frequency_hz[0] == 2e9
    prices = [
        choose(Objective(price_j_per_s=p), model, places, clocks)[0].frequency_hz[0]
        for p in np.geomspace(0.01, 1e3, 300)
    ]
    assert set(prices) == {1e9, 3e9}


def test_many_places_are_decided_as_each_alone() -> None:
    model, places, clocks = a_world(7, rounds=1500)
    for goal in (Objective(max_delay_s=6.0), Objective(max_energy_j=200.0)):
        together, met = choose(goal, model, places, clocks)
        for n in range(0, len(places), 501):
            one = slice(n, n + 1)
            alone = Places(places.device[one], places.uplink_bps[one], places.downlink_bps[one], places.feasible)
            choice, kept = choose(goal, model, alone, clocks)
            assert (choice.cut_index[0], choice.frequency_hz[0]) == (together.cut_index[n], together.frequency_hz[n])
            assert kept[0] == met[n]


# ------------------------------------------------------------------------------------------------------- as reported


def test_the_answer_says_what_was_minimised_and_the_cost_is_that_figure() -> None:
    for options, kind, field, unit in (
        (SolveOptions(price_j_per_s=30.0), "price", None, "J"),
        (SolveOptions(max_delay_s=100.0), "max-delay-s", "energy_j", "J"),
        (SolveOptions(max_energy_j=1e4), "max-energy-j", "delay_s", "s"),
        (SolveOptions(w=0.4), "w", None, ""),
    ):
        answer = json.loads(json.dumps(solve(fleet(), options).as_json(), allow_nan=False))
        assert (answer["objective"]["kind"], answer["objective"]["cost_unit"]) == (kind, unit)
        for row in itertools.chain(answer["decisions"], *answer["baselines"].values()):
            if field is not None:
                assert row["cost"] == row[field]
            elif kind == "price":
                assert row["cost"] == pytest.approx(30.0 * row["delay_s"] + row["energy_j"], rel=1e-14)


def test_where_some_devices_cannot_keep_the_limit_they_are_marked_named_and_left_out_of_the_means() -> None:
    fast, slow = (min(p[0] for p in every) for every in by_device())
    assert fast < slow
    solution = solve(fleet(), SolveOptions(max_delay_s=(fast + slow) / 2))
    rows = {row["device"]: row for row in solution.as_json()["decisions"]}
    assert (rows["fast"]["feasible"], rows["slow"]["feasible"]) == (True, False)
    assert rows["slow"]["delay_s"] == slow  # the least violation
    (line,) = [line for line in solution.warnings if "--max-delay-s" in line]
    assert "slow" in line
    assert "fast" not in line
    assert solution.summary()["mean_delay_s"] == rows["fast"]["delay_s"]
    assert solution.summary()["delay_reduction_vs_device_only_pct"] is None


def by_device() -> list[list[tuple[float, float, int, float]]]:
    problem = pose(fleet(), SolveOptions())
    return [every_point(problem.decider, problem.places, n, problem.clocks.supported_hz) for n in (0, 1)]


@pytest.mark.parametrize("option", ["max_delay_s", "max_energy_j"])
def test_where_no_device_can_keep_the_limit_one_line_names_option_device_and_the_least_that_would_do(
    option: str,
) -> None:
    k = 0 if option == "max_delay_s" else 1
    least, name = min(
        (min(p[k] for p in every), name) for every, name in zip(by_device(), ("fast", "slow"), strict=True)
    )
    with pytest.raises(BadInput) as error:
        solve(fleet(), SolveOptions(**{option: least * 0.999}))  # type: ignore[arg-type]
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("--" + option.replace("_", "-"))
    assert name in line
    asked_for = float(line.split("least ")[1].split(" is ")[1].split()[0])
    assert least <= asked_for <= least * 1.001
    assert solve(fleet(), SolveOptions(**{option: asked_for})).decisions.feasible.any()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"price_j_per_s": -1.0}, "--price -1: expected a number of joules for a second of 0 or more"),
        ({"price_j_per_s": math.nan}, "--price nan: expected"),
        ({"max_delay_s": 0.0}, "--max-delay-s 0: expected a number of seconds above 0"),
        ({"max_delay_s": math.inf}, "--max-delay-s inf: expected"),
        ({"max_energy_j": -3.0}, "--max-energy-j -3: expected a number of joules above 0"),
        ({"price_j_per_s": 1.0, "max_delay_s": 1.0}, "--price, --max-delay-s: expected one of them"),
        ({"max_energy_j": 1.0, "max_delay_s": 1.0}, "--max-delay-s, --max-energy-j: expected one of them"),
        ({"price_j_per_s": 1.0, "method": "card"}, "--price: expected --method exact, card knows only U"),
        (
            {"max_delay_s": 9.0, "method": "static:2"},
            "--max-delay-s: expected --method exact, static:2 does not choose",
        ),
        ({"max_energy_j": 9.0, "method": "server-only"}, "--max-energy-j: expected --method exact"),
        (
            {"max_energy_j": 9.0, "method": "min-cut"},
            "--max-energy-j: expected --method exact, min-cut keeps no limits",
        ),
    ],
)
def test_an_objective_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput) as error:
        solve(fleet(), SolveOptions(**changes))
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_a_weight_given_beside_another_objective_is_refused_and_left_out_it_is_the_letters() -> None:
    assert weight_or_other(None, None, None, None) == weight_or_other(None, 3.0, None, None) == SolveOptions().w
    assert weight_or_other(0.7, None, None, None) == 0.7
    with pytest.raises(BadInput, match=r"^--w, --max-delay-s: expected one of them"):
        weight_or_other(SolveOptions().w, None, 3.0, None)
