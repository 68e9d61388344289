"""What do right guesses about who took part say of epsilon?

One training run with many canaries, each of which took part by the toss of a coin: if the run is
(epsilon, delta)-private, the number of right guesses among those that somebody ventures is about at most
binomial with the chance e^eps / (1 + e^eps) for each (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846,
theorem 5.2). More right guesses than that refute the epsilon.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

LARGEST_EPSILON = 50.0
TOLERANCE = 1e-4


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, if the run is (epsilon, delta)-private.

    Args:
        canaries: how many there were, in and out.
        guesses: about how many somebody ventured a guess.
        right: how many of these were right.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, chance))
    below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    steepest = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2 * canaries * delta * steepest)


def lower_bound(
    *, canaries: int, guesses: int, right: int, delta: float, confidence: float
) -> float:
    """The largest epsilon that the guesses refute with that confidence; 0 where they refute none."""
    refuted, stands = 0.0, LARGEST_EPSILON

    def refutes(epsilon: float) -> bool:
        chance = p_value(
            canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta
        )
        return chance <= 1 - confidence

    if not refutes(0.0):
        return 0.0
    while stands - refuted > TOLERANCE:
        middle = (refuted + stands) / 2
        if refutes(middle):
            refuted = middle
        else:
            stands = middle
    return refuted
