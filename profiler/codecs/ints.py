"""``int2`` to ``int8``: b bits a value, a scale for each token, and rounding without bias.

A token's largest magnitude M spans 2^b levels, step = 2 M / (2^b - 1). Rounding is stochastic by *subtractive dither*: the encoder adds to each
value a random part of a step and rounds, the decoder, which knows the seed, takes the same part away again:

    q = floor(x / step + K + u),   x' = (q - K - u + 1/2) step,   u in (0, 1) from the seed,   K = (2^b - 1) / 2

Then x' - x is uniform over one step and independent of x (L. Schuchman, 1964): no bias, as with plain stochastic rounding, and a variance of
step^2 / 12 where plain stochastic rounding has step^2 / 6 on average. That is half a bit a value, for the eight bytes of the seed.

Where an entropy coder follows, bits need not be the same for all, so a larger token gets more levels: step = 2 sqrt(M M_) / (2^b - 1) with M_ the
median of M over the tokens, at most twice what it would be, and at least what 8-bit symbols (4-bit ones for b < 4) can reach. On activations
of SmolLM2-135M this is worth 0.3 to 0.5 bits a value at the same loss.

Scales are what bfloat16 has just above M, so they span all of float32: gradients of 1e-12 keep their precision. A token
of zeros comes back as zeros. Everything is elementwise or a maximum, so the bytes do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.codecs import Unreadable
from profiler.codecs.chain import Layout, Symbols, from_bytes, to_bytes

if TYPE_CHECKING:
    import torch

_PERIOD = 65_521
"""A prime, so that a channel does not meet the same dither in every token."""
_INFINITE = 0x7F80
"""The bits of bfloat16's infinity."""
_COARSEST = 2.0
"""A token smaller than the median one gets at most so many times the step of its own."""


class Ints:
    """``bits`` in 2..8; ``coded``: an entropy coder follows."""

    exact = False
    unbiased = True

    def __init__(self, bits: int, *, coded: bool) -> None:
        self._levels = 2**bits - 1
        self._bits = bits if not coded else 4 if bits < 4 else 8
        self._coded = coded
        self._middle = (2**self._bits - 1) / 2

    def layouts(self, tokens: int, channels: int, dtype: torch.dtype) -> list[Layout]:
        """Where the dither begins, a scale for each token, the values."""
        return [Layout(1, 2), Layout(tokens, 2), Layout(tokens, channels, self._bits)]

    def symbols(self, rows: torch.Tensor, dtype: torch.dtype, seed: int) -> list[Symbols]:
        """rows: float32 [tokens, channels]."""
        import torch

        largest = rows.new_zeros(len(rows), 1)
        if rows.numel():
            largest = torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True)
        above = largest.view(torch.int32) >> 16
        above += (above << 16) != largest.view(torch.int32)
        scale_bits = above.clamp_(max=_INFINITE - 1).to(torch.int16)
        scale = _scale(scale_bits)
        start = int(_scrambled(np.array([seed], np.uint64))[0] % _PERIOD)
        found = rows.div(scale.masked_fill(scale == 0, 1.0)).mul_(self._reach(scale))
        found.add_(_dither(start, rows.shape)).add_(self._middle)
        symbols = found.floor_().clamp_(0, 2 * self._middle).to(torch.uint8).numpy()
        return [np.array([[start & 0xFF, start >> 8]], np.uint8), to_bytes(scale_bits), symbols]

    def values(self, symbols: Iterator[Symbols], tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """Float32, always finite."""
        import torch

        low, high = next(symbols).reshape(-1).tolist()
        start = low + 256 * high
        scale_bits = from_bytes(next(symbols), (tokens, 1), torch.int16)
        if start >= _PERIOD or int(scale_bits.min()) < 0 or int(scale_bits.max()) >= _INFINITE:
            raise Unreadable("a token's scale, or where the dither begins, is out of range")
        # A copy: what was unpacked may be read-only memory of the message.
        found = torch.from_numpy(next(symbols).astype(np.float32))
        scale = _scale(scale_bits)
        found.sub_(_dither(start, found.shape)).sub_(self._middle - 0.5).div_(self._reach(scale)).mul_(scale)
        limit = torch.finfo(torch.float32).max
        return found.clamp_(-limit, limit) if float(scale.max()) > limit / 1024 else found

    def _reach(self, scale: torch.Tensor) -> torch.Tensor:
        """M / step for each token [tokens, 1], from the scales M as they are sent."""
        import torch

        own = self._levels / 2
        if not self._coded or not bool((scale > 0).any()):
            return torch.full_like(scale, own)
        middle = scale[scale > 0].median()
        return scale.div(middle).sqrt_().mul_(own).clamp_(own / _COARSEST, self._middle)


def _scale(bits: torch.Tensor) -> torch.Tensor:
    """Float32 whose upper half are these 16 bits."""
    import torch

    return (bits.to(torch.int32) << 16).view(torch.float32)


def _dither(start: int, shape: Any) -> torch.Tensor:
    """u for each value, in row-major order: a fixed row of numbers, begun at ``start``. Over all starts each value meets each number once."""
    import torch

    count = shape[0] * shape[1]
    table = _table()
    return torch.cat([table[start:], table.repeat(-(-count // _PERIOD))])[:count].reshape(shape[0], shape[1])


@lru_cache(maxsize=1)
def _table() -> torch.Tensor:
    """(k + 1/2) / period for all k, shuffled. Made of whole numbers, so it is the same everywhere."""
    import torch

    order = np.argsort(_scrambled(np.arange(_PERIOD, dtype=np.uint64)), kind="stable")
    return torch.from_numpy(((order + 0.5) / _PERIOD).astype(np.float32))


def _scrambled(numbers: Any) -> Any:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014) of 64-bit whole numbers."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
