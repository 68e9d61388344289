"""Every engine, on every network: the same law, whoever computes the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from private_laws import ABSENT, SIGMA, conforms, integer_sum, mechanism, norms, seeds_of
from private_subjects import ENGINES, Patient, Subject, shipped, toy
from torch import Tensor

from oncofed_common.privacy.grid import squared_norm
from oncofed_common.privacy.mechanism import Mechanism

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
LATER = [("one by one", "norm, slice by slice"), ("row slices", "norm, slice by slice")]
LATER += [("row slices", "film"), ("row slices", "low_rank")]
NEVER = ("row slices", "norm, activations computed twice")
PAIRED = [
    pytest.param(*pair, id=": ".join(pair), marks=[pytest.mark.slow] if pair in LATER else [])
    for pair in product(ENGINES, SUBJECTS)
    if pair != NEVER
]
CASES: Mapping[str, Callable[[Subject], tuple[Sequence[Patient], Mechanism]]] = {
    "unequal pairs, some above": lambda s: (s.frame, mechanism(sum(norms(s)[:2]) / 2)),
    "all above": lambda s: (s.frame, mechanism(0.1 * norms(s)[0])),
    "all below": lambda s: (s.frame, mechanism(10 * norms(s)[-1])),
    "one patient": lambda s: (s.frame[1:2], mechanism(norms(s)[1])),
    "empty draw": lambda s: ((), mechanism(norms(s)[1])),
    "a zero gradient": lambda s: (
        (s.frame[0], replace(s.frame[1], factor=0.0), s.frame[2]),
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
    rest = whole
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
        rest = rest - (whole - without)
    assert not rest.any()


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
    for members in ([1, 2], [2, 0]):
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
