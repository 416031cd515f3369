"""Split training equals plain PEFT training bit for bit, at every cut, and when the cut moves between rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [train] extra is not installed")

import torch

from profiler.workload.model import WorkloadSpec, build
from split.half import Half, Training, checkpoint_name
from tests.workload.families import FAMILIES, available, preset

SGD, ADAMW = Training("sgd", 0.05), Training("adamw", 0.01, 0.1)
STEPS = 2


def spec_of(family: str) -> WorkloadSpec:
    return WorkloadSpec(preset(family) if family in FAMILIES else family, batch_size=2, seq_len=12, seed=3)


def batches(spec: WorkloadSpec, count: int, encoder_decoder: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(11)

    def ids() -> torch.Tensor:
        return torch.randint(0, 97, (spec.batch, spec.tokens), generator=generator)

    drawn = [ids() for _ in range(2 * count)]
    return [(a, b if encoder_decoder else a.clone()) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]


@dataclass
class Plain:
    """A plain PEFT training loop: the whole model, one of torch's optimizers over all adapters, no code of the split."""

    spec: WorkloadSpec
    training: Training

    def __post_init__(self) -> None:
        self.model: Any = build(self.spec).model
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.renew()

    def renew(self) -> None:
        values, rate, decay = list(self.parameters.values()), self.training.learning_rate, self.training.weight_decay
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(values, lr=rate, weight_decay=decay)
            if self.training.optimizer == "sgd"
            else torch.optim.AdamW(values, lr=rate, weight_decay=decay)
        )

    def train(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        loss = self.model(input_ids=inputs, labels=labels).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def adapters(self) -> dict[str, torch.Tensor]:
        return {checkpoint_name(n): p.detach() for n, p in self.parameters.items()}


class Pair:
    """A device and a server as in two processes: two models, and nothing passes between them but what would be sent."""

    def __init__(self, spec: WorkloadSpec, training: Training) -> None:
        self.device = Half(spec, "device", training=training)
        self.server = Half(spec, "server", training=training)

    def round(self, cut: int, data: list[tuple[torch.Tensor, torch.Tensor]], reset: bool = False) -> list[float]:
        device, server = self.device, self.server
        device.cut_at(cut)
        server.cut_at(cut)
        device.put_adapters(server.adapters("device"))
        if reset:
            device.reset_optimizer()
            server.reset_optimizer()
        else:
            device.put_moments(server.moments("device"), server.optimizer_steps("device"))
        losses = []
        for inputs, labels in data:
            carried = {n: t.clone() for n, t in device.forward(inputs, labels, cut).items()}
            losses.append(server.loss(carried, labels, cut))
            gradients = {n: t.clone() for n, t in server.backward().items()}
            server.step()
            device.backward(gradients)
            device.step()
        server.put_adapters(device.adapters())
        if not reset:
            server.put_moments(device.moments(), device.optimizer_steps())
        return losses

    def adapters(self) -> dict[str, torch.Tensor]:
        return self.server.adapters("whole")


def assert_same(pair: Pair, plain: Plain) -> None:
    split, whole = pair.adapters(), plain.adapters()
    assert split.keys() == whole.keys()
    differing = [n for n in whole if not torch.equal(split[n], whole[n])]
    assert not differing


@pytest.mark.parametrize("training", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("family", ["tiny-llama-test", "gpt2", "t5", "qwen"])
def test_every_cut_equals_plain_training(family: str, training: Training) -> None:
    """One round at each cut, one after the other: what is wrong at one cut, or lost between two, stays wrong."""
    with available():
        spec = spec_of(family)
        pair, plain = Pair(spec, training), Plain(spec, training)
        before = pair.adapters()
        for name, value in plain.adapters().items():
            assert torch.equal(before[name], value)
        cuts = [c for pair_ in zip(pair.server.cuts, reversed(pair.server.cuts), strict=True) for c in pair_]
        for cut in [*cuts[: len(pair.server.cuts)], pair.server.layers // 2]:
            data = batches(spec, STEPS, pair.server.encoder_decoder)
            assert pair.round(cut, data) == [plain.train(*batch) for batch in data], cut
            assert_same(pair, plain)
        assert all(not torch.equal(before[name], value) for name, value in plain.adapters().items())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_one_cut_from_the_start_equals_plain_training(cut: int) -> None:
    with available():
        spec = spec_of("llama")
        pair, plain = Pair(spec, SGD), Plain(spec, SGD)
        data = batches(spec, 4, False)
        assert pair.round(cut, data) == [plain.train(*batch) for batch in data]
        assert_same(pair, plain)


def test_adamw_that_is_reset_equals_a_reference_that_begins_anew_each_round() -> None:
    with available():
        spec = spec_of("llama")
        pair, plain, travelling = Pair(spec, ADAMW), Plain(spec, ADAMW), Pair(spec, ADAMW)
        for cut in (2, 3, 1):
            data = batches(spec, STEPS, False)
            plain.renew()
            assert pair.round(cut, data, reset=True) == [plain.train(*batch) for batch in data]
            assert_same(pair, plain)
            travelling.round(cut, data)
        assert any(
            not torch.equal(a, b) for a, b in zip(pair.adapters().values(), travelling.adapters().values(), strict=True)
        )


def test_two_learning_rates_equal_plain_training_with_two_groups() -> None:
    """Eq. 4 and 5 have a rate for the server and one for the device."""
    with available():
        spec, cut = spec_of("llama"), 2
        pair, plain = Pair(spec, SGD), Plain(spec, SGD)
        pair.device = Half(spec, "device", training=Training("sgd", 0.2))
        pair.server.cut_at(cut)
        on_device = set(pair.server.adapter_names("device"))
        plain.optimizer = torch.optim.SGD(
            [
                {"params": [p for n, p in plain.parameters.items() if checkpoint_name(n) in on_device], "lr": 0.2},
                {"params": [p for n, p in plain.parameters.items() if checkpoint_name(n) not in on_device], "lr": 0.05},
            ]
        )
        data = batches(spec, 3, False)
        assert pair.round(cut, data) == [plain.train(*batch) for batch in data]
        assert_same(pair, plain)


def test_a_model_from_disk_equals_peft_on_what_transformers_loads(tmp_path: Path) -> None:
    """The reference is written with transformers and peft alone: the same seed gives the same first adapters."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config = FAMILIES["llama"]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(tmp_path)
    spec = WorkloadSpec(str(tmp_path), batch_size=2, seq_len=12, seed=7, lora_targets=("q_proj", "v_proj"))

    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)
    lora = LoraConfig(r=4, lora_alpha=32.0, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, lora)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)

    pair = Pair(spec, ADAMW)
    for cut in (3, 1, 2):
        data = batches(spec, STEPS, False)
        losses = []
        for inputs, labels in data:
            loss = model(input_ids=inputs, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert pair.round(cut, data) == losses
    whole, split = get_peft_model_state_dict(model), pair.adapters()
    assert set(whole) == set(split)
    assert all(torch.equal(whole[name], split[name]) for name in whole)


def test_the_optimizers_loop_and_foreach_forms_agree_so_neither_has_to_be_pinned() -> None:
    """On a CPU torch loops over the adapters, on CUDA it takes them together. Both work on each element by itself."""
    generator = torch.Generator().manual_seed(2)
    start = [torch.randn(shape, generator=generator) for shape in ((4, 33), (17, 4), (5,))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(20)]

    def run(foreach: bool, which: list[int]) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(start[i].clone()) for i in which]
        optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, foreach=foreach)
        for step in gradients:
            for parameter, i in zip(parameters, which, strict=True):
                parameter.grad = step[i].clone()
            optimizer.step()
        return [p.detach() for p in parameters]

    whole = run(False, [0, 1, 2])
    for foreach in (False, True):
        parts = [*run(foreach, [0]), *run(foreach, [1, 2])]
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True)), foreach
