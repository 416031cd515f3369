"""A power sweep: which clocks, in which order, and the clocks given back whatever happens.

Clocks are visited low, high, second lowest, second highest, ... so that a machine that warms up over the sweep does not look
like a power law: heat and clock stay uncorrelated. Idle power is taken before the first and after the last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np

from profiler.hardware.device import Device, Reading
from profiler.power.sampling import SamplingOptions, mean_interval, steady_point
from profiler.profile import BadInput, MissingHardware, PowerBlock, PowerPoint

AUTO_CLOCKS = 8
"""Enough for a law with three or four parameters and to leave some out; more clocks cost more time than they teach."""
_EXPECTED = "expected auto, all, current, a count (8), one clock (1300mhz) or several in MHz (300,600,1300)"

Load = Callable[[], AbstractContextManager[Callable[[], object]]]
"""Starts the load and stops it when the context ends; the value is called again and again while the load shall last.

It is started once for each clock, so that the machine is at rest before the sweep, after it, and while layers are timed."""


@dataclass(frozen=True)
class ClockChoice:
    """Clocks to visit, ascending, in Hz. Empty with ``locks`` False: the one point that the device is at, nothing is locked."""

    frequencies_hz: tuple[float, ...]
    locks: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepResult:
    """The block for the profile, the readings at rest (those at the points went to ``on_point``), and notes."""

    block: PowerBlock
    at_rest: list[Reading] = field(repr=False)
    notes: tuple[str, ...] = ()


def choose_clocks(spec: str, supported_hz: Sequence[float]) -> ClockChoice:
    """What ``--clocks spec`` means on a device with these clocks (ascending, Hz; empty: clocks cannot be set).

    ``auto``: about 8; ``all``; ``current``: lock nothing; a bare integer: that many; ``1300mhz`` or a list with commas:
    clocks in MHz, each taken to the nearest supported one, which ``notes`` then tell. Raises BadInput naming the option;
    MissingHardware where clocks are asked for that this device cannot set (``auto`` then means ``current``).
    """
    text = spec.strip().lower()
    if not text:
        raise BadInput(f"--clocks {spec!r}: {_EXPECTED}")
    if text == "current":
        return ClockChoice((), locks=False)
    wanted = None if text in ("auto", "all") or re.fullmatch(r"\d+", text) else _clocks_mhz(spec, text)
    count = int(text) if re.fullmatch(r"\d+", text) else None
    if count is not None and not 1 <= count <= 10_000:
        raise BadInput(f"--clocks {spec}: a bare number is a count of clocks, from 1 to 10000; one clock is {spec}mhz")
    if not supported_hz:
        if text == "auto":
            return ClockChoice((), locks=False, notes=("the clock cannot be set here: one point at the present clock",))
        raise MissingHardware(
            f"--clocks {spec}: the clock of this device cannot be set; --clocks current takes one point"
        )
    supported = sorted(supported_hz)
    if text == "all":
        return ClockChoice(tuple(supported), locks=True)
    if wanted is None:
        notes: tuple[str, ...] = ()
        if count is not None and count > len(supported):
            notes = (f"{count} clocks were asked for and the device has {len(supported)}: all are taken",)
        # Such a large bare number is more likely a clock whose unit was forgotten.
        if count is not None and count > len(supported) and count >= 100:
            raise BadInput(
                f"--clocks {spec}: a bare number is a count, and the device has {len(supported)} clocks; "
                f"for the clock write {spec}mhz"
            )
        return ClockChoice(_spread(supported, AUTO_CLOCKS if count is None else count), locks=True, notes=notes)
    low, high = supported[0], supported[-1]
    chosen, told = [], []
    for mhz in wanted:
        nearest = min(supported, key=lambda hz: abs(hz - mhz * 1e6))
        if not 0.9 * low <= mhz * 1e6 <= 1.1 * high:
            raise BadInput(
                f"--clocks {spec}: {mhz:g} MHz is outside what the device supports, {low / 1e6:g} to {high / 1e6:g} MHz"
            )
        if abs(nearest - mhz * 1e6) > 0.5e6:
            told.append(f"{mhz:g} MHz is not supported: {nearest / 1e6:g} MHz is taken")
        chosen.append(nearest)
    return ClockChoice(tuple(sorted(set(chosen))), locks=True, notes=tuple(told))


def _clocks_mhz(spec: str, text: str) -> list[float]:
    """The clocks of ``1300mhz`` or ``300,600,1300`` (each may carry the unit)."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and parts[-1] == "":
        parts = parts[:-1]  # "1300," is a list of one
    values = []
    for part in parts:
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*(mhz)?", part)
        if match is None or (len(parts) == 1 and "," not in text and match.group(2) is None):
            raise BadInput(f"--clocks {spec}: {part!r} is not a clock; {_EXPECTED}")
        value = float(match.group(1))
        if value <= 0:
            raise BadInput(f"--clocks {spec}: {part!r}: a clock is above 0 MHz")
        values.append(value)
    return values


def _spread(supported: Sequence[float], count: int) -> tuple[float, ...]:
    """``count`` clocks of the table, both ends always, somewhat closer together towards the ends.

    A fit errs most where it must extrapolate, so the ends are taken; a mixture of even spacing and the Chebyshev-Lobatto
    points keeps the error between the points even. One clock: the highest.
    """
    count = min(count, len(supported))
    if count == 1:
        return (supported[-1],)
    steps = np.arange(count) / (count - 1)
    places = 0.5 * steps + 0.5 * (1.0 - np.cos(np.pi * steps)) / 2.0
    low, high = supported[0], supported[-1]
    free = list(supported)
    chosen = []
    for place in [places[0], places[-1], *places[1:-1]]:
        nearest = min(free, key=lambda hz: abs(hz - (low + place * (high - low))))
        free.remove(nearest)
        chosen.append(nearest)
    return tuple(sorted(chosen))


def visiting_order(frequencies_hz: Sequence[float]) -> tuple[float, ...]:
    """Lowest, highest, second lowest, second highest, ...: place in the order and clock are nearly uncorrelated."""
    rest = sorted(frequencies_hz)
    order = []
    while rest:
        order.append(rest.pop(0))
        if rest:
            order.append(rest.pop())
    return tuple(order)


def estimate_sweep_s(choice: ClockChoice, options: SamplingOptions | None = None) -> tuple[float, float]:
    """Shortest and longest time that the sweep will take on the device's clock, without what is done beside it."""
    options = options or SamplingOptions()
    points = max(1, len(choice.frequencies_hz))
    idle = 2 * _idle_options(options).min_s
    least = max(options.min_s, options.drift_window_s)
    return points * least + idle, points * options.max_s + 2 * _idle_options(options).max_s


def visit_clocks(device: Device, frequencies_hz: Sequence[float], body: Callable[[float], None]) -> None:
    """Lock each clock in turn (in ``visiting_order``), call ``body(requested_hz)`` while it is held, and give the clock back.

    It is given back on every way out, KeyboardInterrupt and SystemExit too. Raises MissingHardware where clocks cannot be set.
    """
    control = device.clocks
    if control is None:
        raise MissingHardware(f"{device.name}: {device.absent.reasons.get('clocks', 'its clock cannot be set')}")
    try:
        for frequency_hz in visiting_order(frequencies_hz):
            control.lock(frequency_hz)
            body(frequency_hz)
    finally:
        control.reset()


def run_sweep(
    device: Device,
    load: Load,
    choice: ClockChoice,
    *,
    load_name: str,
    options: SamplingOptions | None = None,
    at_clock: Callable[[float | None], None] | None = None,
    on_point: Callable[[PowerPoint, list[Reading]], None] | None = None,
    done: Collection[PowerPoint] = (),
    on_progress: Callable[[str, float, float], None] | None = None,
) -> SweepResult:
    """Measure the steady power under ``load`` at every clock of ``choice``.

    At each clock: lock, sample until steady, ``at_clock(requested_hz)`` while the clock is still held (to time layers there;
    None where nothing is locked), then ``on_point(point, readings)``: when that is called, everything at this clock is complete.
    ``done``: points of an earlier, interrupted sweep; their clocks are not visited again. ``on_progress`` is called while
    sampling with (what, seconds so far, mean watts so far). Raises MissingHardware without a power sensor.
    """
    options = options or SamplingOptions()
    sensor = device.power
    if sensor is None:
        raise MissingHardware(f"{device.name}: no watts can be read: {device.absent.reasons.get('power', 'no sensor')}")
    points = list(done)
    at_rest: list[Reading] = []
    notes = list(choice.notes)

    def idle() -> float:
        return _idle_w(device, options, at_rest, on_progress)

    def measure(requested_hz: float | None) -> None:
        what = "current clock" if requested_hz is None else f"{requested_hz / 1e6:g} MHz"

        def tell(seconds_s: float, power_w: float) -> None:
            if on_progress is not None:
                on_progress(what, seconds_s, power_w)

        with load() as step:
            steady = steady_point(device, step, requested_hz=requested_hz, options=options, on_reading=tell)
        if at_clock is not None:
            at_clock(requested_hz)
        points.append(steady.point)
        notes.extend(steady.notes)
        if on_point is not None:
            on_point(steady.point, list(steady.readings))

    before_w = idle()
    if choice.locks:
        known = {point.requested_hz for point in done}
        left = [hz for hz in choice.frequencies_hz if hz not in known]
        if left:
            visit_clocks(device, left, measure)
    elif not done:
        measure(None)
    after_w = idle()
    idle_w = (before_w + after_w) / 2
    if abs(after_w - before_w) > 0.05 * idle_w + 0.2:
        notes.append(
            f"idle power was {before_w:.2f} W before the sweep and {after_w:.2f} W after it; their mean is kept"
        )
    block = PowerBlock(
        provenance=device.provenance,
        scope=sensor.scope,
        sensor=sensor.sensor,
        load=load_name,
        idle_w=idle_w,
        points=sorted(points, key=lambda point: (point.requested_hz or point.frequency_hz, point.frequency_hz)),
        note="; ".join(notes)[:4000] or None,
    )
    return SweepResult(block, at_rest, tuple(notes))


def _idle_options(options: SamplingOptions) -> SamplingOptions:
    return replace(
        options, relative_ci=2 * options.relative_ci, min_s=options.min_s / 2, max_s=max(options.min_s, 20.0)
    )


def _idle_w(
    device: Device,
    options: SamplingOptions,
    at_rest: list[Reading],
    on_progress: Callable[[str, float, float], None] | None,
) -> float:
    """Mean power at rest. The machine is left alone for the warm-up, then read."""
    sensor = device.power
    assert sensor is not None
    idle = _idle_options(options)
    device.wait(max(idle.warm_up_s, sensor.averaging_s))
    begin = device.now_s()
    with device.monitor(max(sensor.period_s, 0.05)) as readings:
        while True:
            device.wait(1.0)
            spent = device.now_s() - begin
            watts = [r.power_w for r in list(readings) if r.power_w is not None]
            found = mean_interval(watts)
            if on_progress is not None and watts:
                on_progress("idle", spent, found.mean)
            if spent >= idle.min_s and (found.half_width <= idle.relative_ci * found.mean or spent >= idle.max_s):
                break
    if not watts or not math.isfinite(found.mean):
        raise MissingHardware(f"{device.name}: the power sensor ({sensor.sensor}) gave no reading at rest")
    at_rest.extend(readings)
    return found.mean
