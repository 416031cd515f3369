"""A solution as pandas tables for people: tidy, units in the column names, provenance in ``attrs``. Arrays stay arrays inside."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler import __version__
from profiler.profile import BadInput, MissingHardware
from profiler.store import write_atomically
from solver.costs import Ints
from solver.show.reasons import PARTS, explain, of_rows

if TYPE_CHECKING:
    import pandas as pd

    from solver.scenario import Decisions, Solution


def about(solution: Solution) -> dict[str, Any]:
    """What a table rests on, as it stands in ``attrs`` of every frame: plain values that JSON can hold."""
    problem = solution.problem
    given = {f.name: getattr(problem.options, f.name) for f in dataclasses.fields(problem.options)}
    return {
        "server": problem.server.name,
        "model": problem.server.workload.model,
        "evaluate": problem.evaluated.name,
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()},
        "cost": problem.options.objective.as_json(),
        "provenance": {p.name: p.hardware.root for p in (problem.server, *problem.devices)},
        "assumptions": [item.as_json() for item in solution.assumptions],
        "warnings": list(solution.warnings),
        "toolkit_version": __version__,
    }


def decisions_frame(solution: Solution, *, reasons: bool = False) -> pd.DataFrame:
    """One row for each decision of the method, then of each baseline: device, round, method, cut, clock, delay, energy, cost and parts.

    ``reasons`` adds ``largest_part``, the next best cut (``next_best_*``) and ``decided_by`` to the rows of the method.
    """
    import pandas as pd

    methods = [solution.decisions, *solution.baselines.values()]
    frame: pd.DataFrame = pd.concat([_rows(solution, chosen) for chosen in methods], ignore_index=True)
    # A baseline may be the method itself: its rows stand there once under each heading.
    names = list(dict.fromkeys(chosen.method for chosen in methods))
    labels = np.repeat([names.index(chosen.method) for chosen in methods], len(solution.decisions.cut))
    frame["method"] = _category(labels, names)
    frame.insert(3, "baseline", np.repeat([False] + [True] * len(solution.baselines), len(solution.decisions.cut)))
    if reasons:
        frame = pd.concat([frame, _why(solution).reindex(frame.index)], axis=1)
    frame.attrs.update(about(solution))
    return frame


def _rows(solution: Solution, chosen: Decisions) -> pd.DataFrame:
    import pandas as pd

    problem, count = solution.problem, len(chosen.cut)
    devices, rounds = len(problem.devices), problem.rates.rounds
    known = problem.clocks.known
    costs, unknown = chosen.costs, np.full(count, np.nan)
    frame: pd.DataFrame = pd.DataFrame(
        {
            "device": _category(np.arange(count) % devices, [p.name for p in problem.devices]),
            "round": np.repeat(np.asarray(rounds), devices),
            "method": chosen.method,
            "cut": chosen.cut,
            "frequency_hz": chosen.frequency_hz if known else unknown,
            "measured_frequency_hz": problem.evaluated.clock_map.reached(chosen.frequency_hz) if known else unknown,
            "delay_s": costs.delay_s,
            "energy_j": unknown if costs.energy_j is None else costs.energy_j,
            "cost": chosen.cost,
            **{name: getattr(costs, name) for name in PARTS},
            "uplink_mbps": problem.rates.uplink_bps.ravel() / 1e6,
            "downlink_mbps": problem.rates.downlink_bps.ravel() / 1e6,
            "feasible": chosen.feasible,
        }
    )
    if costs.codec is not None and solution.codec_names is not None:
        frame["codec"] = _category(costs.codec, list(solution.codec_names))
    return frame


def _category(codes: Ints, names: list[str]) -> Any:
    """A column of names that stands as whole numbers in memory: a million rows in a megabyte."""
    import pandas as pd

    return pd.Categorical.from_codes(codes.tolist(), dtype=pd.CategoricalDtype(names))


def _why(solution: Solution) -> pd.DataFrame:
    import pandas as pd

    why = explain(solution, range(len(solution.decisions.cut)))
    other, there = why.next_best, why.next_best.there
    energy = other.costs.energy_j
    unknown = np.full(len(there), np.nan)
    figures = {
        "frequency_hz": other.frequency_hz if solution.problem.clocks.known else unknown,
        "delay_s": other.costs.delay_s,
        "energy_j": unknown if energy is None else energy,
        "cost": other.cost,
    }
    frame: pd.DataFrame = pd.DataFrame(
        {
            "largest_part": np.array([name.removesuffix("_s") for name in PARTS])[why.shares().argmax(1)],
            "next_best_cut": pd.array(np.where(there, other.cut, 0), dtype="Int64"),
            **{f"next_best_{name}": np.where(there, values, np.nan) for name, values in figures.items()},
            "decided_by": why.deciding(),
        }
    )
    frame["next_best_cut"] = frame["next_best_cut"].mask(~there)
    return frame


def cost_frame(solution: Solution, device: str | int = 0, round: int | None = None) -> pd.DataFrame:
    """Every cut at every table clock of one decision: the rows that ``costs.csv`` has for it, with U in ``cost``.

    ``device`` is a name or a place in the fleet; ``round`` a label as the frames show it, None for the first. Raises BadInput for one
    that is not there.
    """
    import pandas as pd

    problem = solution.problem
    names = [p.name for p in problem.devices]
    if isinstance(device, str):
        if device not in names:
            raise BadInput(f"device {device}: not in the fleet, expected one of: {', '.join(names)}")
        m = names.index(device)
    elif 0 <= device < len(names):
        m = device
    else:
        raise BadInput(f"device {device}: expected a name, or a number from 0 to {len(names) - 1}")
    rounds = list(problem.rates.rounds)
    if round is not None and round not in rounds:
        raise BadInput(f"round {round}: not solved, expected one of the {len(rounds)} from {rounds[0]} to {rounds[-1]}")
    r = 0 if round is None else rounds.index(round)
    n = r * len(names) + m
    clocks = solution.table_clocks_hz(n)
    every = np.arange(problem.evaluated.cuts)
    costs = problem.evaluated.at(
        m, problem.rates.uplink_bps[r, m], problem.rates.downlink_bps[r, m], every[:, None], clocks[None, :]
    )
    shape = costs.delay_s.shape
    extremes = of_rows(solution.extremes, np.array([n]))
    energy = np.full(shape, np.nan) if costs.energy_j is None else costs.energy_j
    memory = problem.device_memory_bytes[m]
    columns: dict[str, Any] = {
        "cut": np.repeat(every + 1, len(clocks)),
        "frequency_hz": np.tile(clocks, len(every)) if problem.clocks.known else np.full(costs.delay_s.size, np.nan),
        "delay_s": costs.delay_s.ravel(),
        "energy_j": energy.ravel(),
        "cost": np.asarray(problem.options.objective.cost(extremes, costs.delay_s, costs.energy_j)).ravel(),
        **{name: getattr(costs, name).ravel() for name in PARTS},
    }
    if memory is not None:
        columns["device_memory_bytes"] = np.repeat(np.asarray(memory), len(clocks))
    columns["feasible"] = np.repeat(problem.feasible[m], len(clocks))
    if costs.codec is not None and solution.codec_names is not None:
        columns["codec"] = _category(costs.codec.ravel(), list(solution.codec_names))
    columns["chosen"] = (columns["cut"] == solution.decisions.cut[n]) & (
        np.tile(clocks, len(every)) == solution.decisions.frequency_hz[n]
    )
    frame: pd.DataFrame = pd.DataFrame(columns)
    frame.attrs.update(about(solution), device=names[m], round=rounds[r])
    return frame


def summary_frame(solution: Solution) -> pd.DataFrame:
    """One row for the method and each baseline: means over the decisions that fit, and what the method saves against it in percent."""
    import pandas as pd

    ours = solution.decisions
    rows = []
    for k, chosen in enumerate([ours, *solution.baselines.values()]):
        row = {
            "method": chosen.method,
            "baseline": k > 0,
            "mean_delay_s": chosen.mean_delay_s(),
            "mean_energy_j": chosen.mean_energy_j(),
            "decisions": len(chosen.cut),
            "feasible": int(chosen.feasible.sum()),
            "delay_saved_pct": solution.saved_pct(ours.mean_delay_s(), chosen.mean_delay_s(), chosen) if k else None,
            "energy_saved_pct": solution.saved_pct(ours.mean_energy_j(), chosen.mean_energy_j(), chosen) if k else None,
        }
        rows.append(row)
    frame: pd.DataFrame = pd.DataFrame(rows)
    figures = [name for name in frame.columns if name.startswith("mean_") or name.endswith("_pct")]
    frame = frame.astype(dict.fromkeys(figures, float))
    frame.attrs.update(about(solution))
    return frame


def write_csv(solution: Solution, path: Path) -> Path:
    """Write `decisions_frame` as CSV; floats read back bit for bit. Raises BadInput where the file cannot be written."""
    frame = decisions_frame(solution)
    for name in ("feasible", "baseline"):  # as in costs.csv
        frame[name] = np.where(frame[name], "true", "false")
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n").encode())
    return path


def write_parquet(solution: Solution, path: Path) -> Path:
    """Write `decisions_frame` as Parquet, with what it rests on in the file's metadata. Raises MissingHardware without pyarrow."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingHardware(
            "--parquet: pyarrow is not installed, expected it there: pip install pyarrow (or 'card-profile[profile]')"
        ) from None
    out = io.BytesIO()
    decisions_frame(solution).to_parquet(out, index=False, engine="pyarrow")
    write_atomically(path, out.getvalue())
    return path
