"""Which cut and clock each place gets, by method: arrays in, arrays out, so that it runs here or spread over other machines."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solver import card
from solver.baselines import fixed_cut
from solver.costs import Choice, CostModel, Floats, Ints, Mask, Places, ServerClocks
from solver.extremes import Extremes, box
from solver.graphs.fleet import FleetGraph, Inside
from solver.graphs.fleet import choose as choose_on_graph
from solver.objective import Objective

DECIDE_BY_PROFILE = ("exact", "min-cut")
"""Methods that decide by whatever the profiles hold; the others decide in the letter's model."""


@dataclass(frozen=True)
class Task:
    """All that a choice depends on but the places: the method and its objective, both models, the server's clocks."""

    method: str
    objective: Objective
    layers: int
    clocks: ServerClocks
    letter: CostModel
    evaluated: CostModel
    decider: CostModel
    """What ``exact`` decides by."""
    xi_w_per_hz3: float | None
    graph: FleetGraph | None = None
    """What ``min-cut`` cuts."""


@dataclass(frozen=True)
class Chosen:
    """The choice for N places, and what it is judged by: arrays (N,)."""

    choice: Choice
    met: Mask
    """Whether the choice keeps the objective's limit; all True without one."""
    optimal_hz: Floats
    """f* of Eq. 16."""
    extremes: Extremes
    extra_clocks_hz: Floats
    """Clocks at which D or E is extreme and which are no listed ones, (X,)."""
    inside: dict[int, Inside] = field(default_factory=dict)
    """Places whose cut is inside a layer: only ``min-cut`` on operators knows any."""

    @staticmethod
    def joined(parts: list[Chosen]) -> Chosen:
        """Parts of the places, one after the other."""
        return Chosen(
            Choice(
                np.concatenate([p.choice.cut_index for p in parts]),
                np.concatenate([p.choice.frequency_hz for p in parts]),
            ),
            np.concatenate([p.met for p in parts]),
            np.concatenate([p.optimal_hz for p in parts]),
            Extremes(
                *(
                    np.concatenate([getattr(p.extremes, name) for p in parts])
                    for name in ("d_min_s", "d_max_s", "e_min_j", "e_max_j")
                )
            ),
            parts[0].extra_clocks_hz,
            {
                start + n: cut
                for start, part in zip(np.cumsum([0, *(len(p.met) for p in parts)]).tolist(), parts, strict=False)
                for n, cut in part.inside.items()
            },
        )


def choose(task: Task, places: Places) -> Chosen:
    """Cut and clock of every place."""
    w, clocks = task.objective.w, task.clocks
    met = np.ones(len(places), dtype=np.bool_)
    in_the_letters_model = (task.letter, places, clocks, w, task.xi_w_per_hz3)
    cut: Ints | None = None
    if task.method == "card":
        cut, f_star = card.algorithm_1(*in_the_letters_model)
    else:
        f_star = card.optimal_clock(*in_the_letters_model)
        if (fixed := fixed_cut(task.method, task.layers)) is not None:
            cut = np.full(len(places), fixed - 1, dtype=np.intp)
    extremes, extra = box(task.evaluated, places, clocks, f_star)
    inside: dict[int, Inside] = {}
    if cut is not None:
        choice = Choice(cut, clocks.nearest(f_star))
    else:
        own = extremes if task.decider is task.evaluated else box(task.decider, places, clocks, f_star)[0]
        if task.graph is None:
            choice, met = task.objective.choose(task.decider, places, clocks, own)
        else:
            found = choose_on_graph(task.graph, task.decider, places, clocks, *task.objective.factors(own))
            choice, inside = found.choice, found.inside
    return Chosen(choice, met, f_star, extremes, extra, inside)
