"""A board of the catalog, simulated at the hardware boundary. Every figure taken here is marked ``emulated``.

Operators on ``meta`` tensors (shapes without data) take time on a virtual clock, draw power, heat the chip, and show on
sensors that lag, jitter and count in steps. Nothing here waits: an hour of virtual time takes seconds.

The physics is on purpose none of the laws that are fitted later. Symbols: f core clock in Hz, V volts, T degrees Celsius.

    kernel time   launch + (t_compute^4 + t_memory^4)^(1/4)     a soft roofline, so t(f) is not a + b/f
                  t_compute = cycles / f,  t_memory = bytes (1/bandwidth + 1/(0.5 cores f)) / 0.8
    power         base + leakage(V, T) + activity C V(f)^2 f + joules a byte x bytes a second
                  V(f) is a table with a floor and several slopes in steps of 6.25 mV; leakage grows with V and T
    heat          dT/dt = (R P - (T - ambient)) / thermal time
    power cap     a regulator lowers the clock until the 50 ms mean of the power is at the cap; so does heat above its limit
    lock          up to ``lock_offset_hz`` below what was asked for, and only the measured clock tells
    sensor        renewed each period, averaged over ``averaging_s``, noise of a fraction of a percent, steps

Kernels differ by 3 % from call to call (lognormal, from a generator seeded by the board's name).
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.hardware.catalog import Board
from profiler.hardware.device import Absent, ClockControl, PowerSensor, Reading
from profiler.hardware.kernels import Calls, Kernel, charging
from profiler.profile import BadInput, Clocks, Hardware, Provenance, Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

TICK_S = 0.02
"""Power, heat and sensors move in steps of at most this much virtual time."""
_GROUP_S = 0.01  # kernels of a captured load are timed together in groups of about this length
_POWER_MEAN_S = 0.05  # the cap regulator looks at this mean
_LOCK_S = 0.03  # a new clock is there after this long
_JITTER = 0.03
_STALL_ACTIVITY = 0.30  # switching while kernels wait for memory, of full activity
_GAP_ACTIVITY = 0.08  # and between kernels
_IDLE_ACTIVITY = 0.015
_BYTES_PER_CORE_CYCLE = 0.5
_BANDWIDTH_REACHED = 0.8
_VOLT_STEP = 0.00625
_AMBIENT_C = 25.0


@dataclass(frozen=True)
class Truth:
    """What the emulated board really does under a load, once its temperature stands still (for tests and benchmarks only)."""

    frequency_hz: float
    power_w: float
    step_s: float
    temperature_c: float
    capped: bool
    throttled: bool


class _Physics:
    """The laws above for one board. Holds no state."""

    def __init__(self, board: Board, ambient_c: float) -> None:
        chip = board.silicon
        self.board, self.chip, self.ambient_c = board, chip, ambient_c
        self.max_hz, self.min_hz = board.clocks_hz[-1], board.clocks_hz[0]
        self.cores = board.value("cores")
        self._shares = [share for share, _ in chip.voltage_v]
        self._volts = [volts for _, volts in chip.voltage_v]
        load_w, idle_w = board.value("uncapped_load_w"), board.value("idle_w")
        top_v = self.voltage_v(self.max_hz)
        self._top_v, self._leak_w = top_v, chip.leakage_share * load_w
        # The base makes an idle board draw its idle power, the switched capacitance a full one its load power.
        self._base_w = 0.0
        idle = self.power_w(self.min_hz, 0.0, 0.0, _AMBIENT_C)
        self._base_w = max(idle_w - idle, 0.2 * idle_w)
        rest = load_w - self._base_w - self.leakage_w(self.max_hz, chip.load_temperature_c)
        self._farad = rest / (top_v**2 * self.max_hz)
        self.kelvin_per_w = (chip.load_temperature_c - _AMBIENT_C) / load_w

    _farad = 0.0

    def voltage_v(self, frequency_hz: float) -> float:
        """V(f): straight pieces between the table's points, rounded up to the regulator's steps."""
        share, xs, ys = frequency_hz / self.max_hz, self._shares, self._volts
        volts = ys[-1]
        for i in range(1, len(xs)):
            if share <= xs[i]:
                volts = ys[i - 1] + (ys[i] - ys[i - 1]) * (share - xs[i - 1]) / (xs[i] - xs[i - 1])
                break
        return math.ceil(volts / _VOLT_STEP - 1e-9) * _VOLT_STEP

    def leakage_w(self, frequency_hz: float, temperature_c: float) -> float:
        volts = self.voltage_v(frequency_hz)
        warmth = math.exp(0.018 * (temperature_c - self.chip.load_temperature_c))
        return self._leak_w * volts / self._top_v * math.exp(2.5 * (volts - self._top_v)) * warmth

    def power_w(self, frequency_hz: float, activity: float, memory_w: float, temperature_c: float) -> float:
        switching = (_IDLE_ACTIVITY + (1 - _IDLE_ACTIVITY) * activity) * self._farad
        volts = self.voltage_v(frequency_hz)
        return (
            self._base_w + self.leakage_w(frequency_hz, temperature_c) + switching * volts**2 * frequency_hz + memory_w
        )

    def seconds_per_byte(self, frequency_hz: float) -> float:
        reach = 1.0 / self.board.value("memory_bandwidth_bytes_per_s")
        return (reach + 1.0 / (_BYTES_PER_CORE_CYCLE * self.cores * frequency_hz)) / _BANDWIDTH_REACHED

    def kernels(
        self, frequency_hz: float, cycles: NDArray[np.float64], transferred: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds and mean activity of each kernel at one clock, without jitter. Shapes (kernels,)."""
        compute = cycles / frequency_hz
        memory = transferred * self.seconds_per_byte(frequency_hz)
        busy = np.sqrt(np.sqrt(compute**4 + memory**4))
        seconds = self.chip.launch_s + busy
        active = compute + _STALL_ACTIVITY * (busy - np.minimum(compute, busy)) + _GAP_ACTIVITY * self.chip.launch_s
        return seconds, active / seconds

    def kernel(self, frequency_hz: float, kernel: Kernel) -> tuple[float, float]:
        """``kernels`` for a single one, in plain floats (called once for each operator)."""
        compute = kernel.cycles / frequency_hz
        memory = kernel.bytes * self.seconds_per_byte(frequency_hz)
        busy = math.sqrt(math.sqrt(compute**4 + memory**4))
        seconds = self.chip.launch_s + busy
        active = compute + _STALL_ACTIVITY * (busy - min(compute, busy)) + _GAP_ACTIVITY * self.chip.launch_s
        return seconds, active / seconds


class _Jitter:
    """Factors around 1, drawn in blocks (one draw for each operator would cost more than the operator)."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._block: NDArray[np.float64] = np.empty(0)
        self._next = 0

    def take(self, count: int) -> NDArray[np.float64]:
        if self._next + count > len(self._block):
            size = max(4096, count)
            self._block = np.exp(_JITTER * self._rng.standard_normal(size) - _JITTER**2 / 2)
            self._next = 0
        self._next += count
        return self._block[self._next - count : self._next]

    def one(self) -> float:
        return float(self.take(1)[0])


@dataclass
class _Recorder:
    """A running monitor."""

    period_s: float
    next_s: float
    readings: list[Reading] = field(default_factory=list)


class EmulatedClocks:
    """Clock lock of an emulated board (``device.ClockControl``). ``locked_hz`` is None while the driver rules."""

    caution: str | None = None

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device
        self.locked_hz: float | None = None

    def held(self, restore_hz: tuple[float, float] | None = None) -> AbstractContextManager[tuple[str, ...]]:
        return nullcontext(())  # nobody else can hold a device that exists in this process alone

    def supported_hz(self) -> tuple[float, ...]:
        return self._device.board.clocks_hz

    def current_hz(self) -> float:
        return self._device.current_hz()

    def may_set(self) -> bool:
        return True

    def undisturbed(self) -> AbstractContextManager[tuple[str, ...]]:
        return nullcontext(())

    def left_locked(self) -> bool:
        return False

    def lock(self, frequency_hz: float) -> None:
        """Lock the nearest supported clock. The real one lies up to the chip's lock offset below. Raises BadInput outside the table."""
        supported = self.supported_hz()
        if not 0.98 * supported[0] <= frequency_hz <= 1.02 * supported[-1]:
            raise BadInput(
                f"clock {frequency_hz / 1e6:g} MHz: {self._device.name} supports {supported[0] / 1e6:g} to "
                f"{supported[-1] / 1e6:g} MHz"
            )
        self._device._settle()
        self.locked_hz = min(supported, key=lambda hz: abs(hz - frequency_hz))
        self._device._set_target(self.locked_hz - self._device._lock_offset_hz(self.locked_hz))

    def reset(self) -> None:
        self._device._settle()
        self.locked_hz = None
        self._device._set_target(None)


class EmulatedDevice:
    """The board ``board`` simulated (``device.Device``).

    ``seed`` (else the environment variable CARD_EMULATION_SEED, else 0) and the board's name fix every random draw.
    ``ambient_c``, ``power_cap_w``, ``lock_offset_hz`` and ``energy_counter`` override the catalog, to emulate a hot room, a
    lower power limit, a rough clock lock, or a board without an energy counter.
    """

    provenance: Provenance = "emulated"
    torch_device = "meta"

    def __init__(
        self,
        board: Board,
        *,
        seed: int | None = None,
        ambient_c: float = _AMBIENT_C,
        power_cap_w: float | None = None,
        lock_offset_hz: float | None = None,
        energy_counter: bool = True,
    ) -> None:
        if seed is None:
            text = os.environ.get("CARD_EMULATION_SEED", "0")
            if not (text.isascii() and text.isdigit()):
                raise BadInput(f"CARD_EMULATION_SEED {text!r}: expected a whole number, 0 or more")
            seed = int(text)
        self.board, self.seed = board, seed
        self.name = f"emulated-{board.name}"
        self.default_role: Role = board.role
        self._options: dict[str, Any] = {
            "ambient_c": ambient_c,
            "power_cap_w": power_cap_w,
            "lock_offset_hz": lock_offset_hz,
            "energy_counter": energy_counter,
        }
        self._cap_w = board.value("power_cap_w") if power_cap_w is None else power_cap_w
        self._offset_hz = board.silicon.lock_offset_hz if lock_offset_hz is None else lock_offset_hz
        self._traits = board.silicon.sensor
        self._counts_energy = energy_counter and self._traits.energy_step_s is not None
        self.power: PowerSensor | None = PowerSensor(
            scope=board.power_scope,
            sensor=f"emulated {board.power_sensor}",
            period_s=self._traits.period_s,
            averaging_s=self._traits.averaging_s,
            counter=self._counts_energy,
        )
        self.absent = Absent()
        self.clocks: ClockControl | None = EmulatedClocks(self)
        self._physics = _Physics(board, ambient_c)
        start = zlib.crc32(board.name.encode()) + 2 * seed
        self._jitter = _Jitter(start)
        self._noise = np.random.default_rng(start + 1)  # apart, so that watching does not change what is watched
        self._now_s = 0.0
        self._energy_j = 0.0
        self._celsius = ambient_c
        self._target_hz: float | None = None
        self._cap_limit_hz = self._heat_limit_hz = self._physics.max_hz
        self._hz = self._physics.min_hz
        self._mean_w = board.value("idle_w")
        self._busy = False
        # Kernels charged but not yet turned into power and heat.
        self._pending_s = self._pending_active_s = self._pending_bytes = 0.0
        self._history: deque[tuple[float, float]] = deque([(0.0, 0.0)])
        self._shown_w = self._mean_w
        self._shown_j = 0.0
        self._next_sensor_s = self._next_energy_s = 0.0
        self._recorders: list[_Recorder] = []
        self._capture: list[Kernel] | None = None
        self._calls: Calls = {}
        self._last_load: _Load | None = None

    def describe(self) -> Hardware:
        board, physics = self.board, self._physics
        return Hardware(
            provenance="emulated",
            source=f"catalog figures of {board.name}; clocks: {board.clocks_source}",
            note="simulated on a virtual clock: no figure was measured on a real board",
            kind="emulated",
            description=f"{board.description}, emulated",
            catalog=board.name,
            cores=int(board.value("cores")),
            flops_per_core_cycle=board.value("flops_per_core_cycle"),
            memory_bytes=int(board.value("usable_memory_bytes")),
            power_cap_w=self._cap_w,
            clocks=Clocks(
                provenance="emulated",
                source=board.clocks_source,
                supported_hz=list(board.clocks_hz),
                min_hz=physics.min_hz,
                max_hz=physics.max_hz,
                operating_hz=physics.max_hz,
            ),
            conditions=self.settings(),
        )

    # ---- time ----

    def now_s(self) -> float:
        self._settle()
        return self._now_s

    def wait(self, seconds_s: float) -> None:
        self._settle()
        self._elapse(seconds_s, 0.0, 0.0, busy=False)

    def current_hz(self) -> float:
        self._settle()
        return self._measured_hz()

    def _measured_hz(self) -> float:
        step = self._traits.clock_step_hz
        return round(self._hz / step) * step

    # ---- kernels ----

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Inside, every aten operator on a ``meta`` tensor takes this board's time, forward and backward alike."""
        with charging(self.board, self._calls, self._charge):
            try:
                yield
            finally:
                self._settle()

    def load(self, step: Callable[[], object]) -> Callable[[], object]:
        """Run ``step`` to capture its kernels (which takes no virtual time), and return what replays them fast.

        It runs twice and the second is captured: the first makes gradients and optimizer state, later ones add to them.
        Raises BadInput when the step ran no operator on meta tensors.
        """
        self._settle()
        captured: list[Kernel] = []
        try:
            with charging(self.board, self._calls, self._charge):
                self._capture = []
                step()
                self._capture = captured
                step()
        finally:
            self._capture = None
        if not captured:
            raise BadInput(
                f"{self.name}: the load ran nothing on {self.torch_device} tensors, so nothing can be emulated"
            )
        self._last_load = _Load(self, captured)
        return self._last_load

    def _charge(self, kernel: Kernel) -> None:
        if self._capture is not None:
            self._capture.append(kernel)
            return
        self._wake()
        seconds, activity = self._physics.kernel(self._hz, kernel)
        seconds *= self._jitter.one()
        self._pending_s += seconds
        self._pending_active_s += seconds * activity
        self._pending_bytes += kernel.bytes
        if self._pending_s >= _GROUP_S:
            self._settle()

    def _replay(self, load: _Load) -> None:
        self._settle()
        per_byte = self.board.silicon.dram_j_per_byte
        for cycles, transferred, total in load.groups:
            self._wake()
            seconds, activity = self._physics.kernels(self._hz, cycles, transferred)
            seconds = seconds * self._jitter.take(len(seconds))
            spent = float(seconds.sum())
            self._elapse(spent, float(seconds @ activity) / spent, per_byte * total / spent, busy=True)

    def _settle(self) -> None:
        """Turn charged kernels into elapsed time, power and heat."""
        if self._pending_s > 0:
            spent, active, transferred = self._pending_s, self._pending_active_s, self._pending_bytes
            self._pending_s = self._pending_active_s = self._pending_bytes = 0.0
            self._elapse(spent, active / spent, self.board.silicon.dram_j_per_byte * transferred / spent, busy=True)

    # ---- clock, power, heat ----

    def _lock_offset_hz(self, frequency_hz: float) -> float:
        """How far below the locked clock the real one is: fixed for each clock, between none and the chip's offset."""
        draw = zlib.crc32(f"{self.board.name} {self.seed} {frequency_hz:.0f}".encode()) / 2**32
        return self._offset_hz * draw

    def _set_target(self, frequency_hz: float | None) -> None:
        self._target_hz = frequency_hz
        self._cap_limit_hz = self._physics.max_hz
        self._elapse(_LOCK_S, 0.0, 0.0, busy=False)

    def _wake(self) -> None:
        """The driver raises an unlocked clock as soon as there is work."""
        if not self._busy:
            self._busy = True
            self._regulate(0.0)

    def _regulate(self, seconds: float) -> None:
        """Power cap and heat limit pull the clock below its target, a little at a time."""
        physics = self._physics
        target = self._target_hz
        if target is None:
            target = physics.max_hz if self._busy else physics.min_hz
        pace = seconds / TICK_S
        excess = min(max(self._mean_w / self._cap_w - 1.0, -0.05), 0.2)
        lowered = min(target, self._cap_limit_hz) * (1.0 - 0.2 * excess * pace)
        # At rest the regulator lets go: work begins at the full clock, and the cap bites after a moment.
        self._cap_limit_hz = max(physics.min_hz, lowered) if self._busy else physics.max_hz
        heat = min(max((self._celsius - self.board.silicon.throttle_c) / 10.0, -0.2), 0.5)
        top = physics.max_hz
        self._heat_limit_hz = min(top, max(physics.min_hz, self._heat_limit_hz * (1.0 - 0.02 * heat * pace)))
        self._hz = min(target, self._cap_limit_hz, self._heat_limit_hz)

    def _elapse(self, seconds: float, activity: float, memory_w: float, *, busy: bool) -> None:
        """Let virtual time pass at one activity."""
        physics, chip = self._physics, self.board.silicon
        self._busy = busy
        if not busy:
            self._regulate(0.0)
        while seconds > 1e-12:
            spent = min(seconds, TICK_S)
            seconds -= spent
            power = physics.power_w(self._hz, activity, memory_w, self._celsius)
            self._now_s += spent
            self._energy_j += power * spent
            self._mean_w += (power - self._mean_w) * (1.0 - math.exp(-spent / _POWER_MEAN_S))
            settled = physics.ambient_c + physics.kelvin_per_w * power
            self._celsius += (settled - self._celsius) * (1.0 - math.exp(-spent / chip.thermal_time_s))
            self._regulate(spent)
            self._history.append((self._now_s, self._energy_j))
            if self._now_s >= self._next_sensor_s:
                self._renew_sensor(power)
            if self._counts_energy and self._now_s >= self._next_energy_s:
                self._next_energy_s = self._now_s + (self._traits.energy_step_s or 0.0)
                self._shown_j = math.floor(self._energy_j * 1e3) / 1e3  # millijoules
            for recorder in self._recorders:
                if self._now_s >= recorder.next_s - 1e-9:
                    recorder.readings.append(self._read())
                    missed = math.floor((self._now_s - recorder.next_s) / recorder.period_s + 1e-9)
                    recorder.next_s += (missed + 1) * recorder.period_s

    # ---- sensors ----

    def _renew_sensor(self, power: float) -> None:
        traits, history = self._traits, self._history
        self._next_sensor_s = (math.floor(self._now_s / traits.period_s + 1e-9) + 1) * traits.period_s
        mean = power
        since = self._now_s - max(traits.averaging_s, traits.period_s)
        while len(history) > 2 and history[1][0] <= since:
            history.popleft()
        if traits.averaging_s > 0 and self._now_s > history[0][0]:
            mean = (self._energy_j - history[0][1]) / (self._now_s - history[0][0])
        noisy = mean * (1.0 + traits.noise * float(self._noise.standard_normal()))
        self._shown_w = max(0.0, round(noisy / traits.step_w) * traits.step_w)

    def _read(self) -> Reading:
        target = self._target_hz
        if target is None:
            target = self._physics.max_hz if self._busy else self._physics.min_hz
        short = self._hz < 0.995 * target
        return Reading(
            time_s=self._now_s,
            power_w=self._shown_w,
            energy_j=self._shown_j if self._counts_energy else None,
            frequency_hz=self._measured_hz(),
            temperature_c=round(self._celsius, 1 if self.board.integrated else 0),
            capped=short and self._cap_limit_hz <= self._heat_limit_hz,
            throttled=short and self._heat_limit_hz < self._cap_limit_hz,
        )

    @contextmanager
    def monitor(self, period_s: float) -> Iterator[list[Reading]]:
        """Readings every ``period_s`` of virtual time while the body runs."""
        self._settle()
        recorder = _Recorder(period_s, self._now_s + period_s)
        self._recorders.append(recorder)
        try:
            yield recorder.readings
        finally:
            self._settle()
            self._recorders.remove(recorder)

    def settings(self) -> dict[str, str]:
        """What fixes every draw and the physics."""
        return {"seed": str(self.seed), "ambient": f"{self._physics.ambient_c:g} C"}

    def moving(self) -> dict[str, str]:
        """Nothing: what moves is in the readings."""
        return {}

    def unchanged(self) -> None:
        """Nobody changes the settings of an emulated board."""

    def second_opinion(self) -> dict[str, str]:
        """Nobody else sees an emulated board."""
        return {}

    # ---- truth, for tests and benchmarks ----

    def true_steady(self, frequency_hz: float, load: Callable[[], None] | None = None) -> Truth:
        """What the board settles to under ``load`` (default: the last one captured) at that real clock, without sensors.

        The clock is the one asked for exactly (no lock offset), unless cap or heat hold it lower. Changes nothing here.
        """
        chosen = load if load is not None else self._last_load
        if not isinstance(chosen, _Load):
            raise ValueError("true_steady: no load was captured; call load(step) first")
        twin = EmulatedDevice(self.board, seed=self.seed, **{**self._options, "lock_offset_hz": 0.0})
        twin._target_hz = frequency_hz
        # Short steps are laid end to end, which is faster, until each run is long enough to hold a mean.
        row = max(1, math.ceil(0.1 / chosen.full_clock_s))
        run, repeats = _Load(twin, chosen.kernels * row), 1
        power = hertz = seconds = 0.0
        for _ in range(6):
            for _ in range(3 * repeats):  # lets the regulators settle at this temperature
                run()
            start_s, start_j, cycles = twin._now_s, twin._energy_j, 0.0
            for _ in range(repeats):
                before = twin._now_s
                run()
                cycles += twin._hz * (twin._now_s - before)
            spent = twin._now_s - start_s
            power, hertz = (twin._energy_j - start_j) / spent, cycles / spent
            seconds = spent / (repeats * row)
            repeats = max(1, math.ceil(2.0 * repeats / spent))
            settled = self._physics.ambient_c + self._physics.kelvin_per_w * power
            if settled <= self.board.silicon.throttle_c:
                twin._celsius = settled
            else:  # heat limits the clock: only time finds where
                for _ in range(math.ceil(8 * self.board.silicon.thermal_time_s / (6 * seconds * row))):
                    run()
        short = hertz < 0.995 * frequency_hz
        return Truth(
            frequency_hz=hertz,
            power_w=power,
            step_s=seconds,
            temperature_c=twin._celsius,
            capped=short and twin._cap_limit_hz <= twin._heat_limit_hz,
            throttled=short and twin._heat_limit_hz < twin._cap_limit_hz,
        )


class _Load:
    """A captured step. Calling it replays its kernels with fresh jitter, many at a time."""

    def __init__(self, device: EmulatedDevice, kernels: Sequence[Kernel]) -> None:
        self._device = device
        self.kernels = list(kernels)
        cycles = np.array([k.cycles for k in kernels])
        transferred = np.array([k.bytes for k in kernels])
        seconds, _ = device._physics.kernels(device._physics.max_hz, cycles, transferred)
        self.full_clock_s = float(seconds.sum())
        group = np.floor(np.cumsum(seconds) / _GROUP_S)
        bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(kernels)]
        self.groups = [
            (cycles[a:b], transferred[a:b], float(transferred[a:b].sum())) for a, b in itertools.pairwise(bounds)
        ]

    def __call__(self) -> None:
        self._device._replay(self)
