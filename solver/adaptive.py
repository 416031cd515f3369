"""When the channel moves inside a round: what a decision taken at its start loses, and what re-cutting inside it wins.

A round is T mini-batches in K blocks; the rates hold for a block and then change. A cut is held for a block:

    block          1           2                    K
    adapters   A(c1) down   |A(c2)-A(c1)|  ...   A(cK) up
    rates      R[1]         R[2]                 R[K]

A re-cut from c to c' > c sends the adapters of layers c+1..c' down to the device, one to c' < c sends those of c'+1..c up, at the
rates of that moment. What was moved also changes what goes up at the end, so every adapter is counted each time it travels. With one
cut and unchanging rates this is Eq. 9 to 11.

The weights of delay and energy are fixed for a device, by its mean rates: policies differ in what they know, not in what they
want. With fixed weights the best clock of a cut does not depend on the rates, so each cut has its clock and a re-cut changes both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.profile import BadInput, Profile
from solver import card, exact
from solver.assumptions import Assumption, assumed, distinct
from solver.channel import WITHIN_A_ROUND, Channel, channel_of
from solver.costs import CostModel, Floats, Ints, Places
from solver.extremes import box
from solver.problem import MAX_DECISIONS, Problem, SolveOptions, in_one_model, pose

POLICIES = {
    "start": "decide once, as if the first block's rates stayed",
    "mean": "decide once, by the mean rates of the rounds before",
    "clairvoyant": "decide once, knowing the whole round",
    "adaptive": "decide at every block, move only where it pays",
    "best": "re-cut at any block, knowing the whole round",
    "free": "the same if moving cost nothing: no policy is below",
}
REFERENCE = "clairvoyant"
DEFAULT_ROUNDS = 200
DEFAULT_THRESHOLD_U = 0.003
"""Of U, whose range is 0 to 1: fewer re-cuts than without a threshold, at no loss that could be seen (benchmarks/adaptive.py)."""
FEWEST_PAIRS = 20
"""Fewer pairs of blocks say too little of how long a channel remembers: until then it is taken to stay as it is."""
BLOCK_POINTS = 4_000_000
"""Rounds x blocks x cuts that are looked at together, so that memory stays bounded."""

Cuts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Outcome:
    """What one policy did on N rounds of one device: 0-based cuts (N, K); delay, energy and cost of each round (N,); re-cuts (N,)."""

    cut_index: Cuts
    delay_s: Floats
    energy_j: Floats
    cost: Floats

    @property
    def recuts(self) -> Ints:
        """How often the cut changed inside each round."""
        changes: Ints = (np.diff(self.cut_index, axis=1) != 0).sum(axis=1)
        return changes


@dataclass(frozen=True)
class Lane:
    """One device: what each cut costs in a mini-batch, and the weights x, y of cost = x delay + y energy. Arrays (C,)."""

    feasible: npt.NDArray[np.bool_]
    still_s: Floats
    """Seconds of a mini-batch that do not depend on the rates: both machines at work, round trips."""
    still_j: Floats
    uplink_bits: Floats
    downlink_bits: Floats
    adapter_bits: Floats
    trip_s: float
    """One way of a round trip: what a transfer costs however small."""
    by_delay: float
    by_energy: float
    idle_w: float
    clock_hz: Floats
    """The best clock of each cut under the weights."""
    cost_at_zero: float = 0.0
    """x D_min + y E_min: what is taken off, so that cost is U."""
    moving: float = 1.0
    """Bytes that travel at a re-cut for each byte of adapter."""

    @property
    def by_wait(self) -> float:
        """Cost of a second in which the server waits."""
        return self.by_delay + self.by_energy * self.idle_w

    def mini_batch(self, up_s_per_bit: Floats, down_s_per_bit: Floats) -> Floats:
        """(N, C): cost of a mini-batch at N pairs of inverse rates; infinite where a cut does not fit."""
        sent = np.outer(up_s_per_bit, self.uplink_bits) + np.outer(down_s_per_bit, self.downlink_bits)
        still = self.by_delay * self.still_s + self.by_energy * self.still_j
        return np.where(self.feasible, still + self.by_wait * sent, np.inf)

    def adapters(self, s_per_bit: Floats) -> Floats:
        """(N, C): cost of carrying the adapters of layers 1..c one way."""
        return self.by_wait * (np.outer(s_per_bit, self.adapter_bits) + self.trip_s)

    def evaluate(self, cuts: Cuts, sizes: Ints, up: Floats, down: Floats, free: bool = False) -> Outcome:
        """Delay, energy and cost of rounds with cuts (N, K) at inverse rates (N, K) of blocks of ``sizes`` (K,) mini-batches."""
        sent = self.uplink_bits[cuts] * up + self.downlink_bits[cuts] * down
        bits = self.adapter_bits[cuts]
        waiting = (sizes * sent).sum(1) + bits[:, 0] * down[:, 0] + bits[:, -1] * up[:, -1] + 2 * self.trip_s
        if not free:
            more = np.diff(bits, axis=1)
            moved = np.maximum(more, 0) * down[:, 1:] + np.maximum(-more, 0) * up[:, 1:]
            waiting = waiting + (self.moving * moved + self.trip_s * (np.diff(cuts, axis=1) != 0)).sum(1)
        delay = (sizes * self.still_s[cuts]).sum(1) + waiting
        energy = (sizes * self.still_j[cuts]).sum(1) + self.idle_w * waiting
        cost = self.by_delay * delay + self.by_energy * energy - self.cost_at_zero
        return Outcome(cuts, delay, energy, cost)


# ------------------------------------------------------------------------------------------------------------ policies


@dataclass(frozen=True)
class Forecast:
    """What a policy expects of inverse rates, from N rounds' past: their mean (N,), and how much of a deviation is left a block later (N,)."""

    mean: Floats
    memory: Floats

    @staticmethod
    def of_past(inverse: Floats) -> Forecast:
        """For each of N rounds from the rounds before it alone. ``inverse`` is (N, K).

        In the first round nothing is known: the mean is then the first block's own figure, and the channel is taken to stay.
        """
        rounds, blocks = inverse.shape

        def before(per_round: Floats) -> Floats:
            return np.concatenate([[0.0], np.cumsum(per_round)[:-1]])

        seen = np.arange(rounds) * blocks
        mean = np.where(seen > 0, before(inverse.sum(1)) / np.maximum(seen, 1), inverse[:, 0])
        # Figures less one common value: sums of squares of nearly equal figures would lose all digits.
        a, b = inverse[:, :-1] - inverse[0, 0], inverse[:, 1:] - inverse[0, 0]
        pairs = np.maximum(np.arange(rounds) * (blocks - 1), 1)
        sums = [before(x.sum(1)) / pairs for x in (a, b, a * b, a * a, b * b)]
        covariance = sums[2] - sums[0] * sums[1]
        variance = (sums[3] - sums[0] ** 2) * (sums[4] - sums[1] ** 2)
        spread = np.sqrt(np.maximum(variance, 0.0))
        known = (np.arange(rounds) * (blocks - 1) >= FEWEST_PAIRS) & (spread > 0)
        correlation = np.divide(covariance, spread, out=np.ones(rounds), where=known)
        return Forecast(mean, np.clip(correlation, 0.0, 1.0))

    def of(self, rows: slice) -> Forecast:
        """That of some of the rounds."""
        return Forecast(self.mean[rows], self.memory[rows])

    def ahead(self, now: Floats, sizes: Ints) -> tuple[Floats, Floats]:
        """(N,) expected sum of the inverse rate over mini-batches of this block and those to come, and its value in the last block.

        ``sizes`` are those of this block and of the ones to come.
        """
        left = self.memory[:, None] ** np.arange(len(sizes))
        expected = self.mean[:, None] + left * (now - self.mean)[:, None]
        return expected @ sizes, expected[:, -1]


def _staying(lane: Lane, ahead_up: tuple[Floats, Floats], ahead_down: tuple[Floats, Floats], count: int) -> Floats:
    """(N, C): expected cost of ``count`` mini-batches at one cut, and of carrying its adapters up at the end."""
    return count * lane.mini_batch(ahead_up[0] / count, ahead_down[0] / count) + lane.adapters(ahead_up[1])


def once(lane: Lane, sizes: Ints, first_down: Floats, up: Floats, down: Floats, last_up: Floats) -> Ints:
    """(N,) the best single cut where the mini-batches see mean inverse rates ``up`` and ``down``, the adapters the other two."""
    total = sizes.sum() * lane.mini_batch(up, down) + lane.adapters(first_down) + lane.adapters(last_up)
    cut: Ints = total.argmin(1)
    return cut


def adaptive(
    lane: Lane,
    sizes: Ints,
    up: Floats,
    down: Floats,
    coming_up: Forecast,
    coming_down: Forecast,
    threshold: float,
) -> Cuts:
    """Decide at every block from what is known then: the present rates and the two forecasts; (N, K) cuts.

    The cut moves where the expected saving over the mini-batches left, the upload at the end included, exceeds the cost of moving now by
    more than ``threshold``, in the unit of cost.
    """
    rounds, blocks = up.shape
    cuts = np.empty((rounds, blocks), dtype=np.int32)
    row = np.arange(rounds)
    for k in range(blocks):
        rest = sizes[k:]
        stay = _staying(lane, coming_up.ahead(up[:, k], rest), coming_down.ahead(down[:, k], rest), int(rest.sum()))
        if k == 0:
            cuts[:, 0] = (stay + lane.adapters(down[:, 0])).argmin(1)
            continue
        now = cuts[:, k - 1]
        more = lane.adapter_bits[None, :] - lane.adapter_bits[now][:, None]
        moved = np.maximum(more, 0) * down[:, k, None] + np.maximum(-more, 0) * up[:, k, None]
        go = stay + lane.by_wait * (lane.moving * moved + lane.trip_s)
        go[row, now] = np.inf
        to = go.argmin(1)
        cuts[:, k] = np.where(go[row, to] + threshold < stay[row, now], to, now)
    return cuts


def best(lane: Lane, sizes: Ints, up: Floats, down: Floats) -> Cuts:
    """The least cost over all sequences of cuts, the whole round known; (N, K) cuts. Dynamic programming, linear in C and K.

    What a move costs grows with the adapters between the two cuts, so the best place to come from is a running minimum from each side.
    """
    rounds, blocks = up.shape
    every = np.arange(len(lane.adapter_bits))
    value = lane.adapters(down[:, 0]) + sizes[0] * lane.mini_batch(up[:, 0], down[:, 0])
    origins = np.empty((blocks, rounds, len(every)), dtype=np.int32)
    for k in range(1, blocks):
        stay, origin = value, np.broadcast_to(every, value.shape)
        for rate, order in ((down[:, k], 1), (up[:, k], -1)):
            toll = order * lane.by_wait * lane.moving * np.outer(rate, lane.adapter_bits)
            height = (value - toll)[:, ::order]
            least = np.minimum.accumulate(height, axis=1)
            where = np.maximum.accumulate(np.where(height == least, np.arange(len(every)), 0), axis=1)
            came = least[:, ::order] + toll + lane.by_wait * lane.trip_s
            source = every[::order][where][:, ::order]
            better = came < stay
            stay, origin = np.where(better, came, stay), np.where(better, source, origin)
        value = stay + sizes[k] * lane.mini_batch(up[:, k], down[:, k])
        origins[k] = origin
    cuts = np.empty((rounds, blocks), dtype=np.int32)
    cuts[:, -1] = (value + lane.adapters(up[:, -1])).argmin(1)
    for k in range(blocks - 1, 0, -1):
        cuts[:, k - 1] = origins[k][np.arange(rounds), cuts[:, k]]
    return cuts


def free(lane: Lane, sizes: Ints, up: Floats, down: Floats) -> Cuts:
    """The least cost if moving cost nothing; (N, K) cuts. Below every policy."""
    blocks = up.shape[1]
    cuts = np.empty(up.shape, dtype=np.int32)
    for k in range(blocks):
        cost = sizes[k] * lane.mini_batch(up[:, k], down[:, k])
        if k == 0:
            cost = cost + lane.adapters(down[:, 0])
        if k == blocks - 1:
            cost = cost + lane.adapters(up[:, -1])
        cuts[:, k] = cost.argmin(1)
    return cuts


def run(lane: Lane, sizes: Ints, uplink_bps: Floats, downlink_bps: Floats, threshold: float) -> dict[str, Outcome]:
    """Every policy on the same N rounds. Rates are (N, K), for blocks of ``sizes`` (K,) mini-batches."""
    up, down = 1 / uplink_bps, 1 / downlink_bps
    coming_up, coming_down = Forecast.of_past(up), Forecast.of_past(down)
    chosen = {name: np.empty(up.shape, dtype=np.int32) for name in POLICIES}
    some = max(1, BLOCK_POINTS // (up.shape[1] * len(lane.feasible)))
    for start in range(0, len(up), some):
        rows = slice(start, start + some)
        part = _decide(lane, sizes, up[rows], down[rows], coming_up.of(rows), coming_down.of(rows), threshold)
        for name, cuts in part.items():
            chosen[name][rows] = cuts if cuts.ndim == 2 else cuts[:, None]
    return {name: lane.evaluate(cuts, sizes, up, down, free=name == "free") for name, cuts in chosen.items()}


def _decide(
    lane: Lane, sizes: Ints, up: Floats, down: Floats, past_up: Forecast, past_down: Forecast, threshold: float
) -> dict[str, Ints | Cuts]:
    """The cuts of every policy: (N,) where it decides once, else (N, K)."""
    share = sizes / sizes.sum()
    return {
        "start": once(lane, sizes, down[:, 0], up[:, 0], down[:, 0], up[:, 0]),
        "mean": once(lane, sizes, past_down.mean, past_up.mean, past_down.mean, past_up.mean),
        "clairvoyant": once(lane, sizes, down[:, 0], up @ share, down @ share, up[:, -1]),
        "adaptive": adaptive(lane, sizes, up, down, past_up, past_down, threshold),
        "best": best(lane, sizes, up, down),
        "free": free(lane, sizes, up, down),
    }


# -------------------------------------------------------------------------------------------------------------- a fleet


@dataclass(frozen=True)
class Followed:
    """Policies on a fleet. ``outcomes[name][m]`` is policy ``name`` on device m; ``lanes[m]`` what the device's cuts cost."""

    problem: Problem
    lanes: list[Lane]
    sizes: Ints
    """(K,) mini-batches in each block of a round."""
    outcomes: dict[str, list[Outcome]]
    threshold: float
    assumptions: list[Assumption]
    warnings: list[str]

    @property
    def rounds(self) -> int:
        """N: rounds that were followed."""
        return len(self.outcomes[REFERENCE][0].delay_s)

    def summary(self, policy: str, device: int | None = None) -> dict[str, float | None]:
        """Means over rounds of one device, or of all; what the policy loses beside the clairvoyant; re-cuts a round.

        Energy is None where power is unknown, a percentage where there is nothing to lose.
        """
        chosen, ideal = (
            self.outcomes[name] if device is None else [self.outcomes[name][device]] for name in (policy, REFERENCE)
        )

        def mean(of: list[Outcome], what: str) -> float:
            return float(np.mean([getattr(outcome, what) for outcome in of]))

        figures: dict[str, float | None] = {
            f"mean_{what}": mean(chosen, what) for what in ("delay_s", "energy_j", "cost")
        }
        for what in ("delay_s", "energy_j"):
            base = mean(ideal, what)
            loss = 100 * (mean(chosen, what) / base - 1) if base > 0 else None
            figures[f"{what.rpartition('_')[0]}_loss_pct"] = loss
        figures["cost_loss"] = mean(chosen, "cost") - mean(ideal, "cost")
        figures["recuts_per_round"] = mean(chosen, "recuts")
        if self.problem.evaluated.server_power is None:
            figures["mean_energy_j"] = figures["energy_loss_pct"] = None
        return figures

    @property
    def same_size_everywhere(self) -> list[bool]:
        """For each device whether what crosses has one size at all its cuts: then rates say nothing about which cut to hold."""
        return [
            bool(np.ptp(lane.uplink_bits[lane.feasible]) == 0 == np.ptp(lane.downlink_bits[lane.feasible]))
            for lane in self.lanes
        ]

    def held(self, policy: str, device: int) -> dict[str, int]:
        """How many blocks were held at each cut."""
        cut, count = np.unique(self.outcomes[policy][device].cut_index + 1, return_counts=True)
        return {str(c): n for c, n in zip(cut.tolist(), count.tolist(), strict=True)}

    def as_json(self) -> dict[str, Any]:
        """What ``card-solve follow --json`` prints."""
        devices = self.problem.devices
        return {
            "policies": {
                name: {
                    "what": what,
                    **self.summary(name),
                    "devices": [
                        {
                            "device": device.name,
                            **self.summary(name, m),
                            "cuts": self.held(name, m),
                        }
                        for m, device in enumerate(devices)
                    ],
                }
                for name, what in POLICIES.items()
            },
            "reference": REFERENCE,
            "rounds": self.rounds,
            "mini_batches_per_block": self.sizes.tolist(),
            "threshold": self.threshold,
            "objective": self.problem.options.objective.as_json(),
            "evaluate": self.problem.evaluated.name,
            "one_size_at_all_cuts": dict(zip([d.name for d in devices], self.same_size_everywhere, strict=True)),
            "assumptions": [item.as_json() for item in self.assumptions],
            "warnings": self.warnings,
        }


def follow(
    profiles: Sequence[Profile],
    options: SolveOptions,
    *,
    threshold: float | None = None,
    block: int = 1,
    moving: float = 1.0,
    correlation: float | None = None,
) -> Followed:
    """Compare all policies on rounds whose channel changes every ``block`` mini-batches.

    A radio channel (`solver.channel.Channel`) draws one gain for each block, ``options.rounds`` rounds of them (200 unless given); of
    a trace each row of a device is one block. ``threshold`` is the hysteresis in the unit of cost (U: 0.003 unless given; joules at a
    price: 0), ``moving`` the bytes that travel at a re-cut for each byte of adapter (3 with Adam's two moments), ``correlation`` that of
    the radio channel's amplitude from block to block, in place of the channel's own.

    Raises BadInput, one line, naming the option and what was expected.
    """
    if options.method != "exact":
        raise BadInput(f"--method {options.method}: expected exact, policies differ in what they know of the channel")
    if options.objective.limit is not None:
        raise BadInput(f"--{options.objective.kind}: expected --w or --price, a limit is no sum over mini-batches")
    if options.codec is not None:
        raise BadInput("--codec: policies within a round know one phi, expected --compression here")
    if threshold is None:
        threshold = DEFAULT_THRESHOLD_U if options.objective.kind == "w" else 0.0
    for option, value, least in (("--threshold", threshold, 0.0), ("--moving", moving, 1.0)):
        if not least <= value <= 1e9:
            raise BadInput(f"{option} {value:g}: expected a number from {least:g} to 1e9")
    if options.rounds is not None and options.rounds < 1:
        raise BadInput(f"--rounds {options.rounds}: expected a whole number from 1")
    if options.local_epochs < 1:
        raise BadInput(f"--local-epochs {options.local_epochs}: expected a whole number from 1")
    if not 1 <= block <= options.local_epochs:
        raise BadInput(f"--block {block}: expected 1 to {options.local_epochs} mini-batches (--local-epochs)")
    blocks = math.ceil(options.local_epochs / block)
    if blocks > 10_000:
        raise BadInput(f"--block {block}: {blocks} blocks in a round, expected at most 10000")
    sizes = np.minimum(block, options.local_epochs - block * np.arange(blocks))
    radio = channel_of(options.channel or "normal") if not isinstance(options.channel, Channel) else options.channel
    traced = radio is None
    if correlation is not None:
        linked = options.channel is None and any(p.link is not None for p in profiles)
        if radio is None or linked or options.uplink_mbps is not None:
            raise BadInput(
                f"--correlation {correlation:g}: expected a radio channel (--channel), these rates are given"
            )
        if not 0 <= correlation < 1:
            raise BadInput(f"--correlation {correlation:g}: expected a number from 0 to below 1")
        options = replace(options, channel=radio.model_copy(update={"correlation": correlation}))
    rounds = options.rounds if traced or options.rounds is not None else DEFAULT_ROUNDS
    if rounds is not None and rounds * blocks > MAX_DECISIONS:
        raise BadInput(
            f"--rounds {rounds}: {rounds * blocks} blocks, expected at most {MAX_DECISIONS} for all devices together"
        )
    problem = in_one_model(pose(profiles, replace(options, rounds=None if rounds is None else rounds * blocks)))
    rows, warnings = len(problem.rates.rounds), list(problem.warnings)
    if rows < blocks:
        raise BadInput(f"--channel {options.channel}: {rows} rows for a device, expected {blocks}, one for each block")
    whole = rows - rows % blocks
    if whole < rows:
        warnings.append(
            f"the last {rows - whole} of {rows} rows of the trace fill no round of {blocks} blocks: left out"
        )
    up, down = (
        rate[:whole].reshape(-1, blocks, len(problem.devices))
        for rate in (problem.rates.uplink_bps, problem.rates.downlink_bps)
    )
    if np.ptp(up, axis=1).max() == 0 == np.ptp(down, axis=1).max():
        warnings.append("the rates do not change inside any round: all policies decide alike but for the past's mean")
    lanes = lanes_of(problem, up, down, moving)
    runs = [run(lane, sizes, up[:, :, m], down[:, :, m], threshold) for m, lane in enumerate(lanes)]
    listed, rests_on_letter, rests_on_tables = problem.rests_on
    own = [
        assumed(WITHIN_A_ROUND, f"constant for {block} mini-batch{'es' if block > 1 else ''}, then changes"),
        assumed("re-cut: bytes moved for each byte of adapter", moving),
        assumed("re-cut: model weights", "already on both sides"),
    ]
    listed = own + listed + (rests_on_letter if problem.evaluated is problem.letter else rests_on_tables)
    outcomes = {name: [of_device[name] for of_device in runs] for name in POLICIES}
    return Followed(problem, lanes, sizes, outcomes, threshold, distinct(listed), warnings)


def lanes_of(problem: Problem, uplink_bps: Floats, downlink_bps: Floats, moving: float) -> list[Lane]:
    """What each device's cuts cost, with weights and clocks by its mean rates over the rounds (N, K, M).

    The mean is of the inverse: seconds add up, rates do not.
    """
    model, clocks, count = problem.evaluated, problem.clocks, len(problem.devices)
    up, down = (1 / (1 / rate).mean(axis=(0, 1)) for rate in (uplink_bps, downlink_bps))
    places = Places(np.arange(count), up, down, problem.feasible)
    goal = problem.options.objective
    if goal.price_j_per_s is not None:
        by_delay, by_energy, zero = np.full(count, goal.price_j_per_s), np.ones(count), np.zeros(count)
    else:
        f_star = card.optimal_clock(problem.letter, places, clocks, goal.w, problem.xi_w_per_hz3)
        extremes = box(model, places, clocks, f_star)[0]
        by_delay, by_energy = extremes.weights(goal.w)
        zero = by_delay * extremes.d_min_s + by_energy * extremes.e_min_j
    clock = _clock_of_each_cut(model, problem, by_delay, by_energy)
    reached = model.clock_map.reached(clock)
    busy_s = model.server_time.at(np.arange(model.cuts)[None, :], reached)
    busy_j = np.zeros_like(busy_s) if model.server_power is None else model.server_power.at(reached) * busy_s
    if model.device_j is not None:
        busy_j = busy_j + model.device_j
    trips, epochs = model.round_trip_s, model.epochs
    return [
        Lane(
            feasible=problem.feasible[m],
            still_s=(model.device_compute_s[m] + busy_s[m]) / epochs + trips[m],
            still_j=(busy_j[m] + model.idle_w * model.device_compute_s[m]) / epochs + model.idle_w * trips[m],
            uplink_bits=model.uplink_bits[m] / epochs,
            downlink_bits=model.downlink_bits[m] / epochs,
            adapter_bits=model.adapter_bits[m],
            trip_s=float(trips[m]) / 2,
            by_delay=float(by_delay[m]),
            by_energy=float(by_energy[m]),
            idle_w=model.idle_w,
            clock_hz=clock[m],
            cost_at_zero=float(zero[m]),
            moving=moving,
        )
        for m in range(count)
    ]


def _clock_of_each_cut(model: CostModel, problem: Problem, by_delay: Floats, by_energy: Floats) -> Floats:
    """(M, C): the clock at which each cut costs least. A device that may hold one cut only is as good as a cut."""
    count, cuts = model.device_compute_s.shape
    apart = replace(
        model,
        device_compute_s=np.repeat(model.device_compute_s, cuts, axis=0),
        uplink_bits=np.repeat(model.uplink_bits, cuts, axis=0),
        downlink_bits=np.repeat(model.downlink_bits, cuts, axis=0),
        adapter_bits=np.repeat(model.adapter_bits, cuts, axis=0),
        round_trip_s=np.repeat(model.round_trip_s, cuts),
        device_j=None if model.device_j is None else np.repeat(model.device_j, cuts, axis=0),
    )
    size = count * cuts
    rate = np.full(size, 1e9)  # the best clock of a cut does not depend on it
    places = Places(np.arange(size), rate, rate, np.tile(np.eye(cuts, dtype=bool), (count, 1)))
    choice = exact.choose(apart, places, problem.clocks, np.repeat(by_delay, cuts), np.repeat(by_energy, cuts))
    return choice.frequency_hz.reshape(count, cuts)
