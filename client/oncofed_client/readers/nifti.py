"""How one NIfTI file becomes a volume, or is refused.

The file is read whole, once: a gzip stream that is cut or damaged anywhere is seen, not only one
whose voxels are missing. How much of it is unpacked follows from its header, whatever the stream would
give. The voxels stay in the order of the file; the affine says where they lie.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as header_remarks
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from oncofed_client.findings import refusal
from oncofed_common.cohort import Volume

SPACING_MM = (0.2, 12.0)
WIDEST_MM = 1000.0
FARTHEST_MM = 10_000.0
FLATTEST = 0.1
"""Volume of a voxel over the product of its edges: 1 for a box, 0.87 at a gantry tilt of 30 degrees."""

MOST_VOXELS = 512**3
HEADER_BYTES = 352
MOST_PADDING = 2**20
"""Bytes before the first voxel (header extensions), and bytes of padding after the last one."""

_OTHER_UNITS = (1, 3)
"""NIfTI-1's codes of metre and micrometre; 0 (not stated) and the undefined ones are taken as mm."""

header_remarks.disabled = True  # they quote header text, which may name a patient

_MALFORMED = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    ValueError,
    TypeError,
    OverflowError,
    struct.error,
    np.linalg.LinAlgError,
)


def read_volume(path: Path, *, packed: bool = True) -> Volume:
    """Read one scalar volume, shape (x, y, z), float32, in the unit that the file's scaling gives.

    Args:
        packed: the file is gzip-compressed, as every file of a cohort is; else it may be, or not.

    Raises:
        CohortRefusal: ``unreadable``, ``truncated``, ``too_large``, ``not_3d``, ``not_scalar``,
            ``affine_missing``, ``affine_singular``, ``geometry_implausible`` or ``not_finite``.
    """
    image = _parse(_decompress(path, packed=packed))
    affine = np.asarray(image.affine, dtype=np.float64)
    _check_geometry(affine, image.shape)
    volume = Volume(data=_voxels(image), affine_mm=affine)
    if not np.isfinite(volume.data).all():
        count = int(volume.data.size - np.isfinite(volume.data).sum())
        raise refusal("not_finite", f"{count} voxels that are NaN or infinite")
    return volume


def translate(volume: Volume, scheme: Mapping[int, int], *, code: str) -> Volume:
    """The labels of ``scheme`` in place of those of the file, as uint8; 0 stays 0.

    Raises:
        CohortRefusal: ``code``, if a voxel holds anything that ``scheme`` does not name.
    """
    keys = np.array(sorted({0, *scheme}))
    values = np.array([scheme.get(int(key), 0) for key in keys], dtype=np.uint8)
    place = np.searchsorted(keys, volume.data).clip(max=len(keys) - 1)
    named = keys[place] == volume.data
    if not named.all():
        unknown = np.unique(volume.data[~named])
        shown = ", ".join(f"{value:g}" for value in unknown[:5])
        raise refusal(code, f"{len(unknown)} label values without a name, among them {shown}")
    return Volume(data=values[place], affine_mm=volume.affine_mm)


def _decompress(path: Path, *, packed: bool) -> bytes:
    """The bytes of the file, of which no more are ever held than its header speaks of."""
    if not path.is_file():  # reading a pipe or a device would never end
        raise refusal("unreadable", "a scan that is not a regular file")
    try:
        with gzip.open(path) if packed or _is_packed(path) else path.open("rb") as file:
            told = _bytes_of(file.read(HEADER_BYTES))
            file.seek(0)
            raw = file.read(told)
            if file.read(MOST_PADDING + 1)[MOST_PADDING:]:
                raise refusal("too_large", "a file that goes on long after its last voxel")
            return raw
    except EOFError:
        raise refusal("truncated", "a file that ends too early") from None
    except zlib.error:
        raise refusal("unreadable", "a file whose compressed bytes are damaged") from None
    except OSError:
        raise refusal("unreadable", "a file that cannot be opened or is not gzip") from None


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _bytes_of(head: bytes) -> int:
    """How long a file with this header says that it is; ``head`` alone is enough for a wrong one."""
    if len(head) < HEADER_BYTES or head[344:347] != b"n+1":
        return HEADER_BYTES
    try:
        with np.errstate(all="ignore"):
            header = nib.Nifti1Header(head[:348], check=False)
            shape = [int(edge) for edge in header.get_data_shape()]
            width = int(header.get_data_dtype().itemsize)
            start = float(header["vox_offset"])
    except (*_MALFORMED, KeyError):
        return HEADER_BYTES
    voxels = math.prod(shape) if min(shape, default=0) > 0 else 0
    if voxels > MOST_VOXELS or voxels * width > 8 * MOST_VOXELS:
        raise refusal("too_large", f"a scan of {voxels} voxels of {width} bytes")
    gap = math.ceil(start) if HEADER_BYTES <= start <= MOST_PADDING else HEADER_BYTES
    return gap + voxels * width


def _parse(raw: bytes) -> nib.Nifti1Image:
    if len(raw) < 348:
        raise refusal("truncated", "a file that ends within its header")
    if raw[344:347] != b"n+1":
        raise refusal("unreadable", "a file whose header is not NIfTI-1")
    try:
        with np.errstate(all="ignore"):
            image = nib.Nifti1Image.from_bytes(raw)
    except _MALFORMED:
        raise refusal("unreadable", "a file whose header is not NIfTI-1") from None
    if image.ndim != 3:
        raise refusal("not_3d", f"a scan with {image.ndim} axes")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise refusal("not_scalar", "a scan with more than one number a voxel")
    if min(image.shape) < 1:
        raise refusal("truncated", "a scan without voxels")
    if image.dataobj.offset + math.prod(image.shape) * dtype.itemsize > len(raw):
        raise refusal("truncated", "a file that is shorter than its header says")
    if int(image.header["sform_code"]) <= 0 and int(image.header["qform_code"]) <= 0:
        raise refusal("affine_missing", "a header that does not state where the voxels lie")
    if int(image.header["xyzt_units"]) & 7 in _OTHER_UNITS:
        raise refusal("geometry_implausible", "a header in a unit other than mm")
    return image


def _voxels(image: nib.Nifti1Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    try:
        with np.errstate(all="ignore"):
            return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except (*_MALFORMED, OSError):
        raise refusal("unreadable", "a file whose voxels cannot be read") from None


def _check_geometry(affine_mm: Float[np.ndarray, "4 4"], shape: tuple[int, ...]) -> None:
    if not np.isfinite(affine_mm).all():
        raise refusal("affine_singular", "an affine that is not finite")
    spacing = np.linalg.norm(affine_mm[:3, :3], axis=0)
    size = abs(float(np.linalg.det(affine_mm[:3, :3])))
    if size <= FLATTEST * float(spacing.prod()):
        raise refusal("affine_singular", "an affine whose axes lie in one plane, or nearly")
    low, high = SPACING_MM
    widest = float((spacing * shape).max())
    if spacing.min() < low or spacing.max() > high or widest > WIDEST_MM:
        edges = " x ".join(f"{edge:g}" for edge in spacing)
        raise refusal("geometry_implausible", f"voxels of {edges} mm, {widest:g} mm in all")
    away = float(np.abs(affine_mm[:3, 3]).max())
    if away > FARTHEST_MM:
        raise refusal("geometry_implausible", f"a scan {away:g} mm away from the world's origin")
