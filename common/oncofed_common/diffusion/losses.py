"""What does the network learn from?

The squared error of the expected clean field over sin(b)^2, E |x - f(x_t, a)|^2 / sin(b)^2, over the channels
that were acquired: b is each voxel's angle in units of the prior (``path.Whitened``), so this is the error of
the velocity that the samplers integrate over b, times the prior's variance: every degree of the way to a
sample counts the same (the weight of Karras et al. 2022). The process decides only how often each angle is
practised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oncofed_common.cohort import CHANNELS
from oncofed_common.diffusion import noise
from oncofed_common.diffusion.path import Process
from oncofed_common.diffusion.path import angle as angle_of
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.dropout import drop
from oncofed_common.model.network import Context, Network, device_of
from oncofed_common.model.prepare import Batch
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS

LEAST_SINE = 0.02
"""Of b: nearer to the clean end than about a degree, errors count as they do there."""
IMAGE_WEIGHT = 0.25
"""Images count less than distances: most of their error is scanner noise nobody can foresee."""


class Rows(NamedTuple):
    """Rows to practise on, before any weight takes part: all that chance decides.

    Args:
        weight: of each channel of each row; 0 where it was not acquired.
        share: of each row in the patient's loss; they add up to 1, and padding has none.
    """

    conditions: Float[Tensor, "row condition x y z"]
    tokens: Float[Tensor, "row token feature"]
    clean: Float[Tensor, "row field x y z"]
    noised: Float[Tensor, "row field x y z"]
    angle: Float[Tensor, " row"]
    weight: Float[Tensor, "row field"]
    share: Float[Tensor, " row"]


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
        return self.losses(answer).mean()

    def losses(self, answer: Float[Tensor, "row field x y z"]) -> Float[Tensor, " row"]:
        """Each row's weighted squared error."""
        scaled = (answer.float() - self.clean) / self.sine
        per_row = (scaled.square().mean(dim=(2, 3, 4)) * self.weight).sum(dim=1)
        losses: Tensor = per_row / self.weight.sum(dim=1)
        return losses


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
    rows = practice(network, process, batch, draws=draws, generator=generator)
    return rows.loss(_answer(network, rows, adapters))


class RowsLoss(nn.Module):
    """``adapter_loss`` of rows that were drawn before: a module, so that weights can be put in its place.

    Args:
        adapters: the set that learns (``model.adapters``).
    """

    def __init__(self, network: Network, adapters: str) -> None:
        super().__init__()
        self.network = network
        self.adapters = adapters

    def forward(self, *drawn: Tensor) -> Float[Tensor, ""]:
        """Of the parts of ``Rows``: the mean over the rows by their share."""
        rows = Rows(*drawn)
        practised = _practised(self.network, rows)
        losses = practised.losses(_answer(self.network, practised, self.adapters))
        return (losses * rows.share).sum()


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
    here = Batch(**{name: part.to(device) for name, part in vars(batch).items()})
    return _practised(
        network,
        draw_rows(process, here, draws=draws, preset=network.preset, generator=generator),
    )


def draw_rows(
    process: Process, batch: Batch, *, draws: int, preset: Preset, generator: torch.Generator
) -> Rows:
    """Every row of the batch, with ``draws`` fresh noises and times for each; on the batch's device."""
    rows, device = len(batch.target) * draws, batch.target.device
    clean, known = (_times(part, draws) for part in (batch.target, batch.known))
    conditions, tokens = drop(
        _times(batch.conditions, draws),
        _times(batch.tokens, draws),
        preset=preset,
        generator=generator,
    )
    offset = torch.rand(1, generator=generator)
    order = torch.randperm(rows, generator=generator)
    angle = angle_of(process, ((order / rows + offset) % 1.0).to(device))
    shape = tuple(clean.shape)
    drawn = noise.draw(shape, spacing_mm=preset.spacing_mm, generator=generator).to(device)
    keep, add = (part[:, None, None, None, None] for part in (angle.cos(), angle.sin()))
    return Rows(
        conditions=conditions,
        tokens=tokens,
        clean=clean,
        noised=keep * clean + add * drawn,
        angle=angle,
        weight=channel_weights().to(device) * known,
        share=torch.full((rows,), 1.0 / rows, device=device),
    )


def padded(rows: Rows, count: int) -> Rows:
    """So many rows: the first ones once more until there are enough, and those without a share."""
    number = torch.arange(count, device=rows.share.device)
    there = number % len(rows.share)
    again = Rows(*(part[there] for part in rows))
    return again._replace(share=again.share * (number == there))


def _practised(network: Network, rows: Rows) -> Practice:
    context = network.context(rows.conditions, rows.tokens)
    with torch.no_grad():
        _, _, sine = context.whitened(rows.noised, rows.angle)
    return Practice(
        clean=rows.clean,
        noised=rows.noised,
        angle=rows.angle,
        context=context,
        sine=sine.clamp(min=LEAST_SINE),
        weight=rows.weight,
    )


def _answer(network: Network, rows: Practice, adapters: str) -> Float[Tensor, "row field x y z"]:
    """The clean field, as the part of the network that learns has it."""
    if adapters == "prior":
        return rows.context.implied(rows.noised, rows.angle)
    answer: Tensor = network(rows.noised, rows.angle, rows.context)
    return answer


def _times(part: Float[Tensor, " row *rest"], draws: int) -> Float[Tensor, " all *rest"]:
    """Every row so many times over; the rows themselves, uncopied, for one."""
    return part if draws == 1 else part.repeat_interleave(draws, dim=0)


def channel_weights() -> Float[Tensor, " field"]:
    """Weight of each generated channel."""
    return torch.tensor([1.0] * len(REGIONS) + [IMAGE_WEIGHT] * len(CHANNELS))
