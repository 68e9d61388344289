"""Every fault that the check knows, planted in a cohort without one, is named right and alone."""

import io
import shutil
from pathlib import Path

import cohort_builder as build
import pytest
from planted_scans import IN_SCANS
from planted_tables import IN_TABLES
from planting import ILL, WELL, identities, numbered
from rich.console import Console

from oncofed_client.check import check, findings_table
from oncofed_client.findings import RULES
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_client.trainer.members import lifelong_keys
from oncofed_common.errors import CohortRefusal

PLANTS = IN_TABLES | IN_SCANS


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
    assert {plant.code for plant in PLANTS.values()} | {"identity_shared"} == set(RULES)


def test_a_patient_who_is_known_under_another_name_takes_part_once(cohort):
    """Its number is written in two ways; the name that the trainer would take stays."""
    numbered(cohort, _001="4711 X", _002="04711x")
    report = check(cohort, identities=identities(cohort))
    assert [(made.code, made.participant) for made in report.findings] == [
        ("identity_shared", WELL)
    ]
    assert report.findings[0].excludes == "patient"
    assert ILL in report.findings[0].found
    kept = lifelong_keys([ILL, WELL], identities=identities(cohort), secret=bytes(32))
    assert report.takes_part == (ILL,) == tuple(kept)
    numbered(cohort, _001="4711", _002="4712")
    assert check(cohort, identities=identities(cohort)).takes_part == (ILL, WELL)


def test_a_missing_table_is_named_on_the_screen_and_no_patient_outside_it(cohort):
    table = f"{ILL}/{ILL}_sessions.tsv"
    (cohort / table).unlink()
    report = check(cohort)
    assert table in {made.path for made in report.findings}
    screen = Console(width=200, file=io.StringIO())
    screen.print(findings_table(report))
    assert f"sessions table {table}" in screen.file.getvalue()
    assert ILL not in str(report.refusal())
    (cohort / "derivatives/tumor/dseg.tsv").unlink()
    assert "derivatives/tumor/dseg.tsv" in str(check(cohort).refusal())


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_named_right_and_alone(cohort, name):
    plant = PLANTS[name]
    plant.plant(cohort)
    table = identities(cohort) if plant.with_identities else None
    report = check(cohort, terms=plant.terms, identities=table)
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
