"""From sensor readings to one steady figure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.hardware.catalog import find
from profiler.hardware.device import PowerSensor, Reading
from profiler.hardware.emulated import EmulatedDevice
from profiler.power.interval import mean_interval
from profiler.power.sampling import SamplingOptions, rest_power, steady_point
from profiler.profile import BadInput, MissingHardware, PowerPoint
from tests.hardware.test_emulated import training_step
from tests.power.bench import METER, Bench, noise


def autoregressive(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    noise = rng.standard_normal(count)
    series = np.empty(count)
    series[0] = noise[0] / np.sqrt(1 - rho**2)
    for i in range(1, count):
        series[i] = rho * series[i - 1] + noise[i]
    return series


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("count", [60, 300])
def test_the_interval_covers_the_mean_of_a_correlated_series(count: int, rho: float) -> None:
    rng = np.random.default_rng(count + round(10 * rho))
    hits = 0
    for _ in range(400):
        found = mean_interval(autoregressive(rng, count, rho))
        hits += abs(found.mean) <= found.half_width
    assert hits / 400 >= (0.87 if (rho, count) == (0.9, 60) else 0.92)


@pytest.mark.parametrize(("rho", "count"), [(0.0, 5), (0.0, 8), (0.3, 5), (0.3, 8)])
def test_the_interval_of_a_few_windows_covers_as_well(rho: float, count: int) -> None:
    rng = np.random.default_rng(7)
    found = [mean_interval(autoregressive(rng, count, rho)) for _ in range(1000)]
    assert np.mean([abs(f.mean) <= f.half_width for f in found]) >= 0.93 - 0.1 * rho


def test_counting_readings_as_independent_would_not_have_covered() -> None:
    rng = np.random.default_rng(1)
    series = [autoregressive(rng, 300, 0.9) for _ in range(300)]
    naive = sum(abs(s.mean()) <= 1.96 * s.std(ddof=1) / np.sqrt(300) for s in series) / 300
    assert naive < 0.6


def test_the_interval_is_not_wider_than_it_must_be() -> None:
    rng = np.random.default_rng(2)
    width = np.median([mean_interval(rng.standard_normal(400)).half_width for _ in range(200)])
    assert width == pytest.approx(1.96 / np.sqrt(400), rel=0.15)


@given(
    st.lists(st.floats(-100, 100), min_size=4, max_size=60),
    st.floats(0.01, 1000),
    st.floats(-1000, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_interval_scales_and_shifts_with_the_values(values: list[float], scale: float, shift: float) -> None:
    series = np.round(values, 3)
    plain, moved = mean_interval(series), mean_interval(scale * series + shift)
    assert moved.mean == pytest.approx(scale * plain.mean + shift, rel=1e-6, abs=1e-6)
    if plain.half_width > 0 and moved.half_width > 0:
        assert moved.half_width == pytest.approx(scale * plain.half_width, rel=1e-3, abs=1e-6)


def test_too_few_values_have_no_finite_interval() -> None:
    assert mean_interval([1.0, 2.0, 3.0]).half_width == np.inf
    assert mean_interval([5.0] * 10).half_width == 0.0


def measure(bench: Bench, requested_hz: float | None = None, step_s: float = 0.7, **options: float | int) -> PowerPoint:
    return steady_point(
        bench,  # type: ignore[arg-type]
        lambda: bench.run(step_s),
        requested_hz=requested_hz,
        options=replace(SamplingOptions(), **options),  # type: ignore[arg-type]
    ).point


def test_a_steady_source_stops_as_soon_as_its_heat_has_been_watched() -> None:
    jitter = noise(0, 0.3)
    point = measure(Bench(lambda t: 50 + jitter(t), lambda t: 40.0 + round(jitter(t), 1) / 3))
    assert point.stopped_by == "steady"
    assert point.power_w == pytest.approx(50, abs=0.15)
    assert point.ci95_w < 0.35
    assert 20 <= point.seconds_s < 35
    coarse = measure(Bench(lambda t: 50 + jitter(t)))  # whole degrees hide slow heat, so it is watched for longer
    assert coarse.stopped_by == "steady"
    assert coarse.seconds_s < 75


def test_without_a_thermometer_the_reason_for_stopping_says_that_heat_was_not_watched() -> None:
    point = measure(Bench(lambda t: 50 + noise(0, 0.3)(t), lambda _: None))
    assert point.stopped_by == "steady, by the watts alone: no thermometer to watch"
    assert point.temperature_c is None


def test_a_rail_that_shows_no_watts_is_a_point_of_none() -> None:
    point = measure(Bench(lambda _: 0.0))
    assert point.power_w == 0
    assert point.stopped_by.startswith("time limit")


def test_the_start_up_does_not_count() -> None:
    jitter = noise(1, 0.3)
    point = measure(Bench(lambda t: 50 + jitter(t) - 30 * np.exp(-t / 5)))
    assert point.power_w == pytest.approx(50, abs=0.3)


def test_noise_that_never_settles_stops_at_the_bound_and_says_why() -> None:
    jitter = noise(2, 40.0)
    point = measure(Bench(lambda t: max(0.0, 100 + jitter(t))), max_s=40.0)
    assert point.stopped_by == "time limit, interval still wide"
    assert 35 <= point.seconds_s < 45
    assert point.ci95_w > 0.5


def test_a_machine_that_still_warms_up_is_waited_for() -> None:
    jitter = noise(3, 0.1)

    def celsius(t: float) -> float:
        return 70 - 40 * np.exp(-t / 30)

    steady = measure(Bench(lambda t: 50 + 0.1 * (celsius(t) - 70) + jitter(t), celsius))
    assert re.fullmatch(r"steady, \+0\.\d % counted in for heat to come", steady.stopped_by)
    assert 40 < steady.seconds_s < 80
    assert steady.power_w == pytest.approx(50, rel=0.005)
    indifferent = measure(Bench(lambda t: 50 + jitter(t), celsius))
    assert indifferent.stopped_by == "steady"  # the heat moves and the watts do not
    assert indifferent.power_w == pytest.approx(50, rel=0.003)
    hasty = measure(Bench(lambda t: 50 + 0.3 * (celsius(t) - 70) + jitter(t), celsius), max_s=30.0)
    assert hasty.stopped_by in ("time limit, temperature still moving", "time limit, interval still wide")
    assert hasty.ci95_w is not None
    assert abs(hasty.power_w - 50) < hasty.ci95_w


@pytest.mark.parametrize("seed", range(4))
def test_slow_heat_behind_a_whole_degree_sensor_is_followed_to_its_end(seed: int) -> None:
    jitter = noise(10 + seed, 1.0)

    def celsius(t: float) -> float:
        return 70 - 40 * np.exp(-t / 60)

    bench = Bench(lambda t: 100 + 0.4 * (celsius(t) - 70) + jitter(t), lambda t: float(round(celsius(t))))
    point = measure(bench)
    assert point.power_w == pytest.approx(100, rel=0.012)
    assert point.seconds_s > 90


def test_the_measured_clock_counts_not_the_requested_one() -> None:
    point = measure(Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda t: 0.99e9), requested_hz=1e9)
    assert point.frequency_hz == 0.99e9
    assert point.requested_hz == 1e9
    assert not point.capped


def test_the_clock_is_its_mean_while_the_watts_were_taken_not_while_it_warmed_up_or_paused() -> None:
    bench = Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda t: 2e9 if t < 3 else 1e9 if t % 0.4 < 0.2 else 1.02e9)
    assert measure(bench).frequency_hz == pytest.approx(1.01e9, rel=0.001)


def test_capped_readings_mark_the_point() -> None:
    assert measure(Bench(lambda t: 50 + 0.1 * np.sin(t), capped=lambda t: t > 5), requested_hz=1e9).capped
    now_and_then = Bench(lambda t: 50 + 0.1 * np.sin(t), capped=lambda t: round(10 * t) % 20 == 0)
    assert not measure(now_and_then, requested_hz=1e9).capped


def test_a_clock_that_falls_short_for_no_reason_told_is_capped_only_where_the_watts_are_at_the_cap() -> None:
    def short(cap_w: float | None) -> PowerPoint:
        return measure(Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda t: 0.9e9, cap_w=cap_w), requested_hz=1e9)

    for cap_w in (None, 50.0):
        assert short(cap_w).capped
    assert "900 MHz ran" in short(None).notes[0]
    free = short(120.0)
    assert not free.capped
    assert "not the power cap of 120 W" in free.notes[0]


@pytest.mark.parametrize(("ran_hz", "told"), [(1.03e9, True), (1.01e9, False), (0.99e9, False)])
def test_a_clock_above_the_one_asked_for_is_told(ran_hz: float, told: bool) -> None:
    for capped in (False, True):
        bench = Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda _: ran_hz, capped=lambda _, held=capped: held)  # type: ignore[misc]
        point = measure(bench, requested_hz=1e9)
        assert (point.frequency_hz, point.capped) == (pytest.approx(ran_hz), capped)
        assert any("1000 MHz was asked for and 1030 MHz ran" in note for note in point.notes) == told


def test_a_clock_that_was_not_told_is_said_and_watts_at_the_cap_are_taken_as_capped() -> None:
    def untold(cap_w: float | None) -> PowerPoint:
        return measure(Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda _: None, cap_w=cap_w), requested_hz=1e9)

    for cap_w, capped in ((None, False), (120.0, False), (51.0, True)):
        point = untold(cap_w)
        assert (point.frequency_hz, point.capped) == (1e9, capped)
        assert "the clock was not told: the one asked for is taken" in point.notes[0]
        assert ("as capped" in point.notes[0]) == capped


# ------------------------------------------------------------------------------------------------------- two methods


def fine(watts: Callable[[float], float], **more: Any) -> Bench:
    return Bench(watts, tick_s=0.01, **more)


@pytest.mark.parametrize("counter_s", [0.02, 0.05, 0.1, 0.13, 0.5])
@pytest.mark.parametrize("period_s", [0.05, 0.1])
def test_a_counter_that_moves_in_steps_is_read_without_their_error(counter_s: float, period_s: float) -> None:
    jitter = noise(5, 2.0)
    meter = PowerSensor("board", "bench", period_s, 0.0)
    point = measure(fine(lambda t: 80 + jitter(t), counter_s=counter_s, sensor=meter), step_s=0.23)
    assert point.method == "energy counter"
    assert point.counter_w == point.power_w == pytest.approx(80, rel=0.006)
    assert point.agreement == "agree"
    assert point.notes == []


def test_both_methods_are_kept_and_what_they_say_of_each_other() -> None:
    jitter = noise(4, 0.2)
    agree = measure(fine(lambda t: 50 + jitter(t), counter_s=0.02))
    assert agree.sensor_w == pytest.approx(agree.counter_w, rel=0.01)
    assert (agree.method, agree.agreement, agree.notes) == ("energy counter", "agree", [])
    apart = measure(fine(lambda t: 50 + jitter(t), counter_s=0.02, count=lambda _, joules: 1.1 * joules))
    assert apart.power_w == apart.counter_w == pytest.approx(55, abs=0.3)
    assert apart.sensor_w == pytest.approx(50, abs=0.3)
    assert apart.agreement == "disagree"
    assert "disagree by more than 3 %" in apart.notes[0]
    assert "counter's figure is kept" in apart.notes[0]
    alone = measure(fine(lambda t: 50 + jitter(t)))
    assert (alone.method, alone.counter_w, alone.agreement) == ("power sensor", None, None)


def test_a_figure_by_one_of_two_methods_says_which_one_was_missing() -> None:
    jitter = noise(4, 0.2)
    both = replace(METER, counter=True)
    sensor = measure(fine(lambda t: 50 + jitter(t), counter_s=0.02, count=lambda *_: None, sensor=both))
    assert (sensor.method, sensor.counter_w, sensor.agreement) == ("power sensor", None, None)
    assert sensor.notes == ["at 1000 MHz the energy counter gave nothing: the figure is by the power sensor alone, "
                            "which nothing confirms"]  # fmt: skip
    counter = measure(fine(lambda t: 50 + jitter(t), counter_s=0.02, show=lambda *_: None, sensor=both))
    assert (counter.method, counter.sensor_w, counter.agreement) == ("energy counter", None, None)
    assert "the power sensor gave nothing" in counter.notes[0]
    assert measure(fine(lambda t: 50 + jitter(t), counter_s=0.02, sensor=both)).notes == []


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (lambda t, joules: 0.0, "stands still at 0 J"),
        (lambda t, joules: 1234.5, "stands still at 1234.5 J"),
        (lambda t, joules: joules if t < 18 else joules - 900, "fell from"),
        (lambda t, joules: joules if t < 18 else joules + 5000, "jumped"),
        (lambda t, joules: joules if t < 8 else 400.0, "still for part of the time"),
    ],
)
def test_a_counter_that_is_not_to_be_believed_is_left_for_the_sensor_and_it_is_said(count: Any, why: str) -> None:
    jitter = noise(6, 0.2)
    point = measure(fine(lambda t: 50 + jitter(t), counter_s=0.02, count=count))
    assert point.method == "power sensor"
    assert point.counter_w is None
    assert point.power_w == pytest.approx(50, abs=0.2)
    assert why in point.notes[0]
    assert "power sensor's figure is kept" in point.notes[0]


@pytest.mark.parametrize("unit", [10.0, 1000.0])
def test_a_counter_in_another_unit_is_found_out_by_the_power_limit(unit: float) -> None:
    jitter, limited = noise(6, 0.2), replace(METER, limit_w=70.0)
    bench = fine(lambda t: 50 + jitter(t), counter_s=0.02, count=lambda _, joules: unit * joules, sensor=limited)
    point = measure(bench)
    assert (point.method, point.counter_w) == ("power sensor", None)
    assert point.power_w == pytest.approx(50, abs=0.2)
    assert re.search(r"says \d+ W, which the power limit of 70 W does not allow", point.notes[0])
    # Where both methods are above it the limit is what is wrong.
    wrong = measure(fine(lambda t: 50 + jitter(t), counter_s=0.02, sensor=replace(METER, limit_w=20.0)))
    assert (wrong.method, wrong.notes) == ("energy counter", [])


def test_a_counter_that_is_all_there_is_and_not_to_be_believed_gives_no_figure_and_the_reason() -> None:
    jitter, count = noise(6, 0.2), lambda t, joules: joules if t < 18 else joules - 900
    bench = fine(lambda t: 50 + jitter(t), counter_s=0.02, count=count, show=lambda *_: None)
    with pytest.raises(
        MissingHardware, match=r"the energy counter fell from .* nothing else tells the watts under this load"
    ):
        measure(bench)


def test_watts_at_a_clock_that_nobody_set_and_that_moved_are_called_a_mixture() -> None:
    jitter = noise(6, 0.2)

    def governed(t: float) -> float:
        return 306e6 if round(t) % 4 < 2 else 1020e6

    (note,) = measure(Bench(lambda t: 50 + jitter(t), hertz=governed)).notes
    assert note.startswith("the clock moved between 306 and 1020 MHz: these watts are a mixture")
    assert measure(Bench(lambda t: 50 + jitter(t), hertz=lambda t: 1e9 + 2e7 * jitter(t))).notes == []


def test_a_counter_without_a_power_sensor_is_enough() -> None:
    jitter = noise(7, 0.5)
    point = measure(fine(lambda t: 30 + jitter(t), counter_s=0.05, show=lambda *_: None))
    assert point.power_w == pytest.approx(30, rel=0.005)
    assert (point.method, point.sensor_w) == ("energy counter", None)
    assert rest_power(fine(lambda t: 12 + jitter(t), counter_s=0.05, show=lambda *_: None)).power_w == pytest.approx(  # type: ignore[arg-type]
        12, rel=0.03
    )


def test_an_averaging_sensor_is_waited_out_after_every_pause() -> None:
    """What a 1 s average shows of the pauses and of rest before the load is not counted."""
    jitter = noise(8, 0.5)
    meter = PowerSensor("board", "bench", 0.1, 1.0)
    bench = fine(lambda t: 100 + jitter(t), sensor=meter, rest_w=10.0)
    bench.wait(5.0)
    point = measure(bench)
    assert point.power_w == pytest.approx(100, rel=0.002)


# ----------------------------------------------------------------------------------------------------------- phases


def test_the_windows_meet_the_sensor_at_another_phase_each_and_the_same_seed_at_the_same() -> None:
    def pauses(seed: int) -> list[float]:
        bench = Bench(lambda t: 50 + 0.1 * np.sin(t))
        measure(bench, seed=seed)
        return bench.pauses_s

    assert len(pauses(0)) >= 4
    assert len(set(pauses(0))) == len(pauses(0))
    assert pauses(0) == pauses(0) != pauses(1)


def test_a_sensor_that_looks_in_step_with_the_load_shows_in_the_interval() -> None:
    """It samples 25 of every 100 ms, and so does the load's rhythm: one window alone would be up to 60 % off and not know."""

    def watts(since: float) -> float:
        return 100.0 if since % 0.1 < 0.05 else 20.0

    class InStep(Bench):
        """The load's rhythm starts with each stretch of load, the sensor's runs on."""

        began = 0.0

        def run(self, seconds_s: float, *, busy: bool = True) -> None:
            if not busy:
                super().run(seconds_s, busy=False)
                self.began = self._now
            else:
                super().run(seconds_s)

    bench = InStep(lambda t: watts(t - bench.began), tick_s=0.005, rest_w=20.0)

    def show(t: float, _: float) -> float:
        return float(np.mean([watts(t - 0.005 * k - bench.began) for k in range(5)]))

    bench.show = show
    point = measure(bench, step_s=0.4)
    assert point.ci95_w is not None
    assert abs(point.power_w - 60) <= point.ci95_w
    assert point.ci95_w > 3
    assert point.stopped_by == "time limit, interval still wide"


# ------------------------------------------------------------------------------------------------ loads of all kinds


@pytest.mark.parametrize("step_s", [0.001, 0.03, 0.24, 0.9, 3.1, 10.0, 25.0])
def test_uneven_steps_of_any_length_do_not_bias_the_mean(step_s: float) -> None:
    """A step draws 80 W for its first third and 20 W for the rest: 40 W."""
    jitter = noise(9, 0.5)

    class Uneven(Bench):
        phase = 0.0

        def run(self, seconds_s: float, *, busy: bool = True) -> None:
            if not busy:
                return super().run(seconds_s, busy=False)
            begin = self._now
            self.level = lambda t: 80.0 if (t - begin) <= seconds_s / 3 + 1e-9 else 20.0
            return super().run(seconds_s)

    tick = 0.01 if step_s < 0.1 else 0.02
    if step_s == 0.001:  # too short for ticks: an even load in very many calls
        bench = Bench(lambda t: 40 + jitter(t), tick_s=0.001)
    else:
        bench = Uneven(lambda t: bench.level(t) + jitter(t), tick_s=tick, rest_w=5.0)  # type: ignore[attr-defined]
    point = measure(bench, step_s=step_s)
    assert point.power_w == pytest.approx(40, rel=0.02)
    assert point.seconds_s < 180 + 2 * step_s


def test_a_step_that_outlasts_the_bound_still_gives_a_figure_in_one_step() -> None:
    jitter = noise(11, 0.5)
    bench = Bench(lambda t: 50 + jitter(t) - 20 * np.exp(-t / 10))
    point = measure(bench, step_s=500.0)
    assert point.power_w == pytest.approx(50, rel=0.005)
    assert point.seconds_s <= 500
    assert point.stopped_by.startswith("time limit")


def test_short_steps_are_submitted_in_rows_and_still_counted_as_whole() -> None:
    calls = 0
    bench = Bench(lambda t: 50 + 0.1 * np.sin(9 * t), tick_s=0.001)
    looked = 0
    plain_now = bench.now_s

    def now_s() -> float:
        nonlocal looked
        looked += 1
        return plain_now()

    bench.now_s = now_s  # type: ignore[method-assign]

    def step() -> None:
        nonlocal calls
        calls += 1
        bench.run(0.001)

    steady_point(bench, step, options=SamplingOptions(min_s=5.0, watch_s=4.0))  # type: ignore[arg-type]
    assert calls > 10 * looked


def test_a_load_that_takes_no_time_is_refused_and_one_that_breaks_says_so_itself() -> None:
    with pytest.raises(BadInput, match="takes no time"):
        steady_point(Bench(lambda t: 50.0), lambda: None)  # type: ignore[arg-type]

    bench = Bench(lambda t: 50.0 + np.sin(t))

    def breaks() -> None:
        bench.run(0.5)
        if bench.now_s() > 12:
            raise BadInput("--load-command: ended with 1")

    with pytest.raises(BadInput, match="ended with 1"):
        steady_point(bench, breaks)  # type: ignore[arg-type]


def test_a_program_that_takes_its_time_to_start_is_waited_for() -> None:
    jitter = noise(12, 0.3)
    late = Bench(lambda t: (10.0 if t < 40 else 60.0) + jitter(t))
    point = steady_point(late, lambda: late.run(0.1), rest_w=10.0).point  # type: ignore[arg-type]
    assert point.power_w == pytest.approx(60, rel=0.01)
    never = Bench(lambda t: 10.0 + jitter(t))
    point = steady_point(never, lambda: never.run(0.1), rest_w=10.0).point  # type: ignore[arg-type]
    assert "hardly more than rest" in point.notes[0]


# ---------------------------------------------------------------------------------------------- sensors of all kinds


@pytest.mark.parametrize("true_w", [6.11, 6.2, 6.33, 6.4])
@pytest.mark.parametrize("spread_w", [0.02, 0.1, 0.4])
def test_a_sensor_with_coarse_steps_has_an_interval_that_allows_for_them(true_w: float, spread_w: float) -> None:
    jitter = noise(13, spread_w)
    point = measure(Bench(lambda t: true_w + jitter(t), step_w=0.4), max_s=60.0)
    if point.ci95_w is not None:
        assert abs(point.power_w - true_w) <= point.ci95_w + 0.02
    else:  # it never moved, and nobody told us its step
        assert abs(point.power_w - true_w) <= 0.2


def test_a_sensor_that_shows_one_value_all_along_has_no_interval() -> None:
    assert measure(Bench(lambda t: 50.0)).ci95_w is None


def test_a_sensor_that_fails_at_times_is_read_when_it_answers() -> None:
    jitter = noise(14, 0.3)

    def sulking(t: float, watts: float) -> float | None:
        return None if round(10 * t) % 3 else math.nan if round(10 * t) % 9 == 0 else watts

    point = measure(Bench(lambda t: 50 + jitter(t), show=sulking))
    assert point.power_w == pytest.approx(50, abs=0.3)
    assert "answered" in point.notes[0]
    with pytest.raises(MissingHardware, match="gave no reading"):
        measure(Bench(lambda t: 50.0, show=lambda *_: None))


@pytest.mark.parametrize("dies_s", [9.0, 30.0])
@pytest.mark.parametrize("step_s", [0.7, 400.0])
def test_a_sensor_that_dies_leaves_no_point_and_is_not_waited_for(dies_s: float, step_s: float) -> None:
    jitter = noise(18, 3.0)
    bench = Bench(lambda t: 50 + jitter(t), show=lambda t, watts: watts if t < dies_s else None)
    with pytest.raises(MissingHardware, match=r"answered \d+ of \d+ times under this load, too few for a figure"):
        measure(bench, step_s=step_s, relative_ci=0.0001)
    assert bench.now_s() < max(dies_s + 15, step_s + 10)
    bench = Bench(lambda t: 12 + jitter(t), show=lambda t, watts: watts if t < 3 else None)
    with pytest.raises(MissingHardware, match="at rest"):
        rest_power(bench)  # type: ignore[arg-type]


def test_a_sensor_that_is_back_after_some_seconds_costs_nothing_but_them() -> None:
    jitter = noise(19, 0.3)
    point = measure(Bench(lambda t: 50 + jitter(t), show=lambda t, watts: None if 9 < t < 13 else watts))
    assert point.power_w == pytest.approx(50, abs=0.3)
    assert point.stopped_by.startswith("steady")
    rest = rest_power(Bench(lambda t: 12 + jitter(t), show=lambda t, watts: None if 3 < t < 6 else watts))  # type: ignore[arg-type]
    assert rest.power_w == pytest.approx(12, abs=0.3)


def test_a_machine_that_was_suspended_meanwhile_loses_only_the_window_it_slept_in() -> None:
    jitter = noise(15, 0.3)

    class Suspended(Bench):
        def run(self, seconds_s: float, *, busy: bool = True) -> None:
            if 12 < self._now < 100:
                self._now += 900.0  # asleep: no reading, next to no watts
                if self._watching is not None:
                    self._watching = (*self._watching[:2], self._now)
            super().run(seconds_s, busy=busy)

    point = measure(Suspended(lambda t: (50 if t < 905 or t > 920 else 20) + jitter(t)), max_s=960.0)
    assert point.power_w == pytest.approx(50, rel=0.01)


def test_readings_out_of_order_and_twice_the_same_moment_do_no_harm() -> None:
    jitter = noise(16, 0.3)

    class Confused(Bench):
        def _read(self) -> Reading:
            reading = super()._read()
            back = round(10 * self._now) % 7 == 0
            return replace(reading, time_s=reading.time_s - 3.0, power_w=0.0) if back else reading

    assert measure(Confused(lambda t: 50 + jitter(t))).power_w == pytest.approx(50, abs=0.3)


def test_without_a_sensor_or_a_clock_there_is_no_point() -> None:
    with pytest.raises(MissingHardware, match="there is no meter"):
        measure(Bench(lambda t: 50.0, sensor=None))
    with pytest.raises(MissingHardware, match="clock"):
        measure(Bench(lambda t: 50.0 + np.sin(t), hertz=lambda t: None), max_s=30.0)
    blind = measure(Bench(lambda t: 50.0 + np.sin(t), hertz=lambda t: None), requested_hz=5e8, max_s=30.0)
    assert blind.frequency_hz == 5e8


def test_rest_is_read_when_the_machine_has_come_to_it() -> None:
    jitter = noise(17, 0.1)
    cooling = Bench(lambda t: 10 + 40 * np.exp(-t / 2) + jitter(t))
    rest = rest_power(cooling)  # type: ignore[arg-type]
    assert rest.power_w == pytest.approx(10, rel=0.03)
    assert cooling.now_s() <= 25


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Noise that resembles itself for half a second, as of an averaging sensor."""
    hits, widths = 0, []
    for seed in range(120):
        series = autoregressive(np.random.default_rng(seed), 4000, 0.8)
        point = measure(Bench(lambda t, s=series: 50 + s[round(10 * t) % 4000]), relative_ci=0.02, max_s=60.0)  # type: ignore[misc]
        assert point.ci95_w is not None
        hits += abs(point.power_w - 50) <= point.ci95_w
        widths.append(point.ci95_w)
    assert hits >= 0.92 * 120
    assert np.median(widths) < 1.3


@pytest.mark.parametrize(
    ("name", "mhz"), [("orin-agx", 918), ("rtx-4060ti", 1590), ("nano", 460.8), ("rtx-a4000", 1560)]
)
def test_what_is_measured_on_an_emulated_board_is_the_truth(name: str, mhz: float) -> None:
    device = EmulatedDevice(find(name))
    load = device.load(training_step(4096, 2048))
    assert device.clocks is not None
    device.clocks.lock(mhz * 1e6)
    point = steady_point(device, load, requested_hz=mhz * 1e6).point
    truth = device.true_steady(mhz * 1e6 if point.capped else point.frequency_hz, load)
    assert point.power_w == pytest.approx(truth.power_w, rel=0.015)
    assert point.capped == truth.capped
    assert point.frequency_hz == pytest.approx(truth.frequency_hz, rel=0.01)
