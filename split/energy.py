"""Joules of one machine while it trains, where it has a sensor; the sensors are those that ``card-profile`` profiles with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from profiler.profile import BadInput

if TYPE_CHECKING:
    from profiler.hardware.device import Device, Reading

Window = tuple[float, float]
"""From when to when the machine computed, in seconds of ``time.perf_counter``."""

_PERIOD_S = 0.02
_LATEST = 25
"""Readings from which the watts of an energy counter are taken."""


def open_hardware(name: str, option: str = "--hardware") -> Device:
    """The machine whose sensors and clock are used, by the names of ``card-profile devices``. Raises BadInput, MissingHardware."""
    from profiler.hardware import open_device

    if name.startswith("emulated:"):
        raise BadInput(
            f"{option} {name}: an emulated machine has no wall clock; expected a real one (auto, cpu, nvml:INDEX)"
        )
    return open_device(name)


class Watched:
    """Readings of a stretch of time, complete when the stretch has ended."""

    def __init__(self, readings: Sequence[Reading], scope: str) -> None:
        self.readings, self.scope = readings, scope

    def watts(self) -> float | None:
        """What is drawn now: by the latest readings; None where they have not come yet."""
        latest = self.readings[-1] if self.readings else None
        if latest is None or latest.power_w is not None:
            return None if latest is None else latest.power_w
        counted = [(r.time_s, r.energy_j) for r in self.readings[-_LATEST:] if r.energy_j is not None]
        if len(counted) < 2 or not counted[-1][0] > counted[0][0]:
            return None
        return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])

    def joules(self, windows: Sequence[Window]) -> float | None:
        """Joules drawn within ``windows``: by the energy counter where it moved, else by the watts; None without readings there.

        Between two readings both are taken as linear, before the first and after the last as constant.
        """
        counted = [(r.time_s, r.energy_j) for r in self.readings if r.energy_j is not None]
        if len(counted) > 1 and counted[-1][1] > counted[0][1]:
            rates = [(a[0], b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in pairwise(counted) if b[0] > a[0]]
        else:
            watts = [(r.time_s, r.power_w) for r in self.readings if r.power_w is not None]
            rates = [(a[0], b[0], (a[1] + b[1]) / 2) for a, b in pairwise(watts) if b[0] > a[0]]
        if not rates:
            return None
        rates[0] = (min([rates[0][0], *(start for start, _ in windows)]), *rates[0][1:])
        rates[-1] = (rates[-1][0], max([rates[-1][1], *(end for _, end in windows)]), rates[-1][2])
        return sum(
            watts * max(0.0, min(end, until) - max(start, since))
            for start, end in windows
            for since, until, watts in rates
        )


@contextlib.contextmanager
def watching(device: Device | None) -> Iterator[Watched | None]:
    """Read ``device``'s power while the body runs; None where it has no sensor."""
    if device is None or device.power is None:
        yield None
        return
    with device.monitor(max(_PERIOD_S, device.power.period_s / 2)) as readings:
        yield Watched(readings, device.power.scope)
