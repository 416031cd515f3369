"""What workloads of one chip tell each other: which shapes of the curve they find, and where they were off. See docs/power.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.power.curve import Array, left_out

SAME_ELSEWHERE = 0.01
"""A clock asked for twice is measured a little differently each time; so far apart, two workloads ran at one and the same."""


def _where(ran_hz: Array, frequency_hz: Array) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each of clocks (m,) the nearest at which a workload ran, and whether that is the same."""
    apart = np.abs(ran_hz[None, :] - frequency_hz[:, None])
    nearest = apart.argmin(axis=1)
    return nearest, apart[np.arange(len(frequency_hz)), nearest] < SAME_ELSEWHERE * frequency_hz


@dataclass(frozen=True)
class Misses:
    """How far the law was off at clocks left out of one workload's sweep, over what it expected to be off.

    ``off`` (n, n): at clock j, fitted without clocks i and j (on the diagonal without j alone); NaN where too few clocks are left.
    """

    frequency_hz: Array
    off: Array

    def without(self, frequency_hz: float | None) -> tuple[Array, Array]:
        """Clocks (k,) and how far off (k,) at each, where that clock, if the workload ran at it, had been left out of the sweep."""
        off, kept = self.off.diagonal(), np.ones(len(self.frequency_hz), dtype=bool)
        if frequency_hz is not None:
            (nearest,), (same,) = _where(self.frequency_hz, np.array([frequency_hz]))
            if same:
                off, kept[nearest] = self.off[nearest], False
        kept &= np.isfinite(off)
        return self.frequency_hz[kept], off[kept]


@dataclass(frozen=True)
class Voice:
    """What one workload says of its chip: how probable each shape of the trend is, given its watts at clocks (n,).

    ``probability`` (1 + n + n(n-1)/2, s): given all clocks, without each, and without each two, in the order of ``curve.left_out``.
    ``misses``: how far off its law was.
    """

    frequency_hz: Array
    probability: NDArray[np.float32]
    misses: Misses

    def without(self, frequency_hz: Array) -> NDArray[np.float32]:
        """As ``probability``, for clocks (m,) left out: what was measured elsewhere stays."""
        m, n = len(frequency_hz), len(self.frequency_hz)
        nearest, same = _where(self.frequency_hz, frequency_hz)
        _, row = left_out(n)
        alone = np.where(same, 1 + nearest, 0)
        i, j = np.triu_indices(m, 1)
        both = np.where(same[i] & same[j], row[nearest[i], nearest[j]], np.maximum(alone[i], alone[j]))
        return np.asarray(self.probability[np.concatenate([[0], alone, both])])
