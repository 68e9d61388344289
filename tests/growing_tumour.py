"""A small honest patient for tests: concentric spheres that grow in a round head, on a tilted-free grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oncofed_common.cohort import CHANNELS, LABELS, Patient, Treatment, Visit, Volume

HEAD_MM = 65.0
BOOST = {"T1w": -20.0, "ce-gadolinium_T1w": 90.0, "T2w": 50.0, "FLAIR": 80.0}


def unforeseen(patient, preset, seen, *, days):
    """No physics at all, as where it cannot be fitted: for ``foresee``."""
    return [None for _ in days]


def growing_tumour(
    *,
    radii_mm: Sequence[float] = (12.0, 15.0, 18.0),
    days: Sequence[int] = (0, 60, 150),
    centre_mm: tuple[float, float, float] = (5.0, -4.0, 3.0),
    spacing_mm: float = 3.0,
    treatments: tuple[Treatment, ...] = (),
    seed: int = 0,
) -> Patient:
    """One visit for each radius: oedema, an enhancing shell within 0.7 and necrosis within 0.4 of it."""
    voxels = round(144.0 / spacing_mm)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -spacing_mm * (voxels - 1) / 2
    axis = affine[0, 3] + spacing_mm * np.arange(voxels)
    world = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    from_tumour = np.linalg.norm(world - np.array(centre_mm), axis=-1)
    brain = np.linalg.norm(world, axis=-1) < HEAD_MM
    tissue = np.where(brain, np.where(world[..., 0] > 0, 3, 2), 0).astype(np.uint8)
    rng = np.random.default_rng(seed)
    visits = []
    for number, (radius, day) in enumerate(zip(radii_mm, days, strict=True), start=1):
        labels = np.zeros(brain.shape, dtype=np.uint8)
        labels[from_tumour < radius] = LABELS["SNFH"]
        labels[from_tumour < 0.7 * radius] = LABELS["ET"]
        labels[from_tumour < 0.4 * radius] = LABELS["NETC"]
        images = {
            name: Volume(
                data=(
                    40.0 * tissue + BOOST[name] * (labels > 0) + rng.normal(0, 3, brain.shape)
                ).astype(np.float32),
                affine_mm=affine,
            )
            for name in CHANNELS
        }
        visits.append(
            Visit(
                session=f"ses-{number:02d}",
                day=day,
                images=images,
                tumor=Volume(data=labels, affine_mm=affine),
            )
        )
    return Patient(
        participant="sub-001",
        visits=tuple(visits),
        treatments=treatments,
        tissue=Volume(data=tissue, affine_mm=affine),
        brain=Volume(data=brain.astype(np.uint8), affine_mm=affine),
        age_years=61.0,
        sex="F",
    )
