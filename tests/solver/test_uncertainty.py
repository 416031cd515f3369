"""How sure a decision is: probabilities that can be worked out by hand, robust choices against brute force, worlds against the intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from profiler.profile import BadInput, PowerPrediction, Profile, Stat, TimeFit, TimeInterval, TimeLaw
from profiler.profile import SegmentTimeFit as FitRow
from solver.problem import Problem, SolveOptions, pose
from solver.uncertainty.certainty import Certainty, how_sure, share
from solver.uncertainty.worlds import SOURCES, Variation, Worlds
from tests.solver.test_scenario import fleet, letterlike, measured_continuous
from tests.synthetic import make_profile

NORMAL = NormalDist()
Z = 1.959963984540054


def with_times(profile: Profile, change: Callable[[int, str, Stat], Stat]) -> Profile:
    """Every time by ``change(segment index, direction, stat)``."""
    timings = []
    for timing in profile.timings:
        rows = [
            row.model_copy(update={d: change(i, d, getattr(row, d)) for d in ("forward", "backward", "optimizer")})
            for i, row in enumerate(timing.segments)
        ]
        timings.append(timing.model_copy(update={"segments": rows}))
    return profile.model_copy(update={"timings": timings})


def exact_times(profile: Profile) -> Profile:
    return with_times(profile, lambda _i, _d, stat: stat.model_copy(update={"iqr_s": 0.0}))


def exact_power(profile: Profile) -> Profile:
    fit = profile.power_fit
    if fit is None:
        return profile
    rows = [r.model_copy(update={"low_w": r.power_w, "high_w": r.power_w}) for r in fit.predictions]
    return profile.model_copy(update={"power_fit": fit.model_copy(update={"predictions": rows})})


def posed(profiles: list[Profile], **options: Any) -> Problem:
    return pose(profiles, SolveOptions(**options))


def binomial(p: float, n: int) -> float:
    """Four standard deviations of a share of n draws."""
    return 4 * math.sqrt(max(p * (1 - p), 1e-4) / n)


# ------------------------------------------------------------------------------------------------------ nothing to doubt


@pytest.mark.parametrize("make", [fleet, letterlike, measured_continuous])
@pytest.mark.parametrize("goal", [{"w": 0.1}, {"w": 0.5}, {"w": 1.0}, {"price_j_per_s": 3.0}])
def test_figures_without_any_interval_leave_no_doubt(make: Any, goal: dict[str, float]) -> None:
    profiles = [exact_power(exact_times(p)) for p in make()]
    sure = how_sure(posed(profiles, rounds=2, **goal), Variation(draws=7))
    assert sure.both_stay.all()
    assert sure.cut_stays.all()
    assert sure.same_decided.all()
    assert (sure.best_cut == sure.solution.decisions.cut).all()
    assert (sure.best_hz == sure.solution.decisions.frequency_hz).all()
    assert not sure.regret.any()
    for pick in (sure.least_worst, sure.least_mean):
        assert (pick.cut == sure.solution.decisions.cut).all()
        assert (pick.frequency_hz == sure.solution.decisions.frequency_hz).all()
        assert not pick.worst.any()
    assert {d.half_width_pct for d in sure.doubts} == {None}
    for row in sure.as_json()["decisions"]:
        assert row["cut_stays_best"]["share"] == row["cut_and_clock_stay_best"]["share"] == 1.0


def test_what_has_no_interval_is_said_to_be_taken_as_exact_unless_the_user_gives_one() -> None:
    profiles = [exact_power(exact_times(p)) for p in fleet()]
    for doubt in Worlds(posed(profiles), Variation()).doubts[:-1]:
        assert doubt.basis == "no interval: taken as exact"
    told = Worlds(posed(profiles), Variation(without_interval_pct=10)).doubts
    assert [d.half_width_pct for d in told[:-1]] == [pytest.approx(10)] * 4
    assert all("10 % is assumed" in d.basis for d in told[:-1])
    assert not how_sure(posed(profiles, w=0.5), Variation(draws=50, without_interval_pct=40)).both_stay.all()


# ------------------------------------------------------------------------------------------- probabilities by hand


def two_cuts(sd: float, device_layer_s: float) -> list[Profile]:
    """Cuts 1 and 2 only, at one server clock: layer 2 takes ``device_layer_s`` on the device, known to ``sd`` (relative)."""
    server = exact_power(exact_times(make_profile("srv", "server", layers=3)))

    def change(i: int, direction: str, stat: Stat) -> Stat:
        if i != 2:  # layer 2; its backward pass and its optimizer take no time
            return stat.model_copy(update={"iqr_s": 0.0})
        if direction != "forward":
            return Stat(median_s=0.0, samples=9)
        # The median's standard deviation is 1.2533 iqr / (1.349 sqrt(n)); sd is of the logarithm, by way of the 95 % half width.
        half_width = math.expm1(Z * sd)
        iqr = device_layer_s * half_width / Z * 1.349 * math.sqrt(9) / 1.2533
        return Stat(median_s=device_layer_s, iqr_s=iqr, samples=9)

    return [server, with_times(make_profile("dev", layers=3), change)]


@pytest.mark.parametrize("layer_errors", ["alike", "apart"])
@pytest.mark.parametrize("gap", [-0.03, 0.08])
def test_between_two_cuts_the_probability_is_the_normal_distributions(gap: float, layer_errors: Any) -> None:
    """At w = 1 only delay counts, at F_max: cut 2 is better if layer 2 takes the device less than server and adapters together."""
    sd, epochs, rate = 0.05, 5, 50.0
    at_2_ghz = 0.001 + 0.01 / 2 + 0.002 + 0.02 / 2 + 1e-4  # a layer on the server
    adapters = 2 * 8 * 1000 / (rate * 1e6)  # of one more layer, up and down
    even = at_2_ghz - adapters / epochs
    profiles = two_cuts(sd, even * math.exp(gap))
    draws = 600
    sure = how_sure(
        posed(profiles, w=1.0, uplink_mbps=rate, downlink_mbps=rate), Variation(draws=draws, layer_errors=layer_errors)
    )
    assert sure.solution.decisions.cut.tolist() == [2 if gap < 0 else 1]
    expected = NORMAL.cdf(abs(gap) / sd)
    assert sure.cut_stays.mean() == pytest.approx(expected, abs=binomial(expected, draws))
    # The mean of what it costs where it is wrong, in seconds of a round: of a lognormal beyond a bound.
    device_s, d = even * math.exp(gap), -gap / sd
    sign = 1 if gap > 0 else -1
    mean = sign * (even * NORMAL.cdf(sign * d) - device_s * math.exp(sd * sd / 2) * NORMAL.cdf(sign * (d - sd)))
    scatter = float(sure.delay_more_s.std()) / math.sqrt(draws)
    assert sure.delay_more_s.mean() == pytest.approx(epochs * mean, abs=4 * scatter)
    lost = ~sure.cut_stays
    assert (sure.delay_more_s[lost] > 0).all()
    assert (sure.delay_more_s[~lost] == 0).all()


def test_a_rate_that_varies_flips_a_cut_as_often_as_its_lognormal_says() -> None:
    """Only the adapters of one more layer stand against a faster device: cut 2 is better above a certain uplink rate."""
    device_s, server_s, epochs = 0.014, 0.0181, 5
    tipping_bps = 8 * 1000 / (epochs * (server_s - device_s))  # the downlink is free
    profiles = two_cuts(1e-9, device_s)
    draws, variation_pct = 600, 20.0
    for above in (0.85, 1.3):
        problem = posed(profiles, w=1.0, uplink_mbps=above * tipping_bps / 1e6, downlink_mbps=1e6)
        sure = how_sure(problem, Variation(draws, variation_pct, only=("rates",)))
        assert sure.solution.decisions.cut.tolist() == [2 if above > 1 else 1]
        expected = NORMAL.cdf(abs(math.log(above)) / 0.2)
        assert sure.cut_stays.mean() == pytest.approx(expected, abs=binomial(expected, draws))


def test_a_power_curve_that_varies_flips_a_clock_as_often_as_its_interval_says() -> None:
    """At w = 0 only energy counts. Of two clocks the watts of the upper one are uncertain."""
    server, device, _ = (exact_times(p) for p in fleet())
    low_s, high_s = (0.003 + 0.03 / ghz + 1e-4 for ghz in (1.0, 2.0))
    assert server.power_fit is not None
    # Cut 3 leaves layer 4 and the head, twice a layer but for the optimizer step, to the server.
    low_j, high_s_total = 30.0 * (3 * low_s - 1e-4), 3 * high_s - 1e-4
    for gap, sd in ((-0.05, 0.04), (0.02, 0.04)):
        watts = low_j / high_s_total * math.exp(gap)
        rows = [
            PowerPrediction(frequency_hz=1e9, power_w=30.0, low_w=30.0, high_w=30.0),
            PowerPrediction(
                frequency_hz=2e9, power_w=watts, low_w=watts * math.exp(-Z * sd), high_w=watts * math.exp(Z * sd)
            ),
        ]
        assert server.hardware.clocks is not None
        clocks = server.hardware.clocks.model_copy(update={"supported_hz": [1e9, 2e9], "min_hz": 1e9})
        changed = server.model_copy(
            update={
                "power_fit": server.power_fit.model_copy(update={"predictions": rows}),
                "hardware": server.hardware.model_copy(update={"clocks": clocks}),
            }
        )
        draws = 600
        sure = how_sure(posed([changed, device], w=0.0), Variation(draws=draws, common_share=0.7))
        assert sure.solution.decisions.frequency_hz.tolist() == [2e9 if gap < 0 else 1e9]
        expected = NORMAL.cdf(abs(gap) / sd)
        assert sure.both_stay.mean() == pytest.approx(expected, abs=binomial(expected, draws))
        assert sure.cut_stays.all()


# ----------------------------------------------------------------------------------------------- worlds and intervals


def fitted(profile: Profile, layer_pct: float, step_pct: float) -> Profile:
    """With a fit of the times through the timings, and these half widths for each segment's passes and for the step."""
    timings = profile.timings
    if len(timings) == 1:  # a device: one clock more, twice as slow at half of it
        first = timings[0]
        rows = with_times(profile, lambda _i, _d, s: s.model_copy(update={"median_s": 2 * s.median_s})).timings[0]
        timings = [rows.model_copy(update={"frequency_hz": 0.5e9}), first]
    hz = [t.frequency_hz or 0.0 for t in timings]

    def law(i: int, direction: str) -> TimeLaw:
        times = [getattr(t.segments[i], direction).median_s for t in timings]
        return TimeLaw(a_s=0.0, b_cycles=times[-1] * hz[-1], curve_s=times)

    rows_of = [
        FitRow(forward=law(i, "forward"), backward=law(i, "backward"), optimizer=law(i, "optimizer"))
        for i in range(len(profile.segments))
    ]
    total = [sum(getattr(row, d).curve_s[k] for row in rows_of for d in ("forward", "backward", "optimizer")) for k in range(len(hz))]  # fmt: skip
    kinds: list[Any] = ["embedding", "layer", "head"]
    directions: list[Any] = ["forward", "backward", "optimizer"]
    intervals = [
        TimeInterval(kind=kind, direction=d, half_width_pct=[layer_pct] * len(hz)) for kind in kinds for d in directions
    ]
    intervals.append(TimeInterval(kind="step", direction="step", half_width_pct=[step_pct] * len(hz)))
    fit = TimeFit(
        provenance="fitted",
        basis="measured",
        clocks_hz=hz,
        segments=rows_of,
        step=TimeLaw(a_s=0.0, b_cycles=0.0, curve_s=total),
        interval_hz=hz,
        intervals=intervals,
    )
    return profile.model_copy(update={"timings": timings, "time_fit": fit})


def spread_of(profiles: list[Profile], variation: Variation, draws: int = 1500) -> tuple[float, float]:
    """Standard deviations of the logarithm: of the device's first two segments together less the first, and of its whole step."""
    problem = posed(profiles)
    worlds = Worlds(problem, variation)
    tables = [worlds.draw(d).tables for d in range(draws)]
    seconds = np.array([t.device_compute_s[0] for t in tables if t is not None])
    layer = seconds[:, 1] - seconds[:, 0]  # layer 2 alone
    letters = np.array([worlds.draw(d).letter.device_compute_s[0, -1] for d in range(draws)])
    return float(np.log(layer).std()), float(np.log(letters).std())


@pytest.mark.parametrize(("layer_pct", "step_pct"), [(5.0, 4.0), (6.0, 3.2)])
def test_drawn_layers_and_drawn_steps_scatter_as_the_profiles_two_intervals_say(
    layer_pct: float, step_pct: float
) -> None:
    profiles = [fitted(p, layer_pct, step_pct) for p in fleet()[:2]]
    layer, step = spread_of(profiles, Variation())
    assert layer == pytest.approx(math.log1p(layer_pct / 100) / Z, rel=0.08)
    assert step == pytest.approx(math.log1p(step_pct / 100) / Z, rel=0.08)


def test_layers_that_err_alike_move_the_step_most_and_layers_that_err_apart_least() -> None:
    profiles = [fitted(p, 6.0, 4.0) for p in fleet()[:2]]
    steps = {how: spread_of(profiles, Variation(layer_errors=how), 400)[1] for how in ("alike", "as-measured", "apart")}  # type: ignore[arg-type]
    assert steps["apart"] < steps["as-measured"] < steps["alike"]
    assert steps["alike"] == pytest.approx(math.log1p(0.06) / Z, rel=0.12)


def test_a_machine_as_a_whole_varies_as_asked_beside_its_interval() -> None:
    profiles = [exact_times(p) for p in fleet()[:2]]
    layer, step = spread_of(profiles, Variation(machine_variation_pct=8.0))
    assert layer == pytest.approx(step) == pytest.approx(math.log1p(0.08) / Z, rel=0.08)


def test_drawn_watts_lie_within_the_prediction_interval_in_95_percent_of_the_worlds_at_every_clock() -> None:
    profiles = fleet()
    problem = posed(profiles)
    worlds = Worlds(problem, Variation(only=("power",)))
    assert profiles[0].power_fit is not None
    rows = profiles[0].power_fit.predictions
    hz = np.array([r.frequency_hz for r in rows])
    drawn = []
    for d in range(1500):
        tables = worlds.draw(d).tables
        assert tables is not None
        assert tables.server_power is not None
        drawn.append(tables.server_power.at(hz))
    watts = np.array(drawn)
    inside = (watts >= [r.low_w for r in rows]) & (watts <= [r.high_w for r in rows])
    assert inside.mean(0) == pytest.approx(0.95, abs=binomial(0.95, 1500))
    near, far = (np.corrcoef(np.log(watts[:, 0]), np.log(watts[:, k]))[0, 1] for k in (1, -1))
    assert 0.4 < far < near < 0.95  # half of the variance in common, the rest fading with the distance


def test_the_servers_drawn_times_stay_in_their_interval_and_change_smoothly_over_the_clock() -> None:
    problem = posed([fitted(p, 6.0, 5.0) for p in fleet()])
    worlds = Worlds(problem, Variation(only=("server-times",), layer_errors="alike"))
    hz = np.linspace(0.5e9, 2e9, 40)
    nominal = problem.decider.server_s(hz)
    ratios = np.array([worlds.draw(d).decider.server_s(hz)[0] / nominal[0] for d in range(1000)])
    assert np.log(ratios).std(0) == pytest.approx(math.log1p(0.06) / Z, rel=0.12)
    assert np.abs(np.diff(ratios, axis=1)).max() < 0.03  # of steps 2.5 % of the range apart


def test_leaving_a_source_out_does_not_change_what_the_others_draw() -> None:
    problem = posed(fleet())
    everything = Worlds(problem, Variation(rate_variation_pct=10)).draw(3)
    for source in SOURCES:
        one = Worlds(problem, Variation(rate_variation_pct=10, only=(source,))).draw(3)
        assert one.tables is not None
        assert everything.tables is not None
        same = {
            "device-times": np.array_equal(one.tables.device_compute_s, everything.tables.device_compute_s),
            "server-times": np.array_equal(one.tables.server_time.b_cycles, everything.tables.server_time.b_cycles),
            "power": one.tables.server_power is not None
            and everything.tables.server_power is not None
            and np.array_equal(one.tables.server_power.p_w, everything.tables.server_power.p_w),
            "rates": np.array_equal(one.rates.uplink_bps, everything.rates.uplink_bps),
        }
        assert {name for name, equal in same.items() if equal} == {source}


def test_a_seed_gives_the_same_worlds_again_and_more_draws_begin_with_the_same_ones() -> None:
    profiles = letterlike()  # any clock will do, so it follows every little change

    def sure_of(seed: int, draws: int) -> Certainty:
        return how_sure(posed(profiles, w=0.4, seed=seed), Variation(draws, 5, without_interval_pct=10))

    one, more = (sure_of(5, d) for d in (20, 30))
    assert np.array_equal(one.best_hz, more.best_hz[:20])
    assert np.array_equal(one.regret, more.regret[:20])
    again = sure_of(5, 20)
    assert again.as_json() == one.as_json()
    assert not np.array_equal(sure_of(6, 20).best_hz, one.best_hz)


def test_a_wrong_xi_changes_no_decision_of_algorithm_1_in_the_letters_model() -> None:
    profiles = letterlike()
    assert profiles[0].power_fit is not None
    fit = profiles[0].power_fit.model_copy(update={"predictions": [], "xi_ci95": (0.3e-26, 6e-26)})
    profiles[0] = profiles[0].model_copy(update={"power_fit": fit})
    sure = how_sure(posed(profiles, method="card", w=0.3), Variation(draws=40))
    assert sure.same_decided.all()
    assert sure.both_stay.all()
    worlds = Worlds(posed(profiles, method="card"), Variation())
    powers = [worlds.draw(d).letter.server_power for d in range(40)]
    assert np.std([np.log(p.r_w_per_hz3[0]) for p in powers if p is not None]) > 0.4


# ------------------------------------------------------------------------------------------------------------- robust


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("goal", [{"w": 0.3}, {"price_j_per_s": 20.0}])
def test_robust_choices_are_those_of_brute_force_over_worlds_cuts_and_clocks(seed: int, goal: dict[str, float]) -> None:
    problem = posed(fleet(), seed=seed, **goal)
    draws = 12
    variation = Variation(draws=draws, without_interval_pct=20, rate_variation_pct=30, machine_variation_pct=20)
    sure = how_sure(problem, variation)
    worlds = Worlds(problem, variation)
    clocks = problem.clocks.supported_hz.tolist()
    for n in range(len(problem.places)):
        m = int(problem.places.device[n])
        tables: list[dict[tuple[int, float], float]] = []
        for d in range(draws):
            world = worlds.draw(d)
            at = {}
            for c in range(world.evaluated.cuts):
                for hz in world.clocks.points_hz.tolist():
                    up, down = world.places.uplink_bps[n], world.places.downlink_bps[n]
                    costs = world.evaluated.at(m, up, down, c, hz)
                    assert costs.energy_j is not None
                    at[c + 1, hz] = (float(costs.delay_s), float(costs.energy_j))
            if "w" in goal:
                # f* is a row of the box, too; it can only widen it, which moves all costs of the world in proportion.
                delays, energies = zip(*at.values(), strict=True)
                span_s, span_j = max(delays) - min(delays), max(energies) - min(energies)
                cost = {k: 0.3 * x / span_s + 0.7 * y / span_j for k, (x, y) in at.items()}
            else:
                cost = {k: 20.0 * x + y for k, (x, y) in at.items()}
            tables.append({k: v for k, v in cost.items() if k[1] in clocks})
        best = [min(t, key=lambda k: t[k]) for t in tables]
        assert best == list(zip(sure.best_cut[:, n].tolist(), sure.best_hz[:, n].tolist(), strict=True))
        ours = (int(sure.solution.decisions.cut[n]), float(sure.solution.decisions.frequency_hz[n]))
        regrets = {k: [t[k] - min(t.values()) for t in tables] for k in {ours, *best}}
        worst = {k: max(of) for k, of in regrets.items()}
        mean = {k: sum(of) / draws for k, of in regrets.items()}
        assert sure.least_worst.worst[n] == pytest.approx(min(worst.values()), rel=1e-6)
        assert sure.least_mean.mean[n] == pytest.approx(min(mean.values()), rel=1e-6)
        chosen = (int(sure.least_worst.cut[n]), float(sure.least_worst.frequency_hz[n]))
        assert worst[chosen] == pytest.approx(min(worst.values()), rel=1e-6)
        assert sure.nominal.worst[n] == pytest.approx(worst[ours], rel=1e-6)
        assert sure.nominal.mean[n] == pytest.approx(mean[ours], rel=1e-6)
        assert sure.regret[:, n] == pytest.approx(regrets[ours], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("make", [fleet, letterlike, measured_continuous])
def test_no_choice_has_less_worst_loss_than_the_robust_one_nor_less_mean_loss_than_the_other(make: Any) -> None:
    problem = posed(make(), w=0.4, rounds=3, channel="poor")
    sure = how_sure(problem, Variation(draws=25, without_interval_pct=15, rate_variation_pct=20))
    assert (sure.regret >= 0).all()
    assert (sure.least_worst.worst <= sure.least_mean.worst + 1e-12).all()
    assert (sure.least_worst.worst <= sure.nominal.worst + 1e-12).all()
    assert (sure.least_mean.mean <= sure.nominal.mean + 1e-12).all()
    assert (sure.least_mean.mean <= sure.least_worst.mean + 1e-12).all()
    assert (sure.both_stay <= sure.cut_stays).all()
    assert problem.feasible[problem.places.device, sure.least_worst.cut - 1].all()


def test_a_deadline_that_is_broken_in_some_worlds_is_counted_and_the_robust_choice_breaks_it_less() -> None:
    server, device, _ = fleet()
    nominal = posed([server, device], w=1.0)
    least_s = float(how_sure(nominal, Variation(draws=1, only=("rates",))).solution.decisions.costs.delay_s[0])
    sure = how_sure(posed([server, device], max_delay_s=1.2 * least_s), Variation(draws=100, machine_variation_pct=10))
    row = sure.as_json()["decisions"][0]
    assert 0 < row["decision"]["limit_broken_worlds"] < 100
    assert row["least_worst_regret"]["limit_broken_worlds"] < row["decision"]["limit_broken_worlds"]
    assert not (sure.both_stay & sure.broken).any()


# ------------------------------------------------------------------------------------------------------------ people


def test_a_share_of_draws_bears_wilsons_interval() -> None:
    found = share(np.arange(100) < 97)
    assert (found["worlds"], found["share"]) == (97, 0.97)
    assert found["low"] == pytest.approx(0.9155, abs=5e-4)
    assert found["high"] == pytest.approx(0.9897, abs=5e-4)
    assert share(np.ones(50, dtype=bool))["high"] == 1.0


@pytest.mark.parametrize(
    ("variation", "named"),
    [
        (Variation(draws=0), "--draws 0"),
        (Variation(rate_variation_pct=-1), "--rate-variation -1"),
        (Variation(without_interval_pct=101), "--without-interval 101"),
        (Variation(machine_variation_pct=float("nan")), "--machine-variation nan"),
        (Variation(only=("weather",)), "--only weather"),
        (Variation(layer_errors="other"), "--layer-errors other"),  # type: ignore[arg-type]
        (Variation(common_share=1.5), "--common-share 1.5"),
        (Variation(draws=100_000), "--draws 100000"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_options_name(variation: Variation, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        how_sure(posed(fleet(), rounds=100), variation)


def test_the_report_says_in_words_how_often_the_cut_stays_best_and_the_json_says_the_same(tmp_path: Path) -> None:
    from rich.console import Console

    from solver.uncertainty.report import print_certainty, write_plot

    sure = how_sure(posed(fleet(), w=0.4), Variation(draws=60, machine_variation_pct=30))
    console = Console(record=True, width=2000, file=(tmp_path / "out").open("w"))
    print_certainty(sure, console)
    text = console.export_text()
    answer = json.loads(json.dumps(sure.as_json(), allow_nan=False))
    assert answer["worlds"] == 60
    for row in answer["decisions"]:
        counted = row["cut_stays_best"]["worlds"]
        assert f"{row['device']}: cut {row['cut']} stays best in {counted} of 60 worlds" in text
        assert sum(c["worlds"] for c in row["best_cuts"]) == 60
        assert row["regret_mean"] <= row["regret_worst"]
    assert "95 % prediction interval of the power fit" in text
    pytest.importorskip("matplotlib")
    assert write_plot(sure, tmp_path).read_bytes().startswith(b"\x89PNG")
