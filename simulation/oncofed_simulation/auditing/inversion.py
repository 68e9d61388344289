"""Can a patient's follow-up scan be computed back from a gradient?

The attacker knows all but the one thing that is to be kept: the conditions, the noise and the times of the
draw, the weights, and that the gradient is of this one patient. From the expected follow-up it descends on
another one until its gradient points where the seen one does (Geiping et al. 2020: cosine distance). The
figure is the correlation of what it found with what came, beyond what was expected; 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from oncofed_common.model.adapters import select
from oncofed_common.model.network import Network
from oncofed_common.model.prepare import Batch
from oncofed_common.privacy.engine import patient_gradient, private_step
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.stream import Stream
from oncofed_simulation.arms import Terms, loss_of, mechanism

DESCENTS = 60
STEP = 0.03


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """Correlations over patients: of what was computed back from a plain and from a noised gradient."""

    plain: tuple[float, ...]
    private: tuple[float, ...]


def inverted(network: Network, patients: Sequence[Batch], terms: Terms, *, seed: int) -> Inverted:
    """Attack each patient's gradient, as it is and as the engine releases it."""
    plain, private = [], []
    for number, patient in enumerate(patients):
        known = 10_000 * seed + number
        seen = gradient_of(network, patient, terms, seed=known)
        plain.append(_correlation(network, patient, seen, terms, seed=known))
        noised = released(network, patient, terms, seed=known)
        private.append(_correlation(network, patient, noised, terms, seed=known))
    return Inverted(plain=tuple(plain), private=tuple(private))


def gradient_of(
    network: Network, patient: Batch, terms: Terms, *, seed: int
) -> Float[Tensor, " weight"]:
    return patient_gradient(
        patient,
        loss_of=loss_of(network, terms),
        parameters=list(select(network, terms.adapters).values()),
        generator=torch.Generator().manual_seed(seed),
    )


def released(
    network: Network, patient: Batch, terms: Terms, *, seed: int
) -> Float[Tensor, " weight"]:
    """One private step with nobody else in the frame: the least company that there can be."""
    of = mechanism(terms, 1)
    outcome = private_step(
        [patient],
        loss_of=lambda one, _: loss_of(network, terms)(one, torch.Generator().manual_seed(seed)),
        parameters=list(select(network, terms.adapters).values()),
        mechanism=Mechanism(
            clip_norm=of.clip_norm,
            noise_multiplier=of.noise_multiplier,
            sampling_rate=1.0,
            declared_patients=1,
        ),
        stream=Stream.from_seed(seed.to_bytes(32, "big")),
    )
    return outcome.gradient.float()


def _correlation(
    network: Network,
    patient: Batch,
    seen: Float[Tensor, " weight"],
    terms: Terms,
    *,
    seed: int,
) -> float:
    with torch.no_grad():
        context = network.context(patient.conditions, patient.tokens)
    expected = context.expected.detach()
    guess = nn.Parameter(expected.clone())
    trained = list(select(network, terms.adapters).values())
    loss = loss_of(network, terms)
    optimizer = torch.optim.Adam([guess], lr=STEP)
    for _ in range(DESCENTS):
        asked = replace(patient, target=guess)
        parts = torch.autograd.grad(
            loss(asked, torch.Generator().manual_seed(seed)),
            trained,
            create_graph=True,
            materialize_grads=True,
        )
        gradient = torch.cat([part.reshape(-1) for part in parts])
        distance = 1 - nn.functional.cosine_similarity(gradient, seen, dim=0)
        optimizer.zero_grad()
        guess.grad = torch.autograd.grad(distance, guess)[0]
        optimizer.step()
    known = patient.known[:, :, None, None, None].expand_as(guess) > 0
    one, other = ((part - expected)[known].detach().numpy() for part in (guess, patient.target))
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0
