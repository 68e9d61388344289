"""A run of the shipped engine with planted canaries, and what they betray.

A canary is a patient whose gradient is one coordinate and nothing else, far longer than the clip norm. Half
of them, drawn by lot, are in the sampling frame beside real patients of a virtual hospital. Whoever sees
every noised gradient, as the accountant assumes, guesses from each canary's own coordinate who was in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from oncofed_client.trainer.training import make_optimizer
from oncofed_common.model.adapters import select
from oncofed_common.model.network import Network
from oncofed_common.model.prepare import Batch
from oncofed_common.privacy.engine import private_step, shaped
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.stream import Stream
from oncofed_common.screen import Watch
from oncofed_simulation.arms import Terms, loss_of, mechanism
from oncofed_simulation.auditing.bound import lower_bound

PULL = 1e6
"""The slope of a canary's loss: its gradient before the clip."""
VENTURED = 0.02
"""The share of canaries, at either end, about which a guess is ventured; fixed before anything is seen."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Canary:
    """A patient whose gradient is one coordinate of the trained weights."""

    coordinate: int


@dataclass(frozen=True, kw_only=True)
class Betrayed:
    """What the guesses came to.

    Args:
        canaries, guesses, right: see ``bound.p_value``.
        claimed_epsilon, delta: what the accountant says of the run.
        least_epsilon: the largest epsilon that the guesses refute, with confidence 0.95.
    """

    canaries: int
    guesses: int
    right: int
    claimed_epsilon: float
    delta: float
    least_epsilon: float

    @property
    def holds(self) -> bool:
        """Whether the claim stands."""
        return self.least_epsilon <= self.claimed_epsilon


def one_run(
    network: Network,
    patients: Sequence[Batch],
    terms: Terms,
    *,
    canaries: int,
    seed: int,
    watch: Watch,
) -> Betrayed:
    """Train once with canaries, and guess.

    Args:
        network: its trained weights move.
        patients: real ones, who are in for certain.
        canaries: as many as there are trained weights, at most.
    """
    trained = list(select(network, terms.adapters).values())
    weights = sum(one.numel() for one in trained)
    rng = np.random.default_rng([seed, canaries])
    places = rng.choice(weights, size=min(canaries, weights), replace=False)
    inside = rng.random(len(places)) < 0.5
    frame: list[Batch | Canary] = [*patients, *(Canary(int(at)) for at in places[inside])]
    noised = mechanism(terms, len(patients) + len(places) // 2)
    released = _trained(
        network, trained, frame, terms=terms, mechanism=noised, seed=seed, watch=watch
    )
    order = np.argsort(released[places])
    count = max(1, round(VENTURED * len(places)))
    right = int(inside[order[-count:]].sum() + (~inside[order[:count]]).sum())
    found = {"canaries": len(places), "guesses": 2 * count, "right": right}
    return Betrayed(
        **found,
        claimed_epsilon=terms.epsilon,
        delta=terms.delta,
        least_epsilon=lower_bound(**found, delta=terms.delta, confidence=CONFIDENCE),
    )


def _trained(
    network: Network,
    trained: Sequence[nn.Parameter],
    frame: Sequence[Batch | Canary],
    *,
    terms: Terms,
    mechanism: Mechanism,
    seed: int,
    watch: Watch,
) -> np.ndarray:
    """The sum of all gradients that the engine released."""
    of_patients = loss_of(network, terms)
    edges = np.cumsum([0, *(one.numel() for one in trained)])

    def loss(of: Batch | Canary, generator: torch.Generator) -> Tensor:
        if isinstance(of, Batch):
            return of_patients(of, generator)
        number = int(np.searchsorted(edges, of.coordinate, side="right")) - 1
        return PULL * trained[number].reshape(-1)[of.coordinate - int(edges[number])]

    stream = Stream.from_seed(hashlib.sha256(f"oncofed audit {seed}".encode()).digest())
    optimizer = make_optimizer(terms.optimizer, trained, learning_rate=terms.learning_rate)
    steps = terms.rounds * terms.steps_per_round
    total = torch.zeros(int(edges[-1]), dtype=torch.float64)
    for number in range(steps):
        outcome = private_step(
            frame, loss_of=loss, parameters=trained, mechanism=mechanism, stream=stream
        )
        assert not outcome.faults, outcome.faults
        total += outcome.gradient
        for parameter, part in zip(trained, shaped(outcome.gradient, like=trained), strict=True):
            parameter.grad = part
        optimizer.step()
        watch("training among canaries", number + 1, steps)
    return total.numpy()
