"""Where does an outline pass, and how far from it does a density's own contour lie?

An outline on a grid passes between a voxel inside and a neighbour outside: at the middle of the two, with an
error of ``edge / sqrt(12)``. Only pairs that both hold cells count: at a ventricle's wall an outline follows
the wall, not the tumour.

There a model's contour of density c is ``(g(u) - g(c)) / |grad g|`` away, with ``g(u) = log(u^-1/2 - 1)``:
the exact travelling wave (Ablowitz & Zeppetella, Bull. Math. Biol. 41, 1979) is linear in g, and any front
nearly so; hence distances of many millimetres are still told well, where thresholds tell none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from oncofed_common.cohort import LABELS
from oncofed_common.physics.growth import Spacing

COMPARTMENTS: Mapping[str, float] = {"whole": 0.25, "core": 0.60}
"""Visible density on the outline: FLAIR and contrast-enhanced T1w, within the ranges that Lipková et al.
(IEEE Trans. Med. Imaging 38, 2019) infer from patients."""
DENSITY_RANGE = (1e-9, 1 - 1e-6)
FLATTEST = 0.25
"""Slope of g, over that of a front in white matter, below which a density counts as that steep."""
PROFILE = 6**0.5


@dataclass(frozen=True, kw_only=True)
class Outline:
    """One patient's outlines of one day, as labels in the values of ``LABELS``."""

    day: int
    labels: Integer[Tensor, "x y z"]

    def mask(self, compartment: str) -> Bool[Tensor, "x y z"]:
        """All of the lesion, or its core; a cavity belongs to neither."""
        names = {"whole": ("NETC", "SNFH", "ET"), "core": ("NETC", "ET")}[compartment]
        found = torch.zeros_like(self.labels, dtype=torch.bool)
        for name in names:
            found |= self.labels == LABELS[name]
        return found


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """Pairs of neighbours between which an outline passes.

    ``inside``, ``outside``: flat indices of the voxels; ``axis``: along which they are neighbours.
    """

    inside: Integer[Tensor, " pair"]
    outside: Integer[Tensor, " pair"]
    axis: Integer[Tensor, " pair"]

    def __len__(self) -> int:
        return len(self.axis)


def crossings(mask: Bool[Tensor, "x y z"], solid: Bool[Tensor, "x y z"]) -> Crossings:
    """Where the outline of ``mask`` passes through tissue that holds cells."""
    flat = torch.arange(mask.numel()).reshape(mask.shape)
    inside, outside, axes = [], [], []
    for axis in range(3):
        n = mask.shape[axis] - 1
        low, high = (flat.narrow(axis, start, n).flatten() for start in (0, 1))
        m, s = mask.flatten(), solid.flatten()
        passes = (m[low] != m[high]) & s[low] & s[high]
        low, high = low[passes], high[passes]
        inside.append(torch.where(m[low], low, high))
        outside.append(torch.where(m[low], high, low))
        axes.append(torch.full_like(low, axis))
    return Crossings(inside=torch.cat(inside), outside=torch.cat(outside), axis=torch.cat(axes))


def distances_mm(
    u: Float[Tensor, "batch x y z"],
    at: Crossings,
    *,
    density: float,
    solid: Bool[Tensor, "x y z"],
    front_width_mm: Float[Tensor, " batch"],
    spacing_mm: Spacing,
) -> Float[Tensor, "batch pair"]:
    """How far the contour of ``density`` lies within each crossing: positive where ``u`` is too small."""
    g = depth(u)
    slopes = _slopes(g, solid, spacing_mm).flatten(start_dim=2)
    g = g.flatten(start_dim=1)
    edge_mm = torch.tensor(spacing_mm, dtype=u.dtype)[at.axis]
    slope = (slopes[:, :, at.inside] + slopes[:, :, at.outside]) / 2
    along = (g[:, at.outside] - g[:, at.inside]) / edge_mm
    slope.scatter_(0, at.axis.expand(1, u.shape[0], -1), along.abs()[None])
    flattest = FLATTEST / (PROFILE * front_width_mm[:, None])
    steep = torch.linalg.vector_norm(slope, dim=0).clamp(min=flattest)
    middle = (g[:, at.inside] + g[:, at.outside]) / 2
    away: Tensor = (middle - depth(torch.tensor(density, dtype=u.dtype))) / steep
    return away


def depths_mm(
    u: Float[Tensor, "batch x y z"],
    at: Integer[Tensor, " voxel"],
    *,
    density: float,
    front_width_mm: Float[Tensor, " batch"],
) -> Float[Tensor, "batch voxel"]:
    """By how much ``u`` is above ``density`` in voxels that should lie below it, as the depth in a front
    of white matter: negative, or zero."""
    g = depth(u.flatten(start_dim=1)[:, at]) - depth(torch.tensor(density, dtype=u.dtype))
    return (g * PROFILE * front_width_mm[:, None]).clamp(max=0)


def depth(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """g(u) = log(u^-1/2 - 1): falls as the density rises, linearly along a front."""
    return torch.log(torch.rsqrt(u.clamp(*DENSITY_RANGE)) - 1)


def _slopes(
    g: Float[Tensor, "batch x y z"], solid: Bool[Tensor, "x y z"], spacing_mm: Spacing
) -> Float[Tensor, "3 batch x y z"]:
    """The size of the derivative along each axis, from the neighbours that hold cells."""
    found = []
    for axis, edge_mm in enumerate(spacing_mm):
        n = g.shape[axis + 1] - 1
        both = solid.narrow(axis, 0, n) & solid.narrow(axis, 1, n)
        diff = torch.where(both, g.diff(dim=axis + 1) / edge_mm, 0)
        wall = torch.zeros_like(g.narrow(axis + 1, 0, 1))
        none = torch.zeros_like(solid.narrow(axis, 0, 1))
        left, right = (torch.cat(p, dim=axis + 1) for p in ((wall, diff), (diff, wall)))
        count = torch.cat([none, both], dim=axis).int() + torch.cat([both, none], dim=axis).int()
        found.append(((left + right) / count.clamp(min=1)).abs())
    return torch.stack(found)
