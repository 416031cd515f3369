"""What a person reads: the decision table and the plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiler.profile import printable
from profiler.units import data_size, quantity, ranges
from solver.baselines import DEVICE_ONLY, SERVER_ONLY
from solver.costs import Floats
from solver.figures import COLOURS, new_figure, save
from solver.reasons import explain
from solver.scenario import Decisions, Solution

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

MOST_ROWS = 40
"""With more decisions than this the table sums up each device over its rounds."""
MOST_REASONS = 10
"""Devices whose reasons are printed."""


def print_report(solution: Solution, console: Console) -> None:
    """Print the decisions, what they save, the cuts that do not fit, the assumptions and the warnings."""
    for part in renderables(solution):
        console.print(part)


def renderables(solution: Solution) -> list[RenderableType]:
    """The report as rich renderables, for a terminal or a notebook."""
    from rich.text import Text

    parts: list[RenderableType] = [_heading(solution), _table(solution), _summary(solution), *_reasons(solution)]
    for e in solution.problem.exclusions:
        low, high = (data_size(b) for b in e.needs_bytes)
        needs = low if low == high else f"{low} to {high}"
        parts.append(
            Text(
                f"{e.device}: cuts {ranges(e.cuts)} left out: they need {needs} on {e.machine}, which has {data_size(e.limit_bytes)}"
            )
        )
    parts.append(_assumptions(solution))
    parts += [Text(f"warning: {line}", style="yellow") for line in solution.warnings]
    return parts


def _heading(solution: Solution) -> RenderableType:
    from rich.text import Text

    work, options = solution.problem.server.workload, solution.problem.options
    figures = "the letter's model (Eq. 7-11)" if solution.problem.evaluated.name == "letter" else "the profiles' tables"
    rounds = len(solution.problem.rates.rounds)
    over = f"; means over {rounds} rounds" if len(solution.decisions.cut) > MOST_ROWS else ""
    return Text.assemble(
        (printable(work.model), "bold"),
        f" on {solution.problem.server.name}: method {options.method}, w = {options.w:g}, T = {options.local_epochs} mini-batches a round; "
        f"delay and energy from {figures}{over}",
    )


def _table(solution: Solution) -> Table:
    from rich import box
    from rich.table import Table

    rounds, layers = len(solution.problem.rates.rounds), solution.problem.server.workload.layers
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    each = len(solution.decisions.cut) <= MOST_ROWS
    table.add_column("device", overflow="fold", min_width=9)
    if rounds > 1 and each:
        table.add_column("round", justify="right", no_wrap=True)
    for column in (
        f"cut\nof {layers}",
        "server\nclock\n(GHz)",
        "delay",
        "energy",
        "U",
        "delay\nagainst\ndevice-\nonly",
        "energy\nagainst\nserver-\nonly",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    groups = (
        [[n] for n in range(len(solution.decisions.cut))]
        if each
        else [
            list(range(m, len(solution.decisions.cut), len(solution.problem.devices)))
            for m in range(len(solution.problem.devices))
        ]
    )
    for group in groups:
        table.add_row(*_row(solution, group, rounds > 1 and each))
    return table


def typical_rows(solution: Solution, most: int) -> list[int]:
    """For each of the first ``most`` devices the decision that stands for its rounds: the middle one by U of those with the cut chosen
    most often."""
    ours, devices = solution.decisions, len(solution.problem.devices)
    rows = []
    for m in range(min(most, devices)):
        group = np.arange(m, len(ours.cut), devices)
        alike = group[ours.cut[group] == np.bincount(ours.cut[group]).argmax()]
        rows.append(int(alike[np.argsort(ours.cost[alike], kind="stable")[(len(alike) - 1) // 2]]))
    return rows


def _reasons(solution: Solution) -> list[RenderableType]:
    from rich.text import Text

    devices, rounds = solution.problem.devices, solution.problem.rates.rounds
    rows = typical_rows(solution, MOST_REASONS)
    parts: list[RenderableType] = []
    for row, why in zip(rows, explain(solution, rows).sentences(), strict=True):
        r, m = divmod(row, len(devices))
        text = Text(f"Why cut {solution.decisions.cut[row]} on {devices[m].name}", style="bold")
        if len(rounds) > 1:
            text.append(f" (as in round {rounds[r]})", style="not bold")
        parts.append(text.append(": ").append(why, style="not bold"))
    if len(devices) > MOST_REASONS:
        parts.append(Text(f"The reasons of {len(devices) - MOST_REASONS} more devices: --json or --html."))
    return parts


def _row(solution: Solution, group: Sequence[int], show_round: bool) -> list[str]:
    ours, rows = solution.decisions, np.array(group)
    round_index, m = divmod(group[0], len(solution.problem.devices))
    cells = [solution.problem.devices[m].name]
    if show_round:
        cells.append(str(solution.problem.rates.rounds[round_index]))
    counts = Counter(ours.cut[rows].tolist()).most_common(3)
    several = len(set(ours.cut[rows].tolist())) > 1
    cells.append(
        ", ".join(f"{cut} ({100 * times / len(group):.0f} %)" if several else str(cut) for cut, times in counts)
    )
    cells.append(_span(ours.frequency_hz[rows] / 1e9) if solution.problem.clocks.known else "?")
    cells.append(quantity(float(ours.costs.delay_s[rows].mean()), "s", 4))
    cells.append("?" if ours.costs.energy_j is None else quantity(float(ours.costs.energy_j[rows].mean()), "J", 4))
    cells.append(f"{float(ours.cost[rows].mean()):.3f}")
    cells.append(_saving(ours.costs.delay_s, solution.baselines[DEVICE_ONLY], "delay", rows))
    cells.append(_saving(ours.costs.energy_j, solution.baselines[SERVER_ONLY], "energy", rows))
    return cells


def _saving(ours: Floats | None, baseline: Decisions, figure: str, rows: Floats) -> str:
    theirs = baseline.costs.delay_s if figure == "delay" else baseline.costs.energy_j
    if ours is None or theirs is None:
        return "?"
    if not baseline.feasible[rows].all():
        return "no fit"
    if not theirs[rows].mean() > 0:
        return "?"
    change_pct = 100 * (float(ours[rows].mean() / theirs[rows].mean()) - 1)
    return "same" if abs(change_pct) < 0.05 else f"{change_pct:+.1f} %"


def _signed(saved_pct: float) -> str:
    if abs(saved_pct) < 0.05:
        return "the same"
    return f"{abs(saved_pct):.1f} % {'less' if saved_pct > 0 else 'more'}"


def _summary(solution: Solution) -> RenderableType:
    from rich.text import Text

    summary = solution.summary()
    delay, energy = summary["mean_delay_s"], summary["mean_energy_j"]
    text = Text("mean of a round: ", style="bold")
    text.append("delay " + ("?" if delay is None else quantity(delay, "s", 4)))
    text.append(", server's energy " + ("?" if energy is None else quantity(energy, "J", 4)))
    against_device = summary["delay_reduction_vs_device_only_pct"]
    against_server = summary["energy_reduction_vs_server_only_pct"]
    if against_device is not None:
        text.append(f"; delay {_signed(against_device)} against device-only")
    if against_server is not None:
        text.append(f"; energy {_signed(against_server)} against server-only")
    return text


def _assumptions(solution: Solution) -> RenderableType:
    from rich.text import Text

    if not solution.assumptions:
        return Text("Every quantity used was measured.", style="green")
    kinds: dict[str, list[str]] = {}
    for item in solution.assumptions:
        owner, _, what = item.quantity.partition(": ")
        names = kinds.setdefault(item.provenance, [])
        label = what if owner != "channel" else f"channel's {what}"
        if label not in names:
            names.append(label)
    text = Text("Not measured", style="bold")
    for provenance, names in kinds.items():
        text.append(f"\n  {provenance}: ", style="cyan")
        text.append("; ".join(names), style="not bold")
    return text


def _span(values: Floats) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f}-{high:.3f}"


# -------------------------------------------------------------------------------------------------------------- plots


def write_plots(solution: Solution, folder: Path) -> list[Path]:
    """Write ``DEVICE.png`` for each device (its first round): delay and energy over the cuts, and U over cut and clock.

    Raises BadInput where matplotlib is missing or the folder cannot be written.
    """
    paths = []
    for m, device in enumerate(solution.problem.devices):
        figure = new_figure(11, 4.2)
        left, right = figure.subplots(1, 2)
        _plot_cuts(solution, m, left)
        _plot_cost(solution, m, figure, right)
        options = solution.problem.options
        figure.suptitle(
            f"{device.name} with {solution.problem.server.name}, w = {options.w:g}, method {options.method}"
        )
        paths.append(save(figure, folder / f"{device.name}.png"))
    return paths


def _plot_cuts(solution: Solution, m: int, axes: object) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

    assert isinstance(axes, Axes)
    ours, link = solution.decisions, solution.problem.rates
    cuts = np.arange(1, solution.problem.evaluated.cuts + 1)
    costs = solution.problem.evaluated.at(
        m, link.uplink_bps[0, m], link.downlink_bps[0, m], cuts - 1, ours.frequency_hz[m]
    )
    bottom = np.zeros(len(cuts))
    for label, part, color in (
        ("device computes", costs.device_compute_s, COLOURS["device"]),
        ("server computes", costs.server_compute_s, COLOURS["server"]),
        ("smashed data and gradients", costs.uplink_s + costs.downlink_s, COLOURS["link"]),
        ("adapters", costs.adapters_s, COLOURS["adapters"]),
    ):
        axes.bar(cuts, part, bottom=bottom, label=label, color=color, width=0.85)
        bottom = bottom + part
    fits = solution.problem.feasible[m]
    if not fits.all():
        axes.bar(
            cuts[~fits], bottom[~fits], color="none", edgecolor="0.4", hatch="///", label="does not fit", width=0.85
        )
    chosen = int(ours.cut[m])
    axes.axvline(chosen, color="black", linestyle="--", linewidth=1)
    clock = f" at {ours.frequency_hz[m] / 1e9:.3f} GHz" if solution.problem.clocks.known else ""
    axes.set_xlabel(f"cut layer c: layers 1..c on the device{clock}")
    axes.set_ylabel("delay of a round (s)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.annotate(f"cut {chosen}", (chosen, axes.get_ylim()[1]), ha="center", va="bottom", annotation_clip=False)
    axes.legend(fontsize=7, loc="upper center", ncols=2)
    if costs.energy_j is not None:
        twin = axes.twinx()
        twin.plot(cuts, costs.energy_j, color=COLOURS["energy"], marker=".", linewidth=1.2)
        twin.set_ylabel("server's energy (J)", color=COLOURS["energy"])
        twin.set_ylim(0, 1.25 * twin.get_ylim()[1])


def _plot_cost(solution: Solution, m: int, figure: object, axes: object) -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    assert isinstance(axes, Axes)
    assert isinstance(figure, Figure)
    model, link, clocks = solution.problem.evaluated, solution.problem.rates, solution.problem.clocks
    hz = clocks.supported_hz
    if len(hz) == 0:
        hz = (
            np.linspace(clocks.f_min_hz, clocks.f_max_hz, 80)
            if clocks.f_max_hz > clocks.f_min_hz
            else np.array([clocks.f_min_hz])
        )
    cuts = np.arange(1, model.cuts + 1)
    costs = model.at(m, link.uplink_bps[0, m], link.downlink_bps[0, m], (cuts - 1)[:, None], hz[None, :])
    x, y = (weight[m] for weight in solution.extremes.weights(solution.problem.options.w))
    value = x * (costs.delay_s - solution.extremes.d_min_s[m])
    if costs.energy_j is not None:
        value = value + y * (costs.energy_j - solution.extremes.e_min_j[m])
    value = np.where(solution.problem.feasible[m][:, None], value, np.nan)
    mesh = axes.pcolormesh(cuts, hz / 1e9, value.T, shading="nearest", cmap="viridis_r")
    figure.colorbar(mesh, ax=axes, label="U (Eq. 12)")
    axes.plot(
        solution.decisions.cut[m], solution.decisions.frequency_hz[m] / 1e9, "r*", markersize=14, label="decision"
    )
    axes.set_xlabel("cut layer c")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("server clock (GHz)" if clocks.known else "server clock (not known)")
    axes.legend(fontsize=7, loc="best")
