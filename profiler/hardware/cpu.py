"""This machine's processor as a device, through the kernel's files in /sys and /proc.

Everything is optional: a virtual machine often has neither a clock to read nor an energy counter, and then says so. The
root of /sys and /proc is the environment variable CARD_SYSFS_ROOT (default ``/``), so that a copied tree can be read.

The clock is set through the limits of cpufreq, those of all processors together: lowest and highest to one value. The
watts are RAPL's (powercap, or the hwmon of AMD's ``amd_energy``): whole packages, never cores, DRAM or ``psys``.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from profiler.hardware.device import Absent, ClockControl, PowerSensor, Reading, Timebase
from profiler.hardware.guard import GuardedClocks
from profiler.hardware.host import (
    KeptOpen,
    WallTime,
    cgroup_limit_bytes,
    listed,
    read_number,
    read_text,
    refuse_change,
    sysfs_root,
)
from profiler.profile import Clocks, Hardware, Provenance, Role

_PROBE_S = 0.25
"""A living energy counter moves within a few milliseconds; one that stands still this long is not one."""
_RAPL_PERIOD_S = 0.001
_WRAP = 1 / 16  # of a counter's range, that it may move between two looks: kilojoules
_SPIN_S = 0.03
_STEP_HZ = 100e6
"""Where the driver lists no clocks (intel_pstate, amd-pstate) it takes any; processors make multiples of this."""


@dataclass(frozen=True)
class _Zone:
    """One energy counter: microjoules that wrap at ``range_uj`` (0: too wide to wrap)."""

    name: str
    counter: KeptOpen
    range_uj: float
    sensor: str = "RAPL powercap"

    @property
    def file(self) -> Path:
        return self.counter.path

    def read_uj(self) -> float | None:
        """Microjoules; None where the counter does not answer."""
        return self.counter.read()


class RaplMeter:
    """Energy of the processor packages since the meter was made, wraps undone; a counter that was reset makes it fall. ``sensor``: whose counters they are."""

    def __init__(self, zones: list[_Zone]) -> None:
        self.zones = zones
        self.sensor = zones[0].sensor
        self._last = [zone.read_uj() or 0.0 for zone in zones]
        self._total_uj = 0.0

    def energy_j(self) -> float | None:
        """Joules so far; None when a counter could not be read this time."""
        values = [zone.read_uj() for zone in self.zones]
        fresh = []
        for zone, value, last in zip(self.zones, values, self._last, strict=True):
            if value is None:
                return None
            # Between two looks a counter wraps by little. Whatever else makes it smaller (a reset, a fault) has lost what nobody knows,
            # and the total falls with it: that is seen, and told.
            wrapped = value + zone.range_uj - last
            self._total_uj += wrapped if value < last and 0 <= wrapped < _WRAP * zone.range_uj else value - last
            fresh.append(value)
        self._last = fresh
        return self._total_uj / 1e6


def _package_zones(root: Path) -> tuple[list[_Zone], list[Path], Path | None]:
    """Counters of whole packages, those that cannot be read, and the platform's counter (psys) where there is one.

    powercap has them on Intel and on AMD (as ``intel-rapl`` too), older kernels have AMD's sockets in hwmon.
    """
    zones: dict[str, _Zone] = {}
    unreadable: dict[str, Path] = {}
    psys = None
    powercap = root / "sys/class/powercap"
    # The memory-mapped interface counts the same packages again: it is asked only for what the other does not have.
    folders = [folder for pattern in ("*-rapl:*", "*-rapl-mmio:*") for folder in listed(powercap, pattern)]
    for folder in folders:
        name, file = read_text(folder / "name") or "", folder / "energy_uj"
        if name == "psys" and psys is None:
            psys = file
        if not re.fullmatch(r"package-\d+(-die-\d+)?", name) or name in zones:
            continue  # cores, uncore and dram lie inside a package or beside it; psys reads zero on many machines
        if read_number(file) is None:
            unreadable.setdefault(name, file)
        else:
            zones[name] = _Zone(name, KeptOpen(file), read_number(folder / "max_energy_range_uj") or 0.0)
    if not zones and not unreadable:
        for hwmon in listed(root / "sys/class/hwmon", "hwmon*"):
            if read_text(hwmon / "name") != "amd_energy":
                continue
            for label in listed(hwmon, "energy*_label"):
                name, file = read_text(label) or "", hwmon / label.name.replace("_label", "_input")
                if not re.fullmatch(r"Esocket\d+", name):
                    continue
                if read_number(file) is None:
                    unreadable.setdefault(name, file)
                else:
                    zones.setdefault(name, _Zone(name, KeptOpen(file), 0.0, sensor="amd_energy hwmon"))
    return list(zones.values()), [file for name, file in unreadable.items() if name not in zones], psys


def find_rapl(root: Path, *, probe_s: float = _PROBE_S) -> tuple[RaplMeter | None, str]:
    """The packages' energy counters, and what they cover or else why there is none, in one sentence.

    A counter that reads zero, or does not move under work within ``probe_s``, is refused.
    """
    zones, unreadable, platform_file = _package_zones(root)
    if unreadable and read_text(unreadable[0]) is not None:
        return None, f"the energy counter {unreadable[0]} shows no number"
    if unreadable:
        return None, (
            f"the energy counter {unreadable[0]} is readable by root only: "
            f"sudo chmod a+r {unreadable[0].parent.parent}/*/{unreadable[0].name}"
        )
    if not zones:
        joules = read_number(platform_file) if platform_file is not None else None
        psys = f"; {platform_file} reads {joules / 1e6:.2f} J and is no package's" if joules is not None else ""
        return (
            None,
            f"the kernel shows no RAPL energy counter of a package in /sys/class/powercap (usual in a virtual machine){psys}",
        )
    meter = RaplMeter(zones)
    start, end = [z.read_uj() or 0.0 for z in zones], time.monotonic() + probe_s
    still = set(range(len(zones)))
    while still and time.monotonic() < end:
        for i in list(still):
            value = zones[i].read_uj() or 0.0
            if value > 0 and value != start[i]:
                still.discard(i)
        sum(range(2000))
    if still:
        zone = zones[min(still)]
        return None, f"the energy counter {zone.file} stands still at {start[min(still)] / 1e6:.2f} J: refused"
    return meter, "CPU package" if len(zones) == 1 else f"{len(zones)} CPU packages"


class CpuDevice:
    """The processor that Python runs on (``device.Device``). ``clocks`` is None where the kernel has no cpufreq limits."""

    name = "cpu"
    default_role: Role = "device"
    provenance: Provenance = "measured"
    torch_device = "cpu"

    def __init__(self, root: Path | None = None, *, time: Timebase | None = None) -> None:
        self._root = sysfs_root() if root is None else root
        self.time: Timebase = time if time is not None else WallTime()
        self._load_before = (read_text(self._root / "proc/loadavg") or "").partition(" ")[0]
        reasons = {}
        self._meter, said = find_rapl(self._root)
        self.power: PowerSensor | None = None
        if self._meter is None:
            reasons["power"] = said
        else:
            self.power = PowerSensor(scope=said, sensor=self._meter.sensor, period_s=_RAPL_PERIOD_S, averaging_s=0.0)
        self._cpu = self._own_cpu()
        self.clocks: ClockControl | None = self._clock_control()
        if self.clocks is None:
            reasons["clocks"] = (
                "the kernel has no cpufreq limits to set (usual in a virtual machine): the clock is the system's own"
            )
        self._thermal = self._find_thermal()
        if self._thermal is None:
            reasons["temperature"] = "no thermal zone of the processor in /sys/class/thermal"
        if self.current_hz() is None:
            reasons["clock"] = "neither cpufreq nor /proc/cpuinfo tells the clock"
        self.absent = Absent(reasons)
        self._settings = self.settings()

    def _own_cpu(self) -> str:
        """The first processor that this process may run on: the one whose clock is read."""
        try:
            return f"cpu{min(os.sched_getaffinity(0))}" if self._root == Path("/") else "cpu0"
        except (AttributeError, OSError):  # pragma: no cover - not Linux
            return "cpu0"

    def _cpufreq(self, name: str) -> float | None:
        """A cpufreq file in Hz (the kernel writes kHz)."""
        khz = read_number(self._root / "sys/devices/system/cpu" / self._cpu / "cpufreq" / name)
        return khz * 1e3 if khz is not None and khz > 0 else None

    def _policies(self) -> list[Path]:
        """Folders of cpufreq with limits, one for each group of processors that share a clock."""
        base = self._root / "sys/devices/system/cpu"
        folders = listed(base, "cpufreq/policy[0-9]*") or listed(base, "cpu[0-9]*/cpufreq")
        files = ("scaling_min_freq", "scaling_max_freq")
        # A group whose processors are all offline keeps its folder.
        online = [folder for folder in folders if read_text(folder / "affected_cpus") != ""]
        found = [folder for folder in online if all(read_number(folder / name) is not None for name in files)]
        return sorted(
            found, key=lambda folder: [int(n) for n in re.findall(r"\d+", f"{folder.parent.name} {folder.name}")]
        )

    def _listed_hz(self) -> list[float]:
        """The clocks that the driver lists, ascending; most drivers list none."""
        system = self._root / "sys/devices/system/cpu"
        names = ["scaling_available_frequencies"]
        if read_text(system / "cpufreq/boost") != "0":
            names.append("scaling_boost_frequencies")
        words = " ".join(read_text(system / self._cpu / "cpufreq" / name) or "" for name in names).split()
        return sorted({int(khz) * 1e3 for khz in words if khz.isdecimal() and int(khz) > 0})

    def _clocks_to_set(self) -> list[float]:
        """Clocks that limits may take, ascending: the driver's list, else steps between the hardware's lowest and highest."""
        listed, low, high = self._listed_hz(), self._cpufreq("cpuinfo_min_freq"), self._cpufreq("cpuinfo_max_freq")
        if listed or low is None or high is None or low > high:
            return listed
        between = range(math.ceil(low / _STEP_HZ), math.floor(high / _STEP_HZ) + 1)
        return sorted({low, *(n * _STEP_HZ for n in between), high})

    def _clock_control(self) -> GuardedClocks | None:
        policies, clocks = self._policies(), self._clocks_to_set()
        if not policies or not clocks:
            return None
        nodes = [
            {
                "min": str((folder / "scaling_min_freq").absolute()),
                "max": str((folder / "scaling_max_freq").absolute()),
                "unit_hz": 1000,
            }
            for folder in policies
        ]
        return GuardedClocks(
            key="cpufreq",
            name="cpu",
            target={"kind": "sysfs", "nodes": nodes},
            supported_hz=clocks,
            read_hz=self.current_hz,
            time=self.time,
        )

    def _find_thermal(self) -> Path | None:
        zones = listed(self._root / "sys/class/thermal", "thermal_zone*")
        named = [((read_text(zone / "type") or "").lower(), zone / "temp") for zone in zones]
        sensors = listed(self._root / "sys/class/hwmon", "hwmon*")
        named += [((read_text(sensor / "name") or "").lower(), sensor / "temp1_input") for sensor in sensors]
        # Words first: a chip may list a zone of its other parts before that of its CPU.
        for word in ("x86_pkg_temp", "k10temp", "coretemp", "cpu", "soc"):
            for kind, file in named:
                if word in kind and read_number(file) is not None:
                    return file
        return None

    def _cpuinfo(self) -> dict[str, str]:
        """Fields of the first processor, by lower-case name; and ``packages/cores`` counted over all."""
        fields: dict[str, str] = {}
        cores = set()
        package = ""
        for line in (read_text(self._root / "proc/cpuinfo") or "").splitlines():
            key, colon, value = (part.strip() for part in line.partition(":"))
            if not colon:
                continue
            fields.setdefault(key.lower(), value)
            if key == "physical id":
                package = value
            elif key == "core id":
                cores.add((package, value))
        if cores:
            fields["physical cores"] = str(len(cores))
        return fields

    def current_hz(self) -> float | None:
        """The clock at this moment: cpufreq's, else the one in /proc/cpuinfo, else None."""
        hertz = self._cpufreq("scaling_cur_freq")
        if hertz is None:
            with contextlib.suppress(KeyError, ValueError):
                hertz = float(self._cpuinfo()["cpu mhz"]) * 1e6
        return hertz if hertz is not None and 1e6 <= hertz <= 1e11 else None

    def _usable(self) -> int:
        """Threads that this process may run on."""
        try:
            return len(os.sched_getaffinity(0)) if self._root == Path("/") else (os.cpu_count() or 1)
        except (AttributeError, OSError):  # pragma: no cover - not Linux
            return os.cpu_count() or 1

    def describe(self) -> Hardware:
        """What the processor is. ``cores`` are physical cores that this process may use; ``flops_per_core_cycle`` is not
        guessed: it depends on vector units that the kernel does not tell."""
        info, settings = self._cpuinfo(), self.settings()
        total_kb = re.search(r"^MemTotal:\s+(\d+) kB", read_text(self._root / "proc/meminfo") or "", re.MULTILINE)
        memory = [int(total_kb.group(1)) * 1024] if total_kb else []
        limit = cgroup_limit_bytes(self._root)
        if limit is not None:
            memory.append(limit)
        return Hardware(
            provenance="measured",
            kind="cpu",
            description=info.get("model name") or info.get("model") or platform.processor() or platform.machine(),
            cores=max(1, min(int(settings["physical cores"]), self._usable())),
            memory_bytes=min(memory) if memory else None,
            clocks=self._clock_range(),
            software={"kernel": platform.release(), "machine": platform.machine()},
            conditions={**settings, **({"load average before": self._load_before} if self._load_before else {})},
        )

    def _clock_range(self) -> Clocks | None:
        spin_until = time.perf_counter() + _SPIN_S  # the governor lets a resting processor sleep at its lowest clock
        while time.perf_counter() < spin_until:
            sum(range(1000))
        now = self.current_hz()
        low, high = self._cpufreq("cpuinfo_min_freq"), self._cpufreq("cpuinfo_max_freq")
        if now is None and high is None:
            return None
        if low is None or high is None or now is None or low > high:
            only = now if now is not None else high
            assert only is not None
            return Clocks(
                provenance="measured",
                note="the only clock that this machine tells; it cannot be set",
                min_hz=only,
                max_hz=only,
                operating_hz=only,
            )
        set_by = "they can be locked" if self.clocks is not None else "they cannot be set here"
        return Clocks(
            provenance="measured",
            note=f"the governor chooses between these, {set_by}; operating: read under a short spin",
            supported_hz=list(self.clocks.supported_hz()) if self.clocks is not None else self._listed_hz(),
            min_hz=low,
            max_hz=high,
            operating_hz=now,
        )

    def now_s(self) -> float:
        return self.time.now_s()

    def executing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def load(self, step: Callable[[], object]) -> Callable[[], object]:
        return step

    def wait(self, seconds_s: float) -> None:
        self.time.wait(seconds_s)

    def temperature_c(self) -> float | None:
        """Degrees of the processor's thermal zone, else None."""
        milli = read_number(self._thermal) if self._thermal is not None else None
        return milli / 1e3 if milli is not None and -50e3 < milli < 200e3 else None

    @contextmanager
    def monitor(self, period_s: float) -> Iterator[list[Reading]]:
        """Readings from a thread. ``power_w`` is the energy counter's mean since the reading before."""
        meter = RaplMeter(self._meter.zones) if self._meter is not None else None
        last_s, last_j = self.now_s(), 0.0

        def read() -> Reading:
            nonlocal last_s, last_j
            now, joules, watts = self.now_s(), meter.energy_j() if meter else None, None
            if joules is not None:
                watts = (joules - last_j) / (now - last_s) if now > last_s and joules >= last_j else None
                last_s, last_j = now, joules
            return Reading(
                time_s=now,
                power_w=watts,
                energy_j=joules,
                frequency_hz=self.current_hz(),
                temperature_c=self.temperature_c(),
            )

        with self.time.watching(read, period_s) as readings:
            yield readings

    def moving(self) -> dict[str, str]:
        """Nothing: what moves is in the readings."""
        return {}

    def settings(self) -> dict[str, str]:
        """Threads, governor, turbo, SMT and memory limit: figures under others do not belong together."""
        info = self._cpuinfo()
        threads = (read_text(self._root / "proc/cpuinfo") or "").count("processor\t") or self._usable()
        found = {"threads": str(threads), "physical cores": info.get("physical cores", str(threads))}
        found["usable threads"] = str(self._usable())
        system = self._root / "sys/devices/system/cpu"
        governor = read_text(system / self._cpu / "cpufreq/scaling_governor")
        if governor:
            found["governor"] = governor
        off, boost = read_text(system / "intel_pstate/no_turbo"), read_text(system / "cpufreq/boost")
        if off in ("0", "1") or boost in ("0", "1"):
            found["turbo"] = "on" if off == "0" or (off is None and boost == "1") else "off"
        simultaneous = read_text(system / "smt/active")
        if simultaneous in ("0", "1"):
            found["SMT"] = "on" if simultaneous == "1" else "off"
        if os.environ.get("OMP_NUM_THREADS"):
            found["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
        limit = cgroup_limit_bytes(self._root)
        if limit is not None:
            found["memory limit"] = f"control group, {limit} bytes"
        return found

    def unchanged(self) -> None:
        """Raises MissingHardware where a setting changed since the device was opened."""
        refuse_change(self.name, self._settings, self.settings())

    def second_opinion(self) -> dict[str, str]:
        """Nobody else is asked."""
        return {}
