"""Where a model can be cut, and what crosses there.

A model is a row of segments (see ``profiler.profile``): embedding, layers 1..I, head, and for an encoder-decoder model a bridge
(the decoder's embedding) between the encoder's last layer and the decoder's first. The encoder's final norm belongs to its last
layer.

Everything is found by structure: the longest list of modules of one class is the row of layers. Segments are run by the model's
*own* forward, with a gate in place of every layer: a gate passes its input on, runs its layer, hands in what came from the other
half, or stops the pass (see ``gates``). So masks, positions, scaling and loss are the model's own in every release, and results
are equal to the unsplit model's bit for bit.

    own forward:   embedding -> [gate 1] ... [gate c] | [gate c+1] ... [gate I] -> norm, output projection, loss
    device half:   embedding ->  layer 1 ...  layer c | stop
    server half:                 pass    ...  hand in |  layer c+1 ...  layer I -> norm, output projection, loss

Two kinds of tensors leave a segment. *Carried* ones are what crosses at a cut: hidden states, and in a decoder the encoder's
output too; their gradients come back. The *context* (masks, position embeddings, T5's position bias) follows from shapes and
frozen weights: each half computes it for itself, it never crosses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput, Role, SegmentKind
from profiler.workload.gates import (
    ENCODER,
    HIDDEN,
    Context,
    Gates,
    Stack,
    Stopped,
    Watch,
    bias_module,
    find_stacks,
    first_of,
)
from profiler.workload.model import BuiltModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """One mini-batch: token ids and labels, both int64 [batch, tokens], on the model's device."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class State:
    """Between two segments: ``next`` is the index of the segment to run. After the head ``loss`` is set, nothing is carried."""

    batch: Batch
    next: int = 0
    carried: dict[str, Tensor] = field(default_factory=dict)
    context: Context = field(default_factory=Context)
    loss: Tensor | None = None


@dataclass(frozen=True)
class SegmentHandle:
    """One segment. ``modules`` are those that it calls (a layer is one module; adapters are inside).

    ``weight_bytes`` are its frozen parameters, ``adapter_bytes`` its LoRA parameters. A tied embedding counts in the embedding
    and in the head, for both sides of a cut hold it; so do position embeddings that the model's own forward adds again.
    """

    name: str
    kind: SegmentKind
    layer: int
    modules: tuple[nn.Module, ...]
    adapters: tuple[nn.Parameter, ...]
    weight_bytes: int
    adapter_bytes: int

    @property
    def adapter_parameters(self) -> int:
        """Number of LoRA parameters."""
        return sum(p.numel() for p in self.adapters)


@dataclass(frozen=True)
class Structure:
    """What was found out about a model, as names alone: it can be used for another copy of the same architecture."""

    stacks: tuple[Stack, ...]
    outside: tuple[tuple[str, ...], ...] = ()
    """For each segment the paths of the modules outside the layers that it calls."""
    give_mask: bool = False
    """On the meta device this model needs a mask given: making one would ask for values."""


class SplitModel:
    """A model as a row of segments that can be run one by one, or as two halves.

    ``structure``: facts found on another copy of the same architecture (on the meta device, say), for a model that holds only
    one half's weights. Raises BadInput where the model cannot be cut, listing what was looked for and what was found.
    """

    def __init__(self, built: BuiltModel, structure: Structure | None = None) -> None:
        self.built = built
        self.model: Any = built.model
        self.device = built.device
        stacks = structure.stacks if structure is not None else find_stacks(self.model)
        self._stacks = stacks
        self._layers: list[list[Any]] = [list(getattr(self._owner(s), s.attribute)) for s in stacks]
        self.encoder_layers: int | None = stacks[0].length if len(stacks) == 2 else None
        self.layers: int = sum(s.length for s in stacks)
        self._crossing_sizes: dict[int, tuple[int, int]] | None = None
        self._give_mask = False
        self._refuse_adapters_outside_layers()
        if structure is None:
            structure = self._find_out()
        else:
            self._give_mask = structure.give_mask and self.device == "meta"
        self.structure = structure
        self.segments: list[SegmentHandle] = self._handles()

    # --- running -----------------------------------------------------------------------------------------------------

    def batch(self, seed: int = 0, inputs: Tensor | None = None, labels: Tensor | None = None) -> Batch:
        """A mini-batch [batch, tokens] of random token ids, or of the given ones.

        Labels default to the inputs (the model shifts them by one token itself); an encoder-decoder model gets random ones.
        """
        import torch

        if inputs is None:
            shape = (self.built.spec.batch, self.built.spec.tokens)
            inputs = self._random_tokens(shape, seed)
            if labels is None and self.encoder_layers is not None:
                labels = self._random_tokens(shape, seed + 1)
        inputs = inputs.to(device=self.device, dtype=torch.int64)
        labels = inputs.clone() if labels is None else labels.to(device=self.device, dtype=torch.int64)
        return Batch(inputs, labels)

    def start(self, batch: Batch) -> State:
        """The state before the first segment."""
        return State(batch)

    def resume(self, batch: Batch, cut: int, carried: Mapping[str, Tensor]) -> State:
        """The state with which a server half begins: what was carried over cut ``cut``, and a context of its own."""
        stack, first = self._place(cut)
        state = State(batch, self._index_after(cut), dict(carried))
        if first == 0:
            return state  # the bridge makes the context
        self._pass(stack, batch, carried, first, first, stop=self._stacks[stack].length - 1, context=state.context)
        return state

    def forward(self, index: int, state: State) -> State:
        """Run segment ``index`` on the carried tensors of ``state``; the head sets ``loss``."""
        if index != state.next:
            raise ValueError(f"segment {index} was asked for, the state stands before segment {state.next}")
        segment = self.segments[index]
        kind, batch, context = segment.kind, state.batch, state.context
        if kind == "embedding" or kind == "bridge":
            stack = 1 if kind == "bridge" else 0
            last = self._stacks[stack].length - 1
            hidden, _ = self._pass(stack, batch, state.carried, 0, 0, stop=last, context=context)
            return replace(state, next=index + 1, carried={**state.carried, HIDDEN: hidden})
        if kind == "head":
            stack, length = len(self._stacks) - 1, self._stacks[-1].length
            _, loss = self._pass(stack, batch, state.carried, length, length, context=context)
            return replace(state, next=index + 1, carried={}, loss=loss)
        stack, position = self._position(segment.layer)
        if segment.layer == self.encoder_layers:  # and the encoder's final norm
            output, _ = self._pass(stack, batch, state.carried, position, position + 1, context=context)
            return replace(state, next=index + 1, carried={ENCODER: output})
        args, kwargs = context.arguments(stack, position, state.carried)
        hidden = first_of(self._layers[stack][position](*args, **kwargs))
        return replace(state, next=index + 1, carried={**state.carried, HIDDEN: hidden})

    def cut_state(self, state: State) -> tuple[State, dict[str, Tensor]]:
        """Cut the graph here: the state with detached tensors, and those tensors, which will hold the gradients.

        A tensor that needs no gradient (the embedding's output under a frozen base) needs none after the cut either.
        """
        leaves = {name: t.detach().requires_grad_(t.requires_grad) for name, t in state.carried.items()}
        return replace(state, carried=leaves), leaves

    def backward(self, state: State, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Backward pass from ``state``: from the loss, or from the gradients of the carried tensors that came back."""
        import torch

        if state.loss is not None:
            state.loss.backward()
            return
        names = [n for n in (gradients or {}) if state.carried[n].requires_grad]
        if names:
            torch.autograd.backward([state.carried[n] for n in names], [(gradients or {})[n] for n in names])

    @staticmethod
    def gradients(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What crosses back: the gradients of a cut's tensors after the backward pass of the later half."""
        return {name: t.grad for name, t in leaves.items() if t.grad is not None}

    def whole(self, batch: Batch) -> Tensor:
        """Loss of the plain, unsplit model."""
        mask = self._mask(batch)
        loss: Tensor = self.model(input_ids=batch.inputs, **mask, labels=batch.labels, use_cache=False).loss
        return loss

    def device_half(self, batch: Batch, cut: int) -> State:
        """Forward pass of the device half: segments up to layer ``cut``, in one pass of the model's own forward."""
        self._check_cut(cut)
        state = State(batch, self._index_after(cut))
        encoder = self.encoder_layers
        if encoder is None or cut < encoder:
            hidden, _ = self._pass(0, batch, {}, 0, cut, stop=cut)
            return replace(state, carried={HIDDEN: hidden})
        output, _ = self._pass(0, batch, {}, 0, encoder)
        if cut == encoder:
            return replace(state, carried={ENCODER: output})
        hidden, _ = self._pass(1, batch, {ENCODER: output}, 0, cut - encoder, stop=cut - encoder)
        return replace(state, carried={HIDDEN: hidden, ENCODER: output})

    def server_half(self, batch: Batch, cut: int, carried: Mapping[str, Tensor]) -> State:
        """Forward pass of the server half on what came over cut ``cut``; the state holds the loss.

        The inputs' token ids are not used, only their labels.
        """
        self._check_cut(cut)
        stack, first = self._place(cut)
        carried = dict(carried)
        if stack == 0 and self.encoder_layers is not None:
            output, _ = self._pass(0, batch, carried, first, self._stacks[0].length)
            carried, stack, first = {ENCODER: output}, 1, 0
        _, loss = self._pass(stack, batch, carried, first, self._stacks[stack].length)
        return State(batch, len(self.segments), {}, loss=loss)

    def split_step(self, batch: Batch, cut: int) -> Tensor:
        """Forward and backward of one mini-batch as a split at ``cut``; gradients are left on the adapters. The loss."""
        device = self.device_half(batch, cut)
        crossed, leaves = self.cut_state(device)
        server = self.server_half(batch, cut, crossed.carried)
        self.backward(server)
        self.backward(device, self.gradients(leaves))
        assert server.loss is not None
        return server.loss.detach()

    # --- facts -------------------------------------------------------------------------------------------------------

    @property
    def cuts(self) -> range:
        """The cut layers 1..I-1."""
        return range(1, self.layers)

    def smashed_bytes(self, cut: int) -> int:
        """S(c) of Eq. 9: bytes that go up at ``cut`` for one mini-batch, uncompressed."""
        return self._crossing(cut)[0]

    def gradient_bytes(self, cut: int) -> int:
        """Bytes that come back at ``cut`` for one mini-batch, uncompressed."""
        return self._crossing(cut)[1]

    def device_segments(self, cut: int) -> list[int]:
        """Indices of the segments on the device at ``cut``."""
        return [i for i, s in enumerate(self.segments) if i < self._index_after(cut)]

    def server_segments(self, cut: int) -> list[int]:
        """Indices of the segments on the server at ``cut``."""
        return [i for i, s in enumerate(self.segments) if i >= self._index_after(cut)]

    def half_parameters(self, side: Role, cut: int) -> set[str]:
        """Names of the parameters that one half needs, for ``model.build(only=...)``; all names of a tied one."""
        self._check_cut(cut)
        indices = self.device_segments(cut) if side == "device" else self.server_segments(cut)
        needed = {id(p) for i in indices for module in self.segments[i].modules for p in module.parameters()}
        for stack, layers in zip(self._stacks, self._layers, strict=True):
            if stack.outputs:  # the first layer's position bias is part of every half's context
                needed |= {id(p) for p in bias_module(layers[0]).relative_attention_bias.parameters()}
        return {name for name, p in self.model.named_parameters(remove_duplicate=False) if id(p) in needed}

    def adapters(self) -> list[nn.Parameter]:
        """All LoRA parameters, in the order of the segments."""
        return [p for s in self.segments for p in s.adapters]

    # --- passes through the model's own forward -----------------------------------------------------------------------

    def _pass(
        self,
        stack: int,
        batch: Batch,
        carried: Mapping[str, Tensor],
        low: int,
        high: int,
        stop: int | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One pass of a stack's own forward in which layers ``low``..``high - 1`` (from 0) really run.

        With ``low`` > 0 the hidden states carried in take the place of what layer ``low`` would get. ``stop`` ends the pass
        before that layer. With a ``context`` the calls of the layers are noted there, or reused. Returns (hidden states, loss);
        one of them is meaningless, depending on where the pass ends.
        """
        entering = carried[HIDDEN] if low > 0 else None
        source = carried.get(ENCODER) if stack == 1 else None
        # Detached: what the forward does with these outside the gates has no part in the result.
        embeds = None if entering is None else entering.detach()
        gates = Gates(self._stacks[stack], self._layers[stack], stack, low, high, entering, stop, context, source)
        with gates.in_place(self._owner(self._stacks[stack])):
            try:
                if len(self._stacks) == 1:
                    what = {"input_ids": batch.inputs} if embeds is None else {"inputs_embeds": embeds}
                    labels = None if stop is not None else batch.labels
                    output = self.model(**what, **self._mask(batch), labels=labels, use_cache=False)
                elif stack == 0:
                    what = {"input_ids": batch.inputs} if embeds is None else {"inputs_embeds": embeds}
                    output = self.model.get_encoder()(**what)
                    return output[0], output[0]
                else:
                    what = {} if embeds is None else {"decoder_inputs_embeds": embeds}
                    output = self.model(encoder_outputs=(source,), labels=batch.labels, use_cache=False, **what)
            except Stopped as stopped:
                return stopped.hidden, stopped.hidden
        return output.logits, output.loss

    # --- finding out --------------------------------------------------------------------------------------------------

    def _find_out(self) -> Structure:
        """Run the model in pieces on a few tokens. Raises BadInput where it does not run so."""
        found = self._stacks
        while True:
            try:
                self._stacks = tuple(self._observe(index) for index in range(len(found)))
                return Structure(self._stacks, self._called_outside(), self._give_mask)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError) as error:
                self._stacks = found
                if self.device == "meta" and not self._give_mask and self.encoder_layers is None:
                    self._give_mask = True
                    continue
                line = " ".join(str(error).split())[:300]
                raise BadInput(
                    f"{self.built.architecture}: cannot be cut: expected a forward pass that runs on {self.device} when its "
                    f"layers are taken one by one, found {type(error).__name__}: {line}"
                ) from error

    def _observe(self, index: int) -> Stack:
        """Run the first two layers of a stack on a few tokens and see how the model hands tensors from one to the next."""
        stack = self._stacks[index]
        batch = self._small_batch()
        carried: dict[str, Tensor] = {}
        if index == 1:
            import torch

            shape = (*batch.inputs.shape, self.built.hidden_size)
            carried = {ENCODER: torch.zeros(shape, device=self.device, dtype=self._base_dtype())}
        watch = Watch(stack, self._layers[index], index)
        with watch.in_place(self._owner(stack)):
            try:
                if index == 0 and len(self._stacks) == 1:
                    self.model(input_ids=batch.inputs, **self._mask(batch), use_cache=False)
                elif index == 0:
                    self.model.get_encoder()(input_ids=batch.inputs)
                else:
                    self.model(encoder_outputs=(carried[ENCODER],), labels=batch.labels, use_cache=False)
            except Stopped:
                pass
        return watch.conclude(type(self.model).__name__)

    def _called_outside(self) -> tuple[tuple[str, ...], ...]:
        """Run the segments once on a few tokens and note which modules outside the layers each of them calls."""
        import torch

        inside = {id(m) for layers in self._layers for layer in layers for m in layer.modules()}
        called: list[str] = []
        hooks = [
            module.register_forward_pre_hook(lambda _m, _a, path=path: called.append(path))
            for path, module in self.model.named_modules()
            if id(module) not in inside and any(True for _ in module.parameters(recurse=False))
        ]
        self.segments = self._bare_handles()
        found: list[tuple[str, ...]] = []
        try:
            with torch.no_grad():
                state = self.start(self._small_batch())
                for index, segment in enumerate(self.segments):
                    called.clear()
                    if segment.kind == "layer" and segment.layer != self.encoder_layers:
                        state = replace(state, next=index + 1)  # a layer calls nothing outside itself
                    else:
                        state = self.forward(index, state)
                    found.append(tuple(dict.fromkeys(called)))
        finally:
            for hook in hooks:
                hook.remove()
        names = {id(m): path for path, m in self.model.named_modules()}
        for at, getter in ((0, self.model.get_input_embeddings), (-1, self.model.get_output_embeddings)):
            module = getter()
            # A model that multiplies with the weight itself does not call the module.
            if module is not None and not found[at] and id(module) in names:
                found[at] = (names[id(module)],)
        return tuple(found)

    def _rows(self) -> list[tuple[str, SegmentKind, int]]:
        rows: list[tuple[str, SegmentKind, int]] = [("embedding", "embedding", 0)]
        for layer in range(1, self.layers + 1):
            if self.encoder_layers is not None and layer == self.encoder_layers + 1:
                rows.append(("bridge", "bridge", layer))
            rows.append((f"layer-{layer}", "layer", layer))
        return [*rows, ("head", "head", self.layers + 1)]

    def _bare_handles(self) -> list[SegmentHandle]:
        return [SegmentHandle(name, kind, layer, (), (), 0, 0) for name, kind, layer in self._rows()]

    def _handles(self) -> list[SegmentHandle]:
        handles = []
        for (name, kind, layer), outside in zip(self._rows(), self.structure.outside, strict=True):
            modules = [self.model.get_submodule(path) for path in outside]
            if kind == "layer":
                stack, position = self._position(layer)
                modules.insert(0, self._layers[stack][position])
            parameters = {id(p): p for module in modules for p in module.parameters()}.values()
            adapters = tuple(p for p in parameters if p.requires_grad)
            handles.append(
                SegmentHandle(
                    name=name,
                    kind=kind,
                    layer=layer,
                    modules=tuple(modules),
                    adapters=adapters,
                    weight_bytes=sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad),
                    adapter_bytes=sum(p.numel() * p.element_size() for p in adapters),
                )
            )
        return handles

    def _crossing(self, cut: int) -> tuple[int, int]:
        """(up, down) bytes at a cut, from the shapes and dtypes of tensors that really cross there."""
        import torch

        self._check_cut(cut)
        if self._crossing_sizes is None:
            # Two tokens tell dtype and width; the encoder's output and the hidden states are the only tensors there are.
            rows = self.built.spec.batch * self.built.spec.tokens
            sizes: dict[int, tuple[int, int]] = {}
            batch = self._small_batch()
            scale = rows / batch.inputs.numel()
            with torch.enable_grad():
                for at in self._kinds_of_cut():
                    carried = self.device_half(batch, at).carried.values()
                    up = sum(t.numel() * t.element_size() for t in carried)
                    down = sum(t.numel() * t.element_size() for t in carried if t.requires_grad)
                    sizes[at] = (round(up * scale), round(down * scale))
            self._crossing_sizes = sizes
        return next(v for at, v in reversed(self._crossing_sizes.items()) if at <= cut)

    def _kinds_of_cut(self) -> list[int]:
        """The first cut of each kind: all cuts inside one stack carry the same tensors."""
        encoder = self.encoder_layers
        cuts = [1] if encoder is None else [1, encoder, encoder + 1]
        return [c for c in sorted(set(cuts)) if c in self.cuts]

    def _refuse_adapters_outside_layers(self) -> None:
        inside = {id(p) for layers in self._layers for layer in layers for p in layer.parameters()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in inside:
                raise BadInput(f"--lora-targets: {name} is outside the transformer layers; adapters belong inside them")

    def _mask(self, batch: Batch) -> dict[str, Tensor]:
        """No mask: nothing is padded, and the model makes its own. Where that asks for values, which meta has not, a ready one."""
        import torch

        if not self._give_mask:
            return {}
        size, tokens = batch.inputs.shape
        one = torch.zeros((1, 1, 1, 1), device="meta", dtype=self._base_dtype())
        return {"attention_mask": one.expand(size, 1, tokens, tokens)}

    def _small_batch(self) -> Batch:
        # Two sequences: with one a batch dimension could not be told from a broadcast one.
        tokens = self._random_tokens((2, 8), 0)
        return Batch(tokens, tokens.clone())

    def _random_tokens(self, shape: tuple[int, int], seed: int) -> Tensor:
        import torch

        if self.device == "meta":
            return torch.empty(shape, dtype=torch.int64, device="meta")
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.built.vocab_size, shape, generator=generator).to(self.device)

    def _base_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.built.spec.dtype)
        return dtype

    def _owner(self, stack: Stack) -> Any:
        return self.model.get_submodule(stack.owner)

    def _position(self, layer: int) -> tuple[int, int]:
        """(stack, place in it from 0) of layer 1..I."""
        first = self._stacks[0].length
        return (0, layer - 1) if layer <= first else (1, layer - first - 1)

    def _place(self, cut: int) -> tuple[int, int]:
        """(stack, first layer in it from 0) with which the server half begins; (1, 0): with the bridge."""
        return self._position(cut + 1)

    def _index_after(self, cut: int) -> int:
        """Index of the first segment after ``cut``."""
        return cut + 1 + (self.encoder_layers is not None and cut > self.encoder_layers)

    def _check_cut(self, cut: int) -> None:
        if cut not in self.cuts:
            raise BadInput(f"cut {cut}: expected 1..{self.layers - 1} ({self.layers} layers)")
