"""Sweeps of one device teach each other what its voltages are, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from profiler.power.cap import Cap
from profiler.power.curve import Array, CrossFit, Curve, left_out
from profiler.power.fit import SweepFit, fit, fit_together
from profiler.power.models import KRIGED, cross_fit_all
from profiler.power.prediction_interval import Intervals, LeftOut
from profiler.power.priors import IntervalPriors
from profiler.power.report import fit_power
from profiler.power.source import Sweep
from profiler.power.voices import Misses

CLOCKS = np.linspace(300e6, 1.5e9, 7)


def volts(f: np.ndarray) -> np.ndarray:
    """A table with a floor, bent, and no ridge law's straight line."""
    return np.asarray(0.62 + 0.38 * np.clip((f - 0.7e9) / 0.8e9, 0, 1) ** 1.4)


def watts(f: np.ndarray, busy: float, idle_w: float) -> np.ndarray:
    return np.asarray(idle_w + 30 * busy * f / 1e9 * volts(f) ** 2)


def sweep(name: str, busy: float, seed: int = 0, clocks: np.ndarray = CLOCKS, noise: float = 0.004) -> Sweep:
    power = watts(clocks, busy, idle_w=6.0) * (1 + noise * np.random.default_rng(seed).standard_normal(len(clocks)))
    return Sweep(
        source="sweeps.csv",
        device="board",
        workload=name,
        power_scope="module",
        frequency_hz=clocks,
        power_w=power,
        capped=np.zeros(len(clocks), dtype=bool),
        marked=False,
        domain_hz=(CLOCKS[0], CLOCKS[-1]),
        chip="board",
    )


BUSY = (1.0, 0.7, 0.4, 1.2)
SWEEPS = [sweep(f"w{k}", busy, k) for k, busy in enumerate(BUSY)]


@cache
def together() -> tuple[SweepFit, ...]:
    return tuple(fit_together(SWEEPS))


@cache
def alone() -> SweepFit:
    return fit(SWEEPS[0])


def same(one: SweepFit, other: SweepFit) -> bool:
    return bool(np.array_equal(one.power_w, other.power_w) and np.array_equal(one.low_w, other.low_w))


def without(one: Sweep, clock: int) -> Sweep:
    kept = np.delete(np.arange(len(one.frequency_hz)), clock)
    columns = {name: getattr(one, name)[kept] for name in ("frequency_hz", "power_w", "capped")}
    return replace(one, **columns)


@pytest.mark.parametrize(("model", "clock"), [("kriged", 0), ("kriged", 3), ("auto", 3), ("auto", 6)])
def test_a_clock_left_out_is_left_out_of_all_workloads(model: str, clock: int) -> None:
    left = fit_together(SWEEPS, model)[1].left_out
    refit = fit_together([replace(without(one, clock), supported_hz=(CLOCKS[clock],)) for one in SWEEPS], model)[1]
    at = np.searchsorted(refit.frequency_hz, CLOCKS[clock])
    assert left.power_w[clock] == pytest.approx(refit.power_w[at], rel=1e-5)
    # Noise is proportional to the watts predicted, or measured: that alone is not the same.
    width = left.high_w[clock] - left.low_w[clock]
    assert width == pytest.approx(refit.high_w[at] - refit.low_w[at], rel=0.1)


def test_what_others_measured_at_a_clock_left_out_does_not_reach_its_prediction() -> None:
    """But for the voice at all other clocks, which hears it."""
    louder = [
        SWEEPS[0],
        *(replace(one, power_w=one.power_w * (1 + 0.02 * (np.arange(7) == 3))) for one in SWEEPS[1:]),
    ]
    before, after = together()[0].left_out, fit_together(louder)[0].left_out
    assert after.power_w[3] == pytest.approx(before.power_w[3], rel=1e-9)
    assert after.power_w[4] != pytest.approx(before.power_w[4], rel=1e-6)


def test_repeats_of_a_clock_that_ran_a_little_apart_are_left_out_with_it() -> None:
    """As a CSV of measured clocks has them."""
    twice = np.sort(np.concatenate([CLOCKS, CLOCKS * 1.002]))
    others = [sweep(f"w{k}", busy, k, twice) for k, busy in enumerate(BUSY[1:], start=1)]
    others = [replace(one, domain_hz=(CLOCKS[0], CLOCKS[-1] * 1.002)) for one in others]
    own = replace(SWEEPS[0], domain_hz=(CLOCKS[0], CLOCKS[-1] * 1.002))
    louder = [replace(one, power_w=one.power_w * np.where(np.arange(14) // 2 == 3, 1.1, 1.0)) for one in others]
    before, after = (fit_together([own, *each])[0].left_out for each in (others, louder))
    for said in ("power_w", "low_w", "high_w"):
        assert getattr(after, said)[3] == pytest.approx(getattr(before, said)[3], rel=1e-6)
    assert after.power_w[4] != pytest.approx(before.power_w[4], rel=1e-6)


@pytest.mark.parametrize("times", [1, 2])
def test_a_sweep_alone_is_fitted_as_ever_also_where_it_is_given_twice(times: int) -> None:
    assert same(fit_together(SWEEPS[:1] * times)[0], alone())


def test_a_copy_with_its_rows_in_another_order_is_no_witness_either() -> None:
    back = replace(
        SWEEPS[0], frequency_hz=SWEEPS[0].frequency_hz[::-1], power_w=SWEEPS[0].power_w[::-1], workload="copy"
    )
    assert same(fit_together([SWEEPS[0], back])[0], alone())


def test_a_workload_swept_at_few_clocks_learns_from_those_that_were_swept_at_many() -> None:
    few, many = CLOCKS[[0, 2, 4, 6]], np.linspace(CLOCKS[0], CLOCKS[-1], 10)
    alone_pct, together_pct, alone_w, together_w = [], [], [], []
    for seed in range(2):
        own = sweep("few", 0.8, 100 + seed, few)
        others = [sweep(f"many{k}", busy, 10 * seed + k, many) for k, busy in enumerate(BUSY)]
        for fitted, error_pct, width_w in (
            (fit(own), alone_pct, alone_w),
            (fit_together([own, *others])[0], together_pct, together_w),
        ):
            true_w = watts(fitted.frequency_hz, 0.8, 6.0)
            error_pct.append(100 * np.mean(np.abs(fitted.power_w / true_w - 1)))
            width_w.append(np.median(fitted.high_w - fitted.low_w))
    assert np.mean(together_pct) < 0.8 * np.mean(alone_pct)
    assert np.mean(together_w) < 0.9 * np.mean(alone_w)


@pytest.mark.parametrize(
    "other",
    [
        {"chip": "another"},
        {"power_scope": "gpu"},
        {"provenance": "assumed"},
        {"domain_hz": (200e6, 1.5e9)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_only_sweeps_of_one_chip_rail_and_provenance_over_one_domain_are_heard(other: dict[str, object]) -> None:
    changed = [SWEEPS[0], *(replace(one, **other) for one in SWEEPS[1:])]  # type: ignore[arg-type]
    assert same(fit_together(changed)[0], alone())
    assert not same(together()[0], alone())


def test_the_order_of_the_sweeps_does_not_matter() -> None:
    order = [2, 0, 3, 1]
    before, after = together(), fit_together([SWEEPS[k] for k in order])
    for place, k in enumerate(order):
        assert after[place].power_w == pytest.approx(before[k].power_w, rel=1e-6)


def test_a_voice_without_clocks_keeps_what_was_measured_elsewhere() -> None:
    voice = KRIGED.voice(Curve.of(CLOCKS, SWEEPS[0].power_w, (CLOCKS[0], CLOCKS[-1])))
    assert voice is not None
    between = (CLOCKS[1:3] + CLOCKS[2:4]) / 2
    asked = np.array([CLOCKS[0] * 1.0005, between[0], CLOCKS[4]])
    said = voice.without(asked)
    _, row = left_out(len(CLOCKS))
    # all; without the first, without what was never measured, without the fifth; and two by two
    assert np.array_equal(said, voice.probability[[0, 1, 0, 5, 1, row[0, 4], 5]])
    assert said.sum(axis=1) == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Where the others err


@cache
def fits() -> tuple[Curve, dict[str, CrossFit]]:
    curve = Curve.of(CLOCKS, SWEEPS[0].power_w, (CLOCKS[0], CLOCKS[-1]))
    return curve, cross_fit_all(curve)


def spans(*off: Array, clocks: np.ndarray = CLOCKS) -> tuple[Array, LeftOut]:
    """Widths at the clocks, and what is said of each left out, where others were ``off`` (n, n) by so many times what was expected."""
    curve, laws = fits()
    misses = [Misses(clocks, each) for each in off]
    found = Intervals(curve, laws["kriged"], laws["kriged"], laws["cubic"], IntervalPriors(shared=4.0), misses)
    low, high = found.at(CLOCKS, laws["kriged"].curve(CLOCKS))
    return high - low, found.left_out(Cap())


AS_EXPECTED = np.sqrt(2 / np.pi)  # of a normal error over its deviation, the mean


def test_an_interval_is_wider_near_clocks_where_other_workloads_err_more_than_expected() -> None:
    usual = spans()[0]
    off = np.full((7, 7), AS_EXPECTED)
    off[:, 0] = 5 * AS_EXPECTED
    # Seven clocks a sixth of the range apart, of which the first is off five times as far as expected; 4 clocks of claim.
    near = np.exp(-np.abs(np.arange(7)[:, None] - np.arange(7)) / 6 / 0.2)
    by_hand = (4 + near.sum(axis=1) + 4 * near[:, 0]) / (4 + near.sum(axis=1))
    assert spans(off)[0] == pytest.approx(by_hand * usual)
    assert by_hand[0] > 1.6
    assert by_hand[6] < 1.02


def test_an_odd_point_of_one_workload_does_not_blow_up_the_intervals_of_the_others() -> None:
    far, absurd = (np.where(np.arange(7) == 0, times, AS_EXPECTED) * np.ones((7, 1)) for times in (4.0, 4e6))
    assert np.array_equal(spans(absurd)[0], spans(far)[0])


def test_workloads_that_err_at_the_same_clock_count_once_and_none_makes_an_interval_narrower() -> None:
    off = np.full((7, 7), AS_EXPECTED)
    off[:, 2] = 6 * AS_EXPECTED
    assert spans(*[off] * 5)[0] == pytest.approx(spans(off)[0])
    a_little_apart = np.append(CLOCKS[:-1] * 1.003, CLOCKS[-1])
    assert spans(off, clocks=a_little_apart)[0] == pytest.approx(spans(off)[0], rel=0.02)
    assert np.array_equal(spans(np.zeros((7, 7)))[0], spans()[0])


def test_what_others_missed_at_a_clock_is_not_known_to_the_interval_of_that_clock_left_out() -> None:
    off = np.full((7, 7), AS_EXPECTED)
    louder = off.copy()
    louder[:, 3] = 4.0  # the fourth clock left out, alone or with any other
    before, after = spans(off)[1], spans(louder)[1]
    changed = (after.high_w - after.low_w) / (before.high_w - before.low_w)
    assert changed[3] == pytest.approx(1)
    assert (np.delete(changed, 3) > 1.03).all()


def test_a_step_that_all_workloads_of_a_board_share_widens_the_intervals_beside_it() -> None:
    """As on a V100, whose watts fall off at the lowest clocks: what one sweep shows once, the others show to be no accident."""
    clocks = np.linspace(CLOCKS[0], CLOCKS[-1], 10)

    def stepping(low_pct: float) -> list[Sweep]:
        sweeps = [sweep(f"s{k}", busy, 40 + k, clocks) for k, busy in enumerate((1.0, 0.8, 0.6, 1.2))]
        less = np.where(np.arange(10) == 2, 1 - low_pct / 100, 1.0)
        return [replace(one, power_w=one.power_w * less) for one in sweeps]

    own = stepping(0.0)[0]
    smooth, stepped = (fit_together([own, *stepping(pct)[1:]])[0] for pct in (0.0, 12.0))
    wider = (stepped.high_w - stepped.low_w) / (smooth.high_w - smooth.low_w)
    place = (stepped.frequency_hz - clocks[0]) / np.ptp(clocks)
    assert wider[place < 0.3].mean() > 2.4
    assert wider[place > 0.8].mean() < 1.4


def test_the_command_says_that_sweeps_were_fitted_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"{f / 1e6:.3f},{p:.4f},board,{one.workload}"
        for one in SWEEPS[:3]
        for f, p in zip(CLOCKS, one.power_w, strict=True)
    ]
    path = tmp_path / "sweeps.csv"
    path.write_text("\n".join(["frequency_mhz,power_w,device,workload", *rows]))
    fit_power([path], model="auto", as_json=True, plot=None, dry_run=False)
    for entry in json.loads(capsys.readouterr().out):
        assert any("together with 2 other sweeps of this device" in warning for warning in entry["warnings"])
