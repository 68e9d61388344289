"""Tumours grown on a fine grid in mixed tissue, their exact outlines, and the fit of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from oncofed_common.cohort import LABELS
from oncofed_common.physics.candidates import (
    CLUMP_DENSITY,
    CLUMP_MM,
    Irradiation,
    Treatments,
)
from oncofed_common.physics.course import evolve, newborn
from oncofed_common.physics.evidence import EXACT
from oncofed_common.physics.fit import PUBLISHED, Fit, fit
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.medium import medium
from oncofed_common.physics.outline import COMPARTMENTS, Outline
from oncofed_common.physics.solver import grow
from oncofed_common.physics.therapy import (
    Radiosensitivity,
    Therapy,
    fraction_days,
    radiotherapy,
)
from oncofed_common.resample import resampled

FINE_MM, SEEN_MM, EDGE_MM = 1.5, 2.5, 66.0
CSF, GREY, WHITE = 1, 2, 3
ALPHA, CLEARANCE_DAY, DOSE_GY = 0.035, 70.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """What grew, and the outlines that it left on each of ``days``."""

    law: Growth
    outlines: tuple[Outline, ...]
    volumes_ml: tuple[float, ...]
    origin_mm: tuple[float, float, float]
    treatments: Treatments


def centres(edge_mm: float) -> np.ndarray:
    axis = np.arange(round(EDGE_MM / edge_mm)) * edge_mm
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))


def tissue(edge_mm: float) -> torch.Tensor:
    """White matter with a wavy rind of grey, a grey nucleus, and a fluid pocket."""
    x, y, z = centres(edge_mm)
    grey = x + 3 * np.sin(y / 6) < 17
    grey |= (x - 44) ** 2 + (y - 46) ** 2 + (z - 30) ** 2 < 64
    fluid = (x - 33) ** 2 / 4 + (y - 14) ** 2 + (z - 36) ** 2 < 30
    labels = np.where(fluid, CSF, np.where(grey, GREY, WHITE))
    return torch.from_numpy(np.where(x < 8, 0, labels).astype(np.int64))


def affine(edge_mm: float = SEEN_MM) -> torch.Tensor:
    return torch.diag(torch.tensor([edge_mm, edge_mm, edge_mm, 1.0], dtype=torch.float64))


@lru_cache(maxsize=8)
def grown(
    *,
    speed: float = 0.08,
    width_mm: float = 2.6,
    days: tuple[int, ...] = (0, 70, 140),
    origin_mm: tuple[float, float, float] = (30.0, 31.0, 33.0),
    reach_mm: float = 13.0,
    treated: bool = False,
) -> Tumour:
    """Grown with the plain solver in voxels of 1.5 mm."""
    white = speed * width_mm / 2
    law = Growth(
        diffusion_white_mm2_per_day=white,
        diffusion_grey_mm2_per_day=white / 6,
        rate_per_day=speed / (2 * width_mm),
    )
    fine = tissue(FINE_MM)
    where = medium(fine, law, spacing_mm=(FINE_MM,) * 3, dtype=torch.float32, allow_coarse=True)
    far = sum((c - o) ** 2 for c, o in zip(centres(FINE_MM), origin_mm, strict=True))
    clump = CLUMP_DENSITY * np.exp(-far / (2 * CLUMP_MM**2))
    u = torch.from_numpy(clump).float() * where.solid
    cells = newborn(grow(u, where, days=reach_mm / speed), day=0, resistant_share=0.0)
    when = tuple(fraction_days(8, 30)) if treated else ()
    therapy = Therapy()
    if treated:
        dose = torch.full(fine.shape, DOSE_GY)
        kill = Radiosensitivity(alpha_per_gy=ALPHA, beta_per_gy2=ALPHA / 10)
        therapy = Therapy(fractions=radiotherapy(dose, kill, days=when))
    course = evolve(cells, where, therapy=therapy, clearance_half_life_day=CLEARANCE_DAY, days=days)
    seen = tissue(SEEN_MM)
    outlines, volumes = [], []
    for now in course:
        visible = onto_seen(now.visible, where.solid) * (seen > CSF).numpy()
        labels = np.where(visible >= COMPARTMENTS["whole"], LABELS["SNFH"], 0)
        labels = np.where(visible >= COMPARTMENTS["core"], LABELS["ET"], labels)
        outlines.append(Outline(day=now.day, labels=torch.from_numpy(labels)))
        volumes.append(float((now.visible >= COMPARTMENTS["whole"]).sum()) * FINE_MM**3 / 1000)
    rays = Irradiation(total_dose_gy=torch.full(seen.shape, DOSE_GY), days=when or (0,))
    return Tumour(
        law=law,
        outlines=tuple(outlines),
        volumes_ml=tuple(volumes),
        origin_mm=origin_mm,
        treatments=Treatments(irradiations=(rays,) if treated else ()),
    )


def onto_seen(density: torch.Tensor, solid: torch.Tensor) -> np.ndarray:
    """The mean over the tissue around each voxel that the fit sees."""
    to_fine = np.diag([SEEN_MM / FINE_MM] * 3 + [1.0])
    shape = tuple(tissue(SEEN_MM).shape)
    value, share = (
        resampled(field.float().numpy(), to_fine, shape=shape, order=1, outside=0.0)
        for field in (density, solid)
    )
    return np.where(share > 0.25, value / np.maximum(share, 0.25), 0)


def fitted(tumour: Tumour, visits: Sequence[int], treatments: Treatments | None = None) -> Fit:
    return fit(
        [tumour.outlines[visit] for visit in visits],
        tissue=tissue(SEEN_MM),
        affine_mm=affine(),
        treatments=tumour.treatments if treatments is None else treatments,
        priors=PUBLISHED,
        error=EXACT,
    )
