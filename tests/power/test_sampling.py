"""From sensor readings to one steady figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.hardware.catalog import find
from profiler.hardware.device import Absent, PowerSensor, Reading
from profiler.hardware.emulated import EmulatedDevice
from profiler.power.interval import mean_interval
from profiler.power.sampling import SamplingOptions, steady_point
from profiler.profile import Hardware, MissingHardware
from tests.hardware.test_emulated import training_step


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


METER = PowerSensor("board", "bench", 0.1, 0.0)


@dataclass
class Bench:
    """A device whose every watt, degree and clock the test writes down as a function of time."""

    watts: Callable[[float], float]
    celsius: Callable[[float], float | None] = lambda _: 40.0
    hertz: Callable[[float], float | None] = lambda _: 1e9
    capped: Callable[[float], bool] = lambda _: False
    counter_factor: float | None = None
    sensor: PowerSensor | None = METER
    cap_w: float | None = None

    name = "bench"
    absent = Absent({"power": "there is no meter"})

    def __post_init__(self) -> None:
        self.power = self.sensor
        self._now = self._energy = 0.0
        self._watching: list[Reading] | None = None

    def describe(self) -> Hardware:
        return Hardware(provenance="measured", kind="cuda", description="bench", power_cap_w=self.cap_w)

    def now_s(self) -> float:
        return self._now

    def wait(self, seconds_s: float) -> None:
        end = self._now + seconds_s
        while self._now < end - 1e-9:
            self._now = round(self._now + 0.1, 6)
            power = self.watts(self._now)
            self._energy += 0.1 * power
            if self._watching is not None:
                self._watching.append(
                    Reading(
                        time_s=self._now,
                        power_w=power,
                        energy_j=None if self.counter_factor is None else self._energy * self.counter_factor,
                        frequency_hz=self.hertz(self._now),
                        temperature_c=self.celsius(self._now),
                        capped=self.capped(self._now),
                    )
                )

    @contextmanager
    def monitor(self, period_s: float) -> Iterator[list[Reading]]:
        self._watching = []
        yield self._watching
        self._watching = None


def measure(bench: Bench, requested_hz: float | None = None, **options: float | int):  # type: ignore[no-untyped-def]
    return steady_point(
        bench,  # type: ignore[arg-type]
        lambda: bench.wait(0.7),
        requested_hz=requested_hz,
        options=replace(SamplingOptions(), **options),  # type: ignore[arg-type]
    )


def noise(seed: int, size: float) -> Callable[[float], float]:
    table = size * np.random.default_rng(seed).standard_normal(100_000)
    return lambda t: float(table[round(10 * t) % 100_000])


def test_a_steady_source_stops_as_soon_as_its_heat_has_been_watched() -> None:
    jitter = noise(0, 0.3)
    point = measure(Bench(lambda t: 50 + jitter(t))).point
    assert point.stopped_by == "steady"
    assert point.power_w == pytest.approx(50, abs=0.15)
    assert point.ci95_w < 0.25
    assert 20 <= point.seconds_s < 30


def test_the_start_up_does_not_count() -> None:
    jitter = noise(1, 0.3)
    point = measure(Bench(lambda t: 50 + jitter(t) - 30 * np.exp(-t / 5))).point
    assert point.power_w == pytest.approx(50, abs=0.3)


def test_noise_that_never_settles_stops_at_the_bound_and_says_why() -> None:
    jitter = noise(2, 40.0)
    point = measure(Bench(lambda t: 100 + jitter(t)), max_s=40.0).point
    assert point.stopped_by == "time limit, interval still wide"
    assert 40 <= point.seconds_s < 45
    assert point.ci95_w > 0.5


def test_a_machine_that_still_warms_up_is_waited_for() -> None:
    jitter = noise(3, 0.1)

    def celsius(t: float) -> float:
        return 70 - 40 * np.exp(-t / 30)

    steady = measure(Bench(lambda t: 50 + 0.1 * (celsius(t) - 70) + jitter(t), celsius)).point
    assert steady.stopped_by == "steady"
    assert steady.seconds_s > 60
    assert steady.power_w == pytest.approx(50, rel=0.005)
    hasty = measure(Bench(lambda t: 50 + jitter(t), celsius), max_s=30.0).point
    assert hasty.stopped_by == "time limit, temperature still moving"


def test_the_measured_clock_counts_not_the_requested_one() -> None:
    point = measure(Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda t: 0.99e9), requested_hz=1e9).point
    assert point.frequency_hz == 0.99e9
    assert point.requested_hz == 1e9
    assert not point.capped


def test_capped_readings_mark_the_point_and_so_does_a_clock_that_falls_short() -> None:
    marked = measure(Bench(lambda t: 50 + 0.1 * np.sin(t), capped=lambda t: t > 5), requested_hz=1e9)
    assert marked.point.capped
    short = measure(Bench(lambda t: 50 + 0.1 * np.sin(t), hertz=lambda t: 0.9e9), requested_hz=1e9)
    assert short.point.capped
    assert "900 MHz ran" in short.point.notes[0]


def test_where_counter_and_sensor_disagree_the_counter_is_kept_and_it_is_said() -> None:
    jitter = noise(4, 0.2)
    steady = measure(Bench(lambda t: 50 + jitter(t), counter_factor=1.1))
    assert steady.point.power_w == pytest.approx(55, abs=0.3)
    assert "disagree" in steady.point.notes[0]
    assert measure(Bench(lambda t: 50 + jitter(t), counter_factor=1.0)).point.notes == []


def test_a_sensor_that_shows_one_value_all_along_has_no_interval() -> None:
    assert measure(Bench(lambda t: 50.0)).point.ci95_w is None


def test_without_a_sensor_or_a_clock_there_is_no_point() -> None:
    with pytest.raises(MissingHardware, match="there is no meter"):
        measure(Bench(lambda t: 50.0, sensor=None))
    with pytest.raises(MissingHardware, match="clock"):
        measure(Bench(lambda t: 50.0 + np.sin(t), hertz=lambda t: None))
    assert measure(Bench(lambda t: 50.0 + np.sin(t), hertz=lambda t: None), requested_hz=5e8).point.frequency_hz == 5e8


def test_uneven_steps_do_not_bias_the_mean() -> None:
    """A step of 3.1 s that draws 80 W for a third of it and 20 W for the rest."""
    bench = Bench(lambda t: 80.0 if (t % 3.1) < 3.1 / 3 else 20.0)
    steady = steady_point(bench, lambda: bench.wait(3.1))  # type: ignore[arg-type]
    mean = np.mean([80.0 if (t % 3.1) < 3.1 / 3 else 20.0 for t in np.arange(0.1, 31 * 3.1, 0.1)])
    assert steady.point.power_w == pytest.approx(mean, rel=0.02)


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
