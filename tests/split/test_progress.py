"""What people see while a turn runs: a bar and figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from profiler.hardware.device import Reading
from profiler.progress import FEW_PER_S, Reporter
from split.energy import Watched
from split.progress import PLAIN_EVERY_S, Turn, head


def reporter(terminal: bool) -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    return Reporter(Console(file=out, force_terminal=terminal, width=100, soft_wrap=True, _environ={}), FEW_PER_S), out


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_shows_round_device_cut_codec_step_loss_rate_bytes_and_watts() -> None:
    say, out = reporter(terminal=True)
    clock = Clock()
    words = head(2, 20, "orin-nano", 5, "int8-o2", "int8-o2")
    with say, Turn(say, words, 8, 512, lambda: 31.25, clock).shown() as show:
        clock.now += 4.0
        show(3, 2.5, 1_500_000, 900_000)
        assert say._progress is not None
        say._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "round 2/20 orin-nano, cut 5, int8-o2, step 4 of 8" in text
    assert "loss 2.5000, 384 tokens/s, 1.5 MB up, 900.0 kB down, 31.2 W" in text


def test_without_a_terminal_a_long_turn_is_told_now_and_then_and_a_short_one_not_at_all() -> None:
    say, out = reporter(terminal=False)
    clock = Clock()
    with say, Turn(say, head(1, 3, "one", 2, "none", "none"), 100, 64, now_s=clock).shown() as show:
        for step in range(100):
            clock.now += PLAIN_EVERY_S / 20
            show(step + 1, 3.0, 1000 * (step + 1), 500 * (step + 1))
    lines = out.getvalue().splitlines()
    assert len(lines) == 4  # of 5 * PLAIN_EVERY_S, the last of which is the turn's own line
    assert lines[0] == "round 1/3 one, cut 2, step 21 of 100: loss 3.0000, 43 tokens/s, 20.0 kB up, 10.0 kB down"


def test_a_step_pays_next_to_nothing_for_it() -> None:
    say, _ = reporter(terminal=True)
    with say, Turn(say, "round 1", 1000, 64).shown() as show:
        began = time.perf_counter()
        for step in range(1000):
            show(step + 1, 3.0, step, step)
        # Some microseconds each, drawing included; a millisecond is what a slow and busy machine may take.
        assert time.perf_counter() - began < 1.0


def test_both_directions_are_told_where_their_codecs_differ() -> None:
    assert head(1, None, None, 3, "int8", "none") == "round 1, cut 3, int8 up, none down"


def test_watts_come_from_the_latest_reading_or_from_the_counter() -> None:
    assert Watched([], "board").watts() is None
    assert Watched([Reading(0.0, power_w=20.0), Reading(1.0, power_w=30.0)], "board").watts() == 30.0
    assert Watched([Reading(t, energy_j=5.0 + 12.0 * t) for t in (0.0, 0.5, 1.0)], "board").watts() == 12.0
    assert Watched([Reading(0.0, energy_j=5.0)], "board").watts() is None
