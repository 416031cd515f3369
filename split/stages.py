r"""What a round is made of: the parts that are predicted and measured, and the two clocks that they are read on.

    server clock   Round sent                      received .. sent                          Adapters received
                       \                            /          \                              /
    device clock        received | forward encode sent   ...    received | decode backward optimizer | sent
                        '---------------- a step, T times in a round ------------------------'

A time that begins and ends on one machine is read on that machine's clock. What crosses the link begins on one clock and ends on the
other: `ClockOffset` brings the two together, within a bound that it tells. The time up and down together needs no second clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

PARTS: dict[str, str] = {
    "adapters_down": "adapters",
    "device_forward": "device_forward",
    "encode": "codec",
    "uplink": "uplink",
    "decode": "codec",
    "server_forward": "server",
    "server_backward": "server",
    "server_optimizer": "server",
    "gradient_encode": "codec",
    "downlink": "downlink",
    "gradient_decode": "codec",
    "device_backward": "device_backward",
    "device_optimizer": "device_backward",
    "adapters_up": "adapters",
}
"""Part of a round -> the stage that it is told under, in the order in which they happen."""

STAGES: tuple[str, ...] = (
    "device_forward",
    "codec",
    "uplink",
    "server",
    "downlink",
    "device_backward",
    "adapters",
    "other",
)
"""Every second of a round is in one of these. ``other`` is what was measured between the parts, less what ran at the same time."""

DRIFT = 15e-6
"""How fast two clocks may part, in seconds a second (RFC 5905 assumes as much)."""

_ROUNDING_S = 1e-6
"""Differences of readings are right to this."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one mini-batch, part by part; the field ``encode_s`` is the part ``encode`` of `PARTS`."""

    device_forward_s: float
    encode_s: float
    uplink_s: float
    decode_s: float
    server_forward_s: float
    server_backward_s: float
    server_optimizer_s: float
    gradient_encode_s: float
    downlink_s: float
    gradient_decode_s: float
    device_backward_s: float
    device_optimizer_s: float


def by_stage(parts: dict[str, float]) -> dict[str, float]:
    """Seconds of every stage but ``other`` from seconds of the parts."""
    found = dict.fromkeys(STAGES[:-1], 0.0)
    for part, seconds in parts.items():
        found[PARTS[part]] += seconds
    return found


# ----------------------------------------------------------------------------------------------------------- predicted


@dataclass(frozen=True)
class Predicted:
    """A round as the profiles predict it: seconds of each part (keys of `PARTS`), joules where they are known.

    ``delay_s`` is Eq. 10 of the solver for this point, with the bytes that the messages really have, less ``hidden_s``: what runs while
    something else does, where compute and transfer overlap. ``parts`` add up to both together. ``uplink_bytes`` and ``downlink_bytes`` are
    those of the T mini-batches, ``adapters_*_bytes`` those of stages 2 and 5. ``server_energy_j`` is that of the busy server.
    """

    parts: dict[str, float]
    delay_s: float
    server_energy_j: float | None
    device_energy_j: float | None
    uplink_bytes: float
    downlink_bytes: float
    adapters_down_bytes: float
    adapters_up_bytes: float
    hidden_s: float = 0.0

    def stages(self) -> dict[str, float]:
        """Seconds of every stage. They add up to ``delay_s``; ``other`` is what overlaps, less than nothing."""
        return {**by_stage(self.parts), "other": -self.hidden_s}


# ------------------------------------------------------------------------------------------------------------ measured


class ClockOffset:
    """How far the device's clock is ahead of the server's, from pings: the one with the least round trip tells it best.

    A ping leaves the server at a and arrives there again at d, by the server's clock; the device has it from b to c, by its own. If the
    way there and the way back take (d - a) - (c - b) = r together, the device is ahead by (b - a + c - d) / 2 within r / 2, however the
    two ways share r. With age an estimate gets worse by `DRIFT`.
    """

    def __init__(self) -> None:
        self._best: tuple[float, float, float] | None = None  # offset, half of the round trip, when

    def add(self, sent_s: float, received_s: float, answered_s: float, returned_s: float) -> None:
        """A ping: ``sent_s`` and ``returned_s`` on the server's clock, ``received_s`` and ``answered_s`` on the device's.

        Readings that cannot be (back before it left) are passed over: they come from the other side.
        """
        trip = (returned_s - sent_s) - (answered_s - received_s)
        if not (trip >= -_ROUNDING_S and answered_s >= received_s and math.isfinite(trip)):
            return
        trip = max(trip, 0.0)
        offset = ((received_s - sent_s) + (answered_s - returned_s)) / 2
        bound = self.bound_s(returned_s)
        if bound is None or trip / 2 <= bound:
            self._best = (offset, trip / 2, returned_s)

    @property
    def offset_s(self) -> float | None:
        """Seconds that the device's clock is ahead; None before the first ping."""
        return None if self._best is None else self._best[0]

    def bound_s(self, now_s: float) -> float | None:
        """Within how much the offset is right at ``now_s`` of the server's clock."""
        if self._best is None:
            return None
        _, half, when = self._best
        return half + DRIFT * abs(now_s - when)

    def on_server(self, device_s: float) -> float | None:
        """A reading of the device's clock as the server's clock had it."""
        return None if self._best is None else device_s - self._best[0]


@dataclass(frozen=True)
class StepRecord:
    """One mini-batch as the messages tell it. ``sent_s`` is on the device's clock, ``received_s`` and ``answered_s`` on the server's.

    From Smashed: ``forward_s``, ``encode_s``, ``sent_s``. The server's own: from ``received_s`` (the message had arrived whole) to
    ``answered_s`` (the gradient was handed to the wire). From the device's Adapters: ``gradient_decode_s``, ``backward_s``,
    ``optimizer_s``, and ``waited_s`` from ``sent_s`` until the gradient had arrived whole.
    """

    forward_s: float
    encode_s: float
    sent_s: float
    received_s: float
    decode_s: float
    server_forward_s: float
    server_backward_s: float
    server_optimizer_s: float
    gradient_encode_s: float
    answered_s: float
    waited_s: float
    gradient_decode_s: float
    backward_s: float
    optimizer_s: float

    def times(self, clock: ClockOffset) -> StepTimes:
        """Part by part. Up and down together are right without any clock; without a ping they are shared in equal parts."""
        away = max(self.waited_s - max(self.answered_s - self.received_s, 0.0), 0.0)
        sent = clock.on_server(self.sent_s)
        up = away / 2 if sent is None else min(max(self.received_s - sent, 0.0), away)
        return StepTimes(
            device_forward_s=self.forward_s,
            encode_s=self.encode_s,
            uplink_s=up,
            decode_s=self.decode_s,
            server_forward_s=self.server_forward_s,
            server_backward_s=self.server_backward_s,
            server_optimizer_s=self.server_optimizer_s,
            gradient_encode_s=self.gradient_encode_s,
            downlink_s=away - up,
            gradient_decode_s=self.gradient_decode_s,
            device_backward_s=self.backward_s,
            device_optimizer_s=self.optimizer_s,
        )


@dataclass(frozen=True)
class Measured:
    """A round as it was. ``delay_s`` is from handing Round to the wire until Adapters had arrived whole, on the server's clock, without
    ``paused_s`` (an evaluation in between).

    ``clock_bound_s`` is within how much each of uplink, downlink, adapters down and up is told (None: no ping, shared equally).
    """

    steps: tuple[StepTimes, ...]
    delay_s: float
    adapters_down_s: float
    adapters_up_s: float
    uplink_bytes: int
    downlink_bytes: int
    adapters_down_bytes: int
    adapters_up_bytes: int
    clock_bound_s: float | None = None
    server_energy_j: float | None = None
    device_energy_j: float | None = None

    @staticmethod
    def of_round(
        records: Sequence[StepRecord],
        clock: ClockOffset,
        *,
        round_sent_s: float,
        adapters_received_s: float,
        uplink_bytes: int,
        downlink_bytes: int,
        adapters_down_bytes: int,
        adapters_up_bytes: int,
        round_received_s: float | None = None,
        adapters_sent_s: float | None = None,
        paused_s: float = 0.0,
        server_energy_j: float | None = None,
        device_energy_j: float | None = None,
    ) -> Measured:
        """From what the messages of a round tell. ``round_sent_s`` and ``adapters_received_s`` are on the server's clock.

        ``round_received_s`` and ``adapters_sent_s`` are the device's readings, where it tells them; else the first step's beginning and
        the last one's end take their place, so that unpacking the adapters counts with their transfer.
        """
        steps = tuple(record.times(clock) for record in records)
        delay = adapters_received_s - round_sent_s - paused_s
        down = up = 0.0
        if records:
            first, last = records[0], records[-1]
            begun = first.sent_s - first.encode_s - first.forward_s if round_received_s is None else round_received_s
            ended = last.sent_s + last.waited_s + last.gradient_decode_s + last.backward_s + last.optimizer_s
            ended = ended if adapters_sent_s is None else adapters_sent_s
            both = max(adapters_received_s - round_sent_s - (ended - begun), 0.0)
            at = clock.on_server(begun)
            down = both / 2 if at is None else min(max(at - round_sent_s, 0.0), both)
            up = both - down
        return Measured(
            steps=steps,
            delay_s=delay,
            adapters_down_s=down,
            adapters_up_s=up,
            uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes,
            adapters_down_bytes=adapters_down_bytes,
            adapters_up_bytes=adapters_up_bytes,
            clock_bound_s=clock.bound_s(adapters_received_s),
            server_energy_j=server_energy_j,
            device_energy_j=device_energy_j,
        )

    def parts(self) -> dict[str, float]:
        """Seconds of each part over the whole round."""
        found = {"adapters_down": self.adapters_down_s}
        for field in fields(StepTimes):
            found[field.name.removesuffix("_s")] = math.fsum(getattr(step, field.name) for step in self.steps)
        found["adapters_up"] = self.adapters_up_s
        return found

    def stages(self) -> dict[str, float]:
        """Seconds of every stage. They add up to ``delay_s``; ``other`` is negative where parts ran at the same time."""
        parts = self.parts()
        return {**by_stage(parts), "other": self.delay_s - math.fsum(parts.values())}
