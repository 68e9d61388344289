"""How long can an update be, and what becomes of a longer one?

The bound is a number of the study alone. With T steps, d weights, learning rate η, clip norm C, noise
multiplier σ, Poisson rate q and n declared patients, an update by SGD is at most

    η (T C / q  +  √T σ C (√d + 10) / (q n))

long: all n patients drawn in every step, none of them shorter than C; and the noise of T steps together,
which is longer once in e^50 rounds. Adam's step t moves one weight by η √(Σ w² / u) at most, where w and u
are the shares that the gradients so far have in its two means (Cauchy and Schwarz).

A longer update is shrunk to the bound, in integers: the result depends on the update and on the study
alone, so that it is as private as the update was, and no refusal tells of its values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oncofed_client.trainer.training import ADAM_BETAS
from oncofed_common.study import Study
from oncofed_common.tensors import UNITS_MOST, UPDATE_SCALE, Tensors, value_count

NOISE_ROOM = 10.0
"""How far beyond √d the noise may be long, in standard deviations: exceeded with probability e^-50."""

_SHRINK_BITS = 31


def norm_limit_units(study: Study, *, declared_patients: int) -> int:
    """The largest L2 norm of one round's update, in units of 2^-24, rounding of T steps included."""
    steps, weights = study.training.steps_per_round, value_count(study.schema_terms)
    if study.training.optimizer == "adam":
        length = math.sqrt(weights) * sum(_adam_steps(steps))
    else:
        length = _summed_gradients(study, declared_patients=declared_patients)
    rounding = (steps + 1) * math.sqrt(weights)
    return math.ceil(study.training.learning_rate * length / UPDATE_SCALE + rounding)


def saturate(units: Tensors, *, limit_units: int) -> dict[str, NDArray[np.int32]]:
    """``units`` as they are, or the same direction shrunk to a norm of ``limit_units`` at most.

    Truncation towards zero makes no value larger, so the norm is at most the limit, exactly.
    """
    inside = {name: _ends(tensor) for name, tensor in units.items()}
    squared = sum(_squared(tensor) for tensor in inside.values())
    if squared <= limit_units**2:
        return {name: tensor.astype(np.int32) for name, tensor in inside.items()}
    share = (limit_units << _SHRINK_BITS) // (math.isqrt(squared) + 1)
    return {
        name: (np.sign(tensor) * (np.abs(tensor) * share >> _SHRINK_BITS)).astype(np.int32)
        for name, tensor in inside.items()
    }


def _summed_gradients(study: Study, *, declared_patients: int) -> float:
    training, privacy = study.training, study.privacy
    steps, weights = training.steps_per_round, value_count(study.schema_terms)
    divisor = training.sampling_rate * declared_patients
    data = steps * privacy.clip_norm * declared_patients
    noise = math.sqrt(steps) * privacy.noise_multiplier * privacy.clip_norm
    return (data + noise * (math.sqrt(weights) + NOISE_ROOM)) / divisor


def _adam_steps(steps: int) -> list[float]:
    """How far step t of Adam can move one weight, in learning rates, for t = 1 to ``steps``."""
    first, second = ADAM_BETAS
    found, ratio, power = [], first**2 / second, 0.0
    for step in range(1, steps + 1):
        power = power * ratio + 1.0  # the sum of (β1² / β2)^k for k < t
        shares = (1 - first) ** 2 / (1 - second) * power
        found.append(math.sqrt(shares * (1 - second**step)) / (1 - first**step))
    return found


def _ends(tensor: NDArray[np.int32]) -> NDArray[np.int64]:
    """-2^31 has no counterpart and is no value that rounding gives: it becomes the end of the range."""
    return np.clip(tensor.astype(np.int64), -UNITS_MOST, UNITS_MOST)


def _squared(tensor: NDArray[np.int64]) -> int:
    """The exact squared norm: halves of 16 bits, so that no sum of a million values overflows."""
    high, low = np.abs(tensor) >> 16, np.abs(tensor) & 0xFFFF
    parts = (int((high * high).sum()), int((high * low).sum()), int((low * low).sum()))
    return (parts[0] << 32) + (parts[1] << 17) + parts[2]
