"""What the check would find fault with never enters a cohort; the rest of the patient does."""

from dataclasses import replace

import cohort_builder as build
import numpy as np
import pytest

from oncofed_client.intake.passing import passing
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A patient of three visits without a fault, and the row of the participants table."""
    cohort = read_cohort(build.write_cohort(tmp_path_factory.mktemp("three") / "c", visits=3))
    return read_patient(cohort, "sub-001"), cohort.rows["sub-001"]


def but(patient, number, **changes):
    """The patient with one visit changed."""
    visits = list(patient.visits)
    visits[number] = replace(visits[number], **changes)
    return replace(patient, visits=tuple(visits))


def away(volume):
    """The same voxels half a metre to the right."""
    affine_mm = volume.affine_mm.copy()
    affine_mm[0, 3] += 500
    return Volume(data=volume.data, affine_mm=affine_mm)


def test_a_patient_without_a_fault_is_written_as_it_is(three, tmp_path):
    """Nothing is left out of what the check lets in."""
    patient, row = three
    left, faults = passing(patient, row, tmp_path / "made")
    assert left is patient
    assert faults == []
    assert (tmp_path / "made" / "sub-001" / "ses-03").is_dir()


def test_a_visit_with_a_fault_is_left_out_and_named(three, tmp_path):
    """An outline beside the head costs its visit, not the patient."""
    patient, row = three
    spoilt = but(patient, 1, tumor=away(patient.visits[1].tumor))
    left, faults = passing(spoilt, row, tmp_path / "made")
    assert [visit.session for visit in left.visits] == ["ses-01", "ses-03"]
    assert [(one.code, one.session) for one in faults] == [("elsewhere", "ses-02")]
    assert not (tmp_path / "made" / "sub-001" / "ses-02").exists()


def test_a_dose_that_lies_elsewhere_is_left_out_alone(three, tmp_path):
    """An optional map costs itself, not its visit."""
    patient, row = three
    spoilt = but(patient, 0, dose_gy=away(patient.visits[0].dose_gy))
    left, faults = passing(spoilt, row, tmp_path / "made")
    assert [visit.dose_gy for visit in left.visits] == [None] * 3
    assert [(one.code, one.file) for one in faults] == [("elsewhere", "dose map")]


def test_a_patient_of_whom_too_little_is_left_is_refused(three, tmp_path):
    """Two spoilt visits of three leave nothing to learn a course from."""
    patient, row = three
    empty = Volume(
        data=np.zeros_like(patient.visits[0].tumor.data),
        affine_mm=patient.visits[0].tumor.affine_mm,
    )
    spoilt = but(but(patient, 0, tumor=empty), 1, tumor=away(patient.visits[1].tumor))
    with pytest.raises(CohortRefusal) as caught:
        passing(spoilt, row, tmp_path / "made")
    assert caught.value.code == "few_visits"
