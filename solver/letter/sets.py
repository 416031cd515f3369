"""What the letter does not give, as ranges, and its simulation over many sets of them at once.

The letter gives neither F_min, batch, sequence, LoRA rank nor rates. `evaluate` runs Algorithm 1 and both benchmarks for K sets of
such parameters as arrays. Every figure here is in the letter's model (Eq. 7-12, 16): `profiles` and `solve` give the same.

Shapes: K sets, S = 3 channel states, R rounds, M devices, C cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from profiler.profile import BadInput, Link, Profile
from solver.baselines import DEVICE_ONLY, SERVER_ONLY
from solver.costs import Floats, Ints, Mask
from solver.letter.fleet import AS_PRINTED, AS_PUBLISHED, layer_flops
from solver.problem import Problem

CARD = "card"
METHODS = (CARD, SERVER_ONLY, DEVICE_ONLY)
STATES = ("good", "normal", "poor")
LETTER_PCT = (70.8, 53.1)
"""Section V-B: delay saved against device-only, server's energy saved against server-only."""

ClockRule = Literal["card", "own", "f-max", "f-min"]
"""The clock of the benchmarks: the one CARD chose, each one's own by Eq. 16 over its only cut, F_max, or F_min."""
CLOCK_RULES: tuple[ClockRule, ...] = get_args(ClockRule)
MeanRule = Literal["ratio of means", "mean of ratios"]
MEAN_RULES: tuple[MeanRule, ...] = get_args(MeanRule)

_MOST_CELLS = 1 << 17


# ------------------------------------------------------------------------------------------------- what is not given


@dataclass(frozen=True)
class Parameter:
    """One quantity that the letter leaves open: a range, taken evenly or evenly in its logarithm, and why this range."""

    name: str
    low: float
    high: float
    why: str
    log: bool = True
    whole: bool = False
    choices: tuple[float, ...] = ()

    def at(self, share: Floats) -> Floats:
        """Values at ``share`` (0..1) of the range."""
        if self.choices:
            picked = np.minimum((share * len(self.choices)).astype(int), len(self.choices) - 1)
            one_of: Floats = np.array(self.choices)[picked]
            return one_of
        value: Floats
        if self.log:
            value = np.exp(np.log(self.low) + share * np.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return np.clip(np.rint(value), self.low, self.high) if self.whole else value

    def share(self, value: float) -> float:
        """Where a value lies in the range (0..1), the inverse of `at`; one beyond an end lies at the end."""
        if self.choices:
            return (int(np.abs(np.array(self.choices) - value).argmin()) + 0.5) / len(self.choices)
        if self.high == self.low:
            return 0.5
        low, high, value = np.log([self.low, self.high, value]) if self.log else (self.low, self.high, value)
        return float(np.clip((value - low) / (high - low), 0, 1))


PLAUSIBLE = (
    Parameter("f_min_ghz", 0.21, 2.0, "lowest clock of such cards to four fifths of F_max", log=False),
    Parameter("batch_size", 1, 64, "what fits on one card", whole=True),
    Parameter("seq_len", 64, 2048, "usual for fine-tuning", whole=True),
    Parameter("lora_rank", 1, 64, "usual for LoRA", whole=True),
    Parameter("activation_bytes", 2, 4, "bfloat16 or float32", choices=(2.0, 4.0)),
    Parameter("phi", 0.1, 0.1, "Table II gives 0.1"),
    Parameter("uplink_mbps", 1, 2000, "a cell's edge to a whole carrier of 5G NR"),
    Parameter("downlink_mbps", 1, 2000, "a cell's edge to a whole carrier of 5G NR"),
    Parameter("state_step", 1, 2, "3 dB of noise: none at the highest rate, twofold where noise dominates", log=False),
)
WIDE = (
    Parameter("f_min_ghz", 0.01, 2.45, "any", log=False),
    Parameter("batch_size", 1, 1024, "any", whole=True),
    Parameter("seq_len", 16, 8192, "any", whole=True),
    Parameter("lora_rank", 1, 1024, "any", whole=True),
    Parameter("activation_bytes", 1, 4, "8 to 32 bit", choices=(1.0, 2.0, 4.0)),
    Parameter("phi", 0.001, 1, "any"),
    Parameter("uplink_mbps", 0.01, 100_000, "any"),
    Parameter("downlink_mbps", 0.01, 100_000, "any"),
    Parameter("state_step", 1, 4, "any", log=False),
)
LINK = Parameter(
    "link", 0.0274, 1, "a device's rates against the best link: the efficiencies of CQI 1 and 15 differ 36-fold"
)


@dataclass(frozen=True)
class Settings:
    """K sets of what the letter does not give: arrays (K,), ``link`` (K, M).

    Rates are those of the state normal for the best link; good has ``state_step`` times, poor 1/``state_step`` of them.
    Three more are the letter's own and stay at 0, 0 and 1 unless asked for: ``smashed_growth`` makes S(c) grow evenly from S(1) to
    (1 + growth) S(1) at the last cut, ``head_layers`` adds a head that costs the server so many layers, ``xi_factor`` scales xi.
    """

    f_min_ghz: Floats
    batch_size: Floats
    seq_len: Floats
    lora_rank: Floats
    activation_bytes: Floats
    phi: Floats
    uplink_mbps: Floats
    downlink_mbps: Floats
    state_step: Floats
    link: Floats
    smashed_growth: Floats
    head_layers: Floats
    xi_factor: Floats

    def __len__(self) -> int:
        return len(self.f_min_ghz)

    def __getitem__(self, which: Any) -> Settings:
        return Settings(*(getattr(self, f.name)[which] for f in fields(self)))

    def only(self, k: int) -> Settings:
        """Set ``k`` alone, K = 1."""
        return self[k : k + 1]

    def varied(self, name: str, values: Floats) -> Settings:
        """The one set with field ``name`` moved over ``values``, K = len(values)."""
        many = {f.name: np.repeat(getattr(self, f.name), len(values), axis=0) for f in fields(self)}
        return replace(Settings(**many), **{name: np.asarray(values, dtype=float)})

    def as_json(self, k: int = 0) -> dict[str, Any]:
        """Set ``k`` by name."""
        return {f.name: getattr(self, f.name)[k].tolist() for f in fields(self)}


def from_cube(points: Floats, parameters: Sequence[Parameter], devices: int, own_links: bool) -> Settings:
    """Points of the unit cube (K, P) as settings. With ``own_links`` P is larger by M: each device has its own share of the rates."""
    values = {p.name: p.at(points[:, i]) for i, p in enumerate(parameters)}
    link = LINK.at(points[:, len(parameters) :]) if own_links else np.ones((len(points), devices))
    return _as_the_letter(values, link)


def _as_the_letter(values: Mapping[str, Floats], link: Floats) -> Settings:
    one = np.ones(len(link))
    return Settings(**values, link=link, smashed_growth=0 * one, head_layers=0 * one, xi_factor=one)


def dimensions(parameters: Sequence[Parameter], devices: int, own_links: bool) -> int:
    """P of `from_cube`."""
    return len(parameters) + (devices if own_links else 0)


# ------------------------------------------------------------------------------------------------------ the simulation


@dataclass(frozen=True)
class Fading:
    """How rates vary over R rounds: rates against the mean ones of the same state, (S, R, M)."""

    uplink: Floats
    downlink: Floats

    def first(self, rounds: int) -> Fading:
        """The first rounds alone."""
        return Fading(self.uplink[:, :rounds], self.downlink[:, :rounds])


@dataclass(frozen=True)
class Outcome:
    """What CARD decides and what it and the benchmarks cost: arrays (K, S, R, M); the dictionaries go by method."""

    cut: Ints
    frequency_hz: Floats
    delay_s: Mapping[str, Floats]
    energy_j: Mapping[str, Floats]

    def pair_pct(self, mean: MeanRule = "ratio of means") -> tuple[Floats, Floats]:
        """(K,) delay saved against device-only and energy saved against server-only, in percent."""
        saved = []
        for table, other in ((self.delay_s, DEVICE_ONLY), (self.energy_j, SERVER_ONLY)):
            if mean == "ratio of means":
                saved.append(100 * (1 - table[CARD].mean((1, 2, 3)) / table[other].mean((1, 2, 3))))
            else:
                saved.append(100 * (1 - (table[CARD] / table[other]).mean((1, 2, 3))))
        return saved[0], saved[1]


def distance(delay_pct: Floats, energy_pct: Floats) -> Floats:
    """From the letter's pair, in percentage points."""
    far: Floats = np.hypot(delay_pct - LETTER_PCT[0], energy_pct - LETTER_PCT[1])
    return far


@dataclass(frozen=True)
class Base:
    """The fleet whose open parameters are varied, in the letter's model. Bits are for one mini-batch at phi = 1."""

    w: float
    epochs: int
    f_max_hz: float
    xi_w_per_hz3: float
    device_s: Floats
    cycles: Floats
    smashed_bits: Floats
    gradient_bits: Floats
    adapter_bits: Floats
    flops: float
    tokens: float
    activation_bytes: float
    lora_rank: float
    ffn: int

    @staticmethod
    def of(problem: Problem) -> Base:
        """Raises BadInput where the fleet's model is not the letter's, so that its FLOPs at another batch are not known."""
        work, letter, cuts = problem.server.workload, problem.letter, problem.server.sizes.cuts
        known = {model.name: model for model in (AS_PRINTED, AS_PUBLISHED)}
        if work.model not in known:
            raise BadInput(
                f"profile {problem.server.name}: field workload.model is {work.model}, expected one of {', '.join(known)}: what the "
                "letter leaves open is varied for its own model only"
            )
        if problem.tables is not None or len(problem.clocks.supported_hz):
            raise BadInput(
                f"profile {problem.server.name}: measured times or a list of clocks, expected neither: what the letter leaves open is "
                "varied in its own model only"
            )
        if not problem.feasible.all() or problem.xi_w_per_hz3 is None:
            raise BadInput(
                f"profile {problem.server.name}: expected xi and no memory limit that rules out a cut, as in the letter"
            )
        phi = np.array([(d.compression or problem.server.compression) for d in problem.devices], dtype=object)
        ratio = np.array([1.0 if block is None else block.phi for block in phi])[:, None]
        if problem.options.compression is not None:
            ratio = np.full_like(ratio, problem.options.compression)
        per_batch = problem.letter.epochs * ratio
        tokens = work.batch_size * work.seq_len
        ffn = known[work.model].ffn
        return Base(
            w=problem.options.w,
            epochs=letter.epochs,
            f_max_hz=problem.clocks.f_max_hz,
            xi_w_per_hz3=problem.xi_w_per_hz3,
            device_s=letter.device_compute_s,
            cycles=letter.server_time.b_cycles[:, 0],
            smashed_bits=letter.uplink_bits / per_batch,
            gradient_bits=letter.downlink_bits / per_batch,
            adapter_bits=letter.adapter_bits,
            flops=float(sum(layer_flops(work.batch_size, work.seq_len, work.lora_rank, ffn))),
            tokens=float(tokens),
            activation_bytes=cuts[0].smashed_bytes / (tokens * work.hidden_size),
            lora_rank=float(work.lora_rank),
            ffn=ffn,
        )

    @property
    def devices(self) -> int:
        """M."""
        return len(self.device_s)

    def scales(self, settings: Settings) -> tuple[Floats, Floats, Floats]:
        """(K,) factors on FLOPs, on smashed bytes and on adapter bytes."""
        forward, backward = layer_flops(settings.batch_size, settings.seq_len, settings.lora_rank, self.ffn)
        smashed = (
            settings.batch_size * settings.seq_len / self.tokens * settings.activation_bytes / self.activation_bytes
        )
        return (forward + backward) / self.flops, smashed, settings.lora_rank / self.lora_rank


def stated(problem: Problem, base: Base, rates_bps: Mapping[str, tuple[float, float]]) -> Settings:
    """The open parameters as the fleet and the three states' mean rates (up, down) have them, K = 1."""
    up, down = rates_bps["normal"]
    step = np.sqrt(rates_bps["good"][0] / rates_bps["poor"][0])
    work = problem.server.workload
    phi = problem.options.compression
    block = problem.devices[0].compression or problem.server.compression
    values = {
        "f_min_ghz": problem.clocks.f_min_hz / 1e9,
        "batch_size": work.batch_size,
        "seq_len": work.seq_len,
        "lora_rank": work.lora_rank,
        "activation_bytes": base.activation_bytes,
        "phi": phi if phi is not None else 1.0 if block is None else block.phi,
        "uplink_mbps": up / 1e6,
        "downlink_mbps": down / 1e6,
        "state_step": step,
    }
    return _as_the_letter(
        {name: np.array([float(value)]) for name, value in values.items()}, np.ones((1, base.devices))
    )


def evaluate(base: Base, settings: Settings, rule: ClockRule = "card", fading: Fading | None = None) -> Outcome:
    """Algorithm 1 and the benchmarks for K sets; without ``fading`` one round at the mean rates."""
    fade = fading or Fading(*[np.ones((len(STATES), 1, base.devices))] * 2)
    cells = fade.uplink.size * len(base.cycles)
    step = max(1, _MOST_CELLS // cells)
    parts = [_evaluate(base, settings[k : k + step], rule, fade) for k in range(0, len(settings), step)]

    def joined(get: Any) -> Any:
        return np.concatenate([get(part) for part in parts])

    return Outcome(
        joined(lambda p: p.cut),
        joined(lambda p: p.frequency_hz),
        {m: joined(lambda p, m=m: p.delay_s[m]) for m in METHODS},
        {m: joined(lambda p, m=m: p.energy_j[m]) for m in METHODS},
    )


def _evaluate(base: Base, settings: Settings, rule: ClockRule, fade: Fading) -> Outcome:
    flops, smashed, adapters = base.scales(settings)

    def wide(values: Floats) -> Floats:  # (K,) against (K, S, R, M, C)
        return values[:, None, None, None, None]

    share = settings.state_step[:, None] ** np.array([1.0, 0.0, -1.0])
    rate = 1e6 * share[:, :, None, None] * settings.link[:, None, None, :]  # (K, S, 1, M)
    by_up = 1 / (settings.uplink_mbps[:, None, None, None] * rate * fade.uplink)[..., None]
    by_down = 1 / (settings.downlink_mbps[:, None, None, None] * rate * fade.downlink)[..., None]
    cuts = len(base.cycles)
    batches = wide(base.epochs * settings.phi * smashed)
    if settings.smashed_growth.any():
        batches = batches * (1 + wide(settings.smashed_growth) * np.arange(cuts) / max(cuts - 1, 1))
    waiting = base.smashed_bits * (batches * by_up)
    waiting += base.gradient_bits * (batches * by_down)
    waiting += base.adapter_bits * (wide(adapters) * (by_up + by_down))
    waiting += base.device_s * wide(flops)
    cycles = (base.cycles + wide(settings.head_layers) * base.cycles[-1]) * wide(flops)  # (K, 1, 1, 1, C)
    low, high = np.minimum(wide(settings.f_min_ghz * 1e9), base.f_max_hz), base.f_max_hz
    xi = wide(base.xi_w_per_hz3 * settings.xi_factor)
    w = base.w
    d_span = (waiting + cycles / low).max(-1, keepdims=True) - (waiting + cycles / high).min(-1, keepdims=True)
    e_span = (xi * high * high * cycles).max(-1, keepdims=True) - (xi * low * low * cycles).min(-1, keepdims=True)
    f = np.clip(_clock(w, e_span, xi, d_span, low, high), low, high)
    by_delay, by_energy = _over(w, d_span), _over(1 - w, e_span)
    # U less what is the same for every cut
    cost = by_delay * waiting
    cost += (by_delay / f + by_energy * xi * f * f) * cycles
    index = cost.argmin(-1)[..., None]
    theirs = {"card": f, "f-max": np.full_like(f, high), "f-min": np.broadcast_to(low, f.shape)}
    clock = theirs.get(rule)
    if clock is None:  # over a single cut the cycles cancel: one clock for both benchmarks
        q = _clock(w, xi * (high * high - low * low), xi, 1 / low - 1 / high, low, high)
        clock = np.broadcast_to(np.clip(q, low, high), f.shape)
    delays, energies = {}, {}
    fixed = {SERVER_ONLY: np.zeros_like(index), DEVICE_ONLY: np.full_like(index, cuts - 1)}
    for method in METHODS:
        where, hz = fixed.get(method, index), f if method == CARD else clock
        there = np.take_along_axis(np.broadcast_to(cycles, cost.shape), where, -1)
        delays[method] = (np.take_along_axis(waiting, where, -1) + there / hz)[..., 0]
        energies[method] = (xi * hz * hz * there)[..., 0]
    return Outcome(index[..., 0] + 1, f[..., 0], delays, energies)


def _clock(w: float, e_span: Any, xi: Any, d_span: Any, low: Any, high: float) -> Floats:
    """Q of Eq. 16, with its limits at w = 0 and 1 as in `card.optimal_clock`."""
    if w >= 1:
        return np.broadcast_to(high, np.shape(d_span)).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        q: Floats = np.cbrt(w * e_span / (2 * xi * (1 - w) * d_span))
    return np.where(np.asarray(d_span) > 0, q, low)


def _over(weight: float, span: Floats) -> Floats:
    """weight / span; 0 where the range is empty."""
    return np.divide(weight, span, out=np.zeros_like(span), where=span > 0)


def changing(outcome: Outcome) -> Mask:
    """(K, M): devices whose cut is not the same in every round of every state."""
    first = outcome.cut[:, :, :1, :]
    moved: Mask = (outcome.cut != first).any((1, 2))
    return moved


# -------------------------------------------------------------------------------------------- the same through `solve`


def profiles(fleet: Sequence[Profile], base: Base, settings: Settings, state: str) -> list[Profile]:
    """The fleet under one set (K = 1) and state, as profiles: `solve` with ``--method card`` then gives `evaluate`'s figures.

    Each device gets a link of its own. ``smashed_growth`` and ``head_layers`` must be 0 (ValueError): the letter has no such thing.
    """
    if len(settings) != 1 or settings.smashed_growth[0] != 0 or settings.head_layers[0] != 0:
        raise ValueError("expected one set, with smashed_growth and head_layers 0")
    by_flops, by_smashed, by_adapters = (float(x[0]) for x in base.scales(settings))
    rate = float(settings.state_step[0]) ** (1 - STATES.index(state))
    index = 0
    made = []
    for profile in fleet:
        flops, sizes, work = profile.flops, profile.sizes, profile.workload
        changes: dict[str, Any] = {
            "workload": work.model_copy(
                update={
                    "batch_size": int(settings.batch_size[0]),
                    "seq_len": int(settings.seq_len[0]),
                    "lora_rank": int(settings.lora_rank[0]),
                }
            ),
            "flops": flops.model_copy(
                update={
                    "segments": [
                        row.model_copy(
                            update={
                                "forward_flops": row.forward_flops * by_flops,
                                "backward_flops": row.backward_flops * by_flops,
                            }
                        )
                        for row in flops.segments
                    ]
                }
            ),
            "sizes": sizes.model_copy(
                update={
                    "segments": [
                        row.model_copy(update={"adapter_bytes": round(row.adapter_bytes * by_adapters)})
                        for row in sizes.segments
                    ],
                    "cuts": [
                        row.model_copy(
                            update={
                                "smashed_bytes": round(row.smashed_bytes * by_smashed),
                                "gradient_bytes": round(row.gradient_bytes * by_smashed),
                            }
                        )
                        for row in sizes.cuts
                    ],
                }
            ),
        }
        clocks, fit = profile.hardware.clocks, profile.power_fit
        if profile.role == "server" and clocks is not None and fit is not None:
            clocks = clocks.model_copy(update={"min_hz": float(settings.f_min_ghz[0] * 1e9)})
            changes["hardware"] = profile.hardware.model_copy(update={"clocks": clocks})
            xi = fit.xi_w_per_hz3 * float(settings.xi_factor[0])
            changes["power_fit"] = fit.model_copy(update={"xi_w_per_hz3": xi})
        elif profile.role == "device":
            share = rate * float(settings.link[0, index])
            index += 1
            changes["link"] = Link(
                provenance="assumed",
                source="the search over what the letter does not give",
                uplink_mbps=float(settings.uplink_mbps[0]) * share,
                downlink_mbps=float(settings.downlink_mbps[0]) * share,
            )
        made.append(profile.model_copy(update=changes))
    return made
