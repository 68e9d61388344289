"""How is one patient's gradient brought onto the integer grid?

Clip to L2 norm C (norm in float64), divide by the grid step ``σC / 2^16``, truncate towards zero.
Truncation makes no coordinate longer, so it cannot raise the norm: on the grid the norm is at most
``2^16 / σ`` with and without it, and sensitivity stays C. That is not left to floating point. The
clipped vector is shortened by a further 2^-30, far more than float64 can err, and the squared norm is
then checked in integers; a vector that fails, or that was not finite, is the zero vector, and nobody
outside can tell.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from oncofed_common.privacy.mechanism import Mechanism

ROUNDING_MARGIN = 1.0 - 2.0**-30
"""Covers the float64 error of norm, quotient and product: below 2^-31 for 2^20 weights and more."""

BLOCK = 1 << 14
"""Coordinates are at most 2^20 (σ ≥ 2^-4), squares 2^40: a block of them stays below 2^54. What is made
of a block stays in the processor's cache: a whole gradient in float64 would cost more in fresh memory."""


def to_grid(
    gradient: Float[Tensor, " weight"], *, mechanism: Mechanism
) -> Int64[Tensor, " weight"]:
    """One patient's gradient, clipped, in grid units; zero where it is not finite.

    Source: truncation onto a grid before discrete noise, Kairouz, Liu & Steinke 2021
    (arXiv 2102.06387), with truncation towards zero in place of randomised rounding.
    """
    whole = gradient.detach()
    norm = float(torch.linalg.vector_norm(whole, dtype=torch.float64))
    if not norm < float("inf"):  # NaN too
        return torch.zeros_like(whole, dtype=torch.int64)
    shrink = min(1.0, mechanism.clip_norm / norm) if norm > 0 else 1.0
    scale = shrink * ROUNDING_MARGIN / mechanism.grid_step
    found = torch.empty_like(whole, dtype=torch.int64)
    for part, onto in zip(torch.split(whole, BLOCK), torch.split(found, BLOCK), strict=True):
        onto.copy_(part.to(torch.float64) * scale)  # the conversion truncates towards zero
    return found


def fits_the_grid(vector: Int64[Tensor, " weight"], *, mechanism: Mechanism) -> bool:
    """Whether the squared norm is at most ``(2^16 / σ)²``, decided in exact integers."""
    limit = mechanism.squared_norm_limit
    if vector.numel() == 0:
        return True
    least, most = (int(extreme) for extreme in torch.aminmax(vector))
    if max(most, -least) ** 2 > limit:  # from here on no square can overflow
        return False
    return squared_norm(vector) <= limit


def squared_norm(vector: Int64[Tensor, " weight"]) -> int:
    """Exact squared L2 norm of a vector whose entries are at most 2^20 in size."""
    return sum(int((block * block).sum()) for block in torch.split(vector, BLOCK))
