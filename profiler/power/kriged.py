"""Trends with a correlated rest, everything about their shape integrated out. See docs/power.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiler.power.curve import Array, CrossFit, Curve, Predictive, left_out
from profiler.power.mixture import ATOMS, atoms, interval
from profiler.power.priors import PRIORS, KrigedPriors
from profiler.power.voices import SAME_ELSEWHERE, Misses, Voice

# Grids over what is not known, laid evenly (in the logarithm where a scale is meant); what has a say in the result is in priors.py.
_CEILINGS = (0.95, 0.9)  # where V may stop rising, in the domain
_RIDGES = tuple(np.linspace(0, 0.9, 10))
_RISES = tuple(np.geomspace(0.1, 8, 7))
_EXPONENTS = (1.0, 2.0, 3.0, 4.0, 6.0)
_JUMP_LENGTH = 1.0  # over the domain: steps come once in it, on average
_PAIRS = 128  # pairs of clocks at a time: what is computed of them stays in the processor's cache


@dataclass(frozen=True)
class Kriged:
    """P = P0 + c g(f) + r(f). The trend g is f V(f)^2, V flat below a ridge clock, rising linearly, flat again above a
    ceiling clock, or a plain power of f. The rest r is a Gaussian process for what the trend cannot follow, smooth (Matern 5/2) or with
    jumps (exponential, the covariance of steps at random places), or nothing; the noise is proportional to the watts. Below the ridge the voltage is one and the same, so power is a line there; above
    it a table of voltages acts that nobody knows: rest and noise may be larger there by a factor.

    No voltage is believed in that silicon has not: it rises to a few times what it is below the ridge at most, and no steeper than a power of the
    clock (``KrigedPriors``).

    P0 and c are integrated out (universal kriging; the restricted likelihood of Harville, 1974), and so are, on a grid, ridge,
    rise and its bend, ceiling, exponent, that factor, correlation length and noise, each weighted by its restricted likelihood given the
    points that are kept: no single shape has to be right. What means scatter by is believed to be near one of some usual figures (inverse gamma
    priors of the noise's variance), and a shape counts for as much as P0 and c are likely to be positive under it. What a new measurement may be is then a mixture of Student's t, and its 2.5 %
    and 97.5 % quantiles are the interval. A left-out clock is removed in closed form: with Q the
    precision matrix after the trend is projected out, its residual is (Q y)_S solved by Q_SS.

    Workloads of one chip share its table of voltages. What the others say of the shape (``Voice``) counts for one half of what is believed
    of it before the points, the even grid for the other half.
    """

    priors: KrigedPriors = PRIORS.kriged
    name: str = "kriged"
    summary: str = "ridge or power plus a correlated rest, averaged over shapes by likelihood"
    minimum_clocks: int = 3

    @property
    def degrees(self) -> int | None:
        return None

    def cross_fit(self, curve: Curve, siblings: Sequence[Voice] = ()) -> CrossFit:
        """``siblings``: other workloads of the same chip, heard over the same domain; a clock left out is left out of them as well."""
        n = len(curve)
        if not self._able(curve):
            nothing = np.full((n, n), np.nan)
            return CrossFit(nothing.diagonal().copy(), nothing, lambda f: np.full(len(f), np.nan), {})
        found = _AllLeftOut(curve, self.priors, self.minimum_clocks, siblings)
        bounds = {
            "ridge_hz": (curve.low_hz, curve.high_hz),
            "ceiling_hz": (curve.low_hz, curve.high_hz),
            "voltage_rise": (0.0, _RISES[-1]),
            "plain_power_share": (0.0, 1.0),
        }
        pair = np.maximum(found.pair_w, 0.0)
        return CrossFit(
            np.diag(pair).copy(),
            pair,
            lambda f: np.maximum(found.whole.said(f)[0], 0.0),
            dict(zip(_SHAPE_NAMES, found.values.T, strict=True)),
            bounds,
            Predictive(found.pair_sd_w, found.left_out_w, lambda f: found.whole.said(f)[1]),
        )

    def voice(self, curve: Curve) -> Voice | None:
        """What this workload says of its chip; None where the clocks are too few to say anything. Clocks nearer than ``SAME_ELSEWHERE`` are one."""
        curve = curve.merged(SAME_ELSEWHERE)
        if not self._able(curve):
            return None
        found = _AllLeftOut(curve, self.priors, self.minimum_clocks)
        if not np.isfinite(found.probability).all():
            return None
        off = np.abs(found.pair_w - curve.target_w) / np.maximum(found.pair_sd_w, 1e-9 * curve.target_w)
        return Voice(curve.frequency_hz, found.probability, Misses(curve.frequency_hz, off))

    def _able(self, curve: Curve) -> bool:
        return curve.high_hz > curve.low_hz and len(curve) >= self.minimum_clocks


class _AllLeftOut:
    """What the law says of a curve of n clocks with all of them, without each, and without each two; names as in ``CrossFit`` and
    ``Predictive``. ``values`` (1 + n, 4): means of the shapes. ``probability``: as in ``Voice``."""

    def __init__(self, curve: Curve, priors: KrigedPriors, minimum_clocks: int, siblings: Sequence[Voice] = ()) -> None:
        # Noise is proportional to watts, its grid relative to the sweep's own level. That level must not know a left-out point:
        # the lower median takes few values over all left-out sets, and each value is one pass.
        n = len(curve)
        shapes = _Shapes.grid(priors, curve.low_hz / curve.high_hz)
        if siblings:
            shapes = shapes.as_heard(siblings, curve.frequency_hz)
        mask, _ = left_out(n)
        order = np.argsort(curve.target_w, kind="stable")
        ranked = mask[:, order].cumsum(axis=1)
        middle = np.argmax(ranked >= np.ceil(mask.sum(1) / 2)[:, None], axis=1)
        level = curve.target_w[order][middle]
        of_row = np.searchsorted(np.unique(level), level)

        ii, jj = np.triu_indices(n, 1)
        self.pair_w = pair = np.full((n, n), np.nan)
        self.pair_sd_w = spread = np.full((n, n), np.nan)
        self.left_out_w = np.full((2, n), np.nan)
        self.values = np.full((1 + n, len(_SHAPE_NAMES)), np.nan)
        # Where too few clocks are left to say anything, what was believed before stands.
        self.probability = np.repeat(np.exp(shapes.log_prior[:1]).astype(np.float32), len(mask), axis=0)
        for which, value in enumerate(np.unique(level)):
            twos = np.flatnonzero(of_row[1 + n :] == which) if n - 2 >= minimum_clocks else np.zeros(0, np.int64)
            kriging = _KrigingPass(curve, priors, shapes, float(value), ii[twos], jj[twos])
            (pair[jj[twos], ii[twos]], pair[ii[twos], jj[twos]]), both = kriging.without_two
            spread[jj[twos], ii[twos]], spread[ii[twos], jj[twos]] = both
            self.probability[1 + n + twos] = kriging.shapes_without_two.T
            ones = np.flatnonzero(of_row[1 : 1 + n] == which)
            if n - 1 >= minimum_clocks and len(ones):
                pair[ones, ones], spread[ones, ones], self.left_out_w[:, ones], without = kriging.without_one(ones)
                self.probability[1 + ones] = without.T
                self.values[1 + ones] = kriging.shape_means(without)
            if of_row[0] == which:
                self.whole = kriging
                of_all = kriging.shapes_of_all()
                self.probability[0] = of_all
                self.values[0] = kriging.shape_means(of_all[:, None])[0]


_SHAPE_NAMES = ("ridge_hz", "ceiling_hz", "voltage_rise", "plain_power_share")


@dataclass(frozen=True)
class _Shapes:
    """Shapes of the trend, one a row (s,): ``exponent`` 0 means ridge, rise with its bend, and ceiling.

    ``log_prior`` (sets or 1, s): what is believed of them before the points, in one row, or in a row for each set of clocks left out."""

    ridge: Array
    ceiling: Array
    rise: Array
    bend: Array
    exponent: Array
    rougher: Array
    log_prior: Array

    @classmethod
    def grid(cls, priors: KrigedPriors, low: float) -> _Shapes:
        """All that may be where the lowest clock is ``low`` of the highest."""

        def exists(ratio: float, ridge: float, ceiling: float) -> bool:
            """Whether silicon rises to so many times the voltage below the ridge, over so many clocks."""
            clocks = (low + ceiling * (1 - low)) / max(low + ridge * (1 - low), 1e-9)
            return bool(ratio <= min(priors.voltage_ratio, clocks**priors.voltage_power))

        ceilings = [(1.0, 1 - priors.ceiling)]
        if priors.ceiling > 0:
            ceilings += [(ceiling, priors.ceiling / len(_CEILINGS)) for ceiling in _CEILINGS]
        ridges = [
            (ridge, ceiling, rise, bend, 0.0, rougher, prior)
            for ceiling, prior in ceilings
            for ridge in _RIDGES
            for rise in _RISES
            if ridge < ceiling - 0.02
            for bend in priors.bends
            if exists(1 + rise * (ceiling - ridge) ** bend, ridge, ceiling)
            for rougher in priors.rougher
        ]
        plain = [(0.0, 1.0, 0.0, 1.0, exponent, 1.0, 1.0) for exponent in _EXPONENTS]
        table = np.array(ridges + plain)
        prior = table[:, 6]
        plain_share = priors.plain if ridges else 1.0  # in a range of a percent no voltage rises
        prior[: len(ridges)] *= (1 - plain_share) / max(prior[: len(ridges)].sum(), 1e-300)
        prior[len(ridges) :] *= plain_share / prior[len(ridges) :].sum()
        ridge, ceiling, rise, bend, exponent, rougher = table[:, :6].T
        return cls(ridge, ceiling, rise, bend, exponent, rougher, np.log(prior)[None, :])

    def as_heard(self, voices: Sequence[Voice], frequency_hz: Array) -> _Shapes:
        """These shapes, believed in by one half, and as other workloads of the chip say without clocks (m,), all alike, by the other half."""
        heard: Array | float = 0.0
        for voice in voices:
            heard = heard + voice.without(frequency_hz).astype(np.float64) / len(voices)
        return replace(self, log_prior=np.log(0.5 * np.exp(self.log_prior) + 0.5 * heard))

    def believed(self, sets: NDArray[np.int64]) -> Array:
        """``log_prior`` where those sets (b,) are left out: (s, b), or (s, 1) where it is the same for all."""
        return np.asarray(self.log_prior[sets if len(self.log_prior) > 1 else [0]].T)

    def trend(self, u: Array, low: float) -> Array:
        """(s, m) at places u (m,) in the domain, scaled to rise from 0 to 1 over it; ``low`` is its lowest clock over its highest."""
        ends = self._raw(np.array([0.0, 1.0]), low)
        return np.asarray((self._raw(u, low) - ends[:, :1]) / (ends[:, 1:] - ends[:, :1]))

    def at_rest(self, low: float) -> Array:
        """``trend`` at a clock of zero, (s,): negative."""
        ends = self._raw(np.array([0.0, 1.0]), low)
        return np.asarray(-ends[:, 0] / (ends[:, 1] - ends[:, 0]))

    def _raw(self, u: Array, low: float) -> Array:
        above = np.clip(u[None, :], self.ridge[:, None], self.ceiling[:, None]) - self.ridge[:, None]
        volts = 1 + self.rise[:, None] * above ** self.bend[:, None]
        x = (low + u * (1 - low))[None, :]
        exponent = self.exponent[:, None]
        return np.asarray(np.where(exponent > 0, np.maximum(x, 0.0) ** np.maximum(exponent, 1.0), x * volts**2))

    def scale(self, u: Array) -> Array:
        """(s, m): how much larger rest and noise are at u (m,): 1 up to the ridge, growing in a line to ``rougher`` at the top."""
        ridge, rougher = self.ridge[:, None], self.rougher[:, None]
        return np.asarray(1 + (rougher - 1) * np.maximum(u[None, :] - ridge, 0) / (1 - ridge))


class _Rest(NamedTuple):
    """What the trend cannot follow: a Gaussian process over distances in the domain, smooth or with jumps, nothing where ``length`` is 0.
    ``ratio``: the noise's variance over the rest's (where there is none: over one)."""

    length: float
    ratio: float
    jumps: bool
    log_prior: float

    @classmethod
    def grid(cls, priors: KrigedPriors) -> list[_Rest]:
        """All that is believed in, evenly but for ``priors.jumping``; the last is none: the trend is exact, all else is noise."""
        smooth = [(length, ratio) for length in priors.lengths for ratio in priors.noise] + [(0.0, 1.0)]
        rests = [cls(*each, False, math.log((1 - priors.jumping) / len(smooth))) for each in smooth]
        if priors.jumping:
            log_prior = math.log(priors.jumping / len(priors.noise))
            rests[:0] = [cls(_JUMP_LENGTH, ratio, True, log_prior) for ratio in priors.noise]
        return rests

    def correlation(self, distance: Array) -> Array:
        if not self.length:
            return np.zeros_like(distance)
        d = np.abs(distance) / self.length
        if self.jumps:
            return np.asarray(np.exp(-d))
        d = np.sqrt(5) * d
        return np.asarray((1 + d + d * d / 3) * np.exp(-d))


class _KrigingPass:
    """All shapes of the trend (s) and all that the rest may be (h) for one reference level of the noise, in watts."""

    def __init__(
        self,
        curve: Curve,
        priors: KrigedPriors,
        shapes: _Shapes,
        level_w: float,
        i: NDArray[np.int64],
        j: NDArray[np.int64],
    ) -> None:
        """``without_two`` becomes the watts (2, b) at clocks i (b,) < j (b,), left out together, and what a measurement there
        scatters by (2, b); ``shapes_without_two`` the probabilities (s, b) of the shapes."""
        self.curve, self.priors, self.level_w = curve, priors, level_w
        self._said: dict[bytes, tuple[Array, Array]] = {}
        self.shapes = shapes
        self.low = curve.low_hz / curve.high_hz
        self.u = self._place(curve.frequency_hz)
        self.y = y = curve.target_w
        # One row of a repeated clock is as noisy as any other, so the mean of r rows has 1/r of the variance.
        noise = np.diag(1 / (curve.weight * level_w**2))
        self.rests = _Rest.grid(priors)
        scale = self.shapes.scale(self.u)
        trend = np.stack([1 / scale, self.shapes.trend(self.u, self.low) / scale], axis=2)  # (s, n, 2)
        self.scaled_trend, self.scaled_y = trend, y / scale
        log_scale = np.log(scale).sum(axis=1)
        n, count = len(y), len(scale)
        # Rows within a clock tell of the noise alone: their squares over the noise's unit, its log determinant, their freedom.
        self.repeats = curve.repeats
        row_noise = curve.rows * np.diag(noise)
        self.inverse = np.empty((len(self.rests), n, n))
        self.log_base = np.empty((len(self.rests), count))
        self.q_diagonal, self.qy = np.empty((2, len(self.rests), count, n))
        self.within, self.log_within = np.zeros((2, len(self.rests), count, n))
        # What is believed of the noise, as squares that were seen before any point, in the unit of the rest: (k, h).
        ratios = np.array([rest.ratio for rest in self.rests])
        sizes, worth = priors.scatter
        self.squares_before = worth * (np.array(sizes)[:, None] * level_w) ** 2 / ratios
        at_rest = self.shapes.at_rest(self.low)
        self.positive: list[
            tuple[Array, Array, Array]
        ] = []  # P0 and c (s, 2), what each point adds (s, n, 2), variances (s, 2)
        pairs = _Streamed(count, len(i))
        sets = n + 1 + i * (2 * n - i - 3) // 2 + j - 1
        for h, rest in enumerate(self.rests):
            inverse = np.linalg.inv(rest.correlation(self.u[:, None] - self.u[None, :]) + rest.ratio * noise)
            self.inverse[h] = inverse = (inverse + inverse.T) / 2
            weighted = inverse @ trend
            gram = trend.transpose(0, 2, 1) @ weighted
            pull = np.linalg.solve(gram, weighted.transpose(0, 2, 1))
            q = inverse - weighted @ pull
            q /= scale[:, :, None] * scale[:, None, :]
            half_log_det = (np.linalg.slogdet(gram)[1] - np.linalg.slogdet(inverse)[1]) / 2 + log_scale
            self.log_base[h] = rest.log_prior - half_log_det
            self.q_diagonal[h], self.qy[h] = np.einsum("sii->si", q), q @ y
            if priors.positive:
                # From the trend's two factors to P0 and c: P0 is what the trend says at a clock of zero.
                turn = np.stack([np.ones(count), at_rest, np.zeros(count), np.ones(count)], 1).reshape(-1, 2, 2)
                pull = turn @ pull / scale[:, None, :]
                spread = turn @ np.linalg.inv(gram) @ turn.transpose(0, 2, 1)
                self.positive.append((pull @ y, pull.transpose(0, 2, 1), np.einsum("skk->sk", spread)))
            if self.repeats.any():
                unit = rest.ratio * row_noise * scale**2
                self.within[h], self.log_within[h] = curve.scatter / unit, self.repeats * np.log(unit) / 2
            for part in (slice(k, k + _PAIRS) for k in range(0, len(i), _PAIRS)):
                log, residual, variance = self._two(h, q, i[part], j[part])
                pairs.add(part, log + shapes.believed(sets[part]), residual, variance)
        self.rss = np.maximum(self.qy @ y, 0)  # (h, s)
        off, deviation = pairs.moments()
        self.without_two = (y[i] - off[0], y[j] - off[1]), (deviation[0], deviation[1])
        self.shapes_without_two = pairs.probability()

    def _place(self, frequency_hz: Array) -> Array:
        return (frequency_hz - self.curve.low_hz) / (self.curve.high_hz - self.curve.low_hz)

    def _noise(self, rss: Array, freedom: Array, squares_before: Array) -> tuple[Array, Array]:
        """Log likelihood of the squares left over, ``rss`` (...), and the variance in the unit of the rest, over all k sizes of noise that are
        believed in: ``squares_before`` (k, ...)."""
        # Rounding leaves a floor in rss that must not decide between shapes that all fit exactly.
        floor = 1e-20 * float(self.y @ self.y)
        worth = self.priors.scatter[1]
        log, variance = np.full(rss.shape, -np.inf), np.zeros(rss.shape)
        for seen in squares_before:
            each = -freedom / 2 * np.log(np.maximum(rss, floor) + floor + seen)
            if worth:
                each = each + worth / 2 * np.log(seen)
            total = np.logaddexp(log, each)
            variance += (np.exp(each - total)) * ((rss + seen) / np.maximum(freedom, 1.0) - variance)
            log = total
        return log, variance

    @staticmethod
    def _log_positive(value: Array, variance: Array, rate: Array) -> Array:
        """Log probability (...) that P0 and c (..., 2) are positive: each for itself, as if normal, ``rate`` (...) the variances' unit."""
        from scipy.special import log_ndtr

        with np.errstate(all="ignore"):  # watts that span many decades: such a shape counts for nothing
            return np.asarray(log_ndtr(value / np.sqrt((rate[..., None] + 1e-300) * variance)).sum(axis=-1))

    def _freedom(self, *without: NDArray[np.int64]) -> Array:
        """Rows kept, less the two of the trend, and what the belief of the noise is worth."""
        freedom = np.asarray(len(self.y) - 2 + self.repeats.sum())
        for clocks in without:
            freedom = freedom - 1 - self.repeats[clocks]
        return np.asarray(freedom + self.priors.scatter[1], dtype=np.float64)

    def _two(self, h: int, q: Array, i: NDArray[np.int64], j: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Log likelihoods (s, b), and residuals and variances (2, s, b) at clocks i and j without both."""
        a, d, b = self.q_diagonal[h][:, i], self.q_diagonal[h][:, j], q[:, i, j]
        det = np.maximum(a * d - b * b, 1e-300)
        qi, qj = self.qy[h][:, i], self.qy[h][:, j]
        residual = np.stack([d * qi - b * qj, a * qj - b * qi]) / det
        rss = (self.qy[h] @ self.y)[:, None] - qi * residual[0] - qj * residual[1]
        rss = np.maximum(rss, 0)
        log = self.log_base[h][:, None] - np.log(det) / 2
        if self.repeats.any():
            within, log_within = self.within[h], self.log_within[h]
            rss = rss + within.sum(1)[:, None] - within[:, i] - within[:, j]
            log = log - (log_within.sum(1)[:, None] - log_within[:, i] - log_within[:, j])
        likely, rate = self._noise(rss, self._freedom(i, j), self.squares_before[:, h])
        log = log + likely
        if self.priors.positive:
            value, pull, variance = self.positive[h]
            at_i, at_j = pull[:, i], pull[:, j]
            more = at_i**2 * d[..., None] - 2 * at_i * at_j * b[..., None] + at_j**2 * a[..., None]
            gone = at_i * residual[0, ..., None] + at_j * residual[1, ..., None]
            log = log + self._log_positive(value[:, None] - gone, variance[:, None] + more / det[..., None], rate)
        return log, residual, np.stack([d, a]) / det * rate

    def _all(self) -> tuple[Array, Array]:
        """Log weights (h, s) of every shape given all clocks, and variances in the unit of the rest."""
        rss = self.rss + self.within.sum(axis=2)
        likely, rate = self._noise(rss, self._freedom(), self.squares_before[:, :, None])
        log = self.log_base + self.shapes.believed(np.zeros(1, np.int64))[:, 0] - self.log_within.sum(axis=2) + likely
        if self.priors.positive:
            for h, (value, _, variance) in enumerate(self.positive):
                log[h] += self._log_positive(value, variance, rate[h])
        return log, rate

    def without_one(self, i: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
        """At clocks i, each left out alone: watts (b,), what a measurement there scatters by (b,), its 95 % interval (2, b), and the
        probabilities (s, b) of the shapes."""
        q = self.q_diagonal[:, :, i]
        residual = self.qy[:, :, i] / q
        rss = np.maximum(self.rss[:, :, None] - self.qy[:, :, i] * residual, 0)
        log = self.log_base[:, :, None] + self.shapes.believed(1 + i) - np.log(q) / 2
        if self.repeats.any():
            rss = rss + self.within.sum(axis=2)[:, :, None] - self.within[:, :, i]
            log = log - (self.log_within.sum(axis=2)[:, :, None] - self.log_within[:, :, i])
        freedom = self._freedom(i)
        likely, rate = self._noise(rss, freedom, self.squares_before[:, :, None, None])
        log = log + likely
        if self.priors.positive:
            for h, (value, pull, variance) in enumerate(self.positive):
                more = pull[:, i] ** 2 / q[h, ..., None]
                gone = pull[:, i] * residual[h, ..., None]
                log[h] += self._log_positive(value[:, None] - gone, variance[:, None] + more, rate[h])
        watts = self.y[i] - residual
        width = np.sqrt(rate / q)
        flat = (-1, len(i))
        weights = _normalised(log)
        mean = np.einsum("hsb,hsb->b", weights, watts)
        between = np.einsum("hsb,hsb->b", weights, (watts - mean) ** 2)
        deviation = np.sqrt(between + np.einsum("hsb,hsb->b", weights, width) ** 2)
        drawn = atoms(weights.reshape(flat))
        held = interval(
            np.take_along_axis(watts.reshape(flat), drawn, 0),
            np.take_along_axis(width.reshape(flat), drawn, 0),
            freedom,
        )
        return mean, deviation, held, weights.sum(axis=0)

    def shapes_of_all(self) -> Array:
        """Probabilities (s,) of the shapes given all clocks."""
        return np.asarray(_normalised(self._all()[0][:, :, None]).sum(axis=0)[:, 0])

    def said(self, frequency_hz: Array) -> tuple[Array, Array]:
        """``predict``, remembered: curve, average and interval are asked for at the same clocks."""
        key = frequency_hz.tobytes()
        if key not in self._said:
            self._said = {key: self.predict(frequency_hz)}
        return self._said[key]

    def predict(self, frequency_hz: Array) -> tuple[Array, Array]:
        """Watts (m,) at clocks (m,), fitted to all clocks, and the 95 % interval (2, m) of a new measurement."""
        many = 256
        if len(frequency_hz) > many:
            parts = [self.predict(frequency_hz[k : k + many]) for k in range(0, len(frequency_hz), many)]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts], axis=1)
        mean, watts, width = self._mixture(frequency_hz)
        return mean, interval(watts, width, self._freedom())

    def teaching(self, frequency_hz: Array) -> Array:
        """How much a measurement at each of clocks (m,) is expected to lower the sum over all of them of squared relative doubt:
        with C the covariance of the curve and N the noise, the sum over x of C(x, c)^2 / (C(c, c) + N(c)) / P(x)^2."""
        covariance = np.zeros((len(frequency_hz), len(frequency_hz)))
        mean, watts, width = self._mixture(frequency_hz, covariance)
        off = watts - watts.mean(axis=0)
        covariance += off.T @ off / len(off)
        variance = off.var(axis=0) + (width**2).mean(axis=0)
        relative = covariance / np.maximum(mean, 1e-300)[:, None]
        return np.asarray((relative**2).sum(axis=0) / variance)

    def _mixture(self, frequency_hz: Array, covariance: Array | None = None) -> tuple[Array, Array, Array]:
        """Mean watts (m,) of all shapes, and watts and widths (ATOMS, m) of atoms. With ``covariance`` (m, m) the atoms' mean
        covariance is added to it, and the mean watts are the atoms'."""
        u = self._place(frequency_hz)
        log, rates = self._all()
        weights = _normalised(log[:, :, None])[:, :, 0]
        drawn = np.bincount(atoms(weights.reshape(-1, 1))[:, 0], minlength=log.size).reshape(log.shape)
        # Most shapes have no weight to speak of and are not worth their algebra.
        weights = np.where(weights > 1e-10, weights, 0.0) if covariance is None else drawn.astype(float)
        weights /= weights.sum()
        level = self.shapes.trend(u, self.low)
        scale = self.shapes.scale(u)
        mean = np.zeros(len(u))
        watts, widths = [], []
        for h, rest in enumerate(self.rests):
            matter = np.flatnonzero((weights[h] > 0) | (drawn[h] > 0))
            if not len(matter):
                continue
            inverse, at_points = self.inverse[h], self.scaled_trend[matter]
            weighted = inverse @ at_points
            gram = at_points.transpose(0, 2, 1) @ weighted
            cross = rest.correlation(u[:, None] - self.u[None, :])
            plain = cross @ inverse
            here = scale[matter]
            trend = np.stack([1 / here, level[matter] / here], axis=2)
            off = trend - plain @ at_points  # (s, m, 2)
            projected = off @ np.linalg.inv(gram)
            full = here * np.einsum(
                "smn,sn->sm", projected @ weighted.transpose(0, 2, 1) + plain, self.scaled_y[matter]
            )
            mean += weights[h, matter] @ full
            some = np.flatnonzero(drawn[h, matter])
            if len(some):
                variance = (1.0 if rest.length else 0.0) - np.einsum("mn,mn->m", plain, cross)
                variance = variance + np.einsum("smk,smk->sm", projected[some], off[some])
                noise = rest.ratio * (full[some] / self.level_w) ** 2
                rate = rates[h, matter[some]]
                width = np.sqrt(rate[:, None] * (np.maximum(variance, 0) + noise)) * here[some]
                times = drawn[h, matter[some]]
                if covariance is not None:
                    kernel = rest.correlation(u[:, None] - u[None, :])
                    share = np.sqrt(rate * times / ATOMS)[:, None] * here[some]
                    covariance += (share.T @ share) * (kernel - plain @ cross.T)
                    covariance += np.einsum(
                        "smk,slk->ml", projected[some] * share[:, :, None], off[some] * share[:, :, None], optimize=True
                    )
                watts.append(np.repeat(full[some], times, axis=0))
                widths.append(np.repeat(width, times, axis=0))
        return mean, np.concatenate(watts), np.concatenate(widths)

    def shape_means(self, by_shape: Array) -> Array:
        """Means (b, 4) under probabilities (s, b) of the shapes: ridge and ceiling in Hz and the rise of V over the domain (of
        the shapes that have them), and the share of the plain powers."""
        span = self.curve.high_hz - self.curve.low_hz
        ridged = self.shapes.exponent == 0
        share = by_shape[ridged].sum(axis=0)
        table = np.column_stack([self.shapes.ridge, self.shapes.ceiling, self.shapes.rise])[ridged]
        means = (by_shape[ridged].T @ table) / np.maximum(share, 1e-300)[:, None]
        clock = self.curve.low_hz + span * means[:, :2]
        return np.column_stack([clock, means[:, 2], 1 - share])


def teach_most(
    frequency_hz: ArrayLike, power_w: ArrayLike, supported_hz: ArrayLike, sd_w: ArrayLike | None = None
) -> float:
    """The supported clock in Hz where the next measurement teaches most, given rows (n,) of clocks and watts so far, and what each
    would scatter by if it were measured again (NaN or None: unknown).

    The ends of ``supported_hz`` come first, then the middle; from three clocks on it is where a measurement is expected to lower the
    mean squared relative doubt about the curve most. A clock is never proposed twice: raises ValueError where all have
    been measured. Pure, and a matter of milliseconds.
    """
    f, p = np.asarray(frequency_hz, dtype=float), np.asarray(power_w, dtype=float)
    supported = np.unique(np.asarray(supported_hz, dtype=float))
    # The measured clock may be a little off the one asked for: nearer to a supported one than to the next means that one.
    near = np.array([int(np.abs(supported - hz).argmin()) for hz in f], dtype=np.int64)
    left = np.setdiff1d(np.arange(len(supported)), near)
    if not len(left):
        raise ValueError(f"all {len(supported)} supported clocks have been measured")
    for end in (0, len(supported) - 1):
        if end in left:
            return float(supported[end])
    if len(left) > _CANDIDATES:
        left = left[np.linspace(0, len(left) - 1, _CANDIDATES).round().astype(int)]
    if len(np.unique(f)) < 3:
        gap = np.abs(supported[left][:, None] - f[None, :]).min(axis=1)
        return float(supported[left[np.argmax(gap)]])
    known = None if sd_w is None else np.asarray(sd_w, dtype=float)
    curve = Curve.of(f, p, (float(supported[0]), float(supported[-1])), known)
    none = np.zeros(0, dtype=np.int64)
    level = float(np.sort(curve.target_w)[(len(curve) - 1) // 2])
    kriging = _KrigingPass(
        curve, PRIORS.kriged, _Shapes.grid(PRIORS.kriged, curve.low_hz / curve.high_hz), level, none, none
    )
    return float(supported[left[np.argmax(kriging.teaching(supported[left]))]])


_CANDIDATES = 60


class _Streamed:
    """Means and deviations (2, b) of residuals over shapes that come in portions, with weights known only up to a common factor, and the
    probabilities (s, b) of the shapes."""

    def __init__(self, shapes: int, count: int) -> None:
        self.top = np.full(count, -np.inf)
        self.sums = np.zeros((7, count))
        self.by_shape = np.zeros((shapes, count))

    def add(self, part: slice, log: Array, residual: Array, variance: Array) -> None:
        """A portion for those columns ``part`` (b,): log weights (s, b), residuals and variances (2, s, b)."""
        top = np.maximum(self.top[part], log.max(axis=0))
        weight = np.exp(log - top)
        portion = [
            weight.sum(axis=0)[None],
            np.einsum("sb,ksb->kb", weight, residual),
            np.einsum("sb,ksb->kb", weight, residual**2),
            np.einsum("sb,ksb->kb", weight, np.sqrt(variance)),
        ]
        faded = np.exp(self.top[part] - top)
        self.sums[:, part] = self.sums[:, part] * faded + np.concatenate(portion)
        self.by_shape[:, part] = self.by_shape[:, part] * faded + weight
        self.top[part] = top

    def probability(self) -> Array:
        return np.asarray(self.by_shape / self.sums[0])

    def moments(self) -> tuple[Array, Array]:
        mean = self.sums[1:3] / self.sums[0]
        between = np.maximum(self.sums[3:5] / self.sums[0] - mean**2, 0)
        return mean, np.sqrt(between + (self.sums[5:7] / self.sums[0]) ** 2)


def _normalised(log: Array) -> Array:
    weight = np.exp(log - log.max(axis=(0, 1)))
    return np.asarray(weight / weight.sum(axis=(0, 1)))
