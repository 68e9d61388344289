"""Who is the patient, when do they come, and what is planned for them?

Published associations: IDH-mutant gliomas come at a younger age, grow more slowly (Yan et al., NEJM 360,
2009) and lie in the frontal lobe more often (Lai et al., J. Clin. Oncol. 29, 2011); MGMT methylation, more
common among them, makes temozolomide kill more (Hegi et al., NEJM 352, 2005). Courses: 60 Gy in 30 fractions
(Stupp et al., NEJM 352, 2005), 40.05 Gy in 15 over the age of 70 (Roa et al., J. Clin. Oncol. 22, 2004), some
weeks after surgery where there was any; temozolomide on 5 of 28 days.

Who is treated depends on how bad it looks (``Severity``), so treatment and outcome are confounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_common.cohort import Treatment, TreatmentKind
from oncofed_common.physics.therapy import CYCLE_DAYS, DOSES_PER_CYCLE, fraction_days
from oncofed_simulation.patients.hospitals import Hospital

CTV_MARGIN_MM = 18.0
PENUMBRA_MM = 3.0
RECOVERY_DAYS = 28
FRONT_PER_GAP_MM = 8.0
FEWEST_VISITS, MOST_VISITS = 3, 6


@dataclass(frozen=True, kw_only=True)
class Person:
    """What the participants table says of one patient."""

    age_years: float
    sex: Literal["M", "F"]
    diagnosis: str
    grade: int
    idh: Literal["mutant", "wildtype"]
    mgmt: Literal["methylated", "unmethylated"] | None
    methylated: bool
    """What a test would find, done or not."""


@dataclass(frozen=True, kw_only=True)
class Severity:
    """What a tumour board sees: how large and how fast a tumour is among its hospital's, in standard
    deviations."""

    size: float
    speed: float

    @property
    def score(self) -> float:
        return (self.size + self.speed) / math.sqrt(2)


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """Days of the visits, the courses, the day of surgery, and the visit that radiotherapy is planned on."""

    visit_days: tuple[int, ...]
    treatments: tuple[Treatment, ...]
    planning_visit: int | None

    @property
    def radiotherapy(self) -> Treatment | None:
        return self._first("radiotherapy")

    @property
    def surgery(self) -> Treatment | None:
        return self._first("surgery")

    def _first(self, kind: TreatmentKind) -> Treatment | None:
        return next((t for t in self.treatments if t.kind == kind), None)


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
        methylated=methylated,
    )


def severity(
    hospital: Hospital, *, first_volume_ml: float, front_speed_mm_per_day: float
) -> Severity:
    """Where a tumour stands among those of its hospital."""
    prior = hospital.prior
    low, high = prior.first_volume_ml
    apart = math.log(front_speed_mm_per_day / prior.front_speed_mm_per_day)
    return Severity(
        size=(first_volume_ml - (low + high) / 2) / ((high - low) / math.sqrt(12)),
        speed=apart / max(prior.front_speed_spread, 1e-6),
    )


def calendar(
    hospital: Hospital,
    who: Person,
    *,
    severity: Severity,
    front_speed_mm_per_day: float,
    rng: np.random.Generator,
) -> Calendar:
    """Draw irregular visits, and what is done between them.

    Fast tumours are seen more often. After surgery comes a visit some weeks later, on which radiotherapy is
    planned; no visit falls into a course of radiotherapy or the four weeks after.
    """
    habits = hospital.habits
    shortest, longest = habits.gap_day
    longest = round(min(longest, max(2 * shortest, FRONT_PER_GAP_MM / front_speed_mm_per_day)))
    visits = int(rng.integers(FEWEST_VISITS, MOST_VISITS + 1))
    operated, irradiated, poisoned = (
        _decides(share, severity, habits.severity_weight, rng)
        for share in (habits.surgery, habits.radiotherapy, habits.chemotherapy)
    )
    planning = (1 if operated else int(rng.integers(visits - 1))) if irradiated else None
    days = [0]
    treatments: list[Treatment] = []
    for visit in range(visits - 1):
        gap = int(rng.integers(shortest, longest + 1))
        if visit == 0 and operated:
            day = int(rng.integers(5, 16))
            treatments.append(Treatment(kind="surgery", start_day=day, end_day=day))
            gap = day + int(rng.integers(18, 29))
        if visit == planning:
            course = _radiotherapy(who, days[-1] + int(rng.integers(10, 24)))
            least, most = habits.dose_times
            if least < most or least != 1:
                course = replace(course, dose_gy=_rounded(course.dose_gy, rng.uniform(least, most)))
            treatments.append(course)
            gap = max(gap, course.end_day + RECOVERY_DAYS - days[-1])
        days.append(days[-1] + gap)
        if len(days) >= FEWEST_VISITS and _drops_out(habits.drop_out, severity, rng):
            break
    if poisoned:
        after = treatments[-1].end_day + RECOVERY_DAYS if treatments else int(rng.integers(10, 40))
        treatments.append(_temozolomide(after, cycles=int(rng.integers(3, 7))))
    begun = tuple(t for t in treatments if t.start_day < days[-1])
    return Calendar(visit_days=tuple(days), treatments=begun, planning_visit=planning)


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


def _decides(
    share: float, found: Severity, severity_weight: float, rng: np.random.Generator
) -> bool:
    """Whether a treatment given to ``share`` of average patients is given to this one."""
    draw = rng.random()
    if not 0 < share < 1:
        return bool(draw < share)
    log_odds = math.log(share / (1 - share)) + severity_weight * found.score
    return bool(draw < 1 / (1 + math.exp(-log_odds)))


def _drops_out(chance: float, found: Severity, rng: np.random.Generator) -> bool:
    return bool(rng.random() < chance * (2 if found.size > 1 else 1))


def _radiotherapy(who: Person, start_day: int) -> Treatment:
    dose_gy, fractions = (40.05, 15) if who.age_years > 70 else (60.0, 30)
    return Treatment(
        kind="radiotherapy",
        start_day=start_day,
        end_day=fraction_days(start_day, fractions)[-1],
        dose_gy=dose_gy,
        fractions=fractions,
    )


def _rounded(dose_gy: float | None, times: float) -> float:
    assert dose_gy is not None, "every course of radiotherapy that we draw has a dose"
    return round(dose_gy * times, 1)


def _temozolomide(start_day: int, *, cycles: int) -> Treatment:
    return Treatment(
        kind="chemotherapy",
        start_day=start_day,
        end_day=start_day + CYCLE_DAYS * (cycles - 1) + DOSES_PER_CYCLE - 1,
        agent="temozolomide",
        dose_mg_m2=150.0,
    )
