"""``card-profile`` as people run it, in processes of its own against machines that live by the wall clock.

The long runs go at the same time, each on a machine of its own; the tests then look at what became of them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.rigs.nvml import Rig, volta, why_no_rig
from tests.rigs.sysfs import build

ROOT = Path(__file__).resolve().parents[1]
BESIDE = Path(sys.executable).with_name("card-profile")
PROGRAM = [str(BESIDE)] if BESIDE.exists() else [sys.executable, "-c", "from cli import profile_main; profile_main()"]
PATIENCE_S = 600.0
"""Against a hang alone; no claim about time. A sweep may take as long as its plan says ("1 to 9 minutes"), and does on a busy machine."""


@dataclass
class Ended:
    """A command that has ended: its exit code, what it printed, and what the test saw of the machine meanwhile."""

    code: int
    out: str
    err: str
    seen: dict[str, object] = field(default_factory=dict)


class Command:
    """``card-profile`` at work, its standard error going to a file that can be read meanwhile."""

    def __init__(self, folder: Path, environment: dict[str, str], *words: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._err = folder / f"err-{time.monotonic_ns()}"
        self._out = self._err.with_suffix(".out")
        with self._err.open("w") as err, self._out.open("w") as out:
            self.process = subprocess.Popen([*PROGRAM, *words], env=environment, cwd=folder, stdout=out, stderr=err)

    def until(self, what: Callable[[], object]) -> None:
        """Wait until ``what`` is true; fails with what the command said when it ends first."""
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, self._err.read_text()
            assert time.monotonic() < end, self._err.read_text()
            time.sleep(0.05)

    def said(self, text: str) -> bool:
        return text in self._err.read_text()

    def ended(self, **seen: object) -> Ended:
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"not ended after {PATIENCE_S:g} s: {self._err.read_text()[-2000:]}")
        return Ended(self.process.returncode, self._out.read_text(), self._err.read_text(), seen)


def card_profile(folder: Path, environment: dict[str, str], *words: str) -> Ended:
    return Command(folder, environment, *words).ended()


def power_run(device: str, load: list[str] | None, clocks: str, output: Path) -> list[str]:
    words = ["run", "--device", device, "--model", "tiny-llama-test", "--measure", "power", "--clocks", clocks]
    return [*words, "--output", str(output), *(["--load-command", shlex.join(load)] if load else [])]


def free(rig: Rig, place: int) -> bool:
    """Whether another process finds the card free (and the load ended with the run)."""
    return rig.locked_mhz(place) is None


# -------------------------------------------------------------------------------------------------- the machines


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, dict[str, str], Path]]:
    """Four cards whose heat settles in a second, at once, and no GPU that torch could use."""
    if why_no_rig():
        pytest.skip(str(why_no_rig()))
    folder = tmp_path_factory.mktemp("cards")
    cards = [volta(number) for number in range(4)]
    for card in cards:
        card.fast_s, card.slow_s = 0.3, 1.0
    with Rig(folder, cards, wall_speed=1.0) as rig:
        yield rig, {**rig.environment, "CARD_STATE_DIR": str(folder / "state"), "CUDA_VISIBLE_DEVICES": ""}, folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], Path]]:
    """A living Orin Nano of JetPack 6 whose heat settles in a second."""
    folder = tmp_path_factory.mktemp("board")
    tree = folder / "tree"
    build(tree, "orin-nano-jp6")
    python_path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "PYTHONPATH": python_path, "CARD_STATE_DIR": str(folder / "state")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": str(folder)}
    words = [sys.executable, "-m", "tests.rigs.sysfs", str(tree), "--live", "--heat-s", "1", "--seconds", "900"]
    live = subprocess.Popen(words, cwd=ROOT)
    yield tree, environment, folder
    live.terminate()
    live.wait(10)


def stopped_and_resumed(rig: Rig, environment: dict[str, str], folder: Path) -> Ended:
    words = power_run("nvml:0", rig.load_command(0), "2", folder / "card.json")
    first = Command(folder, environment, *words)
    first.until(lambda: first.said("MHz (asked 135)"))
    first.process.send_signal(signal.SIGTERM)
    stopped = first.ended()
    partial = (folder / ".card.json.partial").exists()
    again = card_profile(folder, environment, *words)
    again.seen.update(stopped=stopped, partial=partial, free=free(rig, 0))
    return again


def lost_meanwhile(rig: Rig, environment: dict[str, str], folder: Path) -> Ended:
    command = Command(folder, environment, *power_run("nvml:1", rig.load_command(1), "3", folder / "lost.json"))
    command.until(lambda: rig.locked_mhz(1) is not None)
    time.sleep(3.0)
    rig.card(1).lost = 1
    ended = command.ended()
    ended.seen["kept"] = (folder / ".lost.json.partial").exists()
    return ended


def killed_altogether(rig: Rig, environment: dict[str, str], folder: Path) -> Ended:
    command = Command(folder, environment, *power_run("nvml:2", rig.load_command(2), "2", folder / "killed.json"))
    command.until(lambda: rig.locked_mhz(2) is not None)
    pid = command.process.pid
    children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    helpers = [p for p in children if b"setter.py" in Path(f"/proc/{p}/cmdline").read_bytes()]
    for one in (*helpers, pid):
        os.kill(one, signal.SIGKILL)
    command.process.wait(10)
    locked = rig.locked_mhz(2) is not None
    restored = card_profile(folder, environment, "restore")
    loads = [pid for pid in rig.card(2).loads if pid and Path(f"/proc/{pid}").exists()]
    restored.seen.update(helpers=len(helpers), locked=locked, free=free(rig, 2), loads=loads)
    return restored


def one_point(rig: Rig, environment: dict[str, str], folder: Path) -> Ended:
    locks = rig.card(3).locks
    ended = card_profile(folder, environment, *power_run("nvml:3", rig.load_command(3), "current", folder / "one.json"))
    ended.seen["locks"] = rig.card(3).locks - locks
    return ended


def mode_changed(board: tuple[Path, dict[str, str], Path]) -> Ended:
    tree, environment, folder = board
    load = [sys.executable, "-m", "tests.rigs.sysfs", str(tree), "--load"]
    words = power_run("orin-nano-super", load, "2", folder / "board.json")
    command = Command(folder, environment, *words, "--sysfs-root", str(tree))
    command.until(lambda: command.said("MHz (asked 306)"))
    time.sleep(2.0)
    (tree / "var/lib/nvpmodel/status").write_text("pmode:0000")
    ended = command.ended()
    kept = json.loads((folder / ".board.json.partial").read_text())["stages"]["power"]
    ended.seen["kept_hz"] = [entry["requested_hz"] for entry in kept]
    ended.seen["highest"] = next(tree.glob("sys/class/devfreq/17000000.gpu/max_freq")).read_text().strip()
    return ended


Runs = dict[str, "Future[Ended]"]


@pytest.fixture(scope="module")
def runs(machine: tuple[Rig, dict[str, str], Path], board: tuple[Path, dict[str, str], Path]) -> Iterator[Runs]:
    """All the long runs, at the same time."""
    rig, environment, folder = machine
    with ThreadPoolExecutor(8) as pool:
        started: Runs = {"board": pool.submit(mode_changed, board)}
        for name, body in (
            ("stopped", stopped_and_resumed),
            ("lost", lost_meanwhile),
            ("killed", killed_altogether),
            ("one", one_point),
        ):
            state = {**environment, "CARD_STATE_DIR": str(folder / f"state-{name}")}
            started[name] = pool.submit(body, rig, state, folder / name)
        yield started


# ----------------------------------------------------------------------------------------------- what became of them


@pytest.mark.slow
def test_a_stopped_sweep_leaves_the_card_free_and_goes_on_where_it_was(
    runs: Runs, machine: tuple[Rig, dict[str, str], Path]
) -> None:
    again = runs["stopped"].result()
    stopped = again.seen["stopped"]
    assert isinstance(stopped, Ended)
    assert stopped.code == 130
    assert "stopped" in stopped.err
    assert again.seen["partial"]
    assert again.code == 0, again.err
    assert "resuming" in again.err
    assert "(asked 135)" not in again.err  # measured already
    assert again.seen["free"]
    rig, environment, folder = machine
    path = folder / "stopped" / "card.json"
    points = json.loads(path.read_text())["power"]["points"]
    for point in points:
        truth = rig.truth(point["frequency_hz"], 0).power_w
        assert point["power_w"] == pytest.approx(truth, rel=0.02)
    assert [point["requested_hz"] for point in points] == [135e6, 1530e6]
    fitted = card_profile(folder, environment, "fit-power", str(path))
    assert fitted.code == 0, fitted.err
    shown = card_profile(folder, environment, "show", str(path), "--plot", str(folder / "plots"))
    assert shown.code == 0, shown.err
    assert list((folder / "plots").iterdir())
    exported = card_profile(folder, environment, "export", str(path))
    assert exported.code == 2
    assert "--measure layers,power" in exported.err  # a user's own program has no layer times to export


@pytest.mark.slow
def test_a_lost_card_ends_the_run_and_what_was_measured_is_kept(runs: Runs) -> None:
    lost = runs["lost"].result()
    assert lost.code == 3, lost.err
    assert "lost" in lost.err.lower()
    assert lost.seen["kept"]


@pytest.mark.slow
def test_after_a_kill_of_everything_restore_frees_the_card(runs: Runs) -> None:
    restored = runs["killed"].result()
    assert restored.seen["helpers"] == 1
    assert restored.seen["locked"]
    assert restored.seen["loads"] == []  # the user's program has ended too
    assert restored.code == 0, restored.err
    assert restored.seen["free"]


@pytest.mark.slow
def test_the_current_clock_is_one_point_and_nothing_is_locked(
    runs: Runs, machine: tuple[Rig, dict[str, str], Path]
) -> None:
    one = runs["one"].result()
    assert one.code == 0, one.err
    assert one.seen["locks"] == 0
    profile = json.loads((machine[2] / "one" / "one.json").read_text())
    (point,) = profile["power"]["points"]
    assert profile["hardware"]["conditions"]["memory_clock"].endswith(" MHz under load")
    assert point.get("requested_hz") is None
    assert point["frequency_hz"] == pytest.approx(1530e6, rel=0.01)


@pytest.mark.slow
def test_a_power_mode_changed_meanwhile_ends_the_run_and_keeps_what_was_measured_before(runs: Runs) -> None:
    changed = runs["board"].result()
    assert changed.code == 3, changed.err
    assert "power mode changed while we measured" in changed.err
    assert changed.seen["kept_hz"] == [306e6]
    assert changed.seen["highest"] == "1020000000"


# ---------------------------------------------------------------------------------------------------- said at once


def test_without_the_right_to_set_clocks_it_is_said_at_once_with_the_way_out(
    machine: tuple[Rig, dict[str, str], Path],
) -> None:
    rig, environment, folder = machine
    rig.card(3).no_permission = 1
    try:
        began = time.monotonic()
        refused = card_profile(folder / "refused", {**environment, "CARD_STATE_DIR": str(folder / "state-refused")},
                               *power_run("nvml:3", rig.load_command(3), "2", folder / "refused" / "p.json"))  # fmt: skip
    finally:
        rig.card(3).no_permission = 0
    assert refused.code == 3
    assert time.monotonic() - began < 20
    assert "--clocks current" in refused.err
    assert ("sudo " in refused.err) if os.geteuid() != 0 else ("--cap-add SYS_ADMIN" in refused.err)


def left_by_a_killed_run(rig: Rig, place: int, state: Path, **facts: object) -> Path:
    """The journal of a run that was killed while it held the card."""
    state.mkdir(parents=True)
    key = f"nvml-{rig.uuid(place)}"
    journal = {"format": "card-clocks/1", "key": key, "name": "Tesla V100", "originals": [], "restore_hz": None, "root": "/",
               "target": {"kind": "nvml", "uuid": rig.uuid(place)}, "driver": rig.machine.driver.decode(),
               "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}  # fmt: skip
    (state / f"{key}.journal").write_text(json.dumps({**journal, **facts}))
    return state / f"{key}.journal"


@pytest.mark.parametrize(
    ("began_ago_s", "up_s", "freed"),
    [(0.0, 1.0, True), (3600.0, 1.0, False), (0.0, 1e9, False)],
    ids=["a container began anew", "booted", "booted, and the wall clock began anew too"],
)
def test_a_container_that_draws_itself_another_boot_id_has_not_booted_the_machine(
    machine: tuple[Rig, dict[str, str], Path], tmp_path: Path, began_ago_s: float, up_s: float, freed: bool
) -> None:
    rig, environment, folder = machine
    began_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - began_ago_s
    facts = {"boot_id": "drawn by a container", "boot_began_s": began_s, "up_s": up_s}
    journal = left_by_a_killed_run(rig, 3, tmp_path / "state", **facts)
    resets = rig.card(3).resets
    restored = card_profile(folder, {**environment, "CARD_STATE_DIR": str(tmp_path / "state")}, "restore")
    assert restored.code == 0, restored.err
    assert (rig.card(3).resets > resets) == freed
    assert ("booted since" in restored.err) != freed
    assert not journal.exists()


def test_a_clock_that_a_killed_run_left_locked_is_never_taken_for_the_cards_own(
    machine: tuple[Rig, dict[str, str], Path],
) -> None:
    rig, environment, folder = machine
    folder = folder / "leftover"
    state = folder / "state"
    journal = left_by_a_killed_run(rig, 3, state)
    environment = {**environment, "CARD_STATE_DIR": str(state)}
    words = power_run("nvml:3", rig.load_command(3), "current", folder / "p.json")
    rig.card(3).no_permission = 1
    try:
        refused = card_profile(folder, environment, *words)
        shown = card_profile(folder, environment, "devices")
    finally:
        rig.card(3).no_permission = 0
    assert refused.code == 3, refused.err
    assert "card-profile restore" in refused.err
    assert "a run that has ended has left it locked: card-profile restore" in " ".join(shown.out.split())
    run = Command(folder, environment, *words)
    run.until(lambda: run.said("given back"))
    run.process.send_signal(signal.SIGTERM)
    assert run.ended().code == 130
    assert not journal.exists()


def test_a_card_that_torch_cannot_use_needs_a_program_and_says_so(machine: tuple[Rig, dict[str, str], Path]) -> None:
    _, environment, folder = machine
    refused = card_profile(folder, environment, *power_run("nvml:3", None, "2", folder / "p.json"))
    assert refused.code == 3
    assert "--load-command" in refused.err


def test_an_old_release_needs_a_program_and_says_so(tmp_path: Path, board: tuple[Path, dict[str, str], Path]) -> None:
    build(tmp_path / "tree", "orin-nx-jp5")
    words = ["run", "--device", "orin-nx", "--model", "tiny-llama-test", "--sysfs-root", str(tmp_path / "tree")]
    refused = card_profile(tmp_path, board[1], *words)
    assert refused.code == 3
    assert "Python 3.8" in refused.err
    assert "--load-command" in refused.err


def test_a_snapshot_of_a_board_shows_the_same_devices_elsewhere(
    tmp_path: Path, board: tuple[Path, dict[str, str], Path]
) -> None:
    build(tmp_path / "tree", "orin-agx-jp6")
    here = card_profile(tmp_path, board[1], "devices", "--sysfs-root", str(tmp_path / "tree"))
    assert here.code == 0, here.err
    assert "VDD_GPU_SOC" in " ".join(here.out.split())
    assert "1300.5" in here.out
    archive = tmp_path / "copy.tar.gz"
    taken = card_profile(
        tmp_path, board[1], "snapshot", "--output", str(archive), "--sysfs-root", str(tmp_path / "tree")
    )
    assert taken.code == 0, taken.err
    shutil.unpack_archive(archive, tmp_path / "copy")
    (copied,) = [p.parent for p in (tmp_path / "copy").rglob("sys") if p.is_dir()][:1]
    there = card_profile(tmp_path, board[1], "devices", "--sysfs-root", str(copied))
    assert there.out == here.out
