"""Runs a command beside the real jtop service, both in a mount namespace in which /sys is an emulated board's.

    unshare --mount --propagation private PYTHON -m tests.rigs.jtop_service TREE SCRATCH JTOP_PYTHON COMMAND...

Nothing of this is seen outside the namespace; it ends with this program. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SERVICE = """
import platform, sys
sys.base_prefix = sys.argv[1]  # where it keeps its settings
platform.machine = lambda: "aarch64"  # else it takes the machine for a desktop and asks its BIOS
from jtop.service import JtopServer
JtopServer(force=True).loop_for_ever()
"""
NVPMODEL = """#!/bin/sh
case "$1" in
  -p) echo "PM_CONFIG: DEFAULT=MAXN(0)"; echo "POWER_MODEL: ID=0 NAME=MAXN"; echo "POWER_MODEL: ID=1 NAME=15W";;
  -q) echo "NV Power Mode: MAXN"; echo 0;;
esac
"""


def main(tree: Path, scratch: Path, jtop_python: str, command: list[str]) -> int:
    def mount(*words: str | Path) -> None:
        subprocess.run(["mount", *map(str, words)], check=True)

    group, programs = scratch / "group", scratch / "bin"
    group.write_text(Path("/etc/group").read_text() + "jtop:x:64242:root\n")
    programs.mkdir()
    (programs / "nvpmodel").write_text(NVPMODEL)
    (programs / "nvpmodel").chmod(0o755)
    mount("--bind", tree / "sys", "/sys")
    mount("--bind", group, "/etc/group")
    mount("-t", "tmpfs", "none", "/run")
    mount("-t", "tmpfs", "none", "/var/lib")
    shutil.copytree(tree / "var/lib/nvpmodel", "/var/lib/nvpmodel")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    log = (scratch / "service.log").open("wb")
    service = subprocess.Popen(
        [jtop_python, "-c", SERVICE, str(scratch)], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        until = time.monotonic() + 30
        while not Path("/run/jtop.sock").exists():
            if service.poll() is not None or time.monotonic() > until:
                print((scratch / "service.log").read_text()[-2000:], file=sys.stderr)
                return 75
            time.sleep(0.05)
        return subprocess.run(command, check=False, timeout=60).returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, 9)
        service.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
