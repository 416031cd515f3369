"""What one decision looks like: what the delay is made of at every cut, the cost over cut and clock, delay against energy.

Each panel draws on axes that it is given; who asks for it chooses size and file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from solver.costs import Costs, Floats, Ints, Mask
from solver.figures import COLOURS, new_figure, save
from solver.show.reasons import of_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from solver.scenario import Solution

CONTINUOUS_CLOCKS = 80
"""Clocks drawn where any clock will do."""


@dataclass(frozen=True)
class View:
    """Decision ``n`` among all its cuts (C,) and clocks (K,). ``cost`` (C, K) is NaN where a cut does not fit in memory."""

    solution: Solution
    n: int
    clocks_hz: Floats
    costs: Costs
    cost: Floats
    at_clock: Costs
    """(C,) at the clock decided."""

    @staticmethod
    def of(solution: Solution, n: int) -> View:
        """Price everything that the panels show of decision ``n``."""
        problem = solution.problem
        hz, limits = problem.clocks.supported_hz, problem.clocks
        if len(hz) == 0:
            hz = np.unique(np.linspace(limits.f_min_hz, limits.f_max_hz, CONTINUOUS_CLOCKS))
        places = problem.places
        where = places.device[n], places.uplink_bps[n], places.downlink_bps[n]
        every = np.arange(problem.evaluated.cuts)
        costs = problem.evaluated.at(*where, every[:, None], hz[None, :])
        one = of_rows(solution.extremes, np.array([n]))
        cost = np.asarray(problem.options.objective.cost(one, costs.delay_s, costs.energy_j))
        fits = problem.feasible[places.device[n]][:, None]
        at_clock = problem.evaluated.at(*where, every, solution.decisions.frequency_hz[n])
        return View(solution, n, hz, costs, np.where(fits, cost, np.nan), at_clock)

    @property
    def cuts(self) -> Ints:
        """1..C."""
        return np.arange(1, len(self.cost) + 1)

    @property
    def chosen(self) -> int:
        """The cut decided."""
        return int(self.solution.decisions.cut[self.n])

    @property
    def fits(self) -> Mask:
        """(C,) cuts that fit in memory."""
        mask: Mask = self.solution.problem.feasible[self.n % len(self.solution.problem.devices)]
        return mask

    @property
    def cost_label(self) -> str:
        """What ``cost`` is, with its unit."""
        goal = self.solution.problem.options.objective
        if goal.kind == "w":
            return "U (Eq. 12)"
        return f"{goal.cost_name} ({goal.cost_unit})"


def composition(view: View, axes: Axes, *, energy: bool) -> None:
    """Stacked bars of Eq. 10 over the cuts at the clock decided; with ``energy`` the server's joules on a second scale."""
    from matplotlib.ticker import MaxNLocator

    costs, cuts = view.at_clock, view.cuts
    bottom = np.zeros(len(cuts))
    for label, part, colour in (
        ("device computes", costs.device_compute_s, COLOURS["device"]),
        ("server computes", costs.server_compute_s, COLOURS["server"]),
        ("smashed data and gradients", costs.uplink_s + costs.downlink_s, COLOURS["link"]),
        ("adapters", costs.adapters_s, COLOURS["adapters"]),
    ):
        axes.bar(cuts, part, bottom=bottom, label=label, color=colour, width=0.85)
        bottom = bottom + part
    if not view.fits.all():
        axes.bar(
            cuts[~view.fits],
            bottom[~view.fits],
            color="none",
            edgecolor="0.4",
            hatch="///",
            linewidth=0,
            label="does not fit",
            width=0.85,
        )
    clocks = view.solution.problem.clocks
    clock = f"; server at {view.solution.decisions.frequency_hz[view.n] / 1e9:.3f} GHz" if clocks.known else ""
    axes.set_xlabel(f"cut layer c: layers 1..c on the device{clock}")
    axes.set_ylabel("delay of a round (s)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.axvline(view.chosen, color="C7", linestyle="--", linewidth=1, zorder=0)
    top = axes.get_ylim()[1]
    axes.annotate(f"cut {view.chosen}", (view.chosen, top), ha="center", va="bottom", annotation_clip=False)
    axes.legend(fontsize="small", loc="upper center", ncols=2, frameon=False, handlelength=1.2)
    if energy and costs.energy_j is not None:
        twin = axes.twinx()
        twin.plot(cuts, costs.energy_j, color=COLOURS["energy"], marker=".", linewidth=1.2)
        twin.set_ylabel("server's energy (J)", color=COLOURS["energy"])
        twin.set_ylim(0, 1.3 * twin.get_ylim()[1])


def cost_map(view: View, axes: Axes) -> None:
    """The cost over cut and clock, the decision starred. Cuts that do not fit are left empty."""
    from matplotlib.ticker import MaxNLocator

    ours, known = view.solution.decisions, view.solution.problem.clocks.known
    mesh = axes.pcolormesh(
        view.cuts, view.clocks_hz / 1e9, view.cost.T, shading="nearest", cmap="viridis_r", rasterized=True
    )
    axes.figure.colorbar(mesh, ax=axes, label=view.cost_label)
    axes.plot(
        view.chosen,
        ours.frequency_hz[view.n] / 1e9,
        "*",
        color="red",
        markeredgecolor="white",
        markeredgewidth=0.8,
        markersize=14,
        label="decision",
        clip_on=False,
        zorder=5,
    )
    axes.set_xlabel("cut layer c")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("server clock (GHz)" if known else "server clock (not known)")


def plane(view: View, axes: Axes) -> None:
    """Every cut and clock that fits in delay and energy, those that no other beats in both joined by a line, and the baselines."""
    solution, n = view.solution, view.n
    energy = view.costs.energy_j
    assert energy is not None
    shown = np.broadcast_to(view.fits[:, None], energy.shape)
    delay, joules = view.costs.delay_s[shown], energy[shown]
    axes.scatter(delay, joules, s=3, color="0.55", alpha=0.35, linewidths=0, rasterized=True)
    axes.plot([], [], "o", markersize=3, color="0.55", label="a cut and clock")
    order = np.lexsort((joules, delay))
    least = np.minimum.accumulate(joules[order])
    front = order[np.concatenate([[True], joules[order][1:] < least[:-1]])]
    axes.step(delay[front], joules[front], where="post", color=COLOURS["energy"], linewidth=1.3, label="beaten by none")
    for (name, rows), marker in zip(solution.baselines.items(), "sD^v", strict=False):
        if rows.feasible[n] and rows.costs.energy_j is not None:
            axes.plot(
                rows.costs.delay_s[n],
                rows.costs.energy_j[n],
                marker,
                color=COLOURS["other"],
                markersize=6,
                fillstyle="none",
                linestyle="none",
                label=name,
            )
    ours = solution.decisions
    assert ours.costs.energy_j is not None
    axes.plot(
        ours.costs.delay_s[n],
        ours.costs.energy_j[n],
        "*",
        color="red",
        markeredgecolor="white",
        markeredgewidth=0.8,
        markersize=14,
        linestyle="none",
        label="decision",
        zorder=5,
    )
    axes.set_xlabel("delay of a round (s)")
    axes.set_ylabel("server's energy (J)")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.legend(fontsize="small", loc="upper right", frameon=False, handlelength=1.2)


def write_plots(solution: Solution, folder: Path) -> list[Path]:
    """Write ``DEVICE.png`` for each device (its first round): delay and energy over the cuts, and the cost over cut and clock.

    Raises MissingHardware where matplotlib is missing, BadInput where the folder cannot be written.
    """
    paths = []
    options = solution.problem.options
    for m, device in enumerate(solution.problem.devices):
        view = View.of(solution, m)
        figure = new_figure(11, 4.2)
        left, right = figure.subplots(1, 2)
        composition(view, left, energy=True)
        cost_map(view, right)
        figure.suptitle(
            f"{device.name} with {solution.problem.server.name}, {options.objective.words}, method {options.method}"
        )
        paths.append(save(figure, folder / f"{device.name}.png"))
    return paths
