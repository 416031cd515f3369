"""The joint optimum over cut and clock, for whatever times and powers the cost model holds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from solver.costs import Choice, CostModel, Floats, Ints, Places, ServerClocks
from solver.extremes import piece_edges, stationary
from solver.stream import BLOCK_POINTS, Block, least, lowest, over_blocks


def choose(model: CostModel, places: Places, clocks: ServerClocks, by_delay: Floats, by_energy: Floats) -> Choice:
    """The feasible cut and the clock at which by_delay D + by_energy E is least; the lowest cut of equals.

    ``by_delay`` in 1/s and ``by_energy`` in 1/J are (N,) and not negative: `Extremes.weights` for U of Eq. 12, or a price in J/s
    beside 1. Over the supported clocks, or, where the server lists none, over every clock from F_min to F_max.
    """
    cut, clock = np.empty(len(places), dtype=np.intp), np.empty(len(places))
    if len(clocks.supported_hz):
        hulls = [_Hull.of(*curve, clocks.supported_hz) for curve in zip(*_curves(model, clocks), strict=True)]

        def work(block: Block) -> None:
            cut[block.rows], clock[block.rows] = _listed(
                model, hulls, block, by_delay[block.rows], by_energy[block.rows]
            )

        over_blocks(places, work)
    else:
        edges = piece_edges(model, clocks.f_min_hz, clocks.f_max_hz)
        proportional = model.server_time.a_s.shape[1] == 1 and not model.server_time.a_s.any()
        between = _proportional if proportional else _continuous

        def work_between(block: Block) -> None:
            cut[block.rows], clock[block.rows] = between(
                model, edges, block, by_delay[block.rows], by_energy[block.rows]
            )

        over_blocks(places, work_between, BLOCK_POINTS if proportional else BLOCK_POINTS // 8)
    return Choice(cut, clock)


def _curves(model: CostModel, clocks: ServerClocks) -> tuple[Floats, Floats]:
    """Busy seconds and joules (C, K) at the supported clocks."""
    return model.server_s(clocks.supported_hz), model.busy_j(clocks.supported_hz)


# ------------------------------------------------------------------------------------------------- over listed clocks


@dataclass(frozen=True)
class _Hull:
    """The clocks of one cut at which x t + y e can be least for some x, y >= 0: the lower left hull of its points (t, e).

    In order of rising t. Vertex v is best while y / (x + y) is between ``turn[v-1]`` and ``turn[v]``. No other clock can win a weighted
    sum, as long as what the server draws while it waits does not depend on its clock.
    """

    seconds: Floats  # (V,)
    joules: Floats  # (V,)
    clock_hz: Floats  # (V,)
    turn: Floats  # (V-1,) ascending

    @staticmethod
    def of(seconds: Floats, joules: Floats, clocks_hz: Floats) -> _Hull:
        """From points (K,). Of equal points the lowest clock is kept."""
        hull: list[int] = []
        for k in np.lexsort((clocks_hz, joules, seconds)).tolist():
            if hull and joules[k] >= joules[hull[-1]]:
                continue  # not faster and not less energy
            while len(hull) > 1:
                a, b = hull[-2], hull[-1]
                rise = (joules[a] - joules[b]) * (seconds[k] - seconds[a])
                if rise > (joules[a] - joules[k]) * (seconds[b] - seconds[a]):
                    break
                hull.pop()
            hull.append(k)
        slower, saved = np.diff(seconds[hull]), -np.diff(joules[hull])
        return _Hull(seconds[hull], joules[hull], clocks_hz[hull], slower / (slower + saved))

    def vertices(self, mix: Floats) -> Ints:
        """How many of ``mix`` (R,), ascending, belong to each vertex, (V,)."""
        ends = np.searchsorted(mix, self.turn, side="right")
        return np.diff(ends, prepend=0, append=len(mix))


def _listed(
    model: CostModel, hulls: list[_Hull], block: Block, by_delay: Floats, by_energy: Floats
) -> tuple[Ints, Floats]:
    """Cut (R,) and clock (R,). Sorted by the mix of the two weights, each cut's best vertices are runs: no search for each decision."""
    both = by_delay + by_energy
    mix = np.divide(by_energy, both, out=np.zeros_like(both), where=both > 0)
    order = np.argsort(mix)
    mix, x, y = mix[order], by_delay[order], by_energy[order]
    cost = _still(model, block, by_delay, by_energy, order)
    runs = [hulls[c].vertices(mix) for c in block.cuts]
    for row, c in enumerate(block.cuts):
        cost[row] += x * np.repeat(hulls[c].seconds, runs[row]) + y * np.repeat(hulls[c].joules, runs[row])
    best = lowest(cost)[0]
    clock = np.empty(len(best))
    for row, c in enumerate(block.cuts):
        chosen = np.flatnonzero(best == row)
        if len(chosen):
            clock[chosen] = hulls[c].clock_hz[np.searchsorted(np.cumsum(runs[row]), chosen, side="right")]
    back_cut, back_clock = np.empty_like(best), np.empty_like(clock)
    back_cut[order], back_clock[order] = block.cuts[best], clock
    return back_cut, back_clock


# ----------------------------------------------------------------------------------------------- over a range of clocks


def _proportional(
    model: CostModel, edges: Floats, block: Block, by_delay: Floats, by_energy: Floats
) -> tuple[Ints, Floats]:
    """Where the server's time is cycles / f for every cut, as in the letter, the server costs cycles (x / f + y P(f) / f): one clock
    is best for all cuts."""
    best, where = np.full(len(block), np.inf), np.empty(len(block))
    one = block.cuts[:1]
    inner = (stationary(model, one, low, high, by_delay, by_energy)[0] for low, high in itertools.pairwise(edges))
    for at in itertools.chain((np.full(len(block), edge) for edge in edges), inner):
        rate = by_delay / at
        if model.server_power is not None:
            rate += by_energy * (model.server_power.at(at) / at)
        better = rate < best
        np.copyto(best, rate, where=better)
        np.copyto(where, at, where=better)
    cycles = model.server_time.b_cycles[block.cuts, 0]
    if model.codecs is not None:
        row, _ = lowest(_still(model, block, by_delay, by_energy) + np.outer(cycles, best))
        return block.cuts[row], where
    terms, weights = _held(model, block, by_delay, by_energy)
    row, _ = least(np.column_stack([terms, cycles]), np.vstack([weights, best]))
    return block.cuts[row], where


def _still(
    model: CostModel, block: Block, by_delay: Floats, by_energy: Floats, order: Ints | slice = slice(None)
) -> Floats:
    """(C', R) what a cut costs at any clock of the server, decisions in ``order``."""
    if model.codecs is None:
        terms, weights = _held(model, block, by_delay, by_energy)
        return terms @ weights[:, order]
    cost = block.waiting_s(model) * (by_delay + by_energy * model.idle_w)
    if model.device_j is not None:
        cost += np.outer(model.device_j[block.device, block.cuts], by_energy)
    return cost[:, order]


def _held(model: CostModel, block: Block, by_delay: Floats, by_energy: Floats) -> tuple[Floats, Floats]:
    """(C', k) and (k, R), whose product is what a cut costs at any clock of the server; without codecs."""
    terms, weights = block.waiting_terms(model), (by_delay + by_energy * model.idle_w) * block.per_bit
    if model.device_j is not None:
        terms = np.column_stack([terms, model.device_j[block.device, block.cuts]])
        weights = np.vstack([weights, by_energy])
    return terms, weights


def _continuous(
    model: CostModel, edges: Floats, block: Block, by_delay: Floats, by_energy: Floats
) -> tuple[Ints, Floats]:
    """Time and power are one formula each on every piece of the range; the cost is least at an end of a piece or where its derivative is
    zero inside one (`extremes.stationary`)."""
    still = _still(model, block, by_delay, by_energy)
    best, where = np.full(still.shape, np.inf), np.empty(still.shape)
    inner = (stationary(model, block.cuts, low, high, by_delay, by_energy) for low, high in itertools.pairwise(edges))
    for at in itertools.chain((np.broadcast_to(edge, still.shape) for edge in edges), inner):
        seconds = model.server_time.at(block.cuts[:, None], at)
        cost = by_delay * seconds
        if model.server_power is not None:
            cost += by_energy * (model.server_power.at(at) * seconds)
        better = cost < best
        np.copyto(best, cost, where=better)
        np.copyto(where, at, where=better)
    row, _ = lowest(still + best)
    return block.cuts[row], where[row, np.arange(len(row))]
