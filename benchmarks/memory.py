"""Peak memory: predicted from one pass on the meta device against each half really trained in a process of its own.

    python benchmarks/memory.py            every cut of the 8-layer preset, and a few of other families and dtypes
    python benchmarks/memory.py --all      every cut of all of them (slow)

Measured is the operating system's high-water mark of a fresh process over two training steps, less its resident size before the
model is built. Bounds: 5 % of the measured peak, 10 % for the device half at cut 1. Exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# (preset, dtype, batch, tokens, cuts; None: every cut)
CASES: list[tuple[str, str, int, int, list[int] | None]] = [
    ("tiny-llama-test", "float32", 8, 256, None),
    ("tiny-llama-test", "float32", 4, 128, [1]),
    ("tiny-llama-test", "bfloat16", 8, 256, [1, 7]),
    ("gpt2", "float32", 4, 128, [1, 11]),
    ("gpt2", "bfloat16", 4, 128, [1]),
]


def main() -> int:
    """Run the cases; 1 if a bound was missed."""
    from rich.console import Console
    from rich.table import Table

    from profiler.workload import memory
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build

    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--all", action="store_true", help="every cut of every case")
    options.add_argument("--threads", type=int, default=None, help="threads of the measured processes")
    chosen = options.parse_args()
    console, missed, worst = Console(), 0, 0.0
    began = time.perf_counter()
    for model, dtype, batch_size, tokens, cuts in CASES:
        spec = WorkloadSpec(model, dtype=dtype, batch_size=batch_size, seq_len=tokens)
        split = SplitModel(build(spec, "meta"))
        batch = split.batch()
        start = time.perf_counter()
        workspace = memory.library_workspace(split, batch, threads=chosen.threads)
        block = memory.with_workspace(memory.predict(split, batch, provenance="emulated"), workspace)
        took = time.perf_counter() - start
        table = Table(
            title=f"{model}, {dtype}, {batch_size} x {tokens} tokens; libraries hold {workspace.layers_bytes / 1e6:.1f} MB "
            f"(with the head {workspace.head_bytes / 1e6:.1f} MB); predicted in {took:.1f} s"
        )
        for name in ("cut", "half", "predicted MB", "measured MB", "error %", "bound %"):
            table.add_column(name, justify="right")
        wanted = list(split.cuts) if cuts is None or chosen.all else cuts
        for row in memory.check(spec, block, wanted, threads=chosen.threads):
            error = 100 * (row.predicted_bytes / row.measured_bytes - 1)
            bound = 10.0 if row.cut == 1 and row.side == "device" else 5.0
            worst = max(worst, abs(error))
            missed += abs(error) > bound
            table.add_row(
                str(row.cut),
                row.side,
                f"{row.predicted_bytes / 1e6:.1f}",
                f"{row.measured_bytes / 1e6:.1f}",
                f"{error:+.1f}" + (" MISSED" if abs(error) > bound else ""),
                f"{bound:.0f}",
            )
        console.print(table)
    seconds = time.perf_counter() - began
    console.print(f"worst error {worst:.1f} %, {missed} bounds missed, {seconds:.0f} s in all")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
