"""Every fault of folders and tables that the check knows."""

import shutil

import cohort_builder as build
from planting import ILL, WELL, Plant, identities, numbered, pipe, terms

IN_TABLES = {
    "the folder is not there": Plant(
        "no_cohort", "folder", "cohort", shutil.rmtree, of_patient=False
    ),
    "the folder is another one": Plant(
        "no_cohort",
        "folder",
        "cohort",
        lambda r: (
            shutil.move(r, r.with_name("elsewhere")) and (r / "elsewhere").mkdir(parents=True)
        ),
        of_patient=False,
    ),
    "the description lacks a key": Plant(
        "description_malformed",
        "description",
        "cohort",
        lambda r: build.edit(r / "dataset_description.json", "BIDSVersion", "Version"),
        of_patient=False,
    ),
    "the description is nested deeper than any reader goes": Plant(
        "description_malformed",
        "description",
        "cohort",
        lambda r: (r / "dataset_description.json").write_text("[" * 100_000),
        of_patient=False,
    ),
    "the description is a pipe": Plant(
        "table_malformed",
        "description",
        "cohort",
        lambda r: pipe(r / "dataset_description.json"),
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
    "a course is in weeks": Plant(
        "days_unit",
        "treatments table",
        "nothing",
        lambda r: build.edit(r / ILL / f"{ILL}_treatments.tsv", "10\t50", "1\t7"),
    ),
    "visits are in weeks": Plant(
        "days_unit",
        "sessions table",
        "nothing",
        lambda r: [
            build.edit(r / ILL / f"{ILL}_sessions.tsv", "ses-02\t60", "ses-02\t9"),
            build.edit(r / ILL / f"{ILL}_sessions.tsv", "ses-03\t150", "ses-03\t21"),
        ],
    ),
    "a treatment's dose is that of one fraction": Plant(
        "dose_unit",
        "treatments table",
        "nothing",
        lambda r: build.edit(r / ILL / f"{ILL}_treatments.tsv", "\t60\t", "\t2\t"),
    ),
    "a patient has no hospital number": Plant(
        "identity_missing",
        "identity table",
        "patient",
        lambda r: numbered(r, _002="4712"),
        with_identities=True,
    ),
    "a patient has two hospital numbers": Plant(
        "identity_missing",
        "identity table",
        "patient",
        lambda r: [
            numbered(r, _001="4711", _002="4712"),
            build.edit(identities(r), f"{WELL}\t", f"{ILL}\t4713\n{WELL}\t"),
        ],
        with_identities=True,
    ),
}
