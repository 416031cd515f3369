"""What trusting the letter loses: a case worked out by hand, and what must hold on every fleet."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.profile import BadInput, Link, PowerPrediction, Profile, SegmentFlops
from profiler.store import load_fleet
from solver.problem import SolveOptions
from solver.regret.beliefs import Letter, parse_letter
from solver.regret.regret import Regret, regret, shapley
from solver.regret.report import print_regret, write_csv, write_plot
from solver.scenario import solve
from tests.solver.test_scenario import fleet, letterlike, limited
from tests.synthetic import make_profile

FOLDER = Path(__file__).resolve().parents[2] / "profiles" / "letter"


def at(found: Regret, name: str) -> int:
    return [p.name for p in found.parameters].index(name)


def untimed(profile: Profile, **changes: Any) -> Profile:
    """Three layers of 2 GFLOP and a head of 4, four FLOPs a core and cycle, nothing to send."""
    hardware = profile.hardware.model_copy(update={"flops_per_core_cycle": 4.0, **changes})
    sizes = profile.sizes.model_copy(
        update={
            "segments": [s.model_copy(update={"adapter_bytes": 0}) for s in profile.sizes.segments],
            "cuts": [c.model_copy(update={"smashed_bytes": 0, "gradient_bytes": 0}) for c in profile.sizes.cuts],
        }
    )
    return profile.model_copy(update={"timings": [], "hardware": hardware, "sizes": sizes})


def bare_two_cuts() -> list[Profile]:
    server = make_profile("srv", "server", layers=3)
    clocks, fit = server.hardware.clocks, server.power_fit
    assert clocks is not None
    assert fit is not None
    watts = [PowerPrediction(frequency_hz=f, power_w=p, low_w=p, high_w=p) for f, p in ((1e9, 40.0), (2e9, 60.0))]
    server = server.model_copy(
        update={"power_fit": fit.model_copy(update={"predictions": watts, "xi_w_per_hz3": 1e-26})}
    )
    two = clocks.model_copy(update={"supported_hz": [1e9, 2e9], "min_hz": 1e9})
    return [untimed(server, clocks=two), untimed(make_profile("dev", layers=3))]


def two_cuts() -> list[Profile]:
    """The same fleet with times at one clock each: 0.5 ms a layer and 1 ms the head at 1 GHz, and so as 1/f."""
    timed = []
    for bare, own in zip(
        bare_two_cuts(), (make_profile("srv", "server", layers=3), make_profile("dev", layers=3)), strict=True
    ):
        timings = []
        for timing in own.timings[-1:]:
            ghz = (timing.frequency_hz or 0.0) / 1e9
            rows = []
            for segment, row in zip(own.segments, timing.segments, strict=True):
                seconds = {"embedding": 0.0, "layer": 0.5e-3, "head": 1e-3}[segment.kind] / ghz
                zero = row.optimizer.model_copy(update={"median_s": 0.0, "iqr_s": 0.0})
                rows.append(row.model_copy(update={
                    "forward": zero.model_copy(update={"median_s": seconds}), "backward": zero, "optimizer": zero}))  # fmt: skip
            timings.append(timing.model_copy(update={"segments": rows}))
        timed.append(bare.model_copy(update={"timings": timings}))
    return timed


def test_a_case_worked_out_by_hand() -> None:
    # A round of 1,000 mini-batches. Device: 0.5 s at cut 1, 1 s at cut 2. Server: 2 s or 1.5 s at 1 GHz, half of it at 2 GHz, at 40 or 60 W:
    #   (cut, GHz)   D      E      so the optimum is (2, 2): U = 0.125 + 0.
    #   (1, 1)       2.5    80
    #   (1, 2)       1.5    60
    #   (2, 1)       2.5    60
    #   (2, 2)       1.75   45
    # The cubic law alone, searched among the two clocks, finds it as well (E = 2, 8, 1.5, 6 xi): U = .538 .5 .5 .471. Rounded,
    # Q^3 = 3.25 gives 1.481 GHz, where cut 2 is best, and 1 GHz is nearest: D = 2.5, E = 60, U = 0.5 + 0.5 x 15/35.
    # With equal layers too, Q^3 = 3.5 gives 1.518 GHz, cut 1 is best (U = .4166 against .4225), and 2 GHz is nearest: (1, 2).
    options = SolveOptions(w=0.5, local_epochs=1000, compression=1.0)
    found = regret(two_cuts(), options, Letter(delta=4.0, xi_w_per_hz3=1e-26, phi=1.0))
    ideal, trusting = found.belief(0), found.belief(-1)
    assert (found.ideal.cut[0], found.ideal.frequency_hz[0]) == (2, 2e9)
    assert ideal["mean_delay_s"] == pytest.approx(1.75)
    assert ideal["mean_energy_j"] == pytest.approx(45)
    assert ideal["mean_cost"] == pytest.approx(0.125)
    assert (found.trusting.cut[0], found.trusting.frequency_hz[0]) == (1, 2e9)
    assert trusting["regret_delay_s"] == pytest.approx(-0.25)
    assert trusting["regret_energy_j"] == pytest.approx(15)
    lost, less = 0.5 + 7.5 / 35 - 0.125, 7.5 / 35 - 0.125
    assert trusting["regret_cost"] == pytest.approx(less)
    cubic, equal, rounding = (at(found, name) for name in ("cubic-law", "equal-layers", "rounding"))
    assert found.means.cost[1 << cubic | 1 << rounding] == pytest.approx(0.125 + lost)
    # Only {cubic, rounding} and all three lose: the shares are weighed 1/3, 1/6, 1/3 by how many stand assumed before.
    expected = np.zeros(found.count)
    expected[[cubic, rounding]] = lost / 6 + less / 3
    expected[equal] = (less - lost) / 3
    assert found.shares["cost"] == pytest.approx(expected)
    # The cubic law expects xi f^3 = 80 W at 2 GHz, equal layers 2/3 of 2.5 s / 2 at cut 1 and a third of 2.5 s on the device.
    assert trusting["predicted_energy_j"] == pytest.approx(80 * 2.5 / 3)
    assert trusting["predicted_delay_s"] == pytest.approx(2.5 / 3 + 2.5 / 3)
    (flip,) = found.flips()
    assert (flip["device"], flip["round"], flip["cut"], flip["frequency_hz"]) == ("dev", 1, [2, 1], [2e9, 2e9])
    assert flip["delay_s"] == pytest.approx([1.75, 1.5])
    assert flip["energy_j"] == pytest.approx([45, 60])
    assert (trusting["cuts_flipped"], trusting["clocks_changed"]) == (1, 0)
    same = {p.name for j, p in enumerate(found.parameters) if found.same(j)}
    assert same == {"xi", "clock-scaling", "delta", "phi", "rates"}


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_shapley_values_are_the_mean_over_all_orders_and_add_up_to_the_whole(n: int, random: Any) -> None:
    values = [random.uniform(-5, 5) for _ in range(1 << n)]
    orders = list(itertools.permutations(range(n)))
    sums = [0.0] * n
    for order in orders:
        subset = 0
        for player in order:
            sums[player] += values[subset | 1 << player] - values[subset]
            subset |= 1 << player
    shares = shapley(np.array(values))
    assert shares == pytest.approx([total / len(orders) for total in sums])
    assert shares.sum() == pytest.approx(values[-1] - values[0])


@settings(max_examples=12, deadline=None)
@given(
    w=st.floats(0.05, 0.95),
    up=st.floats(0.5, 500),
    slower=st.floats(0.2, 20),
    static_w=st.floats(0, 80),
    delta=st.floats(0.01, 10),
    idle=st.booleans(),
)
def test_no_belief_beats_the_truth_and_every_share_adds_up(
    w: float, up: float, slower: float, static_w: float, delta: float, idle: bool
) -> None:
    server, fast, slow = fleet()
    fit = server.power_fit
    assert fit is not None
    bent = [row.model_copy(update={"power_w": static_w + row.power_w}) for row in fit.predictions]
    server = server.model_copy(update={"power_fit": fit.model_copy(update={"predictions": bent})})
    options = SolveOptions(w=w, uplink_mbps=up, downlink_mbps=2 * up, count_idle=idle)
    found = regret([server, fast, slow], options, Letter(delta=delta, phi=min(1.0, 1 / slower)))
    assert (found.means.cost - found.means.cost[0]).min() > -1e-12
    for name, total in (("delay_s", "regret_delay_s"), ("energy_j", "regret_energy_j"), ("cost", "regret_cost")):
        assert found.shares[name].sum() == pytest.approx(found.belief(-1)[total], abs=1e-9)
        predicted = getattr(found.means, f"predicted_{name}", None)
        if predicted is not None:
            error = float(predicted[-1] - getattr(found.means, name)[-1])
            assert found.shares[f"predicted_{name}"].sum() == pytest.approx(error, abs=1e-9)
    assert found.steps()[-1]["regret_cost"] == 0


@pytest.mark.parametrize("w", [0.0, 0.2, 0.7, 1.0])
def test_xi_changes_no_decision_under_any_belief_and_scales_the_joules_expected(w: float) -> None:
    for profiles in (fleet(), letterlike()):
        found = regret(profiles, SolveOptions(w=w), Letter(xi_w_per_hz3=7.5e-26))
        xi = at(found, "xi")
        assert found.pairs_changed[xi] == 0
        assert "xi" in found.powerless()
        index = np.arange(1 << found.count)
        without = index[index >> xi & 1 == 0]
        both = without | 1 << xi
        assert found.means.cost[both] == pytest.approx(found.means.cost[without], abs=1e-12)
        assert found.means.predicted_energy_j[both] == pytest.approx(5 * found.means.predicted_energy_j[without])
        assert found.shares["cost"][xi] == pytest.approx(0, abs=1e-12)
        assert found.alone(xi)["prediction_error_energy_pct"] == pytest.approx(400)


def test_xi_does_matter_once_idle_watts_stand_beside_it() -> None:
    found = regret(fleet(), SolveOptions(w=0.3, count_idle=True), Letter(xi_w_per_hz3=1.5e-28))
    assert found.pairs_changed[at(found, "xi")] > 0
    assert found.parameters[at(found, "other-energy")].truth == "15 W idle"


def test_a_fleet_that_is_what_the_letter_assumes_loses_nothing() -> None:
    for w, rounds in ((0.2, None), (0.5, 3), (0.9, None)):
        found = regret(load_fleet(FOLDER), SolveOptions(w=w, rounds=rounds))
        everything = found.belief(-1)
        for name in ("regret_delay_s", "regret_energy_j", "regret_cost", "prediction_error_energy_pct"):
            assert everything[name] == pytest.approx(0, abs=1e-9)
        assert found.flips() == []
        assert all(found.same(j) for j in range(found.count))
        for share in found.shares.values():
            assert share == pytest.approx(np.zeros(found.count), abs=1e-9)


def test_the_ideal_is_what_the_exact_method_decides_and_its_price_the_same() -> None:
    options = SolveOptions(w=0.3, rounds=3, channel="poor")
    found, solution = regret(fleet(), options), solve(fleet(), options)
    assert found.ideal.cut.tolist() == solution.decisions.cut.tolist()
    assert found.ideal.frequency_hz.tolist() == solution.decisions.frequency_hz.tolist()
    assert found.ideal.delay_s.tolist() == solution.decisions.costs.delay_s.tolist()
    assert found.ideal.cost == pytest.approx(solution.decisions.cost)
    by_card = solve(fleet(), SolveOptions(w=0.3, rounds=3, channel="poor", method="card", evaluate="profile"))
    assert found.card_measured.cut.tolist() == by_card.decisions.cut.tolist()
    assert found.card_measured.frequency_hz.tolist() == by_card.decisions.frequency_hz.tolist()


def test_rates_that_are_wrong_change_what_is_expected_and_only_they_do() -> None:
    server, fast, slow = fleet()
    link = Link(provenance="measured", uplink_mbps=3.0, downlink_mbps=9.0, round_trip_s=0.02)
    linked = [server, *(d.model_copy(update={"link": link}) for d in (fast, slow))]
    found = regret(linked, SolveOptions(rounds=2, compression=1.0), Letter(phi=1.0))
    rates, phi = at(found, "rates"), at(found, "phi")
    assert found.parameters[rates].provenance == ("measured",)
    assert found.alone(rates)["prediction_error_delay_pct"] < -10
    assert found.same(phi)
    right = regret(linked, SolveOptions(compression=1.0), Letter(phi=1.0, uplink_mbps=3.0, downlink_mbps=9.0))
    only_trips = right.alone(at(right, "rates"))["predicted_delay_s"] - right.belief(0)["mean_delay_s"]
    assert only_trips == pytest.approx(-6 * 0.02)  # one a mini-batch of five, one for the adapters


def test_another_channel_state_is_assumed_to_fade_alike() -> None:
    normal = regret(fleet(), SolveOptions(channel="normal", rounds=4, seed=3))
    assert normal.same(at(normal, "rates"))
    poor = regret(fleet(), SolveOptions(channel="poor", rounds=4, seed=3))
    assert not poor.same(at(poor, "rates"))
    assert poor.alone(at(poor, "rates"))["prediction_error_delay_pct"] < 0


def test_a_state_is_the_same_channel_whether_by_name_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "channel.json").write_text('{"format": "card-channel/1", "state": "poor"}')
    by_name, in_a_file = (
        regret(fleet(), SolveOptions(channel=channel, rounds=4, seed=3))
        for channel in ("poor", str(tmp_path / "channel.json"))
    )
    assert by_name.as_json()["parameters"] == in_a_file.as_json()["parameters"]


def test_energy_of_the_devices_is_known_as_well_as_their_watts_are() -> None:
    server = make_profile("srv", "server")
    assert server.power is not None
    device = make_profile("dev", power=server.power.model_copy(update={"provenance": "emulated"}))
    for idle, roots in ((False, {"emulated"}), (True, {"emulated", "measured"})):
        found = regret([server, device], SolveOptions(device_energy=1.0, count_idle=idle))
        assert set(found.parameters[at(found, "other-energy")].provenance) == roots


def test_memory_limits_hold_on_both_sides_and_what_the_letter_would_take_without_them_is_named() -> None:
    server, fast, slow = fleet()
    found = regret([server, fast, limited(slow, 150_000_000)], SolveOptions(w=0.0), Letter())
    assert found.trusting.cut.tolist() == [3, 1]
    (misfit,) = found.misfits
    assert (misfit.device, misfit.cut, misfit.decisions) == ("slow", 3, 1)
    assert regret(fleet(), SolveOptions(w=0.0)).misfits == []


@pytest.mark.parametrize(
    "letter", [Letter(), Letter(xi_w_per_hz3=1e-20, delta=0.001), Letter(xi_w_per_hz3=1e-31, delta=900)]
)
def test_the_report_fits_in_80_columns_however_wrong_the_assumptions(letter: Letter) -> None:
    import io

    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    print_regret(regret(fleet(), SolveOptions(w=0.3), letter), console)
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "Cannot matter here" in text


def test_what_is_written_is_json_csv_and_a_picture_that_agree(tmp_path: Path) -> None:
    found = regret(fleet(), SolveOptions(w=0.3))
    answer = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert answer["truth"]["provenance"] == ["assumed", "measured"]
    with write_csv(found, tmp_path / "regret.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["parameter"] for r in rows] == [p["parameter"] for p in answer["parameters"]]
    total = sum(float(r["shapley_regret_energy_j"]) for r in rows)
    assert total == pytest.approx(answer["trusting"]["regret_energy_j"], abs=1e-9)
    assert write_plot(found, tmp_path / "regret.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(BadInput, match=r"--plot .*regret: expected a name that ends in \.png"):
        write_plot(found, tmp_path / "regret")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "card"}, "--method card: regret compares"),
        ({"evaluate": "letter"}, "--evaluate letter: this command decides by what the profiles hold"),
        ({"w": 1.0, "price_j_per_s": 3.0}, "--price: Algorithm 1 minimises U"),
    ],
)
def test_options_that_regret_cannot_mean_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        regret(fleet(), SolveOptions(**options))


def test_the_letters_side_needs_cores_clocks_and_watts() -> None:
    server, fast, slow = fleet()
    for field in ("cores", "clocks"):
        bare = fast.model_copy(update={"hardware": fast.hardware.model_copy(update={field: None})})
        with pytest.raises(BadInput, match=rf"profile fast: field hardware\.{field} is empty"):
            regret([server, bare, slow], SolveOptions())
    with pytest.raises(BadInput, match="profile srv: no field power_fit"):
        regret(fleet(power_fit=None), SolveOptions(w=1.0))


@pytest.mark.parametrize("item", ["psi=3", "xi", "xi=x", "phi=1.5", "xi=3", "delta=nan", "uplink-mbps=5"])
def test_an_assumption_that_cannot_be_is_named(item: str) -> None:
    with pytest.raises(BadInput, match="--assume"):
        parse_letter([item])


def test_assumptions_replace_the_letters_own() -> None:
    letter = parse_letter(["xi=2e-26", "phi=0.5", "uplink-mbps=5", "downlink-mbps=9"])
    assert letter == Letter(xi_w_per_hz3=2e-26, phi=0.5, uplink_mbps=5, downlink_mbps=9)
    assert parse_letter([]) == Letter()
    assert not math.isnan(Letter().delta)


def test_no_flops_in_a_head_is_no_share_of_the_work() -> None:
    server, fast, slow = (
        p.model_copy(update={"flops": p.flops.model_copy(update={"segments": [
            SegmentFlops(forward_flops=0, backward_flops=0) if s.kind == "head" else row
            for s, row in zip(p.segments, p.flops.segments, strict=True)]})})
        for p in letterlike()
    )  # fmt: skip
    found = regret([server, fast, slow], SolveOptions(), Letter())
    assert found.same(at(found, "equal-layers"))
