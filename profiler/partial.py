"""What an interrupted run has measured so far, kept beside the profile until the run is complete.

The file is called ``.NAME.json.partial``, so that no fleet takes it for a profile. It bears the plan it belongs to (device,
workload, clocks, versions); a run with another plan does not resume from it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from profiler.profile import BadInput
from profiler.store import read_json, write_atomically

FORMAT = "card-profile-partial/1"


@contextlib.contextmanager
def claimed(profile_path: Path) -> Iterator[None]:
    """This profile is ours to write while the body runs. Raises BadInput where another run of this machine has claimed it.

    The claim is a socket in Linux' abstract namespace: it needs no file and is gone with its process, however that ends.
    """
    name = hashlib.sha256(os.fsencode(profile_path.resolve())).hexdigest()
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            if sys.platform == "linux":
                claim.bind(f"\0card-profile/{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise BadInput(
                f"--output {profile_path}: another run is writing this profile; wait for it, or name another file"
            ) from None
        yield


def _differing(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*then, *now} if then.get(key) != now.get(key))


class Partial:
    """Results by stage name. Every ``put`` is on disk, whole, before it returns."""

    def __init__(self, profile_path: Path, plan: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = profile_path.with_name(f".{profile_path.name}.partial")
        self._plan = json.loads(json.dumps(plan))
        self._stages: dict[str, Any] = {}
        self.ignored: str | None = None
        """Why an older interrupted run was not resumed, for the user."""
        if self.path.exists():
            if fresh:
                self.ignored = "an interrupted run was there; --fresh starts again"
            else:
                self._read()

    def _read(self) -> None:
        try:
            data, _ = read_json(self.path)
            whole = isinstance(data, dict) and all(isinstance(data.get(key), dict) for key in ("plan", "stages"))
            if not whole or data.get("format") != FORMAT:
                raise BadInput(f"{self.path}: not a record of an interrupted run")
        except BadInput as error:
            self.ignored = f"an interrupted run cannot be resumed ({error}); starting again"
            return
        differing = _differing(data["plan"], self._plan)
        if differing:
            told = []
            for key in differing:
                then, now = data["plan"].get(key), self._plan.get(key)
                both = isinstance(then, dict) and isinstance(now, dict)
                told.append(f"{key}: {', '.join(_differing(then, now))}" if both else key)
            self.ignored = f"an interrupted run was there with other settings ({'; '.join(told)}); starting again"
            return
        self._stages = data["stages"]

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def __len__(self) -> int:
        return len(self._stages)

    def get(self, stage: str) -> Any:
        """The JSON value kept for ``stage``; KeyError if there is none."""
        return self._stages[stage]

    def put(self, stage: str, value: Any) -> None:
        """Keep a JSON value. Raises BadInput when the folder cannot be written."""
        self._stages[stage] = value
        data = {"format": FORMAT, "plan": self._plan, "stages": self._stages}
        write_atomically(self.path, json.dumps(data, allow_nan=False).encode())

    def discard(self) -> None:
        """The run is complete: its profile is on disk."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
