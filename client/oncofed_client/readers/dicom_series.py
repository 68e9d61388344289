"""How does a DICOM series become a volume? By dcm2niix, after the series was found whole and regular.

dcm2niix (Li et al., J. Neurosci. Methods 264, 2016) knows what each vendor does differently; what it does
not say clearly is asked here first: every file readable to its end, one grey value a pixel, a stated
orientation, slices evenly apart. It runs on links to this series alone, in a folder of its own, and only
its voxels and affine are used.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dcm2niix
import numpy as np
import pydicom

from oncofed_client.findings import refusal
from oncofed_client.readers.dicom import MALFORMED
from oncofed_client.readers.nifti import read_volume
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal

LONGEST_S = 600
UNEVEN = 0.05
"""Slices may lie this share of their distance from where an even stack has them."""
TURNED = 1e-3


def read_series(files: Sequence[Path], *, within: Path | None = None) -> Volume:
    """One series as a volume, shape (x, y, z), in RAS+ world millimetres.

    Args:
        within: where the volume may lie for a moment; None for the system's folder of temporary files.

    Raises:
        CohortRefusal: ``truncated``, ``not_scalar``, ``affine_missing``, ``slices_uneven``,
            ``not_converted``, or whatever is wrong with the volume itself.
    """
    _refuse_irregular([_whole(path) for path in files])
    with tempfile.TemporaryDirectory(prefix="series-", dir=within) as held:
        folder, made = Path(held, "in"), Path(held, "out")
        folder.mkdir()
        made.mkdir()
        for number, path in enumerate(files):
            (folder / f"{number:06d}.dcm").symlink_to(path.resolve())
        arguments = ["-b", "n", "-z", "n", "-p", "n", "-x", "n", "-m", "y", "-f", "volume"]
        try:
            subprocess.run(
                [dcm2niix.bin, *arguments, "-o", str(made), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # it names files and fields
                stderr=subprocess.DEVNULL,
                timeout=LONGEST_S,
                check=True,
            )
        except (subprocess.SubprocessError, OSError):
            raise _not_converted("a series that dcm2niix does not convert") from None
        volumes = sorted(made.glob("*.nii"))
        if len(volumes) != 1:
            raise _not_converted(f"a series that holds {len(volumes)} volumes")
        return read_volume(volumes[0], packed=False)


def _whole(path: Path) -> Any:
    """The header of a file that is there to its last pixel."""
    try:
        found = pydicom.dcmread(path)
        pixels = len(found.PixelData)
        grey = int(found.get("SamplesPerPixel", 1)) == 1
        packed = bool(found.file_meta.TransferSyntaxUID.is_encapsulated)
        told = int(found.Rows) * int(found.Columns) * int(found.BitsAllocated) // 8
        told *= int(found.get("NumberOfFrames", None) or 1)
        del found.PixelData
    except (*MALFORMED, OSError, NotImplementedError):
        raise refusal("truncated", "a DICOM file that ends too early, or has no pixels") from None
    if not grey:
        raise refusal("not_scalar", "a series in colours")
    if not packed and pixels < told:
        raise refusal("truncated", "a DICOM file that ends before its last pixel")
    return found


def _refuse_irregular(headers: Sequence[Any]) -> None:
    """Slices of one file each must be one even stack; how the frames of one file lie, dcm2niix says."""
    if len(headers) == 1 and int(headers[0].get("NumberOfFrames", None) or 1) > 1:
        return
    try:
        turns = np.array([list(map(float, one.ImageOrientationPatient)) for one in headers])
        places = np.array([list(map(float, one.ImagePositionPatient)) for one in headers])
    except (*MALFORMED,):
        raise refusal(
            "affine_missing", "a series that does not state where its slices lie"
        ) from None
    if turns.shape[1:] != (6,) or places.shape[1:] != (3,):
        raise refusal("affine_missing", "a series that does not state where its slices lie")
    if np.abs(turns - turns[0]).max() > TURNED:
        raise _not_converted("a series whose slices are turned against each other")
    along = np.cross(turns[0, :3], turns[0, 3:])
    heights = np.sort(places @ along)
    if len(heights) < 2:
        raise _uneven("a series of one slice")
    gaps = np.diff(heights)
    middle = float(np.median(gaps))
    if middle <= 0 or float(np.abs(gaps - middle).max()) > UNEVEN * middle:
        raise _uneven("slices that are missing, doubled, or not evenly apart")


def _uneven(found: str) -> CohortRefusal:
    return CohortRefusal(
        found,
        allowed="one even stack of slices",
        next="export the series again",
        code="slices_uneven",
    )


def _not_converted(found: str) -> CohortRefusal:
    return CohortRefusal(
        found,
        allowed="one regular volume",
        next="export it again whole, without reformatted or repeated slices",
        code="not_converted",
    )
