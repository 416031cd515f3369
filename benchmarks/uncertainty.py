"""How robust is the decision? The figures of docs/uncertainty.md, one part for each of the review's checks.

    python -m benchmarks.uncertainty [FOLDER] [--only intervals,weights,rates,ranks,power,models] [--draws 200] [--images docs/img]

intervals  how often the chosen cut and clock stay best in worlds drawn from the profiles' own intervals, by w and by what is taken as alike
weights    the same over w: where the profiles cannot tell two cuts apart (--images renews the page's picture)
rates      rates that vary by 10 and 20 %: how often cut and clock change, and what keeping the first decision loses
ranks      LoRA ranks 4 to 64: A(c), times, decision
power      power curves with voltage steps, dips, bumps and caps: what Algorithm 1 and a search that trusts convexity lose against exact
models     7B, 13B and 70B: cuts, memory limits, time of a decision

Fleets: profiles/letter (assumed and literature), and boards that are EMULATED: a server and three Jetsons with Llama 3.2 1B as in
benchmarks/fleet.py. FOLDER keeps the profiles, so that a second run starts with them; making all of them takes about 20 minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet import BOARDS, WORKLOAD, command
from profiler.profile import CutSizes, Profile, SegmentFlops, SegmentSizes
from profiler.store import load, load_fleet
from solver import card
from solver.costs import Floats, Ints, ServerClocks, ServerPower
from solver.extremes import ServerRange, box_extremes
from solver.figures import COLOURS, new_figure, save
from solver.letter.fleet import ACTIVATION_BYTES, ADAPTER_BYTES, adapter_parameters, layer_flops
from solver.problem import Problem, SolveOptions, pose
from solver.scenario import decide
from solver.uncertainty.certainty import Certainty, how_sure
from solver.uncertainty.worlds import Variation, Worlds

LETTER = Path(__file__).resolve().parents[1] / "profiles" / "letter"
WEIGHTS = (0.2, 0.5, 0.8)
RANKS = (4, 8, 16, 32, 64)
LARGE = {"llama-2-7b": 2, "llama-2-13b": 2, "llama-3.1-70b": 1}
"""Models and mini-batches."""


def emulated_fleet(folder: Path) -> list[Profile]:
    """The README's fleet, profiled with its intervals."""
    folder.mkdir(parents=True, exist_ok=True)
    made = False
    for board, clocks in BOARDS.items():
        if not (folder / "profiles" / f"emulated-{board}.json").exists():
            command("profile_main", "run", "--device", f"emulated:{board}", "--clocks", clocks, *WORKLOAD, cwd=folder)
            made = True
    if made:
        command("profile_main", "fit-power", "--json", cwd=folder)
    return load_fleet(folder / "profiles")


def posed(fleet: list[Profile], **options: Any) -> Problem:
    """Of a fleet, with these options."""
    return pose(fleet, SolveOptions(**options))


def percent(share: Any) -> str:
    """Of a mask, as text."""
    return f"{100 * float(np.mean(share)):5.1f} %"


def heading(text: str) -> None:
    """Print one."""
    print(f"\n## {text}\n", flush=True)


# ------------------------------------------------------------------------------------------------------------ intervals


def intervals(folder: Path, draws: int) -> None:
    """Worlds from the profiles' own intervals."""
    fleet = emulated_fleet(folder)
    heading(f"The profiles' own intervals, {draws} worlds, EMULATED fleet")
    for doubt in how_sure(posed(fleet), Variation(draws=1)).doubts:
        width = "exact" if doubt.half_width_pct is None else f"within {doubt.half_width_pct:.1f} %"
        common = "" if doubt.common_pct is None else f", {doubt.common_pct:.1f} % in common"
        print(f"  {doubt.quantity}: {width}{common} ({doubt.basis})")
    print(
        "\n  w   device                 cut clock GHz  cut stays  with clock  loss of U: mean, 95 %, worst   least worst loss: cut GHz worst"
    )
    for w in WEIGHTS:
        sure = how_sure(posed(fleet, w=w), Variation(draws=draws))
        for n, _, m in sure.solution.places():
            ours, safest = sure.nominal, sure.least_worst
            print(
                f"  {w}  {fleet_name(sure, m):22} {ours.cut[n]:3} {ours.frequency_hz[n] / 1e9:9.3f}  "
                f"{percent(sure.cut_stays[:, n]):>9} {percent(sure.both_stay[:, n]):>11}  "
                f"{sure.regret[:, n].mean():10.5f} {np.quantile(sure.regret[:, n], 0.95):8.5f} {sure.regret[:, n].max():8.5f}"
                f"   {safest.cut[n]:3} {safest.frequency_hz[n] / 1e9:6.3f} {safest.worst[n]:.5f}"
            )
    print(
        "\n  what is assumed of the errors (w = 0.5, all devices)      cut stays  with clock  loss of U: mean, 95 %, worst"
    )
    cases: list[tuple[str, Variation]] = [
        ("layers as the intervals say, half of a curve's error common", Variation()),
        ("layers of a machine all alike", Variation(layer_errors="alike")),
        ("layers each for themselves", Variation(layer_errors="apart")),
        ("curves over the clock lifted as a whole", Variation(common_share=1.0)),
        ("curves over the clock bent only", Variation(common_share=0.0)),
        ("curves bent only, twice as finely", Variation(common_share=0.0, smooth_length=0.125)),
        ("every machine within 5 % as a whole, besides", Variation(machine_variation_pct=5.0)),
        ("only the devices' times", Variation(only=("device-times",))),
        ("only the server's times", Variation(only=("server-times",))),
        ("only the server's power", Variation(only=("power",))),
    ]
    for name, variation in cases:
        summed(name, how_sure(posed(fleet, w=0.5), replace(variation, draws=draws)))
    started = time.perf_counter()
    sure = how_sure(posed(fleet, w=0.5), Variation(draws=draws))
    print(f"  ({draws} worlds x {len(sure.nominal.cut)} decisions: {time.perf_counter() - started:.2f} s)")


def weights(folder: Path, draws: int, images: Path | None = None) -> None:
    """Over w, which cut is chosen and in how many worlds it stays best."""
    fleet = emulated_fleet(folder)
    draws = min(draws, 100)
    heading(
        f"Over w: the chosen cut, and in how many of {draws} worlds it stays best; EMULATED fleet, each machine within 5 % besides its intervals"
    )
    grid = np.round(np.arange(0.02, 1.0, 0.02), 2)
    cuts, stays, loss = [], [], []
    for w in grid.tolist():
        sure = how_sure(posed(fleet, w=w), Variation(draws=draws, machine_variation_pct=5.0))
        cuts.append(sure.nominal.cut)
        stays.append(sure.cut_stays.mean(0))
        loss.append(sure.regret.max(0))
    names = [device.name for device in sure.solution.problem.devices]
    for m, name in enumerate(names):
        chosen = np.array(cuts)[:, m]
        runs = np.flatnonzero(np.diff(chosen, prepend=-1))
        print(f"  {name}: " + "; ".join(f"cut {chosen[i]} from w = {grid[i]}" for i in runs))
        unsure = [
            f"{w} ({100 * s[m]:.0f} %, worst loss {u[m]:.3f})"
            for w, s, u in zip(grid, stays, loss, strict=True)
            if s[m] < 0.95
        ]
        print(f"    cut stays best in less than 95 % of the worlds at w = {', '.join(unsure) or 'none'}")
    if images is not None:
        picture(images, names, grid, np.array(cuts), np.array(stays))


def picture(images: Path, names: list[str], grid: Floats, cuts: Ints, stays: Floats) -> None:
    """How often the chosen cut stays best, over w, with the cuts written where they change."""
    figure = new_figure(8.0, 3.6)
    axes = figure.subplots()
    colours = (COLOURS["device"], COLOURS["server"], COLOURS["energy"])
    for m, (name, colour) in enumerate(zip(names, colours, strict=True)):
        axes.plot(grid, 100 * stays[:, m], color=colour, ls=("-", "--", "-.")[m], label=name)
        for i in np.flatnonzero(np.diff(cuts[:, m])):
            text = f"cut {cuts[i, m]} | {cuts[i + 1, m]}"
            at = (grid[i] + 0.01, 100 * min(stays[i, m], stays[i + 1, m]))
            axes.annotate(text, at, (0, -14), textcoords="offset points", fontsize=8, color=colour, ha="center")
    axes.set_xlabel("w, the weight of delay")
    axes.set_ylabel("worlds in which\nthe chosen cut is best (%)")
    axes.set_ylim(0, 104)
    axes.set_title("EMULATED fleet: the profiles' own intervals, and each machine within 5 % as a whole", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    print(f"  wrote {save(figure, images / 'uncertainty.png')}")


def fleet_name(sure: Certainty, m: int) -> str:
    """Of a device."""
    return sure.solution.problem.devices[m].name


def summed(name: str, sure: Certainty) -> None:
    """One line over all decisions."""
    print(
        f"  {name:58} {percent(sure.cut_stays):>8} {percent(sure.both_stay):>11}  "
        f"{sure.regret.mean():10.5f} {np.quantile(sure.regret, 0.95):8.5f} {sure.regret.max():8.5f}",
        flush=True,
    )


# --------------------------------------------------------------------------------------------------------------- rates


def rates(folder: Path, draws: int) -> None:
    """Only the rates vary."""
    heading(f"Rates that vary, {draws} draws, up and down apart; nothing else is uncertain")
    print(
        "  'again': what the same method decides when it knows the new rates. Keeping the first decision loses nothing where both are the same."
    )
    print(
        "  fleet     w    method  variation  same cut again  same cut and clock  rounds last longer or shorter by: mean, at most"
    )
    for name, fleet in (("letter", load_fleet(LETTER)), ("emulated", emulated_fleet(folder))):
        for w in WEIGHTS:
            for method in ("card", "exact"):
                for variation_pct in (10.0, 20.0):
                    problem = posed(fleet, method=method, w=w)
                    sure = how_sure(problem, Variation(draws, variation_pct, only=("rates",)))
                    moved = 100 * np.abs(delays_there(problem, sure) / sure.solution.decisions.costs.delay_s - 1)
                    print(
                        f"  {name:9} {w:3} {method:>6} {variation_pct:8.0f} %  {percent(sure.same_cut_decided):>14} "
                        f"{percent(sure.same_decided):>19}  {moved.mean():16.2f} %, {moved.max():.2f} %",
                        flush=True,
                    )
    tipping(folder, draws)


def delays_there(problem: Problem, sure: Certainty) -> Floats:
    """(D, N) delays of the first decision in its worlds."""
    worlds, ours, found = Worlds(problem, sure.variation), sure.solution.decisions, []
    for d in range(sure.worlds):
        world = worlds.draw(d)
        at = world.places
        costs = world.evaluated.at(at.device, at.uplink_bps, at.downlink_bps, ours.cut - 1, ours.frequency_hz)
        found.append(costs.delay_s)
    return np.array(found)


def tipping(folder: Path, draws: int) -> None:
    """At which rates a cut changes at all, and how often a variation flips it there."""
    grid = np.geomspace(0.2, 1000, 120)
    print(
        "\n  Rates at which a cut changes (exact, down twice as fast as up, 0.2 to 1000 Mbit/s up), and what a variation does right there:"
    )
    for name, fleet in (("letter", load_fleet(LETTER)), ("emulated", emulated_fleet(folder))):
        for w in WEIGHTS:
            links = [{"uplink_mbps": up, "downlink_mbps": 2 * up} for up in grid.tolist()]
            cuts = np.array([decide(posed(fleet, w=w, **link)).decisions.cut for link in links])
            found = [(m, i) for m in range(cuts.shape[1]) for i in np.flatnonzero(np.diff(cuts[:, m])).tolist()]
            for m, i in found:
                problem = posed(fleet, w=w, **links[i])
                flips, worst = [], 0.0
                for variation_pct in (10.0, 20.0):
                    sure = how_sure(problem, Variation(draws, variation_pct, only=("rates",)))
                    flips.append(percent(~sure.cut_stays[:, m]).strip())
                    worst = float(sure.regret[:, m].max())
                print(
                    f"  {name:9} w {w} {fleet_name(sure, m)}: cut {cuts[i, m]} up to {grid[i]:.3g} Mbit/s, {cuts[i + 1, m]} above; there it "
                    f"flips in {flips[0]} (10 %) and {flips[1]} (20 %) of the draws and loses {worst:.4f} of U at worst",
                    flush=True,
                )
            if not found:
                print(f"  {name:9} w {w}: no cut changes")


# --------------------------------------------------------------------------------------------------------------- ranks


def letter_of_rank(rank: int) -> list[Profile]:
    """The letter's fleet with adapters of another rank."""
    forward, backward = layer_flops(rank=rank)
    changed = []
    for profile in load_fleet(LETTER):
        inside = [segment.kind == "layer" for segment in profile.segments]
        flops = [
            SegmentFlops(forward_flops=forward, backward_flops=backward) if layer else row
            for layer, row in zip(inside, profile.flops.segments, strict=True)
        ]
        own = adapter_parameters(rank)
        sizes = [
            SegmentSizes(weight_bytes=row.weight_bytes, adapter_bytes=own * ADAPTER_BYTES, adapter_parameters=own)
            if layer
            else row
            for layer, row in zip(inside, profile.sizes.segments, strict=True)
        ]
        changed.append(
            profile.model_copy(
                update={
                    "workload": profile.workload.model_copy(update={"lora_rank": rank}),
                    "flops": profile.flops.model_copy(update={"segments": flops}),
                    "sizes": profile.sizes.model_copy(update={"segments": sizes}),
                }
            )
        )
    assert profile.sizes.cuts[0].smashed_bytes % ACTIVATION_BYTES == 0
    return changed


def emulated_of_rank(folder: Path, rank: int) -> list[Profile]:
    """Layers timed anew with this rank, every rank at the same clocks; the power curve is that of the fleet's server."""
    power = next(p for p in emulated_fleet(folder) if p.role == "server")
    place = folder / f"rank-{rank}"
    place.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        if not (place / "profiles" / f"emulated-{board}.json").exists():
            clocks = "5" if board.startswith("rtx") else "2"
            more = ["--clocks", clocks, "--measure", "layers", "--lora-rank", str(rank)]
            command("profile_main", "run", "--device", f"emulated:{board}", *more, *WORKLOAD, cwd=place)
    return [
        p.model_copy(update={"power": power.power, "power_fit": power.power_fit}) if p.role == "server" else p
        for p in load_fleet(place / "profiles")
    ]


def ranks(folder: Path, draws: int) -> None:
    """LoRA ranks 4 to 64."""
    del draws
    heading("LoRA ranks")
    makers: tuple[tuple[str, Callable[[int], list[Profile]]], ...] = (
        ("letter", letter_of_rank),
        ("emulated", lambda rank: emulated_of_rank(folder, rank)),
    )
    print(
        "  fleet    rank  A(1) MB  A(I-1) MB  FLOPs against rank 4  w    method  cuts              clock GHz        delay s  energy J  adapters s (share of delay)"
    )
    for name, make in makers:
        base = None
        for rank in RANKS:
            fleet = make(rank)
            total = sum(r.forward_flops + r.backward_flops for r in fleet[0].flops.segments)
            base = base or total
            for w in WEIGHTS:
                for method in (
                    ("exact",) if name == "letter" else ("card", "exact")
                ):  # on the letter's fleet both decide alike
                    solution = decide(posed(fleet, method=method, w=w))
                    ours = solution.decisions
                    assert ours.costs.energy_j is not None
                    bits = solution.problem.evaluated.adapter_bits[0]
                    hz = ours.frequency_hz / 1e9
                    wait = ours.costs.adapters_s.mean()
                    print(
                        f"  {name:9} {rank:3} {bits[0] / 8e6:8.3f} {bits[-1] / 8e6:9.2f} {100 * (total / base - 1):+18.2f} %  {w:4} {method:>6}  "
                        f"{' '.join(map(str, ours.cut.tolist())):16}  {hz.min():.3f} to {hz.max():.3f}  "
                        f"{ours.costs.delay_s.mean():7.3f} {ours.costs.energy_j.mean():9.1f}  {wait:7.3f} "
                        f"({100 * wait / ours.costs.delay_s.mean():.2f} %)",
                        flush=True,
                    )


# --------------------------------------------------------------------------------------------------------------- power


def stepped(numbers: np.random.Generator, x: Floats) -> Floats:
    """A voltage that rises in 3 to 10 steps: watts jump at each of them."""
    steps = int(numbers.integers(3, 11))
    edges = np.sort(numbers.uniform(0.05, 1.0, steps))
    volts = numbers.uniform(0.55, 0.8) + (1 - 0.7) * np.searchsorted(edges, x) / steps
    floor = numbers.uniform(0.1, 0.4)
    watts: Floats = floor + (1 - floor) * x * volts**2
    return watts


def cubic(numbers: np.random.Generator, x: Floats) -> Floats:
    """The letter's law, as a control: Algorithm 1 should lose nothing but its rounding."""
    del numbers
    watts: Floats = x**3
    return watts


def smooth_law(numbers: np.random.Generator, x: Floats) -> Floats:
    """P0 + d f^a, what the others are made of."""
    floor, power = numbers.uniform(0.1, 0.4), numbers.uniform(2.0, 3.0)
    watts: Floats = floor + (1 - floor) * x**power
    return watts


def dipped(numbers: np.random.Generator, x: Floats) -> Floats:
    """A dip of 10 to 30 % over a tenth of the range, as where the chip changes its mode."""
    middle, depth = numbers.uniform(x[0], 1.0), numbers.uniform(0.1, 0.3)
    return smooth_law(numbers, x) * (1 - depth * np.exp(-0.5 * ((x - middle) / 0.05) ** 2))


def capped(numbers: np.random.Generator, x: Floats) -> Floats:
    """Watts that stay at a cap from 50 to 90 % of the range on, while the clock still rises."""
    watts = smooth_law(numbers, x)
    return np.minimum(watts, np.interp(numbers.uniform(0.5, 0.9), x, watts))


def bumpy(numbers: np.random.Generator, x: Floats) -> Floats:
    """Smooth bumps of 5 to 15 %, each over about a tenth of the range."""
    apart = (x[:, None] - x[None, :]) / 0.07
    values, vectors = np.linalg.eigh(np.exp(-0.5 * apart**2))
    bumps = vectors @ (np.sqrt(np.maximum(values, 0)) * numbers.standard_normal(len(x)))
    return smooth_law(numbers, x) * np.exp(numbers.uniform(0.05, 0.15) * bumps)


CURVES = {"cubic": cubic, "smooth": smooth_law, "steps": stepped, "dip": dipped, "cap": capped, "bumps": bumpy}


def ternary(cost: Floats) -> tuple[Ints, Ints]:
    """Of costs (N, C, K): the cut and clock (N,) of a ternary search over the clocks, which finds the least if U falls and then rises."""
    low = np.zeros(cost.shape[:2], dtype=np.intp)
    high = np.full(cost.shape[:2], cost.shape[2] - 1)
    while (high - low > 2).any():
        third = (high - low) // 3
        left, right = low + third, high - third
        worse = np.take_along_axis(cost, left[:, :, None], 2) > np.take_along_axis(cost, right[:, :, None], 2)
        moving = high - low > 2
        low = np.where(moving & worse[:, :, 0], left + 1, low)
        high = np.where(moving & ~worse[:, :, 0], right - 1, high)
    three = np.minimum(low[:, :, None] + np.arange(4), high[:, :, None])
    found = np.take_along_axis(cost, three, 2)
    k = np.take_along_axis(three, found.argmin(2)[:, :, None], 2)[:, :, 0]
    cut = found.min(2).argmin(1)
    return cut, k[np.arange(len(cut)), cut]


def power(folder: Path, draws: int) -> None:
    """Non-convex power curves."""
    heading(
        f"Power curves that are not convex: {draws} made-up curves of each kind, 100 clocks, what is lost in U against the exact joint optimum"
    )
    print(
        "  Algorithm 1 uses Eq. 16 as printed (xi cancels, so it does not see the curve); 'convex' searches the clock of each cut by thirds on the true curve."
    )
    print(
        "  fleet     w    curve   Algorithm 1: loses > 0.01  mean   95 %   worst    convex: loses > 0.01  mean   95 %   worst   another cut: Alg. 1, convex"
    )
    for name, fleet in (("letter", load_fleet(LETTER)), ("emulated", emulated_fleet(folder))):
        for w in WEIGHTS:
            problem = posed(fleet, w=w)
            clocks = problem.clocks
            hz = np.linspace(clocks.f_min_hz, clocks.f_max_hz, 100)
            problem = replace(problem, clocks=ServerClocks(clocks.f_min_hz, clocks.f_max_hz, hz))
            for kind, make in CURVES.items():
                lost = np.array([losses(problem, hz, make, i, w) for i in range(draws)])  # (D, 4, N)
                one, two, other_one, other_two = np.moveaxis(lost, 1, 0)
                print(
                    f"  {name:9} {w:3} {kind:>7} {percent(one > 0.01):>20} {one.mean():11.4f} {np.quantile(one, 0.95):6.4f} {one.max():7.4f} "
                    f"{percent(two > 0.01):>20} {two.mean():11.4f} {np.quantile(two, 0.95):6.4f} {two.max():7.4f} "
                    f"{percent(other_one):>12} {percent(other_two):>9}",
                    flush=True,
                )


def losses(problem: Problem, hz: Floats, make: Callable[..., Floats], seed: int, w: float) -> list[Floats]:
    """(4, N): loss of Algorithm 1 and of the convex search in U, and whether they take another cut than exact."""
    watts = 200 * make(np.random.default_rng([seed, sum(make.__name__.encode())]), hz / hz[-1])
    places, clocks = problem.places, problem.clocks
    model = replace(problem.decider, server_power=ServerPower.table(hz.tolist(), watts.tolist()))
    span = box_extremes(model, places, ServerRange.over(model, hz))
    x, y = span.weights(w)
    waiting = model.waiting_of(
        places.device[:, None], np.arange(model.cuts), places.uplink_bps[:, None], places.downlink_bps[:, None]
    )
    cost = (
        (x[:, None] * waiting)[:, :, None] + x[:, None, None] * model.server_s(hz) + y[:, None, None] * model.busy_j(hz)
    )
    cost = np.where(places.feasible[places.device][:, :, None], cost, np.inf)
    best = cost.reshape(len(cost), -1).min(1)
    best_cut = cost.min(2).argmin(1)
    printed = card.choose(problem.letter, places, clocks, w, problem.xi_w_per_hz3)
    rows = np.arange(len(cost))
    at = np.abs(hz[None, :] - printed.frequency_hz[:, None]).argmin(1)
    cut, k = ternary(cost)
    return [
        cost[rows, printed.cut_index, at] - best,
        cost[rows, cut, k] - best,
        (printed.cut_index != best_cut).astype(float),
        (cut != best_cut).astype(float),
    ]


# -------------------------------------------------------------------------------------------------------------- models


def large_fleet(folder: Path, model: str, batch: int) -> list[Profile]:
    """An emulated H200 as server and an emulated AGX Orin; the H200's power was swept with the smallest of the models."""
    place = folder / model
    place.mkdir(parents=True, exist_ok=True)
    work = ["--model", model, "--dtype", "bfloat16", "--batch-size", str(batch), "--clocks", "4"]
    boards = {"h200": ["--role", "server"], "orin-agx": ["--role", "device"]}
    for board, role in boards.items():
        if not (place / "profiles" / f"emulated-{board}.json").exists():
            measure = "layers,power" if board == "h200" and model == next(iter(LARGE)) else "layers"
            command(
                "profile_main", "run", "--device", f"emulated:{board}", *role, *work, "--measure", measure, cwd=place
            )
            if "power" in measure:
                command("profile_main", "fit-power", "--json", cwd=place)
    power = load(folder / next(iter(LARGE)) / "profiles" / "emulated-h200.json")
    return [
        p.model_copy(update={"power": power.power, "power_fit": power.power_fit}) if p.role == "server" else p
        for p in load_fleet(place / "profiles")
    ]


def lengthened(profile: Profile, layers: int) -> Profile:
    """A made-up chain: the profile's middle layer over and over, memory limits left out. No model is like that."""
    middle = next(i for i, s in enumerate(profile.segments) if s.layer == profile.workload.layers // 2)
    count = len(profile.segments)
    order = [0, *[middle] * layers, *range(count - 1, count)]

    def again(rows: Any) -> list[Any]:
        return [rows[i] for i in order]

    segments = [profile.segments[i].model_copy(update={"name": f"s{k}", "layer": k}) for k, i in enumerate(order)]
    row = profile.sizes.cuts[0]
    cuts = [
        CutSizes(cut=c, smashed_bytes=row.smashed_bytes, gradient_bytes=row.gradient_bytes) for c in range(1, layers)
    ]
    fit = profile.time_fit
    return profile.model_copy(
        update={
            "workload": profile.workload.model_copy(update={"layers": layers}),
            "segments": segments,
            "flops": profile.flops.model_copy(update={"segments": again(profile.flops.segments)}),
            "sizes": profile.sizes.model_copy(update={"segments": again(profile.sizes.segments), "cuts": cuts}),
            "timings": [t.model_copy(update={"segments": again(t.segments)}) for t in profile.timings],
            "time_fit": None if fit is None else fit.model_copy(update={"segments": again(fit.segments)}),
            "memory": None,
        }
    )


def models(folder: Path, draws: int) -> None:
    """Decision time on larger models."""
    heading("Larger models: an EMULATED H200 serves an EMULATED AGX Orin")
    print(
        "  model              cuts  fit in memory  clocks  decided (w = 0.2): cut, GHz   pose   one decision: card, exact   10,000 decisions: card, exact   how sure"
    )
    fleets = [(name, large_fleet(folder, name, batch)) for name, batch in LARGE.items()]
    fleets.append(("made-up, 512 layers", [lengthened(p, 512) for p in fleets[-1][1]]))
    for name, fleet in fleets:
        started = time.perf_counter()
        problem = posed(fleet)
        pose_s = time.perf_counter() - started
        took = {}
        for rounds in (1, 10_000):
            for method in ("card", "exact"):
                one = posed(fleet, method=method, rounds=rounds)
                took[rounds, method] = least(lambda one=one: decide(one), 5 if rounds == 1 else 2)  # type: ignore[misc]
        ours = decide(problem).decisions
        started = time.perf_counter()
        sure = how_sure(problem, Variation(draws=draws))
        sure_s = time.perf_counter() - started
        fit = np.flatnonzero(problem.feasible[0]) + 1
        print(
            f"  {name:20} {problem.decider.cuts:3}   {f'{fit[0]} to {fit[-1]}':>11}  {len(problem.clocks.supported_hz):6}  "
            f"{ours.cut[0]:18}, {ours.frequency_hz[0] / 1e9:.3f}  {1e3 * pose_s:6.0f} ms {1e3 * took[1, 'card']:8.1f} ms, {1e3 * took[1, 'exact']:.1f} ms "
            f"{1e3 * took[10_000, 'card']:16.0f} ms, {1e3 * took[10_000, 'exact']:.0f} ms   {sure_s:.1f} s "
            f"(cut stays {percent(sure.cut_stays).strip()})",
            flush=True,
        )


def least(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


PARTS: dict[str, Callable[..., None]] = {
    "intervals": intervals,
    "weights": weights,
    "rates": rates,
    "ranks": ranks,
    "power": power,
    "models": models,
}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where profiles are kept; default: a temporary folder")
    parser.add_argument("--only", default=",".join(PARTS), help="parts by comma")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--images", type=Path, help="write the page's picture into this folder")
    options = parser.parse_args()
    wrong = set(options.only.split(",")) - set(PARTS)
    if wrong:
        parser.error(f"--only {', '.join(sorted(wrong))}: expected some of {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.only.split(","):
            more = {"images": options.images} if part == "weights" else {}
            PARTS[part]((options.folder or Path(temporary)).resolve(), options.draws, **more)


if __name__ == "__main__":
    main()
