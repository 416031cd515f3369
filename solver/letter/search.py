"""Which sets of the parameters that the letter does not give come nearest to its headline pair, and what the pair depends on.

A search over the whole ranges (`search`), draws spread evenly over them (`draws`), and one parameter at a time (`sensitivities`).
Shapes as in `lettersets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from solver.costs import Floats
from solver.letter.sets import (
    PLAUSIBLE,
    STATES,
    WIDE,
    Base,
    ClockRule,
    Fading,
    MeanRule,
    Outcome,
    Settings,
    dimensions,
    distance,
    evaluate,
    from_cube,
)

_BASINS, _CLOUD = 10, 24
_PRINTED_POINTS = 0.05
"""The letter prints one decimal: nearer than this is as near as can be told."""


@dataclass(frozen=True)
class Found:
    """The set that comes nearest to the pair, and what Algorithm 1 decides there in round 1: (S, M), good first."""

    rule: ClockRule
    mean: MeanRule
    ranges: str
    own_links: bool
    settings: Settings
    delay_pct: float
    energy_pct: float
    cuts: list[list[int]]
    frequency_hz: list[list[float]]
    rounds: int
    evaluations: int

    @property
    def distance_points(self) -> float:
        """From the letter's pair, in percentage points."""
        return float(distance(np.array(self.delay_pct), np.array(self.energy_pct)))

    @property
    def name(self) -> str:
        """What was searched, in words."""
        links = "own links" if self.own_links else "one link"
        clock = {"card": "CARD's clock", "own": "benchmarks' own f*", "f-max": "benchmarks at F_max"}
        parts = [links, clock.get(self.rule, "benchmarks at F_min")]
        parts += ["mean of ratios"] if self.mean == "mean of ratios" else []
        parts += ["fading"] if self.rounds > 1 else []
        return ", ".join([*parts, "wide ranges"] if self.ranges == "wide" else parts)

    def as_json(self) -> dict[str, Any]:
        """Everything that is needed to recompute it."""
        return {
            "name": self.name,
            "benchmarks_clock": self.rule,
            "mean": self.mean,
            "ranges": self.ranges,
            "links": "each device its own" if self.own_links else "one for all",
            "delay_reduction_vs_device_only_pct": self.delay_pct,
            "energy_reduction_vs_server_only_pct": self.energy_pct,
            "distance_points": self.distance_points,
            "rounds": self.rounds,
            "cuts": dict(zip(STATES, self.cuts, strict=True)),
            "frequency_hz": dict(zip(STATES, self.frequency_hz, strict=True)),
            "parameters": self.settings.as_json(),
            "evaluations": self.evaluations,
        }


def search(
    base: Base,
    usual: Settings,
    *,
    rule: ClockRule = "card",
    mean: MeanRule = "ratio of means",
    own_links: bool = False,
    wide: bool = False,
    fading: Fading | None = None,
    seed: int = 0,
    sample: int = 1 << 14,
    steps: int = 80,
    miss: Callable[[Outcome], Floats] | None = None,
) -> Found:
    """The set within the ranges that comes nearest to the letter's pair, or has the least ``miss`` (K,); the same for the same seed.

    First ``sample`` points spread evenly over the whole cube (scrambled Sobol). Then each of the `_BASINS` best patterns of cuts
    is refined on its own from its best point, by clouds of random steps whose width grows with success and shrinks without: the pair jumps where a
    cut flips, and a population over the whole cube gets caught in the widest pattern. Among sets that print as the letter's pair the one
    is taken that departs least from ``usual`` (K = 1). The pair is over the three states, the rounds of ``fading`` and all devices.
    """
    parameters = WIDE if wide else PLAUSIBLE
    size = dimensions(parameters, base.devices, own_links)

    home = np.array([p.share(float(getattr(usual, p.name)[0])) for p in parameters] + [1.0] * (size - len(parameters)))

    def tried(points: Floats) -> tuple[Floats, Outcome]:
        outcome = evaluate(base, from_cube(points, parameters, base.devices, own_links), rule, fading)
        far = np.clip(distance(*outcome.pair_pct(mean)) - _PRINTED_POINTS, 0, None) if miss is None else miss(outcome)
        # Sets that hit come first, the least departure among them; of the others the nearest.
        return np.where(far > 0, 1 + far, 0.1 * np.abs(points - home).mean(1)), outcome

    points = _even(size, sample, seed)
    first_far, outcome = tried(points)
    order = first_far.argsort(kind="stable")
    _, first = np.unique(outcome.cut[order].reshape(len(points), -1), axis=0, return_index=True)
    chosen = order[np.sort(first)[:_BASINS]]
    at, far, width = points[chosen], first_far[chosen], np.full(len(chosen), 0.1)
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        # Half of the steps along few axes: near the end most parameters are right and one or two are not.
        step = draw.standard_normal((len(at), _CLOUD, size))
        step[:, _CLOUD // 2 :] *= draw.random((len(at), _CLOUD - _CLOUD // 2, size)) < 2 / size
        cloud = np.clip(at[:, None, :] + width[:, None, None] * step, 0, 1)
        there = tried(cloud.reshape(-1, size))[0].reshape(len(at), _CLOUD)
        best = there.argmin(1)
        better = there.min(1) < far
        at = np.where(better[:, None], cloud[np.arange(len(at)), best], at)
        far = np.where(better, there.min(1), far)
        width = np.clip(width * np.where(better, 1.2, 0.8), 1e-5, 0.3)
    best = from_cube(at[[far.argmin()]], parameters, base.devices, own_links)
    outcome = evaluate(base, best, rule, fading)
    delay, energy = outcome.pair_pct(mean)
    return Found(
        rule=rule,
        mean=mean,
        ranges="wide" if wide else "plausible",
        own_links=own_links,
        settings=best,
        delay_pct=float(delay[0]),
        energy_pct=float(energy[0]),
        cuts=outcome.cut[0, :, 0].tolist(),
        frequency_hz=outcome.frequency_hz[0, :, 0].tolist(),
        rounds=outcome.cut.shape[2],
        evaluations=sample + steps * len(chosen) * _CLOUD,
    )


def draws(base: Base, count: int, *, own_links: bool, seed: int, wide: bool = False) -> Settings:
    """``count`` sets spread evenly over the ranges (scrambled Sobol)."""
    parameters = WIDE if wide else PLAUSIBLE
    points = _even(dimensions(parameters, base.devices, own_links), count, seed)
    return from_cube(points, parameters, base.devices, own_links)


def _even(size: int, count: int, seed: int) -> Floats:
    """(count, size) points of the unit cube."""
    from scipy.stats import qmc

    points: Floats = qmc.Sobol(size, seed=seed).random_base2(max(count - 1, 1).bit_length())[:count]
    return points


@dataclass(frozen=True)
class Sensitivity:
    """What the pair does while one parameter moves over its range and all others stay."""

    name: str
    low: float
    high: float
    delay_pct: tuple[float, float]
    energy_pct: tuple[float, float]

    @property
    def points(self) -> float:
        """The greater of both ranges, in percentage points."""
        return max(self.delay_pct[1] - self.delay_pct[0], self.energy_pct[1] - self.energy_pct[0])

    def as_json(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "parameter": self.name,
            "from": self.low,
            "to": self.high,
            "delay_pct": list(self.delay_pct),
            "energy_pct": list(self.energy_pct),
            "points": self.points,
        }


def sensitivities(base: Base, around: Settings, rule: ClockRule = "card", steps: int = 61) -> list[Sensitivity]:
    """One at a time around one set (K = 1), the strongest first: the parameters of the plausible ranges (phi from 0.01 to 1),
    the asymmetry of the link at a fixed 1/up + 1/down, S's growth over the cuts, a head of up to 9 layers, and xi."""
    share = np.linspace(0, 1, steps)
    moved: list[tuple[str, Floats, Settings]] = []
    for parameter in PLAUSIBLE:
        wanted = replace(parameter, low=0.01, high=1.0) if parameter.name == "phi" else parameter
        values = wanted.at(share)
        moved.append((parameter.name, values, around.varied(parameter.name, values)))
    both = 1 / around.uplink_mbps + 1 / around.downlink_mbps
    part = 0.02 + 0.96 * share
    asymmetric = replace(around.varied("uplink_mbps", 1 / (part * both)), downlink_mbps=1 / ((1 - part) * both))
    moved.append(("downlink's share of 1/up + 1/down", 1 - part, asymmetric))
    moved.append(("smashed_growth", share, around.varied("smashed_growth", share)))
    moved.append(("head_layers", 9 * share, around.varied("head_layers", 9 * share)))
    factor = 10 ** (4 * share - 2)
    moved.append(("xi_w_per_hz3", base.xi_w_per_hz3 * factor, around.varied("xi_factor", factor)))
    found = []
    for name, values, settings in moved:
        delay, energy = evaluate(base, settings, rule).pair_pct()
        spans = [(float(x.min()), float(x.max())) for x in (delay, energy)]
        found.append(Sensitivity(name, float(values.min()), float(values.max()), spans[0], spans[1]))
    return sorted(found, key=lambda s: -s.points)
