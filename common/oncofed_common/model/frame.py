"""Where does the model look, and what does a scan show there?

The window is a cube of the world, axis-aligned in RAS, centred on the tumour of the last visit of
the history. A volume enters it through its own affine, whatever its grid: world = A_source i, hence
i = A_source^-1 A_window j. A source finer than the window is averaged over each window voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from numpy.typing import NDArray

from oncofed_common.cohort import LABELS, Visit, Volume
from oncofed_common.errors import CohortRefusal
from oncofed_common.model.presets import Preset
from oncofed_common.resample import resampled

OUTSIDE = 0.0
"""Value of an image, a dose or a tissue fraction where its volume does not reach."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The window: ``size`` voxels of ``spacing_mm`` along each axis around ``centre_mm`` (RAS)."""

    centre_mm: tuple[float, float, float]
    size: int
    spacing_mm: float

    @property
    def affine_mm(self) -> Float[ndarray, "4 4"]:
        """Window voxel (i, j, k, 1) to RAS world millimetres."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = np.array(self.centre_mm) - self.spacing_mm * (self.size - 1) / 2
        return affine


def frame(history: Sequence[Visit], preset: Preset) -> Frame:
    """The window around the tumour's centroid at the last visit that shows any.

    Args:
        history: visits in order of day; no later visit takes part.

    Raises:
        CohortRefusal: no visit of the history has a tumour or a cavity (``no_tumor``).
    """
    for visit in reversed(history):
        marked = np.argwhere(visit.tumor.data > 0)
        if len(marked):
            centre = visit.tumor.affine_mm @ np.append(marked.mean(axis=0), 1.0)
            x, y, z = (float(value) for value in centre[:3])
            return Frame(centre_mm=(x, y, z), size=preset.size, spacing_mm=preset.spacing_mm)
    raise CohortRefusal(
        "a history without any tumour outline",
        allowed="at least one past visit with a tumour or a resection cavity",
        next="choose a history that shows the tumour; there is nothing to forecast",
        code="no_tumor",
    )


def sample(volume: Volume, frame: Frame, *, outside: float = OUTSIDE) -> Float32[ndarray, "x y z"]:
    """The mean of a scalar volume over each voxel of the window; ``outside`` where it does not reach."""
    fold = int(np.clip(round(frame.spacing_mm / min(volume.spacing_mm)), 1, 4))
    return _blocks(_points(volume, frame, fold=fold, order=1, outside=outside), fold)


def sample_fractions(
    volume: Volume, frame: Frame, values: Sequence[int]
) -> Float32[ndarray, "value x y z"]:
    """Which fraction of each window voxel carries each label value, from 27 points or more."""
    fold = int(np.clip(round(frame.spacing_mm / min(volume.spacing_mm)), 3, 5))
    labels = _points(volume, frame, fold=fold, order=0, outside=OUTSIDE)
    return np.stack([_shares(labels == value, fold) for value in values])


def sample_labels(volume: Volume, frame: Frame) -> UInt8[ndarray, "x y z"]:
    """The tumour label that fills most of each window voxel; 0 where tumour fills less than half."""
    values = sorted(LABELS.values())
    fractions = sample_fractions(volume, frame, values)
    winner = np.array(values, dtype=np.uint8)[fractions.argmax(axis=0)]
    return np.where(fractions.sum(axis=0) >= 0.5, winner, 0).astype(np.uint8)


def scaled(image: Volume, frame: Frame, brain: Volume | None) -> Float32[ndarray, "x y z"]:
    """A scan in the window, scaled by robust percentiles of this very scan.

    The 2nd percentile of its foreground becomes 0, the 98th becomes 1; cut off to [-0.5, 2].
    Foreground is the brain mask where there is one, else what is brighter than the scan's mean.
    No other scan, visit or patient takes part.
    """
    low, high = np.percentile(_foreground(image, brain), [2.0, 98.0])
    inside = (sample(image, frame, outside=np.nan) - low) / max(float(high - low), 1e-6)
    return np.where(np.isnan(inside), OUTSIDE, inside.clip(-0.5, 2.0)).astype(np.float32)


def _foreground(image: Volume, brain: Volume | None) -> Float[ndarray, " n"]:
    """Intensities of the foreground at every k-th voxel, some 32 along each axis."""
    steps = [max(1, length // 32) for length in image.data.shape]
    thin = np.asarray(image.data)[tuple(slice(None, None, step) for step in steps)]
    values: NDArray[np.float64] = thin.astype(np.float64)
    if brain is not None:
        to_brain = np.linalg.inv(brain.affine_mm) @ image.affine_mm @ np.diag([*steps, 1.0])
        marked = resampled(brain.data, to_brain, shape=thin.shape, order=0, outside=0.0)
        within: NDArray[np.float64] = values[marked > 0]
        if len(within):
            return within
    bright: NDArray[np.float64] = values[values >= values.mean()]
    return bright


def _points(
    volume: Volume, frame: Frame, *, fold: int, order: Literal[0, 1], outside: float
) -> Float32[ndarray, "fx fy fz"]:
    """The volume at ``fold`` points along each edge of each window voxel."""
    fine = frame.affine_mm
    fine[:3, :3] /= fold
    fine[:3, 3] -= (fold - 1) / 2 * frame.spacing_mm / fold
    return resampled(
        volume.data,
        np.linalg.inv(volume.affine_mm) @ fine,
        shape=(frame.size * fold,) * 3,
        order=order,
        outside=outside,
    )


def _blocks(points: ndarray, fold: int) -> Float32[ndarray, "x y z"]:
    n = points.shape[0] // fold
    blocks = points.reshape(n, fold, n, fold, n, fold)
    return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))


def _shares(marked: Bool[ndarray, "fx fy fz"], fold: int) -> Float32[ndarray, "x y z"]:
    """``_blocks`` of a mask, counted in bytes: a block has 125 points at most."""
    n = marked.shape[0] // fold
    count = marked.view(np.uint8)
    for axis in range(3):
        split = (*count.shape[:axis], n, fold, *count.shape[axis + 1 :])
        count = np.add.reduce(count.reshape(split), axis=axis + 1, dtype=np.uint8)
    return np.asarray(count / np.float32(fold**3))
