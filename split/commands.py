"""The commands of ``card-train``, and ``card-profile link``. They parse, call one function and print; nothing heavy is imported at the top."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiler.units import names
from solver.commands import taking

if TYPE_CHECKING:
    from split.server import Outcome

train_app = typer.Typer(
    name="card-train",
    help="Fine-tune one model between devices and a server: each device runs the first layers, the server the rest.\n\n"
    "First try: card-train local --model tiny-llama-test --cut 2 --data README.md --output run\n\n"
    "On two machines: certificates, then server and device; docs/training.md goes through it. Afterwards the folder of the run holds "
    "adapter/, a PEFT checkpoint.",
    add_completion=False,
    rich_markup_mode=None,
)


def _training_options(
    model: Annotated[
        str,
        typer.Option(
            help="A local directory with safetensors, a GGUF file, a Hugging Face id in the local cache, or a preset with random "
            "weights (tiny-llama-test, ...)."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of this run: adapters, state, report. The same command goes on from there.", metavar="DIR"
        ),
    ],
    rounds: Annotated[
        int,
        typer.Option(
            help="Training rounds; in each every device has its turn. More than a finished run has: it goes on.",
            metavar="N",
        ),
    ] = 1,
    local_epochs: Annotated[int, typer.Option(help="T: mini-batches of a turn.", metavar="T")] = 5,
    profiles: Annotated[
        Path | None,
        typer.Option(
            help="Profiles of the server and of each device, by name: cut and clock are decided from them round by round, and the "
            "times are predicted.",
            metavar="DIR",
        ),
    ] = None,
    cut: Annotated[
        int | None, typer.Option(help="Always this cut layer, instead of the solver's.", metavar="C")
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Compress smashed data and gradients: none, fp16, bf16, int8-o2+zstd, ... Default: none; with --profiles also auto: the "
            "fastest within --max-loss-increase.",
            metavar="CODEC",
        ),
    ] = None,
    max_loss_increase: Annotated[
        float | None, typer.Option(help="With --codec auto: the most that a codec may cost in loss.", metavar="X")
    ] = None,
    method: Annotated[str, typer.Option(help="How the cut is decided; see card-solve.", metavar="METHOD")] = "exact",
    w: Annotated[
        float, typer.Option("--w", help="Weight of delay against energy in U of Eq. 12, 0 to 1.", metavar="W")
    ] = 0.2,
    server_profile: Annotated[
        str | None, typer.Option(help="The server's profile by name, where there are several.", metavar="NAME")
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="Rates to decide by, round by round: good, normal, poor, a radio channel as JSON, a trace as CSV; see card-solve.",
            metavar="STATE|FILE",
        ),
    ] = None,
    uplink_mbps: Annotated[float | None, typer.Option(help="R^D in Mbit/s to decide by.", metavar="X")] = None,
    downlink_mbps: Annotated[float | None, typer.Option(help="R^S in Mbit/s to decide by.", metavar="Y")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Rates over time, as CSV with time_s,uplink_mbps,downlink_mbps, or as 'card-solve channel --json' prints them. Each turn "
            "is decided by those of its beginning, and the link is slowed to them.",
            metavar="FILE",
        ),
    ] = None,
    shape: Annotated[
        bool | None,
        typer.Option(
            "--shape/--no-shape",
            help="Slow the link, inside the processes and both ways, to the rates that are decided by: for tests and demos. "
            "Default: only 'local' does, where there are such rates.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a mini-batch.", metavar="N")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens in a sequence.", metavar="N")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    lora_rank: Annotated[int, typer.Option(help="Z of the letter.", metavar="N")] = 4,
    lora_alpha: Annotated[float, typer.Option(help="Scale of the adapters.")] = 32.0,
    lora_targets: Annotated[
        str | None, typer.Option(help="Modules with adapters. Default: query and value.", metavar="A,B")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd (Eq. 4 and 5) or adamw.")] = "sgd",
    optimizer_state: Annotated[
        str,
        typer.Option(
            help="travel: AdamW's moments go with the adapters (3 x A(c) on the link). reset: they begin anew in each turn."
        ),
    ] = "travel",
    learning_rate: Annotated[float, typer.Option(help="gamma of Eq. 4 and 5, the same on both sides.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of the optimizer.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of adapters, mini-batches and channel.", metavar="N")] = 0,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap",
            help="Compute while the link is busy, where the letter's order allows it: the server's optimizer, the next mini-batch.",
        ),
    ] = False,
    evaluate_every: Annotated[
        int, typer.Option(help="Held-out loss before every N-th round and at the end; 0: never.", metavar="N")
    ] = 0,
    torch_device: Annotated[str, typer.Option(help="Where the server's layers run: cpu or cuda:0.")] = "cpu",
    hardware: Annotated[
        str,
        typer.Option(help="Whose sensors and clock are used, as 'card-profile devices' names them.", metavar="NAME"),
    ] = "auto",
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a silent device has lost its turn.", metavar="S")
    ] = 120.0,
    patience: Annotated[float, typer.Option(help="Seconds to wait where no device is there.", metavar="S")] = 600.0,
    report: Annotated[
        bool,
        typer.Option("--report", help="Print predicted beside measured per stage, and draw it into the run's folder."),
    ] = False,
) -> tuple[dict[str, Any]]:
    """What ``server`` and ``local`` share: fields of `split.server.ServerOptions` by name."""
    from solver.problem import SolveOptions
    from split.decide import Fixed

    solve = SolveOptions(
        method=method,
        server=server_profile,
        w=w,
        local_epochs=local_epochs,
        uplink_mbps=uplink_mbps,
        downlink_mbps=downlink_mbps,
        channel=channel,
        rounds=rounds,
        seed=seed,
        codec=codec if profiles is not None else None,
        max_loss_increase=max_loss_increase,
    )
    if profiles is None and cut is None:
        raise typer.BadParameter("--cut or --profiles: expected one of them, to know where the model is cut")
    fixed = Fixed(cut=cut, codec=codec if profiles is None else None)
    return (
        {
            "model": model,
            "output": output,
            "solve": solve,
            "profiles": profiles,
            "fixed": fixed,
            "trace": trace,
            "shaped": shape,
            "batch_size": batch_size,
            "seq_len": seq_len,
            "dtype": dtype,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
            "lora_targets": names(lora_targets),
            "optimizer": optimizer,
            "optimizer_state": optimizer_state,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "overlap": overlap,
            "evaluate_every": evaluate_every,
            "torch_device": torch_device,
            "hardware": hardware,
            "timeout_s": timeout,
            "patience_s": patience,
            "report": report,
        },
    )


_Json = Annotated[bool, typer.Option("--json", help="Print what came of it as JSON on standard output.")]
_Certificates = Annotated[
    Path | None,
    typer.Option(help="Folder that 'card-train certificates' made. Without it: loopback only.", metavar="DIR"),
]
_HeldOut = Annotated[
    str,
    typer.Option(
        help="Share of the data that is kept apart for the held-out loss, or a file with such text.", metavar="X|FILE"
    ),
]
_TextField = Annotated[
    str | None, typer.Option(help="Field of JSONL or a dataset that holds the text.", metavar="NAME")
]


def _apart(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


@train_app.command("server", short_help="Train with devices that dial in.")
@taking(_training_options, 1)
def server_command(
    options: dict[str, Any],
    devices: Annotated[
        str, typer.Option(help="Names of the devices, by comma, in the order of their turns.", metavar="A,B")
    ],
    listen: Annotated[str, typer.Option(help="Address to listen on.", metavar="HOST:PORT")] = "127.0.0.1:7770",
    certificates: _Certificates = None,
    json_output: _Json = False,
) -> None:
    """Train with devices that dial in: picks them in turn, sends cut and adapters, runs the layers behind the cut, merges.

    A device that vanishes loses its turn and is taken back when it returns. A server that was stopped or killed goes on from its last
    merged turn when the same command is given again. OUTPUT/adapter is a PEFT checkpoint.

    Example: card-train server --model tiny-llama-test --cut 2 --devices one,two --rounds 3 --output run

    Example: card-train server --model /models/llama --profiles profiles --devices orin-nano --listen 0.0.0.0:7770 --certificates certificates --report --output run
    """
    from split.server import ServerOptions, run_server

    options["shaped"] = bool(options["shaped"])
    asked = ServerOptions(**options, devices=names(devices) or (), listen=listen, certificates=certificates)
    with _reporter() as say:
        outcome = run_server(asked, say)
    _tell(outcome, json_output)


@train_app.command("device", short_help="Train this device's layers on its own data.")
def device_command(
    server: Annotated[str, typer.Option(help="Where the server listens.", metavar="HOST:PORT")],
    name: Annotated[
        str, typer.Option(help="This device's name, as in its certificate and its profile.", metavar="NAME")
    ],
    data: Annotated[
        Path, typer.Option(help="Text file, JSONL, or Hugging Face dataset directory. It stays here.", metavar="PATH")
    ],
    model: Annotated[
        str | None, typer.Option(help="Where the base weights lie here. Default: what the server says.")
    ] = None,
    certificates: _Certificates = None,
    held_out: _HeldOut = "0.05",
    text_field: _TextField = None,
    torch_device: Annotated[str, typer.Option(help="Where this device's layers run: cpu or cuda:0.")] = "cpu",
    hardware: Annotated[
        str, typer.Option(help="Whose sensors are read, as 'card-profile devices' names them.", metavar="NAME")
    ] = "auto",
    uplink_mbps: Annotated[
        float | None, typer.Option(help="Slow what this device sends to this rate, for tests and demos.", metavar="X")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="The same with rates over time: CSV with time_s,uplink_mbps,downlink_mbps, begun with the first byte sent.",
            metavar="FILE",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a gradient.", metavar="S")] = 120.0,
    patience: Annotated[
        float, typer.Option(help="Seconds to go on dialling a server that is gone.", metavar="S")
    ] = 600.0,
) -> None:
    """Train this device's layers on its own data; the server says when and at which cut.

    It holds only its own layers, keeps its data, and dials again when the connection breaks.

    Example: card-train device --server 192.0.2.1:7770 --name orin-nano --data notes.txt --certificates certificates
    """
    from split.device import DeviceOptions, run_device

    asked = DeviceOptions(
        server=server,
        name=name,
        data=data,
        model=model,
        certificates=certificates,
        held_out=_apart(held_out),
        text_field=text_field,
        torch_device=torch_device,
        hardware=hardware,
        patience_s=patience,
        timeout_s=timeout,
        shape=_shape(uplink_mbps, trace),
    )
    with _reporter() as say:
        run_device(asked, say)


@train_app.command("local", short_help="Server and devices on this machine: a first try.")
@taking(_training_options, 1)
def local_command(
    options: dict[str, Any],
    data: Annotated[
        Path,
        typer.Option(help="Text file, JSONL, or Hugging Face dataset directory that all devices read.", metavar="PATH"),
    ],
    devices: Annotated[
        str, typer.Option(help="Names of the devices to start, by comma.", metavar="A,B")
    ] = "device-1,device-2",
    held_out: _HeldOut = "0.05",
    text_field: _TextField = None,
    json_output: _Json = False,
) -> None:
    """Start a server and its devices on this machine, as separate processes: a first try.

    Each device draws its own mini-batches from the same text. What the devices say goes to OUTPUT/NAME.log. The link between them is as
    fast as loopback, or slowed to the rates that are given.

    Example: card-train local --model tiny-llama-test --cut 2 --data README.md --rounds 3 --output run

    Example: card-train local --model tiny-llama-test --cut 2 --data README.md --channel poor --rounds 3 --report --output slow
    """
    from split.local import run_local
    from split.server import ServerOptions

    if options["shaped"] is None:  # loopback has no rates of its own
        solve = options["solve"]
        rates = (options["profiles"], solve.uplink_mbps, solve.downlink_mbps, solve.channel, options["trace"])
        options["shaped"] = any(each is not None for each in rates)
    asked = ServerOptions(**options, devices=names(devices) or (), listen="127.0.0.1:0")
    with _reporter() as say:
        outcome = run_local(asked, data, _apart(held_out), text_field, say)
    _tell(outcome, json_output)


@train_app.command("certificates", short_help="Who may join: certificates for server and devices.")
def certificates_command(
    folder: Annotated[Path, typer.Argument(help="Where they go; an authority that is there is kept.", metavar="DIR")],
    server: Annotated[
        str | None, typer.Option(help="Host names and addresses of the server, by comma.", metavar="A,B")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Names of devices, by comma.", metavar="A,B")] = None,
) -> None:
    """Make the authority, the server's certificate and one for each device, and the list of devices that are let in.

    Copy to each device only its own two files and the authority's certificate, never a key of another. To add a device later, name it alone,
    in the same folder: what is there is kept.

    Example: card-train certificates certificates --server 192.0.2.1,server.local --device orin-nano,orin-agx

    Example: card-train certificates certificates --device orin-nx
    """
    from split.certificates import make

    made = make(folder, names(server) or (), names(device) or ())
    for path in made.kept:
        print(f"kept {path}", file=sys.stderr)
    for path in made.written:
        print(f"wrote {path}", file=sys.stderr)


def link(
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="Measure the link to the machine that serves there. Port: 7771.", metavar="HOST[:PORT]"
        ),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Answer whoever measures, until stopped.")] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            help="With --serve: where. Default: port 7771 of every address with certificates, of 127.0.0.1 without.",
            metavar="HOST:PORT",
        ),
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(help="Folder that 'card-train certificates' made. Without it: loopback only.", metavar="DIR"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="This device's name, as in its certificate. Default: the machine's.", metavar="NAME"),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write the figures into this profile, as its measured link.", metavar="FILE")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="auto (iperf3 where both sides have it), iperf3, or stream: our own.", metavar="METHOD"),
    ] = "auto",
    seconds: Annotated[float, typer.Option(help="How long each direction is measured.", metavar="S")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure the link between two machines: uplink, downlink, round trip.

    Start it with --serve on the server, then with --to on each device.

    Example: card-profile link --serve --certificates certificates

    Example: card-profile link --to 192.0.2.1 --certificates certificates --name orin-nano --profile profiles/orin-nano.json
    """
    if (to is None) == (not serve):
        raise typer.BadParameter("expected --to HOST[:PORT] on the device, or --serve on the server")
    from split.link import measure_and_tell, serve_until_stopped

    if to is None:
        serve_until_stopped(listen, certificates, method)
    else:
        measure_and_tell(to, certificates, name, profile, method, seconds, as_json)


def _reporter() -> Any:
    import os
    import warnings

    from rich.console import Console

    from profiler.progress import FEW_PER_S, Reporter

    # Other packages' deprecation notes are for us, not for whoever trains; CARD_TRACEBACK=1 shows everything.
    if not os.environ.get("CARD_TRACEBACK"):
        warnings.simplefilter("ignore")
    return Reporter(Console(stderr=True, highlight=False, soft_wrap=True), FEW_PER_S)


def _shape(uplink_mbps: float | None, trace: Path | None) -> Any:
    from profiler.profile import BadInput
    from split.shaping import MAX_MBPS, Shape, read_link_trace

    if trace is not None:
        if uplink_mbps is not None:
            raise BadInput("--trace: expected either it or --uplink-mbps, not both")
        return Shape(read_link_trace(trace).uplink)
    if uplink_mbps is None:
        return None
    if not 1e-6 <= uplink_mbps <= MAX_MBPS:
        raise BadInput(f"--uplink-mbps {uplink_mbps:g}: expected a rate in Mbit/s from 1e-06 to {MAX_MBPS:g}")
    return Shape(1e6 * uplink_mbps)


def _tell(outcome: Outcome, as_json: bool) -> None:
    """To standard output, once the progress has ended: while bars move, rich takes it for standard error."""
    if as_json:
        import json

        print(json.dumps(outcome.as_json(), indent=1, allow_nan=False))
        return
    if outcome.report is not None:
        from rich.console import Console

        from split.report import Report

        Console().print(Report(outcome.output / "report").table(), crop=False)
    print(f"{outcome.turns} turns in {outcome.rounds} rounds, {outcome.lost} lost")
    if outcome.first_loss is not None and outcome.last_loss is not None:
        print(f"training loss {outcome.first_loss:.4f} -> {outcome.last_loss:.4f}")
    if outcome.held_out_before is not None and outcome.held_out_after is not None:
        print(f"held-out loss {outcome.held_out_before:.4f} -> {outcome.held_out_after:.4f}")
    print(f"wrote {outcome.output / 'adapter'} (a PEFT checkpoint)")
