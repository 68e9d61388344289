"""How long does the intake of a visit take, at a hospital's own resolution, and how well is the head found?

Two patients with two visits each of four channels at 1 mm, with the skin of the head still on, moved
between visits and away from the atlas; from NIfTI, in two processes, without ``--registered``. The heads
are virtual, so brain and tissue are known. Beside the wall clock stands the processor's time, which other
programs on the machine do not change.

    .venv/bin/python benchmarks/intake.py --json out.json [--patients 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from _figures import Figure, report
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_client.intake.intake import Asked, intake
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.cohort import Volume
from oncofed_common.resample import resampled
from oncofed_simulation.patients.anatomy import Grid, head

SHAPE = (200, 240, 200)
SIGNAL = {  # fluid, grey, white, tumour, skin
    "t1n": (40.0, 110.0, 170.0, 90.0, 190.0),
    "t1c": (40.0, 115.0, 175.0, 260.0, 195.0),
    "t2w": (220.0, 120.0, 80.0, 190.0, 130.0),
    "t2f": (25.0, 120.0, 90.0, 230.0, 140.0),
}
BAR_S = 60.0
WORKERS = 2


def write_patient(root: Path, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Two visits in the style of BraTS; the true tissue of the first one, and its affine."""
    rng = np.random.default_rng(number)
    affine = np.eye(4)
    affine[:3, 3] = -np.asarray(SHAPE) / 2 + [0, -17, 0]
    grid = Grid(shape=SHAPE, affine_mm=affine)
    found = head(rng).fractions(grid, blur_mm=(1.0, 1.0, 1.0))
    fluid = (found.brain - found.grey - found.white).clip(0)
    brain = found.brain > 0.5
    away = ndimage.distance_transform_edt(~brain)
    skin = (away > 7) & (away <= 15)
    middle = np.asarray(SHAPE) / 2 + [35, 10, 25]
    far = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - middle, axis=-1)
    for visit, radius in enumerate((14, 18)):
        stem = f"BraTS-GLI-{number:05d}-{visit:03d}"
        (root / stem).mkdir(parents=True)
        tumor = (far < radius) & brain
        move = np.eye(4)
        angle = np.radians(6.0 * visit)
        move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        move[:3, 3] = [12, -20, 30] if visit else [0, 0, 0]
        for kind, (csf, grey, white, lesion, scalp) in SIGNAL.items():
            plain = fluid * csf + found.grey * grey + found.white * white
            plain = np.where(tumor, lesion, np.where(skin, scalp, plain * brain))
            noisy = np.abs(plain + rng.normal(0, 4, SHAPE))
            image = nib.Nifti1Image(noisy.astype(np.int16), move @ affine)
            nib.save(image, root / stem / f"{stem}-{kind}.nii.gz")
        image = nib.Nifti1Image(tumor.astype(np.uint8) * 3, move @ affine)
        nib.save(image, root / stem / f"{stem}-seg.nii.gz")
    return found.labels(), affine


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def as_found(volume: Volume, like: Volume) -> NDArray[np.float32]:
    """A map of the patient at the voxels of one of its images."""
    to_source = np.linalg.inv(volume.affine_mm) @ like.affine_mm
    return resampled(volume.data, to_source, shape=like.data.shape, order=0, outside=0.0)


def measure(folder: Path, *, patients: int) -> tuple[float, float, list[Mapping[str, float]]]:
    """Seconds a visit by the clock and of the processor; overlaps with the truth, a row a patient."""
    truth = {}
    numbers, sessions = (
        ["participant_id\thospital_number"],
        ["participant_id\tsession_id\twhen\tsteroid_mg\tkps"],
    )
    for number in range(patients):
        name = f"BraTS-GLI-{number:05d}"
        truth[name] = write_patient(folder / "in", number)
        numbers.append(f"{name}\t{4711 + number}")
        sessions += [f"{name}\t{visit:03d}\t{60 * visit}\tn/a\tn/a" for visit in range(2)]
    (folder / "tables").mkdir()
    (folder / "tables" / "sessions.tsv").write_text("\n".join(sessions) + "\n")
    (folder / "numbers.tsv").write_text("\n".join(numbers) + "\n")
    asked = Asked(
        source=folder / "in",
        out=folder / "cohort",
        identities=folder / "ids.tsv",
        style="brats",
        labels="brats-2023",
        name="benchmark",
        numbers=folder / "numbers.tsv",
        tables=folder / "tables",
    )
    began_s, spent_s = time.perf_counter(), _spent_s()
    made = intake(asked, workers=WORKERS, watch=lambda *_: None)
    wall_s, spent_s = time.perf_counter() - began_s, _spent_s() - spent_s
    cohort = read_cohort(folder / "cohort")
    rows = []
    for name, participant in made.names.items():
        patient = read_patient(cohort, participant)
        tissue, _ = truth[name]
        like = patient.visits[0].images["T1w"]
        if patient.tissue is None or patient.brain is None:
            raise SystemExit("a patient without a tissue map")
        found = as_found(patient.tissue, like)
        brain = as_found(patient.brain, like)
        rows.append(
            {
                "brain": dice(brain > 0, tissue > 0),
                "grey": dice(found == 2, tissue == 2),
                "white": dice(found == 3, tissue == 3),
            }
        )
    if made.visits != 2 * patients:
        raise SystemExit("a visit that was left out")
    return wall_s / made.visits, spent_s / made.visits, rows


def _spent_s() -> float:
    """Processor seconds of this process and of those that it ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, who))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--patients", type=int, default=2)
    asked = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as held:
        wall_s, spent_s, rows = measure(Path(held), patients=asked.patients)
    worst = {name: min(row[name] for row in rows) for name in ("brain", "grey", "white")}
    largest_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    figures = [
        Figure(name="a visit of four channels, two processes", value=wall_s, unit="s", bar=BAR_S),
        Figure(
            name="processor time of a visit, two cores' worth",
            value=spent_s / 2,
            unit="s",
            bar=BAR_S,
        ),
        Figure(name="memory of the largest process", value=largest_mib, unit="MiB"),
        Figure(name="Dice of the brain, worst", value=worst["brain"], unit="", floor=0.9),
        Figure(name="Dice of grey matter, worst", value=worst["grey"], unit="", floor=0.7),
        Figure(name="Dice of white matter, worst", value=worst["white"], unit="", floor=0.75),
    ]
    return report(figures, title="Intake", path=asked.json, rows=rows)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
