"""How does a network imagine a patient's futures?

The conditions are read once; the sampler then asks the network for the expected clean change, all
samples as one batch of at least two rows (a single float32 row is many times slower on a CPU).

Guidance (Ho & Salimans 2022) moves each answer away from the one without conditions: 1 is the model as it was
trained, more than that follows the conditions harder than the evidence does, and costs a second evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.diffusion.processes import Process, RectifiedFlow
from oncofed_common.diffusion.samplers import MOST_EVALUATIONS, SAMPLERS
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.dropout import EVERYTHING, without
from oncofed_common.model.network import Network, device_of
from oncofed_common.model.prepare import Query, states

MOST_GUIDANCE = 4.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How futures are drawn.

    Args:
        samples: futures of one forecast, 2 or more.
        evaluations: network evaluations for each, 2 to 20; guidance other than 1 doubles them.
        sampler: a name of ``SAMPLERS``.
        dtype: what the network multiplies in; ``best_dtype()`` says which is fast here.

    Raises:
        ModelRefusal: outside these bounds (``bad_sampling``).
    """

    samples: int
    evaluations: int
    dtype: torch.dtype
    sampler: str = "second_order"
    process: Process = field(default_factory=RectifiedFlow)
    guidance: float = 1.0

    def __post_init__(self) -> None:
        fits = self.samples >= 2 and 2 <= self.evaluations <= MOST_EVALUATIONS
        fits = fits and 0 <= self.guidance <= MOST_GUIDANCE
        if not fits or self.sampler not in SAMPLERS:
            raise ModelRefusal(
                f"{self.samples} samples with {self.evaluations} evaluations each, "
                f"guidance {self.guidance:g}",
                allowed=f"2 samples or more, 2 to {MOST_EVALUATIONS} evaluations, "
                f"guidance 0 to {MOST_GUIDANCE:g}, a sampler of {', '.join(sorted(SAMPLERS))}",
                next="choose within these bounds",
                code="bad_sampling",
            )


def futures(
    network: Network, asked: Query, how: Sampling, *, seed: int
) -> Float[Tensor, "sample field x y z"]:
    """Sampled states at the query's day: region distances, then scaled images.

    The same seed draws the same noise for every network, so that two can be compared pair by pair.
    """
    device = device_of(network)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((how.samples, *asked.reference.shape), generator=generator).to(device)
    with torch.inference_mode(), narrowed(device, how.dtype):
        shown = (asked.conditions[None], asked.tokens[None])
        context = network.context(*(part.to(device) for part in shown))
        unguided = context
        if how.guidance != 1:
            bare = without(*shown, [EVERYTHING], preset=network.preset)
            unguided = network.context(*(part.to(device) for part in bare))

        def denoiser(noised: Tensor, time: Tensor) -> Tensor:
            times = time.to(noised).expand(len(noised))
            clean: Tensor = network(noised, times, context)
            if how.guidance == 1:
                return clean.float()
            plain: Tensor = network(noised, times, unguided)
            return plain.float() + how.guidance * (clean.float() - plain.float())

        changes = SAMPLERS[how.sampler](
            denoiser, how.process, noise, evaluations=how.evaluations, generator=generator
        )
    return states(asked, changes.cpu(), network.preset)


def narrowed(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Inside, convolutions and products are in that dtype; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
