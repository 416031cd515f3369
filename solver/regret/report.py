"""What a person reads of a regret: three tables, the decisions that flipped, a CSV, and the picture of four waterfalls."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.profile import BadInput, printable
from profiler.store import write_atomically
from profiler.units import quantity
from solver.costs import Floats
from solver.figures import COLOURS, new_figure, save
from solver.regret.regret import Regret

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console, RenderableType
    from rich.table import Table

MOST_FLIPS = 12
"""More flipped decisions than this are counted and not listed; --json lists them all."""

WORDS = {
    "xi": "ξ",
    "cubic-law": "cubic law",
    "clock-scaling": "time as 1/f",
    "delta": "δ",
    "equal-layers": "equal layers",
    "phi": "φ",
    "rates": "rates",
    "rounding": "f* rounded",
    "other-energy": "no other energy",
}


def print_regret(found: Regret, console: Console) -> None:
    """Print what trusting the letter loses, by parameter, and which decisions flipped."""
    for part in renderables(found):
        console.print(part, crop=False)


def renderables(found: Regret) -> list[RenderableType]:
    """The report as rich renderables, for a terminal or a notebook. It is readable in 80 columns."""
    from rich.text import Text

    problem, options = found.problem, found.problem.options
    where = "the letter's model of the fleet" if problem.tables is None else "the profiles' tables"
    parts: list[RenderableType] = [
        Text.assemble(
            (printable(problem.server.workload.model), "bold"),
            f" on {problem.server.name}: {len(found.ideal.cut)} decisions, w = {options.w:g}, T = {options.local_epochs}. "
            f"The truth is {where} ({sources(found)})",
        ),
        _decided(found),
        _shared(found),
        Text(
            f"Shares are Shapley values over {1 << found.count} beliefs and add up to what is lost. Below, only one parameter is "
            "assumed: what its decisions lose, how many get another cut or clock, the U that is still lost if it alone is measured and "
            "the others are assumed, and how far off that belief expects delay and energy to be.",
            style="dim",
        ),
        _one_by_one(found),
    ]
    parts += [Text(line) for line in sentences(found)]
    parts += [Text(line) for line in _flips(found)]
    rests_on = found.assumptions()
    if rests_on:
        parts.append(
            Text(f"The truth itself rests on {len(rests_on)} figures that were not measured (--json lists them).")
        )
    parts += [Text(f"warning: {line}", style="yellow") for line in problem.warnings]
    return parts


def _decided(found: Regret) -> Table:
    ideal, trusting, by_card = found.belief(0), found.belief(-1), found.card_measured
    from profiler.tables import plain_table

    table = plain_table()
    table.add_column("mean of a round")
    for name in ("delay", "energy", "U"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(label: str, delay: float, energy: float, cost: float | None) -> None:
        table.add_row(label, quantity(delay, "s", 4), quantity(energy, "J", 4), "" if cost is None else f"{cost:.3f}")

    row("joint optimum by the truth", ideal["mean_delay_s"], ideal["mean_energy_j"], ideal["mean_cost"])
    means = [float(part.mean()) for part in (by_card.delay_s, by_card.energy_j, by_card.cost)]
    row("Algorithm 1, the profiles' ξ, δ, φ and rates", *means)
    row(
        "Algorithm 1, the letter's parameters", trusting["mean_delay_s"], trusting["mean_energy_j"], trusting["mean_cost"]
    )  # fmt: skip
    row("  what it expects of that", trusting["predicted_delay_s"], trusting["predicted_energy_j"], None)
    table.add_row(
        "lost by trusting the letter",
        _pct(trusting["regret_delay_pct"]),
        _pct(trusting["regret_energy_pct"]),
        f"{trusting['regret_cost']:+.3f}",
        style="bold",
    )
    return table


def _shared(found: Regret) -> Table:
    from profiler.tables import plain_table

    table = plain_table()
    table.add_column("parameter", overflow="fold")
    table.add_column("letter", justify="right", overflow="fold", max_width=13)
    table.add_column("profiles", justify="right", overflow="fold", max_width=13)
    for name in ("share of\ndelay", "share of\nenergy", "share\nof U"):
        table.add_column(name, justify="right", no_wrap=True)
    shares = found.shares
    for j, p in enumerate(found.parameters):
        values = [shares["delay_s"][j], shares["energy_j"][j], shares["cost"][j]]
        cells = ["same"] * 3 if found.same(j) else _amounts(values)
        table.add_row(f"{WORDS[p.name]}: {p.quantity}", p.assumed, p.truth, *cells)
    total = found.belief(-1)
    table.add_section()
    table.add_row(
        "together", "", "", *_amounts([total["regret_delay_s"], total["regret_energy_j"], total["regret_cost"]])
    )
    return table


def _one_by_one(found: Regret) -> Table:
    from profiler.tables import plain_table

    table = plain_table()
    table.add_column("only this\nassumed", no_wrap=True)
    for name in (
        "delay",
        "energy",
        "U",
        "cut,\nclock",
        "U if\nmended",
        "expects\ndelay",
        "expects\nenergy",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for j, p in enumerate(found.parameters):
        if found.same(j):
            continue
        at, mended = found.alone(j), found.mended(j)
        table.add_row(
            WORDS[p.name],
            _pct(at["regret_delay_pct"]),
            _pct(at["regret_energy_pct"]),
            _cost(at["regret_cost"]),
            f"{at['cuts_flipped']}, {at['clocks_changed']}",
            _cost(mended["regret_cost"]),
            _pct(at["prediction_error_delay_pct"]),
            _pct(at["prediction_error_energy_pct"]),
        )
    everything = found.belief(-1)
    table.add_section()
    table.add_row(
        "all assumed",
        _pct(everything["regret_delay_pct"]),
        _pct(everything["regret_energy_pct"]),
        _cost(everything["regret_cost"]),
        f"{everything['cuts_flipped']}, {everything['clocks_changed']}",
        "",
        _pct(everything["prediction_error_delay_pct"]),
        _pct(everything["prediction_error_energy_pct"]),
    )
    return table


def sources(found: Regret) -> str:
    """Which parameters of the truth are measured, emulated, assumed and so on, in words."""
    kinds: dict[str, list[str]] = {}
    for p in found.parameters:
        kinds.setdefault(" and ".join(p.provenance), []).append(WORDS[p.name])
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())


def sentences(found: Regret) -> list[str]:
    """What the tables amount to, in words: what cannot matter and what its error does, what is the same on both sides, what does not fit."""
    lines = []
    names, same = (
        found.powerless(),
        [WORDS[p.name] for j, p in enumerate(found.parameters) if found.same(j)],
    )
    if names:
        words = ", ".join(WORDS[name] for name in names)
        lines.append(
            f"Cannot matter here: {words}. No decision depends on {'it' if len(names) == 1 else 'them'} under any of the "
            f"{1 << found.count} beliefs."
        )
    if "xi" in names:
        at = found.alone(0)
        lines.append(
            f"ξ only scales the joules that are expected: {_times(at['prediction_error_energy_pct'])} the true ones."
        )
    if same:
        lines.append(f"The same on both sides, so nothing can be lost by it: {', '.join(same)}.")
    lost = found.belief(-1)["regret_cost"]
    left = [found.mended(j)["regret_cost"] for j in range(found.count)]
    best = int(np.argmin(left))
    if lost > 1e-4 and left[best] < lost:
        lines.append(
            f"Measure first: {WORDS[found.parameters[best].name]}. That one alone takes the loss of U from {lost:.3f} to {left[best]:.3f}."
        )
    for misfit in found.misfits:
        lines.append(
            f"The letter knows no memory limit: without it Algorithm 1 would take cut {misfit.cut} for {misfit.device} "
            f"({misfit.decisions} decisions), which does not fit. Here the limits hold on both sides."
        )
    return lines


def _flips(found: Regret) -> list[str]:
    rows = found.flips()
    if not rows:
        return ["Every decision is the ideal one."]
    at = found.belief(-1)
    lines = [
        f"Of {len(found.ideal.cut)} decisions: another cut {at['cuts_flipped']}, another clock at the same cut {at['clocks_changed']}:"
    ]
    for row in rows[:MOST_FLIPS]:
        (cut, other_cut), (hz, other_hz) = row["cut"], row["frequency_hz"]
        moved = f"cut {cut}" if cut == other_cut else f"cut {cut} -> {other_cut}"
        delay, energy = row["delay_s"], row["energy_j"]
        lines.append(
            f"  {row['device']}, round {row['round']}: {moved}, {hz / 1e9:.3f} -> {other_hz / 1e9:.3f} GHz: "
            f"{_pct(_change(delay))} delay, {_pct(_change(energy))} energy"
        )
    if len(rows) > MOST_FLIPS:
        lines.append(f"  ... and {len(rows) - MOST_FLIPS} more (--json lists them all)")
    return lines


def _change(pair: list[float]) -> float | None:
    return 100 * (pair[1] / pair[0] - 1) if pair[0] > 0 else None


def _pct(value: float | None) -> str:
    if value is None:
        return "?"
    if abs(value) < 0.05:
        return "0 %"
    if value >= 1000:
        return f"{1 + value / 100:.3g} x"
    return f"{value:+.0f} %" if abs(value) >= 100 else f"{value:+.1f} %"


def _times(error_pct: float | None) -> str:
    return "?" if error_pct is None else f"{1 + error_pct / 100:.3g} times"


def _cost(value: float) -> str:
    return "0" if abs(value) < 5e-5 else f"{value:+.4f}"


def _amounts(values: list[float]) -> list[str]:
    units = ("s", "J")
    cells = [
        "0" if abs(v) < 5e-4 else f"{'+' if v > 0 else '-'}{quantity(abs(float(v)), u, 3)}"
        for v, u in zip(values, units, strict=False)
    ]
    return [*cells, _cost(float(values[2]))]


# ---------------------------------------------------------------------------------------------------------------- CSV


def write_csv(found: Regret, path: Path) -> Path:
    """One row for each parameter: both sides, its shares, and what it does alone. Raises BadInput where the file cannot be written."""
    rows: list[dict[str, Any]] = []
    for row in found.as_json()["parameters"]:
        flat = {name: row[name] for name in ("parameter", "quantity", "assumed", "truth")}
        flat["provenance"] = " ".join(row["provenance"])
        for group in ("shapley", "only_this_assumed", "only_this_measured"):
            flat |= {f"{group}_{name}": value for name, value in row[group].items()}
        flat["beliefs_in_which_it_changes_a_decision"] = row["beliefs_in_which_it_changes_a_decision"]
        rows.append(flat)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    write_atomically(path, out.getvalue().encode())
    return path


# --------------------------------------------------------------------------------------------------------------- plot


def write_plot(found: Regret, path: Path) -> Path:
    """Four waterfalls: what trusting the letter loses in delay and energy, and how far off it expects both to be, by parameter.

    Bars are in percent, of the optimum above and of the truth below, on one scale for delay and energy. Raises MissingHardware
    without matplotlib, BadInput where the file's name has another ending or cannot be written.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise BadInput(f"--plot {path}: expected a name that ends in .png, .svg or .pdf")
    figure = new_figure(11.5, 7.4)
    panels = figure.subplots(2, 2, sharey=True, sharex="row")
    ideal, trusting, shares = found.belief(0), found.belief(-1), found.shares
    work, options = found.problem.server.workload, found.problem.options
    figure.suptitle(
        f"What it costs to trust the letter's parameters\n{printable(work.model)} on {found.problem.server.name} and "
        f"{len(found.problem.devices)} devices, w = {options.w:g}, rounds of {options.local_epochs} mini-batches",
        fontsize=12,
    )
    figure.supxlabel(
        f"Shapley shares: red adds, blue takes away. The truth is {sources(found)}.", fontsize=9, color="0.35"
    )
    # One scale for both panels of a row, so that a percent of delay looks like a percent of energy.
    for row, (prefix, title) in enumerate(
        (("", "lost by its decisions"), ("predicted_", "error of what it expects of them"))
    ):
        bases = [(ideal if row == 0 else trusting)[f"mean_{key}"] for key in ("delay_s", "energy_j")]
        paths = [
            np.append(0.0, np.cumsum(100 * shares[prefix + key] / base)) if base > 0 else np.zeros(1)
            for key, base in zip(("delay_s", "energy_j"), bases, strict=True)
        ]
        low, high = min(float(p.min()) for p in paths), max(float(p.max()) for p in paths)
        span = (high - low) or 1.0
        panels[row, 0].set_xlim(low - 0.04 * span, high + 0.36 * span)
        for column, (name, unit, what) in enumerate((("delay", "s", "delay"), ("energy", "J", "server's energy"))):
            key, axes, base = f"{name}_{unit.lower()}", panels[row, column], bases[column]
            true = quantity(trusting[f"mean_{key}"], unit, 3)
            if row == 0:
                words = f"{quantity(base, unit, 3)}, the optimum", f"{true} ({_pct(trusting[f'regret_{name}_pct'])})"
            else:
                words = f"{true} in truth", f"{quantity(trusting[f'predicted_{key}'], unit, 3)} expected"
            _waterfall(axes, found, shares[prefix + key], base, unit, *words, room=span)
            axes.set_title(f"{title}: {what}", fontsize=11, loc="left")
            axes.set_xlabel("% of the optimum" if row == 0 else "% of the truth", fontsize=9)
    return save(figure, path)


def _waterfall(
    axes: Axes, found: Regret, shares: Floats, base: float, unit: str, start: str, end: str, room: float
) -> None:
    """Bars from 0 to the sum of ``shares`` (n,) in percent of ``base``, one below the other, named by parameter. ``room``: percent shown."""
    percent = 100 * shares / base if base > 0 else np.zeros_like(shares)
    edges = np.concatenate([[0.0], np.cumsum(percent)])
    nothing = np.abs(percent) < 1e-6
    axes.axvline(0, color="0.25", linewidth=1)
    for j, (left, right) in enumerate(itertools.pairwise(edges)):
        y = j + 1
        colour = "0.6" if nothing[j] else COLOURS["server" if right > left else "device"]
        axes.barh(y, right - left, left=left, height=0.62, color=colour, edgecolor=colour, linewidth=1)
        axes.plot([right, right], [y - 0.31, y + 1.31], color="0.55", linewidth=0.8)
        beside = max(left, right)
        axes.annotate(
            "0" if nothing[j] else f"{shares[j]:+.3g} {unit}",
            (0.0 if -0.1 * room < beside < 0 else beside, y),  # not across the line at zero
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color="0.45" if nothing[j] else "black",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )
    last = len(shares) + 1
    axes.barh(last, edges[-1], height=0.62, color="0.3", edgecolor="0.3", linewidth=1)
    for at, y, words in ((max(float(edges[-1]), 0.0), last, end), (0.0, 0, start)):
        axes.annotate(words, (at, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, weight="bold")
    axes.set_ylim(last + 0.6, -0.6)
    names = [_label(found, j) for j in range(len(shares))]
    axes.set_yticks(np.arange(last + 1), ["the truth", *names, "trusting the letter"], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


def _label(found: Regret, j: int) -> str:
    p = found.parameters[j]
    if p.name in ("xi", "delta", "phi"):
        return (
            f"{WORDS[p.name]} = {p.assumed}, not {p.truth}" if not found.same(j) else f"{WORDS[p.name]} = {p.assumed}"
        )
    return f"{WORDS[p.name]} (the same)" if found.same(j) else WORDS[p.name]
