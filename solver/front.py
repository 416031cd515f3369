"""Delay against energy for one device: every point, the Pareto front, what a weight can reach of it, and every w at which a decision flips.

For one device and round all (cut, clock) points are enumerated. The front are those that no other point beats in both figures. A weight w, or a
price in J/s, finds only the corners of the front's lower convex hull ("reached by w"); the rest is found only by a limit
(`solver.objective`). U depends on w through one number, what it lets a second cost:

    price(w) = (w / (D_max - D_min)) / ((1 - w) / (E_max - E_min))   in J/s

so the exact decision flips where price(w) is the slope of an edge of the hull. Algorithm 1 first moves its clock with w (Eq. 16) and then
chooses the cut at it: its flips are looked for on a grid of w and closed in on by halving.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from profiler.profile import BadInput
from profiler.store import write_atomically
from solver import card, exact
from solver.assumptions import distinct
from solver.costs import Choice, Floats, Ints, Mask, Places
from solver.extremes import Extremes, box, piece_edges
from solver.problem import Problem, in_one_model

SAMPLES = 201
"""Clocks at which a range of clocks is looked at; ends of its pieces come on top."""

GRID_W = np.unique(
    np.concatenate([np.linspace(0, 1, 501), np.geomspace(1e-6, 0.05, 60), 1 - np.geomspace(1e-6, 0.05, 60)])
)
"""Weights looked at before flips are closed in on: finer near 0 and 1, where Eq. 16 moves the clock fastest."""

NEAR_W = 1e-9
"""A flip of Algorithm 1, and of the cut over a range of clocks, is known to this."""

LOSS = 1e-9
"""Algorithm 1 loses where its U is above the optimum's by more: less is rounding."""

STRAIGHT = 1e-11
"""Edges of the hull whose slopes differ by less, relatively, are one: with equal layers all cuts lie on a line but for rounding."""

COLUMNS = (
    "device",
    "round",
    "cut",
    "frequency_hz",
    "delay_s",
    "energy_j",
    "on_front",
    "reached_by_w",
    "w_from",
    "w_to",
    "knee",
)


@dataclass(frozen=True)
class Points:
    """Cuts as the letter counts them, clocks to request, and what they cost by the model that ``exact`` decides by. All (P,)."""

    cut: Ints
    frequency_hz: Floats
    delay_s: Floats
    energy_j: Floats

    def __len__(self) -> int:
        return len(self.cut)

    def row(self, k: int) -> dict[str, Any]:
        """One point as JSON takes it."""
        return {
            "cut": int(self.cut[k]),
            "frequency_hz": float(self.frequency_hz[k]),
            "delay_s": float(self.delay_s[k]),
            "energy_j": float(self.energy_j[k]),
        }


@dataclass(frozen=True)
class Plateaus:
    """What a method decides over all w: between ``w[i]`` and ``w[i+1]`` the cut is that of ``begin`` and ``end``.

    Over listed clocks the two are the same point. Over a range of clocks the clock moves with w, from ``begin`` to ``end``.
    ``w`` is (S+1,), ascending from 0 to 1; the points are (S,).
    """

    w: Floats
    begin: Points
    end: Points
    course_w: Floats
    course_hz: Floats
    """The clock at each w that was looked at, (G,)."""

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def flips(self) -> Floats:
        """(S-1,) the weights at which the decision changes."""
        return self.w[1:-1]

    def as_json(self) -> list[dict[str, Any]]:
        """One entry for each plateau."""
        rows = []
        for i in range(len(self)):
            row = {"w_from": float(self.w[i]), "w_to": float(self.w[i + 1]), **self.begin.row(i)}
            rows.append(row if self.begin.row(i) == self.end.row(i) else {**row, "at_w_to": self.end.row(i)})
        return rows


@dataclass(frozen=True)
class Losses:
    """Algorithm 1 as printed against the exact optimum, both priced by the exact one's model, over weights ``w`` (G,).

    ``cost`` is U of Algorithm 1 less the optimum's, never below 0; delay and energy are in percent of the optimum's, (G,), and may be
    below 0 one at a time.
    """

    w: Floats
    cost: Floats
    delay_pct: Floats
    energy_pct: Floats

    @property
    def stretches(self) -> list[tuple[float, float]]:
        """From which to which w (of those looked at) Algorithm 1 loses."""
        worse = np.concatenate([[False], self.cost > LOSS, [False]])
        starts, ends = np.flatnonzero(~worse[:-1] & worse[1:]), np.flatnonzero(worse[:-1] & ~worse[1:]) - 1
        return [(float(self.w[a]), float(self.w[b])) for a, b in zip(starts, ends, strict=True)]

    @property
    def share_of_w(self) -> float:
        """The share of all weights at which it loses, 0 to 1."""
        worse = (self.cost > LOSS).astype(float)
        return float((np.diff(self.w) * (worse[1:] + worse[:-1]) / 2).sum())

    @property
    def worst(self) -> int | None:
        """Where it loses most; None where it never loses."""
        k = int(self.cost.argmax())
        return k if self.cost[k] > LOSS else None

    def as_json(self) -> dict[str, Any]:
        """The stretches, and the worst weight with what is lost there."""
        k = self.worst
        return {
            "loses_from_to_w": [list(stretch) for stretch in self.stretches],
            "share_of_w": self.share_of_w,
            "worst": None
            if k is None
            else {
                "w": float(self.w[k]),
                "cost": float(self.cost[k]),
                "delay_pct": float(self.delay_pct[k]),
                "energy_pct": float(self.energy_pct[k]),
            },
        }


@dataclass(frozen=True)
class TradeOff:
    """One device in one round. ``front`` (F,) are places among ``points`` by rising delay, ``supported`` (F,) which of them a w reaches,
    ``knee`` a place on the front or None, ``chosen`` what the exact method takes at the objective asked for, ``printed_chosen`` Algorithm 1 at w."""

    device: str
    round: int
    listed: bool
    points: Points
    front: Ints
    supported: Mask
    knee: int | None
    extremes: Extremes
    price_j_per_s: float | None
    """What w makes a second cost here; None where it has no finite price."""
    exact: Plateaus
    printed: Plateaus
    losses: Losses
    chosen: Points
    keeps_limit: bool
    printed_chosen: Points

    def front_points(self) -> Points:
        """The front by rising delay and falling energy."""
        return _take(self.points, self.front)

    def reach(self, k: int) -> tuple[float, float] | None:
        """From which to which w the exact decision is point ``k`` of the front; None where none is."""
        p = int(self.front[k])
        return self._reached.get((int(self.points.cut[p]), float(self.points.frequency_hz[p])))

    @cached_property
    def _reached(self) -> dict[tuple[int, float], tuple[float, float]]:
        found: dict[tuple[int, float], tuple[float, float]] = {}
        for i in range(len(self.exact)):
            at, until = (
                (int(points.cut[i]), float(points.frequency_hz[i])) for points in (self.exact.begin, self.exact.end)
            )
            if at == until:
                found[at] = found.get(at, (float(self.exact.w[i]), 0.0))[0], float(self.exact.w[i + 1])
        return found

    def as_json(self) -> dict[str, Any]:
        """All but the points off the front, which ``--csv`` holds."""
        front = []
        for k in range(len(self.front)):
            reach = self.reach(k)
            row = {**self.points.row(int(self.front[k])), "reached_by_w": bool(self.supported[k])}
            front.append(row if reach is None else {**row, "w_from": reach[0], "w_to": reach[1]})
        low = self.extremes
        return {
            "device": self.device,
            "round": self.round,
            "points": len(self.points),
            "clocks": "listed" if self.listed else "sampled from a range",
            "box": {
                "d_min_s": float(low.d_min_s[0]),
                "d_max_s": float(low.d_max_s[0]),
                "e_min_j": float(low.e_min_j[0]),
                "e_max_j": float(low.e_max_j[0]),
            },
            "price_of_w_j_per_s": self.price_j_per_s,
            "front": front,
            "knee": None if self.knee is None else self.points.row(int(self.front[self.knee])),
            "decision": {**self.chosen.row(0), "keeps_limit": self.keeps_limit},
            "algorithm_1": self.printed_chosen.row(0),
            "exact_over_w": self.exact.as_json(),
            "algorithm_1_over_w": self.printed.as_json(),
            "algorithm_1_against_exact": self.losses.as_json(),
        }


# --------------------------------------------------------------------------------------------------------- geometry


def pareto(delay_s: Floats, energy_j: Floats) -> Ints:
    """The points that no other beats: (F,) places by rising delay and falling energy. Of equal points the first is kept."""
    order = np.lexsort((np.arange(len(delay_s)), energy_j, delay_s))
    energy = energy_j[order]
    kept = np.concatenate([[True], energy[1:] < np.minimum.accumulate(energy)[:-1]])
    found: Ints = order[kept]
    return found


def lower_hull(delay_s: Floats, energy_j: Floats) -> Ints:
    """Corners of the lower convex hull of a front by rising delay: (V,) places, the first and the last among them.

    A point on the line between two corners is none: a weight finds it at one value only, and only if ties fall so.
    """
    hull: list[int] = []
    for k in range(len(delay_s)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            over_b = (energy_j[a] - energy_j[b]) * (delay_s[k] - delay_s[a])
            past_b = (energy_j[a] - energy_j[k]) * (delay_s[b] - delay_s[a])
            if over_b > past_b * (1 + STRAIGHT):
                break
            hull.pop()
        hull.append(k)
    return np.array(hull, dtype=np.intp)


def knee(delay_s: Floats, energy_j: Floats) -> int | None:
    """The place on a front, by rising delay, that lies farthest below the chord from its fastest to its thriftiest point.

    Both figures are first scaled to 0..1 over the front. None where no point lies below the chord. It is always a corner of the hull:
    the point that a price of (range of energy) / (range of delay) of the front finds.
    """
    if len(delay_s) < 3:
        return None
    x = (delay_s - delay_s[0]) / (delay_s[-1] - delay_s[0])
    y = (energy_j - energy_j[-1]) / (energy_j[0] - energy_j[-1])
    below = 1 - x - y
    k = int(below.argmax())
    return k if below[k] > 1e-9 else None


# ------------------------------------------------------------------------------------------------------ one device


class _Place:
    """One device in one round, decided at many weights."""

    def __init__(self, problem: Problem, n: int) -> None:
        self.problem, self.n = problem, n
        self.model, self.clocks = problem.decider, problem.clocks
        self.listed = len(self.clocks.supported_hz) > 0
        self.device = int(problem.places.device[n])
        self._printed: dict[float, tuple[int, float]] = {}

    def repeated(self, count: int) -> Places:
        every = self.problem.places
        pick = np.full(count, self.n)
        return Places(every.device[pick], every.uplink_bps[pick], every.downlink_bps[pick], every.feasible)

    def costed(self, choice: Choice) -> Points:
        every, n = self.problem.places, self.n
        costs = self.model.at(
            self.device, every.uplink_bps[n], every.downlink_bps[n], choice.cut_index, choice.frequency_hz
        )
        assert costs.energy_j is not None
        return Points(choice.cut_index + 1, choice.frequency_hz, costs.delay_s, costs.energy_j)

    def all_points(self) -> Points:
        """Every feasible cut at every supported clock, or at clocks out of the range."""
        hz = self.clocks.supported_hz
        if not self.listed:
            low, high = self.clocks.f_min_hz, self.clocks.f_max_hz
            hz = np.unique(np.concatenate([piece_edges(self.model, low, high), np.linspace(low, high, SAMPLES)]))
        cuts = np.flatnonzero(self.problem.feasible[self.device])
        return self.costed(Choice(np.repeat(cuts, len(hz)), np.tile(hz, len(cuts))))

    @cached_property
    def law_hz3(self) -> float | None:
        """f*^3 (1 - w) / w of Eq. 16 before it is held within the range: what does not depend on w. None where f* never moves inside it."""
        low, high = 1e-18, 1e18  # of w / (1 - w)
        for _ in range(60):
            t = math.sqrt(low * high)
            f = self._optimal_hz(t / (1 + t))
            if self.clocks.f_min_hz < f < self.clocks.f_max_hz:
                return f**3 / t
            low, high = (t, high) if f <= self.clocks.f_min_hz else (low, t)
        return None

    def _optimal_hz(self, w: float) -> float:
        xi = self.problem.xi_w_per_hz3
        return float(card.optimal_clock(self.problem.letter, self.repeated(1), self.clocks, w, xi)[0])

    def optimal_hz(self, w: Floats) -> Floats:
        """f* of Eq. 16 at many w, (W,)."""
        if self.law_hz3 is None:
            return np.array([self._optimal_hz(x) for x in w.tolist()])
        with np.errstate(divide="ignore"):
            f = np.cbrt(self.law_hz3 * (w / (1 - w)))
        clipped: Floats = np.clip(f, self.clocks.f_min_hz, self.clocks.f_max_hz)
        return clipped

    def rounding_flips(self) -> Floats:
        """The weights at which f* lies in the middle between two supported clocks, where what is requested changes."""
        hz = self.clocks.supported_hz
        if self.law_hz3 is None or len(hz) < 2:
            return np.empty(0)
        t = ((hz[1:] + hz[:-1]) / 2) ** 3 / self.law_hz3
        flips: Floats = t / (1 + t)
        return flips

    def extremes(self, w: Floats) -> Extremes:
        """Of Eq. 12 at each w (W,). Over listed clocks f* belongs to the box, and moves with w."""
        f_star = self.optimal_hz(w) if self.listed else np.empty(0)
        return box(self.model, self.repeated(len(w)), self.clocks, f_star)[0]

    def weights(self, w: Floats, extremes: Extremes) -> tuple[Floats, Floats]:
        """The factors of delay and energy in U at each w (W,): `Extremes.weights` for many w."""
        spans = (extremes.d_max_s - extremes.d_min_s, extremes.e_max_j - extremes.e_min_j)
        x, y = (np.divide(a, s, out=np.zeros_like(s), where=s > 0) for a, s in zip((w, 1 - w), spans, strict=True))
        return x, y

    def exact_at(self, w: Floats) -> Choice:
        x, y = self.weights(w, self.extremes(w))
        return exact.choose(self.model, self.repeated(len(w)), self.clocks, x, y)

    def printed_at(self, w: Floats) -> Choice:
        one, xi = self.repeated(1), self.problem.xi_w_per_hz3
        for x in w.tolist():
            if x not in self._printed:
                choice = card.choose(self.problem.letter, one, self.clocks, x, xi)
                self._printed[x] = int(choice.cut_index[0]), float(choice.frequency_hz[0])
        cuts, clocks_hz = zip(*(self._printed[x] for x in w.tolist()), strict=True)
        return Choice(np.array(cuts, dtype=np.intp), np.array(clocks_hz))


def trade_offs(problem: Problem, round_label: int | None = None) -> list[TradeOff]:
    """One for each device, in the round of this label (None: the first).

    Raises BadInput where power is not known, where there is no such round, or where no device can keep the limit asked for.
    """
    problem = in_one_model(problem)
    if problem.decider.server_power is None or problem.server.power_fit is None:
        raise BadInput(
            f"profile {problem.server.name}: its power is not known, and without energy there is no front; expected field power_fit"
        )
    rounds = problem.rates.rounds
    label = rounds[0] if round_label is None else round_label
    if label not in rounds:
        raise BadInput(f"--round {label}: expected one of the rounds {rounds[0]} to {rounds[-1]}")
    first = rounds.index(label) * len(problem.devices)
    here = _some(problem, slice(first, first + len(problem.devices)))
    f_star = card.optimal_clock(problem.letter, here, problem.clocks, problem.options.w, problem.xi_w_per_hz3)
    extremes = box(problem.decider, here, problem.clocks, f_star)[0]
    goal = problem.options.objective
    choice, met = goal.choose(problem.decider, here, problem.clocks, extremes)
    if not met.any():
        names = [device.name for device in problem.devices]
        at = problem.decider.at(here.device, here.uplink_bps, here.downlink_bps, choice.cut_index, choice.frequency_hz)
        goal.unmet(met, here.device, names, at)
    found = []
    for m, device in enumerate(problem.devices):
        chosen = Choice(choice.cut_index[m : m + 1], choice.frequency_hz[m : m + 1])
        own = Extremes(
            *(x[m : m + 1] for x in (extremes.d_min_s, extremes.d_max_s, extremes.e_min_j, extremes.e_max_j))
        )
        found.append(_trade_off(_Place(problem, first + m), device.name, label, own, chosen, bool(met[m])))
    return found


def _some(problem: Problem, rows: slice) -> Places:
    """Some of a problem's places."""
    every = problem.places
    return Places(every.device[rows], every.uplink_bps[rows], every.downlink_bps[rows], every.feasible)


def _trade_off(place: _Place, device: str, label: int, extremes: Extremes, chosen: Choice, met: bool) -> TradeOff:
    points = place.all_points()
    front = pareto(points.delay_s, points.energy_j)
    on_front = _take(points, front)
    supported = np.zeros(len(front), dtype=np.bool_)
    hull = lower_hull(on_front.delay_s, on_front.energy_j)
    supported[hull] = True
    w = place.problem.options.w
    by_delay, by_energy = (float(x[0]) for x in extremes.weights(w))
    over_w = _exact_over_w(place, _take(on_front, hull)) if place.listed else _scanned(place, place.exact_at)
    return TradeOff(
        device=device,
        round=label,
        listed=place.listed,
        points=points,
        front=front,
        supported=supported,
        knee=knee(on_front.delay_s, on_front.energy_j),
        extremes=extremes,
        price_j_per_s=by_delay / by_energy if by_energy > 0 else None,
        exact=over_w,
        printed=_scanned(place, place.printed_at, place.rounding_flips()),
        losses=_losses(place),
        chosen=place.costed(chosen),
        keeps_limit=met,
        printed_chosen=place.costed(place.printed_at(np.array([w]))),
    )


# ------------------------------------------------------------------------------------------------------------ flips


def _exact_over_w(place: _Place, corners: Points) -> Plateaus:
    """Over listed clocks: the corners of the hull one after the other, from the thriftiest to the fastest.

    The box does not depend on w, unless a clock of Eq. 16 between two listed ones is more extreme than both: then the flips by
    geometry are where the search begins, and it is closed in on with the real decision.
    """
    corners = _take(corners, np.arange(len(corners))[::-1])
    steps = np.arange(len(corners) - 1)
    saved = corners.energy_j[steps + 1] - corners.energy_j[steps]
    slower = corners.delay_s[steps] - corners.delay_s[steps + 1]
    extremes = place.extremes(GRID_W)
    spans = [high - low for low, high in ((extremes.d_min_s, extremes.d_max_s), (extremes.e_min_j, extremes.e_max_j))]
    # price(w) = saved / slower
    flips = spans[0][0] * saved / (spans[0][0] * saved + spans[1][0] * slower)
    w = np.concatenate([[0.0], flips, [1.0]])
    middle = (w[:-1] + w[1:]) / 2
    decided = place.exact_at(np.concatenate([[0.0], middle, [1.0]]))
    fixed = all((span == span[0]).all() for span in spans)
    as_expected = np.array_equal(decided.cut_index[1:-1] + 1, corners.cut) and np.array_equal(
        decided.frequency_hz[1:-1], corners.frequency_hz
    )
    if not (fixed and as_expected):
        return _scanned(place, place.exact_at, np.concatenate([middle, flips]), near=1e-12)
    # At w = 0 and w = 1 one figure does not count: of equals another point may be taken there.
    first = int((decided.cut_index[0] + 1, decided.frequency_hz[0]) != (corners.cut[0], corners.frequency_hz[0]))
    last = int((decided.cut_index[-1] + 1, decided.frequency_hz[-1]) != (corners.cut[-1], corners.frequency_hz[-1]))
    rows = slice(1 - first, len(decided.cut_index) - 1 + last)
    points = place.costed(Choice(decided.cut_index[rows], decided.frequency_hz[rows]))
    ends = np.concatenate([[0.0] * first, w, [1.0] * last])
    course = np.column_stack([ends[:-1], ends[1:]]).ravel()
    return Plateaus(ends, points, points, course, np.repeat(points.frequency_hz, 2))


def _scanned(
    place: _Place, decide: Callable[[Floats], Choice], also: Floats | None = None, near: float = NEAR_W
) -> Plateaus:
    """Decide at a grid of w and on both sides of the weights ``also``, and halve every gap across which the decision changes until it is
    below ``near``."""
    w = GRID_W
    if also is not None:
        w = np.unique(np.clip(np.concatenate([w, also - 0.4 * near, also + 0.4 * near]), 0, 1))
    choice = decide(w)
    while True:
        change = choice.cut_index[1:] != choice.cut_index[:-1]
        if place.listed:
            change |= choice.frequency_hz[1:] != choice.frequency_hz[:-1]
        wide = np.flatnonzero(change & (np.diff(w) > near))
        if not len(wide):
            break
        more = (w[wide] + w[wide + 1]) / 2
        at, found = np.concatenate([w, more]), decide(more)
        w, order = np.unique(at, return_index=True)
        choice = Choice(
            np.concatenate([choice.cut_index, found.cut_index])[order],
            np.concatenate([choice.frequency_hz, found.frequency_hz])[order],
        )
    ends = np.flatnonzero(change)
    flips = (w[ends] + w[ends + 1]) / 2
    starts, stops = np.concatenate([[0], ends + 1]), np.concatenate([ends, [len(w) - 1]])
    begin, end = (place.costed(Choice(choice.cut_index[k], choice.frequency_hz[k])) for k in (starts, stops))
    return Plateaus(np.concatenate([[0.0], flips, [1.0]]), begin, end, w, choice.frequency_hz)


def _losses(place: _Place) -> Losses:
    """Both methods at every w of the grid, priced by the model that the exact one decides by."""
    w = GRID_W
    extremes = place.extremes(w)
    x, y = place.weights(w, extremes)
    best, printed = (place.costed(decide(w)) for decide in (place.exact_at, place.printed_at))
    more_s, more_j = printed.delay_s - best.delay_s, printed.energy_j - best.energy_j
    percent = [
        100 * np.divide(more, of, out=np.zeros_like(more), where=of > 0)
        for more, of in ((more_s, best.delay_s), (more_j, best.energy_j))
    ]
    return Losses(w, np.maximum(x * more_s + y * more_j, 0.0), *percent)


def _take(points: Points, rows: Any) -> Points:
    return Points(points.cut[rows], points.frequency_hz[rows], points.delay_s[rows], points.energy_j[rows])


# ---------------------------------------------------------------------------------------------------------- to files


def as_json(problem: Problem, found: list[TradeOff]) -> dict[str, Any]:
    """What ``card-solve front --json`` prints. No NaN and no infinity: what is unknown is None."""
    listed, rests_on_letter, rests_on_tables = problem.rests_on
    return {
        "server": problem.server.name,
        "model": problem.decider.name,
        "w": problem.options.w,
        "objective": problem.options.objective.as_json(),
        "devices": [each.as_json() for each in found],
        "assumptions": [item.as_json() for item in distinct(listed + rests_on_letter + rests_on_tables)],
        "warnings": problem.warnings,
    }


def write_csv(found: list[TradeOff], path: Path) -> Path:
    """Every point of every device with its place on the front. Floats read back bit for bit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in found:
        place = {int(p): k for k, p in enumerate(each.front)}
        for p in range(len(each.points)):
            k = place.get(p)
            reach = None if k is None else each.reach(k)
            writer.writerow(
                [
                    each.device,
                    each.round,
                    *(repr(value) for value in each.points.row(p).values()),
                    "true" if k is not None else "false",
                    "true" if k is not None and each.supported[k] else "false",
                    *(("", "") if reach is None else (repr(reach[0]), repr(reach[1]))),
                    "true" if k is not None and k == each.knee else "false",
                ]
            )
    write_atomically(path, out.getvalue().encode())
    return path
