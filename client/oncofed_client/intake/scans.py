"""How does one thing of a visit become a volume, whatever form it has?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oncofed_client.findings import refusal
from oncofed_client.intake.found import DOSE, OUTLINE, FoundVisit, Item, Row, left_out
from oncofed_client.intake.labels import Scheme
from oncofed_client.readers.dicom_objects import read_dose, read_segmentation, read_structures
from oncofed_client.readers.dicom_series import read_series
from oncofed_client.readers.nifti import read_volume, translate
from oncofed_client.readers.visit import DOSE_GY
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal


@dataclass(frozen=True, kw_only=True)
class Scans:
    """What could be read of a visit, in the source's own world; outlines in values of ``LABELS``.

    ``planning``: the CT (Hounsfield units) in whose world the dose lies; None where that is the visit's own.
    """

    visit: FoundVisit
    images: Mapping[str, Volume]
    tumor: Volume | None
    dose_gy: Volume | None
    planning: Volume | None = None

    def with_images(self, images: Mapping[str, Volume]) -> Scans:
        return replace(self, images=images)


def read_scans(
    patient: str, visit: FoundVisit, *, scheme: Scheme, within: Path, rows: list[Row]
) -> Scans:
    """Everything of a visit that can be read; a row for each thing that cannot.

    Args:
        within: a folder of the intake's own, for what has to lie on the disk for a moment.
    """
    images: dict[str, Volume] = {}
    tumor = dose = planning = None
    for item in visit.items:
        try:
            volume = _read(item, scheme, within)
            if item.form == "rtdose" and item.beside:
                planning = read_series(item.beside, within=within)
        except CohortRefusal as error:
            rows.append(
                left_out(
                    error.code,
                    patient=patient,
                    visit=visit.session,
                    what=item.shown,
                    found=error.found,
                )
            )
            continue
        if item.kind == OUTLINE:
            tumor = volume
        elif item.kind == DOSE:
            dose = volume
        else:
            images[item.kind] = volume
    return Scans(visit=visit, images=images, tumor=tumor, dose_gy=dose, planning=planning)


def _read(item: Item, scheme: Scheme, within: Path) -> Volume:
    """Raises CohortRefusal: why it cannot be taken."""
    volume = _READERS[item.form](item, scheme, within)
    if item.kind == DOSE:
        low, high = float(volume.data.min()), float(volume.data.max())
        if low < -0.01 or not DOSE_GY[0] <= high <= DOSE_GY[1]:
            raise refusal("dose_implausible", f"a dose map from {low:g} to {high:g}")
    elif item.kind != OUTLINE and float(np.ptp(volume.data)) == 0:
        raise refusal("blank", "an image whose voxels are all equal")
    return volume


def _nifti(item: Item, scheme: Scheme, _within: Path) -> Volume:
    volume = read_volume(item.files[0], packed=False)
    if item.kind == OUTLINE:
        return translate(volume, scheme.values, code="label_unknown")
    return volume


def _series(item: Item, _scheme: Scheme, within: Path) -> Volume:
    return read_series(item.files, within=within)


def _segmentation(item: Item, scheme: Scheme, _within: Path) -> Volume:
    return read_segmentation(item.files[0], scheme.of)


def _structures(item: Item, scheme: Scheme, within: Path) -> Volume:
    return read_structures(item.files[0], read_series(item.beside, within=within), scheme.of)


def _dose(item: Item, _scheme: Scheme, _within: Path) -> Volume:
    return read_dose(item.files[0])


_READERS: Mapping[str, Callable[[Item, Scheme, Path], Volume]] = {
    "nifti": _nifti,
    "series": _series,
    "seg": _segmentation,
    "rtstruct": _structures,
    "rtdose": _dose,
}
