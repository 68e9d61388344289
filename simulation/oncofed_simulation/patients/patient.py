"""One virtual patient from first clump to last scan, and the same patient under other treatment.

Everything is drawn from streams named after (seed, hospital, number, purpose): the same three always give
the same bits, and a new draw for one purpose leaves the others alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from oncofed_common.cohort import LABELS, TISSUES, Patient, Treatment, Visit, Volume
from oncofed_common.physics.course import Cells, evolve
from oncofed_common.physics.therapy import (
    TEMOZOLOMIDE_HALF_LIFE_DAY,
    Fraction,
    Resection,
    Therapy,
    chemotherapy,
    dosing_days,
    fraction_days,
    radiotherapy,
)
from oncofed_simulation.patients.anatomy import Fractions, Grid, Head, head, interpolate
from oncofed_simulation.patients.clinic import (
    Calendar,
    calendar,
    dose_map_gy,
    person,
    severity,
)
from oncofed_simulation.patients.deform import (
    Room,
    Shift,
    room,
    shift,
    shifted_sample,
)
from oncofed_simulation.patients.growth import (
    Biology,
    Box,
    biology,
    box,
    onset,
    origin_mm,
    resection,
    seen_ml,
)
from oncofed_simulation.patients.hospitals import Hospital, stream
from oncofed_simulation.patients.outlines import Lesion
from oncofed_simulation.patients.rater import drawn_outlines
from oncofed_simulation.patients.scanner import blur_mm, field_of_view, scan
from oncofed_simulation.patients.truth import OTHER_DOSES, Truth, World, truth_of


@dataclass(frozen=True, kw_only=True)
class VirtualPatient:
    """A patient as a hospital's cohort holds it, the hospital's own number, and the truth.

    ``worlds``: the density on each visit's day in the world as it was, untreated from day 0 on, and with
    other doses of radiotherapy where there was any; by name, the actual one first.
    """

    patient: Patient
    hospital_number: str
    truth: Truth
    worlds: dict[str, World]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stays the same over a patient's visits."""

    hospital: Hospital
    skull: Head
    within: Room
    where: Box
    law: Biology


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What a visit draws from: the scanner's luck, and the rater's."""

    scan: np.random.Generator
    rater: np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A course of radiotherapy: total dose on the growth box, and the days of its fractions."""

    dose_gy: Float[Tensor, "x y z"]
    days: tuple[int, ...]

    def fractions(self, law: Biology, *, times: float) -> tuple[Fraction, ...]:
        """The course with ``times`` its dose."""
        return radiotherapy(self.dose_gy * times, law.sensitivity, days=self.days)


def virtual_patient(
    hospital: Hospital, *, seed: int, number: int, with_worlds: bool = False
) -> VirtualPatient:
    """Patient ``number`` of ``hospital``: a second or two of one core, more with other worlds."""

    def draws(purpose: str) -> np.random.Generator:
        return stream("patient", seed, hospital.name, number, purpose)

    who = person(hospital, draws("person"))
    law = biology(hospital, who, draws("biology"))
    speed = law.growth.front_speed_mm_per_day
    plan = calendar(
        hospital,
        who,
        severity=severity(
            hospital, first_volume_ml=law.first_volume_ml, front_speed_mm_per_day=speed
        ),
        front_speed_mm_per_day=speed,
        rng=draws("calendar"),
    )
    skull = head(draws("head"))
    origin = origin_mm(skull, who, draws("place"))
    where = box(
        skull,
        law,
        fibre_ratio=hospital.prior.fibre_ratio,
        origin_mm=origin,
        follow_up_days=plan.visit_days[-1],
    )
    setting = Setting(hospital=hospital, skull=skull, within=room(skull), where=where, law=law)
    first, age_day = onset(where, law)

    therapy = _medical(plan, law)
    cells, states, visits = first, [], []
    planned: Planned | None = None
    tissue: Fractions | None = None
    for index, day in enumerate(plan.visit_days):
        (cells,) = _until(cells, setting, therapy, [day])
        grid = field_of_view(hospital.scanner, draws(f"grid-{index}").uniform(-0.5, 0.5, size=3))
        moved = shift(setting.within, cells.visible.numpy(), where.grid, swelling=law.swelling)
        if tissue is None:
            static = field_of_view(hospital.scanner, np.zeros(3))
            tissue = skull.fractions_at(
                moved.came_from_mm(static.points_mm()), blur_mm=blur_mm(hospital.scanner)
            )
        course = plan.radiotherapy if index == plan.planning_visit else None
        visit = _visit(
            setting,
            cells,
            moved,
            grid,
            therapy,
            course=course,
            index=index,
            rngs=Streams(scan=draws(f"scan-{index}"), rater=draws(f"rater-{index}")),
        )
        if course is not None and visit.dose_gy is not None:
            planned = Planned(
                dose_gy=torch.from_numpy(_dose_in_box(visit.dose_gy, where, moved)),
                days=tuple(fraction_days(course.start_day, _fractions(course))),
            )
            therapy = replace(therapy, fractions=planned.fractions(law, times=1.0))
        if index == 0 and plan.surgery is not None:
            cut = resection(where, cells, draws("surgery"))
            therapy = replace(
                therapy, resections=(Resection(day=plan.surgery.start_day, cavity=cut),)
            )
        visits.append(visit)
        states.append(cells)
    assert tissue is not None, "every patient has a first visit"

    actual = World(grid=where.grid, swelling=law.swelling, states=tuple(states), therapy=therapy)
    worlds = {"actual": actual}
    if with_worlds:
        worlds |= _other_worlds(actual, first, setting, plan, planned)
    return VirtualPatient(
        patient=Patient(
            participant=_name("sub-", 8, "participant", seed, hospital.name, number),
            visits=tuple(visits),
            treatments=plan.treatments,
            tissue=Volume(data=tissue.labels(), affine_mm=static.affine_mm),
            brain=Volume(data=(tissue.brain >= 0.5).astype(np.uint8), affine_mm=static.affine_mm),
            age_years=who.age_years,
            sex=who.sex,
            diagnosis=who.diagnosis,
            grade=who.grade,
            idh=who.idh,
            mgmt=who.mgmt,
        ),
        hospital_number=_name("V", 10, "hospital number", seed, hospital.name, number),
        truth=truth_of(
            law, plan, where, hospital, origin_mm=origin, age_day=age_day, actual=actual
        ),
        worlds=worlds,
    )


def _until(cells: Cells, setting: Setting, therapy: Therapy, days: list[int]) -> list[Cells]:
    return list(
        evolve(
            cells,
            setting.where.medium,
            therapy=therapy,
            clearance_half_life_day=setting.law.clearance_half_life_day,
            days=days,
        )
    )


def _other_worlds(
    actual: World, first: Cells, setting: Setting, plan: Calendar, planned: Planned | None
) -> dict[str, World]:
    """The same patient, untreated and under other doses of the same plan, on the same days."""
    days = list(plan.visit_days)
    therapies = {"untreated": Therapy()}
    if planned is not None:
        for name, times in OTHER_DOSES.items():
            fractions = planned.fractions(setting.law, times=times)
            therapies[name] = replace(actual.therapy, fractions=fractions)
    return {
        name: replace(actual, states=tuple(_until(first, setting, therapy, days)), therapy=therapy)
        for name, therapy in therapies.items()
    }


def _visit(
    setting: Setting,
    cells: Cells,
    moved: Shift,
    grid: Grid,
    therapy: Therapy,
    *,
    course: Treatment | None,
    index: int,
    rngs: Streams,
) -> Visit:
    scanner = setting.hospital.scanner
    came_from_mm = moved.came_from_mm(grid.points_mm())
    tissue = setting.skull.fractions_at(came_from_mm, blur_mm=blur_mm(scanner))
    lesion = _lesion(setting.where, cells, therapy, came_from_mm, tissue.labels())
    outlines = drawn_outlines(lesion, grid, wobble_mm=scanner.edge_wobble_mm, rng=rngs.rater)
    dose_gy = None
    if course is not None:
        total_gy = course.dose_gy
        assert total_gy is not None, "every course of radiotherapy that we draw has a dose"
        core = np.isin(outlines, (LABELS["ET"], LABELS["NETC"], LABELS["RC"]))
        dose = dose_map_gy(
            core if core.any() else outlines > 0,
            tissue.brain >= 0.5,
            total_gy=total_gy,
            spacing_mm=grid.spacing_mm,
        )
        dose_gy = Volume(data=dose, affine_mm=grid.affine_mm)
    burden_ml = seen_ml(cells.visible, setting.law.swelling)
    return Visit(
        session=f"ses-{index + 1:02d}",
        day=int(cells.day),
        images=scan(scanner, tissue, lesion, grid, rngs.scan),
        tumor=Volume(data=outlines, affine_mm=grid.affine_mm),
        dose_gy=dose_gy,
        steroid_mg=float(
            np.clip(2 * round(burden_ml / 25 - 0.5 + rngs.scan.normal(0, 0.7)), 0, 16)
        ),
        kps=float(np.clip(10 * round(9.6 - burden_ml / 50 + rngs.scan.normal(0, 0.6)), 40, 100)),
    )


def _lesion(
    where: Box,
    cells: Cells,
    therapy: Therapy,
    came_from_mm: NDArray[np.float32],
    tissue: NDArray[np.uint8],
) -> Lesion:
    """The cells at the image's voxels: the mean over the grey and white matter around each."""
    cavities = [r.cavity for r in therapy.resections if r.day < cells.day]
    solid_there = where.medium.solid.float()
    fields = torch.stack([solid_there, cells.viable, cells.debris, *(c.float() for c in cavities)])
    solid, viable, debris, *cut = shifted_sample(fields.numpy(), where.grid, came_from_mm)
    may_hold = np.isin(tissue, (TISSUES["grey"], TISSUES["white"])) & (solid > 0.25)
    share = may_hold / np.maximum(solid, np.float32(0.25))
    cavity = np.minimum(np.sum(cut, axis=0), 1).astype(np.float32) if cut else None
    return Lesion(viable=viable * share, debris=debris * share, cavity=cavity)


def _dose_in_box(dose_gy: Volume, where: Box, moved: Shift) -> NDArray[np.float32]:
    """The planned dose where each voxel of the growth box lay when it was planned."""
    planned = Grid(shape=dose_gy.data.shape, affine_mm=dose_gy.affine_mm)
    at = planned.index_of(moved.goes_to_mm(where.grid.points_mm()))
    found: NDArray[np.float32] = interpolate(dose_gy.data[None], at)[0]
    return found


def _medical(plan: Calendar, law: Biology) -> Therapy:
    """Chemotherapy, which needs no scan to be planned on."""
    courses = [t for t in plan.treatments if t.kind == "chemotherapy"]
    days = [day for t in courses for day in dosing_days(t.start_day, t.end_day)]
    return Therapy(
        doses=chemotherapy(
            log_kill_per_dose=law.log_kill_per_dose,
            half_life_day=TEMOZOLOMIDE_HALF_LIFE_DAY,
            days=days,
        )
    )


def _fractions(course: Treatment) -> int:
    assert course.fractions is not None, "every course of radiotherapy that we draw has fractions"
    return course.fractions


def _name(prefix: str, digits: int, *words: int | str) -> str:
    text = "/".join(str(word) for word in words)
    return prefix + hashlib.sha256(text.encode()).hexdigest()[:digits]
