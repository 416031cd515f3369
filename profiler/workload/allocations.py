"""The life of every tensor in one training step: what memory is predicted from.

One mini-batch runs forward and backward, segment by segment, under a dispatch mode that sees every tensor's storage when it is made
and when it dies. It works alike on the meta device (nothing is allocated) and on a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.profile import BadInput

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from profiler.workload.cuts import Batch, SplitModel

CUDA_BLOCK_BYTES = 512
"""torch's caching allocator rounds up to this."""


@dataclass
class AllocationRecord:
    """Lives of the storages of one step. Times are event numbers: every birth and every death is one event.

    ``phases`` are in the order of time; ``birth_phase`` indexes them; ``death`` is -1 for a storage that outlived the record.
    """

    block_bytes: int = 1
    phases: list[tuple[str, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    deaths: list[int] = field(default_factory=list)
    birth_phases: list[int] = field(default_factory=list)
    death_phases: list[int] = field(default_factory=list)
    events: int = 0
    context_bytes: dict[int, int] = field(default_factory=dict)
    """Masks, position embeddings and biases by stack: made with the stack's embedding, needed by each half with a layer of it."""

    def enter(self, kind: str, segment: int) -> None:
        """A new phase begins: everything from here on belongs to ``kind`` ("forward", ...) of ``segment``."""
        self.phases.append((kind, segment))

    def born(self, size: int) -> int:
        """A storage of ``size`` bytes; the number by which it is known."""
        self.sizes.append(-(-size // self.block_bytes) * self.block_bytes)
        self.births.append(self.events)
        self.deaths.append(-1)
        self.birth_phases.append(len(self.phases) - 1)
        self.death_phases.append(-1)
        self.events += 1
        return len(self.sizes) - 1

    def died(self, number: int) -> None:
        """That storage was freed."""
        if self.deaths[number] < 0:
            self.deaths[number] = self.events
            self.death_phases[number] = len(self.phases) - 1
            self.events += 1

    def timeline(self, segments: Iterable[int]) -> NDArray[np.int64]:
        """Bytes alive after each event [events] if only ``segments`` had run.

        A storage that another segment would have freed is a tensor at the boundary: its half holds it to the end.
        """
        inside = np.isin(np.array([s for _, s in self.phases]), list(segments))
        sizes, births, deaths = (np.array(x, dtype=np.int64) for x in (self.sizes, self.births, self.deaths))
        delta = np.zeros(self.events + 1, dtype=np.int64)
        if len(sizes):
            own = inside[np.array(self.birth_phases)]
            freed = own & (deaths >= 0) & inside[np.array(self.death_phases)]
            np.add.at(delta, births[own], sizes[own])
            np.subtract.at(delta, deaths[freed], sizes[freed])
        return np.cumsum(delta)

    def event_of(self, kind: str, segment: int) -> int:
        """First event of a phase or, where nothing happened in it, of the next one; ``events`` if there is none."""
        for number, phase in enumerate(self.phases):
            if phase == (kind, segment):
                starts = [b for b, p in zip(self.births, self.birth_phases, strict=True) if p >= number]
                starts += [d for d, p in zip(self.deaths, self.death_phases, strict=True) if p >= number]
                return min(starts, default=self.events)
        return self.events


@lru_cache(maxsize=1)
def tracker_class() -> Any:
    """The dispatch mode (made on first use: torch is imported late)."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Tracker(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        """Notes every new storage that an operator returns in ``record``, and when it dies.

        ``seen`` gets every operator with its arguments (a hook for ``library_workspace``).
        """

        def __init__(
            self, record: AllocationRecord, existing: Iterable[torch.Tensor], seen: Callable[..., None] | None = None
        ) -> None:
            super().__init__()
            self.record, self.seen = record, seen
            # Keyed by address. An entry goes when its storage dies, so that an address used again is a new storage.
            self.known: dict[int, weakref.ref[Any]] = {}
            for tensor in existing:
                storage = tensor.untyped_storage()
                self.known.setdefault(storage._cdata, weakref.ref(storage))

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if self.seen is not None:
                self.seen(func, args, kwargs or {}, output)
            for leaf in tree_leaves(output):
                if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                    self._note(leaf.untyped_storage())
            return output

        def _note(self, storage: Any) -> None:
            address = storage._cdata
            known = self.known.get(address)
            if known is not None and known() is not None:
                return
            number = self.record.born(storage.nbytes())
            entry: list[Any] = []

            def dead(_: Any) -> None:
                if self.known.get(address) is entry[0]:
                    del self.known[address]
                self.record.died(number)

            entry.append(weakref.ref(storage, dead))
            self.known[address] = entry[0]

    return Tracker


def record_step(
    split: SplitModel,
    batch: Batch,
    seen: Callable[..., None] | None = None,
    begin: Callable[[AllocationRecord], None] | None = None,
) -> AllocationRecord:
    """Run one forward and backward of the unsplit model, one segment after the other, and record every storage.

    Phases are ("forward", i) and ("backward", i) of segment index i. Adapters' gradients are dropped afterwards; no parameter
    changes. ``seen`` gets every operator (function, args, kwargs, output), ``begin`` the record before the first.
    Raises BadInput where the loss does not depend on any adapter.
    """
    import gc

    import torch
    from torch.utils._pytree import tree_leaves

    record = AllocationRecord(CUDA_BLOCK_BYTES if str(split.device).startswith("cuda") else 1)
    existing = [*split.model.parameters(), *split.model.buffers(), batch.inputs, batch.labels]
    if begin is not None:
        begin(record)
    lowest = [len(split.segments)]

    def backward_of(segment: int) -> None:
        if segment < lowest[0]:
            lowest[0] = segment
            record.enter("backward", segment)

    def hook(segment: int) -> Callable[[Any], None]:
        return lambda _gradient: backward_of(segment)

    for adapter in split.adapters():
        adapter.grad = None
    gc.collect()
    try:
        with tracker_class()(record, existing, seen):
            state = split.start(batch)
            marked: set[int] = set()
            for index in range(len(split.segments)):
                record.enter("forward", index)
                state = split.forward(index, state)
                for tensor in state.carried.values():
                    # A carried tensor that only passes through keeps the hook of the segment that made it.
                    if tensor.requires_grad and tensor.grad_fn is not None and id(tensor.grad_fn) not in marked:
                        marked.add(id(tensor.grad_fn))
                        tensor.register_hook(hook(index))
            tensor = None
            if state.loss is None or not state.loss.requires_grad:
                raise BadInput(f"{split.built.name}: its loss does not depend on any adapter, nothing can be trained")
            backward_of(len(split.segments) - 1)
            state.loss.backward()
            record.enter("end", -1)
            for stack, calls in state.context.calls.items():
                found = tree_leaves((calls, state.context.side.get(stack)))
                storages = [x.untyped_storage() for x in found if isinstance(x, torch.Tensor)]
                record.context_bytes[stack] = sum({st._cdata: st.nbytes() for st in storages}.values())
    finally:
        for adapter in split.adapters():
            adapter.grad = None
    return record
