"""The small program that sets clocks, and gives them back when whoever asked for them is gone.

It runs as a process of its own (by path, ``python -I setter.py PARENT_PID``) in a session of its own, so that it outlives what kills
the run, and so that only this much code needs root. It imports the standard library, and ``pynvml`` for NVML targets alone.
Requests are JSON objects, one a line, on standard input; each gets one answer, a line on standard output, with its ``id``:

    {"do": "acquire", "key", "name", "target", "folder", "root", "range_hz": [low, high], "restore_hz": [low, high] or null}
        take the device's lock; undo what ended runs left locked; write the journal; try whether the clock can be set
    {"do": "lock", "hz"}     set it            {"do": "reset"}    give it back, stay ready
    {"do": "release"}        give it back, remove the journal, free the lock
    {"do": "restore", "folder", "root", "only": key or null}      undo what ended runs left locked, nothing else

An answer is ``{"ok": true, ...}`` or ``{"ok": false, "kind", "text"}``; kinds are ``busy permission unsupported missing fault``, and
``locked`` where the clock could not be given back and the journal stays.
At the end of standard input, when the parent is no longer the parent, at SIGTERM, SIGINT and SIGHUP: all is given back.

    journal on disk |------------------------------------------------| removed
    clock           .    probe   . lock  . lock  . lock  . given back .
    device's flock |---------------------------------------------------| free

A target is ``{"kind": "nvml", "uuid": "GPU-..."}`` or ``{"kind": "sysfs", "nodes": [{"min": PATH, "max": PATH, "unit_hz": 1}]}``
(devfreq writes Hz, cpufreq kHz: ``unit_hz`` 1000). A journal is data from outside: root writes to no file that it names unless
that is a clock limit below ROOT/sys.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from profiler.hardware.setter_targets import (
        ALIVE_PATIENCE_S,
        Damaged,
        Problem,
        backend_of,
        booted_since,
        os_problem,
        read_text,
        this_boot,
    )
else:  # run by path in an isolated interpreter: the neighbour is found beside this file, and nothing else of the package
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    from setter_targets import (
        ALIVE_PATIENCE_S,
        Damaged,
        Problem,
        backend_of,
        booted_since,
        os_problem,
        read_text,
        this_boot,
    )

FORMAT = "card-clocks/1"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_MAX_BYTES = 1 << 20
_ENDING_PATIENCE_S = 10.0
"""A run that has died has a helper that is just giving the clock back."""
_UNSEEN = "a run whose process is not visible from here (another container?)"
_UNSEEN_PATIENCE_S = 3.0
"""It may be alive, or have died and have a helper that gives the clock back: that its lock is held so long tells."""
_ORPHAN_POLL_S = 0.5
_GIVE_BACK_S = 2.0
"""A driver that is busy is asked again; one that refuses is not."""


# ------------------------------------------------------------------------------------------------- locks and journals


def started(pid: int) -> str | None:
    """When process ``pid`` started, in the kernel's ticks; None where there is no such process or it has already died."""
    text = read_text(f"/proc/{pid}/stat")
    fields = text.rpartition(")")[2].split() if text else []
    return fields[19] if len(fields) > 19 and fields[0] not in "ZXx" else None


def _take(folder: str, key: str, parent: int) -> int:
    """The device's lock. Raises Problem: busy (with the owner where a live run holds it), permission."""
    path = os.path.join(folder, f"{key}.lock")
    flags, mine = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, True
    try:
        fd = os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError as error:
        mine = False
        try:
            fd = os.open(path, flags | os.O_RDONLY)
        except OSError:
            raise os_problem(error, path) from None
    except OSError as error:
        raise os_problem(error, path) from None
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if mine else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = _owner(path)
            spent = time.monotonic() - began
            if spent > {None: _ENDING_PATIENCE_S, _UNSEEN: _UNSEEN_PATIENCE_S}.get(owner, ALIVE_PATIENCE_S):
                os.close(fd)
                who = owner or "the helper of a run that has ended, or another user,"
                raise Problem("busy", f"{who} holds it", owner) from None
            time.sleep(0.02)
    if not mine:
        os.close(fd)
        raise Problem("permission", f"{folder} is not yours")
    with contextlib.suppress(OSError):  # who holds it is for people to read; the flock is what excludes
        say_owner(fd, parent)
    return fd


def say_owner(fd: int, run: int) -> None:
    """Write into a lock file which run holds it, by which process."""
    os.fchmod(fd, 0o644)
    facts = {"pid": run, "started": started(run), "helper": os.getpid(), "pid_namespace": _pid_namespace()}
    text = json.dumps(facts).encode()
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))


def _pid_namespace() -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _owner(path: str) -> str | None:
    """The run whose lock this is, in words, if it lives. One of another container cannot be looked for: that its lock is held tells."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        said = json.loads(read_text(path) or "null")
        pid, namespace = said.get("pid"), said.get("pid_namespace")
        if namespace is not None and namespace != _pid_namespace():
            return _UNSEEN
        if isinstance(pid, int) and said.get("started") is not None and started(pid) == said["started"]:
            return f"a live run (pid {pid})"
    return None


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_journal(folder: str, key: str, journal: dict[str, Any]) -> None:
    """On disk before the first lock, whole or not at all."""
    path = os.path.join(folder, f"{key}.journal")
    try:
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)
            text = json.dumps(journal, indent=1).encode() + b"\n"
            while text:  # a disk that is nearly full takes a part
                text = text[os.write(fd, text) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(path + ".new", path)
        _sync(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path + ".new")
        raise os_problem(error, path) from None


def _remove_journal(folder: str, key: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, f"{key}.journal"))
    _sync(folder)


def _read_journal(folder: str, key: str) -> dict[str, Any] | None:
    """The journal of an ended run; None where there is none. Raises Damaged for one that cannot be believed."""
    path = os.path.join(folder, f"{key}.journal")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Damaged("not a plain file") from None
        raise os_problem(error, path) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Damaged("not a plain file")
        raw = os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)
    try:
        journal = json.loads(raw)
    except (ValueError, RecursionError):
        raise Damaged("not JSON") from None
    if not isinstance(journal, dict) or journal.get("format") != FORMAT or journal.get("key") != key:
        raise Damaged(f"expected format {FORMAT} and key {key}")
    for name in ("name", "root"):
        if not isinstance(journal.get(name), str) or len(journal[name]) > 4000:
            raise Damaged(f"{name}: expected text")
    for name in ("boot_id", "driver", "kernel"):
        if not isinstance(journal.get(name), (str, type(None))):
            raise Damaged(f"{name}: expected text")
    limits = journal.get("originals")
    if not isinstance(limits, list) or not all(_is_pair(row, 0, 1e12) and row == [*map(int, row)] for row in limits):
        raise Damaged("originals: expected pairs of limits, lowest first")
    if journal.get("restore_hz") is not None and not _is_pair(journal["restore_hz"], 1e6, 1e11):
        raise Damaged("restore_hz: expected [lowest, highest] in Hz")
    target = journal.get("target")
    if not isinstance(target, dict):
        raise Damaged("target: expected an object")
    written = journal.get("written")
    if written is not None and (
        not isinstance(written, list) or len(written) != len(limits) or not all(map(_is_noted, written))
    ):
        raise Damaged("written: expected the values of each node")
    if target.get("kind") == "nvml" and key != f"nvml-{target.get('uuid')}":
        raise Damaged(f"target.uuid: expected the card of {key}")
    if target.get("kind") == "sysfs" and len(limits) != len(target.get("nodes") or ()):
        raise Damaged("originals: expected one pair for each node")
    return journal


def _is_pair(value: object, least: float, most: float) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and least <= v <= most for v in value)
        and (value[0] <= value[1] or value[1] == 0)  # older kernels write 0 where there is no highest
    )


def _is_noted(row: object) -> bool:
    return row is None or (isinstance(row, list) and bool(row) and all(type(v) is int for v in row))


def _set_aside(folder: str, key: str, why: str) -> str:
    path = os.path.join(folder, f"{key}.journal")
    aside = f"{path[: -len('.journal')]}.damaged-{time.time_ns()}"
    os.rename(path, aside)
    return (
        f"the journal {path} is damaged ({why}) and was set aside as {aside}; what it had noted as locked is not known: "
        "a reboot gives every clock back, on NVIDIA cards 'sudo nvidia-smi -rgc' too"
    )


def _given_back(
    backend: Any, restore_hz: list[float] | None, originals: list[list[int]], written: list[list[int] | None] | None
) -> list[str]:
    """Give back, the one way in which it is done; the answer is the backend's. Raises Problem."""
    until = time.monotonic() + _GIVE_BACK_S
    while True:
        try:
            told: list[str] = backend.give_back(restore_hz, originals, written)
            return told
        except Problem as problem:
            if problem.kind != "fault" or time.monotonic() > until:
                raise
            time.sleep(0.1)


def _reset_by_name(key: str, folder_of_pynvml: str | None) -> str:
    """An NVIDIA card needs no originals, and the journal's name says which it is: its driver's default is safe. What to add."""
    if not re.fullmatch(r"nvml-GPU-[A-Za-z0-9-]+", key):
        return ""
    try:
        _given_back(
            backend_of({"kind": "nvml", "uuid": key.removeprefix("nvml-")}, "/", folder_of_pynvml), None, [], None
        )
    except (Problem, Damaged):
        return ""
    return "; this card's clock was given back to its driver"


class _Undo:
    """What became of one device's leftovers: ``what`` is nothing, restored, dropped, damaged, kept or live."""

    def __init__(self, key: str) -> None:
        self.key, self.what, self.text, self.kind = key, "nothing", "", ""

    def says(self, what: str, text: str, kind: str = "") -> None:
        self.what, self.text, self.kind = what, text, kind

    def as_json(self) -> dict[str, str]:
        return {"key": self.key, "what": self.what, "text": self.text, "kind": self.kind}


def _undo(folder: str, key: str, root: str, folder_of_pynvml: str | None) -> _Undo:
    """Give back what the journal of ``key`` says is locked. The device's lock is held by us. Never raises for bad content."""
    done = _Undo(key)
    name = key
    try:
        journal = _read_journal(folder, key)
        if journal is None:
            return done
        name = "".join(c if c.isprintable() else "?" for c in journal["name"])[:200] or key
        if os.path.realpath(journal["root"]) != os.path.realpath(root):
            done.says(
                "kept",
                f"{name}: its journal belongs to a tree at {journal['root']!r}: set CARD_SYSFS_ROOT to it and restore",
                "missing",
            )
            return done
        backend = backend_of(journal["target"], root, folder_of_pynvml)
        if booted_since(journal, root):
            _remove_journal(folder, key)
            done.says(
                "dropped", f"{name}: the machine has been booted since; nothing is locked any more, journal dropped"
            )
            return done
        for what, version in backend.identity().items():
            if journal.get(what) is not None and journal[what] != version:
                _remove_journal(folder, key)
                done.says(
                    "dropped",
                    f"{name}: the {what} is {version} now and was {journal[what]}; a lock does not outlive that, journal dropped",
                )
                return done
        try:
            backend.hold()
            told = _given_back(backend, journal.get("restore_hz"), journal["originals"], journal.get("written"))
        finally:
            backend.free()
        _remove_journal(folder, key)
        rest = f" ({'; '.join(told)})" if told else ""
        done.says("restored", f"{name}: a run that has ended had left its clock locked; it is given back{rest}")
    except Damaged as why:
        try:
            text = _set_aside(folder, key, str(why))
            done.says("damaged", text + _reset_by_name(key, folder_of_pynvml))
        except OSError as error:
            done.says("kept", f"the journal of {key} is damaged ({why}) and cannot be set aside: {error}", "permission")
    except Problem as problem:
        what = "live" if problem.kind == "busy" else "kept"
        done.says(what, f"{name}: {problem}", problem.kind)
    except OSError as error:
        done.says("kept", f"{name}: {error}", os_problem(error, "").kind)
    return done


def _undo_others(
    folder: str, root: str, folder_of_pynvml: str | None, parent: int, only: str | None, but: str | None
) -> Iterator[_Undo]:
    """Leftovers of every device in ``folder`` whose lock is free."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    stems = {n.rpartition(".")[0] for n in names if n.endswith((".journal", ".lock"))}
    for key in sorted(stem for stem in stems if KEY.fullmatch(stem)):
        if key == but or (only is not None and key != only):
            continue
        if f"{key}.journal" not in names and but is not None:
            continue  # nothing to undo, and who else runs is not this run's business
        done = _Undo(key)
        try:
            fd = _take(folder, key, parent)
        except Problem as problem:
            if problem.kind == "busy" and problem.owner is not None:
                done.says("live", f"{key}: held by {problem.owner}, left alone", "busy")
            elif f"{key}.journal" in names and os.path.exists(os.path.join(folder, f"{key}.journal")):
                done.says("kept", f"{key}: {problem}", problem.kind)
            yield done
            continue
        try:
            yield _undo(folder, key, root, folder_of_pynvml)
        finally:
            os.close(fd)


# ------------------------------------------------------------------------------------------------------------ holding


class Hold:
    """One device held: its lock, its journal, and how to give its clock back."""

    def __init__(self, request: dict[str, Any], parent: int, notes: list[str]) -> None:
        """Acquire. Raises Problem, and then nothing is held and no journal is left by us, unless it is of the kind ``locked``."""
        self.folder, self.key = str(request["folder"]), str(request["key"])
        root, folder_of_pynvml = str(request["root"]), request.get("pynvml")
        if not KEY.fullmatch(self.key):
            raise Problem("fault", f"key {self.key!r}: expected letters, digits, dots and dashes")
        try:
            self._backend = backend_of(request["target"], root, folder_of_pynvml)
        except Damaged as error:
            raise Problem("fault", str(error)) from None
        self._restore_hz = request.get("restore_hz")
        self._originals: list[list[int]] = []
        self._written: list[list[int] | None] | None = None
        self._told: list[str] = []
        self._touched = False
        try:
            if not os.path.isdir(self.folder):
                os.makedirs(self.folder, exist_ok=True)
                os.chmod(self.folder, 0o755)
            self._lock = _take(self.folder, self.key, parent)
        except (OSError, Problem) as error:
            if isinstance(error, Problem) and error.kind != "permission":
                raise
            why = error if isinstance(error, Problem) else os_problem(error, self.folder)
            raise Problem(
                "fault", f"no journal can be written ({why}): name a folder of yours in CARD_STATE_DIR"
            ) from None
        try:
            self._begin(request, root, folder_of_pynvml, parent, notes)
        except BaseException:
            self._free()
            raise

    def _begin(
        self, request: dict[str, Any], root: str, folder_of_pynvml: str | None, parent: int, notes: list[str]
    ) -> None:
        mine = _undo(self.folder, self.key, root, folder_of_pynvml)
        others = list(_undo_others(self.folder, root, folder_of_pynvml, parent, None, self.key))
        notes += [done.text for done in (mine, *others) if done.text and done.what != "live"]
        if mine.what in ("kept", "live"):  # its originals must not be lost under a new journal
            raise Problem(mine.kind or "fault", mine.text)
        self._backend.hold()
        self._backend.check_right()
        self._originals = self._backend.originals()
        self._facts = {
            "format": FORMAT,
            "key": self.key,
            "name": str(request["name"]),
            "target": request["target"],
            "originals": self._originals,
            "root": os.path.realpath(root),
            **this_boot(root),
            **self._backend.identity(),
            "pid": parent,
            "helper": os.getpid(),
            "written_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._note(self._backend.written)
        try:
            self._try_right(request["range_hz"])
        except Problem:
            self._restore_hz = None
            try:
                self.reset()
            except Problem:  # the journal stays, without a range that the driver may have refused
                self._note(self._backend.written)
                raise
            _remove_journal(self.folder, self.key)
            raise

    def _try_right(self, range_hz: list[float]) -> None:
        """Raises Problem where the clock cannot be set, or not be given back as the user said."""
        try:
            self._touched = self._backend.probe(range_hz, self._originals)
        except Problem as problem:
            self._touched = problem.kind == "fault"  # whoever refuses has set nothing; after a fault that is not sure
            raise
        try:
            self.reset()
        except Problem as problem:  # better known now than at the end of the run
            asked = ""
            if self._restore_hz is not None:
                low, high = (f"{value / 1e6:g}" for value in self._restore_hz)
                asked = f"--restore-clocks {low},{high}: "
            raise Problem("unsupported", f"{asked}{problem}") from None

    def _note(self, written: list[list[int] | None] | None) -> None:
        """Put on disk what is to be undone."""
        _write_journal(self.folder, self.key, {**self._facts, "restore_hz": self._restore_hz, "written": written})
        self._written = written

    def lock(self, hz: float) -> dict[str, Any]:
        """Set it. Where what is set can be read, the journal knows it: what somebody else sets later is not ours to undo."""
        knows = self._backend.written is not None
        if knows:
            self._note(None)  # while it moves, whatever is there is ours
        self._touched = True
        answer: dict[str, Any] = self._backend.lock(hz)
        if knows:
            self._note(self._backend.written)
        return answer

    def reset(self) -> None:
        """Give back what has been set since it was last given back. Raises Problem (locked): the journal then stays."""
        if self._touched:
            try:
                told = _given_back(self._backend, self._restore_hz, self._originals, self._written)
            except Problem as problem:
                raise Problem("locked", str(problem)) from None
            self._told += [text for text in told if text not in self._told]
            self._touched = self._backend.missed

    def release(self) -> list[str]:
        """Give back, then remove the journal, then free the lock; the answer is what to tell. Raises Problem: the journal then stays."""
        try:
            self.reset()
            _remove_journal(self.folder, self.key)
            return self._told
        except OSError as error:
            raise os_problem(error, "the clock is given back, but its journal cannot be removed") from None
        finally:
            self._free()

    def _free(self) -> None:
        self._backend.free()
        os.close(self._lock)


# ------------------------------------------------------------------------------------------------------------- serving


class Server:
    """Answers requests until there is nobody left to answer, then gives everything back."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._hold: Hold | None = None
        # The answers' channel is ours alone: what a driver's library prints goes to standard error.
        self._out = os.dup(1)
        os.dup2(2, 1)
        woken, wake = os.pipe()
        for fd in (woken, wake):
            os.set_blocking(fd, False)
        self._woken = woken
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # A signal does not break into what is being set: it is seen between two requests.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def serve(self) -> int:
        why, buffered = "", b""
        while not why:
            line, newline, rest = buffered.partition(b"\n")
            if newline:
                buffered = rest
                if not self._answer(line):
                    why = "its run has gone"
                continue
            ready, _, _ = select.select([0, self._woken], [], [], _ORPHAN_POLL_S)
            if self._woken in ready:
                why = signal.Signals(os.read(self._woken, 1)[0]).name
            elif 0 in ready:
                more = os.read(0, 65536)
                buffered += more
                if not more or len(buffered) > _MAX_BYTES:
                    why = "its run has gone"
            elif os.getppid() != self._parent:  # a forked child of the run may hold our standard input open
                why = "its run has gone"
        return self._end(why)

    def _end(self, why: str) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        trouble = None
        if self._hold is not None:
            try:
                said = self._hold.release()
            except Problem as problem:
                trouble = str(problem)
                said = [
                    f"the clock of {self._hold.key} could not be given back: {trouble}; its journal stays: card-profile restore"
                ]
            with contextlib.suppress(OSError):
                os.write(2, "".join(f"card-profile: {text}\n" for text in said).encode())
        with contextlib.suppress(OSError):
            os.write(self._out, json.dumps({"ended": why, "trouble": trouble}).encode() + b"\n")
        return 0 if trouble is None else 1

    def _answer(self, line: bytes) -> bool:
        """Carry out one request; False where the answer reaches nobody any more."""
        number: object = None
        try:
            request = json.loads(line)
            number = request["id"]
            answer = {"ok": True, **self._do(request)}
        except Problem as problem:
            answer = {"ok": False, "kind": problem.kind, "text": str(problem)}
        except Exception as error:  # a fault of ours must not leave a clock locked: the run is told and ends
            answer = {"ok": False, "kind": "fault", "text": f"{type(error).__name__}: {error}"}
        try:
            os.write(self._out, json.dumps({"id": number, **answer}).encode() + b"\n")
        except OSError:
            return False
        return True

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request.get("do")
        if what == "restore":
            found = _undo_others(
                request["folder"], request["root"], request.get("pynvml"), self._parent, request.get("only"), None
            )
            return {"outcomes": [done.as_json() for done in found if done.what != "nothing"]}
        if what == "acquire":
            if self._hold is not None:
                raise Problem("fault", "one device at a time")
            notes: list[str] = []
            self._hold = Hold(request, self._parent, notes)
            return {"notes": notes}
        if self._hold is None:
            raise Problem("fault", f"{what}: nothing is held")
        if what == "lock":
            return self._hold.lock(float(request["hz"]))
        if what == "reset":
            self._hold.reset()
            return {}
        if what == "release":
            hold, self._hold = self._hold, None
            return {"notes": hold.release()}
        raise Problem("fault", f"{what!r}: no such request")


if __name__ == "__main__":
    sys.exit(Server(int(sys.argv[1])).serve())
