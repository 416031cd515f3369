"""card-solve as an outsider sees it: JSON and costs.csv agree, options are checked, bad fleets are refused in one line."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from profiler.profile import BadInput, Hardware, Profile
from solver.scenario import TABLE_COLUMNS, Solution, SolveOptions, solve
from tests.synthetic import make_profile

METHODS = ["card", "exact", "server-only", "device-only", "static:2"]


def fleet(**server_changes: Any) -> list[Profile]:
    fast = make_profile("fast")
    slow = fast.model_copy(
        update={
            "name": "slow",
            "timings": [
                t.model_copy(
                    update={
                        "segments": [
                            row.model_copy(
                                update={
                                    "forward": row.forward.model_copy(update={"median_s": 12 * row.forward.median_s})
                                }
                            )
                            for row in t.segments
                        ]
                    }
                )
                for t in fast.timings
            ],
        }
    )
    return [make_profile("srv", "server", **server_changes), fast, slow]


def letterlike() -> list[Profile]:
    """No timings and no list of clocks: any clock from F_min to F_max will do."""
    plain = []
    for profile in fleet():
        clocks = profile.hardware.clocks
        assert clocks is not None
        hardware = profile.hardware.model_copy(update={"clocks": clocks.model_copy(update={"supported_hz": []})})
        plain.append(profile.model_copy(update={"timings": [], "hardware": hardware}))
    return plain


def measured_continuous() -> list[Profile]:
    return [p.model_copy(update={"hardware": q.hardware}) for p, q in zip(fleet(), letterlike(), strict=True)]


def read_table(solution: Solution, folder: Path) -> list[dict[str, str]]:
    with solution.write_tables(folder).open(newline="") as file:
        return list(csv.DictReader(file))


def recomputed(rows: list[dict[str, str]], w: float) -> dict[tuple[int, float], float]:
    """U of every feasible (cut, clock) of one decision from its rows of the table alone."""
    fit = [r for r in rows if r["feasible"] == "true"]
    delay, energy = [float(r["delay_s"]) for r in fit], [float(r["energy_j"]) for r in fit]

    def share(x: float, of: list[float]) -> float:
        return (x - min(of)) / (max(of) - min(of)) if max(of) > min(of) else 0.0

    return {
        (int(r["cut"]), float(r["frequency_hz"])): w * share(d, delay) + (1 - w) * share(e, energy)
        for r, d, e in zip(fit, delay, energy, strict=True)
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [fleet, letterlike, measured_continuous])
@pytest.mark.parametrize("evaluate", [None, "letter"])
def test_every_decision_and_its_cost_can_be_recomputed_from_the_table(
    method: str, make: Any, evaluate: str | None, tmp_path: Path
) -> None:
    solution = solve(make(), SolveOptions(method=method, rounds=3, evaluate=evaluate, w=0.3))
    answer = json.loads(json.dumps(solution.as_json(), allow_nan=False))
    table = read_table(solution, tmp_path)
    assert tuple(table[0]) == TABLE_COLUMNS
    assert len(answer["decisions"]) == 6
    for row in answer["decisions"] + answer["baselines"]["server-only"] + answer["baselines"]["device-only"]:
        mine = [r for r in table if (r["device"], int(r["round"])) == (row["device"], row["round"])]
        (point,) = [r for r in mine if int(r["cut"]) == row["cut"] and float(r["frequency_hz"]) == row["frequency_hz"]]
        assert float(point["delay_s"]) == row["delay_s"]
        assert float(point["energy_j"]) == row["energy_j"]
        costs = recomputed(mine, 0.3)
        assert costs[row["cut"], row["frequency_hz"]] == pytest.approx(row["cost"], abs=1e-12)
        if row["method"] == "exact" and evaluate is None:
            supported = solution.problem.clocks.supported_hz.tolist()
            best = min(u for (_, f), u in costs.items() if not supported or f in supported)
            assert row["cost"] <= best + 1e-12
    for r in table:
        parts = ("device_compute_s", "server_compute_s", "uplink_s", "downlink_s", "adapters_s")
        assert float(r["delay_s"]) == pytest.approx(sum(float(r[p]) for p in parts), rel=1e-14)


def test_the_table_holds_all_cuts_at_the_supported_clocks_f_min_f_max_and_f_star(tmp_path: Path) -> None:
    solution = solve(fleet(), SolveOptions(method="card", f_min_ghz=0.7, f_max_ghz=1.9))
    table = read_table(solution, tmp_path)
    clocks = {float(r["frequency_hz"]) for r in table if r["device"] == "fast"}
    assert clocks == {0.7e9, 1e9, 1.5e9, 1.9e9, float(solution.optimal_hz[0])}
    assert {int(r["cut"]) for r in table} == {1, 2, 3}
    assert {r["device_memory_bytes"] for r in table if r["cut"] == "2"} == {"200000000"}


@pytest.mark.parametrize("method", ["card", "exact"])
@pytest.mark.parametrize("uplink_mbps", [0.7, 3.0, 11.0, 130.0, 977.0])
def test_the_fastest_point_of_all_costs_nothing_at_w_1_and_not_less(method: str, uplink_mbps: float) -> None:
    for profiles in (letterlike(), fleet()):
        solution = solve(profiles, SolveOptions(method=method, w=1.0, uplink_mbps=uplink_mbps, downlink_mbps=7.0))
        assert solution.decisions.cost.tolist() == [0.0] * len(solution.problem.devices)


def test_exact_is_never_dearer_than_card_or_a_fixed_cut_on_what_the_profiles_hold() -> None:
    for w in (0.0, 0.1, 0.2, 0.5, 0.8, 1.0):
        costs = {m: solve(fleet(), SolveOptions(method=m, w=w)).decisions.cost for m in METHODS}
        for method in METHODS:
            assert (costs["exact"] <= costs[method] + 1e-12).all()


def test_card_rounds_the_letters_clock_to_a_supported_one_and_reports_both_benchmarks_at_it() -> None:
    answer = solve(fleet(), SolveOptions(method="card")).as_json()
    for device, row in enumerate(answer["decisions"]):
        assert row["frequency_hz"] in (0.5e9, 1e9, 1.5e9, 2e9)
        for name, cut in (("server-only", 1), ("device-only", 3)):
            other = answer["baselines"][name][device]
            assert (other["frequency_hz"], other["cut"], other["method"]) == (row["frequency_hz"], cut, name)


def test_cards_cut_is_the_best_at_the_clock_of_equation_16_and_not_at_the_rounded_one() -> None:
    """Rounding comes after Algorithm 1. Here 0.66 GHz is rounded to 0.5 GHz, at which cut 3 would have been chosen."""
    server, device, _ = (p.model_copy(update={"timings": []}) for p in fleet())
    clocks = device.hardware.clocks
    assert clocks is not None
    hz = {"supported_hz": [], "min_hz": 0.42e9, "max_hz": 0.42e9, "operating_hz": 0.42e9}
    hardware = device.hardware.model_copy(update={"clocks": clocks.model_copy(update=hz)})
    fast_link: dict[str, Any] = {"uplink_mbps": 1e4, "downlink_mbps": 1e4}
    solution = solve(
        [server, device.model_copy(update={"hardware": hardware})], SolveOptions(method="card", **fast_link)
    )
    assert solution.optimal_hz[0] == pytest.approx(0.66e9, rel=0.01)
    assert solution.decisions.frequency_hz.tolist() == [0.5e9]
    assert solution.decisions.cut.tolist() == [1]
    assert solution.decisions.cost[0] > solution.baselines["device-only"].cost[0]  # the price of rounding


def test_f_star_takes_part_in_the_extremes_because_it_is_a_clock_of_the_table(tmp_path: Path) -> None:
    """With high static power energy is least between two supported clocks, and f* may be nearest to that."""
    server, device, _ = fleet()
    assert server.power_fit is not None
    watts = {0.5: 100.0, 1.0: 105.0, 1.5: 150.0, 2.0: 400.0}
    rows = [r.model_copy(update={"power_w": watts[r.frequency_hz / 1e9]}) for r in server.power_fit.predictions]
    fit = server.power_fit.model_copy(update={"predictions": rows})
    supported = solve([server.model_copy(update={"power_fit": fit}), device], SolveOptions(w=0.6))
    mine = read_table(supported, tmp_path)
    star = [float(r["energy_j"]) for r in mine if float(r["frequency_hz"]) == float(supported.optimal_hz[0])]
    others = [float(r["energy_j"]) for r in mine if float(r["frequency_hz"]) in supported.problem.clocks.supported_hz]
    assert min(star) < min(others)
    assert supported.extremes.e_min_j[0] == min(star)


@pytest.mark.parametrize(("method", "cut"), [("server-only", 1), ("device-only", 3), ("static:2", 2)])
def test_a_fixed_cut_runs_at_the_clock_of_equation_16(method: str, cut: int) -> None:
    fixed, card = solve(fleet(), SolveOptions(method=method)), solve(fleet(), SolveOptions(method="card"))
    assert fixed.decisions.cut.tolist() == [cut, cut]
    assert fixed.decisions.frequency_hz.tolist() == card.decisions.frequency_hz.tolist()


def test_percentages_are_ratios_of_means() -> None:
    answer = solve(fleet(), SolveOptions(method="exact", rounds=4)).as_json()

    def mean(rows: list[dict[str, Any]], key: str) -> float:
        return math.fsum(r[key] for r in rows) / len(rows)

    summary, rows = answer["summary"], answer["decisions"]
    assert summary["mean_delay_s"] == pytest.approx(mean(rows, "delay_s"))
    device_only, server_only = answer["baselines"]["device-only"], answer["baselines"]["server-only"]
    assert summary["delay_reduction_vs_device_only_pct"] == pytest.approx(
        100 * (1 - mean(rows, "delay_s") / mean(device_only, "delay_s"))
    )
    assert summary["energy_reduction_vs_server_only_pct"] == pytest.approx(
        100 * (1 - mean(rows, "energy_j") / mean(server_only, "energy_j"))
    )


# ------------------------------------------------------------------------------------------------------------ memory


def limited(profile: Profile, memory_bytes: int) -> Profile:
    return profile.model_copy(update={"hardware": profile.hardware.model_copy(update={"memory_bytes": memory_bytes})})


def test_a_cut_that_does_not_fit_is_never_chosen_and_is_named_with_its_machine(tmp_path: Path) -> None:
    server, fast, slow = fleet()  # cut c needs c x 100 MB on the device, (4 - c) x 100 MB on the server
    solution = solve([server, limited(fast, 150_000_000), slow], SolveOptions(w=0.0))
    rows = solution.as_json()
    assert [r["cut"] for r in rows["decisions"]] == [1, 3]
    (gone,) = rows["excluded_cuts"]
    assert (gone["device"], gone["cuts"], gone["machine"]) == ("fast", [2, 3], "fast")
    flags = {(r["device"], r["cut"]): r["feasible"] for r in read_table(solution, tmp_path)}
    assert flags[("fast", "1")] == "true"
    assert flags[("fast", "2")] == flags[("fast", "3")] == "false"


def test_the_servers_memory_limits_cuts_too() -> None:
    server, fast, slow = fleet()
    solution = solve([limited(server, 250_000_000), fast, slow], SolveOptions(w=0.0))
    assert {(e.device, e.machine, tuple(e.cuts)) for e in solution.problem.exclusions} == {
        ("fast", "srv", (1,)),
        ("slow", "srv", (1,)),
    }


def test_a_benchmark_that_does_not_fit_is_marked_and_gives_no_percentage() -> None:
    server, fast, slow = fleet()
    solution = solve([server, limited(fast, 250_000_000), slow], SolveOptions())
    answer = solution.as_json()
    assert [r["feasible"] for r in answer["baselines"]["device-only"]] == [False, True]
    assert answer["summary"]["delay_reduction_vs_device_only_pct"] is None
    assert answer["summary"]["energy_reduction_vs_server_only_pct"] is not None
    assert any("device-only does not fit in memory for fast" in line for line in answer["warnings"])
    assert solution.baselines["device-only"].mean_delay_s() == float(solution.baselines["device-only"].costs.delay_s[1])


def test_a_fixed_cut_that_fits_on_some_devices_only_gives_no_percentages() -> None:
    server, fast, slow = fleet()
    solution = solve([server, limited(fast, 150_000_000), slow], SolveOptions(method="static:2"))
    assert [row["feasible"] for row in solution.as_json()["decisions"]] == [False, True]
    assert solution.summary()["energy_reduction_vs_server_only_pct"] is None
    assert solution.summary()["delay_reduction_vs_device_only_pct"] is None
    assert any("static:2 does not fit in memory for fast" in line for line in solution.warnings)


def test_the_extremes_are_taken_over_the_cuts_that_fit() -> None:
    server, fast, slow = fleet()
    free, tight = (
        solve([server, d, slow], SolveOptions(method="static:1")) for d in (fast, limited(fast, 150_000_000))
    )
    assert tight.extremes.e_min_j[0] > free.extremes.e_min_j[0]
    assert tight.extremes.e_min_j[1] == free.extremes.e_min_j[1]


def test_a_device_on_which_no_cut_fits_is_refused_with_what_each_needs() -> None:
    server, fast, slow = fleet()
    with pytest.raises(
        BadInput, match=r"device fast: no cut fits in memory: cuts 1-3 need 0\.0931 to 0\.279 GiB on fast"
    ):
        solve([server, limited(fast, 1000), slow], SolveOptions())


def test_memory_that_nobody_measured_is_no_limit_and_is_listed() -> None:
    server, fast, slow = fleet()
    listed = solve([server, fast.model_copy(update={"memory": None}), slow], SolveOptions()).assumptions
    assert "fast: memory needed at each cut" in {a.quantity for a in listed}


# ------------------------------------------------------------------------------------------------------- assumptions


def test_a_fleet_whose_every_figure_was_measured_rests_on_no_assumption() -> None:
    options = SolveOptions(uplink_mbps=100, downlink_mbps=100, compression=1.0, require_measured=True)
    assert solve(fleet(), options).assumptions == []


@pytest.mark.parametrize("provenance", ["emulated", "datasheet", "assumed"])
def test_emulated_and_datasheet_figures_count_as_not_measured(provenance: Any) -> None:
    mixed = [make_profile("srv", "server", provenance=provenance), make_profile("dev")]
    rates: dict[str, Any] = {"uplink_mbps": 100, "downlink_mbps": 100, "compression": 1.0}
    listed = {a.quantity: a.provenance for a in solve(mixed, SolveOptions(**rates)).assumptions}
    for quantity in ("layer times", "power against clock", "F_min in Hz", "F_max in Hz", "memory limit in bytes"):
        assert listed[f"srv: {quantity}"] == provenance
    assert not any(q.startswith("dev") for q in listed)
    with pytest.raises(BadInput, match=rf"--require-measured: .*srv: layer times \({provenance}\)"):
        solve(mixed, SolveOptions(**rates, require_measured=True))


def test_what_the_user_gives_is_no_assumption() -> None:
    mixed = [make_profile("srv", "server", provenance="emulated"), make_profile("dev")]
    names = {a.quantity for a in solve(mixed, SolveOptions(f_min_ghz=0.5, f_max_ghz=2.0, compression=0.5)).assumptions}
    assert not any("F_min" in n or "F_max" in n or "phi" in n for n in names)


def test_exact_on_measured_tables_does_not_rest_on_the_letters_figures() -> None:
    loud = [make_profile("srv", "server"), make_profile("dev")]
    loud = [p.model_copy(update={"flops": p.flops.model_copy(update={"provenance": "assumed"})}) for p in loud]
    rates: dict[str, Any] = {"uplink_mbps": 100, "downlink_mbps": 100, "compression": 1.0}
    assert solve(loud, SolveOptions(method="exact", **rates)).assumptions == []
    listed = solve(loud, SolveOptions(method="card", **rates)).assumptions
    assert {a.quantity for a in listed} == {"dev: FLOPs of a mini-batch (eta)", "srv: FLOPs of a mini-batch (eta)"}


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w": 1.5}, r"--w 1.5: expected a number from 0 to 1"),
        ({"w": math.nan}, r"--w nan: expected a number from 0 to 1"),
        ({"local_epochs": 0}, "--local-epochs 0: expected"),
        ({"compression": 0.0}, "--compression 0: expected a number above 0 and at most 1"),
        ({"compression": 1.5}, "--compression 1.5: expected"),
        ({"rounds": 0}, "--rounds 0: expected"),
        ({"seed": -1}, "--seed -1: expected"),
        ({"method": "magic"}, "--method magic: expected card, exact"),
        ({"method": "static:0"}, "--method static:0: expected static:C with a cut C from 1 to 3"),
        ({"method": "static:4"}, "from 1 to 3"),
        ({"method": "static:x"}, "from 1 to 3"),
        ({"evaluate": "both"}, "--evaluate both: expected letter or profile"),
        ({"f_min_ghz": 1.2, "f_max_ghz": 1.1}, "expected F_min <= F_max"),
        ({"f_min_ghz": 2.5}, "expected F_min <= F_max"),
        ({"f_min_ghz": 1.1, "f_max_ghz": 1.2}, "server srv supports no clock from 1.1 to 1.2 GHz"),
        ({"f_min_ghz": 1e9}, r"--f-min-ghz 1e\+09: expected a clock in GHz"),
        ({"f_max_ghz": math.inf}, "--f-max-ghz inf: expected a clock in GHz"),
        ({"server": "nobody"}, "--server nobody: .*expected one of: srv"),
        ({"leave_out": ("everything",)}, "--leave-out everything: expected terms out of optimizer"),
        ({"uplink_mbps": 5.0}, "--uplink-mbps: expected --downlink-mbps with it"),
        ({"downlink_mbps": 5.0}, "--downlink-mbps: expected --uplink-mbps with it"),
        ({"uplink_mbps": 5.0, "downlink_mbps": 0.0}, "--downlink-mbps 0: expected a rate"),
        ({"uplink_mbps": math.nan, "downlink_mbps": 1.0}, "--uplink-mbps nan: expected a rate"),
        ({"uplink_mbps": 5.0, "downlink_mbps": 5.0, "channel": "good"}, "--channel: expected either"),
    ],
)
def test_a_bad_option_is_named_in_one_line_with_what_was_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        solve(fleet(), SolveOptions(**options))
    assert "\n" not in str(caught.value)


def test_a_fleet_needs_one_server_and_at_least_one_device() -> None:
    server, fast, slow = fleet()
    with pytest.raises(BadInput, match=r"no profile has role server \(devices: fast, slow\)"):
        solve([fast, slow], SolveOptions())
    with pytest.raises(BadInput, match="no profile has role device beside the server srv"):
        solve([server], SolveOptions())
    second = server.model_copy(update={"name": "other"})
    with pytest.raises(BadInput, match="expected --server with one of: srv, other"):
        solve([server, second, fast], SolveOptions())
    assert solve([server, second, fast], SolveOptions(server="other")).problem.server.name == "other"


def test_profiles_of_different_workloads_are_refused_naming_both_and_the_fields() -> None:
    server, fast, _ = fleet()
    other = fast.model_copy(
        update={"workload": fast.workload.model_copy(update={"batch_size": 2, "dtype": "bfloat16"})}
    )
    with pytest.raises(BadInput, match=r"profiles srv and fast: workload differs in batch_size \(1 against 2\), dtype"):
        solve([server, other], SolveOptions())


def test_a_server_without_power_can_decide_by_delay_alone() -> None:
    blind = fleet(power_fit=None)
    with pytest.raises(BadInput, match=r"no field power_fit, expected .*card-profile fit-power"):
        solve(blind, SolveOptions())
    for method in METHODS:
        answer = solve(blind, SolveOptions(method=method, w=1.0)).as_json()
        assert answer["decisions"][0]["energy_j"] is None
        assert answer["summary"]["energy_reduction_vs_server_only_pct"] is None
        assert any("power is not known" in line for line in answer["warnings"])
        assert answer["decisions"][0]["frequency_hz"] == 2e9


def test_a_server_without_power_leaves_the_energy_column_empty(tmp_path: Path) -> None:
    table = read_table(solve(fleet(power_fit=None), SolveOptions(w=1.0)), tmp_path)
    assert {r["energy_j"] for r in table} == {""}


def test_measured_tables_are_demanded_only_where_they_exist() -> None:
    server, fast, slow = fleet()
    bare = slow.model_copy(update={"timings": []})
    with pytest.raises(
        BadInput, match="--evaluate profile: expected layer times in every profile, there are none in slow"
    ):
        solve([server, fast, bare], SolveOptions(evaluate="profile"))
    solution = solve([server, fast, bare], SolveOptions())
    assert solution.problem.evaluated.name == "letter"
    assert any("no layer times in slow" in line for line in solution.warnings)
    mute = Hardware(provenance="measured", kind="abstract", description="a machine for tests")
    with pytest.raises(BadInput, match=r"profile slow: no timings, and field hardware\.cores is empty"):
        solve([server, fast, bare.model_copy(update={"hardware": mute})], SolveOptions())


def test_terms_that_the_letter_does_not_have_are_refused_where_it_is_what_is_reported() -> None:
    for options in ({"count_idle": True}, {"device_energy": 5.0}, {"method": "card", "leave_out": ("head",)}):
        with pytest.raises(
            BadInput, match=r"--\S+: the letter's model has no such term, expected no --evaluate letter"
        ):
            solve(fleet(), SolveOptions(evaluate="letter", **options))
    # Whoever leaves out what the letter does not know may well ask what the letter's model says of that decision.
    assert solve(fleet(), SolveOptions(evaluate="letter", leave_out=("head",))).problem.evaluated.name == "letter"


def test_only_a_plain_decision_is_reported_from_another_model_than_it_was_taken_in() -> None:
    from solver.adaptive import follow
    from solver.front import trade_offs
    from solver.problem import pose
    from solver.regret.regret import regret
    from solver.uncertainty.certainty import how_sure

    options = SolveOptions(evaluate="letter")
    for command in (follow, regret, lambda ps, o: how_sure(pose(ps, o)), lambda ps, o: trade_offs(pose(ps, o))):
        with pytest.raises(BadInput, match="--evaluate letter: this command decides by what the profiles hold"):
            command(fleet(), options)


def test_limits_beyond_a_measured_machines_clocks_end_at_its_own_with_a_warning() -> None:
    solution = solve(fleet(), SolveOptions(f_max_ghz=9.0))
    assert solution.problem.clocks.f_max_hz == 2e9
    assert any("--f-max-ghz: 9 GHz is beyond the clocks of srv" in line for line in solution.warnings)


def test_a_table_beyond_the_limit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    solution = solve(fleet(), SolveOptions(rounds=5))
    with pytest.raises(BadInput, match=r"--tables: costs.csv would have \d+ rows, more than 10; .*--tables-limit"):
        solution.write_tables(tmp_path, limit=10)
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_answer_and_another_seed_another() -> None:
    first, again, other = (
        solve(fleet(), SolveOptions(channel="poor", rounds=3, seed=s)).as_json()["decisions"] for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_json_in_pieces_is_the_json_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solver.show.answer.ROWS_AT_ONCE", 4)
    for profiles in (letterlike(), fleet()):
        solution = solve(profiles, SolveOptions(channel="normal", rounds=5))
        out = io.StringIO()
        solution.write_json(out)
        assert json.loads(out.getvalue()) == json.loads(json.dumps(solution.as_json()))
        assert len(json.loads(out.getvalue())["decisions"]) == 5 * len(solution.problem.devices)


def test_a_limit_beyond_a_server_without_listed_clocks_is_taken_as_given_with_a_warning() -> None:
    clocks = next(p.hardware.clocks for p in letterlike() if p.role == "server")
    assert clocks is not None
    top = clocks.max_hz
    solution = solve(letterlike(), SolveOptions(f_max_ghz=2 * top / 1e9))
    assert solution.problem.clocks.f_max_hz == 2 * top
    assert any("--f-max-ghz" in line and "taken as given" in line for line in solution.warnings)
