"""A program that keeps one card of the rig busy until it is ended: ``python -m tests.rigs.nvml.load [CARD] [SECONDS]``.

It needs the environment of ``Rig.environment``. A kill is noticed too: the rig asks whether the process is still there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading


def main(arguments: list[str]) -> int:
    card = int(arguments[0]) if arguments else 0
    seconds_s = float(arguments[1]) if len(arguments) > 1 else None
    lib = ctypes.CDLL("libnvidia-ml.so.1")
    if lib.rig_open(os.fsencode(os.environ["RIG_NVML_STATE"]), 0) != 0:
        print(f"no rig at {os.environ['RIG_NVML_STATE']}", file=sys.stderr)
        return 3
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: done.set())
    lib.rig_load(card, os.getpid(), 1)
    done.wait(seconds_s)
    lib.rig_load(card, os.getpid(), 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
