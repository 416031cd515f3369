"""The decision as one HTML page that opens anywhere: no script, no network, every text out of a profile escaped.

`write_html` writes the page, `fragment` is what a notebook shows. Strings become markup in one place, `markup.cell`: whatever is not `Safe` is
escaped there.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler import __version__
from profiler.profile import MissingHardware, Profile
from profiler.store import write_atomically
from profiler.units import data_size, quantity, ranges
from solver.figures import COLOURS, as_svg, new_figure
from solver.show.markup import FRAGMENT_STYLE, Safe, cell, document, join, table, tag
from solver.show.plots import View, composition, cost_map, plane
from solver.show.reasons import PARTS, Points, Reasons, explain
from solver.show.report import cells, columns, groups, typical_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.scenario import Solution

MOST_DRAWN = 12
"""Devices that get figures."""
MOST_TOLD = 200
"""Devices that get a row and a reason; also rows of any other table."""

PART_COLOURS = dict(
    zip(PARTS, (*(COLOURS[name] for name in ("device", "server", "link")), "#8a7f1f", COLOURS["adapters"]), strict=True)
)


# --------------------------------------------------------------------------------------------------------------- page


def write_html(solution: Solution, path: Path, *, profiles: str = "DIR") -> Path:
    """Write the report as one file. ``profiles`` is the folder as the command that reproduces it names it.

    Raises MissingHardware without matplotlib, BadInput where the file cannot be written.
    """
    write_atomically(path, page(solution, profiles=profiles).encode())
    return path


def page(solution: Solution, *, profiles: str = "DIR") -> str:
    """The whole document."""
    problem = solution.problem
    title = f"Cut layer and server clock: {problem.server.workload.model} on {problem.server.name}"
    sections = [
        _header(solution),
        _warnings(solution),
        _section("Decisions", _lead(solution), _bars_legend(), _decisions(solution)),
        _section("Against the benchmarks", *_benchmarks(solution)),
        *_devices(solution),
        *_excluded(solution),
        _section("What this rests on", *_provenance(solution)),
        _section("How it was computed", *_equations(solution)),
        _section("Reproduce it", *_reproduce(solution, profiles)),
    ]
    return document(title, sections)


def fragment(solution: Solution) -> str:
    """What a notebook shows: heading, table, reasons and warnings. Without figures, so that it costs nothing."""
    reasons = _reason_list(solution, typical_rows(solution, 10))
    style = tag("style", Safe(re.sub(r"\s+", " ", FRAGMENT_STYLE)))
    parts = [style, tag("p", _summary(solution)), _decisions(solution), reasons, _warnings(solution)]
    return str(tag("div", *parts, class_="card-solve"))


def _section(title: str, *inside: object) -> Safe:
    name = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
    return tag("section", tag("h2", title, id=name), *inside, aria_labelledby=name)


def _header(solution: Solution) -> Safe:
    problem, options = solution.problem, solution.problem.options
    count, rounds = len(problem.devices), len(problem.rates.rounds)
    summary = solution.summary()
    energy = "Energy with the devices'" if options.device_energy else "Server's energy"
    facts: list[tuple[str, str, str]] = []
    mean = "mean of a round" if count * rounds > 1 else "a round"
    for name, key, unit in (("Delay", "mean_delay_s", "s"), (energy, "mean_energy_j", "J")):
        value = summary[key]
        facts.append((name, "not known" if value is None else quantity(value, unit, 4), mean))
    for name, key, other in (
        ("Delay saved", "delay_reduction_vs_device_only_pct", "against device-only"),
        ("Energy saved", "energy_reduction_vs_server_only_pct", "against server-only"),
    ):
        saved = summary[key]
        facts.append((name, "no figure" if saved is None else f"{saved:.1f} %", other))
    what = f"{count} device{'s' * (count > 1)} and the server {problem.server.name}"
    when = f"{rounds} rounds" if rounds > 1 else "one round"
    return tag(
        "header",
        tag("p", "card-solve", class_="brand"),
        tag("h1", f"Where to cut {problem.server.workload.model}, and how fast the server runs"),
        tag(
            "p",
            f"Decided for {what}, {when} of {options.local_epochs} mini-batches each, by method ",
            tag("b", options.method),
            f" ({options.objective.words}). ",
            _figures_from(solution),
            class_="lead",
        ),
        tag("dl", *(tag("div", tag("dt", n), tag("dd", v, tag("small", s))) for n, v, s in facts), class_="facts"),
        _not_measured(solution),
    )


def _figures_from(solution: Solution) -> str:
    if solution.problem.evaluated.name == "letter":
        return "Delay and energy are those of the letter's model, Eq. 7 to 11."
    return "Delay and energy are those of the profiles' own tables."


def _not_measured(solution: Solution) -> Safe:
    kinds: dict[str, int] = {}
    for item in solution.assumptions:
        kinds[item.provenance] = kinds.get(item.provenance, 0) + 1
    if not kinds:
        return tag("p", "Every quantity used was measured.", class_="note good")
    told = ", ".join(f"{count} {name}" for name, count in kinds.items())
    link = tag("a", "the list", href="#what-this-rests-on")
    return tag("p", tag("b", "Not everything was measured: "), f"{told}. See ", link, " below.", class_="note")


def _warnings(solution: Solution) -> Safe:
    if not solution.warnings:
        return Safe("")
    return tag("ul", *(tag("li", "Warning: ", line) for line in solution.warnings), class_="warnings")


def _summary(solution: Solution) -> Safe:
    problem = solution.problem
    work = problem.server.workload
    return join(
        [
            tag("b", work.model),
            f" on {problem.server.name}: method {problem.options.method}, {problem.options.objective.words}. ",
            _figures_from(solution),
        ]
    )


# ---------------------------------------------------------------------------------------------------------- decisions


def _lead(solution: Solution) -> Safe:
    goal = solution.problem.options.objective
    cost = {
        "w": "U is the cost of Eq. 12: 0 is the best on both counts, 1 the worst.",
        "price": "The last figure is what was minimised: price times delay, plus energy, in joules.",
        "max-delay-s": "The last figure is what was minimised: the energy, in joules.",
        "max-energy-j": "The last figure is what was minimised: the delay, in seconds.",
    }[goal.kind]
    text = f"Layers 1 to the cut run on the device, the rest on the server at the clock shown. {cost}"
    if len(solution.decisions.cut) > len(groups(solution)):
        text += f" Each row is the mean of {len(solution.problem.rates.rounds)} rounds."
    return tag("p", text)


def _bars_legend() -> Safe:
    keys = [
        tag("span", Safe(f'<i style="background:{PART_COLOURS[name]}"></i>'), label.removeprefix("the "), class_="key")
        for name, label in PARTS.items()
    ]
    return tag("p", "The bar is what the delay is made of: ", *keys, class_="keys")


def _decisions(solution: Solution) -> Safe:
    every = groups(solution)
    shown = every[:MOST_TOLD]
    header = [*columns(solution)]
    place = next(k for k, name in enumerate(header) if name == "delay")
    rows = []
    for group in shown:
        row: list[object] = [*cells(solution, group)]
        row[place] = join([row[place], _bar(solution, np.array(group))])
        rows.append(row)
    decided = table("Cut layer and server clock, decided", header, rows)
    if len(every) == len(shown):
        return decided
    return join([decided, tag("p", f"{len(every) - len(shown)} more devices: card-solve --csv FILE has them all.")])


def _bar(solution: Solution, rows: Any) -> Safe:
    costs = solution.decisions.costs
    means = {name: float(getattr(costs, name)[rows].mean()) for name in PARTS}
    total = sum(means.values())
    if not total > 0:
        return Safe("")
    shares = {name: 100 * value / total for name, value in means.items()}
    label = ", ".join(f"{PARTS[name]} {share:.0f} %" for name, share in shares.items())
    inside = [Safe(f'<i style="width:{share:.2f}%;background:{PART_COLOURS[k]}"></i>') for k, share in shares.items()]
    return tag("span", *inside, class_="bar", role="img", aria_label=label, title=label)


def _benchmarks(solution: Solution) -> list[Safe]:
    frame = []
    ours = solution.decisions
    for k, chosen in enumerate([ours, *solution.baselines.values()]):
        delay, energy = chosen.mean_delay_s(), chosen.mean_energy_j()
        saved = [
            solution.saved_pct(mine, theirs, chosen)
            for mine, theirs in ((ours.mean_delay_s(), delay), (ours.mean_energy_j(), energy))
        ]
        frame.append(
            [
                chosen.method if k else f"{chosen.method}, decided here",
                _known(delay, "s"),
                _known(energy, "J"),
                *("" if not k else _percent(s) for s in saved),
                f"{int(chosen.feasible.sum())} of {len(chosen.cut)}",
            ]
        )
    text = (
        "server-only keeps one layer on the device, device-only all but one: the letter's two benchmarks, each at the clock that was "
        "decided for that device and round. Percentages are ratios of means."
    )
    header = [
        "method",
        "mean delay",
        "mean energy",
        "delay decided, against it",
        "energy decided, against it",
        "decisions that fit",
    ]
    return [tag("p", text), table("The decision against the letter's benchmarks", header, frame)]


def _percent(saved: float | None) -> str:
    """What was saved as a change: 70 % less is -70 %, as in the other tables."""
    if saved is None:
        return "no figure"
    return "same" if abs(saved) < 0.05 else f"{-saved:+.1f} %"


def _known(value: float | None, unit: str) -> str:
    return "not known" if value is None else quantity(value, unit, 4)


# ------------------------------------------------------------------------------------------------------------ devices


def _devices(solution: Solution) -> list[Safe]:
    devices = solution.problem.devices
    rows = typical_rows(solution, MOST_TOLD)
    drawn, others = rows[:MOST_DRAWN], rows[MOST_DRAWN:]
    why = explain(solution, drawn)
    parts = [tag("h2", "Device by device", id="devices")]
    if len(devices) > MOST_DRAWN:
        parts.append(
            tag("p", f"Figures for the first {MOST_DRAWN} of {len(devices)} devices; the reasons of others follow.")
        )
    parts += [_device(solution, why, i) for i in range(len(drawn))]
    if others:
        parts.append(tag("h3", "Reasons of the other devices"))
        parts.append(_reason_list(solution, others))
    if len(devices) > MOST_TOLD:
        parts.append(tag("p", f"{len(devices) - MOST_TOLD} more devices: card-solve --json has the reasons of all."))
    return [tag("section", *parts, aria_labelledby="devices")]


def _reason_list(solution: Solution, rows: Sequence[int]) -> Safe:
    devices = solution.problem.devices
    items = [
        tag("li", tag("b", f"Cut {solution.decisions.cut[row]} on {devices[row % len(devices)].name}. "), text)
        for row, text in zip(rows, explain(solution, rows).sentences(), strict=True)
    ]
    return tag("ul", *items, class_="reasons")


def _device(solution: Solution, why: Reasons, i: int) -> Safe:
    problem, n = solution.problem, int(why.rows[i])
    r, m = divmod(n, len(problem.devices))
    device, ours = problem.devices[m], solution.decisions
    clock = f", with the server at {ours.frequency_hz[n] / 1e9:.3f} GHz" if problem.clocks.known else ""
    rates = f"{problem.rates.uplink_bps[r, m] / 1e6:.4g} Mbit/s up, {problem.rates.downlink_bps[r, m] / 1e6:.4g} down"
    which = (
        f"Round {problem.rates.rounds[r]} stands for all of them: {rates}."
        if len(problem.rates.rounds) > 1
        else f"{rates}."
    )
    view = View.of(solution, n)
    panels: list[tuple[str, str, Callable[[Any], None]]] = [
        (
            "composition",
            f"What the delay is made of at each cut{clock}. The dashed line is the cut decided.",
            lambda axes: composition(view, axes, energy=False),
        ),
        (
            "cost",
            f"{view.cost_label} over cut and server clock. The star is the decision.",
            lambda a: cost_map(view, a),
        ),
    ]
    if view.costs.energy_j is not None:
        caption = "Every cut and clock in delay and energy. Nothing lies below and left of the line."
        panels.append(("plane", caption, lambda axes: plane(view, axes)))
    figures = [_figure(f"{device.name}: {caption}", caption, draw, f"d{m}-{name}") for name, caption, draw in panels]
    return tag(
        "article",
        tag("h3", f"{device.name}: cut {ours.cut[n]}{clock}"),
        tag("p", why.sentences()[i], class_="why"),
        tag("p", f"{device.hardware.description}. {which}", class_="small"),
        tag("div", *figures, class_="figures"),
        _alternatives(solution, why, i, device.name),
    )


def _alternatives(solution: Solution, why: Reasons, i: int, name: str) -> Safe:
    goal, n = solution.problem.options.objective, int(why.rows[i])
    rows: list[list[object]] = [_point("decided", why.chosen, i, solution)]
    if why.next_best.there[i] and why.next_best.met[i]:
        rows.append(_point("next best cut", why.next_best, i, solution))
    if why.ruled_out.there[i]:
        rows.append([*_point("without memory limits", why.ruled_out, i, solution)[:-1], "does not fit"])
    for label, chosen in solution.baselines.items():
        points = Points(chosen.feasible, chosen.feasible, chosen.cut, chosen.frequency_hz, chosen.costs, chosen.cost)
        row = _point(label, points, n, solution)
        rows.append(row if chosen.feasible[n] else [*row[:-1], "does not fit"])
    header = [
        "",
        "cut",
        "clock (GHz)",
        "delay",
        *(label.removeprefix("the ") for label in PARTS.values()),
        "energy",
        goal.cost_name,
    ]
    return table(f"{name}: the decision and what else there is", header, rows)


def _point(label: str, points: Points, i: int, solution: Solution) -> list[object]:
    costs, goal = points.costs, solution.problem.options.objective
    cost = float(points.cost[i])
    return [
        label,
        str(points.cut[i]),
        f"{points.frequency_hz[i] / 1e9:.3f}" if solution.problem.clocks.known else "not known",
        quantity(float(costs.delay_s[i]), "s", 4),
        *(quantity(float(getattr(costs, name)[i]), "s") for name in PARTS),
        "not known" if costs.energy_j is None else quantity(float(costs.energy_j[i]), "J", 4),
        quantity(cost, goal.cost_unit, 4) if goal.cost_unit else f"{cost:.3f}",
    ]


def _figure(label: str, caption: str, draw: Callable[[Any], None], prefix: str) -> Safe:
    try:
        import matplotlib
    except ImportError:
        raise MissingHardware(
            "--html: matplotlib is not installed, expected it there: pip install 'card-profile[plot]'"
        ) from None
    ink = "#123456"  # stands for the colour of the text around it, light or dark
    look = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    # Text stays text: it can be read aloud, searched and takes the page's font.
    with matplotlib.rc_context({**look, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}):
        figure = new_figure(5.0, 3.5)
        figure.set_dpi(200)  # of what is drawn as an image inside
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        draw(axes)
        svg = as_svg(figure)
    svg = svg.replace(ink, "currentColor")
    for name in ("energy", "other"):  # lines and marks that would be lost on a dark ground
        svg = svg.replace(COLOURS[name], f"var(--{name})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    # Ids are the document's: two figures must not share one.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    opening = svg[: svg.index(">")]  # its size in points: the page gives it its own
    svg = re.sub(r' (width|height)="[^"]*"', "", opening) + svg[len(opening) :]
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{cell(label)}" ', 1)
    return tag("figure", Safe(re.sub(r">\s+<", "><", svg)), tag("figcaption", caption))


# ------------------------------------------------------------------------------------------------------- what it rests on


def _excluded(solution: Solution) -> list[Safe]:
    if not solution.problem.exclusions:
        return []
    rows = [
        [e.device, ranges(e.cuts), _span(e.needs_bytes), data_size(e.limit_bytes), e.machine]
        for e in solution.problem.exclusions[:MOST_TOLD]
    ]
    header = ["device", "cuts left out", "they need", "there is", "on"]
    left_out = table("Cuts that do not fit in memory", header, rows, words=(0, 1, 4))
    text = "These cuts were not considered: one side has too little memory."
    return [_section("Cuts left out", tag("p", text), left_out)]


def _span(needs: tuple[int, int]) -> str:
    low, high = (data_size(b) for b in needs)
    return low if low == high else f"{low} to {high}"


def _provenance(solution: Solution) -> list[Safe]:
    problem = solution.problem
    fleet = [problem.server, *problem.devices]
    rows = [
        [p.name, p.role, p.hardware.description, p.hardware.root, _timed(p), _watts(p), p.created_utc]
        for p in fleet[: MOST_TOLD + 1]
    ]
    header = ["profile", "role", "machine", "machine's figures", "layer times", "power", "made"]
    parts = [table("Profiles", header, rows, words=range(7))]
    notes = [(p.name, line) for p in fleet for line in p.warnings][:MOST_TOLD]
    if notes:
        parts.append(table("Warnings in the profiles", ["profile", "warning"], notes, words=(0, 1)))
    listed = solution.assumptions
    if not listed:
        return [*parts, tag("p", "Every quantity used was measured.", class_="note good")]
    shown = [(item.quantity, _value(item.value), item.provenance) for item in listed[:MOST_TOLD]]
    caption = "Quantities that were used and not measured"
    parts.append(table(caption, ["quantity", "value", "provenance"], shown, words=(0, 1, 2)))
    if len(listed) > len(shown):
        parts.append(tag("p", f"{len(listed) - len(shown)} more: card-solve --json lists them all."))
    return parts


def _timed(profile: Profile) -> str:
    if not profile.timings:
        return "none"
    return f"{profile.timings[0].root}, {len(profile.timings)} clock{'s' * (len(profile.timings) > 1)}"


def _watts(profile: Profile) -> str:
    fit = profile.power_fit
    return "none" if fit is None else f"{fit.root}, {fit.selected}"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        return json.dumps(value)
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def _equations(solution: Solution) -> list[Safe]:
    letter = solution.problem.evaluated.name == "letter"
    rows = [
        ("Eq. 7", "device compute", "T η_D(c) / (f_D δ_D σ_D)", "T × the segments' measured times on the device"),
        ("Eq. 8", "server compute", "T (η − η_D(c)) / (f δ σ)", "T × their times on the server, as a curve over its clock"),
        ("Eq. 9", "link", "T φ S(c)/R_D + T φ S̃(c)/R_S + A(c)/R_D + A(c)/R_S", "the same, and the round-trip time of a measured link"),
        ("Eq. 10", "delay D", "the sum of the three", "the sum of the three"),
        ("Eq. 11", "energy E", "T ξ f² (η − η_D(c)) / (δ σ)", "P(f) × the server's time, P(f) fitted"),
        ("Eq. 12", "cost U", "w (D − D_min)/(D_max − D_min) + (1 − w)(E − E_min)/(E_max − E_min)", "the same"),
        ("Eq. 16", "clock f* of Algorithm 1", "Q within [F_min, F_max], Q³ = w (E_max − E_min) / (2 ξ (1 − w)(D_max − D_min))", "used by card and the benchmarks alone"),
    ]  # fmt: skip
    used = "in the letter's model (used here)" if letter else "in the letter's model"
    measured = "from profiles" if letter else "from profiles (used here)"
    method = {
        "exact": "exact is the joint optimum over cut and clock.",
        "card": "card is Algorithm 1: f* of Eq. 16 once, then the cut of least cost at f*, then the nearest supported clock.",
    }.get(solution.problem.options.method, "A fixed cut decides nothing: it stands for comparison.")
    text = "Symbols are those of Li, Wu, Li and Zhang, arXiv 2412.00090. The extremes are over the cuts that fit and [F_min, F_max]. "
    return [tag("p", text, method), table("Equations", ["", "what", used, measured], rows, words=range(4))]


def _reproduce(solution: Solution, profiles: str) -> list[Safe]:
    return [
        tag("pre", tag("code", command(solution, profiles))),
        tag(
            "p",
            f"card-profile {__version__}. --json, --csv and --tables give the same figures in full.",
            class_="small",
        ),
    ]


def command(solution: Solution, profiles: str) -> str:
    """The command line that decides this again: every option that is not at its default."""
    words = ["card-solve", "--profiles", profiles]
    options = solution.problem.options
    names = {"price_j_per_s": "price"}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default and field.name not in ("method", "w"):
            continue
        if field.name == "w" and options.objective.kind != "w":
            continue
        option = "--" + names.get(field.name, field.name).replace("_", "-")
        if isinstance(value, bool):
            words.append(option)
        else:
            words += [option, ",".join(value) if isinstance(value, tuple) else f"{value}"]
    return shlex.join(words)
