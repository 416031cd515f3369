"""Figures that no machine has: a unit that is off by a factor of a thousand or a million, told before it becomes a decision.

The bounds of single fields are in `profiler.profile`. Here figures of one profile are held against each other, with so much room that only
a mistake is outside: a factor of 10,000 for what the workload implies, of 100,000 for speeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from profiler.profile import BadInput, Profile
from solver.clocktimes import mini_batch_s, operating_hz, timed_hz

ROOM = 1e4
SHORTEST_STEP_S = 1e-6
LONG_STEP_S = 100.0
"""No overhead takes so long: a step beyond it is long because of its FLOPs alone."""
SLOWEST, FASTEST = 1e-5, 1e3
"""FLOP/s over cores x FLOPs per core and cycle x clock. Tensor cores do more than that product."""
MOST_FLOPS_PER_S = 1e17
SERVER_SLOWER = 1e4
"""A server that is slower than its device by more is a mistake in one of the two."""
LEAST_W = 1e-2
CUBIC_W = (1e-3, 1e7)
"""xi f^3 at the highest clock. The letter's own xi gives ten times a card's watts, so there is much room."""
LONGEST_ROUND_TRIP_S = 10.0
MOST_MEMORY_BYTES = 10**15


def check_units(profiles: Sequence[Profile]) -> None:
    """Raise BadInput, one line, for the first figure of ``profiles`` (the server first) that can only be a mistake of units."""
    for profile in profiles:
        for complaint in _complaints(profile):
            raise BadInput(f"profile {profile.name}: {complaint}")
    server, devices = profiles[0], profiles[1:]
    ours = _step(server)
    for device in devices:
        theirs = _step(device)
        if ours is not None and theirs is not None and ours > SERVER_SLOWER * theirs:
            raise BadInput(
                f"profiles {server.name} and {device.name}: field timings: the same mini-batch takes {ours:.3g} s on the server and "
                f"{theirs:.3g} s on the device, expected seconds in both"
            )


def _complaints(profile: Profile) -> Iterator[str]:
    work, sizes = profile.workload, profile.sizes
    tokens = work.batch_size * work.seq_len
    flops = sum(row.forward_flops + row.backward_flops for row in profile.flops.segments)
    expected = 6.0 * work.parameters * tokens
    if flops > 0 and not expected / ROOM <= flops <= expected * ROOM:
        yield (
            f"field flops: {flops:.3g} FLOPs in a mini-batch of {tokens} tokens through {work.parameters:.3g} parameters, "
            f"expected about {expected:.1g}"
        )
    crossing = tokens * work.hidden_size * 4.0
    for name in ("smashed_bytes", "gradient_bytes"):
        # One cut may well be narrow; units are wrong at all of them at once.
        found = [int(getattr(row, name)) for row in sizes.cuts]
        if max(found) > 0 and not (max(found) >= crossing / ROOM and min(found) <= crossing * ROOM):
            yield (
                f"field sizes.cuts: {name} of {max(found)} for {tokens} tokens of {work.hidden_size} numbers, expected about "
                f"{crossing:.1g} bytes"
            )
    weights = sum(row.weight_bytes for row in sizes.segments)
    for name, held, count in (
        ("weight_bytes", weights, work.parameters),
        (
            "adapter_bytes",
            sum(s.adapter_bytes for s in sizes.segments),
            sum(s.adapter_parameters for s in sizes.segments),
        ),
    ):
        if held > 0 and count > 0 and not 1 / ROOM <= held / count <= ROOM:
            yield f"field sizes.segments: {name} add up to {held} bytes for {count} parameters, expected bytes"
    if profile.memory is not None:
        for peak in profile.memory.cuts:
            both = peak.device_peak_bytes + peak.server_peak_bytes
            if both < weights / 100:
                yield (
                    f"field memory.cuts.{peak.cut - 1}: both sides together need {both} bytes at their peak, the weights alone {weights}: "
                    "expected bytes"
                )
    if (profile.hardware.memory_bytes or 0) > MOST_MEMORY_BYTES:
        yield f"field hardware.memory_bytes: {profile.hardware.memory_bytes:.3g} bytes, no machine has so many: expected bytes"
    yield from _speed(profile, flops)
    yield from _watts(profile)
    if profile.link is not None and (profile.link.round_trip_s or 0.0) > LONGEST_ROUND_TRIP_S:
        yield f"field link.round_trip_s: {profile.link.round_trip_s:g} s, expected at most {LONGEST_ROUND_TRIP_S:g} (seconds)"


def _step(profile: Profile) -> float | None:
    """The shortest mini-batch of a profile, in seconds; None where it has no times, or none above 0."""
    found = [sum(mini_batch_s(row, False) for row in timing.segments) for timing in profile.timings]
    return min(found) if found and min(found) > 0 else None


def _speed(profile: Profile, flops: float) -> Iterator[str]:
    hardware = profile.hardware
    for k, timing in enumerate(profile.timings):
        step = sum(mini_batch_s(row, False) for row in timing.segments)
        if step <= 0 or flops <= 0:
            continue  # told of where it matters
        told = f"field timings.{k}: {flops:.3g} FLOPs take {step:.3g} s"
        if step < SHORTEST_STEP_S or flops / step > MOST_FLOPS_PER_S:
            yield f"{told}, no machine is so fast: expected seconds"
        hz = operating_hz(profile) if timing.frequency_hz is None else timed_hz(profile, timing)
        nominal = (hardware.cores or 0) * (hardware.flops_per_core_cycle or 0.0) * hz
        known = nominal > 0
        nominal = nominal or 1e10
        if known and flops / step > FASTEST * nominal:
            yield f"{told}, but the machine of field hardware does {nominal:.3g} in a second: expected seconds"
        if step > LONG_STEP_S and flops / step < SLOWEST * nominal:
            yield f"{told}, a machine of {nominal:.3g} FLOP/s is not so slow: expected seconds"


def _watts(profile: Profile) -> Iterator[str]:
    highest: dict[str, float] = {}
    if profile.power is not None and profile.power.points:
        highest["power.points"] = max(p.power_w for p in profile.power.points)
    fit = profile.power_fit
    if fit is not None and fit.predictions:
        highest["power_fit.predictions"] = max(p.power_w for p in fit.predictions)
    for name, watts in highest.items():
        if watts < LEAST_W:
            yield f"field {name}: {watts:.3g} W is the most that is drawn, no machine trains on so little: expected watts"
    if len(highest) == 2:
        points, predictions = highest.values()
        if not points / 100 <= predictions <= points * 100:
            yield f"field power_fit.predictions: up to {predictions:.3g} W, but power.points go up to {points:.3g} W: expected watts"
    if profile.power is not None and profile.power.idle_w is not None and highest:
        most = max(highest.values())
        if profile.power.idle_w > 10 * most:
            yield f"field power.idle_w: {profile.power.idle_w:.3g} W idle, but at most {most:.3g} W under load: expected watts"
    if fit is not None and profile.hardware.clocks is not None:
        top = profile.hardware.clocks.max_hz
        watts = fit.xi_w_per_hz3 * top**3
        if not CUBIC_W[0] <= watts <= CUBIC_W[1]:
            yield (
                f"field power_fit.xi_w_per_hz3: {fit.xi_w_per_hz3:.3g} W/Hz^3 is {watts:.3g} W at {top / 1e9:.3g} GHz, "
                "expected W/Hz^3"
            )
