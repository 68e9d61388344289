"""``oncofed-simulate grow``: one tumour by the physics, on somebody's tissue map.

    tissue, seed, law, treatments -> medium (refined where it is coarse) -> course -> density on the same grid

The clump on day 0 is a Gaussian of ``CLUMP_MM`` with a density of ``CLUMP_DENSITY`` in its middle, as in the
virtual patients. Radiotherapy takes its days and fractions from the treatments and its Gy from the dose map,
or, without a map, the course's dose everywhere.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_client.readers.nifti import read_volume
from oncofed_client.readers.outputs import write_volume
from oncofed_client.readers.tables import TreatmentRow, read_table
from oncofed_common.cohort import TISSUES, Volume
from oncofed_common.durable import write_atomic
from oncofed_common.errors import PhysicsRefusal, SystemRefusal
from oncofed_common.physics import fine
from oncofed_common.physics.course import Cells, evolve, newborn
from oncofed_common.physics.growth import Growth, resolution
from oncofed_common.physics.medium import Medium, check_tissue, medium
from oncofed_common.physics.therapy import (
    TEMOZOLOMIDE_HALF_LIFE_DAY,
    DrugDose,
    Fraction,
    Radiosensitivity,
    Therapy,
    chemotherapy,
    dosing_days,
    radiotherapy,
)
from oncofed_common.resample import resampled
from oncofed_simulation.patients.growth import CLUMP_DENSITY, CLUMP_MM

CLEARANCE_HALF_LIFE_DAY = 75.0
FRONT = 0.5
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to grow: numbers in the units of their names."""

    growth: Growth
    seed_mm: tuple[float, float, float]
    days: int
    sensitivity: Radiosensitivity
    log_kill_per_dose: float
    allow_coarse: bool


@dataclass(frozen=True, kw_only=True)
class Grown:
    """The density on the tissue's grid, and what a program wants to know of it."""

    density: Volume
    report: dict[str, Any]


def grow_file(
    asked: Asked,
    *,
    tissue: Path,
    treatments: Path | None,
    dose: Path | None,
    out: Path,
    watch: Watch,
) -> dict[str, Any]:
    """Read, grow, write ``out`` (a ``.nii.gz``), and report.

    Raises:
        PhysicsRefusal, CohortRefusal: input that cannot be meant. SystemRefusal: ``out`` is there already
            (``out_exists``), is not a ``.nii.gz`` (``out_name``), or cannot be written.
    """
    _refuse_output(out)
    tissue_map = read_volume(tissue)
    courses = _courses(treatments, days=asked.days)
    grown = grow_tumour(
        asked,
        tissue=tissue_map,
        courses=courses,
        dose_gy=None if dose is None else read_volume(dose),
        free_bytes=free_bytes(),
        watch=watch,
    )
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "density.nii.gz"
        write_volume(draft, grown.density, description="oncofed: tumour-cell density, virtual")
        data = draft.read_bytes()
    write_atomic(out, data)
    return grown.report


def grow_tumour(
    asked: Asked,
    *,
    tissue: Volume,
    courses: Sequence[TreatmentRow],
    dose_gy: Volume | None,
    free_bytes: int,
    watch: Watch,
) -> Grown:
    """Grow one tumour.

    Args:
        tissue: labels 1 CSF, 2 grey, 3 white, 0 outside the brain.
        courses: as ``read_courses`` gives them.
        free_bytes: memory that may be used.

    Raises:
        PhysicsRefusal: codes ``days``, ``tissue_label``, ``seed_outside``, ``dose_grid``, ``treatment``,
            ``memory``.
    """
    if asked.days < 1:
        raise PhysicsRefusal(
            f"{asked.days} days of growth",
            allowed="1 day or more",
            next="give --days",
            code="days",
        )
    began_s = time.monotonic()
    labels = _labels(tissue)
    spacing_mm = tissue.spacing_mm
    parts = (1, 1, 1) if asked.allow_coarse else fine.parts_for(asked.growth, labels, spacing_mm)
    fine.refuse_memory(labels.shape, parts, torch.float32, free_bytes=free_bytes)
    within = medium(
        fine.cut(labels, parts),
        asked.growth,
        spacing_mm=fine.finer(spacing_mm, parts),
        dtype=torch.float32,
        allow_coarse=asked.allow_coarse,
    )
    therapy = Therapy(
        fractions=_fractions(courses, dose_gy, tissue, parts, asked.sensitivity),
        doses=_doses(courses, asked.log_kill_per_dose),
    )
    start = _clump(tissue, labels, within, asked.seed_mm, parts)
    steps = 0

    def count(day: float) -> None:
        nonlocal steps
        steps += 1
        watch("days of growth", round(day), asked.days)

    (cells,) = evolve(
        newborn(start, day=0, resistant_share=0.0),
        within,
        therapy=therapy,
        clearance_half_life_day=CLEARANCE_HALF_LIFE_DAY,
        days=[asked.days],
        on_step=count,
    )
    density = fine.joined(cells.viable, parts)
    report = _report(density, cells, tissue, asked, parts, steps=steps)
    report["seconds"] = round(time.monotonic() - began_s, 3)
    return Grown(density=Volume(data=density.numpy(), affine_mm=tissue.affine_mm), report=report)


def free_bytes() -> int:
    """Memory that the kernel says is free to use.

    Raises:
        SystemRefusal: it does not say.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemRefusal(
        "a kernel that does not say how much memory is free",
        allowed="Linux 3.14 or later",
        next="run on another machine",
        code="memory",
    )


def _courses(treatments: Path | None, *, days: int) -> list[TreatmentRow]:
    if treatments is None:
        return []
    table = read_table(treatments, TreatmentRow)
    if table.bad:
        raise _treatment(f"a treatment whose {table.bad[0].what} cannot be read", "correct the row")
    return checked(table.rows, days=days)


def checked(rows: Sequence[TreatmentRow], *, days: int) -> list[TreatmentRow]:
    """The courses by day, if they can be meant.

    Raises:
        PhysicsRefusal: code ``treatment``: another kind, one that ends before it starts, starts before day 0
            or not before the end, or overlaps another of its kind.
    """
    rows = sorted(rows, key=lambda row: row.start_day)
    for row in rows:
        if row.kind not in ("radiotherapy", "chemotherapy"):
            raise _treatment(f"a treatment of the kind {row.kind}", "leave it out")
        if not 0 <= row.start_day <= row.end_day:
            raise _treatment(
                f"a course from day {row.start_day} to {row.end_day}", "correct its days"
            )
        if row.start_day >= days:
            raise _treatment(
                f"a course from day {row.start_day}, when growth ends on day {days}",
                "give more --days, or leave it out",
            )
    for one, other in itertools.combinations(rows, 2):
        if one.kind == other.kind and other.start_day <= one.end_day:
            raise _treatment(
                f"two courses of {one.kind} that overlap on day {other.start_day}",
                "correct their days",
            )
    return rows


def _labels(tissue: Volume) -> Integer[Tensor, "x y z"]:
    found = torch.from_numpy(np.asarray(tissue.data, dtype=np.float32))
    whole = found.round()
    if not torch.equal(whole, found) or float(found.abs().max()) > 127:
        raise PhysicsRefusal(
            "a tissue map with values that are no labels",
            allowed="0 outside, 1 CSF, 2 grey, 3 white",
            next="relabel the tissue map",
            code="tissue_label",
        )
    labels = whole.to(torch.int8)
    check_tissue(labels)
    return labels


def _clump(
    tissue: Volume,
    labels: Integer[Tensor, "x y z"],
    within: Medium,
    seed_mm: tuple[float, float, float],
    parts: fine.Parts,
) -> Float[Tensor, "a b c"]:
    """The tumour on day 0, at the seed in world millimetres."""
    inverse = np.linalg.inv(tissue.affine_mm)
    voxel = inverse[:3, :3] @ np.asarray(seed_mm) + inverse[:3, 3]
    nearest = np.rint(voxel).astype(int) if np.isfinite(voxel).all() else np.full(3, -1)
    inside = bool((nearest >= 0).all() and (nearest < labels.shape).all())
    here = int(labels[tuple(nearest)]) if inside else 0
    if here not in (TISSUES["grey"], TISSUES["white"]):
        where = "in fluid" if here == TISSUES["CSF"] else "outside the brain"
        raise PhysicsRefusal(
            f"a seed {where}",
            allowed="a point in grey or white matter, in world millimetres",
            next="correct --seed-mm",
            code="seed_outside",
        )
    axes = [
        (torch.arange(n * count) + 0.5) / count - 0.5
        for n, count in zip(labels.shape, parts, strict=True)
    ]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).double()
    away = index - torch.from_numpy(voxel)[:, None, None, None]
    offset_mm = torch.einsum("ab,bxyz->axyz", torch.from_numpy(tissue.affine_mm[:3, :3]), away)
    density = CLUMP_DENSITY * torch.exp(-(offset_mm**2).sum(dim=0) / (2 * CLUMP_MM**2))
    return density.float() * within.solid


def _fractions(
    courses: Sequence[TreatmentRow],
    dose_gy: Volume | None,
    tissue: Volume,
    parts: fine.Parts,
    sensitivity: Radiosensitivity,
) -> tuple[Fraction, ...]:
    given = [row for row in courses if row.kind == "radiotherapy"]
    if dose_gy is not None and len(given) != 1:
        raise _treatment(
            f"a dose map with {len(given)} courses of radiotherapy",
            "give one course of radiotherapy in --treatments, or no --dose",
        )
    made: list[Fraction] = []
    for row in given:
        if row.fractions is None or row.dose_gy is None:
            raise _treatment("radiotherapy without fractions or dose_gy", "complete the row")
        if dose_gy is None:
            shape = tuple(n * count for n, count in zip(tissue.data.shape, parts, strict=True))
            total = torch.full(shape, row.dose_gy)
        else:
            total = fine.cut(_dose_on(dose_gy, tissue), parts)
        made += radiotherapy(total, sensitivity, days=spread_over(row, row.fractions))
    return tuple(made)


def spread_over(row: TreatmentRow, fractions: int) -> list[int]:
    """Days of ``fractions`` from the first to the last day of a course, as evenly as whole days allow."""
    span = row.end_day - row.start_day
    return [
        row.start_day + round(span * number / max(1, fractions - 1)) for number in range(fractions)
    ]


def _doses(courses: Sequence[TreatmentRow], log_kill: float) -> tuple[DrugDose, ...]:
    """Chemotherapy on the first five days of every 28, at ``log_kill`` a dose."""
    days = [
        day
        for row in courses
        if row.kind == "chemotherapy"
        for day in dosing_days(row.start_day, row.end_day)
    ]
    return chemotherapy(
        log_kill_per_dose=log_kill, half_life_day=TEMOZOLOMIDE_HALF_LIFE_DAY, days=days
    )


def _dose_on(dose_gy: Volume, tissue: Volume) -> Float[Tensor, "x y z"]:
    """The dose at the tissue's voxels, by the affines."""
    to_source = np.linalg.inv(dose_gy.affine_mm) @ tissue.affine_mm
    found = resampled(
        dose_gy.data, to_source, shape=tissue.data.shape, order=1, outside=float("nan")
    )
    brain = np.asarray(tissue.data) > 0
    if not np.isfinite(found[brain]).any():
        raise PhysicsRefusal(
            "a dose map that lies nowhere on the brain",
            allowed="a dose map that overlaps the tissue map in world millimetres",
            next="give the dose of this patient",
            code="dose_grid",
        )
    return torch.from_numpy(np.nan_to_num(found, nan=0.0))


def _report(
    density: Tensor, cells: Cells, tissue: Volume, asked: Asked, parts: fine.Parts, *, steps: int
) -> dict[str, Any]:
    voxel_ml = abs(float(np.linalg.det(tissue.affine_mm[:3, :3]))) / 1000
    part_mm3 = voxel_ml * 1000 / math.prod(parts)
    spacing_mm = fine.finer(tissue.spacing_mm, parts)
    found = resolution(asked.growth, spacing_mm)
    front_mm3 = float((cells.viable >= FRONT).sum()) * part_mm3
    return {
        "mass_ml": float(density.sum(dtype=torch.float64)) * voxel_ml,
        "front_radius_mm": (3 * front_mm3 / (4 * math.pi)) ** (1 / 3),
        "dx_over_width": {"white": found.white, "grey": found.grey},
        "allow_coarse": asked.allow_coarse,
        "coarse": list(found.coarse) if asked.allow_coarse else [],
        "parts_of_a_voxel": list(parts),
        "steps": steps,
    }


def _refuse_output(out: Path) -> None:
    if not out.name.endswith(".nii.gz"):
        raise SystemRefusal(
            "an output that is not named .nii.gz",
            allowed="a new file whose name ends with .nii.gz",
            next="correct --out",
            code="out_name",
        )
    if out.exists():
        raise SystemRefusal(
            "an output that is there already",
            allowed="a new file",
            next="name another file, or remove this one",
            code="out_exists",
        )


def _treatment(found: str, next: str) -> PhysicsRefusal:
    return PhysicsRefusal(
        found,
        allowed="radiotherapy and chemotherapy within the days of growth, none over another of its kind",
        next=next,
        code="treatment",
    )
