"""How are whole virtual hospitals written?

    OUT/hospital-1/                  the cohort: all that a site reads
    OUT/hospital-1.identities.tsv    participant_id, hospital_number: what a site's intake keeps elsewhere
    OUT/truth/hospital-1.json        what made each patient; no reader of a cohort looks there
    OUT/truth/hospital-1/sub-….npz   its densities: as it was, untreated, and under other doses

Patients are made by processes of their own, a patient each, so memory does not grow with their number;
OUT appears at once when everything is done. What is interrupted goes on where it was (``unfinished``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import oncofed_common
import oncofed_simulation
from oncofed_client.codehash import hash_of
from oncofed_client.readers.cohort_files import write_patient, write_table
from oncofed_common.errors import UsageRefusal
from oncofed_common.workers import each
from oncofed_simulation.memory import hand_back, one_thread
from oncofed_simulation.patients.contract import (
    GZIP_LEVEL,
    participant_row,
    remove_patient,
    write_cohort_tables,
    write_json,
)
from oncofed_simulation.patients.hospitals import COHORT_SEEDS, Hospital, hospital
from oncofed_simulation.patients.patient import virtual_patient
from oncofed_simulation.patients.truth import as_json, fields_npz
from oncofed_simulation.patients.unfinished import unfinished

Progress = Callable[[str, int, int], None]

MOST_SITES, MOST_PATIENTS = 1_000, 10_000


@dataclass(frozen=True, kw_only=True)
class Ward:
    """One virtual hospital and how many patients it has."""

    hospital: Hospital
    patients: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One patient to make."""

    folder: Path
    hospital: Hospital
    seed: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the tables need of a patient that is on disk."""

    row: dict[str, Any]
    hospital_number: str
    truth: dict[str, Any]
    visits: int


def wards_of(*, sites: int, patients: int, seed: int) -> list[Ward]:
    """``sites`` hospitals drawn from ``seed``, with ``patients`` each.

    Raises:
        UsageRefusal: a number below 1 or over what a cohort may hold, or a seed that is not a cohort's.
    """
    within = 1 <= sites <= MOST_SITES and 1 <= patients <= MOST_PATIENTS
    if not within or not 0 <= seed < COHORT_SEEDS:
        raise UsageRefusal(
            f"{sites} sites, {patients} patients, seed {seed}",
            allowed=f"1 to {MOST_SITES} sites, 1 to {MOST_PATIENTS} patients, "
            f"a seed from 0 to {COHORT_SEEDS - 1}",
            next="correct the numbers",
        )
    return [Ward(hospital=hospital(seed, number + 1), patients=patients) for number in range(sites)]


def write_cohorts(
    wards: Sequence[Ward], *, seed: int, out: Path, workers: int, progress: Progress
) -> dict[Path, int]:
    """Write a cohort folder for each hospital; the same hospitals and seed give the same bytes.

    Args:
        out: a new or empty folder.
        workers: processes; 1 makes the patients in this one.
        progress: told what is being done, how many patients are done, and of how many.

    Returns:
        The cohort folders, one a site, each with its number of visits.

    Raises:
        UsageRefusal: no worker.
        SystemRefusal: ``out`` is in use, or the disk does not take the files.
    """
    if workers < 1:
        raise UsageRefusal(
            f"{workers} workers", allowed="1 worker or more", next="correct the number"
        )
    with unfinished(out, plan=_plan(wards, seed)) as begun:
        jobs = [
            Job(folder=begun.folder, hospital=w.hospital, seed=seed, number=number + 1)
            for w in wards
            for number in range(w.patients)
        ]
        made: dict[str, dict[int, Made]] = {w.hospital.name: {} for w in wards}
        left: list[Job] = []
        for job in jobs:
            note = begun.note(job.hospital.name, job.number)
            if note is None:
                left.append(job)
            else:
                made[job.hospital.name][job.number] = Made(**note)
        before = len(jobs) - len(left)
        progress("virtual patients", before, len(jobs))
        done = each(_make, left, workers=workers, prepare=one_thread)
        for count, (job, patient) in enumerate(done, start=before + 1):
            begun.keep(job.hospital.name, job.number, asdict(patient))
            made[job.hospital.name][job.number] = patient
            progress("virtual patients", count, len(jobs))
        for ward in wards:
            of_site = made[ward.hospital.name]
            _write_site(
                begun.folder, ward.hospital, seed, [of_site[number] for number in sorted(of_site)]
            )
    return {
        out / ward.hospital.name: sum(m.visits for m in made[ward.hospital.name].values())
        for ward in wards
    }


def _plan(wards: Sequence[Ward], seed: int) -> str:
    """Everything that the bytes depend on."""
    code = hash_of(oncofed_common, oncofed_simulation)
    return json.dumps({"seed": seed, "code": code, "wards": [asdict(w) for w in wards]})


def _write_site(folder: Path, site: Hospital, seed: int, made: list[Made]) -> None:
    write_cohort_tables(
        folder / site.name,
        name=f"Virtual {site.name}; no patient in here is real",
        participants=[m.row for m in made],
    )
    identities = [
        {"participant_id": m.row["participant_id"], "hospital_number": m.hospital_number}
        for m in made
    ]
    write_table(
        folder / f"{site.name}.identities.tsv",
        ("participant_id", "hospital_number"),
        sorted(identities, key=lambda row: str(row["participant_id"])),
    )
    truth = {"seed": seed, "hospital": asdict(site), "patients": [m.truth for m in made]}
    write_json(folder / "truth" / f"{site.name}.json", truth)


def _make(job: Job) -> Made:
    virtual = virtual_patient(job.hospital, seed=job.seed, number=job.number, with_worlds=True)
    name = virtual.patient.participant
    cohort = job.folder / job.hospital.name
    remove_patient(cohort, name)
    write_patient(cohort, virtual.patient, gzip_level=GZIP_LEVEL)
    fields = job.folder / "truth" / job.hospital.name / f"{name}.npz"
    fields.parent.mkdir(parents=True, exist_ok=True)
    fields.write_bytes(fields_npz(virtual.worlds))
    truth = as_json(virtual.truth, virtual.worlds)
    made = Made(
        row=participant_row(virtual.patient),
        hospital_number=virtual.hospital_number,
        truth={"number": job.number, "participant_id": name} | truth,
        visits=len(virtual.patient.visits),
    )
    del virtual
    hand_back()
    return made
