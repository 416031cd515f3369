"""A GPU as a device: its instruments (an NVML card, a Jetson's GPU), and torch.cuda where torch can use it.

Layers are timed through torch; watts and clocks come from the instruments, which need no torch. So a board whose Python or
torch is too old for us still gives power and clocks under the user's own program (``torch_device`` is then None).
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from profiler.hardware.catalog import Board, board_named
from profiler.hardware.device import Absent, ClockControl, Instruments, PowerSensor, Reading, Timebase
from profiler.hardware.host import WallTime, refuse_change, sysfs_root
from profiler.hardware.jetson import JetsonBoard, find_jetson, hides_its_name
from profiler.hardware.nvml import by_index, by_uuid, cards, why_no_nvml
from profiler.profile import MAX_TEXT, BadInput, Clocks, Hardware, MissingHardware, Provenance, Role

_NODES = ("nvidia0", "nvidiactl", "nvhost-gpu", "nvgpu", "nvmap", "dxg")
"""Device nodes of which a machine with a usable NVIDIA GPU has at least one (the last is WSL's)."""


def _driver_node(root: Path) -> bool:
    return any((root / "dev" / node).exists() for node in _NODES)


def _cuda_count() -> int:
    """How many GPUs torch can use. Torch is only imported where a driver's device node says that it is worth it."""
    if not _driver_node(sysfs_root()):
        return 0
    try:
        import torch
    except ImportError:
        return 0
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def why_no_cuda() -> str:
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


def gpus() -> tuple[list[GpuDevice], dict[str, str]]:
    """Every GPU of this machine, those that torch can use first and in its order; and by name what is wrong with the others.

    Where there are several, names bear NVML's number, whichever of them torch sees or are lost: a name is one card's alone.
    """
    count = _cuda_count()
    board: Instruments | None = find_jetson(sysfs_root())
    # On a Jetson NVML may answer too, but knows neither watts nor clocks there.
    left, lost = ({}, {}) if board is not None else cards()
    numbered = len(left) + len(lost)
    several = max(count, numbered) > 1
    found: list[GpuDevice] = []
    wrong = {f"nvml:{number}": why for number, why in lost.items()}

    def add(instruments: Instruments | None, cuda: int | None, number: int) -> None:
        try:
            found.append(GpuDevice(instruments, cuda, number=number if several else None))
        except MissingHardware as fault:  # lost since it was opened
            wrong[f"nvml:{number}"] = str(fault)

    for index in range(count):
        uuid, integrated = _cuda_identity(index)
        place = next((n for n, c in left.items() if uuid is not None and c.uuid.lower().endswith(uuid.lower())), None)
        if uuid is None and count == numbered == 1:  # older releases of torch do not tell it, and need not
            place = next(iter(left), None)
        if place is not None:
            add(left.pop(place), index, place)
        elif board is not None and integrated:
            add(board, index, index)
            board = None
        else:
            add(None, index, numbered + index)
    if board is not None:
        add(board, None, count)
    for number, card in left.items():
        add(card, None, number)
    return found, wrong


def _cuda_identity(index: int) -> tuple[str | None, bool]:
    """UUID and whether the memory is shared with the CPU, as torch tells them."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    return (str(uuid).removeprefix("GPU-") if uuid is not None else None), bool(
        getattr(properties, "is_integrated", False)
    )


def why_no_gpu() -> str:
    """Why there is no GPU to use, in one line."""
    return why_no_cuda() if _driver_node(sysfs_root()) else f"{why_no_cuda()}; NVML: {why_no_nvml() or 'no card'}"


_NO_JETSON = (
    "a Jetson is known by its GPU under /sys/class/devfreq and its power monitors under /sys/bus/i2c, which this machine does not show "
    "(NVIDIA's JetPack does; a container must see the board's /sys)"
)


def open_board(board: Board) -> GpuDevice:
    """The real board ``board`` if it is in this machine; the first of several, which standard error is then told with the others.

    Raises MissingHardware, which names the emulated one.
    """
    here, wrong = gpus()
    # A smaller module of the family, or a board in its faster power mode, has an entry of its own: orin-agx-32gb.
    like = [d for d in here if d.board is not None and f"{d.board.name}-".startswith(f"{board.name}-")]
    if len(like) > 1:
        others = ", ".join(f"{d.name} (--device nvml:{d.uuid})" if d.uuid else d.name for d in like[1:])
        print(f"note: --device {board.name}: {like[0].name} is taken; there are also {others}", file=sys.stderr)
    if like:
        return like[0]
    if board.integrated and any(device.is_board for device in here) and hides_its_name(sysfs_root()):
        raise MissingHardware(
            f"--device {board.name}: this Jetson does not tell which one it is, its device tree is hidden (as Docker does): use "
            "--device auto, or start the container with -v /sys/firmware:/sys/firmware:ro"
        )
    names = [f"{d.given_name} (--device {d.board.name})" if d.board is not None else d.given_name for d in here]
    names += wrong.values()
    found = f"which has {', '.join(names)}" if names else _NO_JETSON if board.integrated else why_no_gpu()
    raise MissingHardware(
        f"--device {board.name}: no {board.description} in this machine{', ' if names else ': '}{found}; "
        f"run on the board itself, or simulate it with --device emulated:{board.name}"
    )


def open_nvml(which: str) -> GpuDevice:
    """The GPU that NVML calls ``which`` (index or UUID). CUDA may number them otherwise, so it is found by UUID.

    Raises BadInput for text that is neither, MissingHardware without GPU, driver or the package nvidia-ml-py.
    """
    is_uuid = re.fullmatch(r"(GPU|MIG)-[0-9a-fA-F/-]{8,80}", which, re.IGNORECASE)
    if not re.fullmatch(r"[0-9]{1,9}", which) and not is_uuid:
        raise BadInput(
            f"--device nvml:{which}: expected nvml:INDEX (0, 1, ...) or nvml:GPU-UUID as nvidia-smi -L prints it"
        )
    try:
        card = by_uuid(which) if is_uuid else by_index(int(which))
    except MissingHardware as error:
        raise MissingHardware(f"--device {error}; emulated:NAME simulates one") from None
    if card.integrated:
        raise MissingHardware(
            f"--device nvml:{which}: NVML answers but measures neither watts nor clocks of {card.given_name}; "
            "use --device auto or the board's name"
        )
    for device in gpus()[0]:
        if device.uuid is not None and device.uuid.lower() == card.uuid.lower():
            return device
    return GpuDevice(card, None)


class GpuDevice:
    """One GPU (``device.Device``): ``instruments`` read and set it, ``cuda`` is torch's number for it (None: torch cannot use it).

    ``number`` is set where the machine has several, to tell their names apart.
    """

    provenance: Provenance = "measured"

    def __init__(self, instruments: Instruments | None, cuda: int | None, *, number: int | None = None) -> None:
        self._instruments, self._cuda = instruments, cuda
        self.torch_device = None if cuda is None else f"cuda:{cuda}"
        self.is_board = isinstance(instruments, JetsonBoard)
        self.time: Timebase = instruments.time if instruments is not None else WallTime()
        self.power: PowerSensor | None = instruments.power if instruments is not None else None
        self.clocks: ClockControl | None = instruments.clocks if instruments is not None else None
        self.uuid: str | None = getattr(instruments, "uuid", None)
        self.capability: str | None = None
        self._torch: Any = None
        reasons = dict(instruments.absent.reasons) if instruments is not None else {}
        integrated = False
        if cuda is not None:
            import torch

            self._torch = torch
            uuid, integrated = _cuda_identity(cuda)
            if self.uuid is None and uuid is not None:
                self.uuid = f"GPU-{uuid}"
            self.capability = ".".join(str(n) for n in torch.cuda.get_device_capability(cuda))
        if instruments is None:
            self.given_name = str(self._torch.cuda.get_device_properties(cuda).name)
            self.board = board_named(self.given_name)
            missing = why_no_nvml() or "NVML does not know this GPU (a MIG slice?)"
            reasons |= {"power": missing, "clocks": missing, "clock": missing}
        else:
            self.given_name, self.board = instruments.given_name, instruments.board
        if cuda is not None:
            reasons.pop("layers", None)
        elif "layers" not in reasons:
            reasons["layers"] = (
                f"layers cannot be timed: {why_no_cuda()}; power and clocks can be measured under a program of yours: "
                "--measure power --load-command CMD"
            )
        plain = re.sub(r"[^a-z0-9]+", "-", self.given_name.lower()).strip("-") or "gpu"
        self.name = (self.board.name if self.board else plain[:80]) + (f"-{number}" if number is not None else "")
        role: Role = "device" if integrated else "server"
        self.default_role: Role = instruments.default_role if instruments is not None else role
        self.absent = Absent(reasons)
        self._settings = self.settings()

    def current_hz(self) -> float | None:
        return self._instruments.current_hz() if self._instruments is not None else None

    def settings(self) -> dict[str, str]:
        """What must stay the same for figures to belong together."""
        found = dict(self._instruments.settings()) if self._instruments is not None else {}
        if self.capability is not None:
            found["capability"] = self.capability
        if self.uuid is not None:
            found["uuid"] = self.uuid
        return found

    def moving(self) -> dict[str, str]:
        """Conditions that move with the load, as they are now."""
        return self._instruments.moving() if self._instruments is not None else {}

    def unchanged(self) -> None:
        """Raises MissingHardware where a setting (the power mode, the power limit) changed since the device was opened."""
        refuse_change(self.name, self._settings, self.settings())

    def describe(self) -> Hardware:
        instruments, now = self._instruments, self.current_hz()
        supported = sorted(instruments.supported_hz()) if instruments is not None else []
        # A GPU whose supply is switched off at rest tells no clock, and has its range all the same.
        top_hz = supported[-1] if supported else now
        clocks = None
        if top_hz is not None:
            note = "operating: the highest, which a load gets where nothing holds it" if supported else "the clock now"
            clocks = Clocks(
                provenance="measured",
                note=note + ("" if self.clocks is not None else "; it cannot be set here"),
                supported_hz=supported,
                min_hz=supported[0] if supported else top_hz,
                max_hz=top_hz,
                operating_hz=top_hz,
            )
        memory = instruments.memory_bytes() if instruments is not None else None
        if memory is None and self._cuda is not None:
            memory = int(self._torch.cuda.mem_get_info(self._cuda)[1])
        software = {"kernel": platform.release(), **(instruments.software() if instruments is not None else {})}
        if self._torch is not None:
            software["cuda"] = str(self._torch.version.cuda)
        conditions = {**self.settings(), **(instruments.conditions() if instruments is not None else {})}
        cores = f"catalog, {self.board.figures['cores'].source}" if self.board else "unknown, no board of the catalog"
        return Hardware(
            provenance="measured",
            source=f"cores and FLOPs a cycle: {cores}",
            kind="cuda",
            description=self.given_name,
            catalog=self.board.name if self.board else None,
            cores=int(self.board.value("cores")) if self.board else None,
            flops_per_core_cycle=self.board.value("flops_per_core_cycle") if self.board else None,
            memory_bytes=memory,
            power_cap_w=instruments.power_cap_w() if instruments is not None else None,
            clocks=clocks,
            # Labels and versions come out of files.
            software={name: text[:MAX_TEXT] for name, text in software.items()},
            conditions={name: text[:MAX_TEXT] for name, text in conditions.items()},
        )

    def now_s(self) -> float:
        """The device's time after the GPU has finished all that was submitted."""
        if self._cuda is not None:
            self._torch.cuda.synchronize(self._cuda)
        return self.time.now_s()

    def executing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def load(self, step: Callable[[], object]) -> Callable[[], object]:
        """The step itself, waited for: a load that only queues work would run ahead of its measurement."""

        def run() -> None:
            step()
            self.now_s()

        return run

    def wait(self, seconds_s: float) -> None:
        self.time.wait(seconds_s)

    def monitor(self, period_s: float) -> AbstractContextManager[list[Reading]]:
        read = self._instruments.read if self._instruments is not None else lambda: Reading(time_s=self.time.now_s())
        return self.time.watching(read, period_s)

    def second_opinion(self) -> dict[str, str]:
        return self._instruments.second_opinion() if self._instruments is not None else {}
