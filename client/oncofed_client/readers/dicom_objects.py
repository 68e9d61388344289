"""How do a DICOM segmentation, a structure set and a dose become volumes?

SEG is read by highdicom. RTSTRUCT's closed contours are filled on the voxels of the image that they were
drawn on, where a voxel belongs to a contour if its centre does (the even-odd rule: a contour inside another
is a hole). RTDOSE is the grid times DoseGridScaling. DICOM counts millimetres towards left and back, the
house towards right and front. Where structures overlap the smaller one stays: it lies inside the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import NDArray

from oncofed_client.findings import refusal
from oncofed_client.readers.contours import filled
from oncofed_client.readers.dicom import MALFORMED
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Naming = Callable[[str], int | None]
"""The compartment of a structure's name; None for one that the site's scheme does not name."""


def read_segmentation(path: Path, naming: Naming) -> Volume:
    """The named segments of a SEG object as an outline.

    Raises:
        CohortRefusal: ``structure_unknown``, ``unreadable`` or ``truncated``.
    """
    try:
        found = highdicom.seg.segread(path)
        named = {
            number: naming(str(found.get_segment_description(number).SegmentLabel))
            for number in found.segment_numbers
        }
        wanted = [number for number, label in named.items() if label is not None]
        if not wanted:
            raise _unknown_structure()
        volume = found.get_volume(segment_numbers=wanted, rescale_fractional=True)
        masks = np.asarray(volume.array)
        masks = masks[..., None] if masks.ndim == 3 else masks
        affine = np.asarray(volume.affine, dtype=np.float64)
    except (*MALFORMED, OSError, RuntimeError, NotImplementedError):
        raise refusal("unreadable", "a segmentation that cannot be read") from None
    parts = [(int(named[n] or 0), masks[..., i] >= 0.5) for i, n in enumerate(wanted)]
    return Volume(data=_painted(parts), affine_mm=TO_RAS @ affine)


def read_structures(path: Path, image: Volume, naming: Naming) -> Volume:
    """The named structures of an RTSTRUCT object as an outline on the voxels of ``image``.

    Raises:
        CohortRefusal: ``structure_unknown``, ``contours_tilted`` or ``unreadable``.
    """
    try:
        found = pydicom.dcmread(path)
        names: Mapping[int, str] = {
            int(roi.ROINumber): str(roi.ROIName) for roi in found.StructureSetROISequence
        }
        loops: dict[int, list[NDArray[np.float64]]] = {}
        for roi in found.ROIContourSequence:
            label = naming(names.get(int(roi.ReferencedROINumber), ""))
            if label is not None:
                of_label = loops.setdefault(label, [])
                of_label += [_loop(one) for one in roi.get("ContourSequence", None) or ()]
    except (*MALFORMED, OSError, NotImplementedError):
        raise refusal("unreadable", "a structure set that cannot be read") from None
    if not loops:
        raise _unknown_structure()
    parts = [(label, filled(of_label, image)) for label, of_label in loops.items()]
    return Volume(data=_painted(parts), affine_mm=image.affine_mm)


def read_dose(path: Path) -> Volume:
    """The planned dose of an RTDOSE object, in Gy.

    Raises:
        CohortRefusal: ``dose_unsupported``, ``truncated`` or ``affine_missing``.
    """
    try:
        found = pydicom.dcmread(path)
        whole = (str(found.DoseUnits), str(found.DoseSummationType)) == ("GY", "PLAN")
        physical = str(found.get("DoseType", "PHYSICAL")) == "PHYSICAL"
        if not (whole and physical):
            raise CohortRefusal(
                "a dose that is not the physical dose of a whole plan in Gy",
                allowed="DoseType PHYSICAL, DoseSummationType PLAN, DoseUnits GY",
                next="export the dose of the whole plan",
                code="dose_unsupported",
            )
        grid = np.atleast_3d(np.asarray(found.pixel_array, dtype=np.float64))
        dose = (grid * float(found.DoseGridScaling)).transpose(2, 1, 0)
        affine = _dose_affine(found, frames=grid.shape[0])
    except (*MALFORMED, OSError, NotImplementedError, RuntimeError):
        raise refusal("truncated", "a dose that cannot be read to its end") from None
    return Volume(data=dose.astype(np.float32), affine_mm=TO_RAS @ affine)


def _dose_affine(found: Any, *, frames: int) -> Float[ndarray, "4 4"]:
    """From (column, row, frame) to DICOM's own world."""
    along_row, along_column = np.array(list(map(float, found.ImageOrientationPatient))).reshape(
        2, 3
    )
    down, across = (float(edge) for edge in found.PixelSpacing)
    offsets = np.array([float(x) for x in found.GridFrameOffsetVector])
    steps = np.diff(offsets)
    if len(offsets) != frames or frames < 2 or np.ptp(steps) > 1e-3:
        raise refusal("affine_missing", "a dose whose planes are not evenly apart")
    affine = np.eye(4)
    affine[:3, 0] = along_row * across
    affine[:3, 1] = along_column * down
    affine[:3, 2] = np.cross(along_row, along_column) * steps[0]
    affine[:3, 3] = [float(x) for x in found.ImagePositionPatient]
    return affine


def _loop(contour: Any) -> NDArray[np.float64]:
    """The corners of one contour in RAS+ millimetres, shape (n, 3)."""
    if str(contour.ContourGeometricType) not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        return np.zeros((0, 3))
    points = np.array([float(x) for x in contour.ContourData]).reshape(-1, 3)
    return points * [-1.0, -1.0, 1.0]


def _painted(parts: list[tuple[int, Bool[ndarray, "x y z"]]]) -> NDArray[np.uint8]:
    """Every part with its label, the largest first."""
    made = np.zeros(parts[0][1].shape, dtype=np.uint8)
    for label, mask in sorted(parts, key=lambda part: -int(part[1].sum())):
        made[mask] = label
    return made


def _unknown_structure() -> CohortRefusal:
    return CohortRefusal(
        "no structure that the label table names",
        allowed="a segment or structure whose name the label table has",
        next="add the structure's name to --labels",
        code="structure_unknown",
    )
