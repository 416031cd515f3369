"""What the counting of FLOPs states, on small models of every family, on the meta device."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")
pytest.importorskip("fvcore", reason="the [profile] extra is not installed")

import torch

from profiler.profile import FlopsBlock, SegmentFlops
from profiler.workload import flops
from profiler.workload.cuts import SplitModel
from profiler.workload.model import WorkloadSpec, build
from profiler.workload.pretrained import presets
from tests.workload.families import NAMES, tiny


def split_of(family: str, **options: Any) -> SplitModel:
    """A tiny family on the meta device, or a preset that ships."""
    if family in NAMES:
        return tiny(family, "meta", **options)
    return SplitModel(build(WorkloadSpec(family, **options), "meta"))


def counted(split: SplitModel, **options: Any) -> FlopsBlock:
    return flops.count_flops(split, split.batch(), provenance="measured", **options)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_counters_agree_with_the_formula_in_every_family(family: str, dtype: str) -> None:
    block = counted(split_of(family, dtype=dtype))
    assert block.disagreements == []
    assert block.uncounted_operators == {}
    for row in block.segments:
        assert row.forward_formula_flops == row.forward_torch_flops == row.forward_fvcore_flops == row.forward_flops
        assert row.backward_formula_flops == row.backward_torch_flops == row.backward_flops


@pytest.mark.parametrize(
    "targets", [("k_proj",), ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "down_proj")]
)
def test_any_choice_of_lora_targets_follows_the_same_formula(targets: tuple[str, ...]) -> None:
    block = counted(split_of("llama", lora_targets=targets))
    for row in block.segments:
        assert row.backward_formula_flops == row.backward_torch_flops


def test_two_layers_of_llama_1b_have_the_flops_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = presets()["llama-3.2-1b"]
    monkeypatch.setitem(
        presets(),
        "two-layers",
        {**shipped, "config": {**shipped["config"], "num_hidden_layers": 2, "vocab_size": 8192}},
    )
    block = counted(split_of("two-layers", batch_size=1, seq_len=512, lora_rank=8))
    tokens, hidden, keys, width, rank = 512, 2048, 512, 8192, 8
    lin = 2 * tokens * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * width)
    att = 4 * tokens * tokens * hidden
    lora = 2 * tokens * rank * (2 * hidden + hidden + keys)
    head = 2 * tokens * hidden * 8192
    assert 2 * (lin + att) + head == pytest.approx(146.029e9, abs=1e6)  # without adapters
    assert sum(s.forward_flops for s in block.segments) == 2 * (lin + att + lora) + head

    not_needed = 2 * tokens * (hidden * hidden + 2 * hidden * keys) + 2 * (2 * tokens * hidden * rank)
    key_gradient = 2 * tokens * tokens * hidden
    backward = 2 * (lin + 2 * att + 2 * lora) + head - not_needed - key_gradient
    assert sum(s.backward_flops for s in block.segments) == backward
    assert backward == pytest.approx(142.992e9, abs=1e6)
    assert backward + key_gradient == pytest.approx(144.066e9, abs=1e6)


def test_the_layers_of_llama_1b_are_counted_apart_from_embedding_and_head() -> None:
    split = split_of("llama-3.2-1b", batch_size=1, seq_len=512)
    block = counted(split)
    by_kind = {kind: sum(f.forward_flops for f, s in zip(block.segments, split.segments, strict=True) if s.kind == kind)
               for kind in ("embedding", "layer", "head")}  # fmt: skip
    assert by_kind["embedding"] == 0
    assert by_kind["head"] == 2 * 512 * 2048 * 128256
    assert by_kind["head"] / sum(by_kind.values()) == pytest.approx(0.207, abs=0.001)


def test_the_first_layer_costs_less_backward_because_nobody_needs_its_input_gradient() -> None:
    first, second = counted(split_of("llama")).segments[1:3]
    assert first.forward_flops == second.forward_flops
    assert first.backward_flops < second.backward_flops


def test_flops_grow_linearly_with_the_batch() -> None:
    one, four = (counted(split_of("gpt2", batch_size=b)) for b in (1, 4))
    for a, b in zip(one.segments, four.segments, strict=True):
        assert b.forward_flops == 4 * a.forward_flops
        assert b.backward_flops == 4 * a.backward_flops


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_adds_the_forward_pass_that_is_run_again(family: str) -> None:
    plain = counted(split_of(family)).segments[2]
    again = counted(split_of(family, gradient_checkpointing=True)).segments[2]
    assert again.forward_flops == plain.forward_flops
    assert plain.backward_flops < again.backward_flops <= plain.backward_flops + plain.forward_flops
    assert again.backward_formula_flops == pytest.approx(again.backward_torch_flops, rel=0.01)


def test_a_counter_that_is_wrong_is_reported() -> None:
    name = "aten::_scaled_dot_product_flash_attention_for_cpu"
    block = counted(split_of("llama"), handlers={name: lambda *shapes: 0})
    wrong = {(d.segment, d.direction, d.counter) for d in block.disagreements}
    assert {("layer-1", "forward", "fvcore"), ("layer-1", "forward", "torch")} <= wrong
    assert ("head", "forward", "torch") not in wrong
    for d in block.disagreements:
        assert d.relative == pytest.approx((d.counted_flops - d.formula_flops) / d.formula_flops)
        assert d.relative < -0.01


@pytest.mark.parametrize(("counted_flops", "reported"), [(100.0, 0), (100.9, 0), (101.1, 1), (98.9, 1)])
def test_one_per_cent_is_where_a_disagreement_begins(counted_flops: float, reported: int) -> None:
    row = SegmentFlops(
        forward_flops=100, backward_flops=100, forward_formula_flops=100.0, forward_torch_flops=counted_flops
    )
    assert len(flops.disagreements("layer-1", row)) == reported


def test_an_operator_that_no_counter_knows_is_listed() -> None:
    split = split_of("llama")
    layer = split.segments[2].modules[0]
    layer.register_forward_hook(lambda m, a, out: out + torch.linalg.matrix_exp(out[:, :4, :4]).sum())
    block = counted(split)
    assert any("matrix_exp" in name for name in block.uncounted_operators)
    assert block.segments[2].forward_flops == block.segments[2].forward_formula_flops


def test_counting_leaves_gradients_and_weights_as_they_were() -> None:
    split = split_of("llama")
    marks = [torch.zeros_like(p) for p in split.adapters()]
    for p, mark in zip(split.adapters(), marks, strict=True):
        p.grad = mark
    counted(split)
    assert all(p.grad is mark for p, mark in zip(split.adapters(), marks, strict=True))
    assert not any(m._forward_hooks for m in split.model.modules())


def test_a_block_of_flops_goes_through_json_unchanged() -> None:
    block = counted(split_of("t5"))
    assert FlopsBlock.model_validate(json.loads(block.model_dump_json())) == block
