"""How well do two outlines agree, and where a probability stands for one, how well is it placed?

Dice = 2 |A and B| / (|A| + |B|) (Dice 1945). The 95 % surface distance is the larger of both directions'
95th percentiles of the distance from one surface to the other (Taha & Hanbury, BMC Med. Imaging 15, 2015).
Average precision is the area under the precision-recall curve, sum of (R_n - R_n-1) P_n.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage


def dice(forecast: Bool[ndarray, "*grid"], truth: Bool[ndarray, "*grid"]) -> float:
    """1 where both are the same, 0 where they share nothing; two empty outlines agree: 1."""
    total = int(forecast.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((forecast & truth).sum()) / total


def surface_distance_95_mm(
    forecast: Bool[ndarray, "x y z"], truth: Bool[ndarray, "x y z"], *, spacing_mm: float
) -> float | None:
    """In mm; 0 between two empty outlines, ``None`` where only one is empty: there is no such distance."""
    if not forecast.any() or not truth.any():
        return None if forecast.any() or truth.any() else 0.0
    a, b = (mask & ~ndimage.binary_erosion(mask) for mask in (forecast, truth))
    to_a, to_b = (ndimage.distance_transform_edt(~edge, sampling=spacing_mm) for edge in (a, b))
    return float(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))


def average_precision(
    score: Float[ndarray, " voxel"], truth: Bool[ndarray, " voxel"]
) -> float | None:
    """Of ``score`` as a test for ``truth``, equal scores as one; ``None`` where nothing is true."""
    if not truth.any():
        return None
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits = np.cumsum(truth[order])[ends]
    precision = hits / (ends + 1)
    recall_gained = np.diff(np.append(0, hits)) / truth.sum()
    return float((precision * recall_gained).sum())
