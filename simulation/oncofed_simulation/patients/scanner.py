"""What does a hospital's scanner show of a head with a tumour, and where are its outlines?

Compartments by thresholds on cell density. Visible density is living plus not yet cleared cells; FLAIR
shows it from 0.25, contrast-enhanced T1w from 0.60, both within the ranges that Lipková et al. (IEEE
Trans. Med. Imaging 38, 2019) infer from patients; the core is necrotic where cells are near their
capacity (the nutrient-starved centre of Swanson et al., Cancer Res. 71, 2011) or mostly dead.

A signal is the mixture of the voxel's materials, times a smooth bias field, plus Rician noise (Gudbjartsson
& Patz, Magn. Reson. Med. 34, 1995); outside the brain it is zero, as after skull stripping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_common.cohort import CHANNELS, LABELS, Volume
from oncofed_simulation.patients.anatomy import FloatArray, Fractions, Grid
from oncofed_simulation.patients.growth import VISIBLE
from oncofed_simulation.patients.hospitals import Scanner

CORE = 0.60
NECROTIC = 0.88
DEAD = 0.55
SOFT = 0.08
"""Width over which one material turns into the next, in density."""
FIELD_OF_VIEW_MM = (180.0, 224.0, 180.0)
CENTRE_MM = (0.0, -17.0, 9.0)
BIAS_MODES = 4


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """Living and killed cells on the grid of an image, zero outside grey and white matter."""

    viable: FloatArray
    debris: FloatArray

    @property
    def visible(self) -> FloatArray:
        return self.viable + self.debris


def field_of_view(scanner: Scanner, shift_voxel: NDArray[np.float64]) -> Grid:
    """The grid of one visit: the whole brain, off by a part of a voxel from the visit before."""
    spacing = np.asarray(scanner.voxel_mm)
    signs = np.asarray(scanner.axis_signs)
    x, y, z = (int(n) for n in np.ceil(np.asarray(FIELD_OF_VIEW_MM) / spacing))
    affine = np.diag([*(spacing * signs), 1.0])
    half = (np.asarray((x, y, z)) - 1) / 2
    affine[:3, 3] = np.round(
        np.asarray(CENTRE_MM) - affine[:3, :3] @ half + shift_voxel * spacing, 3
    )
    return Grid(shape=(x, y, z), affine_mm=affine)


def compartments(lesion: Lesion) -> NDArray[np.uint8]:
    """Outlines in the values of ``LABELS``."""
    core = lesion.visible >= CORE
    necrotic = core & ((lesion.viable >= NECROTIC) | (lesion.debris >= DEAD))
    labels = np.where(lesion.visible >= VISIBLE, LABELS["SNFH"], 0)
    labels = np.where(core, LABELS["ET"], labels)
    return np.where(necrotic, LABELS["NETC"], labels).astype(np.uint8)


def scan(
    scanner: Scanner, tissue: Fractions, lesion: Lesion, grid: Grid, rng: np.random.Generator
) -> Mapping[str, Volume]:
    """The four channels of a visit, int16, zero outside the brain."""
    inside = tissue.brain >= 0.5
    shares = _shares(tissue, lesion, inside)
    at = _unit_coordinates(grid, inside)
    images: dict[str, Volume] = {}
    for channel in CHANNELS:
        signal = np.asarray(scanner.contrast[channel], dtype=np.float32) @ shares
        signal *= np.exp(scanner.bias * _smooth_field(at, rng)) * rng.lognormal(0, 0.03)
        real, imaginary = rng.standard_normal((2, signal.size), dtype=np.float32) * scanner.noise
        magnitude = np.hypot(signal + real, imaginary) * scanner.gain
        data = np.zeros(grid.shape, dtype=np.int16)
        data[inside] = np.clip(np.rint(magnitude), 1, 32000)
        images[channel] = Volume(data=data, affine_mm=grid.affine_mm)
    return images


def _shares(tissue: Fractions, lesion: Lesion, inside: NDArray[np.bool_]) -> FloatArray:
    """Share of each of ``MATERIALS`` in each voxel inside, shape (6, voxels); columns add up to 1."""
    grey, white = tissue.grey[inside], tissue.white[inside]
    solid = np.clip(grey + white, 1e-6, None)
    parenchyma = np.minimum(solid, 1)
    grey, white = grey / solid * parenchyma, white / solid * parenchyma
    visible, viable = lesion.visible[inside], lesion.viable[inside]
    abnormal = _ramp(visible, VISIBLE)
    core = _ramp(visible, CORE)
    dead = np.maximum(_ramp(viable, NECROTIC), _ramp(lesion.debris[inside], DEAD))
    lesional = parenchyma * abnormal
    return np.stack(
        [
            1 - parenchyma,
            grey * (1 - abnormal),
            white * (1 - abnormal),
            lesional * core * dead,
            lesional * (1 - core),
            lesional * core * (1 - dead),
        ]
    ).astype(np.float32)


def _ramp(density: FloatArray, threshold: float) -> FloatArray:
    ramp: FloatArray = np.clip((density - threshold) / SOFT + np.float32(0.5), 0, 1)
    return ramp


def _unit_coordinates(grid: Grid, inside: NDArray[np.bool_]) -> FloatArray:
    index = np.argwhere(inside).T.astype(np.float32)
    unit: FloatArray = index / np.asarray(grid.shape, dtype=np.float32)[:, None] * 2 - 1
    return unit


def _smooth_field(at: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A sum of waves about as long as the head, scaled to a largest size of 1, shape (voxels,)."""
    wave = rng.normal(0, 1.2, size=(BIAS_MODES, 3)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, size=(BIAS_MODES, 1)).astype(np.float32)
    field: FloatArray = np.sin(wave @ at + phase).sum(axis=0)
    field -= field.mean()
    field /= np.abs(field).max()
    return field
