"""An interrupted run resumes only where it belongs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from profiler.partial import Partial, claimed
from profiler.profile import BadInput

PLAN = {"device": "cpu", "batch_size": 4}


def test_what_was_measured_is_there_after_an_interruption(tmp_path: Path) -> None:
    Partial(tmp_path / "cpu.json", PLAN).put("layers", {"t": 1.5})
    again = Partial(tmp_path / "cpu.json", PLAN)
    assert "layers" in again
    assert again.get("layers") == {"t": 1.5}
    assert again.ignored is None


def test_a_run_with_other_settings_starts_again_and_says_which(tmp_path: Path) -> None:
    Partial(tmp_path / "cpu.json", PLAN).put("layers", 1)
    again = Partial(tmp_path / "cpu.json", {**PLAN, "batch_size": 8})
    assert len(again) == 0
    assert "batch_size" in (again.ignored or "")


def test_fresh_starts_again(tmp_path: Path) -> None:
    Partial(tmp_path / "cpu.json", PLAN).put("layers", 1)
    again = Partial(tmp_path / "cpu.json", PLAN, fresh=True)
    assert "layers" not in again
    assert "--fresh" in (again.ignored or "")


def test_a_damaged_record_is_set_aside_with_a_word_and_not_trusted(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"format": "card-profile-partial/1", "stages": 3}'):
        (tmp_path / ".cpu.json.partial").write_text(text)
        again = Partial(tmp_path / "cpu.json", PLAN)
        assert len(again) == 0
        assert "cannot be resumed" in (again.ignored or "")


def test_the_record_is_no_profile_to_a_fleet_and_goes_when_the_run_is_complete(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "cpu.json", PLAN)
    partial.put("layers", 1)
    assert list(tmp_path.glob("*.json")) == []
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_cannot_write_one_profile_and_a_killed_one_leaves_no_claim(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    code = (
        "import time\nfrom pathlib import Path\nfrom profiler.partial import claimed\n"
        f"with claimed(Path({str(path)!r})):\n    print(flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BadInput, match=r"another run is writing this profile"), claimed(path):
            pytest.fail("both write")
        with claimed(tmp_path / "other.json"):
            pass
        other.kill()
        other.wait()
    with claimed(path):
        pass
