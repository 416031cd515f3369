"""What codecs cost a real model: bytes, seconds and held-out loss at several cuts, then training with both directions compressed.

    python -m benchmarks.compression [--codecs A,B] [--cuts 1,8,15] [--steps 200] [--output FILE.json]

SmolLM2-135M-Instruct in float32 (30 layers) and scikit-learn's descriptions of its data sets; ``benchmarks/real.py`` says which packages they are
in. One thread.

    1  bytes over float32's and seconds of both ends, of smashed data and of gradients of one training step that is cut at every cut, and the
       loss that compressed smashed data add on ``--tokens`` tokens (the code of ``card-profile run --measure compression``). The standard
       error is that of the mean over pieces of 256 tokens, each with and without the codec
    2  with ``--steps``: that many split steps (two halves, AdamW, ``--train-cut``) with the best codec of that cut on the smashed data and on the gradients, and
       as many without, same seed and mini-batches, and with fp16 as a control; then the loss on the fifth of the text that was kept apart, without any codec

Bound: one and the same codec makes smashed data 5.3 times smaller than float32 or better at every cut, and the loss that it adds is at most
0.002 nats a token at every cut, two standard errors included. With ``--steps``: the loss of the model that was trained with a codec is at most
0.02 above the other one's. Exits 1 where a bound is missed. About 15 minutes, and 10 more for ``--steps 200``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.real import descriptions, weights
from profiler.profile import BadInput, MissingHardware
from profiler.store import write_atomically
from profiler.workload.text import Passage, read_text

if TYPE_CHECKING:
    from split.data import Sequences
    from split.half import Training

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CODECS = (
    "fp16",
    "int8+zstd",
    "int8-o2+zstd",
    "int7-o4+zstd",
    "int6-o8+zstd",
    "int4-o4+zstd",
    "top10-int8-o2+zstd",
)
CUTS = (1, 8, 15, 22, 29)
RATIO, HARMLESS, TRAINED = 5.3, 0.002, 0.02
LEARNING_RATE, HELD_OUT = 2e-4, 0.2
CONTROL = "fp16"
"""So fine that what it changes in training is what any change of no meaning does."""


def measured(
    passage: Passage, codecs: Sequence[str], cuts: Sequence[int], chosen: argparse.Namespace
) -> dict[str, Any]:
    """Part 1: the loss without, and a row for each cut and codec."""
    import torch

    from profiler.codecs import codec
    from profiler.workload.compression import base_losses, differences, held_out, transfers
    from profiler.workload.cuts import SplitModel
    from profiler.workload.gates import HIDDEN
    from profiler.workload.model import WorkloadSpec, build

    split = SplitModel(build(WorkloadSpec(str(weights()), batch_size=chosen.batch_size, seq_len=chosen.seq_len)))
    wrong = [cut for cut in cuts if cut not in split.cuts]
    if wrong:
        raise BadInput(f"--cuts {wrong[0]}: expected some of 1..{split.layers - 1}")
    batches = held_out(split, passage, chosen.tokens)
    tokens = sum(batch.labels[:, 1:].numel() for batch in batches)
    base = statistics.fmean(loss for losses in base_losses(split, batches) for loss in losses)
    shape = f"{chosen.batch_size} x {chosen.seq_len}"
    print(f"mini-batches of {shape} tokens, loss without a codec {base:.4f} on {tokens:,} predicted tokens", flush=True)
    sizes = transfers(split, batches[0], codecs, cuts, lambda done, of: None)
    print(
        f"{'':4} {'':20} {'times smaller':^15} {'ms up: en-, decode':^19} {'ms down':^13} {'relative':>9} {'loss added':^20}"
    )
    print(f"{'cut':>4} {'codec':20} {'up':>7} {'down':>7} {'':19} {'':13} {'error':>9} {'mean ± standard error':>20}")
    rows = []
    for cut in cuts:
        found = differences(split, cut, codecs, batches, everything=True)
        with torch.no_grad():
            plain = split.device_half(batches[0], cut).carried[HIDDEN]
        for name in codecs:
            size, loss = sizes[name][str(cut)], found[name]
            back = codec(name).decode(codec(name).encode(plain, 0), tuple(plain.shape), plain.dtype)
            assert loss.se is not None or len(batches) == 1
            row = {
                "cut": cut,
                "codec": name,
                "smashed_ratio": 1 / size["smashed_phi"],
                "gradient_ratio": 1 / size["gradient_phi"],
                **{key: value["median_s"] for key, value in size.items() if key.endswith("_s")},
                "relative_error": float((back - plain).norm() / plain.norm()),
                "loss_increase": loss.mean,
                "loss_increase_se": loss.se,
            }
            rows.append(row)
            print(
                f"{cut:4} {name:20} {row['smashed_ratio']:7.2f} {row['gradient_ratio']:7.2f} "
                f"{1e3 * row['smashed_encode_s']:9.2f} {1e3 * row['smashed_decode_s']:9.2f} "
                f"{1e3 * row['gradient_encode_s']:6.2f} {1e3 * row['gradient_decode_s']:6.2f} "
                f"{row['relative_error']:9.5f} {loss.mean:+11.5f} ± {loss.se or 0.0:.5f}",
                flush=True,
            )
    return {"base_loss": base, "tokens": tokens, "rows": rows}


def judged(rows: Sequence[dict[str, Any]], codecs: Sequence[str]) -> list[dict[str, Any]]:
    """Each codec at its worst cut. ``loss_bound`` is the largest mean plus two standard errors, ``least_ratio`` of both directions together."""
    found = []
    for name in codecs:
        mine = [row for row in rows if row["codec"] == name]
        verdict = {
            "codec": name,
            "least_smashed_ratio": min(row["smashed_ratio"] for row in mine),
            "least_gradient_ratio": min(row["gradient_ratio"] for row in mine),
            "least_ratio": min(together(row) for row in mine),
            "loss_bound": max(loss_bound(row) for row in mine),
        }
        verdict["kept"] = verdict["loss_bound"] <= HARMLESS and verdict["least_smashed_ratio"] >= RATIO
        found.append(verdict)
    return found


def loss_bound(row: dict[str, Any]) -> float:
    """The mean and two standard errors."""
    return float(row["loss_increase"]) + 2 * float(row["loss_increase_se"] or 0.0)


def together(row: dict[str, Any]) -> float:
    """How many times smaller smashed data and gradients are, taken together (both have the same bytes before)."""
    return 2 / (1 / float(row["smashed_ratio"]) + 1 / float(row["gradient_ratio"]))


def best_at(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each cut the row of the fewest bytes within the limit on the loss: what ``--codec auto`` takes on a slow link."""
    cuts = sorted({row["cut"] for row in rows})
    kept = {cut: [row for row in rows if row["cut"] == cut and loss_bound(row) <= HARMLESS] for cut in cuts}
    return [max(kept[cut], key=together) for cut in cuts if kept[cut]]


def trained(text: Passage, name: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Part 2, once: ``--steps`` split steps with codec ``name`` in both directions; loss of the sequences kept apart, before and after."""
    from profiler.workload.model import WorkloadSpec
    from profiler.workload.text import tokenizer_of
    from split.data import load
    from split.half import Half, Training

    spec = WorkloadSpec(str(weights()), batch_size=chosen.train_batch_size, seq_len=chosen.train_seq_len)
    training: Training = Training("adamw", LEARNING_RATE)
    device, server = Half(spec, "device", training=training), Half(spec, "server", training=training)
    device.cut_at(chosen.train_cut)
    server.cut_at(chosen.train_cut)
    device.put_adapters(server.adapters("device"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text.text, encoding="utf-8")
        tokenizer = tokenizer_of(spec.model)
        found = load(path, tokenizer, spec.tokens, vocab_size=device.vocab_size, held_out=HELD_OUT, name="device")
    before = apart(device, server, found, spec.batch)
    crossed, raw, losses, began = 0, 0, [], time.perf_counter()
    for step in range(chosen.steps):
        inputs, labels = found.batch(0, step, spec.batch)
        carried, up = crossing(device.forward(inputs, labels, chosen.train_cut), name, seed, step, up=True)
        losses.append(server.loss(carried, labels, chosen.train_cut))
        gradients, down = crossing(server.backward(), name, seed, step, up=False)
        server.step()
        device.backward(gradients)
        device.step()
        crossed += up + down
        raw += sum(t.numel() * t.element_size() for tensors in (carried, gradients) for t in tensors.values())
    took = time.perf_counter() - began
    after = apart(device, server, found, spec.batch)
    last = statistics.fmean(losses[-20:])
    print(
        f"{name}, seed {seed}: {chosen.steps} steps in {took:.0f} s, {crossed / 1e6:.2f} MB crossed ({raw / crossed:.2f}x smaller), "
        f"loss of the last 20 steps {last:.4f}, held-out {statistics.fmean(before):.4f} -> {statistics.fmean(after):.4f}",
        flush=True,
    )
    return {
        "codec": name,
        "seed": seed,
        "bytes": crossed,
        "ratio": raw / crossed,
        "seconds": took,
        "losses": losses,
        "before": before,
        "after": after,
    }


def crossing(tensors: Any, name: str, seed: int, step: int, *, up: bool) -> tuple[dict[str, Any], int]:
    """What the other side gets, and the bytes of it, by the way that a run's own messages go."""
    from split.device import codec_seed
    from split.wire import pack_tensor, unpack_tensor

    packed = {key: pack_tensor(t, name, codec_seed(seed, "device", step, up=up)) for key, t in tensors.items()}
    # A copy: what was not compressed lies in the sender's own memory here.
    back = {key: unpack_tensor(p, None, None).clone() for key, p in packed.items()}
    return back, sum(len(p.payload) for p in packed.values())


def apart(device: Any, server: Any, found: Sequences, size: int) -> list[float]:
    """Loss of each mini-batch of the sequences kept apart, without any codec."""
    cut, losses = device.cut, []
    for inputs, labels in found.held_out(size):
        if len(inputs) == size:
            losses.append(server.loss(device.forward(inputs, labels, cut, train=False), labels, cut, train=False))
    return losses


def compared(text: Passage, name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Part 2: without, with the codec, and with ``CONTROL``."""
    print(
        f"{chosen.steps} steps of {chosen.train_batch_size} x {chosen.train_seq_len} tokens, AdamW {LEARNING_RATE:g}, cut {chosen.train_cut}, "
        f"{HELD_OUT:.0%} of the text kept apart",
        flush=True,
    )
    plain = trained(text, "none", 0, chosen)
    runs = [
        trained(text, codec, seed, chosen) for codec, seed in [*((name, s) for s in range(chosen.seeds)), (CONTROL, 0)]
    ]
    for run in runs:
        each = [a - b for a, b in zip(run["after"], plain["after"], strict=True)]
        run["more"], run["more_se"] = statistics.fmean(each), statistics.stdev(each) / len(each) ** 0.5
        print(
            f"{run['codec']}, seed {run['seed']}: held-out loss {run['more']:+.4f} ± {run['more_se']:.4f} beside that without "
            f"(standard error over {len(each)} mini-batches of the text kept apart)"
        )
    return {
        "plain": plain,
        "compressed": runs[:-1],
        "control": runs[-1],
        "worst": max(run["more"] for run in runs[:-1]),
    }


def main() -> int:
    """Measure, judge, print; 1 if a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--cuts", default=",".join(map(str, CUTS)))
    parser.add_argument("--text", type=Path, help="a text file in place of scikit-learn's descriptions")
    parser.add_argument("--tokens", type=int, default=4096, help="most tokens of the text for each loss; 0: no part 1")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=0, help="split steps of part 2")
    parser.add_argument("--train-codec", help="codec of part 2; default: the best of part 1 at --train-cut")
    parser.add_argument("--train-cut", type=int, default=15)
    parser.add_argument("--train-batch-size", type=int, default=2)
    parser.add_argument("--train-seq-len", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1, help="runs of part 2 with the codec, each rounded otherwise")
    parser.add_argument("--output", type=Path, help="all figures as JSON")
    chosen = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    text = descriptions() if chosen.text is None else read_text(chosen.text)
    print(f"SmolLM2-135M-Instruct ({weights().name}), float32; text: {text.described}", flush=True)
    found: dict[str, Any] = {"model": weights().name, "dtype": "float32", "text": text.described}
    missed, best = [], chosen.train_codec
    if chosen.tokens:
        codecs, cuts = chosen.codecs.split(","), sorted({int(cut) for cut in chosen.cuts.split(",")})
        found |= {"batch_size": chosen.batch_size, "seq_len": chosen.seq_len, **measured(text, codecs, cuts, chosen)}
        found |= {"codecs": judged(found["rows"], codecs), "best": best_at(found["rows"])}
        print(
            f"{'at its worst cut':20} {'up':>7} {'down':>7} {'both':>7}  loss added at most (mean + 2 standard errors)"
        )
        for row in found["codecs"]:
            ratios = " ".join(f"{row[f'least_{key}']:7.2f}" for key in ("smashed_ratio", "gradient_ratio", "ratio"))
            print(f"{row['codec']:20} {ratios}  {row['loss_bound']:+.5f}{' kept' if row['kept'] else ''}")
        for row in found["best"]:
            ratios = f"{row['smashed_ratio']:.2f}x up, {row['gradient_ratio']:.2f}x down, {together(row):.2f}x both"
            print(
                f"cut {row['cut']}: fewest bytes within {HARMLESS}: {row['codec']}, {ratios}, {row['loss_increase']:+.5f}"
            )
        if not any(row["kept"] for row in found["codecs"]):
            missed.append(f"no codec makes smashed data {RATIO}x smaller at a loss of at most {HARMLESS} at all cuts")
        best = best or next((row["codec"] for row in found["best"] if row["cut"] == chosen.train_cut), None)
    if chosen.steps and best is None:
        missed.append(f"no codec for training at cut {chosen.train_cut}: expected it among --cuts, or --train-codec")
    if chosen.steps and best is not None:
        found["training"] = compared(text, best, chosen)
        if found["training"]["worst"] > TRAINED:
            missed.append(f"training with {best}: held-out loss {found['training']['worst']:+.4f}, at most {TRAINED:+}")
    if chosen.output is not None:
        write_atomically(chosen.output, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    for line in missed:
        print(f"MISSED: {line}")
    print("kept" if not missed else f"{len(missed)} bounds missed")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BadInput, MissingHardware) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 3)
