"""The likely mistakes at card-train's command line: one line that names the option and what to do, and the right exit code."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

import cli
from split.commands import train_app

SERVER = ["server", "--model", "tiny-llama-test", "--devices", "one", "--output", "run", "--listen", "127.0.0.1:0"]
DEVICE = ["device", "--name", "one", "--patience", "0.1", "--server"]
LOCAL = ["local", "--model", "tiny-llama-test", "--cut", "2", "--output", "run"]


def card_train(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code, and the line that tells what is wrong."""
    monkeypatch.setattr(sys, "argv", ["card-train", *arguments])
    code = cli._run(train_app, "card-train")
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("card-train: ")]
    assert out == ""
    assert len(told) == 1, err
    assert told[0] == err.splitlines()[-1]
    return code, told[0].removeprefix("card-train: ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text, and more of it. " * 50)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "trace.csv").write_text("seconds,rate\n0,1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (LOCAL, 2, "'--data'"),
        ([*LOCAL, "--data", "none.txt"], 2, "--data none.txt: no such file"),
        ([*LOCAL, "--data", "text.txt", "--trace", "trace.csv"], 2, "trace.csv: line 1: columns seconds,rate, expected time_s"),
        ([*LOCAL, "--data", "text.txt", "--uplink-mbps", "8"], 2, "--uplink-mbps: expected --downlink-mbps with it"),
        (SERVER, 2, "--cut or --profiles: expected one of them"),
        ([*SERVER, "--cut", "9"], 2, "--cut 9: expected 1 to 7"),
        ([*LOCAL, "--data", "text.txt", "--rounds", "0"], 2, "--rounds 0: expected a whole number from 1 to"),
        ([*SERVER, "--cut", "2", "--patience", "0.1", "--rounds", "-1"], 2, "--rounds -1: expected a whole number from 1 to"),
        ([*SERVER, "--cut", "2", "--patience", "0.1", "--evaluate-every", "-1"], 2, "--evaluate-every -1: expected 0 (never) or a whole number"),
        ([*SERVER, "--cut", "2", "--codec", "zip"], 2, "--codec 'zip': expected none, fp16"),
        ([*SERVER, "--cut", "2", "--listen", "0.0.0.0:7770"], 2, "--listen 0.0.0.0:7770: without certificates only loopback"),
        ([*SERVER, "--cut", "2", "--certificates", "none"], 2, "none/authority.pem: cannot be read"),
        ([*SERVER, "--cut", "2", "--torch-device", "cuda:99"], 3, "--torch-device cuda:99: torch cannot use it here: "),
        ([*DEVICE, "127.0.0.1:1", "--data", "text.txt", "--torch-device", "cuda:99"], 3, "--torch-device cuda:99: torch cannot use it"),
        ([*SERVER, "--cut", "2", "--torch-device", "gpu"], 2, "--torch-device gpu: expected cpu, or a CUDA GPU as cuda:0"),
        ([*SERVER, "--cut", "2", "--torch-device", "meta"], 2, "--torch-device meta: expected cpu, or a CUDA GPU as cuda:0"),
        ([*SERVER, "--cut", "2", "--optimizer", "adam"], 2, "--optimizer adam"),
        ([*SERVER, "--cut", "2", "--patience", "0.1"], 3, "--devices one: none came within 0.1 s; start 'card-train device'"),
        ([*SERVER, "--profiles", "none"], 2, "none"),
        ([*DEVICE, "127.0.0.1:1", "--data", "none.txt"], 2, "--data none.txt: no such file"),
        ([*DEVICE, "127.0.0.1:1", "--data", "text.txt"], 3, "--server 127.0.0.1:1: no answer for 0.1 s; start 'card-train server'"),
        ([*DEVICE, "127.0.0.1:99999", "--data", "text.txt"], 2, "--server: address '127.0.0.1:99999': port 99999, expected 0 to 65535"),
        ([*DEVICE, "192.0.2.1:7770", "--data", "text.txt"], 2, "make certificates with 'card-train certificates'"),
        ([*DEVICE, "127.0.0.1:1", "--data", "text.txt", "--certificates", "none"], 2, "none/authority.pem: cannot be read"),
        ([*DEVICE, "127.0.0.1:1", "--data", "text.txt", "--uplink-mbps", "0"], 2, "--uplink-mbps 0: expected a rate"),
        (["certificates", "here"], 2, "expected names of the server, of devices, or both"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_with_its_option_and_the_remedy(
    arguments: list[str],
    code: int,
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got, told = card_train(arguments, monkeypatch, capsys)
    assert says in told
    assert got == code


def test_a_port_that_is_taken_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, told = card_train([*SERVER, "--cut", "2", "--listen", address], monkeypatch, capsys)
    assert code == 2
    assert told.startswith(f"{address}: cannot be listened on: is another server there")
    assert "--listen" in told


def test_a_device_of_local_that_cannot_go_on_ends_the_run_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the server would wait for it until --patience is over."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    code, told = card_train([*LOCAL, "--data", "short.txt", "--devices", "one"], monkeypatch, capsys)
    assert code == 2
    assert told == "one: short.txt: 5 tokens, expected at least one sequence of 128"


@pytest.mark.parametrize("command", ["server", "device", "local", "certificates"])
def test_the_help_of_every_command_teaches_with_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["card-train", command, "--help"])
    assert cli._run(train_app, "card-train") == 0
    assert f"Example: card-train {command} " in " ".join(capsys.readouterr().out.split())
