"""A Jetson as the kernel shows it: a tree of plain files, and the physics that moves them.

    python -m tests.rigs.sysfs TREE --build orin-agx-jp6     build the tree of a board (BOARDS in jetsons.py)
    python -m tests.rigs.sysfs TREE --live [--seconds S]     let it live by the wall clock until it is ended
    python -m tests.rigs.sysfs TREE --load [--seconds S]     a program that loads the GPU of a living tree while it runs

In a test the same physics runs on a virtual clock: ``VirtualTime(Live(tree).advance)``.

What is written by the outside is read (``min_freq``, ``max_freq``, ``governor``), everything else follows: the clock after a
lag, watts from a table V(f), leakage that grows with heat, switching that pauses while kernels wait for memory, and the
monitors' own steps of 8 mV and 40 uV over the shunt. No law that the toolkit fits is in here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.rigs.jetsons import BOARDS, Channel, Jetson, Monitor

PARTS = ("gpu", "cpu", "soc", "memory", "rest", "carrier")
_VOLTS = ((0.0, 0.60), (0.35, 0.61), (0.5, 0.655), (0.66, 0.72), (0.8, 0.80), (0.92, 0.89), (1.0, 0.97))
_LAG_S = 0.03
_RENEW_S = 0.1
_HEAT_S = 40.0
_RETRY_S = 0.5
_AMBIENT_C = 32.0


def build(tree: Path, name: str) -> Jetson:
    """Write the tree of one of ``BOARDS`` into the folder ``tree`` (made if need be) and bring it to rest."""
    board = BOARDS[name]
    tree.mkdir(parents=True, exist_ok=True)
    put = _Writer(tree)
    _gpu(put, board)
    for monitor in board.monitors:
        _monitor(put, monitor)
    _thermal(put, board)
    _cpu(put, board)
    _memory_clock(put, board)
    _fan(put, board)
    _system(put, board)
    (tree / "rig.json").write_text(json.dumps({"board": name}))
    Live(tree).advance(0.0, False)
    return board


def add_monitor(tree: Path, device: str, number: int, files: dict[str, object]) -> Path:
    """Put one more power monitor into a tree, as a carrier may have it: ``device`` below sys/devices; its hwmon folder."""
    put = _Writer(tree)
    folder = put.hwmon(device, number, files)
    chip = str(files["name"])
    driver = chip if chip in ("ina3221", "ina238") else "ina2xx"
    put.link(f"sys/bus/i2c/drivers/{driver}/{device.rsplit('/', 1)[-1]}", f"sys/devices/{device}")
    return tree / folder


class _Writer:
    """Files and links below one root; text ends with a new line unless it is bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, name: str, text: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())

    def link(self, name: str, target: str) -> None:
        """A relative link to ``target``, also below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(self.root / target, path.parent))

    def hwmon(self, device: str, number: int, files: dict[str, object]) -> str:
        folder = f"sys/devices/{device}/hwmon/hwmon{number}"
        for name, text in files.items():
            self.file(f"{folder}/{name}", text)
        self.link(f"sys/class/hwmon/hwmon{number}", folder)
        self.link(f"{folder}/device", f"sys/devices/{device}")
        return folder


def _devfreq(put: _Writer, device: str, of_name: str | None, clocks: tuple[float, ...], governor: str) -> None:
    node = device.rsplit("/", 1)[-1]
    folder = f"sys/devices/{device}/devfreq/{node}"
    files = {
        "available_frequencies": " ".join(f"{hz:.0f}" for hz in clocks),
        "available_governors": "nvhost_podgov performance powersave simple_ondemand userspace",
        "cur_freq": f"{clocks[0]:.0f}",
        "governor": governor,
        "max_freq": f"{clocks[-1]:.0f}",
        "min_freq": f"{clocks[0]:.0f}",
        "polling_interval": 25,
        "target_freq": f"{clocks[0]:.0f}",
    }
    for name, text in files.items():
        put.file(f"{folder}/{name}", text)
    put.link(f"{folder}/device", f"sys/devices/{device}")
    put.link(f"sys/class/devfreq/{node}", folder)
    if of_name is not None:
        base = f"sys/firmware/devicetree/base/{of_name}@{node.split('.')[0]}"
        put.file(f"{base}/name", of_name.encode() + b"\0")
        put.link(f"sys/devices/{device}/of_node", base)
        put.file(f"sys/devices/{device}/load", 0)


def _gpu(put: _Writer, board: Jetson) -> None:
    _devfreq(put, board.gpu_device, board.of_name, board.clocks_hz, board.governor)
    for engine in board.engines:
        _devfreq(put, f"{board.gpu_device.rsplit('/', 1)[0]}/{engine}", None, board.clocks_hz, board.governor)
    _devfreq(put, "platform/13e40000.host1x/15340000.vic", "vic", (115.2e6, 601.6e6), "tegra_wmark")


def _monitor(put: _Writer, monitor: Monitor) -> None:
    bus = monitor.device.rsplit("/", 1)[-1]
    driver = {"hwmon": "ina3221", "iio": "ina3221x", "ina238": "ina238"}[monitor.kind]
    put.file(f"sys/devices/{monitor.device}/name", driver)
    if monitor.kind == "hwmon":
        files: dict[str, object] = {"name": driver, "update_interval": 100, "samples": 64}
        for n, channel in enumerate(monitor.channels, 1):
            files |= {f"in{n}_label": channel.label, f"in{n}_input": 0, f"in{n}_enable": 1, f"in{n + 3}_input": 0,
                      f"curr{n}_input": 0, f"curr{n}_crit": 32760, f"shunt{n}_resistor": round(channel.shunt_ohm * 1e6)}  # fmt: skip
        put.hwmon(
            monitor.device,
            monitor.number,
            files | {"in7_label": "sum of shunt voltages", "in7_input": 0, "curr4_input": 0},
        )
    elif monitor.kind == "ina238":
        channel = monitor.channels[0]
        put.hwmon(monitor.device, monitor.number, {"name": driver, "in0_input": 0, "in1_input": 0, "in1_label": channel.label,
                  "curr1_input": 0, "power1_input": 0, "shunt_resistor": round(channel.shunt_ohm * 1e6), "temp1_input": 40000})  # fmt: skip
    else:
        folder = f"sys/devices/{monitor.device}/iio:device{monitor.number}"
        put.file(f"{folder}/name", driver)
        for n, channel in enumerate(monitor.channels):
            put.file(f"{folder}/rail_name_{n}", channel.label)
            for what in ("power", "voltage", "current"):
                put.file(f"{folder}/in_{what}{n}_input", 0)
            put.file(f"{folder}/crit_current_limit_{n}", "32760 mA")
        put.link(f"sys/bus/iio/devices/iio:device{monitor.number}", folder)
    for name in ("bind", "unbind", "uevent"):
        put.file(f"sys/bus/i2c/drivers/{driver}/{name}", "")
    put.link(f"sys/bus/i2c/drivers/{driver}/{bus}", f"sys/devices/{monitor.device}")
    put.link(f"sys/bus/i2c/devices/{bus}", f"sys/devices/{monitor.device}")


def _thermal(put: _Writer, board: Jetson) -> None:
    for n, zone in enumerate(board.zones):
        folder = f"sys/devices/virtual/thermal/thermal_zone{n}"
        put.file(f"{folder}/type", zone)
        if zone.startswith("cv"):  # the vision engines' supply is off: the kernel answers EAGAIN
            (put.root / folder / "temp").mkdir()
        else:
            put.file(f"{folder}/temp", 35000)
        put.file(f"{folder}/mode", "enabled")
        put.link(f"sys/class/thermal/thermal_zone{n}", folder)
    for n, kind in enumerate(board.cooling):
        folder = f"sys/devices/virtual/thermal/cooling_device{n}"
        steps = len(board.clocks_hz) - 1 if kind.startswith("devfreq-") else 10 if kind == "pwm-fan" else 1
        for name, text in (("type", kind), ("cur_state", 2 if kind == "pwm-fan" else 0), ("max_state", steps)):
            put.file(f"{folder}/{name}", text)
        put.link(f"sys/class/thermal/cooling_device{n}", folder)
    if board.soctherm_oc:
        counters = {f"oc{n}_{what}": value for n in (1, 2, 3) for what, value in (("event_cnt", 0), ("throt_en", 1))}
        put.hwmon("platform/soctherm-oc-event", 9, {"name": "soctherm_oc", **counters})


def _cpu(put: _Writer, board: Jetson) -> None:
    base = "sys/devices/system/cpu"
    put.file(f"{base}/online", f"0-{board.cores - 1}")
    put.file(f"{base}/present", f"0-{board.cores - 1}")
    groups = [range(first, min(first + 4, board.cores)) for first in range(0, board.cores, 4)]
    for cores in groups:
        folder = f"{base}/cpufreq/policy{cores[0]}"
        for name, text in (
            ("affected_cpus", " ".join(map(str, cores))),
            ("cpuinfo_min_freq", 115200),
            ("cpuinfo_max_freq", 1984000),
            ("scaling_min_freq", 729600),
            ("scaling_max_freq", 1984000),
            ("scaling_cur_freq", 1190400),
            ("scaling_governor", "schedutil"),
            ("scaling_available_frequencies", "729600 1190400 1574400 1984000"),
        ):
            put.file(f"{folder}/{name}", text)
        for core in cores:
            put.file(f"{base}/cpu{core}/online", 1)
            put.link(f"{base}/cpu{core}/cpufreq", folder)


def _memory_clock(put: _Writer, board: Jetson) -> None:
    if board.emc == "bwmgr":
        _devfreq(put, "platform/bwmgr", None, (665.6e6, 3199e6), "userspace")
        put.file("sys/class/devfreq/bwmgr/cur_freq", 3199000000)
    elif board.emc == "clk":
        put.file("sys/kernel/debug/clk/emc/clk_rate", 1600000000)
    else:
        put.file("sys/kernel/debug/bpmp/debug/clk/emc/rate", 2133000000)


def _fan(put: _Writer, board: Jetson) -> None:
    if board.fan == "legacy":
        for name, text in (("target_pwm", 80), ("cur_pwm", 80), ("rpm_measured", 2480), ("temp_control", 1)):
            put.file(f"sys/devices/pwm-fan/{name}", text)
        return
    put.hwmon("platform/pwm-fan", 0, {"name": "pwmfan", "pwm1": 64, "pwm1_enable": 1})
    put.hwmon("platform/39c0000.tachometer", 7, {"name": "pwm_tach", "rpm": 1786})


def _system(put: _Writer, board: Jetson) -> None:
    base = "sys/firmware/devicetree/base"
    put.file(f"{base}/model", board.model.encode() + b"\0")
    put.file(f"{base}/compatible", b"".join(part.encode() + b"\0" for part in board.compatible))
    put.file(f"{base}/serial-number", b"1421020012345\0")
    put.link("proc/device-tree", base)
    put.file(
        "proc/meminfo",
        f"MemTotal:       {board.memory_kb} kB\nMemFree:  100000 kB\nMemAvailable:   {board.memory_kb // 5 * 4} kB",
    )
    put.file("proc/sys/kernel/osrelease", board.kernel)
    put.file("proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555")
    put.file(
        "proc/cpuinfo",
        "".join(f"processor\t: {n}\nBogoMIPS\t: 62.50\n\n" for n in range(board.cores))
        + "Serial\t\t: 0123456789abcdef",
    )
    put.file(
        "etc/nv_tegra_release",
        f"{board.release}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025",
    )
    text = ["< PARAM TYPE=FILE NAME=GPU >", "MAX_FREQ /sys/class/devfreq/gpu/max_freq", ""]
    for n, (mode, limit) in enumerate(board.modes):
        text += [f"< POWER_MODEL ID={n} NAME={mode} >", "CPU_ONLINE CORE_0 1", "CPU_A78_0 MAX_FREQ -1",
                 f"GPU MAX_FREQ {-1 if limit is None else round(limit)}", "EMC MAX_FREQ 0", ""]  # fmt: skip
    put.file("etc/nvpmodel/nvpmodel_board.conf", "\n".join([*text, "< PM_CONFIG DEFAULT=0 >"]))
    (put.root / "etc/nvpmodel.conf").symlink_to(
        "/etc/nvpmodel/nvpmodel_board.conf"
    )  # absolute, as nvpmodel's service makes it
    put.file("var/lib/nvpmodel/status", f"pmode:{board.mode:04d}")


@dataclass
class State:
    """Where the physics stands: the clock, the heat above ambient, and when each was last brought forward."""

    now_s: float = 0.0
    clock_hz: float = 0.0
    heat_c: float = 3.0
    renewed_s: float = -1.0
    steps_down: int = 0


@dataclass(frozen=True)
class Settled:
    """The truth once heat stands still: the GPU's temperature and the module's watts."""

    temperature_c: float
    module_w: float


class Live:
    """The physics of one tree. ``throttle_c``: temperature above which the clock is lowered; ``supply_w``: limit of the module's
    watts, above which the supply counts an event and the clock goes down a step, to be tried again after half a second;
    ``heat_s``: time constant of the heat."""

    def __init__(
        self,
        tree: Path,
        *,
        throttle_c: float = 95.0,
        supply_w: float | None = None,
        heat_s: float = _HEAT_S,
        seed: int = 1,
    ) -> None:
        self.tree = tree
        self.board = BOARDS[json.loads((tree / "rig.json").read_text())["board"]]
        self.throttle_c, self.supply_w, self.heat_s = throttle_c, supply_w, heat_s
        node = self.board.gpu_device.rsplit("/", 1)[-1]
        self.node = tree / "sys/devices" / self.board.gpu_device / "devfreq" / node
        self.state = State(clock_hz=self.board.clocks_hz[0])
        self._random = random.Random(seed)
        self._written: dict[Path, str] = {}
        self._events = 0
        self._retry_s = -math.inf

    def parts_w(self, clock_hz: float, heat_c: float, busy: bool) -> dict[str, float]:
        """Watts of each part of the chip at this clock and this heat above ambient."""
        top, full = self.board.clocks_hz[-1], self.board.gpu_w
        x, volts = clock_hz / top, _volts(clock_hz / top)
        share = (0.78 / x) / (0.78 / x + 0.22)  # of the time in which kernels compute and do not wait for memory
        speed = 1.0 / (0.78 / x + 0.22)
        squared = (volts / _VOLTS[-1][1]) ** 2
        switching = 0.8 * full * squared * x * (0.30 + 0.70 * share if busy else 0.03)
        leakage = 0.16 * full * squared**0.8 * math.exp((heat_c - 25.0) / 55.0)
        return {
            "gpu": switching + leakage,
            "cpu": 0.10 * full * (1.0 if busy else 0.5) + 0.3,
            "soc": 0.09 * full + 0.4,
            "memory": 0.05 * full + (0.12 * full * speed if busy else 0.0),
            "rest": 0.05 * full + 0.9,
            "carrier": 2.5,
        }

    def steady_w(self, clock_hz: float, labels: tuple[str, ...], busy: bool = True) -> float:
        """The true watts of these channels' sum once heat has settled: what a sweep should find."""
        parts = self.parts_w(clock_hz, self._settled_c(clock_hz, busy), busy)
        return sum(parts[part] for label in labels for part in self._channel(label).share)

    def steady(self, clock_hz: float) -> Settled:
        """Where the board ends up under load at this clock, had it neither a limit of heat nor one of the supply."""
        heat = self._settled_c(clock_hz, True)
        return Settled(heat + _AMBIENT_C, self._module(self.parts_w(clock_hz, heat, True)))

    def _settled_c(self, clock_hz: float, busy: bool) -> float:
        heat = 3.0
        for _ in range(100):
            heat += 0.5 * (self._heat_per_w * self._module(self.parts_w(clock_hz, heat, busy)) - heat)
        return heat

    def advance(self, now_s: float, busy: bool) -> None:
        """Bring the tree to ``now_s``; ``busy`` says whether the GPU was under load all that time. Called backwards: a new start."""
        state = self.state
        elapsed = now_s - state.now_s
        if elapsed < 0 or state.renewed_s < 0:
            elapsed, state.renewed_s = 0.0, now_s - _RENEW_S
        state.now_s = now_s
        target = self._target_hz(busy)
        while True:
            step = min(elapsed, 0.5)
            state.clock_hz = (
                target + (state.clock_hz - target) * math.exp(-step / _LAG_S) if step > 0 else state.clock_hz
            )
            if abs(state.clock_hz - target) < 1e5:
                state.clock_hz = target
            parts = self.parts_w(state.clock_hz, state.heat_c, busy)
            settled = self._heat_per_w * self._module(parts)
            state.heat_c = settled + (state.heat_c - settled) * math.exp(-step / self.heat_s)
            elapsed -= step
            self._guard_heat(parts)
            target = self._target_hz(busy)
            if elapsed <= 0:
                break
        self._show(parts, busy)

    @property
    def _heat_per_w(self) -> float:
        return 30.0 / self.board.gpu_w  # 30 degrees above ambient at the GPU's full watts alone

    @staticmethod
    def _module(parts: dict[str, float]) -> float:
        return sum(watts for part, watts in parts.items() if part != "carrier")

    def _channel(self, label: str) -> Channel:
        return next(c for m in self.board.monitors for c in m.channels if c.label == label)

    def _target_hz(self, busy: bool) -> float:
        """What the governor asks for between the limits on disk, at a supported clock, below what heat and supply allow."""
        low, high = (_number(self.node / name) for name in ("min_freq", "max_freq"))
        clocks = self.board.clocks_hz
        low = clocks[0] if low is None else low
        high = clocks[-1] if high is None else high
        governor = (self.node / "governor").read_text().strip()
        wanted = high if busy or governor == "performance" else low
        wanted = min(wanted, clocks[len(clocks) - 1 - self.state.steps_down])
        return max((hz for hz in clocks if hz <= wanted + 1), default=clocks[0])

    def _guard_heat(self, parts: dict[str, float]) -> None:
        state, hot = self.state, self.state.heat_c + _AMBIENT_C
        over = self.supply_w is not None and self._module(parts) > self.supply_w
        if over:
            self._events += 1
            self._retry_s = state.now_s + _RETRY_S
        if hot > self.throttle_c or over:
            state.steps_down = min(state.steps_down + 1, len(self.board.clocks_hz) - 1)
        elif state.steps_down and hot < self.throttle_c - 3 and state.now_s >= self._retry_s:
            state.steps_down -= 1
            self._retry_s = state.now_s + (0.0 if self.supply_w is None else _RETRY_S)

    def _show(self, parts: dict[str, float], busy: bool) -> None:
        state = self.state
        self._put(self.node / "cur_freq", f"{state.clock_hz:.0f}")
        self._put(self.node / "target_freq", f"{state.clock_hz:.0f}")
        if self.board.of_name is not None:
            self._put(self.node.parent.parent / "load", str(980 if busy else 0))
        temperature = round((state.heat_c + _AMBIENT_C) * 1000 / 31.25) * 31.25
        thermal = self.tree / "sys/devices/virtual/thermal"
        for n, zone in enumerate(self.board.zones):
            file = thermal / f"thermal_zone{n}/temp"
            if file.is_file():
                self._put(
                    file, f"{temperature if zone in (self.board.gpu_zone, 'tj-thermal') else temperature - 1500:.0f}"
                )
        for n, kind in enumerate(self.board.cooling):
            hot = state.steps_down if self.supply_w is None else 0
            if kind.startswith("devfreq-"):
                self._put(thermal / f"cooling_device{n}/cur_state", str(hot))
            elif "gpu" in kind:
                self._put(thermal / f"cooling_device{n}/cur_state", str(min(1, hot)))
        if self.board.soctherm_oc:
            self._put(
                self.tree / "sys/devices/platform/soctherm-oc-event/hwmon/hwmon9/oc2_event_cnt", str(self._events)
            )
        if state.now_s >= state.renewed_s + _RENEW_S - 1e-9:
            state.renewed_s = state.now_s
            for monitor in self.board.monitors:
                self._measure(monitor, parts)

    def _measure(self, monitor: Monitor, parts: dict[str, float]) -> None:
        """What a monitor makes of the truth: a load's ripple of 1.5 % and half a step, then the monitor's own steps."""
        kind = "iio:device" if monitor.kind == "iio" else "hwmon/hwmon"
        folder = self.tree / "sys/devices" / monitor.device / f"{kind}{monitor.number}"
        for n, channel in enumerate(monitor.channels):
            volts = round(channel.volts / 0.008) * 0.008
            step_a = 40e-6 / channel.shunt_ohm
            watts = sum(parts[part] for part in channel.share) * (1 + self._random.gauss(0, 0.015))
            watts += self._random.gauss(0, 0.5 * step_a * volts) if channel.share else 0.0
            amperes = max(0, round(watts / volts / step_a)) * step_a if volts else 0.0
            millivolt, milliampere = f"{volts * 1e3:.0f}", f"{amperes * 1e3:.0f}"
            if monitor.kind == "iio":
                shown = {f"in_voltage{n}_input": millivolt, f"in_current{n}_input": milliampere,
                         f"in_power{n}_input": f"{volts * amperes * 1e3:.0f}"}  # fmt: skip
            elif monitor.kind == "ina238":
                shown = {
                    "in1_input": millivolt,
                    "curr1_input": milliampere,
                    "power1_input": f"{max(0.0, watts) * 1e6:.0f}",
                }
            else:
                shown = {f"in{n + 1}_input": millivolt, f"curr{n + 1}_input": milliampere,
                         f"in{n + 4}_input": f"{amperes * channel.shunt_ohm * 1e6:.0f}"}  # fmt: skip
            for name, text in shown.items():
                self._put(folder / name, text)

    def _put(self, path: Path, text: str) -> None:
        """One write in place, padded to the length that stood there: a reader beside us never sees an empty or cut file.

        (Truncating or replacing a file makes some file systems flush it to the disk, thousands of times a minute here.)
        """
        before = self._written.get(path)
        if before is not None and before.rstrip() == text:
            return
        handle = os.open(path, os.O_WRONLY)
        try:
            padded = text.ljust(len(before) if before is not None else os.fstat(handle).st_size - 1)
            os.pwrite(handle, padded.encode() + b"\n", 0)
        finally:
            os.close(handle)
        self._written[path] = padded


def _volts(x: float) -> float:
    for (x0, v0), (x1, v1) in itertools.pairwise(_VOLTS):
        if x <= x1:
            return v0 + (v1 - v0) * (x - x0) / (x1 - x0)
    return _VOLTS[-1][1]


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _loaded(tree: Path) -> bool:
    """Whether the program that ``--load`` runs is alive."""
    number = _number(tree / "load.pid")
    if number is None:
        return False
    try:
        os.kill(int(number), 0)
    except OSError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rigs.sysfs")
    parser.add_argument("tree", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--build", choices=sorted(BOARDS))
    what.add_argument("--live", action="store_true")
    what.add_argument("--load", action="store_true")
    what.add_argument("--describe", action="store_true", help="the board of the tree as JSON")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--throttle-c", type=float, default=95.0)
    parser.add_argument("--supply-w", type=float)
    parser.add_argument("--heat-s", type=float, default=_HEAT_S, help="time constant of the heat")
    options = parser.parse_args(arguments)
    if options.build:
        build(options.tree, options.build)
        return 0
    if options.describe:
        json.dump(asdict(Live(options.tree).board), sys.stdout)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    end = time.monotonic() + options.seconds
    if options.load:
        pid = options.tree / "load.pid"
        pid.write_text(str(os.getpid()))
        try:
            while time.monotonic() < end:
                time.sleep(0.02)
        finally:
            pid.unlink(missing_ok=True)
        return 0
    live = Live(options.tree, throttle_c=options.throttle_c, supply_w=options.supply_w, heat_s=options.heat_s)
    while time.monotonic() < end:
        live.advance(time.monotonic(), _loaded(options.tree))
        time.sleep(0.005)
    return 0


if __name__ == "__main__":
    sys.exit(main())
