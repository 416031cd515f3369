"""Boards by name: what their data sheets say, each figure with its source.

The data lie in ``catalog.json``; a new board is one entry there and no code. A real board of that name takes only its role,
cores and description from here (clocks, memory and watts are read from the board); an emulated one takes everything.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from profiler.profile import BadInput, Provenance, Role

FIGURES = (
    "cores",
    "flops_per_core_cycle",
    "fp16_speedup",
    "bf16_speedup",
    "memory_bytes",
    "usable_memory_bytes",
    "memory_bandwidth_bytes_per_s",
    "idle_w",
    "power_cap_w",
    "uncapped_load_w",
)
"""Every board has these. ``fp16_speedup`` and ``bf16_speedup`` multiply the matrix product's rate over float32's,
``uncapped_load_w`` is what a stream of large products would draw at the highest clock without a power cap."""

_ANOTHER_NEXT = ("ti", "super", "d")
_ANOTHER_ANYWHERE = re.compile(r"\b(laptop|mobile|max.q|mig)\b")
"""Words right after a card's name, and anywhere beside it, that make it another chip of other cores, or a part of one."""


@dataclass(frozen=True)
class Figure:
    """One figure of a data sheet and where it is from."""

    value: float
    provenance: Provenance
    source: str


@dataclass(frozen=True)
class SensorTraits:
    """How a board's power sensor behaves: it renews every ``period_s``, averages over ``averaging_s``, counts in ``step_w``."""

    period_s: float
    averaging_s: float
    step_w: float
    noise: float
    energy_step_s: float | None
    clock_step_hz: float


@dataclass(frozen=True)
class Silicon:
    """Physics of a chip family for emulation (all assumed). ``voltage_v``: (clock over highest clock, volts), ascending."""

    voltage_v: tuple[tuple[float, float], ...]
    leakage_share: float
    matmul_efficiency: float
    half_matmul_efficiency: float
    launch_s: float
    dram_j_per_byte: float
    thermal_time_s: float
    load_temperature_c: float
    throttle_c: float
    sensor: SensorTraits
    lock_offset_hz: float


@dataclass(frozen=True)
class Board:
    """One catalog entry. ``match``: parts that must all or any occur in the name a real board gives itself (see ``matches``)."""

    name: str
    description: str
    role: Role
    integrated: bool
    clocks_hz: tuple[float, ...]
    clocks_source: str
    power_scope: str
    power_sensor: str
    figures: Mapping[str, Figure]
    silicon: Silicon
    match: tuple[str, ...]

    def value(self, figure: str) -> float:
        """One of ``FIGURES`` as a number, in the unit that its name ends in."""
        return self.figures[figure].value

    def matches(self, given_name: str) -> bool:
        """Whether a real board that calls itself ``given_name`` (CUDA's or the device tree's name) is this one."""
        return any(_has_words(given_name, words) for words in self.match)


def _has_words(text: str, words: str) -> bool:
    """Whether ``words`` occur in ``text`` as whole words, so that "RTX 4060" is not found in "RTX 4060 Ti" or a laptop's."""
    if not set(_ANOTHER_ANYWHERE.findall(text.lower())) <= set(_ANOTHER_ANYWHERE.findall(words.lower())):
        return False
    wanted = words.lower().replace("-", " ").split()
    found = text.lower().replace("-", " ").split()
    for start in range(len(found) - len(wanted) + 1):
        if found[start : start + len(wanted)] == wanted:
            following = found[start + len(wanted) : start + len(wanted) + 1]
            return not following or following[0] not in _ANOTHER_NEXT
    return False


def _clocks_hz(entry: Mapping[str, Any]) -> tuple[float, ...]:
    if "list_mhz" in entry:
        return tuple(round(mhz * 1e6, 3) for mhz in entry["list_mhz"])
    low, high, step = entry["from_mhz"], entry["to_mhz"], entry["step_mhz"]
    return tuple(round((low + i * step) * 1e6, 3) for i in range(round((high - low) / step) + 1))


@lru_cache(maxsize=1)
def boards() -> Mapping[str, Board]:
    """The whole catalog by name."""
    data = json.loads((Path(__file__).parent / "catalog.json").read_text(encoding="utf-8"))
    sources: Mapping[str, Any] = data["sources"]
    silicon = {
        name: Silicon(
            **{
                **entry,
                "voltage_v": tuple((share, volts) for share, volts in entry["voltage_v"]),
                "sensor": SensorTraits(**entry["sensor"]),
            }
        )
        for name, entry in data["silicon"].items()
    }
    return {
        name: Board(
            name=name,
            description=entry["description"],
            role=entry["role"],
            integrated=entry["integrated"],
            clocks_hz=_clocks_hz(entry["clocks"]),
            clocks_source=sources[entry["clocks"]["source"]]["text"],
            power_scope=entry["power"]["scope"],
            power_sensor=entry["power"]["sensor"],
            figures={
                figure: Figure(float(value), sources[source]["provenance"], sources[source]["text"])
                for figure, (value, source) in entry["figures"].items()
            },
            silicon=silicon[entry["silicon"]],
            match=tuple(entry["match"]),
        )
        for name, entry in data["boards"].items()
    }


def find(name: str, *, asked: str | None = None) -> Board:
    """The board of that name. Raises BadInput that lists close names and all names; ``asked`` is what the user typed."""
    known = boards()
    if name in known:
        return known[name]
    squeezed = {_squeeze(other): other for other in known}
    if _squeeze(name) in squeezed:  # RTX-4060-Ti, orin_agx
        return known[squeezed[_squeeze(name)]]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise BadInput(
        f"--device {asked or name}: no such device; {hint}expected cpu, auto, nvml:INDEX, nvml:UUID, a board "
        f"({', '.join(known)}) or emulated:BOARD"
    )


def _squeeze(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def board_named(given_name: str) -> Board | None:
    """The board that calls itself ``given_name``, else None. Longer matches win (RTX 4060 Ti before RTX 4060)."""
    hits = [
        (max(len(m) for m in b.match if _has_words(given_name, m)), b)
        for b in boards().values()
        if b.matches(given_name)
    ]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None
