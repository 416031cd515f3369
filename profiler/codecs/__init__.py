"""Compression of what crosses the cut: one file a codec.

A codec turns one tensor into bytes and back. Its name says all that the other side must know, so a name is what options, messages and
profiles hold. A name is values, then how their bytes are packed:

    none            raw bytes, bit for bit                                        raw.py
    fp16, bf16      half precision                                                half.py

``codec(name)`` gives the codec. The same name gives the same bytes for the same tensor and seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from profiler.profile import BadInput

if TYPE_CHECKING:
    import torch


class Unreadable(ValueError):
    """A payload that does not decode. The message is one line: what was expected and what was found."""


class Codec(Protocol):
    """One way to turn a tensor into bytes."""

    name: str

    def encode(self, tensor: torch.Tensor, seed: int) -> bytes:
        """The bytes of ``tensor`` (any shape, floating point, on any device). ``seed``: of stochastic rounding.

        Raises ValueError for NaN or infinite values, which a lossy codec would spread.
        """
        ...

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The tensor of ``shape`` and ``dtype``, on the CPU. Memory is bounded by the shape, whatever the payload.

        Raises Unreadable for bytes that no encoder made for this shape and dtype.
        """
        ...


def codec(name: str) -> Codec:
    """The codec of that name. Raises BadInput, listing the known ones, for any other."""
    from profiler.codecs.half import Half
    from profiler.codecs.raw import Raw

    if name == "none":
        return Raw()
    if name in ("fp16", "bf16"):
        return Half(name)
    raise BadInput(f"codec {name[:60]!r}: expected none, fp16 or bf16")
