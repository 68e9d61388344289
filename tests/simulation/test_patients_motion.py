"""Motion in k-space against what Fourier's theorems say of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_simulation.patients.hospitals import stream
from oncofed_simulation.patients.motion import line_shifts_mm, moved

SPACING_MM = (2.5, 2.0, 5.0)
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(7, 20), st.integers(7, 20), st.integers(1, 3))


def a_slab(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    return stream("slab", seed).uniform(0, 1, size=shape).astype(np.float32)


@given(shape=shapes, seed=seeds, largest_mm=st.floats(0, 10))
def test_motion_keeps_the_energy_of_the_image(shape, seed, largest_mm):
    """Parseval: phases alone make or lose nothing."""
    image = a_slab(shape, seed)
    shift = stream("shift", seed).uniform(-largest_mm, largest_mm, size=(shape[0], 2))
    after = np.abs(moved(image, shift, SPACING_MM).astype(np.complex128)) ** 2
    before = image.astype(np.float64) ** 2
    np.testing.assert_allclose(after.sum(axis=(0, 1)), before.sum(axis=(0, 1)), rtol=1e-5)


@given(shape=shapes, seed=seeds, by=st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
def test_a_head_displaced_all_the_time_by_whole_voxels_is_displaced_and_no_more(shape, seed, by):
    image = a_slab(shape, seed)
    shift = np.tile(np.multiply(by, SPACING_MM[:2]), (shape[0], 1))
    np.testing.assert_allclose(
        moved(image, shift, SPACING_MM), np.roll(image, by, axis=(0, 1)), atol=1e-5
    )


@given(shape=shapes, seed=seeds)
def test_ghosts_run_along_the_phase_encode_axis_only(shape, seed):
    image = a_slab(shape, seed)
    row = shape[1] // 2
    image[:, np.arange(shape[1]) != row] = 0
    image[shape[0] // 3 :] = 0
    shift = np.zeros((shape[0], 2))
    shift[::3, 0] = 0.7 * SPACING_MM[0]
    ghosts = np.abs(moved(image, shift, SPACING_MM))
    assert ghosts[shape[0] // 3 :, row].max() > 1e-3
    assert np.delete(ghosts, row, axis=1).max() < 1e-5


def test_each_line_of_k_space_remembers_where_the_head_lay_when_it_was_taken():
    """A second computation, line by line, of an odd and an even number of lines."""
    for lines in (10, 11):
        image = a_slab((lines, 8, 2), lines)
        shift = stream("each line", lines).uniform(-4, 4, size=(lines, 2))
        spectrum = np.fft.fftshift(np.fft.fft2(image, axes=(0, 1)), axes=0)
        across = np.fft.fftfreq(8, SPACING_MM[1])
        for line in range(lines):
            along = (line - lines // 2) / (lines * SPACING_MM[0])
            turns = along * shift[line, 0] + across * shift[line, 1]
            spectrum[line] *= np.exp(-2j * np.pi * turns)[:, None]
        expected = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=0), axes=(0, 1))
        np.testing.assert_allclose(moved(image, shift, SPACING_MM), expected, atol=1e-5)


@given(lines=st.integers(32, 96), seed=seeds, largest_mm=st.floats(0.1, 5))
def test_a_scan_that_moved_lay_still_for_most_of_its_lines(lines, seed, largest_mm):
    shift = line_shifts_mm(lines, share=1.0, largest_mm=largest_mm, rng=stream("m", seed))
    far = np.linalg.norm(shift, axis=1)
    assert shift.shape == (lines, 2)
    assert 0.25 * largest_mm < far.max() <= largest_mm * (1 + 1e-9)
    assert 0 < (far > 0).mean() < 0.43  # at most 15 of 35 lines, in five shots of fifteen


@given(lines=st.integers(1, 20), seed=seeds)
def test_a_scan_of_few_lines_moves_too(lines, seed):
    assert line_shifts_mm(lines, share=1.0, largest_mm=2.0, rng=stream("few", seed)).any()


def test_scans_move_as_often_as_stated():
    rng = stream("how often")
    for share in (0.0, 0.15, 1.0):
        shifts = [line_shifts_mm(64, share=share, largest_mm=2.0, rng=rng) for _ in range(2000)]
        assert np.mean([s.any() for s in shifts]) == pytest.approx(share, abs=0.03 * (share % 1))
