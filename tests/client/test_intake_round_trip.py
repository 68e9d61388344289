"""A virtual hospital goes out as DICOM and as BraTS files, moved from visit to visit, and comes back the
same."""

import csv
import os
from datetime import date, timedelta

import dicom_builder as dicom
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from oncofed_client.check import check
from oncofed_client.intake.intake import Asked, intake
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.resample import resampled
from oncofed_simulation.patients.writer import wards_of, write_cohorts

pytestmark = pytest.mark.slow

FIRST = date(2019, 7, 1)
NAMES = {1: "Core", 2: "Oedema", 3: "Enhancing", 4: "Cavity"}
BRATS = {"T1w": "t1n", "ce-gadolinium_T1w": "t1c", "T2w": "t2w", "FLAIR": "t2f"}
NUMBER = "0004711"
SEED = 17
"""Of a patient with three visits, an operation, and a planned dose at the second."""


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    (path,) = write_cohorts(
        wards_of(sites=1, patients=1, seed=SEED),
        seed=SEED,
        out=tmp_path_factory.mktemp("virtual") / "out",
        workers=1,
        progress=lambda *_: None,
    )
    cohort = read_cohort(path)
    (name,) = cohort.participants
    patient = read_patient(cohort, name)
    assert any(visit.dose_gy is not None for visit in patient.visits)
    return patient


def astray(number):
    """How a head lies differently in the scanner at each visit."""
    angle = np.radians((5.0, -4.0, 6.0)[number % 3])
    move = np.eye(4)
    move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    move[:3, 3] = np.array([[9, -12, 20], [-14, 6, -31], [4, 15, 11]][number % 3])
    return move


def as_dicom(patient, root, where=None):
    """Folders of names that are no UTF-8; ``where``: how the head lies at a visit, each time otherwise if
    nothing is said."""
    where = where or astray
    for number, visit in enumerate(patient.visits):
        day, folder = (
            FIRST + timedelta(days=visit.day),
            root / os.fsdecode(b"study\xff %d" % number),
        )
        move, about = where(number), {"patient": NUMBER, "day": FIRST + timedelta(days=visit.day)}
        for channel, image in visit.images.items():
            place = move @ image.affine_mm
            files = dicom.write_series(folder, image.data, place, channel=channel, **about)
        dicom.write_segmentation(folder / "seg.dcm", files, visit.tumor.data, NAMES)
        if visit.dose_gy is not None:
            plan(patient, visit.dose_gy, folder / "plan", day=day + timedelta(days=1))
    labels = root.with_name("labels.tsv")
    names = {"Core": "NETC", "Oedema": "SNFH", "Enhancing": "ET", "Cavity": "RC"}
    rows = "".join(f"{label}\t{name}\n" for label, name in names.items())
    labels.write_text(f"label\tname\n{rows}")
    return labels


def plan(patient, dose_gy, folder, *, day):
    """A planning CT of the same head, lying otherwise than in any scanner, and the dose on it."""
    place, move = patient.tissue, astray(5)
    away = ndimage.distance_transform_edt(place.data == 0, sampling=place.spacing_mm)
    hounsfield = np.select(
        [place.data == 1, place.data == 2, place.data == 3, away <= 2, away <= 8, away <= 14],
        [5.0, 38.0, 30.0, 5.0, 900.0, 40.0],
        default=-1000.0,
    )
    about = {"patient": NUMBER, "day": day}
    dicom.write_series(
        folder, hounsfield, move @ place.affine_mm, channel="head", modality="CT", **about
    )
    dicom.write_dose(folder / "dose.dcm", dose_gy.data, move @ dose_gy.affine_mm, **about)


def as_brats(patient, root):
    for number, visit in enumerate(patient.visits):
        stem = f"BraTS-GLI-00017-{number:03d}"
        folder = root / stem
        folder.mkdir(parents=True)
        volumes = {BRATS[channel]: image for channel, image in visit.images.items()}
        for kind, volume in (volumes | {"seg": visit.tumor}).items():
            image = nib.Nifti1Image(volume.data.astype(np.int16), astray(number) @ volume.affine_mm)
            nib.save(image, folder / f"{stem}-{kind}.nii.gz")


def write_tables(patient, folder, name, sessions):
    """What the hospital knows beside the scans, with dates."""
    folder.mkdir()
    on = [FIRST + timedelta(days=visit.day) for visit in patient.visits]
    rows = [
        f"{name}\t{session}\t{day}\t{_cell(visit.steroid_mg)}\t{_cell(visit.kps)}"
        for session, day, visit in zip(sessions(on), on, patient.visits, strict=True)
    ]
    header = "participant_id\tsession_id\twhen\tsteroid_mg\tkps"
    (folder / "sessions.tsv").write_text("\n".join([header, *rows]) + "\n")
    rows = [
        "\t".join(
            [
                name,
                course.kind,
                str(FIRST + timedelta(days=course.start_day)),
                str(FIRST + timedelta(days=course.end_day)),
                *map(_cell, (course.dose_gy, course.fractions, course.agent, course.dose_mg_m2)),
            ]
        )
        for course in patient.treatments
    ]
    header = "participant_id\tkind\tstart\tend\tdose_gy\tfractions\tagent\tdose_mg_m2"
    (folder / "treatments.tsv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def _cell(value):
    return "n/a" if value is None else str(value)


def taken(source, folder, **how):
    asked = Asked(
        source=source, out=folder / "cohort", identities=folder / "ids.tsv", name="north", **how
    )
    report = intake(asked, workers=1, watch=lambda *_: None)
    (participant,) = report.names.values()
    (row,) = csv.DictReader((folder / "ids.tsv").read_text().splitlines(), delimiter="\t")
    assert row == {"participant_id": participant, "hospital_number": NUMBER}
    found = check(folder / "cohort")
    assert {one.code for one in found.findings} <= {"channel_missing"}
    assert found.takes_part == (participant,)
    return read_patient(read_cohort(folder / "cohort"), participant)


def volumes_ml(visit):
    voxel_ml = np.prod(visit.tumor.spacing_mm) / 1000
    return [float((visit.tumor.data == label).sum()) * voxel_ml for label in NAMES]


def assert_same(now, was):
    """Days, treatments, volumes; and the tumours of all visits lie on each other as they did."""
    assert now.treatments == was.treatments
    assert [v.day for v in now.visits] == [v.day for v in was.visits]
    for new, old in zip(now.visits, was.visits, strict=True):
        assert set(new.images) == set(old.images)
        assert (new.kps, new.steroid_mg) == (old.kps, old.steroid_mg)
        np.testing.assert_allclose(volumes_ml(new), volumes_ml(old), rtol=1e-5)
    centres = [[_centre_mm(visit) for visit in one.visits] for one in (now, was)]
    apart = [np.linalg.norm(np.diff(one, axis=0), axis=1) for one in centres]
    assert np.abs(apart[0] - apart[1]).max() < 1.5
    here, there = (one.brain for one in (now, was))
    truth = resampled(
        there.data,
        np.linalg.inv(there.affine_mm) @ was.visits[0].images["FLAIR"].affine_mm,
        shape=was.visits[0].images["FLAIR"].data.shape,
        order=0,
        outside=0.0,
    )
    flair = next(v.images["FLAIR"] for v in now.visits)
    found = resampled(
        here.data,
        np.linalg.inv(here.affine_mm) @ flair.affine_mm,
        shape=flair.data.shape,
        order=0,
        outside=0.0,
    )
    assert found.shape == truth.shape
    written = [np.flip(truth, axis=axes) for axes in ((), (1,), (2,), (1, 2))]  # dcm2niix's order
    overlaps = [
        2 * ((found > 0) & (t > 0)).sum() / ((found > 0).sum() + (t > 0).sum()) for t in written
    ]
    assert max(overlaps) > 0.93


def _dose_from_tumor_mm(visit):
    """From the middle of the tumour to the middle of the dose, in world millimetres."""
    dose = visit.dose_gy
    middle = np.argwhere(dose.data > 0.9 * dose.data.max()).mean(axis=0)
    return dose.affine_mm[:3, :3] @ middle + dose.affine_mm[:3, 3] - _centre_mm(visit)


def _centre_mm(visit):
    middle = np.argwhere(visit.tumor.data > 0).mean(axis=0)
    return visit.tumor.affine_mm[:3, :3] @ middle + visit.tumor.affine_mm[:3, 3]


def test_a_virtual_patient_comes_back_from_dicom(virtual, tmp_path):
    """Series, segmentations and a dose on a planning CT, the head lying otherwise each time."""
    labels = as_dicom(virtual, tmp_path / "in")
    tables = write_tables(virtual, tmp_path / "tables", NUMBER, lambda on: map(str, on))
    now = taken(tmp_path / "in", tmp_path, style="dicom", labels=str(labels), tables=tables)
    assert_same(now, virtual)
    for new, old in zip(now.visits, virtual.visits, strict=True):
        assert (new.dose_gy is None) == (old.dose_gy is None)
        if new.dose_gy is not None:
            assert new.dose_gy.data.max() == pytest.approx(old.dose_gy.data.max(), abs=0.01)
            moved_mm = _dose_from_tumor_mm(new) - _dose_from_tumor_mm(old)
            assert np.linalg.norm(moved_mm) < 3.0  # turned onto the atlas by some degrees
    assert now.sex == "F"


def test_a_dose_lies_right_also_where_the_scans_were_registered_before(virtual, tmp_path):
    """The visits lie in one world; the planning CT does not."""
    labels = as_dicom(virtual, tmp_path / "in", where=lambda _: np.eye(4))
    tables = write_tables(virtual, tmp_path / "tables", NUMBER, lambda on: map(str, on))
    about = {"style": "dicom", "labels": str(labels), "tables": tables, "registered": True}
    now = taken(tmp_path / "in", tmp_path, **about)
    ((new, old),) = (
        (n, o) for n, o in zip(now.visits, virtual.visits, strict=True) if o.dose_gy is not None
    )
    assert np.linalg.norm(_dose_from_tumor_mm(new) - _dose_from_tumor_mm(old)) < 3.0


def test_a_virtual_patient_comes_back_from_brats_files(virtual, tmp_path):
    """NIfTI in the style of the challenges, with dates in the hospital's own tables."""
    name = "BraTS-GLI-00017"
    as_brats(virtual, tmp_path / "in")
    count = len(virtual.visits)
    tables = write_tables(
        virtual, tmp_path / "tables", name, lambda on: [f"{i:03d}" for i in range(count)]
    )
    numbers = tmp_path / "numbers.tsv"
    numbers.write_text(f"participant_id\thospital_number\n{name}\t{NUMBER}\n")
    now = taken(
        tmp_path / "in",
        tmp_path,
        style="brats",
        labels="brats-2023",
        tables=tables,
        numbers=numbers,
    )
    assert_same(now, virtual)
