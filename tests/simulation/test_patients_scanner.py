"""The scanner model against its own statement: contrast, noise, bias, resolution, motion, channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.cohort import CHANNELS, LABELS
from oncofed_common.errors import UsageRefusal
from oncofed_simulation.patients.anatomy import Fractions, Grid
from oncofed_simulation.patients.hospitals import MATERIALS, Scanner, hospital, stream
from oncofed_simulation.patients.outlines import Lesion, compartments
from oncofed_simulation.patients.scanner import blur_mm, channels_taken, field_of_view, scan

GRID = Grid(shape=(40, 40, 40), affine_mm=np.diag([3.0, 3.0, 3.0, 1.0]))
PLAIN = Scanner(
    contrast=dict.fromkeys(CHANNELS, (0.2, 0.7, 1.0, 0.4, 0.6, 1.5, 0.3)),
    gain=1000.0,
    noise=0.0,
    bias=0.0,
    voxel_mm=(3.0, 3.0, 3.0),
    slice_thickness_mm=3.0,
    axis_signs=(1, 1, 1),
    motion_share=0.0,
    motion_mm=0.0,
    missing_channel=0.0,
    edge_wobble_mm=0.0,
)
SMALL = Grid(shape=(20, 10, 3), affine_mm=np.diag([3.0, 3.0, 5.0, 1.0]))
seeds = st.integers(0, 2**32 - 1)


def all_of(material: str) -> Fractions:
    ones, zeros = np.ones(GRID.shape, dtype=np.float32), np.zeros(GRID.shape, dtype=np.float32)
    return Fractions(
        grey=ones if material == "grey" else zeros,
        white=ones if material == "white" else zeros,
        brain=ones,
    )


def lesion(viable: float = 0.0, debris: float = 0.0, cavity: float | None = None) -> Lesion:
    ones = np.ones(GRID.shape, dtype=np.float32)
    return Lesion(
        viable=viable * ones,
        debris=debris * ones,
        cavity=None if cavity is None else cavity * ones,
    )


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
        ("grey", lesion(0.75, cavity=1.0), "RC"),
        ("white", lesion(cavity=0.0), "white"),
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


@pytest.mark.parametrize("motion_share", [0.0, 1.0])
def test_noise_is_rician(motion_share):
    """Gudbjartsson & Patz 1995: standard deviation sigma far from zero, mean sigma sqrt(pi/2) at zero."""
    noisy = replace(PLAIN, noise=0.05, motion_share=motion_share, motion_mm=0.5)
    bright = seen(noisy, all_of("white"), lesion())
    assert bright.std() / noisy.gain == pytest.approx(0.05, rel=0.03)
    dark = replace(noisy, contrast=dict.fromkeys(CHANNELS, (0.0,) * len(MATERIALS)))
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


def test_a_voxel_that_is_partly_cavity_gives_the_mixture():
    white, fluid, mixed = (
        np.median(seen(PLAIN, all_of("white"), lesion(cavity=share))) for share in (0.0, 1.0, 0.4)
    )
    assert mixed == pytest.approx(0.6 * white + 0.4 * fluid, rel=0.01)


def test_fluid_of_a_cavity_looks_like_csf_but_for_the_protein_that_flair_shows():
    csf, cavity = MATERIALS.index("CSF"), MATERIALS.index("RC")
    for number in range(1, 20):
        contrast = hospital(5, number).scanner.contrast
        for channel in ("T1w", "T2w"):
            assert contrast[channel][cavity] == pytest.approx(contrast[channel][csf], rel=0.6)
        assert contrast["FLAIR"][cavity] > contrast["FLAIR"][csf]
        assert contrast["FLAIR"][cavity] < contrast["FLAIR"][MATERIALS.index("grey")]


@pytest.mark.parametrize("thickness", [4.0, 5.0, 6.5])
def test_a_slice_may_be_thinner_or_thicker_than_the_step_to_the_next(thickness):
    scanner = replace(PLAIN, voxel_mm=(2.4, 2.2, 5.0), slice_thickness_mm=thickness)
    assert blur_mm(scanner) == (2.4, 2.2, thickness)
    assert field_of_view(scanner, np.zeros(3)).spacing_mm == pytest.approx((2.4, 2.2, 5.0))


def small(scanner: Scanner, seed: int) -> dict[str, np.ndarray]:
    """Four channels of a head of random tissue, with an edge that is not brain."""
    rng = stream("small", seed)
    grey, white = rng.uniform(0, 0.5, size=(2, *SMALL.shape)).astype(np.float32)
    brain = np.zeros(SMALL.shape, dtype=np.float32)
    brain[1:-1, 1:-1] = 1
    nothing = np.zeros(SMALL.shape, dtype=np.float32)
    images = scan(
        scanner,
        Fractions(grey=grey, white=white, brain=brain),
        Lesion(viable=nothing, debris=nothing),
        SMALL,
        rng,
    )
    return {channel: image.data for channel, image in images.items()}


noises = st.floats(0, 0.1)


@given(seed=seeds, noise=noises)
def test_a_head_that_moves_by_nothing_gives_the_image_of_one_that_lies_still(seed, noise):
    still = replace(PLAIN, noise=noise, motion_share=0.0, motion_mm=4.0)
    trembling = replace(PLAIN, noise=noise, motion_share=1.0, motion_mm=0.0)
    for channel, image in small(still, seed).items():
        assert np.array_equal(small(trembling, seed)[channel], image)


@given(seed=seeds)
def test_a_magnitude_image_keeps_the_energy_of_a_head_that_moved(seed):
    """Parseval, up to rounding: what leaves the real part of the image is in the imaginary one."""
    grey, white = stream("energy", seed).uniform(0, 0.5, size=(2, *SMALL.shape)).astype(np.float32)
    tissue = Fractions(grey=grey, white=white, brain=np.ones(SMALL.shape, dtype=np.float32))
    nothing = Lesion(viable=np.zeros_like(grey), debris=np.zeros_like(grey))
    energy = []
    for share in (0.0, 1.0):
        scanner = replace(PLAIN, gain=10_000.0, motion_share=share, motion_mm=6.0)
        image = scan(scanner, tissue, nothing, SMALL, stream("energy", seed))["T2w"]
        energy.append(np.square(image.data, dtype=np.float64).sum())
    assert energy[1] == pytest.approx(energy[0], rel=1e-4)


@given(seed=seeds, share=st.floats(0.2, 0.8))
def test_motion_in_one_channel_leaves_the_others_and_the_edge_of_the_brain_as_they_are(seed, share):
    still = small(replace(PLAIN, noise=0.02, bias=0.1), seed)
    some = small(replace(PLAIN, noise=0.02, bias=0.1, motion_share=share, motion_mm=4.0), seed)
    all_moved = small(replace(PLAIN, noise=0.02, bias=0.1, motion_share=1.0, motion_mm=4.0), seed)
    for channel in CHANNELS:
        assert not np.array_equal(still[channel], all_moved[channel])
        assert any(np.array_equal(some[channel], x[channel]) for x in (still, all_moved))
        assert some[channel].dtype == np.int16
        assert np.array_equal(some[channel] > 0, still[channel] > 0)


@given(seed=seeds, chance=st.floats(0, 1))
def test_a_channel_that_is_missing_leaves_the_others_as_they_are(seed, chance):
    scanner = replace(PLAIN, noise=0.02, motion_share=0.5, motion_mm=3.0)
    whole, left = small(scanner, seed), small(replace(scanner, missing_channel=chance), seed)
    assert left
    for channel, image in left.items():
        assert np.array_equal(image, whole[channel])


@given(seed=seeds, chance=st.floats(0, 1))
def test_a_visit_brings_at_least_one_channel_in_the_order_of_the_contract(seed, chance):
    scanner = replace(PLAIN, missing_channel=chance)
    taken = channels_taken(scanner, stream("visit", seed))
    assert taken
    assert taken == tuple(channel for channel in CHANNELS if channel in taken)
    assert taken == channels_taken(scanner, stream("visit", seed))


def test_channels_are_missing_as_often_as_stated():
    rng, visits = stream("missing"), 4000
    for chance in (0.0, 0.2, 1.0):
        scanner = replace(PLAIN, missing_channel=chance)
        counts = [len(channels_taken(scanner, rng)) for _ in range(visits)]
        # where all four would be missing, one stays
        expected = 4 * (1 - chance) + chance**4
        assert np.mean(counts) == pytest.approx(expected, abs=4 * 0.8 / visits**0.5)
    assert set(counts) == {1}


def test_hospitals_err_each_in_its_own_way_and_none_of_their_own_accord_lacks_a_channel():
    scanners = [hospital(5, number).scanner for number in range(1, 9)]
    for what in ("slice_thickness_mm", "motion_share", "motion_mm", "edge_wobble_mm"):
        assert len({getattr(s, what) for s in scanners}) == len(scanners)
    assert all(0.2 <= s.edge_wobble_mm <= 0.6 for s in scanners)
    assert all(0.8 <= s.slice_thickness_mm / s.voxel_mm[2] <= 1.2 for s in scanners)
    assert {s.missing_channel for s in scanners} == {0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contrast", {"T1w": (1.0,) * 6}),
        ("slice_thickness_mm", -1.0),
        ("motion_mm", float("nan")),
        ("edge_wobble_mm", float("inf")),
        ("motion_share", 1.1),
        ("missing_channel", float("nan")),
    ],
)
def test_a_scanner_that_cannot_be_is_refused(name, value):
    with pytest.raises(UsageRefusal):
        replace(PLAIN, **{name: value})
