"""This machine's processor as a device, through the kernel's files in /sys and /proc.

Everything is optional: a virtual machine often has neither a clock to read nor an energy counter, and then says so. The
root of /sys and /proc is the environment variable CARD_SYSFS_ROOT (default ``/``), so that a copied tree can be read.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from profiler.hardware.device import Absent, ClockControl, PowerSensor, Reading
from profiler.hardware.host import WallTime, read_number, read_text, refuse_change, sysfs_root
from profiler.profile import Clocks, Hardware, Provenance, Role

_PROBE_S = 0.25
"""A living energy counter moves within a few milliseconds; one that stands still this long is not one."""
_RAPL_PERIOD_S = 0.001
_SPIN_S = 0.03


def cgroup_limit_bytes(root: Path) -> int | None:
    """The smallest memory limit of the control groups that this process is in; None where there is none."""
    limits = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if number == "0" and not controllers:
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            limit = read_number(base.joinpath(*parts[:depth]) / file)
            # Version 1 writes "no limit" as a number near 2^63.
            if limit is not None and 0 < limit < 2**60:
                limits.append(int(limit))
    return min(limits, default=None)


@dataclass(frozen=True)
class _Zone:
    """One energy counter: microjoules that wrap at ``range_uj``."""

    name: str
    file: Path
    range_uj: float


class RaplMeter:
    """Energy of the processor packages since the meter was made, from powercap's counters, wraps undone."""

    def __init__(self, zones: list[_Zone]) -> None:
        self.zones = zones
        self._last = [read_number(zone.file) or 0.0 for zone in zones]
        self._total_uj = 0.0

    def energy_j(self) -> float | None:
        """Joules so far; None when a counter could not be read this time."""
        values = [read_number(zone.file) for zone in self.zones]
        fresh = []
        for zone, value, last in zip(self.zones, values, self._last, strict=True):
            if value is None:
                return None
            # A smaller value is a wrap where the range is known, else a reset counter, whose loss cannot be known.
            moved = value - last if value >= last else (value + zone.range_uj - last if zone.range_uj > last else value)
            self._total_uj += moved
            fresh.append(value)
        self._last = fresh
        return self._total_uj / 1e6


def find_rapl(root: Path, *, probe_s: float = _PROBE_S) -> tuple[RaplMeter | None, str]:
    """The packages' energy counters, and what they cover or else why there is none, in one sentence.

    A counter that reads zero, or does not move under work within ``probe_s``, is refused.
    """
    base = root / "sys/class/powercap"
    zones, unreadable = [], []
    for folder in sorted(base.glob("*-rapl:*")) if base.is_dir() else []:
        name = read_text(folder / "name") or ""
        if not re.fullmatch(r"package-\d+", name):
            continue  # cores, uncore and dram lie inside a package or beside it; psys reads zero on many machines
        if read_number(folder / "energy_uj") is None:
            unreadable.append(folder / "energy_uj")
        else:
            zones.append(
                _Zone(name, folder / "energy_uj", read_number(folder / "max_energy_range_uj") or 0.0),
            )
    if unreadable:
        return None, (
            f"the energy counter {unreadable[0]} is readable by root only: "
            f"sudo chmod a+r {unreadable[0].parent.parent}/*/energy_uj"
        )
    if not zones:
        return None, "the kernel shows no RAPL energy counter in /sys/class/powercap (usual in a virtual machine)"
    meter = RaplMeter(zones)
    start, end = [read_number(z.file) or 0.0 for z in zones], time.monotonic() + probe_s
    still = set(range(len(zones)))
    while still and time.monotonic() < end:
        for i in list(still):
            value = read_number(zones[i].file) or 0.0
            if value > 0 and value != start[i]:
                still.discard(i)
        sum(range(2000))
    if still:
        zone = zones[min(still)]
        return None, f"the energy counter {zone.file} stands still at {start[min(still)] / 1e6:.2f} J: refused"
    return meter, "CPU package" if len(zones) == 1 else f"{len(zones)} CPU packages"


class CpuDevice:
    """The processor that Python runs on (``device.Device``). Its clock cannot be locked yet: ``clocks`` is None."""

    name = "cpu"
    default_role: Role = "device"
    provenance: Provenance = "measured"
    torch_device = "cpu"
    clocks: ClockControl | None = None

    def __init__(self, root: Path | None = None) -> None:
        self._root = sysfs_root() if root is None else root
        reasons = {"clocks": "setting the CPU's clock is not supported yet; it runs under the system's own governor"}
        self._meter, said = find_rapl(self._root)
        self.power: PowerSensor | None = None
        if self._meter is None:
            reasons["power"] = said
        else:
            self.power = PowerSensor(scope=said, sensor="RAPL powercap", period_s=_RAPL_PERIOD_S, averaging_s=0.0)
        self._cpu = self._own_cpu()
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

    def _find_thermal(self) -> Path | None:
        wanted = ("x86_pkg_temp", "cpu", "soc", "k10temp", "coretemp")
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            kind = (read_text(zone / "type") or "").lower()
            if any(word in kind for word in wanted) and read_number(zone / "temp") is not None:
                return zone / "temp"
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
            conditions=settings,
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
        listed = read_text(self._root / "sys/devices/system/cpu" / self._cpu / "cpufreq/scaling_available_frequencies")
        supported = sorted({int(khz) * 1e3 for khz in (listed or "").split() if khz.isdigit()})
        return Clocks(
            provenance="measured",
            note="the governor chooses between these, this version cannot set one; operating: read under a short spin",
            supported_hz=supported,
            min_hz=low,
            max_hz=high,
            operating_hz=now,
        )

    def now_s(self) -> float:
        return time.perf_counter()

    def executing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def load(self, step: Callable[[], object]) -> Callable[[], object]:
        return step

    def wait(self, seconds_s: float) -> None:
        time.sleep(max(0.0, seconds_s))

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
                watts = (joules - last_j) / (now - last_s) if now > last_s else None
                last_s, last_j = now, joules
            return Reading(
                time_s=now,
                power_w=watts,
                energy_j=joules,
                frequency_hz=self.current_hz(),
                temperature_c=self.temperature_c(),
            )

        with WallTime().watching(read, period_s) as readings:
            yield readings

    def settings(self) -> dict[str, str]:
        """Threads, governor and memory limit: figures under others do not belong together."""
        info = self._cpuinfo()
        threads = (read_text(self._root / "proc/cpuinfo") or "").count("processor\t") or self._usable()
        found = {"threads": str(threads), "physical cores": info.get("physical cores", str(threads))}
        found["usable threads"] = str(self._usable())
        governor = read_text(self._root / "sys/devices/system/cpu" / self._cpu / "cpufreq/scaling_governor")
        if governor:
            found["governor"] = governor
        if os.environ.get("OMP_NUM_THREADS"):
            found["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
        limit = cgroup_limit_bytes(self._root)
        if limit is not None:
            found["memory limit"] = f"control group, {limit} bytes"
        return found

    def unchanged(self) -> None:
        """Raises MissingHardware where a setting changed since the device was opened."""
        refuse_change(self.name, self._settings, self.settings())
