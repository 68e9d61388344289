"""One virtual patient from first clump to last scan.

Everything is drawn from streams named after (seed, hospital, number, purpose): the same three always give
the same bits, and a new draw for one purpose leaves the others alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_common.cohort import LABELS, TISSUES, Patient, Treatment, Visit, Volume
from oncofed_common.physics.course import Cells, evolve
from oncofed_common.physics.growth import Growth, resolution
from oncofed_common.physics.therapy import (
    DrugDose,
    Fraction,
    Radiosensitivity,
    Therapy,
    chemotherapy,
    fraction_days,
    radiotherapy,
)
from oncofed_simulation.patients.anatomy import Grid, Head, head, sample
from oncofed_simulation.patients.clinic import (
    TEMOZOLOMIDE_HALF_LIFE_DAY,
    Calendar,
    calendar,
    cycle_days,
    dose_map_gy,
    person,
)
from oncofed_simulation.patients.growth import (
    Biology,
    Box,
    biology,
    box,
    onset,
    origin_mm,
    volume_ml,
)
from oncofed_simulation.patients.hospitals import Hospital, stream
from oncofed_simulation.patients.scanner import Lesion, compartments, field_of_view, scan


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What made the patient. ``volume_ml``: visible volume on each of ``visit_days``;
    ``dx_over_width_*``: voxel edge over front width of the growth grid; ``age_day``: days from the first
    clump to the first visit."""

    growth: Growth
    sensitivity: Radiosensitivity
    log_kill_per_cycle: float
    clearance_half_life_day: float
    origin_mm: tuple[float, float, float]
    age_day: int
    visit_days: tuple[int, ...]
    volume_ml: tuple[float, ...]
    dx_over_width_white: float
    dx_over_width_grey: float


@dataclass(frozen=True, kw_only=True)
class VirtualPatient:
    """A patient as a hospital's cohort holds it, the hospital's own number, and the truth."""

    patient: Patient
    hospital_number: str
    truth: Truth


def virtual_patient(hospital: Hospital, *, seed: int, number: int) -> VirtualPatient:
    """Patient ``number`` of ``hospital``: about a second of one core."""

    def draws(purpose: str) -> np.random.Generator:
        return stream("patient", seed, hospital.name, number, purpose)

    who = person(hospital, draws("person"))
    law = biology(hospital, who, draws("biology"))
    speed = law.growth.front_speed_mm_per_day
    plan = calendar(hospital, who, front_speed_mm_per_day=speed, rng=draws("calendar"))
    skull = head(draws("head"))
    grid = field_of_view(hospital.scanner, np.zeros(3))
    tissue = skull.fractions(grid, blur_mm=hospital.scanner.voxel_mm)
    origin = origin_mm(skull, draws("place"))
    where = box(skull, law, origin_mm=origin, follow_up_days=plan.visit_days[-1])
    cells, age_day = onset(where, law)

    therapy = Therapy(doses=_chemotherapy(plan, law))
    visits: list[Visit] = []
    volumes: list[float] = []
    for index, day in enumerate(plan.visit_days):
        (cells,) = evolve(
            cells,
            where.medium,
            therapy=therapy,
            clearance_half_life_day=law.clearance_half_life_day,
            days=[day],
        )
        course = plan.radiotherapy if index == plan.planning_visit else None
        visit = _visit(
            hospital, skull, where, cells, index=index, course=course, rng=draws(f"scan-{index}")
        )
        if course is not None and visit.dose_gy is not None:
            therapy = replace(therapy, fractions=_radiotherapy(visit.dose_gy, where, law, course))
        visits.append(visit)
        volumes.append(volume_ml(cells.visible))

    coarse = resolution(law.growth, where.medium.spacing_mm)
    return VirtualPatient(
        patient=Patient(
            participant=_name("sub-", 8, "participant", seed, hospital.name, number),
            visits=tuple(visits),
            treatments=plan.treatments,
            tissue=Volume(data=tissue.labels(), affine_mm=grid.affine_mm),
            brain=Volume(data=(tissue.brain >= 0.5).astype(np.uint8), affine_mm=grid.affine_mm),
            age_years=who.age_years,
            sex=who.sex,
            diagnosis=who.diagnosis,
            grade=who.grade,
            idh=who.idh,
            mgmt=who.mgmt,
        ),
        hospital_number=_name("V", 10, "hospital number", seed, hospital.name, number),
        truth=Truth(
            growth=law.growth,
            sensitivity=law.sensitivity,
            log_kill_per_cycle=law.log_kill_per_cycle,
            clearance_half_life_day=law.clearance_half_life_day,
            origin_mm=origin,
            age_day=age_day,
            visit_days=plan.visit_days,
            volume_ml=tuple(volumes),
            dx_over_width_white=coarse.white,
            dx_over_width_grey=coarse.grey,
        ),
    )


def _visit(
    hospital: Hospital,
    skull: Head,
    where: Box,
    cells: Cells,
    *,
    index: int,
    course: Treatment | None,
    rng: np.random.Generator,
) -> Visit:
    scanner = hospital.scanner
    grid = field_of_view(scanner, rng.uniform(-0.5, 0.5, size=3))
    tissue = skull.fractions(grid, blur_mm=scanner.voxel_mm)
    lesion = _lesion(where, cells, grid, tissue.labels())
    outlines = compartments(lesion)
    dose_gy = None
    if course is not None:
        total_gy = course.dose_gy
        assert total_gy is not None, "every course of radiotherapy that we draw has a dose"
        core = np.isin(outlines, (LABELS["ET"], LABELS["NETC"]))
        dose = dose_map_gy(
            core if core.any() else outlines > 0,
            tissue.brain >= 0.5,
            total_gy=total_gy,
            spacing_mm=grid.spacing_mm,
        )
        dose_gy = Volume(data=dose, affine_mm=grid.affine_mm)
    burden_ml = volume_ml(cells.visible)
    return Visit(
        session=f"ses-{index + 1:02d}",
        day=int(cells.day),
        images=scan(scanner, tissue, lesion, grid, rng),
        tumor=Volume(data=outlines, affine_mm=grid.affine_mm),
        dose_gy=dose_gy,
        steroid_mg=float(np.clip(2 * round(burden_ml / 25 - 0.5 + rng.normal(0, 0.7)), 0, 16)),
        kps=float(np.clip(10 * round(9.6 - burden_ml / 50 + rng.normal(0, 0.6)), 40, 100)),
    )


def _lesion(where: Box, cells: Cells, grid: Grid, tissue: NDArray[np.uint8]) -> Lesion:
    """The cells at the image's voxels: the mean over the grey and white matter around each."""
    solid = sample(where.medium.solid.numpy(), where.grid, grid)
    may_hold = np.isin(tissue, (TISSUES["grey"], TISSUES["white"])) & (solid > 0.25)
    viable, debris = (
        np.where(may_hold, sample(u.numpy(), where.grid, grid) / np.maximum(solid, 0.25), 0)
        for u in (cells.viable, cells.debris)
    )
    return Lesion(viable=viable.astype(np.float32), debris=debris.astype(np.float32))


def _chemotherapy(plan: Calendar, law: Biology) -> tuple[DrugDose, ...]:
    days = [day for t in plan.treatments if t.kind == "chemotherapy" for day in cycle_days(t)]
    return chemotherapy(
        log_kill_per_dose=law.log_kill_per_cycle,
        half_life_day=TEMOZOLOMIDE_HALF_LIFE_DAY,
        days=days,
    )


def _radiotherapy(
    dose_gy: Volume, where: Box, law: Biology, course: Treatment
) -> tuple[Fraction, ...]:
    fractions = course.fractions
    assert fractions is not None, "every course of radiotherapy that we draw has fractions"
    planned = Grid(shape=dose_gy.data.shape, affine_mm=dose_gy.affine_mm)
    in_box = torch.from_numpy(sample(dose_gy.data, planned, where.grid))
    return radiotherapy(in_box, law.sensitivity, days=fraction_days(course.start_day, fractions))


def _name(prefix: str, digits: int, *words: int | str) -> str:
    text = "/".join(str(word) for word in words)
    return prefix + hashlib.sha256(text.encode()).hexdigest()[:digits]
