"""How is one patient taken in, from the source's files to files that the check finds nothing wrong with?

Read, brought into one space, evened out, written into a folder of the patient's own, examined. Whatever is
wrong with this patient is a row of the table; it stops no other one.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oncofed_client.intake.anatomy import in_brain
from oncofed_client.intake.clock import days_of
from oncofed_client.intake.found import DOSE, OUTLINE, FoundPatient, FoundVisit, Row, left_out
from oncofed_client.intake.intensities import even, scaled
from oncofed_client.intake.labels import Scheme
from oncofed_client.intake.passing import enough, passing
from oncofed_client.intake.pictures import draw_visit
from oncofed_client.intake.scans import Scans, read_scans
from oncofed_client.intake.space import InPlace, by_planning, in_one_space
from oncofed_client.readers.cohort_files import write_patient
from oncofed_client.readers.tables import ParticipantRow
from oncofed_common.cohort import Patient, Treatment, Visit, Volume
from oncofed_common.durable import disk_refusal
from oncofed_common.errors import CohortRefusal, SystemRefusal
from oncofed_common.places import no_memory
from oncofed_common.terminal import incident


@dataclass(frozen=True, kw_only=True)
class Job:
    """One patient to take in, under its new name, in a folder that is its own."""

    patient: FoundPatient
    participant: str
    folder: Path
    scheme: Scheme
    registered: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a patient: its row of the participants table, None if nothing was taken; how many
    visits."""

    rows: tuple[Row, ...]
    person: Mapping[str, Any] | None = None
    visits: int = 0


def take(job: Job) -> Outcome:
    """Take one patient in; whatever is wrong with it is in the rows.

    Raises:
        SystemRefusal: the disk, the memory or the installation, which concern every patient.
    """
    rows: list[Row] = []
    name = job.patient.name
    try:
        return _take(job, rows)
    except SystemRefusal:
        raise
    except CohortRefusal as error:
        rows.append(left_out(error.code, patient=name, found=error.found))
    except OSError as error:
        raise disk_refusal(error) from None
    except MemoryError:
        raise no_memory() from None
    except Exception as error:  # noqa: BLE001  one patient stops nobody; no text of it is shown
        rows.append(left_out("unexpected", patient=name, found=incident(error).found))
    shutil.rmtree(job.folder, ignore_errors=True)
    return Outcome(rows=tuple(rows))


def _take(job: Job, rows: list[Row]) -> Outcome:
    """Raises CohortRefusal: why nothing of this patient can be taken."""
    found = job.patient
    if found.refused is not None:
        why = left_out(found.refused, patient=found.name)
        raise CohortRefusal(why.found, allowed="-", next=why.next, code=why.code)
    days, treatments = days_of(found.visits, found.treatments)
    person = _person(job)
    scans = []
    for visit in _on_days(found, days, rows):
        within = job.folder.parent
        read = read_scans(found.name, visit, scheme=job.scheme, within=within, rows=rows)
        if read.images and read.tumor is not None:
            scans.append(_with_dose(found.name, read, rows))
        else:
            code = "outline_missing" if read.images else "images_missing"
            rows.append(left_out(code, patient=found.name, visit=visit.session))
            lost = [item.shown for item in visit.items if item.kind == DOSE and read.dose_gy]
            rows += [left_out(code, patient=found.name, visit=visit.session, what=w) for w in lost]
    enough(len(scans))
    placed = in_one_space(scans, registered=job.registered)
    sources = {_session(number): one for number, one in enumerate(scans)}
    whole = _patient(job.participant, placed, days=days, treatments=treatments)
    patient, faults = passing(whole, person, job.folder)
    for fault in faults:
        session = "" if fault.session is None else sources[fault.session].visit.session
        what = f"{fault.file}: {fault.found}"
        rows.append(left_out(fault.code, patient=found.name, visit=session, found=what))
    for kept in patient.visits:
        rows += _taken(found.name, sources[kept.session], kept)
    _write(job.folder, patient)
    return Outcome(rows=tuple(rows), person=person.model_dump(), visits=len(patient.visits))


def _with_dose(patient: str, read: Scans, rows: list[Row]) -> Scans:
    """The visit with its dose where the planning CT says; without it, and with a row, where it does not."""
    try:
        return by_planning(read)
    except CohortRefusal as error:
        shown = next(item.shown for item in read.visit.items if item.kind == DOSE)
        rows.append(left_out(error.code, patient=patient, visit=read.visit.session, what=shown))
        return replace(read, dose_gy=None, planning=None)


def _person(job: Job) -> ParticipantRow:
    unknown: dict[str, Any] = dict.fromkeys(ParticipantRow.model_fields)
    known = unknown | dict(job.patient.person) | {"participant_id": job.participant}
    return ParticipantRow.model_validate(known)


def _on_days(found: FoundPatient, days: Mapping[str, int], rows: list[Row]) -> list[FoundVisit]:
    """The visits in order of day; those without a day, or with the day of another one, are left out."""
    shared = Counter(days.values())
    usable = []
    for visit in found.visits:
        if visit.session not in days:
            rows.append(left_out("no_date", patient=found.name, visit=visit.session))
        elif shared[days[visit.session]] > 1:
            rows.append(left_out("same_day", patient=found.name, visit=visit.session))
        else:
            usable.append(visit)
    return sorted(usable, key=lambda visit: days[visit.session])


def _session(number: int) -> str:
    return f"ses-{number + 1:02d}"


def _patient(
    participant: str, placed: InPlace, *, days: Mapping[str, int], treatments: Sequence[Treatment]
) -> Patient:
    visits = []
    for number, one in enumerate(placed.scans):
        assert one.tumor is not None, "a visit without an outline is left out before"
        tumor = one.tumor
        images = {
            name: _evened(image, brain=placed.brain, tumor=tumor)
            for name, image in one.images.items()
        }
        visits.append(
            Visit(
                session=_session(number),
                day=days[one.visit.session],
                images=images,
                tumor=tumor,
                dose_gy=one.dose_gy,
                steroid_mg=one.visit.steroid_mg,
                kps=one.visit.kps,
            )
        )
    return Patient(
        participant=participant,
        visits=tuple(visits),
        treatments=tuple(treatments),
        tissue=placed.tissue,
        brain=placed.brain,
    )


def _evened(image: Volume, *, brain: Volume, tumor: Volume) -> Volume:
    """Without bias and skull, on the scale of a cohort."""
    even_image = even(image, brain, tumor)
    data = scaled(even_image, in_brain(even_image, brain))
    return Volume(data=data, affine_mm=image.affine_mm)


def _taken(patient: str, source: Scans, visit: Visit) -> list[Row]:
    """A row for each thing of a visit that is in the cohort now."""
    kept = {*visit.images, OUTLINE, *([DOSE] if visit.dose_gy is not None else [])}
    return [
        Row(patient=patient, visit=source.visit.session, what=item.shown)
        for item in source.visit.items
        if item.kind in kept
    ]


def _write(folder: Path, patient: Patient) -> None:
    """Everything of the patient, its visits counted anew, with a picture of each."""
    visits = tuple(
        replace(visit, session=_session(number)) for number, visit in enumerate(patient.visits)
    )
    patient = replace(patient, visits=visits)
    shutil.rmtree(folder, ignore_errors=True)
    write_patient(folder, patient)
    quality = folder / "derivatives" / "quality" / patient.participant
    quality.mkdir(parents=True)
    for visit in patient.visits:
        draw_visit(patient, visit, quality / f"{patient.participant}_{visit.session}.png")
