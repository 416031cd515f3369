"""``benchmarks/power_blind.py`` reads watts out of other people's repositories: the right files, the right lines, the right unit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import power_blind
from benchmarks.power_blind import (
    Clone,
    gv100,
    job_schedule,
    known,
    nano,
    perseus,
    power_frequency,
    sweep_of,
    thinned,
    v100,
)

ROOT = Path(__file__).resolve().parents[2]


def clone_of(folder: Path, files: dict[str, str]) -> Clone:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "data"]):
        subprocess.run([*git, *words], check=True)
    return Clone(folder, "HEAD")


def test_a_joule_over_a_second_is_a_watt_in_the_stages_of_perseus(tmp_path):
    header = "stage,instruction,frequency,time,energy\n"
    files = {
        f"sosp24_data/emulation/stage_profile/{model}+{card}_bf16.csv": header
        for model in ("gpt3-175b", "bloom")
        for card in ("a100_sxm", "a40")
    }
    files["sosp24_data/emulation/stage_profile/bloom+a40_bf16.csv"] += (
        "0,forward,1740,0.5,150\n0,forward,1725,0.5,140\n"
    )
    found = list(perseus(clone_of(tmp_path, files)))
    assert found == [("A40, training", "bloom 0 forward", {1740.0: 300.0, 1725.0: 280.0})]


def test_a_run_of_the_nano_is_the_median_of_its_second_half_without_the_line_about_the_run(tmp_path):
    readings = "".join(f"164566606940{k},{watts}\n" for k, watts in enumerate((2.0, 2.2, 2.6, 2.8, 2.9)))
    name = "data/Nano/square_all_frequency/Nano-float-1024-tensor-153600000.data"
    clone = clone_of(tmp_path, {name: readings + "981659480032.626099,9156,20.019936"})
    assert list(nano(clone)) == [("Jetson Nano GEMM, 32 sizes", "float-1024", {153.6: 2.8})]


def test_rows_without_watts_are_left_out_and_workloads_kept_apart(tmp_path):
    header = "average_power,benchmark,kernel,argNo,core_frequency\n"
    rows = "100,a,k,input0,1000\n120,a,k,input0,1100\n90,a,k,input1,1000\n,a,k,input1,1100\n"
    clone = clone_of(
        tmp_path,
        {
            "data/v100-dvfs-real.csv": header + rows,
            "data/v100-dvfs-microbenchmark.csv": header,
            "datasets/spec_data/mean_fp_data_21_apps.csv": "application,sm_app_clock,power_usage\nbfs,510,52.5\n",
            "datasets/hpc_data/mean_fp_data_HPC_apps.csv": "sm_app_clock,application,power_usage\n517,LSTM,60\n",
        },
    )
    assert list(v100(clone)) == [
        ("V100, 20 applications", "a k input0", {1000.0: 100.0, 1100.0: 120.0}),
        ("V100, 20 applications", "a k input1", {1000.0: 90.0}),
    ]
    assert [points for _, _, points in gv100(clone)] == [{510.0: 52.5}, {517.0: 60.0}]


def test_long_sweeps_are_thinned_with_both_ends_kept():
    sweep = sweep_of("board", "load", {float(clock): 10.0 + clock for clock in range(500, 1500, 10)})
    few = thinned(sweep)
    assert len(few.frequency_hz) == power_blind.MOST_CLOCKS
    assert np.all(np.diff(few.frequency_hz) > 0)
    assert (few.frequency_hz[0], few.frequency_hz[-1]) == (500e6, 1490e6)
    assert np.array_equal(few.power_w, 10 + few.frequency_hz / 1e6)
    assert thinned(few) is few


def test_a_clone_without_the_data_is_refused(tmp_path):
    clone = clone_of(tmp_path, {"README": "nothing"})
    assert known(clone.path) is None
    words = [sys.executable, "benchmarks/power_blind.py", str(clone.path)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "holds none of the commits" in ended.stdout


@pytest.mark.parametrize("commit", list(power_blind.SOURCES))
def test_data_are_named_by_whole_commits(commit):
    assert len(bytes.fromhex(commit)) == 20


def test_of_two_memory_clocks_the_higher_counts(tmp_path):
    header = "appName,coreF,memF,argNo,kernel,power/W\n"
    rows = "a,1600,4000,input00,k,80\na,1600,5500,input00,k,100\na,1700,5500,input00,k,110\na,1800,5500,input00,k,\n"
    files = {"csvs/gtx1080ti-dvfs-real-Performance-Power.csv": header + rows}
    files["csvs/gtx2070s-dvfs-real-Performance-Power.csv"] = header + "b,1680,7300,input00,k,90\n"
    assert list(job_schedule(clone_of(tmp_path, files))) == [
        ("GTX 1080 Ti, 30 applications", "a k input00", {1600.0: 100.0, 1700.0: 110.0}),
        ("RTX 2070 Super, 20 applications", "b k input00", {1680.0: 90.0}),
    ]


def test_watt_hours_over_seconds_are_watts_at_the_highest_limit_alone(tmp_path):
    read = '{"energy": 1.0, "time": 36.0}'
    clone = clone_of(
        tmp_path,
        {
            "babelstream-benchmarks/rtxpro6000/energy-time-1005-600.json": read,
            "babelstream-benchmarks/rtxpro6000/energy-time-1005-300.json": '{"energy": 9.0, "time": 36.0}',
            "babelstream-benchmarks/rtxpro6000/energy-time-12481-2002-600.json": '{"energy": 9.0, "time": 36.0}',
            "pi-solver-benchmarks/rtxpro6000/fp32/energy-time-1200-600.json": read,
            "pi-solver-benchmarks/rtxpro6000/fp64/energy-time-1200-600.json": '{"energy": 2.0, "time": 36.0}',
            "waterlily-benchmarks/cricket-a100/data-1410-300/benchmarks/host/energy-time.json": '{"energy": 0.5, "total_time": 36.0}',
        },
    )
    assert list(power_frequency(clone)) == [
        ("RTX PRO 6000, 4 programs", "babelstream", {1005.0: 100.0}),
        ("RTX PRO 6000, 4 programs", "pi-solver/fp32", {1200.0: 100.0}),
        ("RTX PRO 6000, 4 programs", "pi-solver/fp64", {1200.0: 200.0}),
        ("A100 PCIe, 3 programs", "waterlily", {1410.0: 50.0}),
    ]
