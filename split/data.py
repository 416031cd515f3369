"""The text on a device, as mini-batches of token ids: a text file, JSONL, or a Hugging Face dataset directory.

Everything is read once, piece by piece, and written as token ids to a temporary file without a name, from which mini-batches are
taken: memory stays at tens of megabytes whatever the size of the text, the disk holds 1, 2 or 4 bytes a token until the process ends.

Plain text and documents (a field of text) become one stream of tokens, cut into sequences of ``seq_len``; the model learns each next
token. Pairs of prompt and completion become one sequence each, of which only the completion's tokens count in the loss. For an
encoder-decoder model the stream is cut into twice ``seq_len``: the inputs, and as labels their continuation; of a pair the prompt is the
input and the completion the labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from profiler.profile import BadInput

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""A label that does not count in the loss, in torch and in transformers."""

MOST_LINE_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_NEWLINE = 10


class Tokens:
    """Text to token ids: by a model's own tokenizer, or its bytes in UTF-8 modulo the vocabulary (for presets, which have none)."""

    def __init__(self, tokenizer: Any | None, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        end = None if tokenizer is None else tokenizer.eos_token_id
        self.end: int = _NEWLINE % vocab_size if tokenizer is None else -1 if end is None else int(end)
        """After each document; negative where the tokenizer has none."""
        pad = None if tokenizer is None else tokenizer.pad_token_id
        self.pad: int = int(pad) if pad is not None else max(self.end, 0)
        largest = min(vocab_size, 256) if tokenizer is None else vocab_size
        self.dtype = np.uint8 if largest <= 2**8 else np.uint16 if largest <= 2**16 else np.uint32

    def ids(self, text: str) -> np.ndarray[Any, Any]:
        """Token ids of ``text`` without special tokens. Raises ValueError for one that the model has no embedding for."""
        if self.tokenizer is None:
            raw = np.frombuffer(text.encode(), dtype=np.uint8)
            return raw if self.vocab_size >= 2**8 else raw % np.uint8(self.vocab_size)
        found = np.asarray(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < self.vocab_size:
            raise ValueError(f"the tokenizer gives the id {int(found.max())}, the model knows 0..{self.vocab_size - 1}")
        return found.astype(self.dtype)

    def describe(self) -> str:
        """One line for people."""
        if self.tokenizer is None:
            return f"bytes modulo the vocabulary of {self.vocab_size} (a preset has no tokenizer)"
        return f"{type(self.tokenizer).__name__}, {len(self.tokenizer)} tokens"


# --- sequences --------------------------------------------------------------------------------------------------------


class Sequences:
    """Sequences for training (``len``) and those kept apart, in an order that depends on nothing but the files.

    ``name`` (the device's) goes into the order of the draws, so that two devices with the same text draw differently.
    """

    def __init__(self, training: _Stored, apart: _Stored, seq_len: int, name: str, note: str) -> None:
        self._training, self._apart = training, apart
        self.seq_len, self.name, self.note = seq_len, name, note
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return self._training.count

    @property
    def held_out_count(self) -> int:
        """Sequences kept apart."""
        return self._apart.count

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Mini-batch number ``step`` (from 0, counted through the whole run): (inputs, labels), int64 [size, seq_len].

        A pure function of its arguments, the same on every machine: sequences are drawn without replacement in shuffled epochs, the order of
        an epoch seeded by (seed, name, epoch). Raises BadInput where there are fewer sequences than one mini-batch takes.
        """
        if size > len(self):
            raise BadInput(
                f"--batch-size {size}: the text has {len(self)} sequences of {self.seq_len} tokens for training"
            )
        places = range(step * size, (step + 1) * size)
        chosen = [int(self._order(seed, place // len(self))[place % len(self)]) for place in places]
        return self._training.take(chosen)

    def held_out(self, size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The sequences kept apart, always in the same order, in mini-batches of ``size``, from mini-batch ``start`` on; the last may be
        smaller."""
        for first in range(start * size, self._apart.count, size):
            yield self._apart.take(list(range(first, min(first + size, self._apart.count))))

    def _shuffled(self, seed: int, epoch: int) -> np.ndarray[Any, Any]:
        digest = hashlib.sha256(json.dumps([seed, self.name, epoch]).encode()).digest()
        # Raw bits and a stable sort: numpy promises both for all releases, and promises no such thing for its shuffles.
        keys = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(len(self))
        return np.argsort(keys, kind="stable").astype(np.uint32)


@dataclass(frozen=True)
class _Stored:
    """``count`` sequences from ``first`` on. ``labels`` None: they follow from ``ids``."""

    ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    encoder_decoder: bool
    first: int
    count: int
    skipped: int = 0
    """Pairs left out because no token of the completion had room."""

    def take(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        import torch

        rows = self.ids[[self.first + i for i in indices]].astype(np.int64)
        if self.labels is not None:
            inputs, labels = rows, self.labels[[self.first + i for i in indices]].astype(np.int64)
        elif self.encoder_decoder:
            inputs, labels = np.split(rows, 2, axis=1)
        else:
            inputs, labels = rows, rows.copy()
        return torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(labels))


def load(
    path: Path | str,
    tokenizer: Any | None,
    seq_len: int,
    *,
    vocab_size: int,
    text_field: str | None = None,
    held_out: float | Path | str = 0.05,
    encoder_decoder: bool = False,
    name: str = "",
) -> Sequences:
    """Read ``path``: a text file, JSONL (``.jsonl``, ``.json``), a parquet or arrow file, or a folder of them or of ``save_to_disk``.

    ``tokenizer`` None: bytes (see ``Tokens``). ``text_field``: the field with the text; default ``text``, or ``prompt`` and ``completion``
    where those are there and it is not. ``held_out``: the share of sequences kept apart, taken from the end, or a file or folder with
    the text to keep apart; a folder that has a split named validation or test keeps that apart instead of a share.
    Raises BadInput in one line: file, line or row, field, what was expected.
    """
    tokens = Tokens(tokenizer, vocab_size)
    share = None if isinstance(held_out, (str, Path)) else float(held_out)
    if share is not None and not 0 <= share < 1:
        raise BadInput(f"--held-out {held_out}: expected a share from 0 to below 1, or a file")
    sources = find(Path(path))
    everything = _store(sources.training, Path(path), tokens, seq_len, text_field, encoder_decoder)
    other = sources.apart if share is not None and share > 0 else []
    if share is None:
        other = find(Path(held_out)).training  # type: ignore[arg-type]
    if other:
        training = everything
        apart = _store(
            other,
            Path(path) if share is not None else Path(str(held_out)),
            tokens,
            seq_len,
            text_field,
            encoder_decoder,
        )
    else:
        kept = 0 if not share else max(1, round(share * everything.count))
        if kept >= everything.count and kept:
            raise BadInput(
                f"{path}: {everything.count} sequences of {seq_len} tokens are too few to keep {share:g} of them apart"
            )
        training = _part(everything, 0, everything.count - kept)
        apart = _part(everything, everything.count - kept, kept)
    note = f"{training.count} sequences of {seq_len} tokens and {apart.count} kept apart; tokens: {tokens.describe()}"
    if everything.skipped:
        note += f"; {everything.skipped} prompts left no room for a completion, and were left out"
    return Sequences(training, apart, seq_len, name, note)


def _part(stored: _Stored, first: int, count: int) -> _Stored:
    return _Stored(stored.ids, stored.labels, stored.encoder_decoder, first, count)


def _store(
    files: list[Path], asked: Path, tokens: Tokens, seq_len: int, text_field: str | None, encoder_decoder: bool
) -> _Stored:
    """Token ids of all that ``files`` hold, in a file without a name."""
    width = 2 * seq_len if encoder_decoder else seq_len
    pairs: bool | None = None
    with tempfile.TemporaryFile(prefix="card-train-") as ids, tempfile.TemporaryFile(prefix="card-train-") as labels:
        read = skipped = 0
        for where, text in _texts(files, text_field):
            pair = isinstance(text, tuple)
            if pairs is not None and pair != pairs:
                raise BadInput(
                    f"{where}: expected {'a prompt and a completion' if pairs else 'a text'} as in the records before"
                )
            pairs = pair
            try:
                if isinstance(text, tuple):
                    row = _pair(tokens, text, seq_len, encoder_decoder)
                    if row is None:
                        skipped += 1
                        continue
                    ids.write(row[0].tobytes())
                    labels.write(row[1].tobytes())
                else:
                    ids.write(tokens.ids(text).tobytes())
                    if where and tokens.end >= 0:
                        ids.write(np.array([tokens.end], dtype=tokens.dtype).tobytes())
            except ValueError as error:
                raise BadInput(f"{where or asked}: {error}") from None
            except OSError as error:
                raise BadInput(
                    f"{tempfile.gettempdir()}: cannot hold the token ids of {asked}: {error.strerror}"
                ) from None
            read += 1
        ids.flush()
        labels.flush()
        size = os.fstat(ids.fileno()).st_size // np.dtype(tokens.dtype).itemsize
        columns = seq_len if pairs else width
        count = size // columns
        if not count:
            why = f" ({skipped} prompts leave no room for a completion)" if skipped else ""
            raise BadInput(f"{asked}: {size} tokens, expected at least one sequence of {columns}{why}")
        stored = np.memmap(ids, dtype=tokens.dtype, mode="r", shape=(count, columns))
        targets = np.memmap(labels, dtype=np.int32, mode="r", shape=(count, seq_len)) if pairs else None
    return _Stored(stored, targets, encoder_decoder, 0, count, skipped)


def _pair(
    tokens: Tokens, text: tuple[str, str], seq_len: int, encoder_decoder: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """(ids, labels) of a prompt and its completion, each [seq_len]; None where no token of the completion has room."""
    prompt, completion = (tokens.ids(part).astype(np.int64) for part in text)
    if tokens.end >= 0:
        completion = np.append(completion, tokens.end)
    ids = np.full(seq_len, tokens.pad, dtype=np.int64)
    labels = np.full(seq_len, IGNORED, dtype=np.int32)
    if encoder_decoder:
        ids[: len(prompt)] = prompt[:seq_len]
        labels[: len(completion)] = completion[:seq_len]
    else:
        both = np.concatenate([prompt, completion])[:seq_len]
        ids[: len(both)] = both
        labels[len(prompt) : len(both)] = both[len(prompt) :]
    # The first token of a sequence is predicted by nobody, unless a decoder of its own begins with a start token.
    return (ids.astype(tokens.dtype), labels) if (labels[0 if encoder_decoder else 1 :] != IGNORED).any() else None


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Files to read, in order; ``apart``: those of a split named validation or test."""

    training: list[Path]
    apart: list[Path]


_TABLES = (".arrow", ".parquet", ".jsonl", ".json")


def find(path: Path) -> Found:
    """What to read for ``path``. Raises BadInput where there is nothing."""
    if path.is_file():
        return Found([path], [])
    if not path.is_dir():
        raise BadInput(f"{path}: no such file or folder; expected text, JSONL, or a Hugging Face dataset directory")
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or "train" not in names:
            raise BadInput(
                f"{path / 'dataset_dict.json'}: field splits: expected a list with train, found {str(names)[:100]}"
            )
        apart = next((n for n in ("validation", "test") if n in names), None)
        return Found(_saved(path / "train"), _saved(path / apart) if apart else [])
    if (path / "state.json").is_file():
        return Found(_saved(path), [])
    files = sorted(
        p
        for p in [*path.glob("*"), *path.glob("data/*")]
        if p.suffix in (*_TABLES, ".txt") and p.name != "dataset_info.json"
    )
    if not files:
        raise BadInput(
            f"{path}: no text in this folder; expected .txt, .jsonl, .parquet or .arrow, or what save_to_disk writes"
        )
    for kind in ("validation", "valid", "test"):
        apart_files = [p for p in files if p.name.startswith(kind)]
        others = [p for p in files if not p.name.startswith(("validation", "valid", "test"))]
        if apart_files and others:
            return Found(others, apart_files)
    return Found(files, [])


def _saved(folder: Path) -> list[Path]:
    """The files of what ``Dataset.save_to_disk`` wrote."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise BadInput(
            f"{folder / 'state.json'}: a selection of rows by index is not supported; save it with flatten_indices()"
        )
    try:
        files = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise BadInput(f"{folder / 'state.json'}: field _data_files: expected a list of file names") from None
    for file in files:
        if file.parent != folder or not file.is_file():
            raise BadInput(f"{folder / 'state.json'}: field _data_files: {file.name} is not in this folder")
    return files


def _json(path: Path) -> dict[str, Any]:
    from profiler.store import read_json

    if not path.is_file():
        raise BadInput(f"{path}: no such file; expected what save_to_disk writes")
    data, _ = read_json(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return data


_Text: TypeAlias = str | tuple[str, str]


def _texts(files: list[Path], text_field: str | None) -> Iterator[tuple[str, _Text]]:
    """(place of the record, its text or its prompt and completion); of plain text pieces without a place."""
    for path in files:
        try:
            if path.suffix in (".jsonl", ".json"):
                for where, record in _lines(path):
                    yield where, _field(where, record, text_field)
            elif path.suffix in (".parquet", ".arrow"):
                yield from _rows(path, text_field)
            else:
                for piece in _pieces(path):
                    yield "", piece
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None


def _pieces(path: Path) -> Iterator[str]:
    """Plain text in pieces of about a megabyte that end at the end of a line where there is one; the same pieces everywhere."""
    lines, rest = 1, b""
    with path.open("rb") as file:
        while True:
            more = file.read(_CHUNK_BYTES)
            data = rest + more
            if not data:
                return
            end = data.rfind(b"\n") + 1 if more else len(data)
            try:
                text = data[: end or len(data)].decode()
                rest = data[end or len(data) :]
            except UnicodeDecodeError as error:
                if end or not more or len(data) - error.start > 3:
                    line = lines + data.count(b"\n", 0, error.start)
                    raise BadInput(
                        f"{path} line {line}: not UTF-8 text: {error.reason} (byte 0x{data[error.start]:02x})"
                    ) from None
                text, rest = data[: error.start].decode(), data[error.start :]  # a character across two pieces
            lines += text.count("\n")
            yield text


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number in range(1, 2**62):
            raw = file.readline(MOST_LINE_BYTES + 1)
            if not raw:
                return
            where = f"{path} line {number}"
            if len(raw) > MOST_LINE_BYTES:
                raise BadInput(f"{where}: longer than {MOST_LINE_BYTES} bytes; expected one record on each line")
            if not raw.strip():
                continue
            try:
                record = json.loads(raw)
            except RecursionError:
                raise BadInput(f"{where}: nested too deeply") from None
            except ValueError as error:
                raise BadInput(f"{where}: not JSON: {error}; expected one record on each line") from None
            if not isinstance(record, dict):
                raise BadInput(f"{where}: expected an object, found {type(record).__name__}")
            yield where, record


def _rows(path: Path, text_field: str | None) -> Iterator[tuple[str, _Text]]:
    """Rows of a table, some thousands at a time, only the columns that are asked for."""
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        from profiler.profile import MissingHardware

        raise MissingHardware(
            f"{path}: reading it needs the package pyarrow: pip install 'card-profile[train]'"
        ) from None
    try:
        if path.suffix == ".parquet":
            table = pa.parquet.ParquetFile(path)
            columns = _columns(path, table.schema_arrow.names, text_field)
            batches = table.iter_batches(batch_size=1024, columns=list(columns))
        else:
            source = pa.memory_map(str(path))
            try:
                reader = pa.ipc.open_stream(source)
                batches = iter(reader)
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            columns = _columns(path, reader.schema.names, text_field)
        row = 0
        for batch in batches:
            for first in range(0, batch.num_rows, 1024):
                for record in batch.slice(first, 1024).select(list(columns)).to_pylist():
                    row += 1
                    where = f"{path} row {row}"
                    yield where, _field(where, record, columns[0] if len(columns) == 1 else None)
    except pa.ArrowException as error:
        raise BadInput(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def _columns(path: Path, names: list[str], text_field: str | None) -> tuple[str, ...]:
    if (text_field or "text") in names:
        return (text_field or "text",)
    if text_field is None and {"prompt", "completion"} <= set(names):
        return ("prompt", "completion")
    raise BadInput(f"{path}: no field {text_field or 'text'}{_MEANT}; it has {', '.join(names)[:200]}")


_MEANT = " (name the field with the text by --text-field)"


def _field(where: str, record: dict[str, Any], text_field: str | None) -> _Text:
    """The text of a record, or its prompt and completion."""
    wanted = (text_field or "text",)
    if text_field is None and "text" not in record and {"prompt", "completion"} <= record.keys():
        wanted = ("prompt", "completion")  # type: ignore[assignment]
    for name in wanted:
        if name not in record:
            raise BadInput(f"{where}: no field {name}{_MEANT}; it has {', '.join(map(str, record))[:200] or 'none'}")
        if not isinstance(record[name], str):
            raise BadInput(f"{where}: field {name}: expected a string, found {type(record[name]).__name__}")
    values = [record[name] for name in wanted]
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{where}: field {wanted[0]}: half a character (a lone surrogate), expected text") from None
    return values[0] if len(values) == 1 else (values[0], values[1])
