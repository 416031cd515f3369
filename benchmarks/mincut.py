"""How fast is the minimum cut, and do all flow libraries find the same? And where does the cut of a real model's operators fall?

    python -m benchmarks.mincut [--no-model] [--rounds N]

Times of `solver.graphs.mincut` on both of its engines beside networkx, igraph, scipy, ortools and PyMaxflow on the same graphs, building
included, interleaved, medians. What is not installed is fetched by pip into a temporary folder: igraph and PyMaxflow are GPL and stay out of the toolkit.
Then the operators of three models are cut over drawn rates and prices: times are ASSUMED (by FLOPs), shapes are real. Exit 1 where two
libraries disagree.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # products this small lose more to threads than they gain
import numpy as np
from rich.console import Console
from rich.table import Table

from solver.graphs.mincut import Floats, Network, minimum
from solver.graphs.splitter import Load, Splitter

PACKAGES = {
    "networkx": ["networkx"],
    "igraph": ["igraph", "texttable"],
    "ortools": ["ortools", "absl-py", "protobuf", "immutabledict", "typing_extensions"],
    "maxflow": ["PyMaxflow"],
}
Costs = tuple[Network, Floats, Floats, Floats]


def main() -> int:
    """Fetch, time, compare, cut models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of interleaved timing")
    parser.add_argument("--no-model", action="store_true", help="leave out the models, which need torch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fetch(folder)
        wrong = times(options.rounds)
        if not options.no_model:
            models()
    return 1 if wrong else 0


def fetch(folder: str) -> None:
    """Install what is missing where only this process finds it."""
    missing = [name for module, names in PACKAGES.items() if importlib.util.find_spec(module) is None for name in names]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *missing]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            print(f"not all could be installed: {done.stderr.strip()[-200:]}")
        sys.path.insert(0, folder)
        importlib.invalidate_caches()


# --------------------------------------------------------------------------------------------------------------- graphs


def chain_with_skips(size: int, seed: int) -> Costs:
    """Layers in a row; each tensor is read by the next, every third also by one up to 20 further on."""
    rng = random.Random(seed)
    readers = [[v + 1] for v in range(size - 1)]
    for v in range(0, size - 3, 3):
        readers[v].append(rng.randrange(v + 2, min(v + 21, size)))
    return _priced(rng, list(range(size - 1)), readers, size)


def branches(size: int, seed: int) -> Costs:
    """Each vertex reads one to three of the hundred before it; a tensor has any number of readers."""
    rng = random.Random(seed)
    readers: list[list[int]] = [[] for _ in range(size)]
    for v in range(1, size):
        for u in {rng.randrange(max(0, v - 100), v) for _ in range(rng.randint(1, 3))}:
            readers[u].append(v)
    producers = [v for v in range(size) if readers[v]]
    return _priced(rng, producers, [readers[v] for v in producers], size)


def _priced(rng: random.Random, producers: list[int], readers: list[list[int]], size: int) -> Costs:
    ends = np.array([(t, v) for t, row in enumerate(readers) for v in row])
    to_device, to_server = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    to_device[0], to_server[-1] = True, True
    network = Network(np.array(producers), ends[:, 0], ends[:, 1], to_device, to_server)
    draw = np.random.default_rng(rng.randrange(2**32))
    tensor = draw.uniform(0, 5, len(producers)) * draw.choice([0.02, 1.0], len(producers))
    return network, draw.uniform(0, 2, size), draw.uniform(0, 2, size), tensor


def textbook(costs: Costs) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(tails, heads, capacities, vertices) with every edge that docs/graphs.md lists: s is 0, t is 1. Infinite: more than all costs."""
    network, device, server, tensor = costs
    v, x = 2 + np.arange(len(network)), 2 + len(network) + np.arange(len(tensor))
    huge = float(device.sum() + server.sum() + tensor.sum()) * 2
    made, read = network.links
    tails = [np.zeros(len(v), dtype=int), v, v[network.producer], x[network.edge_tensor], v[read]]
    heads = [v, np.ones(len(v), dtype=int), x, v[network.edge_node], v[made]]
    sizes = [
        np.where(network.to_device, huge, server),
        np.where(network.to_server, huge, device),
        tensor,
        np.full(len(network.edge_node), huge),
        np.full(len(made), huge),
    ]
    return np.concatenate(tails), np.concatenate(heads), np.concatenate(sizes), 2 + len(v) + len(x)


# ------------------------------------------------------------------------------------------------------------ libraries


def by_networkx(costs: Costs) -> float:
    import networkx

    tails, heads, sizes, _ = textbook(costs)
    graph = networkx.DiGraph()
    graph.add_weighted_edges_from(zip(tails.tolist(), heads.tolist(), sizes.tolist(), strict=True), weight="capacity")
    return float(networkx.minimum_cut_value(graph, 0, 1))


def by_igraph(costs: Costs) -> float:
    import igraph

    tails, heads, sizes, vertices = textbook(costs)
    graph = igraph.Graph(vertices, np.column_stack([tails, heads]).tolist(), directed=True)
    return float(graph.mincut(0, 1, capacity=sizes.tolist()).value)


def by_scipy(costs: Costs) -> float:
    """One call on int32: the value is off by up to an edge's rounding on each edge."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    tails, heads, sizes, vertices = textbook(costs)
    scale = 2.0**29 / sizes[tails == 0][sizes[tails == 0] < sizes.max()].sum()
    whole = np.minimum(np.floor(sizes * scale), 2.0**29).astype(np.int32)
    flow = maximum_flow(coo_array((whole, (tails, heads)), shape=(vertices, vertices)).tocsr(), 0, 1)
    return float(flow.flow_value) / scale


def by_ortools(costs: Costs) -> float:
    from ortools.graph.python import max_flow

    tails, heads, sizes, _ = textbook(costs)
    scale = 2.0 ** (55 - int(np.ceil(np.log2(sizes.max()))))
    flow = max_flow.SimpleMaxFlow()
    flow.add_arcs_with_capacity(tails, heads, np.floor(sizes * scale).astype(np.int64))
    if flow.solve(0, 1) != flow.OPTIMAL:
        raise ArithmeticError("ortools")
    return float(flow.optimal_flow()) / scale


def by_pymaxflow(costs: Costs) -> float:
    import maxflow

    tails, heads, sizes, vertices = textbook(costs)
    graph = maxflow.Graph[float](vertices, len(tails))
    nodes = graph.add_nodes(vertices - 2)
    source, sink = np.zeros(vertices - 2), np.zeros(vertices - 2)
    np.add.at(source, heads[tails == 0] - 2, sizes[tails == 0])
    np.add.at(sink, tails[heads == 1] - 2, sizes[heads == 1])
    graph.add_grid_tedges(nodes, source, sink)
    inner = (tails != 0) & (heads != 1)
    graph.add_edges(tails[inner] - 2, heads[inner] - 2, sizes[inner], np.zeros(int(inner.sum())))
    return float(graph.maxflow())


def ours(engine: Any) -> Callable[[Costs], float]:
    """`solver.graphs.mincut` as the toolkit calls it."""

    def run(costs: Costs) -> float:
        network = costs[0]
        again = Network(network.producer, network.edge_tensor, network.edge_node, network.to_device, network.to_server)
        return minimum(again, *costs[1:], engine).cost

    return run


LIBRARIES: dict[str, tuple[str, Callable[[Costs], float], float]] = {
    # name: (module, run, how far the value may be off, relative)
    "ours, ortools": ("ortools", ours("ortools"), 1e-11),
    "ours, scipy": ("scipy", ours("scipy"), 1e-11),
    "PyMaxflow": ("maxflow", by_pymaxflow, 1e-9),
    "ortools": ("ortools", by_ortools, 1e-9),
    "igraph": ("igraph", by_igraph, 1e-9),
    "scipy, int32": ("scipy", by_scipy, 1e-3),
    "networkx": ("networkx", by_networkx, 1e-9),
}


def times(rounds: int) -> bool:
    """Print medians in ms; True where two libraries disagree."""
    cases = {
        "chain with skips, 500": chain_with_skips(500, 1),
        "chain with skips, 5000": chain_with_skips(5000, 2),
        "branches, 500": branches(500, 3),
        "branches, 5000": branches(5000, 4),
    }
    table = Table(title=f"Minimum cut, building included: median of {rounds} interleaved rounds (ms)")
    table.add_column("graph")
    there = {n: row for n, row in LIBRARIES.items() if importlib.util.find_spec(row[0]) is not None}
    for name in there:
        table.add_column(name, justify="right")
    table.add_column("worst difference", justify="right")
    wrong = False
    for title, costs in cases.items():
        taken: dict[str, list[float]] = {name: [] for name in there}
        found: dict[str, float] = {}
        for _ in range(rounds):
            for name, (_, run, _) in there.items():
                if name == "networkx" and len(taken[name]) >= 2 and len(costs[0]) > 1000:
                    continue  # it takes seconds
                start = time.perf_counter()
                found[name] = run(costs)
                taken[name].append(time.perf_counter() - start)
        exact = found["ours, scipy"]
        off = {name: abs(value / exact - 1) for name, value in found.items()}
        wrong |= any(off[name] > allowed for name, (_, _, allowed) in there.items())
        float_ones = max(value for name, value in off.items() if name != "scipy, int32")
        cells = [f"{1e3 * float(np.median(taken[name])):.1f}" for name in there]
        table.add_row(title, *cells, f"{float_ones:.0e}, int32 {off['scipy, int32']:.0e}")
    Console(width=170).print(table)
    print("ALL AGREE" if not wrong else "DISAGREEMENT")
    return wrong


# --------------------------------------------------------------------------------------------------------------- models


def models() -> None:
    """Cut the operators of models over drawn rates and prices; print where the cut falls and what contraction and bounds save."""
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build
    from profiler.workload.operators import extract

    table = Table(title="Operators cut over 60 drawn decisions x 100 clocks (shapes real, times ASSUMED by FLOPs)")
    for column in (
        "model", "operators", "at a layer boundary", "inside a layer", "inside saves up to", "flows a decision", "ms, ortools", "without contraction", "ms, scipy", "without contraction",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "model" else "right")
    for title, name, layers_free in (
        ("Llama 3.2 1B, layer 1 on the device", "llama-3.2-1b", False),
        ("Llama 3.2 1B, any cut after the embedding", "llama-3.2-1b", True),
        ("T5-Large (encoder-decoder), layer 1 on the device", "t5-large", False),
    ):
        split = SplitModel(build(WorkloadSpec(name, batch_size=2, seq_len=512, dtype="bfloat16"), "meta"))
        block = extract(split, provenance="emulated")
        layer = np.array([split.segments[o.segment].layer for o in block.operators])
        flops = np.array([o.forward_flops + o.backward_flops for o in block.operators])
        ends = np.array([(t, v) for t, tensor in enumerate(block.tensors) for v in tensor.consumers])
        network = Network(
            np.array([tensor.producer for tensor in block.tensors]),
            ends[:, 0],
            ends[:, 1],
            layer <= (0 if layers_free else 1),
            layer > split.layers - 1,
            layer,
        )
        row = _drawn(network, block, flops)
        table.add_row(title, str(len(layer)), *row)
    Console(width=170).print(table)


def _drawn(network: Network, block: Any, flops: Floats) -> list[str]:
    rng = np.random.default_rng(5)
    hz = np.linspace(0.5e9, 2.5e9, 100)
    up = np.array([40.0 * t.activation_bytes for t in block.tensors])
    down = np.array([40.0 * t.gradient_bytes for t in block.tensors])
    adapters = np.array([8.0 * o.adapter_bytes for o in block.operators])
    # Some operators wait for memory: up to 60 % of their time does not follow the clock.
    waits = rng.uniform(0, 0.6, (len(flops), 1))
    server_s = 5 * flops[:, None] / 8e3 * (waits / 1e9 + (1 - waits) / hz)
    load = Load(5 * flops / 1e12, adapters, server_s, up, down, hz, 25 + 14 * (hz / 1e9) ** 3)
    engines: list[Any] = [name for name in ("ortools", "scipy") if importlib.util.find_spec(name) is not None]
    splitters = [Splitter(network, engine, contracting) for engine in engines for contracting in (True, False)]
    taken: list[list[float]] = [[] for _ in splitters]
    boundaries = network.boundaries()
    whole = inside = flows = 0
    saved, beyond = 0.0, []
    for _ in range(60):
        rates = 10 ** rng.uniform(6, 9.5, 2)
        price = float(10 ** rng.uniform(0, 3))
        speed = 10 ** rng.uniform(-1, 0.5)
        slower = Load(load.device_s / speed, adapters, load.server_s, up, down, hz, load.power_w)
        found = []
        for splitter, times_s in zip(splitters, taken, strict=True):
            start = time.perf_counter()
            found.append(splitter.best(slower, float(rates[0]), float(rates[1]), price, 1.0))
            times_s.append(time.perf_counter() - start)
        best = found[0]
        if any(abs(other.cost / best.cost - 1) > 1e-9 for other in found):
            raise ArithmeticError("contraction or the engine changed the optimum")
        flows += best.flows
        if (boundaries == best.on_device).all(1).any():
            whole += 1
            continue
        inside += 1
        device, server, tensor = slower.prices(float(rates[0]), float(rates[1]), price, 1.0)
        still = boundaries @ device + network.crossing(boundaries) @ tensor
        at = float((still[:, None] + ~boundaries @ server).min())
        saved = max(saved, 1 - best.cost / at)
        below = boundaries[[bool((row <= best.on_device).all()) for row in boundaries]][-1]
        named = [block.operators[v].name for v in np.flatnonzero(best.on_device & ~below)]
        beyond.append(f"{len(named)} operators beyond a boundary, {named[0]} to {named[-1]}")
    for line in dict.fromkeys(beyond):
        print(f"  cut inside a layer: {line}")
    ms = [f"{1e3 * float(np.median(each)):.1f}" for each in taken]
    ms = ["", ""] * (2 - len(engines)) + ms
    return [str(whole), str(inside), f"{100 * saved:.2g} %", f"{flows / 60:.1f} of 100", *ms]


if __name__ == "__main__":
    sys.exit(main())
