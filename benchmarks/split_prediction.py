"""Does a profile predict a real split run, second by second, and is the cut that it decides the fastest?

    python -m benchmarks.split_prediction [--model NAME] [--batch-size N] [--seq-len N] [--rates 100,25,10] [--codecs A,B] [--cuts 1,3,5,7]
                                          [--local-epochs T] [--repeats N] [--cycles N] [--output DIR]

One machine, two cores. A cycle: `card-profile run` profiles a server on the first core and a device on the second, each in a process of its own
that has ended before anything else happens. Then `card-train`'s own roles run as two processes, pinned to these cores with one thread each, over a
link that is slowed inside the processes (emulated: rates in both directions, no delay). Every rate, cut and codec has ``--repeats`` rounds in a
cycle, faster rates more, for their rounds are shorter and their cuts lie closer together. They come in groups of one rate and codec, all cuts of
a group one after the other; groups, and cuts in a group, in shuffled order. What the server decides is the only thing that is not the product's. The
reports that the server writes are what is judged: for each rate, cut and codec the median over all its rounds of what that cycle's profiles had
predicted over what was measured.

Judged: the round's delay, predicted against measured (median error at most 5 %, worst at most 12 %); every stage of more than 5 % of the round
(median error at most 10 %); computing at least half of the round at the highest rate; and the cut that ``--w 1`` decides for each rate and codec
against the one that was truly fastest (regret at most 2 %): how long a cut takes beside the others of its own group, median over the groups.

No prediction or measured delay is corrected and no single round is left out. A shared machine has slow seconds and minutes that no profile can know; they
fall on profiles and rounds alike, so they widen the errors of a cycle and cancel out over many. How much it moved is told by a control that is no part of any prediction:
the plain, unsplit step is timed between rounds on both cores and set beside the plain step of that core's profile. Where a hypervisor has taken
the two cores away for more than 1 % of a cycle's time (`steal` in /proc/stat), there was no machine to predict: that cycle is told and made again, at most as
often as there are --cycles.

Ends with 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from profiler.profile import Role
from profiler.store import load, save
from solver.problem import SolveOptions
from split.decide import Decider, Decision, Fixed, TrainedWorkload
from split.report import error_pct
from split.shaping import Shape

MEDIAN_PCT, WORST_PCT, STAGE_PCT, REGRET_PCT, COMPUTE_SHARE = 5.0, 12.0, 10.0, 2.0, 0.5
WARMUP_ROUNDS = 3
STEAL_PCT = 1.0
LAYERS = 8
TEXT = "The device runs the first layers, the server runs the others, and what crosses between them is measured. "

MOST_S = 900.0
"""The rounds of a cycle are given up after so many seconds."""

Turn = dict[str, Any]
"""One turn of the server's report, with the rate it ran at and the group it ran in."""

Point = tuple[float, int, str]
"""Rate in bit/s in both directions, cut, codec."""


@dataclass(frozen=True)
class Cycle:
    """What one cycle gave. ``choices``: "RATE CODEC" -> the cut that ``--w 1`` decides; ``control_pct``: the plain step since the profiles, on
    the server's core and on the device's; ``steal_pct``: what a hypervisor took away of both cores' time."""

    turns: list[Turn]
    choices: dict[str, int]
    control_pct: tuple[float, float]
    steal_pct: float


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


def ticks(cores: Sequence[int]) -> tuple[int, int]:
    """(taken away by a hypervisor, all) of these cores' time since the start, in the kernel's ticks."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    times = [[int(x) for x in row[1:9]] for row in rows if row[0] in {f"cpu{core}" for core in cores}]
    return sum(row[7] for row in times), sum(map(sum, times))


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
    plain: dict[int, list[float]] = {core: [] for core in task["cores"]}

    def time_plain() -> None:
        """On both cores: the device waits for its turn meanwhile."""
        for core, found in plain.items():
            os.sched_setaffinity(0, {core})
            steps.plain(clock)  # the caches are another core's
            found.append(steps.plain(clock)[0][2])
        os.sched_setaffinity(0, {task["core"]})

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
            if (round - 1 - WARMUP_ROUNDS) % task["group"] == 0:  # between groups
                time_plain()
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
    Path(task["control"]).write_text(json.dumps([plain[core] for core in task["cores"]]))


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


def groups_of(arguments: argparse.Namespace) -> list[list[Point]]:
    """All cuts of one rate and codec, as often as that rate has them: ``repeats`` times at the slowest, more by the root of how much faster it is."""
    often = {rate: round(arguments.repeats * (rate / min(arguments.rates)) ** 0.5) for rate in arguments.rates}
    return [
        [(1e6 * rate, cut, codec) for cut in arguments.cuts]
        for rate in arguments.rates
        for codec in arguments.codecs
        for _ in range(often[rate])
    ]


def rounds(
    arguments: argparse.Namespace, folder: Path, cores: tuple[int, int], seed: int
) -> tuple[list[Turn], dict[str, int], tuple[list[float], list[float]]]:
    """All rounds of a cycle: the turns as the report has them, the cuts that ``--w 1`` decides, the control's seconds on both cores."""
    shuffled, groups = random.Random(seed), groups_of(arguments)
    codecs = itertools.cycle(arguments.codecs)
    schedule = [
        (1e6 * max(arguments.rates), shuffled.choice(arguments.cuts), next(codecs)) for _ in range(WARMUP_ROUNDS)
    ]
    for group in shuffled.sample(groups, len(groups)):
        schedule += shuffled.sample(group, len(group))
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
        "cores": cores,
        "schedule": schedule,
        "group": len(arguments.cuts),
        "profiles": str(folder / "profiles"),
        "output": str(folder / "run"),
        "local_epochs": arguments.local_epochs,
        "choices": str(folder / "choices.json"),
        "control": str(folder / "control.json"),
        "log": str(folder / "server.log"),
    }
    device = {**shared, "core": cores[1], "data": str(data), "log": str(folder / "device.log")}
    with process("serve", server) as running, process("train", device):
        if running.wait(MOST_S):
            raise SystemExit(f"the server ended with {running.returncode}: {folder / 'server.log'}")
    turns = json.loads((folder / "run" / "report.json").read_text())["turns"][WARMUP_ROUNDS:]
    for place, (turn, (rate, _, _)) in enumerate(zip(turns, schedule[WARMUP_ROUNDS:], strict=True)):
        turn["rate_bps"], turn["group"] = rate, place // len(arguments.cuts)
    return turns, json.loads((folder / "choices.json").read_text()), json.loads((folder / "control.json").read_text())


def off_pct(pairs: Iterable[tuple[float, float]]) -> float:
    """The median over rounds of predicted over measured, less one, in percent: each prediction beside what its own round measured."""
    return median([error for pair in pairs if (error := error_pct(*pair)) is not None] or [0.0])


def beside_each_other(cycles: Sequence[Cycle], rate: float, codec: str) -> dict[int, float]:
    """Delay of each cut over the median of its group, median over the groups: minutes in which the machine is slower are slower for all cuts."""
    groups: dict[tuple[int, int], list[Turn]] = {}
    for number, cycle in enumerate(cycles):
        for turn in cycle.turns:
            if (turn["rate_bps"], turn["codec_up"]) == (rate, codec):
                groups.setdefault((number, turn["group"]), []).append(turn)
    beside: dict[int, list[float]] = {}
    for turns in groups.values():
        usual_s = median(turn["measured_s"] for turn in turns)
        for turn in turns:
            beside.setdefault(turn["cut"], []).append(turn["measured_s"] / usual_s)
    return {cut: median(ratios) for cut, ratios in beside.items()}


def judge(arguments: argparse.Namespace, cycles: Sequence[Cycle]) -> bool:
    """Print what came out, whether every bound is kept."""
    points: dict[Point, list[Turn]] = {}
    for cycle in cycles:
        for turn in cycle.turns:
            points.setdefault((turn["rate_bps"], turn["cut"], turn["codec_up"]), []).append(turn)
    measured = {point: median(turn["measured_s"] for turn in turns) for point, turns in points.items()}
    errors = {point: off_pct((t["predicted_s"], t["measured_s"]) for t in turns) for point, turns in points.items()}
    print(
        f"{'Mbit/s':>7} {'cut':>4} {'codec':14} {'predicted ms':>13} {'measured ms':>12} {'error %':>8} {'error % in each round'}"
    )
    for point, turns in sorted(points.items()):
        rate, cut, codec = point
        each = " ".join(f"{error_pct(t['predicted_s'], t['measured_s']) or 0.0:+.1f}" for t in turns)
        print(
            f"{rate / 1e6:7g} {cut:4} {codec:14} {1e3 * median(t['predicted_s'] for t in turns):13.1f} {1e3 * measured[point]:12.1f} "
            f"{errors[point]:+8.2f} {each}"
        )
    middle_pct, worst_pct = median(map(abs, errors.values())), max(map(abs, errors.values()))
    kept = [middle_pct <= MEDIAN_PCT, worst_pct <= WORST_PCT]
    print(
        f"round delay: median error {middle_pct:.2f} % (at most {MEDIAN_PCT:g}), worst {worst_pct:.2f} % (at most {WORST_PCT:g})"
    )
    print(f"{'stage':16} {'judged in':>9} {'median error %':>15} {'worst %':>8} {'bias %':>8}")
    for stage in next(iter(points.values()))[0]["stages"]:
        # Judged wherever it is more than a twentieth of that point's own round.
        judged = [
            off_pct((t["stages"][stage]["predicted_s"], t["stages"][stage]["measured_s"]) for t in turns)
            for point, turns in points.items()
            if abs(median(t["stages"][stage]["measured_s"] for t in turns)) > 0.05 * measured[point]
        ]
        figure, worst, bias = (median(map(abs, judged)), max(map(abs, judged)), median(judged)) if judged else (0, 0, 0)
        kept.append(figure <= STAGE_PCT)
        print(f"{stage:16} {len(judged):9} {figure:15.2f} {worst:8.2f} {bias:+8.2f}")
    print(f"(stages at most {STAGE_PCT:g} %, median, where they are more than 5 % of the round)")
    fastest = max(arguments.rates) * 1e6
    compute = [
        median(
            sum(t["stages"][name]["measured_s"] for name in ("device_forward", "server", "device_backward"))
            / t["measured_s"]
            for t in turns
        )
        for (rate, _, _), turns in points.items()
        if rate == fastest
    ]
    kept.append(min(compute) >= COMPUTE_SHARE)
    print(
        f"computing at {fastest / 1e6:g} Mbit/s: {100 * min(compute):.0f} % of the round or more (at least {100 * COMPUTE_SHARE:.0f})"
    )
    for rate in sorted({rate for rate, _, _ in points}):
        for codec in arguments.codecs:
            took = beside_each_other(cycles, rate, codec)
            best = min(took, key=lambda cut: took[cut])
            chosen = [cycle.choices[f"{rate:g} {codec}"] for cycle in cycles]
            if not set(chosen) <= set(took):
                print(f"{rate / 1e6:g} Mbit/s, {codec}: --w 1 decides cuts {chosen}, not all were run (--cuts)")
                continue
            regret = 100 * (median(took[cut] for cut in chosen) / took[best] - 1)
            spread = 100 * (max(took.values()) / took[best] - 1)
            kept.append(regret <= REGRET_PCT)
            print(
                f"{rate / 1e6:g} Mbit/s, {codec}: --w 1 decides cut {', '.join(map(str, dict.fromkeys(chosen)))}, fastest was {best}: "
                f"regret {regret:.2f} % (at most {REGRET_PCT:g}; the slowest cut loses {spread:.1f} %)"
            )
    return all(kept)


def cycle_in(arguments: argparse.Namespace, folder: Path, number: int) -> Cycle:
    """Profile, run rounds at every point, hold the control beside the profiles."""
    cores = sorted(os.sched_getaffinity(0))
    pair = (cores[0], cores[1])
    began, before = time.monotonic(), ticks(pair)
    (folder / "profiles").mkdir(parents=True)
    profiles = [profile_on(pair[0], "server", arguments, folder / "profiles")]
    profiles.append(profile_on(pair[1], "device", arguments, folder / "profiles"))
    profiled = time.monotonic()
    turns, choices, plain = rounds(arguments, folder, pair, number)
    steps = [load(path).timings[0].step for path in profiles]
    control = tuple(
        100 * (median(p) / step.median_s - 1) for p, step in zip(plain, steps, strict=True) if step is not None
    )
    stolen, every = (now - then for now, then in zip(ticks(pair), before, strict=True))
    steal_pct = 100 * stolen / max(every, 1)
    middle_pct = median(abs(error_pct(t["predicted_s"], t["measured_s"]) or 0.0) for t in turns)
    print(
        f"cycle {number}: median error {middle_pct:.1f} %; control: plain step {control[0]:+.1f} % on the server's core, {control[1]:+.1f} % on the "
        f"device's since their profiles; taken away {steal_pct:.1f} %; profiles {profiled - began:.0f} s, "
        f"{len(turns)} rounds {time.monotonic() - profiled:.0f} s",
        flush=True,
    )
    return Cycle(turns, choices, (control[0], control[1]), steal_pct)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama-test")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--rates", type=lambda text: [float(x) for x in text.split(",")], default=[100.0, 25.0, 10.0])
    parser.add_argument("--cuts", type=lambda text: [int(x) for x in text.split(",")], default=list(range(1, LAYERS)))
    parser.add_argument("--codecs", type=lambda text: text.split(","), default=["none", "int8-o2+zstd"])
    parser.add_argument("--local-epochs", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds at every cut and codec in a cycle, at the slowest rate"
    )
    parser.add_argument("--cycles", type=int, default=5)
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
        print(
            f"{arguments.model}, batch {arguments.batch_size} x {arguments.seq_len}, T = {arguments.local_epochs}",
            flush=True,
        )
        cycles: list[Cycle] = []
        for number in range(1, 2 * arguments.cycles + 1):
            cycle = cycle_in(arguments, folder / f"cycle-{number}", number)
            if cycle.steal_pct <= STEAL_PCT:
                cycles.append(cycle)
            if len(cycles) == arguments.cycles:
                break
    if len(cycles) < arguments.cycles:
        print(f"{len(cycles)} of {arguments.cycles} cycles had both cores to themselves: another hour", file=sys.stderr)
        if not cycles:
            return 1
    kept = judge(arguments, cycles) and len(cycles) == arguments.cycles
    moved = median(abs(pct) for cycle in cycles for pct in cycle.control_pct)
    print(f"control: the plain step moved by {moved:.1f} % (median over cycles and cores)")
    print("kept" if kept else "MISSED")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
