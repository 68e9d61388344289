"""A tiny, valid cohort for tests: a lopsided head of a few spheres, a tumour that grows between visits.

Nothing here is drawn at random: patient and visit decide every voxel. ``write_cohort`` writes the whole
contract; ``rewrite`` and ``edit`` change one file of it, which is how tests plant faults.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

CHANNELS = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")
SHAPE = (32, 38, 30)
SPACING_MM = (5.0, 5.0, 5.0)
DAYS = (0, 60, 150, 240)

#              air  brain fluid cerebellum oedema rim  core
SIGNAL = {
    "T1w": (0.0, 100, 30, 80, 65, 60, 45),
    "ce-gadolinium_T1w": (0.0, 100, 30, 85, 65, 150, 45),
    "T2w": (0.0, 55, 160, 75, 115, 100, 130),
    "FLAIR": (0.0, 65, 20, 85, 140, 115, 75),
}
OUTLINE = (0, 0, 0, 0, 2, 3, 1)
TISSUE = (0, 3, 1, 2, 3, 3, 3)


def affine_mm(spacing_mm: tuple[float, float, float] = SPACING_MM) -> np.ndarray:
    """World origin in the middle of the field of view of ``SHAPE`` voxels."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -np.asarray(spacing_mm) * (np.asarray(SHAPE) - 1) / 2
    return affine


def materials(points_mm: np.ndarray, *, patient: int, visit: int | None) -> np.ndarray:
    """Which material (index into a row of ``SIGNAL``) lies at world points, shape (3, ...).

    ``visit``: None for the healthy head.
    """

    def within(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        offset = [(p - c) / r for p, c, r in zip(points_mm, centre, radii, strict=True)]
        return sum(o**2 for o in offset) < 1

    made = np.where(within((0, 0, 0), (62, 78, 58)), 1, 0)
    made = np.where(within((-12, 25, 8), (8, 22, 12)), 2, made)
    made = np.where(within((14, 10, 12), (7, 26, 10)), 2, made)
    made = np.where(within((10, -48, -28), (30, 20, 18)), 3, made)
    if visit is None:
        return made
    x = 24.0 + 3 * (patient % 3)
    y = -12.0 - 4 * (patient % 4)
    for material, radius in ((4, 24), (5, 15), (6, 8)):
        grown = radius + 2.0 * visit
        made = np.where(within((x, y, 18), (grown, grown, grown)) & (made > 0), material, made)
    return made


def materials_of_head() -> np.ndarray:
    """Where any head of this builder is, on its own grid: three quarters of its radius."""
    points = (
        np.moveaxis(np.indices(SHAPE).astype(float), 0, -1) @ affine_mm()[:3, :3].T
        + affine_mm()[:3, 3]
    )
    return (points / (50.0, 60.0, 45.0)) ** 2 @ np.ones(3) < 1


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write one NIfTI-1 file, gzip-compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def rewrite(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]):
    """Write a NIfTI file again with the data and affine that ``change`` makes of its own."""
    image = nib.load(path)
    data, affine = change(np.asanyarray(image.dataobj), image.affine.copy())
    save(path, data, affine)


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a table; ``old`` must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def image_path(root: Path, participant: str, session: str, channel: str) -> Path:
    return root / participant / session / "anat" / f"{participant}_{session}_{channel}.nii.gz"


def outline_path(root: Path, participant: str, session: str) -> Path:
    return _derived(root, participant, session, "desc-tumor_dseg")


def dose_path(root: Path, participant: str, session: str) -> Path:
    return _derived(root, participant, session, "desc-planned_dose")


def tissue_path(root: Path, participant: str) -> Path:
    return root / "derivatives" / "tissue" / participant / f"{participant}_dseg.nii.gz"


def brain_path(root: Path, participant: str) -> Path:
    return root / "derivatives" / "tissue" / participant / f"{participant}_desc-brain_mask.nii.gz"


def scheme_path(root: Path) -> Path:
    return root / "derivatives" / "tumor" / "dseg.tsv"


def write_cohort(root: Path, *, patients: int = 1, visits: int = 2) -> Path:
    """Write a cohort without a fault: ``sub-001`` ..., each with ``ses-01`` ... and radiotherapy."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"sub-{number + 1:03d}" for number in range(patients)]
    description = {
        "Name": "spheres",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "oncofed-simulate"}],
    }
    (root / "dataset_description.json").write_text(json.dumps(description))
    rows = [f"{name}\t61.5\tF\tglioblastoma\t4\twildtype\tn/a" for name in names]
    header = "participant_id\tage_years\tsex\tdiagnosis\tgrade\tidh\tmgmt"
    (root / "participants.tsv").write_text("\n".join([header, *rows]) + "\n")
    for number, name in enumerate(names):
        _write_patient(root, name, number=number, visits=visits)
    scheme_path(root).write_text("index\tname\n1\tNETC\n2\tSNFH\n3\tET\n4\tRC\n")
    return root


def _write_patient(root: Path, name: str, *, number: int, visits: int) -> None:
    sessions = [f"ses-{visit + 1:02d}" for visit in range(visits)]
    affine = affine_mm()
    points = np.moveaxis(np.indices(SHAPE), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    points = np.moveaxis(points, -1, 0)
    for visit, session in enumerate(sessions):
        made = materials(points, patient=number, visit=visit)
        for channel, signal in SIGNAL.items():
            data = np.asarray(signal)[made].astype(np.int16)
            save(image_path(root, name, session, channel), data, affine)
        outline = np.asarray(OUTLINE, dtype=np.uint8)[made]
        save(outline_path(root, name, session), outline, affine)
        if visit == 0:
            dose = np.where(made >= 4, 60.0, 0.0).astype(np.float32)
            save(dose_path(root, name, session), dose, affine)
    first = materials(points, patient=number, visit=None)
    save(tissue_path(root, name), np.asarray(TISSUE, dtype=np.uint8)[first], affine)
    save(brain_path(root, name), (first > 0).astype(np.uint8), affine)
    days = DAYS[:visits]
    rows = [f"{s}\t{day}\t4\t90" for s, day in zip(sessions, days, strict=True)]
    header = "session_id\tdays_from_baseline\tsteroid_mg\tkps"
    (root / name / f"{name}_sessions.tsv").write_text("\n".join([header, *rows]) + "\n")
    header = "kind\tstart_day\tend_day\tdose_gy\tfractions\tagent\tdose_mg_m2"
    row = "radiotherapy\t10\t50\t60\t30\tn/a\tn/a"
    (root / name / f"{name}_treatments.tsv").write_text(f"{header}\n{row}\n")


def _derived(root: Path, participant: str, session: str, what: str) -> Path:
    folder = root / "derivatives" / "tumor" / participant / session / "anat"
    return folder / f"{participant}_{session}_{what}.nii.gz"
