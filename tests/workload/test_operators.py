"""The graph of operators agrees with everything else that is known about a model: FLOPs, adapters, and what crosses at each cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

from profiler.profile import OperatorsBlock
from profiler.workload.flops import count_flops
from profiler.workload.operators import extract
from tests.workload.families import NAMES, tiny


def crossing(block: OperatorsBlock, device: list[bool]) -> tuple[int, int]:
    """Bytes up and down where the segments marked True are the device's."""
    at = [device[operator.segment] for operator in block.operators]
    crossed = [t for t in block.tensors if at[t.producer] and not all(at[v] for v in t.consumers)]
    return sum(t.activation_bytes for t in crossed), sum(t.gradient_bytes for t in crossed)


@pytest.mark.parametrize("family", [name for name in NAMES if name != "bart"])  # slow, and much like t5
def test_operators_add_up_to_their_segments_and_what_crosses_is_what_the_profile_says(family: str) -> None:
    split = tiny(family, "meta")
    block = extract(split, provenance="emulated")
    counted = count_flops(split, split.batch(), provenance="emulated")
    for index, (segment, flops) in enumerate(zip(split.segments, counted.segments, strict=True)):
        own = [operator for operator in block.operators if operator.segment == index]
        assert own, segment.name
        assert sum(operator.forward_flops for operator in own) == flops.forward_flops, segment.name
        assert sum(operator.backward_flops for operator in own) == flops.backward_flops, segment.name
        assert sum(operator.adapter_bytes for operator in own) == segment.adapter_bytes, segment.name
    for cut in split.cuts:
        up, down = crossing(block, [segment.layer <= cut for segment in split.segments])
        assert (up, down) == (split.smashed_bytes(cut), split.gradient_bytes(cut)), cut


def test_operators_are_named_by_the_module_whose_weight_they_use() -> None:
    block = extract(tiny("llama", "meta"), provenance="emulated")
    by_name = {operator.name: operator for operator in block.operators}
    adapter = by_name["layer-2.self_attn.q_proj.lora_A"]
    assert adapter.adapter_bytes == 4 * 32 * 4
    assert adapter.weight_bytes == 0
    assert by_name["layer-2.self_attn.k_proj"].adapter_bytes == 0
    assert by_name["embedding.model.embed_tokens"].weight_bytes == by_name["head.lm_head"].weight_bytes == 97 * 32 * 4


def test_grouped_heads_make_keys_and_values_narrower_than_queries() -> None:
    block = extract(tiny("llama", "meta"), provenance="emulated")
    sizes = {block.operators[t.producer].name: t.activation_bytes for t in block.tensors}
    assert sizes["layer-2.self_attn.q_proj"] == 2 * sizes["layer-2.self_attn.k_proj"]


def test_the_residual_stream_crosses_every_cut_inside_a_layer() -> None:
    """So no cut inside a layer of a decoder carries less than the layer's own input."""
    block = extract(tiny("llama", "meta"), provenance="emulated")
    own = [v for v, operator in enumerate(block.operators) if block.operators[v].segment == 2]
    hidden = crossing(block, [True, True, *[False] * 4])[0]
    for end in own[:-1]:
        crossed = [t for t in block.tensors if t.producer <= end < max(t.consumers)]
        assert sum(t.activation_bytes for t in crossed) >= hidden


def test_a_decoder_layer_reads_the_encoders_output() -> None:
    split = tiny("t5", "meta")
    block = extract(split, provenance="emulated")
    segments = [segment.name for segment in split.segments]
    last = segments.index("layer-3")
    (encoded,) = (
        t
        for t in block.tensors
        if block.operators[t.producer].segment == last and max(t.consumers) > len(block.operators) // 2
    )
    readers = {segments[block.operators[v].segment] for v in encoded.consumers}
    assert readers == {"layer-4", "layer-5", "layer-6"}


def test_a_run_keeps_the_graph_in_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.plan import RunRequest
    from profiler.run import run
    from profiler.store import load
    from profiler.workload.model import WorkloadSpec

    monkeypatch.chdir(tmp_path)
    spec = WorkloadSpec("tiny-llama-test", batch_size=1, seq_len=16)
    path = run(RunRequest("emulated:rtx-4060ti", spec, measure=("graph",), output=tmp_path / "server.json"))
    profile = load(path)
    assert profile.operators is not None
    assert profile.operators.provenance == "emulated"
    assert {operator.segment for operator in profile.operators.operators} == set(range(len(profile.segments)))
    data = json.loads(path.read_text())
    data["operators"]["tensors"][3]["consumers"] = [0]
    path.write_text(json.dumps(data))
    from profiler.profile import BadInput

    with pytest.raises(BadInput, match=r"field operators: tensors\[3\]: expected consumers among the operators after"):
        load(path)
