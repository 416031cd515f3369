"""The answer as JSON: the contract's keys, and more beside them. No NaN and no infinity: what is unknown is null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from solver.show.reasons import explain

if TYPE_CHECKING:
    from solver.scenario import Decisions, Solution

ROWS_AT_ONCE = 5000


def as_json(solution: Solution) -> dict[str, Any]:
    """What ``card-solve --json`` prints, as one object."""
    return {
        "decisions": [row for part in _decisions(solution) for row in part],
        "baselines": {
            name: [row for part in _parts(solution) for row in _rows(solution, chosen, part)]
            for name, chosen in solution.baselines.items()
        },
        **_rest(solution),
    }


def pieces(solution: Solution) -> Iterator[str]:
    """The text of `as_json` in pieces, one decision on a line: as many rows at a time as memory hardly feels."""
    yield '{\n "decisions": ['
    yield from _listed(_decisions(solution))
    yield '],\n "baselines": {'
    for k, (name, chosen) in enumerate(solution.baselines.items()):
        yield f"{',' if k else ''}\n  {json.dumps(name)}: ["
        yield from _listed(_rows(solution, chosen, part) for part in _parts(solution))
        yield "]"
    yield "},\n"
    yield json.dumps(_rest(solution), indent=1, allow_nan=False)[2:]
    yield "\n"


def _listed(parts: Iterator[list[dict[str, Any]]]) -> Iterator[str]:
    first = True
    for part in parts:
        lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in part)
        yield f"\n  {lines}" if first else f",\n  {lines}"
        first = False


def _rest(solution: Solution) -> dict[str, Any]:
    problem = solution.problem
    return {
        "summary": solution.summary(),
        "assumptions": [item.as_json() for item in solution.assumptions],
        "server": problem.server.name,
        "evaluate": problem.evaluated.name,
        "objective": problem.options.objective.as_json(),
        "layers": problem.layers,
        "excluded_cuts": [
            {"device": e.device, "cuts": e.cuts, "machine": e.machine, "limit_bytes": e.limit_bytes}
            for e in problem.exclusions
        ],
        "warnings": solution.warnings,
    }


def _parts(solution: Solution) -> Iterator[range]:
    count = len(solution.decisions.cut)
    yield from (range(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE))


def _decisions(solution: Solution) -> Iterator[list[dict[str, Any]]]:
    """The decisions, each with why it was taken."""
    for part in _parts(solution):
        rows, reasons = _rows(solution, solution.decisions, part), explain(solution, part).as_json()
        yield [{**row, "why": why} for row, why in zip(rows, reasons, strict=True)]


def _rows(solution: Solution, chosen: Decisions, part: range) -> list[dict[str, Any]]:
    problem, at = solution.problem, slice(part.start, part.stop)
    names, labels, count = [d.name for d in problem.devices], problem.rates.rounds, len(problem.devices)
    device, cut, hz = problem.places.device[at], chosen.cut[at], chosen.frequency_hz[at]
    reached = problem.evaluated.clock_map.reached(hz)
    doubt_s = problem.evaluated.compute_half_width_s(device, cut - 1, reached).tolist()
    energy = [None] * len(part) if chosen.costs.energy_j is None else chosen.costs.energy_j[at].tolist()
    columns = (
        device.tolist(),
        cut.tolist(),
        hz.tolist() if problem.clocks.known else [None] * len(part),
        chosen.costs.delay_s[at].tolist(),
        energy,
        chosen.cost[at].tolist(),
        chosen.feasible[at].tolist(),
    )
    rows: list[dict[str, Any]] = []
    for n, m, c, f, delay, joules, cost, feasible in zip(part, *columns, strict=True):
        rows.append(
            {
                "device": names[m],
                "round": labels[n // count],
                "cut": c,
                "frequency_hz": f,
                "delay_s": delay,
                "energy_j": joules,
                "cost": cost,
                "method": chosen.method,
                "feasible": feasible,
            }
        )
    for k in np.flatnonzero(reached != hz).tolist():
        rows[k]["measured_frequency_hz"] = float(reached[k])
    for k, doubt in enumerate(doubt_s):
        if not math.isnan(doubt):
            rows[k]["compute_half_width_s"] = doubt
    if chosen.costs.codec is not None and solution.codec_names is not None:
        for row, k in zip(rows, chosen.costs.codec[at].tolist(), strict=True):
            row["codec"] = solution.codec_names[k]
    for k, n in enumerate(part):
        if n in chosen.further:
            rows[k] |= chosen.further[n]
    return rows
