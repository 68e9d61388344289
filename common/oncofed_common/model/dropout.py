"""How does the model learn to do without what a hospital does not have?

In training, each row loses conditions at random, with the same flags that a missing one has. The
last visit's outlines and the days to the target always stay: without them there is no forecast.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oncofed_common.cohort import CHANNELS, TISSUES
from oncofed_common.model.prepare import FIELDS, VISIT_CHANNELS
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import (
    CLINICAL,
    CLINICAL_VALUES,
    FIRST_VISIT,
    HORIZON,
    PLAN,
    VISIT_IMAGES,
)

LOSS_RATES: Mapping[str, float] = {
    "earlier visit": 0.15,
    "all images": 0.1,
    "image channel": 0.05,
    "tissue": 0.15,
    "dose": 0.1,
    "plan": 0.05,
    "clinical value": 0.15,
}
"""How often each condition is taken away, independently."""


def drop(
    conditions: Float[Tensor, "row condition x y z"],
    tokens: Float[Tensor, "row token feature"],
    *,
    preset: Preset,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "row condition x y z"], Float[Tensor, "row token feature"]]:
    """Copies of both in which conditions are missing at random; rows are independent."""
    rows = len(conditions)
    conditions, tokens = conditions.clone(), tokens.clone()

    def lost(what: str, width: int) -> Bool[Tensor, " row width"]:
        drawn = torch.rand(rows, width, generator=generator)
        return (drawn < LOSS_RATES[what]).to(conditions.device)

    everything = lost("all images", 1)
    for slot in range(preset.history):
        visit = conditions[:, slot * VISIT_CHANNELS : (slot + 1) * VISIT_CHANNELS]
        row = tokens[:, FIRST_VISIT + slot]
        gone = lost("image channel", len(CHANNELS)) | everything
        visit[:, len(REGIONS) : FIELDS] *= _kept(gone)[..., None, None, None]
        row[:, VISIT_IMAGES] *= _kept(gone)
        if slot > 0:
            absent = lost("earlier visit", 1)
            visit *= _kept(absent)[..., None, None, None]
            row *= _kept(absent)
    maps = conditions[:, preset.history * VISIT_CHANNELS :]
    tissue = len(TISSUES) + 1
    maps[:, :tissue] *= _kept(lost("tissue", 1))[..., None, None, None]
    maps[:, tissue : tissue + 2] *= _kept(lost("dose", 1))[..., None, None, None]
    tokens[:, HORIZON, PLAN] *= _kept(lost("plan", 1))
    unknown = lost("clinical value", CLINICAL_VALUES).repeat_interleave(2, dim=1)
    tokens[:, CLINICAL, : 2 * CLINICAL_VALUES] *= _kept(unknown)
    return conditions, tokens


def _kept(gone: Bool[Tensor, " row width"]) -> Float[Tensor, "row width"]:
    return (~gone).float()
