"""The catalog, and the names that --device takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.hardware import BadInput, MissingHardware, list_devices, open_device
from profiler.hardware.catalog import FIGURES, board_named, boards, find

NAMES = sorted(boards())


def test_the_contracts_boards_are_all_there() -> None:
    wanted = {"orin-agx", "orin-nx", "orin-nano", "xavier-agx", "xavier-nx", "tx2", "nano", "rtx-4060ti"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_value_and_a_source(name: str) -> None:
    board = boards()[name]
    assert set(board.figures) == set(FIGURES)
    for figure in board.figures.values():
        assert figure.value > 0
        assert figure.provenance in ("datasheet", "literature", "assumed")
        assert len(figure.source) > 10
    assert board.clocks_source
    assert board.power_scope


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_in_si_units_of_a_plausible_size(name: str) -> None:
    board = boards()[name]
    clocks = board.clocks_hz
    assert list(clocks) == sorted(set(clocks))
    assert 5e7 < clocks[0] < clocks[-1] < 4e9
    assert board.value("flops_per_core_cycle") == 2
    assert 2**31 <= board.value("usable_memory_bytes") < board.value("memory_bytes") <= 2**38
    assert 2e10 < board.value("memory_bandwidth_bytes_per_s") < 1e13
    assert board.value("idle_w") < 0.5 * board.value("power_cap_w")
    # A product as large as one likes stays below what the vendor states for the card.
    peak = board.value("cores") * 2 * clocks[-1]
    assert 1e11 < peak < 1.2e14
    volts = board.silicon.voltage_v
    assert [share for share, _ in volts] == sorted(share for share, _ in volts)
    assert [v for _, v in volts] == sorted(v for _, v in volts)
    assert volts[0][0] == 0
    assert volts[-1][0] == 1


def test_known_clock_tables_are_exact() -> None:
    nano = find("nano").clocks_hz
    assert nano == tuple(76_800_000 * i for i in range(1, 13))
    assert find("xavier-agx").clocks_hz[-1] == 1_377_000_000
    assert find("orin-agx").clocks_hz[-1] == 1_300_500_000
    assert find("rtx-4060").clocks_hz[-1] == 2_460_000_000
    assert find("orin-nano-4gb").value("cores") == 512


@pytest.mark.parametrize("typed", ["RTX-4060Ti", "rtx4060ti", "rtx_4060_ti", "emulated:RTX-4060-Ti"])
def test_spelling_of_a_name_does_not_matter(typed: str) -> None:
    assert find(typed.removeprefix("emulated:")).name == "rtx-4060ti"


def test_real_boards_are_known_by_the_names_they_give_themselves() -> None:
    given = {
        "NVIDIA GeForce RTX 4060 Ti": "rtx-4060ti",
        "NVIDIA GeForce RTX 4060": "rtx-4060",
        "NVIDIA Jetson AGX Orin Developer Kit": "orin-agx",
        "NVIDIA Jetson Orin Nano Developer Kit": "orin-nano",
        "NVIDIA Jetson AGX Thor Developer Kit": "thor",
        "NVIDIA Jetson AGX Thor T4000": "thor-t4000",
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super": "orin-nano-super",
        "NVIDIA Jetson Nano Developer Kit": "nano",
        "NVIDIA H200": "h200",
    }
    assert {text: getattr(board_named(text), "name", None) for text in given} == given
    assert board_named("NVIDIA GeForce GTX 1080") is None


@pytest.mark.parametrize(
    "given",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA RTX A4000 Laptop GPU",
        "NVIDIA GeForce RTX 4060 Max-Q / Mobile", "NVIDIA RTX A4000 with Max-Q Design",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4060 Ti Laptop GPU",
    ],
)  # fmt: skip
def test_a_chip_of_other_cores_under_a_like_name_is_not_the_board(given: str) -> None:
    assert board_named(given) is None
    assert replace(find("rtx-4090"), match=(given,)).matches(given)  # an entry of its own may have it


def test_an_unknown_name_is_refused_with_close_names_and_all_names() -> None:
    with pytest.raises(BadInput, match=r"did you mean .*orin-agx.*rtx-4060ti") as fault:
        open_device("emulated:orin")
    assert "--device emulated:orin:" in str(fault.value)
    assert "\n" not in str(fault.value)
    with pytest.raises(BadInput, match=r"nvml:INDEX"):
        open_device("nvml:first")


def test_a_board_that_is_not_here_is_missing_hardware_that_names_the_emulated_one(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARD_SYSFS_ROOT", str(tmp_path))  # a machine without a driver
    for name, lacks in (("orin-agx", "/sys/class/devfreq"), ("rtx-4060ti", "no NVIDIA driver")):
        with pytest.raises(MissingHardware, match=f"emulated:{name}") as fault:
            open_device(name)
        assert lacks in str(fault.value)
    with pytest.raises(MissingHardware, match=r"NVIDIA driver|nvidia-ml-py"):
        open_device("nvml:0")
    assert open_device("auto").name == "cpu"
    rows = {row.name: row for row in list_devices()}
    assert "no NVIDIA driver" in rows["gpu"].missing["layers"]
    assert "layers" in rows["cpu"].works
    assert "power" in rows["cpu"].missing
