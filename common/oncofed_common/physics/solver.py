"""How does a tumour-cell density move on a voxel grid?

Each time step is Strang's splitting: half a step of exact growth, diffusion, half a step of growth.
Diffusion is locally one-dimensional Crank–Nicolson (Marchuk 1990, ch. 4): one tridiagonal solve along
each axis, x y z in one step and z y x in the next, which keeps second order in time. Fluxes sit on voxel
faces with the harmonic mean of the two diffusivities, so a face with fluid on one side carries nothing,
mass is conserved to rounding, and no boundary condition has to be written down.

Crank–Nicolson keeps 0 <= u <= 1 while dt D / dx² <= 1 (its explicit half stays a convex combination);
``longest_step_day`` says how long a step may be for that and for the coupling to growth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.physics.growth import Growth, Spacing, proliferate, refuse_coarse

GROWTH_PER_STEP = 0.2
"""Largest rho dt: the splitting error of a year of growth then stays below 0.2 % (measured in tests)."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The factored tridiagonal system of all lines along one axis, that axis first.

    ``lower``: share of the line before, shape (n, a, b); ``upper``: share of the line after;
    ``scale``: one over the pivot.
    """

    dim: int
    lower: Float[Tensor, "n a b"]
    upper: Float[Tensor, "n a b"]
    scale: Float[Tensor, "n a b"]


def longest_step_day(growth: Growth, spacing_mm: Spacing) -> float:
    """Longest step that keeps the density within 0..1 and the splitting error small."""
    fastest = max(growth.diffusion_white_mm2_per_day, growth.diffusion_grey_mm2_per_day)
    return min(min(spacing_mm) ** 2 / fastest, GROWTH_PER_STEP / growth.rate_per_day)


def factor(
    diffusivity: Float[Tensor, "x y z"], *, spacing_mm: Spacing, dt_day: float
) -> tuple[Axis, Axis, Axis]:
    """Factor (1 - dt/2 d/dx D d/dx) along each axis; reuse it for every step of length ``dt_day``."""
    x, y, z = (_factor_axis(diffusivity, dim, spacing_mm[dim], dt_day) for dim in range(3))
    return x, y, z


def diffuse(u: Float[Tensor, "x y z"], axes: Sequence[Axis]) -> Float[Tensor, "x y z"]:
    """One Crank–Nicolson step along each axis in the order given; the sum of ``u`` stays."""
    for axis in axes:
        u = _step_axis(u, axis)
    return u


def grow(
    u: Float[Tensor, "x y z"],
    diffusivity: Float[Tensor, "x y z"],
    growth: Growth,
    *,
    spacing_mm: Spacing,
    days: float,
) -> Float[Tensor, "x y z"]:
    """The density ``days`` later.

    Args:
        u: density 0..1, zero where ``diffusivity`` is zero.
        diffusivity: mm²/day, from ``growth.diffusivity``.

    Raises:
        PhysicsRefusal: the grid is too coarse for the front.
    """
    refuse_coarse(growth, spacing_mm)
    if days <= 0:
        return u
    steps = math.ceil(days / longest_step_day(growth, spacing_mm))
    dt = days / steps
    axes = factor(diffusivity, spacing_mm=spacing_mm, dt_day=dt)
    for step in range(steps):
        u = proliferate(u, rate_per_day=growth.rate_per_day, dt_day=dt / 2)
        u = diffuse(u, axes if step % 2 == 0 else axes[::-1]).clamp_(0, 1)
        u = proliferate(u, rate_per_day=growth.rate_per_day, dt_day=dt / 2)
    return u


def _factor_axis(
    diffusivity: Float[Tensor, "x y z"], dim: int, edge_mm: float, dt_day: float
) -> Axis:
    d = diffusivity.movedim(dim, 0).contiguous()
    left, right = d[:-1], d[1:]
    total = left + right
    mean = torch.where(total > 0, 2 * left * right / total.clamp(min=1e-30), 0)
    face = torch.zeros((d.shape[0] + 1, *d.shape[1:]), dtype=d.dtype, device=d.device)
    face[1:-1] = mean * (dt_day / (2 * edge_mm**2))
    scale = torch.empty_like(d)
    lower = torch.zeros_like(d)
    pivot = 1 + face[0] + face[1]
    for i in range(d.shape[0]):
        if i:
            lower[i] = face[i] / pivot
            pivot = 1 + face[i] + face[i + 1] - face[i] * lower[i]
        scale[i] = 1 / pivot
    return Axis(dim=dim, lower=lower, upper=face[1:] * scale, scale=scale)


def _step_axis(u: Float[Tensor, "x y z"], axis: Axis) -> Float[Tensor, "x y z"]:
    """(1 + B)⁻¹ (1 - B) u, which is 2 (1 + B)⁻¹ u - u: one solve and no product with B."""
    before = u.movedim(axis.dim, 0)
    y = before.clone(memory_format=torch.contiguous_format)
    for i in range(1, y.shape[0]):
        y[i].addcmul_(axis.lower[i], y[i - 1])
    y *= axis.scale
    for i in range(y.shape[0] - 2, -1, -1):
        y[i].addcmul_(axis.upper[i], y[i + 1])
    return (2 * y - before).movedim(0, axis.dim)
