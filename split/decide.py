"""Round by round: cut, server clock and codec from the solver, and the seconds and joules that the profiles predict for that round.

The fleet is posed once. A call then decides one place: this device, at the rates of this round (of the trace, or those that the stream has
measured lately). The cost model is the solver's, with the bytes that the messages really have: labels, headers, and AdamW's moments where
they travel. So what is predicted of a round is what `CostModel.at` gives for it, told part by part:

    device_compute_s   forward, backward and optimizer, shared as the profile's own times are
    uplink_s           encoding (device), the link, decoding (server);   downlink_s   the same the other way round
    adapters_s         stage 2 down, stage 5 up
    server_compute_s   forward, backward and optimizer at the clock that was decided
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from profiler.profile import BadInput, Link, Profile
from profiler.store import load_fleet
from solver.assumptions import Assumption, assumed, distinct
from solver.channel import Rates, channel_of, rates
from solver.clocktimes import DIRECTIONS, operating_hz, timed_hz
from solver.codecs import AUTO, NONE
from solver.costs import CostModel, Floats, Places, ServerPower, device_w, on_the_device, on_the_server
from solver.methods import DECIDE_BY_PROFILE, Task, choose
from solver.problem import SolveOptions, pose
from split import wire
from split.stages import Predicted


@dataclass(frozen=True)
class TrainedWorkload:
    """What is trained, as far as a profile must have been taken of the same. ``optimizer`` is sgd or adamw, ``optimizer_state`` travel
    or reset; ``overlap`` as in the run's settings."""

    model: str
    layers: int
    batch_size: int
    seq_len: int
    dtype: str
    lora_rank: int
    lora_targets: tuple[str, ...]
    optimizer: str = "sgd"
    optimizer_state: str = "travel"
    overlap: bool = False

    @property
    def moments_travel(self) -> bool:
        """Whether AdamW's two moments go with every adapter."""
        return self.optimizer == "adamw" and self.optimizer_state == "travel"


@dataclass(frozen=True)
class Fixed:
    """What the user decided instead of the solver; None: the solver decides."""

    cut: int | None = None
    frequency_hz: float | None = None
    codec: str | None = None


@dataclass(frozen=True)
class Decision:
    """One round of one device. ``frequency_hz`` is the clock to request, None: leave it alone. ``predicted`` None: no profiles.

    ``warnings`` says where no cut keeps a limit, and where the cut does not fit in memory by the profiles. ``emulated``: the link was slowed to
    these rates (`split.emulated`).
    """

    round: int
    device: str
    cut: int
    frequency_hz: float | None
    codec_up: str
    codec_down: str
    predicted: Predicted | None
    assumptions: tuple[Assumption, ...]
    uplink_bps: float | None
    downlink_bps: float | None
    warnings: tuple[str, ...] = ()
    emulated: bool = False


class Decider:
    """Made once; `decide` is cheap. ``options.local_epochs`` is T and ``options.rounds`` the rounds of the run.

    ``profiles`` None: nothing is predicted, and ``fixed`` must hold a cut. ``adapter_names(cut)`` are the names of the device's adapters, for
    the length of the headers; None: of usual length. Raises BadInput where a device has no profile, where a profile is of another workload,
    where a codec has no figures, or where a trace of rates has fewer rounds.
    """

    def __init__(
        self,
        profiles: Path | None,
        options: SolveOptions,
        devices: Sequence[str],
        workload: TrainedWorkload,
        fixed: Fixed | None = None,
        adapter_names: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        self._fixed, self._workload = fixed or Fixed(), workload
        self._devices = list(devices)
        self._fleet: _Fleet | None = None
        cut = self._fixed.cut
        if cut is not None and not 1 <= cut < workload.layers:
            raise BadInput(f"--cut {cut}: expected 1 to {workload.layers - 1} ({workload.layers} layers)")
        if profiles is not None:
            chosen = _profiles_of(profiles, options, self._devices, workload)
            self._fleet = _Fleet(chosen, options, workload, self._fixed, adapter_names)
        elif cut is None:
            raise BadInput("--cut: expected a cut layer, or --profiles to decide it from")
        else:
            _check_unprofiled(self._fixed.codec, options.max_loss_increase)
        self._given = None if profiles is not None else _given_rates(options, self._devices)

    @property
    def sets_clocks(self) -> bool:
        """Whether decisions ask for a clock of the server."""
        if self._fleet is None:
            return self._fixed.frequency_hz is not None
        return self._fleet.problem.clocks.known

    def decide(
        self,
        round: int,
        device: str,
        *,
        uplink_bps: float | None = None,
        downlink_bps: float | None = None,
        round_trip_s: float | None = None,
    ) -> Decision:
        """Decide round ``round`` (counted from 1) of ``device``; rates and round trip that were measured lately replace the posed ones.

        Raises BadInput for a round beyond the trace of rates.
        """
        if self._fleet is not None:
            return self._fleet.decide(round, self._devices.index(device), uplink_bps, downlink_bps, round_trip_s)
        cut, codec = self._fixed.cut, self._fixed.codec or NONE
        assert cut is not None
        if self._given is not None:
            at_round = self._given.at(round, self._devices.index(device))
            uplink_bps, downlink_bps = uplink_bps or at_round[0], downlink_bps or at_round[1]
        return Decision(round, device, cut, self._fixed.frequency_hz, codec, codec, None, (), uplink_bps, downlink_bps)


# ------------------------------------------------------------------------------------------------------- the profiles


def _check_unprofiled(name: str | None, max_loss_increase: float | None) -> None:
    """Without profiles a codec must be there by name: raises BadInput for any other, and for a limit that nothing could keep."""
    from profiler.codecs import codec

    if max_loss_increase is not None:
        raise BadInput(f"--max-loss-increase {max_loss_increase:g}: expected --profiles and --codec auto with it")
    if name == AUTO:
        raise BadInput("--codec auto: expected --profiles with it, to decide from, or a codec's name")
    if name is not None:
        codec(name)


def _profiles_of(folder: Path, options: SolveOptions, names: Sequence[str], workload: TrainedWorkload) -> list[Profile]:
    """The server's profile and those of the devices, in order. Raises BadInput where one is missing or of another workload."""
    fleet = load_fleet(folder)
    devices = {profile.name: profile for profile in fleet if profile.role == "device"}
    for name in names:
        if name not in devices:
            there = ", ".join(sorted(devices)) or "none"
            raise BadInput(
                f"--profiles {folder}: no profile of a device named {name} (there: {there}); make it on that device with "
                f"'card-profile run', or give the devices the names of their profiles"
            )
    servers = [profile for profile in fleet if profile.role == "server"]
    chosen = [*servers, *(devices[name] for name in names)]
    for profile in chosen:
        if profile.role == "device" or options.server in (None, profile.name):
            _check_workload(profile, workload)
    return chosen


_NO_OPTION = ("layers", "gradient_checkpointing")


def _check_workload(profile: Profile, workload: TrainedWorkload) -> None:
    theirs = profile.workload
    pairs: dict[str, tuple[object, object]] = {
        "model": (theirs.model, workload.model),
        "layers": (theirs.layers, workload.layers),
        "batch_size": (theirs.batch_size, workload.batch_size),
        "seq_len": (theirs.seq_len, workload.seq_len),
        "dtype": (theirs.dtype, workload.dtype),
        "lora_rank": (theirs.lora_rank, workload.lora_rank),
        "lora_targets": (",".join(sorted(theirs.lora_targets)), ",".join(sorted(workload.lora_targets))),
        "gradient_checkpointing": (theirs.gradient_checkpointing, False),
    }
    for name, (profiled, trained) in pairs.items():
        if profiled != trained:
            option = "" if name in _NO_OPTION else f", or give this run --{name.replace('_', '-')} {profiled}"
            raise BadInput(
                f"profile {profile.name}: field workload.{name} is {profiled}, this run has {trained}: its times would be of another "
                f"workload; profile this one with 'card-profile run'{option}"
            )


class _Directions:
    """How a machine's seconds are shared among forward, backward and optimizer, at any clock.

    ``device`` and ``server`` are (3, C, K) seconds of the segments on that side of each cut, at ``clocks_hz`` (K,).
    """

    def __init__(self, profile: Profile, leave_out: frozenset[str]) -> None:
        kept = [t for t in profile.timings if t.frequency_hz is not None] or profile.timings[:1]
        kept.sort(key=lambda timing: timed_hz(profile, timing))
        counted = np.array([segment.kind not in leave_out for segment in profile.segments], dtype=float)
        if kept:
            self.clocks_hz = np.array([timed_hz(profile, timing) for timing in kept])
            seconds = np.array(
                [[[getattr(row, way).median_s for row in t.segments] for t in kept] for way in DIRECTIONS]
            )
        else:  # the letter's model: by FLOPs, and no optimizer
            self.clocks_hz = np.array([operating_hz(profile)])
            rows = profile.flops.segments
            flops = [[row.forward_flops for row in rows], [row.backward_flops for row in rows], [0.0] * len(rows)]
            seconds = np.array(flops)[:, None, :]
        seconds = seconds * counted
        if "optimizer" in leave_out:
            seconds[2] = 0.0
        self.device = np.array([on_the_device(profile, way.T) for way in seconds])
        self.server = np.array([on_the_server(profile, way.T) for way in seconds])

    def shares(self, side: str, cut_index: int, frequency_hz: float) -> Floats:
        """(3,) that add up to 1; all of it forward where nothing is known."""
        table = self.device if side == "device" else self.server
        # Straight in 1/f, as times are; beyond the visited clocks as at the last one.
        x = -1.0 / self.clocks_hz
        seconds = np.array([np.interp(-1.0 / frequency_hz, x, way) for way in table[:, cut_index]])
        total = seconds.sum()
        return seconds / total if total > 0 else np.array([1.0, 0.0, 0.0])


# --------------------------------------------------------------------------------------------------- bytes of messages

_A_TIME = 0.0123456789012345
_A_READING = 12345.678901234
_A_COUNT = 1000


class _Messages:
    """Bytes of the messages beside the tensors that the cost model knows, as `split.wire` packs them."""

    def __init__(self, workload: TrainedWorkload, epochs: int, names: Callable[[int], Sequence[str]] | None) -> None:
        self._workload, self._epochs, self._names = workload, epochs, names
        a_codec = wire.Packed(workload.dtype, (workload.batch_size, workload.seq_len, 4096), "int8-o2+zstd", b"")
        labels = wire.Packed("int64", (workload.batch_size, workload.seq_len), NONE, b"")
        up = wire.Smashed(
            round=_A_COUNT,
            attempt=_A_COUNT,
            step=_A_COUNT,
            purpose="train",
            forward_s=_A_TIME,
            encode_s=_A_TIME,
            sent_s=_A_READING,
        )
        down = wire.Gradient(
            round=_A_COUNT,
            attempt=_A_COUNT,
            step=_A_COUNT,
            loss=2.345678901234,
            decode_s=_A_TIME,
            forward_s=_A_TIME,
            backward_s=_A_TIME,
            encode_s=_A_TIME,
            received_s=_A_READING,
            sent_s=_A_READING,
        )
        self.step_up = len(wire.pack(up, {"hidden": a_codec, "labels": labels}))
        self.step_up += 8 * workload.batch_size * workload.seq_len
        self.step_down = len(wire.pack(down, {"hidden": a_codec}))

    @cache  # noqa: B019  (a handful of cuts, kept as long as the run)
    def around_adapters(self, cut: int, moments: bool) -> tuple[int, int]:
        """Bytes around the adapters of a round at ``cut``: down in stage 2, up in stage 5."""
        names = self._adapters(cut)
        sent = [*names, *(f"{moment}.{name}" for name in names if moments for moment in "mv")]
        tensors = {name: wire.Packed("float32", (4, 4096), NONE, b"") for name in sent}
        row = dict.fromkeys(("forward_s", "encode_s", "decode_s", "backward_s", "optimizer_s", "waited_s"), _A_TIME)
        rows = [wire.StepTimes(**row)] * min(self._epochs, wire.MAX_EPOCHS)
        down = wire.Round(
            round=_A_COUNT,
            attempt=_A_COUNT,
            cut=cut,
            epochs=min(self._epochs, wire.MAX_EPOCHS),
            codec_up="int8-o2+zstd",
            codec_down="int8-o2+zstd",
            evaluate=0,
            first_step=_A_COUNT,
        )
        up = wire.Adapters(
            round=_A_COUNT,
            attempt=_A_COUNT,
            steps=rows,
            round_received_s=_A_READING,
            loaded_s=_A_TIME,
            sent_s=_A_READING,
        )
        return len(wire.pack(down, tensors)), len(wire.pack(up, tensors))

    def _adapters(self, cut: int) -> Sequence[str]:
        if self._names is not None:
            return self._names(cut)
        return [
            f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{half}.weight"
            for layer in range(cut)
            for target in self._workload.lora_targets
            for half in "AB"
        ]


# --------------------------------------------------------------------------------------------------------- the fleet


class _RoundRates:
    """Rates of every round and device, bit/s."""

    def __init__(self, rates: Rates, options: SolveOptions) -> None:
        self._rates, self._channel = rates, options.channel
        self._traced = isinstance(options.channel, str) and channel_of(options.channel) is None
        # Without a number of rounds one row of given or measured rates holds for all of them.
        self._every_round_alike = len(rates.rounds) == 1 and not self._traced

    def at(self, round: int, m: int) -> tuple[float, float]:
        """Up and down in that round for device ``m``. Raises BadInput for a round beyond the trace."""
        row = 0 if self._every_round_alike else round - 1
        if not 0 <= row < len(self._rates.rounds):
            what = f"--channel {self._channel}" if self._traced else "--rounds"
            raise BadInput(f"{what}: rates of {len(self._rates.rounds)} rounds, expected some for round {round} too")
        return float(self._rates.uplink_bps[row, m]), float(self._rates.downlink_bps[row, m])


@dataclass(frozen=True)
class _Named:
    """A device of which no profile is there."""

    name: str
    link: Link | None = None


def _given_rates(options: SolveOptions, names: Sequence[str]) -> _RoundRates | None:
    """Rates that were asked for by option, for a run without profiles; None where none were."""
    if options.uplink_mbps is None and options.downlink_mbps is None and options.channel is None:
        return None
    found = rates(
        [_Named(name) for name in names],
        rounds=options.rounds,
        seed=options.seed,
        uplink_mbps=options.uplink_mbps,
        downlink_mbps=options.downlink_mbps,
        channel=options.channel,
    )
    return _RoundRates(found, options)


class _Fleet:
    """A posed problem, and what a round of it is predicted to take."""

    def __init__(
        self,
        profiles: Sequence[Profile],
        options: SolveOptions,
        workload: TrainedWorkload,
        fixed: Fixed,
        names: Callable[[int], Sequence[str]] | None,
    ) -> None:
        if options.compression is not None:
            raise BadInput("--compression: a run sends real bytes, expected the codec by name (--codec)")
        if options.method == "min-cut":
            raise BadInput("--method min-cut: a run is cut between layers, expected --method exact")
        options = replace(options, codec=fixed.codec or options.codec or NONE)
        if fixed.frequency_hz is not None:
            ghz = fixed.frequency_hz / 1e9
            options = replace(options, f_min_ghz=ghz, f_max_ghz=ghz)
        self.problem = pose(profiles, options)
        self.workload, self.fixed, self.epochs = workload, fixed, options.local_epochs
        self._messages = _Messages(workload, options.local_epochs, names)
        leave_out = frozenset(options.leave_out)
        self._directions = {p.name: _Directions(p, leave_out) for p in (self.problem.server, *self.problem.devices)}
        self._device_w = [_known_w(device) for device in self.problem.devices]
        self._rounds = _RoundRates(self.problem.rates, self.problem.options)

    # --- what is sent ------------------------------------------------------------------------------------------------

    @cached_property
    def _adapter_bytes(self) -> Floats:
        """(M, C): A(c) without headers."""
        return self.problem.letter.adapter_bits / 8

    @cache  # noqa: B019  (two entries)
    def _sizes(self, first: bool) -> tuple[Floats, Floats]:
        """(M, C) bytes of stage 2 and of stage 5. Before the first step there are no moments to send."""
        travel = self.workload.moments_travel
        around = np.array(
            [
                [self._messages.around_adapters(c + 1, moments) for c in range(self.problem.letter.cuts)]
                for moments in (travel and not first, travel)
            ]
        )
        times = (1 if first or not travel else 3, 3 if travel else 1)
        down, up = (self._adapter_bytes * n + around[k][:, k] for k, n in enumerate(times))
        return down, up

    @cache  # noqa: B019  (two entries)
    def _models(self, first: bool) -> tuple[CostModel, CostModel | None]:
        """The letter's model and the measured one, with the bytes that really travel."""
        down, up = self._sizes(first)
        # The model knows one size of adapters for both ways: what stage 5 has more goes with what goes up.
        more_up = 8.0 * (self.epochs * self._messages.step_up + up - down)
        more_down = np.full_like(more_up, 8.0 * self.epochs * self._messages.step_down)

        def real(model: CostModel) -> CostModel:
            codecs = model.codecs
            assert codecs is not None
            codecs = replace(
                codecs,
                uplink_bits=codecs.uplink_bits + more_up[:, None, :],
                downlink_bits=codecs.downlink_bits + more_down[:, None, :],
            )
            return replace(model, codecs=codecs, adapter_bits=8.0 * down)

        return real(self.problem.letter), None if self.problem.tables is None else real(self.problem.tables)

    # --- one round -----------------------------------------------------------------------------------------------------

    def decide(
        self, round: int, m: int, uplink_bps: float | None, downlink_bps: float | None, round_trip_s: float | None
    ) -> Decision:
        problem, first = self.problem, round <= 1
        up, down = self._rates(round, m, uplink_bps, downlink_bps)
        letter, tables = self._models(first)
        if round_trip_s is not None:
            trips = np.array(letter.round_trip_s)
            trips[m] = round_trip_s
            tables = None if tables is None else replace(tables, round_trip_s=trips)
        evaluated = letter if tables is None or problem.evaluated is problem.letter else tables
        feasible = np.array(problem.feasible)
        warnings = []
        device = problem.devices[m].name
        if self.fixed.cut is not None:
            if not feasible[m, self.fixed.cut - 1]:
                warnings.append(f"{device}: by the profiles cut {self.fixed.cut} does not fit in memory")
            feasible[m] = False
            feasible[m, self.fixed.cut - 1] = True
        places = Places(np.array([m]), np.array([up]), np.array([down]), feasible)
        task = Task(
            problem.options.method,
            problem.options.objective,
            problem.layers,
            problem.clocks,
            letter,
            evaluated,
            letter if tables is None else tables,
            problem.xi_w_per_hz3,
        )
        chosen = choose(task, places)
        index, hz = int(chosen.choice.cut_index[0]), float(chosen.choice.frequency_hz[0])
        if self.fixed.cut is not None:
            index = self.fixed.cut - 1
        if not chosen.met[0]:
            goal = problem.options.objective
            warnings.append(
                f"{device}: --{goal.kind} {goal.limit:g} cannot be kept in round {round}; the nearest point is taken"
            )
        predicted, codec = self._predict(evaluated, first, m, up, down, index, hz)
        return Decision(
            round=round,
            device=device,
            cut=index + 1,
            frequency_hz=hz if problem.clocks.known else None,
            codec_up=codec,
            codec_down=codec,
            predicted=predicted,
            assumptions=self._assumptions(evaluated is letter),
            uplink_bps=up,
            downlink_bps=down,
            warnings=tuple(warnings),
        )

    def _rates(self, round: int, m: int, uplink_bps: float | None, downlink_bps: float | None) -> tuple[float, float]:
        up, down = self._rounds.at(round, m)
        return (up if uplink_bps is None else uplink_bps), (down if downlink_bps is None else downlink_bps)

    def _predict(
        self, model: CostModel, first: bool, m: int, up: float, down: float, index: int, hz: float
    ) -> tuple[Predicted, str]:
        """The round at one point, part by part; and the codec that the point takes."""
        problem, epochs = self.problem, self.epochs
        costs = model.at(m, up, down, index, hz)
        assert model.codecs is not None
        assert costs.codec is not None
        k = int(costs.codec)
        ends = [float(seconds) for seconds in model.codecs.ends_s[:, m, k, index]]
        reached = float(model.clock_map.reached(hz))
        device, server = problem.devices[m], problem.server
        on_device = float(costs.device_compute_s) * self._directions[device.name].shares(
            "device", index, operating_hz(device)
        )
        on_server = float(costs.server_compute_s) * self._directions[server.name].shares("server", index, reached)
        down_bytes, up_bytes = (float(size[m, index]) for size in self._sizes(first))
        trip = float(model.round_trip_s[m]) / 2
        more_up = 8.0 * (up_bytes - down_bytes)  # counted in uplink_bits, see `_models`
        parts = {
            "adapters_down": 8.0 * down_bytes / down + trip,
            "device_forward": on_device[0],
            "encode": ends[0],
            "uplink": float(costs.uplink_s) - ends[0] - ends[1] - more_up / up,
            "decode": ends[1],
            "server_forward": on_server[0],
            "server_backward": on_server[1],
            "server_optimizer": on_server[2],
            "gradient_encode": ends[2],
            "downlink": float(costs.downlink_s) - ends[2] - ends[3],
            "gradient_decode": ends[3],
            "device_backward": on_device[1],
            "device_optimizer": on_device[2],
            "adapters_up": 8.0 * up_bytes / up + trip,
        }
        parts = {name: float(seconds) for name, seconds in parts.items()}
        hidden = 0.0
        if self.workload.overlap:  # the server's optimizer runs until the next smashed data are there
            step = (float(costs.delay_s) - parts["adapters_down"] - parts["adapters_up"]) / epochs
            own = float(costs.server_compute_s) / epochs
            hidden = (epochs - 1) * min(float(on_server[2]) / epochs, max(step - own, 0.0)) + float(
                on_server[2]
            ) / epochs
        watts = self._device_w[m]
        power: ServerPower | None = model.server_power
        return (
            Predicted(
                parts=parts,
                delay_s=float(costs.delay_s) - hidden,
                hidden_s=hidden,
                server_energy_j=None if power is None else float(power.at(reached) * costs.server_compute_s),
                device_energy_j=None if watts is None else watts * float(costs.device_compute_s),
                uplink_bytes=(float(model.codecs.uplink_bits[m, k, index]) - more_up) / 8,
                downlink_bytes=float(model.codecs.downlink_bits[m, k, index]) / 8,
                adapters_down_bytes=down_bytes,
                adapters_up_bytes=up_bytes,
            ),
            model.codecs.names[k],
        )

    @cache  # noqa: B019  (two entries)
    def _assumptions(self, by_letter: bool) -> tuple[Assumption, ...]:
        listed, letter, tables = self.problem.rests_on
        by_profile = self.problem.options.method in DECIDE_BY_PROFILE
        listed = list(listed)
        if by_letter or not by_profile:
            listed += letter
        if not by_letter or by_profile:
            listed += tables
        if self.workload.optimizer == "sgd" and not by_letter:
            listed.append(assumed("optimizer step: seconds of SGD", "those of AdamW, which the profiles time: at most"))
        if self.workload.overlap:
            listed.append(
                assumed("overlap: seconds of the server's optimizer that do not count", "all, while the device works")
            )
        return tuple(distinct(listed))


def _known_w(device: Profile) -> float | None:
    """Watts of a device while it computes, None where its profile holds none."""
    try:
        return device_w(device)[0]
    except BadInput:
        return None
