"""``+zstd``: lossless coding of the symbols, by the zstd library.

Its Huffman coder takes one table for a stretch of bytes, so what is alike is laid together: the columns of a matrix (channels, or the bytes of a
value) are put into groups by how large their symbols are, and each group is coded by itself. On activations, whose channels differ, this
saves about a third of a bit a value. Symbols of up to 4 bits are packed before, so that less than one bit a symbol can be reached.

    payload: for each matrix of symbols   groups, 1 byte; [if more than one: the group of each column, a frame]; a frame for each group
    frame:   length, 4 bytes; a zstd frame that says its content's size
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from profiler.codecs import Unreadable
from profiler.codecs.chain import Layout, Symbols
from profiler.codecs.packing import pack_bits, packed_length, unpack_bits
from profiler.profile import MissingHardware

_LEVEL = 1
_GROUPS = 16
_GROUP_BYTES = 16_384
"""A table costs about a hundred bytes: a group has at least this many symbols."""
_ROWS = 256
"""Rows from which a column's size is judged."""


class Zstd:
    """Packs symbols as above."""

    def pack(self, symbols: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes:
        """Bytes depend on the release of zstd, the symbols that they unpack to do not."""
        compressor = _library().ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)
        parts: list[bytes] = []

        def frame(raw: bytes) -> None:
            coded = compressor.compress(raw)
            parts.extend((struct.pack("<I", len(coded)), coded))

        for matrix, layout in zip(symbols, layouts, strict=True):
            groups = _group_count(layout)
            parts.append(bytes([groups]))
            if groups == 1:
                frame(pack_bits(matrix, _width(layout.bits)))
                continue
            labels = _labels(matrix, layout, groups)
            frame(labels.tobytes())
            columns = np.ascontiguousarray(matrix.T)
            for group in range(groups):
                frame(pack_bits(columns[labels == group], _width(layout.bits)))
        return b"".join(parts)

    def unpack(self, payload: memoryview, layouts: Sequence[Layout]) -> list[Symbols]:
        """A frame is only unpacked when it says the size that is expected."""
        reader = _Reader(payload)
        found = []
        for layout in layouts:
            width = _width(layout.bits)
            groups = reader.byte()
            if not 1 <= groups <= max(1, min(_GROUPS, layout.columns)):
                raise Unreadable(f"{groups} groups of columns")
            if groups == 1:
                flat = unpack_bits(reader.frame(packed_length(layout.size, width)), layout.size, width)
                matrix = flat.reshape(layout.rows, layout.columns)
            else:
                labels = np.frombuffer(reader.frame(layout.columns), np.uint8)
                if int(labels.max()) >= groups:
                    raise Unreadable("a column of a group that is not there")
                columns = np.empty((layout.columns, layout.rows), np.uint8)
                for group in range(groups):
                    mine = labels == group
                    count = int(mine.sum()) * layout.rows
                    columns[mine] = unpack_bits(reader.frame(packed_length(count, width)), count, width).reshape(
                        -1, layout.rows
                    )
                matrix = np.ascontiguousarray(columns.T)
            if layout.bits < width and matrix.size and int(matrix.max()) >> layout.bits:
                raise Unreadable(f"a symbol of more than {layout.bits} bits")
            found.append(matrix)
        reader.end()
        return found


class _Reader:
    """Frames of a payload, one after the other."""

    def __init__(self, payload: memoryview) -> None:
        self._payload, self._at = payload, 0
        self._zstd = _library()
        self._decompressor = self._zstd.ZstdDecompressor()

    def byte(self) -> int:
        return self._take(1)[0]

    def frame(self, length: int) -> memoryview:
        (coded,) = struct.unpack("<I", self._take(4))
        raw = self._take(coded)
        try:
            # The library would make room for whatever size the frame says, so that is read first.
            if self._zstd.frame_content_size(raw) != length:
                raise Unreadable(f"a frame of {self._zstd.frame_content_size(raw):,} bytes, expected {length:,}")
            content = self._decompressor.decompress(raw, max_output_size=length, allow_extra_data=False)
        except self._zstd.ZstdError as error:
            raise Unreadable(f"not a zstd frame: {str(error)[:100]}") from None
        if len(content) != length:
            raise Unreadable(f"a frame of {len(content):,} bytes, expected {length:,}")
        return memoryview(content)

    def end(self) -> None:
        if self._at != self._payload.nbytes:
            raise Unreadable(f"{self._payload.nbytes - self._at:,} bytes too many")

    def _take(self, length: int) -> memoryview:
        taken = self._payload[self._at : self._at + length]
        if taken.nbytes != length:
            raise Unreadable(f"the payload ends after {self._payload.nbytes:,} bytes, expected more")
        self._at += length
        return taken


def _width(bits: int) -> int:
    """Bits that a symbol takes before zstd, which sees bytes: of 5 bits or more each is a byte."""
    return 8 if bits > 4 else 4 if bits == 3 else bits


def _group_count(layout: Layout) -> int:
    if layout.columns <= 4:  # bytes of values
        return max(1, layout.columns) if layout.size > 256 else 1
    return max(1, min(_GROUPS, layout.columns, layout.size // _GROUP_BYTES))


def _labels(matrix: Symbols, layout: Layout, groups: int) -> Any:
    """The group of each column: columns in order of the mean distance of their symbols from the middle one, in equal parts."""
    some = matrix[:: max(1, layout.rows // _ROWS)].astype(np.int16)
    away = np.abs(2 * some - (2**layout.bits - 1)).sum(axis=0, dtype=np.int64)
    labels = np.empty(layout.columns, np.uint8)
    labels[np.argsort(away, kind="stable")] = np.arange(layout.columns) * groups // layout.columns
    return labels


def _library() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingHardware("codec +zstd needs the package zstandard: pip install zstandard") from None
    return zstandard
