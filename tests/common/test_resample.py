"""A volume on another grid: the same points, however the transform is written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from oncofed_common.cohort import TISSUES, Volume
from oncofed_common.model.frame import Frame, sample_fractions
from oncofed_common.resample import resampled

SHAPE = (9, 7, 8)
steps = st.floats(0.2, 3.0) | st.floats(-3.0, -0.2)


def _transform(steps, shift, lean=0.0):
    to_source = np.diag([*steps, 1.0])
    to_source[:3, 3] = shift
    to_source[0, 1] = lean
    return to_source


@pytest.mark.parametrize("order", [0, 1])
@given(
    step=st.tuples(steps, steps, steps),
    shift=st.tuples(*[st.floats(-9.0, 9.0)] * 3),
    lean=st.just(0.0) | st.floats(0.1, 1.0),
)
def test_grids_that_run_along_each_other_are_read_at_the_very_same_points(order, step, shift, lean):
    """Bit for bit what scipy's general rule gives; an oblique grid keeps its off-diagonal part."""
    data = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    to_source = _transform(step, shift, lean)
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    general = ndimage.affine_transform(
        data, matrix, offset=offset, output_shape=(6, 5, 4), order=order, cval=np.nan
    )
    found = resampled(data, to_source, shape=(6, 5, 4), order=order, outside=np.nan)
    np.testing.assert_array_equal(found, general)


@pytest.mark.parametrize("spacing_mm", [0.6, 1.0, 2.4])
def test_tissue_fractions_and_the_rest_make_one_whole(spacing_mm):
    """At every fineness: the count of points in a window voxel never overflows."""
    labels = np.random.default_rng(2).integers(0, 4, size=(40, 40, 40)).astype(np.uint8)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    place = Frame(centre_mm=(20 * spacing_mm,) * 3, size=6, spacing_mm=3.0)
    found = sample_fractions(
        Volume(data=labels, affine_mm=affine), place, [0, *sorted(TISSUES.values())]
    )
    np.testing.assert_allclose(found.sum(axis=0), 1.0, rtol=1e-6)
    full = Volume(data=np.ones_like(labels), affine_mm=affine)
    assert (sample_fractions(full, place, [1]) == 1.0).all()
