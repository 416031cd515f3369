"""What the prediction of memory states: on graphs worked out by hand, on tiny models, and against one real process."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

import torch
from hypothesis import given
from hypothesis import strategies as st

from profiler.profile import BadInput, CutMemory, MemoryBlock, MissingHardware
from profiler.workload import memory
from profiler.workload.allocations import AllocationRecord, tracker_class
from profiler.workload.memory import Workspace
from profiler.workload.model import WorkloadSpec
from tests.workload.families import NAMES, tiny

FLOAT = 4


def predicted(name: str, device: str = "meta", **spec: Any) -> MemoryBlock:
    split = tiny(name, device, **spec)
    return memory.predict(split, split.batch(), provenance="emulated")


# --- the record -------------------------------------------------------------------------------------------------------


def tracked(work: Any, existing: list[torch.Tensor]) -> AllocationRecord:
    record = AllocationRecord()
    record.enter("forward", 0)
    with tracker_class()(record, existing):
        work(record)
    return record


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_chain_of_two_products_has_the_peak_worked_out_by_hand(device: str) -> None:
    n, inside, hidden = 50, 40, 30
    x = torch.ones(n, inside, device=device)
    first = torch.ones(inside, hidden, device=device, requires_grad=True)
    second = torch.ones(hidden, 1, device=device)

    def work(record: AllocationRecord) -> None:
        middle = torch.relu(x @ first)
        loss = (middle @ second).sum()
        del middle
        record.enter("backward", 0)
        loss.backward()
        record.enter("end", -1)

    alive = tracked(work, [x, first, second]).timeline([0, -1])
    middle, scalar = n * hidden * FLOAT, FLOAT
    # Highest in the backward pass, at relu: its saved result, the gradient that comes in, the one that goes out; the loss
    # and its own gradient (1). Only the matrix' gradient is left at the end.
    assert alive.max() == 3 * middle + 2 * scalar
    assert alive[-1] == inside * hidden * FLOAT


def test_a_view_and_an_operator_in_place_cost_nothing() -> None:
    x = torch.ones(10, 10)
    record = tracked(lambda _: [x.t(), x[2:], x.view(100), x.add_(1), x.reshape(5, 20)], [x])
    assert record.sizes == []


def test_a_storage_counts_once_and_is_freed_with_its_last_view() -> None:
    x = torch.ones(10, 10)

    def work(record: AllocationRecord) -> None:
        y = x + 1
        view = y[3:]
        del y
        record.enter("forward", 1)
        z = x * 2
        del view, z

    record = tracked(work, [x])
    assert record.sizes == [400, 400]
    assert record.death_phases == [1, 1]
    assert record.timeline([0, 1]).max() == 800


def test_a_tensor_that_another_half_would_free_is_held_to_the_end() -> None:
    record = AllocationRecord()
    record.enter("forward", 0)
    smashed = record.born(100)
    record.enter("forward", 1)
    record.born(7)
    record.died(smashed)
    assert record.timeline([0]).tolist() == [100, 100, 100, 100]
    assert record.timeline([1]).tolist() == [0, 7, 7, 7]
    assert record.timeline([0, 1]).tolist() == [100, 107, 7, 7]


@given(
    lives=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 1000)).map(
            lambda t: (min(t[:2]), max(t[:2]), t[2])
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_segments_peaks_add_up_to_at_least_the_whole(lives: list[tuple[int, int, int]]) -> None:
    record, open_ = AllocationRecord(), {}
    for phase in range(5):
        record.enter("forward", phase)
        for number, (begin, end, _) in enumerate(lives):
            if end == phase and begin < phase:
                record.died(open_[number])
        for number, (begin, end, size) in enumerate(lives):
            if begin == phase:
                open_[number] = record.born(size)
                if end == phase:
                    record.died(open_[number])
    whole = record.timeline(range(5))
    assert (whole >= 0).all()
    for cut in range(1, 5):
        halves = record.timeline(range(cut)) + record.timeline(range(cut, 5))
        assert (halves >= whole).all()


# --- the prediction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_device_half_never_needs_less_memory_and_its_server_half_never_more(name: str) -> None:
    block = predicted(name)
    device = [row.device_peak_bytes for row in block.cuts]
    server = [row.server_peak_bytes for row in block.cuts]
    assert device == sorted(device)
    if name not in ("t5", "bart"):  # past the encoder its output crosses too
        assert server == sorted(server, reverse=True)
    assert all(0 < peak < block.whole_peak_bytes for peak in device)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_shapes_alone_predict_what_a_real_pass_predicts(name: str) -> None:
    meta, real = predicted(name), predicted(name, "cpu")
    for a, b in zip(meta.cuts, real.cuts, strict=True):
        assert a.device_peak_bytes == pytest.approx(b.device_peak_bytes, rel=0.01)
        assert a.server_peak_bytes == pytest.approx(b.server_peak_bytes, rel=0.01)


def test_neighbouring_cuts_differ_by_one_layer() -> None:
    split = tiny("llama", "meta", batch_size=4, seq_len=32)
    block = memory.predict(split, split.batch(), provenance="emulated")
    steps = [b.device_peak_bytes - a.device_peak_bytes for a, b in zip(block.cuts, block.cuts[1:], strict=False)]
    layer = split.segments[2]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert steps[0] > layer.weight_bytes + (1 + memory.MOMENTS) * layer.adapter_bytes


def test_gradient_checkpointing_predicts_less() -> None:
    plain = predicted("llama", batch_size=8, seq_len=32)
    again = predicted("llama", batch_size=8, seq_len=32, gradient_checkpointing=True)
    assert again.cuts[-1].device_peak_bytes < 0.7 * plain.cuts[-1].device_peak_bytes


def test_the_head_holds_several_tensors_of_the_size_of_the_logits() -> None:
    block = predicted("llama", batch_size=8, seq_len=64)
    logits = 8 * 64 * 97 * FLOAT
    assert block.cuts[-1].server_peak_bytes > 3 * logits


def test_the_libraries_share_is_added_to_either_half() -> None:
    split = tiny("llama", "meta")
    batch = split.batch()
    without = memory.predict(split, batch, provenance="emulated")
    added = memory.with_workspace(without, Workspace(1000, 5000))
    for a, b in zip(without.cuts, added.cuts, strict=True):
        assert b.device_peak_bytes - a.device_peak_bytes == 1000
        assert b.server_peak_bytes - a.server_peak_bytes == 5000
    assert added.whole_peak_bytes - without.whole_peak_bytes == 5000
    assert added.provenance == without.provenance


def test_predicting_leaves_no_gradients_and_changes_no_adapter() -> None:
    split = tiny("gpt2", "cpu")
    before = [p.detach().clone() for p in split.adapters()]
    memory.predict(split, split.batch(), provenance="measured")
    assert all(p.grad is None for p in split.adapters())
    assert all(torch.equal(a, p) for a, p in zip(before, split.adapters(), strict=True))


# --- the measurement --------------------------------------------------------------------------------------------------

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from Linux's /proc")


@needs_linux
def test_a_really_trained_half_peaks_where_it_was_predicted() -> None:
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import build

    spec = WorkloadSpec("tiny-llama-test", batch_size=4, seq_len=128)
    split = SplitModel(build(spec, "meta"))
    batch = split.batch()
    block = memory.with_workspace(
        memory.predict(split, batch, provenance="emulated"), memory.library_workspace(split, batch, threads=1)
    )
    (found,) = memory.check(spec, block, [4], sides=("device",), threads=1)
    assert found.predicted_bytes == block.cuts[3].device_peak_bytes
    assert found.predicted_bytes == pytest.approx(found.measured_bytes, rel=0.08)


@needs_linux
def test_what_the_child_cannot_build_is_bad_input_here() -> None:
    with pytest.raises(BadInput, match="no-such-model"):
        memory.measure_half(WorkloadSpec("no-such-model"), 1, "device")


def test_a_check_at_a_cut_that_is_not_there_is_bad_input() -> None:
    block = MemoryBlock(
        provenance="emulated",
        cuts=[CutMemory(cut=1, device_peak_bytes=1, server_peak_bytes=1)],
        whole_peak_bytes=1,
    )
    with pytest.raises(BadInput, match="cut 5"):
        memory.check(WorkloadSpec("tiny-llama-test"), block, [5])


def test_a_system_that_does_not_tell_its_peak_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(memory.Path, "write_text", refuse)
    with pytest.raises(MissingHardware, match="clear_refs"):
        memory._Peak("cpu").reset()
