"""Training under kills: a server and two devices are killed at random moments; is anything lost that was acknowledged?

    python -m benchmarks.split_kills [--kills 100] [--seed 0] [--keep DIR]

Real processes over loopback: ``card-train server`` and two of ``card-train device``. Again and again one of them (or the server and a device at once)
gets SIGKILL: while it starts, builds its model, waits for the others, trains, writes its state. Some devices are stopped with SIGSTOP first, as if
they hung, and must be given up within the timeout. What was killed is started again by the same command. When a run is through, the next
one begins; after the last kill the run under way is left to finish. In every third run only the server is killed.

Asserted, at every death of the server and at the end of every run:
  - a turn that a device was told is merged, or that the server printed, is in the run's history on the disk; what was there stays there, in its order
  - the adapters at the end are, bit for bit, those of plain unsplit training of exactly the turns in the history, each with its next mini-batches
  - where only the server was killed no turn is missing: the adapters are those of a run that nobody disturbed
  - a device that hangs has lost its turn after the timeout, the flush of its stream and a second for a busy machine
  - everybody ends with exit code 0 by itself, no process is left, and the folder holds whole files alone

SGD and AdamW with moments that travel take turns. About ten minutes for 100 kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
DEVICES = ("one", "two")
CUT, ROUNDS, EPOCHS, BATCH, TOKENS = 2, 25, 4, 2, 16
RATES = {"sgd": 0.05, "adamw": 1e-3}
TIMEOUT_S, FLUSH_S, BUSY_S = 4.0, 2.0, 1.0
UPLINK_MBPS = 3.0
"""The turns are stretched to half a second, most of it in the middle of a step."""
PATIENCE_S = 600.0
LATE_S = 15.0
"""A device that is started again less than this before the run ends may come too late to be told."""

MERGED = re.compile(r"round (\d+)/\d+ (\w+), cut .*: loss ")
CONNECTED = "device: connected, between its turns"
TOLD = re.compile(r"round (\d+): merged")


@dataclass
class Process:
    """One life of a server or a device, and what it said when."""

    name: str
    popen: subprocess.Popen[str]
    began_s: float = field(default_factory=time.monotonic)
    lines: list[tuple[float, str]] = field(default_factory=list)
    reader: threading.Thread | None = None

    @classmethod
    def start(cls, name: str, words: list[str], before: Sequence[str] = ()) -> Process:
        popen = subprocess.Popen(
            [*before, sys.executable, "-c", "import cli; cli.train_main()", *words],
            cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        made = cls(name, popen)

        def read() -> None:
            assert popen.stderr is not None
            made.lines += ((time.monotonic(), line.rstrip("\n")) for line in popen.stderr)

        made.reader = threading.Thread(target=read, daemon=True)
        made.reader.start()
        return made

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def said(self, words: str, since_s: float = 0.0) -> float | None:
        """When it said so first."""
        return next((at for at, line in list(self.lines) if at >= since_s and words in line), None)

    def said_like(self, pattern: str, since_s: float = 0.0) -> float | None:
        """When it first said what begins like that."""
        return next((at for at, line in list(self.lines) if at >= since_s and re.match(pattern, line)), None)

    def signal(self, number: int) -> None:
        if self.alive:
            self.popen.send_signal(number)

    def end(self) -> None:
        """Killed, and all that it said was read."""
        self.signal(signal.SIGKILL)
        self.popen.wait()
        assert self.reader is not None
        self.reader.join()


@dataclass
class Totals:
    """What a benchmark run comes to."""

    phases: Counter[str] = field(default_factory=Counter)
    noticed_s: list[float] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    turns: int = 0
    skipped: int = 0
    late: int = 0

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


class Run:
    """One run folder, its three processes, and what was acknowledged so far."""

    def __init__(self, number: int, base: Path, text: Path, dice: random.Random, totals: Totals) -> None:
        self.folder, self.text, self.dice, self.totals = base / f"run-{number}", text, dice, totals
        self.server_only = number % 3 == 1
        self.optimizer = "adamw" if number % 2 else "sgd"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.acknowledged: set[tuple[int, str]] = set()
        self.history: list[dict[str, Any]] = []
        self.lives: list[Process] = []
        self.now: dict[str, Process] = {}
        for name in ("server", *DEVICES):
            self.start(name)

    def miss(self, what: str) -> None:
        self.totals.misses.append(f"{self.folder.name}: {what}")
        print(f"MISS {self.totals.misses[-1]}", flush=True)

    def start(self, name: str) -> None:
        if name == "server":
            words = ["server", "--model", "tiny-llama-test", "--cut", str(CUT), "--devices", ",".join(DEVICES)]
            words += ["--rounds", str(ROUNDS), "--local-epochs", str(EPOCHS), "--batch-size", str(BATCH)]
            words += ["--seq-len", str(TOKENS), "--optimizer", self.optimizer, "--listen", self.address]
            words += ["--learning-rate", str(RATES[self.optimizer]), "--output", str(self.folder)]
        else:
            words = ["device", "--server", self.address, "--name", name, "--data", str(self.text)]
            words += ["--uplink-mbps", str(UPLINK_MBPS)]
        words += ["--hardware", "cpu", "--timeout", str(TIMEOUT_S), "--patience", str(PATIENCE_S)]
        self.now[name] = Process.start(name, words)
        self.lives.append(self.now[name])

    # --- kills -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """One event: somebody dies at some moment, and is started again."""
        dice = self.dice
        who = ["server"]
        if not self.server_only:
            who = dice.choices([["server"], ["one"], ["two"], ["server", dice.choice(DEVICES)]], [3, 5, 5, 1])[0]
        way = dice.random()
        if way < 0.3:  # while it starts, or soon after
            time.sleep(dice.uniform(0.0, 8.0))
        elif not self._trains():
            return
        elif who == ["server"] and way < 0.5:
            self._until_it_writes()
        else:
            time.sleep(dice.uniform(0.0, 2.0))
        if not self.now["server"].alive:
            return  # the run is through
        hung = who[0] in DEVICES and way > 0.75
        if hung:
            self._hang(self.now[who[0]])
        labels = {name: "hung device" if hung else self._phase(self.now[name]) for name in who}
        killed = {name: self.now[name] for name in who}
        for process in killed.values():
            process.signal(signal.SIGKILL)
        for name, process in killed.items():
            process.end()
            if process.popen.returncode != -signal.SIGKILL:
                if process.popen.returncode:
                    self.miss(f"{name} had ended by itself with {process.popen.returncode}: {process.lines[-3:]}")
                continue
            if name == "server":
                if any(self.folder.glob(".new-*")) or any(self.folder.rglob("*.tmp")):
                    labels[name] = "server: writing its state"
                self.check()
            self.totals.phases[labels[name]] += 1
            if labels[name] == CONNECTED and "server" not in who:
                self.turn_lost(process)
        for name in who:
            self.start(name)

    def turn_lost(self, device: Process) -> None:
        """Whether that kill was in its turn: then the server says so at once."""
        died = time.monotonic()
        while time.monotonic() - died < 1.0:
            if self.now["server"].said(f"{device.name}: lost", died - 0.1) is not None:
                self.totals.phases[CONNECTED] -= 1
                self.totals.phases["device: in its turn"] += 1
                return
            time.sleep(0.02)

    def _trains(self) -> bool:
        """Wait until the server has merged a turn in this life; whether it came to that."""
        server, end = self.now["server"], time.monotonic() + PATIENCE_S
        while server.alive and time.monotonic() < end:
            if any(MERGED.match(line) for _, line in list(server.lines)):
                return True
            time.sleep(0.05)
        if server.alive:
            self.miss(f"nothing is merged for {PATIENCE_S:g} s: {server.lines[-4:]}")
        return False

    def _until_it_writes(self) -> None:
        """Wait for the moment at which it writes a state."""
        end = time.monotonic() + 4.0
        written = re.compile(r"\.new-\d+")
        while time.monotonic() < end and self.now["server"].alive:
            if self.folder.is_dir() and any(written.fullmatch(name) for name in os.listdir(self.folder)):
                time.sleep(self.dice.uniform(0.0, 0.004))
                return

    def _hang(self, device: Process) -> None:
        """Stop a device without a word; the server must give it up in time."""
        if (
            not device.alive
            or device.said("connected") is None
            or self.now["server"].said(f"{device.name}: ready") is None
        ):
            return
        began = time.monotonic()
        bound_s = TIMEOUT_S + FLUSH_S + BUSY_S + 2.0  # two seconds: it is the other one's turn just now
        device.signal(signal.SIGSTOP)
        server = self.now["server"]
        while time.monotonic() - began < bound_s and server.alive:
            if (found := server.said(f"{device.name}: lost", began)) is not None:
                self.totals.noticed_s.append(found - began)
                return
            time.sleep(0.05)
        if server.alive:
            self.miss(
                f"{device.name} hung, and the server had not given it up after {bound_s:g} s: {server.lines[-4:]}"
            )

    def _phase(self, process: Process) -> str:
        """What it was about, by what it had said."""
        if process.name == "server":
            if process.said("listening") is None:
                return "server: starting" if process.said("building") is None else "server: building, reading its state"
            if not any(MERGED.match(line) for _, line in list(process.lines)):
                return "server: letting devices in, first turn"
            return "server: in a turn"
        if process.said("connected") is None:
            return "device: starting" if process.said("building") is None else "device: building, shaking hands"
        return CONNECTED

    # --- what must hold ------------------------------------------------------------------------------------------------

    def on_disk(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The newest state and its history, read while nobody writes, without touching anything."""
        states = sorted(self.folder.glob("state-*"))
        if not states:
            return {}, []
        record = json.loads((states[-1] / "state.json").read_bytes())
        history = b""
        if record["history_bytes"]:
            history = (self.folder / "history.jsonl").read_bytes()[: record["history_bytes"]]
        return record["state"], [json.loads(line) for line in history.splitlines()]

    def check(self) -> None:
        """Nothing that was acknowledged is missing, and nothing that was there has changed."""
        for process in self.lives:
            pattern = MERGED if process.name == "server" else TOLD
            for _, line in list(process.lines):
                if found := pattern.match(line):
                    name = found[2] if process.name == "server" else process.name
                    self.acknowledged.add((int(found[1]), name))
        state, history = self.on_disk()
        there = [(row["round"], row["device"]) for row in history]
        if lost := sorted(self.acknowledged - set(there)):
            self.miss(f"acknowledged, and not on the disk: {lost[:5]}")
        if history[: len(self.history)] != self.history:
            self.miss("the history has changed where it was written")
        if len(set(there)) != len(there) or there != sorted(there, key=lambda t: (t[0], DEVICES.index(t[1]))):
            self.miss(f"a turn stands there twice, or out of its order: {there[-5:]}")
        if state and state["turns"] != len(history):
            self.miss(f"{state['turns']} turns in the state, {len(history)} in the history")
        self.history = history

    def finish(self) -> None:
        """Wait for the end, then look at everything."""
        deadline = time.monotonic() + 300
        while self.now["server"].alive and time.monotonic() < deadline:
            time.sleep(0.2)
        ended_s = time.monotonic()
        if self.now["server"].alive:
            self.miss(f"the run does not end: {self.now['server'].lines[-3:]}")
        for name, process in self.now.items():
            try:
                code = process.popen.wait(10)
            except subprocess.TimeoutExpired:
                if name != "server" and ended_s - process.began_s < LATE_S:
                    self.totals.late += 1
                else:
                    self.miss(f"{name} is still there: {process.lines[-3:]}")
            else:
                if code:
                    self.miss(f"{name} ended with {code}: {[line for _, line in process.lines[-5:]]}")
            process.end()
        self.check()
        self._folder()
        self._adapters()
        self.totals.turns += len(self.history)

    def _folder(self) -> None:
        names = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        states = {name.split("/")[0] for name in names if name.startswith("state-")}
        files = {"state.json", "adapters.safetensors", *(["moments.safetensors"] if self.optimizer == "adamw" else [])}
        expected = {f"{state}/{file}" for state in states for file in files}
        expected |= {"lock", "history.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
        if names != expected or len(states) != 2:
            self.miss(f"files: {sorted(names ^ expected)}")
        newest = self.folder / max(states) / "adapters.safetensors"
        if newest.read_bytes() != (self.folder / "adapter/adapter_model.safetensors").read_bytes():
            self.miss("adapter/ is not what the state holds")

    def _adapters(self) -> None:
        """Plain training of the whole model on the turns of the history, in their order."""
        import torch
        from safetensors.torch import load_file

        from profiler.workload.model import WorkloadSpec
        from split import data
        from split.half import Half, Training

        every = [(number, name) for number in range(1, ROUNDS + 1) for name in DEVICES]
        turns = [(row["round"], row["device"]) for row in self.history]
        self.totals.skipped += len(every) - len(turns)
        if self.server_only and turns != every:
            self.miss(f"only the server was killed, and turns are missing: {sorted(set(every) - set(turns))[:5]}")
        training = Training(self.optimizer, RATES[self.optimizer])  # type: ignore[arg-type]
        half = Half(WorkloadSpec("tiny-llama-test", BATCH, TOKENS), "whole", training=training)
        sequences = {n: data.load(self.text, None, TOKENS, vocab_size=half.vocab_size, name=n) for n in DEVICES}
        steps = dict.fromkeys(DEVICES, 0)
        for row in self.history:
            name, losses = row["device"], []
            for step in range(steps[name], steps[name] + EPOCHS):
                losses.append(half.unsplit(*sequences[name].batch(0, step, BATCH)))
                half.backward()
                half.step()
            if row["first_step"] != steps[name] or row["losses"] != losses:
                self.miss(f"round {row['round']} of {name}: losses {row['losses']}, replayed {losses}")
                break
            steps[name] += EPOCHS
        found = load_file(self.folder / "adapter/adapter_model.safetensors")
        wrong = [name for name, value in half.adapters().items() if not torch.equal(found[name], value)]
        if wrong or found.keys() != half.adapters().keys():
            self.miss(f"{len(wrong)} adapters differ from those of the replayed turns")


def left_behind(base: Path) -> list[str]:
    """Processes that still speak of our folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if str(base) in words and "train_main" in words:
                found.append(f"{entry.name} {words[:100]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept afterwards")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    base = asked.keep or Path(tempfile.mkdtemp(prefix="split-kills-"))
    base.mkdir(parents=True, exist_ok=True)
    text = base / "text.txt"
    text.write_text("The cut layer decides what the device computes and what crosses the link. " * 200)
    dice, totals, began, number, run = random.Random(asked.seed), Totals(), time.monotonic(), 0, None
    try:
        while totals.kills < asked.kills:
            run = Run(number, base, text, dice, totals)
            while totals.kills < asked.kills and run.now["server"].alive:
                run.kill()
            run.finish()
            number += 1
            print(f"run {number} ({run.optimizer}): {totals.kills} kills, {totals.turns} turns merged, {totals.skipped} skipped, "
                  f"{len(totals.misses)} misses, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    finally:
        for process in run.lives if run is not None else ():
            process.end()
    if left := left_behind(base):
        totals.misses.append(f"processes left: {left}")
        print(f"MISS {totals.misses[-1]}")
    if asked.keep is None:
        shutil.rmtree(base, ignore_errors=True)
    print(f"{totals.kills} kills in {number} runs, {time.monotonic() - began:.0f} s, seed {asked.seed}")
    for phase, count in sorted(totals.phases.items()):
        print(f"  {count:4d}  {phase}")
    if totals.noticed_s:
        print(f"hung devices: {len(totals.noticed_s)} given up after {min(totals.noticed_s):.1f} to {max(totals.noticed_s):.1f} s (timeout {TIMEOUT_S:g} s)")  # fmt: skip
    print(f"{totals.turns} turns merged, {totals.skipped} skipped because their device was away; {totals.late} devices came back too late to be told of the end")  # fmt: skip
    print("nothing that was acknowledged is lost" if not totals.misses else f"{len(totals.misses)} MISSES")
    return 1 if totals.misses else 0


if __name__ == "__main__":
    sys.exit(main())
