"""Asking without a condition is asking about a patient of whom it is not known."""

from dataclasses import replace

import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.cohort import Treatment
from oncofed_common.errors import CohortRefusal
from oncofed_common.model.dropout import LOSS_RATES
from oncofed_common.model.lacking import ask_without
from oncofed_common.model.prepare import EXPECTED_MAPS, query
from oncofed_common.model.presets import SMALL
from oncofed_common.model.tokens import CLINICAL, FIRST_VISIT, HORIZON, PHYSICS, PLAN, VISIT_GIVEN
from oncofed_common.outlook import outlook

PLANNED = Treatment(kind="radiotherapy", start_day=62, end_day=101, dose_gy=60.0, fractions=30)
GIVEN = Treatment(kind="chemotherapy", start_day=10, end_day=50)
PATIENT = replace(growing_tumour(), treatments=(GIVEN, PLANNED), age_years=60.0)
ABOUT = {"history": [0, 1], "day": 150, "foresee": outlook}


def without(name, patient=PATIENT):
    return ask_without(patient, SMALL, name=name, **ABOUT)


@pytest.fixture(scope="module")
def whole():
    return query(PATIENT, SMALL, **ABOUT)


@pytest.mark.parametrize(
    ("name", "poorer"),
    [
        ("plan", replace(PATIENT, treatments=(GIVEN,))),
        ("given treatment", replace(PATIENT, treatments=(PLANNED,))),
    ],
)
def test_physics_does_not_know_the_treatment_either(whole, name, poorer):
    asked, other = without(name), query(poorer, SMALL, **ABOUT)
    assert torch.equal(asked.tokens[PHYSICS], other.tokens[PHYSICS])
    assert torch.equal(asked.conditions[-EXPECTED_MAPS:], other.conditions[-EXPECTED_MAPS:])
    assert not torch.equal(asked.tokens[PHYSICS], whole.tokens[PHYSICS])
    gone = (HORIZON, PLAN) if name == "plan" else (FIRST_VISIT, VISIT_GIVEN)
    assert not asked.tokens[gone].any()
    assert whole.tokens[gone].any()


def test_without_a_tissue_map_there_is_no_physics(whole):
    asked = without("tissue")
    assert whole.tokens[PHYSICS, 0] == 1
    assert not asked.tokens[PHYSICS].any()
    assert not asked.conditions[-EXPECTED_MAPS:].any()


def test_without_earlier_visits_physics_fits_the_last_one_alone(whole):
    asked = without("earlier visit")
    alone = query(PATIENT, SMALL, history=[1], day=150, foresee=outlook)
    assert torch.equal(asked.tokens[PHYSICS], alone.tokens[PHYSICS])
    assert not asked.tokens[FIRST_VISIT + 1].any()
    assert asked.tokens[FIRST_VISIT, 0] == 1


def test_where_only_an_earlier_visit_shows_a_tumour_it_cannot_be_missed():
    empty = replace(PATIENT.visits[1].tumor, data=0 * PATIENT.visits[1].tumor.data)
    gone = replace(PATIENT, visits=(PATIENT.visits[0], replace(PATIENT.visits[1], tumor=empty)))
    with pytest.raises(CohortRefusal) as refusal:
        without("earlier visit", gone)
    assert refusal.value.code == "no_tumor"


def test_without_everything_the_last_outlines_and_the_days_are_left(whole):
    asked = without("everything")
    assert torch.equal(asked.tokens[HORIZON, :3], whole.tokens[HORIZON, :3])
    assert not asked.tokens[HORIZON, 3:].any()
    assert not asked.tokens[CLINICAL].any()
    assert not asked.tokens[PHYSICS].any()
    assert torch.equal(asked.reference[:4], whole.reference[:4])


def test_every_condition_can_be_asked_without():
    for name in LOSS_RATES:
        assert without(name).conditions.shape == without("physics").conditions.shape
