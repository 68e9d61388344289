"""Scores against closed forms and an independent library."""

import numpy as np
import pytest
import scoringrules
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.metrics.overlap import dice
from oncofed_common.metrics.scores import MEASURABLE_ML, covered, crps, gaussian_scale, log_volume

NUMBERS = st.floats(-50, 50, allow_nan=False)


@given(samples=st.lists(NUMBERS, min_size=2, max_size=20), truth=NUMBERS)
def test_crps_agrees_with_an_independent_library(samples, truth):
    theirs = float(scoringrules.crps_ensemble(truth, np.array(samples), estimator="fair"))
    assert crps(np.array(samples), truth) == pytest.approx(theirs, abs=1e-9)


def test_crps_of_a_point_is_its_absolute_error():
    assert crps(np.array([2.5]), 4.0) == 1.5


def test_crps_of_many_normal_draws_is_that_of_the_normal():
    draws = np.random.default_rng(0).normal(size=20_000)
    exact = 2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi)
    assert crps(draws, 0.0) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("size", [2, 5])
def test_a_small_ensemble_scores_as_a_large_one_does_on_average(size):
    rng = np.random.default_rng(2)
    found = np.mean([crps(rng.normal(size=size), 0.7) for _ in range(20_000)])
    assert found == pytest.approx(crps(rng.normal(size=200_000), 0.7), abs=0.015)


def test_a_sharper_forecast_of_the_truth_scores_better():
    wide, narrow = (np.linspace(-width, width, 11) for width in (2.0, 0.5))
    assert crps(narrow, 0.1) < crps(wide, 0.1)
    assert crps(narrow, 5.0) > crps(wide, 5.0)


def test_a_ninety_percent_interval_covers_ninety_percent():
    rng = np.random.default_rng(1)
    hits = [covered(rng.normal(size=400), rng.normal(), level=0.9) for _ in range(600)]
    assert np.mean(hits) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize(("samples", "within"), [(19, 0.012), (32, 0.025)])
def test_so_does_one_between_few_samples(samples, within):
    """Each rank of the next among n + 1 is as likely as any other: exact where an edge is a sample."""
    rng = np.random.default_rng(5)
    hits = [covered(rng.normal(size=samples), rng.normal(), level=0.9) for _ in range(6000)]
    assert np.mean(hits) == pytest.approx(0.9, abs=within)


@given(
    values=st.lists(st.floats(0.01, 100), min_size=1, max_size=30),
    signs=st.integers(0, 2**30),
    by=st.floats(0.1, 10),
)
def test_the_scale_of_scaled_values_is_scaled_and_no_scale_scores_better(values, signs, by):
    many = np.array([v if signs >> n & 1 else -v for n, v in enumerate(values)])
    scale = gaussian_scale(many)
    assert gaussian_scale(by * many) == pytest.approx(by * scale)

    def score(sigma):
        return float(np.mean(scoringrules.crps_normal(many, 0.0, sigma)))

    assert all(score(scale) <= score(scale * other) + 1e-9 for other in (0.5, 0.9, 1.1, 2.0))


def test_the_scale_of_normal_values_is_theirs_and_hangs_little_on_the_largest():
    draws = np.random.default_rng(3).normal(scale=1.7, size=40_000)
    assert gaussian_scale(draws) == pytest.approx(1.7, rel=0.02)
    draws[0] = 1000.0
    assert gaussian_scale(draws) == pytest.approx(1.7, rel=0.02)
    assert draws.std() > 4


def test_dice_is_twice_the_overlap_over_the_sum():
    a, b = np.zeros((2, 4, 4, 4), dtype=bool)
    a[:2], b[1:] = True, True
    assert dice(a, b) == pytest.approx(2 * 16 / (32 + 48))
    assert dice(a, a) == 1.0
    assert dice(a, ~a) == 0.0
    assert dice(np.zeros((2, 2, 2), dtype=bool), np.zeros((2, 2, 2), dtype=bool)) == 1.0


def test_a_vanished_tumour_counts_as_the_smallest_that_can_be_measured():
    smallest_ml = 4 / 3 * np.pi * 0.5**3
    assert smallest_ml == pytest.approx(MEASURABLE_ML, rel=0.05)
    assert log_volume(np.array([0.0, 0.3])).tolist() == [np.log(MEASURABLE_ML)] * 2
    assert log_volume(np.array([8.0])).tolist() == [np.log(8.0)]
