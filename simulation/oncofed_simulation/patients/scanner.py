"""What does a hospital's scanner show of a head with a tumour?

A signal is the mixture of the voxel's materials, times a smooth bias field; a head that moves during the
scan leaves ghosts (``motion``); noise is Rician (Gudbjartsson & Patz, Magn. Reson. Med. 34, 1995). Outside
the brain an image is zero, as after skull stripping. Some visits lack a channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oncofed_common.cohort import CHANNELS, Volume
from oncofed_simulation.patients.anatomy import FloatArray, Fractions, Grid
from oncofed_simulation.patients.growth import VISIBLE
from oncofed_simulation.patients.hospitals import Scanner
from oncofed_simulation.patients.motion import line_shifts_mm, moved
from oncofed_simulation.patients.outlines import CORE, DEAD, NECROTIC, Lesion

SOFT = 0.08
"""Width over which one material turns into the next, in density."""
FIELD_OF_VIEW_MM = (180.0, 224.0, 180.0)
CENTRE_MM = (0.0, -17.0, 9.0)
BIAS_MODES = 4


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


def blur_mm(scanner: Scanner) -> tuple[float, float, float]:
    """Full width of what one voxel sees along each axis: the voxel in the plane, the slice across it.

    A slice thinner than the slice spacing leaves a gap, a thicker one overlaps its neighbours.
    """
    in_plane = scanner.voxel_mm[:2]
    return (*in_plane, scanner.slice_thickness_mm)


def channels_taken(scanner: Scanner, rng: np.random.Generator) -> tuple[str, ...]:
    """The channels that a visit brings, in the order of ``CHANNELS``, at least one: one draw for each.

    Each is missing by the same chance. Were all of them missing, the one with most luck stays.
    """
    luck = rng.random(len(CHANNELS))
    least = min(scanner.missing_channel, float(luck.max()))
    return tuple(channel for channel, u in zip(CHANNELS, luck, strict=True) if u >= least)


def scan(
    scanner: Scanner, tissue: Fractions, lesion: Lesion, grid: Grid, rng: np.random.Generator
) -> Mapping[str, Volume]:
    """The channels of a visit, int16, zero outside the brain.

    Draws: the channels taken; then from a child of ``rng`` for each of ``CHANNELS``, taken or not, its
    bias field, brightness, noise and motion. So what befalls one channel leaves the others as they are.
    """
    inside = tissue.brain >= 0.5
    shares = _shares(tissue, lesion, inside)
    at = _unit_coordinates(grid, inside)
    taken = channels_taken(scanner, rng)
    images: dict[str, Volume] = {}
    for channel, own in zip(CHANNELS, rng.spawn(len(CHANNELS)), strict=True):
        if channel not in taken:
            continue
        signal = np.asarray(scanner.contrast[channel], dtype=np.float32) @ shares
        signal *= np.exp(scanner.bias * _smooth_field(at, own)) * own.lognormal(0, 0.03)
        real, imaginary = own.standard_normal((2, signal.size), dtype=np.float32) * scanner.noise
        shift_mm = line_shifts_mm(
            grid.shape[0], share=scanner.motion_share, largest_mm=scanner.motion_mm, rng=own
        )
        if shift_mm.any():
            whole = np.zeros(grid.shape, dtype=np.float32)
            whole[inside] = signal
            ghosted = moved(whole, shift_mm, grid.spacing_mm)[inside]
            signal, imaginary = ghosted.real, imaginary + ghosted.imag
        magnitude = np.hypot(signal + real, imaginary) * scanner.gain
        data = np.zeros(grid.shape, dtype=np.int16)
        data[inside] = np.clip(np.rint(magnitude), 1, 32000)
        images[channel] = Volume(data=data, affine_mm=grid.affine_mm)
    return images


def _shares(tissue: Fractions, lesion: Lesion, inside: NDArray[np.bool_]) -> FloatArray:
    """Share of each of ``MATERIALS`` in each voxel inside, columns add up to 1: shape (7, voxels)."""
    grey, white = tissue.grey[inside], tissue.white[inside]
    solid = np.clip(grey + white, 1e-6, None)
    parenchyma = np.minimum(solid, 1)
    grey, white = grey / solid * parenchyma, white / solid * parenchyma
    visible, viable = lesion.visible[inside], lesion.viable[inside]
    abnormal = _ramp(visible, VISIBLE)
    core = _ramp(visible, CORE)
    dead = np.maximum(_ramp(viable, NECROTIC), _ramp(lesion.debris[inside], DEAD))
    lesional = parenchyma * abnormal
    left = np.stack(
        [
            1 - parenchyma,
            grey * (1 - abnormal),
            white * (1 - abnormal),
            lesional * core * dead,
            lesional * (1 - core),
            lesional * core * (1 - dead),
        ]
    )
    emptied = lesion.emptied[inside]
    return np.concatenate([left * (1 - emptied), emptied[None]]).astype(np.float32)


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
