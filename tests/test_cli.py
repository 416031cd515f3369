"""The commands as a person types them: in processes of their own, with their exit codes, messages and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiler import __version__, store
from profiler.profile import Profile
from tests.synthetic import make_profile

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
PROFILE, SOLVE = "from cli import profile_main; profile_main()", "from cli import solve_main; solve_main()"
TRAIN = "from cli import train_main; train_main()"


def start(program: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=ENVIRONMENT | environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call(program: str, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    process = start(program, *arguments, cwd=cwd, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def last_line(err: str) -> str:
    """The error: one line, after whatever progress there was."""
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    assert sum(line.startswith(("card-profile: ", "card-solve: ")) for line in lines) == 1, err
    return lines[-1]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three small layers as a local directory with safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "small-llama"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def emulated_fleet(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job: an emulated server and an emulated Jetson profiled by the command itself."""
    place = tmp_path_factory.mktemp("fleet")
    for device in ("rtx-4060ti", "orin-nano"):
        code, out, err = call(
            PROFILE, "run", "--device", f"emulated:{device}", "--model", str(small_model), "--batch-size", "2",
            "--seq-len", "16", "--clocks", "5", cwd=place,
        )  # fmt: skip
        assert code == 0, err
        assert f"wrote profiles/emulated-{device}.json" in out
    return place


# ------------------------------------------------------------------------------------------------------ bad input


def test_help_names_every_command_and_teaches_with_an_example(tmp_path: Path) -> None:
    code, out, err = call(PROFILE, "--help", cwd=tmp_path)
    assert code == 0
    assert err == ""
    for command in ("run", "fit-power", "show", "devices", "schema"):
        assert command in out
    assert "Example" in call(PROFILE, "run", "--help", cwd=tmp_path)[1]
    assert "Example" in call(SOLVE, "--help", cwd=tmp_path)[1]


@pytest.mark.parametrize(("program", "name"), [(PROFILE, "card-profile"), (SOLVE, "card-solve"), (TRAIN, "card-train")])
def test_every_program_tells_its_version(program: str, name: str, tmp_path: Path) -> None:
    assert call(program, "--version", cwd=tmp_path) == (0, f"{name} {__version__}\n", "")


def test_help_and_solving_load_nothing_heavy(tmp_path: Path) -> None:
    watch = "import sys; sys.argv[0] = 'x'\ntry:\n    {run}\nexcept SystemExit: pass\n"
    watch += (
        "print('LOADED', [m for m in ('torch', 'transformers', 'scipy', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    for program, arguments in (
        (PROFILE, ["run", "--help"]),
        (SOLVE, ["--help"]),
        (SOLVE, ["--profiles", str(ROOT / "profiles" / "letter"), "--json"]),
    ):
        _, out, _ = call(watch.format(run=program.replace("; ", "\n    ")), *arguments, cwd=tmp_path)
        assert out.strip().splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize(
    ("program", "arguments", "code", "says"),
    [
        (PROFILE, ["run"], 2, "--device"),
        (PROFILE, ["rnu"], 2, "rnu"),
        (PROFILE, ["run", "--device", "orin-agz"], 2, "orin-agx"),
        (PROFILE, ["run", "--device", "orin-agx"], 3, "emulated:orin-agx"),
        (PROFILE, ["run", "--device", "nvml:0"], 3, "nvml:0"),
        (PROFILE, ["run", "--device", "cpu", "--measure", "wattage"], 2, "--measure wattage"),
        (PROFILE, ["run", "--device", "cpu", "--role", "boss"], 2, "--role boss"),
        (PROFILE, ["run", "--device", "cpu", "--dtype", "int3"], 2, "--dtype int3"),
        (PROFILE, ["run", "--device", "cpu", "--batch-size", "0"], 2, "--batch-size 0"),
        (PROFILE, ["run", "--device", "cpu", "--batch-size", "x"], 2, "--batch-size"),
        (PROFILE, ["run", "--device", "cpu", "--output", "/"], 2, "--output /"),
        (PROFILE, ["run", "--device", "emulated:orin-agx", "--clocks", "fast"], 2, "--clocks fast"),
        (PROFILE, ["run", "--device", "emulated:orin-agx", "--measure", "memory"], 2, "--measure memory"),
        (PROFILE, ["run", "--device", "cpu", "--model", "no/such-model"], 2, "no/such-model"),
        (PROFILE, ["run", "--device", "cpu", "--model", "./nowhere"], 2, "./nowhere"),
        (PROFILE, ["fit-power"], 2, "profiles"),
        (PROFILE, ["fit-power", "nowhere.csv"], 2, "nowhere.csv"),
        (PROFILE, ["show", "nowhere.json"], 2, "nowhere.json"),
        (SOLVE, ["--profiles", "nowhere"], 2, "nowhere"),
        (SOLVE, ["--profiles", str(ROOT / "profiles" / "letter"), "--w", "1.5"], 2, "--w 1.5"),
        (SOLVE, ["--profiles", str(ROOT / "profiles" / "letter"), "--method", "magic"], 2, "--method magic"),
        (SOLVE, ["--profiles", str(ROOT / "profiles" / "letter"), "--require-measured"], 2, "--require-measured"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_the_right_exit_code(
    program: str, arguments: list[str], code: int, says: str, tmp_path: Path
) -> None:
    got, out, err = call(program, *arguments, cwd=tmp_path)
    assert got == code, err
    assert says in last_line(err)
    assert out == ""
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_a_terminal_that_is_not_utf_8_gets_all_but_the_signs_it_lacks(encoding: str, tmp_path: Path) -> None:
    store.save(make_profile("server", "server"), tmp_path / "server.json")
    (tmp_path / "sweep.csv").write_text(
        "device,workload,frequency_mhz,power_w\n"
        + "".join(f"d,\u03be,{mhz},{mhz / 50}\n" for mhz in range(300, 900, 100)),
        encoding="utf-8",
    )
    for program, arguments in (
        (PROFILE, ["devices"]),
        (PROFILE, ["show", "server.json"]),
        (PROFILE, ["fit-power", "sweep.csv"]),
        (SOLVE, ["regret", "--profiles", str(ROOT / "profiles" / "letter")]),
    ):
        code, out, err = call(program, *arguments, cwd=tmp_path, PYTHONIOENCODING=encoding, COLUMNS="60")
        assert (code, err) == (0, ""), arguments
        if encoding != "latin-1" and arguments != ["devices"]:
            assert "?" in out, arguments


def test_names_out_of_files_are_words_and_neither_markup_nor_control_codes(tmp_path: Path) -> None:
    rows = "".join(f"{d},[/red]\x1b[2J,{mhz},{mhz / 50}\n" for d in "abcde" for mhz in range(300, 900, 100))
    (tmp_path / "many.csv").write_text("device,workload,frequency_mhz,power_w\n" + rows)
    (tmp_path / "one.csv").write_text("device,workload,frequency_mhz,power_w\n" + rows[: len(rows) // 5])
    for name in ("many.csv", "one.csv"):
        code, out, err = call(PROFILE, "fit-power", name, cwd=tmp_path)
        assert (code, err) == (0, "")
        assert "[/red]?[2J" in out.replace("\n", "")
        assert "\x1b" not in out
    code, out, err = call(SOLVE, "--profiles", "no\x1b[2Jfolder", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert "no?[2Jfolder" in err


LETTER = ["--profiles", str(ROOT / "profiles" / "letter")]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (SOLVE, LETTER),
        (SOLVE, [*LETTER, "--json"]),
        (SOLVE, ["graph-schema"]),
        (PROFILE, ["fit-power", "sweep.csv"]),
        (PROFILE, ["schema"]),
        (TRAIN, ["local", "--help"]),
    ],
)
def test_a_reader_that_has_gone_is_no_failure(program: str, arguments: list[str], tmp_path: Path) -> None:
    rows = "".join(f"{mhz},{mhz / 50}\n" for mhz in range(300, 900, 100))
    (tmp_path / "sweep.csv").write_text("frequency_mhz,power_w\n" + rows)
    process = start(program, *arguments, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == 0


def test_work_goes_on_when_nobody_reads_its_messages(tmp_path: Path) -> None:
    process = start(SOLVE, *LETTER, "--csv", "decisions.csv", cwd=tmp_path)
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    assert "Why cut" in process.stdout.read()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "decisions.csv").exists()


def shell(line: str, cwd: Path, program: str = SOLVE) -> subprocess.CompletedProcess[str]:
    """``line`` run by a shell, in which "$@" is that program."""
    command = ["sh", "-c", line, "sh", sys.executable, "-c", program]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def test_closed_streams_are_no_failure_and_nothing_else_takes_their_place(tmp_path: Path) -> None:
    letter = " ".join(LETTER)
    without_output = shell(f'"$@" {letter} --csv a.csv >&-', tmp_path)
    assert (without_output.returncode, without_output.stderr) == (0, "wrote a.csv\n")
    without_messages = shell(f'"$@" {letter} --json --csv b.csv 2>&-', tmp_path)
    assert without_messages.returncode == 0
    assert json.loads(without_messages.stdout)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a disk without room")
@pytest.mark.parametrize("arguments", [" ".join(LETTER), "--version"], ids=["long", "short"])
def test_a_full_disk_under_the_results_is_told_in_one_line(arguments: str, tmp_path: Path) -> None:
    ended = shell(f'"$@" {arguments} >/dev/full', tmp_path)
    assert ended.returncode == 2
    assert last_line(ended.stderr).startswith("card-solve: standard output: cannot be written: No space left")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a disk without room")
@pytest.mark.parametrize(("program", "command"), [(PROFILE, "schema"), (SOLVE, "graph-schema")])
def test_a_full_disk_under_a_document_is_told_as_well(program: str, command: str, tmp_path: Path) -> None:
    ended = shell(f'"$@" {command} >/dev/full', tmp_path, program)
    assert ended.returncode == 2
    assert "standard output: cannot be written: No space left" in last_line(ended.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a disk without room")
def test_a_failure_keeps_its_exit_code_where_its_message_finds_no_room(tmp_path: Path) -> None:
    assert shell('"$@" --profiles nowhere 2>/dev/full', tmp_path).returncode == 2


def test_power_that_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "sysfs"
    empty.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", PROFILE, "run", "--device", "cpu", "--measure", "power"],
        cwd=tmp_path, env={**ENVIRONMENT, "CARD_SYSFS_ROOT": str(empty)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 3
    assert "--measure power" in last_line(process.stderr)


# ---------------------------------------------------------------------------------------------------- the main job


def test_every_figure_of_an_emulated_device_is_marked(emulated_fleet: Path) -> None:
    for path in (emulated_fleet / "profiles").glob("*.json"):
        marks = provenances(json.loads(path.read_text()))
        assert marks == {"emulated"}, path


def provenances(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["provenance"]} if "provenance" in node else set()
        return own.union(*(provenances(v) for v in node.values()))
    if isinstance(node, list):
        return set().union(*(provenances(v) for v in node))
    return set()


def test_a_profile_has_every_figure_for_every_segment_and_cut(emulated_fleet: Path) -> None:
    profile = store.load(emulated_fleet / "profiles" / "emulated-rtx-4060ti.json")
    assert [s.kind for s in profile.segments] == ["embedding", "layer", "layer", "layer", "head"]
    assert [c.cut for c in profile.sizes.cuts] == [1, 2]
    # batch 2 x 16 tokens x hidden 32 x 4 bytes
    assert {c.smashed_bytes for c in profile.sizes.cuts} == {4096}
    assert profile.memory is not None
    assert profile.power is not None
    assert len(profile.timings) == len(profile.power.points) == 5
    for flops in profile.flops.segments[1:4]:
        assert flops.forward_flops == flops.forward_torch_flops == flops.forward_formula_flops
        assert flops.forward_fvcore_flops == pytest.approx(flops.forward_flops, rel=0.01)
        assert flops.backward_flops == flops.backward_torch_flops == flops.backward_formula_flops
    assert profile.flops.disagreements == []
    assert profile.flops.uncounted_operators == {}


def test_raw_samples_lie_beside_the_profile_as_parquet(emulated_fleet: Path) -> None:
    import pandas

    profile = store.load(emulated_fleet / "profiles" / "emulated-rtx-4060ti.json")
    assert profile.samples_file is not None
    rows = pandas.read_parquet(emulated_fleet / "profiles" / profile.samples_file)
    assert set(rows["quantity"]) == {"timing", "power"}
    watts = rows[(rows["quantity"] == "power") & rows["requested_hz"].notna()]
    assert profile.power is not None
    assert set(watts["requested_hz"]) == {p.requested_hz for p in profile.power.points}


def test_profile_fit_and_solve_from_end_to_end(emulated_fleet: Path, tmp_path: Path) -> None:
    code, out, err = call(PROFILE, "fit-power", "--json", "--plot", str(tmp_path / "plots"), cwd=emulated_fleet)
    assert code == 0, err
    fits = {fit["device"]: fit for fit in json.loads(out)}
    assert set(fits) == {"emulated-rtx-4060ti", "emulated-orin-nano"}
    assert len(list((tmp_path / "plots").glob("*.png"))) == 2
    server = store.load(emulated_fleet / "profiles" / "emulated-rtx-4060ti.json")
    assert server.power_fit is not None
    assert server.power_fit.basis == "emulated"
    assert server.power_fit.xi_w_per_hz3 == fits[server.name]["xi_w_per_hz3"]

    code, out, err = call(SOLVE, "--profiles", "profiles", "--json", "--tables", str(tmp_path), cwd=emulated_fleet)
    assert code == 0, err
    (decision,) = json.loads(out)["decisions"]
    assert decision["device"] == "emulated-orin-nano"
    assert server.hardware.clocks is not None
    assert decision["frequency_hz"] in server.hardware.clocks.supported_hz
    rows = (tmp_path / "costs.csv").read_text().splitlines()
    assert len(rows) > 2 * len(server.hardware.clocks.supported_hz)
    code, out, _ = call(SOLVE, "--profiles", "profiles", cwd=emulated_fleet)
    assert code == 0
    assert "emulated" in out.lower()


def test_a_dry_run_leaves_the_profile_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    store.save(make_profile("server", "server", power_fit=None), path)
    before = path.read_bytes()
    code, out, _ = call(PROFILE, "fit-power", str(path), "--dry-run", "--json", cwd=tmp_path)
    assert code == 0
    assert path.read_bytes() == before
    (fit,) = json.loads(out)
    assert fit["selected"] in fit["models"]
    assert {"cubic", "affine-cubic", "power-law", "ridge", "auto", "selected"} <= set(fit["models"])
    # 20 W + 10 W/GHz^3 f^3 exactly
    assert fit["models"]["affine-cubic"]["parameters"]["p0_w"] == pytest.approx(20, rel=1e-4)
    assert fit["models"]["affine-cubic"]["parameters"]["xi_w_per_hz3"] == pytest.approx(1e-26, rel=1e-4)


def test_show_prints_a_profile_with_its_marks(tmp_path: Path) -> None:
    store.save(make_profile("jetson", provenance="emulated"), tmp_path / "jetson.json")
    code, out, _ = call(PROFILE, "show", "jetson.json", cwd=tmp_path)
    assert code == 0
    assert "EMULATED" in out
    assert "layer.4" in out


def test_devices_says_what_is_here_and_what_is_missing(tmp_path: Path) -> None:
    code, out, _ = call(PROFILE, "devices", cwd=tmp_path)
    assert code == 0
    assert "cpu" in out
    assert "emulated:orin-agx" in out or "orin-agx" in out


def test_the_schema_is_the_profiles(tmp_path: Path) -> None:
    code, out, _ = call(PROFILE, "schema", cwd=tmp_path)
    assert code == 0
    assert json.loads(out) == store.schema()


# ------------------------------------------------------------------------------------------- stopped and resumed


RUN = ["run", "--device", "emulated:orin-nano", "--batch-size", "2", "--seq-len", "16", "--clocks", "all", "--model"]


def interrupt_after(results: int, sign: signal.Signals, model: Path, cwd: Path) -> tuple[int, str]:
    """Start a run, send ``sign`` once it has kept ``results`` timings, and return its exit code and standard error."""
    record = cwd / "profiles" / ".emulated-orin-nano.json.partial"
    process = start(PROFILE, *RUN, str(model), cwd=cwd)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if record.exists() and len(json.loads(record.read_text())["stages"].get("timing", [])) >= results:
            break
        time.sleep(0.02)
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_keeps_what_it_measured_and_resumes(
    small_model: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    code, err = interrupt_after(2, sign, small_model, tmp_path)
    if sign is signal.SIGKILL:
        assert code == -sign
    else:
        assert code == 130
        assert "the same command goes on" in err
        assert "Traceback" not in err
    assert not (tmp_path / "profiles" / "emulated-orin-nano.json").exists()
    record = tmp_path / "profiles" / ".emulated-orin-nano.json.partial"
    kept = json.loads(record.read_text())["stages"]["timing"]
    assert len(kept) >= 2

    code, _, err = call(PROFILE, *RUN, str(small_model), cwd=tmp_path)
    assert code == 0, err
    assert "resuming" in err
    profile = store.load(tmp_path / "profiles" / "emulated-orin-nano.json")
    assert isinstance(profile, Profile)
    by_clock = {t.requested_hz: t for t in profile.timings}
    for entry in kept:  # what was measured before the stop was not measured again
        first = entry["timing"]["segments"][1]["forward"]["median_s"]
        assert by_clock[entry["requested_hz"]].segments[1].forward.median_s == first
    assert not record.exists()
