"""How do dates become days, so that no date enters a cohort?

Day 0 is the patient's first visit that the source has, whatever becomes of that visit's files. Dates are
counted from its date; day numbers of visits are moved so that the first is 0, and those of treatments with
them. Where visits have dates, day numbers of treatments count from the first visit already.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from oncofed_client.intake.found import FoundTreatment, FoundVisit, When
from oncofed_common.cohort import Treatment
from oncofed_common.errors import CohortRefusal

FARTHEST_DAY = 36_500


def read_when(text: str) -> When | None:
    """``2021-03-04``, ``20210304``, ``2021-03-04T10:11:12`` or a whole number of days; None for ``n/a``.

    Raises:
        ValueError: anything else.
    """
    text = text.strip()
    if text in ("", "n/a"):
        return None
    if len(text) == 8 and text.isascii() and text.isdigit():
        return datetime.strptime(text, "%Y%m%d").date()
    if len(text) >= 10 and text[4] == "-":
        return datetime.fromisoformat(text).date()
    day = int(text)
    if abs(day) > FARTHEST_DAY:
        raise ValueError("a day too far away")
    return day


def days_of(
    visits: Sequence[FoundVisit], treatments: Sequence[FoundTreatment]
) -> tuple[dict[str, int], tuple[Treatment, ...]]:
    """The day of each visit that has a time, by its name, and the treatments on the same clock.

    Raises:
        CohortRefusal: code ``clocks_mixed`` or ``treatment_invalid``.
    """
    whens = {visit.session: visit.when for visit in visits if visit.when is not None}
    dates = [when for when in whens.values() if isinstance(when, date)]
    numbers = [when for when in whens.values() if isinstance(when, int)]
    if dates and numbers:
        raise _mixed("visits with dates and visits with day numbers")
    if not whens:
        return {}, ()
    first: When = min(dates) if dates else min(numbers)
    days = {session: _day(when, first) for session, when in whens.items()}
    return days, tuple(_treatment(course, first) for course in treatments)


def _day(when: When, first: When) -> int:
    if isinstance(when, date):
        if not isinstance(first, date):
            raise _mixed("a treatment with a date and visits with day numbers")
        day = (when - first).days
    else:
        day = when - first if isinstance(first, int) else when
    if abs(day) > FARTHEST_DAY:
        raise _mixed("days that are a hundred years apart")
    return day


def _treatment(course: FoundTreatment, first: When) -> Treatment:
    start, end = _day(course.start, first), _day(course.end, first)
    if end < start:
        raise CohortRefusal(
            f"{course.kind} that ends {start - end} days before it starts",
            allowed="an end on or after the start",
            next="correct the treatments table",
            code="treatment_invalid",
        )
    return Treatment(
        kind=course.kind,
        start_day=start,
        end_day=end,
        dose_gy=course.dose_gy,
        fractions=course.fractions,
        agent=course.agent,
        dose_mg_m2=course.dose_mg_m2,
    )


def _mixed(found: str) -> CohortRefusal:
    return CohortRefusal(
        found,
        allowed="one clock for a patient",
        next="give dates for all visits, or day numbers for all visits and treatments",
        code="clocks_mixed",
    )
