"""One NIfTI file: where its voxels lie, and what is refused."""

import contextlib
import gzip
import itertools
import tracemalloc

import cohort_builder as build
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planting import swell
from scipy import ndimage

from oncofed_client.readers.nifti import read_volume, translate
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal

ON_DISK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sampled(volume, points_mm):
    """The volume at world points, shape (n, 3); the reader's own code takes no part."""
    index = np.linalg.inv(volume.affine_mm) @ np.c_[points_mm, np.ones(len(points_mm))].T
    return ndimage.map_coordinates(volume.data.astype(float), index[:3], order=1)


def refused(path):
    with pytest.raises(CohortRefusal) as caught:
        read_volume(path)
    return caught.value.code


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    data = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    build.save(path, data, np.diag([2.0, 3.0, 4.0, 1.0]))
    return path


@ON_DISK
@given(
    axes=st.sampled_from(list(itertools.permutations(range(3)))),
    flips=st.lists(st.booleans(), min_size=3, max_size=3),
    dtype=st.sampled_from(["<i2", ">i2", "u1", "<f4", ">f8"]),
)
def test_the_order_of_axes_in_a_file_does_not_move_a_point_of_the_world(
    tmp_path, axes, flips, dtype
):
    shape = np.array([7, 5, 6])
    rng = np.random.default_rng(3)
    data = rng.integers(0, 200, size=shape)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 1.5, 4.0])
    affine[:3, 3] = (-30.0, 12.0, 55.0)
    inner = rng.uniform(0.1, 0.9, size=(50, 3)) * (shape - 1)
    points = inner @ affine[:3, :3].T + affine[:3, 3]
    expected = sampled(Volume(data=data, affine_mm=affine), points)

    stored = np.transpose(data, axes)
    # voxel i of the stored array is voxel M i of the original one
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[:, axes]
    for axis, flip in enumerate(flips):
        if flip:
            stored = np.flip(stored, axis)
            mirror = np.eye(4)
            mirror[axis, axis], mirror[axis, 3] = -1, stored.shape[axis] - 1
            matrix = matrix @ mirror
    path = tmp_path / "turned.nii.gz"
    nib.save(nib.Nifti1Image(stored.astype(dtype), affine @ matrix), path)

    assert sampled(read_volume(path), points) == pytest.approx(expected, abs=1e-3)


def test_scaling_in_the_header_gives_the_unit_of_the_voxels(tmp_path):
    image = nib.Nifti1Image(np.full((3, 3, 3), 100, dtype=np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, 10], dtype="<f4").tobytes()  # scl_slope, scl_inter
    path = tmp_path / "scaled.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw)))
    assert read_volume(path).data.max() == pytest.approx(0.5 * 100 + 10)


def test_a_negative_determinant_is_legal(tmp_path):
    path = tmp_path / "left.nii.gz"
    build.save(path, np.ones((3, 3, 3), dtype=np.int16), np.diag([-1.0, 1.0, 1.0, 1.0]))
    assert np.linalg.det(read_volume(path).affine_mm) == pytest.approx(-1)


@ON_DISK
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path, share):
    path = tmp_path / "cut.nii.gz"
    data = np.random.default_rng(0).integers(0, 999, (9, 9, 9)).astype(np.int16)
    build.save(path, data, np.eye(4))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    assert refused(path) in {"truncated", "unreadable"}


def test_a_file_whose_checksum_does_not_hold_is_refused(scan):
    raw = bytearray(scan.read_bytes())
    raw[-6] ^= 0xFF  # within the CRC-32 and length that end a gzip stream
    scan.write_bytes(bytes(raw))
    assert refused(scan) == "unreadable"


def test_no_more_is_unpacked_than_the_header_speaks_of(scan):
    """A stream of 300 MB costs less than 10: peak of this process's own allocations."""
    swell(scan)
    tracemalloc.start()
    try:
        assert refused(scan) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_padding_behind_the_last_voxel_and_extensions_before_the_first_are_no_fault(scan):
    whole = read_volume(scan).data
    raw = gzip.decompress(scan.read_bytes())
    scan.write_bytes(gzip.compress(raw + bytes(4096)))
    assert (read_volume(scan).data == whole).all()
    image = nib.load(scan)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), scan)
    assert (read_volume(scan).data == whole).all()


def test_a_whole_gzip_stream_with_too_few_voxels_is_truncated(scan):
    raw = gzip.decompress(scan.read_bytes())
    scan.write_bytes(gzip.compress(raw[:-10]))
    assert refused(scan) == "truncated"


@ON_DISK
@given(
    place=st.integers(0, 351),
    value=st.binary(min_size=1, max_size=4),
)
def test_whatever_stands_in_the_header_a_file_is_read_or_refused(tmp_path, place, value):
    path = tmp_path / "odd.nii.gz"
    image = nib.Nifti1Image(np.ones((3, 4, 5), dtype=np.int16), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[place : place + len(value)] = value
    path.write_bytes(gzip.compress(bytes(raw)))
    with contextlib.suppress(CohortRefusal):
        assert read_volume(path).data.ndim == 3


def test_header_text_is_never_printed_or_logged(scan, capfd):
    raw = bytearray(gzip.decompress(scan.read_bytes()))
    raw[148:160] = b"DOE^JANE1234"  # descrip
    raw[252:254] = np.array([77], dtype="<i2").tobytes()  # a qform code that nibabel remarks on
    scan.write_bytes(gzip.compress(bytes(raw)))
    read_volume(scan)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_refused(tmp_path, bad):
    path = tmp_path / "nan.nii.gz"
    data = np.ones((4, 4, 4), dtype=np.float32)
    data[1, 2, 3] = bad
    build.save(path, data, np.eye(4))
    assert refused(path) == "not_finite"


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 2), (4, 4, 4, 1, 3)])
def test_anything_but_three_axes_is_refused(tmp_path, shape):
    path = tmp_path / "axes.nii.gz"
    build.save(path, np.ones(shape, dtype=np.int16), np.eye(4))
    assert refused(path) == "not_3d"


def test_colours_are_not_a_scan(tmp_path):
    path = tmp_path / "rgb.nii.gz"
    rgb = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    build.save(path, rgb, np.eye(4))
    assert refused(path) == "not_scalar"


def test_a_header_that_states_no_orientation_is_refused_not_guessed(tmp_path):
    path = tmp_path / "nowhere.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), dtype=np.int16), None), path)
    assert refused(path) == "affine_missing"


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
)
def test_a_singular_affine_is_refused(scan, affine):
    raw = bytearray(gzip.decompress(scan.read_bytes()))
    raw[280:328] = affine[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    scan.write_bytes(gzip.compress(bytes(raw)))
    assert refused(scan) == "affine_singular"


def test_an_affine_with_axes_nearly_in_one_plane_is_refused(tmp_path):
    path = tmp_path / "flat.nii.gz"
    affine = np.eye(4)
    affine[:3, 2] = (0.999, 0.0, 0.04)
    image = nib.Nifti1Image(np.ones((3, 3, 3), dtype=np.int16), affine)
    raw = bytearray(image.to_bytes())
    raw[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    assert refused(path) == "affine_singular"


@pytest.mark.parametrize(
    ("edge", "count", "code"),
    [
        (0.1, 3, "geometry_implausible"),
        (12.5, 3, "geometry_implausible"),
        (5.0, 201, "geometry_implausible"),
    ],
)
def test_a_voxel_size_that_no_scanner_has_is_refused(tmp_path, edge, count, code):
    path = tmp_path / "size.nii.gz"
    build.save(path, np.ones((count, 3, 3), dtype=np.uint8), np.diag([edge, 2.0, 2.0, 1.0]))
    assert refused(path) == code


@pytest.mark.parametrize("away", [2e4, -1e30])
def test_a_scan_that_lies_in_another_building_is_refused(tmp_path, away):
    path = tmp_path / "far.nii.gz"
    affine = np.eye(4)
    affine[1, 3] = away
    build.save(path, np.ones((3, 3, 3), dtype=np.uint8), affine)
    assert refused(path) == "geometry_implausible"


def test_an_affine_in_metres_is_refused(tmp_path):
    path = tmp_path / "metres.nii.gz"
    image = nib.Nifti1Image(np.ones((3, 3, 3), dtype=np.int16), np.eye(4))
    image.header.set_xyzt_units("meter")
    nib.save(image, path)
    assert refused(path) == "geometry_implausible"


def test_a_missing_or_foreign_file_is_unreadable(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no gzip")
    assert refused(tmp_path / "text.nii.gz") == "unreadable"
    assert refused(tmp_path / "absent.nii.gz") == "unreadable"
    (tmp_path / "noise.nii.gz").write_bytes(gzip.compress(bytes(range(256)) * 4))
    assert refused(tmp_path / "noise.nii.gz") == "unreadable"


@given(st.permutations([0, 1, 2, 4]))
def test_labels_are_translated_by_name_whatever_their_values(order):
    site = dict(zip(order, (0, 1, 2, 3), strict=True))
    scheme = {value: meaning for value, meaning in site.items() if value != 0}
    data = np.array(order, dtype=np.float32).reshape(2, 2, 1)
    volume = Volume(data=data, affine_mm=np.eye(4))
    expected = [0 if value == 0 else scheme[value] for value in order]
    assert translate(volume, scheme, code="label_unknown").data.ravel().tolist() == expected


@pytest.mark.parametrize("value", [5.0, -1.0, 1.5])
def test_a_label_without_a_name_is_refused(value):
    volume = Volume(data=np.array([[[1.0, value]]], dtype=np.float32), affine_mm=np.eye(4))
    with pytest.raises(CohortRefusal) as caught:
        translate(volume, {1: 1, 2: 2}, code="label_unknown")
    assert caught.value.code == "label_unknown"
    assert f"{value:g}" in caught.value.found
