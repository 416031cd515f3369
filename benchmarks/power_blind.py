"""Does the power fit hold on boards that nobody looked at while it was made?

    python benchmarks/power_blind.py CLONE...

Each CLONE is a git clone (bare or not) of one of the public repositories below, known by the commit it holds. They measured power against clock on boards
that neither the laws nor their priors had been tried on when this was written:

- blackjack2015/NV-DVFS-Benchmark: Tesla V100, 20 applications and 138 microbenchmarks at 10 clocks, by NVML.
- emwjacobson/JetsonEfficiencyTesting: Jetson Nano, matrix products of 32 sizes at 12 clocks, the whole board by a meter at the wall in
  steps of 0.1 W (its readings taken as the measured Xavier's were: the median of the second half of a run).
- ml-energy/zeus, the data of the Perseus paper: stages of GPT-3 and Bloom under training, on an A100 SXM and an A40. Joules over seconds; the
  clock is the one asked for, also where the power cap held the real one down.
- HKBU-HPML/GPU-DVFS-Job-Schedule: a GTX 1080 Ti and an RTX 2070 Super, 30 and 20 applications at 5 clocks, at the highest memory clock (first run in the thirteenth round of
  `power_choice.py`, like the next).
- giordano/gpu-power-frequency-benchmarks: an RTX PRO 6000 and an A100 PCIe, 4 and 3 programs at 8 and 5 clocks, at the highest power limit. Joules over seconds of whole programs; the clock
  is the one asked for.
- nsfcac/gpupowermodel: a GV100, 24 programs at 117 clocks, by DCGM, over whole runs of programs that do not always keep the card busy.

Every workload is fitted on its own, as by ``card-profile fit-power`` on a CSV of its own, and once more together with the others of its set. Sweeps of more than 14 clocks are thinned to 14 for what is said
about clocks left out; from five clocks, all others are asked. **The law stood before this was first run**: what it printed is told in docs/power.md whatever it said. Since then it
has chosen what to ask of made-up sweeps (jumps because of the V100, bounds on voltages because of the narrow sweeps of the 1080 Ti and the 2070 Super), and been a reason not to take the sixth round's priors; no number was fitted to it. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.power_fit import (  # noqa: E402
    OURS,
    Group,
    Rows,
    by_clock,
    ends,
    errors,
    evenly,
    few_clocks,
    interval_score,
    intervals,
)
from profiler.power.fit import SweepFit, fit, fit_together  # noqa: E402
from profiler.power.source import Sweep  # noqa: E402
from profiler.profile import BadInput  # noqa: E402

MOST_CLOCKS = 14
FEW_CLOCKS = 5  # as many as ``few_clocks`` fits to: of a sweep of no more, none is left to ask
Points = dict[float, float]  # watts by clock in MHz


@dataclass(frozen=True)
class Clone:
    """A clone that holds ``commit``."""

    path: Path
    commit: str

    def names(self, folder: str) -> list[str]:
        return self._git("ls-tree", "-r", "-z", "--name-only", self.commit, "--", folder).split("\0")[:-1]

    def text(self, name: str) -> str:
        return self._git("show", f"{self.commit}:{name}")

    def table(self, name: str) -> Iterator[dict[str, str]]:
        return csv.DictReader(io.StringIO(self.text(name)))

    def _git(self, *words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(self.path), *words], check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout


def v100(clone: Clone) -> Iterator[tuple[str, str, Points]]:
    for title, name in (("V100, 20 applications", "real"), ("V100, microbenchmarks", "microbenchmark")):
        found: dict[str, Points] = defaultdict(dict)
        for row in clone.table(f"data/v100-dvfs-{name}.csv"):
            if row["average_power"]:
                workload = f"{row['benchmark']} {row['kernel']} {row['argNo']}"
                found[workload][float(row["core_frequency"])] = float(row["average_power"])
        for workload, points in found.items():
            yield title, workload, points


def nano(clone: Clone) -> Iterator[tuple[str, str, Points]]:
    found: dict[str, Points] = defaultdict(dict)
    for name in clone.names("data/Nano/square_all_frequency"):
        match = re.fullmatch(r".*/Nano-(float-\d+)-tensor-(\d+)\.data", name)
        if match:
            # One reading a second after the start; the last line is about the run, not a reading.
            lines = re.findall(r"^(\d{13}),([0-9.]+)$", clone.text(name), re.MULTILINE)
            watts = [float(watts) for _, watts in lines]
            found[match[1]][float(match[2]) / 1e6] = float(np.median(watts[len(watts) // 2 :]))
    for workload, points in found.items():
        yield "Jetson Nano GEMM, 32 sizes", workload, points


def perseus(clone: Clone) -> Iterator[tuple[str, str, Points]]:
    for title, card in (("A100 SXM, training", "a100_sxm"), ("A40, training", "a40")):
        for model in ("gpt3-175b", "bloom"):
            found: dict[str, Points] = defaultdict(dict)
            for row in clone.table(f"sosp24_data/emulation/stage_profile/{model}+{card}_bf16.csv"):
                workload = f"{model} {row['stage']} {row['instruction']}"
                found[workload][float(row["frequency"])] = float(row["energy"]) / float(row["time"])
            for workload, points in found.items():
                yield title, workload, points


def gv100(clone: Clone) -> Iterator[tuple[str, str, Points]]:
    found: dict[str, Points] = defaultdict(dict)
    for name in ("spec_data/mean_fp_data_21_apps", "hpc_data/mean_fp_data_HPC_apps"):
        for row in clone.table(f"datasets/{name}.csv"):
            found[row["application"]][float(row["sm_app_clock"])] = float(row["power_usage"])
    for workload, points in found.items():
        yield "GV100, 24 programs", workload, points


def job_schedule(clone: Clone) -> Iterator[tuple[str, str, Points]]:
    for title, name in (("GTX 1080 Ti, 30 applications", "1080ti"), ("RTX 2070 Super, 20 applications", "2070s")):
        rows = list(clone.table(f"csvs/gtx{name}-dvfs-real-Performance-Power.csv"))
        memory = max(float(row["memF"]) for row in rows)
        found: dict[str, Points] = defaultdict(dict)
        for row in rows:
            if float(row["memF"]) == memory and row["power/W"]:
                found[f"{row['appName']} {row['kernel']} {row['argNo']}"][float(row["coreF"])] = float(row["power/W"])
        for workload, points in found.items():
            yield title, workload, points


def power_frequency(clone: Clone) -> Iterator[tuple[str, str, Points]]:
    for title, card, limit_w in (
        ("RTX PRO 6000, 4 programs", "rtxpro6000", 600),
        ("A100 PCIe, 3 programs", "cricket-a100", 300),
    ):
        found: dict[str, Points] = defaultdict(dict)
        for program in ("babelstream", "pi-solver", "waterlily"):
            for name in clone.names(f"{program}-benchmarks/{card}"):
                match = re.search(rf"(/fp\d\d)?/(?:energy-time|data)-(\d+)-{limit_w}(?:/.*/energy-time)?\.json$", name)
                if match:
                    read = json.loads(clone.text(name))  # watt hours and seconds
                    took_s = read["time"] if "time" in read else read["total_time"]
                    found[f"{program}{match[1] or ''}"][float(match[2])] = 3600 * read["energy"] / took_s
        for workload, points in found.items():
            yield title, workload, points


SOURCES = {
    "f189504ff7810168a7b98ad0b1bc418ccb5e0d60": v100,
    "2b4408066d65e2fd39921097f0a15ffc27d08040": nano,
    "38cb3f90c30d9041d4b141cfe5c922dba55baa45": perseus,
    "0b28e68f5a9da0eef54d53b7f47437141964af67": gv100,
    "7ae3c9c8ebe766909cc7e3ee6fa0c752c62154c5": job_schedule,
    "2fe08d224490e931c717dcefaa5991b09db130c3": power_frequency,
}


def known(path: Path) -> Clone | None:
    for commit in SOURCES:
        asked = ["git", "-C", str(path), "cat-file", "-e", f"{commit}^{{commit}}"]
        if subprocess.run(asked, capture_output=True).returncode == 0:
            return Clone(path, commit)
    return None


def sweep_of(title: str, workload: str, points: Points) -> Sweep:
    megahertz = np.array(sorted(points))
    return Sweep(
        source="blind",
        device=title,
        workload=workload,
        power_scope=None,
        frequency_hz=megahertz * 1e6,
        power_w=np.array([points[clock] for clock in megahertz]),
        capped=np.zeros(len(points), dtype=bool),
        marked=False,
    )


def thinned(sweep: Sweep) -> Sweep:
    if len(sweep.frequency_hz) <= MOST_CLOCKS:
        return sweep
    kept = np.sort(evenly(sweep.frequency_hz, MOST_CLOCKS))
    return replace(sweep, frequency_hz=sweep.frequency_hz[kept], power_w=sweep.power_w[kept], capped=sweep.capped[kept])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clones", nargs="*", type=Path, metavar="CLONE")
    given = parser.parse_args()
    clones: list[Clone] = []
    for path in given.clones:
        clone = known(path)
        if clone is None:
            print(f"{path}: holds none of the commits {', '.join(commit[:8] for commit in SOURCES)}")
            return 2
        clones.append(clone)
    if not clones:
        print("skipped: no clones given (see --help)")
        return 0
    left_out: dict[Group, Rows] = {}
    whole: dict[Group, Rows] = {}
    refused = Table(title="Refused, with the reason")
    refused.add_column("workload")
    refused.add_column("reason")
    for clone in clones:
        for title, workload, points in SOURCES[clone.commit](clone):
            sweep = sweep_of(title, workload, points)
            few = thinned(sweep)
            try:
                fitted = fit(few)
            except BadInput as error:
                refused.add_row(f"{title}: {workload}", str(error))
                continue
            if not fitted.models.keys() >= set(OURS):
                refused.add_row(
                    f"{title}: {workload}", "too few clocks below the power cap to say anything of one left out"
                )
                continue
            group = Group(title, "")
            left_out.setdefault(group, []).append((few, fitted))
            if len(sweep.frequency_hz) > FEW_CLOCKS:
                whole.setdefault(group, []).append((sweep, fitted))
    for group, rows in left_out.items():
        at_cap = sum(fitted.power_cap_w is not None for _, fitted in rows)
        print(f"{group.title}: {len(rows)} sweeps, {at_cap} of them taken to reach a power cap")
    if refused.row_count:
        Console(width=150).print(refused)
    errors(left_out)
    ends(left_out)
    few_clocks(whole)
    for line in intervals(left_out):
        print(f"not as asked of the four sets: {line}")
    print(
        "Fitted together: each board's workloads hear what the others say of its voltages; a clock is left out of all of them"
    )
    together = {
        group: list(zip(sweeps, fit_together(sweeps), strict=True))
        for group, rows in left_out.items()
        if (sweeps := [sweep for sweep, _ in rows])
    }
    errors(together)
    ends(together)
    intervals(together)
    worth(left_out, together)
    return 0


def worth(alone: dict[Group, Rows], together: dict[Group, Rows]) -> None:
    """Print what hearing the others changes: mean over workloads of the log of the mean error and of the mean interval score at clocks left out."""
    table = Table(title="Together over alone: geometric means over workloads (+- one standard error)")
    for column in ("set", "error", "interval score"):
        table.add_column(column, justify="left" if column == "set" else "right")
    means = []
    for group, rows in alone.items():
        apart = np.array([logs(*after) - logs(*before) for before, after in zip(rows, together[group], strict=True)])
        means.append(apart.mean(axis=0))
        error = apart.std(axis=0, ddof=1) / np.sqrt(len(apart))
        table.add_row(
            group.title, *(f"{np.exp(m):.3f} +- {np.exp(m) * e:.3f}" for m, e in zip(means[-1], error, strict=True))
        )
    boards = [group.title.split(",")[0] for group in alone]
    by_board = [
        np.mean([m for m, b in zip(means, boards, strict=True) if b == board], axis=0)
        for board in dict.fromkeys(boards)
    ]
    table.add_row("all sets alike", *(f"{value:.3f}" for value in np.exp(np.mean(means, axis=0))))
    table.add_row("all boards alike", *(f"{value:.3f}" for value in np.exp(np.mean(by_board, axis=0))))
    Console(width=150).print(table)


def logs(sweep: Sweep, fitted: SweepFit) -> np.ndarray:
    """Logs (2,) of the mean error and the mean interval score at clocks left out, in percent."""
    left = fitted.left_out
    watts = by_clock(sweep)[np.isin(np.unique(sweep.frequency_hz), left.frequency_hz)]
    score = interval_score(left.low_w, left.high_w, watts) / watts
    return np.log([100 * np.mean(np.abs(left.power_w / watts - 1)), 100 * np.mean(score)])


if __name__ == "__main__":
    sys.exit(main())
