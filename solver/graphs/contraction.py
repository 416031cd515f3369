"""Blocks of a graph that a cheapest split takes or leaves whole: one vertex each, and a smaller graph to cut.

Whether a block may be one vertex depends on weights, rates and clock, so it is proven anew for each decision (`safe`). V vertices, T tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.graphs.mincut import Engine, Floats, Ints, Network, minimum


@dataclass(frozen=True)
class Block:
    """Vertices (B,) that a split may be able to take or leave whole.

    Only ``exit`` is read from outside, and everything else in the block leads to it. ``entering`` and ``inner`` are tensors read
    inside, made outside or inside; ``owned`` those entering that nobody else reads; ``leaving`` those of the exit. ``starts`` are vertices that
    read nothing from inside. ``fed``: whoever runs one of these has made all that enters the block.
    """

    nodes: Ints
    exit: int
    starts: Ints
    entering: Ints
    owned: Ints
    inner: Ints
    leaving: Ints
    fed: bool


def blocks(network: Network) -> list[Block]:
    """The blocks that the layers' numbers, or else single tensors between two parts of the graph, divide the free vertices into."""
    free = network.largest & ~network.smallest
    label = network.layer if network.layer is not None else _parts(network)
    found = [_block(network, np.flatnonzero(free & (label == name))) for name in np.unique(label[free])]
    return [block for block in found if block is not None]


def _parts(network: Network) -> Ints:
    """(V,) numbers that rise where one vertex's tensors are all that later ones read of earlier ones."""
    place = np.empty(len(network), dtype=np.intp)
    place[network.order] = np.arange(len(network))
    made, read = network.links
    last = place.copy()
    np.maximum.at(last, made, place[read])
    open_until = np.maximum.accumulate(np.concatenate([[-1], last[network.order][:-1]]))
    # Everything before place i is read by place i at the latest, so its own tensors are the only ones read after it.
    alone = open_until <= np.arange(len(network))
    label = np.empty(len(network), dtype=np.intp)
    label[network.order] = np.concatenate([[0], np.cumsum(alone)[:-1]])
    return label


def _block(network: Network, nodes: Ints) -> Block | None:
    inside = np.zeros(len(network), dtype=bool)
    inside[nodes] = True
    made, read = network.links
    leaves = np.unique(made[inside[made] & ~inside[read]])
    if len(nodes) < 2 or len(leaves) != 1:
        return None
    exit_vertex = int(leaves[0])
    own = inside[made] & inside[read]
    if exit_vertex in made[own]:
        return None
    leads = np.zeros(len(network), dtype=bool)
    leads[exit_vertex] = True
    while True:
        more = np.zeros_like(leads)
        more[made[own][leads[read[own]]]] = True
        if not (more & ~leads).any():
            break
        leads |= more
    if not leads[nodes].all():
        return None
    starts = np.setdiff1d(nodes, read[own])
    reads_here = np.bincount(network.edge_tensor[inside[network.edge_node]], minlength=len(network.producer)) > 0
    reads_there = np.bincount(network.edge_tensor[~inside[network.edge_node]], minlength=len(network.producer)) > 0
    outside = ~inside[network.producer]
    entering = np.flatnonzero(reads_here & outside)
    feeders = np.unique(network.producer[entering])
    fed = all(bool(network._grown(np.arange(len(network)) == s, forwards=False)[feeders].all()) for s in starts)
    return Block(
        nodes=nodes,
        exit=exit_vertex,
        starts=starts,
        entering=entering,
        owned=np.flatnonzero(reads_here & outside & ~reads_there),
        inner=np.flatnonzero(reads_here & ~outside),
        leaving=np.flatnonzero(network.producer == exit_vertex),
        fed=fed and len(starts) > 0,
    )


def narrowest(network: Network, block: Block, counted: Ints, tensor: Floats, engine: Engine | None = None) -> float:
    """The least that crosses inside a block, over all splits that cut it in two: of the inner tensors and those of ``counted`` that enter."""
    number = np.full(len(network), -1)
    number[block.nodes] = np.arange(1, len(block.nodes) + 1)  # 0 is what stands before the block
    kept = np.concatenate([counted, block.inner])
    rows = np.isin(network.edge_tensor, kept) & (number[network.edge_node] > 0)
    place = np.zeros(len(network.producer), dtype=np.intp)
    place[kept] = np.arange(len(kept))
    size = len(block.nodes) + 1
    zero = np.zeros(size)
    least = np.inf
    for start in block.starts:
        to_device, to_server = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        to_device[[0, number[start]]] = True
        to_server[number[block.exit]] = True
        inside = Network(
            producer=np.maximum(number[network.producer[kept]], 0),
            edge_tensor=place[network.edge_tensor[rows]],
            edge_node=number[network.edge_node[rows]],
            to_device=to_device,
            to_server=to_server,
        )
        if start != block.exit:
            least = min(least, minimum(inside, zero, zero, tensor[kept], engine).cost)
    return least


@dataclass(frozen=True)
class Narrow:
    """What of one block does not depend on its operators' costs: whether every cut inside it carries as much as enters, or as leaves."""

    as_entering: bool
    as_leaving: bool


def narrow(network: Network, block: Block, tensor: Floats, engine: Engine | None = None) -> Narrow:
    """Compare the cheapest inner cut of a block with what enters and with what leaves, at the tensors' costs (T,)."""
    enters = narrowest(network, block, block.entering, tensor, engine) >= tensor[block.entering].sum()
    leaves = block.fed and narrowest(network, block, block.owned, tensor, engine) >= tensor[block.leaving].sum()
    return Narrow(bool(enters), bool(leaves))


def safe(widths: Narrow, dearer: Floats) -> bool:
    """Whether some cheapest split leaves the block whole. ``dearer`` (B,): how much more each of its vertices costs on the device.

    Either every cut inside carries at least what enters, and each operator costs at least as much on the device: then moving the
    device's share of the block to the server is no dearer. Or at least what leaves, and each operator costs at most as much there: then
    moving all of it to the device is no dearer. Bytes alone prove nothing.
    """
    return bool((widths.as_entering and (dearer >= 0).all()) or (widths.as_leaving and (dearer <= 0).all()))


@dataclass(frozen=True)
class Contracted:
    """A network in which whole blocks are one vertex each. ``number`` (V,) is the new vertex of each old one, ``kept`` (T',) the old tensors."""

    network: Network
    number: Ints
    kept: Ints

    def costs(self, *vertices: Floats) -> list[Floats]:
        """(V, ...) summed into (V', ...)."""
        found = []
        for rows in vertices:
            total = np.zeros((len(self.network), *rows.shape[1:]))
            np.add.at(total, self.number, rows)
            found.append(total)
        return found


def contract(network: Network, whole: list[Block]) -> Contracted:
    """Make one vertex of each of these blocks, which must not overlap."""
    number = np.arange(len(network))
    for block in whole:
        number[block.nodes] = block.nodes[0]
    names, number = np.unique(number, return_inverse=True)
    pairs = np.column_stack([network.edge_tensor, number[network.edge_node]])
    pairs = np.unique(pairs[number[network.producer[network.edge_tensor]] != pairs[:, 1]], axis=0).reshape(-1, 2)
    kept, edge_tensor = np.unique(pairs[:, 0], return_inverse=True)
    to_device, to_server = np.zeros(len(names), dtype=bool), np.zeros(len(names), dtype=bool)
    to_device[number[network.to_device]] = True
    to_server[number[network.to_server]] = True
    small = Network(
        producer=number[network.producer[kept]],
        edge_tensor=edge_tensor,
        edge_node=pairs[:, 1],
        to_device=to_device,
        to_server=to_server,
    )
    return Contracted(small, number, kept)
