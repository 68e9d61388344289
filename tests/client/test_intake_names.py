"""What is found in a hospital's folder by the names of its files, in three styles; labels; nothing
guessed."""

import os
import re

import cohort_builder as build
import pytest

from oncofed_client.intake.found import OUTLINE, FoundPatient
from oncofed_client.intake.labels import read_scheme
from oncofed_client.intake.names import find_bids, find_brats, find_mapped
from oncofed_client.intake.people import known_people, new_names, read_source_numbers
from oncofed_client.intake.tables import Tables, read_tables
from oncofed_common.errors import CohortRefusal

NUMBERS = {"sub-001": "4711", "BraTS-GLI-00001": "4711", "p1": "4711"}
CHANNELS = {"T1w": "t1n", "ce-gadolinium_T1w": "t1c", "T2w": "t2w", "FLAIR": "t2f", OUTLINE: "seg"}


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return build.write_cohort(tmp_path_factory.mktemp("bids") / "source")


def scans(bids):
    """Session, kind and path of every scan of the one patient."""
    for session in ("ses-01", "ses-02"):
        for kind in CHANNELS:
            if kind == OUTLINE:
                yield session, kind, build.outline_path(bids, "sub-001", session)
            else:
                yield session, kind, build.image_path(bids, "sub-001", session, kind)


def brats_source(bids, root):
    for session, kind, path in scans(bids):
        visit = {"ses-01": "000", "ses-02": "001"}[session]
        stem = f"BraTS-GLI-00001-{visit}"
        place = root / stem / f"{stem}-{CHANNELS[kind]}.nii.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return root


def mapping_source(bids, root):
    root.mkdir()
    rows = ["participant_id\tsession_id\tkind\tpath"]
    for number, (session, kind, path) in enumerate(scans(bids)):
        (root / f"scan {number}.nii.gz").write_bytes(path.read_bytes())
        rows.append(f"p1\t{session}\t{kind}\tscan {number}.nii.gz")
    mapping = root.with_suffix(".tsv")
    mapping.write_text("\n".join(rows) + "\n")
    return root, mapping


def shape_of(source):
    """What each visit of the one patient holds, without names."""
    (patient,) = source.patients
    return [sorted(item.kind for item in visit.items) for visit in patient.visits]


def test_the_same_scans_are_found_in_each_of_the_three_styles(bids, tmp_path):
    """The same ten files are two visits with four channels and an outline, however they are named."""
    brats = find_brats(brats_source(bids, tmp_path / "brats"), Tables(), NUMBERS)
    folder, mapping = mapping_source(bids, tmp_path / "mapped")
    mapped = find_mapped(folder, mapping, Tables(), NUMBERS)
    (with_dose, without) = shape_of(find_bids(bids, Tables(), NUMBERS))
    assert with_dose == sorted([*CHANNELS, "dose"])
    assert shape_of(brats) == shape_of(mapped) == [without, without] == [sorted(CHANNELS)] * 2
    assert [row.code for row in (*brats.rows, *mapped.rows)] == []


def test_a_cohort_of_virtual_patients_stays_one(bids):
    """What a virtual hospital wrote is never taken for real patients."""
    assert find_bids(bids, Tables(), NUMBERS).virtual


def test_a_bids_source_brings_its_own_days_and_treatments(bids):
    """Where the source has tables of its own, nothing has to be written again."""
    (patient,) = find_bids(bids, Tables(), NUMBERS).patients
    assert [visit.when for visit in patient.visits] == [0, 60]
    (course,) = patient.treatments
    assert (course.kind, course.start, course.end, course.dose_gy) == ("radiotherapy", 10, 50, 60)
    assert patient.person["diagnosis"] == "glioblastoma"


def test_tables_of_the_site_go_before_those_of_the_source(bids, tmp_path):
    """A site may correct a date without touching the source."""
    (tmp_path / "sessions.tsv").write_text(
        "participant_id\tsession_id\twhen\tsteroid_mg\tkps\n"
        "sub-001\tses-01\t2021-03-04\t8\tn/a\nsub-001\tses-02\t2021-05-01\tn/a\t70\n"
    )
    (patient,) = find_bids(bids, read_tables(tmp_path), NUMBERS).patients
    assert [str(visit.when) for visit in patient.visits] == ["2021-03-04", "2021-05-01"]
    assert [visit.steroid_mg for visit in patient.visits] == [8, None]
    assert patient.treatments


def test_a_patient_with_a_row_that_cannot_be_read_is_left_out_and_no_other(tmp_path, bids):
    """A misspelt date concerns one patient."""
    root = tmp_path / "brats"
    brats_source(bids, root)
    for path in list(root.rglob("*.nii.gz")):
        other = root / path.name.replace("00001", "00002")
        other.write_bytes(path.read_bytes())
    (tmp_path / "sessions.tsv").write_text(
        "participant_id\tsession_id\twhen\tsteroid_mg\tkps\n"
        "BraTS-GLI-00001\t000\tlast spring\tn/a\tn/a\n"
    )
    numbers = NUMBERS | {"BraTS-GLI-00002": "4712"}
    found = find_brats(root, read_tables(tmp_path), numbers)
    assert [patient.refused for patient in found.patients] == ["row_invalid", None]


def test_two_names_of_one_hospital_number_and_a_patient_without_one_are_refused(bids, tmp_path):
    """Taken for two, one patient would have two lifetime budgets; zeros in front make no other number."""
    root = brats_source(bids, tmp_path / "brats")
    for path in list(root.rglob("*.nii.gz")):
        for other in ("00002", "00003"):
            (root / path.name.replace("00001", other)).write_bytes(path.read_bytes())
    numbers = {"BraTS-GLI-00001": "4711", "BraTS-GLI-00002": " 0004711"}
    found = find_brats(root, Tables(), numbers)
    assert [p.refused for p in found.patients] == ["number_twice", "number_twice", "no_number"]


def test_two_files_for_one_thing_are_neither_taken(bids, tmp_path):
    """Which of two runs is the right one, nobody guesses."""
    source = tmp_path / "source"
    for _, _, path in scans(bids):
        place = source / path.relative_to(bids)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    t1 = build.image_path(source, "sub-001", "ses-01", "T1w")
    t1.with_name("sub-001_ses-01_run-2_T1w.nii.gz").write_bytes(t1.read_bytes())
    found = find_bids(source, Tables(), NUMBERS)
    assert [(row.code, row.patient, row.visit) for row in found.rows] == [
        ("ambiguous", "sub-001", "ses-01")
    ] * 2
    assert "T1w" not in shape_of(found)[0]


def test_a_name_of_another_style_and_what_lies_outside_are_listed(bids, tmp_path, monkeypatch):
    """Nothing is dropped without a word, and no link leads out of the source."""
    source = brats_source(bids, tmp_path / "source")
    (source / "scan.nii.gz").write_bytes(b"?")
    secret = tmp_path / "BraTS-GLI-00009-000-t1n.nii.gz"
    secret.write_bytes(b"?")
    (source / secret.name).symlink_to(secret)
    (source / "all").symlink_to(tmp_path)
    (source / "inside").symlink_to(source)
    (source / "nowhere").symlink_to(tmp_path / "gone")
    (source / "round").symlink_to(source / "round")
    os.mkfifo(source / "pipe.nii.gz")
    (source / os.fsdecode(b"odd\xff.nii.gz")).write_bytes(b"?")
    (source / "closed.nii.gz").write_bytes(b"?")
    monkeypatch.setattr(os, "access", lambda path, _: path.name != "closed.nii.gz")
    found = find_brats(source, Tables(), NUMBERS)
    assert [(row.code, row.what) for row in found.rows] == [
        ("link_outside", secret.name),
        ("link_outside", "all"),
        ("unreachable", "closed.nii.gz"),
        ("link_outside", "nowhere"),
        ("unknown_name", "odd\\udcff.nii.gz"),
        ("no_file", "pipe.nii.gz"),
        ("link_outside", "round"),
        ("unknown_name", "scan.nii.gz"),
    ]
    assert [patient.name for patient in found.patients] == ["BraTS-GLI-00001"]
    mapping = tmp_path / "m.tsv"
    rows = [("T1w", f"../{secret.name}"), ("T2w", str(secret)), ("FLAIR", "gone.nii.gz")]
    rows += [("ce-gadolinium_T1w", "pipe.nii.gz"), ("outline", "inside"), ("dose", "closed.nii.gz")]
    text = "".join(f"p1\t1\t{kind}\t{path}\n" for kind, path in rows)
    mapping.write_text("participant_id\tsession_id\tkind\tpath\n" + text)
    found = find_mapped(source, mapping, Tables(), NUMBERS)
    assert [row.code for row in found.rows] == [
        "link_outside",
        "link_outside",
        "file_missing",
        "no_file",
        "no_file",
        "unreachable",
    ]
    assert found.patients == ()
    text = "".join(f"p1\t1\tT1w\t{path}\n" for path in ("round/x", "y" * 300))
    mapping.write_text("participant_id\tsession_id\tkind\tpath\n" + text)
    found = find_mapped(source, mapping, Tables(), NUMBERS)
    assert [row.code for row in found.rows] == ["unreachable", "unreachable"]


def test_a_folder_that_cannot_be_reached_is_a_row_and_the_others_are_found(bids, tmp_path):
    """No account, root neither, lists a path longer than the kernel takes."""
    source = brats_source(bids, tmp_path / "source")
    step = "x" * 250
    handle = os.open(source, os.O_RDONLY)
    try:
        for _ in range(20):
            os.mkdir(step, dir_fd=handle)
            below = os.open(step, os.O_RDONLY, dir_fd=handle)
            os.close(handle)
            handle = below
    finally:
        os.close(handle)
    found = find_brats(source, Tables(), NUMBERS)
    (row,) = found.rows
    assert (row.code, set(row.what.split("/"))) == ("unreachable", {step})
    assert [patient.name for patient in found.patients] == ["BraTS-GLI-00001"]


def test_a_named_scheme_and_its_table_say_the_same(tmp_path):
    """BraTS 2021 has 4 for enhancing tumour where later years have 3."""
    table = tmp_path / "labels.tsv"
    table.write_text("index\tname\n0\tbackground\n1\tNETC\n2\tSNFH\n4\tET\n")
    assert read_scheme("brats-2021") == read_scheme(str(table))
    assert read_scheme("brats-2023").values[4] != read_scheme("brats-2021").values[4]
    table.write_text("label\tname\nGTV  core\tNETC\nOedema\tSNFH\n")
    assert read_scheme(str(table)).of(" gtv CORE ") == 1
    assert read_scheme(str(table)).of("GTV") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "index\tname\n",
        "index\tname\n1\ttumour\n",
        "index\tname\n1\tET\n1\tRC\n",
        "index\tname\n1.5\tET\n",
        "index\tname\n1\tET\n01\tRC\n",
        "index\tname\n00\tET\n",
        "name\tindex\nET\t1\n",
        "index\tname\n1\n",
    ],
)
def test_a_label_table_that_leaves_something_to_guess_is_refused(text, tmp_path):
    """A label is named, or the intake does not begin."""
    (tmp_path / "labels.tsv").write_text(text)
    for words in (str(tmp_path / "labels.tsv"), "brats", str(tmp_path)):
        with pytest.raises(CohortRefusal) as caught:
            read_scheme(words)
        assert caught.value.code == "bad_labels"
        assert str(tmp_path) not in str(caught.value)


def patients_of(*numbers):
    return [
        FoundPatient(name=f"p{at}", number=number, visits=()) for at, number in enumerate(numbers)
    ]


def test_a_known_number_keeps_its_participant_and_a_new_one_gets_a_random_name(tmp_path):
    """A second intake finds the same patient under the same name; no name tells a number."""
    table = tmp_path / "ids.tsv"
    assert known_people(table) == {}
    table.write_text("participant_id\thospital_number\nsub-old\t0042\n")
    known = known_people(table)
    names = new_names(patients_of("42", "43", "44"), known, {"p1": "sub-begun"})
    assert (names["p0"], names["p1"]) == ("sub-old", "sub-begun")
    drawn = {new_names(patients_of("44"), known, {})["p0"] for _ in range(20)}
    assert len(drawn) == 20
    assert all(re.fullmatch("sub-[0-9a-f]{8}", name) for name in drawn)


def test_a_table_with_two_numbers_for_one_patient_is_refused(tmp_path):
    """Which of the two is right, the intake does not choose, and it does not write one of them away."""
    table = tmp_path / "ids.tsv"
    table.write_text("participant_id\thospital_number\nsub-a\t42\nsub-a\t43\n")
    for read in (known_people, read_source_numbers):
        with pytest.raises(CohortRefusal) as caught:
            read(table)
        assert caught.value.code == "number_twice"
