"""How did this patient's tumour come to be, and how does it go on?

A small clump in white matter grows by the physics of ``oncofed_common.physics`` in a box around it until it
is large enough to be found: that day is day 0, the first visit. The box has 1.5 mm voxels, so that a
front at least 2 mm wide (the hospitals' priors) is resolved in white matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_common.physics.course import Cells, newborn
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.medium import Medium, medium
from oncofed_common.physics.solver import grow
from oncofed_common.physics.therapy import Radiosensitivity
from oncofed_simulation.patients.anatomy import Grid, Head
from oncofed_simulation.patients.clinic import Person
from oncofed_simulation.patients.hospitals import Hospital

BOX_VOXEL_MM = 1.5
CLUMP_MM = 3.0
CLUMP_DENSITY = 0.8
VISIBLE = 0.25
"""Density from which FLAIR shows a voxel as abnormal (see ``scanner``)."""
ALPHA_OVER_BETA_GY = 10.0
LONGEST_ONSET_DAYS = 3000
ROOM_MM = 14.0
PLACES = Grid(
    shape=(54, 66, 36),
    affine_mm=np.array([[3.0, 0, 0, -80], [0, 3, 0, -115], [0, 0, 3, -15], [0, 0, 0, 1]]),
)
"""Where a tumour may start: the same points whichever scanner the hospital has."""


@dataclass(frozen=True, kw_only=True)
class Biology:
    """What no scan says directly: the law of growth, and how the tumour answers treatment."""

    growth: Growth
    sensitivity: Radiosensitivity
    log_kill_per_cycle: float
    clearance_half_life_day: float
    first_volume_ml: float


@dataclass(frozen=True, kw_only=True)
class Box:
    """The part of the head in which the tumour is computed."""

    grid: Grid
    medium: Medium


def biology(hospital: Hospital, who: Person, rng: np.random.Generator) -> Biology:
    """Draw a tumour from the hospital's priors; IDH-mutant ones are slower."""
    prior = hospital.prior
    speed = prior.front_speed_mm_per_day * (0.6 if who.idh == "mutant" else 1.0)
    speed *= float(np.exp(np.clip(rng.normal(), -1.8, 1.8) * prior.front_speed_spread))
    width = float(rng.uniform(*prior.front_width_mm))
    white = speed * width / 2
    alpha = prior.alpha_per_gy * float(np.exp(np.clip(rng.normal(), -1.5, 1.5) * 0.3))
    return Biology(
        growth=Growth(
            diffusion_white_mm2_per_day=white,
            diffusion_grey_mm2_per_day=white / float(rng.uniform(*prior.white_to_grey)),
            rate_per_day=speed / (2 * width),
        ),
        sensitivity=Radiosensitivity(alpha_per_gy=alpha, beta_per_gy2=alpha / ALPHA_OVER_BETA_GY),
        log_kill_per_cycle=float(rng.uniform(0.1, 0.25)) * (2 if who.mgmt == "methylated" else 1),
        clearance_half_life_day=float(rng.uniform(45, 110)),
        first_volume_ml=float(rng.uniform(*prior.first_volume_ml)),
    )


def origin_mm(head: Head, rng: np.random.Generator) -> tuple[float, float, float]:
    """A point of supratentorial white matter, off the midline, where a glioma may start."""
    x, y, z = head.mni_mm(PLACES.points_mm())
    tissue = head.fractions(PLACES, blur_mm=PLACES.spacing_mm)
    eligible = (tissue.white > 0.8) & (np.abs(x) > 12) & (z > 2) & (y > -90) & (y < 60)
    choice = np.argwhere(eligible)[int(rng.integers(int(eligible.sum())))]
    px, py, pz = PLACES.affine_mm[:3, :3] @ choice + PLACES.affine_mm[:3, 3]
    return float(px), float(py), float(pz)


def box(
    head: Head, law: Biology, *, origin_mm: tuple[float, float, float], follow_up_days: int
) -> Box:
    """A cube around the origin that the front can't leave before follow-up ends."""
    first_radius = (law.first_volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    reach = first_radius * 1.25 + law.growth.front_speed_mm_per_day * follow_up_days + ROOM_MM
    half = int(np.ceil(reach / BOX_VOXEL_MM))
    affine = np.diag([BOX_VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = np.asarray(origin_mm) - half * BOX_VOXEL_MM
    grid = Grid(shape=(2 * half + 1,) * 3, affine_mm=affine)
    tissue = head.fractions(grid, blur_mm=(0.0, 0.0, 0.0)).labels()
    return Box(
        grid=grid,
        medium=medium(
            torch.from_numpy(tissue),
            law.growth,
            spacing_mm=(BOX_VOXEL_MM,) * 3,
            dtype=torch.float32,
            allow_coarse=True,
        ),
    )


def onset(where: Box, law: Biology) -> tuple[Cells, int]:
    """The tumour on the day it is found, and for how many days it had grown since the clump."""
    middle = [(n - 1) / 2 for n in where.grid.shape]
    axes = [torch.arange(n) - m for n, m in zip(where.grid.shape, middle, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    far = (x**2 + y**2 + z**2) * BOX_VOXEL_MM**2
    u = CLUMP_DENSITY * torch.exp(-far / (2 * CLUMP_MM**2)) * where.medium.solid
    stride = max(4, round(1.0 / law.growth.front_speed_mm_per_day))
    age = 0
    while age < LONGEST_ONSET_DAYS and volume_ml(u) < law.first_volume_ml:
        u = grow(u, where.medium, days=float(stride))
        age += stride
    return newborn(u, day=0, resistant_share=0.0), age


def volume_ml(density: torch.Tensor | NDArray[np.float32]) -> float:
    """Visible volume of a density on the box's grid."""
    return float((density > VISIBLE).sum()) * BOX_VOXEL_MM**3 / 1000
