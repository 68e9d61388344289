"""Categories of response, at and around their thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.metrics.response import CATEGORIES, category, odds


@pytest.mark.parametrize(
    ("volume_ml", "baseline_ml", "nadir_ml", "name"),
    [
        (0.0, 10.0, 10.0, "complete response"),
        (3.5, 10.0, 10.0, "partial response"),
        (3.6, 10.0, 10.0, "stable"),
        (13.9, 10.0, 10.0, "stable"),
        (14.0, 10.0, 10.0, "progression"),
        (2.9, 10.0, 2.0, "progression"),  # small beside the baseline, but it grows again
        (0.6, 10.0, 0.1, "partial response"),  # below what is measurable nothing counts as growth
        (0.3, 0.2, 0.2, "not evaluable"),
        (0.8, 0.2, 0.2, "progression"),
        (0.0, 0.2, 0.2, "not evaluable"),
    ],
)
def test_the_thresholds_are_those_of_rano(volume_ml, baseline_ml, nadir_ml, name):
    assert category(volume_ml, baseline_ml=baseline_ml, nadir_ml=nadir_ml) == name


Volume = st.floats(0, 200)


@given(volumes=st.lists(Volume, min_size=1, max_size=40), past=st.lists(Volume, min_size=1))
def test_odds_are_shares_that_add_up_to_one(volumes, past):
    found = odds(np.array(volumes), history_ml=np.array(past))
    assert set(found) == set(CATEGORIES)
    assert sum(found.values()) == pytest.approx(1.0)
    assert all(round(share * len(volumes), 6) % 1 == 0 for share in found.values())


@given(small=Volume, more=st.floats(0, 50), baseline=st.floats(0.5, 100), nadir=st.floats(0, 100))
def test_a_larger_tumour_is_never_a_better_response(small, more, baseline, nadir):
    order = ("complete response", "partial response", "stable", "progression")
    terms = {"baseline_ml": baseline, "nadir_ml": min(nadir, baseline)}
    better, worse = (category(volume, **terms) for volume in (small, small + more))
    assert order.index(better) <= order.index(worse)
