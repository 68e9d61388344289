"""What does a forecast have to beat?

Simple guesses of a tumour's volume from the volumes before: that nothing changes, as a point or with the
spread that other patients showed, and growth laws of the volume alone. A law has one rate for each patient,
fitted to that patient's volumes and drawn towards other patients' as far as one or two intervals leave it
open (Gaussian prior on the rate, Gaussian errors of the log volume: the posterior mode).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize

CAPACITY_ML = 400.0
"""What a volume saturates at: a third of a brain."""
OUTLINE_ERROR = 0.1
"""Standard deviation of a log volume as outlined."""


def logistic(volume_ml: float, rate_per_day: float, days: float) -> float:
    """dV/dt = r V (1 - V/K)."""
    odds = volume_ml / (CAPACITY_ML - volume_ml) * math.exp(min(rate_per_day * days, 50.0))
    return CAPACITY_ML * odds / (1 + odds)


def gompertz(volume_ml: float, rate_per_day: float, days: float) -> float:
    """dV/dt = r V log(K/V) (Gompertz 1825); r may be negative."""
    left = math.log(volume_ml / CAPACITY_ML) * math.exp(min(-rate_per_day * days, 50.0))
    return CAPACITY_ML * math.exp(max(left, -50.0))


LAWS: Mapping[str, Callable[[float, float, float], float]] = {
    "logistic": logistic,
    "gompertz": gompertz,
}


def rate_between(law: str, before_ml: float, after_ml: float, days: float) -> float:
    """The rate at which a law leads from one volume to another: what others' rates are made of."""
    before, after = (min(v, 0.99 * CAPACITY_ML) for v in (before_ml, after_ml))
    if law == "logistic":
        return (_log_odds(after) - _log_odds(before)) / days
    return math.log(math.log(CAPACITY_ML / before) / math.log(CAPACITY_ML / after)) / days


def _log_odds(volume_ml: float) -> float:
    return math.log(volume_ml / (CAPACITY_ML - volume_ml))


def no_change_with_spread(
    last_ml: float, other_log_ratios: Sequence[float]
) -> Float[ndarray, " sample"]:
    """The last volume times what other patients' volumes came to."""
    return last_ml * np.exp(np.asarray(other_log_ratios, dtype=np.float64))


def rate_per_day(
    law: str,
    days: Sequence[float],
    volumes_ml: Sequence[float],
    *,
    usual: float,
    spread: float,
) -> float:
    """The likeliest rate of one patient: ``usual`` for a single volume.

    Args:
        usual, spread: mean and standard deviation of other patients' rates.
    """
    if len(days) < 2:
        return usual
    grow, logs = LAWS[law], np.log(volumes_ml)

    def misfit(rate: float) -> float:
        steps = zip(days, days[1:], volumes_ml, logs[1:], strict=False)
        errors = [math.log(grow(v, rate, then - now)) - log for now, then, v, log in steps]
        off = (rate - usual) / spread
        return float(off**2 + sum(e**2 for e in errors) / OUTLINE_ERROR**2) / 2

    reach = 5 * spread
    found = optimize.minimize_scalar(
        misfit, bounds=(usual - reach, usual + reach), method="bounded"
    )
    return float(found.x)


def grown_ml(law: str, last_ml: float, rate: float, days: float) -> float:
    """The volume ``days`` later, in ml."""
    return LAWS[law](min(last_ml, 0.99 * CAPACITY_ML), rate, days)
