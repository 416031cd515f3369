"""A snapshot replays as the board that it was taken from, and tells nothing of its owner."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from profiler.hardware.jetson import find_jetson
from profiler.hardware.snapshot import MANIFEST, snapshot
from profiler.profile import BadInput, MissingHardware
from tests.rigs.jetsons import BOARDS
from tests.rigs.sysfs import build


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")  # refuses absolute links and links that lead out
    return folder


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_a_snapshot_of_every_board_replays_as_that_board(name: str, tmp_path: Path) -> None:
    build(tmp_path / "board", name)
    tree = unpack(snapshot(tmp_path / "taken.tar.gz", tmp_path / "board"), tmp_path / "tree")
    one, other = find_jetson(tmp_path / "board"), find_jetson(tree)
    assert one is not None
    assert other is not None
    assert (other.key, other.given_name, other.board) == (one.key, one.given_name, one.board)
    assert other.power == one.power
    assert other.supported_hz() == one.supported_hz()
    assert other.power_mode() == one.power_mode()
    assert other.conditions() == one.conditions()
    assert other.software() == one.software()
    assert other.memory_bytes() == one.memory_bytes()
    before, after = one.read(), other.read()
    assert after.rails_w == before.rails_w
    assert (after.power_w, after.frequency_hz, after.temperature_c) == (
        before.power_w,
        before.frequency_hz,
        before.temperature_c,
    )


def test_nothing_private_is_taken(tmp_path: Path) -> None:
    board = tmp_path / "board"
    build(board, "orin-nx-jp6")
    secrets = {
        "etc/hostname": "anns-jetson\n",
        "sys/class/net/eth0/address": "48:b0:2d:11:22:33\n",
        "etc/nvpmodel/nvpmodel_board.conf": "# made by ann@example.org\n< POWER_MODEL ID=0 NAME=MAXN >\n# eth0 48:b0:2d:11:22:33\n",
        "sys/class/hwmon/hwmon0/uevent": "OF_NAME=ann\n",
    }
    for name, text in secrets.items():
        (board / name).parent.mkdir(parents=True, exist_ok=True)
        (board / name).write_text(text)
    tree = unpack(snapshot(tmp_path / "s.tar.gz", board), tmp_path / "tree")
    everything = b"".join(p.read_bytes() for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    for secret in (b"1421020012345", b"0123456789abcdef", b"48:b0", b"ann", b"11111111-2222"):
        assert secret not in everything
    assert b"NAME=MAXN" in everything
    assert not (tree / "proc/sys/kernel/random").exists()
    manifest = json.loads((tree / MANIFEST).read_text())
    assert "etc/nvpmodel/nvpmodel_board.conf" in manifest["left_out"]
    assert "proc/cpuinfo" in manifest["left_out"]


def test_the_same_readings_give_the_same_bytes(tmp_path: Path) -> None:
    build(tmp_path / "board", "orin-agx-jp6")
    first = snapshot(tmp_path / "a.tar.gz", tmp_path / "board").read_bytes()
    assert snapshot(tmp_path / "b.tar.gz", tmp_path / "board").read_bytes() == first
    with tarfile.open(tmp_path / "a.tar.gz") as packed:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in packed} == {(0, 0, "", "", 0)}


def test_what_cannot_be_read_is_listed_and_is_not_fatal(tmp_path: Path) -> None:
    board = tmp_path / "board"
    build(board, "orin-nx-jp6")
    status = board / "var/lib/nvpmodel/status"
    status.unlink()
    status.mkdir()
    os.mkfifo(board / "sys/devices/system/cpu/possible")  # would wait forever
    (board / "sys/class/devfreq/out").symlink_to("../../../../../../../../../../../../../etc")
    tree = unpack(snapshot(tmp_path / "s.tar.gz", board), tmp_path / "tree")
    manifest = json.loads((tree / MANIFEST).read_text())
    assert "var/lib/nvpmodel/status" in manifest["unreadable"]
    assert not any("passwd" in name for name in manifest["files"])
    assert manifest["files"]["sys/firmware/devicetree/base/model"] > 10
    assert find_jetson(tree) is not None


def test_a_snapshot_of_this_machine_works_wherever_it_runs(tmp_path: Path) -> None:
    tree = unpack(snapshot(tmp_path / "s.tar.gz", Path("/")), tmp_path / "tree")
    assert "MemTotal" in (tree / "proc/meminfo").read_text()
    assert (tmp_path / "s.tar.gz").stat().st_size < 4_000_000


def test_where_nothing_can_be_taken_or_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingHardware, match="no kernel files"):
        snapshot(tmp_path / "s.tar.gz", tmp_path / "empty")
    build(tmp_path / "board", "nano-jp4")
    with pytest.raises(BadInput, match="cannot be written"):
        snapshot(tmp_path / "board", tmp_path / "board")
