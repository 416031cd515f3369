"""A program of the user's as the load of a sweep."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

from pydantic import TypeAdapter, ValidationError

from profiler.profile import MAX_TEXT, BadInput, Text

_PR_SET_PDEATHSIG = 1


class LoadEnded(BadInput):
    """The load ended before the measurement did."""


def described(command: str) -> str:
    """What a profile calls this load."""
    return f"command: {command}"


def program_of(command: str) -> list[str]:
    """The words of ``command`` as a shell would split them. Raises BadInput where they name no program that can be started, or
    where no profile could hold them: that would else be seen when everything has been measured."""
    try:
        TypeAdapter(Text).validate_python(described(command))
    except ValidationError:
        raise BadInput(
            f"--load-command {command[:60]!r}...: {len(command)} characters, expected UTF-8 of at most {MAX_TEXT - len(described(''))}; "
            "a longer one goes into a script"
        ) from None
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadInput(f"--load-command {command!r}: {error}") from None
    if not words:
        raise BadInput("--load-command: expected a command")
    if shutil.which(words[0]) is None:
        raise BadInput(
            f"--load-command {command!r}: cannot be started: there is no program {words[0]!r}; expected one on the "
            "PATH or with its folder (a shell's line: sh -c '...')"
        )
    return words


@contextlib.contextmanager
def running(command: str) -> Iterator[Callable[[], None]]:
    """Run ``command`` (no shell) as long as the body lasts; the value checks that it still runs, and raises LoadEnded if not.

    What it starts ends with it when the body ends; when this process is killed, the kernel ends the command itself.
    """
    words = program_of(command)
    parent = os.getpid()
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,  # one signal then reaches whatever the command starts
                preexec_fn=(lambda: _ends_with(parent)) if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise BadInput(f"--load-command {command!r}: cannot be started: {error.strerror or error}") from None

        def alive() -> None:
            code = process.poll()
            if code is not None:
                raise LoadEnded(
                    f"--load-command {command!r}: ended with {code} before the measurement did{_last_line(complaints)}; "
                    "expected a load that lasts"
                )

        try:
            yield alive
        finally:
            _end(process)


def _ends_with(parent: int) -> None:
    """In the child: the kernel ends it when its parent dies, even by SIGKILL; one that died before it was asked to is seen here."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, complaints.tell() - 2000))
    lines = complaints.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f" (it said: {said[-1][:300]})" if said else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
            return
