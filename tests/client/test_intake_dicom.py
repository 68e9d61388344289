"""DICOM series, segmentations, structure sets and doses give the voxels that they were made from, or are
refused."""

from datetime import date, timedelta

import cohort_builder as build
import dicom_builder as dicom
import nibabel as nib
import numpy as np
import pydicom
import pytest

from oncofed_client.intake.channels import channel_of, read_series_table
from oncofed_client.intake.dicom import find_dicom
from oncofed_client.intake.tables import Tables
from oncofed_client.readers.contours import filled
from oncofed_client.readers.dicom import read_header
from oncofed_client.readers.dicom_objects import read_dose, read_segmentation, read_structures
from oncofed_client.readers.dicom_series import read_series
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal

DAY, LATER = date(2021, 3, 4), date(2021, 5, 3)
NAMES = {1: "Necrosis", 2: "Edema", 3: "Enhancing"}
TILT = np.array(  # a head tilted by 30 degrees in an oblique scan
    [
        [1.0, 0, 0, 3.0],
        [0, np.cos(np.pi / 6), -np.sin(np.pi / 6), -8.0],
        [0, np.sin(np.pi / 6), np.cos(np.pi / 6), 21.0],
        [0, 0, 0, 1.0],
    ]
)


def naming(name):
    return {word.casefold(): label for label, word in NAMES.items()}.get(name.casefold())


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """One visit: T1w, outline and dose, shape (32, 38, 30), and their affine."""
    root = build.write_cohort(tmp_path_factory.mktemp("scan") / "cohort")
    paths = (
        build.image_path(root, "sub-001", "ses-01", "T1w"),
        build.outline_path(root, "sub-001", "ses-01"),
        build.dose_path(root, "sub-001", "ses-01"),
    )
    images = [nib.load(path) for path in paths]
    return [np.asarray(image.dataobj) for image in images], images[0].affine


@pytest.fixture
def series(scan, tmp_path):
    (image, _, _), affine = scan
    about = {"patient": "0815", "day": DAY, "channel": "T1w"}
    return dicom.write_series(tmp_path / "in", image, affine, **about)


def at_world(volume, data, affine):
    """Values of ``volume`` where ``data`` has its voxels; 0 outside it."""
    index = np.argwhere(np.ones(data.shape, dtype=bool))
    world = index @ affine[:3, :3].T + affine[:3, 3]
    back = np.linalg.inv(volume.affine_mm)
    there = world @ back[:3, :3].T + back[:3, 3]
    assert np.abs(there - np.rint(there)).max() < 0.01
    there = np.rint(there).astype(int)
    seen = ((there >= 0) & (there < volume.data.shape)).all(axis=1)
    values = np.zeros(len(index))
    values[seen] = volume.data[tuple(there[seen].T)]
    return values.reshape(data.shape)


@pytest.mark.parametrize("turn", [np.eye(4), np.diag([-1.0, -1, 1, 1]), TILT])
def test_a_series_and_its_objects_lie_where_they_were_made(scan, tmp_path, turn):
    """Image, segmentation and dose have the same value at every world point, however the scan was
    turned."""
    (image, outline, dose), affine = scan
    affine = turn @ affine
    about = {"patient": "0815", "day": DAY}
    files = dicom.write_series(tmp_path / "in", image, affine, channel="T1w", **about)
    np.testing.assert_array_equal(at_world(read_series(files), image, affine), image)
    dicom.write_segmentation(tmp_path / "seg.dcm", files, outline, NAMES)
    found = read_segmentation(tmp_path / "seg.dcm", naming)
    np.testing.assert_array_equal(at_world(found, outline, affine), outline)
    dicom.write_dose(tmp_path / "dose.dcm", dose, affine, **about)
    found = at_world(read_dose(tmp_path / "dose.dcm"), dose, affine)
    np.testing.assert_allclose(found, dose, atol=1e-3)


def test_an_outline_on_a_file_of_its_own_takes_nothing_but_named_segments(series, scan, tmp_path):
    """A segment that the site does not name is no tumour; if none is named, there is no outline."""
    (_, outline, _), affine = scan
    dicom.write_segmentation(tmp_path / "seg.dcm", series, outline, NAMES | {3: "Vessel"})
    found = at_world(read_segmentation(tmp_path / "seg.dcm", naming), outline, affine)
    np.testing.assert_array_equal(found, np.where(outline == 3, 0, outline))
    with pytest.raises(CohortRefusal) as caught:
        read_segmentation(tmp_path / "seg.dcm", lambda name: None)
    assert caught.value.code == "structure_unknown"


def circle(centre_mm, radius_mm, affine, number=400):
    angle = np.linspace(0, 2 * np.pi, number, endpoint=False)
    flat = np.stack([np.cos(angle), np.sin(angle), np.zeros(number)], axis=1)
    return np.asarray(centre_mm) + radius_mm * flat


def test_contours_hold_the_voxels_whose_centres_they_go_round(scan):
    """The closed form: a voxel is in a circle if its centre is nearer than the radius; a ring is a
    difference."""
    (image, _, _), affine = scan
    volume = Volume(data=image, affine_mm=affine)
    centre = affine[:3, :3] @ [16, 20, 12] + affine[:3, 3]
    index = np.moveaxis(np.indices(image.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    away = np.linalg.norm(index - centre, axis=-1)
    here = np.arange(image.shape[2]) == 12
    disc = filled([circle(centre, 27.3, affine)], volume)
    np.testing.assert_array_equal(disc, (away < 27.3) & here)
    ring = filled([circle(centre, 27.3, affine), circle(centre, 13.1, affine)], volume)
    np.testing.assert_array_equal(ring, (away < 27.3) & (away > 13.1) & here)
    with pytest.raises(CohortRefusal) as caught:
        filled([circle(centre + np.array([0, 0, 2.5]), 20, affine)], volume)
    assert caught.value.code == "contours_tilted"


def test_a_structure_set_is_filled_on_its_image_and_what_lies_inside_stays(series, scan, tmp_path):
    """A core inside a larger structure is core; a structure that is not named is nothing."""
    (image, _, _), affine = scan
    volume = read_series(series)
    centre = affine[:3, :3] @ [16, 20, 12] + affine[:3, 3]
    loops = {
        "Edema": [circle(centre, 40.7, affine)],
        "Necrosis": [circle(centre, 16.2, affine)],
        "Brainstem": [circle(centre + np.array([0, -30, 0]), 9, affine)],
    }
    dicom.write_structures(tmp_path / "rt.dcm", loops, patient="0815", day=DAY)
    found = at_world(read_structures(tmp_path / "rt.dcm", volume, naming), image, affine)
    index = np.moveaxis(np.indices(image.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    away = np.linalg.norm(index - centre, axis=-1)
    here = np.arange(image.shape[2]) == 12
    np.testing.assert_array_equal(found == 1, (away < 16.2) & here)
    np.testing.assert_array_equal(found == 2, (away < 40.7) & (away > 16.2) & here)


def spoil(series, how):
    """Plant one fault in a series; what is left of it."""
    if how == "truncated":
        series[7].write_bytes(series[7].read_bytes()[:-500])
    elif how == "slices_uneven":
        series.pop(11)
    elif how == "doubled":
        series.append(series[0].with_name("again.dcm"))
        series[-1].write_bytes(series[3].read_bytes())
    else:
        for path in series:
            file = pydicom.dcmread(path)
            if how == "affine_missing":
                del file.ImageOrientationPatient
            elif how == "not_scalar":
                file.SamplesPerPixel, file.PhotometricInterpretation = 3, "RGB"
            elif how == "not_converted" and path is series[0]:
                file.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
            file.save_as(path)
    return series


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("truncated", "truncated"),
        ("affine_missing", "affine_missing"),
        ("slices_uneven", "slices_uneven"),
        ("doubled", "slices_uneven"),
        ("not_scalar", "not_scalar"),
        ("not_converted", "not_converted"),
    ],
)
def test_a_series_that_is_not_whole_is_refused_without_a_name(series, how, code):
    """No half volume, no volume in the wrong place; and nothing of the header is in the words."""
    with pytest.raises(CohortRefusal) as caught:
        read_series(spoil(series, how))
    assert caught.value.code == code
    for secret in (dicom.NAME, "0815", str(series[0].parent), "2021"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("DoseUnits", "RELATIVE"), ("DoseSummationType", "FRACTION")]
)
def test_a_dose_that_is_not_a_plan_s_in_gy_is_refused(scan, tmp_path, field, value):
    """A fraction's dose taken for a course's would be thirty times too small."""
    (_, _, dose), affine = scan
    dicom.write_dose(tmp_path / "dose.dcm", dose, affine, patient="0815", day=DAY)
    file = pydicom.dcmread(tmp_path / "dose.dcm")
    setattr(file, field, value)
    file.save_as(tmp_path / "dose.dcm")
    with pytest.raises(CohortRefusal) as caught:
        read_dose(tmp_path / "dose.dcm")
    assert caught.value.code == "dose_unsupported"


@pytest.mark.parametrize(
    ("words", "times", "channel"),
    [
        ("t1 mprage sag", (3, 2000, 900), "T1w"),
        ("T1_MPRAGE_SAG_POST_GD", (3, 2000, 900), "ce-gadolinium_T1w"),
        ("t1 se tra + c", (12, 500, 0), "ce-gadolinium_T1w"),
        ("Ax T2 FLAIR", (110, 9000, 2500), "FLAIR"),
        ("t2 tse", (90, 5000, 0), "T2w"),
        ("AX BRAIN", (90, 5000, 0), "T2w"),
        ("t2 flair", (0, 0, 0), "FLAIR"),
        ("t2 tse", (3, 2000, 900), None),
        ("t1 nativ", (3, 2000, 900), "T1w"),
        ("AX BRAIN", (0, 0, 0), None),
        ("ep2d diff b1000", (90, 5000, 0), None),
        ("t2* gre", (20, 700, 0), None),
        ("localizer", (3, 20, 0), None),
        ("t1 flair", (0, 0, 0), None),
    ],
)
def test_a_channel_is_what_was_measured_and_what_it_is_called(
    scan, tmp_path, words, times, channel
):
    """Where the two disagree, or neither speaks, the series is left to the site."""
    (image, _, _), affine = scan
    echo, repetition, inversion = (time or None for time in times)
    (path, *_) = dicom.write_series(
        tmp_path,
        image[:, :, :1],
        affine,
        patient="0815",
        day=DAY,
        channel="x",
        SeriesDescription=words,
        EchoTime=echo,
        RepetitionTime=repetition,
        InversionTime=inversion,
    )
    header = read_header(path)
    assert channel_of(header, {}) == channel
    table = tmp_path / "series.tsv"
    table.write_text(f"description\tchannel\n{words.upper()}\tT2w\n")
    assert channel_of(header, read_series_table(table)) == "T2w"


def found_in(folder, **how):
    return find_dicom(folder, Tables(), {}, named={}, watch=lambda *_: None, **how)


def hospital(scan, root):
    """Two days of one patient, with an outline and a dose."""
    (image, outline, dose), affine = scan
    about = {"patient": "0815"}
    for day in (DAY, LATER):
        folder = root / f"{day}"
        for channel in ("ce-gadolinium_T1w", "FLAIR"):
            files = dicom.write_series(
                folder, image[..., ::3], affine, channel=channel, day=day, **about
            )
        dicom.write_segmentation(folder / "seg.dcm", files, outline[..., ::3], NAMES)
    dicom.write_dose(root / "dose.dcm", dose, affine, day=DAY, **about)
    return root


def test_series_and_objects_are_found_by_patient_and_day(scan, tmp_path):
    """A visit is a day; an object belongs to the images in whose frame of reference it lies."""
    root = hospital(scan, tmp_path / "in")
    (root / "notes.txt").write_text("no scan")
    found = found_in(root)
    (patient,) = found.patients
    assert (patient.name, patient.number, patient.refused) == ("0815", "0815", None)
    assert patient.person == {"sex": "F", "age_years": 59.0}
    assert [visit.when for visit in patient.visits] == [DAY, LATER]
    kinds = [sorted(item.kind for item in visit.items) for visit in patient.visits]
    whole = ["FLAIR", "ce-gadolinium_T1w", "outline"]
    assert kinds == [sorted([*whole, "dose"]), sorted(whole)]
    assert [(row.code, row.what) for row in found.rows] == [("not_dicom", "notes.txt")]


def test_a_series_of_two_patients_is_neither_s(scan, tmp_path):
    """A mixed series harms both, and nobody else."""
    root = hospital(scan, tmp_path / "in")
    path = next((root / f"{DAY}").glob("FLAIR-*.dcm"))
    file = pydicom.dcmread(path)
    file.PatientID = "0816"
    file.save_as(path)
    found = found_in(root)
    assert [(row.code, row.patient) for row in found.rows] == [
        ("mixed_patients", "0815"),
        ("mixed_patients", "0816"),
    ]
    (patient,) = found.patients
    assert "FLAIR" not in {item.kind for item in patient.visits[0].items}
    assert "FLAIR" in {item.kind for item in patient.visits[1].items}


def test_of_two_series_of_a_channel_the_finer_is_taken_and_a_dose_without_images_is_not(
    scan, tmp_path
):
    """The choice is in the table, and so is what has no image beside it."""
    (image, _, dose), affine = scan
    root = hospital(scan, tmp_path / "in")
    dicom.write_series(
        root, image, affine, patient="0815", day=DAY, channel="FLAIR", series="fine flair"
    )
    dicom.write_dose(root / "ct.dcm", dose, affine, patient="0815", day=date(2021, 3, 9))
    found = found_in(root)
    assert sorted(row.code for row in found.rows) == ["finer_taken", "no_image_beside"]
    flair = [i for i in found.patients[0].visits[0].items if i.kind == "FLAIR"]
    assert len(flair[0].files) == image.shape[2]


def test_a_dose_on_a_planning_ct_belongs_to_the_visit_before_it(scan, tmp_path):
    """The CT only says where the dose lies; one that no dose asks for is listed as any other series."""
    (image, _, dose), affine = scan
    root = hospital(scan, tmp_path / "in")
    (root / "dose.dcm").unlink()
    about = {"patient": "0815", "modality": "CT"}
    for day in (LATER + timedelta(days=3), DAY - timedelta(days=3)):
        dicom.write_series(
            root / f"{day}", image[..., ::8], affine, channel="planning", day=day, **about
        )
        dicom.write_dose(root / f"{day}" / "dose.dcm", dose, affine, patient="0815", day=day)
    dicom.write_series(root, image[..., ::8], affine, channel="chest", day=LATER, **about)
    late = root / f"{LATER + timedelta(days=3)}"
    scout = {
        "series": "a scout",
        "channel": "a scout",  # before the other one by name
        "day": LATER + timedelta(days=3),
    }
    dicom.write_series(late, image[..., :1], affine, **scout, **about)
    found = found_in(root)
    early, late = DAY - timedelta(days=3), LATER + timedelta(days=3)
    assert {(row.code, row.visit) for row in found.rows} == {
        ("channel_unclear", f"{LATER}"),
        ("channel_unclear", f"{early}"),
        ("no_image_beside", f"{early}"),
        ("planning_ct", f"{late}"),
        ("channel_unclear", f"{late}"),  # the topogram, which shares the frame
    }
    (patient,) = found.patients
    doses = [[i for i in visit.items if i.kind == "dose"] for visit in patient.visits]
    assert [len(of) for of in doses] == [0, 1]
    ((one,),) = doses[1:]
    assert {path.parent.name for path in one.beside} == {f"{late}"}
    assert len(one.beside) > 1


@pytest.mark.parametrize(("days", "taken"), [(90, True), (91, False)])
def test_a_plan_that_was_made_long_after_a_visit_was_made_on_other_images(
    scan, tmp_path, days, taken
):
    (image, _, dose), affine = scan
    root = hospital(scan, tmp_path / "in")
    (root / "dose.dcm").unlink()
    about = {"patient": "0815", "day": LATER + timedelta(days=days)}
    dicom.write_series(
        root / "ct", image[..., ::8], affine, channel="planning", modality="CT", **about
    )
    dicom.write_dose(root / "ct" / "dose.dcm", dose, affine, **about)
    found = found_in(root)
    codes = {"planning_ct"} if taken else {"planning_late", "channel_unclear"}
    assert {row.code for row in found.rows} == codes
    (patient,) = found.patients
    assert [i.kind for visit in patient.visits for i in visit.items].count("dose") == int(taken)


def test_of_two_series_with_as_many_slices_neither_is_taken(scan, tmp_path):
    """Nobody guesses which; what to do is what DICOM has: a folder, and --series."""
    (image, _, _), affine = scan
    root = hospital(scan, tmp_path / "in")
    dicom.write_series(
        root, image[..., ::3], affine, patient="0815", day=DAY, channel="FLAIR", series="again"
    )
    found = found_in(root)
    assert [row.code for row in found.rows] == ["series_alike"] * 2
    assert all("--series" in row.next for row in found.rows)
    assert "FLAIR" not in {item.kind for item in found.patients[0].visits[0].items}


def test_a_cut_file_and_one_without_a_patient_are_rows(scan, tmp_path):
    """Half a header, or a file that belongs to nobody, stops nothing."""
    root = hospital(scan, tmp_path / "in")
    paths = sorted((root / f"{LATER}").glob("FLAIR-*.dcm"))
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    file = pydicom.dcmread(paths[1])
    file.PatientID = ""
    file.save_as(paths[1])
    found = found_in(root)
    assert {row.code for row in found.rows} == {"truncated", "no_patient"}
    assert len(found.patients) == 1
