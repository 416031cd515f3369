"""From a sweep of (clock, watts) to a fitted power curve with honest errors and intervals.

The errors reported for every law are leave-one-clock-out: all rows of a clock are left out together, the law is fitted to the
rest, and its prediction is held against what was measured. For ``auto`` the weights are made anew each time (nested).

Prediction intervals are calibrated on the same left-out errors. The kriged law says how the uncertainty of a new measurement is
distributed over clocks (wide where it must extrapolate); left-out errors divided by it say how large it really is, near each
clock and overall. How local that scale should be is weighted by likelihood. See docs/power.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiler.power.curve import Array, CrossFit, Curve
from profiler.power.models import MODELS, cross_fit_all
from profiler.power.source import LOWEST_W, Sweep, sweep_of_profile
from profiler.profile import BadInput, FittedModel, PowerFit, PowerPrediction, Profile, Provenance

GRID_CLOCKS = 64
_FLAT = 0.02  # watts that move by less than this over the sweep say nothing about the clock
_FALL = 0.03  # a fall of the watts from one clock to a higher one that is no longer noise
_WATTS_LIMIT = 1e5  # the profile's own bound on a figure in watts


@dataclass(frozen=True)
class ModelFit:
    """One law fitted: parameters in SI units, their 95 % intervals (jackknife over clocks), errors in percent of the watts."""

    parameters: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    mape_pct: float | None
    loo_mape_pct: float | None
    aicc: float | None

    def to_entry(self) -> dict[str, Any]:
        return {
            "parameters": dict(self.parameters),
            "ci95": {name: list(interval) for name, interval in self.ci95.items()},
            "mape_pct": self.mape_pct,
            "loo_mape_pct": self.loo_mape_pct,
            "aicc": self.aicc,
        }


@dataclass(frozen=True)
class LeftOut:
    """What the selected law says at each distinct clock without having seen it, with its 95 % interval; all (clocks,), NaN where
    too few clocks are left to say anything."""

    frequency_hz: Array
    power_w: Array
    low_w: Array
    high_w: Array


@dataclass(frozen=True)
class SweepFit:
    """A fitted sweep. ``frequency_hz, power_w, low_w, high_w`` (m,) are the predictions at every input clock, every supported
    clock and a grid over the domain, with a 95 % prediction interval for a new measurement."""

    selected: str
    models: dict[str, ModelFit]
    xi_w_per_hz3: float
    xi_ci95: tuple[float, float] | None
    points: int
    frequency_hz: Array
    power_w: Array
    low_w: Array
    high_w: Array
    left_out: LeftOut
    power_cap_w: float | None = None
    warnings: list[str] = field(default_factory=list)
    curves: dict[str, Array] = field(default_factory=dict)
    """Watts (m,) of every law at ``frequency_hz``."""

    def to_entry(self, source: str, device: str | None, workload: str | None) -> dict[str, Any]:
        """The entry of ``fit-power --json``."""
        models = {name: model.to_entry() for name, model in self.models.items()}
        models["selected"] = self.models[self.selected].to_entry()
        return {
            "source": source,
            "device": device,
            "workload": workload,
            "points": self.points,
            "selected": self.selected,
            "models": models,
            "xi_w_per_hz3": self.xi_w_per_hz3,
            "xi_ci95": list(self.xi_ci95) if self.xi_ci95 else None,
            "predictions": [
                {"frequency_hz": f, "power_w": p, "low_w": low, "high_w": high} for f, p, low, high in self._rows()
            ],
            "warnings": list(self.warnings),
        }

    def to_power_fit(self, basis: Provenance, note: str | None = None) -> PowerFit:
        """The block of a profile; ``basis`` is the provenance of the watts that were fitted."""
        models = {**self.models, "selected": self.models[self.selected]}
        return PowerFit(
            provenance="fitted",
            basis=basis,
            note=note,
            selected=self.selected,
            models={name: FittedModel(**_fields(model)) for name, model in models.items()},
            xi_w_per_hz3=self.xi_w_per_hz3,
            xi_ci95=self.xi_ci95,
            points=self.points,
            predictions=[
                PowerPrediction(frequency_hz=f, power_w=p, low_w=low, high_w=high) for f, p, low, high in self._rows()
            ],
            warnings=list(self.warnings),
        )

    def _rows(self) -> Iterable[tuple[float, float, float, float]]:
        columns = (self.frequency_hz, self.power_w, self.low_w, self.high_w)
        return zip(*(column.tolist() for column in columns), strict=True)


def _fields(model: ModelFit) -> dict[str, Any]:
    return {
        "parameters": model.parameters,
        "ci95": model.ci95,
        "mape_pct": model.mape_pct,
        "loo_mape_pct": model.loo_mape_pct,
        "aicc": model.aicc,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The fit


def xi_of(frequency_hz: ArrayLike, power_w: ArrayLike) -> float:
    """The letter's coefficient in W/Hz^3: argmin over xi of sum((xi f^3 - P)^2 / P^2) = sum(f^3 / P) / sum(f^6 / P^2).

    Total watts, no idle subtracted. ``frequency_hz`` (n,) in Hz, ``power_w`` (n,) > 0.
    """
    f, p = np.asarray(frequency_hz, dtype=float), np.asarray(power_w, dtype=float)
    cube = (f / f.max()) ** 3 / p
    return float(cube.sum() / (cube @ cube) / f.max() ** 3)


def fit_sweep(
    frequency_hz: ArrayLike,
    power_w: ArrayLike,
    *,
    capped: ArrayLike | None = None,
    domain_hz: tuple[float, float] | None = None,
    supported_hz: Sequence[float] = (),
    model: str = "auto",
    where: str = "sweep",
) -> SweepFit:
    """Fit every law of ``profiler.power.models.MODELS`` to rows (n,) of clocks in Hz and watts, and predict with ``model``.

    Clocks may repeat; leaving out means a clock with all its rows. Rows marked ``capped`` (n,) bool do not shape the curve: their
    mean is the cap, and no prediction exceeds it. Predictions cover ``domain_hz`` (default: the input's range).

    Raises BadInput, beginning with ``where``, for figures that cannot be used, an unknown ``model`` or one that needs more clocks.
    """
    f, p = np.asarray(frequency_hz, dtype=float).ravel(), np.asarray(power_w, dtype=float).ravel()
    at_cap = np.zeros(f.shape, dtype=bool) if capped is None else np.asarray(capped, dtype=bool).ravel()
    _check(f, p, at_cap, where)
    name = "auto" if model == "selected" else model
    if name not in MODELS:
        raise BadInput(f"--model: {model!r} is not a power model, expected one of: {', '.join(MODELS)}")
    warnings: list[str] = []
    if at_cap.any() and len(np.unique(f[~at_cap])) < 2:
        warnings.append("fewer than 2 clocks lie below the power cap: the capped points were fitted like any other")
        at_cap = np.zeros_like(at_cap)
    free = ~at_cap
    clocks = len(np.unique(f[free]))
    if clocks < 2:
        raise BadInput(
            f"{where}: power was measured at {clocks} distinct clock, a curve needs at least 2 (5 or more to be trusted)"
        )
    if clocks < MODELS[name].minimum_clocks:
        raise BadInput(
            f"--model: {name} needs at least {MODELS[name].minimum_clocks} distinct clocks, {where} has {clocks}"
        )

    domain = domain_hz or (float(f.min()), float(f.max()))
    domain = (min(domain[0], float(f.min())), max(domain[1], float(f.max())))
    curve = Curve.of(f[free], p[free], domain)
    fits = cross_fit_all(curve)
    cap = _Cap.of(f, p, at_cap, curve)
    rows = _Rows(f, p, at_cap, np.searchsorted(curve.frequency_hz, f))

    at = _clocks_to_predict(f, domain, supported_hz)
    bare = {key: fit.curve(at) for key, fit in fits.items()}
    curves = {key: cap.limit(watts) for key, watts in bare.items()}
    in_table = np.searchsorted(at, f)
    models = {key: _model_fit(key, fit, bare[key][in_table], curve, rows, cap) for key, fit in fits.items()}
    chosen = fits[name]
    residuals = _Calibration(curve, rows, chosen, fits.get("kriged"), fits["cubic"])
    low, high = residuals.interval(at, bare[name])
    low, high = cap.interval(low, high)
    power = curves[name]
    low, high = np.clip(np.minimum(low, power), 0, None), np.clip(np.maximum(high, power), None, _WATTS_LIMIT)

    xi = models["cubic"].parameters["xi_w_per_hz3"]
    if not 0 < xi <= 1e-15:
        raise BadInput(
            f"{where}: xi would be {xi:g} W/Hz^3, expected more than 0 and at most 1e-15: check the units of the clocks"
        )
    warnings += _warnings(name, curve, models, clocks)
    return SweepFit(
        selected=name,
        models=models,
        xi_w_per_hz3=xi,
        xi_ci95=models["cubic"].ci95.get("xi_w_per_hz3"),
        points=len(f),
        frequency_hz=at,
        power_w=power,
        low_w=low,
        high_w=high,
        left_out=residuals.left_out(cap),
        power_cap_w=cap.power_w,
        warnings=warnings,
        curves=curves,
    )


def _check(f: Array, p: Array, at_cap: NDArray[np.bool_], where: str) -> None:
    if not len(f) or len(f) != len(p) or len(f) != len(at_cap):
        raise BadInput(
            f"{where}: {len(f)} clocks, {len(p)} watts, {len(at_cap)} cap marks; expected as many of each, at least 2"
        )
    if not (np.isfinite(f).all() and np.isfinite(p).all()):
        raise BadInput(f"{where}: frequency_hz and power_w must be finite numbers")
    if f.min() < 1e6 or f.max() > 1e11:
        raise BadInput(f"{where}: frequency_hz {f.min():g} to {f.max():g}, expected Hz between 1e6 and 1e11")
    if p.min() < LOWEST_W or p.max() > _WATTS_LIMIT:
        raise BadInput(
            f"{where}: power_w {p.min():g} to {p.max():g}, expected watts above 0 (from {LOWEST_W:g}) and at most {_WATTS_LIMIT:g}"
        )


def _clocks_to_predict(f: Array, domain: tuple[float, float], supported_hz: Sequence[float]) -> Array:
    given = np.unique(np.concatenate([f, np.asarray(supported_hz, dtype=float)]))
    grid = np.linspace(domain[0], domain[1], GRID_CLOCKS)
    # A grid clock that is a given one but for rounding would stand in the table twice.
    near = np.abs(given[np.clip(np.searchsorted(given, grid)[:, None] + [-1, 0], 0, len(given) - 1)] - grid[:, None])
    return np.unique(np.concatenate([given, grid[near.min(axis=1) > 1e-9 * grid]]))


@dataclass(frozen=True)
class _Rows:
    """The rows as given: ``clock`` (n,) is the index of a row's clock in the curve (meaningless for capped rows)."""

    frequency_hz: Array
    power_w: Array
    capped: NDArray[np.bool_]
    clock: NDArray[np.int64]


@dataclass(frozen=True)
class _Cap:
    """The power cap: mean of the capped watts and the half width of a 95 % interval for a new measurement at it."""

    power_w: float | None = None
    half_w: float = 0.0
    leave_out_w: dict[float, float] = field(default_factory=dict)
    """The cap as seen without one capped clock; no entry where that clock was the only one."""

    @classmethod
    def of(cls, f: Array, p: Array, at_cap: NDArray[np.bool_], curve: Curve) -> _Cap:
        watts = p[at_cap]
        if not len(watts):
            return cls()
        spread = float(np.std(watts, ddof=1)) if len(watts) > 1 else 0.0
        factor = float(_t_quantile(np.array(len(watts) - 1.0))) if len(watts) > 1 else 0.0
        without = {c: float(p[at_cap & (f != c)].mean()) for c in np.unique(f[at_cap]) if (at_cap & (f != c)).any()}
        return cls(float(watts.mean()), factor * spread * math.sqrt(1 + 1 / len(watts)), without)

    def limit(self, watts: Array) -> Array:
        return watts if self.power_w is None else np.minimum(watts, self.power_w)

    def interval(self, low: Array, high: Array) -> tuple[Array, Array]:
        if self.power_w is None:
            return low, high
        return np.minimum(low, self.power_w - self.half_w), np.minimum(high, self.power_w + self.half_w)


def _model_fit(name: str, fit: CrossFit, uncapped_w: Array, curve: Curve, rows: _Rows, cap: _Cap) -> ModelFit:
    """Parameters, intervals and errors of one law; ``uncapped_w`` (rows,) is the law at every row, cap not applied."""
    n = len(curve)
    predicted = cap.limit(uncapped_w)
    left_out = np.where(rows.capped, uncapped_w, cap.limit(fit.loo_w)[np.minimum(rows.clock, n - 1)])
    for row in np.flatnonzero(rows.capped).tolist():
        left_out[row] = min(left_out[row], cap.leave_out_w.get(float(rows.frequency_hz[row]), math.inf))
    relative = predicted / rows.power_w - 1
    aicc = None
    degrees = MODELS[name].degrees
    count = int((~rows.capped).sum())
    if degrees is not None and count - degrees - 2 > 0:
        k = degrees + 1  # and the variance
        mean_square = max(float(np.mean(relative[~rows.capped] ** 2)), 1e-24)
        aicc = count * math.log(mean_square) + 2 * k + 2 * k * (k + 1) / (count - k - 1)
    parameters: dict[str, float] = {}
    ci95: dict[str, tuple[float, float]] = {}
    for key, values in fit.parameters.items():
        if not np.isfinite(values[0]):
            continue
        parameters[key] = float(values[0])
        replicates = values[1:]
        if n > 2 and np.isfinite(replicates).all():
            error = math.sqrt((n - 1) / n * float(((replicates - replicates.mean()) ** 2).sum()))
            half = float(_t_quantile(np.array(n - 1.0))) * error
            floor, ceiling = fit.bounds.get(key, (-math.inf, math.inf))
            low, high = max(parameters[key] - half, floor), min(parameters[key] + half, ceiling)
            ci95[key] = (min(low, parameters[key]), max(high, parameters[key]))
    if cap.power_w is not None:
        parameters["power_cap_w"] = cap.power_w
        if cap.half_w:
            ci95["power_cap_w"] = (cap.power_w - cap.half_w, cap.power_w + cap.half_w)
    return ModelFit(
        parameters,
        ci95,
        _percent(relative),
        _percent(left_out / rows.power_w - 1),
        aicc,
    )


def _percent(relative: Array) -> float | None:
    return float(np.mean(np.abs(relative)) * 100) if np.isfinite(relative).all() else None


def _warnings(name: str, curve: Curve, models: dict[str, ModelFit], clocks: int) -> list[str]:
    warnings: list[str] = []
    watts = curve.target_w
    if clocks < 5:
        missing = [key for key in MODELS if key not in models]
        said = f"; not fitted: {', '.join(missing)}" if missing else ""
        warnings.append(f"only {clocks} distinct clocks: errors and intervals are rough, measure 5 or more{said}")
    cubic, chosen = models["cubic"].loo_mape_pct, models[name].loo_mape_pct
    if cubic is not None and chosen is not None:
        warnings.append(
            f"the cubic law xi f^3 is {cubic:.1f} % off at clocks left out of the fit, {name} {chosen:.1f} %"
            if name != "cubic"
            else f"the cubic law xi f^3 is {cubic:.1f} % off at clocks left out of the fit"
        )
    elif cubic is not None:
        warnings.append(f"the cubic law xi f^3 is {cubic:.1f} % off at clocks left out of the fit")
    spread = float((watts.max() - watts.min()) / watts.mean())
    if spread < _FLAT:
        # A refusal needs the step times as well: flat watts under a load that waits for memory are no fault.
        warnings.append(
            f"power moves by only {spread * 100:.1f} % from {curve.frequency_hz[0] / 1e6:.0f} to"
            f" {curve.frequency_hz[-1] / 1e6:.0f} MHz: did the clocks really change?"
        )
    falls = np.flatnonzero(watts[1:] < (1 - _FALL) * watts[:-1])
    if len(falls):
        k = int(falls[0])
        warnings.append(
            f"power falls from {watts[k]:.1f} W at {curve.frequency_hz[k] / 1e6:.0f} MHz to {watts[k + 1]:.1f} W at"
            f" {curve.frequency_hz[k + 1] / 1e6:.0f} MHz: a power cap or heat may have held the clock below the one stated"
        )
    return warnings


# ---------------------------------------------------------------------------------------------------------------------
# Prediction intervals

_NEIGHBOURHOODS = (0.1, 0.3, math.inf)  # over the width of the domain; the last one is the whole sweep


def _t_quantile(freedom: Array) -> Array:
    """97.5 % quantile of Student's t; ``freedom`` may be fractional."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.maximum(freedom, 1.0), 0.975))


def _log_t(square: Array, scale_square: Array, freedom: Array) -> Array:
    """Log density of Student's t with squared scale, at a squared deviation."""
    from scipy.special import gammaln

    return np.asarray(
        gammaln((freedom + 1) / 2)
        - gammaln(freedom / 2)
        - np.log(freedom * np.pi * scale_square) / 2
        - (freedom + 1) / 2 * np.log1p(square / scale_square / freedom)
    )


def _local_factor(u: Array, u_left: Array, z_square: Array) -> Array:
    """Half width (m,) of a 95 % interval at u (m,) in units of the spread there.

    ``z_square`` (n,): squared left-out errors at ``u_left`` (n,), in the same units. For each neighbourhood b their mean is weighted
    by exp(-|u - u_left| / b); Student's t allows for how few they are. The neighbourhoods are averaged by how likely they
    make each left-out error, seen from the others.
    """
    floor = 1e-12 * float(z_square.mean()) + 1e-300
    likely, widths = [], []
    for size in _NEIGHBOURHOODS:
        near = np.exp(-np.abs(u_left[:, None] - u_left[None, :]) / size)
        np.fill_diagonal(near, 0)
        total = near.sum(axis=1)
        freedom = np.maximum(total**2 / (near**2).sum(axis=1) - 1, 1.0)
        likely.append(float(_log_t(z_square, near @ z_square / total + floor, freedom).sum()))
        # Beyond the points all weights shrink alike: measuring from the nearest one keeps them from vanishing together.
        distance = np.abs(u[:, None] - u_left[None, :])
        weight = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / size)
        total = weight.sum(axis=1)
        freedom = total**2 / (weight**2).sum(axis=1) - 1
        widths.append(np.sqrt(weight @ z_square / total) * _t_quantile(freedom))
    share = np.exp(np.array(likely) - max(likely))
    return np.asarray((share / share.sum()) @ np.array(widths))


class _Calibration:
    """Left-out errors of the chosen law against the spread that the kriged law expects."""

    def __init__(self, curve: Curve, rows: _Rows, chosen: CrossFit, kriged: CrossFit | None, cubic: CrossFit) -> None:
        self.curve, self.chosen = curve, chosen
        n = len(curve)
        self.u = (curve.frequency_hz - curve.low_hz) / max(curve.high_hz - curve.low_hz, 1.0)
        # The scatter of rows within a clock is part of what a new measurement will show.
        within = np.zeros(n)
        free = ~rows.capped
        np.add.at(within, rows.clock[free], (rows.power_w[free] - curve.target_w[rows.clock[free]]) ** 2)
        self.within = within / curve.rows
        self.spread = kriged.spread if kriged is not None else None
        self.fallback = cubic

    def interval(self, frequency_hz: Array, power_w: Array) -> tuple[Array, Array]:
        """Low and high (m,) at clocks (m,) for a law fitted to all clocks."""
        u = (frequency_hz - self.curve.low_hz) / max(self.curve.high_hz - self.curve.low_hz, 1.0)
        square = (self.chosen.loo_w - self.curve.target_w) ** 2 + self.within
        if self.spread is not None and np.isfinite(np.diag(self.spread.pair_w)).all() and np.isfinite(square).all():
            left = np.maximum(np.diag(self.spread.pair_w), 1e-9 * self.curve.target_w)
            half = self.spread.at(frequency_hz) * _local_factor(u, self.u, square / left**2)
        else:
            half = power_w * self._rough(square)
        return power_w - half, power_w + half

    def _rough(self, square: Array) -> float:
        """Relative half width from whatever left-out errors there are: with 2 or 3 clocks it is, rightly, very wide."""
        if not np.isfinite(square).all():
            square = (self.fallback.loo_w - self.curve.target_w) ** 2 + self.within
        relative = float(np.sqrt(np.mean(square / self.curve.target_w**2)))
        return float(_t_quantile(np.array(len(self.u) - 1.0))) * relative

    def left_out(self, cap: _Cap) -> LeftOut:
        """Every clock predicted without itself, interval included: what is said at clock i has not seen clock i."""
        n = len(self.u)
        low, high = np.full(n, np.nan), np.full(n, np.nan)
        loo, pair = self.chosen.loo_w, self.chosen.pair_w
        for i in range(n) if self.spread is not None else ():
            others = np.delete(np.arange(n), i)
            spread = self.spread.pair_w[i] if self.spread is not None else pair[i]
            square = (pair[i, others] - self.curve.target_w[others]) ** 2 + self.within[others]
            if not (np.isfinite(spread).all() and np.isfinite(square).all() and np.isfinite(loo[i])):
                continue
            left = np.maximum(spread[others], 1e-9 * self.curve.target_w[others])
            factor = _local_factor(self.u[i : i + 1], self.u[others], square / left**2)[0]
            low[i], high[i] = loo[i] - factor * spread[i], loo[i] + factor * spread[i]
        low, high = cap.interval(low, high)
        return LeftOut(self.curve.frequency_hz, cap.limit(loo), np.maximum(low, 0), high)


def fit(sweep: Sweep, model: str = "auto") -> SweepFit:
    """``fit_sweep`` on a ``Sweep``; error messages name its source, device and workload."""
    parts = [part for part in (sweep.device, sweep.workload) if part and part not in sweep.source]
    return fit_sweep(
        sweep.frequency_hz,
        sweep.power_w,
        capped=sweep.capped,
        domain_hz=sweep.domain_hz,
        supported_hz=sweep.supported_hz,
        model=model,
        where=": ".join([sweep.source, *parts]),
    )


def fit_report(sweeps: Iterable[Sweep], model: str = "auto") -> list[dict[str, Any]]:
    """The list that ``fit-power --json`` prints, one entry a sweep."""
    return [fit(sweep, model).to_entry(sweep.source, sweep.device, sweep.workload) for sweep in sweeps]


def fit_into_profile(profile: Profile, model: str = "auto", fitted: SweepFit | None = None) -> Profile:
    """The profile with its power curve fitted anew (``fitted``: a fit of its sweep that exists already).

    Raises BadInput where the profile has no sweep that can carry a curve.
    """
    if fitted is None:
        fitted = fit(sweep_of_profile(profile), model)
    if profile.power is None:
        raise BadInput(f"{profile.name}: power: no points were measured, expected a sweep")
    throttled = sum(point.throttled for point in profile.power.points)
    note = f"watts of {profile.power.scope}"
    block = fitted.to_power_fit(profile.power.root, note)
    if throttled:
        block = block.model_copy(
            update={"warnings": [*block.warnings, f"{throttled} throttled points were left out of the fit"]}
        )
    return profile.model_copy(update={"power_fit": block})
