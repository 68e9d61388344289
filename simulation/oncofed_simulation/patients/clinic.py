"""Who is the patient, when do they come, and what is planned for them?

Published associations, first version: IDH-mutant gliomas come at a younger age and grow more slowly
(Yan et al., NEJM 360, 2009); MGMT methylation makes temozolomide kill more (Hegi et al., NEJM 352, 2005).
Courses: 60 Gy in 30 fractions (Stupp et al., NEJM 352, 2005), 40.05 Gy in 15 over the age of 70
(Roa et al., J. Clin. Oncol. 22, 2004), temozolomide on 5 of 28 days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_common.cohort import Treatment
from oncofed_common.physics.therapy import fraction_days
from oncofed_simulation.patients.hospitals import Hospital

CYCLE_DAYS = 28
TEMOZOLOMIDE_HALF_LIFE_DAY = 1.8 / 24
"""In plasma: Baker et al., Clin. Cancer Res. 5, 1999."""
CTV_MARGIN_MM = 18.0
PENUMBRA_MM = 3.0
RECOVERY_DAYS = 28
FRONT_PER_GAP_MM = 8.0
FEWEST_VISITS, MOST_VISITS = 3, 5


@dataclass(frozen=True, kw_only=True)
class Person:
    """What the participants table says of one patient."""

    age_years: float
    sex: Literal["M", "F"]
    diagnosis: str
    grade: int
    idh: Literal["mutant", "wildtype"]
    mgmt: Literal["methylated", "unmethylated"] | None


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """Days of the visits, the courses, and (for radiotherapy) the visit it was planned on."""

    visit_days: tuple[int, ...]
    treatments: tuple[Treatment, ...]
    planning_visit: int | None

    @property
    def radiotherapy(self) -> Treatment | None:
        return next((t for t in self.treatments if t.kind == "radiotherapy"), None)


def person(hospital: Hospital, rng: np.random.Generator) -> Person:
    """Draw a patient from the hospital's case mix; MGMT was not tested in a fifth of them."""
    mutant = bool(rng.random() < hospital.idh_mutant)
    age = rng.normal(hospital.median_age_years - (18 if mutant else 0), 10)
    methylated = bool(rng.random() < (0.7 if mutant else 0.4))
    tested = bool(rng.random() < 0.8)
    return Person(
        age_years=float(np.clip(round(age), 19, 88)),
        sex="M" if rng.random() < 0.58 else "F",
        diagnosis="astrocytoma" if mutant else "glioblastoma",
        grade=int(rng.choice((2, 3, 4))) if mutant else 4,
        idh="mutant" if mutant else "wildtype",
        mgmt=("methylated" if methylated else "unmethylated") if tested else None,
    )


def calendar(
    hospital: Hospital, who: Person, *, front_speed_mm_per_day: float, rng: np.random.Generator
) -> Calendar:
    """Draw irregular visits, and a course of radiotherapy or chemotherapy between two of them.

    Fast tumours are seen more often. No visit falls into a course of radiotherapy or the four weeks after.
    """
    habits = hospital.habits
    shortest, longest = habits.gap_day
    longest = round(min(longest, max(2 * shortest, FRONT_PER_GAP_MM / front_speed_mm_per_day)))
    visits = int(rng.integers(FEWEST_VISITS, MOST_VISITS + 1))
    planning = int(rng.integers(visits - 1)) if rng.random() < habits.radiotherapy else None
    days = [0]
    treatments: list[Treatment] = []
    for visit in range(visits - 1):
        gap = int(rng.integers(shortest, longest + 1))
        if visit == planning:
            course = _radiotherapy(who, days[-1] + int(rng.integers(10, 24)))
            treatments.append(course)
            gap = max(gap, course.end_day + RECOVERY_DAYS - days[-1])
        days.append(days[-1] + gap)
    if rng.random() < habits.chemotherapy:
        after = treatments[0].end_day + RECOVERY_DAYS if treatments else int(rng.integers(10, 40))
        treatments.append(_temozolomide(after, cycles=int(rng.integers(3, 7))))
    return Calendar(visit_days=tuple(days), treatments=tuple(treatments), planning_visit=planning)


def dose_map_gy(
    gross_tumour: NDArray[np.bool_],
    brain: NDArray[np.bool_],
    *,
    total_gy: float,
    spacing_mm: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Planned dose: the full dose to the gross tumour and its margin, a smooth fall around it.

    Half the dose is reached ``PENUMBRA_MM`` beyond the clinical target volume; nothing outside the brain.
    """
    away = np.asarray(ndimage.distance_transform_edt(~gross_tumour, sampling=spacing_mm))
    edge = CTV_MARGIN_MM + PENUMBRA_MM
    dose = total_gy / (1 + np.exp((away - edge) / PENUMBRA_MM))
    return np.where(brain & (dose >= 0.5), np.round(dose, 2), 0).astype(np.float32)


def cycle_days(course: Treatment) -> list[int]:
    """First day of each cycle of a chemotherapy course."""
    return list(range(course.start_day, course.end_day + 1, CYCLE_DAYS))


def _radiotherapy(who: Person, start_day: int) -> Treatment:
    dose_gy, fractions = (40.05, 15) if who.age_years > 70 else (60.0, 30)
    return Treatment(
        kind="radiotherapy",
        start_day=start_day,
        end_day=fraction_days(start_day, fractions)[-1],
        dose_gy=dose_gy,
        fractions=fractions,
    )


def _temozolomide(start_day: int, *, cycles: int) -> Treatment:
    return Treatment(
        kind="chemotherapy",
        start_day=start_day,
        end_day=start_day + CYCLE_DAYS * (cycles - 1) + 4,
        agent="temozolomide",
        dose_mg_m2=150.0,
    )
