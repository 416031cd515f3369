"""A shaped link: n bytes take 8 n / rate + delay, in order."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.profile import BadInput
from split.shaping import Shape


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_bytes_take_their_time_at_the_rate_and_the_delay_on_top() -> None:
    free, arrivals = Shape(8e6, 0.05, Clock()).book([1_000_000, 500_000])
    assert arrivals == pytest.approx([101.05, 101.55])
    assert free == pytest.approx(101.5)


@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
    gaps=st.lists(st.floats(0, 2), min_size=20, max_size=20),
    rate=st.floats(1e4, 1e10),
    delay=st.floats(0, 1),
)
def test_nothing_overtakes_and_the_link_never_carries_more_than_its_rate(
    sizes: list[int], gaps: list[float], rate: float, delay: float
) -> None:
    clock = Clock()
    shape = Shape(rate, delay, clock)
    begun, last = [], 0.0
    for size, gap in zip(sizes, gaps, strict=False):
        clock.now_s += gap
        begun.append((clock.now_s, size))
        free, (arrival,) = shape.book([size])
        assert arrival >= last
        assert arrival >= clock.now_s + delay + 8 * size / rate - 1e-6
        assert free == pytest.approx(arrival - delay)
        last = arrival
    # The busiest stretch that ends with the last byte: what was handed over in it went through at the rate, without a pause.
    latest = max(at + 8 * sum(size for _, size in begun[i:]) / rate for i, (at, _) in enumerate(begun))
    assert last - delay == pytest.approx(latest, rel=1e-9)


def test_a_trace_changes_the_rate_in_the_middle_of_a_message_and_outages_hold_it_up() -> None:
    shape = Shape([(1.0, 8e6), (2.0, 0.0), (1.0, 16e6), (0.0, 8e6)], 0.0, Clock())
    _, arrivals = shape.book([500_000, 1_000_000, 1_500_000, 1_000_000])
    # 0.5 MB in the first half second; 0.5 MB of the next before the outage and 0.5 MB behind it at 2 MB/s; 1.5 MB fill that second; then 1 MB/s.
    assert arrivals == pytest.approx([100.5, 103.25, 104.0, 105.0])


def test_a_new_rate_holds_for_what_comes_after_it() -> None:
    clock = Clock()
    shape = Shape(8e6, 0.0, clock)
    shape.book([1_000_000])
    shape.set_rate(16e6)
    assert shape.book([1_000_000])[0] == pytest.approx(101.5)


def test_a_copy_is_an_idle_link_of_the_same_kind() -> None:
    clock = Clock()
    shape = Shape([(1.0, 8e6), (0.0, 4e6)], 0.1, clock)
    shape.book([10_000_000])
    clock.now_s += 0.5
    assert shape.copy().book([500_000])[1] == pytest.approx([101.1])


def test_without_a_rate_only_the_delay_counts() -> None:
    assert Shape(None, 0.25, Clock()).book([10**9])[1] == [100.25]
    assert Shape(None, 0.25, Clock()).copy().book([10**9])[1] == [100.25]


@pytest.mark.parametrize("rate", [-1.0, 0.0, math.nan, [], [(1.0, 5e6), (1.0, 0.0)], [(-1.0, 5e6)], [(math.nan, 5e6)]])
def test_what_is_no_rate_is_refused(rate: object) -> None:
    with pytest.raises(BadInput, match="shaped link"):
        Shape(rate)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [-0.1, math.nan, math.inf])
def test_what_is_no_delay_is_refused(delay: float) -> None:
    with pytest.raises(BadInput, match="delay"):
        Shape(1e6, delay)
