"""Does a second, independent accountant agree?

Opacus' PRV accountant (Gopi, Lee & Wutschitz 2021) discretises another quantity by other code. Where it
and the PLD disagree, one of the libraries is wrong, and no statement is made. Its library loads torch, so
only the trainer asks it; the import waits for the call.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.accountant import DISCRETE_FACTOR, pld_epsilon
from oncofed_common.privacy.events import SubsampledGaussian

ABSOLUTE, RELATIVE = 0.02, 0.01
"""How far the accountants may lie apart; PRV itself works to 0.01."""


def checked_epsilon(event: SubsampledGaussian, delta: float) -> float:
    """The PLD's epsilon, on which the PRV accountant agrees within 0.02 + 1 %.

    Raises:
        PrivacyRefusal: the accountants disagree, or one of them cannot tell.
    """
    first, second = pld_epsilon(event, delta), prv_epsilon(event, delta)
    refuse_disagreement(first, second)
    return first


def refuse_disagreement(pld: float, prv: float) -> None:
    """Nothing, if the two values lie within 0.02 + 1 % of each other.

    Raises:
        PrivacyRefusal: they do not (code ``accountants``).
    """
    if not abs(pld - prv) <= ABSOLUTE + RELATIVE * pld:
        raise PrivacyRefusal(
            f"accountants that say {pld:.4f} and {prv:.4f}",
            allowed=f"a difference of {ABSOLUTE} + {RELATIVE:.0%}",
            next="report these study settings; do not train with them",
            code="accountants",
        )


@lru_cache(maxsize=1024)
def prv_epsilon(event: SubsampledGaussian, delta: float) -> float:
    """Epsilon of the event at ``delta`` by Opacus' PRV accountant, its upper estimate; cached.

    Raises:
        PrivacyRefusal: the accountant gives no number for these settings.
    """
    from opacus.accountants import PRVAccountant  # noqa: PLC0415  loads torch

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier * DISCRETE_FACTOR, event.rate, event.steps)]
    try:
        # log(1 - rate) at rate 1 is -inf, as it should be
        with np.errstate(divide="ignore"), warnings.catch_warnings():
            # Of the RDP bound from which it takes the width of its grid: a wide grid, not a wrong answer.
            warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
            return float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as fault:
        raise PrivacyRefusal(
            "settings for which the second accountant gives no number",
            allowed="settings on which two accountants agree",
            next="take a more usual rate, noise multiplier or number of steps",
            code="accountants",
        ) from fault
