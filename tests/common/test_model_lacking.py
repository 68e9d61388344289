"""Asking without a condition is asking about a patient of whom it is not known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.cohort import Treatment
from oncofed_common.errors import CohortRefusal
from oncofed_common.model.dropout import LOSS_RATES
from oncofed_common.model.lacking import ask_without, remembered
from oncofed_common.model.prepare import EXPECTED_MAPS, query
from oncofed_common.model.presets import SMALL
from oncofed_common.model.tokens import CLINICAL, FIRST_VISIT, HORIZON, PHYSICS, PLAN, VISIT_GIVEN
from oncofed_common.outlook import outlook

PLANNED = Treatment(kind="radiotherapy", start_day=62, end_day=101, dose_gy=60.0, fractions=30)
GIVEN = Treatment(kind="chemotherapy", start_day=10, end_day=50)
PATIENT = replace(growing_tumour(), treatments=(GIVEN, PLANNED), age_years=60.0)
ABOUT = {"history": [0, 1], "day": 150, "foresee": remembered(outlook)}
AFRESH = ABOUT | {"foresee": outlook}


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
    asked, other = without(name), query(poorer, SMALL, **AFRESH)
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


def test_only_what_physics_looks_at_makes_another_question_and_each_is_worked_out_once():
    worked_out = []

    def counted(patient, preset, seen, *, days):
        worked_out.append((patient, seen.visits, tuple(days)))
        return [None for _ in days]

    about = {"history": [0, 1], "day": 150, "foresee": remembered(counted)}
    dose = replace(PATIENT.visits[0].tumor, data=PATIENT.visits[0].tumor.data.astype(np.float32))
    first, second, *later = PATIENT.visits
    patient = replace(PATIENT, visits=(replace(first, dose_gy=dose), second, *later))
    query(patient, SMALL, **about)
    for same in ("all images", "image channel", "clinical value"):
        ask_without(patient, SMALL, name=same, **about)
    assert len(worked_out) == 1
    for other in ("tissue", "dose", "plan", "given treatment", "earlier visit"):
        ask_without(patient, SMALL, name=other, **about)
    query(patient, SMALL, **about | {"day": 151})
    larger = replace(second, tumor=first.tumor)
    query(replace(patient, visits=(*patient.visits[:1], larger, *later)), SMALL, **about)
    assert len(worked_out) == 8
    query(patient, SMALL, **about)
    assert len(worked_out) == 8


def test_every_condition_can_be_asked_without():
    for name in LOSS_RATES:
        assert without(name).conditions.shape == without("physics").conditions.shape
