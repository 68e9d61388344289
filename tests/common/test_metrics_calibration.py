"""What happens, against what was said; and how probabilities and outlines are placed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oncofed_common.metrics.calibration import reliability, together
from oncofed_common.metrics.overlap import average_precision, surface_distance_95_mm


def test_probabilities_that_hold_have_no_error_and_others_have_theirs():
    rng = np.random.default_rng(4)
    stated = rng.random(200_000)
    happened = rng.random(200_000) < stated
    assert reliability(stated, happened).error < 0.01
    assert reliability(np.full(1000, 0.9), np.arange(1000) < 500).error == pytest.approx(0.4)
    assert reliability(np.ones(10), np.zeros(10, dtype=bool)).error == 1.0
    assert reliability(np.zeros(0), np.zeros(0, dtype=bool)).error == 0.0


@given(
    stated=hnp.arrays(np.float64, 60, elements=st.floats(0, 1)),
    happened=hnp.arrays(np.bool_, 60),
    cut=st.integers(0, 60),
)
def test_patients_add_up_in_any_order(stated, happened, cut):
    whole = reliability(stated, happened)
    parts = [
        reliability(stated[cut:], happened[cut:]),
        reliability(stated[:cut], happened[:cut]),
    ]
    assert together(parts).error == pytest.approx(whole.error)
    assert 0 <= whole.error <= 1


def test_average_precision_of_perfect_useless_and_reversed_scores():
    truth = np.arange(100) < 25
    assert average_precision(1.0 - np.arange(100) / 100, truth) == 1.0
    assert average_precision(np.zeros(100), truth) == pytest.approx(0.25)
    reversed_ = average_precision(np.arange(100) / 100, truth)
    assert reversed_ == pytest.approx(np.mean([n / (75 + n) for n in range(1, 26)]))
    assert average_precision(np.zeros(100), np.zeros(100, dtype=bool)) is None


@given(scores=hnp.arrays(np.float64, 30, elements=st.floats(0, 1)), seed=st.integers(0, 99))
def test_average_precision_does_not_depend_on_the_order_of_voxels(scores, seed):
    rng = np.random.default_rng(seed)
    truth, order = rng.random(30) < 0.4, rng.permutation(30)
    if truth.any():
        found = average_precision(scores, truth)
        assert average_precision(scores[order], truth[order]) == pytest.approx(found)


def test_two_spheres_are_as_far_apart_as_their_radii_and_an_empty_one_nowhere():
    axis = np.arange(32) - 15.5
    r = np.sqrt(sum(np.meshgrid(axis**2, axis**2, axis**2, indexing="ij", sparse=True)))
    small, large, empty = r < 6, r < 10, np.zeros(r.shape, dtype=bool)
    assert surface_distance_95_mm(small, large, spacing_mm=3.0) == pytest.approx(12.0, abs=3.0)
    assert surface_distance_95_mm(small, small, spacing_mm=3.0) == 0.0
    assert surface_distance_95_mm(empty, empty, spacing_mm=3.0) == 0.0
    assert surface_distance_95_mm(empty, small, spacing_mm=3.0) is None
