"""What an operator costs on an emulated board: core cycles at full rate, and bytes to and from memory.

The kernels are those that the training step really submits to torch; only their cost is made up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from profiler.hardware.catalog import Board

_LATENCY_CYCLES = 3000.0  # to fill and drain the chip, once a kernel
_OPS_PER_ELEMENT = 6.0  # instructions of an element-wise operator


@dataclass(frozen=True)
class Kernel:
    """One operator call: core cycles at full rate, and bytes to and from memory."""

    cycles: float
    bytes: float


def _attention_flops(query: Any, key: Any, value: Any) -> float:
    batch, heads, rows, depth = query.shape
    return float(2 * batch * heads * rows * key.shape[-2] * (depth + value.shape[-1]))


def _counters() -> dict[Any, Callable[..., float]]:
    """FLOPs of one call, by operator: torch's own table, and the fused attention that meta tensors run, which it lacks."""
    import torch
    from torch.utils.flop_counter import flop_registry

    counters: dict[Any, Callable[..., float]] = dict(flop_registry)
    aten = torch.ops.aten
    counters[aten._scaled_dot_product_flash_attention_for_cpu] = lambda query, key, value, *_, **__: _attention_flops(
        query, key, value
    )
    # Five products in place of the forward's two: the scores are computed again.
    counters[aten._scaled_dot_product_flash_attention_for_cpu_backward] = lambda _grad, query, key, value, *_, **__: (
        2.5 * _attention_flops(query, key, value)
    )
    return counters


_NO_KERNEL = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "detach",
    "_local_scalar",
)


def _runs_no_kernel(func: Any) -> bool:
    """Views and allocations: they return an alias of an input without writing, or memory without values."""
    name = func._schema.name.split("::")[-1]
    if name in _NO_KERNEL or func._schema.name.startswith("prim::"):
        return True
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _tensors(values: Any, found: list[Any], tensor_type: type) -> None:
    for value in values:
        if isinstance(value, tensor_type):
            found.append(value)
        elif isinstance(value, list | tuple):
            _tensors(value, found, tensor_type)


def _memory_bytes(tensor: Any) -> float:
    """Bytes that a kernel touches in one tensor; an expanded dimension is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=False):
        if stride != 0 or size == 0:
            count *= size
    return float(count * tensor.element_size())


def _cost(
    board: Board, counter: Callable[..., float] | None, func: Any, args: Any, kwargs: Any, inputs: Any, outputs: Any
) -> Kernel:
    """Cycles and bytes of one call."""
    cores, rate = board.value("cores"), board.value("flops_per_core_cycle")
    name = func._schema.name
    if name.endswith("::embedding"):  # a gather: reads as many rows as it writes, not the whole table
        transferred = 2.0 * sum(_memory_bytes(t) for t in outputs)
    else:
        transferred = sum(_memory_bytes(t) for t in inputs) + sum(_memory_bytes(t) for t in outputs)
    elements = max((t.numel() for t in (*outputs, *inputs)), default=0)
    if counter is not None:
        result = outputs[0] if len(outputs) == 1 else tuple(outputs)
        flops = float(counter(*args, **kwargs, out_val=result))
        half = outputs[0].element_size() == 2
        chip = board.silicon
        speed = chip.matmul_efficiency
        if half:
            kind = "bf16_speedup" if "bfloat16" in str(outputs[0].dtype) else "fp16_speedup"
            gain = board.value(kind)
            speed = chip.matmul_efficiency if gain <= 1 else chip.half_matmul_efficiency * gain
        cycles = flops / (cores * rate * speed)
    else:
        instructions = transferred / 4 if name.endswith("::embedding") else _OPS_PER_ELEMENT * elements
        cycles = instructions / cores
    return Kernel(cycles + _LATENCY_CYCLES, transferred)


@dataclass(frozen=True)
class _Call:
    """What one call on meta tensors costs (None: no kernel runs), and the shape, stride and type of the tensor that it returns (None: one
    that depends on more than what it was given, or several)."""

    kernel: Kernel | None
    returns: tuple[Any, Any, Any] | None


Calls = dict[Any, _Call]
_MOST_CALLS = 20_000  # an optimizer's figures change from step to step, and are another call each


def _is_pure(func: Any) -> bool:
    """Whether a call writes to no argument and returns no view of one."""
    return not func._schema.is_mutable and all(
        value.alias_info is None for value in (*func._schema.arguments, *func._schema.returns)
    )


def _described(value: Any, tensor_type: type) -> Any:
    """What a call's result on meta tensors depends on, hashable wherever ``value`` is."""
    if isinstance(value, tensor_type):
        tensor: Any = value
        return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
    if isinstance(value, list | tuple):
        return tuple(_described(v, tensor_type) for v in value)
    return type(value), value  # 1, 1.0 and True are equal, and make tensors of other types


def charging(board: Board, calls: Calls, charge: Callable[[Kernel], None]) -> AbstractContextManager[Any]:
    """A dispatch mode that calls ``charge`` for every operator on meta tensors; ``calls`` remembers those already seen.

    torch works out the shapes of meta tensors in Python, which takes longer than many a kernel. A step submits the same calls again
    and again, so what a pure one returns is worked out once.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    counters = _counters()
    composite: dict[Any, bool] = {}

    class Charging(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            packet = func._overloadpacket
            if func not in composite:
                composite[func] = packet not in counters and torch._C._dispatch_has_kernel_for_dispatch_key(
                    func.name(), "CompositeImplicitAutograd"
                )
            if composite[func]:  # reached whole in inference: charge its parts
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            given = (args, tuple(kwargs.items()), torch.get_default_dtype())
            key = (func, _described(given, torch.Tensor))
            call = calls.get(key)
            if call is not None and call.returns is not None:
                if call.kernel is not None:
                    charge(call.kernel)
                shape, stride, dtype = call.returns
                return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            result = func(*args, **kwargs)
            if call is None:
                inputs: list[Any] = []
                outputs: list[Any] = []
                _tensors(args, inputs, torch.Tensor)
                _tensors(kwargs.values(), inputs, torch.Tensor)
                _tensors((result,), outputs, torch.Tensor)
                if not any(t.is_meta for t in (*outputs, *inputs)):
                    return result
                kernel = None
                if not _runs_no_kernel(func):
                    kernel = _cost(board, counters.get(packet), func, args, kwargs, inputs, outputs)
                again = _is_pure(func) and isinstance(result, torch.Tensor) and result.is_meta
                if len(calls) >= _MOST_CALLS:
                    calls.clear()
                call = calls[key] = _Call(kernel, (result.shape, result.stride(), result.dtype) if again else None)
            if call.kernel is not None:
                charge(call.kernel)
            return result

    return Charging()
