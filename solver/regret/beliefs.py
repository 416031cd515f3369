"""Both sides of what the letter assumes: each of its parameters as it has it, and as the profiles hold it.

The parameters of `NAMES` are taken apart so that each can be put in the other's place alone: xi is the scale of the server's watts and the
cubic law their shape over the clock; delta is the speed of a whole mini-batch, equal layers its spread over the cuts, clock scaling how it
goes with the server's clock; rounding is Algorithm 1's way to a listed clock. docs/regret.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from profiler.profile import BadInput, PowerBlock, PowerFit, Profile
from solver.channel import Channel, channel_of, rates
from solver.clocktimes import NO_MAP, ServerTime, operating_hz, seconds_over_clock, segment_seconds
from solver.costs import CostModel, Floats, Places, ServerPower, flops_per_cycle
from solver.problem import Problem

NAMES = ("xi", "cubic-law", "clock-scaling", "delta", "equal-layers", "phi", "rates", "rounding", "other-energy")
"""The parameters, in the order in which `Regret.steps` replaces them. ``rounding`` takes part where the server lists clocks, ``other-energy``
where more than the busy server counts."""


@dataclass(frozen=True)
class Letter:
    """What the letter assumes (its Table II). Rates None: its channel state ``normal``."""

    xi_w_per_hz3: float = 1e-25
    delta: float = 2.0
    phi: float = 0.1
    uplink_mbps: float | None = None
    downlink_mbps: float | None = None


_ASSUMABLE = {
    "xi": ("xi_w_per_hz3", 1e-45, 1e-15, "W/Hz^3"),
    "delta": ("delta", 1e-6, 1e6, "FLOPs per core and cycle"),
    "phi": ("phi", 1e-6, 1.0, "compressed over raw bytes"),
    "uplink-mbps": ("uplink_mbps", 1e-6, 1e7, "Mbit/s"),
    "downlink-mbps": ("downlink_mbps", 1e-6, 1e7, "Mbit/s"),
}


def parse_letter(items: Sequence[str]) -> Letter:
    """``["xi=1e-26", "phi=1"]`` -> the letter's assumptions with these in place of its own. Raises BadInput naming the item."""
    values: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        if name not in _ASSUMABLE:
            raise BadInput(f"--assume {item[:60]}: expected NAME=VALUE with a name out of {', '.join(_ASSUMABLE)}")
        field, low, high, unit = _ASSUMABLE[name]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise BadInput(f"--assume {item[:60]}: expected a number from {low:g} to {high:g} ({unit})")
        values[field] = value
    if ("uplink_mbps" in values) != ("downlink_mbps" in values):
        raise BadInput("--assume: expected uplink-mbps and downlink-mbps together")
    return Letter(**values)


# -------------------------------------------------------------------------------------------- both sides of the parameters


@dataclass(frozen=True)
class Parameter:
    """One parameter: the quantity that shows it, with its unit; what the letter assumes, what the profiles hold, and where that is from."""

    name: str
    quantity: str
    assumed: str
    truth: str
    provenance: tuple[str, ...]


@dataclass(frozen=True)
class Sides:
    """The truth, and beside it what the letter would have in each place. Seconds are per round.

    ``device_s`` and ``device_letter_s`` (M,) are the whole model on each device; ``server_total`` the whole model on the server over its
    clock (one row); ``server_letter_s`` the same at F_max by the letter. The bits are (M, C), rates in bit/s are (N,).
    """

    truth: CostModel
    places: Places
    xi_w_per_hz3: float
    f_max_hz: float
    letter: Letter
    device_s: Floats
    device_letter_s: Floats
    server_total: ServerTime
    server_letter_s: float
    uplink_bits: Floats
    downlink_bits: Floats
    uplink_bps: Floats
    downlink_bps: Floats

    @property
    def server_s(self) -> float:
        """The whole model on the server at F_max, in truth."""
        return float(self.server_total.at(0, self.truth.clock_map.reached(self.f_max_hz)))

    def model(self, assumed: frozenset[str]) -> CostModel:
        """The truth with the ``assumed`` parameters as the letter has them. The truth itself where there are none."""
        truth = self.truth
        share = np.arange(1, truth.cuts + 1) / (truth.cuts + 1)  # c of I equal layers, embedding and head free
        device, time, clock_map = truth.device_compute_s, truth.server_time, truth.clock_map
        if "equal-layers" in assumed:
            device = self.device_s[:, None] * share
            rest = (1 - share)[:, None]
            time = ServerTime(
                self.server_total.breaks_hz, rest * self.server_total.a_s, rest * self.server_total.b_cycles
            )
        if "clock-scaling" in assumed:
            at_top = time.at(np.arange(truth.cuts), clock_map.reached(self.f_max_hz))
            time = ServerTime(np.empty(0), np.zeros((truth.cuts, 1)), (at_top * self.f_max_hz)[:, None])
            clock_map = NO_MAP
        if "delta" in assumed:
            device = device * (self.device_letter_s / self.device_s)[:, None]
            slower = self.server_letter_s / self.server_s
            time = ServerTime(time.breaks_hz, time.a_s * slower, time.b_cycles * slower)
        return replace(
            truth,
            device_compute_s=device,
            server_time=time,
            clock_map=clock_map,
            server_power=self._power(assumed),
            uplink_bits=self.uplink_bits if "phi" in assumed else truth.uplink_bits,
            downlink_bits=self.downlink_bits if "phi" in assumed else truth.downlink_bits,
            round_trip_s=np.zeros_like(truth.round_trip_s) if "rates" in assumed else truth.round_trip_s,
            idle_w=0.0 if "other-energy" in assumed else truth.idle_w,
            device_j=None if "other-energy" in assumed else truth.device_j,
            device_half_width_s=(),
            server_half_width_s=None,
        )

    def xi(self, assumed: frozenset[str]) -> float:
        """The coefficient that is believed."""
        return self.letter.xi_w_per_hz3 if "xi" in assumed else self.xi_w_per_hz3

    def _power(self, assumed: frozenset[str]) -> ServerPower | None:
        # xi is the scale of the watts, the cubic law their shape: each may be wrong alone.
        if "cubic-law" in assumed:
            return ServerPower.cubic(self.xi(assumed))
        power, scale = self.truth.server_power, self.xi(assumed) / self.xi_w_per_hz3
        if power is None or "xi" not in assumed:
            return power
        return ServerPower(power.breaks_hz, power.p_w * scale, power.q_w_per_hz * scale, power.r_w_per_hz3 * scale)

    def rates(self, assumed: frozenset[str], rows: slice) -> Places:
        """The places ``rows`` with the rates that are believed."""
        up, down = self.places.uplink_bps, self.places.downlink_bps
        if "rates" in assumed:
            up, down = self.uplink_bps, self.downlink_bps
        return Places(self.places.device[rows], up[rows], down[rows], self.places.feasible)


def premises_hold(model: CostModel) -> bool:
    """Whether a model is one that Algorithm 1 can decide by: P = xi f^3, times that go as 1/f, no energy but the busy server's."""
    power, time = model.server_power, model.server_time
    if power is None or len(power.p_w) != 1 or len(time.breaks_hz) or model.clock_map is not NO_MAP:
        return False
    return not (power.p_w.any() or power.q_w_per_hz.any() or time.a_s.any() or model.holds_energy)


def sides(problem: Problem, letter: Letter) -> Sides:
    """Both sides of every parameter of a problem. Raises BadInput where the letter's side cannot be formed."""
    truth, options, server = problem.decider, problem.options, problem.server
    for profile in (server, *problem.devices):
        if profile.hardware.cores is None:
            raise BadInput(
                f"profile {profile.name}: field hardware.cores is empty, expected the cores that the letter's delta counts by"
            )
        if profile.hardware.clocks is None:
            raise BadInput(
                f"profile {profile.name}: field hardware.clocks is empty, expected the clock that the letter's delta counts by"
            )
    xi = problem.xi_w_per_hz3
    if xi is None:
        raise BadInput(
            f"profile {server.name}: no field power_fit, expected the server's power against clock: regret is in joules too; "
            "measure it with 'card-profile run --measure power'"
        )
    epochs, f_max_hz = options.local_epochs, problem.clocks.f_max_hz

    def by_letter_s(profile: Profile, at_hz: float) -> float:
        return epochs * _flops(profile) / (at_hz * letter.delta * float(profile.hardware.cores or 1))

    def whole(profile: Profile) -> ServerTime:
        if problem.tables is None:
            return ServerTime(
                np.empty(0), np.zeros((1, 1)), np.full((1, 1), epochs * _flops(profile) / flops_per_cycle(profile)[0])
            )
        left_out = frozenset(options.leave_out)
        pieces = seconds_over_clock(profile, *segment_seconds(profile, left_out), left_out)
        return ServerTime(
            pieces.breaks_hz,
            epochs * pieces.a_s.sum(0, keepdims=True),
            epochs * pieces.b_cycles.sum(0, keepdims=True),
        )

    raw = np.array([[(c.smashed_bytes, c.gradient_bytes) for c in device.sizes.cuts] for device in problem.devices])
    bits = epochs * letter.phi * 8.0 * raw
    up, down = _assumed_rates(problem, letter)
    return Sides(
        truth=truth,
        places=problem.places,
        xi_w_per_hz3=xi,
        f_max_hz=f_max_hz,
        letter=letter,
        device_s=np.array([float(whole(d).at(0, operating_hz(d))) for d in problem.devices]),
        device_letter_s=np.array([by_letter_s(d, operating_hz(d)) for d in problem.devices]),
        server_total=whole(server),
        server_letter_s=by_letter_s(server, f_max_hz),
        uplink_bits=bits[:, :, 0],
        downlink_bits=bits[:, :, 1],
        uplink_bps=up,
        downlink_bps=down,
    )


def _flops(profile: Profile) -> float:
    return sum(row.forward_flops + row.backward_flops for row in profile.flops.segments)


def _assumed_rates(problem: Problem, letter: Letter) -> tuple[Floats, Floats]:
    """(N,) rates that the letter's way believes. Where the truth itself is drawn from a radio channel the assumed state fades alike, so that
    only the state may be wrong; where it was measured, given or traced, it is the mean channel of ``normal``."""
    shape, options = problem.rates.uplink_bps.shape, problem.options
    if letter.uplink_mbps is not None and letter.downlink_mbps is not None:
        one = np.ones(shape[0] * shape[1])
        return one * letter.uplink_mbps * 1e6, one * letter.downlink_mbps * 1e6
    bare = [device.model_copy(update={"link": None}) for device in problem.devices]
    radio = _radio(problem)
    fading = {} if radio is None else radio.model_dump(include={"fading", "correlation"})
    alike = Channel(state="normal", **fading)
    mean, faded = rates(bare, channel="normal"), rates(bare, rounds=shape[0], seed=options.seed, channel=alike)
    by_default = options.channel is None and options.uplink_mbps is None
    drawn = np.array([radio is not None or (by_default and device.link is None) for device in problem.devices])
    up, down = (
        np.where(drawn, f, np.broadcast_to(m, shape)).ravel()
        for f, m in ((faded.uplink_bps, mean.uplink_bps), (faded.downlink_bps, mean.downlink_bps))
    )
    return up, down


def _radio(problem: Problem) -> Channel | None:
    """The radio channel that ``--channel`` asked for. None: rates were given or traced, or nothing was asked."""
    channel = problem.options.channel
    return channel_of(channel) if isinstance(channel, str) else channel


# ---------------------------------------------------------------------------------------------------- in words and figures


def describe(problem: Problem, both: Sides) -> list[Parameter]:
    """The parameters that take part, in the order of `NAMES`, with both sides in a few words."""
    server, devices, letter, truth = problem.server, problem.devices, both.letter, both.truth
    fit, options = server.power_fit, problem.options
    assert fit is not None
    timed = problem.tables is not None
    top, low = problem.clocks.f_max_hz, problem.clocks.f_min_hz
    assert truth.server_power is not None
    reached = truth.clock_map.reached(np.array([low, top]))
    watts = truth.server_power.at(reached)
    seconds = both.server_total.at(0, reached)
    cubed, inverse = (low / top) ** 3, top / low

    def roots(profiles: Sequence[Profile]) -> tuple[str, ...]:
        if not timed:
            return tuple(sorted({p.hardware.root for p in profiles}))
        return tuple(sorted({t.root for p in profiles for t in p.timings}))

    effective = [letter.delta * both.server_letter_s / both.server_s]
    effective += (letter.delta * both.device_letter_s / both.device_s).tolist()
    last = 100 * (1 - truth.device_compute_s[:, -1] / both.device_s)
    raw = np.array([8.0 * options.local_epochs * d.sizes.cuts[0].smashed_bytes for d in devices])
    phi = np.divide(truth.uplink_bits[:, 0], raw, out=np.ones_like(raw), where=raw > 0)
    if options.compression is not None:
        phi_roots: set[str] = {"given"}
    else:
        blocks = [d.compression or server.compression for d in devices]
        phi_roots = {"assumed" if block is None else block.root for block in blocks}
    if options.uplink_mbps is not None or (options.channel is not None and _radio(problem) is None):
        rate_roots = {"given"}
    else:
        rate_roots = {"assumed" if options.channel is not None or d.link is None else str(d.link.root) for d in devices}
    found = [
        Parameter(
            "xi", "scale of the watts, W/Hz^3", f"{letter.xi_w_per_hz3:.3g}", f"{both.xi_w_per_hz3:.3g}", (fit.root,)
        ),
        Parameter(
            "cubic-law",
            "watts at F_min / at F_max",
            f"{cubed:.2g}",
            f"{watts[0] / watts[1]:.2g}" if watts[1] > 0 else "no watts",
            (fit.root,),
        ),
        Parameter(
            "clock-scaling",
            "server's time at F_min / at F_max",
            f"{inverse:.3g}",
            f"{seconds[0] / seconds[1]:.3g}",
            roots([server]),
        ),
        Parameter(
            "delta",
            "FLOPs per core and cycle",
            f"{letter.delta:g}",
            _between(np.array(effective)),
            roots([server, *devices]),
        ),
        Parameter(
            "equal-layers",
            f"% of the work past cut {truth.cuts}",
            f"{100 / (truth.cuts + 1):.3g}",
            _between(last),
            roots([server, *devices]) if timed else (server.flops.root,),
        ),
        Parameter("phi", "compressed / raw bytes", f"{letter.phi:g}", _between(phi), tuple(sorted(phi_roots))),
        Parameter(
            "rates",
            "Mbit/s up; down",
            f"{_between(both.uplink_bps / 1e6)}; {_between(both.downlink_bps / 1e6)}",
            f"{_between(both.places.uplink_bps / 1e6)}; {_between(both.places.downlink_bps / 1e6)}",
            tuple(sorted(rate_roots)),
        ),
    ]
    if len(problem.clocks.supported_hz) and server.hardware.clocks is not None:
        listed = f"{len(problem.clocks.supported_hz)} listed"
        found.append(
            Parameter("rounding", "clocks among which it searches", "any", listed, (server.hardware.clocks.root,))
        )
    if truth.holds_energy:
        counted = [f"{truth.idle_w:.3g} W idle"] if truth.idle_w else []
        counted += ["devices"] if truth.device_j is not None else []
        sources: list[PowerBlock | PowerFit | None] = [server.power] if truth.idle_w else []
        sources += [d.power_fit or d.power for d in devices] if truth.device_j is not None else []
        watts_of = tuple(sorted({block.root for block in sources if block is not None}))
        found.append(
            Parameter("other-energy", "energy beside the busy server's", "none", " and ".join(counted), watts_of)
        )
    return found


def _between(values: Floats) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if high <= low * (1 + 1e-9) else f"{low:.3g} to {high:.3g}"
