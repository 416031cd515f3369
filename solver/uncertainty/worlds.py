"""Worlds that a profile leaves possible: what its intervals say of times and watts, drawn at random, and rates that vary.

One world is one way in which everything could really be: each machine a little faster or slower than its profile says, its layers too, the
server's power curve a little higher or lower. A draw changes whole machines, not single decisions, for an error of a profile is
the same in every decision that uses it.

What is drawn (z: independent standard normal; sd: ln(1 + half width) / 1.96, so that 95 % of the draws lie within the interval)

    a layer's time on a device   t exp(c z + o z_layer + m z')            at its operating clock
    the same on the server       t(f) exp(c(f) g(f) + o(f) z_layer + m z')
    server's watts               P(f) (high/P)^(g/1.96) if g > 0, else P(f) (low/P)^(-g/1.96)
    a rate                       R exp(s z), s the variation asked for, up and down apart, each round and device apart
    g(f)                         sqrt(share) z + sqrt(1 - share) h(f), h a smooth normal function of correlation length l

m is the variation asked for of a machine as a whole, c what all its segments have in common by the profile, and o what each has for itself. A profile says both: its interval of the whole step (sd
``e``) and of a segment (sd ``s``, with the share ``u`` of the step). Segments that err apart cancel within a step, so

    e^2 = c^2 + sum u^2 (s^2 - c^2),    o^2 = s^2 - c^2.

FLOPs, bytes, memory and phi are counted, not measured: they stay. What has no interval stays too, and is said to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from profiler.profile import BadInput, PowerFit, Profile, Provenance, Stat
from solver.clocktimes import (
    DIRECTIONS,
    ServerTime,
    operating_hz,
    seconds_over_clock,
    segment_half_widths,
    segment_seconds,
    timed_hz,
)
from solver.costs import CostModel, Floats, ServerPower, on_the_device, on_the_server
from solver.problem import Problem

LayerErrors = Literal["as-measured", "alike", "apart"]
SOURCES = ("device-times", "server-times", "power", "rates")
"""What can be drawn; each has a stream of random numbers of its own, so that leaving one out does not change the others."""

MOST_DRAWS = 100_000
_NORMAL_975 = 1.959963984540054
_IQR_SDS = 1.349
_MEDIAN_SD = 1.2533
"""The median of many normal readings scatters by this over the root of their number, times their standard deviation."""
_LEAST_SHARE = 0.01
"""The low end of an interval of watts counts as this share of the watts at least: a logarithm has to be taken."""
_NODES = 65


@dataclass(frozen=True)
class Variation:
    """How worlds are drawn. Nothing is checked before `Worlds`.

    ``rate_variation_pct`` is the standard deviation of the rates' logarithm, in percent: 20 means that two thirds of the draws lie within a fifth.
    ``without_interval_pct`` is a 95 % half width for times and watts whose profile has no interval; 0: they are exact.
    ``machine_variation_pct`` is one more, of all times of a machine together: heat, other work, whatever a profile cannot have seen.
    ``only`` names `SOURCES`. ``layer_errors``: whether the segments of one machine err as its intervals say, all in step, or each for
    itself. ``common_share`` is the part of the variance of a curve over the clock that lifts it as a whole;
    ``smooth_length`` the correlation length of the rest over the range of clocks. The intervals do not say these two.
    """

    draws: int = 200
    rate_variation_pct: float = 0.0
    without_interval_pct: float = 0.0
    machine_variation_pct: float = 0.0
    only: tuple[str, ...] = SOURCES
    layer_errors: LayerErrors = "as-measured"
    common_share: float = 0.5
    smooth_length: float = 0.25

    def check(self) -> None:
        """Raise BadInput, naming the option, where a value makes no sense."""
        if not 1 <= self.draws <= MOST_DRAWS:
            raise BadInput(f"--draws {self.draws}: expected a whole number from 1 to {MOST_DRAWS}")
        for option, value in (
            ("--rate-variation", self.rate_variation_pct),
            ("--without-interval", self.without_interval_pct),
            ("--machine-variation", self.machine_variation_pct),
        ):
            if not 0 <= value <= 100:
                raise BadInput(f"{option} {value:g}: expected percent from 0 to 100")
        wrong = [name for name in self.only if name not in SOURCES]
        if wrong or not self.only:
            raise BadInput(f"--only {','.join(wrong)}: expected some of {', '.join(SOURCES)}")
        if self.layer_errors not in get_args(LayerErrors):
            raise BadInput(f"--layer-errors {self.layer_errors}: expected one of {', '.join(get_args(LayerErrors))}")
        if not 0 <= self.common_share <= 1:
            raise BadInput(f"--common-share {self.common_share:g}: expected a number from 0 to 1")
        if not 0.01 <= self.smooth_length <= 100:
            raise BadInput(f"smooth_length {self.smooth_length:g}: expected 0.01 to 100 of the range of clocks")


@dataclass(frozen=True)
class Doubt:
    """How far one quantity is drawn about its figure, and what says so. ``half_width_pct`` is half of 95 %; None: taken as exact."""

    quantity: str
    half_width_pct: float | None
    common_pct: float | None
    """For times: the part that all layers of the machine have in common."""
    basis: str
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "quantity": self.quantity,
            "half_width_pct": self.half_width_pct,
            "common_half_width_pct": self.common_pct,
            "basis": self.basis,
            "provenance": self.provenance,
        }


# ------------------------------------------------------------------------------------------------------ from intervals


@dataclass(frozen=True)
class _Spread:
    """Standard deviations of the logarithm of the times of S segments at K clocks: in common and each for itself, both (S, K)."""

    common: Floats
    own: Floats
    basis: str | None
    """What says so; None: nothing does."""


def _sd(half_width: Any) -> Floats:
    """Of the logarithm, from a relative half width of 95 %: one sd too many of them reaches 1 + half width."""
    sd: Floats = np.log1p(np.maximum(half_width, 0.0)) / _NORMAL_975
    return sd


def _stat_sd_s(stat: Stat) -> float:
    """Standard deviation of a median by the spread of its samples; 0 where one sample tells nothing."""
    return 0.0 if stat.samples < 2 else _MEDIAN_SD * stat.iqr_s / _IQR_SDS / float(np.sqrt(stat.samples))


def _spread(
    profile: Profile, seconds: Floats, at_hz: Floats, leave_out: frozenset[str], variation: Variation
) -> _Spread:
    """Of the times ``seconds`` (S, K) at clocks (K,)."""
    relative, step, basis = _relative(profile, seconds, at_hz, leave_out)
    if basis is None:
        everywhere = np.full_like(seconds, float(_sd(variation.without_interval_pct / 100)))
        return _Spread(everywhere, np.zeros_like(seconds), None)
    sd = _sd(relative)
    if variation.layer_errors == "alike" or (step is None and variation.layer_errors == "as-measured"):
        return _Spread(sd, np.zeros_like(sd), basis)
    if variation.layer_errors == "apart" or step is None:
        return _Spread(np.zeros_like(sd), sd, basis)
    square = (seconds / np.maximum(seconds.sum(0), 1e-300)) ** 2
    rest = np.maximum(1 - square.sum(0), 1e-12)
    common = np.clip((_sd(step) ** 2 - (square * sd**2).sum(0)) / rest, 0.0, None)
    own = np.sqrt(np.maximum(sd**2 - common, 0.0))
    return _Spread(np.broadcast_to(np.sqrt(common), sd.shape), own, basis)


def _relative(
    profile: Profile, seconds: Floats, at_hz: Floats, leave_out: frozenset[str]
) -> tuple[Floats, Floats | None, str | None]:
    """Relative half widths of 95 %: of each segment (S, K), of the whole step (K,) if known, and what says so."""
    floor = np.maximum(seconds, 1e-12)
    widths = segment_half_widths(profile, leave_out)
    if widths is not None and profile.time_fit is not None:
        fit = profile.time_fit
        step = fit.half_width_pct("step", "step")
        whole = None if step is None else np.interp(at_hz, fit.interval_hz, step) / 100
        return np.where(seconds > 0, widths.at(at_hz) / floor, 0.0), whole, "95 % interval of the times' fit"
    kept = [d for d in DIRECTIONS if d not in leave_out]
    timings = [t for t in profile.timings if t.frequency_hz is not None] or profile.timings[:1]
    found = []
    for timing in timings:
        rows = [
            [] if segment.kind in leave_out else [getattr(row, d) for d in kept]
            for segment, row in zip(profile.segments, timing.segments, strict=True)
        ]
        sd_s = np.array([float(np.linalg.norm([_stat_sd_s(stat) for stat in row])) for row in rows])
        own_s = np.array([sum(stat.median_s for stat in row) for row in rows])
        found.append(np.divide(_NORMAL_975 * sd_s, own_s, out=np.zeros_like(sd_s), where=own_s > 0))
    nearest = np.abs(at_hz[:, None] - np.array([timed_hz(profile, t) for t in timings])).argmin(1)
    relative = np.array(found)[nearest].T
    if not relative.any():
        return relative, None, None
    steps = [timings[k].step for k in nearest]
    whole = None
    if all(step is not None and step.median_s > 0 and step.samples > 1 for step in steps):
        whole = np.array([_NORMAL_975 * _stat_sd_s(step) / step.median_s for step in steps if step is not None])
    return relative, whole, "spread of the samples"


@dataclass(frozen=True)
class _Smooth:
    """Random functions over a range of clocks: g(f) of the module's docstring, by its values at nodes."""

    nodes_hz: Floats
    root: Floats
    share: float

    @staticmethod
    def over(clocks_hz: Floats, variation: Variation) -> _Smooth:
        """Over the range of the clocks (K,); one clock makes g one number."""
        low, high = float(clocks_hz.min()), float(clocks_hz.max())
        nodes = np.linspace(low, high, _NODES) if high > low else np.array([low])
        apart = (nodes[:, None] - nodes[None, :]) / (variation.smooth_length * max(high - low, 1.0))
        values, vectors = np.linalg.eigh(np.exp(-0.5 * apart**2))
        return _Smooth(nodes, vectors * np.sqrt(np.maximum(values, 0.0)), variation.common_share)

    def draw(self, numbers: np.random.Generator, at_hz: Floats) -> Floats:
        """One function at clocks (K,)."""
        common, rest = numbers.standard_normal(), self.root @ numbers.standard_normal(len(self.nodes_hz))
        g = np.sqrt(self.share) * common + np.sqrt(1 - self.share) * rest
        values: Floats = np.interp(at_hz, self.nodes_hz, g)
        return values


# --------------------------------------------------------------------------------------------------------- machines


class _Devices:
    """The M devices at their operating clocks."""

    def __init__(self, problem: Problem, variation: Variation) -> None:
        leave_out = frozenset(problem.options.leave_out)
        rows, common, own = [], [], []
        self.doubts: list[Doubt] = []
        for profile in problem.devices:
            at = np.array([operating_hz(profile)])
            if profile.timings:
                hz, measured = segment_seconds(profile, leave_out)
                curve = seconds_over_clock(profile, hz, measured, leave_out)
                seconds = curve.at(np.arange(len(measured)), at[0])[:, None]
                spread = _spread(profile, seconds, at, leave_out, variation)
            else:
                seconds = _flops(profile)[:, None]
                everywhere = np.full_like(seconds, float(_sd(variation.without_interval_pct / 100)))
                spread = _Spread(everywhere, np.zeros_like(seconds), None)
            rows.append(seconds[:, 0])
            common.append(spread.common[:, 0])
            own.append(spread.own[:, 0])
            self.doubts.append(_time_doubt(profile, seconds[:, 0], spread, 0, variation))
        self.seconds, self.common, self.own = (np.array(x).T for x in (rows, common, own))  # (S, M)
        self.first, self.machine_sd = problem.devices[0], float(_sd(variation.machine_variation_pct / 100))
        self.whole = self.seconds.sum(0)

    def drawn(self, numbers: np.random.Generator, problem: Problem) -> tuple[Floats, Floats]:
        """(M, C) seconds of a round more than the profile model has, and (M,) the factor of a whole step."""
        z = numbers.standard_normal(self.seconds.shape[1])
        each = numbers.standard_normal(self.seconds.shape)
        machine = self.machine_sd * numbers.standard_normal(len(z))
        more = self.seconds * np.expm1(self.common * z + self.own * each + machine)
        factor = 1 + np.divide(more.sum(0), self.whole, out=np.zeros_like(self.whole), where=self.whole > 0)
        return problem.options.local_epochs * on_the_device(self.first, more).T, factor


class _Server:
    """The server's times over its clocks."""

    def __init__(self, problem: Problem, variation: Variation) -> None:
        self.profile, self.epochs = problem.server, problem.options.local_epochs
        self.machine_sd = float(_sd(variation.machine_variation_pct / 100))
        leave_out = frozenset(problem.options.leave_out)
        self.pieces: ServerTime | None = None
        if self.profile.timings:
            hz, measured = segment_seconds(self.profile, leave_out)
            pieces = seconds_over_clock(self.profile, hz, measured, leave_out)
            self.pieces = pieces
            self.at_hz = pieces.breaks_hz if len(pieces.breaks_hz) else hz
            self.seconds = pieces.at(np.arange(len(measured))[:, None], self.at_hz[None, :])
            spread = _spread(self.profile, self.seconds, self.at_hz, leave_out, variation)
        else:
            self.at_hz = np.array([problem.clocks.f_max_hz])
            self.seconds = _flops(self.profile)[:, None]
            everywhere = np.full_like(self.seconds, float(_sd(variation.without_interval_pct / 100)))
            spread = _Spread(everywhere, np.zeros_like(self.seconds), None)
        self.spread = spread
        self.smooth = _Smooth.over(self.at_hz, variation)
        self.doubt = _time_doubt(self.profile, self.seconds[:, -1], spread, -1, variation)

    def drawn(self, numbers: np.random.Generator) -> tuple[ServerTime | None, float]:
        """Seconds of a round more than the profile model has, as pieces like its own, and the factor of a whole step at the highest
        clock."""
        g = self.smooth.draw(numbers, self.at_hz)
        each = numbers.standard_normal(len(self.seconds))
        machine = self.machine_sd * numbers.standard_normal()
        excess = np.expm1(self.spread.common * g + self.spread.own * each[:, None] + machine)  # (S, K)
        more, total = self.seconds * excess, self.seconds[:, -1].sum()
        factor = 1 + float(more[:, -1].sum() / total) if total > 0 else 1.0
        if self.pieces is None:
            return None, factor
        a, b = self.pieces.a_s, self.pieces.b_cycles
        if a.shape[1] == 1:
            a_more, b_more = a * excess[:, :1], b * excess[:, :1]
        else:
            # Straight in 1/f between the breaks, and beyond them scaled as at the last one.
            x = 1.0 / self.at_hz
            slope = (more[:, :-1] - more[:, 1:]) / (x[:-1] - x[1:])
            b_more = np.column_stack([b[:, 0] * excess[:, 0], slope, b[:, -1] * excess[:, -1]])
            inner = more[:, :-1] - slope * x[:-1]
            a_more = np.column_stack([a[:, 0] * excess[:, 0], inner, a[:, -1] * excess[:, -1]])
        both = [self.epochs * on_the_server(self.profile, part) for part in (a_more, b_more)]
        return ServerTime(self.pieces.breaks_hz, *both), factor


class _Power:
    """The server's watts over its clocks, and xi."""

    def __init__(self, fit: PowerFit | None, name: str, variation: Variation) -> None:
        self.doubts: list[Doubt] = []
        self.rows = fit.predictions if fit is not None else []
        self.xi_w_per_hz3 = None if fit is None else fit.xi_w_per_hz3
        if fit is None:
            return
        assumed = float(_sd(variation.without_interval_pct / 100))
        self.xi_sd = assumed
        if fit.xi_ci95 is not None and 0 < fit.xi_ci95[0] < fit.xi_ci95[1]:
            self.xi_sd = float(np.log(fit.xi_ci95[1] / fit.xi_ci95[0])) / (2 * _NORMAL_975)
        known, half_width = self.xi_sd > assumed, float(np.expm1(_NORMAL_975 * self.xi_sd))
        if self.rows:
            self.hz = np.array([row.frequency_hz for row in self.rows])
            self.watts, low, high = np.array([(row.power_w, row.low_w, row.high_w) for row in self.rows]).T
            floor = np.maximum(self.watts, 1e-12)
            self.sd_up = np.log(np.maximum(high / floor, 1.0)) / _NORMAL_975
            self.sd_down = -np.log(np.clip(low / floor, _LEAST_SHARE, 1.0)) / _NORMAL_975
            known = bool((self.sd_up > 0).any() or (self.sd_down > 0).any())
            if not known:
                self.sd_up = self.sd_down = np.full(len(self.hz), assumed)
            half_width = float(np.median(np.expm1(_NORMAL_975 * (self.sd_up + self.sd_down) / 2)))
            self.smooth = _Smooth.over(self.hz, variation)
        basis = "95 % prediction interval of the power fit" if known else _without(variation)
        self.doubts.append(
            Doubt(
                f"{name}: power against clock" if self.rows else f"{name}: xi",
                100 * half_width if half_width > 0 else None,
                None,
                basis if self.rows or not known else "95 % interval of xi",
                fit.root,
            )
        )

    def drawn(self, numbers: np.random.Generator) -> tuple[ServerPower | None, ServerPower | None]:
        """Of the profile model and of the letter's; None where power is not known."""
        if self.xi_w_per_hz3 is None:
            return None, None
        cubic = ServerPower.cubic(self.xi_w_per_hz3 * float(np.exp(self.xi_sd * numbers.standard_normal())))
        if not self.rows:
            return cubic, cubic
        g = self.smooth.draw(numbers, self.hz)
        watts = self.watts * np.exp(g * np.where(g > 0, self.sd_up, self.sd_down))
        return ServerPower.table(self.hz.tolist(), watts.tolist()), cubic


def _flops(profile: Profile) -> Floats:
    return np.array([row.forward_flops + row.backward_flops for row in profile.flops.segments])


def _without(variation: Variation) -> str:
    if variation.without_interval_pct > 0:
        return f"no interval: within {variation.without_interval_pct:g} % is assumed"
    return "no interval: taken as exact"


def _time_doubt(profile: Profile, seconds: Floats, spread: _Spread, k: int, variation: Variation) -> Doubt:
    """The layers' typical half width and what they have in common, at clock ``k``."""
    layers = [i for i, s in enumerate(profile.segments) if s.kind == "layer"] or list(range(len(seconds)))
    machine = float(_sd(variation.machine_variation_pct / 100))
    common = float(np.hypot(np.median(spread.common[layers, k]), machine))
    total = float(np.hypot(np.median(np.hypot(spread.common[layers, k], spread.own[layers, k])), machine))
    basis = spread.basis or _without(variation)
    if machine > 0:
        basis += f"; the machine within {variation.machine_variation_pct:g} % as asked for"
    root = profile.timings[0].root if profile.timings else profile.hardware.root
    return Doubt(
        f"{profile.name}: times of its layers",
        100 * float(np.expm1(_NORMAL_975 * total)) if total > 0 else None,
        100 * float(np.expm1(_NORMAL_975 * common)) if total > 0 else None,
        basis,
        root,
    )


# ----------------------------------------------------------------------------------------------------------- worlds


class Worlds:
    """The worlds that a problem's profiles leave possible. ``doubts`` says how far each quantity is drawn.

    `draw` gives world ``d`` as a problem of its own; the same ``d`` is always the same world, for the problem's seed and this variation.
    """

    def __init__(self, problem: Problem, variation: Variation) -> None:
        """Raises BadInput, naming the option, where ``variation`` makes no sense."""
        variation.check()
        self.problem, self.variation = problem, variation
        self._devices = _Devices(problem, variation)
        self._server = _Server(problem, variation)
        self._power = _Power(problem.server.power_fit, problem.server.name, variation)
        self.doubts = self._told()

    def _told(self) -> list[Doubt]:
        told: Sequence[tuple[str, list[Doubt]]] = (
            ("device-times", self._devices.doubts),
            ("server-times", [self._server.doubt]),
            ("power", self._power.doubts),
            ("rates", [self._rate_doubt()]),
        )
        out = []
        for source, doubts in told:
            for doubt in doubts:
                held = replace(doubt, half_width_pct=None, common_pct=None, basis="left out: taken as exact")
                out.append(doubt if source in self.variation.only else held)
        return out

    def _rate_doubt(self) -> Doubt:
        variation = self.variation.rate_variation_pct
        width = 100 * float(np.expm1(_NORMAL_975 * variation / 100))
        basis = f"asked for: lognormal, standard deviation {variation:g} %" if variation else "taken as exact"
        return Doubt("rates up and down", width or None, None, basis, "assumed")

    def draw(self, d: int) -> Problem:
        """World ``d``, counting from 0."""
        problem, variation = self.problem, self.variation

        def stream(source: str) -> np.random.Generator:
            return np.random.default_rng([problem.options.seed, 1 + SOURCES.index(source), d])

        letter, tables = problem.letter, problem.tables
        if "device-times" in variation.only:
            more_s, factor = self._devices.drawn(stream("device-times"), problem)
            letter = _with_device_s(letter, letter.device_compute_s * factor[:, None])
            if tables is not None:
                tables = _with_device_s(tables, tables.device_compute_s + more_s)
        if "server-times" in variation.only:
            more, whole = self._server.drawn(stream("server-times"))
            time = letter.server_time
            letter = replace(letter, server_time=replace(time, a_s=time.a_s * whole, b_cycles=time.b_cycles * whole))
            if tables is not None and more is not None:
                time = tables.server_time
                longer = replace(time, a_s=time.a_s + more.a_s, b_cycles=time.b_cycles + more.b_cycles)
                tables = replace(tables, server_time=longer)
        if "power" in variation.only:
            table, cubic = self._power.drawn(stream("power"))
            letter = replace(letter, server_power=cubic)
            tables = None if tables is None else replace(tables, server_power=table)
        rates = problem.rates
        if "rates" in variation.only and variation.rate_variation_pct > 0:
            z = stream("rates").standard_normal((2, *rates.uplink_bps.shape))
            up, down = np.exp(z * (variation.rate_variation_pct / 100))
            rates = replace(rates, uplink_bps=rates.uplink_bps * up, downlink_bps=rates.downlink_bps * down)
        return replace(
            problem, letter=letter, tables=tables, evaluated=letter if tables is None else tables, rates=rates
        )


def _with_device_s(model: CostModel, seconds: Floats) -> CostModel:
    """Other times of the devices; what they draw meanwhile goes with the time."""
    joules = model.device_j
    if joules is not None:
        before = model.device_compute_s
        joules = joules * np.divide(seconds, before, out=np.ones_like(seconds), where=before > 0)
    return replace(model, device_compute_s=seconds, device_j=joules)
