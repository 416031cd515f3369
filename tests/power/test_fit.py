"""What a fitted sweep says, where it comes from, and what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.power.cap import plateau
from profiler.power.fit import MOST_CLOCKS, fit, fit_into_profile, fit_sweep, fit_together
from profiler.power.kriged import teach_most
from profiler.power.models import MODELS
from profiler.power.plot import plot_fits
from profiler.power.report import fit_power
from profiler.power.source import Sweep, read_csv, scatter_w, sweep_of_profile
from profiler.profile import BadInput, PowerPoint, Profile
from profiler.store import save
from tests.synthetic import make_profile

CLOCKS = np.linspace(300e6, 1.5e9, 12)


def measured(seed: int = 0, noise: float = 0.01, clocks: np.ndarray = CLOCKS) -> np.ndarray:
    """Watts of no law in the registry, with noise."""
    x = clocks / 1e9
    clean = 9 + 3 * np.exp(x) + 7 * x * (0.7 + 0.5 / (1 + np.exp(-6 * (x - 0.9)))) ** 2
    return np.asarray(clean * (1 + noise * np.random.default_rng(seed).standard_normal(len(x))))


def said_without(i: int, clocks: np.ndarray, power: np.ndarray) -> tuple[float, float, float]:
    """Watts, low and high at clock i from a fit that was really made without it, over the same domain."""
    kept = np.arange(len(clocks)) != i
    again = fit_sweep(clocks[kept], power[kept], domain_hz=(clocks[0], clocks[-1]), supported_hz=(clocks[i],))
    at = np.searchsorted(again.frequency_hz, clocks[i])
    return float(again.power_w[at]), float(again.low_w[at]), float(again.high_w[at])


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.csv"
    path.write_text(text)
    return path


# ---- what is read


def test_a_quote_that_nobody_closed_does_not_swallow_the_rows_below_it(tmp_path: Path) -> None:
    path = table(tmp_path, 'frequency_mhz,power_w,comment\n300,10,a\n500,14,b\n700,20,"c\n900,28,d\n1100,40,e\n')
    with pytest.raises(BadInput, match="not a CSV row"):
        read_csv(path)


def test_blank_lines_above_the_header_are_no_header(tmp_path: Path) -> None:
    (found,) = read_csv(table(tmp_path, "\n\nfrequency_mhz,power_w\n300,10\n500,14\n"))
    assert found.power_w.tolist() == [10.0, 14.0]


def test_clocks_a_hair_apart_are_one_clock_measured_again() -> None:
    pairs = np.sort(np.r_[CLOCKS, CLOCKS + 1.0])
    watts = np.repeat(measured(), 2) * np.tile([0.9995, 1.0005], len(CLOCKS))
    apart, twice = fit_sweep(pairs, watts), fit_sweep(np.repeat(CLOCKS + 0.5, 2), watts)
    assert apart.models["auto"].loo_mape_pct == pytest.approx(twice.models["auto"].loo_mape_pct, rel=1e-6)
    assert len(apart.left_out.frequency_hz) == len(CLOCKS)


def test_more_clocks_than_can_be_left_out_in_pairs_are_refused_at_once() -> None:
    clocks = np.linspace(3e8, 3e9, MOST_CLOCKS + 1)
    with pytest.raises(BadInput, match=f"{MOST_CLOCKS + 1} distinct clocks, at most {MOST_CLOCKS}"):
        fit_sweep(clocks, 10 + clocks / 1e8)


# ---- the fit


def test_xi_is_the_relative_least_squares_cubic_of_the_total_watts() -> None:
    # By hand, in GHz: (1/8 + 8/32) / (1/64 + 64/1024) = 0.375 / 0.078125 = 4.8.
    assert fit_sweep([1e9, 2e9], [8.0, 32.0]).xi_w_per_hz3 == pytest.approx(4.8e-27, rel=1e-12)
    power = measured()
    fitted = fit_sweep(CLOCKS, power)
    assert fitted.xi_w_per_hz3 == pytest.approx(np.sum(CLOCKS**3 / power) / np.sum(CLOCKS**6 / power**2), rel=1e-12)
    assert fitted.xi_ci95 is not None
    assert fitted.xi_ci95[0] < fitted.xi_w_per_hz3 < fitted.xi_ci95[1]


def test_predictions_cover_every_input_clock_and_a_fine_grid_in_order() -> None:
    fitted = fit_sweep(CLOCKS[2:], measured()[2:], domain_hz=(200e6, 1.7e9), supported_hz=(210e6, 1.69e9))
    at = fitted.frequency_hz
    assert (np.diff(at) > 0).all()
    assert at[0] == 200e6
    assert at[-1] == 1.7e9
    assert set(CLOCKS[2:]) | {210e6, 1.69e9} <= set(at)
    assert len(at) >= 50
    assert (fitted.low_w >= 0).all()
    assert (fitted.low_w <= fitted.power_w).all()
    assert (fitted.power_w <= fitted.high_w).all()


def test_the_interval_is_wider_beyond_the_points_than_between_them() -> None:
    fitted = fit_sweep(CLOCKS, measured(), domain_hz=(300e6, 2.0e9))
    width = (fitted.high_w - fitted.low_w) / fitted.power_w
    inside = (fitted.frequency_hz > 600e6) & (fitted.frequency_hz < 1.2e9)
    assert width[-1] > 2 * np.median(width[inside])


def chips(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Clocks and watts of chips nobody has made: a table of voltages in steps above a floor, leakage that grows with voltage, noise."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 7])
        clocks = np.sort(np.append(rng.uniform(0.35, 0.98, rng.integers(7, 13)), [0.3, 1.0])) * 1.5e9
        clocks = clocks[np.append(True, np.diff(clocks) > 4e-3 * clocks[1:])]  # nearer ones are one clock read twice
        x = clocks / 1.5e9
        floor, top, bend, steps = (
            rng.uniform(0.4, 0.8),
            rng.uniform(1.2, 1.8),
            rng.uniform(0.7, 1.5),
            rng.integers(6, 20),
        )
        volts = 1 + (top - 1) * np.round(np.clip((x - floor) / (1 - floor), 0, 1) ** bend * steps) / steps
        watts = rng.uniform(5, 40) * volts**2 + 60 * x * volts**2
        made.append((clocks, watts * (1 + rng.choice([0.003, 0.01, 0.02]) * rng.standard_normal(len(x)))))
    return made


def test_intervals_hold_left_out_points_of_chips_with_voltage_tables_as_often_as_they_say() -> None:
    hits, ends, half, error = [], [], [], []
    for clocks, power in chips(25):
        left = fit_sweep(clocks, power, capped=np.zeros(len(clocks), dtype=bool)).left_out
        hit = (left.low_w <= power) & (power <= left.high_w)
        hits += hit.tolist()
        ends += hit[[0, -1]].tolist()
        half += ((left.high_w - left.low_w) / 2 / power).tolist()
        error += np.abs(left.power_w / power - 1).tolist()
    assert 0.89 <= np.mean(hits) <= 0.98
    assert np.mean(ends) >= 0.85
    assert np.median(half) <= 5 * np.median(error)


def test_intervals_hold_new_measurements_about_as_often_as_they_say() -> None:
    hits = []
    between = (CLOCKS[1:] + CLOCKS[:-1]) / 2
    for seed in range(12):
        fitted = fit_sweep(CLOCKS, measured(seed), supported_hz=tuple(between))
        at = np.searchsorted(fitted.frequency_hz, between)
        new = measured(1000 + seed, clocks=between)
        hits += ((fitted.low_w[at] <= new) & (new <= fitted.high_w[at])).tolist()
    # 95 % is what they say. Between few noisy points they are known to be somewhat narrow, see docs/power.md.
    assert 0.82 <= np.mean(hits) <= 0.99


def test_no_single_point_turns_the_curve() -> None:
    for seed in range(2):
        power = measured(seed)
        whole = fit_sweep(CLOCKS, power)
        at = np.searchsorted(whole.frequency_hz, CLOCKS)
        half = ((whole.high_w - whole.low_w) / 2)[at]
        for i in range(1, 11, 3):
            kept = np.arange(12) != i
            without = fit_sweep(CLOCKS[kept], power[kept], supported_hz=tuple(CLOCKS))
            move = np.abs(without.power_w[np.searchsorted(without.frequency_hz, CLOCKS)] - whole.power_w[at])
            assert (move[kept] < half[kept]).all()
            shaken = power.copy()
            shaken[i] *= 1.01  # one standard deviation of the noise
            move = np.abs(fit_sweep(CLOCKS, shaken).power_w[at] - whole.power_w[at])
            assert (move[kept] < half[kept] / 2).all()
            assert move[i] < shaken[i] - power[i]


@pytest.mark.parametrize("count", [4, 5, 8, 14])
def test_exact_data_of_a_plain_law_are_found_to_be_that(count: int) -> None:
    clocks = np.linspace(300e6, 1.5e9, count)
    fitted = fit_sweep(clocks, 12 + 8 * (clocks / 1e9) ** 3)
    assert fitted.models["auto"].loo_mape_pct == pytest.approx(0, abs=0.05)
    assert fitted.curves["auto"] == pytest.approx(12 + 8 * (fitted.frequency_hz / 1e9) ** 3, rel=1e-3)


@given(order=st.permutations(range(12)), seed=st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_the_order_of_the_rows_does_not_matter(order: list[int], seed: int) -> None:
    power = measured(seed)
    a, b = fit_sweep(CLOCKS, power), fit_sweep(CLOCKS[order], power[order])
    assert b.power_w == pytest.approx(a.power_w, rel=1e-9)
    assert b.high_w == pytest.approx(a.high_w, rel=1e-6)


def test_the_error_of_auto_is_nested() -> None:
    """Each clock is really left out: fitted again without it, the prediction there is the same."""
    power = measured(2)
    whole = fit_sweep(CLOCKS, power)
    errors = [abs(said_without(i, CLOCKS, power)[0] / power[i] - 1) for i in range(len(CLOCKS))]
    assert whole.models["auto"].loo_mape_pct == pytest.approx(100 * np.mean(errors), rel=1e-6)


def test_every_model_can_be_chosen_and_then_gives_the_predictions() -> None:
    power = measured()
    for name in MODELS:
        fitted = fit_sweep(CLOCKS, power, model=name)
        assert fitted.selected == name
        assert fitted.power_w == pytest.approx(fitted.curves[name])
    assert fit_sweep(CLOCKS, power, model="selected").selected == "auto"


def test_the_warning_says_how_far_off_the_cubic_law_is() -> None:
    fitted = fit_sweep(CLOCKS, measured())
    said = f"the cubic law xi f^3 is {fitted.models['cubic'].loo_mape_pct:.1f} % off"
    assert any(said in warning for warning in fitted.warnings)


def test_jackknife_intervals_hold_the_parameters_that_made_the_curve() -> None:
    held = 0
    for seed in range(20):
        power = (15 + 8 * (CLOCKS / 1e9) ** 3) * (1 + 0.01 * np.random.default_rng(seed).standard_normal(12))
        low, high = fit_sweep(CLOCKS, power, model="affine-cubic").models["affine-cubic"].ci95["xi_w_per_hz3"]
        held += low <= 8e-27 <= high
    assert held >= 17


# ---- caps, repeats, few and odd points


def test_capped_points_set_the_cap_and_do_not_bend_the_curve() -> None:
    free = 20 + 30 * (CLOCKS / 1e9) ** 2
    power, capped = np.minimum(free, 70.0), free > 70.0
    assert 2 <= capped.sum() <= 6
    fitted = fit_sweep(CLOCKS, power, capped=capped)
    assert fitted.power_cap_w == pytest.approx(70.0)
    assert fitted.power_w.max() == pytest.approx(70.0)
    assert fitted.models["power-law"].parameters["exponent"] == pytest.approx(2.0, abs=0.05)
    assert fitted.models["power-law"].parameters["power_cap_w"] == pytest.approx(70.0)
    ignored = fit_sweep(CLOCKS, power, capped=np.zeros(12, dtype=bool))
    assert abs(ignored.models["power-law"].parameters["exponent"] - 2.0) > 0.3
    assert (fitted.models["auto"].loo_mape_pct or 0) < 1.0


def test_a_plateau_that_nobody_has_marked_is_taken_for_the_cap() -> None:
    free = measured(3, noise=0.003)
    power = np.minimum(free, free[8])
    power[8:] *= [1.001, 0.999, 1.0005, 1.0]
    fitted = fit_sweep(CLOCKS, power)
    assert fitted.power_cap_w == pytest.approx(free[8], rel=2e-3)
    assert any("taken for a power cap" in warning for warning in fitted.warnings)
    assert fit_sweep(CLOCKS, power, capped=np.zeros(12, dtype=bool)).power_cap_w is None


@pytest.mark.parametrize("seed", range(10))
def test_noise_and_gentle_slopes_are_no_plateau(seed: int) -> None:
    assert not plateau(CLOCKS, measured(seed, noise=0.02)).any()
    clocks = np.linspace(300e6, 1.5e9, 60)
    assert not plateau(clocks, measured(seed, noise=0.01, clocks=clocks)).any()
    assert not plateau(CLOCKS, np.full(12, 50.0)).any()


def test_a_clock_held_down_by_the_cap_is_fitted_where_it_ran_and_predicted_where_it_is_asked_for() -> None:
    free = 20 + 30 * (CLOCKS / 1e9) ** 2
    capped = free > 70.0
    ran = np.where(capped, 1e9 * np.sqrt(50 / 30), CLOCKS)
    fitted = fit_sweep(ran, np.minimum(free, 70.0), capped=capped, domain_hz=(300e6, 1.5e9), supported_hz=tuple(CLOCKS))
    at = np.searchsorted(fitted.frequency_hz, CLOCKS)
    assert fitted.power_w[at] == pytest.approx(np.minimum(free, 70.0), rel=0.01)


def test_watts_that_fall_over_the_whole_sweep_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^sweep: power falls from .* expected watts that rise with the clock"):
        fit_sweep(CLOCKS, measured()[::-1])


@pytest.mark.parametrize("count", [2, 3])
def test_laws_that_few_clocks_cannot_carry_are_named_without_figures(count: int) -> None:
    fitted = fit_sweep(CLOCKS[:count], measured()[:count])
    models = fitted.to_entry("x", None, None)["models"]
    assert {"cubic", "affine-cubic", "power-law", "ridge", "auto", "selected"} <= set(models)
    assert models["ridge"] == {"parameters": {}, "ci95": {}, "mape_pct": None, "loo_mape_pct": None, "aicc": None}
    assert any("not fitted: " in warning and "ridge" in warning for warning in fitted.warnings)


def test_few_clocks_whose_own_scatter_is_known_say_more_than_the_same_clocks_without_it() -> None:
    clocks = np.array([210e6, 550e6, 1080e6, 1660e6, 2190e6, 2530e6])
    watts = np.array([18.84, 26.68, 34.79, 43.85, 64.96, 91.33])  # a knee between the fourth and the fifth
    unknown = fit_sweep(clocks, watts)
    known = fit_sweep(clocks, watts, sd_w=0.003 * watts)
    at = np.searchsorted(known.frequency_hz, clocks)
    half = (known.high_w - known.low_w)[at] / 2 / watts
    assert np.median(half) < 0.05
    assert np.median(half) < 0.5 * np.median((unknown.high_w - unknown.low_w)[at] / 2 / watts)
    assert (known.low_w[at] <= watts).all()
    assert (watts <= known.high_w[at]).all()
    # A scatter that nobody knows changes nothing.
    blank = fit_sweep(clocks, watts, sd_w=np.full(6, np.nan))
    assert blank.low_w == pytest.approx(unknown.low_w)


def test_what_a_point_scatters_by_is_its_own_interval_and_what_the_repeated_clock_came_out_different_by() -> None:
    def point(mhz: float, watts: float, ci95_w: float | None) -> PowerPoint:
        return PowerPoint(
            frequency_hz=mhz * 1e6,
            requested_hz=mhz * 1e6,
            power_w=watts,
            ci95_w=ci95_w,
            samples=9,
            seconds_s=9,
            stopped_by="steady",
        )

    points = [point(300, 10.0, 0.196), point(600, 20.0, 0.001), point(900, 40.0, None)]
    # 0.196 / 1.96 = 0.1; a quarter of a percent of 20 W at least
    assert scatter_w(points, None) == pytest.approx([0.1, 0.05, np.nan], nan_ok=True)
    again = point(300, 10.0 * (1 + 0.03 * np.sqrt(2)), 0.1)
    assert scatter_w(points, again)[:2] == pytest.approx([np.hypot(0.1, 0.3), np.hypot(0.05, 0.6)])


def test_repeated_measurements_widen_the_interval_by_their_scatter() -> None:
    power = measured(0, noise=0.0)
    shaken = np.concatenate([power * 0.95, power * 1.05])
    quiet = np.concatenate([power * 0.999, power * 1.001])
    wide = fit_sweep(np.tile(CLOCKS, 2), shaken)
    narrow = fit_sweep(np.tile(CLOCKS, 2), quiet)
    assert wide.points == 24
    middle = len(wide.frequency_hz) // 2
    assert wide.high_w[middle] - wide.low_w[middle] > 5 * (narrow.high_w[middle] - narrow.low_w[middle])


def test_one_clock_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match=r"^sweep: power was measured at 1 distinct clock, a curve needs at least 2"):
        fit_sweep([1e9, 1e9, 1e9], [10.0, 10.1, 9.9])


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_clocks_give_what_they_can_carry_with_a_warning_and_no_nan(count: int) -> None:
    chosen = np.linspace(0, 11, count).round().astype(int)
    fitted = fit_sweep(CLOCKS[chosen], measured()[chosen])
    json.dumps(fitted.to_entry("x", None, None), allow_nan=False)
    fitted.to_power_fit("measured")
    assert any("distinct clocks" in warning for warning in fitted.warnings) == (count < 5)
    assert (fitted.models["auto"].loo_mape_pct is None) == (count < 3)


def test_a_model_that_needs_more_clocks_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--model: ridge needs at least 4 distinct clocks, sweep has 3"):
        fit_sweep(CLOCKS[:3], measured()[:3], model="ridge")
    with pytest.raises(BadInput, match=r"--model: 'quartic' is not a power model, expected one of: cubic, .*auto"):
        fit_sweep(CLOCKS, measured(), model="quartic")


def test_flat_and_falling_watts_are_remarked_on() -> None:
    flat = fit_sweep(CLOCKS, np.full(12, 50.0) + 0.05 * np.sin(np.arange(12)))
    assert any("did the clocks really change" in warning for warning in flat.warnings)
    falling = measured(noise=0.0)
    falling[-1] *= 0.7
    assert any("power falls" in warning for warning in fit_sweep(CLOCKS, falling).warnings)


@pytest.mark.parametrize("clock", [0, 5, 11])
def test_a_point_far_outside_of_what_the_others_say_is_named(clock: int) -> None:
    power = measured(4, noise=0.003)
    assert not any("an odd point" in warning for warning in fit_sweep(CLOCKS, power).warnings)
    power[clock] *= 1.5
    said = [warning for warning in fit_sweep(CLOCKS, power).warnings if "an odd point" in warning]
    assert len(said) == 1
    assert f"W were measured at {CLOCKS[clock] / 1e6:.0f} MHz" in said[0]


@pytest.mark.parametrize(
    ("clocks", "watts"),
    [
        ([1e9, 2e9], [1.0]),
        ([], []),
        ([1e9, math.nan], [1.0, 2.0]),
        ([1e9, 2e9], [1.0, math.inf]),
        ([1e9, 2e9], [1.0, -2.0]),
        ([1000.0, 2000.0], [1.0, 2.0]),
    ],
)
def test_figures_that_are_no_sweep_are_refused_in_one_line(clocks: list[float], watts: list[float]) -> None:
    with pytest.raises(BadInput) as caught:
        fit_sweep(clocks, watts, where="here.csv")
    assert str(caught.value).startswith("here.csv: ")
    assert "\n" not in str(caught.value)


# ---- JSON and profiles


def test_the_report_has_the_keys_that_programs_rely_on(tmp_path: Path) -> None:
    lines = [f"board,gemm,{f / 1e6},{p}" for f, p in zip(CLOCKS, measured(), strict=True)]
    path = table(tmp_path, "device,workload,frequency_mhz,power_w\n" + "\n".join(lines))
    (sweep,) = read_csv(path)
    entry = fit(sweep).to_entry(sweep.source, sweep.device, sweep.workload)
    assert list(entry) == [
        *("source", "device", "workload", "points", "selected", "models"),
        *("xi_w_per_hz3", "xi_ci95", "predictions", "warnings"),
    ]
    assert (entry["source"], entry["device"], entry["workload"], entry["points"]) == (str(path), "board", "gemm", 12)
    assert {"cubic", "affine-cubic", "power-law", "ridge", "auto", "selected"} <= set(entry["models"])
    assert entry["models"]["selected"] == entry["models"][entry["selected"]]
    for model in entry["models"].values():
        assert set(model) == {"parameters", "ci95", "mape_pct", "loo_mape_pct", "aicc"}
        for name, (low, high) in model["ci95"].items():
            assert low <= model["parameters"][name] <= high
    assert set(entry["predictions"][0]) == {"frequency_hz", "power_w", "low_w", "high_w"}
    json.dumps(entry, allow_nan=False)


def profile_with(power: dict[str, Any]) -> Profile:
    return Profile.model_validate(
        {
            "name": "board",
            "role": "server",
            "created_utc": "2026-01-01T00:00:00Z",
            "toolkit_version": "0",
            "hardware": {
                "provenance": "measured",
                "kind": "cuda",
                "description": "a card",
                "clocks": {
                    "provenance": "measured",
                    "supported_hz": [300e6, 333e6, 777e6, 1.6e9],
                    "min_hz": 300e6,
                    "max_hz": 1.6e9,
                    "operating_hz": 1.6e9,
                },
            },
            "workload": {
                "model": "m",
                "architecture": "llama",
                "layers": 2,
                "hidden_size": 8,
                "vocab_size": 16,
                "batch_size": 1,
                "seq_len": 4,
                "dtype": "float32",
                "lora_rank": 2,
                "lora_alpha": 4,
                "lora_targets": ["q_proj"],
                "parameters": 100,
                "trainable_parameters": 10,
            },
            "segments": [
                {"name": "a", "kind": "layer", "layer": 1},
                {"name": "b", "kind": "layer", "layer": 2},
            ],
            "flops": {
                "provenance": "measured",
                "segments": [{"forward_flops": 1, "backward_flops": 2}] * 2,
            },
            "sizes": {
                "provenance": "measured",
                "segments": [{"weight_bytes": 1, "adapter_bytes": 1, "adapter_parameters": 1}] * 2,
                "cuts": [{"cut": 1, "smashed_bytes": 1, "gradient_bytes": 1}],
            },
            "power": power,
        }
    )


def power_block(**marks: Any) -> dict[str, Any]:
    points = []
    for k, (clock, watts) in enumerate(zip(CLOCKS, measured(), strict=True)):
        point: dict[str, Any] = {
            "frequency_hz": clock,
            "power_w": watts,
            "samples": 10,
            "seconds_s": 1.0,
            "stopped_by": "steady",
        }
        point.update({name: values[k] for name, values in marks.items()})
        points.append(point)
    return {"provenance": "emulated", "scope": "board", "sensor": "s", "load": "training step", "points": points}


def test_a_profile_gets_a_fit_that_covers_all_its_supported_clocks() -> None:
    profile = fit_into_profile(profile_with(power_block()))
    block = profile.power_fit
    assert block is not None
    assert (block.provenance, block.basis, block.root) == ("fitted", "emulated", "emulated")
    clocks = [row.frequency_hz for row in block.predictions]
    assert {300e6, 333e6, 777e6, 1.6e9} <= set(clocks)
    assert clocks == sorted(set(clocks))
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_throttled_points_are_left_out_and_capped_ones_marked() -> None:
    throttled = [False] * 10 + [True, False]
    capped = [False] * 11 + [True]
    profile = profile_with(power_block(throttled=throttled, capped=capped))
    sweep = sweep_of_profile(profile)
    assert len(sweep.frequency_hz) == 11
    assert sweep.capped.tolist() == [False] * 10 + [True]
    fitted = fit_into_profile(profile).power_fit
    assert fitted is not None
    assert any("heat held the clock down" in warning for warning in fitted.warnings)


def test_a_profile_without_a_sweep_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^board: power: no points were measured"):
        sweep_of_profile(profile_with(power_block()).model_copy(update={"power": None}))
    with pytest.raises(BadInput, match="all are marked throttled"):
        sweep_of_profile(profile_with(power_block(throttled=[True] * 12)))


def timings(seconds: list[float]) -> list[dict[str, Any]]:
    stat = {"median_s": 0.0, "samples": 3}
    rows = [{"forward": stat, "backward": stat, "optimizer": stat}] * 2
    return [
        {"provenance": "measured", "requested_hz": hz, "segments": rows, "step": {"median_s": s, "samples": 3}}
        for hz, s in zip(CLOCKS, seconds, strict=True)
    ]


def with_points(timing: list[dict[str, Any]] | None = None, **columns: Any) -> Profile:
    block = power_block(**columns)
    for point, asked in zip(block["points"], CLOCKS, strict=True):
        point["requested_hz"] = asked
    made = profile_with(block).model_dump()
    return Profile.model_validate({**made, "timings": timing or []})


def test_a_lock_that_did_not_take_is_refused_where_watts_and_times_are_flat() -> None:
    flat = [50 + 0.1 * (k % 3) for k in range(12)]
    with pytest.raises(
        BadInput, match=r"board: 300 to 1500 MHz were set, and neither the watts .* nor the step times .* changed"
    ):
        fit_into_profile(with_points(timings([1.0] * 12), power_w=flat))
    # A load that is faster at a higher clock ran at it, whatever the watts do.
    assert fit_into_profile(with_points(timings([1e9 / hz for hz in CLOCKS]), power_w=flat)).power_fit is not None
    assert fit_into_profile(with_points(power_w=flat)).power_fit is not None


def test_measured_clocks_that_do_not_follow_are_refused() -> None:
    with pytest.raises(BadInput, match=r"the clock measured stayed at 901 MHz; .* the lock did not take"):
        fit_into_profile(with_points(frequency_hz=[9e8 + k * 1e5 for k in range(12)]))


def test_a_sweep_wholly_at_the_cap_is_refused() -> None:
    with pytest.raises(BadInput, match=r"all 12 lie at the power cap, expected at least 2 clocks below it"):
        fit_into_profile(with_points(capped=[True] * 12))


# ---- choosing clocks


def test_the_next_clock_is_an_end_then_the_middle_then_where_least_is_known() -> None:
    clocks, power = np.linspace(300e6, 1.5e9, 25), measured(0, clocks=np.linspace(300e6, 1.5e9, 25))
    chosen: list[int] = []
    for _ in range(25):
        chosen.append(int(np.searchsorted(clocks, teach_most(clocks[chosen], power[chosen], clocks))))
    assert chosen[:3] == [0, 24, 12]
    assert sorted(chosen) == list(range(25))
    first = np.sort(chosen[:8])
    assert np.diff(first).max() <= 7  # no large part of the range is forgotten
    with pytest.raises(ValueError, match="all 25 supported clocks have been measured"):
        teach_most(clocks, power, clocks)


def test_a_measured_clock_a_little_off_the_one_asked_for_is_not_proposed_again() -> None:
    clocks = np.linspace(300e6, 1.5e9, 5)
    assert teach_most(clocks[[0, 1, 3, 4]] * 0.995, [10.0, 14.0, 25.0, 33.0], clocks) == clocks[2]


# ---- tables


def test_a_table_gives_one_sweep_for_each_device_and_workload(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "workload, device ,Frequency_MHz,power_w,power_scope,note\n"
        "a,x,1000,10,board,hello\na,x,2000,20,board,\n\nb,x,1000,11,gpu,\na,y,1000,12,board,\n",
    )
    sweeps = read_csv(path)
    assert [(s.device, s.workload, s.power_scope, len(s.power_w)) for s in sweeps] == [
        ("x", "a", "board", 2),
        ("x", "b", "gpu", 1),
        ("y", "a", "board", 1),
    ]
    assert sweeps[0].frequency_hz.tolist() == [1e9, 2e9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: column frequency_mhz is missing, found: nothing"),
        ("frequency_mhz,watts\n1000,5\n", "line 1: column power_w is missing, found: frequency_mhz, watts"),
        ("frequency_mhz,power_w,power_w\n", "line 1: column power_w stands 2 times"),
        ("frequency_mhz,power_w\n", "no rows below the header"),
        ("frequency_mhz,power_w\n1000,5\n2000,many\n", "line 3: power_w is 'many', expected a number"),
        ("frequency_mhz,power_w\n1000,\n", "line 2: power_w is '', expected a number"),
        ("frequency_mhz,power_w\n1000,nan\n", "line 2: power_w is 'nan', expected a finite number"),
        ("frequency_mhz,power_w\ninf,5\n", "line 2: frequency_mhz is 'inf', expected a finite number"),
        ("frequency_mhz,power_w\n0,5\n", "line 2: frequency_mhz is 0, expected a clock above 0"),
        ("frequency_mhz,power_w\n-100,5\n", "line 2: frequency_mhz is -100, expected a clock above 0"),
        ("frequency_mhz,power_w\n1000,-5\n", "line 2: power_w is -5, expected watts above 0"),
        ("frequency_mhz,power_w\n1000,0\n", "line 2: power_w is 0, expected watts above 0"),
        ("frequency_mhz,power_w\n1377000000,5\n", r"line 2: frequency_mhz is 1\.377e\+09, .*is it in Hz or kHz"),
        ("frequency_mhz,power_w\n1.377,5\n", r"line 2: frequency_mhz is 1\.377, .*is it in GHz"),
        ("frequency_mhz,power_w\n1000,45000\n", r"line 2: power_w is 45000, .*is it in milliwatts"),
        ("frequency_mhz,power_w\n1000,5,6\n", "line 2: 3 cells, expected 2"),
        (
            "frequency_mhz,power_w,power_scope\n1000,5,board\n1100,6,gpu\n",
            "line 3: power_scope is 'gpu', expected 'board'",
        ),
        ("frequency_mhz;power_w\n1000;5\n", "separate cells by commas, decimals by a point"),
        ("frequency_mhz\tpower_w\n1000\t5\n", "separate cells by commas, decimals by a point"),
        ("frequency_mhz,power_w\n1000,5,2\n", "line 2: 3 cells, .* separate cells by commas, decimals by a point"),
        ('frequency_mhz,power_w\n1000,"5,2"\n', "expected a number; separate cells by commas, decimals by a point"),
    ],
)
def test_a_bad_table_gives_one_line_naming_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(BadInput, match=message) as caught:
        read_csv(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_not_a_text_table_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadInput, match="not UTF-8 text"):
        read_csv(binary)
    with pytest.raises(BadInput, match="cannot be read"):
        read_csv(tmp_path / "missing.csv")
    (tmp_path / "nul.csv").write_bytes(b"frequency_mhz,power_w\n1000,\0\n")
    with pytest.raises(BadInput, match="NUL bytes"):
        read_csv(tmp_path / "nul.csv")


def test_only_what_ends_a_line_in_a_csv_ends_a_row(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    rows = "".join(f'a\u2028b,"c\nd",{mhz},{mhz / 50}\r\n' for mhz in (300, 600, 900))
    path.write_bytes(("device,workload,frequency_mhz,power_w\r\n" + rows).encode())
    (sweep,) = read_csv(path)
    assert (sweep.device, sweep.workload, len(sweep.power_w)) == ("a\u2028b", "c\nd", 3)
    assert sweep.title == "a?b · c?d"


@pytest.mark.parametrize(
    ("row", "says"), [("6_00,5", "frequency_mhz is '6_00'"), ("600,1e-300", "power_w is 1e-300, expected watts from")]
)
def test_figures_that_nobody_means_are_refused(tmp_path: Path, row: str, says: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"frequency_mhz,power_w\n300,4\n{row}\n")
    with pytest.raises(BadInput, match=f"line 3: {says}"):
        read_csv(path)


def test_a_folder_of_tables_is_told_to_name_them(tmp_path: Path) -> None:
    path = table(tmp_path, "frequency_mhz,power_w\n300,4\n600,5\n")
    with pytest.raises(BadInput, match=f"no profiles here, but CSV files: .*fit-power {path}"):
        fit_power([tmp_path], model="auto", as_json=True, plot=None, dry_run=True)


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(BadInput, match="cannot be read: not a regular file"):
        read_csv(tmp_path / "table.csv")


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_bytes(b"\xef\xbb\xbffrequency_mhz,power_w\r\n1000,5\r\n2000,9\r\n")
    assert read_csv(path)[0].power_w.tolist() == [5.0, 9.0]


# ---- plots


def test_plots_are_one_picture_a_sweep_inside_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sweep = Sweep("s.csv", "../../evil $x", "a/b", None, CLOCKS, measured(), np.zeros(12, dtype=bool))
    fitted = fit(sweep)
    paths = plot_fits([(sweep, fitted), (sweep, fitted)], tmp_path / "plots")
    assert len(set(paths)) == 2
    for path in paths:
        assert path.parent == tmp_path / "plots"
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_sweep_whose_cap_nobody_has_marked_is_drawn_with_its_capped_points_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    power = np.minimum(measured(3, noise=0.003), 30.0)
    sweep = Sweep("s.csv", None, None, None, CLOCKS, power, np.zeros(12, dtype=bool), marked=False)
    fitted = fit(sweep)
    assert 3 <= fitted.capped.sum() < 12
    assert plot_fits([(sweep, fitted)], tmp_path)[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_clocks_can_be_drawn(tmp_path: Path, count: int) -> None:
    pytest.importorskip("matplotlib")
    kept = np.linspace(0, 11, count).astype(int)
    sweep = Sweep("s.csv", None, None, None, CLOCKS[kept], measured()[kept], np.zeros(count, dtype=bool))
    assert plot_fits([(sweep, fit(sweep))], tmp_path)[0].read_bytes().startswith(b"\x89PNG")


def test_a_folder_for_plots_that_cannot_be_written_leaves_the_profile_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "board.json"
    save(profile_with(power_block()), path)
    before = path.read_bytes()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(BadInput, match="--plot"):
        fit_power([path], model="auto", as_json=True, plot=tmp_path / "taken", dry_run=False)
    assert path.read_bytes() == before


# ---- measured sweeps


def test_on_measured_jetson_sweeps_auto_is_below_a_percent_where_the_cubic_law_is_half_off(shared_data: Path) -> None:
    sweeps = read_csv(shared_data / "power" / "xavier_gemm.csv")[::4]
    fits = [fit(sweep) for sweep in sweeps]
    auto = np.median([f.models["auto"].loo_mape_pct for f in fits])
    assert auto <= 1.0
    assert np.median([f.models["cubic"].loo_mape_pct for f in fits]) > 50
    assert auto <= 1.1 * np.median([f.models["ridge"].loo_mape_pct for f in fits])


def test_a_law_asked_for_that_does_not_fit_has_a_wider_interval_than_the_average():
    f = np.linspace(0.4e9, 2e9, 9)
    watts = 20 + 10 * f / 1e9 * (1 + np.maximum(0, f / 1e9 - 1.2)) ** 2
    wide, usual = (fit_sweep(f, watts, model=name) for name in ("affine-cubic", "auto"))
    at = np.searchsorted(usual.frequency_hz, f)
    assert np.median((wide.high_w - wide.low_w)[at]) > 3 * np.median((usual.high_w - usual.low_w)[at])


def test_what_others_write_into_a_profile_while_its_curve_is_fitted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "box.json"
    save(make_profile("box", "server"), path)

    def slowly(sweeps: Any, *rest: Any) -> Any:
        data = json.loads(path.read_text())
        data["link"] = {"provenance": "assumed", "uplink_mbps": 10, "downlink_mbps": 20}
        path.write_text(json.dumps(data))
        return fit_together(sweeps, *rest)

    monkeypatch.setattr("profiler.power.report.fit_together", slowly)
    fit_power([path], model="auto", as_json=True, plot=None, dry_run=False)
    data = json.loads(path.read_text())
    assert data["link"]["uplink_mbps"] == 10
    assert data["power_fit"]["selected"] == "auto"


def test_a_clock_asked_for_again_and_read_a_little_off_is_no_other_clock() -> None:
    """As the clocks of a CSV are that were measured: none of what is left out stays in, and one clock is no curve."""
    rng = np.random.default_rng(5)
    clocks, watts = np.repeat(CLOCKS, 4), np.repeat(measured(), 4)
    read = clocks * (1 + 4e-4 * rng.uniform(-1, 1, len(clocks)))
    exact, jittered = fit_sweep(clocks, watts), fit_sweep(read, watts)
    assert len(jittered.left_out.frequency_hz) == len(CLOCKS)
    assert jittered.models["auto"].loo_mape_pct == pytest.approx(exact.models["auto"].loo_mape_pct, rel=0.1)
    with pytest.raises(BadInput, match="1 distinct clock"):
        fit_sweep(1.3e9 * (1 + np.linspace(-1, 1, 6) * 9e-4), np.full(6, 70.0))


def test_a_sweep_with_one_clock_below_the_cap_is_refused_and_says_so() -> None:
    f = np.array([210e6, 445e6, 446e6, 449e6, 452e6])
    with pytest.raises(BadInput, match="1 distinct clock below the power cap"):
        fit_sweep(f, [18.0, 24.0, 24.1, 24.0, 24.1], capped=[False, True, True, True, True])


def test_a_cap_far_below_what_was_measured_elsewhere_is_not_believed() -> None:
    watts = measured()
    capped = np.arange(len(CLOCKS)) == 3
    fitted = fit_sweep(CLOCKS, watts, capped=capped)
    assert fitted.power_w.max() > 0.95 * watts.max()
    assert fitted.power_cap_w is None
    assert any("marked as the power cap" in warning for warning in fitted.warnings)


def test_many_sweeps_have_their_notes_told_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = measured() * np.where(np.arange(len(CLOCKS)) == 5, 1.4, 1.0)
    swept = [odd, *(measured(seed) for seed in range(1, 5))]
    rows = [f"{f / 1e6},{p},board{k}" for k, watts in enumerate(swept) for f, p in zip(CLOCKS, watts, strict=True)]
    fit_power(
        [table(tmp_path, "\n".join(["frequency_mhz,power_w,device", *rows]))],
        model="auto",
        as_json=False,
        plot=None,
        dry_run=True,
    )
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert any("board0" in note for note in notes)
    assert not any("cubic law" in note for note in notes)
