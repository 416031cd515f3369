"""Rounds x devices: from profiles and options to decisions, baselines and what they rest on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from profiler.profile import BadInput, Profile
from profiler.store import write_atomically
from profiler.units import ranges
from solver.assumptions import Assumption, assumed, distinct, unmeasured
from solver.baselines import ALWAYS_REPORTED, DEVICE_ONLY, SERVER_ONLY, fixed_cut
from solver.card import best_cut, optimal_clock
from solver.channel import Rates, rates
from solver.clocktimes import UNKNOWN_CLOCK_HZ
from solver.costs import (
    TERMS,
    CostModel,
    Costs,
    Extremes,
    Floats,
    Ints,
    Mask,
    ModelName,
    ServerClocks,
    ServerRange,
    box_extremes,
    letter_model,
    profile_model,
)
from solver.exact import best_continuous, best_listed

MAX_DECISIONS = 10_000_000
TABLE_LIMIT = 1_000_000
TABLE_COLUMNS = (
    "device",
    "round",
    "cut",
    "frequency_hz",
    "delay_s",
    "energy_j",
    "device_compute_s",
    "server_compute_s",
    "uplink_s",
    "downlink_s",
    "adapters_s",
    "device_memory_bytes",
    "feasible",
)


@dataclass(frozen=True)
class SolveOptions:
    """What the user may choose; the names are the options' of ``card-solve``. Nothing is checked before `solve`.

    ``rounds`` None: as many as a channel trace has, else 1. ``leave_out`` names terms (`costs.TERMS`) that the profile model
    shall not count; ``count_idle`` adds the energy of the server that waits, which the letter leaves out.
    """

    method: str = "exact"
    server: str | None = None
    evaluate: str | None = None
    w: float = 0.2
    local_epochs: int = 5
    compression: float | None = None
    uplink_mbps: float | None = None
    downlink_mbps: float | None = None
    channel: str | None = None
    f_min_ghz: float | None = None
    f_max_ghz: float | None = None
    rounds: int | None = None
    seed: int = 0
    leave_out: tuple[str, ...] = ()
    count_idle: bool = False
    require_measured: bool = False


@dataclass(frozen=True)
class Decisions:
    """One decision for each round and device, rounds first: arrays (N,). ``energy_j`` is None where power is unknown."""

    method: str
    cut: Ints
    frequency_hz: Floats
    feasible: Mask
    costs: Costs
    cost: Floats

    def mean_delay_s(self) -> float | None:
        """Over the decisions that fit in memory; None if there is none."""
        return float(self.costs.delay_s[self.feasible].mean()) if self.feasible.any() else None

    def mean_energy_j(self) -> float | None:
        """Over the decisions that fit in memory; None if there is none, or no power."""
        if self.costs.energy_j is None or not self.feasible.any():
            return None
        return float(self.costs.energy_j[self.feasible].mean())


@dataclass(frozen=True)
class Exclusion:
    """Cuts of one device that do not fit in memory, on which machine, and the bytes that they need there."""

    device: str
    cuts: list[int]
    machine: str
    needs_bytes: tuple[int, int]
    limit_bytes: int


@dataclass(frozen=True)
class Solution:
    """The answer, and all that is needed to recompute it. N = rounds x devices, rounds first; M devices, C cuts."""

    options: SolveOptions
    server: Profile
    devices: list[Profile]
    model: CostModel
    clocks: ServerClocks
    rates: Rates
    feasible: Mask
    device_memory_bytes: list[list[int] | None]
    extremes: Extremes
    extra_clocks_hz: Floats
    optimal_hz: Floats
    decisions: Decisions
    baselines: dict[str, Decisions]
    exclusions: list[Exclusion]
    assumptions: list[Assumption]
    warnings: list[str]

    def places(self) -> Iterator[tuple[int, int, int]]:
        """(n, round's label, device's index) of every decision in order."""
        for n in range(len(self.decisions.cut)):
            r, m = divmod(n, len(self.devices))
            yield n, self.rates.rounds[r], m

    def summary(self) -> dict[str, float | None]:
        """The four figures of the contract. Percentages are ratios of means; None where a benchmark does not fit or has no figure."""
        delay, energy = self.decisions.mean_delay_s(), self.decisions.mean_energy_j()
        device_only, server_only = self.baselines[DEVICE_ONLY], self.baselines[SERVER_ONLY]
        return {
            "mean_delay_s": delay,
            "mean_energy_j": energy,
            "delay_reduction_vs_device_only_pct": self._saved_pct(delay, device_only.mean_delay_s(), device_only),
            "energy_reduction_vs_server_only_pct": self._saved_pct(energy, server_only.mean_energy_j(), server_only),
        }

    def _saved_pct(self, ours: float | None, theirs: float | None, baseline: Decisions) -> float | None:
        # Means over different devices cannot be compared: a fixed cut may fit on some devices only.
        alike = baseline.feasible.all() and self.decisions.feasible.all()
        if ours is None or theirs is None or not theirs > 0 or not alike:
            return None
        return 100.0 * (1.0 - ours / theirs)

    def as_json(self) -> dict[str, Any]:
        """What ``card-solve --json`` prints. No NaN and no infinity: what is unknown is None."""
        return {
            "decisions": self._rows(self.decisions),
            "baselines": {name: self._rows(rows) for name, rows in self.baselines.items()},
            "summary": self.summary(),
            "assumptions": [item.as_json() for item in self.assumptions],
            "server": self.server.name,
            "evaluate": self.model.name,
            "layers": self.server.workload.layers,
            "excluded_cuts": [
                {"device": e.device, "cuts": e.cuts, "machine": e.machine, "limit_bytes": e.limit_bytes}
                for e in self.exclusions
            ],
            "warnings": self.warnings,
        }

    def _rows(self, chosen: Decisions) -> list[dict[str, Any]]:
        rows = []
        reached = self.model.clock_map.reached(chosen.frequency_hz)
        for n, label, m in self.places():
            row: dict[str, Any] = {
                "device": self.devices[m].name,
                "round": label,
                "cut": int(chosen.cut[n]),
                "frequency_hz": float(chosen.frequency_hz[n]) if self.clocks.known else None,
                "delay_s": float(chosen.costs.delay_s[n]),
                "energy_j": None if chosen.costs.energy_j is None else float(chosen.costs.energy_j[n]),
                "cost": float(chosen.cost[n]),
                "method": chosen.method,
                "feasible": bool(chosen.feasible[n]),
            }
            if reached[n] != chosen.frequency_hz[n]:
                row["measured_frequency_hz"] = float(reached[n])
            doubt_s = self.model.compute_half_width_s(m, int(chosen.cut[n]) - 1, float(reached[n]))
            if doubt_s is not None:
                row["compute_half_width_s"] = doubt_s
            rows.append(row)
        return rows

    def table_clocks_hz(self, n: int) -> Floats:
        """Clocks of the cost table for decision ``n``: the supported ones, F_min, F_max, f* and the one decided, ascending.

        Where any clock will do, also those at which D or E is extreme, if that is inside the range.
        """
        own = [self.optimal_hz[n], self.decisions.frequency_hz[n]]
        return np.unique(np.concatenate([self.clocks.points_hz, self.extra_clocks_hz, own]))

    def write_tables(self, folder: Path, limit: int = TABLE_LIMIT) -> Path:
        """Write ``costs.csv``: every cut and table clock of every decision. Floats are written so that they read back bit for bit.

        Raises BadInput where it would have more than ``limit`` rows.
        """
        if limit < 1:
            raise BadInput(f"--tables-limit {limit}: expected a number of rows above 0")
        count, cuts = len(self.decisions.cut), self.model.cuts
        total = (
            count * cuts * (len(self.clocks.points_hz) + len(self.extra_clocks_hz) + 2)
        )  # clocks may coincide: at most
        if total > limit and count <= limit:
            total = sum(len(self.table_clocks_hz(n)) for n in range(count)) * cuts
        if total > limit:
            raise BadInput(
                f"--tables: costs.csv would have {total} rows, more than {limit}; allow it with --tables-limit {total}"
            )
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        every = np.arange(self.model.cuts)[:, None]
        up, down = self.rates.uplink_bps.ravel(), self.rates.downlink_bps.ravel()
        for n, label, m in self.places():
            clocks = self.table_clocks_hz(n)
            costs = self.model.at(m, up[n], down[n], every, clocks[None, :])
            parts = (
                costs.delay_s,
                np.full(costs.delay_s.shape, np.nan) if costs.energy_j is None else costs.energy_j,
                costs.device_compute_s,
                costs.server_compute_s,
                costs.uplink_s,
                costs.downlink_s,
                costs.adapters_s,
            )
            columns = [part.tolist() for part in parts]
            memory = self.device_memory_bytes[m]
            hz = clocks.tolist()
            for c in range(self.model.cuts):
                tail = ["" if memory is None else memory[c], "true" if self.feasible[m, c] else "false"]
                for k, frequency in enumerate(hz):
                    figures = ["" if math.isnan(column[c][k]) else repr(column[c][k]) for column in columns]
                    clock = repr(frequency) if self.clocks.known else ""
                    writer.writerow([self.devices[m].name, label, c + 1, clock, *figures, *tail])
        path = folder / "costs.csv"
        write_atomically(path, out.getvalue().encode())
        return path


# --------------------------------------------------------------------------------------------------- checks on input


def _check(options: SolveOptions) -> None:
    if options.method not in ("card", "exact", SERVER_ONLY, DEVICE_ONLY) and not options.method.startswith("static:"):
        if options.method == "min-cut":
            raise BadInput(
                "--method min-cut: not yet supported, use exact (the same answer for a model that is a chain of layers)"
            )
        raise BadInput(f"--method {options.method}: expected card, exact, server-only, device-only or static:C")
    if options.evaluate is not None and options.evaluate not in get_args(ModelName):
        raise BadInput(f"--evaluate {options.evaluate}: expected letter or profile")
    if not 0 <= options.w <= 1:
        raise BadInput(f"--w {options.w:g}: expected a number from 0 to 1")
    if not 1 <= options.local_epochs <= 10**9:
        raise BadInput(f"--local-epochs {options.local_epochs}: expected a whole number from 1 to 1000000000")
    if options.compression is not None and not 0 < options.compression <= 1:
        raise BadInput(f"--compression {options.compression:g}: expected a number above 0 and at most 1")
    if options.rounds is not None and not 1 <= options.rounds <= MAX_DECISIONS:
        raise BadInput(f"--rounds {options.rounds}: expected a whole number from 1 to {MAX_DECISIONS}")
    if not 0 <= options.seed < 2**63:
        raise BadInput(f"--seed {options.seed}: expected a whole number from 0 to {2**63 - 1}")
    for option, value in (("--f-min-ghz", options.f_min_ghz), ("--f-max-ghz", options.f_max_ghz)):
        if value is not None and not 1e-3 <= value <= 100:
            raise BadInput(f"{option} {value:g}: expected a clock in GHz from 0.001 to 100")
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


# -------------------------------------------------------------------------------------------------------------- solve


def solve(profiles: Sequence[Profile], options: SolveOptions) -> Solution:
    """Decide cut and server clock for every device and round of a fleet.

    Raises BadInput, one line, naming the option or the profile and field, and what was expected.
    """
    _check(options)
    server, devices = _cast(profiles, options.server)
    fixed = fixed_cut(options.method, server.workload.layers)
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
    phi, more = _phi(server, devices, options)
    listed += more
    if not clocks.known:  # watts against a clock that cannot be read say nothing
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
    letter, rests_on_letter = letter_model(server, devices, epochs=options.local_epochs, phi=phi)
    tables: CostModel | None = None
    rests_on_tables: list[Assumption] = []
    if not untimed:
        tables, rests_on_tables = profile_model(
            server,
            devices,
            clocks,
            epochs=options.local_epochs,
            phi=phi,
            round_trip_s=link.round_trip_s,
            leave_out=frozenset(options.leave_out),
            count_idle=options.count_idle,
        )
    elif options.leave_out or options.count_idle:
        option = "--leave-out" if options.leave_out else "--count-idle"
        raise BadInput(
            f"{option}: the letter's model has no such term, expected layer times in every profile ({', '.join(untimed)})"
        )
    model = letter if evaluate == "letter" or tables is None else tables
    # exact decides by whatever the profiles hold; --evaluate only says what is reported of it
    decider = letter if tables is None else tables
    if options.method != "exact" or model is letter:
        listed += rests_on_letter
    if options.method == "exact" or model is tables:
        listed += rests_on_tables

    device = np.tile(np.arange(count), rounds)
    up, down = link.uplink_bps.ravel(), link.downlink_bps.ravel()
    mask = feasible[device]
    waiting = letter.waiting_s(device, up, down)
    cycles = letter.server_time.b_cycles[:, 0]
    xi = None if fit is None else fit.xi_w_per_hz3
    f_min, f_max = clocks.f_min_hz, clocks.f_max_hz
    f_star = optimal_clock(waiting, mask, cycles, xi_w_per_hz3=xi, w=options.w, f_min_hz=f_min, f_max_hz=f_max)

    extremes, extra = _extremes(model, device, up, down, mask, clocks, f_star)
    if options.method == "exact":
        own = extremes if decider is model else _extremes(decider, device, up, down, mask, clocks, f_star)[0]
        held = decider.waiting_s(device, up, down)
        if len(clocks.supported_hz):
            cut, clock = best_listed(decider, held, mask, own, clocks.supported_hz, options.w)
        else:
            cut, clock = best_continuous(decider, held, mask, own, f_min, f_max, options.w)
    else:
        clock = clocks.nearest(f_star)
        if fixed is not None:
            cut = np.full(len(device), fixed - 1, dtype=np.intp)
        else:
            cut = best_cut(waiting, mask, cycles, f_star, xi_w_per_hz3=xi, w=options.w, f_min_hz=f_min, f_max_hz=f_max)

    def price(method: str, index: Ints) -> Decisions:
        costs = model.at(device, up, down, index, clock)
        cost = extremes.cost(options.w, costs.delay_s, costs.energy_j)
        return Decisions(method, index + 1, clock, feasible[device, index], costs, cost)

    decisions = price(options.method, cut)
    baselines = {}
    for name in ALWAYS_REPORTED:
        index = np.full(len(device), (fixed_cut(name, server.workload.layers) or 1) - 1, dtype=np.intp)
        baselines[name] = price(name, index)
        tight = sorted({devices[m].name for m in device[~baselines[name].feasible]})
        if tight:
            warnings.append(f"{name} does not fit in memory for {', '.join(tight)}: no percentage against it")
    if not decisions.feasible.all():
        tight = sorted({devices[m].name for m in device[~decisions.feasible]})
        warnings.append(
            f"{options.method} does not fit in memory for {', '.join(tight)}: left out of the means, no percentages"
        )
    for figures in (decisions.costs.delay_s, decisions.costs.energy_j, decisions.cost):
        if figures is not None and not np.isfinite(figures).all():
            raise BadInput(
                "--profiles: delay, energy or cost is not a finite number: expected profiles with figures in SI units"
            )
    assumptions = distinct(listed)
    if options.require_measured and assumptions:
        names = [f"{item.quantity} ({item.provenance})" for item in assumptions]
        raise BadInput(f"--require-measured: expected measured figures only, {len(names)} are not: {'; '.join(names)}")
    return Solution(
        options=options,
        server=server,
        devices=devices,
        model=model,
        clocks=clocks,
        rates=link,
        feasible=feasible,
        device_memory_bytes=needs,
        extremes=extremes,
        extra_clocks_hz=extra,
        optimal_hz=f_star,
        decisions=decisions,
        baselines=baselines,
        exclusions=exclusions,
        assumptions=assumptions,
        warnings=warnings,
    )


def _extremes(
    model: CostModel, device: Ints, up: Floats, down: Floats, mask: Mask, clocks: ServerClocks, f_star: Floats
) -> tuple[Extremes, Floats]:
    """Extremes over the box as the cost table shows it, and the clocks that the table needs for them beside its own."""
    waiting = model.waiting_s(device, up, down)
    if len(clocks.supported_hz):
        return box_extremes(model, waiting, mask, ServerRange.over(model, clocks.points_hz), f_star), np.empty(0)
    span = ServerRange.over_interval(model, clocks.f_min_hz, clocks.f_max_hz)
    somewhere = mask.any(0)
    at = np.concatenate([x[somewhere] for x in (span.s_min_hz, span.s_max_hz, span.e_min_hz, span.e_max_hz)])
    return box_extremes(model, waiting, mask, span), np.unique(at)


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
