"""A sweep as other tools read it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from profiler.power.export import perseus_csv, write_export
from profiler.profile import BadInput, Profile
from tests.synthetic import make_profile


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def power_of(profile: Profile, **changes: object) -> Profile:
    """The profile with its points changed."""
    assert profile.power is not None
    points = [point.model_copy(update=changes) for point in profile.power.points]
    return profile.model_copy(update={"power": profile.power.model_copy(update={"points": points})})


def test_perseus_reads_both_directions_at_every_clock_from_the_highest_down() -> None:
    table = rows(perseus_csv(make_profile(role="server")))
    assert list(table[0]) == ["stage", "instruction", "frequency", "time", "energy"]
    assert [(row["instruction"], int(row["frequency"])) for row in table] == [
        (instruction, mhz) for instruction in ("forward", "backward") for mhz in (2000, 1500, 1000, 500)
    ]
    assert {row["stage"] for row in table} == {"0"}


def test_time_is_the_whole_models_and_energy_is_time_by_watts() -> None:
    profile = make_profile(role="server")
    assert profile.power is not None
    watts = {round(p.frequency_hz / 1e6): p.power_w for p in profile.power.points}
    at = {round((t.frequency_hz or 0) / 1e6): t for t in profile.timings}
    for row in rows(perseus_csv(profile)):
        mhz = int(row["frequency"])
        seconds = sum(getattr(s, row["instruction"]).median_s for s in at[mhz].segments)
        assert float(row["time"]) == pytest.approx(seconds)
        assert float(row["energy"]) == pytest.approx(seconds * watts[mhz])


def test_the_clock_is_the_one_to_lock_and_points_that_heat_held_down_are_left_out() -> None:
    profile = make_profile(role="server")
    assert profile.power is not None
    asked = [
        point.model_copy(update={"requested_hz": point.frequency_hz, "frequency_hz": 0.97 * point.frequency_hz})
        for point in profile.power.points
    ]
    asked[0] = asked[0].model_copy(update={"throttled": True})
    asked[1] = asked[1].model_copy(update={"capped": True})
    timings = [t.model_copy(update={"requested_hz": t.frequency_hz}) for t in profile.timings]
    power = profile.power.model_copy(update={"points": asked})
    table = rows(perseus_csv(profile.model_copy(update={"power": power, "timings": timings})))
    assert [int(row["frequency"]) for row in table] == 2 * [2000, 1500, 1000]


def test_what_is_missing_is_named() -> None:
    whole = make_profile(role="server")
    with pytest.raises(BadInput, match="timings"):
        perseus_csv(whole.model_copy(update={"timings": []}))
    with pytest.raises(BadInput, match="power"):
        perseus_csv(whole.model_copy(update={"power": None}))
    with pytest.raises(BadInput, match="no clock in common"):
        perseus_csv(power_of(whole, requested_hz=7e8))


def test_an_export_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    profile = make_profile(role="server")
    write_export(profile, tmp_path / "deep" / "sweep.csv")
    assert (tmp_path / "deep" / "sweep.csv").read_text() == perseus_csv(profile)
    with pytest.raises(BadInput):
        write_export(profile.model_copy(update={"timings": []}), tmp_path / "none.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
