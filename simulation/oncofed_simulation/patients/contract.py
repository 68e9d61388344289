"""How is one patient of a virtual hospital put on disk, and the tables of a cohort?

The folder contract of a cohort (BIDS-style), file by file. The same values give the same bytes: gzip
streams carry no time, tables no order but the participants'.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oncofed_common.cohort import LABELS, Patient, Visit, Volume

GENERATOR = "oncofed-simulate"
BIDS_VERSION = "1.9.0"
GZIP_LEVEL = 1
PARTICIPANT_COLUMNS: Mapping[str, str] = {
    "participant_id": "random identifier of the participant in this cohort",
    "age_years": "age at the first visit",
    "sex": "M or F",
    "diagnosis": "histological diagnosis",
    "grade": "WHO grade, 1 to 4",
    "idh": "IDH status: mutant or wildtype",
    "mgmt": "MGMT promoter: methylated or unmethylated",
}
SESSION_COLUMNS = ("session_id", "days_from_baseline", "steroid_mg", "kps")
TREATMENT_COLUMNS = (
    "kind",
    "start_day",
    "end_day",
    "dose_gy",
    "fractions",
    "agent",
    "dose_mg_m2",
)

Row = Mapping[str, Any]


def participant_row(patient: Patient) -> dict[str, Any]:
    """The patient's row of ``participants.tsv``, ``None`` where nothing is known."""
    row: dict[str, Any] = {"participant_id": patient.participant}
    return row | {name: getattr(patient, name) for name in list(PARTICIPANT_COLUMNS)[1:]}


def write_patient(cohort: Path, patient: Patient) -> None:
    """Write everything of one patient but its row in the participants table."""
    name = patient.participant
    folder = cohort / name
    folder.mkdir(parents=True)
    sessions = [
        {
            "session_id": visit.session,
            "days_from_baseline": visit.day,
            "steroid_mg": visit.steroid_mg,
            "kps": visit.kps,
        }
        for visit in patient.visits
    ]
    write_table(folder / f"{name}_sessions.tsv", SESSION_COLUMNS, sessions)
    write_table(
        folder / f"{name}_treatments.tsv", TREATMENT_COLUMNS, (vars(t) for t in patient.treatments)
    )
    for visit in patient.visits:
        _write_visit(cohort, name, visit)
    static = cohort / "derivatives" / "tissue" / name
    if patient.tissue is not None:
        _write_volume(static / f"{name}_dseg.nii.gz", patient.tissue, np.uint8)
    if patient.brain is not None:
        _write_volume(static / f"{name}_desc-brain_mask.nii.gz", patient.brain, np.uint8)


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
    write_table(
        cohort / "derivatives" / "tumor" / "dseg.tsv",
        ("index", "name"),
        ({"index": index, "name": label} for label, index in LABELS.items()),
    )


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A tab-separated table; ``None`` is written ``n/a``."""
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:  # any JSON value: each caller's own
    """Indented JSON that ends with a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_visit(cohort: Path, name: str, visit: Visit) -> None:
    stem = f"{name}_{visit.session}"
    anat = cohort / name / visit.session / "anat"
    for channel, image in visit.images.items():
        _write_volume(anat / f"{stem}_{channel}.nii.gz", image, np.int16)
    derived = cohort / "derivatives" / "tumor" / name / visit.session / "anat"
    _write_volume(derived / f"{stem}_desc-tumor_dseg.nii.gz", visit.tumor, np.uint8)
    if visit.dose_gy is not None:
        _write_volume(derived / f"{stem}_desc-planned_dose.nii.gz", visit.dose_gy, np.float32)


def _write_volume(path: Path, volume: Volume, dtype: type[np.generic]) -> None:
    data: NDArray[Any] = volume.data.astype(dtype)
    image = nib.Nifti1Image(data, volume.affine_mm)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine_mm, code="scanner")
    image.set_qform(volume.affine_mm, code="scanner")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:g}" if isinstance(value, float) else str(value)
