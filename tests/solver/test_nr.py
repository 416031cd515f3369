"""The tables of TS 38.214 say what they print, and the rule from SNR to CQI to MCS is the one that is stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.profile import BadInput
from solver import nr

TABLES = [nr.cqi_table(n) for n in (1, 2, 3)] + [nr.mcs_table(n) for n in (1, 2, 3)]


@pytest.mark.parametrize("table", TABLES, ids=[t.name for t in TABLES])
def test_every_row_prints_its_modulation_order_times_its_code_rate(table: nr.CodeTable) -> None:
    for order, rate, printed in zip(
        table.modulation_order, table.code_rate_x1024, table.printed_efficiency, strict=True
    ):
        assert abs(order * rate / 1024 - printed) <= 0.5e-4 * (1 + 1e-9)  # printed with four decimals


@pytest.mark.parametrize(
    ("table", "first", "last", "orders"),
    [
        (nr.cqi_table(1), (1, 2, 78, 0.1523), (15, 6, 948, 5.5547), {2: 6, 4: 3, 6: 6}),
        (nr.cqi_table(2), (1, 2, 78, 0.1523), (15, 8, 948, 7.4063), {2: 3, 4: 3, 6: 5, 8: 4}),
        (nr.cqi_table(3), (1, 2, 30, 0.0586), (15, 6, 772, 4.5234), {2: 8, 4: 3, 6: 4}),
        (nr.mcs_table(1), (0, 2, 120, 0.2344), (28, 6, 948, 5.5547), {2: 10, 4: 7, 6: 12}),
        (nr.mcs_table(2), (0, 2, 120, 0.2344), (27, 8, 948, 7.4063), {2: 5, 4: 6, 6: 9, 8: 8}),
        (nr.mcs_table(3), (0, 2, 30, 0.0586), (28, 6, 772, 4.5234), {2: 15, 4: 6, 6: 8}),
    ],
)
def test_tables_begin_and_end_where_the_standards_do(
    table: nr.CodeTable, first: tuple[float, ...], last: tuple[float, ...], orders: dict[int, int]
) -> None:
    rows = list(zip(table.index, table.modulation_order, table.code_rate_x1024, table.printed_efficiency, strict=True))
    assert rows[0] == first
    assert rows[-1] == last
    assert table.index.tolist() == list(range(int(first[0]), int(last[0]) + 1))
    assert {int(q): int((table.modulation_order == q).sum()) for q in np.unique(table.modulation_order)} == orders


def test_efficiency_rises_with_the_index_but_where_mcs_table_1_changes_to_64qam() -> None:
    for table in TABLES:
        falls = np.flatnonzero(np.diff(table.efficiency) <= 0)
        assert falls.tolist() == ([16] if table.name.endswith("5.1.3.1-1") else [])


@given(snr_db=st.floats(-30, 60), gap_db=st.floats(0, 10), number=st.sampled_from([1, 2, 3]))
def test_cqi_is_the_largest_efficiency_below_shannons_with_the_gap(snr_db: float, gap_db: float, number: int) -> None:
    snr, gap = 10 ** (snr_db / 10), 10 ** (gap_db / 10)
    shannon = math.log2(1 + snr / gap)
    table = nr.cqi_table(number)
    expected = max((int(i) for i, e in zip(table.index, table.efficiency, strict=True) if e <= shannon), default=0)
    if min(abs(table.efficiency - shannon)) > 1e-9:
        assert nr.cqi_of(snr, gap, number) == expected


def test_out_of_range_is_index_0_and_served_at_index_1() -> None:
    assert nr.cqi_of(np.array([0.0, 1e-9, 1e9]), 2.0).tolist() == [0, 0, 15]
    assert nr.efficiency_of([0, 1, 15]).tolist() == [2 * 78 / 1024, 2 * 78 / 1024, 6 * 948 / 1024]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_mcs_is_the_highest_that_does_not_exceed_the_cqi(number: int) -> None:
    cqi, mcs = nr.cqi_table(number), nr.mcs_table(number)
    for index, efficiency in zip(cqi.index, cqi.efficiency, strict=True):
        fitting = [int(i) for i, e in zip(mcs.index, mcs.efficiency, strict=True) if e <= efficiency]
        chosen = int(nr.mcs_of(index, number))
        assert chosen == max(fitting, default=0)
        if fitting:  # the same modulation and code rate stand in both tables
            assert mcs.efficiency[chosen] == efficiency
        else:
            assert (number, int(index)) in {(1, 1), (2, 1)}


@pytest.mark.parametrize(
    ("model", "distance_m", "carrier_hz", "loss_db"),
    [
        # by hand: d_3D = sqrt(100^2 + 23.5^2) = 102.7241 m, below the break at 560 m
        ("uma-los", 100, 3.5e9, 83.1382),
        ("uma-nlos", 100, 3.5e9, 103.0375),
        # d_3D = sqrt(100^2 + 8.5^2) = 100.3606 m: 32.4 + 21 log10 d + 20 log10 3.5; 22.4 + 35.3 log10 d + 21.3 log10 3.5
        ("umi-los", 100, 3.5e9, 85.3142),
        ("umi-nlos", 100, 3.5e9, 104.6438),
        # beyond the break at 210 m: 32.4 + 40 log10 1000.036 + 20 log10 3.5 - 9.5 log10(210^2 + 8.5^2)
        ("umi-los", 1000, 3.5e9, 119.1531),
    ],
)
def test_path_loss_is_that_of_tr_38_901(
    model: nr.PathLoss, distance_m: float, carrier_hz: float, loss_db: float
) -> None:
    assert nr.path_loss_db(model, distance_m, carrier_hz) == pytest.approx(loss_db, abs=2e-4)


@pytest.mark.parametrize("model", ["umi-los", "umi-nlos", "uma-los", "uma-nlos"])
def test_path_loss_grows_without_a_jump_and_out_of_sight_is_never_less(model: nr.PathLoss) -> None:
    losses = [nr.path_loss_db(model, d, 3.5e9) for d in np.linspace(10, 2000, 4000)]
    steps = np.diff(losses)
    assert np.all(steps > 0)
    assert np.all(steps < 1.5)
    assert nr.path_loss_db(model, 80, 3.5e9) >= nr.path_loss_db(model.replace("nlos", "los"), 80, 3.5e9)  # type: ignore[arg-type]


def test_beyond_the_models_range_there_is_an_error_that_names_it() -> None:
    for bad, message in ((("umi-los", 5, 3.5e9), "distance_m 5"), (("umi-los", 50, 1e8), "carrier_hz")):
        with pytest.raises(BadInput, match=message):
            nr.path_loss_db(*bad)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="table 7"):
        nr.cqi_table(7)
