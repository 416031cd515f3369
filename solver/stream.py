"""Many decisions in blocks that fit the cache, on all cores, in bounded memory.

A block is some decisions of one device: its cuts then share their times and sizes. Delays are linear in (1, 1/R^D, 1/R^S), so what a
table of cuts x decisions holds is one product of matrices, and cuts that cannot win anywhere in the block need not stand in it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from solver.costs import CostModel, Floats, Ints, Mask, Places

BLOCK_POINTS = 1 << 20
"""Cuts x decisions in a block: at most eight megabytes for an array of it, and long enough for threads to pay."""

Rows: TypeAlias = "slice | Ints"


@dataclass(frozen=True)
class Block:
    """R decisions of one device: ``rows`` are their places, ``cuts`` (C',) its feasible cuts as ascending 0-based indices, and
    ``per_bit`` (3, R) is (1, 1/R^D, 1/R^S)."""

    device: int
    rows: Rows
    cuts: Ints
    uplink_bps: Floats
    downlink_bps: Floats
    per_bit: Floats

    def __len__(self) -> int:
        return len(self.uplink_bps)

    def waiting_terms(self, model: CostModel, plus_s: Floats | float = 0.0) -> Floats:
        """(C', 3): times ``per_bit`` the part of Eq. 10 that does not depend on the server's clock, plus ``plus_s`` (C',).

        Only without codecs: the best of several is no product (`waiting_s`).
        """
        assert model.codecs is None
        terms = model.waiting_terms(self.device)[self.cuts]
        terms[:, 0] += plus_s
        return terms

    def waiting_s(self, model: CostModel) -> Floats:
        """(C', R): the part of Eq. 10 that does not depend on the server's clock; with codecs that of the best one at each point."""
        if model.codecs is None:
            return self.waiting_terms(model) @ self.per_bit
        total: Floats | None = None
        for k in range(len(model.codecs.names)):
            terms = model.waiting_terms(self.device, k)[self.cuts]
            barred = ~np.isfinite(terms[:, 0])
            terms[barred] = 0.0  # 0 x infinity would be no number
            waiting = terms @ self.per_bit
            waiting[barred] = np.inf
            total = waiting if total is None else np.minimum(total, waiting, out=total)
        assert total is not None
        return total

    def delay_s(self, model: CostModel, place: Ints, server_s: Floats) -> Floats:
        """(R,): Eq. 10 at one cut a decision, given by its place (R,) in ``cuts``; ``server_s`` (C',) for each cut. Bit for bit as `at` has it."""
        waiting = model.waiting_of(self.device, self.cuts[place], self.uplink_bps, self.downlink_bps)
        return waiting + server_s[place]

    def held_j(self, model: CostModel, waiting_s: Floats) -> Floats | None:
        """(C', R): joules that do not depend on the server's clock; None where there are none."""
        return model.held_of(self.device, self.cuts[:, None], waiting_s)


def over_blocks(places: Places, work: Callable[[Block], None], points: int = BLOCK_POINTS) -> None:
    """Call ``work`` on every block, on all cores: numpy computes outside of Python's lock. ``work`` writes to its own rows."""

    def several(parts: list[tuple[int, Rows, Ints]]) -> None:
        for device, rows, cuts in parts:
            uplink, downlink = places.uplink_bps[rows], places.downlink_bps[rows]
            per_bit = np.empty((3, len(uplink)))
            per_bit[0] = 1.0
            np.divide(1.0, uplink, out=per_bit[1])
            np.divide(1.0, downlink, out=per_bit[2])
            work(Block(device, rows, cuts, uplink, downlink, per_bit))

    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    with _one_thread_a_product():
        if len(places) * places.feasible.shape[1] <= points or workers == 1:
            for parts in _parts(places, points):
                several(parts)
        else:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(several, _parts(places, points)):
                    pass


def _one_thread_a_product() -> Any:
    """Blocks keep all cores busy: a BLAS that spread each small product over the same cores would be many times slower."""
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _parts(places: Places, points: int) -> Iterator[list[tuple[int, Rows, Ints]]]:
    """All places, each once: a device, some of its places and its feasible cuts. What lies together in memory comes together."""
    n, count = len(places), len(places.feasible)
    cuts = [np.flatnonzero(row) for row in places.feasible]
    size = max(1, points // max(1, places.feasible.shape[1]))
    # Rounds first, every device in each: the common order needs no index arrays, and some rounds of all devices share cache lines.
    if n % count == 0 and bool((places.device.reshape(-1, count) == np.arange(count)).all()):
        rounds = n // count
        for start, stop in _spans(rounds, size):
            yield [(m, slice(m + start * count, m + (stop - 1) * count + 1, count), cuts[m]) for m in range(count)]
        return
    order = np.argsort(places.device, kind="stable")
    ends = np.searchsorted(places.device[order], np.arange(count + 1))
    for m in range(count):
        for start, stop in _spans(int(ends[m + 1] - ends[m]), size):
            yield [(m, order[ends[m] + start : ends[m] + stop], cuts[m])]


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    """0..count in pieces of at most ``size``, of one length but for the last."""
    if count:
        size = -(-count // -(-count // size))
    yield from ((start, min(start + size, count)) for start in range(0, count, size))


# ------------------------------------------------------------------------------------------------ the least of a product


FEW = 6
"""Up to so many rows are added up one by one; more are a product of matrices."""


def contenders(terms: Floats, weights: Floats) -> Ints:
    """Rows of ``terms`` (C, k) that may be the least of ``terms @ weights`` in some column; ``weights`` (k, R) are not negative.

    The columns lie in a box. What is least in one of its corners is compared with every other row: a linear function that is nowhere
    in the box below another is greatest over it at a corner, so the comparison is exact (rounding apart).
    """
    low, high = weights.min(axis=1), weights.max(axis=1)
    which = _corners(len(low))
    rivals = np.unique((terms @ np.where(which, high[:, None], low[:, None])).argmin(axis=0))
    ahead = terms[rivals, None, :] - terms[None, :, :]
    furthest = (np.maximum(ahead, 0.0) @ high) + (np.minimum(ahead, 0.0) @ low)  # of rival - row over the box
    beaten = (furthest < 0) | ((furthest == 0) & (rivals[:, None] < np.arange(len(terms))))
    return np.flatnonzero(~beaten.any(axis=0))


@cache
def _corners(dimensions: int) -> Mask:
    """(k, 2^k): which end of each side a corner of a box has."""
    ends: Mask = np.array(list(itertools.product((False, True), repeat=dimensions))).T
    return ends


def least(terms: Floats, weights: Floats) -> tuple[Ints, Floats]:
    """The row (R,) that is least in each column of ``terms @ weights``, the first of equals, and its value (R,).

    A value is the same to the bit whatever columns stand beside it.
    """
    rows = contenders(terms, weights)
    if len(rows) > FEW:
        index = rows[lowest(terms[rows] @ weights)[0]]
        return index, _sum([np.take(column, index) for column in np.ascontiguousarray(terms.T)], weights)
    index, value = np.full(weights.shape[1], rows[0]), _sum(terms[rows[0]], weights)
    for row in rows[1:]:
        other = _sum(terms[row], weights)
        less = other < value
        np.copyto(value, other, where=less)
        np.copyto(index, row, where=less)
    return index, value


def least_value(terms: Floats, weights: Floats) -> Floats:
    """(R,) the least value of each column of ``terms @ weights``, as `least` has it."""
    rows = contenders(terms, weights)
    if len(rows) > FEW:
        return least(terms[rows], weights)[1]
    value = _sum(terms[rows[0]], weights)
    for row in rows[1:]:
        np.minimum(value, _sum(terms[row], weights), out=value)
    return value


def _sum(terms: Sequence[Floats] | Floats, weights: Floats) -> Floats:
    """(R,) terms[0] weights[0] + terms[1] weights[1] + ..., in this order; ``terms`` are k numbers or (R,) arrays."""
    total: Floats = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total += term * weight
    return total


def lowest(cost: Floats) -> tuple[Ints, Floats]:
    """Of (C, R) the row (R,) with the least value in each column, the first of equals, and that value (R,).

    By a product of matrices, for numpy's own argmin walks down each short column alone.
    """
    if len(cost) == 1:
        return np.zeros(cost.shape[1], dtype=np.intp), cost[0]
    value = cost.min(axis=0)
    hit = (cost == value).astype(np.float32)
    rows = np.stack([np.arange(len(cost), dtype=np.float32), np.ones(len(cost), dtype=np.float32)])
    index, hits = rows @ hit  # exact: whole numbers below 2^24
    found = index.astype(np.intp)
    several = np.flatnonzero(hits != 1)
    if len(several):
        found[several] = hit[:, several].argmax(axis=0)
    return found, value
