"""Small profiles with round figures, for tests that need a profile and not a measurement."""

from __future__ import annotations

from typing import Any

from profiler.profile import (
    Clocks,
    CutMemory,
    CutSizes,
    FlopsBlock,
    Hardware,
    MemoryBlock,
    PowerBlock,
    PowerFit,
    PowerPoint,
    PowerPrediction,
    Profile,
    Role,
    Segment,
    SegmentFlops,
    SegmentSizes,
    SegmentTime,
    SizesBlock,
    Stat,
    Timing,
    Workload,
)

LAYERS = 4


def make_profile(
    name: str = "box", role: Role = "device", *, layers: int = LAYERS, provenance: Any = "measured", **changes: Any
) -> Profile:
    """A machine of 1 GFLOP/s per GHz and segment: every layer has 2 GFLOP, every cut 1 MB, every adapter 1 kB.

    A server has clocks 0.5, 1.0, 1.5 and 2.0 GHz, times a + b/f, and a power curve 20 W + 10 W/GHz^3 f^3.
    """
    segments = [Segment(name="embedding", kind="embedding", layer=0)]
    segments += [Segment(name=f"layer.{i}", kind="layer", layer=i) for i in range(1, layers + 1)]
    segments.append(Segment(name="head", kind="head", layer=layers + 1))
    ghz = [0.5, 1.0, 1.5, 2.0] if role == "server" else [1.0]

    def seconds(at_ghz: float, work: float) -> SegmentTime:
        def stat(value: float) -> Stat:
            return Stat(median_s=value, iqr_s=value / 50, samples=9)

        return SegmentTime(
            forward=stat(work * (0.001 + 0.01 / at_ghz)),
            backward=stat(work * (0.002 + 0.02 / at_ghz)),
            optimizer=stat(1e-4),
        )

    flops = [SegmentFlops(forward_flops=1e9 * s, backward_flops=1e9 * s) for s in [0.0, *[1.0] * layers, 2.0]]
    fit = None
    power = None
    if role == "server":
        watts = {g: 20 + 10 * g**3 for g in ghz}
        power = PowerBlock(
            provenance=provenance,
            scope="board",
            sensor="test",
            load="test",
            idle_w=15.0,
            points=[
                PowerPoint(frequency_hz=g * 1e9, power_w=p, samples=9, seconds_s=9.0, stopped_by="steady")
                for g, p in watts.items()
            ],
        )
        fit = PowerFit(
            provenance="fitted",
            basis=provenance,
            selected="affine-cubic",
            xi_w_per_hz3=1.5e-26,
            points=len(ghz),
            predictions=[
                PowerPrediction(frequency_hz=g * 1e9, power_w=p, low_w=p * 0.98, high_w=p * 1.02)
                for g, p in watts.items()
            ],
        )
    profile = Profile(
        name=name,
        role=role,
        created_utc="2026-01-01T00:00:00Z",
        toolkit_version="0",
        hardware=Hardware(
            provenance=provenance,
            kind="abstract",
            description="a machine for tests",
            cores=1000,
            flops_per_core_cycle=2.0,
            memory_bytes=10**9,
            clocks=Clocks(
                provenance=provenance,
                supported_hz=[g * 1e9 for g in ghz],
                min_hz=min(ghz) * 1e9,
                max_hz=max(ghz) * 1e9,
                operating_hz=max(ghz) * 1e9,
            ),
        ),
        workload=Workload(
            model="test-model",
            architecture="TestForCausalLM",
            layers=layers,
            hidden_size=64,
            vocab_size=256,
            batch_size=1,
            seq_len=16,
            dtype="float32",
            lora_rank=4,
            lora_alpha=32,
            lora_targets=["q_proj", "v_proj"],
            parameters=10**6,
            trainable_parameters=10**3,
        ),
        segments=segments,
        flops=FlopsBlock(provenance=provenance, segments=flops),
        sizes=SizesBlock(
            provenance=provenance,
            segments=[
                SegmentSizes(weight_bytes=10**6, adapter_bytes=1000 if s.kind == "layer" else 0, adapter_parameters=250)
                for s in segments
            ],
            cuts=[CutSizes(cut=c, smashed_bytes=10**6, gradient_bytes=10**6) for c in range(1, layers)],
        ),
        timings=[
            Timing(
                provenance=provenance,
                frequency_hz=g * 1e9,
                segments=[seconds(g, work) for work in [0.1, *[1.0] * layers, 2.0]],
            )
            for g in ghz
        ],
        memory=MemoryBlock(
            provenance=provenance,
            cuts=[
                CutMemory(cut=c, device_peak_bytes=10**8 * c, server_peak_bytes=10**8 * (layers - c))
                for c in range(1, layers)
            ],
            whole_peak_bytes=10**8 * layers,
        ),
        power=power,
        power_fit=fit,
    )
    return profile.model_copy(update=changes)
