"""The commands of ``card-solve``. They parse, call one function and print; nothing heavy is imported at the top."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from profiler.units import names

if TYPE_CHECKING:
    from rich.console import Console

DECIDE = "decide"


class _Solve(typer.core.TyperGroup):
    """``card-solve OPTIONS`` is ``card-solve decide OPTIONS``, but for ``--version``, which is the program's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        decide = not args or (args[0].startswith("-") and args[0] != "--version")
        return super().parse_args(ctx, [DECIDE, *args] if decide else args)


solve_app = typer.Typer(
    name="card-solve",
    cls=_Solve,
    help="Decide the cut layer and the server's clock from profiles (CARD).",
    add_completion=False,
    rich_markup_mode=None,
)


def _fleet_options(
    profiles: Annotated[Path, typer.Option(help="A folder of profiles: one server and its devices.", metavar="DIR")],
    server: Annotated[
        str | None, typer.Option(help="The server's profile by name, where there are several.", metavar="NAME")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="exact: best cut and supported clock together. card: Algorithm 1 with Eq. 16 as printed, in the letter's "
            "model. min-cut: the same optimum over the graph of operators where the server's profile holds one. server-only, "
            "device-only: the letter's benchmarks. static:C: always cut C.",
            metavar="METHOD",
        ),
    ] = "exact",
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Which model the reported delay, energy and cost come from: letter, or profile (the measured tables; the "
            "default where they exist, and all that other commands than decide report from).",
            metavar="MODEL",
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
    codec: Annotated[
        str | None,
        typer.Option(
            help="A codec of smashed data and gradients with the figures that the profiles measured of it at every cut; auto: for each "
            "device, cut and rates the fastest within --max-loss-increase. In place of --compression.",
            metavar="NAME|auto",
        ),
    ] = None,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(
            help="With --codec auto: most that a codec may add to the held-out loss, in nats a token. Default: 0.002.",
            metavar="X",
        ),
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
    options["leave_out"] = names(leave_out) or ()
    from solver.objective import weight_or_other

    options["w"] = weight_or_other(w, price_j_per_s, max_delay_s, max_energy_j)
    return folder, options


def taking(
    options: Callable[..., tuple[Any, ...]], parameters: int
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the function ``options`` in place of its first ``parameters``, which get what that function returns."""
    shared = inspect.signature(options, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(list(inspect.signature(command, eval_str=True).parameters.items())[parameters:])

        @functools.wraps(command)
        def merged(**given: Any) -> None:
            found = options(**{name: given.pop(name) for name in shared if name in given})
            command(*found, **given)

        # Options without a default come first, as Python wants them.
        both = sorted([*shared.values(), *own.values()], key=lambda p: p.default is not inspect.Parameter.empty)
        merged.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        merged.__annotations__ = {p.name: p.annotation for p in both}
        return merged

    return decorate


_about_a_fleet = taking(_fleet_options, 2)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _say_written(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)


def _answer(as_json: bool, document: Callable[[], Any], show: Callable[[Console], None]) -> None:
    """Print the document as JSON on standard output, or show it to a person."""
    if as_json:
        import json

        print(json.dumps(document(), indent=1, allow_nan=False))
    else:
        show(_console())


@solve_app.command(
    DECIDE,
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
    from profiler.profile import BadInput
    from profiler.store import load_fleet
    from solver.problem import SolveOptions
    from solver.scenario import solve

    files = [path.resolve() for path in (html, csv_file, parquet) if path is not None]
    if len(set(files)) < len(files):
        raise BadInput("--html, --csv, --parquet: expected a file of its own for each")
    solution = solve(
        load_fleet(folder), SolveOptions(**options, require_measured=require_measured, scheduler=scheduler)
    )
    written = []
    if tables is not None:
        written.append(solution.write_tables(tables, limit=tables_limit))
    if plot is not None:
        from solver.show.plots import write_plots

        written += write_plots(solution, plot)
    if html is not None:
        from solver.show.html import write_html

        written.append(write_html(solution, html, profiles=str(folder)))
    if csv_file is not None or parquet is not None:
        from solver.show.frames import write_csv, write_parquet

        ways = ((write_csv, csv_file), (write_parquet, parquet))
        written += [write(solution, path) for write, path in ways if path is not None]
    _say_written(written)
    if json_output:
        solution.write_json(sys.stdout)
    else:
        from solver.show.report import print_report

        print_report(solution, _console())


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
    joint optimum there. docs/regret.md says what each parameter is and how the loss is shared among them. It weighs by --w; --method,
    a price and limits are refused.

    Example: card-solve regret --profiles profiles/ --plot regret.png
    """
    from profiler.store import load_fleet
    from solver.problem import SolveOptions
    from solver.regret.beliefs import parse_letter
    from solver.regret.regret import regret
    from solver.regret.report import print_regret, write_csv, write_plot

    letter = parse_letter(names(assume) or ())
    found = regret(load_fleet(folder), SolveOptions(**options), letter)
    written = [write(found, path) for write, path in ((write_plot, plot), (write_csv, csv_file)) if path is not None]
    _say_written(written)
    _answer(json_output, found.as_json, lambda console: print_regret(found, console))


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
            help="Also vary the rates: their logarithm by a normal with this standard deviation in percent, median kept, up and down apart.",
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
    the others, and which choice has the least worst-case loss. docs/uncertainty.md says what is drawn.

    Example: card-solve uncertainty --profiles profiles/letter --rate-variation 20 --without-interval 10
    """
    from profiler.store import load_fleet
    from solver.problem import SolveOptions, pose
    from solver.uncertainty.certainty import how_sure
    from solver.uncertainty.worlds import SOURCES, Variation

    variation = Variation(
        draws=draws,
        rate_variation_pct=rate_variation,
        without_interval_pct=without_interval,
        machine_variation_pct=machine_variation,
        layer_errors=layer_errors,  # type: ignore[arg-type]  # checked there
        common_share=common_share,
        only=SOURCES if only is None else names(only) or (),
    )
    certainty = how_sure(pose(load_fleet(folder), SolveOptions(**options)), variation)
    if plot is not None:
        from solver.uncertainty.report import write_plot

        print(f"wrote {write_plot(certainty, plot)}", file=sys.stderr)
    from solver.uncertainty.report import print_certainty

    _answer(json_output, certainty.as_json, lambda console: print_certainty(certainty, console))


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
    or not reproducible; with the parameters, among those it does not give, that come nearest to its 70.8 % and 53.1 %. docs/letter.md
    says what came out.

    Example: card-solve reproduce --output reproduction
    """
    from profiler.store import load_fleet
    from solver.letter.figures import print_report, write_plots, write_tables
    from solver.letter.fleet import profiles as own_fleet
    from solver.letter.reproduce import reproduce

    fleet = own_fleet() if profiles is None else load_fleet(profiles)
    result = reproduce(fleet, rounds=rounds, seed=seed, full_search=full_search)
    written = [] if output is None else write_tables(result, output)
    if output is not None:
        written += write_plots(result, output)
    _say_written(written)
    _answer(json_output, result.as_json, lambda console: print_report(result, console))


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
    from solver.channel_report import print_followed

    _answer(json_output, found.as_json, lambda console: print_followed(found, console))


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
        print(json.dumps(channel_schema(), indent=1))
        return
    found = channel_of(channel)
    if found is None:
        raise BadInput(
            f"{channel}: expected good, normal, poor or a channel file (JSON), a trace has its rates already"
        )
    from solver.channel_report import print_channel

    def chain() -> list[dict[str, Any]]:
        return [{"device": name or None, **row} for name in ("", *found.devices) for row in found.station(name).chain()]

    _answer(json_output, chain, lambda console: print_channel(found, console))


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
    _say_written(written)
    from solver.front_view import print_front

    _answer(json_output, lambda: front.as_json(problem, found), lambda console: print_front(problem, found, console))


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
    from solver.graphs.answer import GraphOptions, print_answer, solve_graph
    from solver.graphs.graph import load

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
    _answer(json_output, lambda: answer.model_dump(mode="json"), lambda console: print_answer(answer, console))


@solve_app.command("graph-schema")
def graph_schema_command(
    answer: Annotated[bool, typer.Option("--answer", help="The schema of the answer, not of the graph.")] = False,
) -> None:
    """Print the JSON schema of a graph, or of the answer that 'card-solve graph --json' gives."""
    import json

    from solver.graphs.answer import answer_schema
    from solver.graphs.graph import schema

    print(json.dumps(answer_schema() if answer else schema(), indent=1))


# 'card-solve --help' shows the help of what it does without a command; the others must not be hidden by that.
_OTHERS = {
    "regret": "what trusting the letter's parameters loses",
    "front": "all trade-offs, and where w flips the decision",
    "uncertainty": "how sure the decision is",
    "follow": "a channel that moves inside a round",
    "channel": "how a radio channel's rates come about",
    "reproduce": "the letter's simulation and its claims",
    "graph": "split any model graph",
    "graph-schema": "the JSON schema of such a graph",
}
assert set(_OTHERS) == {other.name for other in solve_app.registered_commands[1:]}
# \b keeps the lines below it as they are.
solve_app.registered_commands[0].epilog = (
    f"'card-solve OPTIONS' is short for 'card-solve {DECIDE} OPTIONS'. Other commands, each with --help:\n\n\b\n"
    + "\n".join(f"  card-solve {name:<13} {what}" for name, what in _OTHERS.items())
)
