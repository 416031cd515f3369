"""NVIDIA's Linux for Jetsons as the kernel's files show it: its release, the power mode, memory and CPU clocks, the fan."""

from __future__ import annotations

import re
from pathlib import Path

from profiler.hardware.host import KeptOpen, inside, listed, read_number, read_text

_JETPACK = {28: 3, 31: 4, 32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}
"""JetPack's major version by that of L4T (NVIDIA's release notes)."""
_PYTHON = {3: "3.5", 4: "3.6", 5: "3.8"}
"""The Python that NVIDIA's torch wheels of that JetPack are for, where it is too old for this toolkit."""


class L4t:
    """The release of the board's software: ``release`` is (36, "4.3") for R36.4.3, None where the board does not tell."""

    def __init__(self, root: Path) -> None:
        text = read_text(inside(root, "etc/nv_tegra_release")) or ""
        match = re.search(r"#?\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
        self.release: tuple[int, str] | None = (int(match.group(1)), match.group(2)) if match else None

    @property
    def jetpack(self) -> int | None:
        """JetPack's major version."""
        return _JETPACK.get(self.release[0]) if self.release is not None else None

    def versions(self) -> dict[str, str]:
        """L4T's release and the JetPack that it belongs to."""
        if self.release is None:
            return {}
        told = {"L4T": f"{self.release[0]}.{self.release[1]}"}
        if self.jetpack is not None:
            told["JetPack"] = str(self.jetpack)
        return told

    def layers_reason(self) -> str | None:
        """Why layers cannot be timed with this release, and what can be done; None where they can."""
        jetpack = self.jetpack
        if self.release is None or jetpack not in _PYTHON:
            return None
        return (
            f"JetPack {jetpack} (L4T {self.release[0]}.{self.release[1]}) has torch for Python {_PYTHON[jetpack]} only, layers "
            "need 3.10 or newer; power and clocks can be measured under your own program: --measure power --load-command CMD"
        )


class PowerMode:
    """What nvpmodel has set, from the state that it leaves behind and its configuration."""

    def __init__(self, root: Path) -> None:
        self._status = inside(root, "var/lib/nvpmodel/status")
        self._configuration = inside(root, "etc/nvpmodel.conf")

    def number(self) -> int | None:
        match = re.search(r"pmode:\s*(\d+)", read_text(self._status) or "")
        if match is None:  # nothing chosen since the system was installed: the configuration's default
            match = re.search(r"^<\s*PM_CONFIG\s+DEFAULT=(\d+)", self._text(), re.MULTILINE)
        return int(match.group(1)) if match else None

    def now(self) -> str | None:
        """``MODE_30W (2)``, or the number alone where the configuration does not name it."""
        number = self.number()
        if number is None:
            return None
        match = re.search(rf"^<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+?)\s*>", self._text(), re.MULTILINE)
        return f"{match.group(1)} ({number})" if match else str(number)

    def gpu_limit_hz(self) -> float | None:
        """The highest GPU clock of the mode in Hz; None where it sets none."""
        number = self.number()
        if number is None:
            return None
        match = re.search(
            rf"^<\s*POWER_MODEL\s+ID={number}\s[^>]*>(.*?)(?=^<|\Z)", self._text(), re.MULTILINE | re.DOTALL
        )
        limit = re.search(r"^GPU\s+MAX_FREQ\s+(-?\d+)", match.group(1), re.MULTILINE) if match else None
        hertz = float(limit.group(1)) if limit else -1.0
        return hertz if 1e7 <= hertz < 2147483647 else None  # -1 and the largest integer stand for no limit

    def _text(self) -> str:
        return read_text(self._configuration) or ""


class MemoryClock:
    """Clock of the memory (EMC): from devfreq, else from debugfs, which only root may open."""

    def __init__(self, root: Path) -> None:
        self._devfreq: list[Path] = []
        for node in listed(root / "sys/class/devfreq", "*"):
            name = f"{node.name} {read_text(node / 'device/of_node/name') or ''}".lower()
            if "emc" in name or "bwmgr" in name:
                self._devfreq.append(node / "cur_freq")
        files = ("bpmp/debug/clk/emc/rate", "clk/emc/clk_rate", "clk/override.emc/clk_rate")
        self._debugfs = [KeptOpen(root / "sys/kernel/debug" / file) for file in files]

    def now(self) -> str | None:
        """``2133 MHz``; None where the board does not tell."""
        for path in self._devfreq:
            hertz = read_number(path)
            if hertz is not None and hertz > 0:
                # Some drivers tell kHz; no memory runs below 10 MHz or above 10 GHz.
                hertz *= 1e3 if hertz < 1e7 else 1.0
                return f"{hertz / 1e6:g} MHz"
        for file in self._debugfs:
            hertz = file.read()
            if hertz is not None and hertz > 0:
                return f"{hertz / 1e6:g} MHz"
        return None

    def why_not(self) -> str | None:
        """Why ``now`` tells nothing, where it is for want of a right."""
        refused = self.now() is None and any(file.refused for file in self._debugfs)
        return "readable by root only" if refused else None


def processors(root: Path) -> dict[str, str]:
    """Clock, limits and governor of each group of cores."""
    told = {}
    folder = root / "sys/devices/system/cpu"
    policies = listed(folder, "cpufreq/policy*") or listed(folder, "cpu[0-9]*/cpufreq")
    for policy in policies:
        cores = read_text(policy / "related_cpus") or read_text(policy / "affected_cpus") or policy.name
        values = [read_number(policy / f"scaling_{what}_freq") for what in ("cur", "min", "max")]
        if any(value is None for value in values):
            continue
        now, low, high = (value / 1e3 for value in values if value is not None)
        governor = read_text(policy / "scaling_governor")
        told[f"CPU clock of cores {cores}"] = f"{now:g} MHz ({low:g}-{high:g}{f', {governor}' if governor else ''})"
    return told


def fan(root: Path) -> dict[str, str]:
    """Duty of the fan (0 to 255) and its speed, where the board tells."""
    duty: float | None = None
    speed: float | None = None
    folders = listed(root / "sys/class/hwmon", "hwmon*")
    for folder in folders:
        for file in ("pwm1", "cur_pwm"):
            duty = duty if duty is not None else read_number(folder / file)
        for file in ("rpm", "fan1_input", "rpm_measured"):
            speed = speed if speed is not None else read_number(folder / file)
    for folder in (root / "sys/devices/pwm-fan", root / "sys/kernel/debug/tegra_fan"):  # JetPack 4
        duty = duty if duty is not None else read_number(folder / "cur_pwm")
        speed = speed if speed is not None else read_number(folder / "rpm_measured")
    told = []
    if duty is not None:
        told.append(f"{duty:g} of 255")
    if speed is not None:
        told.append(f"{speed:g} rpm")
    return {"fan": ", ".join(told)} if told else {}
