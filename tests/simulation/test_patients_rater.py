"""Outlines as a rater draws them: off by the stated millimetres, and right on average."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oncofed_common.cohort import LABELS
from oncofed_simulation.patients.anatomy import Grid
from oncofed_simulation.patients.growth import VISIBLE
from oncofed_simulation.patients.hospitals import stream
from oncofed_simulation.patients.outlines import CORE, DEAD, NECROTIC, Lesion, compartments
from oncofed_simulation.patients.rater import LENGTH_MM, drawn_outlines

NETC, SNFH, ET, RC = (LABELS[name] for name in ("NETC", "SNFH", "ET", "RC"))
GRID = Grid(shape=(24, 22, 14), affine_mm=np.diag([-2.8, 2.5, 4.0, 1.0]))
WHOLE, DENSE, CAVITY = (NETC, SNFH, ET), (NETC, ET), (RC,)
seeds = st.integers(0, 2**32 - 1)
wobbles = st.floats(0, 2)


def tumour(
    *, seed: int = 0, width_mm: float = 2.5, cavity_mm: float = -8.0
) -> tuple[Lesion, np.ndarray]:
    """A tumour by a ventricle, with a cavity ``cavity_mm`` off its middle; and what is no ventricle."""
    points = GRID.points_mm()
    rng = stream("tumour", seed)
    middle = points.reshape(3, -1).mean(axis=1) + rng.uniform(-1.5, 1.5, size=3)
    x, y, z = points - middle[:, None, None, None].astype(np.float32)
    tissue = x < 9
    away = np.sqrt(x**2 + y**2 + z**2)
    density = np.where(tissue, 1 / (1 + np.exp((away - 15) / width_mm)), 0).astype(np.float32)
    far = np.sqrt((x - cavity_mm) ** 2 + y**2 + z**2)
    empty = np.clip(0.5 + (9 - far) / 3, 0, 1).astype(np.float32)
    dead = np.where(y > 0, 0.3, 0).astype(np.float32) * density
    kept = empty < 1
    return (
        Lesion(viable=(density - dead) * kept, debris=dead * kept, cavity=empty),
        tissue | (empty > 0),
    )


def drawn(lesion: Lesion, wobble_mm: float, seed: int) -> np.ndarray:
    return drawn_outlines(lesion, GRID, wobble_mm=wobble_mm, rng=stream("rater", seed))


@given(seed=seeds)
def test_a_rater_without_error_draws_the_truth(seed):
    """Also where a density lies on a threshold, and would not survive any arithmetic."""
    rng = stream("thresholds", seed)
    edges = np.array((0, VISIBLE, DEAD, CORE, NECROTIC), dtype=np.float32)
    edges = np.concatenate([edges, np.nextafter(edges, 1), np.nextafter(edges, 0)])
    viable, debris, cavity = rng.choice(edges, size=(3, *GRID.shape))
    alive = rng.random(GRID.shape) < 0.5
    lesion = Lesion(viable=viable * alive, debris=debris * ~alive, cavity=cavity * (cavity < 0.3))
    assert np.array_equal(drawn(lesion, 0.0, seed), compartments(lesion))


def test_raters_differ_and_each_draws_the_same_again():
    lesion, _ = tumour()
    assert np.array_equal(drawn(lesion, 0.5, 1), drawn(lesion, 0.5, 1))
    assert not np.array_equal(drawn(lesion, 0.5, 1), drawn(lesion, 0.5, 2))
    assert not np.array_equal(drawn(lesion, 0.5, 1), compartments(lesion))


@settings(deadline=None)
@given(seed=seeds, wobble_mm=wobbles)
def test_nothing_is_drawn_outside_grey_and_white_matter_and_cavity(seed, wobble_mm):
    """The cavity opens into the ventricle."""
    lesion, possible = tumour(seed=seed, cavity_mm=4.0)
    outline = drawn(lesion, wobble_mm, seed)
    assert outline.dtype == np.uint8
    assert not outline[~possible].any()


@settings(deadline=None)
@given(seed=seeds, wobble_mm=st.floats(0, 0.8))
def test_the_core_as_drawn_lies_inside_the_oedema_as_drawn(seed, wobble_mm):
    """The front is wide enough for a voxel of oedema on every side of the core."""
    lesion, possible = tumour(seed=seed, width_mm=4.0)
    outline = drawn(lesion, wobble_mm, seed)
    healthy = possible & (outline == 0)
    beside_core = np.asarray(ndimage.binary_dilation(np.isin(outline, DENSE)))
    assert not (beside_core & healthy & (lesion.emptied == 0)).any()


@pytest.mark.parametrize("wobble_mm", [0.4, 0.8])
def test_volumes_are_right_on_average(wobble_mm):
    drawn_voxels, true_voxels = [], []
    for seed in range(150):
        lesion, _ = tumour(seed=seed)
        outline, truth = drawn(lesion, wobble_mm, seed), compartments(lesion)
        for labels, voxels in ((outline, drawn_voxels), (truth, true_voxels)):
            voxels.append([np.isin(labels, part).sum() for part in (WHOLE, DENSE, CAVITY)])
    change = np.mean(drawn_voxels, axis=0) / np.mean(true_voxels, axis=0) - 1
    assert np.abs(change).max() < 0.02
    spread = np.std(np.divide(drawn_voxels, true_voxels), axis=0)
    assert spread.min() > 0.002


def test_an_edge_is_off_by_the_stated_millimetres_and_alike_over_the_stated_length():
    """A flat front, drawn by many raters: standard deviation, and correlation exp(-1/2) at one length."""
    grid = Grid(shape=(60, 9, 1), affine_mm=np.diag([0.2, LENGTH_MM / 4, 2.0, 1.0]))
    x = grid.points_mm()[0]
    density = (1 / (1 + np.exp((x - 6) / 2.5))).astype(np.float32)
    lesion = Lesion(viable=density, debris=np.zeros_like(density))
    rng = stream("front")
    edges = np.array(
        [
            (drawn_outlines(lesion, grid, wobble_mm=0.5, rng=rng) > 0).sum(axis=0)[:, 0] * 0.2
            for _ in range(800)
        ]
    )
    truth = (compartments(lesion) > 0).sum(axis=0)[0, 0] * 0.2
    assert edges.mean() == pytest.approx(truth, abs=0.1)
    assert edges.std() == pytest.approx(0.5, rel=0.07)
    near, far = (np.corrcoef(edges[:, 0], edges[:, k])[0, 1] for k in (4, 8))
    assert near == pytest.approx(np.exp(-1 / 2), abs=0.1)
    assert far == pytest.approx(np.exp(-4 / 2), abs=0.12)


def test_a_cavity_of_booleans_is_drawn_and_a_patient_without_lesion_has_no_outline():
    lesion, _ = tumour()
    assert lesion.cavity is not None
    sharp = replace(lesion, cavity=lesion.cavity >= 0.5)
    assert (drawn(sharp, 0.4, 3) == RC).sum() == pytest.approx(
        (compartments(sharp) == RC).sum(), rel=0.1
    )
    nothing = np.zeros(GRID.shape, dtype=np.float32)
    assert not drawn(Lesion(viable=nothing, debris=nothing), 0.4, 3).any()
