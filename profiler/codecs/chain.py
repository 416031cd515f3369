"""A codec as it is named: a stage that turns values into symbols, then a packer that turns symbols into bytes.

    tensor -> rows [tokens, channels] -> stage -> symbols: matrices of small integers -> packer -> bytes

A stage tells from the shape alone which matrices of symbols there will be. So the decoder knows every size before it reads a byte of the
payload, and nothing in the payload can make it take more memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Symbols = NDArray[np.uint8]
"""Symbols of one kind, [rows, columns]; columns are of like meaning, each with statistics of its own."""


@dataclass(frozen=True)
class Layout:
    """The shape of one matrix of symbols, each in 0..2^bits - 1."""

    rows: int
    columns: int
    bits: int = 8

    @property
    def size(self) -> int:
        """Number of symbols."""
        return self.rows * self.columns


class Stage(Protocol):
    """Values to symbols and back."""

    exact: bool
    """Bit for bit: the values may be anything."""
    unbiased: bool

    def layouts(self, tokens: int, channels: int, dtype: torch.dtype) -> list[Layout]:
        """Which symbols there are for rows of this shape, which come from a tensor of ``dtype``."""
        ...

    def symbols(self, rows: torch.Tensor, dtype: torch.dtype, seed: int) -> list[Symbols]:
        """Symbols of ``rows`` [tokens, channels] as ``layouts`` says: finite float32 of at least one value; ``dtype`` itself for an exact stage."""
        ...

    def values(self, symbols: Iterator[Symbols], tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows again, taking its own matrices from ``symbols``. Raises Unreadable where they make none."""
        ...


class Packer(Protocol):
    """Symbols to bytes and back."""

    def pack(self, symbols: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes:
        """One payload."""
        ...

    def unpack(self, payload: memoryview, layouts: Sequence[Layout]) -> list[Symbols]:
        """The symbols again. Raises Unreadable for any bytes that ``pack`` did not make for these layouts."""
        ...


class Chain:
    """A codec (see ``profiler.codecs.Codec``)."""

    def __init__(self, name: str, stage: Stage, packer: Packer) -> None:
        self.name, self._stage, self._packer = name, stage, packer
        self.unbiased = stage.unbiased

    def encode(self, tensor: torch.Tensor, seed: int) -> bytes:
        """See ``profiler.codecs.Codec.encode``."""
        import torch

        tokens, channels = _rows(tensor.shape)
        plain = tensor.detach().cpu()
        if not self._stage.exact:
            if not tensor.is_floating_point():
                raise ValueError(f"{self.name}: a tensor of {tensor.dtype}; expected floating point")
            plain = plain.to(torch.float32)
            if plain.numel() and not math.isfinite(float(torch.linalg.vector_norm(plain, math.inf))):
                raise ValueError(f"{self.name}: NaN or infinite values in the tensor; expected finite ones")
        if plain.numel() == 0:
            return b""
        found = self._stage.symbols(plain.reshape(tokens, channels), tensor.dtype, seed)
        return self._packer.pack(found, self._stage.layouts(tokens, channels, tensor.dtype))

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See ``profiler.codecs.Codec.decode``."""
        import torch

        from profiler.codecs import Unreadable

        view = memoryview(payload).cast("B")
        tokens, channels = _rows(shape)
        if not self._stage.exact and not dtype.is_floating_point:
            raise Unreadable(f"{self.name}: a tensor of {dtype}, expected floating point")
        if tokens * channels == 0:
            if view.nbytes:
                raise Unreadable(f"{self.name}: {view.nbytes:,} bytes for an empty tensor, expected none")
            return torch.empty(shape, dtype=dtype)
        try:
            symbols = self._packer.unpack(view, self._stage.layouts(tokens, channels, dtype))
            rows = self._stage.values(iter(symbols), tokens, channels, dtype)
        except Unreadable as error:
            raise Unreadable(f"{self.name}: {error}") from None
        if rows.dtype != dtype:
            # What was rounded up beyond this dtype's largest value stays finite.
            limit = min(torch.finfo(dtype).max, torch.finfo(rows.dtype).max)
            rows = rows.clamp_(-limit, limit).to(dtype)
        return rows.reshape(shape)


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    """(tokens, channels) of a tensor of any shape; a scalar is one of each."""
    channels = shape[-1] if len(shape) else 1
    return math.prod(shape[:-1]), channels


def to_bytes(tensor: torch.Tensor) -> Symbols:
    """The bytes of a tensor in this machine's order (little-endian wherever torch runs), [values, bytes of one]."""
    import torch

    raw: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    found: Symbols = raw.reshape(-1, tensor.element_size())
    return found


def from_bytes(raw: Symbols, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of its own memory out of bytes."""
    import torch

    made = torch.empty(shape, dtype=dtype)
    made.reshape(-1).view(torch.uint8).numpy()[:] = raw.reshape(-1)
    return made
