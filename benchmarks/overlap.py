"""What does `--overlap` save beside the order of the letter, and are the losses the same?

    python -m benchmarks.overlap [--model NAME] [--cut C] [--optimizer adamw|sgd] [--rates 100,25,10] [--pairs N] [--rounds N] [--local-epochs T]

`card-train local` with one device, its link slowed to each rate both ways (emulated), once as the letter has it and once with `--overlap`, the two in
turns. In the letter's order the server's optimizer runs before the gradient is sent, and the next mini-batch is drawn after the gradient has come; with
`--overlap` the first runs while the gradient travels, the second while the server computes. Printed: the median delay of a turn in both
orders (first turns left out), and the median over the pairs of their ratio.

Bound: every loss of a pair is the same in both orders. Ends with 1 where one is not. About five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEXT = "What is drawn next, and what is learnt, must not depend on who waits for whom. "


def turns(asked: argparse.Namespace, rate: float, overlap: bool, folder: Path) -> list[dict[str, Any]]:
    """The turns of one run, as the server's report has them."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"{k}. {TEXT * 12}" for k in range(100)), encoding="utf-8")
    output = folder / f"{rate:g}-{overlap}-{len(list(folder.iterdir()))}"
    command = [sys.executable, "-c", "import cli; cli.train_main()", "local", "--model", asked.model, "--devices", "1"]
    command += ["--cut", str(asked.cut), "--data", str(text), "--rounds", str(asked.rounds), "--report"]
    command += ["--local-epochs", str(asked.local_epochs), "--optimizer", asked.optimizer, "--batch-size", "4"]
    command += ["--uplink-mbps", f"{rate:g}", "--downlink-mbps", f"{rate:g}", "--seq-len", "128"]
    command += ["--output", str(output)]
    command += ["--overlap"] if overlap else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[dict[str, Any]] = json.loads((output / "report.json").read_text(encoding="utf-8"))["turns"]
    return found


def main() -> int:
    """Compare; 1 where a loss differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama-test")
    parser.add_argument("--cut", type=int, default=2)
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument("--rates", type=lambda text: [float(x) for x in text.split(",")], default=[100.0, 25.0, 10.0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--local-epochs", type=int, default=4)
    asked = parser.parse_args()
    same = True
    with tempfile.TemporaryDirectory() as name:
        print(f"{'Mbit/s':>7} {'letter ms':>10} {'overlap ms':>11} {'overlap / letter, each pair'}")
        for rate in asked.rates:
            delays: tuple[list[float], list[float]] = ([], [])
            for pair in range(asked.pairs):
                losses = []
                for overlap in (False, True) if pair % 2 == 0 else (True, False):
                    found = turns(asked, rate, overlap, Path(name))
                    delays[overlap].append(median(turn["measured_s"] for turn in found[1:]))
                    losses.append([turn["losses"] for turn in found])
                same = same and losses[0] == losses[1]
            ratios = [both / letter for letter, both in zip(*delays, strict=True)]
            each = " ".join(f"{ratio:.3f}" for ratio in ratios)
            print(
                f"{rate:7g} {1e3 * median(delays[0]):10.1f} {1e3 * median(delays[1]):11.1f} {median(ratios):.3f} of {each}",
                flush=True,
            )
    print(f"losses equal in both orders: {same}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
