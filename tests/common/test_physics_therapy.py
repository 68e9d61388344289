"""Therapy against closed forms, and the laws of a treated course."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.course import Cells, evolve, newborn
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.medium import Medium, medium
from oncofed_common.physics.solver import grow
from oncofed_common.physics.therapy import (
    DrugDose,
    Radiosensitivity,
    Resection,
    Therapy,
    chemotherapy,
    dosing_days,
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
    return medium(tissue, LAW, spacing_mm=(1.0, 1.0, 1.0), dtype=torch.float64, allow_coarse=False)


def start() -> Cells:
    u = torch.zeros(12, 12, 12, dtype=torch.float64)
    u[4:7, 4:7, 4:7] = 0.7
    return newborn(u, day=0, resistant_share=0.0)


def course(therapy=None, days=DAYS, start_from=None, half_life=60.0, within=None):
    return list(
        evolve(
            start() if start_from is None else start_from,
            within or brain(),
            therapy=therapy or Therapy(),
            clearance_half_life_day=half_life,
            days=days,
        )
    )


def thirty_fractions(dose: torch.Tensor, start_day: int = 3) -> Therapy:
    days = fraction_days(start_day, 30)
    return Therapy(fractions=radiotherapy(dose, SENSITIVE, days=days))


def test_thirty_fractions_of_two_gray_leave_what_the_linear_quadratic_law_says():
    """Through the whole course: a voxel whose growth is too slow to matter."""
    still = Growth(
        diffusion_white_mm2_per_day=1e-12, diffusion_grey_mm2_per_day=1e-12, rate_per_day=1e-12
    )
    within = medium(
        torch.full((1, 1, 1), 3),
        still,
        spacing_mm=(1.0, 1.0, 1.0),
        dtype=torch.float64,
        allow_coarse=False,
    )
    dose = torch.full((1, 1, 1), 60.0, dtype=torch.float64)
    one = newborn(torch.ones(1, 1, 1, dtype=torch.float64) * 0.5, day=0, resistant_share=0.0)
    (cells,) = course(thirty_fractions(dose), days=[60], start_from=one, within=within)
    exact = math.exp(-30 * (0.05 * 2 + 0.005 * 4))
    assert cells.viable.item() / 0.5 == pytest.approx(exact, rel=1e-6)
    at_once = Therapy(fractions=radiotherapy(dose, SENSITIVE, days=[3]))
    (single,) = course(at_once, days=[60], start_from=one, within=within)
    exact_at_once = math.exp(-0.05 * 60 - 0.005 * 3600)
    assert single.viable.item() / 0.5 == pytest.approx(exact_at_once, rel=1e-6)
    assert exact_at_once < exact / 1e5


def test_fractions_fall_on_weekdays():
    days = fraction_days(10, 30)
    assert len(set(days)) == 30
    assert days[:6] == [10, 11, 12, 13, 14, 17]
    assert days[-1] == 10 + 5 * 7 + 4
    assert all((day - 10) % 7 < 5 for day in days)


def test_a_dose_of_zero_gives_the_bits_of_no_treatment():
    zero = Therapy(
        fractions=radiotherapy(
            torch.zeros(12, 12, 12).double(), SENSITIVE, days=fraction_days(3, 30)
        ),
        doses=chemotherapy(log_kill_per_dose=0.0, half_life_day=0.1, days=[5, 33]),
        resections=(Resection(day=8, cavity=torch.zeros(12, 12, 12, dtype=torch.bool)),),
    )
    for treated, untreated in zip(course(zero), course(), strict=True):
        for name in ("sensitive", "resistant", "debris"):
            assert torch.equal(getattr(treated, name), getattr(untreated, name))


def test_without_treatment_a_course_is_growth_alone():
    cells = course(days=[40])[0]
    assert torch.equal(cells.viable, grow(start().viable, brain(), days=40.0))
    assert cells.debris.abs().max() == 0


def test_killed_cells_become_debris_and_are_cleared_by_half_lives():
    like = start().viable
    quarter_left = Radiosensitivity(alpha_per_gy=math.log(4), beta_per_gy2=0.0)
    kill = Therapy(fractions=radiotherapy(torch.ones_like(like), quarter_left, days=[0]))
    (after,) = course(kill, days=[60])
    assert after.debris.sum().item() == pytest.approx(0.5 * 0.75 * like.sum().item())
    quarter = newborn(like / 4, day=0, resistant_share=0.0)
    (regrown,) = course(days=[60], start_from=quarter)
    torch.testing.assert_close(after.viable, regrown.viable)


@given(
    log_kill=st.floats(0.01, 3.0),
    half_life=st.floats(0.02, 40.0),
    days=st.lists(st.integers(0, 90), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_a_drug_kills_by_what_is_left_of_it_and_all_of_its_share_in_the_end(
    log_kill, half_life, days
):
    """Any cut of the time axis adds up; a half-life acts half of the log-kill."""
    doses = chemotherapy(log_kill_per_dose=log_kill, half_life_day=half_life, days=days)
    therapy = Therapy(doses=doses)
    edges = [0.0, 1.7, 13.0, 13.5, 60.0, 1e6]
    parts = [therapy.log_kill_between(a, b) for a, b in itertools.pairwise(edges)]
    assert sum(parts) == pytest.approx(len(days) * log_kill)
    one = doses[0]
    assert one.log_kill_between(float(one.day), one.day + half_life) == pytest.approx(log_kill / 2)
    assert one.log_kill_between(one.day - 9.0, float(one.day)) == 0


def test_a_decaying_drug_kills_exactly_as_much_between_two_days_as_its_law_says():
    """Cells that neither divide nor move: what is alive is exp of minus the log-kill so far."""
    still = Growth(
        diffusion_white_mm2_per_day=1e-12, diffusion_grey_mm2_per_day=1e-12, rate_per_day=1e-12
    )
    within = medium(
        torch.full((1, 1, 1), 3),
        still,
        spacing_mm=(1.0, 1.0, 1.0),
        dtype=torch.float64,
        allow_coarse=False,
    )
    half = newborn(torch.full((1, 1, 1), 0.5, dtype=torch.float64), day=0, resistant_share=0.2)
    doses = chemotherapy(log_kill_per_dose=0.7, half_life_day=5.0, days=[2, 9])
    cells = course(Therapy(doses=doses), days=[4, 9, 30], start_from=half, within=within)
    for state in cells:
        killed = sum(0.7 * (1 - 2 ** (-(state.day - d) / 5)) for d in (2, 9) if state.day > d)
        assert state.sensitive.item() == pytest.approx(0.4 * math.exp(-killed), rel=1e-9)
        assert state.resistant.item() == pytest.approx(0.1, rel=1e-9)


def test_resistant_cells_come_back_after_a_response():
    """A tumour that answers shrinks, and what grows again is resistant."""
    (before,) = course(days=[30])
    cells = newborn(start().viable, day=0, resistant_share=0.01)
    doses = chemotherapy(log_kill_per_dose=1.2, half_life_day=0.1, days=list(range(20, 120, 10)))
    at, low, late = course(
        Therapy(doses=doses), days=[30, 125, 700], start_from=cells, half_life=20.0
    )
    assert low.visible.sum() < 0.3 * at.visible.sum()
    assert late.viable.sum() > before.viable.sum()
    assert late.resistant.sum() > 20 * late.sensitive.sum()
    assert float((late.sensitive + late.resistant).max()) <= 1 + 1e-12


@given(share=st.floats(0.0, 1.0))
@settings(max_examples=10, deadline=None)
def test_without_treatment_two_populations_are_one_tumour(share):
    (both,) = course(days=[80], start_from=newborn(start().viable, day=0, resistant_share=share))
    (one,) = course(days=[80])
    torch.testing.assert_close(both.viable, one.viable, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(both.resistant, share * one.viable, rtol=1e-9, atol=1e-14)


def test_nothing_lives_in_a_cavity_or_crosses_it():
    """A slab cut out between tumour and the rest: the rest stays free for ever."""
    cavity = torch.zeros(12, 12, 12, dtype=torch.bool)
    cavity[7] = True
    cells = start()
    at, after, late = course(
        Therapy(resections=(Resection(day=10, cavity=cavity),)), days=[10, 11, 900]
    )
    assert at.viable[7].max() > 0
    assert after.viable[7].abs().max() == 0
    assert late.visible[7].abs().max() == 0
    residual = after.viable[8:].sum()
    none_left = Cells(
        day=10,
        sensitive=torch.where(torch.arange(12)[:, None, None] > 7, 0, at.sensitive),
        resistant=at.resistant,
        debris=at.debris,
    )
    (isolated,) = course(
        Therapy(resections=(Resection(day=10, cavity=cavity),)), days=[900], start_from=none_left
    )
    assert residual > 0
    assert isolated.viable[8:].abs().max() == 0
    assert isolated.viable[:7].min() > 0.5
    (going_on,) = course(
        Therapy(resections=(Resection(day=10, cavity=cavity),)), days=[900], start_from=after
    )
    torch.testing.assert_close(going_on.viable, late.viable, rtol=1e-3, atol=1e-6)
    assert cells.viable[7].max() == 0


def test_a_day_shows_the_tumour_before_that_days_kill_and_going_on_kills_nothing_twice():
    dose = torch.ones(12, 12, 12, dtype=torch.float64)
    hard = Radiosensitivity(alpha_per_gy=1.0, beta_per_gy2=0.0)
    kill = Therapy(fractions=radiotherapy(dose, hard, days=[20]))
    before, at, after = course(kill, days=[10, 20, 30])
    assert at.debris.abs().max() == 0
    assert at.viable.sum() > before.viable.sum()
    (again,) = course(kill, days=[30], start_from=at)
    assert torch.equal(again.viable, after.viable)
    assert torch.equal(again.debris, after.debris)


def test_radiotherapy_shrinks_what_it_hits_and_spares_the_rest():
    dose = torch.zeros(12, 12, 12, dtype=torch.float64)
    dose[:, :6] = 60.0
    treated = course(thirty_fractions(dose, 1), days=[42])[0]
    untreated = course(days=[42])[0]
    assert treated.viable[:, :4].sum() < 0.4 * untreated.viable[:, :4].sum()
    assert treated.viable[:, 11].sum() > 0.5 * untreated.viable[:, 11].sum()


@given(factor=st.floats(0.0, 2.0))
@settings(max_examples=10, deadline=None)
def test_more_dose_never_leaves_more_tumour(factor):
    dose = torch.full((12, 12, 12), 40.0, dtype=torch.float64)
    less = course(thirty_fractions(dose * factor), days=[60])[0]
    more = course(thirty_fractions(dose * (factor + 0.1)), days=[60])[0]
    assert more.viable.sum() <= less.viable.sum()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda: Radiosensitivity(alpha_per_gy=-0.1, beta_per_gy2=0.0), "radiosensitivity"),
        (lambda: survival(torch.full((1, 1, 1), -1.0), SENSITIVE), "dose_value"),
        (lambda: survival(torch.full((1, 1, 1), math.nan), SENSITIVE), "dose_value"),
        (lambda: radiotherapy(torch.ones(1, 1, 1), SENSITIVE, days=[]), "fractions"),
        (lambda: DrugDose(day=0, log_kill=-1.0, half_life_day=1.0), "drug"),
        (lambda: DrugDose(day=0, log_kill=1.0, half_life_day=0.0), "drug"),
        (lambda: course(days=[20, 10]), "day_order"),
    ],
)
def test_treatment_that_makes_no_sense_is_refused(fault, code):
    with pytest.raises(PhysicsRefusal) as caught:
        fault()
    assert caught.value.code == code


def test_doses_are_taken_on_five_days_of_each_cycle_and_never_after_the_end():
    assert dosing_days(10, 14) == [10, 11, 12, 13, 14]
    assert dosing_days(10, 39) == [10, 11, 12, 13, 14, 38, 39]
