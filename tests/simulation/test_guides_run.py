"""The guides lead where they say: every command line in them is typed, and what comes of it is looked at.

The lines are read from the guides, one after the other; one that is neither typed nor listed makes this red.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import guided_study as study
import pytest
from guide_desks import RECORD, Desk
from guide_lines import PAGES, ROOT, Guides, Line, block_of, guides
from guide_sources import bring_bids, bring_brats, bring_dicom, bring_mapping, heads
from house_commands import command_lines

from oncofed_client.courier.jail import jail_level
from oncofed_client.isolation import isolated_command
from oncofed_server.superlink import free_port
from oncofed_simulation.demo import PLAN
from oncofed_simulation.processes import Supervisor

pytestmark = [pytest.mark.timeout(3600), pytest.mark.xdist_group("guides")]

INTAKE, DOCTOR, GOVERNANCE = "docs/intake.md", "docs/doctor.md", "docs/governance.md"
RESEARCHER, PHYSICS = "docs/researcher.md", "docs/physics.md"
NOT_TYPED = {
    "make demo": ("takes six minutes", "tests/simulation/test_real_federation.py"),
    "oncofed-simulate demo": ("the same", "tests/simulation/test_real_federation.py"),
    "make test": ("runs the tests", "Makefile"),
    "make .venv/ready": ("makes the environment that this runs in", "Makefile"),
    "export PATH": ("every line here has it before it", "tests/simulation/guide_desks.py"),
    "pip install": ("needs a package index", "tests/house/test_house_wheel.py"),
    "oncofed-simulate pretrain": ("takes hours", "tests/simulation/test_pretrain.py"),
    "oncofed-simulate audit": ("takes minutes", "tests/simulation/test_audit_attacks.py"),
}
"""How a line begins that is not typed here, why, and what runs it or stands for it instead."""
SHORT = {
    "rounds = 3": "rounds = 1",
    "steps_per_round = 6": "steps_per_round = 1",
    "reply_after_s = 20": "reply_after_s = 1",
    "held_out_fraction = 0.12": "held_out_fraction = 0.001",
}
"""What the researcher changes in the demo's settings."""
FEW = {"3": "2", "24": "1", "365": "20"}
"""Virtual hospitals, patients of each, and days that a tumour grows."""
PROXY = Path(__file__).parents[1] / "deploy" / "connect_proxy.py"


@pytest.fixture(scope="module")
def pages() -> Guides:
    return guides()


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="fed-"))  # short: a socket's name has a hundred characters
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def children(root: Path) -> Iterator[Supervisor]:
    with Supervisor(root / RECORD, grace_s=2.0) as running:
        yield running


@pytest.fixture(scope="module")
def verdict(pages: Guides, root: Path, children: Supervisor) -> str:
    """What ``verify`` says of the study's release, and all lines of five guides typed."""
    if jail_level() == "none" or isolated_command(["true"]) == ["true"]:
        pytest.skip("no namespaces here: the programs refuse to start a real home")
    here = study.seated(pages, root, children)
    study.found_homes(here)
    study.make_cohorts(here)
    study.publish(here)
    study.agree(here)
    study.conduct(here)
    said = study.verify(here)
    study.look(here)
    ask_the_doctor(here)
    study.take_back(here)
    study.clear(here)
    answer_the_officer(here)
    return said


def ask_the_doctor(here: study.Parties) -> None:
    """Once more, by a proxy; what it finds of this machine may be a fault."""
    port, at = free_port(), here.coordinator.words["HOST:443"]
    here.north.words["http://proxy.example.org:3128"] = f"http://127.0.0.1:{port}"
    here.north.children.start(
        "proxy", [sys.executable, str(PROXY), str(port), at],
        environment={}, log=here.north.root / "proxy.log", folder=here.north.root,
    )  # fmt: skip
    here.pages.alike(DOCTOR, "oncofed-site doctor")
    said = here.north.run(here.pages.next(DOCTOR, "oncofed-site doctor"), codes=(0, 2))
    assert '"enrolled"' in said or '"coordinator"' in said


def answer_the_officer(here: study.Parties) -> None:
    """Every line of the page that was not typed word for word before."""
    said = ""
    for line in here.pages.left(GOVERNANCE):
        if not here.pages.typed_before(line):
            desk = here.coordinator if line.begins("oncofed-coordinator") else here.north
            said += desk.run(line)
        here.pages.taken.add(line)
    for kind in ("approval", "exclude", "withdrawal"):
        assert re.search(rf"│ {kind} +│", said), kind
    assert "lifetime_epsilon" in said


@pytest.fixture(scope="module")
def taken_in(pages: Guides, root: Path, children: Supervisor, verdict: str) -> list[Desk]:
    """A cohort by each example of the guide to intake, each at a desk of its own."""
    made = heads(root / "heads", patients=1)
    pages.alike(INTAKE, "oncofed-site intake")
    work: list[tuple[Desk, Line]] = []
    for style in ("brats", "bids", "nifti", "export"):
        desk = Desk(root / style, children)
        line = pages.next(INTAKE, f"oncofed-site intake --from /data/{style}")
        if style == "export":
            bring_dicom(desk, made, to="/data/export")
        else:
            {"brats": bring_brats, "bids": bring_bids, "nifti": bring_mapping}[style](desk, made)
        work.append((desk, line))
    study.at_once(lambda one: one[0].run(one[1]), work)
    work[0][0].run(pages.next(INTAKE, "oncofed-site check"))
    return [desk for desk, _ in work]


@pytest.fixture(scope="module")
def researched(pages: Guides, root: Path, children: Supervisor) -> Desk:
    """What a researcher types, with fewer patients and days."""
    desk = Desk(root / "researcher", children, words=dict(FEW))
    settings = PLAN.settings.read_text(encoding="utf-8")
    for old, new in SHORT.items():
        assert old in settings
        settings = settings.replace(old, new)
    desk.write(PLAN.settings.relative_to(ROOT).as_posix(), settings)
    desk.run(pages.next(RESEARCHER, "oncofed-simulate cohort"))
    desk.run(pages.next(RESEARCHER, "oncofed-site check"))
    desk.run(pages.next(RESEARCHER, "oncofed-simulate run"))
    tissue = min(desk.place("cohorts/hospital-1/derivatives/tissue").rglob("*_dseg.nii.gz"))
    shutil.copy(tissue, desk.place("TISSUE.nii.gz"))
    desk.run(pages.next(PHYSICS, "oncofed-simulate grow"))
    for page, words in (
        ("README.md", "oncofed-simulate cohort"),
        ("README.md", "oncofed-simulate run"),
        (PHYSICS, "oncofed-simulate cohort"),
    ):
        pages.alike(page, words)
    desk.place("u.nii.gz").unlink()
    desk.run(pages.next("README.md", "oncofed-simulate grow"))
    hospitals = re.sub(r"patients = \d+", "patients = 1", block_of(PHYSICS, "toml"))
    desk.write("hospitals.toml", hospitals)
    shutil.rmtree(desk.place("cohorts"))
    desk.run(pages.next(PHYSICS, "oncofed-simulate cohort --hospitals"))
    return desk


@pytest.mark.slow
def test_the_guides_alone_lead_to_a_release_that_verifies(verdict: str) -> None:
    """Two hospitals, two rounds, an interrupted run, and every fingerprint known."""
    found = dict(re.findall(r"│ (.+?) +│ (.+?) +│", verdict))
    assert (found["result"], found["trust"]) == ("everything holds", "full")
    assert (found["run"], found["replies"]) == ("complete", str(2 * study.ROUNDS))
    assert found["rounds"] == found["sums recomputed"] == str(study.ROUNDS)


@pytest.mark.slow
def test_every_example_of_intake_makes_a_cohort(taken_in: list[Desk]) -> None:
    """DICOM with named series, BraTS, BIDS and a mapping."""
    for desk in taken_in:
        rows = desk.place("/data/cohort/participants.tsv").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 2, desk.name


@pytest.mark.slow
def test_what_a_researcher_types_makes_what_the_guide_says(researched: Desk) -> None:
    """A federation in one process, a grown tumour, and hospitals of one's own."""
    assert researched.place("run/summary.json").exists()
    assert researched.place("u.nii.gz").exists()
    assert researched.place("cohorts/north").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("verdict", "taken_in", "researched")
def test_no_line_of_a_guide_is_left_untyped(pages: Guides) -> None:
    """But those that are listed, each with what runs it instead; and none is listed that no guide shows."""
    left = [line for page in PAGES for line in pages.left(page)]
    assert [str(line) for line in left if not listed(line)] == []
    for begins, (_, instead) in NOT_TYPED.items():
        assert any(" ".join(line.words).startswith(begins) for line in left), begins
        assert (ROOT / instead).exists()


def test_a_line_that_is_new_is_neither_typed_nor_listed() -> None:
    """So that the test above is seen to fail."""
    assert not listed(Line("docs/hospital.md", 99, ("oncofed-site", "dance")))


def test_no_other_page_shows_a_command_of_ours() -> None:
    """A command line on a page that nobody types from would escape."""
    others = [path for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in PAGES]
    assert [path.name for path in others if command_lines(path.read_text(encoding="utf-8"))] == []


def listed(line: Line) -> bool:
    return any(" ".join(line.words).startswith(begins) for begins in NOT_TYPED)
