"""Conditions that move with the load (memory and CPU clocks, fan, heat), as they were while it ran: at rest they are others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from profiler.hardware.device import Device

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class UnderLoad:
    """What ``device.moving()`` said at each look."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._seen: dict[str, list[str]] = {}

    def look(self) -> None:
        """Note how things are at this moment; the load must be running."""
        for name, text in self._device.moving().items():
            texts = self._seen.setdefault(name, [])
            if text not in texts:
                texts.append(text)

    def taken(self) -> dict[str, list[str]]:
        """Every different text since the last time, by name."""
        seen, self._seen = self._seen, {}
        return seen


def conditions(seen: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """What several times of load have ``taken``, as conditions: ``204 to 3199 MHz under load``."""
    texts: dict[str, list[str]] = {}
    for taken in seen:
        for name, said in taken.items():
            texts.setdefault(name, []).extend(said)
    return {name: f"{_span(said)} under load" for name, said in texts.items()}


def _span(texts: Sequence[str]) -> str:
    """The last text, in which each number that moved is its smallest and largest in all texts of the same words."""
    last = texts[-1]
    alike = [_NUMBER.findall(text) for text in texts if _NUMBER.sub("", text) == _NUMBER.sub("", last)]
    spans = iter([" to ".join(dict.fromkeys((min(n, key=float), max(n, key=float)))) for n in zip(*alike, strict=True)])
    return _NUMBER.sub(lambda _: next(spans), last)
