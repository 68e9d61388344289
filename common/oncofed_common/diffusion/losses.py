"""What does the network learn from?

The weighted squared error of the expected clean field, E |x - f(x_t, a)|^2 min(1 / sin(a)^2, cap), over
the channels that were acquired: near the clean end it is the loss of the noise, near the noisy end that
of the field (the clipped-SNR weight of Hang et al. 2023). The angle a is that of ``path``: the process
decides only how often each angle is practised.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.cohort import CHANNELS
from oncofed_common.diffusion import noise
from oncofed_common.diffusion.path import Process
from oncofed_common.diffusion.path import angle as angle_of
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.dropout import drop
from oncofed_common.model.network import Network, device_of
from oncofed_common.model.prepare import Batch
from oncofed_common.model.regions import REGIONS

WEIGHT_CAP = 5.0
IMAGE_WEIGHT = 0.25
"""Images count less than distances: most of their error is scanner noise nobody can foresee."""


def denoising_loss(
    network: Network,
    process: Process,
    batch: Batch,
    *,
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The mean loss over every row of the batch and ``draws`` fresh noises and times for each.

    Times are spread evenly over [0, 1] among the rows (one random offset, Kingma et al. 2021):
    unbiased, with less variance. Conditions are dropped at random. All randomness is the
    generator's, drawn on the CPU, so that it is the same on every device.

    Args:
        draws: noise and time draws for each row, 1 or more; batch rows x draws must be 2 or more.

    Raises:
        ModelRefusal: fewer than two rows in all (``one_row``): a single row is many times slower.
    """
    rows = len(batch.target) * draws
    if rows < 2:
        raise ModelRefusal(
            "a loss over one row",
            allowed="two rows or more",
            next="raise the draws per patient to two",
            code="one_row",
        )
    device = device_of(network)
    clean, known = (_times(part, draws).to(device) for part in (batch.target, batch.known))
    conditions, tokens = drop(
        _times(batch.conditions, draws),
        _times(batch.tokens, draws),
        preset=network.preset,
        generator=generator,
    )
    offset = torch.rand(1, generator=generator)
    order = torch.randperm(rows, generator=generator)
    time = ((order / rows + offset) % 1.0).to(device)
    angle = angle_of(process, time)
    shape, spacing_mm = tuple(clean.shape), network.preset.spacing_mm
    drawn = noise.draw(shape, spacing_mm=spacing_mm, generator=generator).to(device)
    keep, add = (part[:, None, None, None, None] for part in (angle.cos(), angle.sin()))
    context = network.context(conditions.to(device), tokens.to(device))
    answer = network(keep * clean + add * drawn, angle, context)
    error = (answer.float() - clean).square().mean(dim=(2, 3, 4))
    weight = channel_weights().to(device) * known
    per_row = (error * weight).sum(dim=1) / weight.sum(dim=1)
    loss: Tensor = (per_row * angle.sin().pow(-2).clamp(max=WEIGHT_CAP)).mean()
    return loss


def _times(part: Float[Tensor, " row *rest"], draws: int) -> Float[Tensor, " all *rest"]:
    """Every row so many times over; the rows themselves, uncopied, for one."""
    return part if draws == 1 else part.repeat_interleave(draws, dim=0)


def channel_weights() -> Float[Tensor, " field"]:
    """Weight of each generated channel."""
    return torch.tensor([1.0] * len(REGIONS) + [IMAGE_WEIGHT] * len(CHANNELS))
