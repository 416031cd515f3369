"""The link: one long-lived gRPC stream in both directions for each device, with certificates on both sides.

Devices dial out; the server waits in a ``Lobby``. A device is who its certificate says, and is let in if its name stands on the server's
list. Without certificates only loopback addresses are taken.

A message (see ``split.wire``) goes out as a row of pieces, each a gRPC message: the first begins with the length of the whole as u32. So
no buffer of gRPC's is ever larger than a piece, and the copies stay in the processor's caches. What a stream holds is bounded: two messages
wait to be sent, two that were read wait to be taken, one more is being read, and HTTP/2's window lies between.

A peer that is gone without a word (cable pulled, process stopped) is found by keepalive after at most NOTICED_S seconds, also while nothing
is being sent. What it may take to answer is a question for the roles: ``receive`` has a limit of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from profiler.profile import BadInput, printable
from split import wire
from split.certificates import Credentials, read_allowed
from split.shaping import Shape
from split.wire import AnyBody, Body, Limits, Packed, Refusal, Refused

# gRPC writes its own lines to standard error unless told not to; every fault of the link is told in one line by us. Processes are
# started by us through exec, so gRPC need not prepare for a fork.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

DEFAULT_PORT = 50770

PIECE_BYTES = 1 << 20
"""Measured fastest with Python's gRPC (benchmarks/transport.py): smaller ones cost a change of threads each, larger ones leave the caches."""

SHAPED_PIECE_BYTES = 1 << 17
"""On a slowed link the last piece comes on top, so it is short."""

KEEPALIVE_S = 10.0
NOTICED_S = 2 * KEEPALIVE_S
"""A peer that does not answer is given up after this time at the latest."""

FLUSH_S = 2.0
"""How long ``close`` waits for what is still to be sent."""

WAITING_MESSAGES = 2
_READ_AHEAD = 2
_DELAY_LINE = 64
"""Messages that may be on their way through a shaped link's delay."""

_METHOD = "/card.Split/Stream"
_NAME_KEY = "card-name"
_LENGTH_BYTES = 4


class Gone(Exception):
    """The stream has ended or broke, or could not be opened for now. ``refusal`` is what the other side gave as its reason, if it refused us."""

    def __init__(self, reason: str, refusal: str | None = None) -> None:
        super().__init__(reason)
        self.refusal = refusal


class Silent(Exception):
    """Nothing came, or nothing could be handed over, within the time. The stream is as it was."""

    def __init__(self, seconds: float, what: str = "nothing arrived") -> None:
        super().__init__(f"{what} within {seconds:g} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Received:
    """One message. ``received_s`` is when its last byte was there, on ``time.monotonic``; ``bytes`` its length on the wire."""

    body: AnyBody
    tensors: dict[str, Packed]
    received_s: float
    bytes: int


@dataclass
class _Outgoing:
    pieces: list[bytes]
    bytes: int
    arrivals_s: list[float] = field(default_factory=list)  # of the pieces, on a shaped link
    sent_s: float = 0.0  # when a shaped link is free again


class Stream:
    """One side of an open link. ``peer`` is the other side's name, ``shape`` the link's emulated rate (None: as it is)."""

    def __init__(self, peer: str, limits: Limits, shape: Shape | None) -> None:
        self.peer = peer
        self.shape = shape
        self.bytes_sent = 0
        self.bytes_received = 0
        self._limits = limits
        self._changed = threading.Condition()
        self._outgoing: deque[_Outgoing] = deque()
        self._inbox: deque[Received] = deque()
        self._farewell: Gone | None = None  # why we end it: no more is sent than what waits
        self._over: Gone | None = None
        self._refused: Refused | None = None  # told once
        self._hang_up: Callable[[bool], object] = lambda flushed: None

    @property
    def open(self) -> bool:
        """Whether it may still carry something."""
        return self._over is None and self._farewell is None

    def send(self, body: Body, tensors: Mapping[str, Packed] | None = None, timeout_s: float | None = None) -> int:
        """Hand a message to the wire, in order; its bytes. Payloads are copied before this returns.

        Waits only while two others wait. Raises Gone, Silent where ``timeout_s`` is over (the message is not sent then), ValueError for a
        message that must not be sent: too large for ``limits``, or tensors that do not belong.
        """
        data = wire.parts(body, tensors)
        length = sum(len(part) for part in data)
        if length > self._limits.message_bytes:
            raise ValueError(f"a message of {length} bytes, at most {self._limits.message_bytes} can be sent")
        shape = self.shape
        outgoing = _Outgoing(_pieces(data, length, PIECE_BYTES if shape is None else SHAPED_PIECE_BYTES), length)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                if not self.open:
                    raise self._gone()
                wait_s = self._until_room()
                if wait_s == 0:
                    break
                if deadline is not None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise Silent(timeout_s or 0.0, "no message could be handed over")
                    wait_s = left if wait_s is None else min(left, wait_s)
                self._changed.wait(wait_s)
            if shape is not None:
                outgoing.sent_s, outgoing.arrivals_s = shape.book([len(piece) for piece in outgoing.pieces])
            self._outgoing.append(outgoing)
            self._changed.notify_all()
        return length

    def receive(self, timeout_s: float | None) -> Received:
        """The next message; ``timeout_s`` None waits for as long as the stream is open.

        Raises Silent where none came in time, Gone where the stream has ended (with the other side's reason in ``refusal`` if it
        gave one), Refused where what came is no message: the other side is told, and the stream is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._inbox:
                if self._refused is not None:
                    refused, self._refused = self._refused, None
                    raise refused
                if self._over is not None:
                    raise self._gone()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Silent(timeout_s or 0.0)
                self._changed.wait(left)
            received = self._inbox.popleft()
            self._changed.notify_all()
        if isinstance(received.body, Refusal):
            reason = printable(received.body.reason)
            with self._changed:
                self._over = Gone(f"{self.peer} refused: {reason}", reason)
                self._changed.notify_all()
            raise self._gone()
        return received

    def close(self, reason: str | None = None) -> None:
        """End the stream, with a Refusal where there is a reason. What was handed over before is sent first, for at most FLUSH_S seconds."""
        self._finish(reason)
        self._end_flushed()

    def _finish(self, reason: str | None) -> None:
        """Nothing more is sent but what waits, and the reason behind it."""
        with self._changed:
            if not self.open:
                return
            if reason is not None:
                data = wire.parts(Refusal(reason=printable(" ".join(reason.split()))[: wire.LINE_CHARACTERS]))
                length = sum(len(part) for part in data)
                self._outgoing.append(_Outgoing(_pieces(data, length, PIECE_BYTES), length))
            self._farewell = Gone(reason or "closed here")
            self._changed.notify_all()

    def _end_flushed(self) -> None:
        """End, once what waits is sent; after FLUSH_S seconds without that."""
        with self._changed:
            flushed = self._changed.wait_for(lambda: self._over is not None, FLUSH_S)
        self._end(Gone("closed here"))
        self._hang_up(flushed)

    def _gone(self) -> Gone:
        over = self._over or self._farewell or Gone("closed here")
        return Gone(str(over), over.refusal)  # a fresh one: a raised exception gathers the frames that it passes

    def _until_room(self) -> float | None:
        """0: there is room. Else seconds after which to look again, None: when something changes."""
        if self.shape is None:
            return 0 if len(self._outgoing) < WAITING_MESSAGES else None
        # What has left a slowed link's sending end, and is under way for its delay, no longer waits.
        now = time.monotonic()
        waiting = [each.sent_s - now for each in self._outgoing if each.sent_s > now]
        if len(waiting) < WAITING_MESSAGES:
            return 0 if len(self._outgoing) < _DELAY_LINE else None
        return waiting[-WAITING_MESSAGES]

    def _end(self, reason: Gone) -> None:
        with self._changed:
            if self._over is None:
                self._over = self._farewell or reason
            self._changed.notify_all()

    # What gRPC's threads run.

    def _to_send(self) -> Iterator[bytes]:
        """The pieces, each at its time. gRPC asks for the next when the one before is on the wire."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outgoing or not self.open)
                if self._over is not None or not self._outgoing:
                    return
                message = self._outgoing[0]
            for number, piece in enumerate(message.pieces):
                if message.arrivals_s and not self._rested(message.arrivals_s[number]):
                    return
                yield piece
            with self._changed:
                self._outgoing.popleft()
                self.bytes_sent += message.bytes
                self._changed.notify_all()

    def _rested(self, until_s: float) -> bool:
        """Sleep until then; False where the stream ended meanwhile."""
        with self._changed:
            while self._over is None:
                left = until_s - time.monotonic()
                if left <= 0:
                    return True
                self._changed.wait_for(lambda: self._over is not None, left)
            return False

    def _read(self, pieces: Iterator[bytes], ended: Callable[[], Gone]) -> None:
        """Put messages together and read them until the stream ends; ``ended`` tells why it did."""
        whole = _Assembly(self._limits.message_bytes)
        try:
            for piece in pieces:
                message = whole.add(piece)
                if message is None:
                    continue
                arrived_s = time.monotonic()
                body, tensors = wire.unpack(message, self._limits)
                received = Received(body, tensors, arrived_s, len(message))
                with self._changed:
                    self._changed.wait_for(lambda: len(self._inbox) < _READ_AHEAD or self._over is not None)
                    self.bytes_received += len(message)
                    if self._over is not None:
                        return
                    self._inbox.append(received)
                    self._changed.notify_all()
                del message, body, tensors, received  # not held while waiting for the next
        except Refused as refused:
            with self._changed:
                self._refused = refused
            self._finish(str(refused))
            self._end_flushed()
        except MemoryError:
            self._end(Gone(f"no memory left for a message of {self.peer}"))
            self._hang_up(False)
        except Exception:  # gRPC's way to end an iteration: the other side is gone, or the call was cancelled
            self._end(ended())
        else:
            self._end(ended())


def _pieces(parts: list[bytes | memoryview], length: int, size: int) -> list[bytes]:
    """The parts behind the length of them all, cut into pieces of ``size``: each byte is copied once."""
    pieces: list[bytes] = []
    current: list[bytes | memoryview] = [length.to_bytes(_LENGTH_BYTES, "little")]
    room = size - _LENGTH_BYTES
    for part in parts:
        view = memoryview(part)
        while len(view) > room:
            current.append(view[:room])
            pieces.append(b"".join(current))
            view, current, room = view[room:], [], size
        current.append(view)
        room -= len(view)
    pieces.append(b"".join(current))
    return pieces


class _Assembly:
    """Pieces back into messages. Memory is taken as it is filled, never for a length that was only claimed."""

    def __init__(self, message_bytes: int) -> None:
        self._most = message_bytes
        self._buffer: memoryview | None = None
        self._filled = 0

    def add(self, piece: bytes) -> memoryview | None:
        """The whole message where this was its last piece. Raises Refused."""
        view = memoryview(piece)
        if self._buffer is None:
            if len(view) <= _LENGTH_BYTES:
                raise Refused(f"a piece of {len(view)} bytes, expected a message's length and its first bytes")
            length = int.from_bytes(view[:_LENGTH_BYTES], "little")
            if length > self._most:
                raise Refused(f"a message of {length} bytes, at most {self._most} are taken")
            # numpy leaves large memory untouched: the kernel gives pages as they are written.
            self._buffer, self._filled = np.empty(length, np.uint8).data, 0
            view = view[_LENGTH_BYTES:]
        end = self._filled + len(view)
        if len(view) == 0 or end > len(self._buffer):
            raise Refused("a piece that does not fit its message")
        self._buffer[self._filled : end] = view
        self._filled = end
        if end < len(self._buffer):
            return None
        message, self._buffer = self._buffer, None
        return message


# ------------------------------------------------------------------------------------------------------------ the server


class Lobby:
    """The server's side: listens at ``address`` (HOST:PORT, port 0 takes a free one) and holds one stream for each device.

    ``allowed``: the names let in, or a file of them that is read again when it changes; None: whoever has a certificate of our authority.
    A name that is taken off the list loses its stream the next time that the lobby is asked for anything. ``shape``: each stream's link is
    slowed like this one. Use it in a ``with``, or ``close`` it. Raises BadInput: an address that cannot be listened on, a missing
    certificate, no certificates off loopback.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials | None,
        allowed: Path | Collection[str] | None,
        limits: Limits | None = None,
        shape: Shape | None = None,
        streams: int = 64,
    ) -> None:
        self._host, self._port = host_and_port(address)
        self._secure = credentials is not None
        self._credentials = credentials
        self._list = _AllowList(allowed)
        self._limits = limits or Limits()
        self._shape = shape
        self._most = streams
        self._changed = threading.Condition()
        self._streams: dict[str, Stream] = {}
        self._readers: set[threading.Thread] = set()
        self._changes = self._seen = 0
        self._closed = False
        self._server: Any = None
        self._pool: Any = None
        if credentials is None and not is_loopback(self._host):
            raise BadInput(
                f"{address}: without certificates only loopback addresses (127.0.0.1) are listened on; "
                "make certificates with 'card-train certificates'"
            )

    def start(self) -> Lobby:
        """Begin to listen."""
        from concurrent.futures import ThreadPoolExecutor

        lobby = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return grpc.stream_stream_rpc_method_handler(lobby._serve) if details.method == _METHOD else None

        places = self._most + 8  # some over: a device may come back before its old stream is found dead
        self._pool = ThreadPoolExecutor(places, "card-stream")
        server = grpc.server(
            self._pool,
            handlers=(Handler(),),
            options=[*_OPTIONS, *_SERVER_OPTIONS],
            maximum_concurrent_rpcs=places,
        )
        where = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        try:
            if self._credentials is None:
                self._port = server.add_insecure_port(where)
            else:
                self._port = server.add_secure_port(where, _server_credentials(self._credentials))
        except RuntimeError:
            self._port = 0
        if self._port == 0:
            server.stop(0)
            raise BadInput(f"{where}: cannot be listened on: is another server there, is the address this machine's?")
        server.start()
        self._server = server
        return self

    @property
    def port(self) -> int:
        return self._port

    def connected(self) -> list[str]:
        """Names of the devices whose stream is open, sorted."""
        self._shut_out()
        with self._changed:
            return sorted(name for name, stream in self._streams.items() if stream.open)

    def stream(self, name: str) -> Stream:
        """The stream of that device. Raises Gone where it has none."""
        self._shut_out()
        with self._changed:
            if name not in self._streams:
                raise Gone(f"{name} is not connected")
            return self._streams[name]

    def wait(self, timeout_s: float) -> bool:
        """Wait until a device came or went since the last call of this; False where none did in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != self._seen or self._closed, timeout_s)
            changed, self._seen = self._changes != self._seen, self._changes
            return changed

    def close(self) -> None:
        """Send what waits, end every stream and stop to listen. Returns once all threads of the lobby have ended."""
        with self._changed:
            self._closed = True
            streams, readers = list(self._streams.values()), list(self._readers)
            self._changed.notify_all()
        for stream in streams:
            stream._finish(None)
        if self._server is not None:
            self._server.stop(FLUSH_S).wait()
        for stream in streams:
            stream._end(Gone("the server has stopped"))
        for reader in readers:
            reader.join(FLUSH_S)
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Lobby:
        return self if self._server is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """One stream, from first to last, in a thread of gRPC's."""
        name = self._admit(context)
        stream = Stream(name, self._limits, None if self._shape is None else self._shape.copy())
        # What was sent must not be cancelled: gRPC ends the call itself once all is through.
        stream._hang_up = lambda flushed: flushed or context.cancel()
        before: Stream | None = None

        def read() -> None:
            if before is not None:
                before.close("replaced by a newer connection of the same name")
            stream._read(requests, lambda: Gone(f"{name} closed the stream, or its connection broke"))

        reader = threading.Thread(target=read, name=f"card-read-{name}", daemon=True)
        with self._changed:
            before = self._streams.get(name)
            if self._closed or (before is None and len(self._streams) >= self._most):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server has {self._most} streams already")
            self._streams[name] = stream
            self._readers.add(reader)
            self._changes += 1
            self._changed.notify_all()
        if not context.add_callback(lambda: stream._end(Gone(f"{name}: the connection broke, or went silent"))):
            stream._end(Gone(f"{name}: gone before it was let in"))
        try:
            context.send_initial_metadata(())  # tells the device that it is let in
            reader.start()
            yield from stream._to_send()
        finally:
            stream._end(Gone(f"{name}: the stream has ended"))
            with self._changed:
                if self._streams.get(name) is stream:
                    del self._streams[name]
                self._readers.discard(reader)
                self._changes += 1
                self._changed.notify_all()

    def _admit(self, context: Any) -> str:
        """Who that is, once found to be let in; ends the call otherwise."""
        if self._secure:
            names = context.auth_context().get("x509_common_name", [])
            name = names[0].decode("utf-8", "replace") if len(names) == 1 else ""
        else:
            name = str(dict(context.invocation_metadata()).get(_NAME_KEY, ""))
        if not wire.is_name(name):
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "no name that a device could have; use a certificate of its own"
            )
        if not self._list.holds(name):
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{name!r} is not on the server's list of devices; put it into the server's {self._list.name}",
            )
        return name

    def _shut_out(self) -> None:
        with self._changed:
            gone = [s for name, s in self._streams.items() if s.open and not self._list.holds(name)]
        for stream in gone:
            stream.close("taken off the server's list of devices")


class _AllowList:
    """Who is let in. A file is read again when it has changed; one that cannot be read lets nobody in."""

    def __init__(self, allowed: Path | Collection[str] | None) -> None:
        self._path = allowed if isinstance(allowed, Path) else None
        self._names = None if allowed is None or isinstance(allowed, Path) else frozenset(allowed)
        self._stamp: tuple[int, int, int] | None = None
        self._lock = threading.Lock()
        self.name = "list" if self._path is None else self._path.name
        if self._path is not None:
            self._names = read_allowed(self._path)

    def holds(self, name: str) -> bool:
        with self._lock:
            if self._path is not None:
                with contextlib.suppress(OSError):
                    stat = self._path.stat()
                    stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    if stamp != self._stamp:
                        self._names, self._stamp = frozenset(), stamp
                        with contextlib.suppress(BadInput):
                            self._names = read_allowed(self._path)
            return self._names is None or name in self._names


# ------------------------------------------------------------------------------------------------------------ the device


def dial(
    address: str,
    credentials: Credentials | None,
    limits: Limits | None,
    name: str,
    shape: Shape | None = None,
    timeout_s: float = 10.0,
) -> Stream:
    """Open this device's stream to the server at HOST:PORT.

    Raises Gone where trying again may help (nobody listens yet, no answer in time, the server is full), BadInput where it will not:
    certificates, a name that is not on the server's list, an address off loopback without certificates.
    """
    from split.dialling import explain

    host, port = host_and_port(address)
    limits = limits or Limits()
    if port == 0:
        raise BadInput(f"{address}: port 0, expected the port that the server listens on")
    if credentials is None and not is_loopback(host):
        raise BadInput(
            f"{address}: without certificates only loopback addresses (127.0.0.1) are dialled; "
            "make certificates with 'card-train certificates' and give this device its own"
        )
    if not wire.is_name(name):
        raise BadInput(f"device name {name[:60]!r}: expected letters, digits, '.', '_', '-'")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if credentials is None:
        channel = grpc.insecure_channel(target, options=_OPTIONS)
    else:
        if credentials.name != name:
            raise BadInput(f"{credentials.certificate}: made for {credentials.name!r}, expected {name!r}")
        channel = grpc.secure_channel(target, _channel_credentials(credentials), options=_OPTIONS)
    stream = Stream("server", limits, shape)
    call = channel.stream_stream(_METHOD)(stream._to_send(), metadata=((_NAME_KEY, name),), wait_for_ready=False)
    let_in = threading.Event()

    def ended() -> Gone:
        code, said = call.code(), printable(call.details() or "")
        if code is grpc.StatusCode.OK:
            return Gone("the server closed the stream")
        return Gone(f"the connection to the server broke: {said or code}")

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            call.initial_metadata()
        let_in.set()
        stream._read(call, ended)
        channel.close()

    reader = threading.Thread(target=read, name="card-read-server", daemon=True)

    def hang_up(flushed: bool) -> None:
        call.cancel()
        channel.close()
        if threading.current_thread() is not reader:
            reader.join(FLUSH_S)

    stream._hang_up = hang_up
    reader.start()
    answered = let_in.wait(timeout_s)
    # A call that was refused has its status at hand as soon as the metadata are there.
    if answered and not call.done():
        return stream
    code, said = (call.code(), call.details()) if answered else (None, None)
    stream._end(Gone("not let in"))
    hang_up(False)
    if code is grpc.StatusCode.OK:
        raise Gone(f"{address}: the server closed the stream at once")
    raise explain(address, host, port, credentials, code, printable(said or ""), timeout_s)


def host_and_port(address: str, default: int = DEFAULT_PORT) -> tuple[str, int]:
    """``HOST``, ``HOST:PORT``, ``[IPv6]:PORT`` as host and port. Raises BadInput."""
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")) or address.endswith("]"):
        host, port = address, str(default)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not all(c.isalnum() or c in ".-_:%" for c in host) or not (port.isascii() and port.isdigit()):
        raise BadInput(f"address {address[:80]!r}: expected HOST:PORT")
    if not 0 <= int(port) <= 65535:
        raise BadInput(f"address {address[:80]!r}: port {port}, expected 0 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine is meant. A name other than localhost is not asked for: it may change its mind."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _server_credentials(credentials: Credentials) -> Any:
    credentials.check()
    pair = (credentials.key.read_bytes(), credentials.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], credentials.authority.read_bytes(), require_client_auth=True)


def _channel_credentials(credentials: Credentials) -> Any:
    credentials.check()
    return grpc.ssl_channel_credentials(
        credentials.authority.read_bytes(), credentials.key.read_bytes(), credentials.certificate.read_bytes()
    )


_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", PIECE_BYTES + 1024),
    ("grpc.max_send_message_length", PIECE_BYTES + 1024),
    # A fixed window: gRPC's own guess grows to tens of MB beside a reader that does not read. 2 MiB a round trip are 840 Mbit/s at 20 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 * PIECE_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
    # Since gRPC 1.62 an unanswered ping has a limit of its own, a minute unless told otherwise.
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_S * 1000)),
    # Only bytes as they are: a compressed piece could be a small one that unfolds.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # The server is near; a proxy for the web is no way to it. And a second dial must not inherit the first one's waiting time.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]

_SERVER_OPTIONS: list[tuple[str, Any]] = [
    # Or a second server on the same port would silently take half of the devices.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
]
