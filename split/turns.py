"""One turn on the server: stages 2 to 5 with one device, and the held-out loss, which goes the same way with nothing trained.

What a device sends is checked here against what is expected just then. Whatever does not fit loses the turn and nothing else: the caller puts
adapters and moments back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from profiler.profile import Role
from split import wire
from split.decide import Decision
from split.device import codec_seed
from split.energy import Watched, Window, watching
from split.progress import Turn, head
from split.sessions import Session
from split.stages import Measured, StepRecord

if TYPE_CHECKING:
    from torch import Tensor

    from profiler.hardware.device import Device
    from profiler.progress import Reporter
    from split.half import Half
    from split.transport import Received

_SIDES: tuple[Role, Role] = ("device", "server")


def travels(settings: wire.Settings) -> bool:
    """Whether there are moments that outlive a turn."""
    return settings.optimizer == "adamw" and settings.optimizer_state == "travel"


def reset(half: Half) -> None:
    """Forget the moments of all adapters."""
    for side in _SIDES:
        half.reset_optimizer(side, half.cuts[0])


class Lost(Exception):
    """This turn is lost, for a reason that is the device's or the link's."""


class Diverged(Lost):
    """This turn is lost: the loss is no number."""


def diverged(error: Exception) -> bool:
    """Whether a turn was lost because there were no numbers any more, wherever that was seen first."""
    from split.transport import Gone

    told = error.refusal if isinstance(error, Gone) else None
    return isinstance(error, Diverged | wire.NoNumbers) or (told is not None and wire.NO_NUMBERS in told)


def check_sound(now: tuple[dict[str, Tensor], dict[str, Tensor], int]) -> None:
    """Raises Diverged where an adapter or a moment is no number: the device's were looked at as they came, the server's were not."""
    import torch

    for name, tensor in (*now[0].items(), *now[1].items()):
        if not bool(torch.isfinite(tensor).all()):
            raise Diverged(f"{name} holds {wire.NO_NUMBERS}")


@dataclass
class Trained:
    """What a turn gave."""

    losses: list[float] = field(default_factory=list)
    measured: Measured | None = None


@dataclass(frozen=True)
class Attempt:
    """Which turn: its round, the number of this attempt in the run (never used twice), the number of the device's first mini-batch."""

    round: int
    attempt: int
    first_step: int


class Turns:
    """Takes turns with devices. ``clock`` is held by the caller, None: left alone. ``epochs`` is T, ``rounds`` those of the run."""

    def __init__(
        self,
        half: Half,
        settings: wire.Settings,
        epochs: int,
        rounds: int,
        hardware: Device,
        clock: Any,
        say: Reporter,
        timeout_s: float,
    ) -> None:
        self._half, self._settings, self._epochs, self._rounds = half, settings, epochs, rounds
        self._hardware, self._clock, self._say, self._timeout_s = hardware, clock, say, timeout_s

    def train(self, session: Session, decision: Decision, at: Attempt) -> Trained:
        """Stages 2 to 5 with one device."""
        turn, epochs = Trained(), self._epochs
        records: list[StepRecord] = []
        windows: list[Window] = []
        up = down = 0
        with self._at_clock(decision), watching(self._hardware) as watched:
            sent_s, adapters_down = self._begin(session, decision, at, 0)
            with self._shown(session, decision, at, watched).shown() as show:
                for step in range(epochs):
                    received = session.stream.receive(self._timeout_s)
                    loss, record, sent = self._step(session, decision, at, step, received, windows)
                    records.append(record)
                    turn.losses.append(loss)
                    up, down = up + received.bytes, down + sent
                    show(step + 1, loss, up, adapters_down + down)
                last = session.stream.receive(self._timeout_s)
        body = self._merge(decision, at, last)
        records = [
            replace(
                record,
                waited_s=told.waited_s,
                gradient_decode_s=told.decode_s,
                backward_s=told.backward_s,
                optimizer_s=told.optimizer_s,
            )
            for record, told in zip(records, body.steps, strict=True)
        ]
        turn.measured = Measured.of_round(
            records,
            session.clock,
            round_sent_s=sent_s,
            adapters_received_s=last.received_s,
            uplink_bytes=up,
            downlink_bytes=down,
            adapters_down_bytes=adapters_down,
            adapters_up_bytes=last.bytes,
            round_received_s=body.round_received_s,
            adapters_sent_s=body.sent_s,
            server_energy_j=watched.joules(windows) if watched is not None else None,
            device_energy_j=body.energy_j,
        )
        return turn

    def evaluate(self, session: Session, decision: Decision, at: Attempt) -> float:
        """Mean loss over the sequences that the device keeps apart, uncompressed, nothing trained."""
        from split.half import Unfit

        size = self._settings.batch_size
        batches = -(-session.ready.held_out // size)
        _, down = self._begin(session, decision, at, batches)
        total, count, up = 0.0, 0, 0
        words = f"held-out loss, {session.name}"
        with Turn(self._say, words, batches, size * self._settings.seq_len).shown() as show:
            for step in range(batches):
                received = session.stream.receive(self._timeout_s)
                _, carried, labels = self._smashed(decision, at, step, received, "evaluate")
                try:
                    loss = self._half.loss(carried, labels, decision.cut, train=False)
                except Unfit as error:
                    raise wire.Refused(str(error)[:300]) from None
                if not abs(loss) <= wire.MOST_LOSS:
                    raise Diverged("the held-out loss is no number, or beyond all bounds")
                total, count = total + loss * labels.shape[0], count + labels.shape[0]
                now = time.monotonic()
                down += session.stream.send(
                    wire.Gradient(
                        round=at.round,
                        attempt=at.attempt,
                        step=step,
                        loss=loss,
                        decode_s=0.0,
                        forward_s=0.0,
                        backward_s=0.0,
                        encode_s=0.0,
                        received_s=received.received_s,
                        sent_s=now,
                    ),
                    timeout_s=self._timeout_s,
                )
                up += received.bytes
                show(step + 1, total / count, up, down)
        return total / count

    def _begin(self, session: Session, decision: Decision, at: Attempt, evaluate: int) -> tuple[float, int]:
        """Stages 1 and 2: split the adapters at the cut, send the device its part. When it was sent, and the bytes."""
        half = self._half
        half.cut_at(decision.cut)
        tensors = half.adapters("device", decision.cut)
        steps = 0
        if travels(self._settings):
            tensors |= half.moments("device", decision.cut)
            steps = half.optimizer_steps("device", decision.cut)
        elif not evaluate:
            reset(half)
        body = wire.Round(
            round=at.round,
            attempt=at.attempt,
            cut=decision.cut,
            epochs=self._epochs,
            codec_up="none" if evaluate else decision.codec_up,
            codec_down="none" if evaluate else decision.codec_down,
            evaluate=evaluate,
            first_step=at.first_step,
            optimizer_steps=steps,
        )
        packed = {name: wire.pack_tensor(tensor, "none", 0) for name, tensor in tensors.items()}
        sent_s = time.monotonic()
        return sent_s, session.stream.send(body, packed, self._timeout_s)

    def _step(
        self, session: Session, decision: Decision, at: Attempt, step: int, received: Received, windows: list[Window]
    ) -> tuple[float, StepRecord, int]:
        """Stages 3 and 4 on the server for one mini-batch: loss, times (the device's own are filled in later), bytes sent."""
        from split.half import Unfit

        half = self._half
        t0 = time.monotonic()
        smashed, carried, labels = self._smashed(decision, at, step, received, "train")
        t1 = time.monotonic()
        try:
            loss = half.loss(carried, labels, decision.cut)
        except Unfit as error:
            raise wire.Refused(str(error)[:300]) from None
        half.settle()
        t2 = time.monotonic()
        if not abs(loss) <= wire.MOST_LOSS:
            raise Diverged(f"the loss of step {step} is no number, or beyond all bounds")
        gradients = half.backward()
        half.settle()
        t3 = time.monotonic()
        if not self._settings.overlap:  # Eq. 4 comes before the gradient's transmission
            half.step()
            half.settle()
        t4 = time.monotonic()
        seed = codec_seed(self._settings.seed, session.name, at.first_step + step, up=False)
        try:
            packed = {n: wire.pack_tensor(t.cpu(), decision.codec_down, seed) for n, t in gradients.items()}
        except ValueError:  # a codec does not take it
            raise Diverged(f"the gradient of step {step} holds {wire.NO_NUMBERS}") from None
        t5 = time.monotonic()
        sent = session.stream.send(
            wire.Gradient(
                round=at.round,
                attempt=at.attempt,
                step=step,
                loss=loss,
                decode_s=t1 - t0,
                forward_s=t2 - t1,
                backward_s=t3 - t2,
                encode_s=t5 - t4,
                received_s=received.received_s,
                sent_s=t5,
            ),
            packed,
            self._timeout_s,
        )
        optimizer_s = t4 - t3
        if self._settings.overlap:  # while the gradient is on its way
            begun = time.monotonic()
            half.step()
            half.settle()
            optimizer_s = time.monotonic() - begun
        windows.append((t1, time.monotonic()))
        record = StepRecord(
            forward_s=smashed.forward_s,
            encode_s=smashed.encode_s,
            sent_s=smashed.sent_s,
            received_s=received.received_s,
            decode_s=t1 - t0,
            server_forward_s=t2 - t1,
            server_backward_s=t3 - t2,
            server_optimizer_s=optimizer_s,
            gradient_encode_s=t5 - t4,
            answered_s=t5,
            waited_s=0.0,
            gradient_decode_s=0.0,
            backward_s=0.0,
            optimizer_s=0.0,
        )
        return loss, record, sent

    def _smashed(
        self, decision: Decision, at: Attempt, step: int, received: Received, purpose: str
    ) -> tuple[wire.Smashed, dict[str, Tensor], Tensor]:
        """What came up, checked against what is expected just now. Raises wire.Refused."""
        import torch

        body = received.body
        if not isinstance(body, wire.Smashed) or body.purpose != purpose:
            raise wire.Refused(f"{body.kind}: expected the smashed data of step {step} ({purpose})")
        if (body.round, body.attempt, body.step) != (at.round, at.attempt, step):
            raise wire.Refused(
                f"step {body.round}.{body.attempt}.{body.step}, expected {at.round}.{at.attempt}.{step}: taken once only"
            )
        labels = received.tensors.get("labels")
        size = labels.shape[0] if labels is not None and purpose == "evaluate" and labels.shape else None
        if size is not None and not 1 <= size <= self._settings.batch_size:
            raise wire.Refused(f"labels of {size} sequences, expected 1 to {self._settings.batch_size}")
        expected = self._half.crossing(decision.cut, size)
        if received.tensors.keys() != {*expected, "labels"}:
            raise wire.Refused(
                f"tensors {', '.join(received.tensors)[:100]}, expected {', '.join(expected)} and labels"
            )
        codec = "none" if purpose == "evaluate" else decision.codec_up
        for name in expected:
            if received.tensors[name].codec != codec:
                raise wire.Refused(f"{name} by codec {received.tensors[name].codec}, expected {codec}")
        carried = {n: wire.unpack_tensor(received.tensors[n], shape, dtype) for n, (shape, dtype) in expected.items()}
        shape = (size or self._settings.batch_size, self._settings.seq_len)
        return body, carried, wire.unpack_tensor(received.tensors["labels"], shape, torch.int64)

    def _merge(self, decision: Decision, at: Attempt, received: Received) -> wire.Adapters:
        """Stage 5: take the device's adapters back. Raises wire.Refused, and then nothing of them was taken."""
        from split.half import FIRST_MOMENT, SECOND_MOMENT, Unfit

        body, half = received.body, self._half
        if not isinstance(body, wire.Adapters) or (body.round, body.attempt) != (at.round, at.attempt):
            raise wire.Refused(f"{body.kind}: expected the adapters of round {at.round}.{at.attempt}")
        if len(body.steps) != self._epochs:
            raise wire.Refused(f"times of {len(body.steps)} mini-batches, expected {self._epochs}")
        tensors = {n: wire.unpack_tensor(p, None, None) for n, p in received.tensors.items()}
        moments = {n: t for n, t in tensors.items() if n.startswith((FIRST_MOMENT, SECOND_MOMENT))}
        adapters = {n: t for n, t in tensors.items() if n not in moments}
        names = half.adapter_names("device", decision.cut)
        if adapters.keys() != set(names):
            raise wire.Refused(f"{len(adapters)} adapters, expected the {len(names)} of layers 1..{decision.cut}")
        wanted = {m + n for n in names for m in (FIRST_MOMENT, SECOND_MOMENT)} if travels(self._settings) else set()
        if moments.keys() != wanted or (
            travels(self._settings) and body.optimizer_steps != half.optimizer_steps("server", decision.cut)
        ):
            raise wire.Refused(
                "moments: expected those of the adapters sent down, after as many steps as the server took"
            )
        try:
            half.put_adapters(adapters)
            if travels(self._settings):
                half.put_moments(moments, body.optimizer_steps)
        except Unfit as error:
            raise wire.Refused(str(error)[:300]) from None
        return body

    @contextlib.contextmanager
    def _at_clock(self, decision: Decision) -> Iterator[None]:
        if self._clock is not None and decision.frequency_hz is not None:
            self._clock.lock(decision.frequency_hz)
        yield

    def _shown(self, session: Session, decision: Decision, at: Attempt, watched: Watched | None) -> Turn:
        """This turn as it is told while it runs."""
        words = head(
            at.round,
            self._rounds,
            session.name,
            decision.cut,
            decision.codec_up,
            decision.codec_down,
        )
        tokens = self._settings.batch_size * self._settings.seq_len
        return Turn(self._say, words, self._epochs, tokens, watched.watts if watched is not None else lambda: None)
