"""The lower bound on epsilon, and the canaries that it is made of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.privacy import noised_sum as sums
from oncofed_simulation.arms import shipped
from oncofed_simulation.auditing.bound import lower_bound, p_value
from oncofed_simulation.auditing.canaries import one_run

TERMS = replace(shipped(), adapters="norm", epsilon=1.0, rounds=1)


@given(guesses=st.integers(1, 60), right=st.integers(0, 60), epsilon=st.floats(0.0, 5.0))
def test_without_delta_the_chance_is_the_binomial_tail(guesses, right, epsilon):
    """Summed by hand."""
    right = min(right, guesses)
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(
        math.comb(guesses, n) * chance**n * (1 - chance) ** (guesses - n)
        for n in range(right, guesses + 1)
    )
    found = p_value(canaries=100, guesses=guesses, right=right, epsilon=epsilon, delta=0.0)
    assert found == pytest.approx(tail, abs=1e-9)


@settings(deadline=None)
@given(right=st.integers(10, 40), delta=st.floats(0.0, 1e-4))
def test_delta_only_ever_weakens_what_guesses_refute(right, delta):
    about = {"canaries": 1000, "guesses": 40, "right": right, "confidence": 0.95}
    assert lower_bound(**about, delta=delta) <= lower_bound(**about, delta=0.0) + 1e-3


def test_the_bound_is_where_the_chance_is_one_in_twenty():
    """For all of forty right: q^40 = 0.05."""
    chance = 0.05 ** (1 / 40)
    found = lower_bound(canaries=40, guesses=40, right=40, delta=0.0, confidence=0.95)
    assert found == pytest.approx(math.log(chance / (1 - chance)), abs=1e-3)
    assert lower_bound(canaries=40, guesses=40, right=20, delta=0.0, confidence=0.95) == 0.0


def test_a_gaussian_mechanism_of_known_epsilon_is_not_refuted_and_a_weaker_one_is():
    """Four thousand canaries, scores drawn as such a mechanism would: an independent check of the whole."""
    rng = np.random.default_rng(3)

    def least(shift: float) -> float:
        inside = rng.random(4000) < 0.5
        order = np.argsort(rng.normal(0, 1, 4000) + shift * inside)
        right = int(inside[order[-80:]].sum() + (~inside[order[:80]]).sum())
        return lower_bound(canaries=4000, guesses=160, right=right, delta=1e-5, confidence=0.95)

    def epsilon(shift: float) -> float:
        """Of (epsilon, 1e-5) for a Gaussian shift (Balle & Wang 2018), by bisection."""
        low, high = 0.0, 50.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            delta = stats.norm.cdf(shift / 2 - middle / shift) - math.exp(middle) * stats.norm.cdf(
                -shift / 2 - middle / shift
            )
            low, high = (middle, high) if delta > 1e-5 else (low, middle)
        return high

    weak, strong = 0.27, 1.08
    assert epsilon(weak) == pytest.approx(1.0, abs=0.05)
    assert least(weak) < epsilon(weak)
    assert 1.0 < least(strong) < epsilon(strong)


def betrayed(canaries=2000):
    return one_run(
        build(SMALL, seed=0),
        [],
        TERMS,
        canaries=canaries,
        seed=4,
        watch=lambda *_: None,
    )


def test_the_shipped_engine_keeps_its_claim_among_canaries():
    found = betrayed()
    assert (found.canaries, found.guesses) == (2000, 80)
    assert found.holds
    assert found.right < 65


@pytest.mark.parametrize("fault", ["a quarter of the noise", "no noise", "the same noise"])
def test_canaries_betray_a_gross_fault(monkeypatch, fault):
    """Each makes the true epsilon many times the claimed one."""
    drawn = sums.discrete_gaussian

    def noise(stream, *, count):
        whole = drawn(stream, count=count)
        if fault == "a quarter of the noise":
            return whole // 4
        return whole * 0 if fault == "no noise" else whole * 0 + 7

    monkeypatch.setattr(sums, "discrete_gaussian", noise)
    found = betrayed()
    assert not found.holds
    assert found.least_epsilon > 1.0


def test_canaries_betray_a_patient_that_counts_many_times(monkeypatch):
    """As if each draw were clipped by itself and added: neither clip nor check holds it back."""
    monkeypatch.setattr("oncofed_common.privacy.engine.to_grid", eightfold)
    monkeypatch.setattr(sums, "fits_the_grid", lambda *_, **__: True)
    assert not betrayed().holds


def eightfold(gradient, *, mechanism):
    from oncofed_common.privacy.grid import to_grid

    return 8 * to_grid(gradient, mechanism=mechanism)


def test_a_seed_repeats_the_guesses():
    first, again = betrayed(200), betrayed(200)
    assert first == again
