"""Algorithm 1 (CARD) with Eq. 16 as printed, for N decisions at once.

Everything here is the letter's model: the server's busy time is ``cycles(c) / f`` (Eq. 8) and its energy
``xi f^2 cycles(c)`` (Eq. 11), with ``cycles(c) = T (eta - eta_D(c)) / (delta sigma)``.
"""

from __future__ import annotations

import numpy as np

from solver.costs import Choice, CostModel, Floats, Places, ServerClocks


def optimal_clock(
    letter: CostModel, places: Places, clocks: ServerClocks, w: float, xi_w_per_hz3: float | None
) -> Floats:
    """f* of Eq. 16, (N,), in Hz and continuous.

    The extremes are over the box {feasible cuts} x [F_min, F_max], so Q depends on device and channel but not on the cut. At w = 1
    Eq. 16 divides by zero: f* = F_max, its limit; at w = 0 f* = F_min. ``xi_w_per_hz3`` may be None only at w = 1. xi cancels:
    E_max - E_min is proportional to it.
    """
    f_min_hz, f_max_hz = clocks.f_min_hz, clocks.f_max_hz
    n = len(places)
    if w >= 1:
        return np.full(n, f_max_hz)
    if w <= 0:
        return np.full(n, f_min_hz)
    if xi_w_per_hz3 is None:
        raise ValueError("Eq. 16 needs xi unless w = 1")
    waiting_s, feasible = letter.waiting_s(places), places.feasible[places.device]
    cycles = letter.server_time.b_cycles[:, 0]
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


def choose(letter: CostModel, places: Places, clocks: ServerClocks, w: float, xi_w_per_hz3: float | None) -> Choice:
    """Algorithm 1: f* by Eq. 16, then the feasible cut with the least U at f*, the lowest of equals. The clock to request is the
    supported one nearest to f*."""
    clock_hz = optimal_clock(letter, places, clocks, w, xi_w_per_hz3)
    waiting_s, feasible = letter.waiting_s(places), places.feasible[places.device]
    cycles = letter.server_time.b_cycles[:, 0]
    f_min_hz, f_max_hz = clocks.f_min_hz, clocks.f_max_hz
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
    return Choice(np.where(feasible, cost, np.inf).argmin(1), clocks.nearest(clock_hz))


def _share(value: Floats, low: Floats, high: Floats) -> Floats:
    """(value - low) / (high - low) for (N, C) values and (N,) bounds; 0 where the range is empty."""
    span = (high - low)[:, None]
    return np.divide(value - low[:, None], span, out=np.zeros_like(value), where=span > 0)
