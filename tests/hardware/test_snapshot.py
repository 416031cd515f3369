"""A snapshot replays as the board that it was taken from, and tells nothing of its owner."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from profiler.hardware.cpu import CpuDevice, find_rapl
from profiler.hardware.jetson import find_jetson
from profiler.hardware.snapshot import MANIFEST, snapshot
from profiler.profile import BadInput, MissingHardware
from tests.hardware.test_cpu import CPUFREQ, counting, put, two_policies
from tests.rigs.jetsons import BOARDS
from tests.rigs.sysfs import _Writer, build


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")  # refuses absolute links and links that lead out
    return folder


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_a_snapshot_of_every_board_replays_as_that_board(name: str, tmp_path: Path) -> None:
    build(tmp_path / "board", name)
    for node in (tmp_path / "board").glob("sys/class/devfreq/17000000.*"):
        (node.resolve().parent.parent / "tpc_pg_mask").write_text("3\n")
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


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("virtual/misc/uhid/0005:054C:0CE6.0006/power_supply/ps-controller-battery-a4:53:85:8a:1b:2c", "ps_controller_battery_a4:53:85:8a:1b:2c"),
        ("platform/3610000.usb/0003:046D:4082.0003/power_supply/hid-c8:db:26:1f:22:aa-battery", "hid_c8:db:26:1f:22:aa_battery"),
        ("platform/3610000.usb/0003:046D:4082.0003/power_supply/hid-4082-anns-mouse-battery", "hid_4082_anns_mouse_battery"),
        ("virtual/robot/a4:53:85:8a:1b:2c", "ina219"),
        ("virtual/robot", "ina219_a4_53_85_8a_1b_2c"),
    ],
)  # fmt: skip
def test_batteries_and_whatever_else_bears_an_address_stay_at_home(device: str, name: str, tmp_path: Path) -> None:
    board = tmp_path / "board"
    build(board, "orin-nx-jp6")
    rig = _Writer(board)
    files: dict[str, object] = {"in1_input": 3700, "temp1_input": 30000, "in1_label": "VDD_ROBOT", "curr1_input": 100}
    rig.hwmon(device, 17, {"name": name, **files})
    supply = device.rpartition("/power_supply/")[2]
    if "/power_supply/" in device:
        rig.link(f"sys/class/power_supply/{supply}", f"sys/devices/{device}")
        for kind in ("thermal_zone40", "cooling_device40"):  # a zone's name is a supply's, cut to 19 letters
            rig.file(f"sys/devices/virtual/thermal/{kind}/type", supply[:19])
            rig.file(f"sys/devices/virtual/thermal/{kind}/temp", 30000)
            rig.link(f"sys/class/thermal/{kind}", f"sys/devices/virtual/thermal/{kind}")
    with tarfile.open(snapshot(tmp_path / "s.tar.gz", board)) as packed:
        told = [word for entry in packed for word in (entry.name, entry.linkname)]
        content = b"".join(file.read() for entry in packed if (file := packed.extractfile(entry)) is not None)
    everything = "\n".join([*told, content.decode()])
    for secret in ("a4:53", "a4_53", "c8:db:26", "anns", "uhid"):
        assert secret not in everything
    assert "1-0040/hwmon/hwmon1/curr1_input" in everything


def test_what_people_noted_in_the_power_modes_stays_at_home(tmp_path: Path) -> None:
    board = tmp_path / "board"
    build(board, "orin-nx-jp6")
    modes = board / "etc/nvpmodel/nvpmodel_board.conf"
    noted = "# edited by jane.doe on host jane-desktop, lab 3\n  # serial 1421020012345\n"
    modes.write_text(noted + modes.read_text().replace("CPU_ONLINE CORE_0 1", "CPU_ONLINE CORE_0 1 # jane's"))
    tree = unpack(snapshot(tmp_path / "s.tar.gz", board), tmp_path / "tree")
    taken = (tree / "etc/nvpmodel.conf").read_text()
    assert "jane" not in taken
    assert "1421" not in taken
    assert "POWER_MODEL ID=1 NAME=15W" in taken
    assert (
        "R36 (release)" in (tree / "etc/nv_tegra_release").read_text()
    )  # a line of figures that begins like a comment


def test_a_root_reached_through_a_link_is_taken_whole_and_says_nothing_of_where_it_lies(tmp_path: Path) -> None:
    board = tmp_path / "home/alice/board"
    build(board, "orin-nx-jp6")
    link = tmp_path / "here"
    link.symlink_to(board)
    node = board / "sys/class/devfreq/17000000.gpu"
    for lies in (board, link):  # absolute links, by either of the root's names
        target = lies / os.path.relpath(node.resolve(), board.resolve())
        node.unlink()
        node.symlink_to(target)
        tree = unpack(snapshot(tmp_path / f"{lies.name}.tar.gz", link), tmp_path / f"tree-{lies.name}")
        assert "alice" not in (tree / MANIFEST).read_text()
        replayed = find_jetson(tree)
        assert replayed is not None
        assert replayed.supported_hz()[-1] == 918e6


def test_a_snapshot_of_a_cpu_replays_with_its_clocks_settings_and_energy_counters(tmp_path: Path) -> None:
    board = tmp_path / "board"
    listed = {"scaling_available_frequencies": "3400000 2800000 1400000", "scaling_boost_frequencies": "4200000"}
    two_policies(board, **listed, scaling_governor="schedutil")
    put(board, {f"{CPUFREQ}/cpufreq/boost": 1, f"{CPUFREQ}/smt/active": 1, f"{CPUFREQ}/intel_pstate/no_turbo": 0})
    hwmon = "sys/class/hwmon/hwmon3"
    put(board, {f"{hwmon}/name": "amd_energy", f"{hwmon}/energy1_label": "Esocket0", f"{hwmon}/energy1_input": 10**15})
    tree = unpack(snapshot(tmp_path / "s.tar.gz", board), tmp_path / "tree")
    one, other = CpuDevice(board), CpuDevice(tree)
    assert one.clocks is not None
    assert other.clocks is not None
    assert other.clocks.supported_hz() == one.clocks.supported_hz() == (1.4e9, 2.8e9, 3.4e9, 4.2e9)
    assert other.settings() == one.settings()
    assert (other.settings()["turbo"], other.settings()["SMT"]) == ("on", "on")
    assert other.describe() == one.describe()
    with counting(tree / hwmon / "energy1_input", 100.0, wrap_uj=2**63):
        meter, scope = find_rapl(tree)
    assert meter is not None
    assert (len(meter.zones), scope) == (1, "CPU package")


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


@pytest.mark.parametrize("file", ["curr1_input", "power1_input"])
def test_a_file_that_cannot_be_read_replays_as_one_that_is_there_and_does_not_answer(file: str, tmp_path: Path) -> None:
    board = tmp_path / "board"
    build(board, "orin-nano-jp6")
    (monitor,) = board.glob("sys/devices/**/1-0040/hwmon/hwmon1")
    (monitor / file).unlink(missing_ok=True)
    (monitor / file).mkdir()  # without power, which is then not read, the watts would be volts times amperes
    first = unpack(snapshot(tmp_path / "1.tar.gz", board), tmp_path / "1")
    second = unpack(snapshot(tmp_path / "2.tar.gz", first), tmp_path / "2")
    outcomes = [(b.power, b.absent, b.read().rails_w) for tree in (board, first, second) if (b := find_jetson(tree))]
    assert outcomes[0][0] is None
    assert outcomes == outcomes[:1] * 3


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
