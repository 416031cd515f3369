"""A Jetson board through the kernel's files alone: watts of its rails, clock and heat of its GPU, and what else figures depend on.

Everything is found by what it is (the device tree's names, labels, types), never by a bus or hwmon number, so boards that are
not in the catalog work too. Any read may fail at any time: it then counts as not told.

    sys/class/devfreq/*/device/of_node/name    the GPU's clock: gpu, ga10b, gv11b, gp10b ...; Thor: gpu-gpc-0 without of_node
    sys/bus/i2c/drivers/ina*/...               rails, see rails.py
    sys/class/thermal/thermal_zone*/type       gpu-thermal, GPU-therm ...
    sys/class/thermal/cooling_device*/type     devfreq-17000000.gpu, gpu-throttle-alert ...: heat holds the clock down
    sys/class/hwmon/*/oc*_event_cnt            over-current events of the SoC's power input
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from profiler.hardware.catalog import Board, board_named, boards
from profiler.hardware.device import Absent, ClockControl, PowerSensor, Reading, Timebase
from profiler.hardware.host import WallTime, cgroup_limit_bytes, listed, read_number, read_text, sysfs_root
from profiler.hardware.l4t import L4t, MemoryClock, PowerMode, fan, processors
from profiler.hardware.rails import Figure, Rail, behind, choose, find_rails, found_again
from profiler.profile import MAX_TEXT, MissingHardware, Role

_GPU_NAMES = {"gpu", "gm20b", "gp10b", "gv11b", "ga10b", "gb10b"}
_OTHER_ENGINES = ("nvd", "vic", "nvenc", "nvjpg", "pva", "dla")

_MODULES = {
    "p3767-0000": "orin-nx",
    "p3767-0001": "orin-nx",
    "p3767-0003": "orin-nano",
    "p3767-0004": "orin-nano-4gb",
    "p3767-0005": "orin-nano",
    "p3701-0004": "orin-agx-32gb",
    "p3701": "orin-agx",
    "p3668": "xavier-nx",
    "p2888": "xavier-agx",
    "p3310": "tx2",
    "p3489": "tx2",
    "p3636": "tx2",
    "p3448": "nano",
    "p3834-0000": "thor-t4000",
    "p3834": "thor",
}
"""Part numbers of modules as the device tree's ``compatible`` holds them, and their entries in the catalog; the longest counts. A
module that is not named here has as many cores as its family's others (memory and clocks are read from the board)."""

_MODELS = {
    "jetson-agx": "xavier-agx",
    "nvidia orin nx developer kit": "orin-nx",
    "nvidia orin nano developer kit": "orin-nano",
}
"""Names in the device tree's ``model`` that are not the product's."""

_TPCS = {"tegra234": (8, 256), "tegra194": (4, 128)}
"""TPCs of a whole chip, and CUDA cores of each. Bits of ``tpc_pg_mask`` are those of the whole chip, as the driver (nvgpu) joins them: a
module with fewer (Orin NX, Orin Nano, Xavier NX) has the others' bits set in every power mode."""

_MAX_NAME = 200
"""A device tree may hold more, and a profile or a journal would then not hold it with what is said of it."""

_LOST_S = 2.0
"""Without watts for so long, the monitors are looked for again."""

_INSTANT_EVENTS_PER_S = 50.0
"""Over-current events of the third kind are microsecond spikes: boards at their highest mode count several a second while
their clock holds. At about 0.2 ms of throttling each, this rate takes 1 % of the time."""


def find_jetson(
    root: Path | None = None, *, time: Timebase | None = None, rail: str | None = None
) -> JetsonBoard | None:
    """The Jetson that the files under ``root`` show (default: this machine's, or CARD_SYSFS_ROOT's), else None.

    ``rail`` or the environment variable CARD_POWER_RAIL picks the rail whose watts are the figure, by label. Raises BadInput
    for a label that the board has not.
    """
    root = (sysfs_root() if root is None else root).absolute()
    nodes = gpu_nodes(root)
    l4t = L4t(root)
    compatible = _compatible(root, nodes)
    if compatible and "nvidia," not in compatible:
        return None  # a board of another maker, whose GPU may be called gpu as well
    chip = any(_of_name(node) in _GPU_NAMES - {"gpu"} or _THORS_NODE in node.name for node in nodes)
    monitored = bool(find_rails(root, compatible))
    named = "jetson" in (_device_tree(root, "model") or "").lower() or "nvidia,tegra" in compatible
    told = chip or named or l4t.release is not None or (bool(nodes) and monitored)
    if not told or not (nodes or monitored):
        return None
    return JetsonBoard(root, nodes, l4t, time=time, rail=rail)


def gpu_nodes(root: Path) -> list[Path]:
    """Devfreq folders of the GPU, the one that runs layers first (on Thor the graphics clusters before the video engine)."""
    found = [node for node in listed(root / "sys/class/devfreq", "*") if _is_gpu(node)]
    return sorted(found, key=lambda node: (_is_engine(node), "gpc" not in node.name))


def _of_name(node: Path) -> str:
    return (read_text(node / "device/of_node/name") or "").lower()


def _is_gpu(node: Path) -> bool:
    name, entry = _of_name(node), node.name.lower()
    known = name in _GPU_NAMES or "gpu" in name
    return known or entry.rpartition(".")[2] in _GPU_NAMES or entry.startswith("gpu")


def _is_engine(node: Path) -> bool:
    return any(part in node.name.lower() for part in _OTHER_ENGINES)


def _device_tree(root: Path, name: str) -> str | None:
    return read_text(root / "proc/device-tree" / name) or read_text(root / "sys/firmware/devicetree/base" / name)


_THORS_NODE = "gpu-gpc"


def _compatible(root: Path, nodes: Sequence[Path]) -> str:
    """Which modules and chip the device tree tells; where a container hides it, the chip whose GPU's node is called so."""
    told = _device_tree(root, "compatible")
    if told is None and any(_THORS_NODE in node.name for node in nodes):
        return "nvidia,tegra264"
    return told or ""


def hides_its_name(root: Path) -> bool:
    """Whether neither model nor modules can be read: Docker hides the device tree."""
    return _device_tree(root, "model") is None and _device_tree(root, "compatible") is None


class JetsonBoard:
    """The GPU of a Jetson and the sensors around it (``device.Instruments``). It shares its memory with the CPU."""

    default_role: Role = "device"

    def __init__(
        self, root: Path, nodes: list[Path], l4t: L4t, *, time: Timebase | None = None, rail: str | None = None
    ) -> None:
        self.root = root
        self.time: Timebase = time if time is not None else WallTime()
        self.l4t = l4t
        self._others = [node for node in nodes if _is_engine(node)]
        self._nodes = [node for node in nodes if node not in self._others] or nodes[:1]
        self._node = self._nodes[0] if self._nodes else None
        self._mode = PowerMode(root)
        self._memory_clock = MemoryClock(root)
        model = (_device_tree(root, "model") or "Jetson")[:_MAX_NAME]
        self.given_name = model
        self._compatible = compatible = _compatible(root, nodes)
        whole = _catalog_entry(model, compatible, self.supported_hz())
        mask = read_text(self._node / "device/tpc_pg_mask") if self._node is not None else None
        self.board, self._tpcs = _without_gated(whole, compatible, mask)
        self.key = f"devfreq-{self._node.name}" if self._node is not None else "jetson"
        self.rails: list[Rail] = find_rails(root, compatible)
        reasons: dict[str, str] = {}
        self._figure: Figure | None = None
        try:
            self._figure = choose(self.rails, rail or os.environ.get("CARD_POWER_RAIL"), self.time.wait)
        except MissingHardware as error:
            reasons["power"] = str(error)
        reasons |= {f"rail {rail.label}": told for rail in self.rails if rail.enabled and (told := rail.mute())}
        self._seen_at_s = self.time.now_s()
        self._zone = _zone(root)
        self._cooling = _gpu_cooling(root, self._nodes)
        self._events = listed(root / "sys/class/hwmon", "hwmon*/oc*_event_cnt")
        self._counted: dict[Path, float] = {}
        self._counted_at_s = self.time.now_s()
        self._pinned = self._is_pinned()
        self._over_current()  # what was counted before is not ours
        self.power: PowerSensor | None = None
        if self._figure is not None:
            self.power = PowerSensor(
                scope=self._figure.scope[:MAX_TEXT],
                sensor=self._figure.sensor,
                period_s=max(0.02, self._figure.period_s),
                averaging_s=self._figure.averaging_s,
                behind=behind(self._figure, self.rails),
            )
        self.clocks: ClockControl | None = None
        if self.supported_hz():
            self.clocks = self._control()
        elif self._node is None:
            reasons["clocks"] = "no GPU under sys/class/devfreq: the GPU's driver (nvgpu) is not loaded"
        else:
            reasons["clocks"] = f"{self._node.name} lists no available_frequencies"
        if self._zone is None:
            reasons["temperature"] = "no thermal zone of the GPU or the chip under sys/class/thermal"
        too_old = l4t.layers_reason()
        if too_old is not None:
            reasons["layers"] = too_old
        self.absent = Absent(reasons)

    def _control(self) -> ClockControl:
        from profiler.hardware.guard import GuardedClocks

        return GuardedClocks(
            key=self.key,
            name=self.given_name,
            target=self.clock_target(),
            supported_hz=self.supported_hz(),
            read_hz=self.current_hz,
            time=self.time,
            hint=self.clock_hint(),
        )

    def clock_target(self) -> dict[str, object]:
        """Which files hold the clock, for the guard: minimum and maximum of each graphics cluster, in Hz."""
        nodes = [{"min": str(node / "min_freq"), "max": str(node / "max_freq"), "unit_hz": 1} for node in self._nodes]
        return {"kind": "sysfs", "nodes": nodes}

    def clock_hint(self) -> str:
        """How a group gets the right to set the clock, in one line."""
        files = " ".join(shlex.quote(str(node / name)) for node in self._nodes for name in ("min_freq", "max_freq"))
        return (
            f"or give your group the right: sudo chgrp $(id -gn) {files} && sudo chmod g+w {files} (until the next boot; "
            "the udev rule in docs/boards/README.md makes it last)"
        )

    def supported_hz(self) -> tuple[float, ...]:
        """Clocks of the GPU up to the power mode's limit, ascending, in Hz. Above it is another power mode's range."""
        if self._node is None:
            return ()
        listed = [hz for hz in self._all_hz() if hz >= 1e6]
        limit = self._mode.gpu_limit_hz()
        inside = [hz for hz in listed if limit is None or hz <= limit * 1.001]
        return tuple(inside or listed)

    def current_hz(self) -> float | None:
        """The clock as the driver tells it; None where it is not told, or 0 while the GPU's supply is switched off."""
        value = read_number(self._node / "cur_freq") if self._node is not None else None
        return value if value is not None and 1e6 <= value <= 1e11 else None

    def read(self) -> Reading:
        now_s = self.time.now_s()
        rails_w = {rail.label: watts for rail in self.rails if (watts := rail.read_w()) is not None}
        power_w = self._figure.watts(rails_w) if self._figure is not None else None
        if power_w is not None:
            self._seen_at_s = now_s
        elif self._figure is not None and now_s - self._seen_at_s >= _LOST_S:
            self._look_again(self._figure)
            self._seen_at_s = now_s
        hertz = self.current_hz()
        return Reading(
            time_s=now_s,
            power_w=power_w,
            frequency_hz=hertz,
            temperature_c=self._temperature_c(),
            capped=self._over_current(),
            throttled=self._held_by_heat(hertz),
            rails_w=rails_w or None,
        )

    def _look_again(self, figure: Figure) -> None:
        """The monitors' folders bear other numbers once their driver has been bound anew. Which rails are the figure stays."""
        now = find_rails(self.root, self._compatible)
        self.rails = found_again(self.rails, now)
        self._figure = replace(figure, rails=tuple(found_again(figure.rails, now)))

    def _temperature_c(self) -> float | None:
        return _degrees_c(self._zone) if self._zone is not None else None

    def _over_current(self) -> bool:
        """Whether the supply held the chip down since the reading before: under-voltage (1), average (2), many spikes (3)."""
        now_s, held = self.time.now_s(), False
        elapsed_s = max(now_s - self._counted_at_s, 1e-3)
        for path in self._events:
            count = read_number(path)
            if count is None:
                continue
            more = count - self._counted.get(path, count)
            self._counted[path] = count
            if read_number(path.with_name(path.name.replace("event_cnt", "throt_en"))) == 0:
                continue  # counted, and nothing done about it
            spikes = path.name.startswith("oc3")
            held = held or (more > _INSTANT_EVENTS_PER_S * elapsed_s if spikes else more > 0)
        self._counted_at_s = now_s
        return held

    def _held_by_heat(self, hertz: float | None) -> bool:
        """Whether a cooling device of the GPU is at work. A devfreq one allows the clock of its state: only at it does it bind."""
        for folder in self._cooling:
            state = read_number(folder / "cur_state")
            if state is None or state <= 0:
                continue
            highest = read_number(folder / "max_state")
            steps = self._all_hz()
            if "alert" not in (read_text(folder / "type") or "") and highest == len(steps) - 1 and hertz is not None:
                allowed = steps[len(steps) - 1 - int(min(state, highest))]
                if hertz < 0.99 * allowed:
                    continue
            return True
        return False

    def _all_hz(self) -> list[float]:
        words = (read_text(self._node / "available_frequencies") or "").split() if self._node is not None else []
        return sorted({float(word) for word in words if word.isdecimal()})

    def memory_bytes(self) -> int | None:
        """MemAvailable, for CPU and GPU share one memory and what is free now is what a training process may take; or the
        control groups' limit (a container's) where that is less."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", read_text(self.root / "proc/meminfo") or "", re.MULTILINE)
        limits = [int(match.group(1)) * 1024 if match else None, cgroup_limit_bytes(self.root)]
        return min((limit for limit in limits if limit is not None), default=None)

    def power_cap_w(self) -> float | None:
        """None: a Jetson's power mode sets clocks and cores, and no limit in watts can be read."""
        return None

    def software(self) -> dict[str, str]:
        kernel = read_text(self.root / "proc/sys/kernel/osrelease")
        return {**({"kernel": kernel} if kernel else {}), **self.l4t.versions()}

    def power_mode(self) -> str | None:
        """The power mode now (``MODE_30W (2)``); None where nvpmodel has left no state."""
        return self._mode.now()

    def settings(self) -> dict[str, str]:
        """The power mode and the CPU cores online: nvpmodel changes both, and figures before and after do not belong together."""
        found = {"power mode": self.power_mode(), "CPU cores online": self._online()}
        return {name: value for name, value in found.items() if value is not None}

    def _online(self) -> str | None:
        return read_text(self.root / "sys/devices/system/cpu/online")

    def _is_pinned(self) -> bool | None:
        """Whether minimum and maximum of GPU and CPU are one, as jetson_clocks leaves them."""
        if self._node is None:
            return None
        low, high = read_number(self._node / "min_freq"), read_number(self._node / "max_freq")
        return None if low is None or high is None else low == high and _cpu_pinned(self.root)

    def second_opinion(self) -> dict[str, str]:
        """What jetson-stats says of the rails and the power mode, where its service runs."""
        from profiler.hardware.jtop import cross_check

        return cross_check(self)

    def conditions(self) -> dict[str, str]:
        """Clocks of memory and CPU, cores, fan, governors, rails, temperatures, over-current events."""
        told: dict[str, str] = {}
        for node in self._nodes[:1]:
            governor = read_text(node / "governor")
            if governor:
                told["GPU governor"] = governor
        if self._pinned is not None:
            told["jetson_clocks"] = "on (clocks pinned)" if self._pinned else "off"
        limit = self._mode.gpu_limit_hz()
        if limit is not None:
            told["GPU clock limit of the power mode"] = f"{limit / 1e6:g} MHz"
        online, closed = self._online(), self._memory_clock.why_not()
        if online:
            told["CPU cores online"] = online
        if closed is not None:
            told["memory clock"] = closed
        if self._tpcs is not None:
            told["TPCs on"] = self._tpcs
        told.update(self.moving())
        if self.rails:
            told["rails"] = ", ".join(f"{rail.label}: {rail.scope}" for rail in self.rails)
        step_w = self._figure.step_w() if self._figure is not None else None
        if step_w is not None:
            told["step of the power monitor"] = f"{step_w:.2g} W"
        for path in self._events:
            count = read_number(path)
            if count:
                told[f"over-current events {path.name.partition('_')[0]}"] = f"{count:g} since boot"
        return told

    def moving(self) -> dict[str, str]:
        """Clocks of the other engines, of memory and CPU, fan, temperatures."""
        told: dict[str, str] = {}
        for node in self._others:
            hertz = read_number(node / "cur_freq")
            if hertz is not None:
                told[f"{node.name} clock"] = f"{hertz / 1e6:g} MHz"
        memory = self._memory_clock.now()
        if memory is not None:
            told["memory clock"] = memory
        told.update(processors(self.root))
        told.update(fan(self.root))
        for folder in listed(self.root / "sys/class/thermal", "thermal_zone*"):
            name, degrees_c = read_text(folder / "type"), _degrees_c(folder)
            if name and degrees_c is not None:
                told[f"temperature {name}"] = f"{degrees_c:.1f} C"
        return told


def _cpu_pinned(root: Path) -> bool:
    """Whether minimum and maximum are one in every group of cores that is online; one that is not tells no limits."""
    folders = listed(root / "sys/devices/system/cpu/cpufreq", "policy*")
    limits = [(read_number(f / "scaling_min_freq"), read_number(f / "scaling_max_freq")) for f in folders]
    told = [(low, high) for low, high in limits if low is not None and high is not None]
    return bool(told) and all(low == high for low, high in told)


def _catalog_entry(model: str, compatible: str, clocks_hz: tuple[float, ...]) -> Board | None:
    """The catalog's entry: by the module's part number (a carrier's name may be another kit's), else by the model's name.

    The Orin Nano's faster mode has an entry of its own, known by clocks above the plain module's.
    """
    known, name = boards(), None
    for part, entry in sorted(_MODULES.items(), key=lambda item: -len(item[0])):
        if re.search(rf"\b{part}(?!\d)", compatible):
            name = entry
            break
    name = name or _MODELS.get(model.lower())
    board = known.get(name) if name is not None else board_named(model)
    faster = known.get(f"{board.name}-super") if board is not None else None
    if board is not None and faster is not None and clocks_hz and clocks_hz[-1] > max(board.clocks_hz) * 1.01:
        return faster
    return board


def _without_gated(board: Board | None, compatible: str, mask: str | None) -> tuple[Board | None, str | None]:
    """The entry with the cores that are on, and how many TPCs that is: some power modes gate the others until the next boot."""
    if mask is None or not mask.isdecimal():
        return board, None
    chip = re.search(r"tegra\d+", compatible)
    count, each = _TPCS.get(chip.group() if chip else "", (0, 0))
    on = count - (int(mask) & (2**count - 1)).bit_count()
    if on == 0:
        known = f"tpc_pg_mask {mask}, of a chip whose TPCs we do not know: cores are all that the catalog has"
        return board, known if int(mask) else None
    cores = board.figures["cores"] if board is not None else None
    if board is not None and cores is not None:
        on = min(on, int(cores.value) // each)
        if on * each < cores.value:
            source = f"{cores.source}, of which {on} TPCs of {each} are on"
            board = replace(board, figures={**board.figures, "cores": replace(cores, value=on * each, source=source)})
    return board, f"{on} of the chip's {count} (tpc_pg_mask {mask})"


def _zone(root: Path) -> Path | None:
    """The GPU's thermal zone, else the chip's hottest point's (tj), else the CPU's: the first that answers, for a GPU at rest may be switched off
    with its thermometer; where none does, the first."""
    zones = listed(root / "sys/class/thermal", "thermal_zone*")
    named = [((read_text(zone / "type") or "").lower(), zone) for zone in zones]
    fitting = [
        zone
        for wanted in ("gpu", "tj", "cpu", "soc")
        for name, zone in named
        if wanted in re.split(r"[-_ ]", name) or name.startswith(wanted)
    ]
    return next((zone for zone in fitting if _degrees_c(zone) is not None), fitting[0] if fitting else None)


def _degrees_c(zone: Path) -> float | None:
    """A GPU's zone does not answer, or tells -256, while its supply is switched off."""
    milli = read_number(zone / "temp")
    return milli / 1e3 if milli is not None and -50e3 < milli < 200e3 else None


def _gpu_cooling(root: Path, nodes: list[Path]) -> list[Path]:
    """Cooling devices that act on the GPU: its devfreq one, and the alerts of its throttling."""
    names = {node.name.lower() for node in nodes}
    found = []
    for folder in listed(root / "sys/class/thermal", "cooling_device*"):
        kind = (read_text(folder / "type") or "").lower()
        devfreq = kind.startswith("devfreq-") and kind.partition("-")[2] in names
        numbered = kind.startswith("thermal-devfreq")  # kernels before 5.13; on a Jetson only the GPU has one
        named = ("gpu" in kind or any(name in kind for name in names)) and not _is_engine(Path(kind))
        if devfreq or numbered or named:
            found.append(folder)
    return found
