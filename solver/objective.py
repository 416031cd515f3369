"""What "best" means: the letter's U, a price of time in J/s, a deadline, or an energy budget.

U (Eq. 12) and a price are weighted sums of delay and energy: `solver.exact` minimises those. A limit is not a weighted sum: the best point within
it may lie above the convex hull, where no weight and no price reaches it. So every clock that no other clock of its cut beats in both
delay and energy has to be looked at, and here it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from profiler.profile import BadInput
from solver import exact
from solver.costs import Choice, CostModel, Costs, Floats, Ints, Mask, Places, ServerClocks
from solver.extremes import Extremes, piece_edges
from solver.stream import Block, over_blocks

Kind = Literal["w", "price", "max-delay-s", "max-energy-j"]

DEFAULT_W = 0.2
"""The letter's weight of delay in its simulation."""

MOST = 1e12
"""No price in J/s, delay in s or energy in J above this is meant: sums of such figures stay finite."""

_ONE = "expected one of them, for each says what is best"


@dataclass(frozen=True)
class Objective:
    """What is minimised. At most one of the last three is given; without any it is U of Eq. 12 with the weight ``w``.

    price_j_per_s
        cost = price D + E in joules. It needs no extremes: a second costs the same on every device.
    max_delay_s
        the least energy with D <= this; of equal energies the least delay.
    max_energy_j
        the least delay with E <= this; of equal delays the least energy.
    """

    w: float = DEFAULT_W
    price_j_per_s: float | None = None
    max_delay_s: float | None = None
    max_energy_j: float | None = None

    @property
    def kind(self) -> Kind:
        """Which of the four it is."""
        if self.price_j_per_s is not None:
            return "price"
        if self.max_delay_s is not None:
            return "max-delay-s"
        return "w" if self.max_energy_j is None else "max-energy-j"

    @property
    def limit(self) -> float | None:
        """X or Y of a constraint, in s or J; None where there is none."""
        return self.max_energy_j if self.max_delay_s is None else self.max_delay_s

    @property
    def words(self) -> str:
        """In a few words, for headings."""
        return {
            "w": f"w = {self.w:g}",
            "price": f"a second costs {self.price_j_per_s:g} J" if self.price_j_per_s is not None else "",
            "max-delay-s": f"least energy within {self.limit:g} s" if self.limit is not None else "",
            "max-energy-j": f"least delay within {self.limit:g} J" if self.limit is not None else "",
        }[self.kind]

    @property
    def cost_name(self) -> str:
        """What the field ``cost`` of a decision holds."""
        return {"w": "U", "price": "price D + E", "max-delay-s": "energy", "max-energy-j": "delay"}[self.kind]

    @property
    def cost_unit(self) -> str:
        """Its unit; empty for U, which is a number from 0 to 1."""
        return {"w": "", "price": "J", "max-delay-s": "J", "max-energy-j": "s"}[self.kind]

    def as_json(self) -> dict[str, Any]:
        """The kind, its value (w, J/s, s or J), and what ``cost`` means."""
        value = {"w": self.w, "price": self.price_j_per_s}.get(self.kind, self.limit)
        return {"kind": self.kind, "value": value, "cost": self.cost_name, "cost_unit": self.cost_unit}

    def check(self, method: str) -> None:
        """Raise BadInput where a value makes no sense, where two exclude each other or where ``method`` knows only U."""
        given = {
            "--price": self.price_j_per_s,
            "--max-delay-s": self.max_delay_s,
            "--max-energy-j": self.max_energy_j,
        }
        named = [option for option, value in given.items() if value is not None]
        if len(named) > 1:
            raise BadInput(f"{', '.join(named)}: {_ONE}")
        for option in named:
            value = given[option]
            assert value is not None
            least = "of 0 or more" if option == "--price" else "above 0"
            if not 0 <= value <= MOST or (value == 0 and option != "--price"):
                unit = {"--price": "joules for a second", "--max-delay-s": "seconds", "--max-energy-j": "joules"}[
                    option
                ]
                raise BadInput(f"{option} {value:g}: expected a number of {unit} {least}, at most {MOST:g}")
            if method != "exact" and not (option == "--price" and method == "min-cut"):
                knows = {"card": "knows only U of Eq. 12 (--w)", "min-cut": "keeps no limits, only weighted sums"}
                why = knows.get(method, "does not choose the cut")
                raise BadInput(f"{option}: expected --method exact, {method} {why}")

    def factors(self, extremes: Extremes) -> tuple[Floats, Floats]:
        """(N,) factors of delay and energy in the weighted sum that is minimised: of U, or a price beside 1."""
        if self.price_j_per_s is None:
            return extremes.weights(self.w)
        ones = np.ones(len(extremes.d_min_s))
        return self.price_j_per_s * ones, ones

    def cost(self, extremes: Extremes, delay_s: Floats, energy_j: Floats | None) -> Floats:
        """What is minimised, (N,), of points with delay and energy (N,): U, joules, joules or seconds by the kind."""
        if self.kind == "w":
            return extremes.cost(self.w, delay_s, energy_j)
        if self.kind == "max-energy-j":
            return delay_s
        energy = np.zeros_like(delay_s) if energy_j is None else energy_j
        return energy if self.price_j_per_s is None else self.price_j_per_s * delay_s + energy

    def choose(self, model: CostModel, places: Places, clocks: ServerClocks, extremes: Extremes) -> tuple[Choice, Mask]:
        """The best feasible cut and clock of each place, and (N,) whether it keeps the limit: all True without one.

        Where no point of a place keeps the limit, the one with the least violation is returned. ``extremes`` are used by U alone.
        """
        n = len(places)
        if self.kind in ("w", "price"):
            return exact.choose(model, places, clocks, *self.factors(extremes)), np.ones(n, dtype=np.bool_)
        assert self.limit is not None
        return _within(model, places, clocks, float(self.limit), delay=self.kind == "max-delay-s")

    def unmet(self, met: Mask, device: Ints, names: Sequence[str], nearest: Costs) -> str:
        """A warning that names the devices at whose places (N,) the limit cannot be kept, where it is not kept everywhere.

        ``nearest`` are the costs of the choice. Raises BadInput where no place at all can keep the limit.
        """
        unit = "s" if self.kind == "max-delay-s" else "J"
        reached = nearest.delay_s if unit == "s" else nearest.energy_j
        assert self.limit is not None
        assert reached is not None
        option = f"--{self.kind} {self.limit:g}"
        least = "delay" if unit == "s" else "energy"
        if not met.any():
            n = int(reached.argmin())
            raise BadInput(
                f"{option}: no cut and clock of any device keeps it; the least {least} is {_above(reached[n], self.limit)} {unit}, "
                f"of {names[device[n]]}: expected that or more"
            )
        short = []
        for m in np.unique(device[~met]).tolist():
            of_it = ~met & (device == m)
            rounds = "" if of_it.sum() == (device == m).sum() else f" in {of_it.sum()} of {(device == m).sum()} rounds"
            short.append(f"{names[m]}{rounds} (needs {_above(reached[of_it].max(), self.limit)} {unit})")
        return f"{option} cannot be kept by {', '.join(short)}: the nearest point is shown, left out of the means"


def weight_or_other(
    w: float | None, price_j_per_s: float | None, max_delay_s: float | None, max_energy_j: float | None
) -> float:
    """The weight w: the one given, else its default. Raises BadInput where it was given beside another objective."""
    others = Objective(DEFAULT_W, price_j_per_s, max_delay_s, max_energy_j)
    if w is None:
        return DEFAULT_W
    if others.kind != "w":
        raise BadInput(f"--w, --{others.kind}: {_ONE}")
    return w


def _above(value: float, limit: float) -> str:
    """A figure with as many digits as it takes to see that it is above the limit; rounded up, so that it can be asked for."""
    for digits in range(4, 18):
        step = 10.0 ** (math.floor(math.log10(value)) - digits + 1) if value > 0 else 1.0
        text = f"{math.ceil(value / step) * step:.{digits}g}"
        if value <= float(text) and f"{limit:g}" != text:
            return text
    return repr(float(value))


# --------------------------------------------------------------------------------------------------- within a limit


def _within(
    model: CostModel, places: Places, clocks: ServerClocks, limit: float, *, delay: bool
) -> tuple[Choice, Mask]:
    """The least energy with delay <= limit (``delay``), else the least delay with energy <= limit. Ties go to less of the limited one,
    then to the lower cut. Returns the choice and (N,) whether the limit is kept."""
    n = len(places)
    cut, clock, met = np.empty(n, dtype=np.intp), np.empty(n), np.empty(n, dtype=np.bool_)
    listed = len(clocks.supported_hz) > 0
    stairs = [_Stairs.of(model, c, clocks, delay) for c in range(model.cuts)] if listed else []
    curves = None if listed else _Curves.of(model, clocks, delay)

    def work(block: Block) -> None:
        # Not the block's product of matrices: what is held against the limit is to the bit what is reported.
        up, down = places.uplink_bps[block.rows], places.downlink_bps[block.rows]
        waiting = model.waiting_of(block.device, block.cuts[:, None], up[None, :], down[None, :])
        held = block.held_j(model, waiting)
        other = np.zeros_like(waiting) if held is None else held
        # What a cut adds to both figures of its clocks: (C', R) each.
        limited, least = (waiting, other) if delay else (other, waiting)
        best = _Best(len(block))
        for row, c in enumerate(block.cuts.tolist()):
            if curves is None:
                stairs[c].offer(best, c, limited[row], least[row], limit)
            else:
                curves.offer(best, c, limited[row], least[row], limit)
        cut[block.rows], clock[block.rows], met[block.rows] = best.cut, best.clock_hz, best.met

    over_blocks(places, work)
    return Choice(cut, clock), met


class _Best:
    """The best point so far of R places: within the limit before beyond it, then by the figure that is minimised, then by the other."""

    def __init__(self, count: int) -> None:
        self.cut = np.zeros(count, dtype=np.intp)
        self.clock_hz = np.zeros(count)
        self.met = np.zeros(count, dtype=np.bool_)
        self._first = np.full(count, np.inf)
        self._second = np.full(count, np.inf)

    def offer(self, cut: int, clock_hz: Floats, limited: Floats, least: Floats, limit: float) -> None:
        """Offer one point of ``cut`` to every place: its clock, the limited figure and the one to minimise, (R,) each."""
        met = limited <= limit
        # Beyond the limit the least violation counts.
        first, second = np.where(met, least, limited), np.where(met, limited, least)
        nearer = (first < self._first) | ((first == self._first) & (second < self._second))
        better = (met & ~self.met) | ((met == self.met) & nearer)
        for mine, theirs in (
            (self.clock_hz, clock_hz),
            (self.met, met),
            (self._first, first),
            (self._second, second),
        ):
            np.copyto(mine, theirs, where=better)
        self.cut[better] = cut


@dataclass(frozen=True)
class _Stairs:
    """The listed clocks of one cut that no other beats in both figures, by rising limited figure and so by falling minimised one."""

    limited: Floats
    least: Floats
    clock_hz: Floats

    @staticmethod
    def of(model: CostModel, cut: int, clocks: ServerClocks, delay: bool) -> _Stairs:
        """Of one 0-based cut; of equal points the lowest clock is kept."""
        hz = clocks.supported_hz
        reached = model.clock_map.reached(hz)
        seconds = model.server_time.at(cut, reached)
        joules = np.zeros_like(seconds) if model.server_power is None else model.server_power.at(reached) * seconds
        limited, least = (seconds, joules) if delay else (joules, seconds)
        order = np.lexsort((hz, least, limited))
        fall = least[order]
        kept = order[np.concatenate([[True], fall[1:] < np.minimum.accumulate(fall)[:-1]])]
        return _Stairs(limited[kept], least[kept], hz[kept])

    def offer(self, best: _Best, cut: int, more_limited: Floats, more_least: Floats, limit: float) -> None:
        """The lowest step within the limit; the first of all where none is."""
        last = len(self.limited) - 1
        step = np.clip(np.searchsorted(self.limited, limit - more_limited, side="right") - 1, 0, last)
        # The limit holds for the sum as it is reported: rounding of the difference must not decide.
        while (up := (step < last) & (more_limited + self.limited[np.minimum(step + 1, last)] <= limit)).any():
            step = step + up
        while (down := (step > 0) & (more_limited + self.limited[step] > limit)).any():
            step = step - down
        best.offer(cut, self.clock_hz[step], more_limited + self.limited[step], more_least + self.least[step], limit)


@dataclass(frozen=True)
class _Curves:
    """A range of clocks in stretches on which the server's seconds and joules both rise or both fall, one formula each."""

    model: CostModel
    delay: bool
    ends_hz: list[Floats]
    """For each cut (L,) ascending: ends of the range, breaks of time or power, and where energy turns."""

    @staticmethod
    def of(model: CostModel, clocks: ServerClocks, delay: bool) -> _Curves:
        """Over [F_min, F_max]."""
        edges = piece_edges(model, clocks.f_min_hz, clocks.f_max_hz)
        turns = [_turns_hz(model, low, high) for low, high in itertools.pairwise(edges)]
        ends = [np.unique(np.concatenate([edges, *(of[c] for of in turns)])) for c in range(model.cuts)]
        return _Curves(model, delay, ends)

    def at(self, cut: int, clock_hz: Floats) -> tuple[Floats, Floats]:
        """The limited figure and the one to minimise, of the server alone."""
        seconds = self.model.server_time.at(cut, clock_hz)
        power = self.model.server_power
        joules = np.zeros_like(seconds) if power is None else power.at(clock_hz) * seconds
        return (seconds, joules) if self.delay else (joules, seconds)

    def offer(self, best: _Best, cut: int, more_limited: Floats, more_least: Floats, limit: float) -> None:
        """On a stretch the minimised figure is least at one of its ends, or where the limited one meets the limit."""
        ends = self.ends_hz[cut]
        limited, least = self.at(cut, ends)
        size = len(more_limited)
        keeps = np.empty((len(ends), size), dtype=np.bool_)
        for k, hz in enumerate(ends):
            total = more_limited + limited[k]
            keeps[k] = total <= limit
            best.offer(cut, np.full(size, hz), total, more_least + least[k], limit)
        for k in range(len(ends) - 1):
            crossed = np.flatnonzero(keeps[k] != keeps[k + 1])
            if not len(crossed):
                continue
            left = keeps[k, crossed]
            good = np.where(left, ends[k], ends[k + 1])
            bad = np.where(left, ends[k + 1], ends[k])
            while True:  # down to neighbouring floats: at most 53 halvings and a few
                middle = good + (bad - good) / 2
                if ((middle == good) | (middle == bad)).all():
                    break
                within = more_limited[crossed] + self.at(cut, middle)[0] <= limit
                good, bad = np.where(within, middle, good), np.where(within, bad, middle)
            hz = np.full(size, ends[k])
            hz[crossed] = good
            own_limited, own_least = self.at(cut, hz)
            best.offer(cut, hz, more_limited + own_limited, more_least + own_least, limit)


def _turns_hz(model: CostModel, low_hz: float, high_hz: float) -> list[Floats]:
    """For each cut the clocks inside one piece at which the energy P t turns.

    With t = a + b/f and P = p + q f + r f^3: 3 r a f^4 + 2 r b f^3 + q a f^2 - p b = 0.
    """
    none = np.empty(0)
    power = model.server_power
    if power is None:
        return [none] * model.cuts
    middle = (low_hz + high_hz) / 2
    piece = int(np.searchsorted(model.server_time.breaks_hz, middle, side="right"))
    k = int(np.searchsorted(power.breaks_hz, middle, side="right"))
    p, q, r = float(power.p_w[k]), float(power.q_w_per_hz[k]), float(power.r_w_per_hz3[k])
    found = []
    for a, b in zip(
        model.server_time.a_s[:, piece].tolist(), model.server_time.b_cycles[:, piece].tolist(), strict=True
    ):
        # In units of the piece's upper end, so that the coefficients have one unit: seconds times watts.
        h = high_hz
        roots = np.roots([3 * r * a * h**3, 2 * r * b * h**2, q * a * h, 0.0, -p * b / h])
        real = roots[np.abs(roots.imag) <= 1e-9 * np.abs(roots)].real * h
        found.append(real[(real > low_hz) & (real < high_hz)])
    return found
