"""GPUs of this machine by their names: NVML's rig for the cards, written-down answers for what torch.cuda would say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from profiler.hardware import BadInput, MissingHardware, list_devices, open_device
from tests.rigs.nvml import Rig, ada, volta, why_no_rig
from tests.rigs.sysfs import build


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A machine with a V100 and an RTX 4060 Ti, which NVML numbers 0 and 1."""
    if why_no_rig():
        pytest.skip(str(why_no_rig()))
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    (root / "dev/nvidiactl").touch()
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(root))
    with Rig(tmp_path, [volta(0), ada(1)], wall_speed=1.0) as rig:
        yield rig


def torch_sees(
    monkeypatch: pytest.MonkeyPatch, names: list[str], uuids: list[str | None], *, integrated: bool = False
) -> None:
    """torch.cuda as it would answer on a machine with these GPUs, in its own order."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=names[index], uuid=uuids[index], is_integrated=integrated),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (7 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)


def test_a_card_is_followed_from_nvml_to_cuda_by_uuid(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [rig.uuid(1).removeprefix("GPU-"), rig.uuid(0).removeprefix("GPU-")]
    torch_sees(monkeypatch, ["NVIDIA GeForce RTX 4060 Ti", "Tesla V100-SXM2-32GB"], plain)
    card = open_device("rtx-4060ti")
    assert (card.torch_device, card.name, card.default_role) == ("cuda:0", "rtx-4060ti-1", "server")
    assert open_device("nvml:1").torch_device == "cuda:0"
    assert open_device("nvml:0").torch_device == open_device(f"nvml:{rig.uuid(0)}").torch_device == "cuda:1"
    hardware = card.describe()
    assert (hardware.kind, hardware.catalog, hardware.cores) == ("cuda", "rtx-4060ti", 4352)
    assert hardware.conditions["uuid"] == rig.uuid(1)
    assert hardware.clocks is not None
    assert (hardware.clocks.min_hz, hardware.clocks.max_hz) == (210e6, 3105e6)
    assert hardware.power_cap_w == 200.0
    assert "layers" not in card.absent.reasons
    assert [row.name for row in list_devices()] == ["rtx-4060ti-1", "tesla-v100-sxm2-32gb-0", "cpu"]


def test_a_card_that_the_catalog_does_not_have_is_used_without_cores(tmp_path: Path) -> None:
    if why_no_rig():
        pytest.skip(str(why_no_rig()))
    laptop = ada()
    laptop.name = b"NVIDIA GeForce RTX 4060 Laptop GPU"
    with Rig(tmp_path, [laptop], wall_speed=1.0):
        card = open_device("nvml:0")
        assert card.name == "nvidia-geforce-rtx-4060-laptop-gpu"
        hardware = card.describe()
        assert (hardware.cores, hardware.flops_per_core_cycle, hardware.catalog) == (None, None, None)
        assert "unknown" in str(hardware.source)


def test_a_name_and_a_driver_that_are_no_utf_8_are_read_as_far_as_they_are(tmp_path: Path) -> None:
    if why_no_rig():
        pytest.skip(str(why_no_rig()))
    odd = ada()
    odd.name = b"NVIDIA \xff RTX"
    with Rig(tmp_path, [odd], wall_speed=1.0) as rig:
        rig.machine.driver = b"580.65\xff"
        card, cpu = list_devices()
        assert (card.description, cpu.name) == ("NVIDIA \ufffd RTX", "cpu")
        assert open_device("nvml:0").describe().software["driver"] == "580.65\ufffd"


def test_a_card_that_torch_cannot_use_still_gives_watts_and_clocks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    card = open_device("nvml:1")
    assert card.torch_device is None
    assert "--load-command" in card.absent.reasons["layers"]
    assert card.power is not None
    assert card.clocks is not None
    with card.monitor(0.05) as readings:
        card.load(lambda: card.wait(0.3))()
    assert readings[-1].power_w == pytest.approx(19.6, rel=0.1)
    assert readings[-1].frequency_hz == 210e6
    row = next(row for row in list_devices() if row.name == card.name)
    assert "W now" in row.works["power"]
    assert "194 steps can be locked" in row.works["clocks"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    row = next(row for row in list_devices() if row.name == card.name)
    assert "as root" in row.missing["clocks"]
    assert "--clocks current" in row.missing["clocks"]


def test_a_name_is_one_cards_alone_whichever_others_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why_no_rig():
        pytest.skip(str(why_no_rig()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with Rig(tmp_path, [ada(0), ada(1), ada(2)], wall_speed=1.0) as rig:

        def listed() -> list[str]:
            return [row.name for row in list_devices()]

        assert listed() == ["rtx-4060ti-0", "rtx-4060ti-1", "rtx-4060ti-2", "cpu"]
        rig.card(1).lost = 1
        assert listed() == ["rtx-4060ti-0", "rtx-4060ti-2", "nvml:1", "cpu"]
        (lost,) = [row for row in list_devices() if row.name == "nvml:1"]
        assert "the GPU is lost" in lost.missing["layers"]
        assert open_device("nvml:2").name == "rtx-4060ti-2"
        rig.card(0).lost = 1
        assert listed() == ["rtx-4060ti-2", "nvml:0", "nvml:1", "cpu"]
        rig.card(2).lost = 1
        with pytest.raises(MissingHardware, match=r"which has nvml:0: the GPU is lost.*nvml:2: the GPU is lost"):
            open_device("rtx-4060ti")


def test_of_several_cards_of_a_name_the_one_taken_is_told_with_how_to_name_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if why_no_rig():
        pytest.skip(str(why_no_rig()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with Rig(tmp_path, [volta(0), ada(1), ada(2)], wall_speed=1.0) as rig:
        assert open_device("rtx-4060ti").name == "rtx-4060ti-1"
        told = capsys.readouterr()
        assert told.out == ""
        assert "rtx-4060ti-1 is taken" in told.err
        other = re.search(r"rtx-4060ti-2 \(--device (nvml:\S+)\)", told.err)
        assert other is not None
        assert open_device(other[1]).name == "rtx-4060ti-2"
        rig.card(2).lost = 1
        open_device("rtx-4060ti")
        assert capsys.readouterr().err == ""


def test_a_card_that_torch_is_not_shown_leaves_the_others_names_as_they_are(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_sees(monkeypatch, ["NVIDIA GeForce RTX 4060 Ti"], [rig.uuid(1).removeprefix("GPU-")])
    assert [row.name for row in list_devices()] == ["rtx-4060ti-1", "tesla-v100-sxm2-32gb-0", "cpu"]
    torch_sees(monkeypatch, ["NVIDIA GeForce RTX 4060 Ti"], [None])  # an old torch does not tell which card it is
    names = [row.name for row in list_devices()]
    assert len(set(names)) == len(names) == 4


def test_a_power_limit_that_is_changed_meanwhile_ends_the_run(rig: Rig) -> None:
    card = open_device("nvml:1")
    card.unchanged()
    rig.card(1).cap_w = 150.0
    with pytest.raises(MissingHardware, match="power limit changed while we measured, from 200 W to 150 W"):
        card.unchanged()


def test_a_power_limit_that_is_not_told_for_a_moment_is_no_change(rig: Rig) -> None:
    card = open_device("nvml:1")
    for code in (999, 3):
        rig.fail("nvmlDeviceGetEnforcedPowerLimit", code, times=1)
        card.unchanged()
    rig.card(1).cap_w = 150.0
    with pytest.raises(MissingHardware, match="from 200 W to 150 W"):
        card.unchanged()


def test_names_that_no_card_has_are_refused_with_the_way_out(rig: Rig) -> None:
    with pytest.raises(MissingHardware, match="NVML numbers the cards here 0 to 1"):
        open_device("nvml:7")
    with pytest.raises(MissingHardware, match="no such card"):
        open_device("nvml:GPU-aaaaaaaa-0000-0000-0000-000000000000")
    with pytest.raises(MissingHardware, match=r"which has .*V100.*; run on the board itself, or simulate it"):
        open_device("rtx-4090")
    for which in ("", "\u00b2", "\u0663", "-1", "9" * 5000):
        with pytest.raises(BadInput, match="expected nvml:INDEX"):
            open_device(f"nvml:{which}")


def test_without_nvml_the_card_works_and_what_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    torch_sees(monkeypatch, ["NVIDIA H200"], ["11111111-2222-3333-4444-555555555555"])
    device = open_device("h200")
    assert device.name == "h200"
    assert device.describe().clocks is None
    assert device.describe().memory_bytes == 8 * 2**30
    for missing in ("clock", "clocks", "power"):
        assert "nvidia-ml-py" in device.absent.reasons[missing]
    with device.monitor(0.01) as readings:
        device.wait(0.05)
    assert readings[0].power_w is None
    with pytest.raises(MissingHardware, match="nvidia-ml-py"):
        open_device("nvml:0")


def test_a_jetson_is_named_by_its_device_tree_and_shares_its_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "dev/nvhost-gpu": "",
        "proc/meminfo": "MemAvailable:    4000 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
        "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1300500000\n",
        "sys/class/devfreq/bwmgr/cur_freq": "3199000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    torch_sees(monkeypatch, ["Orin"], [None], integrated=True)
    device = open_device("orin-agx")
    hardware = device.describe()
    assert (device.name, device.torch_device, device.default_role) == ("orin-agx", "cuda:0", "device")
    assert device.current_hz() == 612e6
    assert hardware.memory_bytes == 4000 * 1024
    assert hardware.clocks is not None
    assert hardware.clocks.supported_hz == [306e6, 612e6, 1300.5e6]
    assert "power monitor" in device.absent.reasons["power"]


def test_a_board_is_found_by_its_plain_name_in_its_faster_power_mode_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path, "orin-nano-jp6")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    assert open_device("orin-nano").name == open_device("orin-nano-super").name == "orin-nano-super"
    with pytest.raises(MissingHardware, match=r"which has .*\(--device orin-nano-super\)"):
        open_device("orin-nx")


def test_a_board_whose_name_a_container_hides_says_so_and_not_that_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path, "orin-agx-jp6")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    (tmp_path / "sys/firmware").rename(tmp_path / "hidden")
    assert open_device("auto", timed=False).name == "jetson"
    with pytest.raises(
        MissingHardware, match=r"device tree is hidden.*--device auto.* -v /sys/firmware:/sys/firmware:ro"
    ):
        open_device("orin-agx")
    with pytest.raises(MissingHardware, match="no NVIDIA GeForce RTX 4060 Ti"):
        open_device("rtx-4060ti")
    (tmp_path / "hidden").rename(tmp_path / "sys/firmware")
    (tmp_path / "proc/device-tree").unlink()  # as it is with the volume
    assert open_device("orin-agx").name == "orin-agx"


def test_the_name_of_a_family_opens_its_smaller_modules_too_and_theirs_not_the_larger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path / "small", "orin-agx-32gb-jp6")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path / "small"))
    assert open_device("orin-agx").name == open_device("orin-agx-32gb").name == "orin-agx-32gb"
    assert open_device("orin-agx").describe().cores == 1792
    build(tmp_path / "large", "orin-agx-jp6")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path / "large"))
    with pytest.raises(MissingHardware, match=r"\(--device orin-agx\)"):
        open_device("orin-agx-32gb")


def test_a_gpu_whose_supply_is_off_at_rest_keeps_its_range_of_clocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path, "orin-nano-jp6")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("0\n")
    clocks = open_device("orin-nano").describe().clocks
    assert clocks is not None
    assert (clocks.min_hz, clocks.max_hz) == (306e6, 1020e6)


def test_auto_on_a_jetson_is_its_gpu_even_where_its_layers_cannot_be_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(tmp_path, "nano-jp4")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    assert open_device("auto").name == open_device("auto", timed=False).name == "nano"
    assert "Python 3.6" in open_device("auto").absent.reasons["layers"]


def test_auto_is_a_card_without_torch_only_where_no_layers_are_timed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device("auto").name == "cpu"
    assert open_device("auto", timed=False).name == "tesla-v100-sxm2-32gb-0"


def test_what_does_not_answer_now_is_listed_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build(tmp_path, "orin-nano-jp6")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("0\n")
    for zone in (tmp_path / "sys/class/thermal").glob("thermal_zone*/temp"):
        if zone.is_file():  # one never answers
            zone.write_text("-256000\n")
    board, _ = list_devices()
    assert {"clock", "temperature"} <= set(board.missing)
    assert "power" in board.works


def test_who_asks_for_a_jetson_is_told_what_a_jetson_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    with pytest.raises(MissingHardware, match=r"/sys/class/devfreq.*JetPack.*--device emulated:orin-agx") as jetson:
        open_device("orin-agx")
    assert "NVML" not in str(jetson.value)
    assert "driver" not in str(jetson.value)
    with pytest.raises(MissingHardware, match="no NVIDIA driver is loaded"):
        open_device("rtx-4090")
