"""Why a decision is what it is: what its delay is made of, what the next best cut would cost, and what memory rules out.

Everything is computed for the decisions asked for, R of them, and for no other. A cut is ranked as the method ranked it: `exact` at the
best clock of each cut, `card` at f* in the letter's model, a fixed cut at the clock that it was given. Figures are always those of the
model that the decision is reported in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.units import data_size, quantity
from solver import card
from solver.baselines import fixed_cut
from solver.costs import CostModel, Costs, Floats, Ints, Mask, Places
from solver.extremes import Extremes, box
from solver.objective import Objective

if TYPE_CHECKING:
    from solver.scenario import Solution

PARTS = {
    "device_compute_s": "device compute",
    "server_compute_s": "server compute",
    "uplink_s": "the uplink",
    "downlink_s": "the downlink",
    "adapters_s": "moving the adapters",
}
"""The terms of Eq. 10, as `Costs` names them and as people do."""

ENERGY = "energy"
TERMS = (*(name.removesuffix("_s") for name in PARTS), ENERGY)
"""What can decide between two cuts, as JSON names it."""

WORTH_TELLING = 0.05
"""A term is told of if it moves U by this share of the term that moves it most."""


@dataclass(frozen=True)
class Points:
    """R points of cut and clock, priced like the decisions. Where ``there`` is false no such cut exists and the figures mean nothing.

    ``met`` is whether a point keeps the limit of the objective, True where there is none.
    """

    there: Mask
    met: Mask
    cut: Ints
    frequency_hz: Floats
    costs: Costs
    cost: Floats


@dataclass(frozen=True)
class Reasons:
    """For decisions ``rows`` (R,): what was chosen, the best other cut, and what memory rules out.

    ``next_best`` is what the method would take if the chosen cut were forbidden. ``ruled_out`` is what it would take if no cut were too
    large for memory, where that is another cut; the extremes are then those of the larger box, so its U says nothing here. ``by_delay`` and ``by_energy`` (R,) are the factors of delay in s and energy in J in the cost: U, or what the
    objective puts in its place.
    """

    solution: Solution
    rows: Ints
    chosen: Points
    next_best: Points
    ruled_out: Points
    by_delay: Floats
    by_energy: Floats

    def shares(self) -> Floats:
        """(R, 5): what part of the delay each term of Eq. 10 is, in the order of `PARTS`; 0 where the delay is 0."""
        delay = self.chosen.costs.delay_s[:, None]
        parts = np.stack([getattr(self.chosen.costs, name) for name in PARTS], axis=1)
        shares: Floats = np.divide(parts, delay, out=np.zeros_like(parts), where=delay > 0)
        return shares

    def differences(self, other: Points) -> Floats:
        """(R, 6): how much more of each of `TERMS` ``other`` takes than what was chosen, seconds and last joules."""
        mine, theirs = self.chosen.costs, other.costs
        columns = [getattr(theirs, name) - getattr(mine, name) for name in PARTS]
        joules = np.zeros(len(self.rows))
        if mine.energy_j is not None and theirs.energy_j is not None:
            joules = theirs.energy_j - mine.energy_j
        return np.stack([*columns, joules], axis=1)

    def moves(self, other: Points) -> Floats:
        """(R, 6): by how much each of `TERMS` raises the cost from what was chosen to ``other``; the rows add up to its difference."""
        factors = np.column_stack([np.repeat(self.by_delay[:, None], len(PARTS), axis=1), self.by_energy])
        return self.differences(other) * factors

    def deciding(self) -> list[str | None]:
        """(R,) of `TERMS`: the term that makes the next best cut dearer; where that is cheaper, the term that makes it so. None where
        there is no other cut, or it costs the same."""
        moves, gap = self.moves(self.next_best), self.next_best.cost - self.chosen.cost
        leading = np.where(gap < 0, moves.argmin(1), moves.argmax(1))
        told = self.next_best.there & (np.abs(moves).max(1) > 0)
        return [TERMS[k] if good else None for k, good in zip(leading.tolist(), told.tolist(), strict=True)]

    def sentences(self) -> list[str]:
        """(R,) the reason of each decision in words."""
        shares, deciding, barred = self.shares(), self.deciding(), self.ruled_out.there
        differences, moves = self.differences(self.next_best), self.moves(self.next_best)
        return [
            " ".join(
                [
                    self._composition(shares[i]),
                    self._other(i, differences[i], moves[i], deciding[i]),
                    *([self._ruled_out(i)] if barred[i] else []),
                ]
            )
            for i in range(len(self.rows))
        ]

    def _composition(self, shares: Floats) -> str:
        names = list(PARTS.values())
        first, second = np.argsort(-shares, kind="stable")[:2].tolist()
        if not shares[first] > 0:
            return "There is no delay."
        text = f"{names[first].capitalize()} is {100 * shares[first]:.0f} % of the delay"
        return text + (f", {names[second]} {100 * shares[second]:.0f} %." if shares[second] >= 0.15 else ".")

    def _other(self, i: int, differences: Floats, moves: Floats, decides: str | None) -> str:
        if not self.next_best.there[i]:
            one = self.solution.problem.evaluated.cuts == 1
            return "The model has no other cut." if one else "No other cut fits in memory."
        cut, gap = f"cut {self.next_best.cut[i]}", float(self.next_best.cost[i] - self.chosen.cost[i])
        if self.next_best.frequency_hz[i] != self.chosen.frequency_hz[i]:
            cut += f" at {self.next_best.frequency_hz[i] / 1e9:.3f} GHz"
        if not self.chosen.met[i]:
            return "No cut and clock keeps the limit: this is the nearest."
        if not self.next_best.met[i]:
            return "No other cut keeps the limit."
        if decides is None:
            return f"C{cut[1:]} costs the same."
        least = WORTH_TELLING * float(np.abs(moves).max())
        told = [k for k in np.argsort(-np.abs(moves), kind="stable").tolist() if abs(moves[k]) >= least]
        more = [_amount(k, differences[k]) for k in told if moves[k] > 0]
        less = [_amount(k, differences[k]) for k in told if moves[k] < 0]
        halves = [f"{verb} {_listed(words)}" for verb, words in (("costs", more), ("saves", less)) if words]
        if gap < 0:
            halves.reverse()
        leading = ENERGY if decides == ENERGY else PARTS[f"{decides}_s"]
        rank = f"Next best is {cut}" if gap >= 0 else f"C{cut[1:]} would be better by these figures"
        if self.solution.problem.options.objective.limit is not None:
            return f"{rank}: it {', '.join(halves)}."  # only one figure counts: nothing is weighed
        return f"{rank}: it {', '.join(halves)}; {self._gap(gap)}, {leading} decides."

    def _ruled_out(self, i: int) -> str:
        cut, difference = int(self.ruled_out.cut[i]), self.differences(self.ruled_out)[i]
        seconds, joules = float(difference[:-1].sum()), float(difference[-1])
        machine, needs, limit = _too_small(self.solution, int(self.rows[i]), cut)
        return (
            f"Without memory limits it would be cut {cut} (delay {_change(seconds, 's')}, energy {_change(joules, 'J')}), which needs "
            f"{data_size(needs)} on {machine}, which has {data_size(limit)}."
        )

    def _gap(self, gap: float) -> str:
        goal = self.solution.problem.options.objective
        return f"U {_signed(gap)}" if goal.kind == "w" else f"{goal.cost_name} {_change(gap, goal.cost_unit)}"

    def as_json(self) -> list[dict[str, Any]]:
        """(R,) what stands as ``why`` beside each decision. No NaN: what is not there is None."""
        deciding, barred, known = self.deciding(), self.ruled_out.there, self.solution.problem.clocks.known
        names = [name.removesuffix("_s") for name in PARTS]
        percent = (100 * self.shares()).tolist()
        out = []
        for i, text in enumerate(self.sentences()):
            other = _point(self.next_best, i, known)
            if other is not None:
                other["decided_by"] = deciding[i]
            row: dict[str, Any] = {
                "delay_shares_pct": dict(zip(names, percent[i], strict=True)),
                "next_best": other,
                "ruled_out_by_memory": None,
                "text": text,
            }
            if barred[i]:
                cut = int(self.ruled_out.cut[i])
                machine, needs, limit = _too_small(self.solution, int(self.rows[i]), cut)
                point = _point(self.ruled_out, i, known) or {}
                point.pop("cost")
                row["ruled_out_by_memory"] = {**point, "machine": machine, "needs_bytes": needs, "limit_bytes": limit}
            out.append(row)
        return out


def explain(solution: Solution, rows: Sequence[int] | Ints) -> Reasons:
    """The reasons of decisions ``rows``. Time and memory grow with their number, not with that of all decisions."""
    index = np.asarray(rows, dtype=np.intp)
    problem, ours = solution.problem, solution.decisions
    places = _some(problem.places, index)
    feasible = places.feasible[places.device]
    extremes = of_rows(solution.extremes, index)
    goal = problem.options.objective
    x, y = factors(goal, extremes)
    rank = _Ranking(solution, index, places)

    def priced(there: Mask, met: Mask, cut_index: Ints, frequency_hz: Floats) -> Points:
        costs = problem.evaluated.at(places.device, places.uplink_bps, places.downlink_bps, cut_index, frequency_hz)
        cost = goal.cost(extremes, costs.delay_s, costs.energy_j)
        return Points(there, met, cut_index + 1, frequency_hz, costs, cost)

    chosen_index, every = ours.cut[index] - 1, np.ones(len(index), dtype=np.bool_)
    others = feasible.copy()
    others[np.arange(len(index)), chosen_index] = False
    return Reasons(
        solution=solution,
        rows=index,
        # As it was decided: a cut inside a layer has no row in the table.
        chosen=Points(
            every,
            every if goal.limit is None else ours.feasible[index],
            ours.cut[index],
            ours.frequency_hz[index],
            _at(ours.costs, index),
            ours.cost[index],
        ),
        next_best=priced(*rank.best(others)),
        ruled_out=priced(*_without_limits(solution, index, places)),
        by_delay=x,
        by_energy=y,
    )


class _Ranking:
    """The best of any set of cuts as the method of a solution ranks them."""

    def __init__(self, solution: Solution, index: Ints, places: Places) -> None:
        self.solution, self.problem, self.index, self.places = solution, solution.problem, index, places
        self.goal, self.clock_hz = self.problem.options.objective, solution.decisions.frequency_hz[index]
        self.table: Floats | None = None
        if self.problem.options.method == "card":
            self.table = self._at(self.problem.letter, solution.optimal_hz[index])
        elif fixed_cut(self.problem.options.method, self.problem.layers) is not None:
            self.table = self._at(self.problem.evaluated, self.clock_hz)
        else:
            self.extremes = self._extremes(self.problem.decider)

    def _extremes(self, model: CostModel) -> Extremes:
        if model is self.problem.evaluated:
            return of_rows(self.solution.extremes, self.index)
        return box(model, self.places, self.problem.clocks, self.solution.optimal_hz[self.index])[0]

    def _at(self, model: CostModel, clock_hz: Floats) -> Floats:
        """(R, C): U less what is the same for every cut, at one clock for each decision."""
        x, y = factors(self.goal, self._extremes(model))
        where = self.places.device[:, None], self.places.uplink_bps[:, None], self.places.downlink_bps[:, None]
        costs = model.at(*where, np.arange(model.cuts)[None, :], clock_hz[:, None])
        total: Floats = x[:, None] * costs.delay_s
        return total if costs.energy_j is None else total + y[:, None] * costs.energy_j

    def best(self, allowed: Mask) -> tuple[Mask, Mask, Ints, Floats]:
        """Whether there is one and whether it keeps the limit, its 0-based index and its clock, (R,) each, among the cuts ``allowed``
        (R, C)."""
        there: Mask = np.asarray(allowed.any(1))
        met = np.ones(len(there), dtype=np.bool_)
        if self.table is not None:
            return there, met, np.where(allowed, self.table, np.inf).argmin(1), self.clock_hz
        cut, clock_hz = np.zeros(len(there), dtype=np.intp), self.clock_hz.copy()
        for rows, mask in _alike(allowed, self.places.device, there):
            some = _some(self.places, rows)
            places = Places(some.device, some.uplink_bps, some.downlink_bps, mask)
            extremes = of_rows(self.extremes, rows)
            choice, met[rows] = self.goal.choose(self.problem.decider, places, self.problem.clocks, extremes)
            cut[rows], clock_hz[rows] = choice.cut_index, choice.frequency_hz
        return there, met, cut, clock_hz


def _without_limits(solution: Solution, index: Ints, places: Places) -> tuple[Mask, Mask, Ints, Floats]:
    """What the method would take if every cut fitted in memory, as `_Ranking.best` gives it; there where that cut does not fit."""
    problem, cut = solution.problem, solution.decisions.cut[index] - 1
    options, clock_hz = problem.options, solution.decisions.frequency_hz[index].copy()
    met, free = np.ones(len(index), dtype=np.bool_), np.ones_like(places.feasible)
    roomy: Mask = np.asarray(places.feasible.all(1))
    tight = np.flatnonzero(~roomy[places.device])
    if len(tight) and fixed_cut(options.method, problem.layers) is None:
        some = Places(places.device[tight], places.uplink_bps[tight], places.downlink_bps[tight], free)
        if options.method == "card":
            choice = card.choose(problem.letter, some, problem.clocks, options.w, problem.xi_w_per_hz3)
        else:
            extremes, _ = box(problem.decider, some, problem.clocks, solution.optimal_hz[index[tight]])
            choice, met[tight] = options.objective.choose(problem.decider, some, problem.clocks, extremes)
        cut[tight], clock_hz[tight] = choice.cut_index, choice.frequency_hz
    there: Mask = ~places.feasible[places.device, cut] & met
    if fixed_cut(options.method, problem.layers) is not None:
        there = np.zeros(len(index), dtype=np.bool_)
    return there, met, cut, clock_hz


def _at(costs: Costs, rows: Ints) -> Costs:
    parts = {name: getattr(costs, name)[rows] for name in ("delay_s", *PARTS)}
    return Costs(energy_j=None if costs.energy_j is None else costs.energy_j[rows], **parts)


def factors(goal: Objective, extremes: Extremes) -> tuple[Floats, Floats]:
    """(N,) what one second and one joule add to the cost."""
    if goal.kind == "w":
        return extremes.weights(goal.w)
    count = len(extremes.d_min_s)
    by_delay = {"price": goal.price_j_per_s or 0.0, "max-delay-s": 0.0, "max-energy-j": 1.0}[goal.kind]
    return np.full(count, by_delay), np.full(count, 0.0 if goal.kind == "max-energy-j" else 1.0)


def _alike(allowed: Mask, device: Ints, there: Mask) -> Iterator[tuple[Ints, Mask]]:
    """Rows in groups that can be decided at once: in each the rows of one device may take the same cuts. With the mask (M, C)."""
    rows = np.flatnonzero(there)
    while len(rows):
        _, first = np.unique(device[rows], return_index=True)
        mask = np.zeros((int(device.max()) + 1, allowed.shape[1]), dtype=bool)
        mask[device[rows[first]]] = allowed[rows[first]]
        same = (allowed[rows] == mask[device[rows]]).all(1)
        yield rows[same], mask
        rows = rows[~same]


def of_rows(extremes: Extremes, rows: Ints) -> Extremes:
    """The extremes of decisions ``rows``."""
    return Extremes(extremes.d_min_s[rows], extremes.d_max_s[rows], extremes.e_min_j[rows], extremes.e_max_j[rows])


def _some(places: Places, rows: Ints) -> Places:
    return Places(places.device[rows], places.uplink_bps[rows], places.downlink_bps[rows], places.feasible)


def _too_small(solution: Solution, n: int, cut: int) -> tuple[str, int, int]:
    """The machine that has too little memory for a cut of decision ``n``, what it needs there and what it has, in bytes."""
    problem = solution.problem
    m = n % len(problem.devices)
    device = problem.devices[m]
    for e in problem.exclusions:
        if e.device == device.name and cut in e.cuts:
            profile = device if e.machine == device.name else problem.server
            needs = e.needs_bytes[1]
            if profile.memory is not None:
                row = profile.memory.cuts[cut - 1]
                needs = row.device_peak_bytes if profile is device else row.server_peak_bytes
            return e.machine, needs, e.limit_bytes
    raise ValueError(f"cut {cut} of {device.name} is not ruled out")


def _point(points: Points, i: int, clock_known: bool) -> dict[str, Any] | None:
    if not points.there[i]:
        return None
    energy = points.costs.energy_j
    return {
        "cut": int(points.cut[i]),
        "frequency_hz": float(points.frequency_hz[i]) if clock_known else None,
        "delay_s": float(points.costs.delay_s[i]),
        "energy_j": None if energy is None else float(energy[i]),
        "cost": float(points.cost[i]),
    }


def _amount(term: int, difference: float) -> str:
    if TERMS[term] == ENERGY:
        return quantity(abs(difference), "J")
    return f"{quantity(abs(difference), 's')} of {list(PARTS.values())[term]}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _change(value: float, unit: str) -> str:
    return "the same" if value == 0 else f"{'+' if value > 0 else '-'}{quantity(abs(value), unit)}"


def _signed(value: float) -> str:
    """A difference of U: three places, more where it is small."""
    return f"{value:+.3f}" if abs(value) >= 0.0095 else f"{value:+.2g}"
