"""From a sweep of (clock, watts) to a fitted power curve with honest errors and intervals.

The errors reported for every law are leave-one-clock-out: all rows of a clock are left out together, the law is fitted to the
rest, and its prediction is held against what was measured. For ``auto`` the weights are made anew each time (nested).

The interval is the kriged law's own: what a new measurement may be, averaged over every shape that the points allow. For a law that was
asked for by name it is stretched by how that law errs at clocks left out, against what the kriged law expects there. Of sweeps that are fitted
together it is wider where the others err. See docs/power.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiler.power.cap import Cap, plateau
from profiler.power.curve import SAME_CLOCK, Array, CrossFit, Curve, clock_groups
from profiler.power.mixture import t_quantile
from profiler.power.models import KRIGED, MODELS, cross_fit_all
from profiler.power.prediction_interval import Intervals, LeftOut
from profiler.power.priors import PRIORS, IntervalPriors
from profiler.power.source import LOWEST_W, Sweep, sweep_of_profile
from profiler.power.voices import Voice
from profiler.profile import MAX_CLOCKS, MAX_TEXT, BadInput, FittedModel, PowerFit, PowerPrediction, Profile, Provenance

GRID_CLOCKS = 64
_NO_CAP = 0.1  # so far below other watts is no cap
MOST_CLOCKS = 400  # every pair of them is left out once: time and memory grow with the cube and more
CUBIC_LAW = "the cubic law xi f^3"  # how the notes begin that compare it
_ALWAYS = ("cubic", "affine-cubic", "power-law", "ridge")  # names that every report holds
_FLAT = 0.02  # watts that move by less than this over the sweep say nothing about the clock
_FALLING = 0.05  # a fall over the whole sweep that is refused
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
    capped: NDArray[np.bool_]
    """Rows (points,) of the input that were taken to be at the cap."""
    power_cap_w: float | None = None
    warnings: list[str] = field(default_factory=list)
    curves: dict[str, Array] = field(default_factory=dict)
    """Watts (m,) of every law at ``frequency_hz``."""
    left_out_curves: dict[str, Array] = field(default_factory=dict)
    """Watts of every law at ``left_out.frequency_hz``, each fitted without that clock."""

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


def fit_sweep(
    frequency_hz: ArrayLike,
    power_w: ArrayLike,
    *,
    capped: ArrayLike | None = None,
    sd_w: ArrayLike | None = None,
    domain_hz: tuple[float, float] | None = None,
    supported_hz: Sequence[float] = (),
    model: str = "auto",
    where: str = "sweep",
    siblings: Sequence[Voice] = (),
) -> SweepFit:
    """Fit every law of ``profiler.power.models.MODELS`` to rows (n,) of clocks in Hz and watts, and predict with ``model``.

    Clocks may repeat; leaving out means a clock with all its rows. Rows marked ``capped`` (n,) bool do not shape the curve: their
    median is the cap, and no prediction exceeds it. Where ``capped`` is None a plateau of watts at the highest clocks is taken for one.
    ``sd_w`` (n,) is what each row would scatter by if it were measured again (NaN: unknown); few clocks cannot tell it by themselves.
    Predictions cover ``domain_hz`` (default: the input's range). ``siblings``: what other workloads of this chip, swept over the same
    domain, say of its voltage (``fit_together``).

    Raises BadInput, beginning with ``where``, for figures that cannot be used, an unknown ``model`` or one that needs more clocks.
    """
    name = "auto" if model == "selected" else model
    if name not in MODELS:
        raise BadInput(f"--model: {model!r} is not a power model, expected one of: {', '.join(MODELS)}")
    rows, curve, warnings = _prepared(frequency_hz, power_w, capped, sd_w, domain_hz, where)
    f, p, at_cap, clocks, domain = (
        rows.frequency_hz,
        rows.power_w,
        rows.capped,
        len(curve),
        (curve.low_hz, curve.high_hz),
    )
    if clocks < MODELS[name].minimum_clocks:
        raise BadInput(
            f"--model: {name} needs at least {MODELS[name].minimum_clocks} distinct clocks, {where} has {clocks}"
        )

    fits = cross_fit_all(curve, siblings=siblings)
    cap = Cap.of(f, p, at_cap, curve)

    at = _clocks_to_predict(f, domain, supported_hz)
    bare = {key: fit.curve(at) for key, fit in fits.items()}
    curves = {key: np.minimum(cap.limit(at, watts), _WATTS_LIMIT) for key, watts in bare.items()}
    in_table = np.searchsorted(at, f)
    models = {key: _model_fit(key, fit, bare[key][in_table], curve, rows, cap) for key, fit in fits.items()}
    # Programs look these up by name: a law that so few clocks cannot carry stands there without figures.
    models |= {key: ModelFit({}, {}, None, None, None) for key in _ALWAYS if key not in models}
    models = {key: models[key] for key in MODELS if key in models}
    chosen = fits[name]
    # A law that somebody asked for may not fit at all, and its interval has to say so.
    claim = PRIORS.interval if name in ("auto", "kriged") else IntervalPriors(claim=None)
    misses = [voice.misses for voice in siblings]
    intervals = Intervals(curve, chosen, fits.get("kriged"), fits["cubic"], claim, misses)
    low, high = intervals.at(at, bare[name])
    low, high = cap.interval(at, low, high)
    power = curves[name]
    low, high = np.clip(np.minimum(low, power), 0, None), np.clip(np.maximum(high, power), None, _WATTS_LIMIT)

    xi = models["cubic"].parameters["xi_w_per_hz3"]
    if not 0 < xi <= 1e-15:
        raise BadInput(
            f"{where}: xi would be {xi:g} W/Hz^3, expected more than 0 and at most 1e-15: check the units of the clocks"
        )
    left = intervals.left_out(cap)
    warnings += [*_warnings(name, curve, models, clocks), *_odd_point(curve, left)]
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
        left_out=left,
        capped=at_cap,
        power_cap_w=cap.power_w,
        warnings=warnings,
        curves=curves,
        left_out_curves={key: cap.limit(curve.frequency_hz, fit.loo_w) for key, fit in fits.items()},
    )


def _prepared(
    frequency_hz: ArrayLike,
    power_w: ArrayLike,
    capped: ArrayLike | None,
    sd_w: ArrayLike | None,
    domain_hz: tuple[float, float] | None,
    where: str,
) -> tuple[_Rows, Curve, list[str]]:
    """What ``fit_sweep`` is given, checked: the rows, those below the cap as a curve over the domain, and what there is to warn of."""
    f, p = np.asarray(frequency_hz, dtype=float).ravel(), np.asarray(power_w, dtype=float).ravel()
    at_cap = np.zeros(f.shape, dtype=bool) if capped is None else np.array(capped, dtype=bool).ravel()
    _check(f, p, at_cap, where)
    f = _as_one_clock(f)
    warnings: list[str] = []
    if capped is None and (at_cap := plateau(f, p)).any():
        warnings.append(
            f"the watts stay at {np.median(p[at_cap]):.1f} W from {f[at_cap].min() / 1e6:.0f} MHz on: taken for a power cap, which"
            " does not shape the curve below it"
        )
    below = p[at_cap] < (1 - _NO_CAP) * p[~at_cap].max(initial=0.0)
    if below.any():
        warnings.append(
            f"{p[at_cap][below].max():.1f} W were marked as the power cap, though {p[~at_cap].max():.1f} W were measured elsewhere: not taken for it"
        )
        at_cap[at_cap] = ~below
    free = ~at_cap
    clocks = len(np.unique(f[free]))
    if clocks < 2:
        cap = " below the power cap" if at_cap.any() else ""
        raise BadInput(
            f"{where}: power was measured at {clocks} distinct clock{'s' * (clocks != 1)}{cap}, a curve needs at least 2 (5 or more to be trusted)"
        )
    if clocks > MOST_CLOCKS:
        raise BadInput(
            f"{where}: {clocks} distinct clocks, at most {MOST_CLOCKS} can be fitted: give those the clock was set to, or the mean of each range"
        )
    _refuse_falling(f[free], p[free], where)
    domain = domain_hz or (float(f.min()), float(f.max()))
    domain = (min(domain[0], float(f.min())), max(domain[1], float(f.max())))
    known = None if sd_w is None else np.asarray(sd_w, dtype=float).ravel()[free]
    curve = Curve.of(f[free], p[free], domain, known)
    return _Rows(f, p, at_cap, np.searchsorted(curve.frequency_hz, f)), curve, warnings


def _as_one_clock(frequency_hz: Array) -> Array:
    """Clocks (n,) nearer to each other than can be set are repeats of one, their mean: no slope can be read between them."""
    clocks, place = np.unique(frequency_hz, return_inverse=True)
    group = clock_groups(clocks, SAME_CLOCK)
    return np.asarray((np.bincount(group, clocks) / np.bincount(group))[group][place])


def _refuse_falling(f: Array, p: Array, where: str) -> None:
    """Watts that fall while the clock rises are no power curve: the clocks stated are not those that ran."""
    order = np.argsort(f)
    f, p = f[order], p[order]
    slope = np.polyfit(f / f.max(), p / p.mean(), 1)[0] * (1 - f.min() / f.max())
    if slope < -_FALLING and np.corrcoef(f, p)[0, 1] < -0.5:
        raise BadInput(
            f"{where}: power falls from {p[0]:.1f} W at {f[0] / 1e6:.0f} MHz to {p[-1]:.1f} W at {f[-1] / 1e6:.0f} MHz; expected"
            " watts that rise with the clock: the clocks stated are not those that ran (a power cap, heat, columns swapped), or"
            " watts that do not depend on the clock scatter by too much to tell"
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
    if len(given) + len(grid) > MAX_CLOCKS:
        return given
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


def _model_fit(name: str, fit: CrossFit, uncapped_w: Array, curve: Curve, rows: _Rows, cap: Cap) -> ModelFit:
    """Parameters, intervals and errors of one law; ``uncapped_w`` (rows,) is the law at every row, cap not applied."""
    n = len(curve)
    predicted = cap.limit(rows.frequency_hz, uncapped_w)
    left_out = np.where(
        rows.capped, uncapped_w, cap.limit(curve.frequency_hz, fit.loo_w)[np.minimum(rows.clock, n - 1)]
    )
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
            half = float(t_quantile(np.array(n - 1.0))) * error
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
        missing = [key for key in MODELS if key not in models or models[key].mape_pct is None]
        said = f"; not fitted: {', '.join(missing)}" if missing else ""
        warnings.append(f"only {clocks} distinct clocks: errors and intervals are rough, measure 5 or more{said}")
    cubic, chosen = models["cubic"].loo_mape_pct, models[name].loo_mape_pct
    if cubic is not None and chosen is not None:
        warnings.append(
            f"{CUBIC_LAW} is {cubic:.1f} % off at clocks left out of the fit, {name} {chosen:.1f} %"
            if name != "cubic"
            else f"{CUBIC_LAW} is {cubic:.1f} % off at clocks left out of the fit"
        )
    elif cubic is not None:
        warnings.append(f"{CUBIC_LAW} is {cubic:.1f} % off at clocks left out of the fit")
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


def _odd_point(curve: Curve, left: LeftOut) -> list[str]:
    """The clock whose watts lie furthest outside of what the others lead to expect, if that is by more than half the interval's width."""
    watts = curve.target_w
    outside = np.maximum(left.low_w - watts, watts - left.high_w) / (left.high_w - left.low_w)
    if not np.isfinite(outside).any() or np.nanmax(outside) <= 0.5:
        return []
    k = int(np.nanargmax(outside))
    return [
        f"{watts[k]:.1f} W were measured at {curve.frequency_hz[k] / 1e6:.0f} MHz, where the other clocks lead to expect {left.low_w[k]:.1f} to "
        f"{left.high_w[k]:.1f} W: an odd point, or a step in the curve; measure there and beside it again"
    ]


def fit(sweep: Sweep, model: str = "auto", siblings: Sequence[Voice] = ()) -> SweepFit:
    """``fit_sweep`` on a ``Sweep``; error messages name its source, device and workload."""
    fitted = fit_sweep(
        sweep.frequency_hz,
        sweep.power_w,
        capped=sweep.capped if sweep.marked else None,
        sd_w=sweep.sd_w,
        domain_hz=sweep.domain_hz,
        supported_hz=sweep.supported_hz,
        model=model,
        where=_where(sweep),
        siblings=siblings,
    )
    told = list(fitted.warnings)
    if siblings:
        told.append(
            f"fitted together with {len(siblings)} other sweep{'s' * (len(siblings) > 1)} of this device, which share its voltages"
        )
    if sweep.heat_from_hz is not None:
        told.append(
            f"heat held the clock down where {sweep.heat_from_hz / 1e6:.0f} MHz and more were asked for: those points are left out, and what "
            "is predicted there is of a device that stays cool enough"
        )
    return replace(fitted, warnings=told)


_SAME_END = 0.01  # of the range of clocks: a clock comes out a little different each time


def fit_together(
    sweeps: Sequence[Sweep], model: str = "auto", progress: Callable[[int, int], None] = lambda done, total: None
) -> list[SweepFit]:
    """``fit`` of each sweep, those of one kind of processor (``Sweep.chip``), power scope and provenance together: their workloads share its table of
    voltages, so each hears what the others say of the shape of the curve. Sweeps whose domains differ do not. ``progress`` is told how many steps of
    how many are done."""
    chips: dict[tuple[str | None, ...], list[int]] = {}
    for k, sweep in enumerate(sweeps):
        chips.setdefault((sweep.chip or sweep.source, sweep.power_scope, sweep.provenance), []).append(k)
    curves: dict[int, Curve] = {}
    for k in (k for group in chips.values() if len(group) > 1 for k in group):
        sweep = sweeps[k]
        capped = sweep.capped if sweep.marked else None
        curves[k] = _prepared(sweep.frequency_hz, sweep.power_w, capped, sweep.sd_w, sweep.domain_hz, _where(sweep))[1]

    def hears(k: int, j: int) -> bool:
        ends = np.array([[curve.low_hz, curve.high_hz] for curve in (curves[k], curves[j])])
        one_domain = np.abs(ends[1] - ends[0]).max() < _SAME_END * np.ptp(ends[0])
        # A file that was given twice would be its own witness.
        return bool(one_domain and not np.array_equal(curves[j].target_w, curves[k].target_w))

    others = {
        k: [j for j in group if j in curves and hears(k, j)] for group in chips.values() for k in group if k in curves
    }
    heard = sorted({j for each in others.values() for j in each})
    total = len(sweeps) + len(heard)
    voices: dict[int, Voice] = {}
    for done, j in enumerate(heard):
        progress(done, total)
        voice = KRIGED.voice(curves[j])
        if voice is not None:
            voices[j] = voice
    siblings = {k: [voices[j] for j in each if j in voices] for k, each in others.items()}
    fits = []
    for k, sweep in enumerate(sweeps):
        progress(len(heard) + k, total)
        fits.append(fit(sweep, model, siblings.get(k, ())))
    return fits


def _where(sweep: Sweep) -> str:
    parts = [part for part in (sweep.device, sweep.workload) if part and part not in sweep.source]
    return ": ".join([sweep.source, *parts])


def fit_into_profile(profile: Profile, model: str = "auto", fitted: SweepFit | None = None) -> Profile:
    """The profile with its power curve fitted anew (``fitted``: a fit of its sweep that exists already).

    Raises BadInput where the profile has no sweep that can carry a curve.
    """
    if fitted is None:
        fitted = fit(sweep_of_profile(profile), model)
    if profile.power is None:
        raise BadInput(f"{profile.name}: power: no points were measured, expected a sweep")
    return profile.model_copy(
        update={"power_fit": fitted.to_power_fit(profile.power.root, f"watts of {profile.power.scope}"[:MAX_TEXT])}
    )
