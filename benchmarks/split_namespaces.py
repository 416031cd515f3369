"""Two machines on one: card-train between two network namespaces, over a cable whose rate the kernel sets, and what the profiles said of it.

    sudo .venv/bin/python -m benchmarks.split_namespaces [--uplink-mbps 40] [--downlink-mbps 80] [--delay-ms 10] [--rounds N] [--output DIR]

The kernel's token bucket (tc tbf) sets both rates; netem adds the delay where this kernel has it, else there is none and the output says so.
Nothing outside the two namespaces is touched, and nothing of them stays. What runs is what a user types, over mutual TLS:

    card-train certificates      once
    card-profile run             for server and device, one after the other, before any link is there
    card-profile link            --serve in one namespace, --to in the other: the device's profile gets the link as measured
    card-train server, device    with --profiles and --report

Printed: the link as it was set and as it was measured, and predicted beside measured seconds of every stage. Judged, with medians: uplink and
downlink (rates are medians of what was measured before, so nothing of the run itself is known) within 10 % of the prediction; computing is not,
for two processes share whatever cores this machine has. Ends with 1 when that is missed, with 0 and the reason where it cannot run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.rigs import links

ROOT = Path(__file__).resolve().parents[1]
STAGE_PCT = 10.0
MODEL = "tiny-llama-test"


def program(name: str, *argv: str) -> list[str]:
    """One of the three programs, from this checkout."""
    return [sys.executable, "-c", f"import cli; cli.{name.removeprefix('card-')}_main()", *argv]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(command: list[str], folder: Path, most_s: float = 600) -> str:
    """What the command prints on standard output; its end with anything but 0 is ours too."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=most_s, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def beside(command: list[str], folder: Path, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs while the body does, and ends with it."""
    with (folder / log).open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_said(log: Path, words: str, most_s: float = 30.0) -> None:
    """Wait for a process that runs beside us to say so."""
    end = time.monotonic() + most_s
    while words not in log.read_text():
        if time.monotonic() > end:
            raise SystemExit(f"{log}: {words!r} was not said within {most_s:g} s: {log.read_text()}")
        time.sleep(0.1)


def profiles(folder: Path, batch: int, tokens: int) -> None:
    for role in ("server", "device"):
        argv = ("--device", "cpu", "--name", role, "--role", role, "--measure", "layers", "--clocks", "current")
        argv += ("--model", MODEL, "--batch-size", str(batch), "--seq-len", str(tokens))
        run(program("card-profile", "run", *argv), folder)


def train(cable: links.Cable, folder: Path, arguments: argparse.Namespace) -> None:
    """Both roles, each in its namespace, until the server is done."""
    data = folder / "text.txt"
    data.write_text("\n\n".join(f"{k}. {'What crosses the cut crosses the cable. ' * 12}" for k in range(60)))
    secure = ("--certificates", "certificates")
    argv = ("--model", MODEL, "--profiles", "profiles", "--devices", "device", "--rounds", str(arguments.rounds))
    argv += ("--batch-size", str(arguments.batch_size), "--seq-len", str(arguments.seq_len), "--hardware", "cpu")
    argv += ("--optimizer", "adamw", "--learning-rate", "1e-4", "--w", "1", "--report", "--listen", "0.0.0.0:7770", "--output", "run", "--json")  # fmt: skip
    argv += ("--patience", "60", *secure, *(("--cut", str(arguments.cut)) if arguments.cut else ()))
    device = ("--server", f"{links.FAR}:7770", "--name", "device", "--data", "text.txt", "--patience", "60", *secure)
    with beside(cable.command("near", *program("card-train", "device", *device, "--hardware", "cpu")), folder, "device.log"):  # fmt: skip
        run(cable.command("far", *program("card-train", "server", *argv)), folder)


def judge(folder: Path) -> bool:
    """Print what came out; whether the link's stages are within the bound."""
    from rich.console import Console

    from split.report import Report

    report = Report(folder / "run" / "report")
    Console(width=100).print(report.table())
    kept = []
    for stage in report.summary(lambda turn: turn["round"] > 1).stages:
        if stage.stage in ("uplink", "downlink"):
            off = stage.median_error_pct if stage.median_error_pct is not None else 100.0
            kept.append(off <= STAGE_PCT)
            print(f"{stage.stage}: off by {off:.1f} % (median; at most {STAGE_PCT:g})")
    return len(kept) == 2 and all(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uplink-mbps", type=float, default=40.0)
    parser.add_argument("--downlink-mbps", type=float, default=80.0)
    parser.add_argument("--delay-ms", type=float, default=10.0, help="each way, where this kernel has netem")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--cut", type=int, default=2, help="0: the solver's")
    parser.add_argument("--output", type=Path, help="keep profiles, report and logs here")
    arguments = parser.parse_args()
    reason = links.missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    delay_s = arguments.delay_ms / 1e3
    if delay_s > 0 and (reason := links.missing(delay=True)) is not None:
        print(f"no delay, the rates alone: {reason}")
        delay_s = 0.0
    with contextlib.ExitStack() as stack:
        folder = arguments.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        run(program("card-train", "certificates", "certificates", "--server", links.FAR, "--device", "device"), folder)
        profiles(folder, arguments.batch_size, arguments.seq_len)
        cable = stack.enter_context(links.cable())
        cable.shape("near", 1e6 * arguments.uplink_mbps, delay_s)
        cable.shape("far", 1e6 * arguments.downlink_mbps, delay_s)
        secure = ("--certificates", "certificates", "--method", "stream")
        with beside(cable.command("far", *program("card-profile", "link", "--serve", *secure)), folder, "link.log"):
            until_said(folder / "link.log", "answering on")
            measure = ("--to", links.FAR, "--name", "device", "--profile", "profiles/device.json", "--seconds", "3", "--json")  # fmt: skip
            found = json.loads(run(cable.command("near", *program("card-profile", "link", *measure, *secure)), folder))
        print(
            f"link set: {arguments.uplink_mbps:g} Mbit/s up, {arguments.downlink_mbps:g} down, {1e3 * delay_s:g} ms each way "
            f"(of frames, headers counted)\nmeasured: {found['uplink_mbps']:.2f} up, {found['downlink_mbps']:.2f} down, "
            f"round trip {1e3 * found['round_trip_s']:.2f} ms (of our messages)"
        )
        train(cable, folder, arguments)
        return int(not judge(folder))


if __name__ == "__main__":
    sys.exit(main())
