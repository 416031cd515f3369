"""Where the rows of a power fit come from: the power block of a profile, or a CSV of clocks and watts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.power.curve import Array
from profiler.profile import BadInput, PowerPoint, Profile, Provenance, printable
from profiler.store import read_bytes

LOWEST_W = 1e-6
"""Far below anything a sensor of a whole processor can tell from nothing."""
_HIGHEST_W = 20_000.0
_MAX_CSV_BYTES = 64 * 1024 * 1024
_LOWEST_MHZ, _HIGHEST_MHZ = 5.0, 20_000.0
_SEPARATED = "separate cells by commas, decimals by a point"


@dataclass(frozen=True)
class Sweep:
    """Rows of one (device, workload): clocks in Hz and watts, both (rows,). ``source`` is the file they come from.

    ``capped`` marks rows measured at the power cap; without ``marked`` nobody has looked for one. ``sd_w`` (rows,) is what a
    row would scatter by if it were measured again, NaN where nobody knows. ``heat_from_hz`` is the lowest clock asked for at which
    heat held the real one down. ``domain_hz`` are the lowest and highest clock of the
    device and ``supported_hz`` the clocks it can be set to, where they are known. ``provenance`` is that of the watts. Sweeps with one ``chip``
    were made on one kind of processor.
    """

    source: str
    device: str | None
    workload: str | None
    power_scope: str | None
    frequency_hz: Array
    power_w: Array
    capped: NDArray[np.bool_]
    domain_hz: tuple[float, float] | None = None
    supported_hz: tuple[float, ...] = ()
    provenance: Provenance = "measured"
    marked: bool = True
    sd_w: Array | None = None
    heat_from_hz: float | None = None
    chip: str | None = None

    @property
    def title(self) -> str:
        """For people: device and workload as the file has them, without what could steer a terminal."""
        title = " · ".join(part for part in (self.device, self.workload) if part) or Path(self.source).stem
        return printable(title)


def read_csv(path: Path | str) -> list[Sweep]:
    """Sweeps of a CSV with the columns ``frequency_mhz,power_w`` and optionally ``device,workload,power_scope``.

    One sweep for each (device, workload), in the order of the file; other columns are ignored. Raises BadInput naming file, line and
    column for anything that cannot be used.
    """
    path = Path(path)
    try:
        text = read_bytes(path, _MAX_CSV_BYTES, "a table of clocks and watts").decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadInput(
            f"{path}: not UTF-8 text, expected a CSV with the columns frequency_mhz,power_w (spreadsheets call it 'CSV UTF-8')"
        ) from None
    if "\0" in text:
        raise BadInput(f"{path}: holds NUL bytes, expected a CSV with the columns frequency_mhz,power_w")

    # newline='': only the reader knows which line ends stand inside quotes, and that U+2028 is none
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    groups: dict[tuple[str | None, str | None], dict[str, Any]] = {}
    try:
        rows = (cells for cells in reader if any(cell.strip() for cell in cells))
        header = [cell.strip().lower() for cell in next(rows, [])]
        for needed in ("frequency_mhz", "power_w"):
            if needed not in header:
                found = ", ".join(header) if any(header) else "nothing"
                other = any(mark in cell for cell in header for mark in ";\t")
                raise BadInput(
                    f"{path}: line {reader.line_num or 1}: column {needed} is missing, found: {found[:200]}{f'; {_SEPARATED}' if other else ''}"
                )
        for column in ("frequency_mhz", "power_w", "device", "workload", "power_scope"):
            if header.count(column) > 1:
                raise BadInput(
                    f"{path}: line {reader.line_num}: column {column} stands {header.count(column)} times, expected once"
                )
        for cells in rows:
            _take_row(path, reader.line_num, header, cells, groups)
    except csv.Error as error:
        raise BadInput(f"{path}: line {reader.line_num}: not a CSV row: {error}") from None
    if not groups:
        raise BadInput(f"{path}: no rows below the header, expected at least 2 clocks with their watts")
    return [
        Sweep(
            source=str(path),
            device=device,
            workload=workload,
            power_scope=rows["scope"],
            frequency_hz=np.array(rows["mhz"]) * 1e6,
            power_w=np.array(rows["watts"]),
            capped=np.zeros(len(rows["mhz"]), dtype=bool),
            marked=False,
            chip=device or str(path),
        )
        for (device, workload), rows in groups.items()
    ]


def _take_row(path: Path, line: int, header: list[str], cells: list[str], groups: dict[Any, dict[str, Any]]) -> None:
    if len(cells) != len(header):
        many = f"; {_SEPARATED}" if len(cells) > len(header) else ""
        raise BadInput(f"{path}: line {line}: {len(cells)} cells, expected {len(header)} as in the header{many}")
    row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    mhz = _number(path, line, "frequency_mhz", row)
    watts = _number(path, line, "power_w", row)
    if mhz <= 0:
        raise BadInput(f"{path}: line {line}: frequency_mhz is {mhz:g}, expected a clock above 0 in MHz")
    if not _LOWEST_MHZ <= mhz <= _HIGHEST_MHZ:
        guess = "GHz" if mhz < _LOWEST_MHZ else "Hz or kHz"
        raise BadInput(
            f"{path}: line {line}: frequency_mhz is {mhz:g}, expected MHz between {_LOWEST_MHZ:g} and {_HIGHEST_MHZ:g}"
            f" (is it in {guess}?)"
        )
    if watts < LOWEST_W:
        expected = "above 0" if watts <= 0 else f"from {LOWEST_W:g}"
        raise BadInput(f"{path}: line {line}: power_w is {watts:g}, expected watts {expected}")
    if watts > _HIGHEST_W:
        raise BadInput(
            f"{path}: line {line}: power_w is {watts:g}, expected watts up to {_HIGHEST_W:g} (is it in milliwatts?)"
        )
    key = (row.get("device") or None, row.get("workload") or None)
    group = groups.setdefault(key, {"scope": row.get("power_scope") or None, "mhz": [], "watts": []})
    if (row.get("power_scope") or None) != group["scope"]:
        raise BadInput(
            f"{path}: line {line}: power_scope is {row.get('power_scope')!r}, expected {group['scope'] or ''!r} as in the rows above"
            " of the same device and workload: watts of different rails cannot be one curve"
        )
    group["mhz"].append(mhz)
    group["watts"].append(watts)


def _number(path: Path, line: int, column: str, row: dict[str, str]) -> float:
    try:
        if "_" in row[column]:  # Python's own digit grouping, which no table means
            raise ValueError
        value = float(row[column])
    except ValueError:
        comma = f"; {_SEPARATED}" if "," in row[column] else ""
        raise BadInput(f"{path}: line {line}: {column} is {row[column][:40]!r}, expected a number{comma}") from None
    if not math.isfinite(value):
        raise BadInput(f"{path}: line {line}: {column} is {row[column][:40]!r}, expected a finite number")
    return value


def sweep_of_profile(profile: Profile, source: str | None = None) -> Sweep:
    """The sweep of a profile's power block, throttled points left out. Raises BadInput where there is none to fit."""
    where = source or profile.name
    if profile.power is None or not profile.power.points:
        raise BadInput(f"{where}: power: no points were measured, expected a sweep (card-profile run --measure power)")
    points = [point for point in profile.power.points if not point.throttled]
    if not points:
        raise BadInput(f"{where}: power.points: all are marked throttled, expected at least 2 clocks that were held")
    for k, point in enumerate(profile.power.points):
        if point.power_w <= 0 and not point.throttled:
            raise BadInput(
                f"{where}: power.points[{k}].power_w is 0, expected watts above 0 (a sensor that is not there?)"
            )
    _refuse_what_was_not_set(profile, points, where)
    hot = [point.requested_hz or point.frequency_hz for point in profile.power.points if point.throttled]
    clocks = profile.hardware.clocks
    return Sweep(
        source=where,
        device=profile.name,
        workload=profile.power.load,
        power_scope=profile.power.scope,
        frequency_hz=np.array([point.frequency_hz for point in points]),
        power_w=np.array([point.power_w for point in points]),
        capped=np.array([point.capped for point in points]),
        domain_hz=(clocks.min_hz, clocks.max_hz) if clocks else None,
        supported_hz=tuple(clocks.supported_hz) if clocks else (),
        provenance=profile.power.root,
        sd_w=scatter_w(points, profile.power.repeated),
        heat_from_hz=min(hot, default=None),
        chip=profile.hardware.catalog or profile.hardware.description,
    )


_STEADY = 0.0025
"""A point is called steady when its 95 % interval is within half a percent: nothing smaller is claimed of it."""


def scatter_w(points: Sequence[PowerPoint], repeated: PowerPoint | None) -> Array:
    """Standard deviations (points,) in watts, were the points measured again: each one's own interval, and by how much the clock that
    was ``repeated`` came out different. NaN where a point has no interval."""
    drift = 0.0
    first = next((p for p in points if repeated is not None and p.requested_hz == repeated.requested_hz), None)
    if repeated is not None and first is not None:
        drift = (repeated.power_w / first.power_w - 1) / math.sqrt(2)
    own = [math.nan if p.ci95_w is None else max(p.ci95_w / 1.96, _STEADY * p.power_w) for p in points]
    return np.hypot(own, [drift * p.power_w for p in points])


_HELD = 0.02  # what moves by less than this over a sweep has not moved
_ASKED = 0.1  # clocks asked for that differ by more than this are meant to differ


def _refuse_what_was_not_set(profile: Profile, points: Sequence[PowerPoint], where: str) -> None:
    """Raise BadInput where the clocks asked for are not those that ran: no curve can be told from such points."""
    asked = np.array([point.requested_hz or point.frequency_hz for point in points])
    if len(points) < 2 or _range(asked) < _ASKED:
        return
    ran = np.array([point.frequency_hz for point in points])
    capped = np.array([point.capped for point in points])
    said = f"{asked.min() / 1e6:.0f} to {asked.max() / 1e6:.0f} MHz"
    if capped.all():
        raise BadInput(
            f"{where}: power.points: all {len(points)} lie at the power cap, expected at least 2 clocks below it (lower clocks, or a"
            " higher cap)"
        )
    free = ~capped
    if _range(asked[free]) > _ASKED and _range(ran[free]) < _HELD:
        raise BadInput(
            f"{where}: power.points: {said} were asked for, and the clock measured stayed at {np.median(ran) / 1e6:.0f} MHz; expected"
            " measured clocks that follow: the lock did not take (a permission, another program, a power mode)"
        )
    steps = {
        timing.requested_hz or timing.frequency_hz: timing.step.median_s
        for timing in profile.timings
        if timing.step is not None and (timing.requested_hz or timing.frequency_hz)
    }
    seconds = np.array([steps[hz] for hz in asked[free] if hz in steps])
    watts = np.array([point.power_w for point in points])[free]
    timed = np.array([hz for hz in asked[free] if hz in steps])
    if _range(timed) > _ASKED and _range(watts) < _HELD and _range(seconds) < _HELD:
        raise BadInput(
            f"{where}: {said} were set, and neither the watts ({watts.min():.1f} to {watts.max():.1f} W) nor the step times"
            f" ({seconds.min():.4g} to {seconds.max():.4g} s) changed; expected one of them to move with the clock: the lock did not take"
        )


def _range(values: Array) -> float:
    return float((values.max() - values.min()) / values.max()) if len(values) else 0.0
