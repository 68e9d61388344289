"""Into which groups can a patient fall for which a private mean may be asked?

A fixed list: a study names some of it, and each is answered in every round, whoever is in it. A patient's
groups depend on that patient alone.
"""

from __future__ import annotations

import numpy as np

from oncofed_common.cohort import LABELS, Patient

GROUPS = ("all", "irradiated", "not_irradiated", "small", "large")
LARGE_ML = 20.0
"""Of NETC, SNFH and ET together at the first visit."""


def groups_of(patient: Patient) -> frozenset[str]:
    """The names of ``GROUPS`` that a patient falls under: everybody under ``all``, and under one of each
    pair."""
    last = patient.visits[-1].day
    courses = (one for one in patient.treatments if one.kind == "radiotherapy")
    irradiated = any(course.start_day < last for course in courses)
    outline = patient.visits[0].tumor
    tumor = np.isin(np.asarray(outline.data), [LABELS[name] for name in ("NETC", "SNFH", "ET")])
    voxel_ml = abs(float(np.linalg.det(outline.affine_mm[:3, :3]))) / 1000
    large = float(tumor.sum()) * voxel_ml >= LARGE_ML
    return frozenset(
        {
            "all",
            "irradiated" if irradiated else "not_irradiated",
            "large" if large else "small",
        }
    )
