"""NVIDIA cards, met through the unmodified pynvml and a real shared library with NVML's ABI (tests/rigs/nvml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.hardware import nvml
from profiler.hardware.nvml import NvmlCard
from profiler.profile import MissingHardware
from tests.rigs.nvml import CardState, Rig, ada, compiler, set_clocks, volta, why_no_rig

if why_no_rig() is not None:
    pytest.skip(str(why_no_rig()), allow_module_level=True)
pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Builds rigs that ``pynvml`` in this process, and in those that it starts, meets until the test ends."""
    monkeypatch.setenv("CARD_STATE_DIR", str(tmp_path / "state"))
    open_rigs: list[Rig] = []

    def build(*cards: CardState, **options: Any) -> Rig:
        rig = Rig(tmp_path, cards or None, **options)
        rig.__enter__()
        open_rigs.append(rig)
        for name in ("RIG_NVML_STATE", "LD_LIBRARY_PATH"):
            monkeypatch.setenv(name, rig.environment[name])
        return rig

    yield build
    for rig in open_rigs:
        rig.__exit__(None, None, None)


def card_of(rig: Rig, place: int = 0) -> NvmlCard:
    return NvmlCard(rig.uuid(place), time=rig.time)


def run_steps(rig: Rig, seconds_s: float) -> None:
    end_s = rig.time.now_s() + seconds_s
    while rig.time.now_s() < end_s:
        rig.step()


# ---------------------------------------------------------------- the ABI


def test_the_unmodified_client_reads_every_structure_of_the_rig(machine: Callable[..., Rig]) -> None:
    rig = machine(ada(), volta(1))
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 2
    handle = pynvml.nvmlDeviceGetHandleByUUID(rig.uuid())
    assert pynvml.nvmlDeviceGetUUID(handle) == rig.uuid()
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == 16380 << 20
    if hasattr(pynvml, "nvmlDeviceGetTemperatureV"):  # clients before 12.560 lack it
        assert pynvml.nvmlDeviceGetTemperatureV(handle, 0) == pynvml.nvmlDeviceGetTemperature(handle, 0)
    rig.card().processes[0] = 4321
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)] == [4321]
    energy, instant, unknown = pynvml.nvmlDeviceGetFieldValues(handle, [83, 186, 9999])
    assert energy.value.ullVal == pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert instant.nvmlReturn == 0
    assert 15_000 < instant.value.uiVal < 25_000
    assert unknown.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, 9001)
    assert (clocks[0], clocks[-1], len(clocks)) == (3105, 210, 194)
    assert pynvml.nvmlDeviceGetViolationStatus(handle, 0).violationTime == 0


def test_another_process_sees_what_this_one_locked(machine: Callable[..., Rig]) -> None:
    rig = machine()
    look = "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); "
    lock = [sys.executable, "-c", look + "n.nvmlDeviceSetGpuLockedClocks(h, 900, 900)"]
    subprocess.run(lock, env=rig.environment, check=True)
    assert rig.locked_mhz() == (900, 900)
    pynvml.nvmlInit()
    pynvml.nvmlDeviceResetGpuLockedClocks(pynvml.nvmlDeviceGetHandleByIndex(0))
    assert rig.locked_mhz() is None


def test_a_load_in_another_process_draws_watts_until_it_is_killed(machine: Callable[..., Rig]) -> None:
    rig = machine(wall_speed=20.0)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def becomes(wanted: Callable[[int, int], bool]) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if wanted(pynvml.nvmlDeviceGetClockInfo(handle, 0), pynvml.nvmlDeviceGetPowerUsage(handle)):
                return True
            time.sleep(0.02)
        return False

    assert becomes(lambda mhz, _: mhz == 210)
    load = subprocess.Popen(rig.load_command(), env=rig.environment)
    try:
        assert becomes(lambda mhz, milliwatts: mhz > 2000 and milliwatts > 150_000)
    finally:
        load.kill()
        load.wait()
    assert becomes(lambda mhz, milliwatts: mhz == 210 and milliwatts < 40_000)


# ---------------------------------------------------------------- finding cards


def test_cards_are_found_by_uuid_whatever_their_number(machine: Callable[..., Rig]) -> None:
    rig = machine(ada(), volta(1))
    found, wrong = nvml.cards(time=rig.time)
    assert {number: card.uuid for number, card in found.items()} == {0: rig.uuid(0), 1: rig.uuid(1)}
    assert wrong == {}
    assert found[0].board is not None
    assert found[0].board.name == "rtx-4060ti"
    assert nvml.by_index(1).uuid == nvml.by_uuid(rig.uuid(1).lower()).uuid == rig.uuid(1)
    assert nvml.by_index(1).key == f"nvml-{rig.uuid(1)}"
    assert nvml.why_no_nvml() is None
    with pytest.raises(MissingHardware, match="0 to 1"):
        nvml.by_index(2)
    with pytest.raises(MissingHardware, match="nvidia-smi -L"):
        nvml.by_uuid("GPU-ffffffff-0000-0000-0000-000000000000")


def test_a_jetson_that_nvml_lists_is_no_card(machine: Callable[..., Rig]) -> None:
    jetson = ada()
    jetson.name, jetson.jetson, jetson.architecture = b"Orin (nvgpu)", 1, 7
    rig = machine(jetson)
    assert nvml.cards() == ({}, {})
    assert "Jetson" in str(nvml.why_no_nvml())
    card = card_of(rig)
    assert card.integrated
    assert card.power is None
    assert card.clocks is None
    assert {"power", "clock", "clocks", "temperature"} <= set(card.absent.reasons)
    reading = card.read()
    assert (reading.power_w, reading.energy_j, reading.frequency_hz) == (None, None, None)


def test_a_mig_slice_says_that_it_has_no_watts_and_no_clock(machine: Callable[..., Rig]) -> None:
    whole, piece = ada(0), ada(1)
    whole.mig_mode = 1
    piece.uuid, piece.mig_slice = b"MIG-00000001-5f00-4a11-9c3d-0123456789ab", 1
    rig = machine(whole, piece)
    assert [card.uuid for card in nvml.cards()[0].values()] == [rig.uuid(0)]
    assert nvml.by_index(0).settings()["mig"] == "on"
    card = nvml.by_uuid(rig.uuid(1), time=rig.time)
    assert card.power is None
    assert card.clocks is None
    assert "MIG" in card.absent.reasons["power"]
    assert "MIG" in card.absent.reasons["clocks"]
    assert card.read().power_w is None


def test_without_a_driver_the_reason_names_the_way_out(machine: Callable[..., Rig]) -> None:
    rig = machine()
    rig.machine.no_driver = 1
    assert "modprobe nvidia" in str(nvml.why_no_nvml())
    assert nvml.cards() == ({}, {})
    with pytest.raises(MissingHardware, match="not loaded"):
        NvmlCard(rig.uuid())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pynvml.py": "raise ImportError"}, "nvidia-ml-py is not installed"),
        ({"pynvml/__init__.py": "def nvmlInit(): pass"}, "pip uninstall pynvml"),
    ],
)
def test_a_missing_or_foreign_pynvml_is_told_apart(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert expected in reason_in_a_fresh_process({"PYTHONPATH": f"{tmp_path}:{ROOT}"})


def test_a_library_that_is_not_nvidias_is_said_so(tmp_path: Path) -> None:
    source, target = tmp_path / "other.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text("int something_else(void) { return 0; }\n")
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    reason = reason_in_a_fresh_process({"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert "LD_LIBRARY_PATH" in reason


def test_no_library_at_all_is_said_so(tmp_path: Path) -> None:
    reason = reason_in_a_fresh_process({"PYTHONPATH": str(ROOT)})
    if reason == "None":
        pytest.skip("this machine has an NVIDIA driver")
    assert "libnvidia-ml.so.1 is not here" in reason or "modprobe" in reason


def reason_in_a_fresh_process(environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from profiler.hardware.nvml import why_no_nvml; print(why_no_nvml())"],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


# ---------------------------------------------------------------- watts and joules


def test_watts_and_joules_of_a_steady_load_agree_with_the_truth(machine: Callable[..., Rig]) -> None:
    rig = machine()
    card = card_of(rig)
    assert card.power is not None
    assert "186" in card.power.sensor
    assert "83" in card.power.sensor
    assert card.power.averaging_s <= 0.1
    pynvml.nvmlDeviceSetGpuLockedClocks(pynvml.nvmlDeviceGetHandleByUUID(rig.uuid()), 1500, 1500)
    run_steps(rig, 300)
    with rig.time.watching(card.read, 0.1) as readings:
        run_steps(rig, 30)
    first, last = readings[0], readings[-1]
    assert first.energy_j is not None
    assert last.energy_j is not None
    truth = rig.truth(1500e6).power_w
    by_counter = (last.energy_j - first.energy_j) / (last.time_s - first.time_s)
    by_watts = sum(r.power_w or 0 for r in readings) / len(readings)
    assert by_counter == pytest.approx(truth, rel=2e-3)
    assert by_watts == pytest.approx(truth, rel=3e-3)
    assert all(r.frequency_hz == 1500e6 for r in readings)
    assert last.temperature_c == pytest.approx(rig.truth(1500e6).temperature_c, abs=1)
    assert not any(r.capped or r.throttled for r in readings)


@pytest.mark.parametrize(
    ("changes", "field", "averaging_s"),
    [
        ({}, "186", 0.1),
        ({"no_instant": 1}, "185", 1.0),
        ({"no_instant": 1, "no_average": 1}, "averaged", 1.0),
        ({"no_instant": 1, "no_average": 1, "cc_minor": 0, "architecture": 7}, "of the moment", 0.1),  # GA100
        ({"no_instant": 1, "no_average": 1, "cc_major": 7, "architecture": 6}, "of the moment", 0.1),
    ],
)
def test_the_sensor_says_which_watts_are_in_use(
    machine: Callable[..., Rig], changes: dict[str, int], field: str, averaging_s: float
) -> None:
    described = ada()
    for name, value in changes.items():
        setattr(described, name, value)
    card = card_of(machine(described))
    assert card.power is not None
    assert field in card.power.sensor
    assert card.power.averaging_s == averaging_s
    watts = card.read().power_w
    assert watts is not None
    assert 15 < watts < 25


def test_an_unknown_architecture_is_taken_to_average(machine: Callable[..., Rig]) -> None:
    described = volta()
    rig = machine(described)
    rig.fail("nvmlDeviceGetArchitecture", 13)
    rig.fail("nvmlDeviceGetCudaComputeCapability", 13)
    card = card_of(rig)
    assert card.power is not None
    assert card.power.averaging_s == 1.0


def test_a_counter_of_zero_or_one_that_stands_still_is_not_trusted(machine: Callable[..., Rig]) -> None:
    zero = ada(0)
    zero.zero_energy = 1
    rig = machine(zero, ada(1))
    card = card_of(rig)
    assert "energy" in card.absent.reasons
    assert card.read().energy_j is None
    other = card_of(rig, 1)
    assert other.read().energy_j is not None
    rig.card(1).energy_period_s = rig.card(1).energy_due_s = 1e9
    with rig.time.watching(other.read, 0.1) as read:
        rig.time.wait(4.0)
    assert read[0].energy_j is not None
    assert read[-1].energy_j is None
    assert read[-1].power_w is not None


def test_each_field_is_checked_by_itself(machine: Callable[..., Rig]) -> None:
    rig = machine()
    rig.fail_field(186, 3)
    rig.fail_field(83, 13)
    card = card_of(rig)
    reading = card.read()
    assert card.power is not None
    assert "185" in card.power.sensor
    assert reading.power_w is not None
    assert reading.energy_j is not None  # by the older call
    rig.fail("nvmlDeviceGetTotalEnergyConsumption", 13)
    assert card_of(rig).read().energy_j is None


def test_a_passing_fault_costs_one_reading_and_a_lasting_one_is_not_asked_again(machine: Callable[..., Rig]) -> None:
    rig = machine()
    card = card_of(rig)
    rig.fail_field(186, pynvml.NVML_ERROR_NO_DATA)
    assert card.read().power_w is None
    rig.fail_field(186, 0)
    assert card.read().power_w is not None
    rig.fail("nvmlDeviceGetClockInfo", 999, times=1)
    rig.fail("nvmlDeviceGetClock", 999, times=1)
    assert card.read().frequency_hz is None
    assert card.read().frequency_hz == 210e6
    rig.fail("nvmlDeviceGetTemperatureV", 13, times=1)  # once is enough: the older call is taken from then on
    assert card.read().temperature_c is not None
    rig.fail("nvmlDeviceGetTemperature", 3, times=1)
    assert card.read().temperature_c is None


def test_what_answered_before_and_is_not_supported_for_a_moment_costs_one_reading(machine: Callable[..., Rig]) -> None:
    described = ada()
    described.cap_w = 120.0
    rig = machine(described)
    card = card_of(rig)
    run_steps(rig, 60)
    assert card.read().capped
    moment = (
        "nvmlDeviceGetClockInfo", "nvmlDeviceGetClock", "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature",
        "nvmlDeviceGetPowerManagementLimit", "nvmlDeviceGetTotalEnergyConsumption",
    )  # fmt: skip
    fields = (83, 186, 74, 75, 269, 270, 271)
    for function in moment:
        rig.fail(function, pynvml.NVML_ERROR_NOT_SUPPORTED, times=1)
    for number in fields:
        rig.fail_field(number, pynvml.NVML_ERROR_NOT_SUPPORTED)
    missed = card.read()
    assert (missed.frequency_hz, missed.power_w, missed.energy_j, missed.temperature_c) == (None, None, None, None)
    for number in fields:
        rig.fail_field(number, 0)
    run_steps(rig, 1)
    found = card.read()
    assert None not in (found.frequency_hz, found.power_w, found.energy_j, found.temperature_c)
    assert found.capped


def test_a_lost_gpu_is_an_error_that_says_what_to_do(machine: Callable[..., Rig]) -> None:
    rig = machine(ada(), ada(1))
    card = card_of(rig)
    rig.card().lost = 1
    with pytest.raises(MissingHardware, match=r"lost.*dmesg.*--gpu-reset"):
        card.read()
    with pytest.raises(MissingHardware, match="lost"):
        NvmlCard(rig.uuid())
    with pytest.raises(MissingHardware, match="lost"):
        nvml.by_index(0)
    usable, wrong = nvml.cards()
    assert [found.uuid for found in usable.values()] == [rig.uuid(1)]
    assert "nvml:0: the GPU is lost" in wrong[0]


@pytest.mark.parametrize("code", [15, 16])
def test_a_card_that_is_lost_while_it_is_opened_hides_no_other(machine: Callable[..., Rig], code: int) -> None:
    rig = machine(ada(), ada(1), ada(2))
    rig.fail("nvmlDeviceGetName", code, times=1)
    usable, wrong = nvml.cards()
    assert {number: card.uuid for number, card in usable.items()} == {1: rig.uuid(1), 2: rig.uuid(2)}
    assert list(wrong) == [0]
    assert "--gpu-reset" in wrong[0]


@pytest.mark.parametrize("variant", ["old", "ancient"])
def test_old_drivers_without_the_newer_symbols_are_read(machine: Callable[..., Rig], variant: str) -> None:
    described = volta() if variant == "ancient" else ada()
    rig = machine(described, variant=variant)
    card = card_of(rig)
    run_steps(rig, 3)
    reading = card.read()
    assert reading.power_w is not None
    assert reading.temperature_c is not None
    assert reading.frequency_hz is not None
    assert (reading.energy_j is None) == (variant == "ancient")
    assert card.power is not None
    assert "other_processes" not in card.conditions()


# ---------------------------------------------------------------- clocks, limits, what holds the clock down


def test_supported_clocks_are_those_of_the_highest_memory_clock(machine: Callable[..., Rig]) -> None:
    rig = machine()
    card = card_of(rig)
    assert card.supported_hz()[0] == 210e6
    assert card.supported_hz()[-1] == 3105e6
    assert len(card.supported_hz()) == 194
    assert rig.card().forbidden == 0


def test_a_card_before_volta_or_without_clocks_cannot_be_locked_and_says_why(machine: Callable[..., Rig]) -> None:
    pascal, bare = ada(0), ada(1)
    pascal.architecture, pascal.cc_major, pascal.cc_minor = 4, 6, 1
    rig = machine(pascal, bare)
    assert "Volta" in card_of(rig).absent.reasons["clocks"]
    rig.fail("nvmlDeviceGetSupportedMemoryClocks", 3)
    card = card_of(rig, 1)
    assert card.clocks is None
    assert card.supported_hz() == ()
    assert "clocks" in card.absent.reasons


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(("cause", "mark"), [("cap", "capped"), ("heat", "throttled"), ("brake", "throttled")])
def test_readings_are_marked_while_the_clock_is_held_down(
    machine: Callable[..., Rig], layout: int, cause: str, mark: str
) -> None:
    described = ada()
    described.counter_layout = layout
    if cause == "cap":
        described.cap_w = 120.0
    if cause == "heat":
        described.slowdown_c = 52.0
    rig = machine(described)
    card = card_of(rig)
    run_steps(rig, 120)
    rig.card().brake = int(cause == "brake")
    run_steps(rig, 1)
    with rig.time.watching(card.read, 0.1) as readings:
        run_steps(rig, 3)
    marked = [getattr(r, mark) for r in readings]
    others = [r.throttled if mark == "capped" else r.capped for r in readings]
    assert all(marked)
    assert not any(others)
    assert max(r.frequency_hz or 0 for r in readings) < 3000e6


@pytest.mark.parametrize("layout", [0, 1])
def test_what_happens_between_two_readings_is_seen_by_the_counters(machine: Callable[..., Rig], layout: int) -> None:
    described = ada()
    described.counter_layout = layout
    rig = machine(described)
    card = card_of(rig)
    run_steps(rig, 20)
    assert not card.read().throttled
    rig.card().brake = 1
    run_steps(rig, 0.3)
    rig.card().brake = 0
    run_steps(rig, 1)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(rig.uuid())
    assert not pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & 0x80
    assert card.read().throttled
    run_steps(rig, 1)
    assert not card.read().throttled


def test_without_counters_in_fields_the_older_call_is_asked(machine: Callable[..., Rig]) -> None:
    described = ada()
    described.cap_w = 120.0
    rig = machine(described)
    for number in (74, 75, 251, 252, 253, 269, 270, 271):
        rig.fail_field(number, 3)
    card = card_of(rig)
    card.read()
    run_steps(rig, 30)
    rig.card().cap_w = 500.0
    rig.time.wait(1.0)
    assert rig.card().cap_bins == 0
    assert card.read().capped


def test_limits_versions_and_conditions_are_told(machine: Callable[..., Rig]) -> None:
    rig = machine()
    rig.card().processes[0] = 4321
    card = card_of(rig)
    assert card.power_cap_w() == 200.0
    assert card.memory_bytes() == 16380 << 20
    assert card.software() == {"driver": "580.65.06", "nvml": "13.580.65.06", "cuda_driver": "13.0"}
    assert card.settings() == {"power limit": "200 W"}
    told = card.conditions()
    assert told["memory_clock"] == "9001 MHz"
    assert told["other_processes"] == "1"
    assert told["persistence_mode"] == "off"
    assert json.dumps(told)


def test_nothing_but_the_graphics_clock_is_ever_set(machine: Callable[..., Rig]) -> None:
    rig = machine()
    card = card_of(rig)
    if card.clocks is None:
        pytest.skip(str(card.absent.reasons.get("clocks")))
    rig.card().root_only = 0
    with card.clocks.held():
        card.clocks.lock(1500e6)
        assert rig.locked_mhz() == (1500, 1500)
        run_steps(rig, 1)
        assert card.current_hz() == 1500e6
    assert rig.locked_mhz() is None
    assert rig.card().forbidden == 0


def test_a_card_is_swept_as_a_device_and_its_clocks_come_back(machine: Callable[..., Rig]) -> None:
    from contextlib import nullcontext

    from profiler.hardware.gpu import GpuDevice
    from profiler.power.sweep import choose_clocks, run_sweep

    described = ada()
    described.cap_w, described.root_only = 150.0, 0
    rig = machine(described)
    device = GpuDevice(card_of(rig), None)
    assert device.clocks is not None
    choice = choose_clocks("600,1500,3105", device.clocks.supported_hz())
    with device.clocks.held():
        found = run_sweep(device, lambda: nullcontext(rig.step), choice, load_name="step").block
    assert rig.locked_mhz() is None
    assert [point.capped for point in found.points] == [False, False, True]
    for point in found.points[:2]:
        assert point.frequency_hz == point.requested_hz
        assert point.power_w == pytest.approx(rig.truth(point.frequency_hz).power_w, rel=0.01)
    assert found.points[2].power_w == pytest.approx(150.0, rel=0.02)
    assert found.points[2].frequency_hz < 2800e6


def test_an_approximate_lock_is_read_as_what_it_became(machine: Callable[..., Rig]) -> None:
    described = ada()
    described.approximate_mhz = 24.0
    rig = machine(described)
    card = card_of(rig)
    pynvml.nvmlDeviceSetGpuLockedClocks(pynvml.nvmlDeviceGetHandleByUUID(rig.uuid()), 1500, 1500)
    run_steps(rig, 1)
    measured = card.current_hz()
    assert measured is not None
    assert 1476e6 <= measured < 1500e6


# ---------------------------------------------------------------- the rig itself


def test_the_rig_follows_no_law_that_we_fit(machine: Callable[..., Rig]) -> None:
    import numpy as np

    rig = machine(ada())
    curve = rig.true_curve()
    f = np.array([t.frequency_hz for t in curve]) / 1e9
    watts = np.array([t.power_w for t in curve])
    steps = np.array([t.step_s for t in curve])
    for basis in (np.stack([f**3], 1), np.stack([np.ones_like(f), f**3], 1)):
        laws, *_ = np.linalg.lstsq(basis / watts[:, None], np.ones_like(f), rcond=None)
        assert np.median(abs(basis @ laws / watts - 1)) > 0.02
    line = np.stack([np.ones_like(f), 1 / f], 1)
    laws, *_ = np.linalg.lstsq(line / steps[:, None], np.ones_like(f), rcond=None)
    assert np.max(abs(line @ laws / steps - 1)) > 0.01


def test_a_capped_rig_settles_at_its_cap_and_a_hot_one_at_its_limit(machine: Callable[..., Rig]) -> None:
    capped, hot = ada(0), ada(1)
    capped.cap_w, hot.slowdown_c = 130.0, 60.0
    rig = machine(capped, hot)
    watts, clock = rig.settled(3105e6)
    assert watts == pytest.approx(130.0, rel=0.02)
    assert clock < 2700e6
    watts, _ = rig.settled(3105e6, 1)
    resistance = hot.fast_c_per_w + hot.slow_c_per_w
    assert hot.ambient_c + resistance * watts == pytest.approx(60.0, abs=1.5)


def test_clocks_can_be_coarse(machine: Callable[..., Rig]) -> None:
    described = ada()
    set_clocks(described, [300, 600, 900, 1200])
    described.boost_mhz, described.idle_mhz = 1200, 300
    assert card_of(machine(described)).supported_hz() == (300e6, 600e6, 900e6, 1200e6)
