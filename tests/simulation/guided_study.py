"""One study of two rounds by the lines of the guides: a coordinator, and two hospitals with real homes.

North follows docs/hospital.md, south the short way of README.md, the coordinator docs/coordinator.md. What is
written here is what readers put in: names, places, passphrases, choices, files sent by hand, and yes.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from guide_desks import Desk, fingerprint_in
from guide_lines import Guides, Line, block_of
from guide_sources import bring_dicom, heads

from oncofed_server.superlink import free_port
from oncofed_simulation.processes import Supervisor

README, HOSPITAL, COORDINATOR = "README.md", "docs/hospital.md", "docs/coordinator.md"
ROUNDS, PATIENTS = 2, 1
PASSPHRASE, SECOND = "typed by the approver", "typed by the second person"
YES = "y\n"
YESTERDAY = (dt.datetime.now(tz=dt.UTC) - dt.timedelta(days=1)).date().isoformat()
CHOSEN = {
    "title": '"A study by the guides"',
    "contact": '"whoever runs the tests"',
    "ethics_reference": '"none: nobody is a patient"',
    "expires": (dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=30)).date().isoformat(),
    "modalities": '["ce-gadolinium_T1w"]',
    "rounds": str(ROUNDS),
    "steps_per_round": "1",
    "sampling_rate": "0.5",
    "round_deadline_s": "400",
    "reply_after_s": "3",
}
"""What the coordinator changes in the settings that ``draft --template`` prints."""

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Parties:
    """Everybody at their desks; a hospital with the page that it follows and its home there."""

    pages: Guides
    coordinator: Desk
    north: Desk
    south: Desk

    @property
    def sites(self) -> list[tuple[Desk, str, str]]:
        return [(self.north, HOSPITAL, "/srv/oncofed"), (self.south, README, "HOME")]


def seated(pages: Guides, root: Path, children: Supervisor) -> Parties:
    """Three empty desks, and what each reader puts in for the words of a guide."""
    at = f"127.0.0.1:{free_port()}"
    coordinator, north, south = (
        Desk(root / name, children) for name in ("coordinator", "north", "south")
    )
    coordinator.words |= {"coordinator.example.org:443": at, "HOST:443": at}
    coordinator.words["HOME"] = "/srv/coordinator"
    coordinator.write("study.pass", PASSPHRASE)
    north.write("root/approver.pass", PASSPHRASE)
    north.write("root/second.pass", SECOND)
    north.words |= {"2027-01-31": YESTERDAY, "32": "2"}  # a day in the past; so many samples
    south.write("PASS", PASSPHRASE)
    south.words["north"] = "south"
    return Parties(pages, coordinator, north, south)


def found_homes(here: Parties) -> None:
    """Keys, enrolment, answers; fingerprints are read aloud."""
    pages, coordinator = here.pages, here.coordinator
    init = coordinator.run(pages.next(COORDINATOR, "oncofed-coordinator init"))
    coordinator.begin(pages.next(COORDINATOR, "oncofed-coordinator start"))
    trusted = json.loads(block_of(COORDINATOR, "json"))
    trusted["coordinator"] = fingerprint_in(init)
    for (desk, page, home), enrolling in zip(here.sites, (COORDINATOR, README), strict=True):
        said = desk.run(pages.next(page, "oncofed-site init"))
        trusted["sites"][desk.name] = fingerprint_in(said)
        desk.words["FINGERPRINT"] = fingerprint_in(init)
        desk.send(f"{home}/enrolment.json", coordinator, "enrolment.json")
        line = pages.next(enrolling, "oncofed-coordinator enrol")
        compared = coordinator.run(line).replace(" ", "")
        assert trusted["sites"][desk.name] in compared
        assert trusted["coordinator"] in compared
        coordinator.send(line.words[-1], desk, "answer.json")
        desk.run(pages.next(page, "oncofed-site join"))
    coordinator.write("fingerprints.json", json.dumps(trusted))
    for command in ("init", "start"):
        pages.alike(README, f"oncofed-coordinator {command}")


def make_cohorts(here: Parties) -> None:
    """From DICOM exports to cohorts against which the check has nothing; both hospitals at once."""

    def make(site: tuple[Desk, str, str]) -> None:
        desk, page, _ = site
        made = heads(desk.place("made"), patients=PATIENTS)
        bring_dicom(desk, made, to="/data/export" if desk is here.north else "EXPORT")
        desk.run(here.pages.next(page, "oncofed-site intake"))

    at_once(make, here.sites)
    here.north.run(here.pages.next(HOSPITAL, "oncofed-site check"))
    found = json.loads(here.north.place("findings.json").read_text(encoding="utf-8"))
    assert (found["patients"], len(found["takes_part"])) == (PATIENTS, PATIENTS)
    for page in (HOSPITAL, README):
        desk = here.north if page == HOSPITAL else here.south
        desk.run(here.pages.next(page, "oncofed-site doctor"), codes=(0, 2))  # of this machine too


def publish(here: Parties) -> None:
    """Settings, study, signature; the folder goes to both hospitals."""
    pages, coordinator = here.pages, here.coordinator
    settings = coordinator.run(pages.next(COORDINATOR, "oncofed-coordinator draft --template"))
    for key, value in CHOSEN.items():
        settings, changed = re.subn(
            rf'(?m)^{key} = ("[^"]*"|\[[^]]*]|\S+)', f"{key} = {value}", settings
        )
        assert changed == 1, key
    coordinator.write("settings.toml", settings)
    coordinator.run(pages.next(COORDINATOR, "oncofed-coordinator draft"))
    promised = coordinator.run(pages.next(COORDINATOR, "oncofed-coordinator statement"))
    assert promised.startswith("# Privacy statement: A study by the guides")
    said = coordinator.run(pages.next(COORDINATOR, "oncofed-coordinator publish"))
    for command in ("draft", "publish"):
        pages.alike(README, f"oncofed-coordinator {command}")
    (study,) = coordinator.place("/srv/coordinator/studies").iterdir()
    assert study.name in said
    for desk, name in ((here.north, "published"), (here.south, "PUBLISHED")):
        coordinator.send(f"/srv/coordinator/studies/{study.name}", desk, name)
    coordinator.words["HASH"] = here.north.words["STUDYHASH"] = study.name


def agree(here: Parties) -> None:
    """Who would take part, what is promised, and yes, in the north by two persons; then both run."""
    pages, north = here.pages, here.north

    def say_yes(site: tuple[Desk, str, str]) -> None:
        desk, page, _ = site
        desk.run(pages.next(page, "oncofed-site check"))
        desk.run(pages.next(page, "oncofed-site approve"), says=YES)

    north.run(pages.next(HOSPITAL, "oncofed-site statement"))
    north.run(pages.next(HOSPITAL, "oncofed-site add-approver"))
    policy = north.place("/srv/oncofed/trainer/policy.toml")
    limits = policy.read_text(encoding="utf-8")
    assert "\napprovers = 1\n" in limits
    policy.write_text(limits.replace("\napprovers = 1\n", "\napprovers = 2\n"), encoding="utf-8")
    at_once(say_yes, here.sites)
    pages.alike(HOSPITAL, "oncofed-site approve")  # the approver's line, as it stands there twice
    north.run(pages.next(HOSPITAL, "oncofed-site approve"), says=YES)
    north.run(pages.next(HOSPITAL, "oncofed-site check"))
    for desk, page, home in here.sites:
        desk.begin(pages.next(page, "oncofed-site start"))
        desk.words["socket"] = f"{home}/run/trainer.sock"
    for desk, _, _ in here.sites:
        desk.until(desk.place(desk.words["socket"]).exists, what="a trainer that listens")


def conduct(here: Parties) -> None:
    """The run: begun, interrupted in its first round by the end of the coordinator, resumed, complete."""
    pages, coordinator = here.pages, here.coordinator
    status = pages.next(COORDINATOR, "oncofed-coordinator status")
    coordinator.until(lambda: _connected(coordinator.run(status)) == 2, what="both sites connected")
    run = pages.next(COORDINATOR, "oncofed-coordinator run")
    coordinator.begin(run)
    pages.alike(README, "oncofed-coordinator run")
    runs = coordinator.place("/srv/coordinator/runs")
    coordinator.until(lambda: "task_sent" in _log_of(runs), what="the first task")
    (folder,) = runs.iterdir()
    coordinator.words["RUN"] = folder.name
    watch = pages.next(COORDINATOR, "oncofed-coordinator status")
    coordinator.begin(watch)
    start = _typed(pages, COORDINATOR, "oncofed-coordinator start")
    coordinator.end(start)
    coordinator.until_ended(run, code=1)
    coordinator.begin(start)
    coordinator.until(coordinator.place("/srv/coordinator/link.json").exists, what="SuperLink")
    stop = pages.next(COORDINATOR, "oncofed-coordinator stop")
    said = coordinator.run(pages.next(COORDINATOR, "oncofed-coordinator resume"))
    assert "complete" in said, said
    assert f"{ROUNDS} of {ROUNDS}" in said, said
    coordinator.until_ended(watch, code=0)
    coordinator.run(stop, codes=(2,))  # there is nothing to stop any more, and it says so


def verify(here: Parties) -> str:
    """What the release proves to whoever heard the fingerprints; what the program said."""
    coordinator = here.coordinator
    for part in ("release", "audit"):
        coordinator.send(
            f"/srv/coordinator/runs/{coordinator.words['RUN']}/{part}", coordinator, part
        )
    coordinator.send("release", here.north, "release")
    said = coordinator.run(here.pages.next(COORDINATOR, "oncofed-coordinator verify"))
    here.pages.alike(README, "oncofed-coordinator verify")
    return said


def look(here: Parties) -> None:
    """What was spent and what left, on the hospitals' screens; and a forecast with the new weights."""
    pages, north = here.pages, here.north
    assert f"{ROUNDS}/{ROUNDS}" in here.south.run(pages.next(README, "oncofed-site budget"))
    for command in ("budget", "budget", "audit", "audit"):
        north.run(pages.next(HOSPITAL, f"oncofed-site {command}"))
    left = north.place("left.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["round"] for line in left] == list(range(1, ROUNDS + 1))
    assert north.place("budget.png").read_bytes().startswith(b"\x89PNG")
    people = north.place("/data/cohort/participants.tsv").read_text(encoding="utf-8").splitlines()
    north.words["sub-001"] = people[1].split("\t")[0]
    columns = "kind\tstart_day\tend_day\tdose_gy\tfractions\tagent\tdose_mg_m2\n"
    north.write("wait.tsv", columns)
    north.write("sixty-gray.tsv", columns + "radiotherapy\t70\t110\t60\t30\tn/a\tn/a\n")
    lines = [pages.next(HOSPITAL, "oncofed-site forecast") for _ in range(2)]
    at_once(north.run, lines)
    for line in lines:
        assert any(north.place(line.words[-1]).iterdir())


def take_back(here: Parties) -> None:
    """Consent, a study, trust; the kill switch; a copied head that was lost; and new keys."""
    pages, north = here.pages, here.north
    for command in ("exclude", "withdraw", "distrust"):
        north.run(pages.next(HOSPITAL, f"oncofed-site {command}"))
    assert "courier" in north.run(pages.next(HOSPITAL, "oncofed-site stop"))
    north.place("/srv/oncofed/head/ledger-head.json").unlink()
    north.run(pages.next(HOSPITAL, "oncofed-site settle"), says=YES)
    north.run(
        pages.next(HOSPITAL, "oncofed-site settle"), says=YES, codes=(2,)
    )  # its clock is right
    stop = pages.next(HOSPITAL, "oncofed-site stop")
    north.run(stop)
    north.run(pages.next(HOSPITAL, "oncofed-site rotate"))
    north.send("/srv/oncofed/enrolment.json", here.coordinator, "enrolment.json")
    enrol = _typed(pages, COORDINATOR, "oncofed-coordinator enrol")
    here.coordinator.place(enrol.words[-1]).unlink()
    here.coordinator.run(enrol)
    north.begin(_typed(pages, HOSPITAL, "oncofed-site start"))
    north.until(north.place(north.words["socket"]).exists, what="a trainer under its new key")
    north.run(stop)


def clear(here: Parties) -> None:
    """A site that is left out from now on, and what of a run may go."""
    coordinator = here.coordinator
    coordinator.run(here.pages.next(COORDINATOR, "oncofed-coordinator revoke"))
    for _ in range(2):
        coordinator.run(here.pages.next(COORDINATOR, "oncofed-coordinator discard"))


def at_once(work: Callable[[Thing], object], things: Iterable[Thing]) -> None:
    """Two at a time; the first failure is raised."""
    with ThreadPoolExecutor(2) as both:
        list(both.map(work, things))


def _typed(pages: Guides, page: str, words: str) -> Line:
    """The line of a page that begins so and was typed; it may be typed again."""
    (found,) = (line for line in pages.taken if line.page == page and line.begins(words))
    return found


def _connected(status: str) -> int:
    """How many sites the table shows as connected: its fifth column."""
    rows = [[cell.strip() for cell in line.split("│")] for line in status.splitlines()]
    return sum(row[5] == "yes" for row in rows if row[1:2] in (["north"], ["south"]))


def _log_of(runs: Path) -> str:
    return "".join(log.read_text(encoding="utf-8") for log in runs.glob("*/log.jsonl"))
