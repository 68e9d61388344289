"""From virtual patients to cohort folders: the contract that every hospital's data keeps.

Beside each cohort ``OUT/hospital-N`` lies what no reader of the cohort sees: ``hospital-N.identities.tsv``
(participant and hospital number, as an intake keeps it) and ``truth/hospital-N.json`` (what made the
patients). The same seed gives the same bytes. A cohort appears as a whole or not at all.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_common.cohort import LABELS, TISSUES, Patient, Visit, Volume
from oncofed_common.errors import SystemRefusal
from oncofed_simulation.patients.hospitals import Hospital, hospital
from oncofed_simulation.patients.patient import VirtualPatient, virtual_patient

Progress = Callable[[str, int, int], None]
"""A hospital's name, patients written, patients in all."""

BIDS_VERSION = "1.10.0"
COMPRESSION = 3  # of gzip: a third of the time of the default for a tenth more bytes
PARTICIPANT_COLUMNS = ("participant_id", "age_years", "sex", "diagnosis", "grade", "idh", "mgmt")
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


def write_cohorts(
    *, sites: int, patients: int, seed: int, out: Path, workers: int, progress: Progress
) -> list[Path]:
    """Write one cohort a hospital, ``hospital-1`` and so on, under ``out``; returns their folders.

    Args:
        workers: processes; patients are made in parallel and do not depend on each other.

    Raises:
        SystemRefusal: nothing to write, or ``out`` holds something already.
    """
    if min(sites, patients, workers) < 1:
        raise SystemRefusal(
            f"{sites} sites of {patients} patients in {workers} processes",
            allowed="1 or more of each",
            next="correct the numbers",
            code="nothing_to_write",
        )
    if out.exists() and any(out.iterdir()):
        raise SystemRefusal(
            "an output folder that is not empty",
            allowed="a new or empty folder",
            next="choose another --out; cohorts are never overwritten",
            code="out_exists",
        )
    out.mkdir(parents=True, exist_ok=True)
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=start) as pool:
        return [
            _write_cohort(
                hospital(seed, number),
                patients=patients,
                seed=seed,
                out=out,
                pool=pool,
                progress=progress,
            )
            for number in range(1, sites + 1)
        ]


def _write_cohort(
    place: Hospital,
    *,
    patients: int,
    seed: int,
    out: Path,
    pool: ProcessPoolExecutor,
    progress: Progress,
) -> Path:
    final, draft = out / place.name, out / f".{place.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        made: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
        one = partial(_write_numbered, draft, place, seed)
        for row in pool.map(one, range(1, patients + 1)):
            made.append(row)
            progress(place.name, len(made), patients)
        made.sort(key=lambda row: str(row[0]["participant_id"]))
        _write_top(draft, [row for row, _, _ in made])
        numbers = [(row["participant_id"], number) for row, number, _ in made]
        _table(
            out / f"{place.name}.identities.tsv",
            ("participant_id", "hospital_number"),
            [
                dict(zip(("participant_id", "hospital_number"), pair, strict=True))
                for pair in numbers
            ],
        )
        truths = {row["participant_id"]: truth for row, _, truth in made}
        _json(out / "truth" / f"{place.name}.json", truths)
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _write_numbered(
    root: Path, place: Hospital, seed: int, number: int
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Make and write one patient; its row, its hospital number, and the truth about it."""
    torch.set_num_threads(1)
    found = virtual_patient(place, seed=seed, number=number)
    write_patient(root, found.patient)
    return _participant_row(found.patient), found.hospital_number, _truth(found)


def write_patient(root: Path, patient: Patient) -> None:
    """Write one patient's scans, outlines, maps and tables under the cohort folder ``root``."""
    name = patient.participant
    for visit in patient.visits:
        _write_visit(root, name, visit)
    tissue = root / "derivatives" / "tissue" / name
    if patient.tissue is not None:
        _nifti(tissue / f"{name}_dseg.nii.gz", patient.tissue, np.uint8)
    if patient.brain is not None:
        _nifti(tissue / f"{name}_desc-brain_mask.nii.gz", patient.brain, np.uint8)
    _table(
        root / name / f"{name}_sessions.tsv",
        SESSION_COLUMNS,
        [
            {
                "session_id": visit.session,
                "days_from_baseline": visit.day,
                "steroid_mg": visit.steroid_mg,
                "kps": visit.kps,
            }
            for visit in patient.visits
        ],
    )
    rows = [asdict(course) for course in patient.treatments]
    _table(root / name / f"{name}_treatments.tsv", TREATMENT_COLUMNS, rows)


def _write_visit(root: Path, name: str, visit: Visit) -> None:
    stem = f"{name}_{visit.session}"
    images = root / name / visit.session / "anat"
    for channel, volume in visit.images.items():
        _nifti(images / f"{stem}_{channel}.nii.gz", volume, np.int16)
    outlines = root / "derivatives" / "tumor" / name / visit.session / "anat"
    _nifti(outlines / f"{stem}_desc-tumor_dseg.nii.gz", visit.tumor, np.uint8)
    if visit.dose_gy is not None:
        _nifti(outlines / f"{stem}_desc-planned_dose.nii.gz", visit.dose_gy, np.float32)


def _write_top(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    description = {
        "Name": "Virtual patients of one virtual hospital",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": "Apache-2.0",
        "GeneratedBy": [{"Name": "oncofed-simulate"}],
    }
    _json(root / "dataset_description.json", description)
    _table(root / "participants.tsv", PARTICIPANT_COLUMNS, rows)
    columns = {
        "age_years": {"Description": "age at the first visit", "Units": "year"},
        "sex": {"Levels": {"M": "male", "F": "female"}},
        "diagnosis": {"Description": "integrated diagnosis"},
        "grade": {"Description": "WHO grade, 1 to 4"},
        "idh": {"Levels": {"mutant": "IDH mutant", "wildtype": "IDH wild type"}},
        "mgmt": {"Levels": {"methylated": "methylated", "unmethylated": "unmethylated"}},
    }
    _json(root / "participants.json", columns)
    labels = [{"index": index, "name": name} for name, index in LABELS.items()]
    _table(root / "derivatives" / "tumor" / "dseg.tsv", ("index", "name"), labels)
    tissues = [{"index": index, "name": name} for name, index in TISSUES.items()]
    _table(root / "derivatives" / "tissue" / "dseg.tsv", ("index", "name"), tissues)


def _participant_row(patient: Patient) -> dict[str, Any]:
    return {
        "participant_id": patient.participant,
        "age_years": patient.age_years,
        "sex": patient.sex,
        "diagnosis": patient.diagnosis,
        "grade": patient.grade,
        "idh": patient.idh,
        "mgmt": patient.mgmt,
    }


def _truth(found: VirtualPatient) -> dict[str, Any]:
    fields = asdict(found.truth)
    return json.loads(json.dumps(fields))  # type: ignore[no-any-return]  # tuples become lists


def _nifti(path: Path, volume: Volume, dtype: type[np.generic]) -> None:
    """One NIfTI file in millimetres; the same values give the same bytes (no name, no time in gzip)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data: NDArray[Any] = volume.data
    if issubclass(dtype, np.integer):
        data = np.clip(np.rint(data), np.iinfo(dtype).min, np.iinfo(dtype).max)
    image = nib.Nifti1Image(data.astype(dtype), volume.affine_mm)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"virtual patient, research use only"
    with (
        path.open("wb") as raw,
        gzip.GzipFile(
            filename="", mode="wb", fileobj=raw, compresslevel=COMPRESSION, mtime=0
        ) as file,
    ):
        file.write(image.to_bytes())


def _table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[column]) for column in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if value is None:
        return "n/a"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
