"""The solver knows codecs: their measured phi of every cut and direction, their seconds, and the limit on the loss."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput, CodecCut, CodecFigures, Compression, Profile, Role, Stat
from solver.problem import SolveOptions, pose
from solver.scenario import solve
from tests.synthetic import LAYERS, make_profile

CUTS = range(1, LAYERS)


def stat(seconds: float) -> Stat:
    return Stat(median_s=seconds, samples=5)


def figures(
    name: str,
    smashed_phi: float,
    gradient_phi: float,
    seconds: float = 0.0,
    loss: float | None = 0.0,
    cuts: Any = CUTS,
    slope: float = 0.0,
) -> CodecFigures:
    """A codec whose four times are 1, 2, 3 and 4 x ``seconds``, and whose phi grows by ``slope`` from cut to cut."""
    rows = [
        CodecCut(
            cut=c,
            smashed_phi=smashed_phi + slope * c,
            gradient_phi=gradient_phi + slope * c,
            smashed_encode_s=stat(seconds),
            smashed_decode_s=stat(2 * seconds),
            gradient_encode_s=stat(3 * seconds),
            gradient_decode_s=stat(4 * seconds),
            loss_increase=loss,
        )
        for c in cuts
    ]
    return CodecFigures(codec=name, cuts=rows)


def measured(*codecs: CodecFigures, provenance: Any = "measured") -> Compression:
    return Compression(provenance=provenance, phi=1.0, codec="none", codecs=list(codecs))


def machine(role: Role, *codecs: CodecFigures, name: str | None = None, provenance: Any = "measured") -> Profile:
    return make_profile(name or role, role, compression=measured(*codecs, provenance=provenance) if codecs else None)


def answer(fleet: list[Profile], **options: Any) -> Any:
    options = {"w": 1.0, "uplink_mbps": 10.0, "downlink_mbps": 20.0, **options}
    return solve(fleet, **options)


INT8 = figures("int8", 0.25, 0.5, 0.001)


def test_a_codec_counts_with_its_own_phi_in_each_direction_and_the_seconds_of_all_four_ends() -> None:
    fleet = [machine("server", INT8), machine("device", INT8)]
    plain = answer(fleet, method="static:2", codec="none").decisions.costs
    with_it = answer(fleet, method="static:2", codec="int8").decisions.costs
    # 5 mini-batches of 1 MB: 4 s up at 10 Mbit/s, 2 s down at 20; encode + decode are 3 ms up and 7 ms down.
    assert plain.uplink_s[0] == pytest.approx(4.0)
    assert plain.downlink_s[0] == pytest.approx(2.0)
    assert with_it.uplink_s[0] == pytest.approx(4.0 * 0.25 + 5 * 0.003)
    assert with_it.downlink_s[0] == pytest.approx(2.0 * 0.5 + 5 * 0.007)
    assert with_it.adapters_s[0] == plain.adapters_s[0]
    assert with_it.delay_s[0] == pytest.approx(plain.delay_s[0] - 4.0 - 2.0 + 1.0 + 0.015 + 1.0 + 0.035)


def test_each_end_is_timed_by_the_profile_of_the_machine_that_it_runs_on() -> None:
    fleet = [machine("server", figures("int8", 0.25, 0.5, 0.1)), machine("device", INT8)]
    costs = answer(fleet, method="static:2", codec="int8").decisions.costs
    assert costs.uplink_s[0] == pytest.approx(1.0 + 5 * (0.001 + 0.2))  # encoded on the device, decoded on the server
    assert costs.downlink_s[0] == pytest.approx(1.0 + 5 * (0.3 + 0.004))


def test_a_servers_ends_that_were_not_timed_are_the_devices_and_listed() -> None:
    fleet = [machine("server"), machine("device", INT8)]
    listed = {item.quantity: item for item in answer(fleet, codec="int8").assumptions}
    assert listed["server: times of codecs for device"].provenance == "assumed"
    assert "int8" in listed["server: times of codecs for device"].value
    both = [machine("server", INT8), machine("device", INT8)]
    assert not [a for a in answer(both, codec="int8").assumptions if "codec" in a.quantity]


def test_codec_figures_that_nobody_measured_are_listed_with_where_they_come_from() -> None:
    fleet = [machine("server", INT8), machine("device", INT8, provenance="emulated")]
    listed = {item.quantity: item for item in answer(fleet, codec="int8").assumptions}
    assert listed["device: codecs"].provenance == "emulated"
    with pytest.raises(BadInput, match=r"--require-measured.*device: codecs"):
        answer(fleet, codec="int8", require_measured=True)


def test_the_codec_of_none_is_exactly_no_compression() -> None:
    fleet = [machine("server"), machine("device")]
    ours, plain = answer(fleet, codec="none"), answer(fleet, compression=1.0)
    assert np.array_equal(ours.decisions.costs.delay_s, plain.decisions.costs.delay_s)
    assert ours.decisions.cut.tolist() == plain.decisions.cut.tolist()


def test_auto_takes_the_fastest_codec_within_the_limit_and_none_where_the_link_is_fast() -> None:
    codecs = (INT8, figures("int2", 0.05, 0.05, 0.001, loss=0.5))
    fleet = [machine("server", *codecs), machine("device", *codecs)]

    def taken(**options: Any) -> str:
        rows = answer(fleet, codec="auto", **options).as_json()["decisions"]
        return str(rows[0]["codec"])

    assert taken() == "int8"  # int2 costs more loss than 0.002
    assert taken(max_loss_increase=1.0) == "int2"
    assert taken(uplink_mbps=1e6, downlink_mbps=1e6) == "none"


def test_a_codec_whose_loss_is_not_known_is_never_chosen_by_auto() -> None:
    codecs = figures("int8", 0.25, 0.5, 0.001, loss=None)
    fleet = [machine("server", codecs), machine("device", codecs)]
    assert answer(fleet, codec="auto", max_loss_increase=100.0).as_json()["decisions"][0]["codec"] == "none"


@pytest.mark.parametrize("codecs", [(), (figures("int8", 0.25, 0.5, loss=None),), (figures("none", 1.0, 1.0),)])
def test_auto_with_nothing_to_choose_from_says_so_and_how_to_measure(codecs: tuple[CodecFigures, ...]) -> None:
    fleet = [machine("server", *codecs), machine("device", *codecs), machine("device", INT8, name="other")]
    (told,) = answer(fleet, codec="auto").warnings
    assert told.startswith(
        "--codec auto: no codec's figures and loss in device, server, so device can only take none; measure"
    )
    assert "'card-profile run --measure compression'" in told
    assert answer(fleet, codec="none").warnings == []


def test_the_servers_figures_are_something_to_choose_from() -> None:
    assert answer([machine("server", INT8), machine("device")], codec="auto").warnings == []


def test_auto_compares_at_a_cut_only_what_was_measured_there() -> None:
    codec = figures("int8", 0.25, 0.25, cuts=[1])
    fleet = [machine("server", codec), machine("device", codec)]
    table = answer(fleet, codec="auto").cost_frame()
    assert set(table[table["cut"] == 1]["codec"]) == {"int8"}
    assert set(table[table["cut"] > 1]["codec"]) == {"none"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec": "int4"}, "--codec int4: profile device.*no figures of it at cut 1 .*measured there: int8"),
        ({"codec": "int8", "compression": 0.5}, "--codec, --compression"),
        ({"codec": "int8", "max_loss_increase": 0.1}, "--max-loss-increase 0.1: expected --codec auto"),
        ({"max_loss_increase": 0.1}, "--max-loss-increase 0.1: expected --codec auto"),
        ({"codec": "auto", "max_loss_increase": -1.0}, "--max-loss-increase -1: expected nats"),
        ({"codec": "auto", "max_loss_increase": float("nan")}, "--max-loss-increase nan: expected nats"),
        ({"codec": "auto", "method": "min-cut"}, "--codec: --method min-cut"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    fleet = [machine("server", INT8), machine("device", INT8)]
    with pytest.raises(BadInput, match=words):
        answer(fleet, **options)


def test_json_frames_and_tables_name_the_codec_only_where_one_was_asked_for(tmp_path: Any) -> None:
    fleet = [machine("server", INT8), machine("device", INT8)]
    plain, ours = answer(fleet), answer(fleet, codec="auto")
    assert "codec" not in plain.as_json()["decisions"][0]
    assert "codec" not in plain.to_frame().columns
    assert "codec" not in next(csv.reader(io.StringIO(plain.write_tables(tmp_path).read_text())))
    document = json.loads(json.dumps(ours.as_json()))
    assert {row["codec"] for row in document["decisions"] + document["baselines"]["server-only"]} == {"int8"}
    assert set(ours.to_frame()["codec"]) == {"int8"}
    rows = list(csv.DictReader(io.StringIO(ours.write_tables(tmp_path).read_text())))
    decided = document["decisions"][0]
    assert any(
        (int(r["cut"]), float(r["frequency_hz"]), float(r["delay_s"]), r["codec"])
        == (decided["cut"], decided["frequency_hz"], decided["delay_s"], decided["codec"])
        for r in rows
    )


def goal_limit(goal: dict[str, float]) -> bool:
    """Whether the objective is a limit, which may be out of reach."""
    return "max_delay_s" in goal or "max_energy_j" in goal


amount = st.floats(0.01, 2.0)
codec_sets = st.lists(
    st.tuples(amount, amount, st.floats(0, 0.2), st.floats(0, 0.1), st.sampled_from([0.0, 0.001, 0.1, None])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    codec_sets,
    st.sampled_from(["exact", "card"]),
    st.sampled_from(
        [{"w": 0.0}, {"w": 0.3}, {"w": 1.0}, {"price_j_per_s": 40.0}, {"max_delay_s": 3.0}, {"max_energy_j": 90.0}]
    ),
    st.floats(0.1, 1000.0),
    st.floats(0.1, 1000.0),
    st.booleans(),
    st.booleans(),
)
def test_the_least_waiting_time_over_codecs_is_the_optimum_of_every_objective(
    found: list[tuple[float, float, float, float, float | None]],
    method: str,
    goal: dict[str, float],
    up: float,
    down: float,
    count_idle: bool,
    listed: bool,
) -> None:
    """Against brute force over cut x clock x codec, each codec solved by a model that knows it alone."""
    codecs = [
        figures(f"int{k}", min(a, 1.9), min(b, 1.9), seconds, loss, slope=slope / 4)
        for k, (a, b, seconds, slope, loss) in enumerate(found)
    ]
    fleet = [machine("server", *codecs), machine("device", *codecs)]
    if not listed:  # the server's clock is continuous
        hardware = fleet[0].hardware
        assert hardware.clocks is not None
        clocks = hardware.clocks.model_copy(update={"supported_hz": []})
        fleet[0] = fleet[0].model_copy(update={"hardware": hardware.model_copy(update={"clocks": clocks})})
    if method == "card":
        goal = {"w": goal.get("w", 0.3)}
        count_idle = False
    options = SolveOptions(
        method=method, uplink_mbps=up, downlink_mbps=down, codec="auto", count_idle=count_idle, **{"w": 0.2, **goal}
    )
    problem = pose(fleet, options)
    names = ["none", *(c.codec for c, row in zip(codecs, found, strict=True) if row[4] is not None and row[4] <= 0.002)]
    alone = [pose(fleet, replace(options, codec=name)) for name in names]
    hz = problem.clocks.points_hz if listed else np.linspace(problem.clocks.f_min_hz, problem.clocks.f_max_hz, 40)
    point = (0, up * 1e6, down * 1e6)
    auto = problem.decider.at(*point, np.arange(LAYERS - 1)[:, None], hz[None, :])
    each = [p.decider.at(*point, np.arange(LAYERS - 1)[:, None], hz[None, :]) for p in alone]
    delays = np.array([costs.delay_s for costs in each])
    assert np.allclose(auto.delay_s, delays.min(0), rtol=1e-12)
    assert auto.energy_j is not None
    for costs in each:
        assert costs.energy_j is not None
        assert (auto.delay_s <= costs.delay_s * (1 + 1e-12)).all()
        assert (auto.energy_j <= costs.energy_j * (1 + 1e-12)).all()
    try:
        ours = solve(fleet, options)
    except BadInput:  # a limit out of reach is out of reach for every codec
        assert goal_limit(goal)
        limit = goal.get("max_delay_s", goal.get("max_energy_j", 0.0))
        for costs in each:
            assert costs.energy_j is not None
            assert ((costs.delay_s if "max_delay_s" in goal else costs.energy_j) > limit * (1 - 1e-12)).all()
        return
    if method == "card":
        # Algorithm 1: one f* for all cuts, then the least U; U at that clock over every cut and codec.
        f_star = ours.optimal_hz
        costs = [p.letter.at(*point, np.arange(LAYERS - 1), f_star) for p in alone]
        box = pose(fleet, options).letter.at(
            *point, np.arange(LAYERS - 1)[:, None], np.array([[problem.clocks.f_min_hz, problem.clocks.f_max_hz]])
        )
        assert box.energy_j is not None
        d_span, e_span = np.ptp(box.delay_s), np.ptp(box.energy_j)
        w = goal["w"]
        u = [w * c.delay_s / d_span + (1 - w) * c.energy_j / e_span for c in costs if c.energy_j is not None]
        chosen = int(ours.decisions.cut[0]) - 1
        assert np.min(u, axis=0)[chosen] <= np.min(u) + 1e-9
        return
    goal_of = options.objective
    best = []
    for costs in each:
        assert costs.energy_j is not None
        if goal_of.limit is not None:
            by_delay = "max_delay_s" in goal
            limited, least = (costs.delay_s, costs.energy_j) if by_delay else (costs.energy_j, costs.delay_s)
            best.append(np.where(limited <= goal_of.limit, least, np.inf).min())
        else:
            best.append(goal_of.cost(ours.extremes, costs.delay_s, costs.energy_j).min())
    assert ours.decisions.cost[0] <= min(best) * (1 + 1e-9) + 1e-12
    if listed:
        assert ours.decisions.cost[0] >= min(best) * (1 - 1e-9) - 1e-12


@settings(max_examples=20, deadline=None)
@given(codec_sets, st.integers(0, 2**32 - 1))
def test_many_rates_are_decided_as_each_alone(
    found: list[tuple[float, float, float, float, float | None]], seed: int
) -> None:
    codecs = [
        figures(f"int{k}", min(a, 1.9), min(b, 1.9), s, 0.0, slope=x / 4) for k, (a, b, s, x, _) in enumerate(found)
    ]
    fleet = [machine("server", *codecs), machine("device", *codecs), machine("device", *codecs, name="other")]
    for method, w in itertools.product(("exact", "card"), (0.3,)):
        options = SolveOptions(method=method, codec="auto", w=w, channel="poor", rounds=9, seed=seed)
        whole = solve(fleet, options)
        up, down = whole.problem.rates.uplink_bps, whole.problem.rates.downlink_bps
        one = solve(
            fleet[:2], method=method, codec="auto", w=w, uplink_mbps=up[3, 0] / 1e6, downlink_mbps=down[3, 0] / 1e6
        )
        assert one.decisions.cut[0] == whole.decisions.cut[6]
        assert one.decisions.costs.delay_s[0] == pytest.approx(whole.decisions.costs.delay_s[6], rel=1e-12)
        assert whole.decisions.costs.codec is not None
        assert one.decisions.costs.codec is not None
        assert one.decisions.costs.codec[0] == whole.decisions.costs.codec[6]
