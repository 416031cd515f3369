"""A virtual clock for rigs: an hour of sweep passes in seconds.

Nothing passes but what ``wait`` and ``elapse`` let pass. On the way the rig's physics is advanced and every watcher is called
at its own period, so a reading never sees the rig at another moment than its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from profiler.hardware.device import Reading


@dataclass
class _Watcher:
    read: Callable[[], Reading]
    period_s: float
    due_s: float
    readings: list[Reading]


class VirtualTime:
    """A ``device.Timebase`` that drives a rig.

    ``advance(now_s, busy)`` brings the rig from where it was to ``now_s``; ``busy`` says whether the load ran all that time.
    ``background`` is set where a load runs beside the caller (a program of the user's), so that plain waits are busy too.
    """

    def __init__(self, advance: Callable[[float, bool], None], start_s: float = 1000.0) -> None:
        self._advance = advance
        self._now_s = start_s
        self._watchers: list[_Watcher] = []
        self.background = False
        advance(start_s, False)

    def now_s(self) -> float:
        return self._now_s

    def wait(self, seconds_s: float) -> None:
        """Let this much time pass without a step of the caller's."""
        self.elapse(seconds_s, busy=False)

    def elapse(self, seconds_s: float, *, busy: bool) -> None:
        """Let this much time pass, under load or idle, and call the watchers that fall due in it."""
        busy = busy or self.background
        end_s = self._now_s + max(0.0, seconds_s)
        while due := [w for w in self._watchers if w.due_s <= end_s]:
            watcher = min(due, key=lambda w: w.due_s)
            self._to(max(self._now_s, watcher.due_s), busy)
            watcher.due_s += watcher.period_s
            watcher.readings.append(watcher.read())
        self._to(end_s, busy)

    def _to(self, moment_s: float, busy: bool) -> None:
        self._now_s = moment_s
        self._advance(moment_s, busy)

    @contextmanager
    def watching(self, read: Callable[[], Reading], period_s: float) -> Iterator[list[Reading]]:
        """Call ``read`` every ``period_s`` of virtual time while the body runs; the list grows."""
        watcher = _Watcher(read, period_s, self._now_s + period_s, [])
        self._watchers.append(watcher)
        try:
            yield watcher.readings
        finally:
            self._watchers.remove(watcher)
