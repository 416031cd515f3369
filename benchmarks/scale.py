"""A million decisions: time and memory of Algorithm 1 and of the exact optimum, beside the plain loop over lists.

    python -m benchmarks.scale [--decisions 1000000] [--dask]

The fleet is made up (10 devices, unequal layers and sizes, log-uniform rates; nothing measured), for only the amount of work matters
here. Each row runs in a process of its own, so that its memory is its own; loop and arrays take turns in one process. "choose" is cuts and clocks
from rates; "decide" adds the extremes, delay and energy of each decision and both benchmarks. The answers are compared: every cut of the
loop's, and every exact cost with brute force over all cuts and clocks on a sample.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from solver import card, exact
from solver.clocktimes import ServerTime
from solver.costs import CostModel, Places, ServerClocks, ServerPower
from solver.extremes import box
from solver.letter.fleet import profiles as own_fleet
from solver.problem import SolveOptions, pose
from tests.solver.reference import algorithm_1_fleet

XI, W, F_MIN_HZ, F_MAX_HZ = 1e-25, 0.2, 0.7e9, 2.46e9
DEVICES = 10


def fleet(decisions: int, cuts: int, clocks: int) -> tuple[CostModel, Places, ServerClocks]:
    """The letter's kind of model (``clocks`` 0), or times a + b/f and a table of watts at many clocks."""
    rng = np.random.default_rng(7)
    work = rng.uniform(0.7, 1.3, cuts + 1)
    speed = np.geomspace(0.1, 2.0, DEVICES)[:, None]
    compute = 10 * np.cumsum(work)[:-1] / work.sum() / speed
    bits = rng.uniform(1e6, 3e7, (2, DEVICES, cuts))
    adapters = np.cumsum(rng.uniform(1e5, 1e6, (DEVICES, cuts)), axis=1)
    cycles = 1e10 * np.cumsum(work[::-1])[::-1][1:] / work.sum()
    name: Any = "profile" if clocks else "letter"
    overhead = (0.1 * cycles / F_MAX_HZ if clocks else 0 * cycles)[:, None]
    hz = np.linspace(F_MIN_HZ, F_MAX_HZ, clocks)
    watts = 20 + 90 * (hz / F_MAX_HZ) * (1 + np.maximum(0, hz / F_MAX_HZ - 0.6)) ** 2 + rng.normal(0, 0.5, clocks)
    power = ServerPower.table(hz, watts) if clocks else ServerPower.cubic(XI)
    time_curve = ServerTime(np.empty(0), overhead, cycles[:, None])
    model = CostModel(name, 5, compute, *bits, adapters, np.zeros(DEVICES), time_curve, power)
    rounds = -(-decisions // DEVICES)
    device = np.tile(np.arange(DEVICES), rounds)[:decisions]
    rates = 10 ** rng.uniform(6.5, 8.5, (2, decisions))
    places = Places(device, *rates, np.ones((DEVICES, cuts), dtype=bool))
    return model, places, ServerClocks(F_MIN_HZ, F_MAX_HZ, hz)


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decide(model: CostModel, places: Places, clocks: ServerClocks) -> None:
    """Choice, extremes, and delay and energy of it and of both benchmarks, as ``card-solve`` has them."""
    f_star = card.optimal_clock(model, places, clocks, W, XI)
    extremes, _ = box(model, places, clocks, f_star)
    if len(clocks.supported_hz):
        choice = exact.choose(model, places, clocks, *extremes.weights(W))
    else:
        choice = card.choose(model, places, clocks, W, XI)
    for cut in (choice.cut_index, 0, model.cuts - 1):
        costs = model.at(places.device, places.uplink_bps, places.downlink_bps, cut, choice.frequency_hz)
        extremes.cost(W, costs.delay_s, costs.energy_j)


def row(decisions: int, cuts: int, clocks: int) -> str:
    """Times and memory of one size: median of five."""
    model, places, listed = fleet(decisions, cuts, clocks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if clocks:
        weights = box(model, places, listed, np.full(decisions, F_MAX_HZ))[0].weights(W)
        chosen = [seconds(lambda: exact.choose(model, places, listed, *weights)) for _ in range(5)]
    else:
        chosen = [seconds(lambda: card.choose(model, places, listed, W, XI)) for _ in range(5)]
    decided = [seconds(lambda: decide(model, places, listed)) for _ in range(3)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    what = f"exact, {clocks} clocks" if clocks else "Algorithm 1"
    return (
        f"{what:18} {decisions:9d} {cuts:5d} {median(chosen):9.3f} {median(decided):9.3f} {peak / 2**20:9.2f} "
        f"{(peak - before) / 2**20:12.2f}"
    )


def letters_fleet(decisions: int) -> tuple[CostModel, Places, ServerClocks]:
    """The letter's five devices and server in its state normal, fading, without the server's listed clocks."""
    rounds = decisions // 5
    problem = pose(own_fleet(), SolveOptions(method="card", channel="normal", rounds=rounds))
    return problem.letter, problem.places, ServerClocks(F_MIN_HZ, F_MAX_HZ, np.empty(0))


def beside_the_loop(name: str, model: CostModel, places: Places, clocks: ServerClocks) -> str:
    """Arrays and loop in turns: how many times faster, and whether every decision is the same."""
    terms = [[tuple(line) for line in model.waiting_terms(m).tolist()] for m in range(len(places.feasible))]
    cycles = model.server_time.b_cycles[:, 0].tolist()
    places_list = list(
        zip(places.device.tolist(), places.uplink_bps.tolist(), places.downlink_bps.tolist(), strict=True)
    )
    fast, slow, answers = [], [], []
    for _ in range(3):
        fast.append(seconds(lambda: answers.append(card.choose(model, places, clocks, W, XI))))
        slow.append(
            seconds(
                lambda: answers.append(algorithm_1_fleet(terms, cycles, places_list, XI, W, F_MIN_HZ, F_MAX_HZ))  # type: ignore[arg-type]
            )
        )
        fast.append(seconds(lambda: card.choose(model, places, clocks, W, XI)))
    same = answers[0].cut_index.tolist() == [cut for cut, _ in answers[1]]
    return (
        f"{name}: plain loop {median(slow):.2f} s, arrays {median(fast):.3f} s: {median(slow) / median(fast):.0f} times as fast; "
        f"all {len(places)} cuts {'the same' if same else 'NOT THE SAME'}"
    )


def against_brute_force(count: int = 2000) -> str:
    """The exact choice against every cut and clock."""
    model, places, clocks = fleet(count, 31, 100)
    by_delay, by_energy = box(model, places, clocks, np.full(count, F_MAX_HZ))[0].weights(W)
    choice = exact.choose(model, places, clocks, by_delay, by_energy)
    every = model.at(
        places.device[:, None, None],
        places.uplink_bps[:, None, None],
        places.downlink_bps[:, None, None],
        np.arange(31)[None, :, None],
        clocks.supported_hz[None, None, :],
    )
    mine = model.at(places.device, places.uplink_bps, places.downlink_bps, choice.cut_index, choice.frequency_hz)
    assert every.energy_j is not None
    assert mine.energy_j is not None
    table = by_delay[:, None, None] * every.delay_s + by_energy[:, None, None] * every.energy_j
    gap = (by_delay * mine.delay_s + by_energy * mine.energy_j) / table.min((1, 2)) - 1
    return f"exact against brute force over 31 cuts x 100 clocks, {count} decisions: largest excess {gap.max():.1e}"


def over_dask(decisions: int) -> str:
    """The same choice here and by two worker processes of this machine."""
    from distributed import LocalCluster

    from solver.methods import Task, choose
    from solver.objective import Objective
    from solver.spread import spread

    model, places, clocks = fleet(decisions, 31, 100)
    task = Task("exact", Objective(W), 32, clocks, fleet(1, 31, 0)[0], model, model, XI)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp", host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        spread(task, places, address)  # the workers import everything
        answers: list[Any] = []
        there = seconds(lambda: answers.append(spread(task, places, address)))
        here = seconds(lambda: answers.append(choose(task, places)))
    same = all(
        np.array_equal(getattr(answers[0].choice, name), getattr(answers[1].choice, name))
        for name in ("cut_index", "frequency_hz")
    )
    return f"Dask, 2 processes: {there:.2f} s, here {here:.2f} s, answers {'equal' if same else 'NOT EQUAL'}"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--dask", action="store_true", help="also over a local Dask cluster")
    parser.add_argument("--row", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(row(*options.row))
        return 0
    n = options.decisions
    print(f"{os.cpu_count()} cores\nmethod             decisions  cuts  choose s  decide s  peak GiB  of it ours GiB")
    sizes = [(n // 4, 31, 0), (n // 2, 31, 0), (n, 31, 0), (2 * n, 31, 0), (n, 300, 0)]
    sizes += [(n // 4, 31, 100), (n // 2, 31, 100), (n, 31, 100), (2 * n, 31, 100), (n // 10, 300, 100)]
    for size in sizes:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", "--row", *map(str, size)],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
        )
        print(done.stdout, end="", flush=True)
    print(beside_the_loop("made-up fleet", *fleet(n, 31, 0)))
    print(beside_the_loop("the letter's fleet", *letters_fleet(n)))
    print(against_brute_force())
    if options.dask:
        print(over_dask(n))
    return 0


if __name__ == "__main__":
    sys.exit(main())
