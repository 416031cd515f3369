"""A link slowed inside the process: what a Stream sends takes the time that it would take on the link asked for.

For tests, demos and the comparison of prediction and measurement. ``n`` bytes handed over at time t have arrived at

    max(t, when the link is free) + 8 n / rate + delay

in order; the link is free again ``delay`` before that, so a long delay does not lower the rate. Both directions of a real link need a
Shape at each end. This is emulation: no losses, no congestion, and the machine's own work on the bytes comes on top.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

from profiler.profile import BadInput

Trace = Sequence[tuple[float, float]]
"""(seconds, bit/s): this rate for that long, one after the other; the last rate stays. A rate of 0 is an outage."""


class Shape:
    """A rate in bit/s (None: unlimited), or a trace of rates that begins with the first byte sent, and a delay in seconds.

    Raises BadInput for figures that are no link. Safe to use from several threads.
    """

    def __init__(
        self, rate_bps: float | Trace | None = None, delay_s: float = 0.0, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 <= delay_s <= 3600:
            raise BadInput(f"delay of a shaped link: {delay_s} s, expected 0 to 3600")
        self.delay_s = delay_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._trace = _checked(rate_bps)
        self._began_s: float | None = None  # of the trace
        self._free_s = -math.inf

    def __repr__(self) -> str:
        return f"Shape({list(self._trace)!r}, delay_s={self.delay_s!r})"

    def copy(self) -> Shape:
        """Another link of the same kind: idle, its trace not begun."""
        with self._lock:
            return Shape(self._trace, self.delay_s, self._now_s)

    def set_rate(self, rate_bps: float | Trace | None) -> None:
        """The rate of what is handed over from now on; what is on its way stays as it was."""
        trace = _checked(rate_bps)
        with self._lock:
            self._trace, self._began_s = trace, None

    def book(self, sizes: Sequence[int]) -> tuple[float, list[float]]:
        """Take the link for pieces of these sizes in bytes: when the link is free again, and when each piece has arrived.

        Times are readings of the monotonic clock. The caller hands each piece on at its time.
        """
        with self._lock:
            now = self._now_s()
            if self._began_s is None:
                self._began_s = now
            sent = max(now, self._free_s)
            arrivals = []
            for size in sizes:
                sent = self._sent(sent, 8.0 * size)
                arrivals.append(sent + self.delay_s)
            self._free_s = sent
            return sent, arrivals

    def _sent(self, start: float, bits: float) -> float:
        """When ``bits`` are through that go out from ``start`` on."""
        began = self._began_s if self._began_s is not None else start
        for seconds, rate in self._trace[:-1]:
            ends = began + seconds
            if start < ends:
                if rate > 0 and bits <= rate * (ends - start):
                    return start + bits / rate
                bits -= rate * (ends - start)
                start = ends
            began = ends
        return start + bits / self._trace[-1][1]


def _checked(rate: float | Trace | None) -> tuple[tuple[float, float], ...]:
    if rate is None:
        return ((0.0, math.inf),)
    trace = ((0.0, rate),) if isinstance(rate, (int, float)) else tuple(rate)
    if not trace:
        raise BadInput("trace of a shaped link: empty, expected pairs of seconds and bit/s")
    for seconds, bps in trace:
        if not (0 <= seconds <= 1e9 and bps >= 0):
            raise BadInput(f"rate of a shaped link: {bps} bit/s for {seconds} s, expected 0 or more for 0 to 1e9 s")
    if trace[-1][1] < 1:
        raise BadInput(f"rate of a shaped link: it ends with {trace[-1][1]} bit/s, expected at least 1")
    return trace
