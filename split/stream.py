"""One side of an open link: messages in, messages out, whatever carries the pieces between.

A message (see ``split.wire``) goes out as a row of pieces: the first begins with the length of the whole as u32. So no buffer of the carrier's
is ever larger than a piece, and the copies stay in the processor's caches. What a stream holds is bounded: two messages wait to be sent,
two that were read wait to be taken, one more is being read.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from profiler.profile import printable
from split import wire
from split.shaping import Shape
from split.wire import AnyBody, Body, Limits, Packed, Refusal, Refused

PIECE_BYTES = 1 << 20
"""Measured fastest with Python's gRPC (benchmarks/transport.py): smaller ones cost a change of threads each, larger ones leave the caches."""

SHAPED_PIECE_BYTES = 1 << 17
"""On a slowed link the last piece comes on top, so it is short."""

FLUSH_S = 2.0
"""How long ``close`` waits for what is still to be sent."""

WAITING_MESSAGES = 2
_READ_AHEAD = 2
_DELAY_LINE = 64
"""Messages that may be on their way through a shaped link's delay."""

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
        flushed = self._wait_over(FLUSH_S)
        self._end(Gone("closed here"))
        self._hang_up(flushed)

    def _wait_over(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._over is not None, timeout_s)

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
