"""Which voxels lie inside closed contours that were drawn slice by slice?

A voxel is inside a polygon if a ray from its centre crosses the edge an odd number of times; several
polygons of a slice are taken one against the other, so that a ring is an outer contour and an inner one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import NDArray

from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal

OFF_PLANE = 0.3
"""A contour's corners may lie this share of a slice apart across it, and from the slice's middle."""


def filled(loops: Sequence[NDArray[np.float64]], image: Volume) -> Bool[ndarray, "x y z"]:
    """The voxels of ``image`` inside the contours.

    Args:
        loops: corners in world millimetres, each of shape (n, 3).

    Raises:
        CohortRefusal: code ``contours_tilted``: contours that do not lie in the slices of the image.
    """
    made = np.zeros(image.data.shape, dtype=bool)
    to_voxel = np.linalg.inv(image.affine_mm)
    corners = [loop @ to_voxel[:3, :3].T + to_voxel[:3, 3] for loop in loops if len(loop) >= 3]
    if not corners:
        return made
    axis = int(np.argmin(np.max([np.ptp(one, axis=0) for one in corners], axis=0)))
    flat = [i for i in range(3) if i != axis]
    for one in corners:
        height = one[:, axis]
        at = round(float(height.mean()))
        if float(np.abs(height - at).max()) > OFF_PLANE:
            raise CohortRefusal(
                "contours that do not lie in the slices of their image",
                allowed="contours drawn on the slices of the image beside them",
                next="export them together with the images on which they were drawn",
                code="contours_tilted",
            )
        if 0 <= at < made.shape[axis]:
            plane = np.moveaxis(made, axis, 0)[at]
            plane ^= _polygon(one[:, flat], shape=plane.shape)
    return made


def _polygon(
    corners: Float[ndarray, "corner 2"], *, shape: tuple[int, ...]
) -> Bool[ndarray, "x y"]:
    """Voxel (i, j) is inside if its centre (i, j) is."""
    inside = np.zeros(shape, dtype=bool)
    following = np.roll(corners, -1, axis=0)
    lines = np.arange(shape[0])
    for (x0, y0), (x1, y1) in zip(corners, following, strict=True):
        crossed = (x0 > lines) != (x1 > lines)
        if not crossed.any():
            continue
        at = y0 + (lines[crossed] - x0) * (y1 - y0) / (x1 - x0)
        inside[crossed] ^= np.arange(shape[1])[None, :] < at[:, None]
    return inside
