"""What a mixture of Student's t says of a new measurement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtr

from profiler.power.mixture import ATOMS, atoms, interval


def test_the_interval_of_one_student_t_is_the_one_of_the_tables() -> None:
    low, high = interval(np.full((1, 1), 100.0), np.full((1, 1), 2.0), np.array([10.0]))
    # t of 10 degrees of freedom, 97.5 %: 2.228.
    assert low[0] == pytest.approx(100 - 2 * 2.228, abs=0.01)
    assert high[0] == pytest.approx(100 + 2 * 2.228, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 96), st.floats(1, 40), st.floats(0.01, 5), st.floats(-0.5, 1))
def test_an_interval_leaves_two_and_a_half_percent_on_either_side(
    seed: int, parts: int, freedom: float, apart: float, wide: float
) -> None:
    rng = np.random.default_rng(seed)
    watts = 50 + rng.normal(0, 1, (parts, 7)) + rng.exponential(apart, (parts, 7))
    width = 10.0 ** rng.normal(wide, 0.3, (parts, 7))
    low, high = interval(watts, width, np.full(7, freedom))
    for edge, share in ((low, 0.025), (high, 0.975)):
        assert stdtr(freedom, (edge - watts) / width).mean(axis=0) == pytest.approx(np.full(7, share), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=300).filter(lambda weights: sum(weights) > 0))
def test_a_part_is_drawn_as_often_as_its_weight_says(weights: list[float]) -> None:
    share = np.array(weights) / sum(weights)
    drawn = np.bincount(atoms(share[:, None])[:, 0], minlength=len(share))
    assert (np.abs(drawn - share * ATOMS) <= 1 + 1e-9).all()
