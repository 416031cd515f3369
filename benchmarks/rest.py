"""What does a rest cost the work that comes after it?

    python -m benchmarks.rest [--model NAME] [--batch-size N] [--seq-len N] [--rests 0.03,0.1,0.4] [--rounds N] [--core K]

In a split each half waits for the other one and for the link, and then goes on. A training step that rests before its forward and before its
backward pass and one that does not take turns, in shuffled order, on one core with one thread. Printed: seconds of the parts (rests not counted),
medians, and how much longer they are after each rest. This is why `card-profile run` rests before what it times.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from statistics import median

MODEL = "tiny-llama-test"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--rests", type=lambda text: [float(x) for x in text.split(",")], default=[0.03, 0.1, 0.4])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--core", type=int, help="the core to run on (default: the first)")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    from benchmarks.split_prediction import alone_on
    from profiler.hardware.host import WallTime
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build
    from profiler.workload.timing import Steps, undisturbed

    alone_on(arguments.core if arguments.core is not None else cores[0])
    split = SplitModel(build(WorkloadSpec(arguments.model, arguments.batch_size, arguments.seq_len)))
    steps, clock = Steps(split, split.batch()), WallTime()
    rests = [0.0, *arguments.rests]
    found: dict[float, list[dict[str, float]]] = {rest: [] for rest in rests}
    shuffled = random.Random(0)
    with undisturbed():
        for number in range(3 + arguments.rounds):
            for rest in shuffled.sample(rests, len(rests)):
                steps.segmented(clock)  # what came before is alike
                parts: dict[str, float] = {}
                for _, phase, seconds in steps.segmented(clock, rest):
                    parts[phase.removesuffix("-cold")] = parts.get(phase.removesuffix("-cold"), 0.0) + seconds
                if number >= 3:
                    found[rest].append(parts)
    print(f"{arguments.model}, batch {arguments.batch_size} x {arguments.seq_len}, {arguments.rounds} rounds, one core")
    print(f"{'rest ms':>8} {'forward ms':>11} {'backward ms':>12} {'all ms':>8} {'longer by':>10}")
    whole = {rest: median(sum(parts.values()) for parts in rows) for rest, rows in found.items()}
    for rest, rows in found.items():
        forward, backward = (1e3 * median(parts[phase] for parts in rows) for phase in ("forward", "backward"))
        longer = 100 * (whole[rest] / whole[0.0] - 1)
        print(f"{1e3 * rest:8.0f} {forward:11.1f} {backward:12.1f} {1e3 * whole[rest]:8.1f} {longer:+9.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
