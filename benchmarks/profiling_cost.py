"""What does profiling cost beside plain training?

    python -m benchmarks.profiling_cost [--model NAME] [--steps N] [--blocks N]

The timing phase (plain and segmented steps, with all its bookkeeping) and the same number of plain training steps take turns in
blocks. Then the whole of `card-profile run --device cpu --measure layers` is timed from start to exit, imports included.

Ends with 1 when a bound is missed: 1.15 times the plain steps; 30 s for the whole run on the tiny preset.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from profiler.hardware.host import WallTime
from profiler.workload.cuts import SplitModel
from profiler.workload.model import WorkloadSpec, build
from profiler.workload.timing import LEARNING_RATE, TimingOptions, measure

RATIO, RUN_S = 1.15, 30.0
TINY = "tiny-llama-test"


def compare(model: str, steps: int, blocks: int) -> list[tuple[float, float]]:
    """Seconds of ``steps`` steps of the timing phase and of plain training, one pair a block, taken turn and turn about."""
    from torch.optim import AdamW

    split = SplitModel(build(WorkloadSpec(model)))
    batch = split.batch()
    optimizer = AdamW(split.adapters(), lr=LEARNING_RATE)
    # A round is two steps; the bounds of both are equal, so that this many are taken.
    options = TimingOptions(warmup_rounds=0, min_rounds=steps // 2, max_rounds=steps // 2, min_s=0)

    def profiled() -> None:
        measure(split, WallTime(), options, batch=batch)

    def plain() -> None:
        for _ in range(steps):
            split.whole(batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    profiled()  # warm up: both kinds of step
    pairs = []
    for block in range(blocks):
        both = [("profiled", profiled), ("plain", plain)]
        seconds = {}
        for name, run in both if block % 2 == 0 else reversed(both):
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        pairs.append((seconds["profiled"], seconds["plain"]))
    return pairs


def whole_run(model: str) -> float:
    """Seconds of the whole command, from start to exit."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import cli; cli.profile_main()", "run", "--device", "cpu"]
        command += ["--measure", "layers", "--model", model, "--fresh", "--output", str(Path(folder) / "cpu.json")]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=7)
    arguments = parser.parse_args()

    run_s = whole_run(arguments.model)
    pairs = compare(arguments.model, arguments.steps, arguments.blocks)
    ratio = statistics.median(profiled_s / plain_s for profiled_s, plain_s in pairs)
    profiled_s, plain_s = (statistics.median(column) / arguments.steps for column in zip(*pairs, strict=True))
    print(f"{arguments.model}, {len(pairs)} blocks of {arguments.steps} steps, interleaved: ", end="")
    print(f"{1e3 * profiled_s:.1f} ms a step while profiling, {1e3 * plain_s:.1f} ms plain (medians)")
    print(f"timing phase: {ratio:.3f} x plain training (median of the blocks' ratios; at most {RATIO:g})")
    bound = f"at most {RUN_S:g}" if arguments.model == TINY else "no bound for this model"
    print(f"card-profile run --device cpu --measure layers: {run_s:.1f} s ({bound})")
    missed = ratio > RATIO or (arguments.model == TINY and run_s > RUN_S)
    print("MISSED" if missed else "kept")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
