"""What is left behind: journals that hold, that no longer hold, that are damaged or hostile; and how limits move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.hardware.guard import parse_restore
from profiler.hardware.setter_targets import Damaged, SysfsClocks
from profiler.profile import BadInput, MissingHardware
from tests.hardware.clock_tree import (
    HIGH,
    LOW,
    Tree,
    leave_locked,
    restored,
)
from tests.rigs.time import VirtualTime

# ------------------------------------------------------------------------------------------ what the journal is worth


def test_after_a_power_cut_the_journal_is_dropped_and_nothing_written(tree: Tree) -> None:
    leave_locked(tree)
    tree.boot("second boot")
    for name, value in (("min_freq", 1), ("max_freq", 2)):  # what the new boot has set
        (tree.node / name).write_text(f"{value}\n")
    said = restored()
    assert "booted since" in said[0]
    assert "dropped" in said[0]
    assert tree.limits == (1, 2)
    assert not tree.journal.exists()


def test_a_journal_that_cannot_be_written_whole_locks_nothing(tree: Tree) -> None:
    program = """
import json, resource, sys
from profiler.hardware.guard import GuardedClocks
from profiler.hardware.host import WallTime
from profiler.profile import MissingHardware
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
clocks = GuardedClocks(**json.loads(sys.argv[1]), read_hz=lambda: None, time=WallTime())
try:
    with clocks.held():
        clocks.lock(714e6)
        print("locked")
except MissingHardware as error:
    print(error)
"""
    command = [sys.executable, "-c", program, json.dumps(tree.device)]
    said = subprocess.run(command, env=tree.environment, capture_output=True, text=True, check=True).stdout
    assert "File too large" in said
    assert "locked" not in said
    assert tree.limits == (LOW, HIGH)
    assert [path.suffix for path in tree.state.iterdir()] == [".lock"]


def test_another_kernel_drops_the_journal(tree: Tree) -> None:
    leave_locked(tree)
    journal = json.loads(tree.journal.read_text())
    tree.journal.write_text(json.dumps({**journal, "kernel": "4.9.140-tegra"}))
    assert "4.9.140-tegra" in restored()[0]
    assert tree.limits == (714_000_000, 714_000_000)
    assert not tree.journal.exists()


def test_a_device_that_is_gone_has_nothing_to_give_back(tree: Tree) -> None:
    leave_locked(tree)
    tree.node.rename(tree.node.with_name("elsewhere"))
    assert "is gone" in restored()[0]
    assert not tree.journal.exists()


def test_a_journal_of_another_tree_is_kept_and_says_which(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_locked(tree)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path / "state"))
    with pytest.raises(MissingHardware, match="CARD_SYSFS_ROOT"):
        restored()
    assert tree.journal.exists()
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    restored()
    assert tree.limits == (LOW, HIGH)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": "card-clocks/1"}', "\0" * 100, '{"a":' * 20_000, "[" * 100_000],
    ids=["empty", "half", "list", "null", "little", "zeros", "deep", "deeper"],
)
def test_a_damaged_journal_is_set_aside_and_said_and_never_fatal(tree: Tree, content: str) -> None:
    tree.state.mkdir()
    tree.journal.write_text(content)
    assert "damaged" in restored()[0]
    assert not tree.journal.exists()
    assert [file.read_text() for file in tree.state.glob("*.damaged-*")] == [content]
    tree.journal.write_text(content)
    with tree.clocks().held() as notes:
        assert "damaged" in notes[0]
    assert tree.limits == (LOW, HIGH)


def test_a_journal_that_is_a_link_a_pipe_or_a_folder_is_set_aside(tree: Tree) -> None:
    tree.state.mkdir()
    for make in (lambda: tree.journal.symlink_to("/etc/passwd"), lambda: os.mkfifo(tree.journal), tree.journal.mkdir):
        make()
        assert "damaged" in restored()[0]
        assert not os.path.lexists(tree.journal)


def test_a_hostile_journal_makes_nobody_write_elsewhere(tree: Tree) -> None:
    leave_locked(tree)
    good = json.loads(tree.journal.read_text())
    outside = tree.root / "outside"
    outside.mkdir()
    link = tree.root / "sys/class/devfreq/link"
    link.symlink_to(outside)
    for name in ("min_freq", "max_freq", "governor"):
        (outside / name).write_text("precious")
        (tree.node / name).touch()
    ways: list[dict[str, str]] = [
        {"min": str(outside / "min_freq"), "max": str(outside / "max_freq")},
        {"min": f"{tree.node}/../../../../outside/min_freq", "max": f"{tree.node}/../../../../outside/max_freq"},
        {"min": str(link / "min_freq"), "max": str(link / "max_freq")},
        {"min": str(tree.node / "governor"), "max": str(tree.node / "max_freq")},
        {"min": "/etc/passwd", "max": "/etc/shadow"},
        {"min": "sys/min_freq", "max": "sys/max_freq"},
    ]
    broken: list[dict[str, Any]] = [
        *({"target": {"kind": "sysfs", "nodes": [{**files, "unit_hz": 1}]}} for files in ways),
        {"originals": [["1", "2"]]},
        {"originals": [[1.5, 2]]},
        {"originals": [[-1, 2]]},
        {"originals": []},
        {"originals": [[1, 2], [3, 4]]},
        {"target": {"kind": "sysfs", "nodes": []}, "originals": []},
        {"target": {"kind": "nvml", "uuid": ["GPU"]}},
        {"target": {"kind": "shell"}},
        {"originals": [[2, 1]]},
        {"restore_hz": [1, 2]},
        {"written": []},
        {"written": [["1"]]},
        {"boot_id": 7},
        {"key": "other"},
        {"root": None},
    ]
    tree.journal.unlink()
    before = tree.limits
    for number, change in enumerate(broken):
        key = f"hostile-{number:02}"
        (tree.state / f"{key}.journal").write_text(json.dumps({**good, "key": key, **change}))
    said = restored()
    assert len(said) == len(broken)
    for change, told in zip(broken, said, strict=True):
        assert "damaged" in told, change
    assert tree.limits == before
    assert {file.read_text() for file in outside.iterdir()} == {"precious"}


@given(
    path=st.text(alphabet="/.abc", max_size=30) | st.sampled_from(["sys", "/sys/../etc/min_freq", "//sys/min_freq"]),
    name=st.sampled_from(["min_freq", "scaling_min_freq", "passwd"]),
)
@settings(max_examples=100, deadline=None)
def test_only_clock_limits_below_the_root_are_targets(path: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        low = os.path.join(root, path, name)
        target = {"nodes": [{"min": low, "max": low.replace("min_freq", "max_freq"), "unit_hz": 1}]}
        try:
            made = SysfsClocks(target, root)
        except Damaged:
            return
        base = os.path.realpath(root) + "/sys/"
        for file in made.nodes[0][:2]:
            assert os.path.realpath(file).startswith(base)
            assert os.path.basename(file) in ("min_freq", "scaling_min_freq", "max_freq", "scaling_max_freq")


# --------------------------------------------------------------------------------------------------- how a clock moves


class OldKernel(SysfsClocks):
    """A kernel that refuses min > max, over the plain files, and keeps the writes in order."""

    writes: tuple[str, ...] = ()

    def _write(self, path: str, value: int) -> None:  # type: ignore[override]
        low, high, _ = self.nodes[0]
        after = {low: self._value(low), high: self._value(high), path: value}
        if after[high] and after[low] > after[high]:
            raise OSError(22, "Invalid argument")
        self.writes = (*self.writes, os.path.basename(path))
        SysfsClocks._write(path, value)


@given(clocks=st.lists(st.sampled_from([0, 100, 200, 300, 400]), min_size=1, max_size=6), start=st.booleans())
@settings(max_examples=40, deadline=None)
def test_limits_move_in_an_order_that_old_kernels_accept(clocks: list[int], start: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        node = Path(temporary) / "sys/class/devfreq/gpu"
        node.mkdir(parents=True)
        (node / "min_freq").write_text("100\n" if start else "0\n")
        (node / "max_freq").write_text("400\n" if start else "0\n")
        files = {"min": str(node / "min_freq"), "max": str(node / "max_freq"), "unit_hz": 1}
        old = OldKernel({"nodes": [files]}, temporary)
        before = old.originals()
        for hz in clocks:
            if hz:
                assert old.lock(hz) == {"became_hz": [[hz, hz]]}
            else:
                old.give_back(None, before)
        old.give_back(None, before)
        assert old.originals() == before


class Kernel(SysfsClocks):
    """A newer kernel over the plain files: limits read as what is in effect, inside the hardware's range and below what heat allows."""

    range_: tuple[int, int] = (0, 10**12)
    heat = 10**12

    def _value(self, path: str) -> int:
        low, high, _ = self.nodes[0]
        lowest, highest = (min(max(SysfsClocks._value(self, p), self.range_[0]), self.range_[1]) for p in (low, high))
        highest = min(highest, self.heat)
        return highest if path == high else min(lowest, highest)


def test_limits_that_heat_lowers_are_given_back_all_the_same(tree: Tree) -> None:
    for before, after in ((10**12, 510_000_000), (510_000_000, 10**12), (510_000_000, 408_000_000)):
        kernel = Kernel(tree.device["target"], str(tree.root))  # type: ignore[arg-type]
        kernel.heat = before
        kernel.lock(918e6)
        kernel.heat = after
        assert kernel.give_back(None, [[LOW, HIGH]], kernel.written) == []
        assert tree.limits == (LOW, HIGH)


def test_limits_that_the_kernel_moves_into_the_hardwares_range_are_given_back(tree: Tree) -> None:
    for hz in (100e6, 9e9):
        kernel = Kernel(tree.device["target"], str(tree.root))  # type: ignore[arg-type]
        kernel.range_ = (LOW, HIGH)
        kernel.lock(hz)
        assert kernel.give_back(None, [[LOW, HIGH]], kernel.written) == []
        assert tree.limits == (LOW, HIGH)


@pytest.mark.parametrize(
    ("locked", "chosen", "left"),
    [
        (714e6, (LOW, 612_000_000), (LOW, 612_000_000)),  # another power mode
        (306e6, (LOW, 612_000_000), (LOW, 612_000_000)),
        (
            1_300.5e6,
            (612_000_000, 612_000_000),
            (LOW, 612_000_000),
        ),  # our lowest limit, pulled down by the mode's highest
        (714e6, (HIGH, HIGH), (HIGH, HIGH)),  # jetson_clocks
        (714e6, (408_000_000, 714_000_000), (408_000_000, HIGH)),
    ],
)
def test_limits_that_somebody_chose_during_the_run_are_left_and_it_is_said(
    tree: Tree, capfd: pytest.CaptureFixture[str], locked: float, chosen: tuple[int, int], left: tuple[int, int]
) -> None:
    def choose() -> None:
        for name, value in zip(("min_freq", "max_freq"), chosen, strict=True):
            (tree.node / name).write_text(f"{value}\n")

    clocks = tree.clocks()
    with clocks.held():
        clocks.lock(locked)
        choose()
    assert tree.limits == left
    assert "somebody else" in capfd.readouterr().err
    for name, value in (("min_freq", LOW), ("max_freq", HIGH)):
        (tree.node / name).write_text(f"{value}\n")
    with clocks.held():
        clocks.lock(locked)
        journal = tree.journal.read_text()
    tree.journal.write_text(journal)  # as a run leaves it that was killed together with its helper
    choose()
    assert "is left so" in restored()[0]
    assert tree.limits == left


def test_what_a_run_has_moved_but_not_noted_yet_is_its_own(tree: Tree) -> None:
    leave_locked(tree)
    journal = json.loads(tree.journal.read_text())
    assert journal["written"] == [[714_000_000] * 3]
    tree.journal.write_text(json.dumps({**journal, "written": None}))
    (tree.node / "min_freq").write_text("510000000\n")
    restored()
    assert tree.limits == (LOW, HIGH)


def test_going_up_the_highest_is_raised_first_and_going_down_the_lowest_is_lowered_first(tree: Tree) -> None:
    old = OldKernel(tree.device["target"], str(tree.root))  # type: ignore[arg-type]
    old.lock(714e6)
    assert old.writes == ("min_freq", "max_freq")
    old.writes = ()
    old.lock(1_300.5e6)
    assert old.writes == ("max_freq", "min_freq")


def test_waiting_for_a_clock_is_bounded_and_ends_when_it_stands_still(tree: Tree) -> None:
    """Near: at once. On its way: as long as it moves. Held down by heat or at rest: a second."""
    virtual = VirtualTime(lambda now_s, busy: None)

    def waited_s(course: Callable[[float], float | None]) -> float:
        began = virtual.now_s()
        clocks = tree.clocks(time=virtual, read_hz=lambda: course(virtual.now_s() - began))
        with clocks.held():
            clocks.lock(714e6)
        return virtual.now_s() - began

    assert waited_s(lambda s: 713e6) == 0.0
    assert waited_s(lambda s: 306e6 + min(1.0, s / 0.5) * 408e6) == pytest.approx(0.5, abs=0.1)
    assert waited_s(lambda s: 306e6) == pytest.approx(1.0, abs=0.1)
    assert waited_s(lambda s: 306e6 + 50e6 * (int(s / 0.05) % 2)) == pytest.approx(2.0, abs=0.1)
    assert waited_s(lambda s: None) == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize(("text", "hz"), [("210,2100", (210e6, 2100e6)), (" 300MHz , 300 mhz", (300e6, 300e6))])
def test_the_range_to_restore_is_read(text: str, hz: tuple[float, float]) -> None:
    assert parse_restore(text) == hz


@pytest.mark.parametrize("text", ["", "210", "2100,210", "0,100", "a,b", "1,2,3", "-5,10", "1e3,2e3", "210,9999999"])
def test_a_range_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--restore-clocks"):
        parse_restore(text)


def test_the_range_to_restore_is_what_files_get_too(tree: Tree) -> None:
    with tree.clocks().held((510e6, 918e6)):
        assert tree.limits == (LOW, HIGH)
    assert tree.limits == (LOW, HIGH)
    clocks = tree.clocks()
    with clocks.held((510e6, 918e6)):
        clocks.lock(714e6)
    assert tree.limits == (510_000_000, 918_000_000)
