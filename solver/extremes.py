"""Extremes of D and E over the box of feasible cuts and clocks, and U of Eq. 12 that is normalised by them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from solver.costs import CostModel, Floats, Ints, Places, ServerClocks
from solver.stream import Block, least, over_blocks


@dataclass(frozen=True)
class ServerRange:
    """For each cut the least and greatest busy seconds and joules over the box's clocks, and where. All (C,)."""

    s_min: Floats
    s_max: Floats
    e_min: Floats
    e_max: Floats
    s_min_hz: Floats
    s_max_hz: Floats
    e_min_hz: Floats
    e_max_hz: Floats

    @staticmethod
    def over(model: CostModel, clocks_hz: Floats) -> ServerRange:
        """Over the clocks (K,) and, between them, nothing."""
        wide = np.broadcast_to(clocks_hz, (model.cuts, len(clocks_hz)))
        return ServerRange._of(model.server_s(clocks_hz), model.busy_j(clocks_hz), wide)

    @staticmethod
    def over_interval(model: CostModel, f_min_hz: float, f_max_hz: float) -> ServerRange:
        """Over every clock from ``f_min_hz`` to ``f_max_hz``: at ends and breaks, and where energy is stationary inside a piece."""
        edges = piece_edges(model, f_min_hz, f_max_hz)
        every = np.arange(model.cuts)
        inner = [
            stationary(model, every, low, high, np.zeros(1), np.ones(1)) for low, high in itertools.pairwise(edges)
        ]
        wide = np.column_stack([np.broadcast_to(edges, (model.cuts, len(edges))), *inner])
        seconds = model.server_time.at(every[:, None], wide)
        joules = np.zeros_like(seconds) if model.server_power is None else model.server_power.at(wide) * seconds
        return ServerRange._of(seconds, joules, wide)

    @staticmethod
    def _of(seconds: Floats, joules: Floats, clocks_hz: Floats) -> ServerRange:
        rows = np.arange(len(seconds))
        where = [seconds.argmin(1), seconds.argmax(1), joules.argmin(1), joules.argmax(1)]
        values = [table[rows, k] for table, k in zip((seconds, seconds, joules, joules), where, strict=True)]
        return ServerRange(*values, *[clocks_hz[rows, k] for k in where])


@dataclass(frozen=True)
class Extremes:
    """D_min, D_max, E_min, E_max of Eq. 12, each (N,)."""

    d_min_s: Floats
    d_max_s: Floats
    e_min_j: Floats
    e_max_j: Floats

    def weights(self, w: float) -> tuple[Floats, Floats]:
        """(N,) factors of delay and energy in U: w / (D_max - D_min) and (1-w) / (E_max - E_min); 0 for an empty range."""
        spans = (self.d_max_s - self.d_min_s, self.e_max_j - self.e_min_j)
        delay, energy = (
            np.divide(weight, span, out=np.zeros_like(span), where=span > 0)
            for weight, span in zip((w, 1 - w), spans, strict=True)
        )
        return delay, energy

    def cost(self, w: float, delay_s: Floats, energy_j: Floats | None) -> Floats:
        """U of Eq. 12 for (N,) points; outside 0 to 1 where a point lies outside of the box."""
        by_delay, by_energy = self.weights(w)
        cost = by_delay * _above(delay_s, self.d_min_s)
        if energy_j is not None:
            cost = cost + by_energy * _above(energy_j, self.e_min_j)
        return cost


def _above(value: Floats, least: Floats) -> Floats:
    """How far values are above the least. One at it may differ by rounding, and U must not be negative for that."""
    above = value - least
    return np.where((above < 0) & (above > -1e-12 * np.abs(least)), 0.0, above)


def box(model: CostModel, places: Places, clocks: ServerClocks, optimal_hz: Floats) -> tuple[Extremes, Floats]:
    """Extremes over the box as the cost table shows it, and the clocks that the table needs for them beside its own.

    The box is {feasible cuts} x {supported clocks, F_min, F_max, f*}, with f* of Eq. 16 as ``optimal_hz`` (N,); where the server
    lists no clocks, {feasible cuts} x [F_min, F_max], and the clocks at which D or E is extreme are returned.
    """
    if not len(clocks.supported_hz):
        whole = ServerRange.over_interval(model, clocks.f_min_hz, clocks.f_max_hz)
        somewhere = places.feasible.any(0)
        at = [x[somewhere] for x in (whole.s_min_hz, whole.s_max_hz, whole.e_min_hz, whole.e_max_hz)]
        return box_extremes(model, places, whole), np.unique(np.concatenate(at))
    listed = ServerRange.over(model, clocks.points_hz)
    return box_extremes(model, places, listed, None if _holds_all(model, listed, clocks) else optimal_hz), np.empty(0)


def _holds_all(model: CostModel, listed: ServerRange, clocks: ServerClocks) -> bool:
    """Whether no clock between the listed ones can be more extreme than they are."""
    if len(model.clock_map.requested_hz):
        return False
    whole = ServerRange.over_interval(model, clocks.f_min_hz, clocks.f_max_hz)
    return all(np.array_equal(getattr(whole, x), getattr(listed, x)) for x in ("s_min", "s_max", "e_min", "e_max"))


def box_extremes(model: CostModel, places: Places, span: ServerRange, extra_hz: Floats | None = None) -> Extremes:
    """Extremes over the feasible cuts and the clocks of ``span``, with one more clock (N,) for each decision if given."""
    n = len(places)
    found = Extremes(np.empty(n), np.empty(n), np.empty(n), np.empty(n))

    def work(block: Block) -> None:
        cuts, rows = block.cuts, block.rows
        s_min, s_max, e_min, e_max = (part[cuts] for part in (span.s_min, span.s_max, span.e_min, span.e_max))
        if extra_hz is None and not model.holds_energy and model.codecs is None:
            # The product finds the cut, and its delay is then taken as `CostModel.at` has it: an extreme point must cost exactly 0 or 1.
            shortest_at, _ = least(block.waiting_terms(model, s_min), block.per_bit)
            longest_at, _ = least(-block.waiting_terms(model, s_max), block.per_bit)
            found.d_min_s[rows] = block.delay_s(model, shortest_at, s_min)
            found.d_max_s[rows] = block.delay_s(model, longest_at, s_max)
            found.e_min_j[rows], found.e_max_j[rows] = e_min.min(), e_max.max()
            return
        waiting = model.waiting_of(block.device, cuts[:, None], block.uplink_bps[None, :], block.downlink_bps[None, :])
        held = block.held_j(model, waiting)
        shortest, longest, lowest, most = (part[:, None] for part in (s_min, s_max, e_min, e_max))
        if extra_hz is not None:
            reached = model.clock_map.reached(extra_hz[rows])
            seconds = model.server_time.at(cuts[:, None], reached[None, :])
            shortest, longest = np.minimum(shortest, seconds), np.maximum(longest, seconds)
            if model.server_power is not None:
                joules = model.server_power.at(reached)[None, :] * seconds
                lowest, most = np.minimum(lowest, joules), np.maximum(most, joules)
        found.d_min_s[rows] = (waiting + shortest).min(axis=0)
        found.d_max_s[rows] = (waiting + longest).max(axis=0)
        found.e_min_j[rows] = (lowest if held is None else held + lowest).min(axis=0)
        found.e_max_j[rows] = (most if held is None else held + most).max(axis=0)

    over_blocks(places, work)
    return found


def piece_edges(model: CostModel, f_min_hz: float, f_max_hz: float) -> Floats:
    """The ends of the range and every break of time or power inside it: between two of them both are one formula."""
    breaks = [model.server_time.breaks_hz]
    if model.server_power is not None:
        breaks.append(model.server_power.breaks_hz)
    inside = np.concatenate(breaks)
    inside = inside[(inside > f_min_hz) & (inside < f_max_hz)]
    return np.unique(np.concatenate([[f_min_hz], inside, [f_max_hz]]))


def stationary(
    model: CostModel, cuts: Ints, low_hz: float, high_hz: float, by_delay: Floats, by_energy: Floats
) -> Floats:
    """(C', R) clocks inside one piece at which x t(f) + y P(f) t(f) is stationary, clipped to the piece.

    ``cuts`` (C',) are 0-based, x = ``by_delay`` and y = ``by_energy`` are (R,). With t = a + b/f and P = p + q f + r f^3 the derivative is zero where
    y q a f^2 + y r (3 a f^4 + 2 b f^3) = (x + y p) b. For r = xi alone and a = 0 that is Eq. 16's
    f^3 = x / (2 y xi). The root is the minimum wherever q, a and b are not negative.
    """
    middle = (low_hz + high_hz) / 2
    piece = int(np.searchsorted(model.server_time.breaks_hz, middle, side="right"))
    a, b = model.server_time.a_s[cuts, piece][:, None], model.server_time.b_cycles[cuts, piece][:, None]
    p = q = r = 0.0
    if model.server_power is not None:
        power = model.server_power
        k = int(np.searchsorted(power.breaks_hz, middle, side="right"))
        p, q, r = float(power.p_w[k]), float(power.q_w_per_hz[k]), float(power.r_w_per_hz3[k])
    x, y = by_delay[None, :], by_energy[None, :]
    shape = (len(cuts), len(by_delay))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if r > 0:
            # 2 f^3 + 3 (a/b) f^4 = k, k = (x + y p) / (y r): Newton from the root without a, which lies above the root
            slope = np.broadcast_to(np.where(b > 0, np.divide(a, b), np.inf), shape)
            root = np.cbrt(np.maximum((x + y * p) / (y * r), 0.0) / 2)
            f = np.clip(np.broadcast_to(root, shape), low_hz, high_hz)
            goal = 2 * root * root * root
            for _ in range(60):
                value = 2 * f**3 + 3 * slope * f**4 - goal
                step = np.where(np.isfinite(value), value / (6 * f**2 + 12 * slope * f**3), 0.0)
                step = np.clip(f - step, low_hz, high_hz) - f
                f = f + step
                if np.all(np.abs(step) <= 1e-15 * f):
                    break
        else:
            f = np.sqrt((x + y * p) * b / (y * q * a))
    return np.clip(np.where(np.isnan(f), low_hz, f), low_hz, high_hz)
