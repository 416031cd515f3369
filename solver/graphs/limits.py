"""Memory limits on a graph. A limit is a knapsack and no minimum cut knows one: few splits are tried all, of many a multiplier bounds the best.

With multipliers m_j >= 0 on bytes b_j(S) and limits B_j, the least of cost(S) + sum m_j (b_j(S) - B_j) over all splits is a minimum cut
again (bytes on the device are added to v -> t, those on the server to s -> v), and never above the cheapest split that fits. The
multipliers that make it greatest are found by cutting planes: each cut found is one plane of a small linear program. V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from solver.graphs.mincut import Engine, Floats, Mask, Network, cost_of, minimum

MOST_SPLITS = 20_000
"""At most so many splits are tried one by one."""
MOST_ENTRIES = 10_000_000
"""And fewer where each has many vertices: the table of all splits stays this small."""
MOST_PLANES = 60


@dataclass(frozen=True)
class Limit:
    """At most ``limit_bytes`` of ``needs_bytes`` (V,) on one side; ``machine`` says whose it is."""

    machine: str
    on_device: bool
    needs_bytes: Floats
    limit_bytes: float

    def used(self, parts: Mask) -> Floats:
        """Bytes of device parts (..., V)."""
        used: Floats = (parts if self.on_device else ~parts) @ self.needs_bytes
        return used


@dataclass(frozen=True)
class Held:
    """The cheapest split found that keeps the limits (None: none was found), and a proven bound that no split within them is below."""

    on_device: Mask | None
    cost: float
    bound: float


def every_split(network: Network) -> Mask | None:
    """(S, V) all splits, small device parts first, where there are few enough; else None. A chain has as many as layers."""
    most = min(MOST_SPLITS, MOST_ENTRIES // len(network))
    below: list[int] = [0] * len(network)
    for u, v in zip(*(ends.tolist() for ends in network.links), strict=True):
        below[v] |= 1 << u
    must, may = network.smallest, network.largest
    parts = [0]
    for v in network.order.tolist():
        bit = 1 << v
        if not may[v]:
            continue
        grown = [part | bit for part in parts if part & below[v] == below[v]]
        parts = grown if must[v] else parts + grown
        if len(parts) > most:
            return None
    parts.sort(key=lambda part: bin(part).count("1"))
    packed = b"".join(part.to_bytes(-(-len(network) // 8), "little") for part in parts)
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8).reshape(len(parts), -1), axis=1, bitorder="little")
    return bits[:, : len(network)].astype(bool)


def cheapest_within(
    network: Network,
    device: Floats,
    server: Floats,
    tensor: Floats,
    limits: list[Limit],
    splits: Mask | None,
    engine: Engine | None = None,
) -> Held:
    """The cheapest split within the limits at these costs (see `mincut.minimum`): exact where all ``splits`` are given."""
    if splits is not None:
        fits = np.all([limit.used(splits) <= limit.limit_bytes for limit in limits], axis=0)
        if not fits.any():
            return Held(None, np.inf, np.inf)
        rows = splits[fits]
        costs = rows @ device + ~rows @ server + network.crossing(rows) @ tensor
        best = rows[int(costs.argmin())]
        cost = cost_of(network, best, device, server, tensor)
        return Held(best, cost, cost)
    return _bounded(network, device, server, tensor, limits, engine)


def _bounded(
    network: Network, device: Floats, server: Floats, tensor: Floats, limits: list[Limit], engine: Engine | None
) -> Held:
    from scipy.optimize import linprog

    units = np.array([max(limit.limit_bytes, 1.0) for limit in limits])
    costs: list[float] = []
    over: list[Floats] = []
    best, least, bound = None, np.inf, -np.inf

    def plane(part: Mask) -> float:
        nonlocal best, least
        cost = cost_of(network, part, device, server, tensor)
        beyond = np.array([float(limit.used(part)) - limit.limit_bytes for limit in limits])
        costs.append(cost)
        over.append(beyond / units)
        if (beyond <= 0).all() and cost < least:
            best, least = part, cost
        return cost

    for part in network.boundaries():
        plane(part)
    # Multipliers beyond this buy nothing but rounding: a whole limit would be worth a thousand times all there is to pay.
    ceiling = 1e3 * float(np.abs(device).sum() + np.abs(server).sum() + tensor.sum() + 1e-300)
    for _ in range(MOST_PLANES):
        answer: Any = linprog(
            np.append(np.zeros(len(limits)), -1.0),
            A_ub=np.column_stack([-np.array(over), np.ones(len(costs))]),
            b_ub=np.array(costs),
            bounds=[(0.0, ceiling)] * len(limits) + [(None, None)],
        )
        price = answer.x[:-1]
        dearer = [np.zeros(len(network)), np.zeros(len(network))]
        for limit, each, unit in zip(limits, price, units, strict=True):
            dearer[0 if limit.on_device else 1] += each / unit * limit.needs_bytes
        cut = minimum(network, device + dearer[0], server + dearer[1], tensor, engine)
        paid = sum(each * limit.limit_bytes / unit for limit, each, unit in zip(limits, price, units, strict=True))
        bound = max(bound, cut.cost - cut.gap - paid)
        plane(cut.on_device)
        if bound >= min(-answer.fun, least) - 1e-9 * abs(answer.fun):
            break
    return Held(best, least, bound)
