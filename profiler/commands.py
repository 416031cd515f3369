"""The commands of ``card-profile``. They parse, call one function and print; nothing heavy is imported at the top."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from profiler.units import names

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


def _whole_numbers(option: str, by_comma: str | None) -> tuple[int, ...] | None:
    """``"1, 5"`` as ``(1, 5)``. Raises BadInput, naming the option."""
    from profiler.profile import BadInput

    try:
        found = names(by_comma)
        return None if found is None else tuple(int(number) for number in found)
    except ValueError:
        raise BadInput(f"{option} {by_comma}: expected whole numbers, separated by commas") from None


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
    name: Annotated[
        str | None,
        typer.Option(
            help="What this machine is called in the profile, where a fleet has several of its kind. Default: the device's name.",
            metavar="NAME",
        ),
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
            "memory (predicted peaks checked by really running a few halves), graph (operators, for 'card-solve --method min-cut'), "
            "compression (bytes, times and loss of codecs at every cut, on real weights and a text). "
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
    codecs: Annotated[
        str | None,
        typer.Option(
            help="Codecs for --measure compression, by comma: fp16, bf16, int2 to int8, int8-o2 (2 outlier channels kept), topN- "
            "before (the largest N %), +zstd after. Default: fp16 and five others up to top10-int8-o2+zstd.",
            metavar="A,B",
        ),
    ] = None,
    cuts: Annotated[
        str | None, typer.Option(help="Cuts for --measure compression, by comma. Default: all.", metavar="1,5,9")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="The text for --measure compression, in UTF-8. Default: the language reference that Python's own help has.",
            metavar="FILE",
        ),
    ] = None,
    loss_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of the text for each loss of --measure compression; 0: bytes and times alone. Default: 4096.",
            metavar="N",
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
        lora_targets=names(lora_targets),
        gradient_checkpointing=gradient_checkpointing,
    )
    run(
        RunRequest(
            device=device,
            workload=workload,
            role=role,
            measure=names(measure),
            clocks=clocks,
            load_command=load_command,
            restore_hz=parse_restore(restore_clocks) if restore_clocks is not None else None,
            codecs=names(codecs),
            cuts=_whole_numbers("--cuts", cuts),
            text=text,
            loss_tokens=loss_tokens,
            output=output,
            fresh=fresh,
            name=name,
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

    A CSV has the columns frequency_mhz,power_w and optionally device,workload,power_scope. Workloads of one device that are given
    together teach each other its voltages.

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
            help="Draw into this folder: times against clock, power against clock with the laws beside each other, and loss against "
            "compression.",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Show what a profile says, with where each figure comes from."""
    from profiler.show import draw, show
    from profiler.store import load

    profile = load(path)
    if plot is not None:
        for written in draw(profile, plot):
            print(f"wrote {written}", file=sys.stderr)
    show(profile)


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
        print(perseus_csv(profile), end="")
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

    print(json.dumps(schema(), indent=1))
