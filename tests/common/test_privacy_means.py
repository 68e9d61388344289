"""Private means: right without noise, bounded for every patient, and noised like an update."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from growing_tumour import growing_tumour
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_common.cohort import Treatment
from oncofed_common.groups import GROUPS, groups_of
from oncofed_common.privacy import noised_sum as sums
from oncofed_common.privacy.private_means import mean_mechanism, private_means
from oncofed_common.privacy.stream import Stream
from oncofed_common.study_terms import OutboundTerms

SEED = b"private means, a seed of tests.."
ASKED = ("all", "small", "large")
BOUND = 2.0
MECHANISM = mean_mechanism(
    bound=BOUND, noise_multiplier=1.5, groups=3, declared_patients=40, held_out_fraction=0.25
)


def means(losses, groups, *, stream=None):
    return private_means(
        losses,
        groups,
        asked=ASKED,
        bound=BOUND,
        mechanism=MECHANISM,
        stream=stream or Stream.from_seed(SEED),
    )


@pytest.fixture
def quiet(monkeypatch):
    """No noise, to see the sum under it."""
    monkeypatch.setattr(
        sums, "discrete_gaussian", lambda stream, *, count: np.zeros(count, dtype=np.int64)
    )


def test_under_the_noise_is_the_bounded_sum_over_the_public_number(quiet):
    """Ten are held out by what is stated, whoever there is."""
    groups = [{"all", "small"}, {"all", "large"}, {"all", "large"}, {"all", "small"}]
    found = means([0.5, 1.0, 9.0, float("nan")], groups)
    np.testing.assert_allclose(found, [3.5 / 10, 0.5 / 10, 3.0 / 10], atol=1e-3)


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=5),
    data=st.data(),
)
def test_nobody_moves_the_sum_by_more_than_the_sensitivity(losses, data):
    """Whatever the loss, and in however many groups: at most bound x root of the groups."""
    groups = [data.draw(st.sets(st.sampled_from(ASKED))) for _ in losses]
    whole = means(losses, groups)
    without = means(losses[:-1], groups[:-1])  # the same seed, the same noise
    moved = np.linalg.norm(whole - without) * MECHANISM.declared_patients
    assert moved <= BOUND * math.sqrt(len(ASKED)) * (1 + 1e-9)


def test_the_noise_is_that_of_the_mechanism():
    """Two thousand answers about nobody: their spread is sigma x bound x root 3 over ten."""
    stream = Stream.from_seed(SEED)
    found = np.array([means([], [], stream=stream) for _ in range(2000)])
    expected = 1.5 * BOUND * math.sqrt(3) / 10
    assert found.std() == pytest.approx(expected, rel=0.05)
    assert abs(found.mean()) < 4 * expected / math.sqrt(found.size)


def test_every_group_is_answered_whoever_is_there():
    assert means([], []).shape == means([1.0], [{"all"}]).shape == (3,)


def test_a_patient_falls_under_everybody_and_one_of_each_pair():
    small = growing_tumour(radii_mm=(10.0, 12.0), days=(0, 60))
    found = groups_of(small)
    assert found == {"all", "small", "not_irradiated"}
    course = Treatment(kind="radiotherapy", start_day=10, end_day=50, dose_gy=60.0, fractions=30)
    large = growing_tumour(radii_mm=(20.0, 22.0), days=(0, 60), treatments=(course,))
    assert groups_of(large) == {"all", "large", "irradiated"}
    later = replace(course, start_day=70, end_day=100)
    assert "not_irradiated" in groups_of(replace(large, treatments=(later,)))


def test_a_study_names_groups_of_the_list_alone():
    terms = {"bytes_per_round": 2000, "reply_after_s": 1}
    for name in GROUPS:
        assert OutboundTerms.model_validate({**terms, "metrics": [name]}).metrics == (name,)
    with pytest.raises(ValueError, match="metrics"):
        OutboundTerms.model_validate({**terms, "metrics": ["sub-001"]})
