"""Picture of what compression costs: loss added against how many times smaller the smashed data are, a line a codec over the cuts."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from profiler.profile import BadInput, MissingHardware, Profile

_LINEAR_BELOW = 0.005
"""Below this the axis of losses is linear, for around zero there is noise of both signs; above, it is logarithmic."""


def plot_compression(profile: Profile, folder: Path | str) -> list[Path]:
    """Write ``NAME-compression.png`` into ``folder`` (made where needed) and return its path; nothing where no loss was measured.

    Raises MissingHardware where matplotlib is not installed, BadInput where the folder cannot be written.
    """
    block = profile.compression
    figures = [] if block is None else [f for f in block.codecs if any(row.loss_increase is not None for row in f.cuts)]
    if block is None or not figures:
        return []
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingHardware("plots need matplotlib: install it with  pip install 'card-profile[plot]'") from None

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, row in enumerate(figures):
        known = [
            (1 / c.smashed_phi, c.loss_increase, c.loss_increase_se or 0.0)
            for c in row.cuts
            if c.loss_increase is not None
        ]
        ratios, losses, errors = zip(*known, strict=True)
        color = f"C{number % 10}"
        axes.errorbar(ratios, losses, yerr=errors, fmt="o", color=color, alpha=0.35, markersize=4, linewidth=0.8)
        axes.plot(median(ratios), median(losses), "D", color=color, markersize=8, label=row.codec, zorder=5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    axes.set_xlabel("smashed data: times smaller than uncompressed")
    axes.set_ylabel("held-out loss added (nats a token)")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9, title="codec: a point a cut ± standard error,\na diamond at the medians", title_fontsize=8)
    work = profile.workload
    base = f", loss without {block.base_loss:.4f}" if block.base_loss is not None else ""
    title = f"{profile.name}: {work.model}, batch {work.batch_size} x {work.seq_len} tokens, {work.dtype}{base}"
    # Words from files: a dollar sign in them is no formula.
    axes.set_title(title.replace("$", r"\$"), fontsize=11, loc="left")
    path = Path(folder) / f"{profile.name}-compression.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise BadInput(f"--plot: {path}: cannot be written: {error.strerror or error}") from None
    return [path]
