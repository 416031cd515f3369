"""Rates: what is given comes first, what is assumed is listed, and a trace's mistakes are named by file, line and column."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.profile import BadInput, Link, Profile
from solver import nr, traces
from solver.channel import Channel, channel_schema, load_channel, rates
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
    # 20 dBm - 85.3 dB against -163 dBm/Hz over 100 MHz is 17.7 dB; less the gap of 3 dB that is 4.93 bit/s/Hz: CQI 13, 64QAM at 772/1024
    assert normal.uplink_bps[0, 0] == 100e6 * 6 * 772 / 1024
    # 33 dBm over 200 MHz is 10 dB better than that: more than the highest, CQI 15
    assert normal.downlink_bps[0, 0] == 200e6 * 6 * 948 / 1024


def test_several_rounds_fade_with_a_mean_gain_of_one_and_the_seed_decides_how() -> None:
    many = rates(devices(), channel="normal", rounds=4000, seed=3)
    assert many.uplink_bps.shape == (4000, 2)
    # Of exponential gains of mean 1 a share exp(-least) reaches a CQI whose least SNR is that part of the mean.
    mean_snr, gap = 10 ** (Channel(state="normal").snr_db()[0] / 10), 10**0.3
    for efficiency in nr.cqi_table(1).efficiency[1:]:
        least = gap * (2**efficiency - 1) / mean_snr
        assert np.mean(many.uplink_bps >= 100e6 * efficiency) == pytest.approx(math.exp(-least), abs=0.025)
    assert rates(devices(), channel="normal", rounds=4, seed=3).uplink_bps.tolist() == (
        rates(devices(), channel="normal", rounds=4, seed=3).uplink_bps.tolist()
    )
    assert any("fading" in a.quantity for a in many.assumptions)


def test_fading_goes_by_name_and_not_by_the_order_of_the_files() -> None:
    there, back = (rates(order, channel="poor", rounds=5) for order in (devices(), devices()[::-1]))
    assert there.uplink_bps[:, ::-1].tolist() == back.uplink_bps.tolist()
    assert there.uplink_bps[:, 0].tolist() != there.uplink_bps[:, 1].tolist()


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
    with pytest.raises(BadInput, match=r"readable CSV or JSON file .not a regular file"):
        rates(devices(), channel=str(tmp_path / "trace.csv"))


def test_the_rates_of_a_named_state_are_listed_so_that_a_decision_can_be_recomputed() -> None:
    found = rates(devices(), channel="good")
    listed = {item.quantity: item.value for item in found.assumptions}
    assert listed["channel: uplink in Mbit/s"] * 1e6 == pytest.approx(found.uplink_bps[0, 0])
    assert listed["channel: downlink in Mbit/s"] * 1e6 == pytest.approx(found.downlink_bps[0, 1])


def test_more_rounds_than_the_trace_has_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ends with round 2, and --rounds asks for 5 rows of each device"):
        rates(devices(), channel=trace(tmp_path, GOOD), rounds=5)


def test_a_channel_that_is_neither_a_state_nor_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--channel foggy: expected good, normal, poor or a readable CSV or JSON file"):
        rates(devices(), channel="foggy")
    (tmp_path / "odd.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="expected a CSV file in UTF-8"):
        rates(devices(), channel=str(tmp_path / "odd.csv"))
    with pytest.raises(BadInput, match="--channel"):
        rates(devices(), channel=str(tmp_path))


# ------------------------------------------------------------------------------------------------------- traces, in columns


def lines(rounds: int, names: list[str], seed: int = 0) -> list[list[str]]:
    random = np.random.default_rng(seed)
    mbps = random.uniform(0.5, 900, size=(rounds, len(names), 2))
    return [
        [str(r + 1), name, repr(float(mbps[r, m, 0])), repr(float(mbps[r, m, 1]))]
        for r in range(rounds)
        for m, name in enumerate(names)
    ]


def as_csv(rows: list[list[str]]) -> bytes:
    return "\n".join([",".join(traces.TRACE_COLUMNS), *(",".join(row) for row in rows)]).encode()


def test_both_readers_of_a_trace_give_the_same_bits(tmp_path: Path) -> None:
    rows = lines(300, ["a", "b"])
    np.random.default_rng(1).shuffle(rows)
    raw = as_csv(rows)
    fast, careful = traces._columns(raw, ["b", "a"], None), traces._rows(tmp_path, raw, ["b", "a"], None)
    assert fast is not None
    assert fast.rounds == careful.rounds == list(range(1, 301))
    assert np.array_equal(fast.uplink_bps, careful.uplink_bps)
    assert np.array_equal(fast.downlink_bps, careful.downlink_bps)


ODD = [
    "1_000",
    "nan",
    "-inf",
    "True",
    "+1",
    "0x10",
    "1.",
    " 7 ",
    "",
    "1,2",
    '"3"',
    "1e400",
    "-0",
    "01",
    "\u0661",
    "1\r",
    "1e8",
    "-1",
    "NA",
    "\x00",
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("column", range(4))
def test_the_fast_reader_takes_no_file_that_the_careful_one_reads_otherwise(
    tmp_path: Path, odd: str, column: int
) -> None:
    rows = lines(3, ["a", "10"])
    rows[2][column] = odd
    raw = as_csv(rows)
    fast = traces._columns(raw, ["a", "10"], None)
    if fast is not None:
        careful = traces._rows(tmp_path, raw, ["a", "10"], None)
        assert np.array_equal(fast.uplink_bps, careful.uplink_bps)
        assert np.array_equal(fast.downlink_bps, careful.downlink_bps)


@pytest.mark.parametrize("change", ["short", "long", "twice", "gone"])
def test_a_large_trace_with_a_mistake_is_told_of_it_by_line(tmp_path: Path, change: str) -> None:
    rows = lines(2000, ["a", "b"])
    message = {
        "short": "line 1002: 3 columns",
        "long": "line 1002: 5 columns",
        "twice": "line 1002: column device: round 500",
        "gone": "round 501 of device a is missing",
    }
    if change == "gone":
        del rows[1000]
    else:
        rows[1000] = {"short": rows[1000][:3], "long": [*rows[1000], "1"], "twice": rows[999]}[change]
    path = tmp_path / "large.csv"
    path.write_bytes(as_csv(rows))
    assert path.stat().st_size > traces.FEW_BYTES
    with pytest.raises(BadInput, match=message[change]):
        rates(devices(), channel=str(path))


def test_a_large_trace_is_read_in_columns_and_cut_to_the_rounds_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.csv"
    path.write_bytes(as_csv(lines(2000, ["a", "b"])))
    monkeypatch.setattr(traces, "_rows", None)
    assert rates(devices(), channel=str(path), rounds=7).uplink_bps.shape == (7, 2)


# ------------------------------------------------------------------------------------------------------- radio channels


def written(folder: Path, **fields: Any) -> str:
    path = folder / "channel.json"
    path.write_text(json.dumps({"format": "card-channel/1"} | fields))
    return str(path)


def test_a_channel_file_without_fields_is_the_normal_state(tmp_path: Path) -> None:
    ours, named = rates(devices(), channel=written(tmp_path)), rates(devices(), channel="normal")
    assert ours.uplink_bps.tolist() == named.uplink_bps.tolist()
    assert ours.downlink_bps.tolist() == named.downlink_bps.tolist()


def test_what_a_channel_file_gives_is_no_assumption_and_what_it_does_not_is_listed(tmp_path: Path) -> None:
    path = written(tmp_path, noise_dbm_per_hz=-170, distance_m=50, fading="none")
    listed = {a.quantity for a in rates(devices(), channel=path).assumptions}
    assert "channel: distance in m" not in listed
    assert "channel: noise density in dBm/Hz" not in listed
    assert {"channel: path loss (TR 38.901)", "channel: SNR gap in dB", "channel: CQI from SNR"} <= listed
    path = written(tmp_path, gain_db=-90, state="poor")
    listed = {a.quantity: a.provenance for a in rates(devices(), channel=path).assumptions}
    assert "channel: path loss (TR 38.901)" not in listed
    assert "channel: carrier in Hz" not in listed
    assert listed["channel: noise density in dBm/Hz"] == "literature"


def test_a_device_may_stand_elsewhere_than_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, gain_db=-85, devices={"b": {"distance_m": 400, "path_loss": "umi-nlos"}})
    found = rates(devices(), channel=path)
    assert found.uplink_bps[0, 0] == rates(devices(), channel=Channel(gain_db=-85)).uplink_bps[0, 0]
    alone = rates(devices(), channel=Channel(distance_m=400, path_loss="umi-nlos"))
    assert found.uplink_bps[0, 1] == alone.uplink_bps[0, 1] < found.uplink_bps[0, 0]
    own_noise = written(tmp_path, state="good", devices={"b": {"noise_dbm_per_hz": -150}})
    assert rates(devices(), channel=own_noise).uplink_bps[0, 1] < rates(devices(), channel="poor").uplink_bps[0, 1]


def test_overheads_take_their_share_of_the_rate() -> None:
    plain, less = rates(devices(), channel=Channel()), rates(devices(), channel=Channel(downlink_overhead=0.14))
    assert less.downlink_bps == pytest.approx(0.86 * plain.downlink_bps)
    assert less.uplink_bps.tolist() == plain.uplink_bps.tolist()


def test_a_deep_fade_is_served_at_cqi_1_and_its_share_is_listed() -> None:
    far = Channel(gain_db=-112)
    found = rates(devices(), channel=far, rounds=2000, seed=1)
    assert found.uplink_bps.min() == 100e6 * 2 * 78 / 1024
    below = {a.quantity: a.value for a in found.assumptions}["channel: share of uplink draws below CQI 1, served at it"]
    least = 10**0.3 * (2 ** (2 * 78 / 1024) - 1) / 10 ** (far.snr_db()[0] / 10)
    assert below == pytest.approx(1 - math.exp(-least), abs=0.02)
    assert 0.05 < below < 0.95


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_correlated_fading_keeps_the_exponential_gain_and_remembers_as_told(rho: float) -> None:
    gain = Channel(correlation=rho).gains(40_000, 3, seed=2)
    assert gain.mean() == pytest.approx(1, abs=0.06)
    assert (gain > 1).mean() == pytest.approx(math.exp(-1), abs=0.02)
    for column in gain.T:
        # the power of a Gauss-Markov amplitude is correlated as the square of it
        assert np.corrcoef(column[1:], column[:-1])[0, 1] == pytest.approx(rho**2, abs=0.05)


def test_without_fading_every_round_is_the_mean_channel() -> None:
    found = rates(devices(), channel=Channel(fading="none"), rounds=5)
    assert len(np.unique(found.uplink_bps)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "card-channel/2"}, "field format is 'card-channel/2', expected \"card-channel/1\""),
        ({"state": "foggy"}, r"field state is .*: Input should be 'good', 'normal' or 'poor'"),
        (
            {"uplink_bandwidth_hz": 100},
            r"field uplink_bandwidth_hz is .*: Input should be greater than or equal to 1000000",
        ),
        ({"distance_m": 0}, r"field distance_m is .*: Input should be greater"),
        ({"distance_km": 1}, "field distance_km: Extra inputs"),
        ({"snr_gap_db": "3"}, r"field snr_gap_db is .*: Input should be a valid number"),
        ({"correlation": 1}, r"field correlation is .*: Input should be less than 1"),
        ({"gain_db": -80, "distance_m": 50}, "gain_db and distance_m: expected one of them"),
        ({"gain_db": None}, "gain_db: expected a number"),
        ({"carrier_hz": 1e8}, "field carrier_hz 1e[+]08: expected 5e8"),
        ({"table": 4}, r"field table is .*: Input should be 1, 2 or 3"),
        ({"devices": {"b": {"table": 2}}}, "field devices.b.table: Extra inputs"),
    ],
)
def test_a_mistake_in_a_channel_file_is_named_by_file_and_field(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, **fields)
    with pytest.raises(BadInput, match=message) as caught:
        load_channel(Path(path))
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_channel_for_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"devices.c: no such device, expected names out of a, b"):
        rates(devices(), channel=written(tmp_path, devices={"c": {"distance_m": 20}}))


def test_the_schema_of_a_channel_file_accepts_what_the_reader_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(channel_schema())
    assert check.is_valid({"format": "card-channel/1", "distance_m": 50, "devices": {"b": {"state": "poor"}}})
    assert not check.is_valid({"distance_km": 50})


def test_a_million_rates_from_a_state_take_well_under_a_second() -> None:
    start = time.perf_counter()
    found = rates([make_profile(f"d{m}") for m in range(5)], channel="poor", rounds=200_000, seed=0)
    assert found.uplink_bps.shape == (200_000, 5)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("channel", [Channel(), Channel(gain_db=-105, table=2), Channel(gain_db=-130, snr_gap_db=0)])
def test_the_chain_of_a_channel_ends_in_the_rates_that_decisions_use(channel: Channel) -> None:
    one, many = rates(devices(), channel=channel), rates(devices(), channel=channel, rounds=20_000, seed=4)
    up, down = channel.chain()
    for row, mean, drawn in ((up, one.uplink_bps, many.uplink_bps), (down, one.downlink_bps, many.downlink_bps)):
        assert row["rate_bps"] == mean[0, 0]
        assert row["mean_rate_bps"] == pytest.approx(drawn.mean(), rel=0.02)
        assert row["rate_bps"] == pytest.approx(
            row["bandwidth_hz"] * {"QPSK": 2, "16QAM": 4, "64QAM": 6, "256QAM": 8}[row["modulation"]] * row["code_rate"]
        )
        expected = row["power_dbm"] + row["mean_gain_db"] - row["noise_dbm"]
        assert row["snr_db"] == pytest.approx(expected)
    listed = {a.quantity: a.value for a in many.assumptions}
    below = listed.get("channel: share of uplink draws below CQI 1, served at it", 0.0)
    assert up["share_below_cqi_1"] == pytest.approx(below, abs=0.01)
