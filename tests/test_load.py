"""A user's own program as the load: it is watched while it runs, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiler.load import running
from profiler.profile import BadInput


def gone(pid: int, *, within_s: float = 5.0) -> bool:
    """Whether the process has ended (a zombie has)."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_command_runs_while_the_body_does_and_its_children_end_with_it() -> None:
    with running("sh -c 'sleep 60 & sleep 60; true'") as alive:
        alive()
        (shell,) = children_of(os.getpid())
        until = time.monotonic() + 5
        while len(children_of(shell)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        family = [shell, *children_of(shell)]
        assert len(family) == 3
    assert all(gone(pid) for pid in family)


def test_a_command_that_ends_is_told_with_what_it_said() -> None:
    def watched() -> None:
        with running("sh -c 'echo no such model >&2; exit 3'") as alive:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                alive()
                time.sleep(0.01)

    with pytest.raises(BadInput, match=r"ended with 3 before the measurement did \(it said: no such model\)"):
        watched()


@pytest.mark.parametrize(
    ("command", "expected"),
    [("", "expected a command"), ("'", "No closing quotation"), ("/no/such/program", "cannot be started")],
)
def test_a_command_that_cannot_run_is_refused(command: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected), running(command):
        pytest.fail("it was started")


def test_the_command_ends_when_we_are_killed() -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from profiler.load import running\n"
        "import os\n"
        "with running('sleep 60') as alive:\n"
        "    print(Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert gone(child)
