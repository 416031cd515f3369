"""``--codec auto`` in a real run: what the solver decides for a round is what crosses the wire in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the [train] extra is not installed")
pytest.importorskip("grpc", reason="the [train] extra is not installed")
pytest.importorskip("zstandard", reason="the [train] extra is not installed")

from profiler.profile import BadInput, CodecFigures
from profiler.store import save
from solver.problem import SolveOptions
from split import wire
from split.decide import Fixed
from split.stream import Received, Stream
from tests.solver.test_codecs import figures, measured
from tests.split.test_roles import BATCH, EPOCHS, TOKENS, Notes, options, text, train
from tests.synthetic import make_profile

__all__ = ["text"]  # the fixture

LAYERS = 8
HARMLESS, COARSE = "int8-o2+zstd", "int4"
CUTS = range(1, LAYERS)
CODECS = (
    figures(HARMLESS, 0.3, 0.3, 2e-3, loss=0.001, cuts=CUTS),
    figures(COARSE, 0.14, 0.14, 1e-3, loss=0.3, cuts=CUTS),
)


def written(folder: Path, codecs: tuple[CodecFigures, ...] = CODECS) -> Path:
    """Profiles of the workload that the run trains: 1 MB crosses at each cut by them, codecs take 20 ms a mini-batch."""
    for name, role in (("server", "server"), ("one", "device")):
        profile = make_profile(name, role, layers=LAYERS, compression=measured(*codecs))  # type: ignore[arg-type]
        workload = profile.workload.model_copy(
            update={"model": "tiny-llama-test", "batch_size": BATCH, "seq_len": TOKENS, "vocab_size": 4096}
        )
        save(profile.model_copy(update={"workload": workload}), folder / f"{name}.json")
    return folder


def channel(path: Path, *mbps: float) -> str:
    rows = [f"{number},one,{rate},{rate}" for number, rate in enumerate(mbps, 1)]
    path.write_text("\n".join(["round,device,uplink_mbps,downlink_mbps", *rows]) + "\n")
    return str(path)


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str, int]]:
    """(kind, round, codec, bytes) of every tensor of activations or gradients that either side receives."""
    seen: list[tuple[str, int, str, int]] = []
    real = Stream.receive

    def noted(self: Stream, timeout_s: float | None) -> Received:
        found = real(self, timeout_s)
        body = found.body
        if isinstance(body, (wire.Smashed, wire.Gradient)):
            seen.extend(
                (body.kind, body.round, packed.codec, len(packed.payload))
                for name, packed in found.tensors.items()
                if name != "labels"
            )
        return found

    monkeypatch.setattr(Stream, "receive", noted)
    return seen


def test_each_round_the_solvers_codec_crosses_in_both_directions(
    tmp_path: Path, text: Path, crossed: list[tuple[str, int, str, int]]
) -> None:
    rates = channel(tmp_path / "rates.csv", 5.0, 50_000.0, 5.0)
    solve = SolveOptions(w=1.0, rounds=3, local_epochs=EPOCHS, codec="auto", max_loss_increase=0.002, channel=rates)
    server = options(tmp_path, profiles=written(tmp_path / "fleet"), solve=solve, fixed=Fixed(), report=True)
    outcome = train(server, text)
    assert (outcome.turns, outcome.lost) == (3, 0)
    raw = BATCH * TOKENS * 256 * 4
    for round, expected in ((1, HARMLESS), (2, "none"), (3, HARMLESS)):
        for kind in ("smashed", "gradient"):
            sizes = [bytes_ for k, r, codec, bytes_ in crossed if (k, r) == (kind, round) and codec == expected]
            assert len(sizes) == EPOCHS, (round, kind, crossed)
            assert all(size == raw if expected == "none" else size < raw / 3 for size in sizes)
    assert len(crossed) == 3 * 2 * EPOCHS
    rounds = json.loads((server.output / "report.json").read_text())["turns"]
    assert [(row["codec_up"], row["codec_down"]) for row in rounds] == [
        (HARMLESS, HARMLESS), ("none", "none"), (HARMLESS, HARMLESS),
    ]  # fmt: skip


@pytest.mark.parametrize(("limit", "expected"), [(0.0, "none"), (0.001, HARMLESS), (0.5, COARSE)])
def test_the_limit_on_the_loss_decides_which_codec_crosses_a_slow_link(
    tmp_path: Path, text: Path, crossed: list[tuple[str, int, str, int]], limit: float, expected: str
) -> None:
    solve = SolveOptions(
        w=1.0, rounds=1, local_epochs=1, codec="auto", max_loss_increase=limit, uplink_mbps=5.0, downlink_mbps=5.0
    )
    train(options(tmp_path, profiles=written(tmp_path / "fleet"), solve=solve, fixed=Fixed()), text)
    assert {codec for _, _, codec, _ in crossed} == {expected}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "int3"}, r"--codec int3: profile one: field compression\.codecs has no figures of it"),
        ({"codec": HARMLESS, "max_loss_increase": 0.1}, "expected --codec auto with it"),
    ],
)
def test_a_codec_that_cannot_be_decided_is_told_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    from split.server import run_server

    server = options(tmp_path, profiles=written(tmp_path / "fleet"), fixed=Fixed())
    asked = replace(server, solve=replace(server.solve, uplink_mbps=5.0, downlink_mbps=5.0, **changes))
    with Notes().reporter as say, pytest.raises(BadInput, match=message):
        run_server(asked, say)


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        ("auto", None, "--codec auto: expected --profiles with it"),
        ("int99", None, "codec 'int99': expected none, fp16"),
        (None, 0.002, r"--max-loss-increase 0\.002: expected --profiles and --codec auto"),
    ],
)
def test_without_profiles_a_codec_goes_by_its_name(
    tmp_path: Path, name: str | None, limit: float | None, message: str
) -> None:
    from split.server import run_server

    server = options(tmp_path, fixed=Fixed(cut=2, codec=name))
    asked = replace(server, solve=replace(server.solve, max_loss_increase=limit))
    with Notes().reporter as say, pytest.raises(BadInput, match=message):
        run_server(asked, say)
