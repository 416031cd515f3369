"""A model graph as JSON: who reads what, what it costs where, and the machines and link between which it is split.

The document is for graphs that no profile holds: vision models, branches, several inputs, figures from elsewhere. `load` reads one; its schema is
what ``card-solve graph-schema`` prints. Every block of figures bears its provenance, units stand in the field names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints, model_validator

from profiler.profile import (
    MAX_CLOCKS,
    Block,
    Bytes,
    Compression,
    Document,
    Flops,
    Hertz,
    Link,
    Name,
    Seconds,
    Text,
    Watts,
)
from profiler.store import document_schema, read_document
from solver.graphs.mincut import Floats, Network

FORMAT: Literal["card-graph/1"] = "card-graph/1"
MAX_NODES = 100_000

NodeName = Annotated[str, StringConstraints(pattern=r"^\S.{0,199}$")]


class Node(Document):
    """One operator or layer, and what follows from shapes. ``layer`` numbers layers, for every node or for none."""

    name: NodeName
    kind: Literal["input", "operator", "layer", "loss"] = Field(
        default="operator", description="An input stays on the device, a loss on the server"
    )
    side: Literal["device", "server"] | None = Field(default=None, description="Pinned there; null: free")
    layer: int | None = Field(default=None, ge=0, le=MAX_NODES)
    forward_flops: Flops = 0.0
    backward_flops: Flops = 0.0
    weight_bytes: Bytes = 0
    adapter_bytes: Bytes = Field(default=0, description="Sent up and down once a round if the node is on the device")
    memory_bytes: Bytes | None = Field(
        default=None, description="All it needs where it trains; null: its weights and adapters alone"
    )

    @property
    def pinned(self) -> Literal["device", "server"] | None:
        """Where it must be; None: anywhere."""
        return {"input": "device", "loss": "server"}.get(self.kind, self.side)  # type: ignore[return-value]


class Tensor(Document):
    """What one node hands on in a mini-batch. It crosses once, however many nodes read it on the other side."""

    producer: NodeName
    consumers: list[NodeName] = Field(min_length=1, max_length=MAX_NODES)
    activation_bytes: Bytes
    gradient_bytes: Bytes = Field(description="0 where no gradient comes back")


class Model(Block):
    """The graph itself: FLOPs and bytes, which the provenance is of."""

    nodes: list[Node] = Field(min_length=2, max_length=MAX_NODES)
    tensors: list[Tensor] = Field(min_length=1, max_length=MAX_NODES)


class Law(Document):
    """Seconds of a mini-batch through one node at clock f: a_s + b_cycles / f."""

    a_s: Seconds = 0.0
    b_cycles: float = Field(default=0.0, ge=0, le=1e24)


class Device(Block):
    """The device: seconds of a mini-batch (forward, backward, optimizer) through each node, or FLOP/s."""

    name: Name
    seconds: dict[NodeName, Seconds] | None = None
    flops_per_s: float | None = Field(default=None, ge=1.0, le=1e20)
    memory_bytes: Bytes | None = None


class Server(Block):
    """The server at each of its clocks: seconds of each node there, or a law in the clock, or FLOPs in a cycle."""

    name: Name
    clocks_hz: list[Hertz] = Field(min_length=1, max_length=MAX_CLOCKS, description="Ascending")
    seconds: dict[NodeName, list[Seconds]] | None = Field(default=None, description="One for each of clocks_hz")
    laws: dict[NodeName, Law] | None = None
    flops_per_cycle: float | None = Field(default=None, ge=1e-6, le=1e12)
    memory_bytes: Bytes | None = None


class Power(Block):
    """Watts of the server while it computes, at each of its clocks, and while it waits."""

    power_w: list[Watts] = Field(min_length=1, max_length=MAX_CLOCKS, description="One for each of server.clocks_hz")
    idle_w: Watts | None = None


class Graph(Document):
    """A graph to split. Provenance, basis and source are a profile's (see the profile format)."""

    format: Literal["card-graph/1"] = FORMAT
    name: Name
    note: Text | None = None
    mini_batches: int = Field(default=5, ge=1, le=10**9, description="N in a round")
    model: Model
    device: Device
    server: Server
    power: Power | None = None
    link: Link | None = None
    compression: Compression | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Graph:
        names = [node.name for node in self.model.nodes]
        known = set(names)
        if len(known) < len(names):
            raise ValueError(
                f"model.nodes: the name {next(n for n in names if names.count(n) > 1)!r} stands there twice"
            )
        for i, tensor in enumerate(self.model.tensors):
            for field, reader in (("producer", tensor.producer), *(("consumers", c) for c in tensor.consumers)):
                if reader not in known:
                    raise ValueError(f"model.tensors[{i}].{field}: no node is named {reader!r}")
            if tensor.producer in tensor.consumers:
                raise ValueError(f"model.tensors[{i}]: {tensor.producer!r} reads what it makes")
        self._pins()
        self._times()
        return self

    def _pins(self) -> None:
        nodes = self.model.nodes
        for kind, where in (("input", "source"), ("loss", "sink")):
            if not any(node.kind == kind for node in nodes):
                raise ValueError(f"model.nodes: no {where}, expected at least one node of kind {kind!r}")
        for node in nodes:
            if node.side is not None and node.pinned != node.side:
                raise ValueError(f"node {node.name!r}: an {node.kind} is the {node.pinned}'s, found side {node.side!r}")
        numbered = [node.layer is not None for node in nodes]
        if any(numbered) and not all(numbered):
            missing = nodes[numbered.index(False)].name
            raise ValueError(f"node {missing!r}: no layer, expected one for every node or for none")
        network = self.network()
        try:
            order = network.order
        except ValueError as error:
            raise ValueError(f"model.tensors: a cycle through {nodes[error.args[0]].name!r}") from None
        assert len(order) == len(nodes)
        touched = np.zeros(len(nodes), dtype=bool)
        touched[network.producer] = touched[network.edge_node] = True
        if not touched.all():
            raise ValueError(
                f"node {nodes[int(np.flatnonzero(~touched)[0])].name!r}: no tensor comes from it or goes to it"
            )
        # An input that rests on the loss, say, has no place to stand.
        torn = np.flatnonzero(network.smallest & ~network.largest)
        if len(torn):
            raise ValueError(
                f"node {nodes[int(torn[0])].name!r}: something on the device needs it and it needs something on the server"
            )

    def _times(self) -> None:
        for where, given, choices in (
            ("device", (self.device.seconds, self.device.flops_per_s), "seconds or flops_per_s"),
            (
                "server",
                (self.server.seconds, self.server.laws, self.server.flops_per_cycle),
                "seconds, laws or flops_per_cycle",
            ),
        ):
            if sum(value is not None for value in given) != 1:
                raise ValueError(f"{where}: expected one of {choices}")
        clocks = self.server.clocks_hz
        if sorted(set(clocks)) != clocks:
            raise ValueError("server.clocks_hz must be ascending without repeats")
        if self.power is not None and len(self.power.power_w) != len(clocks):
            raise ValueError(
                f"power.power_w: {len(self.power.power_w)} figures, expected one for each of server.clocks_hz"
            )
        names = {node.name: node.pinned for node in self.model.nodes}
        other = {"device": "server", "server": "device"}
        for where, table in (
            ("device.seconds", self.device.seconds),
            ("server.seconds", self.server.seconds),
            ("server.laws", self.server.laws),
        ):
            if table is None:
                continue
            stray = next((name for name in table if name not in names), None)
            if stray is not None:
                raise ValueError(f"{where}: no node is named {stray!r}")
            side = where.partition(".")[0]
            short = next((n for n, pin in names.items() if n not in table and pin != other[side]), None)
            if short is not None:
                raise ValueError(f"{where}: nothing for node {short!r}, which may run there")
        for name, row in (self.server.seconds or {}).items():
            if len(row) != len(clocks):
                raise ValueError(f"server.seconds.{name}: {len(row)} times, expected one for each of server.clocks_hz")

    def network(self) -> Network:
        """Who reads what, as arrays; vertices in the order of ``model.nodes``."""
        nodes = self.model.nodes
        number = {node.name: v for v, node in enumerate(nodes)}
        edges = [(t, number[c]) for t, tensor in enumerate(self.model.tensors) for c in dict.fromkeys(tensor.consumers)]
        ends = np.array(edges, dtype=np.intp).reshape(-1, 2)
        layers = [node.layer for node in nodes]
        return Network(
            producer=np.array([number[tensor.producer] for tensor in self.model.tensors], dtype=np.intp),
            edge_tensor=ends[:, 0],
            edge_node=ends[:, 1],
            to_device=np.array([node.pinned == "device" for node in nodes]),
            to_server=np.array([node.pinned == "server" for node in nodes]),
            layer=None if None in layers else np.array(layers, dtype=np.intp),
        )

    def device_s(self) -> Floats:
        """(V,) seconds of a mini-batch on the device; 0 where a node cannot run."""
        nodes = self.model.nodes
        if self.device.seconds is not None:
            return np.array([self.device.seconds.get(node.name, 0.0) for node in nodes])
        assert self.device.flops_per_s is not None
        return self._flops() / self.device.flops_per_s

    def server_s(self, clocks_hz: Floats) -> Floats:
        """(V, K) seconds of a mini-batch on the server at clocks (K,) out of its own."""
        nodes = self.model.nodes
        if self.server.seconds is not None:
            rows = self.server.seconds
            idle = [0.0] * len(self.server.clocks_hz)
            table = np.array([rows.get(node.name, idle) for node in nodes])
            return table[:, np.searchsorted(self.server.clocks_hz, clocks_hz)]
        if self.server.laws is not None:
            laws = [self.server.laws.get(node.name, Law()) for node in nodes]
            a, b = np.array([law.a_s for law in laws]), np.array([law.b_cycles for law in laws])
        else:
            assert self.server.flops_per_cycle is not None
            b = self._flops() / self.server.flops_per_cycle
            a = np.zeros(len(b))
        return a[:, None] + b[:, None] / clocks_hz

    def memory_bytes(self) -> Floats:
        """(V,) bytes that a node needs where it trains."""
        return np.array(
            [
                float(node.weight_bytes + node.adapter_bytes if node.memory_bytes is None else node.memory_bytes)
                for node in self.model.nodes
            ]
        )

    def _flops(self) -> Floats:
        return np.array([node.forward_flops + node.backward_flops for node in self.model.nodes])


def load(path: Path) -> Graph:
    """Read and check one graph. Raises BadInput, one line: the file, the field or node, and what was expected."""
    return read_document(path, Graph, FORMAT)


def schema() -> dict[str, Any]:
    """The JSON schema of a graph."""
    return document_schema(Graph)
