"""Times of the segments: the parts of one real step."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.profile import SegmentTime, Stat
from profiler.workload.timing import Steps, TimingOptions, measure, predict, stat
from tests.workload.families import NAMES, equal, take_gradients, tiny, unsplit

FEW = TimingOptions(warmup_rounds=1, min_rounds=4, max_rounds=4, min_s=0)


class OperatorClock(TorchDispatchMode):  # type: ignore[misc]
    """A stopwatch on which every operator takes its outputs' elements in nanoseconds, and nothing else takes time."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (tuple, list)) else (out,)
        self.time_s += sum(t.numel() for t in tensors if isinstance(t, torch.Tensor)) * 1e-9
        return out

    def now_s(self) -> float:
        return self.time_s


def _exact(name: str, device: str = "cpu") -> tuple[Any, Any]:
    split = tiny(name, device=device)
    clock = OperatorClock()
    with clock:
        return split, measure(split, clock, FEW)


@pytest.mark.parametrize("name", NAMES)
def test_on_an_exact_clock_the_segments_add_up_to_the_plain_step(name: str) -> None:
    split, result = _exact(name)
    assert len(result.segments) == len(split.segments)
    # The context (masks, positions) is made once more by the head, as a server half makes it; it is all that is added.
    assert 1.0 <= sum(predict(result.segments, 1)) / result.step.median_s < 1.12


@pytest.mark.parametrize("name", NAMES)
def test_on_an_exact_clock_both_halves_take_what_the_segments_predict_at_every_cut(name: str) -> None:
    split, result = _exact(name)
    clock = OperatorClock()
    steps = Steps(split, split.batch())
    with clock:
        for cut in split.cuts:
            steps.halves(clock, cut)  # the first step makes the optimizers' moments
            for predicted, seen in zip(
                predict(result.segments, len(split.device_segments(cut))), steps.halves(clock, cut), strict=True
            ):
                assert predicted == pytest.approx(seen, rel=0.05), (cut, predicted / seen)


def test_a_first_layers_backward_is_cheaper_and_a_frozen_embedding_has_none() -> None:
    _, result = _exact("llama")
    backward = [s.backward.median_s for s in result.segments]
    assert backward[0] == 0
    assert 0 < backward[1] < backward[2]
    assert backward[2] == pytest.approx(backward[3]) == pytest.approx(backward[4])


def test_a_t5_bridge_has_no_backward_and_the_first_decoder_layer_has_its_own() -> None:
    split, result = _exact("t5")
    kinds = [s.kind for s in split.segments]
    bridge = kinds.index("bridge")
    backward = [s.backward.median_s for s in result.segments]
    assert backward[bridge] == 0
    assert backward[bridge + 1] > 0.5 * backward[bridge + 2]


def test_a_machine_of_shapes_alone_is_timed_by_its_own_clock() -> None:
    _, real = _exact("llama")
    _, shapes = _exact("llama", device="meta")
    # The embedding apart: there transformers 4 makes a mask on a real machine and none on meta.
    for ours, theirs in zip(shapes.segments[1:-1], real.segments[1:-1], strict=True):
        assert ours.forward.median_s == pytest.approx(theirs.forward.median_s, rel=0.25)


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_the_segmented_step_is_a_training_step_with_the_plain_steps_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tiny(name)
    batch = split.batch()
    _, whole = unsplit(split, batch)
    steps = Steps(split, batch)
    monkeypatch.setattr(Steps, "_optimizer_steps", lambda self, now: [])
    steps.segmented(OperatorClock())
    assert equal(take_gradients(split), whole)


def test_the_adapters_learn_while_they_are_timed() -> None:
    split = tiny("llama")
    before = [p.detach().clone() for p in split.adapters()]
    steps, clock = Steps(split, split.batch()), OperatorClock()
    first = float(split.whole(split.batch()).detach())
    for _ in range(5):
        steps.segmented(clock)
    assert not any(torch.equal(a, b) for a, b in zip(before, split.adapters(), strict=True))
    assert float(split.whole(split.batch()).detach()) < first
    assert all(p.grad is None for p in split.adapters())


class Fixed:
    """A clock that moves on by a given amount at every look."""

    def __init__(self, *steps_s: float) -> None:
        self.steps_s, self.looks, self.time_s = steps_s, 0, 0.0

    def now_s(self) -> float:
        self.time_s += self.steps_s[self.looks % len(self.steps_s)]
        self.looks += 1
        return self.time_s


class Resting(OperatorClock):
    """A stopwatch that notes how long the machine rested, and when, and on which the first operator after a rest takes a second more."""

    def __init__(self) -> None:
        super().__init__()
        self.rests_s: list[float] = []
        self._rested = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.time_s += 1.0 if self._rested else 0.0
        self._rested = False
        return super().__torch_dispatch__(func, types, args, kwargs)

    def wait(self, seconds_s: float) -> None:
        self.time_s += seconds_s
        self.rests_s.append(seconds_s)
        self._rested = True


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_what_beginning_again_costs_a_half_is_predicted_once_for_each_time_it_begins(name: str) -> None:
    split, clock = tiny(name), Resting()
    with clock:
        result = measure(split, clock, replace(FEW, min_rounds=9, max_rounds=9, wait_s=0.25))
    # Three rests in each round, two in those that have none within the backward pass; none while warming up.
    assert set(clock.rests_s) == {0.25}
    assert 2 * 9 < len(clock.rests_s) < 3 * 9
    forward, backward = ([round(getattr(s, way).median_s) for s in result.segments] for way in ("forward", "backward"))
    assert forward == [1, *[0] * (len(forward) - 1)]
    assert backward == [1, *[0] * (len(backward) - 2), 1]
    assert result.step.median_s < 0.1
    for cut in split.cuts:
        device, server = predict(result.segments, len(split.device_segments(cut)))
        assert (round(device), round(server)) == (2, 1)


def test_what_disturbs_one_part_now_and_then_is_missing_from_no_sum_of_parts() -> None:
    # One look at the clock in four comes a millisecond late. No part's median sees it, yet a step takes a quarter longer.
    random = Random(5)
    disturbed = Fixed(*(0.001 + 0.001 * (random.random() < 0.25) for _ in range(9973)))
    split = tiny("llama")
    options = TimingOptions(warmup_rounds=1, min_rounds=40, max_rounds=40, min_s=0)
    result = measure(split, disturbed, options)
    whole: dict[int, float] = {}
    for row in result.samples:
        if row["segment"]:
            whole[row["round"]] = whole.get(row["round"], 0.0) + row["seconds_s"]
    assert sum(predict(result.segments, 1)) == pytest.approx(math.fsum(whole.values()) / 40, rel=0.03)
    layer = [row["seconds_s"] for row in result.samples if (row["segment"], row["phase"]) == ("layer-1", "forward")]
    assert result.segments[1].forward.median_s > 1.15 * stat(layer).median_s


def test_one_bad_round_in_ten_changes_no_time() -> None:
    split, one = tiny("llama"), Fixed(0.001)
    measure(split, one, replace(FEW, warmup_rounds=0, min_rounds=1, max_rounds=1))
    bad = Fixed(*[0.001] * (9 * one.looks), *[0.1] * one.looks)
    options = TimingOptions(warmup_rounds=1, min_rounds=40, max_rounds=40, min_s=0)
    assert measure(split, bad, options).segments[2].forward.median_s == pytest.approx(0.001)


def test_a_half_rests_wherever_it_would_wait_for_the_other_one() -> None:
    split, clock = tiny("llama"), Resting()
    with clock:
        device, server = Steps(split, split.batch()).halves(clock, 2, wait_s=0.5)
    assert clock.rests_s == [0.5] * 3
    assert (round(device), round(server)) == (2, 1)


def test_timing_ends_when_steady_and_says_so() -> None:
    split = tiny("llama")
    result = measure(split, Fixed(0.001), TimingOptions(warmup_rounds=1, min_rounds=3, max_rounds=50, min_s=0))
    assert (result.rounds, result.stopped_by) == (3, "steady")


def test_timing_goes_on_for_its_least_time_on_the_machines_clock() -> None:
    split = tiny("llama")
    result = measure(split, Fixed(0.001), TimingOptions(warmup_rounds=0, min_rounds=3, max_rounds=50, min_s=0.3))
    per_round = sum(predict(result.segments, 1)) + result.step.median_s
    assert result.rounds > 3
    assert result.rounds * per_round >= 0.1


def test_an_unsteady_machine_is_measured_to_the_bound_or_the_budget() -> None:
    restless = Fixed(*(0.001 * (1 + 5 * (i * 7919 % 13)) for i in range(101)))
    split = tiny("llama")
    options = TimingOptions(warmup_rounds=0, min_rounds=3, max_rounds=9, min_s=0, target_relative=1e-6)
    assert measure(split, restless, options).stopped_by == "max_rounds"
    options = TimingOptions(warmup_rounds=0, min_rounds=3, max_rounds=9, min_s=0, target_relative=1e-6, budget_s=0)
    assert (measure(split, restless, options).rounds, measure(split, restless, options).stopped_by) == (3, "budget")


def test_every_reading_is_kept_and_progress_is_told() -> None:
    split = tiny("llama")
    told: list[tuple[int, int]] = []
    result = measure(split, Fixed(0.001), FEW, progress=lambda done, most: told.append((done, most)))
    assert told == [(n, 5) for n in range(1, 6)]
    segments = len(split.segments)
    assert len(result.samples) == 4 * (1 + 2 * segments + split.layers)  # step; forward, backward; optimizers of layers
    assert set(result.samples[0]) == {"round", "segment", "phase", "seconds_s"}
    forward = [r["seconds_s"] for r in result.samples if (r["segment"], r["phase"]) == ("layer-1", "forward")]
    assert result.segments[1].forward.model_dump() == pytest.approx(stat(forward).model_dump())


def test_garbage_collection_is_off_while_timing_and_on_afterwards() -> None:
    split = tiny("llama")
    seen: list[bool] = []

    class Looking(Fixed):
        def now_s(self) -> float:
            seen.append(gc.isenabled())
            return super().now_s()

    measure(split, Looking(0.001), FEW)
    assert not any(seen[1:])
    assert gc.isenabled()


def test_a_statistic_is_median_and_interquartile_range() -> None:
    assert stat([1.0, 2.0, 3.0, 4.0, 100.0]) == Stat(median_s=3.0, iqr_s=2.0, samples=5)


def test_a_half_is_the_sum_of_its_segments() -> None:
    def segment(*seconds: float) -> SegmentTime:
        f, b, o = (Stat(median_s=s, samples=1) for s in seconds)
        return SegmentTime(forward=f, backward=b, optimizer=o)

    device, server = predict([segment(1, 2, 4), segment(8, 16, 32), segment(64, 128, 256)], 1)
    assert (device, server) == (7, 504)
    assert math.isclose(device + server, 511)
