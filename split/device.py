"""The device's role: dial the server, build one half, and train the rounds that it is picked for.

    dial -> Hello -> Welcome (what to build) -> Ready -> [ Link | Ping -> Pong | Round -> T x (Smashed -> Gradient) -> Adapters -> Merged ]... -> Finished

A device keeps nothing between rounds but its base weights and its data: adapters and moments come with each round, and which
mini-batch is drawn follows from seed, name, round and step alone. So it may vanish at any moment and come back as if new.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler import __version__
from profiler.profile import BadInput, MissingHardware
from split import wire
from split.energy import Watched, Window, open_hardware, watching
from split.progress import Turn, head

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from torch import Tensor

    from profiler.hardware.device import Device
    from profiler.progress import Reporter
    from split.data import Sequences
    from split.half import Half
    from split.shaping import Shape
    from split.transport import Received, Stream

LONGEST_PAUSE_S = 10.0
"""A device that finds no server dials again after this time at the latest."""
_IDLE_S = 7 * 86400.0
_REFUSALS = 3
"""So often in a row a server may refuse a device that it had let in before the device gives up."""


@dataclass(frozen=True)
class DeviceOptions:
    """What ``card-train device`` was asked for; the names are its options. ``model`` None: where the server says the model is."""

    server: str
    name: str
    data: Path
    model: str | None = None
    certificates: Path | None = None
    held_out: float | Path = 0.05
    text_field: str | None = None
    torch_device: str = "cpu"
    hardware: str = "auto"
    patience_s: float = 600.0
    timeout_s: float = 120.0
    shape: Shape | None = None


def run_device(options: DeviceOptions, say: Reporter) -> int:
    """Train until the server says that the run is finished; the number of rounds that this device has trained.

    Raises BadInput where the server refuses the device (the reason is the server's), MissingHardware where no server answers for
    ``patience_s``, or torch cannot use ``torch_device``. A connection that breaks is made again.
    """
    from split.certificates import Credentials
    from split.half import check_torch_device
    from split.transport import Gone, Silent, dial, host_and_port

    for option, path in (("--data", options.data), ("--held-out", options.held_out)):
        if isinstance(path, Path) and not path.exists():
            raise BadInput(f"{option} {path}: no such file or folder")
    try:
        host_and_port(options.server)
    except BadInput as error:
        raise BadInput(f"--server: {error}") from None
    credentials = Credentials.of(options.certificates, options.name) if options.certificates is not None else None
    check_torch_device(options.torch_device)

    worker = _Worker(options, say)
    lost_s, pause_s, refused, told = time.monotonic(), 0.5, 0, ""
    while True:
        try:
            stream = dial(options.server, credentials, None, options.name, options.shape)
            try:
                worker.serve(stream)
                return worker.rounds
            except wire.NoNumbers as error:
                stream.close(str(error))
                say.note(f"training has diverged: {error}")
            except wire.Refused as error:
                stream.close(str(error))
                say.note(f"the server sent what cannot be used: {error}")
            except BadInput as error:
                stream.close(f"it gives up: {error}")
                raise
            finally:
                stream.close()
                if worker.let_in:
                    lost_s, pause_s, worker.let_in = time.monotonic(), 0.5, False
        except (Gone, Silent) as error:
            if worker.merged:
                refused, worker.merged = 0, False
            if isinstance(error, Gone) and error.refusal is not None:
                refused += 1
                if worker.trainer is None or refused >= _REFUSALS:
                    raise BadInput(f"the server at {options.server} refused {options.name}: {error.refusal}") from None
            if str(error) != told:  # a server that is still being built is dialled often
                told = str(error)
                where = "" if told.startswith(options.server) else f"{options.server}: "
                say.note(f"{where}{told.rstrip('?')}; dialling again, for {options.patience_s:g} s")
        if time.monotonic() - lost_s > options.patience_s:
            raise MissingHardware(
                f"--server {options.server}: no answer for {options.patience_s:g} s; start 'card-train server' there, "
                "check address, port and firewall, or wait longer with --patience"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


@dataclass
class _Worker:
    """Half and data, kept over connections while the run asks for the same."""

    options: DeviceOptions
    say: Reporter
    trainer: _Trainer | None = None
    rounds: int = 0
    let_in: bool = False
    merged: bool = False

    def serve(self, stream: Stream) -> None:
        """One connection, until Finished. Raises Gone, Silent, wire.Refused."""
        import torch

        stream.send(wire.Hello(protocol=wire.PROTOCOL, toolkit=__version__, device=self.options.name))
        welcome = _expect(stream, wire.Welcome, self.options.timeout_s).body
        if self.trainer is None or self.trainer.settings != welcome.settings:
            self.trainer = None  # two halves at a time may be too much
            self.trainer = self._build(welcome.settings)
        trainer = self.trainer
        stream.send(
            wire.Ready(
                fingerprint=trainer.half.fingerprint,
                sequences=len(trainer.data),
                held_out=trainer.data.held_out_count,
                threads=torch.get_num_threads(),
                torch=str(torch.__version__),
            )
        )
        self.let_in = True
        self.say.note(f"connected to {self.options.server} as {self.options.name}: run {welcome.run}")
        while True:
            # Others may train for long: a server that is gone is found by the transport, not by a clock here.
            received = stream.receive(_IDLE_S)
            body = received.body
            if isinstance(body, wire.Ping):
                now = time.monotonic()
                stream.send(
                    wire.Pong(number=body.number, ping_sent_s=body.sent_s, received_s=received.received_s, sent_s=now)
                )
            elif isinstance(body, wire.Round):
                figures = trainer.round(stream, body, received)
                if not body.evaluate:
                    self.rounds += 1
                    self.say.note(
                        f"{head(body.round, None, None, body.cut, body.codec_up, body.codec_down)}: {body.epochs} mini-batches, {figures}"
                    )
            elif isinstance(body, wire.Link):
                if self.options.shape is None:  # else this link's rates were given here
                    stream.shape = _shape(body)
            elif isinstance(body, wire.Finished):
                self.say.note("finished")
                return
            elif isinstance(body, wire.Merged):
                self.merged = True
                self.say.note(f"round {body.round}: merged")
            else:
                raise wire.Refused(f"{body.kind}: not expected between rounds")

    def _build(self, settings: wire.Settings) -> _Trainer:
        """The half and the data that the server asks for."""
        from profiler.workload.model import WorkloadSpec
        from profiler.workload.text import tokenizer_of
        from split import data
        from split.half import Half, Training

        spec = WorkloadSpec(
            model=self.options.model or settings.model,
            batch_size=settings.batch_size,
            seq_len=settings.seq_len,
            dtype=settings.dtype,
            lora_rank=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_targets=tuple(settings.lora_targets) if settings.lora_targets is not None else None,
            seed=settings.seed,
        )
        training = Training(settings.optimizer, settings.learning_rate, settings.weight_decay)
        with self.say.stage(f"building this device's half of {spec.model}"):
            half = Half(spec, "device", self.options.torch_device, training)
        with self.say.stage(f"reading {self.options.data}"):
            sequences = data.load(
                self.options.data,
                tokenizer_of(spec.model),
                settings.seq_len,
                vocab_size=half.vocab_size,
                text_field=self.options.text_field,
                held_out=self.options.held_out,
                encoder_decoder=half.encoder_decoder,
                name=self.options.name,
            )
        self.say.note(sequences.note)
        if len(sequences) < settings.batch_size:
            raise BadInput(
                f"--data {self.options.data}: {len(sequences)} sequences of {settings.seq_len} tokens to train on, a mini-batch takes "
                f"{settings.batch_size}; expected more text, or a smaller --batch-size or --seq-len on the server"
            )
        return _Trainer(self.options, settings, half, sequences, open_hardware(self.options.hardware), self.say)


def _shape(link: wire.Link) -> Shape:
    from split.shaping import Shape

    try:
        return Shape(link.uplink)
    except BadInput as error:
        raise wire.Refused(str(error)[:300]) from None


def _expect(stream: Stream, kind: type[Any], timeout_s: float) -> Any:
    received = stream.receive(timeout_s)
    if not isinstance(received.body, kind):
        raise wire.Refused(f"{received.body.kind}: expected {kind.__name__.lower()}")
    return received


@dataclass(frozen=True)
class _Trainer:
    """One half, its data and its sensors: the rounds themselves."""

    options: DeviceOptions
    settings: wire.Settings
    half: Half
    data: Sequences
    hardware: Device
    say: Reporter

    def round(self, stream: Stream, plan: wire.Round, received: Received) -> str:
        """Stages 2 to 5 on the device: take the adapters over, train T mini-batches (or evaluate), give the adapters back. The figures of
        the turn, for people."""
        half, settings = self.half, self.settings
        began_s = time.monotonic()
        self._take_over(plan, received)
        loaded_s = time.monotonic() - began_s
        times: list[wire.StepTimes] = []
        windows: list[Window] = []
        with watching(self.hardware) as watched, _prefetcher(settings.overlap) as prefetch:
            steps = plan.evaluate or plan.epochs
            ahead = prefetch(self._draw, plan, 0)
            before = (stream.bytes_sent, stream.bytes_received - received.bytes)
            with self._shown(plan, steps, watched).shown() as show:
                for step in range(steps):
                    inputs, labels = ahead()
                    if step + 1 < steps:
                        ahead = prefetch(self._draw, plan, step + 1)
                    took, loss = self._step(stream, plan, step, inputs, labels, windows)
                    times.append(took)
                    show(step + 1, loss, stream.bytes_sent - before[0], stream.bytes_received - before[1])
        if plan.evaluate:
            return show.line()
        tensors = half.adapters()
        if settings.optimizer == "adamw" and settings.optimizer_state == "travel":
            tensors |= half.moments()
        packed = {name: wire.pack_tensor(tensor, "none", 0) for name, tensor in tensors.items()}
        stream.send(
            wire.Adapters(
                round=plan.round,
                attempt=plan.attempt,
                steps=times,
                energy_j=watched.joules(windows) if watched is not None else None,
                optimizer_steps=half.optimizer_steps(),
                round_received_s=received.received_s,
                loaded_s=loaded_s,
                sent_s=time.monotonic(),
            ),
            packed,
        )
        return show.line()

    def _take_over(self, plan: wire.Round, received: Received) -> None:
        from split.half import FIRST_MOMENT, SECOND_MOMENT, Unfit

        half, settings = self.half, self.settings
        if plan.cut not in half.cuts:
            raise wire.Refused(f"cut {plan.cut}: expected one of 1..{half.layers - 1}")
        half.cut_at(plan.cut)
        tensors = {name: wire.unpack_tensor(packed, None, None) for name, packed in received.tensors.items()}
        moments = {n: t for n, t in tensors.items() if n.startswith((FIRST_MOMENT, SECOND_MOMENT))}
        adapters = {n: t for n, t in tensors.items() if n not in moments}
        if adapters.keys() != set(half.adapter_names()):
            raise wire.Refused(
                f"{len(adapters)} adapters, expected the {len(half.adapter_names())} of layers 1..{plan.cut}"
            )
        try:
            half.put_adapters(adapters)
            half.reset_optimizer()
            if settings.optimizer == "adamw" and settings.optimizer_state == "travel":
                half.put_moments(moments, plan.optimizer_steps)
            elif moments:
                raise wire.Refused("moments, which do not travel in this run")
        except Unfit as error:
            raise wire.Refused(str(error)[:300]) from None

    def _shown(self, plan: wire.Round, steps: int, watched: Watched | None) -> Turn:
        """This turn as it is told while it runs."""
        words = head(plan.round, None, None, plan.cut, plan.codec_up, plan.codec_down)
        words = "held-out loss" if plan.evaluate else words
        tokens = self.settings.batch_size * self.settings.seq_len
        return Turn(self.say, words, steps, tokens, watched.watts if watched is not None else lambda: None)

    def _draw(self, plan: wire.Round, step: int) -> tuple[Tensor, Tensor]:
        size = self.settings.batch_size
        if plan.evaluate:
            return next(itertools.islice(self.data.held_out(size), step, None))
        return self.data.batch(self.settings.seed, plan.first_step + step, size)

    def _step(
        self, stream: Stream, plan: wire.Round, step: int, inputs: Tensor, labels: Tensor, windows: list[Window]
    ) -> tuple[wire.StepTimes, float]:
        """One mini-batch: forward, smashed data up, gradient down, backward, optimizer. Its times, and the loss that the server tells."""
        from split.half import Unfit

        half, settings = self.half, self.settings
        train = not plan.evaluate
        t0 = time.monotonic()
        carried = half.forward(inputs, labels, plan.cut, train)
        half.settle()
        t1 = time.monotonic()
        seed = codec_seed(settings.seed, self.options.name, plan.first_step + step, up=True)
        try:
            packed = {name: wire.pack_tensor(tensor.cpu(), plan.codec_up, seed) for name, tensor in carried.items()}
        except ValueError:  # a codec does not take it
            raise wire.NoNumbers(f"the smashed data of step {step} holds {wire.NO_NUMBERS}") from None
        packed["labels"] = wire.pack_tensor(labels, "none", 0)
        t2 = time.monotonic()
        windows.append((t0, t2))
        stream.send(
            wire.Smashed(
                round=plan.round,
                attempt=plan.attempt,
                step=step,
                purpose="train" if train else "evaluate",
                forward_s=t1 - t0,
                encode_s=t2 - t1,
                sent_s=t2,
            ),
            packed,
        )
        received = _expect(stream, wire.Gradient, self.options.timeout_s)
        answer: wire.Gradient = received.body
        if (answer.round, answer.attempt, answer.step) != (plan.round, plan.attempt, step):
            raise wire.Refused(
                f"the gradient of step {answer.round}.{answer.attempt}.{answer.step}, expected {plan.round}.{plan.attempt}.{step}"
            )
        t3 = time.monotonic()
        expected = half.crossing(plan.cut, int(inputs.shape[0]))
        names = half.gradient_names(plan.cut) if train else ()
        if received.tensors.keys() != set(names):
            raise wire.Refused(f"gradients {', '.join(received.tensors)[:100]}, expected {', '.join(names) or 'none'}")
        gradients = {n: wire.unpack_tensor(received.tensors[n], expected[n][0], expected[n][1]) for n in names}
        t4 = time.monotonic()
        if train:
            try:
                half.backward(gradients)
            except Unfit as error:
                raise wire.Refused(str(error)[:300]) from None
            half.settle()
        t5 = time.monotonic()
        if train:
            half.step()
            half.settle()
        t6 = time.monotonic()
        windows.append((t3, t6))
        took = wire.StepTimes(
            forward_s=t1 - t0,
            encode_s=t2 - t1,
            decode_s=t4 - t3,
            backward_s=t5 - t4,
            optimizer_s=t6 - t5,
            waited_s=max(received.received_s - t2, 0.0),
        )
        return took, answer.loss


def codec_seed(seed: int, device: str, step: int, *, up: bool) -> int:
    """Seed of a codec's stochastic rounding: another one for each tensor that travels, the same when a round is taken again."""
    import hashlib

    digest = hashlib.sha256(f"{seed}/{device}/{step}/{'up' if up else 'down'}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


class _prefetcher:
    """Draws mini-batches: at once, or with ``ahead`` in a thread while the link is busy."""

    def __init__(self, ahead: bool) -> None:
        self._ahead = ahead
        self._pool: Executor | None = None

    def __enter__(self) -> Callable[..., Callable[[], tuple[Tensor, Tensor]]]:
        if self._ahead:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(1, "prefetch")
        return self._fetch

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, draw: Callable[..., tuple[Tensor, Tensor]], *which: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        if self._pool is None:
            return lambda: draw(*which)
        future: Future[tuple[Tensor, Tensor]] = self._pool.submit(draw, *which)
        return future.result
