"""``-oN``: N channels kept in fp16, the others left to the codec before it.

In the residual stream of a trained transformer a few channels are larger than all others, by factors of hundreds in some tokens; they would set the
scale of every token. The channels are those that are most often among a token's N largest. That is a count, so every machine finds the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from profiler.codecs import Unreadable
from profiler.codecs.chain import Layout, Stage, Symbols
from profiler.codecs.half import Half

if TYPE_CHECKING:
    import torch

_VOTERS = 1024
"""Tokens that are asked, evenly spaced: more change nothing but the time."""


class Outliers:
    """``count`` channels in fp16, the others by ``others``."""

    exact = False

    def __init__(self, count: int, others: Stage) -> None:
        self._count, self._others, self._half = count, others, Half("fp16")
        self.unbiased = others.unbiased

    def layouts(self, tokens: int, channels: int, dtype: torch.dtype) -> list[Layout]:
        """Which channels (4 bytes each), their values, and what the other codec has."""
        import torch

        kept = min(self._count, channels)
        half = self._half.layouts(kept, tokens, torch.float32)
        return [Layout(kept, 4), *half, *self._others.layouts(tokens, channels - kept, dtype)]

    def symbols(self, rows: torch.Tensor, dtype: torch.dtype, seed: int) -> list[Symbols]:
        """rows: float32 [tokens, channels]. A kept channel is a row to the half-precision codec: it has one power of two."""
        import torch

        kept = self._channels(rows)
        half = self._half.symbols(rows.t()[kept].contiguous(), torch.float32, seed)
        others = self._others.symbols(rows[:, _without(kept, rows.shape[1])], dtype, seed)
        return [kept.numpy().astype("<u4").view(np.uint8).reshape(-1, 4), *half, *others]

    def values(self, symbols: Iterator[Symbols], tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """Refuses channels that are not there, not in order or named twice."""
        import torch

        kept = torch.from_numpy(np.ascontiguousarray(next(symbols)).view("<u4").reshape(-1).astype(np.int64))
        if int(kept[-1]) >= channels or not (kept[1:] > kept[:-1]).all():
            raise Unreadable("the outlier channels are not channels of this shape in ascending order")
        values = self._half.values(symbols, len(kept), tokens, torch.float32)
        others = self._others.values(symbols, tokens, channels - len(kept), dtype)
        rows = torch.empty((tokens, channels), dtype=torch.float32)
        rows[:, _without(kept, channels)] = others
        rows[:, kept] = values.t()
        return rows

    def _channels(self, rows: torch.Tensor) -> torch.Tensor:
        import torch

        tokens, channels = rows.shape
        count = min(self._count, channels)
        asked = rows[:: max(1, tokens // _VOTERS)].abs()
        # Not the places that topk names, for it may break ties in any way: the values.
        least = asked.topk(count, dim=1).values[:, -1:]
        votes = ((asked >= least) & (asked > 0)).sum(dim=0)
        first = np.argsort(-votes.numpy(), kind="stable")[:count]
        return torch.from_numpy(np.sort(first))


def _without(kept: torch.Tensor, channels: int) -> torch.Tensor:
    """The other channels, in order."""
    import torch

    mask = torch.ones(channels, dtype=torch.bool)
    mask[kept] = False
    return mask.nonzero().reshape(-1)
