"""Where it is measured: open a device by the name that ``--device`` takes, and list what this machine has.

Emulated devices are reached by name only; nothing falls back to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.hardware.device import Device
from profiler.profile import BadInput, MissingHardware, Role


@dataclass(frozen=True)
class Found:
    """One row of ``card-profile devices``: what works (by capability: what it is) and what is missing (how to get it)."""

    name: str
    description: str
    role: Role
    works: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def open_device(name: str) -> Device:
    """Open the device of that name: ``cpu``, ``auto``, a board of the catalog, ``nvml:INDEX``, ``nvml:UUID`` or ``emulated:BOARD``.

    Raises BadInput for a name that nothing has (with close names), MissingHardware where the board is not in this machine.
    """
    name = name.strip()
    if name == "cpu":
        from profiler.hardware.cpu import CpuDevice

        return CpuDevice()
    if name == "auto":
        from profiler.hardware.cuda import gpus_here, open_gpu

        return open_gpu(0) if gpus_here() else open_device("cpu")
    if name.startswith("emulated:"):
        from profiler.hardware.catalog import find
        from profiler.hardware.emulated import EmulatedDevice

        return EmulatedDevice(find(name[len("emulated:") :], asked=name))
    if name.startswith("nvml:"):
        from profiler.hardware.cuda import open_nvml

        return open_nvml(name[len("nvml:") :])
    from profiler.hardware.catalog import find
    from profiler.hardware.cuda import open_board

    return open_board(find(name))


def list_devices() -> list[Found]:
    """What this machine has: its GPUs, then its CPU. Boards that can only be emulated are in ``catalog.boards()``."""
    from profiler.hardware.cuda import gpus_here, open_gpu, why_no_gpu

    rows = []
    count = gpus_here()
    if count == 0:
        missing = {"layers": f"{why_no_gpu()}; emulated:BOARD simulates one"}
        rows.append(Found("gpu", "NVIDIA GPU", "server", missing=missing))
    for index in range(count):
        try:
            rows.append(_row(open_gpu(index)))
        except MissingHardware as error:
            rows.append(Found(f"gpu {index}", "GPU that cannot be used", "server", missing={"layers": str(error)}))
    rows.append(_row(open_device("cpu")))
    return rows


def _row(device: Device) -> Found:
    works = {"layers": f"timed on {device.torch_device}"}
    hertz = device.current_hz()
    if hertz is not None:
        works["clock"] = f"read: {hertz / 1e6:g} MHz now"
    if device.power is not None:
        works["power"] = f"{device.power.sensor}: {device.power.scope}"
    if device.clocks is not None:
        works["clocks"] = f"can be set, {len(device.clocks.supported_hz())} steps"
    description = device.describe().description
    return Found(device.name, description, device.default_role, works, dict(device.absent.reasons))


__all__ = ["BadInput", "Found", "MissingHardware", "list_devices", "open_device"]
