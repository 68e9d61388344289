"""How fast does a tumour spread, and can a given grid carry its front?

The Fisher–Kolmogorov equation of glioma growth (Swanson, Alvord & Murray, Cell Prolif. 33, 2000):

    du/dt = div(D(x) grad u) + rho u (1 - u),      D(x) grad u · n = 0 at the brain's boundary

u is tumour-cell density as a share of the carrying capacity, 0 to 1. D differs between white and grey
matter and is zero in fluid and outside the brain. A front in uniform tissue travels at 2 sqrt(D rho)
and is sqrt(D / rho) wide; a grid whose voxels are wider than that makes it run too fast (by about 4 %
at one width, 10 % at two, 20 % at three).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_common.cohort import TISSUES
from oncofed_common.errors import PhysicsRefusal

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The law of one tumour.

    Raises:
        PhysicsRefusal: a parameter that is not finite and positive.
    """

    diffusion_white_mm2_per_day: float
    diffusion_grey_mm2_per_day: float
    rate_per_day: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise PhysicsRefusal(
                    f"{name} = {value:g}",
                    allowed="a finite number above zero",
                    next="give diffusion in mm2/day and rate in 1/day",
                    code="growth_not_positive",
                )

    @property
    def front_speed_mm_per_day(self) -> float:
        """Speed of a front in white matter, 2 sqrt(D rho)."""
        return 2 * math.sqrt(self.diffusion_white_mm2_per_day * self.rate_per_day)

    @property
    def front_width_mm(self) -> float:
        """Width of a front in white matter, sqrt(D / rho)."""
        return math.sqrt(self.diffusion_white_mm2_per_day / self.rate_per_day)


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Voxel edge over front width, in each tissue; above 1 a front runs faster than it is."""

    white: float
    grey: float


def resolution(growth: Growth, spacing_mm: Spacing) -> Resolution:
    """How well a grid resolves the fronts of ``growth``; the longest voxel edge counts."""
    edge = max(spacing_mm)
    return Resolution(
        white=edge / growth.front_width_mm,
        grey=edge / math.sqrt(growth.diffusion_grey_mm2_per_day / growth.rate_per_day),
    )


def refuse_coarse(growth: Growth, spacing_mm: Spacing) -> None:
    """Refuse a grid on which the front in white matter, which carries it, would run too fast.

    Raises:
        PhysicsRefusal: the longest voxel edge exceeds the front's width in white matter.
    """
    found = resolution(growth, spacing_mm).white
    if not found <= 1:
        raise PhysicsRefusal(
            f"voxels {found:.2f} times as long as the tumour front is wide",
            allowed="1 at most",
            next=f"use voxels of {growth.front_width_mm:.2f} mm or less",
            code="grid_too_coarse",
        )


def diffusivity(
    tissue: Integer[Tensor, "x y z"], growth: Growth, *, dtype: torch.dtype
) -> Float[Tensor, "x y z"]:
    """D of every voxel in mm²/day, zero in fluid and outside the brain.

    Args:
        tissue: labels of ``TISSUES``, 0 outside the brain.

    Raises:
        PhysicsRefusal: another label.
    """
    of_label = torch.zeros(len(TISSUES) + 1, dtype=dtype)
    of_label[TISSUES["grey"]] = growth.diffusion_grey_mm2_per_day
    of_label[TISSUES["white"]] = growth.diffusion_white_mm2_per_day
    labels = tissue.long()
    if int(labels.min()) < 0 or int(labels.max()) >= len(of_label):
        raise PhysicsRefusal(
            "a tissue map with an unknown label",
            allowed="0 outside, 1 CSF, 2 grey, 3 white",
            next="relabel the tissue map",
            code="tissue_label",
        )
    return of_label.to(tissue.device)[labels]


def proliferate(
    u: Float[Tensor, "x y z"], *, rate_per_day: float, dt_day: float
) -> Float[Tensor, "x y z"]:
    """Advance du/dt = rho u (1 - u) exactly: u e^(rho t) / (1 + u (e^(rho t) - 1))."""
    gain = math.expm1(rate_per_day * dt_day)
    return u * (1 + gain) / (1 + gain * u)
