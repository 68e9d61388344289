"""Samplers against the one case that has a closed form: Gaussian data.

For x ~ N(m, s^2) the expected clean value is m + alpha s^2 (x_t - alpha m) / (alpha^2 s^2 + sigma^2),
and the probability flow maps noise e to m + s e exactly.
"""

import pytest
import torch

from oncofed_common.diffusion.processes import RectifiedFlow, VariancePreserving, noise_of
from oncofed_common.diffusion.samplers import MOST_EVALUATIONS, SAMPLERS, ancestral, second_order

MEAN, SPREAD = 0.7, 0.4
PROCESSES = [
    RectifiedFlow(shift=1.0),
    RectifiedFlow(),
    VariancePreserving(shift=1.0),
    VariancePreserving(),
]
ORDER = {"first_order": 1, "second_order": 2, "heun": 2}


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
        generator=torch.Generator(),
    )
    return abs(found.item() - (MEAN + SPREAD))


@pytest.mark.parametrize("spread", [0.1, 0.4, 1.0, 4.0, 20.0, 40.0])
def test_the_default_gives_mean_and_spread_of_single_voxels_and_of_whole_shapes(spread):
    noise = torch.tensor([[-1.5], [0.0], [1.5]], dtype=torch.float64)
    low, middle, high = second_order(
        _denoiser(RectifiedFlow(), spread=spread),
        RectifiedFlow(),
        noise,
        evaluations=MOST_EVALUATIONS,
        generator=torch.Generator(),
    ).flatten()
    assert middle.item() == pytest.approx(MEAN, abs=0.02)
    assert (high - low).item() / 3.0 == pytest.approx(spread, rel=0.13)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("name", ORDER)
def test_the_error_falls_with_the_order_of_the_sampler(name, process):
    odd = 1 if name == "heun" else 0
    coarse, fine = (_error(name, process, n - odd) for n in (128, 256))
    assert fine < 0.02
    assert coarse / fine > 2 ** ORDER[name] * 0.8


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_ancestral_sampler_keeps_mean_and_spread(process):
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ancestral(
        _denoiser(process),
        process,
        noise,
        evaluations=200,
        generator=torch.Generator().manual_seed(1),
    )
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(SPREAD, rel=0.06)


@pytest.mark.parametrize("evaluations", [2, 7, 12, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_asks_more_often_than_it_may(name, evaluations):
    asked = []
    process = RectifiedFlow()
    SAMPLERS[name](
        _denoiser(process, counted=asked),
        process,
        torch.zeros(2, 1),
        evaluations=evaluations,
        generator=torch.Generator().manual_seed(0),
    )
    assert evaluations - 1 <= len(asked) <= evaluations
    assert asked[0] == 1.0
    assert min(asked) > 0.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_certain_answer_is_reached_whatever_the_noise(name):
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    found = SAMPLERS[name](
        lambda noised, time: torch.full_like(noised, 0.25),
        RectifiedFlow(),
        noise,
        evaluations=6,
        generator=torch.Generator().manual_seed(3),
    )
    torch.testing.assert_close(found, torch.full_like(noise, 0.25))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_path_runs_from_the_clean_field_to_pure_noise(process):
    time = torch.linspace(0, 1, 21, dtype=torch.float64)
    alpha, sigma = process.alpha(time), process.sigma(time)
    ends = torch.stack([alpha[[0, -1]], sigma[[-1, 0]]])
    torch.testing.assert_close(ends, torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64))
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    total = (
        alpha.square() + sigma.square()
        if isinstance(process, VariancePreserving)
        else alpha + sigma
    )
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("kind", [RectifiedFlow, VariancePreserving])
def test_the_shift_multiplies_noise_over_signal(kind):
    time = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    plain, shifted = kind(shift=1.0), kind(shift=5.0)
    ratio = shifted.sigma(time) / shifted.alpha(time) / (plain.sigma(time) / plain.alpha(time))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 5.0))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_noise_is_found_again_from_the_clean_field(process):
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    time = torch.tensor(0.6)
    noised = process.alpha(time) * clean + process.sigma(time) * noise
    torch.testing.assert_close(noise_of(process, noised, clean, time), noise)
