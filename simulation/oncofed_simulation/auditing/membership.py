"""Can it be told who was trained on?

Two attacks on the weights that a run hands out, each a score for every patient: by how much the patient's own
loss fell (against the base, from the same noise; Watson et al. 2022), and how far the weights moved along
the patient's own gradient. Both are given what no outsider has: the patient's data and the base weights.
The figure is the area under the curve, 0.5 for a coin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from oncofed_common.model.adapters import select
from oncofed_common.model.network import Network
from oncofed_common.model.prepare import Batch
from oncofed_common.privacy.engine import patient_gradient
from oncofed_simulation.arms import Terms, loss_of

LOOKS = 4
"""Noise draws for each patient's loss and gradient."""
BOOTSTRAP = 2000


@dataclass(frozen=True, kw_only=True)
class Told:
    """An area under the curve with its 95 % interval (patients drawn again)."""

    area: float
    low: float
    high: float


def attacked(
    base: Network,
    network: Network,
    terms: Terms,
    *,
    members: Sequence[Batch],
    others: Sequence[Batch],
) -> dict[str, Told]:
    """Both attacks on one run's weights."""
    everybody = [*members, *others]
    moved = weights_of(network, terms) - weights_of(base, terms)
    fell, along = [], []
    for number, patient in enumerate(everybody):
        before, gradient = _looked(base, patient, terms, seed=number)
        after, _ = _looked(network, patient, terms, seed=number)
        fell.append(before - after)
        length = float(gradient.norm() * moved.norm())
        along.append(-float(gradient @ moved) / length if length > 0 else 0.0)
    cut = len(members)
    return {
        name: told(np.array(scores[:cut]), np.array(scores[cut:]))
        for name, scores in (("own loss", fell), ("own gradient", along))
    }


def weights_of(network: Network, terms: Terms) -> Float[Tensor, " weight"]:
    """The trained weights, flat."""
    parts = select(network, terms.adapters).values()
    return torch.cat([part.detach().reshape(-1) for part in parts]).double()


def _looked(
    network: Network, patient: Batch, terms: Terms, *, seed: int
) -> tuple[float, Float[Tensor, " weight"]]:
    """The loss of one patient and its gradient, the mean over a few draws of noise."""
    trained = list(select(network, terms.adapters).values())
    loss = loss_of(network, terms)
    losses, gradients = [], []
    for look in range(LOOKS):

        def kept(of: Batch, generator: torch.Generator) -> Tensor:
            found = loss(of, generator)
            losses.append(float(found.detach()))
            return found

        generator = torch.Generator().manual_seed(1000 * seed + look)
        gradients.append(
            patient_gradient(patient, loss_of=kept, parameters=trained, generator=generator)
        )
    return float(np.mean(losses)), torch.stack(gradients).mean(dim=0).double()


def told(members: Float[ndarray, " member"], others: Float[ndarray, " other"]) -> Told:
    """How often a member's score is above another's."""
    rng = np.random.default_rng(0)
    drawn = [
        area(rng.choice(members, len(members)), rng.choice(others, len(others)))
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Told(area=area(members, others), low=float(low), high=float(high))


def area(members: Float[ndarray, " member"], others: Float[ndarray, " other"]) -> float:
    """The share of pairs in which the member's score is above (Mann & Whitney's U); ties are halves."""
    above = members[:, None] > others
    level = members[:, None] == others
    return float(above.mean() + level.mean() / 2)
