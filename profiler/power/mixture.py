"""Mixtures of Student's t: what a new measurement may be where many shapes of a law have a say. See docs/power.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from profiler.power.curve import Array

ATOMS = 96
"""Parts of equal weight that a mixture of thousands is drawn down to."""


def atoms(weights: Array) -> NDArray[np.int64]:
    """Rows (ATOMS, b) of a mixture with weights (k, b), each as often as its weight says: evenly spaced steps of the running sum."""
    running = np.cumsum(weights, axis=0)
    steps = (np.arange(ATOMS) + 0.5) / ATOMS
    columns = [np.searchsorted(running[:, b], steps * running[-1, b]) for b in range(weights.shape[1])]
    return np.stack(columns, axis=1) if columns else np.zeros((ATOMS, 0), dtype=np.int64)


def interval(watts: Array, width: Array, freedom: Array) -> Array:
    """2.5 % and 97.5 % quantiles (2, b) of an even mixture (k, b) of Student's t around ``watts`` with scale ``width``."""
    from scipy.special import gammaln, stdtr

    freedom = np.maximum(freedom, 1.0)
    width = width + 1e-9 * np.abs(watts) + 1e-300
    reach = t_quantile(freedom)
    peak = np.exp(gammaln((freedom + 1) / 2) - gammaln(freedom / 2)) / np.sqrt(freedom * np.pi)
    edges = []
    for sign in (-1.0, 1.0):
        each = watts + sign * reach * width
        # Every part holds its own quantile, so the mixture's lies between the least and the greatest of them.
        low, high = each.min(axis=0), each.max(axis=0)
        at = np.quantile(each, 0.5 + 0.25 * sign, axis=0)
        for _ in range(30):
            z = (at - watts) / width
            missing = stdtr(freedom, z).mean(axis=0) - (0.5 + 0.475 * sign)
            if np.abs(missing).max(initial=0.0) < 1e-5:
                break
            low, high = np.where(missing < 0, at, low), np.where(missing < 0, high, at)
            density = peak * ((1 + z * z / freedom) ** (-(freedom + 1) / 2) / width).mean(axis=0)
            with np.errstate(all="ignore"):
                step = at - missing / density
            at = np.where((step > low) & (step < high), step, (low + high) / 2)
        edges.append(at)
    return np.stack(edges)


def t_quantile(freedom: Array) -> Array:
    """97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.maximum(freedom, 1.0), 0.975))
