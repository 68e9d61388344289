"""Does what happens, happen as often as was said?

Voxels are gathered by the stated probability; where 30 % was said, 30 % should be tumour. The reliability
error is the mean distance of the two over bins, each weighted by its voxels (expected calibration error;
Naeini et al., AAAI 2015). Bins of several patients add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

BINS = 10


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Sums over voxels, by bin of stated probability."""

    voxels: Float[ndarray, " bin"]
    stated: Float[ndarray, " bin"]
    happened: Float[ndarray, " bin"]

    @property
    def error(self) -> float:
        """The reliability error, 0 to 1; 0 where there are no voxels."""
        total = float(self.voxels.sum())
        return float(np.abs(self.stated - self.happened).sum()) / total if total else 0.0


def reliability(
    probability: Float[ndarray, " voxel"], truth: Bool[ndarray, " voxel"]
) -> Reliability:
    """The bins of one patient."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    voxels, stated, happened = (
        np.bincount(bins, weights=weights, minlength=BINS).astype(np.float64)
        for weights in (None, probability, truth.astype(np.float64))
    )
    return Reliability(voxels=voxels, stated=stated, happened=happened)


def together(parts: Iterable[Reliability]) -> Reliability:
    """The bins of all."""
    found = list(parts)
    return Reliability(
        voxels=np.sum([p.voxels for p in found], axis=0),
        stated=np.sum([p.stated for p in found], axis=0),
        happened=np.sum([p.happened for p in found], axis=0),
    )
