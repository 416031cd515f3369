"""Each equation of the letter, and each thing that a profile measures, worked out by hand on a small profile."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.profile import (
    BadInput,
    Compression,
    Link,
    PowerFit,
    PowerPoint,
    Profile,
    Segment,
    SegmentFlops,
    SegmentSizes,
    SegmentTime,
    Stat,
    Timing,
)
from solver.costs import Costs, ServerClocks
from solver.scenario import Solution, SolveOptions, solve
from tests.synthetic import make_profile

# make_profile: 4 layers of 2 GFLOP, head 4 GFLOP, 1 MB across every cut, adapters of 1 kB a layer; delta sigma = 2000.
FIXED = {"uplink_mbps": 80.0, "downlink_mbps": 160.0, "compression": 0.5, "local_epochs": 3}


def untimed(profile: Profile) -> Profile:
    return profile.model_copy(update={"timings": []})


def answer(server: Profile, device: Profile, **options: object) -> Solution:
    return solve([server, device], SolveOptions(**{"method": "static:2", **FIXED, **options}))  # type: ignore[arg-type]


def at(solution: Solution, cut: int, hz: float) -> Costs:
    link = solution.problem.rates
    return solution.problem.evaluated.at(0, link.uplink_bps[0, 0], link.downlink_bps[0, 0], cut - 1, hz)


def test_equations_7_to_11_of_the_letter() -> None:
    solution = answer(untimed(make_profile("srv", "server")), untimed(make_profile("dev")))
    assert solution.problem.evaluated.name == "letter"
    costs = at(solution, 2, 1.5e9)
    assert float(costs.device_compute_s) == pytest.approx(3 * 4e9 / (1e9 * 2000))  # Eq. 7, f_D = 1 GHz
    assert float(costs.server_compute_s) == pytest.approx(3 * (2 * 2e9 + 4e9) / (1.5e9 * 2000))  # Eq. 8
    assert float(costs.uplink_s) == pytest.approx(3 * 0.5 * 8e6 / 80e6)  # Eq. 9
    assert float(costs.downlink_s) == pytest.approx(3 * 0.5 * 8e6 / 160e6)
    assert float(costs.adapters_s) == pytest.approx(2 * 8000 / 80e6 + 2 * 8000 / 160e6)
    assert float(costs.delay_s) == pytest.approx(  # Eq. 10
        sum(
            float(x)
            for x in (
                costs.device_compute_s,
                costs.server_compute_s,
                costs.uplink_s,
                costs.downlink_s,
                costs.adapters_s,
            )
        ),
        rel=1e-15,
    )
    assert costs.energy_j is not None
    assert float(costs.energy_j) == pytest.approx(3 * 1.5e-26 * 1.5e9**2 * 8e9 / 2000)  # Eq. 11


def test_the_profile_model_adds_up_the_measured_times_and_reads_watts_from_the_fitted_table() -> None:
    solution = answer(make_profile("srv", "server"), make_profile("dev"))
    assert solution.problem.evaluated.name == "profile"
    costs = at(solution, 2, 1.5e9)
    # a segment of work x takes x (3 ms + 30 ms/GHz) + 0.1 ms; the embedding is work 0.1 and the head 2
    assert float(costs.device_compute_s) == pytest.approx(3 * (2.1 * 0.033 + 3 * 1e-4))
    assert float(costs.server_compute_s) == pytest.approx(3 * (4 * (0.003 + 0.03 / 1.5) + 3 * 1e-4))
    assert costs.energy_j is not None
    assert float(costs.energy_j) == pytest.approx((20 + 10 * 1.5**3) * float(costs.server_compute_s))


@pytest.mark.parametrize(
    ("term", "device_s", "server_s"),
    [
        ("optimizer", 2.1 * 0.033, 4 * 0.023),
        ("embedding", 2 * 0.033 + 2e-4, 4 * 0.023 + 3e-4),
        ("head", 2.1 * 0.033 + 3e-4, 2 * 0.023 + 2e-4),
    ],
)
def test_each_measured_term_beyond_the_letter_can_be_left_out(term: str, device_s: float, server_s: float) -> None:
    solution = answer(make_profile("srv", "server"), make_profile("dev"), leave_out=(term,))
    costs = at(solution, 2, 1.5e9)
    assert float(costs.device_compute_s) == pytest.approx(3 * device_s)
    assert float(costs.server_compute_s) == pytest.approx(3 * server_s)


def test_a_measured_links_round_trips_are_paid_for_every_mini_batch_and_for_the_adapters() -> None:
    link = Link(provenance="measured", uplink_mbps=80, downlink_mbps=160, round_trip_s=0.02)
    device = make_profile("dev", link=link)
    own = {"uplink_mbps": None, "downlink_mbps": None}
    slow = at(answer(make_profile("srv", "server"), device, **own), 2, 1e9)
    fast = at(answer(make_profile("srv", "server"), device, leave_out=("round-trip",), **own), 2, 1e9)
    assert float(slow.uplink_s - fast.uplink_s) == pytest.approx(3 * 0.01)
    assert float(slow.downlink_s - fast.downlink_s) == pytest.approx(3 * 0.01)
    assert float(slow.adapters_s - fast.adapters_s) == pytest.approx(0.02)


def test_the_waiting_servers_idle_energy_counts_only_when_asked_for() -> None:
    without = at(answer(make_profile("srv", "server"), make_profile("dev")), 1, 1e9)
    counted = at(answer(make_profile("srv", "server"), make_profile("dev"), count_idle=True), 1, 1e9)
    assert counted.energy_j is not None
    assert without.energy_j is not None
    waiting = float(counted.delay_s - counted.server_compute_s)
    assert float(counted.energy_j - without.energy_j) == pytest.approx(15.0 * waiting)
    with pytest.raises(BadInput, match=r"--count-idle: profile srv has no field power.idle_w"):
        answer(make_profile("srv", "server", power=None), make_profile("dev"), count_idle=True)


def test_a_devices_joules_count_at_the_weight_that_was_asked_for_and_only_while_it_computes() -> None:
    watts = make_profile("srv", "server")
    device = make_profile("dev", power_fit=watts.power_fit, power=watts.power)  # 30 W at the 1 GHz it trains at
    plain = at(answer(watts, device), 2, 1.5e9)
    counted = at(answer(watts, device, device_energy=0.5), 2, 1.5e9)
    assert counted.energy_j is not None
    assert plain.energy_j is not None
    assert float(counted.delay_s) == float(plain.delay_s)
    assert float(counted.energy_j - plain.energy_j) == pytest.approx(0.5 * 30.0 * float(plain.device_compute_s))
    # a single point at the clock it trains at is enough, no watts are not
    one = device.model_copy(update={"power_fit": None})
    assert float(at(answer(watts, one, device_energy=0.5), 2, 1.5e9).energy_j or 0) == pytest.approx(
        float(counted.energy_j)
    )
    with pytest.raises(BadInput, match=r"--device-energy: profile dev has no field power_fit"):
        answer(watts, make_profile("dev"), device_energy=0.5)


def test_server_times_pass_through_every_measured_clock_and_are_straight_in_1_over_f_between() -> None:
    server = make_profile("srv", "server")
    model = answer(server, make_profile("dev")).problem.evaluated
    measured = [
        3 * sum(r.forward.median_s + r.backward.median_s + r.optimizer.median_s for r in t.segments[3:])
        for t in server.timings
    ]
    clocks = np.array([t.frequency_hz for t in server.timings], dtype=float)
    assert model.server_s(clocks)[1] == pytest.approx(measured)
    middle = 2 / (1 / clocks[0] + 1 / clocks[1])
    assert model.server_s(np.array([middle]))[1, 0] == pytest.approx((measured[0] + measured[1]) / 2)


def test_times_beyond_the_measured_clocks_follow_the_fitted_a_plus_b_over_f_and_are_listed_as_assumed() -> None:
    server = make_profile("srv", "server")
    kept = server.model_copy(update={"timings": server.timings[1:3]})
    solution = answer(kept, make_profile("dev"))
    assert solution.problem.evaluated.server_s(np.array([0.5e9, 2e9]))[1] == pytest.approx(
        answer(server, make_profile("dev")).problem.evaluated.server_s(np.array([0.5e9, 2e9]))[1]
    )
    assert any("beyond the measured clocks" in a.quantity for a in solution.assumptions)
    alone = answer(server.model_copy(update={"timings": server.timings[1:2]}), make_profile("dev"))
    assert alone.problem.evaluated.server_s(np.array([0.5e9]))[1] == pytest.approx(
        2 * alone.problem.evaluated.server_s(np.array([1e9]))[1]
    )
    assert any("1/f from the one clock" in str(a.value) for a in alone.assumptions)


def test_times_never_fall_below_zero_however_high_the_clock() -> None:
    server = make_profile("srv", "server")
    steep = [
        t.segments[0].model_copy(update={"forward": t.segments[0].forward.model_copy(update={"median_s": s})})
        for t, s in zip(server.timings, (1.0, 0.9, 0.1, 1e-6), strict=True)
    ]
    timings = [
        t.model_copy(update={"segments": [row] * len(t.segments)}) for t, row in zip(server.timings, steep, strict=True)
    ]
    solution = answer(server.model_copy(update={"timings": timings}), make_profile("dev"))
    assert (solution.problem.evaluated.server_s(np.array([2e9, 5e9, 1e11])) >= 0).all()


def test_the_device_is_timed_at_the_clock_at_which_it_trains() -> None:
    device = make_profile("dev", "server").model_copy(update={"role": "device"})  # four clocks, trains at 2 GHz
    costs = at(answer(make_profile("srv", "server"), device), 1, 1e9)
    assert float(costs.device_compute_s) == pytest.approx(3 * (1.1 * (0.003 + 0.015) + 2e-4))


def test_the_letters_model_takes_the_effective_flops_per_cycle_where_times_were_measured() -> None:
    solution = answer(make_profile("srv", "server"), make_profile("dev"), evaluate="letter")
    # 12 GFLOP in 6.1 segments' forward and backward, at 1 GHz (device) and at 2 GHz (server)
    assert float(at(solution, 2, 1e9).device_compute_s) == pytest.approx(3 * 4e9 / (12e9 / (6.1 * 0.033)))
    assert float(at(solution, 2, 1e9).server_compute_s) == pytest.approx(3 * 8e9 / (1e9 * 12e9 / (2e9 * 6.1 * 0.018)))


def test_a_capped_clock_is_priced_at_the_clock_that_was_reached_and_requested_at_the_one_to_ask_for() -> None:
    server = make_profile("srv", "server")
    assert server.power is not None
    points = [
        PowerPoint(frequency_hz=f, requested_hz=r, power_w=50, samples=9, seconds_s=9, stopped_by="steady")
        for r, f in ((0.5e9, 0.5e9), (1e9, 1e9), (1.5e9, 1.5e9), (2e9, 1.6e9))
    ]
    capped = server.model_copy(update={"power": server.power.model_copy(update={"points": points})})
    solution = answer(capped, make_profile("dev"), w=1.0)
    row = solution.as_json()["decisions"][0]
    assert row["frequency_hz"] == 2e9
    assert row["measured_frequency_hz"] == pytest.approx(1.6e9)
    assert row["delay_s"] == pytest.approx(float(at(answer(server, make_profile("dev")), 2, 1.6e9).delay_s))


def test_every_request_above_the_crossing_of_the_cap_runs_at_the_crossing() -> None:
    server = make_profile("srv", "server")
    assert server.power is not None
    points = [
        PowerPoint(frequency_hz=f, requested_hz=r, power_w=50, samples=9, seconds_s=9, stopped_by="steady")
        for r, f in ((0.5e9, 0.5e9), (1.2e9, 1.2e9), (2e9, 1.6e9))
    ]
    capped = server.model_copy(update={"power": server.power.model_copy(update={"points": points})})
    plain, held = answer(server, make_profile("dev")), answer(capped, make_profile("dev"))
    # Between 1.2 GHz, which ran as asked, and 2 GHz, which ran at 1.6, the clock follows up to 1.6 and stays there.
    for asked_hz, runs_hz in ((1.4e9, 1.4e9), (1.6e9, 1.6e9), (1.8e9, 1.6e9), (1.99e9, 1.6e9)):
        assert float(at(held, 2, asked_hz).delay_s) == pytest.approx(float(at(plain, 2, runs_hz).delay_s))


def test_without_a_table_of_watts_the_profile_model_falls_back_to_the_cubic_law() -> None:
    fit = PowerFit(provenance="fitted", basis="measured", selected="cubic", xi_w_per_hz3=1e-26)
    costs = at(answer(make_profile("srv", "server", power_fit=fit), make_profile("dev")), 1, 2e9)
    assert costs.energy_j is not None
    assert float(costs.energy_j) == pytest.approx(80 * float(costs.server_compute_s))


def test_adapters_of_layers_1_to_c_travel_and_a_bridge_stays_with_its_decoder_layer() -> None:
    """An encoder-decoder model: 2 encoder and 2 decoder layers; the bridge bears the number of the first decoder layer."""

    def encoder_decoder(name: str, role: str) -> Profile:
        base = untimed(make_profile(name, role))  # type: ignore[arg-type]
        segments = list(base.segments)
        segments.insert(3, Segment(name="bridge", kind="bridge", layer=3))
        flops = list(base.flops.segments)
        flops.insert(3, SegmentFlops(forward_flops=5e8, backward_flops=5e8))
        sizes = list(base.sizes.segments)
        sizes.insert(3, SegmentSizes(weight_bytes=0, adapter_bytes=0, adapter_parameters=0))
        return base.model_copy(
            update={
                "segments": segments,
                "flops": base.flops.model_copy(update={"segments": flops}),
                "sizes": base.sizes.model_copy(update={"segments": sizes}),
                "workload": base.workload.model_copy(update={"encoder_layers": 2}),
            }
        )

    solution = answer(encoder_decoder("srv", "server"), encoder_decoder("dev", "device"))
    seconds = [float(at(solution, c, 1e9).device_compute_s) * 2e12 / 3 for c in (1, 2, 3)]
    assert seconds == pytest.approx([2e9, 4e9, 7e9])
    adapters = [float(at(solution, c, 1e9).adapters_s) for c in (1, 2, 3)]
    assert np.array(adapters) / adapters[0] == pytest.approx([1, 2, 3])


def test_adapters_outside_the_layers_do_not_travel() -> None:
    device = make_profile("dev")
    sizes = list(device.sizes.segments)
    sizes[0] = sizes[0].model_copy(update={"adapter_bytes": 10**6})
    other = device.model_copy(update={"sizes": device.sizes.model_copy(update={"segments": sizes})})
    plain, odd = (at(answer(make_profile("srv", "server"), d), 2, 1e9) for d in (device, other))
    assert float(plain.adapters_s) == float(odd.adapters_s) > 0


def test_clocks_that_were_requested_and_reached_elsewhere_still_count_as_measured() -> None:
    server = make_profile("srv", "server")
    shifted = [
        t.model_copy(update={"requested_hz": t.frequency_hz, "frequency_hz": (t.frequency_hz or 0) * 0.99})
        for t in server.timings
    ]
    assert server.power_fit is not None
    rows = [r.model_copy(update={"frequency_hz": r.frequency_hz * 0.99}) for r in server.power_fit.predictions]
    fit = server.power_fit.model_copy(update={"predictions": rows})
    solution = answer(server.model_copy(update={"timings": shifted, "power_fit": fit}), make_profile("dev"))
    assert solution.assumptions == []
    costs = at(solution, 2, 1.5e9)
    assert float(costs.server_compute_s) == pytest.approx(3 * (4 * (0.003 + 0.03 / 1.5) + 3 * 1e-4))
    assert costs.energy_j is not None
    assert float(costs.energy_j) == pytest.approx((20 + 10 * 1.5**3) * float(costs.server_compute_s))


def test_the_whole_of_eta_is_shared_out_between_the_two_sides_at_every_cut() -> None:
    solution = answer(untimed(make_profile("srv", "server")), untimed(make_profile("dev")))
    for c in (1, 2, 3):
        costs = at(solution, c, 1e9)
        assert float(costs.device_compute_s + costs.server_compute_s) == pytest.approx(3 * 12e9 / 2e12)


def test_phi_comes_from_the_option_then_the_profile_and_is_else_one_and_assumed() -> None:
    measured = make_profile("dev", compression=Compression(provenance="measured", phi=0.25))
    free = {"compression": None}
    up = [
        float(at(answer(make_profile("srv", "server"), device, **more), 1, 1e9).uplink_s)
        for device, more in ((measured, {}), (measured, free), (make_profile("dev"), free))
    ]
    assert np.array(up) / 0.3 == pytest.approx([0.5, 0.25, 1.0])
    listed = answer(make_profile("srv", "server"), make_profile("dev"), **free).assumptions
    assert [(a.quantity, a.value, a.provenance) for a in listed] == [("dev: phi", 1.0, "assumed")]


def test_rounding_takes_the_nearest_supported_clock_and_of_two_the_lower() -> None:
    clocks = ServerClocks(1e9, 3e9, np.array([1e9, 2e9, 3e9]))
    assert clocks.nearest(np.array([0.2e9, 1.4e9, 1.5e9, 1.6e9, 2.9e9, 9e9])).tolist() == [1e9, 1e9, 1e9, 2e9, 3e9, 3e9]
    assert ServerClocks(1e9, 1e9, np.array([1e9])).nearest(np.array([5e9])).tolist() == [1e9]


def test_a_machine_without_a_readable_clock_has_one_operating_point_and_no_watts() -> None:
    def blind(profile: Profile) -> Profile:
        timings = [Timing(provenance="measured", segments=profile.timings[0].segments)]
        hardware = profile.hardware.model_copy(update={"clocks": None})
        return profile.model_copy(update={"timings": timings, "hardware": hardware})

    server, device = blind(make_profile("srv", "server")), blind(make_profile("dev"))
    row = solve([server, device], SolveOptions(w=1.0)).as_json()["decisions"][0]
    assert row["frequency_hz"] is None
    assert row["energy_j"] is None
    assert row["delay_s"] > 0
    # Whether its watts were fitted or not: at which clock its times hold is what nobody knows.
    for fit in (server.power_fit, None):
        with pytest.raises(BadInput, match=r"profile srv: field hardware.clocks is empty .*--w 1"):
            solve([server.model_copy(update={"power_fit": fit}), device], SolveOptions())
    with pytest.raises(BadInput, match=r"--f-max-ghz: .*cannot be read"):
        solve([server, device], SolveOptions(w=1.0, f_max_ghz=1.0))


# ------------------------------------------------------------------------------------- times followed over the clock


def bent(name: str, role: str, clocks_ghz: tuple[float, ...]) -> Profile:
    """make_profile with layers that go over from computing to waiting for memory near 1 GHz, and its times fitted."""
    from profiler.times import fit_times

    base = make_profile(name, role)  # type: ignore[arg-type]

    def seconds(ghz: float, row: SegmentTime, work: float) -> SegmentTime:
        t = work * ((0.01 / ghz) ** 3 + 0.01**3) ** (1 / 3)
        return row.model_copy(
            update={d: Stat(median_s=t * k, iqr_s=t * k / 500, samples=9) for d, k in (("forward", 1), ("backward", 2))}
        )

    timings = [
        Timing(
            provenance="measured",
            frequency_hz=g * 1e9,
            segments=[
                seconds(g, row, work) for row, work in zip(base.timings[0].segments, [0.1, 1, 1, 1, 1, 2], strict=True)
            ],
        )
        for g in clocks_ghz
    ]
    profile = base.model_copy(update={"timings": timings})
    return profile.model_copy(update={"time_fit": fit_times(profile)})


VISITED = (0.5, 0.8, 1.2, 1.6, 2.0)


def test_with_a_fit_times_pass_through_every_visited_clock_and_follow_the_bent_curve_between() -> None:
    server = bent("srv", "server", VISITED)
    dense = bent("srv", "server", tuple(np.linspace(0.5, 2.0, 61)))
    plain = answer(server.model_copy(update={"time_fit": None}), make_profile("dev")).problem.evaluated
    model = answer(server, make_profile("dev")).problem.evaluated
    visited = np.array(VISITED) * 1e9
    assert model.server_s(visited) == pytest.approx(plain.server_s(visited), rel=1e-12)
    never = np.array([0.65e9, 1.0e9, 1.4e9, 1.8e9])
    truth = answer(dense.model_copy(update={"time_fit": None}), make_profile("dev")).problem.evaluated.server_s(never)
    fitted, straight = (np.abs(m.server_s(never) / truth - 1).max() for m in (model, plain))
    assert fitted < 0.004
    assert fitted < straight / 2


def test_with_a_fit_times_beyond_the_visited_clocks_go_on_between_constant_and_proportional() -> None:
    model = answer(bent("srv", "server", VISITED), make_profile("dev")).problem.evaluated
    low, lowest, high, highest = model.server_s(np.array([0.5e9, 0.25e9, 2e9, 8e9]))[0]
    assert low < lowest <= 2 * low
    assert high / 4 <= highest < high


def test_exact_affine_times_are_the_same_with_and_without_a_fit() -> None:
    from profiler.times import fit_times

    server = make_profile("srv", "server")
    with_fit = server.model_copy(update={"time_fit": fit_times(server)})
    hz = np.array([0.3e9, 0.5e9, 0.7e9, 1.23e9, 2e9, 2.4e9])
    one, other = (answer(s, make_profile("dev")).problem.evaluated.server_s(hz) for s in (server, with_fit))
    assert other == pytest.approx(one, rel=1e-6)
    for term in ("optimizer", "head"):
        one, other = (
            answer(s, make_profile("dev"), leave_out=(term,)).problem.evaluated.server_s(hz) for s in (server, with_fit)
        )
        assert other == pytest.approx(one, rel=1e-6)


def test_a_decision_says_how_far_its_computing_time_may_be_off() -> None:
    server, device = (
        bent("srv", "server", VISITED),
        bent("dev", "server", VISITED).model_copy(update={"role": "device"}),
    )
    rows = [answer(server, device).as_json()["decisions"][0]]
    rows.append(answer(server, device, local_epochs=6).as_json()["decisions"][0])
    assert 0 < rows[0]["compute_half_width_s"] < 0.05 * rows[0]["delay_s"]
    assert rows[1]["compute_half_width_s"] == pytest.approx(2 * rows[0]["compute_half_width_s"], rel=0.2)
    assert "compute_half_width_s" not in answer(server, make_profile("dev")).as_json()["decisions"][0]


def test_times_fitted_to_emulated_figures_are_listed_and_those_fitted_to_measured_ones_are_not() -> None:
    server = bent("srv", "server", VISITED)
    quantity = "srv: layer times between the visited clocks"
    assert quantity not in [a.quantity for a in answer(server, make_profile("dev")).assumptions]
    assert server.time_fit is not None
    emulated = server.model_copy(update={"time_fit": server.time_fit.model_copy(update={"basis": "emulated"})})
    found = [a for a in answer(emulated, make_profile("dev")).assumptions if a.quantity == quantity]
    assert [a.provenance for a in found] == ["emulated"]
    assert "5 clocks, a step within" in str(found[0].value)
