"""The state of a run on disk: whole or absent, whatever happens while it is written.

    RUN/lock                              held by the one process that uses the folder
    RUN/state-00000012/                   made under another name, flushed to the disk, then renamed; the last two are kept
        adapters.safetensors              all adapters after the last merged round (Eq. 6), by PEFT's names
        moments.safetensors               AdamW's moments, where they travel
        state.json                        RunState, with a digest of everything
    RUN/history.jsonl                     one line a merged turn; the state says how long it is, so that an unfinished line is cut off
    RUN/adapter/                          the same adapters as a plain PEFT checkpoint

A state is valid if every digest in it is right. The newest valid one is the run's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from profiler.profile import BadInput
from profiler.store import read_bytes, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
"""States on disk: the newest, and the one before it in case that the newest cannot be read."""

_MOST_JSON_BYTES = 16 * 1024 * 1024
_STATE = re.compile(r"state-(\d{8,})")

Count = Annotated[int, Field(ge=0, le=2**53)]


class RunState(BaseModel):
    """Where a run stands: everything that the server needs to go on, beside adapters and moments."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    run: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    round: Count = Field(default=1, description="The round under way, from 1")
    next_device: Count = Field(default=0, description="Whose turn it is, an index into the devices in their order")
    trained: bool = Field(default=False, description="Whether a turn of this round was merged")
    turns: Count = Field(default=0, description="Turns merged so far")
    lost: Count = Field(default=0, description="Turns lost so far, as the last merged turn knew")
    attempts: Count = Field(
        default=0, description="Attempts at turns so far, the lost ones too: numbers are never used twice"
    )
    steps: dict[str, Count] = Field(
        default_factory=dict, description="Mini-batches that each device has drawn in merged turns"
    )
    optimizer_steps: Count = Field(default=0, description="Steps that the moments have seen")
    first_loss: float | None = None
    last_loss: float | None = None
    held_out_before: float | None = Field(default=None, description="Loss on held-out text before the first round")
    held_out_after: float | None = Field(default=None, description="The same after the last round")
    finished: bool = False
    told: list[str] = Field(
        default_factory=list, description="Devices that were told of the end, or were away for too long"
    )
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, description="What was asked for, to refuse a resume with other options"
    )


class _Member(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Count
    sha256: str


class _Record(BaseModel):
    """``state.json``. ``sha256`` is over all other fields, as JSON with sorted keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["card-train-state/1"] = "card-train-state/1"
    state: RunState
    history_bytes: Count
    files: dict[str, _Member]
    sha256: str = ""

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True).encode()).hexdigest()


class RunFolder:
    """The folder of one run, locked for this process while it is open (a context manager).

    ``peft_config``: the content of ``adapter/adapter_config.json`` (see ``Half.peft_config``); None: no ``adapter/`` is written.
    ``say`` gets one line for each thing that was found damaged. Raises BadInput where another process has the folder, or it cannot be written.
    """

    def __init__(
        self, path: Path | str, peft_config: Mapping[str, Any] | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.path = Path(path)
        self.peft_config = peft_config
        self._say = say or (lambda _line: None)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 20, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise BadInput(f"{self.path}: in use by another run (process {holder or 'unknown'})") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._sweep()
        states = self._states()
        self._next = (states[0][0] if states else 0) + 1
        self._read = not states
        self._history_bytes = 0

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back."""
        if self._lock >= 0:
            os.close(self._lock)  # which lets go of the lock
            self._lock = -1

    # --- writing -----------------------------------------------------------------------------------------------------

    def save(
        self,
        state: RunState,
        adapters: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Make this the run's state. When it returns the state is on the disk; if it is cut short the state before still is.

        ``history``: rows to add to the run's history, one JSON object each. Raises BadInput where the disk refuses.
        """
        from safetensors.torch import save

        assert self._lock >= 0, "the folder was closed"
        if not self._read:
            self.latest()  # so that rows of the history which no state knows of are cut off
        packed = {"adapters.safetensors": save(dict(adapters), metadata={"format": "pt"})}
        if moments:
            packed["moments.safetensors"] = save(dict(moments), metadata={"format": "pt"})
        number, self._next = self._next, self._next + 1
        fresh = self.path / f".new-{number:08d}"
        try:
            history_bytes = self._append(history)
            members = {n: _Member(bytes=len(b), sha256=hashlib.sha256(b).hexdigest()) for n, b in packed.items()}
            record = _Record(state=state, history_bytes=history_bytes, files=members)
            record.sha256 = record.digest()
            packed["state.json"] = record.model_dump_json(indent=1).encode() + b"\n"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            for name, data in packed.items():
                _write(fresh / name, data)
            _flush_folder(fresh)
            fresh.rename(self.path / f"state-{number:08d}")
            _flush_folder(self.path)
        except BaseException as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise BadInput(f"{self.path}: the state of the run cannot be written: {error.strerror or error}") from None
        self._history_bytes = history_bytes
        self._write_adapter(packed["adapters.safetensors"])
        for _, old in self._states()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _sweep(self) -> None:
        """Take away what a process left that was killed while it wrote: states and files that never got their names."""
        for leftover in self.path.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in (self.path, self.path / "adapter"):
            for file in folder.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    file.unlink()

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add rows after those that the last state knows of; the length of the history then."""
        if not rows and self._history_size() == self._history_bytes:
            return self._history_bytes
        text = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows).encode()
        with (self.path / "history.jsonl").open("ab") as file:
            file.truncate(self._history_bytes)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return self._history_bytes + len(text)

    def _write_adapter(self, adapters: bytes) -> None:
        """The PEFT checkpoint. Each of its files is replaced at once, and the configuration is the same for the whole run."""
        if self.peft_config is None:
            return
        folder = self.path / "adapter"
        config = json.dumps(dict(self.peft_config), indent=2, sort_keys=True).encode() + b"\n"
        if not (folder / "adapter_config.json").is_file() or (folder / "adapter_config.json").read_bytes() != config:
            write_atomically(folder / "adapter_config.json", config)
        write_atomically(folder / "adapter_model.safetensors", adapters)

    # --- reading -----------------------------------------------------------------------------------------------------

    def latest(self) -> tuple[RunState, dict[str, Tensor], dict[str, Tensor]] | None:
        """The newest whole state: (state, adapters, moments); None in a folder without any.

        A damaged one is told, set aside as ``damaged-N``, and the one before is taken; the history is cut to what that one knew, and
        ``adapter/`` is made to hold its adapters. Raises BadInput where there are states and none is whole.
        """
        from safetensors.torch import load

        found = self._states()
        reasons = []
        for _, folder in found:
            try:
                record, data = _read(folder)
            except (OSError, BadInput, ValidationError, ValueError) as error:
                reasons.append(f"{folder}: {' '.join(str(error).split())[:200]}")
                continue
            for reason, (bad, damaged) in zip(reasons, found, strict=False):
                self._say(f"damaged, the state before it is taken: {reason}")
                aside = self.path / f"damaged-{bad:08d}"
                shutil.rmtree(aside, ignore_errors=True)
                damaged.rename(aside)
            adapters = load(data["adapters.safetensors"])
            moments = load(data["moments.safetensors"]) if "moments.safetensors" in data else {}
            if self._history_size() < record.history_bytes:
                self._say(f"{self.path / 'history.jsonl'}: rows are missing; the run goes on without them")
            self._history_bytes = min(record.history_bytes, self._history_size())
            try:
                self._append(())
                current = self.path / "adapter" / "adapter_model.safetensors"
                if not current.is_file() or current.read_bytes() != data["adapters.safetensors"]:
                    self._write_adapter(data["adapters.safetensors"])
            except OSError as error:
                raise BadInput(f"{self.path}: cannot be written: {error.strerror or error}") from None
            self._read = True
            return record.state, adapters, moments
        if reasons:
            raise BadInput(f"{self.path}: no whole state of the run; {reasons[0]}")
        return None

    def history(self) -> Iterator[dict[str, Any]]:
        """The rows that belong to the run's state, the oldest first, one at a time."""
        try:
            with (self.path / "history.jsonl").open("rb") as file:
                left = self._history_bytes
                for line in file:
                    left -= len(line)
                    if left < 0:
                        return
                    try:
                        row = json.loads(line)
                    except ValueError:
                        raise BadInput(f"{self.path / 'history.jsonl'}: damaged: a line is not JSON") from None
                    yield row
        except FileNotFoundError:
            return

    def _states(self) -> list[tuple[int, Path]]:
        """(number, folder) of every state, the newest first."""
        found = [(int(m[1]), p) for p in self.path.iterdir() if (m := _STATE.fullmatch(p.name))]
        return sorted(found, reverse=True)

    def _history_size(self) -> int:
        try:
            return (self.path / "history.jsonl").stat().st_size
        except FileNotFoundError:
            return 0


def _read(folder: Path) -> tuple[_Record, dict[str, bytes]]:
    """A state and the bytes of its files, every digest checked. Raises OSError, ValidationError or BadInput."""
    record = _Record.model_validate_json(read_bytes(folder / "state.json", _MOST_JSON_BYTES, "the state of a run"))
    if record.sha256 != record.digest():
        raise BadInput("state.json does not have the digest that it says")
    if not {"adapters.safetensors"} <= record.files.keys() <= {"adapters.safetensors", "moments.safetensors"}:
        raise BadInput(f"files are {', '.join(record.files)}")
    data = {}
    for name, member in record.files.items():
        data[name] = read_bytes(folder / name, member.bytes, "what was written")
        if len(data[name]) != member.bytes or hashlib.sha256(data[name]).hexdigest() != member.sha256:
            raise BadInput(f"{name} does not have the digest that state.json says")
    return record, data


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make names in a folder durable; not every file system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
