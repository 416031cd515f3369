"""``fp16`` and ``bf16``: 16 bits a value, rounded to nearest.

fp16 has 11 bits of precision but spans only 6e-8..65504, where activations reach tens of thousands and gradients fall below 1e-8.
So each token bears a power of two, one byte, that brings its largest value to 2^14..2^15: such a scale is exact, nothing overflows, and what
underflows is 2^-38 of the token's largest value or less. bf16 has 8 bits of precision and the range of float32; it needs no scales.
A tensor that has this dtype already is sent as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from profiler.codecs import Unreadable
from profiler.codecs.raw import expect, finite_rows, from_bytes, rows_of, to_bytes

if TYPE_CHECKING:
    import torch

_LARGEST = 15
"""The largest value of each token is scaled to [2^14, 2^15): rounding up still stays in fp16's range."""


class Half:
    """``name`` is fp16 or bf16."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _dtype(self) -> torch.dtype:
        import torch

        return torch.float16 if self.name == "fp16" else torch.bfloat16

    def _scaled(self, dtype: torch.dtype) -> bool:
        return self.name == "fp16" and dtype != self._dtype()

    def length(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes of the payload for a tensor of this shape and dtype."""
        tokens, _ = rows_of(shape)
        return math.prod(shape) * 2 + (tokens * 2 if self._scaled(dtype) else 0)

    def encode(self, tensor: torch.Tensor, seed: int) -> bytes:
        """[exponents, int16 a token,] then 16 bits a value. Rounding is to nearest: the seed has no part in it."""
        import torch

        rows = finite_rows(tensor)
        if not self._scaled(tensor.dtype):
            limit = torch.finfo(self._dtype()).max  # a float32 just above bf16's largest would become infinite
            return to_bytes(rows.clamp(-limit, limit).to(self._dtype()))
        if rows.numel() == 0:
            return bytes(self.length(tensor.shape, tensor.dtype))
        _, exponents = torch.frexp(rows.abs().amax(dim=1, keepdim=True))
        exponents = exponents.to(torch.int16) - _LARGEST
        scaled = torch.ldexp(rows.to(torch.float64), -exponents)  # float64: 2^-exponent may be beyond float32
        return exponents.numpy().astype("<i2").tobytes() + to_bytes(scaled.to(torch.float16))

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Rounded values; NaN only where the payload says NaN."""
        import torch

        expect(payload, self.length(shape, dtype))
        if not self._scaled(dtype):
            return from_bytes(payload, shape, self._dtype()).to(dtype)
        tokens, channels = rows_of(shape)
        view = memoryview(payload)
        exponents = np.frombuffer(view[: 2 * tokens], "<i2").astype(np.int64)
        if np.abs(exponents).max(initial=0) > 300:
            raise Unreadable("fp16: a token's exponent is beyond what any float has")
        values = from_bytes(view[2 * tokens :], (tokens, channels), torch.float16).to(torch.float64)
        scaled = torch.ldexp(values, torch.from_numpy(exponents).reshape(-1, 1))
        return scaled.to(dtype).reshape(shape)
