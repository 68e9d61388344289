"""Networks with patients, for the privacy engines to be tried on, and their gradients by two other ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from oncofed_common.diffusion.losses import (
    LEAST_SINE,
    Rows,
    RowsLoss,
    adapter_loss,
    draw_rows,
    padded,
)
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.model.adapters import select
from oncofed_common.model.network import build
from oncofed_common.model.prepare import EXPECTED_MAPS, FIELDS, Batch, condition_channels
from oncofed_common.model.presets import SMALL
from oncofed_common.model.tokens import FEATURES, TOKENS
from oncofed_common.privacy.engine import Engine, OneByOne
from oncofed_common.privacy.row_slices import RowSlices

TINY = replace(SMALL, size=4, widths=(4, 8), groups=2, context_width=8, head_width=4)
"""The shipped network, as small as it gets."""
DRAWS = 2
PAIRS = (1, 3, 2)
"""Scan pairs of the patients; the study allows no more than the most of them."""
SLOTS = 4


@dataclass(frozen=True, eq=False)
class Patient:
    """Data of one patient, or None for one that cannot be computed.

    Args:
        number: among those of the subject.
        factor: of the loss; 0 makes the gradient zero.
    """

    data: object
    number: int
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network, what of it is trained, and patients.

    Args:
        loss_of: as the trainer has it.
        drawn: all rows of a patient, none of them padding; the last part is their share.
        loss: takes such rows.
        row_loss: one row's loss by a formula of its own, for ``torch.func``.
        kin: the same for subjects with the same weights, trained weights and patients.
        error: by how much of its length a gradient may differ from that of ``torch.func``.
    """

    network: nn.Module
    trained: Mapping[str, nn.Parameter]
    frame: tuple[Patient, ...]
    loss_of: Callable[[Patient, torch.Generator], Tensor]
    drawn: Callable[[Patient, torch.Generator], tuple[Tensor, ...]]
    loss: nn.Module
    row_loss: nn.Module
    kin: str
    error: float

    def one_by_one(self) -> OneByOne[Patient]:
        return OneByOne(loss_of=self.loss_of, parameters=list(self.trained.values()))

    def row_slices(self) -> RowSlices[Patient]:
        def rows_of(patient: Patient, generator: torch.Generator) -> tuple[Tensor, ...]:
            return repeated(self.drawn(patient, generator), DRAWS * max(PAIRS))

        nobody = rows_of(self.frame[0], torch.Generator().manual_seed(0))
        return RowSlices(
            rows_of=rows_of,
            loss=self.loss,
            trained={_within(self.loss, one): one for one in self.trained.values()},
            nobody=tuple(torch.zeros_like(part) for part in nobody),
            slots=SLOTS,
        )


ENGINES: Mapping[str, Callable[[Subject], Engine[Patient]]] = {
    "one by one": Subject.one_by_one,
    "row slices": Subject.row_slices,
}


def repeated(rows: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """``losses.padded``, for rows of any kind."""
    if isinstance(rows, Rows):
        return padded(rows, count)
    number = torch.arange(count)
    there = number % len(rows[0])
    *parts, share = (part[there] for part in rows)
    return (*parts, share * (number == there))


def by_loop(subject: Subject, patient: Patient, seed: int) -> Tensor:
    """One patient's gradient by ``backward`` and each parameter's ``grad``, in order of name."""
    for parameter in subject.network.parameters():
        parameter.grad = None
    subject.loss_of(patient, torch.Generator().manual_seed(seed)).backward()
    found = []
    for name in sorted(subject.trained):
        parameter = subject.trained[name]
        part = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.append(part.reshape(-1))
    for parameter in subject.network.parameters():
        parameter.grad = None
    return torch.cat(found)


_found: dict[tuple[str, int, int], Tensor] = {}


def by_functions(subject: Subject, patient: Patient, seed: int) -> Tensor:
    """The same by ``torch.func`` in float64, all activations kept; computed once for all kin."""
    key = (subject.kin, patient.number, seed)
    if key not in _found:
        _found[key] = _by_functions(subject, patient, seed)
    return patient.factor * _found[key]


def _by_functions(subject: Subject, patient: Patient, seed: int) -> Tensor:
    """Vmap over rows, one gradient a row, then their mean."""
    rows = subject.drawn(patient, torch.Generator().manual_seed(seed))
    rows = tuple(part.detach().double() for part in rows)
    module = copy.deepcopy(subject.row_loss).double()
    if hasattr(module.network, "preset"):  # torch.func cannot compute activations a second time
        module.network.preset = replace(module.network.preset, checkpointing=False)
    where = {_within(subject.row_loss, one): name for name, one in subject.trained.items()}
    weights = {path: dict(module.named_parameters())[path].detach() for path in where}

    def loss(given: dict[str, Tensor], *row: Tensor) -> Tensor:
        return functional_call(module, given, tuple(part[None] for part in row))

    with sdpa_kernel(SDPBackend.MATH):  # torch.func knows no batches of the fused kernels
        found = vmap(grad(loss), in_dims=(None, *(0 for _ in rows[:-1])))(weights, *rows[:-1])
    by_name = {where[path]: part.mean(dim=0) for path, part in found.items()}
    return torch.cat([by_name[name].reshape(-1) for name in sorted(by_name)])


def _within(module: nn.Module, wanted: nn.Parameter) -> str:
    return next(name for name, one in module.named_parameters() if one is wanted)


class ToyLoss(nn.Module):
    """Mean squared error of rows by their share."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return (((self.network(x) - y) ** 2).mean(dim=1) * share).sum()


class ToyRow(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return ((self.network(x) - y) ** 2).mean()


class NetworkRow(nn.Module):
    """The loss of one row, with the posterior mean by precisions where the prior learns alone."""

    def __init__(self, network: nn.Module, adapters: str) -> None:
        super().__init__()
        self.network = network
        self.adapters = adapters

    def forward(self, *row: Tensor) -> Tensor:
        conditions, tokens, clean, noised, angle, weight = row
        context = self.network.context(conditions, tokens)
        mean, spread = context.expected, context.spread
        keep, add = angle.cos().reshape(1, 1, 1, 1, 1), angle.sin().reshape(1, 1, 1, 1, 1)
        if self.adapters == "prior":
            told, known = keep / add**2, keep**2 / add**2 + 1.0 / spread**2
            answer = (mean / spread**2 + told * noised) / known
        else:
            answer = self.network(noised, angle, context)
        fixed = spread.detach()
        sine = (add**2 / (keep**2 * fixed**2 + add**2)).sqrt().clamp(min=LEAST_SINE)
        error = (((answer - clean) / sine) ** 2).mean(dim=(2, 3, 4))
        return (error * weight).sum() / weight.sum()


@cache
def toy() -> Subject:
    """A few layers, the first of them frozen."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.GroupNorm(2, 8), nn.Linear(8, 2))
    _scatter(network, generator)
    network[0].requires_grad_(False)
    trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
    frame = tuple(
        Patient(
            (
                torch.randn(DRAWS * pairs, 5, generator=generator),
                (1 + index) * torch.randn(DRAWS * pairs, 2, generator=generator),
            ),
            index,
        )
        for index, pairs in enumerate(PAIRS)
    )

    def drawn(patient: Patient, generator: torch.Generator) -> tuple[Tensor, ...]:
        x, y = patient.data
        share = torch.full((len(x),), patient.factor / len(x))
        return x + torch.randn(x.shape, generator=generator), y, share

    def loss_of(patient: Patient, generator: torch.Generator) -> Tensor:
        x, y = patient.data
        x = x + torch.randn(x.shape, generator=generator)
        return patient.factor * nn.functional.mse_loss(network(x), y)

    return Subject(
        network=network,
        trained=dict(sorted(trained.items())),
        frame=frame,
        loss_of=loss_of,
        drawn=drawn,
        loss=ToyLoss(network),
        row_loss=ToyRow(network),
        kin="toy",
        error=1e-5,
    )


@cache
def shipped(
    adapters: str, *, half: bool = False, checkpointing: bool = False, spatial_dims: int = 3
) -> Subject:
    """The network that hospitals train, tiny, all of its weights away from zero."""
    shape = replace(TINY, checkpointing=checkpointing, spatial_dims=spatial_dims)
    generator = torch.Generator().manual_seed(5)
    network = build(shape, seed=1)
    _scatter(network, generator)
    trained = select(network, adapters)
    process = PROCESSES[DEFAULT]

    def narrow() -> torch.autocast | nullcontext:
        return torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()

    def loss_of(patient: Patient, generator: torch.Generator) -> Tensor:
        with narrow():
            loss = adapter_loss(
                network,
                process,
                patient.data,
                adapters=adapters,
                draws=DRAWS,
                generator=generator,
            )
        return patient.factor * loss

    def drawn(patient: Patient, generator: torch.Generator) -> Rows:
        rows = draw_rows(process, patient.data, draws=DRAWS, preset=shape, generator=generator)
        return rows._replace(share=patient.factor * rows.share)

    class Narrowed(RowsLoss):
        def forward(self, *rows: Tensor) -> Tensor:
            with narrow():
                return super().forward(*rows)

    return Subject(
        network=network,
        trained=trained,
        frame=tuple(
            Patient(_batch(pairs, shape, generator), number) for number, pairs in enumerate(PAIRS)
        ),
        loss_of=loss_of,
        drawn=drawn,
        loss=Narrowed(network, adapters),
        row_loss=NetworkRow(network, adapters),
        kin=f"{adapters} {spatial_dims}",
        error=0.1 if half else 2e-5,
    )


def _scatter(network: nn.Module, generator: torch.Generator) -> None:
    """A fresh network answers zero, and most of its gradients would be zero, too."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def _batch(pairs: int, shape: object, generator: torch.Generator) -> Batch:
    """Visits of one patient: noise, with physics that expects something."""
    cube = (shape.size,) * 3
    conditions = torch.randn(pairs, condition_channels(shape), *cube, generator=generator)
    conditions[:, -EXPECTED_MAPS:] = conditions[:, -EXPECTED_MAPS:].abs()
    conditions[:, -1] = 1.0
    return Batch(
        conditions=conditions,
        tokens=torch.randn(pairs, TOKENS, FEATURES, generator=generator),
        target=torch.randn(pairs, FIELDS, *cube, generator=generator),
        known=torch.ones(pairs, FIELDS),
    )
