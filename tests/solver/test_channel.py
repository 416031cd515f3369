"""Rates: what is given comes first, what is assumed is listed, and a trace's mistakes are named by file, line and column."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.profile import BadInput, Link, Profile
from solver.channel import rates, spectral_efficiency
from tests.synthetic import make_profile

GOOD = "round,device,uplink_mbps,downlink_mbps\n1,a,10,20\n1,b,30,40\n2,a,50,60\n2,b,70,80\n"


def devices(**of_a: Any) -> list[Profile]:
    return [make_profile("a", **of_a), make_profile("b")]


def trace(folder: Path, text: str) -> str:
    path = folder / "trace.csv"
    path.write_text(text)
    return str(path)


def test_given_rates_hold_for_every_device_and_round_and_are_no_assumption() -> None:
    found = rates(devices(), rounds=3, uplink_mbps=12.5, downlink_mbps=50)
    assert found.uplink_bps.tolist() == [[12.5e6, 12.5e6]] * 3
    assert found.downlink_bps.tolist() == [[50e6, 50e6]] * 3
    assert found.rounds == [1, 2, 3]
    assert found.assumptions == []


def test_a_profiles_own_link_is_used_and_a_device_without_one_gets_the_normal_state_which_is_listed() -> None:
    link = Link(provenance="measured", uplink_mbps=7, downlink_mbps=9, round_trip_s=0.004)
    found = rates(devices(link=link))
    assert (found.uplink_bps[0, 0], found.downlink_bps[0, 0]) == (7e6, 9e6)
    assert found.round_trip_s.tolist() == [0.004, 0]
    assert found.uplink_bps[0, 1] == rates(devices(), channel="normal").uplink_bps[0, 1]
    listed = {a.quantity: a for a in found.assumptions}
    assert listed["b: channel state"].value == "normal"
    assert "a: channel state" not in listed
    assert "a: uplink in Mbit/s" not in listed


def test_a_measured_link_gives_way_to_rates_and_to_a_channel_that_the_user_names() -> None:
    link = Link(provenance="emulated", uplink_mbps=7, downlink_mbps=9, round_trip_s=0.004)
    assert rates(devices(link=link), uplink_mbps=1, downlink_mbps=2).uplink_bps[0, 0] == 1e6
    named = rates(devices(link=link), channel="good")
    assert named.uplink_bps[0, 0] > 7e6
    assert named.round_trip_s.tolist() == [0, 0]
    assert {a.quantity: a.provenance for a in rates(devices(link=link)).assumptions}[
        "a: uplink in Mbit/s"
    ] == "emulated"


def test_less_noise_is_more_rate_and_one_round_has_the_mean_channel() -> None:
    poor, normal, good = (rates(devices(), channel=state) for state in ("poor", "normal", "good"))
    assert (poor.uplink_bps < normal.uplink_bps).all()
    assert (normal.uplink_bps < good.uplink_bps).all()
    assert rates(devices(), channel="normal", seed=5).uplink_bps.tolist() == normal.uplink_bps.tolist()
    # 20 dBm - 85.3 dB against -163 dBm/Hz over 100 MHz is 17.7 dB; less the gap of 3 dB
    assert normal.uplink_bps[0, 0] == pytest.approx(100e6 * math.log2(1 + 10 ** (17.7 / 10) / 10**0.3))


def test_several_rounds_fade_with_a_mean_gain_of_one_and_the_seed_decides_how() -> None:
    many = rates(devices(), channel="normal", rounds=4000, seed=3)
    assert many.uplink_bps.shape == (4000, 2)
    gain = (2 ** (many.uplink_bps / 100e6) - 1) * 10**0.3 / 10**1.77
    inside = (many.uplink_bps > 0.16 * 100e6) & (many.uplink_bps < 5.55 * 100e6)
    # an exponential gain of mean 1, seen between the lowest and the highest rate
    low, high = float(gain[inside].min()), float(gain[inside].max())
    assert inside.mean() == pytest.approx(math.exp(-low) - math.exp(-high), abs=0.02)
    assert rates(devices(), channel="normal", rounds=4, seed=3).uplink_bps.tolist() == (
        rates(devices(), channel="normal", rounds=4, seed=3).uplink_bps.tolist()
    )
    assert any("fading" in a.quantity for a in many.assumptions)


def test_the_efficiency_stays_within_what_the_coding_table_offers() -> None:
    assert spectral_efficiency(np.array([0.0, 1e-9, 1e9])).tolist() == [0.1523, 0.1523, 5.5547]


def test_a_trace_gives_every_device_its_rates_round_by_round(tmp_path: Path) -> None:
    found = rates(devices(), channel=trace(tmp_path, GOOD))
    assert found.rounds == [1, 2]
    assert found.uplink_bps.tolist() == [[10e6, 30e6], [50e6, 70e6]]
    assert found.downlink_bps.tolist() == [[20e6, 40e6], [60e6, 80e6]]
    assert found.assumptions == []
    assert rates(devices(), channel=trace(tmp_path, GOOD), rounds=1).uplink_bps.tolist() == [[10e6, 30e6]]
    from_zero = GOOD.replace("1,a", "0,a").replace("1,b", "0,b").replace("2,", "1,")
    assert rates(devices(), channel=trace(tmp_path, from_zero)).rounds == [0, 1]


def test_columns_may_stand_in_any_order_with_others_beside_them(tmp_path: Path) -> None:
    text = "\ufeffdevice,note,downlink_mbps,uplink_mbps,round\na,x,20,10,1\n\nb,y,40,30,1\n"
    found = rates(devices(), channel=trace(tmp_path, text))
    assert (found.uplink_bps.tolist(), found.downlink_bps.tolist()) == ([[10e6, 30e6]], [[20e6, 40e6]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("uplink_mbps", "up"), "line 1: column uplink_mbps is missing"),
        (("2,a,50", "2,a,0"), "line 4: column uplink_mbps is '0', expected a rate"),
        (("2,a,50,60", "2,a,50,-1"), "line 4: column downlink_mbps is '-1'"),
        (("30,40", "nan,40"), "line 3: column uplink_mbps is 'nan'"),
        (("30,40", "inf,40"), "line 3: column uplink_mbps is 'inf'"),
        (("30,40", "fast,40"), "line 3: column uplink_mbps is 'fast'"),
        (("30,40", "30"), "line 3: 3 columns, expected 4"),
        (("1,b", "one,b"), "line 3: column round is 'one', expected a whole number"),
        (("1,b", "1,c"), "line 3: column device is 'c', expected one of a, b"),
        (("2,b", "1,b"), "line 5: column device: round 1 of b stands already on line 3"),
        (("2,a,50,60\n", ""), "round 2 of device a is missing"),
        (("1,a,10,20\n1,b,30,40\n", ""), "column round begins at 2, expected 1"),
        (("2,", "9,"), "round 2 of device a is missing"),
        ((GOOD[GOOD.index("\n") + 1 :], ""), "line 2: expected at least one row"),
    ],
)
def test_a_mistake_in_a_trace_is_named_by_file_line_and_column(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = trace(tmp_path, GOOD.replace(*change))
    with pytest.raises(BadInput, match=message) as caught:
        rates(devices(), channel=path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_column_that_stands_twice_in_a_trace_is_refused(tmp_path: Path) -> None:
    path = trace(tmp_path, "round,device,uplink_mbps,downlink_mbps,uplink_mbps\n1,a,1,2,3\n1,b,1,2,3\n")
    with pytest.raises(BadInput, match="line 1: column uplink_mbps stands 2 times"):
        rates(devices(), channel=path)


@pytest.mark.parametrize("rate", ["1_000", "1e-300"])
def test_rates_that_nobody_means_are_refused(tmp_path: Path, rate: str) -> None:
    with pytest.raises(BadInput, match=f"line 3: column uplink_mbps is '{rate}', expected a rate in Mbit/s from"):
        rates(devices(), channel=trace(tmp_path, GOOD.replace("30,40", f"{rate},40")))


def test_a_pipe_is_no_trace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trace.csv")
    with pytest.raises(BadInput, match=r"readable CSV file .not a regular file"):
        rates(devices(), channel=str(tmp_path / "trace.csv"))


def test_the_rates_of_a_named_state_are_listed_so_that_a_decision_can_be_recomputed() -> None:
    found = rates(devices(), channel="good")
    listed = {item.quantity: item.value for item in found.assumptions}
    assert listed["channel: uplink in Mbit/s"] * 1e6 == pytest.approx(found.uplink_bps[0, 0])
    assert listed["channel: downlink in Mbit/s"] * 1e6 == pytest.approx(found.downlink_bps[0, 1])


def test_more_rounds_than_the_trace_has_is_an_error_that_names_the_first_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="round 3 of device a is missing"):
        rates(devices(), channel=trace(tmp_path, GOOD), rounds=5)


def test_a_channel_that_is_neither_a_state_nor_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--channel foggy: expected good, normal, poor or a readable CSV file"):
        rates(devices(), channel="foggy")
    (tmp_path / "odd.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="expected a CSV file in UTF-8"):
        rates(devices(), channel=str(tmp_path / "odd.csv"))
    with pytest.raises(BadInput, match="--channel"):
        rates(devices(), channel=str(tmp_path))
