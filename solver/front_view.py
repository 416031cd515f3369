"""`solver.front` for people: the tables in the terminal and the plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiler.profile import printable
from profiler.units import quantity
from solver.figures import COLOURS, new_figure, save
from solver.front import Plateaus, Points, TradeOff
from solver.problem import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

MOST_ROWS = 24
"""With more plateaus than this only those of one cut after the other are shown, with the range of their clocks."""


def print_front(problem: Problem, found: list[TradeOff], console: Console) -> None:
    """Print, for each device, the front, its knee, the decisions over w, and what Algorithm 1 as printed loses."""
    work = problem.server.workload
    figures = "the letter's model (Eq. 7-11)" if problem.decider.name == "letter" else "the profiles' tables"
    console.print(
        f"[bold]{printable(work.model)}[/bold] on {printable(problem.server.name)}: delay against the server's energy of a round of "
        f"T = {problem.options.local_epochs} mini-batches, round {found[0].round}, from {figures}",
        highlight=False,
    )
    for each in found:
        console.print()
        for line in _lines(problem, each):
            console.print(line, markup=False, highlight=False)
        console.print(_table(problem, each), crop=False)
        console.print(_loss(each), markup=False, highlight=False)
    for line in problem.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False)


def _lines(problem: Problem, each: TradeOff) -> list[str]:
    ends = each.extremes
    looked_at = "" if each.listed else " looked at (any clock of the range will do)"
    price = (
        ""
        if each.price_j_per_s is None
        else f"; w = {problem.options.w:g} lets a second cost {quantity(each.price_j_per_s, 'J', 3)}"
    )
    lines = [
        f"{each.device}: {len(each.points)} points{looked_at}, {len(each.front)} on the front, {int(each.supported.sum())} of them "
        "reached by some w",
        f"  box: delay {_span(quantity(float(ends.d_min_s[0]), 's', 4), quantity(float(ends.d_max_s[0]), 's', 4))}, energy "
        f"{_span(quantity(float(ends.e_min_j[0]), 'J', 4), quantity(float(ends.e_max_j[0]), 'J', 4))}{price}",
        "  knee: none, no point lies below the chord of the front"
        if each.knee is None
        else f"  knee: {_point(each.front_points(), each.knee)}",
    ]
    broken = "" if each.keeps_limit else " (the nearest: no point keeps the limit)"
    lines.append(f"  exact, {problem.options.objective.words}: {_point(each.chosen, 0)}{broken}")
    lines.append(f"  Algorithm 1, w = {problem.options.w:g}: {_point(each.printed_chosen, 0)}")
    return lines


def _point(points: Points, k: int) -> str:
    return (
        f"cut {points.cut[k]}, {points.frequency_hz[k] / 1e9:.3f} GHz, {quantity(float(points.delay_s[k]), 's', 4)}, "
        f"{quantity(float(points.energy_j[k]), 'J', 4)}"
    )


def _table(problem: Problem, each: TradeOff) -> Table:
    from profiler.tables import plain_table

    table = plain_table()
    table.add_column("method", no_wrap=True)
    for column in (
        "from w",
        "to w",
        f"cut\nof {problem.layers}",
        "server\nclock (GHz)",
        "clocks",
        "delay (s)",
        "energy (J)",
    ):
        if column != "clocks" or each.listed:
            table.add_column(column, justify="right", no_wrap=True)
    for method, over_w in (("exact", each.exact), ("card", each.printed)):
        for row in _rows(over_w, each.listed):
            table.add_row(method, *row)
            method = ""
    return table


def _rows(over_w: Plateaus, listed: bool) -> list[tuple[str, ...]]:
    begin, end = over_w.begin, over_w.end
    size = len(over_w)
    starts = list(range(size))
    if size > MOST_ROWS:
        starts = [i for i in starts if i == 0 or begin.cut[i] != begin.cut[i - 1]]
    rows: list[tuple[str, ...]] = []
    for a, b in zip(starts, [*starts[1:], size], strict=True):
        rows.append(
            (
                f"{over_w.w[a]:.5f}",
                f"{over_w.w[b]:.5f}",
                str(begin.cut[a]),
                _span(f"{begin.frequency_hz[a] / 1e9:.3f}", f"{end.frequency_hz[b - 1] / 1e9:.3f}", "-"),
                *([str(b - a)] if listed else []),
                _span(f"{begin.delay_s[a]:.4g}", f"{end.delay_s[b - 1]:.4g}", "-"),
                _span(f"{begin.energy_j[a]:.4g}", f"{end.energy_j[b - 1]:.4g}", "-"),
            )
        )
    return rows


def _span(first: str, last: str, between: str = " to ") -> str:
    """A range, or the one figure that both ends read as."""
    return first if first == last else f"{first}{between}{last}"


def _loss(each: TradeOff) -> str:
    k = each.losses.worst
    if k is None:
        return "Algorithm 1 as printed is the exact optimum at every w looked at."
    lost = each.losses
    stretches = ", ".join(_span(f"{a:.3g}", f"{b:.3g}") for a, b in lost.stretches[:4])
    more = " and more" if len(lost.stretches) > 4 else ""
    return (
        f"Algorithm 1 as printed loses to the exact optimum at {100 * lost.share_of_w:.0f} % of all w ({stretches}{more}), most at w = "
        f"{lost.w[k]:.3g}: U +{lost.cost[k]:.3g}, delay {lost.delay_pct[k]:+.1f} %, energy {lost.energy_pct[k]:+.1f} %"
    )


# -------------------------------------------------------------------------------------------------------------- plots


def write_plots(problem: Problem, found: list[TradeOff], folder: Path) -> list[Path]:
    """Write ``front-DEVICE.png`` for each device: its front beside its decisions over w.

    Raises MissingHardware where matplotlib is not installed, BadInput where the folder cannot be written.
    """
    paths = []
    for each in found:
        figure = new_figure(12, 5)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.25, 1])
        _draw_front(problem, each, figure.add_subplot(grid[:, 0]))
        cuts = figure.add_subplot(grid[0, 1])
        _draw_over_w(problem, each, cuts, figure.add_subplot(grid[1, 1], sharex=cuts))
        figure.suptitle(f"{each.device} with {problem.server.name}")
        paths.append(save(figure, folder / f"front-{each.device}.png"))
    return paths


def _draw_front(problem: Problem, each: TradeOff, axes: Axes) -> None:
    points, front = each.points, each.front_points()
    dots = axes.scatter(points.delay_s, points.energy_j, c=points.cut, cmap="viridis", s=5, alpha=0.35, linewidths=0)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(dots, ax=axes, label="cut layer c", location="left")
    only_limits = ~each.supported
    corners = each.supported
    axes.plot(front.delay_s[corners], front.energy_j[corners], color=COLOURS["device"], linewidth=0.8, zorder=3)
    axes.scatter(
        front.delay_s[only_limits],
        front.energy_j[only_limits],
        s=9,
        color=COLOURS["server"],
        zorder=4,
        label=f"on the front, by a limit only ({int(only_limits.sum())})",
    )
    axes.scatter(
        front.delay_s[each.supported],
        front.energy_j[each.supported],
        s=14,
        color=COLOURS["device"],
        zorder=5,
        label=f"on the front, reached by some w ({int(each.supported.sum())})",
    )
    for chosen, marker, colour, label in (
        (each.printed_chosen, "X", COLOURS["other"], f"Algorithm 1, w = {problem.options.w:g}"),
        (each.chosen, "*", "black", f"exact, {problem.options.objective.words}"),
    ):
        axes.scatter(
            chosen.delay_s,
            chosen.energy_j,
            marker=marker,
            s=110,
            color=colour,
            edgecolor="white",
            zorder=7,
            label=label,
        )
    if each.knee is not None:
        axes.scatter(
            front.delay_s[each.knee],
            front.energy_j[each.knee],
            marker="D",
            s=45,
            color=COLOURS["energy"],
            edgecolor="white",
            zorder=6,
            label="knee",
        )
    # Hull, chord and knee are straight on straight axes only. What lies far beyond the front is beaten anyway.
    for set_limits, figures in (
        (axes.set_xlim, [front.delay_s, each.chosen.delay_s, each.printed_chosen.delay_s]),
        (axes.set_ylim, [front.energy_j, each.chosen.energy_j, each.printed_chosen.energy_j]),
    ):
        shown = np.concatenate(figures)
        margin = 0.08 * np.ptp(shown) or 0.05 * shown.max() or 1.0
        set_limits(shown.min() - margin, shown.max() + margin)
    axes.set_xlabel("delay of a round (s)")
    axes.set_ylabel("server's energy of a round (J)")
    axes.legend(fontsize=7, loc="upper right")


def _draw_over_w(problem: Problem, each: TradeOff, cuts: Axes, clocks: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    for over_w, colour, style, label in (
        (each.exact, "black", "-", "exact"),
        (each.printed, COLOURS["other"], "--", "Algorithm 1"),
    ):
        w = np.column_stack([over_w.w[:-1], over_w.w[1:]]).ravel()
        cuts.plot(w, np.repeat(over_w.begin.cut, 2), color=colour, linestyle=style, linewidth=1.6, label=label)
        clocks.plot(over_w.course_w, over_w.course_hz / 1e9, color=colour, linestyle=style, linewidth=1.6)
    for axes in (cuts, clocks):
        axes.axvline(problem.options.w, color="0.6", linewidth=0.8, linestyle=":")
    cuts.set_ylabel("cut layer c")
    cuts.set_ylim(0, problem.layers)
    cuts.yaxis.set_major_locator(MaxNLocator(integer=True))
    cuts.legend(fontsize=7, loc="best")
    clocks.set_ylabel("server's clock (GHz)")
    clocks.set_xlabel("w, the weight of delay in U")
    clocks.set_xlim(0, 1)
