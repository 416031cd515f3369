"""What the profiler needs of a machine, as small protocols.

A real board and an emulated one fulfil the same protocol, and nothing above this file asks which it is. Time belongs to the
device: on real hardware it is the wall clock, on an emulated one a virtual clock that its kernels advance. So every wait, every
sampling period and every duration goes through the device.

    now_s()        |--------- executing(): kernels run here, their time passes ---------|
    monitor(0.1)      .    .    .    .    .    .   readings, one each period
    clocks.lock(f) ^  settles within bounded time; current_hz() says what it became
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from profiler.profile import Hardware, Provenance, Role


@dataclass(frozen=True)
class Reading:
    """One look at the sensors. None: this device has no such sensor."""

    time_s: float
    power_w: float | None = None
    energy_j: float | None = None
    frequency_hz: float | None = None
    temperature_c: float | None = None
    capped: bool = False
    throttled: bool = False


@dataclass(frozen=True)
class PowerSensor:
    """What the watts are: which part of the machine (``scope``), read from where, how often it renews, over how long it averages."""

    scope: str
    sensor: str
    period_s: float
    averaging_s: float


class ClockControl(Protocol):
    """Lock and release the clock of the processor that runs the layers."""

    def supported_hz(self) -> tuple[float, ...]:
        """Supported clocks, ascending, in Hz."""
        ...

    def current_hz(self) -> float | None:
        """The clock at this moment in Hz, as measured, not as asked for; None where it cannot be read."""
        ...

    def lock(self, frequency_hz: float) -> None:
        """Ask for one clock. Power cap and heat may hold the real one below. Raises MissingHardware without the right to."""
        ...

    def reset(self) -> None:
        """Give the clocks back to the driver."""
        ...


@dataclass(frozen=True)
class Absent:
    """Why a capability is missing on this machine, in one sentence, by capability (``power``, ``clocks``, ``temperature``)."""

    reasons: dict[str, str] = field(default_factory=dict)


class Device(Protocol):
    """One machine that runs layers."""

    name: str
    """Unique name, also the profile's (``cpu``, ``emulated-orin-agx``)."""
    default_role: Role
    provenance: Provenance
    """``measured`` on real hardware, ``emulated`` else: the mark on every figure taken here."""
    torch_device: str
    """Where tensors of the workload live: ``cpu``, ``cuda:0``, or ``meta`` (shapes only) on an emulated device."""
    clocks: ClockControl | None
    """None where clocks cannot be set."""
    power: PowerSensor | None
    """None where no watts can be read."""
    absent: Absent

    def describe(self) -> Hardware:
        """The profile's hardware block."""
        ...

    def current_hz(self) -> float | None:
        """The clock at this moment in Hz; None where it cannot be read."""
        ...

    def now_s(self) -> float:
        """Seconds on the device's clock, after all work submitted so far has ended."""
        ...

    def executing(self) -> AbstractContextManager[None]:
        """Inside, operators on ``torch_device`` tensors take this device's time."""
        ...

    def load(self, step: Callable[[], None]) -> Callable[[], None]:
        """Turn one training step into a load that can be repeated at will (an emulated device captures its kernels once and replays them)."""
        ...

    def wait(self, seconds_s: float) -> None:
        """Let the device idle for this long on its own clock."""
        ...

    def monitor(self, period_s: float) -> AbstractContextManager[list[Reading]]:
        """Read the sensors every ``period_s`` while the body runs; the list grows as readings come."""
        ...
