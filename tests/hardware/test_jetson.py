"""A Jetson through the kernel's files: on trees of every board of the table, and on such as nobody here has seen."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.hardware import list_devices
from profiler.hardware.gpu import GpuDevice
from profiler.hardware.jetson import JetsonBoard, find_jetson
from profiler.power.sampling import steady_point
from profiler.profile import MAX_TEXT, BadInput, MissingHardware
from profiler.show import show_devices
from tests.rigs.jetsons import BOARDS
from tests.rigs.sysfs import Live, add_monitor, build
from tests.rigs.time import VirtualTime

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "nano-jp4": ("devfreq-57000000.gpu", "nano", "whole module (POM_5V_IN)", 12, "4"),
    "tx2-jp4": ("devfreq-17000000.gp10b", "tx2", "whole module (VDD_IN)", 13, "4"),
    "xavier-agx-jp4": ("devfreq-17000000.gv11b", "xavier-agx", "sum of GPU, CPU, SOC, CV, VDDRQ and SYS5V", 14, "4"),
    "xavier-agx-jp5": ("devfreq-17000000.gv11b", "xavier-agx", "sum of GPU, CPU, SOC, CV, VDDRQ and SYS5V", 14, "5"),
    "xavier-nx-jp4": ("devfreq-17000000.gv11b", "xavier-nx", "whole module (VDD_IN)", 15, "4"),
    "xavier-nx-jp5": ("devfreq-17000000.gv11b", "xavier-nx", "whole module (VDD_IN)", 15, "5"),
    "orin-nano-jp5": ("devfreq-17000000.ga10b", "orin-nano", "whole module (VDD_IN)", 5, "5"),
    "orin-nano-jp6": ("devfreq-17000000.gpu", "orin-nano-super", "whole module (VDD_IN)", 8, "6"),
    "orin-nano-4gb-jp6": ("devfreq-17000000.gpu", "orin-nano-4gb", "whole module (VDD_IN)", 5, "6"),
    "orin-nx-jp5": ("devfreq-17000000.ga10b", "orin-nx", "whole module (VDD_IN)", 7, "5"),
    "orin-nx-jp6": ("devfreq-17000000.gpu", "orin-nx", "whole module (VDD_IN)", 7, "6"),
    "orin-agx-jp5": ("devfreq-17000000.ga10b", "orin-agx", "sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0", 11, "5"),
    "orin-agx-jp6": ("devfreq-17000000.gpu", "orin-agx", "sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0", 11, "6"),
    "orin-agx-jp7": ("devfreq-17000000.gpu", "orin-agx", "sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0", 11, "7"),
    "orin-agx-32gb-jp6": (
        "devfreq-17000000.gpu",
        "orin-agx-32gb",
        "sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0",
        8,
        "6",
    ),
    "thor-jp7": ("devfreq-gpu-gpc-0", "thor", "whole board, carrier included (VIN)", 13, "7"),
}


def found(tree: Path, **more: object) -> JetsonBoard:
    board = find_jetson(tree, **more)  # type: ignore[arg-type]
    assert board is not None
    return board


def only(tree: Path, pattern: str) -> Path:
    (path,) = tree.glob(pattern)
    return path


def silenced(tree: Path, label: str) -> Path:
    """The current of this rail cannot be read any more: reading a folder fails, for root too."""
    (place,) = (p for p in tree.glob("sys/class/hwmon/hwmon*/in*_label") if p.read_text().strip() == label)
    current = place.with_name(place.name.replace("in", "curr").replace("_label", "_input"))
    current.unlink()
    current.mkdir()
    return current


def carrier(tree: Path, address: str, number: int, watts: dict[str, float]) -> None:
    """An INA3221 that the carrier's maker has put on it, with labels of his own."""
    files: dict[str, object] = {"name": "ina3221"}
    for n, (label, shows) in enumerate(watts.items(), 1):
        files |= {f"in{n}_label": label, f"in{n}_input": 12000, f"curr{n}_input": round(shows / 12 * 1000)}
    add_monitor(tree, f"platform/bus@0/31a0000.i2c/i2c-{address[0]}/{address}", number, files)


def unlabelled(tree: Path, address: str, number: int, watts: float, chip: str = "ina226") -> None:
    """A monitor that the carrier's maker, or the user, has put somewhere."""
    add_monitor(tree, f"platform/bus@0/31e0000.i2c/i2c-8/{address}", number, {"name": chip, "in0_input": 0,
                "in1_input": 5000, "curr1_input": round(200 * watts), "power1_input": round(1e6 * watts)})  # fmt: skip


def shown(tree: Path, watts: dict[str, float]) -> None:
    """The rails of these labels show so much, at 5 V."""
    for place in tree.glob("sys/class/hwmon/hwmon*/in*_label"):
        label = place.read_text().strip()
        if label in watts:
            place.with_name(place.name.replace("_label", "_input")).write_text("5000\n")
            current = place.name.replace("in", "curr").replace("_label", "_input")
            place.with_name(current).write_text(f"{200 * watts[label]:.0f}\n")


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    build(tmp_path, "orin-nx-jp6")
    return tmp_path


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_every_board_of_the_table_is_found_with_its_rails_clocks_and_software(name: str, tmp_path: Path) -> None:
    build(tmp_path, name)
    board = found(tmp_path)
    key, entry, scope, clocks, jetpack = EXPECTED[name]
    assert board.key == key
    assert board.board is not None
    assert board.board.name == entry
    assert board.power is not None
    assert board.power.scope.startswith(scope)
    assert board.power.period_s == pytest.approx(0.1)
    assert len(board.supported_hz()) == clocks
    assert board.clocks is not None
    assert set(board.absent.reasons) == ({"layers"} if jetpack in ("4", "5") else set())
    assert board.default_role == "device"
    assert board.software()["JetPack"] == jetpack
    assert board.power_mode() is not None
    labels = {c.label for m in BOARDS[name].monitors for c in m.channels} - {"NC"}
    reading = board.read()
    assert set(reading.rails_w or {}) == labels
    assert reading.power_w is not None
    assert 0.5 < reading.power_w < 60
    assert reading.frequency_hz == board.supported_hz()[0]
    assert reading.temperature_c == pytest.approx(35, abs=3)
    assert not reading.capped
    assert not reading.throttled


@pytest.mark.parametrize(
    ("module", "entry", "cores"),
    [
        ("p3701-0000", "orin-agx", 2048),
        ("p3701-0004", "orin-agx-32gb", 1792),
        ("p3701-0005", "orin-agx", 2048),
        ("p3701-0008", "orin-agx", 2048),  # Industrial
        ("p3767-0000", "orin-nx", 1024),
        ("p3767-0001", "orin-nx", 1024),
        ("p3767-0003", "orin-nano", 1024),
        ("p3767-0004", "orin-nano-4gb", 512),
        ("p3767-0005", "orin-nano", 1024),
        ("p3668-0001", "xavier-nx", 384),
        ("p3668-0003", "xavier-nx", 384),
        ("p2888-0004", "xavier-agx", 512),
        ("p2888-0008", "xavier-agx", 512),  # Industrial
        ("p3310-1000", "tx2", 256),
        ("p3636-0001", "tx2", 256),  # NX
        ("p3448-0003", "nano", 128),
        ("p3834-0000", "thor-t4000", 1536),
        ("p3834-0008", "thor", 2560),
    ],
)
def test_a_modules_part_number_tells_its_cores(tmp_path: Path, module: str, entry: str, cores: int) -> None:
    build(tmp_path, "orin-nano-jp5")  # of the slowest clocks, which no faster mode has
    base = tmp_path / "sys/firmware/devicetree/base"
    (base / "compatible").write_bytes(f"nvidia,p1234-0000+{module}\0nvidia,{module}\0nvidia,tegra234\0".encode())
    (base / "model").write_bytes(b"Somebody's carrier\0")
    board = found(tmp_path).board
    assert board is not None
    assert (board.name, board.value("cores")) == (entry, cores)


@pytest.mark.parametrize(
    ("name", "mask", "cores", "told"),
    [
        ("orin-agx-jp6", 0, 2048, "8 of the chip's 8 (tpc_pg_mask 0)"),
        ("orin-agx-jp6", 240, 1024, "4 of the chip's 8 (tpc_pg_mask 240)"),  # MODE_30W
        ("orin-agx-32gb-jp6", 0, 1792, "7 of the chip's 8 (tpc_pg_mask 0)"),
        ("orin-nano-jp6", 240, 1024, "4 of the chip's 8 (tpc_pg_mask 240)"),  # in every mode: it has no more
        ("orin-nx-jp6", 252, 512, "2 of the chip's 8 (tpc_pg_mask 252)"),
        ("xavier-nx-jp5", 1, 384, "3 of the chip's 4 (tpc_pg_mask 1)"),
        ("tx2-jp4", 0, 256, None),
        (
            "tx2-jp4",
            1,
            256,
            "tpc_pg_mask 1, of a chip whose TPCs we do not know: cores are all that the catalog has",
        ),
    ],
)
def test_cores_that_the_power_mode_has_gated_are_not_counted(
    tmp_path: Path, name: str, mask: int, cores: int, told: str | None
) -> None:
    build(tmp_path, name)
    node = only(tmp_path, "sys/class/devfreq/17000000.*")
    (node.resolve().parent.parent / "tpc_pg_mask").write_text(f"{mask}\n")
    board = found(tmp_path)
    hardware = GpuDevice(board, None).describe()
    assert hardware.cores == cores
    assert hardware.conditions.get("TPCs on") == told
    assert board.board is not None
    assert ("of which 4 TPCs of 256 are on" in (hardware.source or "")) == (name == "orin-agx-jp6" and mask == 240)


def test_a_sum_counts_no_rail_twice_and_a_total_is_never_a_sum(tmp_path: Path) -> None:
    build(tmp_path / "agx", "orin-agx-jp6")
    reading = found(tmp_path / "agx").read()
    assert reading.rails_w is not None
    outer = [reading.rails_w[name] for name in ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")]
    assert reading.power_w == pytest.approx(sum(outer))
    assert reading.rails_w["VDDQ_VDD2_1V8AO"] > 0  # behind VIN_SYS_5V0: recorded, not added
    build(tmp_path / "nano", "nano-jp4")
    reading = found(tmp_path / "nano").read()
    assert reading.rails_w is not None
    assert reading.power_w == reading.rails_w["POM_5V_IN"]


def test_watts_are_millivolt_times_milliampere_and_no_channel_beyond_the_third_is_a_rail(orin: Path) -> None:
    folder = only(orin, "sys/devices/**/1-0040/hwmon/hwmon1")
    (folder / "in1_input").write_text("4984\n")
    (folder / "curr1_input").write_text("1856\n")
    (folder / "in7_input").write_text("99999\n")
    reading = found(orin).read()
    assert reading.power_w == pytest.approx(4.984 * 1.856)
    assert set(reading.rails_w or {}) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}


def test_a_rail_can_be_picked_by_label_and_its_scope_says_what_it_is(
    orin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = found(orin, rail="vdd_cpu_gpu_cv")
    assert board.power is not None
    assert board.power.scope == "CPU+GPU+CV rail (VDD_CPU_GPU_CV), idle not subtracted"
    reading = board.read()
    assert reading.rails_w is not None
    assert reading.power_w == reading.rails_w["VDD_CPU_GPU_CV"]
    monkeypatch.setenv("CARD_POWER_RAIL", "VDD_SOC")
    board = found(orin)
    assert board.power is not None
    assert "VDD_SOC" in board.power.scope
    monkeypatch.setenv("CARD_POWER_RAIL", "GPU")
    with pytest.raises(BadInput, match="VDD_IN, VDD_CPU_GPU_CV, VDD_SOC"):
        found(orin)


def test_numbers_of_buses_and_monitors_do_not_matter(orin: Path) -> None:
    driver = orin / "sys/bus/i2c/drivers/ina3221"
    (driver / "1-0040").rename(driver / "11-0043")
    hwmon = only(orin, "sys/devices/**/1-0040/hwmon/hwmon1")
    hwmon.rename(hwmon.with_name("hwmon17"))
    board = found(orin)
    assert board.power is not None
    assert board.power.scope == "whole module (VDD_IN)"


def test_rails_are_found_through_the_class_of_monitors_alone(orin: Path) -> None:
    (orin / "sys/bus/i2c/drivers/ina3221/1-0040").unlink()
    assert [rail.label for rail in found(orin).rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_a_monitor_without_a_label_is_recorded_and_never_the_whole_board(tmp_path: Path) -> None:
    build(tmp_path, "orin-agx-jp6")
    own = found(tmp_path).read()
    unlabelled(tmp_path, "8-0041", 16, 1.2, "ina219")
    unlabelled(tmp_path, "8-0045", 17, 30.0)
    board = found(tmp_path)
    reading = board.read()
    assert reading.power_w == own.power_w
    assert reading.rails_w is not None
    assert reading.rails_w["ina219@8-0041"] == pytest.approx(1.2)
    assert reading.rails_w["ina226@8-0045"] == pytest.approx(30.0)
    assert board.power is not None
    assert board.power.scope.startswith("sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0")
    assert "recorded, not in the sum: ina219@8-0041, ina226@8-0045" in board.power.scope
    assert found(tmp_path, rail="ina226@8-0045").read().power_w == pytest.approx(30.0)  # unless the user says so


def test_the_ina238_of_thor_stands_at_the_input_though_it_has_no_label(tmp_path: Path) -> None:
    build(tmp_path, "thor-jp7")
    only(tmp_path, "sys/devices/**/2-0044/hwmon/hwmon4/in1_label").unlink()
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope == "whole board, carrier included (VIN)"
    unlabelled(tmp_path, "8-0045", 16, 90.0, "ina238")  # a second one: nothing tells which of them is the input's
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope.startswith("sum of VDD_GPU, VDD_CPU_SOC_MSS and VIN_SYS_5V0")


def test_of_two_rails_of_one_label_the_module_s_own_counts_and_both_are_recorded(tmp_path: Path) -> None:
    build(tmp_path, "orin-nano-jp6")
    own = found(tmp_path).read()
    carrier(tmp_path, "0-0041", 17, {"VDD_IN": 13.2, "VDD_5V": 2.0, "VDD_3V3": 0.3})  # an address before the module's
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope == "whole module (VDD_IN)"
    reading = board.read()
    assert reading.power_w == own.power_w
    assert reading.rails_w is not None
    assert reading.rails_w["VDD_IN"] == own.power_w
    assert reading.rails_w["VDD_IN@0-0041"] == pytest.approx(13.2)
    assert found(tmp_path, rail="VDD_IN@0-0041").read().power_w == pytest.approx(13.2)


def test_a_lone_total_on_a_carrier_s_monitor_is_not_that_of_a_module_whose_rails_are_on_others(tmp_path: Path) -> None:
    build(tmp_path, "orin-agx-jp6")
    own = found(tmp_path).read()
    carrier(tmp_path, "2-0045", 17, {"VDD_IN": 30.0, "VDD_SSD": 2.0})
    board = found(tmp_path)
    assert board.read().power_w == own.power_w
    assert board.power is not None
    assert board.power.scope.startswith(EXPECTED["orin-agx-jp6"][2])
    assert board.power.scope.endswith("recorded, not in the sum: VDD_IN@2-0045, VDD_SSD)")


def test_where_nothing_tells_two_rails_of_one_label_apart_the_user_is_asked(orin: Path) -> None:
    carrier(orin, "0-0041", 17, {"VDD_IN": 13.2, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 0.3})
    board = found(orin)
    assert board.power is None
    assert "VDD_IN@0-0041" in board.absent.reasons["power"]
    assert "VDD_IN@1-0040" in board.absent.reasons["power"]
    assert "CARD_POWER_RAIL=VDD_IN@" in board.absent.reasons["power"]
    assert len(board.read().rails_w or {}) == 6


def test_a_total_below_the_rails_behind_it_is_not_the_total(orin: Path) -> None:
    shown(orin, {"VDD_IN": 1.2, "VDD_CPU_GPU_CV": 5.0, "VDD_SOC": 2.0})
    board = found(orin)
    assert board.read().power_w == pytest.approx(7.0)
    assert board.power is not None
    assert board.power.scope == (
        "sum of VDD_CPU_GPU_CV and VDD_SOC (not the whole module; VDD_IN shows less than these, so it is not the total)"
    )
    shown(orin, {"VDD_IN": 6.9})  # within what two reads are apart
    board = found(orin)
    assert board.power is not None
    assert board.power.scope == "whole module (VDD_IN)"


@pytest.mark.parametrize(("share", "told"), [(1.0, False), (0.55, True)])
def test_a_total_that_falls_below_the_rails_behind_it_under_load_is_told_at_the_point(
    orin: Path, share: float, told: bool
) -> None:
    rig, current = Live(orin), only(orin, "sys/devices/**/hwmon1/curr1_input")
    seen = ""

    def lives(now_s: float, busy: bool) -> None:
        nonlocal seen
        rig.advance(now_s, busy)
        if busy and current.read_text() != seen:
            seen = f"{share * float(current.read_text()):.0f}\n"
            current.write_text(seen)
            rig._written.pop(current, None)

    clock = VirtualTime(lives)
    device = GpuDevice(found(orin, time=clock), None)
    point = steady_point(device, lambda: clock.elapse(0.1, busy=True)).point
    assert device.power is not None
    assert device.power.scope == "whole module (VDD_IN)"
    assert point.stopped_by.startswith("steady")
    assert any("the rails behind it (VDD_CPU_GPU_CV, VDD_SOC)" in note for note in point.notes) == told


@pytest.mark.parametrize("name", ["orin-agx-jp6", "xavier-agx-jp5", "xavier-agx-jp4"])
def test_rails_of_the_carrier_are_recorded_and_in_no_sum(name: str, tmp_path: Path) -> None:
    build(tmp_path, name)
    own = found(tmp_path).read()
    carrier(tmp_path, "7-0040", 17, {"VDD_12V_SENSE": 21.6, "VDD_3V3_SENSE": 1.0, "VDD_5V_SENSE": 4.5})
    board = found(tmp_path)
    reading = board.read()
    assert reading.power_w == own.power_w
    assert reading.rails_w is not None
    assert reading.rails_w["VDD_12V_SENSE"] == pytest.approx(21.6)
    assert board.power is not None
    assert board.power.scope.startswith(EXPECTED[name][2])
    assert board.power.scope.endswith("; recorded, not in the sum: VDD_12V_SENSE, VDD_3V3_SENSE, VDD_5V_SENSE)")


def test_a_carrier_fed_beside_the_module_adds_nothing_to_it(tmp_path: Path) -> None:
    build(tmp_path, "tx2-jp4")
    reading = found(tmp_path).read()
    assert reading.rails_w is not None
    assert 0 < reading.rails_w["VDD_MUX"] < reading.rails_w["VDD_IN"]  # a total of the kit would be above the module's
    assert reading.power_w == reading.rails_w["VDD_IN"]


def test_a_developer_kit_whose_monitor_of_the_total_is_not_bound_does_not_add_up_its_carrier(tmp_path: Path) -> None:
    build(tmp_path, "tx2-jp4")
    (tmp_path / "sys/bus/i2c/drivers/ina3221x/0-0041").unlink()
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope == (
        "sum of VDD_SYS_GPU, VDD_SYS_SOC and VDD_4V0_WIFI (this board has no rail of the whole module; "
        "recorded, not in the sum: VDD_MUX, VDD_5V0_IO_SYS, VDD_3V3_SYS)"
    )


def test_a_board_whose_labels_nobody_knows_says_how_to_choose_one(orin: Path) -> None:
    for old, new in (("VDD_IN", "MAIN"), ("VDD_CPU_GPU_CV", "BUCK_A"), ("VDD_SOC", "BUCK_B")):
        for place in orin.glob("sys/class/hwmon/hwmon*/in*_label"):
            if place.read_text().strip() == old:
                place.write_text(new + "\n")
    board = found(orin)
    assert board.power is None
    assert "MAIN, BUCK_A, BUCK_B" in board.absent.reasons["power"]
    assert "CARD_POWER_RAIL=MAIN" in board.absent.reasons["power"]
    assert set(board.read().rails_w or {}) == {"MAIN", "BUCK_A", "BUCK_B"}
    board = found(orin, rail="MAIN")
    assert board.power is not None
    assert board.power.scope == "rail (MAIN), idle not subtracted"


def test_a_sum_without_the_gpu_is_no_figure_of_the_board(tmp_path: Path) -> None:
    build(tmp_path, "orin-agx-jp6")
    only(tmp_path, "sys/devices/**/1-0040/hwmon/hwmon3/in1_label").write_text("\n")
    board = found(tmp_path)
    assert board.power is None
    assert "none of the GPU" in board.absent.reasons["power"]


def test_labels_are_known_in_small_letters_too(tmp_path: Path) -> None:
    build(tmp_path, "orin-agx-jp6")
    for place in tmp_path.glob("sys/class/hwmon/hwmon*/in*_label"):
        place.write_text(place.read_text().lower())
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope.startswith("sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0")


def test_a_board_nobody_has_seen_works_by_its_structure(tmp_path: Path) -> None:
    device = tmp_path / "sys/devices/platform/29000000.gb10b"
    node = device / "devfreq/29000000.gb10b"
    node.mkdir(parents=True)
    (device / "of_node").mkdir()
    (device / "of_node/name").write_bytes(b"gb10b\0")
    (node / "device").symlink_to("../..")
    for name, text in (("available_frequencies", "1200000000 600000000 300000000"), ("cur_freq", "600000000"),
                       ("min_freq", "300000000"), ("max_freq", "1200000000"), ("governor", "nvhost_podgov")):  # fmt: skip
        (node / name).write_text(text + "\n")
    (tmp_path / "sys/class/devfreq").mkdir(parents=True)
    (tmp_path / "sys/class/devfreq/29000000.gb10b").symlink_to(
        "../../devices/platform/29000000.gb10b/devfreq/29000000.gb10b"
    )
    chip = tmp_path / "sys/bus/i2c/drivers/ina3221/9-0047/hwmon/hwmon3"
    chip.mkdir(parents=True)
    for name, text in (("in1_label", "VDD_NEW"), ("in1_input", "12000"), ("curr1_input", "1500")):
        (chip / name).write_text(text + "\n")
    board = found(tmp_path)
    assert board.supported_hz() == (300e6, 600e6, 1200e6)
    assert board.current_hz() == 600e6
    assert board.read().power_w == pytest.approx(18.0)
    assert board.power is not None
    assert "VDD_NEW" in board.power.scope
    assert board.board is None


@pytest.mark.parametrize("odd", [b"NVIDIA Jetson\0 \x1b[2J\xff Nano\0", b"NVIDIA Jetson " + b"X" * 4080])
def test_a_name_and_a_label_that_nobody_would_give_are_shown_and_steer_no_terminal(
    odd: bytes, orin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (orin / "sys/firmware/devicetree/base/model").write_bytes(odd)
    label = next(path for path in orin.glob("sys/class/hwmon/*/in*_label") if path.read_text().strip() == "VDD_IN")
    label.write_bytes(odd)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(orin))
    show_devices()
    told = capsys.readouterr().out
    assert "NVIDIA Jetson" in told
    assert "cpu: " in told
    assert told.replace("\n", "").isprintable()
    assert len(found(orin).power.scope) <= MAX_TEXT


@pytest.mark.parametrize("folder", ["sys/devices/system/cpu", "sys/class/devfreq", "sys/class/thermal"])
def test_a_folder_that_this_user_may_not_read_hides_no_device(
    folder: str, orin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = Path.glob

    def refused(path: Path, pattern: str) -> Iterator[Path]:
        if path.is_relative_to(orin / folder):
            raise PermissionError(13, "Permission denied", str(path))
        return glob(path, pattern)

    monkeypatch.setenv("CARD_SYSFS_ROOT", str(orin))
    monkeypatch.setattr(Path, "glob", refused)  # root, who may test, can read any
    assert [row.name for row in list_devices()] == ["orin-nx", "cpu"]


def test_a_pipe_in_a_tree_or_among_the_journals_keeps_nobody_waiting(
    orin: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("CARD_STATE_DIR", str(state))
    key = found(orin).key
    zones = [path for path in orin.glob("sys/devices/virtual/thermal/*/temp") if path.is_file()]
    for path in (*zones, orin / "sys/kernel/debug/bpmp/debug/clk/emc/rate", state / f"{key}.journal"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    words = [sys.executable, "-c", "from cli import profile_main; profile_main()", "devices", "--sysfs-root", str(orin)]
    devices = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "orin-nx: " in devices.stdout


def test_other_makers_boards_and_plain_machines_are_no_jetsons(orin: Path, tmp_path: Path) -> None:
    (orin / "sys/firmware/devicetree/base/compatible").write_bytes(b"radxa,rock-5b\0rockchip,rk3588\0")
    assert find_jetson(orin) is None
    assert find_jetson(tmp_path / "nothing") is None


def test_reads_that_fail_are_not_told_and_do_not_end_the_run(orin: Path) -> None:
    board = found(orin)
    for name in ("sys/devices/**/hwmon1/curr1_input", "sys/devices/platform/bus@0/17000000.gpu/devfreq/*/cur_freq"):
        path = only(orin, name)
        path.unlink()
        path.mkdir()  # reading a folder fails, for root too
    zone = next(
        z for z in (orin / "sys/devices/virtual/thermal").glob("thermal_zone*") if "gpu" in (z / "type").read_text()
    )
    (zone / "temp").write_text("-256000\n")  # what a zone without supply says
    reading = board.read()
    assert (reading.power_w, reading.frequency_hz, reading.temperature_c) == (None, None, None)
    assert found(orin).read().temperature_c is not None  # by the zone of the whole chip
    assert set(reading.rails_w or {}) == {"VDD_CPU_GPU_CV", "VDD_SOC"}
    again = found(orin)  # opened like this, there is no figure that would mean the same
    assert again.power is None
    assert "VDD_IN does not answer, though its monitor (INA3221, 1-0040) is there" in again.absent.reasons["power"]
    assert found(orin, rail="VDD_SOC").read().power_w is not None
    only(orin, "sys/devices/**/hwmon1/in1_enable").write_text("0\n")  # somebody has switched the channel off
    again = found(orin)
    assert again.power is not None
    assert again.power.scope == "sum of VDD_CPU_GPU_CV and VDD_SOC (not the whole module; VDD_IN is switched off)"


@pytest.mark.parametrize("label", ["VDD_GPU_SOC", "VIN_SYS_5V0"])
def test_a_rail_that_is_silent_when_the_board_is_opened_is_waited_for_and_not_left_out(
    label: str, tmp_path: Path
) -> None:
    build(tmp_path, "orin-agx-jp6")
    current = silenced(tmp_path, label)

    def answers_again(now_s: float, _: bool) -> None:
        if now_s > 1000.3 and current.is_dir():
            current.rmdir()
            current.write_text("400\n")

    board = found(tmp_path, time=VirtualTime(answers_again))
    assert board.power is not None
    assert board.power.scope == (
        "sum of VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0 (this board has no rail of the whole module; "
        "VDDQ_VDD2_1V8AO is inside VIN_SYS_5V0)"
    )
    silenced(tmp_path, label)
    clock = VirtualTime(lambda now_s, busy: None)
    board = found(tmp_path, time=clock)
    assert board.power is None
    assert f"{label} does not answer" in board.absent.reasons["power"]
    assert clock.now_s() - 1000 == pytest.approx(1.0)


def test_monitors_that_are_bound_anew_during_a_run_are_found_again(tmp_path: Path) -> None:
    build(tmp_path, "orin-nano-jp6")
    carrier(tmp_path, "0-0041", 17, {"VDD_IN": 13.2, "VDD_5V": 2.0})
    clock = VirtualTime(lambda now_s, busy: None)
    board = found(tmp_path, time=clock)
    own_w = board.read().power_w
    assert own_w is not None
    folder = only(tmp_path, "sys/devices/**/1-0040/hwmon/hwmon1")
    gone = folder.rename(folder.parent.parent / "unbound")
    (tmp_path / "sys/class/hwmon/hwmon1").unlink()
    with clock.watching(board.read, 0.1) as readings:
        clock.elapse(5.0, busy=True)
    assert {reading.power_w for reading in readings} == {None}  # and not those of the carrier, which has the same label
    gone.rename(folder.with_name("hwmon9"))
    with clock.watching(board.read, 0.1) as readings:
        clock.elapse(3.0, busy=True)
    assert readings[-1].power_w == own_w
    assert (readings[-1].rails_w or {})["VDD_IN@0-0041"] == pytest.approx(13.2)
    assert board.power is not None
    assert board.power.scope == "whole module (VDD_IN)"


def test_a_rail_of_an_engine_that_is_off_may_be_silent(tmp_path: Path) -> None:
    build(tmp_path, "xavier-agx-jp5")
    silenced(tmp_path, "CV")
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope == (
        "sum of GPU, CPU, SOC, VDDRQ and SYS5V (this board has no rail of the whole module; channel CV of the monitor shows no current)"
    )


@pytest.mark.parametrize(
    ("name", "file", "says"),
    [
        ("orin-nano-jp6", "1-0040/hwmon/hwmon1/curr1_input", "VDD_IN of the monitor shows no current"),
        ("orin-agx-jp6", "1-0040/hwmon/hwmon3/curr3_input", "VIN_SYS_5V0 of the monitor shows no current"),
        ("orin-agx-jp6", "1-0040/hwmon/hwmon3/in1_input", "VDD_GPU_SOC of the monitor shows no voltage"),
        ("tx2-jp4", "0-0041/iio:device1/in_*0_input", "VDD_IN of the monitor shows no voltage and no current"),
    ],
)
@pytest.mark.parametrize("unreadable", [False, True])
def test_a_labelled_channel_that_shows_nothing_is_named_and_nothing_stands_in_for_it(
    tmp_path: Path, name: str, file: str, says: str, unreadable: bool
) -> None:
    build(tmp_path, name)
    for path in list(tmp_path.glob(f"sys/devices/**/{file}")):
        path.unlink()
        if unreadable and "power" not in path.name:
            path.mkdir()
    board = found(tmp_path)
    assert board.power is None
    label = says.partition(" ")[0]
    assert f"channel {says}" in board.absent.reasons["power"]
    assert board.absent.reasons[f"rail {label}"] == f"channel {says}"
    assert label not in (board.read().rails_w or {})


def test_a_sum_names_a_channel_that_shows_no_current_and_a_total_does_without_it(tmp_path: Path) -> None:
    build(tmp_path / "agx", "orin-agx-jp6")
    only(tmp_path / "agx", "sys/devices/**/1-0040/hwmon/hwmon3/curr2_input").unlink()
    board = found(tmp_path / "agx")
    assert board.power is not None
    assert board.power.scope == (
        "sum of VDD_GPU_SOC and VIN_SYS_5V0 (this board has no rail of the whole module; VDDQ_VDD2_1V8AO is inside VIN_SYS_5V0; "
        "channel VDD_CPU_CV of the monitor shows no current)"
    )
    build(tmp_path / "nano", "orin-nano-jp6")
    only(tmp_path / "nano", "sys/devices/**/hwmon1/curr3_input").unlink()
    board = found(tmp_path / "nano")
    assert board.power is not None
    assert board.power.scope == "whole module (VDD_IN)"
    assert board.absent.reasons == {"rail VDD_SOC": "channel VDD_SOC of the monitor shows no current"}


def test_a_monitor_of_three_channels_that_multiplies_itself_has_three_rails(tmp_path: Path) -> None:
    build(tmp_path, "orin-agx-jp6")
    own = found(tmp_path).read()
    for volts in tmp_path.glob("sys/devices/**/1-004?/hwmon/hwmon*/in[123]_input"):
        amperes = volts.with_name(volts.name.replace("in", "curr", 1))
        microwatts = float(volts.read_text()) * float(amperes.read_text())
        volts.with_name(volts.name.replace("in", "power", 1)).write_text(f"{microwatts:.0f}\n")
        amperes.unlink()
    board = found(tmp_path)
    assert board.power is not None
    assert board.power.scope.startswith(EXPECTED["orin-agx-jp6"][2])
    assert board.read().rails_w == pytest.approx(own.rails_w)


def test_a_total_of_zero_watts_is_no_measurement(orin: Path) -> None:
    def shows_nothing(*labels: str) -> None:
        for label in orin.glob("sys/class/hwmon/hwmon*/in*_label"):
            if label.read_text().strip() in labels:
                label.with_name(label.name.replace("in", "curr").replace("_label", "_input")).write_text("0\n")

    shows_nothing("VDD_IN")
    board = find_jetson(orin)
    assert board is not None
    assert board.power is not None
    assert board.power.scope == "sum of VDD_CPU_GPU_CV and VDD_SOC (not the whole module; VDD_IN shows 0 W)"
    shows_nothing("VDD_CPU_GPU_CV", "VDD_SOC")
    board = find_jetson(orin)
    assert board is not None
    assert board.power is None
    assert "shows any watts" in board.absent.reasons["power"]


def test_a_gpu_without_supply_has_no_clock(orin: Path) -> None:
    only(orin, "sys/devices/**/17000000.gpu/devfreq/17000000.gpu/cur_freq").write_text("0\n")
    assert found(orin).current_hz() is None


def test_only_clocks_of_the_power_mode_are_offered(orin: Path) -> None:
    assert found(orin).supported_hz()[-1] == 918e6
    (orin / "var/lib/nvpmodel/status").write_text("pmode:0001\n")
    board = found(orin)
    assert board.power_mode() == "15W (1)"
    assert board.supported_hz()[-1] == 612e6


def test_a_power_mode_or_core_that_changes_during_the_run_is_told(orin: Path) -> None:
    device = GpuDevice(found(orin), None)
    device.unchanged()
    (orin / "var/lib/nvpmodel/status").write_text("pmode:0002\n")
    with pytest.raises(MissingHardware, match=r"power mode changed while we measured, from MAXN \(0\) to 10W \(2\)"):
        device.unchanged()
    (orin / "var/lib/nvpmodel/status").write_text("pmode:0000\n")
    device.unchanged()
    (orin / "sys/devices/system/cpu/online").write_text("0-3\n")
    with pytest.raises(MissingHardware, match="0-7 to 0-3"):
        device.unchanged()


def test_heat_is_seen_where_it_binds(orin: Path) -> None:
    board = found(orin)
    thermal = {
        (folder / "type").read_text().strip(): folder
        for folder in (orin / "sys/devices/virtual/thermal").glob("cooling_device*")
    }
    clock = only(orin, "sys/devices/**/17000000.gpu/devfreq/17000000.gpu/cur_freq")
    (thermal["pwm-fan"] / "cur_state").write_text("9\n")
    (thermal["cpu-throttle-alert"] / "cur_state").write_text("1\n")
    assert not board.read().throttled
    (thermal["devfreq-17000000.gpu"] / "cur_state").write_text("2\n")  # allows the third highest clock
    clock.write_text("714000000\n")
    assert board.read().throttled
    clock.write_text("306000000\n")  # locked below what heat allows
    assert not board.read().throttled
    (thermal["gpu-throttle-alert"] / "cur_state").write_text("1\n")
    assert board.read().throttled


def test_the_numbered_cooling_device_of_older_kernels_is_the_gpus(orin: Path) -> None:
    (kind,) = [f for f in orin.glob("sys/class/thermal/cooling_device*/type") if "devfreq" in f.read_text()]
    kind.write_text("thermal-devfreq-0\n")
    kind.with_name("cur_state").write_text("2\n")
    clock = only(orin, "sys/devices/**/17000000.gpu/devfreq/17000000.gpu/cur_freq")
    clock.write_text("714000000\n")
    assert found(orin).read().throttled


def test_over_current_events_cap_and_lone_spikes_do_not(orin: Path) -> None:
    rig = Live(orin)
    clock = VirtualTime(rig.advance)
    board = found(orin, time=clock)
    events = {n: only(orin, f"sys/devices/platform/soctherm-oc-event/hwmon/*/oc{n}_event_cnt") for n in (1, 2, 3)}
    assert not board.read().capped  # counted before
    events[1].write_text("1\n")
    assert board.read().capped
    assert not board.read().capped
    clock.wait(0.1)
    events[3].write_text("2\n")
    assert not board.read().capped  # 20 a second: 0.4 % of the time
    clock.wait(0.1)
    events[3].write_text("42\n")
    assert board.read().capped
    only(orin, "sys/devices/platform/soctherm-oc-event/hwmon/*/oc1_throt_en").write_text("0\n")
    events[1].write_text("5\n")
    assert not board.read().capped


def test_conditions_tell_what_figures_depend_on(tmp_path: Path) -> None:
    build(tmp_path / "thor", "thor-jp7")
    told = found(tmp_path / "thor").conditions()
    assert told["memory clock"] == "3199 MHz"
    assert told["fan"] == "64 of 255, 1786 rpm"
    assert told["CPU cores online"] == "0-13"
    assert told["CPU clock of cores 0 1 2 3"] == "1190.4 MHz (729.6-1984, schedutil)"
    assert told["jetson_clocks"] == "off"
    assert told["gpu-nvd-0 clock"] == "315 MHz"
    build(tmp_path / "nano", "nano-jp4")
    board = found(tmp_path / "nano")
    told = {**board.conditions(), **board.settings()}
    assert told["fan"] == "80 of 255, 2480 rpm"
    assert told["memory clock"] == "1600 MHz"
    assert told["power mode"] == "MAXN (0)"


def test_clocks_are_pinned_where_those_of_all_cores_online_are(orin: Path) -> None:
    def pin(*limits: Path) -> None:
        for low in limits:
            low.write_text(low.with_name(low.name.replace("min", "max")).read_text())

    policies = sorted((orin / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    pin(orin / "sys/class/devfreq/17000000.gpu/min_freq", policies[0] / "scaling_min_freq")
    assert found(orin).conditions()["jetson_clocks"] == "off"
    for name in ("scaling_min_freq", "scaling_max_freq"):  # a group of cores that is offline does not answer
        (policies[1] / name).unlink()
        (policies[1] / name).mkdir()
    assert found(orin).conditions()["jetson_clocks"] == "on (clocks pinned)"


@pytest.mark.parametrize(("shown", "told"), [("68000000", "68 MHz"), ("68000", "68 MHz"), ("4266000", "4266 MHz")])
def test_a_memory_clock_is_known_in_hertz_and_in_kilohertz(tmp_path: Path, shown: str, told: str) -> None:
    build(tmp_path, "thor-jp7")
    (tmp_path / "sys/class/devfreq/bwmgr/cur_freq").write_text(shown)
    assert found(tmp_path).conditions()["memory clock"] == told


def test_the_memorys_clock_that_only_root_may_read_is_read_on_after_root_is_given_up(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up")
    program = (
        "import os, sys; from pathlib import Path; from profiler.hardware.jetson import find_jetson\n"
        "tree = Path(sys.argv[1])\n"
        "before = find_jetson(tree)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(before.conditions()['memory clock'], '|', find_jetson(tree).conditions()['memory clock'])"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        tree = Path(folder)
        build(tree, "orin-nx-jp6")
        tree.chmod(0o755)
        (tree / "sys/kernel/debug").chmod(0o700)  # as the kernel has it
        home = Path(__file__).resolve().parents[2]
        result = subprocess.run(
            [sys.executable, "-c", program, folder], cwd=home, capture_output=True, text=True, check=False
        )
    assert result.stdout == "2133 MHz | readable by root only\n", result.stderr


def test_thor_locks_the_cluster_that_runs_layers_and_not_the_video_engine(tmp_path: Path) -> None:
    build(tmp_path, "thor-jp7")
    target = found(tmp_path).clock_target()
    assert target == {
        "kind": "sysfs",
        "nodes": [
            {
                "min": str(tmp_path / "sys/class/devfreq/gpu-gpc-0/min_freq"),
                "max": str(tmp_path / "sys/class/devfreq/gpu-gpc-0/max_freq"),
                "unit_hz": 1,
            }
        ],
    }


def test_old_releases_say_what_works_on_them(tmp_path: Path) -> None:
    for name, says in (("tx2-jp4", "Python 3.6"), ("orin-nx-jp5", "Python 3.8")):
        build(tmp_path / name, name)
        reason = found(tmp_path / name).absent.reasons["layers"]
        assert says in reason
        assert "--load-command" in reason
    build(tmp_path / "new", "orin-nx-jp6")
    assert "layers" not in found(tmp_path / "new").absent.reasons


def test_memory_is_what_is_available_now(orin: Path) -> None:
    assert found(orin).memory_bytes() == 15_400_000 // 5 * 4 * 1024


def test_a_containers_memory_limit_counts_where_it_is_less(orin: Path) -> None:
    (orin / "proc/self").mkdir()
    (orin / "proc/self/cgroup").write_text("0::/\n")
    limit = orin / "sys/fs/cgroup/memory.max"
    limit.parent.mkdir(parents=True)
    limit.write_text(f"{2 * 2**30}\n")
    assert found(orin).memory_bytes() == 2 * 2**30
    limit.write_text(f"{64 * 2**30}\n")
    assert found(orin).memory_bytes() == 15_400_000 // 5 * 4 * 1024


def test_the_clock_is_locked_and_given_back_through_the_files(
    orin: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(orin))
    monkeypatch.setenv("CARD_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    rig = Live(orin)
    clock = VirtualTime(rig.advance)
    board = found(orin, time=clock)
    node = orin / "sys/class/devfreq/17000000.gpu"
    assert board.clocks is not None
    with board.clocks.held():
        board.clocks.lock(510e6)
        assert (node / "min_freq").read_text().strip() == "510000000"
        assert (node / "max_freq").read_text().strip() == "510000000"
        clock.elapse(1.0, busy=True)
        assert board.current_hz() == pytest.approx(510e6)
    assert (node / "min_freq").read_text().strip() == "306000000"
    assert (node / "max_freq").read_text().strip() == "918000000"


@pytest.mark.parametrize("name", ["nano-jp4", "xavier-agx-jp5", "orin-agx-jp6", "thor-jp7"])
def test_the_rig_shows_its_own_truth_through_the_sensors(name: str, tmp_path: Path) -> None:
    build(tmp_path, name)
    rig = Live(tmp_path)
    clock = VirtualTime(rig.advance)
    board = found(tmp_path, time=clock)
    node = rig.node
    for hertz in (board.supported_hz()[2], board.supported_hz()[-1]):
        (node / "max_freq").write_text(f"{hertz:.0f}\n")
        (node / "min_freq").write_text(f"{hertz:.0f}\n")
        clock.elapse(400, busy=True)
        with clock.watching(board.read, 0.1) as readings:
            clock.elapse(60, busy=True)
        watts = [r.power_w for r in readings if r.power_w is not None]
        assert board._figure is not None
        truth = rig.steady_w(hertz, tuple(rail.label for rail in board._figure.rails))
        assert sum(watts) / len(watts) == pytest.approx(truth, rel=0.01)
        assert board.current_hz() == pytest.approx(hertz)


def test_the_tree_lives_by_the_wall_clock_under_a_program_that_loads_it(orin: Path) -> None:
    root = Path(__file__).resolve().parents[2]

    def rig(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tests.rigs.sysfs", str(orin), *words], cwd=root)

    board = found(orin)
    idle = board.read().power_w
    live, load = rig("--live", "--seconds", "20"), rig("--load", "--seconds", "20")
    try:
        until = time.monotonic() + 10
        while (board.current_hz() or 0) < 900e6 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        assert board.current_hz() == pytest.approx(918e6, rel=0.02)
        watts = board.read().power_w
        assert idle is not None
        assert watts is not None
        assert watts > 1.5 * idle
        load.terminate()
        load.wait(10)
        until = time.monotonic() + 10
        while (board.current_hz() or 0) > 310e6 and time.monotonic() < until:
            time.sleep(0.05)
        assert board.current_hz() == pytest.approx(306e6, rel=0.02)
    finally:
        for process in (live, load):
            process.terminate()
            process.wait(10)
