"""Steady power points on emulated boards against the emulation's own truth: ``python -m benchmarks.steady [BOARD ...]``.

The load is the training step of Llama 3.2 1B (batch 8, 512 tokens). The sweep knows only clock and sensors; the truth is the
emulated board's power once its temperature stands still. Exits 1 where a point is more than 2 % off, or the median of a
board more than 1 %.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings

import numpy as np

BOARDS = ("orin-agx", "orin-nano", "xavier-nx", "nano", "rtx-4060ti", "rtx-a4000")
WORST_PCT, MEDIAN_PCT = 2.0, 1.0


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    from profiler.hardware.catalog import find
    from profiler.hardware.emulated import EmulatedDevice
    from profiler.power.sweep import choose_clocks, run_sweep
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build
    from profiler.workload.timing import Steps

    split = SplitModel(build(WorkloadSpec(model="llama-3.2-1b", batch_size=8, seq_len=512, dtype="float32"), "meta"))
    steps = Steps(split, split.batch(0))
    missed = False
    everything: list[float] = []
    print(f"{'board':12} {'points':>6} {'median %':>9} {'worst %':>8} {'capped':>6} {'virtual s':>10} {'real s':>7}")
    for name in names or BOARDS:
        device = EmulatedDevice(find(name))
        load = device.load(lambda device=device: steps.plain(device))  # type: ignore[misc]
        assert device.clocks is not None
        began = time.perf_counter()
        choice = choose_clocks("auto", device.clocks.supported_hz())
        with device.clocks.held():
            points = run_sweep(
                device, lambda load=load: contextlib.nullcontext(load), choice, load_name="step"
            ).block.points
        spent = time.perf_counter() - began
        errors = []
        for point in points:
            asked = point.requested_hz if point.capped and point.requested_hz else point.frequency_hz
            errors.append(100 * abs(point.power_w / device.true_steady(asked, load).power_w - 1))
        everything += errors
        missed = missed or max(errors) > WORST_PCT or float(np.median(errors)) > MEDIAN_PCT
        print(
            f"{name:12} {len(points):6} {np.median(errors):9.2f} {max(errors):8.2f} {sum(p.capped for p in points):6} "
            f"{device.now_s():10.0f} {spent:7.1f}"
        )
    print(f"{'all':12} {len(everything):6} {np.median(everything):9.2f} {max(everything):8.2f}")
    if missed:
        print(f"missed: worst <= {WORST_PCT} %, median of a board <= {MEDIAN_PCT} %")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
