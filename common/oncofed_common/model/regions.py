"""How do tumour compartments become smooth fields, and how do fields become compartments again?

The generated fields are signed distances (mm, negative inside, cut off) to four regions that nest as
in the BraTS challenge: whole tumour (NETC + SNFH + ET), core (NETC + ET), enhancing (ET), and the
resection cavity (RC) beside them. Nested regions leave no gaps where two compartments meet, and the
whole tumour's volume hangs on one field. The four compartments come back without loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from scipy import ndimage

from oncofed_common.cohort import LABELS
from oncofed_common.model.presets import Preset

REGIONS: Mapping[str, tuple[str, ...]] = {
    "whole": ("NETC", "SNFH", "ET"),
    "core": ("NETC", "ET"),
    "enhancing": ("ET",),
    "cavity": ("RC",),
}


def masks(labels: UInt8[ndarray, "x y z"]) -> Bool[ndarray, "region x y z"]:
    """Which voxels belong to each region."""
    return np.stack([np.isin(labels, [LABELS[n] for n in names]) for names in REGIONS.values()])


def distances(labels: UInt8[ndarray, "x y z"], preset: Preset) -> Float32[ndarray, "region x y z"]:
    """Signed distance to each region's surface, in units of the preset's limit, within [-1, 1].

    The surface lies half-way between a voxel inside and its neighbour outside. A region that is
    absent is +1 everywhere.
    """
    return np.stack([_distance(mask, preset) for mask in masks(labels)])


def labels_from(fields: Float[ndarray, "region x y z"]) -> UInt8[ndarray, "x y z"]:
    """Label values from signed distances: the inverse of ``distances`` up to the sign of zero.

    A voxel of the enhancing region or the core belongs to the whole tumour, whatever the outer
    field says; tumour wins over cavity.
    """
    whole, core, enhancing, cavity = fields < 0
    labels = np.zeros(fields.shape[1:], dtype=np.uint8)
    labels[cavity] = LABELS["RC"]
    labels[whole] = LABELS["SNFH"]
    labels[core] = LABELS["NETC"]
    labels[enhancing] = LABELS["ET"]
    return labels


def volumes_ml(labels: UInt8[ndarray, "x y z"], preset: Preset) -> Float[ndarray, " region"]:
    """Volume of each region within the window, in millilitres."""
    voxel_ml = preset.spacing_mm**3 / 1000.0
    return np.asarray(masks(labels).sum(axis=(1, 2, 3)) * voxel_ml)


def _distance(mask: Bool[ndarray, "x y z"], preset: Preset) -> Float32[ndarray, "x y z"]:
    if not mask.any():
        return np.ones(mask.shape, dtype=np.float32)
    if mask.all():
        return -np.ones(mask.shape, dtype=np.float32)
    outside = ndimage.distance_transform_edt(~mask, sampling=preset.spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=preset.spacing_mm)
    half = preset.spacing_mm / 2
    signed = np.where(mask, half - inside, outside - half)
    return np.clip(signed / preset.distance_limit_mm, -1.0, 1.0).astype(np.float32)
