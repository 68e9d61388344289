"""Through which single place does data reach the weights?

Through this one: exact integer sum of patients on the grid, plus discrete Gaussian noise, times a public
constant. Whatever is done with the result (optimiser, average of weights, aggregation) is
post-processing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float64
from torch import Tensor

from oncofed_common.privacy.grid import fits_the_grid
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noise import discrete_gaussian
from oncofed_common.privacy.stream import Stream


def noised_sum(
    patients: Iterable[Tensor],
    *,
    weights: int,
    mechanism: Mechanism,
    stream: Stream,
) -> Float64[Tensor, " weight"]:
    """The mean gradient that may be used: ``(Σ patients + noise) · σC / 2^16 / (rate · declared)``.

    Args:
        patients: one int64 vector of shape (weights,) in grid units for each patient drawn; none for
            an empty draw, which is noised like any other. A vector that is longer than the grid
            allows, or of another shape or dtype, counts as zero.
        weights: number of trained weights.

    Returns:
        Shape (weights,), on the CPU.
    """
    total = torch.zeros(weights, dtype=torch.int64)
    for vector in patients:
        expected = vector.shape == (weights,) and vector.dtype == torch.int64
        if expected and fits_the_grid(vector, mechanism=mechanism):
            total = total.to(vector.device).add_(vector)
        del vector  # else it would be in memory beside the next patient's activations
    noise = torch.from_numpy(discrete_gaussian(stream, count=weights))
    return (total.cpu() + noise).to(torch.float64) * mechanism.gradient_per_unit
