"""Who is drawn for a step?

Poisson sampling: each patient of the frame independently, with the study's rate. A patient is in when
a uniform 64-bit number lies below ``floor(rate · 2^64)``, computed on the exact value of the float. The
rounding is downwards, so the rate in effect is the accounted one or less (by under 2^-64), and epsilon
grows with the rate: the statement stays true.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.stream import Stream

WORD = 1 << 64


def poisson_draw(stream: Stream, *, patients: int, rate: float) -> NDArray[np.bool_]:
    """Who of the frame takes part in this step, shape (patients,).

    Raises:
        PrivacyRefusal: a rate outside (0, 1].
    """
    threshold = inclusion_threshold(rate)
    words = stream.uint64(patients)
    if threshold == WORD:
        return np.ones(patients, dtype=np.bool_)
    return words < np.uint64(threshold)


def inclusion_threshold(rate: float) -> int:
    """The number of 64-bit words, of 2^64, that draw a patient: ``floor(rate · 2^64)``.

    Raises:
        PrivacyRefusal: a rate outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise PrivacyRefusal(
            f"a sampling rate of {rate:g}",
            allowed="above 0, at most 1",
            next="set the rate in the study",
            code="rate",
        )
    return int(Fraction(rate) * WORD)
