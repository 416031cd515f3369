"""How do the fitted power curves fare on chips that nobody has made?

    python benchmarks/power_synthetic.py

Sweeps of made-up chips, workloads and sensors (power_population.py) that the priors were not chosen on: 6 kinds x 8 numbers of clocks x 8
seeds of their own. No file is read. Each is asked at clocks that were not measured, and held against the curve without noise
(errors) and against new measurements (intervals).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.power_population import COUNTS, KINDS, MadeUp, draw  # noqa: E402
from profiler.power.fit import fit_sweep  # noqa: E402

FOUR = ("cubic", "affine-cubic", "power-law", "ridge")
SEEDS = range(200, 208)
NOISES = (0.003, 0.008, 0.023)  # upper ends of classes


def main() -> int:
    found: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    for count in COUNTS:
        for kind in KINDS:
            for seed in SEEDS:
                sweep = draw(kind, count, seed)
                row = one(sweep)
                noise = next(limit for limit in NOISES if sweep.noise <= limit)
                for key in (
                    ("kind", kind),
                    ("clocks", str(count)),
                    ("noise up to", f"{noise:.1%}"),
                    ("all", str(len(COUNTS) * len(KINDS) * len(SEEDS))),
                ):
                    found[key].append(row)
    table = Table(title="Made-up sweeps: median error over all clocks, and 95 % intervals")
    columns = (
        *("", "", "best of the four (%)", "auto (%)", "new measurements held", "left-out points held", "ends"),
        "half width over error at left-out points",
    )
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for what in ("kind", "clocks", "noise up to", "all"):
        for (title, value), rows in found.items():
            if title != what:
                continue
            data = np.array(rows)
            best = min(np.median(np.nan_to_num(data[:, k], nan=np.inf)) for k in range(4))
            new, left, ends = np.nanmean(data[:, 5:8], axis=0) * 100
            cells = (f"{best:.2f}", f"{np.median(data[:, 4]):.2f}", f"{new:.1f} %", f"{left:.1f} %", f"{ends:.1f} %")
            table.add_row(what, value, *cells, f"{np.nanmedian(data[:, 8]):.1f}")
    Console(width=150).print(table)
    return 0


def one(sweep: MadeUp) -> tuple[float, ...]:
    """Errors of the four and of ``auto`` (%), shares of new measurements, left-out points and left-out ends that are held, and median half
    width over median error at left-out points."""
    f, watts, asked = sweep.frequency_hz, sweep.power_w, sweep.asked_hz
    fitted = fit_sweep(f, watts, supported_hz=tuple(asked), capped=np.zeros(len(f), dtype=bool))
    at = np.searchsorted(fitted.frequency_hz, asked * (1 - 1e-12))
    error = [
        float(np.mean(np.abs(fitted.curves[name][at] / sweep.asked_w - 1)) * 100) if name in fitted.curves else np.nan
        for name in (*FOUR, "auto")
    ]
    left, new = fitted.left_out, sweep.new_w
    hit = np.where(np.isfinite(left.low_w), (left.low_w <= watts) & (watts <= left.high_w), np.nan)
    held = float(((fitted.low_w[at] <= new) & (new <= fitted.high_w[at])).mean())
    ratio = np.median(left.high_w - left.low_w) / 2 / np.median(np.abs(left.power_w - watts))
    return (*error, held, float(np.nanmean(hit)), float(np.nanmean(hit[[0, -1]])), float(ratio))


if __name__ == "__main__":
    sys.exit(main())
