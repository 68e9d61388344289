"""What is one private training step?

Draw patients by Poisson sampling; for each one run an ordinary forward and backward pass with its rows
as the batch; clip, lay onto the grid, add up, noise. One patient at a time is exact for every
architecture (no hooks, no rules for layers), and costs what plain training costs once a patient has two
rows or more. Whoever computes the gradients is an ``Engine``; for real patients there is this one alone
(``row_slices`` says why).

A patient that cannot be computed, for whatever reason, contributes nothing: an abort would be an answer
about that patient which no noise covers. What happened is kept for the hospital's own eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.grid import to_grid
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noised_sum import noised_sum
from oncofed_common.privacy.sampling import poisson_draw
from oncofed_common.privacy.stream import Stream

PatientT = TypeVar("PatientT")
AskedT_contra = TypeVar("AskedT_contra", contravariant=True)
LossOf = Callable[[PatientT, torch.Generator], Tensor]
"""Loss of one patient, a scalar: the mean over its rows, with randomness from the generator alone."""

NOTHING = torch.zeros(0, dtype=torch.int64)
"""What a patient without a gradient contributes: in ``noised_sum`` another shape counts as zero."""


@runtime_checkable
class Engine(Protocol[AskedT_contra]):
    """Computes gradients of single patients; clip and noise are not its business.

    Attributes:
        weights: how many numbers a gradient has.
        for_real_patients: whether a gradient depends on that patient alone, to the last bit, by construction.
    """

    @property
    def weights(self) -> int: ...

    @property
    def for_real_patients(self) -> bool: ...

    def gradients(
        self, patients: Sequence[AskedT_contra], generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor | Exception]:
        """For each patient in order its gradient, flat and float32, or why there is none.

        Args:
            generators: each patient's own randomness.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OneByOne(Generic[PatientT]):
    """An ordinary backward pass a patient.

    Args:
        loss_of: the loss of one patient (see ``LossOf``).
        parameters: what is trained, and all of it.
    """

    loss_of: LossOf[PatientT]
    parameters: Sequence[Tensor]

    @property
    def weights(self) -> int:
        """How many numbers a gradient has."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def for_real_patients(self) -> bool:
        """Nobody shares a batch with anybody."""
        return True

    def gradients(
        self, patients: Sequence[PatientT], generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor | Exception]:
        """See ``Engine``; it keeps none, so that one patient's gradient is in memory at a time."""
        return starmap(self._gradient, zip(patients, generators, strict=True))

    def _gradient(self, patient: PatientT, generator: torch.Generator) -> Tensor | Exception:
        try:
            return patient_gradient(
                patient, loss_of=self.loss_of, parameters=self.parameters, generator=generator
            )
        except Exception as fault:  # noqa: BLE001  an abort would tell about this patient
            return fault


@dataclass(frozen=True, kw_only=True)
class Step:
    """The outcome of a private step; only ``gradient`` may influence anything that leaves.

    Attributes:
        gradient: the noised mean gradient, flat, in the order of the parameters.
        drawn: how many patients were drawn; for the hospital's own screen.
        faults: for each patient that contributed nothing, the class of what went wrong; for the
            hospital's own log.
        protected: whether the randomness is known to nobody.
    """

    gradient: Float64[Tensor, " weight"]
    drawn: int
    faults: tuple[str, ...]
    protected: bool


def private_step(
    frame: Sequence[PatientT],
    *,
    loss_of: LossOf[PatientT],
    parameters: Sequence[Tensor],
    mechanism: Mechanism,
    stream: Stream,
) -> Step:
    """Noised mean gradient of ``loss_of`` over a Poisson draw from the sampling frame.

    Args:
        frame: every patient who can be drawn; each is charged, drawn or not.
        loss_of: the loss of one patient (see ``LossOf``); it must not change the parameters or any
            state that outlives the call.
        parameters: what is trained, and all of it: the clipped norm runs over these together.
    """
    engine = OneByOne(loss_of=loss_of, parameters=parameters)
    return private_step_by(engine, frame, mechanism=mechanism, stream=stream)


def private_step_by(
    engine: Engine[PatientT],
    frame: Sequence[PatientT],
    *,
    mechanism: Mechanism,
    stream: Stream,
) -> Step:
    """``private_step`` with the gradients of another engine.

    Raises:
        PrivacyRefusal: the stream is that of real patients, and the engine is not for them (``engine``).
    """
    if stream.protected and not engine.for_real_patients:
        raise PrivacyRefusal(
            "an engine that is not for real patients",
            allowed="a seeded stream, of a virtual home",
            next="compute one patient at a time",
            code="engine",
        )
    faults: list[str] = []
    chosen = np.flatnonzero(poisson_draw(stream, patients=len(frame), rate=mechanism.sampling_rate))
    patients = [frame[int(index)] for index in chosen]
    generators = [torch.Generator().manual_seed(stream.torch_seed()) for _ in patients]

    def contribution(gradient: Tensor | Exception) -> Int64[Tensor, " weight"]:
        if isinstance(gradient, Exception):
            faults.append(type(gradient).__name__)
            return NOTHING
        try:
            finite = bool(gradient.sum(dtype=torch.float64).isfinite())
            vector = to_grid(gradient, mechanism=mechanism)
        except Exception as fault:  # noqa: BLE001  an abort would tell about this patient
            faults.append(type(fault).__name__)
            return NOTHING
        if not finite:
            faults.append("NotFinite")
        return vector

    found = map(contribution, engine.gradients(patients, generators))
    gradient = noised_sum(found, weights=engine.weights, mechanism=mechanism, stream=stream)
    return Step(
        gradient=gradient,
        drawn=len(chosen),
        faults=tuple(faults),
        protected=stream.protected,
    )


def patient_gradient(
    patient: PatientT,
    *,
    loss_of: LossOf[PatientT],
    parameters: Sequence[Tensor],
    generator: torch.Generator,
) -> Float[Tensor, " weight"]:
    """Gradient of one patient's loss, flat, in the order of the parameters; not private yet.

    A parameter that the loss does not touch has the gradient zero.
    """
    loss = loss_of(patient, generator)
    parts = torch.autograd.grad(loss, list(parameters), materialize_grads=True)
    return torch.cat([part.reshape(-1).to(torch.float32) for part in parts])


def shaped(
    gradient: Float64[Tensor, " weight"], *, like: Sequence[Tensor]
) -> tuple[Float[Tensor, " *shape"], ...]:
    """A flat gradient cut into tensors with shape, dtype and device of the parameters ``like``."""
    parts = torch.split(gradient, [parameter.numel() for parameter in like])
    return tuple(
        part.reshape(parameter.shape).to(parameter)
        for part, parameter in zip(parts, like, strict=True)
    )
