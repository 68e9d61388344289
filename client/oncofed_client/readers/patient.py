"""One patient of a cohort: what can be used of it, and everything that is wrong with the rest.

Reading and checking are one act, so that training uses exactly what the check said it would: a visit
that a finding excludes is left out, and so is an optional map (dose, tissue, brain) that a finding is
about. The outcome depends on this patient's files and on the study's terms only, never on another
patient.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oncofed_client.alignment import align
from oncofed_client.findings import FileKind, Finding, Notes
from oncofed_client.readers.cohort import Cohort
from oncofed_client.readers.tables import SessionRow, TreatmentRow, read_table
from oncofed_client.readers.visit import read_maps, read_visit
from oncofed_common.cohort import Patient, Treatment, Visit
from oncofed_common.errors import CohortRefusal
from oncofed_common.study_terms import CohortTerms

FEWEST_VISITS = 2
NO_MATTER_TO_A_FORECAST = frozenset({"few_visits", "images_missing", "outline_empty"})
"""A forecast needs no second visit, no image, and says itself where there is nothing to forecast."""
OUTSIDE_CROP = 0.01
"""A larger share of the tumour outside the crop is worth a finding."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """``patient`` holds what can be used; it is None if a finding excludes the patient."""

    patient: Patient | None
    findings: tuple[Finding, ...]


def read_patient(
    cohort: Cohort,
    participant: str,
    *,
    terms: CohortTerms | None = None,
    waived: frozenset[str] = frozenset(),
) -> Patient:
    """What can be used of one patient: visits in order of day, labels in the default scheme.

    Args:
        waived: codes of findings that exclude nothing.

    Raises:
        CohortRefusal: ``unknown_participant`` or ``patient_excluded``.
    """
    if participant not in cohort.rows:
        raise CohortRefusal(
            "a participant that the cohort does not list, or lists wrongly",
            allowed="one of the cohort's participants",
            next="run the check of the cohort",
            code="unknown_participant",
        )
    examined = examine(cohort, participant, terms=terms, waived=waived)
    if examined.patient is None:
        raise CohortRefusal(
            "a patient that cannot take part",
            allowed="a patient that the check does not exclude",
            next="run the check of the cohort, which names each finding and its fix",
            code="patient_excluded",
        )
    return examined.patient


def examine(
    cohort: Cohort,
    participant: str,
    *,
    terms: CohortTerms | None,
    waived: frozenset[str] = frozenset(),
) -> Examined:
    """Read one patient whole and note every finding; nothing about another patient plays a part.

    A folder that this account may not look into excludes its patient, and nobody else.
    """
    try:
        return _examine(cohort, participant, terms=terms, waived=waived)
    except OSError:
        notes = Notes(participant)
        notes.add(
            "unreadable", "folder", found="a folder that cannot be looked into", excludes="patient"
        )
        return Examined(patient=None, findings=tuple(notes.findings))


def _examine(
    cohort: Cohort, participant: str, *, terms: CohortTerms | None, waived: frozenset[str]
) -> Examined:
    notes = Notes(participant, waived=waived)
    sessions = _sessions(cohort, participant, notes)
    treatments = _treatments(cohort, participant, notes)
    read = [read_visit(cohort, participant, row, notes=notes, terms=terms) for row in sessions]
    tissue, brain = read_maps(cohort, participant, notes=notes)
    whole = [visit for visit in read if visit is not None]
    _empty_outlines(whole, treatments, notes)
    aligned = align(whole, tissue=tissue, brain=brain, notes=notes)
    excluded = notes.excluded_visits()
    visits = [visit for visit in aligned.visits if visit.session not in excluded]
    _enough(visits, notes=notes, terms=terms)
    patient = None
    if not notes.any_excludes("patient"):
        patient = Patient(
            participant=participant,
            visits=tuple(visits),
            treatments=treatments,
            tissue=aligned.tissue,
            brain=aligned.brain,
            **cohort.rows[participant].model_dump(exclude={"participant_id"}),
        )
    return Examined(patient=patient, findings=tuple(notes.findings))


def _sessions(cohort: Cohort, participant: str, notes: Notes) -> tuple[SessionRow, ...]:
    """The rows of the sessions whose folder is there."""
    folder = cohort.path / participant
    file: FileKind = "sessions table"
    name = f"{participant}/{participant}_sessions.tsv"
    table = notes.attempt(file, lambda: read_table(cohort.path / name, SessionRow), path=name)
    if table is None:
        return ()
    for bad in table.bad:
        notes.add("row_invalid", file, found=f"a row with a wrong {bad.what}")
    names = Counter(row.session_id for row in table.rows)
    for name, count in names.items():
        if count > 1:
            notes.add("session_duplicate", file, found=f"{count} rows of one visit", session=name)
    days = [row.days_from_baseline for row in table.rows]
    if any(a >= b for a, b in itertools.pairwise(days)):
        notes.add("days_not_increasing", file, found="days that repeat or go back")
    on_disk = {child.name for child in folder.glob("ses-*") if child.is_dir()}
    for name in sorted(on_disk - set(names) - {bad.key for bad in table.bad}):
        notes.add("session_unlisted", "folder", found="a folder without a row", session=name)
    for name in sorted(set(names) - on_disk):
        notes.add("session_folder_missing", "folder", found="a row without a folder", session=name)
    rows = {row.session_id: row for row in table.rows}
    return tuple(row for name, row in rows.items() if name in on_disk)


def _treatments(cohort: Cohort, participant: str, notes: Notes) -> tuple[Treatment, ...]:
    name = f"{participant}/{participant}_treatments.tsv"
    file: FileKind = "treatments table"
    table = notes.attempt(file, lambda: read_table(cohort.path / name, TreatmentRow), path=name)
    if table is None:
        return ()
    for bad in table.bad:
        notes.add("row_invalid", file, found=f"a row with a wrong {bad.what}")
    for row in table.rows:
        if row.end_day < row.start_day:
            found = f"{row.kind} that ends {row.start_day - row.end_day} days before it starts"
            notes.add("treatment_ends_before_start", file, found=found)
    return tuple(Treatment(**row.model_dump()) for row in table.rows)


def _empty_outlines(visits: Sequence[Visit], treatments: Sequence[Treatment], notes: Notes) -> None:
    """A tumour may be gone after a treatment; any other outline without a voxel was forgotten."""
    seen = False
    for visit in visits:
        if visit.tumor.data.any():
            seen = True
        elif not seen or not any(course.start_day < visit.day for course in treatments):
            found = "an outline without any voxel, and no treatment that could explain it"
            notes.add("outline_empty", "outline", found=found, session=visit.session)


def _enough(visits: Sequence[Visit], *, notes: Notes, terms: CohortTerms | None) -> None:
    """Are there visits enough, and does the crop hold the tumour they would be forecast from?"""
    fewest = max(FEWEST_VISITS, terms.fewest_visits if terms else 0)
    if len(visits) < fewest:
        found = f"{len(visits)} usable visits, {fewest} needed"
        notes.add("few_visits", "folder", found=found)
    if terms is None:
        return
    edge_mm = terms.crop_voxels * terms.spacing_mm
    for visit in visits[:-1]:
        share = _share_outside(visit, edge_mm) if visit.tumor.data.any() else 0.0
        if share > OUTSIDE_CROP:
            found = f"{share:.0%} of the tumour outside the crop of {edge_mm:g} mm"
            notes.add("outside_crop", "outline", found=found, session=visit.session)


def _share_outside(visit: Visit, edge_mm: float) -> float:
    """The part of the tumour outside a cube around its centroid, 0 to 1."""
    marked = np.argwhere(visit.tumor.data > 0)
    offsets_mm = (marked - marked.mean(axis=0)) @ visit.tumor.affine_mm[:3, :3].T
    return float((np.abs(offsets_mm).max(axis=1) > edge_mm / 2).mean())
