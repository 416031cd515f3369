"""Rounds x devices: from a problem to decisions, the baselines beside them and what they rest on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from profiler.profile import BadInput, Profile
from profiler.store import write_atomically
from solver.assumptions import Assumption, distinct
from solver.baselines import ALWAYS_REPORTED, DEVICE_ONLY, SERVER_ONLY, fixed_cut
from solver.costs import Costs, Floats, Ints, Mask
from solver.extremes import Extremes
from solver.graphs.fleet import FleetGraph, GraphChoice, costs_inside, further_keys
from solver.methods import DECIDE_BY_PROFILE, Task, choose
from solver.problem import Problem, SolveOptions, pose
from solver.spread import spread

if TYPE_CHECKING:
    import pandas as pd

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
class Decisions:
    """One decision for each round and device, rounds first: arrays (N,). ``energy_j`` is None where power is unknown."""

    method: str
    cut: Ints
    frequency_hz: Floats
    feasible: Mask
    costs: Costs
    cost: Floats
    further: dict[int, dict[str, Any]] = field(default_factory=dict)
    """More keys of single decisions, by their place: which operators are on the device where a cut is inside a layer."""

    def mean_delay_s(self) -> float | None:
        """Over the decisions that fit in memory; None if there is none."""
        return float(self.costs.delay_s[self.feasible].mean()) if self.feasible.any() else None

    def mean_energy_j(self) -> float | None:
        """Over the decisions that fit in memory; None if there is none, or no power."""
        if self.costs.energy_j is None or not self.feasible.any():
            return None
        return float(self.costs.energy_j[self.feasible].mean())


@dataclass(frozen=True)
class Solution:
    """The answer, and all that is needed to recompute it. N = rounds x devices, rounds first; M devices, C cuts."""

    problem: Problem
    extremes: Extremes
    extra_clocks_hz: Floats
    optimal_hz: Floats
    decisions: Decisions
    baselines: dict[str, Decisions]
    assumptions: list[Assumption]
    warnings: list[str]

    @property
    def codec_names(self) -> tuple[str, ...] | None:
        """What the indices `Costs.codec` stand for; None where no codec was asked for."""
        codecs = self.problem.evaluated.codecs
        return None if codecs is None else codecs.names

    def places(self) -> Iterator[tuple[int, int, int]]:
        """(n, round's label, device's index) of every decision in order."""
        for n in range(len(self.decisions.cut)):
            r, m = divmod(n, len(self.problem.devices))
            yield n, self.problem.rates.rounds[r], m

    def summary(self) -> dict[str, float | None]:
        """The four figures of the contract. Percentages are ratios of means; None where a benchmark does not fit or has no figure."""
        delay, energy = self.decisions.mean_delay_s(), self.decisions.mean_energy_j()
        device_only, server_only = self.baselines[DEVICE_ONLY], self.baselines[SERVER_ONLY]
        return {
            "mean_delay_s": delay,
            "mean_energy_j": energy,
            "delay_reduction_vs_device_only_pct": self.saved_pct(delay, device_only.mean_delay_s(), device_only),
            "energy_reduction_vs_server_only_pct": self.saved_pct(energy, server_only.mean_energy_j(), server_only),
        }

    def saved_pct(self, ours: float | None, theirs: float | None, baseline: Decisions) -> float | None:
        """By how many percent a mean of the method is below that of ``baseline``; None where the two cannot be compared."""
        # Means over different devices cannot be compared: a fixed cut may fit on some devices only.
        alike = baseline.feasible.all() and self.decisions.feasible.all()
        if ours is None or theirs is None or not theirs > 0 or not alike:
            return None
        return 100.0 * (1.0 - ours / theirs)

    def as_json(self) -> dict[str, Any]:
        """What ``card-solve --json`` prints. No NaN and no infinity: what is unknown is None."""
        from solver.show.answer import as_json

        return as_json(self)

    def write_json(self, out: TextIO) -> None:
        """Write what `as_json` holds, in pieces: a million decisions need no more memory than a few thousand."""
        from solver.show.answer import pieces

        for piece in pieces(self):
            out.write(piece)

    def to_frame(self, *, reasons: bool = False) -> pd.DataFrame:
        """All decisions as a tidy pandas table, the baselines below them; ``reasons`` adds the next best cut (`solver.show.frames`)."""
        from solver.show.frames import decisions_frame

        return decisions_frame(self, reasons=reasons)

    def cost_frame(self, device: str | int = 0, round: int | None = None) -> pd.DataFrame:
        """Every cut and clock of one decision as a pandas table: a device by name or place, a round by label (None: the first)."""
        from solver.show.frames import cost_frame

        return cost_frame(self, device, round)

    def summary_frame(self) -> pd.DataFrame:
        """The means of the method and of each baseline, and what is saved against it, as a pandas table."""
        from solver.show.frames import summary_frame

        return summary_frame(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from solver.show.html import fragment

        return fragment(self)

    def table_clocks_hz(self, n: int) -> Floats:
        """Clocks of the cost table for decision ``n``: the supported ones, F_min, F_max, f* and the one decided, ascending.

        Where any clock will do, also those at which D or E is extreme, if that is inside the range.
        """
        own = [self.optimal_hz[n], self.decisions.frequency_hz[n]]
        return np.unique(np.concatenate([self.problem.clocks.points_hz, self.extra_clocks_hz, own]))

    def write_tables(self, folder: Path, limit: int = TABLE_LIMIT) -> Path:
        """Write ``costs.csv``: every cut and table clock of every decision. Floats are written so that they read back bit for bit.

        Raises BadInput where it would have more than ``limit`` rows.
        """
        if limit < 1:
            raise BadInput(f"--tables-limit {limit}: expected a number of rows above 0")
        count, cuts = len(self.decisions.cut), self.problem.evaluated.cuts
        total = (
            count * cuts * (len(self.problem.clocks.points_hz) + len(self.extra_clocks_hz) + 2)
        )  # clocks may coincide: at most
        if total > limit and count <= limit:
            total = sum(len(self.table_clocks_hz(n)) for n in range(count)) * cuts
        if total > limit:
            raise BadInput(
                f"--tables: costs.csv would have {total} rows, more than {limit}; allow it with --tables-limit {total}"
            )
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = self.codec_names
        writer.writerow(TABLE_COLUMNS if names is None else (*TABLE_COLUMNS, "codec"))
        every = np.arange(self.problem.evaluated.cuts)[:, None]
        up, down = self.problem.rates.uplink_bps.ravel(), self.problem.rates.downlink_bps.ravel()
        for n, label, m in self.places():
            clocks = self.table_clocks_hz(n)
            costs = self.problem.evaluated.at(m, up[n], down[n], every, clocks[None, :])
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
            codecs = None if costs.codec is None else costs.codec.tolist()
            memory = self.problem.device_memory_bytes[m]
            hz = clocks.tolist()
            for c in range(self.problem.evaluated.cuts):
                tail = ["" if memory is None else memory[c], "true" if self.problem.feasible[m, c] else "false"]
                for k, frequency in enumerate(hz):
                    figures = ["" if math.isnan(column[c][k]) else repr(column[c][k]) for column in columns]
                    clock = repr(frequency) if self.problem.clocks.known else ""
                    codec = [] if names is None or codecs is None else [names[codecs[c][k]]]
                    writer.writerow([self.problem.devices[m].name, label, c + 1, clock, *figures, *tail, *codec])
        path = folder / "costs.csv"
        write_atomically(path, out.getvalue().encode())
        return path


# -------------------------------------------------------------------------------------------------------------- solve


def solve(profiles: Sequence[Profile], options: SolveOptions | None = None, **choices: Any) -> Solution:
    """Decide cut and server clock for every device and round of a fleet.

    ``choices`` are fields of `SolveOptions` by name and take precedence: ``solve(fleet, method="card", w=0.5)``.
    Raises BadInput, one line, naming the option or the profile and field, and what was expected.
    """
    return decide(pose(profiles, replace(options or SolveOptions(), **choices)))


def decide(problem: Problem) -> Solution:
    """Decide by the method that the problem's options name, here or by ``--scheduler`` on other machines.

    Raises BadInput where the figures are no finite numbers or no place can keep the objective's limit.
    """
    options, places, goal = problem.options, problem.places, problem.options.objective
    model, warnings = problem.evaluated, list(problem.warnings)
    graph = FleetGraph.of(problem.server) if options.method == "min-cut" else None
    if graph is not None and problem.server.operators is None:
        warnings.append(
            f"{problem.server.name}: no field operators, so its chain of layers is cut, as exact does; "
            "'card-profile run --measure layers,power,graph' stores them"
        )
    task = Task(
        options.method,
        goal,
        problem.layers,
        problem.clocks,
        problem.letter,
        problem.evaluated,
        problem.decider,
        problem.xi_w_per_hz3,
        graph,
    )
    chosen = choose(task, places) if options.scheduler is None else spread(task, places, options.scheduler)
    choice, extremes = chosen.choice, chosen.extremes
    if not chosen.met.all():
        names, hz = [device.name for device in problem.devices], choice.frequency_hz
        nearest = problem.decider.at(places.device, places.uplink_bps, places.downlink_bps, choice.cut_index, hz)
        warnings.append(goal.unmet(chosen.met, places.device, names, nearest))

    def price(method: str, index: Ints) -> Decisions:
        costs = model.at(places.device, places.uplink_bps, places.downlink_bps, index, choice.frequency_hz)
        cost = goal.cost(extremes, costs.delay_s, costs.energy_j)
        return Decisions(method, index + 1, choice.frequency_hz, places.feasible[places.device, index], costs, cost)

    def tight(rows: Decisions) -> str:
        return ", ".join(sorted({problem.devices[m].name for m in places.device[~rows.feasible]}))

    decisions = price(options.method, choice.cut_index)
    if graph is not None:
        cuts = GraphChoice(choice, chosen.inside)
        costs = costs_inside(graph, cuts, model, places, decisions.costs)
        cost = goal.cost(extremes, costs.delay_s, costs.energy_j)
        decisions = replace(decisions, costs=costs, cost=cost, further=further_keys(graph, cuts))
    baselines = {}
    for name in ALWAYS_REPORTED:
        index = np.full(len(places), (fixed_cut(name, problem.layers) or 1) - 1, dtype=np.intp)
        baselines[name] = price(name, index)
        if not baselines[name].feasible.all():
            warnings.append(f"{name} does not fit in memory for {tight(baselines[name])}: no percentage against it")
    if not decisions.feasible.all():
        warnings.append(
            f"{options.method} does not fit in memory for {tight(decisions)}: left out of the means, no percentages"
        )
    decisions = replace(decisions, feasible=decisions.feasible & chosen.met)
    for figures in (decisions.costs.delay_s, decisions.costs.energy_j, decisions.cost):
        if figures is not None and not np.isfinite(figures).all():
            raise BadInput(
                "--profiles: delay, energy or cost is not a finite number: expected profiles with figures in SI units"
            )
    listed, rests_on_letter, rests_on_tables = problem.rests_on
    by_profile = options.method in DECIDE_BY_PROFILE
    if not by_profile or model is problem.letter:
        listed = listed + rests_on_letter
    if by_profile or model is problem.tables:
        listed = listed + rests_on_tables
    if graph is not None:
        listed = listed + graph.assumptions(problem.server)
    assumptions = distinct(listed)
    if options.require_measured and assumptions:
        names = [f"{item.quantity} ({item.provenance})" for item in assumptions]
        raise BadInput(f"--require-measured: expected measured figures only, {len(names)} are not: {'; '.join(names)}")
    return Solution(
        problem=problem,
        extremes=extremes,
        extra_clocks_hz=chosen.extra_clocks_hz,
        optimal_hz=chosen.optimal_hz,
        decisions=decisions,
        baselines=baselines,
        assumptions=assumptions,
        warnings=warnings,
    )
