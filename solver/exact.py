"""The joint optimum over cut and clock, for whatever times and powers the cost model holds."""

from __future__ import annotations

import itertools

import numpy as np

from solver.costs import Choice, CostModel, Floats, Places, ServerClocks, piece_edges, stationary

BLOCK_POINTS = 4_000_000
"""Decisions are taken in blocks of at most this many points, so that memory stays bounded."""


def choose(model: CostModel, places: Places, clocks: ServerClocks, by_delay: Floats, by_energy: Floats) -> Choice:
    """The feasible cut and the clock at which by_delay D + by_energy E is least; the lowest cut, then clock, of equals.

    ``by_delay`` in 1/s and ``by_energy`` in 1/J are (N,) and not negative: `Extremes.weights` for U of Eq. 12, or a price in J/s
    beside 1. Over the supported clocks, or, where the server lists none, over every clock from F_min to F_max.
    """
    if len(clocks.supported_hz):
        return _listed(model, places, clocks.supported_hz, by_delay, by_energy)
    return _continuous(model, places, clocks, by_delay, by_energy)


def _listed(model: CostModel, places: Places, clocks_hz: Floats, by_delay: Floats, by_energy: Floats) -> Choice:
    seconds, joules = model.server_s(clocks_hz), model.busy_j(clocks_hz)
    waiting_s, feasible = model.waiting_s(places), places.feasible[places.device]
    n = len(places)
    cut, clock = np.zeros(n, dtype=np.intp), np.zeros(n)
    block = max(1, BLOCK_POINTS // seconds.size)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        x, y = by_delay[rows, None, None], by_energy[rows, None, None]
        still = (by_delay + by_energy * model.idle_w)[rows, None] * waiting_s[rows]
        cost = np.where(feasible[rows], still, np.inf)[:, :, None] + (x * seconds + y * joules)
        best = cost.reshape(len(cost), -1).argmin(1)
        cut[rows], k = np.divmod(best, len(clocks_hz))
        clock[rows] = clocks_hz[k]
    return Choice(cut, clock)


def _continuous(model: CostModel, places: Places, clocks: ServerClocks, by_delay: Floats, by_energy: Floats) -> Choice:
    """Time and power are one formula each on every piece of the range; the cost is least at an end of a piece or where its derivative is
    zero inside one (`costs.stationary`)."""
    edges = piece_edges(model, clocks.f_min_hz, clocks.f_max_hz)
    waiting_s, feasible = model.waiting_s(places), places.feasible[places.device]
    n = len(places)
    cut, clock = np.zeros(n, dtype=np.intp), np.zeros(n)
    block = max(1, BLOCK_POINTS // (2 * len(edges) * model.cuts))
    every = np.arange(model.cuts)[None, :]
    for start in range(0, n, block):
        rows = slice(start, start + block)
        x, y = by_delay[rows], by_energy[rows]
        size = (len(x), model.cuts)
        candidates = [np.full(size, edge) for edge in edges]
        candidates += [stationary(model, low, high, x, y) for low, high in itertools.pairwise(edges) if high > low]
        at = np.stack(candidates, axis=-1)
        seconds = model.server_time.at(every[:, :, None], at)
        joules = 0.0 if model.server_power is None else model.server_power.at(at) * seconds
        still = (by_delay + by_energy * model.idle_w)[rows, None] * waiting_s[rows]
        cost = np.where(feasible[rows], still, np.inf)[:, :, None] + (
            x[:, None, None] * seconds + y[:, None, None] * joules
        )
        best = cost.reshape(len(cost), -1).argmin(1)
        cut[rows], k = np.divmod(best, at.shape[2])
        clock[rows] = at[np.arange(len(cost)), cut[rows], k]
    return Choice(cut, clock)
