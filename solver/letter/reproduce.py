"""The letter's simulation (Section V) run again: its figures, its claims beside ours, and what the claims depend on.

`reproduce` solves the letter's fleet with Algorithm 1 in the three channel states and tests each claim of Section V on the result, on
sets of parameters that the letter leaves open drawn over plausible ranges, and on the sets that `lettersearch.search` finds nearest
to the headline pair. A verdict is computed from these three and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from profiler.profile import BadInput, Profile
from solver.baselines import DEVICE_ONLY
from solver.costs import Floats, Mask
from solver.letter.search import Found, Sensitivity, draws, search, sensitivities
from solver.letter.sets import (
    CARD,
    CLOCK_RULES,
    LETTER_PCT,
    MEAN_RULES,
    METHODS,
    STATES,
    Base,
    ClockRule,
    Fading,
    Outcome,
    Settings,
    changing,
    distance,
    evaluate,
    stated,
)
from solver.problem import SolveOptions, pose
from solver.scenario import Solution, solve

REPRODUCED = "reproduced"
ASSUMING = "reproduced under these assumptions"
NOT = "not reproducible"

TOLERANCE_POINTS = 1.0
SIMILAR = 0.25
BOARD_LIMIT_W = 165.0
"""Most that an RTX 4060 Ti board may draw (NVIDIA: 160 W with 8 GB, 165 W with 16 GB)."""
DRAWS = 8192
DRAWN_ROUNDS = 4


# ------------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class Fleet:
    """What a claim needs to know beside the outcome: devices from the fastest to the weakest, C, and xi F_max^3."""

    by_speed: list[int]
    cuts: int
    full_power_w: float


Miss = Callable[[Outcome, Fleet], Floats]


@dataclass(frozen=True)
class Claim:
    """A statement of Section V: what the letter says and when it counts as true.

    ``miss`` gives (K,) for K sets, by how much they fail: 0 where the claim holds, so that a search can go towards it. ``shows`` words
    our figure. ``varies`` is False for what does not depend on the open parameters.
    """

    name: str
    letter: str
    criterion: str
    miss: Miss
    shows: Callable[[Outcome, Fleet], str]
    varies: bool = True

    def holds(self, outcome: Outcome, fleet: Fleet) -> Mask:
        """(K,) whether it does."""
        return self.miss(outcome, fleet) <= 0


def _together(*parts: Miss) -> Miss:
    return lambda o, fleet: np.sum([part(o, fleet) for part in parts], axis=0)


def _unless(ok: Mask, size: float = 0.01) -> Floats:
    return np.where(ok, 0.0, size)


def _saved(which: int) -> Miss:
    def miss(o: Outcome, fleet: Fleet) -> Floats:
        return np.clip(np.abs(o.pair_pct()[which] - LETTER_PCT[which]) - TOLERANCE_POINTS, 0, None) / 100

    return miss


def _only_ends(o: Outcome, fleet: Fleet) -> Floats:
    ends: Floats = ((o.cut == 1) | (o.cut == fleet.cuts)).mean((1, 2, 3))
    return 1.0 - ends


def _moves_to_one(o: Outcome, fleet: Fleet) -> Floats:
    mean = o.cut.mean((1, 2))[:, fleet.by_speed] / fleet.cuts
    rises: Floats = np.clip(np.diff(mean), 0, None).sum(1)
    return rises + _unless(mean[:, 0] > mean[:, -1])


def _all_change(o: Outcome, fleet: Fleet) -> Floats:
    change: Floats = changing(o).mean(1)
    return 1.0 - change


def _weaker_higher(o: Outcome, fleet: Fleet) -> Floats:
    hz = o.frequency_hz.mean((1, 2))[:, fleet.by_speed]
    hz = hz / hz[:, :1]
    falls = np.clip(-np.diff(hz), 0, None)
    fallen: Floats = np.where(falls > 1e-6, falls, 0).sum(1)
    short: Floats = np.clip(1.001 - hz[:, -1], 0, None)
    return fallen + short


def _delay_near_server(o: Outcome, fleet: Fleet) -> Floats:
    ours, server, device = (o.delay_s[m].mean((2, 3)) for m in METHODS)  # (K, S)
    nearer = np.abs(ours - server) - np.abs(ours - device)
    worst: Floats = np.clip(nearer / device, 0, None).max(1)
    return worst + _unless((nearer < 0).all(1))


def _energy_ratio(o: Outcome) -> Floats:
    ratio: Floats = o.energy_j[CARD].mean((1, 2, 3)) / o.energy_j[DEVICE_ONLY].mean((1, 2, 3))
    return ratio


def _energy_like_device(o: Outcome, fleet: Fleet) -> Floats:
    beyond: Floats = np.clip(np.abs(_energy_ratio(o) - 1) - SIMILAR, 0, None)
    return beyond


def _drawable(o: Outcome, fleet: Fleet) -> Floats:
    return np.full(len(o.cut), max(fleet.full_power_w / BOARD_LIMIT_W - 1, 0.0))


def _cuts_by_speed(o: Outcome, fleet: Fleet) -> str:
    return "mean cuts " + " ".join(f"{c:.3g}" for c in o.cut[0].mean((0, 1))[fleet.by_speed])


def _clocks_by_speed(o: Outcome, fleet: Fleet) -> str:
    return " ".join(f"{f / 1e9:.2f}" for f in o.frequency_hz[0].mean((0, 1))[fleet.by_speed]) + " GHz"


def _gap(o: Outcome, fleet: Fleet) -> str:
    ours, server, device = (float(o.delay_s[m][0].mean()) for m in METHODS)
    return f"{ours:.3g} s; {server:.3g} and {device:.3g} s"


_DELAY = Claim(
    "delay against device-only",
    f"-{LETTER_PCT[0]} %",
    f"within {TOLERANCE_POINTS:g} point",
    _saved(0),
    lambda o, fleet: f"-{o.pair_pct()[0][0]:.1f} %",
)
_ENERGY = Claim(
    "server's energy against server-only",
    f"-{LETTER_PCT[1]} %",
    f"within {TOLERANCE_POINTS:g} point",
    _saved(1),
    lambda o, fleet: f"-{o.pair_pct()[1][0]:.1f} %",
)
_PAIR = Claim(
    "both percentages at once",
    f"-{LETTER_PCT[0]} % and -{LETTER_PCT[1]} %",
    f"each within {TOLERANCE_POINTS:g} point",
    _together(_DELAY.miss, _ENERGY.miss),
    lambda o, fleet: f"{float(distance(*o.pair_pct())[0]):.1f} points off",
)
_ENDS = Claim(
    "the cut is either the last or the first",
    "31 or 1",
    "every decision",
    _only_ends,
    lambda o, fleet: "cuts " + " ".join(str(c) for c in np.unique(o.cut[0])[:8]),
)
_MOVES = Claim(
    "the cut moves from 31 to 1 as devices weaken",
    "Fig. 3(a)",
    "mean cut never rises from the fastest to the weakest device, and falls",
    _moves_to_one,
    _cuts_by_speed,
)
_CHANGES = Claim(
    "each device's cut changes with the channel",
    "Fig. 3(a)",
    "every device has two cuts or more over the rounds of some state",
    _all_change,
    lambda o, fleet: f"{int(changing(o)[0].sum())} of {o.cut.shape[-1]} devices",
)
_HIGHER = Claim(
    "a weaker device gets a higher clock",
    "Fig. 3(b)",
    "mean clock never falls from the fastest to the weakest device, and rises",
    _weaker_higher,
    _clocks_by_speed,
)
_NEAR_SERVER = Claim(
    "delay closer to server-only",
    "Fig. 4(a)",
    "nearer to server-only than to device-only in every state",
    _delay_near_server,
    _gap,
)
_LIKE_DEVICE = Claim(
    "energy similar to device-only",
    "Fig. 4(b)",
    f"within {100 * SIMILAR:g} %",
    _energy_like_device,
    lambda o, fleet: f"{_energy_ratio(o)[0]:.3g} times device-only",
)
_ALONE = (_DELAY, _ENERGY, _ENDS, _MOVES, _CHANGES, _HIGHER, _NEAR_SERVER, _LIKE_DEVICE)


def _how_many(*claims: Claim) -> Callable[[Outcome, Fleet], str]:
    return lambda o, fleet: f"{sum(bool(c.holds(o, fleet)[0]) for c in claims)} of {len(claims)}"


def _jointly(name: str, letter: str, *claims: Claim) -> Claim:
    parts = [c.miss for c in claims]
    return Claim(name, letter, "all of: " + "; ".join(c.name for c in claims), _together(*parts), _how_many(*claims))


CLAIMS = (
    _DELAY,
    _ENERGY,
    _PAIR,
    _ENDS,
    _MOVES,
    _CHANGES,
    _HIGHER,
    _jointly("cuts and clocks move as Fig. 3 says", "Fig. 3", _MOVES, _HIGHER),
    _NEAR_SERVER,
    _LIKE_DEVICE,
    _jointly("both statements about Fig. 4(b)", "Fig. 4(b)", _ENERGY, _LIKE_DEVICE),
    _jointly("the pair with the cuts of Fig. 3(a)", "Fig. 3(a), 4", _DELAY, _ENERGY, _ENDS, _MOVES, _NEAR_SERVER),
    _jointly("all of these at once", "Section V", *_ALONE),
    Claim(
        "xi is one of this server's",
        "xi = 1e-25 W/Hz^3",
        f"xi F_max^3 <= {BOARD_LIMIT_W:g} W",
        _drawable,
        lambda o, fleet: f"{fleet.full_power_w:,.0f} W at F_max",
        varies=False,
    ),
)


@dataclass(frozen=True)
class Tested:
    """A claim's verdict and what it follows from. ``share_of_draws`` None: the open parameters could not be varied."""

    claim: Claim
    ours: str
    at_stated: bool
    share_of_draws: float | None
    found: list[str]
    example: dict[str, Any] | None
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "claim": self.claim.name,
            "letter": self.claim.letter,
            "criterion": self.claim.criterion,
            "ours": self.ours,
            "holds_at_the_stated_set": self.at_stated,
            "share_of_draws": self.share_of_draws,
            "holds_at_what_the_search_found": self.found,
            "for_example_at": self.example,
            "verdict": self.verdict,
        }


def verdict(at_stated: bool, share_of_draws: float | None, found: bool) -> str:
    """`REPRODUCED`: at the stated set and at every drawn one. `ASSUMING`: at some set that was tried. `NOT`: at none."""
    if at_stated and share_of_draws == 1:
        return REPRODUCED
    return ASSUMING if at_stated or found or (share_of_draws or 0) > 0 else NOT


# -------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Reproduction:
    """The letter's simulation under the stated set, its claims tested, and the search. S states, R rounds, M devices."""

    solutions: dict[str, Solution]
    outcome: Outcome
    tested: list[Tested]
    found: list[Found]
    around: list[Sensitivity]
    region: tuple[Settings, Outcome] | None
    conditions: list[dict[str, Any]]
    options: SolveOptions
    not_varied: str | None
    """Why what the letter leaves open was not varied; None if it was."""

    @property
    def devices(self) -> list[str]:
        """Names in the order of M."""
        return [d.name for d in self.solutions[STATES[0]].problem.devices]

    def at_clock(self, rule: ClockRule) -> tuple[float, float]:
        """The stated set's pair with the benchmarks at another clock (`lettersearch.ClockRule`), through the fleet's own cost model."""
        if rule == "card":
            delay, energy = self.outcome.pair_pct()
            return float(delay[0]), float(energy[0])
        sums = np.zeros(4)
        for solution in self.solutions.values():
            problem, places, costs = solution.problem, solution.problem.places, solution.decisions.costs
            low, high = problem.clocks.f_min_hz, problem.clocks.f_max_hz
            w = self.options.w
            # Eq. 16 over one cut: its cycles cancel, so both benchmarks get the same clock.
            own = high if w >= 1 else float(np.cbrt(w * (high**2 - low**2) / (2 * (1 - w) * (1 / low - 1 / high))))
            hz = {"f-max": high, "f-min": low}.get(rule, min(max(own, low), high)) * np.ones(len(places))

            def at(index: int) -> Any:
                return problem.letter.at(places.device, places.uplink_bps, places.downlink_bps, index, hz)  # noqa: B023

            device, server = at(problem.letter.cuts - 1), at(0)
            sums += [costs.delay_s.sum(), device.delay_s.sum(), _joules(costs).sum(), server.energy_j.sum()]
        return float(100 * (1 - sums[0] / sums[1])), float(100 * (1 - sums[2] / sums[3]))

    def as_json(self) -> dict[str, Any]:
        """What ``summary.json`` holds and ``--json`` prints."""
        delay, energy = self.outcome.pair_pct()
        ratio = self.outcome.pair_pct("mean of ratios")
        first = self.solutions[STATES[0]]
        stated_set: dict[str, Any] = {}
        for solution in self.solutions.values():
            for item in solution.assumptions:
                stated_set.setdefault(item.quantity, []).append(item.as_json())
        return {
            "letter": {
                "delay_reduction_vs_device_only_pct": LETTER_PCT[0],
                "energy_reduction_vs_server_only_pct": LETTER_PCT[1],
            },
            "ours": {
                "delay_reduction_vs_device_only_pct": float(delay[0]),
                "energy_reduction_vs_server_only_pct": float(energy[0]),
                "as_mean_of_ratios_pct": [float(ratio[0][0]), float(ratio[1][0])],
                "by_benchmarks_clock_pct": {rule: list(self.at_clock(rule)) for rule in CLOCK_RULES},
            },
            "by_channel": {
                state: {
                    "delay_reduction_vs_device_only_pct": solution.summary()["delay_reduction_vs_device_only_pct"],
                    "energy_reduction_vs_server_only_pct": solution.summary()["energy_reduction_vs_server_only_pct"],
                    **{
                        method: {
                            "mean_delay_s": float(self.outcome.delay_s[method][0, s].mean()),
                            "mean_energy_j": float(self.outcome.energy_j[method][0, s].mean()),
                        }
                        for method in METHODS
                    },
                }
                for s, (state, solution) in enumerate(self.solutions.items())
            },
            "claims": [t.as_json() for t in self.tested],
            "search": [f.as_json() for f in self.found],
            "around_the_last_found": [s.as_json() for s in self.around],
            "server": first.problem.server.name,
            "devices": self.devices,
            "rounds": self.outcome.cut.shape[2],
            "seed": self.options.seed,
            "not_varied": self.not_varied,
            "w": self.options.w,
            "local_epochs": self.options.local_epochs,
            "assumptions": [
                {**rows[0], "value": [r["value"] for r in rows]} if any(r != rows[0] for r in rows) else rows[0]
                for rows in stated_set.values()
            ],
        }


def _joules(costs: Any) -> Floats:
    if costs.energy_j is None:
        raise BadInput("--profiles: the server has no power_fit, expected xi: the letter's claims are about its energy")
    joules: Floats = costs.energy_j
    return joules


def reproduce(
    fleet: Sequence[Profile], *, rounds: int = 100, seed: int = 0, full_search: bool = False, draw: int = DRAWS
) -> Reproduction:
    """Run the simulation of Section V on a fleet (the letter's: `solver.letter.fleet.profiles`) and test the letter's claims.

    Three channel states x ``rounds`` x devices, Algorithm 1 in the letter's model, w and T at their Table II values. ``full_search`` adds the other readings
    of the benchmarks, wide ranges, the sensitivities, the attainable region and the conditions of Fig. 3. ``draw``: how many sets with links
    of their own are drawn; it also sets the effort of the search for a claim. Raises BadInput.
    """
    options = SolveOptions(method="card", evaluate="letter", rounds=rounds, seed=seed)
    solutions = {state: solve(fleet, replace(options, channel=state)) for state in STATES}
    outcome = _outcome(list(solutions.values()))
    first = solutions["normal"].problem
    top = first.clocks.f_max_hz
    facts = Fleet(
        by_speed=np.argsort(first.letter.device_compute_s[:, -1], kind="stable").tolist(),
        cuts=first.letter.cuts,
        full_power_w=(first.xi_w_per_hz3 or 0.0) * top * top * top,
    )
    base, not_varied = None, None
    try:
        base = Base.of(first)
    except BadInput as why:  # another fleet: its claims are tested at what it holds
        if full_search:
            raise
        not_varied = str(why)
    found: list[Found] = []
    around: list[Sensitivity] = []
    region, conditions = None, []
    drawn: list[tuple[Settings, Outcome]] = []
    if base is not None:
        mean_bps = _mean_rates(fleet, options)
        usual = stated(first, base, {s: (float(up.mean()), float(down.mean())) for s, (up, down) in mean_bps.items()})
        fading = Fading(
            np.stack([solutions[s].problem.rates.uplink_bps / mean_bps[s][0] for s in STATES]),
            np.stack([solutions[s].problem.rates.downlink_bps / mean_bps[s][1] for s in STATES]),
        )
        few = fading.first(DRAWN_ROUNDS)
        found = _search(base, usual, few, seed, full_search)
        for own_links, count in ((False, draw // 4), (True, draw)):
            sets = draws(base, count, own_links=own_links, seed=seed)
            drawn.append((sets, evaluate(base, sets, fading=few)))
        if full_search:
            around = sensitivities(base, found[1].settings)
            sets = draws(base, 4096, own_links=True, seed=seed)
            region = (sets, evaluate(base, sets))
            conditions = _conditions(base, usual, fading, facts)
    trial = None if base is None else _Trial(base, usual, few, seed, draw, drawn, found)
    tested = [_tested(claim, outcome, facts, trial) for claim in CLAIMS]
    return Reproduction(solutions, outcome, tested, found, around, region, conditions, options, not_varied)


def _outcome(solutions: Sequence[Solution]) -> Outcome:
    """The solutions of the three states as one set, K = 1."""

    shape = solutions[0].problem.rates.uplink_bps.shape

    def table(by_state: Sequence[Any]) -> Any:
        return np.stack([np.asarray(one).reshape(shape) for one in by_state])[None]

    delays, energies = {}, {}
    for method in METHODS:
        chosen = [s.decisions if method == CARD else s.baselines[method] for s in solutions]
        delays[method] = table([rows.costs.delay_s for rows in chosen])
        energies[method] = table([_joules(rows.costs) for rows in chosen])
    for s in solutions:
        for name, rows_of in s.baselines.items():
            if not rows_of.feasible.all():
                raise BadInput(
                    f"--profiles: {name} does not fit in memory, expected a fleet on which the benchmarks run"
                )
    cut, hz = table([s.decisions.cut for s in solutions]), table([s.decisions.frequency_hz for s in solutions])
    return Outcome(cut, hz, delays, energies)


def _mean_rates(fleet: Sequence[Profile], options: SolveOptions) -> dict[str, tuple[Floats, Floats]]:
    """Rates without fading of each state in bit/s, (1, M) up and down."""
    links = {state: pose(fleet, replace(options, rounds=1, channel=state)).rates for state in STATES}
    return {state: (link.uplink_bps, link.downlink_bps) for state, link in links.items()}


def _search(base: Base, usual: Settings, few: Fading, seed: int, full: bool) -> list[Found]:
    """Always: one link for all, and each device its own. In full also fading, wide ranges and the other readings of the benchmarks."""
    found = [search(base, usual, own_links=own, seed=seed) for own in (False, True)]
    if full:
        found.append(search(base, usual, fading=few, seed=seed, sample=1 << 12))
        found.append(search(base, usual, wide=True, seed=seed))
        found += [search(base, usual, rule=rule, own_links=True, seed=seed) for rule in CLOCK_RULES[1:]]
        found.append(search(base, usual, mean=MEAN_RULES[1], own_links=True, seed=seed))
    return found


@dataclass(frozen=True)
class _Trial:
    """The sets on which claims are tried beside the stated one."""

    base: Base
    usual: Settings
    few: Fading
    seed: int
    draw: int
    drawn: list[tuple[Settings, Outcome]]
    found: list[Found]


def _example(sets: Settings, outcome: Outcome, k: int) -> dict[str, Any]:
    """Set ``k`` where a claim holds, with what is decided there in round 1 of the state normal."""
    at = STATES.index("normal")
    decided = {"cuts": outcome.cut[k, at, 0].tolist(), "frequency_hz": outcome.frequency_hz[k, at, 0].tolist()}
    return {**sets.as_json(k), **decided}


def _tested(claim: Claim, outcome: Outcome, facts: Fleet, trial: _Trial | None) -> Tested:
    """Try a claim: the stated set, the draws, the sets near the pair, and where none of them does, a search for the claim itself."""
    at_stated, ours = bool(claim.holds(outcome, facts)[0]), claim.shows(outcome, facts)
    if not claim.varies:
        return Tested(claim, ours, at_stated, None, [], None, REPRODUCED if at_stated else NOT)
    if trial is None:
        return Tested(claim, ours, at_stated, None, [], None, verdict(at_stated, None, False))
    base, few, names, examples = trial.base, trial.few, [], []
    held = [claim.holds(o, facts) for _, o in trial.drawn]
    share = float(np.concatenate(held).mean())
    for f in trial.found:
        if f.rule == "card" and f.mean == MEAN_RULES[0]:
            again = evaluate(base, f.settings, fading=few if f.rounds > 1 else None)
            if claim.holds(again, facts)[0]:
                names.append(f.name)
                examples.append(_example(f.settings, again, 0))
    if not (at_stated or names or share):
        # Most claims need no fading, which costs time.
        for fading, sample in ((None, 4 * trial.draw), (few, trial.draw)):
            sought = search(
                base,
                trial.usual,
                own_links=True,
                fading=fading,
                seed=trial.seed,
                sample=sample,
                steps=min(40, trial.draw // 8),
                miss=lambda o: claim.miss(o, facts),
            )
            again = evaluate(base, sought.settings, fading=fading)
            if claim.holds(again, facts)[0]:
                names.append("a search for this claim" + ("" if fading is None else ", fading"))
                examples.append(_example(sought.settings, again, 0))
                break
    for (sets, drawn), yes in zip(trial.drawn, held, strict=True):
        if yes.any():
            examples.append(_example(sets, drawn, int(yes.argmax())))
    final = verdict(at_stated, share, bool(names))
    return Tested(claim, ours, at_stated, share, names, None if at_stated or not examples else examples[0], final)


# ------------------------------------------------------------------------------------- when Fig. 3 would be as printed

SWEEPS = (
    ("uplink_mbps", "uplink in Mbit/s, downlink in proportion"),
    ("smashed_growth", "S(31) / S(1) - 1"),
    ("f_min_ghz", "F_min in GHz"),
)


def _conditions(base: Base, usual: Settings, fading: Fading, facts: Fleet) -> list[dict[str, Any]]:
    """One row a value of each sweep: devices whose cut changes over the rounds, mean cut and clock of each, from the stated set."""
    values = {
        "uplink_mbps": np.geomspace(0.05, 2000, 47),
        "smashed_growth": np.concatenate([[-1.0, -0.5, 0.0], np.geomspace(1, 4096, 37)]),
        "f_min_ghz": np.arange(0.05, 2.451, 0.05),
    }
    rows = []
    for name, _ in SWEEPS:
        sets = usual.varied(name, values[name])
        if name == "uplink_mbps":
            sets = replace(sets, downlink_mbps=sets.downlink_mbps * values[name] / usual.uplink_mbps)
        outcome = evaluate(base, sets, fading=fading)
        moved, higher = changing(outcome), _HIGHER.holds(outcome, facts)
        delay, energy = outcome.pair_pct()
        for k, value in enumerate(values[name]):
            rows.append(
                {
                    "swept": name,
                    "value": float(value),
                    "devices_whose_cut_changes": int(moved[k].sum()),
                    "weaker_device_higher_clock": bool(higher[k]),
                    "mean_cuts": outcome.cut[k].mean((0, 1)).tolist(),
                    "mean_frequency_hz": outcome.frequency_hz[k].mean((0, 1)).tolist(),
                    "delay_reduction_vs_device_only_pct": float(delay[k]),
                    "energy_reduction_vs_server_only_pct": float(energy[k]),
                }
            )
    return rows
