"""How well do two outlines agree? Dice = 2 |A and B| / (|A| + |B|) (Dice 1945)."""

from __future__ import annotations

from jaxtyping import Bool
from numpy import ndarray


def dice(forecast: Bool[ndarray, "*grid"], truth: Bool[ndarray, "*grid"]) -> float:
    """1 where both are the same, 0 where they share nothing; two empty outlines agree: 1."""
    total = int(forecast.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((forecast & truth).sum()) / total
