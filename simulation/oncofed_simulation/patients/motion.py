"""What does a head that moves during a scan do to its image?

A slice is acquired line by line in k-space, in shots: shot s takes the lines s, s + n, s + 2 n, … of the
phase-encode axis, of all slices at about the same time (they are interleaved within one repetition). A
head displaced by d while a shot is taken multiplies that shot's lines by exp(-2 pi i k · d), no more: the
energy stays (Parseval), and the edges of the head come back as faint ghosts along the phase-encode axis
(Zaitsev, Maclaren & Herbst, J. Magn. Reson. Imaging 42, 2015). Axis 0 (left to right in an axial
protocol) is phase-encoded, axis 1 read out; turning and motion through the plane are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from oncofed_simulation.patients.anatomy import FloatArray

SHOTS = (6, 16)
MOVED_SHOTS = 1 / 3
"""At most, and in a row: the head lay still for most of a scan that was kept."""
LEAST = 0.3
"""Of the largest shift, in a scan that moved."""


def line_shifts_mm(
    lines: int, *, share: float, largest_mm: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Where the head lay while each line was taken, in mm along axes 0 and 1, shape (lines, 2).

    ``share`` of scans move, none of them farther than ``largest_mm``. Lines run from the most negative
    frequency to the largest. Draws: whether it moved; if so the shots, how many of them moved, the first
    one, the direction, and how far in each.
    """
    shift = np.zeros((lines, 2))
    if rng.random() >= share:
        return shift
    shots = min(int(rng.integers(SHOTS[0], SHOTS[1] + 1)), lines)
    count = int(rng.integers(1, max(1, int(shots * MOVED_SHOTS)) + 1))
    first = int(rng.integers(shots - count + 1))
    angle = rng.uniform(0, 2 * np.pi)
    far_mm = np.zeros(shots)
    far_mm[first : first + count] = largest_mm * rng.uniform(LEAST, 1, size=count)
    shift += np.multiply.outer(far_mm, (np.cos(angle), np.sin(angle)))[np.arange(lines) % shots]
    return shift


def moved(
    image: FloatArray, shift_mm: NDArray[np.float64], spacing_mm: tuple[float, float, float]
) -> NDArray[np.complex64]:
    """The complex image (x, y, z) of a head that lay ``shift_mm`` (x, 2) off while line x was taken."""
    along, across = (
        np.fft.fftfreq(n) / mm for n, mm in zip(image.shape[:2], spacing_mm[:2], strict=True)
    )
    by_line = np.fft.ifftshift(shift_mm, axes=0)
    turns = (along * by_line[:, 0])[:, None] + np.multiply.outer(by_line[:, 1], across)
    phase = np.exp(-2j * np.pi * turns).astype(np.complex64)[:, :, None]
    spectrum = fft.fft2(image, axes=(0, 1)) * phase
    ghosted: NDArray[np.complex64] = fft.ifft2(spectrum, axes=(0, 1)).astype(np.complex64)
    return ghosted
