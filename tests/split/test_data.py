"""Text on a device becomes the same mini-batches everywhere; what is wrong with it is told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the [train] extra is not installed")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput
from profiler.workload.text import tokenizer_of
from split import data
from split.data import IGNORED, load

TEXT = "".join(f"Line {i} of a text, in German: Größe {i * i}.\n" for i in range(400))


class Words:
    """A tokenizer with the face of transformers': one id a word."""

    eos_token_id: int | None = 1
    pad_token_id: int | None = 0

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __len__(self) -> int:
        return 1000

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> Any:
        assert not add_special_tokens
        ids = [self.known.setdefault(word, len(self.known) + 2) for word in text.split()]
        return type("Encoding", (), {"input_ids": ids})()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def everything(sequences: data.Sequences, size: int = 1) -> list[list[int]]:
    """The training sequences in the order of the first epoch."""
    return [row.tolist() for step in range(len(sequences) // size) for row in sequences.batch(0, step, size)[0]]


# --- plain text -------------------------------------------------------------------------------------------------------


def test_a_presets_tokens_are_the_texts_bytes_modulo_its_vocabulary_and_it_says_so(text: Path) -> None:
    found = load(text, None, 16, vocab_size=97, held_out=0)
    raw = np.frombuffer(TEXT.encode(), dtype=np.uint8) % 97
    assert len(found) == len(raw) // 16
    rows = raw[: len(found) * 16].reshape(-1, 16).tolist()
    assert sorted(everything(found)) == sorted(rows)
    assert "bytes modulo the vocabulary of 97" in found.note
    assert load(text, None, 16, vocab_size=4096).batch(0, 0, 1)[0].max() < 256


def test_labels_are_the_inputs_for_the_model_shifts_them(text: Path) -> None:
    inputs, labels = load(text, None, 16, vocab_size=97).batch(3, 0, 4)
    assert inputs.dtype == labels.dtype == torch.int64
    assert inputs.shape == (4, 16)
    assert torch.equal(inputs, labels)


def test_an_encoder_decoder_model_learns_the_continuation(text: Path) -> None:
    found = load(text, None, 16, vocab_size=97, held_out=0, encoder_decoder=True)
    raw = np.frombuffer(TEXT.encode(), dtype=np.uint8) % 97
    assert len(found) == len(raw) // 32
    pairs = {tuple(row) for row in raw[: len(found) * 32].reshape(-1, 32).tolist()}
    inputs, labels = found.batch(0, 0, 5)
    assert inputs.shape == labels.shape == (5, 16)
    assert {tuple(row) for row in torch.cat([inputs, labels], 1).tolist()} <= pairs


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_a_text_longer_than_a_piece_loses_nothing_between_pieces(
    text: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters of several bytes lie across the ends of pieces, and lines are longer than a piece."""
    whole = everything(load(text, None, 16, vocab_size=256, held_out=0))
    monkeypatch.setattr(data, "_CHUNK_BYTES", chunk)
    assert "".join(data._pieces(text)) == TEXT
    assert everything(load(text, None, 16, vocab_size=256, held_out=0)) == whole


# --- draws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 40),
    size=st.integers(1, 7),
    seed=st.integers(0, 2**62),
    name=st.text(max_size=5),
    step=st.integers(0, 60),
)
def test_every_epoch_draws_each_sequence_once(count: int, size: int, seed: int, name: str, step: int) -> None:
    stored = data._Stored(np.arange(count, dtype=np.uint32)[:, None], None, False, 0, count)
    found = data.Sequences(stored, data._Stored(stored.ids, None, False, 0, 0), 1, name, "")
    if size > count:
        with pytest.raises(BadInput, match="--batch-size"):
            found.batch(seed, 0, size)
        return
    drawn = [int(x) for k in range(step + 1) for x in found.batch(seed, k, size)[0][:, 0]]
    for first in range(0, len(drawn), count):
        epoch = drawn[first : first + count]
        assert len(set(epoch)) == len(epoch)
    again = data.Sequences(stored, stored, 1, name, "")
    assert torch.equal(again.batch(seed, step, size)[0], found.batch(seed, step, size)[0])


def test_the_draws_are_these_on_every_machine_and_in_every_process(text: Path) -> None:
    """Written out, so that another release of numpy, or another order of a dictionary, cannot change them unseen."""
    stored = data._Stored(np.arange(10, dtype=np.uint32)[:, None], None, False, 0, 10)
    found = data.Sequences(stored, stored, 1, "orin", "")
    assert found.batch(7, 0, 10)[0][:, 0].tolist() == [9, 1, 3, 6, 2, 7, 5, 4, 0, 8]
    assert found.batch(7, 1, 10)[0][:, 0].tolist() == [2, 4, 1, 7, 0, 9, 3, 5, 6, 8]
    program = (
        "import sys; from split.data import load; "
        "print(load(sys.argv[1], None, 16, vocab_size=97, name='a').batch(5, 3, 4)[0].tolist())"
    )
    other = subprocess.run([sys.executable, "-c", program, str(text)], capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == load(text, None, 16, vocab_size=97, name="a").batch(5, 3, 4)[0].tolist()


def test_two_devices_and_two_seeds_draw_differently(text: Path) -> None:
    one, two = (load(text, None, 16, vocab_size=97, name=n) for n in ("one", "two"))
    assert not torch.equal(one.batch(0, 0, 8)[0], two.batch(0, 0, 8)[0])
    assert not torch.equal(one.batch(0, 0, 8)[0], one.batch(1, 0, 8)[0])
    assert not torch.equal(one.batch(0, 0, 8)[0], one.batch(0, 1, 8)[0])


# --- held out ---------------------------------------------------------------------------------------------------------


def test_the_share_kept_apart_is_the_end_of_the_text_and_is_never_drawn(text: Path) -> None:
    found, all_of_it = (load(text, None, 16, vocab_size=256, held_out=share) for share in (0.1, 0))
    assert found.held_out_count == round(0.1 * len(all_of_it))
    assert len(found) + found.held_out_count == len(all_of_it)
    apart = torch.cat([inputs for inputs, _ in found.held_out(7)])
    assert len(apart) == found.held_out_count
    raw = np.frombuffer(TEXT.encode(), dtype=np.uint8)[: len(all_of_it) * 16].reshape(-1, 16)
    assert apart.tolist() == raw[len(found) :].tolist()
    assert sorted(everything(found)) == sorted(raw[: len(found)].tolist())
    again = [inputs.tolist() for inputs, _ in found.held_out(7)]
    assert [row for rows in again for row in rows] == apart.tolist()
    assert [inputs.tolist() for inputs, _ in found.held_out(7, start=2)] == again[2:]


def test_another_file_can_be_kept_apart(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("z" * 64)
    found = load(text, None, 16, vocab_size=256, held_out=other)
    assert found.held_out_count == 4
    assert all(bool((inputs == ord("z")).all()) for inputs, _ in found.held_out(2))
    assert len(found) == len(load(text, None, 16, vocab_size=256, held_out=0))


# --- records ----------------------------------------------------------------------------------------------------------


def test_documents_follow_each_other_with_an_end_token_between(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one two"}, {"text": "two three four"}])
    found = load(path, Words(), 7, vocab_size=1000, held_out=0)
    assert everything(found) == [[2, 3, 1, 3, 4, 5, 1]]
    story = jsonl(tmp_path / "b.jsonl", [{"story": "one two", "text": "no"}])
    assert everything(load(story, Words(), 3, vocab_size=1000, held_out=0, text_field="story")) == [[2, 3, 1]]


def test_only_the_completion_counts_in_the_loss(tmp_path: Path) -> None:
    rows = [{"prompt": "what is it", "completion": "a cat"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    inputs, labels = load(path, Words(), 8, vocab_size=1000, held_out=0).batch(0, 0, 1)
    assert inputs.tolist() == [[2, 3, 4, 5, 6, 1, 0, 0]]
    assert labels.tolist() == [[IGNORED] * 3 + [5, 6, 1] + [IGNORED] * 2]
    inputs, labels = load(path, Words(), 8, vocab_size=1000, held_out=0, encoder_decoder=True).batch(0, 0, 1)
    assert inputs.tolist() == [[2, 3, 4, 0, 0, 0, 0, 0]]
    assert labels.tolist() == [[5, 6, 1] + [IGNORED] * 5]


def test_pairs_that_are_too_long_are_cut_and_left_out_where_nothing_is_left_to_learn(tmp_path: Path) -> None:
    rows = [{"prompt": "p " * 20, "completion": "c"}, {"prompt": "p p", "completion": "c d e f g"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = load(path, Words(), 4, vocab_size=1000, held_out=0)
    assert len(found) == 1
    assert found.batch(0, 0, 1)[1].tolist() == [[IGNORED, IGNORED, 3, 4]]
    assert "1 prompts" in found.note
    with pytest.raises(BadInput, match="leave no room for a completion"):
        load(jsonl(tmp_path / "b.jsonl", rows[:1]), Words(), 4, vocab_size=1000)


def test_padding_after_a_completion_does_not_change_its_loss(tmp_path: Path) -> None:
    """No mask crosses the cut; later tokens cannot be seen by earlier ones."""
    from profiler.workload.model import WorkloadSpec
    from split.half import Half
    from tests.workload.families import available, preset

    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "What?", "completion": " It."}])
    with available():
        half = Half(WorkloadSpec(preset("llama"), batch_size=1, seq_len=32), "whole")
    inputs, labels = load(path, None, 32, vocab_size=97, held_out=0).batch(0, 0, 1)
    length = len("What? It.") + 1
    assert half.unsplit(inputs, labels, train=False) == pytest.approx(
        half.unsplit(inputs[:, :length], labels[:, :length], train=False), rel=1e-5
    )


def test_a_hugging_face_directory_is_read(tmp_path: Path) -> None:
    """Files as Dataset.save_to_disk, DatasetDict.save_to_disk and the hub lay them out."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def table(words: str) -> Any:
        return pa.table({"id": list(range(len(words.split()))), "text": words.split()})

    def saved(folder: Path, parts: list[str]) -> None:
        folder.mkdir(parents=True)
        names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
        for name, words in zip(names, parts, strict=True):
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table(words).schema) as writer:
                writer.write_table(table(words))
        state = {"_data_files": [{"filename": n} for n in names], "_indices_data_files": None, "_format_type": None}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")

    expected = [[2, 1, 3, 1], [4, 1, 5, 1]]
    saved(tmp_path / "one", ["a b", "c d"])
    assert sorted(everything(load(tmp_path / "one", Words(), 4, vocab_size=1000, held_out=0))) == expected

    saved(tmp_path / "dict" / "train", ["a b c d"])
    saved(tmp_path / "dict" / "validation", ["x y"])
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    found = load(tmp_path / "dict", Words(), 4, vocab_size=1000)
    assert sorted(everything(found)) == expected
    assert found.held_out_count == 1

    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(table("a b c d"), tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table("x y"), tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    found = load(tmp_path / "hub", Words(), 4, vocab_size=1000)
    assert sorted(everything(found)) == expected
    assert found.held_out_count == 1

    with pytest.raises(BadInput, match=r"parquet: no field story.*--text-field.*it has id, text"):
        load(tmp_path / "hub", Words(), 4, vocab_size=1000, text_field="story")


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": 5}\n', "line 2: field text: expected a string, found int"),
        (b'{"text": "a"}\n{"body": "b"}\n', "line 2: no field text .*--text-field.*it has body"),
        (b'{"text": "a"}\n\n{"text": \n', "line 3: not JSON"),
        (b'{"text": "a"}\n[1]\n', "line 2: expected an object, found list"),
        (b'{"text": "\\ud800"}\n', "line 1: field text: half a character"),
        (b'{"text": "a"}\n{"prompt": "b", "completion": "c"}\n', "line 2: expected a text as in the records before"),
        (b'{"prompt": "a", "completion": null}\n', "line 1: field completion: expected a string, found NoneType"),
        (b'{"text": "\xff"}\n', "line 1: not JSON"),
        (b'{"text":' + b"[" * 100_000, "line 1: (nested too deeply|not JSON)"),
        (b"", "0 tokens, expected at least one sequence of 16"),
    ],
)
def test_a_bad_record_is_told_with_file_line_and_field(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"records\.jsonl.*{said}") as caught:
        load(path, None, 16, vocab_size=97)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"good\nbad \xff\n", "line 2: not UTF-8 text"),
        (b"good\n" * 300_000 + b"bad \xc3\n" + b"good\n" * 300_000, "line 300001: not UTF-8 text"),
        (b"the end is cut \xe2\x82", "line 1: not UTF-8 text"),
        (b"short", "5 tokens, expected at least one sequence of 16"),
        (b"a sequence and no more", "1 sequences of 16 tokens are too few to keep 0.05 of them apart"),
    ],
)
def test_a_bad_text_is_told_with_file_and_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"text\.txt.*{said}"):
        load(path, None, 16, vocab_size=97)


def test_what_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        load(tmp_path / "nothing", None, 16, vocab_size=97)
    with pytest.raises(BadInput, match="no text in this folder"):
        load(tmp_path, None, 16, vocab_size=97)
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"not a table at all, but text")
        with pytest.raises(BadInput, match=rf"{name}: cannot be read"):
            load(tmp_path / name, None, 16, vocab_size=97)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../a.arrow"}]}))
    with pytest.raises(BadInput, match=r"state\.json: field _data_files: a\.arrow is not in this folder"):
        load(folder, None, 16, vocab_size=97)


def test_a_tokenizer_of_another_model_is_noticed(text: Path) -> None:
    with pytest.raises(BadInput, match=r"the tokenizer gives the id \d+, the model knows 0\.\.9"):
        load(text, Words(), 16, vocab_size=10)


def test_a_preset_has_no_tokenizer_and_a_folder_without_one_is_told(tmp_path: Path) -> None:
    assert tokenizer_of("tiny-llama-test") is None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="no tokenizer to read the text with"):
        tokenizer_of(str(tmp_path))


def test_a_tokenizer_in_the_models_folder_is_used(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<unk>", "</s>", "one", "two"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one two two"}, {"text": "nine"}])
    assert everything(load(path, tokenizer_of(str(tmp_path)), 6, vocab_size=4, held_out=0)) == [[2, 3, 3, 1, 0, 1]]


def test_a_large_text_takes_little_memory(tmp_path: Path) -> None:
    """40 MB of text and 40 MB of ids on the disk; the process grows by a few pieces of a megabyte."""
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for i in range(400_000):
            file.write(f"{i:08d} " + "some words of text " * 5 + "\n")
    program = (
        "import resource, sys; import numpy, torch; from split.data import load\n"
        "load(sys.argv[2], None, 16, vocab_size=256)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = load(sys.argv[1], None, 128, vocab_size=256)\n"
        "assert len(found) > 250_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    small = tmp_path / "small.txt"
    small.write_text(TEXT)
    child = subprocess.run(
        [sys.executable, "-c", program, str(path), str(small)], capture_output=True, text=True, check=True
    )
    assert int(child.stdout) < 16 * 1024  # KiB
