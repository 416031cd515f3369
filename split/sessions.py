"""Who is connected and ready to train. Devices come and go while another one trains, so each is let in by a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from split import wire
from split.stages import ClockOffset
from split.stream import FLUSH_S

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from split.transport import Lobby, Stream

_HELLO_S = 20.0
_LOOK_S = 0.5
_PINGS = 5


@dataclass
class Session:
    """One device, let in: its stream, what it said of itself, and how far its clock is ahead."""

    name: str
    stream: Stream
    ready: wire.Ready
    clock: ClockOffset = field(default_factory=ClockOffset)
    round_trip_s: float | None = None
    _pings: int = 0

    def ping(self, timeout_s: float) -> None:
        """Ask for the device's clock a few times. Raises Gone, Silent, wire.Refused."""
        trips = []
        for _ in range(_PINGS):
            self._pings += 1
            sent_s = time.monotonic()
            self.stream.send(wire.Ping(number=self._pings, sent_s=sent_s), timeout_s=timeout_s)
            received = self.stream.receive(timeout_s)
            body = received.body
            if not isinstance(body, wire.Pong) or body.number != self._pings or received.tensors:
                raise wire.Refused(f"{body.kind}: expected the pong to ping {self._pings}")
            self.clock.add(sent_s, body.received_s, body.sent_s, received.received_s)
            trips.append((received.received_s - sent_s) - (body.sent_s - body.received_s))
        self.round_trip_s = max(min(trips), 0.0)


class Sessions:
    """Lets devices in while it is entered. A device that dials again takes its own place; a stream that ends leaves it."""

    def __init__(
        self, lobby: Lobby, welcome: wire.Welcome, fingerprint: str, build_s: float, note: Callable[[str], None]
    ) -> None:
        self._lobby, self._welcome, self._fingerprint = lobby, welcome, fingerprint
        self._build_s, self._note = build_s, note
        self._sessions: dict[str, Session] = {}
        self._seen: dict[str, Stream] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="sessions", daemon=True)

    def __enter__(self) -> Sessions:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join(5)

    def get(self, name: str) -> Session | None:
        """The session of a device that is connected and ready now."""
        with self._changed:
            session = self._sessions.get(name)
        if session is None or name not in self._lobby.connected():
            return None
        return session if session.stream.open else None  # else a newer connection of that device is being let in

    def drop(self, session: Session, reason: str) -> None:
        """End a session; the device may dial again."""
        with self._changed:
            if self._sessions.get(session.name) is session:
                del self._sessions[session.name]
        session.stream.close(reason)

    def wait(self, names: tuple[str, ...], timeout_s: float, *, everyone: bool) -> bool:
        """Wait until one of ``names`` is ready (``everyone``: all of them); whether it came to that."""
        end = time.monotonic() + timeout_s
        while True:
            there = [self.get(name) is not None for name in names]
            if all(there) if everyone else any(there):
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left, _LOOK_S))

    def finish(self, names: Collection[str], timeout_s: float) -> None:
        """Tell everybody who is there that the run is done, and those of ``names`` who come back within ``timeout_s``."""
        from split.transport import Gone, Silent

        end, left = time.monotonic() + timeout_s, set(names)
        while True:
            with self._changed:
                sessions = list(self._sessions.values())
                self._sessions.clear()
            for session in sessions:
                with contextlib.suppress(Gone, Silent):
                    session.stream.send(wire.Finished(), timeout_s=FLUSH_S)
                    left.discard(session.name)
            if not left or time.monotonic() > end:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._sessions, min(_LOOK_S, max(end - time.monotonic(), 0)))

    def _watch(self) -> None:
        from split.transport import Gone

        while not self._stop.is_set():
            for name in self._lobby.connected():
                try:
                    stream = self._lobby.stream(name)
                except Gone:
                    continue
                if self._seen.get(name) is not stream:
                    self._seen[name] = stream
                    threading.Thread(
                        target=self._let_in, args=(name, stream), name=f"hello {name}", daemon=True
                    ).start()
            self._lobby.wait(_LOOK_S)

    def _let_in(self, name: str, stream: Stream) -> None:
        from split.transport import Gone, Silent

        try:
            hello = stream.receive(_HELLO_S).body
            if not isinstance(hello, wire.Hello):
                raise wire.Refused(f"{hello.kind}: expected hello")
            if hello.protocol != wire.PROTOCOL:
                raise wire.Refused(
                    f"protocol {hello.protocol} of card-profile {hello.toolkit}, expected {wire.PROTOCOL}: install the same "
                    "toolkit on both sides"
                )
            if hello.device != name:
                raise wire.Refused(f"hello from {hello.device} with the certificate of {name}")
            stream.send(self._welcome, timeout_s=_HELLO_S)
            # The device builds its half and reads its data meanwhile.
            ready = stream.receive(self._build_s).body
            if not isinstance(ready, wire.Ready):
                raise wire.Refused(f"{ready.kind}: expected ready")
            if ready.fingerprint != self._fingerprint:
                raise wire.Refused(
                    "its base model is another one (architecture, LoRA settings or weights differ); give both sides the same --model"
                )
            if ready.sequences < 1:
                raise wire.Refused("it has no data to train on")
        except (Gone, Silent) as error:
            self._note(f"{name}: left while it was let in: {error}")
            stream.close(f"not let in: {error}"[:300])
            return
        except wire.Refused as error:
            self._note(f"{name}: refused: {error}")
            stream.close(str(error)[:300])
            return
        with self._changed:
            self._sessions[name] = Session(name, stream, ready)
            self._changed.notify_all()
        self._note(
            f"{name}: ready, {ready.sequences} sequences of its own, torch {ready.torch}, {ready.threads} threads"
        )
