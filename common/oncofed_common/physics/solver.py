"""How does a tumour-cell density move on a voxel grid?

Each time step is Strang's splitting: half a step of exact growth, diffusion, half a step of growth.
Diffusion is locally one-dimensional Crank–Nicolson (Marchuk, Handb. Numer. Anal. 1, 1990): tridiagonal
solves of half a step along x, y, z and then z, y, x, which is symmetric in time, so of second order, and
prefers no axis where tissue is uniform. Fluxes sit on voxel faces with the harmonic mean of the two
diffusivities: a face with fluid on one side carries nothing, mass is conserved to rounding, and no
boundary condition has to be written down.

A Crank–Nicolson solve of length s keeps 0 <= u <= 1 while s D / dx² <= 1 (its explicit half is then a
convex combination); ``longest_step_day`` stays below that and where splitting costs little.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import (
    Growth,
    Spacing,
    diffusivity,
    proliferate,
    refuse_coarse,
)

GROWTH_PER_STEP = 0.2
"""Largest rho dt; a test measures what it costs against steps ten times shorter."""
KEPT_FACTORS = 4


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The factored, symmetric tridiagonal system of all lines along ``dim``, that axis first.

    ``share``: face weight over pivot, what a voxel takes from its neighbour; ``scale``: one over pivot.
    """

    dim: int
    share: Float[Tensor, "n a b"]
    scale: Float[Tensor, "n a b"]


@dataclass(frozen=True, kw_only=True)
class Medium:
    """Tissue as one tumour finds it, on one grid; made by ``medium``.

    ``diffusivity_mm2_per_day``: shape (x, y, z), zero where no cell may be. Keeps the last few factored
    systems, since most calls repeat a time step.
    """

    diffusivity_mm2_per_day: Float[Tensor, "x y z"]
    growth: Growth
    spacing_mm: Spacing
    _factored: OrderedDict[float, tuple[Axis, ...]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    @property
    def solid(self) -> Tensor:
        """Where cells may be, bool (x, y, z)."""
        return self.diffusivity_mm2_per_day > 0

    @property
    def longest_step_day(self) -> float:
        """Longest step that keeps the density within 0..1 and the splitting error small."""
        law = self.growth
        fastest = max(law.diffusion_white_mm2_per_day, law.diffusion_grey_mm2_per_day)
        return min(min(self.spacing_mm) ** 2 / fastest, GROWTH_PER_STEP / law.rate_per_day)

    def axes(self, dt_day: float) -> tuple[Axis, ...]:
        """The solves that make one step of ``dt_day``, in order: x, y, z, z, y, x."""
        if dt_day not in self._factored:
            x, y, z = (
                _factor(self.diffusivity_mm2_per_day, dim, self.spacing_mm[dim], dt_day / 2)
                for dim in range(3)
            )
            self._factored[dt_day] = (x, y, z, z, y, x)
            if len(self._factored) > KEPT_FACTORS:
                self._factored.popitem(last=False)
        return self._factored[dt_day]


def medium(
    tissue: Integer[Tensor, "x y z"], growth: Growth, *, spacing_mm: Spacing, dtype: torch.dtype
) -> Medium:
    """What ``growth`` meets in ``tissue`` (labels of ``TISSUES``, 0 outside the brain).

    Raises:
        PhysicsRefusal: an unknown label, or voxels longer than the front is wide in white matter.
    """
    refuse_coarse(growth, spacing_mm)
    return Medium(
        diffusivity_mm2_per_day=diffusivity(tissue, growth, dtype=dtype),
        growth=growth,
        spacing_mm=spacing_mm,
    )


def grow(u: Float[Tensor, "x y z"], within: Medium, *, days: float) -> Float[Tensor, "x y z"]:
    """The density ``days`` later, in equal steps; ``u`` itself after zero days.

    Args:
        u: density 0..1, zero where the medium holds no cells.

    Raises:
        PhysicsRefusal: a negative or infinite number of days.
    """
    if not (math.isfinite(days) and days >= 0):
        raise PhysicsRefusal(
            f"{days:g} days of growth",
            allowed="a finite number, zero or more",
            next="correct the number of days",
            code="days",
        )
    if days == 0:
        return u
    steps = math.ceil(days / within.longest_step_day)
    dt_day = days / steps
    axes = within.axes(dt_day)
    rate = within.growth.rate_per_day
    for _ in range(steps):
        u = proliferate(u, rate_per_day=rate, dt_day=dt_day / 2)
        u = diffuse(u, axes).clamp_(0, 1)
        u = proliferate(u, rate_per_day=rate, dt_day=dt_day / 2)
    return u


def diffuse(u: Float[Tensor, "x y z"], axes: Sequence[Axis]) -> Float[Tensor, "x y z"]:
    """Crank–Nicolson steps along ``axes``, one after the other; the sum of ``u`` stays."""
    for axis in axes:
        u = _step(u, axis)
    return u


def _factor(diffusivity: Float[Tensor, "x y z"], dim: int, edge_mm: float, dt_day: float) -> Axis:
    d = diffusivity.movedim(dim, 0).contiguous()
    left, right = d[:-1], d[1:]
    mean = torch.where(left * right > 0, 2 * left * right / (left + right), 0)
    face = torch.zeros((d.shape[0] + 1, *d.shape[1:]), dtype=d.dtype, device=d.device)
    face[1:-1] = mean * (dt_day / (2 * edge_mm**2))
    pivot = 1 + face[:-1] + face[1:]
    share = torch.zeros_like(d)
    for i in range(d.shape[0]):
        if i:
            pivot[i].addcmul_(face[i], share[i - 1], value=-1)
        torch.div(face[i + 1], pivot[i], out=share[i])
    return Axis(dim=dim, share=share, scale=1 / pivot)


def _step(u: Float[Tensor, "x y z"], axis: Axis) -> Float[Tensor, "x y z"]:
    """(1 + B)⁻¹ (1 - B) u, which is 2 (1 + B)⁻¹ u - u: one solve and no product with B."""
    before = u.movedim(axis.dim, 0)
    y = before.clone(memory_format=torch.contiguous_format)
    rows, shares = y.unbind(0), axis.share.unbind(0)
    for i in range(1, len(rows)):
        rows[i].addcmul_(shares[i - 1], rows[i - 1])
    y *= axis.scale
    for i in range(len(rows) - 2, -1, -1):
        rows[i].addcmul_(shares[i], rows[i + 1])
    return y.mul_(2).sub_(before).movedim(0, axis.dim)
