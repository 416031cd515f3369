"""Compression of what crosses the cut: one file a stage.

A codec turns one tensor into bytes and back. Its name says all that the other side must know, so a name is what options, messages and
profiles hold. It has at most three stages:

    none                raw bytes, bit for bit                                                       raw.py
    fp16, bf16          half precision                                                               half.py
    int2 ... int8       so many bits a value, a scale a token, stochastic and without bias           ints.py
    int8-o2             so, with 2 outlier channels kept in fp16                                     outliers.py
    top10-int8-o2       the largest 10 % of a token's values alone (before int or half precision)    topk.py
    ...+zstd            lossless coding after any of these                                           zstd.py

The same name gives the same bytes for the same tensor and seed on any machine; with ``+zstd`` on any that has the same release of the
zstd library, and what they decode to is the same in any case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from profiler.profile import BadInput

if TYPE_CHECKING:
    import torch

_NAME = re.compile(
    r"(?:top(?P<top>[1-9][0-9]?)-)?(?:(?P<plain>none|fp16|bf16)|int(?P<bits>[2-8])(?:-o(?P<outliers>[1-9][0-9]?))?)"
    r"(?P<zstd>\+zstd)?"
)
EXPECTED = (
    "expected none, fp16, bf16, int2 to int8 (int8-o2: with 2 outlier channels kept in fp16), before them topN- for the largest "
    "N % of the values, after them +zstd; as in int6-o2+zstd"
)


class Unreadable(ValueError):
    """A payload that does not decode. The message is one line: what was expected and what was found."""


class Codec(Protocol):
    """One way to turn a tensor into bytes."""

    name: str
    unbiased: bool
    """The mean over seeds of what comes back is what was encoded (but for the rounding of what is kept in fp16)."""

    def encode(self, tensor: torch.Tensor, seed: int) -> bytes:
        """The bytes of ``tensor``: any shape, the last dimension is the channels, all others are tokens; floating point, on any
        device. ``seed`` (0 or more) is that of stochastic rounding.

        Raises ValueError for NaN or infinite values, which a lossy codec would spread; ``none`` carries whatever there is.
        """
        ...

    def decode(self, payload: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The tensor of ``shape`` and ``dtype``, on the CPU. Memory is bounded by the shape, whatever the payload.

        Raises Unreadable for bytes that no encoder made for this shape and dtype. All values are finite, but with ``none``.
        """
        ...


def codec(name: str) -> Codec:
    """The codec of that name. Raises BadInput, saying which there are, for any other."""
    found = _NAME.fullmatch(name)
    if found is None or (found["top"] and found["plain"] == "none"):
        raise BadInput(f"codec {name[:60]!r}: {EXPECTED}")
    from profiler.codecs.chain import Chain, Stage
    from profiler.codecs.half import Half
    from profiler.codecs.ints import Ints
    from profiler.codecs.outliers import Outliers
    from profiler.codecs.packing import Dense
    from profiler.codecs.raw import Raw
    from profiler.codecs.topk import TopK
    from profiler.codecs.zstd import Zstd

    if found["plain"] == "none":
        return Chain(name, Raw(), Zstd() if found["zstd"] else Dense())
    stage: Stage = Ints(int(found["bits"]), coded=bool(found["zstd"])) if found["bits"] else Half(found["plain"])
    if found["top"]:
        stage = TopK(int(found["top"]), stage)
    if found["outliers"]:
        stage = Outliers(int(found["outliers"]), stage)
    return Chain(name, stage, Zstd() if found["zstd"] else Dense())
