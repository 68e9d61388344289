"""How fast does a tumour spread, and can a given grid carry its front?

The Fisher–Kolmogorov equation of glioma growth (Swanson, Alvord & Murray, Cell Prolif. 33, 2000):

    du/dt = div(D(x) grad u) + rho u (1 - u),      D(x) grad u · n = 0 at the brain's boundary

u is tumour-cell density as a share of the carrying capacity, 0 to 1. D differs between white and grey
matter and is zero in fluid and outside the brain. A front in uniform tissue travels at 2 sqrt(D rho)
and is sqrt(D / rho) wide; a grid whose voxels are wider than that makes it run too fast (by about 4 %
at one width, 10 % at two, 20 % at three), unless D is matched to the grid (``matched_share``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

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

    @property
    def front_width_grey_mm(self) -> float:
        """Width of a front in grey matter."""
        return math.sqrt(self.diffusion_grey_mm2_per_day / self.rate_per_day)


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Longest voxel edge over front width, in each tissue; above 1 a grid is coarse for that tissue."""

    white: float
    grey: float

    @property
    def coarse(self) -> tuple[str, ...]:
        """The tissues in which a front is narrower than a voxel."""
        return tuple(name for name, ratio in vars(self).items() if not ratio <= 1)


def resolution(growth: Growth, spacing_mm: Spacing) -> Resolution:
    """How well a grid resolves the fronts of ``growth``; the longest voxel edge counts."""
    edge = max(spacing_mm)
    return Resolution(white=edge / growth.front_width_mm, grey=edge / growth.front_width_grey_mm)


def matched_share(edge_over_width: float) -> float:
    """The share of D with which a front on voxels of q widths travels as fast as D says, 1 as q → 0.

    A front is pulled by its thin leading edge, so on a grid its speed is the least over θ of
    ``(rho + 2 D'/h² (cosh θ - 1)) h / θ`` (van Saarloos, Phys. Rep. 386, 2003, section 2 and 5.6). Equal to
    2 sqrt(D rho) means ``θ - tanh(θ/2) = q/2`` and ``D'/D = q / sinh θ``. Exact for a front along the axis;
    one that crosses the grid obliquely is somewhat slower, none is faster.
    """
    q = edge_over_width
    theta = q
    for _ in range(60):  # Newton on a function whose slope lies between 1/2 and 1
        half = math.tanh(theta / 2)
        theta -= (theta - half - q / 2) / (1 - (1 - half**2) / 2)
    return q / math.sinh(theta)


def proliferate(
    u: Float[Tensor, "*batch x y z"], *, rate_per_day: Float[Tensor, "*#batch"], dt_day: float
) -> Float[Tensor, "*batch x y z"]:
    """Advance du/dt = rho u (1 - u) exactly: u e^(rho t) / (1 + u (e^(rho t) - 1))."""
    return proliferate_together(u[None], rate_per_day=rate_per_day, dt_day=dt_day)[0]


def proliferate_together(
    us: Float[Tensor, "population *batch x y z"],
    *,
    rate_per_day: Float[Tensor, "*#batch"],
    dt_day: float,
) -> Float[Tensor, "population *batch x y z"]:
    """The same for populations that share one rate and one capacity: each keeps its share of the sum."""
    gain = torch.expm1(rate_per_day * dt_day)[..., None, None, None]
    return us * ((1 + gain) / (1 + gain * us.sum(dim=0)))
