"""How do the fitted power curves fare on chips that nobody has made?

    python benchmarks/power_synthetic.py

Curves of known laws and of voltage tables with random floors, steps, tops and leakage, with 4 to 30 clocks and noise of 0 to 2 %. No
file is read. Each curve is asked at clocks that were not measured, and held against the curve without noise (errors) and against new
measurements with noise (intervals).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from profiler.power.fit import fit_sweep  # noqa: E402

FOUR = ("cubic", "affine-cubic", "power-law", "ridge")
KINDS = ("affine-cubic", "linear", "power-law", "ridge", "voltage steps", "soft voltage")
COUNTS = (4, 5, 8, 14, 30)
NOISES = (0.0, 0.003, 0.01, 0.02)
CURVES = 3
Found = dict[tuple[str, object], list[tuple[float, ...]]]


def hidden(kind: str, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A random curve of this kind: watts over those at the highest clock, for clocks over the highest."""
    rest, top = rng.uniform(0.15, 0.6), rng.uniform(1.2, 1.9)
    floor, bend, steps = rng.uniform(0.4, 0.85), rng.uniform(0.7, 1.5), rng.integers(6, 20)
    middle, width, exponent = rng.uniform(0.5, 0.9), rng.uniform(0.05, 0.2), rng.uniform(1.2, 4.5)

    def volts(x: np.ndarray) -> np.ndarray:
        if kind == "soft voltage":
            return np.asarray(1 + (top - 1) / (1 + np.exp(-(x - middle) / width)))
        rise = np.clip((x - floor) / (1 - floor), 0, 1)
        return np.asarray(1 + (top - 1) * (rise if kind == "ridge" else np.round(rise**bend * steps) / steps))

    def watts(x: np.ndarray) -> np.ndarray:
        if kind in ("affine-cubic", "linear", "power-law"):
            return np.asarray(rest + (1 - rest) * x ** {"affine-cubic": 3, "linear": 1, "power-law": exponent}[kind])
        v = volts(x) / volts(np.ones(1))
        static = rest if kind == "ridge" else rest * v**2  # leakage grows with the voltage
        return np.asarray(static + (1 - rest) * x * v**2)

    return watts


def main() -> int:
    found: Found = defaultdict(list)
    for count in COUNTS:
        for noise in NOISES:
            for which, kind in enumerate(KINDS):
                for seed in range(CURVES):
                    rng = np.random.default_rng([count, int(noise * 1000), which, seed])
                    row = one(hidden(kind, rng), count, noise, rng)
                    for key in (("kind", kind), ("clocks", count), ("noise", noise), ("all", "")):
                        found[key].append(row)
    table = Table(title="Curves made for the purpose: median error over all clocks, and 95 % intervals")
    for column in ("", "", "best of the four (%)", "auto (%)", "new measurements held", "left-out points held", "ends"):
        table.add_column(column, justify="left" if not column else "right")
    for (what, value), rows in found.items():
        data = np.array(rows)
        best = min(np.median(np.nan_to_num(data[:, k], nan=np.inf)) for k in range(4))
        shown = f"{value:.1%}" if what == "noise" else str(value)
        new, left, ends = np.nanmean(data[:, 5:], axis=0) * 100
        table.add_row(
            what, shown, f"{best:.2f}", f"{np.median(data[:, 4]):.2f}", f"{new:.1f} %", f"{left:.1f} %", f"{ends:.1f} %"
        )
    Console(width=130).print(table)
    return 0


def one(
    curve: Callable[[np.ndarray], np.ndarray], count: int, noise: float, rng: np.random.Generator
) -> tuple[float, ...]:
    """Errors of the four and of ``auto`` (%), shares of new measurements, left-out points and left-out ends that are held."""
    low = rng.uniform(0.15, 0.5)
    x = (
        np.sort(np.concatenate([[low, 1.0], rng.uniform(low, 1, count - 2)]))
        if count > 6
        else np.linspace(low, 1, count)
    )
    power = 150 * curve(x) * (1 + noise * rng.standard_normal(count))
    asked = np.linspace(low, 1, 41)
    fitted = fit_sweep(x * 1.5e9, power, supported_hz=tuple(asked * 1.5e9), capped=np.zeros(count, dtype=bool))
    at = np.searchsorted(fitted.frequency_hz, asked * 1.5e9 * (1 - 1e-12))
    true = 150 * curve(asked)
    new = true * (1 + noise * rng.standard_normal(len(asked)))
    error = [
        float(np.mean(np.abs(fitted.curves[name][at] / true - 1)) * 100) if name in fitted.curves else np.nan
        for name in (*FOUR, "auto")
    ]
    left = fitted.left_out
    hit = np.where(np.isfinite(left.low_w), (left.low_w <= power) & (power <= left.high_w), np.nan)
    held = float(((fitted.low_w[at] <= new) & (new <= fitted.high_w[at])).mean())
    return (*error, held, float(np.nanmean(hit)), float(np.nanmean(hit[[0, -1]])))


if __name__ == "__main__":
    sys.exit(main())
