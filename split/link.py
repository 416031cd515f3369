"""The link between two machines, measured: uplink and downlink in Mbit/s (1e6 bit), and the round trip.

One machine serves (``serve``), the other measures (``measure``). The rates come from iperf3 where both have it, else from a stream of
our own: messages one after the other for some seconds, the first part left out (a connection begins slowly), the rest cut into
equal parts; the rate is the median of the parts and the spread their interquartile range. Each rate is taken on the clock of the side at which
the messages arrive, so the two clocks need not agree. The round trip is the median over small messages on an idle link,
less what the other side took to answer: what a message of ours needs, gRPC included, not what ``ping`` says.

What counts is what arrives for us: the bytes of our messages (or of iperf3's TCP stream), without the headers below.
"""

from __future__ import annotations

import datetime
import itertools
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from profiler.profile import BadInput, Link, MissingHardware, printable
from split import iperf3
from split.certificates import ALLOWED, SERVER, Credentials
from split.iperf3 import WARM_UP_S, Method, Rate, iqr

if TYPE_CHECKING:
    from split.shaping import Shape
    from split.transport import Lobby, Received, Stream

PORT = 7771
"""Beside card-train's own, so that a link can be measured where a server runs. iperf3 takes the next one."""

SECONDS = 5.0
ROUND_TRIPS = 30
PARTS = 10
_MESSAGE_S = 0.03
_SMALLEST_BYTES, _LARGEST_BYTES = 4096, 1 << 22
_UNDER_WAY = 6
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Measured:
    """What was found. ``round_trip_iqr_s`` is over ``ROUND_TRIPS`` round trips."""

    uplink: Rate
    downlink: Rate
    round_trip_s: float
    round_trip_iqr_s: float
    method: Literal["iperf3", "stream"]
    seconds: float
    utc: str

    def link(self) -> Link:
        """The profile's block."""
        return Link(
            provenance="measured",
            uplink_mbps=self.uplink.mbps,
            downlink_mbps=self.downlink.mbps,
            round_trip_s=self.round_trip_s,
            note=self.note(),
        )

    def note(self) -> str:
        how = "iperf3, one TCP connection" if self.method == "iperf3" else "our own stream"
        return (
            f"{how}, {self.seconds:g} s each way; interquartile range up {self.uplink.iqr_mbps:.3g} Mbit/s, "
            f"down {self.downlink.iqr_mbps:.3g} Mbit/s, round trip {1e3 * self.round_trip_iqr_s:.3g} ms; {self.utc}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "uplink_mbps": self.uplink.mbps,
            "uplink_iqr_mbps": self.uplink.iqr_mbps,
            "downlink_mbps": self.downlink.mbps,
            "downlink_iqr_mbps": self.downlink.iqr_mbps,
            "round_trip_s": self.round_trip_s,
            "round_trip_iqr_s": self.round_trip_iqr_s,
            "method": self.method,
            "seconds": self.seconds,
            "utc": self.utc,
            "provenance": "measured",
        }


# ------------------------------------------------------------------------------------------------------------- measuring


def measure(
    address: str,
    credentials: Credentials | None,
    name: str,
    method: Method = "auto",
    seconds: float = SECONDS,
    shape: Shape | None = None,
) -> Measured:
    """Measure the link to the machine at HOST[:PORT] that serves, from this one's side: up is from here to there.

    ``seconds`` is how long each direction is filled, after about a second of warm-up. ``shape`` slows this side's sending end (tests).
    Raises Gone where nobody answers, BadInput for certificates and addresses, MissingHardware where iperf3 is asked for and not there.
    """
    from split.transport import dial, host_and_port

    _check(method, seconds)
    host, port = host_and_port(address, PORT)
    if method == "iperf3":
        iperf3.here()
    stream = dial(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", credentials, None, name, shape)
    try:
        trips = sorted(_round_trips(stream, ROUND_TRIPS))
        round_trip_s = statistics.median(trips)
        rates = None if method == "stream" else iperf3.rates(host, port + 1, seconds, required=method == "iperf3")
        used: Literal["iperf3", "stream"] = "stream" if rates is None else "iperf3"
        if rates is None:
            rates = (_flow(stream, "up", seconds, round_trip_s), _flow(stream, "down", seconds, round_trip_s))
    finally:
        stream.close()
    return Measured(
        uplink=rates[0],
        downlink=rates[1],
        round_trip_s=round_trip_s,
        round_trip_iqr_s=iqr(trips),
        method=used,
        seconds=seconds,
        utc=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _check(method: str, seconds: float) -> None:
    if method not in get_args(Method):
        raise BadInput(f"--method {printable(method)[:40]}: expected auto, iperf3 or stream")
    if not 0.2 <= seconds <= 600:
        raise BadInput(f"--seconds {seconds:g}: expected 0.2 to 600")


def _round_trips(stream: Stream, count: int) -> Iterator[float]:
    for number in range(count + 3):
        trip_s = _exchange(stream, number)[0]
        if number >= 3:  # the first ones find everything cold
            yield trip_s


def _exchange(stream: Stream, number: int, up_bytes: int = 0, down_bytes: int = 0) -> tuple[float, Received]:
    """One Ping and its Pong: the round trip without what the other side took in between, in seconds."""
    _send(stream, number, up_bytes, down_bytes)
    received, pong = _pong(stream, number)
    return max(0.0, received.received_s - pong.ping_sent_s - (pong.sent_s - pong.received_s)), received


def _send(stream: Stream, number: int, up_bytes: int, down_bytes: int) -> None:
    from split import wire

    padding = {} if up_bytes == 0 else {"padding": wire.Packed("uint8", (up_bytes,), "none", _NOISE.view(up_bytes))}
    stream.send(wire.Ping(number=number, sent_s=time.monotonic(), answer_bytes=down_bytes), padding, _PATIENCE_S)


def _pong(stream: Stream, number: int) -> tuple[Received, Any]:
    from split import wire
    from split.transport import Gone, Silent

    try:
        received = stream.receive(_PATIENCE_S)
    except Silent as silent:
        raise Gone(f"the other side stopped to answer: {silent}") from None
    body = received.body
    if not isinstance(body, wire.Pong) or body.number != number:
        raise Gone(f"the other side answered with {body.kind}; is 'card-profile link --serve' running there?")
    return received, body


class _Noise:
    """Bytes that no link compresses, made once."""

    def __init__(self) -> None:
        self._bytes = b""
        self._lock = threading.Lock()

    def view(self, count: int) -> memoryview:
        with self._lock:
            if len(self._bytes) < count:
                import random

                self._bytes = random.Random(1).randbytes(count)
            return memoryview(self._bytes)[:count]


_NOISE = _Noise()


def _flow(stream: Stream, direction: Literal["up", "down"], seconds: float, round_trip_s: float) -> Rate:
    """Fill one direction with messages and time their arrivals."""
    up = direction == "up"
    size = _message_bytes(stream, up, max(_MESSAGE_S, round_trip_s / 2))
    arrivals: list[
        tuple[float, int]
    ] = []  # when each message was there whole, on the clock of where it arrived; its bytes
    began = time.monotonic()
    sent = answered = 0
    while True:
        if sent - answered < _UNDER_WAY and time.monotonic() - began < WARM_UP_S + seconds:
            _send(stream, sent, size if up else 0, 0 if up else size)
            sent += 1
        elif answered < sent:
            received, pong = _pong(stream, answered)
            arrivals.append((pong.received_s, size) if up else (received.received_s, received.bytes))
            answered += 1
        else:
            return _rate(arrivals)


def _message_bytes(stream: Stream, up: bool, message_s: float) -> int:
    """A size that keeps the link busy for about that long, found with ever larger messages."""
    size = _SMALLEST_BYTES
    while True:
        alone_s = statistics.median(_exchange(stream, n)[0] for n in range(3))
        took_s = _exchange(stream, 0, size if up else 0, 0 if up else size)[0] - alone_s
        if took_s >= message_s / 2 or size >= _LARGEST_BYTES:
            return int(min(max(size * message_s / max(took_s, message_s / 64), _SMALLEST_BYTES), _LARGEST_BYTES))
        size *= 4


def _rate(arrivals: list[tuple[float, int]]) -> Rate:
    """Of what arrived behind the warm-up: the median over equal parts. Where nearly all is warm-up, over all there is."""
    behind = [a for a in arrivals if a[0] >= arrivals[0][0] + WARM_UP_S]
    kept = behind if len(behind) >= 3 else arrivals
    if len(kept) < 2 or kept[-1][0] <= kept[0][0]:
        raise BadInput("--seconds: too short for this link: not two messages arrived; expected more")
    parts = max(1, min(PARTS, (len(kept) - 1) // 4))  # of so few messages that one late arrival shows, none
    edges = [round(i * (len(kept) - 1) / parts) for i in range(parts + 1)]
    rates = []
    for a, b in itertools.pairwise(edges):
        took_s = kept[b][0] - kept[a][0]
        if took_s > 0:
            rates.append(8e-6 * sum(count for _, count in kept[a + 1 : b + 1]) / took_s)
    return Rate(statistics.median(rates), iqr(rates), len(rates))


# --------------------------------------------------------------------------------------------------------------- serving


@contextmanager
def serving(
    address: str,
    credentials: Credentials | None,
    allowed: Path | None,
    method: Method = "auto",
    shape: Shape | None = None,
) -> Iterator[Lobby]:
    """Answer whoever measures, while the body lasts. Raises as ``transport.Lobby`` does, MissingHardware where iperf3 is asked for and not there."""
    from split.transport import Lobby, host_and_port

    _check(method, 1.0)
    stop = threading.Event()
    host, _ = host_and_port(address, PORT)
    with Lobby(address, credentials, allowed, shape=shape) as lobby, iperf3.server(host, lobby.port + 1, method):
        answering = threading.Thread(target=_answer_all, args=(lobby, stop), name="card-link", daemon=True)
        answering.start()
        try:
            yield lobby
        finally:
            stop.set()
            lobby.close()
            answering.join()


def _answer_all(lobby: Lobby, stop: threading.Event) -> None:
    from split.transport import Gone

    threads: dict[Stream, threading.Thread] = {}
    while not stop.is_set():
        for name in lobby.connected():
            with suppress(Gone):
                stream = lobby.stream(name)
                if stream not in threads:
                    threads[stream] = threading.Thread(
                        target=_answer, args=(stream,), name=f"card-link-{name}", daemon=True
                    )
                    threads[stream].start()
        threads = {stream: thread for stream, thread in threads.items() if thread.is_alive()}
        lobby.wait(3600)
    for thread in threads.values():
        thread.join()


def _answer(stream: Stream) -> None:
    from split import wire
    from split.transport import Gone

    with suppress(Gone, wire.Refused):
        while True:
            received = stream.receive(None)
            ping = received.body
            if not isinstance(ping, wire.Ping):
                stream.close(
                    "only pings are answered here: this is 'card-profile link --serve', not a server that trains"
                )
                return
            tensors = {}
            if ping.answer_bytes:
                tensors["padding"] = wire.Packed("uint8", (ping.answer_bytes,), "none", _NOISE.view(ping.answer_bytes))
            pong = wire.Pong(
                number=ping.number, ping_sent_s=ping.sent_s, received_s=received.received_s, sent_s=time.monotonic()
            )
            del received
            stream.send(pong, tensors)


# --------------------------------------------------------------------------------------------------------------- command


def serve_until_stopped(listen: str | None, certificates: Path | None, method: str) -> None:
    """``card-profile link --serve``. Raises BadInput, and KeyboardInterrupt when stopped."""
    from split.transport import host_and_port

    _check(method, SECONDS)
    host, port = host_and_port(listen or ("127.0.0.1" if certificates is None else "0.0.0.0"), PORT)
    credentials = None if certificates is None else Credentials.of(certificates, SERVER)
    allowed = None if certificates is None else certificates / ALLOWED
    with serving(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}", credentials, allowed, cast(Method, method)
    ) as lobby:
        print(f"card-profile: answering on {host} port {lobby.port}; stop with Ctrl-C", file=sys.stderr)
        threading.Event().wait()


def measure_and_tell(
    to: str,
    certificates: Path | None,
    name: str | None,
    profile: Path | None,
    method: str,
    seconds: float,
    as_json: bool,
) -> None:
    """``card-profile link --to``. ``name`` None: the machine's own. Raises BadInput, MissingHardware."""
    import json

    from profiler import store
    from profiler.units import quantity
    from split.transport import Gone

    _check(method, seconds)
    name = name or socket.gethostname().split(".")[0]
    before = None if profile is None else store.load(profile)  # first: a wrong file must not cost the measurement
    credentials = None if certificates is None else Credentials.of(certificates, name)
    try:
        found = measure(to, credentials, name, cast(Method, method), seconds)
    except Gone as gone:
        raise MissingHardware(f"{gone}; start 'card-profile link --serve' there first") from None
    if before is not None and profile is not None:
        store.save(before.model_copy(update={"link": found.link()}), profile)
        print(f"card-profile: wrote the link into {profile}", file=sys.stderr)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, allow_nan=False))
        return
    for what, rate in (("uplink", found.uplink), ("downlink", found.downlink)):
        digits = 3 if rate.mbps < 100 else 0
        print(f"{what:10}  {rate.mbps:10.{digits}f} Mbit/s  (interquartile range {rate.iqr_mbps:.{digits}f})")
    print(
        f"{'round trip':10}  {quantity(found.round_trip_s, 's')}  (interquartile range {quantity(found.round_trip_iqr_s, 's')})"
    )
    print(f"{'method':10}  {found.method}")
