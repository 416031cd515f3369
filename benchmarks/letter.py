"""The letter's simulation beside ours: everything that docs/letter.md states.

    python -m benchmarks.letter [--rounds N] [--output DIR]

The claims with their verdicts, the sets nearest to the headline pair and what it depends on come from `solver.letter.reproduce.reproduce`, as
``card-solve reproduce --search`` prints them. The rest is one line each.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from profiler.profile import Profile
from solver.letter.figures import print_report, write_plots, write_tables
from solver.letter.fleet import AS_PUBLISHED, XI_W_PER_HZ3, profiles
from solver.letter.reproduce import Reproduction, reproduce
from solver.letter.sets import CARD, CLOCK_RULES, DEVICE_ONLY, SERVER_ONLY, STATES
from solver.scenario import SolveOptions, solve


def by_f_min(result: Reproduction) -> None:
    """The pair, cuts and clocks while F_min alone moves from the stated set."""
    print("\nF_min GHz    delay   energy   mean cuts of devices 1-5      clocks GHz")
    for row in result.conditions:
        if row["swept"] == "f_min_ghz" and round(100 * row["value"]) % 10 == 0 and row["value"] < 1.45:
            cuts = " ".join(f"{c:.3g}" for c in row["mean_cuts"])
            hz = " ".join(f"{f / 1e9:.2f}" for f in row["mean_frequency_hz"])
            saved = (row["delay_reduction_vs_device_only_pct"], row["energy_reduction_vs_server_only_pct"])
            print(f"{row['value']:9.1f}  {saved[0]:5.1f} %  {saved[1]:5.1f} %   {cuts:28}  {hz}")
    higher = [r["value"] for r in result.conditions if r["swept"] == "f_min_ghz" and r["weaker_device_higher_clock"]]
    print(f"F_min at which a weaker device gets the higher clock: {higher or 'none'}")


def by_channel(result: Reproduction) -> None:
    """Where the cut of some device changes from round to round."""
    for swept, words in (
        ("uplink_mbps", "mean uplink in Mbit/s, downlink in proportion"),
        ("smashed_growth", "S(31)/S(1) - 1"),
    ):
        rows = [r for r in result.conditions if r["swept"] == swept]
        for least in (1, 2, 3):
            hit = [r["value"] for r in rows if r["devices_whose_cut_changes"] >= least]
            span = f"{min(hit):.3g} to {max(hit):.3g}" if hit else "never"
            print(f"cuts of {least} device(s) or more change over the rounds, {words}: {span}")


def adapters_share(result: Reproduction) -> None:
    """How much of CARD's mean delay the channel can make depend on the cut."""
    for state, solution in result.solutions.items():
        costs = solution.baselines[DEVICE_ONLY].costs
        print(
            f"{state}: adapters of 31 layers take {costs.adapters_s.mean():.3f} s of {costs.delay_s.mean():.1f} s (device-only)"
        )


def with_xi(fleet: list[Profile], xi: float) -> tuple[float, float, float]:
    """The pair and CARD's mean energy in J under another xi, state normal."""
    fit = fleet[0].power_fit
    assert fit is not None
    other = [fleet[0].model_copy(update={"power_fit": fit.model_copy(update={"xi_w_per_hz3": xi})}), *fleet[1:]]
    solution = solve(other, SolveOptions(method=CARD, channel="normal"))
    summary = solution.summary()
    keys = ("delay_reduction_vs_device_only_pct", "energy_reduction_vs_server_only_pct", "mean_energy_j")
    return tuple(float(summary[key] or 0) for key in keys)  # type: ignore[return-value]


def examples(result: Reproduction) -> None:
    """What is decided (round 1, state normal) where a claim holds that does not hold at the stated set."""
    for tested in result.tested:
        if tested.example is not None:
            cuts, hz = tested.example["cuts"], [round(f / 1e9, 2) for f in tested.example["frequency_hz"]]
            print(
                f"{tested.claim.name}: e.g. cuts {cuts}, clocks {hz} GHz, F_min {tested.example['f_min_ghz']:.2f} GHz"
            )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, help="write the figures' CSV and PNG into this folder")
    given = parser.parse_args()
    fleet = profiles()
    result = reproduce(fleet, rounds=given.rounds, full_search=True)
    print_report(result, Console(width=170))
    if given.output is not None:
        write_tables(result, given.output)
        write_plots(result, given.output)
    examples(result)
    by_f_min(result)
    print()
    by_channel(result)
    adapters_share(result)
    print()
    for rule in CLOCK_RULES:
        delay, energy = result.at_clock(rule)
        print(f"stated set, benchmarks at {rule:6} clock: {delay:6.1f} % and {energy:6.1f} %")
    delay, energy = result.outcome.pair_pct("mean of ratios")
    print(f"stated set, mean of ratios:           {delay[0]:6.1f} % and {energy[0]:6.1f} %")
    for state, solution in result.solutions.items():
        figures = solution.summary()
        print(f"stated set, {state:6}: {figures['delay_reduction_vs_device_only_pct']:.1f} % and "
              f"{figures['energy_reduction_vs_server_only_pct']:.1f} %")  # fmt: skip
    published = reproduce(profiles(AS_PUBLISHED), rounds=given.rounds, draw=1024)
    delay, energy = published.outcome.pair_pct()
    cuts = published.outcome.cut[0].mean((0, 1))
    print(f"\n16 layers as Llama 3.2 1B has: {delay[0]:.1f} % and {energy[0]:.1f} %, mean cuts {cuts}")
    for found in published.found:
        print(f"  {found.name}: {found.delay_pct:.1f} % and {found.energy_pct:.1f} %, {found.distance_points:.2f} off")
    for xi in (XI_W_PER_HZ3, XI_W_PER_HZ3 / 10):
        delay_pct, energy_pct, joules = with_xi(fleet, xi)
        print(
            f"xi {xi:g}: {xi * 2.46e9**3:.0f} W at F_max, {delay_pct:.4f} % and {energy_pct:.4f} %, {joules:.1f} J a round"
        )
    outcome = result.outcome
    like = outcome.energy_j[CARD].mean() / outcome.energy_j[DEVICE_ONLY].mean()
    ends = outcome.energy_j[SERVER_ONLY].mean() / outcome.energy_j[DEVICE_ONLY].mean()
    print(f"server-only takes {ends:.1f} times the energy of device-only at the same clocks, CARD {like:.1f} times")
    card, exact = (
        solve(fleet, replace(SolveOptions(rounds=given.rounds), method=m)).decisions.cost.mean()
        for m in (CARD, "exact")
    )
    print(f"mean U, state normal: card {card:.9f}, exact joint optimum {exact:.9f}")
    long = [solve(fleet, SolveOptions(method=CARD, channel=state, rounds=5000)).decisions.cut for state in STATES]
    moved = sum(int((cut.reshape(5000, -1) != cut[: len(fleet) - 1]).any(axis=0).sum()) for cut in long)
    print(f"devices whose cut changes in 5,000 rounds of the stated set, over the three states: {moved}")


if __name__ == "__main__":
    main()
