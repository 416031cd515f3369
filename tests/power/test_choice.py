"""How the power fit's priors are chosen: on made-up sweeps, by a rule that is written down in the benchmark."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import power_choice, power_synthetic
from benchmarks.power_choice import (
    GRIDS,
    START,
    STRUCTURES,
    Judged,
    adopted,
    look_at,
    search,
    search_structure,
    value_of,
    with_value,
)
from benchmarks.power_population import COUNTS, KINDS, draw
from profiler.power.curve import Curve
from profiler.power.kriged import Kriged
from profiler.power.models import MODELS, average_of
from profiler.power.priors import PRIORS, AveragePriors, KrigedPriors, Priors


def judged(objective: float, covered: float = 0.95, sweeps: int = 50) -> Judged:
    """Every sweep with the same objective, and the same share held."""
    level = np.full((sweeps, 2), math.exp(objective) - power_choice.FLOOR_PCT)
    held, noise = np.full((sweeps, 3), covered), np.linspace(0.001, 0.02, sweeps)
    return Judged(level, level, held, noise, np.arange(sweeps) % 2 == 1)


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
    rounds = (
        power_choice.TRAINING,
        power_choice.VALIDATION,
        *(round.training for round in STRUCTURES.values()),
        *(round.validation for round in STRUCTURES.values()),
        (power_synthetic.SEEDS,),
    )
    seeds = [seed for blocks in rounds for block in blocks for seed in block]
    assert len(seeds) == len(set(seeds))


def test_every_constant_of_the_package_lies_on_the_grid_it_was_chosen_from():
    chosen_from = {**GRIDS, **STRUCTURES[5].values, **STRUCTURES[6].values}
    for constant, values in chosen_from.items():
        assert value_of(PRIORS, constant) in values
    for constant, values in GRIDS.items():
        assert value_of(START, constant) == values[0]
    for structure in STRUCTURES.values():
        for constant, values in structure.values.items():
            assert value_of(structure.start, constant) == values[0]


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
        return Judged(noisy[value], noisy[value], np.full((50, 3), 0.95), np.zeros(50), np.zeros(50, bool))

    gap = (
        judge(with_value(START, "kriged.rougher", (1.0,))).objective
        - judge(with_value(START, "kriged.rougher", (1.0, 3.0))).objective
    )
    noisy[(1.0,)] = noisy[(1.0,)] * math.exp(0.2 * gap.std() / math.sqrt(50) - gap.mean())
    at_hand = with_value(START, "kriged.rougher", (1.0, 3.0))
    assert look_at("kriged.rougher", at_hand, judge).taken == 0
    assert look_at("kriged.rougher", at_hand, judge, stays=True).taken == 1


def test_an_interval_that_covers_too_little_is_not_taken_however_well_it_scores():
    def judge(priors: Priors) -> Judged:
        return judged(0.5, covered=0.88) if priors.interval.claim == 0.0 else judged(1.0)

    assert GRIDS["interval.claim"][look_at("interval.claim", START, judge).taken] == math.inf


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


def test_of_beliefs_that_are_not_told_apart_the_weakest_is_taken_and_a_law_that_gains_nothing_stays_as_it_was():
    weak, strong = STRUCTURES[4].values["kriged.scatter"][2], STRUCTURES[4].values["kriged.scatter"][-1]
    rng = np.random.default_rng(2)
    noise = np.exp(0.1 * rng.standard_normal((50, 2)))

    def judge(priors: Priors) -> Judged:
        if priors.kriged.scatter == strong:
            return judged(1.0)
        if priors.kriged.scatter == weak:  # worse by a fifth of its standard error
            level = judged(1.0).error_pct * noise
            gap = (np.log(level + power_choice.FLOOR_PCT) - 1.0).mean(axis=1)
            level = level * math.exp(0.2 * gap.std() / math.sqrt(50) - gap.mean())
            return Judged(level, level, np.full((50, 3), 0.95), np.zeros(50), np.zeros(50, bool))
        return judged(1.5)

    *_, (_, _, won) = search_structure(judge, STRUCTURES[4])
    assert won == with_value(STRUCTURES[4].start, "kriged.scatter", weak)
    *_, (_, _, nothing) = search_structure(lambda priors: judged(1.0), STRUCTURES[4])
    assert nothing == STRUCTURES[4].start


def test_the_law_changes_only_if_it_is_clearly_better_and_honest():
    rng = np.random.default_rng(3)
    noise = np.exp(0.1 * rng.standard_normal((200, 2)))

    def found(factor: float) -> Judged:
        return replace(
            present, error_pct=present.error_pct * noise * factor, score_pct=present.score_pct * noise * factor
        )

    present = judged(0.0, sweeps=200)
    assert adopted(STRUCTURES[4], present, found(0.9), judged(0.0, covered=0.94))
    assert not adopted(STRUCTURES[4], present, found(0.9), judged(0.0, covered=0.92))
    assert not adopted(STRUCTURES[4], present, found(0.9), judged(0.0, covered=0.98))
    assert not adopted(STRUCTURES[4], present, found(1.0), judged(0.0))
    assert not adopted(STRUCTURES[4], present, found(1.1), judged(0.0))


def test_the_fifth_round_asks_for_honest_intervals_whatever_the_noise_and_where_it_confirms():
    fifth, present = STRUCTURES[5], judged(1.0)
    better = judged(0.5)
    assert adopted(fifth, present, better, judged(0.5))
    for shares in ((0.88, 0.95, 1.0), (0.99, 0.95, 0.93)):
        held = better.held.copy()
        for third, share in zip(np.array_split(np.arange(len(held)), 3), shares, strict=True):
            held[third] = share
        uneven = replace(better, held=held)
        assert uneven.covered_by_noise == pytest.approx(shares)
        assert abs(uneven.covered[1] - 0.95) < 0.02
        assert adopted(STRUCTURES[4], present, uneven, uneven)
        assert not adopted(fifth, present, uneven, judged(0.5))
        assert not adopted(fifth, present, better, uneven)


def test_sensors_of_the_fifth_round_are_noisier_and_nothing_else_of_its_sweeps_is_another():
    usual, noisy = draw("ridge", 8, 7), draw("ridge", 8, 7, 0.03)
    assert noisy.noise > usual.noise
    assert np.array_equal(noisy.true_w, usual.true_w)
    assert not np.array_equal(noisy.power_w, usual.power_w)


def test_the_twelfth_round_asks_that_chips_without_steps_lose_nothing():
    twelfth, present = STRUCTURES[12], judged(1.0)
    uneven = 1 + 0.01 * np.cos(np.arange(50))[:, None]

    def found(with_steps: float, without: float) -> Judged:
        factor = np.where(present.stepped, with_steps, without)[:, None] * uneven
        return replace(present, error_pct=present.error_pct * factor, score_pct=present.score_pct * factor)

    assert adopted(twelfth, present, found(0.8, 1.0), judged(0.8))
    assert not adopted(twelfth, present, found(0.8, 1.05), judged(0.8))
    assert adopted(STRUCTURES[5], present, found(0.8, 1.05), judged(0.8))


def test_a_chip_that_steps_is_lower_below_some_clocks_for_every_workload_alike_and_else_as_before():
    usual, stepped = (
        [draw("memory", 8, 7, stepping=share, sibling=workload) for workload in range(3)] for share in (0.0, 1.0)
    )
    shares = [one.asked_w / other.asked_w for one, other in zip(stepped, usual, strict=True)]
    assert all(one.stepped and not other.stepped for one, other in zip(stepped, usual, strict=True))
    assert np.allclose(shares, shares[0])
    rises = np.diff(shares[0])
    assert (rises >= -1e-12).all()
    assert 1 <= (rises > 1e-9).sum() <= 2
    assert 0.8 <= shares[0][0] <= 0.99
    assert shares[0][-1] == pytest.approx(1)
    some = [draw("ridge", 8, seed, stepping=0.25).stepped for seed in range(200)]
    assert 30 <= sum(some) <= 70


ADDED = KrigedPriors(scatter=((0.002, 0.01), 3.0), bends=(1.0, 1.6), positive=True, jumping=0.5)


def bent(count: int, seed: int, noise: float = 0.005) -> tuple[np.ndarray, np.ndarray]:
    f = np.linspace(0.4e9, 1.6e9, count)
    volts = 1 + 0.6 * np.maximum(f / 1.6e9 - 0.5, 0) ** 1.4
    watts = (8 + 60 * f / 1.6e9 * volts**2) * (1 + noise * np.random.default_rng(seed).standard_normal(count))
    return f, watts


def test_with_every_addition_what_is_said_of_a_clock_left_out_is_what_a_fit_without_it_says():
    f, watts = bent(8, 4)
    domain = (float(f[0]), float(f[-1]))
    whole = Kriged(ADDED).cross_fit(Curve.of(f, watts, domain))
    for i, j in ((0, 3), (4, 7), (2, 5)):
        one, two = (Curve.of(np.delete(f, gone), np.delete(watts, gone), domain) for gone in ((i,), (i, j)))
        without = Kriged(ADDED).cross_fit(one)
        assert without.curve(f[[i]])[0] == pytest.approx(whole.loo_w[i], rel=1e-6)
        assert without.predictive is not None
        assert whole.predictive is not None
        low, high = without.predictive.at(f[[i]])
        said = whole.predictive.left_out_w[:, i]
        # Noise is proportional to the watts predicted, or measured: that alone is not the same.
        assert [low[0], high[0]] == pytest.approx(said.tolist(), abs=0.05 * (said[1] - said[0]))
        assert Kriged(ADDED).cross_fit(two).curve(f[[j]])[0] == pytest.approx(whole.pair_w[i, j], rel=1e-6)


def test_a_belief_in_the_scatter_speaks_where_points_are_few_and_is_overruled_where_they_are_many():
    def width(count: int, noise: float, scatter: tuple[tuple[float, ...], float]) -> float:
        f, watts = bent(count, 5, noise)
        said = Kriged(KrigedPriors(scatter=scatter)).cross_fit(Curve.of(f, watts, (f[0], f[-1]))).predictive
        assert said is not None
        low, high = said.at(f[[count // 2]])
        return float((high - low)[0])

    none, some = ((0.005,), 0.0), ((0.005,), 3.0)
    assert width(4, 0.002, some) < 0.7 * width(4, 0.002, none)
    assert width(24, 0.03, some) > 0.75 * width(24, 0.03, none)


def test_idle_power_is_not_negative():
    """Nine clocks at the upper end that follow the cube of the clock without a constant: what a fit says of the lowest clocks."""
    f = np.linspace(1.0e9, 1.6e9, 9)
    watts = 60 * (f / 1.6e9) ** 3 * (1 + 0.01 * np.random.default_rng(7).standard_normal(9))
    curve = Curve.of(f, watts, (0.1e9, 1.6e9))
    free, bound = (Kriged(KrigedPriors(positive=positive)).cross_fit(curve) for positive in (False, True))
    assert free.predictive is not None
    assert bound.predictive is not None
    at = np.array([0.1e9])
    assert bound.predictive.at(at)[0, 0] > free.predictive.at(at)[0, 0]
    assert bound.curve(at)[0] >= free.curve(at)[0]
    assert bound.parameters["plain_power_share"][0] != pytest.approx(free.parameters["plain_power_share"][0])
