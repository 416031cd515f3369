"""Server and devices on one machine, each in a process of its own, for a first try and for the benchmarks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.progress import Reporter
    from split.server import Outcome, ServerOptions

_PATIENCE_S = 20
"""So long a device goes on dialling: whatever becomes of us, none of them stays behind."""
_END_S = 10


def run_local(
    options: ServerOptions, data: Path, held_out: float | Path, text_field: str | None, say: Reporter
) -> Outcome:
    """Train with ``options.devices``, started here. They end with us. Raises what `run_server` raises."""
    import socket

    from profiler.profile import BadInput
    from split.server import run_server

    if not data.exists():
        raise BadInput(f"--data {data}: no such file or folder")
    with socket.socket() as probe:  # devices need the port before the server is there
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options.output.mkdir(parents=True, exist_ok=True)
    more = ["--data", str(data), "--held-out", str(held_out), "--patience", str(_PATIENCE_S)]
    more += ["--text-field", text_field] if text_field is not None else []
    with contextlib.ExitStack() as stack:
        for name in options.devices:
            stack.enter_context(device_process(name, address, options.output / f"{name}.log", more))
        return run_server(replace(options, listen=address), say)


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
