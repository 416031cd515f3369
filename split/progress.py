"""What a turn looks like while it runs: a bar and a line of figures on a terminal, a plain line now and then elsewhere.

The training loop only leaves figures here. They are put into words when the terminal is drawn, a few times a second, in the drawing
thread: a step pays for none of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from profiler.units import data_size

if TYPE_CHECKING:
    from profiler.progress import Reporter, Stage

PLAIN_EVERY_S = 30.0
"""Without a terminal: a line for each turn, and one more whenever a turn has gone on for so long again."""


class Turn:
    """One turn (or one evaluation) as it goes on: call it after each mini-batch.

    ``head`` says which: round, device, cut, codec. ``total`` is the number of mini-batches, ``tokens`` those of each. ``watts`` gives what a
    sensor says now, None where there is none.
    """

    def __init__(
        self,
        say: Reporter,
        head: str,
        total: int,
        tokens: int,
        watts: Callable[[], float | None] = lambda: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._head, self._total, self._tokens, self._watts = say, head, total, tokens, watts
        self._now_s = now_s
        self._began_s = self._told_s = now_s()
        self._figures: tuple[int, float | None, int, int, float] = (0, None, 0, 0, self._began_s)
        self._stage: Stage | None = None

    def __call__(self, done: int, loss: float | None, up_bytes: int, down_bytes: int) -> None:
        """``done`` mini-batches are through; the last one's loss, and the bytes of the turn so far."""
        now = self._now_s()
        self._figures = (done, loss, up_bytes, down_bytes, now)
        if self._stage is not None:
            self._stage(done, self._total)
            self._stage.text(self._headline())
        if not self._say.moves and now - self._told_s >= PLAIN_EVERY_S and done < self._total:
            self._told_s = now
            self._say.note(f"{self._headline()}: {self.line()}")

    def line(self) -> str:
        """The figures so far, in one line."""
        done, loss, up, down, at = self._figures
        told = [] if loss is None else [f"loss {loss:.4f}"]
        if done and at > self._began_s:
            told.append(f"{done * self._tokens / (at - self._began_s):.0f} tokens/s")
        told.append(f"{data_size(up)} up, {data_size(down)} down")
        watts = self._watts()
        if watts is not None:
            told.append(f"{watts:.1f} W")
        return ", ".join(told)

    def _headline(self) -> str:
        done = min(self._figures[0] + 1, self._total)
        return f"{self._head}, step {done} of {self._total}"

    @contextlib.contextmanager
    def shown(self) -> Iterator[Turn]:
        """On the terminal while the body lasts."""
        with self._say.live(self._headline(), self._total, self.line) as self._stage:
            yield self
        self._stage = None


def head(round: int, rounds: int | None, device: str | None, cut: int, codec_up: str, codec_down: str) -> str:
    """Which turn that is, in a few words."""
    text = f"round {round}" + ("" if rounds is None else f"/{rounds}") + ("" if device is None else f" {device}")
    codec = codec_up if codec_up == codec_down else f"{codec_up} up, {codec_down} down"
    return f"{text}, cut {cut}" + ("" if codec == "none" else f", {codec}")
