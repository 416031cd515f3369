"""Times against the clock: what a profile measured at some clocks, as curves over all of them; and what requests lead to.

With two clocks or more a curve passes through every measured time. Between and beyond them it follows the profile's ``time_fit`` where it
has one (with an interval), else it is straight in 1/f between and a least squares a + b/f beyond. Shapes: S segments, K clocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.profile import Profile, SegmentTime, Timing

Floats = npt.NDArray[np.float64]

UNKNOWN_CLOCK_HZ = 1e9
"""Stands for the clock of a machine whose clock cannot be read. It cancels: such a machine has one operating point."""

DIRECTIONS = ("forward", "backward", "optimizer")
SUBDIVISIONS = 5
"""Between two visited clocks the fitted curve is cut into this many pieces of a + b/f; each is within a few 1e-4 of it."""
MOST_PIECES = 256


@dataclass(frozen=True)
class ServerTime:
    """Seconds that the server is busy in a round: a + b/f on each of P pieces of the clock axis.

    ``breaks_hz`` (P-1,) ascending; ``a_s`` and ``b_cycles`` (C, P). The letter's Eq. 8 is one piece with a = 0 and
    b = T (eta - eta_D(c)) / (delta sigma).
    """

    breaks_hz: Floats
    a_s: Floats
    b_cycles: Floats

    def at(self, cut_index: Any, frequency_hz: Any) -> Floats:
        """Seconds at 0-based cut indices and clocks in Hz that broadcast against each other."""
        piece = np.searchsorted(self.breaks_hz, frequency_hz, side="right")
        seconds: Floats = self.a_s[cut_index, piece] + self.b_cycles[cut_index, piece] / frequency_hz
        return seconds


def operating_hz(profile: Profile) -> float:
    """The clock at which a machine trains: its operating clock, else the one it was timed at, else a stand-in that cancels."""
    if profile.hardware.clocks is not None:
        return profile.hardware.clocks.operating_hz
    for timing in profile.timings:
        if timing.frequency_hz is not None:
            return timing.frequency_hz
    return UNKNOWN_CLOCK_HZ


def timed_hz(profile: Profile, timing: Timing) -> float:
    """The clock at which times were taken; where it could not be read, the one at which the machine trains."""
    return timing.frequency_hz if timing.frequency_hz is not None else operating_hz(profile)


def mini_batch_s(row: SegmentTime, optimizer: bool) -> float:
    """Seconds of one mini-batch through a segment, by the medians."""
    seconds = row.forward.median_s + row.backward.median_s
    return seconds + row.optimizer.median_s if optimizer else seconds


def segment_seconds(profile: Profile, leave_out: frozenset[str]) -> tuple[Floats, Floats]:
    """Clocks (K,) ascending and seconds (S, K) of a mini-batch through each segment; repeated clocks are averaged."""
    kept = [t for t in profile.timings if t.frequency_hz is not None] or profile.timings[:1]
    hz = np.array([timed_hz(profile, t) for t in kept])
    rows = np.array(
        [
            [
                0.0 if segment.kind in leave_out else mini_batch_s(row, "optimizer" not in leave_out)
                for segment, row in zip(profile.segments, timing.segments, strict=True)
            ]
            for timing in kept
        ]
    )
    clocks, group = np.unique(hz, return_inverse=True)
    total = np.zeros((len(clocks), rows.shape[1]))
    np.add.at(total, group, rows)
    return clocks, (total / np.bincount(group)[:, None]).T


def _tail_slopes(clocks_hz: Floats, seconds: Floats) -> Floats:
    """(S,) b of the least squares t = a + b/f with a, b >= 0; t f where there is one clock (pure 1/f scaling)."""
    x = 1.0 / clocks_hz
    if len(x) == 1:
        proportional: Floats = seconds[:, 0] * clocks_hz[0]
        return proportional
    dx = x - x.mean()
    b = np.maximum((seconds * dx).sum(1) / (dx * dx).sum(), 0.0)
    through_zero = (seconds * x).sum(1) / (x * x).sum()
    slopes: Floats = np.where(seconds.mean(1) - b * x.mean() < 0, through_zero, b)
    return slopes


def seconds_over_clock(profile: Profile, clocks_hz: Floats, seconds: Floats, leave_out: frozenset[str]) -> ServerTime:
    """Seconds (S, K) at measured clocks -> curves over the clock, through every measured time."""
    fit = profile.time_fit
    if fit is None or len(clocks_hz) == 1:
        return _pieces(clocks_hz, seconds, *[_tail_slopes(clocks_hz, seconds)] * 2)
    inner = max(1, min(SUBDIVISIONS, MOST_PIECES // len(clocks_hz)))
    finer = np.append(
        (clocks_hz[:-1, None] + np.diff(clocks_hz)[:, None] * np.arange(inner) / inner).ravel(), clocks_hz[-1]
    )
    finer[::inner] = clocks_hz  # exactly
    below, above = clocks_hz[0] * np.array([0.5, 1.0]), clocks_hz[-1] * np.array([1.0, 2.0])
    law = np.zeros((len(seconds), len(finer) + 4))
    for direction in DIRECTIONS:
        if direction not in leave_out:
            law += fit.predict_s(
                [getattr(row, direction) for row in fit.segments], np.concatenate([finer, below, above])
            )
    law[[segment.kind in leave_out for segment in profile.segments]] = 0.0
    smooth, low, high = law[:, :-4], law[:, -4:-2], law[:, -2:]
    # What a measured time is off the smooth curve belongs to its clock, and fades towards the next one.
    off = seconds - smooth[:, ::inner]
    drift = np.array([np.interp(-1 / finer, -1 / clocks_hz, row) for row in off])
    through = np.maximum(smooth + drift, 0.0)
    through[:, ::inner] = seconds
    low_slope = (low[:, 0] - low[:, 1]) / (1 / below[0] - 1 / below[1])
    high_slope = (high[:, 0] - high[:, 1]) / (1 / above[0] - 1 / above[1])
    return _pieces(finer, through, low_slope, high_slope)


def _pieces(clocks_hz: Floats, seconds: Floats, low: Floats, high: Floats) -> ServerTime:
    """Curves through ``seconds`` (S, K), straight in 1/f between the clocks and of slopes ``low`` and ``high`` (S,) beyond them."""
    x = 1.0 / clocks_hz
    if len(x) == 1:
        return ServerTime(np.empty(0), np.zeros_like(low)[:, None], low[:, None])
    inner = (seconds[:, :-1] - seconds[:, 1:]) / (x[:-1] - x[1:])
    high = np.minimum(high, seconds[:, -1] * clocks_hz[-1])  # times must not fall below zero as the clock grows
    slopes = np.column_stack([low, inner, high])
    anchor = np.concatenate([[0], np.arange(len(x))])  # the point at which each piece begins
    return ServerTime(clocks_hz, seconds[:, anchor] - slopes * x[anchor], slopes)


@dataclass(frozen=True)
class HalfWidths:
    """Half widths in seconds (rows, J) of 95 % intervals at clocks (J,), straight between and constant beyond."""

    clocks_hz: Floats
    seconds: Floats

    def at(self, frequency_hz: Floats) -> Floats:
        """(rows, F) at clocks (F,)."""
        widths: Floats = np.array([np.interp(frequency_hz, self.clocks_hz, row) for row in self.seconds])
        return widths

    def of(self, rows: npt.NDArray[np.intp], frequency_hz: Floats) -> Floats:
        """(R,) of rows (R,), each at its own clock (R,)."""
        widths = np.empty(len(rows))
        for row in np.unique(rows).tolist():
            here = rows == row
            widths[here] = np.interp(frequency_hz[here], self.clocks_hz, self.seconds[row])
        return widths


def segment_half_widths(profile: Profile, leave_out: frozenset[str]) -> HalfWidths | None:
    """How far a new time of each segment may be from its curve (S, J); None where the profile has no fit of its times.

    Parts are added up as if they were all off in the same way, which like layers are.
    """
    fit = profile.time_fit
    if fit is None:
        return None
    grid = np.array(fit.interval_hz)
    total = np.zeros((len(profile.segments), len(grid)))
    for direction in DIRECTIONS:
        if direction in leave_out:
            continue
        seconds = fit.predict_s([getattr(row, direction) for row in fit.segments], grid)
        for row, segment in enumerate(profile.segments):
            percent = fit.half_width_pct(segment.kind, direction)
            if segment.kind not in leave_out and percent is not None:
                total[row] += seconds[row] * np.array(percent) / 100
    return HalfWidths(grid, total)


# ---------------------------------------------------------------------------------------- from a request to a clock


@dataclass(frozen=True)
class ClockMap:
    """From the clock that is requested to the one that the machine then runs at, where the two were seen to differ.

    A lock is a request: a power cap or heat holds the clock below it. ``reached_hz`` (K,) were measured at ``requested_hz`` (K,),
    linear between; beyond the ends a request and what it reaches keep their ratio.
    """

    requested_hz: Floats
    reached_hz: Floats

    def reached(self, requested_hz: Any) -> Floats:
        """The clocks in Hz that requests in Hz lead to."""
        request = np.asarray(requested_hz, dtype=float)
        if len(self.requested_hz) == 0:
            return request
        inside = np.clip(request, self.requested_hz[0], self.requested_hz[-1])
        reached: Floats = np.interp(inside, self.requested_hz, self.reached_hz) * (request / inside)
        return reached


NO_MAP = ClockMap(np.empty(0), np.empty(0))


_HELD = 0.99
"""A clock that falls short of its request by more, beside the one before it, is held; locks are off by less."""


def clock_map(server: Profile) -> ClockMap:
    """What the requests of a profile's sweep led to."""
    pairs: dict[float, list[float]] = {}
    for timing in server.timings:
        if timing.requested_hz is not None and timing.frequency_hz is not None:
            pairs.setdefault(timing.requested_hz, []).append(timing.frequency_hz)
    for point in server.power.points if server.power is not None else []:
        if point.requested_hz is not None:
            pairs.setdefault(point.requested_hz, []).append(point.frequency_hz)
    if all(found == asked for asked, many in pairs.items() for found in many):
        return NO_MAP
    knots = [(asked, float(np.mean(pairs[asked]))) for asked in sorted(pairs)]
    corners = []
    for (asked, reached), (above, held) in itertools.pairwise(knots):
        # A cap or heat holds every request above some clock at that clock: the corner lies where it is first reached.
        corner = held * asked / reached
        if held < _HELD * above * reached / asked and asked < corner < above:
            corners.append((corner, held))
    requested, found = zip(*sorted(knots + corners), strict=True)
    return ClockMap(np.array(requested), np.array(found))
