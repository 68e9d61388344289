"""How is a tumour grown on a grid that is too coarse for its fronts?

Every voxel is cut into equal parts, as many along each axis as it takes for a part to be no longer than
the narrowest front of the tissues that are there; the tumour grows on the parts; a voxel's density
afterwards is their mean. What that needs in memory is said before anything is allocated.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_common.cohort import TISSUES
from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Growth, Spacing

FIELDS_HELD = 16
"""Arrays as large as the grid that a step holds: three factored axes, densities, tissue, D."""

Parts = tuple[int, int, int]


def parts_for(growth: Growth, tissue: Integer[Tensor, "x y z"], spacing_mm: Spacing) -> Parts:
    """Into how many parts a voxel is cut along x, y and z: (1, 1, 1) on a grid that is fine enough."""
    widths = {"white": growth.front_width_mm, "grey": growth.front_width_grey_mm}
    present = [w for name, w in widths.items() if bool((tissue == TISSUES[name]).any())]
    narrowest = min(present, default=math.inf)
    x, y, z = (max(1, math.ceil(edge / narrowest - 1e-9)) for edge in spacing_mm)
    return x, y, z


def needed_bytes(shape: torch.Size | tuple[int, ...], parts: Parts, dtype: torch.dtype) -> int:
    """Memory that growing on the parts takes, about."""
    return math.prod(shape) * math.prod(parts) * dtype.itemsize * FIELDS_HELD


def refuse_memory(
    shape: torch.Size | tuple[int, ...], parts: Parts, dtype: torch.dtype, *, free_bytes: int
) -> None:
    """Refuse a grid that does not fit into ``free_bytes``.

    Raises:
        PhysicsRefusal: code ``memory``; it says how much is needed.
    """
    needed = needed_bytes(shape, parts, dtype)
    if needed > free_bytes:
        raise PhysicsRefusal(
            f"a grid of {math.prod(shape) * math.prod(parts) / 1e6:,.0f} million voxels, "
            f"which needs {needed / 2**30:.1f} GiB of memory",
            allowed=f"{free_bytes / 2**30:.1f} GiB, what is free",
            next="crop the tissue map, use larger voxels, or allow a coarse grid",
            code="memory",
        )


def cut(field: Tensor, parts: Parts) -> Tensor:
    """Each voxel of (..., x, y, z) repeated in all its parts."""
    for dim, count in zip((-3, -2, -1), parts, strict=True):
        field = field.repeat_interleave(count, dim=dim) if count > 1 else field
    return field


def joined(field: Float[Tensor, "*batch x y z"], parts: Parts) -> Float[Tensor, "*batch a b c"]:
    """The mean over the parts of each voxel: ``joined(cut(f)) == f``."""
    for dim, count in zip((-3, -2, -1), parts, strict=True):
        if count > 1:
            moved = field.movedim(dim, -1)
            parts_last = moved.reshape(*moved.shape[:-1], moved.shape[-1] // count, count)
            field = parts_last.mean(dim=-1).movedim(-1, dim)
    return field


def finer(spacing_mm: Spacing, parts: Parts) -> Spacing:
    """The spacing of the parts."""
    x, y, z = (edge / count for edge, count in zip(spacing_mm, parts, strict=True))
    return x, y, z
