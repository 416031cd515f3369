"""``fp16`` and ``bf16``: 16 bits a value, rounded to nearest.

fp16 has 11 bits of precision but spans only 6e-8..65504, where activations reach tens of thousands and gradients fall below 1e-8.
So each token bears a power of two, two bytes, that brings its largest value to 2^14..2^15: such a scale is exact, nothing overflows, and what
underflows is below 2^-38 of the token's largest value. bf16 has 8 bits of precision and the range of float32; it needs no scales.
A tensor that has this dtype already is sent as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from profiler.codecs import Unreadable
from profiler.codecs.chain import Layout, Symbols, from_bytes, to_bytes

if TYPE_CHECKING:
    import torch

_LARGEST = 15
"""The largest value of each token is scaled to [2^14, 2^15): rounded up it still is in fp16's range."""
_EXPONENTS = 200
"""No power of two of a float32 is larger than this, up or down."""


class Half:
    """``name`` is fp16 or bf16."""

    exact = False
    unbiased = False

    def __init__(self, name: str) -> None:
        self.name = name

    def _dtype(self) -> torch.dtype:
        import torch

        return torch.float16 if self.name == "fp16" else torch.bfloat16

    def _scaled(self, dtype: torch.dtype) -> bool:
        return self.name == "fp16" and dtype != self._dtype()

    def layouts(self, tokens: int, channels: int, dtype: torch.dtype) -> list[Layout]:
        """The tokens' exponents (int16) where there are any, and 16 bits a value."""
        return [Layout(tokens, 2)] * self._scaled(dtype) + [Layout(tokens * channels, 2)]

    def symbols(self, rows: torch.Tensor, dtype: torch.dtype, seed: int) -> list[Symbols]:
        """Rounding is to nearest: the seed has no part in it."""
        import torch

        if not self._scaled(dtype):
            limit = torch.finfo(self._dtype()).max  # a float32 just above bf16's largest would become infinite
            return [to_bytes(rows.clamp(-limit, limit).to(self._dtype()))]
        _, exponents = torch.frexp(torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True))
        exponents = exponents.to(torch.int16) - _LARGEST
        return [to_bytes(exponents), to_bytes(_times_power(rows, -exponents).to(torch.float16))]

    def values(self, symbols: Iterator[Symbols], tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """Float32; NaN, infinities and powers of two that no float32 has are refused."""
        import torch

        exponents = from_bytes(next(symbols), (tokens, 1), torch.int16) if self._scaled(dtype) else None
        values = from_bytes(next(symbols), (tokens, channels), self._dtype()).to(torch.float32)
        if not torch.isfinite(values).all():
            raise Unreadable("NaN or infinite values")
        if exponents is None:
            return values
        if int(exponents.min()) < -_EXPONENTS or int(exponents.max()) > _EXPONENTS:
            raise Unreadable("a token's power of two is beyond what floating point has")
        limit = torch.finfo(torch.float32).max
        return _times_power(values, exponents).clamp_(-limit, limit)


def _times_power(rows: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """rows x 2^exponents, one a row, exactly wherever the result is a normal number: in two steps, for 2^150 is beyond float32."""
    first = exponents >> 1
    return rows.mul(_power(first)).mul_(_power(exponents - first))


def _power(exponents: torch.Tensor) -> torch.Tensor:
    """2^exponents as float32, by its bits; exponents in -126..127."""
    import torch

    return (exponents.to(torch.int32) + 127 << 23).view(torch.float32)
