"""How is a head on any grid laid out on world millimetres, for what needs straight axes?

A lattice has its axes along the world's. It is what registration, bias correction and pictures look at;
no cohort file is ever written from one, but the patient's tissue map and brain mask.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_common.cohort import Volume
from oncofed_common.resample import resampled


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """``values`` (x, y, z) at ``origin_mm`` + ``pitch_mm`` * (i, j, k), in world millimetres."""

    values: Float32[ndarray, "x y z"]
    origin_mm: tuple[float, float, float]
    pitch_mm: float

    @property
    def affine_mm(self) -> Float[ndarray, "4 4"]:
        affine = np.diag([self.pitch_mm] * 3 + [1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def holding(self, values: NDArray[Any]) -> Lattice:
        """Other values at the same points."""
        return replace(self, values=np.asarray(values, dtype=np.float32))

    def sampled(self, volume: Volume, *, order: Literal[0, 1] = 0) -> Float32[ndarray, "x y z"]:
        """A volume at these points, 0 outside it."""
        return resampled(
            volume.data,
            np.linalg.inv(volume.affine_mm) @ self.affine_mm,
            shape=self.values.shape,
            order=order,
            outside=0.0,
        )

    def volume(self, dtype: type[np.generic] = np.float32) -> Volume:
        return Volume(data=self.values.astype(dtype), affine_mm=self.affine_mm)


def on_lattice(volume: Volume, *, pitch_mm: float) -> Lattice:
    """A volume on the smallest lattice of that pitch that holds it, smoothed where it is finer."""
    corners = corners_mm(volume)
    low = np.floor(corners.min(axis=0) / pitch_mm) * pitch_mm
    shape = np.ceil((corners.max(axis=0) - low) / pitch_mm).astype(int) + 1
    origin = (float(low[0]), float(low[1]), float(low[2]))
    empty = Lattice(
        values=np.zeros(tuple(int(n) for n in shape), dtype=np.float32),
        origin_mm=origin,
        pitch_mm=pitch_mm,
    )
    blur = [0.42 * pitch_mm / edge if edge < pitch_mm * 0.8 else 0.0 for edge in volume.spacing_mm]
    data = np.asarray(volume.data, dtype=np.float32)
    smooth = ndimage.gaussian_filter(data, blur, truncate=2.5) if any(blur) else data
    return empty.holding(empty.sampled(Volume(data=smooth, affine_mm=volume.affine_mm), order=1))


def corners_mm(volume: Volume) -> Float[ndarray, "8 3"]:
    """The world points of a volume's outermost voxels."""
    last = np.array(volume.data.shape) - 1
    corners = np.array(list(itertools.product((0, 1), repeat=3))) * last
    return np.asarray(corners @ volume.affine_mm[:3, :3].T + volume.affine_mm[:3, 3])


def foreground(values: NDArray[np.float32]) -> Bool[ndarray, "x y z"]:
    """What is no air: brighter than a tenth of the bright end, or than zero where zeros abound."""
    bright = float(np.quantile(values, 0.98))
    return np.asarray(values > 0.1 * bright)
