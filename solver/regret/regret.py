"""Measured against assumed: what trusting the letter's parameters loses, and to which of them the loss belongs.

The truth is what the profiles hold, and the ideal its joint optimum. Each parameter of `beliefs.NAMES` stands either as the letter assumes it or as the
profiles have it, so n of them make 2^n beliefs. Under each belief every decision is taken anew, by the joint optimum of what is believed or,
where rounding is assumed and its premises are believed, by Algorithm 1 as printed, and priced by the truth. The Shapley
value shares the loss of the all-assumed belief among the parameters: the mean, over all orders of replacing them one after the other, of what
each replacement saves; the shares add up to the whole. docs/regret.md says how each parameter is taken apart from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from profiler.profile import BadInput, Profile
from solver import card, exact
from solver.assumptions import Assumption, distinct
from solver.costs import Choice, CostModel, Floats, Ints, Places
from solver.extremes import Extremes, box
from solver.problem import Problem, SolveOptions, in_one_model, pose
from solver.regret.beliefs import Letter, Parameter, describe, premises_hold, sides

BLOCK = 8192
"""Decisions taken at a time, so that memory does not grow with their number."""

SAME_CLOCK = 1e-6
"""Clocks nearer to each other than this, relatively, are one clock: two formulas for one optimum differ in rounding."""


# ---------------------------------------------------------------------------------------------------------- attribution


def shapley(values: Floats) -> Floats:
    """(2^n,) values of all subsets of n players, bit j of the index for player j -> (n,) Shapley values.

    They add up to ``values[-1] - values[0]``. Exact: every subset is used, none is drawn.
    """
    n = (len(values) - 1).bit_length()
    index = np.arange(len(values))
    size = (index[:, None] >> np.arange(n) & 1).sum(1)
    weight = np.array([math.factorial(k) * math.factorial(n - 1 - k) / math.factorial(n) for k in range(n)])
    shares = np.zeros(n)
    for j in range(n):
        without = index[(index >> j) & 1 == 0]
        shares[j] = (weight[size[without]] * (values[without | 1 << j] - values[without])).sum()
    return shares


@dataclass(frozen=True)
class Priced:
    """N decisions: cuts (1-based), requested clocks in Hz, their price by the truth, and what the belief expected of them. All (N,)."""

    cut: Ints
    frequency_hz: Floats
    delay_s: Floats
    energy_j: Floats
    cost: Floats
    predicted_delay_s: Floats
    predicted_energy_j: Floats


@dataclass(frozen=True)
class Means:
    """Means over the decisions under each of the 2^n beliefs, bit j of the index set where parameter j is assumed. All (2^n,).

    ``cuts_flipped`` and ``clocks_changed`` count the decisions whose cut, or whose clock at the same cut, is not the ideal one.
    """

    delay_s: Floats
    energy_j: Floats
    cost: Floats
    predicted_delay_s: Floats
    predicted_energy_j: Floats
    cuts_flipped: Floats
    clocks_changed: Floats


@dataclass(frozen=True)
class Misfit:
    """A device for which the letter, which knows no memory limit, takes a cut that does not fit."""

    device: str
    cut: int
    decisions: int


@dataclass(frozen=True)
class Regret:
    """What trusting the letter costs a fleet. ``means`` has an entry for each belief; index 0 is the ideal, -1 all assumed.

    ``pairs_changed`` (n,): in how many of the 2^(n-1) beliefs about the others at least one decision depends on the parameter.
    """

    problem: Problem
    letter: Letter
    parameters: list[Parameter]
    means: Means
    ideal: Priced
    trusting: Priced
    card_measured: Priced
    """Algorithm 1 as printed with the parameters that it can take from the profiles: fitted xi, effective FLOPs, phi and rates."""
    pairs_changed: Ints
    misfits: list[Misfit]

    @property
    def count(self) -> int:
        """n: parameters that take part."""
        return len(self.parameters)

    @cached_property
    def shares(self) -> dict[str, Floats]:
        """Shapley values (n,) of the regret in ``delay_s``, ``energy_j``, ``cost``, and of the prediction's error in
        ``predicted_delay_s`` and ``predicted_energy_j``. Each adds up to that of the letter's belief."""
        found = {name: shapley(getattr(self.means, name)) for name in ("delay_s", "energy_j", "cost")}
        for name in ("delay_s", "energy_j"):
            predicted = f"predicted_{name}"
            found[predicted] = shapley(getattr(self.means, predicted) - getattr(self.means, name))
        return found

    def same(self, j: int) -> bool:
        """Whether both sides of parameter ``j`` are equal, so that nothing depends on it, not even a prediction."""
        if self.parameters[j].name == "rounding":
            return False
        at = self.alone(j)
        errors = [at["prediction_error_delay_pct"], at["prediction_error_energy_pct"]]
        return not self.pairs_changed[j] and all(e is None or abs(e) < 1e-9 for e in errors)

    def powerless(self) -> list[str]:
        """The parameters that differ, and of which no decision depends under any belief about the others."""
        return [p.name for j, p in enumerate(self.parameters) if not self.pairs_changed[j] and not self.same(j)]

    def belief(self, index: int) -> dict[str, Any]:
        """Means under one belief, what they lose against the ideal, and how far its prediction is off."""
        at = {name: float(getattr(self.means, name)[index]) for name in self.means.__dataclass_fields__}
        delay, energy, cost = (float(getattr(self.means, name)[0]) for name in ("delay_s", "energy_j", "cost"))
        return {
            "mean_delay_s": at["delay_s"],
            "mean_energy_j": at["energy_j"],
            "mean_cost": at["cost"],
            "regret_delay_s": at["delay_s"] - delay,
            "regret_delay_pct": _percent(at["delay_s"], delay),
            "regret_energy_j": at["energy_j"] - energy,
            "regret_energy_pct": _percent(at["energy_j"], energy),
            "regret_cost": at["cost"] - cost,
            "cuts_flipped": int(at["cuts_flipped"]),
            "clocks_changed": int(at["clocks_changed"]),
            "predicted_delay_s": at["predicted_delay_s"],
            "predicted_energy_j": at["predicted_energy_j"],
            "prediction_error_delay_pct": _percent(at["predicted_delay_s"], at["delay_s"]),
            "prediction_error_energy_pct": _percent(at["predicted_energy_j"], at["energy_j"]),
        }

    def alone(self, j: int) -> dict[str, Any]:
        """Only parameter ``j`` assumed, all others as the profiles have them."""
        return self.belief(1 << j)

    def mended(self, j: int) -> dict[str, Any]:
        """Only parameter ``j`` as the profiles have it, all others assumed."""
        return self.belief((1 << self.count) - 1 - (1 << j))

    def steps(self) -> list[dict[str, Any]]:
        """From all assumed to the truth, one parameter after the other in the order of `beliefs.NAMES`: the belief after each replacement."""
        everything = (1 << self.count) - 1
        return [
            {"replaced": parameter.name, **self.belief(everything & ~((2 << j) - 1))}
            for j, parameter in enumerate(self.parameters)
        ]

    def flips(self) -> list[dict[str, Any]]:
        """Every decision that is not the ideal one, rounds first: pairs are [ideal, letter's]."""
        ours, theirs = self.ideal, self.trusting
        differs = (ours.cut != theirs.cut) | _other_clock(ours.frequency_hz, theirs.frequency_hz)
        rows = []
        for n in np.flatnonzero(differs).tolist():
            r, m = divmod(n, len(self.problem.devices))
            rows.append(
                {
                    "device": self.problem.devices[m].name,
                    "round": self.problem.rates.rounds[r],
                    "cut": [int(ours.cut[n]), int(theirs.cut[n])],
                    "frequency_hz": [float(ours.frequency_hz[n]), float(theirs.frequency_hz[n])],
                    "delay_s": [float(ours.delay_s[n]), float(theirs.delay_s[n])],
                    "energy_j": [float(ours.energy_j[n]), float(theirs.energy_j[n])],
                    "cost": [float(ours.cost[n]), float(theirs.cost[n])],
                }
            )
        return rows

    def provenance(self) -> list[str]:
        """Where the truth's figures come from, each kind once."""
        return sorted({kind for parameter in self.parameters for kind in parameter.provenance})

    def assumptions(self) -> list[Assumption]:
        """What the truth itself rests on that was not measured."""
        listed, letter, tables = self.problem.rests_on
        return distinct(listed + (letter if self.problem.tables is None else tables))

    def as_json(self) -> dict[str, Any]:
        """What ``card-solve regret --json`` prints. No NaN and no infinity: a percentage of nothing is None."""
        card_measured = {
            "mean_delay_s": float(self.card_measured.delay_s.mean()),
            "mean_energy_j": float(self.card_measured.energy_j.mean()),
            "mean_cost": float(self.card_measured.cost.mean()),
        }
        ideal = {name: value for name, value in self.belief(0).items() if name.startswith("mean")}
        rows = []
        for j, parameter in enumerate(self.parameters):
            shapley_of = {f"regret_{name}": float(self.shares[name][j]) for name in ("delay_s", "energy_j", "cost")}
            shapley_of |= {
                f"prediction_error_{name}": float(self.shares[f"predicted_{name}"][j])
                for name in ("delay_s", "energy_j")
            }
            rows.append(
                {
                    "parameter": parameter.name,
                    "quantity": parameter.quantity,
                    "assumed": parameter.assumed,
                    "truth": parameter.truth,
                    "provenance": list(parameter.provenance),
                    "shapley": shapley_of,
                    "only_this_assumed": self.alone(j),
                    "only_this_measured": self.mended(j),
                    "beliefs_in_which_it_changes_a_decision": int(self.pairs_changed[j]),
                }
            )
        return {
            "server": self.problem.server.name,
            "devices": [device.name for device in self.problem.devices],
            "w": self.problem.options.w,
            "local_epochs": self.problem.options.local_epochs,
            "decisions": len(self.ideal.cut),
            "beliefs": 1 << self.count,
            "truth": {"model": self.problem.decider.name, "provenance": self.provenance()},
            "ideal": ideal,
            "card_measured": card_measured,
            "trusting": self.belief(-1),
            "parameters": rows,
            "steps": self.steps(),
            "changes_no_decision": self.powerless(),
            "flips": self.flips(),
            "does_not_fit": [{"device": m.device, "cut": m.cut, "decisions": m.decisions} for m in self.misfits],
            "assumptions": [item.as_json() for item in self.assumptions()],
            "warnings": self.problem.warnings,
        }


def _percent(value: float, of: float) -> float | None:
    return 100 * (value / of - 1) if of > 0 else None


def _other_clock(one_hz: Floats, other_hz: Floats) -> Any:
    return np.abs(one_hz - other_hz) > SAME_CLOCK * one_hz


# ------------------------------------------------------------------------------------------------------------- regret


def regret(profiles: Sequence[Profile], options: SolveOptions, letter: Letter | None = None) -> Regret:
    """What trusting the letter's parameters costs this fleet, by parameter. ``letter`` None: its Table II.

    Raises BadInput, one line: whatever `pose` refuses, a server without power, and profiles without cores or clocks.
    """
    if options.method != "exact":
        raise BadInput(
            f"--method {options.method}: regret compares Algorithm 1 with the joint optimum, expected no --method"
        )
    for option, value in (
        ("--price", options.price_j_per_s),
        ("--max-delay-s", options.max_delay_s),
        ("--max-energy-j", options.max_energy_j),
    ):
        if value is not None:
            raise BadInput(f"{option}: Algorithm 1 minimises U of Eq. 12, expected --w and no other objective")
    if options.codec is not None:
        raise BadInput("--codec: the letter has one phi for every cut, expected --compression here")
    return of_problem(in_one_model(pose(profiles, options)), letter or Letter())


def of_problem(problem: Problem, letter: Letter) -> Regret:
    """The same of a problem posed already."""
    both, w, clocks = sides(problem, letter), problem.options.w, problem.clocks
    parameters = describe(problem, both)
    n, total = len(parameters), len(problem.places)
    beliefs = [frozenset(p.name for j, p in enumerate(parameters) if index >> j & 1) for index in range(1 << n)]
    index_of = {assumed: index for index, assumed in enumerate(beliefs)}
    models = [both.model(assumed) for assumed in beliefs]
    # Where the server lists no clocks nothing is rounded, and Algorithm 1 stands for the letter in the belief that is all its own.
    listed = len(clocks.supported_hz) > 0

    def algorithm_1(model: CostModel, assumed: frozenset[str]) -> bool:
        asked = "rounding" in assumed if listed else len(assumed) == n
        return asked and premises_hold(model)

    optimal_hz = card.optimal_clock(problem.letter, problem.places, clocks, w, problem.xi_w_per_hz3)
    sums = {name: np.zeros(len(beliefs)) for name in Means.__dataclass_fields__}
    changed = np.zeros((n, len(beliefs)), dtype=bool)
    kept: dict[str, list[Priced]] = {"ideal": [], "trusting": [], "card": []}
    misfits: dict[tuple[int, int], int] = {}
    index = np.arange(len(beliefs))
    for start in range(0, total, BLOCK):
        rows = slice(start, start + BLOCK)
        true_places = both.rates(frozenset(), rows)
        extremes, _ = box(both.truth, true_places, clocks, optimal_hz[rows])

        def decide(
            model: CostModel, assumed: frozenset[str], rows: slice = rows, limits: bool = True
        ) -> tuple[Choice, Places]:
            believed = both.rates(assumed, rows)
            if not limits:
                believed = replace(believed, feasible=np.ones_like(believed.feasible))
            if algorithm_1(model, assumed):
                return card.choose(model, believed, clocks, w, both.xi(assumed)), believed
            own, _ = box(model, believed, clocks, optimal_hz[rows])
            return exact.choose(model, believed, clocks, *own.weights(w)), believed

        def price(
            choice: Choice,
            model: CostModel,
            believed: Places,
            true_places: Places = true_places,
            extremes: Extremes = extremes,
        ) -> Priced:
            at = (choice.cut_index, choice.frequency_hz)
            true = both.truth.at(true_places.device, true_places.uplink_bps, true_places.downlink_bps, *at)
            expected = model.at(believed.device, believed.uplink_bps, believed.downlink_bps, *at)
            assert true.energy_j is not None
            assert expected.energy_j is not None
            cost = extremes.cost(w, true.delay_s, true.energy_j)
            return Priced(
                choice.cut_index + 1, choice.frequency_hz, true.delay_s, true.energy_j, cost, expected.delay_s, expected.energy_j
            )  # fmt: skip

        priced: list[Priced] = []
        for model, assumed in zip(models, beliefs, strict=True):
            if "rounding" in assumed and not premises_hold(model):
                priced.append(priced[index_of[assumed - {"rounding"}]])
                continue
            choice, believed = decide(model, assumed)
            priced.append(price(choice, model, believed))
        for name in ("delay_s", "energy_j", "cost", "predicted_delay_s", "predicted_energy_j"):
            sums[name] += [getattr(p, name).sum() for p in priced]
        cut, clock = np.array([p.cut for p in priced]), np.array([p.frequency_hz for p in priced])
        flipped = cut != cut[0]
        sums["cuts_flipped"] += flipped.sum(1)
        sums["clocks_changed"] += (~flipped & _other_clock(clock[0], clock)).sum(1)
        for j in range(n):
            other = index ^ (1 << j)
            changed[j] |= ((cut != cut[other]) | _other_clock(clock, clock[other])).any(1)
        kept["ideal"].append(priced[0])
        kept["trusting"].append(priced[-1])
        by_card = card.choose(problem.letter, true_places, clocks, w, problem.xi_w_per_hz3)
        kept["card"].append(price(by_card, problem.letter, true_places))
        if not problem.feasible.all():
            free, _ = decide(models[-1], beliefs[-1], limits=False)
            for m, c in zip(true_places.device.tolist(), free.cut_index.tolist(), strict=True):
                if not problem.feasible[m, c]:
                    misfits[m, c] = misfits.get((m, c), 0) + 1
    whole = {name: _joined(parts) for name, parts in kept.items()}
    for figures in (whole["ideal"], whole["trusting"]):
        if not (np.isfinite(figures.delay_s).all() and np.isfinite(figures.energy_j).all()):
            raise BadInput(
                "--profiles: delay or energy is not a finite number: expected profiles with figures in SI units"
            )
    counts = ("cuts_flipped", "clocks_changed")
    return Regret(
        problem=problem,
        letter=letter,
        parameters=parameters,
        means=Means(**{name: values if name in counts else values / total for name, values in sums.items()}),
        ideal=whole["ideal"],
        trusting=whole["trusting"],
        card_measured=whole["card"],
        pairs_changed=changed.sum(1) // 2,
        misfits=[Misfit(problem.devices[m].name, c + 1, times) for (m, c), times in sorted(misfits.items())],
    )


def _joined(parts: Sequence[Priced]) -> Priced:
    return Priced(*[np.concatenate([getattr(p, name) for p in parts]) for name in Priced.__dataclass_fields__])
