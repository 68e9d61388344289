"""What if it were treated otherwise? A patient under a plan that a table states.

The plan takes the place of everything that begins after the last visit of the history; what was given
by then stays. A dose map planned on the history belongs to the recorded course: it stays only where the
plan keeps that course as it is, and otherwise the plan's dose is taken to lie around the tumour
(``oncofed_common.outlook``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from oncofed_client.readers.tables import TreatmentRow, read_table
from oncofed_common.cohort import Patient, Treatment, course_of_map
from oncofed_common.errors import CohortRefusal


def read_plan(path: Path) -> tuple[Treatment, ...]:
    """The courses of a plan: a table with the columns of a treatments table, possibly without a row.

    Raises:
        CohortRefusal: not such a table, or a row that is wrong (``row_invalid``).
    """
    table = read_table(path, TreatmentRow)
    for bad in table.bad:
        raise CohortRefusal(
            f"a plan with a wrong {bad.what}",
            allowed="the columns and values of a treatments table",
            next="correct the plan",
            code="row_invalid",
        )
    courses = tuple(Treatment(**row.model_dump()) for row in table.rows)
    if any(course.end_day < course.start_day for course in courses):
        raise CohortRefusal(
            "a plan with a course that ends before it starts",
            allowed="an end on the day of the start or later",
            next="correct the plan",
            code="treatment_ends_before_start",
        )
    return courses


def under(patient: Patient, plan: tuple[Treatment, ...], *, last_day: int) -> Patient:
    """The patient as if this were planned on ``last_day``, the day of the history's last visit.

    Raises:
        CohortRefusal: a course that begins by then (``plan_in_past``).
    """
    if any(course.start_day <= last_day for course in plan):
        raise CohortRefusal(
            "a plan in the past: a course that begins by the last visit of the history",
            allowed="courses that begin after that visit; what was given before is in the cohort",
            next="leave past courses out of the plan, or give a shorter history",
            code="plan_in_past",
        )
    given = tuple(course for course in patient.treatments if course.start_day <= last_day)
    recorded = _irradiations(patient.treatments, after=last_day)
    kept = recorded == _irradiations(plan, after=last_day)
    visits = patient.visits
    if recorded and not kept:
        visits = tuple(
            replace(visit, dose_gy=None)
            if course_of_map(visit, patient.treatments) in recorded
            else visit
            for visit in visits
        )
    return replace(patient, treatments=(*given, *plan), visits=visits)


def _irradiations(courses: tuple[Treatment, ...], *, after: int) -> tuple[Treatment, ...]:
    return tuple(c for c in courses if c.kind == "radiotherapy" and c.start_day > after)
