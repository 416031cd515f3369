"""Whatever is wrong with the input, ``card-solve`` says which file or option, which field and why: one line, exit 2, no traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
from profiler.profile import Profile
from solver.commands import solve_app
from solver.plausible import check_units
from solver.problem import SolveOptions
from solver.scenario import solve
from tests.solver.test_scenario import fleet

Documents = dict[str, Any]
Run = Callable[..., str]


@pytest.fixture
def documents() -> Documents:
    """Three profiles as they stand in their files: srv, fast, slow."""
    return {p.name: json.loads(p.model_dump_json(exclude_none=True)) for p in fleet()}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Solve a folder of documents through the command and return the one line with which it is refused."""

    def run(documents: Documents, *options: str) -> str:
        folder = tmp_path / "fleet"
        folder.mkdir()
        for name, document in documents.items():
            text = document if isinstance(document, str) else json.dumps(document)
            (folder / f"{name}.json").write_text(text)
        monkeypatch.setattr(sys, "argv", ["card-solve", "--profiles", str(folder), *options])
        code = cli._run(solve_app, "card-solve")
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1, err
        assert err.startswith("card-solve: ")
        assert "Traceback" not in err
        return err.replace(f"{folder}/", "")

    return run


def scaled(value: Any, factor: float, ending: str, key: str = "") -> Any:
    """Every number under a key that ends in ``ending``, in another unit."""
    if isinstance(value, dict):
        return {name: scaled(inside, factor, ending, name) for name, inside in value.items()}
    if isinstance(value, list):
        return [scaled(inside, factor, ending, key) for inside in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and key.endswith(ending):
        return int(value * factor) if isinstance(value, int) else value * factor
    return value


# ----------------------------------------------------------------------------------------- profiles that do not fit


@pytest.mark.parametrize(("field", "other"), [("model", "another-model"), ("batch_size", 2), ("seq_len", 32)])
def test_profiles_of_another_workload_are_refused_with_both_values(
    field: str, other: Any, documents: Documents, refused: Run
) -> None:
    ours = documents["srv"]["workload"][field]
    documents["fast"]["workload"][field] = other
    assert f"profiles srv and fast: workload differs in {field} ({ours} against {other})" in refused(documents)


def test_a_fleet_without_a_server_says_how_to_get_one(documents: Documents, refused: Run) -> None:
    del documents["srv"]
    line = refused(documents)
    assert "no profile has role server (devices: fast, slow); make one with 'card-profile run --role server'" in line


def test_two_servers_are_refused_unless_one_is_named(documents: Documents, refused: Run) -> None:
    documents["fast"]["role"] = "server"
    assert "2 profiles have role server, expected --server with one of: fast, srv" in refused(documents)


def test_a_server_alone_is_refused(documents: Documents, refused: Run) -> None:
    assert "no profile has role device beside the server srv" in refused({"srv": documents["srv"]})


def test_two_files_of_one_name_are_both_named(documents: Documents, refused: Run) -> None:
    line = refused({**documents, "zz": documents["fast"]})
    assert "zz.json: field name: 'fast' is already used by fast.json" in line


def test_pieces_of_another_model_are_refused(documents: Documents, refused: Run) -> None:
    documents["fast"]["segments"][0]["kind"] = "layer"
    documents["fast"]["segments"][0]["layer"] = 1
    assert "profiles srv and fast: field segments differs" in refused(documents)


# ----------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("factor", [1e6, 1e-6])
@pytest.mark.parametrize("who", ["srv", "fast"])
def test_times_in_another_unit_are_refused(who: str, factor: float, documents: Documents, refused: Run) -> None:
    documents[who]["timings"] = scaled(documents[who]["timings"], factor, "_s")
    line = refused(documents)
    assert f"profile {who}: field timings.0: " in line
    assert line.rstrip().endswith("expected seconds")


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e-9])
@pytest.mark.parametrize("block", ["hardware", "timings", "power", "power_fit"])
def test_clocks_in_another_unit_are_refused(block: str, factor: float, documents: Documents, refused: Run) -> None:
    documents["srv"][block] = scaled(documents["srv"][block], factor, "_hz")
    line = refused(documents)
    assert f"srv.json: field {block}" in line
    assert "_hz" in line


@pytest.mark.parametrize("factor", [1e6, 1e-6])
@pytest.mark.parametrize("block", ["power", "power_fit"])
def test_watts_in_another_unit_are_refused(block: str, factor: float, documents: Documents, refused: Run) -> None:
    documents["srv"][block] = scaled(documents["srv"][block], factor, "_w")
    assert f"field {block}" in refused(documents)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_an_xi_that_is_off_by_a_million_is_refused_with_the_watts_that_it_means(
    factor: float, documents: Documents, refused: Run
) -> None:
    documents["srv"]["power_fit"]["xi_w_per_hz3"] *= factor
    line = refused(documents)
    assert "profile srv: field power_fit.xi_w_per_hz3: " in line
    assert "W at 2 GHz" in line


def test_bytes_and_flops_in_another_unit_are_refused(documents: Documents, refused: Run) -> None:
    documents["fast"]["sizes"] = scaled(documents["fast"]["sizes"], 1e6, "smashed_bytes")
    assert "profile fast: field sizes.cuts: smashed_bytes of 1000000000000 for 16 tokens" in refused(documents)


@pytest.mark.parametrize(
    ("block", "ending", "factor", "named"),
    [
        ("sizes", "adapter_bytes", 1e6, "field sizes.segments: adapter_bytes"),
        ("sizes", "weight_bytes", 1e6, "field sizes.segments: weight_bytes"),
        ("flops", "_flops", 1e6, "field flops: "),
        ("hardware", "memory_bytes", 1e7, "field hardware.memory_bytes: "),
        ("memory", "_bytes", 1e-6, "field memory.cuts.0: "),
    ],
)
def test_sizes_that_contradict_the_workload_are_refused(
    block: str, ending: str, factor: float, named: str, documents: Documents, refused: Run
) -> None:
    documents["slow"][block] = scaled(documents["slow"][block], factor, ending)
    assert f"profile slow: {named}" in refused(documents)


def test_a_round_trip_in_milliseconds_is_refused(documents: Documents, refused: Run) -> None:
    documents["fast"]["link"] = {
        "provenance": "measured", "uplink_mbps": 5.0, "downlink_mbps": 10.0, "round_trip_s": 20.0,
    }  # fmt: skip
    assert "profile fast: field link.round_trip_s: 20 s, expected at most 10" in refused(documents)


def test_a_server_that_is_absurdly_slower_than_its_device_is_refused(documents: Documents, refused: Run) -> None:
    documents["srv"]["timings"] = scaled(documents["srv"]["timings"], 300, "_s")
    documents["fast"]["timings"] = scaled(documents["fast"]["timings"], 0.003, "_s")
    assert "profiles srv and fast: field timings: the same mini-batch takes" in refused(documents)


@pytest.mark.parametrize("factor", [0.01, 100.0, 1000.0])
def test_machines_that_are_merely_slow_or_fast_are_taken(factor: float) -> None:
    server, fast, slow = fleet()
    other = Profile.model_validate(scaled(fast.model_dump(), factor, "_s"))
    assert solve([server, other, slow], SolveOptions()).decisions.cut.size == 2


def test_the_profiles_that_ship_are_plausible() -> None:
    from profiler.store import load_fleet

    folder = Path(__file__).resolve().parents[2] / "profiles" / "letter"
    profiles = load_fleet(folder)
    check_units(sorted(profiles, key=lambda p: p.role == "device"))


# ------------------------------------------------------------------------------------------------- single figures


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("timings", 0, "segments", 1, "forward", "median_s"), -1.0, "field timings.0.segments.1.forward.median_s is -1: "),
        (("link",), {"provenance": "measured", "uplink_mbps": 0.0, "downlink_mbps": 9.0}, "field link.uplink_mbps is 0: "),
        (("link",), {"provenance": "measured", "uplink_mbps": 9.0, "downlink_mbps": 5e7}, "field link.downlink_mbps is 5e+07: "),
        (("compression",), {"provenance": "measured", "phi": 0.0}, "field compression.phi is 0: "),
        (("workload", "batch_size"), "1", "field workload.batch_size is '1': "),
        (("hardware", "cores"), -5, "field hardware.cores is -5: "),
        (("format",), "card-profile/9", "field format is 'card-profile/9', expected \"card-profile/1\""),
    ],
)  # fmt: skip
def test_a_figure_that_cannot_be_is_named_with_its_field_and_what_it_is(
    path: tuple[Any, ...], value: Any, named: str, documents: Documents, refused: Run
) -> None:
    place = documents["fast"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert f"fast.json: {named}" in refused(documents)


def test_times_of_zero_are_refused(documents: Documents, refused: Run) -> None:
    documents["fast"]["timings"] = scaled(documents["fast"]["timings"], 0.0, "_s")
    assert "profile fast: flops and timings add up to 1.2e+10 FLOPs in 0 s" in refused(documents)


@pytest.mark.parametrize("timed", [True, False], ids=["with layer times", "without"])
def test_flops_of_zero_are_refused_with_and_without_layer_times(
    timed: bool, documents: Documents, refused: Run
) -> None:
    documents["fast"]["flops"] = scaled(documents["fast"]["flops"], 0.0, "_flops")
    if not timed:
        documents["fast"]["timings"] = []
    assert "profile fast: field flops adds up to 0 FLOPs" in refused(documents)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text[: len(text) // 2], "fast.json: not valid JSON: "),
        (lambda text: "", "fast.json: not valid JSON: "),
        (lambda text: text.replace('"batch_size": 1', '"batch_size": NaN'), "fast.json: not valid JSON: NaN is not a figure"),
        (lambda text: text.replace('"batch_size": 1', '"batch_size": 1, "batch_size": 2'), "'batch_size' stands there twice"),
        (lambda text: text.replace('"batch_size": 1', '"batchsize": 1'), "fast.json: field workload.batch_size: Field required"),
        (lambda text: "[]", "fast.json: field format is 'list'"),
        (lambda text: "[" * 100_000, "fast.json: not a profile: nested too deeply"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_profile_is_named(
    change: Callable[[str], str], named: str, documents: Documents, refused: Run
) -> None:
    line = refused({**documents, "fast": change(json.dumps(documents["fast"]))})
    assert named in line


@pytest.mark.parametrize("machine", ["fast", "srv"])
def test_a_device_on_which_no_cut_fits_is_told_what_is_needed_and_what_there_is(
    machine: str, documents: Documents, refused: Run
) -> None:
    documents[machine]["hardware"]["memory_bytes"] = 10_000_000
    line = refused(documents)
    assert "device fast: no cut fits in memory: cuts 1-3 need 0.0931 to 0.279 GiB" in line
    assert f"on {machine}, which has 0.00931 GiB; profile a smaller batch" in line


# ---------------------------------------------------------------------------------------------------- options, traces


@pytest.mark.parametrize(
    "options",
    [
        ("--uplink-mbps", "0", "--downlink-mbps", "1"),
        ("--uplink-mbps", "-3", "--downlink-mbps", "1"),
        ("--downlink-mbps", "nan", "--uplink-mbps", "1"),
        ("--uplink-mbps", "1e9", "--downlink-mbps", "1"),
        ("--w", "nan"),
        ("--w", "1.01"),
        ("--compression", "0"),
        ("--f-min-ghz", "1300"),
        ("--local-epochs", "0"),
        ("--rounds", "0"),
        ("--method", "magic"),
        ("--method", "static:9"),
        ("--channel", "nowhere.csv"),
        ("--server", "nobody"),
        ("--max-delay-s", "1e-9"),
        ("--tables-limit", "0", "--tables", "t"),
        ("--csv", "/dev/null/decisions.csv"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_option_is_named(options: tuple[str, ...], documents: Documents, refused: Run) -> None:
    line = refused(documents, *options)
    named = options[1] if options[0] == "--csv" else options[0]
    assert line.startswith(f"card-solve: {named}")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("1,fast,0,1\n1,slow,1,1", "line 2: column uplink_mbps is '0'"),
        ("1,fast,-2,1\n1,slow,1,1", "line 2: column uplink_mbps is '-2'"),
        ("1,fast,nan,1\n1,slow,1,1", "line 2: column uplink_mbps is 'nan'"),
        ("1,fast,1,1\n1,slow,1,5e9", "line 3: column downlink_mbps is '5e9'"),
        ("1,fast,1,1", "round 1 of device slow is missing"),
    ],
)
def test_a_trace_with_a_wrong_rate_or_a_hole_is_refused_by_line(
    rows: str, named: str, documents: Documents, refused: Run, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"round,device,uplink_mbps,downlink_mbps\n{rows}\n")
    assert f"trace.csv: {named}" in refused(documents, "--channel", str(trace))
