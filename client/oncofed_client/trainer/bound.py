"""What becomes of an update that is longer than its study's bound?

It is shrunk to the bound, in integers: the result depends on the update and on the study alone, so that it
is as private as the update was, and no refusal tells of its values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oncofed_common.tensors import UNITS_MOST, Tensors
from oncofed_common.update_bound import squared_length

_SHRINK_BITS = 31


def saturate(units: Tensors, *, limit_units: int) -> dict[str, NDArray[np.int32]]:
    """``units`` as they are, or the same direction shrunk to a norm of ``limit_units`` at most.

    Truncation towards zero makes no value larger, so the norm is at most the limit, exactly.
    """
    inside = {name: _ends(tensor) for name, tensor in units.items()}
    squared = squared_length(inside)
    if squared <= limit_units**2:
        return {name: tensor.astype(np.int32) for name, tensor in inside.items()}
    share = (limit_units << _SHRINK_BITS) // (math.isqrt(squared) + 1)
    return {
        name: (np.sign(tensor) * (np.abs(tensor) * share >> _SHRINK_BITS)).astype(np.int32)
        for name, tensor in inside.items()
    }


def _ends(tensor: NDArray[np.int32]) -> NDArray[np.int64]:
    """-2^31 has no counterpart and is no value that rounding gives: it becomes the end of the range."""
    return np.clip(tensor.astype(np.int64), -UNITS_MOST, UNITS_MOST)
