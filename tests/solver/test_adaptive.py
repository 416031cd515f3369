"""Policies for a channel that moves inside a round: bounds, brute force, what a policy may know, and the face of `follow`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput, CutSizes, Link, Profile
from profiler.store import load_fleet, save
from solver import adaptive
from solver.adaptive import POLICIES, Forecast, Lane, follow
from solver.channel import Channel
from solver.problem import SolveOptions, pose
from solver.scenario import solve
from tests.synthetic import make_profile

ROOT = Path(__file__).resolve().parents[2]


def lane(random: np.random.Generator, cuts: int = 4, **changes: Any) -> Lane:
    feasible = random.random(cuts) < 0.8
    feasible[random.integers(cuts)] = True
    return replace(
        Lane(
            feasible=feasible,
            still_s=random.uniform(0.1, 3, cuts),
            still_j=random.uniform(0, 50, cuts),
            uplink_bits=random.uniform(0, 2e7, cuts),
            downlink_bits=random.uniform(0, 2e7, cuts),
            adapter_bits=np.cumsum(random.uniform(0, 5e6, cuts)),
            trip_s=float(random.choice([0.0, 0.05])),
            by_delay=float(random.uniform(0, 1)),
            by_energy=float(random.uniform(0, 0.1)),
            idle_w=float(random.choice([0.0, 7.0])),
            clock_hz=np.full(cuts, 1e9),
            moving=float(random.choice([1.0, 3.0])),
        ),
        **changes,
    )


def moving_rates(random: np.random.Generator, rounds: int, blocks: int) -> np.ndarray[Any, Any]:
    return 10 ** random.uniform(6, 9, (rounds, blocks))


def plainly(of: Lane, cuts: list[int], sizes: list[int], up_bps: Any, down_bps: Any) -> tuple[float, float, float]:
    """Delay, energy and cost of one round, transfer by transfer."""
    waiting = of.adapter_bits[cuts[0]] / down_bps[0] + of.trip_s
    delay = energy = 0.0
    for k, c in enumerate(cuts):
        if k and c != cuts[k - 1]:
            difference = of.adapter_bits[c] - of.adapter_bits[cuts[k - 1]]
            rate = down_bps[k] if difference > 0 else up_bps[k]
            waiting += of.moving * abs(difference) / rate + of.trip_s
        for _ in range(sizes[k]):
            delay += of.still_s[c]
            energy += of.still_j[c]
            waiting += of.uplink_bits[c] / up_bps[k] + of.downlink_bits[c] / down_bps[k]
    waiting += of.adapter_bits[cuts[-1]] / up_bps[-1] + of.trip_s
    delay, energy = delay + waiting, energy + of.idle_w * waiting
    return delay, energy, of.by_delay * delay + of.by_energy * energy - of.cost_at_zero


# ------------------------------------------------------------------------------------------------------ bounds and optima


@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_best_sequence_is_that_of_trying_all_of_them(seed: int, blocks: int) -> None:
    random = np.random.default_rng(seed)
    of, sizes = lane(random, cuts=3), random.integers(1, 4, blocks)
    up, down = moving_rates(random, 2, blocks), moving_rates(random, 2, blocks)
    found = adaptive.run(of, sizes, up, down, 0.0)
    fitting = np.flatnonzero(of.feasible).tolist()
    for n in range(2):
        every = [
            plainly(of, list(cuts), sizes.tolist(), up[n], down[n])[2]
            for cuts in itertools.product(fitting, repeat=blocks)
        ]
        assert found["best"].cost[n] == pytest.approx(min(every), rel=1e-9)
        once = [plainly(of, [c] * blocks, sizes.tolist(), up[n], down[n])[2] for c in fitting]
        assert found["clairvoyant"].cost[n] == pytest.approx(min(once), rel=1e-9)


@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.0, 0.1, 3.0]))
@settings(max_examples=60, deadline=None)
def test_knowing_more_or_moving_for_less_never_costs_more(seed: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    blocks = int(random.integers(1, 7))
    of, sizes = lane(random, cuts=int(random.integers(1, 9))), random.integers(1, 4, blocks)
    up, down = moving_rates(random, 12, blocks), moving_rates(random, 12, blocks)
    found = adaptive.run(of, sizes, up, down, threshold)
    cost = {name: found[name].cost for name in POLICIES}
    for lower, higher in [
        ("best", "clairvoyant"),
        ("clairvoyant", "start"),
        ("clairvoyant", "mean"),
        ("best", "adaptive"),
        *[("free", name) for name in POLICIES],
    ]:
        assert np.all(cost[lower] <= cost[higher] + 1e-9 * np.abs(cost[higher]) + 1e-12), (lower, higher)
    for outcome in found.values():
        assert of.feasible[outcome.cut_index].all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_round_costs_what_its_transfers_add_up_to(seed: int) -> None:
    random = np.random.default_rng(seed)
    of, sizes = lane(random, cost_at_zero=2.0), random.integers(1, 4, 3)
    up, down = moving_rates(random, 5, 3), moving_rates(random, 5, 3)
    for name, outcome in adaptive.run(of, sizes, up, down, 0.0).items():
        if name == "free":
            continue
        for n in range(5):
            parts = plainly(of, outcome.cut_index[n].tolist(), sizes.tolist(), up[n], down[n])
            assert (outcome.delay_s[n], outcome.energy_j[n], outcome.cost[n]) == pytest.approx(parts, rel=1e-9)


# -------------------------------------------------------------------------------------------------- the rule with hysteresis


@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.0, 0.2, 1.0]))
@settings(max_examples=80, deadline=None)
def test_where_the_channel_changes_once_and_stays_the_rule_is_within_its_threshold_of_the_best_answer_to_it(
    seed: int, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    blocks = int(random.integers(2, 7))
    step = int(random.integers(1, blocks))
    of, sizes = lane(random, cuts=5), np.ones(blocks, dtype=np.intp)
    up, down = (np.repeat(10 ** random.uniform(6, 9, 2), [step, blocks - step])[None, :] for _ in range(2))
    found = adaptive.run(of, sizes, up, down, threshold)
    first, rule = int(found["start"].cut_index[0, 0]), float(found["adaptive"].cost[0])
    answers = [
        plainly(of, [first] * step + [c] * (blocks - step), sizes.tolist(), up[0], down[0])[2]
        for c in np.flatnonzero(of.feasible).tolist()
    ]
    assert found["adaptive"].cut_index[0, 0] == first  # nothing is known of the change before it comes
    assert rule <= found["start"].cost[0] + 1e-9
    assert rule <= min(answers) + threshold + 1e-9
    assert found["adaptive"].recuts[0] <= 1
    if found["adaptive"].recuts[0]:
        assert rule < found["start"].cost[0] - threshold + 1e-9


def test_no_threshold_is_so_high_that_it_changes_the_first_cut_and_a_high_one_keeps_it() -> None:
    random = np.random.default_rng(3)
    of, sizes = lane(random, cuts=6), np.ones(5, dtype=np.intp)
    up, down = moving_rates(random, 50, 5), moving_rates(random, 50, 5)
    low, high = (adaptive.run(of, sizes, up, down, threshold)["adaptive"] for threshold in (0.0, 1e9))
    assert low.cut_index[:, 0].tolist() == high.cut_index[:, 0].tolist()
    assert low.recuts.sum() > high.recuts.sum() == 0


def test_dearer_moves_are_fewer_moves() -> None:
    random = np.random.default_rng(4)
    of, sizes = lane(random, cuts=6), np.ones(5, dtype=np.intp)
    up, down = moving_rates(random, 200, 5), moving_rates(random, 200, 5)
    counts = [
        adaptive.run(replace(of, moving=moving), sizes, up, down, 0.0)["adaptive"].recuts.sum()
        for moving in (1.0, 10.0, 1e6)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


def test_the_rule_knows_nothing_of_what_is_to_come() -> None:
    random = np.random.default_rng(5)
    of, sizes = lane(random, cuts=6), np.ones(4, dtype=np.intp)
    up, down = moving_rates(random, 30, 4), moving_rates(random, 30, 4)
    before = adaptive.run(of, sizes, up, down, 0.0)
    n, k = 17, 2
    other_up, other_down = up.copy(), down.copy()
    other_up[n, k:], other_down[n, k:] = moving_rates(random, 2, 4 - k)
    other_up[n + 1 :], other_down[n + 1 :] = moving_rates(random, 12, 4), moving_rates(random, 12, 4)
    after = adaptive.run(of, sizes, other_up, other_down, 0.0)
    for name in ("start", "mean", "adaptive"):
        assert np.array_equal(before[name].cut_index[:n], after[name].cut_index[:n])
        assert np.array_equal(before[name].cut_index[n, :k], after[name].cut_index[n, :k])


def test_a_forecast_learns_mean_and_memory_from_the_rounds_before_only() -> None:
    random = np.random.default_rng(6)
    x = np.zeros(40_000)
    for t in range(1, len(x)):
        x[t] = 0.7 * x[t - 1] + random.normal()
    inverse = (5.0 + x).reshape(-1, 8)
    found = Forecast.of_past(inverse)
    assert found.mean[-1] == pytest.approx(5, abs=0.1)
    assert found.memory[-1] == pytest.approx(0.7, abs=0.02)
    assert (found.mean[0], found.memory[0]) == (inverse[0, 0], 1.0)
    again = Forecast.of_past(np.concatenate([inverse[:100], 1e3 * inverse[100:]]))
    assert again.mean[100] == pytest.approx(found.mean[100])
    total, last = found.of(slice(-1, None)).ahead(np.array([9.0]), np.array([1, 1, 1]))
    mean, memory = found.mean[-1], found.memory[-1]
    assert total[0] == pytest.approx(3 * mean + (9 - mean) * (1 + memory + memory**2))
    assert last[0] == pytest.approx(mean + (9 - mean) * memory**2)


def test_a_channel_that_never_moved_is_taken_to_stay() -> None:
    assert Forecast.of_past(np.full((50, 4), 1e-8)).memory.tolist() == [1.0] * 50


# ------------------------------------------------------------------------------------------------------------- on fleets


def fleet(**of_device: Any) -> list[Profile]:
    return [make_profile("srv", "server"), make_profile("a", **of_device), make_profile("b")]


def wide_from(cut: int) -> dict[str, Any]:
    """Sizes as of an encoder-decoder model: from ``cut`` on more crosses."""
    sizes = make_profile("a").sizes
    rows = [
        CutSizes(cut=r.cut, smashed_bytes=r.smashed_bytes * (9 if r.cut >= cut else 1), gradient_bytes=r.gradient_bytes)
        for r in sizes.cuts
    ]
    return {"sizes": sizes.model_copy(update={"cuts": rows})}


@pytest.mark.parametrize("changes", [{}, {"count_idle": True}, {"evaluate": "letter"}, {"w": 0.9}, {"local_epochs": 7}])
def test_where_the_channel_does_not_move_every_policy_is_the_decision_of_card_solve(changes: dict[str, Any]) -> None:
    options = SolveOptions(channel=Channel(fading="none", gain_db=-100), **changes)
    # --evaluate letter: the decision itself is taken in that model too
    profiles = (
        fleet() if changes.get("evaluate") != "letter" else [p.model_copy(update={"timings": []}) for p in fleet()]
    )
    found, decided = follow(profiles, options, block=2), solve(profiles, options).decisions
    assert decided.costs.energy_j is not None
    for m, of in enumerate(found.lanes):
        for name in set(POLICIES) - {"free"}:  # it may end at another cut, for it moves for nothing
            outcome = found.outcomes[name][m]
            assert set((outcome.cut_index + 1).ravel().tolist()) == {int(decided.cut[m])}
            assert outcome.delay_s == pytest.approx(decided.costs.delay_s[m])
            assert outcome.energy_j == pytest.approx(decided.costs.energy_j[m])
            assert outcome.cost == pytest.approx(decided.cost[m], abs=1e-9)
        assert of.clock_hz[decided.cut[m] - 1] == pytest.approx(decided.frequency_hz[m])
    assert any("do not change inside any round" in line for line in found.warnings)


def test_on_the_letters_fleet_nothing_is_lost_by_deciding_once() -> None:
    found = follow(load_fleet(ROOT / "profiles" / "letter"), SolveOptions(channel="poor", rounds=300))
    assert all(found.same_size_everywhere)
    loss = found.summary("start")["cost_loss"]
    assert loss is not None
    assert abs(loss) < 1e-4
    assert found.summary("adaptive")["recuts_per_round"] == 0


def test_where_less_crosses_at_some_cuts_the_rule_loses_less_than_deciding_at_the_start() -> None:
    options = SolveOptions(channel=Channel(gain_db=-95), rounds=400)
    found = follow(fleet(**wide_from(3)), options, correlation=0.9)
    assert found.same_size_everywhere == [False, True]
    start, rule = found.summary("start", 0), found.summary("adaptive", 0)
    assert rule["recuts_per_round"]
    assert start["cost_loss"] is not None
    assert rule["cost_loss"] is not None
    assert rule["cost_loss"] < start["cost_loss"]


def test_of_a_trace_each_row_of_a_device_is_one_block_and_what_fills_no_round_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = [f"{r},{name},{10 * r + m},{20 * r + m}" for r in range(1, 8) for m, name in enumerate("ab")]
    path.write_text("round,device,uplink_mbps,downlink_mbps\n" + "\n".join(lines) + "\n")
    found = follow(fleet(), SolveOptions(channel=str(path), local_epochs=5), block=2)
    assert found.sizes.tolist() == [2, 2, 1]
    assert found.rounds == 2
    assert any("the last 1 of 7 rows" in line for line in found.warnings)
    assert not any("channel" in a.quantity and "within" not in a.quantity for a in found.assumptions)
    with pytest.raises(BadInput, match="7 rows for a device, expected 9, one for each block"):
        follow(fleet(), SolveOptions(channel=str(path), local_epochs=9))
    with pytest.raises(BadInput, match=r"--correlation 0\.5: expected a radio channel"):
        follow(fleet(), SolveOptions(channel=str(path)), correlation=0.5)


def test_measured_links_stay_as_they_are_and_are_not_given_up_for_a_correlation() -> None:
    link = Link(provenance="measured", uplink_mbps=40, downlink_mbps=80, round_trip_s=0.01)
    linked = [make_profile("srv", "server"), make_profile("a", link=link)]
    found = follow(linked, SolveOptions(rounds=4))
    assert found.outcomes["start"][0].delay_s == pytest.approx(solve(linked, SolveOptions()).decisions.costs.delay_s[0])
    with pytest.raises(BadInput, match="--correlation"):
        follow(linked, SolveOptions(), correlation=0.5)


def test_rounds_are_many_and_memory_stays_small_without_changing_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SolveOptions(channel=Channel(gain_db=-95), rounds=300)
    whole = follow(fleet(**wide_from(3)), options)
    monkeypatch.setattr(adaptive, "BLOCK_POINTS", 100)
    pieces = follow(fleet(**wide_from(3)), options)
    for name in POLICIES:
        assert np.array_equal(whole.outcomes[name][0].cut_index, pieces.outcomes[name][0].cut_index)


def test_a_price_of_a_second_serves_as_well_as_u() -> None:
    found = follow(fleet(), SolveOptions(price_j_per_s=3.0, channel="poor", rounds=20))
    outcome = found.outcomes["adaptive"][0]
    assert outcome.cost == pytest.approx(3 * outcome.delay_s + outcome.energy_j)
    assert found.threshold == 0


def test_without_power_energy_is_left_empty() -> None:
    bare = [p.model_copy(update={"power_fit": None}) for p in fleet()]
    assert follow(bare, SolveOptions(w=1.0, rounds=3)).summary("start")["mean_energy_j"] is None


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"method": "card"}, {}, "--method card: expected exact"),
        ({"max_delay_s": 5.0}, {}, "--max-delay-s: expected --w or --price"),
        ({}, {"threshold": -1.0}, "--threshold -1: expected a number from 0"),
        ({}, {"moving": 0.5}, "--moving 0.5: expected a number from 1"),
        ({}, {"block": 6}, "--block 6: expected 1 to 5 mini-batches"),
        ({}, {"correlation": 1.0}, "--correlation 1: expected a number from 0 to below 1"),
        ({"local_epochs": 0}, {}, "--local-epochs 0: expected a whole number from 1"),
        ({"rounds": 5_000_000}, {}, "--rounds 5000000: 25000000 blocks, expected at most 10000000"),
        ({"local_epochs": 10**6}, {}, "--block 1: 1000000 blocks in a round, expected at most 10000"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(
    options: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        follow(fleet(), SolveOptions(**options), **arguments)
    assert "\n" not in str(caught.value)


def card_solve(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from cli import solve_main; solve_main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_command_prints_json_alone_and_says_what_each_policy_loses(tmp_path: Path) -> None:
    for profile in fleet(**wide_from(3)):
        save(profile, tmp_path / f"{profile.name}.json")
    done = card_solve("follow", "--profiles", str(tmp_path), "--channel", "poor", "--rounds", "7", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout, parse_constant=pytest.fail)
    assert list(answer["policies"]) == list(POLICIES)
    assert answer["policies"]["clairvoyant"]["cost_loss"] == 0
    assert answer["policies"]["start"]["cost_loss"] >= 0
    blocks = answer["policies"]["adaptive"]["devices"][0]["cuts"]
    assert sum(blocks.values()) == 7 * 5
    assert answer["one_size_at_all_cuts"] == {"a": False, "b": True}
    shown = card_solve("follow", "--profiles", str(tmp_path), "--channel", "poor", "--rounds", "7")
    assert shown.returncode == 0, shown.stderr
    assert "clairvoyant" in shown.stdout


def test_the_mean_rates_are_of_seconds_not_of_rates() -> None:
    problem = pose(fleet(), SolveOptions(rounds=2))
    rates = np.array([[[1e6, 1e6]], [[1e9, 1e9]]])
    slow = adaptive.lanes_of(problem, rates, rates, 1.0)
    half = adaptive.lanes_of(problem, np.full((1, 1, 2), 2 / (1e-6 + 1e-9)), np.full((1, 1, 2), 2 / (1e-6 + 1e-9)), 1.0)
    assert slow[0].by_delay == pytest.approx(half[0].by_delay)
