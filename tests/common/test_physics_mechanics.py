"""The mass effect: a sphere in an elastic medium, fluid that gives way, a skull that does not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.mechanics import Swelling, displacement_mm

BRAIN = Swelling(strain=0.1, poisson_ratio=0.4)


def radius(shape, spacing_mm) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of every voxel from the middle, and the vectors to it."""
    axes = [
        (torch.arange(n).double() - (n - 1) / 2) * h for n, h in zip(shape, spacing_mm, strict=True)
    ]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return x.norm(dim=0), x


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.25, 0.8)])
def test_a_sphere_in_a_clamped_elastic_sphere_is_the_closed_form(spacing_mm):
    """Inside r <= a: k β r/3 (1 - a³/R³); outside k β a³/3 (1/r² - r/R³); along r and nothing else."""
    shape = tuple(round(62 / h) | 1 for h in spacing_mm)
    r, x = radius(shape, spacing_mm)
    a, outer = 11.0, 28.0
    found = displacement_mm(
        (r < a).double(),
        inside=r < outer,
        yielding=torch.ones(shape).double(),
        swelling=BRAIN,
        spacing_mm=spacing_mm,
    )
    outward = (found * x).sum(dim=0) / r.clamp(min=1e-9)
    k_beta = 0.1 * 1.4 / 0.6
    exact = torch.where(
        r <= a,
        k_beta * r / 3 * (1 - (a / outer) ** 3),
        k_beta * a**3 / 3 * (1 / r.clamp(min=1) ** 2 - r / outer**3),
    )
    largest = k_beta * a / 3
    for where in ((r > 3) & (r < a - 2), (r > a + 2) & (r < outer - 3)):
        assert (outward - exact)[where].abs().max() < 0.06 * largest
        assert (outward - exact)[where].abs().mean() < 0.02 * largest
        across = found - outward * x / r.clamp(min=1e-9)
        assert across.norm(dim=0)[where].max() < 0.06 * largest


def test_in_a_large_skull_a_sphere_moves_tissue_as_in_an_infinite_medium():
    spacing_mm = (2.0, 2.0, 2.0)
    r, x = radius((81, 81, 81), spacing_mm)
    a = 12.0
    found = displacement_mm(
        (r < a).double(),
        inside=r < 80,
        yielding=torch.ones_like(r),
        swelling=BRAIN,
        spacing_mm=spacing_mm,
    )
    outward = (found * x).sum(dim=0) / r.clamp(min=1e-9)
    shell = (r > 16) & (r < 22)  # the skull, 80 mm away, takes 2 % at most
    exact = 0.1 * 1.4 / 0.6 * a**3 / (3 * r**2)
    assert (outward[shell] / exact[shell]).mean().item() == pytest.approx(1, rel=0.03)


def ventricle() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A skull, a ventricle in its middle, a tumour at its side."""
    r, x = radius((41, 41, 41), (1.0, 1.0, 1.0))
    fluid = ((x[0] / 4) ** 2 + (x[1] / 8) ** 2 + (x[2] / 6) ** 2 < 1).double()
    tumour = ((x - torch.tensor([12.0, 0, 0])[:, None, None, None]).norm(dim=0) < 6).double()
    return r < 19, fluid, tumour


def test_a_ventricle_narrows_by_as_much_as_the_tumour_adds():
    inside, fluid, tumour = ventricle()
    moved = displacement_mm(
        tumour, inside=inside, yielding=fluid, swelling=BRAIN, spacing_mm=(1.0, 1.0, 1.0)
    )
    near, far = moved[0, 24, 20, 20], moved[0, 16, 20, 20]
    assert near < -0.2
    assert abs(far) < abs(near)
    lost = 0.0
    for dim in range(3):
        lost += float((torch.gradient(moved[dim], dim=dim)[0] * fluid).sum())
    gained = BRAIN.source_per_density * float(tumour.sum())
    assert -lost == pytest.approx(gained, rel=0.15)


def test_nothing_leaves_the_skull():
    inside, fluid, tumour = ventricle()
    moved = displacement_mm(
        tumour, inside=inside, yielding=fluid, swelling=BRAIN, spacing_mm=(1.0, 1.0, 1.0)
    )
    assert (moved * ~inside).abs().max() == 0
    _, x = radius(inside.shape, (1.0, 1.0, 1.0))
    r = x.norm(dim=0)
    rim = inside & (r > 18)
    outward = ((moved * x).sum(dim=0) / r.clamp(min=1e-9))[rim]
    assert outward.abs().max() < 0.5 * moved.norm(dim=0).max()


@given(strain=st.floats(0.01, 0.4))
@settings(max_examples=5, deadline=None)
def test_displacement_grows_in_proportion_to_the_strain(strain):
    inside, fluid, tumour = ventricle()

    def of(beta):
        return displacement_mm(
            tumour,
            inside=inside,
            yielding=fluid,
            swelling=Swelling(strain=beta, poisson_ratio=0.4),
            spacing_mm=(1.0, 1.0, 1.0),
        )

    torch.testing.assert_close(of(strain), of(0.1) * strain / 0.1, rtol=1e-6, atol=1e-9)


def test_no_tumour_and_no_strain_move_nothing():
    inside, fluid, tumour = ventricle()
    still = Swelling(strain=0.0, poisson_ratio=0.4)
    for density, swelling in ((tumour * 0, BRAIN), (tumour, still)):
        moved = displacement_mm(
            density, inside=inside, yielding=fluid, swelling=swelling, spacing_mm=(1.0, 1.0, 1.0)
        )
        assert torch.equal(moved, torch.zeros_like(moved))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda: Swelling(strain=-0.1, poisson_ratio=0.4), "swelling"),
        (lambda: Swelling(strain=math.nan, poisson_ratio=0.4), "swelling"),
        (lambda: Swelling(strain=0.1, poisson_ratio=0.5), "swelling"),
        (
            lambda: displacement_mm(
                torch.ones(3, 3, 3),
                inside=torch.ones(3, 3, 3, dtype=torch.bool),
                yielding=torch.zeros(3, 3, 3),
                swelling=BRAIN,
                spacing_mm=(1.0, 1.0, 1.0),
            ),
            "nothing_yields",
        ),
    ],
)
def test_mechanics_that_cannot_be_are_refused(fault, code):
    with pytest.raises(PhysicsRefusal) as caught:
        fault()
    assert caught.value.code == code
