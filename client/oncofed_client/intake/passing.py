"""What is left of a patient when the check of cohorts has had its say?

What intake writes, ``oncofed-site check`` finds nothing wrong with: the very same examination is made here,
on the files as they lie on the disk. A visit with a fault is taken out, an optional map likewise, and what
is left is written and examined again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oncofed_client.findings import Finding
from oncofed_client.readers.cohort import Cohort
from oncofed_client.readers.cohort_files import write_patient
from oncofed_client.readers.patient import FEWEST_VISITS, examine
from oncofed_client.readers.tables import ParticipantRow
from oncofed_common.cohort import LABELS, Patient
from oncofed_common.errors import CohortRefusal

HARMLESS = ("channel_missing",)
"""Findings that say what is not there, and leave nothing out."""


def passing(
    patient: Patient, person: ParticipantRow, folder: Path
) -> tuple[Patient, list[Finding]]:
    """The patient as it lies in ``folder`` at the end, without a fault; and the faults of what was taken
    out.

    Raises:
        CohortRefusal: a fault of the patient as a whole, or too few visits without one.
    """
    found: list[Finding] = []
    while True:
        enough(len(patient.visits))
        shutil.rmtree(folder, ignore_errors=True)
        write_patient(folder, patient)
        faults = [one for one in _examined(patient, person, folder) if one.code not in HARMLESS]
        if not faults:
            return patient, found
        found += [one for one in faults if one.code != "few_visits"]
        left = _without(patient, faults)
        if left is patient:
            raise CohortRefusal(
                faults[0].found, allowed=faults[0].allowed, next=faults[0].fix, code=faults[0].code
            )
        patient = left


def enough(visits: int) -> None:
    """Refuse a patient with fewer visits than a forecast can be learned from.

    Raises:
        CohortRefusal: code ``few_visits``.
    """
    if visits < FEWEST_VISITS:
        raise CohortRefusal(
            f"{visits} usable visits, {FEWEST_VISITS} needed",
            allowed="as many usable visits as a forecast can be learned from, two at least",
            next="mend what the rows of its visits name, or wait for the next visit",
            code="few_visits",
        )


def _examined(patient: Patient, person: ParticipantRow, folder: Path) -> tuple[Finding, ...]:
    cohort = Cohort(
        path=folder,
        virtual=False,
        rows={patient.participant: person},
        scheme={value: value for value in LABELS.values()},
        findings=(),
    )
    return examine(cohort, patient.participant, terms=None).findings


def _without(patient: Patient, faults: Sequence[Finding]) -> Patient:
    """The patient without the visits and the optional maps that the faults are about; the same one where
    they are about neither."""
    bad = {one.session for one in faults if one.excludes == "visit"}
    files = {(one.file, one.session) for one in faults}
    visits = tuple(
        replace(visit, dose_gy=None)
        if visit.dose_gy is not None and ("dose map", visit.session) in files
        else visit
        for visit in patient.visits
        if visit.session not in bad
    )
    no_tissue, no_brain = ("tissue map", None) in files, ("brain mask", None) in files
    same = len(visits) == len(patient.visits) and all(
        a is b for a, b in zip(visits, patient.visits, strict=True)
    )
    if same and not (no_tissue and patient.tissue) and not (no_brain and patient.brain):
        return patient
    return replace(
        patient,
        visits=visits,
        tissue=None if no_tissue else patient.tissue,
        brain=None if no_brain else patient.brain,
    )
