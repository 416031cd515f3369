"""Algorithm 1 in plain Python, straight from the letter: the yardstick for the vectorised one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def algorithm_1(
    waiting_s: Sequence[float],
    feasible: Sequence[bool],
    cycles: Sequence[float],
    xi: float,
    w: float,
    f_min: float,
    f_max: float,
) -> tuple[int, float, float]:
    """(0-based cut, f*, U) of one device in one round.

    ``waiting_s`` is the delay of each cut without the server's computing, ``cycles`` T (eta - eta_D) / (delta sigma).
    """
    cuts = [c for c in range(len(cycles)) if feasible[c]]
    d_min = min(waiting_s[c] + cycles[c] / f_max for c in cuts)
    d_max = max(waiting_s[c] + cycles[c] / f_min for c in cuts)
    e_min = min(xi * f_min**2 * cycles[c] for c in cuts)
    e_max = max(xi * f_max**2 * cycles[c] for c in cuts)
    if w == 1:
        f = f_max
    elif w == 0:
        f = f_min
    else:
        f = min(max(math.pow(w * (e_max - e_min) / (2 * xi * (1 - w) * (d_max - d_min)), 1 / 3), f_min), f_max)
    by_delay = w / (d_max - d_min) if d_max > d_min else 0.0
    by_energy = (1 - w) / (e_max - e_min) if e_max > e_min else 0.0
    square = xi * f * f
    u_min, best = math.inf, -1
    for c in cuts:
        u = by_delay * (waiting_s[c] + cycles[c] / f - d_min) + by_energy * (square * cycles[c] - e_min)
        if u < u_min:
            u_min, best = u, c
    return best, f, u_min


def algorithm_1_fleet(
    device_terms: Sequence[Sequence[tuple[float, float, float]]],
    cycles: Sequence[float],
    rates_bps: Sequence[tuple[int, float, float]],
    xi: float,
    w: float,
    f_min: float,
    f_max: float,
) -> list[tuple[int, float]]:
    """(0-based cut, f*) of every (device, uplink, downlink), 0 < w < 1: Algorithm 1 as fast as plain Python does it.

    ``device_terms[m][c]`` are the seconds of cut c that no rate changes and the bits that go up and down. What does not depend on the
    decision stands outside of the loop; the loops are comprehensions over lists.
    """
    slowest, fastest = [k / f_min for k in cycles], [k / f_max for k in cycles]
    e_span = max(xi * f_max**2 * k for k in cycles) - min(xi * f_min**2 * k for k in cycles)
    numerator = w * e_span / (2 * xi * (1 - w))
    by_energy = (1 - w) / e_span * xi
    decided = []
    for device, up, down in rates_bps:
        per_up, per_down = 1 / up, 1 / down
        waiting = [a + b * per_up + c * per_down for a, b, c in device_terms[device]]
        d_span = max([x + y for x, y in zip(waiting, slowest)]) - min([x + y for x, y in zip(waiting, fastest)])  # noqa: B905
        f = (numerator / d_span) ** (1 / 3)
        f = f_min if f < f_min else f_max if f > f_max else f
        by_delay = w / d_span
        by_cycles = by_delay / f + by_energy * f * f
        cost = [by_delay * x + by_cycles * k for x, k in zip(waiting, cycles)]  # noqa: B905
        decided.append((cost.index(min(cost)), f))
    return decided
