"""Algorithm 1 (CARD) with Eq. 16 as printed, for N decisions at once.

Everything here is the letter's model: the server's busy time is ``cycles(c) / f`` (Eq. 8) and its energy
``xi f^2 cycles(c)`` (Eq. 11), with ``cycles(c) = T (eta - eta_D(c)) / (delta sigma)``.
"""

from __future__ import annotations

import numpy as np

from solver.costs import Floats, Ints, Mask


def optimal_clock(
    waiting_s: Floats,
    feasible: Mask,
    cycles: Floats,
    *,
    xi_w_per_hz3: float | None,
    w: float,
    f_min_hz: float,
    f_max_hz: float,
) -> Floats:
    """f* of Eq. 16, (N,), in Hz and continuous.

    ``waiting_s`` (N, C) is the part of the delay that the server's clock does not change, ``feasible`` (N, C) the cuts that fit in
    memory, ``cycles`` (C,). The extremes are over the box {feasible cuts} x [F_min, F_max], so Q depends on device and channel
    but not on the cut. At w = 1 Eq. 16 divides by zero: f* = F_max, its limit; at w = 0 f* = F_min. ``xi_w_per_hz3`` may be None
    only at w = 1. xi cancels: E_max - E_min is proportional to it.
    """
    n = len(waiting_s)
    if w >= 1:
        return np.full(n, f_max_hz)
    if w <= 0:
        return np.full(n, f_min_hz)
    if xi_w_per_hz3 is None:
        raise ValueError("Eq. 16 needs xi unless w = 1")
    d_min = np.where(feasible, waiting_s + cycles / f_max_hz, np.inf).min(1)
    d_max = np.where(feasible, waiting_s + cycles / f_min_hz, -np.inf).max(1)
    energy_low = np.where(feasible, xi_w_per_hz3 * f_min_hz * f_min_hz * cycles, np.inf).min(1)
    energy_high = np.where(feasible, xi_w_per_hz3 * f_max_hz * f_max_hz * cycles, -np.inf).max(1)
    delay_span, energy_span = d_max - d_min, energy_high - energy_low
    # Without a range of delay its term counts 0, and the lowest clock is best.
    q = np.full(n, f_min_hz)
    usable = delay_span > 0
    q[usable] = np.cbrt(w * energy_span[usable] / (2 * xi_w_per_hz3 * (1 - w) * delay_span[usable]))
    clock: Floats = np.clip(q, f_min_hz, f_max_hz)
    return clock


def best_cut(
    waiting_s: Floats,
    feasible: Mask,
    cycles: Floats,
    clock_hz: Floats,
    *,
    xi_w_per_hz3: float | None,
    w: float,
    f_min_hz: float,
    f_max_hz: float,
) -> Ints:
    """The loop of Algorithm 1: 0-based index (N,) of the feasible cut with the least U at ``clock_hz`` (N,); the lowest of equals."""
    delay = waiting_s + cycles / clock_hz[:, None]
    d_min = np.where(feasible, waiting_s + cycles / f_max_hz, np.inf).min(1)
    d_max = np.where(feasible, waiting_s + cycles / f_min_hz, -np.inf).max(1)
    cost = w * _share(delay, d_min, d_max)
    if w < 1:
        if xi_w_per_hz3 is None:
            raise ValueError("Eq. 11 needs xi unless w = 1")
        energy = xi_w_per_hz3 * (clock_hz * clock_hz)[:, None] * cycles
        e_min = np.where(feasible, xi_w_per_hz3 * f_min_hz * f_min_hz * cycles, np.inf).min(1)
        e_max = np.where(feasible, xi_w_per_hz3 * f_max_hz * f_max_hz * cycles, -np.inf).max(1)
        cost = cost + (1 - w) * _share(energy, e_min, e_max)
    index: Ints = np.where(feasible, cost, np.inf).argmin(1)
    return index


def _share(value: Floats, low: Floats, high: Floats) -> Floats:
    """(value - low) / (high - low) for (N, C) values and (N,) bounds; 0 where the range is empty."""
    span = (high - low)[:, None]
    return np.divide(value - low[:, None], span, out=np.zeros_like(value), where=span > 0)
