"""Small random graphs and the yardstick of the minimum cut: every closed device part, one by one, in plain Python."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np

from solver.graphs.mincut import Mask, Network
from solver.graphs.splitter import Load


def network(producers: list[int], consumers: list[list[int]], size: int, layer: list[int] | None = None) -> Network:
    """Vertex 0 is the input, the last one the loss."""
    edges = [(t, v) for t, readers in enumerate(consumers) for v in readers]
    ends = np.zeros((2, size), dtype=bool)
    ends[0, 0] = ends[1, -1] = True
    return Network(
        producer=np.array(producers, dtype=np.intp),
        edge_tensor=np.array([t for t, _ in edges], dtype=np.intp),
        edge_node=np.array([v for _, v in edges], dtype=np.intp),
        to_device=ends[0],
        to_server=ends[1],
        layer=None if layer is None else np.array(layer, dtype=np.intp),
    )


def random_network(rng: random.Random, size: int, density: float = 0.35) -> Network:
    """A graph of ``size`` vertices in which each vertex but the input reads something, and tensors have several readers."""
    producers: list[int] = []
    consumers: list[list[int]] = []
    for v in range(size - 1):
        for _ in range(1 + (rng.random() < 0.3)):
            readers = [u for u in range(v + 1, size) if rng.random() < density]
            if readers:
                producers.append(v)
                consumers.append(readers)
    for v in range(1, size):
        if not any(v in readers for readers in consumers):
            producers.append(rng.randrange(v))
            consumers.append([v])
    return network(producers, consumers, size)


def chain(size: int) -> Network:
    """A chain of layers."""
    return network(list(range(size - 1)), [[v + 1] for v in range(size - 1)], size)


def random_load(rng: random.Random, graph: Network, clocks: int = 3, integers: bool = False) -> Load:
    """Figures of the usual sizes; with ``integers`` small whole ones, so that ties are common and sums exact."""
    count, tensors = len(graph), len(graph.producer)

    def draw(low: float, high: float) -> float:
        return float(rng.randint(int(low), int(high))) if integers else rng.uniform(low, high)

    return Load(
        device_s=np.array([draw(0, 9) for _ in range(count)]),
        adapter_bits=np.array([draw(0, 4) for _ in range(count)]),
        server_s=np.array([[draw(0, 9) for _ in range(clocks)] for _ in range(count)]),
        up_bits=np.array([draw(0, 9) for _ in range(tensors)]),
        down_bits=np.array([draw(0, 9) for _ in range(tensors)]),
        clocks_hz=np.arange(1, clocks + 1) * 1e9,
        power_w=np.array([draw(1, 9) for _ in range(clocks)]),
    )


def edges_of(graph: Network) -> list[tuple[int, int, int]]:
    """(producer, tensor, consumer)."""
    return [(int(graph.producer[t]), int(t), int(v)) for t, v in zip(graph.edge_tensor, graph.edge_node, strict=True)]


def closed_parts(graph: Network) -> Iterator[list[bool]]:
    """Every device part that holds what is pinned to it, nothing that is pinned to the server, and all that it reads."""
    edges = edges_of(graph)
    for chosen in itertools.product([False, True], repeat=len(graph)):
        if any(chosen[v] and not chosen[u] for u, _, v in edges):
            continue
        if all(c or not d for c, d in zip(chosen, graph.to_device, strict=True)) and not any(
            c and s for c, s in zip(chosen, graph.to_server, strict=True)
        ):
            yield list(chosen)


def delay_and_energy(
    graph: Network, load: Load, part: list[bool] | Mask, clock: int, up: float, down: float
) -> tuple[float, float]:
    """D and E of one split, term by term."""
    device = server = bits_up = bits_down = adapters = 0.0
    for v in range(len(graph)):
        if part[v]:
            device += float(load.device_s[v])
            adapters += float(load.adapter_bits[v])
        else:
            server += float(load.server_s[v, clock])
    crossing = {t for u, t, v in edges_of(graph) if part[u] and not part[v]}
    for t in crossing:
        bits_up += float(load.up_bits[t])
        bits_down += float(load.down_bits[t])
    waiting = device + bits_up / up + bits_down / down + adapters / up + adapters / down
    watts = 0.0 if load.power_w is None else float(load.power_w[clock])
    return waiting + server, watts * server + load.idle_w * waiting


def least(graph: Network, load: Load, up: float, down: float, x: float, y: float) -> float:
    """The least x D + y E over every closed part and every clock."""
    best = float("inf")
    for part in closed_parts(graph):
        for clock in range(len(load.clocks_hz)):
            delay, energy = delay_and_energy(graph, load, part, clock, up, down)
            best = min(best, x * delay + y * energy)
    return best
