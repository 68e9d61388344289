"""Every fault that the check knows, planted in a cohort without one, is named right and alone."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cohort_builder as build
import numpy as np
import pytest

from oncofed_client.check import check
from oncofed_client.findings import RULES
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.errors import CohortRefusal
from oncofed_common.study import CohortTerms

ILL, WELL = "sub-001", "sub-002"


@dataclass(frozen=True)
class Plant:
    """A fault: where it is planted, and what the check must say of it and leave out."""

    code: str
    file: str
    excludes: str
    plant: Callable[[Path], None]
    session: str | None = None
    also: frozenset[str] = frozenset()
    of_patient: bool = True
    terms: CohortTerms | None = None


def terms(**changed):
    fields = {
        "modalities": ["T1w", "FLAIR"],
        "label_scheme": {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        "spacing_mm": 3.0,
        "crop_voxels": 32,
        "fewest_visits": 2,
        "held_out_fraction": 0.25,
    }
    return CohortTerms.model_validate({**fields, **changed})


def image(root, channel="T1w", session="ses-02"):
    return build.image_path(root, ILL, session, channel)


def outline(root, session="ses-02"):
    return build.outline_path(root, ILL, session)


def header(path, place, value):
    """Write bytes into the header, as no library would."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[place : place + len(value)] = value
    path.write_bytes(gzip.compress(bytes(raw)))


def shift(*by_mm):
    def change(data, affine):
        moved = affine.copy()
        moved[:3, 3] += by_mm
        return data, moved

    return change


def flip(*axes):
    return lambda data, affine: (np.flip(data, axes), affine)


def voxel(value):
    def change(data, affine):
        data = data.astype(np.float32)
        data[16, 19, 15] = value
        return data, affine

    return change


def every_file(root, session, change):
    for channel in build.CHANNELS:
        build.rewrite(image(root, channel, session), change)
    build.rewrite(outline(root, session), change)


def rgb(root):
    colours = np.zeros(build.SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    build.save(image(root), colours, build.affine_mm())


def untreated_and_gone(root):
    table = root / ILL / f"{ILL}_treatments.tsv"
    table.write_text(table.read_text().split("\n")[0] + "\n")
    build.rewrite(outline(root), lambda data, affine: (0 * data, affine))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def metres(data, affine):
    return data, np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ affine


PLANTS = {
    "the folder is not there": Plant(
        "no_cohort", "folder", "cohort", shutil.rmtree, of_patient=False
    ),
    "the description lacks a key": Plant(
        "description_malformed",
        "description",
        "cohort",
        lambda r: build.edit(r / "dataset_description.json", "BIDSVersion", "Version"),
        of_patient=False,
    ),
    "the description is missing": Plant(
        "table_missing",
        "description",
        "cohort",
        lambda r: (r / "dataset_description.json").unlink(),
        of_patient=False,
    ),
    "the participants table is missing": Plant(
        "table_missing",
        "participants table",
        "cohort",
        lambda r: (r / "participants.tsv").unlink(),
        of_patient=False,
    ),
    "the participants table has no rows": Plant(
        "no_patients",
        "participants table",
        "cohort",
        lambda r: (r / "participants.tsv").write_text(
            (r / "participants.tsv").read_text().split("\n")[0]
        ),
        of_patient=False,
    ),
    "a column of the participants table is missing": Plant(
        "column_missing",
        "participants table",
        "cohort",
        lambda r: build.edit(r / "participants.tsv", "mgmt", "mgmt_status"),
        of_patient=False,
    ),
    "the participants table is not UTF-8": Plant(
        "table_malformed",
        "participants table",
        "cohort",
        lambda r: (r / "participants.tsv").write_bytes("käse".encode("latin-1")),
        of_patient=False,
    ),
    "the label table is missing": Plant(
        "table_missing",
        "label table",
        "cohort",
        lambda r: build.scheme_path(r).unlink(),
        of_patient=False,
    ),
    "the label scheme is another one": Plant(
        "scheme_unknown_name",
        "label table",
        "cohort",
        lambda r: build.edit(build.scheme_path(r), "NETC", "necrosis"),
        of_patient=False,
    ),
    "the label table names nothing": Plant(
        "scheme_unknown_name",
        "label table",
        "cohort",
        lambda r: build.scheme_path(r).write_text("index\tname\n0\tbackground\n"),
        of_patient=False,
    ),
    "the label table names a value twice": Plant(
        "row_invalid",
        "label table",
        "cohort",
        lambda r: build.edit(build.scheme_path(r), "4\tRC", "3\tRC"),
        of_patient=False,
    ),
    "the label table has an index that is no number": Plant(
        "row_invalid",
        "label table",
        "cohort",
        lambda r: build.edit(build.scheme_path(r), "4\tRC", "four\tRC"),
        of_patient=False,
    ),
    "the study forecasts a compartment that the site does not outline": Plant(
        "scheme_lacks_compartment",
        "label table",
        "nothing",
        lambda r: build.edit(build.scheme_path(r), "4\tRC\n", ""),
        of_patient=False,
        terms=terms(crop_voxels=64),
    ),
    "a value of the participants table is of the wrong kind": Plant(
        "row_invalid",
        "participants table",
        "patient",
        lambda r: build.edit(r / "participants.tsv", f"{ILL}\t61.5", f"{ILL}\told"),
    ),
    "a patient is listed twice": Plant(
        "participant_duplicate",
        "participants table",
        "patient",
        lambda r: build.edit(
            r / "participants.tsv", WELL, f"{ILL}\t1\tM\tn/a\t4\tn/a\tn/a\n{WELL}"
        ),
    ),
    "a patient has a folder and no row": Plant(
        "participant_unlisted",
        "folder",
        "patient",
        lambda r: build.edit(
            r / "participants.tsv", f"{ILL}\t61.5\tF\tglioblastoma\t4\twildtype\tn/a\n", ""
        ),
    ),
    "a patient has a row and no folder": Plant(
        "participant_folder_missing", "folder", "patient", lambda r: shutil.rmtree(r / ILL)
    ),
    "the sessions table is missing": Plant(
        "table_missing",
        "sessions table",
        "patient",
        lambda r: (r / ILL / f"{ILL}_sessions.tsv").unlink(),
        also=frozenset({"few_visits"}),
    ),
    "a visit is listed twice": Plant(
        "session_duplicate",
        "sessions table",
        "patient",
        lambda r: build.edit(
            r / ILL / f"{ILL}_sessions.tsv", "ses-03\t150", "ses-03\t150\t4\t90\nses-03\t151"
        ),
        session="ses-03",
    ),
    "two visits have one day": Plant(
        "days_not_increasing",
        "sessions table",
        "patient",
        lambda r: build.edit(r / ILL / f"{ILL}_sessions.tsv", "\t60\t", "\t0\t"),
    ),
    "the days go back": Plant(
        "days_not_increasing",
        "sessions table",
        "patient",
        lambda r: build.edit(r / ILL / f"{ILL}_sessions.tsv", "\t150\t", "\t30\t"),
    ),
    "a visit has a date in place of a day": Plant(
        "row_invalid",
        "sessions table",
        "patient",
        lambda r: build.edit(r / ILL / f"{ILL}_sessions.tsv", "\t150\t", "\t2024-03-01\t"),
    ),
    "a visit has a folder and no row": Plant(
        "session_unlisted",
        "folder",
        "visit",
        lambda r: build.edit(r / ILL / f"{ILL}_sessions.tsv", "ses-03\t150\t4\t90\n", ""),
        session="ses-03",
    ),
    "a visit has a row and no folder": Plant(
        "session_folder_missing",
        "folder",
        "visit",
        lambda r: shutil.rmtree(r / ILL / "ses-03"),
        session="ses-03",
    ),
    "a patient came once": Plant(
        "few_visits",
        "folder",
        "patient",
        lambda r: [
            shutil.rmtree(r / ILL / "ses-02"),
            shutil.rmtree(r / ILL / "ses-03"),
            (r / ILL / f"{ILL}_sessions.tsv").write_text(
                "session_id\tdays_from_baseline\tsteroid_mg\tkps\nses-01\t0\tn/a\tn/a\n"
            ),
        ],
    ),
    "the treatments table is missing": Plant(
        "table_missing",
        "treatments table",
        "patient",
        lambda r: (r / ILL / f"{ILL}_treatments.tsv").unlink(),
    ),
    "a treatment ends before it starts": Plant(
        "treatment_ends_before_start",
        "treatments table",
        "patient",
        lambda r: build.edit(r / ILL / f"{ILL}_treatments.tsv", "10\t50", "50\t10"),
    ),
    "a treatment is in centigray": Plant(
        "row_invalid",
        "treatments table",
        "patient",
        lambda r: build.edit(r / ILL / f"{ILL}_treatments.tsv", "\t60\t", "\t6000\t"),
    ),
    "a channel is missing": Plant(
        "channel_missing", "image", "nothing", lambda r: image(r).unlink(), session="ses-02"
    ),
    "a channel that the study needs is missing": Plant(
        "channel_missing",
        "image",
        "visit",
        lambda r: image(r).unlink(),
        session="ses-02",
        terms=terms(crop_voxels=64),
    ),
    "all channels are missing": Plant(
        "images_missing",
        "image",
        "visit",
        lambda r: [image(r, channel).unlink() for channel in build.CHANNELS],
        session="ses-02",
        also=frozenset({"channel_missing"}),
    ),
    "the outline is missing": Plant(
        "outline_missing", "outline", "visit", lambda r: outline(r).unlink(), session="ses-02"
    ),
    "the first outline is empty": Plant(
        "outline_empty",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r, "ses-01"), lambda d, a: (0 * d, a)),
        session="ses-01",
    ),
    "an outline is empty though nothing was treated": Plant(
        "outline_empty", "outline", "visit", untreated_and_gone, session="ses-02"
    ),
    "the outline has a label that nobody named": Plant(
        "label_unknown",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), voxel(7)),
        session="ses-02",
    ),
    "the outline was interpolated": Plant(
        "label_unknown",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), voxel(0.5)),
        session="ses-02",
    ),
    "the tissue map has a label that nobody named": Plant(
        "tissue_label_unknown",
        "tissue map",
        "nothing",
        lambda r: build.rewrite(build.tissue_path(r, ILL), voxel(4)),
    ),
    "the brain mask is not one": Plant(
        "tissue_label_unknown",
        "brain mask",
        "nothing",
        lambda r: build.rewrite(build.brain_path(r, ILL), voxel(0.5)),
    ),
    "the dose map is in centigray": Plant(
        "dose_implausible",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), lambda d, a: (100 * d, a)),
        session="ses-01",
    ),
    "the dose map is a share of the dose": Plant(
        "dose_implausible",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), lambda d, a: (d / 60, a)),
        session="ses-01",
    ),
    "the dose map is negative": Plant(
        "dose_implausible",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), voxel(-3)),
        session="ses-01",
    ),
    "a file is not NIfTI": Plant(
        "unreadable", "image", "visit", lambda r: image(r).write_text("scan"), session="ses-02"
    ),
    "a file is cut off": Plant(
        "truncated", "image", "visit", lambda r: truncate(image(r)), session="ses-02"
    ),
    "an outline is cut off": Plant(
        "truncated",
        "outline",
        "visit",
        lambda r: outline(r).write_bytes(outline(r).read_bytes()[:-40]),
        session="ses-02",
    ),
    "an image has four axes": Plant(
        "not_3d",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), lambda d, a: (np.stack([d, d], axis=3), a)),
        session="ses-02",
    ),
    "an image has colours": Plant("not_scalar", "image", "visit", rgb, session="ses-02"),
    "an image does not say where it lies": Plant(
        "affine_missing",
        "image",
        "visit",
        lambda r: header(image(r), 252, b"\0\0\0\0"),
        session="ses-02",
    ),
    "an affine is singular": Plant(
        "affine_singular",
        "image",
        "visit",
        lambda r: header(image(r), 312, np.zeros(4, dtype="<f4").tobytes()),
        session="ses-02",
    ),
    "an affine is in metres": Plant(
        "geometry_implausible",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), metres),
        session="ses-02",
    ),
    "an image holds NaN": Plant(
        "not_finite",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), voxel(np.nan)),
        session="ses-02",
    ),
    "a dose map holds infinity": Plant(
        "not_finite",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), voxel(np.inf)),
        session="ses-01",
    ),
    "an image is blank": Plant(
        "blank",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), lambda d, a: (0 * d + 7, a)),
        session="ses-02",
    ),
    "a tissue map is blank": Plant(
        "blank",
        "tissue map",
        "nothing",
        lambda r: build.rewrite(build.tissue_path(r, ILL), lambda d, a: (0 * d, a)),
    ),
    "an image lies elsewhere": Plant(
        "elsewhere",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), shift(0, 90, 0)),
        session="ses-02",
    ),
    "an image lies in another room": Plant(
        "elsewhere",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), shift(5000, 0, 0)),
        session="ses-02",
    ),
    "an outline lies elsewhere": Plant(
        "elsewhere",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), shift(0, 0, 700)),
        session="ses-02",
    ),
    "a dose map lies elsewhere": Plant(
        "elsewhere",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), shift(120, 0, 0)),
        session="ses-01",
    ),
    "a brain mask lies elsewhere": Plant(
        "elsewhere",
        "brain mask",
        "nothing",
        lambda r: build.rewrite(build.brain_path(r, ILL), shift(0, 80, 0)),
    ),
    "an outline lies off the brain": Plant(
        "off_brain",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), shift(50, 0, 0)),
        session="ses-02",
    ),
    "an image is mirrored left to right": Plant(
        "mirrored",
        "image",
        "visit",
        lambda r: build.rewrite(image(r, "FLAIR"), flip(0)),
        session="ses-02",
    ),
    "an outline is mirrored left to right": Plant(
        "mirrored",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), flip(0)),
        session="ses-02",
    ),
    "a tissue map is mirrored front to back": Plant(
        "mirrored",
        "tissue map",
        "nothing",
        lambda r: build.rewrite(build.tissue_path(r, ILL), flip(1)),
    ),
    "a visit is in a space of its own": Plant(
        "world_differs",
        "image",
        "visit",
        lambda r: every_file(r, "ses-02", shift(70, 0, 0)),
        session="ses-02",
    ),
    "a visit is mirrored as a whole": Plant(
        "world_differs",
        "image",
        "visit",
        lambda r: every_file(r, "ses-02", flip(0)),
        session="ses-02",
    ),
    "the tumour is larger than the crop": Plant(
        "outside_crop",
        "outline",
        "nothing",
        lambda r: build.rewrite(outline(r), voxel(1)),
        session="ses-02",
        terms=terms(crop_voxels=16),
    ),
}


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    root = build.write_cohort(tmp_path_factory.mktemp("clean") / "cohort", patients=2, visits=3)
    shutil.rmtree(root / WELL / "ses-03")
    build.edit(root / WELL / f"{WELL}_sessions.tsv", "ses-03\t150\t4\t90\n", "")
    return root


@pytest.fixture
def cohort(clean, tmp_path):
    return Path(shutil.copytree(clean, tmp_path / "cohort"))


def test_nothing_is_found_in_a_cohort_without_faults(clean):
    report = check(clean)
    assert report.findings == ()
    assert report.takes_part == report.participants == (ILL, WELL)
    assert report.refusal() is None


def test_every_code_has_a_planted_example():
    assert {plant.code for plant in PLANTS.values()} == set(RULES)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_named_right_and_alone(cohort, name):
    plant = PLANTS[name]
    plant.plant(cohort)
    report = check(cohort, terms=plant.terms)
    named = [made for made in report.findings if made.code == plant.code]
    about_ill = [made for made in named if made.participant in (ILL, None)]
    assert about_ill, [made.code for made in report.findings]
    for made in about_ill:
        assert (made.file, made.excludes) == (plant.file, plant.excludes)
        assert made.participant == (ILL if plant.of_patient else None)
        assert made.fix
    if plant.session:
        assert plant.session in {made.session for made in about_ill}
    others = {made.code for made in report.findings if made not in about_ill}
    assert others <= {*plant.also, *({plant.code} if plant.terms else ())}
    if plant.excludes == "cohort":
        assert report.takes_part == ()
    else:
        assert WELL in report.takes_part
        assert (ILL in report.takes_part) == (plant.excludes != "patient")


@pytest.mark.parametrize(
    "name",
    [
        "the days go back",
        "a file is cut off",
        "an outline is mirrored left to right",
        "a visit has a row and no folder",
        "the dose map is in centigray",
        "a tissue map is mirrored front to back",
        "a brain mask lies elsewhere",
    ],
)
def test_training_reads_what_the_check_lets_through_and_nothing_else(cohort, name):
    plant = PLANTS[name]
    plant.plant(cohort)
    opened = read_cohort(cohort)
    if plant.excludes == "patient":
        with pytest.raises(CohortRefusal) as caught:
            read_patient(opened, ILL, terms=plant.terms)
        assert ILL not in str(caught.value)
        return
    patient = read_patient(opened, ILL, terms=plant.terms)
    sessions = {visit.session for visit in patient.visits}
    if plant.session:
        assert (plant.session in sessions) == (plant.excludes == "nothing")
    optional = {
        "dose map": patient.visits[0].dose_gy,
        "tissue map": patient.tissue,
        "brain mask": patient.brain,
    }
    assert [name for name, part in optional.items() if part is None] == [
        name for name in optional if name == plant.file
    ]
