"""From a folder to patients: what is read, in which labels, and who is left out."""

import shutil

import cohort_builder as build
import numpy as np
import pytest

from oncofed_client.check import check
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.cohort import LABELS, Treatment
from oncofed_common.errors import CohortRefusal


@pytest.fixture
def cohort(tmp_path):
    return build.write_cohort(tmp_path / "cohort", patients=2)


def flat(value):
    """Every number of a patient, as bytes."""
    volumes = [value.tissue, value.brain]
    for visit in value.visits:
        volumes += [*visit.images.values(), visit.tumor, visit.dose_gy]
    return [
        (v.data.dtype, v.data.tobytes(), v.affine_mm.tobytes()) for v in volumes if v is not None
    ]


def test_a_patient_holds_what_the_files_say(cohort):
    opened = read_cohort(cohort)
    assert opened.virtual
    assert opened.participants == ("sub-001", "sub-002")
    patient = read_patient(opened, "sub-001")
    assert (patient.age_years, patient.sex, patient.grade) == (61.5, "F", 4)
    assert (patient.idh, patient.mgmt) == ("wildtype", None)
    assert [visit.day for visit in patient.visits] == [0, 60]
    assert patient.treatments == (
        Treatment(kind="radiotherapy", start_day=10, end_day=50, dose_gy=60.0, fractions=30),
    )
    first, second = patient.visits
    assert list(first.images) == list(build.CHANNELS)
    assert first.dose_gy.data.max() == 60
    assert second.dose_gy is None
    assert np.allclose(first.images["T1w"].affine_mm, build.affine_mm())


def test_labels_are_the_default_scheme_whatever_the_site_calls_them(cohort):
    before = read_patient(read_cohort(cohort), "sub-001")
    build.scheme_path(cohort).write_text("index\tname\n0\tbackground\n9\tET\n4\tNETC\n1\tSNFH\n")
    for participant in ("sub-001", "sub-002"):
        for session in ("ses-01", "ses-02"):
            build.rewrite(
                build.outline_path(cohort, participant, session),
                lambda data, affine: (np.array([0, 4, 1, 9], dtype=np.uint8)[data], affine),
            )
    after = read_patient(read_cohort(cohort), "sub-001")
    assert set(np.unique(after.visits[0].tumor.data)) == {
        0,
        *(LABELS[n] for n in ("NETC", "SNFH", "ET")),
    }
    assert flat(after) == flat(before)


def test_removing_another_patient_leaves_a_patient_bit_identical(cohort):
    before = read_patient(read_cohort(cohort), "sub-001")
    shutil.rmtree(cohort / "sub-002")
    build.edit(
        cohort / "participants.tsv", "sub-002\t61.5\tF\tglioblastoma\t4\twildtype\tn/a\n", ""
    )
    after = read_patient(read_cohort(cohort), "sub-001")
    assert flat(after) == flat(before)
    assert replaceable(after) == replaceable(before)


def replaceable(patient):
    return [(v.session, v.day, v.steroid_mg, v.kps) for v in patient.visits], patient.treatments


def test_a_tumour_that_is_gone_after_treatment_is_an_outcome_not_a_fault(cohort):
    path = build.outline_path(cohort, "sub-001", "ses-02")
    build.rewrite(path, lambda data, affine: (0 * data, affine))
    first, second = read_patient(read_cohort(cohort), "sub-001").visits
    assert first.tumor.data.any()
    assert not second.tumor.data.any()
    assert check(cohort).findings == ()


def test_optional_maps_may_be_missing(cohort):
    shutil.rmtree(cohort / "derivatives" / "tissue")
    build.dose_path(cohort, "sub-001", "ses-01").unlink()
    patient = read_patient(read_cohort(cohort), "sub-001")
    assert (patient.tissue, patient.brain, patient.visits[0].dose_gy) == (None, None, None)


def test_a_cohort_is_refused_without_naming_a_path_or_a_patient(cohort):
    (cohort / "participants.tsv").unlink()
    with pytest.raises(CohortRefusal) as caught:
        read_cohort(cohort)
    assert caught.value.code == "table_missing"
    assert str(cohort) not in str(caught.value)


def test_a_patient_whom_the_table_does_not_list_is_refused(cohort):
    with pytest.raises(CohortRefusal) as caught:
        read_patient(read_cohort(cohort), "sub-003")
    assert caught.value.code == "unknown_participant"
    assert "sub-003" not in str(caught.value)


def test_no_text_of_the_label_table_stands_in_the_refusal(cohort):
    build.edit(build.scheme_path(cohort), "NETC", "Jane Doe")
    with pytest.raises(CohortRefusal, match="label table: 1 label name") as refused:
        read_cohort(cohort)
    assert "Jane" not in str(refused.value)
    assert "NETC, SNFH, ET, RC" in refused.value.allowed
