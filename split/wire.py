"""Messages between device and server, as bytes and back. Whatever the bytes are, they are read into checked figures or refused.

A message is::

    "CARD"  version u16  0 u16  header length u32  crc32 of the header u32     16 bytes, little-endian
    header: JSON  {"body": {"kind": ..., ...}, "tensors": [[name, dtype, shape, codec, bytes, XXH3], ...]}
    spaces up to a multiple of 64 bytes (counted as header), so that the first tensor lies aligned
    the tensors' payloads, one after the other, little-endian, nothing between and nothing behind

The header is read by strict models: no unknown field, no NaN, every number and every string bounded. A tensor's payload is what a codec of
``profiler.codecs`` made of it; "none" is its own bytes. Its checksum is XXH3 of 64 bits,
which costs a fortieth of what crc32 does: large tensors wait for it on both sides. Nothing is unpickled or executed. Which message may come when, and that
no step is taken twice, is the business of the two roles: steps carry their numbers for it.

All times are seconds; those named ``sent_s`` and ``received_s`` are readings of the sender's own monotonic clock.
"""

from __future__ import annotations

import json
import struct
import sys
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, TypeAdapter, ValidationError
from xxhash import xxh3_64_intdigest

from profiler.profile import BadInput, MissingHardware, Name, printable

if TYPE_CHECKING:
    import torch

PROTOCOL = 1
"""What the messages mean. A device says it in its Hello; the server refuses another."""

WIRE_VERSION = 1
"""How messages are laid out as bytes."""

HEADER_BYTES = 1 << 20
"""The adapters of 128 layers with seven targets each and both moments are 5,376 tensors: 0.6 MB of header."""

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1}
"""What may travel, with the bytes of one entry."""

_PREFIX = struct.Struct("<4sHHII")
_MAGIC = b"CARD"
_ALIGNMENT = 64
_SHOWN_ERRORS = 20


class Refused(Exception):
    """A message that cannot be used. The reason is one line and never holds more than a few words of what was sent."""


NO_NUMBERS = "NaN or infinite values"
"""Stands in every reason that says so: the other side may see by it that training has diverged."""

MOST_LOSS = 1e30


class NoNumbers(Refused):
    """A tensor with values that are no numbers: made so, or the end of a training that diverged."""


@dataclass(frozen=True)
class Limits:
    """What one message may hold. ``message_bytes`` bounds the message as sent, and all its tensors together once decoded."""

    message_bytes: int = 256 * 1024 * 1024
    tensors: int = 8192

    def __post_init__(self) -> None:
        if not 4096 <= self.message_bytes < 2**31 or not 0 <= self.tensors <= 2**20:
            raise ValueError("expected message_bytes within 4096..2^31-1 and tensors within 0..2^20")


@dataclass(frozen=True)
class Packed:
    """One tensor, encoded: ``payload`` is what ``codec`` made of a tensor of this dtype and shape."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    payload: bytes | memoryview

    @property
    def raw_bytes(self) -> int:
        """Bytes of the tensor itself."""
        return prod(self.shape) * DTYPES[self.dtype]


# ---------------------------------------------------------------------------------------------------------------- bodies

Count = Annotated[int, Field(ge=0, le=10**9)]
Layer = Annotated[int, Field(ge=1, le=10_000)]
Seconds = Annotated[float, Field(ge=0, le=1e7)]
Clock = Annotated[float, Field(ge=0, le=1e12)]
BitsPerSecond = Annotated[float, Field(ge=0, le=1e15)]
Joules = Annotated[float, Field(ge=0, le=1e9)]
LINE_CHARACTERS = 500
Line = Annotated[str, StringConstraints(max_length=LINE_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]*$")]
CodecName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9+.-]{1,60}$")]
TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]

MAX_EPOCHS = 4096
"""Mini-batches in one round: each is a row of times in the device's last message of the round."""


MAX_PADDING_BYTES = 1 << 24

MAX_RATES = 4096
"""Rates of an emulated link in one message."""


class Body(BaseModel):
    """What a message says. ``carries`` tells whether tensors may come with it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    carries: ClassVar[bool] = False


class Settings(BaseModel):
    """What both halves must agree on: the workload, and how it is trained."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    model: Line
    lora_rank: Annotated[int, Field(ge=1, le=4096)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)]
    lora_targets: Annotated[list[TensorName], Field(max_length=64)] | None
    dtype: Literal["float32", "float16", "bfloat16"]
    batch_size: Annotated[int, Field(ge=1, le=10**6)]
    seq_len: Annotated[int, Field(ge=1, le=10**7)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0, le=1e3)]
    weight_decay: Annotated[float, Field(ge=0, le=1e3)]
    optimizer_state: Literal["travel", "reset"]
    overlap: bool


class Hello(Body):
    """Device to server, first."""

    kind: Literal["hello"] = "hello"
    protocol: Count
    toolkit: Annotated[Line, Field(max_length=100)]
    device: Name


class Welcome(Body):
    """Server to device: the run, and what to build."""

    kind: Literal["welcome"] = "welcome"
    run: Name
    settings: Settings


class Ready(Body):
    """Device to server: the model is built and the data read. ``fingerprint`` is that of the base model (split.half)."""

    kind: Literal["ready"] = "ready"
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:._-]{1,200}$")]
    sequences: Count
    held_out: Count
    threads: Annotated[int, Field(ge=1, le=100_000)]
    torch: Annotated[Line, Field(max_length=100)]


class Refusal(Body):
    """Either way, and then the stream ends."""

    kind: Literal["refusal"] = "refusal"
    reason: Line


class Round(Body):
    """Server to device: stage 2. Tensors: the adapters of layers 1..cut by PEFT's names, and where the optimizer's state travels its
    moments as "m.NAME" and "v.NAME". ``first_step`` numbers the round's first mini-batch in the run."""

    kind: Literal["round"] = "round"
    carries: ClassVar[bool] = True
    round: Count
    attempt: Count
    cut: Layer
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)]
    codec_up: CodecName
    codec_down: CodecName
    evaluate: Annotated[int, Field(ge=0, le=10**6)]
    first_step: Count
    optimizer_steps: Count = 0


class Link(Body):
    """Server to device, before a turn: slow what you send to these rates, (seconds, bit/s) one after the other, the last one stays. Only where
    the link is emulated (split.shaping)."""

    kind: Literal["link"] = "link"
    uplink: Annotated[list[tuple[Seconds, BitsPerSecond]], Field(min_length=1, max_length=MAX_RATES), FailFast()]


class Smashed(Body):
    """Device to server: stage 3 and 4. Tensors: what crosses the cut ("hidden", and "encoder" for an encoder-decoder model), and "labels"."""

    kind: Literal["smashed"] = "smashed"
    carries: ClassVar[bool] = True
    round: Count
    attempt: Count
    step: Count
    purpose: Literal["train", "evaluate"]
    forward_s: Seconds
    encode_s: Seconds
    sent_s: Clock


class Gradient(Body):
    """Server to device: the loss of that step, and the gradients of what crossed the cut (none where it was an evaluation)."""

    kind: Literal["gradient"] = "gradient"
    carries: ClassVar[bool] = True
    round: Count
    attempt: Count
    step: Count
    loss: Annotated[float, Field(ge=-MOST_LOSS, le=MOST_LOSS)]
    decode_s: Seconds
    forward_s: Seconds
    backward_s: Seconds
    encode_s: Seconds
    received_s: Clock
    sent_s: Clock


class StepTimes(BaseModel):
    """What one mini-batch took on the device; ``waited_s`` is the time without anything to compute."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    forward_s: Seconds
    encode_s: Seconds
    decode_s: Seconds
    backward_s: Seconds
    optimizer_s: Seconds
    waited_s: Seconds


class Adapters(Body):
    """Device to server: stage 5. Tensors as in Round. ``energy_j`` is the device's own while it computed, where a sensor is there;
    ``round_received_s`` is when Round had arrived whole, ``loaded_s`` how long the new cut and the adapters took to be put in place."""

    kind: Literal["adapters"] = "adapters"
    carries: ClassVar[bool] = True
    round: Count
    attempt: Count
    steps: Annotated[list[StepTimes], Field(max_length=MAX_EPOCHS), FailFast()]
    energy_j: Joules | None = None
    optimizer_steps: Count = 0
    round_received_s: Clock
    loaded_s: Seconds
    sent_s: Clock


class Merged(Body):
    """Server to device: the round is on the server's disk."""

    kind: Literal["merged"] = "merged"
    round: Count
    attempt: Count


class Finished(Body):
    """Server to device: the run is done."""

    kind: Literal["finished"] = "finished"


class Ping(Body):
    """Either way: answer with a Pong. A tensor "padding" (uint8) makes it as long as a measurement of the rate needs; ``answer_bytes`` asks
    for such padding in the answer, and only 'card-profile link --serve' gives it."""

    kind: Literal["ping"] = "ping"
    carries: ClassVar[bool] = True
    number: Count
    sent_s: Clock
    answer_bytes: Annotated[int, Field(ge=0, le=MAX_PADDING_BYTES)] = 0


class Pong(Body):
    """The answer to a Ping: round trip = (arrival - ping_sent_s) - (sent_s - received_s), the latter two on the answerer's clock."""

    kind: Literal["pong"] = "pong"
    carries: ClassVar[bool] = True
    number: Count
    ping_sent_s: Clock
    received_s: Clock
    sent_s: Clock


AnyBody = (
    Hello | Welcome | Ready | Refusal | Link | Round | Smashed | Gradient | Adapters | Merged | Finished | Ping | Pong
)

_Dim = Annotated[int, Field(ge=1, lt=2**40)]
_TensorRow = tuple[
    TensorName,
    Literal["float32", "float16", "bfloat16", "int64", "int32", "uint8"],
    Annotated[tuple[_Dim, ...], Field(max_length=8), FailFast()],
    CodecName,
    Annotated[int, Field(ge=0, lt=2**31)],
    Annotated[int, Field(ge=0, lt=2**64)],
]


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    body: Annotated[AnyBody, Field(discriminator="kind")]
    tensors: Annotated[list[_TensorRow], FailFast()]


_HEADER: TypeAdapter[_Header] = TypeAdapter(_Header)


_NAME: TypeAdapter[str] = TypeAdapter(Name)


def is_name(text: str) -> bool:
    """Whether a device may bear this name."""
    try:
        _NAME.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ bytes and back


def pack(body: Body, tensors: Mapping[str, Packed] | None = None) -> bytes:
    """The message as bytes: ``parts``, joined."""
    return b"".join(parts(body, tensors))


def parts(body: Body, tensors: Mapping[str, Packed] | None = None) -> list[bytes | memoryview]:
    """The message as bytes in parts, in order: prefix and header, then the tensors' own payloads, not copied.

    Raises ValueError where ``body`` and ``tensors`` are not a message that the other side could take: tensors where none belong, a
    header of more than HEADER_BYTES.
    """
    tensors = tensors or {}
    if tensors and not body.carries:
        raise ValueError(f"no tensors belong into {type(body).__name__}")
    rows = [
        [name, p.dtype, p.shape, p.codec, len(p.payload), xxh3_64_intdigest(p.payload)] for name, p in tensors.items()
    ]
    table = json.dumps(rows, separators=(",", ":"))
    header = f'{{"body":{body.model_dump_json()},"tensors":{table}}}'.encode()
    header += b" " * (-(len(header) + _PREFIX.size) % _ALIGNMENT)
    if len(header) > HEADER_BYTES:
        raise ValueError(f"a header of {len(header)} bytes, at most {HEADER_BYTES} can be sent")
    prefix = _PREFIX.pack(_MAGIC, WIRE_VERSION, 0, len(header), zlib.crc32(header))
    return [prefix + header, *(p.payload for p in tensors.values())]


def unpack(data: bytes | memoryview, limits: Limits) -> tuple[AnyBody, dict[str, Packed]]:
    """Read a message. Payloads are views into ``data``: nothing is copied, nothing is decoded.

    Raises Refused, and never anything else, for any bytes whatever.
    """
    if len(data) > limits.message_bytes:
        raise Refused(f"a message of {len(data)} bytes, at most {limits.message_bytes} are taken")
    view = memoryview(data)
    start = _header_end(view)
    header = view[_PREFIX.size : start]
    try:
        parsed = _HEADER.validate_json(bytes(header))
    except ValidationError as error:
        raise Refused(f"header: {_first(error)}") from None
    body = parsed.body
    if len(parsed.tensors) > limits.tensors:
        raise Refused(f"{len(parsed.tensors)} tensors, at most {limits.tensors} are taken")
    if parsed.tensors and not body.carries:
        raise Refused(f"{len(parsed.tensors)} tensors where none belong ({body.kind})")
    return body, _tensors(parsed.tensors, view, start, limits)


def _header_end(view: memoryview) -> int:
    """Where the header ends and the tensors begin, once the prefix is found sound."""
    if len(view) < _PREFIX.size:
        raise Refused(f"a message of {len(view)} bytes, expected at least {_PREFIX.size}")
    magic, version, zero, length, crc = _PREFIX.unpack_from(view)
    if magic != _MAGIC or zero:
        raise Refused("not one of our messages: it does not begin as they do")
    if version != WIRE_VERSION:
        raise Refused(f"messages of version {version}, expected {WIRE_VERSION}: install the same toolkit on both sides")
    if length > HEADER_BYTES or _PREFIX.size + length > len(view):
        raise Refused(f"a header of {length} bytes, expected at most {min(HEADER_BYTES, len(view) - _PREFIX.size)}")
    end = int(_PREFIX.size + length)
    if zlib.crc32(view[_PREFIX.size : end]) != crc:
        raise Refused("header: its checksum does not fit: damaged on the way")
    return end


def _tensors(rows: list[_TensorRow], view: memoryview, start: int, limits: Limits) -> dict[str, Packed]:
    tensors: dict[str, Packed] = {}
    raw = 0
    for name, dtype, shape, codec, length, checksum in rows:
        packed = Packed(dtype, shape, codec, view[start : start + length])
        raw += packed.raw_bytes
        if raw > limits.message_bytes:
            raise Refused(f"tensors of more than {limits.message_bytes} bytes once decoded")
        if name in tensors:
            raise Refused(f"tensor {name[:60]} stands there twice")
        if len(packed.payload) != length:
            raise Refused(f"tensor {name[:60]}: cut off, expected {length} bytes")
        if codec == "none" and length != packed.raw_bytes:
            raise Refused(f"tensor {name[:60]}: {length} bytes, expected {packed.raw_bytes} for its shape and dtype")
        if xxh3_64_intdigest(packed.payload) != checksum:
            raise Refused(f"tensor {name[:60]}: its checksum does not fit: damaged on the way")
        tensors[name] = packed
        start += length
    if start != len(view):
        raise Refused(f"{len(view) - start} bytes behind the last tensor")
    return tensors


def _first(error: ValidationError) -> str:
    """What is wrong first, in one line. A header with very many faults is not spelt out: the list itself would take memory."""
    count = error.error_count()
    if count > _SHOWN_ERRORS:
        return f"{count} faults"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:60] for part in first["loc"])[:200]
    said = first["msg"].removeprefix("Value error, ")[:200]
    return printable(f"field {where}: {said}" if where else said)


# ------------------------------------------------------------------------------------------------------------ tensors


def pack_tensor(tensor: torch.Tensor, codec_name: str, seed: int) -> Packed:
    """Encode a tensor that lies on the CPU. With "none" the payload is a view of the tensor's own memory: pack it before it changes.

    Raises BadInput for an unknown codec, ValueError for a dtype that does not travel.
    """
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} does not travel; {', '.join(DTYPES)} do")
    tensor = tensor.detach()
    shape = tuple(tensor.shape)
    if codec_name == "none":
        _little_endian()
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        return Packed(dtype, shape, "none", memoryview(flat.numpy()))
    from profiler.codecs import codec

    return Packed(dtype, shape, codec_name, codec(codec_name).encode(tensor, seed))


def unpack_tensor(
    packed: Packed, expected_shape: tuple[int, ...] | None, expected_dtype: torch.dtype | None
) -> torch.Tensor:
    """Decode a tensor, once its shape and dtype are what was expected (None: any).

    With "none" the tensor lies in the message itself: do not write into it. Raises Refused for another shape or dtype, a payload
    that does not decode; NoNumbers for NaN and infinite values.
    """
    import torch

    if expected_shape is not None and packed.shape != tuple(expected_shape):
        raise Refused(f"a tensor of shape {list(packed.shape)}, expected {list(expected_shape)}")
    dtype: torch.dtype = getattr(torch, packed.dtype)
    if expected_dtype is not None and dtype != expected_dtype:
        raise Refused(f"a tensor of {packed.dtype}, expected {str(expected_dtype).removeprefix('torch.')}")
    if packed.codec == "none":
        tensor = _raw(packed, dtype)
    else:
        tensor = _decoded(packed, dtype)
    if dtype.is_floating_point:
        low, high = torch.aminmax(tensor)  # one pass, no copy; NaN anywhere makes both NaN
        if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
            raise NoNumbers(f"a tensor with {NO_NUMBERS}")
    return tensor


def _raw(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    import numpy as np
    import torch

    _little_endian()
    payload: bytes | memoryview = packed.payload
    if len(payload) != packed.raw_bytes:
        raise Refused(f"{len(payload)} bytes, expected {packed.raw_bytes} for its shape and dtype")
    if np.frombuffer(payload, np.uint8).__array_interface__["data"][0] % DTYPES[packed.dtype]:
        payload = bytes(payload)  # behind another codec's odd number of bytes
    # A tensor over memory that must not be written is what is wanted here.
    warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
    return torch.frombuffer(payload, dtype=dtype).reshape(packed.shape)


def _little_endian() -> None:
    if sys.byteorder != "little":
        raise MissingHardware("tensors travel as little-endian bytes: this machine is big-endian; use another one")


def _decoded(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    from profiler.codecs import Unreadable, codec

    try:
        tensor = codec(packed.codec).decode(packed.payload, packed.shape, dtype)
    except (Unreadable, BadInput) as error:
        raise Refused(printable(" ".join(str(error).split()))[:300]) from None
    if tuple(tensor.shape) != packed.shape or tensor.dtype != dtype:
        raise Refused(f"codec {packed.codec} gave another shape or dtype than the header says")
    return tensor
