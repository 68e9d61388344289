"""How long can one round's update be, and how long is it, exactly?

The bound is a number of the study alone. With T steps, d weights, learning rate η, clip norm C, noise
multiplier σ, Poisson rate q and n declared patients, an update by SGD is at most

    η (T C / q  +  √T σ C (√d + 10) / (q n))

long: all n patients drawn in every step, none of them shorter than C; and the noise of T steps together,
which is longer once in e^50 rounds. Adam's step t moves one weight by η √(Σ w² / u) at most, where w and u
are the shares that the gradients so far have in its two means (Cauchy and Schwarz). A proximal term pulls
back, so that neither becomes longer. A trainer shortens what is longer, and a coordinator believes no
update that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.study import Study
from oncofed_common.tensors import UPDATE_SCALE, Tensors, value_count

ADAM_BETAS = (0.9, 0.999)
NOISE_ROOM = 10.0
"""How far beyond √d the noise may be long, in standard deviations: exceeded with probability e^-50."""
BLOCK, SMALL = 1 << 17, 1 << 22
"""Of so many values of at most that size the sum of squares is below 2^63."""
PRODUCT = 1 << 13
"""So few values BLAS multiplies in one thread: several would wait for each other longer than they work. Their
products, added up in float32 in whatever order, are off by less than 2^13 roundings of 2^-24."""
HALF = 16
MARGIN = 2.0**-10


def norm_limit_units(study: Study, *, declared_patients: int) -> int:
    """The largest L2 norm of one round's update, in units of 2^-24, rounding of T steps included."""
    steps, weights = study.training.steps_per_round, value_count(study.schema_terms)
    if study.training.optimizer == "adam":
        length = math.sqrt(weights) * sum(_adam_steps(steps))
    else:
        length = _summed_gradients(study, declared_patients=declared_patients)
    rounding = (steps + 1) * math.sqrt(weights)
    return math.ceil(study.training.learning_rate * length / UPDATE_SCALE + rounding)


class Length:
    """How long an update is, of which one block after the other is shown.

    Nearly always float32 tells: of ``PRODUCT`` values it errs by less than 2^-10 of the sum of squares.
    """

    def __init__(self) -> None:
        self._squares, self._room = 0.0, np.empty(BLOCK, np.float32)

    def add(self, block: NDArray[Any]) -> None:
        """Up to ``BLOCK`` values more, in one dimension."""
        values = self._room[: block.size]
        np.copyto(values, block, casting="unsafe")
        whole = values.size - values.size % PRODUCT
        rows, rest = values[:whole].reshape(-1, PRODUCT), values[whole:]
        self._squares += float(np.vecdot(rows, rows).sum(dtype=np.float64))
        self._squares += float(np.dot(rest, rest))

    def is_beyond(self, limit_units: int, *, update: Tensors) -> bool:
        """Whether the L2 norm of ``update``, which was shown as a whole, is above a limit, exactly.

        Where the limit is nearer than float32 can tell, whole numbers decide.
        """
        limit = float(limit_units**2)
        if abs(self._squares - limit) > MARGIN * limit:
            return self._squares > limit
        return squared_length(update) > limit_units**2


def is_longer(update: Tensors, *, limit_units: int) -> bool:
    """Whether an update's L2 norm is above a limit, exactly."""
    length = Length()
    for block in _blocks(update):
        length.add(block)
    return length.is_beyond(limit_units, update=update)


def squared_length(update: Tensors) -> int:
    """The sum of squares of all values, as a whole number; values may have 33 bits and a sign."""
    return sum(_squares(block) for block in _blocks(update))


def _blocks(update: Tensors) -> Iterator[NDArray[Any]]:
    for values in update.values():
        flat = np.ravel(values)
        for first in range(0, flat.size, BLOCK):
            yield flat[first : first + BLOCK]


def _squares(values: NDArray[Any]) -> int:
    wide = values.astype(np.int64)
    if max(int(values.max()), -int(values.min())) <= SMALL:
        return int(np.dot(wide, wide))
    high, low = wide >> HALF, wide & (1 << HALF) - 1
    squares = (int(np.dot(one, other)) for one, other in ((high, high), (high, low), (low, low)))
    return sum(part << shift for part, shift in zip(squares, (2 * HALF, HALF + 1, 0), strict=True))


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
