"""What do a patient's outlines say about a candidate, and how much is that worth?

Each crossing of an outline gives one distance in mm, outline to the candidate's contour. Its error has three
parts: where between two voxels the outline passes (independent); what model and outline get wrong locally,
alike over a patch of surface; and shifts of a whole outline, inwards or outwards: one of each day, which
bounds how well two outlines tell a speed, and a habit, the same on all days, which does so for the width.
Shifts are integrated out (Woodbury). Outliers lose weight as under a Cauchy error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from oncofed_common.physics.growth import Spacing
from oncofed_common.physics.outline import (
    COMPARTMENTS,
    Crossings,
    Outline,
    crossings,
    depths_mm,
    distances_mm,
)

FACES_PER_SURFACE = 1.5
"""Area of the voxel faces of a surface over its own, on average over directions."""
FARTHEST_MM = 25.0
OUTLIER_MM = 4.0
EMPTY_WORTH = 10.0
"""An outline that is missing is worth so many independent distances."""


@dataclass(frozen=True, kw_only=True)
class OutlineError:
    """Standard deviations in mm.

    ``patch_mm``: over which distance local errors are alike; ``shift_mm``: of a compartment's outline on one
    day; ``habit_mm``: of a compartment's outlines on all days alike, be it an observer's or the grid's.
    Where between two voxels an outline passes is not part of it: that follows from the voxels.
    """

    local_mm: float
    patch_mm: float
    shift_mm: float
    habit_mm: float


EXACT = OutlineError(local_mm=0.6, patch_mm=8.0, shift_mm=0.12, habit_mm=0.4)
"""Of a density's own contours, grown on 1.5 mm and fitted on 2.5 mm voxels; a human's errs by more."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """One compartment on one day: crossings, or (where it is empty) voxels that should lie below it."""

    visit: int
    density: float
    at: Crossings | Integer[Tensor, " voxel"]
    variance_mm2: Float[Tensor, " residual"]

    def residuals(
        self,
        u: Float[Tensor, "batch x y z"],
        *,
        solid: Bool[Tensor, "x y z"],
        front_width_mm: Float[Tensor, " batch"],
        spacing_mm: Spacing,
    ) -> Float[Tensor, "batch residual"]:
        """Distances of each candidate in mm, positive where it is too small."""
        if isinstance(self.at, Crossings):
            found = distances_mm(
                u,
                self.at,
                density=self.density,
                solid=solid,
                front_width_mm=front_width_mm,
                spacing_mm=spacing_mm,
            )
        else:
            found = depths_mm(u, self.at, density=self.density, front_width_mm=front_width_mm)
        return found.clamp(-FARTHEST_MM, FARTHEST_MM)


def surfaces(
    outlines: Sequence[Outline],
    *,
    solid: Bool[Tensor, "x y z"],
    spacing_mm: Spacing,
    error: OutlineError,
) -> list[Surface]:
    """All that the outlines show; a compartment that is in none of them was not outlined."""
    found = []
    for name, density in COMPARTMENTS.items():
        masks = [outline.mask(name) for outline in outlines]
        union = torch.stack(masks).any(dim=0)
        if not bool(union.any()):
            continue
        for visit, mask in enumerate(masks):
            if bool(mask.any()):
                at = crossings(mask, solid)
                if len(at):
                    variance = _variance(at, spacing_mm, error)
                    found.append(
                        Surface(visit=visit, density=density, at=at, variance_mm2=variance)
                    )
            else:
                voxels = torch.nonzero((union & solid).flatten())[:, 0]
                each = error.local_mm**2 * max(1.0, len(voxels) / EMPTY_WORTH)
                variance = torch.full((len(voxels),), each, dtype=torch.float64)
                found.append(
                    Surface(visit=visit, density=density, at=voxels, variance_mm2=variance)
                )
    return found


def weights(
    residuals: Sequence[Float[Tensor, " _"]], shown: Sequence[Surface]
) -> list[Float[Tensor, " _"]]:
    """One over the variance of each residual; far from its surface's middle one is worth less."""
    found = []
    for r, surface in zip(residuals, shown, strict=True):
        off = (r - r.median()) / OUTLIER_MM
        found.append(1 / (surface.variance_mm2 * (1 + off**2)))
    return found


def product(
    left: Sequence[Float[Tensor, "a _"]],
    right: Sequence[Float[Tensor, "b _"]],
    worth: Sequence[Float[Tensor, " _"]],
    *,
    shown: Sequence[Surface],
    error: OutlineError,
) -> Float[Tensor, "a b"]:
    """``left C⁻¹ rightᵀ``, C the covariance of all residuals with the shifts in it."""
    total = torch.zeros((left[0].shape[0], right[0].shape[0]), dtype=torch.float64)
    for density in sorted({surface.density for surface in shown}):
        sum_a, sum_b = total.new_zeros(total.shape[0]), total.new_zeros(total.shape[1])
        sum_1 = total.new_zeros(())
        for a, b, w, surface in zip(left, right, worth, shown, strict=True):
            if surface.density == density:
                aw, of_b = a * w, (b * w).sum(dim=1)
                of_a, kept = aw.sum(dim=1), 1 / (1 + error.shift_mm**2 * w.sum())
                total += aw @ b.T - error.shift_mm**2 * kept * torch.outer(of_a, of_b)
                sum_a, sum_b = sum_a + kept * of_a, sum_b + kept * of_b
                sum_1 = sum_1 + kept * w.sum()
        shrink = error.habit_mm**2 / (1 + error.habit_mm**2 * sum_1)
        total -= shrink * torch.outer(sum_a, sum_b)
    return total


def _variance(at: Crossings, spacing_mm: Spacing, error: OutlineError) -> Tensor:
    x, y, z = spacing_mm
    face_mm2 = torch.tensor([y * z, x * z, x * y], dtype=torch.float64)[at.axis]
    edge_mm = torch.tensor(spacing_mm, dtype=torch.float64)[at.axis]
    patches = float(face_mm2.sum()) / FACES_PER_SURFACE / error.patch_mm**2
    alike = max(1.0, len(at) / max(patches, 1.0))
    return error.local_mm**2 * alike + edge_mm**2 / 12
