"""Fixtures of the hardware's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hardware.clock_tree import Tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    monkeypatch.setenv("CARD_STATE_DIR", str(made.state))
    return made
