"""The profile: the one document between measuring and deciding.

A profile is pure data about one machine under one split fine-tuning workload. It needs neither torch nor hardware to be read,
and reading one never runs anything. Units are SI and stand in the field names. Every block of figures bears its provenance.

Indexing. A model is a row of *segments*: the embedding, the I transformer layers, the head (final norm, output projection and
loss), and for an encoder-decoder model a bridge between encoder and decoder. Each segment has a ``layer`` number: 0 for the
embedding, 1..I for the layers, I+1 for the head; a bridge bears the number of the first decoder layer. At cut layer c the
segments with ``layer <= c`` are on the device, the others on the server (c is the letter's c, 1..I-1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

FORMAT: Literal["card-profile/1"] = "card-profile/1"

Provenance = Literal["measured", "fitted", "emulated", "datasheet", "literature", "assumed"]
Role = Literal["device", "server"]
SegmentKind = Literal["embedding", "layer", "bridge", "head"]

MAX_TEXT = 4000

# Bounds reject a unit mistake (MHz or GHz written where Hz is meant) before it becomes a decision.
Hertz = Annotated[
    float, Field(ge=1e6, le=1e11, description="Hz; a value outside 1e6..1e11 is taken for a unit mistake")
]
Seconds = Annotated[float, Field(ge=0, le=1e7)]
Watts = Annotated[float, Field(ge=0, le=1e5)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
Flops = Annotated[float, Field(ge=0, le=1e24)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Codec = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+-]{0,39}$")]

MAX_SEGMENTS = 10_000
MAX_CLOCKS = 10_000
MAX_OPERATORS = 100_000
MAX_CODECS = 100


class BadInput(Exception):
    """Input that cannot be used. The message is one line: which file or option, which field, what was expected (exit 2)."""


class MissingHardware(Exception):
    """Hardware, a permission or an optional package is missing. One line: what is missing and how to get it (exit 3)."""


def printable(text: str) -> str:
    """``text`` with "?" for what could steer a terminal: words out of files are printed so."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Document(BaseModel):
    """Base of everything in a profile: unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Block(Document):
    """A block of figures: where they come from travels with them."""

    provenance: Provenance
    basis: Provenance | None = Field(
        default=None, description="For fitted figures: the provenance of the data that they were fitted to"
    )
    source: Text | None = Field(default=None, description="Where a literature, datasheet or assumed figure is from")
    note: Text | None = None

    @model_validator(mode="after")
    def _sources_are_named(self) -> Block:
        if self.provenance == "literature" and not self.source:
            raise ValueError("provenance 'literature' needs a source")
        if self.provenance == "fitted" and self.basis is None:
            raise ValueError("provenance 'fitted' needs a basis: the provenance of the data fitted")
        return self

    @property
    def root(self) -> Provenance:
        """Provenance of the data underneath: the basis of a fit, else the block's own."""
        return self.basis if self.provenance == "fitted" and self.basis is not None else self.provenance


class Stat(Document):
    """A repeated timing: median, spread (half the interquartile range is the usual noise) and number of samples."""

    median_s: Seconds
    iqr_s: Seconds = 0.0
    samples: int = Field(ge=1)


class Clocks(Block):
    """Clocks of the processor that runs the layers (the GPU's core clock, or the CPU's)."""

    supported_hz: list[Hertz] = Field(
        default_factory=list, max_length=MAX_CLOCKS, description="Ascending; empty: any clock"
    )
    min_hz: Hertz
    max_hz: Hertz
    operating_hz: Hertz = Field(description="The clock at which a device trains (f_m^D of Eq. 7)")

    @model_validator(mode="after")
    def _ordered(self) -> Clocks:
        if sorted(set(self.supported_hz)) != self.supported_hz:
            raise ValueError("supported_hz must be ascending without repeats")
        if not self.min_hz <= self.max_hz:
            raise ValueError("min_hz must not exceed max_hz")
        return self


class Hardware(Block):
    """What the machine is. ``cores`` is sigma of Eq. 7 and 8, ``flops_per_core_cycle`` delta."""

    kind: Literal["cpu", "cuda", "emulated", "abstract"]
    description: Text
    catalog: Text | None = None
    cores: int | None = Field(default=None, ge=1, le=10**7)
    flops_per_core_cycle: float | None = Field(default=None, ge=1e-6, le=1e6)
    memory_bytes: Bytes | None = Field(
        default=None, description="Memory that a training process may use; None: no limit known"
    )
    power_cap_w: Watts | None = None
    clocks: Clocks | None = None
    software: dict[str, Text] = Field(default_factory=dict)
    conditions: dict[str, Text] = Field(default_factory=dict, description="Threads, governor, power mode and the like")


class Workload(Document):
    """What was trained. Two profiles can be solved together only when these agree (see ``Workload.key``)."""

    model: Text
    architecture: Text
    layers: int = Field(ge=2, le=MAX_SEGMENTS, description="I of the letter")
    encoder_layers: int | None = Field(default=None, ge=1, description="Ne for an encoder-decoder model; layers 1..Ne")
    hidden_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seq_len: int = Field(ge=1)
    dtype: Text
    lora_rank: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    lora_targets: list[Text]
    optimizer: Text = "adamw"
    gradient_checkpointing: bool = False
    parameters: int = Field(ge=1, description="Base parameters, a tied one counted once")
    trainable_parameters: int = Field(ge=1)

    def key(self) -> dict[str, Any]:
        """The fields that must agree between profiles of one fleet."""
        return {
            name: getattr(self, name)
            for name in (
                "model",
                "layers",
                "encoder_layers",
                "batch_size",
                "seq_len",
                "dtype",
                "lora_rank",
                "lora_targets",
                "gradient_checkpointing",
            )
        }


class Segment(Document):
    """One piece of the model that is never cut through (see the module's docstring for ``layer``)."""

    name: Text
    kind: SegmentKind
    layer: int = Field(ge=0, le=MAX_SEGMENTS)


class SegmentFlops(Document):
    """FLOPs of one mini-batch through one segment; one multiply-add is 2 FLOPs. The two first are the ones used."""

    forward_flops: Flops
    backward_flops: Flops
    forward_fvcore_flops: Flops | None = None
    forward_torch_flops: Flops | None = None
    backward_torch_flops: Flops | None = None
    forward_formula_flops: Flops | None = None
    backward_formula_flops: Flops | None = None


class FlopsDisagreement(Document):
    """A counter that is more than 1 % off the formula."""

    segment: Text
    direction: Literal["forward", "backward"]
    counter: Text
    counted_flops: Flops
    formula_flops: Flops
    relative: float


class FlopsBlock(Block):
    """eta of Eq. 7 and 8, segment by segment, in the order of ``Profile.segments``."""

    segments: list[SegmentFlops] = Field(max_length=MAX_SEGMENTS)
    disagreements: list[FlopsDisagreement] = Field(default_factory=list)
    uncounted_operators: dict[str, int] = Field(
        default_factory=dict, description="Operators no counter knows, with calls"
    )


class SegmentSizes(Document):
    weight_bytes: Bytes
    adapter_bytes: Bytes
    adapter_parameters: int = Field(ge=0)


class CutSizes(Document):
    """Bytes that cross at a cut for one mini-batch: S(c) up and S~(c) down, at the activation dtype, uncompressed."""

    cut: int = Field(ge=1)
    smashed_bytes: Bytes
    gradient_bytes: Bytes


class SizesBlock(Block):
    segments: list[SegmentSizes] = Field(max_length=MAX_SEGMENTS)
    cuts: list[CutSizes] = Field(max_length=MAX_SEGMENTS, description="Cuts 1..I-1 in order")


class SegmentTime(Document):
    """Seconds of one mini-batch through one segment: medians and their spread, all times one factor, so that they add up to whole steps (docs/timing.md)."""

    forward: Stat
    backward: Stat
    optimizer: Stat


class Timing(Block):
    """Times at one clock. ``frequency_hz`` is the clock that was measured (None: it cannot be read on this machine)."""

    frequency_hz: Hertz | None = None
    requested_hz: Hertz | None = None
    segments: list[SegmentTime] = Field(max_length=MAX_SEGMENTS)
    step: Stat | None = Field(
        default=None, description="The plain, unsegmented training step, interleaved with the others, without any wait"
    )
    wait_s: Seconds = Field(
        default=0.0,
        description="The segments were timed with rests of so long wherever a half of a split waits (docs/timing.md)",
    )


class TimeLaw(Document):
    """One row of times against the clock: a segment in one direction, or the whole step.

    ``a_s`` and ``b_cycles`` are t(f) = a + b/f, the best of its kind over all clocks. ``curve_s`` is the smooth curve that predictions
    follow, at ``TimeFit.clocks_hz`` (see ``TimeFit``). Errors are means over the clocks, each left out in turn, in percent of the measured time.
    """

    a_s: Seconds = Field(description="What the clock does not change: launches, waiting for memory")
    b_cycles: float = Field(ge=0, le=1e24, description="Cycles of the core clock: seconds x Hz")
    a_ci95: tuple[float, float] | None = Field(default=None, description="None: too few clocks to tell")
    b_ci95: tuple[float, float] | None = None
    flops_per_core_cycle: float | None = Field(
        default=None, ge=0, description="delta_eff = FLOPs / (b_cycles x cores), in place of the letter's delta"
    )
    flops_per_core_cycle_ci95: tuple[float, float] | None = None
    loo_error_pct: float | None = Field(default=None, ge=0, description="Of a + b/f at a clock left out")
    curve_loo_error_pct: float | None = Field(default=None, ge=0, description="Of the curve at a clock left out")
    curve_s: list[Seconds] = Field(max_length=MAX_CLOCKS)


class SegmentTimeFit(Document):
    forward: TimeLaw
    backward: TimeLaw
    optimizer: TimeLaw


class TimeInterval(Document):
    """Half widths of the 95 % prediction interval for a new time, in percent of the predicted one, at ``TimeFit.interval_hz``."""

    kind: SegmentKind | Literal["step"]
    direction: Literal["forward", "backward", "optimizer", "step"]
    half_width_pct: list[Annotated[float, Field(ge=0, le=1e6)]] = Field(max_length=MAX_CLOCKS)


class TimeFit(Block):
    """Times against the clock, for clocks that were never visited. ``step`` is the sum of all segments.

    Predictions follow the natural cubic spline of the cycles t(f) f over f through ``curve_s`` f at ``clocks_hz``. Cycles that rise along a
    straight line are t = a + b/f exactly, so beyond the visited clocks the curve is a law of that form, and between them it may bend.
    """

    clocks_hz: list[Hertz] = Field(min_length=2, max_length=MAX_CLOCKS, description="Visited clocks, ascending")
    segments: list[SegmentTimeFit] = Field(max_length=MAX_SEGMENTS)
    step: TimeLaw
    interval_hz: list[Hertz] = Field(min_length=2, max_length=MAX_CLOCKS)
    intervals: list[TimeInterval] = Field(default_factory=list, max_length=MAX_SEGMENTS)
    warnings: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _rows_agree(self) -> TimeFit:
        for name in ("clocks_hz", "interval_hz"):
            hz = getattr(self, name)
            if sorted(set(hz)) != hz:
                raise ValueError(f"{name} must be ascending without repeats")
        for where, law in [("step", self.step)] + [
            (f"segments[{i}].{direction}", law) for i, row in enumerate(self.segments) for direction, law in row
        ]:
            if len(law.curve_s) != len(self.clocks_hz):
                raise ValueError(f"{where}.curve_s: {len(law.curve_s)} times, expected one for each of clocks_hz")
        for i, row in enumerate(self.intervals):
            if len(row.half_width_pct) != len(self.interval_hz):
                raise ValueError(f"intervals[{i}].half_width_pct: expected one for each of interval_hz")
        return self

    def predict_s(self, laws: Sequence[TimeLaw], frequency_hz: ArrayLike) -> NDArray[Any]:
        """Seconds (laws, clocks) at clocks in Hz (clocks,), visited or not.

        The natural cubic spline of the cycles, kept to what a clock can do: time does not rise with it, cycles do not fall.
        """
        import numpy as np

        hz, f = np.asarray(self.clocks_hz), np.asarray(frequency_hz, dtype=float)
        knots_s = np.array([law.curve_s for law in laws]).reshape(len(laws), len(hz))
        cycles, gap = knots_s * hz, np.diff(hz)
        slope = np.diff(cycles, axis=1) / gap
        bend = np.zeros_like(cycles)  # second derivatives; none at the ends
        if len(hz) > 2:
            band = np.diag((gap[:-1] + gap[1:]) / 3) + np.diag(gap[1:-1] / 6, 1) + np.diag(gap[1:-1] / 6, -1)
            bend[:, 1:-1] = np.linalg.solve(band, np.diff(slope, axis=1).T).T
        k = np.clip(np.searchsorted(hz, f, side="right") - 1, 0, len(hz) - 2)
        left, right = f - hz[k], hz[k + 1] - f
        straight = cycles[:, k] + slope[:, k] * left
        inside = straight - left * right / 6 * (
            (1 + right / gap[k]) * bend[:, k] + (1 + left / gap[k]) * bend[:, k + 1]
        )
        first = slope[:, 0] - gap[0] / 6 * bend[:, 1]
        last = slope[:, -1] + gap[-1] / 6 * bend[:, -2]
        below, above = cycles[:, :1] + first[:, None] * (f - hz[0]), cycles[:, -1:] + last[:, None] * (f - hz[-1])
        found = np.where(f < hz[0], below, np.where(f > hz[-1], above, inside)) / f
        slower = np.where(f < hz[0], np.inf, knots_s[:, k + (f > hz[-1])])  # the time at the next lower visited clock
        faster = np.where(f > hz[-1], 0.0, knots_s[:, k + (f >= hz[0])])
        most = np.minimum(slower, np.where(f > hz[-1], np.inf, faster * hz[k + (f >= hz[0])] / f))
        least = np.maximum(faster, np.where(f < hz[0], 0.0, slower * hz[k + (f > hz[-1])] / f))
        held: NDArray[Any] = np.clip(found, np.minimum(least, most), np.maximum(least, most))
        return held

    def half_width_pct(self, kind: str, direction: str) -> list[float] | None:
        """Of the interval at ``interval_hz`` for segments of one kind in one direction; None where there is none."""
        return next((r.half_width_pct for r in self.intervals if (r.kind, r.direction) == (kind, direction)), None)


class CutMemory(Document):
    """Peak bytes of a training process on either side of a cut, over the process without the model."""

    cut: int = Field(ge=1)
    device_peak_bytes: Bytes
    server_peak_bytes: Bytes


class MemoryCheck(Document):
    """One half really run in a process of its own, held against the prediction."""

    cut: int = Field(ge=1)
    side: Role
    predicted_bytes: Bytes
    measured_bytes: Bytes


class MemoryBlock(Block):
    cuts: list[CutMemory] = Field(max_length=MAX_SEGMENTS, description="Cuts 1..I-1 in order")
    whole_peak_bytes: Bytes = Field(description="The unsplit training step")
    checks: list[MemoryCheck] = Field(default_factory=list)


class PowerPoint(Document):
    """Steady power at one clock. ``throttled`` and ``capped`` points are kept but do not belong to the curve below the cap."""

    frequency_hz: Hertz
    requested_hz: Hertz | None = None
    power_w: Watts
    ci95_w: Watts | None = Field(default=None, description="Half width of the mean's 95 % interval")
    temperature_c: float | None = None
    samples: int = Field(ge=1)
    seconds_s: Seconds
    capped: bool = False
    throttled: bool = False
    stopped_by: Text = Field(description="Why sampling ended: steady, or the bound that was reached")
    method: Literal["energy counter", "power sensor"] | None = Field(
        default=None, description="Which of the two `power_w` and its interval come from"
    )
    counter_w: Watts | None = Field(default=None, description="Mean watts by the energy counter, same windows")
    sensor_w: Watts | None = Field(default=None, description="Mean watts by the power sensor, same windows")
    agreement: Literal["agree", "disagree"] | None = Field(
        default=None,
        description="Counter against sensor: disagree when more than 3 % and more than their intervals apart; "
        "null: only one of them is there, or the noise does not let it be told",
    )
    notes: list[Text] = Field(default_factory=list, max_length=20, description="What is worth telling about this point")


class PowerBlock(Block):
    """A sweep of power against clock under ``load``. ``scope`` says what the watts cover."""

    scope: Text
    sensor: Text
    load: Text
    idle_w: Watts | None = None
    points: list[PowerPoint] = Field(max_length=MAX_CLOCKS)
    repeated: PowerPoint | None = Field(
        default=None,
        description="One of the clocks visited early, measured again after the last: what drifted meanwhile",
    )


class FittedModel(Document):
    """One fitted law: parameters in SI units, their 95 % intervals, and its errors in percent of the measured watts."""

    parameters: dict[str, float]
    ci95: dict[str, tuple[float, float]] = Field(default_factory=dict)
    mape_pct: float | None = Field(default=None, ge=0)
    loo_mape_pct: float | None = Field(default=None, ge=0)
    aicc: float | None = None


class PowerPrediction(Document):
    """Predicted watts at a clock with a 95 % prediction interval for a new measurement."""

    frequency_hz: Hertz
    power_w: Watts
    low_w: Watts
    high_w: Watts

    @model_validator(mode="after")
    def _inside(self) -> PowerPrediction:
        if not self.low_w <= self.power_w <= self.high_w:
            raise ValueError("low_w, power_w and high_w must ascend")
        return self


class PowerFit(Block):
    """P(f). ``xi_w_per_hz3`` is the letter's coefficient (P = xi f^3); ``predictions`` the table that the solver reads."""

    selected: Text
    models: dict[str, FittedModel] = Field(default_factory=dict)
    xi_w_per_hz3: float = Field(ge=1e-45, le=1e-15)
    xi_ci95: tuple[float, float] | None = None
    points: int = Field(default=0, ge=0)
    predictions: list[PowerPrediction] = Field(default_factory=list, max_length=MAX_CLOCKS)
    warnings: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_answer(self) -> PowerFit:
        clocks = [row.frequency_hz for row in self.predictions]
        if len(set(clocks)) != len(clocks):
            raise ValueError("predictions must hold each frequency_hz once")
        return self


class Link(Block):
    """Rates between this device and the server; 1 Mbit = 1e6 bit."""

    uplink_mbps: float = Field(ge=1e-6, le=1e7)
    downlink_mbps: float = Field(ge=1e-6, le=1e7)
    round_trip_s: Seconds | None = None


class CodecCut(Document):
    """What one codec does at one cut. phi: encoded over raw bytes at the activation dtype; times of one mini-batch on this machine."""

    cut: int = Field(ge=1, le=MAX_SEGMENTS)
    smashed_phi: float = Field(gt=0, le=2)
    gradient_phi: float = Field(gt=0, le=2)
    smashed_encode_s: Stat
    smashed_decode_s: Stat
    gradient_encode_s: Stat
    gradient_decode_s: Stat
    loss_increase: float | None = Field(
        default=None,
        description="Held-out loss with the smashed data compressed minus without, nats a token; gradients do not change it",
    )
    loss_increase_se: float | None = Field(
        default=None, ge=0, description="Standard error of `loss_increase` over the sequences of the text, paired"
    )


class CodecFigures(Document):
    """One codec at every cut that was measured, in order."""

    codec: Codec
    cuts: list[CodecCut] = Field(min_length=1, max_length=MAX_SEGMENTS)

    @model_validator(mode="after")
    def _in_order(self) -> CodecFigures:
        cuts = [row.cut for row in self.cuts]
        if sorted(set(cuts)) != cuts:
            raise ValueError("cuts must be ascending without repeats")
        return self


class Compression(Block):
    """phi of Eq. 9: compressed over raw bytes at the activation dtype. ``codec`` is the one whose phi it is.

    ``codecs`` holds what was measured for every codec and cut; ``text`` says on which text, ``base_loss`` is the held-out loss
    there without compression, in nats a token.
    """

    phi: float = Field(gt=0, le=1)
    codec: Text | None = None
    base_loss: float | None = Field(default=None, ge=0)
    text: Text | None = None
    tokens: int | None = Field(default=None, ge=1, description="Predicted tokens that the losses are means over")
    codecs: list[CodecFigures] = Field(default_factory=list, max_length=MAX_CODECS)

    @model_validator(mode="after")
    def _named_once(self) -> Compression:
        names = [figures.codec for figures in self.codecs]
        if len(set(names)) < len(names):
            raise ValueError(f"codecs: {next(n for n in names if names.count(n) > 1)!r} stands there twice")
        return self


class Operator(Document):
    """One operator of the model: a product with its weights, attention, or something elementwise. Views belong to what they view."""

    name: Text
    segment: int = Field(ge=0, lt=MAX_SEGMENTS, description="Index into `Profile.segments`")
    forward_flops: Flops = 0.0
    backward_flops: Flops = 0.0
    weight_bytes: Bytes = 0
    adapter_bytes: Bytes = 0


class OperatorTensor(Document):
    """What one operator hands to others, for one mini-batch. It crosses a cut once, however many of them read it there."""

    producer: int = Field(ge=0, lt=MAX_OPERATORS, description="Index into `operators`")
    consumers: list[Annotated[int, Field(ge=0, lt=MAX_OPERATORS)]] = Field(min_length=1, max_length=MAX_OPERATORS)
    activation_bytes: Bytes
    gradient_bytes: Bytes = Field(description="0 where nothing behind it needs a gradient")


class OperatorsBlock(Block):
    """The model as a graph of operators, each after all that it reads. What both halves compute for themselves (masks, position
    embeddings) is not in it."""

    operators: list[Operator] = Field(max_length=MAX_OPERATORS)
    tensors: list[OperatorTensor] = Field(max_length=MAX_OPERATORS)

    @model_validator(mode="after")
    def _ordered(self) -> OperatorsBlock:
        names = [operator.name for operator in self.operators]
        if len(set(names)) < len(names):
            raise ValueError(f"operators: the name {next(n for n in names if names.count(n) > 1)!r} stands there twice")
        for i, tensor in enumerate(self.tensors):
            if not tensor.producer < min(tensor.consumers) or max(tensor.consumers) >= len(names):
                raise ValueError(f"tensors[{i}]: expected consumers among the operators after its producer")
        return self


class Profile(Document):
    """One machine under one workload. Blocks that were not measured are absent (None), never guessed."""

    format: Literal["card-profile/1"] = FORMAT
    name: Name = Field(description="The profile's own unique name; `device` in every output")
    role: Role
    created_utc: Text
    toolkit_version: Text
    hardware: Hardware
    workload: Workload
    segments: list[Segment] = Field(min_length=2, max_length=MAX_SEGMENTS)
    flops: FlopsBlock
    sizes: SizesBlock
    timings: list[Timing] = Field(default_factory=list, max_length=MAX_CLOCKS)
    time_fit: TimeFit | None = None
    memory: MemoryBlock | None = None
    power: PowerBlock | None = None
    power_fit: PowerFit | None = None
    link: Link | None = None
    compression: Compression | None = None
    operators: OperatorsBlock | None = None
    samples_file: Name | None = Field(default=None, description="Parquet of raw samples beside the profile")
    warnings: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        count, layers = len(self.segments), self.workload.layers
        numbers = [s.layer for s in self.segments]
        if numbers != sorted(numbers) or set(numbers) - {0, layers + 1} != set(range(1, layers + 1)):
            raise ValueError(f"segments: the layer numbers must ascend and cover 1..{layers} (workload.layers)")
        rows = {"flops.segments": len(self.flops.segments), "sizes.segments": len(self.sizes.segments)}
        rows |= {f"timings[{i}].segments": len(t.segments) for i, t in enumerate(self.timings)}
        if self.time_fit is not None:
            rows["time_fit.segments"] = len(self.time_fit.segments)
        for where, found in rows.items():
            if found != count:
                raise ValueError(f"{where}: {found} rows, expected {count}, one for each segment")
        if self.operators is not None:
            segments = [operator.segment for operator in self.operators.operators]
            if set(segments) != set(range(count)) or any(
                segments[tensor.producer] > segments[c] for tensor in self.operators.tensors for c in tensor.consumers
            ):
                raise ValueError(
                    f"operators: expected some in each of the {count} segments, reading from their own or earlier ones"
                )
        for figures in self.compression.codecs if self.compression is not None else []:
            if figures.cuts[-1].cut >= layers:
                raise ValueError(f"compression.codecs: {figures.codec}: expected cuts among 1..{layers - 1}")
        cut_lists = [("sizes.cuts", [c.cut for c in self.sizes.cuts])]
        if self.memory is not None:
            cut_lists.append(("memory.cuts", [c.cut for c in self.memory.cuts]))
        for where, cuts in cut_lists:
            if cuts != list(range(1, layers)):
                raise ValueError(f"{where}: expected the cuts 1..{layers - 1} in order")
        return self
