"""Where does a rater draw the outlines of a tumour, who sees its edge a little off?

Raters agree on a glioma's compartments to a Dice of 0.74–0.85 (Menze et al., IEEE Trans. Med. Imaging 34,
2015): edges run generously here and tightly there. A rater draws at x what lies at x + d(x), where d is a
Gaussian random field of mean zero, ``wobble_mm`` along each axis, with covariance exp(-r² / 2 l²), as a
sum of waves (random Fourier features: Rahimi & Recht, NeurIPS 20, 2007). d has the same law everywhere,
so a voxel is added as often as one is lost: volumes are right on average.

Fields are moved by their own gradient, f(x + d) = f + d · grad f, taken of the logit of a density, which
is nearly straight across a front, and within the tissue only: nothing is drawn where no cell can be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit, logit

from oncofed_simulation.patients.anatomy import FloatArray, Grid
from oncofed_simulation.patients.outlines import Lesion, compartments, labelled

LENGTH_MM = 8.0
"""Over which a rater's error keeps its sign."""
WAVES = 48
FAINT = 0.02
"""Density under which no error of some millimetres makes a voxel visible."""
CLEAR = 1e-4
"""Densities are held off 0 and 1 by this, where a logit has no end."""


def drawn_outlines(
    lesion: Lesion, grid: Grid, *, wobble_mm: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The outlines as a rater draws them, in the values of ``LABELS``; the true ones at 0 mm.

    Draws, whatever ``wobble_mm`` is: the waves' vectors (WAVES, 3), phases (WAVES,), sizes (WAVES, 3).
    """
    waves = rng.normal(0, 1 / LENGTH_MM, size=(WAVES, 3)).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, size=(WAVES, 1)).astype(np.float32)
    sizes = rng.normal(0, wobble_mm * np.sqrt(2 / WAVES), size=(WAVES, 3)).astype(np.float32)
    truth = compartments(lesion)
    held = _may_change(lesion)
    if wobble_mm == 0 or not held.any():
        return truth

    window = _around(held)
    index = np.argwhere(held)
    at_mm = grid.affine_mm[:3, :3] @ index.T
    shift_mm = sizes.T @ np.cos(waves @ at_mm.astype(np.float32) + phases)
    shift_voxel = np.linalg.inv(grid.affine_mm[:3, :3]).astype(np.float32) @ shift_mm

    tissue, inside = lesion.visible[window] > 0, held[window]
    visible, viable, debris = (
        _moved_density(density[window], tissue, inside, shift_voxel)
        for density in (lesion.visible, lesion.viable, lesion.debris)
    )
    drawn = truth.copy()
    drawn[held] = labelled(
        visible=visible,
        viable=viable,
        debris=debris,
        emptied=_moved_share(lesion.emptied[window], inside, shift_voxel),
    )
    return drawn


def _may_change(lesion: Lesion) -> NDArray[np.bool_]:
    """Cavity, tissue that touches it, and tissue with cells: the voxels whose label may be drawn wrong."""
    held: NDArray[np.bool_] = lesion.visible >= FAINT
    if lesion.cavity is None:
        return held
    cavity = lesion.emptied > 0
    beside = np.asarray(ndimage.binary_dilation(cavity)) & (lesion.visible > 0)
    return held | cavity | beside


def _moved_density(
    density: FloatArray,
    tissue: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    shift_voxel: FloatArray,
) -> FloatArray:
    """The density at the voxels inside, read ``shift_voxel`` (3, voxels) away, within the tissue."""
    steep = logit(np.clip(density, CLEAR, 1 - CLEAR)).astype(np.float32)
    moved = steep[inside]
    for axis, shift in enumerate(shift_voxel):
        moved = moved + shift * _slope(steep, tissue, axis)[inside]
    return np.asarray(expit(moved), dtype=np.float32)


def _moved_share(
    share: FloatArray, inside: NDArray[np.bool_], shift_voxel: FloatArray
) -> FloatArray:
    """The same of a share with sharp edges, whose slope is the jump from one neighbour to the other."""
    moved = share[inside]
    if not share.any():
        return moved
    everywhere = np.ones_like(inside)
    for axis, shift in enumerate(shift_voxel):
        moved = moved + 2 * shift * _slope(share, everywhere, axis)[inside]
    return moved


def _slope(field: FloatArray, tissue: NDArray[np.bool_], axis: int) -> FloatArray:
    """Change per voxel along an axis: the mean of the steps to those neighbours that are tissue."""
    one, next_one = ((*[slice(None)] * axis, side) for side in (slice(None, -1), slice(1, None)))
    both = tissue[one] & tissue[next_one]
    step = (field[next_one] - field[one]) * both
    total, count = np.zeros_like(field), np.zeros_like(field)
    for side in (one, next_one):
        total[side] += step
        count[side] += both
    return (total / np.maximum(count, 1)).astype(np.float32)


def _around(held: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box of the voxels held and of their neighbours: gradients are taken of no more than that."""
    (box,) = ndimage.find_objects(held.astype(np.int8))
    return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
