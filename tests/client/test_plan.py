"""A patient under another plan."""

from dataclasses import replace

import numpy as np
import pytest
from growing_tumour import growing_tumour

from oncofed_client.forecasts.plan import read_plan, under
from oncofed_common.cohort import Treatment, Volume
from oncofed_common.errors import CohortRefusal

HEADER = "kind\tstart_day\tend_day\tdose_gy\tfractions\tagent\tdose_mg_m2\n"
GIVEN = Treatment(kind="chemotherapy", start_day=10, end_day=50, agent="temozolomide")
COMING = Treatment(kind="radiotherapy", start_day=70, end_day=111, dose_gy=60.0, fractions=30)


def _patient():
    one = growing_tumour(treatments=(GIVEN, COMING))
    last = one.visits[1]
    dose = Volume(data=np.full((4, 4, 4), 60.0, np.float32), affine_mm=np.diag([9.0, 9, 9, 1]))
    return replace(one, visits=(one.visits[0], replace(last, dose_gy=dose), *one.visits[2:]))


def _plan(tmp_path, rows=""):
    path = tmp_path / "plan.tsv"
    path.write_text(HEADER + rows)
    return path


def test_a_plan_takes_the_place_of_what_is_recorded_and_leaves_the_past(tmp_path):
    row = "radiotherapy\t80\t100\t40\t15\tn/a\tn/a\n"
    plan = read_plan(_plan(tmp_path, row))
    found = under(_patient(), plan, last_day=60)
    assert found.treatments == (GIVEN, *plan)
    assert found.visits[1].dose_gy is None, "the map belonged to the recorded course"
    assert [visit.session for visit in found.visits] == ["ses-01", "ses-02", "ses-03"]


def test_a_plan_without_a_row_is_no_treatment(tmp_path):
    found = under(_patient(), read_plan(_plan(tmp_path)), last_day=60)
    assert found.treatments == (GIVEN,)
    assert all(visit.dose_gy is None for visit in found.visits)


def test_a_plan_that_keeps_the_recorded_course_keeps_its_map(tmp_path):
    rows = "radiotherapy\t70\t111\t60\t30\tn/a\tn/a\nchemotherapy\t70\t111\tn/a\tn/a\tx\t75\n"
    found = under(_patient(), read_plan(_plan(tmp_path, rows)), last_day=60)
    assert found.visits[1].dose_gy is not None
    assert len(found.treatments) == 3


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ("radiotherapy\t100\t80\t40\t15\tn/a\tn/a\n", "treatment_ends_before_start"),
        ("radiotherapy\tsoon\t80\t40\t15\tn/a\tn/a\n", "row_invalid"),
        ("witchcraft\t80\t90\tn/a\tn/a\tn/a\tn/a\n", "row_invalid"),
        ("radiotherapy\t80\n", "table_malformed"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path, rows, code):
    with pytest.raises(CohortRefusal) as refusal:
        read_plan(_plan(tmp_path, rows))
    assert refusal.value.code == code


def test_a_plan_in_the_past_is_refused(tmp_path):
    plan = read_plan(_plan(tmp_path, "surgery\t60\t60\tn/a\tn/a\tn/a\tn/a\n"))
    with pytest.raises(CohortRefusal) as refusal:
        under(_patient(), plan, last_day=60)
    assert refusal.value.code == "plan_in_past"
