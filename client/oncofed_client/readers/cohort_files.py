"""How is a patient, taken in or made up, put on disk, and the tables of a cohort?

The layout of a cohort, file by file, as ``docs/cohort.md`` has it. The same values give the same bytes: gzip
streams carry no time. The header of a scan is made anew from shape, affine and type: those are the fields
that are allowed, and nothing of a source's header is copied.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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


def write_patient(cohort: Path, patient: Patient, *, gzip_level: int = GZIP_LEVEL) -> None:
    """Write everything of one patient but its row in the participants table."""
    volume = partial(_write_volume, gzip_level=gzip_level)
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
    write_table(cohort / name / f"{name}_sessions.tsv", SessionRow.model_fields, sessions)
    write_table(
        cohort / name / f"{name}_treatments.tsv",
        TreatmentRow.model_fields,
        (vars(course) for course in patient.treatments),
    )
    for visit in patient.visits:
        _write_visit(cohort, name, visit, volume)
    static = cohort / "derivatives" / "tissue" / name
    if patient.tissue is not None:
        volume(static / f"{name}_dseg.nii.gz", patient.tissue, np.uint8)
    if patient.brain is not None:
        volume(static / f"{name}_desc-brain_mask.nii.gz", patient.brain, np.uint8)


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
    write_table(cohort / PEOPLE, ParticipantRow.model_fields, rows)
    write_scheme(cohort)


def write_scheme(cohort: Path) -> None:
    """Write what the labels of an outline mean: the default scheme, whatever the source's was."""
    rows = [{"index": index, "name": label} for label, index in LABELS.items()]
    write_table(cohort / SCHEME, ("index", "name"), rows)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A tab-separated table; ``None`` is written ``n/a``."""
    names: Sequence[str] = tuple(columns)
    lines = [names, *([_cell(row[column]) for column in names] for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def _write_visit(cohort: Path, name: str, visit: Visit, volume: Callable[..., None]) -> None:
    stem = f"{name}_{visit.session}"
    anat = Path(name, visit.session, "anat")
    for channel, image in visit.images.items():
        volume(cohort / anat / f"{stem}_{channel}.nii.gz", image, np.int16)
    derived = cohort / "derivatives" / "tumor" / anat
    volume(derived / f"{stem}_desc-tumor_dseg.nii.gz", visit.tumor, np.uint8)
    if visit.dose_gy is not None:
        volume(derived / f"{stem}_desc-planned_dose.nii.gz", visit.dose_gy, np.float32)


def _write_volume(path: Path, volume: Volume, dtype: type[np.generic], *, gzip_level: int) -> None:
    data: NDArray[Any] = volume.data.astype(dtype)
    image = nib.Nifti1Image(data, volume.affine_mm)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine_mm, code="scanner")
    image.set_qform(volume.affine_mm, code="scanner")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), gzip_level, mtime=0))


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(str(value).split())
