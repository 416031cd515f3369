"""Clocks after kills: a process that sweeps clocks is killed at random moments; are the clocks back?

    python -m benchmarks.kills [--kills 200] [--seed 0] [--on nvml|sysfs|both]

A real process locks one clock after the other through `profiler.hardware.guard`, on the rig of NVIDIA cards (a real shared library
behind the unmodified `pynvml`) and on a tree of plain files like a Jetson's. It dies in one of seven ways: SIGKILL alone, SIGKILL
together with its helper (either first), its helper alone, SIGINT, SIGTERM, SIGHUP. Then `card-profile restore` runs in a fresh
process, sometimes at once, while the helper is still at work, and this process looks at the clocks. About two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parents[1]
WAYS = ("run", "run, helper", "helper, run", "helper", "SIGINT", "SIGTERM", "SIGHUP")
RESTORE = "from cli import profile_main; profile_main()"


class World(Protocol):
    """A machine whose clocks can be locked, as this process sees it."""

    name: str
    device: dict[str, Any]
    environment: dict[str, str]

    def locked(self) -> str | None:
        """What is locked now; None: nothing."""
        ...


class SysfsWorld:
    """Plain files like those of a Jetson's GPU and of two groups of processor cores."""

    name = "sysfs"

    def __init__(self, folder: Path) -> None:
        self._limits: dict[Path, str] = {}
        nodes = []
        for path, low, high, unit in (
            ("class/devfreq/17000000.gpu/{}_freq", 306_000_000, 1_300_500_000, 1),
            ("devices/system/cpu/cpufreq/policy0/scaling_{}_freq", 115_200, 2_201_600, 1000),
            ("devices/system/cpu/cpufreq/policy4/scaling_{}_freq", 115_200, 2_201_600, 1000),
        ):
            files = {}
            for which, value in (("min", low), ("max", high)):
                file = folder / "sys" / path.format(which)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{value}\n")
                self._limits[file] = str(value)
                files[which] = str(file)
            nodes.append({**files, "unit_hz": unit})
        self.device = {
            "key": "devfreq-17000000.gpu",
            "target": {"kind": "sysfs", "nodes": nodes},
            "supported_hz": [306e6, 510e6, 714e6, 918e6, 1_122e6, 1_300.5e6],
        }
        self.environment = {**os.environ, "CARD_SYSFS_ROOT": str(folder), "CARD_STATE_DIR": str(folder / "state")}

    def locked(self) -> str | None:
        wrong = [
            f"{file}: {file.read_text()!r}" for file, want in self._limits.items() if file.read_text().strip() != want
        ]
        return "; ".join(wrong) or None


class NvmlWorld:
    """The rig of NVIDIA cards, in the machine's own time."""

    name = "nvml"

    def __init__(self, rig: Any, folder: Path) -> None:
        self._rig = rig
        self.device = {
            "key": f"nvml-{rig.uuid()}",
            "target": {"kind": "nvml", "uuid": rig.uuid()},
            "supported_hz": [210e6, 900e6, 1500e6, 2100e6, 2700e6, 3105e6],
        }
        self.environment = {**rig.environment, "CARD_STATE_DIR": str(folder / "state")}

    def locked(self) -> str | None:
        found = self._rig.locked_mhz()
        return None if found is None else f"locked to {found} MHz"


@contextmanager
def world(kind: str, folder: Path) -> Iterator[World]:
    """A machine of that kind in ``folder`` while the body runs."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "sysfs":
        yield SysfsWorld(folder)
        return
    from tests.rigs.nvml import Rig

    with Rig(folder, wall_speed=1.0) as rig:
        yield NvmlWorld(rig, folder)


def sweep(device: dict[str, Any]) -> None:
    """The victim: holds, locks one clock after the other, gives back, over and over."""
    from profiler.hardware.guard import GuardedClocks
    from profiler.hardware.host import WallTime

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    asked: list[float] = [device["supported_hz"][-1]]
    clocks = GuardedClocks(**device, name="the victim's card", read_hz=lambda: asked[0], time=WallTime())
    print("started", flush=True)
    while True:
        with clocks.held():
            for asked[0] in device["supported_hz"]:
                clocks.lock(asked[0])
                time.sleep(0.03)


@dataclass(frozen=True)
class Outcome:
    """One kill: how, whether the clock was locked at that moment, who gave it back (None: nobody)."""

    way: str
    was_locked: bool
    restored_by: str | None
    said: str


def _helpers(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_once(machine: World, chance: random.Random, way: str | None = None) -> Outcome:
    """Start the victim, kill it at a random moment, restore, look."""
    way = way or chance.choice(WAYS)
    victim = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kills", "--victim", json.dumps(machine.device)],
        env=machine.environment,
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert victim.stdout is not None
    victim.stdout.readline()
    time.sleep(chance.uniform(0.0, 0.5))
    was_locked, helpers = machine.locked() is not None, _helpers(victim.pid)
    if way.startswith("SIG"):
        victim.send_signal(signal.Signals[way])
    elif way == "run":
        victim.kill()
    elif way == "run, helper":
        for pid in (victim.pid, *helpers):
            _kill(pid, signal.SIGKILL)
    else:
        for pid in (*helpers, *([victim.pid] if "run" in way else [])):
            _kill(pid, signal.SIGKILL)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(timeout=2 if way == "helper" else 30)
        if way == "helper":  # between two holds there was none to kill, and the run has not noticed
            victim.kill()
        victim.wait(timeout=30)
    finally:
        victim.kill()
        victim.stdout.close()
    at_once = chance.random() < 0.5
    until = time.monotonic() + (0.0 if at_once else 5.0)
    while time.monotonic() < until and not all(_gone(pid) for pid in helpers):
        time.sleep(0.005)
    before = machine.locked()
    journal = any((Path(machine.environment["CARD_STATE_DIR"])).glob("*.journal"))
    restore = subprocess.run(
        [sys.executable, "-c", RESTORE, "restore"],
        env={**machine.environment, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = " ".join((restore.stdout + restore.stderr).split())
    after = machine.locked()
    left = list(Path(machine.environment["CARD_STATE_DIR"]).glob("*.journal"))
    by = None
    if after is None and restore.returncode == 0 and not left:
        if "given back" in said:
            by = "card-profile restore"
        else:
            by = "the run" if before is None and way.startswith("SIG") else "the helper"
    return Outcome(way, was_locked, by, f"{said} [journal before: {journal}; before: {before}; after: {after}; {left}]")


def main() -> int:
    """Kill, restore, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on", choices=("nvml", "sysfs", "both"), default="both")
    parser.add_argument("--victim", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.victim:
        with contextlib.suppress(KeyboardInterrupt):
            sweep(json.loads(options.victim))
        return 130
    from tests.rigs.nvml import why_no_rig

    kinds = ["nvml", "sysfs"] if options.on == "both" else [options.on]
    if "nvml" in kinds and why_no_rig() is not None:
        print(f"no NVML rig: {why_no_rig()}; all kills on the tree of files")
        kinds = ["sysfs"]
    chance, began = random.Random(options.seed), time.monotonic()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        machines = [stack.enter_context(world(kind, Path(temporary) / kind)) for kind in kinds]
        for number in range(options.kills):
            machine = machines[number % len(machines)]
            outcome = kill_once(machine, chance)
            outcomes.append(outcome)
            if outcome.restored_by is None:
                print(f"NOT RESTORED: kill {number} on {machine.name} by {outcome.way}: {outcome.said}")
                return 1
    who = Counter(outcome.restored_by for outcome in outcomes)
    ways = Counter(outcome.way for outcome in outcomes)
    restored = sum(who.values()) - who[None]
    print(
        f"{len(outcomes)} killed ({', '.join(f'{count} {way}' for way, count in sorted(ways.items()))}; on {' and '.join(kinds)}), "
        f"{sum(outcome.was_locked for outcome in outcomes)} of them with the clock locked at that moment"
    )
    print(f"{restored} restored: {', '.join(f'{count} by {name}' for name, count in who.most_common())}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if restored == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
