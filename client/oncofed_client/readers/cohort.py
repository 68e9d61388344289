"""What is in a cohort folder: who is in its table, and what its label values mean.

Only what concerns the whole cohort is read here; ``readers/patient.py`` reads one patient at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.findings import Finding, Notes
from oncofed_client.readers.tables import (
    LabelRow,
    ParticipantRow,
    Table,
    read_description,
    read_table,
)
from oncofed_common.cohort import LABELS
from oncofed_common.errors import CohortRefusal

DESCRIPTION, PEOPLE = "dataset_description.json", "participants.tsv"
SCHEME = "derivatives/tumor/dseg.tsv"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A cohort whose description and tables hold; its patients are read one by one.

    ``virtual``: a virtual hospital wrote it. ``rows`` are the patients that can be read, in the order
    of the table. ``scheme`` translates the site's label values into those of
    ``oncofed_common.cohort.LABELS``. ``findings`` are about the patients that table and folders
    disagree on.
    """

    path: Path
    virtual: bool
    rows: Mapping[str, ParticipantRow]
    scheme: Mapping[int, int]
    findings: tuple[Finding, ...]

    @property
    def participants(self) -> tuple[str, ...]:
        """Who can be read, in the order of the table; ``read_patient`` may still refuse some."""
        return tuple(self.rows)


def read_cohort(path: Path) -> Cohort:
    """Open a cohort.

    Raises:
        CohortRefusal: the first fault that excludes the cohort: ``no_cohort``, ``table_missing``,
            ``table_malformed``, ``column_missing``, ``description_malformed``, ``row_invalid``,
            ``scheme_unknown_name`` or ``no_patients``.
    """
    cohort, findings = open_cohort(path)
    if cohort is None:
        first = findings[0]
        raise CohortRefusal(
            f"{first.subject}: {first.found}",
            allowed=first.allowed,
            next=first.fix,
            code=first.code,
        )
    return cohort


def open_cohort(path: Path) -> tuple[Cohort | None, tuple[Finding, ...]]:
    """The cohort, or None and every finding that excludes it."""
    notes = Notes()
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        notes.add("no_cohort", "folder", found="no folder that can be read")
        return None, tuple(notes.findings)
    if not any(os.path.lexists(path / name) for name in (DESCRIPTION, PEOPLE, SCHEME)):
        notes.add("no_cohort", "folder", found="a folder that holds no table of a cohort")
        return None, tuple(notes.findings)
    about = notes.attempt(
        "description", lambda: read_description(path / DESCRIPTION), path=DESCRIPTION
    )
    people = notes.attempt(
        "participants table", lambda: read_table(path / PEOPLE, ParticipantRow), path=PEOPLE
    )
    labels = notes.attempt("label table", lambda: read_table(path / SCHEME, LabelRow), path=SCHEME)
    scheme = _scheme(labels, notes) if labels is not None else {}
    if people is not None and not people.rows and not people.bad:
        notes.add("no_patients", "participants table", found="a table without rows")
    if about is None or people is None or notes.findings:
        return None, tuple(notes.findings)
    rows = _people(path, people, notes)
    found = tuple(notes.findings)
    return Cohort(path=path, virtual=about.virtual, rows=rows, scheme=scheme, findings=found), found


def _scheme(table: Table[LabelRow], notes: Notes) -> dict[int, int]:
    """The site's label values in the default scheme, by name, never guessed."""
    for bad in table.bad:
        notes.add("row_invalid", "label table", found=f"a row with a wrong {bad.what}")
    named = [row for row in table.rows if row.index != 0]
    unknown = len({row.name for row in named} - set(LABELS))
    if unknown or not named:
        # A count alone: the names are the file's text, and a refusal goes to the trainer's log.
        count = f"{unknown} label name(s) of another scheme" if named else "no label names at all"
        notes.add("scheme_unknown_name", "label table", found=count)
    if len({row.index for row in table.rows}) != len(table.rows):
        notes.add("row_invalid", "label table", found="an index that is named twice")
    return {row.index: LABELS[row.name] for row in named if row.name in LABELS}


def _people(path: Path, table: Table[ParticipantRow], notes: Notes) -> dict[str, ParticipantRow]:
    """Who can be read; the others are noted."""
    counts = Counter([row.participant_id for row in table.rows] + [bad.key for bad in table.bad])
    for bad in table.bad:
        notes.add(
            "row_invalid",
            "participants table",
            found=f"a row with a wrong {bad.what}",
            participant=bad.key,
            excludes="patient",
        )
    rows: dict[str, ParticipantRow] = {}
    for row in table.rows:
        name = row.participant_id
        if counts[name] > 1:
            found = f"{counts[name]} rows of one patient"
            notes.add("participant_duplicate", "participants table", found=found, participant=name)
        elif not (path / name).is_dir():
            found = "a row without a folder"
            notes.add("participant_folder_missing", "folder", found=found, participant=name)
        else:
            rows[name] = row
    for folder in sorted(path.glob("sub-*")):
        if folder.is_dir() and folder.name not in counts:
            found = "a folder without a row"
            notes.add("participant_unlisted", "folder", found=found, participant=folder.name)
    return rows
