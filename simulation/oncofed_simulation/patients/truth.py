"""What is true of a virtual patient, beside what the cohort shows?

The parameters that made it, and its densities on the days of the visits: in the world as it was, untreated
from the first visit on, and under other doses of the same plan. Kept beside the cohort, where no reader of
the cohort looks: what would have happened is what a forecast of treatment is judged by.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from oncofed_common.physics.course import Cells
from oncofed_common.physics.growth import Growth, resolution
from oncofed_common.physics.mechanics import Swelling
from oncofed_common.physics.therapy import Radiosensitivity, Therapy
from oncofed_simulation.patients.anatomy import Grid, sample
from oncofed_simulation.patients.clinic import Calendar
from oncofed_simulation.patients.growth import Biology, Box, seen_ml
from oncofed_simulation.patients.hospitals import Hospital

OTHER_DOSES: Mapping[str, float] = {"half_dose": 0.5, "dose_plus_quarter": 1.25}
KEPT_VOXEL_MM = 3.0
FULL = 250
"""Densities are kept as bytes: this is a density of 1."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One course of events: the cells on each visit's day, on the growth grid, and what was done."""

    grid: Grid
    swelling: Swelling
    states: tuple[Cells, ...]
    therapy: Therapy

    @property
    def volumes_ml(self) -> tuple[float, ...]:
        """Visible volume on each day, as a perfect outline would show it."""
        return tuple(seen_ml(cells.visible, self.swelling) for cells in self.states)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What made the patient. ``volume_ml``: visible volume on each of ``visit_days``; ``dx_over_width_*``:
    voxel edge over front width of the growth grid, D matched to the grid in ``coarse`` tissues;
    ``age_day``: days from the first clump to the first visit."""

    growth: Growth
    sensitivity: Radiosensitivity
    log_kill_per_dose: float
    clearance_half_life_day: float
    resistant_share: float
    swelling: Swelling
    fibre_ratio: float
    origin_mm: tuple[float, float, float]
    age_day: int
    visit_days: tuple[int, ...]
    volume_ml: tuple[float, ...]
    dx_over_width_white: float
    dx_over_width_grey: float
    coarse: tuple[str, ...]


def truth_of(
    law: Biology,
    plan: Calendar,
    where: Box,
    hospital: Hospital,
    *,
    origin_mm: tuple[float, float, float],
    age_day: int,
    actual: World,
) -> Truth:
    """The truth of a patient that has been grown."""
    found = resolution(law.growth, where.medium.spacing_mm)
    return Truth(
        growth=law.growth,
        sensitivity=law.sensitivity,
        log_kill_per_dose=law.log_kill_per_dose,
        clearance_half_life_day=law.clearance_half_life_day,
        resistant_share=law.resistant_share,
        swelling=law.swelling,
        fibre_ratio=hospital.prior.fibre_ratio,
        origin_mm=origin_mm,
        age_day=age_day,
        visit_days=plan.visit_days,
        volume_ml=actual.volumes_ml,
        dx_over_width_white=found.white,
        dx_over_width_grey=found.grey,
        coarse=found.coarse,
    )


def as_json(truth: Truth, worlds: Mapping[str, World]) -> dict[str, Any]:
    """The truth's numbers, and the visible volumes of every world."""
    volumes = {name: list(world.volumes_ml) for name, world in worlds.items()}
    return asdict(truth) | {"worlds_volume_ml": volumes}


def fields_npz(worlds: Mapping[str, World]) -> bytes:
    """Densities of every world as an ``.npz``, the same bytes for the same values.

    ``affine_mm`` (4, 4) of a grid of ``KEPT_VOXEL_MM``, ``days``, and for each world ``NAME_viable`` and
    ``NAME_debris``, bytes of shape (visit, x, y, z), ``FULL`` for a density of 1; before any mass effect.
    """
    grid = next(iter(worlds.values())).grid
    kept = _coarser(grid)
    states = next(iter(worlds.values())).states
    arrays: dict[str, Any] = {
        "affine_mm": kept.affine_mm,
        "days": np.asarray([cells.day for cells in states]),
    }
    for name, world in worlds.items():
        for part in ("viable", "debris"):
            fields = [sample(getattr(cells, part).numpy(), grid, kept) for cells in world.states]
            as_bytes = np.rint(np.clip(np.stack(fields), 0, 1) * FULL)
            arrays[f"{name}_{part}"] = as_bytes.astype(np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def _coarser(grid: Grid) -> Grid:
    step = round(KEPT_VOXEL_MM / grid.spacing_mm[0])
    affine = grid.affine_mm.copy()
    affine[:3, :3] *= step
    x, y, z = (-(-n // step) for n in grid.shape)
    return Grid(shape=(x, y, z), affine_mm=affine)
