"""The loss, where its value is known."""

from dataclasses import replace

import pytest
import torch

from oncofed_common.diffusion.losses import IMAGE_WEIGHT, WEIGHT_CAP, denoising_loss
from oncofed_common.diffusion.path import angle
from oncofed_common.diffusion.processes.rectified_flow import RectifiedFlow
from oncofed_common.errors import ModelRefusal
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


def test_silence_about_a_unit_change_costs_the_mean_weight(silent):
    time = torch.linspace(0, 1, 100_001)[1:]
    weight = 1 / angle(RectifiedFlow(shift=1.0), time).sin().square()
    exact = weight.clamp(max=WEIGHT_CAP).mean().item()
    found = sum(_loss(silent, _batch(1), draws=8, seed=seed) for seed in range(2)) / 2
    assert found == pytest.approx(exact, rel=0.08)


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


def test_a_generator_repeats_and_another_differs(silent):
    values = [_loss(silent, _batch(1), draws=2, seed=seed) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_one_row_is_refused(silent):
    with pytest.raises(ModelRefusal) as refusal:
        _loss(silent, _batch(1), draws=1)
    assert refusal.value.code == "one_row"
