"""Which clocks a sweep visits, in which order, and that it always gives them back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.hardware.catalog import boards, find
from profiler.hardware.device import Reading
from profiler.hardware.emulated import EmulatedDevice
from profiler.power.sampling import SamplingOptions
from profiler.power.sweep import Load, choose_clocks, estimate_sweep_s, run_sweep, visit_clocks, visiting_order
from profiler.profile import BadInput, MissingHardware, PowerPoint
from tests.hardware.test_emulated import training_step

ORIN = find("orin-agx").clocks_hz
CARD = find("rtx-4060ti").clocks_hz
QUICK = SamplingOptions(min_s=3.0, max_s=6.0, warm_up_s=1.0, drift_window_s=2.0, relative_ci=0.02)


def mhz(spec: str, supported: tuple[float, ...] = ORIN) -> list[float]:
    return [hz / 1e6 for hz in choose_clocks(spec, supported).frequencies_hz]


def test_all_means_all_and_current_locks_nothing() -> None:
    assert choose_clocks("all", ORIN).frequencies_hz == ORIN
    current = choose_clocks("current", ORIN)
    assert current.frequencies_hz == ()
    assert not current.locks


def test_auto_takes_about_eight_with_both_ends() -> None:
    for supported in (ORIN, CARD):
        chosen = choose_clocks("auto", supported).frequencies_hz
        assert len(chosen) == 8
        assert (chosen[0], chosen[-1]) == (supported[0], supported[-1])
        gaps = np.diff(chosen)
        assert max(gaps) < 0.25 * (supported[-1] - supported[0])
    assert mhz("auto", find("orin-nano").clocks_hz) == [306, 408, 510, 612, 624.75]


def test_a_bare_number_is_a_count_and_a_unit_or_a_comma_makes_clocks() -> None:
    assert len(mhz("5")) == 5
    assert mhz("1") == [1300.5]
    assert mhz("2") == [306, 1300.5]
    assert mhz("612mhz") == [612]
    assert mhz("612 MHz") == [612]
    assert mhz("1224,306,612") == [306, 612, 1224]
    assert mhz("306mhz,612mhz") == [306, 612]
    assert mhz("612,") == [612]


def test_a_clock_between_steps_goes_to_the_nearest_and_it_is_said() -> None:
    choice = choose_clocks("600,1300", ORIN)
    assert choice.frequencies_hz == (612e6, 1300.5e6)
    assert len(choice.notes) == 1
    assert "600 MHz" in choice.notes[0]
    assert "612 MHz" in choice.notes[0]


@pytest.mark.parametrize(
    "spec", ["", " ", "fast", "0", "-3", "1.5", "612hz", "1300ghz", "300,,600", "a,b", "0mhz", "nan", "1e9"]
)
def test_anything_else_is_refused_in_one_line_that_names_the_option(spec: str) -> None:
    with pytest.raises(BadInput, match="--clocks") as fault:
        choose_clocks(spec, ORIN)
    assert "\n" not in str(fault.value)


def test_a_clock_outside_the_table_and_a_forgotten_unit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"306 to 1300\.5 MHz"):
        choose_clocks("5000mhz", ORIN)
    with pytest.raises(BadInput, match="write 1300mhz"):
        choose_clocks("1300", ORIN)
    assert choose_clocks("20", ORIN).notes


def test_a_device_whose_clock_cannot_be_set_takes_one_point_or_says_so() -> None:
    choice = choose_clocks("auto", ())
    assert not choice.locks
    assert choice.notes
    for spec in ("all", "4", "600mhz"):
        with pytest.raises(MissingHardware, match="--clocks current"):
            choose_clocks(spec, ())


@given(st.sampled_from(sorted(boards())), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_any_count_gives_that_many_supported_clocks(name: str, count: int) -> None:
    supported = find(name).clocks_hz
    if count > len(supported) and count >= 100:
        return
    chosen = choose_clocks(str(count), supported).frequencies_hz
    assert len(chosen) == min(count, len(supported))
    assert set(chosen) <= set(supported)
    assert list(chosen) == sorted(set(chosen))


@given(st.lists(st.integers(1, 3000), unique=True, min_size=1, max_size=40))
def test_the_order_visits_each_clock_once(clocks: list[int]) -> None:
    order = visiting_order([float(c) for c in clocks])
    assert sorted(order) == sorted(float(c) for c in clocks)


@pytest.mark.parametrize("count", [5, 8, 13, 40])
def test_the_order_separates_heat_from_clock(count: int) -> None:
    order = visiting_order([float(i) for i in range(count)])
    assert abs(np.corrcoef(range(count), order)[0, 1]) < 0.35
    assert order[:2] == (0.0, count - 1.0)


def started(step: Callable[[], object]) -> Load:
    return lambda: nullcontext(step)


def board(name: str = "orin-agx") -> tuple[EmulatedDevice, Load]:
    device = EmulatedDevice(find(name))
    return device, started(device.load(training_step(512, 1024)))


def locked(device: EmulatedDevice) -> float | None:
    return device.clocks.locked_hz  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
def test_clocks_come_back_whatever_happens(fault: type[BaseException]) -> None:
    device, load = board()
    step = device.load(training_step(512, 1024))
    calls = 0

    def breaking() -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            assert locked(device) is not None
            raise fault
        step()

    with pytest.raises(fault):
        run_sweep(device, started(breaking), choose_clocks("4", ORIN), load_name="test", options=QUICK)
    assert locked(device) is None

    def at_clock(_: float | None) -> None:
        raise fault

    with pytest.raises(fault):
        run_sweep(device, load, choose_clocks("2", ORIN), load_name="test", options=QUICK, at_clock=at_clock)
    assert locked(device) is None


def test_a_failing_lock_still_resets() -> None:
    device, _ = board()
    with pytest.raises(BadInput):
        visit_clocks(device, [612e6, 9e9], lambda _: None)
    assert locked(device) is None


def test_a_sweep_visits_every_clock_and_times_layers_while_it_is_held() -> None:
    device, load = board()
    held: list[float | None] = []
    told: list[PowerPoint] = []
    readings: list[Reading] = []

    def on_point(point: PowerPoint, seen: list[Reading]) -> None:
        told.append(point)
        readings.extend(seen)

    def at_clock(requested_hz: float | None) -> None:
        assert locked(device) == requested_hz == device.current_hz()
        assert len(told) == len(held)  # a point is told only when its clock is complete
        held.append(requested_hz)

    result = run_sweep(
        device,
        load,
        choose_clocks("4", ORIN),
        load_name="steps",
        options=QUICK,
        at_clock=at_clock,
        on_point=on_point,
    )
    block = result.block
    assert sorted(h for h in held if h) == [p.requested_hz for p in block.points]
    assert len(told) == 4
    assert block.provenance == "emulated"
    assert block.load == "steps"
    assert "VDD_GPU_SOC" in block.scope
    assert block.idle_w == pytest.approx(device.board.value("idle_w"), rel=0.15)
    watts = [p.power_w for p in block.points]
    assert watts == sorted(watts)
    assert len(readings) >= sum(p.samples for p in told)
    assert result.at_rest
    assert locked(device) is None


def test_an_interrupted_sweep_resumes_where_it_stopped() -> None:
    device, load = board()
    done: list[PowerPoint] = []

    def stop_after_two(point: PowerPoint, _: list[Reading]) -> None:
        done.append(point)
        if len(done) == 2:
            raise KeyboardInterrupt

    choice = choose_clocks("4", ORIN)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(device, load, choice, load_name="steps", options=QUICK, on_point=stop_after_two)
    visited: list[float | None] = []
    again, load = board()
    result = run_sweep(again, load, choice, load_name="steps", options=QUICK, done=done, at_clock=visited.append)
    assert len(visited) == 2
    assert not {p.requested_hz for p in done} & set(visited)
    assert [p.requested_hz for p in result.block.points] == list(choice.frequencies_hz)


def test_current_takes_one_point_and_never_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    device, load = board()
    monkeypatch.setattr(device, "clocks", None)  # touching it would fail
    result = run_sweep(device, load, choose_clocks("current", ORIN), load_name="steps", options=QUICK)
    (point,) = result.block.points
    assert point.requested_hz is None
    assert point.frequency_hz == pytest.approx(ORIN[-1], rel=0.03)  # an unlocked clock rests in the pauses
    with pytest.raises(MissingHardware):
        visit_clocks(device, [6e8], lambda _: None)


def test_capped_points_are_marked_and_lie_at_the_clock_that_ran() -> None:
    device = EmulatedDevice(find("rtx-4060ti"), power_cap_w=110.0)
    load = started(device.load(training_step(4096, 2048)))
    options = SamplingOptions(min_s=5.0, max_s=30.0, drift_window_s=4.0)
    points = run_sweep(device, load, choose_clocks("6", CARD), load_name="steps", options=options).block.points
    assert [p.capped for p in points] == [False] * 5 + [True]
    assert points[-1].frequency_hz < 0.97 * points[-1].requested_hz
    assert points[-1].power_w == pytest.approx(110.0, rel=0.02)


def test_the_same_sweep_twice_gives_the_same_block() -> None:
    blocks = []
    for _ in range(2):
        device, load = board()
        blocks.append(run_sweep(device, load, choose_clocks("3", ORIN), load_name="steps", options=QUICK).block)
    assert blocks[0] == blocks[1]


def test_the_time_is_estimated_up_front() -> None:
    choice = choose_clocks("4", ORIN)
    least, most = estimate_sweep_s(choice, QUICK)
    device, load = board()
    begin = device.now_s()
    run_sweep(device, load, choice, load_name="steps", options=QUICK)
    assert least <= device.now_s() - begin <= most + 4 * QUICK.max_s
