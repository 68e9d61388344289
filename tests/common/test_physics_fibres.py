"""Diffusion along fibres: Selling's decomposition, the oblique heat kernel, and no way over fluid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.lattice import lattice, selling
from oncofed_common.physics.medium import Medium, fibres, medium
from oncofed_common.physics.solver import grow

CSF, GREY, WHITE = 1, 2, 3
LAW = Growth(diffusion_white_mm2_per_day=0.13, diffusion_grey_mm2_per_day=0.02, rate_per_day=0.02)
UNIT = (1.0, 1.0, 1.0)


def turned(seed: int) -> torch.Tensor:
    """A random rotation."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=draw)).Q


def elongated(seed: int, ratio: float) -> torch.Tensor:
    """A tensor of trace 3 with one long axis in a random direction."""
    share = 3 / (ratio + 2)
    r = turned(seed)
    return r @ torch.diag(torch.tensor([ratio * share, share, share]).double()) @ r.T


def everywhere(tensor: torch.Tensor, shape) -> torch.Tensor:
    return tensor[..., None, None, None].expand(3, 3, *shape).clone()


def along(tissue: torch.Tensor, tensor: torch.Tensor, spacing_mm=UNIT) -> Medium:
    return fibres(
        tissue,
        LAW,
        tensor=everywhere(tensor, tissue.shape),
        spacing_mm=spacing_mm,
        dtype=torch.float64,
        allow_coarse=True,
    )


@given(seed=st.integers(0, 10_000), ratio=st.floats(1.0, 12.0))
@settings(max_examples=40, deadline=None)
def test_a_tensor_is_the_sum_of_its_links(seed, ratio):
    d = elongated(seed, ratio)[None]
    offsets, weights = selling(d)
    again = torch.einsum("vk,vka,vkb->vab", weights, offsets.double(), offsets.double())
    torch.testing.assert_close(again, d, rtol=1e-9, atol=1e-9)
    assert weights.min() >= 0


def test_an_isotropic_tensor_links_the_six_neighbours_only():
    links = lattice(
        everywhere(torch.eye(3).double(), (4, 4, 4)),
        solid=torch.ones(4, 4, 4, dtype=torch.bool),
        spacing_mm=(1.0, 2.0, 0.5),
    )
    found = {e: w.max().item() for e, w in links.weight_per_day.items()}
    assert found == pytest.approx({(1, 0, 0): 1.0, (0, 1, 0): 0.25, (0, 0, 1): 4.0})


@pytest.mark.parametrize("seed", range(3))
def test_diffusion_along_oblique_fibres_is_the_tilted_heat_kernel(seed):
    """A Gaussian stays one: its covariance grows by 2 D t, off the diagonal too."""
    tensor = elongated(seed, 5.0)
    tissue = torch.full((37, 41, 39), WHITE)
    spacing_mm = (1.0, 0.9, 1.1)
    where = along(tissue, tensor, spacing_mm)
    assert where.links is not None
    grids = torch.meshgrid(
        *[
            (torch.arange(n).double() - (n - 1) / 2) * h
            for n, h in zip(tissue.shape, spacing_mm, strict=True)
        ],
        indexing="ij",
    )
    x = torch.stack(grids)
    cov = 9.0 * torch.eye(3).double()
    u = torch.exp(-0.5 * torch.einsum("axyz,ab,bxyz->xyz", x, torch.linalg.inv(cov), x))
    days = 20.0
    later = where.links.spread(u[None], dt_day=days)[0]
    wider = cov + 2 * days * LAW.diffusion_white_mm2_per_day * tensor
    exact = math.sqrt(torch.linalg.det(cov) / torch.linalg.det(wider)) * torch.exp(
        -0.5 * torch.einsum("axyz,ab,bxyz->xyz", x, torch.linalg.inv(wider), x)
    )
    assert (later - exact).abs().max() < 0.02 * exact.max()
    measured = torch.einsum("axyz,bxyz,xyz->ab", x, x, later) / later.sum()
    torch.testing.assert_close(measured, wider, rtol=5e-4, atol=1e-3)  # exact but for the walls
    isotropic = cov + 2 * days * LAW.diffusion_white_mm2_per_day * torch.eye(3)
    assert (measured - isotropic).abs().max() > 1.0


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_fibres_neither_make_nor_lose_cells_and_keep_density_within_bounds(seed):
    draw = torch.Generator().manual_seed(seed)
    tissue = torch.randint(0, 4, (9, 8, 10), generator=draw)
    where = along(tissue, elongated(seed, 6.0))
    assert where.links is not None
    u = torch.randint(0, 2, tissue.shape, generator=draw).double() * where.solid
    later = where.links.spread(u[None], dt_day=30.0)[0]
    assert later.sum().item() == pytest.approx(u.sum().item(), rel=1e-12)
    assert later.min() >= 0
    assert later.max() <= 1 + 1e-12
    assert (later * ~where.solid).abs().max() == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("normal", [(1, 0, 0), (1, 1, 0), (1, 1, 1)])
def test_no_link_jumps_over_fluid(seed, normal):
    """A sheet of fluid one voxel thick, straight or slanted, holds whatever the fibres' direction."""
    level = sum(
        n * x
        for n, x in zip(normal, torch.meshgrid(*[torch.arange(12)] * 3, indexing="ij"), strict=True)
    )
    middle = 6 * sum(normal)
    where = along(torch.where(level == middle, CSF, WHITE), elongated(seed, 8.0))
    side = level < middle
    u = 0.5 * side.double()
    later = grow(u, where, days=100.0)
    assert (later * ~side).abs().max() == 0
    assert (later * side).sum() > u.sum()


def test_a_cavity_cuts_every_link_that_touches_it():
    tissue = torch.full((12, 10, 10), WHITE)
    cavity = torch.zeros(tissue.shape, dtype=torch.bool)
    cavity[6] = True
    where = along(tissue, elongated(1, 8.0)).without(cavity)
    u = torch.zeros(tissue.shape, dtype=torch.float64)
    u[:6] = 0.3
    later = grow(u, where, days=100.0)
    assert later[6:].abs().max() == 0
    assert later[:6].min() > 0.3


def test_round_tensors_give_the_tumour_of_the_implicit_solver():
    """Two schemes that share no code agree to their errors in time."""
    tissue = torch.full((24, 22, 20), WHITE)
    tissue[4:6, :9] = CSF
    tissue[:, 18:] = 0
    plain = medium(tissue, LAW, spacing_mm=UNIT, dtype=torch.float64, allow_coarse=False)
    round_ones = along(tissue, torch.eye(3).double())
    u = torch.zeros(tissue.shape, dtype=torch.float64)
    u[10:13, 9:12, 9:12] = 0.5
    one, other = u, u
    for _ in range(60):
        one, other = grow(one, plain, days=2.0), grow(other, round_ones, days=2.0)
    assert (one - other).abs().sum() < 1e-3 * one.sum()


def test_a_tumour_is_longer_along_its_fibres():
    """Front speed goes with the root of D along each direction: 5 to 1 here."""
    tissue = torch.full((61, 31, 31), WHITE)
    tensor = torch.diag(torch.tensor([15 / 7, 3 / 7, 3 / 7]).double())
    where = along(tissue, tensor)
    u = torch.zeros(tissue.shape, dtype=torch.float64)
    u[28:33, 13:18, 13:18] = 0.8
    seen = grow(u, where, days=400.0) > 0.25
    lengths = [int(seen.any(dim=d[0]).any(dim=d[1]).sum()) for d in ((2, 1), (2, 0), (1, 0))]
    assert lengths[1] == lengths[2]
    assert lengths[0] / lengths[1] == pytest.approx(math.sqrt(5), rel=0.25)


@pytest.mark.parametrize(
    "bad",
    [
        torch.diag(torch.tensor([1.0, 1.0, -0.1])),
        torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        torch.full((3, 3), math.nan),
        elongated(3, 1e5),
    ],
)
def test_tensors_that_cannot_be_carried_are_refused(bad):
    tissue = torch.full((5, 5, 5), WHITE)
    with pytest.raises(PhysicsRefusal) as caught:
        along(tissue, bad.double())
    assert caught.value.code == "tensor"
