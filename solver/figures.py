"""Figures as every command of the solver draws and saves them: without a display, whole or absent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.profile import MissingHardware
from profiler.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "device": "#4477aa",
    "server": "#ee6677",
    "link": "#ccbb44",
    "adapters": "#bbbbbb",
    "energy": "#228833",
    "other": "#aa3377",
}
"""Paul Tol's bright scheme: told apart by colour-blind eyes and in print."""


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure. Raises MissingHardware where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHardware(
            "--plot: matplotlib is not installed, expected it there: pip install 'card-profile[plot]'"
        ) from None
    return Figure(figsize=(width_in, height_in), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's suffix (png, svg, pdf). Raises BadInput where the folder cannot be written."""
    out = io.BytesIO()
    figure.savefig(out, format=path.suffix.removeprefix("."), dpi=130)
    write_atomically(path, out.getvalue())
    return path


def as_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element to stand inside a page: no XML header, no date, ids that do not change."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "card"}):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
