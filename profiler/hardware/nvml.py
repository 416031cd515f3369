"""NVIDIA cards through NVML (the package ``nvidia-ml-py``, module ``pynvml``): watts, joules, clock, heat, limits.

A card is known by its UUID alone: NVML, CUDA and a container may each number the cards their own way. Every call is asked for
by itself, so an old driver costs what it lacks and nothing else. What a card said it does not have is not asked again, unless it
has answered before: then that costs one reading.

What the watts mean (NVIDIA's nvml.h): field 186 is the power of this moment, field 185 and ``nvmlDeviceGetPowerUsage`` on
Ampere (but not GA100) and newer are means of one second, ``nvmlDeviceGetPowerUsage`` before Ampere is of this moment. Field 83
is the energy since the driver was loaded, in mJ. Scope 0, which we ask for, is the GPU with its memory and circuitry.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from profiler.hardware.catalog import Board, board_named
from profiler.hardware.device import Absent, ClockControl, PowerSensor, Reading, Timebase
from profiler.hardware.host import WallTime
from profiler.profile import MissingHardware, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_INSTALL = "pip install 'card-profile[nvidia]' (the package nvidia-ml-py)"

# NVML's return codes (nvml.h).
_NO_PERMISSION, _DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND, _FUNCTION_NOT_FOUND, _VERSION_MISMATCH = 4, 9, 12, 13, 18
_NEVER = frozenset({2, 3, _NO_PERMISSION, _FUNCTION_NOT_FOUND, 25, 26})
"""Invalid argument (a field that this driver does not know), not supported, no permission, no such function, argument of another
version, deprecated: asking again gives the same answer, where there never was another one."""
_LOST = {
    15: "the GPU is lost (it fell off the bus or hangs)",
    16: "the GPU needs a reset",
    9: "the driver was unloaded",
}

_ENERGY, _AVERAGE, _INSTANT = 83, 185, 186
_CAP_NS = (74,)
"""Nanoseconds for which the software power cap held the clock down (perf policy power)."""
_THROTTLE_NS = (75, 251, 252, 253, 269, 270, 271)
"""Nanoseconds for which heat (75: perf policy thermal; software and hardware slowdown) or an external power brake did. NVIDIA
moved the last three from 251-253 (nvml.h of CUDA 12.8) to 269-271 (of CUDA 13); at the other place a driver has settings of
power smoothing, which stand still. So all are asked, and only what grows counts."""
_MATERIAL_SHARE = 0.01
"""A counter that grew by less of the time since the last reading is boost's own negotiation and holds nothing down."""

_REASON_CAP = 0x4
_REASON_THROTTLE = 0x8 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, software thermal, hardware thermal, power brake."""

_VALUE = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of nvmlValue_t by nvmlValueType_t."""

_VOLTA, _AMPERE = 5, 7
_UNKNOWN_ARCHITECTURE = 0xFFFFFFFF
_LOOKS = 5
_STILL_S = 2.0
"""An energy counter that has not moved for this long does not count: the least idle card draws thousands of mJ in it."""


class _NoNvml(Exception):
    """NVML cannot be used; the message says what is missing and how to get it."""


def _nvml() -> Any:
    """The module ``pynvml``, initialised. Initialising again only counts up. Raises _NoNvml."""
    try:
        import pynvml
    except ImportError:
        raise _NoNvml(f"nvidia-ml-py is not installed: {_INSTALL}") from None
    needed = ("nvmlInit", "NVMLError", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetFieldValues")
    if any(not hasattr(pynvml, name) for name in needed):
        where = getattr(pynvml, "__file__", None) or "a folder of that name"
        raise _NoNvml(
            f"the module pynvml that is found first ({where}) is not the one of nvidia-ml-py: "
            f"pip uninstall pynvml, then {_INSTALL}"
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code = getattr(error, "value", 0)
        known = {
            _NO_PERMISSION: "this user may not open the NVIDIA device files (/dev/nvidia*): ask the administrator",
            _DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: load it (sudo modprobe nvidia) or install it; "
            "nvidia-smi must list the card",
            _LIBRARY_NOT_FOUND: "the driver's library libnvidia-ml.so.1 is not here: install the NVIDIA driver "
            "(in a container: start it with --gpus all and the driver capability 'utility')",
            _FUNCTION_NOT_FOUND: "the library libnvidia-ml.so.1 that is found first is not NVIDIA's or far too old: "
            "look at LD_LIBRARY_PATH, install a present driver",
            _VERSION_MISMATCH: "driver and library are of different versions (the driver was updated while loaded): reboot",
        }
        raise _NoNvml(known.get(code, f"NVML does not start: {error}")) from None
    except Exception as error:  # another package's pynvml raises its own
        raise _NoNvml(f"NVML does not start: {type(error).__name__}: {error}") from None
    return pynvml


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _started(what: str) -> tuple[Any, int]:
    """The initialised module and how many cards it counts. Raises MissingHardware, which begins with ``what``."""
    try:
        nvml = _nvml()
    except _NoNvml as why:
        raise MissingHardware(f"{what}: {why}") from None
    try:
        return nvml, int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError as error:
        raise MissingHardware(f"{what}: NVML cannot count the cards: {error}") from None


def uuids() -> list[str]:
    """UUIDs of all cards in NVML's order, lost ones left out. Raises MissingHardware where NVML cannot be used."""
    nvml, count = _started("NVML")
    found = []
    for index in range(count):
        try:
            found.append(_text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))))
        except (nvml.NVMLError, UnicodeDecodeError):
            continue
    return found


def cards(*, time: Timebase | None = None) -> tuple[dict[int, NvmlCard], dict[int, str]]:
    """The cards that can be used, by NVML's number, and what is wrong with the others: one that is lost hides no other.

    A Jetson's GPU, which NVML lists but cannot measure, is no card. None at all where NVML cannot be used (``why_no_nvml``
    says why).
    """
    usable: dict[int, NvmlCard] = {}
    wrong: dict[int, str] = {}
    try:
        _, count = _started("NVML")
    except MissingHardware:
        return usable, wrong
    for index in range(count):
        try:
            card = by_index(index, time=time)
        except MissingHardware as fault:
            wrong[index] = str(fault)
            continue
        if not card.integrated:
            usable[index] = card
    return usable, wrong


def by_index(index: int, *, time: Timebase | None = None) -> NvmlCard:
    """The card that NVML numbers ``index`` (nvidia-smi's number). Raises MissingHardware."""
    nvml, count = _started(f"nvml:{index}")
    if not 0 <= index < count:
        numbers = f"NVML numbers the cards here 0 to {count - 1}" if count else "NVML lists no card"
        raise MissingHardware(f"nvml:{index}: no such card: {numbers}")
    try:
        uuid = _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
    except (nvml.NVMLError, UnicodeDecodeError) as error:
        raise MissingHardware(_gone(f"nvml:{index}", error)) from None
    return NvmlCard(uuid, time=time)


def by_uuid(uuid: str, *, time: Timebase | None = None) -> NvmlCard:
    """The card, or MIG slice, of that UUID (``GPU-...``, ``MIG-...``, in any case). Raises MissingHardware."""
    if not uuid.upper().startswith("MIG-"):
        uuid = next((known for known in uuids() if known.lower() == uuid.lower()), uuid)
    return NvmlCard(uuid, time=time)


def why_no_nvml() -> str | None:
    """Why NVML gives no card, in one sentence with the way out; None where it gives one."""
    try:
        _, count = _started("NVML")
    except MissingHardware as fault:
        return str(fault).removeprefix("NVML: ")
    faults, integrated = [], []
    for index in range(count):
        try:
            card = by_index(index)
        except MissingHardware as fault:
            faults.append(str(fault))
            continue
        if not card.integrated:
            return None
        integrated.append(card.given_name)
    if integrated:
        return (
            f"NVML answers but measures neither watts nor clocks of {', '.join(integrated)}: "
            "a GPU beside the CPU (Jetson), which is read through the kernel's files"
        )
    return faults[0] if faults else "NVML lists no card"


def _gone(what: str, error: Any) -> str:
    told = _LOST.get(getattr(error, "value", 0))
    if told is None:
        return f"{what}: NVML cannot open it: {error}"
    return (
        f"{what}: {told}: see 'sudo dmesg | grep -i -e xid -e nvrm', reset it with 'sudo nvidia-smi --gpu-reset' or reboot, "
        "then start again: a run goes on where it stopped"
    )


@dataclass
class _Last:
    """What the reading before saw of the nanosecond counters, and when."""

    time_s: float
    counters_ns: dict[int, int] = field(default_factory=dict)


class NvmlCard:
    """One NVIDIA card (``device.Instruments``), or one MIG slice, which has no watts of its own.

    Raises MissingHardware where NVML cannot be used, knows no such UUID, or the card is lost.
    """

    power: PowerSensor | None
    clocks: ClockControl | None

    def __init__(self, uuid: str, *, time: Timebase | None = None) -> None:
        try:
            self._nvml = _nvml()
        except _NoNvml as why:
            raise MissingHardware(f"nvml:{uuid}: {why}") from None
        self.uuid = uuid
        self.time: Timebase = time if time is not None else WallTime()
        self._never: set[tuple[object, ...]] = set()
        self._answered: set[tuple[object, ...]] = set()
        self._last: _Last | None = None
        self._energy: tuple[float, float] | None = None  # joules, and since when it shows them
        self._watts_from: int | str | None = None  # the field's number, or "usage"
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", 0) in _LOST:
                raise MissingHardware(_gone(f"nvml:{uuid}", error)) from None
            raise MissingHardware(f"nvml:{uuid}: no such card here (nvidia-smi -L lists UUIDs): {error}") from None
        self.given_name = _text(self._ask("nvmlDeviceGetName") or "NVIDIA GPU")
        self.key = f"nvml-{uuid}"
        self.board: Board | None = board_named(self.given_name)
        self.default_role: Role = self.board.role if self.board is not None else "server"
        self.is_slice = uuid.upper().startswith("MIG-")
        self._supported_hz = self._read_supported_hz()
        reasons: dict[str, str] = {}
        self.power = self._power_sensor(reasons)
        clock = self.current_hz()
        self.integrated = (
            not self.is_slice and self.power is None and clock is None and not self._supported_hz
        )  # a Jetson: NVML starts and lists it, and that is all
        if clock is None:
            reasons["clock"] = "NVML does not tell the clock of this GPU"
        if self._temperature_c() is None:
            reasons["temperature"] = "NVML does not tell the temperature of this GPU"
        self.clocks = self._clock_control(reasons)
        self.absent = Absent(reasons)

    # ------------------------------------------------------------------ what there is

    def _power_sensor(self, reasons: dict[str, str]) -> PowerSensor | None:
        """Which watts there are. A sensor that shows zero while the card is on is none (seen on virtual machines)."""
        if self.is_slice:
            reasons["power"] = "a MIG slice has no power of its own: measure the whole card, with MIG switched off"
            return None
        for _ in range(_LOOKS):  # a card that wakes may show zero at first
            fields = self._fields((_ENERGY, _INSTANT, _AVERAGE))
            usage = self._ask("nvmlDeviceGetPowerUsage")
            if usage or fields.get(_INSTANT) or fields.get(_AVERAGE):
                break
            self.time.wait(0.1)
        counter = self._joules(fields) is not None
        also = " and the energy counter (field 83)" if counter else ""
        if not counter:
            reasons["energy"] = (
                "no energy counter that counts (before Volta, or an old driver): watts alone are integrated"
            )
        limit_w = self.power_cap_w()
        # The renewal is 0.1 s or less on every card whose sensor was looked into (arXiv 2312.02741).
        if fields.get(_INSTANT, 0) > 0:
            self._watts_from = _INSTANT
            return PowerSensor("board", f"NVML instant power (field 186){also}", 0.1, 0.1, counter, limit_w)
        if fields.get(_AVERAGE, 0) > 0:
            self._watts_from = _AVERAGE
            return PowerSensor("board", f"NVML power averaged over 1 s (field 185){also}", 0.1, 1.0, counter, limit_w)
        if usage:
            self._watts_from = "usage"
            averaged = self._usage_is_averaged()
            kind = "averaged over 1 s" if averaged else "of the moment"
            sensor = f"NVML power {kind} (nvmlDeviceGetPowerUsage){also}"
            return PowerSensor("board", sensor, 0.1, 1.0 if averaged else 0.1, counter, limit_w)
        if counter:
            return PowerSensor("board", "NVML energy counter (field 83)", 0.1, 0.1, limit_w=limit_w)
        reasons["power"] = "NVML gives neither watts nor joules of this GPU"
        return None

    def _architecture(self) -> int | None:
        """NVML's number of the architecture (5 Volta, 7 Ampere); from the compute capability where an old driver lacks it."""
        number = self._ask("nvmlDeviceGetArchitecture")
        if number is not None and number != _UNKNOWN_ARCHITECTURE:
            return int(number)
        capability = self._capability()
        if capability is None:
            return None
        order = ((6, 0, 2), (7, 0, 4), (7, 5, _VOLTA), (8, 0, 6), (8, 9, _AMPERE))
        return next((known for major, minor, known in order if capability < (major, minor)), _AMPERE + 1)

    def _capability(self) -> tuple[int, int] | None:
        found = self._ask("nvmlDeviceGetCudaComputeCapability")
        return None if found is None else (int(found[0]), int(found[1]))

    def _usage_is_averaged(self) -> bool:
        """GA100 (A100, A30, A800) is compute capability 8.0. Unknown: a wait too many costs less than a lag not waited out."""
        architecture = self._architecture()
        return architecture is None or (architecture >= _AMPERE and self._capability() != (8, 0))

    def _clock_control(self, reasons: dict[str, str]) -> ClockControl | None:
        if self.is_slice:
            reasons["clocks"] = "the clock belongs to the whole card, not to a MIG slice"
            return None
        if not self._supported_hz:
            reasons["clocks"] = "NVML lists no clocks that this GPU could be set to"
            return None
        architecture = self._architecture()
        if architecture is not None and architecture < _VOLTA:
            reasons["clocks"] = "NVML locks clocks from Volta on, and this card is older"
            return None
        from profiler.hardware.guard import GuardedClocks

        return GuardedClocks(
            key=self.key,
            name=self.given_name,
            target={"kind": "nvml", "uuid": self.uuid},
            supported_hz=self._supported_hz,
            read_hz=self.current_hz,
            time=self.time,
            hint="in a container the capability SYS_ADMIN is needed too (--cap-add SYS_ADMIN)",
        )

    def _read_supported_hz(self) -> tuple[float, ...]:
        """Graphics clocks at the highest memory clock, which is where a card under load is. Memory clocks are not ours to set."""
        memory = self._ask("nvmlDeviceGetSupportedMemoryClocks")
        if not memory:
            return ()
        graphics = self._ask("nvmlDeviceGetSupportedGraphicsClocks", max(memory))
        return tuple(sorted({int(mhz) * 1e6 for mhz in graphics or () if int(mhz) > 0}))

    # ------------------------------------------------------------------ asking

    def _ask(self, function: str, *arguments: object) -> Any | None:
        """What NVML answers, or None. Raises MissingHardware where the card is lost."""
        key = (function, *arguments)
        if key in self._never:
            return None
        call = getattr(self._nvml, function, None)
        if call is None:  # an old nvidia-ml-py
            self._never.add(key)
            return None
        try:
            found = call(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            self._refused(key, error)
            return None
        except UnicodeDecodeError as error:  # pynvml decodes text strictly; the bytes are in the error
            found = error.object
        except OSError:
            return None
        self._answered.add(key)
        return found

    def _refused(self, key: tuple[object, ...], error: Any) -> None:
        code = getattr(error, "value", 0)
        if code in _LOST:
            raise MissingHardware(
                _gone(f"{self.given_name if hasattr(self, 'given_name') else 'GPU'} {self.uuid}", error)
            )
        # A driver that is busy may deny for a moment what the card has; a function that is not there was never there.
        if code == _FUNCTION_NOT_FOUND or (code in _NEVER and key not in self._answered):
            self._never.add(key)

    def _fields(self, ids: Iterable[int]) -> dict[int, float]:
        """Field values by number, those alone that answered. One call where the driver takes it, else one for each field."""
        wanted = [number for number in ids if ("field", number) not in self._never]
        if not wanted or ("fields",) in self._never:
            return {}
        try:
            answers = list(self._nvml.nvmlDeviceGetFieldValues(self._handle, wanted))
        except self._nvml.NVMLError as error:
            code = getattr(error, "value", 0)
            if code == _FUNCTION_NOT_FOUND:
                self._never.add(("fields",))
            elif code in _LOST or len(wanted) == 1:
                self._refused(("field", wanted[0]), error)
            elif code in _NEVER:  # one field that it does not know spoils the call
                return {number: value for one in wanted for number, value in self._fields((one,)).items()}
            return {}
        except OSError:
            return {}
        found: dict[int, float] = {}
        for answer in answers:
            if answer.nvmlReturn:
                self._refused(("field", int(answer.fieldId)), self._nvml.NVMLError(answer.nvmlReturn))
            elif answer.valueType < len(_VALUE):
                self._answered.add(("field", int(answer.fieldId)))
                found[int(answer.fieldId)] = getattr(answer.value, _VALUE[answer.valueType])
        return found

    def _joules(self, fields: Mapping[int, float]) -> float | None:
        """The energy counter; None where there is none or it shows zero."""
        millijoules = fields.get(_ENERGY)
        if millijoules is None:
            millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return millijoules / 1e3 if millijoules else None

    def _counted(self, joules: float | None, now_s: float) -> float | None:
        """``joules`` where the counter moves: one that stands still, or ran backwards, is not to be trusted at this moment."""
        if joules is None:
            return None
        before, since_s = self._energy if self._energy is not None else (joules, now_s)
        if joules != before:
            self._energy = (joules, now_s)
            return joules if joules > before else None
        self._energy = (before, since_s)
        return joules if now_s - since_s < _STILL_S else None

    def _temperature_c(self) -> float | None:
        """``GetTemperatureV`` of new drivers, else ``GetTemperature``; sensor 0 is the GPU's."""
        found = self._ask("nvmlDeviceGetTemperatureV", 0)
        if found is None:
            found = self._ask("nvmlDeviceGetTemperature", 0)
        return None if found is None else float(found)

    # ------------------------------------------------------------------ Instruments

    def supported_hz(self) -> tuple[float, ...]:
        return self._supported_hz

    def current_hz(self) -> float | None:
        """The graphics clock as measured (clock type 0), None where it is not told."""
        mhz = self._ask("nvmlDeviceGetClockInfo", 0)
        if mhz is None:
            mhz = self._ask("nvmlDeviceGetClock", 0, 0)
        return mhz * 1e6 if mhz else None

    def read(self) -> Reading:
        now_s = self.time.now_s()
        fields: dict[int, float] = {}
        watts: float | None = None
        joules: float | None = None
        if not self.is_slice:
            source = (self._watts_from,) if isinstance(self._watts_from, int) else ()
            fields = self._fields((_ENERGY, *source, *_CAP_NS, *_THROTTLE_NS))
            joules = self._counted(self._joules(fields), now_s)
            milliwatts = fields.get(source[0]) if source else None
            if self._watts_from == "usage":
                milliwatts = self._ask("nvmlDeviceGetPowerUsage")
            watts = milliwatts / 1e3 if milliwatts else None
        capped, throttled = self._held_down(fields, now_s)
        return Reading(
            time_s=now_s,
            power_w=watts,
            energy_j=joules,
            frequency_hz=self.current_hz(),
            temperature_c=self._temperature_c(),
            capped=capped,
            throttled=throttled,
        )

    def _held_down(self, fields: Mapping[int, float], now_s: float) -> tuple[bool, bool]:
        """Whether the power cap, and heat or a brake, hold the clock down now or did so since the reading before.

        The reasons of this moment miss what happened between two readings; the nanosecond counters do not, but a driver may
        renew them only every 0.1 s.
        """
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        bits = int(bits or 0)
        counters = {number: int(fields[number]) for number in (*_CAP_NS, *_THROTTLE_NS) if number in fields}
        if not counters:
            for number, policy in ((_CAP_NS[0], 0), (_THROTTLE_NS[0], 1)):  # the same counters by their older call
                status = None if self.is_slice else self._ask("nvmlDeviceGetViolationStatus", policy)
                if status is not None:
                    counters[number] = int(status.violationTime)
        last, self._last = self._last, _Last(now_s, counters)

        def grew(numbers: tuple[int, ...]) -> bool:
            if last is None or now_s <= last.time_s:
                return False
            least = _MATERIAL_SHARE * (now_s - last.time_s) * 1e9
            return any(n in counters and counters[n] - last.counters_ns.get(n, counters[n]) > least for n in numbers)

        return (
            bool(bits & _REASON_CAP) or grew(_CAP_NS),
            bool(bits & _REASON_THROTTLE) or grew(_THROTTLE_NS),
        )

    def memory_bytes(self) -> int | None:
        """The card's memory without what the driver keeps for itself."""
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        info = self._ask("nvmlDeviceGetMemoryInfo", version) if version is not None else None
        if info is not None:
            return int(info.total) - int(info.reserved)
        info = self._ask("nvmlDeviceGetMemoryInfo")
        return int(info.total) if info is not None else None

    def power_cap_w(self) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        if milliwatts is None:
            milliwatts = self._ask("nvmlDeviceGetPowerManagementLimit")
        return milliwatts / 1e3 if milliwatts else None

    def software(self) -> dict[str, str]:
        found = {}
        for name, function in (
            ("driver", "nvmlSystemGetDriverVersion"),
            ("nvml", "nvmlSystemGetNVMLVersion"),
            ("cuda_driver", "nvmlSystemGetCudaDriverVersion_v2"),
        ):
            try:
                value = getattr(self._nvml, function)()
            except UnicodeDecodeError as error:
                value = error.object
            except (self._nvml.NVMLError, AttributeError):
                continue
            found[name] = f"{value // 1000}.{value % 1000 // 10}" if isinstance(value, int) else _text(value)
        return found

    def settings(self) -> dict[str, str]:
        found = {}
        # The limit that somebody set; the one in force may move by itself (a laptop shares its watts with the CPU).
        milliwatts = self._ask("nvmlDeviceGetPowerManagementLimit")
        if milliwatts:
            found["power limit"] = f"{milliwatts / 1e3:g} W"
        for name, function in (("mig", "nvmlDeviceGetMigMode"), ("ecc", "nvmlDeviceGetEccMode")):
            modes = self._ask(function)
            if modes is not None:
                found[name] = "on" if modes[0] else "off"
        return found

    def moving(self) -> dict[str, str]:
        found = {}
        memory = self._ask("nvmlDeviceGetClockInfo", 2)
        if memory:
            found["memory_clock"] = f"{memory} MHz"
        state = self._ask("nvmlDeviceGetPerformanceState")
        if state is not None:
            found["performance_state"] = f"P{state}"
        return found

    def conditions(self) -> dict[str, str]:
        found = self.moving()
        persistence = self._ask("nvmlDeviceGetPersistenceMode")
        if persistence is not None:
            found["persistence_mode"] = "on" if persistence else "off"
        mode = self._ask("nvmlDeviceGetComputeMode")
        if mode is not None:
            names = {0: "default", 2: "prohibited", 3: "exclusive process"}
            found["compute_mode"] = names.get(int(mode), str(mode))
        # By versioned names: the plain one fails with an error of its own kind on a driver older than the client.
        running = self._ask("nvmlDeviceGetComputeRunningProcesses_v3")
        if running is None:
            running = self._ask("nvmlDeviceGetComputeRunningProcesses_v2")
        if running is not None:
            found["other_processes"] = str(sum(int(process.pid) != os.getpid() for process in running))
        return found

    def second_opinion(self) -> dict[str, str]:
        """Nobody else is asked."""
        return {}
