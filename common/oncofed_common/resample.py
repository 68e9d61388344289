"""What does a volume show at the voxels of another grid?

Value of voxel j there = value here at ``to_source`` j, by the nearest voxel (order 0) or linearly
(order 1). Where the axes of both grids run along each other, which is common, scipy reads the very
same points in a third of the time if the matrix is given as its diagonal.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from numpy.typing import NDArray
from scipy import ndimage


def resampled(
    data: NDArray[Any],
    to_source: Float[ndarray, "4 4"],
    *,
    shape: tuple[int, ...],
    order: Literal[0, 1],
    outside: float,
) -> Float32[ndarray, "x y z"]:
    """``data`` on a grid of ``shape``; ``outside`` where that grid reaches beyond it.

    Args:
        to_source: voxel (i, j, k, 1) of the new grid to a fractional voxel of ``data``.
    """
    matrix = to_source[:3, :3]
    diagonal = np.diag(matrix)
    along_axes = np.count_nonzero(matrix) == np.count_nonzero(diagonal)
    found: NDArray[np.float32] = ndimage.affine_transform(
        np.asarray(data, dtype=np.float32),
        diagonal.copy() if along_axes else matrix,
        offset=to_source[:3, 3],
        output_shape=shape,
        output=np.float32,
        order=order,
        mode="constant",
        cval=outside,
    )
    return found
