"""What the laws of P(f) promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from profiler.power.models import AUTO, MODELS, Curve, Monotone, cross_fit_all

CLOCKS = np.linspace(300e6, 1.5e9, 12)
DOMAIN = (300e6, 1.5e9)
GOOD = settings(max_examples=15, deadline=None)


def curve(power_w: np.ndarray, clocks: np.ndarray = CLOCKS) -> Curve:
    return Curve.of(clocks, power_w, DOMAIN)


def ridge(clocks: np.ndarray, p0: float, dynamic: float, knee: float, rise: float) -> np.ndarray:
    volts = 1 + rise * np.maximum(0, (clocks - knee) / 1e9)
    return p0 + dynamic * clocks / 1e9 * volts**2


def wavy(seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """Watts that none of the laws is made for: leakage by temperature, a bent voltage, noise."""
    x = CLOCKS / 1e9
    clean = 9 + 3 * np.exp(x) + 7 * x * (0.7 + 0.5 / (1 + np.exp(-6 * (x - 0.9)))) ** 2
    return np.asarray(clean * (1 + noise * np.random.default_rng(seed).standard_normal(len(x))))


def test_relative_least_squares_of_the_cubic_law_has_the_closed_form() -> None:
    # xi = sum(f^3/P) / sum(f^6/P^2): for f = 1 GHz, 8 W and 2 GHz, 32 W it is (1/8 + 8/32) / (1/64 + 64/1024) = 4.8 W/GHz^3.
    two = Curve.of(np.array([1e9, 2e9]), np.array([8.0, 32.0]), (1e9, 2e9))
    fitted = MODELS["cubic"].cross_fit(two)
    assert fitted.parameters["xi_w_per_hz3"][0] == pytest.approx(4.8e-27, rel=1e-12)
    # Without the first clock xi is 32/8 = 4, without the second 8.
    assert fitted.loo_w == pytest.approx([4.0, 64.0])


def test_affine_cubic_through_two_points_is_exact() -> None:
    # 10 W at 1 GHz and 24 W at 2 GHz: P0 + xi = 10, P0 + 8 xi = 24, so xi = 2 and P0 = 8.
    two = Curve.of(np.array([1e9, 2e9]), np.array([10.0, 24.0]), (1e9, 2e9))
    fitted = MODELS["affine-cubic"].cross_fit(two)
    assert fitted.parameters["p0_w"][0] == pytest.approx(8.0)
    assert fitted.parameters["xi_w_per_hz3"][0] == pytest.approx(2e-27)


def test_the_constant_is_never_negative() -> None:
    fitted = MODELS["affine-cubic"].cross_fit(curve(5 * (CLOCKS / 1e9) ** 5))
    assert fitted.parameters["p0_w"].min() == 0.0


@given(xi=st.floats(0.1, 100), p0=st.floats(0.1, 200))
@GOOD
def test_affine_cubic_recovers_what_made_the_curve(xi: float, p0: float) -> None:
    fitted = MODELS["affine-cubic"].cross_fit(curve(p0 + xi * (CLOCKS / 1e9) ** 3))
    assert fitted.parameters["p0_w"][0] == pytest.approx(p0, rel=1e-6)
    assert fitted.parameters["xi_w_per_hz3"][0] == pytest.approx(xi * 1e-27, rel=1e-6)


@given(p0=st.floats(1, 100), dynamic=st.floats(1, 100), exponent=st.floats(0.8, 5))
@GOOD
def test_power_law_recovers_what_made_the_curve(p0: float, dynamic: float, exponent: float) -> None:
    fitted = MODELS["power-law"].cross_fit(curve(p0 + dynamic * (CLOCKS / 1.5e9) ** exponent))
    assert fitted.parameters["p0_w"][0] == pytest.approx(p0, rel=2e-2)
    assert fitted.parameters["dynamic_w_at_max"][0] == pytest.approx(dynamic, rel=2e-2)
    assert fitted.parameters["exponent"][0] == pytest.approx(exponent, rel=2e-2)


@given(p0=st.floats(1, 50), dynamic=st.floats(5, 60), knee=st.floats(0.55e9, 1.15e9), rise=st.floats(0.4, 3))
@GOOD
def test_ridge_recovers_what_made_the_curve(p0: float, dynamic: float, knee: float, rise: float) -> None:
    power = ridge(CLOCKS, p0, dynamic, knee, rise)
    fitted = MODELS["ridge"].cross_fit(curve(power))
    assert fitted.curve(CLOCKS) == pytest.approx(power, rel=5e-3)
    if rise > 1 and dynamic > p0:  # else the knee hardly shows in the watts
        assert fitted.parameters["ridge_hz"][0] == pytest.approx(knee, abs=0.05e9)


def test_soft_ridge_follows_a_soft_knee_that_the_sharp_one_misses() -> None:
    x = CLOCKS / 1e9
    power = 10 + 12 * x * (1 + 1.2 * 0.15 * np.logaddexp(0, (x - 0.9) / 0.15)) ** 2
    error = {
        name: np.abs(MODELS[name].cross_fit(curve(power)).curve(CLOCKS) / power - 1).max()
        for name in ("ridge", "soft-ridge")
    }
    assert error["soft-ridge"] < 1e-3 < error["ridge"]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cubic"])
def test_every_law_but_the_cubic_predicts_a_plain_curve_within_a_percent_at_clocks_left_out(name: str) -> None:
    power = 12 + 30 * (CLOCKS / 1.5e9) ** 3
    loo = cross_fit_all(curve(power))[name].loo_w
    # Inside; at an end some laws must guess.
    limit = 0.03 if name in ("ridge", "soft-ridge") else 0.01
    assert np.abs(loo / power - 1)[1:-1].mean() < limit


@given(factor=st.floats(1e-2, 1e2), seed=st.integers(0, 5))
@settings(max_examples=4, deadline=None)
def test_watts_in_another_unit_change_nothing_but_the_unit(factor: float, seed: int) -> None:
    power = wavy(seed)
    plain, scaled = cross_fit_all(curve(power)), cross_fit_all(curve(power * factor))
    for name in MODELS:
        assert scaled[name].loo_w == pytest.approx(plain[name].loo_w * factor, rel=2e-4), name


@given(factor=st.floats(0.2, 5), seed=st.integers(0, 5))
@settings(max_examples=4, deadline=None)
def test_clocks_in_another_unit_change_nothing(factor: float, seed: int) -> None:
    power = wavy(seed)
    plain = cross_fit_all(curve(power))
    scaled = cross_fit_all(Curve.of(CLOCKS * factor, power, (DOMAIN[0] * factor, DOMAIN[1] * factor)))
    for name in MODELS:
        assert scaled[name].loo_w == pytest.approx(plain[name].loo_w, rel=2e-4), name


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("left", [0, 5, 11])
def test_a_left_out_prediction_is_what_a_fit_without_that_clock_says(name: str, left: int) -> None:
    power = wavy(3)
    kept = np.arange(12) != left
    said = cross_fit_all(curve(power))[name].loo_w[left]
    alone = cross_fit_all(curve(power[kept], CLOCKS[kept]))[name].curve(CLOCKS[left : left + 1])[0]
    assert said == pytest.approx(alone, rel=1e-6)


@given(left=st.integers(0, 11), factor=st.floats(0.5, 2), seed=st.integers(0, 3))
@settings(max_examples=6, deadline=None)
def test_no_left_out_prediction_has_seen_its_own_point(left: int, factor: float, seed: int) -> None:
    power = wavy(seed)
    changed = power.copy()
    changed[left] *= factor
    before, after = cross_fit_all(curve(power)), cross_fit_all(curve(changed))
    for name in MODELS:
        assert after[name].loo_w[left] == pytest.approx(before[name].loo_w[left], rel=1e-9), name


def test_a_pair_left_out_is_what_a_fit_without_both_says() -> None:
    power = wavy(1)
    for name in MODELS:
        if name == "auto":
            continue  # its weights in pairs are those without one of the two, see Average
        fitted = MODELS[name].cross_fit(curve(power))
        for i, j in [(0, 1), (3, 8), (10, 11)]:
            kept = ~np.isin(np.arange(12), [i, j])
            alone = MODELS[name].cross_fit(curve(power[kept], CLOCKS[kept])).curve(CLOCKS[[i, j]])
            assert np.array([fitted.pair_w[j, i], fitted.pair_w[i, j]]) == pytest.approx(alone, rel=2e-4), name


@given(st.lists(st.floats(1, 100), min_size=3, max_size=12), st.integers(0, 10**6))
@GOOD
def test_the_monotone_curve_never_falls(watts: list[float], seed: int) -> None:
    clocks = np.sort(np.random.default_rng(seed).uniform(3e8, 1.5e9, len(watts)))
    assume(np.diff(clocks).min() > 1e6)
    at = np.linspace(3e8, 1.5e9, 200)
    drawn = Monotone().cross_fit(Curve.of(clocks, np.array(watts), DOMAIN)).curve(at)
    assert (np.diff(drawn) >= -1e-9 * drawn.max()).all()


def test_the_monotone_curve_is_scipys_pchip_on_rising_points() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    power = np.sort(wavy(2))
    at = np.linspace(*DOMAIN, 301)
    ours = Monotone().cross_fit(curve(power)).curve(at)
    assert ours == pytest.approx(interpolate.PchipInterpolator(CLOCKS, power)(at), rel=1e-9)


def test_repeats_of_one_clock_count_as_rows_and_are_left_out_together() -> None:
    power = wavy(4)
    clocks = np.concatenate([CLOCKS, CLOCKS[:4]])
    watts = np.concatenate([power, power[:4] * 1.02])
    fits = cross_fit_all(Curve.of(clocks, watts, DOMAIN))
    assert fits["auto"].loo_w.shape == (12,)
    kept = clocks != CLOCKS[2]
    alone = cross_fit_all(Curve.of(clocks[kept], watts[kept], DOMAIN))
    for name in MODELS:
        assert fits[name].loo_w[2] == pytest.approx(alone[name].curve(CLOCKS[2:3])[0], rel=1e-6), name


def test_repeating_every_row_changes_no_parametric_fit() -> None:
    power = wavy(5)
    twice = Curve.of(np.tile(CLOCKS, 2), np.tile(power, 2), DOMAIN)
    for name in ("cubic", "affine-cubic", "power-law", "ridge", "soft-ridge"):
        once = MODELS[name].cross_fit(curve(power))
        assert MODELS[name].cross_fit(twice).loo_w == pytest.approx(once.loo_w, rel=2e-4), name


def test_the_average_leans_on_the_member_that_predicts_best() -> None:
    # A sharp ridge, noiseless: the ridge law is exact, interpolation is not.
    fitted = AUTO.cross_fit(curve(ridge(CLOCKS, 20, 30, 0.85e9, 1.5)))
    assert fitted.parameters["weight_ridge"][0] > 0.95
    total = sum(weights[0] for weights in fitted.parameters.values())
    assert total == pytest.approx(1.0)


def test_a_law_is_added_by_one_entry() -> None:
    from dataclasses import replace

    line = replace(
        MODELS["affine-cubic"],
        name="affine",
        shape=lambda x, theta: np.broadcast_to(x, (len(theta), len(x))),
        to_si=lambda p0, c, theta, high: {"p0_w": p0.copy(), "c_w_per_hz": c / high},
    )
    fits = cross_fit_all(curve(5 + 10 * CLOCKS / 1e9), {**MODELS, "affine": line})
    assert fits["affine"].parameters["c_w_per_hz"][0] == pytest.approx(1e-8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_few_clocks_carry_only_the_laws_that_they_can(count: int) -> None:
    chosen = np.linspace(0, 11, count).round().astype(int)
    fits = cross_fit_all(curve(wavy()[chosen], CLOCKS[chosen]))
    assert set(fits) == {name for name, model in MODELS.items() if model.minimum_clocks <= count}
    for name, fitted in fits.items():
        assert np.isfinite(fitted.curve(CLOCKS)).all(), name
