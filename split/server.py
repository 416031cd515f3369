"""The server's role: stages 1 to 5, device after device, round after round.

    turn = one device in one round:  decide cut, clock, codec -> Round -> T x (Smashed -> Gradient) -> Adapters -> on disk -> Merged

What a lost turn costs is that turn: adapters and moments go back to what the last merged turn left, and the next device is picked. A turn counts
once it is on the disk, and only then the device is told. A server that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput, MissingHardware
from solver.codecs import AUTO
from solver.problem import MAX_DECISIONS, SolveOptions
from split import wire
from split.decide import Decider, Decision, Fixed, TrainedWorkload
from split.device import LONGEST_PAUSE_S
from split.emulated import EmulatedLink, posed
from split.energy import open_hardware
from split.progress import head
from split.sessions import Session, Sessions
from split.shaping import read_link_trace
from split.turns import Attempt, Lost, Trained, Turns, check_sound, diverged, reset, travels

if TYPE_CHECKING:
    from torch import Tensor

    from profiler.hardware.device import Device
    from profiler.progress import Reporter
    from split.half import Half
    from split.report import Report
    from split.shaping import Shape

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

    @property
    def rounds(self) -> int:
        """Of the whole run, those that were trained before it was stopped among them; ``solve`` may leave them open: one."""
        return 1 if self.solve.rounds is None else self.solve.rounds


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


def run_server(options: ServerOptions, say: Reporter, fleet: Fleet | None = None) -> Outcome:
    """Train ``options.rounds`` rounds with the devices; started again on the same ``output`` it goes on where it was, a finished run too
    where more rounds are asked for than it has.

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
    if not 1 <= options.rounds <= MAX_DECISIONS:
        raise BadInput(f"--rounds {options.rounds}: expected a whole number from 1 to {MAX_DECISIONS}")
    if options.evaluate_every < 0:
        raise BadInput(f"--evaluate-every {options.evaluate_every}: expected 0 (never) or a whole number of rounds")
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
    from split.half import check_torch_device
    from split.transport import check_address

    check_torch_device(options.torch_device)
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
        self.reopened = False
        """Whether the run was finished before, and goes on: its devices were told of the end, and are started anew like ourselves."""

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
            self.turns = Turns(
                self.half,
                self.settings,
                options.solve.local_epochs,
                options.rounds,
                self.hardware,
                self._clock(),
                self.say,
                options.timeout_s,
            )
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
        self._go_on()

    def _go_on(self) -> None:
        """Say where the run goes on, or that nothing is left to train. One that was finished is opened again where more rounds are asked for:
        which mini-batch is drawn follows from its number, and the learning rate is one for all, so it ends as if all had been asked for at once."""
        state, rounds = self.state, self.options.rounds
        if state.round > rounds:
            self.say.note(
                f"run {state.run} is done up to round {state.round - 1}, and --rounds {rounds} asks for no more: nothing is trained; "
                "a higher --rounds goes on with it, another --output begins a new run"
            )
            return
        if state.finished:
            self.reopened = True
            state.finished, state.held_out_after, state.told = False, None, []
        how = ", which was finished" if self.reopened else ""
        self.say.note(
            f"going on with run {state.run}{how}: {state.turns} turns are merged, round {state.round} is next"
        )
        cut = self.options.fixed.cut
        for row in deque(self.folder.history(), maxlen=1):
            if cut not in (None, row["cut"]):
                self.say.note(f"note: the turns before were cut at layer {row['cut']}, those from here on at {cut}")

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
        if not state.finished:
            self._meet()
        while state.round <= options.rounds and not state.finished:
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
        names, begins = self.options.devices, self.reopened or not self.state.turns
        if not begins:
            with self.say.stage(f"waiting for {', '.join(names)} to come back"):
                self.sessions.wait(names, min(_RETURN_S, self.options.patience_s), everyone=True)
        self._wait_for_devices(everyone=begins)

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
        there = self._wait_for(names, f"waiting for {', '.join(names)}", everyone=everyone)
        if not there and not any(self.sessions.get(name) for name in names):
            raise MissingHardware(
                f"--devices {','.join(names)}: none came within {self.options.patience_s:g} s; start 'card-train device' on them, "
                "or wait longer with --patience"
            )

    def _wait_for(self, names: tuple[str, ...], words: str, *, everyone: bool) -> bool:
        """Whether one of ``names`` (``everyone``: all of them) is there within ``patience_s``."""
        end = time.monotonic() + self.options.patience_s
        with self.say.stage(words):
            while True:
                left = end - time.monotonic()
                if self.sessions.wait(names, min(max(left, 0.0), _LOOK_S), everyone=everyone):
                    return True
                if left <= 0:
                    return False
                self.fleet.check()

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
            turn = self.turns.train(session, decision, self._attempt(name))
            after = self._everything()
            check_sound(after)
        except (Gone, Silent, wire.Refused, Lost) as error:
            self._put_back(before)
            state.lost += 1
            state.next_device = place + 1
            self.sessions.drop(session, f"round {number} lost: {error}"[:300])
            self.say.note(f"round {number}: {name}: lost, the adapters stay as they were: {error}")
            if diverged(error):
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

    def _attempt(self, name: str) -> Attempt:
        return Attempt(self.state.round, self.state.attempts, self.state.steps.get(name, 0))

    def _count_diverged(self, name: str) -> None:
        """One more turn ended in no numbers. Raises BadInput where it is no single device's doing: a false one must not end the run.

        Another device may be away just now, on its way back from a lost turn, and is waited for.
        """
        self.diverged.append(name)
        if len(self.diverged) < _DIVERGED:
            return
        others = tuple(n for n in self.options.devices if n not in self.diverged)
        if others and self._wait_for(
            others, f"waiting for {', '.join(others)}: the loss with {name} is no number", everyone=False
        ):
            return
        raise BadInput(
            f"--learning-rate {self.options.learning_rate:g}: the loss was no number in {len(self.diverged)} turns in a row; "
            f"expected a smaller one. The adapters are those of the last merged turn ({self.state.turns} are merged)"
        ) from None

    def _decided(self, session: Session, number: int) -> Decision:
        """Cut, clock and codec of a turn, and the link as it is decided by, where it is an emulated one."""
        up, down = self.link.rates_bps()
        decision = self.decider.decide(number, session.name, uplink_bps=up, downlink_bps=down)
        return self.link.take(session.stream, decision, self.options.timeout_s)

    def _told(self, number: int, name: str, decision: Decision, turn: Trained) -> str:
        measured = turn.measured
        assert measured is not None
        tokens = self.options.solve.local_epochs * self.settings.batch_size * self.settings.seq_len
        up, down = (
            measured.uplink_bytes + measured.adapters_up_bytes,
            measured.downlink_bytes + measured.adapters_down_bytes,
        )
        words = head(number, self.options.rounds, name, decision.cut, decision.codec_up, decision.codec_down)
        text = f"{words}: loss {turn.losses[0]:.4f} -> {turn.losses[-1]:.4f}, {measured.delay_s:.3f} s"
        if decision.predicted is not None:
            text += f" (predicted {decision.predicted.delay_s:.3f} s)"
        text += f", {tokens / measured.delay_s:.0f} tokens/s, {up / 1e6:.2f} MB up, {down / 1e6:.2f} MB down"
        if measured.server_energy_j is not None:
            text += f", {measured.server_energy_j:.1f} J on the server"
        return text

    # --- adapters and moments of all layers ------------------------------------------------------------------------------

    def _everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        half, cut = self.half, self.half.cuts[0]
        adapters = half.adapters("device", cut) | half.adapters("server", cut)
        if not travels(self.settings):
            return adapters, {}, 0
        return adapters, half.moments("device", cut) | half.moments("server", cut), half.optimizer_steps("server", cut)

    def _put_back(self, before: tuple[dict[str, Tensor], dict[str, Tensor], int]) -> None:
        adapters, moments, steps = before
        self.half.put_adapters(adapters)
        reset(self.half)
        if moments:
            self.half.put_moments(moments, steps)

    # --- held-out loss -----------------------------------------------------------------------------------------------------

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
                found.append(self.turns.evaluate(session, decision, self._attempt(name)))
            except (Gone, Silent, wire.Refused, Lost) as error:
                self.sessions.drop(session, f"evaluation: {error}"[:300])
                self.say.note(f"{name}: its held-out loss is missing: {error}")
        if not found:
            return None
        mean = math.fsum(found) / len(found)
        self.say.note(f"held-out loss {mean:.4f} {when} (mean of {len(found)} devices)")
        return mean
