"""Graphs as JSON: read, refused in one line, split; limits on memory; the fleets' own graphs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput, Operator, OperatorsBlock, OperatorTensor, Profile
from solver.graphs import graph as graphs_json
from solver.graphs.answer import Answer, GraphOptions, answer_schema, solve_graph
from solver.graphs.graph import Graph, load
from solver.graphs.limits import Limit, cheapest_within, every_split
from solver.problem import SolveOptions
from solver.scenario import solve
from tests.solver import graphs
from tests.synthetic import make_profile

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "branches.json"


def document() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(EXAMPLE.read_text())
    return data


def node(data: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in data["model"]["nodes"] if n["name"] == name)
    return found


# -------------------------------------------------------------------------------------------------------- the document


def test_a_graph_survives_writing_and_reading_and_fits_its_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    graph = load(EXAMPLE)
    path = tmp_path / "again.json"
    path.write_text(graph.model_dump_json())
    assert load(path) == graph
    jsonschema.validate(document(), graphs_json.schema())
    answer = solve_graph(graph)
    jsonschema.validate(json.loads(answer.model_dump_json()), answer_schema())
    assert Answer.model_validate_json(answer.model_dump_json()) == answer


def test_the_example_is_cut_inside_its_branches_at_the_squeezed_tensor() -> None:
    answer = solve_graph(load(EXAMPLE))
    assert answer.device == ["camera", "microphone", "frames", "squeeze"]
    assert [(t.producer, t.consumers) for t in answer.crossing] == [
        ("microphone", ["spectrum"]),
        ("squeeze", ["expand", "fuse"]),
    ]
    assert answer.split.cost < min(row.cost for row in answer.alternatives)
    # 5 mini-batches: a tensor with two readers crosses once, up at 80 and down at 200 Mbit/s.
    assert answer.split.uplink_s == pytest.approx(5 * 8 * (256000 + 401408) / 80e6)
    assert answer.split.downlink_s == pytest.approx(5 * 8 * 401408 / 200e6)
    assert answer.split.adapters_s == pytest.approx(8 * 16384 * (1 / 80e6 + 1 / 200e6))
    assert answer.split.device_compute_s == pytest.approx(5 * 15e9 / 5e11)
    assert answer.split.server_compute_s == pytest.approx(
        5 * (27e9 + 3e9 + 18e9 + 3e8) / 4000 / answer.split.frequency_hz
    )
    watts = dict(zip([9e8, 1.5e9, 2.1e9], [60.0, 95.0, 160.0], strict=True))[answer.split.frequency_hz]
    assert answer.split.energy_j == pytest.approx(watts * answer.split.server_compute_s)
    assert answer.split.cost == pytest.approx(100 * answer.split.delay_s + (answer.split.energy_j or 0))


def test_the_page_about_graphs_says_what_comes_out() -> None:
    text = (EXAMPLE.parents[1] / "graphs.md").read_text()
    block = text.split("```json")[1].split("```")[0]
    answer = solve_graph(Graph.model_validate_json(block, strict=True))
    alone = {row.name: row.delay_s for row in answer.alternatives}
    assert answer.device == ["image", "down", "narrow"]
    assert (
        f"The round takes {answer.split.delay_s:.4f} s and {answer.split.energy_j:.3f} J at {answer.split.frequency_hz / 1e9:g} GHz; "
        f"the server alone would need {alone['all on the server']:.3f} s, the device alone {alone['all on the device']:.3f} s."
        in text
    )
    shown = solve_graph(load(EXAMPLE))
    costs = {row.name: row.cost for row in shown.alternatives}
    assert (
        f"{shown.split.cost:.1f} J at 100 J/s against {costs['all on the device']:.1f} J with all on the device and "
        f"{costs['all on the server']:.0f} J with all on the server" in text
    )


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *above, last = path.split("/")
        for step in above:
            data = data[int(step)] if isinstance(data, list) else data[step]
        if isinstance(data, list):
            data[int(last)] = value
        else:
            data[last] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("format", "card-graph/2"), 'field format is .card-graph/2., expected "card-graph/1"'),
        (change("model/tensors/6/consumers", ["answer", "frames"]), "a cycle through"),
        (change("model/tensors/2/consumers", ["squeez"]), r"tensors\[2\].consumers: no node is named 'squeez'"),
        (change("model/tensors/2/producer", "lens"), r"tensors\[2\].producer: no node is named 'lens'"),
        (change("model/tensors/2/consumers", []), "field model.tensors.2.consumers"),
        (change("model/tensors/2/activation_bytes", -1), r"field model.tensors.2.activation_bytes is -1: .*greater than or equal to 0"),
        (change("model/nodes/2/forward_flops", -1.0), "field model.nodes.2.forward_flops"),
        (change("model/nodes/2/forward_flops", "4e9"), r"field model.nodes.2.forward_flops is .*: .*valid number"),
        (change("model/nodes/2/flops", 1.0), "field model.nodes.2.flops: Extra"),
        (change("model/nodes/1/name", "camera"), "the name 'camera' stands there twice"),
        (change("model/nodes/7/kind", "operator"), "no sink, expected at least one node of kind 'loss'"),
        (change("model/nodes/2/layer", 1), "node 'camera': no layer, expected one for every node or for none"),
        (change("model/nodes/0/side", "server"), "node 'camera': an input is the device's, found side .server."),
        (change("model/nodes/2/side", "server"), None),
        (change("device/flops_per_s", None), "device: expected one of seconds or flops_per_s"),
        (change("device/flops_per_s", 0.5), "field device.flops_per_s"),
        (change("server/laws", {}), "server: expected one of seconds, laws or flops_per_cycle"),
        (change("server/clocks_hz", [9e8, 2.1e9, 1.5e9]), "clocks_hz must be ascending"),
        (change("server/clocks_hz", [900.0, 1500.0, 2100.0]), "field server.clocks_hz.0"),
        (change("power/power_w", [60.0]), "power.power_w: 1 figures, expected one for each of server.clocks_hz"),
        (change("link/uplink_mbps", 0.0), "field link.uplink_mbps"),
        (change("model/provenance", "guessed"), "field model.provenance"),
        (change("model/provenance", "literature"), "provenance 'literature' needs a source"),
        (change("device/memory_bytes", 1000), None),
    ],
)  # fmt: skip
def test_a_bad_graph_is_refused_in_one_line(
    spoil: Callable[[dict[str, Any]], None], message: str | None, tmp_path: Path
) -> None:
    data = document()
    spoil(data)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(data))
    if message is None:
        load(path)
        return
    with pytest.raises(BadInput, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_node_that_nothing_touches_and_one_that_has_no_place_are_named() -> None:
    data = document()
    data["model"]["nodes"].append({"name": "lonely"})
    with pytest.raises(ValueError, match="node 'lonely': no tensor comes from it or goes to it"):
        Graph.model_validate(data)
    data = document()
    node(data, "fuse")["side"] = "device"
    node(data, "frames")["side"] = "server"
    with pytest.raises(ValueError, match="something on the device needs it and it needs something on the server"):
        Graph.model_validate(data)


def test_times_for_each_node_must_name_every_node_that_may_run_there() -> None:
    data = document()
    del data["device"]["flops_per_s"]
    names = [n["name"] for n in data["model"]["nodes"] if n["name"] != "answer"]
    data["device"]["seconds"] = dict.fromkeys(names, 0.1)
    graph = Graph.model_validate(data)
    assert graph.device_s().tolist() == [0.1] * 7 + [0.0]
    del data["device"]["seconds"]["expand"]
    with pytest.raises(ValueError, match=r"device.seconds: nothing for node 'expand', which may run there"):
        Graph.model_validate(data)
    data["device"]["seconds"] |= {"expand": 0.1, "elsewhere": 0.1}
    with pytest.raises(ValueError, match=r"device.seconds: no node is named 'elsewhere'"):
        Graph.model_validate(data)


def test_seconds_laws_and_flops_of_the_server_say_the_same_where_they_mean_the_same() -> None:
    plain = load(EXAMPLE)
    clocks = np.array(plain.server.clocks_hz)
    table = plain.server_s(clocks)
    names = [n.name for n in plain.model.nodes]
    for field, value in (
        ("seconds", {name: row.tolist() for name, row in zip(names, table, strict=True)}),
        ("laws", {name: {"b_cycles": row[0] * clocks[0]} for name, row in zip(names, table, strict=True)}),
    ):
        data = document()
        del data["server"]["flops_per_cycle"]
        data["server"][field] = value
        again = solve_graph(Graph.model_validate(data))
        assert again.device == solve_graph(plain).device
        assert again.split.cost == pytest.approx(solve_graph(plain).split.cost, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w": 0.5, "price_j_per_s": 5.0}, "--w, --price: expected one of them"),
        ({"w": 1.5}, "--w 1.5: expected a number from 0 to 1"),
        ({"price_j_per_s": -1.0}, "--price -1: expected"),
        ({"uplink_mbps": 5.0}, "--downlink-mbps: expected with the other rate"),
        ({"uplink_mbps": 0.0, "downlink_mbps": 1.0}, "--uplink-mbps 0: expected a rate"),
        ({"compression": 0.0}, "--compression 0: expected"),
        ({"mini_batches": 0}, "--local-epochs 0: expected"),
        (
            {"f_min_ghz": 3.0},
            "--f-min-ghz, --f-max-ghz: the server has no clock there, expected some of 0.9 to 2.1 GHz",
        ),
        ({"require_measured": True}, "--require-measured: expected measured figures only"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        solve_graph(load(EXAMPLE), GraphOptions(**options))


def test_without_watts_a_graph_is_split_by_delay_alone() -> None:
    data = document()
    del data["power"]
    graph = Graph.model_validate(data)
    with pytest.raises(
        BadInput, match="field power is empty, expected the server's watts at each clock; or decide by delay"
    ):
        solve_graph(graph)
    answer = solve_graph(graph, GraphOptions(w=1.0))
    assert answer.split.energy_j is None
    assert answer.split.frequency_hz == 2.1e9


# ---------------------------------------------------------------------------------------------------------- objectives


def test_u_has_its_extremes_from_the_layer_boundaries_where_there_are_layers() -> None:
    data = document()
    answer = solve_graph(Graph.model_validate(data), GraphOptions(w=0.5))
    assert answer.extremes is not None
    assert answer.extremes.over == "all on either side"
    for name, layer in zip(
        ["camera", "microphone", "frames", "squeeze", "expand", "spectrum", "fuse", "answer"],
        [0, 0, 1, 1, 2, 2, 3, 4],
        strict=True,
    ):
        node(data, name)["layer"] = layer
    layered = solve_graph(Graph.model_validate(data), GraphOptions(w=0.5))
    assert layered.extremes is not None
    assert layered.extremes.over == "layer boundaries"
    graph = Graph.model_validate(data)
    clocks = [0, 1, 2]
    figures = [
        _delay_and_energy(graph, [layer <= c for layer in [0, 0, 1, 1, 2, 2, 3, 4]], k)
        for c in range(4)
        for k in clocks
    ]
    assert layered.extremes.d_max_s == pytest.approx(max(d for d, _ in figures))
    assert layered.extremes.e_min_j == pytest.approx(min(e for _, e in figures))
    assert "best layer boundary" in [row.name for row in layered.alternatives]


def _delay_and_energy(graph: Graph, part: list[bool], clock: int) -> tuple[float, float]:
    from solver.graphs.answer import _Posed

    posed = _Posed(graph, GraphOptions())
    return graphs.delay_and_energy(posed.network, posed.load, part, clock, posed.up_bps, posed.down_bps)


def test_u_of_a_split_that_beats_both_extremes_is_below_zero() -> None:
    answer = solve_graph(load(EXAMPLE), GraphOptions(w=1.0))
    assert answer.extremes is not None
    span = answer.extremes.d_max_s - answer.extremes.d_min_s
    assert answer.split.delay_s < answer.extremes.d_min_s
    assert answer.split.cost == pytest.approx((answer.split.delay_s - answer.extremes.d_min_s) / span)
    assert answer.split.cost < min(row.cost for row in answer.alternatives if row.name.startswith("all on"))


@pytest.mark.parametrize("limit", [{"f_min_ghz": -1.0}, {"f_max_ghz": 0.0}, {"f_max_ghz": 1e3}])
def test_limits_that_are_no_clocks_are_refused(limit: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=r"--f-m.._?-?ghz .*: expected a clock in GHz from 0\.001 to 100"):
        solve_graph(load(EXAMPLE), GraphOptions(**limit))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), w=st.floats(0, 1), idle=st.booleans())
def test_a_random_document_is_split_as_trying_every_split_does(seed: int, w: float, idle: bool) -> None:
    rng = random.Random(seed)
    network = graphs.random_network(rng, rng.randint(3, 8))
    graph = _as_document(rng, network)
    for options in (GraphOptions(w=w, count_idle=idle), GraphOptions(price_j_per_s=50 * w, count_idle=idle)):
        answer = solve_graph(graph, options)
        from solver.graphs.answer import _Posed

        posed = _Posed(graph, options)
        (x, y), extremes = posed.weights()
        best = graphs.least(posed.network, posed.load, posed.up_bps, posed.down_bps, x, y)
        energy = answer.split.energy_j or 0.0
        assert x * answer.split.delay_s + y * energy == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert answer.split.cost == pytest.approx(posed.cost(extremes, answer.split.delay_s, energy), abs=1e-12)


def _as_document(rng: random.Random, network: Any, **machines: Any) -> Graph:
    count = len(network)
    kinds = ["input", *["operator"] * (count - 2), "loss"]
    return Graph.model_validate(
        {
            "name": "random",
            "model": {
                "provenance": "assumed",
                "nodes": [
                    {"name": f"n{v}", "kind": kind, "adapter_bytes": rng.randint(0, 10**4), "memory_bytes": rng.randint(1, 9)}
                    for v, kind in enumerate(kinds)
                ],
                "tensors": [
                    {
                        "producer": f"n{network.producer[t]}",
                        "consumers": [f"n{v}" for v in network.edge_node[network.edge_tensor == t]],
                        "activation_bytes": rng.randint(0, 10**6),
                        "gradient_bytes": rng.randint(0, 10**6),
                    }
                    for t in range(len(network.producer))
                ],
            },
            "device": {"provenance": "assumed", "name": "d", "seconds": {f"n{v}": rng.random() for v in range(count)}},
            "server": {
                "provenance": "assumed",
                "name": "s",
                "clocks_hz": [1e9, 1.7e9, 2e9],
                "seconds": {f"n{v}": sorted((rng.random() for _ in range(3)), reverse=True) for v in range(count)},
            },
            "power": {"provenance": "assumed", "power_w": [20.0, 50.0, 90.0], "idle_w": 10.0},
            "link": {"provenance": "assumed", "uplink_mbps": 50.0, "downlink_mbps": 90.0},
        }
        | machines
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- memory


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(3, 8), both=st.booleans())
def test_within_memory_few_splits_are_tried_all_and_the_multiplier_bounds_the_best(
    seed: int, size: int, both: bool
) -> None:
    rng = random.Random(seed)
    graph = graphs.random_network(rng, size)
    device, server, tensor = graphs.random_load(rng, graph, clocks=1).prices(1.0, 2.0, 1.0, 0.0)
    needs = np.array([float(rng.randint(1, 9)) for _ in range(size)])
    limits = [Limit("d", True, needs, needs[0] + rng.random() * (needs.sum() - needs[0]))]
    if both:
        limits.append(Limit("s", False, needs, needs[-1] + rng.random() * (needs.sum() - needs[-1])))
    best = float("inf")
    for part in graphs.closed_parts(graph):
        on = np.array(part)
        if all(float(limit.used(on)) <= limit.limit_bytes for limit in limits):
            best = min(best, float(device[on].sum() + server[~on, 0].sum() + tensor[graph.crossing(on)].sum()))
    splits = every_split(graph)
    assert splits is not None
    assert len(splits) == len(list(graphs.closed_parts(graph)))
    exact = cheapest_within(graph, device, server[:, 0], tensor, limits, splits)
    assert exact.cost == pytest.approx(best, rel=1e-12)
    bounded = cheapest_within(graph, device, server[:, 0], tensor, limits, None)
    if best < float("inf"):
        assert bounded.bound <= best * (1 + 1e-9) + 1e-9
        assert bounded.cost >= best * (1 - 1e-12)
    if bounded.on_device is not None:
        assert graph.closed(bounded.on_device)
        assert all(float(limit.used(bounded.on_device)) <= limit.limit_bytes for limit in limits)


def test_a_limit_moves_the_cut_and_one_that_nothing_keeps_is_named() -> None:
    data = document()
    data["device"]["memory_bytes"] = 4_500_000  # frames and squeeze need 5 MB
    answer = solve_graph(Graph.model_validate(data))
    assert "frames" not in answer.device or "squeeze" not in answer.device
    assert answer.gap == 0
    data["server"]["memory_bytes"] = 5_000_000  # fuse alone needs 6 MB: it must not be there
    with pytest.raises(BadInput, match="no split fits in the memory of board and server"):
        solve_graph(Graph.model_validate(data))
    node(data, "frames")["side"] = "device"
    data["device"]["memory_bytes"] = 1000
    with pytest.raises(BadInput, match=r"what must be on board needs 4e\+06 bytes, it has 1000"):
        solve_graph(Graph.model_validate(data))


def test_on_a_graph_with_too_many_splits_the_gap_of_the_multiplier_is_told() -> None:
    rng = random.Random(3)
    wide = graphs.network([0, *range(1, 21)], [list(range(1, 21))] + [[21]] * 20, 22)
    assert every_split(wide) is None
    graph = _as_document(rng, wide, device={"provenance": "assumed", "name": "d", "memory_bytes": 45, "seconds": {f"n{v}": 0.01 for v in range(22)}})  # fmt: skip
    answer = solve_graph(graph, GraphOptions(price_j_per_s=100.0))
    used = sum(n.memory_bytes or 0 for n in graph.model.nodes if n.name in answer.device)
    assert used <= 45
    assert answer.gap > 0
    assert "too many splits to try them all" in answer.warnings[0]


# -------------------------------------------------------------------------------------------------------------- fleets


def fleet(layers: int = 5, **server: Any) -> list[Profile]:
    return [make_profile("srv", "server", layers=layers, **server), make_profile("dev", layers=layers)]


@pytest.mark.parametrize("w", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("rates", [(5.0, 9.0), (80.0, 200.0), (5000.0, 9000.0)])
def test_on_a_chain_of_layers_min_cut_decides_what_exact_decides(w: float, rates: tuple[float, float]) -> None:
    options = SolveOptions(w=w, uplink_mbps=rates[0], downlink_mbps=rates[1], count_idle=True)
    exact = solve(fleet(), options)
    ours = solve(fleet(), replace(options, method="min-cut"))
    assert ours.decisions.cut.tolist() == exact.decisions.cut.tolist()
    assert ours.decisions.frequency_hz.tolist() == exact.decisions.frequency_hz.tolist()
    assert ours.decisions.cost.tolist() == exact.decisions.cost.tolist()
    priced = solve(fleet(), replace(options, method="min-cut", price_j_per_s=30.0))
    assert (
        priced.decisions.cost.tolist() == solve(fleet(), replace(options, price_j_per_s=30.0)).decisions.cost.tolist()
    )


def test_on_the_letters_fleet_it_decides_what_exact_decides_over_a_range_of_clocks() -> None:
    from profiler.store import load_fleet

    letter = load_fleet(Path(__file__).resolve().parents[2] / "profiles" / "letter")
    for w in (0.1, 0.2, 0.6):
        exact, ours = (solve(letter, SolveOptions(method=method, w=w, rounds=3)) for method in ("exact", "min-cut"))
        assert ours.decisions.cut.tolist() == exact.decisions.cut.tolist()
        assert ours.decisions.cost == pytest.approx(exact.decisions.cost, rel=1e-12)


def test_memory_limits_of_a_fleet_hold_for_min_cut_too() -> None:
    small = make_profile("dev", layers=5)
    small = small.model_copy(update={"hardware": small.hardware.model_copy(update={"memory_bytes": 2 * 10**8})})
    tight = [make_profile("srv", "server", layers=5), small]
    options = SolveOptions(w=0.1, uplink_mbps=500.0, downlink_mbps=500.0)
    exact, ours = solve(tight, options), solve(tight, replace(options, method="min-cut"))
    assert exact.decisions.cut.tolist() == ours.decisions.cut.tolist()
    assert int(ours.decisions.cut[0]) <= 2


def operators(narrow_bytes: int) -> OperatorsBlock:
    """Three operators in each of five layers; the first hands only ``narrow_bytes`` to the second."""
    rows = [Operator(name="embedding", segment=0)]
    tensors: list[OperatorTensor] = []
    for layer in range(1, 6):
        first = len(rows)
        for i, share in enumerate((3e8, 1e8, 6e8)):
            rows.append(
                Operator(name=f"layer.{layer}.{i}", segment=layer, forward_flops=share, backward_flops=share, adapter_bytes=500 * (i < 2))
            )  # fmt: skip
        sizes = (10**6, narrow_bytes, 2 * 10**6)
        for i, size in enumerate(sizes):
            tensors.append(OperatorTensor(producer=first + i - 1, consumers=[first + i], activation_bytes=size, gradient_bytes=size))  # fmt: skip
    rows.append(Operator(name="head", segment=6, forward_flops=2e9, backward_flops=2e9))
    tensors.append(OperatorTensor(producer=len(rows) - 2, consumers=[len(rows) - 1], activation_bytes=10**6, gradient_bytes=10**6))  # fmt: skip
    return OperatorsBlock(provenance="emulated", operators=rows, tensors=tensors)


def test_a_cut_inside_a_layer_is_reported_by_the_last_whole_layer_and_the_operators_beyond_it() -> None:
    options = SolveOptions(w=0.9, uplink_mbps=5.0, downlink_mbps=5.0)
    plain = solve(fleet(), options)
    found = solve(fleet(operators=operators(1000)), replace(options, method="min-cut"))
    row = found.as_json()["decisions"][0]
    assert row["cut"] + 1 == row["inside_layer"]
    assert row["device_operators"] == [f"layer.{row['inside_layer']}.0"]
    assert found.decisions.cost[0] < plain.decisions.cost[0]
    # Every term by hand: three tenths of a layer's time and one of its adapters are the device's, 1 kB crosses five times.
    model, cut, hz = found.problem.evaluated, row["cut"], row["frequency_hz"]
    below = model.at(0, 5e6, 5e6, cut - 1, hz)
    above = model.at(0, 5e6, 5e6, cut, hz)
    costs = found.decisions.costs
    assert costs.device_compute_s[0] == pytest.approx(
        below.device_compute_s + 0.3 * (above.device_compute_s - below.device_compute_s)
    )
    assert costs.server_compute_s[0] == pytest.approx(
        below.server_compute_s + 0.3 * (above.server_compute_s - below.server_compute_s)
    )
    assert costs.adapters_s[0] == pytest.approx((below.adapters_s + above.adapters_s) / 2)
    assert costs.uplink_s[0] == pytest.approx(5 * 8000 / 5e6)
    assert costs.delay_s[0] == pytest.approx(
        costs.device_compute_s[0]
        + costs.server_compute_s[0]
        + costs.uplink_s[0]
        + costs.downlink_s[0]
        + costs.adapters_s[0]
    )
    assert costs.energy_j is not None
    watts = model.server_power.at(np.array([hz]))[0] if model.server_power is not None else 0.0
    assert costs.energy_j[0] == pytest.approx(watts * costs.server_compute_s[0])
    assert any("times of operators" in item.quantity for item in found.assumptions)


def test_where_inner_tensors_are_as_wide_as_the_stream_operators_change_nothing() -> None:
    for w in (0.1, 0.5, 0.9):
        options = SolveOptions(w=w, uplink_mbps=20.0, downlink_mbps=20.0)
        found = solve(fleet(operators=operators(10**6)), replace(options, method="min-cut"))
        assert found.decisions.cut.tolist() == solve(fleet(), options).decisions.cut.tolist()
        assert "inside_layer" not in found.as_json()["decisions"][0]


def test_of_equal_cuts_one_at_a_layer_boundary_is_taken() -> None:
    """The last operator of a layer costs nothing and hands on what it reads, as an encoder's final norm does."""
    block = operators(10**6)
    rows = [o if o.segment != 4 or not o.name.endswith("2") else o.model_copy(update={"forward_flops": 0.0, "backward_flops": 0.0}) for o in block.operators]  # fmt: skip
    tensors = [t.model_copy(update={"activation_bytes": 10**6, "gradient_bytes": 10**6}) for t in block.tensors]
    free = block.model_copy(update={"operators": rows, "tensors": tensors})
    for w in (0.05, 0.2, 0.5, 0.9):
        options = SolveOptions(w=w, uplink_mbps=20.0, downlink_mbps=20.0, method="min-cut")
        found = solve([*fleet(operators=free)], options)
        assert "inside_layer" not in found.as_json()["decisions"][0]
        assert found.decisions.cut.tolist() == solve(fleet(), replace(options, method="exact")).decisions.cut.tolist()


def test_operators_that_do_not_agree_with_the_sizes_of_the_cuts_are_refused() -> None:
    block = operators(1000)
    tensors = [t.model_copy(update={"activation_bytes": 5}) for t in block.tensors]
    with pytest.raises(
        BadInput, match="profile srv: field operators: tensors of 5 bytes cross at cut 1, expected 1000000"
    ):
        solve(fleet(operators=block.model_copy(update={"tensors": tensors})), SolveOptions(method="min-cut"))
