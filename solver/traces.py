"""Rates from a CSV trace: ``round,device,uplink_mbps,downlink_mbps``, Mbit = 1e6 bit.

Two readers give one answer. The fast one takes whole columns with pandas, and only files in which it is certain of every row. Anything
else goes to the careful one, which walks from row to row and names the first mistake by line and column.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from profiler.profile import BadInput
from profiler.store import read_bytes
from solver.costs import Floats

TRACE_COLUMNS = ("round", "device", "uplink_mbps", "downlink_mbps")
MAX_TRACE_BYTES = 256 * 1024 * 1024
MIN_MBPS, MAX_MBPS = 1e-6, 1e7
FEW_BYTES = 64 * 1024
"""A smaller file is read row by row: pandas takes longer to load."""


@dataclass(frozen=True)
class Trace:
    """Rounds (R,) as the file counts them, rates in bit/s (R, M)."""

    rounds: list[int]
    uplink_bps: Floats
    downlink_bps: Floats


def read_trace(path: Path, names: list[str], rounds: int | None) -> Trace:
    """Read a trace for the devices ``names`` (M,). Its rounds count from 1 (or from 0) without a gap; every round names every
    device once. ``rounds`` None: all of them.

    Raises BadInput naming file, line and column, and what was expected.
    """
    try:
        raw = read_bytes(path, MAX_TRACE_BYTES, "a trace of rates")
    except OSError as error:
        raise BadInput(
            f"--channel {path}: expected good, normal, poor or a readable CSV or JSON file ({error.strerror or error})"
        ) from None
    found = _columns(raw, names, rounds) if len(raw) > FEW_BYTES else None
    return found or _rows(path, raw, names, rounds)


# ---------------------------------------------------------------------------------------------------------- in columns


def _columns(raw: bytes, names: list[str], rounds: int | None) -> Trace | None:
    """The trace, or None wherever the careful reader might see anything else in the file."""
    import pandas as pd

    raw = raw.removeprefix(b"\xef\xbb\xbf")
    # A quote may hide a comma, a carriage return alone may end a line or not.
    if b'"' in raw or b"\0" in raw or raw.count(b"\r") != raw.count(b"\r\n"):
        return None
    header = raw.partition(b"\n")[0].strip().decode("ascii", "replace").split(",")
    if any(header.count(column) != 1 for column in TRACE_COLUMNS) or not _even(raw, len(header)):
        return None
    try:
        table = pd.read_csv(
            io.BytesIO(raw),
            usecols=TRACE_COLUMNS,
            dtype={"round": str, "device": str, "uplink_mbps": float, "downlink_mbps": float},
            na_filter=False,
            float_precision="round_trip",
            encoding="utf-8",
        )
    except (ValueError, OverflowError, UnicodeDecodeError):  # pandas' own parser errors are ValueErrors
        return None
    (label, labels), (kind, kinds) = (pd.factorize(table[column]) for column in ("round", "device"))
    if not len(table) or any(name not in names for name in kinds) or not all(_is_round(text) for text in labels):
        return None
    number = np.array([int(text) for text in labels])[label]
    device = np.array([names.index(name) for name in kinds])[kind]
    first, last = int(number.min()), int(number.max())
    count = last - first + 1
    if first not in (0, 1) or len(number) != count * len(names) or (rounds is not None and rounds > count):
        return None
    place = (number - first) * len(names) + device
    if not np.all(np.bincount(place, minlength=count * len(names)) == 1):
        return None
    rates = []
    for column in TRACE_COLUMNS[2:]:
        mbps = np.empty(len(place))
        mbps[place] = table[column].to_numpy()
        if not np.all((mbps >= MIN_MBPS) & (mbps <= MAX_MBPS)):  # NaN fails too
            return None
        rates.append((mbps * 1e6).reshape(count, len(names))[:rounds])
    return Trace(list(range(first, first + len(rates[0]))), rates[0], rates[1])


def _even(raw: bytes, columns: int) -> bool:
    """Whether every line has as many cells as the header, or none at all. pandas would fill up a short one without a word."""
    text = np.frombuffer(raw, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    ends = np.append(ends, len(text)) if len(ends) == 0 or ends[-1] != len(text) - 1 else ends
    commas = np.searchsorted(np.flatnonzero(text == ord(",")), ends)
    return bool(np.all(np.diff(commas, prepend=0) == columns - 1))


# ------------------------------------------------------------------------------------------------------- row by row


def _rows(path: Path, raw: bytes, names: list[str], rounds: int | None) -> Trace:
    seen: dict[tuple[int, str], tuple[int, float, float]] = {}
    try:
        with io.TextIOWrapper(io.BytesIO(raw), newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            missing = [column for column in TRACE_COLUMNS if column not in header]
            if missing:
                raise BadInput(f"{path}: line 1: column {missing[0]} is missing, expected {','.join(TRACE_COLUMNS)}")
            for column in TRACE_COLUMNS:
                if header.count(column) > 1:
                    raise BadInput(
                        f"{path}: line 1: column {column} stands {header.count(column)} times, expected once"
                    )
            places = [header.index(column) for column in TRACE_COLUMNS]
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(header):
                    raise BadInput(f"{where}: {len(row)} columns, expected {len(header)}")
                number, device, up, down = (row[place].strip() for place in places)
                if not _is_round(number):
                    raise BadInput(f"{where}: column round is {number[:40]!r}, expected a whole number")
                if device not in names:
                    raise BadInput(f"{where}: column device is {device[:100]!r}, expected one of {', '.join(names)}")
                key = (int(number), device)
                if key in seen:
                    raise BadInput(
                        f"{where}: column device: round {key[0]} of {device} stands already on line {seen[key][0]}"
                    )
                pair = [_rate(where, column, text) for column, text in zip(TRACE_COLUMNS[2:], (up, down), strict=True)]
                seen[key] = (reader.line_num, pair[0], pair[1])
    except UnicodeDecodeError:
        raise BadInput(f"{path}: expected a CSV file in UTF-8") from None
    except csv.Error as error:
        raise BadInput(f"{path}: line {reader.line_num}: expected CSV: {error}") from None
    if not seen:
        raise BadInput(f"{path}: line 2: expected at least one row under the header")
    numbers = {number for number, _ in seen}
    first = min(numbers)
    if first not in (0, 1):
        raise BadInput(f"{path}: column round begins at {first}, expected 1")
    labels = range(first, first + (rounds if rounds is not None else max(numbers) - first + 1))
    for label in labels:
        for name in names:
            if (label, name) not in seen:
                if label > max(numbers):
                    raise BadInput(
                        f"{path}: it ends with round {max(numbers)}, and --rounds asks for {len(labels)} rows of each device"
                    )
                raise BadInput(
                    f"{path}: round {label} of device {name} is missing, expected every device in every round"
                )
    up_down = np.array([[seen[label, name][1:] for name in names] for label in labels]) * 1e6
    return Trace(list(labels), up_down[:, :, 0], up_down[:, :, 1])


def _is_round(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _rate(where: str, column: str, text: str) -> float:
    try:
        value = math.nan if "_" in text else float(text)  # 1_000 is Python's grouping, which no table means
    except ValueError:
        value = math.nan
    if not MIN_MBPS <= value <= MAX_MBPS:
        raise BadInput(
            f"{where}: column {column} is {text[:40]!r}, expected a rate in Mbit/s from {MIN_MBPS:g} to {MAX_MBPS:g}"
        )
    return value
