"""Messages as bytes: exact on the way there and back, and refused with a reason whatever else arrives."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from split import wire
from split.wire import Limits, Packed, Refused, pack, pack_tensor, unpack, unpack_tensor

LIMITS = Limits(message_bytes=1 << 20, tensors=64)
TIMES = {"forward_s": 0.25, "encode_s": 0.0, "sent_s": 12.5}
SMASHED = wire.Smashed(round=3, attempt=1, step=17, purpose="train", **TIMES)


def of(*tensors: torch.Tensor, codec: str = "none") -> dict[str, Packed]:
    return {f"t{i}": pack_tensor(tensor, codec, i) for i, tensor in enumerate(tensors)}


def assembled(header: bytes, payload: bytes = b"") -> bytes:
    """A message with a sound prefix around whatever header."""
    return struct.pack("<4sHHII", b"CARD", 1, 0, len(header), zlib.crc32(header)) + header + payload


def header_of(message: bytes) -> tuple[dict[str, object], bytes]:
    length = struct.unpack_from("<I", message, 8)[0]
    return json.loads(message[16 : 16 + length]), message[16 + length :]


@given(
    dtype=st.sampled_from(sorted(wire.DTYPES)),
    shape=st.lists(st.integers(1, 7), max_size=4),
    seed=st.integers(0, 2**31),
)
def test_a_tensor_arrives_bit_for_bit(dtype: str, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.rand(shape, generator=generator) * 200).to(getattr(torch, dtype))
    body, tensors = unpack(pack(SMASHED, of(tensor)), LIMITS)
    assert body == SMASHED
    back = unpack_tensor(tensors["t0"], tuple(shape), tensor.dtype)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_every_bit_pattern_of_a_16_bit_float_that_is_a_number_arrives_as_it_is() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
        numbers = bits[torch.isfinite(bits.view(dtype))].view(dtype)
        _, tensors = unpack(pack(SMASHED, of(numbers)), LIMITS)
        assert torch.equal(unpack_tensor(tensors["t0"], None, dtype).view(torch.int16), numbers.view(torch.int16))


def test_a_tensor_that_does_not_lie_in_one_piece_arrives_too() -> None:
    tensor = torch.arange(24.0).reshape(4, 6).t()[::2]
    _, tensors = unpack(pack(SMASHED, of(tensor)), LIMITS)
    assert torch.equal(unpack_tensor(tensors["t0"], (3, 4), torch.float32), tensor)


def test_a_payload_is_read_where_it_lies() -> None:
    message = pack(SMASHED, of(torch.ones(1000)))
    _, tensors = unpack(message, LIMITS)
    payload = tensors["t0"].payload
    assert isinstance(payload, memoryview)
    assert payload.obj is message


def test_a_tensor_behind_an_odd_number_of_bytes_is_read_aligned() -> None:
    _, tensors = unpack(pack(SMASHED, of(torch.ones(3, dtype=torch.uint8), torch.arange(5.0))), LIMITS)
    back = unpack_tensor(tensors["t1"], (5,), torch.float32)
    assert back.data_ptr() % 4 == 0
    assert torch.equal(back, torch.arange(5.0))


BODIES: list[wire.Body] = [
    wire.Hello(protocol=1, toolkit="0.1", device="jetson-1"),
    wire.Welcome(
        run="r1",
        settings=wire.Settings(
            model="tiny", lora_rank=4, lora_alpha=32, lora_targets=["q_proj"], dtype="float32", batch_size=2, seq_len=8,
            seed=1, optimizer="sgd", learning_rate=1e-3, weight_decay=0, optimizer_state="travel", overlap=False,
        ),
    ),
    wire.Refusal(reason="an older version"),
    wire.Merged(round=1, attempt=2),
    wire.Finished(),
    wire.Link(uplink=[(2.5, 8e6), (0.0, 1e6)]),
    wire.Ping(number=3, sent_s=1.5),
    wire.Pong(number=3, ping_sent_s=1.5, received_s=9.0, sent_s=9.5),
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_body_arrives_as_it_was(body: wire.Body) -> None:
    assert unpack(pack(body), LIMITS) == (body, {})


def test_the_adapters_of_128_layers_with_both_moments_fit_into_one_message() -> None:
    small = pack_tensor(torch.zeros(1), "none", 0)
    names = [
        f"{moment}base_model.model.model.layers.{layer}.{target}.lora_{half}.weight"
        for moment in ("", "m.", "v.")
        for layer in range(128)
        for target in (*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        for half in "AB"
    ]
    body = wire.Round(
        round=1, attempt=0, cut=127, epochs=5, codec_up="none", codec_down="none", evaluate=0, first_step=0
    )
    _, tensors = unpack(pack(body, dict.fromkeys(names, small)), Limits())
    assert len(tensors) == 128 * 7 * 2 * 3


def test_many_bodies_that_no_machine_could_mean_cannot_be_built() -> None:
    for wrong in (
        lambda: wire.Gradient(
            round=1, attempt=0, step=0, loss=math.nan, decode_s=0, forward_s=0, backward_s=0, encode_s=0, received_s=0, sent_s=0
        ),
        lambda: wire.Smashed(round=-1, attempt=0, step=0, purpose="train", **TIMES),
        lambda: wire.Hello(protocol=1, toolkit="x", device="../../etc"),
        lambda: wire.Refusal(reason="two\nlines"),
        lambda: wire.Ping(number=1.0, sent_s=0),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            wrong()


def changed(change: Callable[[dict[str, object]], None], payload: bytes | None = None) -> bytes:
    header, rest = header_of(pack(SMASHED, of(torch.arange(6.0).reshape(2, 3))))
    change(header)
    return assembled(json.dumps(header).encode(), rest if payload is None else payload)


def row(field: int, value: object) -> Callable[[dict[str, object]], None]:
    def change(header: dict[str, object]) -> None:
        header["tensors"][0][field] = value  # type: ignore[index]

    return change


def body(**fields: object) -> Callable[[dict[str, object]], None]:
    return lambda header: header["body"].update(fields)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (lambda: b"", "0 bytes, expected at least 16"),
        (lambda: b"GET / HTTP/1.1\r\n\r\n", "not one of our messages"),
        (lambda: pack(SMASHED)[:4] + b"\x07\0" + pack(SMASHED)[6:], "version 7, expected 1: install the same toolkit"),
        (lambda: pack(SMASHED)[:20] + b"\0" + pack(SMASHED)[21:], "header: its checksum"),
        (lambda: b"\0" * (LIMITS.message_bytes + 1), "at most 1048576 are taken"),
        (lambda: assembled(b"[" * 100_000), "header: "),
        (lambda: assembled(b'{"body":{"kind":"finished"},"tensors":[]}' + b"\xff"), "header: "),
        (lambda: changed(body(kind="pickle")), "kind"),
        (lambda: changed(body(round="3")), "field body.smashed.round"),
        (lambda: changed(body(round=10**400)), "field body.smashed.round"),
        (lambda: changed(body(sent_s=True)), "field body.smashed.sent_s"),
        (lambda: changed(body(extra=1)), "field body.smashed.extra: Extra inputs"),
        (lambda: assembled(pack(SMASHED)[16:].strip().replace(b"12.5", b"NaN")), "header: "),
        (lambda: changed(row(0, "../x")), "field tensors"),
        (lambda: changed(row(1, "object")), "field tensors"),
        (lambda: changed(row(2, [2, 0])), "field tensors"),
        (lambda: changed(row(2, [2, -3])), "field tensors"),
        (lambda: changed(row(2, [1] * 9)), "field tensors"),
        (lambda: changed(row(2, [2**39, 2**39])), "once decoded"),
        (lambda: changed(row(2, [2, 4])), "24 bytes, expected 32 for its shape and dtype"),
        (lambda: changed(row(3, "none; rm -rf")), "field tensors"),
        (lambda: changed(row(4, 25)), "expected 25 bytes"),
        (lambda: changed(row(5, 1)), "its checksum does not fit"),
        (lambda: changed(lambda h: None, b"\0" * 24), "its checksum does not fit"),
        (lambda: changed(lambda h: None)[:-1], "cut off"),
        (lambda: changed(lambda h: None) + b"\0", "1 bytes behind the last tensor"),
        (lambda: changed(lambda h: h["tensors"].append(h["tensors"][0])), "stands there twice"),
        (lambda: changed(body(kind="finished")), "header: "),
        (
            lambda: assembled(b'{"body":{"kind":"finished"},"tensors":[["a","uint8",[1],"none",1,0]]}', b"\0"),
            "1 tensors where none belong (finished)",
        ),
        (lambda: pack(SMASHED, of(*[torch.zeros(1)] * 65)), "65 tensors, at most 64"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(message: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        unpack(message(), LIMITS)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


def test_a_tensor_of_another_shape_or_dtype_or_with_a_nan_is_refused() -> None:
    packed = pack_tensor(torch.ones(2, 3), "none", 0)
    with pytest.raises(Refused, match=r"shape \[2, 3\], expected \[3, 2\]"):
        unpack_tensor(packed, (3, 2), torch.float32)
    with pytest.raises(Refused, match="of float32, expected float16"):
        unpack_tensor(packed, (2, 3), torch.float16)
    for wrong in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            tensor = torch.ones(100, dtype=dtype)
            tensor[57] = wrong
            with pytest.raises(Refused, match="NaN or infinite"):
                unpack_tensor(pack_tensor(tensor, "none", 0), (100,), dtype)


def test_a_codec_that_nobody_knows_and_a_payload_that_does_not_decode_are_refused() -> None:
    with pytest.raises(Refused, match="codec"):
        unpack_tensor(Packed("float32", (2,), "nonsense", b"1234"), None, None)
    with pytest.raises(Refused):
        unpack_tensor(Packed("float32", (2000,), "int8", b"1234"), None, None)
    with pytest.raises(Refused, match="2 bytes, expected 8"):
        unpack_tensor(Packed("float32", (2,), "none", b"12"), None, None)


@pytest.mark.parametrize("codec", ["fp16", "int8", "int8-o2+zstd"])
def test_what_a_codec_made_travels(codec: str) -> None:
    tensor = torch.linspace(-1, 1, 4 * 16 * 32).reshape(4, 16, 32)
    message = pack(SMASHED, of(tensor, codec=codec))
    _, tensors = unpack(message, LIMITS)
    assert len(message) < tensor.numel() * 4
    assert torch.allclose(unpack_tensor(tensors["t0"], (4, 16, 32), torch.float32), tensor, atol=0.02)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_refused(data: bytes) -> None:
    for message in (
        data,
        assembled(data),
        assembled(b'{"body":{"kind":"ping","number":1,"sent_s":1},"tensors":' + data),
    ):
        with pytest.raises(Refused):
            unpack(message, LIMITS)


def test_10000_damaged_messages_are_refused_in_bounded_memory_and_time() -> None:
    """Mutated at random, cut off, spliced, with a header that is valid again, or plain noise."""
    draw = random.Random(5)
    limits = Limits(message_bytes=1 << 16, tensors=16)
    sound = [
        pack(SMASHED, of(torch.ones(4, 32), torch.arange(32))),
        pack(SMASHED, of(torch.ones(4, 32), codec="int8")),
        *(pack(each) for each in BODIES),
    ]
    words = [
        b"null",
        b"-1",
        b"1e999",
        b"[]",
        b"{}",
        b'"',
        b"9" * 40,
        b"[[[[[[",
        b"\\u0000",
        b"true",
        b"18446744073709551616",
    ]
    taken, reasons = 0, set()
    tracemalloc.start()
    began = time.perf_counter()
    for number in range(10_000):
        message = bytearray(draw.choice(sound))
        way = number % 5
        if way == 0:
            for _ in range(draw.randint(1, 8)):
                message[draw.randrange(len(message))] = draw.randrange(256)
        elif way == 1:
            del message[draw.randrange(len(message)) :]
        elif way == 2:
            other = draw.choice(sound)
            message = message[: draw.randrange(len(message))] + other[draw.randrange(len(other)) :]
        elif way == 3:  # the checksums are right again: the models have to find it
            length = struct.unpack_from("<I", message, 8)[0]
            header, rest = message[16 : 16 + length], message[16 + length :]
            at = draw.randrange(len(header))
            header[at : at + draw.randrange(6)] = draw.choice(words)
            message = bytearray(assembled(bytes(header), bytes(rest)))
        else:
            message = bytearray(draw.randbytes(draw.randrange(400)))
        try:
            _, tensors = unpack(bytes(message), limits)
            for packed in tensors.values():
                unpack_tensor(packed, None, None)
            taken += 1
        except Refused as refused:
            reasons.add(str(refused))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - began < 10
    assert peak_bytes < 8e6
    assert all(reasons)
    assert len(reasons) > 20  # it reaches every check, not the first alone
    assert taken < 2500  # a message of which only spaces or figures changed is a message still


HOSTILE = """
import resource, struct, sys, zlib
from split.wire import HEADER_BYTES, Limits, Refused, unpack

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def offered(header):
    try:
        unpack(struct.pack("<4sHHII", b"CARD", 1, 0, len(header), zlib.crc32(header)) + header, Limits())
    except Refused as refused:
        print(refused, file=sys.stderr)
    else:
        raise SystemExit("taken")

head = b'{"body":{"kind":"finished"},"tensors":['
offered(head + b"]")
before = peak_bytes()
for inner in (b"[0]", b"0", b"{}", b'"x"', b'["a","uint8",[1],"none",1,0]'):
    offered(head + b",".join([inner] * ((HEADER_BYTES - 60) // (len(inner) + 1))) + b"]}")
offered(b'{"body":{"kind":"finished",' + b",".join(b'"%x":0' % i for i in range(95_000)) + b'},"tensors":[]}')
offered(b'{"body":' + b'{"kind":' * 100_000)
print(peak_bytes() - before)
"""


def test_a_header_of_very_many_faults_takes_little_memory() -> None:
    """In a process of its own, by the kernel's count: the models are not written in Python, and Python's count does not see them."""
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64e6


def test_what_the_other_side_would_refuse_is_not_packed() -> None:
    with pytest.raises(ValueError, match="no tensors belong into Finished"):
        pack(wire.Finished(), of(torch.ones(1)))
    with pytest.raises(ValueError, match="float64 does not travel"):
        pack_tensor(torch.ones(1, dtype=torch.float64), "none", 0)
