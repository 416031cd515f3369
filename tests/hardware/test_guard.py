"""Clocks come back however a run ends: real helpers, real kills, runs beside each other."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kills import WAYS, kill_once, world
from profiler.hardware.guard import GuardedClocks
from profiler.power.sweep import visit_clocks
from profiler.profile import MissingHardware
from tests.hardware.clock_tree import (
    HIGH,
    KEY,
    LOW,
    VICTIM,
    Tree,
    leave_locked,
    restored,
    soon,
    sweep,
)
from tests.power.bench import clocked
from tests.rigs.nvml import why_no_rig

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


def visiting(clocks: GuardedClocks, body: Callable[[float], None]) -> None:
    """The clocks visited as a run does it."""
    bench = clocked(lambda _, hz: 1e-8 * hz, clocks.supported_hz())
    bench.clocks = clocks  # type: ignore[assignment]
    with clocks.held():
        visit_clocks(bench, clocks.supported_hz(), body)


def test_a_clock_that_stays_locked_after_its_helper_was_killed_is_the_last_word_of_a_run(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    def kill(_: float) -> None:
        os.kill(tree.helper(), signal.SIGKILL)
        (tree.node / "min_freq").unlink()
        (tree.node / "min_freq").mkdir()

    with pytest.raises(MissingHardware, match=r"SIGKILL.* may still be locked: sudo .*card-profile restore"):
        visiting(tree.clocks(), kill)
    assert capfd.readouterr().err == ""  # and it is told once


def test_what_ended_a_run_is_told_before_what_then_kept_its_clock_from_coming_back(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    def spoil(how: str) -> Callable[[float], None]:
        def body(_: float) -> None:
            if how == "helper":
                os.kill(tree.helper(), signal.SIGKILL)
            (tree.node / "min_freq").unlink()
            (tree.node / "min_freq").mkdir()
            raise MissingHardware("the power mode was changed")

        return body

    for how in ("helper", "node"):
        with pytest.raises(MissingHardware, match="the power mode was changed"):
            visiting(tree.clocks(), spoil(how))
        assert "card-profile restore" in capfd.readouterr().err
        (tree.node / "min_freq").rmdir()
        (tree.node / "min_freq").write_text((tree.node / "max_freq").read_text())
        restored()
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


# ------------------------------------------------------------------------------------------------------- runs beside


def test_two_runs_on_one_device_exclude_each_other(tree: Tree) -> None:
    with tree.victim("sleep") as process:
        with pytest.raises(MissingHardware, match=rf"orin-agx is in use.*pid {process.pid}"), tree.clocks().held():
            pass
        assert tree.limits == (714_000_000, 714_000_000)
        assert tree.journal.exists()


def test_a_clock_that_another_run_holds_is_known_to_whoever_only_looks(tree: Tree) -> None:
    first, second = tree.clocks(), tree.clocks()
    assert not second.in_use()
    with first.held():
        assert second.in_use()
    assert not second.in_use()


def test_nobody_sets_a_clock_at_which_another_run_measures(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tree.clocks(), tree.clocks()
    with first.undisturbed() as notes, second.undisturbed():  # who sets nothing disturbs nobody
        assert notes == ()
        with pytest.raises(MissingHardware, match=rf"in use.*pid {os.getpid()}"), tree.clocks().held():
            pass
        assert restored() == [f"{KEY}: held by a live run (pid {os.getpid()}), left alone"]
        monkeypatch.setenv("CARD_STATE_DIR", str(tree.root / "state of another user"))
        with pytest.raises(MissingHardware, match="in use"), tree.clocks().held():
            pass
        monkeypatch.setenv("CARD_STATE_DIR", str(tree.state))
    assert tree.limits == (LOW, HIGH)
    with tree.clocks().held(), pytest.raises(MissingHardware, match="another run sets its clock"), second.undisturbed():
        pass


def test_a_clock_that_an_ended_run_left_locked_is_given_back_before_it_is_measured_at(tree: Tree) -> None:
    leave_locked(tree)
    clocks = tree.clocks()
    assert clocks.left_locked()
    with clocks.undisturbed() as notes:
        assert "given back" in notes[0]
        assert tree.limits == (LOW, HIGH)
    assert not clocks.left_locked()


def test_a_clock_that_cannot_be_given_back_is_not_measured_at(tree: Tree) -> None:
    leave_locked(tree)
    (tree.node / "min_freq").unlink()
    (tree.node / "min_freq").mkdir()
    with (
        pytest.raises(MissingHardware, match=r"may still be locked: .*card-profile restore"),
        tree.clocks().undisturbed(),
    ):
        pass
    assert tree.clocks().left_locked()


def test_where_no_lock_can_be_kept_that_is_said_and_the_run_goes_on(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.root / "file").touch()
    monkeypatch.setenv("CARD_STATE_DIR", str(tree.root / "file" / "state"))
    with tree.clocks().undisturbed() as notes:
        assert "cannot be written: another run may set this clock" in notes[0]


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


def test_restore_in_another_container_leaves_a_live_run_alone(tree: Tree) -> None:
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode != 0:
        pytest.skip("no namespace of processes can be made here")
    command = [*apart, sys.executable, "-c", "from profiler.hardware.guard import *; restore_leftovers(print)"]
    with tree.victim("sleep"):
        restoring = subprocess.run(command, env=tree.environment, capture_output=True, text=True, check=True)
        assert (
            "held by a run whose process is not visible from here (another container?), left alone" in restoring.stdout
        )
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
