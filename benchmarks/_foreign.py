"""Hospitals that no pretraining has seen the like of, their patients, and what would have become of them.

Their tumours are pushed along fibres (a tensor D), push back (mechanics) and hide cells that no treatment
kills: three things of which the fit and the physics forecast know nothing. Scans are noisier and outlines
worse, tumours slower or faster, treatment more frequent and visits closer than in any hospital of the
pretraining, and who is severely ill is treated more often.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from oncofed_common.cohort import Patient, Treatment, Volume, course_of_map
from oncofed_common.workers import each
from oncofed_simulation.memory import one_thread
from oncofed_simulation.patients import Hospital, hospital, virtual_patient
from oncofed_simulation.patients.hospitals import stream

Result = TypeVar("Result")
SEED = 880_001
PATIENTS_PER_HOSPITAL = 9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One patient, the visits that are known, and the one to forecast.

    ``worlds_ml``: true visible volumes at the target visit and at the last visit of the history, by world.
    """

    patient: Patient
    history: tuple[int, ...]
    target: int
    worlds_ml: dict[str, tuple[float, float]]

    @property
    def gap_days(self) -> int:
        visits = self.patient.visits
        return visits[self.target].day - visits[self.history[-1]].day

    @property
    def dose_to_come(self) -> Treatment | None:
        """Radiotherapy that is planned on the history and lies before the target."""
        now = self.patient.visits[self.history[-1]].day
        then = self.patient.visits[self.target].day
        courses = (t for t in self.patient.treatments if t.kind == "radiotherapy")
        return next((t for t in courses if now < t.start_day and t.end_day < then), None)


def foreign_hospital(number: int) -> Hospital:
    """The ``number``-th of the test hospitals, from 1: all that is drawn here lies outside of the ranges of
    ``oncofed_simulation.curriculum``. Every other one sees slow tumours, the rest fast ones."""
    home, rng = hospital(SEED, number), stream("foreign", SEED, number)
    slow = number % 2 == 1
    return replace(
        home,
        scanner=replace(
            home.scanner,
            contrast={
                channel: tuple(float(v) for v in np.array(values) * rng.lognormal(0, 0.12, 7))
                for channel, values in home.scanner.contrast.items()
            },
            noise=float(rng.uniform(0.075, 0.1)),
            bias=float(rng.uniform(0.42, 0.55)),
            missing_channel=float(rng.uniform(0.0, 0.15)),
            edge_wobble_mm=float(rng.uniform(1.05, 1.3)),
        ),
        prior=replace(
            home.prior,
            front_speed_mm_per_day=float(
                rng.uniform(0.02, 0.028) if slow else rng.uniform(0.115, 0.14)
            ),
            front_speed_spread=0.55,
            front_width_mm=(2.0, 4.0),
            resistant_share=(0.01, 0.2),
            strain=(0.25, 0.3),
            fibre_ratio=4.0,
        ),
        habits=replace(
            home.habits,
            surgery=0.55,
            radiotherapy=0.85,
            chemotherapy=0.65,
            severity_weight=1.5,
            gap_day=(15, int(rng.integers(60, 96))),
        ),
    )


def case(index: int) -> Case:
    """Test case ``index``: any visit after the first, from the visits up to any before it."""
    number, place = divmod(index, PATIENTS_PER_HOSPITAL)
    home = foreign_hospital(number + 1)
    made = virtual_patient(home, seed=SEED, number=place, with_worlds=True)
    visits, rng = made.patient.visits, stream("case", SEED, index)
    seen = [at for at, visit in enumerate(visits[:-1]) if (np.asarray(visit.tumor.data) > 0).any()]
    last = int(rng.integers(seen[0], len(visits) - 1))
    target = int(rng.integers(last + 1, len(visits)))
    return Case(
        patient=made.patient,
        history=tuple(range(last + 1)),
        target=target,
        worlds_ml={
            name: (world.volumes_ml[target], world.volumes_ml[last])
            for name, world in made.worlds.items()
        },
    )


def collected(work: Callable[[int], Result], indices: Sequence[int]) -> dict[int, Result]:
    """What ``work`` makes of each case, in two processes, with a line of progress."""
    made: dict[int, Result] = {}
    for index, found in each(work, indices, workers=2, prepare=one_thread):
        made[index] = found
        print(f"\rpatient {len(made)} of {len(indices)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return made


def with_dose(patient: Patient, course: Treatment, *, times: float) -> Patient:
    """The same patient with ``times`` the dose of one course, in the table and in the maps planned for it."""
    assert course.dose_gy is not None
    changed = replace(course, dose_gy=course.dose_gy * times)
    return replace(
        patient,
        treatments=tuple(changed if t == course else t for t in patient.treatments),
        visits=tuple(
            visit
            if visit.dose_gy is None or course_of_map(visit, patient.treatments) != course
            else replace(
                visit,
                dose_gy=Volume(
                    data=visit.dose_gy.data * np.float32(times), affine_mm=visit.dose_gy.affine_mm
                ),
            )
            for visit in patient.visits
        ),
    )


def untreated(patient: Patient, course: Treatment) -> Patient:
    """The same patient without one course and without its maps."""
    return replace(
        patient,
        treatments=tuple(t for t in patient.treatments if t != course),
        visits=tuple(
            replace(visit, dose_gy=None)
            if course_of_map(visit, patient.treatments) == course
            else visit
            for visit in patient.visits
        ),
    )
