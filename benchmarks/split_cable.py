"""A cable that is pulled in the middle of a turn: is it noticed in time, does the run go on, does the device come back?

    sudo python -m benchmarks.split_cable [--pulls 3]

Needs root, network namespaces and iproute2; says so and ends with 3 where they are missing. The server and a device stand in one namespace, a
second device in another, joined by a virtual cable; mutual TLS. In the middle of the far device's turn the cable is pulled, in one of two ways: nothing
arrives any more and nobody is told (as behind a switch), or the interface goes down. After a while it is plugged in again.

Asserted: the far device has lost its turn after ``--timeout`` and the flush of its stream, at the latest after the time of keepalive; the near one's next
turn is merged; the far one trains again within the time of keepalive and two pauses of dialling after the cable is back; nobody was started again. About a
minute for each pull.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.split_kills import BUSY_S, FLUSH_S, Process
from tests.rigs.links import NEAR, Cable, cable, missing

TIMEOUT_S = 5.0
UPLINK_MBPS = 1.0
"""A turn of the far device takes more than a second."""
BACK_S = 20.0 + 10.0 + 10.0 + 5.0
"""Keepalive of the device's own side, its longest pause, an attempt that fails just then, and a busy machine."""


def until(what: Callable[[], float | None], within_s: float) -> float | None:
    """What it gives once it is not None; None where that takes too long."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if (found := what()) is not None:
            return found
        time.sleep(0.02)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pulls", type=int, default=4)
    asked = parser.parse_args()
    if (why := missing()) is not None:
        print(f"not here: {why}")
        return 3
    from split.certificates import make

    misses: list[str] = []
    with tempfile.TemporaryDirectory(prefix="split-cable-") as name, cable() as wire:
        folder = Path(name)
        make(folder / "certificates", [NEAR], ["near", "far"])
        (folder / "text.txt").write_text(
            "The cut layer decides what the device computes and what crosses the link. " * 200
        )
        lives = started(folder, wire)
        try:
            for number in range(asked.pulls):
                misses += pulled(wire, lives, silent=number % 2 == 0)
        finally:
            for process in lives.values():
                process.end()
    for miss in misses:
        print(f"MISS {miss}")
    print("held" if not misses else f"{len(misses)} MISSES")
    return 1 if misses else 0


def started(folder: Path, wire: Cable) -> dict[str, Process]:
    """The server and the near device at one end, the far device at the other."""
    secure = [
        "--certificates",
        str(folder / "certificates"),
        "--hardware",
        "cpu",
        "--timeout",
        str(TIMEOUT_S),
        "--patience",
        "90",
    ]
    words = ["server", "--model", "tiny-llama-test", "--cut", "2", "--devices", "far,near", "--rounds", "100000"]
    words += ["--local-epochs", "4", "--batch-size", "2", "--seq-len", "16", "--listen", f"{NEAR}:7770"]
    lives = {
        "server": Process.start("server", [*words, "--output", str(folder / "run"), *secure], wire.command("near"))
    }
    for name in ("near", "far"):
        words = ["device", "--server", f"{NEAR}:7770", "--name", name, "--data", str(folder / "text.txt"), *secure]
        words += ["--uplink-mbps", str(UPLINK_MBPS)]
        lives[name] = Process.start(name, words, wire.command(name))
    return lives


def pulled(wire: Cable, lives: dict[str, Process], *, silent: bool) -> list[str]:
    """One pull, and the way back."""
    server = lives["server"]
    began = time.monotonic()

    def merged(name: str, since_s: float) -> Callable[[], float | None]:
        return lambda: server.said_like(rf"round \d+/\d+ {name}, cut .*: loss ", since_s)

    if until(merged("far", began), 90) is None or until(merged("near", time.monotonic()), 30) is None:
        return [f"nothing was merged: {server.lines[-3:]}, {lives['far'].lines[-3:]}"]
    time.sleep(0.4)  # it is the far device's turn now
    at = time.monotonic()
    if silent:
        wire.pull()
    else:
        subprocess.run(["ip", "-n", wire.far, "link", "set", "wire0", "down"], check=True)
    misses = []
    lost = until(lambda: server.said("far: lost", at), 25)
    bound_s = TIMEOUT_S + FLUSH_S + BUSY_S
    if lost is None or lost - at > bound_s:
        misses.append(
            f"noticed after {'25 s not yet' if lost is None else f'{lost - at:.1f} s'}, at most {bound_s:g} s"
        )
    on = until(merged("near", lost or at), 15)
    if on is None:
        misses.append(f"the near device does not go on: {server.lines[-3:]}")
    time.sleep(3.0)
    back = time.monotonic()
    if silent:
        for end in ("near", "far"):
            wire.shape(end, None)
    else:
        subprocess.run(["ip", "-n", wire.far, "link", "set", "wire0", "up"], check=True)
    again = until(merged("far", back), BACK_S)
    if again is None:
        misses.append(f"the far device did not come back within {BACK_S:g} s: {lives['far'].lines[-4:]}")
    if any(not process.alive for process in lives.values()):
        misses.append("somebody has ended")
    told = "nothing arrives" if silent else "interface down"
    print(
        f"{told}: lost after {(lost or 0) - at:.1f} s (timeout {TIMEOUT_S:g} s), the near device's next turn merged after "
        f"{(on or 0) - at:.1f} s, the far one trains again {(again or 0) - back:.1f} s after the cable is back",
        flush=True,
    )
    return misses


if __name__ == "__main__":
    sys.exit(main())
