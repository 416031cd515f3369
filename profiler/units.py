"""Figures for people: with an SI prefix and their unit, rows of numbers as ranges. Everywhere else they are plain SI, with the unit in their name."""

from __future__ import annotations

from collections.abc import Sequence

_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits: ``quantity(2.46e9, "Hz")`` is ``2.46 GHz``. Nobody counts in kiloseconds."""
    rounded = float(f"{value:.{digits}g}")  # first, so that 999.96 MHz is 1 GHz
    if unit == "s" and abs(rounded) >= 1000:
        return f"{value:.0f} s"
    for factor, prefix in _PREFIXES:
        if abs(rounded) >= factor and abs(rounded) < 1000 * factor:
            return f"{rounded / factor:.{digits}g} {prefix}{unit}"
    return f"{rounded:.{digits}g} {unit}"


def data_size(count: float) -> str:
    """Bytes, decimal as in rates and on data sheets: ``data_size(2.5e8)`` is ``250.0 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for factor, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1)):
        if round(count / factor, digits) >= 1:
            return f"{count / factor:.{digits}f} {unit}"
    return f"{count / 1e3:.1f} kB"


def counted(count: int, what: str) -> str:
    """``1 clock``, ``2 clocks``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers as ``1-4, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def names(by_comma: str | None) -> tuple[str, ...] | None:
    """``"a, b"`` as ``("a", "b")``; None stays None."""
    return None if by_comma is None else tuple(name.strip() for name in by_comma.split(",") if name.strip())
