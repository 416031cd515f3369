"""jetson-stats as a second opinion on a Jetson's watts and power mode.

jetson-stats (AGPL) is never imported: its service, where it runs, is asked by a small program in a process of its own
(``jtop_reader.py``), under the Python that has it. What it says is compared and told, and no figure is taken from it: its
averages are no averages over time, and its total adds up rails that stand behind one another.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from profiler.hardware.jetson import JetsonBoard

SOCKET = "run/jtop.sock"
UPDATES = 3
LIMIT_S = 12.0
"""Its service takes up to two seconds to wake and then answers every half second."""
_NEAR = 0.10
_NEAR_W = 0.3


def why_not(board: JetsonBoard) -> str | None:
    """Why jetson-stats cannot be asked about this board, in one sentence; None where its service is there."""
    if board.root != Path("/"):
        return "jetson-stats speaks of the machine that it runs on, not of a copied tree"
    if not (board.root / SOCKET).exists():
        return "its service is not running (/run/jtop.sock); optional: sudo pip3 install jetson-stats, sudo systemctl restart jtop"
    if not os.access(board.root / SOCKET, os.R_OK | os.W_OK):
        return "its service may not be asked by this user: sudo usermod -aG jtop $USER, then log in again"
    return None


def cross_check(board: JetsonBoard, *, limit_s: float = LIMIT_S) -> dict[str, str]:
    """What jetson-stats says beside what the kernel's files say, for ``conditions``: by rail, with a verdict.

    Empty where its service is not there. Takes a few seconds, ``limit_s`` at most, and never raises for what the service does.
    """
    if why_not(board) is not None:
        return {}
    problem = "no Python with jetson-stats was found: set CARD_JTOP_PYTHON"
    until = time.monotonic() + limit_s
    for python in _pythons():
        theirs, ours, problem = _ask(board, python, until)
        if theirs:
            return _verdicts(board, theirs, ours)
        if not problem.startswith("no jetson-stats"):
            break
    return {"jtop": problem}


def _pythons() -> list[str]:
    """Where jetson-stats may be installed: where the user says, here, and in the system's Python (its usual place)."""
    asked = os.environ.get("CARD_JTOP_PYTHON")
    candidates = [asked] if asked else [sys.executable, "/usr/bin/python3", shutil.which("python3")]
    return list(dict.fromkeys(path for path in candidates if path and os.access(path, os.X_OK)))


def _ask(board: JetsonBoard, python: str, until: float) -> tuple[list[dict[str, Any]], list[dict[str, float]], str]:
    """Updates of the service and the board's own rails at those moments, or what went wrong."""
    reader = Path(__file__).with_name("jtop_reader.py")
    process = subprocess.Popen(
        [python, str(reader), str(UPDATES)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs: list[dict[str, Any]] = []
    ours: list[dict[str, float]] = []
    pending, problem = b"", "its service did not answer in time"
    assert process.stdout is not None
    try:
        while len(theirs) < UPDATES:
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                break
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                problem = "the program that asks its service ended without an answer"
                break
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                said = _parsed(line)
                if "missing" in said:
                    return [], [], f"no jetson-stats for {python}"
                if "failed" in said:
                    return [], [], f"its service: {str(said['failed'])[:300]}"
                if isinstance(said.get("rails_w"), dict):
                    theirs.append(said)
                    ours.append(board.read().rails_w or {})
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.stdout.close()
        process.wait()
    return theirs, ours, problem


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:  # a library of theirs printed something
        return {}
    return said if isinstance(said, dict) else {}


def _verdicts(board: JetsonBoard, theirs: list[dict[str, Any]], ours: list[dict[str, float]]) -> dict[str, str]:
    """Medians of both, rail by rail. Loads move between two looks, so near means within 10 % or 0.3 W."""
    told: dict[str, str] = {}
    for rail in board.rails:
        said = [u["rails_w"][rail.label] for u in theirs if isinstance(u["rails_w"].get(rail.label), (int, float))]
        read = [look[rail.label] for look in ours if rail.label in look]
        if not said or not read:
            continue
        they_w, we_w = statistics.median(said), statistics.median(read)
        near = abs(they_w - we_w) <= max(_NEAR * abs(we_w), _NEAR_W)
        told[f"jtop {rail.label}"] = f"{they_w:.2f} W, sysfs {we_w:.2f} W: {'agree' if near else 'differ'}"
    mode, number, own = theirs[-1].get("power_mode"), theirs[-1].get("power_mode_number"), board.power_mode()
    if mode and own:
        same = re.findall(r"\d+", own)[-1:] == [str(number)]
        told["jtop power mode"] = f"{mode} ({number}), nvpmodel's files {own}: {'agree' if same else 'differ'}"
    return told or {"jtop": "it knows none of this board's rails"}
