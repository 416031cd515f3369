"""What the 95 % interval of a fitted sweep holds. How often it does on many chips stands in test_fit."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.power.fit import fit_sweep
from profiler.power.models import MODELS
from tests.power.test_fit import CLOCKS, measured, said_without


def ridged_w(f: np.ndarray, ridge_hz: float, rise: float) -> np.ndarray:
    volts = 1 + rise * np.maximum(0, f - ridge_hz) / 1e9 + 0.02 * np.maximum(0, f - ridge_hz - 0.3e9) / 1e9
    return np.asarray(20 + 8 * volts**2.2 + 40 * f / 1e9 * volts**2)


def test_the_interval_of_few_exact_clocks_on_a_chip_with_a_ridge_holds_the_true_watts() -> None:
    """As a profile has them: 8 clocks, each known to a quarter of a percent and better. The ridge law alone fits them so well that its own errors
    at clocks left out say nothing of what it misses."""
    clocks, fine = np.linspace(0.3e9, 1.8e9, 8), np.linspace(0.3e9, 1.8e9, 40)
    hits: list[bool] = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        chip = rng.uniform(0.9e9, 1.3e9), rng.uniform(0.3, 0.9)
        watts = ridged_w(clocks, *chip) * (1 + 0.001 * rng.standard_normal(8))
        fitted = fit_sweep(clocks, watts, sd_w=0.0025 * watts, supported_hz=tuple(fine))
        at, true_w = np.searchsorted(fitted.frequency_hz, fine), ridged_w(fine, *chip)
        hits += ((fitted.low_w[at] <= true_w) & (true_w <= fitted.high_w[at])).tolist()
    assert np.mean(hits) >= 0.93


@pytest.mark.parametrize("name", list(MODELS))
def test_intervals_of_watts_without_any_noise_are_finite_and_hold_the_curve(name: str) -> None:
    clocks = np.linspace(300e6, 1.5e9, 6)
    fitted = fit_sweep(clocks, 10 + 4 * (clocks / 1e9) ** 3, model=name)
    assert np.isfinite([fitted.low_w, fitted.high_w]).all()
    assert (fitted.low_w <= fitted.power_w).all()
    assert (fitted.power_w <= fitted.high_w).all()


@pytest.mark.parametrize("count", [6, 8])
def test_the_interval_at_a_clock_left_out_is_that_of_a_fit_without_it(count: int) -> None:
    clocks = np.linspace(300e6, 1.5e9, count)
    power = measured(2, clocks=clocks)
    whole = fit_sweep(clocks, power).left_out
    low_w, high_w = np.array([said_without(i, clocks, power)[1:] for i in range(count)]).T
    # Noise is proportional to the watts predicted, or measured: that alone is not the same.
    assert (whole.high_w - whole.low_w) / (high_w - low_w) == pytest.approx(np.ones(count), abs=0.1)


def test_the_interval_at_a_clock_left_out_has_not_seen_it() -> None:
    power = measured(2)
    other = power.copy()
    other[4] *= 1.02
    before, after = (fit_sweep(CLOCKS, watts).left_out for watts in (power, other))
    for said in ("low_w", "high_w"):
        # Noise is proportional to the watts, here to those measured at the clock itself.
        width = before.high_w[4] - before.low_w[4]
        assert getattr(after, said)[4] == pytest.approx(getattr(before, said)[4], abs=0.02 * width)
        assert getattr(after, said)[5] != pytest.approx(getattr(before, said)[5], abs=0.001 * width)
