"""The solver against closed forms and laws: heat, logistic, the exact travelling wave, symmetry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Growth, matched_share, proliferate, resolution
from oncofed_common.physics.lines import spread
from oncofed_common.physics.medium import Medium, fields, medium, refuse_coarse
from oncofed_common.physics.solver import flushed, grow

CSF, GREY, WHITE = 1, 2, 3
LAW = Growth(diffusion_white_mm2_per_day=0.13, diffusion_grey_mm2_per_day=0.02, rate_per_day=0.02)


def mixed_tissue(seed: int, shape: tuple[int, int, int] = (14, 12, 10)) -> torch.Tensor:
    """Random tissue with every label, in clumps of two voxels."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 4, [-(-n // 2) for n in shape], generator=draw)
    for dim in range(3):
        small = small.repeat_interleave(2, dim=dim)
    return small[: shape[0], : shape[1], : shape[2]]


def within(
    tissue: torch.Tensor, law: Growth = LAW, spacing_mm=(1.0, 1.0, 1.0), allow_coarse=True
) -> Medium:
    return medium(
        tissue, law, spacing_mm=spacing_mm, dtype=torch.float64, allow_coarse=allow_coarse
    )


def diffuse(u: torch.Tensor, where: Medium, dt_day: float) -> torch.Tensor:
    """A whole palindromic step of diffusion alone."""
    half = where.lines(dt_day)
    us = u[None]
    for along in (*half, *reversed(half)):
        us = spread(us, along)
    return us[0]


def blob(where: Medium, *, middle: tuple[float, float, float], size_mm: float) -> torch.Tensor:
    axes = [
        (torch.arange(n, dtype=torch.float64) - m) * h
        for n, m, h in zip(where.solid.shape, middle, where.spacing_mm, strict=True)
    ]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return torch.exp(-(x**2 + y**2 + z**2) / (2 * size_mm**2)) * where.solid


@given(seed=st.integers(0, 10_000), dt_day=st.floats(0.1, 7.0))
@settings(max_examples=20, deadline=None)
def test_diffusion_alone_neither_makes_nor_loses_cells(seed, dt_day):
    where = within(mixed_tissue(seed))
    u = torch.rand(where.solid.shape, dtype=torch.float64) * where.solid
    later = diffuse(u, where, dt_day)
    assert later.sum().item() == pytest.approx(u.sum().item(), rel=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_density_stays_between_nothing_and_full(seed):
    where = within(mixed_tissue(seed))
    draw = torch.Generator().manual_seed(seed)
    u = torch.randint(0, 2, where.solid.shape, generator=draw).double() * where.solid
    spread = diffuse(u, where, where.longest_step_day)
    assert spread.min() >= -1e-12
    assert spread.max() <= 1 + 1e-12
    later = grow(u, where, days=60.0)
    assert later.min() >= 0
    assert later.max() <= 1


def test_diffusion_alone_is_the_heat_kernel():
    spacing_mm = (1.0, 1.2, 0.8)
    where = within(torch.full((57, 47, 71), WHITE), spacing_mm=spacing_mm)
    middle, size_mm, days = (28.0, 23.0, 35.0), 4.5, 24.0
    u = blob(where, middle=middle, size_mm=size_mm)
    for _ in range(12):
        u = diffuse(u, where, days / 12)
    wider_mm = math.sqrt(size_mm**2 + 2 * LAW.diffusion_white_mm2_per_day * days)
    exact = (size_mm / wider_mm) ** 3 * blob(where, middle=middle, size_mm=wider_mm)
    assert (u - exact).abs().max() < 0.005 * exact.max()


@given(u=st.just(0.0) | st.floats(1e-9, 1.0), rate=st.floats(0.001, 0.2), day=st.floats(0.1, 400.0))
@settings(max_examples=50, deadline=None)
def test_growth_without_neighbours_is_the_logistic_curve(u, rate, day):
    start = torch.full((1, 1, 1), u, dtype=torch.float64)
    exact = 0.0 if u == 0 else 1 / (1 + (1 - u) / u * math.exp(-rate * day))
    found = proliferate(
        start, rate_per_day=torch.tensor(rate, dtype=torch.float64), dt_day=day
    ).item()
    assert found == pytest.approx(exact, rel=1e-9, abs=0)
    where = within(torch.full((1, 1, 1), WHITE), law=LAW)
    exact = 0.0 if u == 0 else 1 / (1 + (1 - u) / u * math.exp(-LAW.rate_per_day * day))
    assert grow(start, where, days=day).item() == pytest.approx(exact, rel=1e-9, abs=0)


@pytest.mark.parametrize(("dx_over_width", "allowed"), [(0.5, 0.02), (1.0, 0.05)])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_plane_front_travels_at_the_exact_speed(dx_over_width, allowed, dim):
    """Ablowitz & Zeppetella 1979: u = (1 + exp(x / (sqrt(6) w)))^-2 moves at 5 sqrt(D rho / 6)."""
    edge_mm = dx_over_width * LAW.front_width_mm
    shape = [1, 1, 1]
    shape[dim] = round(110 / dx_over_width)
    where = within(torch.full(shape, WHITE), spacing_mm=(edge_mm,) * 3)
    x_mm = torch.arange(shape[dim], dtype=torch.float64) * edge_mm - 30 * LAW.front_width_mm
    u = (1 + torch.exp(x_mm / (math.sqrt(6) * LAW.front_width_mm))) ** -2
    u = u.reshape(shape)
    speeds = []
    for _ in range(2):
        later = grow(u, where, days=500.0)
        speeds.append(((later - u).sum() * edge_mm / 500).item())
        u = later
    exact = 5 * math.sqrt(LAW.diffusion_white_mm2_per_day * LAW.rate_per_day / 6)
    assert speeds == pytest.approx([exact, exact], rel=allowed)
    assert exact > LAW.front_speed_mm_per_day


@pytest.mark.parametrize(("label", "share"), [(WHITE, 1.0), (GREY, 1 / 6.5)])
def test_each_tissue_has_a_front_of_its_own_speed(label, share):
    """D of white and of grey matter, each in a brain of that tissue alone."""
    d = LAW.diffusion_white_mm2_per_day * share
    assert d in (LAW.diffusion_white_mm2_per_day, pytest.approx(LAW.diffusion_grey_mm2_per_day))
    width_mm, edge_mm = math.sqrt(d / LAW.rate_per_day), 0.5 * math.sqrt(d / LAW.rate_per_day)
    where = within(torch.full((220, 1, 1), label), spacing_mm=(edge_mm,) * 3)
    x_mm = torch.arange(220, dtype=torch.float64) * edge_mm - 30 * width_mm
    u = ((1 + torch.exp(x_mm / (math.sqrt(6) * width_mm))) ** -2).reshape(220, 1, 1)
    later = grow(u, where, days=500.0)
    speed = ((later - u).sum() * edge_mm / 500).item()
    assert speed == pytest.approx(5 * math.sqrt(d * LAW.rate_per_day / 6), rel=0.02)


def test_space_is_of_second_order():
    """The heat kernel on voxels of half the length: a quarter of the error, time steps the same."""
    errors = []
    for count, edge_mm in ((25, 2.0), (49, 1.0)):
        where = within(torch.full((count, 3, 3), WHITE), spacing_mm=(edge_mm, 1.0, 1.0))
        x_mm = (torch.arange(count).double() - (count - 1) / 2) * edge_mm
        u = torch.exp(-(x_mm**2) / (2 * 4.0**2)).reshape(count, 1, 1).repeat(1, 3, 3)
        for _ in range(100):
            u = diffuse(u, where, 0.5)
        wide_mm = math.sqrt(4.0**2 + 2 * LAW.diffusion_white_mm2_per_day * 50)
        exact = 4.0 / wide_mm * torch.exp(-(x_mm**2) / (2 * wide_mm**2))
        errors.append((u[:, 1, 1] - exact).abs().max().item())
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_a_compact_tumour_approaches_the_least_speed_from_below():
    """Bramson 1983: 2 sqrt(D rho) less 3/(4 rho t) of itself in the long run, for compact starts."""
    where = within(torch.full((700, 1, 1), WHITE), spacing_mm=(1.0, 1.0, 1.0))
    u = torch.zeros(700, 1, 1, dtype=torch.float64)
    u[:5] = 1
    early, late = 1500.0, 1900.0
    before = grow(u, where, days=early)
    after = grow(before, where, days=late - early)
    speed = (after - before).sum().item() / (late - early)
    law = LAW.front_speed_mm_per_day
    exact = law * (1 - 0.75 * math.log(late / early) / (LAW.rate_per_day * (late - early)))
    assert speed == pytest.approx(exact, rel=0.01)
    assert speed < law


def test_no_cell_crosses_fluid_or_leaves_the_brain():
    tissue = torch.full((21, 12, 12), WHITE)
    tissue[10] = CSF
    tissue[:, :, 11] = 0
    where = within(tissue)
    u = grow(
        blob(where, middle=(4, 6, 6), size_mm=2.0).mul(torch.arange(21)[:, None, None] < 10),
        where,
        days=700.0,
    )
    assert u[:10, :, :11].min() > 0.9
    assert u[10:].abs().max() == 0
    assert u[:, :, 11].abs().max() == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_permuting_or_mirroring_the_axes_permutes_the_answer(order):
    spacing_mm = (1.0, 1.4, 0.8)

    def answer(tissue, u, spacing):
        where = within(tissue, spacing_mm=spacing)
        return grow(u * where.solid, where, days=90.0)

    turned = tuple(spacing_mm[d] for d in order)
    uniform = torch.full((12, 10, 14), WHITE)
    u = blob(within(uniform, spacing_mm=spacing_mm), middle=(4, 5, 8), size_mm=2.0)
    plain = answer(uniform, u, spacing_mm)
    other = answer(uniform.permute(order).flip(0), u.permute(order).flip(0), turned)
    assert (other.flip(0) - plain.permute(order)).abs().max() < 1e-5

    mixed = mixed_tissue(3, (12, 10, 14)).clamp(min=CSF)
    mixed[2:7, 3:8, 6:11] = WHITE
    plain = answer(mixed, u, spacing_mm)
    other = answer(mixed.permute(order).flip(0), u.permute(order).flip(0), turned)
    difference = (other.flip(0) - plain.permute(order)).abs().sum()
    assert difference < 3e-3 * plain.sum()


def test_the_longest_step_costs_little_accuracy():
    """Time error of ``grow`` against steps ten times shorter, and its order, in mixed tissue."""
    tissue = torch.full((30, 30, 30), WHITE)
    tissue[:, 18:] = GREY
    tissue[22:, :, :10] = CSF
    where = within(tissue)
    u = 0.8 * blob(where, middle=(14, 15, 13), size_mm=2.5)
    dt_day = where.longest_step_day
    total = 24 * dt_day

    def stepped(pieces: int) -> torch.Tensor:
        v = u
        for _ in range(pieces):
            v = grow(v, where, days=total / pieces)
        return v

    exact = stepped(24 * 16)
    coarse = ((stepped(24) - exact).abs().sum() / exact.sum()).item()
    fine = ((stepped(48) - exact).abs().sum() / exact.sum()).item()
    assert coarse < 0.002
    assert 3 < coarse / fine < 5


def test_distance_and_time_scale_together():
    """Twice the length with four times D is the same tumour."""
    doubled = Growth(
        diffusion_white_mm2_per_day=4 * LAW.diffusion_white_mm2_per_day,
        diffusion_grey_mm2_per_day=4 * LAW.diffusion_grey_mm2_per_day,
        rate_per_day=LAW.rate_per_day,
    )
    tissue = mixed_tissue(5)
    small = within(tissue)
    large = within(tissue, doubled, spacing_mm=(2.0, 2.0, 2.0))
    u = torch.rand(small.solid.shape, dtype=torch.float64) * small.solid
    torch.testing.assert_close(grow(u, small, days=50.0), grow(u, large, days=50.0))


def test_a_front_narrower_than_a_voxel_is_refused_and_the_limit_is_not():
    width_mm, grey_mm = LAW.front_width_mm, LAW.front_width_grey_mm
    assert resolution(LAW, (1.0, width_mm, 1.0)).white == pytest.approx(1)
    assert resolution(LAW, (1.0, 1.0, 1.0)).grey == pytest.approx(1 / grey_mm)
    white, both = torch.full((3, 3, 3), WHITE), torch.full((3, 3, 3), WHITE)
    both[0] = GREY
    refuse_coarse(resolution(LAW, (width_mm - 1e-9, 1.0, 1.0)), white)
    for tissue, edge, named in ((white, 1.01 * width_mm, "white"), (both, 1.01 * grey_mm, "grey")):
        with pytest.raises(PhysicsRefusal, match=f"in {named}; allowed: 1 at most") as caught:
            within(tissue, spacing_mm=(1.0, 1.0, edge), allow_coarse=False)
        assert caught.value.code == "grid_too_coarse"
    allowed = within(both, spacing_mm=(1.0, 1.0, 1.5 * width_mm))
    assert allowed.resolution is not None
    assert allowed.resolution.coarse == ("white", "grey")


@pytest.mark.parametrize("dx_over_width", [1.5, 2.0, 3.0])
def test_a_front_on_a_coarse_grid_is_matched_to_its_true_speed(dx_over_width):
    """Against the lattice's own pulled front with Bramson's correction, 3 / (2 λ t); without the match
    the same front is 6 to 20 % too fast."""
    edge_mm = dx_over_width * LAW.front_width_mm
    theta = dx_over_width
    for _ in range(50):
        theta = dx_over_width / 2 + math.tanh(theta / 2)
    decay = theta / dx_over_width
    early, late = 1500.0, 3000.0
    speeds = {}
    matched = within(
        torch.full((round(190 / dx_over_width), 1, 1), WHITE), spacing_mm=(edge_mm,) * 3
    )
    plain = fields(
        torch.where(matched.solid, LAW.diffusion_white_mm2_per_day, 0.0).double(),
        matched.rate_per_day,
        spacing_mm=matched.spacing_mm,
    )
    for name, where in (("matched", matched), ("plain", plain)):
        u = torch.zeros(where.solid.shape, dtype=torch.float64)
        u[:3] = 1
        before = grow(u, where, days=early)
        after = grow(before, where, days=late - early)
        speeds[name] = (after - before).sum().item() * edge_mm / (late - early)
    span = LAW.rate_per_day * (late - early)
    exact = LAW.front_speed_mm_per_day * (1 - 0.75 * math.log(late / early) / (decay * span))
    assert speeds["matched"] == pytest.approx(exact, rel=0.01)
    assert speeds["matched"] < LAW.front_speed_mm_per_day
    assert speeds["plain"] > 1.04 * speeds["matched"]


@given(ratio=st.floats(1e-3, 5.0))
@settings(max_examples=30, deadline=None)
def test_the_matched_share_gives_the_least_speed_of_the_lattice(ratio):
    """Minimise (rho + 2 D'/h² (cosh θ - 1)) h / θ on a fine mesh: 2 sqrt(D rho) with D = rho = 1."""
    d = matched_share(ratio)
    theta = torch.linspace(1e-3, 8.0, 400_000, dtype=torch.float64) * max(ratio, 0.2)
    speed = (1 + 2 * d / ratio**2 * (torch.cosh(theta) - 1)) * ratio / theta
    assert speed.min().item() == pytest.approx(2, rel=1e-5)
    assert 0 < d <= 1


def test_gradients_through_the_solver_are_those_of_finite_differences():
    draw = torch.Generator().manual_seed(1)
    d = (torch.rand(4, 5, 3, dtype=torch.float64, generator=draw) * 0.3 + 0.05).requires_grad_()
    rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    u = torch.rand(4, 5, 3, dtype=torch.float64, generator=draw).requires_grad_()

    def later(d, rate, u):
        return grow(u, fields(d, rate, spacing_mm=(1.0, 1.3, 0.9)), days=19.0)

    assert torch.autograd.gradcheck(later, (d, rate, u), raise_exception=True)


def test_a_batch_of_laws_is_each_law_alone():
    laws = [
        Growth(diffusion_white_mm2_per_day=d, diffusion_grey_mm2_per_day=d / 7, rate_per_day=r)
        for d, r in ((0.05, 0.02), (0.2, 0.012), (0.1, 0.031))
    ]
    tissue = torch.stack([mixed_tissue(seed) for seed in (3, 4, 5)])
    shared = tissue[0]
    u = torch.rand(tissue.shape, dtype=torch.float64)

    def together(tissue):
        where = medium(
            tissue, laws, spacing_mm=(1.0, 1.1, 0.9), dtype=torch.float64, allow_coarse=True
        )
        return grow(u * where.solid, where, days=40.0), where

    for maps in (tissue, shared):
        many, where = together(maps)
        for row, law in enumerate(laws):
            alone = within(maps if maps.ndim == 3 else maps[row], law, (1.0, 1.1, 0.9))
            pieces = math.ceil(40.0 / where.longest_step_day)
            one = u[row] * alone.solid
            for _ in range(pieces):
                one = grow(one, alone, days=40.0 / pieces)
            torch.testing.assert_close(many[row], one, rtol=1e-10, atol=1e-13)


def test_single_precision_is_double_precision_to_six_digits():
    tissue = mixed_tissue(8)
    double = within(tissue)
    single = medium(tissue, LAW, spacing_mm=(1.0, 1.0, 1.0), dtype=torch.float32, allow_coarse=True)
    u = torch.rand(tissue.shape, dtype=torch.float64) * double.solid
    wide = grow(u, double, days=100.0)
    narrow = grow(u.float(), single, days=100.0)
    assert (narrow - wide).abs().max() < 2e-5


def test_tiny_numbers_are_flushed_inside_and_left_alone_outside():
    tiny = torch.tensor(1e-40)
    assert (tiny * 1).item() > 0
    with flushed():
        assert (tiny * 1).item() == 0
    assert (tiny * 1).item() > 0


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf])
def test_a_law_of_growth_needs_positive_numbers(bad):
    with pytest.raises(PhysicsRefusal, match="above zero"):
        Growth(diffusion_white_mm2_per_day=0.1, diffusion_grey_mm2_per_day=0.1, rate_per_day=bad)


def test_an_unknown_tissue_and_a_negative_time_are_refused():
    with pytest.raises(PhysicsRefusal, match="unknown label"):
        within(torch.full((2, 2, 2), 4))
    where = within(torch.full((2, 2, 2), WHITE))
    with pytest.raises(PhysicsRefusal, match="days of growth"):
        grow(torch.zeros(2, 2, 2, dtype=torch.float64), where, days=-1.0)
