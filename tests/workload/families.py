"""Tiny models of several families, in place of presets while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")

import torch

from profiler.workload import pretrained
from profiler.workload.cuts import Batch, SplitModel
from profiler.workload.model import WorkloadSpec, build

_LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    # Both attentions, full and sliding, in one model: the context differs from layer to layer.
    "qwen": ("qwen2", {**_LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 4}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 97,
            "n_embd": 32,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
    ),
    "t5": (
        "t5",
        {
            "vocab_size": 97,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
    ),
    # Not asked for by name: families that are found by structure alone.
    "phi3": ("phi3", {**_LLAMA, "pad_token_id": 0}),
    "bart": (
        "bart",
        {
            "vocab_size": 97,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
}
NAMES = tuple(FAMILIES)


@contextmanager
def available() -> Iterator[None]:
    """Inside, the tiny families can be built by name."""
    presets = pretrained.presets()
    tiny = {preset(name): {"model_type": kind, "config": config} for name, (kind, config) in FAMILIES.items()}
    presets.update(tiny)
    try:
        yield
    finally:
        for name in tiny:
            del presets[name]


def preset(name: str) -> str:
    """The preset's name of a tiny family: not that of a model which ships."""
    return f"tiny-{name}"


def tiny(name: str, device: str = "cpu", randomised: bool = True, **spec: Any) -> SplitModel:
    """A tiny split model with adapters that matter (fresh ones have B = 0, and half of their gradients are zero)."""
    with available():
        split = SplitModel(build(WorkloadSpec(preset(name), **{"batch_size": 2, "seq_len": 16, **spec}), device))
    if randomised and device != "meta":
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for adapter in split.adapters():
                adapter.copy_(torch.randn(adapter.shape, generator=generator) * 0.2)
    return split


def take_gradients(split: SplitModel) -> list[torch.Tensor]:
    """The adapters' gradients, which are cleared. Every one of them must be there and not zero."""
    gradients = [p.grad for p in split.adapters()]
    for p in split.adapters():
        p.grad = None
    assert all(g is not None and bool(g.any()) for g in gradients)
    return [g for g in gradients if g is not None]


def unsplit(split: SplitModel, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and adapters' gradients of the plain, unsplit model: what every split is held against."""
    loss = split.whole(batch)
    loss.backward()
    return loss.detach(), take_gradients(split)


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
