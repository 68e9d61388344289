"""How does a network imagine a patient's futures?

The conditions are read once. Futures are drawn in units of the network's prior (``path.Whitened``); the
sampler then asks the network for the expected clean change, in batches of two rows at least (a single
float32 row is many times slower on a CPU) and about ``ROWS`` at most (beyond, the C library gives every
tensor's memory back and asks for it anew, which takes as long as the work).

Guidance (Ho & Salimans 2022) moves each answer away from the one without conditions: 1 is the model as it was
trained, more than that follows the conditions harder than the evidence does, and costs a second evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.diffusion import noise
from oncofed_common.diffusion.path import Whitened, angle, length
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.diffusion.samplers import (
    DISTILLED,
    DISTILLED_EVALUATIONS,
    MOST_EVALUATIONS,
    SAMPLERS,
    Denoiser,
)
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.barren import barren, kept_out
from oncofed_common.model.dropout import EVERYTHING, without
from oncofed_common.model.network import Network, device_of
from oncofed_common.model.prepare import Query, states
from oncofed_common.model.regions import REGIONS

MOST_GUIDANCE = 4.0
ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How futures are drawn.

    Args:
        samples: futures of one forecast, 2 or more.
        evaluations: network evaluations for each, 2 to 20; guidance other than 1 doubles them. The
            sampler ``distilled`` takes 4, by the default process.
        sampler: a name of ``SAMPLERS``.
        process: a name of ``PROCESSES``: the path back from noise, whichever one the weights learned on.
        dtype: what the network multiplies in; ``best_dtype()`` says which is fast here.

    Raises:
        ModelRefusal: outside these bounds (``bad_sampling``).
    """

    samples: int
    evaluations: int
    dtype: torch.dtype
    sampler: str = "angular"
    process: str = DEFAULT
    guidance: float = 1.0

    def __post_init__(self) -> None:
        fits = self.samples >= 2 and 2 <= self.evaluations <= MOST_EVALUATIONS
        fits = fits and 0 <= self.guidance <= MOST_GUIDANCE
        learned = (self.evaluations, self.process) == (DISTILLED_EVALUATIONS, DEFAULT)
        fits = fits and (learned or self.sampler != DISTILLED)
        if not fits or self.sampler not in SAMPLERS or self.process not in PROCESSES:
            raise ModelRefusal(
                f"{self.samples} samples with {self.evaluations} evaluations each, "
                f"guidance {self.guidance:g}",
                allowed=f"2 samples or more, 2 to {MOST_EVALUATIONS} evaluations "
                f"({DISTILLED_EVALUATIONS}, by {DEFAULT}, for {DISTILLED}), guidance 0 to {MOST_GUIDANCE:g}, "
                f"a sampler of {', '.join(sorted(SAMPLERS))}, "
                f"a process of {', '.join(sorted(PROCESSES))}",
                next="choose within these bounds",
                code="bad_sampling",
            )


def futures(
    network: Network, asked: Query, how: Sampling, *, seed: int
) -> Float[Tensor, "sample field x y z"]:
    """Sampled states at the query's day, without tumour where none can grow (``model.barren``): region
    distances, then scaled images.

    The same seed draws the same noise for every network, so that two can be compared pair by pair.
    """
    return kept_out(as_answered(network, asked, how, seed=seed), barren(asked, network.preset))


def as_answered(
    network: Network, asked: Query, how: Sampling, *, seed: int
) -> Float[Tensor, "sample field x y z"]:
    """The same states as the network put them, tumour in fluid or outside the brain and all."""
    device = device_of(network)
    generator = torch.Generator().manual_seed(seed)
    spacing_mm = network.preset.spacing_mm

    def fresh(rows: int) -> Tensor:
        shape = (rows, *asked.reference.shape)
        drawn = noise.draw(shape, spacing_mm=spacing_mm, generator=generator)
        return noise.widened(drawn, float(network.widening), channels=len(REGIONS)).to(device)

    with torch.inference_mode(), narrowed(device, how.dtype):
        denoiser, path = read(network, asked, how)
        batches = torch.arange(how.samples).tensor_split(-(-how.samples // (ROWS + 1)))
        changes = [
            path.clean(
                SAMPLERS[how.sampler](
                    denoiser,
                    path,
                    fresh(len(batch)),
                    evaluations=how.evaluations,
                    fresh=partial(fresh, len(batch)),
                )
            ).cpu()
            for batch in batches
        ]
    return states(asked, torch.cat(changes), network.preset)


def read(network: Network, asked: Query, how: Sampling) -> tuple[Denoiser, Whitened]:
    """The conditions, read once: what a sampler asks, and the path that it goes, in units of the prior."""
    device = device_of(network)
    shown = (asked.conditions[None], asked.tokens[None])
    context = network.context(*(part.to(device) for part in shown))
    unguided = context
    if how.guidance != 1:
        bare = without(*shown, [EVERYTHING], preset=network.preset)
        unguided = network.context(*(part.to(device) for part in bare))
    process = PROCESSES[how.process]
    path = Whitened(process=process, mean=context.expected, spread=context.spread)

    def denoiser(whitened: Tensor, time: Tensor) -> Tensor:
        point = (path.point(whitened, time) / length(process, time)).float()
        angles = angle(process, time).to(point).expand(len(point))
        clean: Tensor = network(point, angles, context).float()
        if how.guidance != 1:
            plain: Tensor = network(point, angles, unguided).float()
            clean = plain + how.guidance * (clean - plain)
        return path.whiten(clean)

    return denoiser, path


def narrowed(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Inside, convolutions and products are in that dtype; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
