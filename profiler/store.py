"""Read and write documents, profiles above all: whole or not at all, validated on the way in and on the way out."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from profiler import __version__
from profiler.profile import FORMAT, BadInput, Profile

D = TypeVar("D", bound=BaseModel)

MAX_PROFILE_BYTES = 64 * 1024 * 1024
"""A profile is a few hundred kilobytes; anything far larger is refused unread."""


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that a crash at any moment leaves the old file or the new one, whole.

    A link is followed, a file that is there keeps its mode and, where that may be set, its owner; a pipe or a device is written to as it is.
    Raises BadInput when the folder cannot be written.
    """
    before = None
    with contextlib.suppress(OSError):
        before = os.stat(path)
    target = Path(os.path.realpath(path))
    try:
        if before is not None and not stat.S_ISREG(before.st_mode) and not stat.S_ISDIR(before.st_mode):
            path.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a profile is as readable as any new file of this user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask if before is None else stat.S_IMODE(before.st_mode) & 0o777)
        if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(OSError):
                os.chown(temporary, before.st_uid, before.st_gid)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None
        raise
    with contextlib.suppress(OSError):  # makes the rename itself durable; not every file system allows it
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(profile: Profile, path: Path) -> None:
    """Write ``profile`` to ``path`` atomically. It is validated again, so a file that cannot be read back is never written."""
    text = profile.model_dump_json(indent=1, exclude_none=True)
    Profile.model_validate_json(text)
    write_atomically(path, text.encode() + b"\n")


def read_bytes(path: Path, most_bytes: int, expected: str) -> bytes:
    """All of a regular file of at most ``most_bytes``; a larger one is refused unread.

    ``expected`` says in the message what the file should have been ("a profile"). Raises BadInput where it is larger, OSError where
    it cannot be read.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = b"" if size > most_bytes else file.read(most_bytes + 1)
    found = max(size, len(raw))
    if found > most_bytes:
        raise BadInput(f"{path}: {found} bytes, expected at most {most_bytes} for {expected}")
    return raw


def _open(path: Path) -> BinaryIO:
    """Open a regular file to read. Raises OSError for a folder, and for a pipe or a device, which may never end or never begin."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(handle, "rb")


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a figure")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once each: of two figures under one name nobody can say which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"field {next(key for key in keys if keys.count(key) > 1)[:60]!r} stands there twice")
    return found


def read_json(path: Path) -> tuple[Any, bytes]:
    """Parse one JSON file with a bound on its size: the value and its bytes. Raises BadInput.

    NaN, Infinity and a field that stands twice in one object are refused. A byte order mark is no part of the value.
    """
    try:
        raw = read_bytes(path, MAX_PROFILE_BYTES, "a profile").removeprefix(codecs.BOM_UTF8)
        return json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats), raw
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise BadInput(f"{path}: not a profile: nested too deeply") from None
    except ValueError as error:
        raise BadInput(f"{path}: not valid JSON: {error}") from None


def read_document(path: Path, model: type[D], form: str) -> D:
    """Read and validate a JSON document whose field ``format`` is ``form``. Raises BadInput naming the file, the field and what was expected."""
    data, raw = read_json(path)
    if not isinstance(data, dict) or data.get("format") != form:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        said = f'{path}: field format is {str(found)[:60]!r}, expected "{form}"'
        if isinstance(found, str) and found.startswith(form.partition("/")[0] + "/"):
            said += f": {_made_by(data) or 'made by another version of this toolkit'}; upgrade this one, or make the file again here"
        raise BadInput(said)
    try:
        # strict: a string that looks like a number is not one
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        where = ".".join(str(part) for part in first["loc"])
        tail = f" (and {more} more)" if more else ""
        said = first["msg"].removeprefix("Value error, ")  # ours name the field themselves where they span several
        if first["type"] == "extra_forbidden":
            made_by = _made_by(data)
            said += f": unknown to version {__version__} of this toolkit" if made_by is None else f": {made_by}"
            said += "; remove the field, or upgrade if a newer version wrote it"
        found = first["input"]
        if (
            isinstance(found, (int, float, str))
            and not isinstance(found, bool)
            and first["type"] not in ("missing", "extra_forbidden")
        ):
            where += f" is {str(found)[:60]!r}" if isinstance(found, str) else f" is {found:g}"
        raise BadInput(f"{path}: {f'field {where}: ' if where else ''}{said}{tail}") from None


def _made_by(data: dict[str, Any]) -> str | None:
    """Which other version of the toolkit made a document, where it tells."""
    version = data.get("toolkit_version")
    if not isinstance(version, str) or version == __version__:
        return None
    return f"made by version {version[:20]} of this toolkit, this is {__version__}"


def document_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def load(path: Path) -> Profile:
    """Read and validate one profile. Raises BadInput naming the file, the field and what was expected."""
    return read_document(path, Profile, FORMAT)


def profile_paths(folder: Path) -> list[Path]:
    """The profiles of a folder (not of its subfolders), by file name. Raises BadInput where there are none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: not a folder; expected a folder of profiles")
    paths = sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))
    if not paths:
        below = sorted({str(p.parent) for p in folder.glob("*/*.json")})
        hint = f"; there are fleets in {', '.join(below)}" if below else ""
        left = sorted(p.name for p in folder.glob(".*.json.partial"))
        if left:
            raise BadInput(
                f"{folder}: no profiles here{hint}, but what an interrupted run has kept ({', '.join(left)}): the same "
                "'card-profile run' command goes on from there"
            )
        raise BadInput(f"{folder}: no profiles here{hint}; make one with 'card-profile run --device cpu'")
    return paths


def load_fleet(folder: Path | str) -> list[Profile]:
    """Read every profile of a folder. Raises BadInput for other JSON in it and for a name used twice."""
    fleet: dict[str, tuple[Path, Profile]] = {}
    for path in profile_paths(Path(folder)):
        profile = load(path)
        if profile.name in fleet:
            raise BadInput(
                f"{path}: field name: {profile.name!r} is already used by {fleet[profile.name][0]}; two machines of a kind are "
                "told apart with 'card-profile run --name NAME'"
            )
        fleet[profile.name] = (path, profile)
    return [profile for _, profile in fleet.values()]


def schema() -> dict[str, Any]:
    """The JSON schema that ``card-profile schema`` prints."""
    return document_schema(Profile)
