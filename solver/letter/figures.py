"""What `letter.reproduce` found, for people: CSV, plots and the tables of the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.store import write_atomically
from solver.baselines import DEVICE_ONLY, SERVER_ONLY
from solver.figures import COLOURS, new_figure, save
from solver.letter.reproduce import SWEEPS, Reproduction
from solver.letter.sets import CARD, LETTER_PCT, METHODS, STATES

if TYPE_CHECKING:
    from rich.console import Console


def _csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[repr(x) if isinstance(x, float) else x for x in row] for row in rows])
    write_atomically(path, out.getvalue().encode())
    return path


def write_tables(result: Reproduction, folder: Path) -> list[Path]:
    """``fig3a.csv``, ``fig3b.csv``, ``fig4a.csv``, ``fig4b.csv``, ``summary.json``; after a full search ``region.csv`` and ``conditions.csv``."""
    o, labels = result.outcome, result.solutions[STATES[0]].problem.rates.rounds
    written = []
    for name, column, values in (("fig3a", "cut", o.cut[0]), ("fig3b", "frequency_hz", o.frequency_hz[0])):
        lines = [
            (state, label, device, values[s, r, m].item())
            for s, state in enumerate(STATES)
            for r, label in enumerate(labels)
            for m, device in enumerate(result.devices)
        ]
        written.append(_csv(folder / f"{name}.csv", ("channel", "round", "device", column), lines))
    for name, column, table in (("fig4a", "mean_delay_s", o.delay_s), ("fig4b", "mean_energy_j", o.energy_j)):
        bars = [(state, m, float(table[m][0, s].mean())) for s, state in enumerate(STATES) for m in METHODS]
        written.append(_csv(folder / f"{name}.csv", ("channel", "method", column), bars))
    if result.region is not None:
        sets, points = result.region
        delay, energy = points.pair_pct()
        cuts = points.cut[:, 1, 0]
        names = [k for k in sets.as_json() if k not in ("smashed_growth", "head_layers", "xi_factor", "link")]
        drawn = [
            (
                float(delay[k]),
                float(energy[k]),
                " ".join(map(str, cuts[k])),
                *[float(getattr(sets, n)[k]) for n in names],
                " ".join(f"{x:.4g}" for x in sets.link[k]),
            )
            for k in range(len(sets))
        ]
        head = ("delay_reduction_pct", "energy_reduction_pct", "cuts_normal", *names, "link")
        written.append(_csv(folder / "region.csv", head, drawn))
    if result.conditions:
        swept = [
            [" ".join(f"{x:.6g}" for x in v) if isinstance(v, list) else v for v in row.values()]
            for row in result.conditions
        ]
        written.append(_csv(folder / "conditions.csv", list(result.conditions[0]), swept))
    path = folder / "summary.json"
    write_atomically(path, json.dumps(result.as_json(), indent=1, allow_nan=False).encode())
    return [*written, path]


_SHADES = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")
_BARS = {CARD: COLOURS["energy"], SERVER_ONLY: COLOURS["server"], DEVICE_ONLY: COLOURS["device"]}


def write_plots(result: Reproduction, folder: Path) -> list[Path]:
    """The four figures as PNG; after a full search the attainable region and the conditions too. Raises MissingHardware without matplotlib."""
    o, written = result.outcome, []
    labels = result.solutions["normal"].problem.rates.rounds
    for name, values, title, axis in (
        ("fig3a", o.cut[0, 1], "Fig. 3(a): cut layer, state normal", "cut layer"),
        ("fig3b", o.frequency_hz[0, 1] / 1e9, "Fig. 3(b): server's clock, state normal", "GHz"),
    ):
        figure = new_figure(6, 3.6)
        axes = figure.subplots()
        for m, device in enumerate(result.devices):
            shift = (
                0.25 * m if name == "fig3a" else 0.0
            )  # lines that lie on each other are told apart, here and by width
            width = 1.5 if name == "fig3a" else 1.2 + 0.6 * (len(result.devices) - 1 - m)
            shade = _SHADES[m % len(_SHADES)]
            axes.step(labels, values[:, m] + shift, where="mid", label=device, color=shade, linewidth=width)
        axes.set(xlabel="training round", ylabel=axis, title=title)
        figure.legend(fontsize="small", ncols=min(len(result.devices), 5), loc="outside lower center")
        written.append(save(figure, folder / f"{name}.png"))
    for name, table, title, axis in (
        ("fig4a", o.delay_s, "Fig. 4(a): delay of a round", "s"),
        ("fig4b", o.energy_j, "Fig. 4(b): server's energy in a round", "J"),
    ):
        figure = new_figure(6, 3.6)
        axes = figure.subplots()
        for k, method in enumerate(METHODS):
            means = table[method][0].mean((1, 2))
            bars = axes.bar(np.arange(3) + 0.27 * (k - 1), means, 0.25, label=method, color=_BARS[method])
            axes.bar_label(bars, fmt="%.3g", fontsize="x-small")
        axes.set(ylabel=axis, title=title, xticks=range(3), xticklabels=STATES)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
        written.append(save(figure, folder / f"{name}.png"))
    if result.region is not None:
        written.append(_plot_region(result, folder / "region.png"))
    if result.conditions:
        written.append(_plot_conditions(result, folder / "conditions.png"))
    return written


def _plot_region(result: Reproduction, path: Path) -> Path:
    assert result.region is not None
    sets, points = result.region
    delay, energy = points.pair_pct()
    at_last = (points.cut == points.cut.max()).sum((1, 2, 3)) / len(STATES)
    figure = new_figure(11, 4.6)
    for axes, shade, label in zip(
        figure.subplots(1, 2, sharey=True),
        (sets.f_min_ghz, at_last),
        ("F_min in GHz", "devices at the last cut"),
        strict=True,
    ):
        dots = axes.scatter(delay, energy, c=shade, s=5, cmap="viridis", rasterized=True)
        figure.colorbar(dots, ax=axes, label=label)
        axes.plot(*LETTER_PCT, "*", color="#ee6677", markersize=16, markeredgecolor="black", label="the letter")
        ours = [float(x[0]) for x in result.outcome.pair_pct()]
        axes.plot(*ours, "P", color="white", markersize=10, markeredgecolor="black", label="the stated set")
        axes.set(xlabel="delay saved against device-only, %")
        axes.legend(fontsize="small", loc="lower left")
    figure.axes[0].set_ylabel("server's energy saved against server-only, %")
    figure.suptitle(f"What plausible sets of the parameters that the letter does not give lead to ({len(sets)} draws)")
    return save(figure, path)


def _plot_conditions(result: Reproduction, path: Path) -> Path:
    figure = new_figure(11, 3.8)
    for axes, (name, label) in zip(figure.subplots(1, 3), SWEEPS, strict=True):
        rows = [r for r in result.conditions if r["swept"] == name]
        x = [r["value"] for r in rows]
        if name == "f_min_ghz":
            for m, device in enumerate(result.devices):
                y = [r["mean_frequency_hz"][m] / 1e9 for r in rows]
                axes.plot(x, y, label=device, color=_SHADES[m % len(_SHADES)])
            axes.legend(fontsize="small")
            axes.set(ylabel="server's clock in GHz")
        else:
            y = [r["devices_whose_cut_changes"] for r in rows]
            axes.plot(x, y, drawstyle="steps-mid", color=_SHADES[0])
            axes.set(ylabel="devices whose cut changes", xscale="log" if name == "uplink_mbps" else "symlog")
            axes.set_ylim(-0.1, len(result.devices) + 0.1)
        axes.set(xlabel=label)
    figure.suptitle("When Fig. 3 would be as printed: one quantity moved from the stated set")
    return save(figure, path)


def print_report(result: Reproduction, console: Console) -> None:
    """The claims with their verdicts, and what the search found."""
    from profiler.tables import Table

    table = Table(
        title="The letter's claims (Section V) and ours, at the stated set and in draws of what it does not give"
    )
    for column in ("claim", "ours", "in draws", "verdict"):
        table.add_column(column, no_wrap=column == "in draws")
    for t in result.tested:
        share = "-" if t.share_of_draws is None else f"{100 * t.share_of_draws:.3g} %"
        table.add_row(f"{t.claim.name} ({t.claim.letter})", t.ours, share, t.verdict)
    console.print(table, crop=False)
    if not result.found:
        console.print(f"What the letter leaves open was not varied: {result.not_varied}", markup=False, highlight=False)
        return
    nearest = Table(title=f"Sets nearest to {LETTER_PCT[0]} % and {LETTER_PCT[1]} %")
    for column in (
        "search",
        "delay, energy %",
        "off",
        "F_min GHz",
        "batch, seq, rank",
        "up/down Mbit/s",
        "cuts, normal",
    ):
        nearest.add_column(column, no_wrap=column not in ("search", "cuts, normal"))
    for f in result.found:
        one = f.settings.as_json()
        nearest.add_row(
            f.name,
            f"{f.delay_pct:.1f}, {f.energy_pct:.1f}",
            f"{f.distance_points:.2f}",
            f"{one['f_min_ghz']:.2f}",
            f"{one['batch_size']:.0f}, {one['seq_len']:.0f}, {one['lora_rank']:.0f}",
            f"{one['uplink_mbps']:.0f}/{one['downlink_mbps']:.0f}",
            " ".join(map(str, f.cuts[1])),
        )
    console.print(nearest, crop=False)
    if result.around:
        moved = Table(title="One parameter moved from the second of these: the pair's range in points")
        for column in ("parameter", "from", "to", "delay %", "energy %"):
            moved.add_column(column, no_wrap=column != "parameter")
        for s in result.around:
            spans = [f"{a:.1f} to {b:.1f}" for a, b in (s.delay_pct, s.energy_pct)]
            moved.add_row(s.name, f"{s.low:.3g}", f"{s.high:.3g}", *spans)
        console.print(moved, crop=False)
