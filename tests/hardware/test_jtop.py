"""jetson-stats as a second opinion: the real service and client on an emulated board, and what happens where they are not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import profiler.hardware.jtop as ours
from profiler.hardware.jetson import JetsonBoard, find_jetson
from tests.rigs.sysfs import build

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def board(tmp_path: Path) -> JetsonBoard:
    build(tmp_path / "board", "orin-nx-jp6")
    board = find_jetson(tmp_path / "board")
    assert board is not None
    return board


@pytest.fixture
def service_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "why_not", lambda board: None)


def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A Python that answers the reader's questions like this, whatever it is asked to run."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CARD_JTOP_PYTHON", str(program))


def python_with_jtop() -> str:
    """The interpreter that has jetson-stats, else the test is skipped."""
    python = os.environ.get("CARD_JTOP_PYTHON") or sys.executable
    here = subprocess.run([python, "-I", "-c", "import jtop.service"], capture_output=True, check=False)
    if here.returncode != 0:
        pytest.skip(f"{python} has no jetson-stats (set CARD_JTOP_PYTHON)")
    return python


def test_the_real_service_and_client_agree_with_the_files(tmp_path: Path) -> None:
    python = python_with_jtop()
    if (
        os.geteuid() != 0
        or subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("needs root and a mount namespace")
    build(tmp_path / "board", "orin-nx-jp6")
    (tmp_path / "scratch").mkdir()
    check = (
        "import json, pathlib; from profiler.hardware.jetson import find_jetson; from profiler.hardware.jtop import cross_check;"
        "print(json.dumps(cross_check(find_jetson(pathlib.Path('/')))))"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.rigs.jtop_service",
         str(tmp_path / "board"), str(tmp_path / "scratch"), python, sys.executable, "-c", check],
        cwd=REPOSITORY,
        env={**os.environ, "CARD_JTOP_PYTHON": python, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    if done.returncode == 75:
        pytest.skip(f"the service does not start here: {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"jtop VDD_IN", "jtop VDD_CPU_GPU_CV", "jtop VDD_SOC", "jtop power mode"}
    assert all(verdict.endswith("agree") for verdict in told.values())


def test_a_copied_tree_and_a_missing_service_are_told_and_cost_nothing(board: JetsonBoard) -> None:
    assert "copied tree" in str(ours.why_not(board))
    assert ours.cross_check(board) == {}
    board.root = Path("/")
    if not Path("/run/jtop.sock").exists():
        assert "jetson-stats" in str(ours.why_not(board))
        assert ours.cross_check(board) == {}


@pytest.mark.usefixtures("service_there")
def test_watts_that_differ_are_said_to_differ(
    board: JetsonBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rails = board.read().rails_w
    assert rails is not None
    line = {"rails_w": {"VDD_IN": 2 * rails["VDD_IN"], "VDD_SOC": rails["VDD_SOC"], "NOT_OURS": 1.0},
            "power_mode": "15W", "power_mode_number": 1}  # fmt: skip
    says(tmp_path, monkeypatch, f"echo 'a library says hello'; for i in 1 2 3; do echo '{json.dumps(line)}'; done")
    told = ours.cross_check(board)
    assert told["jtop VDD_IN"].endswith("differ")
    assert told["jtop VDD_SOC"].endswith("agree")
    assert told["jtop power mode"] == "15W (1), nvpmodel's files MAXN (0): differ"
    assert "jtop NOT_OURS" not in told


@pytest.mark.usefixtures("service_there")
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("""echo '{"failed": "Mismatch version"}'""", "Mismatch version"),
        ("""echo '{"missing": "No module named jtop"}'""", "no jetson-stats for"),
        ("exit 3", "ended without an answer"),
        ("sleep 60", "did not answer in time"),
    ],
)
def test_a_service_that_fails_or_hangs_is_told_within_the_limit(
    board: JetsonBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    says(tmp_path, monkeypatch, script)
    start = time.monotonic()
    told = ours.cross_check(board, limit_s=1.0)
    assert time.monotonic() - start < 5
    assert expected in told["jtop"]


def test_jetson_stats_is_imported_by_the_reader_alone() -> None:
    named = re.compile(r"^\s*(?:import jtop\b|from jtop\b)|import_module\(.jtop\b", re.MULTILINE)
    sources = sorted((REPOSITORY / "profiler").rglob("*.py"))
    assert [path.name for path in sources if named.search(path.read_text())] == ["jtop_reader.py"]


def test_the_reader_says_so_where_jetson_stats_is_missing() -> None:
    reader = REPOSITORY / "profiler" / "hardware" / "jtop_reader.py"
    said = subprocess.run([sys.executable, str(reader), "1"], capture_output=True, text=True, check=True, timeout=30)
    assert set(json.loads(said.stdout.splitlines()[-1])) <= {
        "missing",
        "failed",
        "rails_w",
        "power_mode",
        "power_mode_number",
    }
