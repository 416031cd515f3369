"""GPUs through torch, with torch's answers and the kernel's files written down: what is made of them, not that they are so."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from profiler.hardware import BadInput, MissingHardware, list_devices, open_device

UUIDS = ("11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000")


def machine(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    names: list[str],
    *,
    integrated: bool = False,
    nvml: object | None = None,
) -> None:
    """A machine with these GPUs, as torch.cuda tells it."""
    for path in ("dev/nvidiactl", "proc/meminfo"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("MemAvailable:    4000 kB\n")
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(root))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=names[index], uuid=UUIDS[index], is_integrated=integrated),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (7 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: not installed


class Nvml(SimpleNamespace):
    """NVML that numbers the two GPUs the other way round."""

    NVML_CLOCK_GRAPHICS = 0

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index > 1:
            raise self.NVMLError("Invalid Argument")
        return f"GPU-{UUIDS[1 - index]}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:
        return handle.encode()

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 2520

    def nvmlDeviceGetSupportedMemoryClocks(self, handle: str) -> list[int]:
        return [9001, 405]

    def nvmlDeviceGetSupportedGraphicsClocks(self, handle: str, memory: int) -> list[int]:
        assert memory == 9001
        return [3105, 2520, 210]


def test_a_card_of_the_catalog_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path, ["NVIDIA GeForce RTX 4060", "NVIDIA GeForce RTX 4060 Ti"], nvml=Nvml())
    device = open_device("rtx-4060ti")
    assert (device.torch_device, device.name, device.default_role) == ("cuda:1", "rtx-4060ti-1", "server")
    hardware = device.describe()
    assert (hardware.kind, hardware.catalog, hardware.cores) == ("cuda", "rtx-4060ti", 4352)
    assert hardware.memory_bytes == 8 * 2**30
    assert hardware.clocks is not None
    assert hardware.clocks.supported_hz == [210e6, 2520e6, 3105e6]
    assert hardware.clocks.operating_hz == device.current_hz() == 2520e6
    assert {"power", "clocks"} <= set(device.absent.reasons)
    with device.monitor(0.01) as readings:
        device.load(lambda: device.wait(0.05))()
    assert readings[0].frequency_hz == 2520e6
    assert readings[0].power_w is None


def test_nvml_numbers_are_followed_by_uuid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path, ["NVIDIA H200", "NVIDIA Unheard Of 9"], nvml=Nvml())
    assert open_device("nvml:0").torch_device == "cuda:1"
    assert open_device(f"nvml:GPU-{UUIDS[0]}").torch_device == "cuda:0"
    with pytest.raises(MissingHardware, match="no such GPU"):
        open_device("nvml:7")
    with pytest.raises(MissingHardware, match="does not see GPU"):
        open_device("nvml:GPU-aaaaaaaa-0000-0000-0000-000000000000")
    assert open_device("nvml:0").name == "nvidia-unheard-of-9-1"
    with pytest.raises(MissingHardware, match="which has NVIDIA H200, NVIDIA Unheard Of 9"):
        open_device("orin-nano")
    assert open_device("auto").name == "h200-0"
    assert [row.name for row in list_devices()] == ["h200-0", "nvidia-unheard-of-9-1", "cpu"]


def test_without_nvml_the_card_works_and_its_clock_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path, ["NVIDIA H200"])
    device = open_device("h200")
    assert device.describe().clocks is None
    assert "nvidia-ml-py" in device.absent.reasons["clock"]
    with pytest.raises(MissingHardware, match="pip install nvidia-ml-py"):
        open_device("nvml:0")
    with pytest.raises(BadInput):
        open_device("nvml:")


def test_a_jetson_is_named_by_its_device_tree_and_shares_its_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
        "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1300500000\n",
        "sys/class/devfreq/bwmgr/cur_freq": "3199000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine(monkeypatch, tmp_path, ["Orin"], integrated=True)
    device = open_device("orin-agx")
    hardware = device.describe()
    assert (device.name, device.default_role, device.current_hz()) == ("orin-agx", "device", 612e6)
    assert hardware.memory_bytes == 4000 * 1024
    assert hardware.clocks is not None
    assert hardware.clocks.supported_hz == [306e6, 612e6, 1300.5e6]
    assert hardware.clocks.operating_hz == 612e6
