"""From a stream of sensor readings to one steady figure with an interval that can be believed.

    |-- warm-up --|--------- window: whole load steps ----------|
    .  .  .  .  . [ block | block | block | block | block |  ... ]  mean of the blocks, 95 % interval
                  ^ cut where the interval of what remains is narrowest

Sampling ends when the interval is narrow enough and neither temperature nor power still drifts, or at a bound; which of these
it was is recorded. Neighbouring readings resemble each other (sensors average, heat lags), so the interval counts the
readings' effective number, not their number. Time is the device's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from profiler.hardware.device import Device, Reading
from profiler.profile import MissingHardware, PowerPoint

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplingOptions:
    """When a figure is steady, and how long to wait for it.

    ``relative_ci``: half width of the 95 % interval over the mean. ``drift_c``: change of temperature between the halves of
    the last ``drift_window_s``. ``period_s`` None: the sensor's own, at least 0.05 s.
    """

    relative_ci: float = 0.005
    warm_up_s: float = 3.0
    min_s: float = 10.0
    max_s: float = 180.0
    drift_c: float = 0.2
    drift_window_s: float = 20.0
    block_s: float = 0.5
    min_blocks: int = 12
    period_s: float | None = None


@dataclass(frozen=True)
class Mean:
    """Mean of a series, half width of its 95 % interval, and how many independent values the series is worth."""

    mean: float
    half_width: float
    effective: float


@dataclass(frozen=True)
class Steady:
    """A power point, the readings that it came from, and what is worth telling about it."""

    point: PowerPoint
    readings: list[Reading]
    notes: tuple[str, ...] = field(default=())


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Mean:
    """Mean of a stationary series, shape (n,), with a 95 % interval that allows for autocorrelation.

    The variance of the mean is gamma_0 + 2 sum gamma_k over n, the sum cut by Geyer's initial positive monotone sequence
    (Statistical Science 7, 1992), and each autocorrelation first corrected for its bias in a short series (about
    (1 + 3 rho)/n for an autoregression of order one; Kendall 1954). Student's t with the effective number of values less
    one. Negative correlation is not trusted to narrow the interval. Infinite for fewer than 4 values.
    """
    series = np.asarray(values, dtype=float)
    count = len(series)
    if count == 0:
        return Mean(math.nan, math.inf, 0.0)
    mean = float(series.mean())
    if count < 4:
        return Mean(mean, math.inf, 1.0)
    centred = series - mean
    variance = float(centred @ centred) / count
    if variance <= 0.0 or math.sqrt(variance) < 1e-12 * abs(mean):
        # A sensor that never moved tells nothing of its error but its step, which the caller knows.
        return Mean(mean, 0.0, float(count))
    lags = count // 2
    rho = np.array([float(centred[k:] @ centred[: count - k]) / (count * variance) for k in range(lags + 1)])
    inflation = _inflation(rho)
    first = min(0.99, rho[1] + (1.0 + 3.0 * max(rho[1], 0.0)) / count)
    inflation = max(1.0, inflation, (1.0 + first) / (1.0 - first) if first > 0 else 1.0)
    effective = min(float(count), max(count / inflation, 1.5))
    error = math.sqrt(variance * count / (count - 1) * inflation / count)
    return Mean(mean, _student_975(max(effective - 1.0, 1.0)) * error, effective)


def _inflation(rho: NDArray[np.float64]) -> float:
    """1 + 2 sum of autocorrelations, cut where the sum of a pair turns negative; pairs never grow."""
    total, least, k = -1.0, math.inf, 0
    while k + 1 < len(rho):
        pair = float(rho[k] + rho[k + 1])
        if pair <= 0:
            break
        least = min(least, pair)
        total += 2.0 * least
        k += 2
    return total


def _student_975(freedom: float) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _cut(values: NDArray[np.float64], keep: int) -> int:
    """How many of the first values to drop, so that the 95 % interval of the rest is narrowest; at least ``keep`` stay.

    What is left of a transient makes neighbours alike and so the interval wide; too few values make it wide as well. Only
    about a dozen lengths are tried, so that the narrowest is not one by luck.
    """
    best, narrowest = 0, math.inf
    length = float(len(values))
    while length >= max(keep, 4):
        drop = len(values) - math.floor(length)
        width = mean_interval(values[drop:]).half_width
        if width < narrowest:
            best, narrowest = drop, width
        length *= 0.8
    return best


def _halves_differ(values: NDArray[np.float64]) -> float:
    """Mean of the second half less mean of the first."""
    middle = len(values) // 2
    return float(values[middle:].mean() - values[:middle].mean())


@dataclass(frozen=True)
class _Blocks:
    """Power in blocks of equal length, from one method."""

    power_w: NDArray[np.float64]
    start_s: NDArray[np.float64]


def _blocks(
    readings: Sequence[Reading], edges: NDArray[np.float64], *, counter: bool, lag_s: float = 0.0
) -> _Blocks | None:
    """Mean power of each block between ``edges``; by the energy counter's differences, or the mean of the readings in it.

    Blocks that begin less than ``lag_s`` after the first edge are left out. None where no block is filled.
    """
    edges = edges[edges >= edges[0] + lag_s]
    usable = [r for r in readings if (r.energy_j if counter else r.power_w) is not None]
    if len(usable) < 2:
        return None
    times = np.array([r.time_s for r in usable])
    if counter:
        joules = np.array([r.energy_j for r in usable], dtype=float)
        # Between two readings the counter is taken to run evenly.
        edges = edges[(edges >= times[0]) & (edges <= times[-1])]
        if len(edges) < 2:
            return None
        return _Blocks(np.diff(np.interp(edges, times, joules)) / np.diff(edges), edges[:-1])
    watts = np.array([r.power_w for r in usable], dtype=float)
    which = np.searchsorted(edges, times, side="right") - 1
    filled = [i for i in range(len(edges) - 1) if (which == i).any()]
    if not filled:
        return None
    return _Blocks(np.array([watts[which == i].mean() for i in filled]), edges[filled])


def steady_point(
    device: Device,
    load: Callable[[], object],
    *,
    requested_hz: float | None = None,
    options: SamplingOptions | None = None,
    on_reading: Callable[[float, float], None] | None = None,
) -> Steady:
    """Run ``load`` again and again until the power it draws is steady, and return that power.

    The clock of the point is the measured one where the device tells it, else ``requested_hz``. ``on_reading`` is called
    after each check with (seconds so far, mean watts so far). Raises MissingHardware without a power sensor, or where it
    gave no reading, or where no clock is known.
    """
    options = options or SamplingOptions()
    sensor = device.power
    if sensor is None:
        raise MissingHardware(f"{device.name}: no watts can be read: {device.absent.reasons.get('power', 'no sensor')}")
    period = options.period_s or max(sensor.period_s, 0.05)
    block = max(options.block_s, 4.0 * period, sensor.averaging_s)
    begin = device.now_s()
    ends: list[float] = []
    next_check = begin + options.min_s
    stopped = "time limit"
    with device.monitor(period) as readings:
        while True:
            load()
            now = device.now_s()
            ends.append(now)
            if now < next_check:
                continue
            found = _estimate(list(readings), begin, ends, sensor.averaging_s, block, options)
            spent = now - begin
            if found is not None:
                if on_reading is not None:
                    on_reading(spent, found.mean.mean)
                if found.steady:
                    stopped = "steady"
                    break
            if spent >= options.max_s:
                break
            next_check = now + max(2.0 * block, 1.0)
        taken = list(readings)
    final = _estimate(taken, begin, ends, sensor.averaging_s, block, options)
    if final is None:
        raise MissingHardware(f"{device.name}: the power sensor ({sensor.sensor}) gave no reading under this load")
    if stopped != "steady" and final.waiting_for:
        stopped = f"time limit, {final.waiting_for}"
    return _point(device, taken, final, begin, requested_hz, stopped)


@dataclass(frozen=True)
class _Estimate:
    mean: Mean
    start_s: float
    end_s: float
    steady: bool
    waiting_for: str
    by_counter: bool
    other_w: float | None


def _estimate(
    readings: list[Reading], begin: float, ends: list[float], averaging_s: float, block: float, options: SamplingOptions
) -> _Estimate | None:
    """The best figure from what was read so far, over whole load steps."""
    end = ends[-1]
    starts = [begin, *ends[:-1]]
    warm = min(options.warm_up_s, 0.5 * (end - begin))
    whole = [s for s in starts if s >= begin + warm]
    # A step as long as the whole sampling leaves no whole one after the warm-up: then part of it has to do.
    start = whole[0] if whole else begin + warm
    step = float(np.median(np.diff([begin, *ends])))
    if whole and step < 4.0 * block:
        # A step is not even (forward, backward, optimizer): a block of whole steps sees the same each time.
        stride = math.ceil(block / step - 1e-6)
        bounds = [*whole, end]
        edges = np.array(bounds[len(whole) % stride :: stride])
    else:
        edges = np.linspace(start, end, max(1, int((end - start) / block)) + 1)
    counter = _blocks(readings, edges, counter=True)
    # An averaging sensor still shows what was before the window for as long as it averages.
    shown = _blocks(readings, edges, counter=False, lag_s=averaging_s)
    main = counter if counter is not None and len(counter.power_w) >= options.min_blocks else shown
    if main is None:
        return None
    drop = _cut(main.power_w, options.min_blocks)
    first_s = float(main.start_s[drop])
    used = main.power_w[drop:]
    mean = mean_interval(used)
    other = None
    if main is counter and shown is not None:
        tail = shown.power_w[shown.start_s >= first_s]
        other = float(tail.mean()) if len(tail) else None
    waiting = ""
    if len(used) < options.min_blocks or mean.half_width > options.relative_ci * abs(mean.mean):
        waiting = "interval still wide"
    recent = [r.temperature_c for r in readings if r.time_s >= end - options.drift_window_s]
    temperatures = np.array([t for t in recent if t is not None])
    if end - begin < options.drift_window_s:
        if len(temperatures):
            waiting = waiting or "temperature not yet watched long enough"
    elif len(temperatures) >= 4 and abs(_halves_differ(temperatures)) > options.drift_c:
        waiting = waiting or "temperature still moving"
    return _Estimate(mean, first_s, end, not waiting, waiting, main is counter, other)


def _point(
    device: Device, readings: list[Reading], found: _Estimate, begin: float, requested_hz: float | None, stopped: str
) -> Steady:
    inside = [r for r in readings if r.time_s >= found.start_s]
    clocks = [r.frequency_hz for r in inside if r.frequency_hz is not None]
    measured = float(np.mean(clocks)) if clocks else requested_hz
    if measured is None:
        raise MissingHardware(
            f"{device.name}: its clock can neither be read nor was one set, so watts cannot be placed"
        )
    notes = []
    share = max(len(inside), 1)
    # Now and then a reading falls into a moment of regulation; a point is marked where that was more than a tenth of it.
    capped = sum(r.capped for r in inside) > 0.1 * share
    throttled = sum(r.throttled for r in inside) > 0.1 * share
    if requested_hz is not None and clocks and not capped and not throttled and measured < 0.98 * requested_hz:
        capped = True
        notes.append(
            f"{requested_hz / 1e6:g} MHz was asked for and {measured / 1e6:.0f} MHz ran, for no reason that the device "
            "tells: taken as capped"
        )
    if found.other_w is not None and abs(found.other_w - found.mean.mean) > 0.03 * found.mean.mean:
        notes.append(
            f"at {measured / 1e6:.0f} MHz the energy counter says {found.mean.mean:.2f} W and the power sensor "
            f"{found.other_w:.2f} W: they disagree by more than 3 %, the counter's figure is kept"
        )
    temperatures = [r.temperature_c for r in inside if r.temperature_c is not None]
    point = PowerPoint(
        frequency_hz=measured,
        requested_hz=requested_hz,
        power_w=max(0.0, found.mean.mean),
        # A sensor that showed one value all along hides its error below its step, which nobody told us: no interval then.
        ci95_w=found.mean.half_width if 0 < found.mean.half_width < math.inf else None,
        temperature_c=round(float(np.mean(temperatures)), 2) if temperatures else None,
        samples=max(1, sum(r.power_w is not None or r.energy_j is not None for r in inside)),
        seconds_s=found.end_s - begin,
        capped=capped,
        throttled=throttled,
        stopped_by=stopped,
    )
    return Steady(point, readings, tuple(notes))
