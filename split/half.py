"""One side of a split: its layers, its adapters and its optimizer.

    device   forward(inputs, labels, cut) -> carried          ...          backward(gradients)   step()
    server                                 loss(carried, labels, cut)      backward() -> gradients   step()

Every pass is the model's own forward (see ``profiler.workload.cuts``), and the optimizers are torch's own, so the two halves together
compute what plain PEFT training of the whole model computes, bit for bit with the same thread count, dtype and build. An optimizer
works on each adapter by itself; that is why it can be taken apart at any cut, and why moments can move with their adapters.

Adapters go by the names that they have in a PEFT checkpoint (``adapter_model.safetensors``), in float32.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from profiler.profile import BadInput, MissingHardware
from profiler.workload.cuts import Batch, SplitModel, State
from profiler.workload.gates import ENCODER, HIDDEN
from profiler.workload.holding import fingerprint, hold
from profiler.workload.model import WorkloadSpec, build
from profiler.workload.pretrained import reason_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Side = Literal["device", "server", "whole"]

FIRST_MOMENT, SECOND_MOMENT = "m.", "v."
"""Before an adapter's name: AdamW's running mean of its gradients, and of their squares."""

_BUILDING = threading.Lock()
"""Building switches libraries' own initialisation off and on for the whole process."""

_CARRIED = {"hidden": HIDDEN, "encoder": ENCODER}


class Unfit(ValueError):
    """Tensors that do not fit this half (names, shapes, dtypes, values), or a call out of turn; nothing was changed. One line."""


@dataclass(frozen=True)
class Training:
    """How adapters are updated. ``sgd`` is Eq. 4 and 5; a device and the server may have different learning rates.

    Raises BadInput for values that make no sense.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise BadInput(f"--optimizer {self.optimizer}: expected sgd or adamw")
        if not 0 < self.learning_rate < math.inf:
            raise BadInput(f"--learning-rate {self.learning_rate}: expected a positive number")
        if not 0 <= self.weight_decay < math.inf:
            raise BadInput(f"--weight-decay {self.weight_decay}: expected 0 or a positive number")


def check_torch_device(name: str) -> None:
    """Raises BadInput where ``name`` is no device of torch that holds values, MissingHardware where it is one and torch cannot use it here."""
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = "meta"
    if kind == "meta":
        raise BadInput(f"--torch-device {name[:60]}: expected cpu, or a CUDA GPU as cuda:0, cuda:1, ...")
    try:
        torch.empty(1, device=name)
    except Exception as error:  # no CUDA in this build, no driver, no GPU of that number: each is another class
        raise MissingHardware(
            f"--torch-device {name}: torch cannot use it here: {reason_of(error, False)}; expected cpu, or a torch built for this GPU "
            "and its driver"
        ) from None


class Half:
    """One side of a split model, or the ``whole`` model unsplit (the reference, and what a test of one machine runs).

    A device holds layers 1..c alone; the server and the whole hold all layers. ``cut`` is c, None before the first ``cut_at``.
    Not safe for threads; at most one mini-batch is under way at a time. Raises BadInput for a model that cannot be built or cut.
    """

    def __init__(
        self, spec: WorkloadSpec, side: Side, torch_device: str = "cpu", training: Training | None = None
    ) -> None:
        self.spec, self.side, self.torch_device = spec, side, torch_device
        self.training = training or Training()
        self.cut: int | None = None
        with _BUILDING:
            if side == "device":
                structure = SplitModel(build(spec, "meta")).structure
                self._split = SplitModel(build(spec, torch_device, only=()), structure)
            else:
                self._split = SplitModel(build(spec, torch_device))
        self._fingerprint = _fingerprint(self._split)
        self._name_adapters()
        self._optimizer = self._new_optimizer()
        self._state: State | None = None
        self._leaves: dict[str, Tensor] = {}

    # --- facts -------------------------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Preset, Hugging Face id, or name of the local directory or file."""
        return self._split.built.name

    @property
    def note(self) -> str | None:
        """One line for people where a device cannot read its layers alone from the model's files; None where it can."""
        return None if self._split.built.weights is None else self._split.built.weights.note

    @property
    def layers(self) -> int:
        """I: the number of transformer layers."""
        return self._split.layers

    @property
    def cuts(self) -> range:
        """1..I-1."""
        return self._split.cuts

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._split.built.vocab_size

    @property
    def encoder_decoder(self) -> bool:
        """Whether labels are another sequence than the inputs (T5, BART)."""
        return self._split.encoder_layers is not None

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear layers that have adapters."""
        return self._split.built.lora_targets

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of architecture, shapes, LoRA's settings and samples of every base weight: equal on two machines that hold
        the same base model, whatever layers each of them has loaded."""
        return self._fingerprint

    def peft_config(self) -> dict[str, Any]:
        """The content of ``adapter_config.json`` in a PEFT checkpoint of these adapters."""
        made = self._split.built.model.peft_config["default"]
        return {
            "peft_type": "LORA",
            "task_type": "SEQ_2_SEQ_LM" if self.encoder_decoder else "CAUSAL_LM",
            "base_model_name_or_path": self.spec.model,
            "r": made.r,
            "lora_alpha": made.lora_alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(made.target_modules),
            "fan_in_fan_out": made.fan_in_fan_out,
            "bias": "none",
            "inference_mode": True,
        }

    def crossing(self, cut: int, sequences: int | None = None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that goes up at ``cut``: what the server expects, and what the gradients that come back look
        like. ``sequences``: of a mini-batch that is smaller than the usual one."""
        import torch

        self._check_cut(cut)
        size = self.spec.batch if sequences is None else sequences
        dtype: torch.dtype = getattr(torch, self.spec.dtype)
        shape = (size, self.spec.tokens, self._split.built.hidden_size)
        return dict.fromkeys(self._carried_names(cut), (shape, dtype))

    def gradient_names(self, cut: int) -> tuple[str, ...]:
        """The tensors among ``crossing`` whose gradient comes back: those that depend on an adapter of the device."""
        self._check_cut(cut)
        split = self._split
        encoder = split.encoder_layers or 0

        def adapted(last: int) -> bool:
            return any(s.adapters for s in split.segments if s.kind == "layer" and s.layer <= last)

        names = self._carried_names(cut)
        return tuple(n for n in names if adapted(encoder if n == "encoder" else cut))

    # --- cut, adapters, optimizer --------------------------------------------------------------------------------------

    def cut_at(self, cut: int) -> None:
        """From now on the split is at ``cut``. A device loads the layers among 1..``cut`` that it has not, and drops the others.

        A device's adapters in layers that it had not are fresh ones until ``put_adapters``. Raises BadInput for a cut that is none, and
        where weights cannot be read.
        """
        self._check_cut(cut)
        self._forget()
        if self.side == "device" and cut != self.cut:
            built = self._split.built
            assert built.weights is not None
            names = self._split.half_parameters("device", cut)
            self.cut = None  # until everything is there
            hold(built.model, built.weights, names, self.torch_device, self.spec.seed)
            before = self._optimizer.state
            self._split = SplitModel(built, self._split.structure)
            self._name_adapters()
            self._optimizer = self._new_optimizer()
            self._optimizer.state.update({p: before[p] for p in self._named.values() if p in before})
        self.cut = cut

    def adapters(self, side: Side | None = None, cut: int | None = None) -> dict[str, Tensor]:
        """Copies of the adapters of ``side`` at ``cut`` (default: of this half), float32 on the CPU, by PEFT's names in order of layers."""
        return {n: self._copy(self._named[n].detach()) for n in self.adapter_names(side, cut)}

    def adapter_names(self, side: Side | None = None, cut: int | None = None) -> tuple[str, ...]:
        """Names of the adapters of ``side`` at ``cut`` (default: of this half at its cut). ``whole``: all of them."""
        chosen, at = side or self.side, self.cut if cut is None else cut
        if chosen == "whole":
            return tuple(self._named)
        if at is None:
            raise Unfit("no cut was set yet: call cut_at first, or name a cut")
        self._check_cut(at)
        return tuple(n for n, layer in self._layer_of.items() if (layer <= at) == (chosen == "device"))

    def put_adapters(self, adapters: Mapping[str, Tensor]) -> None:
        """Take over values of adapters, all of them or none. Raises Unfit for names, shapes, dtypes or values that do not fit."""
        import torch

        self._check(adapters, "")
        with torch.no_grad():
            for name, value in adapters.items():
                self._named[name].copy_(value)

    def moments(self, side: Side | None = None, cut: int | None = None) -> dict[str, Tensor]:
        """Copies of AdamW's moments of those adapters, as ``m.NAME`` and ``v.NAME``, float32 on the CPU; of SGD, and before the first
        step, none."""
        found: dict[str, Tensor] = {}
        for name in self.adapter_names(side, cut):
            state = self._optimizer.state.get(self._named[name], {})
            if "exp_avg" in state:
                found[FIRST_MOMENT + name] = self._copy(state["exp_avg"])
                found[SECOND_MOMENT + name] = self._copy(state["exp_avg_sq"])
        return found

    def optimizer_steps(self, side: Side | None = None, cut: int | None = None) -> int:
        """Steps that those moments have seen (for AdamW's bias correction); 0 of SGD. Raises Unfit where adapters differ in it."""
        states = [self._optimizer.state.get(self._named[n], {}) for n in self.adapter_names(side, cut)]
        steps = {int(s["step"]) if "step" in s else 0 for s in states}
        if len(steps) > 1:
            raise Unfit(f"adapters have seen different numbers of optimizer steps: {sorted(steps)}")
        return steps.pop() if steps else 0

    def put_moments(self, moments: Mapping[str, Tensor], steps: int) -> None:
        """Take over AdamW's moments of some adapters, and the number of steps that they have seen; with ``steps`` 0 there are none.

        Raises Unfit for names, shapes, dtypes or values that do not fit, and for one moment without the other.
        """
        import torch

        first = {n.removeprefix(FIRST_MOMENT): t for n, t in moments.items() if n.startswith(FIRST_MOMENT)}
        second = {n.removeprefix(SECOND_MOMENT): t for n, t in moments.items() if n.startswith(SECOND_MOMENT)}
        strange = [n for n in moments if not n.startswith((FIRST_MOMENT, SECOND_MOMENT))]
        if strange or first.keys() != second.keys():
            odd = strange or sorted(first.keys() ^ second.keys())
            raise Unfit(f"moments: expected m.NAME and v.NAME of each adapter, found {odd[0][:80]}")
        if moments and self.training.optimizer != "adamw":
            raise Unfit("moments: sgd has none")
        if (steps > 0) != bool(moments) and self.training.optimizer == "adamw":
            raise Unfit(f"moments: {len(moments)} tensors after {steps} steps")
        self._check(first, FIRST_MOMENT)
        self._check(second, SECOND_MOMENT)
        if any(bool((t < 0).any()) for t in second.values()):
            raise Unfit("moments: a mean of squares is negative")
        for name in first:
            parameter = self._named[name]
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(steps), dtype=torch.float32),
                "exp_avg": first[name].detach().to(parameter.device, copy=True),
                "exp_avg_sq": second[name].detach().to(parameter.device, copy=True),
            }

    def reset_optimizer(self, side: Side | None = None, cut: int | None = None) -> None:
        """Forget the moments of those adapters, as if no step had been taken."""
        for name in self.adapter_names(side, cut):
            self._optimizer.state.pop(self._named[name], None)

    # --- a mini-batch ------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor, labels: Tensor, cut: int, train: bool = True) -> dict[str, Tensor]:
        """Device: forward pass of layers 1..``cut`` (Eq. 2). Returns what crosses: ``hidden``, in a decoder ``encoder`` too, each
        [sequences, tokens, hidden size] at the model's dtype, detached. With ``train`` False nothing is kept for a backward pass.

        ``inputs`` and ``labels``: token ids, int64 [sequences, tokens].
        """
        import torch

        self._own(cut, "device")
        self._forget()
        batch = self._batch(inputs, labels)
        with torch.set_grad_enabled(train):
            state = self._split.device_half(batch, cut)
        if train:
            self._state = state
        return {n: state.carried[_CARRIED[n]].detach() for n in self._carried_names(cut)}

    def loss(self, carried: Mapping[str, Tensor], labels: Tensor, cut: int, train: bool = True) -> float:
        """Server: forward pass of the layers after ``cut`` and the loss (Eq. 3). It may be no number, where training has diverged.

        Raises Unfit where tensors, shapes, dtypes or labels are not those that cross at ``cut``, or a value is no number.
        """
        import torch

        self._own(cut, "server")
        self._forget()
        targets = self._ids("labels", labels)
        self._check_crossing(carried, self.crossing(cut, targets.shape[0]), targets.shape[1], "smashed data")
        needed = self.gradient_names(cut) if train else ()
        leaves = {n: t.detach().to(self.torch_device).requires_grad_(n in needed) for n, t in carried.items()}
        with torch.set_grad_enabled(train):
            state = self._split.server_half(Batch(targets, targets), cut, {_CARRIED[n]: t for n, t in leaves.items()})
        assert state.loss is not None
        if train:
            self._state, self._leaves = state, leaves
        return float(state.loss.detach())

    def unsplit(self, inputs: Tensor, labels: Tensor, train: bool = True) -> float:
        """Server or whole: loss of the unsplit model; ``backward`` and ``step`` follow as after ``loss``."""
        import torch

        if self.side == "device":
            raise Unfit("a device does not hold the whole model")
        self._forget()
        batch = self._batch(inputs, labels)
        with torch.set_grad_enabled(train):
            found = self._split.whole(batch)
        if train:
            self._state = State(batch, len(self._split.segments), {}, loss=found)
        return float(found.detach())

    def backward(self, gradients: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The backward pass of the forward pass before; adapters hold their gradients afterwards.

        Server: from the loss; returns the gradients of what was carried, which go down. Device: from ``gradients``, returns none.
        Raises Unfit for gradients that are not those of ``gradient_names``, and where no forward pass with ``train`` came before.
        """
        if self._state is None:
            raise Unfit("backward: no forward pass came before it")
        state = self._state
        if state.loss is None:
            assert self.cut is not None
            sizes = self.crossing(self.cut, state.batch.inputs.shape[0])
            expected = {n: sizes[n] for n in self.gradient_names(self.cut)}
            given = dict(gradients or {})
            self._check_crossing(given, expected, None, "gradients", {n: state.carried[_CARRIED[n]] for n in expected})
            self._split.backward(state, {_CARRIED[n]: t.to(self.torch_device) for n, t in given.items()})
            self._state = None
            return {}
        if gradients:
            raise Unfit("gradients: this half makes them, it takes none")
        leaves, self._state, self._leaves = self._leaves, None, {}
        self._split.backward(state)
        return SplitModel.gradients(leaves)

    def step(self) -> None:
        """Apply the optimizer to the adapters that have gradients (Eq. 4 and 5), and clear them."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def settle(self) -> None:
        """Wait until an accelerator has done all that it was told (for a clock read afterwards); a CPU always has."""
        if self.torch_device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _name_adapters(self) -> None:
        paths = {id(p): path for path, p in self._split.model.named_parameters()}
        self._named: dict[str, nn.Parameter] = {}
        self._layer_of: dict[str, int] = {}
        for segment in self._split.segments:
            for parameter in segment.adapters:
                name = checkpoint_name(paths[id(parameter)])
                self._named[name], self._layer_of[name] = parameter, segment.layer

    def _new_optimizer(self) -> torch.optim.Optimizer:
        import torch

        held = [p for p in self._named.values() if not p.is_meta]
        if not held:  # a device before its first cut; torch wants something
            held = [torch.nn.Parameter(torch.zeros(0))]
        more: dict[str, Any] = {"lr": self.training.learning_rate, "weight_decay": self.training.weight_decay}
        return torch.optim.AdamW(held, **more) if self.training.optimizer == "adamw" else torch.optim.SGD(held, **more)

    def _forget(self) -> None:
        """Drop a mini-batch under way, and gradients that no step has used."""
        self._state, self._leaves = None, {}
        self._optimizer.zero_grad(set_to_none=True)

    def _carried_names(self, cut: int) -> tuple[str, ...]:
        encoder = self._split.encoder_layers
        if encoder is None or cut < encoder:
            return ("hidden",)
        return ("encoder",) if cut == encoder else ("hidden", "encoder")

    def _check_cut(self, cut: int) -> None:
        if cut not in self.cuts:
            raise BadInput(f"cut {cut}: expected 1..{self.layers - 1} ({self.layers} layers)")

    def _own(self, cut: int, side: Side) -> None:
        if self.side != side:
            raise Unfit(f"this half is the {self.side}'s, not the {side}'s")
        if cut != self.cut:
            raise Unfit(f"cut {cut}: this half stands at cut {self.cut}")

    def _batch(self, inputs: Tensor, labels: Tensor) -> Batch:
        if inputs.shape[:1] != labels.shape[:1]:
            raise Unfit(f"inputs and labels: {list(inputs.shape)} and {list(labels.shape)}")
        return Batch(self._ids("inputs", inputs), self._ids("labels", labels))

    def _ids(self, what: str, ids: Tensor) -> Tensor:
        """Token ids on this half's device. Labels may be -100 (not counted); one that the loss cannot look up would end the process."""
        import torch

        most = (self.spec.batch, self.spec.tokens)
        if (
            ids.dtype != torch.int64
            or ids.dim() != 2
            or not all(1 <= n <= m for n, m in zip(ids.shape, most, strict=True))
        ):
            expected = f"[at most {most[0]} sequences, at most {most[1]} tokens]"
            raise Unfit(
                f"{what}: expected int64 {expected}, found {str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}"
            )
        inside = (ids >= 0) & (ids < self.vocab_size)
        if not bool((inside | (ids == -100) if what == "labels" else inside).all()):
            raise Unfit(f"{what}: a token id outside 0..{self.vocab_size - 1}")
        return ids.to(self.torch_device)

    def _check_crossing(
        self,
        given: Mapping[str, Tensor],
        expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        tokens: int | None,
        what: str,
        like: Mapping[str, Tensor] | None = None,
    ) -> None:
        import torch

        if given.keys() != expected.keys():
            raise Unfit(
                f"{what}: expected {', '.join(expected) or 'nothing'}, found {', '.join(map(str, given))[:200] or 'nothing'}"
            )
        for name, (shape, dtype) in expected.items():
            tensor = given[name]
            if like is not None:
                shape = tuple(like[name].shape)
            elif tokens is not None and name == "hidden":
                shape = (shape[0], tokens, shape[2])
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise Unfit(f"{what}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
            if not bool(torch.isfinite(tensor).all()):
                raise Unfit(f"{what}: {name} holds values that are no numbers")

    def _check(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        import torch

        for name, tensor in tensors.items():
            parameter = self._named.get(name)
            if parameter is None or parameter.is_meta:
                raise Unfit(f"{(prefix + name)[:120]}: this half has no such adapter")
            if tensor.shape != parameter.shape or tensor.dtype != torch.float32:
                raise Unfit(
                    f"{prefix}{name}: {tensor.dtype} {list(tensor.shape)}, expected float32 {list(parameter.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise Unfit(f"{prefix}{name}: holds values that are no numbers")

    @staticmethod
    def _copy(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True).contiguous()


def checkpoint_name(path: str) -> str:
    """The name of an adapter in a PEFT checkpoint, from its path in the model."""
    return "base_model.model." + path.replace(".default.", ".")


def _fingerprint(split: SplitModel) -> str:
    """Of the base weights, and of what is trained on them and how they are run."""
    built = split.built
    told = [built.architecture, built.spec.dtype, built.spec.lora_rank, built.spec.lora_alpha, built.lora_targets]
    # What a configuration sets without a weight to show for it: the scale of norms, the frequencies of positions.
    epsilons = {n: v for m in split.model.modules() for n, v in vars(m).items() if "eps" in n and isinstance(v, float)}
    buffers = {n: [float(f"{x:.4e}") for x in b.reshape(-1)[:16].tolist()] for n, b in split.model.named_buffers()}
    text = json.dumps([told, epsilons, buffers, fingerprint(built.model, built.weights)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
