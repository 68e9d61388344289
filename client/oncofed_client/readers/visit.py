"""One visit of a patient, and the patient's maps: every file read once, every refusal noted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from oncofed_client.findings import Notes, refusal
from oncofed_client.readers.cohort import Cohort
from oncofed_client.readers.nifti import read_volume, translate
from oncofed_client.readers.tables import SessionRow
from oncofed_common.cohort import CHANNELS, TISSUES, Visit, Volume
from oncofed_common.study_terms import CohortTerms

DOSE_GY = (2.0, 120.0)
"""A planned course below or above this is in another unit, or relative."""


def read_visit(
    cohort: Cohort, participant: str, row: SessionRow, *, notes: Notes, terms: CohortTerms | None
) -> Visit | None:
    """The visit with what could be read, or None where image (unless waived) or outline is lacking."""
    session = row.session_id
    stem = f"{participant}_{session}"
    anat = cohort.path / participant / session / "anat"
    derived = cohort.path / "derivatives" / "tumor" / participant / session / "anat"

    images: dict[str, Volume] = {}
    present = 0
    for channel in CHANNELS:
        path = anat / f"{stem}_{channel}.nii.gz"
        if not path.exists():
            needed = terms is not None and channel in terms.modalities
            notes.add(
                "channel_missing",
                "image",
                found=f"no {channel}" + (", which the study needs" if needed else ""),
                session=session,
                excludes="visit" if needed else None,
            )
            continue
        present += 1
        image = notes.attempt("image", partial(_image, path), session=session, name=channel)
        if image is not None:
            images[channel] = image
    if not present:
        notes.add("images_missing", "image", found="no image channel", session=session)

    tumor = notes.attempt(
        "outline",
        lambda: _outline(derived / f"{stem}_desc-tumor_dseg.nii.gz", cohort),
        session=session,
    )
    dose_path = derived / f"{stem}_desc-planned_dose.nii.gz"
    dose = None
    if dose_path.exists():
        dose = notes.attempt("dose map", lambda: _dose(dose_path), session=session)
    if tumor is None or not (images or "images_missing" in notes.waived):
        return None
    return Visit(
        session=session,
        day=row.days_from_baseline,
        images=images,
        tumor=tumor,
        dose_gy=dose,
        steroid_mg=row.steroid_mg,
        kps=row.kps,
    )


def read_maps(
    cohort: Cohort, participant: str, *, notes: Notes
) -> tuple[Volume | None, Volume | None]:
    """Tissue map and brain mask, each None where the site has none or it cannot be used."""
    folder = cohort.path / "derivatives" / "tissue" / participant
    tissue_path = folder / f"{participant}_dseg.nii.gz"
    brain_path = folder / f"{participant}_desc-brain_mask.nii.gz"
    tissue = brain = None
    if tissue_path.exists():
        values = {value: value for value in TISSUES.values()}
        tissue = notes.attempt("tissue map", lambda: _labels(tissue_path, values))
    if brain_path.exists():
        brain = notes.attempt("brain mask", lambda: _labels(brain_path, {1: 1}))
    return tissue, brain


def _image(path: Path) -> Volume:
    volume = read_volume(path)
    if float(np.ptp(volume.data)) == 0.0:
        raise refusal("blank", "an image whose voxels are all equal")
    return volume


def _outline(path: Path, cohort: Cohort) -> Volume:
    if not path.exists():
        raise refusal("outline_missing", "no tumour outline")
    return translate(read_volume(path), cohort.scheme, code="label_unknown")


def _dose(path: Path) -> Volume:
    dose = read_volume(path)
    low, high = float(dose.data.min()), float(dose.data.max())
    if low < -0.01 or not DOSE_GY[0] <= high <= DOSE_GY[1]:
        raise refusal("dose_implausible", f"a dose map from {low:g} to {high:g}")
    return dose


def _labels(path: Path, values: dict[int, int]) -> Volume:
    labels = translate(read_volume(path), values, code="tissue_label_unknown")
    if not labels.data.any():
        raise refusal("blank", "a map without any labelled voxel")
    return labels
