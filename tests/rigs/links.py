"""Two machines on one: network namespaces joined by a cable whose rate, delay and loss the kernel sets (``tc tbf`` and ``tc netem``).

Needs root, iproute2 and a kernel with network namespaces; ``missing()`` says what is not there. The addresses are FAR and NEAR; nothing
outside the two namespaces is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

NEAR, FAR = "198.18.0.1", "198.18.0.2"
_number = itertools.count()


def missing(delay: bool = False) -> str | None:
    """Why there can be no such cable here (with ``delay``: none that is slow to arrive); None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"no {tool}: install iproute2"
    try:
        with cable() as probe:
            probe.shape("near", 1e6, 0.01 if delay else 0.0)
    except RuntimeError as error:
        return f"not allowed here, or not in this kernel: {error}"
    return None


@dataclass(frozen=True)
class Cable:
    """``near`` and ``far`` are the namespaces' names, for ``ip netns exec``."""

    near: str
    far: str

    def command(self, end: str, *argv: str) -> list[str]:
        """``argv`` as a command that runs at that end ("near" or "far")."""
        return ["ip", "netns", "exec", getattr(self, end), *argv]

    def pull(self) -> None:
        """Pull the cable: nothing arrives any more, and nobody is told."""
        for end in (self.near, self.far):
            tc = ("netns", "exec", end, "tc", "qdisc")
            _ip(*tc, "del", "dev", "wire0", "root", check=False)
            # No packet is as small as this bucket, so each is dropped.
            _ip(*tc, "add", "dev", "wire0", "root", "tbf", "rate", "1000bit", "burst", "20", "latency", "1ms")

    def shape(self, end: str, rate_bps: float | None, delay_s: float = 0.0) -> None:
        """What that end sends goes at this rate (None: as it is), and arrives this much later."""
        tc = ("netns", "exec", getattr(self, end), "tc", "qdisc")
        _ip(*tc, "del", "dev", "wire0", "root", check=False)
        parent = ["root", "handle", "1:"]
        if delay_s > 0:
            _ip(*tc, "add", "dev", "wire0", *parent, "netem", "delay", f"{delay_s * 1e6:.0f}us", "limit", "100000")
            parent = ["parent", "1:", "handle", "2:"]
        if rate_bps is not None:
            burst_bytes = max(3200, int(rate_bps / 8 / 250))  # what goes through in a tick of the slowest kernel clock
            _ip(*tc, "add", "dev", "wire0", *parent, "tbf", "rate", f"{rate_bps:.0f}bit", "burst", str(burst_bytes), "latency", "100ms")  # fmt: skip


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """Two namespaces and the cable between them while the body lasts."""
    number = next(_number)
    made = Cable(f"card-{os.getpid()}-{number}-near", f"card-{os.getpid()}-{number}-far")
    try:
        for name in (made.near, made.far):
            _ip("netns", "add", name)
        _ip("link", "add", "wire0", "netns", made.near, "type", "veth", "peer", "name", "wire0", "netns", made.far)
        for name, address in ((made.near, NEAR), (made.far, FAR)):
            _ip("-n", name, "addr", "add", f"{address}/30", "dev", "wire0")
            for device in ("lo", "wire0"):
                _ip("-n", name, "link", "set", device, "up")
        yield made
    finally:
        for name in (made.near, made.far):
            _ip("netns", "del", name, check=False)


def _ip(*argv: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(argv)}: {done.stderr.strip()}")
