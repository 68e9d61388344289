"""The discrete Gaussian: its table against closed forms, its draws against the distribution."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from functools import cache

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from oncofed_common.privacy.noise import (
    LARGEST,
    discrete_gaussian,
    magnitudes,
    thresholds,
)
from oncofed_common.privacy.stream import Stream

S = 2**16


def exact_cumulative(k: int) -> mpmath.mpf:
    """P(|Z| ≤ k), by Jacobi's theta function and the Euler-Maclaurin formula at 100 digits.

    Both are closed forms that share nothing with the recurrence of the table.
    """
    with mpmath.workdps(100):
        s, x = mpmath.mpf(S), mpmath.mpf(k)
        total = s * mpmath.sqrt(2 * mpmath.pi)  # the next theta term is exp(-2 π² s²)
        f = mpmath.exp(-(x**2) / (2 * s**2))
        # Σ_{-k}^{k} f = ∫ + f(k) + 2 Σ B_2m/(2m)! f^(2m-1)(k): odd derivatives by Hermite polynomials.
        inside = total * mpmath.erf(x / (s * mpmath.sqrt(2))) + f
        for m in range(1, 9):
            order = 2 * m - 1
            derivative = -hermite(order, x / s) * f / s**order
            inside += 2 * mpmath.bernoulli(2 * m) / mpmath.factorial(2 * m) * derivative
        return inside / total


def hermite(order: int, x: mpmath.mpf) -> mpmath.mpf:
    """Probabilists' Hermite polynomial, by its recurrence."""
    before, now = mpmath.mpf(1), x
    for n in range(1, order):
        before, now = now, x * now - n * before
    return now


@cache
def table() -> list[int]:
    high, low = thresholds()
    return [(int(h) << 64) | int(w) for h, w in zip(high, low, strict=True)]


@pytest.mark.parametrize("k", [0, 1, 2, 1000, S // 2, S, 2 * S + 1, 5 * S, 9 * S, LARGEST - 1])
def test_every_threshold_is_the_exact_probability_to_one_unit_of_2_to_the_minus_128(k):
    with mpmath.workdps(100):
        # The table's total leaves out the tail beyond 13 standard deviations.
        exact = exact_cumulative(k) / exact_cumulative(LARGEST) * mpmath.mpf(2) ** 128
        assert abs(table()[k] - exact) <= 1


def test_what_the_table_leaves_out_is_below_2_to_the_minus_125():
    with mpmath.workdps(100):
        assert 0 < 1 - exact_cumulative(LARGEST) < mpmath.mpf(2) ** -125


def test_the_table_rises_to_the_very_top():
    values = table()
    assert len(values) == LARGEST
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert 2**128 - 2**16 < values[-1] <= 2**128


def words(*numbers: int) -> tuple[np.ndarray, np.ndarray]:
    mask = 2**64 - 1
    return (
        np.array([n >> 64 for n in numbers], dtype=np.uint64),
        np.array([n & mask for n in numbers], dtype=np.uint64),
    )


@pytest.mark.parametrize("k", [0, 1, 77, S, 4 * S, 9 * S + 5, 11 * S])
def test_a_number_is_looked_up_by_all_its_128_bits(k):
    """Just below and exactly at a threshold, also where hundreds of them share the high word."""
    at = table()[k]
    expected = [sum(t <= n for t in table()[max(0, k - 500) : k + 500]) for n in (at - 1, at)]
    found = magnitudes(*words(at - 1, at)) - max(0, k - 500)
    assert found.tolist() == expected
    assert found[1] > found[0]


NUMBERS = st.one_of(
    st.integers(0, 2**128 - 1),
    st.tuples(st.integers(0, LARGEST - 1), st.integers(-1, 1)).map(
        lambda pair: min(2**128 - 1, max(0, table()[pair[0]] + pair[1]))
    ),
    st.tuples(st.integers(0, 2**20), st.integers(-1, 1)).map(  # where another guess begins
        lambda pair: min(2**128 - 1, max(0, (pair[0] << 108) + pair[1]))
    ),
)


@given(numbers=st.lists(NUMBERS, max_size=30))
def test_the_short_way_into_the_table_is_the_long_one(numbers):
    exact = [bisect_right(table(), number) for number in numbers]
    assert magnitudes(*words(*numbers)).tolist() == exact


def test_the_least_number_gives_zero_and_the_greatest_stays_inside_the_table():
    found = magnitudes(*words(0, 2**128 - 1))
    assert found[0] == 0
    assert found[1] <= LARGEST
    assert found[1] > 12.5 * S


@cache
def draws() -> np.ndarray:
    return discrete_gaussian(Stream.from_seed(b"draws of the discrete Gaussian.."), count=1_000_000)


def test_a_million_draws_follow_the_exact_distribution():
    """Chi-square over 60 bins whose probabilities come from the closed form."""
    edges = np.linspace(0, 4 * S, 30).astype(int)
    cumulative = np.array([float(exact_cumulative(int(k))) for k in edges[1:]])
    inner = np.diff(np.concatenate([[0.0], cumulative]))
    per_side = np.concatenate([inner, [1 - cumulative[-1]]])
    values = draws()
    zero = float(exact_cumulative(0))
    observed = [
        np.histogram(side, bins=[0, *(edges[1:] + 1), LARGEST + 1])[0]
        for side in (values[values > 0], -values[values < 0])
    ]
    expected = per_side / 2
    expected[0] -= zero / 2
    expected = np.concatenate([expected, expected, [zero]]) * len(values)
    counts = np.concatenate([*observed, [np.count_nonzero(values == 0)]])
    assert counts.sum() == len(values)
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_noise_of_a_quarter_of_the_size_would_fail_that_test():
    """The audit has power: the planted fault is seen."""
    assert stats.kstest(draws()[:2000] / 4 / S, "norm").pvalue < 1e-6
    assert stats.kstest(draws()[:2000] / S, "norm").pvalue > 1e-4


def test_mean_spread_and_symmetry_are_those_of_the_distribution():
    values = draws() / S
    assert abs(values.mean()) < 5 / 1000
    assert values.std() == pytest.approx(1, abs=5 / np.sqrt(2) / 1000)
    assert abs((values > 0).mean() - (values < 0).mean()) < 5 / 1000
    assert abs(stats.skew(values)) < 5 * np.sqrt(6) / 1000
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / 1000


def test_low_bits_of_the_noise_are_fair():
    """What floating-point noise gets wrong: its low-order bits."""
    ones = np.stack([(draws() >> bit) & 1 for bit in range(8)]).mean(axis=1)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / 1000


def test_no_values_is_a_legal_count():
    assert discrete_gaussian(Stream.from_os(), count=0).shape == (0,)
