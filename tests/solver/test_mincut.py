"""The minimum cut is the cheapest split: against every split one by one, against the scan of chains, with both flow libraries."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.graphs import mincut
from solver.graphs.contraction import blocks, contract, narrow, safe
from solver.graphs.mincut import Network, cost_of, minimum
from solver.graphs.splitter import Load, Splitter
from tests.solver import graphs

ENGINES = ["scipy", *(["ortools"] if importlib.util.find_spec("ortools") else [])]
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.integers(2, 8), integers=st.booleans())
def test_it_finds_what_trying_every_split_and_clock_finds(name: str, seed: int, size: int, integers: bool) -> None:
    rng = random.Random(seed)
    graph = graphs.random_network(rng, size)
    load = graphs.random_load(rng, graph, integers=integers)
    up, down, x, y = 1.0, 2.0, float(rng.randint(0, 3)), float(rng.randint(0, 3))
    for contracting in (False, True):
        best = Splitter(graph, engine=name, contracting=contracting).best(load, up, down, x, y)  # type: ignore[arg-type]
        delay, energy = graphs.delay_and_energy(graph, load, best.on_device, best.clock, up, down)
        expected = graphs.least(graph, load, up, down, x, y)
        assert graph.closed(best.on_device)
        assert x * delay + y * energy == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert best.cost == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, size=st.integers(2, 9))
def test_of_equal_splits_it_takes_the_smallest_device_part(seed: int, size: int) -> None:
    rng = random.Random(seed)
    graph = graphs.random_network(rng, size)
    load = graphs.random_load(rng, graph, clocks=1, integers=True)
    device, server, tensor = load.prices(1.0, 1.0, 1.0, 0.0)
    parts = [np.array(part) for part in graphs.closed_parts(graph)]
    costs = [cost_of(graph, part, device, server[:, 0], tensor) for part in parts]
    smallest = min(int(part.sum()) for part, cost in zip(parts, costs, strict=True) if cost == min(costs))
    for name in ENGINES:
        found = minimum(graph, device, server[:, 0], tensor, name)  # type: ignore[arg-type]
        assert int(found.on_device.sum()) == smallest
        assert found.cost == min(costs)


def without_reverse_edges(graph: Network, device: np.ndarray, server: np.ndarray, tensor: np.ndarray) -> np.ndarray:
    """The same cut by networkx, but with nothing that keeps a device operator from reading what the server made."""
    import networkx as nx

    flow = nx.DiGraph()
    for v in range(len(graph)):
        flow.add_edge("s", ("v", v), capacity=float("inf") if graph.to_device[v] else float(server[v]))
        flow.add_edge(("v", v), "t", capacity=float("inf") if graph.to_server[v] else float(device[v]))
    for u, t, v in graphs.edges_of(graph):
        flow.add_edge(("v", u), ("x", t), capacity=float(tensor[t]))
        flow.add_edge(("x", t), ("v", v))
    _, (side, _) = nx.minimum_cut(flow, "s", "t")
    return np.array([("v", v) in side for v in range(len(graph))])


def test_without_the_reverse_edges_most_answers_run_a_device_operator_after_a_server_operator() -> None:
    pytest.importorskip("networkx")
    broken = understated = 0
    for seed in range(40):
        rng = random.Random(seed)
        graph = graphs.random_network(rng, 14, density=0.15)
        load = graphs.random_load(rng, graph, clocks=1)
        device, server, tensor = load.prices(1.0, 1.0, 1.0, 0.0)
        tensor = tensor / 50  # a fast link: what is cheap where counts more than what crosses
        loose = without_reverse_edges(graph, device, server[:, 0], tensor)
        ours = minimum(graph, device, server[:, 0], tensor)
        assert graph.closed(ours.on_device)
        if not graph.closed(loose):
            broken += 1
            understated += cost_of(graph, loose, device, server[:, 0], tensor) < ours.cost
    assert broken > 30
    assert understated == broken


@settings(max_examples=50, deadline=None)
@given(seed=seeds, size=st.integers(2, 12), engine=st.sampled_from(ENGINES))
def test_on_a_chain_it_is_the_scan_of_all_prefixes(seed: int, size: int, engine: str) -> None:
    rng = random.Random(seed)
    graph = graphs.chain(size)
    load = graphs.random_load(rng, graph, clocks=4)
    x, y = rng.random(), rng.random()
    device, server, tensor = load.prices(3.0, 5.0, x, y)
    scan = [float(device[:c].sum() + tensor[c - 1] + server[c:, k].sum()) for c in range(1, size) for k in range(4)]
    best = Splitter(graph, engine=engine).best(load, 3.0, 5.0, x, y)  # type: ignore[arg-type]
    c, k = divmod(int(np.argmin(scan)), 4)
    assert best.cost == pytest.approx(min(scan), rel=1e-12)
    assert (best.on_device.sum(), best.clock) == (c + 1, k)


def test_capacities_far_beyond_int32_keep_all_their_digits(engine: str) -> None:
    """Two splits that differ in the twelfth digit: an int32 scale sees no difference, the answer must."""
    graph = graphs.chain(4)
    tensor = np.array([1e6, 1.0 + 1e-12, 1.0 + 3e-12])
    server = np.array([0.0, 1e6, 0.0, 0.0])
    found = minimum(graph, np.zeros(4), server, tensor, engine)  # type: ignore[arg-type]
    assert found.on_device.tolist() == [True, True, False, False]
    tensor[1] = 1.0 + 5e-12
    found = minimum(graph, np.zeros(4), server, tensor, engine)  # type: ignore[arg-type]
    assert found.on_device.tolist() == [True, True, True, False]
    assert found.gap < 1e-11


@settings(max_examples=25, deadline=None)
@given(seed=seeds, exponent=st.integers(-200, 200))
def test_the_unit_of_the_costs_does_not_matter(seed: int, exponent: int) -> None:
    rng = random.Random(seed)
    graph = graphs.random_network(rng, 8)
    device, server, tensor = graphs.random_load(rng, graph, clocks=1).prices(1.0, 1.0, 1.0, 1.0)
    unit = 2.0**exponent
    plain = minimum(graph, device, server[:, 0], tensor)
    scaled = minimum(graph, device * unit, server[:, 0] * unit, tensor * unit)
    assert scaled.on_device.tolist() == plain.on_device.tolist()
    assert scaled.cost == plain.cost * unit


# --------------------------------------------------------------------------------------------------------- contraction


def layered(rng: random.Random, layers: int) -> Network:
    """Input, ``layers`` layers of three or four operators with a residual stream or a branch, and the loss."""
    producers: list[int] = []
    consumers: list[list[int]] = []
    layer, last = [0], 0
    for number in range(1, layers + 1):
        first = len(layer)
        kind = rng.randrange(3)
        if kind == 0:  # norm, work, add: the residual stream goes past the work
            producers += [last, first, first + 1]
            consumers += [[first, first + 2], [first + 1], [first + 2]]
            added = 3
        elif kind == 1:  # two branches that meet
            producers += [last, first, first, first + 1, first + 2]
            consumers += [[first], [first + 1], [first + 2], [first + 3], [first + 3]]
            added = 4
        else:  # a chain
            producers += [last, first, first + 1]
            consumers += [[first], [first + 1], [first + 2]]
            added = 3
        layer += [number] * added
        last = first + added - 1
    producers.append(last)
    consumers.append([len(layer)])
    return graphs.network(producers, consumers, len(layer) + 1, [*layer, layers + 1])


@settings(max_examples=100, deadline=None)
@given(seed=seeds, layers=st.integers(1, 4), tilt=st.sampled_from([0.2, 1.0, 5.0]), labelled=st.booleans())
def test_a_block_that_is_called_safe_never_hides_the_optimum(
    seed: int, layers: int, tilt: float, labelled: bool
) -> None:
    rng = random.Random(seed)
    graph = layered(rng, layers)
    if not labelled:
        graph = Network(graph.producer, graph.edge_tensor, graph.edge_node, graph.to_device, graph.to_server)
    device, server, tensor = graphs.random_load(rng, graph, clocks=1, integers=rng.random() < 0.5).prices(1, 2, 1, 0)
    server = server[:, 0] * tilt
    whole = [b for b in blocks(graph) if safe(narrow(graph, b, tensor), (device - server)[b.nodes])]
    small = contract(graph, whole)
    cut = minimum(small.network, *small.costs(device, server), tensor[small.kept])
    best = minimum(graph, device, server, tensor)
    assert cut.cost == pytest.approx(best.cost, rel=1e-12, abs=1e-12)
    if layers == 1:
        parts = (cost_of(graph, np.array(p), device, server, tensor) for p in graphs.closed_parts(graph))
        assert best.cost == pytest.approx(min(parts), rel=1e-12, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_contracting_some_blocks_and_not_others_at_each_clock_changes_no_answer(seed: int) -> None:
    rng = random.Random(seed)
    graph = layered(rng, 4)
    load = graphs.random_load(rng, graph, clocks=3)
    load = replace(load, server_s=load.server_s * np.resize([0.2] * 4 + [1.0] * 4 + [4.0] * 4, len(graph))[:, None])
    whole, plain = (Splitter(graph, contracting=c).best(load, 1.0, 2.0, 1.0, 0.1) for c in (True, False))
    assert whole.cost == pytest.approx(plain.cost, rel=1e-12)
    assert whole.clock == plain.clock


def test_safe_blocks_are_found_and_both_reasons_for_them_occur() -> None:
    entering = leaving = 0
    for seed in range(60):
        rng = random.Random(seed)
        graph = layered(rng, 2)
        load = graphs.random_load(rng, graph, clocks=1)
        device, server, tensor = load.prices(1, 2, 1, 0)
        for block in blocks(graph):
            widths = narrow(graph, block, tensor)
            entering += safe(widths, (device + 10 - server[:, 0])[block.nodes]) and widths.as_entering
            leaving += safe(widths, (device - 10 - server[:, 0])[block.nodes]) and widths.as_leaving
    assert entering > 10
    assert leaving > 10


def test_the_weaker_rule_of_no_smaller_inner_cut_alone_loses_the_optimum() -> None:
    """Bytes alone: contract a block whose inner cuts are all at least as wide as both ends, whatever its operators cost."""
    lost = worst = 0.0
    for seed in range(300):
        rng = random.Random(seed)
        graph = layered(rng, 4)
        device, server, tensor = graphs.random_load(rng, graph, clocks=1).prices(1, 2, 1, 0)
        tensor = tensor / 5
        wide = [b for b in blocks(graph) if (w := narrow(graph, b, tensor)).as_entering and w.as_leaving]
        small = contract(graph, wide)
        cut = minimum(small.network, *small.costs(device, server[:, 0]), tensor[small.kept])
        best = minimum(graph, device, server[:, 0], tensor)
        lost += cut.cost > best.cost * (1 + 1e-9)
        worst = max(worst, cut.cost / best.cost - 1)
    assert lost > 5
    assert worst > 0.05


# -------------------------------------------------------------------------------------------------------------- clocks


def test_clocks_are_left_out_only_where_a_bound_proves_them_worse() -> None:
    rng = random.Random(7)
    graph = layered(rng, 3)
    load = graphs.random_load(rng, graph, clocks=1)
    hz = np.linspace(0.5e9, 2.5e9, 100)
    per_clock = load.server_s * (0.2 + 1e9 / hz)
    load = Load(
        load.device_s, load.adapter_bits, per_clock, load.up_bits, load.down_bits, hz, 20 + 10 * (hz / 1e9) ** 3
    )
    splitter = Splitter(graph)
    best = splitter.best(load, 1.0, 1.0, 1.0, 0.02)
    device, server, tensor = load.prices(1.0, 1.0, 1.0, 0.02)
    each = [minimum(graph, device, server[:, k], tensor).cost for k in range(100)]
    assert best.cost == pytest.approx(min(each), rel=1e-12)
    assert best.clock == int(np.argmin(each))
    assert best.flows < 30


def test_a_graph_with_nothing_to_decide_is_answered_without_a_flow() -> None:
    graph = graphs.chain(2)
    found = minimum(graph, np.array([1.0, 2.0]), np.array([4.0, 8.0]), np.array([16.0]))
    assert (found.on_device.tolist(), found.cost, found.gap) == ([True, False], 25.0, 0.0)


def test_the_engine_is_ortools_where_it_is_installed() -> None:
    assert mincut._engine() == ("ortools" if "ortools" in ENGINES else "scipy")
