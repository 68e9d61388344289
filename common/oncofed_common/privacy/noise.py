"""How is the noise drawn, so that no floating point is left in it?

The discrete Gaussian (Canonne, Kamath & Steinke 2020, arXiv 2004.00010) with standard deviation
s = 2^16 over the integers, ``P(k) ∝ exp(-k² / 2s²)``. A uniform 128-bit number is looked up in a table of
cumulative probabilities of ``|k|``, one more bit gives the sign; zero has half a weight because both
signs lead to it.

The table is computed in 256-bit fixed point, by ``w[k+1] = w[k] · r[k]``, ``r[k+1] = r[k] · exp(-1/s²)``;
after 13 · 2^16 entries the error is below 2^-190, so each threshold is within one unit of 2^-128 of the
exact one. What lies beyond 13 standard deviations (below 2^-125) is left out. Together, one value is
within 2^-107 of the exact distribution in total variation: N values add at most
``(1 + e^ε) · N · 2^-107`` to delta, that is below 2^-50 for N = 2^32 and ε = 16.

Accounting is that of the continuous Gaussian. Rounding a continuous Gaussian of variance ``s² - r²`` onto
the integers with discrete Gaussian noise of variance r² = 16 gives the discrete Gaussian of variance s²
up to e^-300 (Peikert 2010, theorem 3.1): the discrete mechanism is post-processing of a continuous one
whose standard deviation is smaller by 2^-29 of its size. The accountant counts that difference.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from oncofed_common.privacy.mechanism import NOISE_UNITS
from oncofed_common.privacy.stream import Stream

FIXED_BITS = 256
THRESHOLD_BITS = 128
GUIDE_BITS = 20
BLOCK = 1 << 16
"""So many values are drawn at a time: a block and what it is made of stay in the processor's cache."""
LARGEST = 13 * NOISE_UNITS
"""No noise value is larger, in grid units."""


def discrete_gaussian(stream: Stream, *, count: int) -> NDArray[np.int64]:
    """``count`` independent values with standard deviation 2^16, shape (count,)."""
    values = np.empty(count, dtype=np.int64)
    for first in range(0, count, BLOCK):
        part = values[first : first + BLOCK]
        sizes = magnitudes(*stream.uint128(len(part)))
        signs = 1 - 2 * stream.bits(len(part)).astype(np.int8)
        np.multiply(sizes, signs, out=part)
    return values


def magnitudes(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
    """``|noise|`` for uniform 128-bit numbers given as two words: how many thresholds are ≤ each.

    The first bits of a number nearly always say it alone; only where a threshold begins with the same
    bits is it compared.
    """
    told = _guide()[high >> np.uint64(64 - GUIDE_BITS)]
    found: NDArray[np.int64] = (told >> 1).astype(np.int64)
    close = np.flatnonzero((told & 1).astype(np.bool_))
    found[close] = _compared(found[close], high[close], low[close])
    return found


def _compared(
    found: NDArray[np.int64], high: NDArray[np.uint64], low: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """How many thresholds are ≤ each number, of which ``found`` are so by its first bits."""
    table_high, table_low = thresholds()
    found = found + (table_high[np.minimum(found, LARGEST - 1)] < high)
    rest = np.flatnonzero(table_high[np.minimum(found, LARGEST - 1)] < high)
    found[rest] = np.searchsorted(table_high, high[rest], side="left")
    same_word = table_high[np.minimum(found, LARGEST - 1)] == high
    for position in np.flatnonzero(same_word & (found < LARGEST)):
        first = int(found[position])
        last = int(np.searchsorted(table_high, high[position], side="right"))
        found[position] = first + np.searchsorted(
            table_low[first:last], low[position], side="right"
        )
    return found


@cache
def _guide() -> NDArray[np.int32]:
    """For each start of ``GUIDE_BITS`` bits: how many thresholds are below all numbers that begin so, times
    two; plus one where a threshold begins so itself.
    """
    first = np.arange(1 << GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
    below = np.searchsorted(thresholds()[0], first, side="left").astype(np.int32)
    up_to = np.append(below[1:], np.int32(LARGEST))
    return below * 2 + (up_to > below).astype(np.int32)


@cache
def thresholds() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """``floor(2^128 · P(|noise| ≤ k))`` for k = 0 … LARGEST - 1, as (high, low) words.

    Takes about a second, once in a process.
    """
    one = 1 << FIXED_BITS
    decay = _exp_of_minus_one_over(NOISE_UNITS**2)
    ratio = _exp_of_minus_one_over(2 * NOISE_UNITS**2)
    weight, cumulated = one, one >> 1
    sums = [cumulated]
    for _ in range(LARGEST):
        weight = weight * ratio >> FIXED_BITS
        ratio = ratio * decay >> FIXED_BITS
        cumulated += weight
        sums.append(cumulated)
    per_total = (1 << (2 * FIXED_BITS + THRESHOLD_BITS)) // sums.pop()
    packed = b"".join([(part * per_total >> 2 * FIXED_BITS).to_bytes(16, "big") for part in sums])
    words = np.frombuffer(packed, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    high, low = np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])
    high.setflags(write=False)
    low.setflags(write=False)
    return high, low


def _exp_of_minus_one_over(denominator: int) -> int:
    """``exp(-1 / denominator)`` in fixed point: the alternating series until its terms vanish."""
    term, total, order = 1 << FIXED_BITS, 0, 0
    while term:
        total += -term if order % 2 else term
        order += 1
        term //= denominator * order
    return total
