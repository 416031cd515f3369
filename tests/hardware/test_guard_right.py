"""Who may set a clock: root alone, the helper alone, groups; what NVIDIA's driver answers."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from profiler.hardware import guard
from profiler.hardware.guard import GuardedClocks, sudo_command
from profiler.hardware.host import WallTime
from profiler.profile import MissingHardware
from tests.hardware.clock_tree import (
    HIGH,
    HOME,
    KEY,
    LOW,
    Tree,
    leave_locked,
    restored,
    sweep,
)
from tests.rigs.nvml import Rig, ada, why_no_rig

# ---------------------------------------------------------------------------------------------------------- the right


@pytest.fixture
def as_nobody(tree: Tree) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a program in the tree as somebody who is not root and whose files these are not."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody without rights")
    for folder in [tree.root, *tree.root.parents[:-2]]:
        folder.chmod(folder.stat().st_mode | 0o755)

    packages = [path for path in sys.path if path.endswith("site-packages")]

    def started(python: str, program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", program],
            env={**tree.environment, "PYTHONPATH": os.pathsep.join([str(HOME), *packages])},
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    # A Python under root's home cannot be started by others: the system's own of that version may do.
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            if started(python, "import profiler.hardware.guard").returncode == 0:
                given = f"import json\ndevice = json.loads({json.dumps(json.dumps(tree.device))})\n"
                return lambda program: started(python, given + program)
    pytest.skip("this checkout and its packages lie where another user may not read them")


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


@pytest.fixture
def left_by_the_caller(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal in the home of the user who now types sudo; that user's folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    leave_locked(tree)
    home = tree.root / "home"
    (home / ".local/state").mkdir(parents=True)
    tree.state.rename(home / ".local/state/card-profile")
    somebody = pwd.struct_passwd(("somebody", "x", 65534, 65534, "", str(home), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: somebody)
    monkeypatch.setattr(guard, "_SYSTEM_FOLDER", tree.root / "system")
    monkeypatch.delenv("CARD_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setenv("SUDO_GID", "65534")
    return home / ".local/state/card-profile"


def test_sudo_restore_gives_back_what_a_run_of_the_callers_has_left_locked(
    tree: Tree, left_by_the_caller: Path
) -> None:
    said: list[str] = []
    assert guard.restore_leftovers(said.append) == 1
    assert "had left its clock locked; it is given back" in said[0]
    assert tree.limits == (LOW, HIGH)
    assert not list(left_by_the_caller.glob("*.journal"))


def test_a_run_under_sudo_does_not_take_what_the_caller_has_left_locked_for_the_limits(
    tree: Tree, left_by_the_caller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "become_caller", lambda: None)
    clocks = tree.clocks()
    assert clocks.left_locked()
    with clocks.held() as notes:
        assert any("had left its clock locked" in note for note in notes)
        assert not list(left_by_the_caller.glob("*.journal"))
    assert tree.limits == (LOW, HIGH)


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


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_only_setting_a_clock_is_refused_and_the_way_out_is_named(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("CARD_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)  # a user whom no list holds
    clocks = tree.clocks()
    assert not clocks.in_use()
    with pytest.raises(MissingHardware, match="set CARD_STATE_DIR"), clocks.held():
        pass
    with pytest.raises(MissingHardware, match="set CARD_STATE_DIR"):
        guard.restore_leftovers(print)
    assert tree.limits == (LOW, HIGH)


def test_journals_never_lie_below_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = next(entry for entry in pwd.getpwall() if entry.pw_uid != 0 and entry.pw_dir.startswith("/"))
    monkeypatch.setattr(os, "geteuid", lambda: somebody.pw_uid)
    monkeypatch.delenv("CARD_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "relative")
    assert guard.state_folder() == Path(somebody.pw_dir, ".local/state/card-profile")
    monkeypatch.setenv("HOME", "/somewhere")
    assert guard.state_folder() == Path("/somewhere/.local/state/card-profile")
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert guard.state_folder() == Path("/elsewhere/card-profile")


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


def test_a_range_to_restore_that_the_driver_refuses_is_known_before_the_sweep(root_only: Rig, tmp_path: Path) -> None:
    with pytest.raises(MissingHardware, match="--restore-clocks 1,2: "), card(root_only).held((1e6, 2e6)):
        pass
    assert root_only.locked_mhz() is None
    assert not list((tmp_path / "state").glob("*.journal"))


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


def test_a_drivers_version_that_cannot_be_read_is_not_told_as_a_clock_that_cannot_be_locked(rig: Rig) -> None:
    rig.card().root_only = 0
    rig.machine.driver = b"580.65\xff"
    with card(rig).held():
        pass
    rig.fail("nvmlSystemGetDriverVersion", 3)
    with pytest.raises(MissingHardware, match=r"the driver's version cannot be read \(NVML error 3") as refused:
        card(rig).held().__enter__()
    assert "cannot lock" not in str(refused.value)


def test_a_card_that_lost_its_right_during_the_sweep_keeps_its_journal(rig: Rig, tmp_path: Path) -> None:
    rig.card().root_only = 0
    with pytest.raises(MissingHardware, match="NVML error 4"):
        sweep(card(rig), when_locked=lambda: setattr(rig.card(), "no_permission", 1), then_hz=210e6)
    assert rig.locked_mhz() == (1500, 1500)
    assert list((tmp_path / "state").glob("*.journal"))
    rig.card().no_permission = 0
    assert "given back" in restored()[0]
    assert rig.locked_mhz() is None


@pytest.mark.parametrize("code", [3, 13, 24, 15])
def test_a_card_that_cannot_be_given_back_when_the_right_is_tried_keeps_its_journal(
    rig: Rig, tmp_path: Path, code: int
) -> None:
    rig.card().root_only = 0
    rig.fail("nvmlDeviceResetGpuLockedClocks", code)
    told = r"could not be given back .*; its journal stays: .*card-profile restore"
    with pytest.raises(MissingHardware, match=told), card(rig).held():
        pass
    assert rig.locked_mhz() is not None
    assert list((tmp_path / "state").glob("*.journal"))
    rig.fail("nvmlDeviceResetGpuLockedClocks", 0)
    assert "given back" in restored()[0]
    assert rig.locked_mhz() is None


def test_a_card_that_is_given_back_at_the_second_try_keeps_no_journal_and_none_is_told_of(
    rig: Rig, tmp_path: Path
) -> None:
    rig.card().root_only = 0
    rig.fail("nvmlDeviceResetGpuLockedClocks", 15, 1)
    with pytest.raises(MissingHardware, match="cannot be set: the GPU is lost"), card(rig).held():
        pass
    assert rig.locked_mhz() is None
    assert not list((tmp_path / "state").glob("*.journal"))


def test_a_range_to_restore_that_was_refused_does_not_stand_in_a_journal_that_stays(rig: Rig, tmp_path: Path) -> None:
    rig.card().root_only = 0
    rig.fail("nvmlDeviceResetGpuLockedClocks", 3)
    with pytest.raises(MissingHardware, match="card-profile restore"), card(rig).held((1e6, 2e6)):
        pass
    (journal,) = (tmp_path / "state").glob("*.journal")
    assert json.loads(journal.read_text())["restore_hz"] is None
    rig.fail("nvmlDeviceResetGpuLockedClocks", 0)
    restored()
    assert rig.locked_mhz() is None


def test_a_driver_that_is_busy_once_is_asked_again_wherever_a_clock_is_given_back(rig: Rig, tmp_path: Path) -> None:
    rig.card().root_only = 0

    def busy_once() -> None:
        rig.fail("nvmlDeviceResetGpuLockedClocks", 999, 1)

    clocks = card(rig)
    busy_once()
    with clocks.held():
        assert rig.locked_mhz() is None  # after the right was tried
        clocks.lock(1500e6)
        journal = next((tmp_path / "state").glob("*.journal"))
        left = journal.read_text()
        busy_once()
        clocks.reset()
        assert rig.locked_mhz() is None  # at the end of a sweep
    journal.write_text(left)
    rig.card().locked_min_mhz = rig.card().locked_max_mhz = 1500
    busy_once()
    assert "given back" in restored()[0]
    assert rig.locked_mhz() is None


def test_a_damaged_journal_of_a_card_still_says_by_its_name_which_clock_to_give_back(rig: Rig, tmp_path: Path) -> None:
    rig.card().root_only = 0
    with pytest.raises(MissingHardware):
        sweep(card(rig), when_locked=lambda: setattr(rig.card(), "no_permission", 1), then_hz=210e6)
    rig.card().no_permission = 0
    next((tmp_path / "state").glob("*.journal")).write_text('{"format"')
    assert "given back" in restored()[0]
    assert rig.locked_mhz() is None


@pytest.mark.parametrize(
    "change",
    [{"restore_hz": [2100e6, 210e6]}, {"target": {"kind": "nvml", "uuid": "GPU-ffffffff-0000-0000-0000-000000000000"}}],
    ids=["reversed", "another card"],
)
def test_a_journal_that_nothing_could_undo_does_not_keep_the_card_from_its_next_run(
    rig: Rig, tmp_path: Path, change: dict[str, object]
) -> None:
    rig.card().root_only = 0
    with card(rig).held():
        journal = next((tmp_path / "state").glob("*.journal"))
        left = json.loads(journal.read_text())
    journal.write_text(json.dumps({**left, **change}))
    rig.card().locked_min_mhz = rig.card().locked_max_mhz = 1500
    with card(rig).held() as notes:
        assert "damaged" in notes[0]
        assert rig.locked_mhz() is None
    assert not journal.exists()


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
