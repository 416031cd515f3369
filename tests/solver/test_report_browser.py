"""The report in a real browser, where there is one. The full check is ``python -m benchmarks.report_browser``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report_browser import browser_path, faults, look
from solver.problem import SolveOptions
from solver.scenario import solve
from solver.show.html import write_html
from tests.solver.test_html import hostile


def test_a_browser_finds_nothing_wrong_with_the_report(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="the package playwright is not installed")
    pytest.importorskip("matplotlib")
    if browser_path() is None:
        pytest.skip("no Chromium on this machine")
    path = write_html(solve(hostile(), SolveOptions()), tmp_path / "report.html")
    for record in look(path):
        assert not faults(record), record
