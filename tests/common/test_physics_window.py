"""Computing only where the tumour is: the same tumour, to a bound that is known beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from oncofed_common.physics import window
from oncofed_common.physics.course import evolve, newborn
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.medium import Medium, medium
from oncofed_common.physics.solver import grow
from oncofed_common.physics.therapy import Radiosensitivity, Therapy, chemotherapy, radiotherapy

LAW = Growth(diffusion_white_mm2_per_day=0.13, diffusion_grey_mm2_per_day=0.02, rate_per_day=0.025)


def brain(rate: float = 0.025) -> Medium:
    tissue = torch.full((70, 60, 64), 3)
    tissue[:, 40:] = 2
    tissue[30:32, :20] = 1
    law = Growth(
        diffusion_white_mm2_per_day=0.13, diffusion_grey_mm2_per_day=0.02, rate_per_day=rate
    )
    return medium(tissue, law, spacing_mm=(1.5, 1.5, 1.5), dtype=torch.float64, allow_coarse=True)


def clump(within: Medium, at=(20, 25, 30)) -> torch.Tensor:
    axes = [torch.arange(n).double() - m for n, m in zip(within.solid.shape, at, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return 0.8 * torch.exp(-(x**2 + y**2 + z**2) / 8) * within.solid


def everywhere(u: torch.Tensor, within: Medium, days: float) -> torch.Tensor:
    """The same steps on the whole grid: asking for gradients switches the boxes off."""
    return grow(u.clone().requires_grad_(), within, days=days).detach()


@pytest.mark.parametrize("days", [10.0, 120.0, 400.0])
def test_a_tumour_in_its_box_is_the_tumour_of_the_whole_grid(days):
    within = brain()
    u = clump(within)
    difference = (grow(u, within, days=days) - everywhere(u, within, days)).abs().max().item()
    assert difference < 10 * window.DROPPED
    if days == 10.0:
        assert difference > 0


def test_a_second_tumour_far_away_is_not_forgotten():
    """However small it is at first: here it needs all the time there is to grow."""
    within = brain()
    seedling = 1e-7 * clump(within, at=(55, 12, 50))
    u = clump(within) + seedling
    found, exact = grow(u, within, days=500.0), everywhere(u, within, 500.0)
    assert (found - exact).abs().max() < 10 * window.DROPPED
    assert exact[45:, :, 40:].max() > 1e-4


def test_a_front_that_reaches_the_face_of_its_box_is_computed_again_in_a_larger_one(monkeypatch):
    within = brain()
    u = clump(within)
    exact = everywhere(u, within, 200.0)
    monkeypatch.setattr(window, "MARGIN", 1)
    monkeypatch.setattr(window, "STEPS", 30)
    assert (grow(u, within, days=200.0) - exact).abs().max() < 10 * window.DROPPED
    monkeypatch.setattr(window, "_touches", lambda *a, **k: False)
    assert (grow(u, within, days=200.0) - exact).abs().max() > 1e-3


def test_what_is_left_out_is_less_the_longer_it_may_still_grow():
    """The limit is DROPPED exp(-rho T): without it a seedling grows to be missed."""
    rate, days = 0.025, 500.0
    assert window.DROPPED * math.exp(-rate * days) * math.exp(rate * days) == pytest.approx(
        window.DROPPED
    )
    within = brain(rate)
    seedling = 1e-9 * clump(within, at=(55, 12, 50))
    u = clump(within) + seedling
    exact = everywhere(u, within, days)
    assert exact[45:, :, 40:].max() > 100 * window.DROPPED
    assert (grow(u, within, days=days) - exact).abs().max() < 10 * window.DROPPED


def test_treatment_in_a_box_is_treatment_on_the_whole_grid():
    within = brain()
    dose = torch.full(within.solid.shape, 30.0, dtype=torch.float64)
    soft = Radiosensitivity(alpha_per_gy=0.03, beta_per_gy2=0.003)
    therapy = Therapy(
        fractions=radiotherapy(dose, soft, days=[20, 21, 22, 23, 24]),
        doses=chemotherapy(log_kill_per_dose=0.2, half_life_day=2.0, days=[60, 61]),
    )
    start = newborn(clump(within), day=0, resistant_share=0.05)
    told: list[float] = []

    def states(cells):
        return list(
            evolve(
                cells,
                within,
                therapy=therapy,
                clearance_half_life_day=60.0,
                days=[40, 150],
                on_step=told.append,
            )
        )

    boxed = states(start)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(150)
    tracked = newborn(clump(within).requires_grad_(), day=0, resistant_share=0.05)
    for found, exact in zip(boxed, states(tracked), strict=True):
        for name in ("sensitive", "resistant", "debris"):
            difference = getattr(found, name) - getattr(exact, name).detach()
            assert difference.abs().max() < 30 * window.DROPPED


def test_an_empty_brain_stays_empty():
    within = brain()
    nothing = torch.zeros(within.solid.shape, dtype=torch.float64)
    assert torch.equal(grow(nothing, within, days=100.0), nothing)
