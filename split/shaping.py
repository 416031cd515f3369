"""A link slowed inside the process: what a Stream sends takes the time that it would take on the link asked for.

For tests, demos and the comparison of prediction and measurement. ``n`` bytes handed over at time t have arrived at

    max(t, when the link is free) + 8 n / rate + delay

in order; the link is free again ``delay`` before that, so a long delay does not lower the rate. Both directions of a real link need a
Shape at each end. This is emulation: no losses, no congestion, and the machine's own work on the bytes comes on top.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.profile import BadInput, printable
from profiler.store import read_bytes

Trace = Sequence[tuple[float, float]]
"""(seconds, bit/s): this rate for that long, one after the other; the last rate stays. A rate of 0 is an outage."""


class Shape:
    """A rate in bit/s (None: unlimited), or a trace of rates that begins with the first byte sent, and a delay in seconds.

    Raises BadInput for figures that are no link. Safe to use from several threads.
    """

    def __init__(
        self, rate_bps: float | Trace | None = None, delay_s: float = 0.0, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 <= delay_s <= 3600:
            raise BadInput(f"delay of a shaped link: {delay_s} s, expected 0 to 3600")
        self.delay_s = delay_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._trace = _checked(rate_bps)
        self._began_s: float | None = None  # of the trace
        self._free_s = -math.inf

    def __repr__(self) -> str:
        return f"Shape({list(self._trace)!r}, delay_s={self.delay_s!r})"

    def copy(self) -> Shape:
        """Another link of the same kind: idle, its trace not begun."""
        with self._lock:
            return Shape(self._trace, self.delay_s, self._now_s)

    def set_rate(self, rate_bps: float | Trace | None) -> None:
        """The rate of what is handed over from now on; what is on its way stays as it was."""
        trace = _checked(rate_bps)
        with self._lock:
            self._trace, self._began_s = trace, None

    def book(self, sizes: Sequence[int]) -> tuple[float, list[float]]:
        """Take the link for pieces of these sizes in bytes: when the link is free again, and when each piece has arrived.

        Times are readings of the monotonic clock. The caller hands each piece on at its time.
        """
        with self._lock:
            now = self._now_s()
            if self._began_s is None:
                self._began_s = now
            sent = max(now, self._free_s)
            arrivals = []
            for size in sizes:
                sent = self._sent(sent, 8.0 * size)
                arrivals.append(sent + self.delay_s)
            self._free_s = sent
            return sent, arrivals

    def _sent(self, start: float, bits: float) -> float:
        """When ``bits`` are through that go out from ``start`` on."""
        began = self._began_s if self._began_s is not None else start
        for seconds, rate in self._trace[:-1]:
            ends = began + seconds
            if start < ends:
                if rate > 0 and bits <= rate * (ends - start):
                    return start + bits / rate
                bits -= rate * (ends - start)
                start = ends
            began = ends
        return start + bits / self._trace[-1][1]


def _checked(rate: float | Trace | None) -> tuple[tuple[float, float], ...]:
    if rate is None:
        return ((0.0, math.inf),)
    trace = ((0.0, rate),) if isinstance(rate, (int, float)) else tuple(rate)
    if not trace:
        raise BadInput("trace of a shaped link: empty, expected pairs of seconds and bit/s")
    for seconds, bps in trace:
        if not (0 <= seconds <= 1e9 and bps >= 0):
            raise BadInput(f"rate of a shaped link: {bps} bit/s for {seconds} s, expected 0 or more for 0 to 1e9 s")
    if trace[-1][1] < 1:
        raise BadInput(f"rate of a shaped link: it ends with {trace[-1][1]} bit/s, expected at least 1")
    return trace


# ------------------------------------------------------------------------------------------------------ traces in files

COLUMNS = ("time_s", "uplink_mbps", "downlink_mbps")
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_ROWS = 4096
MAX_MBPS = 1e7


@dataclass(frozen=True)
class LinkTrace:
    """Both directions of a link over time. ``uplink`` is from the device to the server."""

    uplink: Trace
    downlink: Trace

    def rest(self, elapsed_s: float) -> LinkTrace:
        """What is left of it after that time; its first rates are those that hold then."""
        return LinkTrace(_rest(self.uplink, elapsed_s), _rest(self.downlink, elapsed_s))

    def next_rates_bps(self) -> tuple[float, float]:
        """The first rates up and down, those after an outage where it begins with one."""
        up, down = (next(bps for _, bps in way if bps >= 1) for way in (self.uplink, self.downlink))
        return up, down


def _rest(trace: Trace, elapsed_s: float) -> Trace:
    for k, (seconds, bps) in enumerate(trace[:-1]):
        if elapsed_s < seconds:
            return [(seconds - elapsed_s, bps), *trace[k + 1 :]]
        elapsed_s -= seconds
    return trace[-1:]


def read_link_trace(path: Path, option: str = "--trace") -> LinkTrace:
    """Rates over time from a CSV file with the columns ``time_s,uplink_mbps,downlink_mbps``: from that second on these rates, Mbit = 1e6 bit;
    0 is an outage. The first row stands at second 0, the last one's rates stay. Or the rates of a radio channel, as ``card-solve channel
    STATE --json`` prints them: two rates that stay.

    Raises BadInput naming file, line and column, and what was expected.
    """
    try:
        raw = read_bytes(path, MAX_FILE_BYTES, "a trace of rates over time")
    except OSError as error:
        raise BadInput(f"{option} {path}: expected a readable CSV file ({error.strerror or error})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{option} {path}: expected a CSV file in UTF-8") from None
    return _of_channel(path, text) if text.lstrip().startswith("[") else _of_rows(path, text)


def _of_channel(path: Path, text: str) -> LinkTrace:
    try:
        rates = {row["direction"]: float(row["rate_bps"]) for row in json.loads(text) if row["device"] is None}
        return LinkTrace(_checked(rates["uplink"]), _checked(rates["downlink"]))
    except (ValueError, TypeError, KeyError, RecursionError, BadInput):
        raise BadInput(f"{path}: expected what 'card-solve channel STATE --json' prints, or CSV") from None


def _of_rows(path: Path, text: str) -> LinkTrace:
    reader = csv.reader(io.StringIO(text))
    times: list[float] = []
    ways: tuple[list[float], list[float]] = ([], [])
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if sorted(header) != sorted(COLUMNS):
            # A trace with a round in each row is the solver's: it holds for turns, not for seconds.
            hint = "; a trace by rounds goes to --channel" if "round" in header else ""
            found = printable(",".join(header))[:80]
            raise BadInput(f"{path}: line 1: columns {found or 'none'}, expected {','.join(COLUMNS)}{hint}")
        places = [header.index(column) for column in COLUMNS]
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}: line {reader.line_num}"
            if len(row) != len(COLUMNS):
                raise BadInput(f"{where}: {len(row)} columns, expected {len(COLUMNS)}")
            at, up, down = (_figure(where, c, row[place]) for c, place in zip(COLUMNS, places, strict=True))
            if (times and at <= times[-1]) or (not times and at != 0):
                raise BadInput(f"{where}: column time_s is {at:g}, expected 0 in the first row, and then growing times")
            times.append(at)
            ways[0].append(1e6 * up)
            ways[1].append(1e6 * down)
            if len(times) > MAX_ROWS:
                raise BadInput(f"{where}: expected at most {MAX_ROWS} rows")
    except csv.Error as error:
        raise BadInput(f"{path}: line {reader.line_num}: expected CSV: {error}") from None
    if not times:
        raise BadInput(f"{path}: line 2: expected at least one row under the header")
    for column, way in zip(COLUMNS[1:], ways, strict=True):
        if way[-1] < 1:
            raise BadInput(f"{path}: line {reader.line_num}: column {column}: expected a rate above 0 in the last row")
    seconds = [*(b - a for a, b in itertools.pairwise(times)), 0.0]
    uplink, downlink = (_checked(list(zip(seconds, way, strict=True))) for way in ways)
    return LinkTrace(uplink, downlink)


def _figure(where: str, column: str, text: str) -> float:
    most = 1e9 if column == "time_s" else MAX_MBPS
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        unit = "seconds" if column == "time_s" else "Mbit/s"
        raise BadInput(
            f"{where}: column {column} is {printable(text.strip())[:40]!r}, expected {unit} from 0 to {most:g}"
        )
    return value
