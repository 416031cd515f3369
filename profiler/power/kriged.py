"""A ridge trend with a correlated rest, all shape parameters integrated out. See docs/power.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.power.curve import Array, CrossFit, Curve, Spread, left_out

_LENGTHS = (0.15, 0.4, 1.0)  # correlation lengths over the width of the domain
_NOISE = tuple(np.geomspace(1e-4, 1.0, 5))  # variance of the noise over that of the rest
_CEILINGS = ((1.0, 0.9), (0.95, 0.05), (0.9, 0.05))  # where V stops rising, and how likely before any data are seen
_RIDGES = tuple(np.linspace(0, 0.9, 10))
_RISES = tuple(np.geomspace(0.1, 8, 7))


@dataclass(frozen=True)
class Kriged:
    """P = P0 + c f V(f)^2 + r(f): V flat below a ridge clock, rising linearly, flat again above a ceiling clock; r a smooth
    Gaussian process (Matern 5/2) for what this form cannot follow, noise proportional to the watts.

    P0 and c are integrated out (universal kriging; the restricted likelihood of Harville, 1974), and so are, on a grid, ridge,
    rise, ceiling, correlation length and noise, each weighted by its restricted likelihood given the points that are kept: no
    single shape has to be right. A left-out clock is removed in closed form: with Q the precision matrix
    after the trend is projected out, its residual is (Q y)_S solved by Q_SS.
    """

    name: str = "kriged"
    summary: str = "ridge with a ceiling plus a smooth correlated rest, averaged over shapes by likelihood"
    minimum_clocks: int = 3

    @property
    def degrees(self) -> int | None:
        return None

    def cross_fit(self, curve: Curve) -> CrossFit:
        n = len(curve)
        span_hz = curve.high_hz - curve.low_hz
        if span_hz <= 0 or n < self.minimum_clocks:
            nothing = np.full((n, n), np.nan)
            return CrossFit(nothing.diagonal().copy(), nothing, lambda f: np.full(len(f), np.nan), {})
        y = curve.target_w
        # Noise is proportional to watts, its grid relative to the sweep's own level. That level must not know a left-out point:
        # the lower median takes few values over all left-out sets, and each value is one pass.
        mask, _ = left_out(n)
        order = np.argsort(y, kind="stable")
        ranked = mask[:, order].cumsum(axis=1)
        middle = np.argmax(ranked >= np.ceil(mask.sum(1) / 2)[:, None], axis=1)
        level = y[order][middle]
        passes = [_KrigingPass(curve, float(value)) for value in np.unique(level)]
        of_row = np.searchsorted(np.unique(level), level)

        ii, jj = np.triu_indices(n, 1)
        pair, spread = np.full((n, n), np.nan), np.full((n, n), np.nan)
        single = np.full((1 + n, 1), 0)
        single[:, 0] = of_row[: 1 + n]
        for which, kriging in enumerate(passes):
            ones = np.flatnonzero(single[1:, 0] == which)
            if n - 1 >= self.minimum_clocks and len(ones):
                pair[ones, ones], spread[ones, ones] = kriging.without_one(ones)
            twos = np.flatnonzero(of_row[1 + n :] == which)
            if n - 2 >= self.minimum_clocks and len(twos):
                at_i, at_j = kriging.without_two(ii[twos], jj[twos])
                pair[jj[twos], ii[twos]], spread[jj[twos], ii[twos]] = at_i
                pair[ii[twos], jj[twos]], spread[ii[twos], jj[twos]] = at_j

        names = ("ridge_hz", "ceiling_hz", "voltage_rise", "length_hz", "noise_ratio")
        values = np.full((1 + n, len(names)), np.nan)
        for which, kriging in enumerate(passes):
            rows = np.flatnonzero(single[:, 0] == which)
            if n - 1 < self.minimum_clocks:
                rows = rows[rows == 0]
            if len(rows):
                values[rows] = kriging.shape_means(rows)
        parameters = {name: values[:, k] for k, name in enumerate(names)}
        bounds = {
            "ridge_hz": (curve.low_hz, curve.high_hz),
            "ceiling_hz": (curve.low_hz, curve.high_hz),
            "voltage_rise": (0.0, _RISES[-1]),
            "length_hz": (0.0, _LENGTHS[-1] * span_hz),
            "noise_ratio": (0.0, _NOISE[-1]),
        }
        pair = np.maximum(pair, 0.0)
        whole = passes[of_row[0]]
        return CrossFit(
            np.diag(pair).copy(),
            pair,
            lambda f: np.maximum(whole.predict(f)[0], 0.0),
            parameters,
            bounds,
            Spread(spread, lambda f: whole.predict(f)[1]),
        )


class _KrigingPass:
    """All shapes of the trend (s) and all (length, noise) pairs (h) for one reference level of the noise, in watts."""

    def __init__(self, curve: Curve, level_w: float) -> None:
        self.curve = curve
        self.level_w = level_w
        self.u = (curve.frequency_hz - curve.low_hz) / (curve.high_hz - curve.low_hz)
        table = [
            (ridge, ceiling, rise, prior)
            for ceiling, prior in _CEILINGS
            for ridge in _RIDGES
            for rise in _RISES
            if ridge < ceiling - 0.02
        ]
        self.shapes = np.array(table)[:, :3]
        self.log_prior = np.log(np.array(table)[:, 3])
        self.trend = self._trend(self.u)
        # One row of a repeated clock is as noisy as any other, so the mean of r rows has 1/r of the variance.
        self.noise = 1 / (curve.weight * level_w**2)
        y = curve.target_w
        self.y = y
        n = len(y)
        count, hyper = len(self.shapes), [(length, noise) for length in _LENGTHS for noise in _NOISE]
        self.hyper = hyper
        self.q = np.empty((len(hyper), count, n, n))
        self.kernel_inverse = np.empty((len(hyper), n, n))
        self.half_log_det = np.empty((len(hyper), count))
        for h, (length, noise) in enumerate(hyper):
            inverse = np.linalg.inv(_matern(self.u[:, None] - self.u[None, :], length) + noise * np.diag(self.noise))
            inverse = (inverse + inverse.T) / 2
            weighted = inverse @ self.trend  # (s, n, 2)
            gram = self.trend.transpose(0, 2, 1) @ weighted
            self.q[h] = inverse - weighted @ np.linalg.solve(gram, weighted.transpose(0, 2, 1))
            self.kernel_inverse[h] = inverse
            self.half_log_det[h] = (np.linalg.slogdet(gram)[1] - np.linalg.slogdet(inverse)[1]) / 2
        self.qy = self.q @ y  # (h, s, n)
        self.rss = self.qy @ y  # (h, s)
        self.q_diagonal = np.einsum("hsii->hsi", self.q)

    def _trend(self, u: Array) -> Array:
        """(s, m, 2): a constant, and f V(f)^2 scaled to rise from 0 to 1 over the domain."""

        def raw(u: Array) -> Array:
            ridge, ceiling, rise = (self.shapes[:, k : k + 1] for k in range(3))
            volts = 1 + rise * (np.clip(u[None, :], ridge, ceiling) - ridge)
            clock = self.curve.low_hz + u * (self.curve.high_hz - self.curve.low_hz)
            return np.asarray(clock[None, :] * volts**2)

        ends = raw(np.array([0.0, 1.0]))
        g = (raw(u) - ends[:, :1]) / (ends[:, 1:] - ends[:, :1])
        return np.stack([np.ones_like(g), g], axis=2)

    def _weights(self, log_det: Array, rss: Array, kept: int) -> Array:
        """Posterior weight (h, s, b) of every shape; ``log_det`` adds to the determinant, ``rss`` (h, s, b) is what is left."""
        freedom = kept - 2
        # Rounding leaves a floor in rss that must not decide between shapes that all fit exactly.
        floor = 1e-20 * float(self.y @ self.y)
        log_weight = (
            self.log_prior[None, :, None]
            - self.half_log_det[:, :, None]
            - log_det / 2
            - freedom / 2 * np.log(np.maximum(rss, floor) + floor)
        )
        weight = np.exp(log_weight - log_weight.max(axis=(0, 1)))
        return np.asarray(weight / weight.sum(axis=(0, 1)))

    def _single(self, rows: NDArray[np.int64]) -> Array:
        """Weights (h, s, b) for rows of ``CrossFit``: 0 is all clocks, 1 + i without clock i."""
        n = len(self.y)
        weights = np.empty((*self.rss.shape, len(rows)))
        whole = rows == 0
        if whole.any():
            zero = np.zeros((*self.rss.shape, 1))
            weights[:, :, whole] = self._weights(zero, self.rss[:, :, None], n)
        i = rows[~whole] - 1
        if len(i):
            q = self.q_diagonal[:, :, i]
            weights[:, :, ~whole] = self._weights(np.log(q), self.rss[:, :, None] - self.qy[:, :, i] ** 2 / q, n - 1)
        return weights

    def without_one(self, i: NDArray[np.int64]) -> tuple[Array, Array]:
        """Watts (b,) at clocks i, each left out alone, and their standard deviations for a new measurement."""
        q, weights = self.q_diagonal[:, :, i], self._single(1 + i)
        residual = self.qy[:, :, i] / q
        left = np.maximum(self.rss[:, :, None] - self.qy[:, :, i] * residual, 0) / max(len(self.y) - 3, 1)
        mean = np.einsum("hsb,hsb->b", weights, residual)
        return self.y[i] - mean, _mixture_sd(weights, residual - mean, left / q)

    def without_two(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> tuple[Array, Array]:
        """Watts and their standard deviations (2, b) at clocks i and (2, b) at clocks j, left out together."""
        a, d, b = self.q_diagonal[:, :, i], self.q_diagonal[:, :, j], self.q[:, :, i, j]
        det = np.maximum(a * d - b * b, 1e-300)
        qi, qj = self.qy[:, :, i], self.qy[:, :, j]
        ri, rj = (d * qi - b * qj) / det, (a * qj - b * qi) / det
        rss = np.maximum(self.rss[:, :, None] - qi * ri - qj * rj, 0)
        weights = self._weights(np.log(det), rss, len(self.y) - 2)
        variance = rss / max(len(self.y) - 4, 1) / det
        mean_i, mean_j = np.einsum("hsb,hsb->b", weights, ri), np.einsum("hsb,hsb->b", weights, rj)
        sd_i = _mixture_sd(weights, ri - mean_i, variance * d)
        sd_j = _mixture_sd(weights, rj - mean_j, variance * a)
        return np.stack([self.y[i] - mean_i, sd_i]), np.stack([self.y[j] - mean_j, sd_j])

    def predict(self, frequency_hz: Array) -> tuple[Array, Array]:
        """Watts (m,) at clocks (m,), fitted to all clocks, and their standard deviation for a new measurement."""
        u = (frequency_hz - self.curve.low_hz) / (self.curve.high_hz - self.curve.low_hz)
        weights = self._single(np.zeros(1, dtype=np.int64))[:, :, 0]
        # Most shapes have no weight to speak of and are not worth their algebra.
        weights = np.where(weights > 1e-10, weights, 0.0)
        weights /= weights.sum()
        trend = self._trend(u)
        first, second = np.zeros(len(u)), np.zeros(len(u))
        for h, (length, noise) in enumerate(self.hyper):
            matter = np.flatnonzero(weights[h])
            if not len(matter):
                continue
            inverse, at_points = self.kernel_inverse[h], self.trend[matter]
            weighted = inverse @ at_points
            gram = at_points.transpose(0, 2, 1) @ weighted
            cross = _matern(u[:, None] - self.u[None, :], length)
            plain = cross @ inverse
            off = trend[matter] - plain @ at_points  # (s, m, 2)
            projected = off @ np.linalg.inv(gram)
            full = (projected @ weighted.transpose(0, 2, 1) + plain) @ self.y
            variance = 1 - np.einsum("mn,mn->m", plain, cross) + np.einsum("smk,smk->sm", projected, off)
            variance = np.maximum(variance, 0) + noise * (full / self.level_w) ** 2
            scale = self.rss[h, matter] / max(len(self.y) - 2, 1)
            w = weights[h, matter]
            first += w @ full
            second += w @ (full**2 + scale[:, None] * variance)
        return first, np.sqrt(np.maximum(second - first**2, 0))

    def shape_means(self, rows: NDArray[np.int64]) -> Array:
        """Posterior means (b, 5): ridge and ceiling in Hz, rise of V over the domain, length in Hz, noise ratio."""
        weights = self._single(rows)
        span = self.curve.high_hz - self.curve.low_hz
        by_shape, by_hyper = weights.sum(axis=0), weights.sum(axis=1)
        shape = by_shape.T @ self.shapes
        hyper = by_hyper.T @ np.array(self.hyper)
        clock = self.curve.low_hz + span * shape[:, :2]
        return np.column_stack([clock, shape[:, 2], hyper[:, 0] * span, hyper[:, 1]])


def _mixture_sd(weights: Array, offset: Array, variance: Array) -> Array:
    """Standard deviation (b,) of a mixture (h, s, b) whose parts lie ``offset`` from its mean."""
    return np.asarray(np.sqrt(np.einsum("hsb,hsb->b", weights, offset**2 + variance)))


def _matern(distance: Array, length: float) -> Array:
    """Matern 5/2 correlation."""
    d = np.sqrt(5) * np.abs(distance) / length
    return np.asarray((1 + d + d * d / 3) * np.exp(-d))
