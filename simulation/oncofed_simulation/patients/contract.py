"""What does a virtual hospital's cohort have that another has not: its tables, and how it is taken away.

Patients are written as ``cohort_files`` of the client writes every patient.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oncofed_client.readers.cohort_files import write_scheme, write_table
from oncofed_common.cohort import Patient

GENERATOR = "oncofed-simulate"
BIDS_VERSION = "1.9.0"
GZIP_LEVEL = 1
"""Virtual cohorts are made often and kept briefly."""
PARTICIPANT_COLUMNS: Mapping[str, str] = {
    "participant_id": "random identifier of the participant in this cohort",
    "age_years": "age at the first visit",
    "sex": "M or F",
    "diagnosis": "histological diagnosis",
    "grade": "WHO grade, 1 to 4",
    "idh": "IDH status: mutant or wildtype",
    "mgmt": "MGMT promoter: methylated or unmethylated",
}
Row = Mapping[str, Any]


def participant_row(patient: Patient) -> dict[str, Any]:
    """The patient's row of ``participants.tsv``, ``None`` where nothing is known."""
    row: dict[str, Any] = {"participant_id": patient.participant}
    return row | {name: getattr(patient, name) for name in list(PARTICIPANT_COLUMNS)[1:]}


def remove_patient(cohort: Path, participant: str) -> None:
    """Take away whatever an interrupted ``write_patient`` has left."""
    for folder in ("", "derivatives/tissue", "derivatives/tumor"):
        shutil.rmtree(cohort / folder / participant, ignore_errors=True)


def write_cohort_tables(cohort: Path, *, name: str, participants: Iterable[Row]) -> None:
    """Write what belongs to the cohort as a whole; participants in the order of their identifiers."""
    write_json(
        cohort / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "GeneratedBy": [{"Name": GENERATOR}],
        },
    )
    rows = sorted(participants, key=lambda row: str(row["participant_id"]))
    write_table(cohort / "participants.tsv", tuple(PARTICIPANT_COLUMNS), rows)
    write_json(
        cohort / "participants.json",
        {column: {"Description": text} for column, text in PARTICIPANT_COLUMNS.items()},
    )
    write_scheme(cohort)


def write_json(path: Path, value: Any) -> None:  # any JSON value: each caller's own
    """Indented JSON that ends with a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
