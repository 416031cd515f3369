"""What does a rest cost the work that comes after it?

    python -m benchmarks.rest [--model NAME] [--batch-size N] [--seq-len N] [--rests 0.03,0.1,0.4] [--rounds N] [--core K]

In a split each half waits for the other one and for the link, and then goes on. A training step that rests before its forward pass, before its
backward pass and within it, at another layer in each round, and one that does not rest take turns, in shuffled order, on one core with one thread.
Printed: milliseconds of the parts (rests not counted), medians, how much longer a step is, by how much the layer that goes on after the rest within the backward
pass is slower than without one, and the layer after that. This is why `card-profile run` rests, and what it takes as the cost of beginning again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from statistics import median

MODEL = "tiny-llama-test"


def slower(rounds: list[list[tuple[bool, float]]]) -> tuple[float, float]:
    """Seconds that a layer takes longer where the backward pass goes on with it after a rest, and the layer after it, which runs next."""
    usual = [median(seconds for cold, seconds in layer if not cold) for layer in zip(*rounds, strict=True)]
    again, after = [], []
    for layers in rounds:
        over = [seconds - warm for (_, seconds), warm in zip(layers, usual, strict=True)]
        began = [cold for cold, _ in layers]
        if any(began):  # no layer is rested in one step of a few
            at = began.index(True)
            again.append(over[at])
            after += [over[at + 1]] if at + 1 < len(over) else []
    return median(again or [0.0]), median(after or [0.0])


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
    backward: dict[float, list[list[tuple[bool, float]]]] = {
        rest: [] for rest in rests
    }  # (begins again, seconds) of the layers
    shuffled = random.Random(0)
    with undisturbed():
        for number in range(3 + arguments.rounds):
            for rest in shuffled.sample(rests, len(rests)):
                steps.segmented(clock)  # what came before is alike
                rows = steps.segmented(clock, rest)
                parts: dict[str, float] = {}
                for _, phase, seconds in rows:
                    parts[phase.removesuffix("-cold")] = parts.get(phase.removesuffix("-cold"), 0.0) + seconds
                if number >= 3:
                    found[rest].append(parts)
                    backward[rest].append(
                        [(p == "backward-cold", s) for _, p, s in rows if p.startswith("backward")][1:-1]
                    )
    print(f"{arguments.model}, batch {arguments.batch_size} x {arguments.seq_len}, {arguments.rounds} rounds, one core")
    print(
        f"{'rest ms':>8} {'forward ms':>11} {'backward ms':>12} {'all ms':>8} {'longer by':>10} {'begins again ms':>16} {'the next ms':>12}"
    )
    whole = {rest: median(sum(parts.values()) for parts in rows) for rest, rows in found.items()}
    for rest, each in found.items():
        forward_ms, backward_ms = (1e3 * median(parts[phase] for parts in each) for phase in ("forward", "backward"))
        longer = 100 * (whole[rest] / whole[0.0] - 1)
        again, after = slower(backward[rest])
        print(
            f"{1e3 * rest:8.0f} {forward_ms:11.1f} {backward_ms:12.1f} {1e3 * whole[rest]:8.1f} {longer:+8.1f} % {1e3 * again:+16.2f} {1e3 * after:+12.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
