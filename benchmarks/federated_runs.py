"""The training runs of ``benchmarks.federated``: split learning over real halves and messages, and federated averaging of adapters."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.real import descriptions, weights
from profiler.workload.text import read_text
from split import wire

if TYPE_CHECKING:
    from torch import Tensor

    from split.data import Sequences
    from split.half import Half

BATCH, TOKENS, HELD_OUT = 2, 64, 6
CUTS = (3, 15, 27)
"""A cut for each device; in the order of SPEED."""
SPEED = (0.25, 0.5, 1.0)
"""Assumed: how fast each device computes beside the core that ran this."""
SERVER_SPEED = 10.0
"""Assumed: the same of the server."""
RATES = {
    "adamw": {"split": (1e-3, 2e-3, 4e-3), "FedAvg": (4e-3, 8e-3, 1.6e-2)},
    "sgd": {"split": (0.02, 0.04, 0.08), "FedAvg": (0.08, 0.16, 0.32)},
}
"""Learning rates that are tried: so many for each method, each twice the one before."""


# ---------------------------------------------------------------------------------------------------------------- data


def sources() -> dict[str, str]:
    """Three texts that come with Python and with scikit-learn, cut to the length of the shortest."""
    library = Path(os.__file__).parent
    texts = {
        "reference": read_text(None).text,
        "datasets": descriptions().text,
        "code": (library / "argparse.py").read_text(encoding="utf-8"),
    }
    shortest = min(map(len, texts.values()))
    return {name: text[:shortest] for name, text in texts.items()}


@dataclass(frozen=True)
class Site:
    """Assumed: the rates of each device's own link, and how much faster than SPEED all devices are."""

    up_mbps: float
    down_mbps: float
    faster: float = 1.0

    def __str__(self) -> str:
        return f"{self.up_mbps:g}/{self.down_mbps:g}" + (f", devices x {self.faster:g}" if self.faster != 1 else "")


Deal = Callable[[int, int], int]
"""(device, mini-batch) -> the source whose mini-batch of that number it is. In any round all devices together have the same ones."""


def by_source(device: int, _step: int) -> int:
    """Each device has a text of its own."""
    return device


def evenly(device: int, step: int) -> int:
    """Each device has some of every text."""
    return (device + step) % len(CUTS)


# ------------------------------------------------------------------------------------------------------------ training


@dataclass
class Turn:
    """One device in one round: its bytes, with what the adapters take."""

    device: int
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass
class Curve:
    """One training run. ``held_out[r]`` are the losses by source after r rounds, where they were taken; ``turns[r]`` those of round r + 1."""

    method: str
    rate: float
    cuts: tuple[int, ...] | None = None
    codec: str = "none"
    held_out: dict[int, list[float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    turns: list[list[Turn]] = field(default_factory=list)
    adapters: list[dict[str, Tensor]] = field(default_factory=list)

    def mean(self, rounds: int) -> float:
        """Held-out loss after so many rounds."""
        return sum(self.held_out[rounds]) / len(self.held_out[rounds])

    @property
    def final(self) -> float:
        """Held-out loss at the end."""
        return self.mean(max(self.held_out))

    def megabytes(self, rounds: int) -> float:
        """All bytes of the first so many rounds, both ways."""
        return sum(t.up_bytes + t.down_bytes for turns in self.turns[:rounds] for t in turns) / 1e6

    def reached(self, loss: float) -> int:
        """Rounds until the held-out loss is at most that; it must come to that."""
        return next(r for r in sorted(self.held_out) if self.mean(r) <= loss)


class Bench:
    """The halves, built once, the data, and how long each half computed: processor seconds by (half, cut, codec)."""

    def __init__(self, steps: int, optimizer: str) -> None:
        from profiler.workload.model import WorkloadSpec
        from profiler.workload.text import tokenizer_of
        from split.data import load
        from split.half import Half, Training

        self.steps, self.optimizer = steps, optimizer
        self.training = Training(optimizer, RATES[optimizer]["split"][0])  # type: ignore[arg-type]
        self.spec = WorkloadSpec(str(weights()), batch_size=BATCH, seq_len=TOKENS)
        self.server = Half(self.spec, "server", training=self.training)
        self.whole = Half(self.spec, "whole", training=self.training)
        self.devices = [Half(self.spec, "device", training=self.training) for _ in CUTS]
        self.initial = self.whole.adapters()
        self._before: list[float] = []
        self.took: dict[tuple[str, int, str], list[float]] = {}
        tokenizer = tokenizer_of(self.spec.model)
        self.data: list[Sequences] = []
        with tempfile.TemporaryDirectory() as folder:
            for name, text in sources().items():
                path = Path(folder) / f"{name}.txt"
                path.write_text(text, encoding="utf-8")
                vocabulary = self.server.vocab_size
                self.data.append(load(path, tokenizer, TOKENS, vocab_size=vocabulary, held_out=0.1, name=name))

    @contextlib.contextmanager
    def _timed(self, half: str, cut: int, codec: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.took.setdefault((half, cut, codec), []).append(time.process_time() - began)

    def seconds(self, half: str, cut: int, codec: str = "none") -> float:
        """Processor seconds of one mini-batch on that half: the median."""
        return median(self.took[half, cut, codec])

    def _begin(self, curve: Curve) -> None:
        """Adapters as at the beginning, no moments, the learning rate; and the loss before."""
        from split.half import Training

        for half in (self.server, self.whole, *self.devices):
            half.training = Training(self.optimizer, curve.rate)  # type: ignore[arg-type]
            half._optimizer = half._new_optimizer()  # a new half would take ten seconds to build, with the same weights
        self.server.put_adapters(self.initial)
        self.whole.put_adapters(self.initial)
        self._before = self._before or self._held_out(self.whole)
        curve.held_out[0] = self._before

    def _held_out(self, half: Half) -> list[float]:
        """Loss on the sequences kept apart, by source."""
        found = []
        for data in self.data:
            losses = []
            for number, (inputs, labels) in zip(range(HELD_OUT // BATCH), data.held_out(BATCH), strict=False):
                losses.append(half.unsplit(inputs, labels, train=False))
                assert number < HELD_OUT
            found.append(sum(losses) / len(losses))
        return found

    # --- split ---------------------------------------------------------------------------------------------------------

    def split(
        self,
        rate: float,
        rounds: int,
        cuts: tuple[int, ...] = CUTS,
        *,
        codec: str = "none",
        state: str = "travel",
        deal: Deal = by_source,
        seed: int = 0,
        every_round: bool = False,
    ) -> Curve:
        """Section II of the letter, as ``split.server`` and ``split.device`` do it. ``seed``: of the mini-batches and codecs."""
        curve = Curve("split", rate, cuts, codec)
        self._begin(curve)
        for number in range(rounds):
            turns = []
            for k, (device, cut) in enumerate(zip(self.devices, cuts, strict=True)):
                turn = Turn(k)
                self._hand_over(device, cut, turn, state)
                for step in range(number * self.steps, (number + 1) * self.steps):
                    batch = self.data[deal(k, step)].batch(seed, step, BATCH)
                    curve.losses.append(self._exchange(device, cut, batch, codec, seed, step, turn))
                self._take_back(device, turn, state)
                turns.append(turn)
            curve.turns.append(turns)
            if every_round or number == rounds - 1:
                curve.held_out[number + 1] = self._held_out(self.server)
            curve.adapters.append(self.server.adapters("whole"))
        return curve

    def _hand_over(self, device: Half, cut: int, turn: Turn, state: str) -> None:
        """Stage 2: cut, adapters, moments."""
        server = self.server
        server.cut_at(cut)
        device.cut_at(cut)
        if state == "reset":
            server.reset_optimizer("device", cut)
            server.reset_optimizer("server", cut)
        moments = server.moments("device", cut) if state == "travel" else {}
        steps = server.optimizer_steps("device", cut) if moments else 0
        body = wire.Round(
            round=1,
            attempt=1,
            cut=cut,
            epochs=self.steps,
            codec_up="none",
            codec_down="none",
            evaluate=0,
            first_step=0,
            optimizer_steps=steps,
        )
        tensors, size = _sent(body, server.adapters("device", cut) | moments)
        turn.down_bytes += size
        device.put_adapters({n: t for n, t in tensors.items() if n not in moments})
        device.reset_optimizer()
        if moments:
            device.put_moments({n: tensors[n] for n in moments}, steps)

    def _take_back(self, device: Half, turn: Turn, state: str) -> None:
        """Stage 5."""
        moments = device.moments() if state == "travel" else {}
        tensors, size = _sent(_adapters_body(self.steps), device.adapters() | moments)
        turn.up_bytes += size
        self.server.put_adapters({n: t for n, t in tensors.items() if n not in moments})
        if moments:
            self.server.put_moments({n: tensors[n] for n in moments}, device.optimizer_steps())

    def _exchange(
        self,
        device: Half,
        cut: int,
        batch: tuple[Tensor, Tensor],
        codec: str,
        seed: int,
        step: int,
        turn: Turn,
    ) -> float:
        """Stages 3 and 4: one mini-batch over both halves. Returns the loss."""
        from split.device import codec_seed

        inputs, labels = batch
        key = (cut, codec)
        with self._timed("device up", *key):
            carried = device.forward(inputs, labels, cut)
            drawn = codec_seed(seed, str(turn.device), step, up=True)
            packed = {n: wire.pack_tensor(t, codec, drawn) for n, t in carried.items()}
            packed["labels"] = wire.pack_tensor(labels, "none", 0)
            smashed = wire.Smashed(
                round=1, attempt=1, step=step, purpose="train", forward_s=0.5, encode_s=0.5, sent_s=12345.678901234
            )
            up = wire.pack(smashed, packed)
        with self._timed("server", *key):
            arrived = _unpacked(up)
            targets = arrived.pop("labels")
            loss = self.server.loss(arrived, targets, cut)
            gradients = self.server.backward()
            self.server.step()
            drawn = codec_seed(seed, str(turn.device), step, up=False)
            answer = wire.Gradient(
                round=1,
                attempt=1,
                step=step,
                loss=loss,
                decode_s=0.5,
                forward_s=0.5,
                backward_s=0.5,
                encode_s=0.5,
                received_s=12345.678901234,
                sent_s=12345.678901234,
            )
            down = wire.pack(answer, {n: wire.pack_tensor(t, codec, drawn) for n, t in gradients.items()})
        with self._timed("device down", *key):
            device.backward(_unpacked(down))
            device.step()
        turn.up_bytes += len(up)
        turn.down_bytes += len(down)
        return loss

    # --- federated -----------------------------------------------------------------------------------------------------

    def fedavg(
        self, rate: float, rounds: int, *, deal: Deal = by_source, seed: int = 0, every_round: bool = False
    ) -> Curve:
        """Every device trains the whole model from the same adapters; then they are averaged."""
        curve, whole = Curve("FedAvg", rate), self.whole
        self._begin(curve)
        kept: list[tuple[dict[str, Tensor], int]] = [({}, 0)] * len(CUTS)
        common = self.initial
        for number in range(rounds):
            trained, turns = [], []
            for k in range(len(CUTS)):
                turn = Turn(k)
                body = wire.Round(
                    round=1,
                    attempt=1,
                    cut=whole.layers,
                    epochs=self.steps,
                    codec_up="none",
                    codec_down="none",
                    evaluate=0,
                    first_step=0,
                )
                tensors, turn.down_bytes = _sent(body, common)
                whole.put_adapters(tensors)
                whole.reset_optimizer()
                if kept[k][1]:
                    whole.put_moments(*kept[k])
                for step in range(number * self.steps, (number + 1) * self.steps):
                    inputs, labels = self.data[deal(k, step)].batch(seed, step, BATCH)
                    with self._timed("whole", whole.layers, "none"):
                        curve.losses.append(whole.unsplit(inputs, labels))
                        whole.backward()
                        whole.step()
                kept[k] = (whole.moments(), whole.optimizer_steps())
                tensors, turn.up_bytes = _sent(_adapters_body(self.steps), whole.adapters())
                trained.append(tensors)
                turns.append(turn)
            common = averaged(trained, [self.steps * BATCH] * len(trained))
            whole.put_adapters(common)
            curve.turns.append(turns)
            if every_round or number == rounds - 1:
                curve.held_out[number + 1] = self._held_out(whole)
            curve.adapters.append(common)
        return curve

    # --- seconds -------------------------------------------------------------------------------------------------------

    def round_seconds(self, curve: Curve, site: Site, number: int) -> float:
        """Seconds of that round (from 0)."""
        spent = []
        for turn in curve.turns[number]:
            travel = 8e-6 * (turn.up_bytes / site.up_mbps + turn.down_bytes / site.down_mbps)
            speed = SPEED[turn.device] * site.faster
            if curve.cuts is None:
                computing = self.seconds("whole", self.whole.layers) / speed
            else:
                at = (curve.cuts[turn.device], curve.codec)
                computing = (self.seconds("device up", *at) + self.seconds("device down", *at)) / speed
                computing += self.seconds("server", *at) / SERVER_SPEED
            spent.append(travel + self.steps * computing)
        return max(spent) if curve.cuts is None else sum(spent)

    def total_seconds(self, curve: Curve, site: Site, rounds: int) -> float:
        """Seconds of the first so many rounds."""
        return sum(self.round_seconds(curve, site, number) for number in range(rounds))


def _sent(body: wire.Round | wire.Adapters, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Over the wire and back: the tensors as they arrive, and the bytes of the message."""
    message = wire.pack(body, {n: wire.pack_tensor(t, "none", 0) for n, t in tensors.items()})
    return _unpacked(message), len(message)


def _unpacked(message: bytes) -> dict[str, Tensor]:
    return {n: wire.unpack_tensor(p, None, None) for n, p in wire.unpack(message, wire.Limits())[1].items()}


def _adapters_body(steps: int) -> wire.Adapters:
    times = dict.fromkeys(wire.StepTimes.model_fields, 0.123456789)
    return wire.Adapters(
        round=1,
        attempt=1,
        steps=[wire.StepTimes(**times)] * steps,
        round_received_s=12345.678901234,
        loaded_s=0.123456789,
        sent_s=12345.678901234,
    )


def averaged(adapters: list[dict[str, Tensor]], samples: list[int]) -> dict[str, Tensor]:
    """The mean of each adapter's matrices, weighted by the samples that each device trained on (McMahan et al. 2017)."""
    import torch

    shares = torch.tensor(samples, dtype=torch.float64) / sum(samples)
    return {
        name: torch.stack([a[name].double() * s for a, s in zip(adapters, shares, strict=True)]).sum(0).float()
        for name in adapters[0]
    }
