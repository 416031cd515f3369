"""The server's role: stages 1 to 5, device after device, round after round.

    turn = one device in one round:  decide cut, clock, codec -> Round -> T x (Smashed -> Gradient) -> Adapters -> on disk -> Merged

What a lost turn costs is that turn: adapters and moments go back to what the last merged turn left, and the next device is picked. A turn counts
once it is on the disk, and only then the device is told. A server that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput, MissingHardware, Role
from solver.codecs import AUTO
from solver.problem import SolveOptions
from split import wire
from split.decide import Decider, Decision, Fixed, TrainedWorkload
from split.device import LONGEST_PAUSE_S, codec_seed
from split.emulated import EmulatedLink, posed
from split.energy import Watched, Window, open_hardware, watching
from split.progress import Turn, head
from split.sessions import Session, Sessions
from split.shaping import read_link_trace
from split.stages import Measured, StepRecord

if TYPE_CHECKING:
    from torch import Tensor

    from profiler.hardware.device import Device
    from profiler.progress import Reporter
    from split.half import Half
    from split.report import Report
    from split.shaping import Shape
    from split.transport import Received

_SIDES: tuple[Role, Role] = ("device", "server")
_BUILD_S = 1800.0
"""So long a device may take to build its half and read its data."""
_LOOK_S = 1.0
_DIVERGED = 3
"""So many turns in a row whose loss is no number end the run, where no device is left that may do better."""
_RETURN_S = LONGEST_PAUSE_S + 5.0
"""So long a server that was started again waits for its devices to come back, and a run that is done for those that are away."""


@dataclass(frozen=True)
class ServerOptions:
    """What ``card-train server`` was asked for; the names are its options. ``solve`` holds those of ``card-solve``; T and the number
    of rounds are in it. ``profiles`` None: ``fixed`` holds the cut, and nothing is predicted. ``shaped``: the link is slowed to the rates by
    which each turn is decided, both ways; ``trace`` is a file of such rates over time. ``shape`` slows what the server sends by itself."""

    model: str
    output: Path
    devices: tuple[str, ...]
    solve: SolveOptions
    listen: str = "127.0.0.1:7770"
    certificates: Path | None = None
    profiles: Path | None = None
    fixed: Fixed = field(default_factory=Fixed)
    batch_size: int | None = None
    seq_len: int | None = None
    dtype: str = "float32"
    lora_rank: int = 4
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] | None = None
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer_state: str = "travel"
    overlap: bool = False
    evaluate_every: int = 0
    torch_device: str = "cpu"
    hardware: str = "auto"
    timeout_s: float = 120.0
    patience_s: float = 600.0
    shape: Shape | None = None
    shaped: bool = False
    trace: Path | None = None
    report: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run came to. Losses are means over the held-out sequences of the devices that were there, None where none was asked for."""

    output: Path
    rounds: int
    turns: int
    lost: int
    first_loss: float | None
    last_loss: float | None
    held_out_before: float | None
    held_out_after: float | None
    report: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """What ``card-train server --json`` prints."""
        return {**vars(self), "output": str(self.output)}


class Fleet:
    """Who starts the devices: by default nobody here, they dial in."""

    def listening(self, port: int) -> None:
        """The server listens: devices may dial."""

    def check(self) -> None:
        """Called now and then while the server waits. Raises BadInput or MissingHardware where a device will never come."""


class _Lost(Exception):
    """This turn is lost, for a reason that is the device's or the link's."""


class _Diverged(_Lost):
    """This turn is lost: the loss is no number."""


def _diverged(error: Exception) -> bool:
    """Whether a turn was lost because there were no numbers any more, wherever that was seen first."""
    from split.transport import Gone

    told = error.refusal if isinstance(error, Gone) else None
    return isinstance(error, _Diverged | wire.NoNumbers) or (told is not None and wire.NO_NUMBERS in told)


def _check_sound(now: tuple[dict[str, Tensor], dict[str, Tensor], int]) -> None:
    """Raises _Diverged where an adapter or a moment is no number: the device's were looked at as they came, the server's were not."""
    import torch

    for name, tensor in (*now[0].items(), *now[1].items()):
        if not bool(torch.isfinite(tensor).all()):
            raise _Diverged(f"{name} holds {wire.NO_NUMBERS}")


@dataclass
class _Trained:
    """What a turn gave."""

    losses: list[float] = field(default_factory=list)
    measured: Measured | None = None


def run_server(options: ServerOptions, say: Reporter, fleet: Fleet | None = None) -> Outcome:
    """Train ``options.solve.rounds`` rounds with the devices; started again on the same ``output`` it goes on where it was.

    Raises BadInput, and MissingHardware where no device comes for ``patience_s`` or the clock cannot be set.
    """
    from profiler.workload.model import WorkloadSpec
    from split.half import Half, Training

    spec = WorkloadSpec(
        model=options.model,
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        dtype=options.dtype,
        lora_rank=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_targets=options.lora_targets,
        seed=options.solve.seed,
    )
    if options.optimizer_state not in ("travel", "reset"):
        raise BadInput(f"--optimizer-state {options.optimizer_state}: expected travel or reset")
    if len(set(options.devices)) < len(options.devices) or not options.devices:
        raise BadInput(f"--devices {','.join(options.devices)}: expected names of devices, each once")
    if not 1 <= options.solve.local_epochs <= wire.MAX_EPOCHS:
        raise BadInput(f"--local-epochs {options.solve.local_epochs}: expected 1 to {wire.MAX_EPOCHS}")
    _check_early(options)
    trace = read_link_trace(options.trace) if options.trace is not None else None
    training = Training(options.optimizer, options.learning_rate, options.weight_decay)  # type: ignore[arg-type]
    with say.stage(f"building {spec.model} on {options.torch_device}"):
        half = Half(spec, "server", options.torch_device, training)
    settings = _settings(
        model=options.model,
        lora_rank=spec.lora_rank,
        lora_alpha=float(spec.lora_alpha),
        lora_targets=list(half.lora_targets),
        dtype=spec.dtype,
        batch_size=spec.batch,
        seq_len=spec.tokens,
        seed=options.solve.seed,
        optimizer=training.optimizer,
        learning_rate=float(training.learning_rate),
        weight_decay=float(training.weight_decay),
        optimizer_state=options.optimizer_state,
        overlap=options.overlap,
    )
    workload = TrainedWorkload(
        model=half.model_name,
        layers=half.layers,
        batch_size=spec.batch,
        seq_len=spec.tokens,
        dtype=spec.dtype,
        lora_rank=spec.lora_rank,
        lora_targets=half.lora_targets,
        optimizer=training.optimizer,
        optimizer_state=options.optimizer_state,
        overlap=options.overlap,
    )
    decider = Decider(
        options.profiles,
        posed(options.solve, trace),
        options.devices,
        workload,
        options.fixed,
        lambda cut: half.adapter_names("device", cut),
    )
    hardware = open_hardware(options.hardware)
    link = EmulatedLink(options.shaped or trace is not None, trace)
    with _Run(options, half, settings, decider, hardware, link, say, fleet or Fleet()) as run:
        return run.train()


def _settings(**figures: Any) -> wire.Settings:
    """What goes to the devices. Raises BadInput for a figure that no message can bear."""
    from pydantic import ValidationError

    try:
        return wire.Settings(**figures)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        said = first["msg"].replace("Input should be", "expected")
        raise BadInput(f"{option} {str(first['input'])[:100]}: {said}") from None


def _check_early(options: ServerOptions) -> None:
    """What would be refused later anyway, before a large model is read."""
    from profiler.codecs import codec
    from split.certificates import SERVER, Credentials
    from split.transport import check_address

    for name in (options.fixed.codec, options.solve.codec):
        if name not in (None, AUTO):
            try:
                codec(name)
            except BadInput as error:
                raise BadInput(f"--codec {str(error).removeprefix('codec ')}") from None
    credentials = None if options.certificates is None else Credentials.of(options.certificates, SERVER)
    try:
        check_address(options.listen, credentials)
    except BadInput as error:
        raise BadInput(f"--listen {error}") from None


class _Run(contextlib.ExitStack):
    """One run of the server, entered: folder locked, port open, clock held."""

    def __init__(
        self,
        options: ServerOptions,
        half: Half,
        settings: wire.Settings,
        decider: Decider,
        hardware: Device,
        link: EmulatedLink,
        say: Reporter,
        fleet: Fleet,
    ) -> None:
        super().__init__()
        self.options, self.half, self.settings, self.decider = options, half, settings, decider
        self.hardware, self.link, self.say, self.fleet = hardware, link, say, fleet
        self.diverged: list[str] = []
        """Whose turns were the last ones, as long as their losses were no numbers."""

    def __enter__(self) -> _Run:
        from split.certificates import ALLOWED, SERVER, Credentials
        from split.checkpoint import RunFolder
        from split.transport import Lobby

        super().__enter__()
        try:
            options = self.options
            self.folder = self.enter_context(RunFolder(options.output, self.half.peft_config(), self.say.note))
            self._begin_or_resume()
            self.report = self._report()
            self.clock = self._clock()
            names: Path | tuple[str, ...] = options.devices
            credentials = None
            if options.certificates is not None:
                credentials = Credentials.of(options.certificates, SERVER)
                names = options.certificates / ALLOWED
            lobby = self.enter_context(
                Lobby(options.listen, credentials, names, self._limits(), options.shape, note=self.say.note)
            )
            host = options.listen.rpartition(":")[0]
            self.say.note(f"listening on {host}:{lobby.port} for {', '.join(options.devices)}")
            welcome = wire.Welcome(run=self.state.run, settings=self.settings)
            self.sessions = self.enter_context(Sessions(lobby, welcome, self.half.fingerprint, _BUILD_S, self.say.note))
            self.fleet.listening(lobby.port)
        except BaseException:
            self.close()
            raise
        return self

    def _report(self) -> Report | None:
        if not self.options.report:
            return None
        from split.report import Report

        return Report(self.options.output / "report")

    def _begin_or_resume(self) -> None:
        """The state that the folder holds, taken over; in an empty one the run begins, and its first state is written."""
        import secrets

        from split.checkpoint import RunState

        asked = {**self.settings.model_dump(mode="json"), "local_epochs": self.options.solve.local_epochs}
        found = self.folder.latest()
        if found is None:
            self.state = RunState(run=secrets.token_hex(6), settings=asked)
            self._save(self._everything())
            return
        self.state, adapters, moments = found
        for name, value in asked.items():
            before = self.state.settings.get(name)
            if before != value:
                raise BadInput(
                    f"--output {self.options.output}: holds a run with {name} {before}, asked for {value}; give the options of that run, "
                    "or another folder"
                )
        self._put_back((adapters, moments, self.state.optimizer_steps))
        self.say.note(
            f"going on with run {self.state.run}: {self.state.turns} turns are merged, round {self.state.round} is next"
        )

    def _save(
        self, now: tuple[dict[str, Tensor], dict[str, Tensor], int], turns: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Put the run on the disk as it is ``now``, and what is to be remembered of ``turns``. When this returns it is there."""
        adapters, moments, self.state.optimizer_steps = now
        self.folder.save(self.state, adapters, moments, turns)

    def _limits(self) -> wire.Limits:
        """The largest message that is right: what crosses at the widest cut, or all adapters with both moments; and room for a header."""
        widest = max(
            sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.half.crossing(cut).values())
            for cut in self.half.cuts
        )
        labels = 8 * self.settings.batch_size * self.settings.seq_len
        adapters = 3 * sum(4 * t.numel() for t in self.half.adapters("device", self.half.layers - 1).values())
        # Codecs may be up to twice as long as what they encode.
        return wire.Limits(message_bytes=2 * max(widest, adapters) + labels + 2 * wire.HEADER_BYTES)

    def _clock(self) -> Any:
        """The clock's control, held, where the decisions ask for clocks and this machine lets them be set; else None."""
        control = self.hardware.clocks
        if not self.decider.sets_clocks:
            return None
        if control is None:
            self.say.note(
                f"note: the clock of {self.hardware.name} cannot be set here ({self.hardware.absent.reasons.get('clocks', 'no control')}): "
                "the decided clocks are noted, not set"
            )
            return None
        for note in self.enter_context(control.held()):
            self.say.note(f"note: {note}")
        return control

    # --- rounds --------------------------------------------------------------------------------------------------------

    def train(self) -> Outcome:
        """All rounds that are left."""
        options, state = self.options, self.state
        rounds = options.solve.rounds or 1
        if not state.finished:
            self._meet()
        while state.round <= rounds and not state.finished:
            trained = 0
            every = options.evaluate_every
            if every and state.next_device == 0 and (state.round - 1) % every == 0:
                found = self._held_out_everywhere(f"before round {state.round}")
                state.held_out_before = found if state.held_out_before is None else state.held_out_before
            for place in range(state.next_device, len(options.devices)):
                name = options.devices[place]
                session = self.sessions.get(name)
                if session is None:
                    self.say.note(f"round {state.round}: {name} is not there, the next device is picked")
                    state.next_device = place + 1
                    continue
                trained += self._one(session, place)
            if trained or state.trained:
                state.round, state.next_device, state.trained = state.round + 1, 0, False
                self._save(self._everything())
            else:
                state.next_device = 0
                self._wait_for_devices(everyone=False)
        if not state.finished:
            if options.evaluate_every:
                state.held_out_after = self._held_out_everywhere("after the last round")
            state.finished = True
            self._save(self._everything())
        self._tell_the_end()
        written = self.report.write() if self.report is not None else None
        return Outcome(
            output=options.output,
            rounds=state.round - 1,
            turns=state.turns,
            lost=state.lost,
            first_loss=state.first_loss,
            last_loss=state.last_loss,
            held_out_before=state.held_out_before,
            held_out_after=state.held_out_after,
            report=written,
        )

    def _meet(self) -> None:
        """Wait for the devices, all of them before the first turn; where the run goes on not for long. They dial again within LONGEST_PAUSE_S."""
        names = self.options.devices
        if self.state.turns:
            with self.say.stage(f"waiting for {', '.join(names)} to come back"):
                self.sessions.wait(names, min(_RETURN_S, self.options.patience_s), everyone=True)
        self._wait_for_devices(everyone=not self.state.turns)

    def _tell_the_end(self) -> None:
        """Tell the devices that the run is done. One that trained, and is away just now, would dial for long: it has some time to return."""
        state = self.state
        left = set(state.steps).difference(state.told) & set(self.options.devices)
        self.sessions.finish(left, min(_RETURN_S, self.options.patience_s))
        if left:
            state.told = sorted(left.union(state.told))
            self._save(self._everything())

    def _wait_for_devices(self, *, everyone: bool) -> None:
        names = self.options.devices
        end = time.monotonic() + self.options.patience_s
        with self.say.stage(f"waiting for {', '.join(names)}"):
            while True:
                left = end - time.monotonic()
                there = self.sessions.wait(names, min(max(left, 0.0), _LOOK_S), everyone=everyone)
                if there or left <= 0:
                    break
                self.fleet.check()
        if not there and not any(self.sessions.get(name) for name in names):
            raise MissingHardware(
                f"--devices {','.join(names)}: none came within {self.options.patience_s:g} s; start 'card-train device' on them, "
                "or wait longer with --patience"
            )

    def _one(self, session: Session, place: int) -> int:
        """One turn with one device, whatever becomes of it; 1 where it was merged."""
        from split.transport import Gone, Silent

        state = self.state
        before = self._everything()
        state.attempts += 1
        number, name = state.round, session.name
        try:
            decision = self._decided(session, number)
            session.ping(self.options.timeout_s)
            turn = self._train(session, decision)
            after = self._everything()
            _check_sound(after)
        except (Gone, Silent, wire.Refused, _Lost) as error:
            self._put_back(before)
            state.lost += 1
            state.next_device = place + 1
            self.sessions.drop(session, f"round {number} lost: {error}"[:300])
            self.say.note(f"round {number}: {name}: lost, the adapters stay as they were: {error}")
            if _diverged(error):
                self._count_diverged(name)
            return 0
        self.diverged = []
        row = {
            "round": number,
            "device": name,
            "attempt": state.attempts,
            "cut": decision.cut,
            "codec_up": decision.codec_up,
            "codec_down": decision.codec_down,
            "first_step": state.steps.get(name, 0),
            "losses": turn.losses,
        }
        state.steps[name] = state.steps.get(name, 0) + self.options.solve.local_epochs
        state.next_device, state.trained, state.turns = place + 1, True, state.turns + 1
        if state.first_loss is None:
            state.first_loss = turn.losses[0]
        state.last_loss = turn.losses[-1]
        self._save(after, [row])
        with contextlib.suppress(
            Gone, Silent
        ):  # it is on the disk: the device needs to know nothing of it when it comes back
            session.stream.send(wire.Merged(round=number, attempt=state.attempts), timeout_s=self.options.timeout_s)
        assert turn.measured is not None
        if self.report is not None:
            self.report.add(number, name, decision, turn.measured, turn.losses)
        self.say.note(self._told(number, name, decision, turn))
        return 1

    def _count_diverged(self, name: str) -> None:
        """One more turn ended in no numbers. Raises BadInput where it is no single device's doing: a false one must not end the run."""
        self.diverged.append(name)
        others = {n for n in self.options.devices if n in self.state.steps or self.sessions.get(n) is not None}
        if len(self.diverged) >= _DIVERGED and others <= set(self.diverged):
            raise BadInput(
                f"--learning-rate {self.options.learning_rate:g}: the loss was no number in {len(self.diverged)} turns in a row; "
                f"expected a smaller one. The adapters are those of the last merged turn ({self.state.turns} are merged)"
            ) from None

    def _decided(self, session: Session, number: int) -> Decision:
        """Cut, clock and codec of a turn, and the link as it is decided by, where it is an emulated one."""
        up, down = self.link.rates_bps()
        decision = self.decider.decide(number, session.name, uplink_bps=up, downlink_bps=down)
        return self.link.take(session.stream, decision, self.options.timeout_s)

    def _told(self, number: int, name: str, decision: Decision, turn: _Trained) -> str:
        measured = turn.measured
        assert measured is not None
        tokens = self.options.solve.local_epochs * self.settings.batch_size * self.settings.seq_len
        up, down = (
            measured.uplink_bytes + measured.adapters_up_bytes,
            measured.downlink_bytes + measured.adapters_down_bytes,
        )
        words = head(number, self.options.solve.rounds or 1, name, decision.cut, decision.codec_up, decision.codec_down)
        text = f"{words}: loss {turn.losses[0]:.4f} -> {turn.losses[-1]:.4f}, {measured.delay_s:.3f} s"
        if decision.predicted is not None:
            text += f" (predicted {decision.predicted.delay_s:.3f} s)"
        text += f", {tokens / measured.delay_s:.0f} tokens/s, {up / 1e6:.2f} MB up, {down / 1e6:.2f} MB down"
        if measured.server_energy_j is not None:
            text += f", {measured.server_energy_j:.1f} J on the server"
        return text

    # --- adapters and moments of all layers ------------------------------------------------------------------------------

    @property
    def _travels(self) -> bool:
        """Whether there are moments that outlive a turn."""
        return self.settings.optimizer == "adamw" and self.settings.optimizer_state == "travel"

    def _everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        half, cut = self.half, self.half.cuts[0]
        adapters = half.adapters("device", cut) | half.adapters("server", cut)
        if not self._travels:
            return adapters, {}, 0
        return adapters, half.moments("device", cut) | half.moments("server", cut), half.optimizer_steps("server", cut)

    def _reset(self) -> None:
        """Forget the moments of all adapters."""
        for side in _SIDES:
            self.half.reset_optimizer(side, self.half.cuts[0])

    def _put_back(self, before: tuple[dict[str, Tensor], dict[str, Tensor], int]) -> None:
        adapters, moments, steps = before
        self.half.put_adapters(adapters)
        self._reset()
        if moments:
            self.half.put_moments(moments, steps)

    # --- one turn --------------------------------------------------------------------------------------------------------

    def _begin(self, session: Session, decision: Decision, evaluate: int) -> tuple[float, int]:
        """Stages 1 and 2: split the adapters at the cut, send the device its part. When it was sent, and the bytes."""
        half, state = self.half, self.state
        half.cut_at(decision.cut)
        tensors = half.adapters("device", decision.cut)
        steps = 0
        if self._travels:
            tensors |= half.moments("device", decision.cut)
            steps = half.optimizer_steps("device", decision.cut)
        elif not evaluate:
            self._reset()
        body = wire.Round(
            round=state.round,
            attempt=state.attempts,
            cut=decision.cut,
            epochs=self.options.solve.local_epochs,
            codec_up="none" if evaluate else decision.codec_up,
            codec_down="none" if evaluate else decision.codec_down,
            evaluate=evaluate,
            first_step=state.steps.get(session.name, 0),
            optimizer_steps=steps,
        )
        packed = {name: wire.pack_tensor(tensor, "none", 0) for name, tensor in tensors.items()}
        sent_s = time.monotonic()
        return sent_s, session.stream.send(body, packed, self.options.timeout_s)

    def _train(self, session: Session, decision: Decision) -> _Trained:
        """Stages 2 to 5 with one device."""
        turn, epochs = _Trained(), self.options.solve.local_epochs
        records: list[StepRecord] = []
        windows: list[Window] = []
        up = down = 0
        with self._at_clock(decision), watching(self.hardware) as watched:
            sent_s, adapters_down = self._begin(session, decision, 0)
            with self._shown(session, decision, epochs, watched).shown() as show:
                for step in range(epochs):
                    received = session.stream.receive(self.options.timeout_s)
                    loss, record, sent = self._step(session, decision, step, received, windows)
                    records.append(record)
                    turn.losses.append(loss)
                    up, down = up + received.bytes, down + sent
                    show(step + 1, loss, up, adapters_down + down)
                last = session.stream.receive(self.options.timeout_s)
        body = self._merge(decision, last, epochs)
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

    def _shown(self, session: Session, decision: Decision, steps: int, watched: Watched | None) -> Turn:
        """This turn as it is told while it runs."""
        words = head(
            self.state.round,
            self.options.solve.rounds or 1,
            session.name,
            decision.cut,
            decision.codec_up,
            decision.codec_down,
        )
        tokens = self.settings.batch_size * self.settings.seq_len
        return Turn(self.say, words, steps, tokens, watched.watts if watched is not None else lambda: None)

    def _smashed(
        self, decision: Decision, step: int, received: Received, purpose: str
    ) -> tuple[wire.Smashed, dict[str, Tensor], Tensor]:
        """What came up, checked against what is expected just now. Raises wire.Refused."""
        import torch

        body, state = received.body, self.state
        if not isinstance(body, wire.Smashed) or body.purpose != purpose:
            raise wire.Refused(f"{body.kind}: expected the smashed data of step {step} ({purpose})")
        if (body.round, body.attempt, body.step) != (state.round, state.attempts, step):
            raise wire.Refused(
                f"step {body.round}.{body.attempt}.{body.step}, expected {state.round}.{state.attempts}.{step}: taken once only"
            )
        labels = received.tensors.get("labels")
        size = labels.shape[0] if labels is not None and purpose == "evaluate" and labels.shape else None
        if size is not None and not 1 <= size <= self.settings.batch_size:
            raise wire.Refused(f"labels of {size} sequences, expected 1 to {self.settings.batch_size}")
        expected = self.half.crossing(decision.cut, size)
        if received.tensors.keys() != {*expected, "labels"}:
            raise wire.Refused(
                f"tensors {', '.join(received.tensors)[:100]}, expected {', '.join(expected)} and labels"
            )
        codec = "none" if purpose == "evaluate" else decision.codec_up
        for name in expected:
            if received.tensors[name].codec != codec:
                raise wire.Refused(f"{name} by codec {received.tensors[name].codec}, expected {codec}")
        carried = {n: wire.unpack_tensor(received.tensors[n], shape, dtype) for n, (shape, dtype) in expected.items()}
        shape = (size or self.settings.batch_size, self.settings.seq_len)
        return body, carried, wire.unpack_tensor(received.tensors["labels"], shape, torch.int64)

    def _step(
        self, session: Session, decision: Decision, step: int, received: Received, windows: list[Window]
    ) -> tuple[float, StepRecord, int]:
        """Stages 3 and 4 on the server for one mini-batch: loss, times (the device's own are filled in later), bytes sent."""
        from split.half import Unfit

        half, state = self.half, self.state
        t0 = time.monotonic()
        smashed, carried, labels = self._smashed(decision, step, received, "train")
        t1 = time.monotonic()
        try:
            loss = half.loss(carried, labels, decision.cut)
        except Unfit as error:
            raise wire.Refused(str(error)[:300]) from None
        half.settle()
        t2 = time.monotonic()
        if not abs(loss) <= wire.MOST_LOSS:
            raise _Diverged(f"the loss of step {step} is no number, or beyond all bounds")
        gradients = half.backward()
        half.settle()
        t3 = time.monotonic()
        if not self.settings.overlap:  # Eq. 4 comes before the gradient's transmission
            half.step()
            half.settle()
        t4 = time.monotonic()
        seed = codec_seed(self.settings.seed, session.name, state.steps.get(session.name, 0) + step, up=False)
        try:
            packed = {n: wire.pack_tensor(t.cpu(), decision.codec_down, seed) for n, t in gradients.items()}
        except ValueError:  # a codec does not take it
            raise _Diverged(f"the gradient of step {step} holds {wire.NO_NUMBERS}") from None
        t5 = time.monotonic()
        sent = session.stream.send(
            wire.Gradient(
                round=state.round,
                attempt=state.attempts,
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
            self.options.timeout_s,
        )
        optimizer_s = t4 - t3
        if self.settings.overlap:  # while the gradient is on its way
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

    def _merge(self, decision: Decision, received: Received, epochs: int) -> wire.Adapters:
        """Stage 5: take the device's adapters back. Raises wire.Refused, and then nothing of them was taken."""
        from split.half import FIRST_MOMENT, SECOND_MOMENT, Unfit

        body, state, half = received.body, self.state, self.half
        if not isinstance(body, wire.Adapters) or (body.round, body.attempt) != (state.round, state.attempts):
            raise wire.Refused(f"{body.kind}: expected the adapters of round {state.round}.{state.attempts}")
        if len(body.steps) != epochs:
            raise wire.Refused(f"times of {len(body.steps)} mini-batches, expected {epochs}")
        tensors = {n: wire.unpack_tensor(p, None, None) for n, p in received.tensors.items()}
        moments = {n: t for n, t in tensors.items() if n.startswith((FIRST_MOMENT, SECOND_MOMENT))}
        adapters = {n: t for n, t in tensors.items() if n not in moments}
        names = half.adapter_names("device", decision.cut)
        if adapters.keys() != set(names):
            raise wire.Refused(f"{len(adapters)} adapters, expected the {len(names)} of layers 1..{decision.cut}")
        wanted = {m + n for n in names for m in (FIRST_MOMENT, SECOND_MOMENT)} if self._travels else set()
        if moments.keys() != wanted or (
            self._travels and body.optimizer_steps != half.optimizer_steps("server", decision.cut)
        ):
            raise wire.Refused(
                "moments: expected those of the adapters sent down, after as many steps as the server took"
            )
        try:
            half.put_adapters(adapters)
            if self._travels:
                half.put_moments(moments, body.optimizer_steps)
        except Unfit as error:
            raise wire.Refused(str(error)[:300]) from None
        return body

    @contextlib.contextmanager
    def _at_clock(self, decision: Decision) -> Iterator[None]:
        if self.clock is not None and decision.frequency_hz is not None:
            self.clock.lock(decision.frequency_hz)
        yield

    # --- held-out loss -----------------------------------------------------------------------------------------------------

    def _evaluate(self, session: Session, decision: Decision) -> float:
        """Mean loss over the sequences that the device keeps apart, uncompressed, nothing trained."""
        from split.half import Unfit

        size = self.settings.batch_size
        batches = -(-session.ready.held_out // size)
        _, down = self._begin(session, decision, batches)
        total, count, up = 0.0, 0, 0
        words = f"held-out loss, {session.name}"
        with Turn(self.say, words, batches, size * self.settings.seq_len).shown() as show:
            for step in range(batches):
                received = session.stream.receive(self.options.timeout_s)
                _, carried, labels = self._smashed(decision, step, received, "evaluate")
                try:
                    loss = self.half.loss(carried, labels, decision.cut, train=False)
                except Unfit as error:
                    raise wire.Refused(str(error)[:300]) from None
                if not abs(loss) <= wire.MOST_LOSS:
                    raise _Diverged("the held-out loss is no number, or beyond all bounds")
                total, count = total + loss * labels.shape[0], count + labels.shape[0]
                now = time.monotonic()
                down += session.stream.send(
                    wire.Gradient(
                        round=self.state.round,
                        attempt=self.state.attempts,
                        step=step,
                        loss=loss,
                        decode_s=0.0,
                        forward_s=0.0,
                        backward_s=0.0,
                        encode_s=0.0,
                        received_s=received.received_s,
                        sent_s=now,
                    ),
                    timeout_s=self.options.timeout_s,
                )
                up += received.bytes
                show(step + 1, total / count, up, down)
        return total / count

    def _held_out_everywhere(self, when: str) -> float | None:
        """Mean held-out loss over the devices that are there."""
        from split.transport import Gone, Silent

        found = []
        for name in self.options.devices:
            session = self.sessions.get(name)
            if session is None or not session.ready.held_out:
                continue
            self.state.attempts += 1
            try:
                decision = self._decided(session, max(self.state.round - 1, 1))
                found.append(self._evaluate(session, decision))
            except (Gone, Silent, wire.Refused, _Lost) as error:
                self.sessions.drop(session, f"evaluation: {error}"[:300])
                self.say.note(f"{name}: its held-out loss is missing: {error}")
        if not found:
            return None
        mean = math.fsum(found) / len(found)
        self.say.note(f"held-out loss {mean:.4f} {when} (mean of {len(found)} devices)")
        return mean
