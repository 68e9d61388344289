"""How do virtual hospitals differ: their scanners, their patients, their habits of treatment?

Contrasts are relative to white matter of T1w and roughly those of a 3 T brain protocol. Fronts are drawn
by speed 2 sqrt(D rho) and width sqrt(D / rho), because those two are what a scan shows; the ranges keep
D within 0.013–3.8 mm²/day and rho within 0.0012–0.19 /day as published (Harpold et al., J. Neuropathol.
Exp. Neurol. 66, 2007) and the width at 2 mm or more, which the growth grid resolves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from oncofed_common.errors import UsageRefusal

MATERIALS: tuple[str, ...] = ("CSF", "grey", "white", "NETC", "SNFH", "ET", "RC")
_CONTRAST: Mapping[str, tuple[float, ...]] = {
    #                    CSF   grey  white NETC  SNFH  ET    RC
    "T1w": (0.28, 0.72, 1.00, 0.45, 0.66, 0.62, 0.32),
    "ce-gadolinium_T1w": (0.30, 0.76, 1.00, 0.45, 0.68, 1.45, 0.34),
    "T2w": (1.55, 0.72, 0.52, 1.25, 1.15, 0.98, 1.50),
    "FLAIR": (0.18, 0.78, 0.62, 0.75, 1.38, 1.12, 0.34),
}
_VOXELS_MM: tuple[tuple[float, float, float], ...] = (
    (3.0, 3.0, 3.0),
    (2.5, 2.5, 4.0),
    (2.8, 2.8, 3.2),
    (2.4, 2.4, 5.0),
)
Sign = Literal[-1, 1]
_AXIS_SIGNS: tuple[tuple[Sign, Sign, Sign], ...] = ((1, 1, 1), (-1, -1, 1), (-1, 1, 1))


Range = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]
Edge = Annotated[float, Field(ge=0.5, le=10)]
"""Of a voxel, in mm."""


def _Within(least: float, most: float) -> AfterValidator:  # noqa: N802  reads as the types beside it
    """For values that come from a file: a range whose ends rise and lie within limits."""

    def check(found: Range | tuple[int, int]) -> Range | tuple[int, int]:
        if not least <= found[0] <= found[1] <= most:
            raise ValueError(f"two rising numbers from {least:g} to {most:g}")
        return found

    return AfterValidator(check)


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One hospital's look, and how its scans and outlines go wrong.

    ``contrast``: per channel, the signal of each of ``MATERIALS`` before ``gain``; ``noise`` (Rician
    sigma) and ``bias`` (largest log of the field) relative to white matter; ``voxel_mm``: in the plane
    twice, then from slice to slice; ``slice_thickness_mm``: full width of the slice profile;
    ``axis_signs``: which way the stored axes run against RAS+; ``motion_share`` of channels in which the
    head moves, by ``motion_mm`` at most; ``missing_channel``: chance of each channel at each visit;
    ``edge_wobble_mm``: how far the outlines are drawn off, root mean square along each axis.

    Raises:
        UsageRefusal: not one signal for each material, or a size or share out of range.
    """

    contrast: Mapping[str, tuple[Annotated[float, Field(ge=0, le=10)], ...]]
    gain: Annotated[float, Field(gt=0, le=10_000)]
    noise: Annotated[float, Field(ge=0, le=1)]
    bias: Annotated[float, Field(ge=0, le=2)]
    voxel_mm: tuple[Edge, Edge, Edge]
    slice_thickness_mm: float
    axis_signs: tuple[Sign, Sign, Sign]
    motion_share: float
    motion_mm: float
    missing_channel: float
    edge_wobble_mm: float

    def __post_init__(self) -> None:
        for channel, signals in self.contrast.items():
            if len(signals) != len(MATERIALS):
                raise UsageRefusal(
                    f"{len(signals)} signals of {channel}",
                    allowed=f"one for each of {', '.join(MATERIALS)}",
                    next="give a signal for each material",
                )
        for name in ("slice_thickness_mm", "motion_mm", "edge_wobble_mm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageRefusal(
                    f"{name} = {value:g}", allowed="0 mm or more", next="give a length in mm"
                )
        for name in ("motion_share", "missing_channel"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageRefusal(
                    f"{name} = {value:g}", allowed="0 to 1", next="give a share of channels"
                )


@dataclass(frozen=True, kw_only=True)
class GrowthPrior:
    """How the tumours of a hospital's patients are drawn; pairs are ranges.

    ``front_speed_mm_per_day`` is a median, ``front_speed_spread`` the sigma of its logarithm.
    ``resistant_share``: of the cells on day 0, drawn by its logarithm. ``strain``: linear growth strain of
    tumour tissue (``physics.mechanics``). ``fibre_ratio``: diffusion along the sheets of white matter over
    diffusion across them; 1 for none.
    """

    front_speed_mm_per_day: Annotated[float, Field(gt=0, le=1)]
    front_speed_spread: Annotated[float, Field(ge=0, le=1)]
    front_width_mm: Annotated[Range, _Within(1.5, 10.0)]
    white_to_grey: Annotated[Range, _Within(1.0, 20.0)]
    first_volume_ml: Annotated[Range, _Within(1.0, 150.0)]
    alpha_per_gy: Annotated[float, Field(ge=0, le=1)]
    resistant_share: Annotated[Range, _Within(1e-9, 1.0)]
    strain: Annotated[Range, _Within(0.0, 0.3)]
    fibre_ratio: Annotated[float, Field(ge=1, le=10)]


COHORT_SEEDS = 1_000_000_000
"""Cohorts have a smaller seed, the patients of pretraining this one or a larger."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """Shares of patients who get a treatment, and how often a hospital scans.

    ``severity_weight``: by how much one standard deviation of severity (a large tumour, a fast one) moves
    the log-odds of treatment: so treatment and outcome are confounded. ``drop_out``: chance that a patient
    does not come back after a visit, from the third on, and twice that with a large tumour. ``dose_times``:
    range of a factor on the usual dose of radiotherapy, in the usual fractions.
    """

    surgery: Share
    radiotherapy: Share
    chemotherapy: Share
    severity_weight: Annotated[float, Field(ge=0, le=10)]
    gap_day: Annotated[tuple[int, int], _Within(7.0, 720.0)]
    drop_out: Share
    dose_times: Annotated[Range, _Within(0.1, 1.5)]


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A virtual hospital; ``number`` counts from 1."""

    name: str
    number: int
    scanner: Scanner
    prior: GrowthPrior
    habits: Habits
    median_age_years: Annotated[float, Field(ge=18, le=90)]
    idh_mutant: Share


def stream(*words: int | str) -> np.random.Generator:
    """A random stream of its own for these words: adding a draw elsewhere changes nothing here."""
    text = "/".join(str(word) for word in words)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


def hospital(seed: int, number: int) -> Hospital:
    """The ``number``-th virtual hospital of ``seed``; neighbours have voxels of different size."""
    rng = stream("hospital", seed, number)
    later = stream("scanner", seed, number)
    first_voxel = int(stream("voxel", seed).integers(len(_VOXELS_MM)))
    voxel_mm = _VOXELS_MM[(first_voxel + number) % len(_VOXELS_MM)]
    return Hospital(
        name=f"hospital-{number}",
        number=number,
        scanner=Scanner(
            contrast={
                channel: tuple(
                    float(v)
                    for v in base
                    * np.append(rng.lognormal(0, 0.06, size=6), later.lognormal(0, 0.06))
                )
                for channel, base in _CONTRAST.items()
            },
            gain=float(rng.uniform(400, 1400)),
            noise=float(rng.uniform(0.015, 0.045)),
            bias=float(rng.uniform(0.08, 0.28)),
            voxel_mm=voxel_mm,
            slice_thickness_mm=float(voxel_mm[2] * later.uniform(0.8, 1.2)),
            axis_signs=_AXIS_SIGNS[int(rng.integers(len(_AXIS_SIGNS)))],
            motion_share=float(later.uniform(0.05, 0.2)),
            motion_mm=float(later.uniform(1, 3)),
            missing_channel=0.0,
            edge_wobble_mm=float(later.uniform(0.2, 0.6)),
        ),
        prior=GrowthPrior(
            front_speed_mm_per_day=float(rng.uniform(0.05, 0.07)),
            front_speed_spread=0.4,
            front_width_mm=(2.0, 3.2),
            white_to_grey=(5.0, 10.0),
            first_volume_ml=(6.0, 35.0),
            alpha_per_gy=float(rng.uniform(0.025, 0.04)),
            resistant_share=(1e-3, 0.1),
            strain=(0.0, float(rng.uniform(0.15, 0.3))),
            fibre_ratio=1.0,
        ),
        habits=Habits(
            surgery=float(rng.uniform(0.15, 0.4)),
            radiotherapy=float(rng.uniform(0.35, 0.6)),
            chemotherapy=float(rng.uniform(0.2, 0.45)),
            severity_weight=float(rng.uniform(0.3, 1.0)),
            gap_day=(30, int(rng.integers(110, 151))),
            drop_out=float(rng.uniform(0.05, 0.2)),
            dose_times=(1.0, 1.0),
        ),
        median_age_years=float(rng.uniform(52, 64)),
        idh_mutant=float(rng.uniform(0.1, 0.3)),
    )
