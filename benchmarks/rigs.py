"""Sweep and fit on emulated machines against their hidden curves: ``python -m benchmarks.rigs [MACHINES] [SCENARIO ...]``.

NVIDIA cards stand behind a C library with NVML's interface, driven by the real nvidia-ml-py; Jetsons are trees of the kernel's
files. Clocks are set by the real helper process; time is virtual. Each scenario is swept at 8 clocks as ``--clocks auto`` would,
and fitted. Its hidden curve, which follows none of the laws fitted, is then compared at every supported clock: where the machine
holds the clock, the watts at that real clock; where its cap, supply or heat holds it down, what it settles at there. The points
themselves are compared with the settled watts at the clock that they were measured at.

MACHINES (default 3): so many cards a scenario, each with its own volts, leakage, heat and load, and so many seeds of a Jetson's
noise. Exits 1 where the median error over the supported clocks of a scenario is above 2 % on any of its machines, or where the
energy counter is not found out in the scenario in which it lies.
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

from profiler.hardware.device import Instruments
from profiler.profile import PowerPoint
from tests.rigs.nvml import CardState, Rig, ada, volta, why_no_rig
from tests.rigs.sysfs import Live, build
from tests.rigs.time import VirtualTime

MEDIAN_PCT = 2.0
_STEP_S = 0.4  # of a Jetson's load


@dataclass(frozen=True)
class Machine:
    """One rig as a scenario sees it: ``step`` runs a load step, ``free`` says that no clock is locked.

    ``settled(hz, holds)``: watts that the machine settles at when asked for this clock, and whether it holds that clock.
    """

    instruments: Instruments
    time: VirtualTime
    step: Callable[[], object]
    settled: Callable[[float], tuple[float, bool]]
    at_clock: Callable[[float], float]
    free: Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """Errors in percent: of the fit over all supported clocks, over those that the machine holds, over those where it is held
    down; of the measured points that nothing held down. ``inside_pct``: how many of the true watts where the clock holds lie in the 95 %
    interval. ``wrong``: what else is not as it should be."""

    all_pct: NDArray[np.float64]
    held_pct: NDArray[np.float64]
    down_pct: NDArray[np.float64]
    point_pct: NDArray[np.float64]
    points: int
    capped: int
    throttled: int
    virtual_s: float
    real_s: float
    inside_pct: float
    wrong: str | None


def main(arguments: list[str]) -> int:
    warnings.simplefilter("ignore")
    machines = int(arguments[0]) if arguments and arguments[0].isdecimal() else 3
    wanted = [name for name in arguments if not name.isdecimal()] or list(SCENARIOS)
    unknown = [name for name in wanted if name not in SCENARIOS]
    if unknown:
        print(f"{unknown[0]!r}: expected some of {', '.join(SCENARIOS)}")
        return 2
    began, failed, ran = time.perf_counter(), 0, 0
    print(
        f"{'scenario':28} {'median %':>8} {'worst %':>8} {'inside':>7} {'held down':>10} {'worst there %':>14} {'points %':>9} {'worst %':>8} "
        f"{'points':>7} {'capped':>7} {'throttled':>10} {'virtual s':>10} {'real s':>7}"
    )
    for name in wanted:
        if name.startswith("nvml") and why_no_rig() is not None:
            print(f"{name:28} skipped: {why_no_rig()}")
            continue
        for seed in range(machines):
            got = scenario(name, seed)
            median = float(np.median(got.all_pct))
            wrong = got.wrong or (
                f"median above {MEDIAN_PCT:g} %" if median > MEDIAN_PCT and name not in _LIARS else None
            )
            ran, failed = ran + 1, failed + (wrong is not None)
            there = f"{got.down_pct.max():14.2f}" if len(got.down_pct) else f"{'':14}"
            print(
                f"{f'{name} {seed}':28} {median:8.2f} {got.held_pct.max():8.2f} {got.inside_pct:5.0f} % "
                f"{100 * len(got.down_pct) / len(got.all_pct):8.0f} % {there} {np.median(got.point_pct):9.2f} "
                f"{got.point_pct.max():8.2f} {got.points:7} {got.capped:7} {got.throttled:10} {got.virtual_s:10.0f} "
                f"{got.real_s:7.1f}  {'PASS' if wrong is None else f'FAIL: {wrong}'}",
                flush=True,
            )
    verdict = "PASS" if ran and not failed else "FAIL" if failed else "nothing ran"
    print(
        f"{verdict}: {ran - failed} of {ran} machines within {MEDIAN_PCT:g} % (median over the supported clocks), "
        f"{time.perf_counter() - began:.0f} s"
    )
    return int(failed > 0)


def scenario(name: str, seed: int, clocks: str = "auto", taught: bool = True) -> Outcome:
    """One machine of one scenario, from the empty profile to the errors of the fit."""
    from profiler.hardware.gpu import GpuDevice
    from profiler.power.fit import fit_sweep
    from profiler.power.kriged import teach_most
    from profiler.power.source import scatter_w
    from profiler.power.sweep import choose_clocks, run_sweep

    began = time.perf_counter()
    with SCENARIOS[name](seed) as machine:
        device = GpuDevice(machine.instruments, None)
        assert device.clocks is not None, device.absent.reasons
        supported = device.clocks.supported_hz()
        start_s = machine.time.now_s()
        with device.clocks.held():
            block = run_sweep(
                device,
                lambda: contextlib.nullcontext(device.load(machine.step)),
                choose_clocks(clocks, supported),
                load_name="step",
                teach=teach_most if taught else None,
            ).block
        assert machine.free(), "the clocks did not come back"
        virtual_s = machine.time.now_s() - start_s
        points = [point for point in block.points if not point.throttled]
        fitted = fit_sweep(
            [point.frequency_hz for point in points],
            [point.power_w for point in points],
            capped=[point.capped for point in points],
            sd_w=scatter_w(points, block.repeated),
            domain_hz=(supported[0], supported[-1]),
            supported_hz=supported,
        )
        errors, held, inside = [], [], []
        for hertz in supported:
            watts, holds = machine.settled(hertz)
            predicted, low, high = (
                float(np.interp(hertz, fitted.frequency_hz, row))
                for row in (fitted.power_w, fitted.low_w, fitted.high_w)
            )
            if holds:
                inside.append(low <= watts <= high)
            errors.append(100 * abs(predicted / watts - 1))
            held.append(holds)
        plain = [point for point in points if not point.capped]
        point_pct = [100 * abs(point.power_w / machine.at_clock(point.frequency_hz) - 1) for point in plain]
    all_pct, holding = np.array(errors), np.array(held)
    return Outcome(
        all_pct=all_pct,
        held_pct=all_pct[holding],
        down_pct=all_pct[~holding],
        point_pct=np.array(point_pct),
        points=len(block.points),
        capped=sum(point.capped for point in block.points),
        throttled=sum(point.throttled for point in block.points),
        virtual_s=virtual_s,
        real_s=time.perf_counter() - began,
        inside_pct=100 * float(np.mean(inside)),
        wrong=_verdicts(block.points, name in _LIARS),
    )


def _verdicts(points: list[PowerPoint], lies: bool) -> str | None:
    """What is wrong with the points' verdicts on counter and sensor."""
    disagree = sum(point.agreement == "disagree" for point in points)
    if lies and disagree < len(points):
        return f"{len(points) - disagree} points do not say that counter and sensor disagree"
    if not lies and disagree:
        return f"{disagree} points say that counter and sensor disagree"
    return None


# ---------------------------------------------------------------------------------------------------------------- NVML


def _varied(base: Callable[[], CardState], seed: int) -> CardState:
    """Another card of the same kind, with neither cap nor heat limit; seed 0 is the card as it is."""
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


def _liar(seed: int) -> CardState:
    card = _plain(seed)
    card.energy_bias = 0.08
    return card


def _no_counter(seed: int) -> CardState:
    card = _plain(seed)
    card.no_energy = card.no_instant = 1
    return card


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


@contextlib.contextmanager
def _nvml(card: CardState, limit: str | None = None) -> Iterator[Machine]:
    """A card; ``limit`` (its field) is set so that it binds over a third of the supported clocks."""
    from profiler.hardware.nvml import NvmlCard

    with tempfile.TemporaryDirectory(prefix="card-rig-") as folder, contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(Path(folder), [card]))
        passed_on = {key: rig.environment[key] for key in ("RIG_NVML_STATE", "LD_LIBRARY_PATH")}
        stack.enter_context(_environment({**passed_on, "CARD_STATE_DIR": str(Path(folder) / "state")}))
        if limit is not None:
            curve = rig.true_curve()
            binding = curve[2 * len(curve) // 3]
            setattr(rig.card(), limit, binding.power_w if limit == "cap_w" else binding.temperature_c)

        def settled(hertz: float) -> tuple[float, bool]:
            truth = rig.truth(hertz)
            holds = rig.held(truth)
            return truth.power_w if holds else rig.settled(hertz)[0], holds

        yield Machine(
            instruments=NvmlCard(rig.uuid(), time=rig.time),
            time=rig.time,
            step=rig.step,
            settled=settled,
            at_clock=lambda hertz: rig.truth(hertz).power_w,
            free=lambda: rig.locked_mhz() is None,
        )


# --------------------------------------------------------------------------------------------------------------- Jetson


@contextlib.contextmanager
def _jetson(board: str, seed: int, limit: str | None = None) -> Iterator[Machine]:
    """A tree of a board; ``limit`` (of ``Live``) is set so that it binds over a third of the supported clocks."""
    from profiler.hardware.jetson import find_jetson

    with tempfile.TemporaryDirectory(prefix="card-rig-") as folder, contextlib.ExitStack() as stack:
        tree = Path(folder) / "tree"
        build(tree, board)
        state = str(Path(folder) / "state")
        stack.enter_context(_environment({"CARD_SYSFS_ROOT": str(tree), "CARD_STATE_DIR": state}))
        rig = Live(tree, seed=seed + 1)
        virtual = VirtualTime(rig.advance)
        instruments = find_jetson(tree, time=virtual)
        assert instruments is not None
        assert instruments._figure is not None
        rails = tuple(rail.label for rail in instruments._figure.rails)
        clocks = instruments.supported_hz()
        limits: dict[str, float] = {}
        if limit is not None:
            binding = rig.steady(clocks[2 * len(clocks) // 3])
            limits[limit] = binding.temperature_c if limit == "throttle_c" else 0.995 * binding.module_w
            for name, value in limits.items():
                setattr(rig, name, value)

        def settled(hertz: float) -> tuple[float, bool]:
            truth = rig.steady(hertz)
            if truth.temperature_c < rig.throttle_c and truth.module_w < (rig.supply_w or 1e9):
                return rig.steady_w(hertz, rails), True
            return _held_down(board, hertz, limits), False

        yield Machine(
            instruments=instruments,
            time=virtual,
            step=lambda: virtual.elapse(_STEP_S, busy=True),
            settled=settled,
            at_clock=lambda hertz: rig.steady_w(hertz, rails),
            free=lambda: (rig.node / "max_freq").read_text().strip() == f"{clocks[-1]:.0f}",
        )


def _held_down(board: str, hertz: float, limits: dict[str, float]) -> float:
    """Mean watts of a board of this kind locked at ``hertz`` once its limits hold it where they hold it, by its own rails."""
    from profiler.hardware.jetson import find_jetson

    with tempfile.TemporaryDirectory(prefix="card-rig-") as folder:
        build(Path(folder), board)
        rig = Live(Path(folder), **limits)  # type: ignore[arg-type]
        for name in ("min_freq", "max_freq"):
            (rig.node / name).write_text(f"{hertz:.0f}\n")
        virtual = VirtualTime(rig.advance)
        instruments = find_jetson(Path(folder), time=virtual)
        assert instruments is not None
        virtual.elapse(8 * rig.heat_s, busy=True)
        with virtual.watching(instruments.read, 0.1) as readings:
            virtual.elapse(60.0, busy=True)
    return float(np.mean([reading.power_w for reading in readings]))


SCENARIOS: dict[str, Callable[[int], contextlib.AbstractContextManager[Machine]]] = {
    "nvml plain": lambda seed: _nvml(_plain(seed)),
    "nvml ridge": lambda seed: _nvml(_ridge(seed)),
    "nvml cap": lambda seed: _nvml(_plain(seed), "cap_w"),
    "nvml heat": lambda seed: _nvml(_plain(seed), "slowdown_c"),
    "nvml approximate lock": lambda seed: _nvml(_approximate(seed)),
    "nvml no energy counter": lambda seed: _nvml(_no_counter(seed)),
    "nvml lying counter": lambda seed: _nvml(_liar(seed)),
    "orin-agx plain": lambda seed: _jetson("orin-agx-jp6", seed),
    "orin-nano plain": lambda seed: _jetson("orin-nano-jp6", seed),
    "xavier-nx plain": lambda seed: _jetson("xavier-nx-jp5", seed),
    "tx2 plain": lambda seed: _jetson("tx2-jp4", seed),
    "orin-agx heat": lambda seed: _jetson("orin-agx-jp6", seed, "throttle_c"),
    "xavier-nx heat": lambda seed: _jetson("xavier-nx-jp5", seed, "throttle_c"),
    "orin-agx over-current": lambda seed: _jetson("orin-agx-jp6", seed, "supply_w"),
}
_LIARS = ("nvml lying counter",)
"""Whose counter tells 8 % too much; there the watts are wrong, and every point has to say so."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
