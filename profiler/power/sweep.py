"""A power sweep: which clocks, in which order, and the clocks given back whatever happens.

Clocks are visited in an order in which neither the time of a visit nor the clock before it goes with the clock, so that a
machine that warms up over the sweep does not look like a power law. One of the clocks visited early is measured again after the
last, which shows what drifted all the same. Idle power is taken before the first and after the last.

Where the clocks are ours to choose (a count, not a list), the rest may be chosen as the sweep goes (``teach``), and no more
than two clocks are spent where the power cap holds the real one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from profiler.hardware.device import Device, Reading
from profiler.power.heat import Habits
from profiler.power.sampling import Rest, SamplingOptions, rest_limit_s, rest_power, roughly, steady_point
from profiler.power.source import scatter_w
from profiler.profile import MAX_TEXT, BadInput, MissingHardware, PowerBlock, PowerPoint
from profiler.units import counted

AUTO_CLOCKS = 8
"""Enough for a law with three or four parameters and to leave some out; more clocks cost more time than they teach."""
_EXPECTED = "expected auto, all, current, a count (8), one clock (1300mhz) or several in MHz (300,600,1300)"

Load = Callable[[], AbstractContextManager[Callable[[], object]]]
"""Starts the load and stops it when the context ends; the value is called again and again while the load shall last.

It is started once for each clock, so that the machine is at rest before the sweep, after it, and while layers are timed."""

Teach = Callable[[Sequence[float], Sequence[float], Sequence[float], Sequence[float]], float]
"""From measured clocks (Hz), their watts, all clocks that could be visited and what the points scatter by (W; NaN: unknown): the clock
that would teach a fit most."""

_SEEN_FIRST = 4
"""Clocks that are visited before what was measured says where to go on."""
_CAPPED_ENOUGH = 2
_UNLOCKED = "one point at the clock that the device was at: nothing was locked"
_SAME = 0.02
"""Clocks within this share of each other are one clock, times and watts within it are flat."""


@dataclass(frozen=True)
class ClockChoice:
    """Clocks to visit, ascending, in Hz. Empty with ``locks`` False: the one point that the device is at, nothing is locked.

    ``free``: their number was asked for, not these clocks; others may be visited instead where they teach more.
    """

    frequencies_hz: tuple[float, ...]
    locks: bool
    notes: tuple[str, ...] = ()
    free: bool = False


@dataclass(frozen=True)
class SweepResult:
    """The block for the profile, the readings at rest (those at the points went to ``on_point``), and notes.

    ``notes`` hold those of all points, also of points measured before an interruption.
    """

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
        raise BadInput(
            f"--clocks {spec}: a bare number is a count of clocks, from 1 to 10000; one clock is written 1300mhz"
        )
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
        spread = _spread(supported, AUTO_CLOCKS if count is None else count)
        return ClockChoice(spread, locks=True, notes=notes, free=True)
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


@lru_cache(maxsize=64)
def visiting_order(frequencies_hz: tuple[float, ...]) -> tuple[float, ...]:
    """Lowest, highest, then the rest so that neither the time of a visit nor the clock visited before says which clock it is.

    Time stands for slow heat of the room, the clock before for heat that the chip still carries. Of all orders (of many random
    ones, always the same, where there are more than 8 clocks) it is the one in which both rank correlations are least.
    """
    ends, inner = sorted(frequencies_hz), tuple(sorted(frequencies_hz)[1:-1])
    if len(inner) < 2:
        return (*ends[:1], *ends[:0:-1])
    dice = random.Random(len(inner))
    orders = (
        itertools.permutations(range(1, len(inner) + 1))
        if len(inner) <= 6
        else (dice.sample(range(1, len(inner) + 1), len(inner)) for _ in range(500))
    )
    place = np.arange(len(ends))

    def told_by(order: Sequence[int]) -> float:
        ranks = np.array([0, len(ends) - 1, *order])
        late = np.corrcoef(place, ranks)[0, 1]
        carried = np.corrcoef(ranks[:-1], ranks[1:])[0, 1]
        return float(late**2 + carried**2)

    best = min(orders, key=told_by)
    return (ends[0], ends[-1], *(ends[k] for k in best))


def next_clock(
    choice: ClockChoice, supported_hz: Sequence[float], points: Sequence[PowerPoint], teach: Teach | None = None
) -> float | None:
    """The clock to visit after ``points``, which follows from them alone, so that a sweep goes on where it was interrupted.

    Clocks of a list come in ``visiting_order``. Free ones too, at first; then ``teach`` says where the next one is worth most.
    Once two of them were held by the power cap (or heat), no more are spent where it binds. None: the sweep is complete.
    """
    planned = visiting_order(choice.frequencies_hz)
    visited = {point.requested_hz for point in points if point.requested_hz is not None}
    rest = [hz for hz in planned if hz not in visited]
    if not choice.free:
        return rest[0] if rest else None
    if len(visited) >= len(planned):
        return None
    held = [point.frequency_hz for point in points if point.capped or point.throttled]
    top = min(held) if len(held) >= _CAPPED_ENOUGH else math.inf
    open_hz = [hz for hz in supported_hz if hz not in visited and hz <= top]
    if teach is not None and open_hz:
        if len(visited) >= _SEEN_FIRST:
            free = [p for p in points if not (p.capped or p.throttled)]
            reachable = [hz for hz in supported_hz if hz <= top]
            if len(reachable) > len(free):
                scatter = scatter_w(free, None).tolist()
                found = teach([p.frequency_hz for p in free], [p.power_w for p in free], reachable, scatter)
                if found in open_hz:
                    return found
        else:  # what it learns from first: clocks evenly apart
            even = np.linspace(0, len(planned) - 1, min(_SEEN_FIRST, len(planned))).round().astype(int)
            chosen = visiting_order(tuple(sorted(planned)[k] for k in even))
            rest = [hz for hz in chosen if hz not in visited] + rest
    below = [hz for hz in rest if hz <= top]
    if below:
        return below[0]
    # What was planned above the cap goes into the widest gaps below it.
    return max(open_hz, key=lambda hz: (min(abs(hz - seen) for seen in visited), hz)) if open_hz else None


def estimate_sweep_s(
    choice: ClockChoice,
    options: SamplingOptions | None = None,
    *,
    at_clock_s: float = 0.0,
    starts_late: bool = False,
) -> tuple[float, float]:
    """Shortest and longest time that the sweep will take on the device's clock; the rest as for ``run_sweep``.

    A load whose step is longer than a few seconds may take up to two steps more at each clock.
    """
    options = options or SamplingOptions()
    points = max(1, len(choice.frequencies_hz))
    sampled = points + _repeats(points)
    least = max(options.min_s, options.watch_s, options.warm_up_s)
    most = options.max_s + (options.start_s if starts_late else 0.0)
    return (
        points * at_clock_s + sampled * least + options.min_s,
        points * at_clock_s + sampled * most + 2 * rest_limit_s(options),
    )


def _repeats(points: int) -> int:
    """Drift shows between a first and a last point that lie some way apart."""
    return int(points >= 3)


def _worth_repeating(points: Sequence[PowerPoint]) -> float | None:
    """The clock to measure again at the end: of the first half, that which heats the chip most like the last one does now.

    Its heat settles soonest. None: too few points, or nothing was locked.
    """
    first = [point for point in points[: (len(points) + 1) // 2] if point.requested_hz is not None]
    if not _repeats(len(points)) or not first:
        return None
    return min(first, key=lambda point: abs(point.power_w - points[-1].power_w)).requested_hz


@contextmanager
def _clock(device: Device) -> Iterator[Callable[[float], None]]:
    """Locks the clock; gives it back on every way out. Raises MissingHardware where it cannot be set."""
    control = device.clocks
    if control is None:
        raise MissingHardware(f"{device.name}: {device.absent.reasons.get('clocks', 'its clock cannot be set')}")
    try:
        yield control.lock
    except BaseException:
        # What went wrong first is told; leaving ``held`` gives back once more, and tells of that.
        with contextlib.suppress(MissingHardware):
            control.reset()
        raise
    control.reset()


def visit_clocks(device: Device, frequencies_hz: Sequence[float], body: Callable[[float], None]) -> None:
    """Lock each clock in turn (in ``visiting_order``), call ``body(requested_hz)`` while it is held, and give the clock back.

    It is given back on every way out, KeyboardInterrupt and SystemExit too; ``device.clocks.held()`` is the caller's to enter.
    Raises MissingHardware where clocks cannot be set, or where what figures depend on was changed meanwhile.
    """
    with _clock(device) as lock:
        for frequency_hz in visiting_order(tuple(frequencies_hz)):
            lock(frequency_hz)
            body(frequency_hz)
            device.unchanged()


@dataclass(frozen=True)
class Progress:
    """Where a sweep is: what it does, for how many seconds, the watts so far; points done of all; seconds left, as far as known."""

    what: str
    seconds_s: float
    power_w: float
    done: int
    total: int
    left_s: float

    @property
    def text(self) -> str:
        """All of it in one line for a person."""
        left = f"{self.left_s / 60:.0f} min" if self.left_s >= 90 else f"{self.left_s:.0f} s"
        return f"{self.what}, {self.seconds_s:.0f} s, {self.power_w:.1f} W; {self.done} of {counted(self.total, 'clock')}, {left} left"


class _Pace:
    """How long the rest of a sweep will take, from how long its parts have taken."""

    def __init__(self, device: Device, points: int, options: SamplingOptions, at_clock_s: float) -> None:
        self._device, self.total, self.done = device, points, 0
        self.left = float(points + _repeats(points))
        self._rest_s = rest_limit_s(options)
        # Until the first point has told: some longer than the least, for that is what heat mostly takes.
        self._each_s = 2.0 * max(options.min_s, options.watch_s) + at_clock_s
        self._taken_s: list[float] = []
        self._begun_s = device.now_s()

    def begin(self) -> None:
        self._begun_s = self._device.now_s()

    def end(self) -> None:
        self._taken_s.append(self._device.now_s() - self._begun_s)
        self._each_s = float(np.mean(self._taken_s))
        self.left -= 1

    def progress(self, what: str, seconds_s: float, power_w: float) -> Progress:
        spent = 0.0 if what == "idle" else min(self._device.now_s() - self._begun_s, self._each_s)
        left = max(0.0, self.left * self._each_s + self._rest_s - spent)
        return Progress(what, seconds_s, power_w, self.done, self.total, left)


def run_sweep(
    device: Device,
    load: Load,
    choice: ClockChoice,
    *,
    load_name: str,
    options: SamplingOptions | None = None,
    at_clock: Callable[[float | None], None] | None = None,
    at_clock_s: float = 0.0,
    on_point: Callable[[PowerPoint, list[Reading]], None] | None = None,
    done: Collection[PowerPoint] = (),
    on_progress: Callable[[Progress], None] | None = None,
    teach: Teach | None = None,
    starts_late: bool = False,
    under_load: Callable[[], None] | None = None,
) -> SweepResult:
    """Measure the steady power under ``load`` at every clock of ``choice``.

    At each clock: lock, sample until steady, ``at_clock(requested_hz)`` while the clock is still held (to time layers there;
    None where nothing is locked; it takes about ``at_clock_s``), then ``on_point(point, readings)``: when that is called,
    everything at this clock is complete. ``done``: points of an earlier, interrupted sweep, in the order in which they were
    measured; their clocks are not visited again. ``starts_late``: the load is a program that takes a while until it computes,
    which is waited for at each clock. ``under_load`` is called at least once at each clock while the load runs. ``teach``: see ``next_clock``. ``device.clocks.held()`` is the caller's to enter.

    Raises MissingHardware without a power sensor, where what figures depend on was changed meanwhile (that point is dropped),
    or where the clock did not follow what was asked for.
    """
    options = options or SamplingOptions()
    points = list(done)
    habits: Habits | None = None
    total = max(1, len(choice.frequencies_hz))
    pace = _Pace(device, total, options, at_clock_s)
    pace.done = len(points)
    pace.left -= len(points)

    def telling(what: str) -> Callable[[float, float], None]:
        def tell(seconds_s: float, power_w: float) -> None:
            if on_progress is not None:
                on_progress(pace.progress(what, seconds_s, power_w))

        return tell

    def sample(
        requested_hz: float | None, what: str, options: SamplingOptions = options
    ) -> tuple[PowerPoint, list[Reading]]:
        nonlocal habits
        tell = telling(what)

        def seen(seconds_s: float, power_w: float) -> None:
            if under_load is not None:
                under_load()
            tell(seconds_s, power_w)

        with load() as step:
            steady = steady_point(
                device,
                step,
                requested_hz=requested_hz,
                rest_w=before.power_w if starts_late else None,
                options=options,
                habits=habits,
                on_reading=seen,
            )
        habits = steady.habits
        device.unchanged()
        return steady.point, steady.readings

    def measure(requested_hz: float | None) -> None:
        pace.begin()
        point, readings = sample(requested_hz, _named(requested_hz))
        if at_clock is not None:
            at_clock(requested_hz)
            device.unchanged()
        points.append(point)
        pace.done = len(points)
        pace.end()
        if on_point is not None:
            on_point(point, readings)

    before = rest_power(device, options, telling("idle"))
    repeated = None
    if choice.locks:
        supported = device.clocks.supported_hz() if device.clocks is not None else ()
        with _clock(device) as lock:
            _refuse_a_clock_that_never_moved(points)
            while (frequency_hz := next_clock(choice, supported, points, teach)) is not None:
                lock(frequency_hz)
                measure(frequency_hz)
                _refuse_a_clock_that_never_moved(points)
            again_hz = _worth_repeating(points)
            if again_hz is not None:
                pace.begin()
                lock(again_hz)
                repeated, _ = sample(again_hz, f"{_named(again_hz)} again", roughly(options))
                pace.end()
    elif not done:
        measure(None)
    after = rest_power(device, options, telling("idle"))
    notes = [*choice.notes, *(note for point in points for note in point.notes)]
    notes += _drift(points, repeated) + _idle_drift(before, after) + _mixed(points) + _flat(points)
    facts = _heat_and_clock(points) if choice.locks else [_UNLOCKED]
    sensor = device.power
    assert sensor is not None  # rest_power has read it
    block = PowerBlock(
        provenance=device.provenance,
        scope=sensor.scope,
        sensor=sensor.sensor,
        load=load_name,
        idle_w=_idle_w(before, after),
        points=sorted(points, key=lambda point: (point.requested_hz or point.frequency_hz, point.frequency_hz)),
        repeated=repeated,
        note="; ".join([*facts, *notes])[:MAX_TEXT] or None,
    )
    return SweepResult(block, [*before.readings, *after.readings], tuple(notes))


def _named(requested_hz: float | None) -> str:
    return "current clock" if requested_hz is None else f"{requested_hz / 1e6:g} MHz"


def _refuse_a_clock_that_never_moved(points: Sequence[PowerPoint]) -> None:
    """Raises MissingHardware where clocks apart were asked for and one ran: three, for cap and heat, where told, may do that; two where
    it is above both, for they never do."""
    seen = [point for point in points if point.requested_hz is not None]
    asked = sorted({point.requested_hz for point in seen if point.requested_hz is not None})
    # Cap and heat hold a clock below what was asked for, never above.
    above = [point.frequency_hz > (1 + _SAME) * (point.requested_hz or math.inf) for point in seen]
    if len(asked) < (2 if all(above) else 3) or asked[-1] < (1 + 3 * _SAME) * asked[0]:
        return
    ran = [point.frequency_hz for point in seen]
    if max(ran) > (1 + _SAME) * min(ran):
        return
    if not any(above) and all(
        p.capped or p.throttled for p in seen if p.frequency_hz < (1 - _SAME) * (p.requested_hz or 0)
    ):
        return
    raise MissingHardware(
        f"the clock lock did not take: asked {', '.join(f'{hz / 1e6:g}' for hz in asked)} MHz, ran at "
        f"{np.mean(ran) / 1e6:.0f} MHz each time; --clocks current takes one point at the clock that runs"
    )


def _drift(points: Sequence[PowerPoint], repeated: PowerPoint | None) -> list[str]:
    """Whether an early clock, measured again at the end, shows another power."""
    if repeated is None:
        return []
    first = next(point for point in points if point.requested_hz == repeated.requested_hz)
    apart = repeated.power_w - first.power_w
    known = math.hypot(first.ci95_w or 0.0, repeated.ci95_w or 0.0)
    if abs(apart) <= known + 0.01 * first.power_w:
        return []
    return [
        f"drift: {_named(first.requested_hz)} drew {first.power_w:.2f} W at the beginning and {repeated.power_w:.2f} W at the "
        f"end ({100 * apart / max(first.power_w, 1e-9):+.1f} %)"
    ]


def _idle_w(before: Rest, after: Rest) -> float:
    return before.power_w if _still_runs(before, after) else (before.power_w + after.power_w) / 2


def _still_runs(before: Rest, after: Rest) -> bool:
    """Whether so much more is drawn at rest than before the sweep that it cannot be the heat alone: it may not be at rest."""
    return after.power_w > 1.5 * before.power_w + 1.0


def _idle_drift(before: Rest, after: Rest) -> list[str]:
    mean_w = (before.power_w + after.power_w) / 2
    if abs(after.power_w - before.power_w) <= 0.05 * mean_w + 0.2:
        return []
    drift = f"idle power was {before.power_w:.2f} W before the sweep and {after.power_w:.2f} W after it; "
    if _still_runs(before, after):
        return [f"{drift}something may still run that the load has left behind: the one before is kept"]
    return [f"{drift}their mean is kept"]


def _mixed(points: Sequence[PowerPoint]) -> list[str]:
    """Points by both methods make one curve only where the methods agree."""
    if len({point.method for point in points if point.method is not None}) < 2:
        return []
    return ["some points are by the energy counter and some by the power sensor: see their method"]


def _flat(points: Sequence[PowerPoint]) -> list[str]:
    """Watts that do not follow the clock make no curve, whatever the reason."""
    free = [p for p in points if p.requested_hz is not None and not p.capped and not p.throttled]
    asked = [p.requested_hz or 0.0 for p in free]
    watts = [p.power_w for p in free]
    if len(free) < 3 or max(asked) < 1.3 * min(asked) or max(watts) > (1 + _SAME) * min(watts):
        return []
    return [
        f"the power is flat, {min(watts):.2f} to {max(watts):.2f} W over {min(asked) / 1e6:g} to {max(asked) / 1e6:g} MHz: "
        "the lock did not take, or the load does not use this clock"
    ]


def _heat_and_clock(points: Sequence[PowerPoint]) -> list[str]:
    """What the order did to heat: how place in it and clock, temperature and clock go together."""
    clocks = [point.frequency_hz for point in points]
    if len(points) < 4 or np.std(clocks) == 0:
        return []
    facts = [f"order against clock: r = {np.corrcoef(range(len(clocks)), clocks)[0, 1]:+.2f}"]
    warm = [(p.frequency_hz, p.temperature_c) for p in points if p.temperature_c is not None]
    if len(warm) >= 4 and np.std([t for _, t in warm]) > 0:
        facts.append(f"temperature against clock: r = {np.corrcoef(np.array(warm).T)[0, 1]:+.2f}")
    return facts
