"""Pictures of times against the clock: what was measured, the curve with its interval, the law a + b/f, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from profiler.profile import BadInput, MissingHardware, Profile, TimeFit, TimeLaw
from profiler.times import half_width
from profiler.units import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE, _LAW = "#1f5f99", "#b0413e"


@dataclass(frozen=True)
class _Panel:
    """One row of times: measured seconds (K,) at clocks (K,), its law, and whose interval is its own."""

    title: str
    kind: str
    direction: str
    law: TimeLaw
    seconds: npt.NDArray[np.float64]


def plot_times(profile: Profile, folder: Path | str) -> list[Path]:
    """Write ``NAME-times.png`` into ``folder`` (made where needed) and return its path; nothing where the profile has no ``time_fit``.

    Raises MissingHardware where matplotlib is not installed, BadInput where the folder cannot be written.
    """
    fit = profile.time_fit
    if fit is None:
        return []
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHardware("plots need matplotlib: install it with  pip install 'card-profile[plot]'") from None

    clocks, panels = _panels(profile, fit)
    figure = Figure(figsize=(3.7 * len(panels), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(panels), height_ratios=[2, 1])
    for column, panel in enumerate(panels):
        above = figure.add_subplot(grid[0, column])
        below = figure.add_subplot(grid[1, column], sharex=above)
        _curve(above, fit, panel, clocks)
        _left_over(below, fit, panel, clocks)
    figure.axes[0].legend(fontsize=8, loc="upper right")
    work = profile.workload
    what = f"{profile.name}: {work.model}, batch {work.batch_size} x {work.seq_len} tokens, {work.dtype}"
    how = {"measured": "times measured", "emulated": "times EMULATED, not measured"}.get(fit.root, f"times {fit.root}")
    # Words from files: a dollar sign in them is no formula.
    figure.suptitle(f"{what}\n{len(fit.clocks_hz)} clocks, {how}".replace("$", r"\$"), fontsize=12)
    path = Path(folder) / f"{profile.name}-times.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise BadInput(f"--plot: {path}: cannot be written: {error.strerror or error}") from None
    return [path]


def _panels(profile: Profile, fit: TimeFit) -> tuple[npt.NDArray[np.float64], list[_Panel]]:
    """The whole step, and of the layers and the head the median one forward and backward. Clocks as measured (K,)."""
    kept = [t for t in profile.timings if t.frequency_hz is not None or t.requested_hz is not None]
    clocks = np.array([float(t.frequency_hz or t.requested_hz or 0.0) for t in kept])

    def of(index: int, direction: str) -> npt.NDArray[np.float64]:
        return np.array([getattr(t.segments[index], direction).median_s for t in kept])

    every = range(len(profile.segments))
    whole = sum((of(i, d) for i in every for d in ("forward", "backward", "optimizer")), start=np.zeros(len(clocks)))
    panels = [_Panel("whole step", "step", "step", fit.step, whole)]
    for kind in ("embedding", "layer", "head"):
        like = [i for i in every if profile.segments[i].kind == kind]
        like.sort(key=lambda i: float((of(i, "forward") + of(i, "backward")).mean()))
        if not like:
            continue
        index = like[len(like) // 2]
        for direction in ("forward",) if kind == "embedding" else ("forward", "backward"):
            law, seconds = getattr(fit.segments[index], direction), of(index, direction)
            if seconds.any():
                name = f"{profile.segments[index].name}, {direction}"
                panels.append(_Panel(name, kind, direction, law, seconds))
    return clocks, panels


def _scale(panel: _Panel) -> tuple[float, str]:
    top = float(panel.seconds.max())
    return (1.0, "s") if top >= 1 else (1e3, "ms") if top >= 1e-3 else (1e6, "µs")


def _curve(axes: Axes, fit: TimeFit, panel: _Panel, clocks: npt.NDArray[np.float64]) -> None:
    hz = np.linspace(fit.interval_hz[0], fit.interval_hz[-1], 300)
    factor, unit = _scale(panel)
    law, off = panel.law, half_width(fit, panel.kind, panel.direction, hz)
    seconds = fit.predict_s([law], hz)[0]
    axes.fill_between(
        hz / 1e6,
        factor * seconds * np.maximum(1 - off, 0),
        factor * seconds * (1 + np.minimum(off, 3)),
        color=_CURVE,
        alpha=0.2,
        linewidth=0,
        label="95 % interval for a new time",
    )
    axes.plot(hz / 1e6, factor * seconds, color=_CURVE, linewidth=2, label="curve that predictions follow")
    axes.plot(hz / 1e6, factor * (law.a_s + law.b_cycles / hz), "--", color=_LAW, linewidth=1.3, label="law a + b/f")
    axes.plot(clocks / 1e6, factor * panel.seconds, "o", color="black", markersize=4.5, label="timed", zorder=5)
    axes.set_ylim(0, 1.25 * factor * float(max(panel.seconds.max(), seconds.max())))
    lines = [panel.title.replace("$", r"\$"), f"a = {quantity(law.a_s, 's')}, b = {law.b_cycles:.3g} cycles"]
    lines.append("" if law.flops_per_core_cycle is None else f"{law.flops_per_core_cycle:.2f} FLOPs a core and cycle")
    axes.set_title("\n".join(lines), loc="left", fontsize=9)
    axes.set_ylabel(f"time ({unit})", fontsize=9)
    axes.grid(alpha=0.25)


def _left_over(axes: Axes, fit: TimeFit, panel: _Panel, clocks: npt.NDArray[np.float64]) -> None:
    law = panel.law
    predicted = fit.predict_s([law], clocks)[0]
    shown = np.maximum(panel.seconds, 1e-12)
    hz = np.linspace(fit.interval_hz[0], fit.interval_hz[-1], 300)
    off = 100 * np.minimum(half_width(fit, panel.kind, panel.direction, hz), 3)
    axes.fill_between(hz / 1e6, -off, off, color=_CURVE, alpha=0.12, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.plot(
        clocks / 1e6, 100 * (predicted / shown - 1), "o-", color=_CURVE, markersize=4, linewidth=0.8, label="curve"
    )
    straight = law.a_s + law.b_cycles / clocks
    axes.plot(
        clocks / 1e6, 100 * (straight / shown - 1), "x--", color=_LAW, markersize=5, linewidth=0.8, label="a + b/f"
    )
    errors = [
        f"{name} {pct:.2g} %"
        for name, pct in (("curve", law.curve_loo_error_pct), ("law", law.loo_error_pct))
        if pct is not None
    ]
    axes.set_title(
        "off at clocks left out: " + ", ".join(errors) if errors else "too few clocks to leave one out",
        loc="left",
        fontsize=8,
    )
    axes.set_xlabel("clock (MHz)", fontsize=9)
    axes.set_ylabel("predicted less timed (%)", fontsize=9)
    axes.grid(alpha=0.25)
