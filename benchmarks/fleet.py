"""The README's example: Llama 3.2 1B between an emulated RTX 4060 Ti and three emulated Jetsons, from profiles to decision.

    python -m benchmarks.fleet [FOLDER] [--images docs/img]

Profiles the four boards with `card-profile run`, fits their power, solves with the exact method and with Algorithm 1 as printed, and
prints what trusting the letter's power law costs by the profiles' own tables. All figures are EMULATED: they show what the
toolkit does, not what those boards do. Takes about two minutes. --images renews the README's pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BOARDS = {"rtx-4060ti": "10", "orin-agx": "6", "orin-nx": "5", "orin-nano": "5"}
WORKLOAD = ["--model", "llama-3.2-1b", "--dtype", "bfloat16", "--batch-size", "2"]


def command(main: str, *arguments: str, cwd: Path) -> str:
    """Run one of the two commands and return what it printed."""
    program = f"from cli import {main}; {main}()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def main() -> int:
    """Profile, fit, solve, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", help="where the profiles go (kept); default: a temporary folder"
    )
    parser.add_argument("--images", type=Path, help="copy the README's two pictures into this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for board, clocks in BOARDS.items():
            if not (folder / "profiles" / f"emulated-{board}.json").exists():
                command(
                    "profile_main", "run", "--device", f"emulated:{board}", "--clocks", clocks, *WORKLOAD, cwd=folder
                )
        fits = json.loads(command("profile_main", "fit-power", "--json", "--plot", "plots", cwd=folder))
        server = next(fit for fit in fits if fit["device"] == "emulated-rtx-4060ti")
        for name in ("cubic", server["selected"]):
            print(
                f"EMULATED server, {name}: {server['models'][name]['loo_mape_pct']:.1f} % off at clocks left out of the fit"
            )
        command("solve_main", "--profiles", "profiles", "--plot", "plots", cwd=folder)
        print(f"\n{'w':>4} {'method':>6} {'cuts':>12} {'clock GHz':>10} {'delay s':>8} {'energy J':>9}")
        for w in ("0.2", "0.5", "0.8"):
            means: dict[str, dict[str, Any]] = {}
            for method in ("exact", "card"):
                out = command(
                    "solve_main", "--profiles", "profiles", "--method", method, "--w", w, "--json", cwd=folder
                )
                answer = json.loads(out)
                means[method] = answer["summary"]
                cuts = ",".join(str(d["cut"]) for d in answer["decisions"])
                clocks = sorted({f"{d['frequency_hz'] / 1e9:.3f}" for d in answer["decisions"]})
                print(
                    f"{w:>4} {method:>6} {cuts:>12} {'..'.join(clocks):>10} {means[method]['mean_delay_s']:8.2f} "
                    f"{means[method]['mean_energy_j']:9.1f}"
                )
            more = {
                key: 100 * (means["card"][key] / means["exact"][key] - 1) for key in ("mean_delay_s", "mean_energy_j")
            }
            print(
                f"     card against exact: delay {more['mean_delay_s']:+.0f} %, energy {more['mean_energy_j']:+.0f} %"
            )
        if options.images is not None:
            plots = folder / "plots"
            shutil.copy(next(plots.glob("emulated-rtx-4060ti--*.png")), options.images / "power.png")
            shutil.copy(plots / "emulated-orin-nano.png", options.images / "decision.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
