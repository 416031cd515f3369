"""``card-profile fit-power``: fit profiles and CSV files, print the fits, write them into the profiles."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.power.fit import CUBIC_LAW, SweepFit, fit_into_profile, fit_together
from profiler.power.source import Sweep, read_csv, sweep_of_profile
from profiler.profile import BadInput, Profile
from profiler.progress import Reporter
from profiler.store import load, profile_paths, save

if TYPE_CHECKING:
    from rich.console import Console

DETAILED = 4
"""Up to this many sweeps each get a table of their own; more get a line each."""


@dataclass(frozen=True)
class _Task:
    sweep: Sweep
    path: Path
    profile: Profile | None = None


def fit_power(paths: Sequence[Path], *, model: str, as_json: bool, plot: Path | None, dry_run: bool) -> None:
    """Fit every sweep in ``paths`` (profiles, folders of profiles, CSV files) and report; see the command's help.

    All are fitted before any profile is written. Raises BadInput for a file that cannot be used, or where nothing can be fitted.
    """
    from rich.console import Console

    console = Console(stderr=as_json, highlight=False, soft_wrap=as_json)
    tasks = [task for path in paths for task in _tasks(path)]
    if not tasks:
        raise BadInput(
            f"{', '.join(map(str, paths))}: no profile here has power points; expected a CSV or "
            "profiles made with 'card-profile run --measure power'"
        )
    with Reporter(Console(stderr=True)) as say, say.live("fitting power curves", 0, lambda: "") as fitting:
        fits = fit_together([task.sweep for task in tasks], model, fitting)
    if plot is not None:  # before any profile is changed: the folder may not be one that can be written
        from profiler.power.plot import plot_fits

        for written in plot_fits([(task.sweep, fitted) for task, fitted in zip(tasks, fits, strict=True)], plot):
            print(f"wrote {written}", file=sys.stderr)
    if not dry_run:
        for task, fitted in zip(tasks, fits, strict=True):
            if task.profile is not None:
                save(fit_into_profile(_as_it_is_now(task.path, task.profile), model, fitted), task.path)
                print(f"wrote the fit into {task.path}", file=sys.stderr)
    if as_json:
        entries = [
            f.to_entry(t.sweep.source, t.sweep.device, t.sweep.workload) for t, f in zip(tasks, fits, strict=True)
        ]
        print(json.dumps(entries, indent=1, allow_nan=False))
    elif len(tasks) <= DETAILED:
        for task, fitted in zip(tasks, fits, strict=True):
            _print_one(console, task, fitted)
    else:
        _print_many(console, tasks, fits)


def _as_it_is_now(path: Path, fitted: Profile) -> Profile:
    """The profile read again: a fit takes its time, and what somebody else has put into the file meanwhile is not ours to drop."""
    now = load(path)
    if now.power != fitted.power or now.hardware != fitted.hardware:
        raise BadInput(f"{path}: field power: changed while its curve was fitted; run fit-power again")
    return now


def _tasks(path: Path) -> list[_Task]:
    if os.path.isdir(path):  # unlike Path.is_dir it answers where a folder above may not be searched
        sheets = sorted(path.glob("*.csv"))
        if sheets and not any(path.glob("*.json")):
            raise BadInput(
                f"{path}: no profiles here, but CSV files: name them, as in 'card-profile fit-power {sheets[0]}'"
            )
        profiles = [(p, load(p)) for p in profile_paths(path)]
        return [
            _Task(sweep_of_profile(profile, str(p)), p, profile) for p, profile in profiles if profile.power is not None
        ]
    if path.suffix.lower() == ".csv":
        return [_Task(sweep, path) for sweep in read_csv(path)]
    if path.suffix.lower() == ".json":
        profile = load(path)
        return [_Task(sweep_of_profile(profile, str(path)), path, profile)]
    if not os.path.exists(path):
        raise BadInput(f"{path}: no such file or folder; expected a profile, a folder of profiles or a CSV")
    raise BadInput(f"{path}: expected a profile (.json), a folder of profiles or a CSV (.csv)")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _print_one(console: Console, task: _Task, fitted: SweepFit) -> None:
    from rich import box

    from profiler.show import mark, plain
    from profiler.tables import Table

    kind = mark(task.profile.power) if task.profile is not None and task.profile.power is not None else "from CSV"
    scope = f", watts of {task.sweep.power_scope}" if task.sweep.power_scope else ""
    console.print(plain(f"{task.sweep.title} ({fitted.points} points, {kind}{scope})"), style="bold")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("law", "error", "error at clocks left out", "AICc"):
        table.add_column(column, justify="left" if column == "law" else "right", no_wrap=True)
    for name, law in fitted.models.items():
        table.add_row(
            f"{name} (used)" if name == fitted.selected else name,
            _percent(law.mape_pct),
            _percent(law.loo_mape_pct),
            "-" if law.aicc is None else f"{law.aicc:.1f}",
            style="bold" if name == fitted.selected else None,
        )
    console.print(table, crop=False)
    used = fitted.models[fitted.selected]
    shown = ", ".join(f"{key} {value:.4g}" for key, value in used.parameters.items())
    console.print(f"{fitted.selected}: {shown}", markup=False)
    console.print(_xi(fitted), markup=False)
    for warning in fitted.warnings:
        console.print(f"note: {warning}", markup=False)
    console.print()


def _xi(fitted: SweepFit) -> str:
    interval = ""
    if fitted.xi_ci95 is not None:
        interval = f" (95 %: {fitted.xi_ci95[0]:.3g} to {fitted.xi_ci95[1]:.3g})"
    return f"the letter's xi: {fitted.xi_w_per_hz3:.4g} W/Hz^3{interval}"


def _print_many(console: Console, tasks: Sequence[_Task], fits: Sequence[SweepFit]) -> None:
    import statistics

    from rich import box

    from profiler.show import plain
    from profiler.tables import Table

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="Errors at clocks left out of the fit", title_justify="left"
    )
    for column in ("sweep", "points", "used", "error", "cubic law", "xi in W/Hz^3"):
        words = column in ("sweep", "used")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for task, fitted in zip(tasks, fits, strict=True):
        used, cubic = fitted.models[fitted.selected], fitted.models["cubic"]
        table.add_row(
            plain(task.sweep.title),
            str(fitted.points),
            fitted.selected,
            _percent(used.loo_mape_pct),
            _percent(cubic.loo_mape_pct),
            f"{fitted.xi_w_per_hz3:.3g}",
        )
    console.print(table, crop=False)
    for name in (fits[0].selected, "cubic"):
        errors = [e for f in fits if name in f.models and (e := f.models[name].loo_mape_pct) is not None]
        if errors:
            console.print(f"median over {len(errors)} sweeps, {name}: {statistics.median(errors):.2f} %", markup=False)
    told: dict[str, list[str]] = {}
    for task, fitted in zip(tasks, fits, strict=True):
        for warning in fitted.warnings:
            if not warning.startswith(CUBIC_LAW):  # a column of the table
                told.setdefault(warning, []).append(plain(task.sweep.title).plain)
    for warning, sweeps in told.items():
        console.print(f"note: {sweeps[0] if len(sweeps) == 1 else f'{len(sweeps)} sweeps'}: {warning}", markup=False)
