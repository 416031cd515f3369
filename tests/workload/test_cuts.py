"""Where models are cut, and that a cut changes nothing."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.profile import BadInput
from profiler.workload.cuts import SplitModel
from profiler.workload.gates import ENCODER, HIDDEN
from profiler.workload.model import BuiltModel, WorkloadSpec, build
from tests.workload.families import NAMES, available, equal, preset, take_gradients, tiny, unsplit

DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_at_every_cut_loss_and_lora_gradients_equal_the_unsplit_models_bit_for_bit(name: str, dtype: str) -> None:
    split = tiny(name, dtype=dtype)
    batch = split.batch(seed=3)
    loss, whole = unsplit(split, batch)
    for cut in split.cuts:
        assert torch.equal(split.split_step(batch, cut), loss.detach()), cut
        assert equal(take_gradients(split), whole), cut


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_segments_run_one_by_one_equal_the_unsplit_model_bit_for_bit(name: str, dtype: str) -> None:
    split = tiny(name, dtype=dtype)
    batch = split.batch(seed=4)
    loss, whole = unsplit(split, batch)

    state = split.start(batch)
    for index in range(len(split.segments)):
        state = split.forward(index, state)
    assert state.loss is not None
    assert torch.equal(state.loss, loss)
    split.backward(state)
    assert equal(take_gradients(split), whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_cut_at_every_boundary_gives_the_same_gradients(name: str) -> None:
    split = tiny(name)
    batch = split.batch(seed=4)
    _, whole = unsplit(split, batch)

    state, left, entered = split.start(batch), [], [{}]
    for index in range(len(split.segments)):
        state = split.forward(index, state)
        left.append(state)
        if state.loss is None:
            state, leaves = split.cut_state(state)
            entered.append(leaves)
    gradients: Any = None
    for index in reversed(range(len(split.segments))):
        split.backward(left[index], gradients)
        gradients = split.gradients(entered[index])
    assert equal(take_gradients(split), whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_server_half_makes_its_own_context_from_what_was_carried(name: str) -> None:
    split = tiny(name)
    batch = split.batch(seed=2)
    loss = split.whole(batch)
    blind = split.batch(inputs=torch.zeros_like(batch.inputs), labels=batch.labels)  # the server has no token ids
    for cut in split.cuts:
        carried = split.device_half(batch, cut).carried
        assert torch.equal(split.server_half(blind, cut, carried).loss, loss), cut  # type: ignore[arg-type]
        state = split.resume(blind, cut, carried)
        for index in split.server_segments(cut):
            state = split.forward(index, state)
        assert torch.equal(state.loss, loss), cut  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_gradient_checkpointing_changes_no_bit_either(name: str) -> None:
    split = tiny(name, gradient_checkpointing=True)
    batch = split.batch(seed=3)
    _, whole = unsplit(split, batch)
    for cut in split.cuts:
        split.split_step(batch, cut)
        assert equal(take_gradients(split), whole), cut


@cache
def _shared(name: str) -> SplitModel:
    return tiny(name)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    rows=st.integers(1, 3),
    tokens=st.integers(2, 20),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_batch_of_any_shape_is_split_without_a_trace(
    name: str, rows: int, tokens: int, seed: int, data: Any
) -> None:
    split = _shared(name)
    cut = data.draw(st.sampled_from(list(split.cuts)))
    generator = torch.Generator().manual_seed(seed)
    batch = split.batch(inputs=torch.randint(1, 97, (rows, tokens), generator=generator))
    loss = split.whole(batch)
    loss.backward()
    whole = [p.grad for p in split.adapters()]
    for p in split.adapters():
        p.grad = None
    assert torch.equal(split.split_step(batch, cut), loss.detach())
    for adapter, gradient in zip(split.adapters(), whole, strict=True):
        assert adapter.grad is not None
        assert gradient is not None
        assert torch.equal(adapter.grad, gradient)
        adapter.grad = None


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_as_it_was_after_every_pass_even_a_failed_one(name: str) -> None:
    split = tiny(name)
    before = [(path, id(module)) for path, module in split.model.named_modules()]
    split.device_half(split.batch(), 1)
    with pytest.raises((TypeError, ValueError, AttributeError, KeyError, RuntimeError)):
        split.server_half(split.batch(), 1, {HIDDEN: torch.zeros(2, 16, 7)})
    assert [(path, id(module)) for path, module in split.model.named_modules()] == before


# --- what the segments are --------------------------------------------------------------------------------------------


def test_a_decoder_is_embedding_layers_and_head() -> None:
    split = tiny("llama")
    assert [(s.kind, s.layer) for s in split.segments] == [
        ("embedding", 0),
        *[("layer", n) for n in range(1, 5)],
        ("head", 5),
    ]
    assert (split.layers, split.encoder_layers, list(split.cuts)) == (4, None, [1, 2, 3])


def test_t5_has_a_bridge_that_bears_the_first_decoder_layers_number() -> None:
    split = tiny("t5")
    kinds = [(s.kind, s.layer) for s in split.segments]
    assert kinds == [
        ("embedding", 0),
        ("layer", 1),
        ("layer", 2),
        ("layer", 3),
        ("bridge", 4),
        ("layer", 4),
        ("layer", 5),
        ("layer", 6),
        ("head", 7),
    ]
    assert split.encoder_layers == 3
    last_of_encoder = [type(m).__name__ for m in split.segments[3].modules]
    assert last_of_encoder[0] == "T5Block"
    assert any("Norm" in n for n in last_of_encoder[1:])  # the encoder's final norm is part of it


@pytest.mark.parametrize("name", NAMES)
def test_the_segments_of_both_sides_are_all_segments_and_follow_the_layer_numbers(name: str) -> None:
    split = tiny(name, device="meta")
    for cut in split.cuts:
        device, server = split.device_segments(cut), split.server_segments(cut)
        assert device + server == list(range(len(split.segments)))
        assert all(split.segments[i].layer <= cut for i in device)
        assert all(split.segments[i].layer > cut for i in server)


def test_bytes_that_cross_are_batch_times_tokens_times_width_times_element() -> None:
    one = 2 * 16 * 32
    assert [tiny("llama").smashed_bytes(c) for c in (1, 2, 3)] == [4 * one] * 3
    assert [tiny("llama", dtype="bfloat16").gradient_bytes(c) for c in (1, 2, 3)] == [2 * one] * 3
    t5 = tiny("t5")
    # Inside the decoder the encoder's output crosses too, and its gradient comes back.
    assert [t5.smashed_bytes(c) for c in t5.cuts] == [4 * one] * 3 + [8 * one] * 2
    assert [t5.gradient_bytes(c) for c in t5.cuts] == [4 * one] * 3 + [8 * one] * 2


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_bytes_are_those_of_the_tensors_that_really_cross(name: str) -> None:
    split = tiny(name)
    for cut in split.cuts:
        state, leaves = split.cut_state(split.device_half(split.batch(), cut))
        split.backward(split.server_half(split.batch(), cut, state.carried))
        assert sum(t.numel() * t.element_size() for t in leaves.values()) == split.smashed_bytes(cut)
        back = split.gradients(leaves)
        assert sum(t.numel() * t.element_size() for t in back.values()) == split.gradient_bytes(cut)


def test_what_crosses_inside_a_t5_decoder_is_named() -> None:
    split = tiny("t5")
    assert set(split.device_half(split.batch(), 3).carried) == {ENCODER}
    assert set(split.device_half(split.batch(), 4).carried) == {HIDDEN, ENCODER}


def test_weight_and_adapter_bytes_are_the_models_a_tied_embedding_counting_on_both_sides() -> None:
    split = tiny("llama")
    base = sum(p.numel() for p in split.model.parameters() if not p.requires_grad)
    assert sum(s.weight_bytes for s in split.segments) == 4 * (base + 97 * 32)
    # q: 32 -> 32, v: 32 -> 16 (two of four heads), rank 4: A and B of each
    assert [s.adapter_parameters for s in split.segments] == [0] + [4 * (32 + 32) + 4 * (32 + 16)] * 4 + [0]
    assert split.segments[1].adapter_bytes == 4 * split.segments[1].adapter_parameters
    assert tiny("llama", dtype="bfloat16").segments[1].adapter_bytes == split.segments[1].adapter_bytes  # fp32 adapters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["device", "server"])
def test_a_process_can_hold_one_half_and_nothing_else(name: str, side: Any) -> None:
    whole = tiny(name, randomised=False)
    shapes = tiny(name, device="meta")
    for cut in (1, whole.layers - 1):
        names = shapes.half_parameters(side, cut)
        with available():
            spec = WorkloadSpec(preset(name), batch_size=2, seq_len=16)
            half = SplitModel(build(spec, only=names), shapes.structure)
        held = sum(p.numel() for p in half.model.parameters() if p.device.type != "meta")
        assert 0 < held < sum(p.numel() for p in whole.model.parameters())
        batch = whole.batch()
        carried = whole.device_half(batch, cut).carried
        if side == "device":
            for key, tensor in half.device_half(batch, cut).carried.items():
                assert tensor.shape == carried[key].shape
                assert bool(torch.isfinite(tensor).all())
        else:
            assert bool(torch.isfinite(half.server_half(batch, cut, carried).loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_alone_are_enough_to_run_forward_and_backward(name: str) -> None:
    real, split = tiny(name), tiny(name, device="meta")
    state = split.start(split.batch())
    for index in range(len(split.segments)):
        state = split.forward(index, state)
    split.backward(state)
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in split.adapters())
    for ours, theirs in zip(split.segments, real.segments, strict=True):
        assert (ours.weight_bytes, ours.adapter_bytes) == (theirs.weight_bytes, theirs.adapter_bytes)
    assert [split.smashed_bytes(c) for c in split.cuts] == [real.smashed_bytes(c) for c in real.cuts]


def test_attention_without_a_machine_saves_no_matrix_of_tokens_by_tokens() -> None:
    split = tiny("llama", device="meta", seq_len=40)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):  # type: ignore[func-returns-value]
        split.whole(split.batch())
    assert saved
    assert not [shape for shape in saved if shape[-2:] == (40, 40)]


# --- what cannot be cut -----------------------------------------------------------------------------------------------


def _wrapped(model: nn.Module, **config: Any) -> BuiltModel:
    model.config = SimpleNamespace(is_encoder_decoder=False, **config)  # type: ignore[assignment]
    return BuiltModel(model, WorkloadSpec("llama-3.2-1b"), model.config, "cpu", "x", "X", 1, 1, ("q",), 8, 8)


class _NoList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])


def test_a_model_without_a_row_of_layers_gets_an_error_that_says_what_was_looked_for_and_found() -> None:
    with pytest.raises(BadInput, match=r"_NoList: cannot be cut: looked .*ModuleList.* found no ModuleList"):
        SplitModel(_wrapped(_NoList()))
    with pytest.raises(BadInput, match=r"found blocks \(2 x LayerNorm/Linear\)"):
        SplitModel(_wrapped(_Mixed()))


def test_layers_that_are_not_called_one_after_the_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    split = tiny("llama")
    layer = type(split.segments[1].modules[0])
    original = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, *a, **k: [original(self, *a, **k)])
    with pytest.raises(BadInput, match="expected layers called one after the other"):
        SplitModel(split.built)


def test_adapters_outside_the_layers_are_refused() -> None:
    with pytest.raises(BadInput, match="lm_head"):
        tiny("llama", lora_targets=("q_proj", "lm_head"))


@pytest.mark.parametrize("cut", [0, 4, 99, -1])
def test_a_cut_that_is_none_is_named_with_the_range(cut: int) -> None:
    with pytest.raises(BadInput, match=rf"cut {cut}: expected 1\.\.3"):
        tiny("llama").smashed_bytes(cut)
