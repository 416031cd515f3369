"""What compression does at every cut: bytes, seconds of both ends, and loss, on real weights and a real text.

Three passes, so that all cuts take minutes:

    bytes and times   one training step, cut at every cut: what crosses up and, really backpropagated, what comes back; each is encoded and
                      decoded by every codec a few times
    base loss         the plain model on the held-out sequences, in pieces of some hundred tokens
    loss              for each cut the device half once a mini-batch, then the server half on each piece: as it is, with the gradient of what
                      crossed, and for each codec on what its decoder gives. Differences are of the same piece; their standard error over
                      the pieces ends the work early where it is small

A codec's error e changes the loss by g e + (second order), g the gradient at the cut. For a codec without bias g e has mean zero over seeds,
and it is by far the larger part of the scatter: so it is taken off (a control variate), and the standard error falls to about a sixth.

The loss is that of the model as it is loaded (fresh adapters change nothing), so the text is held out by itself. Gradients do not change a
forward loss: ``benchmarks/compression.py --steps`` shows what compressing them does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from profiler.codecs import Codec, codec
from profiler.profile import BadInput, CodecCut, CodecFigures, Compression, Provenance
from profiler.workload.cuts import Batch, SplitModel
from profiler.workload.pretrained import presets
from profiler.workload.text import Passage, token_ids
from profiler.workload.timing import WAIT_S

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_CODECS = ("fp16", "int8-o2+zstd", "int7-o4+zstd", "int6-o8+zstd", "int4-o4+zstd", "top10-int8-o2+zstd")
"""From nearly free to nearly useless."""
LOSS_TOKENS = 4096
HARMLESS = 0.002
"""A codec that adds at most this to the loss, in nats a token, may be the profile's own."""

_PIECE_TOKENS = 256
_LEAST_PIECES = 6
_ENOUGH_SE = 5e-4
_ENOUGH_RELATIVE = 0.1
_LEAST_SAMPLES, _MOST_SAMPLES, _SAMPLES_S = 3, 5, 1.0
_CACHES_BYTES = 64 << 20
_RANDOM = (
    "the weights of a preset are random: ratios and times are those of this very model and say nothing of a trained one, "
    "and no loss is measured; name real weights with --model"
)


@dataclass(frozen=True)
class CompressionOptions:
    """``cuts`` None: all. ``loss_tokens``: most tokens of the text for each loss; 0: bytes and times alone."""

    codecs: tuple[str, ...] = DEFAULT_CODECS
    cuts: tuple[int, ...] | None = None
    loss_tokens: int = LOSS_TOKENS


class Keeper(Protocol):
    """Where results are kept as soon as they are there (``profiler.partial.Partial``)."""

    def __contains__(self, stage: str) -> bool: ...
    def get(self, stage: str) -> Any: ...
    def put(self, stage: str, value: Any) -> None: ...


Progress = Callable[[int, int], None]
StageOf = Callable[[str, int], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Difference:
    """Loss with compression minus without: mean over the pieces and its standard error (None: too few to tell)."""

    mean: float
    se: float | None

    @property
    def enough(self) -> bool:
        """Known well enough for a choice among codecs."""
        return self.se is not None and self.se <= max(_ENOUGH_SE, _ENOUGH_RELATIVE * abs(self.mean))


def measure(
    split: SplitModel,
    passage: Passage,
    options: CompressionOptions,
    *,
    provenance: Provenance,
    keep: Keeper,
    stage: StageOf,
) -> Compression:
    """The block of a profile. ``keep`` resumes after an interruption, cut by cut.

    Raises BadInput for a cut that the model has not, and for a text too short for one mini-batch.
    """
    cuts = list(options.cuts) if options.cuts is not None else list(split.cuts)
    wrong = [cut for cut in cuts if cut not in split.cuts]
    if wrong:
        raise BadInput(f"--cuts {wrong[0]}: expected some of 1..{split.layers - 1} ({split.layers} layers)")
    random = split.built.spec.model in presets()
    batches = held_out(split, passage, 0 if random else options.loss_tokens)
    if "compressed bytes" not in keep:
        with stage("compression: bytes and times at every cut", 2 * len(cuts)) as tell:
            keep.put("compressed bytes", transfers(split, batches[0], options.codecs, cuts, tell))
    rows: dict[str, dict[str, dict[str, Any]]] = keep.get("compressed bytes")
    base, added = None, dict[tuple[str, int], Difference]()
    if options.loss_tokens and not random:
        base, added = _losses(split, batches, options, cuts, keep, stage)
    figures = [
        CodecFigures(codec=name, cuts=[_row(cut, rows[name][str(cut)], added.get((name, cut))) for cut in cuts])
        for name in options.codecs
    ]
    name, phi = chosen(figures)
    sizes = [piece.labels.shape for batch in batches for piece in _pieces(batch)]
    return Compression(
        provenance=provenance,
        note=_RANDOM if random else None,
        phi=phi,
        codec=name,
        base_loss=base,
        text=passage.described,
        tokens=None if base is None else sum(rows * (tokens - 1) for rows, tokens in sizes),
        codecs=figures,
    )


def chosen(figures: Sequence[CodecFigures]) -> tuple[str, float]:
    """(codec, phi) with which a solver counts when nothing is asked for: the smallest phi, mean over cuts and both directions, among the codecs that add at
    most ``HARMLESS`` to the loss at every cut; else none and 1."""
    best = ("none", 1.0)
    for row in figures:
        known = [cut.loss_increase for cut in row.cuts if cut.loss_increase is not None]
        phi = sum(cut.smashed_phi + cut.gradient_phi for cut in row.cuts) / (2 * len(row.cuts))
        if len(known) == len(row.cuts) and max(known) <= HARMLESS and phi < best[1]:
            best = (row.codec, phi)
    return best


def held_out(split: SplitModel, passage: Passage, tokens: int) -> list[Batch]:
    """Mini-batches of the workload's shape, of at least ``tokens`` tokens where the text has them; sequences evenly spaced over the text.

    For an encoder-decoder model the labels are the sequence that follows. Raises BadInput where the text is too short for one mini-batch.
    """
    import torch

    spec, built = split.built.spec, split.built
    ids = torch.tensor(token_ids(passage, spec.model, built.vocab_size), dtype=torch.int64)
    width = spec.tokens * (1 if split.encoder_layers is None else 2)
    there = len(ids) // width
    if there < spec.batch:
        raise BadInput(
            f"--text: {passage.name} has {len(ids):,} tokens, expected at least {spec.batch * width:,}: a mini-batch "
            f"of {spec.batch} x {spec.tokens} (--batch-size, --seq-len)"
        )
    wanted = max(1, -(-tokens // (spec.batch * spec.tokens)))
    count = min(wanted, there // spec.batch)
    rows = ids[: there * width].reshape(there, width)
    rows = rows[torch.from_numpy(np.arange(count * spec.batch) * there // (count * spec.batch))]
    # Spread over the mini-batches, too: each sees the whole text.
    rows = rows.reshape(spec.batch, count, width).transpose(0, 1)
    # Contiguous: some models take a view of their labels.
    parts = [(part[:, : spec.tokens].contiguous(), part[:, spec.tokens :].contiguous()) for part in rows]
    return [
        split.batch(inputs=inputs, labels=None if split.encoder_layers is None else labels) for inputs, labels in parts
    ]


# --- bytes and times --------------------------------------------------------------------------------------------------


def transfers(
    split: SplitModel, batch: Batch, codecs: Sequence[str], cuts: Sequence[int], tell: Progress
) -> dict[str, dict[str, dict[str, Any]]]:
    """codec -> cut (as text) -> phi and times of both directions, from one training step that is cut at every cut."""
    made = {name: codec(name) for name in codecs}
    found: dict[str, dict[str, dict[str, Any]]] = {name: {str(cut): {} for cut in cuts} for name in codecs}
    done = 0

    def take(cut: int, direction: str, tensors: Mapping[str, Tensor]) -> None:
        nonlocal done
        for name, one in made.items():
            found[name][str(cut)] |= _transfer(one, direction, [tensors[key] for key in sorted(tensors)], split.device)
        done += 1
        tell(done, 2 * len(cuts))

    ends = {split.device_segments(cut)[-1]: cut for cut in cuts}
    state, stops = split.start(batch), []
    for index in range(len(split.segments)):
        state = split.forward(index, state)
        if index in ends:
            before = state
            state, leaves = split.cut_state(state)
            take(ends[index], "smashed", leaves)
            stops.append((ends[index], before, leaves))
    split.backward(state)
    for cut, before, leaves in reversed(stops):
        gradients = split.gradients(leaves)
        take(cut, "gradient", gradients)
        split.backward(before, gradients)
    for adapter in split.adapters():
        adapter.grad = None
    return found


def _transfer(one: Codec, direction: str, tensors: Sequence[Tensor], device: str) -> dict[str, Any]:
    """phi, and the seconds of both ends with the copy off and onto the device, of one mini-batch in one direction.

    In a run each end comes once a mini-batch, with layers in between that leave nothing of it in the caches. So something else fills them first;
    and the end that decodes has waited for the link, so it rests before that.
    """
    import torch

    other = torch.zeros(_CACHES_BYTES, dtype=torch.uint8)

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    plain = [tensor.detach() for tensor in tensors]
    raw = sum(t.numel() * t.element_size() for t in plain)
    encode_s: list[float] = []
    decode_s: list[float] = []
    coded = 0
    began = now()
    while len(encode_s) < _LEAST_SAMPLES or (len(encode_s) < _MOST_SAMPLES and now() - began < _SAMPLES_S):
        other.add_(1)
        start = now()
        payloads = [one.encode(t, len(encode_s)) for t in plain]
        encode_s.append(now() - start)
        other.add_(1)
        time.sleep(WAIT_S)
        start = now()
        for payload, t in zip(payloads, plain, strict=True):
            one.decode(payload, tuple(t.shape), t.dtype).to(device)
        decode_s.append(now() - start)
        coded += sum(len(payload) for payload in payloads)
    return {
        f"{direction}_phi": coded / len(encode_s) / raw,
        f"{direction}_encode_s": _stat(encode_s),
        f"{direction}_decode_s": _stat(decode_s),
    }


def _stat(seconds: Sequence[float]) -> dict[str, Any]:
    low, middle, high = np.percentile(seconds, [25, 50, 75]).tolist()
    return {"median_s": middle, "iqr_s": high - low, "samples": len(seconds)}


def _row(cut: int, row: Mapping[str, Any], difference: Difference | None) -> CodecCut:
    loss = {} if difference is None else {"loss_increase": difference.mean, "loss_increase_se": difference.se}
    return CodecCut.model_validate({"cut": cut, **row, **loss})


# --- loss -------------------------------------------------------------------------------------------------------------


def _losses(
    split: SplitModel,
    batches: Sequence[Batch],
    options: CompressionOptions,
    cuts: Sequence[int],
    keep: Keeper,
    stage: StageOf,
) -> tuple[float, dict[tuple[str, int], Difference]]:
    """(base loss, the difference of each codec at each cut)."""
    if "base losses" not in keep:
        with stage("compression: loss without", len(batches)) as tell:
            keep.put("base losses", base_losses(split, batches, tell))
    base: list[list[float]] = keep.get("base losses")
    weights = [[len(piece.inputs) for piece in _pieces(batch)] for batch in batches]
    done: dict[str, Any] = dict(keep.get("losses")) if "losses" in keep else {}
    with stage(f"compression: loss with {len(options.codecs)} codecs at each of {len(cuts)} cuts", len(cuts)) as tell:
        for number, cut in enumerate(cuts):
            if str(cut) not in done:
                found = differences(split, cut, options.codecs, batches)
                done[str(cut)] = {name: [d.mean, d.se] for name, d in found.items()}
                keep.put("losses", done)
            tell(number + 1, len(cuts))
    total = sum(map(sum, weights))
    mean = sum(w * loss for ws, ls in zip(weights, base, strict=True) for w, loss in zip(ws, ls, strict=True)) / total
    return mean, {(name, cut): Difference(*done[str(cut)][name]) for cut in cuts for name in options.codecs}


def base_losses(split: SplitModel, batches: Sequence[Batch], tell: Progress | None = None) -> list[list[float]]:
    """The plain model's loss on each piece of each mini-batch."""
    import torch

    found = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            found.append([float(split.whole(piece)) for piece in _pieces(batch)])
            if tell is not None:
                tell(number + 1, len(batches))
    return found


def differences(
    split: SplitModel, cut: int, codecs: Sequence[str], batches: Sequence[Batch], *, everything: bool = False
) -> dict[str, Difference]:
    """For each codec the loss with the smashed data compressed minus without, at one cut.

    A whole mini-batch is encoded at once, as in training. A codec is done when its difference is known well enough, unless ``everything`` is
    to be used.
    """
    import torch

    made = {name: codec(name) for name in codecs}
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in codecs}
    left = list(codecs)
    for number, batch in enumerate(batches):
        if not left:
            break
        with torch.no_grad():
            carried = split.device_half(batch, cut).carried
        back = {
            name: {
                key: made[name].decode(made[name].encode(t, number), tuple(t.shape), t.dtype).to(split.device)
                for key, t in carried.items()
            }
            for name in left
        }
        at = 0
        for piece in _pieces(batch):
            here = slice(at, at := at + len(piece.inputs))
            plain, gradients = _with_gradients(split, piece, cut, {key: t[here] for key, t in carried.items()})
            for name in list(left):
                got = {key: t[here] for key, t in back[name].items()}
                with torch.no_grad():
                    server = split.server_half(piece, cut, got)
                assert server.loss is not None
                change = float(server.loss) - plain
                if made[name].unbiased:
                    change -= sum(
                        float((gradients[key].double() * (t.double() - carried[key][here].double())).sum())
                        for key, t in got.items()
                    )
                seen[name].append((change, len(piece.inputs)))
                if not everything and len(seen[name]) >= _LEAST_PIECES and _difference(seen[name]).enough:
                    left.remove(name)
    return {name: _difference(found) for name, found in seen.items()}


def _with_gradients(
    split: SplitModel, piece: Batch, cut: int, carried: Mapping[str, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """The loss of one piece without compression, and its gradients with respect to what crosses the cut."""
    import torch

    leaves = {key: t.detach().requires_grad_() for key, t in carried.items()}
    loss = split.server_half(piece, cut, leaves).loss
    assert loss is not None
    return float(loss.detach()), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def _difference(seen: Sequence[tuple[float, int]]) -> Difference:
    values, weights = np.array([d for d, _ in seen]), np.array([w for _, w in seen], dtype=float)
    mean = float((weights * values).sum() / weights.sum())
    if len(seen) < 2:
        return Difference(mean, None)
    spread = float((weights**2 * (values - mean) ** 2).sum()) / weights.sum() ** 2
    return Difference(mean, math.sqrt(spread * len(seen) / (len(seen) - 1)))


def _pieces(batch: Batch) -> list[Batch]:
    """A mini-batch in pieces of whole sequences, of some hundred tokens: each gives one paired difference."""
    rows = max(1, _PIECE_TOKENS // batch.inputs.shape[1])
    return [
        Batch(batch.inputs[at : at + rows], batch.labels[at : at + rows]) for at in range(0, len(batch.inputs), rows)
    ]
