"""From what ``card-profile run`` was asked for to what will be done: device, role, measures, clocks and output settled.

Whatever cannot work is refused here, before anything long begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from profiler import __version__
from profiler.hardware import open_device
from profiler.hardware.device import Device
from profiler.load import program_of
from profiler.power.sweep import ClockChoice, choose_clocks
from profiler.profile import BadInput, MissingHardware, Name, Role, printable

if TYPE_CHECKING:
    from profiler.workload.compression import CompressionOptions
    from profiler.workload.model import WorkloadSpec

MEASURES = ("layers", "power", "memory", "graph", "compression")


@dataclass(frozen=True)
class RunRequest:
    """What ``card-profile run`` was asked for; the names are its options. None: the default."""

    device: str
    workload: WorkloadSpec
    role: str | None = None
    measure: tuple[str, ...] | None = None
    clocks: str = "auto"
    load_command: str | None = None
    restore_hz: tuple[float, float] | None = None
    codecs: tuple[str, ...] | None = None
    cuts: tuple[int, ...] | None = None
    text: Path | None = None
    loss_tokens: int | None = None
    output: Path | None = None
    fresh: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    request: RunRequest
    device: Device
    role: Role
    measures: tuple[str, ...]
    choice: ClockChoice
    output: Path

    @property
    def name(self) -> str:
        """What the machine is called in the profile: fleets, certificates and training runs know it by this."""
        return self.request.name or self.device.name

    @property
    def spec(self) -> WorkloadSpec:
        """The workload that is measured."""
        return self.request.workload

    def key(self) -> dict[str, Any]:
        """Everything that must be the same for an interrupted run to be resumed."""
        hardware = self.device.describe()
        same = [hardware.description, hardware.cores, sorted(self.device.settings().items())]
        return {
            "device": self.device.name,
            "hardware": hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16],
            "role": self.role,
            "workload": {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self.spec).items()},
            "measure": list(self.measures),
            "power_scope": self.device.power.scope if self.device.power is not None else None,
            "clocks_hz": list(self.choice.frequencies_hz) if self.choice.locks else None,
            "load_command": self.request.load_command,
            **({"compression": self._compression()} if "compression" in self.measures else {}),
            "versions": {"card-profile": __version__, **hardware.software, **versions()},
        }

    def compression(self) -> CompressionOptions:
        """What to compress with, where, and on how much text."""
        from profiler.workload.compression import DEFAULT_CODECS, LOSS_TOKENS, CompressionOptions

        asked = self.request
        tokens = LOSS_TOKENS if asked.loss_tokens is None else asked.loss_tokens
        return CompressionOptions(asked.codecs or DEFAULT_CODECS, asked.cuts, tokens)

    def _compression(self) -> dict[str, Any]:
        from profiler.workload.text import read_text

        options = self.compression()
        return {
            "codecs": list(options.codecs),
            "cuts": None if options.cuts is None else list(options.cuts),
            "loss_tokens": options.loss_tokens,
            "text": read_text(self.request.text).described,
        }


def make_plan(request: RunRequest) -> Plan:
    """Open the device and settle the rest. Raises BadInput naming the option, MissingHardware where something is not there."""
    if request.load_command is not None:
        program_of(request.load_command)
    if request.name is not None:
        try:
            TypeAdapter(Name).validate_python(request.name)
        except ValidationError:
            raise BadInput(
                f"--name {printable(request.name)[:60]!r}: expected a letter or digit, then letters, digits, '.', '_', '-'"
            ) from None
    device = open_device(request.device, timed=request.load_command is None)
    role = _role(request.role, device)
    measures = _measures(request, device)
    _check_compression(request, measures)
    choice = _clocks(request, device, measures)
    _check_restore(request, device, choice)
    return Plan(request, device, role, measures, choice, _output(request, device))


def versions() -> dict[str, str]:
    """Versions of the packages that figures depend on."""
    found = {}
    for package in ("torch", "transformers", "peft", "fvcore", "zstandard"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _role(asked: str | None, device: Device) -> Role:
    if asked is None:
        return device.default_role
    if asked == "device":
        return "device"
    if asked == "server":
        return "server"
    raise BadInput(f"--role {asked}: expected device or server")


def _measures(request: RunRequest, device: Device) -> tuple[str, ...]:
    """What to measure; what was asked for by name must be possible here."""
    if request.load_command is not None and device.torch_device == "meta":
        raise BadInput("--load-command: an emulated device cannot run a command")
    without = device.absent.reasons.get("power", "no watts can be read here")
    timed = device.torch_device is not None
    if request.measure is None:
        if request.load_command is not None and device.power is None:
            raise MissingHardware(f"--load-command: {device.name}: {without}")
        if not timed and request.load_command is not None:
            return ("power",)
        if not timed:
            raise MissingHardware(f"{device.name}: {device.absent.reasons['layers']}")
        return ("layers", "power") if device.power is not None else ("layers",)
    unknown = [m for m in request.measure if m not in MEASURES]
    if unknown or not request.measure:
        raise BadInput(f"--measure {','.join(request.measure)}: expected some of {', '.join(MEASURES)}")
    if "power" in request.measure and device.power is None:
        raise MissingHardware(f"--measure power: {device.name}: {without}")
    if "memory" in request.measure and device.torch_device == "meta":
        raise BadInput(
            "--measure memory: an emulated device has no memory to read; its predicted peaks come with layers"
        )
    if "compression" in request.measure and device.torch_device == "meta":
        raise BadInput("--measure compression: an emulated device holds no values to compress; expected a real one")
    if not timed and (request.load_command is None or set(request.measure) != {"power"}):
        raise MissingHardware(f"{device.name}: {device.absent.reasons['layers']}")
    if request.load_command is not None and "power" not in request.measure:
        raise BadInput("--load-command: expected with power among --measure")
    return tuple(m for m in MEASURES if m in request.measure)


def _check_compression(request: RunRequest, measures: Sequence[str]) -> None:
    """Raise BadInput for options of ``--measure compression`` that make no sense, or that stand without it."""
    asked = {
        "--codecs": request.codecs,
        "--cuts": request.cuts,
        "--text": request.text,
        "--loss-tokens": request.loss_tokens,
    }
    if "compression" not in measures:
        stray = [option for option, value in asked.items() if value is not None]
        if stray:
            raise BadInput(f"{stray[0]}: expected with compression among --measure")
        return
    from profiler.codecs import codec
    from profiler.workload.text import read_text

    for option, values in (("--codecs", request.codecs), ("--cuts", request.cuts)):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise BadInput(
                f"{option} {','.join(map(str, values))}: expected at least one, each once, separated by commas"
            )
    if request.cuts is not None and (list(request.cuts) != sorted(request.cuts) or request.cuts[0] < 1):
        raise BadInput(f"--cuts {','.join(map(str, request.cuts))}: expected ascending cuts, 1 or more")
    if request.loss_tokens is not None and not 0 <= request.loss_tokens <= 10**9:
        raise BadInput(f"--loss-tokens {request.loss_tokens}: expected a whole number from 0 to 1000000000")
    for name in request.codecs or ():
        try:
            codec(name)
        except BadInput as error:
            raise BadInput(f"--codecs: {error}") from None
    read_text(request.text)


def _output(request: RunRequest, device: Device) -> Path:
    path = request.output if request.output is not None else Path("profiles") / f"{request.name or device.name}.json"
    if len(os.fsencode(path.name)) > 200:  # the files beside it have longer names, and most systems stop at 255
        raise BadInput(f"--output {path}: expected a name of at most 200 bytes")
    try:
        if path.is_dir():
            raise BadInput(f"--output {path}: a folder; expected the profile's file")
        if path.suffix != ".json":
            raise BadInput(f"--output {path}: expected a name that ends in .json")
        folder = path.parent
        while not folder.exists():  # what is missing of it is made when there is something to write
            folder = folder.parent
        if not folder.is_dir():
            raise BadInput(f"--output {path}: {folder} is not a folder")
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # links that lead in a circle, which nothing above minds
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"--output {path}: the folder {folder.resolve()} cannot be written; name another with --output")
    return path


def _check_restore(request: RunRequest, device: Device, choice: ClockChoice) -> None:
    """Raise BadInput for a range to give the clock back to that does nothing, or that the kernel would make another of without a word."""
    if request.restore_hz is None:
        return
    low_hz, high_hz = request.restore_hz
    asked = f"--restore-clocks {low_hz / 1e6:g},{high_hz / 1e6:g}"
    if not choice.locks:
        raise BadInput(f"{asked}: expected with clocks to set; --clocks {request.clocks.strip()} sets none here")
    supported = device.clocks.supported_hz() if device.clocks is not None else ()
    if device.torch_device == "cpu":
        return  # its cores may have clocks of their own, and a boost that no list has
    # A clock is written in whole MHz by those who know it from a tool that rounds.
    if supported and not supported[0] - 1e6 < low_hz <= high_hz < supported[-1] + 1e6:
        raise BadInput(
            f"{asked}: expected a range inside of {supported[0] / 1e6:g},{supported[-1] / 1e6:g}, the clocks of {device.name}"
        )


def _clocks(request: RunRequest, device: Device, measures: Sequence[str]) -> ClockChoice:
    supported = device.clocks.supported_hz() if device.clocks is not None else ()
    if request.clocks.strip().lower() == "auto" and device.torch_device == "cpu":
        # A processor's clock is everybody's on this machine: it is locked only when clocks are asked for.
        told = "the CPU runs under the system's governor; --clocks 5 locks five clocks in turn" if supported else None
        return ClockChoice((), locks=False, notes=(told,) if told else choose_clocks("auto", ()).notes)
    choice = choose_clocks(request.clocks, supported)
    if request.clocks.strip().lower() == "auto" and "power" not in measures and choice.locks:
        # Times alone: both ends and the middle show how each layer follows the clock.
        choice = choose_clocks("3", supported)
    return choice
