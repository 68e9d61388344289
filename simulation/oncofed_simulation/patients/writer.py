"""How are whole virtual hospitals written?

    OUT/hospital-1/                  the cohort: all that a site reads
    OUT/hospital-1.identities.tsv    participant_id, hospital_number: what a site's intake keeps elsewhere
    OUT/truth/hospital-1.json        what made each patient; no reader of a cohort looks there

Patients are made by processes of their own, a patient each, so memory does not grow with their number;
OUT appears at once when everything is done, or not at all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from oncofed_common.durable import disk_refusal
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_simulation.patients.contract import (
    participant_row,
    write_cohort_tables,
    write_json,
    write_patient,
    write_table,
)
from oncofed_simulation.patients.hospitals import COHORT_SEEDS, Hospital, hospital
from oncofed_simulation.patients.patient import virtual_patient

Progress = Callable[[str, int, int], None]

MOST_SITES, MOST_PATIENTS = 1_000, 10_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """One patient to make."""

    cohort: Path
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


def write_cohorts(
    *, sites: int, patients: int, seed: int, out: Path, workers: int, progress: Progress
) -> dict[Path, int]:
    """Write ``sites`` virtual hospitals of ``patients`` each; the same seed gives the same bytes.

    Args:
        out: a new or empty folder.
        workers: processes; 1 makes the patients in this one.
        progress: told what is being done, how many patients are done, and of how many.

    Returns:
        The cohort folders, one a site, each with its number of visits.

    Raises:
        UsageRefusal: a number below 1 or over what a cohort may hold, or a seed that is not a cohort's.
        SystemRefusal: ``out`` is in use, or the disk does not take the files.
    """
    within = 1 <= sites <= MOST_SITES and 1 <= patients <= MOST_PATIENTS and workers >= 1
    if not within or not 0 <= seed < COHORT_SEEDS:
        raise UsageRefusal(
            f"{sites} sites, {patients} patients, {workers} workers, seed {seed}",
            allowed=f"1 to {MOST_SITES} sites, 1 to {MOST_PATIENTS} patients, 1 worker or more, "
            f"a seed from 0 to {COHORT_SEEDS - 1}",
            next="correct the numbers",
        )
    with _new_folder(out) as folder:
        hospitals = [hospital(seed, number + 1) for number in range(sites)]
        jobs = [
            Job(cohort=folder / h.name, hospital=h, seed=seed, number=number + 1)
            for h in hospitals
            for number in range(patients)
        ]
        made: dict[str, dict[int, Made]] = {h.name: {} for h in hospitals}
        progress("virtual patients", 0, len(jobs))
        for count, (job, patient) in enumerate(_run(jobs, workers), start=1):
            made[job.hospital.name][job.number] = patient
            progress("virtual patients", count, len(jobs))
        for h in hospitals:
            of_site = [made[h.name][number] for number in sorted(made[h.name])]
            _write_site(folder, h, seed, of_site)
    return {
        out / h.name: sum(patient.visits for patient in made[h.name].values()) for h in hospitals
    }


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
    virtual = virtual_patient(job.hospital, seed=job.seed, number=job.number)
    write_patient(job.cohort, virtual.patient)
    row = participant_row(virtual.patient)
    truth = {"number": job.number, "participant_id": row["participant_id"]} | asdict(virtual.truth)
    return Made(
        row=row,
        hospital_number=virtual.hospital_number,
        truth=truth,
        visits=len(virtual.patient.visits),
    )


def _run(jobs: list[Job], workers: int) -> Iterator[tuple[Job, Made]]:
    """Each job with its result, as they end."""
    if workers == 1:
        yield from ((job, _make(job)) for job in jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_start_worker
    )
    try:
        waiting: dict[Future[Made], Job] = {pool.submit(_make, job): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool:
        raise SystemRefusal(
            "a process that makes patients was ended from outside",
            allowed="processes that run to their end",
            next="see whether memory ran out, and use fewer workers",
            code="worker_ended",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread a process; Ctrl-C is the parent's to handle; the parent's death is ours too.

    numpy's threads wait for work by spinning: with two, a patient costs 70 % more of the processor.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "a worker is started by the pool"

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` at the end, and goes away if that is not reached.

    It has one name and is locked while it is filled: what a killed process left is taken over.
    """
    refuse_used(out)
    out = out.absolute()
    unfinished = out.parent / f".{out.name}.tmp"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        handle = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise disk_refusal(error) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise SystemRefusal(
            "another process that writes this folder",
            allowed="one at a time",
            next="wait until it ends, or name another folder",
            code="output_in_use",
        ) from None
    try:
        _empty(unfinished)
        yield unfinished
        unfinished.rename(out)
    except OSError as error:
        raise disk_refusal(error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(handle)


def refuse_used(out: Path) -> None:
    """Nothing, for a folder that is not there yet, or is empty.

    Raises:
        SystemRefusal: code ``out_exists``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemRefusal(
            "an output that is there already",
            allowed="a new or empty folder",
            next="name another folder, or remove this one",
            code="out_exists",
        )


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
