"""How is one site's update kept from being longer than a bound, exactly?

Its squared length is a whole number, found without rounding. Where it is above the bound, every value is
multiplied by bound over length and truncated towards zero, so that the result is never longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.tensors import UPDATE_SCALE
from oncofed_common.update_bound import squared_length

Update = Mapping[str, NDArray[Any]]
"""Integer tensors by name, in units of 2^-24."""


def units_of(length: float) -> int:
    """A length as a whole number of units, rounded down."""
    return math.floor(length / UPDATE_SCALE)


def is_within(update: Update, *, bound: float) -> bool:
    """Whether an update is no longer than ``bound``."""
    return squared_length(update) <= units_of(bound) ** 2


def shortened(update: Update, *, bound: float) -> dict[str, NDArray[Any]]:
    """The update, no longer than ``bound``; the same one, if it is not."""
    squared = squared_length(update)
    most = units_of(bound)
    if squared <= most**2:
        return dict(update)
    length = math.isqrt(squared) + 1
    return {
        name: np.asarray(np.trunc(values * (most / length)), dtype=values.dtype)
        for name, values in update.items()
    }
