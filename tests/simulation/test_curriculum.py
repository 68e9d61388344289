"""The hospitals that base weights learn from."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from oncofed_common.cohort import CHANNELS
from oncofed_simulation.curriculum import training_hospital
from oncofed_simulation.patients import hospital, virtual_patient
from oncofed_simulation.patients.clinic import calendar, person, severity
from oncofed_simulation.patients.growth import biology
from oncofed_simulation.patients.hospitals import COHORT_SEEDS, stream

SEED = COHORT_SEEDS + 5
DRAWN_ALIKE = (
    "contrast",
    "voxel_mm",
    "axis_signs",
    "gain",
    "slice_thickness_mm",
    "front_speed_spread",
)


def _widest(homes, part, name):
    values = [getattr(getattr(home, part), name) for home in homes]
    return (
        min(v if isinstance(v, float) else v[0] for v in values),
        max(v if isinstance(v, float) else v[-1] for v in values),
    )


def test_what_hospitals_are_like_lies_within_what_training_is_like():
    trained = [training_hospital(SEED, number) for number in range(1, 200)]
    usual = [hospital(7, number) for number in range(1, 60)]
    for part in ("scanner", "prior", "habits"):
        for field in fields(getattr(usual[0], part)):
            if field.name in DRAWN_ALIKE:
                continue
            low, high = _widest(trained, part, field.name)
            least, most = _widest(usual, part, field.name)
            assert low <= least * 1.1 + 0.01, field.name
            assert high >= most * 0.9, field.name


def test_scanners_differ_more_in_contrast_than_those_of_cohorts():
    def widths(homes):
        looks = [np.log([home.scanner.contrast[channel] for channel in CHANNELS]) for home in homes]
        return np.std(looks, axis=0)

    trained = [training_hospital(SEED, number) for number in range(1, 200)]
    usual = [hospital(7, number) for number in range(1, 200)]
    assert (widths(trained) ** 2 - widths(usual) ** 2 > 0.12**2).all()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("scanner", "noise"),
        ("scanner", "bias"),
        ("scanner", "edge_wobble_mm"),
        ("prior", "front_speed_mm_per_day"),
        ("prior", "fibre_ratio"),
        ("habits", "surgery"),
        ("habits", "radiotherapy"),
        ("habits", "chemotherapy"),
        ("habits", "severity_weight"),
        ("habits", "gap_day"),
    ],
)
def test_no_hospital_of_pretraining_is_like_those_of_the_benchmark(monkeypatch, part, name):
    """Else the benchmark would ask about patients who were learned by heart."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from _foreign import foreign_hospital

    trained = [training_hospital(SEED, number) for number in range(1, 400)]
    for number in range(1, 25):
        most = _widest([foreign_hospital(number)], part, name)[1]
        low = min(_widest([home], part, name)[1] for home in trained)
        high = max(_widest([home], part, name)[1] for home in trained)
        assert most < low or most > high, number


def _treatments(home, number):
    """What a patient of the hospital is given, without growing its tumour."""

    def draws(purpose):
        return stream("patient", SEED, home.name, number, purpose)

    who = person(home, draws("person"))
    law = biology(home, who, draws("biology"))
    speed = law.growth.front_speed_mm_per_day
    return calendar(
        home,
        who,
        severity=severity(home, first_volume_ml=law.first_volume_ml, front_speed_mm_per_day=speed),
        front_speed_mm_per_day=speed,
        rng=draws("calendar"),
    ).treatments


def _doses_gy(plan):
    return [course.dose_gy for course in plan if course.kind == "radiotherapy"]


def test_every_second_hospital_treats_by_lot_and_all_vary_the_dose():
    homes = [training_hospital(SEED, number) for number in range(1, 21)]
    assert [home.habits.severity_weight == 0 for home in homes] == [
        n % 2 == 0 for n in range(1, 21)
    ]
    plans = [_treatments(homes[1], number) for number in range(40)]
    irradiated = next(n for n, plan in enumerate(plans) if _doses_gy(plan))
    grown = virtual_patient(homes[1], seed=SEED, number=irradiated).patient
    assert grown.treatments == plans[irradiated], "what is drawn here is what a patient gets"
    doses = {dose for plan in plans for dose in _doses_gy(plan)}
    assert len(doses) >= 2
    assert all(0.3 * 40.05 - 0.1 <= dose <= 1.3 * 60 + 0.1 for dose in doses)


def test_a_dose_that_does_not_vary_is_drawn_from_no_stream():
    """The patients of cohorts stay what they were, whatever the curriculum does."""
    assert hospital(7, 1).habits.dose_times == (1.0, 1.0)
    patient = virtual_patient(hospital(7, 1), seed=7, number=0).patient
    given = [t.dose_gy for t in patient.treatments if t.kind == "radiotherapy"]
    assert all(dose in (60.0, 40.05) for dose in given)


@pytest.mark.parametrize("number", [1, 2])
def test_a_number_repeats_its_hospital_and_no_cohort_has_it(number):
    assert training_hospital(SEED, number) == training_hospital(SEED, number)
    assert training_hospital(SEED, number) != hospital(SEED, number)
    assert stream("a", 1).random() != stream("a", 2).random()
