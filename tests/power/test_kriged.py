"""What the kriged law believes before it sees a point: voltages that exist, and watts that may step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.power_fit import interval_score
from profiler.power.curve import CrossFit, Curve
from profiler.power.kriged import Kriged, _Shapes
from profiler.power.priors import PRIORS


def fitted(f: np.ndarray, watts: np.ndarray, **priors: float) -> CrossFit:
    return Kriged(replace(PRIORS.kriged, **priors)).cross_fit(Curve.of(f, watts, (float(f[0]), float(f[-1]))))


@given(low=st.floats(1e-3, 0.999))
@settings(max_examples=60, deadline=None)
def test_whatever_the_range_of_clocks_no_voltage_is_believed_in_that_silicon_has_not(low: float) -> None:
    shapes, priors = _Shapes.grid(PRIORS.kriged, low), PRIORS.kriged
    ridged = shapes.exponent == 0
    volts = 1 + shapes.rise * (shapes.ceiling - shapes.ridge) ** shapes.bend
    clocks = (low + shapes.ceiling * (1 - low)) / (low + shapes.ridge * (1 - low))
    assert (volts[ridged] <= priors.voltage_ratio).all()
    assert (np.log(volts[ridged]) <= priors.voltage_power * np.log(clocks[ridged]) * (1 + 1e-9)).all()
    assert np.exp(shapes.log_prior).sum() == pytest.approx(1)
    assert np.exp(shapes.log_prior[0, ~ridged]).sum() == pytest.approx(priors.plain if ridged.any() else 1)


def test_beyond_the_last_clock_of_a_narrow_range_an_interval_is_no_multiple_of_the_watts() -> None:
    """Five clocks within a fifth of the highest, as a card is often swept, and the watts that such a card draws."""
    f = np.linspace(1.68e9, 2.08e9, 5)
    watts = np.array([150.0, 160.3, 162.4, 168.5, 176.4])
    said = fitted(f, watts).predictive
    assert said is not None
    low, high = said.left_out_w[:, -1]
    assert low > 0.8 * watts[-1]
    assert high < 1.6 * watts[-1]


def test_a_range_so_narrow_that_no_voltage_rises_in_it_is_fitted_all_the_same() -> None:
    f = np.linspace(1.49e9, 1.5e9, 6)
    watts = 100 * (f / 1.5e9) ** 2 * (1 + 0.001 * np.random.default_rng(1).standard_normal(6))
    fit = fitted(f, watts)
    assert fit.curve(f) == pytest.approx(watts, rel=0.01)
    assert np.isfinite(fit.parameters["ridge_hz"]).all()


def test_where_watts_step_a_law_that_believes_in_jumps_does_better() -> None:
    f = np.linspace(0.4e9, 1.4e9, 10)
    scores: dict[float, list[float]] = {0.0: [], 0.5: []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        smooth = 40 + 160 * f / f[-1] * (1 + 0.5 * np.maximum(f / f[-1] - 0.6, 0)) ** 2
        watts = smooth * np.where(np.arange(10) < rng.integers(2, 8), 0.85, 1.0) * (1 + 0.003 * rng.standard_normal(10))
        for jumping, found in scores.items():
            said = fitted(f, watts, jumping=jumping).predictive
            assert said is not None
            found.append(float(np.mean(interval_score(*said.left_out_w, watts) / watts)))
    without, with_jumps = (np.log(found) for found in scores.values())
    assert (with_jumps - without).mean() < -0.02
