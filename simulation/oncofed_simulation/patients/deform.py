"""Where does a tumour push the tissue of a virtual head?

Growth is computed in the head as it was before; what a scanner sees lies where the mass effect
(``physics.mechanics``) has moved it. The displacement is computed on a coarse grid over the whole skull: the
fluid of ventricles and sulci gives way, the skull does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_common.physics.mechanics import Swelling, displacement_mm
from oncofed_simulation.patients.anatomy import FloatArray, Grid, Head, interpolate, sample

SKULL = Grid(
    shape=(36, 46, 38),
    affine_mm=np.array([[5.0, 0, 0, -88], [0, 5, 0, -130], [0, 0, 5, -88], [0, 0, 0, 1]]),
)
"""Covers every virtual head."""
BACK_STEPS = 6
"""Of the fixed-point iteration that finds where a point came from; it gains a digit every two."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A head's skull on ``SKULL``: what gives way (fluid, open fluid more than a voxel that holds some), and
    what lies inside."""

    yielding: FloatArray
    inside: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Displacement of tissue on ``SKULL``, shape (3, x, y, z), in mm; None where nothing moves.

    ``forth_mm``: from where tissue was to where it is; ``back_mm``: from where it is to where it was.
    """

    forth_mm: FloatArray | None
    back_mm: FloatArray | None

    def came_from_mm(self, points_mm: FloatArray) -> FloatArray:
        """Where the tissue at world points (3, ...) was before."""
        return _moved(points_mm, self.back_mm)

    def goes_to_mm(self, points_mm: FloatArray) -> FloatArray:
        """Where the tissue that was at world points (3, ...) is now."""
        return _moved(points_mm, self.forth_mm)


STILL = Shift(forth_mm=None, back_mm=None)


def room(head: Head) -> Room:
    """What a head's skull holds before there is a tumour."""
    tissue = head.fractions(SKULL, blur_mm=SKULL.spacing_mm)
    inside = tissue.brain >= 0.5
    fluid = np.clip(tissue.brain - tissue.grey - tissue.white, 0, 1) * inside
    return Room(yielding=np.asarray(fluid**2, dtype=np.float32), inside=inside)


def shift(within: Room, density: FloatArray, grid: Grid, *, swelling: Swelling) -> Shift:
    """How a tumour of ``density`` on ``grid`` moves the tissue of a head."""
    if swelling.strain == 0:
        return STILL
    moved = displacement_mm(
        torch.from_numpy(sample(density, grid, SKULL)),
        inside=torch.from_numpy(within.inside),
        yielding=torch.from_numpy(within.yielding),
        swelling=swelling,
        spacing_mm=SKULL.spacing_mm,
    )
    forth = np.asarray(moved.numpy(), dtype=np.float32)
    points = SKULL.points_mm()
    before = points
    for _ in range(BACK_STEPS):  # x + u(x) = p
        before = points - interpolate(forth, SKULL.index_of(before))
    return Shift(forth_mm=forth, back_mm=before - points)


def shifted_sample(fields: FloatArray, grid: Grid, came_from_mm: FloatArray) -> FloatArray:
    """Fields (c, ...) of the unmoved head on ``grid``, read where points (3, ...) came from; 0 outside."""
    return interpolate(fields, grid.index_of(came_from_mm))


def _moved(points_mm: FloatArray, by_mm: FloatArray | None) -> FloatArray:
    return points_mm if by_mm is None else points_mm + interpolate(by_mm, SKULL.index_of(points_mm))
