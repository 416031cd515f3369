"""Sweep and fit on emulated cards against their hidden curves: ``python -m benchmarks.rigs [MACHINES] [SCENARIO ...]``.

The cards stand behind a C library with NVML's interface, driven by the real nvidia-ml-py; clocks are set by the real helper
process; time is virtual. Each scenario is swept at 8 clocks as ``--clocks auto`` would, and fitted. Its hidden curve, which
follows none of the laws fitted, is then compared at every supported clock: where the card holds the clock, the watts at that
real clock; where its cap or heat holds it down, what it settles at there.

MACHINES (default 3): so many cards a scenario, each with its own volts, leakage, heat and load. Exits 1 where the median error
over the supported clocks of a scenario is above 2 % on any of its machines.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.rigs.nvml import CardState, Rig, ada, volta, why_no_rig

MEDIAN_PCT = 2.0


@dataclass(frozen=True)
class Outcome:
    """Errors in percent: over all supported clocks, over those that the card holds, over those where it is held down."""

    all_pct: NDArray[np.float64]
    held_pct: NDArray[np.float64]
    down_pct: NDArray[np.float64]
    points: int
    capped: int
    throttled: int
    virtual_s: float
    real_s: float


def main(arguments: list[str]) -> int:
    warnings.simplefilter("ignore")
    if why_no_rig() is not None:
        print(f"skipped: {why_no_rig()}")
        return 0
    machines = int(arguments[0]) if arguments and arguments[0].isdigit() else 3
    wanted = [name for name in arguments if not name.isdigit()] or list(NVML)
    missed = False
    print(
        f"{'scenario':26} {'median %':>9} {'worst %':>8} {'held down':>10} {'worst there %':>14} {'points':>7} {'capped':>7} "
        f"{'throttled':>10} {'virtual s':>10} {'real s':>7}"
    )
    for name in wanted:
        for seed in range(machines):
            got = nvml_scenario(name, seed)
            median = float(np.median(got.all_pct))
            missed = missed or median > MEDIAN_PCT
            there = f"{got.down_pct.max():14.2f}" if len(got.down_pct) else f"{'':14}"
            print(
                f"{f'nvml {name} {seed}':26} {median:9.2f} {got.held_pct.max():8.2f} "
                f"{100 * len(got.down_pct) / len(got.all_pct):8.0f} % {there} {got.points:7} {got.capped:7} "
                f"{got.throttled:10} {got.virtual_s:10.0f} {got.real_s:7.1f}  {'FAIL' if median > MEDIAN_PCT else 'PASS'}",
                flush=True,
            )
    if missed:
        print(f"missed: median <= {MEDIAN_PCT} % over the supported clocks")
    return int(missed)


# ---------------------------------------------------------------------------------------------------------------- NVML


def _varied(base: Callable[[], CardState], seed: int) -> CardState:
    """Another card of the same kind; seed 0 is the card as it is."""
    card, draw = base(), random.Random(seed)
    if seed:
        spread = {"farad_w": 0.25, "leak_w": 0.5, "leak_per_v": 0.4, "leak_per_c": 0.5, "board_w": 0.4, "memory_w": 0.4}
        spread |= {"supply_ohm": 0.5, "gcycles": 0.4, "memory_s": 0.6, "gated": 0.4, "fast_s": 0.5, "slow_s": 0.5}
        for name, share in spread.items():
            setattr(card, name, getattr(card, name) * (1 + draw.uniform(-share, share)))
        card.random = draw.getrandbits(62) | 1
        for i in range(1, card.volt_count - 1):
            low, high = card.volt_mhz[i - 1], card.volt_mhz[i + 1]
            card.volt_mhz[i] += draw.uniform(-0.2, 0.2) * min(card.volt_mhz[i] - low, high - card.volt_mhz[i])
    card.cap_w, card.slowdown_c = 1000.0, 200.0
    return card


def _plain(seed: int) -> CardState:
    return _varied(ada, seed)


def _ridge(seed: int) -> CardState:
    return _varied(volta, seed)


def _approximate(seed: int) -> CardState:
    card = _plain(seed)
    card.approximate_mhz = 30.0
    return card


def _no_counter(seed: int) -> CardState:
    card = _plain(seed)
    card.no_energy = card.no_instant = 1
    return card


NVML: dict[str, tuple[Callable[[int], CardState], str | None]] = {
    "plain": (_plain, None),
    "ridge": (_ridge, None),
    "cap": (_plain, "cap_w"),
    "heat": (_plain, "slowdown_c"),
    "approximate lock": (_approximate, None),
    "no energy counter": (_no_counter, None),
}
"""Card and limit; the limit is set so that it binds over a third of the supported clocks."""


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def nvml_scenario(name: str, seed: int, clocks: str = "auto") -> Outcome:
    """One machine of one scenario, from the empty profile to the errors of the fit."""
    from profiler.hardware.gpu import GpuDevice
    from profiler.hardware.nvml import NvmlCard
    from profiler.power.fit import fit_sweep
    from profiler.power.sweep import choose_clocks, run_sweep

    build, limit = NVML[name]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="card-rig-") as folder, contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(Path(folder), [build(seed)]))
        passed_on = {key: rig.environment[key] for key in ("RIG_NVML_STATE", "LD_LIBRARY_PATH")}
        stack.enter_context(_environment({**passed_on, "CARD_STATE_DIR": str(Path(folder) / "state")}))
        if limit is not None:
            curve = rig.true_curve()
            binding = curve[2 * len(curve) // 3]
            setattr(rig.card(), limit, binding.power_w if limit == "cap_w" else binding.temperature_c)
        device = GpuDevice(NvmlCard(rig.uuid(), time=rig.time), None)
        assert device.clocks is not None, device.absent.reasons
        supported = device.clocks.supported_hz()
        start_s = rig.time.now_s()
        with device.clocks.held():
            block = run_sweep(
                device,
                lambda: contextlib.nullcontext(device.load(rig.step)),
                choose_clocks(clocks, supported),
                load_name="step",
            ).block
        assert rig.locked_mhz() is None, "the clocks did not come back"
        virtual_s = rig.time.now_s() - start_s
        points = [point for point in block.points if not point.throttled]
        fitted = fit_sweep(
            [point.frequency_hz for point in points],
            [point.power_w for point in points],
            capped=[point.capped for point in points],
            domain_hz=(supported[0], supported[-1]),
            supported_hz=supported,
        )
        errors, held = [], []
        for truth in rig.true_curve():
            holds = rig.held(truth)
            watts = truth.power_w if holds else rig.settled(truth.frequency_hz)[0]
            predicted = float(np.interp(truth.frequency_hz, fitted.frequency_hz, fitted.power_w))
            errors.append(100 * abs(predicted / watts - 1))
            held.append(holds)
    all_pct, holding = np.array(errors), np.array(held)
    return Outcome(
        all_pct=all_pct,
        held_pct=all_pct[holding],
        down_pct=all_pct[~holding],
        points=len(block.points),
        capped=sum(point.capped for point in block.points),
        throttled=sum(point.throttled for point in block.points),
        virtual_s=virtual_s,
        real_s=time.perf_counter() - began,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
