"""What a decision taken at the start of a round loses when the channel moves inside it, and what re-cutting wins.

    python -m benchmarks.adaptive [FOLDER] [--image docs/img/within-a-round.png]

Three fleets: the letter's (assumed figures), Llama 3.2 1B and T5-Large between an emulated RTX 4060 Ti and emulated Jetsons (made
with `card-profile run` into FOLDER, five minutes, unless they are there). Rounds of 5 and 20 mini-batches, a new channel for each
mini-batch. All figures are means over devices and rounds; losses are beside the one cut that is best for the whole round in hindsight.
Also prints how long rates take: a million from a state, a million rows of a trace.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet import command
from profiler.profile import Profile
from profiler.store import load_fleet
from solver.adaptive import POLICIES, Followed, follow
from solver.channel import Channel, rates
from solver.figures import COLOURS, new_figure, save
from solver.problem import SolveOptions

LETTER = Path(__file__).resolve().parents[1] / "profiles" / "letter"
BOARDS = {"rtx-4060ti": "10", "orin-agx": "6", "orin-nano": "5"}
MODELS = {"llama": "llama-3.2-1b", "t5": "t5-large"}
SLOW = Channel(uplink_bandwidth_hz=20e6, downlink_bandwidth_hz=20e6, gain_db=-100.0)
CORRELATIONS = (0.0, 0.5, 0.9, 0.99)
SHOWN = ("start", "mean", "adaptive", "best", "free")


def fleets(folder: Path) -> dict[str, list[Profile]]:
    """The three fleets, the emulated ones made where they are missing."""
    found = {"letter": load_fleet(LETTER)}
    for name, model in MODELS.items():
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        missing = [board for board in BOARDS if not (own / "profiles" / f"emulated-{board}.json").exists()]
        for board in missing:
            workload = ["--model", model, "--dtype", "bfloat16", "--batch-size", "2", "--clocks", BOARDS[board]]
            command("profile_main", "run", "--device", f"emulated:{board}", *workload, cwd=own)
        if missing:
            command("profile_main", "fit-power", "--json", cwd=own)
        found[name] = load_fleet(own / "profiles")
    return found


def row(label: str, found: Followed) -> None:
    """One line: U at the clairvoyant, U lost by each policy, delay and energy of `start` and `adaptive`, re-cuts."""
    at = {name: found.summary(name) for name in POLICIES}
    lost = " ".join(f"{at[name]['cost_loss']:+8.4f}" for name in SHOWN)
    start, rule = at["start"], at["adaptive"]
    print(
        f"{label:34} {at['clairvoyant']['mean_cost']:6.3f} {lost}   {start['delay_loss_pct']:+6.1f} {start['energy_loss_pct']:+7.1f}"
        f"   {rule['delay_loss_pct']:+6.1f} {rule['energy_loss_pct']:+7.1f}   {rule['recuts_per_round']:5.2f} {at['best']['recuts_per_round']:5.2f}"
    )


def header() -> None:
    """The table's head."""
    print(
        f"\n{'':34} {'U of':>6} {'U lost by':^44}   {'start':^14}   {'adaptive':^14}   re-cuts a round\n"
        f"{'channel, T, correlation':34} {'clairv':>6} "
        + " ".join(f"{name:>8}" for name in SHOWN)
        + f"   {'D %':>6} {'E %':>7}   {'D %':>6} {'E %':>7}   {'adapt':>5} {'best':>5}"
    )


def run(profiles: list[Profile], rounds: int, epochs: int, channel: str | Channel, rho: float, **more: Any) -> Followed:
    """One fleet on one channel; phi = 1 where the channel is slow."""
    arguments = {name: more.pop(name) for name in ("threshold", "moving", "block") if name in more}
    options = SolveOptions(channel=channel, rounds=rounds, local_epochs=epochs, seed=1, **more)
    return follow(profiles, options, correlation=rho, **arguments)


def hysteresis(profiles: list[Profile], rounds: int) -> None:
    """What the threshold and dearer moves do, on the fleet and channel on which moves matter."""
    print(f"\nT5-Large, slow link, T = 20: U lost (re-cuts a round) by threshold in U; {rounds} rounds")
    thresholds = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
    print(f"{'bytes moved per byte, correlation':34} " + " ".join(f"{x:>16g}" for x in thresholds))
    for moving in (1.0, 3.0):
        for rho in CORRELATIONS:
            cells = []
            for threshold in thresholds:
                at = run(profiles, rounds, 20, SLOW, rho, threshold=threshold, moving=moving).summary("adaptive")
                cells.append(f"{at['cost_loss']:+9.4f} ({at['recuts_per_round']:4.2f})")
            print(f"{moving:g}, {rho:<31g} " + " ".join(cells))


def draw(path: Path, profiles: list[Profile], rounds: int) -> None:
    """U lost against the correlation of the fading, for rounds of 5 and of 20 mini-batches."""
    figure = new_figure(8.4, 3.6)
    rhos = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    styles = {"start": "server", "mean": "other", "adaptive": "device", "best": "energy", "free": "adapters"}
    for place, epochs in enumerate((5, 20)):
        axes = figure.add_subplot(1, 2, place + 1)
        found = [run(profiles, rounds, epochs, SLOW, rho) for rho in rhos]
        for name, colour in styles.items():
            lost = [one.summary(name)["cost_loss"] for one in found]
            axes.plot([1 - rho for rho in rhos], lost, color=COLOURS[colour], marker="o", ms=3, label=name)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("1 - correlation from mini-batch to mini-batch")
        axes.set_title(f"T = {epochs} mini-batches a round", fontsize=10)
        if place == 0:
            axes.set_ylabel("U lost beside the clairvoyant single cut")
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(
        "T5-Large, emulated Jetsons, 20 MHz at -100 dB, phi = 1: emulated times, drawn channel", fontsize=10
    )
    print(f"wrote {save(figure, path)}")


def speed(folder: Path, fleet: list[Profile]) -> None:
    """A million rates from a state and a million rows of a trace."""
    start = time.perf_counter()
    found = rates(fleet, channel="poor", rounds=200_000, seed=0)
    print(f"\n{found.uplink_bps.size} pairs of rates from a state: {time.perf_counter() - start:.2f} s")
    path, names = folder / "trace.csv", [device.name for device in fleet]
    mbps = np.random.default_rng(0).uniform(1, 900, size=(200_000, len(names), 2)).round(3).tolist()
    with path.open("w") as file:
        file.write("round,device,uplink_mbps,downlink_mbps\n")
        file.writelines(
            f"{r},{name},{up},{down}\n"
            for r, of_round in enumerate(mbps, 1)
            for name, (up, down) in zip(names, of_round, strict=True)
        )
    import pandas  # noqa: F401 - its import is not what is timed

    start = time.perf_counter()
    read = rates(fleet, channel=str(path))
    print(f"{read.uplink_bps.size} rows of a trace: {time.perf_counter() - start:.2f} s")
    path.unlink()


def main() -> int:
    """Make the fleets, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the emulated profiles are kept; default: temporary")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--image", type=Path, help="draw the losses against the correlation into this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        found = fleets(folder)
        for name, profiles in found.items():
            print(f"\n=== {name}: {len(profiles) - 1} devices, {options.rounds} rounds")
            header()
            for state in ("good", "normal", "poor"):
                for rho in (0.0, 0.9):
                    row(f"{state}, T = 5, {rho:g}", run(profiles, options.rounds, 5, state, rho))
            for epochs in (5, 20):
                for rho in CORRELATIONS:
                    row(
                        f"slow, phi = 1, T = {epochs}, {rho:g}",
                        run(profiles, options.rounds, epochs, SLOW, rho, compression=1.0),
                    )
        hysteresis(found["t5"], options.rounds)
        if options.image is not None:
            draw(options.image, found["t5"], 4 * options.rounds)
        speed(folder, [p for p in found["letter"] if p.role == "device"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
