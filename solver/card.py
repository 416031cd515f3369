"""Algorithm 1 (CARD) with Eq. 16 as printed, for N decisions at once.

Everything here is the letter's model: the server's busy time is ``cycles(c) / f`` (Eq. 8) and its energy
``xi f^2 cycles(c)`` (Eq. 11), with ``cycles(c) = T (eta - eta_D(c)) / (delta sigma)``.
"""

from __future__ import annotations

import numpy as np

from solver.costs import Choice, CostModel, Floats, Ints, Places, ServerClocks
from solver.stream import Block, least, least_value, lowest, over_blocks


def optimal_clock(
    letter: CostModel, places: Places, clocks: ServerClocks, w: float, xi_w_per_hz3: float | None
) -> Floats:
    """f* of Eq. 16, (N,), in Hz and continuous.

    The extremes are over the box {feasible cuts} x [F_min, F_max], so Q depends on device and channel but not on the cut. At w = 1
    Eq. 16 divides by zero: f* = F_max, its limit; at w = 0 f* = F_min. ``xi_w_per_hz3`` may be None only at w = 1. xi cancels:
    E_max - E_min is proportional to it.
    """
    clock = np.empty(len(places))

    def work(block: Block) -> None:
        clock[block.rows] = _Box(letter, block, clocks, xi_w_per_hz3).optimal_clock(w)

    over_blocks(places, work)
    return clock


def choose(letter: CostModel, places: Places, clocks: ServerClocks, w: float, xi_w_per_hz3: float | None) -> Choice:
    """Algorithm 1; the clock to request is the supported one nearest to f*."""
    cut, clock = algorithm_1(letter, places, clocks, w, xi_w_per_hz3)
    return Choice(cut, clocks.nearest(clock))


def algorithm_1(
    letter: CostModel, places: Places, clocks: ServerClocks, w: float, xi_w_per_hz3: float | None
) -> tuple[Ints, Floats]:
    """The feasible cut with the least U at f*, 0-based, the lowest of equals; and f* of Eq. 16 in Hz, as `optimal_clock` has it. (N,) each."""
    cut, clock = np.empty(len(places), dtype=np.intp), np.empty(len(places))

    def work(block: Block) -> None:
        box = _Box(letter, block, clocks, xi_w_per_hz3)
        f = box.optimal_clock(w)
        clock[block.rows] = f
        cut[block.rows] = block.cuts[box.best(w, f)]

    over_blocks(places, work)
    return cut, clock


class _Box:
    """{feasible cuts} x [F_min, F_max] for one block: C' cuts, R decisions."""

    def __init__(self, letter: CostModel, block: Block, clocks: ServerClocks, xi_w_per_hz3: float | None) -> None:
        low, high = clocks.f_min_hz, clocks.f_max_hz
        self.f_min_hz, self.f_max_hz, self.xi, self.block = low, high, xi_w_per_hz3, block
        self.cycles = letter.server_time.b_cycles[block.cuts, 0]  # (C',)
        self.waiting_s = None if letter.codecs is None else block.waiting_s(letter)  # (C', R)
        if self.waiting_s is None:
            self.terms = block.waiting_terms(letter)
            longest = -least_value(-block.waiting_terms(letter, self.cycles / low), block.per_bit)
            self.d_span_s = longest - least_value(block.waiting_terms(letter, self.cycles / high), block.per_bit)
        else:
            longest = (self.waiting_s + (self.cycles / low)[:, None]).max(axis=0)
            self.d_span_s = longest - (self.waiting_s + (self.cycles / high)[:, None]).min(axis=0)
        xi = 0.0 if xi_w_per_hz3 is None else xi_w_per_hz3
        self.e_span_j = float((xi * high * high * self.cycles).max() - (xi * low * low * self.cycles).min())

    def optimal_clock(self, w: float) -> Floats:
        """Eq. 16, (R,)."""
        if w >= 1:
            return np.full(len(self.d_span_s), self.f_max_hz)
        if w <= 0:
            return np.full(len(self.d_span_s), self.f_min_hz)
        if self.xi is None:
            raise ValueError("Eq. 16 needs xi unless w = 1")
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.cbrt(w * self.e_span_j / (2 * self.xi * (1 - w)) / self.d_span_s)
        # Without a range of delay its term counts 0, and the lowest clock is best.
        clock: Floats = np.clip(np.where(self.d_span_s > 0, q, 0.0), self.f_min_hz, self.f_max_hz)
        return clock

    def best(self, w: float, clock_hz: Floats) -> Ints:
        """The place (R,) in the block's cuts of the least U of Eq. 12 at clocks (R,)."""
        by_delay = np.divide(w, self.d_span_s, out=np.zeros_like(clock_hz), where=self.d_span_s > 0)
        by_cycles = by_delay / clock_hz
        if w < 1:
            if self.xi is None:
                raise ValueError("Eq. 11 needs xi unless w = 1")
            by_energy = (1 - w) / self.e_span_j if self.e_span_j > 0 else 0.0
            by_cycles += by_energy * self.xi * clock_hz * clock_hz
        if self.waiting_s is not None:
            return lowest(by_delay * self.waiting_s + np.outer(self.cycles, by_cycles))[0]
        weights = np.empty((4, len(clock_hz)))
        np.multiply(by_delay, self.block.per_bit, out=weights[:3])
        weights[3] = by_cycles
        return least(np.column_stack([self.terms, self.cycles]), weights)[0]
