"""The link, measured: against links whose rate and delay are known, with iperf3 and without, into a profile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import split.link
from profiler import store
from profiler.profile import BadInput, MissingHardware
from split import certificates, iperf3, transport, wire
from split.certificates import Credentials
from split.commands import link
from split.link import measure, serving
from split.shaping import Shape
from split.transport import Gone, dial
from tests.rigs import links
from tests.synthetic import make_profile

needs_iperf3 = pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed")


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is slowed in the process has no slow start."""
    monkeypatch.setattr(split.link, "WARM_UP_S", 0.2)
    monkeypatch.setattr(iperf3, "WARM_UP_S", 0.0)


@pytest.mark.parametrize(("up_bps", "down_bps", "delay_s"), [(20e6, 60e6, 0.02), (2e6, 5e6, 0.001)])
def test_a_known_link_is_measured_within_3_percent(up_bps: float, down_bps: float, delay_s: float) -> None:
    def as_it_is(found: Any) -> bool:
        # two delays, and a small message each way at these rates
        trip_s = 2 * delay_s + 8 * 300 * (1 / up_bps + 1 / down_bps)
        return bool(
            found.uplink.mbps == pytest.approx(up_bps / 1e6, rel=0.03)
            and found.downlink.mbps == pytest.approx(down_bps / 1e6, rel=0.03)
            and found.round_trip_s <= trip_s + 0.01
            and found.uplink.iqr_mbps < 0.1 * found.uplink.mbps
        )

    tried = []
    for _ in range(3):  # a machine that is taken away from us for a moment slows the link itself
        with serving("127.0.0.1:0", None, None, "stream", Shape(down_bps, delay_s)) as lobby:
            tried.append(measure(f"127.0.0.1:{lobby.port}", None, "one", "stream", 0.8, Shape(up_bps, delay_s)))
        assert tried[-1].method == "stream"
        # Nothing makes a link faster than it is.
        assert tried[-1].uplink.mbps < 1.03 * up_bps / 1e6
        assert tried[-1].downlink.mbps < 1.03 * down_bps / 1e6
        assert tried[-1].round_trip_s >= 2 * delay_s
        if as_it_is(tried[-1]):
            break
    assert as_it_is(tried[-1]), tried


def test_the_profile_gets_the_link_as_measured_and_nothing_else_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    before = make_profile()
    store.save(before, path)
    with serving("127.0.0.1:0", None, None, "stream", Shape(50e6)) as lobby:
        result = invoked("--to", f"127.0.0.1:{lobby.port}", "--name", "one", "--method", "stream", "--seconds", "0.3", "--profile", str(path), "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    after = store.load(path)
    assert after.link is not None
    assert after.link.provenance == "measured"
    assert (after.link.uplink_mbps, after.link.downlink_mbps, after.link.round_trip_s) == (
        printed["uplink_mbps"],
        printed["downlink_mbps"],
        printed["round_trip_s"],
    )
    assert after.link.downlink_mbps == pytest.approx(50, rel=0.05)
    assert "our own stream, 0.3 s each way; interquartile range up" in str(after.link.note)
    assert after.model_copy(update={"link": before.link}) == before


def invoked(*argv: str) -> Any:
    app = typer.Typer()
    app.command()(link)
    return CliRunner().invoke(app, list(argv))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--to", "127.0.0.1:1", "--method", "ping"], "--method ping: expected auto, iperf3 or stream"),
        (["--to", "127.0.0.1:1", "--seconds", "0"], "--seconds 0: expected 0.2 to 600"),
        (["--to", "192.0.2.1", "--method", "stream"], "without certificates only loopback"),
        (["--serve", "--listen", "0.0.0.0"], "without certificates only loopback"),
        (["--to", "127.0.0.1:1", "--profile", "/nowhere.json"], "/nowhere.json: cannot be read"),
        (
            ["--to", "127.0.0.1:1", "--certificates", "/nowhere", "--name", "a"],
            "/nowhere/authority.pem: cannot be read",
        ),
    ],
)
def test_bad_options_are_told_in_one_line(argv: list[str], message: str) -> None:
    result = invoked(*argv)
    assert isinstance(result.exception, BadInput)
    assert message in str(result.exception)


def test_one_side_is_asked_for_and_not_both() -> None:
    for argv in ([], ["--to", "a", "--serve"]):
        assert invoked(*argv).exit_code == 2


def test_nobody_there_is_told_with_the_remedy() -> None:
    result = invoked("--to", "127.0.0.1:1", "--method", "stream")
    assert isinstance(result.exception, MissingHardware)
    assert "nobody answers (Connection refused)" in str(result.exception)
    assert "start 'card-profile link --serve' there first" in str(result.exception)


def test_without_iperf3_it_is_not_taken_and_where_it_is_asked_for_it_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iperf3.shutil, "which", lambda name: None)
    with serving("127.0.0.1:0", None, None, "auto", Shape(50e6)) as lobby:
        address = f"127.0.0.1:{lobby.port}"
        assert measure(address, None, "one", "auto", 0.2).method == "stream"
        with pytest.raises(MissingHardware, match=r"iperf3 is not installed; install it \(apt install iperf3\)"):
            measure(address, None, "one", "iperf3", 0.2)
    with pytest.raises(MissingHardware, match="iperf3 is not installed"), serving("127.0.0.1:0", None, None, "iperf3"):
        pass


@needs_iperf3
def test_iperf3_is_taken_where_both_sides_have_it() -> None:
    with serving("127.0.0.1:0", None, None, "auto") as lobby:
        found = measure(f"127.0.0.1:{lobby.port}", None, "one", "auto", 1.0)
    assert found.method == "iperf3"
    assert found.uplink.mbps > 100
    assert found.downlink.mbps > 100
    with serving("127.0.0.1:0", None, None, "stream", Shape(50e6)) as lobby:
        address = f"127.0.0.1:{lobby.port}"
        assert measure(address, None, "one", "auto", 0.2).method == "stream"
        with pytest.raises(Gone, match="iperf3 to 127"):
            measure(address, None, "one", "iperf3", 0.2)


def test_an_iperf3_report_is_read_and_a_strange_one_is_not() -> None:
    interval = {"sum": {"bits_per_second": 9e6, "omitted": False}}
    report = {
        "intervals": [{"sum": {"bits_per_second": 1e6, "omitted": True}}, interval, {"sum": {"bits_per_second": 11e6}}],
        "end": {"sum_sent": {"bits_per_second": 2e7}, "sum_received": {"bits_per_second": 1e7}},
    }
    assert iperf3.rate_of(report) == iperf3.Rate(10.0, 1.0, 2)
    for strange in (
        {},
        [],
        {"end": {}},
        {**report, "intervals": 3},
        {**report, "end": {"sum_received": {"bits_per_second": 0}}},
    ):
        assert isinstance(iperf3.rate_of(strange), str)


def test_what_is_not_asked_for_by_a_ping_is_refused() -> None:
    with serving("127.0.0.1:0", None, None, "stream") as lobby:
        stream = dial(f"127.0.0.1:{lobby.port}", None, None, "one")
        stream.send(wire.Hello(protocol=1, toolkit="x", device="one"))
        with pytest.raises(Gone) as gone:
            stream.receive(5)
        assert "only pings are answered here" in str(gone.value.refusal)
        stream.close()


# --------------------------------------------------------------------------------------------- between two machines


@pytest.fixture(scope="module")
def cable() -> Iterator[links.Cable]:
    why_not = links.missing()
    if why_not is not None:
        pytest.skip(why_not)
    with links.cable() as made:
        yield made


# A shell that starts the tests in the background lets them ignore SIGINT, and so their children.
RUN = (
    "import signal, typer; from split.commands import link; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "app = typer.Typer(); app.command()(link); app()"
)


def test_two_machines_measure_the_kernels_link_and_stopping_leaves_nothing_behind(
    cable: links.Cable, tmp_path: Path
) -> None:
    """Two network namespaces, mutual TLS, a cable of 40 Mbit/s up and 80 down by the kernel's own token bucket."""
    certificates.make(tmp_path, [links.FAR], ["one"])
    cable.shape("near", 40e6)
    cable.shape("far", 80e6)
    here = Path(__file__).resolve().parents[2]
    shared = ["--certificates", str(tmp_path), "--method", "stream"]
    serve = cable.command("far", sys.executable, "-c", RUN, "--serve", *shared)
    server = subprocess.Popen(serve, cwd=here, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert "answering on 0.0.0.0 port 7771" in server.stderr.readline()
        command = cable.command("near", sys.executable, "-c", RUN, "--to", links.FAR, "--name", "one", *shared, "--seconds", "0.6", "--json")  # fmt: skip
        for _ in range(3):  # a machine that is busy for that long is slower than the cable
            done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            if found["uplink_mbps"] > 0.88 * 40 and found["downlink_mbps"] > 0.88 * 80:
                break
        # The kernel counts Ethernet frames: of 1514 bytes in a frame 1448 are TCP's payload, and TLS, HTTP/2 take their part.
        assert 0.88 * 40 < found["uplink_mbps"] < 40
        assert 0.88 * 80 < found["downlink_mbps"] < 80
        server.send_signal(signal.SIGINT)
        server.wait(10)
    finally:
        server.kill()
        server.wait()


PULLED = """
import sys, time
from pathlib import Path
from split import transport
from split.certificates import Credentials
slow = int(transport.KEEPALIVE_S * 1000)
transport._OPTIONS = [(key, slow // 10 if value == slow else value) for key, value in transport._OPTIONS]
folder = Path(sys.argv[1])
if sys.argv[2] == "server":
    with transport.Lobby("198.18.0.2:7800", Credentials.of(folder, "server"), None) as lobby:
        print("ready", flush=True)
        lobby.wait(20)
        stream = lobby.stream("one")
        try:
            stream.receive(20)
        except transport.Gone:
            print("gone", time.monotonic(), flush=True)
else:
    stream = transport.dial("198.18.0.2:7800", Credentials.of(folder, "one"), None, "one")
    print("ready", flush=True)
    try:
        stream.receive(20)
    except transport.Gone:
        print("gone", time.monotonic(), flush=True)
"""


def test_a_pulled_cable_is_noticed_on_both_sides(cable: links.Cable, tmp_path: Path) -> None:
    """With keepalive ten times as fast as the real one. Nothing tells either side: packets just do not arrive."""
    certificates.make(tmp_path, [links.FAR], ["one"])
    cable.shape("near", None)
    cable.shape("far", None)
    here = Path(__file__).resolve().parents[2]
    ends = []
    try:
        for end, role in (("far", "server"), ("near", "device")):
            command = cable.command(end, sys.executable, "-c", PULLED, str(tmp_path), role)
            ends.append(subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
            assert ends[-1].stdout is not None
            assert ends[-1].stdout.readline() == "ready\n"
        cable.pull()
        pulled_s = time.monotonic()  # one clock for all processes of a machine
        for process in ends:
            told, _ = process.communicate(timeout=20)
            assert told.startswith("gone ")
            assert float(told.split()[1]) - pulled_s < 2 * transport.NOTICED_S / 10
    finally:
        for process in ends:
            process.kill()
            process.wait()


def test_credentials_of_a_device_measure_over_tls(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], ["one", "two"])
    allowed = tmp_path / "allowed.txt"
    allowed.write_text("one\n")
    with serving("127.0.0.1:0", Credentials.of(tmp_path, "server"), allowed, "stream", Shape(50e6)) as lobby:
        address = f"127.0.0.1:{lobby.port}"
        found = measure(address, Credentials.of(tmp_path, "one"), "one", "stream", 0.2)
        assert found.downlink.mbps == pytest.approx(50, rel=0.05)
        with pytest.raises(BadInput, match="'two' is not on the server's list"):
            measure(address, Credentials.of(tmp_path, "two"), "two", "stream", 0.2)
