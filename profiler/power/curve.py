"""A sweep as a law sees it, and what a law has to answer.

A law answers one question: given the sweep, what does it predict with all clocks, with each clock left out, and with each
pair of clocks left out? Selection, averaging, errors and intervals are all built from these predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAME_CLOCK = 2e-3
"""Clocks nearer than this (relative) are one that was read twice: what can be set lies farther apart (7.5 MHz of 2600, 25 of 5000)."""


@dataclass(frozen=True)
class Curve:
    """A sweep reduced to its distinct clocks, ascending.

    Rows measured at one clock are replaced by the target t = sum(1/y) / sum(1/y^2) with weight a = sum(1/y^2): the sum of
    squared relative errors differs from a (P - t)^2 by a constant only, so nothing is lost for relative least squares.

    What the rows tell of the noise alone: ``scatter`` is the sum of (y - t)^2 over the rows of a clock, ``repeats`` how many
    values it is worth, one less than the rows. A row whose own standard deviation is known counts for one more, as if it had
    been measured a second time and differed by that much.

    ``low_hz`` and ``high_hz`` bound the domain on which the curve will be asked; the scans of shape parameters are laid
    over the domain and never over the points, so that leaving a point out changes nothing but the data.
    """

    frequency_hz: Array
    target_w: Array
    weight: Array
    rows: NDArray[np.int64]
    scatter: Array
    repeats: NDArray[np.int64]
    low_hz: float
    high_hz: float

    @classmethod
    def of(
        cls, frequency_hz: Array, power_w: Array, domain_hz: tuple[float, float], sd_w: Array | None = None
    ) -> Curve:
        """Gather rows (n,) of clocks in Hz and positive watts by clock; ``sd_w`` (n,) their standard deviations, NaN where unknown."""
        clocks, where = np.unique(frequency_hz, return_inverse=True)
        rows = np.bincount(where, minlength=len(clocks)).astype(np.int64)
        inverse = np.bincount(where, weights=1 / power_w, minlength=len(clocks))
        weight = np.bincount(where, weights=1 / power_w**2, minlength=len(clocks)).astype(np.float64)
        low = float(min(domain_hz[0], clocks[0]))
        high = float(max(domain_hz[1], clocks[-1]))
        target = inverse / weight
        scatter = np.bincount(where, weights=(power_w - target[where]) ** 2, minlength=len(clocks)).astype(np.float64)
        repeats = rows - 1
        if sd_w is not None:
            known = np.isfinite(sd_w)
            scatter = scatter + np.bincount(where[known], weights=sd_w[known] ** 2, minlength=len(clocks))
            repeats = repeats + np.bincount(where[known], minlength=len(clocks))
        return cls(clocks, target, weight, rows, scatter, repeats, low, high)

    def merged(self, apart: float) -> Curve:
        """This curve with clocks that lie within ``apart`` (relative) of a lower one taken for one and the same."""
        counts = np.bincount(clock_groups(self.frequency_hz, apart))
        if len(counts) == len(self):
            return self
        starts = np.cumsum(counts) - counts
        weight, rows = np.add.reduceat(self.weight, starts), np.add.reduceat(self.rows, starts)
        target = np.add.reduceat(self.weight * self.target_w, starts) / weight
        between = self.rows * (self.target_w - np.repeat(target, counts)) ** 2
        return replace(
            self,
            frequency_hz=np.add.reduceat(self.weight * self.frequency_hz, starts) / weight,
            target_w=target,
            weight=weight,
            rows=rows,
            scatter=np.add.reduceat(self.scatter + between, starts),
            repeats=np.add.reduceat(self.repeats, starts) + counts - 1,
        )

    def __len__(self) -> int:
        return len(self.frequency_hz)

    @property
    def x(self) -> Array:
        """Clocks over the highest clock of the domain, in (0, 1]."""
        return self.frequency_hz / self.high_hz

    @property
    def x_low(self) -> float:
        return self.low_hz / self.high_hz


@dataclass(frozen=True)
class Predictive:
    """What a law itself says a new measurement may be, in watts.

    ``pair_sd_w`` (n, n): standard deviations that belong to ``CrossFit.pair_w``. ``left_out_w`` (2, n): the 95 % interval at clock i,
    fitted without clock i. ``at(f)`` (2, m): the 95 % interval at clocks f (m,) in Hz, fitted to all clocks.
    """

    pair_sd_w: Array
    left_out_w: Array
    at: Callable[[Array], Array]


@dataclass(frozen=True)
class CrossFit:
    """What one law predicts from a curve of n clocks.

    ``loo_w`` (n,): at clock i, fitted without clock i. ``pair_w`` (n, n): at clock j, fitted without clocks i and j (its
    diagonal is ``loo_w``). NaN where the law cannot be fitted to what is left. ``curve(f)``: watts (m,) at clocks f (m,) in
    Hz, fitted to all clocks. ``parameters``: name -> (1 + n,), first fitted to all clocks, then without clock i each.
    """

    loo_w: Array
    pair_w: Array
    curve: Callable[[Array], Array]
    parameters: Mapping[str, Array]
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    predictive: Predictive | None = None


class PowerModel(Protocol):
    """One law of P(f). ``minimum_clocks``: distinct clocks below which it is not fitted. ``degrees``: free parameters for
    AICc (None: it has no fixed number). ``summary``: the law in one line."""

    @property
    def name(self) -> str: ...
    @property
    def minimum_clocks(self) -> int: ...
    @property
    def degrees(self) -> int | None: ...
    @property
    def summary(self) -> str: ...
    def cross_fit(self, curve: Curve) -> CrossFit: ...


def clock_groups(frequency_hz: Array, apart: float) -> NDArray[np.intp]:
    """For each ascending clock (n,) the number of its group: with a group's lowest clock are those within ``apart`` (relative) of it."""
    starts: list[float] = []
    for hz in frequency_hz:
        if not starts or hz > (1 + apart) * starts[-1]:
            starts.append(hz)
    return np.searchsorted(starts, frequency_hz, side="right") - 1


def left_out(n: int) -> tuple[Array, NDArray[np.int64]]:
    """Masks (1 + n + n(n-1)/2, n) of what is kept, and the row (n, n) at which clocks i and j are both left out."""
    pairs = list(combinations(range(n), 2))
    mask = np.ones((1 + n + len(pairs), n))
    row = np.zeros((n, n), dtype=np.int64)
    for i in range(n):
        mask[1 + i, i] = 0
        row[i, i] = 1 + i
    for k, (i, j) in enumerate(pairs, start=1 + n):
        mask[k, [i, j]] = 0
        row[i, j] = row[j, i] = k
    return mask, row
