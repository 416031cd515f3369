"""Real text for figures that depend on it: from a file, or what every Python brings along; and the tokenizer that a model has.

The text that is there without a file is Python's own language reference, as its interactive help has it (``pydoc_data.topics``): about half a
million characters of English prose and examples. It differs a little between versions of Python, so its digest is told.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.profile import BadInput
from profiler.workload.pretrained import libraries, presets, quiet, reason_of

MOST_CHARACTERS = 4_000_000
"""Of a longer text the first so many are used."""


@dataclass(frozen=True)
class Passage:
    """A text, and what to call it."""

    text: str
    name: str

    @property
    def described(self) -> str:
        """Its name and digest, for a profile."""
        return f"{self.name}; {len(self.text):,} characters, SHA-256 {self.digest}"

    @property
    def digest(self) -> str:
        """SHA-256 of the text in UTF-8, the first 16 digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_text(path: Path | None) -> Passage:
    """The text of a file in UTF-8; None: Python's language reference. Raises BadInput, naming ``--text``, where it cannot be read."""
    if path is None:
        from pydoc_data.topics import topics  # type: ignore[import-not-found, import-untyped, unused-ignore]

        text = "\n\n".join(topics[key] for key in sorted(topics))
        return Passage(text, f"language reference of Python {platform.python_version()} (pydoc_data.topics)")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        reason = "not a text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise BadInput(f"--text {path}: {reason}; expected a text file") from None
    return Passage(text, path.name)


def tokenizer_of(model: str) -> Any | None:
    """The tokenizer that lies beside a model's weights (directory or GGUF file) or in the local cache of its id; None for a preset.

    Nothing is fetched and no code that comes with it is run. Raises BadInput where there is none.
    """
    if model in presets():
        return None
    libraries()
    from transformers import AutoTokenizer

    path = Path(os.path.expanduser(model))
    where, options = str(path) if path.exists() else model, {}
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        path = files[0] if len(files) == 1 else path
    if path.is_file():
        where, options = str(path.parent), {"gguf_file": path.name}
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise BadInput(f"--model {model}: no tokenizer to read the text with: {reason_of(error, False)}") from None


def token_ids(passage: Passage, model: str, vocab_size: int) -> list[int]:
    """Token ids of the passage for ``model``; for a preset, which has no tokenizer, the text's bytes modulo the vocabulary."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        return [byte % vocab_size for byte in passage.text.encode()]
    ids: list[int] = tokenizer(passage.text, add_special_tokens=False, verbose=False).input_ids
    if ids and max(ids) >= vocab_size:
        raise BadInput(f"--model {model}: its tokenizer gives the id {max(ids)}, the model knows 0..{vocab_size - 1}")
    return ids
