"""One side of a split: what it holds, what it refuses, and what an evaluation leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [train] extra is not installed")

import torch

from profiler.profile import BadInput
from profiler.workload.cuts import SplitModel
from profiler.workload.model import WorkloadSpec, build
from split.half import Half, Side, Training, Unfit
from tests.workload.families import available, preset

ADAMW = Training("adamw", 0.01)


def half(side: Side, family: str = "llama", cut: int | None = 2, **spec: Any) -> Half:
    with available():
        made = Half(WorkloadSpec(preset(family), **{"batch_size": 2, "seq_len": 8, **spec}), side, training=ADAMW)
    if cut is not None:
        made.cut_at(cut)
    return made


def ids(seed: int = 0, shape: tuple[int, int] = (2, 8)) -> torch.Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def step(device: Half, server: Half, cut: int, seed: int = 0) -> float:
    loss = server.loss(device.forward(ids(seed), ids(seed + 1), cut), ids(seed + 1), cut)
    device.backward(server.backward())
    device.step()
    server.step()
    return loss


def held(one: Half) -> set[str]:
    return {n for n, p in one._split.model.named_parameters(remove_duplicate=False) if not p.is_meta}


# --- what it holds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_a_device_holds_its_own_layers_and_nothing_else_wherever_the_cut_moves(family: str) -> None:
    device = half("device", family, cut=None)
    with available():
        outline = SplitModel(build(device.spec, "meta"))
    assert held(device) == set()
    for cut in (1, device.layers - 1, 1, 2):
        device.cut_at(cut)
        assert held(device) == outline.half_parameters("device", cut)
    assert device.note is None


def test_parameters_that_leave_the_device_are_freed() -> None:
    device = half("device", cut=3)
    import weakref

    layer = device._split.model.model.layers[2]
    weight = weakref.ref(layer.mlp.up_proj.weight)
    device.cut_at(1)
    gc.collect()
    assert weight() is None


def test_the_fingerprint_is_the_same_on_both_sides_and_of_another_model_another() -> None:
    device, server = half("device", cut=None), half("server")
    assert device.fingerprint == server.fingerprint
    device.cut_at(3)
    assert device.fingerprint == server.fingerprint == half("whole", cut=None).fingerprint
    others = [
        half("device", cut=None, seed=1),
        half("device", cut=None, lora_rank=2),
        half("device", cut=None, dtype="bfloat16"),
        half("device", "mistral", cut=None),
    ]
    assert len({server.fingerprint, *(o.fingerprint for o in others)}) == 5


def test_the_fingerprint_of_a_checkpoint_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    from tests.workload.test_holding import checkpoint

    spec = checkpoint(tmp_path, "llama")
    other = WorkloadSpec(spec.model, batch_size=4, seq_len=16, seed=5)
    assert Half(spec, "device").fingerprint == Half(other, "server").fingerprint


@pytest.mark.parametrize(("family", "cut"), [("llama", 2), ("t5", 2), ("t5", 3), ("t5", 5)])
def test_what_crosses_has_the_shapes_that_were_announced(family: str, cut: int) -> None:
    device, server = half("device", family, cut), half("server", family, cut)
    carried = device.forward(ids(0), ids(1), cut)
    assert {n: (tuple(t.shape), t.dtype) for n, t in carried.items()} == device.crossing(cut) == server.crossing(cut)
    server.loss(carried, ids(1), cut)
    gradients = server.backward()
    assert tuple(gradients) == server.gradient_names(cut) == device.gradient_names(cut)
    assert all(gradients[n].shape == carried[n].shape and gradients[n].dtype == carried[n].dtype for n in gradients)


def test_where_no_adapter_comes_before_a_tensor_its_gradient_does_not_cross() -> None:
    """Adapters in T5's decoder alone: the encoder's output needs no gradient."""
    targets = tuple(f"decoder.block.{i}.layer.0.SelfAttention.q" for i in range(3))
    device, server, whole = (half(side, "t5", 5, lora_targets=targets) for side in ("device", "server", "whole"))
    assert device.gradient_names(3) == ()
    assert device.gradient_names(5) == ("hidden",)
    for cut in (5, 3, 4):
        device.cut_at(cut)
        server.cut_at(cut)
        device.put_adapters(server.adapters("device"))
        device.put_moments(server.moments("device"), server.optimizer_steps("device"))
        assert step(device, server, cut) == whole.unsplit(ids(0), ids(1))
        whole.backward()
        whole.step()
        server.put_adapters(device.adapters())
        server.put_moments(device.moments(), device.optimizer_steps())
        assert all(torch.equal(t, whole.adapters("whole")[n]) for n, t in server.adapters("whole").items())


# --- an evaluation leaves nothing -------------------------------------------------------------------------------------


def test_an_evaluation_leaves_no_gradients_no_graph_and_no_state() -> None:
    device, server = half("device"), half("server")
    device.put_adapters(server.adapters("device"))
    step(device, server, 2)
    before = [server.adapters("whole"), server.moments("server"), device.adapters(), device.moments()]
    carried = device.forward(ids(5), ids(5), 2, train=False)
    assert not any(t.requires_grad for t in carried.values())
    loss = server.loss(carried, ids(5), 2, train=False)
    assert loss == server.loss(carried, ids(5), 2)  # the same as in training
    server.loss(carried, ids(5), 2, train=False)
    for one in (device, server):
        assert all(p.grad is None for p in one._split.model.parameters())
        with pytest.raises(Unfit, match="no forward pass came before"):
            one.backward({})
        one.step()
    after = [server.adapters("whole"), server.moments("server"), device.adapters(), device.moments()]
    assert all(torch.equal(a[n], b[n]) for a, b in zip(before, after, strict=True) for n in a)
    assert device.optimizer_steps() == server.optimizer_steps() == 1


def test_a_mini_batch_that_was_given_up_leaves_nothing_to_the_next() -> None:
    """A turn is lost between the server's backward pass and its step: the next begins as if it had not been."""
    device, server, clean = half("device"), half("server"), half("server")
    device.put_adapters(server.adapters("device"))
    server.loss(device.forward(ids(8), ids(8), 2), ids(8), 2)
    server.backward()
    carried = device.forward(ids(0), ids(1), 2)
    for one in (server, clean):
        one.loss(carried, ids(1), 2)
        one.backward()
        one.step()
    assert all(torch.equal(t, clean.adapters("whole")[n]) for n, t in server.adapters("whole").items())


# --- what it refuses --------------------------------------------------------------------------------------------------


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {}, "expected hidden, found nothing"),
        (lambda t: {"hidden": t, "more": t}, "expected hidden, found hidden, more"),
        (lambda t: {"hidden": t[:, :-1]}, r"hidden is .*\[2, 7, 32\], expected .*\[2, 8, 32\]"),
        (lambda t: {"hidden": t.double()}, "hidden is torch.float64"),
        (lambda t: {"hidden": _nan(t)}, "hidden holds values that are no numbers"),
        (lambda t: {"hidden": t / 0.0}, "hidden holds values that are no numbers"),
    ],
)
def test_a_server_refuses_smashed_data_and_a_device_gradients_that_do_not_fit(
    change: Callable[[torch.Tensor], dict[str, torch.Tensor]], said: str
) -> None:
    device, server = half("device"), half("server")
    carried = device.forward(ids(), ids(), 2)
    with pytest.raises(Unfit, match=said):
        server.loss(change(carried["hidden"]), ids(), 2)
    server.loss(carried, ids(), 2)
    gradients = server.backward()
    with pytest.raises(Unfit, match=said):
        device.backward(change(gradients["hidden"]))
    device.backward(gradients)  # what was refused has changed nothing


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.full((2, 8), 97), "labels: a token id outside 0..96"),
        (torch.full((2, 8), -1), "labels: a token id outside 0..96"),
        (torch.full((2, 8), -101), "labels: a token id outside 0..96"),
        (torch.zeros(2, 8), "labels: expected int64"),
        (torch.zeros((2, 9), dtype=torch.int64), "labels: expected int64"),
        (torch.zeros((3, 8), dtype=torch.int64), "labels: expected int64"),
        (torch.zeros((0, 8), dtype=torch.int64), "labels: expected int64"),
        (torch.zeros(8, dtype=torch.int64), "labels: expected int64"),
    ],
)
def test_a_server_refuses_labels_that_would_end_it(labels: torch.Tensor, said: str) -> None:
    server = half("server")
    with pytest.raises(Unfit, match=said):
        server.loss({"hidden": torch.zeros(2, 8, 32)}, labels, 2)
    assert server.loss({"hidden": torch.zeros(2, 8, 32)}, torch.full((2, 8), 96), 2) > 0
    with pytest.raises(Unfit, match="inputs: a token id outside"):
        half("device").forward(torch.full((2, 8), -100), ids(), 2)


def test_a_last_smaller_mini_batch_is_taken() -> None:
    device, server = half("device"), half("server")
    carried = device.forward(ids(0, (1, 8)), ids(0, (1, 8)), 2, train=False)
    assert server.loss(carried, ids(0, (1, 8)), 2, train=False) > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {n + "x": v for n, v in t.items()}, "this half has no such adapter"),
        (lambda t: {n: v[:1] for n, v in t.items()}, r"expected float32 \[4, 32\]"),
        (lambda t: {n: v.half() for n, v in t.items()}, "torch.float16"),
        (lambda t: {n: _nan(v) for n, v in t.items()}, "holds values that are no numbers"),
    ],
)
def test_adapters_and_moments_that_do_not_fit_are_refused_and_change_nothing(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str
) -> None:
    server = half("server")
    before = server.adapters("whole")
    with pytest.raises(Unfit, match=said):
        server.put_adapters(change(before))
    moments = {f"{kind}.{n}": t.abs() for kind in "mv" for n, t in before.items()}
    with pytest.raises(Unfit, match=said):
        server.put_moments(change(moments), 3)
    assert all(torch.equal(t, before[n]) for n, t in server.adapters("whole").items())
    assert server.moments("whole") == {}


def test_moments_that_make_no_sense_are_refused() -> None:
    server = half("server")
    name = server.adapter_names("device")[0]
    value = torch.ones_like(server.adapters("device")[name])
    for moments, steps, said in (
        ({f"m.{name}": value}, 1, "expected m.NAME and v.NAME"),
        ({f"x.{name}": value}, 1, "expected m.NAME and v.NAME"),
        ({f"m.{name}": value, f"v.{name}": -value}, 1, "a mean of squares is negative"),
        ({f"m.{name}": value, f"v.{name}": value}, 0, "2 tensors after 0 steps"),
        ({}, 2, "0 tensors after 2 steps"),
    ):
        with pytest.raises(Unfit, match=said):
            server.put_moments(moments, steps)
    with available():
        plain = Half(server.spec, "server")
    with pytest.raises(Unfit, match="sgd has none"):
        plain.put_moments({f"m.{name}": value, f"v.{name}": value}, 1)
    plain.put_moments({}, 0)


def test_a_device_cannot_be_given_adapters_of_layers_that_it_does_not_hold() -> None:
    device, server = half("device", cut=2), half("server")
    with pytest.raises(Unfit, match="this half has no such adapter"):
        device.put_adapters(server.adapters("server"))


def test_calls_out_of_turn_are_refused() -> None:
    device, server = half("device"), half("server")
    carried = device.forward(ids(), ids(), 2)
    for call, said in (
        (lambda: device.loss(carried, ids(), 2), "this half is the device's, not the server's"),
        (lambda: server.forward(ids(), ids(), 2), "this half is the server's, not the device's"),
        (lambda: device.unsplit(ids(), ids()), "a device does not hold the whole model"),
        (lambda: device.forward(ids(), ids(), 1), "cut 1: this half stands at cut 2"),
        (lambda: half("device", cut=None).adapters(), "no cut was set yet"),
    ):
        with pytest.raises(Unfit, match=said):
            call()
    with pytest.raises(BadInput, match=r"cut 4: expected 1..3"):
        device.cut_at(4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("adam", 0.1, 0.0), "--optimizer adam"),
        (("sgd", 0.0, 0.0), "--learning-rate 0.0"),
        (("sgd", float("nan"), 0.0), "--learning-rate nan"),
        (("sgd", 0.1, -1.0), "--weight-decay -1.0"),
    ],
)
def test_training_that_makes_no_sense_is_refused(values: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Training(*values)
