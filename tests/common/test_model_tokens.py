"""Days, treatments and clinical values as numbers."""

from dataclasses import replace

import numpy as np
import pytest
from growing_tumour import growing_tumour
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.cohort import Treatment
from oncofed_common.model.presets import SMALL
from oncofed_common.model.tokens import (
    CLINICAL,
    EXPECTED_NUMBERS,
    FEATURES,
    FIRST_VISIT,
    HORIZON,
    PHYSICS,
    PLAN,
    TOKENS,
    USUAL_DOSE_GY,
    VISIT_GIVEN,
    tokens,
)

COURSE = Treatment(kind="radiotherapy", start_day=70, end_day=111, dose_gy=60.0, fractions=30)
DOSE = 4
"""Column of the horizon row that holds the planned dose in 60 Gy."""
VISIT_DOSE = 12
PATIENT = growing_tumour(spacing_mm=8.0)


def _rows(patient, *, history=2, day=150, expected=None):
    return tokens(
        patient,
        patient.visits[:history],
        day=day,
        volumes_ml=[np.zeros(4)] * history,
        preset=SMALL,
        expected=expected,
    )


def test_there_is_a_row_for_each_kind_of_knowledge():
    assert _rows(PATIENT).shape == (TOKENS, FEATURES)


@given(cut=st.integers(61, 200))
def test_dose_given_and_dose_planned_add_up_to_the_course(cut):
    visits = (PATIENT.visits[0], replace(PATIENT.visits[1], day=cut))
    patient = replace(PATIENT, visits=visits, treatments=(COURSE,))
    rows = _rows(patient, day=cut + 200)
    assert rows[HORIZON, DOSE] + rows[FIRST_VISIT, VISIT_DOSE] == pytest.approx(1.0, abs=1e-5)


def test_treatment_after_the_forecast_day_does_not_take_part():
    late = replace(COURSE, start_day=151, end_day=190)
    assert np.array_equal(_rows(replace(PATIENT, treatments=(late,))), _rows(PATIENT))


def test_treatment_before_the_first_visit_counts_as_given_by_then():
    early = replace(COURSE, start_day=-60, end_day=-19)
    rows = _rows(replace(PATIENT, treatments=(early,)))
    assert rows[FIRST_VISIT + 1, VISIT_DOSE] == pytest.approx(1.0)
    assert rows[FIRST_VISIT, VISIT_DOSE] == 0.0


def test_unknown_differs_from_zero():
    known = _rows(replace(PATIENT, idh="wildtype"))[CLINICAL]
    unknown = _rows(replace(PATIENT, idh=None))[CLINICAL]
    assert known[6:8].tolist() == [0.0, 1.0]
    assert unknown[6:8].tolist() == [0.0, 0.0]


def test_the_horizon_row_grows_with_the_days():
    short, long = (_rows(PATIENT, day=day)[HORIZON, :3] for day in (61, 420))
    assert (short < long).all()
    assert long[0] == pytest.approx(2.0)


def test_a_surgery_counts_once():
    operation = Treatment(kind="surgery", start_day=100, end_day=100)
    assert _rows(replace(PATIENT, treatments=(operation,)))[HORIZON, 7] == 1.0


def test_what_physics_expects_stands_in_its_own_row_behind_a_flag():
    numbers = np.arange(1, EXPECTED_NUMBERS + 1, dtype=np.float32)
    plain, foreseen = _rows(PATIENT), _rows(PATIENT, expected=numbers)
    assert not plain[PHYSICS].any()
    assert foreseen[PHYSICS, : EXPECTED_NUMBERS + 1].tolist() == [1.0, *numbers]
    assert np.array_equal(np.delete(plain, PHYSICS, axis=0), np.delete(foreseen, PHYSICS, axis=0))


def test_a_course_of_zero_gray_is_no_course():
    nothing = replace(COURSE, dose_gy=0.0)
    assert np.array_equal(_rows(replace(PATIENT, treatments=(nothing,))), _rows(PATIENT))


def test_radiotherapy_of_a_dose_that_nobody_wrote_down_is_the_usual_one():
    told, untold = (
        _rows(replace(PATIENT, treatments=(replace(COURSE, dose_gy=dose),)))
        for dose in (USUAL_DOSE_GY, None)
    )
    assert np.array_equal(told, untold)
    assert not np.array_equal(told, _rows(PATIENT))


def test_nothing_is_told_of_immunotherapy_of_which_nothing_was_learned():
    course = Treatment(kind="immunotherapy", start_day=70, end_day=130)
    assert np.array_equal(_rows(replace(PATIENT, treatments=(course,))), _rows(PATIENT))


def test_what_was_given_and_what_is_planned_stand_behind_flags():
    rows = _rows(PATIENT)
    assert rows[HORIZON, PLAN.start] == 1.0
    assert rows[FIRST_VISIT : FIRST_VISIT + 2, VISIT_GIVEN.start].tolist() == [1.0, 1.0]
    assert not rows[FIRST_VISIT + 2].any()
