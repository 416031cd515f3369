"""How far off a prediction may be: the kriged law's claim, held against the errors that were found at clocks left out. See docs/power.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.power.cap import Cap
from profiler.power.curve import Array, CrossFit, Curve, clock_groups
from profiler.power.mixture import t_quantile
from profiler.power.priors import PRIORS, IntervalPriors
from profiler.power.voices import SAME_ELSEWHERE, Misses

_MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # the mean absolute value of a standard normal
_ODD = 4.0  # a point further off, in standard deviations, is an odd one of its own workload's, and counts as this


@dataclass(frozen=True)
class LeftOut:
    """What the selected law says at each distinct clock without having seen it, with its 95 % interval; all (clocks,), NaN where
    too few clocks are left to say anything."""

    frequency_hz: Array
    power_w: Array
    low_w: Array
    high_w: Array


class Intervals:
    """The kriged law's interval, scaled as far as the priors say by how the chosen law errs at clocks left out against what the kriged law
    expects there, and wider where other workloads of the chip (``misses``) are further off, at clocks nearby, than the law expects of them."""

    def __init__(
        self,
        curve: Curve,
        chosen: CrossFit,
        kriged: CrossFit | None,
        cubic: CrossFit,
        priors: IntervalPriors = PRIORS.interval,
        misses: Sequence[Misses] = (),
    ) -> None:
        self.curve, self.chosen, self.kriged, self.fallback, self.priors = curve, chosen, kriged, cubic, priors
        self.misses = misses

    def _stretch(self, error_w: Array, sd_w: Array) -> float:
        """Mean of the expected size of errors, 1, and the one found, each counting for as many clocks as the priors say."""
        if not (np.isfinite(error_w).all() and np.isfinite(sd_w).all()):
            return 1.0
        found = float(np.mean(np.abs(error_w) / np.maximum(sd_w, 1e-9 * np.abs(error_w) + 1e-300))) / _MEAN_OF_NORMAL
        claim = len(error_w) if self.priors.claim is None else self.priors.claim
        if math.isinf(claim):
            return 1.0
        return (claim + len(error_w) * found) / (claim + len(error_w))

    def _wider(self, frequency_hz: Array, without_hz: float | None = None) -> Array:
        """How many times wider (m,) at clocks (m,), for what other workloads show that have not seen clock ``without_hz``. Never narrower: their errors
        are not independent of each other, and a few may be small by luck."""
        if math.isinf(self.priors.shared) or not self.misses:
            return np.ones(len(frequency_hz))
        told = [each.without(without_hz) for each in self.misses]
        clocks, off = (np.concatenate(column) for column in zip(*told, strict=True))
        order = np.argsort(clocks)
        clocks, off = clocks[order], off[order]
        # Workloads tend to be off at the same clocks: however many they are, each clock counts once.
        group = clock_groups(clocks, SAME_ELSEWHERE)
        rows = np.bincount(group)
        found = np.bincount(group, np.minimum(off, _ODD)) / rows / _MEAN_OF_NORMAL
        clocks = np.bincount(group, clocks) / rows
        away = np.abs(frequency_hz[:, None] - clocks) / (self.curve.high_hz - self.curve.low_hz)
        near = np.exp(-away / self.priors.reach)
        claim = self.priors.shared
        return np.asarray(np.maximum((claim + near @ found) / (claim + near.sum(axis=1)), 1.0))

    def at(self, frequency_hz: Array, power_w: Array) -> tuple[Array, Array]:
        """Low and high (m,) at clocks (m,) for the chosen law, which says ``power_w`` (m,) there."""
        curve, kriged = self.curve, self.kriged
        if kriged is None or kriged.predictive is None:
            half = power_w * self._rough()
            return power_w - half, power_w + half
        low, high = kriged.predictive.at(frequency_hz)
        sd = np.diag(kriged.predictive.pair_sd_w)
        error = self.chosen.loo_w - curve.target_w
        return self._around(low, high, power_w, self._stretch(error, sd) * self._wider(frequency_hz))

    @staticmethod
    def _around(low: Array, high: Array, power_w: Array, stretch: Array) -> tuple[Array, Array]:
        half, middle = stretch * (high - low) / 2, (low + high) / 2
        return np.minimum(middle - half, power_w), np.maximum(middle + half, power_w)

    def _rough(self) -> float:
        """Relative half width from whatever left-out errors there are: with 2 clocks it is, rightly, very wide."""
        error = self.chosen.loo_w if np.isfinite(self.chosen.loo_w).all() else self.fallback.loo_w
        relative = float(np.sqrt(np.mean((error / self.curve.target_w - 1) ** 2)))
        return float(t_quantile(np.array(len(error) - 1.0))) * relative

    def left_out(self, cap: Cap) -> LeftOut:
        """Every clock predicted without itself, interval included: what is said at clock i has not seen clock i."""
        n = len(self.curve)
        low, high = np.full(n, np.nan), np.full(n, np.nan)
        predictive = self.kriged.predictive if self.kriged is not None else None
        loo, pair = self.chosen.loo_w, self.chosen.pair_w
        if predictive is not None:
            for i in range(n):
                others = np.delete(np.arange(n), i)
                error, sd = pair[i, others] - self.curve.target_w[others], predictive.pair_sd_w[i, others]
                one = slice(i, i + 1)
                clock = self.curve.frequency_hz[one]
                stretch = self._stretch(error, sd) * self._wider(clock, float(clock[0]))
                bottom, top = predictive.left_out_w[:, one]
                low[one], high[one] = self._around(bottom, top, loo[one], stretch)
        low, high = cap.interval(self.curve.frequency_hz, low, high)
        return LeftOut(self.curve.frequency_hz, cap.limit(self.curve.frequency_hz, loo), np.maximum(low, 0), high)
