"""The guesses that a forecast has to beat."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from oncofed_common.metrics.baselines import (
    CAPACITY_ML,
    LAWS,
    OUTLINE_ERROR,
    grown_ml,
    logistic,
    no_change_with_spread,
    rate_between,
    rate_per_day,
)

RIGHT_HAND_SIDES = {
    "logistic": lambda v, r: r * v * (1 - v / CAPACITY_ML),
    "gompertz": lambda v, r: r * v * np.log(CAPACITY_ML / v),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rate", [0.01, -0.004])
def test_each_law_solves_its_equation(law, rate):
    solved = solve_ivp(
        lambda _, v: RIGHT_HAND_SIDES[law](v, rate), (0, 120), [30.0], rtol=1e-9, atol=1e-9
    )
    assert LAWS[law](30.0, rate, 120.0) == pytest.approx(float(solved.y[0, -1]), rel=1e-6)


@given(
    law=st.sampled_from(sorted(LAWS)),
    rate=st.floats(-0.01, 0.03),
    volume=st.floats(1.0, 200.0),
    day=st.floats(1.0, 300.0),
    more=st.floats(1.0, 300.0),
)
def test_growing_twice_is_growing_once_for_longer(law, rate, volume, day, more):
    grow = LAWS[law]
    between = grow(volume, rate, day)
    assert 0 < between < CAPACITY_ML
    if 0.01 < between < 0.99 * CAPACITY_ML:
        assert grow(between, rate, more) == pytest.approx(grow(volume, rate, day + more), rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_exact_volumes_give_back_their_rate_as_far_as_they_outweigh_the_others(law):
    days = [0.0, 150.0, 320.0]
    volumes = [20.0, LAWS[law](20.0, 0.005, 150.0)]
    volumes.append(LAWS[law](volumes[-1], 0.005, 170.0))
    assert rate_per_day(law, days, volumes, usual=0.001, spread=1.0) == pytest.approx(
        0.005, rel=1e-2
    )
    bound = rate_per_day(law, days, volumes, usual=0.001, spread=1e-5)
    assert bound == pytest.approx(0.001, abs=1e-4)


@pytest.mark.parametrize("trust", [0.5, 1.0, 3.0])
def test_the_rate_is_the_mode_of_two_gaussians(trust):
    """Far below the capacity the log volume is linear in the rate, so the mode is a weighted mean."""
    days, seen, usual = 100.0, 0.006, 0.005
    volumes = [1e-3, logistic(1e-3, seen, days)]
    found = rate_per_day(
        "logistic", [0.0, days], volumes, usual=usual, spread=trust * OUTLINE_ERROR / days
    )
    weight = trust**2 / (1 + trust**2)
    assert found == pytest.approx(weight * seen + (1 - weight) * usual, rel=1e-3)


@given(
    law=st.sampled_from(sorted(LAWS)),
    rate=st.floats(-0.01, 0.02),
    volume=st.floats(1.0, 200.0),
    days=st.floats(10.0, 300.0),
)
def test_two_volumes_give_back_the_rate_between_them(law, rate, volume, days):
    after = LAWS[law](volume, rate, days)
    if 0.01 < after < 0.98 * CAPACITY_ML:
        assert rate_between(law, volume, after, days) == pytest.approx(rate, abs=1e-6)


def test_one_volume_says_nothing_of_its_rate():
    assert rate_per_day("logistic", [0.0], [20.0], usual=0.004, spread=0.01) == 0.004


def test_nothing_planned_beyond_the_capacity():
    assert grown_ml("logistic", 3 * CAPACITY_ML, 0.01, 100.0) <= CAPACITY_ML


def test_the_spread_is_that_of_the_others():
    samples = no_change_with_spread(10.0, [0.0, math.log(2.0), -math.log(2.0)])
    assert sorted(samples) == pytest.approx([5.0, 10.0, 20.0])
