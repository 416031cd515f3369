"""Times against the clock: a + b/f for every segment, and a curve with an interval for clocks that were never visited.

The law. t(f) = a + b/f has two parts: b cycles of the core, and a seconds that the clock does not change. delta_eff = FLOPs / (b cores)
is what the letter sets to 2. It is only about right: a kernel that computes at low clocks waits for memory at high ones.

The curve. Written in cycles, u(f) = t(f) f, the law is the straight line b + a f, and a kernel that goes over from computing to waiting is
a gentle bend of it. So predictions follow the cubic smoothing spline of u over f: where the law holds they are the law, elsewhere they bend
as far as the times ask for, and beyond the visited clocks they go on as a + b/f.

The interval. Such a spline is the mean of a straight line with unknown coefficients plus tau times an integrated Wiener process (Wahba 1978,
J. R. Stat. Soc. B 40, 364), which also says how far off it may be: little near a visited clock, much far away. Two figures are estimated for each kind
of segment and direction by restricted likelihood: tau (with weak prior: over the visited clocks a row bends by about a tenth) and the
noise (prior: what the spread of the samples says). Clocks left out one at a time then show whether the errors are as large as stated; where
they are larger, the intervals widen by as much.

Pure numbers: no torch, no hardware.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from profiler.power.curve import SAME_CLOCK, clock_groups
from profiler.profile import Profile, SegmentTimeFit, Stat, TimeFit, TimeInterval, TimeLaw

Floats = npt.NDArray[np.float64]
Direction = Literal["forward", "backward", "optimizer"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "optimizer")

LEAST_SPAN = 1.05  # highest over lowest clock
MOST_KNOTS = 64  # more clocks than this are averaged with their neighbours
_ROWS = 5  # of a group of like segments, this many are looked at for tau and noise
_LEAST_NOISE = 2e-4  # relative; no stopwatch is better
_UNKNOWN_NOISE = 0.01  # where every time was taken once
_TAU = 0.3  # typical bend: second derivative of u / mean(u) over the span of the clocks
_TAUS = np.geomspace(1e-3, 10.0, 17)
_RATIOS = np.array([0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.0])  # of the noise over what the samples say
_TAU_LOG_SD, _RATIO_LOG_SD = 1.5, 0.7
_WITHIN_LOG_SD = 0.7  # how much a group may differ from all of them
_PRIOR_FREEDOM = 5.0
_NEGLIGIBLE = 1e-4  # a group this small beside the step is mostly the stopwatch's noise and says nothing about others


def cannot_fit(profile: Profile) -> str | None:
    """Why times cannot be followed over the clock, in one sentence; None where they can."""
    if not profile.timings:
        return "no layers were timed"
    clocks = [c for c in (t.frequency_hz or t.requested_hz for t in profile.timings) if c is not None]
    if not clocks:
        return "the clock at which the layers were timed is not known"
    low, high = min(clocks), max(clocks)
    if high < low * (1 + SAME_CLOCK):
        return (
            f"layers were timed at one clock ({low / 1e6:.0f} MHz); two at least are needed, five to eight are better"
        )
    if high < low * LEAST_SPAN:
        return (
            f"layers were timed at {low / 1e6:.0f} to {high / 1e6:.0f} MHz only: clocks this near to each other "
            "do not show how times follow the clock"
        )
    return None


def fit_times(profile: Profile) -> TimeFit | None:
    """Follow the times of ``profile.timings`` over their clocks (the measured ones, else those asked for).

    None where that cannot be done; `cannot_fit` says why. Times that do not follow the clock are fitted all the same, with warnings.
    """
    if cannot_fit(profile) is not None:
        return None
    data = _Data.of(profile)
    kinds = [s.kind for s in profile.segments]
    groups: dict[tuple[Any, Any], list[int]] = {}
    for d, direction in enumerate(DIRECTIONS):
        for s, kind in enumerate(kinds):
            groups.setdefault((kind, direction), []).append(len(DIRECTIONS) * s + d)
    groups["step", "step"] = [len(data.seconds) - 1]
    grid = _interval_grid(data.hz, profile)
    process = _Process(data.hz, grid)
    choices = {key: _Group(process, data, rows) for key, rows in groups.items() if data.seconds[rows].any()}
    weighty = [g.score for g in choices.values() if g.mean_s > _NEGLIGIBLE * data.seconds[-1].mean()]
    overall = np.sum(weighty, axis=0) if weighty else np.zeros((len(_TAUS), len(_RATIOS)))
    best = np.unravel_index(int(np.argmax(overall)), overall.shape)
    curve = data.seconds.copy()
    errors_pct: list[float | None] = [None] * len(curve)
    intervals: list[TimeInterval] = []
    for (kind, direction), group in choices.items():
        tau, noise = group.settle(float(_TAUS[best[0]]), float(_RATIOS[best[1]]))
        half_width = _smooth(process, data, group.rows, tau, noise, curve, errors_pct)
        intervals.append(
            TimeInterval(
                kind=kind,
                direction=direction,
                half_width_pct=[min(round(float(h), 3), 1e6) for h in 100 * half_width],
            )
        )
    flops = [f for row in profile.flops.segments for f in (row.forward_flops, row.backward_flops, 0.0)]
    flops.append(sum(flops))
    laws = [
        _law(data, row, flops[row], profile.hardware.cores, curve[row], errors_pct[row])
        for row in range(len(data.seconds))
    ]
    basis = profile.timings[0].root
    for timing in profile.timings:
        basis = basis if timing.root == "measured" else timing.root
    return TimeFit(
        # Everything that comes out of an emulated run says so at first sight, also what was fitted to it.
        provenance="emulated" if basis == "emulated" else "fitted",
        basis=basis,
        note="a + b/f by weighted least squares; predictions by a natural cubic spline of cycles over the clock",
        clocks_hz=[float(f) for f in data.hz],
        segments=[
            SegmentTimeFit(forward=laws[i], backward=laws[i + 1], optimizer=laws[i + 2])
            for i in range(0, len(laws) - 1, len(DIRECTIONS))
        ],
        step=laws[-1],
        interval_hz=[float(f) for f in grid],
        intervals=intervals,
        warnings=_warnings(data),
    )


@dataclass(frozen=True)
class Prediction:
    """Seconds with the 95 % interval for a new measurement, at clocks (F,). Segment arrays are (segments, 3, F): forward, backward, optimizer.

    The interval of a step is its own, not the sum of its parts' (their errors partly cancel).
    """

    frequency_hz: Floats
    median_s: Floats
    low_s: Floats
    high_s: Floats
    step_median_s: Floats
    step_low_s: Floats
    step_high_s: Floats


def predict(profile: Profile, frequency_hz: npt.ArrayLike) -> Prediction:
    """Times at clocks in Hz (F,) by ``profile.time_fit``, which must be there. Raises ValueError where it is not."""
    fit = profile.time_fit
    if fit is None:
        raise ValueError(f"profile {profile.name}: no field time_fit")
    hz = np.atleast_1d(np.asarray(frequency_hz, dtype=float))
    laws = [getattr(row, direction) for row in fit.segments for direction in DIRECTIONS]
    median = fit.predict_s(laws, hz).reshape(len(fit.segments), len(DIRECTIONS), len(hz))
    half = np.array([[half_width(fit, s.kind, direction, hz) for direction in DIRECTIONS] for s in profile.segments])
    step, step_half = fit.predict_s([fit.step], hz)[0], half_width(fit, "step", "step", hz)
    return Prediction(
        hz,
        median,
        np.maximum(median * (1 - half), 0.0),
        median * (1 + half),
        step,
        np.maximum(step * (1 - step_half), 0.0),
        step * (1 + step_half),
    )


def half_width(fit: TimeFit, kind: str, direction: str, hz: Floats) -> Floats:
    """Relative half width of the interval, (F,) at clocks (F,) in Hz; beyond the fit's own clocks it grows on as it grew last."""
    percent = fit.half_width_pct(kind, direction)
    if percent is None:
        return np.zeros_like(hz)
    grid, half = np.array(fit.interval_hz), np.array(percent) / 100
    inside = np.interp(hz, grid, half)
    down = half[0] + np.maximum((half[0] - half[1]) / (grid[1] - grid[0]), 0.0) * (grid[0] - hz)
    up = half[-1] + np.maximum((half[-1] - half[-2]) / (grid[-1] - grid[-2]), 0.0) * (hz - grid[-1])
    return np.where(hz < grid[0], down, np.where(hz > grid[-1], up, inside))


# ------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class _Data:
    """Rows: each segment's forward, backward, optimizer in turn, and last the whole. Clocks (K,), the others (rows, K).

    ``noise`` is the relative standard deviation of each median by the spread of its samples; NaN where it was taken once.
    """

    hz: Floats
    seconds: Floats
    noise: Floats

    @staticmethod
    def of(profile: Profile) -> _Data:
        kept = [t for t in profile.timings if t.frequency_hz is not None or t.requested_hz is not None]
        hz = np.array([float(t.frequency_hz or t.requested_hz or 0.0) for t in kept])
        stats = [[getattr(row, d) for row in t.segments for d in DIRECTIONS] for t in kept]
        seconds = np.array([[s.median_s for s in row] for row in stats]).T
        sd = np.array([[_median_sd(s) for s in row] for row in stats]).T
        seconds = np.vstack([seconds, seconds.sum(0)])
        total = np.sqrt(np.nansum(sd**2, axis=0))
        sd = np.vstack([sd, np.where(np.isfinite(sd).any(0), total, np.nan)])
        order = np.argsort(hz, kind="stable")
        hz, seconds, sd = hz[order], seconds[:, order], sd[:, order]
        owner = _merged(hz)
        count = np.bincount(owner)
        merge = np.zeros((len(hz), len(count)))
        merge[np.arange(len(hz)), owner] = 1.0 / count[owner]
        level = np.maximum(seconds, 0.05 * seconds.mean(1, keepdims=True))
        relative = np.divide(sd, level, out=np.full_like(sd, np.nan), where=level > 0)
        variance = np.where(np.isfinite(relative), relative, 0.0) ** 2 @ merge / count
        variance[~np.isfinite(relative).all(1)] = np.nan
        return _Data(hz @ merge, seconds @ merge, np.sqrt(variance))

    def level(self, rows: Sequence[int] | slice) -> Floats:
        """The times with a floor, to divide by: a row may have zeros."""
        seconds = self.seconds[rows]
        floor: Floats = np.maximum(0.05 * seconds.mean(1, keepdims=True), 1e-12)
        return np.maximum(seconds, floor)


def _merged(hz: Floats) -> npt.NDArray[np.intp]:
    """For each ascending clock the number of its knot: those that are the same, or too many, share one."""
    tolerance = SAME_CLOCK
    while True:
        owner = clock_groups(hz, tolerance)
        if owner[-1] < MOST_KNOTS:
            return owner
        tolerance *= 1.5


def _median_sd(stat: Stat) -> float:
    """Standard deviation of the median of n readings by their interquartile range; NaN where one reading tells nothing."""
    if stat.samples < 2:
        return float("nan")
    return stat.iqr_s / _iqr_in_sds(stat.samples) * math.sqrt(1.57 / (stat.samples + 0.57))


def _iqr_in_sds(samples: int) -> float:
    """The interquartile range of n normal readings, expected, in standard deviations (1.349 for many; Blom's normal scores)."""
    place = 0.75 * (samples - 1)
    below, part = int(place), place - int(place)
    scores = [NormalDist().inv_cdf((min(i, samples - 1) + 1 - 0.375) / (samples + 0.25)) for i in (below, below + 1)]
    return float(2 * (scores[0] * (1 - part) + scores[1] * part))


# ------------------------------------------------------------------------------------------------------------ curve


class _Process:
    """The integrated Wiener process over the clocks, in units of their span."""

    def __init__(self, hz: Floats, grid_hz: Floats) -> None:
        low, span = min(hz[0], grid_hz[0]), hz[-1] - hz[0]
        self.z, self.grid = (hz - low) / span, (grid_hz - low) / span
        self.prior = _wiener(self.z, self.z)
        self.across = _wiener(self.grid, self.z)
        self.at_grid = _wiener(self.grid, self.grid).diagonal()
        self.line = np.column_stack([np.ones_like(self.z), self.z])
        self.grid_line = np.column_stack([np.ones_like(self.grid), self.grid])


def _wiener(x: Floats, y: Floats) -> Floats:
    low, high = np.minimum(x[:, None], y[None, :]), np.maximum(x[:, None], y[None, :])
    covariance: Floats = low * low * (3 * high - low) / 6
    return covariance


class _Group:
    """Rows that share tau and noise: like segments in one direction. ``score`` is the log posterior over tau and noise ratio."""

    def __init__(self, process: _Process, data: _Data, rows: Sequence[int]) -> None:
        self.rows = [r for r in rows if data.seconds[r].any()]
        self.mean_s = float(data.seconds[self.rows].mean())
        known = data.noise[self.rows]
        # The mean, not the root of the mean square: that of a handful of samples is itself scattered.
        spread = float(np.nanmean(known)) if np.isfinite(known).any() else _UNKNOWN_NOISE
        self.noise = max(spread, _LEAST_NOISE)
        picked = [self.rows[i] for i in np.unique(np.linspace(0, len(self.rows) - 1, _ROWS).round().astype(int))]
        cycles, level = data.seconds[picked] * data.hz, data.level(picked) * data.hz
        scale = cycles.mean(1, keepdims=True)
        u, level = cycles / scale, level / scale
        self._likelihood = np.array(
            [[_likelihood(process, u, level, tau, self.noise * ratio) for ratio in _RATIOS] for tau in _TAUS]
        )
        self.score = self._likelihood + _log_prior(_TAU, _TAU_LOG_SD, 1.0, _RATIO_LOG_SD)

    def settle(self, tau: float, ratio: float) -> tuple[float, float]:
        """tau and noise of this group, near those of all groups."""
        own = self._likelihood + _log_prior(tau, _WITHIN_LOG_SD, ratio, _WITHIN_LOG_SD)
        i, j = np.unravel_index(int(np.argmax(own)), own.shape)
        return float(_TAUS[i]), self.noise * float(_RATIOS[j])


def _log_prior(tau: float, tau_sd: float, ratio: float, ratio_sd: float) -> Floats:
    table: Floats = (
        -0.5 * (np.log(_TAUS / tau) / tau_sd)[:, None] ** 2 - 0.5 * (np.log(_RATIOS / ratio) / ratio_sd)[None, :] ** 2
    )
    return table


def _projection(process: _Process, level: Floats, tau: float, noise: float) -> tuple[Floats, Floats, Floats]:
    """P = S^-1 - S^-1 H (H' S^-1 H)^-1 H' S^-1 of rows (R, K, K), S^-1, and (H' S^-1 H)^-1."""
    covariance = tau**2 * process.prior + noise**2 * level[:, :, None] ** 2 * np.eye(level.shape[1])
    inverse: Any = np.linalg.inv(covariance)
    weighted = inverse @ process.line
    spread: Any = np.linalg.inv(process.line.T @ weighted)
    projection: Any = inverse - weighted @ spread @ np.swapaxes(weighted, 1, 2)
    return projection, inverse, spread


def _likelihood(process: _Process, u: Floats, level: Floats, tau: float, noise: float) -> float:
    """Restricted log likelihood, the mean over the rows: like segments are not independent evidence."""
    projection, inverse, spread = _projection(process, level, tau, noise)
    square = np.einsum("rk,rkl,rl->r", u, projection, u)
    logs = np.linalg.slogdet(spread)[1] + np.linalg.slogdet(inverse)[1]
    return float(np.mean(logs - square) / 2)


def _smooth(
    process: _Process,
    data: _Data,
    rows: Sequence[int],
    tau: float,
    noise: float,
    curve: Floats,
    errors_pct: list[float | None],
) -> Floats:
    """Write the rows' curve and left-out errors; return the relative half width of the interval on the grid."""
    cycles, level = data.seconds[rows] * data.hz, data.level(rows) * data.hz
    scale = cycles.mean(1, keepdims=True)
    u, level = cycles / scale, level / scale
    projection, inverse, spread = _projection(process, level, tau, noise)
    pulled = np.einsum("rkl,rl->rk", projection, u)
    # u minus noise times what pulls it: the posterior mean at the clocks.
    curve[rows] = np.maximum(u - noise**2 * level**2 * pulled, 0.0) * scale / data.hz
    freedom, inflation = len(data.hz) - 2, 1.0
    if freedom > 0:
        own = np.maximum(np.diagonal(projection, axis1=1, axis2=2), 1e-300)
        left_out = pulled / own  # u_k less what the other clocks say
        for row, percent in zip(rows, 100 * np.mean(np.abs(left_out) / level, axis=1), strict=True):
            errors_pct[row] = _digits(min(float(percent), 1e6), 4)
        z_square = float(np.mean(left_out**2 * own))
        inflation = max(1.0, (_PRIOR_FREEDOM + freedom * z_square) / (_PRIOR_FREEDOM + freedom))
    gain = process.across @ inverse * tau**2  # (R, G, K)
    drift = process.grid_line - gain @ process.line
    known = np.einsum("rgk,gk->rg", gain, process.across) * tau**2
    variance = tau**2 * process.at_grid - known + np.einsum("rgi,rij,rgj->rg", drift, spread, drift)
    mean = drift @ (spread @ np.swapaxes(inverse @ process.line, 1, 2) @ u[:, :, None]) + gain @ u[:, :, None]
    expected = np.maximum(mean[:, :, 0], 0.05)
    sd = np.sqrt(inflation * (np.maximum(variance, 0.0) + (noise * expected) ** 2)) / expected
    widest: Floats = _student_975(freedom + _PRIOR_FREEDOM) * np.max(sd, axis=0)
    return widest


def _student_975(freedom: float) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _interval_grid(hz: Floats, profile: Profile) -> Floats:
    """Clocks at which intervals are kept: the visited ones, some between, and out to the ends of the supported range."""
    between = 3 if len(hz) <= 12 else 1
    ends = [hz[0], hz[-1]]
    clocks = profile.hardware.clocks
    if clocks is not None:
        ends = [min(hz[0], clocks.min_hz), max(hz[-1], clocks.max_hz)]
    edges = np.unique(np.concatenate([hz, ends]))
    edges = edges[np.concatenate([[True], np.diff(edges) > 1e-6 * edges[:-1]])]
    parts = [np.linspace(a, b, between + 1, endpoint=False) for a, b in itertools.pairwise(edges)]
    return np.concatenate([*parts, edges[-1:]])


# -------------------------------------------------------------------------------------------------------------- law


@dataclass(frozen=True)
class Affine:
    """t = a + b/f with the standard deviations of a and b. ``left_out_s`` (K,): the law's time at each clock, fitted without it."""

    a_s: float
    b_cycles: float
    a_sd: float
    b_sd: float
    freedom: int
    left_out_s: Floats


def affine(hz: Floats, seconds: Floats, sd: Floats) -> Affine:
    """t = a + b/f with a, b >= 0 by least squares with weights 1 / (sd^2 + s^2).

    s, a spread in proportion to the time that comes on top of the samples' own ``sd``, is how far the times are from the law: the s for which the
    weighted residuals are as large as they should be (Mandel and Paule 1970). All arguments are (K,).
    """
    freedom, scale = len(hz) - 2, 1.0 / float(np.mean(1.0 / hz))
    x = scale / hz
    level = np.maximum(seconds, max(0.05 * float(seconds.mean()), 1e-12))

    def excess(extra: float) -> float:
        weight = 1.0 / (sd**2 + (extra * level) ** 2)
        a, b, _ = _line(x, seconds, weight)
        return float(weight @ (seconds - a - b * x) ** 2) - freedom

    low, high = 1e-6, 10.0
    if freedom > 0 and excess(low) > 0:
        for _ in range(40):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    weight = 1.0 / (sd**2 + (low * level) ** 2)
    a, b, sums = _line(x, seconds, weight)
    a, b = _not_negative(a, b, x, seconds, weight)
    left_out = np.full(len(hz), np.nan)
    if freedom > 0:
        others = weight * (1 - np.eye(len(hz)))  # row k: all but clock k
        first, second, _ = _line(x, seconds, others)
        first, second = _not_negative(first, second, x, seconds, others)
        left_out = first + second * x
    one, middle, square = (float(v) for v in sums)
    spread = one * square - middle * middle
    return Affine(
        float(a), float(b) * scale, math.sqrt(square / spread), math.sqrt(one / spread) * scale, freedom, left_out
    )


def _line(x: Floats, y: Floats, weight: Floats) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """a and b of the weighted least squares y = a + b x, and the sums of w, w x, w x^2. ``weight`` is (..., K)."""
    centre = (weight @ x) / weight.sum(-1)
    dx = x - centre[..., None]
    b = (weight * dx * y).sum(-1) / (weight * dx * dx).sum(-1)
    a = (weight @ y) / weight.sum(-1) - b * centre
    return a, b, (weight.sum(-1), weight @ x, weight @ (x * x))


def _not_negative(a: Any, b: Any, x: Floats, y: Floats, weight: Floats) -> tuple[Any, Any]:
    """The best of the lines with a, b >= 0: where one would be negative it is 0, and the other is fitted alone."""
    through_zero, flat = (weight @ (x * y)) / (weight @ (x * x)), (weight @ y) / weight.sum(-1)
    return np.where(a < 0, 0.0, np.where(b < 0, flat, a)), np.where(a < 0, through_zero, np.where(b < 0, 0.0, b))


def _law(
    data: _Data, row: int, flops: float, cores: int | None, curve_s: Floats, curve_error_pct: float | None
) -> TimeLaw:
    hz, seconds = data.hz, data.seconds[row]
    curve = [_digits(s, 9) for s in curve_s]
    if not seconds.any():
        return TimeLaw(a_s=0.0, b_cycles=0.0, curve_s=curve)
    level = data.level([row])[0]
    noise = np.maximum(np.nan_to_num(data.noise[row], nan=_UNKNOWN_NOISE), _LEAST_NOISE)
    sd = (
        float(np.sqrt(np.mean(noise**2))) * level
    )  # one spread for the row: that of a handful of samples is itself uncertain
    sd = np.sqrt((sd**2 + (noise * level) ** 2) / 2)
    fit = affine(hz, seconds, sd)
    intervals: dict[str, Any] = {}
    error = None
    if fit.freedom > 0:
        t = _student_975(fit.freedom)
        for name, value, spread in (("a_ci95", fit.a_s, fit.a_sd), ("b_ci95", fit.b_cycles, fit.b_sd)):
            intervals[name] = (_digits(max(value - t * spread, 0.0), 6), _digits(value + t * spread, 6))
        off = np.abs(fit.left_out_s - seconds) / level
        error = _digits(min(100 * float(np.mean(off)), 1e6), 4)
    if flops > 0 and cores and fit.b_cycles > 0:
        intervals["flops_per_core_cycle"] = _digits(flops / (fit.b_cycles * cores), 9)
        b = intervals.get("b_ci95")
        if b is not None and b[0] > 0:
            intervals["flops_per_core_cycle_ci95"] = tuple(_digits(flops / (x * cores), 6) for x in (b[1], b[0]))
    return TimeLaw(
        a_s=_digits(fit.a_s, 9),
        b_cycles=_digits(fit.b_cycles, 9),
        loo_error_pct=error,
        curve_loo_error_pct=curve_error_pct,
        curve_s=curve,
        **intervals,
    )


def _digits(value: float, count: int) -> float:
    """Rounded to this many digits: a profile of 80 layers and 100 clocks stays a small file."""
    return float(f"{value:.{count}g}")


def _warnings(data: _Data) -> list[str]:
    """What is odd about the whole step's times over the clock."""
    hz, seconds = data.hz, data.seconds[-1]
    found = []
    if not seconds.all():
        return ["some steps took no time at all: the stopwatch does not work here"]
    low, high = hz[0] / 1e6, hz[-1] / 1e6
    span = f"from {low:.0f} to {high:.0f} MHz"
    x, y = np.log(hz), np.log(seconds)
    follows = -float(np.polyfit(x, y, 1)[0])  # 1: time is proportional to 1/f; 0: the clock changes nothing
    noise = data.noise[-1]
    doubt = 3 * float(np.nanmax(noise)) if np.isfinite(noise).any() else 3 * _UNKNOWN_NOISE
    doubt = max(doubt, 0.02)
    change = float(np.exp(y[-1] - y[0]) - 1)
    if follows < -doubt / (x[-1] - x[0]):
        found.append(
            f"times rise with the clock ({100 * change:+.0f} % {span}): heat, other work on the machine or a changed power mode; "
            "the fit is not to be trusted"
        )
    elif follows < 0.1:
        found.append(
            f"times are flat ({100 * change:+.1f} % {span}): either the clock lock did not take, or all of the step waits for memory or launches"
        )
    elif follows > 1.1:
        found.append(
            f"times fall faster than the clock rises ({100 * change:+.0f} % {span}): something else changed with it, such as the memory clock"
        )
    rises = [k for k in range(1, len(hz)) if seconds[k] > seconds[k - 1] * (1 + doubt)]
    if rises and follows >= -doubt / (x[-1] - x[0]):
        found.append(
            "times rise between some neighbouring clocks (at "
            + ", ".join(f"{hz[k] / 1e6:.0f}" for k in rises[:5])
            + " MHz): the machine was not the same all the time"
        )
    return found
