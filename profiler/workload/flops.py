"""FLOPs of every segment, forward and backward, counted in three independent ways and held against each other.

**One multiply-add is 2 FLOPs.** Only products of matrices are counted (linear layers, attention, convolutions): element by
element work, reductions, norms, softmax, the loss, look-ups and copies are left out, as in the letter and in vendors' figures.
Attention counts the full [tokens, tokens] square, masked or not. A product is counted where its result is needed: a fused kernel
computes the scores again in its backward pass, and the gradient of a key that nobody needs; neither is counted.

Three counters:

- *fvcore* traces the forward pass and counts a multiply-add as 1 (doubled here). It has no backward, and none of the attention
  operators: handlers for those are added.
- *torch's FlopCounterMode* sees the operators that really run, forward and backward. The CPU's fused attention is not in its
  registry: a mapping is added.
- *the formula* follows from the shapes of the linear layers and of attention, and from what needs a gradient:

      forward  = lin + att + lora                    lin = 2 N sum(in x out),  att = 4 B S_q S_k (heads x width of a head)
      backward = L (lin + 2 att + 2 lora) + head     (a frozen layer passes its gradient through and gets none itself)
                 - [first layer: the gradient of the input of q, k, v and of A]       (the embedding is frozen)
                 - [first layer: the gradient of k, where k has no LoRA]

  It is read from the modules as they are (which weights are frozen, which inputs need a gradient), so grouped heads, fused
  projections, gated and plain FFN, cross-attention and any choice of LoRA targets are all the same rule.

A counter that is more than 1 % off the formula is reported, and so is every operator that no counter knows and that might cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from profiler.profile import FlopsBlock, FlopsDisagreement, Provenance, SegmentFlops

if TYPE_CHECKING:
    import torch
    from torch import nn

    from profiler.workload.cuts import Batch, SplitModel, State

TOLERANCE = 0.01
"""Relative difference from the formula above which a counter is reported."""

FlopHandler = Callable[..., int]

_FREE_WORDS = (
    # Reductions, norms, softmax and losses: a few FLOPs an element.
    "sum mean amax amin max min var std var_mean norm linalg_vector_norm cumsum cumprod argmax argmin any all logsumexp softmax "
    "log_softmax layer_norm native_layer_norm rms_norm group_norm native_group_norm batch_norm native_batch_norm "
    "fused_rms_norm nll_loss nll_loss_nd nll_loss2d cross_entropy_loss cross_entropy "
    # Look-ups, copies, creation, shape and order: none.
    "embedding embedding_dense embedding_renorm index index_select index_put index_add gather scatter scatter_add slice select copy "
    "clone contiguous cat stack repeat repeat_interleave tile expand expand_as where masked_fill masked_scatter constant_pad_nd "
    "pad roll flip tril triu arange zeros ones full empty rand randn new_zeros new_ones new_full new_empty zeros_like ones_like "
    "full_like empty_like empty_strided new_empty_strided scalar_tensor lift_fresh lift_fresh_copy to type_as float fill zero detach alias "
    "view reshape _unsafe_view _reshape_alias as_strided transpose permute t numpy_T unsqueeze squeeze flatten unflatten split "
    "split_with_sizes chunk unbind narrow dropout native_dropout feature_dropout sort topk unique one_hot nonzero "
    "_local_scalar_dense item size stride sym_size is_nonzero equal set_ resolve_conj resolve_neg movedim swapaxes "
    "slice_backward select_backward scaled_masked_softmax bernoulli uniform normal exponential _to_copy to_copy"
)
_FREE = frozenset(_FREE_WORDS.split())


def count_flops(
    split: SplitModel,
    batch: Batch,
    *,
    provenance: Provenance,
    handlers: dict[str, FlopHandler] | None = None,
    note: str | None = None,
) -> FlopsBlock:
    """FLOPs of one mini-batch through every segment of ``split``, in the order of its segments.

    ``split`` on the meta device costs no memory and seconds of time. ``handlers`` adds to what the counters know, or replaces it:
    operator name (``"aten::bmm"``) -> ``handler(*shapes of the tensor inputs) -> FLOPs``, for fvcore and torch's counter alike.

    The figures used are torch's counter's; the formula's where an operator of the segment is unknown to that counter.
    Segments whose operators are the same on the same shapes, one by one, are traced by fvcore once.
    """
    extra = handlers or {}
    rows = [_Row() for _ in split.segments]
    traced: dict[tuple[Any, ...], float | None] = {}
    unknown: Counter[str] = Counter()
    inputs: list[State] = []
    outputs: list[State] = []
    leaves: list[dict[str, torch.Tensor]] = []

    with _gradients_kept(split), _warnings_off():
        state = split.start(batch)
        for index, row in enumerate(rows):
            state, leaf = split.cut_state(state)
            inputs.append(state)
            leaves.append(leaf)
            with _formula(split.segments[index].modules, batch) as formula, _operators(extra) as counter:
                state = split.forward(index, state)
            row.formula, row.operators = formula, tuple(counter.sequence)
            row.forward_torch = float(counter.flops)
            row.unknown.update(counter.unknown)
            outputs.append(state)

        for index in reversed(range(len(rows))):
            gradients = {} if index == len(rows) - 1 else _incoming(outputs[index], leaves[index + 1], inputs[index])
            with _operators(extra) as counter:
                split.backward(outputs[index], gradients)
            rows[index].backward_torch = float(counter.flops)
            rows[index].unknown.update(counter.unknown)
            rows[index].recomputed = rows[index].formula.pause()
            outputs[index] = inputs[index]  # its graph is gone

        for index, row in enumerate(rows):
            if row.operators not in traced:
                traced[row.operators], missed = _fvcore(split, index, inputs[index], extra)
                unknown.update(missed)
            row.forward_fvcore = traced[row.operators]

    for row in rows:
        unknown.update(row.unknown)
    block_rows = [row.result() for row in rows]
    names = [segment.name for segment in split.segments]
    return FlopsBlock(
        provenance=provenance,
        segments=block_rows,
        disagreements=[d for name, row in zip(names, block_rows, strict=True) for d in disagreements(name, row)],
        uncounted_operators=dict(sorted(unknown.items())),
        note=note,
    )


def disagreements(segment: str, row: SegmentFlops) -> list[FlopsDisagreement]:
    """The counters of one segment that are more than ``TOLERANCE`` off the formula (relative to it)."""
    found = []
    for direction, counter in (("forward", "fvcore"), ("forward", "torch"), ("backward", "torch")):
        counted = getattr(row, f"{direction}_{counter}_flops")
        formula = getattr(row, f"{direction}_formula_flops")
        if counted is None or formula is None or counted == formula:
            continue
        relative = (counted - formula) / formula if formula else 1.0
        if abs(relative) > TOLERANCE:
            found.append(
                FlopsDisagreement(
                    segment=segment,
                    direction="forward" if direction == "forward" else "backward",
                    counter=counter,
                    counted_flops=counted,
                    formula_flops=formula,
                    relative=relative,
                )
            )
    return found


@dataclass
class _Row:
    """What was counted for one segment."""

    forward_fvcore: float | None = None
    forward_torch: float = 0.0
    backward_torch: float = 0.0
    formula: Any = None
    recomputed: float = 0.0
    operators: tuple[Any, ...] = ()
    unknown: Counter[str] = field(default_factory=Counter)

    def result(self) -> SegmentFlops:
        forward, backward = self.formula.forward(), self.formula.backward()
        if backward is not None:
            backward += self.recomputed
        trusted = not self.unknown or forward is None or backward is None
        return SegmentFlops(
            forward_flops=self.forward_torch if trusted else forward,
            backward_flops=self.backward_torch if trusted else backward,
            forward_fvcore_flops=self.forward_fvcore,
            forward_torch_flops=self.forward_torch,
            backward_torch_flops=self.backward_torch,
            forward_formula_flops=forward,
            backward_formula_flops=backward,
        )


def _incoming(output: State, leaves: dict[str, torch.Tensor], given: State) -> dict[str, torch.Tensor]:
    """Gradients with which the backward pass of a segment begins: any values, the shapes count.

    A carried tensor that only passed through the segment starts nothing in it.
    """
    import torch

    return {
        name: torch.empty_like(tensor)
        for name, tensor in output.carried.items()
        if tensor.requires_grad and name in leaves and tensor is not given.carried.get(name)
    }


@contextmanager
def _gradients_kept(split: SplitModel) -> Iterator[None]:
    """Whatever gradients the adapters had before are there again afterwards."""
    adapters = split.adapters()
    before = [p.grad for p in adapters]
    try:
        for p in adapters:
            p.grad = None
        yield
    finally:
        for p, gradient in zip(adapters, before, strict=True):
            p.grad = gradient


@contextmanager
def _warnings_off() -> Iterator[None]:
    import logging
    import warnings

    level = logging.getLogger("fvcore").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("fvcore").setLevel(level)


# --- the formula ------------------------------------------------------------------------------------------------------


@dataclass
class _Linear:
    """One call of a linear layer: ``rows`` tokens, and what its backward pass has to give."""

    rows: int
    inside: int
    outside: int
    input_needs: bool
    weight_needs: bool
    output_needs: bool

    @property
    def product(self) -> float:
        return 2.0 * self.rows * self.inside * self.outside

    def forward(self) -> float:
        return self.product

    def backward(self) -> float:
        return self.product * (self.input_needs + self.weight_needs) if self.output_needs else 0.0


@dataclass
class _Attention:
    """One call of an attention block. ``projections``: its linear layers' outputs in the order of the calls, as
    (tokens, width, needs a gradient); the last is the output projection, whose input width is heads x width of a head."""

    sequences: int
    width: int = 0
    projections: list[tuple[int, int, bool]] = field(default_factory=list)

    def known(self) -> bool:
        """Queries, keys and values can be told apart: one fused projection, queries and a fused rest, or three."""
        return self.width > 0 and 1 <= len(self.projections) - 1 <= 3

    @property
    def product(self) -> float:
        """FLOPs of queries x keys; scores x values are as many."""
        query, *others = self.projections[:-1]
        keys = others[0] if others else query
        return 2.0 * query[0] * (keys[0] / self.sequences) * self.width

    def forward(self) -> float:
        return 2 * self.product

    def backward(self) -> float:
        needs = [n for _, _, n in self.projections[:-1]]
        query, key, value = needs[0], needs[min(1, len(needs) - 1)], needs[-1]
        scores = query or key
        return self.product * (value + scores + query + key)


class _Formula:
    """Collects the calls of linear layers and attention blocks of one segment through hooks."""

    def __init__(self, batch: Batch) -> None:
        self.sequences = int(batch.inputs.shape[0])
        self.calls: list[_Linear | _Attention] = []
        self.open: list[_Attention] = []
        self.complete = True
        self.until = -1  # calls after this one are a repetition (gradient checkpointing)
        self.handles: list[Any] = []

    def watch(self, modules: tuple[nn.Module, ...]) -> None:
        """Hook every linear layer and every attention block under ``modules``."""
        seen: set[int] = set()
        for top in modules:
            for module in top.modules():
                if id(module) in seen:
                    continue
                seen.add(id(module))
                if _is_linear(module):
                    self.handles.append(module.register_forward_hook(self._linear))
                if _is_attention(module):
                    self.handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
                    self.handles.append(module.register_forward_hook(self._leave))
                    for child in module.children():
                        if any(_is_linear(m) for m in child.modules()):
                            self.handles.append(child.register_forward_hook(self._projection))

    def unwatch(self) -> None:
        """Take the hooks away again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _linear(self, module: Any, args: Any, output: Any) -> None:
        inside, outside = _features(module)
        given = args[0]
        self.calls.append(
            _Linear(
                rows=given.numel() // inside,
                inside=inside,
                outside=outside,
                input_needs=bool(given.requires_grad),
                weight_needs=bool(module.weight.requires_grad),
                output_needs=bool(output.requires_grad),
            )
        )

    def _enter(self, _module: Any, _args: Any) -> None:
        self.open.append(_Attention(self.sequences))

    def _projection(self, _module: Any, args: Any, output: Any) -> None:
        if self.open:
            attention = self.open[-1]
            rows = output.numel() // output.shape[-1]
            attention.projections.append((rows, int(output.shape[-1]), bool(output.requires_grad)))
            attention.width = int(args[0].shape[-1])

    def _leave(self, _module: Any, _args: Any, _output: Any) -> None:
        attention = self.open.pop()
        if attention.known():
            self.calls.append(attention)
        else:
            self.complete = False

    def done(self) -> None:
        """The forward pass is over."""
        self.until = len(self.calls)

    def pause(self) -> float:
        """FLOPs of the calls since the forward pass ended: what gradient checkpointing ran again. Takes the hooks away."""
        self.unwatch()
        self.open.clear()
        return sum(call.forward() for call in self.calls[self.until :])

    def forward(self) -> float | None:
        """FLOPs forward; None where an attention block was not understood."""
        return sum((c.forward() for c in self.calls[: self.until]), 0.0) if self.complete else None

    def backward(self) -> float | None:
        """FLOPs backward; None as for ``forward``."""
        return sum((c.backward() for c in self.calls[: self.until]), 0.0) if self.complete else None


def _is_linear(module: Any) -> bool:
    """A linear layer: a matrix of weights and nothing else (``nn.Linear``, and Conv1D with its weight transposed)."""
    weight = getattr(module, "_parameters", {}).get("weight")
    return weight is not None and weight.dim() == 2 and (hasattr(module, "in_features") or hasattr(module, "nf"))


def _is_attention(module: Any) -> bool:
    """An attention block: the innermost module so called that has linear layers of its own (transformers' convention)."""
    name = type(module).__name__.lower()
    own = [c for c in module.children() if any(_is_linear(m) for m in c.modules())]
    inner = [m for m in module.modules() if m is not module and "attention" in type(m).__name__.lower()]
    nested = any(any(_is_linear(x) for x in m.modules()) for m in inner)
    return "attention" in name and len(own) >= 2 and not nested


def _features(linear: Any) -> tuple[int, int]:
    """(in, out) features of a linear layer or Conv1D."""
    if hasattr(linear, "in_features"):
        return int(linear.in_features), int(linear.out_features)
    return int(linear.weight.shape[0]), int(linear.weight.shape[1])


@contextmanager
def _formula(modules: tuple[nn.Module, ...], batch: Batch) -> Iterator[_Formula]:
    formula = _Formula(batch)
    formula.watch(modules)
    try:
        yield formula
    finally:
        formula.done()  # the hooks stay for a forward pass that is run again in the backward pass, see _Formula.pause


# --- torch's counter --------------------------------------------------------------------------------------------------


@contextmanager
def _operators(extra: dict[str, FlopHandler]) -> Iterator[Any]:
    """torch's FlopCounterMode around a piece of work; what it gives has ``flops``, ``unknown`` and ``sequence``."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    mapping: dict[Any, Any] = dict(_attention_mapping())
    for name, handler in extra.items():
        namespace, _, operator = name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            mapping[packet] = _by_shapes(handler)
    counter = FlopCounterMode(display=False, custom_mapping=mapping)

    class Result(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        """Under the counter: sees what is left after decomposition, in order."""

        def __init__(self) -> None:
            super().__init__()
            self.flops = 0
            self.unknown: Counter[str] = Counter()
            self.sequence: list[Any] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.sequence.append((str(func), *(_shape(a) for a in args)))
            if func._overloadpacket not in counter.flop_registry and not _costs_nothing(func):
                self.unknown[str(func._overloadpacket).replace("aten.", "aten::")] += 1
            return func(*args, **(kwargs or {}))

    result = Result()
    with result, counter:
        yield result
    result.flops = counter.get_total_flops()


def _shape(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(_shape(v) for v in value)
    return value if isinstance(value, (bool, int, float)) else str(value)


def _by_shapes(handler: FlopHandler) -> Any:
    """A handler over shapes as torch's counter calls it."""
    import torch

    def counted(*args: Any, out_val: Any = None, **_kwargs: Any) -> int:
        return int(handler(*(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))))

    counted._get_raw = True  # type: ignore[attr-defined]
    return counted


def _attention_mapping() -> dict[Any, Any]:
    """Fused attention, forward and backward, by the rule of this module: no recomputation, nothing that nobody needs."""
    import torch

    aten = torch.ops.aten

    def products(query: Any, key: Any) -> int:
        batch, heads, rows, width = query.shape
        return int(2 * batch * heads * rows * key.shape[2] * width)

    def forward(query: Any, key: Any, value: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
        return 2 * products(query, key)

    def backward(_g: Any, query: Any, key: Any, value: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
        # The saved tensors still tell who needs a gradient.
        needs = (query.requires_grad, key.requires_grad, value.requires_grad)
        return products(query, key) * (sum(needs) + (needs[0] or needs[1]))

    forward._get_raw = backward._get_raw = True  # type: ignore[attr-defined]
    mapping: dict[Any, Any] = {}
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        for suffix, handler in (("", forward), ("_backward", backward)):
            packet = getattr(aten, f"_scaled_dot_product_{kind}{suffix}", None)
            if packet is not None:
                mapping[packet] = handler
    return mapping


def _costs_nothing(func: Any) -> bool:
    """An operator that no matrix product hides in: element by element, a view, or one of the listed others."""
    import torch

    if func.is_view or torch.Tag.pointwise in func.tags:
        return True
    name = func._schema.name.partition("::")[2]
    return _free_name(name)


def _free_name(name: str) -> bool:
    bare = name.strip("_")
    for end in ("_backward_data", "_backward", "_forward", "_functional"):
        bare = bare.removesuffix(end)
    return name in _FREE or bare in _FREE or name.rstrip("_") in _FREE


# --- fvcore -----------------------------------------------------------------------------------------------------------


def _fvcore(
    split: SplitModel, index: int, state: State, extra: dict[str, FlopHandler]
) -> tuple[float | None, Counter[str]]:
    """(FLOPs forward of a segment by fvcore, operators that it does not know). None where the segment cannot be traced."""
    import torch
    from fvcore.nn import FlopCountAnalysis
    from torch import nn

    names = list(state.carried)

    class Traced(nn.Module):  # type: ignore[misc, unused-ignore]
        """The segment as a module with tensors in and out; its parameters are the trace's own inputs, not constants."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(split.segments[index].modules)

        def forward(self, *tensors: Any) -> Any:
            carried = dict(zip(names, tensors, strict=False)) if names else {}
            after = split.forward(index, replace(state, carried=carried))
            return (after.loss,) if after.loss is not None else tuple(after.carried.values())

    given = tuple(state.carried[n].detach() for n in names) or (state.batch.inputs,)
    analysis = FlopCountAnalysis(Traced(), given)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_fvcore_handles(extra))
    try:
        with torch.no_grad():
            total = 2.0 * analysis.total()
    except (RuntimeError, TypeError, ValueError):
        return None, Counter({f"fvcore could not trace {split.segments[index].name}": 1})
    missed = Counter({k: n for k, n in analysis.unsupported_ops().items() if not _free_in_trace(k)})
    return total, missed


def _fvcore_handles(extra: dict[str, FlopHandler]) -> dict[str, Any]:
    """What fvcore misses, and norms taken out, which it counts element by element."""
    from fvcore.nn.jit_handles import get_shape

    def attention(inputs: list[Any], _outputs: list[Any]) -> float:
        query, key = get_shape(inputs[0]), get_shape(inputs[1])
        if query is None or key is None:
            raise ValueError("attention on tensors of unknown shape")
        return float(2 * prod(query) * key[-2])

    def baddbmm(inputs: list[Any], _outputs: list[Any]) -> float:
        left, right = get_shape(inputs[1]), get_shape(inputs[2])
        if left is None or right is None:
            raise ValueError("baddbmm on tensors of unknown shape")
        return float(prod(left) * right[-1])

    def by_shapes(handler: FlopHandler) -> Any:
        def counted(inputs: list[Any], _outputs: list[Any]) -> float:
            shapes = [tuple(s) for s in map(get_shape, inputs) if s is not None]
            return handler(*shapes) / 2.0  # fvcore's convention

        return counted

    handles: dict[str, Any] = dict.fromkeys(
        (
            "aten::scaled_dot_product_attention",
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention",
            "aten::_scaled_dot_product_efficient_attention",
            "aten::_scaled_dot_product_cudnn_attention",
        ),
        attention,
    )
    handles["aten::baddbmm"] = baddbmm
    # Not None: that would leave fvcore's own handler in its place.
    handles.update(dict.fromkeys(("aten::layer_norm", "aten::group_norm", "aten::batch_norm"), lambda *_: 0.0))
    handles.update({name: by_shapes(handler) for name, handler in extra.items()})
    return handles


def _free_in_trace(kind: str) -> bool:
    """An operator of a trace that costs nothing; names without an overload, so any overload's tag will do."""
    import torch

    namespace, _, name = kind.partition("::")
    if namespace != "aten":
        return namespace == "prim"
    packet = getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    return _free_name(name) or any(torch.Tag.pointwise in o.tags or o.is_view for o in overloads)
