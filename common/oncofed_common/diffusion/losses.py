"""What does the network learn from?

The squared error of the expected clean field over sin(b)^2, E |x - f(x_t, a)|^2 / sin(b)^2, over the channels
that were acquired: b is each voxel's angle in units of the prior (``path.Whitened``), so this is the error of
the velocity that the samplers integrate over b, times the prior's variance: every degree of the way to a
sample counts the same (the weight of Karras et al. 2022). The process decides only how often each angle is
practised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.cohort import CHANNELS
from oncofed_common.diffusion import noise
from oncofed_common.diffusion.path import Process
from oncofed_common.diffusion.path import angle as angle_of
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.dropout import drop
from oncofed_common.model.network import Context, Network, device_of
from oncofed_common.model.prepare import Batch
from oncofed_common.model.regions import REGIONS

LEAST_SINE = 0.02
"""Of b: nearer to the clean end than about a degree, errors count as they do there."""
IMAGE_WEIGHT = 0.25
"""Images count less than distances: most of their error is scanner noise nobody can foresee."""


@dataclass(frozen=True, kw_only=True)
class Practice:
    """Rows to practise on: noised fields, and what they were.

    Args:
        sine: sin(b) of every voxel, but never less than ``LEAST_SINE``.
        weight: of each channel of each row; 0 where it was not acquired.
    """

    clean: Float[Tensor, "row field x y z"]
    noised: Float[Tensor, "row field x y z"]
    angle: Float[Tensor, " row"]
    context: Context
    sine: Float[Tensor, "row field x y z"]
    weight: Float[Tensor, "row field"]

    def loss(self, answer: Float[Tensor, "row field x y z"]) -> Float[Tensor, ""]:
        """The mean over the rows of an answer's weighted squared error."""
        scaled = (answer.float() - self.clean) / self.sine
        per_row = (scaled.square().mean(dim=(2, 3, 4)) * self.weight).sum(dim=1)
        loss: Tensor = (per_row / self.weight.sum(dim=1)).mean()
        return loss


def denoising_loss(
    network: Network,
    process: Process,
    batch: Batch,
    *,
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The mean loss over every row of the batch and ``draws`` fresh noises and times for each.

    Args:
        draws: noise and time draws for each row, 1 or more; batch rows x draws must be 2 or more.
        generator: see ``practice``.

    Raises:
        ModelRefusal: fewer than two rows in all (``one_row``): a single row is many times slower.
    """
    rows = practice(network, process, batch, draws=draws, generator=generator)
    return rows.loss(network(rows.noised, rows.angle, rows.context))


def adapter_loss(
    network: Network,
    process: Process,
    batch: Batch,
    *,
    adapters: str,
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """What an adapter set (``model.adapters``) learns from: ``denoising_loss``, but the prior from its own.

    That one asks no network, so that a site without a GPU trains the prior several times faster.

    Raises:
        ModelRefusal: see ``denoising_loss``.
    """
    if adapters != "prior":
        return denoising_loss(network, process, batch, draws=draws, generator=generator)
    rows = practice(network, process, batch, draws=draws, generator=generator)
    return rows.loss(rows.context.implied(rows.noised, rows.angle))


def pretraining_loss(
    network: Network, process: Process, batch: Batch, *, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Twice the loss: of the prior as if there were no network, and of the network on top of that prior.

    So the prior learns all that it can tell by itself, from few numbers that mean the same in every
    hospital; a network that sees images would sooner explain it by what it knows of these patients.
    """
    rows = practice(network, process, batch, draws=1, generator=generator)
    alone = rows.context.implied(rows.noised, rows.angle)
    fixed = replace(
        rows.context,
        expected=rows.context.expected.detach(),
        spread=rows.context.spread.detach(),
    )
    return rows.loss(alone) + rows.loss(network(rows.noised, rows.angle, fixed))


def practice(
    network: Network,
    process: Process,
    batch: Batch,
    *,
    draws: int,
    generator: torch.Generator,
) -> Practice:
    """Every row of the batch, with ``draws`` fresh noises and times for each.

    Times are spread evenly over [0, 1] among the rows (one random offset, Kingma et al. 2021):
    unbiased, with less variance. Conditions are dropped at random. All randomness is the
    generator's, drawn on the CPU, so that it is the same on every device.

    Raises:
        ModelRefusal: see ``denoising_loss``.
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
    noised = keep * clean + add * drawn
    context = network.context(conditions.to(device), tokens.to(device))
    with torch.no_grad():
        _, _, sine = context.whitened(noised, angle)
    return Practice(
        clean=clean,
        noised=noised,
        angle=angle,
        context=context,
        sine=sine.clamp(min=LEAST_SINE),
        weight=channel_weights().to(device) * known,
    )


def _times(part: Float[Tensor, " row *rest"], draws: int) -> Float[Tensor, " all *rest"]:
    """Every row so many times over; the rows themselves, uncopied, for one."""
    return part if draws == 1 else part.repeat_interleave(draws, dim=0)


def channel_weights() -> Float[Tensor, " field"]:
    """Weight of each generated channel."""
    return torch.tensor([1.0] * len(REGIONS) + [IMAGE_WEIGHT] * len(CHANNELS))
