"""Does a sampled future keep to the laws of growth that were fitted to this very patient?

Four questions, asked of every sample by numbers alone:

- place: no tumour voxel lies where none can grow (``model.barren``);
- speed: the front has not gone farther beyond the last outline than the fitted speed, at the upper end of its
  95 % interval, permits in the days between, plus what outlines differ by when drawn twice;
- mass: the visible volume has not grown faster than cells divide at the upper end of the fitted rate;
- equation: the outline lies where the fitted equation's solutions lie, in units of their spread and of the
  outlines' error, root mean square over the surface.

Speed v, rate rho and diffusion D are one: v = 2 (D rho)^(1/2), width w = (D / rho)^(1/2), so rho = v /
(2 w); the errors of v and w are taken as independent. Without a fit only the place can be certified,
without a tissue map nothing can, and the certificate says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from oncofed_common.metrics.scores import MEASURABLE_ML
from oncofed_common.model.barren import barren, knows_tissue
from oncofed_common.model.prepare import EXPECTED_MAPS, Query
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS, labels_from, masks
from oncofed_common.model.tokens import (
    HORIZON,
    HORIZON_DAYS,
    PHYSICS,
    TYPICAL_SPEED_MM_PER_DAY,
    TYPICAL_WIDTH_MM,
)

WHOLE = list(REGIONS).index("whole")
UPPER = 1.96
OUTLINE_ERROR_MM = 2.0
"""How far two outlines of the same tumour lie apart (standard deviation)."""
FRONT = 0.95
"""The share of the new surface that must lie within reach: single voxels may be noise of the outline."""
LARGEST_RMS = 3.0
LAWS = ("place", "speed", "mass", "equation")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What every sample was found to be.

    Args:
        kept: for each of ``LAWS`` that could be asked about, whether each sample keeps it: without a fit
            "place" alone, without a tissue map none.
        front_mm, permitted_mm: how far each sample's front has gone, and how far it may.
        growth, permitted_growth: natural logarithm of the volume's ratio, and its upper limit.
        rms: of the distance to the fitted equation, in standard deviations.
    """

    kept: dict[str, Bool[ndarray, " sample"]]
    front_mm: Float[ndarray, " sample"]
    permitted_mm: float
    growth: Float[ndarray, " sample"]
    permitted_growth: float
    rms: Float[ndarray, " sample"]

    @property
    def passed(self) -> Bool[ndarray, " sample"]:
        """Which samples keep every law that could be asked about; all, where that is none."""
        all_of_them = np.ones(len(self.rms), dtype=bool)
        return np.asarray(np.logical_and.reduce([all_of_them, *self.kept.values()]))


def certify(
    asked: Query, drawn: Float[ndarray, "sample field x y z"], preset: Preset
) -> Certificate:
    """Ask the four questions of every sampled state of ``futures``."""
    whole = np.stack([masks(labels_from(state[: len(REGIONS)]))[WHOLE] for state in drawn])
    before = asked.reference.numpy()[: len(REGIONS)] < 0
    kept = {}
    if knows_tissue(asked, preset):
        kept["place"] = ~(whole & barren(asked, preset)).any(axis=(1, 2, 3))
    rows = asked.tokens.numpy()
    known, log_speed, speed_sd, log_width, width_sd = rows[PHYSICS, :5]
    days = float(rows[HORIZON, 0]) * HORIZON_DAYS
    speed = TYPICAL_SPEED_MM_PER_DAY * math.exp(log_speed + UPPER * speed_sd)
    rate_sd = math.hypot(speed_sd, width_sd)
    usual = TYPICAL_SPEED_MM_PER_DAY / (2 * TYPICAL_WIDTH_MM)
    rate = usual * math.exp(log_speed - log_width + UPPER * rate_sd)
    slack_mm = UPPER * math.sqrt(2) * OUTLINE_ERROR_MM + preset.spacing_mm / 2
    front_mm = _fronts_mm(whole, np.asarray(before.any(axis=0)), preset.spacing_mm)
    growth, slack = _growth(whole, before[WHOLE], preset, slack_mm)
    found = Certificate(
        kept=kept,
        front_mm=front_mm,
        permitted_mm=speed * days + slack_mm,
        growth=growth,
        permitted_growth=rate * days + slack,
        rms=_off_equation(asked, drawn, preset),
    )
    if known:
        kept["speed"] = found.front_mm <= found.permitted_mm
        kept["mass"] = found.growth <= found.permitted_growth
        kept["equation"] = found.rms <= LARGEST_RMS
    return found


def _fronts_mm(
    whole: Bool[ndarray, "sample x y z"], before: Bool[ndarray, "x y z"], spacing_mm: float
) -> Float[ndarray, " sample"]:
    """How far beyond the lesion each sample's surface lies, at the ``FRONT`` quantile; 0 where it is
    within."""
    if not before.any():
        return np.zeros(len(whole))
    away = ndimage.distance_transform_edt(~before, sampling=spacing_mm)
    fronts = []
    for one in whole:
        surface = one & ~ndimage.binary_erosion(one, border_value=1)
        fronts.append(float(np.quantile(away[surface], FRONT)) if surface.any() else 0.0)
    return np.array(fronts)


def _growth(
    whole: Bool[ndarray, "sample x y z"],
    before: Bool[ndarray, "x y z"],
    preset: Preset,
    slack_mm: float,
) -> tuple[Float[ndarray, " sample"], float]:
    """Log ratio of volumes, and what the error of the outline alone makes of a sphere of the first."""
    least = MEASURABLE_ML
    voxel_ml = preset.spacing_mm**3 / 1000
    old = max(float(before.sum()) * voxel_ml, least)
    new = np.maximum(whole.sum(axis=(1, 2, 3)) * voxel_ml, least)
    radius_mm = (3 * old * 1000 / (4 * math.pi)) ** (1 / 3)
    return np.log(new / old), 3 * math.log1p(slack_mm / radius_mm)


def _off_equation(
    asked: Query, drawn: Float[ndarray, "sample field x y z"], preset: Preset
) -> Float[ndarray, " sample"]:
    """Distance from the draws' median in their own spread, over voxels near the sample's or the
    median's surface."""
    change, spread = asked.conditions.numpy()[-EXPECTED_MAPS:][[0, 2]] / preset.distance_gain
    reference = asked.reference.numpy()[WHOLE]
    expected = np.clip(reference + change, -1, 1)
    error = OUTLINE_ERROR_MM / preset.distance_limit_mm
    near = preset.spacing_mm / preset.distance_limit_mm
    found = []
    for state in drawn:
        surface = (np.abs(state[WHOLE]) < near) | (np.abs(expected) < near)
        off = (state[WHOLE] - expected)[surface] / np.hypot(spread[surface], error)
        found.append(float(np.sqrt(np.square(off).mean())) if surface.any() else 0.0)
    return np.array(found)
