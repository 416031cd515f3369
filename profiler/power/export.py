"""A profile's sweep as other tools read it."""

from __future__ import annotations

from pathlib import Path

from profiler.profile import BadInput, PowerPoint, Profile, Timing
from profiler.store import write_atomically

_SAME_CLOCK = 0.01


def perseus_csv(profile: Profile) -> str:
    """The table that Perseus' planners (lowtime, Zeus) read: ``stage,instruction,frequency,time,energy``, highest clock first.

    One row for each clock at which both layers were timed and watts taken, and each of ``forward`` and ``backward`` of one
    mini-batch through the whole model. ``stage`` is 0, the one pipeline stage that this machine is; ``frequency`` the clock to
    lock, in whole MHz; ``time`` in seconds, the sum over all segments; ``energy`` in joules, the time by the steady watts of
    the sweep at that clock. The sweep's load is the whole training step, so its mean watts stand for either direction; the
    optimizer's time is no instruction of Perseus and is left out. Points that heat held down are left out.

    Raises BadInput where the profile lacks times, watts, or clocks that have both.
    """
    where, how = profile.name, "card-profile run --measure layers,power"
    if not profile.timings:
        raise BadInput(f"{where}: timings: there are none, expected layer times at each clock ({how})")
    if profile.power is None or not profile.power.points:
        raise BadInput(f"{where}: power: no points were measured, expected a sweep ({how})")
    pairs = []
    for point in profile.power.points:
        timing = None if point.throttled else _timed_with(point, profile.timings)
        if timing is not None:
            pairs.append((round((point.requested_hz or point.frequency_hz) / 1e6), timing, point.power_w))
    if not pairs:
        raise BadInput(
            f"{where}: timings and power.points have no clock in common, expected times and watts at each clock"
        )
    pairs.sort(key=lambda pair: -pair[0])
    lines = ["stage,instruction,frequency,time,energy"]
    for instruction in ("forward", "backward"):
        for mhz, timing, power_w in pairs:
            time_s = sum(getattr(segment, instruction).median_s for segment in timing.segments)
            lines.append(f"0,{instruction},{mhz},{time_s!r},{time_s * power_w!r}")
    return "\n".join(lines) + "\n"


def _timed_with(point: PowerPoint, timings: list[Timing]) -> Timing | None:
    """The times taken while this point's clock was held."""
    if point.requested_hz is not None:
        return next((timing for timing in timings if timing.requested_hz == point.requested_hz), None)
    at = [t for t in timings if t.requested_hz is None and t.frequency_hz is not None]
    near = [t for t in at if abs((t.frequency_hz or 0.0) - point.frequency_hz) <= _SAME_CLOCK * point.frequency_hz]
    return min(near, key=lambda t: abs((t.frequency_hz or 0.0) - point.frequency_hz), default=None)


def write_export(profile: Profile, path: Path) -> None:
    """Write ``perseus_csv`` of the profile, whole or not at all. Raises BadInput."""
    write_atomically(path, perseus_csv(profile).encode())
