"""What a chip's heat will still add to its watts, told before it has."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.power.heat import Habits, Settling, settling


def watched(
    seconds_s: float,
    *,
    tau_s: float = 60.0,
    swing_c: float = -30.0,
    share: float = 0.002,
    step_c: float = 1.0,
    seed: int = 0,
    noise: float = 0.001,
    habits: Habits | None = None,
) -> tuple[Settling, float]:
    """A chip of 100 W that warms by ``-swing_c``, seen for so long in windows of 4 s; and what is really to come after the last
    of them, averaged over it. Each degree is worth ``share`` of the watts; a tenth of the swing is near the sensor and fast."""
    rng = np.random.default_rng(seed)
    times = np.arange(1.0, seconds_s, 0.1)

    def above_c(t: np.ndarray) -> np.ndarray:
        return swing_c * (0.9 * np.exp(-t / tau_s) + 0.1 * np.exp(-t / 2.5))

    celsius = np.round((70.0 + above_c(times)) / step_c) * step_c
    starts = np.arange(3.0, seconds_s - 4.0, 4.0)
    truth = np.array([100.0 * share * above_c(np.linspace(s, s + 4.0, 50)).mean() for s in starts])
    watts = 100.0 + truth + 100.0 * noise * rng.standard_normal(len(starts))
    found = settling(times, celsius, starts, starts + 4.0, watts, habits or Habits())
    assert found is not None
    return found, -float(truth[-1])


@pytest.mark.parametrize("step_c", [0.03, 1.0])
@pytest.mark.parametrize("tau_s", [15.0, 40.0, 120.0])
@pytest.mark.parametrize("swing_c", [-35.0, 30.0, -8.0])
def test_what_is_to_come_lies_within_the_interval_told_for_it(swing_c: float, tau_s: float, step_c: float) -> None:
    inside = 0
    for seed in range(40):
        found, truth = watched(45.0, tau_s=tau_s, swing_c=swing_c, step_c=step_c, seed=seed)
        last = len(found.to_come_w) - 1
        inside += abs(found.to_come_w[-1] - truth) <= found.half_width_w(last)
    assert inside >= 34


def test_what_is_to_come_is_told_in_a_time_constant_and_half_of_it_when_the_device_is_known() -> None:
    alone, truth = watched(60.0, tau_s=40.0)
    assert truth > 1.1
    assert alone.to_come_w[-1] == pytest.approx(truth, abs=0.4)
    early, truth = watched(24.0, tau_s=40.0, seed=1)
    known, _ = watched(24.0, tau_s=40.0, seed=1, habits=alone.habits)
    assert known.half_width_w(0) < 0.7 * early.half_width_w(0)
    assert known.to_come_w[-1] == pytest.approx(truth, abs=0.8)


def test_heat_that_stands_still_adds_nothing_and_less_is_open_the_longer_it_is_watched() -> None:
    open_w = []
    for seconds_s in (25.0, 60.0, 150.0):
        found, _ = watched(seconds_s, swing_c=0.0)
        assert abs(found.to_come_w[-1]) < 0.5 * found.half_width_w(0) + 0.1
        open_w.append(found.half_width_w(0))
    assert open_w[0] > open_w[1] > open_w[2]
    assert open_w[2] < 0.7


def test_watts_that_do_not_follow_the_temperature_are_left_as_they_are() -> None:
    found, _ = watched(60.0, tau_s=40.0, share=0.0)
    assert abs(found.to_come_w[-1]) < 0.25


def test_too_few_windows_or_readings_tell_nothing() -> None:
    times, edges = np.arange(0.0, 10.0, 0.1), np.arange(0.0, 6.0, 2.0)
    assert settling(times, np.full(100, 40.0), edges, edges + 2.0, np.full(3, 9.0), Habits()) is None
    edges = np.arange(0.0, 10.0, 2.0)
    assert settling(times[:5], np.full(5, 40.0), edges, edges + 2.0, np.full(5, 9.0), Habits()) is None
