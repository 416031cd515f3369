"""Decide cut layer and server clock from profiles. In a notebook:

    from solver import load_fleet, solve

    solution = solve(load_fleet("profiles/letter"), method="card")
    solution.to_frame()

Names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.store import load_fleet
    from solver.problem import SolveOptions
    from solver.scenario import Solution, solve

_HOME = {
    "load_fleet": "profiler.store",
    "SolveOptions": "solver.problem",
    "Solution": "solver.scenario",
    "solve": "solver.scenario",
}

__all__ = ["Solution", "SolveOptions", "load_fleet", "solve"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
