"""A figure shown to people keeps its size: only its prefix changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.units import counted, data_size, quantity

FACTORS = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}


@pytest.mark.parametrize(
    ("value", "unit", "digits", "text"),
    [
        (2.46e9, "Hz", 3, "2.46 GHz"),
        (999.96e6, "Hz", 3, "1 GHz"),
        (1300.5e6, "Hz", 4, "1.3 GHz"),
        (0.0123456, "s", 4, "12.35 ms"),
        (4.2e-6, "s", 3, "4.2 µs"),
        (4321.4, "s", 3, "4321 s"),
        (4321.4, "J", 3, "4.32 kJ"),
        (0.0, "F", 3, "0 F"),
        (-1500.0, "W", 3, "-1.5 kW"),
    ],
)
def test_a_figure_bears_the_prefix_that_people_would_use(value: float, unit: str, digits: int, text: str) -> None:
    assert quantity(value, unit, digits) == text


@given(value=st.floats(1e-9, 1e17), digits=st.integers(3, 6))
def test_what_is_read_back_is_the_figure_to_its_digits(value: float, digits: int) -> None:
    number, unit = quantity(value, "J", digits).split(" ")
    assert float(number) * FACTORS[unit.removesuffix("J")] == pytest.approx(value, rel=0.6 * 10.0 ** (1 - digits))
    assert 1 <= float(number) < 1000


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (4096, "4.1 kB"), (999_960, "1.0 MB"), (2.5e8, "250.0 MB"), (85.9e9, "85.90 GB")],
)
def test_bytes_are_decimal(count: float, text: str) -> None:
    assert data_size(count) == text


def test_one_is_no_plural() -> None:
    assert [counted(count, "clock") for count in (0, 1, 2)] == ["0 clocks", "1 clock", "2 clocks"]
