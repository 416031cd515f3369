"""Laws of power against clock, P(f), and how they are fitted.

Every law is an entry of ``MODELS``; adding one there is all it takes to have it fitted, compared and offered to ``--model``.
A law answers one question: given the sweep, what does it predict with all clocks, with each clock left out, and with each
pair of clocks left out (``CrossFit``)? Selection, averaging, errors and intervals are all built from these predictions.

Fitting is relative least squares: the sum of ((P(f) - y) / y)^2 is smallest, with a constant P0 >= 0 and a factor >= 0. For
given *shape* parameters theta (an exponent, a ridge clock) a law P = P0 + c g(f; theta) is linear in (P0, c). So theta is
scanned on a grid for all left-out sets at once and then refined by Levenberg-Marquardt steps on theta alone (variable
projection: Golub and Pereyra, 1973).

Nothing here depends on the units of the input: clocks are divided by the highest clock of the domain, and multiplying all watts
multiplies all predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from profiler.power.curve import Array, CrossFit, Curve, PowerModel, left_out
from profiler.power.kriged import Kriged
from profiler.power.priors import PRIORS, AveragePriors
from profiler.power.voices import Voice

# ---------------------------------------------------------------------------------------------------------------------
# Parametric laws: P = P0 + c g(x; theta)


@dataclass(frozen=True)
class Scan:
    """Shape parameters to scan, (s, k), and the box (k,), (k,) in which they are refined."""

    theta: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Law:
    """P = P0 + c g(x; theta), x the clock over the domain's highest clock.

    ``shape(x (n,), theta (s, k)) -> (s, n)``; ``scan(x_low) -> Scan``; ``to_si(p0 (b,), c (b,), theta (b, k), high_hz)`` names
    the parameters in SI units.
    """

    name: str
    summary: str
    shape: Callable[[Array, Array], Array]
    scan: Callable[[float], Scan]
    to_si: Callable[[Array, Array, Array, float], dict[str, Array]]
    constant: bool = True
    shape_parameters: int = 0
    minimum_clocks: int = 1

    @property
    def degrees(self) -> int | None:
        return 1 + int(self.constant) + self.shape_parameters

    def cross_fit(self, curve: Curve) -> CrossFit:
        n = len(curve)
        mask, row = left_out(n)
        kept = mask.sum(axis=1)
        p0, c, theta = self._fit(curve, mask)
        at_points = p0[:, None] + c[:, None] * self.shape(curve.x, theta)
        at_points[kept < self.minimum_clocks] = np.nan
        pair = at_points[row, np.arange(n)[None, :]]
        few = slice(0, 1 + n)

        def whole(frequency_hz: Array) -> Array:
            return np.asarray(p0[0] + c[0] * self.shape(frequency_hz / curve.high_hz, theta[:1])[0])

        parameters = self.to_si(p0[few], c[few], theta[few], curve.high_hz)
        for values in parameters.values():
            values[kept[few] < self.minimum_clocks] = np.nan
        scan = self.scan(curve.x_low)
        unit = np.ones(1)
        bounds = dict.fromkeys(parameters, (0.0, np.inf))
        low = self.to_si(0 * unit, 0 * unit, scan.low[None], curve.high_hz)
        high = self.to_si(0 * unit, 0 * unit, scan.high[None], curve.high_hz)
        for name in parameters:
            if low[name][0] < high[name][0]:
                bounds[name] = (float(low[name][0]), float(high[name][0]))
        return CrossFit(np.diag(pair).copy(), pair, whole, parameters, bounds)

    def _fit(self, curve: Curve, mask: Array) -> tuple[Array, Array, Array]:
        """P0 (b,), c (b,) and theta (b, k) for every row of ``mask`` (b, n)."""
        x, target, weights = curve.x, curve.target_w, mask * curve.weight
        scan = self.scan(curve.x_low)
        k = scan.theta.shape[1]
        theta = np.zeros((len(mask), k))
        if k:
            g = self.shape(x, scan.theta)
            sums = _Sums(
                np.broadcast_to(weights.sum(1), (len(g), len(mask))),
                g @ weights.T,
                (g * g) @ weights.T,
                np.broadcast_to(weights @ target, (len(g), len(mask))),
                (g * target) @ weights.T,
            )
            p0, c = sums.solve(self.constant)
            excess = sums.excess(p0, c)
            # The error has a kink wherever a ridge passes a point, and a refinement may stop there: others start from the best
            # shapes with another ridge (or exponent).
            step = np.diff(np.unique(scan.theta[:, 0])).max()
            starts = []
            for _ in range(_STARTS):
                starts.append(scan.theta[np.argmin(excess, axis=0)])
                near = np.abs(scan.theta[:, :1] - starts[-1][None, :, 0]) < 1.5 * step
                excess = np.where(near, np.inf, excess)
            theta, weights = np.concatenate(starts), np.concatenate([weights] * _STARTS)

        def solve(theta: Array) -> tuple[Array, Array, Array]:
            g = self.shape(x, theta)
            wg = weights * g
            p0, c = _Sums(weights.sum(1), wg.sum(1), (wg * g).sum(1), weights @ target, wg @ target).solve(
                self.constant
            )
            return p0, c, np.sqrt(weights) * (p0[:, None] + c[:, None] * g - target)

        p0, c, residual = solve(theta)
        error = (residual**2).sum(1)
        damping = np.full(len(theta), 1e-3)
        nudge = 1e-6 * (scan.high - scan.low)
        for _ in range(_REFINEMENTS if k else 0):
            jacobian = np.empty((*residual.shape, k))
            for q in range(k):
                moved = theta.copy()
                h = np.where(theta[:, q] + nudge[q] <= scan.high[q], nudge[q], -nudge[q])
                moved[:, q] += h
                jacobian[:, :, q] = (solve(moved)[2] - residual) / h[:, None]
            normal = np.einsum("bnk,bnl->bkl", jacobian, jacobian)
            diagonal = np.einsum("bkk->bk", normal)
            # A parameter without any effect here (a ridge above all kept clocks) must not make the system singular.
            floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-200
            normal = normal + (damping[:, None] * diagonal + floor)[:, :, None] * np.eye(k)
            move = np.linalg.solve(normal, -np.einsum("bnk,bn->bk", jacobian, residual)[:, :, None])[:, :, 0]
            trial = np.clip(theta + np.nan_to_num(move), scan.low, scan.high)
            trial_p0, trial_c, trial_residual = solve(trial)
            trial_error = (trial_residual**2).sum(1)
            better = trial_error < error
            theta = np.where(better[:, None], trial, theta)
            p0, c = np.where(better, trial_p0, p0), np.where(better, trial_c, c)
            residual = np.where(better[:, None], trial_residual, residual)
            error = np.where(better, trial_error, error)
            damping = np.where(better, damping * 0.2, damping * 6)
        if k:
            pick = np.arange(len(mask)) + len(mask) * np.argmin(error.reshape(_STARTS, len(mask)), axis=0)
            p0, c, theta = p0[pick], c[pick], theta[pick]
        return p0, c, theta


_REFINEMENTS = 14
_STARTS = 4


@dataclass(frozen=True)
class _Sums:
    """Weighted sums of 1, g, g^2, t, g t: all that weighted least squares in (P0, c) needs. Any common shape."""

    one: Array
    g: Array
    gg: Array
    t: Array
    gt: Array

    def solve(self, constant: bool) -> tuple[Array, Array]:
        """P0 >= 0 and c >= 0 of least error (with ``constant`` false, P0 = 0)."""
        with np.errstate(all="ignore"):
            alone = np.maximum(self.gt / self.gg, 0)
            if not constant:
                return np.zeros_like(alone), alone
            determinant = self.one * self.gg - self.g**2
            c = (self.one * self.gt - self.g * self.t) / determinant
            p0 = (self.t - self.g * c) / self.one
            # Of a convex problem in two unknowns >= 0 the optimum is inside, or on one of the two edges.
            flat = (c < 0) | ~(determinant > 1e-14 * self.one * self.gg)
            c, p0 = np.where(flat, 0.0, c), np.where(flat, self.t / self.one, p0)
            without = p0 < 0
            return np.where(without, 0.0, p0), np.where(without, alone, c)

    def excess(self, p0: Array, c: Array) -> Array:
        """Weighted squared error, less the part that does not depend on (P0, c)."""
        return p0 * p0 * self.one + 2 * p0 * c * self.g + c * c * self.gg - 2 * p0 * self.t - 2 * c * self.gt


def _grid(*axes: Array) -> Array:
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)


def _no_scan(x_low: float) -> Scan:
    return Scan(np.zeros((1, 0)), np.zeros(0), np.zeros(0))


def _cubic_shape(x: Array, theta: Array) -> Array:
    return np.broadcast_to(x**3, (len(theta), len(x)))


def _power_shape(x: Array, theta: Array) -> Array:
    return np.asarray(x[None, :] ** theta[:, :1])


def _power_scan(x_low: float) -> Scan:
    return Scan(np.geomspace(0.2, 12, 80)[:, None], np.array([0.1]), np.array([16.0]))


def _ridge_shape(x: Array, theta: Array) -> Array:
    volts = 1 + theta[:, 1:2] * np.maximum(0, x[None, :] - theta[:, :1])
    return np.asarray(x[None, :] * volts**2)


def _span(x_low: float) -> float:
    """Width of the domain in x; a domain of one clock is given the width of that clock."""
    return 1 - x_low if x_low < 1 else 1.0


def _ridge_axes(x_low: float) -> tuple[Array, Array]:
    """Ridge clocks over the domain, and rises of V over the whole domain from 2.5 % to fifteen-fold."""
    span = _span(x_low)
    return x_low + span * np.linspace(0, 0.98, 25), np.geomspace(0.025, 15, 16) / span


def _ridge_scan(x_low: float) -> Scan:
    ridge, slope = _ridge_axes(x_low)
    return Scan(_grid(ridge, slope), np.array([x_low, 0.0]), np.array([1.0, 2 * slope[-1]]))


def _soft_ridge_shape(x: Array, theta: Array) -> Array:
    width = theta[:, 2:3]
    volts = 1 + theta[:, 1:2] * width * np.logaddexp(0, (x[None, :] - theta[:, :1]) / width)
    return np.asarray(x[None, :] * volts**2)


def _soft_ridge_scan(x_low: float) -> Scan:
    span = _span(x_low)
    ridge, slope = _ridge_axes(x_low)
    width = span * np.geomspace(0.01, 0.3, 6)
    return Scan(
        _grid(ridge[::2], slope[::2], width),
        np.array([x_low, 0.0, width[0] / 2]),
        np.array([1.0, 2 * slope[-1], width[-1] * 1.5]),
    )


def _cubic_si(p0: Array, c: Array, theta: Array, high_hz: float) -> dict[str, Array]:
    return {"xi_w_per_hz3": c / high_hz**3}


def _affine_si(p0: Array, c: Array, theta: Array, high_hz: float) -> dict[str, Array]:
    return {"p0_w": p0.copy(), "xi_w_per_hz3": c / high_hz**3}


def _power_si(p0: Array, c: Array, theta: Array, high_hz: float) -> dict[str, Array]:
    # xi in W/Hz^a would be 1e-10 or 1e-40 depending on a; the watts at a stated clock say the same and can be read.
    return {"p0_w": p0.copy(), "dynamic_w_at_max": c.copy(), "exponent": theta[:, 0].copy()}


def _ridge_si(p0: Array, c: Array, theta: Array, high_hz: float) -> dict[str, Array]:
    parameters = {
        "p0_w": p0.copy(),
        "c_w_per_hz": c / high_hz,
        "ridge_hz": theta[:, 0] * high_hz,
        "voltage_slope_per_hz": theta[:, 1] / high_hz,
    }
    if theta.shape[1] > 2:
        parameters["knee_hz"] = theta[:, 2] * high_hz
    return parameters


# ---------------------------------------------------------------------------------------------------------------------
# Monotone interpolation


def _pchip(knots: Array, values: Array, at: Array) -> Array:
    """Monotone cubic interpolation (Fritsch and Carlson, 1980, with Fritsch and Butland's slopes), one curve a row.

    ``knots`` (b, k) ascending, ``values`` (b, k), ``at`` (b, m) -> (b, m); straight lines through the two outermost knots beyond.
    """
    b, k = knots.shape
    if k == 1:
        return np.repeat(values, at.shape[1], axis=1)
    h = np.diff(knots, axis=1)
    secant = np.diff(values, axis=1) / h
    slope = np.empty_like(values)
    if k == 2:
        slope[:] = secant
    else:
        left, right = secant[:, :-1], secant[:, 1:]
        w_left, w_right = 2 * h[:, 1:] + h[:, :-1], h[:, 1:] + 2 * h[:, :-1]
        with np.errstate(all="ignore"):
            mean = (w_left + w_right) / (w_left / left + w_right / right)
        slope[:, 1:-1] = np.where(left * right > 0, mean, 0.0)
        for end, near, far in ((0, 0, 1), (-1, -1, -2)):
            h0, h1, s0, s1 = h[:, near], h[:, far], secant[:, near], secant[:, far]
            d = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
            d = np.where(d * s0 <= 0, 0.0, d)
            slope[:, end] = np.where((s0 * s1 <= 0) & (abs(d) > 3 * abs(s0)), 3 * s0, d)
    cell = np.clip((at[:, :, None] >= knots[:, None, 1:-1]).sum(axis=2), 0, k - 2)
    rows = np.arange(b)[:, None]
    width, y0, y1 = h[rows, cell], values[rows, cell], values[rows, cell + 1]
    t = (at - knots[rows, cell]) / width
    inside = (
        (1 + 2 * t) * (1 - t) ** 2 * y0
        + t * (1 - t) ** 2 * width * slope[rows, cell]
        + t * t * (3 - 2 * t) * y1
        + t * t * (t - 1) * width * slope[rows, cell + 1]
    )
    line = y0 + secant[rows, cell] * (at - knots[rows, cell])
    return np.asarray(np.where((t < 0) | (t > 1), line, inside))


def _isotonic(values: Array, weights: Array) -> Array:
    """The non-decreasing sequence nearest to ``values`` by weighted squares (pool adjacent violators)."""
    if np.all(np.diff(values) >= 0):
        return values
    level: list[float] = []
    mass: list[float] = []
    size: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        level.append(value)
        mass.append(weight)
        size.append(1)
        while len(level) > 1 and level[-2] > level[-1]:
            total = mass[-2] + mass[-1]
            level[-2:] = [(level[-2] * mass[-2] + level[-1] * mass[-1]) / total]
            mass[-2:] = [total]
            size[-2:] = [size[-2] + size[-1]]
    return np.repeat(level, size)


@dataclass(frozen=True)
class Monotone:
    """The points themselves: pooled until they do not fall, joined by monotone cubics, continued by straight lines."""

    name: str = "monotone"
    summary: str = "non-decreasing interpolation of the points, straight beyond the ends"
    minimum_clocks: int = 2

    @property
    def degrees(self) -> int | None:
        return None

    def cross_fit(self, curve: Curve) -> CrossFit:
        n = len(curve)
        x = curve.x

        def fitted(kept: NDArray[np.int64], at: Array) -> Array:
            """Rows of kept clocks (b, k) -> watts (b, m) at x (b, m)."""
            if kept.shape[1] < self.minimum_clocks:
                return np.full(at.shape, np.nan)
            level = np.array([_isotonic(curve.target_w[row], curve.weight[row]) for row in kept])
            return np.maximum(_pchip(x[kept], level, at), 0.0)

        everything = np.arange(n)[None, :]
        without_one = np.array([np.delete(everything[0], i) for i in range(n)]).reshape(n, n - 1)
        pair = np.full((n, n), np.nan)
        pairs = np.array(list(combinations(range(n), 2))).reshape(-1, 2)
        if n - 2 >= self.minimum_clocks:
            left = np.array([np.delete(everything[0], p) for p in pairs])
            both = fitted(left, x[pairs])
            pair[pairs[:, 1], pairs[:, 0]] = both[:, 0]
            pair[pairs[:, 0], pairs[:, 1]] = both[:, 1]
        loo = fitted(without_one, x[:, None])[:, 0]
        pair[np.arange(n), np.arange(n)] = loo

        def whole(frequency_hz: Array) -> Array:
            return np.asarray(fitted(everything, (frequency_hz / curve.high_hz)[None, :])[0])

        level = _isotonic(curve.target_w, curve.weight)
        knots = {}
        for i, clock in enumerate(curve.frequency_hz):
            # Without clock i its knot is what the others say there; the other knots hardly move.
            knots[f"w_at_{clock:.0f}_hz"] = np.full(1 + n, level[i])
            knots[f"w_at_{clock:.0f}_hz"][1 + i] = loo[i]
        return CrossFit(loo, pair, whole, knots, dict.fromkeys(knots, (0.0, np.inf)))


# ---------------------------------------------------------------------------------------------------------------------
# The average


@dataclass(frozen=True)
class Average:
    """Average of ``members``, each weighted by its ``prior`` over its mean squared relative leave-one-clock-out error (to the
    power ``sharpness``).

    Nested: the weights used at a left-out clock i come from errors of fits that had never seen clock i. So ``loo_w`` is exactly
    what the average would have said had clock i not been measured. In ``pair_w[i, j]`` the weights are those without i.
    """

    members: Sequence[PowerModel]
    prior: Sequence[float]
    sharpness: float = 1.0
    name: str = "auto"
    summary: str = "average by weights that fall with the leave-one-clock-out error"
    minimum_clocks: int = 2

    @property
    def degrees(self) -> int | None:
        return None

    def cross_fit(self, curve: Curve) -> CrossFit:
        return self.average(curve, {m.name: m.cross_fit(curve) for m in self.members})

    def average(self, curve: Curve, fits: Mapping[str, CrossFit]) -> CrossFit:
        """As ``cross_fit``, from fits of the members (by name) that exist already; others are ignored."""
        n = len(curve)
        able = [m for m in self.members if n >= m.minimum_clocks]
        prior = np.array([p for m, p in zip(self.members, self.prior, strict=True) if n >= m.minimum_clocks])
        loo = np.stack([fits[m.name].loo_w for m in able])
        pair = np.stack([fits[m.name].pair_w for m in able])
        weights = np.empty((len(able), 1 + n))
        weights[:, 0] = self._weights(loo, curve, prior)
        for i in range(n):
            others = np.delete(np.arange(n), i)
            weights[:, 1 + i] = self._weights(pair[:, i, others], curve, prior, others)
            # A member that n - 1 clocks cannot carry has no say without clock i.
            for k, m in enumerate(able):
                if n - 1 < m.minimum_clocks:
                    weights[k, 1 + i] = 0
        total = weights.sum(axis=0)
        weights = np.divide(weights, total, out=np.full_like(weights, np.nan), where=total > 0)
        averaged_pair = _weighted(weights[:, 1:, None], pair)
        averaged_loo = np.diag(averaged_pair).copy()

        def whole(frequency_hz: Array) -> Array:
            return _weighted(weights[:, :1], np.stack([fits[m.name].curve(frequency_hz) for m in able]))

        parameters = {f"weight_{m.name.replace('-', '_')}": weights[k] for k, m in enumerate(able)}
        return CrossFit(averaged_loo, averaged_pair, whole, parameters, dict.fromkeys(parameters, (0.0, 1.0)))

    def _weights(self, predicted: Array, curve: Curve, prior: Array, clocks: NDArray[np.int64] | None = None) -> Array:
        """Weights (members,) from left-out predictions (members, k) at ``clocks``; the prior's where there are no errors."""
        clocks = np.arange(len(curve)) if clocks is None else clocks
        error = curve.weight[clocks] * (predicted - curve.target_w[clocks]) ** 2
        known = np.isfinite(error).all(axis=1) if error.shape[1] else np.zeros(len(error), dtype=bool)
        if not known.any():
            return np.asarray(prior / prior.sum())
        squares = np.where(known, error.sum(axis=1) / curve.rows[clocks].sum(), np.inf)
        # Below one part in a million of the watts, models that are all exact share the weight.
        inverse = prior / (squares + 1e-12) ** self.sharpness
        return np.asarray(inverse / inverse.sum())


def _weighted(weights: Array, values: Array) -> Array:
    """Sum over members; a member of weight 0 may be NaN."""
    unknown = np.isnan(weights).any(axis=0)
    return np.asarray(np.where(unknown, np.nan, np.where(weights > 0, weights * values, 0.0).sum(axis=0)))


# ---------------------------------------------------------------------------------------------------------------------
# The registry

CUBIC = Law("cubic", "xi f^3 (the letter)", _cubic_shape, _no_scan, _cubic_si, constant=False)
AFFINE_CUBIC = Law("affine-cubic", "P0 + xi f^3", _cubic_shape, _no_scan, _affine_si, minimum_clocks=2)
POWER_LAW = Law(
    "power-law", "P0 + d (f / f_max)^a", _power_shape, _power_scan, _power_si, shape_parameters=1, minimum_clocks=3
)
RIDGE = Law(
    "ridge",
    "P0 + c f V(f)^2, V flat below the ridge clock, then linear",
    _ridge_shape,
    _ridge_scan,
    _ridge_si,
    shape_parameters=2,
    minimum_clocks=4,
)
SOFT_RIDGE = Law(
    "soft-ridge",
    "P0 + c f V(f)^2, V bending softly at the ridge clock",
    _soft_ridge_shape,
    _soft_ridge_scan,
    _ridge_si,
    shape_parameters=3,
    minimum_clocks=5,
)
MONOTONE = Monotone()
KRIGED = Kriged()


def average_of(priors: AveragePriors) -> Average:
    """``auto`` under these priors."""
    return Average(
        members=(RIDGE, KRIGED, MONOTONE, AFFINE_CUBIC, POWER_LAW),
        prior=(1.0, priors.kriged, priors.monotone, priors.plain, priors.plain),
        sharpness=priors.sharpness,
    )


AUTO = average_of(PRIORS.average)

MODELS: dict[str, PowerModel] = {
    model.name: model for model in (CUBIC, AFFINE_CUBIC, POWER_LAW, RIDGE, SOFT_RIDGE, MONOTONE, KRIGED, AUTO)
}
"""Every law that can be fitted, by the name used in JSON and by ``--model``. The members of an average stand before it."""


def cross_fit_all(
    curve: Curve, models: Mapping[str, PowerModel] | None = None, siblings: Sequence[Voice] = ()
) -> dict[str, CrossFit]:
    """Fit every law that the number of distinct clocks can carry; averages reuse the fits of their members. ``siblings``: what other
    workloads of the chip say of its voltage, which the kriged law listens to."""
    fits: dict[str, CrossFit] = {}
    for name, model in (MODELS if models is None else models).items():
        if len(curve) < model.minimum_clocks:
            continue
        if isinstance(model, Average):
            for member in model.members:
                if member.name not in fits and len(curve) >= member.minimum_clocks:
                    fits[member.name] = member.cross_fit(curve)
            fits[name] = model.average(curve, fits)
        elif isinstance(model, Kriged):
            fits[name] = model.cross_fit(curve, siblings)
        else:
            fits[name] = model.cross_fit(curve)
    return fits
