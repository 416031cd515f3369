"""Eq. 7-11: profiles -> delay and energy over (device, round) x cut x clock, as arrays.

Two models give the same `CostModel`, so whatever decides or reports need not know which one it holds.

letter
    Eq. 7-11 as printed. Times are FLOPs / (f delta sigma), power is xi f^3.
profile
    What was measured. Times are sums of the segments' times, power is the fitted table P(f).

Shapes: M devices, C = I-1 cuts, N decisions (one for each device and round), K clocks. Everything is per training round, that
is T mini-batches (the letter's "local epochs"). Elementwise expressions use only + - * /, in one fixed order, so that one cost
computed alone equals the same cost computed within a table, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from profiler.profile import BadInput, Profile
from profiler.units import counted
from solver.assumptions import Assumption, assumed, unmeasured
from solver.clocktimes import (
    NO_MAP,
    ClockMap,
    HalfWidths,
    ServerTime,
    clock_map,
    mini_batch_s,
    operating_hz,
    seconds_over_clock,
    segment_half_widths,
    segment_seconds,
    timed_hz,
)
from solver.codecs import CodecTables

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

ModelName = Literal["letter", "profile"]

TERMS = ("optimizer", "embedding", "head", "round-trip")
"""What the letter leaves out and a profile measures; each can be left out of the profile model by name."""

# ------------------------------------------------------------------------------------------------ curves over the clock


@dataclass(frozen=True)
class ServerPower:
    """Watts of the busy server: p + q f + r f^3 on each of P pieces. The letter's law is one piece with r = xi."""

    breaks_hz: Floats
    p_w: Floats
    q_w_per_hz: Floats
    r_w_per_hz3: Floats

    def at(self, frequency_hz: Any) -> Floats:
        """Watts at clocks in Hz."""
        f = frequency_hz
        piece = np.searchsorted(self.breaks_hz, f, side="right")
        # f * f * f, not f**3: vectorised powers may differ in the last bit between a lone value and an array
        watts: Floats = self.p_w[piece] + self.q_w_per_hz[piece] * f + self.r_w_per_hz3[piece] * (f * f * f)
        return watts

    @staticmethod
    def cubic(xi_w_per_hz3: float) -> ServerPower:
        """P = xi f^3, the law above Eq. 11."""
        zero = np.zeros(1)
        return ServerPower(np.empty(0), zero, zero, np.array([xi_w_per_hz3]))

    @staticmethod
    def table(frequency_hz: Sequence[float], power_w: Sequence[float]) -> ServerPower:
        """Linear between the points of a table, constant beyond its ends (extrapolating a fit is not the solver's job)."""
        f, first = np.unique(np.asarray(frequency_hz, dtype=float), return_index=True)
        watts = np.asarray(power_w, dtype=float)[first]
        slopes = np.concatenate([[0.0], np.diff(watts) / np.diff(f), [0.0]])
        left = np.concatenate([[0], np.arange(len(f))])  # each piece is anchored at the point where it begins
        return ServerPower(f, watts[left] - slopes * f[left], slopes, np.zeros(len(f) + 1))


# ---------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Costs:
    """Delay and energy of some points, and what they are made of. All arrays have one shape; ``energy_j`` is None without power.

    ``codec`` is the index of the codec in `CostModel.codecs`, None where no codec was asked for; ``uplink_s`` and ``downlink_s`` then hold
    encoding and decoding too.
    """

    delay_s: Floats
    energy_j: Floats | None
    device_compute_s: Floats
    server_compute_s: Floats
    uplink_s: Floats
    downlink_s: Floats
    adapters_s: Floats
    codec: Ints | None = None


@dataclass(frozen=True)
class Places:
    """N decisions to take: device index (N,), rates in bit/s (N,), and the cuts that fit in the memory of each device (M, C)."""

    device: Ints
    uplink_bps: Floats
    downlink_bps: Floats
    feasible: Mask

    def __len__(self) -> int:
        return len(self.device)


@dataclass(frozen=True)
class Choice:
    """What was chosen for N places: 0-based cut index (N,) and the clock to request in Hz (N,)."""

    cut_index: Ints
    frequency_hz: Floats


@dataclass(frozen=True)
class CostModel:
    """Eq. 7-11 for a fleet. ``device_compute_s`` and the bits are (M, C) and cover a whole round; ``round_trip_s`` is (M,).

    ``round_trip_s`` is paid once a mini-batch (half up, half down) and once for the adapters.
    """

    name: ModelName
    epochs: int
    device_compute_s: Floats
    uplink_bits: Floats
    downlink_bits: Floats
    adapter_bits: Floats
    round_trip_s: Floats
    server_time: ServerTime
    server_power: ServerPower | None
    idle_w: float = 0.0
    """Watts of the server while it waits, where they count."""
    device_j: Floats | None = None
    """(M, C) joules of the device in a round, times the weight at which they count; None where they do not."""
    clock_map: ClockMap = NO_MAP
    device_half_width_s: tuple[Floats | None, ...] = ()
    """(C,) for each device: how far its part of the delay may be off, by the 95 % interval of its times. None: not known."""
    server_half_width_s: HalfWidths | None = None
    """The same for the server, (C,) rows over its clocks."""
    codecs: CodecTables | None = None
    """What may be sent in place of ``uplink_bits`` and ``downlink_bits``: at every point the codec with the least waiting time is taken,
    which is the best for every objective (`solver.codecs`)."""

    @property
    def cuts(self) -> int:
        """C: the cuts are 1..C, cut c at index c-1."""
        return int(self.device_compute_s.shape[1])

    def at(self, device: Any, uplink_bps: Any, downlink_bps: Any, cut_index: Any, requested_hz: Any) -> Costs:
        """Costs of points given by arrays that broadcast: device index, rates in bit/s, 0-based cut index, clock in Hz.

        Delay is Eq. 10, energy Eq. 11 (in the profile model P(f) in place of xi f^3).
        """
        compute, up, down, adapters, codec = self._waiting_parts(device, uplink_bps, downlink_bps, cut_index)
        f = self.clock_map.reached(requested_hz)
        server = self.server_time.at(cut_index, f)
        energy = None
        if self.server_power is not None:
            energy = self.server_power.at(f) * server
            held = self.held_of(device, cut_index, compute + up + down + adapters)
            if held is not None:
                energy = held + energy
        parts = np.broadcast_arrays(compute, server, up, down, adapters)
        compute, server, up, down, adapters = parts
        # In the order of `waiting_s`, so that no rounding lies between a point and the extremes.
        delay = compute + up + down + adapters + server
        if energy is not None:
            energy = np.broadcast_to(energy, delay.shape)
        if codec is not None:
            codec = np.broadcast_to(codec, delay.shape)
        return Costs(delay, energy, compute, server, up, down, adapters, codec)

    def compute_half_width_s(self, device: Ints, cut_index: Ints, frequency_hz: Floats) -> Floats:
        """How far device and server compute together may be off, in seconds (95 %), of points (R,); NaN where one has no fit of its times.

        ``frequency_hz`` is the clock reached. Two machines err independently, so their half widths add as squares.
        """
        found = np.full(len(device), np.nan)
        if self.server_half_width_s is None:
            return found
        for m in np.unique(device).tolist():
            own = self.device_half_width_s[m] if self.device_half_width_s else None
            if own is not None:
                rows = np.flatnonzero(device == m)
                server = self.server_half_width_s.of(cut_index[rows], frequency_hz[rows])
                found[rows] = np.hypot(own[cut_index[rows]], server)
        return found

    def waiting_of(self, device: Any, cut_index: Any, uplink_bps: Any, downlink_bps: Any) -> Floats:
        """The part of Eq. 10 that does not depend on the server's clock; arguments broadcast, as in `at`."""
        compute, up, down, adapters, _ = self._waiting_parts(device, uplink_bps, downlink_bps, cut_index)
        waiting: Floats = compute + up + down + adapters
        return waiting

    @property
    def holds_energy(self) -> bool:
        """Whether some of the energy does not depend on the server's clock."""
        return bool(self.idle_w) or self.device_j is not None

    def held_of(self, device: Any, cut_index: Any, waiting_s: Any) -> Floats | None:
        """The part of the energy that does not depend on the server's clock, in J: the server idle while it waits for ``waiting_s``,
        and the device. None where neither is counted."""
        held: Floats | None = None
        if self.idle_w:
            held = self.idle_w * waiting_s
        if self.device_j is not None:
            own = self.device_j[device, cut_index]
            held = own if held is None else held + own
        return held

    def waiting_terms(self, device: int, codec: int | None = None) -> Floats:
        """(C, 3): `waiting_of` as a product with (1, 1/R^D, 1/R^S). The same but for rounding. With ``codec`` (an index): of that codec."""
        trip = self.round_trip_s[device] / 2
        fixed = self.device_compute_s[device] + (2 * self.epochs + 2) * trip
        adapters = self.adapter_bits[device]
        up, down = self.uplink_bits[device], self.downlink_bits[device]
        if codec is not None:
            assert self.codecs is not None
            up, down = self.codecs.uplink_bits[device, codec], self.codecs.downlink_bits[device, codec]
            fixed = fixed + self.codecs.uplink_s[device, codec] + self.codecs.downlink_s[device, codec]
        return np.column_stack([fixed, up + adapters, down + adapters])

    def _waiting_parts(
        self, device: Any, uplink_bps: Any, downlink_bps: Any, cut_index: Any
    ) -> tuple[Floats, Floats, Floats, Floats, Ints | None]:
        """What the server waits for: the device's compute, smashed data up, gradients down, adapters both ways; in seconds. And the codec."""
        trip = self.round_trip_s[device] / 2
        bits = self.adapter_bits[device, cut_index]
        compute = self.device_compute_s[device, cut_index]
        adapters = bits / uplink_bps + bits / downlink_bps + 2 * trip
        if self.codecs is None:
            up = self.uplink_bits[device, cut_index] / uplink_bps + self.epochs * trip
            down = self.downlink_bits[device, cut_index] / downlink_bps + self.epochs * trip
            return compute, up, down, adapters, None
        codec: Ints | None = None
        least = up = down = np.empty(0)
        for k in range(len(self.codecs.names)):
            ways = self.codecs.ways(k, device, cut_index, uplink_bps, downlink_bps)
            more_up, more_down = (way + self.epochs * trip for way in ways)
            waiting = compute + more_up + more_down + adapters
            if codec is None:
                least, up, down, codec = waiting, more_up, more_down, np.zeros(np.shape(waiting), dtype=np.intp)
                continue
            better = waiting < least  # of equals the first
            least, up, down = (
                np.where(better, new, old) for new, old in ((waiting, least), (more_up, up), (more_down, down))
            )
            codec = np.where(better, k, codec)
        return compute, up, down, adapters, codec

    def server_s(self, requested_hz: Floats) -> Floats:
        """(C, K): seconds that the server is busy at clocks (K,)."""
        return self.server_time.at(np.arange(self.cuts)[:, None], self.clock_map.reached(requested_hz)[None, :])

    def busy_j(self, requested_hz: Floats) -> Floats:
        """(C, K): joules of the busy server at clocks (K,); zero where power is unknown."""
        seconds = self.server_s(requested_hz)
        if self.server_power is None:
            return np.zeros_like(seconds)
        return self.server_power.at(self.clock_map.reached(requested_hz))[None, :] * seconds


# ------------------------------------------------------------------------------------------------- profiles to arrays


@dataclass(frozen=True)
class ServerClocks:
    """Where the server's clock may go. ``supported_hz`` (K,) is empty where any clock from F_min to F_max will do."""

    f_min_hz: float
    f_max_hz: float
    supported_hz: Floats
    known: bool = True

    @property
    def points_hz(self) -> Floats:
        """Supported clocks, F_min and F_max, ascending."""
        return np.unique(np.concatenate([self.supported_hz, [self.f_min_hz, self.f_max_hz]]))

    def nearest(self, frequency_hz: Floats) -> Floats:
        """The supported clocks nearest to ``frequency_hz`` (N,); of two equally near the lower; unchanged if any clock will do."""
        if len(self.supported_hz) == 0:
            return frequency_hz
        above = np.clip(np.searchsorted(self.supported_hz, frequency_hz), 1, max(len(self.supported_hz) - 1, 1))
        low = self.supported_hz[above - 1]
        high = self.supported_hz[np.minimum(above, len(self.supported_hz) - 1)]
        return np.where(frequency_hz - low <= high - frequency_hz, low, high)


def on_the_device(profile: Profile, per_segment: Floats) -> Floats:
    """(C, ...) sums over the segments that stand on the device at each cut: those with layer <= c."""
    layers = np.array([s.layer for s in profile.segments])
    upto = np.searchsorted(layers, np.arange(1, profile.workload.layers), side="right")
    totals: Floats = np.cumsum(per_segment, axis=0)[upto - 1]
    return totals


def on_the_server(profile: Profile, per_segment: Floats) -> Floats:
    """(C, ...) sums over the segments that stand on the server: those with layer > c. Summed apart, so never negative."""
    layers = np.array([s.layer for s in profile.segments])
    upto = np.searchsorted(layers, np.arange(1, profile.workload.layers), side="right")
    totals: Floats = np.cumsum(per_segment[::-1], axis=0)[::-1][upto]
    return totals


def _flops(profile: Profile) -> Floats:
    return np.array([row.forward_flops + row.backward_flops for row in profile.flops.segments])


def flops_per_cycle(profile: Profile) -> tuple[float, list[Assumption]]:
    """delta sigma of Eq. 7 and 8: FLOPs that the machine completes in a clock cycle.

    From timings where there are some: FLOPs / (f t), at the clock where a device trains or the server's highest measured one;
    else cores x FLOPs per core and cycle of the hardware block. Raises BadInput where neither is there.
    """
    name, hardware = profile.name, profile.hardware
    if not _flops(profile).sum() > 0:
        raise BadInput(f"profile {name}: field flops adds up to 0 FLOPs, expected those of a mini-batch")
    if profile.timings:
        known = [t for t in profile.timings if t.frequency_hz is not None] or profile.timings[:1]
        if profile.role == "server":
            timing = max(known, key=lambda t: timed_hz(profile, t))
        else:
            timing = min(known, key=lambda t: abs(timed_hz(profile, t) - operating_hz(profile)))
        total, seconds = float(_flops(profile).sum()), sum(mini_batch_s(row, False) for row in timing.segments)
        if not (total > 0 and seconds > 0):
            raise BadInput(
                f"profile {name}: flops and timings add up to {total:g} FLOPs in {seconds:g} s, expected both above 0"
            )
        effective = total / timed_hz(profile, timing) / seconds
        if not math.isfinite(effective):
            raise BadInput(f"profile {name}: timings add up to {seconds:g} s for {total:g} FLOPs, expected seconds")
        return effective, unmeasured(timing, **{f"{name}: effective FLOPs per cycle (delta sigma)": effective})
    if hardware.cores is None or hardware.flops_per_core_cycle is None:
        missing = "cores" if hardware.cores is None else "flops_per_core_cycle"
        raise BadInput(
            f"profile {name}: no timings, and field hardware.{missing} is empty: expected one of the two to know its speed"
        )
    listed = unmeasured(
        hardware,
        **{
            f"{name}: cores (sigma)": hardware.cores,
            f"{name}: FLOPs per core and cycle (delta)": hardware.flops_per_core_cycle,
        },
    )
    return hardware.cores * hardware.flops_per_core_cycle, listed


def _bits(
    devices: Sequence[Profile], epochs: int, phi: Sequence[float]
) -> tuple[Floats, Floats, Floats, list[Assumption]]:
    """T phi S(c), T phi S~(c) and A(c) of Eq. 9 in bits, each (M, C). A(c) counts the adapters of layers 1..c."""
    up, down, adapters, listed = [], [], [], []
    for device, ratio in zip(devices, phi, strict=True):
        sizes = device.sizes
        up.append([epochs * ratio * 8.0 * row.smashed_bytes for row in sizes.cuts])
        down.append([epochs * ratio * 8.0 * row.gradient_bytes for row in sizes.cuts])
        inside = [
            8.0 * row.adapter_bytes if 1 <= segment.layer <= device.workload.layers else 0.0
            for segment, row in zip(device.segments, sizes.segments, strict=True)
        ]
        adapters.append(on_the_device(device, np.array(inside)))
        listed += unmeasured(
            sizes,
            **{
                f"{device.name}: smashed data at cut 1 in bytes (S)": sizes.cuts[0].smashed_bytes,
                f"{device.name}: adapters of one layer in bytes (A)": float(adapters[-1][0] / 8),
            },
        )
    return np.array(up), np.array(down), np.array(adapters), listed


def letter_model(
    server: Profile,
    devices: Sequence[Profile],
    *,
    epochs: int,
    phi: Sequence[float],
    codecs: CodecTables | None = None,
) -> tuple[CostModel, list[Assumption]]:
    """Eq. 7-11 as printed. ``phi`` (M,), or ``codecs`` in its place, whose seconds then count. Returns the model and what it rests on that was not measured; raises BadInput."""
    up, down, adapters, listed = _bits(devices, epochs, phi)
    compute = []
    for device in devices:
        per_cycle, more = flops_per_cycle(device)
        compute.append(epochs * on_the_device(device, _flops(device)) / (operating_hz(device) * per_cycle))
        listed += more
        listed += unmeasured(
            device.flops, **{f"{device.name}: FLOPs of a mini-batch (eta)": float(_flops(device).sum())}
        )
        clocks = device.hardware.clocks
        if clocks is not None:
            listed += unmeasured(clocks, **{f"{device.name}: clock in Hz (f^D)": clocks.operating_hz})
        elif not device.timings:
            raise BadInput(
                f"profile {device.name}: field hardware.clocks is empty, expected the clock it trains at (no timings)"
            )
    per_cycle, more = flops_per_cycle(server)
    listed += more
    listed += unmeasured(server.flops, **{f"{server.name}: FLOPs of a mini-batch (eta)": float(_flops(server).sum())})
    cycles = epochs * on_the_server(server, _flops(server)) / per_cycle
    power = None
    if server.power_fit is not None:
        power = ServerPower.cubic(server.power_fit.xi_w_per_hz3)
        listed += unmeasured(server.power_fit, **{f"{server.name}: xi in W/Hz^3": server.power_fit.xi_w_per_hz3})
    model = CostModel(
        name="letter",
        epochs=epochs,
        device_compute_s=np.array(compute),
        uplink_bits=up,
        downlink_bits=down,
        adapter_bits=adapters,
        round_trip_s=np.zeros(len(devices)),
        server_time=ServerTime(np.empty(0), np.zeros((len(cycles), 1)), cycles[:, None]),
        server_power=power,
        codecs=codecs,
    )
    return model, listed


def profile_model(
    server: Profile,
    devices: Sequence[Profile],
    clocks: ServerClocks,
    *,
    epochs: int,
    phi: Sequence[float],
    codecs: CodecTables | None = None,
    round_trip_s: Floats,
    leave_out: frozenset[str] = frozenset(),
    count_idle: bool = False,
    device_energy: float = 0.0,
) -> tuple[CostModel, list[Assumption]]:
    """The measured tables. ``phi`` (or ``codecs`` in its place) and ``round_trip_s`` are (M,). Returns the model and what it rests on
    that was not measured.

    ``device_energy`` is what a joule of a device counts beside one of the server. Every profile must have timings. Raises BadInput
    where ``count_idle`` or ``device_energy`` asks for watts that a profile lacks.
    """
    up, down, adapters, listed = _bits(devices, epochs, phi)
    compute: list[Floats] = []
    doubt: list[Floats | None] = []
    for device in devices:
        hz, seconds = segment_seconds(device, leave_out)
        at = operating_hz(device)
        over_clock = seconds_over_clock(device, hz, seconds, leave_out)
        compute.append(epochs * on_the_device(device, over_clock.at(np.arange(len(seconds)), at)))
        widths = segment_half_widths(device, leave_out)
        doubt.append(None if widths is None else epochs * on_the_device(device, widths.at(np.array([at])))[:, 0])
        listed += [
            item
            for timing in device.timings
            for item in unmeasured(timing, **{f"{device.name}: layer times": counted(len(device.timings), "clock")})
        ]
        if device.time_fit is not None and np.abs(hz / at - 1).min() > 1e-3:
            listed += _between(device)
        if not hz[0] * 0.999 <= at <= hz[-1] * 1.001:
            listed.append(
                assumed(
                    f"{device.name}: layer times at {at / 1e6:.0f} MHz", "scaled from the measured clocks by a + b/f"
                )
            )
    mapped = clock_map(server) if len(clocks.supported_hz) else NO_MAP
    hz, seconds = segment_seconds(server, leave_out)
    pieces = seconds_over_clock(server, hz, seconds, leave_out)
    curve = ServerTime(
        pieces.breaks_hz, epochs * on_the_server(server, pieces.a_s), epochs * on_the_server(server, pieces.b_cycles)
    )
    listed += [
        item
        for timing in server.timings
        for item in unmeasured(timing, **{f"{server.name}: layer times": counted(len(server.timings), "clock")})
    ]
    lowest, highest = (float(mapped.reached(f)) for f in (clocks.f_min_hz, clocks.f_max_hz))
    if clocks.known and not (hz[0] * 0.999 <= lowest and highest <= hz[-1] * 1.001):
        how = "a + b/f by least squares" if server.time_fit is None else "the fitted curve goes on as a + b/f"
        how = "all of it scales as 1/f from the one clock measured" if len(hz) == 1 else how
        listed.append(assumed(f"{server.name}: layer times beyond the measured clocks", how))
    widths = segment_half_widths(server, leave_out)
    listed += _between(server)
    power, more = _power(server, lowest, highest)
    listed += more
    idle_w = 0.0
    if count_idle:
        if server.power is None or server.power.idle_w is None:
            raise BadInput(
                f"--count-idle: profile {server.name} has no field power.idle_w, expected the idle power in W"
            )
        idle_w = server.power.idle_w
        listed += unmeasured(server.power, **{f"{server.name}: idle power in W": idle_w})
    device_j = None
    if device_energy:
        drawn = [device_w(device) for device in devices]
        device_j = device_energy * np.array([watts for watts, _ in drawn])[:, None] * np.array(compute)
        listed += [item for _, rests_on in drawn for item in rests_on]
    model = CostModel(
        name="profile",
        epochs=epochs,
        device_compute_s=np.array(compute),
        uplink_bits=up,
        downlink_bits=down,
        adapter_bits=adapters,
        round_trip_s=np.zeros(len(devices)) if "round-trip" in leave_out else round_trip_s,
        server_time=curve,
        server_power=power,
        idle_w=idle_w,
        device_j=device_j,
        clock_map=mapped,
        device_half_width_s=tuple(doubt),
        server_half_width_s=None
        if widths is None
        else HalfWidths(widths.clocks_hz, epochs * on_the_server(server, widths.seconds)),
        codecs=codecs,
    )
    return model, listed


def device_w(device: Profile) -> tuple[float, list[Assumption]]:
    """Watts of a device while it computes, at its operating clock: by its fitted curve, else by the point measured there."""
    at = operating_hz(device)
    curve, listed = _power(device, at, at)
    if curve is not None:
        return float(curve.at(np.array([at]))[0]), listed
    near = [p for p in device.power.points if abs(p.frequency_hz / at - 1) < 0.02] if device.power is not None else []
    if device.power is None or not near:
        raise BadInput(
            f"--device-energy: profile {device.name} has no field power_fit, and no point of power at the {at / 1e6:.0f} MHz it "
            "trains at; measure it with 'card-profile run --measure power', then 'card-profile fit-power'"
        )
    watts = float(np.mean([p.power_w for p in near]))
    return watts, unmeasured(device.power, **{f"{device.name}: power while it computes in W": watts})


def _between(profile: Profile) -> list[Assumption]:
    """Times at clocks never visited come from a fit: listed like any other fit, by the data underneath."""
    fit = profile.time_fit
    if fit is None:
        return []
    step = fit.half_width_pct("step", "step")
    within = "" if step is None else f", a step within {max(step):.2g} %"
    return unmeasured(
        fit,
        **{
            f"{profile.name}: layer times between the visited clocks": f"a curve through {len(fit.clocks_hz)} clocks{within}"
        },
    )


def _power(server: Profile, lowest_hz: float, highest_hz: float) -> tuple[ServerPower | None, list[Assumption]]:
    fit = server.power_fit
    if fit is None:
        return None, []
    if not fit.predictions:
        listed = unmeasured(fit, **{f"{server.name}: xi in W/Hz^3": fit.xi_w_per_hz3})
        return ServerPower.cubic(fit.xi_w_per_hz3), listed
    hz = [row.frequency_hz for row in fit.predictions]
    listed = unmeasured(fit, **{f"{server.name}: power against clock": f"{fit.selected}, {fit.points} points"})
    if lowest_hz < min(hz) * 0.999 or highest_hz > max(hz) * 1.001:
        listed.append(assumed(f"{server.name}: power beyond the fitted clocks", "constant beyond the last one"))
    return ServerPower.table(hz, [row.power_w for row in fit.predictions]), listed
