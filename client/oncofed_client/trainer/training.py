"""One round of training at one site: weights in, a noised update out.

    for each step:  gradient = noised sum of the drawn patients' clipped gradients   (privacy/)
                    gradient + proximal (weights - weights before), where asked      post-processing
                    weights  = optimiser(weights, gradient)                          post-processing
    update = weights after - weights before

The optimiser starts fresh in every round: its state never crosses the wire and never outlives a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oncofed_common.diffusion.losses import adapter_loss
from oncofed_common.diffusion.path import Process
from oncofed_common.model.network import Network
from oncofed_common.model.prepare import Batch
from oncofed_common.privacy.engine import LossOf, private_step, shaped
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.stream import Stream
from oncofed_common.study import Study
from oncofed_common.update_bound import ADAM_BETAS

ADAM_FLOOR = 1e-8


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round did; only ``update`` and ``means`` may leave, and only through the door.

    ``means``: noised losses of those held out, before the round, where the study asks for them.
    """

    update: Mapping[str, NDArray[np.float32]]
    protected: bool
    faults: tuple[str, ...]
    means: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every round of one study at one site is made with.

    ``network``: base network, of which ``trained`` are the parameters that the study trains, by name; every
    round overwrites them with the weights of its task first.
    """

    study: Study
    declared_patients: int
    network: Network
    trained: Mapping[str, nn.Parameter]
    process: Process
    device: torch.device


def mechanism_of(study: Study, *, declared_patients: int) -> Mechanism:
    """The study's constants for one site."""
    return Mechanism(
        clip_norm=study.privacy.clip_norm,
        noise_multiplier=study.privacy.noise_multiplier,
        sampling_rate=study.training.sampling_rate,
        declared_patients=declared_patients,
    )


def train_round(
    frame: Sequence[Batch],
    *,
    setup: Setup,
    weights: Mapping[str, NDArray[np.float32]],
    stream: Stream,
    on_step: Callable[[int, int], None],
) -> Round:
    """Train the study's steps of one round on the sampling frame.

    Args:
        frame: the rows of every patient that could be drawn, one batch each.
        on_step: called with (steps done, steps in all), for the site's own screen.
    """
    terms, trained = setup.study.training, setup.trained
    names = sorted(trained)
    parameters = [trained[name] for name in names]
    mechanism = mechanism_of(setup.study, declared_patients=setup.declared_patients)
    set_weights(trained, weights)
    optimizer = make_optimizer(terms.optimizer, parameters, learning_rate=terms.learning_rate)
    faults: list[str] = []

    begun = [parameter.detach().clone() for parameter in parameters]
    loss_of = loss_for(setup)
    with deterministic(terms.threads):
        for step in range(terms.steps_per_round):
            outcome = private_step(
                frame, loss_of=loss_of, parameters=parameters, mechanism=mechanism, stream=stream
            )
            faults.extend(outcome.faults)
            parts = shaped(outcome.gradient, like=parameters)
            for parameter, part, first in zip(parameters, parts, begun, strict=True):
                parameter.grad = part
                if terms.proximal is not None:
                    parameter.grad += terms.proximal * (parameter.detach() - first)
            optimizer.step()
            on_step(step + 1, terms.steps_per_round)
    update = {
        name: (trained[name].detach().cpu().numpy() - weights[name]).astype(np.float32)
        for name in names
    }
    return Round(update=update, protected=stream.protected, faults=tuple(faults))


def set_weights(
    trained: Mapping[str, nn.Parameter], weights: Mapping[str, NDArray[np.float32]]
) -> None:
    """Overwrite the trained parameters."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.from_numpy(weights[name].copy()))


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        conditions=batch.conditions.to(device),
        tokens=batch.tokens.to(device),
        target=batch.target.to(device),
        known=batch.known.to(device),
    )


def loss_for(setup: Setup) -> LossOf[Batch]:
    """One patient's loss under the study's terms: the mean over its pairs and draws."""
    terms = setup.study.training

    def loss_of(batch: Batch, generator: torch.Generator) -> Tensor:
        with autocast(terms.dtype, setup.device):
            return adapter_loss(
                setup.network,
                setup.process,
                _on(batch, setup.device),
                adapters=setup.study.model.adapters,
                draws=terms.draws_per_patient,
                generator=generator,
            )

    return loss_of


def make_optimizer(
    name: str, parameters: Sequence[nn.Parameter], *, learning_rate: float
) -> torch.optim.Optimizer:
    """Plain SGD, or Adam without weight decay; both act on the noised gradient only."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, foreach=False)
    return torch.optim.Adam(
        parameters, lr=learning_rate, betas=ADAM_BETAS, eps=ADAM_FLOOR, foreach=False
    )


def autocast(dtype: str, device: torch.device) -> Any:  # the context managers share no public type
    """bfloat16 forward and backward where the study says so; clip and noise act on float32."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Thread count and deterministic kernels for one round: identity holds on one machine type."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
