"""The link: one long-lived gRPC stream in both directions for each device, with certificates on both sides.

Devices dial out; the server waits in a ``Lobby``. A device is who its certificate says, and is let in if its name stands on the server's
list. Without certificates only loopback addresses are taken.

Messages go as pieces (see ``split.stream``), each a gRPC message. HTTP/2's window, a few pieces, lies between the two sides' own bounds.

A peer that is gone without a word (cable pulled, process stopped) is found by keepalive after at most NOTICED_S seconds, also while nothing
is being sent. What it may take to answer is a question for the roles: ``receive`` has a limit of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from profiler.profile import BadInput, printable
from split import wire
from split.certificates import Credentials, read_allowed
from split.shaping import Shape
from split.stream import FLUSH_S, PIECE_BYTES, Gone, Received, Silent, Stream
from split.wire import Limits

# gRPC writes its own lines to standard error unless told not to; every fault of the link is told in one line by us. Processes are
# started by us through exec, so gRPC need not prepare for a fork.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

__all__ = [
    "DEFAULT_PORT",
    "NOTICED_S",
    "Gone",
    "Lobby",
    "Received",
    "Silent",
    "Stream",
    "dial",
    "host_and_port",
    "is_loopback",
]

DEFAULT_PORT = 7770

KEEPALIVE_S = 10.0
NOTICED_S = 2 * KEEPALIVE_S
"""A peer that does not answer is given up after this time at the latest."""

_MOST_TOLD = 1000
"""So many names that are turned away are told of, each once."""

_METHOD = "/card.Split/Stream"
_NAME_KEY = "card-name"
_LET_IN_KEY = "card-let-in"
"""What the server's first answer bears, before any message. Without it a call has ended, and its status tells why."""


# ------------------------------------------------------------------------------------------------------------ the server


class Lobby:
    """The server's side: listens at ``address`` (HOST:PORT, port 0 takes a free one) and holds one stream for each device.

    ``allowed``: the names let in, or a file of them that is read again when it changes; None: whoever has a certificate of our authority.
    A name that is taken off the list loses its stream the next time that the lobby is asked for anything. ``shape``: each stream's link is
    slowed like this one. ``note`` gets one line for each device that is turned away, though not for each time that it comes back; a client
    whose certificate is no good fails in the handshake, and only that side is told of it. Use it in a ``with``, or ``close`` it. Raises BadInput:
    an address that cannot be listened on, a missing certificate, no certificates off loopback.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials | None,
        allowed: Path | Collection[str] | None,
        limits: Limits | None = None,
        shape: Shape | None = None,
        streams: int = 64,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._host, self._port = host_and_port(address)
        self._secure = credentials is not None
        self._credentials = credentials
        self._list = _AllowList(allowed)
        self._limits = limits or Limits()
        self._shape = shape
        self._most = streams
        self._note = note
        self._turned_away: set[str] = set()
        self._changed = threading.Condition()
        self._streams: dict[str, Stream] = {}
        self._readers: set[threading.Thread] = set()
        self._changes = self._seen = 0
        self._closed = False
        self._server: Any = None
        self._threads = _Threads()
        check_address(address, credentials)

    def start(self) -> Lobby:
        """Begin to listen."""
        lobby = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return grpc.stream_stream_rpc_method_handler(lobby._serve) if details.method == _METHOD else None

        places = self._most + 8  # some over: a device may come back before its old stream is found dead
        server = grpc.server(
            self._threads,
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
            raise BadInput(
                f"{where}: cannot be listened on: is another server there, is the address this machine's? Give another with --listen"
            )
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
            if reader.ident is not None:  # else its stream ended before it was let in
                reader.join(FLUSH_S)
        self._threads.shutdown()

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
            context.send_initial_metadata(((_LET_IN_KEY, "1"),))
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
            self._tell_once(name)
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{name!r} is not on the server's list of devices; put it into the server's {self._list.name}",
            )
        return name

    def _tell_once(self, name: str) -> None:
        with self._changed:
            if name in self._turned_away or len(self._turned_away) >= _MOST_TOLD:
                return
            self._turned_away.add(name)
        self._note(f"{name}: not let in: it is not on the list of devices ({self._list.name})")

    def _shut_out(self) -> None:
        with self._changed:
            gone = [s for name, s in self._streams.items() if s.open and not self._list.holds(name)]
        for stream in gone:
            stream._finish("taken off the server's list of devices")  # from here on it is not open any more
            # A device that does not read must not hold up whoever asked.
            threading.Thread(target=stream._end_flushed, name=f"card-out-{stream.peer}", daemon=True).start()


class _Threads(Executor):
    """A thread for each call, while it lasts. They are daemons: a process that forgot to close its lobby must still end."""

    def __init__(self) -> None:
        self._running: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # gRPC asks the future
                future.set_exception(error)
            finally:
                self._running.discard(thread)

        thread = threading.Thread(target=run, name="card-stream", daemon=True)
        self._running.add(thread)
        thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for thread in list(self._running):
            thread.join(FLUSH_S)


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
                try:
                    stat = self._path.stat()
                    stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    if stamp != self._stamp:
                        self._names, self._stamp = read_allowed(self._path), stamp
                except (OSError, BadInput):
                    self._names, self._stamp = frozenset(), None
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
    let_in: list[bool] = []
    answered = threading.Event()

    def ended() -> Gone:
        code, said = call.code(), printable(call.details() or "")
        if code is grpc.StatusCode.OK:
            return Gone("the server closed the stream")
        return Gone(f"the connection to the server broke: {said or code}")

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            if _LET_IN_KEY in dict(call.initial_metadata()):
                let_in.append(True)
        answered.set()
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
    in_time = answered.wait(timeout_s)
    if let_in:
        return stream
    if in_time:  # a call that was not has its status any moment now
        stream._wait_over(FLUSH_S)
    code, said = (call.code(), call.details()) if call.done() else (None, None)
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


def check_address(address: str, credentials: Credentials | None) -> None:
    """Raises BadInput where that address would not be listened on: it is none, or not loopback and there are no certificates."""
    host, _ = host_and_port(address)
    if credentials is None and not is_loopback(host):
        raise BadInput(
            f"{address}: without certificates only loopback addresses (127.0.0.1) are listened on; "
            "make certificates with 'card-train certificates'"
        )


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
    # In newer releases of gRPC an unanswered ping has this limit instead: a minute unless told otherwise.
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
