"""The loss, where its value is known."""

import math
from dataclasses import replace

import pytest
import torch

from oncofed_common.diffusion.losses import (
    IMAGE_WEIGHT,
    LEAST_SINE,
    adapter_loss,
    denoising_loss,
    pretraining_loss,
)
from oncofed_common.diffusion.path import angle
from oncofed_common.diffusion.processes.rectified_flow import RectifiedFlow
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.adapters import ADAPTERS
from oncofed_common.model.network import build
from oncofed_common.model.prepare import FIELDS, Batch, condition_channels
from oncofed_common.model.presets import SMALL
from oncofed_common.model.tokens import FEATURES, TOKENS

N = SMALL.size


def _batch(rows: int) -> Batch:
    return Batch(
        conditions=torch.zeros(rows, condition_channels(SMALL), N, N, N),
        tokens=torch.zeros(rows, TOKENS, FEATURES),
        target=torch.ones(rows, FIELDS, N, N, N),
        known=torch.ones(rows, FIELDS),
    )


@pytest.fixture(scope="module")
def silent():
    """A network that answers zero, so the error is the target itself."""
    network = build(SMALL, seed=0)
    with torch.no_grad():
        network.prior.log_alone.fill_(-20.0)
    return network


def _loss(network, batch, *, draws, seed=0) -> float:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return denoising_loss(
            network, RectifiedFlow(shift=1.0), batch, draws=draws, generator=generator
        ).item()


@pytest.mark.parametrize("spread", [0.01, 0.5, 2.0])
def test_silence_about_a_unit_change_costs_what_the_prior_is_off(spread):
    """z = 1 / spread, and the answer's error over sin(b) is spread (cos(b) noise - sin(b) z)."""
    network = build(SMALL, seed=0)
    with torch.no_grad():
        network.prior.log_alone.fill_(math.log(spread))
    time = (torch.arange(10_000) + 0.5) / 10_000
    other = torch.atan(angle(RectifiedFlow(shift=1.0), time).tan() / spread)
    bounded = (other.sin() / LEAST_SINE).clamp(max=1.0).square()
    exact = (bounded * (other.sin().square() + (spread * other.cos()).square())).mean().item()
    found = sum(_loss(network, _batch(1), draws=8, seed=seed) for seed in range(8)) / 8
    assert found == pytest.approx(exact, rel=0.1)


def test_a_channel_that_was_not_acquired_does_not_count(silent):
    batch = _batch(1)
    batch.known[:, -1] = 0
    altered = replace(batch, target=batch.target.clone())
    altered.target[:, -1] = 50.0
    assert _loss(silent, altered, draws=2) == _loss(silent, batch, draws=2)
    altered.target[:, 0] = 50.0
    assert _loss(silent, altered, draws=2) > _loss(silent, batch, draws=2)


def test_an_outline_counts_more_than_an_image(silent):
    outline, image = (replace(_batch(1), target=torch.zeros(1, FIELDS, N, N, N)) for _ in range(2))
    outline.target[:, 0] = 1.0
    image.target[:, -1] = 1.0
    ratio = _loss(silent, image, draws=2) / _loss(silent, outline, draws=2)
    assert ratio == pytest.approx(IMAGE_WEIGHT)


def test_a_generator_repeats_and_another_differs():
    network = build(SMALL, seed=0)
    values = [_loss(network, _batch(1), draws=2, seed=seed) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_one_row_is_refused(silent):
    with pytest.raises(ModelRefusal) as refusal:
        _loss(silent, _batch(1), draws=1)
    assert refusal.value.code == "one_row"


def test_pretraining_costs_the_prior_and_the_network_each_as_if_the_other_were_fixed(silent):
    """With a network that answers zero both are the same, and neither hears of the other's error."""
    network = build(SMALL, seed=0)
    batch = replace(_batch(2), conditions=torch.rand(2, condition_channels(SMALL), N, N, N))

    def gradients(loss):
        network.zero_grad()
        torch.autograd.backward(loss)
        return {
            name: torch.zeros(1) if weight.grad is None else weight.grad.clone()
            for name, weight in network.named_parameters()
        }

    def generator():
        return torch.Generator().manual_seed(3)

    process = RectifiedFlow(shift=1.0)
    single = denoising_loss(network, process, batch, draws=1, generator=generator())
    double = pretraining_loss(network, process, batch, generator=generator())
    assert double.item() == pytest.approx(2 * single.item())
    first = gradients(double)
    with torch.no_grad():
        for weight in network.unet.out.parameters():
            weight.add_(0.05)
    second = gradients(pretraining_loss(network, process, batch, generator=generator()))
    of_prior = [name for name in first if name.startswith("prior.")]
    assert any(first[name].any() for name in of_prior)
    assert all(torch.equal(first[name], second[name]) for name in of_prior)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("adapters", sorted(ADAPTERS))
def test_the_prior_alone_learns_as_if_there_were_no_network(adapters):
    network = build(SMALL, seed=0)
    batch = replace(_batch(1), conditions=torch.rand(1, condition_channels(SMALL), N, N, N))
    process = RectifiedFlow(shift=1.0)

    def both():
        with torch.no_grad():
            return [
                loss(
                    network,
                    process,
                    batch,
                    draws=2,
                    generator=torch.Generator().manual_seed(3),
                    **named,
                ).item()
                for loss, named in (
                    (denoising_loss, {}),
                    (adapter_loss, {"adapters": adapters}),
                )
            ]

    whole, fresh = both()
    assert whole == pytest.approx(fresh), "a fresh network adds nothing to the prior"
    with torch.no_grad():
        for weight in network.unet.out.parameters():
            weight.add_(0.05)
    other, found = both()
    assert other > whole
    assert found == (pytest.approx(fresh) if adapters == "prior" else other)
