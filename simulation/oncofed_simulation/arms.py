"""Training adapters at several hospitals in one process, by the trainer's own steps, private or not."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from oncofed_client.trainer.training import autocast, make_optimizer
from oncofed_common.diffusion.losses import adapter_loss, denoising_loss
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.model.adapters import select
from oncofed_common.model.network import Network, device_of
from oncofed_common.model.prepare import Batch, Example, stack
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import load_base, network_of
from oncofed_common.privacy.accountant import noise_multiplier_for
from oncofed_common.privacy.engine import LossOf, patient_gradient, private_step, shaped
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.sampling import poisson_draw
from oncofed_common.privacy.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How adapters are trained; what a study would say of it."""

    adapters: str
    rounds: int
    steps_per_round: int
    sampling_rate: float
    pairs_per_patient: int
    draws_per_patient: int
    optimizer: str
    learning_rate: float
    dtype: str
    clip_norm: float
    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str
    terms: Terms
    hospitals: tuple[int, ...]
    learn: int
    private: bool = True
    pooled: bool = False


def shipped() -> Terms:
    """The terms of the demo's study."""
    text = (Path(__file__).with_name("demo.toml")).read_text()
    rooms = tomllib.loads(text)
    given = {**rooms["training"], **rooms["model"], **rooms["privacy"]}
    return Terms(**{name: given[name] for name in Terms.__dataclass_fields__})


def loss_of(network: Network, terms: Terms) -> LossOf[Batch]:
    """As the trainer's: the mean over a patient's pairs and draws."""

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        with autocast(terms.dtype, device_of(network)):
            return adapter_loss(
                network,
                PROCESSES[DEFAULT],
                batch,
                adapters=terms.adapters,
                draws=terms.draws_per_patient,
                generator=generator,
            )

    return loss


def steps(
    frame: Sequence[Batch], arm: Arm, network: Network, trained: Sequence[nn.Parameter], key: str
) -> None:
    """One round at one site: the parameters move."""
    terms, stream = arm.terms, Stream.from_seed(hashlib.sha256(key.encode()).digest())
    optimizer = make_optimizer(terms.optimizer, trained, learning_rate=terms.learning_rate)
    loss = loss_of(network, terms)
    for _ in range(terms.steps_per_round):
        if arm.private:
            outcome = private_step(
                frame,
                loss_of=loss,
                parameters=trained,
                mechanism=mechanism(terms, len(frame)),
                stream=stream,
            )
            assert not outcome.faults, outcome.faults
            gradient: Tensor = outcome.gradient
        else:
            gradient = plain_gradient(frame, loss, trained, stream, rate=terms.sampling_rate)
        for parameter, part in zip(trained, shaped(gradient, like=trained), strict=True):
            parameter.grad = part
        optimizer.step()


@lru_cache
def mechanism(terms: Terms, patients: int) -> Mechanism:
    """With the least noise that keeps every patient's epsilon."""
    return Mechanism(
        clip_norm=terms.clip_norm,
        noise_multiplier=noise_multiplier_for(
            epsilon=terms.epsilon,
            delta=terms.delta,
            rate=terms.sampling_rate,
            steps=terms.rounds * terms.steps_per_round,
        ),
        sampling_rate=terms.sampling_rate,
        declared_patients=patients,
    )


def plain_gradient(
    frame: Sequence[Batch],
    loss: LossOf[Batch],
    trained: Sequence[nn.Parameter],
    stream: Stream,
    *,
    rate: float,
) -> Float[Tensor, " weight"]:
    """The same mean without clipping and noise."""
    total = torch.zeros(sum(one.numel() for one in trained), dtype=torch.float64)
    for index in np.flatnonzero(poisson_draw(stream, patients=len(frame), rate=rate)):
        generator = torch.Generator().manual_seed(stream.torch_seed())
        total += patient_gradient(
            frame[int(index)], loss_of=loss, parameters=trained, generator=generator
        )
    return total / (rate * len(frame))


def train(arm: Arm, learn: Sequence[Sequence[Batch]], *, seed: int) -> Network:
    """The network after all rounds: each site from the same weights, then the mean of their updates."""
    network = network_of(load_base(SMALL, sha256=None))
    trained = list(select(network, arm.terms.adapters).values())
    frames = [list(learn[hospital][: arm.learn]) for hospital in arm.hospitals]
    if arm.pooled:
        frames = [[batch for frame in frames for batch in frame]]
    for number in range(arm.terms.rounds):
        before = [one.detach().clone() for one in trained]
        moves = []
        for site, frame in enumerate(frames):
            steps(frame, arm, network, trained, key=f"{arm.name}/{seed}/{number}/{site}")
            moves.append([one.detach() - was for one, was in zip(trained, before, strict=True)])
            _set(trained, before)
        mean = [torch.stack(parts).mean(dim=0) for parts in zip(*moves, strict=True)]
        _set(trained, [was + move for was, move in zip(before, mean, strict=True)])
    return network


def held_out_loss(network: Network, example: Example, *, draws: int, seed: int) -> float:
    """The loss of the whole network on one row that it may never have seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        loss = denoising_loss(
            network, PROCESSES[DEFAULT], stack([example]), draws=draws, generator=generator
        )
    return float(loss)


def _set(trained: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(trained, values, strict=True):
            parameter.copy_(value)
