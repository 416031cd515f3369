"""Minimum cuts for a fleet: the chain of its layers, or the graph of operators that the server's profile holds.

Times, rates, power and sizes are the cost model's own, so that a cut at a layer boundary costs what it costs everywhere else. A layer's time
is shared among its operators by their FLOPs, which is an assumption; no operator was timed alone. Layer 1 stays with the device and layer I
with the server, as cuts do. M devices, C cuts, V vertices, K clocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from profiler.profile import BadInput, Profile
from solver import exact
from solver.assumptions import Assumption, assumed
from solver.costs import Choice, CostModel, Costs, Floats, Ints, Mask, Places, ServerClocks
from solver.extremes import piece_edges, stationary
from solver.graphs.mincut import Network
from solver.graphs.splitter import Load, Splitter

MOST_FLOWS = 20_000
"""Distinct decisions (device, rates, weights) for which flows are run; each takes milliseconds."""


@dataclass(frozen=True)
class FleetGraph:
    """The vertices of a fleet's graph, as shares of the C+1 groups between its cuts: layer 1 and what precedes it, one layer each, the rest."""

    names: tuple[str, ...]
    group: Ints
    """(V,)"""
    by_flops: Floats
    by_adapters: Floats
    producer: Ints
    edge_tensor: Ints
    edge_node: Ints
    activation_bytes: Floats
    gradient_bytes: Floats

    @staticmethod
    def chain(cuts: int) -> FleetGraph:
        """The layers alone, one vertex for each group. The tensors' sizes are the cost model's."""
        every, ones = np.arange(cuts + 1), np.ones(cuts + 1)
        sizes = np.ones(cuts)
        return FleetGraph((), every, ones, ones, every[:-1], every[:-1], every[1:], sizes, sizes)

    @staticmethod
    def of(server: Profile) -> FleetGraph:
        """The operators of the server's profile, else the chain of its layers.

        Raises BadInput where what crosses at a layer boundary is not what the profile says of its cuts.
        """
        block, layers = server.operators, server.workload.layers
        if block is None:
            return FleetGraph.chain(layers - 1)
        layer = np.array([server.segments[operator.segment].layer for operator in block.operators])
        group = np.clip(layer, 1, layers) - 1
        flops = np.array([operator.forward_flops + operator.backward_flops for operator in block.operators])
        adapters = np.array([float(operator.adapter_bytes) for operator in block.operators])
        pairs = [(t, v) for t, tensor in enumerate(block.tensors) for v in tensor.consumers]
        edges = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        model = FleetGraph(
            names=tuple(operator.name for operator in block.operators),
            group=group,
            by_flops=_shares(flops, group, np.ones(len(group))),
            by_adapters=_shares(adapters, group, flops),
            producer=np.array([tensor.producer for tensor in block.tensors], dtype=np.intp),
            edge_tensor=edges[:, 0],
            edge_node=edges[:, 1],
            activation_bytes=np.array([float(tensor.activation_bytes) for tensor in block.tensors]),
            gradient_bytes=np.array([float(tensor.gradient_bytes) for tensor in block.tensors]),
        )
        up, down = model.at_boundaries()
        for sizes, a, g in zip(server.sizes.cuts, up, down, strict=True):
            for what, own, theirs in (("smashed", a, sizes.smashed_bytes), ("gradient", g, sizes.gradient_bytes)):
                if abs(own - theirs) > 1e-6 * theirs:
                    raise BadInput(
                        f"profile {server.name}: field operators: tensors of {own:.0f} bytes cross at cut {sizes.cut}, expected "
                        f"{theirs} as sizes.cuts says ({what}_bytes); profile it again with --measure layers,graph"
                    )
        return model

    def network(self, low: int, high: int) -> Network:
        """The graph with the groups up to ``low`` pinned to the device and those above ``high`` to the server."""
        return Network(
            self.producer, self.edge_tensor, self.edge_node, self.group <= low, self.group > high, layer=self.group
        )

    def assumptions(self, server: Profile) -> list[Assumption]:
        """What the vertices' costs rest on beside the cost model."""
        if not self.names:
            return []
        return [assumed(f"{server.name}: times of operators inside a layer", "the layer's time, shared by FLOPs")]

    def at_boundaries(self) -> tuple[Floats, Floats]:
        """(C,) bytes that cross up and down at each cut."""
        cuts = int(self.group.max())
        network = self.network(0, cuts - 1)
        crossing = network.crossing(self.group[None, :] <= np.arange(cuts)[:, None])
        return crossing @ self.activation_bytes, crossing @ self.gradient_bytes


def _shares(values: Floats, group: Ints, otherwise: Floats) -> Floats:
    """Each vertex's share of its group; by ``otherwise``, else in equal parts, where the group has none."""
    for rows in (otherwise, np.ones(len(values))):
        total = np.bincount(group, weights=values)
        values = np.where(total[group] > 0, values, rows)
    shares: Floats = values / np.bincount(group, weights=values)[group]
    return shares


@dataclass(frozen=True)
class Inside:
    """A cut that is not at a layer boundary: 0-based index of the boundary below it, and the device's operators beyond that (V,)."""

    cut_index: int
    extra: Mask


@dataclass(frozen=True)
class GraphChoice:
    """What minimum cuts chose for N places: ``choice`` names the last layer wholly on the device, ``inside`` the places cut beyond it."""

    choice: Choice
    inside: dict[int, Inside]


def costs_inside(graph: FleetGraph, chosen: GraphChoice, model: CostModel, places: Places, costs: Costs) -> Costs:
    """``costs`` of ``chosen.choice`` in ``model``, with what differs where a cut is inside a layer."""
    if not chosen.inside:
        return costs
    parts = ("device_compute_s", "uplink_s", "downlink_s", "adapters_s", "server_compute_s")
    changed = {name: np.array(getattr(costs, name)) for name in parts}
    energy = None if costs.energy_j is None else np.array(costs.energy_j)
    network = graph.network(0, model.cuts - 1)
    for n, cut in chosen.inside.items():
        load = _load(model, int(places.device[n]), graph, np.array([chosen.choice.frequency_hz[n]]))
        below = graph.group <= cut.cut_index
        more = network.crossing(below | cut.extra).astype(float) - network.crossing(below)
        adapters = load.adapter_bits[cut.extra].sum()
        moved = float(load.server_s[cut.extra, 0].sum())
        steps = (
            load.device_s[cut.extra].sum(),
            more @ load.up_bits / places.uplink_bps[n],
            more @ load.down_bits / places.downlink_bps[n],
            adapters / places.uplink_bps[n] + adapters / places.downlink_bps[n],
            -moved,
        )
        for name, step in zip(parts, steps, strict=True):
            changed[name][n] += step
        if energy is not None and load.power_w is not None:
            own = 0.0 if load.device_j is None else load.device_j[cut.extra].sum()
            energy[n] += own + model.idle_w * sum(steps[:-1]) - load.power_w[0] * moved
    delay = sum((changed[name] for name in parts), np.zeros(len(places)))
    return Costs(delay_s=delay, energy_j=energy, **changed)


def further_keys(graph: FleetGraph, chosen: GraphChoice) -> dict[int, dict[str, Any]]:
    """Keys that a decision inside a layer has beside the usual ones, by its place."""
    return {
        n: {
            "inside_layer": cut.cut_index + 2,
            "device_operators": [graph.names[v] for v in np.flatnonzero(cut.extra)],
        }
        for n, cut in chosen.inside.items()
    }


def choose(
    graph: FleetGraph, model: CostModel, places: Places, clocks: ServerClocks, by_delay: Floats, by_energy: Floats
) -> GraphChoice:
    """The cut and clock at which by_delay D + by_energy E is least, for each place; of equal cuts the smallest device part.

    Memory limits pin the layers below the first and
    above the last cut that fits; where the cuts that fit are not in one row, no pins say so and those devices' boundaries are scanned.
    Over a range of clocks each layer boundary's own best clocks are tried, which on a chain is all there is. Raises BadInput for more
    distinct decisions than flows are sensible for.
    """
    keys = np.column_stack([places.device, places.uplink_bps, places.downlink_bps, by_delay, by_energy])
    _, first, same = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    if len(first) > MOST_FLOWS:
        raise BadInput(
            f"--method min-cut: {len(first)} different decisions, expected at most {MOST_FLOWS}; "
            "use --method exact, which scans the cuts at layer boundaries"
        )
    cut, hz = np.zeros(len(first), dtype=np.intp), np.zeros(len(first))
    inside: dict[int, Inside] = {}
    splitters: dict[tuple[int, int], Splitter] = {}
    loads: dict[int, Load] = {}
    for i, n in enumerate(first):
        m = int(places.device[n])
        fits = np.flatnonzero(places.feasible[m])
        low, high = int(fits[0]), int(fits[-1])
        if len(fits) <= high - low:
            one = Places(
                places.device[n : n + 1], places.uplink_bps[n : n + 1], places.downlink_bps[n : n + 1], places.feasible
            )
            scanned = exact.choose(model, one, clocks, by_delay[n : n + 1], by_energy[n : n + 1])
            cut[i], hz[i] = scanned.cut_index[0], scanned.frequency_hz[0]
            continue
        splitter = splitters.setdefault((low, high), Splitter(graph.network(low, high)))
        if len(clocks.supported_hz):
            load = loads.setdefault(m, _load(model, m, graph, clocks.supported_hz))
        else:
            load = _load(model, m, graph, _own_clocks(model, clocks, by_delay[n], by_energy[n]))
        best = splitter.best(
            load, places.uplink_bps[n], places.downlink_bps[n], float(by_delay[n]), float(by_energy[n])
        )
        hz[i] = load.clocks_hz[best.clock]
        whole = [c for c in range(model.cuts) if best.on_device[graph.group <= c].all()]
        cut[i] = whole[-1]
        extra = best.on_device & (graph.group > whole[-1])
        if extra.any():
            inside[i] = Inside(int(whole[-1]), extra)
    same = same.ravel()
    everywhere = {n: inside[int(i)] for n, i in enumerate(same) if int(i) in inside}
    return GraphChoice(Choice(cut[same], hz[same]), everywhere)


def _own_clocks(model: CostModel, clocks: ServerClocks, by_delay: float, by_energy: float) -> Floats:
    """(K,) every clock of the range at which some layer boundary may be cheapest."""
    edges = piece_edges(model, clocks.f_min_hz, clocks.f_max_hz)
    every, x, y = np.arange(model.cuts), np.array([by_delay]), np.array([by_energy])
    inner = [stationary(model, every, low, high, x, y).ravel() for low, high in itertools.pairwise(edges)]
    return np.unique(np.concatenate([edges, *inner]))


def _load(model: CostModel, m: int, graph: FleetGraph, hz: Floats) -> Load:
    """What a round of device ``m`` asks of each vertex: differences between neighbouring cuts of the cost model, shared among operators."""

    def on_device(totals: Floats) -> Floats:
        return np.append(np.diff(totals, prepend=0.0), 0.0)

    group = graph.group
    seconds = model.server_s(hz)
    server = np.concatenate([np.zeros((1, len(hz))), seconds - np.concatenate([seconds[1:], np.zeros((1, len(hz)))])])
    bytes_up, bytes_down = graph.at_boundaries()
    up = _per_byte(model.uplink_bits[m], bytes_up)
    down = _per_byte(model.downlink_bits[m], bytes_down)
    after = np.minimum(group[graph.producer], model.cuts - 1)  # a chain's tensors have the size of their own cut
    power = None if model.server_power is None else model.server_power.at(model.clock_map.reached(hz))
    return Load(
        device_s=on_device(model.device_compute_s[m])[group] * graph.by_flops,
        adapter_bits=on_device(model.adapter_bits[m])[group] * graph.by_adapters,
        server_s=server[group] * graph.by_flops[:, None],
        up_bits=graph.activation_bytes * up[after],
        down_bits=graph.gradient_bytes * down[after],
        clocks_hz=hz,
        power_w=power,
        idle_w=model.idle_w,
        device_j=None if model.device_j is None else on_device(model.device_j[m])[group] * graph.by_flops,
    )


def _per_byte(bits: Floats, at: Floats) -> Floats:
    """(C,) bits of a round for each byte that crosses at a cut."""
    return np.divide(bits, at, out=np.zeros_like(bits), where=at > 0)
