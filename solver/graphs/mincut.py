"""The cheapest split of any model graph, as a minimum s-t cut, and the joint optimum over the server's clocks.

A vertex is an operator (or a layer), a tensor has one producer and any number of consumers. The device's part must be closed: whatever
an operator on the device reads was made on the device. With N mini-batches a round, rates R_D up and R_S down, and phi the compression:

    s -> v          the server's cost of v    N t_S(v) x  +  N t_S(v) P(f) y            paid if v is on the server
    v -> t          the device's cost of v   (N t_D(v) + k_v (1/R_D + 1/R_S)) x         paid if v is on the device
    v -> v'         N phi (a_v/R_D + g_v/R_S) x, once a tensor; v' -> each consumer: infinite
    u -> v          infinite for every tensor from v to u: no device operator after a server operator
    s -> input, loss -> t: infinite

x and y are the factors of delay and energy in what is minimised (w/Delta_D and (1-w)/Delta_E, or a price in J/s beside 1); a server that
draws p_0 watts while it waits adds p_0 y to x on the device and on the link. The cost is a sum over operators and crossing tensors for
each clock, so the minimum cut is exact, and so is the least over all clocks. A chain of layers is the graph in which every closed set is a prefix.

Two savings leave the answer as it is: only the difference of a vertex's two costs becomes an arc, and pinned vertices are s or t
themselves. The flow comes from a library: ortools where it is installed (int64), else scipy, whose int32 capacities hold nine digits,
so that it is called again on what is left of the capacities until all the digits are there. Both give the same cut: of equal ones the
smallest device part. V vertices, T tensors, E (tensor, consumer) pairs, K clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Longs = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Engine = Literal["ortools", "scipy"]

CAPACITY_BITS = 59
"""The capacities that leave s add up to at most 2^59, so that no sum of them leaves int64."""
INT32_BITS = 29
"""The same for one call of scipy, which wraps silently above 2^31: an arc and its reverse together stay below."""


@dataclass(frozen=True)
class Network:
    """Who reads what. ``producer`` (T,); ``edge_tensor`` and ``edge_node`` (E,) say which vertex reads which tensor.

    ``to_device`` and ``to_server`` (V,) are pinned. ``layer`` (V,) numbers layers where there are any: vertices with ``layer`` <= c are
    the device's at the layer boundary c. The graph must have no cycle and no pinned contradiction (`graph.Graph` checks both).
    """

    producer: Ints
    edge_tensor: Ints
    edge_node: Ints
    to_device: Mask
    to_server: Mask
    layer: Ints | None = None

    def __len__(self) -> int:
        return len(self.to_device)

    @cached_property
    def order(self) -> Ints:
        """Vertices so that every producer stands before its consumers. Raises ValueError where the graph has a cycle."""
        before = np.zeros(len(self), dtype=np.intp)
        np.add.at(before, self.edge_node, 1)
        reads: list[list[int]] = [[] for _ in range(len(self))]
        for tensor, node in zip(self.edge_tensor.tolist(), self.edge_node.tolist(), strict=True):
            reads[int(self.producer[tensor])].append(node)
        ready = [int(v) for v in np.flatnonzero(before == 0)[::-1]]
        order = []
        while ready:
            v = ready.pop()
            order.append(v)
            for u in reads[v]:
                before[u] -= 1
                if before[u] == 0:
                    ready.append(u)
        if len(order) < len(self):
            raise ValueError(int(np.flatnonzero(before)[0]))
        return np.array(order, dtype=np.intp)

    @cached_property
    def links(self) -> tuple[Ints, Ints]:
        """(producer, consumer) of every edge, each pair once."""
        pairs = np.unique(np.column_stack([self.producer[self.edge_tensor], self.edge_node]), axis=0).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    @cached_property
    def smallest(self) -> Mask:
        """(V,) the device's part that no split can do without: what is pinned there, and all it rests on."""
        return self._grown(self.to_device, forwards=False)

    @cached_property
    def largest(self) -> Mask:
        """(V,) the largest device part: all but what is pinned to the server and what rests on that."""
        return ~self._grown(self.to_server, forwards=True)

    def _grown(self, start: Mask, forwards: bool) -> Mask:
        tails, heads = self.links
        if forwards:
            tails, heads = heads, tails
        grown: Mask = start.copy()
        while True:  # as many turns as the longest path of new vertices
            more = np.zeros(len(self), dtype=bool)
            more[tails[grown[heads]]] = True
            if not (more & ~grown).any():
                return grown
            grown |= more

    def closed(self, on_device: Mask) -> bool:
        """Whether no device operator reads what the server made, and everything pinned is where it must be."""
        tails, heads = self.links
        ordered = not (on_device[heads] & ~on_device[tails]).any()
        return bool(ordered and not (self.to_device & ~on_device).any() and not (self.to_server & on_device).any())

    def crossing(self, on_device: Mask) -> Mask:
        """(T,) tensors made on the device and read on the server; (..., T) for (..., V)."""
        late = np.zeros((*on_device.shape[:-1], len(self.producer)), dtype=np.intp)
        where: Any = (..., self.edge_tensor)
        np.add.at(late, where, ~on_device[..., self.edge_node])
        crossing: Mask = (late > 0) & on_device[..., self.producer]
        return crossing

    def boundaries(self) -> Mask:
        """(B, V) device parts at the layer boundaries, ascending; without layers the smallest and the largest part."""
        found = (
            [] if self.layer is None else [row for c in np.unique(self.layer) if self.closed(row := self.layer <= c)]
        )
        rows = np.unique(np.array(found or [self.smallest, self.largest]), axis=0)
        return rows[np.argsort(rows.sum(1), kind="stable")]


@dataclass(frozen=True)
class Cut:
    """A device part (V,), what it costs in floats, and how far below that the true minimum may be, from rounding to integers."""

    on_device: Mask
    cost: float
    gap: float


def cost_of(network: Network, on_device: Mask, device: Floats, server: Floats, tensor: Floats) -> float:
    """What a device part costs: (V,) on the device, (V,) on the server, (T,) where a tensor crosses."""
    return float(device[on_device].sum() + server[~on_device].sum() + tensor[network.crossing(on_device)].sum())


def minimum(network: Network, device: Floats, server: Floats, tensor: Floats, engine: Engine | None = None) -> Cut:
    """The cheapest closed device part, the smallest of equal ones.

    ``device`` and ``server`` (V,) may be of any sign; ``tensor`` (T,) must not be negative. Raises ArithmeticError where integer and
    float cost differ by more than rounding allows (a fault, never seen).
    """
    low, high = network.smallest, network.largest
    free = np.flatnonzero(high & ~low)
    at_low, at_high = (cost_of(network, mask, device, server, tensor) for mask in (low, high))
    if len(free) == 0:
        return Cut(low, at_low, 0.0)
    tails, heads, capacity, vertices = _arcs(network, free, device, server, tensor)
    # What no closed set pays at all, so that the flow's value and the cut's cost can be held against each other.
    base = float(device[low].sum() + server[~high].sum() + np.minimum(device, server)[free].sum())
    bound = min(at_low, at_high) - base
    # Twice what some closed set costs is as good as infinite, and keeps the digits for what matters.
    capacity = np.minimum(capacity, 2 * bound if bound > 0 else 2 * capacity[np.isfinite(capacity)].sum())
    total = float(capacity[tails == 0].sum())
    if not total > 0:
        return Cut(low, at_low, 0.0)
    scale = 2.0 ** (CAPACITY_BITS - int(np.ceil(np.log2(total))))
    whole: Longs = np.floor(capacity * scale).astype(np.int64)
    value, reached = (_by_ortools if (engine or _engine()) == "ortools" else _by_scipy)(tails, heads, whole, vertices)
    on_device = low.copy()
    on_device[free] = reached[2 : 2 + len(free)]
    cost = cost_of(network, on_device, device, server, tensor)
    gap = len(whole) / scale
    fuzz = 1e-13 * (np.abs(device).sum() + np.abs(server).sum() + tensor.sum())
    if not (network.closed(on_device) and -fuzz <= cost - base - value / scale <= gap + fuzz):
        raise ArithmeticError(f"minimum cut: {cost - base!r} in floats against {value / scale!r} in integers")
    return Cut(on_device, cost, gap)


def _arcs(
    network: Network, free: Ints, device: Floats, server: Floats, tensor: Floats
) -> tuple[Ints, Ints, Floats, int]:
    """(tails, heads, capacities, vertices) with s = 0, t = 1, the free vertices from 2 on and then one for each tensor with several readers."""
    number = np.where(network.smallest, 0, 1)
    number[free] = np.arange(2, 2 + len(free))
    dearer = server[free] - device[free]
    makes, reads = number[network.producer], number[network.edge_node]
    tails = [np.zeros(len(free), dtype=np.intp), number[free]]
    heads = [number[free], np.ones(len(free), dtype=np.intp)]
    sizes = [np.maximum(dearer, 0.0), np.maximum(-dearer, 0.0)]
    # Nothing crosses that the server makes, or that the device alone reads.
    used = (makes != 1)[network.edge_tensor] & (reads != 0)
    readers = np.bincount(network.edge_tensor[used], minlength=len(makes))
    # One reader needs no vertex between.
    lone = used & (readers[network.edge_tensor] == 1)
    shared, several = readers > 1, used & (readers[network.edge_tensor] > 1)
    aux = np.full(len(makes), -1)
    aux[shared] = 2 + len(free) + np.arange(int(shared.sum()))
    made, read = network.links
    made, read = number[made], number[read]
    back = (made > 1) & (read > 1)
    tails += [makes[network.edge_tensor[lone]], makes[shared], aux[network.edge_tensor[several]], read[back]]
    heads += [reads[lone], aux[shared], reads[several], made[back]]
    infinite = [np.full(int(mask.sum()), np.inf) for mask in (several, back)]
    sizes += [tensor[network.edge_tensor[lone]], tensor[shared], *infinite]
    capacity = np.concatenate(sizes)
    kept = capacity > 0
    vertices = 2 + len(free) + int(shared.sum())
    return np.concatenate(tails)[kept], np.concatenate(heads)[kept], capacity[kept], vertices


# ---------------------------------------------------------------------------------------------------------------- flows


def _engine() -> Engine:
    from importlib.util import find_spec

    return "ortools" if find_spec("ortools") is not None else "scipy"


def _by_ortools(tails: Ints, heads: Ints, capacity: Longs, vertices: int) -> tuple[int, Mask]:
    """(flow, vertices that s still reaches) by ortools' push-relabel on int64."""
    from ortools.graph.python import max_flow

    flow = max_flow.SimpleMaxFlow()
    flow.add_arcs_with_capacity(tails, heads, capacity)
    status = flow.solve(0, 1)
    if status != flow.OPTIMAL:
        raise ArithmeticError(f"minimum cut: ortools ended with {status}")
    reached = np.zeros(vertices, dtype=bool)
    reached[flow.get_source_side_min_cut()] = True
    return int(flow.optimal_flow()), reached


def _by_scipy(tails: Ints, heads: Ints, capacity: Longs, vertices: int) -> tuple[int, Mask]:
    """The same by scipy's int32 flow, called on the leading digits of the capacities, then on what that flow leaves of them.

    A flow that fills every leading digit leaves less than one unit of it on each arc of its cut, so the rest is at most the number of
    arcs in those units; each turn gains 29 bits less those of that number.
    """
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    shape = (vertices, vertices)
    ends = (np.concatenate([tails, heads]).astype(np.int32), np.concatenate([heads, tails]).astype(np.int32))
    left = csr_array(coo_array((np.concatenate([capacity, np.zeros_like(capacity)]), ends), shape=shape))
    bound, value = int(capacity[tails == 0].sum()), 0
    while bound > 0:
        shift = max(bound.bit_length() - INT32_BITS, 0)
        digits = left.copy()
        digits.data = np.minimum(left.data, bound) >> shift
        result = maximum_flow(digits.astype(np.int32), 0, 1)
        left = csr_array(left - (result.flow.astype(np.int64) * (1 << shift)))
        value += int(result.flow_value) << shift
        bound = 0 if shift == 0 else len(capacity) << shift
    left.eliminate_zeros()
    reached = np.zeros(vertices, dtype=bool)
    reached[breadth_first_order(left, 0, return_predecessors=False)] = True
    return value, reached
