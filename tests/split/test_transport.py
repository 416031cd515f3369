"""The link over loopback, with real certificates: who is let in, what arrives, and what is noticed when it does not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from profiler.profile import BadInput
from split import certificates, stream, transport, wire
from split.certificates import Credentials
from split.shaping import Shape
from split.transport import Gone, Lobby, Silent, Stream, dial, host_and_port
from split.wire import Limits, Ping, Pong, Refused, pack_tensor, unpack_tensor

PING = Ping(number=1, sent_s=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    certificates.make(made, ["127.0.0.1", "localhost"], ["one", "two", "three"])
    return made


@contextlib.contextmanager
def linked(folder: Path | None, name: str = "one", **options: Any) -> Iterator[tuple[Lobby, Stream, Stream]]:
    """A lobby, the device's end and the server's end of one stream; without a folder in the plain mode."""
    shape = options.pop("device_shape", None)
    with Lobby(
        "127.0.0.1:0", folder and Credentials.of(folder, "server"), folder and folder / "allowed.txt", **options
    ) as lobby:
        device = dialled(lobby, folder, name, shape=shape, limits=options.get("limits"))
        try:
            yield lobby, device, lobby.stream(name)
        finally:
            device.close()


def dialled(lobby: Lobby, folder: Path | None, name: str, limits: Limits | None = None, **options: Any) -> Stream:
    return dial(f"127.0.0.1:{lobby.port}", folder and Credentials.of(folder, name), limits, name, **options)


def eventually(what: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def padding(count: int) -> dict[str, wire.Packed]:
    return {"padding": wire.Packed("uint8", (count,), "none", bytes(count))}


def raw_call(lobby: Lobby, folder: Path, name: str, pieces: list[bytes], **options: Any) -> Any:
    """What a stranger's program may send: its own pieces over gRPC, under a certificate of whatever folder."""
    channel = grpc.secure_channel(
        f"127.0.0.1:{lobby.port}",
        grpc.ssl_channel_credentials(
            *((folder / f"{file}").read_bytes() for file in ("authority.pem", f"{name}.key", f"{name}.pem"))
        ),
        options=[("grpc.use_local_subchannel_pool", 1)],
    )
    return channel, channel.stream_stream("/card.Split/Stream")(iter(pieces), timeout=10, **options)


# ------------------------------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("secure", [True, False])
def test_messages_arrive_whole_and_in_order_both_ways(folder: Path, secure: bool) -> None:
    sizes = [1, 3, 1000, stream.PIECE_BYTES - 300, stream.PIECE_BYTES, 3 * stream.PIECE_BYTES + 7]
    with linked(folder if secure else None) as (_, device, server):
        assert (server.peer, device.peer) == ("one", "server")
        for sender, receiver in ((device, server), (server, device)):
            for number, size in enumerate(sizes):
                tensor = torch.arange(size, dtype=torch.int32)
                before_s = time.monotonic()
                sender.send(Ping(number=number, sent_s=0.0), {"padding": pack_tensor(tensor, "none", 0)})
                tensor.zero_()  # what was handed over does not change any more
                received = receiver.receive(5)
                assert received.body == Ping(number=number, sent_s=0.0)
                assert torch.equal(unpack_tensor(received.tensors["padding"], (size,), torch.int32), torch.arange(size))
                assert before_s < received.received_s < time.monotonic()
                assert received.bytes > 4 * size
        eventually(lambda: device.bytes_sent == server.bytes_received > 4 * sum(sizes))
        assert server.bytes_sent == device.bytes_received


def test_what_was_sent_before_the_end_is_still_received(folder: Path) -> None:
    with linked(folder) as (_, device, server):
        server.send(PING, padding(5_000_000))
        server.send(wire.Finished())
        server.close()
        assert device.receive(5).body == PING
        assert device.receive(5).body == wire.Finished()
        with pytest.raises(Gone, match="the server closed the stream"):
            device.receive(5)
        with pytest.raises(Gone):
            device.send(PING)


def test_a_reason_given_on_closing_reaches_the_other_side(folder: Path) -> None:
    with linked(folder) as (lobby, device, server):
        device.close("another version\nof the toolkit")
        with pytest.raises(Gone) as gone:
            server.receive(5)
        assert gone.value.refusal == "another version of the toolkit"
        eventually(lambda: lobby.connected() == [])


def test_silence_is_told_and_leaves_the_stream_as_it_was(folder: Path) -> None:
    with linked(folder) as (_, device, server):
        began = time.monotonic()
        with pytest.raises(Silent) as silent:
            server.receive(0.2)
        assert silent.value.seconds == 0.2
        assert 0.2 <= time.monotonic() - began < 1
        device.send(PING)
        assert server.receive(5).body == PING


def test_a_side_that_does_not_read_holds_the_sender_up_and_costs_bounded_memory(folder: Path) -> None:
    with linked(folder) as (_, device, server):
        handed = 0
        with contextlib.suppress(Silent):
            while handed < 50:
                server.send(PING, padding(4 << 20), timeout_s=1.0)
                handed += 1
        # two wait here, two were read there, one is being read, and the window and the kernel hold about one more
        assert 3 <= handed <= 7
        for _ in range(handed):
            assert device.receive(5).body == PING
        with pytest.raises(Silent):
            device.receive(0.1)


def test_a_message_above_the_limit_is_not_sent(folder: Path) -> None:
    with linked(folder, limits=Limits(message_bytes=1 << 16)) as (_, device, server):
        with pytest.raises(ValueError, match="at most 65536 can be sent"):
            device.send(PING, padding(1 << 16))
        device.send(PING)
        assert server.receive(5).body == PING


@pytest.mark.parametrize("secure", [True, False])
def test_no_thread_is_left_behind(folder: Path, secure: bool) -> None:
    before = set(threading.enumerate())
    with linked(folder if secure else None) as (lobby, device, server):
        device.send(PING)
        server.receive(5)
        with contextlib.suppress(Gone, BadInput):
            dial("127.0.0.1:1", None, None, "x")
        two = dialled(lobby, folder if secure else None, "two")
        assert lobby.connected() == ["one", "two"]
    del two, device
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("ends", ["raise SystemExit(7)", "raise KeyboardInterrupt", "sys.exit(7)"])
def test_a_process_that_closes_nothing_still_ends(ends: str) -> None:
    script = f"""
import sys
from split.transport import Lobby, dial
lobby = Lobby("127.0.0.1:0", None, None).start()
device = dial(f"127.0.0.1:{{lobby.port}}", None, None, "one")
print(lobby.connected(), flush=True)
{ends}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "['one']\n"
    assert done.returncode != 0


# -------------------------------------------------------------------------------------------------------- who is let in


def copied(folder: Path, other: Path, *files: str) -> Path:
    other.mkdir(exist_ok=True)
    for file in files:
        (other / file).write_bytes((folder / file).read_bytes())
    return other


def long_ago(monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    import datetime

    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=365 * years)
    monkeypatch.setattr(certificates, "_now", lambda: then)


def test_a_server_of_another_authority_is_not_talked_to(folder: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], ["one"])
    with (
        Lobby("127.0.0.1:0", Credentials.of(folder, "server"), None) as lobby,
        pytest.raises(BadInput, match=r"127\.0\.0\.1:\d+: the server is not who it should be: .* copy authority\.pem"),
    ):
        dialled(lobby, tmp_path, "one")


def test_a_server_under_another_host_name_is_not_talked_to(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["cluster.example"], ["one"])
    with Lobby("127.0.0.1:0", Credentials.of(tmp_path, "server"), None) as lobby:
        with pytest.raises(BadInput, match="does not bear this address: dial a name that it bears"):
            dialled(lobby, tmp_path, "one")
        with pytest.raises(BadInput, match="does not bear this host name"):
            dial(f"localhost:{lobby.port}", Credentials.of(tmp_path, "one"), None, "one")


def test_an_expired_certificate_is_told_on_its_own_machine_and_on_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        long_ago(then, years=5)
        certificates.make(tmp_path, ["127.0.0.1"], ["one"])
        old = Credentials.of(tmp_path, "server")
    for name in ("one", "server"):
        with pytest.raises(
            BadInput, match=rf"{name}\.pem: valid from .* make a new one with 'card-train certificates'"
        ):
            Credentials.of(tmp_path, name)
    certificates.make(tmp_path, [], ["new"])
    with monkeypatch.context() as then:  # a server that was started in time, and runs on
        then.setattr(Credentials, "check", lambda self: None)
        lobby = Lobby("127.0.0.1:0", old, None).start()
    with lobby, pytest.raises(BadInput, match="its certificate has expired: make a new one there"):
        dialled(lobby, tmp_path, "new")
    for end in ("pem", "key"):
        (tmp_path / f"server.{end}").unlink()
    certificates.make(tmp_path, ["127.0.0.1"], [])
    with Lobby("127.0.0.1:0", Credentials.of(tmp_path, "server"), None) as lobby:
        monkeypatch.setattr(Credentials, "check", lambda self: None)  # a device whose clock is wrong sees nothing amiss
        with pytest.raises(BadInput, match=r"does not take this device's certificate: .* valid by the server's clock"):
            dialled(lobby, tmp_path, "one")
        assert lobby.connected() == []


@pytest.mark.parametrize("stranger", ["another authority's", "no", "the server's own"])
def test_the_server_takes_only_certificates_for_devices_of_its_authority(
    folder: Path, tmp_path: Path, stranger: str
) -> None:
    """By a client that does not look at its own certificate first."""
    certificates.make(tmp_path, ["127.0.0.1"], ["one"])
    name = "one"
    if stranger == "the server's own":
        copied(folder, tmp_path, "authority.pem", "server.pem", "server.key")
        name = "server"
    (tmp_path / "authority.pem").write_bytes((folder / "authority.pem").read_bytes())
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), None) as lobby:
        if stranger == "no":
            channel = grpc.secure_channel(
                f"127.0.0.1:{lobby.port}", grpc.ssl_channel_credentials((folder / "authority.pem").read_bytes())
            )
            call = channel.stream_stream("/card.Split/Stream")(iter([]), timeout=10)
        else:
            channel, call = raw_call(lobby, tmp_path, name, [])
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        channel.close()
        assert lobby.connected() == []


def test_a_device_with_a_strangers_certificate_is_told_so(folder: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path, [], ["one"])
    copied(folder, tmp_path, "authority.pem")
    with pytest.raises(BadInput, match=r"one\.pem: not made by the authority of .*authority\.pem; copy both"):
        Credentials.of(tmp_path, "one")


def test_the_name_is_held_against_the_list_which_is_read_again_when_it_changes(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "allowed.txt"
    listed.write_text("one  # on the roof\n")
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), listed) as lobby:
        one = dialled(lobby, folder, "one")
        with pytest.raises(
            BadInput, match=r"'two' is not on the server's list of devices; put it into the server's allowed\.txt"
        ):
            dialled(lobby, folder, "two")
        listed.write_text("one\ntwo\n")
        two = dialled(lobby, folder, "two")
        assert lobby.connected() == ["one", "two"]
        listed.write_text("two\n\n")
        assert lobby.connected() == ["two"]
        with pytest.raises(Gone) as gone:
            one.receive(5)
        assert gone.value.refusal == "taken off the server's list of devices"
        two.close()
        listed.unlink()
        with pytest.raises(BadInput, match="not on the server's list"):
            dialled(lobby, folder, "two")
        listed.write_text("two\n")
        dialled(lobby, folder, "two").close()


def test_a_device_taken_off_the_list_that_does_not_read_holds_nobody_up(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "allowed.txt"
    listed.write_text("one\n")
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), listed) as lobby:
        device = dialled(lobby, folder, "one")
        with contextlib.suppress(Silent):
            while True:
                lobby.stream("one").send(PING, padding(4 << 20), timeout_s=0.3)
        listed.write_text("")
        began = time.monotonic()
        assert lobby.connected() == []
        assert time.monotonic() - began < 0.5
        device.close()


def test_who_is_turned_away_is_told_on_the_servers_side_too_but_once(folder: Path) -> None:
    told: list[str] = []
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), ["one"], note=told.append) as lobby:
        for _ in range(3):
            with pytest.raises(BadInput, match="not on the server's list"):
                dialled(lobby, folder, "two")
    assert told == ["two: not let in: it is not on the list of devices (list)"]


def test_nobody_answers_where_nobody_listens(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for credentials in (None, Credentials.of(folder, "one")):
            with pytest.raises(Gone, match=r"nobody answers \(Connection refused\); is the server running there"):
                dial(f"127.0.0.1:{port}", credentials, None, "one")


def test_a_server_that_hangs_is_given_up_in_time(folder: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        began = time.monotonic()
        with pytest.raises(Gone, match=r"no answer within 0\.5 s"):
            dial(f"127.0.0.1:{deaf.getsockname()[1]}", Credentials.of(folder, "one"), None, "one", timeout_s=0.5)
        assert time.monotonic() - began < 5


def test_secure_and_plain_do_not_mix_and_the_line_says_so(folder: Path) -> None:
    with Lobby("127.0.0.1:0", None, None) as lobby, pytest.raises(BadInput, match="does not speak TLS"):
        dialled(lobby, folder, "one")
    with (
        Lobby("127.0.0.1:0", Credentials.of(folder, "server"), None) as lobby,
        pytest.raises(BadInput, match="does not answer without certificates"),
    ):
        dialled(lobby, None, "one")


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A port on which somebody takes connections, says ``answer`` once it was spoken to, and hangs up: how a process looks that is
    killed just now, or a server that has not begun to serve."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [b"", b"\0\0\0\4\0\0\0\0\0"])
def test_a_server_that_breaks_off_is_dialled_again_not_taken_for_one_with_certificates(answer: bytes) -> None:
    with answering(answer) as port, pytest.raises(Gone, match="the connection broke"):
        dial(f"127.0.0.1:{port}", None, None, "one", timeout_s=2)


def test_a_server_that_dies_in_the_handshake_is_dialled_again_not_taken_for_one_that_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from split import dialling

    once = iter([dialling._HungUp(), None])
    monkeypatch.setattr(dialling, "_one_handshake", lambda *_: next(once))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Gone):
            dial(f"127.0.0.1:{free.getsockname()[1]}", Credentials.of(folder, "one"), None, "one", timeout_s=2)
    assert next(once, "both were asked for") == "both were asked for"


def test_without_certificates_only_loopback_is_taken() -> None:
    for address in ("0.0.0.0:0", "192.0.2.1:5000", "[::]:0", "server.example:5000", "localhost.example:1"):
        with pytest.raises(BadInput, match="without certificates only loopback"):
            Lobby(address, None, None)
        with pytest.raises(BadInput, match=r"without certificates only loopback|port 0"):
            dial(address, None, None, "one")


def test_a_port_that_is_taken_is_not_shared() -> None:
    with Lobby("127.0.0.1:0", None, None) as lobby, pytest.raises(BadInput, match="cannot be listened on"):
        Lobby(f"127.0.0.1:{lobby.port}", None, None).start()


def test_a_second_stream_of_the_same_name_replaces_the_first(folder: Path) -> None:
    with linked(folder) as (lobby, first, old):
        second = dialled(lobby, folder, "one")
        assert lobby.connected() == ["one"]
        new = lobby.stream("one")
        assert new is not old
        second.send(PING)
        assert new.receive(5).body == PING
        with pytest.raises(Gone, match="replaced by a newer connection"):
            old.receive(5)
        with pytest.raises(Gone) as gone:
            first.receive(5)
        assert "replaced" in str(gone.value.refusal)
        new.send(wire.Finished())
        assert second.receive(5).body == wire.Finished()
        second.close()
        eventually(lambda: lobby.connected() == [])
        with pytest.raises(Gone, match="one is not connected"):
            lobby.stream("one")


def test_there_is_room_for_so_many_streams_and_no_more() -> None:
    with Lobby("127.0.0.1:0", None, None, streams=3) as lobby:
        streams = [dialled(lobby, None, name) for name in ("a", "b", "c")]
        with pytest.raises(Gone, match="not let in for now"):
            dialled(lobby, None, "d")
        streams[0].close()
        eventually(lambda: lobby.connected() == ["b", "c"])
        streams[0] = dialled(lobby, None, "d")
        assert lobby.connected() == ["b", "c", "d"]
        for stream in streams:
            stream.close()


def test_the_lobby_tells_who_comes_and_goes() -> None:
    with Lobby("127.0.0.1:0", None, ["a"]) as lobby:
        assert not lobby.wait(0.05)
        device = dialled(lobby, None, "a")
        assert lobby.wait(5)
        assert not lobby.wait(0.05)
        device.close()
        assert lobby.wait(5)
        with pytest.raises(BadInput, match="not on the server's list"):
            dialled(lobby, None, "b")


# ------------------------------------------------------------------------------------------------- what goes wrong


CHILD = """
import sys, time
from pathlib import Path
from split.certificates import Credentials
from split.transport import dial
from split.wire import Packed, Ping

folder, port = Path(sys.argv[1]), sys.argv[2]
stream = dial("127.0.0.1:" + port, Credentials.of(folder, "one"), None, "one")
for number in range(10**6):
    stream.send(Ping(number=number, sent_s=0.0), {"padding": Packed("uint8", (3_000_000,), "none", bytes(3_000_000))})
"""


@contextlib.contextmanager
def child(lobby: Lobby, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(lobby.port)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        eventually(lambda: lobby.connected() == ["one"], 20)
        yield process
    finally:
        process.kill()
        process.wait()


def drained(stream: Stream) -> None:
    """Take what still arrives; nothing for ten seconds is Silent."""
    while True:
        stream.receive(10)


def test_a_device_that_is_killed_is_gone_at_once(folder: Path) -> None:
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), None) as lobby, child(lobby, folder) as process:
        server = lobby.stream("one")
        for number in range(3):
            assert server.receive(5).body == Ping(number=number, sent_s=0.0)
        process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(Gone):
            drained(server)
        assert time.monotonic() - began < 2
        eventually(lambda: lobby.connected() == [])
        again = dialled(lobby, folder, "one")
        assert lobby.connected() == ["one"]
        again.close()


def test_a_device_that_hangs_is_found_by_keepalive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keepalive ten times as fast as the real one. The stopped process keeps its connection; only answers are missing."""
    slow = int(transport.KEEPALIVE_S * 1000)
    faster = [(key, slow // 10 if value == slow else value) for key, value in transport._OPTIONS]
    monkeypatch.setattr(transport, "_OPTIONS", faster)
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), None) as lobby, child(lobby, folder) as process:
        server = lobby.stream("one")
        server.receive(5)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(Gone):
            drained(server)
        assert time.monotonic() - began < 2.5 * transport.NOTICED_S / 10
        assert lobby.connected() == []


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([b""], "a piece of 0 bytes"),
        ([b"\x04\0\0\0"], "a piece of 4 bytes"),
        ([b"\xff\xff\xff\xff" + b"x" * 100], "a message of 4294967295 bytes, at most 65536 are taken"),
        ([b"\x10\0\0\0" + b"x" * 17], "a piece that does not fit its message"),
        ([b"\x20\0\0\0" + b"x" * 16, b"y" * 17], "a piece that does not fit its message"),
        ([b"\x20\0\0\0" + b"x" * 16, b""], "a piece that does not fit its message"),
        ([b"\x20\0\0\0" + b"x" * 32], "not one of our messages"),
        ([len(m := wire.pack(PING)[:-1]).to_bytes(4, "little") + m], "header"),
    ],
)
def test_garbage_is_refused_with_the_reason_and_ends_that_stream_alone(
    folder: Path, pieces: list[bytes], reason: str
) -> None:
    with linked(folder, "two", limits=Limits(message_bytes=1 << 16)) as (lobby, device, server):
        held = threading.Event()

        def sent() -> Iterator[bytes]:
            yield from pieces
            held.wait(10)

        channel, call = raw_call(lobby, folder, "one", sent())  # type: ignore[arg-type]
        answer = next(call)
        body, _ = wire.unpack(answer[4:], Limits())
        assert isinstance(body, wire.Refusal)
        assert reason in body.reason
        assert call.code() is grpc.StatusCode.OK
        held.set()
        channel.close()
        eventually(lambda: lobby.connected() == ["two"])
        device.send(PING)
        assert server.receive(5).body == PING


def test_a_refused_message_is_told_to_the_role_too(folder: Path) -> None:
    with Lobby("127.0.0.1:0", Credentials.of(folder, "server"), None) as lobby:
        told = threading.Event()

        def sent() -> Iterator[bytes]:
            told.wait(10)
            yield b"\x20\0\0\0" + b"x" * 32
            told.wait(10)

        channel, _ = raw_call(lobby, folder, "one", sent())  # type: ignore[arg-type]
        eventually(lambda: lobby.connected() == ["one"])
        server = lobby.stream("one")
        told.set()
        with pytest.raises(Refused, match="not one of our messages"):
            server.receive(5)
        channel.close()


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_a_piece_that_is_too_large_or_unfolds_to_be_ends_its_stream(
    folder: Path, compression: grpc.Compression | None
) -> None:
    with linked(folder, "two") as (lobby, device, server):
        channel, call = raw_call(lobby, folder, "one", [bytes(64 << 20)], compression=compression)
        assert call.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)
        channel.close()
        eventually(lambda: lobby.connected() == ["two"])
        device.send(PING)
        assert server.receive(5).body == PING


def test_noise_on_the_port_leaves_the_server_alive(folder: Path) -> None:
    with linked(folder) as (lobby, device, server):
        for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\x16\x03\x01\xff\xff", b""):
            with socket.create_connection(("127.0.0.1", lobby.port)) as stranger:
                stranger.sendall(noise)
        device.send(PING)
        assert server.receive(5).body == PING


def test_a_length_that_is_only_claimed_takes_no_memory() -> None:
    import resource

    with linked(None, limits=Limits(message_bytes=2**31 - 1)) as (_, device, server):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        device._outgoing.append(stream._Outgoing([(2**31 - 1).to_bytes(4, "little") + b"CARD"], 8))
        device.send(PING)
        with pytest.raises(Silent):
            server.receive(0.3)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


# ------------------------------------------------------------------------------------------------------ slowed links


def test_a_shaped_stream_takes_the_time_of_its_link_and_other_messages_queue_behind() -> None:
    with linked(None, device_shape=Shape(80e6, 0.03)) as (_, device, server):
        for count in (0, 200_000, 2_000_000):
            began = time.monotonic()
            device.send(PING, padding(count) if count else None)
            received = server.receive(5)
            expected = 8 * received.bytes / 80e6 + 0.03
            took = received.received_s - began
            assert expected <= took + 1e-4
            assert took <= expected * 1.03 + 0.02
        began = time.monotonic()
        for _ in range(5):
            device.send(PING, padding(500_000))
        last = [server.receive(5) for _ in range(5)][-1]
        expected = 8 * 5 * last.bytes / 80e6 + 0.03
        assert expected <= last.received_s - began + 1e-4
        assert last.received_s - began <= expected * 1.03 + 0.02


def test_a_long_delay_does_not_lower_the_rate() -> None:
    with linked(None, device_shape=Shape(1e9, 0.2)) as (_, device, server):
        began = time.monotonic()
        for _ in range(8):
            device.send(PING, padding(1000))
        for _ in range(8):
            received = server.receive(5)
        assert received.received_s - began < 0.3


def test_a_slowed_stream_is_closed_without_waiting_for_all_of_it() -> None:
    with linked(None, device_shape=Shape(8_000.0)) as (_, device, server):
        device.send(PING, padding(1_000_000))
        began = time.monotonic()
        device.close()
        assert time.monotonic() - began < 2.5 * stream.FLUSH_S
        with pytest.raises(Gone):
            server.receive(5)


# -------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("server.example", ("server.example", transport.DEFAULT_PORT)),
        ("server.example:443", ("server.example", 443)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
        ("[::1]", ("::1", transport.DEFAULT_PORT)),
        ("::1", ("::1", transport.DEFAULT_PORT)),
    ],
)
def test_addresses_are_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert host_and_port(address) == expected


@pytest.mark.parametrize("address", ["", ":5", "a:b", "a:70000", "a b:5", "http://a:5", "a:-1", "a:²"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match=r"expected HOST:PORT|expected 0 to 65535"):
        host_and_port(address)


def test_a_pong_answers_with_what_the_clock_needs(folder: Path) -> None:
    with linked(folder) as (_, device, server):
        device.send(Ping(number=7, sent_s=time.monotonic()))
        ping = server.receive(5)
        assert isinstance(ping.body, Ping)
        server.send(Pong(number=7, ping_sent_s=ping.body.sent_s, received_s=ping.received_s, sent_s=time.monotonic()))
        pong = device.receive(5)
        assert isinstance(pong.body, Pong)
        round_trip_s = (pong.received_s - pong.body.ping_sent_s) - (pong.body.sent_s - pong.body.received_s)
        assert 0 < round_trip_s < 0.5
