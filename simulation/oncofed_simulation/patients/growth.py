"""How did this patient's tumour come to be, and how does it go on?

A small clump in white matter grows by the physics of ``oncofed_common.physics`` in a box around it until it
is large enough to be found: that day is day 0, the first visit. The box has 1.5 mm voxels, so that a
front at least 2 mm wide (the hospitals' priors) is resolved in white matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from oncofed_common.physics.course import Cells, newborn
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.mechanics import Swelling
from oncofed_common.physics.medium import Medium, fibres, medium
from oncofed_common.physics.solver import grow
from oncofed_common.physics.therapy import DOSES_PER_CYCLE, Radiosensitivity
from oncofed_simulation.patients.anatomy import Grid, Head
from oncofed_simulation.patients.clinic import Person
from oncofed_simulation.patients.fibres import largest_share, sheet_tensor
from oncofed_simulation.patients.hospitals import Hospital

BOX_VOXEL_MM = 1.5
CLUMP_MM = 3.0
CLUMP_DENSITY = 0.8
VISIBLE = 0.25
"""Density from which FLAIR shows a voxel as abnormal (see ``scanner``)."""
ALPHA_OVER_BETA_GY = 10.0
POISSON_RATIO = 0.4
"""Of brain: Clatz et al., IEEE Trans. Med. Imaging 24, 2005."""
SLOWER_BY_GRADE = {2: 0.4, 3: 0.55, 4: 0.75}
"""Front speed of IDH-mutant tumours against wildtype glioblastoma; low-grade rates are a tenth of those of
high grade (Harpold et al. 2007)."""
FRONTAL_ODDS = 3.0
CUT_DENSITY = (0.35, 0.7)
"""Between the edge of what FLAIR shows and the enhancing core."""
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
    log_kill_per_dose: float
    clearance_half_life_day: float
    first_volume_ml: float
    resistant_share: float
    swelling: Swelling


@dataclass(frozen=True, kw_only=True)
class Box:
    """The part of the head in which the tumour is computed."""

    grid: Grid
    medium: Medium


def biology(hospital: Hospital, who: Person, rng: np.random.Generator) -> Biology:
    """Draw a tumour from the hospital's priors: IDH-mutant ones are slower, and slower the lower their
    grade; temozolomide kills twice as much where MGMT is methylated, tested or not."""
    prior = hospital.prior
    speed = prior.front_speed_mm_per_day * (
        SLOWER_BY_GRADE[who.grade] if who.idh == "mutant" else 1
    )
    speed *= float(np.exp(np.clip(rng.normal(), -1.8, 1.8) * prior.front_speed_spread))
    width = float(rng.uniform(*prior.front_width_mm))
    white = speed * width / 2
    alpha = prior.alpha_per_gy * float(np.exp(np.clip(rng.normal(), -1.5, 1.5) * 0.3))
    log_kill_per_cycle = float(rng.uniform(0.1, 0.25)) * (2 if who.methylated else 1)
    least, most = np.log(prior.resistant_share)
    return Biology(
        growth=Growth(
            diffusion_white_mm2_per_day=white,
            diffusion_grey_mm2_per_day=white / float(rng.uniform(*prior.white_to_grey)),
            rate_per_day=speed / (2 * width),
        ),
        sensitivity=Radiosensitivity(alpha_per_gy=alpha, beta_per_gy2=alpha / ALPHA_OVER_BETA_GY),
        log_kill_per_dose=log_kill_per_cycle / DOSES_PER_CYCLE,
        clearance_half_life_day=float(rng.uniform(45, 110)),
        first_volume_ml=float(rng.uniform(*prior.first_volume_ml)),
        resistant_share=float(np.exp(rng.uniform(least, most))),
        swelling=Swelling(strain=float(rng.uniform(*prior.strain)), poisson_ratio=POISSON_RATIO),
    )


def origin_mm(head: Head, who: Person, rng: np.random.Generator) -> tuple[float, float, float]:
    """A point of supratentorial white matter, off the midline, where a glioma may start.

    Places in front of the central sulcus (y > 0 in MNI) count ``FRONTAL_ODDS`` times as much with mutant IDH.
    """
    x, y, z = head.mni_mm(PLACES.points_mm())
    tissue = head.fractions(PLACES, blur_mm=PLACES.spacing_mm)
    eligible = (tissue.white > 0.8) & (np.abs(x) > 12) & (z > 2) & (y > -90) & (y < 60)
    places = np.argwhere(eligible)
    weight = np.where((y > 0) & (who.idh == "mutant"), FRONTAL_ODDS, 1.0)[eligible]
    passed = np.cumsum(weight)
    choice = places[int(np.searchsorted(passed, rng.random() * passed[-1], side="right"))]
    px, py, pz = PLACES.affine_mm[:3, :3] @ choice + PLACES.affine_mm[:3, 3]
    return float(px), float(py), float(pz)


def box(
    head: Head,
    law: Biology,
    *,
    fibre_ratio: float,
    origin_mm: tuple[float, float, float],
    follow_up_days: int,
) -> Box:
    """A cube around the origin that the front can't leave before follow-up ends.

    Fronts in grey matter are narrower than its voxels, and matched to them (``physics.medium``).
    """
    first_radius = (law.first_volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    fastest = law.growth.front_speed_mm_per_day * largest_share(fibre_ratio) ** 0.5
    reach = first_radius * 1.25 + fastest * follow_up_days + ROOM_MM
    half = int(np.ceil(reach / BOX_VOXEL_MM))
    affine = np.diag([BOX_VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = np.asarray(origin_mm) - half * BOX_VOXEL_MM
    grid = Grid(shape=(2 * half + 1,) * 3, affine_mm=affine)
    shares = head.fractions(grid, blur_mm=(0.0, 0.0, 0.0))
    tissue = torch.from_numpy(shares.labels())
    spacing_mm = (BOX_VOXEL_MM,) * 3
    if fibre_ratio == 1:
        within = medium(
            tissue, law.growth, spacing_mm=spacing_mm, dtype=torch.float32, allow_coarse=True
        )
    else:
        within = fibres(
            tissue,
            law.growth,
            tensor=torch.from_numpy(sheet_tensor(shares.white, spacing_mm, ratio=fibre_ratio)),
            spacing_mm=spacing_mm,
            dtype=torch.float32,
            allow_coarse=True,
        )
    return Box(grid=grid, medium=within)


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
    return newborn(u, day=0, resistant_share=law.resistant_share), age


def resection(where: Box, cells: Cells, rng: np.random.Generator) -> torch.Tensor:
    """What a surgeon takes out, bool on the box: the dense core down to a density that is never the same."""
    dense = (cells.visible >= float(rng.uniform(*CUT_DENSITY))).numpy()
    pieces, count = ndimage.label(dense)
    if not count:
        return torch.zeros_like(where.medium.solid)
    largest = 1 + int(np.argmax(np.bincount(pieces.reshape(-1))[1:]))
    return torch.from_numpy(ndimage.binary_fill_holes(pieces == largest)) & where.medium.solid


def volume_ml(density: Float[Tensor, "x y z"]) -> float:
    """Visible volume of a density on the box's grid, before any mass effect."""
    return float((density > VISIBLE).sum()) * BOX_VOXEL_MM**3 / 1000


def seen_ml(density: Float[Tensor, "x y z"], swelling: Swelling) -> float:
    """Visible volume as an outline shows it: each voxel has swollen by what its cells add."""
    visible = density[density > VISIBLE]
    swollen = (1 + swelling.source_per_density * visible).sum(dtype=torch.float64)
    return float(swollen) * BOX_VOXEL_MM**3 / 1000
