"""What is built, from where, and what is refused in one clear line."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

import torch

from profiler.profile import BadInput
from profiler.workload import pretrained
from profiler.workload.model import WorkloadSpec, build
from profiler.workload.pretrained import presets
from tests.workload.families import FAMILIES, available, preset, tiny

# As published with the models (safetensors' own count, or the paper's).
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "mistral-7b": 7_248_023_552,
    "gpt2": 124_439_808,
    "t5-large": 737_668_096,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    built = build(WorkloadSpec(name, seq_len=32), "meta")
    assert built.parameters == PUBLISHED[name] == presets()[name]["parameters"]


def test_the_letters_model_is_within_a_ten_thousandth_of_llama_3_2_1b() -> None:
    built = build(WorkloadSpec("letter-1b-32l"), "meta")
    config = built.config
    assert (config.hidden_size, config.num_hidden_layers) == (2048, 32)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 8)
    # One more in the FFN width is 32 layers x 3 matrices x 2048 = 196,608 parameters: no width comes nearer.
    assert abs(built.parameters - 1_235_814_400) == 65_536 < 196_608 / 2


def test_every_preset_says_where_it_is_from_and_builds() -> None:
    for name, facts in presets().items():
        assert facts["source"]
        assert build(WorkloadSpec(name, seq_len=16), "meta").parameters == facts["parameters"], name


def test_only_adapters_learn_and_they_are_in_float32_on_a_bfloat16_base() -> None:
    model: Any = tiny("llama", dtype="bf16").model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert all("lora" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_nothing_is_dropped_out(name: str) -> None:
    split = tiny(name)
    batch = split.batch()
    assert split.model.training
    assert torch.equal(split.whole(batch), split.whole(batch))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("q_proj", "v_proj")),
        ("gpt2", ("c_attn",)),
        ("t5", ("q", "v")),
        ("phi3", ("qkv_proj",)),
        ("bart", ("q_proj", "v_proj")),
    ],
)
def test_default_targets_are_query_and_value_or_the_matrix_they_are_fused_in(
    name: str, targets: tuple[str, ...]
) -> None:
    assert tiny(name, device="meta").built.lora_targets == targets


def test_trainable_parameters_are_rank_times_in_plus_out_of_every_target() -> None:
    built = tiny("gpt2", device="meta", lora_rank=8).built
    assert built.trainable_parameters == 4 * 8 * (32 + 96)
    built = tiny("llama", device="meta", lora_rank=2, lora_targets=("down_proj",)).built
    assert built.trainable_parameters == 4 * 2 * (48 + 32)


def test_random_weights_are_the_same_for_one_seed_and_do_no_harm() -> None:
    first, again, other = tiny("llama"), tiny("llama"), tiny("llama", seed=1)
    same = [torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)
    loss = first.whole(first.batch()).detach()
    assert 4 < float(loss) < 5  # log(97) = 4.57: nothing learned, nothing overflown


def test_meta_models_hold_no_memory() -> None:
    assert {p.device.type for p in tiny("t5", device="meta").model.parameters()} == {"meta"}


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "int3"}, "--dtype int3: expected float32, bfloat16 or float16"),
        ({"batch_size": 0}, "--batch-size 0: expected"),
        ({"batch_size": True}, "--batch-size True: expected"),
        ({"seq_len": 1}, "--seq-len 1: expected"),
        ({"lora_rank": -4}, "--lora-rank -4: expected"),
        ({"lora_alpha": 0.0}, "--lora-alpha 0.0: expected"),
        ({"lora_alpha": float("nan")}, "--lora-alpha nan: expected"),
        ({"lora_targets": ()}, "--lora-targets: expected"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as caught:
        WorkloadSpec("gpt2", **options)
    assert named in str(caught.value)


def test_short_dtype_names_are_understood_and_defaults_are_the_presets() -> None:
    spec = WorkloadSpec("tiny-llama-test", dtype="fp16")
    assert (spec.dtype, spec.batch, spec.tokens) == ("float16", 4, 128)
    assert (WorkloadSpec("gpt2").batch, WorkloadSpec("gpt2").tokens) == (8, 512)


def test_a_sequence_longer_than_the_models_positions_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--seq-len 2048: gpt2 has positions for 1024"):
        build(WorkloadSpec("gpt2", seq_len=2048), "meta")


def test_an_unknown_target_is_answered_with_the_layers_there_are() -> None:
    with pytest.raises(BadInput, match=r"--lora-targets nope: no such linear layer; this model has .*q_proj"):
        tiny("llama", lora_targets=("nope",))


# --- where models come from -------------------------------------------------------------------------------------------


def _save(folder: Path, name: str = "llama", **more: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config = FAMILIES[name]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def test_a_local_directory_is_read_with_its_own_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = _save(tmp_path / "my-model")
    built = build(WorkloadSpec(str(folder), batch_size=2, seq_len=8))
    assert built.name == "my-model"
    stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(dict(built.model.named_parameters())["model.layers.0.mlp.up_proj.weight"], stored)
    half = build(WorkloadSpec(str(folder), batch_size=2, seq_len=8, dtype="bf16"), only={"model.norm.weight"})
    assert {n for n, p in half.model.named_parameters() if p.device.type == "cpu"} == {"model.norm.weight"}


def test_shapes_of_a_local_directory_need_no_weights_to_be_read(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    real = build(WorkloadSpec(str(folder), batch_size=2, seq_len=8))
    assert build(WorkloadSpec(str(folder), batch_size=2, seq_len=8), "meta").parameters == real.parameters


class _Trap:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    folder, sprung = _save(tmp_path / "m"), tmp_path / "sprung"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(BadInput, match=r"pickled \(pytorch_model.bin\).*expected .safetensors"):
        build(WorkloadSpec(str(folder)))
    assert not sprung.exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder, sprung = _save(tmp_path / "m", auto_map={"AutoConfig": "evil.Evil"}, model_type="evil"), tmp_path / "sprung"
    (folder / "evil.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    with pytest.raises(BadInput, match="code of its own, which is never run"):
        build(WorkloadSpec(str(folder)))
    assert not sprung.exists()


def test_a_quantized_base_is_not_supported_and_told_so(tmp_path: Path) -> None:
    folder = _save(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(BadInput, match="quantized, which is not supported"):
        build(WorkloadSpec(str(folder)))


def test_weights_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    folder = _save(tmp_path, num_hidden_layers=20)
    with pytest.raises(BadInput, match=r"hold no weights for model\.layers\.\d+\..* and \d+ more"):
        build(WorkloadSpec(str(folder), batch_size=2, seq_len=8))


def test_a_model_without_a_language_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 32}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="looked for a class with a language-model head"):
        build(WorkloadSpec(str(tmp_path)), "meta")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, "no config.json and no .gguf"),
        ({"config.json": "{}"}, "no weights, expected .safetensors or .gguf"),
        ({"a.gguf": "", "b.gguf": ""}, r"several GGUF files \(a.gguf, b.gguf\)"),
        ({"config.json": "not json", "model.safetensors": ""}, "m: "),
        ({"a.gguf": "this is no gguf"}, "m: "),
    ],
)
def test_a_directory_that_holds_no_model_says_what_is_missing(
    tmp_path: Path, content: dict[str, str], named: str
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file, text in content.items():
        (folder / file).write_text(text)
    with pytest.raises(BadInput, match=named) as caught:
        build(WorkloadSpec(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/dir", "some.gguf", "a b", "../x", "~nobody-of-this-name/x"])
def test_a_path_that_does_not_exist_is_answered_with_what_was_expected(name: str) -> None:
    with pytest.raises(BadInput, match=r"no such file or directory; expected a Hugging Face id.*llama-3\.2-1b"):
        build(WorkloadSpec(name))


def test_an_unreachable_hub_is_one_clear_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    pretrained._hub_reachable.cache_clear()
    began = time.monotonic()
    with pytest.raises(BadInput, match="not in the local cache, and the Hugging Face hub cannot be reached") as caught:
        build(WorkloadSpec("nobody/no-such-model"))
    pretrained._hub_reachable.cache_clear()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 15


def test_a_preset_copy_can_be_built_twice() -> None:
    with available():
        spec = WorkloadSpec(preset("t5"))
        assert build(spec, "meta").parameters == build(spec, "meta").parameters


def test_the_readers_of_models_show_no_bars_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    with pretrained.quiet():
        assert list(reader.tqdm(range(3), desc="reading")) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    assert reader.tqdm is bar
