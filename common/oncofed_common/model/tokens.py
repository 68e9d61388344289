"""What besides images does the model know: days, treatments, and who the patient is?

Six rows of numbers a forecast: the horizon with the treatment planned until then, up to three past
visits (latest first) with the treatment that led to each, the patient, and what physics expects. Every
value that may be unknown has a flag beside it; unknown is 0 with flag 0. Scales are fixed constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from oncofed_common.cohort import CHANNELS, Patient, Treatment, Visit
from oncofed_common.model.presets import Preset

HORIZON, FIRST_VISIT, CLINICAL, PHYSICS = 0, 1, 4, 5
TOKENS = 6
FEATURES = 20
PLAN = slice(3, 8)
"""Columns of the horizon row: the planned treatment, a known flag first."""
VISIT_IMAGES = slice(3, 7)
"""Columns of a visit row: which image channels exist."""
VISIT_GIVEN = slice(11, 16)
"""Columns of a visit row: the treatment that led to it, a known flag first."""
VISIT_CLINICAL = slice(16, 20)
"""Columns of a visit row: pairs (value, known) of that day."""
VISIT_CLINICAL_VALUES = 2
CLINICAL_VALUES = 5
"""Pairs (value, known) at the head of the patient row."""
USUAL_DOSE_GY = 60.0
"""Of a course of radiotherapy whose dose nobody wrote down."""
HORIZON_DAYS = 180.0
"""The first number of the horizon row is days in this unit."""
TYPICAL_SPEED_MM_PER_DAY, TYPICAL_WIDTH_MM = 0.06, 2.6
"""Speed and width of a front are told as logarithms of their ratio to these."""
EXPECTED_NUMBERS = 15
"""After a known flag: log speed and its standard deviation, log width and its own, misfit; then for the whole
tumour and for the core the log ratio of volumes: mean, standard deviation, 10, 50 and 90 % quantile."""


def tokens(
    patient: Patient,
    history: Sequence[Visit],
    *,
    day: int,
    volumes_ml: Sequence[Float[ndarray, " region"]],
    preset: Preset,
    expected: Float32[ndarray, " number"] | None,
) -> Float32[ndarray, "token feature"]:
    """The rows for a forecast of ``day``.

    Args:
        history: past visits, in order of day.
        day: the forecast's day; treatment after it does not take part.
        volumes_ml: volume of each region at each history visit.
        preset: how many visits have a row.
        expected: what physics expects, ``EXPECTED_NUMBERS`` of them.
    """
    rows = np.zeros((TOKENS, FEATURES), dtype=np.float32)
    last_day = history[-1].day
    rows[HORIZON, :3] = _interval(day - last_day)
    rows[HORIZON, PLAN] = [1.0, *_given(patient.treatments, last_day, day)]
    for slot in range(min(preset.history, len(history))):
        at = len(history) - 1 - slot
        visit = history[at]
        before = history[at - 1].day if at > 0 else None
        rows[FIRST_VISIT + slot] = [
            1.0,
            *_interval(last_day - visit.day)[:2],
            *(float(name in visit.images) for name in CHANNELS),
            *(math.log1p(volume) / 4.0 for volume in volumes_ml[at]),
            1.0,
            *_given(patient.treatments, before, visit.day),
            *_known(visit.kps, 100.0),
            *_known(visit.steroid_mg, 16.0),
        ]
    rows[CLINICAL, : 2 * CLINICAL_VALUES] = [
        *_known(patient.age_years, 100.0),
        *_known(None if patient.sex is None else float(patient.sex == "M"), 1.0),
        *_known(patient.grade, 4.0),
        *_known(None if patient.idh is None else float(patient.idh == "mutant"), 1.0),
        *_known(None if patient.mgmt is None else float(patient.mgmt == "methylated"), 1.0),
    ]
    if expected is not None:
        rows[PHYSICS, : 1 + EXPECTED_NUMBERS] = [1.0, *expected]
    return rows


def _interval(days: int) -> list[float]:
    return [days / HORIZON_DAYS, math.log1p(days) / 6.0, math.sqrt(days / HORIZON_DAYS)]


def _known(value: float | int | None, scale: float) -> tuple[float, float]:
    return (0.0, 0.0) if value is None else (value / scale, 1.0)


def _given(treatments: Sequence[Treatment], after: int | None, until: int) -> list[float]:
    """What was given on the days ``after < day <= until``: a course counts by its share of days.

    Radiotherapy in 60 Gy and in 42 days, chemotherapy in 180 days, surgery as a count. A course of zero Gy
    is none. Immunotherapy is not told: no virtual patient had any, so nothing could have been learned of it.
    """
    dose = radiotherapy = chemotherapy = surgery = 0.0
    for course in treatments:
        first = course.start_day if after is None else max(course.start_day, after + 1)
        days = max(0, min(course.end_day, until) - first + 1)
        share = days / (course.end_day - course.start_day + 1)
        match course.kind:
            case "radiotherapy" if course.dose_gy == 0:
                continue
            case "radiotherapy":
                dose += share * (USUAL_DOSE_GY if course.dose_gy is None else course.dose_gy) / 60.0
                radiotherapy += days / 42.0
            case "chemotherapy":
                chemotherapy += days / 180.0
            case "surgery":
                surgery += float(days > 0)
            case "immunotherapy":
                pass
    return [dose, radiotherapy, chemotherapy, surgery]
