"""What the check of a cohort says as a whole, and where it writes it."""

import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cohort_builder as build
import numpy as np
import pytest
from rich.console import Console

from oncofed_client.__main__ import app
from oncofed_client.check import check, findings_table, write_findings
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.errors import CohortRefusal, SystemRefusal
from oncofed_common.study_terms import CohortTerms
from oncofed_common.terminal import run_app


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Three patients: one without fault, one with a visit cut off, one who came once."""
    root = build.write_cohort(tmp_path_factory.mktemp("report") / "cohort", patients=3, visits=3)
    cut = build.image_path(root, "sub-002", "ses-02", "T1w")
    cut.write_bytes(cut.read_bytes()[:-100])
    for session in ("ses-02", "ses-03"):
        build.outline_path(root, "sub-003", session).unlink()
    return root


@pytest.fixture(scope="module")
def report(faulty):
    return check(faulty)


def terms(**changed):
    fields = {
        "modalities": ["T1w"],
        "label_scheme": {"NETC": 1},
        "spacing_mm": 3.0,
        "crop_voxels": 32,
        "fewest_visits": 2,
        "held_out_fraction": 0.25,
    }
    return CohortTerms.model_validate({**fields, **changed})


def test_one_bad_patient_never_stops_the_rest(report):
    assert report.participants == ("sub-001", "sub-002", "sub-003")
    assert report.takes_part == ("sub-001", "sub-002")
    assert [(f.participant, f.code) for f in report.findings] == [
        ("sub-002", "truncated"),
        ("sub-003", "outline_missing"),
        ("sub-003", "outline_missing"),
        ("sub-003", "few_visits"),
    ]


@contextmanager
def nobody() -> Iterator[None]:
    """As an account that owns nothing, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_looked_into_excludes_its_patient_and_nobody_else():
    root = Path(tempfile.mkdtemp(prefix="cohort-"))
    try:
        cohort = build.write_cohort(root / "cohort", patients=2, visits=2)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert check(cohort).findings == ()
        closed = cohort / "sub-001" / "ses-02" / "anat"
        closed.chmod(0)
        with nobody():
            found = check(cohort)
            opened = read_cohort(cohort)
            with pytest.raises(CohortRefusal):
                read_patient(opened, "sub-001")
        assert found.takes_part == ("sub-002",)
        assert {made.code for made in found.findings} == {"unreadable"}
        closed.chmod(0o755)
    finally:
        shutil.rmtree(root)


def test_a_study_that_asks_for_more_visits_says_who_takes_part(faulty):
    assert check(faulty, terms=terms(fewest_visits=3)).takes_part == ("sub-001",)


def test_processes_change_nothing_but_the_time(faulty, report):
    assert check(faulty, workers=2) == report


def test_progress_counts_every_patient(faulty):
    seen = []
    check(faulty, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_without_workers_nothing_is_checked(faulty):
    with pytest.raises(SystemRefusal):
        check(faulty, workers=0)


def test_the_refusal_of_a_broken_cohort_is_one_line_without_names(faulty, report):
    refusal = report.refusal()
    assert isinstance(refusal, CohortRefusal)
    assert refusal.code == "truncated"
    line = str(refusal)
    assert "\n" not in line
    assert "sub-" not in line
    assert str(faulty) not in line


def test_a_patient_with_too_few_visits_is_said_but_refuses_nothing(tmp_path):
    root = build.write_cohort(tmp_path / "cohort", patients=2, visits=2)
    keep_one_visit(root, "sub-001")
    report = check(root)
    assert [f.code for f in report.findings] == ["few_visits"]
    assert report.takes_part == ("sub-002",)
    assert report.refusal() is None


def keep_one_visit(root, name):
    shutil.rmtree(root / name / "ses-02")
    table = root / name / f"{name}_sessions.tsv"
    table.write_text("\n".join(table.read_text().split("\n")[:2]) + "\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_cohort_of_whom_nobody_can_take_part_is_refused_in_words(tmp_path, capsys, as_json):
    root = build.write_cohort(tmp_path / "cohort", patients=2, visits=1)
    words = ["check", str(root), "--workers", "1"]
    assert run_app(app, [*words, "--json"] if as_json else words) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "not a single patient can take part" in printed.err
    assert "sub-" not in printed.err
    if as_json:
        said = json.loads(printed.out)
        assert said.pop("error")["code"] == "few_visits"
        assert said == check(root).as_dict()


def test_a_name_in_a_refused_table_commands_no_terminal(tmp_path, capsys):
    root = build.write_cohort(tmp_path / "cohort")
    build.scheme_path(root).write_text("index\tname\n1\t\x1b[2J\x9b\n")
    assert run_app(app, ["check", str(root), "--json"]) == 2
    line = capsys.readouterr().err
    assert line.removesuffix("\n").isprintable()


def test_a_warning_refuses_nothing(tmp_path):
    root = build.write_cohort(tmp_path / "cohort")
    build.image_path(root, "sub-001", "ses-01", "T2w").unlink()
    report = check(root)
    assert report.counts() == {"visit": 0, "patient": 0, "cohort": 0, "nothing": 1}
    assert report.refusal() is None


def test_findings_are_written_for_this_account_alone(report, tmp_path):
    path = tmp_path / "findings.json"
    path.write_text(json.dumps(report.as_dict() | {"patients": 99}))
    path.chmod(0o644)
    write_findings(report, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == report.as_dict()
    assert [child.name for child in tmp_path.iterdir()] == ["findings.json"]
    assert report.as_dict()["excludes"] == {"visit": 3, "patient": 1, "cohort": 0, "nothing": 0}


def test_findings_that_cannot_be_written_are_refused(report, tmp_path):
    with pytest.raises(SystemRefusal) as caught:
        write_findings(report, tmp_path / "absent" / "findings.json")
    assert caught.value.code == "disk"
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_in_place_of_the_file_stays_and_no_draft_is_left(report, tmp_path):
    (tmp_path / "findings.json").mkdir()
    with pytest.raises(SystemRefusal):
        write_findings(report, tmp_path / "findings.json")
    assert [child.name for child in tmp_path.iterdir()] == ["findings.json"]


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_on_the_screen_shows_every_name_and_code_unbroken(report, width):
    screen = Console(width=width, file=io.StringIO())
    screen.print(findings_table(report))
    text = screen.file.getvalue()
    words = set(text.split())
    for made in report.findings:
        assert {made.code, made.participant, made.excludes} <= words
        assert {*made.found.split(), *made.fix.split()} <= words


def test_the_share_outside_the_crop_is_that_of_a_cube_around_the_centroid(tmp_path):
    root = build.write_cohort(tmp_path / "cohort")
    path = build.outline_path(root, "sub-001", "ses-01")

    def bar(data, affine):
        data[:] = 0
        data[8:26, 19, 15] = 1  # 18 voxels of 5 mm: 42.5 mm from the middle to the last one
        return data, affine

    build.rewrite(path, bar)
    (wide,) = check(root, terms=terms(spacing_mm=2.5)).findings
    assert wide.code == "outside_crop"
    assert wide.session == "ses-01"
    # a cube of 80 mm ends at 40 mm: one voxel of 18 is beyond it at either end
    assert wide.found.startswith(f"{2 / 18:.0%} ")
    assert check(root, terms=terms(spacing_mm=2.75)).findings == ()


def test_the_largest_patient_sets_the_memory_not_their_number(tmp_path):
    """Findings, not volumes, come back from a patient."""
    root = build.write_cohort(tmp_path / "cohort", patients=2)
    report = check(root, workers=2)
    held = json.dumps(report.as_dict())
    assert len(held) < 1000
    assert not any(isinstance(value, np.ndarray) for value in vars(report).values())
