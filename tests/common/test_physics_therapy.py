"""Therapy against closed forms, and the laws of a treated course."""

from __future__ import annotations

import math

import pytest
import torch

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.solver import Medium, grow, medium
from oncofed_common.physics.therapy import (
    Cells,
    Radiosensitivity,
    chemotherapy,
    evolve,
    fraction_days,
    radiotherapy,
    survival,
)

LAW = Growth(diffusion_white_mm2_per_day=0.13, diffusion_grey_mm2_per_day=0.02, rate_per_day=0.02)
SENSITIVE = Radiosensitivity(alpha_per_gy=0.05, beta_per_gy2=0.005)
DAYS = [0, 20, 55, 130]


def brain() -> Medium:
    tissue = torch.full((12, 12, 12), 3)
    tissue[8:] = 2
    return medium(tissue, LAW, spacing_mm=(1.0, 1.0, 1.0), dtype=torch.float64)


def newborn() -> Cells:
    u = torch.zeros(12, 12, 12, dtype=torch.float64)
    u[4:7, 4:7, 4:7] = 0.7
    return Cells(day=0, viable=u, debris=torch.zeros_like(u))


def course(kills, days=DAYS, start=None, half_life=60.0):
    return list(
        evolve(
            newborn() if start is None else start,
            brain(),
            kills=kills,
            clearance_half_life_day=half_life,
            days=days,
        )
    )


def test_thirty_fractions_of_two_gray_leave_what_the_linear_quadratic_law_says():
    dose = torch.full((1, 1, 1), 60.0, dtype=torch.float64)
    left = torch.ones(1, 1, 1, dtype=torch.float64)
    for kill in radiotherapy(dose, SENSITIVE, start_day=3, fractions=30):
        left = left * kill.survival
    exact = math.exp(-30 * (0.05 * 2 + 0.005 * 4))
    assert left.item() == pytest.approx(exact, rel=1e-12)
    at_once = survival(dose, SENSITIVE).item()
    assert at_once == pytest.approx(math.exp(-0.05 * 60 - 0.005 * 3600), rel=1e-12)
    assert at_once < exact / 1e5


def test_fractions_fall_on_weekdays():
    days = fraction_days(10, 30)
    assert len(set(days)) == 30
    assert days[:6] == [10, 11, 12, 13, 14, 17]
    assert days[-1] == 10 + 5 * 7 + 4
    assert all((day - 10) % 7 < 5 for day in days)


def test_a_dose_of_zero_gives_the_bits_of_no_treatment():
    zero = radiotherapy(torch.zeros(12, 12, 12).double(), SENSITIVE, start_day=3, fractions=30)
    for treated, untreated in zip(course(zero), course([]), strict=True):
        assert torch.equal(treated.viable, untreated.viable)
        assert torch.equal(treated.debris, untreated.debris)


def test_without_treatment_a_course_is_growth_alone():
    cells = course([], days=[40])[0]
    assert torch.equal(cells.viable, grow(newborn().viable, brain(), days=40.0))
    assert cells.debris.abs().max() == 0


def test_killed_cells_become_debris_and_are_cleared_by_half_lives():
    like = newborn().viable
    kills = chemotherapy(like, log_kill=math.log(4), days=[0])
    (after,) = course(kills, days=[60])
    assert after.debris.sum().item() == pytest.approx(0.5 * 0.75 * like.sum().item())
    quarter = Cells(day=0, viable=like / 4, debris=torch.zeros_like(like))
    (regrown,) = course([], days=[60], start=quarter)
    torch.testing.assert_close(after.viable, regrown.viable)


def test_a_day_shows_the_tumour_before_that_days_kill_and_going_on_kills_nothing_twice():
    kills = chemotherapy(newborn().viable, log_kill=1.0, days=[20])
    before, at, after = course(kills, days=[10, 20, 30])
    assert at.debris.abs().max() == 0
    assert at.viable.sum() > before.viable.sum()
    (again,) = course(kills, days=[30], start=at)
    assert torch.equal(again.viable, after.viable)
    assert torch.equal(again.debris, after.debris)


def test_radiotherapy_shrinks_what_it_hits_and_spares_the_rest():
    dose = torch.zeros(12, 12, 12, dtype=torch.float64)
    dose[:, :6] = 60.0
    kills = radiotherapy(dose, SENSITIVE, start_day=1, fractions=30)
    treated, untreated = course(kills, days=[42])[0], course([], days=[42])[0]
    assert treated.viable[:, :4].sum() < 0.4 * untreated.viable[:, :4].sum()
    assert treated.viable[:, 11].sum() > 0.5 * untreated.viable[:, 11].sum()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda: Radiosensitivity(alpha_per_gy=-0.1, beta_per_gy2=0.0), "radiosensitivity"),
        (lambda: survival(torch.full((1, 1, 1), -1.0), SENSITIVE), "dose_value"),
        (lambda: survival(torch.full((1, 1, 1), math.nan), SENSITIVE), "dose_value"),
        (
            lambda: radiotherapy(torch.ones(1, 1, 1), SENSITIVE, start_day=0, fractions=0),
            "fractions",
        ),
        (lambda: course([], days=[20, 10]), "day_order"),
    ],
)
def test_treatment_that_makes_no_sense_is_refused(fault, code):
    with pytest.raises(PhysicsRefusal) as caught:
        fault()
    assert caught.value.code == code
