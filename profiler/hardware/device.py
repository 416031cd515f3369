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

from profiler.hardware.catalog import Board
from profiler.profile import Hardware, Provenance, Role


@dataclass(frozen=True)
class Reading:
    """One look at the sensors. None: this device has no such sensor, or it did not answer this time.

    ``capped`` and ``throttled`` say that the power cap, or heat (or a brake signal), held the clock down at some moment since
    the reading before, where the device counts such moments, else at this one. ``energy_j`` counts from an arbitrary start.
    """

    time_s: float
    power_w: float | None = None
    energy_j: float | None = None
    frequency_hz: float | None = None
    temperature_c: float | None = None
    capped: bool = False
    throttled: bool = False
    rails_w: dict[str, float] | None = None
    """Watts of every supply rail that answered, by label, where the board measures several."""


TOTAL_SHOWS = 0.9
"""A total shows at least this share of what the rails behind it show; the rest is for rounding, and for the time between two reads."""


@dataclass(frozen=True)
class PowerSensor:
    """What the watts are: which part of the machine (``scope``), read from where, how often it renews, over how long it averages.

    ``counter``: an energy counter is read beside it, so that every figure should come by both methods. ``limit_w``: the power limit that
    holds these watts down, None where none is known. ``behind``: where the watts are a total, the rails that hang on it, by their labels
    in ``Reading.rails_w``.
    """

    scope: str
    sensor: str
    period_s: float
    averaging_s: float
    counter: bool = False
    limit_w: float | None = None
    behind: tuple[str, ...] = ()


class ClockControl(Protocol):
    """Lock and release the clock of the processor that runs the layers."""

    caution: str | None
    """What the user should know before the clock is touched at all."""

    def held(self, restore_hz: tuple[float, float] | None = None) -> AbstractContextManager[tuple[str, ...]]:
        """The right to set this clock, for as long as the body runs; ``lock`` and ``reset`` work inside only.

        Entering undoes what ended runs have left locked, excludes other runs on this device, and tries whether the clock
        can be set at all, so that a missing right is told at once. The value is what the user should know before the first
        lock. Leaving gives the clock back, whatever happened: to the driver, or to ``restore_hz`` (lowest, highest) for
        those who know what an administrator had locked before. Raises MissingHardware (no right, with the exact command
        that gives it; or another run holds the device).
        """
        ...

    def supported_hz(self) -> tuple[float, ...]:
        """Supported clocks, ascending, in Hz."""
        ...

    def current_hz(self) -> float | None:
        """The clock at this moment in Hz, as measured, not as asked for; None where it cannot be read."""
        ...

    def may_set(self) -> bool:
        """Whether this process seems to have the right to; nothing is tried."""
        ...

    def undisturbed(self) -> AbstractContextManager[tuple[str, ...]]:
        """The clock as the driver has it, for as long as the body runs: no other run sets it meanwhile, as far as can be excluded.

        Entering undoes what ended runs have left locked: what is measured inside would else be measured at their clock. The value
        is what the user should know. Raises MissingHardware where another run sets this clock, or its leftovers cannot be undone.
        """
        ...

    def left_locked(self) -> bool:
        """Whether a run that has ended has left this clock locked."""
        ...

    def lock(self, frequency_hz: float) -> None:
        """Ask for one clock. Power cap and heat may hold the real one below. Raises MissingHardware without the right to."""
        ...

    def reset(self) -> None:
        """Give the clocks back to the driver."""
        ...


class Timebase(Protocol):
    """Where waits and durations of a device come from: the wall clock, or the virtual clock of an emulated machine."""

    def now_s(self) -> float:
        """Seconds from an arbitrary start."""
        ...

    def wait(self, seconds_s: float) -> None:
        """Let this much time pass."""
        ...

    def watching(self, read: Callable[[], Reading], period_s: float) -> AbstractContextManager[list[Reading]]:
        """Call ``read`` every ``period_s`` while the body runs; the list grows as readings come."""
        ...


@dataclass(frozen=True)
class Absent:
    """Why a capability is missing on this machine, in one sentence, by capability (``power``, ``clocks``, ``temperature``)."""

    reasons: dict[str, str] = field(default_factory=dict)


class Instruments(Protocol):
    """Sensors and clock of one processor, without anything that computes on it (an NVML card, a Jetson's GPU)."""

    given_name: str
    """What the hardware calls itself (``NVIDIA GeForce RTX 4060 Ti``)."""
    key: str
    """Identity on this machine, the same after a reboot (``nvml-GPU-...``, ``devfreq-17000000.gpu``)."""
    board: Board | None
    """Its entry in the catalog, where it has one."""
    default_role: Role
    power: PowerSensor | None
    clocks: ClockControl | None
    absent: Absent
    time: Timebase

    def supported_hz(self) -> tuple[float, ...]:
        """Clocks that it can be set to, ascending, in Hz; empty where unknown. Known also where none may be set."""
        ...

    def current_hz(self) -> float | None:
        """The clock at this moment in Hz; None where it cannot be read."""
        ...

    def read(self) -> Reading:
        """One look at all sensors, at ``time.now_s()``. A sensor that fails reads None; a lost device raises MissingHardware."""
        ...

    def memory_bytes(self) -> int | None:
        """Memory that a training process may use; None where unknown."""
        ...

    def power_cap_w(self) -> float | None:
        """The power limit in force; None where there is none or it cannot be read."""
        ...

    def software(self) -> dict[str, str]:
        """Versions that figures depend on (driver, kernel, JetPack)."""
        ...

    def settings(self) -> dict[str, str]:
        """What somebody may have set and must stay the same for figures to belong together: power mode, power limit, MIG.

        Cheap: it is read again after every point, and a change ends the run.
        """
        ...

    def conditions(self) -> dict[str, str]:
        """What else figures depend on, recorded as it was: memory and CPU clocks, cores online, fan, governor, processes."""
        ...

    def moving(self) -> dict[str, str]:
        """Those of ``conditions`` that move with the load. Cheap: they are read again and again while it runs."""
        ...

    def second_opinion(self) -> dict[str, str]:
        """What another program says of the same sensors, as conditions; empty where none is there. May take some seconds."""
        ...


class Device(Protocol):
    """One machine that runs layers."""

    name: str
    """Unique name, also the profile's (``cpu``, ``emulated-orin-agx``)."""
    default_role: Role
    provenance: Provenance
    """``measured`` on real hardware, ``emulated`` else: the mark on every figure taken here."""
    clocks: ClockControl | None
    """None where clocks cannot be set."""
    power: PowerSensor | None
    """None where no watts can be read."""
    absent: Absent

    @property
    def torch_device(self) -> str | None:
        """Where tensors of the workload live: ``cpu``, ``cuda:0``, or ``meta`` (shapes only) on an emulated device; None where
        torch cannot use the device, so that only power under the user's own program can be measured."""
        ...

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

    def load(self, step: Callable[[], object]) -> Callable[[], object]:
        """Turn one training step into a load that can be repeated at will (an emulated device captures its kernels once and replays them)."""
        ...

    def wait(self, seconds_s: float) -> None:
        """Let the device idle for this long on its own clock."""
        ...

    def monitor(self, period_s: float) -> AbstractContextManager[list[Reading]]:
        """Read the sensors every ``period_s`` while the body runs; the list grows as readings come."""
        ...

    def moving(self) -> dict[str, str]:
        """Conditions that move with the load (memory and CPU clocks, fan, heat), as they are now; ``describe`` has them too."""
        ...

    def settings(self) -> dict[str, str]:
        """What must be the same for figures to belong together, and for an interrupted run to be resumed (threads, power mode)."""
        ...

    def unchanged(self) -> None:
        """Whether ``settings`` are as they were when the device was opened. Raises MissingHardware saying what changed."""
        ...

    def second_opinion(self) -> dict[str, str]:
        """What another program says of the same sensors, as conditions; empty where none is there. May take some seconds."""
        ...
