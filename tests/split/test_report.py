"""What was measured is told stage by stage beside what was predicted, on two clocks that are brought together within a bound."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.profile import BadInput
from split.decide import Decision
from split.report import ROUND, Report, error_pct
from split.stages import DRIFT, PARTS, STAGES, ClockOffset, Measured, Predicted, StepRecord, StepTimes

moments = st.floats(0, 1e6)
short = st.floats(0, 5)


def clock(ahead_s: float, there_s: float = 0.0, back_s: float = 0.0, at_s: float = 100.0) -> ClockOffset:
    found = ClockOffset()
    found.add(at_s, at_s + there_s + ahead_s, at_s + there_s + ahead_s + 0.5, at_s + there_s + 0.5 + back_s)
    return found


# ---------------------------------------------------------------------------------------------------------- two clocks


@given(st.floats(-1e5, 1e5), st.lists(st.tuples(short, short, short, st.floats(0, 100)), min_size=1, max_size=8))
def test_the_offset_is_right_within_its_bound_however_the_round_trip_is_shared(
    ahead: float, pings: list[tuple[float, float, float, float]]
) -> None:
    found, now = ClockOffset(), 1000.0
    for there, held, back, pause in pings:
        arrived = now + there + ahead
        found.add(now, arrived, arrived + held, now + there + held + back)
        now += there + held + back
        bound = found.bound_s(now)
        assert bound is not None
        assert found.offset_s is not None
        assert abs(found.offset_s - ahead) <= bound + 1e-9
        now += pause


def test_the_ping_with_the_least_round_trip_tells_the_offset_until_it_is_too_old() -> None:
    found = clock(7.0, 0.001, 0.001)
    good = found.bound_s(101.0)
    assert good is not None
    found.add(102.0, 109.5, 109.5, 103.0)  # half a second each way: known worse
    assert found.bound_s(103.0) == pytest.approx(0.001 + DRIFT * 2.5, rel=0.01)
    later = 100.0 + 0.5 / DRIFT  # by then the clocks may have parted by half a second
    found.add(later, later + 7.2, later + 7.2, later + 0.4)
    assert found.offset_s == pytest.approx(7.0)
    assert found.bound_s(later + 0.4) == pytest.approx(0.2)


def test_readings_that_cannot_be_are_passed_over() -> None:
    found = ClockOffset()
    found.add(10.0, 5.0, 6.0, 9.0)  # back before it left
    found.add(10.0, 5.0, 3.0, 12.0)  # answered before it came
    found.add(10.0, math.inf, math.inf, 11.0)
    assert found.offset_s is None
    assert found.bound_s(12.0) is None


def record(ahead_s: float, up_s: float, down_s: float, at_s: float = 0.0, server_s: float = 0.4) -> StepRecord:
    """A step that begins at ``at_s`` of the server's clock on a device whose clock is ahead."""
    sent = at_s + 0.11 + ahead_s
    received = at_s + 0.11 + up_s
    return StepRecord(
        forward_s=0.1,
        encode_s=0.01,
        sent_s=sent,
        received_s=received,
        decode_s=0.02,
        server_forward_s=0.1,
        server_backward_s=0.2,
        server_optimizer_s=0.03,
        gradient_encode_s=0.04,
        answered_s=received + server_s,
        waited_s=up_s + server_s + down_s,
        gradient_decode_s=0.005,
        backward_s=0.25,
        optimizer_s=0.015,
    )


@given(st.floats(-1e4, 1e4), short, short)
def test_up_and_down_are_told_apart_by_the_offset_and_together_without_it(ahead: float, up: float, down: float) -> None:
    step = record(ahead, up, down)
    told = step.times(clock(ahead))
    assert told.uplink_s == pytest.approx(up, abs=1e-6)
    assert told.downlink_s == pytest.approx(down, abs=1e-6)
    blind = step.times(ClockOffset())
    assert blind.uplink_s + blind.downlink_s == pytest.approx(up + down, abs=1e-9)
    wrong = step.times(clock(ahead + 3.0))
    assert wrong.uplink_s + wrong.downlink_s == pytest.approx(up + down, abs=1e-6)
    assert min(wrong.uplink_s, wrong.downlink_s) >= 0


def a_round(ahead: float = 0.0, steps: int = 3, up: float = 0.3, down: float = 0.2) -> Measured:
    """Stage 2 takes 0.05 s, loading 0.01 s, stage 5 0.07 s; a step ends 0.27 s after its gradient came."""
    length = 0.11 + up + 0.4 + down + 0.27
    records = [record(ahead, up, down, 10.06 + k * length) for k in range(steps)]
    ended = 10.06 + steps * length
    return Measured.of_round(
        records,
        clock(ahead),
        round_sent_s=10.0,
        adapters_received_s=ended + 0.07,
        round_received_s=10.05 + ahead,
        adapters_sent_s=ended + ahead,
        uplink_bytes=3000,
        downlink_bytes=2000,
        adapters_down_bytes=500,
        adapters_up_bytes=700,
    )


@given(st.floats(-1e4, 1e4))
def test_a_round_is_told_part_by_part_and_every_second_is_in_a_stage(ahead: float) -> None:
    measured = a_round(ahead)
    parts = measured.parts()
    assert set(parts) == set(PARTS)
    assert parts["adapters_down"] == pytest.approx(0.05, abs=1e-6)
    assert parts["adapters_up"] == pytest.approx(0.07, abs=1e-6)
    assert parts["uplink"] == pytest.approx(0.9, abs=1e-6)
    stages = measured.stages()
    assert tuple(stages) == STAGES
    assert sum(stages.values()) == pytest.approx(measured.delay_s)
    # Loading, and on the server what lies between its parts: 0.4 - 0.39 s a step.
    assert stages["other"] == pytest.approx(0.01 + 3 * 0.01, abs=1e-6)


def test_a_device_that_tells_nonsense_spoils_its_own_figures_only() -> None:
    measured = Measured.of_round(
        [replace(record(0.0, 0.1, 0.1), waited_s=0.0, sent_s=1e9, forward_s=1e6)],
        clock(0.0),
        round_sent_s=10.0,
        adapters_received_s=11.0,
        uplink_bytes=1,
        downlink_bytes=1,
        adapters_down_bytes=1,
        adapters_up_bytes=1,
    )
    assert measured.delay_s == 1.0
    assert all(math.isfinite(seconds) for seconds in measured.stages().values())
    assert (
        min(
            measured.adapters_down_s,
            measured.adapters_up_s,
            *(getattr(measured.steps[0], f.name) for f in fields(StepTimes)),
        )
        >= 0
    )


# ---------------------------------------------------------------------------------------------------------- the report


def decision(measured: Measured | None, factor: float = 1.0, cut: int = 2, **off: float) -> Decision:
    """Whose prediction is ``factor`` x what was measured; ``off`` multiplies single parts."""
    predicted = None
    if measured is not None:
        parts = {name: seconds * factor * off.get(name, 1.0) for name, seconds in measured.parts().items()}
        predicted = Predicted(parts, math.fsum(parts.values()), 90.0, None, 3000.0, 2000.0, 500.0, 700.0)
    return Decision(1, "one", cut, 1e9, "int8", "int8", predicted, (), 1e7, 2e7)


def test_errors_are_predicted_over_measured() -> None:
    assert error_pct(1.05, 1.0) == pytest.approx(5.0)
    assert error_pct(0.95, 1.0) == pytest.approx(-5.0)
    assert error_pct(None, 1.0) is None
    assert error_pct(1.0, 0.0) is None


def test_json_and_csv_are_there_after_every_turn_and_say_the_same(tmp_path: Path) -> None:
    report = Report(tmp_path / "run" / "report")
    for number in (1, 2):
        measured = replace(a_round(), server_energy_j=100.0)
        report.add(number, "one", decision(measured, 1.1), measured, [2.5, 2.25, 2.0])
        turns = json.loads((tmp_path / "run" / "report.json").read_text())["turns"]
        rows = list(csv.DictReader((tmp_path / "run" / "report.csv").open()))
        assert len(turns) == number
        assert len(rows) == number * (len(STAGES) + 1)
    for row in rows:
        turn = turns[int(row["round"]) - 1]
        where = turn if row["stage"] == ROUND else turn["stages"][row["stage"]]
        assert float(row["predicted_s"]) == where["predicted_s"]
        assert float(row["measured_s"]) == where["measured_s"]
    uplink = next(row for row in rows if row["stage"] == "uplink")
    assert float(uplink["error_pct"]) == pytest.approx(10.0)
    assert (uplink["bytes_up"], uplink["bytes_down"]) == ("3000", "0")
    whole = next(row for row in rows if row["stage"] == ROUND)
    assert (whole["bytes_up"], whole["bytes_down"]) == ("3700", "2500")
    assert (whole["predicted_server_j"], whole["measured_server_j"]) == ("90.0", "100.0")
    assert turns[0]["losses"] == [2.5, 2.25, 2.0]


def test_a_report_goes_on_after_a_restart_and_a_turn_taken_again_replaces_the_one_before(tmp_path: Path) -> None:
    first, second = a_round(up=0.3), a_round(up=0.6)
    Report(tmp_path / "report").add(1, "one", decision(first), first)
    again = Report(tmp_path / "report")
    again.add(1, "two", decision(first), first)
    again.add(1, "one", decision(second), second)
    turns = Report(tmp_path / "report").turns
    assert [(turn["round"], turn["device"]) for turn in turns] == [(1, "one"), (1, "two")]
    assert turns[0]["measured_s"] == second.delay_s


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": "x", "turns": []}',
        '{"format": "card-train-report/1", "assumptions": [], "turns": [{}]}',
    ],
)
def test_what_is_no_report_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"report\.json"):
        Report(tmp_path / "report")
    assert path.read_text() == text


def test_the_summary_names_the_stage_that_was_most_off(tmp_path: Path) -> None:
    report = Report(tmp_path / "report")
    for number, uplink in enumerate((1.4, 1.5, 1.6), 1):
        measured = a_round()
        report.add(number, "one", decision(measured, uplink=uplink), measured)
    summary = report.summary()
    assert summary.most_off == "uplink"
    assert summary.round is not None
    stages = {stage.stage: stage for stage in summary.stages}
    assert stages["uplink"].median_error_pct == pytest.approx(50.0)
    assert stages["uplink"].worst_error_pct == pytest.approx(60.0)
    assert stages["server"].median_error_pct == pytest.approx(0.0, abs=1e-9)
    measured = a_round()
    off = [0.9 * (uplink - 1) - measured.stages()["other"] for uplink in (1.4, 1.5, 1.6)]
    assert summary.round.median_error_pct == pytest.approx(100 * off[1] / measured.delay_s)
    assert summary.round.worst_error_pct == pytest.approx(100 * off[2] / measured.delay_s)
    assert "most off was uplink, by 450 ms a turn" in summary.sentence()


def test_a_stage_of_less_than_a_twentieth_of_the_round_is_told_but_not_judged(tmp_path: Path) -> None:
    report = Report(tmp_path / "report")
    measured = a_round()
    report.add(1, "one", decision(measured), measured)
    judged = {stage.stage: stage.judged for stage in report.summary().stages}
    assert judged["uplink"]
    assert judged["server"]
    assert not judged["adapters"]


def test_the_table_shows_every_stage_with_and_without_predictions(tmp_path: Path) -> None:
    from rich.console import Console

    for told in (True, False):
        report = Report(tmp_path / str(told))
        measured = a_round()
        report.add(1, "one", decision(measured if told else None, 1.1), measured)
        console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
        console.print(report.table())
        text = console.export_text()
        assert all(
            word in text
            for word in ("device forward", "uplink", "server", "downlink", "device backward", "adapters", "round")
        )
        assert ("+10.0 %" in text) == told
        assert (report.write() or {})["turns"] == 1
        assert (tmp_path / f"{told}.png").exists() == told


def test_nothing_is_written_of_a_run_without_turns(tmp_path: Path) -> None:
    assert Report(tmp_path / "report").write() is None
    assert not list(tmp_path.iterdir())


def test_the_plot_has_the_format_of_its_suffix(tmp_path: Path) -> None:
    report = Report(tmp_path / "report")
    measured = a_round()
    report.add(1, "one", decision(measured, 1.1), measured)
    assert report.plot(tmp_path / "a.svg").read_text().startswith("<?xml")
    assert report.plot(tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
