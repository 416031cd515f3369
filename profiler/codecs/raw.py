"""``none``: the tensor's own bytes, bit for bit. And what every other codec needs: tensors to and from bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from profiler.codecs import Unreadable

if TYPE_CHECKING:
    import torch


class Raw:
    """Raw bytes of any dtype."""

    name = "none"

    def length(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes of the payload for a tensor of this shape and dtype."""
        return math.prod(shape) * dtype.itemsize

    def encode(self, tensor: torch.Tensor, seed: int) -> bytes:
        """All bytes in row-major order, as this machine has them (little-endian on all that torch supports)."""
        return to_bytes(tensor)

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of its own, so that the message that it came in can go."""
        return from_bytes(payload, shape, dtype)


def to_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor on any device, of any dtype."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    if plain.numel() == 0:
        return b""
    raw: bytes = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return raw


def from_bytes(payload: bytes | memoryview, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The tensor that ``to_bytes`` was given. Raises Unreadable where the length is another."""
    import torch

    expect(payload, math.prod(shape) * dtype.itemsize)
    tensor = torch.empty(tuple(shape), dtype=dtype)
    if tensor.numel():
        tensor.reshape(-1).view(torch.uint8).numpy()[:] = np.frombuffer(payload, np.uint8)
    return tensor


def expect(payload: bytes | memoryview, length: int) -> None:
    """Raises Unreadable where the payload has not this length in bytes."""
    found = memoryview(payload).nbytes
    if found != length:
        raise Unreadable(f"payload of {found:,} bytes, expected {length:,}")


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """(tokens, channels): the last dimension is the channels, all others together the tokens."""
    channels = shape[-1] if len(shape) else 1
    return (math.prod(shape) // channels if channels else 0), channels


def finite_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as float32 [tokens, channels] on the CPU. Raises ValueError for NaN and infinities: they would spread."""
    import torch

    if not tensor.is_floating_point():
        raise ValueError(f"a tensor of {tensor.dtype}: expected floating point")
    plain = tensor.detach().to(device="cpu", dtype=torch.float32).reshape(rows_of(tensor.shape))
    if plain.numel() and not math.isfinite(float(plain.abs().max())):
        raise ValueError("NaN or infinite values in the tensor: expected finite ones")
    return plain
