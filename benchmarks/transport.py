"""Our stream beside a plain TLS socket on the same machine: throughput and latency, so that it is known what gRPC, pieces and checksums cost.

    python -m benchmarks.transport [--repeats 15] [--json]

Three ways to hand messages of 64 KiB to 16 MiB to another process over loopback, and to hear that each was there whole: a TLS socket of
Python's ssl module (no gRPC, no header, no checksum, the bytes thrown away), our stream in the plain mode, our stream with mutual TLS. Ways
are interleaved and each message waits for the answer to the one before, so the times are those of one message through an idle link: the
case of split training. "back to back" keeps the link full instead. Medians; a ratio above 1 says how many times longer ours takes.
Exit 1 where our stream with TLS reaches less than LEAST_RATIO of the socket's throughput at 16 MiB.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = (1, 64 << 10, 1 << 20, 4 << 20, 16 << 20)
BACK_TO_BACK_BYTES = 64 << 20
LEAST_RATIO = 0.25
"""The socket's messages are neither checked nor put together for a reader; see the page for where the rest goes."""

Way = Callable[[int, int], float]
"""(size in bytes, number of messages) -> seconds until the last is known to be there."""


def serve(folder: Path) -> None:
    """The other process: all three servers; ports on standard output; ends with its standard input."""
    import threading

    from split.certificates import Credentials
    from split.link import serving

    def sockets(listener: socket.socket, context: ssl.SSLContext) -> None:
        plain, _ = listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_side=True) as stream:
            buffer = memoryview(bytearray(max(SIZES)))
            while head := stream.recv(4):
                left = int.from_bytes(head, "little")
                while left:
                    left -= stream.recv_into(buffer[:left])
                stream.sendall(b"+")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        serving("127.0.0.1:0", None, None, "stream") as plain,
        serving("127.0.0.1:0", Credentials.of(folder, "server"), None, "stream") as secure,
    ):
        threading.Thread(target=sockets, args=(listener, context), daemon=True).start()
        print(json.dumps([listener.getsockname()[1], plain.port, secure.port]), flush=True)
        sys.stdin.read()


def socket_way(folder: Path, port: int) -> Way:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "authority.pem")
    context.load_cert_chain(folder / "one.pem", folder / "one.key")
    stream = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    payload = memoryview(bytes(max(SIZES)))

    def way(size: int, count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            stream.sendall(size.to_bytes(4, "little"))
            stream.sendall(payload[:size])
            if count == 1:
                stream.recv(1)
        for _ in range(count if count > 1 else 0):
            stream.recv(1)
        return time.perf_counter() - began

    return way


def stream_way(folder: Path | None, port: int) -> Way:
    import numpy as np
    import torch

    from split.certificates import Credentials
    from split.transport import dial
    from split.wire import Ping, pack_tensor

    stream = dial(f"127.0.0.1:{port}", None if folder is None else Credentials.of(folder, "one"), None, "one")
    payload = torch.from_numpy(np.zeros(max(SIZES), np.uint8))

    def way(size: int, count: int) -> float:
        began = time.perf_counter()
        answered = 0
        for number in range(count):
            stream.send(Ping(number=number, sent_s=0.0), {"padding": pack_tensor(payload[:size], "none", 0)})
            if number - answered >= 4:
                stream.receive(30)
                answered += 1
        while answered < count:
            stream.receive(30)
            answered += 1
        return time.perf_counter() - began

    return way


def measured(repeats: int) -> list[dict[str, Any]]:
    from split import certificates

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        certificates.make(folder, ["127.0.0.1"], ["one"])
        command = [sys.executable, "-m", "benchmarks.transport", "--serve", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                ports = json.loads(server.stdout.readline())
                ways = {
                    "TLS socket": socket_way(folder, ports[0]),
                    "stream, plain": stream_way(None, ports[1]),
                    "stream, mutual TLS": stream_way(folder, ports[2]),
                }
                rows = []
                for size in SIZES:
                    counts = [1] if size < 1 << 10 else [1, max(4, BACK_TO_BACK_BYTES // size)]
                    for count in counts:
                        times: dict[str, list[float]] = {name: [] for name in ways}
                        for repeat in range((repeats if count == 1 else max(3, repeats // 3)) + 1):
                            for name, way in ways.items():
                                took_s = way(size, count)
                                if repeat:  # the first finds everything cold
                                    times[name].append(took_s / count)
                        for name, each in times.items():
                            rows.append({"way": name, "bytes": size, "back_to_back": count > 1, "median_s": statistics.median(each), "worst_s": max(each), "repeats": len(each)})  # fmt: skip
                return rows
            finally:
                server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        serve(asked.serve)
        return 0
    rows = measured(asked.repeats)
    if asked.json:
        print(json.dumps(rows, indent=1))
    base = {(row["bytes"], row["back_to_back"]): row["median_s"] for row in rows if row["way"] == "TLS socket"}
    print(f"{'message':>10} {'':12} {'way':20} {'median':>10} {'rate':>12} {'of the socket':>14}", file=sys.stderr)
    worst = 1.0
    for row in rows:
        took_s, key = row["median_s"], (row["bytes"], row["back_to_back"])
        share = base[key] / took_s
        size = f"{row['bytes'] >> 10} KiB" if row["bytes"] >= 1024 else f"{row['bytes']} B"
        rate = "" if row["bytes"] < 1024 else f"{row['bytes'] / took_s / 1e6:8.0f} MB/s"
        how = "back to back" if row["back_to_back"] else ""
        print(f"{size:>10} {how:12} {row['way']:20} {1e3 * took_s:7.2f} ms {rate:>12} {share:13.2f}x", file=sys.stderr)
        if row["bytes"] == SIZES[-1] and row["way"] == "stream, mutual TLS" and not row["back_to_back"]:
            worst = share
    if worst < LEAST_RATIO:
        print(f"missed: {worst:.2f} of the socket's throughput at 16 MiB, expected {LEAST_RATIO}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
