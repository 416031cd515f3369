"""Clocks that always come back: real helpers, real kills, on trees of plain files and on the rig of NVIDIA cards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kills import WAYS, kill_once, world
from profiler.hardware import guard
from profiler.hardware.guard import GuardedClocks, parse_restore, restore_leftovers, sudo_command
from profiler.hardware.host import WallTime
from profiler.hardware.setter_targets import Damaged, SysfsClocks
from profiler.profile import BadInput, MissingHardware
from tests.rigs.nvml import Rig, ada, why_no_rig
from tests.rigs.time import VirtualTime

HOME = Path(__file__).resolve().parents[2]
KEY = "devfreq-17000000.gpu"
NODE = "sys/class/devfreq/17000000.gpu"
LOW, HIGH = 306_000_000, 1_300_500_000
BOOT = "proc/sys/kernel/random/boot_id"

VICTIM = """
import json, signal, sys, time
from profiler.hardware.guard import GuardedClocks
from profiler.hardware.host import WallTime
def stop(*_):
    raise KeyboardInterrupt
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
clocks = GuardedClocks(**json.loads(sys.argv[1]), read_hz=lambda: None, time=WallTime())
with clocks.held():
    if sys.argv[2] == "hold":
        print("held", flush=True)
        time.sleep(60)
    clocks.lock(clocks.supported_hz()[1])
    print("locked", flush=True)
    if sys.argv[2] == "raise":
        raise ValueError("the model broke")
    if sys.argv[2] == "sleep":
        time.sleep(60)
    if sys.argv[2] == "again":
        sys.stdin.readline()
        clocks.lock(clocks.supported_hz()[0])
"""


class Tree:
    """A copied tree with one GPU, a folder for journals, and the device as the helper takes it."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.node = root / NODE
        self.node.mkdir(parents=True)
        for name, value in (("min_freq", LOW), ("max_freq", HIGH), ("cur_freq", LOW)):
            (self.node / name).write_text(f"{value}\n")
        self.boot("first boot")
        node = {"min": str(self.node / "min_freq"), "max": str(self.node / "max_freq"), "unit_hz": 1}
        self.device = {
            "key": KEY,
            "name": "orin-agx",
            "target": {"kind": "sysfs", "nodes": [node]},
            "supported_hz": [306e6, 714e6, 1_300.5e6],
        }
        self.environment = {**os.environ, "CARD_SYSFS_ROOT": str(root), "CARD_STATE_DIR": str(self.state)}
        self.environment["PYTHONPATH"] = str(HOME)

    def boot(self, name: str) -> None:
        file = self.root / BOOT
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)

    @property
    def limits(self) -> tuple[int, int]:
        return int((self.node / "min_freq").read_text()), int((self.node / "max_freq").read_text())

    @property
    def journal(self) -> Path:
        return self.state / f"{KEY}.journal"

    def clocks(self, **more: Any) -> GuardedClocks:
        return GuardedClocks(**{**self.device, "read_hz": lambda: None, "time": WallTime(), **more})

    @contextlib.contextmanager
    def victim(self, what: str) -> Iterator[subprocess.Popen[str]]:
        """A run in a process of its own that has got as far as it should."""
        process = subprocess.Popen(
            [sys.executable, "-c", VICTIM, json.dumps(self.device), what],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline().strip() in ("held", "locked")
            yield process
        finally:
            process.kill()
            process.communicate()

    def helper(self) -> int:
        """The process that holds the clock now."""
        return int(json.loads((self.state / f"{KEY}.lock").read_text())["helper"])


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    monkeypatch.setenv("CARD_STATE_DIR", str(made.state))
    return made


def sweep(clocks: GuardedClocks, *, when_locked: Callable[[], object], then_hz: float | None = None) -> None:
    """Hold, lock, let something happen, and perhaps lock again."""
    with clocks.held():
        clocks.lock(clocks.supported_hz()[1])
        when_locked()
        if then_hz is not None:
            clocks.lock(then_hz)


def soon(happens: Callable[[], bool], patience_s: float = 8.0) -> bool:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if happens():
            return True
        time.sleep(0.01)
    return happens()


def restored() -> list[str]:
    said: list[str] = []
    restore_leftovers(said.append)
    return said


# ------------------------------------------------------------------------------------------------ how a run may end


def test_a_clock_is_held_only_inside_and_given_back_after(tree: Tree) -> None:
    clocks = tree.clocks()
    with clocks.held() as notes:
        assert notes == ()
        clocks.lock(714e6)
        assert tree.limits == (714_000_000, 714_000_000)
        assert tree.journal.exists()
        clocks.lock(306e6)
        assert tree.limits == (306_000_000, 306_000_000)
        clocks.lock(1_300.5e6)
        assert tree.limits == (HIGH, HIGH)
        clocks.reset()
        assert tree.limits == (LOW, HIGH)
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()
    with pytest.raises(MissingHardware, match="not held"):
        clocks.lock(714e6)


def test_the_journal_is_on_disk_before_the_first_lock(tree: Tree) -> None:
    with tree.clocks().held():
        assert tree.limits == (LOW, HIGH)
        journal = json.loads(tree.journal.read_text())
    assert journal["originals"] == [[LOW, HIGH]]
    assert journal["boot_id"] == "first boot"
    assert journal["kernel"] == os.uname().release
    assert journal["pid"] == os.getpid()


def test_an_exception_passes_through_and_the_clock_is_back(tree: Tree) -> None:
    clocks = tree.clocks()

    def break_off() -> None:
        with clocks.held():
            clocks.lock(714e6)
            raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        break_off()
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_clock_back_before_the_run_ends(tree: Tree, number: signal.Signals) -> None:
    with tree.victim("sleep") as process:
        assert tree.limits == (714_000_000, 714_000_000)
        process.send_signal(number)
        process.wait(timeout=10)
        assert tree.limits == (LOW, HIGH)
        assert not tree.journal.exists()


def test_after_sigkill_of_the_run_its_helper_gives_the_clock_back(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        process.kill()
        process.wait()
        assert soon(lambda: tree.limits == (LOW, HIGH) and not tree.journal.exists())


def test_a_forked_child_that_keeps_the_pipe_open_does_not_keep_the_clock(tree: Tree) -> None:
    program = VICTIM.replace(
        'print("locked", flush=True)',
        'import os\n    if os.fork() == 0: time.sleep(20); os._exit(0)\n    print("locked", flush=True)',
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(tree.device), "sleep"],
        env=tree.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        process.kill()
        process.wait()
        assert soon(lambda: tree.limits == (LOW, HIGH) and not tree.journal.exists())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_after_sigkill_of_run_and_helper_restore_gives_the_clock_back(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        os.kill(tree.helper(), signal.SIGKILL)
        process.kill()
        process.wait()
    assert tree.limits == (714_000_000, 714_000_000)
    assert "orin-agx" in (said := restored())[0]
    assert "given back" in said[0]
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()
    assert restored() == ["no clock is left locked"]


def test_killed_between_journal_and_lock_there_is_nothing_wrong_after_restore(tree: Tree) -> None:
    with tree.victim("hold") as process:
        os.kill(tree.helper(), signal.SIGKILL)
        process.kill()
        process.wait()
    assert tree.journal.exists()
    restored()
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()


def test_the_next_run_undoes_leftovers_before_it_reads_the_limits(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        os.kill(tree.helper(), signal.SIGKILL)
        process.kill()
        process.wait()
    clocks = tree.clocks()
    with clocks.held() as notes:
        assert any("given back" in note for note in notes)
        clocks.lock(1_300.5e6)
    assert tree.limits == (LOW, HIGH)


def test_the_next_run_undoes_leftovers_of_other_devices_too(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        os.kill(tree.helper(), signal.SIGKILL)
        process.kill()
        process.wait()
    other = tree.root / "sys/class/devfreq/other.gpu"
    other.mkdir()
    files = {}
    for name in ("min", "max"):
        (other / f"{name}_freq").write_text("600000000\n")
        files[name] = str(other / f"{name}_freq")
    target = {"kind": "sysfs", "nodes": [{**files, "unit_hz": 1}]}
    with tree.clocks(key="devfreq-other", target=target).held() as notes:
        assert tree.limits == (LOW, HIGH)
        assert "orin-agx" in notes[0]


def test_a_helper_killed_during_the_sweep_is_noticed_and_the_clock_given_back(tree: Tree) -> None:
    with pytest.raises(MissingHardware, match=r"was killed \(SIGKILL\); the clock has been given back"):
        sweep(tree.clocks(), when_locked=lambda: os.kill(tree.helper(), signal.SIGKILL), then_hz=306e6)
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()


def test_a_helper_killed_after_the_last_lock_is_noticed_on_leaving(tree: Tree) -> None:
    with pytest.raises(MissingHardware, match="has been given back"):
        sweep(tree.clocks(), when_locked=lambda: os.kill(tree.helper(), signal.SIGKILL))
    assert tree.limits == (LOW, HIGH)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_helper_that_is_asked_to_end_gives_the_clock_back_first(tree: Tree, number: signal.Signals) -> None:
    def end_it() -> None:
        os.kill(tree.helper(), number)
        assert soon(lambda: tree.limits == (LOW, HIGH) and not tree.journal.exists())

    with pytest.raises(MissingHardware, match=rf"ended \({number.name}\); the clock has been given back"):
        sweep(tree.clocks(), when_locked=end_it, then_hz=306e6)


@pytest.mark.parametrize("way", WAYS)
def test_ten_kills_at_random_moments_leave_nothing_locked(tmp_path: Path, way: str) -> None:
    kind = "nvml" if why_no_rig() is None and WAYS.index(way) % 2 == 0 else "sysfs"
    with world(kind, tmp_path) as machine:
        for number in range(2 if "helper" in way else 1):
            outcome = kill_once(machine, random.Random(f"{way} {number}"), way)
            assert outcome.restored_by is not None, outcome.said


# ------------------------------------------------------------------------------------------ what the journal is worth


def leave_locked(tree: Tree) -> None:
    """What a run leaves that was killed together with its helper."""
    clocks = tree.clocks()
    with clocks.held():
        clocks.lock(714e6)
        journal = tree.journal.read_text()
    tree.journal.write_text(journal)
    for name in ("min_freq", "max_freq"):
        (tree.node / name).write_text("714000000\n")


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
        {"restore_hz": [1, 2]},
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


# ------------------------------------------------------------------------------------------------------- runs beside


def test_two_runs_on_one_device_exclude_each_other(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        with pytest.raises(MissingHardware, match=rf"orin-agx is in use.*pid {process.pid}"), tree.clocks().held():
            pass
        assert tree.limits == (714_000_000, 714_000_000)
        assert tree.journal.exists()


def test_runs_that_keep_their_journals_elsewhere_exclude_each_other_too(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tree.victim("sleep"):
        monkeypatch.setenv("CARD_STATE_DIR", str(tree.root / "state of another user"))
        with pytest.raises(MissingHardware, match="in use"), tree.clocks().held():
            pass
        assert tree.limits == (714_000_000, 714_000_000)


def test_restore_leaves_a_live_run_alone(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        assert restored() == [f"{KEY}: held by a live run (pid {process.pid}), left alone"]
        assert tree.limits == (714_000_000, 714_000_000)


def test_restore_waits_for_a_helper_that_is_giving_back(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        helper = tree.helper()
        os.kill(helper, signal.SIGSTOP)
        process.kill()
        process.wait()
        command = [sys.executable, "-c", "from profiler.hardware.guard import *; restore_leftovers(print)"]
        restoring = subprocess.Popen(command, env=tree.environment, stdout=subprocess.PIPE, text=True)
        time.sleep(1.0)
        assert restoring.poll() is None
        os.kill(helper, signal.SIGCONT)
        said, _ = restoring.communicate(timeout=10)
    assert restoring.returncode == 0
    assert "live" not in said
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()


# ---------------------------------------------------------------------------------------------------------- the right


@pytest.fixture
def as_nobody(tree: Tree) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a program in the tree as somebody who is not root and whose files these are not."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody without rights")
    for folder in [tree.root, *tree.root.parents[:-2]]:
        folder.chmod(folder.stat().st_mode | 0o755)

    packages = [path for path in sys.path if path.endswith("site-packages")]

    def run(program: str) -> subprocess.CompletedProcess[str]:
        given = f"import json\ndevice = json.loads({json.dumps(json.dumps(tree.device))})\n"
        # A Python under root's home cannot be started by others: the system's own of that version may do.
        for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
            with contextlib.suppress(PermissionError, FileNotFoundError):
                return subprocess.run(
                    [python, "-c", given + program],
                    env={**tree.environment, "PYTHONPATH": os.pathsep.join([str(HOME), *packages])},
                    user=65534,
                    group=65534,
                    extra_groups=[],
                    cwd="/",
                    capture_output=True,
                    text=True,
                    check=False,
                )
        pytest.skip("no Python here that another user may start")

    return run


HOLD = """
from profiler.hardware.guard import *
from profiler.hardware.host import WallTime
from profiler.profile import MissingHardware
try:
    with GuardedClocks(**device, read_hz=lambda: None, time=WallTime(), hint="or join the group gpio").held():
        print("held")
except MissingHardware as error:
    print(error)
"""


def test_without_the_right_the_exact_command_is_told_at_once(
    tree: Tree, as_nobody: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    tree.state.mkdir()
    os.chown(tree.state, 65534, 65534)
    result = as_nobody(HOLD)
    assert "setting the clock of orin-agx needs root" in result.stdout, result.stderr
    assert f"sudo CARD_SYSFS_ROOT={tree.root} CARD_STATE_DIR={tree.state} " in result.stdout
    assert "card-profile run" in result.stdout
    assert "or join the group gpio" in result.stdout
    assert "--clocks current" in result.stdout
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()


def test_whoever_may_write_the_files_needs_no_root(
    tree: Tree, as_nobody: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    tree.state.mkdir()
    for path in (tree.state, tree.node / "min_freq", tree.node / "max_freq"):
        os.chown(path, 65534, 65534)
    result = as_nobody(HOLD)
    assert result.stdout == "held\n", result.stderr


def test_leftovers_of_root_need_root_and_the_command_is_told(
    tree: Tree, as_nobody: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    leave_locked(tree)
    program = (
        HOLD[: HOLD.index("try")]
        + "try:\n    restore_leftovers(print)\nexcept MissingHardware as error:\n    print(error)"
    )
    result = as_nobody(program)
    assert "needs root: sudo" in result.stdout, result.stderr
    assert "card-profile restore" in result.stdout
    assert tree.journal.exists()


def test_what_root_has_left_locked_is_not_taken_for_the_limits(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_locked(tree)
    tree.state.rename(tree.root / "system")
    monkeypatch.setattr(guard, "_SYSTEM_FOLDER", tree.root / "system")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("CARD_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tree.root / "home"))
    with pytest.raises(MissingHardware, match=r"left orin-agx locked.*sudo .* restore"), tree.clocks().held():
        pass
    tree.boot("second boot")
    with tree.clocks().held():
        assert (tree.root / "home/card-profile" / f"{KEY}.journal").exists()


def test_under_sudo_the_helper_alone_stays_root(tree: Tree) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    program = f"""
import os, json, pathlib
from profiler.hardware.guard import *
from profiler.hardware.host import WallTime
device = json.loads({json.dumps(json.dumps(tree.device))})
node = pathlib.Path({str(tree.node)!r})
clocks = GuardedClocks(**device, read_hz=lambda: None, time=WallTime())
for _ in range(2):  # the helper stays root for a second time
    with clocks.held() as notes:
        clocks.lock(714e6)
        assert (node / "max_freq").read_text().strip() == "714000000"
        try:
            (node / "max_freq").write_text("1")
            raise SystemExit("still root")
        except PermissionError:
            pass
        helper = json.loads(pathlib.Path({str(tree.state / (KEY + ".lock"))!r}).read_text())["helper"]
        print(os.getresuid(), os.getresgid(), os.stat(f"/proc/{{helper}}").st_uid, os.environ["HOME"], notes)
"""
    for folder in [tree.root, *tree.root.parents[:-2]]:
        folder.chmod(folder.stat().st_mode | 0o755)
    environment = {**tree.environment, "SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody", "HOME": "/root"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd="/"
    )
    assert result.stdout.startswith("(65534, 65534, 65534) (65534, 65534, 65534) 0 /nonexistent"), result.stderr
    assert result.returncode == 0, result.stderr
    assert tree.limits == (LOW, HIGH)
    assert not tree.journal.exists()


def test_the_command_for_sudo_keeps_words_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "card-profile"
    program.touch()
    for name in guard._CARRIED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", [str(program), "run", "--device", "orin-agx", "--load-command", "my load 'x'"])
    words = shlex.split(sudo_command())
    assert words == ["sudo", str(program), "run", "--device", "orin-agx", "--load-command", "my load 'x'"]
    monkeypatch.setenv("CARD_SYSFS_ROOT", "/a b")
    assert shlex.split(sudo_command("restore")) == ["sudo", "CARD_SYSFS_ROOT=/a b", str(program), "restore"]
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert sudo_command().endswith("card-profile run ...")


def test_a_folder_for_journals_that_cannot_be_made_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.root / "file").touch()
    monkeypatch.setenv("CARD_STATE_DIR", str(tree.root / "file" / "state"))
    with pytest.raises(MissingHardware, match=r"file/state.*CARD_STATE_DIR"), tree.clocks().held():
        pass
    assert tree.limits == (LOW, HIGH)


def test_a_failure_to_give_back_is_said_and_the_journal_stays(tree: Tree) -> None:
    def spoil() -> None:
        (tree.node / "min_freq").unlink()
        (tree.node / "min_freq").mkdir()

    with pytest.raises(MissingHardware, match=r"could not be given back .*; its journal stays: .*card-profile restore"):
        sweep(tree.clocks(), when_locked=spoil)
    assert tree.journal.exists()
    (tree.node / "min_freq").rmdir()
    (tree.node / "min_freq").write_text("714000000")
    restored()
    assert tree.limits == (LOW, HIGH)


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


# --------------------------------------------------------------------------------------------------------------- NVML


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    if why_no_rig() is not None:
        pytest.skip(str(why_no_rig()))
    with Rig(tmp_path, [ada()], wall_speed=1.0) as made:
        for name in ("LD_LIBRARY_PATH", "RIG_NVML_STATE", "PYTHONPATH"):
            monkeypatch.setenv(name, made.environment[name])
        monkeypatch.setenv("CARD_STATE_DIR", str(tmp_path / "state"))
        yield made


def card(rig: Rig) -> GuardedClocks:
    return GuardedClocks(
        key=f"nvml-{rig.uuid()}",
        name="rtx-4060ti",
        target={"kind": "nvml", "uuid": rig.uuid()},
        supported_hz=[210e6, 1500e6, 3105e6],
        read_hz=lambda: None,
        time=WallTime(),
    )


@pytest.fixture
def root_only(rig: Rig) -> Rig:
    rig.card().root_only = int(os.geteuid() == 0)
    return rig


def test_a_card_is_locked_and_given_back(root_only: Rig) -> None:
    clocks = card(root_only)
    assert clocks.caution is not None
    assert "--restore-clocks" in clocks.caution
    with clocks.held():
        assert root_only.locked_mhz() is None
        clocks.lock(1500e6)
        assert root_only.locked_mhz() == (1500, 1500)
    assert root_only.locked_mhz() is None


def test_a_range_that_an_administrator_had_locked_is_put_back_where_it_is_known(root_only: Rig) -> None:
    clocks = card(root_only)
    with clocks.held((210e6, 2100e6)):
        assert root_only.locked_mhz() == (210, 2100)
        clocks.lock(1500e6)
    assert root_only.locked_mhz() == (210, 2100)


def test_without_permission_nothing_is_locked_and_no_journal_stays(rig: Rig, tmp_path: Path) -> None:
    rig.card().no_permission = 1
    with pytest.raises(MissingHardware) as refused, card(rig).held():
        pass
    if os.geteuid() == 0:
        assert "although this is root" in str(refused.value)
        assert "SYS_ADMIN" in str(refused.value)
    assert "NVML error 4" in str(refused.value)
    assert not list((tmp_path / "state").glob("*.journal"))
    assert rig.locked_mhz() is None


@pytest.mark.parametrize(
    ("code", "told"), [(3, "cannot lock clocks"), (13, "too old"), (15, "lost"), (999, "NVML error 999")]
)
def test_errors_of_the_driver_are_told_in_words(rig: Rig, code: int, told: str) -> None:
    rig.fail("nvmlDeviceSetGpuLockedClocks", code)
    with pytest.raises(MissingHardware, match=told), card(rig).held():
        pass


def test_a_card_that_lost_its_right_during_the_sweep_keeps_its_journal(rig: Rig, tmp_path: Path) -> None:
    rig.card().root_only = 0
    with pytest.raises(MissingHardware, match="NVML error 4"):
        sweep(card(rig), when_locked=lambda: setattr(rig.card(), "no_permission", 1), then_hz=210e6)
    assert rig.locked_mhz() == (1500, 1500)
    assert list((tmp_path / "state").glob("*.journal"))
    rig.card().no_permission = 0
    assert "given back" in restored()[0]
    assert rig.locked_mhz() is None


def test_another_driver_means_that_nothing_is_locked_any_more(rig: Rig, tmp_path: Path) -> None:
    rig.card().root_only = 0
    rig.machine.driver = b"550.54.14"
    with pytest.raises(MissingHardware):
        sweep(card(rig), when_locked=lambda: setattr(rig.card(), "no_permission", 1), then_hz=210e6)
    rig.card().no_permission = 0
    rig.machine.driver = b"580.65.06"
    resets = rig.card().resets
    assert "the driver is 580.65.06 now and was 550.54.14" in restored()[0]
    assert rig.card().resets == resets
    assert not list((tmp_path / "state").glob("*.journal"))
