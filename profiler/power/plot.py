"""Pictures of a fitted sweep: power against clock with its interval, the laws beside each other, and what is left over."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.power.fit import SweepFit
from profiler.power.source import Sweep
from profiler.profile import BadInput, MissingHardware

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BESIDE = ("cubic", "affine-cubic", "power-law", "ridge")
_COLOURS = {"cubic": "#b0413e", "affine-cubic": "#d08c2e", "power-law": "#7b6aa8", "ridge": "#3f8f5f"}
_CHOSEN = "#1f5f99"


def plot_fits(fits: Iterable[tuple[Sweep, SweepFit]], folder: Path | str) -> list[Path]:
    """Write one PNG for each fitted sweep into ``folder`` (made where needed) and return their paths.

    Sweeps of the same device and workload get a number. Raises MissingHardware where matplotlib is not installed, BadInput where the
    folder cannot be written.
    """
    paths: list[Path] = []
    for sweep, fitted in fits:
        name, number = _file_name(sweep), 1
        path = Path(folder) / f"{name}.png"
        while path in paths:
            number += 1
            path = Path(folder) / f"{name}-{number}.png"
        _draw(sweep, fitted, path)
        paths.append(path)
    return paths


def _draw(sweep: Sweep, fitted: SweepFit, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHardware("plots need matplotlib: install it with  pip install 'card-profile[plot]'") from None

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=[2, 1], width_ratios=[1, 1])
    top_left = figure.add_subplot(grid[0, 0])
    top_right = figure.add_subplot(grid[0, 1], sharex=top_left, sharey=top_left)
    bottom = figure.add_subplot(grid[1, :], sharex=top_left)
    _curve(top_left, sweep, fitted)
    _laws(top_right, sweep, fitted)
    _residuals(bottom, sweep, fitted)
    scope = f"watts of: {sweep.power_scope}" if sweep.power_scope else "what the watts cover is not stated"
    # Titles come from files: a dollar sign in them is no formula.
    figure.suptitle(f"{sweep.title}\n{scope}".replace("$", r"\$"), fontsize=12)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in signs that the font lacks gets boxes
            figure.savefig(path, dpi=110)
    except OSError as error:
        raise BadInput(f"--plot: {path}: cannot be written: {error.strerror or error}") from None


def _file_name(sweep: Sweep) -> str:
    """A name that stays inside the folder whatever stands in the table."""
    parts = [part for part in (sweep.device, sweep.workload) if part] or [Path(sweep.source).stem]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "--".join(parts)).strip("-.")
    return name[:120] or "sweep"


def _points(axes: Axes, sweep: Sweep, fitted: SweepFit) -> None:
    free = ~fitted.capped
    mhz = sweep.frequency_hz / 1e6
    axes.plot(mhz[free], sweep.power_w[free], "o", color="black", markersize=4.5, label=sweep.provenance, zorder=5)
    if fitted.capped.any():
        axes.plot(
            mhz[~free],
            sweep.power_w[~free],
            "s",
            color="black",
            markerfacecolor="none",
            label=f"{sweep.provenance} at the power cap",
            zorder=5,
        )


def _finish(axes: Axes, title: str, ylabel: str, **legend: Any) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("clock (MHz)")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, **legend)


def _curve(axes: Axes, sweep: Sweep, fitted: SweepFit) -> None:
    mhz = fitted.frequency_hz / 1e6
    ceiling = 1.25 * max(float(fitted.power_w.max()), float(sweep.power_w.max()))
    axes.fill_between(
        mhz,
        fitted.low_w,
        np.minimum(fitted.high_w, 4 * ceiling),
        color=_CHOSEN,
        alpha=0.18,
        linewidth=0,
        label="95 % interval for a new measurement",
    )
    error = fitted.models[fitted.selected].loo_mape_pct
    tail = "" if error is None else f", {error:.1f} % off at clocks it has not seen"
    axes.plot(mhz, fitted.power_w, color=_CHOSEN, linewidth=2, label=f"fitted ({fitted.selected}){tail}")
    if fitted.power_cap_w is not None:
        axes.axhline(fitted.power_cap_w, color="grey", linestyle=":", label=f"power cap {fitted.power_cap_w:.0f} W")
    _points(axes, sweep, fitted)
    axes.set_ylim(0, ceiling)
    _finish(axes, "Power against clock", "power (W)", loc="upper left")


def _laws(axes: Axes, sweep: Sweep, fitted: SweepFit) -> None:
    mhz = fitted.frequency_hz / 1e6
    for name in _BESIDE:
        if name in fitted.curves:
            error = fitted.models[name].loo_mape_pct
            label = name if error is None else f"{name}: {error:.1f} % off"
            style = "--" if name == "cubic" else "-"
            axes.plot(mhz, fitted.curves[name], style, color=_COLOURS[name], linewidth=1.4, label=label)
    error = fitted.models[fitted.selected].loo_mape_pct
    label = fitted.selected if error is None else f"{fitted.selected}: {error:.1f} % off"
    axes.plot(mhz, fitted.power_w, color=_CHOSEN, linewidth=2.2, alpha=0.8, label=label)
    _points(axes, sweep, fitted)
    _finish(axes, "Laws beside each other (mean error at clocks left out of the fit)", "power (W)", loc="upper left")


def _residuals(axes: Axes, sweep: Sweep, fitted: SweepFit) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    at = np.searchsorted(fitted.frequency_hz, sweep.frequency_hz)
    mhz = sweep.frequency_hz / 1e6
    axes.plot(
        mhz,
        (fitted.power_w[at] / sweep.power_w - 1) * 100,
        "o",
        color=_CHOSEN,
        markersize=4.5,
        label="fitted with all clocks",
    )
    left = fitted.left_out
    free = ~fitted.capped
    index = np.searchsorted(left.frequency_hz, sweep.frequency_hz[free])
    measured = sweep.power_w[free]
    known = np.isfinite(left.power_w[index])
    value = (left.power_w[index] / measured - 1) * 100
    bars = np.abs(np.stack([left.low_w[index], left.high_w[index]]) / measured * 100 - 100 - value)
    bounded = np.isfinite(bars).all()
    axes.errorbar(
        mhz[free][known],
        value[known],
        yerr=bars[:, known] if bounded else None,
        fmt="x",
        color="#b0413e",
        elinewidth=0.8,
        capsize=2,
        label="fitted without this clock"
        + (", with its 95 % interval" if bounded else " (too few clocks for an interval)"),
    )
    # One wild end point must not flatten all others.
    limit = 1.6 * float(np.nanmax(np.abs(value[known]))) if known.any() else 5.0
    axes.set_ylim(-max(limit, 1.0), max(limit, 1.0))
    _finish(axes, f"What is left: predicted less {sweep.provenance}", "error (% of the watts)", loc="best", ncols=2)
