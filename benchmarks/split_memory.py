"""The device process at cut 1 of a 1B-shaped model: peak memory beside the profile's prediction and beside the whole model's.

    python -m benchmarks.split_memory             Llama 3.2 1B's shapes, bfloat16, 1 x 128 tokens, cut 1 and then cut 3
    python -m benchmarks.split_memory --model X --dtype float32 --batch-size N --seq-len N

A device half (``split.half``) really starts in a process of its own, takes a training step at cut 1, moves to cut 3, and takes another: once as a
preset, once from a safetensors checkpoint of the same shapes, written to a temporary folder (about 2.5 GB, its values random). Measured is
the operating system's high-water mark (VmHWM) over the resident size before the half is made, with glibc's malloc set to give freed memory
back at once. It covers the start and the loading too, not only the step: a copy of the whole model would show, were it there only
for a moment. Predicted is what ``card-profile`` writes into a profile (``memory.predict`` with the libraries' share).

Bounds: within 10 % of the prediction at each cut and from either source, and under half of the whole model's weights at cut 1.
Exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CUTS = (1, 3)
NEAR_PCT, FAR = 10.0, 0.5
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _device(task: dict[str, Any]) -> dict[str, Any]:
    """The child: a device half, one step at each cut. Peaks in bytes over what was resident before."""
    import gc

    import torch

    from profiler.workload.memory import _Peak
    from profiler.workload.model import WorkloadSpec, build
    from split.half import Half, Training

    torch.set_num_threads(1)
    tiny = WorkloadSpec("tiny-llama-test", batch_size=1, seq_len=8)
    build(tiny, "meta")  # imports all there is to import
    Half(tiny, "device").cut_at(1)
    gc.collect()
    spec = WorkloadSpec(task["model"], dtype=task["dtype"], batch_size=task["batch_size"], seq_len=task["seq_len"])
    peak = _Peak("cpu")
    before = peak.now()
    peak.reset()
    half = Half(spec, "device", training=Training("adamw", 1e-4))
    ids = torch.zeros((spec.batch, spec.tokens), dtype=torch.int64)
    rows = []
    for cut in task["cuts"]:
        half.cut_at(cut)
        for _ in range(2):  # the moments are there from the second step on
            carried = half.forward(ids, ids, cut)
            half.backward({n: torch.full_like(carried[n], 1e-3) for n in half.gradient_names(cut)})
            half.step()
        rows.append({"cut": cut, "peak_bytes": peak.highest() - before, "now_bytes": peak.now() - before})
        peak.reset()
    return {"rows": rows, "note": half.note}


def _write(spec: Any, folder: Path) -> None:
    """The child: a checkpoint of the preset's shapes, as transformers writes it."""
    from profiler.workload import model as building
    from profiler.workload.holding import RandomWeights
    from profiler.workload.pretrained import libraries, resolve

    _, transformers = libraries()
    config = resolve(spec.model).config(transformers)
    building._prepare_config(config, spec)
    model = building._empty_model(transformers, config, spec, "cpu", False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    building._fill(model, RandomWeights(0))
    model.save_pretrained(folder)


def _child(what: str, task: dict[str, Any]) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.split_memory", "--child", what],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env={**os.environ, **_MALLOC, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"the {what} process failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    """Run it; 1 if a bound was missed."""
    from rich.console import Console
    from rich.table import Table

    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--model", default="llama-3.2-1b")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--batch-size", type=int, default=1)
    options.add_argument("--seq-len", type=int, default=128)
    options.add_argument("--child", choices=("device", "write"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        from profiler.workload.model import WorkloadSpec

        task = json.load(sys.stdin)
        if chosen.child == "write":
            folder = Path(task.pop("folder"))
            _write(WorkloadSpec(**task), folder)
            print("{}")
        else:
            print(json.dumps(_device(task)))
        return 0

    from profiler.workload import memory
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build

    console, missed = Console(), 0
    asked = {
        "model": chosen.model,
        "dtype": chosen.dtype,
        "batch_size": chosen.batch_size,
        "seq_len": chosen.seq_len,
    }
    spec = WorkloadSpec(**asked)
    split = SplitModel(build(spec, "meta"))
    batch = split.batch()
    workspace = memory.library_workspace(split, batch, threads=1)
    predicted = memory.with_workspace(memory.predict(split, batch, provenance="emulated"), workspace)
    rows = {row.cut: row.device_peak_bytes for row in predicted.cuts}
    weights = sum(p.numel() * p.element_size() for p in split.model.parameters())
    table = Table(
        title=f"{chosen.model}, {chosen.dtype}, {chosen.batch_size} x {chosen.seq_len} tokens: the device process"
    )
    for name in ("from", "cut", "measured MB", "predicted MB", "off %", "whole model's weights MB", "share %"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory(prefix="split-memory-") as folder:
        _child("write", {**asked, "folder": folder})
        for source, model in (("preset", chosen.model), ("safetensors", folder)):
            found = _child("device", {**asked, "model": model, "cuts": CUTS})
            if found["note"]:
                console.print(f"{source}: {found['note']}")
            for row in found["rows"]:
                off = 100 * (row["peak_bytes"] / rows[row["cut"]] - 1)
                share = row["peak_bytes"] / weights
                bad = abs(off) > NEAR_PCT or (row["cut"] == 1 and share > FAR)
                missed += bad
                table.add_row(
                    source,
                    str(row["cut"]),
                    f"{row['peak_bytes'] / 1e6:.1f}",
                    f"{rows[row['cut']] / 1e6:.1f}",
                    f"{off:+.1f}" + (" MISSED" if bad else ""),
                    f"{weights / 1e6:.0f}",
                    f"{100 * share:.0f}",
                )
    console.print(table)
    console.print(
        f"predicted for the whole model's training step: {(predicted.whole_peak_bytes or 0) / 1e6:.0f} MB; "
        f"libraries hold {workspace.layers_bytes / 1e6:.1f} MB; {missed} bounds missed"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
