"""What does a study cost, in epsilon, and what does it take from a patient's lifetime?

Inside a study every setting is frozen, so the privacy loss distribution (PLD) of ``dp-accounting`` states
its epsilon (Koskela et al. 2020; Doroshenko et al. 2022, "connect the dots": an upper bound). Across
studies its Rényi loss at one fixed order counts (see ``filter``).

Everything here runs without torch: the coordinator prints what a study costs before anybody approves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.privacy.filter import filter_epsilon, refuse_delta, refuse_order
from oncofed_common.privacy.mechanism import LEAST_NOISE, MOST_NOISE

DISCRETE_FACTOR = 1.0 - 2.0**-28
"""The discrete noise is no worse than continuous noise shrunk by this factor (see ``noise``)."""

MOST_LOSS = 128.0
"""Rényi loss at order 2 above which nothing is protected, and no loss distribution fits in memory."""

BRACKET_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)

FINE, COARSE = 1e-4, 1e-3
"""Grids of the privacy loss. Both give upper bounds: the coarse one in a tenth of the time, and close
only where epsilon is large."""

STATED = Decimal("0.0001")
STATED_SLACK = 1e-6
"""A stated epsilon is rounded up to four decimals after adding a slack that is a thousand times the
difference between two machines' floating point: so each of them finds the statement true."""

NOISE_STEPS_PER_UNIT = 10_000
"""Calibrated noise multipliers are multiples of 1e-4."""


def pld_epsilon(event: SubsampledGaussian, delta: float) -> float:
    """Epsilon of the event at ``delta``, an upper bound by PLD; cached.

    Raises:
        PrivacyRefusal: a delta outside (0, 1), or an event that protects nobody.
    """
    return _pld(event, delta, FINE)


def stated_epsilon(event: SubsampledGaussian, delta: float) -> Decimal:
    """The epsilon that a study states: that of PLD, rounded up to four decimals.

    Raises:
        PrivacyRefusal: as ``pld_epsilon``.
    """
    return round_up(pld_epsilon(event, delta))


def round_up(epsilon: float) -> Decimal:
    """``epsilon`` with four decimals, never less (see ``STATED_SLACK``)."""
    return Decimal(epsilon + STATED_SLACK).quantize(STATED, rounding=ROUND_CEILING)


def refuse_understated(stated: float | Decimal, *, event: SubsampledGaussian, delta: float) -> None:
    """Nothing, if the stated epsilon covers what the event costs.

    Raises:
        PrivacyRefusal: the study costs more than it states (code ``understated``).
    """
    cost = pld_epsilon(event, delta)
    if not stated >= cost:
        raise PrivacyRefusal(
            f"a stated epsilon of {stated}",
            allowed=f"{round_up(cost)} or more",
            next="have the study published with what it costs",
            code="understated",
        )


@lru_cache(maxsize=1024)
def rdp_at(event: SubsampledGaussian, order: int) -> float:
    """Rényi loss of the event at one order (Mironov, Talwar & Zhang 2019, by dp-accounting).

    Raises:
        PrivacyRefusal: an order outside 2 to 256.
    """
    refuse_order(order)
    accountant = RdpAccountant(orders=[order])
    accountant.compose(_as_dp_event(event))
    return float(accountant.rdp[0])


def noise_multiplier_for(*, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier (a multiple of 1e-4) whose stated epsilon is ``epsilon`` at most.

    The Rényi bound, which costs nothing, says where to begin; from there down it is PLD.

    Raises:
        PrivacyRefusal: no noise multiplier that can be used gives so small an epsilon.
    """
    interval = COARSE if epsilon > 2 else FINE
    least = math.ceil(LEAST_NOISE * NOISE_STEPS_PER_UNIT)
    most = math.floor(MOST_NOISE * NOISE_STEPS_PER_UNIT)

    def event(units: int) -> SubsampledGaussian:
        noise_multiplier = units / NOISE_STEPS_PER_UNIT
        return SubsampledGaussian(rate=rate, noise_multiplier=noise_multiplier, steps=steps)

    def safe(units: int) -> bool:
        losses = ((order, rdp_at(event(units), order)) for order in BRACKET_ORDERS)
        return any(
            filter_epsilon(loss, order=order, delta=delta) <= epsilon for order, loss in losses
        )

    def affordable(units: int) -> bool:
        if rdp_at(event(units), 2) > MOST_LOSS:
            return False
        return round_up(_pld(event(units), delta, interval)) <= Decimal(epsilon)

    enough = _least_that(safe, least, most)
    if not affordable(enough):
        raise PrivacyRefusal(
            f"a wished epsilon of {epsilon:g}",
            allowed=f"what a noise multiplier of {MOST_NOISE:g} can reach",
            next="take fewer steps, a lower rate or a larger epsilon",
            code="calibration",
        )
    lower = max(least, enough * 9 // 10)
    while lower > least and affordable(lower):
        enough, lower = lower, max(least, lower * 9 // 10)
    enough = _least_that(affordable, lower, enough)
    while stated_epsilon(event(enough), delta) > Decimal(epsilon):
        enough += 1
    return enough / NOISE_STEPS_PER_UNIT


def _least_that(good: Callable[[int], bool], least: int, most: int) -> int:
    """The least number from ``least`` to ``most`` that is good, where all above it are; else most."""
    while least < most:
        middle = (least + most) // 2
        if good(middle):
            most = middle
        else:
            least = middle + 1
    return most


@lru_cache(maxsize=1024)
def _pld(event: SubsampledGaussian, delta: float, interval: float) -> float:
    refuse_delta(delta)
    loss = rdp_at(event, 2)
    if not loss <= MOST_LOSS:
        raise PrivacyRefusal(
            f"a Rényi loss of {loss:g} at order 2",
            allowed=f"{MOST_LOSS:g} at most",
            next="take fewer steps, a lower rate or more noise",
            code="epsilon",
        )
    accountant = PLDAccountant(value_discretization_interval=interval)
    accountant.compose(_as_dp_event(event))
    return float(accountant.get_epsilon(delta))


def _as_dp_event(event: SubsampledGaussian) -> dp_accounting.DpEvent:
    noise = dp_accounting.GaussianDpEvent(event.noise_multiplier * DISCRETE_FACTOR)
    once = noise if event.rate == 1 else dp_accounting.PoissonSampledDpEvent(event.rate, noise)
    return dp_accounting.SelfComposedDpEvent(once, event.steps)
