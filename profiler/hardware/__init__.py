"""Where it is measured: open a device by the name that ``--device`` takes, and list what this machine has.

Emulated devices are reached by name only; nothing falls back to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.hardware.device import Device, Reading
from profiler.profile import BadInput, MissingHardware, Role


@dataclass(frozen=True)
class Found:
    """One row of ``card-profile devices``: what works (by capability: what it is) and what is missing (how to get it)."""

    name: str
    description: str
    role: Role
    works: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def open_device(name: str, *, timed: bool = True) -> Device:
    """Open the device of that name: ``cpu``, ``auto``, a board of the catalog, ``nvml:INDEX``, ``nvml:UUID`` or ``emulated:BOARD``.

    ``auto`` is the first GPU that torch can use, else a Jetson's (which then says what keeps torch from it), else the CPU. Where
    no layers shall be ``timed``, any GPU is one. Raises BadInput for a name that nothing has (with close names), MissingHardware where the board is not in this machine.
    """
    name = name.strip()
    if name == "cpu":
        from profiler.hardware.cpu import CpuDevice

        return CpuDevice()
    if name == "auto":
        from profiler.hardware.gpu import gpus

        here, _ = gpus()
        usable = [gpu for gpu in here if gpu.torch_device is not None or not timed]
        usable += [gpu for gpu in here if gpu.is_board]
        return usable[0] if usable else open_device("cpu")
    if name.startswith("emulated:"):
        from profiler.hardware.catalog import find
        from profiler.hardware.emulated import EmulatedDevice

        return EmulatedDevice(find(name[len("emulated:") :], asked=name))
    if name.startswith("nvml:"):
        from profiler.hardware.gpu import open_nvml

        return open_nvml(name[len("nvml:") :])
    from profiler.hardware.catalog import find
    from profiler.hardware.gpu import open_board

    return open_board(find(name))


def list_devices() -> list[Found]:
    """What this machine has: its GPUs, then its CPU. Boards that can only be emulated are in ``catalog.boards()``."""
    from profiler.hardware.gpu import gpus, why_no_gpu

    rows = []
    try:
        here, wrong = gpus()
    except (MissingHardware, PermissionError) as error:
        here, wrong = [], {"gpu": _why(error)}
    for gpu in here:
        try:
            rows.append(_row(gpu))
        except (MissingHardware, PermissionError) as error:
            wrong[gpu.name] = _why(error)
    if not rows and not wrong:
        wrong = {"gpu": f"{why_no_gpu()}; emulated:BOARD simulates one"}
    rows += [Found(name, "NVIDIA GPU", "server", missing={"layers": why}) for name, why in wrong.items()]
    try:
        rows.append(_row(open_device("cpu")))
    except PermissionError as error:
        rows.append(Found("cpu", "this machine's processor", "device", missing={"layers": _why(error)}))
    return rows


def _why(error: MissingHardware | PermissionError) -> str:
    return f"{error.filename}: not readable by this user" if isinstance(error, PermissionError) else str(error)


def _row(device: Device) -> Found:
    """What works is tried, not presumed: a sensor that does not answer now is missing."""
    works, missing = {}, dict(device.absent.reasons)
    hardware = device.describe()
    if device.torch_device is not None:
        works["layers"] = f"timed on {device.torch_device}"
    hertz, reading = device.current_hz(), _one_reading(device)
    if hertz is not None:
        works["clock"] = f"read: {hertz / 1e6:g} MHz now"
    elif hardware.clocks is not None:
        missing.setdefault("clock", "not told at this moment: a GPU may be switched off while it rests")
    if device.power is not None:
        if reading is None or (reading.power_w is None and reading.energy_j is None):
            missing["power"] = f"{device.power.sensor} is there and gave no watts"
        else:
            now = f", {reading.power_w:.2f} W now" if reading.power_w is not None else ""
            works["power"] = f"{device.power.sensor}: {device.power.scope}{now}"
    if reading is not None and reading.energy_j is not None:
        works["energy counter"] = "moves"
    if reading is not None and reading.temperature_c is not None:
        works["temperature"] = f"{reading.temperature_c:.0f} C now"
    else:
        missing.setdefault("temperature", "its sensor does not answer at this moment")
    supported = device.clocks.supported_hz() if device.clocks is not None else ()
    if device.clocks is not None and supported:
        span = f"{supported[0] / 1e6:g} to {supported[-1] / 1e6:g} MHz in {len(supported)} steps"
        if device.clocks.may_set():
            works["clocks"] = f"{span} can be locked"
        else:
            missing["clocks"] = (
                f"{span} can be locked as root (sudo card-profile run ...: only a small helper keeps it); "
                "--clocks current needs no right"
            )
    if device.clocks is not None and device.clocks.left_locked():
        missing["free clock"] = "a run that has ended has left it locked: card-profile restore gives it back"
    if hardware.power_cap_w is not None:
        works["power limit"] = f"{hardware.power_cap_w:g} W"
    return Found(device.name, hardware.description, device.default_role, works, missing)


def _one_reading(device: Device) -> Reading | None:
    """The last of a few readings; None where none came."""
    period_s = min(max(device.power.period_s if device.power is not None else 0.0, 0.02), 0.2)
    with device.monitor(period_s) as readings:
        device.wait(2.5 * period_s)
    return readings[-1] if readings else None


__all__ = ["BadInput", "Found", "MissingHardware", "list_devices", "open_device"]
