"""The letter's Tables I and II as profiles of a server and five devices; ``profiles/letter`` holds them as files.

The letter: Li, Wu, Li, Zhang, "Energy-Efficient Split Learning for Fine-Tuning Large Language Models in Edge Networks",
arXiv 2412.00090. What it does not give is assumed here, each figure with its reason beside it. ``docs/letter.md`` tells how the
letter's choices contradict one another and the hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiler.profile import (
    Clocks,
    Compression,
    CutSizes,
    FittedModel,
    FlopsBlock,
    Hardware,
    PowerFit,
    Profile,
    Segment,
    SegmentFlops,
    SegmentSizes,
    SizesBlock,
    Workload,
)

LETTER = "Li et al., Energy-Efficient Split Learning for Fine-Tuning LLMs in Edge Networks, arXiv 2412.00090"

HIDDEN, KV_WIDTH, VOCAB = 2048, 512, 128_256


@dataclass(frozen=True)
class Model:
    """A Llama of equal layers, ``HIDDEN`` wide; ``ffn`` is the width of its feed-forward part."""

    name: str
    layers: int
    ffn: int


# The preset letter-1b-32l: 32 layers as the letter has it, at the parameter total of Llama 3.2 1B (1,235,814,400). An FFN
# width of 3242 is the whole number that comes nearest.
AS_PRINTED = Model("letter-1b-32l", 32, 3242)
AS_PUBLISHED = Model("llama-3.2-1b", 16, 8192)
"""Llama 3.2 1B by its published configuration: 16 layers (32 is its number of attention heads)."""

# Rank, alpha, batch and sequence are not given; SplitLoRA's published defaults stand in for them.
RANK, ALPHA, BATCH, SEQUENCE = 4, 32.0, 8, 512
ACTIVATION_BYTES, ADAPTER_BYTES = 2, 4  # bfloat16 activations and base, float32 adapters (as PEFT keeps them)

DELTA = 2.0  # Table II, devices and server alike
XI_W_PER_HZ3 = 1e-25  # Table II
PHI = 0.1  # Table II
SERVER = ("rtx-4060ti", "Nvidia RTX 4060Ti", 2.46e9, 3072)  # Table I
# Not given. Of 0.5 to 1.5 GHz in steps of 0.1 it brings the headline pair nearest to the printed one (benchmarks/letter.py).
F_MIN_HZ = 0.7e9
DEVICES = (  # Table I: platform, GPU max frequency, cores
    ("device-1", "Jetson AGX Orin", 1.3e9, 2048),
    ("device-2", "Jetson AGX Orin", 1.0e9, 2048),
    ("device-3", "Jetson AGX Orin", 0.7e9, 1792),
    ("device-4", "Jetson Orin NX", 0.7e9, 1024),
    ("device-5", "Jetson AGX Nano", 0.5e9, 512),
)


def layer_flops(
    batch: Any = BATCH, sequence: Any = SEQUENCE, rank: Any = RANK, ffn: int = AS_PRINTED.ffn
) -> tuple[Any, Any]:
    """FLOPs of one layer and mini-batch, forward and backward, for numbers or arrays; 2 FLOPs a multiply-add.

    Backward: the frozen base's products once, attention's and LoRA's twice.
    """
    tokens = batch * sequence
    linear = 2.0 * tokens * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH + 3 * HIDDEN * ffn)
    attention = 2.0 * 2 * tokens * sequence * HIDDEN
    lora = 2.0 * tokens * adapter_parameters(rank)
    return linear + attention + lora, linear + 2 * attention + 2 * lora


def adapter_parameters(rank: Any = RANK) -> Any:
    """LoRA on the query and value projections of one layer; ``rank`` is a number or an array."""
    return rank * (HIDDEN + HIDDEN) + rank * (HIDDEN + KV_WIDTH)


def model_blocks(model: Model) -> dict[str, Any]:
    """Workload, segments, FLOPs and sizes: the same for all machines, every layer alike (Section V-B of the letter)."""
    layer_parameters = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH + 3 * HIDDEN * model.ffn + 2 * HIDDEN
    segments = [Segment(name="embedding", kind="embedding", layer=0)]
    segments += [Segment(name=f"layer.{i}", kind="layer", layer=i) for i in range(1, model.layers + 1)]
    segments.append(Segment(name="head", kind="head", layer=model.layers + 1))
    nothing = SegmentFlops(forward_flops=0.0, backward_flops=0.0)
    forward, backward = layer_flops(ffn=model.ffn)
    layer = SegmentFlops(forward_flops=forward, backward_flops=backward)
    embedding_bytes = VOCAB * HIDDEN * ACTIVATION_BYTES
    layer_sizes = SegmentSizes(
        weight_bytes=layer_parameters * ACTIVATION_BYTES,
        adapter_bytes=adapter_parameters() * ADAPTER_BYTES,
        adapter_parameters=adapter_parameters(),
    )

    def outside(weight_bytes: int) -> SegmentSizes:
        return SegmentSizes(weight_bytes=weight_bytes, adapter_bytes=0, adapter_parameters=0)

    smashed = BATCH * SEQUENCE * HIDDEN * ACTIVATION_BYTES
    return {
        "workload": Workload(
            model=model.name,
            architecture="LlamaForCausalLM",
            layers=model.layers,
            hidden_size=HIDDEN,
            vocab_size=VOCAB,
            batch_size=BATCH,
            seq_len=SEQUENCE,
            dtype="bfloat16",
            lora_rank=RANK,
            lora_alpha=ALPHA,
            lora_targets=["q_proj", "v_proj"],
            parameters=VOCAB * HIDDEN + model.layers * layer_parameters + HIDDEN,
            trainable_parameters=model.layers * adapter_parameters(),
        ),
        "segments": segments,
        "flops": FlopsBlock(
            provenance="assumed",
            source=f"{LETTER}, Section V-B: all layers alike; batch and sequence after SplitLoRA's defaults",
            note="Embedding and head count no FLOPs, as the letter speaks of transformer layers alone",
            segments=[nothing, *[layer] * model.layers, nothing],
        ),
        "sizes": SizesBlock(
            provenance="assumed",
            source=f"{LETTER}, Section V-B: all layers alike; rank, batch and sequence after SplitLoRA's defaults",
            note="bfloat16 activations and base, float32 adapters; the head's weight is the embedding's (tied)",
            segments=[outside(embedding_bytes), *[layer_sizes] * model.layers, outside(embedding_bytes + 2 * HIDDEN)],
            cuts=[CutSizes(cut=c, smashed_bytes=smashed, gradient_bytes=smashed) for c in range(1, model.layers)],
        ),
        "compression": Compression(provenance="literature", source=f"{LETTER}, Table II", phi=PHI),
    }


def hardware(platform: str, cores: int, clocks: Clocks) -> Hardware:
    """A machine as Tables I and II describe it. The letter knows no memory limit."""
    return Hardware(
        provenance="literature",
        source=f"{LETTER}, Tables I and II",
        kind="abstract",
        description=platform,
        cores=cores,
        flops_per_core_cycle=DELTA,
        clocks=clocks,
    )


def profiles(model: Model = AS_PRINTED) -> list[Profile]:
    """The server first, then devices 1 to 5."""
    shared = model_blocks(model)
    made = {"created_utc": "2024-11-27T00:00:00Z", "toolkit_version": "0"}
    name, platform, f_max, cores = SERVER
    server = Profile(
        name=name,
        role="server",
        hardware=hardware(
            platform,
            cores,
            Clocks(
                provenance="assumed",
                source=f"F_max: {LETTER}, Table I. F_min is not given; 0.7 GHz is ours",
                min_hz=F_MIN_HZ,
                max_hz=f_max,
                operating_hz=f_max,
            ),
        ),
        power_fit=PowerFit(
            provenance="literature",
            source=f"{LETTER}, Table II",
            note="1,489 W at 2.46 GHz: about ten times what such a board may draw. The decision does not depend on it.",
            selected="cubic",
            models={"cubic": FittedModel(parameters={"xi_w_per_hz3": XI_W_PER_HZ3})},
            xi_w_per_hz3=XI_W_PER_HZ3,
        ),
        **made,
        **shared,
    )
    devices = [
        Profile(
            name=name,
            role="device",
            hardware=hardware(
                platform,
                cores,
                Clocks(provenance="literature", source=f"{LETTER}, Table I", min_hz=f, max_hz=f, operating_hz=f),
            ),
            **made,
            **shared,
        )
        for name, platform, f, cores in DEVICES
    ]
    return [server, *devices]
