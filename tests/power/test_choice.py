"""How the power fit's priors are chosen: on made-up sweeps, by a rule that is written down in the benchmark."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import power_choice
from benchmarks.power_choice import GRIDS, START, Judged, look_at, search, value_of, with_value
from benchmarks.power_population import COUNTS, KINDS, draw
from profiler.power.curve import Curve
from profiler.power.kriged import Kriged
from profiler.power.models import MODELS, average_of
from profiler.power.priors import PRIORS, AveragePriors, KrigedPriors, Priors


def judged(objective: float, covered: float = 0.95, sweeps: int = 50) -> Judged:
    """Every sweep with the same objective, and the same share held."""
    level = np.full((sweeps, 2), math.exp(objective) - power_choice.FLOOR_PCT)
    return Judged(level, level, np.full((sweeps, 3), covered))


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_watts_are_positive_rise_with_the_clock_and_are_drawn_again_alike(kind):
    for clocks in COUNTS:
        sweep, again = draw(kind, clocks, 7), draw(kind, clocks, 7)
        assert np.array_equal(sweep.power_w, again.power_w)
        assert len(sweep.frequency_hz) == clocks
        assert np.all(np.diff(sweep.frequency_hz) > 0)
        assert sweep.power_w.min() > 0
        assert np.all(np.diff(sweep.asked_w) >= -1e-9)
        assert not np.array_equal(sweep.power_w, draw(kind, clocks, 8).power_w)


def test_choice_and_validation_share_no_sweep():
    training = {seed for block in power_choice.TRAINING for seed in block}
    validation = {seed for block in power_choice.VALIDATION for seed in block}
    assert not training & validation


def test_every_constant_of_the_package_lies_on_the_grid_it_was_chosen_from():
    for constant, values in GRIDS.items():
        assert value_of(PRIORS, constant) in values
        assert value_of(START, constant) == values[0]


def test_the_search_takes_what_is_better_by_more_than_its_error():
    good = GRIDS["average.plain"][2]

    def judge(priors: Priors) -> Judged:
        return judged(1.0 if priors.average.plain == good else 1.1)

    *_, (_, _, won) = search(judge)
    assert won.average.plain == good
    assert with_value(won, "average.plain", START.average.plain) == START


def test_of_lists_that_tie_the_shortest_is_taken_and_one_at_hand_stays():
    rng = np.random.default_rng(1)
    noisy = {
        value: judged(1.0).error_pct * np.exp(0.1 * rng.standard_normal((50, 2))) for value in ((1.0,), (1.0, 3.0))
    }

    def judge(priors: Priors) -> Judged:
        value = priors.kriged.rougher
        if value not in noisy:
            return judged(2.0)
        return Judged(noisy[value], noisy[value], np.full((50, 3), 0.95))

    gap = (
        judge(with_value(START, "kriged.rougher", (1.0,))).objective
        - judge(with_value(START, "kriged.rougher", (1.0, 3.0))).objective
    )
    noisy[(1.0,)] = noisy[(1.0,)] * math.exp(0.2 * gap.std() / math.sqrt(50) - gap.mean())
    at_hand = with_value(START, "kriged.rougher", (1.0, 3.0))
    assert look_at("kriged.rougher", at_hand, judge, stays=False).taken == 0
    assert look_at("kriged.rougher", at_hand, judge, stays=True).taken == 1


def test_an_interval_that_covers_too_little_is_not_taken_however_well_it_scores():
    def judge(priors: Priors) -> Judged:
        return judged(0.5, covered=0.88) if priors.interval.claim == 0.0 else judged(1.0)

    assert GRIDS["interval.claim"][look_at("interval.claim", START, judge, stays=False).taken] == math.inf


def test_priors_reach_the_laws():
    f = np.linspace(0.5e9, 1.5e9, 7)
    rng = np.random.default_rng(3)
    watts = (20 + 60 * (f / 1.5e9) ** 2.4) * (1 + 0.01 * rng.standard_normal(7))
    curve = Curve.of(f, watts, (0.5e9, 1.5e9))
    usual = Kriged().cross_fit(curve).loo_w
    for other in (
        KrigedPriors(lengths=(0.05,)),
        KrigedPriors(noise=(1e-4,)),
        KrigedPriors(rougher=(30.0,)),
        KrigedPriors(ceiling=0.9),
        KrigedPriors(plain=0.99),
    ):
        assert not np.allclose(Kriged(other).cross_fit(curve).loo_w, usual, rtol=1e-6)
    shares = average_of(AveragePriors(kriged=1e9)).cross_fit(curve)
    assert shares.parameters["weight_kriged"][0] > 0.999
    assert np.allclose(shares.loo_w, MODELS["kriged"].cross_fit(curve).loo_w, rtol=1e-3)
    sharp = average_of(AveragePriors(sharpness=20.0)).cross_fit(curve).parameters
    assert max(values[0] for values in sharp.values()) > 0.9
