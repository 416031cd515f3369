"""A device whose every watt, degree and clock the test writes down as a function of time, behind sensors like real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from profiler.hardware.device import Absent, PowerSensor, Reading
from profiler.profile import Hardware, MissingHardware

METER = PowerSensor("board", "bench", 0.1, 0.0)


def noise(seed: int, size: float) -> Callable[[float], float]:
    """Gaussian noise of standard deviation ``size``, another value each 0.1 s."""
    table = size * np.random.default_rng(seed).standard_normal(100_000)
    return lambda t: float(table[round(10 * t) % 100_000])


@dataclass
class Bench:
    """``watts(t)`` is drawn while the load runs, ``rest_w`` while it pauses (None: the same).

    The sensor shows the mean of its last ``averaging_s``, in steps of ``step_w``, through ``show(t, watts)``, which may add
    noise or answer nothing. The energy counter moves every ``counter_s`` seconds (None: there is none) and passes through
    ``count(t, joules)``. Time moves in ticks of ``tick_s``.
    """

    watts: Callable[[float], float]
    celsius: Callable[[float], float | None] = lambda _: 40.0
    hertz: Callable[[float], float | None] = lambda _: 1e9
    capped: Callable[[float], bool] = lambda _: False
    sensor: PowerSensor | None = METER
    step_w: float = 0.0
    show: Callable[[float, float], float | None] = lambda _, watts: watts
    counter_s: float | None = None
    count: Callable[[float, float], float | None] = lambda _, joules: joules
    cap_w: float | None = None
    rest_w: float | None = None
    tick_s: float = 0.1
    provenance: str = "measured"
    name: str = "bench"
    pauses_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.power = self.sensor
        self.absent = Absent({"power": "there is no meter"})
        self.clocks: Locks | None = None
        self._now = self._energy = self._shown_j = self._next_count = 0.0
        self._past: list[float] = []
        self._watching: tuple[list[Reading], float, float] | None = None

    def describe(self) -> Hardware:
        return Hardware(provenance="measured", kind="cuda", description="bench", power_cap_w=self.cap_w)

    def unchanged(self) -> None:
        """Nobody touches a bench."""

    def now_s(self) -> float:
        return self._now

    def current_hz(self) -> float | None:
        return self.hertz(self._now)

    def wait(self, seconds_s: float) -> None:
        self.pauses_s.append(seconds_s)
        self.run(seconds_s, busy=False)

    def run(self, seconds_s: float, *, busy: bool = True) -> None:
        end = self._now + seconds_s
        while self._now < end - 1e-9:
            self._now = round(self._now + self.tick_s, 6)
            power = self.watts(self._now) if busy or self.rest_w is None else self.rest_w
            self._energy += self.tick_s * power
            self._past.append(power)
            if self.counter_s is not None and self._now >= self._next_count - 1e-9:
                self._shown_j = self._energy
                self._next_count = self._now + self.counter_s
            if self._watching is not None and self._now >= self._watching[2] - 1e-9:
                readings, period, due = self._watching
                readings.append(self._read())
                self._watching = (readings, period, due + period)

    def _read(self) -> Reading:
        assert self.sensor is not None
        span = self._past[-max(1, round(self.sensor.averaging_s / self.tick_s)) :]
        shown = self.show(self._now, float(np.mean(span)))
        if shown is not None and self.step_w > 0 and math.isfinite(shown):
            shown = round(shown / self.step_w) * self.step_w
        return Reading(
            time_s=self._now,
            power_w=shown,
            energy_j=None if self.counter_s is None else self.count(self._now, self._shown_j),
            frequency_hz=self.hertz(self._now),
            temperature_c=self.celsius(self._now),
            capped=self.capped(self._now),
        )

    @contextmanager
    def monitor(self, period_s: float) -> Iterator[list[Reading]]:
        readings: list[Reading] = []
        self._watching = (readings, period_s, self._now + period_s)
        try:
            yield readings
        finally:
            self._watching = None


@dataclass
class Locks:
    """A clock that follows ``becomes(asked)``; ``asked_hz`` None: given back."""

    supported: tuple[float, ...]
    becomes: Callable[[float], float] = lambda asked: asked
    asked_hz: float | None = None
    history: list[float | None] = field(default_factory=list)
    caution: str | None = None

    def held(self, restore_hz: tuple[float, float] | None = None) -> nullcontext[tuple[str, ...]]:
        return nullcontext(())

    def supported_hz(self) -> tuple[float, ...]:
        return self.supported

    def current_hz(self) -> float | None:
        return None if self.asked_hz is None else self.becomes(self.asked_hz)

    def lock(self, frequency_hz: float) -> None:
        self.asked_hz = frequency_hz
        self.history.append(frequency_hz)

    def reset(self) -> None:
        self.asked_hz = None
        self.history.append(None)


def clocked(
    watts: Callable[[float, float], float],
    supported: tuple[float, ...],
    becomes: Callable[[float], float] = lambda asked: asked,
    *,
    readable: bool = True,
    capped: Callable[[float], bool] = lambda _: False,
    changed_after: int | None = None,
    **more: object,
) -> Bench:
    """A bench whose clock can be locked and draws ``watts(t, clock)``; ``capped(asked)``. Its settings change after so many points."""
    locks = Locks(supported, becomes)

    def real() -> float:
        return becomes(locks.asked_hz) if locks.asked_hz is not None else supported[-1]

    class Clocked(Bench):
        def unchanged(self) -> None:
            nonlocal changed_after
            if changed_after is not None:
                changed_after -= 1
                if changed_after < 0:
                    raise MissingHardware("the power mode was changed from 15W to MAXN")

    bench = Clocked(
        lambda t: watts(t, real()),
        hertz=lambda _: real() if readable else None,
        capped=lambda _: locks.asked_hz is not None and capped(locks.asked_hz),
        **more,  # type: ignore[arg-type]
    )
    bench.clocks = locks
    return bench
