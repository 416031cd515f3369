"""Rates by iperf3, where both machines have it: an outside program, started and read, never trusted."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from profiler.profile import BadInput, MissingHardware, printable

Method = Literal["auto", "iperf3", "stream"]

WARM_UP_S = 1.0
"""Left out at the beginning: a TCP connection begins slowly."""


@dataclass(frozen=True)
class Rate:
    """Median and interquartile range of ``parts`` figures."""

    mbps: float
    iqr_mbps: float
    parts: int


def iqr(figures: list[float]) -> float:
    if len(figures) < 2:
        return 0.0
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return high - low


def here() -> str:
    found = shutil.which("iperf3")
    if found is None:
        raise MissingHardware("iperf3 is not installed; install it (apt install iperf3), or take --method stream")
    return found


def rates(host: str, port: int, seconds: float, required: bool) -> tuple[Rate, Rate] | None:
    """Up and down by iperf3; None where one side has none and it is not ``required``."""
    from split.transport import Gone

    try:
        command = here()
    except MissingHardware:
        if required:
            raise
        return None
    found_rates = []
    for reverse in ([], ["--reverse"]):
        found = _one_way(command, host, port, seconds, reverse)
        if isinstance(found, str):
            if required:
                raise Gone(f"iperf3 to {host}:{port}: {found}; is it installed there, and the port open?")
            return None
        found_rates.append(found)
    return found_rates[0], found_rates[1]


def _one_way(command: str, host: str, port: int, seconds: float, extra: list[str]) -> Rate | str:
    """One direction; a text where it did not work."""
    argv = [command, "--client", host, "--port", str(port), "--json", "--time", str(max(1, math.ceil(seconds)))]
    argv += ["--omit", str(math.ceil(WARM_UP_S)), "--interval", "0.5", "--connect-timeout", "3000", *extra]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=seconds + 30, check=False)
        report = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return "no end of it"
    except ValueError:
        return "no report"
    if "error" in report:
        return printable(str(report["error"]))[:200]
    return rate_of(report)


def rate_of(report: Any) -> Rate | str:
    """The rate of one of iperf3's JSON reports: what was received over all, and the spread of its intervals. A text where it is none."""
    try:
        whole = float(report["end"]["sum_received"]["bits_per_second"])
        parts = [float(i["sum"]["bits_per_second"]) for i in report["intervals"] if not i["sum"].get("omitted", False)]
    except (KeyError, TypeError, ValueError):
        return "a report that is not understood"
    if not 0 < whole < 1e13 or not all(0 <= part < 1e13 for part in parts):
        return "a report without a rate"
    return Rate(whole / 1e6, iqr([part / 1e6 for part in parts]), len(parts))


@contextmanager
def server(host: str, port: int, method: Method) -> Iterator[bool]:
    """iperf3's own server beside ours, where it is installed and not unwanted."""
    try:
        command = None if method == "stream" else here()
    except MissingHardware:
        if method == "iperf3":
            raise
        command = None
    if command is None:
        yield False
        return
    bind = [] if host in ("0.0.0.0", "::") else ["--bind", host]
    process = subprocess.Popen(
        [command, "--server", "--port", str(port), *bind], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            if process.wait(0.3):
                raise BadInput(f"{host}:{port}: iperf3 cannot listen there; take another port, or --method stream")
        yield True
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
