"""What a decision rests on that nobody measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from profiler.profile import Block, Provenance


@dataclass(frozen=True)
class Assumption:
    """One quantity that was used and not measured. ``value`` is a number, a string, a list or None, as JSON writes it."""

    quantity: str
    value: Any
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """The three keys that outside programs read."""
        return {"quantity": self.quantity, "value": self.value, "provenance": self.provenance}


def unmeasured(block: Block, **quantities: Any) -> list[Assumption]:
    """The ``quantities`` (name -> value) of ``block``, unless the data underneath it was measured.

    A fit to emulated figures, or a figure from a datasheet, is not a measurement.
    """
    if block.root == "measured":
        return []
    return [Assumption(name, value, block.root) for name, value in quantities.items()]


def assumed(quantity: str, value: Any) -> Assumption:
    """A quantity that the solver itself had to assume."""
    return Assumption(quantity, value, "assumed")


def distinct(assumptions: Iterable[Assumption]) -> list[Assumption]:
    """The same, each quantity once, in the order of first use."""
    seen: dict[str, Assumption] = {}
    for item in assumptions:
        seen.setdefault(item.quantity, item)
    return list(seen.values())
