"""From profiles and options to one problem: who takes part, at which rates, what fits in memory, and both models of cost.

Everything that decides, compares or plots begins here: `pose` checks the input once and gives a `Problem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np

from profiler.profile import BadInput, Profile
from profiler.units import ranges
from solver.assumptions import Assumption, assumed, unmeasured
from solver.baselines import DEVICE_ONLY, SERVER_ONLY, fixed_cut
from solver.channel import Channel, Rates, rates
from solver.clocktimes import UNKNOWN_CLOCK_HZ
from solver.codecs import AUTO, check_options, codec_tables, nothing_to_choose
from solver.costs import (
    TERMS,
    CostModel,
    Mask,
    ModelName,
    Places,
    ServerClocks,
    letter_model,
    profile_model,
)
from solver.objective import DEFAULT_W, Objective
from solver.plausible import check_units

MAX_DECISIONS = 10_000_000


@dataclass(frozen=True)
class SolveOptions:
    """What the user may choose; the names are the options' of ``card-solve``. Nothing is checked before `solve`.

    ``rounds`` None: as many as a channel trace has, else 1. ``leave_out`` names terms (`costs.TERMS`) that the profile model
    shall not count; ``count_idle`` adds the energy of the server that waits and ``device_energy``, a weight, that of the devices
    while they compute; the letter leaves both out. ``codec`` names a codec of smashed data and gradients with measured figures, or is
    ``auto``: the fastest whose loss stays within ``max_loss_increase``, in nats a token (`solver.codecs`). At most one of
    ``price_j_per_s``, ``max_delay_s`` and ``max_energy_j`` takes the place of U and its ``w`` (`solver.objective`).
    """

    method: str = "exact"
    server: str | None = None
    evaluate: str | None = None
    w: float = DEFAULT_W
    price_j_per_s: float | None = None
    max_delay_s: float | None = None
    max_energy_j: float | None = None
    local_epochs: int = 5
    compression: float | None = None
    codec: str | None = None
    max_loss_increase: float | None = None
    uplink_mbps: float | None = None
    downlink_mbps: float | None = None
    channel: str | Channel | None = None
    f_min_ghz: float | None = None
    f_max_ghz: float | None = None
    rounds: int | None = None
    seed: int = 0
    leave_out: tuple[str, ...] = ()
    count_idle: bool = False
    device_energy: float = 0.0
    require_measured: bool = False
    scheduler: str | None = None
    """Address of a Dask scheduler to spread the choice over; None: this machine alone."""

    @property
    def objective(self) -> Objective:
        """What is minimised: U with ``w`` unless a price or a limit is given."""
        return Objective(self.w, self.price_j_per_s, self.max_delay_s, self.max_energy_j)


@dataclass(frozen=True)
class Exclusion:
    """Cuts of one device that do not fit in memory, on which machine, and the bytes that they need there."""

    device: str
    cuts: list[int]
    machine: str
    needs_bytes: tuple[int, int]
    limit_bytes: int


@dataclass(frozen=True)
class Problem:
    """One server, M devices, C cuts, N = rounds x devices decisions (rounds first), and what each choice costs.

    ``letter`` is the letter's model of the fleet and always there. ``tables`` holds what the profiles measured, None where one of
    them has no times. ``rests_on``: the assumptions of the input itself, of ``letter`` and of ``tables``.
    """

    options: SolveOptions
    server: Profile
    devices: list[Profile]
    clocks: ServerClocks
    rates: Rates
    feasible: Mask
    """(M, C) cuts that fit in memory on both sides."""
    device_memory_bytes: list[list[int] | None]
    exclusions: list[Exclusion]
    letter: CostModel
    tables: CostModel | None
    evaluated: CostModel
    """The model that delay, energy and cost of a decision are reported from (``--evaluate``)."""
    rests_on: tuple[list[Assumption], list[Assumption], list[Assumption]]
    warnings: list[str]

    @property
    def decider(self) -> CostModel:
        """What ``exact`` decides by: whatever the profiles hold."""
        return self.letter if self.tables is None else self.tables

    @property
    def layers(self) -> int:
        """I: the cuts are 1..I-1."""
        return self.server.workload.layers

    @property
    def xi_w_per_hz3(self) -> float | None:
        """The letter's coefficient of the server's power, None where power is unknown."""
        return None if self.server.power_fit is None else self.server.power_fit.xi_w_per_hz3

    @cached_property
    def places(self) -> Places:
        """The N decisions to take."""
        device = np.tile(np.arange(len(self.devices)), len(self.rates.rounds))
        return Places(device, self.rates.uplink_bps.ravel(), self.rates.downlink_bps.ravel(), self.feasible)


# --------------------------------------------------------------------------------------------------- checks on input


def _check(options: SolveOptions) -> None:
    named = ("card", "exact", "min-cut", SERVER_ONLY, DEVICE_ONLY)
    if options.method not in named and not options.method.startswith("static:"):
        raise BadInput(
            f"--method {options.method}: expected card, exact, min-cut, server-only, device-only or static:C"
        )
    if options.evaluate is not None and options.evaluate not in get_args(ModelName):
        raise BadInput(f"--evaluate {options.evaluate}: expected letter or profile")
    if not 0 <= options.w <= 1:
        raise BadInput(f"--w {options.w:g}: expected a number from 0 to 1")
    options.objective.check(options.method)
    if not 1 <= options.local_epochs <= 10**9:
        raise BadInput(f"--local-epochs {options.local_epochs}: expected a whole number from 1 to 1000000000")
    if options.compression is not None and not 0 < options.compression <= 1:
        raise BadInput(f"--compression {options.compression:g}: expected a number above 0 and at most 1")
    check_options(options.codec, options.max_loss_increase, options.compression, options.method)
    if options.rounds is not None and not 1 <= options.rounds <= MAX_DECISIONS:
        raise BadInput(f"--rounds {options.rounds}: expected a whole number from 1 to {MAX_DECISIONS}")
    if not 0 <= options.seed < 2**63:
        raise BadInput(f"--seed {options.seed}: expected a whole number from 0 to {2**63 - 1}")
    for option, value in (("--f-min-ghz", options.f_min_ghz), ("--f-max-ghz", options.f_max_ghz)):
        if value is not None and not 1e-3 <= value <= 100:
            raise BadInput(f"{option} {value:g}: expected a clock in GHz from 0.001 to 100")
    if not 0 <= options.device_energy <= 1e6:
        raise BadInput(f"--device-energy {options.device_energy:g}: expected a weight from 0 to 1000000")
    for term in options.leave_out:
        if term not in TERMS:
            raise BadInput(f"--leave-out {term}: expected terms out of {', '.join(TERMS)}")


def _cast(profiles: Sequence[Profile], wanted: str | None) -> tuple[Profile, list[Profile]]:
    """The server and the devices. Raises BadInput that lists names where the choice is not clear or profiles do not fit together."""
    servers = [p for p in profiles if p.role == "server"]
    devices = [p for p in profiles if p.role == "device"]
    names = ", ".join(p.name for p in servers)
    if wanted is not None:
        servers = [p for p in servers if p.name == wanted]
        if not servers:
            raise BadInput(
                f"--server {wanted}: no profile with role server has this name, expected one of: {names or 'none there'}"
            )
    if not servers:
        others = ", ".join(p.name for p in devices) or "none"
        raise BadInput(
            f"--profiles: no profile has role server (devices: {others}); make one with 'card-profile run --role server'"
        )
    if len(servers) > 1:
        raise BadInput(f"--profiles: {len(servers)} profiles have role server, expected --server with one of: {names}")
    server = servers[0]
    if not devices:
        raise BadInput(
            f"--profiles: no profile has role device beside the server {server.name}; make one with 'card-profile run'"
        )
    for device in devices:
        ours, theirs = server.workload.key(), device.workload.key()
        wrong = [f"{key} ({ours[key]} against {theirs[key]})" for key in ours if ours[key] != theirs[key]]
        if wrong:
            raise BadInput(
                f"profiles {server.name} and {device.name}: workload differs in {', '.join(wrong)}, expected the same"
            )
        if [(s.kind, s.layer) for s in server.segments] != [(s.kind, s.layer) for s in device.segments]:
            raise BadInput(
                f"profiles {server.name} and {device.name}: field segments differs, expected the same pieces of the model"
            )
    return server, devices


def _server_clocks(server: Profile, options: SolveOptions) -> tuple[ServerClocks, list[Assumption], list[str]]:
    block = server.hardware.clocks
    warnings: list[str] = []
    low, high = options.f_min_ghz, options.f_max_ghz
    timed = sorted({t.requested_hz or t.frequency_hz for t in server.timings if t.frequency_hz is not None})
    if block is not None:
        supported = np.array(block.supported_hz)
        lowest, highest = block.min_hz, block.max_hz
    elif timed:
        supported, lowest, highest = np.array([hz for hz in timed if hz is not None]), timed[0] or 0.0, timed[-1] or 0.0
    elif server.timings:
        for option, value in (("--f-min-ghz", low), ("--f-max-ghz", high)):
            if value is not None:
                raise BadInput(
                    f"{option}: profile {server.name} was measured at a clock that cannot be read, expected no limits"
                )
        return ServerClocks(UNKNOWN_CLOCK_HZ, UNKNOWN_CLOCK_HZ, np.array([UNKNOWN_CLOCK_HZ]), known=False), [], warnings
    else:
        raise BadInput(
            f"profile {server.name}: field hardware.clocks is empty, expected the server's clocks (no timings)"
        )
    f_min = lowest if low is None else low * 1e9
    f_max = highest if high is None else high * 1e9
    if f_min > f_max:
        raise BadInput(
            f"--f-min-ghz, --f-max-ghz: {f_min / 1e9:g} GHz is above {f_max / 1e9:g} GHz, expected F_min <= F_max "
            f"(server {server.name}: {lowest / 1e9:g} to {highest / 1e9:g} GHz)"
        )
    if len(supported):
        # Beyond its own clocks a measured machine cannot go: the box ends there.
        inside = supported[(supported >= f_min * (1 - 1e-12)) & (supported <= f_max * (1 + 1e-12))]
        if len(inside) == 0:
            raise BadInput(
                f"--f-min-ghz, --f-max-ghz: server {server.name} supports no clock from {f_min / 1e9:g} to {f_max / 1e9:g} GHz, "
                f"expected some of {supported[0] / 1e9:g} to {supported[-1] / 1e9:g} GHz"
            )
        supported = inside
        for option, value, bound in (
            ("--f-min-ghz", f_min, min(lowest, f_min)),
            ("--f-max-ghz", f_max, max(highest, f_max)),
        ):
            if value < lowest or value > highest:
                warnings.append(
                    f"{option}: {bound / 1e9:g} GHz is beyond the clocks of {server.name}; the box ends at its own"
                )
        f_min, f_max = max(f_min, lowest), min(f_max, highest)
    else:
        for option, value in (("--f-min-ghz", low), ("--f-max-ghz", high)):
            if value is not None and not lowest * (1 - 1e-12) <= value * 1e9 <= highest * (1 + 1e-12):
                warnings.append(
                    f"{option}: {value:g} GHz is beyond the {lowest / 1e9:g} to {highest / 1e9:g} GHz of {server.name}; taken as given"
                )
    listed: list[Assumption] = []
    if block is not None:
        given = {f"{server.name}: F_min in Hz": (low, f_min), f"{server.name}: F_max in Hz": (high, f_max)}
        listed = unmeasured(block, **{name: value for name, (option, value) in given.items() if option is None})
    return ServerClocks(f_min, f_max, supported), listed, warnings


def _memory(
    server: Profile, devices: Sequence[Profile]
) -> tuple[Mask, list[list[int] | None], list[Exclusion], list[Assumption]]:
    """(M, C) cuts that fit on both sides. The device's need is from its own profile, the server's from the server's."""
    cuts = server.workload.layers - 1
    feasible = np.ones((len(devices), cuts), dtype=bool)
    tables: list[list[int] | None] = []
    exclusions: list[Exclusion] = []
    listed: list[Assumption] = []

    def limit(profile: Profile) -> int | None:
        bound = profile.hardware.memory_bytes
        if profile.memory is None or bound is None:
            what = "memory needed at each cut" if profile.memory is None else "memory limit"
            listed.append(assumed(f"{profile.name}: {what}", "no limit"))
            return None
        listed.extend(unmeasured(profile.hardware, **{f"{profile.name}: memory limit in bytes": bound}))
        listed.extend(unmeasured(profile.memory, **{f"{profile.name}: peak memory at each cut": "predicted"}))
        return bound

    def exclude(m: int, needs: list[int], machine: str, bound: int) -> None:
        bad = [c for c in range(cuts) if needs[c] > bound]
        if bad:
            feasible[m, bad] = False
            sizes = [needs[c] for c in bad]
            exclusions.append(
                Exclusion(devices[m].name, [c + 1 for c in bad], machine, (min(sizes), max(sizes)), bound)
            )

    server_bound = limit(server)
    for m, device in enumerate(devices):
        needs = None if device.memory is None else [row.device_peak_bytes for row in device.memory.cuts]
        tables.append(needs)
        bound = limit(device)
        if needs is not None and bound is not None:
            exclude(m, needs, device.name, bound)
        if server.memory is not None and server_bound is not None:
            exclude(m, [row.server_peak_bytes for row in server.memory.cuts], server.name, server_bound)
        if not feasible[m].any():
            why = "; ".join(
                f"cuts {ranges(e.cuts)} need {e.needs_bytes[0] / 2**30:.3g} to {e.needs_bytes[1] / 2**30:.3g} GiB "
                f"on {e.machine}, which has {e.limit_bytes / 2**30:.3g} GiB"
                for e in exclusions
                if e.device == device.name
            )
            raise BadInput(
                f"device {device.name}: no cut fits in memory: {why}; profile a smaller batch or sequence, or "
                "--gradient-checkpointing"
            )
    return feasible, tables, exclusions, listed


# --------------------------------------------------------------------------------------------------------------- pose


def pose(profiles: Sequence[Profile], options: SolveOptions) -> Problem:
    """Check profiles and options, and bring them into arrays.

    Raises BadInput, one line, naming the option or the profile and field, and what was expected.
    """
    _check(options)
    server, devices = _cast(profiles, options.server)
    check_units([server, *devices])
    fixed_cut(options.method, server.workload.layers)
    clocks, listed, warnings = _server_clocks(server, options)
    link = rates(
        devices,
        rounds=options.rounds,
        seed=options.seed,
        uplink_mbps=options.uplink_mbps,
        downlink_mbps=options.downlink_mbps,
        channel=options.channel,
    )
    rounds, count = link.uplink_bps.shape
    if rounds * count > MAX_DECISIONS:
        raise BadInput(f"--rounds {rounds}: {rounds * count} decisions, expected at most {MAX_DECISIONS}")
    listed += link.assumptions
    feasible, needs, exclusions, more = _memory(server, devices)
    listed += more
    codecs = None
    if options.codec is None:
        phi, more = _phi(server, devices, options)
    else:
        phi = [1.0] * len(devices)
        codecs, more = codec_tables(
            server,
            devices,
            epochs=options.local_epochs,
            codec=options.codec,
            max_loss_increase=options.max_loss_increase,
        )
        untold = nothing_to_choose(server, devices) if options.codec == AUTO else None
        warnings += [untold] if untold is not None else []
    listed += more
    if not clocks.known:  # watts against a clock that cannot be read say nothing
        if options.w < 1:
            raise BadInput(
                f"profile {server.name}: field hardware.clocks is empty and its timings have no clock, so its watts at them are not known: "
                "decide by delay alone with --w 1"
            )
        server = server.model_copy(update={"power_fit": None})
    fit = server.power_fit
    if fit is None and options.w < 1:
        measure = "" if server.power is not None else "measure it with 'card-profile run --measure power', "
        raise BadInput(
            f"profile {server.name}: no field power_fit, expected the server's power against clock: {measure}"
            f"fit it with 'card-profile fit-power', or decide by delay alone with --w 1"
        )
    if fit is None:
        warnings.append(f"{server.name}: its power is not known, so energy is left empty")

    untimed = [p.name for p in (server, *devices) if not p.timings]
    if options.evaluate == "profile" and untimed:
        raise BadInput(
            f"--evaluate profile: expected layer times in every profile, there are none in {', '.join(untimed)}"
        )
    if untimed and len(untimed) <= len(devices):
        warnings.append(f"no layer times in {', '.join(untimed)}: the letter's model is used for the whole fleet")
    evaluate = options.evaluate or ("letter" if untimed else "profile")
    if evaluate == "letter":
        # Where the tables decide, what is left out of them has a say all the same.
        by_tables = not untimed and options.method in ("exact", "min-cut")
        terms = ("--leave-out", options.leave_out and not by_tables), ("--count-idle", options.count_idle)
        for option, asked in (*terms, ("--device-energy", options.device_energy)):
            if asked:
                where = f"layer times in every profile ({', '.join(untimed)})" if untimed else "no --evaluate letter"
                raise BadInput(f"{option}: the letter's model has no such term, expected {where}")
    letter, rests_on_letter = letter_model(server, devices, epochs=options.local_epochs, phi=phi, codecs=codecs)
    tables: CostModel | None = None
    rests_on_tables: list[Assumption] = []
    if not untimed:
        tables, rests_on_tables = profile_model(
            server,
            devices,
            clocks,
            epochs=options.local_epochs,
            phi=phi,
            codecs=codecs,
            round_trip_s=link.round_trip_s,
            leave_out=frozenset(options.leave_out),
            count_idle=options.count_idle,
            device_energy=options.device_energy,
        )
    return Problem(
        options=options,
        server=server,
        devices=devices,
        clocks=clocks,
        rates=link,
        feasible=feasible,
        device_memory_bytes=needs,
        exclusions=exclusions,
        letter=letter,
        tables=tables,
        evaluated=letter if evaluate == "letter" or tables is None else tables,
        rests_on=(listed, rests_on_letter, rests_on_tables),
        warnings=warnings,
    )


def in_one_model(problem: Problem) -> Problem:
    """``problem`` as it is. Raises BadInput where it would decide in one model and report from the other: only a plain decision can mean that."""
    if problem.evaluated is not problem.decider:
        raise BadInput(
            f"--evaluate {problem.evaluated.name}: this command decides by what the profiles hold and reports from it, expected no --evaluate"
        )
    return problem


def _phi(server: Profile, devices: Sequence[Profile], options: SolveOptions) -> tuple[list[float], list[Assumption]]:
    """phi of Eq. 9 for each device: the option, else the device's own block, else the server's, else 1."""
    if options.compression is not None:
        return [options.compression] * len(devices), []
    phi, listed = [], []
    for device in devices:
        block = device.compression or server.compression
        if block is None:
            phi.append(1.0)
            listed.append(assumed(f"{device.name}: phi", 1.0))
        else:
            phi.append(block.phi)
            listed += unmeasured(block, **{f"{device.name}: phi": block.phi})
    return phi, listed
