"""How sure a decision is: what would have been best in each world that the profiles leave possible, and what the decision costs there.

In each of `Worlds` the best cut and clock are found as ``card-solve`` would find them there (`Objective.choose`, with that world's own
extremes), and what the decision of the profiles' own figures costs more is its *regret* in that world: in U for ``--w``, else in the
objective's unit. Where a limit is asked for (``--max-delay-s``), a world in which the decision breaks a limit that
another choice keeps counts apart.

The robust choice is, of all choices that are best in some world, the one whose largest regret is least (Savage's minimax regret) and, beside it,
the one whose mean regret is least. Both are of the worlds drawn: the largest of 200 is not the largest of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from profiler.profile import BadInput
from solver import card
from solver.baselines import fixed_cut
from solver.costs import Choice, CostModel, Costs, Floats, Ints, Mask, Places
from solver.extremes import Extremes, ServerRange, box, box_extremes
from solver.problem import Problem, in_one_model
from solver.scenario import Solution, decide
from solver.uncertainty.worlds import Doubt, Variation, Worlds

MOST_POINTS = 4_000_000
"""Worlds x decisions: the arrays that are kept have this many numbers each."""
BLOCK_POINTS = 1 << 18
SAME_CLOCK = 0.01
"""Where the server lists no clocks, clocks nearer than this (relative) are one."""
TIE = 1e-9
"""A regret below this share of the cost is rounding: the decision is as good as the best."""


@dataclass(frozen=True)
class Pick:
    """One choice for each place, (N,), and its regret over the worlds. ``broken`` counts those in which it breaks a limit needlessly."""

    cut: Ints
    frequency_hz: Floats
    worst: Floats
    mean: Floats
    broken: Ints


@dataclass(frozen=True)
class Certainty:
    """How sure ``solution`` is, over D worlds and N decisions (rounds first).

    ``best_cut`` (from 1) and ``best_hz`` are what is best in each world, ``redecided_cut`` and ``redecided_hz`` what the chosen method would decide
    there; ``regret``, ``delay_more_s`` and ``energy_more_j`` what the decision has more than the best there, (D, N) all of them.
    ``delay_more_pct`` and ``energy_more_pct`` are relative to the best. Energies are None where power is unknown.
    """

    solution: Solution
    variation: Variation
    doubts: list[Doubt]
    best_cut: Ints
    best_hz: Floats
    redecided_cut: Ints
    redecided_hz: Floats
    regret: Floats
    broken: Mask
    delay_more_s: Floats
    delay_more_pct: Floats
    energy_more_j: Floats | None
    energy_more_pct: Floats | None
    nominal: Pick
    least_worst: Pick
    least_mean: Pick

    @property
    def worlds(self) -> int:
        """D."""
        return len(self.best_cut)

    @property
    def cut_stays(self) -> Mask:
        """(D, N): the decision's cut is the best there, at that world's best clock; or the decision is as good as the best."""
        stays: Mask = (self.best_cut == self.solution.decisions.cut) | self.both_stay
        return stays

    @property
    def both_stay(self) -> Mask:
        """(D, N): the decision's cut and clock are the best there, or as good."""
        ours = self.solution.decisions
        as_good = (self.regret <= 0) & ~self.broken
        return as_good | self._same(self.best_cut, self.best_hz, ours.cut, ours.frequency_hz)

    @property
    def same_cut_decided(self) -> Mask:
        """(D, N): the method would decide the same cut there."""
        same: Mask = self.redecided_cut == self.solution.decisions.cut
        return same

    @property
    def same_decided(self) -> Mask:
        """(D, N): the method would decide the same cut and clock there."""
        ours = self.solution.decisions
        return self._same(self.redecided_cut, self.redecided_hz, ours.cut, ours.frequency_hz)

    def _same(self, cut: Ints, hz: Floats, other_cut: Ints, other_hz: Floats) -> Mask:
        tolerance = 0.0 if len(self.solution.problem.clocks.supported_hz) else SAME_CLOCK
        same: Mask = (cut == other_cut) & (np.abs(hz - other_hz) <= tolerance * other_hz)
        return same

    def as_json(self) -> dict[str, Any]:
        """What ``card-solve uncertainty --json`` prints. No NaN and no infinity."""
        problem = self.solution.problem
        return {
            "decisions": [self._row(n, label, m) for n, label, m in self.solution.places()],
            "worlds": self.worlds,
            "seed": problem.options.seed,
            "objective": problem.options.objective.as_json(),
            "variation": {
                "rate_variation_pct": self.variation.rate_variation_pct,
                "without_interval_pct": self.variation.without_interval_pct,
                "machine_variation_pct": self.variation.machine_variation_pct,
                "only": list(self.variation.only),
                "layer_errors": self.variation.layer_errors,
                "common_share": self.variation.common_share,
                "smooth_length": self.variation.smooth_length,
            },
            "doubts": [doubt.as_json() for doubt in self.doubts],
            "server": problem.server.name,
            "evaluate": problem.evaluated.name,
            "assumptions": [item.as_json() for item in self.solution.assumptions],
            "warnings": self.solution.warnings,
        }

    def _row(self, n: int, label: int, m: int) -> dict[str, Any]:
        ours, known = self.solution.decisions, self.solution.problem.clocks.known
        cuts, counts = np.unique(self.best_cut[:, n], return_counts=True)
        lost = ~self.both_stay[:, n]

        def hz(value: float) -> float | None:
            return float(value) if known else None

        def pick(chosen: Pick) -> dict[str, Any]:
            row = {
                "cut": int(chosen.cut[n]),
                "frequency_hz": hz(chosen.frequency_hz[n]),
                "regret_worst": float(chosen.worst[n]),
                "regret_mean": float(chosen.mean[n]),
            }
            return row | ({"limit_broken_worlds": int(chosen.broken[n])} if self._limited else {})

        return {
            "device": self.solution.problem.devices[m].name,
            "round": label,
            "cut": int(ours.cut[n]),
            "frequency_hz": hz(ours.frequency_hz[n]),
            "cut_stays_best": share(self.cut_stays[:, n]),
            "cut_and_clock_stay_best": share(self.both_stay[:, n]),
            "same_cut_decided": share(self.same_cut_decided[:, n]),
            "same_cut_and_clock_decided": share(self.same_decided[:, n]),
            "best_cuts": [
                {"cut": int(c), "worlds": int(k)}
                for c, k in sorted(zip(cuts, counts, strict=True), key=lambda x: -x[1])
            ],
            "regret_mean": float(self.regret[:, n].mean()),
            "regret_p95": float(np.quantile(self.regret[:, n], 0.95)),
            "regret_worst": float(self.regret[:, n].max()),
            "where_another_is_best": {
                "worlds": int(lost.sum()),
                "delay_more_s": _mean(self.delay_more_s[lost, n]),
                "delay_more_pct": _mean(self.delay_more_pct[lost, n]),
                "energy_more_j": None if self.energy_more_j is None else _mean(self.energy_more_j[lost, n]),
                "energy_more_pct": None if self.energy_more_pct is None else _mean(self.energy_more_pct[lost, n]),
            },
            "decision": pick(self.nominal),
            "least_worst_regret": pick(self.least_worst),
            "least_mean_regret": pick(self.least_mean),
        }

    @property
    def _limited(self) -> bool:
        return self.solution.problem.options.objective.limit is not None


def share(of: Mask) -> dict[str, float]:
    """How many of these worlds, and the share with its 95 % interval (Wilson's): a count of draws is itself uncertain."""
    count, n, z = int(of.sum()), of.size, 1.959963984540054
    p = count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not put the count outside of its own interval.
    return {
        "worlds": count,
        "share": p,
        "low": max(0.0, min(p, middle - half)),
        "high": min(1.0, max(p, middle + half)),
    }


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


# ------------------------------------------------------------------------------------------------------------ deciding


def how_sure(problem: Problem, variation: Variation | None = None) -> Certainty:
    """Decide by the profiles' own figures, and see what is best in each drawn world.

    Time grows with worlds x decisions, memory too, at 80 bytes each. Raises BadInput, one line, where ``variation`` makes no sense, where there are too
    many of both, or where drawn figures cannot be decided on.
    """
    problem = in_one_model(problem)
    variation = variation if variation is not None else Variation()
    if problem.options.method == "min-cut":
        raise BadInput("--method min-cut: its cuts are not those of layers alone, expected --method exact here")
    worlds = Worlds(problem, variation)
    count, n = variation.draws, len(problem.places)
    if count * n > MOST_POINTS:
        raise BadInput(f"--draws {count}: {count * n} worlds x decisions, expected at most {MOST_POINTS}")
    solution = decide(problem)
    ours = Choice(solution.decisions.cut - 1, solution.decisions.frequency_hz)
    best_index, best_hz = np.empty((count, n), dtype=np.intp), np.empty((count, n))
    again_index, again_hz = np.empty((count, n), dtype=np.intp), np.empty((count, n))
    best_cost, regret, broken = np.empty((count, n)), np.empty((count, n)), np.empty((count, n), dtype=np.bool_)
    more_s, more_j = np.empty((count, n)), np.empty((count, n))
    best_s, best_j = np.empty((count, n)), np.empty((count, n))
    kept = np.empty((count, n), dtype=np.bool_)
    extremes: list[Extremes] = []
    held: list[Problem] = []
    for d in range(count):
        world = worlds.draw(d)
        if len(held) == d and (d + 1) * _numbers(world) <= MOST_POINTS:
            held.append(world)
        best, kept[d], span, again = _decided(world)
        extremes.append(span)
        best_index[d], best_hz[d] = best.cut_index, best.frequency_hz
        again_index[d], again_hz[d] = again.cut_index, again.frequency_hz
        there, here = (_costs(world.evaluated, world.places, choice) for choice in (best, ours))
        goal = world.options.objective
        best_cost[d] = goal.cost(span, there.delay_s, there.energy_j)
        regret[d], broken[d] = _regret(world, span, here, best_cost[d], kept[d])
        more_s[d], best_s[d] = here.delay_s - there.delay_s, there.delay_s
        if here.energy_j is not None and there.energy_j is not None:
            more_j[d], best_j[d] = here.energy_j - there.energy_j, there.energy_j
    if not (np.isfinite(regret).all() and np.isfinite(best_s).all()):
        raise BadInput(
            "--profiles: intervals lead to times or watts that are no finite numbers: expected figures in SI"
        )
    powered = problem.evaluated.server_power is not None
    again_worlds = (held[d] if d < len(held) else worlds.draw(d) for d in range(count))
    picks = _robust(again_worlds, problem.places, ours, best_index, best_hz, best_cost, kept, extremes)
    return Certainty(
        solution=solution,
        variation=variation,
        doubts=worlds.doubts,
        best_cut=best_index + 1,
        best_hz=best_hz,
        redecided_cut=again_index + 1,
        redecided_hz=again_hz,
        regret=regret,
        broken=broken,
        delay_more_s=more_s,
        delay_more_pct=_percent(more_s, best_s),
        energy_more_j=more_j if powered else None,
        energy_more_pct=_percent(more_j, best_j) if powered else None,
        nominal=picks[0],
        least_worst=picks[1],
        least_mean=picks[2],
    )


def _numbers(world: Problem) -> int:
    """What keeping a world takes beside the profiles' own figures, in numbers."""
    model = world.decider
    return 2 * model.server_time.a_s.size + model.device_compute_s.size + 2 * world.rates.uplink_bps.size


def _percent(more: Floats, of: Floats) -> Floats:
    return 100 * np.divide(more, of, out=np.zeros_like(more), where=of > 0)


def _decided(world: Problem) -> tuple[Choice, Mask, Extremes, Choice]:
    """The best choice in a world, whether it keeps the limit, the world's extremes, and what the chosen method would decide there."""
    options, places, clocks, model = world.options, world.places, world.clocks, world.evaluated
    f_star = card.optimal_clock(world.letter, places, clocks, options.w, world.xi_w_per_hz3)
    if len(clocks.supported_hz):
        # As `box`, without its look at the range between the clocks, which only saves time where there are many decisions.
        span = box_extremes(model, places, ServerRange.over(model, clocks.points_hz), f_star)
    else:
        span = box(model, places, clocks, f_star)[0]
    best, kept = options.objective.choose(model, places, clocks, span)
    fixed = fixed_cut(options.method, world.layers)
    if fixed is not None:
        again = Choice(np.full(len(places), fixed - 1, dtype=np.intp), clocks.nearest(f_star))
    elif options.method == "card":
        again = card.choose(world.letter, places, clocks, options.w, world.xi_w_per_hz3)
    else:
        again = best
    return best, kept, span, again


def _costs(model: CostModel, places: Places, choice: Choice) -> Costs:
    """Of choices (..., N), whose last axis is that of the places."""
    return model.at(places.device, places.uplink_bps, places.downlink_bps, choice.cut_index, choice.frequency_hz)


def _regret(world: Problem, span: Extremes, costs: Costs, best_cost: Floats, kept: Mask) -> tuple[Floats, Mask]:
    """What choices (..., N) cost more than the best (N,), and whether they break a limit that can be kept; no regret is counted there."""
    goal = world.options.objective
    cost = goal.cost(span, costs.delay_s, costs.energy_j)
    broken = np.zeros(cost.shape, dtype=np.bool_)
    if goal.limit is not None:
        limited = costs.delay_s if goal.max_delay_s is not None else costs.energy_j
        assert limited is not None
        broken = kept & (limited > goal.limit * (1 + TIE))
    more = cost - best_cost
    # Where no choice keeps a limit, none is better than another by this measure.
    counts = (more > TIE * np.maximum(np.abs(best_cost), np.abs(cost))) & ~broken & kept
    return np.where(counts, more, 0.0), broken


# -------------------------------------------------------------------------------------------------------------- robust


def _robust(
    worlds: Iterable[Problem],
    places: Places,
    ours: Choice,
    best_index: Ints,
    best_hz: Floats,
    best_cost: Floats,
    kept: Mask,
    extremes: list[Extremes],
) -> tuple[Pick, Pick, Pick]:
    """The decision, the choice of least worst regret and that of least mean regret, of the decision and all that are best somewhere."""
    cut, hz = _candidates(ours, best_index, best_hz)
    width, n = cut.shape
    worst, total, broken = np.zeros((width, n)), np.zeros((width, n)), np.zeros((width, n), dtype=np.intp)
    for d, world in enumerate(worlds):
        for part in _parts(n, width):
            at = Places(
                places.device[part], world.places.uplink_bps[part], world.places.downlink_bps[part], places.feasible
            )
            costs = _costs(world.evaluated, at, Choice(cut[:, part], hz[:, part]))
            span = Extremes(*(getattr(extremes[d], name)[part] for name in _EXTREMES))
            more, breaks = _regret(world, span, costs, best_cost[d, part], kept[d, part])
            np.maximum(worst[:, part], more, out=worst[:, part])
            total[:, part] += more
            broken[:, part] += breaks
    mean = total / len(best_index)
    return (
        _picked(np.zeros(n, dtype=np.intp), cut, hz, worst, mean, broken),
        _picked(_least(broken, worst, mean), cut, hz, worst, mean, broken),
        _picked(_least(broken, mean, worst), cut, hz, worst, mean, broken),
    )


_EXTREMES = ("d_min_s", "d_max_s", "e_min_j", "e_max_j")


def _parts(n: int, width: int) -> Iterator[slice]:
    size = max(1, BLOCK_POINTS // width)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _candidates(ours: Choice, best_index: Ints, best_hz: Floats) -> tuple[Ints, Floats]:
    """(W, N) cuts and clocks: the decision in row 0, then all that are best in some world, each once, by cut and clock.

    Places with fewer of them than others have the decision in the rows that are left.
    """
    clocks, index = np.unique(np.vstack([best_hz, ours.frequency_hz[None, :]]), return_inverse=True)
    index = index.reshape(len(best_hz) + 1, -1)
    own = ours.cut_index * len(clocks) + index[-1]
    codes = np.sort(best_index * len(clocks) + index[:-1], axis=0)
    first = np.concatenate([np.ones((1, codes.shape[1]), dtype=np.bool_), codes[1:] != codes[:-1]])
    row = np.cumsum(first, axis=0)
    found = np.tile(own, (int(row.max()) + 1, 1))
    column = np.broadcast_to(np.arange(codes.shape[1]), codes.shape)
    found[row, column] = codes
    cut, k = np.divmod(found, len(clocks))
    return cut, clocks[k]


def _least(broken: Ints, first: Floats, second: Floats) -> Ints:
    """(N,) rows of (W, N) with the fewest limits broken, of these with the least ``first``, then ``second``, then the first row."""
    few = broken == broken.min(0)
    one = np.where(few, first, np.inf)
    near = one <= one.min(0) * (1 + TIE)
    row: Ints = np.where(near, second, np.inf).argmin(0)
    return row


def _picked(row: Ints, cut: Ints, hz: Floats, worst: Floats, mean: Floats, broken: Ints) -> Pick:
    at = row, np.arange(len(row))
    return Pick(cut[at] + 1, hz[at], worst[at], mean[at], broken[at])
