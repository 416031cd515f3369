"""From a stream of sensor readings to one steady figure with an interval that can be believed.

    |- load rises -|- warm-up -|- window -| |- window -| |- window -| ...      a window is a row of whole load steps
                                           ^            ^                      pauses of random length
                               [----------- dropped ----][-------- kept ------ mean of the windows, 95 % interval
                                                         ^ cut where the interval of what remains is narrowest

Sampling ends when the interval is narrow enough and heat will hardly change the watts any more, or at a bound; which of these
it was is recorded. What heat will still add is told from the course of the temperature and counted in (``heat``). Sensors look at a load for part of the time only, at a beat of their own. So the load pauses for a random moment
after each window: every window meets another phase, and what the phase does to the figure shows as variance between windows.
Neighbouring windows may still resemble each other (heat lags), so the interval counts their effective number, not their
number. Time is the device's own.

Two methods are computed over the same windows wherever both exist: the energy counter's differences, taken between moments at
which the counter moved, and the mean of the power sensor's readings. The counter sums what the sensor samples, so its figure is
kept, unless it is not to be believed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from profiler.hardware.device import TOTAL_SHOWS, Device, PowerSensor, Reading
from profiler.power.heat import Habits, Settling, settling
from profiler.power.interval import Mean, mean_interval, rounding_w, steady_from, why_not_counter
from profiler.profile import BadInput, MissingHardware, PowerPoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_AGREE = 0.03
"""Counter and sensor agree within this share of the watts."""
_LOAD = 1.05
"""A load draws at least so many times the power at rest, or it has not begun."""
_PAUSE_S = 0.1  # the longest pause between windows, a period of the slowest sensors
_SHORT_STEP_S = 1.0  # longer steps meet the sensor at another phase each without a pause
_BATCH_S = 0.05  # steps shorter than this are submitted in rows, for looking at the clock waits until they have ended
_OVER_LIMIT = 1.5
"""No mean of seconds lies so far above the power limit; a counter in another unit does."""
_HELD_C = 2.0  # degrees still to come under a cap: the clock falls by some tenths of a percent for each
_MOVED = 0.1  # of a clock that nobody set: more than a boost does from one moment to the next
_OFF = 0.02  # of the clock asked for: so far off is another clock
_SILENT = 2  # windows without a single answer of the sensors,
_SILENT_S = 5.0  # and so long: a sensor that was lost is looked for again meanwhile
_FELL_SILENT = "the sensor fell silent"
_CLOCK_S = 1.0  # after which the temperature follows the new clock
_COUNTER_MOVES = 10  # in a window, for its differences to mean something


@dataclass(frozen=True)
class SamplingOptions:
    """When a figure is steady, and how long to wait for it.

    ``relative_ci``: half width of the 95 % interval over the mean. ``windows``: at least so many are kept. ``min_s`` and
    ``max_s`` count from when the load has risen above rest, for which ``start_s`` are waited. ``to_come``: heat may still
    change the watts by this share when sampling ends; what it will add is counted in, and how sure that is widens the
    interval. None: heat is not looked at. ``watch_s``: it is watched at least so long. ``period_s`` None: the sensor's own,
    at least 0.05 s. ``seed`` fixes the pauses.
    """

    relative_ci: float = 0.007
    start_s: float = 60.0
    warm_up_s: float = 3.0
    min_s: float = 10.0
    max_s: float = 180.0
    to_come: float | None = 0.01
    watch_s: float = 20.0
    windows: int = 5
    period_s: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Steady:
    """A power point, the readings that it came from, and what they taught of this device's heat (for the next point)."""

    point: PowerPoint
    readings: list[Reading]
    habits: Habits | None = None


@dataclass(frozen=True)
class Rest:
    """Power at rest: ``power_w`` with the half width of its 95 % interval (None: unknown), and the readings."""

    power_w: float
    ci95_w: float | None
    readings: list[Reading]


# ------------------------------------------------------------------------------------------------ running the load


class _Steps:
    """Runs the load in whole steps up to a moment."""

    def __init__(self, device: Device, load: Callable[[], object]) -> None:
        self._device, self._load = device, load
        self._batch, self._idle_calls = 1, 0
        self.step_s = 0.0

    def until(self, due_s: float) -> tuple[float, int]:
        """Run at least one step, on until ``due_s`` has passed; (when the last one ended, how many). Raises BadInput."""
        count, before = 0, self._device.now_s()
        while True:
            for _ in range(self._batch):
                self._load()
            count += self._batch
            now = self._device.now_s()
            self.step_s = (now - before) / self._batch
            self._idle_calls = self._idle_calls + self._batch if self.step_s <= 0 else 0
            if self._idle_calls > 100_000:
                raise BadInput(f"{self._device.name}: the load takes no time, so no power can be measured under it")
            self._batch = max(1, min(2 * self._batch, int(_BATCH_S / max(self.step_s, 1e-9))))
            before = now
            if now >= due_s:
                return now, count


@dataclass
class _Run:
    """Windows one after the other without a pause: ``edges_s`` (n + 1), ``steps`` in each (n)."""

    edges_s: list[float]
    steps: list[int]


@dataclass
class _Sampled:
    """All that one sampling saw. ``begin_s``: when the load had risen. ``length_s``: of a window, rounded up to whole steps."""

    begin_s: float
    period_s: float
    length_s: float
    readings: list[Reading]
    runs: list[_Run]
    habits: Habits
    stopped_by: str = "time limit"


def _sample(
    device: Device,
    sensor: PowerSensor,
    load: Callable[[], object],
    options: SamplingOptions,
    *,
    pauses: bool,
    above_w: float | None = None,
    habits: Habits | None = None,
    on_reading: Callable[[float, float], None] | None = None,
) -> _Sampled:
    period = options.period_s or max(sensor.period_s, 0.05)
    # An averaging sensor shows what was before a window for as long as it averages, so a window is several times that.
    length = max(options.min_s, options.watch_s) / options.windows
    longest = options.max_s / (options.windows + 2)
    dice = random.Random(options.seed)
    steps = _Steps(device, load)
    with device.monitor(period) as readings:
        first = begin = device.now_s()
        if above_w is not None:
            begin = _risen(device, steps, readings, above_w, options.start_s)
        lag = sensor.averaging_s + sensor.period_s
        warm_s, start = begin + max(options.warm_up_s, lag), device.now_s()
        if start < warm_s:
            start, _ = steps.until(warm_s)
        sampled = _Sampled(begin, period, length, readings, [_Run([start], [])], habits or Habits())
        if start - begin >= 2.0 * options.max_s:  # there is no time for a whole step of warm-up: a part of it has to do
            sampled.runs = [_Run([begin + 0.5 * options.max_s, start], [1])]
        least = max(4.0 * sensor.averaging_s, 1.2 * _COUNTER_MOVES * max(period, _beat_s(readings)))
        sampled.length_s = length = max(length, min(least, longest))
        heard, heard_s, silent = 0, start, 0
        while not sampled.runs[0].steps or begin + options.max_s - device.now_s() >= 0.5 * length:
            run = sampled.runs[-1]
            end, count = steps.until(min(run.edges_s[-1] + length, begin + options.max_s))
            run.edges_s.append(end)
            run.steps.append(count)
            answers = sum(map(_answers, list(readings)))
            silent = silent + 1 if answers == heard else 0
            if answers > heard:
                heard, heard_s = answers, end
            if silent >= _SILENT and end - heard_s >= _SILENT_S:
                # Or the watching has broken off (the card is lost, say): leaving raises why.
                sampled.stopped_by = _FELL_SILENT
                break
            if end - begin >= options.min_s:
                found = _estimate(sampled, sensor, options, list(readings))
                if found is not None and on_reading is not None:
                    on_reading(end - begin, found.mean.mean)
                least_w = 0.0 if above_w is None or end - first >= options.start_s else above_w
                if found is not None and not found.waiting_for and found.mean.mean >= least_w:
                    sampled.stopped_by = "steady"
                    break
            if pauses and steps.step_s < _SHORT_STEP_S:
                device.wait(dice.uniform(0.0, _PAUSE_S))
                start, _ = steps.until(device.now_s() + lag)  # until the sensor has forgotten the pause
                sampled.runs.append(_Run([start], []))
    sampled.readings = list(readings)
    return sampled


def _risen(device: Device, steps: _Steps, readings: Sequence[Reading], above_w: float, patience_s: float) -> float:
    """Run the load until it draws more than ``above_w`` (a program may have to start first); the time since which it may do so."""
    begin = since = device.now_s()
    while True:
        now, _ = steps.until(since + 1.0)
        watts = [r.power_w for r in list(readings) if r.power_w is not None and r.time_s > since]
        if not watts or float(np.median(watts)) > above_w or now - begin >= patience_s:
            return since
        since = now


# ------------------------------------------------------------------------------------------------ windows into watts


def _beat_s(readings: Sequence[Reading]) -> float:
    """The usual time between two moments at which the energy counter moved; 0 where there is none."""
    counted = [(r.time_s, r.energy_j) for r in list(readings) if r.energy_j is not None]
    moved = [b[0] for a, b in itertools.pairwise(counted) if b[1] != a[1]]
    return float(np.median(np.diff(moved))) if len(moved) > 1 else 0.0


@dataclass(frozen=True)
class _Window:
    """[start_s, end_s) of ``steps`` whole load steps (0: parts of one)."""

    start_s: float
    end_s: float
    steps: int


def _windows(sampled: _Sampled, readings: Sequence[Reading], options: SamplingOptions) -> tuple[list[_Window], int]:
    """All windows in which the sensors were read throughout, and how many of them make whole steps."""
    found = [
        _Window(run.edges_s[k], run.edges_s[k + 1], run.steps[k]) for run in sampled.runs for k in range(len(run.steps))
    ]
    each = 1
    if 0 < len(found) < 3 * options.windows and len(sampled.runs) == 1 and max(w.steps for w in found) == 1:
        # Steps so long that there are few: where power is even, parts of whole steps tell as much in less time.
        step_s = (found[-1].end_s - found[0].start_s) / len(found)
        each = max(math.ceil(2 * options.windows / len(found)), int(step_s / sampled.length_s))
        found = [
            _Window(float(a), float(b), 0)
            for window in found
            for a, b in itertools.pairwise(np.linspace(window.start_s, window.end_s, each + 1))
        ]
    times = np.array([r.time_s for r in readings])

    def longest_gap(window: _Window) -> float:
        inside = times[(times >= window.start_s) & (times <= window.end_s)]
        return float(np.diff([window.start_s, *inside, window.end_s]).max())

    # A machine that was suspended, or a starved thread, leaves holes; where all windows have them they are the load's own.
    whole = [w for w in found if longest_gap(w) <= max(1.0, 10.0 * sampled.period_s)]
    if each == 1 and len(whole) >= 0.5 * len(found):
        return whole, 1
    return found, each


def _by_sensor(windows: Sequence[_Window], times: Array, watts: Array) -> Array:
    """Mean of the readings in each window, shape (windows,); NaN where there is none.

    An averaging sensor is late. In a row of like steps that does not matter: over whole steps it meets every moment of a step
    as often as any other, once it has forgotten what was before.
    """
    means = np.full(len(windows), np.nan)
    for k, window in enumerate(windows):
        inside = (times >= window.start_s) & (times < window.end_s)
        if inside.any():
            means[k] = watts[inside].mean()
    return means


def _by_counter(windows: Sequence[_Window], times: Array, joules: Array, least: int) -> Array:
    """The counter's differences over each window, shape (windows,), in watts; NaN where it moved less than ``least`` times.

    Only readings at which the counter had moved count: they are all late by less than one look, while the others lag by up
    to the counter's own period. Over a row of steps, first and last quarter of these moments are averaged, which takes most
    of that lateness out; a window of few steps is taken from edge to edge, for a step is not even.
    """
    moved = np.concatenate([[True], np.diff(joules) != 0])
    times, joules = times[moved], joules[moved]
    watts = np.full(len(windows), np.nan)
    for k, window in enumerate(windows):
        inside = (times >= window.start_s) & (times <= window.end_s)
        count = int(inside.sum())
        if count < least:
            continue
        t, e = times[inside], joules[inside]
        if window.steps >= 8 and count >= 4:
            some = count // 4
            watts[k] = (e[-some:].mean() - e[:some].mean()) / (t[-some:].mean() - t[:some].mean())
        else:
            edges = np.clip([window.start_s, window.end_s], times[0], times[-1])
            watts[k] = np.diff(np.interp(edges, times, joules))[0] / np.diff(edges)[0]
    return watts


@dataclass(frozen=True)
class _Estimate:
    """``mean`` by ``method`` over ``windows``; both methods over the same; ``waiting_for`` empty: steady."""

    mean: Mean
    method: Literal["energy counter", "power sensor"]
    windows: list[_Window]
    counter_w: float | None
    sensor_w: float | None
    agreement: Literal["agree", "disagree"] | None
    waiting_for: str
    distrust: str | None
    to_come_w: float
    habits: Habits | None


def _estimate(
    sampled: _Sampled, sensor: PowerSensor, options: SamplingOptions, readings: Sequence[Reading]
) -> _Estimate | None:
    """The best figure from what was read so far; None where nothing was read, or nothing in most of the time."""
    readings = _sound(readings)
    windows, each = _windows(sampled, readings, options)
    answered_s = [r.time_s for r in readings if _answers(r)]
    edges_s = np.array([(window.start_s, window.end_s) for window in windows]).reshape(-1, 2)
    if not windows or np.mean(np.diff(np.searchsorted(answered_s, edges_s)) > 0) < 0.5:
        return None
    by_counter, by_sensor, distrust = _both_ways(windows, readings, sensor)
    main = by_counter if by_counter is not None else by_sensor
    if main is None:
        return None
    known = np.isfinite(main)
    series, windows = main[known], [w for w, k in zip(windows, known, strict=True) if k]
    heat = _heat(sampled, readings, options, windows, series)
    to_come_w, open_w = np.zeros(len(series)), 0.0
    drop = steady_from(series, options.windows, each if known.all() else len(series))
    if heat is not None:
        corrected = series + heat.to_come_w
        first = steady_from(corrected, options.windows, each if known.all() else len(series))
        open_w = heat.half_width_w(first)
        if open_w <= options.relative_ci * abs(float(corrected[first:].mean())):
            to_come_w, drop = heat.to_come_w, first
        else:  # too little is known of what is to come to count it in; how far off that may leave the figure is known
            open_w += abs(float(corrected[first:].mean() - series[drop:].mean()))
    series, windows = series + to_come_w, windows[drop:]
    mean = mean_interval(series[drop:])

    def other(values: Array | None) -> Mean | None:
        kept = None if values is None else (values[known] + to_come_w)[drop:]
        return None if kept is None or not np.isfinite(kept).any() else mean_interval(kept[np.isfinite(kept)])

    of_counter, of_sensor = other(by_counter), other(by_sensor)
    if of_sensor is not None:
        inside = [r for r in readings if windows[0].start_s <= r.time_s <= windows[-1].end_s]
        step_w = rounding_w(np.array([r.power_w for r in inside if r.power_w is not None]))
        of_sensor = replace(of_sensor, half_width=math.hypot(of_sensor.half_width, step_w))
    if by_counter is None and of_sensor is not None:
        mean = of_sensor
    if mean.half_width > 0:
        mean = replace(mean, half_width=math.hypot(mean.half_width, open_w))
    return _Estimate(
        mean=mean,
        method="power sensor" if by_counter is None else "energy counter",
        windows=windows,
        counter_w=None if of_counter is None else of_counter.mean,
        sensor_w=None if of_sensor is None else of_sensor.mean,
        agreement=_agreement(of_counter, of_sensor),
        waiting_for=_waiting_for(sampled, readings, options, windows, mean, open_w, heat),
        distrust=distrust,
        to_come_w=float(to_come_w[-1]),
        habits=heat.habits if heat is not None else None,
    )


def _both_ways(
    windows: Sequence[_Window], readings: Sequence[Reading], sensor: PowerSensor
) -> tuple[Array | None, Array | None, str | None]:
    """Watts of each window by the energy counter and by the power sensor, None where there are none, and why the counter is not believed."""
    shown = [(r.time_s, r.power_w) for r in readings if r.power_w is not None]
    counted = [(r.time_s, r.energy_j) for r in readings if r.energy_j is not None]
    by_sensor = None
    if shown:
        by_sensor = _by_sensor(windows, *np.array(shown, dtype=float).T)
        if not np.isfinite(by_sensor).any():
            by_sensor = None
    if len(counted) < 2:
        return None, by_sensor, None
    moments, joules = np.array(counted, dtype=float).T
    # A counter that moves seldom is better than nothing at all.
    by_counter = _by_counter(windows, moments, joules, _COUNTER_MOVES if by_sensor is not None else 2)
    distrust = why_not_counter(moments, joules, by_counter)
    if distrust is None and sensor.limit_w is not None:
        most_w = _OVER_LIMIT * sensor.limit_w
        counter_w = float(np.nanmedian(by_counter))
        if counter_w > most_w and not (by_sensor is not None and np.nanmedian(by_sensor) > most_w):
            distrust = f"the energy counter says {counter_w:.0f} W, which the power limit of {sensor.limit_w:g} W does not allow"
    return (by_counter if distrust is None else None), by_sensor, distrust


def _waiting_for(
    sampled: _Sampled,
    readings: Sequence[Reading],
    options: SamplingOptions,
    windows: Sequence[_Window],
    mean: Mean,
    open_w: float,
    heat: Settling | None,
) -> str:
    """What the figure is not good enough for yet; empty: it is steady."""
    enough_w = options.relative_ci * abs(mean.mean)
    to_come_w = abs(float(heat.to_come_w[-1])) if heat is not None else 0.0
    moving = options.to_come is not None and to_come_w > options.to_come * abs(mean.mean)
    if moving and to_come_w > open_w:
        return "temperature still moving"
    if len(windows) < options.windows or not mean.half_width**2 - open_w**2 <= enough_w**2:
        return "interval still wide"
    if max(open_w, mean.half_width) > enough_w:
        return "temperature still moving"
    if options.to_come is None or all(reading.temperature_c is None for reading in readings):
        return ""
    end_s = windows[-1].end_s
    if heat is None or end_s - sampled.begin_s < options.watch_s:
        return "temperature not yet watched long enough"
    if moving:
        return "temperature still moving"
    # Where a limit holds the clock down, heat shows in the clock and not in the watts.
    inside = [r for r in readings if windows[0].start_s <= r.time_s <= end_s]
    held = sum(r.capped or r.throttled for r in inside) > 0.1 * len(inside)
    return "temperature still moving" if held and heat.to_come_c > _HELD_C else ""


def _heat(
    sampled: _Sampled, readings: Sequence[Reading], options: SamplingOptions, windows: Sequence[_Window], series: Array
) -> Settling | None:
    """What heat has still to add to the watts of these windows; None where the temperature does not tell, or there are no watts."""
    if options.to_come is None or not windows or not np.any(series):
        return None
    since_s, end_s = sampled.begin_s + _CLOCK_S, windows[-1].end_s
    told = [(r.time_s, r.temperature_c) for r in readings if since_s <= r.time_s <= end_s]
    known = np.array([(t, celsius) for t, celsius in told if celsius is not None], dtype=float)
    if len(known) < 0.5 * len(told) or not len(known):
        return None
    starts, ends = (np.array(edge) for edge in zip(*((w.start_s, w.end_s) for w in windows), strict=True))
    return settling(known[:, 0], known[:, 1], starts, ends, series, sampled.habits)


def _answers(reading: Reading) -> bool:
    """Whether this look told anything of the power."""
    return any(figure is not None and math.isfinite(figure) for figure in (reading.power_w, reading.energy_j))


def _sound(readings: Sequence[Reading]) -> list[Reading]:
    """Readings in order of time, each later than the one before; figures that are no numbers taken as missing."""
    sound: list[Reading] = []
    for reading in readings:
        if sound and reading.time_s <= sound[-1].time_s:
            continue
        if reading.power_w is not None and not (math.isfinite(reading.power_w) and reading.power_w >= 0):
            reading = replace(reading, power_w=None)
        if reading.energy_j is not None and not math.isfinite(reading.energy_j):
            reading = replace(reading, energy_j=None)
        sound.append(reading)
    return sound


def _agreement(counter: Mean | None, sensor: Mean | None) -> Literal["agree", "disagree"] | None:
    if counter is None or sensor is None:
        return None
    apart = abs(counter.mean - sensor.mean)
    if apart <= _AGREE * counter.mean:
        return "agree"
    return "disagree" if apart > math.hypot(counter.half_width, sensor.half_width) else None


# ------------------------------------------------------------------------------------------------------ the figures


def steady_point(
    device: Device,
    load: Callable[[], object],
    *,
    requested_hz: float | None = None,
    rest_w: float | None = None,
    options: SamplingOptions | None = None,
    habits: Habits | None = None,
    on_reading: Callable[[float, float], None] | None = None,
) -> Steady:
    """Run ``load`` again and again until the power it draws is steady, and return that power.

    The clock of the point is the measured one where the device tells it, else ``requested_hz``. With ``rest_w``, the power at
    rest, sampling waits until the load shows (a program has to start first). ``on_reading`` is called after each window with
    (seconds so far, mean watts so far). Raises MissingHardware without a power sensor, or where it gave no reading, or where
    no clock is known; BadInput where the load takes no time.
    """
    options = options or SamplingOptions()
    sensor = _sensor(device)
    above_w = None if rest_w is None else _LOAD * rest_w
    sampled = _sample(device, sensor, load, options, pauses=True, above_w=above_w, habits=habits, on_reading=on_reading)
    found = _settled(device, sampled, sensor, options, "under this load")
    return Steady(
        _point(device, sensor, sampled, found, requested_hz, rest_w), sampled.readings, found.habits or habits
    )


def rest_power(
    device: Device, options: SamplingOptions | None = None, on_reading: Callable[[float, float], None] | None = None
) -> Rest:
    """Power while the device is left alone, half as exact as ``options`` say and in less time. Raises MissingHardware."""
    options = options or SamplingOptions()
    sensor = _sensor(device)
    # What was hot cools for minutes, which does not matter here as much as the time.
    brief = replace(
        roughly(options),
        min_s=options.min_s / 2,
        watch_s=options.min_s / 2,
        to_come=None,
        max_s=rest_limit_s(options),
    )
    sampled = _sample(device, sensor, lambda: device.wait(0.25), brief, pauses=False, on_reading=on_reading)
    found = _settled(device, sampled, sensor, brief, "at rest")
    return Rest(max(0.0, found.mean.mean), _interval(found.mean), sampled.readings)


def _settled(device: Device, sampled: _Sampled, sensor: PowerSensor, options: SamplingOptions, when: str) -> _Estimate:
    """The figure of a whole sampling. Raises MissingHardware where the sensor gave none, or fell silent before it was good."""
    found = _estimate(sampled, sensor, options, sampled.readings)
    if found is not None and sampled.stopped_by != _FELL_SILENT:
        return found
    answered = sum(map(_answers, sampled.readings))
    if not answered:
        raise MissingHardware(f"{device.name}: the power sensor ({sensor.sensor}) gave no reading {when}")
    sound = _sound(sampled.readings)
    _, by_sensor, distrust = _both_ways(_windows(sampled, sound, options)[0], sound, sensor)
    if found is None and by_sensor is None and distrust is not None:
        raise MissingHardware(
            f"{device.name}: {distrust}, and nothing else tells the watts {when} ({sensor.sensor}): no figure is kept"
        )
    raise MissingHardware(
        f"{device.name}: the power sensor ({sensor.sensor}) answered {answered} of {len(sampled.readings)} times {when}, too few for "
        "a figure: none is kept, and the next run measures it again"
    )


def roughly(options: SamplingOptions) -> SamplingOptions:
    """Half as exact, for figures that only confirm others."""
    to_come = None if options.to_come is None else 2 * options.to_come
    return replace(options, relative_ci=2 * options.relative_ci, to_come=to_come)


def rest_limit_s(options: SamplingOptions) -> float:
    """The longest that ``rest_power`` takes."""
    return max(options.min_s, 20.0)


def _sensor(device: Device) -> PowerSensor:
    if device.power is None:
        raise MissingHardware(f"{device.name}: no watts can be read: {device.absent.reasons.get('power', 'no sensor')}")
    return device.power


def _interval(mean: Mean) -> float | None:
    # A sensor that showed one value all along hides its error below its step, which nobody told us: no interval then.
    return mean.half_width if 0 < mean.half_width < math.inf else None


def _point(
    device: Device,
    sensor: PowerSensor,
    sampled: _Sampled,
    found: _Estimate,
    requested_hz: float | None,
    rest_w: float | None,
) -> PowerPoint:
    bounds = [(w.start_s, w.end_s) for w in found.windows]
    inside = [r for r in sampled.readings if any(a <= r.time_s <= b for a, b in bounds)]
    clocks = [r.frequency_hz for r in inside if r.frequency_hz is not None]
    if sum(r.capped or r.throttled for r in inside) > 0.1 * len(inside):  # held down, it falls as the heat comes
        clocks = clocks[len(clocks) // 2 :]
    measured = float(np.mean(clocks)) if clocks else requested_hz
    if measured is None:
        raise MissingHardware(
            f"{device.name}: its clock can neither be read nor was one set, so watts cannot be placed"
        )
    watts, at = found.mean.mean, f"at {measured / 1e6:.0f} MHz"
    notes = []
    if requested_hz is None and clocks:
        low, high = np.percentile(clocks, [5, 95])
        if high - low > _MOVED * measured:
            notes.append(
                f"the clock moved between {low / 1e6:.0f} and {high / 1e6:.0f} MHz: these watts are a mixture and belong to no one clock"
            )
    looks = max(len(inside), 1)
    # Now and then a reading falls into a moment of regulation; a point is marked where that was more than a tenth of it.
    capped = sum(r.capped for r in inside) > 0.1 * looks
    throttled = sum(r.throttled for r in inside) > 0.1 * looks
    # A limit that is in force above the clock asked for (a chip still warm from the clock before) holds nothing down.
    throttled = throttled and (requested_hz is None or not clocks or measured < 0.99 * requested_hz)
    if requested_hz is not None and clocks and not capped and not throttled and measured < (1 - _OFF) * requested_hz:
        limit_w = device.describe().power_cap_w
        capped = limit_w is None or watts >= 0.95 * limit_w
        taken = "taken as capped" if capped else f"at {watts:.1f} W it is not the power cap of {limit_w:g} W"
        notes.append(
            f"{requested_hz / 1e6:g} MHz was asked for and {measured / 1e6:.0f} MHz ran, for no reason that the device "
            f"tells: {taken}"
        )
    if requested_hz is not None and measured > (1 + _OFF) * requested_hz:  # which neither cap nor heat does
        notes.append(
            f"{requested_hz / 1e6:g} MHz was asked for and {measured / 1e6:.0f} MHz ran: the lock did not take, or another "
            "program undid it"
        )
    if requested_hz is not None and not clocks:
        limit_w = device.describe().power_cap_w
        at_cap = limit_w is not None and watts >= 0.95 * limit_w
        capped = capped or at_cap
        held = f", and as capped, for {watts:.1f} W are the power cap" if at_cap else ""
        notes.append(f"{at} the clock was not told: the one asked for is taken{held}")
    if found.distrust is not None:
        notes.append(f"{at} {found.distrust}: the power sensor's figure is kept")
    elif sensor.counter and (found.counter_w is None or found.sensor_w is None):
        silent = "energy counter" if found.counter_w is None else "power sensor"
        notes.append(
            f"{at} the {silent} gave nothing: the figure is by the {found.method} alone, which nothing confirms"
        )
    if found.agreement == "disagree":
        notes.append(
            f"{at} the energy counter says {found.counter_w:.2f} W and the power sensor {found.sensor_w:.2f} W: they "
            f"disagree by more than {100 * _AGREE:g} %, the counter's figure is kept"
        )
    answered = sum(map(_answers, inside))
    if answered < 0.5 * len(inside):
        notes.append(f"{at} the power sensor answered {answered} of {len(inside)} times")
    if rest_w is not None and watts < _LOAD * rest_w:
        notes.append(f"{at} the load draws {watts:.2f} W, hardly more than rest ({rest_w:.2f} W): did it run?")
    told = [(r.power_w, r.rails_w) for r in inside if r.power_w is not None and r.rails_w is not None]
    shown_w = sum(total_w for total_w, _ in told) / max(len(told), 1)
    behind_w = sum(rails_w.get(label, 0.0) for _, rails_w in told for label in sensor.behind) / max(len(told), 1)
    if shown_w < TOTAL_SHOWS * behind_w:  # not seen when the board was opened: at rest the rails behind it show little
        notes.append(
            f"{at} the total shows {shown_w:.2f} W and the rails behind it ({', '.join(sensor.behind)}) {behind_w:.2f} W: it "
            "cannot be the total, and this figure is too low; name another rail with CARD_POWER_RAIL"
        )
    temperatures = [r.temperature_c for r in inside if r.temperature_c is not None]
    stopped = sampled.stopped_by
    if stopped != "steady" and found.waiting_for:
        stopped = f"{stopped}, {found.waiting_for}"
    if not temperatures:
        stopped += ", by the watts alone: no thermometer to watch"
    if abs(found.to_come_w) >= 0.001 * watts > 0:
        stopped += f", {100 * found.to_come_w / watts:+.1f} % counted in for heat to come"
    return PowerPoint(
        frequency_hz=measured,
        requested_hz=requested_hz,
        power_w=max(0.0, watts),
        ci95_w=_interval(found.mean),
        temperature_c=round(float(np.mean(temperatures)), 2) if temperatures else None,
        samples=max(1, answered),
        seconds_s=found.windows[-1].end_s - sampled.begin_s,
        capped=capped,
        throttled=throttled,
        stopped_by=stopped,
        method=found.method,
        counter_w=found.counter_w,
        sensor_w=found.sensor_w,
        agreement=found.agreement,
        notes=notes,
    )
