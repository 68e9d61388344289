"""Dates become days: nothing of the calendar is left, and the days between visits are what they were."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.intake.clock import days_of, read_when
from oncofed_client.intake.found import FoundTreatment, FoundVisit
from oncofed_common.errors import CohortRefusal

DATES = st.dates(date(1950, 1, 1), date(2040, 1, 1))
GAPS = st.lists(st.integers(1, 400), min_size=1, max_size=6)


def visits(whens):
    return [
        FoundVisit(session=f"v{number}", when=when, items=()) for number, when in enumerate(whens)
    ]


def course(start, end):
    return FoundTreatment(kind="radiotherapy", start=start, end=end, dose_gy=60.0, fractions=30)


@given(first=DATES, gaps=GAPS, moved=st.integers(-3000, 3000))
def test_days_do_not_depend_on_the_calendar(first, gaps, moved):
    """Two patients with the same course in different years are told apart by nothing."""
    days = [0]
    for gap in gaps:
        days.append(days[-1] + gap)
    dates = [first + timedelta(days=day) for day in days]
    later = [one + timedelta(days=moved) for one in dates]
    made = days_of(visits(dates), [course(dates[0], dates[-1])])
    assert made == days_of(visits(later), [course(later[0], later[-1])])
    assert list(made[0].values()) == days
    assert (made[1][0].start_day, made[1][0].end_day) == (days[0], days[-1])


@given(gaps=GAPS, moved=st.integers(-3000, 3000))
def test_day_numbers_count_from_the_first_visit(gaps, moved):
    """Days since diagnosis become days since the first visit, those of treatments with them."""
    days = [0]
    for gap in gaps:
        days.append(days[-1] + gap)
    made = days_of(visits([day + moved for day in days]), [course(moved - 3, moved + 4)])
    assert list(made[0].values()) == days
    assert (made[1][0].start_day, made[1][0].end_day) == (-3, 4)


def test_where_visits_have_dates_day_numbers_of_treatments_count_from_the_first():
    """A table of treatments may be in days already."""
    _, (made,) = days_of(visits([date(2021, 3, 4), date(2021, 5, 1)]), [course(10, 50)])
    assert (made.start_day, made.end_day) == (10, 50)


@pytest.mark.parametrize(
    ("whens", "courses", "code"),
    [
        ([date(2021, 3, 4), 60], [], "clocks_mixed"),
        ([0, 60], [course(date(2021, 3, 4), date(2021, 3, 5))], "clocks_mixed"),
        ([date(1800, 1, 1), date(2021, 1, 1)], [], "clocks_mixed"),
        ([0, 60], [course(50, 10)], "treatment_invalid"),
    ],
)
def test_what_cannot_be_brought_onto_one_clock_is_refused(whens, courses, code):
    """No day is made up, and no date is in the refusal."""
    with pytest.raises(CohortRefusal) as caught:
        days_of(visits(whens), courses)
    assert caught.value.code == code
    assert "2021" not in str(caught.value)
    assert "1800" not in str(caught.value)


def test_a_visit_without_a_time_has_no_day():
    """It is left out by who asked; it moves no other visit."""
    assert days_of(visits([None, 5, 9]), [])[0] == {"v1": 0, "v2": 4}
    assert days_of(visits([None]), [course(0, 1)]) == ({}, ())


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2021-03-04", date(2021, 3, 4)),
        ("20210304", date(2021, 3, 4)),
        ("2021-03-04T10:11:12", date(2021, 3, 4)),
        ("-12", -12),
        ("n/a", None),
        ("", None),
    ],
)
def test_dates_and_days_are_read_in_each_of_their_spellings(text, when):
    """ISO 8601, DICOM's eight digits, or whole days."""
    assert read_when(text) == when


@pytest.mark.parametrize("text", ["04.03.2021", "3/4/2021", "12.5", "2021-13-01", "99999", "soon"])
def test_a_date_that_can_be_read_in_two_ways_is_none(text):
    """Day and month are never guessed."""
    with pytest.raises(ValueError):  # noqa: PT011  the reader of tables turns it into a bad row
        read_when(text)
