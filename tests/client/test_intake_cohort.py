"""A hospital's folder becomes a cohort that the check finds nothing wrong with, and nothing personal is in
it."""

import csv
import gzip
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path

import cohort_builder as build
import nibabel as nib
import numpy as np
import pytest

from oncofed_client.__main__ import app
from oncofed_client.check import check
from oncofed_client.intake.intake import Asked, intake
from oncofed_client.intake.report import EACH
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.errors import CohortRefusal, SystemRefusal
from oncofed_common.terminal import run_app

SECRETS = (b"Mustermann", b"4711-0815", b"4711-0816", b"19611224", b"sub-001", b"sub-002", b"2021")
NUMBERS = {"sub-001": "4711-0815", "sub-002": "4711-0816"}


def personal(path):
    """Write a scan again with a name in every field of its header that takes text."""
    image = nib.load(path)
    image.header["descrip"], image.header["aux_file"] = b"Mustermann^Erika 19611224", b"4711-0815"
    image.header["db_name"], image.header["intent_name"] = b"Mustermann", b"19611224"
    extension = nib.nifti1.Nifti1Extension("comment", b"Mustermann^Erika 2021-03-04")
    image.header.extensions.append(extension)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two patients of two visits; the second's second visit is cut short in every file."""
    root = build.write_cohort(tmp_path_factory.mktemp("hospital") / "scans", patients=2)
    for channel in ("T1w", "T2w", "FLAIR"):
        for path in root.rglob(f"*[0-9]_{channel}.nii.gz"):
            path.unlink()
    for path in (root / "derivatives" / "tissue").rglob("*.nii.gz"):
        path.unlink()
    for path in root.rglob("sub-001*.nii.gz"):
        personal(path)
    for path in root.rglob("sub-002_ses-02*.nii.gz"):
        path.write_bytes(path.read_bytes()[:-2000])
    build.edit(root / "sub-001" / "sub-001_sessions.tsv", "\t60\t", "\t61\t")
    return root


def digests(root):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def numbers_file(folder):
    rows = "".join(f"{name}\t{number}\n" for name, number in NUMBERS.items())
    (folder / "numbers.tsv").write_text("participant_id\thospital_number\n" + rows)
    return folder / "numbers.tsv"


def asked(source, folder, **how):
    words = {"style": "bids", "labels": "brats-2023", "name": "north", "registered": True}
    return Asked(
        source=source,
        out=folder / "cohort",
        identities=folder / "identities.tsv",
        numbers=numbers_file(folder),
        **(words | how),
    )


@pytest.fixture(scope="module")
def taken(source, tmp_path_factory):
    """The intake, interrupted after its first patient and gone on with; and what stood there between."""
    folder = tmp_path_factory.mktemp("taken")
    before = digests(source)

    def stop(what, done, total):
        if what == "patients" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        intake(asked(source, folder), workers=1, watch=stop)
    left = sorted(path.name for path in folder.iterdir())
    made_at = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    report = intake(asked(source, folder), workers=1, watch=lambda *_: None)
    return folder, report, {"left": left, "made_at": made_at, "before": before}


def test_what_is_taken_in_has_no_finding(taken):
    """The cohort's own check says so, for everybody in it; channels that were never there are named."""
    folder, report, _ = taken
    found = check(folder / "cohort")
    assert {one.code for one in found.findings} == {"channel_missing"}
    assert sorted(found.takes_part) == sorted(report.names.values())
    assert len(found.takes_part) == 1
    assert read_cohort(folder / "cohort").virtual


def test_days_treatments_and_volumes_are_those_of_the_source(taken, source):
    """What a forecast rests on goes through unchanged, voxel by voxel where nothing had to be
    registered."""
    folder, report, _ = taken
    was_cohort, is_cohort = read_cohort(source), read_cohort(folder / "cohort")
    for name in report.names:
        was = read_patient(was_cohort, name)
        now = read_patient(is_cohort, report.names[name])
        assert now.treatments == was.treatments
        assert (now.age_years, now.sex, now.grade) == (was.age_years, was.sex, was.grade)
        for old, new in zip(was.visits, now.visits, strict=True):
            assert (new.day, new.kps, new.steroid_mg) == (old.day, old.kps, old.steroid_mg)
            np.testing.assert_array_equal(new.tumor.data, old.tumor.data)
            np.testing.assert_allclose(new.tumor.affine_mm, old.tumor.affine_mm, atol=1e-4)
            assert set(new.images) == set(old.images) == {"ce-gadolinium_T1w"}
            assert (new.dose_gy is None) == (old.dose_gy is None)
        assert now.brain is not None
        assert now.tissue is not None
    assert [v.day for v in read_patient(is_cohort, report.names["sub-001"]).visits] == [0, 61]


def test_nothing_personal_is_in_the_cohort(taken, source):
    """No name, number or date of the source: in no file name, no table, no header, no picture."""
    folder, report, _ = taken
    files = [path for path in (folder / "cohort").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".gz", ".tsv", ".json", ".png"}
    for path in files:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        told = content + path.relative_to(folder).as_posix().encode()
        for new in report.names.values():  # drawn: they may begin like an old one
            told = told.replace(new.encode(), b"")
        by_chance = {b"2021"} if path.suffix == ".png" else set()
        assert [secret for secret in SECRETS if secret in told and secret not in by_chance] == []
    planted = gzip.decompress(
        build.image_path(source, "sub-001", "ses-01", "ce-gadolinium_T1w").read_bytes()
    )
    assert b"Mustermann" in planted


def test_the_header_of_a_scan_holds_what_is_allowed_and_nothing_else(taken):
    """Shape, type, affine and unit; every other field is as an empty header has it."""
    folder, _, _ = taken
    allowed = {"dim", "datatype", "bitpix", "pixdim", "vox_offset", "xyzt_units", "magic"}
    allowed |= {"qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "sizeof_hdr"}
    allowed |= {"quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"}
    allowed |= {"scl_slope", "scl_inter"}
    empty = nib.Nifti1Header()
    for path in (folder / "cohort").rglob("*.nii.gz"):
        header = nib.load(path).header
        assert list(header.extensions) == []
        other = {
            k for k in header if k not in allowed and header[k].tobytes() != empty[k].tobytes()
        }
        assert other == set()


def test_both_names_of_a_patient_are_in_one_private_table_outside(taken):
    """The ledger finds a patient again by its number; the table that says so is this account's alone."""
    folder, report, _ = taken
    table = folder / "identities.tsv"
    rows = list(csv.DictReader(table.read_text().splitlines(), delimiter="\t"))
    assert {row["participant_id"]: row["hospital_number"] for row in rows} == {
        report.names[name]: NUMBERS[name] for name in report.names
    }
    assert stat.S_IMODE(table.stat().st_mode) == 0o600


def test_a_broken_patient_is_rows_and_the_others_are_taken(taken):
    """Each file of the second patient's second visit is named with its fault, then the patient."""
    _, report, _ = taken
    assert sorted(report.names) == ["sub-001"]
    assert (report.found, report.visits) == (2, 2)
    about = [(r.visit, r.code) for r in report.left_out if r.patient == "sub-002"]
    assert about.count(("ses-02", "truncated")) == 2
    assert about[-2:] == [("ses-02", "images_missing"), ("", "few_visits")]
    whole = [row for row in report.rows if row.taken]
    assert {row.patient for row in whole} == {"sub-001"}
    assert len(whole) == 2 * 2 + 1  # a channel and an outline a visit, one dose


def test_the_source_is_only_read(taken, source):
    """Not a byte of it changes, and nothing is added to it."""
    _, _, between = taken
    assert digests(source) == between["before"]


def test_what_is_interrupted_goes_on_where_it_was(taken):
    """The patient that was finished is not taken in again, nor given another name; no cohort stands before
    the end."""
    folder, _, between = taken
    assert between["left"] == [".cohort.intake", "numbers.tsv"]
    assert len(between["made_at"]) == 2 * 2 + 1 + 2
    after = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert between["made_at"].items() <= after.items()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cohort", "identities.tsv", "numbers.tsv"]


def test_there_is_a_picture_of_each_visit(taken):
    """For the eyes of who runs the intake: PNG, large enough to see something."""
    folder, report, _ = taken
    pictures = sorted((folder / "cohort" / "derivatives" / "quality").rglob("*.png"))
    assert len(pictures) == report.visits
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000


def words(source, folder, *more):
    out, table = folder / "cohort", folder / "identities.tsv"
    return [
        *("intake", "--from", str(source), "--out", str(out), "--identities", str(table)),
        *("--labels", "brats-2023", *more),
    ]


@pytest.mark.parametrize(
    ("plant", "more", "code"),
    [
        ("empty", ["--style", "dicom"], "no_scans"),
        ("text", ["--style", "dicom"], "not_dicom"),
        ("empty", ["--style", "bids", "--numbers", "NUMBERS"], "no_scans"),
        ("empty", ["--style", "bids"], "usage"),
        ("empty", ["--style", "mapping", "--numbers", "NUMBERS"], "usage"),
        ("empty", ["--style", "dicom", "--mapping", "NUMBERS"], "usage"),
        ("empty", ["--style", "dicom", "--tables", "FOLDER"], "no_tables"),
        ("empty", ["--style", "dicom", "--labels", "mine"], "bad_labels"),
        ("empty", ["--style", "dicom", "--identities", "FOLDER/in/x.tsv"], "usage"),
        ("empty", ["--style", "dicom", "--out", "FOLDER/in/out"], "usage"),
        ("empty", ["--style", "dicom", "--report", "FOLDER/in/x.json"], "usage"),
        ("empty", ["--style", "dicom", "--report", "FOLDER/cohort/x.json"], "usage"),
        ("empty", ["--style", "dicom", "--report", "FOLDER/gone/x.json"], "disk"),
        ("empty", ["--style", "dicom", "--report", "FOLDER/identities.tsv"], "usage"),
        ("empty", ["--style", "bids", "--numbers", "NUMBERS", "--report", "NUMBERS"], "usage"),
        ("empty", ["--style", "bids", "--numbers", "NUMBERS", "--identities", "NUMBERS"], "usage"),
        ("empty", ["--style", "dicom", "--report", "FOLDER"], "disk"),
        ("empty", ["--style", "dicom", "--identities", "FOLDER"], "disk"),
        ("gone", ["--style", "dicom"], "no_source"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(
    plant, more, code, tmp_path, capfd
):
    """A folder without images, a style without its table, a place inside the source: refused before
    anything."""
    folder, source = tmp_path / "work", tmp_path / "work" / "in"
    source.mkdir(parents=True)
    if plant == "text":
        (source / "readme.txt").write_text("no scan")
    if plant == "gone":
        source.rmdir()
    numbers = str(numbers_file(tmp_path))
    more = [one.replace("NUMBERS", numbers).replace("FOLDER", str(folder)) for one in more]
    before = sorted(tmp_path.rglob("*"))
    assert run_app(app, [*words(source, folder, *more), "--json"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["error"]["code"] == code
    assert err.startswith("oncofed: ")
    assert err.count("\n") == 1
    assert str(tmp_path) not in err
    assert sorted(tmp_path.rglob("*")) == before


def refused_as_disk(request):
    try:
        intake(request, workers=1, watch=lambda *_: None)
    except SystemRefusal as refusal:
        return refusal.code == "disk"
    return False


def test_a_place_that_this_account_may_not_write_is_refused_before_anything_is_read(tmp_path):
    """Not after hours of work."""
    with tempfile.TemporaryDirectory() as name:  # where any account may look
        folder = Path(name)
        (folder / "in").mkdir()
        folder.chmod(0o555)
        request = asked(folder / "in", tmp_path)
        request = Asked(**(vars(request) | {"out": folder / "out", "identities": folder / "t.tsv"}))
        if os.getuid() != 0:
            assert refused_as_disk(request)
            return
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            os._exit(0 if refused_as_disk(request) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_where_nobody_can_be_taken_the_screen_says_of_each_file_why(tmp_path, capfd):
    """Not only the first of them, and in the report too; the refusal itself names nobody."""
    source = tmp_path / "in"
    source.mkdir()
    for name in ("one.txt", "two.txt"):
        (source / name).write_text("no scan")
    report = tmp_path / "why.json"
    more = ("--style", "dicom", "--report", str(report))
    assert run_app(app, words(source, tmp_path, *more)) == 2
    out, err = capfd.readouterr()
    assert out.count("not_dicom") == 2
    told = json.loads(report.read_text())
    assert [row["what"] for row in told["rows"]] == ["one.txt", "two.txt"]
    assert (told["taken"], report.stat().st_mode & 0o777) == (0, 0o600)
    assert "one.txt" in out
    assert "two.txt" in out
    assert err.count("\n") == 1
    assert "one.txt" not in err


def test_a_folder_of_another_style_is_one_row_and_says_what_to_correct(tmp_path, capfd):
    """And not a row for each file of a hospital; the report has each."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(EACH + 1):
        (source / f"P{number:03d}.nii.gz").write_bytes(b"no scan")
    report = tmp_path / "why.json"
    assert run_app(app, words(source, tmp_path, "--style", "dicom", "--report", str(report))) == 2
    out, err = capfd.readouterr()
    assert out.count("not_dicom") == 1
    assert out.count(".nii.gz") == 1
    assert f"and {EACH}" in out
    assert "correct --from or --style" in err
    assert len(json.loads(report.read_text())["rows"]) == EACH + 1


def test_where_nobody_can_be_taken_the_table_says_why_and_nothing_is_written(source, tmp_path):
    """One line without a name; beside it, for --json, every row."""
    numbers = {name: number for name, number in NUMBERS.items() if name == "sub-002"}
    (tmp_path / "few.tsv").write_text("participant_id\thospital_number\nsub-002\t4711-0816\n")
    request = asked(source, tmp_path)
    request = Asked(**(vars(request) | {"numbers": tmp_path / "few.tsv"}))
    with pytest.raises(CohortRefusal) as caught:
        intake(request, workers=1, watch=lambda *_: None)
    assert "not a single patient" in caught.value.found
    assert not any(name in str(caught.value) for name in (*NUMBERS, *numbers.values()))
    codes = {row["code"] for row in caught.value.facts["rows"]}
    assert {"no_number", "few_visits", "truncated"} <= codes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.tsv", "numbers.tsv"]


def test_a_cohort_or_a_report_that_is_there_already_is_left_alone(source, tmp_path):
    """Nothing is ever written over."""
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "mine").write_text("kept")
    numbers = str(numbers_file(tmp_path))
    line = [*words(source, tmp_path), "--style", "bids", "--numbers", numbers]
    assert run_app(app, line) == 2
    (tmp_path / "notes.json").write_text("{}")
    fresh = [str(tmp_path / "other") if one == str(tmp_path / "cohort") else one for one in line]
    assert run_app(app, [*fresh, "--report", str(tmp_path / "notes.json")]) == 2
    assert (tmp_path / "cohort" / "mine").read_text() == "kept"
    assert (tmp_path / "notes.json").read_text() == "{}"
    assert not (tmp_path / "other").exists()
