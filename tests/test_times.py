"""Times followed over the clock: the law a + b/f, the curve for clocks never visited, and how honest its interval is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput, Profile, SegmentTime, Stat, Timing
from profiler.times import affine, cannot_fit, fit_times, predict
from tests.synthetic import make_profile


def timed(
    clocks_hz: list[float],
    rows: object,
    *,
    noise: float = 0.0,
    samples: int = 9,
    seed: int = 0,
    supported: tuple[float, float] | None = None,
    layers: int = 4,
) -> Profile:
    """A server whose segment s takes ``rows(s, direction, hz)`` seconds (direction 0, 1, 2: forward, backward, optimizer)."""
    base = make_profile("srv", "server", layers=layers)
    rng = np.random.default_rng(seed)

    def stat(seconds: float) -> Stat:
        if noise == 0:
            return Stat(median_s=seconds, samples=samples)
        low, middle, high = np.percentile(seconds * (1 + noise * rng.standard_normal(samples)), [25, 50, 75])
        return Stat(median_s=middle, iqr_s=high - low, samples=samples)

    timings = [
        Timing(
            provenance="measured",
            frequency_hz=hz,
            segments=[
                SegmentTime(**{d: stat(rows(s, k, hz)) for k, d in enumerate(("forward", "backward", "optimizer"))})  # type: ignore[operator]
                for s in range(len(base.segments))
            ],
        )
        for hz in clocks_hz
    ]
    low, high = supported or (min(clocks_hz), max(clocks_hz))
    assert base.hardware.clocks is not None
    clocks = base.hardware.clocks.model_copy(
        update={"supported_hz": [], "min_hz": low, "max_hz": high, "operating_hz": high}
    )
    hardware = base.hardware.model_copy(update={"clocks": clocks})
    return base.model_copy(update={"timings": timings, "hardware": hardware})


def fitted(profile: Profile) -> Profile:
    fit = fit_times(profile)
    assert fit is not None
    return Profile.model_validate_json(profile.model_copy(update={"time_fit": fit}).model_dump_json())


def affine_rows(segment: int, direction: int, hz: float) -> float:
    return (1 + segment) * (1e-3 * (1 + direction) + 2e6 * (1 + direction) / hz)


GHZ = [0.4e9, 0.7e9, 1.0e9, 1.5e9, 2.0e9]


def test_times_that_are_a_plus_b_over_f_give_a_and_b_and_delta_by_hand() -> None:
    fit = fitted(timed(GHZ, affine_rows)).time_fit
    assert fit is not None
    assert (fit.provenance, fit.basis, fit.root) == ("fitted", "measured", "measured")
    law = fit.segments[2].backward  # the second layer: 3 (2 ms + 4e6 cycles / f), 1 GFLOP each way, 1000 cores
    assert law.a_s == pytest.approx(6e-3)
    assert law.b_cycles == pytest.approx(12e6)
    assert law.flops_per_core_cycle == pytest.approx(1e9 / (12e6 * 1000))
    assert law.loo_error_pct == pytest.approx(0, abs=1e-6)
    assert fit.segments[0].forward.flops_per_core_cycle is None  # the embedding has no FLOPs
    assert fit.segments[2].optimizer.flops_per_core_cycle is None
    # the whole: (1 + ... + 6) (1 + 2 + 3) (1 ms + 2e6 cycles / f), 12 GFLOP
    assert fit.step.a_s == pytest.approx(126e-3)
    assert fit.step.b_cycles == pytest.approx(252e6)
    assert fit.step.flops_per_core_cycle == pytest.approx(12e9 / (252e6 * 1000))
    assert fit.warnings == []


def test_where_the_law_holds_the_curve_is_the_law_between_and_beyond_the_visited_clocks() -> None:
    profile = fitted(timed(GHZ, affine_rows, supported=(0.2e9, 2.6e9)))
    hz = np.array([0.2e9, 0.55e9, 0.7e9, 1.23e9, 2.6e9])
    found = predict(profile, hz)
    expected = [[[affine_rows(s, d, f) for f in hz] for d in range(3)] for s in range(6)]
    assert found.median_s == pytest.approx(np.array(expected), rel=1e-6)
    assert found.step_median_s == pytest.approx(np.array(expected).sum((0, 1)), rel=1e-6)
    assert (found.low_s < found.median_s).all()
    assert (found.median_s < found.high_s).all()


def test_the_affine_fit_of_four_points_by_hand() -> None:
    # x = 1/f = 1, 2, 3, 4 ns; t = 3, 5, 7, 10: slope 11.5/5 = 2.3, intercept 6.25 - 2.3 x 2.5 = 0.5 (equal weights)
    hz = 1e9 / np.array([1.0, 2.0, 3.0, 4.0])
    fit = affine(hz, np.array([3.0, 5.0, 7.0, 10.0]), np.full(4, 1e3))
    assert fit.a_s == pytest.approx(0.5, rel=1e-3)
    assert fit.b_cycles == pytest.approx(2.3e9, rel=1e-4)
    assert fit.freedom == 2


def test_points_that_are_less_sure_count_less() -> None:
    hz = np.array([0.5e9, 1e9, 2e9])
    law = 1.0 + 1e9 / hz
    pushed = law * [1, 1, 1.2]
    doubted = affine(hz, pushed, law * [0.001, 0.001, 0.5])
    trusted = affine(hz, pushed, law * [0.001, 0.001, 0.001])
    assert abs(doubted.b_cycles / 1e9 - 1) < 0.02
    assert abs(trusted.b_cycles / 1e9 - 1) > 0.1


def test_neither_part_of_the_law_is_ever_negative() -> None:
    hz = np.array([0.5e9, 1e9, 2e9])
    steeper = affine(hz, 1e9 / hz - np.array([-0.3, 0.1, 0.1]), np.full(3, 0.01))
    assert steeper.a_s == 0
    assert steeper.b_cycles > 0
    rising = affine(hz, np.array([1.0, 1.1, 1.2]), np.full(3, 0.01))
    assert rising.b_cycles == 0
    assert 1.0 < rising.a_s < 1.2


@settings(max_examples=30, deadline=None)
@given(
    time=st.floats(1e-3, 1e3),
    clock=st.floats(0.2, 5),
    wobble=st.lists(st.floats(-0.05, 0.05), min_size=5, max_size=5),
)
def test_units_do_not_matter(time: float, clock: float, wobble: list[float]) -> None:
    """Times in other units scale a and b; clocks in other units scale b alone; errors in percent stay."""
    hz = np.array(GHZ)
    seconds = (1e-3 + 2e6 / hz) * (1 + np.array(wobble))
    one = affine(hz, seconds, 0.01 * seconds)
    other = affine(hz * clock, seconds * time, 0.01 * seconds * time)
    assert other.a_s == pytest.approx(one.a_s * time, rel=1e-6, abs=1e-12 * time)
    assert other.b_cycles == pytest.approx(one.b_cycles * time * clock, rel=1e-6)
    assert other.b_sd == pytest.approx(one.b_sd * time * clock, rel=1e-6)


def test_a_profile_in_other_units_has_the_same_curve() -> None:
    def rows(_s: int, _d: int, hz: float) -> float:
        return ((2e6 / hz) ** 3 + 2e-3**3) ** (1 / 3)

    at = np.array([0.5e9, 1.2e9, 1.8e9])
    one = predict(fitted(timed(GHZ, rows)), at)
    slow = predict(fitted(timed([f / 4 for f in GHZ], lambda s, d, f: 7 * rows(s, d, 4 * f))), at / 4)
    assert slow.median_s == pytest.approx(7 * one.median_s, rel=1e-5)
    assert slow.high_s == pytest.approx(7 * one.high_s, rel=1e-3)


def roofline(sharpness: float, seed: int) -> object:
    """Each segment is a dozen kernels that go over from computing to waiting, each at a clock of its own, after a launch."""
    rng = np.random.default_rng(seed)
    cycles = rng.lognormal(math.log(2e5), 1.0, (6, 3, 12))
    turns = rng.lognormal(math.log(1e9), 0.7, (6, 3, 12))  # the clock at which a kernel's two sides are equal
    cycles[1:5], turns[1:5] = cycles[1], turns[1]  # layers are alike

    def rows(segment: int, direction: int, hz: float) -> float:
        compute, memory = cycles[segment, direction] / hz, cycles[segment, direction] / turns[segment, direction]
        top = np.maximum(compute, memory)
        both = top * ((compute / top) ** sharpness + (memory / top) ** sharpness) ** (1 / sharpness)
        return float((5e-6 + both).sum())

    return rows


@pytest.mark.parametrize("count", [5, 8])
@pytest.mark.parametrize("sharpness", [2.0, 60.0])
def test_95_percent_intervals_cover_new_times_at_clocks_never_visited(count: int, sharpness: float) -> None:
    covered, errors, straight = [], [], []
    for seed in range(5):
        rows = roofline(sharpness, seed)
        clocks = list(np.linspace(0.4e9, 2.2e9, count))
        profile = fitted(timed(clocks, rows, noise=0.01, samples=4, seed=seed))
        new = list(np.linspace(0.4e9, 2.2e9, 3 * count - 2)[1::3]) + list(
            np.linspace(0.4e9, 2.2e9, 3 * count - 2)[2::3]
        )
        found = predict(profile, new)
        again = timed(new, rows, noise=0.01, samples=4, seed=100 + seed)
        for k, timing in enumerate(again.timings):
            for s, row in enumerate(timing.segments):
                for d, stat in enumerate((row.forward, row.backward, row.optimizer)):
                    covered.append(found.low_s[s, d, k] <= stat.median_s <= found.high_s[s, d, k])
                    truth = rows(s, d, new[k])  # type: ignore[operator]
                    errors.append(abs(found.median_s[s, d, k] / truth - 1))
                    assert profile.time_fit is not None
                    law = getattr(profile.time_fit.segments[s], ("forward", "backward", "optimizer")[d])
                    straight.append(abs((law.a_s + law.b_cycles / new[k]) / truth - 1))
    assert 0.90 <= np.mean(covered) <= 0.99
    assert np.median(errors) < 0.01
    assert np.median(errors) < np.median(straight)


def test_what_is_further_from_a_visited_clock_is_less_sure() -> None:
    profile = fitted(timed(GHZ, roofline(4.0, 1), noise=0.002, supported=(0.1e9, 4e9)))
    found = predict(profile, [1.0e9, 1.75e9, 2.0e9, 3.0e9, 4.0e9])
    near, _, end, far, further = (found.step_high_s - found.step_low_s) / found.step_median_s
    assert near < far < further
    assert end < far


def test_two_clocks_give_a_law_and_a_wide_interval_but_no_interval_of_its_parts() -> None:
    profile = fitted(timed([0.5e9, 2e9], affine_rows))
    fit = profile.time_fit
    assert fit is not None
    assert fit.step.b_cycles == pytest.approx(252e6)
    assert fit.step.a_ci95 is None
    assert fit.step.loo_error_pct is None
    found = predict(profile, [0.8e9])
    assert found.step_high_s[0] / found.step_low_s[0] > 1.05


def test_a_curve_with_a_sudden_step_stays_between_the_times_on_either_side() -> None:
    """A memory clock that falls with the core clock: times jump. No swinging past what was measured."""

    def rows(_s: int, _d: int, hz: float) -> float:
        return 1e-3 + 2e6 / hz + (2e-2 if hz < 0.9e9 else 0.0)

    profile = fitted(timed(GHZ, rows))
    assert profile.time_fit is not None
    hz = np.linspace(0.4e9, 2e9, 200)
    seconds = predict(profile, hz).step_median_s
    assert (np.diff(seconds) <= 1e-9).all()
    assert profile.time_fit.step.curve_s[0] >= seconds[0]
    assert seconds[-1] >= profile.time_fit.step.curve_s[-1] > 0


@pytest.mark.parametrize(
    ("clocks", "reason"),
    [([1e9], "one clock"), ([1e9, 1.0005e9], "one clock"), ([1e9, 1.03e9], "near to each other")],
)
def test_clocks_that_cannot_show_how_times_follow_them_are_refused_with_the_reason(
    clocks: list[float], reason: str
) -> None:
    profile = timed(clocks, affine_rows)
    assert fit_times(profile) is None
    assert reason in str(cannot_fit(profile))


def test_times_whose_clock_is_not_known_are_refused_and_clocks_asked_for_stand_in() -> None:
    profile = timed(GHZ, affine_rows)
    asked = [t.model_copy(update={"frequency_hz": None, "requested_hz": t.frequency_hz}) for t in profile.timings]
    assert fit_times(profile.model_copy(update={"timings": asked})) is not None
    blind = profile.model_copy(
        update={"timings": [t.model_copy(update={"frequency_hz": None}) for t in profile.timings]}
    )
    assert fit_times(blind) is None
    assert "not known" in str(cannot_fit(blind))
    assert "no layers" in str(cannot_fit(profile.model_copy(update={"timings": []})))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lambda s, d, hz: 1e-3, "flat"),
        (lambda s, d, hz: 1e-12 * hz, "rise with the clock"),
        (lambda s, d, hz: 1e14 / hz**2, "faster than the clock"),
        (
            lambda s, d, hz: 1e-3 + 1e6 / hz + (2e-3 if hz == 1.5e9 else 0),
            "between some neighbouring clocks (at 1500 MHz)",
        ),
    ],
)
def test_times_that_do_not_follow_the_clock_are_said_to(rows: object, said: str) -> None:
    fit = fit_times(timed(GHZ, rows, noise=0.001))
    assert fit is not None
    assert len(fit.warnings) == 1
    assert said in fit.warnings[0]


def test_the_same_clock_reached_twice_is_one_clock() -> None:
    """Requests above a power cap all end at about one clock."""
    profile = fitted(timed([0.5e9, 1e9, 1.5e9, 1.5001e9, 1.5004e9], affine_rows, noise=0.005))
    assert profile.time_fit is not None
    assert len(profile.time_fit.clocks_hz) == 3
    assert predict(profile, [0.75e9]).step_median_s[0] == pytest.approx(36 * 3.5 * (1e-3 + 2e6 / 0.75e9), rel=0.01)


def test_segments_that_take_no_time_and_profiles_of_every_clock_stay_small() -> None:
    profile = timed(
        list(np.linspace(0.3e9, 2e9, 150)), lambda s, d, hz: 0.0 if s == 0 else affine_rows(s, d, hz), noise=0.01
    )
    fit = fitted(profile).time_fit
    assert fit is not None
    assert len(fit.clocks_hz) <= 64
    assert fit.segments[0].forward.b_cycles == 0
    assert len(fit.model_dump_json()) < 0.5 * len(profile.model_dump_json())
    assert (predict(fitted(profile), [0.9e9]).median_s[0] == 0).all()


def test_show_prints_the_law_and_its_errors_and_the_plot_is_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from profiler.show import show
    from profiler.times_plot import plot_times

    profile = fitted(timed(GHZ, roofline(4.0, 3), noise=0.005))
    show(profile, Console(width=140))
    shown = capsys.readouterr().out
    assert "Times against the clock" in shown
    assert "layer forward (4)" in shown
    assert "whole step" in shown
    assert "delta_eff" in shown
    pytest.importorskip("matplotlib")
    (path,) = plot_times(profile, tmp_path / "made")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert plot_times(profile.model_copy(update={"time_fit": None}), tmp_path) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BadInput, match="--plot"):
        plot_times(profile, blocked)


def test_rows_that_do_not_fit_the_clocks_or_the_segments_are_refused() -> None:
    profile = fitted(timed(GHZ, affine_rows))
    assert profile.time_fit is not None
    short = profile.model_dump(mode="json")
    short["time_fit"]["step"]["curve_s"].pop()
    with pytest.raises(ValueError, match=r"step\.curve_s: 4 times"):
        Profile.model_validate(short)
    fewer = profile.model_dump(mode="json")
    fewer["time_fit"]["segments"].pop()
    with pytest.raises(ValueError, match=r"time_fit\.segments: 5 rows, expected 6"):
        Profile.model_validate(fewer)


def test_95_percent_intervals_of_a_and_b_hold_what_made_the_times() -> None:
    rng = np.random.default_rng(4)
    hz = np.linspace(0.4e9, 2e9, 6)
    a, b = 1e-3, 2e6
    held = []
    for _ in range(300):
        seconds = (a + b / hz) * (1 + 0.01 * rng.standard_normal(6))
        fit = affine(hz, seconds, 0.01 * seconds)
        held.append((abs(fit.a_s - a) <= 2.776 * fit.a_sd, abs(fit.b_cycles - b) <= 2.776 * fit.b_sd))
    assert (np.mean(held, axis=0) >= 0.92).all()


def test_leaving_a_clock_out_is_fitting_without_it() -> None:
    hz = np.array(GHZ)
    seconds = (1e-3 + 2e6 / hz) * [1.01, 0.99, 1.02, 0.98, 1.0]
    fit = affine(hz, seconds, 1e-9 * seconds)  # noise far below the misfit: weights as good as equal
    for k in range(len(hz)):
        rest = np.arange(len(hz)) != k
        other = affine(hz[rest], seconds[rest], 1e-9 * seconds[rest])
        assert fit.left_out_s[k] == pytest.approx(other.a_s + other.b_cycles / hz[k], rel=1e-4)
