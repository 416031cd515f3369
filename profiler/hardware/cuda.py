"""NVIDIA GPUs through torch.cuda: layer times, memory, and the clock where it can be read.

This version neither locks the clocks of a real GPU nor reads its watts. It has not been run on a GPU yet.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from profiler.hardware.catalog import Board, board_named
from profiler.hardware.device import Absent, ClockControl, PowerSensor, Reading
from profiler.hardware.host import WallTime, read_number, read_text, sysfs_root
from profiler.profile import BadInput, Clocks, Hardware, MissingHardware, Provenance, Role

_NODES = ("nvidia0", "nvidiactl", "nvhost-gpu", "nvgpu", "nvmap", "dxg")
"""Device nodes of which a machine with a usable NVIDIA GPU has at least one (the last is WSL's)."""


def _driver_node(root: Path) -> bool:
    return any((root / "dev" / node).exists() for node in _NODES)


def gpus_here() -> int:
    """How many GPUs torch can use. Torch is only imported where a driver's device node says that it is worth it."""
    if not _driver_node(sysfs_root()):
        return 0
    try:
        import torch
    except ImportError:
        return 0
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def why_no_gpu() -> str:
    """Why torch sees no GPU, and how to get there."""
    if not _driver_node(sysfs_root()):
        return "no NVIDIA driver is loaded here (no device node under /dev)"
    try:
        import torch
    except ImportError:
        return "torch is not installed: pip install 'card-profile[profile]' (on a Jetson, NVIDIA's own build)"
    if torch.version.cuda is None:
        return "the torch installed here is built without CUDA: install a CUDA build (on a Jetson, NVIDIA's own)"
    return "torch cannot use the driver (too old for this torch, or hidden by CUDA_VISIBLE_DEVICES)"


def open_board(board: Board) -> CudaDevice:
    """The real board ``board`` if it is in this machine. Raises MissingHardware, which names the emulated one."""
    count = gpus_here()
    else_ = f"run on the board itself, or simulate it with --device emulated:{board.name}"
    if count == 0:
        raise MissingHardware(f"--device {board.name}: no {board.description} in this machine: {why_no_gpu()}; {else_}")
    seen = []
    for index in range(count):
        device = open_gpu(index)
        if device.board is not None and device.board.name == board.name:
            return device
        seen.append(device.given_name)
    raise MissingHardware(
        f"--device {board.name}: no {board.description} in this machine, which has {', '.join(seen)}; {else_}"
    )


def open_gpu(index: int) -> CudaDevice:
    """torch's GPU number ``index``. Raises MissingHardware."""
    if index >= gpus_here():
        raise MissingHardware(f"GPU {index} is not in this machine: {why_no_gpu()}")
    return CudaDevice(index)


def open_nvml(which: str) -> CudaDevice:
    """The GPU that NVML calls ``which`` (index or UUID). CUDA may number them otherwise, so it is found by UUID.

    Raises BadInput for text that is neither, MissingHardware without GPU, driver or the package nvidia-ml-py.
    """
    is_uuid = re.fullmatch(r"GPU-[0-9a-fA-F-]{8,40}", which)
    if not which.isdigit() and not is_uuid:
        raise BadInput(
            f"--device nvml:{which}: expected nvml:INDEX (0, 1, ...) or nvml:GPU-UUID as nvidia-smi -L prints it"
        )
    count = gpus_here()
    if count == 0:
        raise MissingHardware(f"--device nvml:{which}: no GPU to use: {why_no_gpu()}; emulated:NAME simulates one")
    uuid = which
    if not is_uuid:
        nvml = _nvml()
        if nvml is None:
            raise MissingHardware(f"--device nvml:{which}: NVML cannot be asked: pip install nvidia-ml-py")
        try:
            uuid = _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(int(which))))
        except nvml.NVMLError as error:
            raise MissingHardware(f"--device nvml:{which}: NVML has no such GPU: {error}") from None
    for index in range(count):
        device = open_gpu(index)
        if device.uuid is not None and uuid.lower().endswith(device.uuid.lower()):
            return device
    raise MissingHardware(f"--device nvml:{which}: torch does not see GPU {uuid} (CUDA_VISIBLE_DEVICES?)")


def _nvml() -> Any | None:
    """The initialised module ``pynvml``, else None."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, no library, no driver: each version raises its own
        return None
    return pynvml


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _devfreq(root: Path) -> Path | None:
    """A Jetson's GPU among the devfreq devices, found by the name of its device tree node."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        node = read_text(folder / "device/of_node/name") or folder.name
        if node in ("gv11b", "gp10b", "ga10b", "gb10b") or "gpu" in node:
            return folder
    return None


class CudaDevice:
    """One GPU that torch can use (``device.Device``)."""

    provenance: Provenance = "measured"
    clocks: ClockControl | None = None
    power: PowerSensor | None = None

    def __init__(self, index: int) -> None:
        import torch

        self._torch = torch
        self._index = index
        self._root = sysfs_root()
        self.torch_device = f"cuda:{index}"
        self._properties = torch.cuda.get_device_properties(index)
        self._integrated = bool(getattr(self._properties, "is_integrated", False))
        # A Jetson's CUDA name is only its chip's ("Orin"): the device tree knows the board.
        tree_name = read_text(self._root / "proc/device-tree/model") if self._integrated else None
        self.given_name = tree_name or str(self._properties.name)
        self.board: Board | None = board_named(self.given_name)
        uuid = getattr(self._properties, "uuid", None)
        self.uuid: str | None = str(uuid) if uuid is not None else None
        plain = re.sub(r"[^a-z0-9]+", "-", self.given_name.lower()).strip("-") or "gpu"
        self.name = (self.board.name if self.board else plain[:80]) + (
            f"-{index}" if torch.cuda.device_count() > 1 else ""
        )
        self.default_role: Role = self.board.role if self.board else ("device" if self._integrated else "server")
        self._handle, self._pynvml = None, None if self._integrated else _nvml()
        if self._pynvml is not None and self.uuid is not None:
            try:
                self._handle = self._pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{self.uuid.removeprefix('GPU-')}")
            except self._pynvml.NVMLError:
                self._handle = None
        self._node = _devfreq(self._root) if self._integrated else None
        reasons = {
            "clocks": "locking the clock of a real GPU is not supported by this version",
            "power": f"watts of a real GPU are not read by this version; emulated:{self.board.name} simulates them"
            if self.board
            else "watts of a real GPU are not read by this version",
        }
        if self.current_hz() is None:
            reasons["clock"] = (
                "the clock cannot be read: pip install nvidia-ml-py (on a Jetson, devfreq must be readable)"
            )
        self.absent = Absent(reasons)

    def current_hz(self) -> float | None:
        if self._handle is not None and self._pynvml is not None:
            try:
                mhz = self._pynvml.nvmlDeviceGetClockInfo(self._handle, self._pynvml.NVML_CLOCK_GRAPHICS)
            except self._pynvml.NVMLError:
                return None
            return float(mhz) * 1e6 if mhz > 0 else None
        hertz = read_number(self._node / "cur_freq") if self._node is not None else None
        return hertz if hertz is not None and hertz >= 1e6 else None

    def _supported_hz(self) -> list[float]:
        if self._handle is not None and self._pynvml is not None:
            nvml = self._pynvml
            try:
                memory = max(nvml.nvmlDeviceGetSupportedMemoryClocks(self._handle))
                return sorted({mhz * 1e6 for mhz in nvml.nvmlDeviceGetSupportedGraphicsClocks(self._handle, memory)})
            except (nvml.NVMLError, ValueError):
                return []
        listed = read_text(self._node / "available_frequencies") if self._node is not None else None
        return sorted({float(hertz) for hertz in (listed or "").split() if hertz.isdigit()})

    def describe(self) -> Hardware:
        torch, supported, now = self._torch, self._supported_hz(), self.current_hz()
        clocks = None
        if now is not None:
            clocks = Clocks(
                provenance="measured",
                note="operating: the clock when this was read; this version cannot set one",
                supported_hz=supported,
                min_hz=supported[0] if supported else now,
                max_hz=supported[-1] if supported else now,
                operating_hz=now,
            )
        memory = int(torch.cuda.mem_get_info(self._index)[1])
        if self._integrated:  # shared with the CPU: what is free for a process now, not what is built in
            found = re.search(r"^MemAvailable:\s+(\d+) kB", read_text(self._root / "proc/meminfo") or "", re.MULTILINE)
            memory = int(found.group(1)) * 1024 if found else memory
        conditions = {"capability": ".".join(str(n) for n in torch.cuda.get_device_capability(self._index))}
        if self.uuid is not None:
            conditions["uuid"] = self.uuid
        return Hardware(
            provenance="measured",
            source=f"cores and FLOPs a cycle: catalog, {self.board.figures['cores'].source}" if self.board else None,
            kind="cuda",
            description=self.given_name,
            catalog=self.board.name if self.board else None,
            cores=int(self.board.value("cores")) if self.board else None,
            flops_per_core_cycle=self.board.value("flops_per_core_cycle") if self.board else None,
            memory_bytes=memory,
            clocks=clocks,
            software={"cuda": str(torch.version.cuda), "kernel": platform.release()},
            conditions=conditions,
        )

    def now_s(self) -> float:
        """Wall time after the GPU has finished all that was submitted."""
        self._torch.cuda.synchronize(self._index)
        return time.perf_counter()

    def executing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def load(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step itself, waited for: a load that only queues work would run ahead of its measurement."""

        def run() -> None:
            step()
            self._torch.cuda.synchronize(self._index)

        return run

    def wait(self, seconds_s: float) -> None:
        time.sleep(max(0.0, seconds_s))

    @contextmanager
    def monitor(self, period_s: float) -> Iterator[list[Reading]]:
        """Readings of the clock alone."""

        def read() -> Reading:
            return Reading(time_s=time.perf_counter(), frequency_hz=self.current_hz())

        with WallTime().watching(read, period_s) as readings:
            yield readings

    def unchanged(self) -> None:
        """Nothing is watched here."""
