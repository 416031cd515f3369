"""Symbols of 1 to 8 bits packed densely, eight of b bits into b bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from profiler.codecs import Unreadable
from profiler.codecs.chain import Layout, Symbols


def packed_length(count: int, bits: int) -> int:
    """Bytes that ``count`` symbols take."""
    return (count * bits + 7) // 8


def pack_bits(symbols: Symbols, bits: int) -> bytes:
    """Symbols in 0..2^bits - 1, in row-major order. The first of eight takes the lowest bits."""
    flat = np.ascontiguousarray(symbols).reshape(-1)
    if bits == 8:
        return flat.tobytes()
    length = packed_length(flat.size, bits)
    eights = np.pad(flat, (0, -flat.size % 8)).reshape(-1, 8)
    word = np.zeros(len(eights), dtype="<u8")
    for place in range(8):
        word |= eights[:, place].astype("<u8") << np.uint64(place * bits)
    packed = word.view(np.uint8).reshape(-1, 8)[:, :bits]
    return packed.tobytes()[:length]


def unpack_bits(payload: memoryview, count: int, bits: int) -> Symbols:
    """What ``pack_bits`` packed; the payload has the right length."""
    raw = np.frombuffer(payload, np.uint8)
    if bits == 8:
        return raw
    padded = np.zeros(-(-count // 8) * bits, np.uint8)
    padded[: raw.size] = raw
    words = np.zeros((padded.size // bits, 8), np.uint8)
    words[:, :bits] = padded.reshape(-1, bits)
    word = words.view("<u8").reshape(-1)
    flat = np.empty((len(word), 8), np.uint8)
    mask = np.uint64((1 << bits) - 1)
    for place in range(8):
        flat[:, place] = (word >> np.uint64(place * bits)) & mask
    return flat.reshape(-1)[:count]


class Dense:
    """Every matrix of symbols after the other, at its bits a symbol."""

    def pack(self, symbols: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes:
        """Its length follows from the layouts alone."""
        return b"".join(pack_bits(matrix, layout.bits) for matrix, layout in zip(symbols, layouts, strict=True))

    def unpack(self, payload: memoryview, layouts: Sequence[Layout]) -> list[Symbols]:
        """Raises Unreadable where the length is not the one that the layouts make."""
        expected = sum(packed_length(layout.size, layout.bits) for layout in layouts)
        if payload.nbytes != expected:
            raise Unreadable(f"payload of {payload.nbytes:,} bytes, expected {expected:,}")
        found, at = [], 0
        for layout in layouts:
            length = packed_length(layout.size, layout.bits)
            flat = unpack_bits(payload[at : at + length], layout.size, layout.bits)
            found.append(flat.reshape(layout.rows, layout.columns))
            at += length
        return found
