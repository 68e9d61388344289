"""What a forecast says beside its numbers."""

import pytest

from oncofed_client.forecasts.cautions import not_modelled
from oncofed_common.cohort import Treatment


def course(kind, **more):
    return Treatment(kind=kind, start_day=50, end_day=90, **more)


@pytest.mark.parametrize(
    ("treatment", "word"),
    [
        (course("immunotherapy"), "immunotherapy"),
        (course("radiotherapy"), "60 Gy"),
        (course("chemotherapy", agent="lomustine"), "temozolomide"),
    ],
)
def test_a_treatment_of_which_less_is_known_than_the_table_says_is_named(treatment, word):
    (found,) = not_modelled((treatment,), before=100)
    assert word in found
    assert not_modelled((treatment,), before=50) == (), "it begins on the forecast day or later"


@pytest.mark.parametrize(
    "treatment",
    [
        course("radiotherapy", dose_gy=60.0),
        course("chemotherapy", agent="temozolomide"),
        course("chemotherapy"),
        course("surgery"),
    ],
)
def test_nothing_is_said_of_what_is_modelled(treatment):
    assert not_modelled((treatment,), before=100) == ()
