"""Time of every segment: forward, backward and optimizer step, all cuts in one pass.

A *segmented step* is a real training step that is looked at from its segment boundaries: segments run forward one by one on the
real output of the one before, and the one backward pass is noted when it crosses each boundary. So every figure is taken on the
data, the memory and the caches of a real step, and the parts add up to the whole. It is interleaved with the plain step.

    forward    | embedding | layer 1 | layer 2 | ...        | head |
    backward     layer 1 | layer 2 |            ... | layer I | head |    (from right to left)
                         ^         ^                ^         ^
                         the gradient of the hidden states is complete here, and everything after it in the model is done:
                         autograd takes the nodes that were recorded last first

    round r:   plain step, segmented step;   round r+1: the other way round, so that a drift of the machine falls on both alike

In a split each half waits for the other one and for the link, and beginning again takes a moment: caches are cold, a clock or a share of a host has
gone down. A device half begins twice (forward and backward), a server half once. So the segmented step may rest too (``wait_s``): before its forward
pass, where the embedding bears it; before its backward pass, where the head bears it; and at a boundary within the backward pass, another one in
each round. What a layer's backward pass takes longer there is what any device half's takes once, whatever the cut: it is the embedding's.

Cutting the graph at every boundary instead would add a call into autograd for each layer (2 to 3 % of a small layer).

On Linux freed memory is kept in the process while we time (see ``keep_memory``).

Nothing here knows what kind of machine it runs on: time is what a ``Stopwatch`` says.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from profiler.profile import SegmentTime, Stat
from profiler.workload.cuts import Batch, SplitModel

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 2e-4

WAIT_S = 0.1
"""Rest before what is timed as part of a split: about as long as a half waits for the other one (docs/timing.md)."""


class Stopwatch(Protocol):
    """A clock that can be trusted around work submitted to the machine."""

    def now_s(self) -> float:
        """Seconds, after all work submitted so far has ended."""
        ...

    def wait(self, seconds_s: float) -> None:
        """Let this much time pass."""
        ...


@dataclass(frozen=True)
class TimingOptions:
    """How long to measure. A round is one plain and one segmented step.

    After ``warmup_rounds`` (the first calls are many times slower) rounds go on until the 95 % interval of the median step is
    within ``target_relative`` of it, at least ``min_rounds`` and ``min_s`` on the stopwatch (a machine has slow seconds, which
    a few quick rounds could all fall into), at most ``max_rounds``, and no longer than ``budget_s`` of wall time (None: no
    bound; ``min_rounds`` are always taken). ``wait_s``: how long the segmented step rests wherever a half would,
    once it is warm.
    """

    warmup_rounds: int = 3
    min_rounds: int = 8
    min_s: float = 6.0
    max_rounds: int = 40
    target_relative: float = 0.01
    budget_s: float | None = None
    wait_s: float = 0.0


@dataclass
class TimingResult:
    """``segments`` in the order of ``SplitModel.segments``; ``step`` is the plain step; ``samples`` every single reading.

    ``stopped_by`` says what ended it: ``steady``, ``max_rounds`` or ``budget``.
    """

    segments: list[SegmentTime]
    step: Stat
    rounds: int
    stopped_by: str
    samples: list[dict[str, Any]] = field(default_factory=list)


def measure(
    split: SplitModel,
    stopwatch: Stopwatch,
    options: TimingOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch: Batch | None = None,
) -> TimingResult:
    """Time all segments of ``split`` in seconds for one mini-batch.

    ``progress(done, most)`` is called after every round. The adapters are trained on along the way, as in real use.
    """
    options = options or TimingOptions()
    steps = Steps(split, batch or split.batch())
    most = options.warmup_rounds + options.max_rounds
    samples: list[dict[str, Any]] = []
    plain: list[float] = []
    total: list[float] = []
    began = time.monotonic()
    began_s = stopwatch.now_s()
    stopped_by = "max_rounds"
    with undisturbed():
        for number in range(most):
            warm = number >= options.warmup_rounds
            for kind in ("plain", "segmented") if number % 2 == 0 else ("segmented", "plain"):
                wait_s = options.wait_s if warm else 0.0
                rows = steps.plain(stopwatch) if kind == "plain" else steps.segmented(stopwatch, wait_s)
                if warm:
                    (plain if kind == "plain" else total).append(math.fsum(seconds for _, _, seconds in rows))
                    samples += [
                        {
                            "round": number - options.warmup_rounds,
                            "segment": segment,
                            "phase": phase,
                            "seconds_s": seconds,
                        }
                        for segment, phase, seconds in rows
                    ]
            gc.collect(0)  # between rounds, where it costs no reading
            if progress is not None:
                progress(number + 1, most)
            if len(total) >= options.min_rounds:
                steady = max(_relative_interval(plain), _relative_interval(total)) <= options.target_relative
                if steady and stopwatch.now_s() - began_s >= options.min_s:
                    stopped_by = "steady"
                    break
                if options.budget_s is not None and time.monotonic() - began > options.budget_s:
                    stopped_by = "budget"
                    break
    return TimingResult(_by_segment(split, samples), stat(plain), len(total), stopped_by, samples)


class Steps:
    """Training steps of one model: the plain one, the segmented one and its two halves at a cut, with AdamW on the adapters."""

    def __init__(self, split: SplitModel, batch: Batch) -> None:
        from torch.optim import AdamW

        self.split, self.batch = split, batch
        self._whole = AdamW(split.adapters(), lr=LEARNING_RATE)
        self._single = [AdamW(s.adapters, lr=LEARNING_RATE) if s.adapters else None for s in split.segments]
        self._halves: dict[tuple[str, int], torch.optim.Optimizer] = {}
        self._turn = -1
        keep_memory()

    def plain(self, stopwatch: Stopwatch) -> list[tuple[str, str, float]]:
        """One unsegmented training step: a row ("", "step", seconds)."""
        start = stopwatch.now_s()
        self.split.whole(self.batch).backward()
        self._whole.step()
        self._whole.zero_grad(set_to_none=True)
        return [("", "step", stopwatch.now_s() - start)]

    def segmented(self, stopwatch: Stopwatch, wait_s: float = 0.0) -> list[tuple[str, str, float]]:
        """One segmented training step: rows (segment, phase, seconds) for forward, backward and optimizer.

        The machine rests for ``wait_s`` before the forward and before the backward pass and, except in one of a few steps, once within
        the backward pass. The segment that then goes on is in phase ``backward-cold``.
        """
        split, now = self.split, stopwatch.now_s
        names = [segment.name for segment in split.segments]
        rows: list[tuple[str, str, float]] = []
        passed: dict[int, tuple[float, float]] = {}  # boundary -> when the backward pass came there and when it went on
        due: dict[int, int] = {}  # boundary -> gradients that are still to come
        hooked: set[int] = set()
        resting: int | None = None
        self._turn += 1

        def crossed(_gradient: torch.Tensor, at: int) -> None:
            came = now()
            due[at] -= 1
            if at == resting and not due[at]:
                _rest(stopwatch, wait_s)
            passed[at] = came, now()

        state = split.start(self.batch)
        _rest(stopwatch, wait_s)
        for index, name in enumerate(names):
            start = now()
            state = split.forward(index, state)
            rows.append((name, "forward", now() - start))
            for tensor in state.carried.values():
                if tensor.requires_grad and id(tensor) not in hooked:
                    hooked.add(id(tensor))
                    due[index] = due.get(index, 0) + 1
                    tensor.register_hook(partial(crossed, at=index))
        loss = state.loss
        assert loss is not None
        del state
        if wait_s > 0:
            resting = [None, *due][self._turn % (1 + len(due))]
        _rest(stopwatch, wait_s)
        start = now()
        loss.backward()
        end = now()
        del loss  # the graph goes with it, which takes a moment for every layer
        release = (now() - end) / split.layers
        for index in reversed(range(len(names))):
            # Where no gradient crosses (frozen embeddings), the segment ends where the next lower one would begin.
            until, next_start = next((passed[at] for at in range(index - 1, -1, -1) if at in passed), (end, end))
            seconds = until - start + (release if split.segments[index].kind == "layer" else 0.0)
            rows.append((names[index], "backward-cold" if index == resting else "backward", seconds))
            start = next_start
        return rows + self._optimizer_steps(now)

    def _optimizer_steps(self, now: Callable[[], float]) -> list[tuple[str, str, float]]:
        """AdamW on each segment's adapters. The first of a round is cold: what it takes more than when it is warm is what a
        half's optimizer costs once, beyond its layers. Every device half has the embedding and every server half the head, so
        these two bear it. Another segment begins in each round."""
        order = [i for i, optimizer in enumerate(self._single) if optimizer is not None]
        first = self._turn % len(order)
        rows: list[tuple[str, str, float]] = []
        for place, index in enumerate(order[first:] + order[:first]):
            optimizer = self._single[index]
            assert optimizer is not None
            start = now()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rows.append((self.split.segments[index].name, "optimizer" if place else "optimizer-cold", now() - start))
        return rows

    def halves(self, stopwatch: Stopwatch, cut: int, wait_s: float = 0.0) -> tuple[float, float]:
        """Seconds that the device half and the server half of a real split at ``cut`` take, forward to optimizer step.

        The machine rests for ``wait_s`` wherever a half would wait for the other one.
        """
        split, now = self.split, stopwatch.now_s
        _rest(stopwatch, wait_s)
        start = now()
        device = split.device_half(self.batch, cut)
        device_forward = now() - start
        crossed, leaves = split.cut_state(device)
        _rest(stopwatch, wait_s)
        start = now()
        split.backward(split.server_half(self.batch, cut, crossed.carried))
        self._optimizer("server", cut).step()
        self._optimizer("server", cut).zero_grad(set_to_none=True)
        server = now() - start
        gradients = split.gradients(leaves)
        _rest(stopwatch, wait_s)
        start = now()
        split.backward(device, gradients)
        del device
        self._optimizer("device", cut).step()
        self._optimizer("device", cut).zero_grad(set_to_none=True)
        return device_forward + now() - start, server

    def _optimizer(self, side: str, cut: int) -> torch.optim.Optimizer:
        from torch.optim import AdamW

        key = (side, cut)
        if key not in self._halves:
            split = self.split
            indices = split.device_segments(cut) if side == "device" else split.server_segments(cut)
            self._halves[key] = AdamW([p for i in indices for p in split.segments[i].adapters], lr=LEARNING_RATE)
        return self._halves[key]


def predict(segments: Sequence[SegmentTime], first_server: int) -> tuple[float, float]:
    """Seconds of the device half and the server half of one mini-batch: the sums of their segments' times.

    ``first_server`` is the index of the first segment on the server.
    """
    each = [s.forward.median_s + s.backward.median_s + s.optimizer.median_s for s in segments]
    return math.fsum(each[:first_server]), math.fsum(each[first_server:])


def stat(seconds: Sequence[float]) -> Stat:
    """Median, interquartile range and number of repeated readings in seconds."""
    import numpy as np

    low, middle, high = np.percentile(np.asarray(seconds, dtype=float), [25, 50, 75])
    return Stat(median_s=float(middle), iqr_s=float(high - low), samples=len(seconds))


def keep_memory() -> bool:
    """Have the C library keep freed memory in this process; False where there is no glibc to ask.

    By default glibc gives large blocks back to the kernel and takes them again, thousands of page faults in one step and none
    in the next, by the accidents of its heap. That spread (a third of the head's time on a small model) is no property of a
    layer. A process that really trains does well to do the same, and its times are those of a profile only if it does.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018  (musl has mallopt too, without effect)
    except (OSError, AttributeError, TypeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_... of malloc.h
    return all((mallopt(trim_threshold, -1), mallopt(top_pad, 64 * 2**20), mallopt(mmap_max, 0)))


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection while something is timed."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _rest(stopwatch: Stopwatch, wait_s: float) -> None:
    if wait_s > 0:
        stopwatch.now_s()  # what was submitted is done before
        stopwatch.wait(wait_s)


def _relative_interval(seconds: Sequence[float]) -> float:
    """Half width of the median's 95 % interval over the median, by the interquartile range (McGill's notch)."""
    figures = stat(seconds)
    if figures.median_s <= 0:
        return 0.0
    return 1.57 * figures.iqr_s / math.sqrt(figures.samples) / figures.median_s


def _by_segment(split: SplitModel, samples: Sequence[dict[str, Any]]) -> list[SegmentTime]:
    """What each segment takes in a half: its medians, what beginning again costs where it bears that, all times ``_whole_over_parts``."""
    readings: dict[tuple[str, str], list[float]] = {}
    for row in samples:
        readings.setdefault((row["segment"], row["phase"]), []).append(max(row["seconds_s"], 0.0))

    def warm(name: str, phase: str) -> Stat:
        return stat(readings.get((name, phase)) or readings.get((name, phase + "-cold")) or [0.0])

    def once(phase: str) -> Stat:
        """What a half's ``phase`` takes once, beyond its layers."""
        over: list[float] = []
        for (name, of), cold in readings.items():
            if of == phase + "-cold":
                warm_s = warm(name, phase).median_s
                over += [max(seconds - warm_s, 0.0) for seconds in cold]
        return stat(over or [0.0])

    again, update = once("backward"), once("optimizer")

    def usual_s(name: str, phase: str) -> float:
        """What a reading is by these medians."""
        extra = {"backward-cold": again, "optimizer-cold": update}.get(phase)
        return warm(name, phase.removesuffix("-cold")).median_s + (extra.median_s if extra else 0.0)

    factor = _whole_over_parts(samples, {of: usual_s(*of) for of in readings})

    def as_in_a_step(figure: Stat) -> Stat:
        return figure.model_copy(update={"median_s": factor * figure.median_s, "iqr_s": factor * figure.iqr_s})

    times = []
    for s in split.segments:
        backward = warm(s.name, "backward")
        if s.kind == "embedding":
            backward = again.model_copy(update={"median_s": backward.median_s + again.median_s})
        optimizer = update if s.kind in ("embedding", "head") else warm(s.name, "optimizer")
        parts = (warm(s.name, "forward"), backward, optimizer)
        forward, backward, optimizer = map(as_in_a_step, parts)
        times.append(SegmentTime(forward=forward, backward=backward, optimizer=optimizer))
    return times


def _whole_over_parts(samples: Sequence[dict[str, Any]], usual_s: dict[tuple[str, str], float]) -> float:
    """What a segmented step takes over what its parts' usual times add up to (mean of the middle half of the rounds).

    What disturbs a machine now and then falls on one part or another: the median of each part leaves it out, and the step has it all
    the same. Where the machine goes fast and slow by turns, medians are those of the turn that lasted longer. Both come with time, so
    every part bears its share.
    """
    from scipy.stats import trim_mean

    took: dict[int, float] = {}
    expected: dict[int, float] = {}
    for row in samples:
        if row["segment"]:
            took[row["round"]] = took.get(row["round"], 0.0) + row["seconds_s"]
            expected[row["round"]] = expected.get(row["round"], 0.0) + usual_s[row["segment"], row["phase"]]
    ratios = [took[number] / expected[number] for number in took if expected[number] > 0]
    return float(trim_mean(ratios, 0.25)) if ratios else 1.0
