"""A shaped link: n bytes take 8 n / rate + delay, in order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.profile import BadInput
from solver.channel import Channel
from split.shaping import LinkTrace, Shape, read_link_trace


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


# ------------------------------------------------------------------------------------------------------ traces in files


def test_a_trace_over_time_is_read_for_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_s,downlink_mbps,uplink_mbps\n0,80,40\n2.5,8,0\n4,1,2\n")
    found = read_link_trace(path)
    assert list(found.uplink) == [(2.5, 40e6), (1.5, 0.0), (0.0, 2e6)]
    assert list(found.downlink) == [(2.5, 80e6), (1.5, 8e6), (0.0, 1e6)]
    assert found.next_rates_bps() == (40e6, 80e6)
    later = found.rest(3.0)
    assert list(later.uplink) == [(1.0, 0.0), (0.0, 2e6)]
    assert later.next_rates_bps() == (2e6, 8e6)  # what comes after the outage
    assert list(found.rest(100.0).downlink) == [(0.0, 1e6)]


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(1, 1e9)), min_size=1, max_size=6),
    st.floats(0, 60),
    st.integers(1, 10**7),
)
def test_the_rest_of_a_trace_carries_bytes_as_the_whole_one_does_from_then_on(
    trace: list[tuple[float, float]], elapsed_s: float, size: int
) -> None:
    whole, rest = LinkTrace(trace, trace), LinkTrace(trace, trace).rest(elapsed_s)
    begun = [0.0, elapsed_s]
    shapes = [Shape(whole.uplink, now_s=lambda: begun[0]), Shape(rest.uplink, now_s=lambda: begun[1])]
    shapes[0].book([0])  # its trace begins now
    begun[0] = elapsed_s
    (_, [one]), (_, [other]) = (shape.book([size]) for shape in shapes)
    assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_the_rates_that_card_solve_channel_prints_are_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "channel.json"
    path.write_text(json.dumps([{"device": None, **row} for row in Channel(state="poor").chain()]))
    up, down = Channel(state="poor").rates_bps(1.0)
    assert read_link_trace(path).next_rates_bps() == (float(up), float(down))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: columns none, expected time_s"),
        ("time_s,uplink_mbps\n0,1\n", "line 1: columns time_s,uplink_mbps, expected"),
        ("round,device,uplink_mbps,downlink_mbps\n1,a,1,1\n", "a trace by rounds goes to --channel"),
        ("time_s,uplink_mbps,downlink_mbps\n", "line 2: expected at least one row"),
        ("time_s,uplink_mbps,downlink_mbps\n1,1,1\n", "line 2: column time_s is 1, expected 0 in the first row"),
        ("time_s,uplink_mbps,downlink_mbps\n0,1,1\n0,1,1\n", "line 3: column time_s is 0"),
        ("time_s,uplink_mbps,downlink_mbps\n0,1\n", "line 2: 2 columns, expected 3"),
        ("time_s,uplink_mbps,downlink_mbps\n0,fast,1\n", "line 2: column uplink_mbps is 'fast', expected Mbit/s"),
        ("time_s,uplink_mbps,downlink_mbps\n0,1,nan\n", "line 2: column downlink_mbps is 'nan'"),
        ("time_s,uplink_mbps,downlink_mbps\n0,-1,1\n", "column uplink_mbps is '-1'"),
        ("time_s,uplink_mbps,downlink_mbps\n0,1,1\n5,1,0\n", "column downlink_mbps: expected a rate above 0"),
        ('[{"direction": "uplink"}]', "expected what 'card-solve channel STATE --json' prints"),
        ("[" * 100_000, "expected what 'card-solve channel STATE --json' prints"),
    ],
)
def test_a_file_that_is_no_trace_is_told_with_its_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_link_trace(path)
    assert said in str(refused.value)
    assert "trace.csv" in str(refused.value)


def test_a_trace_that_is_not_there_is_told_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^--trace .*none.csv: expected a readable CSV file"):
        read_link_trace(tmp_path / "none.csv")
