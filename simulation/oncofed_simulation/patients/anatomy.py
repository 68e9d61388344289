"""Whose head is it, and what tissue lies at a point of it?

Every virtual head is the MNI152 nonlinear symmetric 2009a average (Fonov et al., NeuroImage 54, 2011;
1 mm maps of grey and white matter that nilearn's wheel carries), turned, scaled, shifted and gently bent.
World coordinates are the patient's own RAS+ millimetres, about the same origin as MNI's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_client.readers.atlas import read_atlas
from oncofed_common.cohort import TISSUES
from oncofed_common.resample import resampled

FloatArray = NDArray[np.float32]

BENDS = 3
BEND_MM = (1.0, 3.0)
BEND_WAVELENGTH_MM = (90.0, 180.0)
FWHM_PER_SIGMA = 2.355
BRAIN_OF_T1 = 0.2
"""What is brighter on the T1 without skull, as a share of its brightest, is brain."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Voxels in space: ``shape`` (3,), ``affine_mm`` (4, 4) from indices to world millimetres."""

    shape: tuple[int, int, int]
    affine_mm: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine_mm[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def points_mm(self) -> FloatArray:
        """World coordinates of all voxel centres, shape (3, x, y, z)."""
        index = np.indices(self.shape, dtype=np.float32)
        return _apply(self.affine_mm, index)

    def index_of(self, points_mm: FloatArray) -> FloatArray:
        """Fractional voxel indices of world points, both of shape (3, ...)."""
        return _apply(np.asarray(np.linalg.inv(self.affine_mm), dtype=np.float64), points_mm)


@dataclass(frozen=True, kw_only=True)
class Fractions:
    """Share of each voxel that is grey matter, white matter, and brain of any kind (with fluid)."""

    grey: FloatArray
    white: FloatArray
    brain: FloatArray

    def labels(self) -> NDArray[np.uint8]:
        """The tissue of each voxel as in ``TISSUES``, 0 outside the brain."""
        solid = self.grey + self.white
        tissue = np.where(self.grey > self.white, TISSUES["grey"], TISSUES["white"])
        tissue = np.where(solid < 0.5, TISSUES["CSF"], tissue)
        return np.where(self.brain < 0.5, 0, tissue).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Head:
    """How one patient's head differs from the average: world point p lies at A p + bends(p) of MNI.

    ``to_mni``: A, shape (4, 4); ``bend_mm``: amplitudes, shape (BENDS, 3); ``bend_wave``: radians per mm,
    shape (BENDS, 3); ``bend_phase``: radians, shape (BENDS,).
    """

    to_mni: NDArray[np.float64]
    bend_mm: NDArray[np.float64]
    bend_wave: NDArray[np.float64]
    bend_phase: NDArray[np.float64]

    def mni_mm(self, points_mm: FloatArray) -> FloatArray:
        """MNI coordinates of world points, both of shape (3, ...)."""
        moved = _apply(self.to_mni, points_mm)
        for size, wave, phase in zip(self.bend_mm, self.bend_wave, self.bend_phase, strict=True):
            angle = np.tensordot(wave.astype(np.float32), points_mm, axes=1) + np.float32(phase)
            moved += np.multiply.outer(size.astype(np.float32), np.sin(angle))
        return moved

    def fractions(self, grid: Grid, *, blur_mm: tuple[float, float, float]) -> Fractions:
        """The tissue in each voxel, blurred by a Gaussian of full width ``blur_mm`` along each axis."""
        return self.fractions_at(grid.points_mm(), blur_mm=blur_mm)

    def fractions_at(
        self, points_mm: FloatArray, *, blur_mm: tuple[float, float, float]
    ) -> Fractions:
        """The tissue at world points of shape (3, x, y, z), blurred along the axes of the atlas."""
        atlas = _blurred(blur_mm)
        to_index = np.asarray(np.linalg.inv(atlas.affine_mm), dtype=np.float64)
        grey, white, brain = interpolate(atlas.maps, _apply(to_index, self.mni_mm(points_mm)))
        return Fractions(grey=grey, white=white, brain=brain)


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """Grey, white and brain maps 0..1 on one grid, shape (3, x, y, z), and that grid's affine."""

    maps: FloatArray
    affine_mm: NDArray[np.float64]


def head(rng: np.random.Generator) -> Head:
    """Draw a head: turned by some degrees, 6 % larger or smaller along each axis, bent by some mm."""
    turn = _rotation(rng.normal(0, np.deg2rad(4), size=3))
    to_mni = np.eye(4)
    to_mni[:3, :3] = turn @ np.diag(1 / rng.uniform(0.94, 1.06, size=3))
    to_mni[:3, 3] = rng.normal(0, 3, size=3)
    direction = rng.normal(size=(BENDS, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = rng.uniform(*BEND_WAVELENGTH_MM, size=(BENDS, 1))
    return Head(
        to_mni=to_mni,
        bend_mm=rng.uniform(*BEND_MM, size=(BENDS, 3)) * rng.choice((-1, 1), size=(BENDS, 3)),
        bend_wave=2 * np.pi * direction / length,
        bend_phase=rng.uniform(0, 2 * np.pi, size=BENDS),
    )


def sample(field: NDArray[Any], grid: Grid, onto: Grid) -> FloatArray:
    """``field`` on ``grid`` read at the voxels of ``onto`` by linear interpolation, 0 outside it."""
    to_index = np.linalg.inv(grid.affine_mm) @ onto.affine_mm
    return resampled(field, to_index, shape=onto.shape, order=1, outside=0.0)


def interpolate(maps: FloatArray, at: FloatArray) -> FloatArray:
    """``maps`` (c, x, y, z) at fractional indices ``at`` (3, ...), linearly, 0 outside: (c, ...)."""
    last = torch.tensor([n - 1 for n in maps.shape[1:]], dtype=torch.float32)
    where = torch.from_numpy(at.reshape(3, -1).T.copy()) * (2 / last) - 1
    found = torch.nn.functional.grid_sample(
        torch.from_numpy(maps)[None],
        where.flip(-1)[None, None, None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    return np.asarray(found.numpy().reshape(len(maps), *at.shape[1:]))


@lru_cache(maxsize=1)
def mni152() -> Atlas:
    """The average head, cut to the brain's bounding box; scaled as nilearn does, which is not loaded."""
    atlas = read_atlas()
    grey, white = atlas.grey.data, atlas.white.data
    affine = atlas.grey.affine_mm.copy()
    brain = atlas.t1.data > BRAIN_OF_T1 * atlas.t1.data.max()
    brain = ndimage.binary_fill_holes(brain | (grey + white > 0.5))
    box = ndimage.find_objects(brain.astype(np.int8))[0]
    first = [max(s.start - 6, 0) for s in box]
    cut = tuple(slice(f, s.stop + 6) for f, s in zip(first, box, strict=True))
    affine[:3, 3] += affine[:3, :3] @ np.asarray(first)
    maps = np.stack([m[cut].astype(np.float32) for m in (grey, white, brain)])
    return Atlas(maps=maps, affine_mm=affine)


@lru_cache(maxsize=4)  # what the patients of one hospital need
def _blurred(full_width_mm: tuple[float, float, float]) -> Atlas:
    sharp = mni152()
    if not any(full_width_mm):
        return sharp
    sigma = [width / FWHM_PER_SIGMA for width in full_width_mm]
    maps = ndimage.gaussian_filter(sharp.maps, [0, *sigma], truncate=3)
    return Atlas(maps=maps, affine_mm=sharp.affine_mm)


def _apply(affine: NDArray[np.float64], points: FloatArray) -> FloatArray:
    matrix = affine[:3, :3].astype(np.float32)
    shift = affine[:3, 3].astype(np.float32).reshape(3, *([1] * (points.ndim - 1)))
    moved: FloatArray = np.tensordot(matrix, points, axes=1) + shift
    return moved


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x, dtype=np.float64)
