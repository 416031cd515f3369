"""Gates in the place of a model's layers: they let one pass of the model's own forward run some layers and not others.

A stack is one row of layers inside a model. During a pass every layer of it is a gate: it passes its input on, runs its layer,
hands in what came from the other half, or stops the pass. ``Gates`` does so for a known stack; ``Watch`` runs the first layers of
a stack that is new, and finds out how they hand tensors on. ``find_stacks`` looks for the stacks of a model by structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from profiler.profile import BadInput

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = "hidden_states"
ENCODER = "encoder_hidden_states"


@dataclass(frozen=True)
class Stack:
    """One row of layers: ``owner`` is the path of the module that loops over its list ``attribute`` of ``length`` layers.

    ``outputs`` is None where a layer returns one tensor; else it returns a tuple, and for each place after the first
    ``outputs`` names the argument under which the next layer gets it (None: nobody does). ``masked``: what is handed on
    contains the mask.
    """

    owner: str
    attribute: str
    length: int
    outputs: tuple[int | str | None, ...] | None = None
    masked: bool = False


@dataclass(frozen=True)
class _Carried:
    """The place of a carried tensor among a layer's arguments."""

    name: str


@dataclass(frozen=True)
class Context:
    """What each half computes for itself, by stack (0: decoder-only or encoder, 1: decoder).

    ``calls[stack][layer]`` holds the arguments with which the model calls that layer, carried tensors left out; ``side[stack]``
    what the first layer of the stack hands on to the others (T5's position bias).
    """

    calls: dict[int, dict[int, tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)
    side: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def arguments(
        self, stack: int, layer: int, carried: Mapping[str, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for one call of that layer (from 0), with what is carried to it in its place."""
        args, kwargs = self.calls[stack][layer]
        filled = tuple(carried[a.name] if isinstance(a, _Carried) else a for a in args)
        return filled, {k: carried[a.name] if isinstance(a, _Carried) else a for k, a in kwargs.items()}


class Stopped(Exception):
    """Ends a pass of the model's own forward before a layer."""

    def __init__(self, hidden: Any) -> None:
        self.hidden = hidden


class Gates:
    """Stand in for the layers of one stack (``index`` of the model's) during one pass of its own forward.

    Layers ``low``..``high - 1`` (from 0) really run. ``entering`` takes the place of the hidden states that layer ``low`` would
    get; the pass ends before layer ``stop``. With a ``context`` the layers' calls are noted there, or reused; ``source`` is the
    encoder's output in a decoder.
    """

    def __init__(
        self,
        stack: Stack,
        layers: list[Any],
        index: int,
        low: int,
        high: int,
        entering: Any,
        stop: int | None,
        context: Context | None,
        source: Any,
    ) -> None:
        self.stack, self.layers, self.index = stack, layers, index
        self.low, self.high, self.entering, self.stop = low, high, entering, stop
        self.source = source
        self.context = context
        self.notes: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] | None = None
        if context is not None and index not in context.calls and stop is not None:
            self.notes = context.calls.setdefault(index, {})

    @contextmanager
    def in_place(self, owner: Any) -> Iterator[None]:
        """Inside, the stack's forward meets the gates; the model is as before afterwards, whatever happens."""
        from torch import nn

        before = owner._modules[self.stack.attribute]
        owner._modules[self.stack.attribute] = nn.ModuleList(
            _gate_class()(self, at, layer) for at, layer in enumerate(self.layers)
        )
        try:
            yield
        finally:
            owner._modules[self.stack.attribute] = before

    def visit(self, at: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the stack's forward gets when it calls layer ``at`` (from 0)."""
        if at == self.stop and self.notes is None:
            raise Stopped(_hidden_of(args, kwargs))
        if self.low <= at < self.high:
            return self.layers[at](*args, **kwargs)
        hidden = _hidden_of(args, kwargs)
        side = self._side(at, args, kwargs)
        if self.notes is not None:
            self.notes[at] = self._note(args, kwargs, side)
        if at == self.stop:
            raise Stopped(hidden)
        if at == self.low - 1:
            hidden = self.entering
        return hidden if self.stack.outputs is None else (hidden, *side)

    def _side(self, at: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """What a layer hands on beside the hidden states: the first makes it, the others pass it on."""
        if not self.stack.outputs:
            return ()
        if at > 0:
            return tuple(None if k is None else _argument(args, kwargs, k) for k in self.stack.outputs)
        known = None if self.context is None else self.context.side.get(self.index)
        if known is None:
            known = _position_biases(self.stack, self.layers[0], args, kwargs)
            if self.context is not None:
                self.context.side[self.index] = known
        return known

    def _note(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], side: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A layer's arguments without the carried tensors; the first layer gets its position bias ready-made."""
        values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for key, value in zip(self.stack.outputs or (), side, strict=True):
            if key is not None:
                values[key] = value
        for key, value in values.items():
            if self.source is not None and value is self.source:
                values[key] = _Carried(ENCODER)
        values[0 if args else HIDDEN] = _Carried(HIDDEN)
        positional = tuple(values[i] for i in range(len(args)))
        return positional, {k: v for k, v in values.items() if isinstance(k, str)}


class Watch(Gates):
    """Gates that run the first layers and note what the model does with their outputs."""

    def __init__(self, stack: Stack, layers: list[Any], index: int) -> None:
        super().__init__(stack, layers, index, 0, 2, None, None, None, None)
        self.seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.results: list[Any] = []

    def visit(self, at: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen.append((args, kwargs))
        if len(self.results) == 1:
            raise Stopped(None)
        self.results.append(self.layers[at](*args, **kwargs))
        return self.results[-1]

    def conclude(self, model: str) -> Stack:
        """The stack with how its layers hand tensors on. Raises BadInput where they do it in a way that cannot be cut."""
        import torch

        where = f"{model}: {self.stack.owner or 'model'}.{self.stack.attribute}"

        def refuse(found: str) -> BadInput:
            return BadInput(
                f"{where}: cannot be cut: expected layers called one after the other, each on the hidden states "
                f"that the one before returned, found {found}"
            )

        if len(self.seen) < 2 or not self.results:
            raise refuse(f"{len(self.seen)} calls of layers")
        result, (args, kwargs) = self.results[0], self.seen[1]
        first = first_of(result)
        if not isinstance(first, torch.Tensor) or first.dim() != 3:
            raise refuse(f"a first layer that returns {type(result).__name__}")
        if _hidden_of(args, kwargs) is not first:
            raise refuse("a second layer that is called on something else")
        arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        if isinstance(result, torch.Tensor):
            return self.stack
        outputs: list[int | str | None] = []
        masked = False
        for extra in result[1:]:
            taken = [k for k, v in arguments.items() if extra is not None and v is extra]
            outputs.append(taken[0] if taken else None)
            if taken:
                if not isinstance(extra, torch.Tensor) or bias_module(self.layers[0]) is None:
                    raise refuse("a first layer that hands on something which the later half cannot compute for itself")
                masked = masked or (isinstance(extra, torch.Tensor) and extra.dim() == 4 and extra.shape[0] == 2)
        return replace(self.stack, outputs=tuple(outputs), masked=masked)


@lru_cache(maxsize=1)
def _gate_class() -> Any:
    """The gate as a module (made on first use: torch is imported late)."""
    from torch import nn

    class Gate(nn.Module):  # type: ignore[misc, unused-ignore]
        """Stands at one layer's place; whatever else the model asks it for is the layer's own."""

        def __init__(self, gates: Gates, at: int, layer: Any) -> None:
            super().__init__()
            # Around nn.Module's registration: the layer is not a part of the gate.
            self.__dict__["_gates"], self.__dict__["_at"], self.__dict__["_layer"] = gates, at, layer

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["_layer"], name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self._gates.visit(self._at, args, kwargs)

    return Gate


def _hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get(HIDDEN)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> Any:
    return args[key] if isinstance(key, int) else kwargs[key]


def first_of(output: Any) -> Any:
    """The hidden states among what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


def bias_module(layer: Any) -> Any:
    """The attention inside a layer that holds the relative position bias of its whole stack (T5), or None."""
    for module in layer.modules():
        if (
            callable(getattr(module, "compute_bias", None))
            and getattr(module, "relative_attention_bias", None) is not None
        ):
            return module
    return None


def _position_biases(stack: Stack, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What T5's first layer hands on, without running it: the position bias [1, heads, tokens, tokens], and in a decoder
    the zeros [1, heads, tokens, encoder tokens] of its cross-attention; with the masks in older releases."""
    import torch

    attention = bias_module(layer)
    hidden = _hidden_of(args, kwargs)
    tokens = hidden.shape[1]
    names = ("hidden_states", "attention_mask", "position_bias", ENCODER, "encoder_attention_mask")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    biases: list[Any] = []
    for place, key in enumerate(stack.outputs or ()):
        if key is None:
            biases.append(None)
            continue
        if place == 0:
            bias = attention.compute_bias(tokens, tokens, device=hidden.device)
            mask = given.get("attention_mask")
        else:
            shape = (1, attention.n_heads, tokens, given[ENCODER].shape[1])
            bias = torch.zeros(shape, device=hidden.device, dtype=hidden.dtype)
            # As the model does it: it decides which attention kernel runs, and so the last bits of the result.
            bias.requires_grad_(attention.training and getattr(attention, "gradient_checkpointing", False))
            mask = given.get("encoder_attention_mask")
        biases.append(bias + mask if stack.masked and mask is not None else bias)
    return tuple(biases)


# --- search -----------------------------------------------------------------------------------------------------------


def find_stacks(model: Any) -> tuple[Stack, ...]:
    """The rows of layers of a model: one, or an encoder's and a decoder's."""
    rows: tuple[Stack, ...]
    if getattr(model.config, "is_encoder_decoder", False):
        rows = (
            _longest_row(model, model.get_encoder(), "encoder"),
            _longest_row(model, model.get_decoder(), "decoder"),
        )
    else:
        rows = (_longest_row(model, model, "model"),)
    if sum(r.length for r in rows) < 2:
        raise BadInput(f"{type(model).__name__}: has fewer than two layers, there is nothing to cut")
    for what, getter in (("token embedding", "get_input_embeddings"), ("output projection", "get_output_embeddings")):
        if getattr(model, getter, lambda: None)() is None:
            raise BadInput(f"{type(model).__name__}: cannot be cut: looked for its {what} ({getter}), found none")
    return rows


def _longest_row(model: Any, root: Any, what: Literal["model", "encoder", "decoder"]) -> Stack:
    from torch import nn

    names = {id(m): path for path, m in model.named_modules()}
    rows: list[tuple[int, str, str]] = []
    seen: list[str] = []

    def look(module: Any) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child):
                kinds = {type(m).__name__ for m in child}
                seen.append(f"{names[id(module)]}.{name} ({len(child)} x {'/'.join(sorted(kinds))})".lstrip("."))
                if len({type(m) for m in child}) == 1 and any(True for _ in child.parameters()):
                    rows.append((len(child), names[id(module)], name))
                    continue  # what repeats inside a layer is part of it
            look(child)

    look(root)
    if not rows:
        raise BadInput(
            f"{type(model).__name__}: cannot be cut: looked in its {what} for a list (ModuleList) of transformer layers of one "
            f"class, found {', '.join(seen[:5]) or 'no ModuleList'}"
        )
    length, owner, attribute = max(rows, key=lambda row: row[0])
    return Stack(owner, attribute, length)
