"""Times at clocks never visited, on emulated boards: ``python -m benchmarks.times [BOARD ...]``.

Each board is timed at 5 and at 8 of its clocks (3 of the Orin Nano's 5) as ``card-profile run`` does (segmented steps, medians of a few rounds), its times are
followed over the clock, and the predictions for all other supported clocks are held against what the emulation's physics, a soft
roofline and not a + b/f, really takes there. Beside the curve: the law a + b/f, and the straight line in 1/f between visited clocks. Coverage is that
of the 95 % intervals, for times measured again at those clocks. Exits 1 where the curve's median error is more than 1 %, or the
coverage over all boards is outside 90 to 99 %.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np

BOARDS = ("orin-agx", "orin-nano", "xavier-nx", "rtx-4060ti")
COUNTS = (5, 8)
ROUNDS = 5
MOST_NEW = 60  # clocks of a card with very many
MEDIAN_PCT, COVERAGE = 1.0, (0.90, 0.99)


class _Marks:
    """A stopwatch that counts kernels, to learn which kernels belong to which segment and phase."""

    def __init__(self, kernels: list[Any]) -> None:
        self._kernels = kernels

    def now_s(self) -> float:
        return float(len(self._kernels))


def _kernels(board: Any, steps: Any) -> list[tuple[str, str, list[Any]]]:
    """Of one segmented step: (segment, phase, kernels)."""
    from profiler.hardware.kernels import charging

    kernels: list[Any] = []
    with charging(board, {}, kernels.append):
        rows = steps.segmented(_Marks(kernels))
    ends = np.cumsum([int(count) for _, _, count in rows])
    return [(s, p, kernels[end - int(n) : end]) for (s, p, n), end in zip(rows, ends, strict=True)]


def _truth(device: Any, rows: list[tuple[str, str, list[Any]]], hz: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Seconds (rows, clocks) without jitter, by the emulation's own physics."""
    out = np.zeros((len(rows), len(hz)))
    for r, (_, _, kernels) in enumerate(rows):
        cycles, transferred = (np.array([getattr(k, n) for k in kernels]) for n in ("cycles", "bytes"))
        for k, f in enumerate(hz):
            out[r, k] = device._physics.kernels(float(f), cycles, transferred)[0].sum()
    return out


def main(names: list[str]) -> int:
    """Print the table."""
    warnings.simplefilter("ignore")
    from profiler.hardware.catalog import find
    from profiler.hardware.emulated import EmulatedDevice
    from profiler.power.sweep import choose_clocks
    from profiler.profile import Timing
    from profiler.times import DIRECTIONS, fit_times, predict
    from profiler.workload.cuts import SplitModel
    from profiler.workload.flops import count_flops
    from profiler.workload.model import WorkloadSpec, build
    from profiler.workload.timing import Steps, TimingOptions, measure
    from tests.synthetic import make_profile

    split = SplitModel(build(WorkloadSpec(model="tiny-llama-test", batch_size=8, seq_len=64), "meta"))
    flops = count_flops(split, split.batch(0), provenance="emulated", note="counted")
    steps = Steps(split, split.batch(0))
    steps.segmented(_Marks([]))  # makes the optimizer's state
    names_of = [s.name for s in split.segments]
    options = TimingOptions(warmup_rounds=1, min_rounds=ROUNDS, max_rounds=ROUNDS, min_s=0.0)
    columns = ("median %", "worst %", "a+b/f %", "straight %", "cover %", "+- %", "step %", "worst", "cover %", "+- %")
    print(f"{'':12} {'':>6} {'':>4} " + f"{'every segment, forward and backward':^52}" + f"{'whole step':^32}")
    print(f"{'board':12} {'clocks':>6} {'new':>4} " + " ".join(f"{c:>8}" for c in columns) + f" {'delta_eff':>9}")
    totals: dict[str, list[np.ndarray[Any, Any]]] = {}
    began = time.perf_counter()
    for name in names or BOARDS:
        device = EmulatedDevice(find(name))
        assert device.clocks is not None
        rows = [row for row in _kernels(device.board, steps) if row[1] in ("forward", "backward") and row[2]]
        every = [row for row in _kernels(device.board, steps) if row[2]]
        timed: dict[float, Timing] = {}
        supported = device.clocks.supported_hz()
        for count in [c for c in COUNTS if c < len(supported)] or [len(supported) // 2 + 1]:
            visited = sorted(choose_clocks(str(count), supported).frequencies_hz)
            for hz in visited:
                if hz not in timed:
                    device.clocks.lock(hz)
                    with device.executing():
                        result = measure(split, device, options)
                        reached = device.current_hz()
                    timed[hz] = Timing(
                        provenance="emulated", frequency_hz=reached, requested_hz=hz, segments=result.segments
                    )
            timings = [timed[hz] for hz in visited]
            base = make_profile("x", "server", layers=split.layers)
            profile = base.model_copy(
                update={"timings": timings, "flops": flops, "hardware": device.describe(), "name": device.name}
            )
            fit = fit_times(profile)
            assert fit is not None
            profile = profile.model_copy(update={"time_fit": fit})
            new = np.array([f for f in supported if f not in visited])
            new = new[:: max(1, len(new) // MOST_NEW)]
            found, truth = predict(profile, new), _truth(device, rows, new)
            place = [(names_of.index(s), DIRECTIONS.index(p)) for s, p, _ in rows]  # type: ignore[arg-type]
            pick = tuple(np.array(place).T)
            median, low, high = found.median_s[pick], found.low_s[pick], found.high_s[pick]
            rng = np.random.default_rng(1)
            # A new measurement: the median of as many rounds, each kernel 3 % different from call to call.
            spread = np.array([_root_square(device, kernels, new) for _, _, kernels in rows]) * 0.03
            again = np.median(truth + spread * rng.standard_normal((ROUNDS, *truth.shape)), axis=0)
            law = np.array([_law(getattr(fit.segments[s], DIRECTIONS[d]), new) for s, d in place])
            straight = _straight(timings, place, new)
            whole = _truth(device, every, new).sum(0)
            errors = {
                "curve": 100 * np.abs(median / truth - 1),
                "law": 100 * np.abs(law / truth - 1),
                "straight": 100 * np.abs(straight / truth - 1),
                "cover": ((low <= again) & (again <= high)).astype(float),
                "half": 50 * (high - low) / median,
                "step": 100 * np.abs(found.step_median_s / whole - 1),
                "step cover": ((found.step_low_s <= whole) & (whole <= found.step_high_s)).astype(float),
                "step half": 50 * (found.step_high_s - found.step_low_s) / found.step_median_s,
            }
            for key, values in errors.items():
                totals.setdefault(key, []).append(values.ravel())
            _print(f"{name:12} {count:6} {len(new):4}", errors, fit.step.flops_per_core_cycle)
    joined = {key: np.concatenate(values) for key, values in totals.items()}
    _print(f"{'all':12} {'':6} {'':4}", joined, None)
    print(f"{time.perf_counter() - began:.0f} s")
    missed = np.median(joined["curve"]) > MEDIAN_PCT or not COVERAGE[0] <= joined["cover"].mean() <= COVERAGE[1]
    if missed:
        print(f"missed: median <= {MEDIAN_PCT} %, coverage {COVERAGE[0]:.0%} to {COVERAGE[1]:.0%}")
    return int(missed)


def _root_square(device: Any, kernels: list[Any], hz: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    cycles, transferred = (np.array([getattr(k, n) for k in kernels]) for n in ("cycles", "bytes"))
    each = [device._physics.kernels(float(f), cycles, transferred)[0] for f in hz]
    return np.array([np.sqrt((seconds**2).sum()) for seconds in each])


def _law(law: Any, hz: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(law.a_s + law.b_cycles / hz)


def _straight(timings: list[Any], place: list[tuple[int, int]], hz: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Straight in 1/f between the visited clocks."""
    x = np.array([-1 / t.frequency_hz for t in timings])
    parts = ("forward", "backward", "optimizer")
    seconds = [[getattr(t.segments[s], parts[d]).median_s for t in timings] for s, d in place]
    return np.array([np.interp(-1 / hz, x, row) for row in seconds])


def _print(head: str, e: dict[str, np.ndarray[Any, Any]], delta: float | None) -> None:
    figures = [
        np.median(e["curve"]),
        e["curve"].max(),
        np.median(e["law"]),
        np.median(e["straight"]),
        100 * e["cover"].mean(),
        np.median(e["half"]),
        np.median(e["step"]),
        e["step"].max(),
        100 * e["step cover"].mean(),
        np.median(e["step half"]),
    ]
    tail = "" if delta is None else f" {delta:9.2f}"
    print(head + " " + " ".join(f"{v:8.2f}" for v in figures) + tail, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
