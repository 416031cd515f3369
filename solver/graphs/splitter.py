"""The joint optimum of split and clock for a graph under a load, for many rates and weights. V vertices, T tensors, K clocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.graphs.contraction import Block, Contracted, Narrow, blocks, contract, narrow, safe
from solver.graphs.mincut import Cut, Engine, Floats, Ints, Mask, Network, cost_of, minimum

MOST_KEPT = 10_000
"""Widths of blocks are kept for so many rates and weights at most."""


@dataclass(frozen=True)
class Load:
    """What a round asks of each vertex and tensor: seconds on the device (V,), bits of adapters (V,), seconds on the server at each clock
    (V, K) ascending in Hz, bits of each tensor up and down (T,), watts of the busy server (K,; None: not known) and of the waiting one,
    and joules on the device (V,; None: not counted)."""

    device_s: Floats
    adapter_bits: Floats
    server_s: Floats
    up_bits: Floats
    down_bits: Floats
    clocks_hz: Floats
    power_w: Floats | None = None
    idle_w: float = 0.0
    device_j: Floats | None = None

    def prices(
        self, uplink_bps: float, downlink_bps: float, by_delay: float, by_energy: float
    ) -> tuple[Floats, Floats, Floats]:
        """Costs of the vertices on the device (V,), on the server (V, K), and of the tensors (T,): see the module's edges."""
        waiting = by_delay + by_energy * self.idle_w
        power = np.zeros(len(self.clocks_hz)) if self.power_w is None else self.power_w
        device = waiting * (self.device_s + self.adapter_bits / uplink_bps + self.adapter_bits / downlink_bps)
        if self.device_j is not None:
            device = device + by_energy * self.device_j
        tensor = waiting * (self.up_bits / uplink_bps + self.down_bits / downlink_bps)
        return device, (by_delay + by_energy * power) * self.server_s, tensor


@dataclass(frozen=True)
class Best:
    """The joint optimum: a device part (V,), the index of the clock, the cost, how far below it the true optimum may be, and the flows run."""

    on_device: Mask
    clock: int
    cost: float
    gap: float
    flows: int


class Splitter:
    """Cheapest splits of one network for any load, rates and weights. What does not depend on them is kept between calls.

    ``contracting`` makes blocks one vertex wherever a decision proves it safe (`solver.graphs.contraction`). The answer is the same; with the flow
    libraries of today the proofs cost what they save (benchmarks/mincut.py), so it is off unless asked for.
    """

    def __init__(self, network: Network, engine: Engine | None = None, contracting: bool = False) -> None:
        self.network, self.engine = network, engine
        self._blocks = blocks(network) if contracting else []
        self._boundaries = boundaries = network.boundaries()
        self._at = boundaries.astype(float), (~boundaries).astype(float), network.crossing(boundaries).astype(float)
        self._fixed, self._free = ~network.largest, network.largest & ~network.smallest
        self._alike = [_signature(network, block) for block in self._blocks]
        self._narrow: dict[tuple[bytes, ...], Narrow] = {}
        self._contracted: dict[tuple[bool, ...], Contracted] = {}

    def best(self, load: Load, uplink_bps: float, downlink_bps: float, by_delay: float, by_energy: float) -> Best:
        """The device part and clock at which by_delay D + by_energy E is least; of equals a layer boundary,
        then the smallest device part, then the lowest clock.

        A clock is left out only where a bound proves it worse: going from clock j to k changes the cost of any split by at least the
        sum of what it changes for the vertices on the server for good, and of what it lowers for the others.
        """
        device, server, tensor = load.prices(uplink_bps, downlink_bps, by_delay, by_energy)
        rows = np.ascontiguousarray(server.T)
        alike: dict[bytes, int] = {}
        for k, row in enumerate(rows):
            alike.setdefault(row.tobytes(), k)
        columns = np.array(list(alike.values()))  # of clocks that cost the same everywhere the lowest
        rows = rows[columns]
        on_device, on_server, crossing = self._at
        known = on_server @ rows.T + (on_device @ device + crossing @ tensor)[:, None]
        seen = known.min(0)
        floor = np.full(len(columns), -np.inf)
        found: list[tuple[float, int, int, Cut]] = []
        ceiling = float(seen.min())
        waiting = list(np.argsort(seen, kind="stable"))
        while waiting:
            k = waiting.pop(0)
            if floor[k] > ceiling:
                continue
            cut = self._cut(device, rows[k], tensor)
            found.append((cut.cost, int(cut.on_device.sum()), int(columns[k]), cut))
            ceiling = min(ceiling, cut.cost)
            change = rows - rows[k]
            lowers = change[:, self._fixed].sum(1) + np.minimum(change[:, self._free], 0.0).sum(1)
            floor = np.maximum(floor, cut.cost - cut.gap + lowers)
        least = min(found, key=lambda row: row[:3])
        # Costs that differ by rounding alone are equal.
        equal = [row for row in found if row[0] <= least[0] + 1e-14 * abs(least[0])]
        cost, _, k, cut = min(equal, key=lambda row: (row[1], row[2], row[0]))
        part = cut.on_device
        if self.network.layer is not None:
            equal_boundaries = np.flatnonzero(known[:, columns == k][:, 0] <= cost + 1e-12 * abs(cost))
            if len(equal_boundaries):
                part = self._boundaries[equal_boundaries[0]]
        return Best(part, k, cost, cut.gap, len(found))

    def _cut(self, device: Floats, server: Floats, tensor: Floats) -> Cut:
        """The minimum at one clock, on the graph in which blocks are one vertex where that is safe."""
        dearer = device - server
        key = tuple(
            self._whole(block, alike, dearer[block.nodes], tensor)
            for block, alike in zip(self._blocks, self._alike, strict=True)
        )
        if not any(key):
            return minimum(self.network, device, server, tensor, self.engine)
        if key not in self._contracted:
            self._contracted[key] = contract(
                self.network, [b for b, whole in zip(self._blocks, key, strict=True) if whole]
            )
        small = self._contracted[key]
        here, there = small.costs(device, server)
        cut = minimum(small.network, here, there, tensor[small.kept], self.engine)
        on_device = cut.on_device[small.number]
        return Cut(on_device, cost_of(self.network, on_device, device, server, tensor), cut.gap)

    def _whole(self, block: Block, alike: tuple[bytes, Ints], dearer: Floats, tensor: Floats) -> bool:
        """`safe`, with `narrow` computed once for all blocks that look alike, and only where the operators' costs allow it."""
        if not ((dearer >= 0).all() or (dearer <= 0).all()):
            return False
        key = (alike[0], tensor[alike[1]].tobytes())
        if key not in self._narrow:
            if len(self._narrow) > MOST_KEPT:
                self._narrow.clear()
            self._narrow[key] = narrow(self.network, block, tensor, self.engine)
        return safe(self._narrow[key], dearer)


def _signature(network: Network, block: Block) -> tuple[bytes, Ints]:
    """What is equal for blocks that differ in nothing but costs; and the tensors whose costs the widths depend on."""
    number = np.full(len(network), -1)
    number[block.nodes] = np.arange(len(block.nodes))
    every = np.concatenate([block.entering, block.inner])
    place = np.full(len(network.producer), -1)
    place[every] = np.arange(len(every))
    rows = (place[network.edge_tensor] >= 0) & (number[network.edge_node] >= 0)
    facts = (
        number[network.producer[every]],
        place[network.edge_tensor[rows]],
        number[network.edge_node[rows]],
        np.isin(block.entering, block.owned),
        np.array([number[block.exit], block.fed]),
    )
    return b"|".join(fact.tobytes() for fact in facts), np.concatenate([every, block.leaving])
