"""How sensitive the decision is to w, and what w means: the figures and pictures of docs/weight.md.

    python -m benchmarks.weight FOLDER [--images docs/img]

On profiles/letter (its figures are literature and assumed) and on the fleet of FOLDER/profiles, as `python -m benchmarks.fleet FOLDER` makes it
(EMULATED; made where it is missing, two minutes). Takes about half a minute otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.regret import made
from profiler.profile import Profile
from profiler.store import load_fleet
from solver.figures import COLOURS, new_figure, save
from solver.front import Plateaus, TradeOff, trade_offs
from solver.front_view import write_plots
from solver.problem import SolveOptions, pose
from solver.scenario import solve

LETTER = Path(__file__).resolve().parents[1] / "profiles" / "letter"
WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def cuts_over_w(over_w: Plateaus) -> str:
    """Each cut with the w at which it begins, the shortest stretches left out."""
    cut, w = over_w.begin.cut, over_w.w
    starts = [i for i in range(len(over_w)) if i == 0 or cut[i] != cut[i - 1]]
    ends = [*starts[1:], len(over_w)]
    return ", ".join(f"{cut[a]} from {w[a]:.3f}" for a, b in zip(starts, ends, strict=True) if w[b] - w[a] > 1e-3)


def flipping_share(over_w: Plateaus, every: float = 0.05) -> float:
    """The share of all w at which another w within ``every`` of it gives another cut."""
    flips = np.array([w for k, w in enumerate(over_w.flips) if over_w.begin.cut[k] != over_w.begin.cut[k + 1]])
    grid = np.linspace(0, 1, 2001)
    near = np.abs(grid[:, None] - flips[None, :]).min(axis=1, initial=np.inf) <= every
    return float(near.mean())


def sensitivity(name: str, found: list[TradeOff]) -> None:
    """How many decisions there are over all w, where the cut flips, what w reaches, where the knee is."""
    print(f"\n{name}: decisions over all w, exact")
    print(f"{'device':20} {'front':>6} {'by some w':>9} {'plateaus':>8} {'widest':>7} {'cut +-0.05':>10}  cuts; knee")
    for each in found:
        widest = float(np.diff(each.exact.w).max())
        shown = (
            "none"
            if each.knee is None
            else f"cut {each.front_points().cut[each.knee]}, {each.front_points().frequency_hz[each.knee] / 1e9:.3f} GHz"
        )
        counted = f"{len(each.front):6d} {int(each.supported.sum()):9d}" if each.listed else f"{'range':>6} {'':9}"
        print(
            f"{each.device:20} {counted} {len(each.exact):8d} {widest:7.3f} {100 * flipping_share(each.exact):8.0f} %  "
            f"{cuts_over_w(each.exact)}; {shown}"
        )
    print(f"{name}: Algorithm 1 as printed against it")
    for each in found:
        lost, k = each.losses, each.losses.worst
        if k is None:
            print(f"{each.device:20} loses nowhere")
            continue
        at = int(np.abs(lost.w - 0.2).argmin())
        print(
            f"{each.device:20} loses at {100 * lost.share_of_w:.0f} % of all w, most at w = {lost.w[k]:.3f}: U +{lost.cost[k]:.3f}, "
            f"delay {lost.delay_pct[k]:+.0f} %, energy {lost.energy_pct[k]:+.0f} %; at w = 0.2: delay {lost.delay_pct[at]:+.0f} %, "
            f"energy {lost.energy_pct[at]:+.0f} %; cuts {cuts_over_w(each.printed)}"
        )


def prices(name: str, profiles: list[Profile]) -> None:
    """What some weights let a second cost on each device, and what the price of w = 0.2 does when the box changes."""
    print(f"\n{name}: J that w lets a second of delay cost, by device")
    print(f"{'':26}" + "".join(f"  w={w:<7g}" for w in WEIGHTS))
    rows = {w: trade_prices(profiles, SolveOptions(w=w)) for w in WEIGHTS}
    for device in rows[WEIGHTS[0]]:
        print(f"  {device:24}" + "".join(f"{rows[w][device]:10.1f}" for w in WEIGHTS))
    print("the same at w = 0.2, where another box is looked at")
    low = pose(profiles, SolveOptions()).clocks.f_min_hz / 1e9
    high = pose(profiles, SolveOptions()).clocks.f_max_hz / 1e9
    boxes: dict[str, SolveOptions] = {
        f"F_min {low:.2f}, F_max {high:.2f} GHz": SolveOptions(),
        f"F_min {2 * low:.2f} GHz": SolveOptions(f_min_ghz=2 * low),
        f"F_max {0.75 * high:.2f} GHz": SolveOptions(f_max_ghz=0.75 * high),
        "channel poor": SolveOptions(channel="poor"),
        "T = 10": SolveOptions(local_epochs=10),
    }
    for what, options in boxes.items():
        figures = trade_prices(profiles, options)
        solution = solve(profiles, options)
        cuts = " ".join(str(c) for c in solution.decisions.cut)
        print(f"  {what:32}" + " ".join(f"{p:7.1f}" for p in figures.values()) + f"   cuts {cuts}")


def trade_prices(profiles: list[Profile], options: SolveOptions) -> dict[str, float]:
    """The price of w in J/s for each device."""
    solution = solve(profiles, options)
    x, y = solution.extremes.weights(options.w)
    return {device.name: float(x[m] / y[m]) for m, device in enumerate(solution.problem.devices)}


def objectives(name: str, profiles: list[Profile], price: float, deadline_s: float, budget_j: float) -> None:
    """One fleet under each objective."""
    print(
        f"\n{name}: what each objective decides (cut, clock in GHz, delay in s, energy in J; * cannot keep the limit)"
    )
    for label, options in (
        ("w = 0.2", SolveOptions()),
        ("w = 0.8", SolveOptions(w=0.8)),
        (f"--price {price:g}", SolveOptions(price_j_per_s=price)),
        (f"--max-delay-s {deadline_s:g}", SolveOptions(max_delay_s=deadline_s)),
        (f"--max-energy-j {budget_j:g}", SolveOptions(max_energy_j=budget_j)),
    ):
        chosen = solve(profiles, options).decisions
        assert chosen.costs.energy_j is not None
        total = float(chosen.costs.energy_j.sum())
        rows = [
            f"{c:3d} {f / 1e9:5.3f} {d:6.2f} {e:6.0f}{' ' if ok else '*'}"
            for c, f, d, e, ok in zip(
                chosen.cut,
                chosen.frequency_hz,
                chosen.costs.delay_s,
                chosen.costs.energy_j,
                chosen.feasible,
                strict=True,
            )
        ]
        slowest = float(chosen.costs.delay_s.max())
        print(f"  {label:18} " + " |".join(rows) + f"| slowest {slowest:.1f} s, sum {total:.0f} J")


def one_price(name: str, profiles: list[Profile]) -> None:
    """The energy of one price on all devices beside that of one w on all devices, at the same mean delay."""
    print(f"\n{name}: one price for all devices in place of one w, at the same mean delay")
    for w in (0.1, 0.2, 0.3, 0.5, 0.8):
        by_w = solve(profiles, SolveOptions(w=w)).decisions
        delay_s, energy_j = float(by_w.costs.delay_s.sum()), by_w.mean_energy_j()
        low, high = 1e-3, 1e6
        while high / low > 1 + 1e-9:
            middle = (low * high) ** 0.5
            decided = solve(profiles, SolveOptions(price_j_per_s=middle)).decisions
            low, high = (low, middle) if decided.costs.delay_s.sum() <= delay_s else (middle, high)
        priced = solve(profiles, SolveOptions(price_j_per_s=high)).decisions
        less_j = priced.mean_energy_j()
        assert energy_j is not None
        assert less_j is not None
        spread = trade_prices(profiles, SolveOptions(w=w)).values()
        print(
            f"  w = {w:g}: a second costs {min(spread):.1f} to {max(spread):.1f} J, mean delay {delay_s / len(profiles[1:]):.2f} s, mean energy "
            f"{energy_j:.0f} J; at {high:.1f} J/s: {less_j:.0f} J ({100 * (less_j / energy_j - 1):+.1f} %)"
        )


def draw_prices(fleets: dict[str, list[TradeOff]], path: Path) -> Path:
    """For each fleet the cut against w and, beside it, against the price that w stands for, with a dot where w is 0.2."""
    figure = new_figure(11, 3.2 * len(fleets))
    axes = figure.subplots(len(fleets), 2, squeeze=False)
    colours = list(COLOURS.values())
    for (name, found), (left, right) in zip(fleets.items(), axes, strict=True):
        for k, (each, colour) in enumerate(zip(found, colours, strict=False)):
            w = np.linspace(0.002, 0.998, 500)
            over_w = each.exact
            cut = over_w.begin.cut[np.clip(np.searchsorted(over_w.w, w, side="right") - 1, 0, len(over_w) - 1)]
            ends = each.extremes
            per_s = float((ends.e_max_j - ends.e_min_j)[0] / (ends.d_max_s - ends.d_min_s)[0])
            width = 1.0 + 0.5 * (len(found) - k)  # lines on one another stay visible
            left.step(w, cut, color=colour, linewidth=width, label=each.device)
            right.step(per_s * w / (1 - w), cut, color=colour, linewidth=width, label=each.device)
            right.plot(per_s * 0.2 / 0.8, each.chosen.cut[0], "o", color=colour, markeredgecolor="black", zorder=5)
        left.set_ylabel(f"{name}\ncut layer c")
        left.axvline(0.2, color="0.6", linestyle=":", linewidth=0.8)
        left.set_xlabel("w, the weight of delay in U")
        right.set_xscale("log")
        right.set_xlabel("price of a second that w stands for (J/s); dots: w = 0.2")
        right.legend(fontsize=7)
    return save(figure, path)


def main() -> int:
    """Print the tables, and draw the pictures where a folder for them is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="holds profiles/ of the emulated fleet, or will")
    parser.add_argument("--images", type=Path, help="draw the pictures of docs/weight.md into this folder")
    options = parser.parse_args()
    letter, emulated = load_fleet(LETTER), load_fleet(made(options.folder.resolve()))
    problems = {
        "profiles/letter (assumed, literature)": pose(letter, SolveOptions()),
        "EMULATED fleet": pose(emulated, SolveOptions()),
    }
    found = {name: trade_offs(problem) for name, problem in problems.items()}
    for name in found:
        sensitivity(name, found[name])
    first, second = found
    prices(first, letter)
    prices(second, emulated)
    one_price(first, letter)
    one_price(second, emulated)
    objectives(first, letter, price=50, deadline_s=20, budget_j=700)
    objectives(second, emulated, price=20, deadline_s=5, budget_j=60)
    if options.images is not None:
        titles = {"profiles/letter (assumed)": found[first], "emulated fleet": found[second]}
        written = [draw_prices(titles, options.images / "weight.png")]
        for name, which, k in (("weight-letter.png", first, 1), ("weight-emulated.png", second, 1)):
            (drawn,) = write_plots(problems[which], [found[which][k]], options.images)
            written.append(drawn.replace(options.images / name))
        for path in written:
            print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
