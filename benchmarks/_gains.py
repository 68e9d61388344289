"""By how much is one better than another, and how sure is that? For ``federation.py``."""

from __future__ import annotations

import math

from _figures import Figure
from jaxtyping import Float
from numpy import ndarray

SEEDS = 5
STUDENT = 2.776
"""Of Student's t with four degrees of freedom, for 95 % over five seeds."""


def gained(name: str, gain: Float[ndarray, " seed"]) -> list[Figure]:
    """The mean gain, and its 95 % interval over seeds."""
    return [
        Figure(name=f"gain {name}", value=float(gain.mean()), unit=""),
        Figure(name=f"its 95 % interval, +-, {name}", value=half_width(gain), unit=""),
    ]


def verdict(gain: Float[ndarray, " seed"]) -> str:
    """Whether it helps, in words."""
    width = half_width(gain)
    if width is None:
        return "too few seeds to say"
    if abs(gain.mean()) <= width:
        return "makes no measurable difference"
    return "helps" if gain.mean() > 0 else "harms"


def half_width(gains: Float[ndarray, " seed"]) -> float | None:
    """Of the interval of the mean over seeds; None for fewer than five."""
    if len(gains) != SEEDS:
        return None
    return STUDENT * float(gains.std(ddof=1)) / math.sqrt(SEEDS)


def with_error(of: str, gains: Float[ndarray, " patient"]) -> list[Figure]:
    """The mean gain, and its standard error over patients."""
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return [
        Figure(name=f"gain in {of}", value=float(gains.mean()), unit=""),
        Figure(name=f"its standard error over patients, {of}", value=error, unit=""),
    ]
