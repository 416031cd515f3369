"""What a person reads in a terminal: the decision table with its reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from profiler.profile import printable
from profiler.units import data_size, quantity, ranges
from solver.baselines import DEVICE_ONLY, SERVER_ONLY
from solver.costs import Floats
from solver.scenario import Decisions, Solution
from solver.show.reasons import explain

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
        console.print(part, crop=False)


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
        f" on {solution.problem.server.name}: method {options.method}, {options.objective.words}, T = {options.local_epochs} mini-batches a round; "
        f"delay and energy from {figures}{over}",
    )


def groups(solution: Solution) -> list[Sequence[int]]:
    """The decisions of each row of the table: one, or with more than `MOST_ROWS` all rounds of a device."""
    count, devices = len(solution.decisions.cut), len(solution.problem.devices)
    if count <= MOST_ROWS:
        return [[n] for n in range(count)]
    return [range(m, count, devices) for m in range(devices)]


def _by_round(solution: Solution) -> bool:
    return len(solution.problem.rates.rounds) > 1 and len(solution.decisions.cut) <= MOST_ROWS


def columns(solution: Solution) -> list[str]:
    """Headings of the table, one for each of `cells`."""
    goal = solution.problem.options.objective
    cost = goal.cost_name if goal.kind == "w" else f"cost ({goal.cost_unit})"
    return [
        "device",
        *(["round"] if _by_round(solution) else []),
        f"cut of {solution.problem.server.workload.layers}",
        "server clock (GHz)",
        *([] if solution.codec_names is None else ["codec"]),
        "delay",
        "energy",
        cost,
        "delay against device-only",
        "energy against server-only",
    ]


def _table(solution: Solution) -> Table:
    from profiler.tables import plain_table

    table = plain_table()
    for k, name in enumerate(columns(solution)):
        if k == 0:
            table.add_column(name, overflow="fold", min_width=9)
        else:  # headings break where they may, so that the figures have the room
            short = re.sub(r" (?!\d)|(?<=-)(?=only)", "\n", name)
            table.add_column(short, justify="right", no_wrap=True)
    for group in groups(solution):
        table.add_row(*cells(solution, group))
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


def cells(solution: Solution, group: Sequence[int]) -> list[str]:
    """One row of the table: means over the decisions ``group`` of one device."""
    ours, rows = solution.decisions, np.array(group)
    round_index, m = divmod(group[0], len(solution.problem.devices))
    row = [solution.problem.devices[m].name]
    if _by_round(solution):
        row.append(str(solution.problem.rates.rounds[round_index]))
    row.append(_shares(ours.cut[rows].tolist()))
    row.append(_span(ours.frequency_hz[rows] / 1e9) if solution.problem.clocks.known else "?")
    if solution.codec_names is not None and ours.costs.codec is not None:
        row.append(_shares([solution.codec_names[k] for k in ours.costs.codec[rows].tolist()]))
    row.append(quantity(float(ours.costs.delay_s[rows].mean()), "s", 4))
    row.append("?" if ours.costs.energy_j is None else quantity(float(ours.costs.energy_j[rows].mean()), "J", 4))
    row.append(f"{float(ours.cost[rows].mean()):.3f}")
    row.append(_saving(ours.costs.delay_s, solution.baselines[DEVICE_ONLY], "delay", rows))
    row.append(_saving(ours.costs.energy_j, solution.baselines[SERVER_ONLY], "energy", rows))
    return row


def _shares(values: Sequence[int] | Sequence[str]) -> str:
    """What stands there most often, with how often where it is not always the same."""
    counts = Counter(values).most_common(3)
    several = len(set(values)) > 1
    return ", ".join(
        f"{value} ({100 * times / len(values):.0f} %)" if several else str(value) for value, times in counts
    )


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
    whose = "energy, the devices' counted too, " if solution.problem.options.device_energy else "server's energy "
    text.append(f", {whose}" + ("?" if energy is None else quantity(energy, "J", 4)))
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
