"""Show a profile, and what was found on this machine, as tables that a person likes to read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from profiler.profile import BadInput, Block, CodecFigures, Compression, PowerBlock, Profile, TimeLaw, printable
from profiler.units import counted, data_size, quantity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from profiler.tables import Table

MARKS = {
    "measured": "measured",
    "fitted": "fitted",
    "emulated": "EMULATED",
    "datasheet": "datasheet",
    "literature": "literature",
    "assumed": "ASSUMED",
}


def mark(block: Block) -> str:
    """The provenance of a block as shown to people; emulated and assumed figures are shouted."""
    if block.provenance == "fitted":
        return f"fitted to {MARKS[block.root]} data"
    return MARKS[block.provenance]


def plain(text: str) -> Text:
    """Words from a profile as they are: brackets are not markup, and control characters cannot reach the terminal."""
    from rich.text import Text

    return Text(printable(text))


def show(profile: Profile, console: Console | None = None) -> None:
    """Print a profile: the machine, the workload, its segments, its cuts, its power curve, each with its provenance."""
    from rich.console import Console

    out = console or Console()
    hardware, work = profile.hardware, profile.workload
    machine = plain(f"{profile.name} ({profile.role}): {hardware.description} [{MARKS[hardware.provenance]}]")
    machine.stylize("bold", 0, len(profile.name))
    out.print(machine)
    out.print(
        plain(
            f"  {work.model}: {work.layers} layers, {work.parameters:,} parameters, batch {work.batch_size} x "
            f"{work.seq_len} tokens, {work.dtype}, LoRA rank {work.lora_rank} on {', '.join(work.lora_targets)}"
            + (", gradient checkpointing" if work.gradient_checkpointing else "")
        )
    )
    under = [*hardware.conditions.items(), *hardware.software.items()]
    if under:
        out.print(plain("  under " + "; ".join(f"{name} {value}" for name, value in under)), style="dim")
    out.print(_segments(profile), crop=False)
    for line in _steps(profile):
        out.print(line, highlight=False, markup=False)
    times = _times(profile)
    if times is not None:
        out.print(times, crop=False)
    for warning in profile.time_fit.warnings if profile.time_fit is not None else []:
        out.print(plain(f"note: {warning}"))
    out.print(_cuts(profile), crop=False)
    for check in profile.memory.checks if profile.memory is not None else []:
        error_pct = 100 * (check.predicted_bytes / check.measured_bytes - 1) if check.measured_bytes else 0.0
        out.print(
            f"really run, cut {check.cut}, {check.side}: {data_size(check.measured_bytes)} "
            f"(predicted {error_pct:+.1f} %)",
            highlight=False,
            markup=False,
        )
    power = _power(profile)
    if power is not None and profile.power is not None:
        out.print(power, crop=False)
        out.print(plain(_facts(profile.power)))
    if profile.compression is not None:
        out.print(plain(_compression_facts(profile.compression)))
        for figures in profile.compression.codecs:
            out.print(_codec(figures, profile.compression), crop=False)
    for warning in profile.warnings:
        out.print(plain(f"note: {warning}"))


def _table(title: str, *columns: str) -> Table:
    from profiler.tables import plain_table

    table = plain_table(title=plain(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _segments(profile: Profile) -> Table:
    timing = max(profile.timings, key=lambda t: t.frequency_hz or 0.0, default=None)
    title = f"Segments, one mini-batch (FLOPs and sizes {mark(profile.flops)}"
    if timing is not None:
        at = f" at {quantity(timing.frequency_hz, 'Hz')}" if timing.frequency_hz else ""
        title += f"; times {mark(timing)}{at}: medians, ± half the interquartile range of forward plus backward"
    table = _table(title + ")", "segment", "forward", "backward", "forward", "backward", "±", "weights", "adapter")
    rows = zip(profile.segments, profile.flops.segments, profile.sizes.segments, strict=True)
    for index, (segment, flops, size) in enumerate(rows):
        times = ["-"] * 3
        if timing is not None:
            row = timing.segments[index]
            both_s = row.forward.median_s + row.backward.median_s
            spread_s = (row.forward.iqr_s**2 + row.backward.iqr_s**2) ** 0.5 / 2
            times = [
                quantity(row.forward.median_s, "s"),
                quantity(row.backward.median_s, "s"),
                f"{100 * spread_s / both_s:.1f}%" if both_s else "-",
            ]
        table.add_row(
            plain(segment.name),
            quantity(flops.forward_flops, "F"),
            quantity(flops.backward_flops, "F"),
            *times,
            data_size(size.weight_bytes),
            data_size(size.adapter_bytes),
        )
    return table


def _steps(profile: Profile) -> list[str]:
    """One line for each clock: the plain step, what its segments add up to (after rests, as in a split), and the optimizer's part."""
    lines = []
    for timing in profile.timings:
        parts = [(s.forward.median_s + s.backward.median_s, s.optimizer.median_s) for s in timing.segments]
        update_s = sum(update for _, update in parts)
        total_s = sum(work for work, _ in parts) + update_s
        rested = f" after rests of {quantity(timing.wait_s, 's')}" if timing.wait_s else ""
        line = f"segments{rested} {quantity(total_s, 's')}, of it optimizer {quantity(update_s, 's')}"
        if timing.step is not None:
            line = f"whole step {quantity(timing.step.median_s, 's')} ({timing.step.samples}); {line}"
        lines.append((f"{quantity(timing.frequency_hz, 'Hz', 4)}: " if timing.frequency_hz else "") + line)
    return lines


def _times(profile: Profile) -> Table | None:
    """a + b/f and delta_eff of each kind of segment (of like segments the median), and how far predictions are off."""
    fit = profile.time_fit
    if fit is None:
        return None
    table = _table(
        f"Times against the clock f ({mark(fit)}, {len(fit.clocks_hz)} clocks): a + b/f, b in cycles; how far that law and the "
        "curve that is used are off at clocks left out, and the curve's 95 % interval; of like segments the median",
        "segment",
        "a",
        "b",
        "delta_eff",
        "law off",
        "curve off",
        "±",
    )
    rows: dict[tuple[str, str], list[TimeLaw]] = {}
    for segment, laws in zip(profile.segments, fit.segments, strict=True):
        for direction, law in laws:
            rows.setdefault((segment.kind, direction), []).append(law)
    rows["step", "step"] = [fit.step]
    for (kind, direction), found in rows.items():
        like = [law for law in found if any(law.curve_s)]
        if not like or sum(law.curve_s[0] for law in like) < 1e-4 * fit.step.curve_s[0]:
            continue
        within = fit.half_width_pct(kind, direction)
        name = "whole step" if kind == "step" else f"{kind} {direction}"
        table.add_row(
            name + (f" ({len(like)})" if len(like) > 1 else ""),
            quantity(_median(law.a_s for law in like) or 0.0, "s"),
            quantity(_median(law.b_cycles for law in like) or 0.0, ""),
            _figure(_median(law.flops_per_core_cycle for law in like), "", 3),
            _figure(_median(law.loo_error_pct for law in like), " %", 2),
            _figure(_median(law.curve_loo_error_pct for law in like), " %", 2),
            _figure(_median(within) if within else None, " %", 2),
        )
    return table


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def _figure(value: float | None, unit: str, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}g}{unit}"


def _cuts(profile: Profile) -> Table:
    memory = profile.memory
    title = f"Cuts (sizes {mark(profile.sizes)}" + (f", peak memory {mark(memory)})" if memory else ")")
    table = _table(title, "cut c", "smashed data", "gradient", "peak on device", "peak on server")
    for index in _shown(len(profile.sizes.cuts)):
        if index < 0:
            table.add_row("...", *[""] * 4)
            continue
        cut = profile.sizes.cuts[index]
        peaks = ["-", "-"]
        if memory is not None:
            peaks = [data_size(memory.cuts[index].device_peak_bytes), data_size(memory.cuts[index].server_peak_bytes)]
        table.add_row(str(cut.cut), data_size(cut.smashed_bytes), data_size(cut.gradient_bytes), *peaks)
    return table


def _shown(count: int) -> list[int]:
    """Which of ``count`` rows are shown; -1 stands for those left out."""
    return [*range(count)] if count <= 12 else [*range(4), -1, *range(count - 4, count)]


def _compression_facts(block: Compression) -> str:
    """In one line: phi where nothing else is asked for, and on what the losses were measured."""
    facts = [f"Compression ({mark(block)}): phi = {block.phi:.3g}" + (f" ({block.codec})" if block.codec else "")]
    if block.base_loss is not None:
        over = f" over {block.tokens:,} tokens" if block.tokens is not None else ""
        facts.append(f"loss without {block.base_loss:.4f} nats a token{over}")
    if block.text is not None:
        facts.append(f"text: {block.text}")
    return "; ".join(facts)


def _codec(figures: CodecFigures, block: Compression) -> Table:
    """One codec at every cut: how many times smaller, seconds of both ends in both directions, loss added."""
    up = 1 / (_median(row.smashed_phi for row in figures.cuts) or 1.0)
    down = 1 / (_median(row.gradient_phi for row in figures.cuts) or 1.0)
    worst = max((row.loss_increase for row in figures.cuts if row.loss_increase is not None), default=None)
    title = f"{figures.codec} ({mark(block)}): {up:.2f}x up, {down:.2f}x down"
    if worst is not None:
        title += f", loss {worst:+.4f} at most"
    table = _table(title, "cut c", "up", "encode", "decode", "down", "encode", "decode", "loss added")
    for index in _shown(len(figures.cuts)):
        if index < 0:
            table.add_row("...", *[""] * 7)
            continue
        row = figures.cuts[index]
        table.add_row(
            str(row.cut),
            f"{1 / row.smashed_phi:.2f}x",
            *(quantity(ends.median_s, "s", 2) for ends in (row.smashed_encode_s, row.smashed_decode_s)),
            f"{1 / row.gradient_phi:.2f}x",
            *(quantity(ends.median_s, "s", 2) for ends in (row.gradient_encode_s, row.gradient_decode_s)),
            ("-" if row.loss_increase is None else f"{row.loss_increase:+.4f}")
            + ("" if row.loss_increase_se is None else f" ± {row.loss_increase_se:.4f}"),
        )
    return table


def _power(profile: Profile) -> Table | None:
    power, fit = profile.power, profile.power_fit
    if power is None:
        return None
    title = f"Power of {power.scope} ({mark(power)}"
    title += (
        f"; fit: {fit.selected}, xi = {fit.xi_w_per_hz3:.3g} W/Hz^3)"
        if fit
        else "; no fit yet: card-profile fit-power)"
    )
    table = _table(title, "asked, MHz", "ran", "watts", "±", "deg C", "fit", "95 % interval", "state")
    predictions = {p.frequency_hz: p for p in fit.predictions} if fit else {}
    for point in sorted(power.points, key=lambda p: p.requested_hz or p.frequency_hz):
        # Why sampling ended, in its first words; the profile has them all.
        state = "power cap" if point.capped else "throttled" if point.throttled else point.stopped_by.partition(",")[0]
        known = predictions.get(point.requested_hz or point.frequency_hz) or predictions.get(point.frequency_hz)
        table.add_row(
            f"{point.requested_hz / 1e6:g}" if point.requested_hz is not None else "-",
            f"{point.frequency_hz / 1e6:.0f}",
            f"{point.power_w:.2f}",
            f"{point.ci95_w:.2f}" if point.ci95_w is not None else "-",
            f"{point.temperature_c:.0f}" if point.temperature_c is not None else "-",
            f"{known.power_w:.2f}" if known else "-",
            f"{known.low_w:.2f}-{known.high_w:.2f}" if known else "-",
            plain(state),
        )
    return table


def _facts(power: PowerBlock) -> str:
    """What else the sweep found, in one line: rest, the two methods' verdict, drift."""
    facts = [f"load: {power.load}"]
    if all(point.requested_hz is None for point in power.points):
        facts.append("nothing was locked: one point at the clock that the device was at")
    if power.idle_w is not None:
        facts.append(f"at rest {power.idle_w:.2f} W")
    judged = [point.agreement for point in power.points if point.agreement is not None]
    if judged:
        agreed = judged.count("agree")
        facts.append(f"energy counter and power sensor agree at {agreed} of {counted(len(judged), 'clock')}")
    first = next((p for p in power.points if power.repeated and p.requested_hz == power.repeated.requested_hz), None)
    if power.repeated is not None and first is not None and first.power_w > 0:
        drift_pct = 100 * (power.repeated.power_w / first.power_w - 1)
        facts.append(f"{quantity(first.frequency_hz, 'Hz', 4)} again at the end: {drift_pct:+.1f} %")
    return "; ".join(facts)


def draw(profile: Profile, folder: Path) -> list[Path]:
    """Write the profile's pictures into ``folder`` and return their paths: times against the clock, watts against the clock, loss against compression.

    Raises BadInput where the profile has none of them (the first two need several clocks), MissingHardware without matplotlib.
    """
    from profiler.compression_plot import plot_compression
    from profiler.power.fit import fit
    from profiler.power.plot import plot_fits
    from profiler.power.source import sweep_of_profile
    from profiler.times_plot import plot_times

    written = plot_times(profile, folder) + plot_compression(profile, folder)
    if profile.power is not None and (len(profile.power.points) > 1 or not written):
        sweep = sweep_of_profile(profile)
        written += plot_fits([(sweep, fit(sweep))], folder)
    if not written:
        raise BadInput(
            f"{profile.name}: nothing to draw: expected times or watts at several clocks (card-profile run --clocks 8) or losses "
            "of codecs (card-profile run --measure compression)"
        )
    return written


def show_devices() -> None:
    """Print what this machine has, which sensors work, what is missing and how to get it, and the catalog's boards."""
    import textwrap

    from rich.console import Console

    from profiler.hardware import list_devices
    from profiler.hardware.catalog import boards

    out = Console(highlight=False)
    out.print("On this machine", style="bold")
    for found in list_devices():
        description = printable(found.description)  # names and labels come out of files
        out.print(f"  {found.name}: {description}, usually a {found.role}", markup=False)
        for title, rows in (("works", found.works), ("missing", found.missing)):
            for capability, text in rows.items():
                line = printable(f"{title}: {capability}: {text}")
                print(textwrap.fill(line, out.width, initial_indent="    ", subsequent_indent="      "))
    table = _table(
        "The catalog: real boards by this name, or simulated as emulated:NAME", "name", "board", "role", "clocks"
    )
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for board in boards().values():
        low, high = board.clocks_hz[0] / 1e6, board.clocks_hz[-1] / 1e6
        table.add_row(
            board.name,
            board.description.replace("NVIDIA ", ""),
            board.role,
            f"{low:.4g} to {high:.4g} MHz",
        )
    out.print(table, crop=False)
