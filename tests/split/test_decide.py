"""Rounds are decided from profiles, and what is predicted of them is what the solver says, part by part."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput, Compression, Link, Profile
from profiler.store import save
from solver.problem import SolveOptions, pose
from split import wire
from split.decide import Decider, Decision, Fixed, TrainedWorkload
from split.stages import PARTS, Predicted
from tests.solver.test_codecs import figures
from tests.synthetic import LAYERS, make_profile

WORKLOAD = TrainedWorkload(
    model="test-model",
    layers=LAYERS,
    batch_size=1,
    seq_len=16,
    dtype="float32",
    lora_rank=4,
    lora_targets=("v_proj", "q_proj"),
    optimizer="adamw",
    optimizer_state="reset",
)
CODECS = Compression(
    provenance="measured",
    phi=1.0,
    codecs=[figures("int8", 0.25, 0.3, 0.001, slope=0.01), figures("fp16", 0.5, 0.5, 0.002)],
)
RATES = {"uplink_mbps": 10.0, "downlink_mbps": 20.0}


def fleet() -> list[Profile]:
    server = make_profile("server", "server", compression=CODECS)
    return [server, *(make_profile(name, compression=CODECS) for name in ("one", "two"))]


def written(folder: Path, profiles: list[Profile] | None = None) -> Path:
    for profile in profiles or fleet():
        save(profile, folder / f"{profile.name}.json")
    return folder


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("fleet"))


def decided(
    folder: Path, round: int = 2, workload: TrainedWorkload = WORKLOAD, fixed: Fixed | None = None, **options: Any
) -> Decision:
    options = {**RATES, "w": 1.0, **options}
    return Decider(folder, SolveOptions(**options), ["one", "two"], workload, fixed).decide(round, "one")


def predicted(decision: Decision) -> Predicted:
    assert decision.predicted is not None
    return decision.predicted


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, LAYERS - 1),
    st.sampled_from(["none", "int8", "fp16", "auto"]),
    st.sampled_from([0.5e9, 1.0e9, 1.5e9, 2.0e9]),
    st.floats(0.5, 1000),
    st.floats(0.5, 1000),
    st.integers(1, 40),
    st.sampled_from([("sgd", "travel"), ("adamw", "travel"), ("adamw", "reset")]),
    st.integers(1, 2),
)
def test_the_parts_add_up_to_the_solvers_delay_for_the_bytes_that_really_travel(
    profiles: Path, cut: int, codec: str, hz: float, up: float, down: float, epochs: int, how: Any, round: int
) -> None:
    workload = replace(WORKLOAD, optimizer=how[0], optimizer_state=how[1])
    options = SolveOptions(
        w=1.0, uplink_mbps=up, downlink_mbps=down, local_epochs=epochs, codec=codec, channel=None, rounds=None
    )
    decider = Decider(profiles, options, ["one", "two"], workload, Fixed(cut=cut, frequency_hz=hz))
    told = decider.decide(round, "one")
    found = predicted(told)
    assert set(found.parts) == set(PARTS)
    assert sum(found.parts.values()) == pytest.approx(found.delay_s, rel=1e-12)
    assert sum(found.stages().values()) == pytest.approx(found.delay_s, rel=1e-12)
    assert all(seconds >= -1e-12 for seconds in found.parts.values())
    # The same point by the solver alone, whose messages have no labels, headers or moments.
    problem = pose(fleet(), replace(options, codec=told.codec_up))
    assert problem.tables is not None
    bare = problem.tables.at(0, up * 1e6, down * 1e6, cut - 1, hz)
    codecs = problem.tables.codecs
    assert codecs is not None
    adapters = problem.tables.adapter_bits[0, cut - 1]
    more_up = 8 * (found.uplink_bytes + found.adapters_up_bytes) - codecs.uplink_bits[0, 0, cut - 1] - adapters
    more_down = 8 * (found.downlink_bytes + found.adapters_down_bytes) - codecs.downlink_bits[0, 0, cut - 1] - adapters
    assert more_up > 0
    assert more_down > 0
    assert found.delay_s == pytest.approx(float(bare.delay_s) + more_up / up / 1e6 + more_down / down / 1e6, rel=1e-9)
    assert found.server_energy_j == pytest.approx(float(bare.energy_j))  # type: ignore[arg-type]


def test_bytes_are_those_of_real_messages(profiles: Path) -> None:
    cut, epochs = 2, 3
    names = [f"base_model.model.model.layers.{k}.self_attn.{t}.lora_{h}.weight" for k in range(cut) for t in ("q_proj", "v_proj") for h in "AB"]  # fmt: skip
    tensors = {name: wire.Packed("float32", (125,), "none", bytes(500)) for name in names}
    row = dict.fromkeys(("forward_s", "encode_s", "decode_s", "backward_s", "optimizer_s", "waited_s"), 0.012345678901)
    step: dict[str, Any] = {"round": 17, "attempt": 18, "step": 2}
    hidden = wire.Packed("float32", (1, 16, 15625), "none", bytes(1_000_000))
    labels = wire.Packed("int64", (1, 16), "none", bytes(128))
    smashed = wire.Smashed(**step, purpose="train", forward_s=0.0123456789, encode_s=0.001234567, sent_s=4711.123456789)
    answer = wire.Gradient(
        **step, loss=2.3456789, **dict.fromkeys(("decode_s", "forward_s", "backward_s", "encode_s"), 0.0123456789),
        received_s=4711.123456789, sent_s=4711.123456789,
    )  # fmt: skip
    begin = wire.Round(
        round=17, attempt=18, cut=cut, epochs=epochs, codec_up="none", codec_down="none", evaluate=0, first_step=51
    )
    end = wire.Adapters(
        round=17, attempt=18, steps=[wire.StepTimes(**row)] * epochs, round_received_s=4711.1234567, loaded_s=0.00123, sent_s=4711.1234567
    )  # fmt: skip
    found = predicted(decided(profiles, fixed=Fixed(cut=cut), local_epochs=epochs))
    within = 128  # headers are filled up to 64 bytes, and figures have more or fewer digits
    assert abs(found.uplink_bytes / epochs - len(wire.pack(smashed, {"hidden": hidden, "labels": labels}))) <= within
    assert abs(found.downlink_bytes / epochs - len(wire.pack(answer, {"hidden": hidden}))) <= within
    slack = within + 10 * len(names) + 60 * epochs
    assert abs(found.adapters_down_bytes - (len(wire.pack(begin, tensors)) - 4000 + 1000 * cut)) <= slack
    assert abs(found.adapters_up_bytes - (len(wire.pack(end, tensors)) - 4000 + 1000 * cut)) <= slack


def test_moments_that_travel_are_counted_but_not_down_before_the_first_step(profiles: Path) -> None:
    workload = replace(WORKLOAD, optimizer_state="travel")
    reset = predicted(decided(profiles, fixed=Fixed(cut=3)))
    first = predicted(decided(profiles, 1, workload, Fixed(cut=3)))
    later = predicted(decided(profiles, 2, workload, Fixed(cut=3)))
    assert first.adapters_down_bytes == reset.adapters_down_bytes
    assert first.adapters_up_bytes == later.adapters_up_bytes
    for bytes_of in ("adapters_down_bytes", "adapters_up_bytes"):
        assert getattr(later, bytes_of) - getattr(reset, bytes_of) >= 2 * 3000  # and two names for each adapter


def test_forward_backward_and_optimizer_are_told_apart_as_the_profiles_timed_them(profiles: Path) -> None:
    parts = predicted(decided(profiles, fixed=Fixed(cut=2, frequency_hz=2e9))).parts
    # T = 5. On the device at 1 GHz the embedding and two layers: (0.1 + 2) x 11 ms forward, twice that backward, 3 x 0.1 ms optimizer.
    assert parts["device_forward"] == pytest.approx(5 * 2.1 * 0.011)
    assert parts["device_backward"] == pytest.approx(5 * 2.1 * 0.022)
    assert parts["device_optimizer"] == pytest.approx(5 * 3e-4)
    # On the server at 2 GHz two layers and the head, which is worth two.
    assert parts["server_forward"] == pytest.approx(5 * 4 * 0.006)
    assert parts["server_backward"] == pytest.approx(5 * 4 * 0.012)
    assert parts["server_optimizer"] == pytest.approx(5 * 3e-4)


def test_each_end_of_a_codec_is_a_part_of_its_own(profiles: Path) -> None:
    parts = predicted(decided(profiles, fixed=Fixed(cut=2, codec="int8"))).parts
    ends = [parts[name] for name in ("encode", "decode", "gradient_encode", "gradient_decode")]
    assert ends == pytest.approx([0.005, 0.010, 0.015, 0.020])


def test_the_chosen_cut_is_the_one_of_least_predicted_delay(profiles: Path) -> None:
    for up, down in ((0.5, 0.5), (10.0, 20.0), (1e4, 1e4)):
        free = decided(profiles, codec="auto", uplink_mbps=up, downlink_mbps=down)
        each = [
            predicted(decided(profiles, fixed=Fixed(cut=c), codec="auto", uplink_mbps=up, downlink_mbps=down)).delay_s
            for c in range(1, LAYERS)
        ]
        assert free.cut == 1 + int(np.argmin(each))
        assert predicted(free).delay_s == pytest.approx(min(each))
        assert free.codec_up == free.codec_down == ("none" if up > 1e3 else "int8")


def test_rates_measured_lately_take_the_place_of_the_posed_ones(profiles: Path) -> None:
    decider = Decider(profiles, SolveOptions(w=1.0, **RATES), ["one", "two"], WORKLOAD, Fixed(cut=1))  # type: ignore[arg-type]
    posed = predicted(decider.decide(2, "two"))
    live = decider.decide(2, "two", uplink_bps=5e6, downlink_bps=20e6, round_trip_s=0.1)
    found = predicted(live)
    assert live.uplink_bps == 5e6
    assert found.parts["uplink"] == pytest.approx(2 * posed.parts["uplink"] + 5 * 0.05)
    assert found.parts["downlink"] == pytest.approx(posed.parts["downlink"] + 5 * 0.05)
    assert found.parts["adapters_up"] == pytest.approx(2 * posed.parts["adapters_up"] + 0.05)
    assert sum(found.parts.values()) == pytest.approx(found.delay_s)


def test_a_round_has_the_rates_of_its_row_in_the_trace(profiles: Path, tmp_path: Path) -> None:
    trace = tmp_path / "rates.csv"
    rows = [f"{r},{name},{10 * r},{20 * r}" for r in (1, 2, 3) for name in ("one", "two")]
    trace.write_text("round,device,uplink_mbps,downlink_mbps\n" + "\n".join(rows) + "\n")
    options = SolveOptions(w=1.0, channel=str(trace))
    decider = Decider(profiles, options, ["one", "two"], WORKLOAD)
    assert [decider.decide(r, "two").uplink_bps for r in (1, 2, 3)] == [10e6, 20e6, 30e6]
    with pytest.raises(BadInput, match=r"rates.csv: rates of 3 rounds, expected some for round 4"):
        decider.decide(4, "two")
    with pytest.raises(BadInput, match="ends with round 3, and --rounds asks for 4 rows of each device"):
        Decider(profiles, replace(options, rounds=4), ["one", "two"], WORKLOAD)


def test_a_measured_link_is_taken_for_every_round(tmp_path: Path) -> None:
    link = Link(provenance="measured", uplink_mbps=7.0, downlink_mbps=9.0, round_trip_s=0.01)
    server, one, two = fleet()
    folder = written(tmp_path, [server, one.model_copy(update={"link": link}), two.model_copy(update={"link": link})])
    decision = Decider(folder, SolveOptions(w=1.0), ["one", "two"], WORKLOAD).decide(99, "one")
    assert (decision.uplink_bps, decision.downlink_bps) == (7e6, 9e6)
    assert not decision.assumptions


@pytest.mark.parametrize(
    ("field", "theirs", "ours"),
    [
        ("model", "other-model", "test-model"),
        ("batch_size", 2, 1),
        ("seq_len", 32, 16),
        ("dtype", "bfloat16", "float32"),
        ("lora_rank", 8, 4),
        ("lora_targets", ["k_proj"], "q_proj,v_proj"),
        ("gradient_checkpointing", True, False),
    ],
)
def test_a_profile_of_another_workload_is_refused_with_both_values(
    tmp_path: Path, field: str, theirs: Any, ours: Any
) -> None:
    server, one, two = fleet()
    odd = two.model_copy(update={"workload": two.workload.model_copy(update={field: theirs})})
    said = ",".join(theirs) if isinstance(theirs, list) else theirs
    with pytest.raises(BadInput, match=f"profile two: field workload.{field} is {said}, this run has {ours}"):
        decided(written(tmp_path, [server, one, odd]))


def test_a_device_without_a_profile_is_refused_with_those_that_are_there(profiles: Path) -> None:
    with pytest.raises(BadInput, match=r"no profile of a device named three \(there: one, two\)"):
        Decider(profiles, SolveOptions(w=1.0), ["one", "three"], WORKLOAD)


def test_profiles_of_devices_that_take_no_part_do_not_matter(tmp_path: Path) -> None:
    server, one, two = fleet()
    odd = two.model_copy(update={"workload": two.workload.model_copy(update={"seq_len": 99})})
    folder = written(tmp_path, [server, one, odd])
    assert Decider(folder, SolveOptions(w=1.0, **RATES), ["one"], WORKLOAD).decide(1, "one").cut >= 1  # type: ignore[arg-type]


def test_without_profiles_the_fixed_cut_is_taken_and_nothing_is_predicted() -> None:
    decider = Decider(None, SolveOptions(), ["x"], WORKLOAD, Fixed(cut=2, codec="int8"))
    decision = decider.decide(5, "x")
    assert (decision.cut, decision.codec_up, decision.predicted, decision.frequency_hz) == (2, "int8", None, None)
    assert not decider.sets_clocks
    with pytest.raises(BadInput, match="--cut: expected a cut layer, or --profiles"):
        Decider(None, SolveOptions(), ["x"], WORKLOAD)
    with pytest.raises(BadInput, match="--cut 4: expected 1 to 3"):
        Decider(None, SolveOptions(), ["x"], WORKLOAD, Fixed(cut=4))


@pytest.mark.parametrize(
    ("fixed", "options", "words"),
    [
        (Fixed(cut=1, codec="int2"), {}, "--codec int2: profile one"),
        (None, {"compression": 0.1}, "--compression: a run sends real bytes"),
        (None, {"method": "min-cut"}, "--method min-cut"),
        (Fixed(frequency_hz=9e9), {}, "--f-min-ghz, --f-max-ghz: server server supports no clock"),
    ],
)
def test_what_a_run_cannot_do_is_refused_before_it_begins(
    profiles: Path, fixed: Fixed | None, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        decided(profiles, fixed=fixed, **options)


def test_a_fixed_cut_that_does_not_fit_in_memory_is_taken_with_a_warning(tmp_path: Path) -> None:
    server, one, two = fleet()
    small = one.model_copy(update={"hardware": one.hardware.model_copy(update={"memory_bytes": 150_000_000})})
    folder = written(tmp_path, [server, small, two])
    assert decided(folder).cut == 1
    forced = decided(folder, fixed=Fixed(cut=3))
    assert forced.cut == 3
    assert forced.warnings == ("one: by the profiles cut 3 does not fit in memory",)


def test_a_limit_that_no_cut_keeps_is_told_and_the_nearest_point_taken(profiles: Path) -> None:
    decision = decided(profiles, w=0.2, max_delay_s=0.001)
    assert decision.cut >= 1
    assert "--max-delay-s 0.001 cannot be kept in round 2" in decision.warnings[0]


def test_seconds_of_sgd_are_listed_as_those_of_adamw(profiles: Path) -> None:
    sgd = decided(profiles, workload=replace(WORKLOAD, optimizer="sgd"))
    assert [a.quantity for a in sgd.assumptions] == ["optimizer step: seconds of SGD"]
    assert not decided(profiles).assumptions


def test_with_overlap_the_servers_optimizer_does_not_count(profiles: Path) -> None:
    plain = predicted(decided(profiles, fixed=Fixed(cut=2)))
    overlapped = predicted(decided(profiles, workload=replace(WORKLOAD, overlap=True), fixed=Fixed(cut=2)))
    assert overlapped.hidden_s == pytest.approx(plain.parts["server_optimizer"])
    assert overlapped.delay_s == pytest.approx(plain.delay_s - overlapped.hidden_s)
    assert sum(overlapped.stages().values()) == pytest.approx(overlapped.delay_s)


def test_where_the_servers_clock_cannot_be_read_none_is_asked_for(tmp_path: Path) -> None:
    server, one, two = fleet()
    timing = server.timings[-1].model_copy(update={"frequency_hz": None})
    hardware = server.hardware.model_copy(update={"clocks": None})
    blind = server.model_copy(update={"hardware": hardware, "timings": [timing], "power_fit": None, "power": None})
    folder = written(tmp_path, [blind, one, two])
    decider = Decider(folder, SolveOptions(w=1.0, **RATES), ["one", "two"], WORKLOAD)  # type: ignore[arg-type]
    decision = decider.decide(1, "one")
    assert decision.frequency_hz is None
    assert not decider.sets_clocks
    assert predicted(decision).server_energy_j is None


def test_a_decision_is_cheap(profiles: Path) -> None:
    decider = Decider(profiles, SolveOptions(w=0.2, codec="auto", **RATES), ["one", "two"], WORKLOAD)  # type: ignore[arg-type]
    decider.decide(2, "one")
    began = time.perf_counter()
    for _ in range(20):
        decider.decide(2, "two")
    assert (time.perf_counter() - began) / 20 < 0.05
