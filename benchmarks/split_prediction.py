"""Does a profile predict a real split run, second by second, and is the cut that it decides the fastest?

    python -m benchmarks.split_prediction [--model NAME] [--batch-size N] [--seq-len N] [--rates 100,25,10] [--codecs A,B] [--cuts 1,3,5,7]
                                          [--local-epochs T] [--repeats N] [--attempts N] [--output DIR]

One machine, two cores. `card-profile run` profiles a server on the first core and a device on the second, each in a process of its own that has
ended before anything else happens. Then `card-train`'s own roles run as two processes, pinned to these cores with one thread each, over a link
that is slowed inside the processes (emulated: rates in both directions, no delay). Cuts, rates and codecs change from round to round in an
order that is shuffled in each repeat, so that a slow second of the machine falls on all of them; what the server decides is the only thing that
is not the product's. The report that the server writes is what is judged: for each rate, cut and codec the median over the repeats.

Judged: the round's delay, predicted against measured (median error at most 5 %, worst at most 12 %); every stage of more than 5 % of the round
(median error at most 10 %); computing at least half of the round at the highest rate; and the cut that ``--w 1`` decides for each rate and codec
against the one that was truly fastest (regret at most 2 %).

No figure is corrected. But a shared machine has slow minutes that no profile can know. So the plain, unsplit step, which is no part of any
prediction, is the control: the server's process times it between rounds, and where it differs by more than 2 % from the profile's plain step,
the machine was not the one that was profiled. Then the attempt is printed, marked, and made again with new profiles, at most --attempts times.

Ends with 1 when a bound is missed in an attempt that counts, or when none counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from profiler.profile import Role
from profiler.store import load, save
from solver.problem import SolveOptions
from split.decide import Decider, Decision, Fixed, TrainedWorkload
from split.report import error_pct, summarise
from split.shaping import Shape

MEDIAN_PCT, WORST_PCT, STAGE_PCT, REGRET_PCT, CONTROL_PCT, COMPUTE_SHARE = 5.0, 12.0, 10.0, 2.0, 2.0, 0.5
WARMUP_ROUNDS = 3
CONTROL_EVERY = 3
LAYERS = 8
TEXT = "The device runs the first layers, the server runs the others, and what crosses between them is measured. "

Point = tuple[float, int, str]
"""Rate in bit/s in both directions, cut, codec."""


class Dial:
    """One figure that two processes share: the rate of the link, in bit/s."""

    def __init__(self, path: Path) -> None:
        path.touch()
        with path.open("r+b") as file:
            file.truncate(8)
            self._memory = mmap.mmap(file.fileno(), 8)

    def set(self, rate_bps: float) -> None:
        struct.pack_into("<d", self._memory, 0, rate_bps)

    def get(self) -> float:
        rate: float = struct.unpack_from("<d", self._memory, 0)[0]
        return rate


class Dialled(Shape):
    """A shaped link whose rate is looked up whenever something is sent."""

    def __init__(self, dial: Dial) -> None:
        super().__init__(dial.get())
        self._dial, self._rate = dial, dial.get()

    def copy(self) -> Shape:
        return Dialled(self._dial)

    def book(self, sizes: Sequence[int]) -> tuple[float, list[float]]:
        rate = self._dial.get()
        if rate != self._rate:
            self._rate = rate
            self.set_rate(rate)
        return super().book(sizes)


def alone_on(core: int) -> None:
    """This process has one core and one thread, as the profiles had, and keeps its memory as they did."""
    import torch

    from profiler.workload.timing import keep_memory

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    keep_memory()


# ------------------------------------------------------------------------------------------------------- the two roles


def serve(task: dict[str, Any]) -> None:
    """The server's process: `split.server.run_server`, with decisions taken from the schedule."""
    alone_on(task["core"])
    from rich.console import Console

    import split.server
    from profiler.hardware.host import WallTime
    from profiler.progress import Reporter
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build
    from profiler.workload.timing import Steps

    schedule: list[Point] = [(rate, cut, codec) for rate, cut, codec in task["schedule"]]
    dial, clock = Dial(Path(task["dial"])), WallTime()
    control = SplitModel(build(WorkloadSpec(task["model"], task["batch_size"], task["seq_len"])))
    steps = Steps(control, control.batch())
    plain: list[float] = []

    class Scheduled(Decider):
        """Every decision the schedule's; what is predicted of it is the product's."""

        def __init__(
            self,
            profiles: Path | None,
            options: SolveOptions,
            devices: Sequence[str],
            workload: TrainedWorkload,
            *_: Any,
        ) -> None:
            super().__init__(profiles, options, devices, workload, Fixed(cut=1, codec="none"))
            self._each = {
                (cut, codec): Decider(profiles, options, devices, workload, Fixed(cut=cut, codec=codec))
                for cut, codec in dict.fromkeys((cut, codec) for _, cut, codec in schedule)
            }
            choices = {}
            for codec in dict.fromkeys(codec for _, _, codec in schedule):
                free = Decider(profiles, options, devices, workload, Fixed(codec=codec))
                for rate in dict.fromkeys(rate for rate, _, _ in schedule):
                    choices[f"{rate:g} {codec}"] = free.decide(2, "device", uplink_bps=rate, downlink_bps=rate).cut
            Path(task["choices"]).write_text(json.dumps(choices))

        def decide(self, round: int, device: str, *, round_trip_s: float | None = None, **_: Any) -> Decision:
            rate, cut, codec = schedule[round - 1]
            dial.set(rate)
            if round % CONTROL_EVERY == 0:
                for _again in range(2):
                    plain.append(steps.plain(clock)[0][2])
            return self._each[cut, codec].decide(
                round, device, uplink_bps=rate, downlink_bps=rate, round_trip_s=round_trip_s
            )

    split.server.Decider = Scheduled  # type: ignore[misc]
    options = split.server.ServerOptions(
        model=task["model"],
        output=Path(task["output"]),
        devices=("device",),
        solve=SolveOptions(
            w=1.0, local_epochs=task["local_epochs"], rounds=len(schedule), uplink_mbps=1.0, downlink_mbps=1.0
        ),
        listen=task["address"],
        profiles=Path(task["profiles"]),
        batch_size=task["batch_size"],
        seq_len=task["seq_len"],
        optimizer="adamw",  # what the profiles time
        learning_rate=1e-4,
        hardware="cpu",
        report=True,
        shape=Dialled(dial),
    )
    with Path(task["log"]).open("w") as log:
        split.server.run_server(options, Reporter(Console(file=log, width=200)))
    Path(task["control"]).write_text(json.dumps(plain[len(plain) // 10 :]))


def train(task: dict[str, Any]) -> None:
    """The device's process: `split.device.run_device`."""
    alone_on(task["core"])
    from rich.console import Console

    from profiler.progress import Reporter
    from split.device import DeviceOptions, run_device

    options = DeviceOptions(
        server=task["address"],
        name="device",
        data=Path(task["data"]),
        hardware="cpu",
        patience_s=120.0,
        shape=Dialled(Dial(Path(task["dial"]))),
    )
    with Path(task["log"]).open("w") as log:
        run_device(options, Reporter(Console(file=log, width=200)))


@contextlib.contextmanager
def process(role: str, task: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """One of the two roles, ended with the body."""
    command = [sys.executable, "-m", "benchmarks.split_prediction", "--role", role, json.dumps(task)]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
        child.wait()


# ---------------------------------------------------------------------------------------------------------- an attempt


def profile_on(core: int, role: Role, arguments: argparse.Namespace, folder: Path) -> Path:
    """`card-profile run` on one core, under the name of its role."""
    output = folder / f"{role}.json"
    measure = "layers" if arguments.codecs == ["none"] else "layers,compression"
    command = ["taskset", "-c", str(core), sys.executable, "-c", "import cli; cli.profile_main()", "run"]
    command += ["--device", "cpu", "--role", role, "--measure", measure, "--model", arguments.model, "--fresh"]
    command += ["--batch-size", str(arguments.batch_size), "--seq-len", str(arguments.seq_len), "--output", str(output)]
    if measure != "layers":
        command += ["--codecs", ",".join(arguments.codecs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    save(load(output).model_copy(update={"name": role}), output)
    return output


def run(arguments: argparse.Namespace, folder: Path, cores: tuple[int, int]) -> tuple[list[dict[str, Any]], Any, Any]:
    """The turns as the report has them, the cuts that ``--w 1`` decides, and the control's seconds."""
    points = [
        (1e6 * rate, cut, codec) for rate in arguments.rates for cut in arguments.cuts for codec in arguments.codecs
    ]
    shuffled = random.Random(0)
    schedule = [points[shuffled.randrange(len(points))] for _ in range(WARMUP_ROUNDS)]
    for _ in range(arguments.repeats):
        schedule += shuffled.sample(points, len(points))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    dial = folder / "rate"
    Dial(dial).set(schedule[0][0])
    data = folder / "text.txt"
    data.write_text("\n\n".join(f"{k}. {TEXT * 12}" for k in range(400)))
    shared = {
        "address": address,
        "dial": str(dial),
        "model": arguments.model,
        "batch_size": arguments.batch_size,
        "seq_len": arguments.seq_len,
    }
    server = {
        **shared,
        "core": cores[0],
        "schedule": schedule,
        "profiles": str(folder / "profiles"),
        "output": str(folder / "run"),
        "local_epochs": arguments.local_epochs,
        "choices": str(folder / "choices.json"),
        "control": str(folder / "control.json"),
        "log": str(folder / "server.log"),
    }
    device = {**shared, "core": cores[1], "data": str(data), "log": str(folder / "device.log")}
    with process("serve", server) as running, process("train", device):
        if running.wait(arguments.most_s):
            raise SystemExit(f"the server ended with {running.returncode}: {folder / 'server.log'}")
    turns = json.loads((folder / "run" / "report.json").read_text())["turns"][WARMUP_ROUNDS:]
    for turn, (rate, _, _) in zip(turns, schedule[WARMUP_ROUNDS:], strict=True):
        turn["rate_bps"] = rate
    choices = json.loads((folder / "choices.json").read_text())
    return turns, choices, json.loads((folder / "control.json").read_text())


def middle(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One turn whose measured figures are the medians over the repeats of a point; predictions are the same in all of them."""
    first = turns[-1]
    stages = {
        stage: {**row, "measured_s": median(turn["stages"][stage]["measured_s"] for turn in turns)}
        for stage, row in first["stages"].items()
    }
    return {**first, "measured_s": median(turn["measured_s"] for turn in turns), "stages": stages}


def judge(arguments: argparse.Namespace, turns: list[dict[str, Any]], choices: dict[str, int]) -> bool:
    """Print what came out, whether every bound is kept."""
    by_point: dict[Point, list[dict[str, Any]]] = {}
    for turn in turns:
        by_point.setdefault((turn["rate_bps"], turn["cut"], turn["codec_up"]), []).append(turn)
    points = {point: middle(found) for point, found in by_point.items()}
    print(
        f"{'Mbit/s':>7} {'cut':>4} {'codec':14} {'predicted ms':>13} {'measured ms':>12} {'error %':>8} {'spread %':>9}"
    )
    for (rate, cut, codec), row in sorted(points.items()):
        times = sorted(turn["measured_s"] for turn in by_point[rate, cut, codec])
        spread = 100 * (times[-1] - times[0]) / row["measured_s"]
        error = error_pct(row["predicted_s"], row["measured_s"])
        print(
            f"{rate / 1e6:7g} {cut:4} {codec:14} {1e3 * row['predicted_s']:13.1f} {1e3 * row['measured_s']:12.1f} {error:+8.2f} {spread:9.1f}"
        )
    summary = summarise(list(points.values()))
    assert summary.round is not None
    errors = {point: abs(error_pct(row["predicted_s"], row["measured_s"]) or 0.0) for point, row in points.items()}
    middle_pct, worst_pct = median(errors.values()), max(errors.values())
    kept = [middle_pct <= MEDIAN_PCT, worst_pct <= WORST_PCT]
    print(
        f"round delay: median error {middle_pct:.2f} % (at most {MEDIAN_PCT:g}), worst {worst_pct:.2f} % (at most {WORST_PCT:g})"
    )
    print(
        f"{'stage':16} {'judged in':>9} {'predicted ms':>13} {'measured ms':>12} {'median error %':>15} {'bias %':>8}"
    )
    for stage in summary.stages:
        # Judged wherever it is more than a twentieth of that point's own round.
        judged = [
            (row["stages"][stage.stage]["predicted_s"], row["stages"][stage.stage]["measured_s"])
            for row in points.values()
            if abs(row["stages"][stage.stage]["measured_s"]) > 0.05 * row["measured_s"]
        ]
        off = [error for pair in judged if (error := error_pct(*pair)) is not None]
        figure, bias = (median(abs(e) for e in off), median(off)) if off else (0.0, 0.0)
        kept.append(figure <= STAGE_PCT)
        print(
            f"{stage.stage:16} {len(judged):9} {1e3 * stage.predicted_s:13.2f} {1e3 * stage.measured_s:12.2f} {figure:15.2f} {bias:+8.2f}"
        )
    print(f"(stages at most {STAGE_PCT:g} % where they are more than 5 % of the round; most off: {summary.most_off})")
    fastest = max(arguments.rates) * 1e6
    compute = [
        sum(row["stages"][name]["measured_s"] for name in ("device_forward", "server", "device_backward"))
        / row["measured_s"]
        for (rate, _, _), row in points.items()
        if rate == fastest
    ]
    kept.append(min(compute) >= COMPUTE_SHARE)
    print(
        f"computing at {fastest / 1e6:g} Mbit/s: {100 * min(compute):.0f} % of the round or more (at least {100 * COMPUTE_SHARE:.0f})"
    )
    for rate in sorted({rate for rate, _, _ in points}):
        for codec in arguments.codecs:
            measured = {cut: row["measured_s"] for (r, cut, c), row in points.items() if (r, c) == (rate, codec)}
            choice, best = choices[f"{rate:g} {codec}"], min(measured, key=lambda cut: measured[cut])
            if choice not in measured:
                print(f"{rate / 1e6:g} Mbit/s, {codec}: --w 1 decides cut {choice}, which was not run (--cuts)")
                continue
            regret = 100 * (measured[choice] / measured[best] - 1)
            spread = 100 * (max(measured.values()) / measured[best] - 1)
            kept.append(regret <= REGRET_PCT)
            print(
                f"{rate / 1e6:g} Mbit/s, {codec}: --w 1 decides cut {choice}, fastest was {best}: regret {regret:.2f} % "
                f"(at most {REGRET_PCT:g}; the slowest cut loses {spread:.1f} %)"
            )
    return all(kept)


def attempt(arguments: argparse.Namespace, folder: Path) -> tuple[bool, bool]:
    """Profile, run, print: whether it counts, and whether every bound is kept."""
    cores = sorted(os.sched_getaffinity(0))
    pair = (cores[0], cores[1])
    began = time.monotonic()
    (folder / "profiles").mkdir(parents=True)
    profiles = [
        profile_on(core, role, arguments, folder / "profiles")
        for core, role in zip(pair, ("server", "device"), strict=True)
    ]  # type: ignore[arg-type]
    profiled = time.monotonic()
    turns, choices, plain = run(arguments, folder, pair)
    print(f"profiles {profiled - began:.0f} s, {len(turns)} rounds {time.monotonic() - profiled:.0f} s")
    kept = judge(arguments, turns, choices)
    step = load(profiles[0]).timings[0].step
    assert step is not None
    control = 100 * (median(plain) / step.median_s - 1)
    print(
        f"control: plain step {1e3 * median(plain):.2f} ms, {control:+.2f} % since the server's profile (counts within {CONTROL_PCT:g})"
    )
    return abs(control) <= CONTROL_PCT, kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama-test")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--rates", type=lambda text: [float(x) for x in text.split(",")], default=[100.0, 25.0, 10.0])
    parser.add_argument("--cuts", type=lambda text: [int(x) for x in text.split(",")], default=list(range(1, LAYERS)))
    parser.add_argument("--codecs", type=lambda text: text.split(","), default=["none", "int8-o2+zstd"])
    parser.add_argument("--local-epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--most-s", type=float, default=1200.0, help="give up after so many seconds of rounds")
    parser.add_argument("--output", type=Path, help="keep profiles, reports and logs here")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        {"serve": serve, "train": train}[arguments.role[0]](json.loads(arguments.role[1]))
        return 0
    if len(os.sched_getaffinity(0)) < 2:
        print("expected two cores: a server and a device have one each", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        folder = arguments.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = False
        for number in range(1, arguments.attempts + 1):
            print(
                f"attempt {number}: {arguments.model}, batch {arguments.batch_size} x {arguments.seq_len}, T = {arguments.local_epochs}"
            )
            counts, kept = attempt(arguments, folder / f"attempt-{number}")
            if counts:
                break
            print("the machine changed its speed: this attempt does not count")
            kept = False
    print("kept" if kept else "MISSED")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
