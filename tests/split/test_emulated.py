"""An emulated link in a running system: decided by, sent to the device, and really as slow as that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from profiler.profile import BadInput
from solver.problem import SolveOptions
from split.decide import Decider, Fixed, TrainedWorkload
from split.emulated import EmulatedLink, posed
from split.shaping import LinkTrace, Shape
from tests.split.test_roles import EPOCHS, options, text, train

__all__ = ["text"]  # a fixture

WORKLOAD = TrainedWorkload("m", 8, 2, 16, "float32", 4, ("q_proj", "v_proj"))


def decider(names: tuple[str, ...] = ("one", "two"), **solve: object) -> Decider:
    return Decider(None, SolveOptions(**solve), names, WORKLOAD, Fixed(cut=2))  # type: ignore[arg-type]


def test_without_profiles_a_run_is_decided_by_the_rates_that_were_given() -> None:
    decision = decider(uplink_mbps=8, downlink_mbps=16, rounds=3).decide(3, "two")
    assert (decision.uplink_bps, decision.downlink_bps) == (8e6, 16e6)
    assert decider(rounds=3).decide(1, "one").uplink_bps is None


def test_a_radio_channel_moves_from_round_to_round_and_from_device_to_device_and_the_same_again() -> None:
    decisions = {(n, name): decider(channel="poor", rounds=6).decide(n, name) for n in range(1, 7) for name in ("one", "two")}  # fmt: skip
    assert len({d.uplink_bps for d in decisions.values()}) > 3
    again = decider(channel="poor", rounds=6).decide(4, "two")
    assert (again.uplink_bps, again.downlink_bps) == (decisions[4, "two"].uplink_bps, decisions[4, "two"].downlink_bps)


def test_a_trace_by_rounds_holds_for_its_rounds_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("round,device,uplink_mbps,downlink_mbps\n1,one,8,16\n2,one,4,2\n")
    both = decider(("one",), channel=str(path), rounds=2)
    assert [(d.uplink_bps, d.downlink_bps) for d in (both.decide(n, "one") for n in (1, 2))] == [(8e6, 16e6), (4e6, 2e6)]  # fmt: skip
    with pytest.raises(BadInput, match="ends with round 2, and --rounds asks for 3 rows of each device"):
        decider(("one",), channel=str(path), rounds=3)


def test_a_trace_over_time_is_decided_by_what_holds_now() -> None:
    now = [10.0]
    trace = LinkTrace([(2.0, 8e6), (0.0, 1e6)], [(2.0, 16e6), (0.0, 3e6)])
    link = EmulatedLink(True, trace, lambda: now[0])
    assert link.rates_bps() == (8e6, 16e6)
    now[0] += 5
    assert link.rates_bps() == (1e6, 3e6)
    asked = posed(SolveOptions(), trace)
    assert (asked.uplink_mbps, asked.downlink_mbps) == (8.0, 16.0)
    with pytest.raises(BadInput, match="--trace: expected either it or --channel"):
        posed(SolveOptions(channel="poor"), trace)
    assert EmulatedLink(False, None).rates_bps() == (None, None)


def stages(folder: Path, round: int) -> dict[str, float]:
    turns = json.loads((folder / "report.json").read_text())["turns"]
    turn = next(turn for turn in turns if turn["round"] == round)
    return {stage: row["measured_s"] for stage, row in turn["stages"].items()} | {
        "up_bits": 8 * (turn["bytes_up"] - turn["adapters_bytes_up"]),
        "down_bits": 8 * (turn["bytes_down"] - turn["adapters_bytes_down"]),
    }


def test_both_directions_of_a_run_are_as_slow_as_it_was_decided_by(tmp_path: Path, text: Path) -> None:
    """The device needs no option for it; the server tells it the rate before each turn."""
    asked = options(tmp_path, report=True, shaped=True, solve=SolveOptions(rounds=2, local_epochs=EPOCHS, uplink_mbps=2, downlink_mbps=4))  # fmt: skip
    assert train(asked, text).turns == 2
    for round in (1, 2):
        found = stages(asked.output, round)
        # Never faster; a slow machine may add to it.
        assert found["up_bits"] / 2e6 * 0.99 < found["uplink"] < found["up_bits"] / 2e6 * 1.2 + 0.1
        assert found["down_bits"] / 4e6 * 0.99 < found["downlink"] < found["down_bits"] / 4e6 * 1.2 + 0.1


def test_a_trace_over_time_slows_a_run_from_its_moment_on(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_s,uplink_mbps,downlink_mbps\n0,1,1\n1000,50,50\n")
    asked = options(tmp_path, rounds=1, report=True, trace=path)
    train(asked, text)
    found = stages(asked.output, 1)
    assert found["uplink"] > 0.99 * found["up_bits"] / 1e6


def test_a_device_with_a_rate_of_its_own_keeps_it(tmp_path: Path, text: Path) -> None:
    asked = options(tmp_path, rounds=1, report=True, shaped=True, solve=SolveOptions(rounds=1, local_epochs=EPOCHS, uplink_mbps=1, downlink_mbps=50))  # fmt: skip
    train(asked, text, shape=Shape(20e6))
    found = stages(asked.output, 1)
    assert 0.99 * found["up_bits"] / 20e6 < found["uplink"] < 0.5 * found["up_bits"] / 1e6


def test_a_run_that_is_to_be_slowed_without_any_rates_says_which_options_give_them(tmp_path: Path, text: Path) -> None:
    with pytest.raises(BadInput, match="--shape: no rates to slow the link to, expected --uplink-mbps"):
        train(options(tmp_path, shaped=True), text)
