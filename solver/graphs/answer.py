"""Split a graph that was given as JSON, and say what was found: the operators on either side, the clock, what it costs and what else would.

The objective is a price of time in J/s unless a weight w asks for the letter's U. Its extremes are taken over the cuts at layer boundaries where
the graph numbers its layers, else over {all on the device, all on the server}: over all splits of a graph the largest delay is NP-hard to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from profiler.profile import BadInput, Document, Provenance, printable
from profiler.store import document_schema
from profiler.units import counted
from solver.assumptions import Assumption, assumed, distinct, unmeasured
from solver.extremes import Extremes
from solver.graphs.graph import Graph
from solver.graphs.limits import Held, Limit, cheapest_within, every_split
from solver.graphs.mincut import Engine, Floats, Mask, Network
from solver.graphs.splitter import Load, Splitter
from solver.objective import Objective

if TYPE_CHECKING:
    from rich.console import Console

FORMAT: Literal["card-graph-answer/1"] = "card-graph-answer/1"

DEFAULT_PRICE_J_PER_S = 100.0
"""What a second costs where nobody says: about what a desktop's graphics card draws. Listed among the assumptions."""


@dataclass(frozen=True)
class GraphOptions:
    """What the user may choose; the names are the options' of ``card-solve graph``."""

    price_j_per_s: float | None = None
    w: float | None = None
    mini_batches: int | None = None
    compression: float | None = None
    uplink_mbps: float | None = None
    downlink_mbps: float | None = None
    f_min_ghz: float | None = None
    f_max_ghz: float | None = None
    count_idle: bool = False
    require_measured: bool = False
    engine: Engine | None = None


class Split(Document):
    """One split of the graph at one clock, with what it costs. ``energy_j`` is null where the server's watts are not known."""

    frequency_hz: float
    delay_s: float
    energy_j: float | None
    cost: float
    device_compute_s: float
    server_compute_s: float
    uplink_s: float
    downlink_s: float
    adapters_s: float
    device_nodes: int


class Crossing(Document):
    """A tensor that goes from the device to the server, once a mini-batch, and its gradient that comes back."""

    producer: str
    consumers: list[str] = Field(description="Those on the server")
    activation_bytes: int
    gradient_bytes: int


class Alternative(Split):
    """A split to compare with, at its own best clock."""

    name: Literal["all on the device", "all on the server", "best layer boundary"]


class AssumptionRow(Document):
    """A quantity that was not measured."""

    quantity: str
    value: Any
    provenance: Provenance


class ObjectiveRow(Document):
    """What was minimised: kind w (U of Eq. 12) or price (joules), and its value."""

    kind: Literal["w", "price"]
    value: float
    cost: str
    cost_unit: str


class Reference(Document):
    """D_min, D_max, E_min, E_max of U, and over which cuts; null with a price."""

    over: Literal["layer boundaries", "all on either side"]
    d_min_s: float
    d_max_s: float
    e_min_j: float
    e_max_j: float


class Answer(Document):
    """The answer of ``card-solve graph --json``."""

    format: Literal["card-graph-answer/1"] = FORMAT
    graph: str
    objective: ObjectiveRow
    split: Split
    device: list[str] = Field(description="Nodes on the device, in the graph's order")
    server: list[str]
    crossing: list[Crossing]
    layer: int | None = Field(
        description="The cut is at this layer boundary: layers up to it are the device's; null: it is not at one"
    )
    gap: float = Field(
        ge=0,
        description="The true optimum costs at most this much less, in the unit of cost: rounding of the flow, or, with a memory limit on a large graph, "
        "what the multiplier could not decide",
    )
    flows: int = Field(description="Minimum cuts computed; 0: all splits were tried one by one")
    extremes: Reference | None
    alternatives: list[Alternative]
    assumptions: list[AssumptionRow]
    warnings: list[str]


def answer_schema() -> dict[str, Any]:
    """The JSON schema of the answer."""
    return document_schema(Answer)


def solve_graph(graph: Graph, options: GraphOptions = GraphOptions()) -> Answer:
    """The cheapest split and clock of a graph. Raises BadInput, one line, naming the option or the field and what was expected."""
    posed = _Posed(graph, options)
    weights, reference = posed.weights()
    splitter = Splitter(posed.network, options.engine)
    limits = posed.limits()
    warnings = []
    if limits:
        part, k, gap, flows, told = _within(posed, splitter, limits, *weights)
        warnings += told
    else:
        best = splitter.best(posed.load, posed.up_bps, posed.down_bps, *weights)
        part, k, gap, flows = best.on_device, best.clock, best.gap, best.flows

    def cost(delay_s: float, energy_j: float | None) -> float:
        return posed.cost(reference, delay_s, energy_j)

    nodes = graph.model.nodes
    crossing = posed.network.crossing(part)
    layer = None
    if posed.network.layer is not None:
        layer = next(
            (int(c) for c in np.unique(posed.network.layer) if ((posed.network.layer <= c) == part).all()), None
        )
    assumptions = distinct(posed.assumptions)
    if options.require_measured and assumptions:
        names = [f"{item.quantity} ({item.provenance})" for item in assumptions]
        raise BadInput(f"--require-measured: expected measured figures only, {len(names)} are not: {'; '.join(names)}")
    figures = posed.figures(part, k)
    return Answer(
        graph=graph.name,
        objective=ObjectiveRow(**posed.objective.as_json()),
        split=Split(**figures, cost=cost(figures["delay_s"], figures["energy_j"])),
        device=[node.name for node, on in zip(nodes, part, strict=True) if on],
        server=[node.name for node, on in zip(nodes, part, strict=True) if not on],
        crossing=[
            Crossing(
                producer=tensor.producer,
                consumers=[c for c in tensor.consumers if not part[posed.number[c]]],
                activation_bytes=tensor.activation_bytes,
                gradient_bytes=tensor.gradient_bytes,
            )
            for tensor, crosses in zip(graph.model.tensors, crossing, strict=True)
            if crosses
        ],
        layer=layer,
        gap=gap,
        flows=flows,
        extremes=None if reference is None else posed.reference(reference),
        alternatives=posed.alternatives(weights, cost),
        assumptions=[AssumptionRow(**item.as_json()) for item in assumptions],
        warnings=warnings,
    )


class _Posed:
    """A graph and options as arrays: N mini-batches at the chosen rates, over the clocks that are allowed."""

    def __init__(self, graph: Graph, options: GraphOptions) -> None:
        self.graph, self.options = graph, options
        self.network: Network = graph.network()
        self.number = {node.name: v for v, node in enumerate(graph.model.nodes)}
        self.assumptions: list[Assumption] = []
        self.objective = self._objective()
        self.up_bps, self.down_bps = self._rates()
        self.load = self._load()
        self._list_sources()

    def _objective(self) -> Objective:
        w, price = self.options.w, self.options.price_j_per_s
        if w is not None and price is not None:
            raise BadInput("--w, --price: expected one of them, for each says what is best")
        if w is not None:
            if not 0 <= w <= 1:
                raise BadInput(f"--w {w:g}: expected a number from 0 to 1")
            objective = Objective(w=w)
        else:
            if price is None:
                price = DEFAULT_PRICE_J_PER_S
                self.assumptions.append(assumed("price of a second in J/s", price))
            objective = Objective(price_j_per_s=price)
            objective.check("min-cut")
        if self.graph.power is None and objective.w < 1:
            raise BadInput(
                f"graph {self.graph.name}: field power is empty, expected the server's watts at each clock; or decide by delay alone with --w 1"
            )
        return objective

    def _rates(self) -> tuple[float, float]:
        up, down, link = self.options.uplink_mbps, self.options.downlink_mbps, self.graph.link
        for option, own, other in (("--uplink-mbps", up, down), ("--downlink-mbps", down, up)):
            if own is not None and not 1e-6 <= own <= 1e7:
                raise BadInput(f"{option} {own:g}: expected a rate in Mbit/s from 1e-06 to 1e+07")
            if own is None and other is not None:
                raise BadInput(f"{option}: expected with the other rate")
        if up is not None and down is not None:
            return up * 1e6, down * 1e6
        if link is None:
            raise BadInput(
                f"graph {self.graph.name}: field link is empty, expected rates there or --uplink-mbps with --downlink-mbps"
            )
        self.assumptions += unmeasured(link, **{"rates in Mbit/s": [link.uplink_mbps, link.downlink_mbps]})
        return link.uplink_mbps * 1e6, link.downlink_mbps * 1e6

    def _clocks(self) -> tuple[Floats, Floats | None]:
        own = np.array(self.graph.server.clocks_hz)
        low, high = self.options.f_min_ghz, self.options.f_max_ghz
        for option, value in (("--f-min-ghz", low), ("--f-max-ghz", high)):
            if value is not None and not 1e-3 <= value <= 100:
                raise BadInput(f"{option} {value:g}: expected a clock in GHz from 0.001 to 100")
        kept = (own >= (low or 0.0) * 1e9 * (1 - 1e-12)) & (own <= (high or np.inf) * 1e9 * (1 + 1e-12))
        if not kept.any():
            raise BadInput(
                f"--f-min-ghz, --f-max-ghz: the server has no clock there, expected some of {own[0] / 1e9:g} to {own[-1] / 1e9:g} GHz"
            )
        power = self.graph.power
        return own[kept], None if power is None else np.array(power.power_w)[kept]

    def _load(self) -> Load:
        graph, options = self.graph, self.options
        batches = graph.mini_batches if options.mini_batches is None else options.mini_batches
        if not 1 <= batches <= 10**9:
            raise BadInput(f"--local-epochs {batches}: expected a whole number from 1 to 1000000000")
        phi = options.compression
        if phi is not None and not 0 < phi <= 1:
            raise BadInput(f"--compression {phi:g}: expected a number above 0 and at most 1")
        if phi is None:
            phi = 1.0 if graph.compression is None else graph.compression.phi
            if graph.compression is None:
                self.assumptions.append(assumed("phi", 1.0))
            else:
                self.assumptions += unmeasured(graph.compression, phi=phi)
        clocks, power = self._clocks()
        idle = 0.0
        if options.count_idle:
            if graph.power is None or graph.power.idle_w is None:
                raise BadInput(
                    f"--count-idle: graph {graph.name} has no field power.idle_w, expected the idle power in W"
                )
            idle = graph.power.idle_w
        return Load(
            device_s=batches * graph.device_s(),
            adapter_bits=np.array([8.0 * node.adapter_bytes for node in graph.model.nodes]),
            server_s=batches * graph.server_s(clocks),
            up_bits=np.array([batches * phi * 8.0 * tensor.activation_bytes for tensor in graph.model.tensors]),
            down_bits=np.array([batches * phi * 8.0 * tensor.gradient_bytes for tensor in graph.model.tensors]),
            clocks_hz=clocks,
            power_w=power,
            idle_w=idle,
        )

    def _list_sources(self) -> None:
        graph = self.graph
        self.assumptions += unmeasured(
            graph.model, **{"the graph's FLOPs and bytes": f"{len(graph.model.nodes)} nodes"}
        )
        for machine, timed in ((graph.device, graph.device.seconds), (graph.server, graph.server.seconds)):
            how = "from FLOPs" if timed is None and not getattr(machine, "laws", None) else "given for each node"
            self.assumptions += unmeasured(machine, **{f"{machine.name}: times of the nodes": how})
        if graph.power is not None:
            self.assumptions += unmeasured(
                graph.power, **{f"{graph.server.name}: power against clock": counted(len(graph.power.power_w), "clock")}
            )
        limited = graph.device.memory_bytes is not None or graph.server.memory_bytes is not None
        if limited and any(node.memory_bytes is None for node in graph.model.nodes):
            self.assumptions.append(assumed("memory of nodes without memory_bytes", "weights and adapters alone"))

    def limits(self) -> list[Limit]:
        """Memory limits that some split breaks. Raises BadInput where none at all can keep one of them."""
        found = []
        needs, network = self.graph.memory_bytes(), self.network
        for machine, on_device, least, most in (
            (self.graph.device, True, network.smallest, network.largest),
            (self.graph.server, False, network.largest, network.smallest),
        ):
            if machine.memory_bytes is None:
                continue
            limit = Limit(machine.name, on_device, needs, float(machine.memory_bytes))
            if limit.used(least) > limit.limit_bytes:
                raise BadInput(
                    f"graph {self.graph.name}: no split fits in memory: what must be on {machine.name} needs {float(limit.used(least)):.4g} bytes, "
                    f"it has {limit.limit_bytes:.4g}"
                )
            if limit.used(most) > limit.limit_bytes:
                found.append(limit)
        return found

    def delays(self, parts: Mask) -> tuple[Floats, Floats]:
        """Delay and energy (B, K) of device parts (B, V) at every clock."""
        load = self.load
        crossing = self.network.crossing(parts)
        adapters = parts @ load.adapter_bits
        waits = parts @ load.device_s + adapters / self.up_bps + adapters / self.down_bps
        waits = waits + crossing @ load.up_bits / self.up_bps + crossing @ load.down_bits / self.down_bps
        busy = ~parts @ load.server_s
        power = np.zeros(len(load.clocks_hz)) if load.power_w is None else load.power_w
        return waits[:, None] + busy, load.idle_w * waits[:, None] + power * busy

    def weights(self) -> tuple[tuple[float, float], Extremes | None]:
        """Factors of delay and energy, and the extremes that U has them from."""
        if self.objective.price_j_per_s is not None:
            return (float(self.objective.price_j_per_s), 1.0), None
        delay, energy = self.delays(self.network.boundaries())
        extremes = Extremes(*(np.array([x]) for x in (delay.min(), delay.max(), energy.min(), energy.max())))
        by_delay, by_energy = extremes.weights(self.objective.w)
        return (float(by_delay[0]), float(by_energy[0])), extremes

    def reference(self, extremes: Extremes) -> Reference:
        """The extremes as the answer shows them."""
        over: Literal["layer boundaries", "all on either side"] = (
            "all on either side" if self.network.layer is None else "layer boundaries"
        )
        names = ("d_min_s", "d_max_s", "e_min_j", "e_max_j")
        return Reference(over=over, **{name: float(getattr(extremes, name)[0]) for name in names})

    def cost(self, extremes: Extremes | None, delay_s: float, energy_j: float | None) -> float:
        """What is minimised: U, or joules."""
        energy = None if energy_j is None else np.array([energy_j])
        if extremes is None:
            return float(self.objective.price_j_per_s or 0.0) * delay_s + (energy_j or 0.0)
        return float(extremes.cost(self.objective.w, np.array([delay_s]), energy)[0])

    def figures(self, part: Mask, k: int) -> dict[str, Any]:
        """All of `Split` but its cost."""
        load, crossing = self.load, self.network.crossing(part)
        adapters = float(load.adapter_bits[part].sum())
        server = float(load.server_s[~part, k].sum())
        waits = {
            "device_compute_s": float(load.device_s[part].sum()),
            "uplink_s": float(load.up_bits[crossing].sum()) / self.up_bps,
            "downlink_s": float(load.down_bits[crossing].sum()) / self.down_bps,
            "adapters_s": adapters / self.up_bps + adapters / self.down_bps,
        }
        waiting = sum(waits.values())
        energy = None if load.power_w is None else float(load.power_w[k]) * server + load.idle_w * waiting
        return {
            "frequency_hz": float(load.clocks_hz[k]),
            "delay_s": waiting + server,
            "energy_j": energy,
            "server_compute_s": server,
            "device_nodes": int(part.sum()),
            **waits,
        }

    def alternatives(self, weights: tuple[float, float], cost: Any) -> list[Alternative]:
        """What else could be done, each at its own best clock, memory limits aside."""
        rows = [("all on the server", self.network.smallest[None]), ("all on the device", self.network.largest[None])]
        if self.network.layer is not None:
            rows.append(("best layer boundary", self.network.boundaries()))
        found = []
        for name, parts in rows:
            delay, energy = self.delays(parts)
            total = weights[0] * delay + weights[1] * energy
            b, k = np.unravel_index(int(total.argmin()), total.shape)
            figures = self.figures(parts[b], int(k))
            found.append(Alternative(name=name, **figures, cost=cost(figures["delay_s"], figures["energy_j"])))
        return found


def _within(
    posed: _Posed, splitter: Splitter, limits: list[Limit], by_delay: float, by_energy: float
) -> tuple[Mask, int, float, int, list[str]]:
    """(device part, clock, gap, flows, warnings) of the cheapest split within the memory limits."""
    free = splitter.best(posed.load, posed.up_bps, posed.down_bps, by_delay, by_energy)
    if all(limit.used(free.on_device) <= limit.limit_bytes for limit in limits):
        return free.on_device, free.clock, free.gap, free.flows, []
    device, server, tensor = posed.load.prices(posed.up_bps, posed.down_bps, by_delay, by_energy)
    splits = every_split(posed.network)
    held: list[Held] = [
        cheapest_within(posed.network, device, server[:, k], tensor, limits, splits, posed.options.engine)
        for k in range(server.shape[1])
    ]
    k = int(np.argmin([each.cost for each in held]))
    part = held[k].on_device
    names = " and ".join(limit.machine for limit in limits)
    if part is None:
        how = "no split" if splits is not None else "no split was found that"
        raise BadInput(
            f"graph {posed.graph.name}: {how} fits in the memory of {names}, expected smaller nodes or more memory"
        )
    bound = max(min(each.bound for each in held), free.cost - free.gap)
    gap = max(held[k].cost - bound, 0.0)
    if splits is not None:
        return part, k, 0.0, free.flows, []
    told = [
        f"memory of {names}: too many splits to try them all; the optimum costs at most {gap:.3g} less than this one"
    ]
    return part, k, gap, free.flows, told


def print_answer(answer: Answer, console: Console) -> None:
    """The answer for people."""
    from profiler.tables import Table

    unit = answer.objective.cost_unit
    table = Table(title=printable(f"{answer.graph}: least {answer.objective.cost} ({answer.objective.value:g})"))
    for name in ("split", "on the device", "clock GHz", "delay s", "energy J", f"cost {unit}".strip()):
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=name != "split")
    for name, row in (("chosen", answer.split), *((row.name, row) for row in answer.alternatives)):
        energy = "" if row.energy_j is None else f"{row.energy_j:.4g}"
        table.add_row(
            name,
            f"{row.device_nodes} of {len(answer.device) + len(answer.server)}",
            f"{row.frequency_hz / 1e9:.3f}",
            f"{row.delay_s:.4g}",
            energy,
            f"{row.cost:.6g}",
        )
    console.print(table, crop=False)
    where = "inside a layer, or there are no layers" if answer.layer is None else f"at layer boundary {answer.layer}"
    shown = answer.device if len(answer.device) <= 12 else [*answer.device[:6], "...", *answer.device[-5:]]
    console.print(printable(f"The cut is {where}. On the device: {', '.join(shown)}."), highlight=False)
    for tensor in answer.crossing[:12]:
        console.print(
            printable(
                f"  {tensor.producer} -> {', '.join(tensor.consumers[:4])}{' ...' if len(tensor.consumers) > 4 else ''}: "
                f"{tensor.activation_bytes} bytes up, {tensor.gradient_bytes} down"
            ),
            highlight=False,
        )
    for line in answer.warnings:
        console.print(printable(f"warning: {line}"), highlight=False)
    if answer.assumptions:
        console.print("Not measured:", highlight=False)
        for item in answer.assumptions:
            console.print(printable(f"  {item.quantity}: {item.value} ({item.provenance})"), highlight=False)
