"""An emulated board behaves like hardware: time, watts, heat and sensors follow from the work that is really submitted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from profiler.hardware import BadInput, open_device
from profiler.hardware.catalog import boards, find
from profiler.hardware.emulated import EmulatedDevice

BOARDS = ("orin-agx", "nano", "rtx-4060ti", "rtx-a4000")


def network(width: int = 1024, depth: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    layers = [nn.Linear(width, width, device="meta", dtype=dtype) for _ in range(depth)]
    return nn.Sequential(*[nn.Sequential(layer, nn.GELU()) for layer in layers])


def training_step(rows: int = 2048, width: int = 1024, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    model, x = network(width, dtype=dtype), torch.empty(rows, width, device="meta", dtype=dtype)

    def step() -> None:
        model(x).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def emulated(name: str, **options: float | int | bool) -> EmulatedDevice:
    return EmulatedDevice(find(name), **options)  # type: ignore[arg-type]


def seconds(device: EmulatedDevice, work: Callable[[], object]) -> float:
    with device.executing():
        begin = device.now_s()
        work()
        return device.now_s() - begin


@pytest.mark.parametrize("name", sorted(boards()))
def test_every_board_can_be_opened_and_says_that_it_is_emulated(name: str) -> None:
    device = open_device(f"emulated:{name}")
    hardware = device.describe()
    assert device.name == f"emulated-{name}"
    assert device.provenance == hardware.provenance == "emulated"
    assert hardware.kind == "emulated"
    assert hardware.clocks is not None
    assert hardware.clocks.provenance == "emulated"
    assert hardware.clocks.supported_hz == list(boards()[name].clocks_hz)
    assert device.power is not None
    assert "emulated" in device.power.sensor
    assert device.torch_device == "meta"
    load = device.load(training_step(256, 512))
    load()
    truth = device.true_steady(hardware.clocks.max_hz)  # type: ignore[attr-defined]
    assert truth.power_w <= hardware.power_cap_w * 1.01
    assert truth.power_w > boards()[name].value("idle_w")


def test_only_virtual_time_passes() -> None:
    device = emulated("nano")
    began = time.perf_counter()
    device.wait(3600.0)
    assert device.now_s() == pytest.approx(3600.0)
    assert time.perf_counter() - began < 10.0


def test_work_outside_executing_and_work_on_other_devices_is_free() -> None:
    device = emulated("orin-agx")
    step = training_step()
    begin = device.now_s()
    step()
    assert device.now_s() == begin
    assert seconds(device, lambda: torch.ones(200, 200) @ torch.ones(200, 200)) == 0.0


def test_views_are_free_and_kernels_are_not() -> None:
    device = emulated("orin-agx")
    x = torch.empty(512, 512, device="meta")
    assert seconds(device, lambda: x.view(-1).reshape(256, 1024).t().unsqueeze(0).expand(4, -1, -1)[1:, :5]) == 0.0
    assert seconds(device, lambda: x + 1) > 0.0


def test_a_call_made_again_returns_what_it_did_the_first_time() -> None:
    device = open_device("emulated:nano")
    a, b = torch.empty(6, 4, device="meta").t(), torch.empty(6, 5, device="meta")
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: a * 2,  # as its input lies in memory, not as it would be laid out anew
        lambda: a @ b,
        lambda: a.float().half(),
        lambda: torch.arange(3.0, device="meta"),
        lambda: torch.arange(5.0, device="meta"),
        *(lambda one=one: torch.full((3,), one, device="meta") for one in (1, 1.0, True)),
        *(lambda one=one: torch.ones(3, dtype=torch.int64, device="meta") * one for one in (1, 1.0)),
        lambda: a.t(),
    ]
    alone = [call() for call in calls]
    with device.executing():
        for _ in range(2):
            for call, expected in zip(calls, alone, strict=True):
                made = call()
                assert (made.shape, made.stride(), made.dtype) == (expected.shape, expected.stride(), expected.dtype)
        assert a.t().untyped_storage()._cdata == a.untyped_storage()._cdata


def test_a_product_takes_what_its_flops_take_at_the_stated_efficiency() -> None:
    device = emulated("orin-agx")
    a, b = torch.empty(4096, 4096, device="meta"), torch.empty(4096, 4096, device="meta")
    peak = 2048 * 2 * 1_300_500_000  # cores, FLOPs a core and cycle, Hz
    efficiency = device.board.silicon.matmul_efficiency
    expected = 2 * 4096**3 / (peak * efficiency)
    spent = np.median([seconds(device, lambda: a @ b) for _ in range(15)])
    assert spent == pytest.approx(expected, rel=0.04)


def test_half_precision_is_faster_where_the_board_has_units_for_it() -> None:
    def spent(name: str, dtype: torch.dtype) -> float:
        a = torch.empty(2048, 2048, device="meta", dtype=dtype)
        return seconds(emulated(name), lambda: [a @ a for _ in range(5)])

    assert spent("orin-agx", torch.bfloat16) < 0.4 * spent("orin-agx", torch.float32)
    assert spent("nano", torch.bfloat16) == pytest.approx(spent("nano", torch.float32), rel=0.1)


def test_the_fused_attention_of_meta_tensors_costs_its_products() -> None:
    device = emulated("orin-agx")
    q = torch.empty(4, 8, 512, 64, device="meta", requires_grad=True)
    k, v = torch.empty_like(q), torch.empty_like(q)
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    flops = 4 * 4 * 8 * 512 * 512 * 64
    rate = 2048 * 2 * 1_300_500_000 * device.board.silicon.matmul_efficiency
    forward = np.median([seconds(device, lambda: op(q, k, v)) for _ in range(9)])
    assert forward == pytest.approx(flops / rate, rel=0.1)
    out = op(q, k, v)[0]
    backward = seconds(device, lambda: out.sum().backward())
    assert 2.0 < backward / forward < 3.2


def test_backward_and_optimizer_are_charged_too() -> None:
    device = emulated("orin-agx")
    model, x = network(), torch.empty(1024, 1024, device="meta")
    optimizer = torch.optim.AdamW(model.parameters())
    losses: list[torch.Tensor] = []
    forward = seconds(device, lambda: losses.append(model(x).sum()))
    backward = seconds(device, lambda: losses[0].backward())
    update = seconds(device, optimizer.step)
    assert 1.5 < backward / forward < 3.0
    assert update > 0


@pytest.mark.parametrize("name", BOARDS)
def test_replaying_a_captured_step_takes_what_the_step_takes(name: str) -> None:
    device = emulated(name, power_cap_w=1e4)
    step = training_step()
    load = device.load(step)
    direct = np.mean([seconds(device, step) for _ in range(8)])
    replayed = np.mean([seconds(device, load) for _ in range(8)])
    assert replayed == pytest.approx(direct, rel=0.015)


def test_capturing_takes_no_time_and_an_empty_load_is_refused() -> None:
    device = emulated("orin-agx")
    begin = device.now_s()
    device.load(training_step())
    assert device.now_s() == begin
    with pytest.raises(BadInput, match="nothing on meta tensors"):
        device.load(lambda: None)


@pytest.mark.parametrize("name", BOARDS)
def test_power_and_speed_grow_with_the_clock_below_the_cap(name: str) -> None:
    device = emulated(name, power_cap_w=1e4)
    load = device.load(training_step())
    clocks = device.board.clocks_hz[:: max(1, len(device.board.clocks_hz) // 6)]
    truths = [device.true_steady(hz, load) for hz in clocks]
    assert all(a.power_w < b.power_w and a.step_s > b.step_s for a, b in itertools.pairwise(truths))
    assert all(not t.capped and not t.throttled for t in truths)


def test_time_against_clock_is_no_line_in_one_over_f() -> None:
    device = emulated("orin-agx")
    load = device.load(training_step(rows=96, width=1024))  # neither compute nor memory rules alone
    clocks = np.array(device.board.clocks_hz)
    times = np.array([device.true_steady(hz, load).step_s for hz in clocks])
    design = np.stack([np.ones_like(clocks), 1 / clocks], axis=1)
    line = design @ np.linalg.lstsq(design, times, rcond=None)[0]
    assert np.max(np.abs(line / times - 1)) > 0.005


def test_power_against_clock_is_no_ridge_and_no_power_law() -> None:
    """Slope of log dynamic power against log clock: about 1 on the voltage floor, far above at the top."""
    physics = emulated("orin-agx")._physics
    f = np.array(physics.board.clocks_hz)
    watts = np.array([physics.power_w(hz, 1.0, 0.0, 50.0) - physics.power_w(hz, 0.0, 0.0, 50.0) for hz in f])
    slopes = np.diff(np.log(watts)) / np.diff(np.log(f))
    assert slopes[0] == pytest.approx(1.0, abs=0.35)
    assert slopes[-1] > 2.3
    assert len(np.unique(np.round(slopes, 1))) >= 4


def test_the_cap_holds_the_clock_below_what_was_asked_for_and_readings_say_so() -> None:
    device = emulated("rtx-a4000", power_cap_w=100.0)
    load = device.load(training_step())
    assert device.clocks is not None
    device.clocks.lock(1.56e9)
    while device.now_s() < 150.0:  # until it is warm
        load()
    with device.monitor(0.1) as readings:
        begin = device.now_s()
        while device.now_s() - begin < 5.0:
            load()
    assert all(r.capped and not r.throttled for r in readings)
    assert np.mean([r.power_w for r in readings]) == pytest.approx(100.0, rel=0.02)
    assert np.mean([r.frequency_hz for r in readings]) < 0.95 * 1.56e9
    truth = device.true_steady(1.56e9, load)
    assert truth.capped
    assert truth.power_w == pytest.approx(100.0, rel=0.02)
    assert truth.frequency_hz == pytest.approx(np.mean([r.frequency_hz for r in readings]), rel=0.02)


def test_a_hot_room_throttles() -> None:
    device = emulated("orin-agx", ambient_c=70.0)
    load = device.load(training_step())
    truth = device.true_steady(1_300_500_000, load)
    assert truth.throttled
    assert truth.frequency_hz < 1.25e9
    assert truth.temperature_c == pytest.approx(device.board.silicon.throttle_c, abs=4.0)


def test_a_warm_chip_draws_more_than_a_cold_one() -> None:
    device = emulated("orin-agx")
    load = device.load(training_step())
    assert device.clocks is not None
    device.clocks.lock(1_300_500_000)
    with device.monitor(1.0) as readings:
        while device.now_s() < 240.0:
            load()
    early = np.mean([r.power_w for r in readings[3:13]])
    late = np.mean([r.power_w for r in readings[-10:]])
    assert 1.01 < late / early < 1.15
    assert readings[-1].temperature_c > readings[3].temperature_c + 15


def test_a_lock_is_approximate_on_a_card_and_only_the_measured_clock_tells() -> None:
    card, jetson = emulated("rtx-4060ti"), emulated("orin-agx")
    off = []
    for device in (card, jetson):
        assert device.clocks is not None
        for hz in device.board.clocks_hz[::5]:
            device.clocks.lock(hz)
            off.append((device.name, hz - device.current_hz()))
    assert all(0 <= d <= 8.1e6 for _, d in off)
    assert any(d > 2e6 for name, d in off if "rtx" in name)
    assert all(d == 0 for name, d in off if "orin" in name)


def test_the_driver_boosts_an_unlocked_clock_and_rests_it() -> None:
    device = emulated("orin-agx")
    assert device.clocks is not None
    device.wait(1.0)
    assert device.current_hz() == device.board.clocks_hz[0]
    seconds(device, training_step())
    assert device.current_hz() == device.board.clocks_hz[-1]
    device.clocks.lock(612e6)
    seconds(device, training_step())
    assert device.current_hz() == 612e6
    device.clocks.reset()
    device.wait(0.1)
    assert device.current_hz() == device.board.clocks_hz[0]
    with pytest.raises(BadInput, match="supports 306 to"):
        device.clocks.lock(3e9)


def test_a_card_averages_over_a_second_and_a_jetson_does_not() -> None:
    def rise(name: str) -> float:
        """Seconds until the sensor shows 90 % of a sudden load."""
        device = emulated(name, power_cap_w=1e4)
        load = device.load(training_step(rows=64))
        device.wait(5.0)
        with device.monitor(0.1) as readings:
            begin = device.now_s()
            while device.now_s() - begin < 3.0:
                load()
        first, last = device.board.value("idle_w"), np.median([r.power_w for r in readings[-8:]])
        return next(r.time_s - begin for r in readings if r.power_w > first + 0.9 * (last - first))

    assert rise("orin-agx") < 0.35
    assert 0.6 < rise("rtx-4060ti") < 1.3


def test_sensors_count_in_steps_and_only_cards_count_energy() -> None:
    jetson, card, plain = emulated("xavier-agx"), emulated("rtx-4060ti"), emulated("rtx-4060ti", energy_counter=False)
    for device in (jetson, card, plain):
        load = device.load(training_step())
        with device.monitor(0.1) as readings:
            while device.now_s() < 6.0:
                load()
        joules = [r.energy_j for r in readings]
        if device is card:
            watts = (joules[-1] - joules[20]) / (readings[-1].time_s - readings[20].time_s)
            assert watts == pytest.approx(np.mean([r.power_w for r in readings[30:]]), rel=0.05)
            assert all(a <= b for a, b in itertools.pairwise(joules))
        else:
            assert joules == [None] * len(readings)
    step = jetson.board.silicon.sensor.step_w
    with jetson.monitor(0.1) as readings:
        jetson.wait(3.0)
    ratios = np.array([r.power_w for r in readings]) / step
    assert np.allclose(ratios, np.round(ratios))


def test_a_monitor_reads_once_a_period() -> None:
    device = emulated("orin-agx")
    with device.monitor(0.5) as readings:
        device.wait(10.0)
    assert len(readings) == 20
    assert np.allclose(np.diff([r.time_s for r in readings]), 0.5, atol=0.03)


def _trace(seed: int | None, watched: bool = True) -> list[object]:
    device = emulated("rtx-4060ti", **({} if seed is None else {"seed": seed}))
    step = training_step()
    load = device.load(step)
    times = [seconds(device, step) for _ in range(3)]
    if not watched:
        load()
        return [*times, device.now_s()]
    with device.monitor(0.1) as readings:
        load()
    return [*times, device.now_s(), *readings]


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _trace(1) == _trace(1)
    assert _trace(1) != _trace(2)
    assert _trace(None) == _trace(0)
    monkeypatch.setenv("CARD_EMULATION_SEED", "2")
    assert _trace(None) == _trace(2)
    for seed in ("two", "\u00b2"):
        monkeypatch.setenv("CARD_EMULATION_SEED", seed)
        with pytest.raises(BadInput, match="CARD_EMULATION_SEED"):
            _trace(None)


def test_watching_does_not_change_what_is_watched() -> None:
    assert _trace(3, watched=False) == _trace(3)[:4]


def test_kernels_differ_by_a_few_percent_from_call_to_call() -> None:
    device = emulated("orin-agx")
    a = torch.empty(512, 512, device="meta")
    spent = np.array([seconds(device, lambda: a @ a) for _ in range(200)])
    assert 0.02 < spent.std() / spent.mean() < 0.04


def test_idle_power_is_the_boards() -> None:
    for name in BOARDS:
        device = emulated(name)
        with device.monitor(0.1) as readings:
            device.wait(30.0)
        assert np.mean([r.power_w for r in readings]) == pytest.approx(device.board.value("idle_w"), rel=0.06)


def test_asking_for_the_truth_leaves_the_board_as_it_was() -> None:
    device = emulated("orin-agx")
    load = device.load(training_step())
    load()
    before = (device.now_s(), device.current_hz())
    device.true_steady(612e6)
    assert (device.now_s(), device.current_hz()) == before
    with pytest.raises(ValueError, match="no load"):
        emulated("orin-agx").true_steady(612e6)
