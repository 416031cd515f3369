"""A training server under hostile input: 10,000 fuzzed messages, oversized and cut-off ones, NaN, replays. What does its memory do?

    python -m benchmarks.split_hostile [--messages 10000] [--seed 0]

A real ``card-train server`` trains with a real ``card-train device``, process against process on loopback, while a third party that bears the
name of a listed device speaks gRPC to it and keeps to no rule. Every fuzzed message is a sound one that was changed: bytes flipped, cut, doubled, inserted,
lengths and figures of the header replaced, checksums made right again in half of them so that what lies behind is reached too. They come as the
first message, after a good Hello, and inside turns. Beside them: pieces that claim 2 GiB, a message of just the limit that never ends, from several
connections at once; NaN and infinite tensors, wrong shapes, steps of another attempt.

Asserted: the server's memory (resident, read from /proc) grows by at most GROWTH_BYTES over what it was when training had begun: the bound of
split/stream.py, five messages for each stream that may be open, beside what the allocator keeps; every message is answered (refused, or the stream ended);
the server goes on serving; the adapters at the end are, bit for bit, those of unsplit training with the good device's turns alone. Some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
CUT, EPOCHS, BATCH, TOKENS, RATE = 2, 2, 2, 16, 0.05
ROUNDS = 100_000
CLAIMANTS = 8
GROWTH_BYTES = 96 * 2**20
METHOD = "/card.Split/Stream"
BUSY = "TURNED AWAY EVERY TIME"
"""A connection has only so many streams at a time, and gRPC holds on to those that a client breaks off. A message that meets this is not looked at, so it is
sent again over a new connection, as a stubborn client would."""
TRIES = 50


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(field)


class Channel:
    """gRPC as any program may speak it, under the name of a listed device."""

    def __init__(self, address: str) -> None:
        import grpc

        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.stream_stream(METHOD)

    @contextlib.contextmanager
    def stream(self) -> Iterator[tuple[Any, Any]]:
        """(put, answers): hand over a piece, None ends; and what comes back."""
        import queue

        pieces: queue.Queue[bytes | None] = queue.Queue()
        answers = self._call(iter(pieces.get, None), metadata=(("card-name", "rogue"),), timeout=60)
        try:
            yield pieces.put, answers
        finally:
            pieces.put(None)
            answers.cancel()

    def close(self) -> None:
        self._channel.close()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "little") + message


def samples() -> dict[str, bytes]:
    """Sound messages, to be changed."""
    import torch

    from split import wire

    hidden = {
        "hidden": wire.pack_tensor(torch.randn(BATCH, TOKENS, 256), "none", 0),
        "labels": wire.pack_tensor(torch.ones(BATCH, TOKENS, dtype=torch.int64), "none", 0),
    }
    packed = {
        "hidden": wire.pack_tensor(torch.randn(BATCH, TOKENS, 256), "int8-o2+zstd", 0),
        "labels": hidden["labels"],
    }
    step: dict[str, Any] = {"round": 1, "attempt": 1, "step": 0, "purpose": "train", "forward_s": 0.1, "encode_s": 0.0}
    times = wire.StepTimes(forward_s=0, encode_s=0, decode_s=0, backward_s=0, optimizer_s=0, waited_s=0)
    adapters = {f"layers.{n}.lora_A.weight": wire.pack_tensor(torch.randn(4, 64), "none", 0) for n in range(4)}
    return {
        "hello": wire.pack(wire.Hello(protocol=wire.PROTOCOL, toolkit="0", device="rogue")),
        "ready": wire.pack(wire.Ready(fingerprint="0", sequences=9, held_out=0, threads=1, torch="0")),
        "smashed": wire.pack(wire.Smashed(**step, sent_s=1.0), hidden),
        "compressed": wire.pack(wire.Smashed(**step, sent_s=1.0), packed),
        "adapters": wire.pack(
            wire.Adapters(round=1, attempt=1, steps=[times] * 4, round_received_s=1.0, loaded_s=0.0, sent_s=1.0),
            adapters,
        ),
        "pong": wire.pack(wire.Pong(number=1, ping_sent_s=1.0, received_s=1.0, sent_s=1.0)),
    }


def fuzzed(message: bytes, dice: random.Random) -> bytes:
    """The message, changed; with sound checksums half of the time, so that it is not refused for those alone."""
    data = bytearray(message)
    for _ in range(dice.choice((1, 1, 2, 5))):
        where = dice.randrange(min(len(data), dice.choice((32, 400, 10**9)))) if data else 0
        way = dice.randrange(6)
        if way == 0 and data:
            data[where] ^= 1 << dice.randrange(8)
        elif way == 1:
            data[where : where + dice.randrange(40)] = dice.randbytes(dice.randrange(40))
        elif way == 2:
            del data[where : where + dice.randrange(1, 200)]
        elif way == 3:
            data[where:where] = data[where : where + dice.randrange(1, 200)]
        elif way == 4:
            figure = dice.choice((b"-1", b"1e999", b"9" * 30, b"null", b"[]", b'"x"', b"NaN", b"1099511627775", b"0"))
            digits = [n for n, byte in enumerate(data[:2000]) if chr(byte).isdigit() and n > 15]
            if digits:
                at = dice.choice(digits)
                data[at : at + 1] = figure
        else:
            data += dice.randbytes(dice.randrange(1, 100))
    if dice.random() < 0.5 and len(data) > 16:
        end = data.find(b"]]}") + 3
        end += next((n for n, byte in enumerate(data[end:]) if byte != 32), 0)
        length = max(end - 16, 0)
        data[:16] = struct.pack("<4sHHII", b"CARD", 1, 0, length, zlib.crc32(data[16 : 16 + length]))
    return bytes(data)


class Attack:
    """What the third party does, and how it was answered."""

    def __init__(self, address: str, dice: random.Random) -> None:
        self.address, self.dice = address, dice
        self.answers: Counter[str] = Counter()
        self.sound = samples()
        self.turned_away = 0

    def fuzz(self, count: int) -> None:
        """``count`` fuzzed messages, as the first one or after a Hello."""
        channel = Channel(self.address)
        for _ in range(count):
            pieces = [framed(self.sound["hello"])] if self.dice.random() < 0.5 else []
            message = fuzzed(self.sound[self.dice.choice(list(self.sound))], self.dice)
            pieces.append(framed(message) if self.dice.random() < 0.9 else message)
            for _ in range(TRIES):
                with channel.stream() as (put, answers):
                    for piece in (*pieces, None):
                        put(piece)
                    answer = self._answered(answers)
                if answer != BUSY:
                    break
                self.turned_away += 1
                channel.close()
                channel = Channel(self.address)
            self.answers[answer] += 1
        channel.close()

    def _answered(self, answers: Any) -> str:
        import grpc

        from split import wire

        last = "stream ended without a word"
        try:
            for piece in answers:
                body, _ = wire.unpack(piece[4:], wire.Limits())
                if isinstance(body, wire.Refusal):
                    return "refused with a reason"
                last = f"{body.kind}, then the stream ended"
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return "NO ANSWER"
            if code is grpc.StatusCode.UNAVAILABLE:
                return BUSY
            return f"ended: {code.name}"
        return last

    def claim(self, length: int, sent_bytes: int, seconds: float) -> None:
        """A message that says to be ``length`` bytes long, of which ``sent_bytes`` come, and then nothing for a while."""
        channel = Channel(self.address)
        with channel.stream() as (put, answers):
            piece = length.to_bytes(4, "little") + b"CARD"
            put(piece)
            left = sent_bytes
            while left > 0:
                put(bytes(min(left, 1 << 20)))
                left -= 1 << 20
            time.sleep(seconds)
            answers.cancel()
        channel.close()

    def misbehave_in_turns(self, count: int) -> None:
        """As a device that is let in: ``count`` turns that go wrong, each in another way."""
        import torch

        from profiler.workload.model import WorkloadSpec
        from split import wire
        from split.half import Half
        from split.transport import Gone, Silent, dial

        fingerprint = Half(WorkloadSpec("tiny-llama-test", BATCH, TOKENS), "device").fingerprint
        for number in range(count):
            with contextlib.suppress(Gone, Silent, wire.Refused):
                stream = dial(self.address, None, None, "rogue")
                stream.send(wire.Hello(protocol=wire.PROTOCOL, toolkit="0", device="rogue"))
                stream.receive(20)
                stream.send(wire.Ready(fingerprint=fingerprint, sequences=9, held_out=0, threads=1, torch="0"))
                while True:
                    received = stream.receive(20)
                    body = received.body
                    if isinstance(body, wire.Ping):
                        at = time.monotonic()
                        stream.send(wire.Pong(number=body.number, ping_sent_s=body.sent_s, received_s=at, sent_s=at))
                    elif isinstance(body, wire.Round):
                        break
                value = (float("nan"), float("inf"), 3e38, 0.1, 0.1, 0.1)[number % 6]
                shape = (BATCH, TOKENS, 256) if number % 6 != 3 else (BATCH, TOKENS, 8)
                tensors = {
                    "hidden": wire.pack_tensor(torch.full(shape, value), "none", 0),
                    "labels": wire.pack_tensor(torch.ones((BATCH, TOKENS), dtype=torch.int64), "none", 0),
                }
                told: dict[str, Any] = {
                    "round": body.round,
                    "attempt": body.attempt + (number % 6 == 4),
                    "step": 0,
                    "purpose": "train",
                }
                smashed = wire.Smashed(**told, forward_s=0.0, encode_s=0.0, sent_s=1.0)
                stream.send(smashed, tensors)
                if number % 6 == 5:
                    stream.receive(20)
                    stream.send(smashed, tensors)  # the same step once more
                try:
                    while True:
                        stream.receive(20)
                except (Gone, Silent) as error:
                    self.answers[
                        f"in a turn: {'refused with a reason' if getattr(error, 'refusal', None) else error}"
                    ] += 1
                stream.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="split-hostile-") as folder, contextlib.ExitStack() as stack:
        misses = attacked(Path(folder), asked.messages, asked.seed, stack)
    print(f"{time.monotonic() - began:.0f} s; " + ("held" if not misses else f"{len(misses)} MISSES"))
    for miss in misses:
        print(f"MISS {miss}")
    return 1 if misses else 0


def attacked(folder: Path, messages: int, seed: int, stack: contextlib.ExitStack) -> list[str]:
    text = folder / "text.txt"
    text.write_text("The cut layer decides what the device computes and what crosses the link. " * 200)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = [
        "server",
        "--model",
        "tiny-llama-test",
        "--cut",
        str(CUT),
        "--devices",
        "good,rogue",
        "--rounds",
        str(ROUNDS),
    ]
    words += ["--local-epochs", str(EPOCHS), "--batch-size", str(BATCH), "--seq-len", str(TOKENS), "--listen", address]
    words += ["--learning-rate", str(RATE), "--output", str(folder / "run"), "--timeout", "10", "--patience", "60"]
    lines: list[str] = []
    server = started(words, stack, lines)
    good: list[str] = []
    uplink = ["--uplink-mbps", "20"]  # so that it does not take all of the processor
    started(["device", "--server", address, "--name", "good", "--data", str(text), *uplink], stack, good)
    wait(lambda: any("listening" in line for line in list(lines)), server, lines)
    attack = Attack(address, random.Random(seed))
    attack.misbehave_in_turns(1)  # the server begins once everybody was there
    wait(lambda: merged(lines) >= 20, server, lines)
    before = resident_bytes(server.pid)
    peak = [before]
    stop = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended
            while not stop.wait(0.05):
                peak.append(resident_bytes(server.pid))

    def tell() -> None:
        """How far it is: the figures come at the end, after some minutes."""
        while not stop.wait(30.0):
            answered = sum(attack.answers.values())
            print(
                f"{answered} of {messages} messages answered, {merged(lines)} turns merged", file=sys.stderr, flush=True
            )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    threading.Thread(target=tell, daemon=True).start()
    # Two at a time: each stream replaces the other's, which bears the same name.
    shares = (messages - messages // 10, messages // 10)
    fuzzers = [threading.Thread(target=attack.fuzz, args=(share,), daemon=True) for share in shares]
    for thread in fuzzers:
        thread.start()
    for thread in fuzzers:
        thread.join()
    fuzz_peak, at = max(peak), merged(lines)
    attack.misbehave_in_turns(18)
    limit = 4 << 20
    claims = [(2**31 - 1, 0), (2**32 - 1, 0), (limit, limit // 2), (limit // 2, limit // 2 - 100), (10**6, 900_000)]
    threads = [threading.Thread(target=attack.claim, args=(*claims[n % 5], 3.0)) for n in range(CLAIMANTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    misses = []
    ended = merged(lines)
    with contextlib.suppress(AssertionError):
        wait(lambda: merged(lines) >= ended + 5, server, lines)
    if merged(lines) < ended + 5:
        misses.append(f"the server does not go on: {lines[-3:]}")
    stop.set()
    watcher.join()
    after, high = resident_bytes(server.pid), max(max(peak), resident_bytes(server.pid, "VmHWM"))
    threads_now = len(list(Path(f"/proc/{server.pid}/task").iterdir()))
    print(f"server: {before / 1e6:.0f} MB resident before, {fuzz_peak / 1e6:.0f} MB at most under {messages} fuzzed messages, "
          f"{high / 1e6:.0f} MB at most in all, {after / 1e6:.0f} MB after; {threads_now} threads; {merged(lines)} turns merged, {at} of them by the end of the fuzz")  # fmt: skip
    for answer, count in attack.answers.most_common():
        print(f"  {count:6d}  {answer}")
        if answer in ("NO ANSWER", BUSY):
            misses.append(f"{count} messages: {answer.lower()}")
    print(f"  {attack.turned_away:6d}  times a stream was one too many on its connection, and a new one was made")
    if high - before > GROWTH_BYTES:
        misses.append(
            f"memory grew by {(high - before) / 2**20:.0f} MiB, at most {GROWTH_BYTES / 2**20:.0f} MiB were allowed"
        )
    server.send_signal(2)
    if server.wait(30) != 130:
        misses.append(f"the server ended with {server.returncode}: {lines[-3:]}")
    return misses + replayed(folder, text)


def replayed(folder: Path, text: Path) -> list[str]:
    """Plain training with the good device's turns: is that what the disk holds?"""
    import torch
    from safetensors.torch import load_file

    from profiler.workload.model import WorkloadSpec
    from split import data
    from split.half import Half, Training

    torch.set_num_threads(1)
    state = max((folder / "run").glob("state-*"))
    turns = json.loads((state / "state.json").read_bytes())["state"]["turns"]
    half = Half(WorkloadSpec("tiny-llama-test", BATCH, TOKENS), "whole", training=Training("sgd", RATE))
    sequences = data.load(text, None, TOKENS, vocab_size=half.vocab_size, name="good")
    for step in range(turns * EPOCHS):
        half.unsplit(*sequences.batch(0, step, BATCH))
        half.backward()
        half.step()
    found = load_file(state / "adapters.safetensors")
    wrong = [name for name, value in half.adapters().items() if not torch.equal(found[name], value)]
    print(f"{turns} turns of the good device replayed: {len(wrong)} of {len(found)} adapters differ")
    return [f"{len(wrong)} adapters differ from unsplit training"] if wrong else []


def started(words: list[str], stack: contextlib.ExitStack, lines: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import cli; cli.train_main()", *words, "--hardware", "cpu"],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stderr is not None
    threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True).start()
    return process


def merged(lines: list[str]) -> int:
    return sum("good, cut" in line and ": loss " in line for line in list(lines))


def wait(what: Any, process: subprocess.Popen[str], lines: list[str], within_s: float = 180.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert process.poll() is None, lines[-5:]
        assert time.monotonic() < end, lines[-5:]
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
