"""The graph of operators of a model: what each computes, what it hands on, which hold adapters. From shapes alone, no weights.

Each segment is traced by torch.fx on the meta device as it runs between its neighbours (``cuts.SplitModel``), so the graph knows the
segment of every operator, and what each half computes for itself (masks, position embeddings, T5's position bias) is a constant in it.
torch.export was tried first and refuses the segments: it takes no forward pass whose layers are exchanged, and no tensors made
on meta beforehand.

Nodes are torch's own operators. Views, transposes and parts of a tensor belong to the tensor that they look at; integers (token ids) cross
nowhere. A tensor has a gradient to send back if anything before it is trained. FLOPs follow the rule of ``flops``: products only, and those that
the backward pass needs.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from profiler.profile import BadInput, Operator, OperatorsBlock, OperatorTensor, Provenance

if TYPE_CHECKING:
    from profiler.workload.cuts import Batch, SplitModel, State

INPUTS, LABELS = "inputs", "labels"
"""Names of the token ids among what a segment is given."""


def extract(split: SplitModel, *, provenance: Provenance, note: str | None = None) -> OperatorsBlock:
    """The operators of ``split``, which stands on the meta device, in the order in which they run.

    Raises BadInput where a segment cannot be traced.
    """
    batch = split.batch()
    state = split.start(batch)
    rows: list[Operator] = []
    tensors: list[_Tensor] = []
    arriving: dict[str, _Tensor | None] = {}
    traced: dict[tuple[Any, ...], _Traced] = {}
    for index, segment in enumerate(split.segments):
        after = split.forward(index, state)  # and notes the context, which the trace then finds ready
        key = _alike(split, index, state)
        if key not in traced:
            traced[key] = _trace(split, index, state)
        arriving = _append(traced[key], segment.name, index, arriving, rows, tensors)
        state = after
    used = [tensor for tensor in tensors if tensor.consumers]
    return OperatorsBlock(
        provenance=provenance,
        note=note,
        operators=rows,
        tensors=[
            OperatorTensor(
                producer=tensor.producer,
                consumers=sorted(set(tensor.consumers)),
                activation_bytes=tensor.bytes,
                gradient_bytes=tensor.bytes if tensor.needs_gradient else 0,
            )
            for tensor in used
        ],
    )


@dataclass
class _Tensor:
    """A tensor of the whole graph: indices of operators."""

    producer: int
    bytes: int
    needs_gradient: bool
    consumers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """One operator of a traced segment. ``reads`` are names of tensors; ``factors`` those of a product's two sides, or of attention's
    queries, keys and values (None: a frozen weight, True: a trained one)."""

    name: str
    makes: tuple[tuple[str, int], ...]
    reads: tuple[str, ...]
    trained: bool
    flops: float
    factors: tuple[str | bool, ...]
    weight_bytes: int
    adapter_bytes: int


@dataclass(frozen=True)
class _Traced:
    """A segment's live operators in order, and which tensor (or what arrived) is carried on under each name."""

    steps: tuple[_Step, ...]
    carried: dict[str, str]


def _append(
    trace: _Traced,
    segment: str,
    index: int,
    arriving: dict[str, _Tensor | None],
    rows: list[Operator],
    tensors: list[_Tensor],
) -> dict[str, _Tensor | None]:
    """Add one segment's operators to the whole graph; returns what is carried on."""
    known: dict[str, _Tensor | None] = dict(arriving)
    for step in trace.steps:
        here = len(rows)
        needs = step.trained
        for name in step.reads:
            tensor = known.get(name)
            if tensor is not None:
                tensor.consumers.append(here)
                needs = needs or tensor.needs_gradient
        sides = [bool(f) if not isinstance(f, str) else _trained(known.get(f)) for f in step.factors]
        rows.append(
            Operator(
                name=f"{segment}.{step.name}",
                segment=index,
                forward_flops=step.flops,
                backward_flops=_backward(step.flops, sides),
                weight_bytes=step.weight_bytes,
                adapter_bytes=step.adapter_bytes,
            )
        )
        for name, size in step.makes:
            known[name] = _Tensor(here, size, needs)
            tensors.append(known[name])  # type: ignore[arg-type]
    return {name: known.get(source) for name, source in trace.carried.items()}


def _trained(tensor: _Tensor | None) -> bool:
    return tensor is not None and tensor.needs_gradient


def _backward(forward: float, sides: list[bool]) -> float:
    """A product's backward has one product for each side that needs a gradient; attention's two products share the scores."""
    if len(sides) == 3:
        query, key, _ = sides
        return forward / 2 * (sum(sides) + (query or key))
    return forward * sum(sides)


# --------------------------------------------------------------------------------------------------------------- tracing


def _alike(split: SplitModel, index: int, state: State) -> tuple[Any, ...]:
    """Segments with equal keys have equal traces: layers of one class with parameters of the same names, shapes and kinds."""
    segment = split.segments[index]
    if segment.kind != "layer":
        return (index,)
    parameters = tuple(
        (name, tuple(p.shape), p.dtype, p.requires_grad)
        for module in segment.modules
        for name, p in module.named_parameters()
    )
    kinds = tuple(type(module).__name__ for module in segment.modules)
    # An encoder's layer and a decoder's may be of one class.
    return kinds, parameters, tuple(state.carried), segment.layer == split.encoder_layers


def _trace(split: SplitModel, index: int, state: State) -> _Traced:
    from torch.fx.experimental.proxy_tensor import make_fx

    from profiler.workload.cuts import Batch

    names = list(state.carried)
    result: list[str] = []

    def run(*given: Any) -> tuple[Any, ...]:
        inputs, labels, *carried = given
        after = split.forward(
            index, replace(state, batch=Batch(inputs, labels), carried=dict(zip(names, carried, strict=True)))
        )
        result[:] = list(after.carried)
        return (after.loss,) if after.loss is not None else tuple(after.carried.values())

    batch: Batch = state.batch
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in state.carried.values()]
    try:
        module = make_fx(run, tracing_mode="real")(batch.inputs, batch.labels, *leaves)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, LookupError) as error:
        line = " ".join(str(error).split())[:200]
        raise BadInput(
            f"--measure graph: {split.segments[index].name} of {split.built.architecture} cannot be traced: "
            f"{type(error).__name__}: {line}"
        ) from error
    return _Reader(split, index, module, [INPUTS, LABELS, *names]).read(result)


class _Reader:
    """From a traced module to the steps that lead from what arrives to what is carried on."""

    def __init__(self, split: SplitModel, index: int, module: Any, given: list[str]) -> None:
        self.module, self.nodes = module, list(module.graph.nodes)
        self.names = _parameter_names(split, index)
        self.source: dict[Any, str | None] = {}
        """The tensor that a node's value is or looks at; None: a constant, or no floating figure."""
        self.parameter: dict[Any, Any] = {}
        """The parameter that a node's value is or looks at."""
        self.steps: dict[str, _Step] = {}
        self.given = given

    def read(self, carried: list[str]) -> _Traced:
        """``carried``: names of the tensors that the segment returns; none for the head, which returns the loss."""
        order: list[_Step] = []
        places = iter(self.given)
        for node in self.nodes:
            if node.op == "placeholder":
                name = next(places)
                self.source[node] = name
            elif node.op == "get_attr":
                self.source[node] = None
                value = getattr(self.module, node.target)
                if hasattr(value, "requires_grad") and id(value) in self.names:
                    self.parameter[node] = value
            elif node.op == "call_function":
                step = self._step(node)
                if step is not None:
                    order.append(step)
        (output,) = (node for node in self.nodes if node.op == "output")
        ends = [self.source.get(node) for node in output.args[0]]
        wanted = {end for end in ends if end is not None}
        live: list[_Step] = []
        for step in reversed(order):
            if any(name in wanted for name, _ in step.makes):
                live.append(step)
                wanted.update(step.reads)
        kept = {name: end for name, end in zip(carried, ends, strict=False) if end is not None}
        return _Traced(tuple(_renamed(live[::-1])), kept)

    def _step(self, node: Any) -> _Step | None:
        """The operator of a node; None where it only looks at a tensor, or computes what each half has for itself."""
        if _looks(node):
            first = node.args[0]
            self.source[node] = self.source.get(first)
            if first in self.parameter:
                self.parameter[node] = self.parameter[first]
            if node.target is python_operator.getitem and first.name in self.steps:
                size = _bytes(node.meta.get("val"))
                self.source[node] = node.name if size else None
                if size:
                    step = self.steps[first.name]
                    object.__setattr__(step, "makes", (*step.makes, (node.name, size)))
            return None
        reads = tuple(dict.fromkeys(s for n in node.all_input_nodes if (s := self.source.get(n)) is not None))
        value = node.meta.get("val")
        several = isinstance(value, (tuple, list))
        size = _bytes(value)
        if not reads or not (size or several):
            # A constant of the segment, or integers: token ids are known on both sides.
            self.source[node] = next((name for name in reads if name in (INPUTS, LABELS)), None)
            return None
        used = {id(p): p for n in node.all_input_nodes if (p := self.parameter.get(n)) is not None}.values()
        step = _Step(
            name=self._named(node, used),
            makes=() if several else ((node.name, size),),
            reads=tuple(name for name in reads if name not in (INPUTS, LABELS)),
            trained=any(p.requires_grad for p in used),
            flops=_flops(node),
            factors=tuple(self._factor(n) for n in _sides(node)),
            weight_bytes=sum(p.numel() * p.element_size() for p in used if not p.requires_grad),
            adapter_bytes=sum(p.numel() * p.element_size() for p in used if p.requires_grad),
        )
        self.source[node] = node.name
        self.steps[node.name] = step
        return step

    def _factor(self, node: Any) -> str | bool:
        if node in self.parameter:
            return bool(self.parameter[node].requires_grad)
        return self.source.get(node) or False

    def _named(self, node: Any, used: Any) -> str:
        """The module whose weight it uses, else the operator's own name."""
        for parameter in used:
            return self.names[id(parameter)]
        return str(node.target).split(".")[1].strip("_") if "." in str(node.target) else str(node.name)


def _renamed(steps: list[_Step]) -> Iterator[_Step]:
    """Each name once: the second of a name gets a number."""
    seen: dict[str, int] = {}
    for step in steps:
        seen[step.name] = seen.get(step.name, 0) + 1
        yield step if seen[step.name] == 1 else replace(step, name=f"{step.name}.{seen[step.name]}")


def _parameter_names(split: SplitModel, index: int) -> dict[int, str]:
    """Names of all parameters by identity: below their layer where they are this segment's, else from the model's root."""
    import re

    def short(path: str) -> str:
        path = re.sub(r"\.(weight|bias|default)(?=\.|$)", "", path)
        return path.replace(".base_layer", "")

    segment = split.segments[index]
    names = {id(p): short(path) for path, p in split.model.named_parameters(remove_duplicate=False)}
    paths = {id(module): path for path, module in split.model.named_modules(remove_duplicate=False)}
    for at, module in enumerate(segment.modules):
        above = "" if segment.kind == "layer" and at == 0 else paths[id(module)] + "."
        names |= {id(p): short(above + path) for path, p in module.named_parameters()}
    return names


def _looks(node: Any) -> bool:
    """Whether a node's value is its first argument seen otherwise: a view, a part, the same without gradients."""
    if node.target is python_operator.getitem:
        return True
    name = str(node.target).split(".")[1] if "." in str(node.target) else ""
    return bool(getattr(node.target, "is_view", False)) or name in ("_unsafe_view", "detach", "alias", "lift_fresh")


def _bytes(value: Any) -> int:
    """Bytes of a floating tensor, 0 for anything else."""
    if not hasattr(value, "is_floating_point") or not value.is_floating_point():
        return 0
    return int(value.numel() * value.element_size())


def _sides(node: Any) -> tuple[Any, ...]:
    """The two factors of a product, or queries, keys and values."""
    name = str(node.target).split(".")[1]
    if name.startswith("_scaled_dot_product"):
        return tuple(node.args[:3])
    first = {"mm": 0, "bmm": 0, "convolution": 0, "addmm": 1, "baddbmm": 1}.get(name)
    return () if first is None else tuple(node.args[first : first + 2])


def _flops(node: Any) -> float:
    """Forward FLOPs of a product, one multiply-add being 2; 0 for everything else."""
    from math import prod

    from torch.utils.flop_counter import flop_registry

    sides = [side.meta["val"] for side in _sides(node)]
    if len(sides) == 3:
        return 4.0 * prod(sides[0].shape) * sides[1].shape[-2]
    packet = getattr(node.target, "overloadpacket", None)
    counter: Callable[..., int] | None = flop_registry.get(packet)
    if counter is None or not sides:
        return 0.0
    arguments = [a.meta["val"] if hasattr(a, "meta") else a for a in node.args]
    return float(counter(*arguments, out_val=node.meta["val"]))
