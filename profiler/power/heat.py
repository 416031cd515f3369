"""Where a warming chip's power will settle, told before it has.

    T(t) = T_end + A1 exp(-t / tau1) + A2 exp(-t / tau2)     the thermometer's course after the clock changed
    P(t) = P_end + B1 exp(-t / tau1) + B2 exp(-t / tau2)     the watts follow it: leakage grows with heat

A chip takes minutes to come to its end after a change of clock, and a sweep changes the clock often. The time constants (the heat
sink's tau1, minutes; that of what lies near the sensors, tau2, seconds) come from the thermometer, of whole degrees where need be; the
share of the watts that is still to come, B, from the watts themselves, held against what a degree is worth (``Habits``: weakly what
CMOS does, then what this very device did at the clocks before). Nothing is taken for known: every pair of a grid of time constants is
weighed by how well it explains the readings (ends and amplitudes integrated out, Gaussian), and what remains open widens the
interval of the figure.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_PAIRS_S = np.array(
    [
        (slow, fast)
        for slow, fast in itertools.product(np.geomspace(6.0, 400.0, 32), (0.7, 1.5, 3.0, 6.0, 12.0))
        if fast <= slow / 3
    ]
)
_SWING_C = np.array([30.0, 10.0])  # a priori spread of A1, A2
_WORTH, _WORTH_SPREAD = 0.002, 0.003  # a priori share of the watts for each degree, and its spread
_BINS = 200
_MISFIT = 0.01  # no chip is two exponentials: the course of the temperature is not believed closer than this share of its range
_DOUBT = 0.02  # what earlier clocks said of the time constants is doubted so much: a fan may have changed them


@dataclass(frozen=True)
class Habits:
    """How this device's heat behaves, learnt from one clock to the next: log weights of the time constants, and what a degree is
    worth in watts as a share, with its spread."""

    log_weights: Array = field(default_factory=lambda: np.zeros(len(_PAIRS_S)))
    worth: float = _WORTH
    worth_spread: float = _WORTH_SPREAD


@dataclass(frozen=True)
class Settling:
    """``to_come_w`` (windows,): what the watts of each will have gained once the heat stands still; ``to_come_c``: how far the
    temperature has still to go after the last, up or down. Inner figures by pair."""

    to_come_w: Array
    to_come_c: float
    habits: Habits
    """What has been learnt, for the next clock."""
    _weights: Array  # (pairs,)
    _left: Array  # (pairs, windows, 2): exp(-t / tau), mean over each window
    _gain_w: Array  # (pairs, 2): B
    _gain_var: Array  # (pairs, 2, 2)

    def half_width_w(self, first: int) -> float:
        """Half width of the 95 % interval of what is to come, as a mean over the windows from ``first`` on."""
        left = self._left[:, first:].mean(axis=1)
        means = -np.einsum("pi,pi->p", self._gain_w, left)
        variances = np.einsum("pi,pij,pj->p", left, self._gain_var, left)
        mean = float(self._weights @ means)
        return float(
            _student_975(self._left.shape[1] - 2) * np.sqrt(max(0.0, self._weights @ (variances + means**2) - mean**2))
        )


def settling(
    times_s: Array, celsius: Array, starts_s: Array, ends_s: Array, watts: Array, habits: Habits
) -> Settling | None:
    """What is still to come in windows [starts, ends) of mean ``watts`` (windows,), by a thermometer read at ``times_s`` (n,).

    All since the clock was set. None where there is too little to tell: fewer than 4 windows or 8 readings.
    """
    if len(watts) < 4 or len(times_s) < 8:
        return None
    zero_s = times_s[0]
    t, degrees = _binned(times_s - zero_s, celsius)
    course = np.exp(-t[None, :, None] / _PAIRS_S[:, None, :])  # (pairs, n, 2)
    centred = course - course.mean(axis=1, keepdims=True)
    moved = degrees - degrees.mean()
    square, product = np.swapaxes(centred, 1, 2) @ centred, moved @ centred
    loose = np.linalg.solve(square + 1e-6 * np.eye(2), product[..., None])[..., 0]
    rest = (moved**2).sum() - np.einsum("pi,pi->p", product, loose)
    best = int(np.argmin(rest))
    least = max(_step_c(celsius) ** 2 / 12.0, (_MISFIT * float(np.ptp(degrees))) ** 2)
    noise = max(float(rest[best]) / max(len(t) - 5, 1), least)
    trust = _independent(moved - centred[best] @ loose[best]) / len(t) / noise
    known = trust * square + np.diag(_SWING_C**-2.0)
    spread_c2 = np.linalg.inv(known)
    swing_c = np.einsum("pij,pj->pi", spread_c2, trust * product)
    evidence = 0.5 * np.einsum("pi,pi->p", trust * product, swing_c) - 0.5 * np.linalg.slogdet(known)[1]
    learnt = evidence + habits.log_weights

    left = _left(starts_s - zero_s, ends_s - zero_s)  # (pairs, windows, 2)
    mean_w = float(watts.mean())
    shape, above = left - left.mean(axis=1, keepdims=True), watts - mean_w
    # B ~ what so many degrees are worth, with the spread of both.
    prior_w = habits.worth * mean_w * swing_c
    open_c2 = np.einsum("pii->pi", spread_c2)
    prior_var = (habits.worth_spread * mean_w) ** 2 * (swing_c**2 + open_c2) + (habits.worth * mean_w) ** 2 * open_c2
    gap = above[None, :] - np.einsum("pwi,pi->pw", shape, prior_w)
    square_w, product_w = np.swapaxes(shape, 1, 2) @ shape, np.einsum("pwi,pw->pi", shape, gap)
    precise = np.zeros_like(square_w)
    precise[:, [0, 1], [0, 1]] = 1.0 / prior_var
    noise_w2 = (2e-4 * mean_w) ** 2
    for _ in range(4):  # the noise of the windows, from what the fit leaves of them
        known_w = square_w / noise_w2 + precise
        more_w = np.linalg.solve(known_w, product_w[..., None] / noise_w2)[..., 0]
        rest_w = ((gap - np.einsum("pwi,pi->pw", shape, more_w)) ** 2).sum(axis=1)
        fits = 0.5 * np.einsum("pi,pi->p", product_w / noise_w2, more_w) - 0.5 * (gap**2).sum(axis=1) / noise_w2
        fits -= 0.5 * np.linalg.slogdet(known_w)[1] + 0.5 * np.log(prior_var).sum(axis=1)
        weights = _normal(learnt + fits)
        noise_w2 = max(float(weights @ rest_w) / max(len(watts) - 2, 1), (2e-4 * mean_w) ** 2)
    gain_w, gain_var = prior_w + more_w, np.linalg.inv(known_w)
    return Settling(
        to_come_w=-np.einsum("p,pwi,pi->w", weights, left, gain_w),
        to_come_c=abs(float(np.einsum("p,pi,pi->", weights, left[:, -1], swing_c))),
        habits=_learnt(habits, _normal(learnt), weights, gain_w / mean_w, gain_var / mean_w**2, swing_c, open_c2),
        _weights=weights,
        _left=left,
        _gain_w=gain_w,
        _gain_var=gain_var,
    )


def _learnt(
    habits: Habits, pairs: Array, weights: Array, gain: Array, gain_var: Array, swing_c: Array, open_c2: Array
) -> Habits:
    """The weights of the time constants, less sure than they were, and what a degree is worth where enough of them passed."""
    kept = np.log((1 - _DOUBT) * pairs + _DOUBT / len(pairs))
    k = int(np.argmax(weights))
    slow_c = float(swing_c[k, 0])
    if abs(slow_c) < 3.0 or slow_c**2 < 9.0 * open_c2[k, 0]:
        return Habits(kept, habits.worth, habits.worth_spread)
    worth, error = float(gain[k, 0]) / slow_c, float(np.sqrt(gain_var[k, 0, 0])) / abs(slow_c)
    # The gain already holds what was known of it before; clocks differ, so it is not taken for sharper than a third.
    return Habits(kept, worth, min(_WORTH_SPREAD, float(np.hypot(error, 0.3 * abs(worth) + 0.0003))))


def _left(starts_s: Array, ends_s: Array) -> Array:
    """exp(-t / tau), mean over each window; shape (pairs, windows, 2)."""
    tau = _PAIRS_S[:, None, :]
    length = np.maximum(ends_s - starts_s, 1e-6)[None, :, None]
    return np.asarray(np.exp(-starts_s[None, :, None] / tau) * -np.expm1(-length / tau) * tau / length)


def _binned(times_s: Array, values: Array) -> tuple[Array, Array]:
    if len(times_s) <= _BINS:
        return times_s, values
    edges = np.linspace(0, len(times_s), _BINS + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(times_s, edges[:-1]) / counts, np.add.reduceat(values, edges[:-1]) / counts


def _step_c(celsius: Array) -> float:
    """The thermometer's step: the least change seen; where it never moved, whole degrees where it shows such, else tenths."""
    levels = np.unique(celsius)
    if len(levels) > 1:
        return float(min(1.0, np.diff(levels).min()))
    return 1.0 if levels[0] == round(levels[0]) else 0.1


def _independent(residual: Array) -> float:
    """How many independent values a residual is worth, by its first autocorrelation; at least 4."""
    power = float(residual @ residual)
    if power <= 1e-12:
        return 4.0
    rho = min(max(float(residual[1:] @ residual[:-1]) / power, 0.0), 0.999)
    return max(4.0, len(residual) * (1 - rho) / (1 + rho))


def _normal(log_weights: Array) -> Array:
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


def _student_975(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), 0.975))
