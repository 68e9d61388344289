"""Does a model draw the very follow-up that it was trained on?

For every patient futures are drawn, and each one's change since the last visit is held against the true
changes of all patients. A model that remembers comes nearest to a member's own more often than to that of
somebody whom it never saw. The figure is the mean rank of the own change among all, from 0 (the nearest)
to 1; what counts is the difference between members and others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.model.network import Network
from oncofed_common.model.prepare import Example, states
from oncofed_common.model.regions import REGIONS

WHOLE = list(REGIONS).index("whole")


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """Mean rank of the own follow-up, of members and of others."""

    members: float
    others: float


def remembered(
    network: Network,
    how: Sampling,
    *,
    members: Sequence[Example],
    others: Sequence[Example],
    seed: int,
) -> Remembered:
    """Draw futures of everybody, and find whose follow-up they are nearest to."""
    everybody = [*members, *others]
    truths = [changes(of, states(of.query, of.target[None], network.preset)) for of in everybody]
    ranks = []
    for number, of in enumerate(everybody):
        drawn = changes(of, futures(network, of.query, how, seed=seed + number))
        far = [float(np.square(drawn - truth).mean(axis=(1, 2, 3)).min()) for truth in truths]
        nearer = sum(value < far[number] for value in far)
        ranks.append(nearer / (len(everybody) - 1))
    cut = len(members)
    return Remembered(members=float(np.mean(ranks[:cut])), others=float(np.mean(ranks[cut:])))


def changes(
    of: Example, found: Float[Tensor, "sample field x y z"]
) -> Float32[ndarray, "sample x y z"]:
    """By how much the outline moved in each state, in units of the distance limit."""
    return np.asarray((found - of.query.reference)[:, WHOLE])
