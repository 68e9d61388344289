"""How is one site's update kept from being longer than a bound, exactly?

Its squared length is a whole number. Where it is above the bound, every value is
multiplied by bound over length and truncated towards zero, so that the result is never longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.tensors import UPDATE_SCALE
from oncofed_common.update_bound import is_longer, squared_length

Update = Mapping[str, NDArray[Any]]
"""Integer tensors by name, in units of 2^-24."""


def units_of(length: float) -> int:
    """A length as a whole number of units, rounded down."""
    return math.floor(length / UPDATE_SCALE)


def is_within(update: Update, *, bound: float) -> bool:
    """Whether an update is no longer than ``bound``."""
    return not is_longer(update, limit_units=units_of(bound))


def shortened(update: Update, *, bound: float) -> dict[str, NDArray[Any]]:
    """The update, no longer than ``bound``; the same one, if it is not."""
    most = units_of(bound)
    if not is_longer(update, limit_units=most):
        return dict(update)
    length = math.isqrt(squared_length(update)) + 1
    return {
        name: np.asarray(np.trunc(values * (most / length)), dtype=values.dtype)
        for name, values in update.items()
    }
