"""The letter's headline pair, 70.8 % and 53.1 %, beside ours under stated assumptions.

    python -m benchmarks.letter [--rounds N]

Delay is compared with device-only, the server's energy with server-only, both at the clock that CARD chose for that device and
round. The letter gives neither F_min nor the rates nor the clock of its benchmarks: the table shows what the pair does when
the first two move, and the last lines what it would be with the benchmarks at F_max.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from profiler.store import load_fleet
from solver.scenario import Solution, SolveOptions, solve

LETTER_PCT = (70.8, 53.1)
FOLDER = Path(__file__).resolve().parents[1] / "profiles" / "letter"


def pair(solution: Solution) -> tuple[float, float]:
    """Delay saved against device-only and energy saved against server-only, in percent."""
    summary = solution.summary()
    delay = summary["delay_reduction_vs_device_only_pct"]
    energy = summary["energy_reduction_vs_server_only_pct"]
    assert delay is not None
    assert energy is not None
    return delay, energy


def at_top_clock(solution: Solution) -> tuple[float, float]:
    """The same pair with both benchmarks run at F_max."""
    ours, link = solution.decisions, solution.problem.rates
    rounds, count = link.uplink_bps.shape
    device = np.tile(np.arange(count), rounds)

    def means(index: int) -> tuple[float, float]:
        top = np.full(len(device), solution.problem.clocks.f_max_hz)
        costs = solution.problem.evaluated.at(device, link.uplink_bps.ravel(), link.downlink_bps.ravel(), index, top)
        assert costs.energy_j is not None
        return float(costs.delay_s.mean()), float(costs.energy_j.mean())

    delay, energy = ours.mean_delay_s(), ours.mean_energy_j()
    assert delay is not None
    assert energy is not None
    return 100 * (1 - delay / means(solution.problem.evaluated.cuts - 1)[0]), 100 * (1 - energy / means(0)[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="rounds; more than one fade")
    rounds = parser.parse_args().rounds
    fleet = load_fleet(FOLDER)
    print(f"profiles/letter, --method card, {rounds} round(s); the letter: {LETTER_PCT[0]} % and {LETTER_PCT[1]} %\n")
    print("F_min GHz  channel   cuts of devices 1-5     clocks GHz    delay vs device-only  energy vs server-only")
    shipped = None
    for f_min in (None, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5):
        for channel in ("good", "normal", "poor") if f_min is None else ("normal",):
            solution = solve(
                fleet, SolveOptions(method="card", channel=channel, f_min_ghz=f_min, rounds=rounds, seed=0)
            )
            shipped = solution if (f_min, channel) == (None, "normal") else shipped
            cuts = solution.decisions.cut.reshape(rounds, -1)
            shown = " ".join(f"{int(np.median(column)):2d}" for column in cuts.T)
            hz = solution.decisions.frequency_hz / 1e9
            delay, energy = pair(solution)
            label = f"{solution.problem.clocks.f_min_hz / 1e9:.1f}{' *' if f_min is None else '  '}"
            print(
                f"  {label:8} {channel:8}  {shown:22}  {hz.min():.2f}-{hz.max():.2f}  {delay:17.1f} %  {energy:20.1f} %"
            )
    assert shipped is not None
    delay, energy = at_top_clock(shipped)
    print("\n* as shipped (F_min is assumed)")
    print(f"with both benchmarks at F_max instead of CARD's clock: {delay:.1f} % and {energy:.1f} %")
    card, exact = (solve(fleet, SolveOptions(method=m)).decisions.cost.mean() for m in ("card", "exact"))
    print(f"mean U: card {card:.6f}, exact joint optimum {exact:.6f}")
    print(
        f"assumptions: {len(shipped.assumptions)} quantities, listed by 'card-solve --profiles profiles/letter --json'"
    )


if __name__ == "__main__":
    main()
