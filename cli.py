"""The two commands, ``card-profile`` and ``card-solve``. They parse, call one function and print.

Nothing heavy is imported at the top: ``--help`` answers at once, and ``card-solve`` never loads torch.
Exit codes: 0 done, 1 a fault of ours, 2 bad input or usage, 3 hardware or a permission is missing, 130 stopped by a signal.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

# Typer brings its own copy of click or uses the installed one, by release; the class is found through what it exports.
_ClickException: Any = typer.BadParameter.__mro__[2]

profile_app = typer.Typer(
    name="card-profile",
    help="Measure this machine under split LoRA fine-tuning and fit its power curve.",
    add_completion=False,
    rich_markup_mode=None,
)


def _replayed(root: Path | None) -> Path | None:
    """Read the hardware below ``root``: everything that asks the kernel goes by this variable."""
    if root is not None:
        if not root.is_dir():
            raise typer.BadParameter(f"{root} is not a folder; expected a tree with sys/ and proc/ in it")
        os.environ["CARD_SYSFS_ROOT"] = str(root.resolve())
    return root


SysfsRoot = Annotated[
    Path | None,
    typer.Option(
        "--sysfs-root",
        help="Read /sys, /proc and /etc below this folder: a tree that 'card-profile snapshot' took from a board. "
        "Also the environment variable CARD_SYSFS_ROOT.",
        metavar="DIR",
        callback=_replayed,
    ),
]

DECIDE = "decide"


class _Solve(typer.core.TyperGroup):
    """``card-solve OPTIONS`` is ``card-solve decide OPTIONS``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [DECIDE, *args] if not args or args[0].startswith("-") else args)


solve_app = typer.Typer(
    name="card-solve",
    cls=_Solve,
    help="Decide the cut layer and the server's clock from profiles (CARD).",
    add_completion=False,
    rich_markup_mode=None,
)


# --------------------------------------------------------------------------------------------------- card-profile


@profile_app.command("run")
def run_command(
    device: Annotated[
        str,
        typer.Option(
            help="What to profile: auto, cpu, a name of the catalog (orin-agx, rtx-4060ti, ...; 'card-profile devices' "
            "lists them), nvml:INDEX, nvml:UUID, or emulated:NAME (that device simulated; every figure is marked)."
        ),
    ],
    role: Annotated[
        str | None, typer.Option(help="device or server. Default: what such a machine usually is.", metavar="ROLE")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A preset with random weights (tiny-llama-test, llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, letter-1b-32l, "
            "...), a local directory, a GGUF file or a Hugging Face id."
        ),
    ] = "tiny-llama-test",
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences in a mini-batch. Default: the preset's own, else 8.", metavar="N")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens in a sequence. Default: the preset's own, else 512.", metavar="N")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: base weights and activations.")] = "float32",
    lora_rank: Annotated[int, typer.Option(help="Z of the letter.", metavar="N")] = 4,
    lora_alpha: Annotated[float, typer.Option(help="Scale of the adapters; no figure depends on it.")] = 32.0,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            help="Modules that get adapters, by comma. Default: the query and value projections.", metavar="A,B"
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing", help="Recompute each layer in its backward pass: less memory, more time."
        ),
    ] = False,
    measure: Annotated[
        str | None,
        typer.Option(
            help="What to measure, by comma: layers (FLOPs, times, sizes, predicted memory), power (watts against clock), "
            "memory (predicted peaks checked by really running a few halves), graph (operators, for 'card-solve --method min-cut'). "
            "Default: layers, and power where watts can be read.",
            metavar="A,B",
        ),
    ] = None,
    clocks: Annotated[
        str,
        typer.Option(
            help="Clocks to visit: auto, all, current (the one the device is at; locks nothing), a count, or MHz as "
            "1300mhz or 300,600,1300."
        ),
    ] = "auto",
    load_command: Annotated[
        str | None,
        typer.Option(
            help="Sweep power under this command instead of the training step. It is started anew at each clock.",
            metavar="CMD",
        ),
    ] = None,
    restore_clocks: Annotated[
        str | None,
        typer.Option(
            help="Give the clock back as this range in MHz, where an administrator had locked it before. NVIDIA's driver "
            "cannot be asked for that lock, so without this option its default is restored.",
            metavar="MIN,MAX",
        ),
    ] = None,
    sysfs_root: SysfsRoot = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the profile goes. Default: profiles/NAME.json", metavar="FILE")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not resume an interrupted run: start again.")] = False,
) -> None:
    """Profile a machine: FLOPs, times, sizes and memory of every layer, and power against clock.

    Stopped with Ctrl-C it keeps what it has measured; the same command goes on from there. Clocks that were locked are
    given back whatever happens; after a power cut or a kill of everything, 'card-profile restore' does it.

    Example: card-profile run --device cpu --model tiny-llama-test --batch-size 4 --seq-len 128
    """
    from profiler.hardware.guard import parse_restore
    from profiler.plan import RunRequest
    from profiler.run import run
    from profiler.workload.model import WorkloadSpec

    workload = WorkloadSpec(
        model=model,
        batch_size=batch_size,
        seq_len=seq_len,
        dtype=dtype,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=_names(lora_targets),
        gradient_checkpointing=gradient_checkpointing,
    )
    run(
        RunRequest(
            device=device,
            workload=workload,
            role=role,
            measure=_names(measure),
            clocks=clocks,
            load_command=load_command,
            restore_hz=parse_restore(restore_clocks) if restore_clocks is not None else None,
            output=output,
            fresh=fresh,
        )
    )


@profile_app.command("fit-power")
def fit_power_command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Profiles, folders of profiles, or CSV files. Default: all in profiles/", metavar="[PATH]..."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="auto, or the law to use: cubic, affine-cubic, power-law, ridge, ...", metavar="NAME")
    ] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON on standard output.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of each fit into this folder.", metavar="DIR")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do not write the fits into the profiles.")] = False,
) -> None:
    """Fit power against clock: the letter's P = xi f^3 and better laws, with intervals and leave-one-clock-out errors.

    A CSV has the columns frequency_mhz,power_w and optionally device,workload,power_scope.

    Example: card-profile fit-power sweep.csv --plot plots/
    """
    from profiler.power.report import fit_power

    fit_power(paths or [Path("profiles")], model=model, as_json=json_output, plot=plot, dry_run=dry_run)


@profile_app.command("show")
def show_command(
    path: Annotated[Path, typer.Argument(help="A profile.", metavar="PROFILE")],
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw into this folder: times against clock, and power against clock with the laws beside each other.",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Show what a profile says, with where each figure comes from."""
    from profiler.show import draw, show
    from profiler.store import load

    profile = load(path)
    show(profile)
    if plot is not None:
        for written in draw(profile, plot):
            print(f"wrote {written}", file=sys.stderr)


@profile_app.command("restore")
def restore_command(sysfs_root: SysfsRoot = None) -> None:
    """Give back every clock that a run which has ended left locked. A run that is still going is not touched.

    Needed after a power cut, or when everything was killed at once; a run gives its clocks back by itself otherwise.
    """
    from profiler.hardware.guard import restore_leftovers

    restore_leftovers(lambda text: print(text, file=sys.stderr))


@profile_app.command("snapshot")
def snapshot_command(
    output: Annotated[Path, typer.Option(help="Where the archive goes.", metavar="FILE.tar.gz")] = Path(
        "board-snapshot.tar.gz"
    ),
    sysfs_root: SysfsRoot = None,
) -> None:
    """Collect what this toolkit reads from this board: names and readings only, nothing private.

    Unpacked, the archive replays the board: card-profile devices --sysfs-root FOLDER. Donated, it becomes a test.
    """
    from profiler.hardware.host import sysfs_root as root
    from profiler.hardware.snapshot import snapshot

    print(f"wrote {snapshot(output, root())}")


@profile_app.command("export")
def export_command(
    path: Annotated[Path, typer.Argument(help="A profile with times and watts.", metavar="PROFILE")],
    output: Annotated[
        Path | None, typer.Option(help="Where the table goes. Default: standard output.", metavar="FILE.csv")
    ] = None,
) -> None:
    """Write a sweep as the CSV that Zeus's Perseus tools read: stage,instruction,frequency,time,energy.

    The raw samples lie beside the profile as Parquet.
    """
    from profiler.power.export import perseus_csv, write_export
    from profiler.store import load

    profile = load(path)
    if output is None:
        typer.echo(perseus_csv(profile), nl=False)
    else:
        write_export(profile, output)
        print(f"wrote {output}", file=sys.stderr)


@profile_app.command("devices")
def devices_command(sysfs_root: SysfsRoot = None) -> None:
    """Show what was found on this machine, which sensors work, what is missing and how to get it, and the catalog."""
    from profiler.show import show_devices

    show_devices()


@profile_app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of a profile."""
    import json

    from profiler.store import schema

    typer.echo(json.dumps(schema(), indent=1))


# ----------------------------------------------------------------------------------------------------- card-solve


def _fleet_options(
    profiles: Annotated[Path, typer.Option(help="A folder of profiles: one server and its devices.", metavar="DIR")],
    server: Annotated[str | None, typer.Option(help="The server's profile by name, where there are several.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="exact: best cut and supported clock together. card: Algorithm 1 with Eq. 16 as printed, in the letter's "
            "model. min-cut: the same optimum over the graph of operators where the server's profile holds one. server-only, "
            "device-only, static:C: the benchmarks."
        ),
    ] = "exact",
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Which model the reported delay, energy and cost come from: letter, or profile (the measured tables; the "
            "default where they exist)."
        ),
    ] = None,
    w: Annotated[
        float | None,
        typer.Option("--w", help="Weight of delay against energy in U of Eq. 12, 0 to 1. Default: 0.2.", metavar="W"),
    ] = None,
    price_j_per_s: Annotated[
        float | None,
        typer.Option("--price", help="Instead of U: the least price x delay + energy, in joules.", metavar="J_PER_S"),
    ] = None,
    max_delay_s: Annotated[
        float | None, typer.Option(help="Instead of U: the least energy with a delay of at most X s.", metavar="X")
    ] = None,
    max_energy_j: Annotated[
        float | None, typer.Option(help="Instead of U: the least delay with an energy of at most Y J.", metavar="Y")
    ] = None,
    local_epochs: Annotated[int, typer.Option(help="T: mini-batches in a round.", metavar="T")] = 5,
    compression: Annotated[
        float | None,
        typer.Option(help="phi of Eq. 9, 0 < PHI <= 1. Default: the profile's measured one, else 1.", metavar="PHI"),
    ] = None,
    uplink_mbps: Annotated[float | None, typer.Option(help="R^D in Mbit/s, device to server.", metavar="X")] = None,
    downlink_mbps: Annotated[float | None, typer.Option(help="R^S in Mbit/s, server to device.", metavar="Y")] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="good, normal or poor; a radio channel as JSON (see 'card-solve channel'); or a trace as CSV with "
            "round,device,uplink_mbps,downlink_mbps.",
            metavar="STATE|FILE",
        ),
    ] = None,
    f_min_ghz: Annotated[float | None, typer.Option(help="Lowest server clock allowed.", metavar="X")] = None,
    f_max_ghz: Annotated[float | None, typer.Option(help="Highest server clock allowed.", metavar="X")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Training rounds. Default: those of the channel's CSV, else 1.", metavar="N")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the channel's fading.", metavar="N")] = 0,
    leave_out: Annotated[
        str | None,
        typer.Option(
            help="Measured terms that the letter does not have and that shall not count, by comma: optimizer, embedding, "
            "head, round-trip.",
            metavar="A,B",
        ),
    ] = None,
    count_idle: Annotated[
        bool, typer.Option("--count-idle", help="Count the energy of the server while it waits; the letter does not.")
    ] = False,
    device_energy: Annotated[
        float,
        typer.Option(
            help="Count what the devices draw while they compute: a joule there counts WEIGHT joules. The letter counts none.",
            metavar="WEIGHT",
        ),
    ] = 0.0,
) -> tuple[Path, dict[str, Any]]:
    """The options that every command of ``card-solve`` about a fleet takes: the folder, and what `SolveOptions` holds."""
    options = dict(locals())
    folder = options.pop("profiles")
    options["leave_out"] = _names(leave_out) or ()
    from solver.objective import weight_or_other

    options["w"] = weight_or_other(w, price_j_per_s, max_delay_s, max_energy_j)
    return folder, options


def _about_a_fleet(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(folder, options, ...)`` the options of `_fleet_options` in place of its first two parameters."""
    shared = inspect.signature(_fleet_options, eval_str=True).parameters
    own = dict(list(inspect.signature(command, eval_str=True).parameters.items())[2:])

    @functools.wraps(command)
    def merged(**given: Any) -> None:
        folder, options = _fleet_options(**{name: given.pop(name) for name in shared if name in given})
        command(folder, options, **given)

    # Options without a default come first, as Python wants them.
    both = sorted([*shared.values(), *own.values()], key=lambda p: p.default is not inspect.Parameter.empty)
    merged.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    merged.__annotations__ = {p.name: p.annotation for p in both}
    return merged


@solve_app.callback()
def solve_command() -> None:
    """Decide the cut layer and the server's clock from profiles (CARD)."""


@solve_app.command(
    DECIDE,
    epilog="'card-solve OPTIONS' is short for 'card-solve decide OPTIONS'. Other commands: see 'card-solve commands'.",
)
@_about_a_fleet
def decide_command(
    folder: Path,
    options: dict[str, Any],
    *,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the decisions as JSON on standard output.")
    ] = False,
    tables: Annotated[
        Path | None, typer.Option(help="Write costs.csv (every cut and clock) into this folder.", metavar="DIR")
    ] = None,
    tables_limit: Annotated[int, typer.Option(help="Most rows that costs.csv may have.", metavar="N")] = 1_000_000,
    plot: Annotated[Path | None, typer.Option(help="Write plots into this folder.", metavar="DIR")] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Write a report to read: one page with reasons and plots, opens offline.",
            metavar="FILE.html",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write decisions and benchmarks as a table.", metavar="FILE.csv")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="The same as Parquet, with what it rests on inside.", metavar="FILE.parquet")
    ] = None,
    require_measured: Annotated[
        bool, typer.Option("--require-measured", help="Fail if any quantity used was not measured.")
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Spread the choice over the workers of a Dask scheduler: tcp://127.0.0.1:PORT, or tls://HOST:PORT.",
            metavar="ADDRESS",
        ),
    ] = None,
) -> None:
    """Decide, for each device and round, the cut layer and the server's clock that cost least (Eq. 12).

    Example: card-solve --profiles profiles/letter --method card
    """
    from profiler.store import load_fleet
    from solver.problem import SolveOptions
    from solver.scenario import solve

    solution = solve(
        load_fleet(folder), SolveOptions(**options, require_measured=require_measured, scheduler=scheduler)
    )
    written = []
    if tables is not None:
        written.append(solution.write_tables(tables, limit=tables_limit))
    if plot is not None:
        from solver.plots import write_plots

        written += write_plots(solution, plot)
    if html is not None:
        from solver.html import write_html

        written.append(write_html(solution, html, profiles=str(folder)))
    if csv_file is not None or parquet is not None:
        from solver.frames import write_csv, write_parquet

        files = ((write_csv, csv_file), (write_parquet, parquet))
        written += [write(solution, path) for write, path in files if path is not None]
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    if json_output:
        solution.write_json(sys.stdout)
    else:
        from rich.console import Console

        from solver.report import print_report

        print_report(solution, Console())


@solve_app.command("regret")
@_about_a_fleet
def regret_command(
    folder: Path,
    options: dict[str, Any],
    *,
    assume: Annotated[
        str | None,
        typer.Option(
            help="Replace what the letter assumes (xi=1e-25, delta=2, phi=0.1, rates of the channel state normal), by comma: "
            "xi in W/Hz^3, delta, phi, uplink-mbps, downlink-mbps.",
            metavar="NAME=VALUE,...",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON on standard output.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write one row for each parameter.", metavar="FILE.csv")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the waterfalls by parameter (png, svg or pdf).", metavar="FILE.png")
    ] = None,
) -> None:
    """What trusting the letter's parameters loses on this fleet, by parameter.

    Algorithm 1 decides with the letter's parameters; its decisions are priced by what the profiles hold and compared with the
    joint optimum there. docs/regret.md says what each parameter is and how the loss is shared among them.

    Example: card-solve regret --profiles profiles/ --plot regret.png
    """
    from profiler.store import load_fleet
    from solver.beliefs import parse_letter
    from solver.problem import SolveOptions
    from solver.regret import regret
    from solver.regret_report import print_regret, write_csv, write_plot

    letter = parse_letter(_names(assume) or ())
    found = regret(load_fleet(folder), SolveOptions(**options), letter)
    written = [write(found, path) for write, path in ((write_csv, csv_file), (write_plot, plot)) if path is not None]
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    if json_output:
        import json

        print(json.dumps(found.as_json(), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        print_regret(found, Console())


@solve_app.command("uncertainty")
@_about_a_fleet
def uncertainty_command(
    folder: Path,
    options: dict[str, Any],
    *,
    draws: Annotated[int, typer.Option(help="Worlds to draw (seed: --seed).", metavar="N")] = 200,
    rate_variation: Annotated[
        float,
        typer.Option(
            help="Also vary the rates: lognormal with this standard deviation in percent, up and down apart.",
            metavar="PCT",
        ),
    ] = 0.0,
    without_interval: Annotated[
        float,
        typer.Option(
            help="Times and watts whose profile has no interval: within this many percent (95 %). Default: exact.",
            metavar="PCT",
        ),
    ] = 0.0,
    machine_variation: Annotated[
        float,
        typer.Option(
            help="Also vary the speed of each machine as a whole, within this many percent (95 %): heat, other work.",
            metavar="PCT",
        ),
    ] = 0.0,
    only: Annotated[
        str | None,
        typer.Option(help="Draw only these, by comma: device-times, server-times, power, rates.", metavar="A,B"),
    ] = None,
    layer_errors: Annotated[
        str,
        typer.Option(help="How layers of one machine err: as-measured, alike or apart.", metavar="HOW"),
    ] = "as-measured",
    common_share: Annotated[
        float,
        typer.Option(
            help="Share of the variance of power and server times that lifts the whole curve; the rest bends it.",
            metavar="X",
        ),
    ] = 0.5,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON on standard output.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a plot into this folder.", metavar="DIR")] = None,
) -> None:
    """How sure is the decision? In how many worlds that the profiles' intervals leave possible it stays best, what it loses in
    the others, and which choice has the least worst-case loss.

    Example: card-solve uncertainty --profiles profiles/letter --rate-variation 20 --without-interval 10
    """
    from profiler.store import load_fleet
    from solver.problem import SolveOptions, pose
    from solver.uncertainty import how_sure
    from solver.worlds import SOURCES, Variation

    variation = Variation(
        draws=draws,
        rate_variation_pct=rate_variation,
        without_interval_pct=without_interval,
        machine_variation_pct=machine_variation,
        layer_errors=layer_errors,  # type: ignore[arg-type]  # checked there
        common_share=common_share,
        only=SOURCES if only is None else _names(only) or (),
    )
    certainty = how_sure(pose(load_fleet(folder), SolveOptions(**options)), variation)
    if plot is not None:
        from solver.uncertainty_report import write_plot

        print(f"wrote {write_plot(certainty, plot)}", file=sys.stderr)
    if json_output:
        import json

        print(json.dumps(certainty.as_json(), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        from solver.uncertainty_report import print_certainty

        print_certainty(certainty, Console())


@solve_app.command("reproduce")
def reproduce_command(
    profiles: Annotated[
        Path | None,
        typer.Option(help="A folder with a server and its devices. Default: the letter's own fleet.", metavar="DIR"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the figures as PNG and CSV, and summary.json, into this folder.", metavar="DIR"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Training rounds in each channel state.", metavar="N")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the fading, of the draws and of the search.", metavar="N")] = 0,
    full_search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Search further: other clocks of the benchmarks, wide ranges, fading, sensitivities, the attainable region (half "
            "a minute).",
        ),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
) -> None:
    """Run the letter's simulation again (Fig. 3 and 4) and test each of its claims: reproduced, reproduced under these assumptions,
    or not reproducible; with the parameters, among those it does not give, that come nearest to its 70.8 % and 53.1 %.

    Example: card-solve reproduce --output reproduction
    """
    from profiler.store import load_fleet
    from solver.letter import reproduce
    from solver.letterfigures import print_report, write_plots, write_tables
    from solver.letterfleet import profiles as own_fleet

    fleet = own_fleet() if profiles is None else load_fleet(profiles)
    result = reproduce(fleet, rounds=rounds, seed=seed, full_search=full_search)
    written = [] if output is None else write_tables(result, output)
    if json_output:
        import json

        print(json.dumps(result.as_json(), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        print_report(result, Console())
    if output is not None:
        written += write_plots(result, output)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


@solve_app.command("follow")
@_about_a_fleet
def follow_command(
    folder: Path,
    options: dict[str, Any],
    *,
    block: Annotated[int, typer.Option(help="Mini-batches for which the channel stays as it is.", metavar="N")] = 1,
    correlation: Annotated[
        float | None,
        typer.Option(
            help="Of the fading from block to block, 0 to below 1. Default: the channel's own.", metavar="RHO"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Hysteresis: re-cut only where the expected saving exceeds the cost of moving by more than X, in the unit of "
            "cost. Default: 0.003 of U; 0 at a price.",
            metavar="X",
        ),
    ] = None,
    moving: Annotated[
        float,
        typer.Option(
            help="Bytes that travel at a re-cut for each byte of adapter: 3 with Adam's moments.", metavar="X"
        ),
    ] = 1.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON on standard output.")] = False,
) -> None:
    """What a decision taken at the start of a round loses when the channel moves inside it, and what re-cutting wins.

    Six policies run on the same rounds, from deciding once by the first rates to the best sequence of cuts. Of a trace each row of a
    device is one block. docs/within-a-round.md says what to do with the answer.

    Example: card-solve follow --profiles profiles/letter --channel poor --correlation 0.9
    """
    from profiler.store import load_fleet
    from solver.adaptive import follow
    from solver.problem import SolveOptions

    found = follow(
        load_fleet(folder),
        SolveOptions(**options),
        threshold=threshold,
        block=block,
        moving=moving,
        correlation=correlation,
    )
    if json_output:
        import json

        print(json.dumps(found.as_json(), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        from solver.channel_report import print_followed

        print_followed(found, Console())


@solve_app.command("channel")
def channel_command(
    channel: Annotated[
        str, typer.Argument(help="good, normal, poor, or a channel file.", metavar="STATE|FILE.json")
    ] = "normal",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a channel file instead.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the chain as JSON on standard output.")] = False,
) -> None:
    """How a radio channel's rates come about: power, path loss, noise, SNR, CQI, modulation and code rate, bit/s.

    A channel file is JSON; docs/channel.md explains its fields. What it does not give is assumed, and listed by every decision.

    Example: card-solve channel poor
    """
    import json

    from profiler.profile import BadInput
    from solver.channel import channel_of, channel_schema

    if schema:
        typer.echo(json.dumps(channel_schema(), indent=1))
        return
    found = channel_of(channel)
    if found is None:
        raise BadInput(
            f"{channel}: expected good, normal, poor or a channel file (JSON), a trace has its rates already"
        )
    if json_output:
        rows = [{"device": name or None, **row} for name in ("", *found.devices) for row in found.station(name).chain()]
        print(json.dumps(rows, indent=1, allow_nan=False))
    else:
        from rich.console import Console

        from solver.channel_report import print_channel

        print_channel(found, Console())


@solve_app.command("front")
@_about_a_fleet
def front_command(
    folder: Path,
    options: dict[str, Any],
    *,
    at_round: Annotated[
        int | None, typer.Option("--round", help="The round to look at. Default: the first.", metavar="N")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON on standard output.")] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write every cut and clock, and which are on the front.", metavar="FILE.csv"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write plots into this folder.", metavar="DIR")] = None,
) -> None:
    """Delay against energy: the Pareto front of each device with its knee, every w at which the decision flips, and what Algorithm 1
    as printed loses to the exact optimum.

    Always shows both methods, whatever --method says; --price, --max-delay-s and --max-energy-j mark another point of the front. What
    w means and what to use in its place: docs/weight.md.

    Example: card-solve front --profiles profiles/letter --plot plots
    """
    from profiler.store import load_fleet
    from solver import front
    from solver.problem import SolveOptions, pose

    problem = pose(load_fleet(folder), SolveOptions(**options))
    found = front.trade_offs(problem, at_round)
    written = [] if csv_file is None else [front.write_csv(found, csv_file)]
    if plot is not None:
        from solver.front_view import write_plots

        written += write_plots(problem, found, plot)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    if json_output:
        import json

        print(json.dumps(front.as_json(problem, found), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        from solver.front_view import print_front

        print_front(problem, found, Console())


@solve_app.command("graph")
def graph_command(
    path: Annotated[
        Path, typer.Argument(help="A graph as JSON ('card-solve graph-schema' prints its schema).", metavar="FILE.json")
    ],
    price_j_per_s: Annotated[
        float | None,
        typer.Option("--price", help="Least price x delay + energy, in joules. Default: 100.", metavar="J_PER_S"),
    ] = None,
    w: Annotated[
        float | None,
        typer.Option("--w", help="Instead of a price: weight of delay against energy in U, 0 to 1.", metavar="W"),
    ] = None,
    local_epochs: Annotated[
        int | None, typer.Option(help="Mini-batches in a round. Default: the graph's own.", metavar="T")
    ] = None,
    compression: Annotated[
        float | None, typer.Option(help="phi of Eq. 9, 0 < PHI <= 1. Default: the graph's own, else 1.", metavar="PHI")
    ] = None,
    uplink_mbps: Annotated[
        float | None, typer.Option(help="Device to server, in Mbit/s. Default: the graph's link.", metavar="X")
    ] = None,
    downlink_mbps: Annotated[float | None, typer.Option(help="Server to device, in Mbit/s.", metavar="Y")] = None,
    f_min_ghz: Annotated[float | None, typer.Option(help="Lowest server clock allowed.", metavar="X")] = None,
    f_max_ghz: Annotated[float | None, typer.Option(help="Highest server clock allowed.", metavar="X")] = None,
    count_idle: Annotated[
        bool, typer.Option("--count-idle", help="Count the energy of the server while it waits.")
    ] = False,
    require_measured: Annotated[
        bool, typer.Option("--require-measured", help="Fail if any quantity used was not measured.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on standard output.")] = False,
) -> None:
    """Split any model graph between a device and a server: the cheapest cut and clock, by minimum cut.

    For graphs that no profile holds: branches, several inputs, vision models. Nothing on the device reads what the server made. What the
    JSON holds is explained by example in docs/graphs.md.

    Example: card-solve graph docs/examples/branches.json
    """
    from solver.graph import load
    from solver.graphanswer import GraphOptions, print_answer, solve_graph

    options = GraphOptions(
        price_j_per_s=price_j_per_s,
        w=w,
        mini_batches=local_epochs,
        compression=compression,
        uplink_mbps=uplink_mbps,
        downlink_mbps=downlink_mbps,
        f_min_ghz=f_min_ghz,
        f_max_ghz=f_max_ghz,
        count_idle=count_idle,
        require_measured=require_measured,
    )
    answer = solve_graph(load(path), options)
    if json_output:
        print(answer.model_dump_json(indent=1))
    else:
        from rich.console import Console

        print_answer(answer, Console())


@solve_app.command("graph-schema")
def graph_schema_command(
    answer: Annotated[bool, typer.Option("--answer", help="The schema of the answer, not of the graph.")] = False,
) -> None:
    """Print the JSON schema of a graph, or of the answer that 'card-solve graph --json' gives."""
    import json

    from solver.graph import schema
    from solver.graphanswer import answer_schema

    typer.echo(json.dumps(answer_schema() if answer else schema(), indent=1))


# -------------------------------------------------------------------------------------------------------- running


def _names(by_comma: str | None) -> tuple[str, ...] | None:
    return None if by_comma is None else tuple(name.strip() for name in by_comma.split(",") if name.strip())


_stopping = False
"""A signal has asked us to stop."""


_ASK_AGAIN_S = 1.0


def _stop(signum: int, frame: object) -> None:
    """Stop the program. Libraries may swallow an exception, so it is asked for again, unless the stop is on its way."""
    global _stopping
    _stopping = True
    if signum == signal.SIGALRM and _on_its_way(sys.exc_info()[1]):
        return
    signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_S, _ASK_AGAIN_S)
    raise KeyboardInterrupt


def _on_its_way(error: BaseException | None) -> bool:
    """Whether the exception being handled is the stop, or came of it: clocks are being given back just now."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _catch_signals() -> None:
    """Stop at SIGINT, SIGTERM and SIGHUP, wherever the program is.

    SIGINT is caught even where a script's ``&`` has left it ignored, for a stop must give clocks back and keep results; SIGHUP
    that is ignored stays so, since that is what ``nohup`` is for.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)
    # Python swallows an exception in a destructor. A stop that happened to arrive in one is asked for again.
    signal.signal(signal.SIGALRM, _stop)
    before = sys.unraisablehook

    def swallowed(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02, _ASK_AGAIN_S)
        else:
            before(what)

    sys.unraisablehook = swallowed


def _say(command: str, text: str) -> None:
    from profiler.profile import printable

    # One line, and names out of files cannot steer the terminal.
    print(f"{command}: {printable(' '.join(text.split()))}", file=sys.stderr)


def _ignore_signals() -> None:
    """What is left to do takes no time, and a second stop in it must change neither the message nor the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _main(app: typer.Typer, command: str) -> int:
    _catch_signals()
    try:
        return _run(app, command)
    except KeyboardInterrupt:  # a second stop, at the moment at which the first was told of
        return 130
    finally:
        _ignore_signals()


def _run(app: typer.Typer, command: str) -> int:
    try:
        result = app(standalone_mode=False, prog_name=command)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(command)
    except BrokenPipeError:
        # Whoever read us has gone (a pager, head): nothing is wrong, and Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # A library may turn the stop into an error of its own (an import that was interrupted, for one).
        return _stopped(command) if _stopping else _failed(command, error)


def _stopped(command: str) -> int:
    # Nothing is imported here: the stop may have come in the middle of an import.
    _ignore_signals()
    print(f"{command}: stopped", file=sys.stderr)
    return 130


def _failed(command: str, error: Any) -> int:
    from profiler.profile import BadInput, MissingHardware

    if isinstance(error, _ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        _say(command, error.format_message() + hint)
        return 2
    if isinstance(error, BadInput):
        _say(command, str(error))
        return 2
    if isinstance(error, MissingHardware):
        _say(command, str(error))
        return 3
    if os.environ.get("CARD_TRACEBACK"):
        raise error
    _say(command, f"a fault of ours: {type(error).__name__}: {error} (CARD_TRACEBACK=1 shows where)")
    return 1


def profile_main() -> None:
    """Entry point of ``card-profile``."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    sys.exit(_main(profile_app, "card-profile"))


def solve_main() -> None:
    """Entry point of ``card-solve``."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    sys.exit(_main(solve_app, "card-solve"))
