"""``topN-``: of each token the largest N % of its values by magnitude; all others come back as zero.

Which they are is one bit a value. Unlike the other codecs this one is biased: what is small is never sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from profiler.codecs import Unreadable
from profiler.codecs.chain import Layout, Stage, Symbols

if TYPE_CHECKING:
    import torch


class TopK:
    """``percent`` of the values of each token, at least one, by ``chosen``."""

    exact = False
    unbiased = False

    def __init__(self, percent: int, chosen: Stage) -> None:
        self._percent, self._chosen = percent, chosen

    def _count(self, channels: int) -> int:
        return -(-channels * self._percent // 100)

    def layouts(self, tokens: int, channels: int, dtype: torch.dtype) -> list[Layout]:
        """One bit a value, then the chosen ones as rows of their own."""
        return [Layout(tokens, channels, 1), *self._chosen.layouts(tokens, self._count(channels), dtype)]

    def symbols(self, rows: torch.Tensor, dtype: torch.dtype, seed: int) -> list[Symbols]:
        """rows: float32 [tokens, channels]. Of equal values the first are taken, so that every machine takes the same."""
        import torch

        count = self._count(rows.shape[1])
        if count == 0:
            return [np.zeros(rows.shape, np.uint8), *self._chosen.symbols(rows, dtype, seed)]
        size = rows.abs()
        least = size.topk(count, dim=1).values.amin(dim=1, keepdim=True)
        mask = size >= least
        many = (mask.sum(dim=1) > count).nonzero().reshape(-1)
        if len(many):
            above = size[many] > least[many]
            equal = mask[many] & ~above
            room = count - above.sum(dim=1, keepdim=True)
            mask[many] = above | (equal & (equal.cumsum(dim=1) <= room))
        chosen = rows[mask].reshape(len(rows), count)
        return [mask.to(torch.uint8).numpy(), *self._chosen.symbols(chosen, dtype, seed)]

    def values(self, symbols: Iterator[Symbols], tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """Refuses tokens that have more or fewer values than there must be."""
        import torch

        mask = torch.from_numpy(next(symbols) != 0)
        count = self._count(channels)
        if not (mask.sum(dim=1) == count).all():
            raise Unreadable(f"a token with other than {count} chosen values")
        chosen = self._chosen.values(symbols, tokens, count, dtype)
        rows = torch.zeros((tokens, channels), dtype=torch.float32)
        rows[mask] = chosen.reshape(-1)
        return rows
