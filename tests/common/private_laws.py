"""The law of the private step: the sum under its noise is that of clipped gradients of single patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from private_subjects import Patient, Subject, by_functions, by_loop
from torch import Tensor

from oncofed_common.privacy.engine import Engine, private_step_by
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noise import discrete_gaussian
from oncofed_common.privacy.sampling import poisson_draw
from oncofed_common.privacy.stream import Stream

KEY = b"every engine on the same patient"
SIGMA = 0.5
ABSENT = Patient(None, -1)
"""Drawn like anybody, but nothing of it can be computed."""


def mechanism(clip_norm: float, *, rate: float = 1.0) -> Mechanism:
    return Mechanism(
        clip_norm=clip_norm, noise_multiplier=SIGMA, sampling_rate=rate, declared_patients=7
    )


def seeds_of(count: int, *, rate: float = 1.0) -> tuple[list[int], list[int], Stream]:
    """Who of so many is drawn under ``KEY``, with which seed, and the stream as the noise finds it."""
    stream = Stream.from_seed(KEY)
    chosen = [int(i) for i in poisson_draw(stream, patients=count, rate=rate).nonzero()[0]]
    return chosen, [stream.torch_seed() for _ in chosen], stream


def integer_sum(
    engine: Engine[Patient], frame: Sequence[Patient], setting: Mechanism
) -> tuple[Tensor, tuple[str, ...]]:
    """The exact sum under the noise of one step, and what went wrong."""
    step = private_step_by(engine, frame, mechanism=setting, stream=Stream.from_seed(KEY))
    chosen, _, stream = seeds_of(len(frame), rate=setting.sampling_rate)
    assert step.drawn == len(chosen)
    noised = torch.round(step.gradient / setting.gradient_per_unit).to(torch.int64)
    return noised - torch.from_numpy(discrete_gaussian(stream, count=len(noised))), step.faults


@cache
def raw(subject: Subject, patient: Patient, seed: int) -> tuple[Tensor, Tensor]:
    """One patient's gradient in float64: by a loop, and by ``torch.func``."""
    loop = by_loop(subject, patient, seed).double()
    return loop, by_functions(subject, patient, seed)


def clipped(gradient: Tensor, clip_norm: float) -> Tensor:
    """Shortened to the clip norm, the norm summed without any rounding."""
    norm = math.sqrt(math.fsum(float(value) ** 2 for value in gradient))
    return gradient * min(1.0, clip_norm / norm) if norm > 0 else gradient


def conforms(
    engine: Engine[Patient], subject: Subject, frame: Sequence[Patient], setting: Mechanism
) -> Tensor:
    """The sum, if it is that of the loop and that of ``torch.func``."""
    found, faults = integer_sum(engine, frame, setting)
    assert faults == ()
    chosen, seeds, _ = seeds_of(len(frame), rate=setting.sampling_rate)
    both = [raw(subject, frame[i], seed) for i, seed in zip(chosen, seeds, strict=True)]
    nothing = torch.zeros(engine.weights, dtype=torch.float64)
    loop, vmap = (
        [clipped(pair[number], setting.clip_norm) for pair in both] for number in range(2)
    )
    length = sum(float(part.norm()) for part in vmap)
    cut = len(chosen) * setting.grid_step * math.sqrt(engine.weights)  # by truncation
    off = found.double() * setting.grid_step - sum(vmap, nothing)
    assert float(off.norm()) <= cut + subject.error * length
    if engine.for_real_patients:  # as the loop works: whole units, but for one that an ulp decides
        units = sum((torch.trunc(part / setting.grid_step) for part in loop), nothing)
        assert float((found - units).abs().mean()) < 0.02
    else:
        off = found.double() * setting.grid_step - sum(loop, nothing)
        assert float(off.norm()) <= cut + subject.error * length
    return found


def norms(subject: Subject) -> list[float]:
    _, seeds, _ = seeds_of(len(subject.frame))
    pairs = zip(subject.frame, seeds, strict=True)
    return sorted(float(raw(subject, patient, seed)[0].norm()) for patient, seed in pairs)
