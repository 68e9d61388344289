"""How far does a swelling tumour push the tissue around it?

Linear elasticity with an isotropic growth strain β c (c: cell density), as for thermal expansion, in a brain
that can't leave the skull. In its irrotational part (Goodier's displacement potential: Timoshenko & Goodier,
Theory of Elasticity, section 155; for tumours Clatz et al., IEEE Trans. Med. Imaging 24, 2005) the
displacement is u = grad φ with

    lap φ = k β c - s,      k = (1 + ν) / (1 - ν),      grad φ · n = 0 at the skull

s is what gives way: fluid that drains, so that ventricles and sulci narrow by as much as the tumour adds.
Where everything yields alike this is exact for a sphere in a clamped elastic sphere, and in a large one it
is the sphere in an infinite medium, u = k β a³ / (3 r²). Approximations: one stiffness, a brain that slides
along the skull, small strains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Spacing

RESIDUAL = 3e-4
"""Of the source; the iteration ends there."""
MOST_ITERATIONS = 2000


@dataclass(frozen=True, kw_only=True)
class Swelling:
    """How strongly tumour cells swell, and how tissue passes it on.

    Args:
        strain: β, linear strain at full density; 0 pushes nothing.
        poisson_ratio: ν of brain, about 0.4 (Clatz et al. 2005).

    Raises:
        PhysicsRefusal: a strain below 0 or above 0.5, or a Poisson ratio outside 0 to 0.5.
    """

    strain: float
    poisson_ratio: float

    def __post_init__(self) -> None:
        if not (0 <= self.strain <= 0.5 and 0 <= self.poisson_ratio < 0.5):
            raise PhysicsRefusal(
                f"a growth strain of {self.strain:g} with a Poisson ratio of {self.poisson_ratio:g}",
                allowed="a strain from 0 to 0.5, a ratio from 0 to below 0.5",
                next="correct the mechanics",
                code="swelling",
            )

    @property
    def source_per_density(self) -> float:
        """k β: volume added, as a share, where the density is 1."""
        return self.strain * (1 + self.poisson_ratio) / (1 - self.poisson_ratio)


def displacement_mm(
    density: Float[Tensor, "x y z"],
    *,
    inside: Bool[Tensor, "x y z"],
    yielding: Float[Tensor, "x y z"],
    swelling: Swelling,
    spacing_mm: Spacing,
) -> Float[Tensor, "3 x y z"]:
    """Where each voxel's tissue goes: along x, y, z in mm; zero outside the skull.

    Args:
        density: of the tumour, 0..1.
        inside: the room within the skull, fluid included; one connected piece, or each piece with
            something that yields.
        yielding: how readily each voxel gives way, 0 or more; for a brain the share of fluid.

    Raises:
        PhysicsRefusal: nothing inside yields (``nothing_yields``).
    """
    source = swelling.source_per_density * density * inside
    room = yielding * inside
    if not float(source.abs().max()) > 0:
        return torch.zeros((3, *density.shape), dtype=density.dtype, device=density.device)
    if not float(room.sum()) > 0:
        raise PhysicsRefusal(
            "a skull in which nothing yields",
            allowed="fluid, or tissue that yields",
            next="correct the tissue map",
            code="nothing_yields",
        )
    right = source - room * (source.sum() / room.sum())
    potential = _solve(right, inside, spacing_mm)
    parts = []
    for dim, edge in enumerate(spacing_mm):
        flux = _flux(potential, inside, dim, edge)
        wall = torch.zeros_like(flux.narrow(dim, 0, 1))
        parts.append((torch.cat([wall, flux], dim=dim) + torch.cat([flux, wall], dim=dim)) / 2)
    return torch.stack(parts) * inside


def _flux(potential: Tensor, inside: Tensor, dim: int, edge_mm: float) -> Tensor:
    """grad φ on the inner faces along ``dim``; none through the skull."""
    n = inside.shape[dim]
    open_face = inside.narrow(dim, 0, n - 1) & inside.narrow(dim, 1, n - 1)
    return potential.diff(dim=dim) / edge_mm * open_face


def _divergence(potential: Tensor, inside: Tensor, spacing_mm: Spacing) -> Tensor:
    out = torch.zeros_like(potential)
    for dim, edge in enumerate(spacing_mm):
        flux = _flux(potential, inside, dim, edge) / edge
        n = inside.shape[dim]
        out.narrow(dim, 0, n - 1).add_(flux)
        out.narrow(dim, 1, n - 1).sub_(flux)
    return out


def _solve(right: Tensor, inside: Tensor, spacing_mm: Spacing) -> Tensor:
    """-div grad φ = -right by conjugate gradients (Hestenes & Stiefel 1952) in double precision."""
    b = -right.double()
    faces = torch.zeros_like(b)
    for dim, edge in enumerate(spacing_mm):
        n = inside.shape[dim]
        open_face = (inside.narrow(dim, 0, n - 1) & inside.narrow(dim, 1, n - 1)) / edge**2
        faces.narrow(dim, 0, n - 1).add_(open_face)
        faces.narrow(dim, 1, n - 1).add_(open_face)
    scale = torch.where(faces > 0, 1 / faces.clamp(min=1e-12), 0)
    phi = torch.zeros_like(b)
    residual = b.clone()
    z = residual * scale
    way = z.clone()
    size = float((residual * z).sum())
    target = RESIDUAL**2 * size
    for _ in range(MOST_ITERATIONS):
        if not size > max(target, math.ulp(0.0)):
            break
        image = -_divergence(way, inside, spacing_mm)
        step = size / float((way * image).sum())
        phi += step * way
        residual -= step * image
        z = residual * scale
        before, size = size, float((residual * z).sum())
        way = z + (size / before) * way
    return phi.to(right.dtype)
