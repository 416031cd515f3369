"""Clocks that always come back.

The run itself sets no clock. A small helper does (``setter.py``), which holds the device's lock and a journal on disk for as long as
the run lives, and gives the clock back when the run ends in whatever way: it is told to, or its standard input ends because the
run was killed. If the helper is killed too, the journal stays, and ``restore_leftovers`` or the next run undoes it.

    run        |-- held() --- lock ------ lock ------ lock --- leaving --|
    helper       |- journal, right tried -- sets -- sets -- sets - gives back, journal removed -|
    privileges   root: the helper alone; the run goes on as the caller who typed sudo
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profiler.hardware.device import Timebase
from profiler.hardware.host import read_text, sysfs_root
from profiler.hardware.setter import say_owner
from profiler.hardware.setter_targets import ALIVE_PATIENCE_S, boot_id, booted_since
from profiler.profile import BadInput, MissingHardware

_ANSWER_S = 30.0
"""A driver may take seconds to answer; a helper that takes longer is lost."""
_GOODBYE_S = 10.0
_SETTLE_S = 2.0
_STILL_S = 1.0
_BLIND_S = 0.2
_STEP_S = 0.05
_SYSTEM_FOLDER = Path("/var/lib/card-profile")
_CARRIED = (
    "CARD_SYSFS_ROOT",
    "CARD_STATE_DIR",
    "XDG_STATE_HOME",
    "CARD_POWER_RAIL",
    "CARD_JTOP_PYTHON",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
)
"""What sudo drops from the environment and a run depends on."""
NVML_CAUTION = (
    "what an administrator had locked before cannot be read back from NVML: after the run the driver's default rules; "
    "--restore-clocks MIN,MAX (MHz) if you know what was locked"
)


def state_folder() -> Path:
    """Where lock files and journals lie: CARD_STATE_DIR, else /var/lib/card-profile for root, else below the user's own state.

    XDG_STATE_HOME and HOME count where they are absolute: a journal below the working folder would not be found again. Raises
    MissingHardware where that leaves none.
    """
    if os.environ.get("CARD_STATE_DIR"):
        return Path(os.environ["CARD_STATE_DIR"]).absolute()
    if os.geteuid() == 0:
        return _SYSTEM_FOLDER
    return _below(_home)


def _below(home: Callable[[], Path]) -> Path:
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        base = home() / ".local/state"
    return base / "card-profile"


def _others_folders() -> list[Path]:
    """Where a lock and a journal may lie that are not this user's: root's, and under sudo those of the user who typed it."""
    if os.environ.get("CARD_STATE_DIR"):
        return []
    if os.geteuid() != 0:
        return [_SYSTEM_FOLDER]
    ids = _sudo_ids()
    if ids is None:
        return []
    try:
        home = Path(pwd.getpwuid(ids[0]).pw_dir)
    except (KeyError, OverflowError):  # a user whom this machine's list does not hold
        return []
    return [_below(lambda: home)] if home.is_absolute() else []


def _sudo_ids() -> tuple[int, int] | None:
    """User and group of who typed sudo; None where that was nobody, or root."""
    try:
        uid, gid = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError):
        return None
    return (uid, gid) if uid > 0 and gid >= 0 else None


def _home() -> Path:
    home = Path(os.environ.get("HOME", ""))
    if not home.is_absolute():
        with contextlib.suppress(KeyError):  # a user whom this machine's list does not hold
            home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    if not home.is_absolute():
        raise MissingHardware(
            "no folder for the journals by which clocks are given back: HOME is not set, and this user has no home; set "
            "CARD_STATE_DIR to a folder of yours"
        )
    return home


def parse_restore(text: str) -> tuple[float, float]:
    """``--restore-clocks MIN,MAX`` in MHz as (lowest, highest) in Hz. Raises BadInput."""
    match = re.fullmatch(
        r"\s*(\d{1,6}(?:\.\d+)?)\s*(?:mhz)?\s*,\s*(\d{1,6}(?:\.\d+)?)\s*(?:mhz)?\s*", text, re.IGNORECASE
    )
    if match is None:
        raise BadInput(f"--restore-clocks {text!r}: expected MIN,MAX in MHz, such as 210,2100")
    low, high = (float(part) * 1e6 for part in match.groups())
    if not 1e6 <= low <= high <= 1e11:
        raise BadInput(f"--restore-clocks {text!r}: expected 1 <= MIN <= MAX <= 100000 MHz")
    return low, high


def sudo_command(*arguments: str) -> str:
    """The line for a shell that runs this program as root with ``arguments`` (none: those it has now)."""
    here = sys.argv[0] if sys.argv else ""
    program = Path(here).absolute() if Path(here).name == "card-profile" and Path(here).is_file() else None
    beside = Path(sys.executable).parent / "card-profile"
    if program is None and beside.is_file():
        program = beside
    found = str(program or shutil.which("card-profile") or "card-profile")
    own = sys.argv[1:] if program is None or str(program) == str(Path(here).absolute()) else []
    words = list(arguments) or own or ["run", "..."]
    # CUDA_VISIBLE_DEVICES without a value hides every GPU, so it is not the same as none.
    told = [name for name in _CARRIED if os.environ.get(name) or (name.startswith("CUDA_") and name in os.environ)]
    carried = [f"{name}={shlex.quote(os.environ[name])}" for name in told]
    # '...' stands for options that only the user knows, and is no word of the shell's.
    return " ".join(["sudo", *carried, shlex.quote(found), *(w if w == "..." else shlex.quote(w) for w in words)])


def become_caller() -> str | None:
    """Under sudo: go on as the user who typed it, for good, so that the model and the files written are theirs.

    Returns the user's name; None where this is not root under sudo, and nothing has changed. What only root may open must be
    open by now, and caches that follow HOME are the caller's from here on.
    """
    ids = _sudo_ids() if os.geteuid() == 0 else None
    if ids is None:
        return None
    uid, gid = ids
    before = os.environ.get("HOME")
    try:
        entry = pwd.getpwuid(uid)
        name, home = entry.pw_name, entry.pw_dir
        os.initgroups(name, gid)
    except KeyError:  # a user whom this machine's list does not hold
        name, home = os.environ.get("SUDO_USER") or str(uid), ""
        os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    os.environ.update({"USER": name, "LOGNAME": name, **({"HOME": home} if home else {})})
    for variable in [v for v in os.environ if v.startswith("XDG_")]:
        if os.environ[variable].startswith((f"{before}/", "/run/user/0")):
            del os.environ[variable]
    return name


# --------------------------------------------------------------------------------------------------------- the helper


class _Refused(Exception):
    """The helper answered that it cannot."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Lost(Exception):
    """The helper is gone, or does not answer."""


class _Helper:
    """The process that sets clocks. Closing its standard input is the release for whoever cannot speak any more."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(__file__).with_name("setter.py")), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self._number = 0
        self._buffered = b""
        self._ended: dict[str, Any] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any], patience_s: float = _ANSWER_S) -> dict[str, Any]:
        """Its answer. Raises _Refused, _Lost."""
        assert self._process.stdin is not None
        self._number += 1
        try:
            self._process.stdin.write(json.dumps({"id": self._number, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            self._hear(clock.monotonic() + 1.0)
            raise _Lost(self._why()) from None
        until = clock.monotonic() + patience_s
        while True:
            answer = self._hear(until)
            if answer is None:
                raise _Lost(self._why())
            if answer.get("id") != self._number:  # to a question that was broken off
                continue
            if not answer.get("ok"):
                raise _Refused(str(answer.get("kind")), str(answer.get("text")))
            return answer

    def _hear(self, until: float) -> dict[str, Any] | None:
        """The next answer; None where there will be none."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()  # unlike select(), good for any number of open files
        poll.register(fd, select.POLLIN)
        while True:
            line, newline, rest = self._buffered.partition(b"\n")
            if newline:
                self._buffered = rest
                said: dict[str, Any] = json.loads(line)
                if "ended" not in said:
                    return said
                self._ended = said
                continue
            left = until - clock.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                return None
            more = os.read(fd, 65536)
            if not more:
                return None
            self._buffered += more

    def _why(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1.0)
            if self._ended is not None:
                return f"ended ({self._ended['ended']})"
            return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
        return f"does not answer (pid {self._process.pid})"

    def close(self) -> None:
        """End it; what is still held is given back by it. Bounded."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_GOODBYE_S)
        except subprocess.TimeoutExpired:
            # It hangs in the driver. It is left to end by itself: killing it would leave the clock locked for sure.
            pass
        finally:
            self._process.stdout.close()


def _pynvml_folder() -> str | None:
    """Where ``pynvml`` lies: an isolated interpreter does not see the user's own packages."""
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec("pynvml")
        if found is not None and found.origin is not None:
            folder = Path(found.origin).parent
            return str(folder.parent if Path(found.origin).name == "__init__.py" else folder)
    return None


def _restore(folder: Path, only: str | None = None) -> list[dict[str, str]]:
    """What became of each leftover in ``folder``, by a helper of its own. Raises _Lost."""
    helper = _Helper()
    try:
        request = {"do": "restore", "folder": str(folder), "root": str(sysfs_root().absolute()), "only": only}
        answer = helper.ask({**request, "pynvml": _pynvml_folder()}, patience_s=4 * _ANSWER_S)
        outcomes: list[dict[str, str]] = answer["outcomes"]
        return outcomes
    except _Refused as refused:
        raise _Lost(str(refused)) from None
    finally:
        helper.close()


def restore_leftovers(say: Callable[[str], None]) -> int:
    """Give back every clock that ended runs have left locked; ``say`` gets one line for each device. Returns how many were given back.

    A live run is left alone. Raises MissingHardware where something could not be given back (its journal stays), with the
    command that can.
    """
    folders = [state_folder(), *_others_folders()]
    given_back, kept, silent = 0, [], True
    for folder in folders:
        try:
            outcomes = _restore(folder) if folder.is_dir() else []
        except _Lost as lost:
            raise MissingHardware(f"the helper that sets clocks {lost}; try again: {sudo_command('restore')}") from None
        for outcome in outcomes:
            given_back += outcome["what"] == "restored"
            silent = False
            if outcome["what"] == "kept":
                kept.append(outcome)
            else:
                say(outcome["text"])
    if kept:
        texts = "; ".join(outcome["text"] for outcome in kept)
        if any(outcome["kind"] == "permission" for outcome in kept) and os.geteuid() != 0:
            raise MissingHardware(f"giving clocks back needs root: {sudo_command('restore')} ({texts})")
        raise MissingHardware(f"could not be given back, the journal stays: {texts}")
    if silent:
        say("no clock is left locked")
    return given_back


# ---------------------------------------------------------------------------------------------------------- the clocks


def _shared(path: Path, *, make: bool = False) -> int | None:
    """The file, locked beside all who set no clock either; None where it cannot be opened. Raises BlockingIOError where a run holds it."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | (os.O_RDWR | os.O_CREAT if make else os.O_RDONLY), 0o644)
    except OSError:
        return _shared(path) if make else None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:  # a file system without locks
        pass
    return fd


def _is_locked(path: Path) -> bool:
    try:
        fd = _shared(path)
    except BlockingIOError:
        return True
    if fd is not None:
        os.close(fd)
    return False


def _of_this_boot(path: Path, root: str) -> bool:
    """Whether there is a journal at ``path`` that was written in this boot; not where it does not tell."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        journal = json.loads(read_text(path) or "null")
        told = isinstance(journal, dict) and journal.get("boot_id") is not None and boot_id(root) is not None
        return told and not booted_since(journal, root)
    return False


class GuardedClocks:
    """The clock of one processor (``device.ClockControl``), set through the helper.

    ``key`` names the device on this machine, ``name`` is for people, ``target`` is what ``setter.py`` takes, ``supported_hz`` ascend,
    ``read_hz`` measures the clock, ``time`` is the device's. ``hint`` says how else the right can be had (a group, a udev rule),
    ``caution`` what the user should know before the clock is touched.
    """

    def __init__(
        self,
        *,
        key: str,
        name: str,
        target: dict[str, Any],
        supported_hz: Sequence[float],
        read_hz: Callable[[], float | None],
        time: Timebase,
        hint: str | None = None,
    ) -> None:
        if not supported_hz:
            raise ValueError("expected the clocks that can be set")
        self.key, self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", key).lstrip("._-")[:120] or "clock", name
        self.caution = NVML_CAUTION if target.get("kind") == "nvml" else None
        self._target, self._supported, self._read_hz, self._time = target, tuple(sorted(supported_hz)), read_hz, time
        self._hint = hint
        try:
            self._own_folder: Path | None = state_folder()  # by now, for under sudo the user changes
        except MissingHardware:  # which hinders nobody who sets no clock
            self._own_folder = None
        self._others = _others_folders()
        self._helper: _Helper | None = None
        self._kept: _Helper | None = None
        self._lost: str | None = None

    @property
    def _folder(self) -> Path:
        return self._own_folder or state_folder()

    def supported_hz(self) -> tuple[float, ...]:
        return self._supported

    def current_hz(self) -> float | None:
        return self._read_hz()

    def may_set(self) -> bool:
        """Whether this process seems to have the right: root for NVML, writable limits elsewhere. Only ``held`` really tries."""
        nodes = self._target.get("nodes", [])
        files = [node[which] for node in nodes for which in ("min", "max")]
        return all(os.access(path, os.W_OK) for path in files) if files else os.geteuid() == 0

    def in_use(self) -> bool:
        """Whether another run holds this clock, in this user's folder, in root's, or under sudo in the caller's. ``restore`` holds it for a moment only."""
        until = clock.monotonic() + 2 * ALIVE_PATIENCE_S
        while any(_is_locked(folder / f"{self.key}.lock") for folder in self._folders()):
            if clock.monotonic() > until:
                return True
            clock.sleep(0.05)
        return False

    def left_locked(self) -> bool:
        """See ``device.ClockControl``: a journal of this boot whose run has ended."""
        return self._noted_in(self._folders()) and not self.in_use()

    def _noted_in(self, folders: Sequence[Path]) -> bool:
        """Whether a journal of this boot lies in one of ``folders``, a live run's or a leftover."""
        root = str(sysfs_root())
        return any(_of_this_boot(folder / f"{self.key}.journal", root) for folder in folders)

    def _folders(self) -> list[Path]:
        """Where somebody's lock and journal of this clock may lie, one's own first."""
        return [self._own_folder or _SYSTEM_FOLDER, *self._others]

    @contextmanager
    def undisturbed(self) -> Iterator[tuple[str, ...]]:
        """See ``device.ClockControl``. Others may be inside too: nobody here sets anything."""
        with contextlib.ExitStack() as shared:
            try:
                notes = self._exclude_setters(shared)
            except BlockingIOError:
                raise MissingHardware(
                    f"{self.name} is in use: another run sets its clock just now; wait for it to end, or end it"
                ) from None
            yield tuple(notes)

    def _exclude_setters(self, shared: contextlib.ExitStack) -> list[str]:
        """Until ``shared`` ends. Returns what to tell; raises BlockingIOError where somebody sets this clock."""
        if self.in_use():
            raise BlockingIOError
        notes = self._undo_others_leftovers()
        folder = self._folders()[0]
        own = folder / f"{self.key}.lock"
        if os.path.lexists(own.with_suffix(".journal")):
            notes += self._undo_leftovers(folder)
        with contextlib.suppress(OSError):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)
        fd = _shared(own, make=True)
        if fd is None:
            notes.append(f"{folder} cannot be written: another run may set this clock meanwhile")
        else:
            shared.callback(os.close, fd)
            with contextlib.suppress(OSError):
                say_owner(fd, os.getpid())
        # Root's runs, and those of users who keep their journals elsewhere (see the setter's ``hold``).
        files = [other / own.name for other in self._folders()[1:]]
        files += [Path(node["max"]) for node in self._target.get("nodes", [])[:1]]
        for file in files:
            fd = _shared(file)
            if fd is not None:
                shared.callback(os.close, fd)
        return notes

    @contextmanager
    def held(self, restore_hz: tuple[float, float] | None = None) -> Iterator[tuple[str, ...]]:
        """See ``device.ClockControl``. Under sudo the whole process goes on as the caller once the helper is up."""
        if self._helper is not None:
            raise RuntimeError("held already")
        helper = self._kept or _Helper()
        try:
            notes = self._acquire(helper, restore_hz)
            caller = become_caller()
            if caller is not None:
                self._kept = helper  # nobody could start another one as root
                notes.append(f"only the small helper that sets the clock stays root; the run goes on as {caller}")
            self._helper = helper
            yield tuple(notes)
        except BaseException as error:
            trouble = self._leave(helper)
            if trouble is not None and trouble != str(error):
                with contextlib.suppress(OSError):
                    print(f"card-profile: {trouble}", file=sys.stderr, flush=True)
            raise
        trouble = self._leave(helper)
        if trouble is not None:
            raise MissingHardware(trouble)

    def lock(self, frequency_hz: float) -> None:
        """Ask for one clock and wait, bounded, until the measured one is near it or moves no more.

        Power cap and heat may hold it below, and a resting GPU waits for work: neither is an error. Raises MissingHardware
        where the helper has lost its right or was killed; the clock has then been given back where that was possible.
        """
        self._ask({"do": "lock", "hz": float(frequency_hz)})
        self._settle(frequency_hz)

    def reset(self) -> None:
        """Give the clock back; the device stays held."""
        self._ask({"do": "reset"})

    def _acquire(self, helper: _Helper, restore_hz: tuple[float, float] | None) -> list[str]:
        request = {
            "do": "acquire",
            "key": self.key,
            "name": self.name,
            "target": self._target,
            "folder": str(self._folder),
            "root": str(sysfs_root().absolute()),
            "range_hz": [self._supported[0], self._supported[-1]],
            "restore_hz": list(restore_hz) if restore_hz is not None else None,
            "pynvml": _pynvml_folder() if self._target.get("kind") == "nvml" else None,
        }
        undone = self._undo_others_leftovers()
        try:
            notes: list[str] = helper.ask(request, patience_s=4 * _ANSWER_S)["notes"]
            return [*undone, *notes]
        except _Refused as refused:
            raise MissingHardware(self._refusal(refused)) from None
        except _Lost as lost:
            raise MissingHardware(f"the helper that sets the clock of {self.name} {lost}") from None

    def _undo_others_leftovers(self) -> list[str]:
        """What somebody else's run has left locked must not be taken for the limits: root undoes it and tells, a user who may set this clock may
        not undo what root's has left."""
        left = [folder for folder in self._others if self._noted_in([folder])]
        if left and os.geteuid() != 0:
            raise MissingHardware(
                f"a run of root's has left {self.name} locked, or is going on: {sudo_command('restore')}"
            )
        return [note for folder in left for note in self._undo_leftovers(folder)]

    def _refusal(self, refused: _Refused) -> str:
        without = "--clocks current takes one point without setting it"
        if refused.kind == "permission" and os.geteuid() == 0:
            return (
                f"setting the clock of {self.name} was refused although this is root: {refused}; in a container it takes "
                f"--cap-add SYS_ADMIN for NVIDIA cards, a writable /sys for others; or {without}"
            )
        if refused.kind == "permission":
            hint = f"; {self._hint}" if self._hint else ""
            return (
                f"setting the clock of {self.name} needs root ({refused}): {sudo_command()} (only the small helper that sets "
                f"clocks stays root, the run goes on as you){hint}; or {without}"
            )
        if refused.kind == "locked":
            return self._kept_locked(refused)
        if refused.kind == "busy":
            return f"{self.name} is in use: {refused}; wait for it to end, or end it"
        return f"the clock of {self.name} cannot be set: {refused}; {without}"

    def _kept_locked(self, refused: _Refused) -> str:
        return f"the clock of {self.name} could not be given back ({refused}); its journal stays: {sudo_command('restore')}"

    def _ask(self, request: dict[str, Any]) -> None:
        helper = self._helper
        if helper is None:
            raise MissingHardware(f"the clock of {self.name} is not held")
        try:
            helper.ask(request)
        except _Refused as refused:
            raise MissingHardware(self._refusal(refused)) from None
        except _Lost as lost:
            self._helper = self._kept = None
            helper.close()
            self._lost = self._after(lost)
            raise MissingHardware(self._lost) from None

    def _after(self, lost: _Lost) -> str:
        """The helper is gone: undo what it may have left. What to tell."""
        text = f"the helper that sets the clock of {self.name} {lost}"
        try:
            self._undo_leftovers(self._folder)
        except MissingHardware as trouble:
            return f"{text}; {trouble}"
        return f"{text}; the clock has been given back"

    def _undo_leftovers(self, folder: Path) -> list[str]:
        """What was undone of what an ended run has left. Raises MissingHardware with the command where it stays."""
        try:
            outcomes = _restore(folder, only=self.key)
        except _Lost as lost:
            raise MissingHardware(
                f"the helper that gives the clock of {self.name} back {lost}: {sudo_command('restore')}"
            ) from None
        kept = [outcome["text"] for outcome in outcomes if outcome["what"] in ("kept", "live")]
        if kept:
            raise MissingHardware(f"the clock may still be locked: {sudo_command('restore')} ({'; '.join(kept)})")
        return [outcome["text"] for outcome in outcomes]

    def _leave(self, helper: _Helper) -> str | None:
        """Give the clock back and let the helper go; what went wrong, if anything did."""
        held, self._helper = self._helper, None
        lost, self._lost = self._lost, None
        try:
            if held is not None:
                for note in helper.ask({"do": "release"})["notes"]:
                    with contextlib.suppress(OSError):
                        print(f"card-profile: {note}", file=sys.stderr, flush=True)
            if self._kept is None:
                helper.close()
            return lost
        except _Refused as refused:
            helper.close()
            return self._kept_locked(refused)
        except _Lost as lost:
            helper.close()
            return self._after(lost)
        except BaseException:
            helper.close()
            raise

    def _settle(self, wanted_hz: float) -> None:
        gap = min((abs(hz - wanted_hz) for hz in self._supported if abs(hz - wanted_hz) > 1e5), default=0.0)
        near_hz = max(0.02 * wanted_hz, min(gap, 0.05 * wanted_hz))
        began = moved = self._time.now_s()
        before: float | None = None
        while True:
            now_s, now_hz = self._time.now_s(), self._read_hz()
            if now_hz is not None and abs(now_hz - wanted_hz) <= near_hz:
                return
            if now_hz is not None and (before is None or abs(now_hz - before) > 0.005 * now_hz):
                before, moved = now_hz, now_s
            if now_s - moved >= (_STILL_S if now_hz is not None else _BLIND_S) or now_s - began >= _SETTLE_S:
                return
            self._time.wait(_STEP_S)
