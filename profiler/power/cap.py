"""The power cap of a device: whether a sweep came to it, and what it holds the watts to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from profiler.power.curve import Array, Curve
from profiler.power.mixture import t_quantile


def plateau(frequency_hz: Array, power_w: Array) -> NDArray[np.bool_]:
    """Rows (n,) at a power cap that nobody has marked: the three or more highest clocks, where watts that rose before stay.

    They count as one level where a line through the two clocks before them rises by more than six times what they differ by, and
    more than six times what the points below scatter about a smooth curve, by their second differences.
    """
    clocks, where = np.unique(frequency_hz, return_inverse=True)
    watts = np.bincount(where, weights=power_w) / np.bincount(where)
    n, none = len(clocks), np.zeros(len(frequency_hz), dtype=bool)
    for first in range(2, n - 2):  # the longest plateau wins
        top, below = watts[first:], slice(0, first)
        slope = (watts[first - 1] - watts[first - 2]) / (clocks[first - 1] - clocks[first - 2])
        rise = slope * (clocks[-1] - clocks[first])
        bend = np.zeros(1)
        if first >= 4:
            f, p = clocks[below], watts[below]
            line = p[:-2] + (p[2:] - p[:-2]) * (f[1:-1] - f[:-2]) / (f[2:] - f[:-2])
            # A steady bend is shape, not scatter: only how it changes from place to place counts.
            bend = np.diff(p[1:-1] - line)
        if np.ptp(top) < 0.02 * top.mean() and rise > 6 * max(float(np.ptp(top)), float(np.median(np.abs(bend)))):
            return np.asarray((where >= first) | none)
    return none


@dataclass(frozen=True)
class Cap:
    """The power cap: median of the capped watts and the half width of a 95 % interval for a new measurement at it.

    ``from_hz``: the lowest capped clock above all free ones. A request for it or a higher one is known to end at the cap.
    """

    power_w: float | None = None
    half_w: float = 0.0
    from_hz: float = math.inf
    leave_out_w: dict[float, float] = field(default_factory=dict)
    """The cap as seen without one capped clock; no entry where that clock was the only one."""

    @classmethod
    def of(cls, f: Array, p: Array, at_cap: NDArray[np.bool_], curve: Curve) -> Cap:
        watts = p[at_cap]
        if not len(watts):
            return cls()
        spread = float(np.std(watts, ddof=1)) if len(watts) > 1 else 0.0
        factor = float(t_quantile(np.array(len(watts) - 1.0))) if len(watts) > 1 else 0.0
        without = {c: float(np.median(p[at_cap & (f != c)])) for c in np.unique(f[at_cap]) if (at_cap & (f != c)).any()}
        # The variance of a median is pi/2 that of a mean.
        half = factor * spread * math.sqrt(1 + math.pi / 2 / len(watts))
        above = f[at_cap & (f > curve.frequency_hz[-1])]
        return cls(float(np.median(watts)), half, float(above.min()) if len(above) else math.inf, without)

    def limit(self, frequency_hz: Array, watts: Array) -> Array:
        if self.power_w is None:
            return watts
        return np.where(frequency_hz >= self.from_hz, self.power_w, np.minimum(watts, self.power_w))

    def interval(self, frequency_hz: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """Watts (m,) of the interval with the cap applied; at the cap it is no narrower, in proportion, than elsewhere."""
        if self.power_w is None:
            return low, high
        below = frequency_hz < self.from_hz
        usual = np.median(((high - low) / (high + low))[below]) * self.power_w if below.any() else 0.0
        half = max(self.half_w, float(usual))
        low, high = np.minimum(low, self.power_w - half), np.minimum(high, self.power_w + half)
        return np.where(below, low, self.power_w - half), np.where(below, high, self.power_w + half)
