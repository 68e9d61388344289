"""What may leave of a loss on patients who are never trained on?

For each group that the study names, the sum of the losses of those held out who fall under it, each between
0 and a bound, over a public number; noised like an update. One patient is a vector with its loss in the
places of its groups, at most bound x (groups)^(1/2) long, and goes through the very same integer sum
(``noised_sum``): grid, check, noise and divisor are those of training, at a rate of 1.

The divisor is public, so a group's figure is its mean times its share of those held out: from round to
round it can be compared, and what it comes to for everybody (``all``) is the mean loss, as far as the
site's stated size is true.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from oncofed_common.privacy.grid import to_grid
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noised_sum import noised_sum
from oncofed_common.privacy.stream import Stream


def mean_mechanism(
    *,
    bound: float,
    noise_multiplier: float,
    groups: int,
    declared_patients: int,
    held_out_fraction: float,
) -> Mechanism:
    """The constants of one round's means, all from the study.

    Args:
        bound: the most that one patient's loss counts.
        groups: how many are asked about.
        held_out_fraction: of the declared patients: the divisor, 1 at least.
    """
    return Mechanism(
        clip_norm=bound * math.sqrt(groups),
        noise_multiplier=noise_multiplier,
        sampling_rate=1.0,
        declared_patients=max(1, round(declared_patients * held_out_fraction)),
    )


def private_means(
    losses: Sequence[float],
    groups: Sequence[Collection[str]],
    *,
    asked: Sequence[str],
    bound: float,
    mechanism: Mechanism,
    stream: Stream,
) -> Float64[ndarray, " group"]:
    """The noised figure of each group asked about, in that order.

    Args:
        losses: of each patient held out; one that is not finite counts as nothing.
        groups: what each of them falls under.
        mechanism: see ``mean_mechanism``.
    """
    vectors = []
    for loss, of in zip(losses, groups, strict=True):
        kept = min(max(loss, 0.0), bound) if math.isfinite(loss) else 0.0
        vector = torch.tensor([kept if name in of else 0.0 for name in asked], dtype=torch.float64)
        vectors.append(to_grid(vector, mechanism=mechanism))
    noised = noised_sum(vectors, weights=len(asked), mechanism=mechanism, stream=stream)
    return np.asarray(noised)
