"""What a patient, a visit and a treatment are: values, no file formats.

A volume is an array with the affine that puts its voxels into world millimetres; nothing else says
where a voxel lies. Days count from the patient's first visit. The names of channels, labels and
tissues are those of the cohort contract, and every room uses them from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oncofed_common.errors import CohortRefusal

CHANNELS: tuple[str, ...] = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")
"""Image channels, in the order in which the model sees them (BIDS suffixes)."""

LABELS: Mapping[str, int] = {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
"""Tumour compartments of the default scheme, BraTS 2023 post-treatment: non-enhancing tumour core,
surrounding non-enhancing FLAIR hyperintensity, enhancing tissue, resection cavity."""

TISSUES: Mapping[str, int] = {"CSF": 1, "grey": 2, "white": 3}

TreatmentKind = Literal["radiotherapy", "chemotherapy", "surgery", "immunotherapy"]
TREATMENT_KINDS: tuple[TreatmentKind, ...] = (
    "radiotherapy",
    "chemotherapy",
    "surgery",
    "immunotherapy",
)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A scalar image in space.

    Args:
        data: shape (x, y, z), any real dtype.
        affine_mm: shape (4, 4), float64; maps (i, j, k, 1) to RAS+ world millimetres. A negative
            determinant is legal.

    Raises:
        CohortRefusal: not three axes, or an affine that is not an invertible finite 4 × 4 matrix.
    """

    data: NDArray[Any]
    affine_mm: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise CohortRefusal(
                f"a scan with {self.data.ndim} axes",
                allowed="3 axes",
                next="split the series into single volumes",
                code="not_3d",
            )
        affine = self.affine_mm
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise CohortRefusal(
                "an affine that is not a finite 4 x 4 matrix",
                allowed="a finite 4 x 4 matrix",
                next="write the scan again with its orientation",
                code="affine_singular",
            )
        if abs(float(np.linalg.det(affine[:3, :3]))) < 1e-6:
            raise CohortRefusal(
                "an affine with determinant zero",
                allowed="an invertible affine",
                next="write the scan again with its orientation",
                code="affine_singular",
            )

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of one voxel, shape (3,), in mm."""
        x, y, z = np.linalg.norm(self.affine_mm[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """One course of treatment; ``None`` where the table says ``n/a``."""

    kind: TreatmentKind
    start_day: int
    end_day: int
    dose_gy: float | None = None
    fractions: int | None = None
    agent: str | None = None
    dose_mg_m2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One imaging session.

    ``tumor`` holds label values of the default scheme (``LABELS``), 0 elsewhere, whatever scheme the
    files use. ``dose_gy`` is the planned dose map. Every volume may lie on a grid of its own.
    """

    session: str
    day: int
    images: Mapping[str, Volume]
    tumor: Volume
    dose_gy: Volume | None = None
    steroid_mg: float | None = None
    kps: float | None = None


def course_of_map(visit: Visit, treatments: Sequence[Treatment]) -> Treatment | None:
    """The course for which a visit's dose map was planned: the first that begins on its day or later."""
    later = [one for one in treatments if one.kind == "radiotherapy" and one.start_day >= visit.day]
    return min(later, key=lambda course: course.start_day, default=None)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One patient: visits in order of day, in one world space.

    ``tissue`` holds label values of ``TISSUES``; it and ``brain`` (0/1) are missing where the site has
    no tissue map.
    """

    participant: str
    visits: tuple[Visit, ...]
    treatments: tuple[Treatment, ...] = ()
    tissue: Volume | None = None
    brain: Volume | None = None
    age_years: float | None = None
    sex: Literal["M", "F"] | None = None
    diagnosis: str | None = None
    grade: int | None = None
    idh: Literal["mutant", "wildtype"] | None = None
    mgmt: Literal["methylated", "unmethylated"] | None = None
