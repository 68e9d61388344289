"""The scanner model against its own statement: contrast, noise, bias, thresholds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from oncofed_common.cohort import CHANNELS, LABELS
from oncofed_simulation.patients.anatomy import Fractions, Grid
from oncofed_simulation.patients.hospitals import MATERIALS, Scanner, stream
from oncofed_simulation.patients.scanner import Lesion, compartments, field_of_view, scan

GRID = Grid(shape=(40, 40, 40), affine_mm=np.diag([3.0, 3.0, 3.0, 1.0]))
PLAIN = Scanner(
    contrast=dict.fromkeys(CHANNELS, (0.2, 0.7, 1.0, 0.4, 0.6, 1.5)),
    gain=1000.0,
    noise=0.0,
    bias=0.0,
    voxel_mm=(3.0, 3.0, 3.0),
    axis_signs=(1, 1, 1),
)


def all_of(material: str) -> Fractions:
    ones, zeros = np.ones(GRID.shape, dtype=np.float32), np.zeros(GRID.shape, dtype=np.float32)
    return Fractions(
        grey=ones if material == "grey" else zeros,
        white=ones if material == "white" else zeros,
        brain=ones,
    )


def lesion(viable: float = 0.0, debris: float = 0.0) -> Lesion:
    ones = np.ones(GRID.shape, dtype=np.float32)
    return Lesion(viable=viable * ones, debris=debris * ones)


def seen(scanner: Scanner, tissue: Fractions, cells: Lesion) -> np.ndarray:
    return scan(scanner, tissue, cells, GRID, stream("scan"))["T1w"].data.astype(np.float64)


@pytest.mark.parametrize(
    ("tissue", "cells", "material"),
    [
        ("CSF", lesion(), "CSF"),
        ("grey", lesion(), "grey"),
        ("white", lesion(0.15), "white"),
        ("white", lesion(0.4), "SNFH"),
        ("grey", lesion(0.75), "ET"),
        ("white", lesion(0.99), "NETC"),
        ("white", lesion(0.1, 0.8), "NETC"),
        ("white", lesion(0.1, 0.3), "SNFH"),
    ],
)
def test_every_material_has_its_own_signal(tissue, cells, material):
    white = np.median(seen(PLAIN, all_of("white"), lesion()))
    expected = PLAIN.contrast["T1w"][MATERIALS.index(material)]
    assert np.median(seen(PLAIN, all_of(tissue), cells)) / white == pytest.approx(
        expected, rel=0.01
    )
    name = LABELS.get(material, 0)
    assert (compartments(cells) == name).all()


def test_noise_is_rician():
    """Gudbjartsson & Patz 1995: standard deviation sigma far from zero, mean sigma sqrt(pi/2) at zero."""
    noisy = replace(PLAIN, noise=0.05)
    bright = seen(noisy, all_of("white"), lesion())
    assert bright.std() / noisy.gain == pytest.approx(0.05, rel=0.03)
    dark = replace(noisy, contrast=dict.fromkeys(CHANNELS, (0.0,) * 6))
    background = seen(dark, all_of("white"), lesion())
    assert background.mean() / noisy.gain == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.03)


def test_bias_is_smooth_and_as_strong_as_stated():
    biased = replace(PLAIN, bias=0.2)
    field = np.log(seen(biased, all_of("white"), lesion()))
    assert np.abs(field - field.mean()).max() == pytest.approx(0.2, abs=0.01)
    assert np.abs(np.diff(field, axis=0)).max() < 0.05


def test_the_field_of_view_has_the_scanner_s_voxels_and_shifts_by_parts_of_them():
    scanner = replace(PLAIN, voxel_mm=(2.4, 2.4, 5.0), axis_signs=(-1, 1, 1))
    still = field_of_view(scanner, np.zeros(3))
    moved = field_of_view(scanner, np.array([0.5, 0.0, -0.25]))
    assert still.spacing_mm == pytest.approx((2.4, 2.4, 5.0))
    assert np.linalg.det(still.affine_mm) < 0
    assert moved.affine_mm[:3, 3] - still.affine_mm[:3, 3] == pytest.approx([1.2, 0, -1.25])
