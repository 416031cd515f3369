"""A rig of NVIDIA cards behind a real ``libnvidia-ml.so.1``, which the unmodified ``pynvml`` loads by name.

``nvml.c`` holds the physics and NVIDIA's ABI; this module compiles it, writes the file in which the machine lies, and drives
it. Other processes meet the same machine with ``Rig.environment``.

    with Rig(tmp_path) as rig:              # virtual time: an hour of sweep takes seconds
        card = NvmlCard(rig.uuid(), time=rig.time)
        rig.step()                          # one training step of card 0: its time passes, its heat stays
    with Rig(tmp_path, wall_speed=1.0) as rig:   # time is the machine's own
        subprocess.Popen(rig.load_command(), env=rig.environment)
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import math
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.rigs.time import VirtualTime

CARDS, CLOCKS, VOLTS, FAULTS, PIDS, RING = 4, 512, 32, 16, 8, 128
_SOURCE = Path(__file__).with_name("nvml.c")
_START_S = 1000.0
_DOUBLE, _LONG, _INT = ctypes.c_double, ctypes.c_int64, ctypes.c_int32


class CardState(ctypes.Structure):
    """One card, as ``nvml.c`` keeps it; units in the names."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("volt_mhz", _DOUBLE * VOLTS),
        ("volt_v", _DOUBLE * VOLTS),
        *((n, _DOUBLE) for n in ("farad_w", "gated", "leak_w", "leak_per_v", "leak_per_c", "board_w", "memory_w")),
        *((n, _DOUBLE) for n in ("supply_ohm", "ambient_c", "fast_c_per_w", "fast_s", "slow_c_per_w", "slow_s")),
        *((n, _DOUBLE) for n in ("slowdown_c", "shutdown_c", "cap_w", "lag_s", "approximate_mhz")),
        *((n, _DOUBLE) for n in ("gcycles", "memory_s", "overhead_s", "roofline_p")),
        *((n, _DOUBLE) for n in ("power_period_s", "averaging_s", "noise", "quantum_mw", "energy_period_s")),
        *((n, _DOUBLE) for n in ("energy_bias", "counter_period_s")),
        ("memory_bytes", _LONG),
        *((n, _DOUBLE) for n in ("time_s", "fast_x", "slow_x", "power_w", "asked_mhz", "asked_at_s", "base_mhz")),
        *((n, _DOUBLE) for n in ("real_mhz", "regulated_w", "cap_due_s", "heat_due_s", "sensor_due_s")),
        *((n, _DOUBLE) for n in ("energy_due_s", "counter_due_s", "ring_due_s", "joules", "shown_instant_w")),
        *((n, _DOUBLE) for n in ("shown_average_w", "shown_joules")),
        ("ring", _DOUBLE * RING),
        *((n, ctypes.c_uint64) for n in ("cap_ns", "heat_ns", "hw_heat_ns", "brake_ns")),
        ("shown_ns", ctypes.c_uint64 * 4),
        ("random", ctypes.c_uint64),
        *((n, _LONG) for n in ("locks", "resets", "forbidden")),
        ("clocks_mhz", _INT * CLOCKS),
        *((n, _INT) for n in ("clock_count", "boost_mhz", "idle_mhz", "memory_mhz", "architecture", "cc_major")),
        *((n, _INT) for n in ("cc_minor", "volt_count", "locked_min_mhz", "locked_max_mhz", "cap_bins", "heat_bins")),
        *((n, _INT) for n in ("ring_at", "busy")),
        ("field_ids", _INT * FAULTS),
        ("field_errors", _INT * FAULTS),
        ("loads", _INT * PIDS),
        ("processes", _INT * PIDS),
        *((n, _INT) for n in ("no_permission", "root_only", "no_locks", "no_instant", "no_average", "no_energy")),
        *((n, _INT) for n in ("zero_energy", "no_counters", "counter_layout", "lost", "brake", "mig_slice")),
        *((n, _INT) for n in ("mig_mode", "jetson", "averages", "persistence")),
    )


class _Fault(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 64), ("code", _INT), ("left", _INT))


class _State(ctypes.Structure):
    _fields_ = (
        ("lock", ctypes.c_char * 40),
        *((n, _DOUBLE) for n in ("now_s", "wall_start_s", "wall_speed")),
        ("driver", ctypes.c_char * 80),
        ("nvml", ctypes.c_char * 80),
        ("faults", _Fault * FAULTS),
        *((n, _INT) for n in ("cuda", "card_count", "no_driver", "pad")),
        ("cards", CardState * CARDS),
    )


@dataclass(frozen=True)
class Truth:
    """What a card really does at one real clock under load once warm, without cap and heat limit."""

    frequency_hz: float
    power_w: float
    temperature_c: float
    step_s: float


def why_no_rig() -> str | None:
    """Why the rig cannot be built here, for a test that skips."""
    if sys.platform != "linux":
        return "the rig is a Linux shared library"
    return None if compiler() else "no C compiler (cc) here"


def compiler() -> str | None:
    """The C compiler here, if any."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def library(variant: str = "") -> Path:
    """The compiled library, built once for each content of ``nvml.c``.

    ``variant``: "" (a present driver), "old" (before 535: symbols of newer calls are absent from the library itself) or
    "ancient" (also without field values, energy counter and locks).
    """
    digest = hashlib.sha256(_SOURCE.read_bytes() + variant.encode()).hexdigest()[:16]
    root = Path(__file__).resolve().parents[3] / "build" / "rigs"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        root = Path(tempfile.gettempdir()) / f"card-rigs-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
    folder = root / f"nvml-{variant or 'new'}-{digest}"
    target = folder / "libnvidia-ml.so.1"
    if not target.exists():
        folder.mkdir(exist_ok=True)
        cc = compiler()
        assert cc is not None, why_no_rig()
        fresh = folder / f"{os.getpid()}.so"
        flags = ["-std=gnu11", "-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        flags += [f"-DRIG_{variant.upper()}"] if variant else []
        subprocess.run([cc, *flags, "-o", str(fresh), str(_SOURCE), "-lm", "-lpthread"], check=True)
        fresh.replace(target)
    return target


def ada(number: int = 0) -> CardState:
    """A card like an RTX 4060 Ti: volts flat at the bottom, then rising ever more steeply; 1-s averages and instant watts."""
    card = CardState()
    card.uuid = f"GPU-{number:08x}-5f00-4a11-9c3d-0123456789ab".encode()
    card.name = b"NVIDIA GeForce RTX 4060 Ti"
    set_volts(card, (210, 1050, 1500, 1950, 2400, 2750, 3105), (0.675, 0.7, 0.76, 0.83, 0.92, 1.01, 1.1))
    set_clocks(card, range(210, 3106, 15))
    for name, value in {
        "farad_w": 40.0, "gated": 0.3, "leak_w": 8.0, "leak_per_v": 2.4, "leak_per_c": 0.011, "board_w": 13.0,
        "memory_w": 17.0, "supply_ohm": 0.0011, "ambient_c": 27.0, "fast_c_per_w": 0.07, "fast_s": 2.5,
        "slow_c_per_w": 0.2, "slow_s": 40.0, "slowdown_c": 83.0, "shutdown_c": 95.0, "cap_w": 200.0, "lag_s": 0.05,
        "gcycles": 0.11, "memory_s": 0.021, "overhead_s": 0.003, "roofline_p": 3.0, "power_period_s": 0.1,
        "averaging_s": 1.0, "noise": 0.006, "quantum_mw": 10.0, "energy_period_s": 0.02, "counter_period_s": 0.1,
        "memory_bytes": 16380 << 20, "boost_mhz": 3105, "idle_mhz": 210, "memory_mhz": 9001, "architecture": 8,
        "cc_major": 8, "cc_minor": 9, "root_only": 1, "mig_mode": -1, "counter_layout": 1, "averages": 1,
        "random": 0x9E3779B97F4A7C15 + number,
    }.items():  # fmt: skip
        setattr(card, name, value)
    return card


def volta(number: int = 0) -> CardState:
    """A card like a V100: volts flat up to a ridge, coarse clocks, instant watts only, no field of them."""
    card = ada(number)
    card.name = b"Tesla V100-SXM2-32GB"
    set_volts(card, (135, 945, 1530), (0.7125, 0.7125, 1.06))
    set_clocks(card, [135 + 7.5 * i for i in range(187)])
    for name, value in {
        "farad_w": 118.0, "leak_w": 17.0, "board_w": 24.0, "memory_w": 31.0, "supply_ohm": 0.00035, "cap_w": 300.0,
        "gcycles": 0.052, "memory_s": 0.019, "slow_c_per_w": 0.11, "fast_c_per_w": 0.04, "boost_mhz": 1530,
        "idle_mhz": 135, "memory_mhz": 877, "architecture": 5, "cc_major": 7, "cc_minor": 0, "no_instant": 1,
        "no_average": 1, "averages": 0, "power_period_s": 0.02, "memory_bytes": 32510 << 20,
    }.items():  # fmt: skip
        setattr(card, name, value)
    return card


def set_volts(card: CardState, mhz: Sequence[float], volts: Sequence[float]) -> None:
    """The table V(f), linear in between (and rounded up to 6.25 mV by the card)."""
    card.volt_count = len(mhz)
    card.volt_mhz[: len(mhz)] = list(mhz)
    card.volt_v[: len(volts)] = list(volts)


def set_clocks(card: CardState, mhz: Sequence[float]) -> None:
    """Supported graphics clocks, ascending."""
    card.clock_count = len(mhz)
    card.clocks_mhz[: len(mhz)] = [int(m) for m in mhz]


class Rig:
    """A machine with cards. Use it as a context: inside, ``pynvml`` in this process meets it."""

    def __init__(
        self,
        folder: Path,
        cards: Sequence[CardState] | None = None,
        *,
        wall_speed: float = 0.0,
        variant: str = "",
        driver: str = "580.65.06",
        loaded_card: int = 0,
    ) -> None:
        """``wall_speed`` 0: virtual time; else seconds of the rig in one second of the machine."""
        self._library_path = library(variant)
        self.file = Path(folder) / "nvml.state"
        self.file.write_bytes(bytes(ctypes.sizeof(_State)))
        with self.file.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self._state = _State.from_buffer(self._map)
        state = self._state
        state.driver, state.nvml = driver.encode(), f"13.{driver}".encode()
        state.cuda, state.wall_speed = 13000, wall_speed
        state.now_s = 0.0 if wall_speed else _START_S
        chosen = [ada()] if cards is None else list(cards)
        state.card_count = len(chosen)
        for place, card in enumerate(chosen):
            state.cards[place] = card
        self._loaded = loaded_card
        self._lib: Any = None
        self.time: VirtualTime

    # ------------------------------------------------------------------ in this process

    def __enter__(self) -> Rig:
        _forget_pynvml()
        lib = ctypes.CDLL(str(self._library_path), mode=ctypes.RTLD_GLOBAL)
        lib.rig_state_size.restype = ctypes.c_int64
        assert lib.rig_state_size() == ctypes.sizeof(_State), "tests/rigs/nvml: the C and ctypes structures differ"
        lib.rig_step_seconds.restype = ctypes.c_double
        lib.rig_granted_mhz.restype = ctypes.c_double
        self._lib = lib
        self._rest()
        assert lib.rig_open(os.fsencode(self.file), 1) == 0
        if not self._state.wall_speed:
            self.time = VirtualTime(self._advance, _START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lib.rig_open(None, 0)
        _forget_pynvml()
        _ctypes.dlclose(self._lib._handle)  # so that a real library can be found by name again
        self._lib = None

    def _advance(self, now_s: float, busy: bool) -> None:
        self._lib.rig_advance(ctypes.c_double(now_s), self._loaded if busy else -1)

    def _rest(self) -> None:
        """Every card at rest and in balance with the room; two seconds ago, so that the averages are full by now."""
        for place in range(self._state.card_count):
            card, now, power = self.card(place), self._state.now_s - 2.0, 20.0
            for name in ("time_s", "asked_at_s", "cap_due_s", "heat_due_s", "sensor_due_s", "energy_due_s"):
                setattr(card, name, now)
            card.counter_due_s = card.ring_due_s = now
            card.asked_mhz = card.base_mhz = card.real_mhz = card.idle_mhz
            card.fast_x, card.slow_x = card.fast_c_per_w * power, card.slow_c_per_w * power

    # ------------------------------------------------------------------ for every process

    @property
    def environment(self) -> dict[str, str]:
        """Environment of another process that is to meet this machine."""
        paths = [str(self._library_path.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        root = str(Path(__file__).resolve().parents[3])
        return {
            **os.environ,
            "RIG_NVML_STATE": str(self.file),
            "LD_LIBRARY_PATH": os.pathsep.join(p for p in paths if p),
            "PYTHONPATH": os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p),
        }

    def load_command(self, place: int = 0) -> list[str]:
        """A program that keeps the card busy until it is ended (wall time only)."""
        return [sys.executable, "-m", "tests.rigs.nvml.load", str(place)]

    # ------------------------------------------------------------------ the machine

    @property
    def machine(self) -> Any:
        """Driver versions and switches of the whole machine."""
        return self._state

    def card(self, place: int = 0) -> Any:
        """The live state of a card."""
        return self._state.cards[place]

    def uuid(self, place: int = 0) -> str:
        return str(self.card(place).uuid.decode())

    def fail(self, function: str, code: int, times: int = -1) -> None:
        """Let an NVML function return ``code``: for ever, or this many times. Code 0 heals it."""
        faults = self._state.faults
        slot = next((f for f in faults if f.name == function.encode()), None) or next(f for f in faults if not f.code)
        slot.name, slot.code, slot.left = function.encode(), code, times

    def fail_field(self, field_id: int, code: int, place: int = 0) -> None:
        """Let one field value of a card return ``code``."""
        card = self.card(place)
        slot = next(i for i in range(FAULTS) if card.field_ids[i] in (0, field_id))
        card.field_ids[slot], card.field_errors[slot] = field_id, code

    def locked_mhz(self, place: int = 0) -> tuple[int, int] | None:
        """The range that the card is locked to, as any process would find it; None: free."""
        card = self.card(place)
        return (card.locked_min_mhz, card.locked_max_mhz) if card.locked_max_mhz else None

    def step_s(self, place: int | None = None) -> float:
        """Seconds that one training step takes at the card's real clock of this moment."""
        return float(self._lib.rig_step_seconds(self._loaded if place is None else place))

    def step(self) -> None:
        """One training step on the loaded card, in virtual time."""
        self.time.elapse(self.step_s(), busy=True)

    def truth(self, frequency_hz: float, place: int = 0, *, busy: bool = True) -> Truth:
        """The hidden steady state at one real clock, had the card neither cap nor heat limit."""
        power, heat, step = (ctypes.c_double() for _ in range(3))
        mhz = ctypes.c_double(frequency_hz / 1e6)
        self._lib.rig_truth(place, mhz, int(busy), *(ctypes.byref(v) for v in (power, heat, step)))
        return Truth(frequency_hz, power.value, heat.value, step.value)

    def true_curve(self, place: int = 0) -> list[Truth]:
        """``truth`` at every supported clock, ascending."""
        card = self.card(place)
        return [self.truth(card.clocks_mhz[i] * 1e6, place) for i in range(card.clock_count)]

    def settled(self, requested_hz: float, place: int = 0, seconds_s: float = 400.0) -> tuple[float, float]:
        """Mean watts and mean real Hz where the card ends up under load, locked at ``requested_hz``, limits in force."""
        power, clock = ctypes.c_double(), ctypes.c_double()
        arguments = (ctypes.c_double(requested_hz / 1e6), ctypes.c_double(seconds_s), ctypes.c_double(60.0))
        self._lib.rig_settle(place, *arguments, ctypes.byref(power), ctypes.byref(clock))
        return power.value, clock.value * 1e6

    def held(self, truth: Truth, place: int = 0) -> bool:
        """Whether the card can stay at this clock: neither cap nor heat limit is reached."""
        card = self.card(place)
        return bool(
            truth.power_w < card.cap_w and truth.temperature_c < card.slowdown_c and math.isfinite(truth.power_w)
        )


def _forget_pynvml() -> None:
    """Put ``pynvml`` back to before its first ``nvmlInit``, closing the library that it had found by name."""
    pynvml: Any = sys.modules.get("pynvml")
    if pynvml is None or pynvml.nvmlLib is None:
        return
    _ctypes.dlclose(pynvml.nvmlLib._handle)
    pynvml.nvmlLib = None
    pynvml._nvmlLib_refcount = 0
    pynvml._nvmlGetFunctionPointer_cache.clear()
