"""The processor as a device, on trees that look like /sys and /proc of other machines."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from profiler.hardware import open_device
from profiler.hardware.cpu import CpuDevice, RaplMeter, find_rapl
from profiler.hardware.guard import GuardedClocks
from profiler.hardware.host import cgroup_limit_bytes
from profiler.profile import MissingHardware
from tests.hardware.clock_tree import sweep
from tests.rigs.time import VirtualTime

CPUINFO = """processor\t: 0
model name\t: Imagined 4-core
cpu MHz\t\t: 3100.500
physical id\t: 0
core id\t\t: 0

processor\t: 1
model name\t: Imagined 4-core
physical id\t: 0
core id\t\t: 0

processor\t: 2
model name\t: Imagined 4-core
physical id\t: 0
core id\t\t: 1
"""


def put(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def rapl(root: Path, zone: int = 0, energy_uj: int = 5_000_000, name: str | None = None) -> Path:
    folder = f"sys/class/powercap/intel-rapl:{zone}"
    put(
        root,
        {
            f"{folder}/name": name or f"package-{zone}",
            f"{folder}/energy_uj": energy_uj,
            f"{folder}/max_energy_range_uj": 262_143_328_850,
        },
    )
    return root / folder / "energy_uj"


@contextmanager
def counting(file: Path, watts: float, wrap_uj: float = 262_143_328_850) -> Iterator[None]:
    """A counter that grows as under this power. A reader may see it empty for a moment, as a real file may fail."""
    stop = threading.Event()
    start_s, start_uj = time.perf_counter(), float(file.read_text())

    def count() -> None:
        while not stop.wait(0.001):
            value = (start_uj + 1e6 * watts * (time.perf_counter() - start_s)) % wrap_uj
            fresh = file.with_suffix(".new")
            fresh.write_text(f"{value:.0f}\n")
            fresh.replace(file)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A virtual machine: no clock, no watts, no temperature."""
    put(
        tmp_path,
        {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Imagined virtual", "proc/meminfo": "MemTotal: 2048 kB"},
    )
    return tmp_path


def test_a_machine_without_sensors_says_so_in_plain_words(bare: Path) -> None:
    device = CpuDevice(bare)
    assert device.power is None
    assert device.clocks is None
    assert device.current_hz() is None
    assert set(device.absent.reasons) == {"clocks", "power", "temperature", "clock"}
    assert "virtual machine" in device.absent.reasons["power"]
    hardware = device.describe()
    assert hardware.clocks is None
    assert hardware.description == "Imagined virtual"
    assert hardware.memory_bytes == 2048 * 1024
    with device.monitor(0.01) as readings:
        device.wait(0.05)
    assert readings
    assert readings[0].power_w is None
    assert readings[0].frequency_hz is None


def test_the_root_is_taken_from_the_environment(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(bare))
    assert open_device("cpu").describe().description == "Imagined virtual"


def test_the_clock_of_cpufreq_wins_over_cpuinfo_and_brings_limits(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": CPUINFO})
    device = CpuDevice(tmp_path)
    assert device.current_hz() == 3_100_500_000
    clocks = device.describe().clocks
    assert clocks is not None
    assert clocks.min_hz == clocks.max_hz == clocks.operating_hz == 3_100_500_000
    folder = "sys/devices/system/cpu/cpu0/cpufreq"
    put(
        tmp_path,
        {
            f"{folder}/scaling_cur_freq": 2_000_000,
            f"{folder}/cpuinfo_min_freq": 800_000,
            f"{folder}/cpuinfo_max_freq": 4_000_000,
            f"{folder}/scaling_governor": "powersave",
        },
    )
    device = CpuDevice(tmp_path)
    hardware = device.describe()
    assert device.current_hz() == 2e9
    assert hardware.clocks is not None
    assert (hardware.clocks.min_hz, hardware.clocks.max_hz, hardware.clocks.operating_hz) == (8e8, 4e9, 2e9)
    assert hardware.conditions["governor"] == "powersave"
    assert hardware.conditions["physical cores"] == "2"
    assert hardware.conditions["threads"] == "3"


def test_a_counter_of_zero_joules_is_refused(tmp_path: Path) -> None:
    rapl(tmp_path, energy_uj=0)
    meter, why = find_rapl(tmp_path, probe_s=0.02)
    assert meter is None
    assert "0.00 J" in why


def test_a_counter_that_stands_still_is_refused(tmp_path: Path) -> None:
    rapl(tmp_path, energy_uj=123_000_000)
    assert find_rapl(tmp_path, probe_s=0.02)[0] is None


def test_other_zones_are_no_package(tmp_path: Path) -> None:
    rapl(tmp_path, name="psys")
    assert "no RAPL energy counter" in find_rapl(tmp_path, probe_s=0.02)[1]


def test_an_unreadable_counter_names_the_command_that_opens_it(tmp_path: Path) -> None:
    file = rapl(tmp_path)
    file.unlink()
    file.mkdir()  # a read fails for root too
    meter, why = find_rapl(tmp_path, probe_s=0.02)
    assert meter is None
    assert "sudo chmod a+r" in why


def test_watts_are_the_counters_slope_summed_over_packages(tmp_path: Path) -> None:
    first, second = rapl(tmp_path, 0), rapl(tmp_path, 1, energy_uj=262_143_328_850 - 300_000)  # the second wraps
    with counting(first, 20.0), counting(second, 22.0):
        device = CpuDevice(tmp_path)
        assert device.power is not None
        assert device.power.scope == "2 CPU packages"
        begin = time.perf_counter()
        with device.monitor(0.05) as readings:
            device.wait(0.6)
        spent = time.perf_counter() - begin
    watts = [r.power_w for r in readings if r.power_w is not None]
    assert len(watts) >= 4
    energy = readings[-1].energy_j
    assert energy is not None
    assert energy == pytest.approx(42.0 * spent, rel=0.3)
    assert all(0 <= w < 500 for w in watts)


def test_a_counter_that_wraps_loses_nothing(tmp_path: Path) -> None:
    file = rapl(tmp_path, energy_uj=262_143_328_000)
    with counting(file, 100.0):
        meter, _ = find_rapl(tmp_path)
    assert meter is not None
    file.write_text("262143328000")
    meter = RaplMeter(meter.zones)
    file.write_text("150")
    assert meter.energy_j() == pytest.approx((262_143_328_850 - 262_143_328_000 + 150) / 1e6)


@pytest.mark.parametrize(("before_uj", "after_uj"), [(100_000_000_000, 1_000_000), (50_000_000, 46_000_000)])
def test_a_counter_that_falls_anywhere_else_is_no_wrap_and_is_seen_to_fall(
    tmp_path: Path, before_uj: int, after_uj: int
) -> None:
    file = rapl(tmp_path, energy_uj=before_uj)
    with counting(file, 100.0):
        meter, _ = find_rapl(tmp_path)
    assert meter is not None
    file.write_text(str(before_uj))
    meter = RaplMeter(meter.zones)
    file.write_text(str(after_uj))
    assert meter.energy_j() == pytest.approx((after_uj - before_uj) / 1e6)


def test_a_counter_that_shows_no_number_is_not_told_to_be_opened_to_all(tmp_path: Path) -> None:
    rapl(tmp_path).write_text("n/a")
    meter, said = find_rapl(tmp_path)
    assert meter is None
    assert said.endswith("energy_uj shows no number")


def test_one_package_that_two_interfaces_count_is_counted_once(tmp_path: Path) -> None:
    file = rapl(tmp_path)
    again = "sys/class/powercap/intel-rapl-mmio:0"
    put(tmp_path, {f"{again}/name": "package-0", f"{again}/energy_uj": 1, f"{again}/max_energy_range_uj": 100})
    with counting(file, 30.0):
        meter, scope = find_rapl(tmp_path)
    assert meter is not None
    assert [zone.file for zone in meter.zones] == [file]
    assert scope == "CPU package"
    assert meter.sensor == "RAPL powercap"


def test_the_memory_mapped_interface_serves_where_it_is_the_only_one(tmp_path: Path) -> None:
    file = rapl(tmp_path)
    mapped = file.parent.rename(file.parent.with_name("intel-rapl-mmio:0")) / "energy_uj"
    with counting(mapped, 30.0):
        assert find_rapl(tmp_path)[0] is not None


def test_sockets_of_amd_are_read_from_hwmon_where_powercap_has_none(tmp_path: Path) -> None:
    hwmon = "sys/class/hwmon/hwmon3"
    put(tmp_path, {f"{hwmon}/name": "amd_energy", f"{hwmon}/energy1_label": "Ecore000", f"{hwmon}/energy1_input": 7})
    put(tmp_path, {f"{hwmon}/energy2_label": "Esocket0", f"{hwmon}/energy2_input": 10**15})
    with counting(tmp_path / hwmon / "energy2_input", 100.0, wrap_uj=2**63):
        meter, scope = find_rapl(tmp_path)
    assert meter is not None
    assert [zone.name for zone in meter.zones] == ["Esocket0"]
    assert scope == "CPU package"
    assert meter.sensor == "amd_energy hwmon"


def test_the_platform_counter_is_named_and_not_taken_for_a_package(tmp_path: Path) -> None:
    rapl(tmp_path, name="psys", energy_uj=0)
    why = find_rapl(tmp_path, probe_s=0.02)[1]
    assert "no RAPL energy counter of a package" in why
    assert "reads 0.00 J" in why


def test_a_counter_that_only_root_may_open_is_read_on_after_root_is_given_up(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up")
    file = rapl(tmp_path, energy_uj=5_000_000)
    file.chmod(0o400)
    program = (
        "import os, sys; from pathlib import Path; from profiler.hardware.cpu import _package_zones\n"
        "zones, unreadable, _ = _package_zones(Path(sys.argv[1]))\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(len(zones), unreadable, zones[0].read_uj())"
    )
    home = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=home, capture_output=True, text=True, check=False
    )
    assert result.stdout == "1 [] 5000000.0\n", result.stderr


CPUFREQ = "sys/devices/system/cpu"


def two_policies(root: Path, **more: object) -> None:
    """Two groups of processors, the second slower, as cpufreq shows them."""
    for policy, low, high in (("cpu0", 800_000, 3_650_000), ("cpu4", 600_000, 2_400_000)):
        here, group = f"{CPUFREQ}/{policy}/cpufreq", f"{CPUFREQ}/cpufreq/policy{policy[3:]}"
        limits: dict[str, object] = {"scaling_min_freq": low, "scaling_max_freq": high}
        put(root, {f"{group}/{name}": value for name, value in limits.items()})
        put(root, {f"{here}/cpuinfo_min_freq": low, f"{here}/cpuinfo_max_freq": high})
        put(root, {f"{here}/scaling_cur_freq": low, **{f"{here}/{name}": value for name, value in more.items()}})
    put(root, {"proc/cpuinfo": CPUINFO, "proc/loadavg": "0.25 0.31 0.40 1/200 4242"})


def test_the_limits_of_all_policies_are_the_clock_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_policies(tmp_path)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    monkeypatch.setenv("CARD_STATE_DIR", str(tmp_path / "state"))
    device = CpuDevice(tmp_path, time=VirtualTime(lambda now_s, busy: None))
    assert device.clocks is not None
    assert "clocks" not in device.absent.reasons
    names = ("scaling_min_freq", "scaling_max_freq")
    files = [tmp_path / CPUFREQ / "cpufreq" / policy / name for policy in ("policy0", "policy4") for name in names]
    before = [file.read_text().strip() for file in files]
    with device.clocks.held():
        device.clocks.lock(1.5e9)
        assert {file.read_text().strip() for file in files} == {"1500000"}
    assert [file.read_text().strip() for file in files] == before


def taken_offline(policy: Path) -> None:
    """As the kernel shows a group whose processors are all offline: its folder stays, no processor is in it, every file refuses."""
    for file in policy.glob("scaling_*_freq"):
        file.unlink()
        file.mkdir()
    (policy / "affected_cpus").write_text("\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders of two groups of processors, with a folder for journals beside."""
    two_policies(tmp_path)
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))
    monkeypatch.setenv("CARD_STATE_DIR", str(tmp_path / "state"))
    for number, processors in ((0, "0 1 2 3"), (4, "4 5 6 7")):
        put(tmp_path, {f"{CPUFREQ}/cpufreq/policy{number}/affected_cpus": processors})
    return tmp_path / CPUFREQ / "cpufreq/policy0", tmp_path / CPUFREQ / "cpufreq/policy4"


def limits(policy: Path) -> list[str]:
    return [(policy / name).read_text().strip() for name in ("scaling_min_freq", "scaling_max_freq")]


def guarded(root: Path) -> GuardedClocks:
    """The clock of the CPU of this tree, opened now."""
    clocks = CpuDevice(root, time=VirtualTime(lambda now_s, busy: None)).clocks
    assert isinstance(clocks, GuardedClocks)
    return clocks


def test_processors_taken_offline_meanwhile_keep_no_other_group_from_its_limits(
    tmp_path: Path, groups: tuple[Path, Path]
) -> None:
    first, second = groups
    clocks = guarded(tmp_path)
    with clocks.held():
        clocks.lock(1.5e9)
        taken_offline(first)
        clocks.lock(2e9)
        assert limits(second) == ["2000000", "2000000"]
    assert limits(second) == ["600000", "2400000"]
    assert not list((tmp_path / "state").glob("*.journal"))


def test_processors_that_come_back_before_the_run_ends_get_their_limits_back(
    tmp_path: Path, groups: tuple[Path, Path]
) -> None:
    first, _ = groups
    clocks = guarded(tmp_path)
    with clocks.held():
        clocks.lock(1.5e9)
        (first / "affected_cpus").write_text("\n")
        clocks.reset()
        assert limits(first) == ["1500000", "1500000"]
        (first / "affected_cpus").write_text("0 1 2 3")
    assert limits(first) == ["800000", "3650000"]


def test_a_group_that_refuses_is_named_and_the_others_get_their_limits_back(
    tmp_path: Path, groups: tuple[Path, Path]
) -> None:
    first, second = groups
    clocks = guarded(tmp_path)

    def spoil() -> None:
        (first / "scaling_min_freq").unlink()
        (first / "scaling_min_freq").mkdir()

    with pytest.raises(MissingHardware, match=r"policy0/scaling_min_freq.*its journal stays: .*card-profile restore"):
        sweep(clocks, when_locked=spoil)
    assert limits(second) == ["600000", "2400000"]


def test_processors_that_are_offline_from_the_start_are_not_set(tmp_path: Path, groups: tuple[Path, Path]) -> None:
    first, second = groups
    (second / "affected_cpus").write_text("\n")
    clocks = guarded(tmp_path)
    with clocks.held():
        clocks.lock(1.5e9)
        assert limits(first) == ["1500000", "1500000"]
        assert limits(second) == ["600000", "2400000"]


def test_a_driver_that_lists_no_clocks_takes_any_and_gets_steps_of_100_mhz(tmp_path: Path) -> None:
    two_policies(tmp_path)
    device = CpuDevice(tmp_path)
    assert device.clocks is not None
    supported = device.clocks.supported_hz()
    assert supported == (*(8e8 + 1e8 * n for n in range(29)), 3.65e9)
    described = device.describe().clocks
    assert described is not None
    assert described.supported_hz == list(supported)
    assert "can be locked" in (described.note or "")


def test_the_clocks_that_a_driver_lists_are_the_ones_to_set_and_boost_only_where_it_is_on(tmp_path: Path) -> None:
    listed = {"scaling_available_frequencies": "3400000 2800000 1400000", "scaling_boost_frequencies": "4200000"}
    two_policies(tmp_path, **listed)
    clocks = CpuDevice(tmp_path).clocks
    assert clocks is not None
    assert clocks.supported_hz() == (1.4e9, 2.8e9, 3.4e9, 4.2e9)
    put(tmp_path, {f"{CPUFREQ}/cpufreq/boost": 0})
    clocks = CpuDevice(tmp_path).clocks
    assert clocks is not None
    assert clocks.supported_hz() == (1.4e9, 2.8e9, 3.4e9)


def test_without_cpufreq_limits_the_absence_is_said(bare: Path) -> None:
    assert "no cpufreq limits" in CpuDevice(bare).absent.reasons["clocks"]


def test_turbo_smt_and_load_are_recorded_and_a_change_of_turbo_is_refused(tmp_path: Path) -> None:
    two_policies(tmp_path, scaling_governor="performance")
    put(tmp_path, {f"{CPUFREQ}/intel_pstate/no_turbo": 0, f"{CPUFREQ}/smt/active": 1})
    device = CpuDevice(tmp_path)
    conditions = device.describe().conditions
    assert (conditions["governor"], conditions["turbo"], conditions["SMT"]) == ("performance", "on", "on")
    assert conditions["load average before"] == "0.25"
    assert "load average before" not in device.settings()
    device.unchanged()
    put(tmp_path, {f"{CPUFREQ}/intel_pstate/no_turbo": 1})
    with pytest.raises(MissingHardware, match="turbo"):
        device.unchanged()


def test_a_temperature_is_read_where_a_zone_names_the_processor(bare: Path) -> None:
    put(bare, {"sys/class/thermal/thermal_zone0/type": "acpitz", "sys/class/thermal/thermal_zone0/temp": 20_000})
    put(bare, {"sys/class/thermal/thermal_zone1/type": "x86_pkg_temp", "sys/class/thermal/thermal_zone1/temp": 47_500})
    device = CpuDevice(bare)
    assert device.temperature_c() == 47.5
    assert "temperature" not in device.absent.reasons


def test_the_zone_of_the_cpu_is_taken_before_others_of_the_chip(bare: Path) -> None:
    for n, (kind, milli) in enumerate((("tj-thermal", 71_000), ("soc012-thermal", 70_000), ("cpu-thermal", 41_000))):
        put(bare, {f"sys/class/thermal/thermal_zone{n}/type": kind, f"sys/class/thermal/thermal_zone{n}/temp": milli})
    assert CpuDevice(bare).temperature_c() == 41.0


@pytest.mark.parametrize("name", ["k10temp", "coretemp"])
def test_a_processor_without_a_zone_is_read_by_its_own_sensor(bare: Path, name: str) -> None:
    put(bare, {"sys/class/thermal/thermal_zone0/type": "acpitz", "sys/class/thermal/thermal_zone0/temp": 20_000})
    put(bare, {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": 30_000})
    put(bare, {"sys/class/hwmon/hwmon3/name": name, "sys/class/hwmon/hwmon3/temp1_input": 45_250})
    assert CpuDevice(bare).temperature_c() == 45.25


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": "max"}, None),
        (
            {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": 1000, "sys/fs/cgroup/a/b/memory.max": 3000},
            1000,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 5000}, 5000),
        ({"proc/self/cgroup": "4:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": 7000}, 7000),
        ({"proc/self/cgroup": "4:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": 2**63 - 4096}, None),
    ],
)
def test_the_smallest_memory_limit_of_the_control_groups_counts(
    tmp_path: Path, files: dict[str, object], limit: int | None
) -> None:
    put(tmp_path, files)
    assert cgroup_limit_bytes(tmp_path) == limit
    put(tmp_path, {"proc/meminfo": "MemTotal:       8 kB"})
    assert CpuDevice(tmp_path).describe().memory_bytes == min(8192, limit or 8192)


def test_this_machine_can_be_described_and_watched() -> None:
    device = open_device("cpu")
    hardware = device.describe()
    assert hardware.kind == "cpu"
    assert hardware.provenance == "measured"
    assert hardware.memory_bytes
    assert hardware.memory_bytes > 2**28
    assert hardware.cores
    begin = device.now_s()
    with device.monitor(0.02) as readings, device.executing():
        device.wait(0.1)
    assert device.now_s() - begin >= 0.1
    assert 1 <= len(readings) <= 6


def test_a_fault_while_reading_is_not_swallowed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CpuDevice(bare)

    def broken() -> float:
        raise RuntimeError("sensor broke")

    monkeypatch.setattr(device, "current_hz", broken)
    with pytest.raises(RuntimeError, match="sensor broke"), device.monitor(0.01):
        time.sleep(0.05)
