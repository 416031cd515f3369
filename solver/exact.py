"""The joint optimum of Eq. 12 over cut and clock, for whatever times and powers the cost model holds."""

from __future__ import annotations

import itertools

import numpy as np

from solver.costs import CostModel, Extremes, Floats, Ints, Mask, piece_edges, stationary

BLOCK_POINTS = 4_000_000
"""Decisions are taken in blocks of at most this many points, so that memory stays bounded."""


def best_listed(
    model: CostModel, waiting_s: Floats, feasible: Mask, extremes: Extremes, clocks_hz: Floats, w: float
) -> tuple[Ints, Floats]:
    """Cut index (N,) and clock (N,) of least U over the feasible cuts and the clocks (K,); the lowest cut, then clock, of equals."""
    by_delay, by_energy = extremes.weights(w)
    seconds, joules = model.server_s(clocks_hz), model.busy_j(clocks_hz)
    n = len(waiting_s)
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
    return cut, clock


def best_continuous(
    model: CostModel,
    waiting_s: Floats,
    feasible: Mask,
    extremes: Extremes,
    f_min_hz: float,
    f_max_hz: float,
    w: float,
) -> tuple[Ints, Floats]:
    """Cut index (N,) and clock (N,) of least U over the feasible cuts and every clock from F_min to F_max.

    Time and power are one formula each on every piece of the range; U is least at an end of a piece or where its derivative is
    zero inside one (`costs.stationary`).
    """
    by_delay, by_energy = extremes.weights(w)
    edges = piece_edges(model, f_min_hz, f_max_hz)
    n = len(waiting_s)
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
    return cut, clock
