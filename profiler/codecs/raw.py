"""``none``: the tensor's own bytes, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from profiler.codecs.chain import Layout, Symbols, from_bytes, to_bytes

if TYPE_CHECKING:
    import torch


class Raw:
    """Raw bytes of any dtype. A byte of each value is a column: ``none+zstd`` codes the exponents' bytes by themselves."""

    exact = True
    unbiased = True

    def layouts(self, tokens: int, channels: int, dtype: torch.dtype) -> list[Layout]:
        """All bytes."""
        return [Layout(tokens * channels, dtype.itemsize)]

    def symbols(self, rows: torch.Tensor, dtype: torch.dtype, seed: int) -> list[Symbols]:
        """All bytes; the seed has no part in it."""
        return [to_bytes(rows)]

    def values(self, symbols: Iterator[Symbols], tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """Any bytes are values."""
        return from_bytes(next(symbols), (tokens, channels), dtype)
