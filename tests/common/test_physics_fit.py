"""The inverse problem on tumours that the solver grew itself, on a finer grid than the fit has."""

from __future__ import annotations

import math

import pytest
import torch
from fitted_tumour import (
    CSF,
    DOSE_GY,
    SEEN_MM,
    affine,
    fitted,
    grown,
    tissue,
)

from oncofed_common.cohort import LABELS
from oncofed_common.physics.candidates import (
    NUMBERS,
    Answers,
    Drug,
    Irradiation,
    Treatments,
    under_treatment,
)
from oncofed_common.physics.course import evolve, newborn
from oncofed_common.physics.evidence import EXACT, OutlineError, product, surfaces
from oncofed_common.physics.fit import PUBLISHED, fit
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.medium import medium
from oncofed_common.physics.outline import Outline, crossings, distances_mm
from oncofed_common.physics.posterior import draws, forecast, interval, likeliest, origin
from oncofed_common.physics.therapy import (
    Radiosensitivity,
    Resection,
    Therapy,
    chemotherapy,
    radiotherapy,
)


def test_two_outlines_give_back_speed_width_and_origin():
    tumour = grown()
    found = fitted(tumour, (0, 2))
    law = likeliest(found)
    assert law.front_speed_mm_per_day == pytest.approx(tumour.law.front_speed_mm_per_day, rel=0.06)
    assert law.front_width_mm == pytest.approx(tumour.law.front_width_mm, rel=0.12)
    middle = [axis.median for axis in origin(found, share=0.9)]
    assert math.dist(middle, tumour.origin_mm) < 1.0
    assert found.misfit_mm < 1.2


def test_a_third_outline_narrows_what_two_leave_open():
    tumour = grown()
    two, three = (
        interval(fitted(tumour, visits), "front_speed_mm_per_day", share=0.9)
        for visits in ((0, 1), (0, 1, 2))
    )
    assert three.high / three.low < 0.9 * two.high / two.low


def test_one_outline_tells_the_width_but_neither_speed_nor_d_nor_rho():
    """At one moment time has no unit: the speed's posterior is its prior, and no more."""
    tumour = grown()
    found = fitted(tumour, (0,))
    prior = PUBLISHED.speed_mm_per_day
    speed = interval(found, "front_speed_mm_per_day", share=0.9)
    assert speed.median == pytest.approx(prior.median, rel=1e-6)
    assert math.log(speed.high / speed.low) == pytest.approx(2 * 1.6449 * prior.spread, rel=1e-3)
    width = interval(found, "front_width_mm", share=0.9)
    assert width.low < tumour.law.front_width_mm < width.high
    known = math.exp(2 * 1.6449 * PUBLISHED.width_mm.spread)
    assert width.high / width.low < 0.7 * known
    for quantity, truth in (
        ("diffusion_white_mm2_per_day", tumour.law.diffusion_white_mm2_per_day),
        ("rate_per_day", tumour.law.rate_per_day),
    ):
        stated = interval(found, quantity, share=0.9)
        assert stated.low < truth < stated.high
        assert stated.high > 10 * stated.low


def test_treatment_in_between_is_taken_into_account():
    """A tumour that was irradiated has shrunk; who leaves the rays out finds a speed far too low."""
    tumour = grown(days=(0, 75, 150, 260), treated=True)
    known = interval(fitted(tumour, (0, 1, 2)), "front_speed_mm_per_day", share=0.9)
    truth = tumour.law.front_speed_mm_per_day
    assert known.low < truth < known.high
    ignored = interval(fitted(tumour, (0, 1, 2), Treatments()), "front_speed_mm_per_day", share=0.9)
    assert ignored.high < 0.7 * truth


def test_what_no_outline_can_tell_keeps_its_prior():
    found = fitted(grown(), (0, 1))
    spread = found.covariance.diag().sqrt()
    assert spread[NUMBERS.index("log_alpha")] == pytest.approx(PUBLISHED.alpha_per_gy.spread)
    assert spread[NUMBERS.index("log_kill")] == pytest.approx(PUBLISHED.log_kill.spread)


def test_intervals_hold_the_truth_of_tumours_of_many_speeds_and_widths():
    laws = [(0.05, 2.2), (0.07, 3.0), (0.1, 2.5), (0.13, 2.8)]
    within = []
    for number, (speed, width_mm) in enumerate(laws):
        start = (28.0 + number, 33.0 - number, 31.0 + 0.5 * number)
        tumour = grown(speed=speed, width_mm=width_mm, days=(0, 80), origin_mm=start)
        stated = interval(fitted(tumour, (0, 1)), "front_speed_mm_per_day", share=0.9)
        within.append(stated.low <= speed <= stated.high)
        assert stated.high < 1.8 * stated.low
    assert sum(within) >= 3


def test_a_forecast_from_exact_outlines_is_right():
    tumour = grown()
    found = fitted(tumour, (0, 1))
    ahead = forecast(
        found, tissue=tissue(SEEN_MM), treatments=Treatments(), days=[70, 140], samples=9, seed=1
    )
    assert ahead.visible.shape[:2] == (2, 9)
    volumes = ahead.volume_ml("whole")
    for volume, truth in zip(volumes, tumour.volumes_ml[1:], strict=True):
        assert volume.median().item() == pytest.approx(truth, rel=0.1)
    still = abs(math.log(tumour.volumes_ml[1] / tumour.volumes_ml[2]))
    off = (volumes[1] / tumour.volumes_ml[2]).log().abs().mean().item()
    assert off < still / 3
    assert volumes[1].min() < tumour.volumes_ml[2] < volumes[1].max()
    assert bool((ahead.volume_ml("core") < volumes).all())


def test_a_planned_course_changes_the_forecast():
    found = fitted(grown(), (0, 1))
    seen = tissue(SEEN_MM)
    rays = Irradiation(total_dose_gy=torch.full(seen.shape, DOSE_GY), days=(75, 76, 77, 78))
    left, planned = (
        forecast(found, tissue=seen, treatments=t, days=[250], samples=4, seed=1).volume_ml("whole")
        for t in (Treatments(), Treatments(irradiations=(rays,)))
    )
    assert bool((planned < 0.8 * left).all())


def test_every_candidate_goes_through_its_treatment_as_a_single_tumour_would():
    """``course`` with each member's own therapy is the second computation."""
    labels = tissue(5.0)
    laws = [
        Growth(
            diffusion_white_mm2_per_day=0.13 * n,
            diffusion_grey_mm2_per_day=0.02 * n,
            rate_per_day=0.02,
        )
        for n in (1, 2)
    ]
    cavity = torch.zeros(labels.shape, dtype=torch.bool)
    cavity[6:8, 5:8, 5:9] = True
    dose = torch.linspace(0, 50, labels.numel()).reshape(labels.shape)
    given = Treatments(
        irradiations=(Irradiation(total_dose_gy=dose, days=(12, 13, 13, 16)),),
        drugs=(Drug(days=(20, 30), half_life_day=4.0),),
        resections=(Resection(day=25, cavity=cavity),),
    )
    alphas, kills, half_lives = (0.02, 0.08), (0.4, 1.1), (30.0, 90.0)

    def world(law: Growth | list[Growth]):
        return medium(labels, law, spacing_mm=(5.0,) * 3, dtype=torch.float32, allow_coarse=True)

    together = world(laws)
    u = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) * (labels > CSF)
    days = [5, 22, 60]
    found = list(
        under_treatment(
            torch.stack([u, u]),
            together,
            treatments=given,
            answers=Answers(
                alpha_per_gy=torch.tensor(alphas),
                log_kill=torch.tensor(kills),
                clearance_half_life_day=torch.tensor(half_lives),
            ),
            days=days,
        )
    )
    for n, law in enumerate(laws):
        kill = Radiosensitivity(alpha_per_gy=alphas[n], beta_per_gy2=alphas[n] / 10)
        therapy = Therapy(
            fractions=radiotherapy(dose, kill, days=(12, 13, 13, 16)),
            doses=chemotherapy(log_kill_per_dose=kills[n], half_life_day=4.0, days=(20, 30)),
            resections=given.resections,
        )
        alone = evolve(
            newborn(u, day=5, resistant_share=0.0),
            world(law),
            therapy=therapy,
            clearance_half_life_day=half_lives[n],
            days=days,
        )
        for batch, cells in zip(found, alone, strict=True):
            torch.testing.assert_close(batch[n], cells.visible, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("off_mm", [-6.0, -1.0, 0.0, 2.0, 8.0])
def test_a_front_that_is_off_by_some_millimetres_is_told_to_be_so(off_mm):
    """The exact travelling wave, oblique to the grid."""
    width_mm, shape = 2.5, (24, 20, 16)
    normal = torch.tensor([0.83, 0.53, 0.175])
    axes = [torch.arange(n) * e for n, e in zip(shape, (2.5, 2.5, 3.0), strict=True)]
    x_mm = sum(
        n * axis for n, axis in zip(normal, torch.meshgrid(*axes, indexing="ij"), strict=True)
    )
    solid = torch.ones(shape, dtype=torch.bool)
    at = crossings(x_mm < 35.0, solid)
    u = (1 + torch.exp((x_mm - 35.0 + off_mm) / (math.sqrt(6) * width_mm))) ** -2
    found = distances_mm(
        u[None],
        at,
        density=0.25,
        solid=solid,
        front_width_mm=torch.tensor([width_mm]),
        spacing_mm=(2.5, 2.5, 3.0),
    )
    assert found.mean().item() == pytest.approx(off_mm, abs=0.12)
    assert found.std().item() < 2.5 / math.sqrt(12) + 0.1


def test_shifts_are_integrated_out_as_the_whole_covariance_would():
    """The inverse of the covariance, written out, is the second computation."""
    error = OutlineError(local_mm=0.7, patch_mm=5.0, shift_mm=0.3, habit_mm=0.8)
    mask = torch.zeros((9, 9, 9), dtype=torch.int64)
    mask[2:7, 2:7, 2:7] = LABELS["SNFH"]
    mask[3:6, 4:6, 3:5] = LABELS["ET"]
    solid = torch.ones(mask.shape, dtype=torch.bool)
    seen = [Outline(day=0, labels=mask), Outline(day=9, labels=mask.roll(1, 0))]
    shown = surfaces(seen, solid=solid, spacing_mm=(2.0, 2.0, 3.0), error=error)
    assert len(shown) == 4
    variance = torch.cat([surface.variance_mm2 for surface in shown])
    owner = torch.cat([torch.full_like(s.variance_mm2, n) for n, s in enumerate(shown)])
    kind = torch.cat([torch.full_like(s.variance_mm2, s.density) for s in shown])
    covariance = torch.diag(variance)
    covariance += error.shift_mm**2 * (owner[:, None] == owner)
    covariance += error.habit_mm**2 * (kind[:, None] == kind)
    draw = torch.Generator().manual_seed(4)
    a, b = (torch.randn((n, len(owner)), generator=draw, dtype=torch.float64) for n in (3, 2))
    sizes = [len(surface.variance_mm2) for surface in shown]
    found = product(
        torch.split(a, sizes, dim=1),
        torch.split(b, sizes, dim=1),
        [1 / surface.variance_mm2 for surface in shown],
        shown=shown,
        error=error,
    )
    torch.testing.assert_close(found, a @ torch.linalg.solve(covariance, b.T))


def test_an_outline_along_a_wall_says_nothing():
    solid = torch.zeros((6, 6, 6), dtype=torch.bool)
    solid[:3] = True
    assert len(crossings(solid, solid)) == 0


def test_an_origin_is_told_in_the_patients_own_millimetres():
    tumour = grown()
    plain = origin(fitted(tumour, (0,)), share=0.9)
    turned = torch.eye(4, dtype=torch.float64)
    turned[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned[:3, 3] = torch.tensor([100.0, -7.0, 3.0])
    found = fit(
        list(tumour.outlines[:1]),
        tissue=tissue(SEEN_MM),
        affine_mm=turned @ affine(),
        treatments=Treatments(),
        priors=PUBLISHED,
        error=EXACT,
    )
    x, y, z = origin(found, share=0.9)
    assert x.median == pytest.approx(100 - plain[1].median)
    assert y.median == pytest.approx(plain[0].median - 7)
    assert z.high == pytest.approx(plain[2].high + 3)
    assert y.high - y.low == pytest.approx(plain[0].high - plain[0].low)


def test_the_same_outlines_give_the_same_bytes():
    one, two = (fitted(grown(), (0, 1)) for _ in range(2))
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.covariance, two.covariance)
    assert torch.equal(draws(one, samples=5, seed=3), draws(two, samples=5, seed=3))


def test_samples_have_the_mean_and_spread_of_the_posterior():
    found = fitted(grown(), (0, 1))
    many = draws(found, samples=4000, seed=8)
    torch.testing.assert_close(many.mean(dim=0), found.mean, atol=1e-9, rtol=1e-9)
    ratio = many.std(dim=0) / found.covariance.diag().sqrt()
    assert bool(((ratio - 1).abs() < 0.06).all())
