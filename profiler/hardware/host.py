"""What devices of the real machine share: the kernel's files under one root, and a thread that reads sensors."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from profiler.hardware.device import Reading
from profiler.profile import MissingHardware


def sysfs_root() -> Path:
    """Where /sys and /proc lie: the environment variable CARD_SYSFS_ROOT (a copied tree), else ``/``."""
    return Path(os.environ.get("CARD_SYSFS_ROOT") or "/")


def inside(root: Path, name: str) -> Path:
    """``root/name`` with its links followed as they are meant under ``root``: an absolute link starts there, not at ``/``."""
    path = root / name
    for _ in range(20 if root != Path("/") else 0):
        try:
            target = os.readlink(path)
        except OSError:
            break
        path = root / target.lstrip("/") if os.path.isabs(target) else Path(os.path.normpath(path.parent / target))
    return path


def _opened(path: Path) -> io.FileIO:
    """A regular file, opened to read. Raises OSError, for a pipe too, on which a copied tree would else wait for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return io.FileIO(handle)


def read_text(path: Path) -> str | None:
    """The file's text without white space and NULs at its ends; None where it cannot be read (any read may fail on sysfs)."""
    try:
        with _opened(path) as file:
            return file.readall().decode(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None


def listed(folder: Path, pattern: str) -> list[Path]:
    """What is there by that pattern, sorted; nothing where the folder cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def read_number(path: Path) -> float | None:
    """The file's text as a number, else None."""
    text = read_text(path)
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def cgroup_limit_bytes(root: Path) -> int | None:
    """The smallest memory limit of the control groups that this process is in; None where there is none."""
    limits = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if number == "0" and not controllers:
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            limit = read_number(base.joinpath(*parts[:depth]) / file)
            # Version 1 writes "no limit" as a number near 2^63.
            if limit is not None and 0 < limit < 2**60:
                limits.append(int(limit))
    return min(limits, default=None)


class KeptOpen:
    """A kernel file with one number, opened at once: often only root may open it, and a run under sudo does not stay root.

    ``refused`` says that this process had no right to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = False
        self._opened: io.FileIO | None = None
        try:
            self._opened = _opened(path)
        except OSError as error:
            self.refused = isinstance(error, PermissionError)

    def read(self) -> float | None:
        """The number now; None where the file does not answer."""
        value = read_number(self.path)
        if value is None and self._opened is not None:
            try:
                value = float(os.pread(self._opened.fileno(), 64, 0))
            except (OSError, ValueError):
                return None
        return value


def refuse_change(name: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Raises MissingHardware where a setting of the device ``name`` is no longer what it was; one that is not told now is no change."""
    for key, value in before.items():
        if now.get(key, value) != value:
            raise MissingHardware(
                f"{name}: {key} changed while we measured, from {value} to {now[key]}; what was measured "
                "under the old one is kept: set it back and run again, or start anew with --fresh"
            )


class WallTime:
    """The real clock (``device.Timebase``)."""

    def now_s(self) -> float:
        return time.perf_counter()

    def wait(self, seconds_s: float) -> None:
        time.sleep(max(0.0, seconds_s))

    @contextmanager
    def watching(self, read: Callable[[], Reading], period_s: float) -> Iterator[list[Reading]]:
        """Call ``read`` every ``period_s`` in a thread while the body runs; the yielded list grows.

        A fault in ``read`` ends the watching and is raised when the body has ended.
        """
        readings: list[Reading] = []
        faults: list[Exception] = []
        stop = threading.Event()

        def watch() -> None:
            due = time.perf_counter() + period_s
            while not stop.wait(max(0.0, due - time.perf_counter())):
                try:
                    readings.append(read())
                except Exception as error:
                    faults.append(error)
                    return
                due = max(due + period_s, time.perf_counter())

        thread = threading.Thread(target=watch, name="sensors", daemon=True)
        thread.start()
        try:
            yield readings
        finally:
            stop.set()
            thread.join()
        if faults:
            raise faults[0]
