"""A device with clock limits in a tree of plain files, and runs in processes of their own that hold it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from profiler.hardware.guard import GuardedClocks, restore_leftovers
from profiler.hardware.host import WallTime

HOME = Path(__file__).resolve().parents[2]
KEY = "devfreq-17000000.gpu"
NODE = "sys/class/devfreq/17000000.gpu"
LOW, HIGH = 306_000_000, 1_300_500_000
BOOT = "proc/sys/kernel/random/boot_id"

VICTIM = """
import json, signal, sys, time
from profiler.hardware.guard import GuardedClocks
from profiler.hardware.host import WallTime
def stop(*_):
    raise KeyboardInterrupt
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
clocks = GuardedClocks(**json.loads(sys.argv[1]), read_hz=lambda: None, time=WallTime())
with clocks.held():
    if sys.argv[2] == "hold":
        print("held", flush=True)
        time.sleep(60)
    clocks.lock(clocks.supported_hz()[1])
    print("locked", flush=True)
    if sys.argv[2] == "raise":
        raise ValueError("the model broke")
    if sys.argv[2] == "sleep":
        time.sleep(60)
    if sys.argv[2] == "again":
        sys.stdin.readline()
        clocks.lock(clocks.supported_hz()[0])
"""


class Tree:
    """A copied tree with one GPU, a folder for journals, and the device as the helper takes it."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.node = root / NODE
        self.node.mkdir(parents=True)
        for name, value in (("min_freq", LOW), ("max_freq", HIGH), ("cur_freq", LOW)):
            (self.node / name).write_text(f"{value}\n")
        self.boot("first boot")
        node = {"min": str(self.node / "min_freq"), "max": str(self.node / "max_freq"), "unit_hz": 1}
        self.device = {
            "key": KEY,
            "name": "orin-agx",
            "target": {"kind": "sysfs", "nodes": [node]},
            "supported_hz": [306e6, 714e6, 1_300.5e6],
        }
        self.environment = {**os.environ, "CARD_SYSFS_ROOT": str(root), "CARD_STATE_DIR": str(self.state)}
        self.environment["PYTHONPATH"] = str(HOME)

    def boot(self, name: str) -> None:
        file = self.root / BOOT
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)

    @property
    def limits(self) -> tuple[int, int]:
        return int((self.node / "min_freq").read_text()), int((self.node / "max_freq").read_text())

    @property
    def journal(self) -> Path:
        return self.state / f"{KEY}.journal"

    def clocks(self, **more: Any) -> GuardedClocks:
        return GuardedClocks(**{**self.device, "read_hz": lambda: None, "time": WallTime(), **more})

    @contextlib.contextmanager
    def victim(self, what: str) -> Iterator[subprocess.Popen[str]]:
        """A run in a process of its own that has got as far as it should."""
        process = subprocess.Popen(
            [sys.executable, "-c", VICTIM, json.dumps(self.device), what],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline().strip() in ("held", "locked")
            yield process
        finally:
            process.kill()
            process.communicate()

    def helper(self) -> int:
        """The process that holds the clock now."""
        return int(json.loads((self.state / f"{KEY}.lock").read_text())["helper"])


def sweep(clocks: GuardedClocks, *, when_locked: Callable[[], object], then_hz: float | None = None) -> None:
    """Hold, lock, let something happen, and perhaps lock again."""
    with clocks.held():
        clocks.lock(clocks.supported_hz()[1])
        when_locked()
        if then_hz is not None:
            clocks.lock(then_hz)


def soon(happens: Callable[[], bool], patience_s: float = 8.0) -> bool:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if happens():
            return True
        time.sleep(0.01)
    return happens()


def restored() -> list[str]:
    said: list[str] = []
    restore_leftovers(said.append)
    return said


def leave_locked(tree: Tree) -> None:
    """What a run leaves that was killed together with its helper."""
    clocks = tree.clocks()
    with clocks.held():
        clocks.lock(714e6)
        journal = tree.journal.read_text()
    tree.journal.write_text(journal)
    for name in ("min_freq", "max_freq"):
        (tree.node / name).write_text("714000000\n")
