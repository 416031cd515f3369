"""How sure a decision is, as a person reads it: sentences, a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiler.profile import printable
from profiler.units import quantity
from solver.costs import Ints, Mask
from solver.figures import COLOURS, new_figure, save
from solver.uncertainty.certainty import Certainty, Pick, share

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MOST_DEVICES = 20
"""More devices than this are not printed or drawn one by one."""
_NOTHING = 5e-4
"""In percent, and in units of U: less than this is printed as nothing."""


def print_certainty(certainty: Certainty, console: Console) -> None:
    """Print, for each device, in how many worlds its decision stays best, what it costs where it is not, and the safest choice."""
    for part in renderables(certainty):
        console.print(part, crop=False)


def renderables(certainty: Certainty) -> list[RenderableType]:
    """The report as rich renderables, for a terminal or a notebook."""
    from rich.text import Text

    problem = certainty.solution.problem
    rounds, count = len(problem.rates.rounds), len(problem.devices)
    over = f" x {rounds} rounds" if rounds > 1 else ""
    parts: list[RenderableType] = [
        Text.assemble(
            (printable(problem.server.workload.model), "bold"),
            f" on {problem.server.name}: method {problem.options.method}, {problem.options.objective.words}; "
            f"{certainty.worlds} worlds that the profiles leave possible{over}",
        ),
        _doubts(certainty),
    ]
    for m in range(min(count, MOST_DEVICES)):
        parts.append(Text.assemble((printable(problem.devices[m].name), "bold"), ": ", sentence(certainty, m)))
    if count > MOST_DEVICES:
        parts.append(Text(f"{count - MOST_DEVICES} more devices: --json"))
    sure = share(certainty.cut_stays)
    parts.append(
        Text(
            f"all decisions: the cut stays best in {_percent(100 * sure['share'])} of the worlds, cut and clock in "
            f"{_percent(100 * share(certainty.both_stay)['share'])}"
        )
    )
    parts += [Text(f"warning: {line}", style="yellow") for line in certainty.solution.warnings]
    return parts


def _doubts(certainty: Certainty) -> RenderableType:
    from profiler.tables import plain_table

    table = plain_table()
    table.add_column("what is uncertain", overflow="fold")
    table.add_column("95 %\nwithin", justify="right", no_wrap=True)
    table.add_column("of it in\ncommon", justify="right", no_wrap=True)
    table.add_column("by", overflow="fold")
    table.add_column("figures", no_wrap=True)
    for doubt in certainty.doubts:
        table.add_row(
            printable(doubt.quantity),
            "exact" if doubt.half_width_pct is None else f"{doubt.half_width_pct:.2g} %",
            "" if doubt.common_pct is None else f"{doubt.common_pct:.2g} %",
            doubt.basis,
            doubt.provenance,
        )
    return table


def sentence(certainty: Certainty, m: int) -> str:
    """What one device's decision is worth, over all its rounds, in words."""
    problem, ours = certainty.solution.problem, certainty.solution.decisions
    rows = np.arange(m, len(ours.cut), len(problem.devices))
    several = len(rows) > 1
    total = certainty.worlds * len(rows)
    cuts = sorted(set(ours.cut[rows].tolist()))
    which = f"cut {cuts[0]}" if len(cuts) == 1 else f"its cuts ({', '.join(map(str, cuts))})"
    stays, both = certainty.cut_stays[:, rows], certainty.both_stay[:, rows]
    of = f"{total} worlds" if not several else f"{total} worlds x rounds"
    text = f"{which} stay{'s' if len(cuts) == 1 else ''} best in {int(stays.sum())} of {of}"
    if not stays.all():
        text += f", else {_others(certainty, rows)}"
    if problem.clocks.known and len(problem.clocks.points_hz) > 1:
        clocks = sorted(set(ours.frequency_hz[rows].tolist()))
        hz = (
            f"{clocks[0] / 1e9:.4g} GHz" if len(clocks) == 1 else f"{clocks[0] / 1e9:.4g} to {clocks[-1] / 1e9:.4g} GHz"
        )
        text += f"; with its clock ({hz}) in {int(both.sum())}"
    text += ". "
    lost = ~both
    if lost.any():
        text += f"Where another choice is best, this one has {_more(certainty, rows, lost)}; "
        text += f"{_cost(certainty)} {_figure(certainty, certainty.regret[:, rows][lost].mean())} higher, {_worst(certainty, rows)}. "
    if certainty.broken[:, rows].any():
        text += f"It breaks the limit in {int(certainty.broken[:, rows].sum())} worlds where another choice keeps it. "
    if problem.options.method == "card":
        again = int(certainty.same_cut_decided[:, rows].sum())
        text += f"Algorithm 1 would decide the same cut in {again}. "
    return text + _safest(certainty, rows)


def _others(certainty: Certainty, rows: Ints) -> str:
    found = certainty.best_cut[:, rows][~certainty.cut_stays[:, rows]]
    cuts, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    named = ", ".join(f"cut {cuts[i]} ({counts[i]})" for i in order)
    return named + (" and others" if len(cuts) > 3 else "")


def _more(certainty: Certainty, rows: Ints, lost: Mask) -> str:
    parts = [_signed(float(certainty.delay_more_pct[:, rows][lost].mean()), "delay")]
    if certainty.energy_more_pct is not None:
        parts.append(_signed(float(certainty.energy_more_pct[:, rows][lost].mean()), "energy"))
    return " and ".join(parts) + " on average"


def _signed(percent: float, what: str) -> str:
    if abs(percent) < _NOTHING:
        return f"the same {what}"
    size = f"{abs(percent):.0f}" if abs(percent) >= 100 else f"{abs(percent):.2g}"
    return f"{size} % {'more' if percent > 0 else 'less'} {what}"


def _cost(certainty: Certainty) -> str:
    return {"U": "U is", "energy": "the energy is", "delay": "the delay is"}.get(
        certainty.solution.problem.options.objective.cost_name, "the cost is"
    )


def _figure(certainty: Certainty, value: float) -> str:
    unit = certainty.solution.problem.options.objective.cost_unit
    return quantity(float(value), unit, 3) if unit else f"{value:.2g}"


def _worst(certainty: Certainty, rows: Ints) -> str:
    regret = certainty.regret[:, rows]
    return (
        f"in 95 % of all worlds at most {_figure(certainty, np.quantile(regret, 0.95))}, "
        f"at worst {_figure(certainty, regret.max())}"
    )


def _safest(certainty: Certainty, rows: Ints) -> str:
    if len(rows) > 1:
        other = certainty.least_worst.cut[rows] != certainty.nominal.cut[rows]
        if not other.any():
            return "The choice of least worst-case loss has the same cut in every round."
        return f"The choice of least worst-case loss has another cut in {int(other.sum())} of {len(rows)} rounds."
    n = int(rows[0])
    ours, safest, average = certainty.nominal, certainty.least_worst, certainty.least_mean
    text = _choice(
        certainty, "The choice of least worst-case loss", safest, ours, n, safest.worst[n], ours.worst[n], "at worst"
    )
    if _same(safest, average, n):
        return text
    return (
        text
        + " "
        + _choice(
            certainty, "The one of least mean loss", average, ours, n, average.mean[n], ours.mean[n], "on average"
        )
    )


def _same(one: Pick, other: Pick, n: int) -> bool:
    return bool(one.cut[n] == other.cut[n] and one.frequency_hz[n] == other.frequency_hz[n])


def _choice(certainty: Certainty, name: str, pick: Pick, ours: Pick, n: int, its: float, mine: float, when: str) -> str:
    if _same(pick, ours, n):
        return f"{name} is this one."
    if pick.broken[n] == ours.broken[n] and _figure(certainty, its) == _figure(certainty, mine):
        return f"{name} is hardly another."
    clock = f" at {pick.frequency_hz[n] / 1e9:.4g} GHz" if certainty.solution.problem.clocks.known else ""
    kept = ""
    if pick.broken[n] != ours.broken[n]:
        kept = f", and breaks the limit in {int(pick.broken[n])} worlds instead of {int(ours.broken[n])}"
    return f"{name} is cut {pick.cut[n]}{clock}: {when} {_figure(certainty, its)} instead of {_figure(certainty, mine)}{kept}."


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value in (0.0, 100.0) else f"{value:.1f} %"


# --------------------------------------------------------------------------------------------------------------- plot


def write_plot(certainty: Certainty, folder: Path) -> Path:
    """Draw ``uncertainty.png``: which cut is best in how many worlds for each device, and how much the decision loses where it is not.

    Raises MissingHardware where matplotlib is not installed.
    """
    problem, ours = certainty.solution.problem, certainty.solution.decisions
    count = min(len(problem.devices), MOST_DEVICES)
    figure = new_figure(10.0, 1.6 + 0.45 * max(count, 4))
    left, right = figure.subplots(1, 2)
    names = [problem.devices[m].name for m in range(count)]
    for m in range(count):
        rows = np.arange(m, len(ours.cut), len(problem.devices))
        best = certainty.best_cut[:, rows]
        chosen = 100 * float((best == ours.cut[rows]).mean())
        left.barh(m, chosen, color=COLOURS["device"])
        cuts, counts = np.unique(best[best != ours.cut[rows]], return_counts=True)
        at = chosen
        for rank, i in enumerate(np.argsort(-counts, kind="stable")):
            width = 100 * float(counts[i]) / best.size
            left.barh(
                m, width, left=at, color=COLOURS["server"] if rank == 0 else COLOURS["adapters"], edgecolor="white"
            )
            if width > 6:
                left.text(at + width / 2, m, f"cut {cuts[i]}", ha="center", va="center", fontsize=8)
            at += width
        if chosen > 12:
            named = sorted(set(ours.cut[rows].tolist()))
            text = f"cut {named[0]}" if len(named) == 1 else "as decided"
            left.text(chosen / 2, m, f"{text}: {chosen:.3g} %", ha="center", va="center", fontsize=8, color="white")
        losses = np.sort(certainty.regret[:, rows].ravel())
        # Drawn to the end, so that a line of zeros is seen as well.
        right.plot(
            losses,
            100 * np.arange(1, len(losses) + 1) / len(losses),
            label=names[m],
            drawstyle="steps-post",
            ls=("-", "--", ":")[m % 3],
        )
    left.set_yticks(range(count), names)
    left.invert_yaxis()
    left.set_xlim(0, 100)
    left.set_xlabel(f"share of {certainty.worlds} worlds in which the cut is best (%)")
    goal = problem.options.objective
    right.set_xlabel(f"what the decision loses: {goal.cost_name}{f' ({goal.cost_unit})' if goal.cost_unit else ''}")
    right.set_ylabel("worlds with at most this loss (%)")
    right.set_ylim(0, 102)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    roots = {doubt.provenance for doubt in certainty.doubts if doubt.half_width_pct is not None}
    note = " (EMULATED figures)" if "emulated" in roots else ""
    figure.suptitle(
        f"How sure: {problem.server.workload.model} on {problem.server.name}, {goal.words}{note}", fontsize=10
    )
    return save(figure, folder / "uncertainty.png")
