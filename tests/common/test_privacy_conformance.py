"""Every engine, on every network: the same law, whoever computes the gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from private_subjects import (
    ENGINES,
    Patient,
    Subject,
    by_functions,
    by_loop,
    shipped,
    toy,
)
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.engine import Engine, private_step_by
from oncofed_common.privacy.grid import squared_norm, to_grid
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noise import discrete_gaussian
from oncofed_common.privacy.sampling import poisson_draw
from oncofed_common.privacy.stream import Stream

KEY = b"every engine on the same patient"
SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "toy, its first layer frozen": toy,
    "norm": partial(shipped, "norm"),
    "film": partial(shipped, "film"),
    "low_rank": partial(shipped, "low_rank"),
    "prior": partial(shipped, "prior"),
    "norm in bfloat16": partial(shipped, "norm", half=True),
    "prior in bfloat16": partial(shipped, "prior", half=True),
    "norm, activations computed twice": partial(shipped, "norm", checkpointing=True),
    "norm, slice by slice": partial(shipped, "norm", spatial_dims=2),
}
PAIRED = [
    pytest.param(engine, subject, id=f"{engine}: {subject}")
    for engine in ENGINES
    for subject in SUBJECTS
    if (engine, subject) != ("row slices", "norm, activations computed twice")
]
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
    cut = len(chosen) * setting.grid_step * math.sqrt(engine.weights)  # by truncation
    for number, error in ((0, loop_error(engine, subject)), (1, subject.error)):
        parts = [clipped(pair[number], setting.clip_norm) for pair in both]
        off = found.double() * setting.grid_step - sum(parts, nothing)
        assert float(off.norm()) <= cut + error * sum(float(part.norm()) for part in parts)
    return found


def loop_error(engine: Engine[Patient], subject: Subject) -> float:
    """None for who works patient by patient, as the loop does."""
    return 0.0 if engine.for_real_patients else subject.error


def norms(subject: Subject) -> list[float]:
    _, seeds, _ = seeds_of(len(subject.frame))
    pairs = zip(subject.frame, seeds, strict=True)
    return sorted(float(raw(subject, patient, seed)[0].norm()) for patient, seed in pairs)


CASES: Mapping[str, Callable[[Subject], tuple[Sequence[Patient], Mechanism]]] = {
    "unequal pairs, some above": lambda s: (s.frame, mechanism(sum(norms(s)[:2]) / 2)),
    "all above": lambda s: (s.frame, mechanism(0.1 * norms(s)[0])),
    "all below": lambda s: (s.frame, mechanism(10 * norms(s)[-1])),
    "one patient": lambda s: (s.frame[1:2], mechanism(norms(s)[1])),
    "empty draw": lambda s: ((), mechanism(norms(s)[1])),
    "a zero gradient": lambda s: (
        (s.frame[0], replace(s.frame[1], factor=0.0)),
        mechanism(norms(s)[1]),
    ),
}


@pytest.mark.parametrize(("name", "on"), PAIRED)
def test_the_sum_is_that_of_a_loop_of_single_patients_and_that_of_vmap(name, on):
    subject = SUBJECTS[on]()
    engine = ENGINES[name](subject)
    for case in CASES.values():
        conforms(engine, subject, *case(subject))


@pytest.mark.parametrize("name", ENGINES)
def test_who_is_not_drawn_counts_nothing(name):
    subject = toy()
    setting = mechanism(norms(subject)[1], rate=0.5)
    assert 0 < len(seeds_of(9, rate=0.5)[0]) < 9
    conforms(ENGINES[name](subject), subject, subject.frame * 3, setting)


@pytest.mark.parametrize(("name", "on"), PAIRED)
def test_one_patient_moves_the_sum_by_the_sensitivity_exactly_and_leaves_the_others_alone(name, on):
    """With and without each of them, in the same draw, all gradients far above the clip."""
    subject = SUBJECTS[on]()
    engine, setting = ENGINES[name](subject), mechanism(0.01 * norms(subject)[0])
    whole, _ = integer_sum(engine, subject.frame, setting)
    for left_out in range(len(subject.frame)):
        frame = list(subject.frame)
        frame[left_out] = ABSENT
        without, faults = integer_sum(engine, frame, setting)
        assert len(faults) == 1
        moved = squared_norm(whole - without)
        assert moved <= setting.squared_norm_limit
        # Truncation takes less than one unit off each coordinate.
        least = 2**16 / SIGMA * (1 - 1e-8) - math.sqrt(engine.weights)
        assert math.sqrt(moved) >= least
        alone = [ABSENT] * len(frame)
        alone[left_out] = subject.frame[left_out]
        assert torch.equal(whole - without, integer_sum(engine, alone, setting)[0])


@pytest.mark.parametrize(("name", "on"), PAIRED)
def test_a_patient_s_bits_do_not_depend_on_who_else_was_drawn(name, on):
    """Really taken out: for slices that holds to within the error of arithmetic, and is not relied on."""
    subject = SUBJECTS[on]()
    engine = ENGINES[name](subject)

    def gradients(members: Sequence[int]) -> list[Tensor]:
        generators = [torch.Generator().manual_seed(number) for number in members]
        found = list(engine.gradients([subject.frame[number] for number in members], generators))
        assert not any(isinstance(one, Exception) for one in found)
        return found

    everybody = gradients([0, 1, 2])
    for members in ([0, 2], [1, 2], [2, 0, 1], [1]):
        for number, found in zip(members, gradients(members), strict=True):
            if engine.for_real_patients:
                assert torch.equal(found, everybody[number])
            off = float((found - everybody[number]).norm())
            assert off <= subject.error * float(found.norm())


@pytest.mark.parametrize(("name", "on"), PAIRED)
def test_gradients_of_1e30_keep_every_bit_of_their_direction(name, on):
    """The loss times a power of two: neither its gradient nor the norm may overflow or be rounded anew."""
    subject = SUBJECTS[on]()
    engine, setting = ENGINES[name](subject), mechanism(0.1 * norms(subject)[0])
    huge = [replace(patient, factor=2.0**100) for patient in subject.frame]
    found, faults = integer_sum(engine, huge, setting)
    assert faults == ()
    assert torch.equal(found, integer_sum(engine, subject.frame, setting)[0])


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("power", [-30, -100])
def test_gradients_of_1e_30_are_no_fault_and_next_to_nothing(name, power):
    subject = toy()
    engine, setting = ENGINES[name](subject), mechanism(1e-9)
    tiny = [replace(patient, factor=2.0**power) for patient in subject.frame]
    found = conforms(engine, subject, tiny, setting)
    assert bool(found.any()) == (power == -30)
