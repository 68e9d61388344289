"""How is a patient that was taken in put on disk, and the tables of a cohort?

The layout of a cohort, file by file, as ``docs/cohort.md`` has it. The header of a scan is made anew from
shape, affine and type: those are the fields that are allowed, and nothing of a source's header is copied.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oncofed_client.readers.cohort import DESCRIPTION, PEOPLE, SCHEME
from oncofed_client.readers.tables import VIRTUAL, ParticipantRow, SessionRow, TreatmentRow
from oncofed_common.cohort import LABELS, Patient, Visit, Volume

GENERATOR, BIDS_VERSION = "oncofed-site intake", "1.10.0"
GZIP_LEVEL = 4


def write_patient(cohort: Path, patient: Patient) -> None:
    """Write everything of one patient but its row in the participants table."""
    name = patient.participant
    sessions = [
        {
            "session_id": visit.session,
            "days_from_baseline": visit.day,
            "steroid_mg": visit.steroid_mg,
            "kps": visit.kps,
        }
        for visit in patient.visits
    ]
    _write_table(cohort / name / f"{name}_sessions.tsv", SessionRow.model_fields, sessions)
    _write_table(
        cohort / name / f"{name}_treatments.tsv",
        TreatmentRow.model_fields,
        (vars(course) for course in patient.treatments),
    )
    for visit in patient.visits:
        _write_visit(cohort, name, visit)
    static = cohort / "derivatives" / "tissue" / name
    if patient.tissue is not None:
        _write_volume(static / f"{name}_dseg.nii.gz", patient.tissue, np.uint8)
    if patient.brain is not None:
        _write_volume(static / f"{name}_desc-brain_mask.nii.gz", patient.brain, np.uint8)


def write_tables(
    cohort: Path, *, name: str, participants: Iterable[Mapping[str, Any]], virtual: bool
) -> None:
    """Write what belongs to the cohort as a whole; participants in the order of their names."""
    about = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": GENERATOR}, *([{"Name": VIRTUAL}] if virtual else [])],
    }
    (cohort / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    rows = sorted(participants, key=lambda row: str(row["participant_id"]))
    _write_table(cohort / PEOPLE, ParticipantRow.model_fields, rows)
    write_scheme(cohort)


def write_scheme(cohort: Path) -> None:
    """Write what the labels of an outline mean: the default scheme, whatever the source's was."""
    rows = [{"index": index, "name": label} for label, index in LABELS.items()]
    _write_table(cohort / SCHEME, ("index", "name"), rows)


def _write_visit(cohort: Path, name: str, visit: Visit) -> None:
    stem = f"{name}_{visit.session}"
    anat = Path(name, visit.session, "anat")
    for channel, image in visit.images.items():
        _write_volume(cohort / anat / f"{stem}_{channel}.nii.gz", image, np.int16)
    derived = cohort / "derivatives" / "tumor" / anat
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


def _write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A tab-separated table; ``None`` is written ``n/a``."""
    names: Sequence[str] = tuple(columns)
    lines = [names, *([_cell(row[column]) for column in names] for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(str(value).split())
