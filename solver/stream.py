"""Many decisions in blocks that fit the cache, on all cores, in bounded memory.

A block is some decisions of one device: its cuts then share their times and sizes, and a table of cuts x decisions needs no index arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from solver.costs import CostModel, Floats, Ints, Places

BLOCK_POINTS = 1 << 16
"""Cuts x decisions in a block: half a megabyte for each array of it, so that several stay in a core's cache."""


@dataclass(frozen=True)
class Block:
    """R decisions of one device: ``rows`` (R,) are their places, ``cuts`` (C',) its feasible cuts as ascending 0-based indices."""

    device: int
    rows: Ints
    cuts: Ints
    uplink_bps: Floats
    downlink_bps: Floats

    def waiting_s(self, model: CostModel) -> Floats:
        """(C', R): the part of Eq. 10 that does not depend on the server's clock."""
        return model.waiting_of(self.device, self.cuts[:, None], self.uplink_bps[None, :], self.downlink_bps[None, :])

    def held_j(self, model: CostModel, waiting_s: Floats) -> Floats | None:
        """(C', R): joules that do not depend on the server's clock; None where there are none."""
        return model.held_of(self.device, self.cuts[:, None], waiting_s)


def blocks(places: Places, points: int = BLOCK_POINTS) -> Iterator[Block]:
    """All places, each once, in blocks of at most ``points`` cuts x decisions."""
    order = np.argsort(places.device, kind="stable")
    ends = np.searchsorted(places.device[order], np.arange(len(places.feasible) + 1))
    for m in range(len(places.feasible)):
        cuts = np.flatnonzero(places.feasible[m])
        size = max(1, points // max(1, len(cuts)))
        for start in range(ends[m], ends[m + 1], size):
            rows = order[start : min(start + size, ends[m + 1])]
            yield Block(m, rows, cuts, places.uplink_bps[rows], places.downlink_bps[rows])


def over_blocks(places: Places, work: Callable[[Block], None], points: int = BLOCK_POINTS) -> None:
    """Call ``work`` on every block, on all cores: numpy computes outside of Python's lock. ``work`` writes to its own rows."""
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    if len(places) * places.feasible.shape[1] <= 4 * points or workers == 1:
        for block in blocks(places, points):
            work(block)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, blocks(places, points)):
            pass


def lowest(cost: Floats) -> tuple[Ints, Floats]:
    """Of (C, R) the row (R,) with the least value in each column, the first of equals, and that value (R,).

    By whole rows: numpy's own argmin walks down each short column alone.
    """
    least = cost.min(axis=0)
    index = np.zeros(cost.shape[1], dtype=np.intp)
    for c in range(len(cost) - 1, -1, -1):
        np.copyto(index, c, where=cost[c] == least)
    return index, least
