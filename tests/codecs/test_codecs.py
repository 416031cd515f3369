"""Codecs: what comes back is what the name promises, and bytes that no encoder made are refused."""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")
pytest.importorskip("zstandard", reason="the [profile] extra is not installed")

import numpy as np
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.codecs import Unreadable, codec
from profiler.profile import BadInput

NAMES = [
    "none",
    "fp16",
    "bf16",
    "int8",
    "int5",
    "int2",
    "int4-o2",
    "top10-int8",
    "top10-int8-o2",
    "top25-fp16",
    "none+zstd",
    "fp16+zstd",
    "bf16+zstd",
    "int8-o2+zstd",
    "int6-o8+zstd",
    "int3+zstd",
    "int2-o1+zstd",
    "top10-int8-o2+zstd",
]
UNBIASED = ["int8", "int4", "int2", "int8-o2", "int8+zstd", "int4-o2+zstd", "int2+zstd"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def activations(tokens: int = 96, channels: int = 64, seed: int = 0) -> torch.Tensor:
    """Rows like those of a residual stream: channels differ, two are far larger than the others, above all in the first token."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(tokens, channels, generator=generator) * torch.logspace(-0.5, 0.5, channels)
    made[:, 7] += 40.0
    made[:, 19] -= 15.0
    made[0, 7] = 25_509.0
    return made


def back(name: str, tensor: torch.Tensor, seed: int = 0) -> torch.Tensor:
    one = codec(name)
    return one.decode(one.encode(tensor, seed), tuple(tensor.shape), tensor.dtype)


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_bears_the_name_it_was_asked_by(name: str) -> None:
    assert codec(name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "int1", "int9", "int", "fp32", "int8-o0", "int8-o", "fp16-o2", "none-o2", "top0-int8", "top100-int8", "top10",
     "top10-none", "int8+zstd+zstd", "int8 ", "INT8", "zstd", "+zstd", "int8+gzip", "top10-top10-int8", "int8-o100", "int8\n"],
)  # fmt: skip
def test_other_names_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(BadInput, match=r"expected none, fp16, bf16, int2 to int8"):
        codec(name)


# --------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(shape=st.lists(st.integers(0, 7), max_size=4), seed=st.integers(0, 2**63 - 1), size=st.integers(-30, 30))
def test_any_shape_comes_back_finite_in_its_shape_and_dtype(
    name: str, dtype: torch.dtype, shape: list[int], seed: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    tensor = (torch.randn(shape, generator=generator) * 2.0**size).clamp(-6e4, 6e4).to(dtype)
    found = back(name, tensor, seed)
    assert found.shape == tensor.shape
    assert found.dtype == dtype
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["none", "none+zstd"])
def test_none_is_bit_exact_for_whatever_there_is(name: str) -> None:
    strange = torch.tensor([math.nan, math.inf, -0.0, 1e-45, 3.4e38])
    assert torch.equal(back(name, strange).view(torch.int32), strange.view(torch.int32))
    ids = torch.arange(12).reshape(3, 4)
    assert torch.equal(back(name, ids), ids)
    assert codec("none").encode(ids, 0) == ids.numpy().tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_are_views_or_hold_gradients_are_taken_as_they_are(name: str) -> None:
    plain = activations(24, 32).reshape(2, 12, 32)
    turned = plain.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert codec(name).encode(turned, 3) == codec(name).encode(plain, 3)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("none")])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(name: str, bad: float) -> None:
    tensor = activations()
    tensor[5, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinite values"):
        codec(name).encode(tensor, 0)


# -------------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("scale", [1e-38, 1e-12, 1.0, 1e5, 1e30])
def test_fp16_neither_overflows_nor_underflows(scale: float) -> None:
    tensor = activations()[1:] * scale
    assert ((back("fp16", tensor) - tensor).abs() <= tensor.abs() * 2**-11 + tensor.abs().max() * 2.0**-38).all()


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_tensor_that_has_the_dtype_already_is_sent_as_it_is(name: str, dtype: torch.dtype) -> None:
    tensor = activations().to(dtype)
    assert codec(name).encode(tensor, 0) == codec("none").encode(tensor, 0)


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "int2+zstd"])
def test_the_largest_numbers_stay_finite(name: str) -> None:
    tensor = torch.tensor([[3.4028235e38, -3.4028235e38, 1.0], [0.0, 1e-45, 0.0]])
    assert torch.isfinite(back(name, tensor)).all()
    assert torch.isfinite(back(name, torch.full((3, 5), 65504.0, dtype=torch.float16))).all()


# -------------------------------------------------------------------------------------------------------- whole numbers


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("after", ["", "+zstd"])
def test_no_value_is_off_by_more_than_a_step_of_its_token(bits: int, after: str) -> None:
    tensor = activations() * torch.logspace(-9, 3, 96)[:, None]
    largest = tensor.abs().amax(dim=1, keepdim=True)
    # Scales are rounded up by at most 1/128; where zstd follows, small tokens get steps of at most twice their own.
    step = 2 * largest / (2**bits - 1) * (1 + 1 / 128) * (2 if after else 1)
    assert ((back(f"int{bits}{after}", tensor, 5) - tensor).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("name", UNBIASED)
def test_rounding_is_without_bias(name: str) -> None:
    tensor = activations(40, 48)
    draws = torch.stack([back(name, tensor, seed).double() for seed in range(400)])
    se = draws.std(dim=0) / 20
    z = (draws.mean(dim=0) - tensor.double())[se > 0] / se[se > 0]
    # Means of 400 draws are nearly normal: the mean of z^2 is 1, and none is beyond 6.
    assert 0.8 < float(z.pow(2).mean()) < 1.2
    assert float(z.abs().max()) < 6
    assert codec(name).unbiased


def test_the_error_is_that_of_subtractive_dither_half_of_plain_stochastic_rounding() -> None:
    tensor = torch.rand(64, 257, generator=torch.Generator().manual_seed(1)) - 0.5
    tensor[:, 0] = 1.0  # every token's scale: the next bfloat16 above or equal
    step = 2 / 15
    errors = torch.stack([back("int4", tensor, seed) - tensor for seed in range(50)])[:, :, 1:]
    assert float(errors.pow(2).mean()) == pytest.approx(step**2 / 12, rel=0.01)
    assert float(errors.abs().max()) <= step * 0.5001


def test_errors_of_neighbours_and_of_one_channel_in_successive_tokens_have_nothing_to_do_with_each_other() -> None:
    errors = back("int4", activations(400, 96)[:, :40], 3) - activations(400, 96)[:, :40]
    errors = errors / errors.std(dim=1, keepdim=True)
    for shifted in (errors[1:] * errors[:-1], errors[:, 1:] * errors[:, :-1]):
        assert abs(float(shifted.mean())) < 4 / math.sqrt(shifted.numel())


def test_tiny_gradients_keep_their_precision_and_zeros_stay_zeros() -> None:
    gradients = activations()[1:] * 1e-14
    gradients[10] = 0.0
    found = back("int8", gradients)
    error = (found - gradients).norm(dim=1) / gradients.norm(dim=1).clamp_min(1e-30)
    assert float(error.max()) < 0.02
    assert not found[10].any()


def test_outlier_channels_are_kept_and_the_others_gain() -> None:
    tensor = activations()
    found = back("int4-o2", tensor)
    for channel in (7, 19):
        assert torch.allclose(found[:, channel], tensor[:, channel], rtol=2**-11, atol=0.01)
    others = [c for c in range(64) if c not in (7, 19)]
    without = (back("int4", tensor) - tensor)[:, others].norm()
    assert float((found - tensor)[:, others].norm()) < 0.2 * float(without)


def test_top_k_keeps_the_largest_of_each_token_and_nothing_else() -> None:
    tensor = activations(30, 50)
    found = back("top10-fp16", tensor)
    for row, kept in zip(tensor, found, strict=True):
        largest = row.abs().topk(5).indices
        assert set(kept.nonzero().reshape(-1).tolist()) == set(largest.tolist())
        assert torch.allclose(kept[largest], row[largest], rtol=2**-11)
    equal = torch.ones(3, 20)
    assert back("top10-fp16", equal).tolist() == [[1.0] * 2 + [0.0] * 18] * 3
    assert not back("top10-int8", torch.zeros(3, 20)).any()


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("none", 1.0),
        ("fp16", 1.94),
        ("int8", 3.75),
        ("int4", 7.0),
        ("int2", 12.5),
        ("top10-int8", 13.0),
        ("int6-o2+zstd", 5.5),
    ],
)
def test_payloads_are_as_small_as_the_name_says(name: str, least: float) -> None:
    tensor = activations(400, 96)
    assert tensor.numel() * 4 / len(codec(name).encode(tensor, 0)) >= least


# ----------------------------------------------------------------------------------------------------------- same bytes


def digest(name: str) -> str:
    """Of a tensor made of whole numbers, so that no generator or library has a part in it."""
    rows = torch.from_numpy((np.arange(6000, dtype=np.int64) ** 2 * 7919 % 20011 - 10005).astype(np.float32)).reshape(
        60, 100
    )
    return hashlib.sha256(codec(name).encode(rows / 64, 12345)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp16", "81ba40d35ddf737a"),
        ("bf16", "8325eae218efdc1d"),
        ("int8", "1a0464bf0e3cdbcb"),
        ("int4-o2", "f2aca5e69a6cbbc5"),
        ("top10-int8-o2", "2994739da46fbb73"),
    ],
)  # fmt: skip
def test_bytes_are_those_of_the_format_on_every_machine(name: str, expected: str) -> None:
    """A change here is a change of the format: both sides of a link must have it."""
    assert digest(name) == expected


def test_bytes_do_not_depend_on_threads_or_process() -> None:
    code = (
        "import sys, torch\ntorch.set_num_threads(int(sys.argv[1]))\n"
        "from tests.codecs.test_codecs import NAMES, digest\nprint([digest(n) for n in NAMES])"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code, "2"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.strip() == str([digest(n) for n in NAMES])


def test_the_seed_is_what_rounding_depends_on() -> None:
    tensor = activations()
    one = codec("int6-o2+zstd")
    assert one.encode(tensor, 1) == one.encode(tensor, 1) != one.encode(tensor, 2)


# ----------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_of_another_length_or_shape_is_unreadable(name: str) -> None:
    tensor = activations()
    one, payload = codec(name), codec(name).encode(tensor, 0)
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2], payload + payload):
        with pytest.raises(Unreadable):
            one.decode(wrong, (96, 64), torch.float32)
    for shape in ((96, 65), (95, 64), (96, 64, 2), (), (0,)):
        with pytest.raises(Unreadable):
            one.decode(payload, shape, torch.float32)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("none")])
def test_whole_numbers_are_not_made_of_lossy_payloads(name: str) -> None:
    with pytest.raises(Unreadable, match="expected floating point"):
        codec(name).decode(codec(name).encode(activations(), 0), (96, 64), torch.int64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_payloads_are_unreadable_or_finite_and_nothing_else_happens(name: str, dtype: torch.dtype) -> None:
    tensor = activations(32, 24).clamp(-6e4, 6e4).to(dtype)
    one, payload = codec(name), codec(name).encode(tensor, 0)
    chance, reasons = random.Random(7), set()
    for _ in range(120):
        damaged = bytearray(payload)
        for _ in range(chance.choice((1, 1, 3, 40))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            damaged = bytearray(chance.randbytes(len(payload)))
        try:
            found = one.decode(memoryview(damaged), (32, 24), dtype)
        except Unreadable as error:
            reasons.add(str(error))
            continue
        assert found.shape == (32, 24)
        assert found.dtype == dtype
        assert name.startswith("none") or torch.isfinite(found).all()
    assert all(reason.startswith(f"{name}: ") and "\n" not in reason for reason in reasons)


def test_a_frame_that_says_it_unpacks_to_gigabytes_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 26))
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26))
    small = zstandard.ZstdCompressor().compress(bytes(2))
    tracemalloc.start()
    try:
        for frame in (bomb, unsaid, small + bomb):
            payload = b"\1" + len(frame).to_bytes(4, "little") + frame
            with pytest.raises(Unreadable):
                codec("int8+zstd").decode(payload, (4, 8), torch.float32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_frame_that_holds_more_than_it_says_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(range(256)) * 256))
    assert zstandard.frame_content_size(bytes(frame)) == 65536
    frame[5:7] = (4096 - 256).to_bytes(2, "little")  # after magic number and descriptor
    assert zstandard.frame_content_size(bytes(frame)) == 4096
    with pytest.raises(Unreadable):
        codec("int8+zstd").decode(b"\1" + len(frame).to_bytes(4, "little") + bytes(frame), (2, 2048), torch.float32)
