"""What a run refuses before anything long begins, and how it stops."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import run as run_module
from profiler.hardware.gpu import GpuDevice
from profiler.hardware.jetson import find_jetson
from profiler.load import running
from profiler.partial import Partial
from profiler.plan import Plan, make_plan
from profiler.power.sweep import choose_clocks
from profiler.profile import BadInput, Clocks, Hardware, Link, Profile, Timing
from profiler.progress import Reporter
from profiler.run import RunRequest, run
from profiler.show import show
from profiler.store import load, save
from profiler.under_load import conditions as under_load
from profiler.workload.model import WorkloadSpec
from tests.rigs import sysfs
from tests.rigs.time import VirtualTime
from tests.synthetic import make_profile

ROOT = Path(__file__).resolve().parents[1]
TINY = WorkloadSpec("tiny-llama-test")

# ----------------------------------------------------------------------------------------- a profile that is there already

LINK = Link(provenance="measured", uplink_mbps=7.0, downlink_mbps=9.0, round_trip_s=0.01)


def graph_of_box(output: Path) -> Profile:
    run(
        RunRequest(
            "emulated:rtx-4060ti", WorkloadSpec("tiny-llama-test", 1, 16), measure=("graph",), output=output, name="box"
        )
    )
    return load(output)


def test_a_link_outlives_the_profile_that_it_was_measured_into_and_what_does_not_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "box.json"
    save(make_profile("box", link=LINK), output)
    assert graph_of_box(output).link == LINK
    told = capsys.readouterr().err
    assert "note: the link of the profile that was there is kept: 7 Mbit/s up, 9 down" in told
    assert "held a profile of another workload, which is replaced: model test-model, layers 4" in told
    assert "held what was not measured now, and is gone with the old profile: timings, memory" in told
    assert graph_of_box(output).link == LINK
    told = capsys.readouterr().err
    assert "is kept" in told
    assert "workload" not in told
    assert "gone" not in told


def test_a_link_of_another_machine_is_not_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "box.json"
    save(make_profile("crate", link=LINK), output)
    assert graph_of_box(output).link is None
    assert "gone with the old profile: timings, memory, link" in capsys.readouterr().err


def test_what_is_no_profile_is_replaced_and_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "box.json"
    output.write_text("{}")
    graph_of_box(output)
    assert "note: what was there is replaced, and was no profile: " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ refused early


def test_a_command_as_load_is_refused_on_an_emulated_device_at_once() -> None:
    with pytest.raises(BadInput, match="--load-command: an emulated device"):
        run(RunRequest("emulated:orin-nano", TINY, load_command="true"))


@pytest.mark.parametrize(("device", "clocks"), [("emulated:orin-nano", "current"), ("cpu", "auto"), ("cpu", "current")])
def test_a_range_to_give_the_clock_back_to_is_refused_where_no_clock_is_set(device: str, clocks: str) -> None:
    with pytest.raises(BadInput, match=rf"^--restore-clocks 210,2100: .*--clocks {clocks} sets none"):
        make_plan(RunRequest(device, TINY, clocks=clocks, restore_hz=(210e6, 2100e6)))
    make_plan(RunRequest("emulated:orin-nano", TINY, clocks="3", restore_hz=(306e6, 625e6)))


@pytest.mark.parametrize("restore_hz", [(2e6, 3e6), (306e6, 1020e6), (210e6, 625e6)])
def test_a_range_to_give_the_clock_back_to_lies_inside_of_what_the_device_can_take(
    restore_hz: tuple[float, float],
) -> None:
    with pytest.raises(
        BadInput, match=r"^--restore-clocks \d+,\d+: expected a range inside of 306,624.75, the clocks of"
    ):
        make_plan(RunRequest("emulated:orin-nano", TINY, clocks="3", restore_hz=restore_hz))


@pytest.mark.parametrize("command", ["", "'", "/no/such/program", "true " + "x" * 3987, "true \udcff"])
def test_a_load_that_is_no_program_is_refused_before_the_device_is_looked_for(command: str) -> None:
    with pytest.raises(BadInput, match="--load-command"):
        run(RunRequest("nvml:99", TINY, measure=("power",), load_command=command))


@pytest.mark.parametrize(
    "name", ["file/profile.json", "file/below/profile.json", "x" * 300 + ".json", "circle/profile.json", "circle.json"]
)
def test_an_output_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    for circle in ("circle", "circle.json"):
        (tmp_path / circle).symlink_to(circle)
    with pytest.raises(BadInput, match=r"^--output "):
        make_plan(RunRequest("emulated:orin-nano", TINY, output=tmp_path / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["circle", "circle.json", "file"]


def test_a_profile_bears_the_name_that_was_asked_for_and_its_file_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(RunRequest("cpu", TINY, name="laptop-2"))
    assert (plan.name, plan.output) == ("laptop-2", Path("profiles") / "laptop-2.json")
    assert make_plan(RunRequest("cpu", TINY)).name == "cpu"


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "a\x1b[0m", "x" * 101])
def test_a_name_that_no_profile_could_bear_is_refused_before_measuring(name: str) -> None:
    with pytest.raises(BadInput, match="--name") as refused:
        make_plan(RunRequest("cpu", TINY, name=name))
    assert str(refused.value).isprintable()


def test_a_folder_without_the_right_to_write_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever tests may be root, who can write anywhere
    with pytest.raises(BadInput, match=r"--output .*cannot be written"):
        run(RunRequest("emulated:orin-nano", TINY, output=tmp_path / "new" / "profile.json"))


def test_a_step_that_does_not_fit_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    with pytest.raises(BadInput, match=r"--batch-size 1048576, --seq-len 512, .* needs [0-9,.]+ GiB, cpu has"):
        run(
            RunRequest(
                "cpu", WorkloadSpec("tiny-llama-test", batch_size=2**20, seq_len=512), output=tmp_path / "profile.json"
            )
        )
    assert not (tmp_path / "profile.json").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_memory_that_runs_out_names_the_options_to_lower(error: Exception) -> None:
    from profiler.workload.model import WorkloadSpec

    spec = WorkloadSpec("m", 8, 64)
    says = "--batch-size 8, --seq-len 64, --model m: expected a smaller one"
    with pytest.raises(BadInput, match=says), run_module._too_large(spec):
        raise error
    with pytest.raises(RuntimeError, match="another"), run_module._too_large(spec):
        raise RuntimeError("another")


# ------------------------------------------------------------------------------------------------------------ models


@pytest.fixture
def broken(tmp_path: Path) -> Any:
    """A function that makes a small model's directory with its configuration changed."""
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**changes: Any) -> Path:
        folder = tmp_path / "model"
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return make


def build(model: Path, device: str = "meta") -> Any:
    from profiler.workload.model import WorkloadSpec, build

    return build(WorkloadSpec(str(model), 2, 8), device)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 5}, {"hidden_size": -32}, {"vocab_size": "many"}])
def test_a_configuration_that_makes_no_model_is_bad_input(broken: Any, changes: dict[str, Any]) -> None:
    folder = broken(**changes)
    with pytest.raises(BadInput, match=f"^--model {folder}: "):
        build(folder)


def test_weights_cut_short_are_bad_input(broken: Any) -> None:
    folder = broken()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(BadInput, match=f"^--model {folder}: "):
        build(folder, "cpu")


def test_an_architecture_without_a_language_model_head_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    from transformers import ResNetConfig

    ResNetConfig().save_pretrained(tmp_path / "resnet")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "resnet" / "model.safetensors")  # never read
    with pytest.raises(BadInput, match=f"^--model {tmp_path / 'resnet'}: .*expected a decoder-only or encoder-decoder"):
        build(tmp_path / "resnet")


def test_a_t5_that_does_not_say_where_its_decoder_starts_is_cut_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    from transformers import T5Config, T5ForConditionalGeneration

    from profiler.workload.cuts import SplitModel

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    path = tmp_path / "t5" / "config.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "decoder_start_token_id"})
    )
    assert SplitModel(build(tmp_path / "t5")).layers == 4


# -------------------------------------------------------------------------------------------------------------- shown


def shown(profile: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    show(profile, Console(file=out, width=200))
    return out.getvalue()


@pytest.mark.parametrize(("provenance", "mark"), [("measured", "[measured]"), ("emulated", "[EMULATED]")])
def test_the_first_line_says_where_the_machine_is_from(provenance: Any, mark: str) -> None:
    profile = make_profile("jetson")
    hardware = profile.hardware.model_copy(update={"provenance": provenance})
    assert shown(profile.model_copy(update={"hardware": hardware})).splitlines()[0].endswith(mark)


def test_words_in_a_profile_are_neither_markup_nor_commands_to_the_terminal() -> None:
    profile = make_profile("jetson", provenance="measured")
    hardware = profile.hardware.model_copy(update={"description": "a [/red] board\x1b[2J", "provenance": "measured"})
    text = shown(profile.model_copy(update={"hardware": hardware, "warnings": ["[/bold] \x1b]0;title\x07"]}))
    assert "a [/red] board?[2J [measured]" in text
    assert "note: [/bold] ?]0;title?" in text
    assert "\x1b" not in text


# ------------------------------------------------------------------------------------- the clock at which a GPU trains


def timed(frequency_hz: float, requested_hz: float | None) -> Timing:
    return Timing(provenance="measured", frequency_hz=frequency_hz, requested_hz=requested_hz, segments=[])


@pytest.mark.parametrize(
    ("timings", "trains_at_hz"),
    [
        ([timed(3e8, 3e8), timed(1.29e9, 1.3e9)], 1.29e9),  # held at each in turn: the highest that ran
        ([timed(1.1e9, None)], 1.1e9),  # nothing was held
        ([], 3.06e8),
    ],
)
def test_a_gpu_trains_at_the_clock_of_its_load_and_not_at_the_one_it_rests_at(
    timings: list[Timing], trains_at_hz: float
) -> None:
    at_rest = Clocks(provenance="measured", min_hz=3.06e8, max_hz=1.3e9, operating_hz=3.06e8)
    hardware = Hardware(provenance="measured", kind="cuda", description="a board", clocks=at_rest)
    clocks = run_module._trained_at(hardware, timings, []).clocks
    assert clocks is not None
    assert clocks.operating_hz == trains_at_hz


# ----------------------------------------------------------------------------------------- conditions under the load


@pytest.fixture
def orin(tmp_path: Path) -> tuple[Path, VirtualTime]:
    """An Orin NX whose memory and CPU clocks follow the load, and the virtual clock that it lives by."""
    tree = tmp_path / "tree"
    sysfs.build(tree, "orin-nx-jp6")
    rig = sysfs.Live(tree)

    def advance(now_s: float, busy: bool) -> None:
        rig.advance(now_s, busy)
        (tree / "sys/kernel/debug/bpmp/debug/clk/emc/rate").write_text("3199000000" if busy else "204000000")
        for policy in (tree / "sys/devices/system/cpu/cpufreq").glob("policy*"):
            (policy / "scaling_cur_freq").write_text("2201600" if busy else "729600")

    return tree, VirtualTime(advance)


def profiled(tree: Path, clock: VirtualTime, monkeypatch: pytest.MonkeyPatch, output: Path) -> Profile:
    """A run of one point on that board, under a program that loads it."""
    from rich.console import Console

    @contextlib.contextmanager
    def program(command: str) -> Iterator[Callable[[], None]]:
        clock.background = True
        try:
            yield lambda: None
        finally:
            clock.background = False

    monkeypatch.setattr(run_module, "running", program)
    board = find_jetson(tree, time=clock)
    assert board is not None
    request = RunRequest("orin-nx", TINY, load_command="true")
    plan = Plan(request, GpuDevice(board, None), "device", ("power",), choose_clocks("current", ()), output)
    with Reporter(Console(file=io.StringIO())) as say:
        return run_module._measured(plan, say)


def test_clocks_of_memory_and_cpu_are_those_under_the_load_and_not_those_at_rest_after_it(
    orin: tuple[Path, VirtualTime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    tree, clock = orin
    told = profiled(tree, clock, monkeypatch, tmp_path / "orin.json").hardware.conditions
    assert told["memory clock"] == "3199 MHz under load"
    assert told["CPU clock of cores 0 1 2 3"] == "2201.6 MHz (729.6-1984, schedutil) under load"
    assert told["fan"] == "64 of 255, 1786 rpm under load"
    assert re.fullmatch(r"\d\d\.\d to \d\d\.\d C under load", told["temperature gpu-thermal"])
    assert told["GPU governor"] == "nvhost_podgov"  # set, and not by the load
    assert find_jetson(tree).conditions()["memory clock"] == "204 MHz"  # by now


def test_conditions_seen_before_a_run_was_interrupted_are_told_by_the_one_that_goes_on(
    orin: tuple[Path, VirtualTime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    tree, clock = orin
    output = tmp_path / "orin.json"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(run_module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            profiled(tree, clock, monkeypatch, output)
    told = profiled(tree, clock, monkeypatch, output).hardware.conditions
    assert told["memory clock"] == "3199 MHz under load"


def test_a_load_that_ends_early_leaves_what_was_measured_before_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    def ended(self: run_module._Measurement) -> None:
        self.partial.put("power", [])
        with running("false") as alive:
            while True:
                alive()

    monkeypatch.setattr(run_module._Measurement, "profile", ended)
    plan = make_plan(RunRequest("emulated:orin-nano", TINY, output=tmp_path / "p.json"))
    told = io.StringIO()
    with pytest.raises(BadInput, match="ended with 1"), Reporter(Console(file=told, width=1000)) as say:
        run_module._measured(plan, say)
    assert "stopped: 1 results are kept in " in told.getvalue()


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("proc/sys/kernel/osrelease", "5.15.185-tegra\n", "kernel"),
        ("etc/nv_tegra_release", "# R36 (release), REVISION: 5.0, GCID: 1\n", "L4T"),
    ],
)
def test_a_run_does_not_go_on_under_another_version_of_the_boards_software(
    orin: tuple[Path, VirtualTime], tmp_path: Path, file: str, text: str, version: str
) -> None:
    def record() -> Partial:
        device = GpuDevice(find_jetson(orin[0], time=orin[1]), None)
        choice = choose_clocks("current", ())
        plan = Plan(RunRequest("orin-nx", TINY), device, "device", ("power",), choice, tmp_path / "orin.json")
        return Partial(plan.output, plan.key())

    record().put("power", [])
    assert len(record()) == 1
    (orin[0] / file).write_text(text)
    assert len(record()) == 0
    assert f"with other settings (versions: {version}); starting again" in str(record().ignored)


def test_conditions_are_looked_at_while_layers_are_timed_too(orin: tuple[Path, VirtualTime], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    from rich.console import Console

    tree, clock = orin
    device = GpuDevice(find_jetson(tree, time=clock), None)
    device.torch_device = "cpu"  # where the layers run is all the same to the board's files
    clock.background = True
    spec = WorkloadSpec("tiny-llama-test", 1, 8)
    plan = Plan(
        RunRequest("orin-nx", spec), device, "device", ("layers",), choose_clocks("current", ()), tmp_path / "p"
    )
    with Reporter(Console(file=io.StringIO())) as say:
        entry = run_module._Measurement(plan, Partial(tmp_path / "p", {}), say)._time(None)
    assert entry["conditions"]["memory clock"] == ["3199 MHz"]


def test_what_moved_under_the_load_is_told_with_its_smallest_and_largest() -> None:
    first = {"memory clock": ["2133 MHz"], "fan": ["64 of 255, 980 rpm", "128 of 255, 1786 rpm"], "state": ["P2"]}
    then = {"memory clock": ["204 MHz", "3199 MHz"], "fan": ["90 of 255"], "state": ["P0", "P2"]}
    assert under_load([first, {}, then]) == {
        "memory clock": "204 to 3199 MHz under load",
        "fan": "90 of 255 under load",
        "state": "P0 to 2 under load",
    }


# ------------------------------------------------------------------------------------------------------------ stopped


def stopped_by(body: str) -> str:
    """What a process prints in which the commands' signal handlers are in place while ``body`` runs."""
    program = (
        "import os, signal, sys, time, cli\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        f"cli._catch_signals()\ntry:\n    {body}\n    time.sleep(0.5)\n    print('went on')\n"
        "except KeyboardInterrupt:\n    print('stopped')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert process.stderr == ""
    return process.stdout.strip()


def test_a_job_that_a_script_put_in_the_background_stops_at_sigint_too() -> None:
    assert stopped_by("os.kill(os.getpid(), signal.SIGINT)") == "stopped"


def test_nohup_keeps_its_promise() -> None:
    assert stopped_by("os.kill(os.getpid(), signal.SIGHUP)") == "went on"


def test_a_stop_that_arrives_in_a_destructor_is_not_lost() -> None:
    dying = "type('Dying', (), {'__del__': lambda self: os.kill(os.getpid(), signal.SIGTERM)})()"
    assert stopped_by(dying) == "stopped"


def test_a_stop_that_a_library_swallows_is_asked_for_again() -> None:
    swallowing = "\n    try: os.kill(os.getpid(), signal.SIGTERM)\n    except BaseException: pass\n    time.sleep(5)"
    assert stopped_by(swallowing) == "stopped"


def test_a_stop_that_is_on_its_way_is_left_to_give_everything_back() -> None:
    cleaning = "\n    try: os.kill(os.getpid(), signal.SIGTERM)\n    finally: time.sleep(1.5); print('given back')"
    assert stopped_by(cleaning) == "given back\nstopped"


@pytest.mark.parametrize("moment", ["atexit.register(stop)", "atexit.register(lambda: D())"])
def test_a_second_stop_changes_neither_the_message_nor_the_exit_code(moment: str) -> None:
    program = (
        "import atexit, os, signal, sys, time, cli\n"
        "def stop(*_, **__):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.05)\n"
        "class D:\n    __del__ = stop\n"
        f"{moment}\nsys.exit(cli._main(stop, 'card-profile'))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (130, "card-profile: stopped\n")


def test_an_error_that_a_library_made_of_the_stop_counts_as_the_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cli

    def app(**_: Any) -> None:
        monkeypatch.setattr(cli, "_stopping", True)
        raise ImportError("numpy was interrupted")

    for name in ("_catch_signals", "_ignore_signals"):
        monkeypatch.setattr(cli, name, lambda: None)
    assert cli._main(app, "card-profile") == 130  # type: ignore[arg-type]
    assert capsys.readouterr().err == "card-profile: stopped\n"


def test_a_file_that_this_user_may_not_read_is_a_missing_right_and_no_fault_of_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import cli

    assert cli._failed("card-profile", PermissionError(13, "Permission denied", "/sys/class/hwmon/hwmon1")) == 3
    assert capsys.readouterr().err.startswith("card-profile: /sys/class/hwmon/hwmon1: permission denied; ")


def test_no_librarys_progress_bar_is_in_our_output() -> None:
    pytest.importorskip("torch", reason="the [profile] extra is not installed")
    program = (
        "from profiler.workload.pretrained import libraries\nlibraries()\n"
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='Converting'): pass\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert process.stdout + process.stderr == ""
