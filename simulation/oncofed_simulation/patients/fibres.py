"""Which way do cells move more easily in a virtual head's white matter?

No atlas of fibres comes with the anatomy, so this is a stand-in with the right symmetry: white matter lies in
sheets between grey matter, and cells move along a sheet ``ratio`` times as easily as across it. Across is the
direction in which the share of white matter changes most, smoothed over some millimetres; where it hardly
changes, deep inside, no direction is preferred. The trace is 3 everywhere: averaged over directions, D stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SMOOTH_MM = 4.0
STEEP_PER_MM = 0.04
"""Change of the share of white matter from which a sheet counts as fully oriented."""


def largest_share(ratio: float) -> float:
    """The largest eigenvalue: diffusion along a sheet over the mean of all directions."""
    return 3 * max(ratio, 1.0) / (1 + 2 * max(ratio, 1.0))


def sheet_tensor(
    white: NDArray[np.float32], spacing_mm: tuple[float, float, float], *, ratio: float
) -> NDArray[np.float32]:
    """Symmetric, positive definite tensors of trace 3, shape (3, 3, x, y, z).

    Args:
        white: share of white matter, shape (x, y, z).
        ratio: diffusion along a sheet over diffusion across it, 1 or more.
    """
    smooth = ndimage.gaussian_filter(white, [SMOOTH_MM / edge for edge in spacing_mm])
    slope = np.stack([np.gradient(smooth, edge, axis=dim) for dim, edge in enumerate(spacing_mm)])
    steep = np.linalg.norm(slope, axis=0)
    across = slope / np.maximum(steep, 1e-9)
    local = 1 + (ratio - 1) * np.minimum(steep / STEEP_PER_MM, 1)
    least = 3 / (1 + 2 * local)
    tensor = (local * least) * np.eye(3)[..., None, None, None]
    tensor = tensor - (local - 1) * least * np.einsum("axyz,bxyz->abxyz", across, across)
    return np.asarray(tensor, dtype=np.float32)
