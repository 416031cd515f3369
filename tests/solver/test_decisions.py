"""The printed algorithm and the exact optimum, held against plain loops on random instances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import card, exact
from solver.costs import (
    Choice,
    CostModel,
    Floats,
    Places,
    ServerClocks,
    ServerPower,
    ServerTime,
)
from solver.extremes import Extremes, ServerRange, box_extremes, piece_edges
from solver.stream import least
from tests.solver.reference import algorithm_1, algorithm_1_fleet

GHZ = 1e9


def model_of(waiting_s: Floats, time: ServerTime, power: ServerPower | None, idle_w: float = 0.0) -> CostModel:
    """A fleet of N devices, each of which waits ``waiting_s`` (N, C) whatever the channel does."""
    nothing = np.zeros_like(waiting_s)
    trips = np.zeros(len(waiting_s))
    return CostModel("profile", 1, waiting_s, nothing, nothing, nothing, trips, time, power, idle_w)


def places_of(feasible: np.ndarray) -> Places:
    """One decision for each device."""
    n = len(feasible)
    return Places(np.arange(n), np.ones(n), np.ones(n), feasible)


def scaling(cycles: Floats) -> ServerTime:
    """The letter's server: cycles (C,) over f."""
    return ServerTime(np.empty(0), np.zeros((len(cycles), 1)), cycles[:, None])


@dataclass(frozen=True)
class Instance:
    """N decisions over C cuts: delay without the server (N, C), what fits (N, C), a server, its clocks' range, w."""

    waiting_s: Floats
    feasible: np.ndarray
    time: ServerTime
    power: ServerPower
    f_min: float
    f_max: float
    w: float
    idle_w: float = 0.0
    device_w: float = 0.0

    @property
    def model(self) -> CostModel:
        model = model_of(self.waiting_s, self.time, self.power, self.idle_w)
        return replace(model, device_j=self.device_w * self.waiting_s) if self.device_w else model

    @property
    def places(self) -> Places:
        return places_of(self.feasible)

    def clocks(self, listed: Floats | None = None) -> ServerClocks:
        return ServerClocks(self.f_min, self.f_max, np.empty(0) if listed is None else listed)

    def cost(self, extremes: Extremes, clocks: Floats) -> Floats:
        """U (N, C, K) by the definition, infinite for cuts that do not fit."""
        seconds = self.model.server_s(clocks)[None]
        delay = self.waiting_s[:, :, None] + seconds
        energy = (
            self.power.at(clocks)[None, None] * seconds + (self.idle_w + self.device_w) * self.waiting_s[:, :, None]
        )
        d, e = extremes, extremes
        share_d = np.where(d.d_max_s > d.d_min_s, d.d_max_s - d.d_min_s, np.inf)[:, None, None]
        share_e = np.where(e.e_max_j > e.e_min_j, e.e_max_j - e.e_min_j, np.inf)[:, None, None]
        cost = self.w * (delay - d.d_min_s[:, None, None]) / share_d
        cost = cost + (1 - self.w) * (energy - e.e_min_j[:, None, None]) / share_e
        return np.where(self.feasible[:, :, None], cost, np.inf)

    def regret(self, extremes: Extremes, clocks: Floats, choice: Choice) -> Floats:
        """How much worse the decisions are than the best point of ``clocks``, (N,)."""
        cut, clock = choice.cut_index, choice.frequency_hz
        mine = np.array([float(self.cost(extremes, clock[n : n + 1])[n, cut[n], 0]) for n in range(len(cut))])
        return mine - self.cost(extremes, clocks).min((1, 2))


@st.composite
def instances(draw: st.DrawFn, *, cubic: bool, overhead_too: bool = False) -> Instance:
    """``cubic``: the letter's server, with ``overhead_too`` a time a beside b/f; else measured times and a table of watts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, cuts = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    work = rng.uniform(0.5, 1.5, cuts + 1) if draw(st.booleans()) else np.ones(cuts + 1)
    cycles = 1e9 * np.cumsum(work[::-1])[::-1][1:] * 10 ** rng.uniform(-1, 1)
    speed = 10 ** rng.uniform(-1.5, 0.5, (n, 1))
    waiting = np.cumsum(work)[:-1] / speed + rng.uniform(0, 0.5, (n, cuts))
    feasible = rng.random((n, cuts)) < 0.8
    feasible[np.arange(n), rng.integers(0, cuts, n)] = True
    f_min = rng.uniform(0.2, 1.2) * GHZ
    f_max = f_min * rng.uniform(1.0, 4.0)
    w = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    if cubic:
        overhead = rng.uniform(0, 2.0, (cuts, 1)) * cycles[:, None] / GHZ * overhead_too
        time = ServerTime(np.empty(0), overhead, cycles[:, None])
        power = ServerPower.cubic(float(10 ** rng.uniform(-27, -25)))
        return Instance(waiting, feasible, time, power, f_min, f_max, w)
    knots = np.sort(rng.uniform(0.1, 3.0, 4)) * GHZ
    overhead = rng.uniform(0, 0.5, (cuts, 1)) * (cycles[:, None] / GHZ)
    seconds = overhead + cycles[:, None] / knots
    b = np.column_stack([cycles, (seconds[:, :-1] - seconds[:, 1:]) / (1 / knots[:-1] - 1 / knots[1:]), cycles])
    anchor = np.concatenate([[0], np.arange(len(knots))])
    time = ServerTime(knots, seconds[:, anchor] - b / knots[anchor], b)
    at = np.linspace(0.1, 5.0, 12) * GHZ
    watts = rng.uniform(5, 50) + np.cumsum(rng.uniform(0, 30, 12)) * rng.choice([1.0, 0.1])
    power = ServerPower.table(at, watts)
    idle_w, device_w = float(rng.choice([0.0, 10.0])), float(rng.choice([0.0, 7.0]))
    return Instance(waiting, feasible, time, power, f_min, f_max, w, idle_w, device_w)


@settings(max_examples=200, deadline=None)
@given(instances(cubic=True))
def test_the_vectorised_card_is_algorithm_1_of_the_letter(case: Instance) -> None:
    cycles, xi = case.time.b_cycles[:, 0], float(case.power.r_w_per_hz3[0])
    choice = card.choose(case.model, case.places, case.clocks(), case.w, xi)
    cut, clock = choice.cut_index, choice.frequency_hz
    span = ServerRange.over(case.model, np.array([case.f_min, case.f_max]))
    extremes = box_extremes(case.model, case.places, span)
    for n in range(len(cut)):
        _, f, u = algorithm_1(
            case.waiting_s[n].tolist(), case.feasible[n].tolist(), cycles.tolist(), xi, case.w, case.f_min, case.f_max
        )
        assert clock[n] == pytest.approx(f, rel=1e-12)
        assert case.feasible[n, cut[n]]
        # the cut may differ only where two cuts cost the same
        assert float(case.cost(extremes, clock[n : n + 1])[n, cut[n], 0]) == pytest.approx(u, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.9]))
def test_thousands_of_decisions_in_any_order_are_those_of_the_plain_loop(seed: int, w: float) -> None:
    """Blocks, threads and left-out cuts change nothing: one loop over lists is the yardstick."""
    rng = np.random.default_rng(seed)
    devices, cuts, n = int(rng.integers(1, 5)), int(rng.integers(1, 40)), int(rng.integers(1, 3000))
    bits = rng.uniform(0, 1e8, (3, devices, cuts))
    compute = np.cumsum(rng.uniform(0, 1, (devices, cuts)), axis=1)
    cycles = np.cumsum(rng.uniform(0.1, 1, cuts))[::-1] * 1e9
    model = CostModel("letter", 1, compute, *bits, np.zeros(devices), scaling(cycles), ServerPower.cubic(1e-25))
    device = rng.integers(0, devices, n) if rng.random() < 0.5 else np.arange(n) % devices
    up, down = rng.uniform(1e6, 1e9, (2, n))
    places = Places(device, up, down, np.ones((devices, cuts), dtype=bool))
    choice = card.choose(model, places, ServerClocks(0.5e9, 2.5e9, np.empty(0)), w, 1e-25)
    terms = [
        [(compute[m, c], bits[0, m, c] + bits[2, m, c], bits[1, m, c] + bits[2, m, c]) for c in range(cuts)]
        for m in range(devices)
    ]
    expected = algorithm_1_fleet(
        terms,
        cycles.tolist(),
        list(zip(device.tolist(), up.tolist(), down.tolist(), strict=True)),
        1e-25,
        w,
        0.5e9,
        2.5e9,
    )
    assert choice.cut_index.tolist() == [cut for cut, _ in expected]
    assert choice.frequency_hz == pytest.approx([f for _, f in expected], rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rows_left_out_of_a_product_are_never_its_least(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, width = int(rng.integers(1, 30)), int(rng.integers(1, 5))
    terms = np.round(rng.normal(size=(rows, width)), 1)  # ties happen
    weights = rng.uniform(0, 2, (width, 50)) * rng.choice([0.0, 1.0], (width, 1), p=[0.2, 0.8])
    index, value = least(terms, weights)
    table = terms @ weights
    assert value == pytest.approx(table.min(axis=0), abs=1e-12)
    assert table[index, np.arange(50)] == pytest.approx(table.min(axis=0), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(instances(cubic=True))
def test_on_the_letters_cubic_law_card_is_the_joint_optimum(case: Instance) -> None:
    choice = card.choose(case.model, case.places, case.clocks(), case.w, float(case.power.r_w_per_hz3[0]))
    span = ServerRange.over_interval(case.model, case.f_min, case.f_max)
    extremes = box_extremes(case.model, case.places, span)
    grid = np.linspace(case.f_min, case.f_max, 400)
    assert case.regret(extremes, grid, choice).max() <= 1e-9


@settings(max_examples=150, deadline=None)
@given(instances(cubic=False), st.integers(1, 9))
def test_exact_over_listed_clocks_is_what_brute_force_finds(case: Instance, count: int) -> None:
    clocks = np.linspace(case.f_min, case.f_max, count)
    extremes = box_extremes(case.model, case.places, ServerRange.over(case.model, clocks))
    choice = exact.choose(case.model, case.places, case.clocks(clocks), *extremes.weights(case.w))
    assert np.isin(choice.frequency_hz, clocks).all()
    assert case.feasible[np.arange(len(case.feasible)), choice.cut_index].all()
    assert abs(case.regret(extremes, clocks, choice)).max() <= 1e-9


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda cubic: instances(cubic=cubic, overhead_too=cubic)))
def test_exact_over_a_continuous_range_beats_every_clock_of_a_fine_grid(case: Instance) -> None:
    span = ServerRange.over_interval(case.model, case.f_min, case.f_max)
    extremes = box_extremes(case.model, case.places, span)
    choice = exact.choose(case.model, case.places, case.clocks(), *extremes.weights(case.w))
    assert ((choice.frequency_hz >= case.f_min) & (choice.frequency_hz <= case.f_max)).all()
    grid = np.union1d(np.linspace(case.f_min, case.f_max, 1500), piece_edges(case.model, case.f_min, case.f_max))
    regret = case.regret(extremes, grid, choice)
    assert regret.max() <= 1e-9
    assert regret.min() >= -1e-2  # and it is no other quantity than the grid's


@settings(max_examples=100, deadline=None)
@given(instances(cubic=False))
def test_no_point_of_the_box_lies_outside_the_extremes(case: Instance) -> None:
    span = ServerRange.over_interval(case.model, case.f_min, case.f_max)
    box = box_extremes(case.model, case.places, span)
    cost = case.cost(box, np.linspace(case.f_min, case.f_max, 700))
    finite = cost[np.isfinite(cost)]
    assert finite.min() >= -1e-9
    assert finite.max() <= 1 + 1e-9


@settings(max_examples=100, deadline=None)
@given(instances(cubic=True), st.floats(0.01, 100))
def test_xi_cancels_out_of_the_letters_decision(case: Instance, factor: float) -> None:
    xi = float(case.power.r_w_per_hz3[0])
    decided = [card.optimal_clock(case.model, case.places, case.clocks(), case.w, value) for value in (xi, xi * factor)]
    assert decided[0] == pytest.approx(decided[1], rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_with_equal_layers_the_best_cut_is_the_first_or_the_last_by_the_letters_inequality(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, epochs, rho = int(rng.integers(3, 40)), 5, 1e11
    device_speed, server_per_hz = 10 ** rng.uniform(11, 13), 10 ** rng.uniform(2.5, 4.5)
    adapter_bits, up, down = 8 * 10 ** rng.uniform(3, 6), 10 ** rng.uniform(6, 9), 10 ** rng.uniform(6, 9)
    c = np.arange(1, layers)
    waiting = (epochs * rho * c / device_speed + adapter_bits * c * (1 / up + 1 / down))[None, :] + 0.3
    cycles = epochs * rho * (layers - c) / server_per_hz
    f_min, f_max, w = 0.2e9, 6e9, float(rng.uniform(0.05, 0.95))
    model = model_of(waiting, scaling(cycles), ServerPower.cubic(1e-26))
    choice = card.choose(
        model, places_of(np.ones_like(waiting, dtype=bool)), ServerClocks(f_min, f_max, np.empty(0)), w, 1e-26
    )
    cut, clock = int(choice.cut_index[0]) + 1, choice.frequency_hz
    assert cut in (1, layers - 1)
    if f_min < clock[0] < f_max:  # f* interior
        own = epochs * rho / device_speed + adapter_bits * (1 / up + 1 / down)
        other = 1.5 * epochs * rho / (server_per_hz * clock[0])
        if abs(own - other) > 1e-6 * other:
            assert cut == (layers - 1 if own < other else 1)


def test_equation_16_gives_a_weaker_device_the_lower_clock_once_the_device_is_the_bottleneck() -> None:
    """The text beside Fig. 3(b) says higher; both cannot hold, and the equation is what is implemented."""
    c = np.arange(1, 32)
    cycles = 1e10 * (32 - c)
    slow = np.stack([c * seconds for seconds in (30.0, 40.0, 60.0, 120.0)])

    def clocks(waiting: Floats, f_min: float) -> Floats:
        model = model_of(waiting, scaling(cycles), None)
        fits = places_of(np.ones_like(waiting, dtype=bool))
        return card.optimal_clock(model, fits, ServerClocks(f_min, 2.46e9, np.empty(0)), 0.2, 1e-25)

    assert (np.diff(clocks(slow, 3.4e8)) < 0).all()
    # Where even the last cut is faster than the server at F_min, D_max is the server's and the order turns round.
    fast = np.stack([c * seconds for seconds in (1.0, 2.0, 4.0)])
    assert (np.diff(clocks(fast, 1e8)) > 0).all()


def test_at_w_1_the_clock_is_the_highest_and_at_w_0_the_lowest_and_xi_is_not_needed_for_delay_alone() -> None:
    model = model_of(np.ones((2, 3)), scaling(np.array([3e9, 2e9, 1e9])), None)
    places, clocks = places_of(np.ones((2, 3), dtype=bool)), ServerClocks(1e9, 2e9, np.empty(0))
    low = card.optimal_clock(model, places, clocks, 0.0, 1e-25)
    high = card.optimal_clock(model, places, clocks, 1.0, None)
    assert low.tolist() == [1e9, 1e9]
    assert high.tolist() == [2e9, 2e9]


def test_a_power_table_is_read_between_its_points_and_held_at_its_ends() -> None:
    power = ServerPower.table([1e9, 2e9, 4e9], [10.0, 30.0, 40.0])
    assert power.at(np.array([0.5e9, 1e9, 1.5e9, 2e9, 3e9, 4e9, 9e9])) == pytest.approx([10, 10, 20, 30, 35, 40, 40])
