"""What compression costs at every cut: bytes that really cross, losses held against a plain count, runs that resume."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [profile] extra is not installed")
pytest.importorskip("zstandard", reason="the [profile] extra is not installed")

import torch
from pydantic import ValidationError
from rich.console import Console

from profiler.codecs import codec
from profiler.profile import BadInput, CodecCut, CodecFigures, Compression, Stat
from profiler.run import RunRequest, run
from profiler.show import draw, show
from profiler.store import load, save
from profiler.workload import compression
from profiler.workload.compression import CompressionOptions, chosen, differences, held_out, measure, transfers
from profiler.workload.cuts import SplitModel
from profiler.workload.model import WorkloadSpec
from profiler.workload.text import Passage, read_text, token_ids
from tests.synthetic import make_profile
from tests.workload.families import equal, take_gradients, tiny

CODECS = ("int4+zstd", "top25-int8")


class Kept(dict[str, Any]):
    """Results as JSON holds them."""

    def put(self, stage: str, value: Any) -> None:
        self[stage] = json.loads(json.dumps(value))

    def get(self, stage: str) -> Any:  # type: ignore[override]
        return self[stage]


@contextlib.contextmanager
def silent(text: str, total: int) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, of: None


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny families have no tokenizer: ids that follow a pattern with noise stand in for a text's."""
    generator = torch.Generator().manual_seed(3)
    ids = ((torch.arange(4000) * 7 + torch.randint(0, 5, (4000,), generator=generator)) % 97).tolist()
    monkeypatch.setattr(compression, "token_ids", lambda *_: ids)


PASSAGE = Passage("words, as many as four mini-batches take. " * 4, "a text")


def learnt(family: str, **spec: Any) -> SplitModel:
    """A tiny model that has learnt a little of the pattern: only where a loss is low can noise be relied on to raise it."""
    split = tiny(family, **spec)
    parameters = list(split.model.parameters())
    frozen = [p for p in parameters if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    batches = held_out(split, PASSAGE, 4000)
    for step in range(80):
        optimizer.zero_grad()
        split.whole(batches[step * 7 % len(batches)]).backward()
        optimizer.step()
    optimizer.zero_grad()
    for p in frozen:
        p.requires_grad_(False)
    return split


def measured(split: SplitModel, **options: Any) -> Compression:
    asked = CompressionOptions(**{"codecs": CODECS, "loss_tokens": 256, **options})
    return measure(split, PASSAGE, asked, provenance="measured", keep=Kept(), stage=silent)


# ------------------------------------------------------------------------------------------------------ what crosses


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_what_is_encoded_is_what_crosses_at_each_cut_in_both_directions(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tiny(family)
    batch = split.batch(seed=4)
    seen: dict[str, list[torch.Tensor]] = {"smashed": [], "gradient": []}

    def note(one: object, direction: str, tensors: list[torch.Tensor], device: str) -> dict[str, Any]:
        seen[direction] += [t.detach().clone() for t in tensors]
        return {}

    monkeypatch.setattr(compression, "_transfer", note)
    transfers(split, batch, ["none"], list(split.cuts), lambda done, of: None)
    expected: dict[str, list[torch.Tensor]] = {"smashed": [], "gradient": []}
    back: list[list[torch.Tensor]] = []
    for cut in split.cuts:
        device = split.device_half(batch, cut)
        crossed, leaves = split.cut_state(device)
        split.backward(split.server_half(batch, cut, crossed.carried))
        gradients = split.gradients(leaves)
        expected["smashed"] += [leaves[name].detach() for name in sorted(leaves)]
        back.append([gradients[name] for name in sorted(gradients)])
    expected["gradient"] = [t for tensors in reversed(back) for t in tensors]
    assert equal(seen["smashed"], expected["smashed"])
    assert equal(seen["gradient"], expected["gradient"])


def test_measuring_leaves_no_gradient_behind(tokens: None) -> None:
    split = tiny("llama")
    measured(split)
    assert all(adapter.grad is None for adapter in split.adapters())
    split.split_step(split.batch(), 2)
    take_gradients(split)


def test_ratios_are_those_of_the_payloads(tokens: None) -> None:
    split = tiny("llama")
    block = measured(split, codecs=("none", "bf16", "int8"), loss_tokens=0)
    for row, phi in zip(block.codecs, (1.0, 0.5, None), strict=True):
        for cut in row.cuts:
            smashed = list(split.device_half(held_out(split, PASSAGE, 0)[0], cut.cut).carried.values())
            bytes_ = sum(len(codec(row.codec).encode(t, 0)) for t in smashed)
            assert cut.smashed_phi == bytes_ / split.smashed_bytes(cut.cut)
            assert phi is None or cut.smashed_phi == cut.gradient_phi == phi
            assert cut.smashed_encode_s.samples >= 3
            assert cut.loss_increase is None


# ------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_without_loss_of_bits_the_loss_is_the_same(family: str, tokens: None) -> None:
    split = tiny(family)
    found = differences(split, 2, ["none", "none+zstd"], held_out(split, PASSAGE, 256), everything=True)
    assert all(d.mean == 0 and d.se == 0 for d in found.values())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_loss_added_is_that_of_a_plain_count_over_many_seeds_with_far_less_scatter(
    family: str, tokens: None
) -> None:
    split = learnt(family, batch_size=8)
    batches = held_out(split, PASSAGE, 512)
    one, cut = codec("int3"), split.layers - 1
    plain = []
    with torch.no_grad():
        for batch in batches:
            carried = split.device_half(batch, cut).carried
            without = float(split.whole(batch))
            for seed in range(60):
                back = {k: one.decode(one.encode(t, seed), tuple(t.shape), t.dtype) for k, t in carried.items()}
                loss = split.server_half(batch, cut, back).loss
                assert loss is not None
                plain.append(float(loss) - without)
    counted = torch.tensor(plain, dtype=torch.float64)
    counted_se = float(counted.std()) / len(plain) ** 0.5
    found = differences(split, cut, ["int3"], batches, everything=True)["int3"]
    assert found.se is not None
    assert abs(found.mean - float(counted.mean())) < 4 * (found.se**2 + counted_se**2) ** 0.5
    assert found.mean > 0
    pieces = sum(len(compression._pieces(batch)) for batch in batches)
    assert found.se < 0.6 * float(counted.std()) / pieces**0.5


def test_a_coarser_codec_adds_more_loss(tokens: None) -> None:
    split = learnt("llama", batch_size=8)
    found = differences(
        split, 2, ["int8", "int4", "int2", "top5-int8"], held_out(split, PASSAGE, 1024), everything=True
    )
    assert abs(found["int8"].mean) < found["int4"].mean < found["int2"].mean
    assert found["top5-int8"].mean > found["int4"].mean


def test_the_work_ends_early_where_the_difference_is_known(tokens: None, monkeypatch: pytest.MonkeyPatch) -> None:
    split = tiny("llama", seq_len=64)
    batches = held_out(split, PASSAGE, 4000)
    calls: list[int] = []
    real = split.server_half
    monkeypatch.setattr(split, "server_half", lambda *a: (calls.append(1), real(*a))[1])
    monkeypatch.setattr(compression, "_PIECE_TOKENS", 64)
    differences(split, 2, ["fp16"], batches)
    short = len(calls)
    calls.clear()
    differences(split, 2, ["fp16"], batches, everything=True)
    assert short < len(calls) / 2


# --------------------------------------------------------------------------------------------------------- the block


def figures(name: str, phi: float, losses: list[float | None]) -> CodecFigures:
    time = Stat(median_s=1e-3, samples=3)
    rows = [
        CodecCut(
            cut=cut, smashed_phi=phi, gradient_phi=phi, smashed_encode_s=time, smashed_decode_s=time,
            gradient_encode_s=time, gradient_decode_s=time, loss_increase=loss, loss_increase_se=None if loss is None else 1e-4,
        )
        for cut, loss in enumerate(losses, 1)
    ]  # fmt: skip
    return CodecFigures(codec=name, cuts=rows)


def test_the_profiles_own_phi_is_the_smallest_that_harms_nowhere() -> None:
    rows = [
        figures("fp16", 0.5, [0.0, 0.0]),
        figures("int8", 0.2, [0.001, 0.002]),
        figures("int4", 0.1, [0.001, 0.0021]),
    ]
    assert chosen(rows) == ("int8", 0.2)
    assert chosen(rows[2:]) == ("none", 1.0)
    assert chosen([figures("int8", 0.2, [0.001, None])]) == ("none", 1.0)
    assert chosen([figures("none+zstd", 1.1, [0.0, 0.0])]) == ("none", 1.0)


def test_the_block_names_its_text_and_resumes_cut_by_cut(tokens: None, monkeypatch: pytest.MonkeyPatch) -> None:
    split, kept = tiny("llama"), Kept()
    options = CompressionOptions(CODECS, loss_tokens=256)
    first = measure(split, PASSAGE, options, provenance="measured", keep=kept, stage=silent)
    assert first.text == PASSAGE.described
    assert PASSAGE.digest in first.text
    assert first.base_loss is not None
    assert first.tokens == 8 * 2 * 15
    assert [row.codec for row in first.codecs] == list(CODECS)
    assert [cut.cut for cut in first.codecs[0].cuts] == list(split.cuts)
    del kept["losses"]["2"]
    asked: list[int] = []
    monkeypatch.setattr(compression, "differences", lambda s, cut, *a: (asked.append(cut), differences(s, cut, *a))[1])
    again = measure(split, PASSAGE, options, provenance="measured", keep=kept, stage=silent)
    assert asked == [2]
    assert again == first


def test_a_preset_is_marked_plainly_and_has_no_losses() -> None:
    from profiler.workload.model import build

    split = SplitModel(build(WorkloadSpec("tiny-llama-test", batch_size=2, seq_len=16)))
    block = measured(split, codecs=("int8",), cuts=(1,))
    assert block.note is not None
    assert "random" in block.note
    assert (block.codec, block.phi, block.base_loss) == ("none", 1.0, None)
    assert block.codecs[0].cuts[0].loss_increase is None


@pytest.mark.parametrize("damage", ["twice", "order", "beyond"])
def test_tables_that_contradict_themselves_are_refused(damage: str) -> None:
    row = figures("int8", 0.2, [0.0, 0.0])
    profile = make_profile().model_dump(mode="json")
    cuts = [cut.model_dump(mode="json") for cut in row.cuts]
    rows = [{"codec": "int8", "cuts": cuts}]
    if damage == "twice":
        rows *= 2
    elif damage == "order":
        rows[0]["cuts"] = cuts[::-1]
    else:
        cuts[1]["cut"] = profile["workload"]["layers"]
    block = {"provenance": "measured", "phi": 0.2, "codec": "int8", "codecs": rows}
    with pytest.raises(ValidationError, match=r"stands there twice|ascending|expected cuts among"):
        type(make_profile()).model_validate({**profile, "compression": block})


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_measures_shows_and_draws(tmp_path: Path) -> None:
    request = RunRequest(
        "cpu", WorkloadSpec("tiny-llama-test", batch_size=2, seq_len=32), measure=("compression",),
        codecs=("fp16", "int8-o2+zstd"), cuts=(1, 2), output=tmp_path / "cpu.json",
    )  # fmt: skip
    profile = load(run(request))
    block = profile.compression
    assert block is not None
    assert block.provenance == "measured"
    assert [row.codec for row in block.codecs] == ["fp16", "int8-o2+zstd"]
    assert any("random" in warning for warning in profile.warnings)
    block = block.model_copy(
        update={"codecs": [figures("fp16", 0.5, [1e-5, -1e-5]), figures("int4", 0.1, [0.03, 0.05])]}
    )
    out = StringIO()
    show(profile.model_copy(update={"compression": block}), Console(file=out, width=100))
    assert "int4 (measured): 10.00x up, 10.00x down, loss +0.0500 at most" in out.getvalue()
    assert "+0.0300 ± 0.0001" in out.getvalue()
    pytest.importorskip("matplotlib")
    (path,) = draw(profile.model_copy(update={"compression": block}), tmp_path)
    assert path.name == "cpu-compression.png"
    save(profile.model_copy(update={"compression": block}), tmp_path / "again.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codecs": ("int8", "int99")}, r"--codecs: codec 'int99': expected none"),
        ({"codecs": ("int8", "int8")}, r"--codecs int8,int8: expected .* each once"),
        ({"codecs": ()}, r"--codecs : expected at least one"),
        ({"cuts": (3, 1)}, r"--cuts 3,1: expected ascending"),
        ({"cuts": (0,)}, r"--cuts 0: expected"),
        ({"cuts": (99,)}, r"--cuts 99: expected some of 1\.\."),
        ({"loss_tokens": -1}, r"--loss-tokens -1"),
        ({"text": Path("no-such-text")}, r"--text no-such-text: .*expected a text file"),
        ({"measure": ("layers",), "codecs": ("int8",)}, r"--codecs: expected with compression among --measure"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    tiny_ = WorkloadSpec("tiny-llama-test", batch_size=2, seq_len=16)
    with pytest.raises(BadInput, match=message):
        run(RunRequest("cpu", tiny_, **{"measure": ("compression",), "output": tmp_path / "cpu.json", **options}))


def test_an_emulated_device_has_nothing_to_compress() -> None:
    with pytest.raises(BadInput, match="--measure compression: an emulated device"):
        run(RunRequest("emulated:orin-nano", WorkloadSpec("tiny-llama-test"), measure=("compression",)))


def test_a_short_text_and_one_that_is_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    with pytest.raises(BadInput, match=r"--text: short.txt has 9 tokens, expected at least 32"):
        run(
            RunRequest(
                "cpu", WorkloadSpec("tiny-llama-test", batch_size=2, seq_len=16), measure=("compression",), text=path,
                output=tmp_path / "cpu.json",
            )
        )  # fmt: skip
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not a text in UTF-8"):
        read_text(path)


def test_the_text_that_is_there_without_a_file_is_prose_with_a_digest() -> None:
    passage = read_text(None)
    assert len(passage.text) > 200_000
    assert "The assert statement" in passage.text or "assert" in passage.text
    assert passage.digest in passage.described
    assert token_ids(Passage("ab\u00e9", "x"), "tiny-llama-test", 100) == [97, 98, 95, 69]
