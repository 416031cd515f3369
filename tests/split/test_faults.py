"""What a run survives, and how it ends where it must: training that diverges, strangers at the door, devices that stall, a stop from the keyboard."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from profiler.profile import BadInput, MissingHardware
from solver.problem import SolveOptions
from split import certificates, device, wire
from split.certificates import Credentials
from split.checkpoint import RunFolder
from split.device import DeviceOptions, run_device
from split.server import ServerOptions, run_server
from split.sessions import Sessions
from split.stream import Stream
from split.transport import Gone, Lobby, dial
from tests.split.test_roles import (
    BATCH,
    TOKENS,
    Notes,
    Rogue,
    adapters_of,
    as_device,
    command,
    not_a_number,
    options,
    smashed,
    text,
    unsplit,
)
from tests.split.test_transport import copied, long_ago

__all__ = ["text"]  # a fixture


def history(server: ServerOptions) -> list[dict[str, Any]]:
    with RunFolder(server.output) as folder:
        folder.latest()
        return list(folder.history())


def in_the_background(body: Callable[[], object]) -> threading.Thread:
    """Whatever becomes of ``body``: the test looks at the other side."""

    def run() -> None:
        with contextlib.suppress(BadInput, MissingHardware, Gone, wire.Refused):
            body()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


# ------------------------------------------------------------------------------------------------ training that diverges


def test_a_learning_rate_that_no_device_would_take_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        Notes().reporter as say,
        pytest.raises(BadInput, match=r"^--learning-rate 1000000000\.0: expected less than or"),
    ):
        run_server(options(tmp_path, learning_rate=1e9), say)


@pytest.mark.parametrize(("codec", "optimizer"), [("none", "sgd"), ("int8", "sgd"), ("none", "adamw")])
def test_training_that_diverges_ends_with_the_learning_rate_named_and_the_last_good_adapters(
    tmp_path: Path, text: Path, codec: str, optimizer: str
) -> None:
    server = options(tmp_path, optimizer=optimizer, learning_rate=1000.0, weight_decay=1000.0, patience_s=10.0)
    server = replace(server, solve=SolveOptions(rounds=60, local_epochs=1), fixed=replace(server.fixed, codec=codec))
    asked = DeviceOptions(server.listen, "one", text, hardware="cpu", patience_s=1.0, timeout_s=10.0)
    quiet, notes = Notes(), Notes()

    def train() -> None:
        with quiet.reporter as say:
            run_device(asked, say)

    thread = in_the_background(train)
    with notes.reporter as say, pytest.raises(BadInput) as ended:
        run_server(server, say)
    assert str(ended.value).startswith(
        "--learning-rate 1000: the loss was no number in 3 turns in a row; expected a smaller one"
    )
    assert sum("one: lost" in line for line in notes.lines) == 3
    turns = history(server)
    assert turns  # it went well for a while
    assert f"({len(turns)} are merged)" in str(ended.value)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in adapters_of(server).values())
    thread.join(20)
    assert not thread.is_alive()


def test_a_device_that_sends_no_numbers_again_and_again_does_not_end_the_run_of_the_others(
    tmp_path: Path, text: Path
) -> None:
    server = options(tmp_path, rounds=5, devices=("rogue", "one"))
    rogue = Rogue(server)

    def misbehave() -> None:
        while True:
            with contextlib.suppress(Gone):
                stream = rogue.meet()
                not_a_number(stream, rogue.begun(stream))
                stream.receive(20)

    in_the_background(misbehave)
    other = as_device(server, text)
    with Notes().reporter as say:
        outcome = run_server(server, say)
    other.join(20)
    assert outcome.turns == 5
    assert outcome.lost >= 1
    assert [row["device"] for row in history(server)] == 5 * ["one"]
    _, adapters = unsplit(text, replace(server, devices=("one",)))
    assert all(torch.equal(value, adapters[name]) for name, value in adapters_of(server).items())


def test_a_device_that_is_away_while_another_sends_no_numbers_is_waited_for(
    tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = options(tmp_path, rounds=2, devices=("rogue", "one"))
    rogue, diverged = Rogue(server), threading.Semaphore(0)

    def misbehave() -> None:
        while True:
            with contextlib.suppress(Gone):
                stream = rogue.meet()
                not_a_number(stream, rogue.begun(stream))
                diverged.release()
                stream.receive(20)

    def come_back_late() -> None:
        away = Rogue(server, "one").meet()
        diverged.acquire()
        away.close("away")
        for _ in range(2):
            diverged.acquire()
        time.sleep(1.0)
        with Notes().reporter as say:
            run_device(DeviceOptions(server.listen, "one", text, hardware="cpu", patience_s=30, timeout_s=20), say)

    in_the_background(misbehave)
    other = in_the_background(come_back_late)
    notes = Notes()
    with notes.reporter as say:
        outcome = run_server(server, say)
    other.join(20)
    assert outcome.turns == 2
    assert sum("rogue: lost" in line for line in notes.lines) >= 3
    assert "waiting for one: the loss with rogue is no number" in capfd.readouterr().err
    assert [row["device"] for row in history(server)] == 2 * ["one"]


# ------------------------------------------------------------------------------------------------- devices that stall


def test_a_device_that_never_reads_its_gradients_loses_its_turn_in_time(tmp_path: Path) -> None:
    """Its own window and the server's queue are full after some steps: what is handed over must have a limit of its own."""
    server = options(tmp_path, devices=("rogue",), timeout_s=2.0, patience_s=6.0, batch_size=8, seq_len=128)
    server = replace(server, solve=SolveOptions(rounds=1, local_epochs=14))
    notes = Notes()

    def misbehave() -> None:
        stream = Rogue(server).meet(8, 128)
        begun = Rogue.begun(stream)
        for step in range(14):
            tensors = {
                "hidden": wire.pack_tensor(torch.full((8, 128, 256), 0.1), "none", 0),
                "labels": wire.pack_tensor(torch.zeros((8, 128), dtype=torch.int64), "none", 0),
            }
            stream.send(smashed(begun, step), tensors)
        time.sleep(30)

    in_the_background(misbehave)
    with notes.reporter as say, pytest.raises(MissingHardware):
        run_server(server, say)
    assert any("rogue: lost" in line and "no message could be handed over" in line for line in notes.lines), notes.lines


def test_a_device_gives_up_when_it_is_refused_three_times_with_nothing_merged_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoStream:
        def close(self, reason: str | None = None) -> None:
            """Nothing is open."""

    turns = iter("rrmrrmrrr")
    seen: list[str] = []

    def serve(worker: Any, stream: object) -> None:
        worker.trainer = worker.trainer or object()
        worker.let_in = True
        seen.append(next(turns))
        worker.merged = seen[-1] == "m"
        raise Gone("refused", None if worker.merged else "round lost")

    monkeypatch.setattr("split.transport.dial", lambda *_: NoStream())
    monkeypatch.setattr(device._Worker, "serve", serve)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "text").write_text("some")
    with Notes().reporter as say, pytest.raises(BadInput, match="refused one: round lost"):
        run_device(DeviceOptions("127.0.0.1:1", "one", tmp_path / "text", patience_s=60), say)
    assert "".join(seen) == "rrmrrmrrr"


# ------------------------------------------------------------------------------------------------------ the end of a run


def test_a_device_that_comes_back_while_the_end_is_told_is_told_too(tmp_path: Path) -> None:
    settings = wire.Settings(model="m", lora_rank=1, lora_alpha=1.0, lora_targets=None, dtype="float32", batch_size=1,
                             seq_len=1, seed=0, optimizer="sgd", learning_rate=1.0, weight_decay=0.0,
                             optimizer_state="reset", overlap=False)  # fmt: skip
    heard: list[str] = []
    with Lobby("127.0.0.1:0", None, None) as lobby:

        def come_late() -> None:
            time.sleep(0.5)
            stream: Stream = dial(f"127.0.0.1:{lobby.port}", None, None, "late")
            stream.send(wire.Hello(protocol=wire.PROTOCOL, toolkit="0", device="late"))
            stream.receive(5)
            stream.send(wire.Ready(fingerprint="f", sequences=1, held_out=0, threads=1, torch="0"))
            heard.append(stream.receive(5).body.kind)

        with Sessions(lobby, wire.Welcome(run="r", settings=settings), "f", 5.0, lambda line: None) as sessions:
            thread = in_the_background(come_late)
            began = time.monotonic()
            sessions.finish({"late"}, 10.0)
            assert 0.4 < time.monotonic() - began < 5
            sessions.finish({"never"}, 0.3)
        thread.join(5)
    assert heard == ["finished"]


# ------------------------------------------------------------------------------------------------ strangers at the door


def test_strangers_are_refused_with_a_reason_while_the_run_goes_on_undisturbed(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unlisted device, one of another authority, one whose certificate has expired: each against the server as it trains."""
    ours, theirs, old = tmp_path / "ours", tmp_path / "theirs", tmp_path / "old"
    certificates.make(ours, ["127.0.0.1"], ["one", "unlisted"])
    (ours / "allowed.txt").write_text("one\n")
    certificates.make(theirs, ["127.0.0.1"], ["one"])
    copied(ours, theirs, "authority.pem")
    copied(ours, old, "authority.pem", "authority.key", "server.pem", "server.key")
    with monkeypatch.context() as then:
        long_ago(then, years=5)
        certificates.make(old, [], ["one"])
    server = options(tmp_path, rounds=40, certificates=ours)
    notes, told = Notes(), dict[str, str]()

    def dial_again_and_again(who: str, name: str, folder: Path) -> None:
        credentials = unchecked(folder, name)
        end = time.monotonic() + 20
        while who not in told and time.monotonic() < end:
            try:
                dial(server.listen, credentials, None, name).close()
                told[who] = "let in"
            except BadInput as error:
                told[who] = str(error)
            except Gone:
                time.sleep(0.1)

    def unchecked(folder: Path, name: str) -> Credentials:
        """Of a device that does not look at its own certificate first."""
        return Credentials(name, folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key")

    monkeypatch.setattr(Credentials, "check", lambda self: None)
    trainer = as_device(server, text, certificates=ours)
    strangers = [
        threading.Thread(target=dial_again_and_again, args=given, daemon=True)
        for given in (("unlisted", "unlisted", ours), ("another authority", "one", theirs), ("expired", "one", old))
    ]
    for thread in strangers:
        thread.start()
    with notes.reporter as say:
        outcome = run_server(server, say)
    for thread in (*strangers, trainer):
        thread.join(20)
        assert not thread.is_alive()
    assert "'unlisted' is not on the server's list of devices" in told["unlisted"]
    assert "does not take this device's certificate" in told["another authority"]
    assert "certificate" in told["expired"]
    assert told["expired"] != "let in"
    assert notes.holds("unlisted: not let in: it is not on the list of devices (allowed.txt)")
    assert (outcome.turns, outcome.lost) == (40, 0)
    _, adapters = unsplit(text, server)
    assert all(torch.equal(value, adapters[name]) for name, value in adapters_of(server).items())


# ------------------------------------------------------------------------------------------------------------ stopping


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and speaks_of(p, tmp_path)]
    for process in left:
        os.kill(int(process.name), signal.SIGKILL)
    assert not left, "processes were left behind"


def speaks_of(process: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return str(folder).encode() in (process / "cmdline").read_bytes()
    return False


@pytest.mark.slow
def test_a_stop_from_the_keyboard_ends_server_and_devices_and_keeps_what_was_merged(base: Path, text: Path) -> None:
    run = base / "run"
    words = ["local", "--model", "tiny-llama-test", "--cut", "2", "--data", str(text), "--rounds", "100000"]
    words += ["--batch-size", str(BATCH), "--seq-len", str(TOKENS), "--hardware", "cpu", "--output", str(run)]
    process = subprocess.Popen(command(*words), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 2/"):
            break
    process.send_signal(signal.SIGINT)  # to the server alone: it ends its devices itself
    told = list(process.stderr)
    assert process.wait(30) == 130
    assert told[-1] == "card-train: stopped\n"
    assert not any("Traceback" in line for line in told)
    for name in ("device-1", "device-2"):
        assert (run / f"{name}.log").read_text().splitlines()[-1] == "card-train: stopped"
    with RunFolder(run) as folder:
        found = folder.latest()
        assert found is not None
        assert found[0].turns == len(list(folder.history())) >= 2
    assert not list(run.glob(".new-*"))
