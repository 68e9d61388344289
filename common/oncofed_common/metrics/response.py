"""What would a radiologist call this change of volume?

The volumetric thresholds of RANO 2.0 (Wen et al. 2023): progression is 40 % or more above the nadir,
partial response 65 % or more below the baseline, complete response no tumour at all, everything else
stable disease. A baseline below ``MEASURABLE_ML`` cannot be responded to: not evaluable, unless
measurable tumour comes. Volume alone decides here; a physician also asks for steroids, the clinical
state and a confirming scan.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from oncofed_common.metrics.scores import MEASURABLE_ML

PROGRESSION, PARTIAL = 1.40, 0.35
CATEGORIES = ("complete response", "partial response", "stable", "progression", "not evaluable")


def category(volume_ml: float, *, baseline_ml: float, nadir_ml: float) -> str:
    """One of ``CATEGORIES``.

    Args:
        baseline_ml: what response is measured against, here the first visit of the history.
        nadir_ml: the smallest volume since.
    """
    grown = volume_ml >= PROGRESSION * max(nadir_ml, MEASURABLE_ML)
    if baseline_ml < MEASURABLE_ML:
        return "progression" if grown else "not evaluable"
    if volume_ml == 0:
        return "complete response"
    if grown:
        return "progression"
    return "partial response" if volume_ml <= PARTIAL * baseline_ml else "stable"


def odds(
    volumes_ml: Float[ndarray, " sample"], *, history_ml: Float[ndarray, " visit"]
) -> Mapping[str, float]:
    """The share of samples in each category; the baseline is the first visit of the history.

    Args:
        history_ml: volume at each visit, in order of day.
    """
    baseline, nadir = float(history_ml[0]), float(history_ml.min())
    found = [category(float(v), baseline_ml=baseline, nadir_ml=nadir) for v in volumes_ml]
    return {name: float(np.mean([one == name for one in found])) for name in CATEGORIES}
