"""Server and devices as a running system: real gRPC streams, real processes where they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from profiler.profile import BadInput, MissingHardware
from profiler.progress import Reporter
from profiler.workload.model import WorkloadSpec
from solver.problem import SolveOptions
from split import data, wire
from split.checkpoint import RunFolder
from split.decide import Fixed
from split.device import DeviceOptions, run_device
from split.half import Half, Training
from split.server import Outcome, ServerOptions, run_server
from split.transport import Gone, Stream, dial

BATCH, TOKENS, EPOCHS = 2, 16, 2


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The cut layer decides what the device computes and what crosses the link. " * 40)
    return path


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def options(
    tmp_path: Path, cut: int = 2, rounds: int = 2, devices: tuple[str, ...] = ("one",), **more: Any
) -> ServerOptions:
    given: dict[str, Any] = {
        "model": "tiny-llama-test",
        "output": tmp_path / "run",
        "devices": devices,
        "solve": SolveOptions(rounds=rounds, local_epochs=EPOCHS),
        "listen": f"127.0.0.1:{free_port()}",
        "fixed": Fixed(cut=cut),
        "batch_size": BATCH,
        "seq_len": TOKENS,
        "learning_rate": 0.05,
        "hardware": "cpu",
        "timeout_s": 20.0,
        "patience_s": 30.0,
    }
    return ServerOptions(**{**given, **more})


class Notes:
    """What the server said, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._console = Console(file=self, soft_wrap=True)  # type: ignore[arg-type]
        self.reporter = Reporter(self._console)

    def write(self, text: str) -> int:
        self.lines += [line for line in text.splitlines() if line.strip()]
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def holds(self, words: str) -> bool:
        return any(words in line for line in self.lines)


def as_device(server: ServerOptions, text: Path, name: str = "one", **more: Any) -> threading.Thread:
    """A device in a thread of its own, which ends when the run does."""
    asked = DeviceOptions(server.listen, name, text, hardware="cpu", patience_s=30, timeout_s=20, **more)

    def body() -> None:
        with Notes().reporter as say:
            run_device(asked, say)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def train(server: ServerOptions, text: Path, notes: Notes | None = None, **more: Any) -> Outcome:
    threads = [as_device(server, text, name, **more) for name in server.devices]
    with (notes or Notes()).reporter as say:
        outcome = run_server(server, say)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a device stayed behind"
    return outcome


def unsplit(text: Path, server: ServerOptions) -> tuple[list[float], dict[str, Any]]:
    """Losses and adapters of plain training of the whole model on the same mini-batches."""
    spec = WorkloadSpec(server.model, BATCH, TOKENS, seed=server.solve.seed)
    half = Half(spec, "whole", training=Training(server.optimizer, server.learning_rate))  # type: ignore[arg-type]
    sequences = {name: data.load(text, None, TOKENS, vocab_size=half.vocab_size, name=name) for name in server.devices}
    steps = dict.fromkeys(server.devices, 0)
    losses = []
    for _ in range(server.solve.rounds or 1):
        for name in server.devices:
            if server.optimizer_state == "reset":
                half.reset_optimizer()
            for _ in range(EPOCHS):
                losses.append(half.unsplit(*sequences[name].batch(server.solve.seed, steps[name], BATCH)))
                half.backward()
                half.step()
                steps[name] += 1
    return losses, half.adapters()


def adapters_of(server: ServerOptions) -> dict[str, Any]:
    with RunFolder(server.output) as folder:
        found = folder.latest()
    assert found is not None
    return found[1]


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize(
    ("optimizer", "state", "overlap"),
    [("sgd", "travel", False), ("adamw", "travel", True), ("adamw", "reset", False)],
)
def test_a_split_run_ends_with_the_adapters_of_unsplit_training_bit_for_bit(
    tmp_path: Path, text: Path, cut: int, optimizer: str, state: str, overlap: bool
) -> None:
    import torch

    rate = 0.05 if optimizer == "sgd" else 1e-3
    server = options(
        tmp_path,
        cut,
        devices=("one", "two"),
        optimizer=optimizer,
        optimizer_state=state,
        overlap=overlap,
        learning_rate=rate,
    )
    outcome = train(server, text)
    losses, adapters = unsplit(text, server)
    found = adapters_of(server)
    assert found.keys() == adapters.keys()
    assert all(torch.equal(found[name], adapters[name]) for name in adapters)
    assert (outcome.turns, outcome.lost) == (4, 0)
    assert (outcome.first_loss, outcome.last_loss) == (losses[0], losses[-1])


def test_the_held_out_loss_falls_and_is_told_before_and_after(tmp_path: Path, text: Path) -> None:
    outcome = train(options(tmp_path, rounds=4, evaluate_every=4, learning_rate=0.5), text, held_out=0.1)
    assert outcome.held_out_before is not None
    assert outcome.held_out_after is not None
    assert outcome.held_out_after < outcome.held_out_before


def test_smashed_data_may_be_compressed_on_the_way(tmp_path: Path, text: Path) -> None:
    server = options(tmp_path, fixed=Fixed(cut=2, codec="bf16"))
    plain = replace(server, fixed=Fixed(cut=2), output=tmp_path / "plain", listen=f"127.0.0.1:{free_port()}")
    outcome, other = train(server, text), train(plain, text)
    assert outcome.last_loss != other.last_loss
    assert outcome.last_loss == pytest.approx(other.last_loss, rel=0.01)


def test_a_run_that_was_finished_has_nothing_left_to_do_and_one_with_other_options_is_refused(
    tmp_path: Path, text: Path
) -> None:
    server = options(tmp_path, rounds=1)
    train(server, text)
    notes = Notes()
    with notes.reporter as say:
        assert run_server(server, say).turns == 1
        assert notes.holds(
            "is done up to round 1, and --rounds 1 asks for no more: nothing is trained; a higher --rounds"
        )
        with pytest.raises(BadInput, match="learning_rate"):
            run_server(replace(server, learning_rate=0.01), say)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adamw", 1e-3)])
def test_a_finished_run_goes_on_where_more_rounds_are_asked_for_as_if_they_had_been_asked_for_at_once(
    tmp_path: Path, text: Path, optimizer: str, rate: float
) -> None:
    import torch

    server = options(tmp_path, rounds=1, devices=("one", "two"), optimizer=optimizer, learning_rate=rate)
    train(server, text)
    more = replace(server, solve=replace(server.solve, rounds=3))
    notes = Notes()
    outcome = train(more, text, notes)
    losses, adapters = unsplit(text, more)
    found = adapters_of(more)
    assert all(torch.equal(found[name], adapters[name]) for name in adapters)
    assert (outcome.rounds, outcome.turns) == (3, 6)
    assert (outcome.first_loss, outcome.last_loss) == (losses[0], losses[-1])
    assert notes.holds(", which was finished: 2 turns are merged, round 2 is next")
    assert not notes.holds("cut at layer")


def test_a_cut_that_is_not_that_of_the_rounds_before_is_told_and_changes_nothing_in_what_is_learnt(
    tmp_path: Path, text: Path
) -> None:
    import torch

    server = options(tmp_path, rounds=1)
    train(server, text)
    more = replace(server, solve=replace(server.solve, rounds=2), fixed=Fixed(cut=3))
    notes = Notes()
    train(more, text, notes)
    assert notes.holds("note: the turns before were cut at layer 2, those from here on at 3")
    _, adapters = unsplit(text, more)
    found = adapters_of(more)
    assert all(torch.equal(found[name], adapters[name]) for name in adapters)


def test_without_any_device_the_server_says_so_and_ends(tmp_path: Path) -> None:
    with Notes().reporter as say, pytest.raises(MissingHardware, match=r"none came within 0\.5 s"):
        run_server(options(tmp_path, patience_s=0.5), say)


# --- devices that misbehave -------------------------------------------------------------------------------------------


class Rogue:
    """A device that knows the protocol and keeps it up to the smashed data of its first step."""

    def __init__(self, server: ServerOptions, name: str = "rogue") -> None:
        self.server, self.name = server, name

    def meet(self, batch: int = BATCH, tokens: int = TOKENS) -> Stream:
        stream = dial_when_there(self.server.listen, self.name)
        stream.send(wire.Hello(protocol=wire.PROTOCOL, toolkit="0", device=self.name))
        welcome = stream.receive(20).body
        assert isinstance(welcome, wire.Welcome)
        half = Half(WorkloadSpec("tiny-llama-test", batch, tokens), "device")
        stream.send(wire.Ready(fingerprint=half.fingerprint, sequences=9, held_out=0, threads=1, torch="0"))
        return stream

    @staticmethod
    def begun(stream: Stream) -> wire.Round:
        while True:
            received = stream.receive(30)
            body = received.body
            if isinstance(body, wire.Ping):
                stream.send(
                    wire.Pong(
                        number=body.number,
                        ping_sent_s=body.sent_s,
                        received_s=received.received_s,
                        sent_s=time.monotonic(),
                    )
                )
            elif isinstance(body, wire.Round):
                return body


def dial_when_there(address: str, name: str) -> Stream:
    end = time.monotonic() + 20
    while True:
        try:
            return dial(address, None, None, name)
        except Gone:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def smashed(begun: wire.Round, step: int = 0, **other: Any) -> wire.Smashed:
    told = {"round": begun.round, "attempt": begun.attempt, "step": step, "purpose": "train"}
    return wire.Smashed(**{**told, "forward_s": 0.0, "encode_s": 0.0, "sent_s": 1.0, **other})


def tensors(hidden: int = 256, value: float = 0.1, vocabulary: int = 100) -> dict[str, wire.Packed]:
    import torch

    return {
        "hidden": wire.pack_tensor(torch.full((BATCH, TOKENS, hidden), value), "none", 0),
        "labels": wire.pack_tensor(torch.full((BATCH, TOKENS), vocabulary - 1, dtype=torch.int64), "none", 0),
    }


def wrong_shape(stream: Stream, begun: wire.Round) -> None:
    stream.send(smashed(begun), tensors(hidden=8))


def not_a_number(stream: Stream, begun: wire.Round) -> None:
    stream.send(smashed(begun), tensors(value=float("nan")))


def unknown_token(stream: Stream, begun: wire.Round) -> None:
    stream.send(smashed(begun), tensors(vocabulary=10**6))


def a_step_from_another_round(stream: Stream, begun: wire.Round) -> None:
    stream.send(smashed(begun, round=begun.round + 1), tensors())


def the_same_step_twice(stream: Stream, begun: wire.Round) -> None:
    stream.send(smashed(begun), tensors())
    stream.receive(20)
    stream.send(smashed(begun), tensors())


def adapters_before_their_time(stream: Stream, begun: wire.Round) -> None:
    stream.send(
        wire.Adapters(
            round=begun.round, attempt=begun.attempt, steps=[], round_received_s=0.0, loaded_s=0.0, sent_s=0.0
        )
    )


def silence(stream: Stream, begun: wire.Round) -> None:
    time.sleep(0)


def hanging_up(stream: Stream, begun: wire.Round) -> None:
    stream.close()


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        (wrong_shape, "expected"),
        (not_a_number, "NaN"),
        (unknown_token, "token id"),
        (a_step_from_another_round, "taken once only"),
        (the_same_step_twice, "taken once only"),
        (adapters_before_their_time, "expected the smashed data"),
        (silence, "nothing arrived"),
        (hanging_up, "closed"),
    ],
)
def test_a_device_that_misbehaves_costs_its_own_turn_and_nothing_of_the_others(
    tmp_path: Path, text: Path, misdeed: Any, reason: str
) -> None:
    import torch

    server = options(tmp_path, rounds=1, devices=("rogue", "one"), timeout_s=2.0)
    notes = Notes()
    rogue = Rogue(server)
    asked: list[Stream] = []

    def misbehave() -> None:
        stream = rogue.meet()
        asked.append(stream)
        misdeed(stream, rogue.begun(stream))

    thread = threading.Thread(target=misbehave, daemon=True)
    thread.start()
    other = as_device(server, text)
    with notes.reporter as say:
        outcome = run_server(server, say)
    thread.join(20)
    other.join(20)
    assert (outcome.turns, outcome.lost) == (1, 1)
    assert any("rogue: lost" in line and reason in line for line in notes.lines), notes.lines
    # Nothing of the lost turn is left: the other device's turn is all that happened.
    _, adapters = unsplit(text, replace(server, devices=("one",)))
    found = adapters_of(server)
    assert all(torch.equal(found[name], adapters[name]) for name in adapters)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [({"protocol": 99}, "install the same"), ({"device": "somebody"}, "certificate of rogue")],
)
def test_a_device_of_another_version_or_under_another_name_is_told_why_it_is_not_let_in(
    tmp_path: Path, hello: dict[str, Any], reason: str
) -> None:
    server = options(tmp_path, devices=("rogue",), patience_s=3.0)

    def serve() -> None:
        with Notes().reporter as say, pytest.raises(MissingHardware):
            run_server(server, say)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    stream = dial_when_there(server.listen, "rogue")
    stream.send(wire.Hello(**{"protocol": wire.PROTOCOL, "toolkit": "0", "device": "rogue", **hello}))
    with pytest.raises(Gone) as told:
        stream.receive(20)
    assert reason in str(told.value.refusal)
    thread.join(30)


# --- processes that are killed ----------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import cli; cli.train_main()", *arguments]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_where_it_was_and_loses_no_merged_turn(
    tmp_path: Path, text: Path, processes: list[subprocess.Popen[str]]
) -> None:
    import torch

    server = options(tmp_path, rounds=6)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    asked = [
        "server",
        "--model",
        server.model,
        "--output",
        str(server.output),
        "--devices",
        "one",
        "--listen",
        server.listen,
    ]
    asked += ["--cut", "2", "--rounds", "6", "--local-epochs", str(EPOCHS), "--batch-size", str(BATCH)]
    asked += ["--seq-len", str(TOKENS), "--learning-rate", "0.05", "--hardware", "cpu", "--json"]
    given: dict[str, Any] = {"env": environment, "text": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    first = subprocess.Popen(command(*asked), **given)
    processes.append(first)
    device = as_device(server, text)
    assert first.stderr is not None
    for line in first.stderr:
        if line.startswith("round 3/6"):
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.Popen(command(*asked), **given)
    processes.append(second)
    out, told = second.communicate(timeout=90)
    assert second.returncode == 0, told
    device.join(20)
    assert not device.is_alive()
    assert "going on with run" in told
    assert json.loads(out)["turns"] == 6
    _, adapters = unsplit(text, server)
    found = adapters_of(server)
    assert all(torch.equal(found[name], adapters[name]) for name in adapters)
