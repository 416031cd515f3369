"""What a person gets in a notebook or a file: tidy tables, units in the names, provenance beside them, the same figures everywhere."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import solver
from profiler.profile import BadInput, MissingHardware
from solver.problem import SolveOptions
from solver.scenario import solve
from solver.show.frames import write_csv, write_parquet
from tests.solver.test_scenario import fleet, limited, read_table


def test_a_frame_has_one_row_for_each_decision_and_baseline_with_the_figures_of_json() -> None:
    solution = solve(fleet(), SolveOptions(rounds=3, method="card"))
    frame, answer = solution.to_frame(), solution.as_json()
    for name, rows in (("card", answer["decisions"]), *answer["baselines"].items()):
        mine = frame[frame["method"] == name]
        assert len(mine) == len(rows) == 6
        for (_, got), row in zip(mine.iterrows(), rows, strict=True):
            assert bool(got["baseline"]) == (name != "card")
            for key in ("device", "round", "cut", "frequency_hz", "delay_s", "energy_j", "cost", "feasible"):
                assert got[key] == row[key], key
    parts = ["device_compute_s", "server_compute_s", "uplink_s", "downlink_s", "adapters_s"]
    assert frame[parts].sum(axis=1).to_numpy() == pytest.approx(frame["delay_s"].to_numpy(), rel=1e-12)


def test_reasons_stand_beside_the_decisions_where_asked_for() -> None:
    server, fast, slow = fleet()
    solution = solve([server, limited(fast, 150_000_000), slow], SolveOptions())
    plain, frame = solution.to_frame(), solution.to_frame(reasons=True)
    assert "next_best_cut" not in plain
    why = [row["why"] for row in solution.as_json()["decisions"]]
    assert frame["next_best_cut"][0] is pd.NA  # one cut fits: there is no other
    assert np.isnan(frame["next_best_cost"][0])
    assert frame["next_best_cut"][1] == why[1]["next_best"]["cut"]
    assert frame["next_best_energy_j"][1] == why[1]["next_best"]["energy_j"]
    assert frame["decided_by"][1] == why[1]["next_best"]["decided_by"]
    assert frame.loc[frame["baseline"], "next_best_cut"].isna().all()


def test_frames_say_what_they_rest_on() -> None:
    solution = solve(fleet(provenance="emulated"), SolveOptions(w=0.4))
    for frame in (solution.to_frame(), solution.cost_frame(), solution.summary_frame()):
        assert frame.attrs["options"]["w"] == 0.4
        assert frame.attrs["provenance"] == {"srv": "emulated", "fast": "measured", "slow": "measured"}
        assert frame.attrs["assumptions"] == [item.as_json() for item in solution.assumptions]
        json.dumps(frame.attrs, allow_nan=False)


def test_the_cost_frame_is_the_cost_table_with_u(tmp_path: Path) -> None:
    solution = solve(fleet(), SolveOptions(rounds=2))
    frame = solution.cost_frame("slow", 2)
    rows = [r for r in read_table(solution, tmp_path) if (r["device"], r["round"]) == ("slow", "2")]
    assert frame["delay_s"].tolist() == [float(r["delay_s"]) for r in rows]
    assert frame["energy_j"].tolist() == [float(r["energy_j"]) for r in rows]
    assert frame["device_memory_bytes"].tolist() == [int(r["device_memory_bytes"]) for r in rows]
    (chosen,) = frame[frame["chosen"]].to_dict("records")
    assert chosen["cost"] == pytest.approx(solution.decisions.cost[3], abs=1e-15)
    assert chosen["cost"] == pytest.approx(frame.loc[frame["feasible"], "cost"].min(), abs=1e-12)
    assert solution.cost_frame(1).equals(solution.cost_frame("slow", 1))


@pytest.mark.parametrize(("device", "round_"), [("nobody", 1), (7, 1), (-1, 1), ("slow", 3)])
def test_a_place_that_is_not_there_is_refused(device: str | int, round_: int) -> None:
    with pytest.raises(BadInput, match="expected"):
        solve(fleet(), SolveOptions(rounds=2)).cost_frame(device, round_)


def test_the_summary_holds_the_four_figures_of_the_contract() -> None:
    solution = solve(fleet(), SolveOptions(rounds=3))
    frame, summary = solution.summary_frame().set_index("method"), solution.summary()
    assert frame.loc["exact", "mean_delay_s"] == summary["mean_delay_s"]
    assert frame.loc["device-only", "delay_saved_pct"] == summary["delay_reduction_vs_device_only_pct"]
    assert frame.loc["server-only", "energy_saved_pct"] == summary["energy_reduction_vs_server_only_pct"]


def test_unknown_energy_and_clocks_are_missing_values_and_not_numbers() -> None:
    frame = solve(fleet(power_fit=None), SolveOptions(w=1.0)).to_frame(reasons=True)
    assert frame["energy_j"].isna().all()
    assert frame["delay_s"].notna().all()


def test_csv_reads_back_bit_for_bit(tmp_path: Path) -> None:
    solution = solve(fleet(), SolveOptions(rounds=2))
    path = write_csv(solution, tmp_path / "out" / "decisions.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = solution.to_frame()
    assert list(rows[0]) == list(frame.columns)
    assert [float(r["delay_s"]) for r in rows] == frame["delay_s"].tolist()
    assert {r["feasible"] for r in rows} == {"true"}


def test_parquet_holds_the_same_table_and_what_it_rests_on(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    solution = solve(fleet(), SolveOptions())
    back = pd.read_parquet(write_parquet(solution, tmp_path / "decisions.parquet"))
    pd.testing.assert_frame_equal(back, solution.to_frame(), check_categorical=False)
    assert back.attrs["server"] == "srv"
    assert back.attrs["assumptions"] == solution.as_json()["assumptions"]


def test_without_pyarrow_parquet_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingHardware, match=r"--parquet: pyarrow is not installed.*pip install"):
        write_parquet(solve(fleet(), SolveOptions()), tmp_path / "x.parquet")


def test_a_notebook_needs_two_names_and_keywords() -> None:
    root = Path(__file__).resolve().parents[2]
    solution = solver.solve(solver.load_fleet(str(root / "profiles" / "letter")), method="card", w=0.5)
    assert solution.problem.options == solver.SolveOptions(method="card", w=0.5)
    assert set(solver.__all__) <= set(dir(solver))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        solver.nothing  # noqa: B018
    with pytest.raises(TypeError, match="weight"):
        solver.solve(fleet(), weight=0.5)


def test_the_command_writes_all_three_files_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pyarrow")
    import cli
    from profiler.store import save
    from solver.commands import solve_app

    for profile in fleet():
        save(profile, tmp_path / "fleet" / f"{profile.name}.json")
    files = [tmp_path / "out" / name for name in ("report.html", "decisions.csv", "decisions.parquet")]
    words = [part for path in files for part in (f"--{path.suffix[1:]}", str(path))]
    monkeypatch.setattr(sys, "argv", ["card-solve", "--profiles", str(tmp_path / "fleet"), "--json", *words])
    assert cli._run(solve_app, "card-solve") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["decisions"][0]["device"] == "fast"
    assert err.splitlines() == [f"wrote {path}" for path in files]
    assert f"--profiles {tmp_path / 'fleet'}" in files[0].read_text()
    assert len(pd.read_csv(files[1])) == len(pd.read_parquet(files[2])) == 6
    twice = ["--csv", str(files[1]), "--parquet", str(tmp_path / "out" / ".." / "out" / files[1].name)]
    monkeypatch.setattr(sys, "argv", ["card-solve", "--profiles", str(tmp_path / "fleet"), *twice])
    assert cli._run(solve_app, "card-solve") == 2
    assert "--parquet: expected a file of its own" in capsys.readouterr().err
    assert len(pd.read_csv(files[1])) == 6
