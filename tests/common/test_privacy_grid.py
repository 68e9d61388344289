"""Clip, truncation and the exact check in integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.grid import fits_the_grid, squared_norm, to_grid
from oncofed_common.privacy.mechanism import Mechanism

noise_multipliers = st.floats(min_value=2.0**-4, max_value=2.0**8)
clip_norms = st.floats(min_value=1e-6, max_value=1e6)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
gradients = st.lists(floats32, min_size=1, max_size=40)


def mechanism(*, clip_norm: float = 1.0, noise_multiplier: float = 1.0) -> Mechanism:
    return Mechanism(
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        sampling_rate=0.5,
        declared_patients=10,
    )


def exact_square(vector: torch.Tensor) -> int:
    return sum(int(x) ** 2 for x in vector.tolist())


@given(values=gradients, clip=clip_norms, sigma=noise_multipliers)
def test_no_patient_is_longer_on_the_grid_than_the_sensitivity(values, clip, sigma):
    setting = mechanism(clip_norm=clip, noise_multiplier=sigma)
    vector = to_grid(torch.tensor(values), mechanism=setting)
    assert exact_square(vector) <= Fraction(2**16) ** 2 / Fraction(sigma) ** 2
    assert fits_the_grid(vector, mechanism=setting)


@given(values=gradients, clip=clip_norms, sigma=noise_multipliers)
def test_truncation_makes_no_coordinate_longer_and_turns_none_around(values, clip, sigma):
    setting = mechanism(clip_norm=clip, noise_multiplier=sigma)
    gradient = torch.tensor(values, dtype=torch.float64)
    on_grid = to_grid(gradient, mechanism=setting).double() * setting.grid_step
    norm = float(torch.linalg.vector_norm(gradient))
    assume(math.isfinite(norm))
    clipped = gradient * min(1.0, clip / norm) if norm > 0 else gradient
    assert (on_grid.abs() <= clipped.abs() * (1 + 1e-15)).all()
    assert (on_grid * clipped >= 0).all()
    lost = (clipped - on_grid).abs().max()
    assert lost <= setting.grid_step * (1 + 1e-9) + float(clipped.abs().max()) * 2e-9


def test_a_gradient_above_the_clip_norm_is_shrunk_to_it_and_one_below_is_kept():
    setting = mechanism(clip_norm=2.0, noise_multiplier=0.5)
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=500)).float()
    direction /= direction.norm()
    for length, kept in ((0.7, 0.7), (2.0, 2.0), (50.0, 2.0), (1e30, 2.0)):
        norm = math.sqrt(squared_norm(to_grid(direction * length, mechanism=setting)))
        assert norm * setting.grid_step == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_the_zero_vector(bad):
    vector = to_grid(torch.tensor([1.0, bad, 2.0]), mechanism=mechanism())
    assert vector.tolist() == [0, 0, 0]


def test_the_largest_floats_neither_overflow_nor_vanish():
    most = torch.finfo(torch.float32).max
    vector = to_grid(torch.full((1000,), most), mechanism=mechanism())
    assert math.sqrt(squared_norm(vector)) == pytest.approx(2**16, rel=1e-3)


def test_a_zero_gradient_stays_zero():
    assert to_grid(torch.zeros(7), mechanism=mechanism()).tolist() == [0] * 7


@given(
    values=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=50),
    sigma=noise_multipliers,
)
def test_the_check_in_integers_agrees_with_rational_arithmetic(values, sigma):
    vector = torch.tensor(values, dtype=torch.int64)
    allowed = Fraction(2**16) ** 2 / Fraction(sigma) ** 2
    fits = fits_the_grid(vector, mechanism=mechanism(noise_multiplier=sigma))
    assert fits == (exact_square(vector) <= allowed)


def test_the_check_is_sharp_to_the_last_unit():
    assert fits_the_grid(torch.tensor([2**16, 0]), mechanism=mechanism())
    assert not fits_the_grid(torch.tensor([2**16, 1]), mechanism=mechanism())
    assert not fits_the_grid(torch.tensor([-(2**16) - 1, 0]), mechanism=mechanism())


@pytest.mark.parametrize("huge", [2**32, 2**62, -(2**63), 2**63 - 1])
def test_entries_whose_squares_overflow_are_still_refused(huge):
    """2^32 squared is 0 modulo 2^64: a careless sum would let it pass."""
    assert not fits_the_grid(torch.tensor([huge]), mechanism=mechanism())


def test_the_sum_of_squares_does_not_overflow_for_two_million_weights():
    vector = torch.full((2_000_000,), 2**20)
    assert squared_norm(vector) == 2_000_000 * 2**40
    assert not fits_the_grid(vector, mechanism=mechanism(noise_multiplier=2.0**-4))


def test_no_weights_fit():
    assert fits_the_grid(torch.zeros(0, dtype=torch.int64), mechanism=mechanism())


def test_the_grid_step_times_the_noise_is_sigma_times_the_clip_norm():
    setting = mechanism(clip_norm=0.3, noise_multiplier=1.7)
    assert setting.grid_step * 2**16 == pytest.approx(0.3 * 1.7, rel=1e-15)
    assert setting.gradient_per_unit == pytest.approx(0.3 * 1.7 / 2**16 / (0.5 * 10), rel=1e-15)


@pytest.mark.parametrize(
    "fault",
    [
        {"clip_norm": 0.0},
        {"clip_norm": -1.0},
        {"clip_norm": float("nan")},
        {"clip_norm": float("inf")},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": 1000.0},
        {"noise_multiplier": float("nan")},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.1},
        {"declared_patients": 0},
    ],
)
def test_a_mechanism_that_gives_no_privacy_is_refused(fault):
    good = {
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.1,
        "declared_patients": 24,
    }
    with pytest.raises(PrivacyRefusal):
        Mechanism(**{**good, **fault})
