"""Can one forward and backward pass give the gradient of every drawn patient?

Yes: each slot of a batch has trained parameters of its own, all equal, and the gradient of the summed
loss by a slot's parameters is the gradient of that slot's patient. Where a pass costs the same however few
its rows (a small window, a GPU that waits for its next kernel), that is faster than one pass a patient.

Time and memory must not tell how many were drawn, so the batch always has the same number of slots, and
a slot without a patient computes somebody who does not exist. Then it costs several times the mean
draw: at rate 0.1, of 60 patients 6 are drawn, and in one step of 10^9 more than 23. (Whoever does not fit
waits for a second batch: leaving them out would make one patient's part depend on who else was drawn.) And
that no slot's bits depend on the others is a habit of kernels, promised by none. So it is not for real
patients: ``private_step_by`` refuses. A network that computes activations twice raises here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

PatientT = TypeVar("PatientT")
Drawn = tuple[Tensor, ...]
"""What ``loss`` takes, one by one: tensors (row, ...), of the same shapes and dtypes for every patient."""


@dataclass(frozen=True, kw_only=True)
class RowSlices(Generic[PatientT]):
    """One backward pass for ``slots`` patients.

    Args:
        rows_of: a patient's rows, padded, with all that chance decides.
        loss: takes the rows, answers the loss of one patient; rows of padding count nothing in it.
        trained: parameters of ``loss`` by their name in it, in the order of the gradient.
        nobody: the rows of a slot without a patient; every patient's must have their shapes.
        slots: of a batch, a constant of the study.
    """

    rows_of: Callable[[PatientT, torch.Generator], Drawn]
    loss: nn.Module
    trained: Mapping[str, Tensor]
    nobody: Drawn
    slots: int

    @property
    def weights(self) -> int:
        """How many numbers a gradient has."""
        return sum(parameter.numel() for parameter in self.trained.values())

    @property
    def for_real_patients(self) -> bool:
        """See above."""
        return False

    def gradients(
        self, patients: Sequence[PatientT], generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor | Exception]:
        """See ``Engine``; an empty draw computes a batch like any other."""
        for start in range(0, max(len(patients), 1), self.slots):
            part = slice(start, start + self.slots)
            found = [
                self._rows(patient, generator)
                for patient, generator in zip(patients[part], generators[part], strict=True)
            ]
            filled = [self.nobody if isinstance(rows, Exception) else rows for rows in found]
            filled += [self.nobody] * (self.slots - len(filled))
            slots = self._slots(filled)
            for rows, gradient in zip(found, slots, strict=False):
                yield rows if isinstance(rows, Exception) else gradient

    def _rows(self, patient: PatientT, generator: torch.Generator) -> Drawn | Exception:
        try:
            rows = self.rows_of(patient, generator)
            if [(one.shape, one.dtype) for one in rows] != [
                (one.shape, one.dtype) for one in self.nobody
            ]:
                return ValueError("rows of another shape")
        except Exception as fault:  # noqa: BLE001  an abort would tell about this patient
            return fault
        return rows

    def _slots(self, filled: Sequence[Drawn]) -> Float[Tensor, "slot weight"]:
        """Every slot's gradient; what fails here fails for any patients."""

        def loss_of(own: dict[str, Tensor], *rows: Tensor) -> Tensor:
            loss: Tensor = functional_call(self.loss, own, rows)
            return loss

        rows = [torch.stack(parts) for parts in zip(*filled, strict=True)]
        own = {
            name: one.detach().expand(self.slots, *one.shape).clone().requires_grad_()
            for name, one in self.trained.items()
        }
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels would run slot by slot
            losses = vmap(loss_of)(own, *rows)
        parts = torch.autograd.grad(losses.sum(), list(own.values()), materialize_grads=True)
        return torch.cat([part.reshape(self.slots, -1).to(torch.float32) for part in parts], dim=1)
