"""Statistics of a series of measurements: the mean with an interval that can be believed, where the series is steady, and whether
a counter is to be believed at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


_JUMP = 10.0


@dataclass(frozen=True)
class Mean:
    """Mean of a series, half width of its 95 % interval, and how many independent values the series is worth."""

    mean: float
    half_width: float
    effective: float


def mean_interval(values: Sequence[float] | Array) -> Mean:
    """Mean of a stationary series, shape (n,), with a 95 % interval that allows for autocorrelation.

    The variance of the mean is gamma_0 + 2 sum gamma_k over n, the sum cut by Geyer's initial positive monotone sequence
    (Statistical Science 7, 1992), and each autocorrelation first corrected for its bias in a short series (about
    (1 + 3 rho)/n for an autoregression of order one; Kendall 1954). Student's t with the effective number of values less
    one. Negative correlation is not trusted to narrow the interval. Infinite for fewer than 4 values.
    """
    series = np.asarray(values, dtype=float)
    count = len(series)
    if count == 0:
        return Mean(math.nan, math.inf, 0.0)
    mean = float(series.mean())
    if count < 4:
        return Mean(mean, math.inf, 1.0)
    centred = series - mean
    variance = float(centred @ centred) / count
    if variance <= 0.0 or math.sqrt(variance) < 1e-12 * abs(mean):
        # A sensor that never moved tells nothing of its error but its step, which the caller knows.
        return Mean(mean, 0.0, float(count))
    lags = count // 2
    rho = np.array([float(centred[k:] @ centred[: count - k]) / (count * variance) for k in range(lags + 1)])
    inflation = _inflation(rho)
    first = min(0.99, rho[1] + (1.0 + 3.0 * max(rho[1], 0.0)) / count)
    inflation = max(1.0, inflation, (1.0 + first) / (1.0 - first) if first > 0 else 1.0)
    effective = min(float(count), max(count / inflation, 1.5))
    error = math.sqrt(variance * count / (count - 1) * inflation / count)
    return Mean(mean, _student_975(max(effective - 1.0, 1.0)) * error, effective)


def _inflation(rho: Array) -> float:
    """1 + 2 sum of autocorrelations, cut where the sum of a pair turns negative; pairs never grow."""
    total, least, k = -1.0, math.inf, 0
    while k + 1 < len(rho):
        pair = float(rho[k] + rho[k + 1])
        if pair <= 0:
            break
        least = min(least, pair)
        total += 2.0 * least
        k += 2
    return total


def _student_975(freedom: float) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def steady_from(values: Array, keep: int, each: int = 1) -> int:
    """How many of the first values to drop, so that the rest is steadiest; at least ``keep`` stay.

    Steadiest: the 95 % interval and the change from its first half to its second, together, are least. What is left of a
    transient makes neighbours alike and the halves differ; too few values make the interval wide. Only about a dozen lengths are tried, so that the narrowest is not one by luck. Multiples of ``each`` are dropped.
    """
    best, narrowest = 0, math.inf
    length = float(len(values))
    while length >= max(keep, 4):
        drop = (len(values) - math.floor(length)) // each * each
        width = mean_interval(values[drop:]).half_width + abs(halves_differ(values[drop:]))
        if width < narrowest:
            best, narrowest = drop, width
        length *= 0.8
    return best


def halves_differ(values: Array) -> float:
    """Mean of the second half less mean of the first."""
    middle = len(values) // 2
    return float(values[middle:].mean() - values[:middle].mean())


def rounding_w(watts: Array) -> float:
    """How far the mean of readings, shape (n,), may be off because the sensor counts in steps; half width, in watts.

    The step is the usual change between readings. Noise of s watts takes the error of rounding out of the mean but for
    exp(-2 (pi s / step)^2) of it (Widrow and Kollar, "Quantization Noise", 2008).
    """
    changes = np.abs(np.diff(watts))
    changes = changes[changes > 1e-9 * max(1.0, float(np.abs(watts).max(initial=0.0)))]
    if not len(changes):
        return 0.0
    step = float(np.median(changes))
    noise = max(0.0, float(watts.var()) - step**2 / 12.0)
    return 0.5 * step * math.exp(-2.0 * math.pi**2 * noise / step**2)


def why_not_counter(times: Array, joules: Array, by_counter: Array) -> str | None:
    """Why the energy counter is not believed, else None. ``joules`` as read at ``times``; watts by window, NaN where unknown."""
    steps_j = np.diff(joules)
    if not steps_j.any():
        return f"the energy counter stands still at {joules[0]:g} J"
    fallen = np.flatnonzero(steps_j < 0)
    if len(fallen):
        before, after = joules[fallen[0]], joules[fallen[0] + 1]
        return f"the energy counter fell from {before:.3f} to {after:.3f} J (reset or overflow)"
    seen = by_counter[np.isfinite(by_counter)]
    if not len(seen):
        return "the energy counter moves too seldom"
    if len(seen) < 0.5 * len(by_counter) or seen.min() <= 0:
        return "the energy counter stood still for part of the time"
    moved = np.flatnonzero(steps_j) + 1
    took_s, rose_j = np.diff(times[moved]), steps_j[moved[1:] - 1]
    usual_j = float(np.median(seen)) * np.maximum(took_s, np.median(took_s))
    if (rose_j > _JUMP * usual_j).any():  # no load draws so much more than it usually does
        return "the energy counter jumped"
    return None
