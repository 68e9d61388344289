"""How much may a patient be charged in a lifetime, when each study is chosen after seeing the last?

Composed PLD is no valid stopping rule then. A filter is: Rényi losses at one order, fixed before the
first study, are added up and the next event is refused once the sum would pass a bound (Feldman & Zrnic
2021, theorem 3.1; for one patient at a time, which is how it is used here). A sum R at order α means

    ε = R + log(1 - 1/α) - log(δα) / (α - 1)

(Canonne, Kamath & Steinke 2020, proposition 12). This file needs nothing but arithmetic.
"""

from __future__ import annotations

import math

from oncofed_common.errors import PrivacyRefusal

LEAST_ORDER, MOST_ORDER = 2, 256
"""Orders are integers: only there does the subsampled Gaussian have a closed form."""


def filter_epsilon(rdp_sum: float, *, order: int, delta: float) -> float:
    """Epsilon at ``delta`` of a patient whose Rényi losses at ``order`` add up to ``rdp_sum``.

    It is 0 for a patient who was never charged.

    Raises:
        PrivacyRefusal: an order, a delta or a sum that cannot be converted.
    """
    if not rdp_sum >= 0:
        raise PrivacyRefusal(
            f"a Rényi loss of {rdp_sum:g}",
            allowed="0 or more",
            next="verify the ledger",
            code="filter",
        )
    overhead = _overhead(order, delta)
    return max(0.0, rdp_sum + overhead) if rdp_sum > 0 else 0.0


def filter_room(epsilon: float, *, order: int, delta: float) -> float:
    """The largest sum of Rényi losses at ``order`` that still means ``epsilon`` at ``delta``.

    Raises:
        PrivacyRefusal: no room at all at this order, or an order or delta that cannot be converted.
    """
    room = epsilon - _overhead(order, delta)
    if not room > 0:
        raise PrivacyRefusal(
            f"a lifetime epsilon of {epsilon:g} at order {order} and delta {delta:g}",
            allowed="one that leaves room for a study",
            next=f"take order {best_order(epsilon, delta=delta)} or a larger epsilon",
            code="filter",
        )
    return room


def best_order(epsilon: float, *, delta: float) -> int:
    """The order at which most Gaussian steps fit into ``epsilon``: each costs in proportion to it."""
    orders = range(LEAST_ORDER, MOST_ORDER + 1)
    return max(orders, key=lambda order: (epsilon - _overhead(order, delta)) / order)


def refuse_order(order: int) -> None:
    """Nothing, for an order at which losses can be stated.

    Raises:
        PrivacyRefusal: any other.
    """
    if not LEAST_ORDER <= order <= MOST_ORDER:
        raise PrivacyRefusal(
            f"a filter order of {order}",
            allowed=f"an integer from {LEAST_ORDER} to {MOST_ORDER}",
            next="choose the order in the site's policy",
            code="filter",
        )


def refuse_delta(delta: float) -> None:
    """Nothing, for a probability strictly between 0 and 1.

    Raises:
        PrivacyRefusal: any other number, NaN included.
    """
    if not 0 < delta < 1:
        raise PrivacyRefusal(
            f"a delta of {delta:g}",
            allowed="strictly between 0 and 1",
            next="correct the delta",
            code="delta",
        )


def _overhead(order: int, delta: float) -> float:
    refuse_order(order)
    refuse_delta(delta)
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
