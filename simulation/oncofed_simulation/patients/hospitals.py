"""How do virtual hospitals differ: their scanners, their patients, their habits of treatment?

Contrasts are relative to white matter of T1w and roughly those of a 3 T brain protocol. Fronts are drawn
by speed 2 sqrt(D rho) and width sqrt(D / rho), because those two are what a scan shows; the ranges keep
D within 0.013–3.8 mm²/day and rho within 0.0012–0.19 /day as published (Harpold et al., J. Neuropathol.
Exp. Neurol. 66, 2007) and the width at 2 mm or more, which the growth grid resolves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MATERIALS: tuple[str, ...] = ("CSF", "grey", "white", "NETC", "SNFH", "ET")
_CONTRAST: Mapping[str, tuple[float, ...]] = {
    #                    CSF   grey  white NETC  SNFH  ET
    "T1w": (0.28, 0.72, 1.00, 0.45, 0.66, 0.62),
    "ce-gadolinium_T1w": (0.30, 0.76, 1.00, 0.45, 0.68, 1.45),
    "T2w": (1.55, 0.72, 0.52, 1.25, 1.15, 0.98),
    "FLAIR": (0.18, 0.78, 0.62, 0.75, 1.38, 1.12),
}
_VOXELS_MM: tuple[tuple[float, float, float], ...] = (
    (3.0, 3.0, 3.0),
    (2.5, 2.5, 4.0),
    (2.8, 2.8, 3.2),
    (2.4, 2.4, 5.0),
)
_AXIS_SIGNS: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (-1, -1, 1), (-1, 1, 1))


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One hospital's look. ``contrast``: per channel, the signal of each of ``MATERIALS`` before
    ``gain``; ``noise`` (Rician sigma) and ``bias`` (largest log of the field) relative to white matter;
    ``axis_signs``: which way the stored axes run against RAS+."""

    contrast: Mapping[str, tuple[float, ...]]
    gain: float
    noise: float
    bias: float
    voxel_mm: tuple[float, float, float]
    axis_signs: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class GrowthPrior:
    """Medians of lognormal draws (``spread`` is the sigma of the logarithm), and ranges."""

    front_speed_mm_per_day: float
    front_speed_spread: float
    front_width_mm: tuple[float, float]
    white_to_grey: tuple[float, float]
    first_volume_ml: tuple[float, float]
    alpha_per_gy: float


COHORT_SEEDS = 1_000_000_000
"""Cohorts have a smaller seed, the patients of pretraining this one or a larger."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """Shares of patients who get a treatment, and how often a hospital scans."""

    radiotherapy: float
    chemotherapy: float
    gap_day: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A virtual hospital; ``number`` counts from 1."""

    name: str
    number: int
    scanner: Scanner
    prior: GrowthPrior
    habits: Habits
    median_age_years: float
    idh_mutant: float


def stream(*words: int | str) -> np.random.Generator:
    """A random stream of its own for these words: adding a draw elsewhere changes nothing here."""
    text = "/".join(str(word) for word in words)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


def hospital(seed: int, number: int) -> Hospital:
    """The ``number``-th virtual hospital of ``seed``; neighbours have voxels of different size."""
    rng = stream("hospital", seed, number)
    first_voxel = int(stream("voxel", seed).integers(len(_VOXELS_MM)))
    return Hospital(
        name=f"hospital-{number}",
        number=number,
        scanner=Scanner(
            contrast={
                channel: tuple(float(v) for v in np.asarray(base) * rng.lognormal(0, 0.06, size=6))
                for channel, base in _CONTRAST.items()
            },
            gain=float(rng.uniform(400, 1400)),
            noise=float(rng.uniform(0.015, 0.045)),
            bias=float(rng.uniform(0.08, 0.28)),
            voxel_mm=_VOXELS_MM[(first_voxel + number) % len(_VOXELS_MM)],
            axis_signs=_AXIS_SIGNS[int(rng.integers(len(_AXIS_SIGNS)))],
        ),
        prior=GrowthPrior(
            front_speed_mm_per_day=float(rng.uniform(0.05, 0.07)),
            front_speed_spread=0.4,
            front_width_mm=(2.0, 3.2),
            white_to_grey=(5.0, 10.0),
            first_volume_ml=(6.0, 35.0),
            alpha_per_gy=float(rng.uniform(0.025, 0.04)),
        ),
        habits=Habits(
            radiotherapy=float(rng.uniform(0.35, 0.6)),
            chemotherapy=float(rng.uniform(0.15, 0.4)),
            gap_day=(30, int(rng.integers(110, 151))),
        ),
        median_age_years=float(rng.uniform(52, 64)),
        idh_mutant=float(rng.uniform(0.1, 0.3)),
    )
