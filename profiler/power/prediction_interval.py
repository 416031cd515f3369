"""How far off a prediction may be: the kriged law's claim, held against the errors that were found at clocks left out. See docs/power.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from profiler.power.cap import Cap
from profiler.power.curve import Array, CrossFit, Curve
from profiler.power.mixture import t_quantile
from profiler.power.priors import PRIORS, IntervalPriors

_MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # the mean absolute value of a standard normal


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
    expects there."""

    def __init__(
        self,
        curve: Curve,
        chosen: CrossFit,
        kriged: CrossFit | None,
        cubic: CrossFit,
        priors: IntervalPriors = PRIORS.interval,
    ) -> None:
        self.curve, self.chosen, self.kriged, self.fallback, self.priors = curve, chosen, kriged, cubic, priors

    def _stretch(self, error_w: Array, sd_w: Array) -> float:
        """Mean of the expected size of errors, 1, and the one found, each counting for as many clocks as the priors say."""
        found = float(np.mean(np.abs(error_w) / np.maximum(sd_w, 1e-9 * np.abs(error_w) + 1e-300))) / _MEAN_OF_NORMAL
        claim = len(error_w) if self.priors.claim is None else self.priors.claim
        if math.isinf(claim):
            return 1.0
        return (claim + len(error_w) * found) / (claim + len(error_w))

    def at(self, frequency_hz: Array, power_w: Array) -> tuple[Array, Array]:
        """Low and high (m,) at clocks (m,) for the chosen law, which says ``power_w`` (m,) there."""
        curve, kriged = self.curve, self.kriged
        if kriged is None or kriged.predictive is None:
            half = power_w * self._rough()
            return power_w - half, power_w + half
        low, high = kriged.predictive.at(frequency_hz)
        sd = np.diag(kriged.predictive.pair_sd_w)
        error = self.chosen.loo_w - curve.target_w
        if not (np.isfinite(sd).all() and np.isfinite(error).all()):
            return low, high
        return self._around(low, high, power_w, self._stretch(error, sd))

    @staticmethod
    def _around(low: Array, high: Array, power_w: Array, stretch: float) -> tuple[Array, Array]:
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
                stretch = self._stretch(error, sd) if np.isfinite(error).all() and np.isfinite(sd).all() else 1.0
                bottom, top = predictive.left_out_w[0, i], predictive.left_out_w[1, i]
                low[i], high[i] = self._around(bottom, top, loo[i], stretch)
        low, high = cap.interval(self.curve.frequency_hz, low, high)
        return LeftOut(self.curve.frequency_hz, cap.limit(self.curve.frequency_hz, loo), np.maximum(low, 0), high)
