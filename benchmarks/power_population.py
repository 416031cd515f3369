"""Chips, workloads and sensors made up from what is known of the kind, to choose the power fit's priors on and to ask how it fares.

Nothing here was read off a measured sweep. What went in, and from where:

- Voltage. The clock that a voltage v carries goes as (v - v_t)^a / v with a threshold v_t and a from 1.2 to 1.6 (the alpha-power law of Sakurai and
  Newton, 1990), or is taken as a bent line. Below a lowest voltage, 55 to 90 % of the highest, it cannot fall; in one of five tables it stops rising
  at 88 to 100 % of the highest clock. A regulator rounds up to steps of 6.25, 10 or 12.5 mV of 0.9 to 1.25 V; a table of 4 to 12 operating points is rounded to 10,
  12.5 or 25 mV and either joined by lines (boost tables) or its next point's voltage is taken (operating points of a board).
- Switching c f v^2, times the share of the time in which the cores compute: waiting for memory takes 0 to 30 % of a step at the highest clock (30
  to 90 % in the kind "memory"), and 20 to 60 % of the switching goes on while they wait. Memory's own watts go with the speed.
- Leakage: 3 to 35 % of the watts at the highest clock, exponential in the voltage (1.5 to 4 per volt) and in the temperature (0.8 to 2 % per
  degree), which follows the watts themselves (10 to 50 degrees above ambient at the top).
- Rest: board and idle watts, 3 to 40 % of the top; in one of four sweeps, as by a meter at the wall, 30 to 65 %. Losses of the supply, up to 6 %, go as the square.
- Old chips, without a floor or with one voltage for all: a constant and a power of the clock of 1 to 3.5 (1 and 3 themselves half of the time).
- Sweeps of 4 to 28 clocks, the lowest at 5 to 60 % of the highest; evenly spaced, by index of an uneven table, or denser to the top; in rising, falling or
  random order.
- What a mean scatters by: the load's own fluctuations, 0.1 to 2 % of the switching watts alone; the surroundings, whose temperature walks by up to 4 degrees over a
  sweep, in the order of visits, and acts through leakage; the sensor's noise, 0.05 to 1 % of each reading (up to ``sensor_most``, where that is given).
- Other workloads of the same chip: its voltages, leakage, board, clocks, sensor and surroundings, but waiting for memory that takes 0 to 90 % of a step,
  0.5 to 1.2 times the switching, and fluctuations of their own.
- Steps: in a share of the chips (``stepping``, none unless it is given) something besides the core's clock and voltage changes with it (clocks of memory or bus, a
  rail, a power state): once or twice, anywhere in the sweep, all watts below are lower by 1 to 10 %, for every workload alike.
- Sensors: 5 to 300 W at the top; in half of the sweeps readings in steps of 0.1, 0.2 or 0.4 W (never above 2 % of the lowest watts), a milliwatt otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

KINDS = ("plain", "ridge", "regulator", "operating points", "soft", "memory")
COUNTS = (4, 5, 6, 8, 10, 14, 20, 28)
ASKED = 41  # clocks, evenly over the domain, at which a curve is asked


class Chip(Protocol):
    def __call__(self, x: Array, load: Array | float = 0.0, warmer: Array | float = 0.0) -> Array:
        """Watts over those at the highest clock, for clocks x (m,) over the highest; the load switching by 1 + ``load`` of the usual, the
        surroundings by ``warmer`` degrees."""
        ...


@dataclass(frozen=True)
class MadeUp:
    """One sweep of one made-up chip: rows (n,) as measured, and the truth without noise at the rows and at ``asked_hz`` (ASKED,),
    with one more measurement ``new_w`` (ASKED,) by the same sensor there. ``noise``: of load and sensor together, at most. ``stepped``: whether
    watts step at some clocks."""

    kind: str
    frequency_hz: Array
    power_w: Array
    true_w: Array
    asked_hz: Array
    asked_w: Array
    new_w: Array
    noise: float
    stepped: bool


@dataclass(frozen=True)
class Workload:
    """What runs: the share of a step that waits for memory at the highest clock, the share of the switching that goes on meanwhile, memory's own watts and
    the switching over the usual."""

    waits: float
    gated: float
    memory: float
    activity: float = 1.0


def draw(
    kind: str, clocks: int, seed: int, sensor_most: float = 0.01, stepping: float = 0.0, sibling: int = 0
) -> MadeUp:
    """The sweep of this kind and number of clocks with this seed; the same whenever it is asked for. ``stepping``: share of chips whose watts
    step. ``sibling`` from 1 on: other workloads on the same chip."""
    rng = np.random.default_rng([21, KINDS.index(kind), clocks, seed])
    chip, workload = _plain(rng) if kind == "plain" else _chip(kind, rng)
    low = rng.uniform(0.05, 0.6)
    x = _clocks(low, clocks, rng)
    asked = np.linspace(x[0], 1.0, ASKED)
    top_w, top_hz = np.exp(rng.uniform(np.log(5), np.log(300))), rng.uniform(0.8e9, 3.2e9)
    load, sensor = (
        np.exp(rng.uniform(np.log(low), np.log(high))) for low, high in ((0.001, 0.02), (0.0005, sensor_most))
    )
    drift = rng.uniform(0, 4)
    quantised = rng.random() < 0.5
    step_w = rng.choice([0.1, 0.2, 0.4]) if quantised else 1e-3
    if sibling:
        rng = np.random.default_rng([22, KINDS.index(kind), clocks, seed, sibling])
        workload = Workload(rng.uniform(0, 0.9), rng.uniform(0.2, 0.6), rng.uniform(0, 0.15), rng.uniform(0.5, 1.2))
        load = float(np.exp(rng.uniform(np.log(0.001), np.log(0.02))))
    curve = chip(workload)
    steps = np.random.default_rng([23, KINDS.index(kind), clocks, seed])
    stepped = steps.random() < stepping
    if stepped:
        curve = _stepping(curve, x[0], steps)
    true_w, asked_w = top_w * curve(x), top_w * curve(asked)
    step_w = max(1e-3, min(step_w, 0.02 * true_w.min()))

    def read(x: Array, warmer: Array) -> Array:
        watts = top_w * curve(x, load * rng.standard_normal(len(x)), warmer)
        return np.asarray(np.maximum(np.round(watts * (1 + sensor * rng.standard_normal(len(x))) / step_w), 1) * step_w)

    order = [np.arange(clocks), np.arange(clocks)[::-1], rng.permutation(clocks)][rng.integers(3)]
    walk = np.empty(clocks)
    walk[order] = np.cumsum(rng.standard_normal(clocks)) / np.sqrt(clocks) * drift
    return MadeUp(
        kind,
        x * top_hz,
        read(x, walk),
        true_w,
        asked * top_hz,
        asked_w,
        read(asked, drift * rng.standard_normal(ASKED) / np.sqrt(2)),
        float(np.hypot(load, sensor)),
        stepped,
    )


def _stepping(smooth: Chip, low: float, rng: np.random.Generator) -> Chip:
    places = rng.uniform(low, 1.0, rng.integers(1, 3))
    shares = np.exp(rng.uniform(np.log(0.01), np.log(0.1), len(places)))

    def chip(x: Array, load: Array | float = 0.0, warmer: Array | float = 0.0) -> Array:
        return smooth(x, load, warmer) * (1 - (x[:, None] < places) @ shares)

    return chip


def _clocks(low: float, count: int, rng: np.random.Generator) -> Array:
    """Clocks over the highest, rising, ends included."""
    how = rng.integers(3)
    if how == 0:
        return np.linspace(low, 1, count)
    if how == 1:  # every k-th of a table whose gaps differ
        gaps = rng.uniform(0.4, 1.6, count - 1)
    else:  # denser to the top, as tables of boost clocks are
        gaps = np.linspace(rng.uniform(1.5, 3), 1, count - 1) * rng.uniform(0.8, 1.2, count - 1)
    return np.concatenate([[low], low + (1 - low) * np.cumsum(gaps) / gaps.sum()])


def _plain(rng: np.random.Generator) -> tuple[Callable[[Workload], Chip], Workload]:
    rest, leak, per_degree = rng.uniform(0.03, 0.6), rng.uniform(0.1, 0.6), rng.uniform(0.008, 0.02)
    exponent = rng.choice([1.0, 3.0]) if rng.random() < 0.5 else rng.uniform(1, 3.5)

    def under(workload: Workload) -> Chip:
        def chip(x: Array, load: Array | float = 0.0, warmer: Array | float = 0.0) -> Array:
            constant = rest * (1 - leak + leak * np.exp(per_degree * np.asarray(warmer)))
            return np.asarray(constant + (1 - rest) * workload.activity * x**exponent * (1 + np.asarray(load)))

        return chip

    return under, Workload(0.0, 0.0, 0.0)


def _chip(kind: str, rng: np.random.Generator) -> tuple[Callable[[Workload], Chip], Workload]:
    how = rng.choice(("ridge", "regulator", "operating points", "soft")) if kind == "memory" else kind
    volts, top_v = _voltage(str(how), rng)
    waits = rng.uniform(0.3, 0.9) if kind == "memory" else rng.uniform(0, 0.3)
    gated = rng.uniform(0.2, 0.6)
    leak, per_volt, per_degree = rng.uniform(0.03, 0.35), rng.uniform(1.5, 4), rng.uniform(0.008, 0.02)
    degrees, loss = rng.uniform(10, 50), rng.uniform(0, 0.06)
    board = rng.uniform(0.30, 0.65) if rng.random() < 0.25 else rng.uniform(0.03, 0.4)
    own = Workload(waits, gated, memory=rng.uniform(0, 0.15))
    switch = 1.0 - leak

    def under(workload: Workload) -> Chip:
        waits, gated, memory = workload.waits, workload.gated, workload.memory

        def watts(x: Array, load: Array | float, warmer: Array | float) -> Array:
            v = volts(x)
            step = (1 - waits) / x + waits  # time of a step over that at the highest clock
            busy = (1 - waits) / x / step
            active = (gated + (1 - gated) * busy) / (gated + (1 - gated) * (1 - waits))
            dynamic = switch * workload.activity * x * v**2 * active * (1 + load)
            total = dynamic + leak
            for _ in range(40):  # heat follows the watts, and leakage the heat
                heat = degrees * (total - 1) + warmer
                total = dynamic + leak * v * np.exp(per_volt * top_v * (v - 1) + per_degree * heat)
            whole = (1 - board) * ((1 - memory) * total + memory / step) + board
            return np.asarray(whole + loss * whole**2)

        top = float(watts(np.ones(1), 0.0, 0.0)[0])

        def chip(x: Array, load: Array | float = 0.0, warmer: Array | float = 0.0) -> Array:
            return watts(x, load, warmer) / top

        return chip

    return under, own


def _voltage(how: str, rng: np.random.Generator) -> tuple[Callable[[Array], Array], float]:
    """Voltage over the highest, for clocks x over the highest, and the highest in volts."""
    top_v, floor = rng.uniform(0.9, 1.25), rng.uniform(0.55, 0.9)
    threshold, alpha = rng.uniform(0.25, 0.45), rng.uniform(1.2, 1.6)
    bend, ridge = rng.uniform(0.7, 2), rng.uniform(0.2, 0.85)
    bent = rng.random() < 0.5
    ceiling = rng.uniform(0.88, 1) if rng.random() < 0.2 else 1.0
    knee = rng.uniform(0.02, 0.12)
    step = rng.choice([0.00625, 0.01, 0.0125] if how == "regulator" else [0.01, 0.0125, 0.025]) / top_v
    points = np.sort(np.concatenate([[0.02, 1.0], rng.uniform(0.05, 0.98, rng.integers(2, 11))]))
    joined = rng.random() < 0.5
    grid = np.linspace(min(floor, threshold) + 0.01, 1, 400)
    speed = (grid - threshold).clip(1e-6) ** alpha / grid
    speed /= speed[-1]

    def needed(x: Array) -> Array:
        x = np.minimum(x / ceiling, 1.0)
        if how == "soft":
            raw = np.interp(x, speed, grid)
            return np.asarray(floor + knee * np.logaddexp(0, (raw - floor) / knee))
        if how == "ridge" or bent:
            power = 1.0 if how == "ridge" else bend
            return np.asarray(floor + (1 - floor) * np.clip((x - ridge) / (1 - ridge), 0, 1) ** power)
        return np.asarray(np.maximum(np.interp(x, speed, grid), floor))

    table = np.ceil(needed(points) / step - 1e-9) * step

    def volts(x: Array) -> Array:
        if how == "operating points":
            if joined:
                return np.asarray(np.interp(x, points, table))
            return np.asarray(table[np.searchsorted(points, x - 1e-9).clip(max=len(points) - 1)])
        v = needed(x)
        return np.asarray(np.ceil(v / step - 1e-9) * step) if how == "regulator" else v

    highest = float(volts(np.ones(1))[0])
    return lambda x: volts(x) / highest, top_v
