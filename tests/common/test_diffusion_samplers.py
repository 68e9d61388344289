"""Samplers against the one case that has a closed form: Gaussian data.

For x ~ N(m, s^2) the expected clean value is m + alpha s^2 (x_t - alpha m) / (alpha^2 s^2 + sigma^2),
and the probability flow maps noise e to m + s e exactly.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.schedulers import DDPMScheduler

from oncofed_common.diffusion import noise
from oncofed_common.diffusion.path import Whitened, angle, length, noise_of
from oncofed_common.diffusion.processes import PROCESSES as NAMED
from oncofed_common.diffusion.processes.ddpm import Ddpm
from oncofed_common.diffusion.processes.rectified_flow import RectifiedFlow
from oncofed_common.diffusion.processes.score_sde import ScoreSde
from oncofed_common.diffusion.samplers import (
    DISTILLED,
    DISTILLED_EVALUATIONS,
    MOST_EVALUATIONS,
    SAMPLERS,
    ancestral,
    angular,
    follow,
    second_order,
)

MEAN, SPREAD = 0.7, 0.4
PROCESSES = [RectifiedFlow(shift=1.0), *NAMED.values()]
ORDER = {"first_order": 1, "second_order": 2, "heun": 2, "angular": 2}


def _none():
    raise AssertionError("a deterministic sampler needs no fresh noise")


def _denoiser(process, *, spread=SPREAD, counted=None):
    def expected(noised, time):
        if counted is not None:
            counted.append(float(time))
        alpha, sigma = process.alpha(time), process.sigma(time)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return MEAN + gain * (noised - alpha * MEAN)

    return expected


def _error(name, process, evaluations):
    found = SAMPLERS[name](
        _denoiser(process),
        process,
        torch.tensor([[1.0]], dtype=torch.float64),
        evaluations=evaluations,
        fresh=_none,
    )
    alpha, sigma = (
        f(torch.tensor(1.0, dtype=torch.float64)) for f in (process.alpha, process.sigma)
    )
    start = (1.0 - alpha * MEAN) / torch.hypot(alpha * SPREAD, sigma)
    return abs(found.item() - (MEAN + SPREAD * start).item())


@pytest.mark.parametrize("spread", [0.1, 0.4, 1.0, 3.0, 6.0])
def test_the_default_gives_mean_and_spread_of_what_varies_little_and_much(spread):
    start = torch.tensor([[-1.5], [0.0], [1.5]], dtype=torch.float64)
    low, middle, high = second_order(
        _denoiser(RectifiedFlow(), spread=spread),
        RectifiedFlow(),
        start,
        evaluations=MOST_EVALUATIONS,
        fresh=_none,
    ).flatten()
    assert middle.item() == pytest.approx(MEAN, abs=0.02)
    assert (high - low).item() / 3.0 == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize(("name", "evaluations"), [("angular", 2), ("angular", 5), (DISTILLED, 4)])
def test_two_steps_of_the_angular_sampler_are_exact_where_the_prior_is_right(
    name, process, evaluations
):
    spread = torch.tensor([[0.05, 0.4, 3.0]], dtype=torch.float64)
    mean = torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)
    path = Whitened(process=process, mean=mean, spread=spread)

    def expected(whitened, time):
        noised = path.point(whitened, time)
        alpha, sigma = process.alpha(time), process.sigma(time)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return path.whiten(mean + gain * (noised - alpha * mean))

    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = path.clean(SAMPLERS[name](expected, path, start, evaluations=evaluations, fresh=_none))
    last = angle(path, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(found, mean + spread * start, atol=0.02, rtol=0)
    assert last.max() <= torch.pi / 2


@given(
    time=st.floats(0.01, 1.0),
    spread=st.floats(0.01, 10.0),
    mean=st.floats(-5, 5),
    clean=st.floats(-5, 5),
)
def test_whitening_is_undone_and_lies_on_the_circle(time, spread, mean, clean):
    at = torch.tensor(time, dtype=torch.float64)
    wide, middle, value = (torch.tensor([[x]], dtype=torch.float64) for x in (spread, mean, clean))
    path = Whitened(process=RectifiedFlow(), mean=middle, spread=wide)
    alpha, sigma = path.alpha(at), path.sigma(at)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))
    torch.testing.assert_close(path.clean(path.whiten(value)), value)
    noised = path.process.alpha(at) * value + path.process.sigma(at) * 0.3
    whitened = alpha * path.whiten(value) + sigma * 0.3
    torch.testing.assert_close(path.point(whitened, at), noised)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("name", ORDER)
def test_the_error_falls_with_the_order_of_the_sampler(name, process):
    odd = 1 if name == "heun" else 0
    coarse, fine = (_error(name, process, n - odd) for n in (128, 256))
    smooth = isinstance(process, RectifiedFlow) or name != "heun"
    order = (
        ORDER[name] if smooth else 1
    )  # the other paths leave the clean end like the root of time
    assert fine < 0.02
    assert coarse / fine > 2**order * 0.8


def test_leans_of_one_are_adams_and_bashforth_and_of_zero_eulers_method():
    process = RectifiedFlow()
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def at(lean, steps):
        times = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        return follow(_denoiser(process), process, start, times=times, leans=[lean] * steps)

    usual = angular(_denoiser(process), process, start, evaluations=6, fresh=_none)
    assert torch.equal(at(1.0, 6), usual)
    for lean, order in ((0.0, 1), (1.0, 2)):
        coarse, fine = ((at(lean, n) - (MEAN + SPREAD * start)).abs().max() for n in (128, 256))
        assert 2**order * 0.8 < coarse / fine < 2**order * 1.2


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_ancestral_sampler_keeps_mean_and_spread(process):
    generator = torch.Generator().manual_seed(0)

    def fresh():
        return torch.randn(4000, 1, generator=generator, dtype=torch.float64)

    found = ancestral(_denoiser(process), process, fresh(), evaluations=200, fresh=fresh)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(SPREAD, rel=0.06)


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [(name, count) for name in SAMPLERS if name != DISTILLED for count in (2, 7, 12, 20)]
    + [(DISTILLED, DISTILLED_EVALUATIONS)],
)
def test_no_sampler_asks_more_often_than_it_may(name, evaluations):
    asked = []
    process = RectifiedFlow()
    SAMPLERS[name](
        _denoiser(process, counted=asked),
        process,
        torch.zeros(2, 1),
        evaluations=evaluations,
        fresh=lambda: torch.zeros(2, 1),
    )
    assert evaluations - 1 <= len(asked) <= evaluations <= MOST_EVALUATIONS
    assert asked[0] == 1.0
    assert min(asked) > 0.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_certain_answer_is_reached_whatever_the_noise(name):
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    found = SAMPLERS[name](
        lambda noised, time: torch.full_like(noised, 0.25),
        RectifiedFlow(),
        start,
        evaluations=DISTILLED_EVALUATIONS if name == DISTILLED else 6,
        fresh=lambda: 7 * torch.ones(3, 5),
    )
    within = {"angular": 1e-3, DISTILLED: 0.05}.get(
        name, 1e-6
    )  # they keep variances, not constants
    torch.testing.assert_close(found, torch.full_like(start, 0.25), atol=within, rtol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_path_runs_from_the_clean_field_to_noise(process):
    time = torch.linspace(0, 1, 21, dtype=torch.float64)
    alpha, sigma = process.alpha(time), process.sigma(time)
    ends = torch.stack([alpha[[0, -1]], sigma[[-1, 0]]])
    torch.testing.assert_close(
        ends, torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64), atol=0.01, rtol=0
    )
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    straight = isinstance(process, RectifiedFlow)
    total = alpha + sigma if straight else alpha.square() + sigma.square()
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_every_path_is_the_circle_at_its_own_scale(process):
    time = torch.linspace(0, 1, 11, dtype=torch.float64)
    around, scale = angle(process, time), length(process, time)
    torch.testing.assert_close(scale * around.cos(), process.alpha(time))
    torch.testing.assert_close(scale * around.sin(), process.sigma(time))


def test_schedules_are_those_of_the_books():
    steps = torch.arange(1, 1000, dtype=torch.float64) / 1000
    cosine = DDPMScheduler(num_train_timesteps=1000, schedule="cosine").alphas_cumprod.double()
    torch.testing.assert_close(
        Ddpm().alpha(steps).square()[:-1], cosine[:-2], atol=0.004, rtol=0, check_dtype=False
    )
    beta = 0.1 + (20.0 - 0.1) * (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    summed = torch.exp(-torch.cumsum(beta, 0) / 1000 / 2)[:-1]
    torch.testing.assert_close(ScoreSde().alpha(steps), summed, atol=1e-6, rtol=1e-4)


def test_the_shift_multiplies_noise_over_signal():
    time = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    plain, shifted = RectifiedFlow(shift=1.0), RectifiedFlow(shift=5.0)
    ratio = shifted.sigma(time) / shifted.alpha(time) / (plain.sigma(time) / plain.alpha(time))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 5.0))


def test_noise_has_unit_variance_and_the_covariance_of_its_kernel():
    generator = torch.Generator().manual_seed(0)
    drawn = noise.draw((300, 2, 16, 16, 16), spacing_mm=3.0, generator=generator)
    assert drawn.square().mean().item() == pytest.approx(1.0, abs=0.05)
    for voxels in (1, 3, 6):
        far = 3.0 * voxels
        exact = sum(
            share * torch.exp(torch.tensor(-((far / length_mm) ** 2) / 2)).item()
            for length_mm, share in noise.KERNEL.items()
            if length_mm > 0
        )
        wrapped = noise.KERNEL[16.0] * sum(
            torch.exp(torch.tensor(-(((far - turn) / 16.0) ** 2) / 2)).item() for turn in (48, -48)
        )
        found = (drawn * drawn.roll(voxels, dims=3)).mean().item()
        assert found == pytest.approx(exact + wrapped, abs=0.04)
    assert (drawn[:, 0] * drawn[:, 1]).mean().abs() < 0.1, "channels are independent"


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_noise_is_found_again_from_the_clean_field(process):
    clean, drawn = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    time = torch.tensor(0.6)
    noised = process.alpha(time) * clean + process.sigma(time) * drawn
    torch.testing.assert_close(noise_of(process, noised, clean, time), drawn)
