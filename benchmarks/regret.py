"""What trusting the letter's parameters costs: on an emulated fleet, on the letter's own, and with power curves that were really measured.

    python -m benchmarks.regret FOLDER [--images docs/img]
    python -m benchmarks.regret --power ../shared/data/power

FOLDER holds profiles/ as `python -m benchmarks.fleet FOLDER` makes it; it is made where it is missing (two minutes). Its figures are EMULATED.
--power reads CSV files with the columns device, workload, frequency_mhz, power_w and time_ms or throughput_gflops: each (device, workload) is put
in place of the server's watts, and where it has times of its run against the clock. Only those curves are MEASURED: the fleet around them is
profiles/letter (literature and assumed), with the clock axis stretched so that the highest clock measured is the server's F_max.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.fleet import BOARDS, WORKLOAD, command
from profiler.store import load_fleet
from solver import card, exact
from solver.clocktimes import seconds_over_clock
from solver.costs import Choice, CostModel, Floats, ServerClocks, ServerPower
from solver.extremes import box
from solver.problem import Problem, SolveOptions, pose
from solver.regret.regret import Regret, regret
from solver.regret.report import WORDS, write_plot

LETTER = Path(__file__).resolve().parents[1] / "profiles" / "letter"
WEIGHTS = tuple(round(0.1 * k, 1) for k in range(1, 10))


def made(folder: Path) -> Path:
    """``folder/profiles``, profiled as the README's example where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for board, clocks in BOARDS.items():
        if not (folder / "profiles" / f"emulated-{board}.json").exists():
            command("profile_main", "run", "--device", f"emulated:{board}", "--clocks", clocks, *WORKLOAD, cwd=folder)
            command("profile_main", "fit-power", f"profiles/emulated-{board}.json", cwd=folder)
    return folder / "profiles"


def tell(title: str, found: Regret) -> None:
    """What is lost, how it is shared, and what cannot matter."""
    ideal, trusting = found.belief(0), found.belief(-1)
    print(f"\n{title}: {len(found.ideal.cut)} decisions, truth {', '.join(found.provenance())}")
    for name, at in (("optimum", ideal), ("letter", trusting)):
        print(f"  {name:8} {at['mean_delay_s']:8.3f} s {at['mean_energy_j']:8.2f} J   U {at['mean_cost']:.4f}")
    print(
        f"  lost     {trusting['regret_delay_pct']:+8.1f} % {trusting['regret_energy_pct']:+8.1f} %   U {trusting['regret_cost']:+.4f}; "
        f"cuts flipped {trusting['cuts_flipped']}, other clocks {trusting['clocks_changed']}"
    )
    print(f"  expected {trusting['predicted_delay_s']:8.3f} s {trusting['predicted_energy_j']:8.2f} J")
    print(f"  {'':16}{'share of s':>11}{'of J':>9}{'of U':>9}   {'alone: U':>9}{'mended: U':>10}   expects alone")
    for j, p in enumerate(found.parameters):
        alone, mended = found.alone(j), found.mended(j)
        print(
            f"  {WORDS[p.name]:16}{found.shares['delay_s'][j]:+11.3f}{found.shares['energy_j'][j]:+9.2f}{found.shares['cost'][j]:+9.4f}"
            f"   {alone['regret_cost']:+9.4f}{mended['regret_cost']:+10.4f}   "
            f"{alone['prediction_error_delay_pct']:+7.1f} % of s {alone['prediction_error_energy_pct']:+7.1f} % of J"
        )
    print(f"  changes no decision under any belief: {', '.join(found.powerless()) or 'none'}")


def emulated(folder: Path, images: Path | None) -> None:
    """The fleet of the README, at three weights, over a slow link, and with idle watts counted."""
    fleet = load_fleet(made(folder))
    for w in (0.2, 0.5, 0.8):
        found = regret(fleet, SolveOptions(w=w))
        tell(f"EMULATED fleet, w = {w:g}", found)
        if images is not None and w == 0.2:
            print(f"wrote {write_plot(found, images / 'regret.png')}", file=sys.stderr)
    link = {"uplink_mbps": 20.0, "downlink_mbps": 50.0}
    tell("EMULATED fleet, w = 0.2, 20 and 50 Mbit/s", regret(fleet, SolveOptions(w=0.2, **link)))  # type: ignore[arg-type]
    tell("EMULATED fleet, w = 0.2, idle watts counted", regret(fleet, SolveOptions(w=0.2, count_idle=True)))
    tell("profiles/letter, w = 0.2", regret(load_fleet(LETTER), SolveOptions(w=0.2)))


# ------------------------------------------------------------------------------------------------- measured power curves


@dataclass(frozen=True)
class Curve:
    """Watts and relative times (1 at the highest clock; None: not measured) of one workload at clocks in Hz, ascending."""

    name: str
    frequency_hz: Floats
    power_w: Floats
    relative_time: Floats | None


def curves(path: Path) -> Iterator[Curve]:
    """The (device, workload) curves of a CSV file."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault((row["device"], row["workload"]), []).append(row)
    for (device, workload), rows in groups.items():
        rows.sort(key=lambda r: float(r["frequency_mhz"]))
        hz, watts = (np.array([float(r[c]) for r in rows]) for c in ("frequency_mhz", "power_w"))
        times = None
        if rows[0].get("time_ms"):
            times = np.array([float(r["time_ms"]) for r in rows])
        elif rows[0].get("throughput_gflops"):
            times = 1 / np.array([float(r["throughput_gflops"]) for r in rows])
        if len(hz) > 2 and len(set(hz)) == len(hz):
            yield Curve(f"{device}: {workload}", hz * 1e6, watts, None if times is None else times / times[-1])


@dataclass(frozen=True)
class Loss:
    """Means over the fleet of one (curve, w): percent, percent, U, decisions with another cut, letter's clock over the best one."""

    delay_pct: float
    energy_pct: float
    cost: float
    cuts_flipped: int
    clock_ratio: float


def lost(problem: Problem, truth: CostModel, clocks: ServerClocks, w: float) -> Loss:
    """What Algorithm 1 in the letter's model loses against the joint optimum of ``truth``."""
    places = problem.places
    optimal_hz = card.optimal_clock(problem.letter, places, clocks, w, problem.xi_w_per_hz3)
    extremes, _ = box(truth, places, clocks, optimal_hz)
    best = exact.choose(truth, places, clocks, *extremes.weights(w))
    letter = card.choose(problem.letter, places, clocks, w, problem.xi_w_per_hz3)

    def price(choice: Choice) -> tuple[float, float, float]:
        costs = truth.at(places.device, places.uplink_bps, places.downlink_bps, choice.cut_index, choice.frequency_hz)
        assert costs.energy_j is not None
        cost = extremes.cost(w, costs.delay_s, costs.energy_j)
        return float(costs.delay_s.mean()), float(costs.energy_j.mean()), float(cost.mean())

    (d0, e0, u0), (d1, e1, u1) = price(best), price(letter)
    flipped = int((best.cut_index != letter.cut_index).sum())
    ratio = float((letter.frequency_hz / best.frequency_hz).mean())
    return Loss(100 * (d1 / d0 - 1), 100 * (e1 / e0 - 1), u1 - u0, flipped, ratio)


def measured(folder: Path) -> None:
    """The loss by the shape of really measured power curves, for every weight of `WEIGHTS`."""
    problem = pose(load_fleet(LETTER), SolveOptions(compression=0.1))
    server, top = problem.server, problem.clocks.f_max_hz
    print(
        "MEASURED watts (and times where said) in place of the server's; the fleet around them is profiles/letter (literature, assumed).\n"
        f"w = {WEIGHTS[0]:g} to {WEIGHTS[-1]:g}, {len(problem.devices)} devices. Medians (90th percentile) over (curve, w)."
    )
    print(
        f"{'set':15}{'curves':>7}{'':3}{'wrong':12}{'U lost':>17}{'delay %':>17}{'energy %':>17}{'cuts flipped':>13}{'clock/best':>11}"
    )
    for path in sorted(folder.glob("*.csv")):
        shape, both = [], []
        count = 0
        for curve in curves(path):
            count += 1
            hz = curve.frequency_hz / curve.frequency_hz[-1] * top
            clocks = ServerClocks(float(hz[0]), top, hz)
            power = ServerPower.table(hz.tolist(), curve.power_w.tolist())
            truth = replace(problem.letter, server_power=power)
            shape += [lost(problem, truth, clocks, w) for w in WEIGHTS]
            if curve.relative_time is not None:
                seconds = problem.letter.server_s(np.array([top])) * curve.relative_time
                truth = replace(truth, server_time=seconds_over_clock(server, hz, seconds, frozenset()))
                both += [lost(problem, truth, clocks, w) for w in WEIGHTS]
        for wrong, rows in (("cubic law", shape), ("and 1/f", both)):
            if rows:
                print(f"{path.stem:15}{count:>7}   {wrong:12}{_row(rows, len(problem.devices))}")


def _row(rows: list[Loss], devices: int) -> str:
    def spread(values: list[float], digits: int) -> str:
        middle, most = np.percentile(values, [50, 90])
        return f"{middle:+.{digits}f} ({most:+.{digits}f})".rjust(17)

    flipped = 100 * sum(r.cuts_flipped for r in rows) / (devices * len(rows))
    ratio = float(np.median([r.clock_ratio for r in rows]))
    return (
        spread([r.cost for r in rows], 3)
        + spread([r.delay_pct for r in rows], 1)
        + spread([r.energy_pct for r in rows], 1)
        + f"{flipped:11.1f} %{ratio:11.2f}"
    )


def main() -> int:
    """Print the figures of docs/regret.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="the emulated fleet's folder (made where it is missing)")
    parser.add_argument("--images", type=Path, help="write regret.png into this folder")
    parser.add_argument("--power", type=Path, help="a folder of measured power sweeps as CSV")
    options = parser.parse_args()
    if options.folder is None and options.power is None:
        parser.error("expected FOLDER, --power or both")
    if options.folder is not None:
        emulated(options.folder.resolve(), options.images)
    if options.power is not None:
        measured(options.power)
    return 0


if __name__ == "__main__":
    sys.exit(main())
