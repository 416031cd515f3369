"""What the setter can set: clock limits in files of the kernel's, and the graphics clock of an NVIDIA GPU.

Imports the standard library, and ``pynvml`` where a target needs it: this is loaded by ``setter.py``, which runs as root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

ALIVE_PATIENCE_S = 0.5
"""A live run keeps its device; the half second is for somebody who only looks."""
_SAME_BOOT_S = 10.0
"""The wall clock is set right by less than that; a boot, its start and a run in it take longer."""
_LIMITS = {"min": ("min_freq", "scaling_min_freq"), "max": ("max_freq", "scaling_max_freq")}

Result = TypeVar("Result")


class Problem(Exception):
    """What stands in the way; ``kind`` for the program, the text for people. ``owner``: the live run whose lock is in the way, in words."""

    def __init__(self, kind: str, text: str, owner: str | None = None) -> None:
        super().__init__(text)
        self.kind, self.owner = kind, owner


class Damaged(Exception):
    """A journal that cannot be believed."""


def read_text(path: str) -> str | None:
    """The text of a small regular file, stripped; None where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.read(fd, 4096).decode(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None
    finally:
        os.close(fd)


def boot_id(root: str) -> str | None:
    """The boot's identity below ``root``, else the real one's: limits and locks do not outlive a boot."""
    name = "proc/sys/kernel/random/boot_id"
    return read_text(os.path.join(root, name)) or read_text("/" + name)


def this_boot(root: str) -> dict[str, Any]:
    """What tells this boot from others, for a journal: its id, when it began by the wall clock, and how long ago that was."""
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {"boot_id": boot_id(root), "boot_began_s": time.time() - up_s, "up_s": up_s}


def booted_since(journal: dict[str, Any], root: str) -> bool:
    """Whether the machine has been booted since ``journal`` was written, as far as that can be told.

    Some containers are given a boot id of their own each time they start, while the card stays locked: a boot that began when the
    journal's did, and has lasted longer, is still the same one.
    """
    now, then = this_boot(root), journal.get("boot_id")
    if now["boot_id"] is None or then is None or now["boot_id"] == then:
        return False
    began, up = journal.get("boot_began_s"), journal.get("up_s")
    if os.path.realpath(root) != "/" or not isinstance(began, float) or not isinstance(up, float):
        return True  # a tree copied from elsewhere has a boot id and no uptime
    # Without a battery the wall clock begins anew with each boot: it alone does not tell.
    return up > now["up_s"] or not abs(began - now["boot_began_s"]) < _SAME_BOOT_S


def os_problem(error: OSError, what: str) -> Problem:
    kinds = {errno.EACCES: "permission", errno.EPERM: "permission", errno.EROFS: "permission"}
    kinds |= {errno.ENOENT: "missing", errno.ENODEV: "missing", errno.ENXIO: "missing"}
    why = "it is mounted read-only (a container?)" if error.errno == errno.EROFS else error.strerror or str(error)
    return Problem(kinds.get(error.errno or 0, "fault"), f"{what}: {why}")


class SysfsClocks:
    """Clock limits in files: one or several nodes with a lowest and a highest clock each."""

    def __init__(self, target: dict[str, Any], root: str) -> None:
        """Raises Damaged for anything but clock limits below ``root``/sys."""
        nodes = target.get("nodes")
        if not isinstance(nodes, list) or not 1 <= len(nodes) <= 4096:
            raise Damaged("target.nodes: expected a list of nodes")
        self.nodes: list[tuple[str, str, float]] = []
        for node in nodes:
            if not isinstance(node, dict):
                raise Damaged("target.nodes: expected objects")
            unit = node.get("unit_hz")
            if isinstance(unit, bool) or not isinstance(unit, (int, float)) or not 1 <= unit <= 1e6:
                raise Damaged("target.nodes.unit_hz: expected a number from 1 to 1e6")
            low, high = (_limit_file(node.get(which), which, root) for which in ("min", "max"))
            if os.path.dirname(low) != os.path.dirname(high):
                raise Damaged("target.nodes: min and max of one node lie in one folder")
            self.nodes.append((low, high, float(unit)))
        self.written: list[list[int] | None] | None = [None] * len(self.nodes)
        """Of each node what its limits hold by our doing: the clock asked for, and what the kernel made of it; None: nothing yet."""
        self.missed = False
        """Whether a node was not there when limits were given back, and may come back with ours."""
        self._held: int | None = None

    def identity(self) -> dict[str, str]:
        return {"kernel": os.uname().release}

    def hold(self) -> None:
        """Exclude runs that keep their journals elsewhere (another user's): the first node's file is locked too."""
        try:
            fd = os.open(self.nodes[0][1], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise os_problem(error, self.nodes[0][1]) from None
        until = time.monotonic() + ALIVE_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                os.close(fd)
                raise Problem("busy", "another run holds it, which keeps its journal in another folder") from None
            except OSError:  # a file system without locks: the lock file alone excludes
                os.close(fd)
                return
            self._held = fd
            return

    def free(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def check_right(self) -> None:
        """Raises Problem (permission) before anything is written."""
        for low, high, _ in self.nodes:
            for path in (low, high):
                try:
                    os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
                except OSError as error:
                    raise os_problem(error, path) from None

    def originals(self) -> list[list[int]]:
        """Limits now, [lowest, highest] of each node in the file's own unit."""
        found = [(self._value(low), self._value(high)) for low, high, _ in self.nodes]
        # They may move between two reads; a highest of 0 is no limit.
        return [[min(least, most or least), most] for least, most in found]

    def probe(self, range_hz: list[float], originals: list[list[int]]) -> bool:
        """Try the right; the answer is whether something is locked now. What is there is written back, so nothing is."""
        self.give_back(None, originals)
        return False

    def lock(self, hz: float) -> dict[str, Any]:
        """Both limits of every node to one clock; the answer is what the kernel made of it (it clips to the hardware's range)."""
        became = []
        assert self.written is not None
        for number, (low, high, unit) in enumerate(self.nodes):
            if _gone(high):
                continue
            value = round(hz / unit)
            self._set(low, high, value, value)
            now = [self._value(low), self._value(high)]
            self.written[number] = [value, *now]
            became.append([limit * unit for limit in now])
        if not became:
            raise Problem("missing", f"{self.nodes[0][1]} is gone")
        return {"became_hz": became}

    def give_back(
        self,
        restore_hz: list[float] | None,
        originals: list[list[int]],
        written: list[list[int] | None] | None = None,
    ) -> list[str]:
        """Limits as they were, or as the user said, of every node that lets it; what somebody else has set since is left.

        ``written`` is as the attribute; None where all is ours, whatever it is. Returns what to tell: which nodes are gone
        (processors taken offline), which limits are left.
        """
        told, stayed = [], []
        rows = zip(self.nodes, originals, [[]] * len(self.nodes) if written is None else written, strict=True)
        for (low, high, unit), (least, most), ours in rows:
            if ours is None:
                continue
            if restore_hz is not None:
                least, most = round(restore_hz[0] / unit), round(restore_hz[1] / unit)
            try:
                if not _gone(high):
                    told += self._put_back(low, high, least, most, ours)
            except Problem as problem:
                if not _gone(high):  # it may have gone just now
                    stayed.append(problem)
            told += _gone(high)
        self.missed = any(_gone(high) for _, high, _ in self.nodes)
        if stayed:
            raise Problem(stayed[0].kind, "; ".join(map(str, stayed)))
        return told

    def _put_back(self, low: str, high: str, least: int, most: int, ours: list[int]) -> list[str]:
        """Both limits of one node; one that holds none of ``ours`` (where that is known) is somebody else's: which are left, in words.

        Heat lowers limits too, and ours would lie below: so they are written all the same, and what was there comes back only
        where our writing has replaced it. What heat holds down no writing moves.
        """
        was = (self._value(low), self._value(high)) if ours else (least, most)
        self._set(low, high, least, most)
        # A highest limit below our lowest pulls that down with it.
        pulled = was[0] == was[1] < max(ours, default=0)
        lowest_chosen = was[0] not in (*ours, least) and not pulled and self._value(low) == least
        highest_chosen = was[1] not in (*ours, most) and self._value(high) == most
        if not lowest_chosen and not highest_chosen:
            return []
        most = was[1] if highest_chosen else most
        least = was[0] if lowest_chosen else least
        least = min(least, most or least)
        self._set(low, high, least, most)
        chosen = [(low, least)] * lowest_chosen + [(high, most)] * highest_chosen
        return [f"{path} was set to {value} by somebody else meanwhile, and is left so" for path, value in chosen]

    def _value(self, path: str) -> int:
        until = time.monotonic() + 1.0
        while True:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    return int(os.read(fd, 4096).split()[0])
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY) or time.monotonic() > until:
                    raise os_problem(error, path) from None
            except (ValueError, IndexError):  # half written (a copied tree), or no number at all
                if time.monotonic() > until:
                    raise Problem("fault", f"{path}: expected a clock") from None
            time.sleep(0.02)

    def _set(self, low: str, high: str, least: int, most: int) -> None:
        """Raise the highest first when going up, lower the lowest first when going down: older kernels refuse min > max."""
        try:
            now = self._value(high) or None  # older kernels write 0 where there is no limit
        except Problem as problem:
            if problem.kind != "fault":
                raise
            now = None
        upwards = now is not None and (most == 0 or most >= now)
        steps = [(high, most), (low, least)] if upwards else [(low, least), (high, most)]
        try:
            for path, value in steps:
                self._write(path, value)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise os_problem(error, path) from None
            try:  # somebody moved the limits in between: the other order
                for path, value in [*reversed(steps), *steps]:
                    self._write(path, value)
            except OSError as again:
                raise os_problem(again, f"{path} <- {value}") from None

    @staticmethod
    def _write(path: str, value: int) -> None:
        """One write, as the kernel wants it. In a copied tree the file is a plain one: no longer tail of the old text stays."""
        text = b"%d\n" % value
        until = time.monotonic() + 1.0
        while True:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                old = os.pread(fd, 4096, 0)
                # A file of sysfs claims 4096 bytes whatever it holds, and wants no padding.
                plain = stat.S_ISREG(os.fstat(fd).st_mode) and os.fstat(fd).st_size == len(old)
                os.pwrite(fd, text.ljust(len(old), b"\n") if plain else text, 0)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY) or time.monotonic() > until:
                    raise
            finally:
                os.close(fd)
            time.sleep(0.02)


def _gone(limit: str) -> list[str]:
    """Why nobody has this limit any more, if so. Processors that are all offline keep their group's folder, which then refuses everything."""
    folder = os.path.dirname(limit)
    if not os.path.exists(limit):
        return [f"{folder} is gone"]
    processors = os.path.join(folder, "affected_cpus")
    if os.path.exists(processors) and not read_text(processors):
        return [f"{folder}: its processors are offline, and may come back with the limits of the run"]
    return []


def _limit_file(path: object, which: str, root: str) -> str:
    """``path`` if it is a clock limit below ``root``/sys, wherever links lead, else Damaged."""
    if not isinstance(path, str) or "\0" in path or len(path) > 4000:
        raise Damaged(f"target.nodes.{which}: expected a path")
    base = os.path.join(os.path.realpath(root), "sys") + os.sep
    given = os.path.join(os.path.realpath(root), os.path.relpath(path, root)) if path.startswith("/") else ""
    real = os.path.realpath(path)
    if os.path.normpath(path) != path or not given.startswith(base) or not real.startswith(base):
        raise Damaged(f"target.nodes.{which}: {path!r} is not below {base}")
    if os.path.basename(path) not in _LIMITS[which] or os.path.basename(real) not in _LIMITS[which]:
        raise Damaged(f"target.nodes.{which}: {path!r} is no clock limit")
    return real


_NVML_SAYS = {
    1: ("fault", "NVML is not initialised"),
    2: ("fault", "NVML calls the clock an invalid argument"),
    3: ("unsupported", "this GPU or its driver cannot lock clocks (Volta and newer can)"),
    4: ("permission", "the driver refuses (NVML error 4)"),
    6: ("missing", "NVML knows no GPU of this UUID"),
    9: ("missing", "the NVIDIA driver is not loaded"),
    10: ("fault", "the driver did not answer in time"),
    12: ("missing", "the driver's library libnvidia-ml.so.1 is not found"),
    13: ("unsupported", "this driver is too old to lock clocks (no such function)"),
    15: ("missing", "the GPU is lost (fallen off the bus): it comes back with a reboot"),
    16: ("missing", "the GPU needs a reset first"),
    18: ("missing", "driver and library are of different versions: reload the driver or reboot"),
    24: ("unsupported", "the driver does not support this clock"),
}


class NvmlClocks:
    """The graphics clock of an NVIDIA GPU. What was locked before cannot be read, so there are no originals."""

    def __init__(self, target: dict[str, Any], folder_of_pynvml: str | None) -> None:
        uuid = target.get("uuid")
        if not isinstance(uuid, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,80}", uuid):
            raise Damaged("target.uuid: expected a UUID")
        self._uuid, self._folder = uuid, folder_of_pynvml
        self._nvml: Any = None
        self._handle: Any = None

    def _call(self, action: Callable[[Any], Result], unsupported: str | None = None) -> Result:
        """What NVML answers. Raises Problem, which says ``unsupported`` where what is not supported is no lock."""
        try:
            if self._nvml is None:
                self._nvml = _pynvml(self._folder)
                self._nvml.nvmlInit()
            if self._handle is None:
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid.encode())
            return action(self._nvml)
        except Exception as error:
            value = getattr(error, "value", None)
            if not isinstance(value, int):
                raise
            kind, text = _NVML_SAYS.get(value, ("fault", f"NVML error {value}: {error}"))
            if kind == "unsupported" and unsupported is not None:
                text = f"{unsupported} (NVML error {value}: {error})"
            raise Problem(kind, text) from None

    def identity(self) -> dict[str, str]:
        version = self._call(_driver_version, unsupported="the driver's version cannot be read")
        return {"driver": version.decode(errors="replace") if isinstance(version, bytes) else str(version)}

    def hold(self) -> None:
        """The lock file alone excludes: locking needs root, and root has one folder."""

    def free(self) -> None:
        """Nothing is held."""

    def check_right(self) -> None:
        """Only trying tells: see ``probe``."""
        self._call(lambda nvml: None)

    def originals(self) -> list[list[int]]:
        return []

    written = None
    """What is locked cannot be read."""
    missed = False

    def probe(self, range_hz: list[float], originals: list[list[int]]) -> bool:
        """Try the right; the answer is whether something is locked now. The whole range is: it holds no clock down or up."""
        self._set(range_hz)  # error 4 shows here
        return True

    def lock(self, hz: float) -> dict[str, Any]:
        self._set([hz, hz])
        return {}

    def give_back(self, restore_hz: list[float] | None, originals: list[list[int]], written: None = None) -> list[str]:
        if restore_hz is not None:
            self._set(restore_hz)
        else:
            self._call(lambda nvml: nvml.nvmlDeviceResetGpuLockedClocks(self._handle))
        return []

    def _set(self, hz: list[float]) -> None:
        low, high = (max(1, round(value / 1e6)) for value in hz)
        self._call(lambda nvml: nvml.nvmlDeviceSetGpuLockedClocks(self._handle, low, high))


def _driver_version(nvml: Any) -> str | bytes:
    try:
        version: str | bytes = nvml.nvmlSystemGetDriverVersion()
    except UnicodeDecodeError as error:  # pynvml decodes strictly; the bytes are in the error
        version = error.object
    return version


def _pynvml(folder: str | None) -> Any:
    with contextlib.suppress(ImportError):
        import pynvml

        return pynvml
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)  # an isolated interpreter does not see the user's own packages
    try:
        import pynvml
    except ImportError:
        raise Problem("missing", "the package nvidia-ml-py is missing: pip install nvidia-ml-py") from None
    return pynvml


def backend_of(target: object, root: str, folder_of_pynvml: str | None) -> Any:
    """What sets this target. Raises Damaged for a target that no device has."""
    if isinstance(target, dict) and target.get("kind") == "nvml":
        return NvmlClocks(target, folder_of_pynvml)
    if isinstance(target, dict) and target.get("kind") == "sysfs":
        return SysfsClocks(target, root)
    raise Damaged("target.kind: expected nvml or sysfs")
