"""Server and devices on one machine, each in a process of its own, for a first try and for the benchmarks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from split.server import Fleet

if TYPE_CHECKING:
    from profiler.progress import Reporter
    from split.server import Outcome, ServerOptions

_SAID = "card-train: "
_PATIENCE_S = 20
"""So long a device goes on dialling: whatever becomes of us, none of them stays behind."""
_END_S = 10


def run_local(
    options: ServerOptions, data: Path, held_out: float | Path, text_field: str | None, say: Reporter
) -> Outcome:
    """Train with ``options.devices``, started here once the server listens. They end with us. Raises what `run_server` raises, and what ended
    a device."""
    from profiler.profile import BadInput
    from split.server import run_server

    if not data.exists():
        raise BadInput(f"--data {data}: no such file or folder")
    more = ["--data", str(data), "--held-out", str(held_out), "--patience", str(_PATIENCE_S)]
    more += ["--text-field", text_field] if text_field is not None else []
    with contextlib.ExitStack() as stack:
        return run_server(replace(options, listen="127.0.0.1:0"), say, _Processes(options, more, stack))


class _Processes(Fleet):
    """Devices as processes of this machine."""

    def __init__(self, options: ServerOptions, more: Sequence[str], stack: contextlib.ExitStack) -> None:
        self._options, self._more, self._stack = options, more, stack
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def listening(self, port: int) -> None:
        for name in self._options.devices:
            started = device_process(name, f"127.0.0.1:{port}", self._log(name), self._more)
            self._processes[name] = self._stack.enter_context(started)

    def check(self) -> None:
        from profiler.profile import BadInput, MissingHardware

        for name, process in self._processes.items():
            code = process.poll()
            if code in (None, 0):
                continue
            lines = self._log(name).read_text(errors="replace").splitlines()
            why = next(
                (line.removeprefix(_SAID) for line in reversed(lines) if line.startswith(_SAID)), f"ended with {code}"
            )
            raise (MissingHardware if code == 3 else BadInput)(f"{name}: {why}")

    def _log(self, name: str) -> Path:
        return self._options.output / f"{name}.log"


@contextlib.contextmanager
def device_process(
    name: str, address: str, log: Path, more: Sequence[str], *, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """``card-train device`` in a process of its own, ended with the body; ``prefix`` goes before it (taskset, ip netns exec)."""
    command = [*prefix, sys.executable, "-c", "import cli; cli.train_main()", "device"]
    command += ["--server", address, "--name", name, *more]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield process
        # The server has told it that the run is finished.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
