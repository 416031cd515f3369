"""What a person reads about channels: the chain from power to rate, and what policies lose when a channel moves inside a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.profile import printable
from profiler.units import quantity
from solver import nr
from solver.adaptive import POLICIES, REFERENCE, Followed
from solver.channel import Channel

if TYPE_CHECKING:
    from rich.console import Console

LABELS = (
    "power sent",
    "mean gain",
    "bandwidth",
    "noise",
    "SNR",
    "CQI",
    "MCS",
    "modulation, code rate",
    "rate",
    "mean rate with fading",
    "share of time below CQI 1",
)


def print_channel(channel: Channel, console: Console) -> None:
    """Print how each rate of a channel comes about, for the channel itself and for each device that differs."""
    from profiler.tables import plain_table

    for name in ("", *channel.devices):
        at = channel.station(name)
        table = plain_table()
        table.add_column(printable(name) or "mean channel")
        rows = at.chain()
        columns: list[list[str]] = []
        for row in rows:
            table.add_column(str(row["direction"]), justify="right", no_wrap=True)
        for row, served in zip(rows, (row["cqi"] or "out of range, served as 1" for row in rows), strict=True):
            columns.append(
                [
                    f"{row['power_dbm']:.1f} dBm",
                    f"{row['mean_gain_db']:.1f} dB",
                    quantity(row["bandwidth_hz"], "Hz"),
                    f"{row['noise_dbm']:.1f} dBm",
                    f"{row['snr_db']:.1f} dB",
                    str(served),
                    str(row["mcs"]),
                    f"{row['modulation']} {row['code_rate']:.3f}",
                    quantity(row["rate_bps"], "bit/s"),
                    quantity(row["mean_rate_bps"], "bit/s"),
                    f"{100 * row['share_below_cqi_1']:.2f} %",
                ]
            )
        labels = LABELS if at.fading == "rayleigh" else LABELS[:-2]
        for label, *cells in zip(labels, *columns):  # noqa: B905 - without fading the last two say nothing
            table.add_row(label, *cells)
        console.print(table, crop=False)
    console.print(
        f"{nr.cqi_table(channel.table).name}, {nr.mcs_table(channel.table).name} ({nr.version()})", style="dim"
    )
    console.print(
        f"CQI: the largest efficiency <= log2(1 + SNR / {channel.snr_gap_db:g} dB), a rule of ours", style="dim"
    )


def print_followed(found: Followed, console: Console) -> None:
    """Print what each policy costs beside the one that knows the round, for the fleet and for each device."""
    from profiler.tables import plain_table

    problem, options = found.problem, found.problem.options
    console.print(
        f"[bold]{printable(problem.server.workload.model)}[/bold] on {problem.server.name}: {found.rounds} rounds of "
        f"{options.local_epochs} mini-batches, {options.objective.words}; the channel changes "
        f"{len(found.sizes) - 1} times in a round; threshold {found.threshold:g}",
        highlight=False,
    )
    cost = options.objective.cost_name
    table = plain_table()
    table.add_column("policy")
    for column in ("delay", "", "energy", "", cost, "re-cuts a round"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in POLICIES:
        figures = found.summary(name)
        table.add_row(
            name,
            quantity(figures["mean_delay_s"] or 0.0, "s", 4),
            _pct(figures["delay_loss_pct"]),
            "-" if figures["mean_energy_j"] is None else quantity(figures["mean_energy_j"], "J", 4),
            _pct(figures["energy_loss_pct"]),
            f"{figures['mean_cost']:.4f}",
            f"{figures['recuts_per_round']:.2f}",
            style="bold" if name == REFERENCE else None,
        )
    console.print(table, crop=False)
    console.print(f"Percentages are beside {REFERENCE}. " + ". ".join(f"{n}: {what}" for n, what in POLICIES.items()))
    table = plain_table()
    for column in ("device", f"{cost} lost: start", "mean", "adaptive", "best", "re-cuts", "cuts held"):
        words = column in ("device", "cuts held")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for m, device in enumerate(problem.devices):
        lost = [found.summary(name, m)["cost_loss"] for name in ("start", "mean", "adaptive", "best")]
        held = found.held("adaptive", m)
        table.add_row(
            device.name,
            *[f"{value:+.4f}" for value in lost],
            f"{found.summary('adaptive', m)['recuts_per_round']:.2f}",
            ", ".join(
                f"{cut}: {100 * count / sum(held.values()):.0f} %"
                for cut, count in sorted(held.items(), key=lambda item: -item[1])[:4]
            ),
        )
    console.print(table, crop=False)
    if all(found.same_size_everywhere):
        console.print(
            "What crosses has one size at all cuts: a slow channel costs every cut the same, and rates can matter to the cut only "
            "through the adapters."
        )
    for line in found.warnings:
        console.print(f"warning: {line}", style="yellow", highlight=False, markup=False)


def _pct(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"
