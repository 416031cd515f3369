"""Which clocks a sweep visits, in which order, and that it always gives them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.hardware.catalog import boards, find
from profiler.hardware.device import Reading
from profiler.hardware.emulated import EmulatedDevice
from profiler.power.sampling import SamplingOptions
from profiler.power.sweep import (
    ClockChoice,
    Load,
    Progress,
    choose_clocks,
    estimate_sweep_s,
    next_clock,
    run_sweep,
    visit_clocks,
    visiting_order,
)
from profiler.profile import BadInput, MissingHardware, PowerPoint
from tests.hardware.test_emulated import training_step
from tests.power.bench import Bench, Locks, clocked, noise

ORIN = find("orin-agx").clocks_hz
CARD = find("rtx-4060ti").clocks_hz
QUICK = SamplingOptions(min_s=3.0, max_s=6.0, warm_up_s=1.0, watch_s=2.0, relative_ci=0.02, to_come=None)


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
@settings(deadline=None)
def test_the_order_visits_each_clock_once(clocks: list[int]) -> None:
    order = visiting_order(tuple(float(c) for c in clocks))
    assert sorted(order) == sorted(float(c) for c in clocks)


@pytest.mark.parametrize("count", [5, 8, 13, 40])
def test_the_order_separates_clock_from_the_rooms_heat_and_from_what_the_chip_carries_over(count: int) -> None:
    order = visiting_order(tuple(float(i) for i in range(count)))
    assert abs(np.corrcoef(range(count), order)[0, 1]) < 0.35
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < (0.75 if count < 8 else 0.2)
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
    options = SamplingOptions(min_s=5.0, max_s=30.0, watch_s=4.0)
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


# ------------------------------------------------------------------------------------ which clock is visited next

STEPS = tuple(float(mhz) * 1e6 for mhz in range(300, 1301, 50))


def a_point(hz: float, **changes: object) -> PowerPoint:
    values = {"frequency_hz": hz, "requested_hz": hz, "power_w": 1e-8 * hz, "samples": 9, "seconds_s": 20.0}
    return PowerPoint.model_validate({**values, "stopped_by": "steady", **changes})


def visited(choice: ClockChoice, teach: object = None, top_hz: float = 9e9, start: int = 0) -> list[float]:
    """Clocks in the order of their visits; above ``top_hz`` the cap holds."""
    points: list[PowerPoint] = []
    while (hz := next_clock(choice, STEPS, points, teach)) is not None:  # type: ignore[arg-type]
        points.append(a_point(min(hz, top_hz), requested_hz=hz, capped=hz > top_hz))
    return [point.requested_hz or 0.0 for point in points][start:]


def test_a_count_leaves_the_clocks_free_and_a_list_does_not() -> None:
    assert choose_clocks("5", STEPS).free
    assert choose_clocks("auto", STEPS).free
    for spec in ("all", "300,600", "600mhz", "current"):
        assert not choose_clocks(spec, STEPS).free


def test_free_clocks_go_where_they_teach_after_the_first_four() -> None:
    told: list[int] = []

    def teach(frequency_hz: list[float], power_w: list[float], supported_hz: list[float], sd_w: list[float]) -> float:
        assert len(frequency_hz) == len(power_w) == len(sd_w)
        assert set(frequency_hz) <= set(supported_hz)
        told.append(len(frequency_hz))
        return min(set(supported_hz) - set(frequency_hz), key=lambda hz: abs(hz - 775e6))

    choice = choose_clocks("7", STEPS)
    order = visited(choice, teach)
    assert sorted(order[:4]) == list(choice.frequencies_hz[::2])
    assert [abs(hz - 775e6) <= 100e6 for hz in order[4:]] == [True] * 3
    assert told == [4, 5, 6]
    assert len(set(order)) == 7
    assert visited(choose_clocks("300,600,900,1000,1300", STEPS), teach) == list(
        visiting_order((3e8, 6e8, 9e8, 10e8, 13e8))
    )


@pytest.mark.parametrize("count", range(3, 13))
@pytest.mark.parametrize("top_hz", [500e6, 750e6, 1000e6, 1225e6])
def test_at_most_two_free_clocks_are_spent_where_the_cap_holds(count: int, top_hz: float) -> None:
    order = visited(choose_clocks(str(count), STEPS), None, top_hz)
    below = [hz for hz in STEPS if hz <= top_hz]
    assert sum(hz > top_hz for hz in order) <= 2
    assert len(order) == len(set(order)) == min(count, len(below) + 2)
    assert max(order) == STEPS[-1]


def test_clocks_of_a_list_are_visited_whatever_holds_them() -> None:
    assert len(visited(choose_clocks("all", STEPS), None, 500e6)) == len(STEPS)


@pytest.mark.parametrize("kept", range(8))
def test_what_comes_next_follows_from_the_points_alone(kept: int) -> None:
    choice = choose_clocks("8", STEPS)
    whole = visited(choice, None, 900e6)
    points = [a_point(min(hz, 900e6), requested_hz=hz, capped=hz > 900e6) for hz in whole[:kept]]
    rest = []
    while (hz := next_clock(choice, STEPS, points)) is not None:
        rest.append(hz)
        points.append(a_point(min(hz, 900e6), requested_hz=hz, capped=hz > 900e6))
    assert whole[:kept] + rest == whole


# ------------------------------------------------------------------------------------------------- what is noticed

WIDE = (300e6, 600e6, 900e6, 1300e6)


def swept(bench: Bench, spec: str = "4", **more: object):  # type: ignore[no-untyped-def]
    assert bench.clocks is not None
    choice = choose_clocks(spec, bench.clocks.supported_hz())
    return run_sweep(bench, started(lambda: bench.run(0.2)), choice, load_name="s", options=QUICK, **more)  # type: ignore[arg-type]


def cubic(t: float, hz: float) -> float:
    return 20.0 + 40.0 * (hz / 1e9) ** 3 + 0.05 * np.sin(7 * t)


def test_a_lock_that_does_not_take_ends_the_sweep_after_three_clocks_and_says_what_ran() -> None:
    bench = clocked(cubic, WIDE, lambda _: 1290e6)
    told: list[PowerPoint] = []
    with pytest.raises(MissingHardware, match="asked 300, 900, 1300 MHz, ran at 1290 MHz each time"):
        swept(bench, on_point=lambda point, _: told.append(point))
    assert len(told) == 3
    assert bench.clocks is not None
    assert bench.clocks.asked_hz is None
    again = clocked(cubic, WIDE, lambda _: 1290e6)
    with pytest.raises(MissingHardware, match="did not take"):
        swept(again, done=told)
    assert isinstance(again.clocks, Locks)
    assert [hz for hz in again.clocks.history if hz is not None] == []


def test_a_clock_stuck_at_the_bottom_is_noticed_and_a_cap_that_holds_all_the_others_is_not_taken_for_it() -> None:
    with pytest.raises(MissingHardware, match="did not take"):
        swept(clocked(cubic, WIDE, lambda _: 300e6, cap_w=150.0))
    held = clocked(cubic, WIDE, lambda asked: min(asked, 305e6), capped=lambda asked: asked > 305e6)
    points = swept(held, "300,600,900,1300").block.points
    assert [p.capped for p in points] == [False, True, True, True]


def test_two_clocks_are_enough_where_one_above_both_ran() -> None:
    with pytest.raises(MissingHardware, match="did not take: asked 300, 600 MHz, ran at 1300 MHz"):
        swept(clocked(cubic, WIDE, lambda _: 1300e6), "300,600")
    low, high = swept(clocked(cubic, WIDE, lambda _: 1300e6), "300,1300").block.points
    assert "300 MHz was asked for and 1300 MHz ran: the lock did not take" in low.notes[0]
    assert high.notes == []


def test_clocks_next_to_each_other_are_not_taken_for_a_lock_that_did_not_take() -> None:
    close = tuple(1000e6 + 5e6 * k for k in range(4))
    assert len(swept(clocked(cubic, close)).block.points) == 4


def test_a_setting_changed_meanwhile_ends_the_sweep_and_drops_that_point() -> None:
    told: list[PowerPoint] = []
    bench = clocked(cubic, WIDE, changed_after=2)
    with pytest.raises(MissingHardware, match="power mode was changed"):
        swept(bench, on_point=lambda point, _: told.append(point))
    assert len(told) == 2
    assert bench.clocks is not None
    assert bench.clocks.asked_hz is None


def test_a_point_whose_sensor_died_is_not_kept_and_is_measured_again() -> None:
    kept: list[PowerPoint] = []
    dying = clocked(cubic, WIDE, show=lambda t, watts: watts if not kept or t < first_s + 2 else None)
    first_s = 0.0

    def keep(point: PowerPoint, _: list[Reading]) -> None:
        nonlocal first_s
        kept.append(point)
        first_s = first_s or dying.now_s()

    with pytest.raises(MissingHardware, match="too few for a figure"):
        swept(dying, on_point=keep)
    assert len(kept) == 1
    swept(clocked(cubic, WIDE), done=list(kept), on_point=keep)
    assert len(kept) == 4


def test_an_early_clock_is_measured_again_and_drift_is_told() -> None:
    steady = swept(clocked(cubic, WIDE))
    assert steady.block.repeated is not None
    assert steady.block.repeated.requested_hz == 300e6
    assert steady.notes == ()
    assert len(steady.block.points) == 4

    def late(t: float, hz: float) -> float:
        assert isinstance(bench.clocks, Locks)
        return cubic(t, hz) * (1.06 if len(bench.clocks.history) > 4 else 1.0)

    bench = clocked(late, WIDE)
    drifting = swept(bench)
    assert any(note.startswith("drift: ") for note in drifting.notes)
    assert swept(clocked(cubic, WIDE), "2").block.repeated is None


def test_a_program_that_starts_anew_at_each_clock_is_given_its_time() -> None:
    """It reads its data for 12 s first."""
    bench = clocked(cubic, WIDE, rest_w=8.0)
    begun = [0.0]

    @contextmanager
    def program() -> Iterator[Callable[[], None]]:
        begun[0] = bench.now_s()
        yield lambda: bench.run(0.1, busy=bench.now_s() > begun[0] + 12.0)

    choice = choose_clocks("4", WIDE)
    result = run_sweep(bench, program, choice, load_name="s", options=QUICK, starts_late=True)  # type: ignore[arg-type]
    assert [p.power_w for p in result.block.points] == pytest.approx([cubic(0, hz) for hz in WIDE], rel=0.01)
    assert result.block.idle_w == pytest.approx(8.0)


def test_what_a_load_leaves_running_is_not_taken_for_power_at_rest() -> None:
    bench = clocked(cubic, WIDE, rest_w=8.0)

    @contextmanager
    def program() -> Iterator[Callable[[], None]]:
        yield lambda: bench.run(0.1)
        bench.rest_w += 2.0  # at each clock one more

    result = run_sweep(bench, program, choose_clocks("4", WIDE), load_name="s", options=QUICK)  # type: ignore[arg-type]
    assert result.block.idle_w == pytest.approx(8.0)
    assert any("8.00 W before the sweep and 18.00 W after it; something may still run" in note for note in result.notes)


def test_the_block_tells_how_order_heat_and_clock_go_together() -> None:
    note = swept(clocked(cubic, WIDE)).block.note
    assert "order against clock: r = +" in note


def test_notes_of_points_outlive_an_interruption() -> None:
    counter = {"counter_s": 0.1, "count": lambda t, joules: 1.2 * joules}
    done: list[PowerPoint] = []

    def stop(point: PowerPoint, _: list[Reading]) -> None:
        done.append(PowerPoint.model_validate_json(point.model_dump_json()))
        if len(done) == 2:
            raise KeyboardInterrupt

    jitter = noise(1, 0.2)
    with pytest.raises(KeyboardInterrupt):
        swept(clocked(lambda t, hz: cubic(t, hz) + jitter(t), WIDE, **counter), on_point=stop)
    assert all(point.agreement == "disagree" for point in done)
    result = swept(clocked(lambda t, hz: cubic(t, hz) + jitter(t), WIDE), done=done)
    assert sum("disagree by more than" in note for note in result.notes) == 2
    assert any("some points are by the energy counter" in note for note in result.notes)


def test_power_that_does_not_follow_the_clock_is_told() -> None:
    flat = swept(clocked(lambda t, hz: 30 + 0.05 * np.sin(7 * t), WIDE, readable=False))
    assert any("power is flat" in note for note in flat.notes)
    assert [p.frequency_hz for p in flat.block.points] == list(WIDE)


def test_progress_counts_the_clocks_and_the_time_that_is_left_runs_out() -> None:
    bench = clocked(cubic, WIDE)
    told: list[tuple[float, Progress]] = []
    begin = bench.now_s()
    swept(
        bench, at_clock=lambda _: bench.run(5.0), at_clock_s=5.0, on_progress=lambda p: told.append((bench.now_s(), p))
    )
    end = bench.now_s()
    assert told[0][1].done == 0
    assert told[-1][1].done == told[-1][1].total == 4
    assert {p.what for _, p in told} >= {"idle", "300 MHz", "1300 MHz", "300 MHz again"}
    late = [(at, p.left_s) for at, p in told if at > begin + 0.5 * (end - begin)]
    assert all(abs(left - (end - at)) < 0.35 * (end - begin) for at, left in late)
    assert "of 4 clocks" in told[0][1].text


def test_what_is_done_at_each_clock_is_part_of_the_estimate() -> None:
    choice = choose_clocks("4", WIDE)
    least, most = estimate_sweep_s(choice, QUICK)
    assert estimate_sweep_s(choice, QUICK, at_clock_s=15.0) == (least + 60.0, most + 60.0)
