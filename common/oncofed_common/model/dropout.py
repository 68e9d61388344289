"""How does the model learn to do without what a hospital does not have?

In training, each row loses conditions at random, with the same flags that a missing one has. The
last visit's outlines and the days to the target always stay: without them there is no forecast. In a few
rows nothing else is left: what guidance compares with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oncofed_common.cohort import CHANNELS, TISSUES
from oncofed_common.model.prepare import EXPECTED_MAPS, FIELDS, VISIT_CHANNELS
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import (
    CLINICAL,
    CLINICAL_VALUES,
    FIRST_VISIT,
    HORIZON,
    PHYSICS,
    PLAN,
    VISIT_CLINICAL,
    VISIT_CLINICAL_VALUES,
    VISIT_GIVEN,
    VISIT_IMAGES,
)

EVERYTHING = "everything"
LOSS_RATES: Mapping[str, float] = {
    "earlier visit": 0.15,
    "all images": 0.1,
    "image channel": 0.05,
    "tissue": 0.15,
    "dose": 0.1,
    "plan": 0.05,
    "given treatment": 0.05,
    "clinical value": 0.15,
    "physics": 0.2,
    EVERYTHING: 0.05,
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
    gone = {
        name: torch.rand(len(conditions), width, generator=generator) < LOSS_RATES[name]
        for name, width in _widths(preset).items()
    }
    return _taken(conditions, tokens, gone, preset)


def without(
    conditions: Float[Tensor, "row condition x y z"],
    tokens: Float[Tensor, "row token feature"],
    names: Collection[str],
    *,
    preset: Preset,
) -> tuple[Float[Tensor, "row condition x y z"], Float[Tensor, "row token feature"]]:
    """Copies of both without the named conditions of ``LOSS_RATES``."""
    gone = {
        name: torch.full((len(conditions), width), name in names)
        for name, width in _widths(preset).items()
    }
    return _taken(conditions, tokens, gone, preset)


def _widths(preset: Preset) -> dict[str, int]:
    """How many parts each condition has."""
    parts = {
        "earlier visit": preset.history - 1,
        "image channel": preset.history * len(CHANNELS),
        "given treatment": preset.history,
        "clinical value": CLINICAL_VALUES + preset.history * VISIT_CLINICAL_VALUES,
    }
    return {name: parts.get(name, 1) for name in LOSS_RATES}


def _taken(
    conditions: Float[Tensor, "row condition x y z"],
    tokens: Float[Tensor, "row token feature"],
    gone: Mapping[str, Bool[Tensor, "row _"]],
    preset: Preset,
) -> tuple[Float[Tensor, "row condition x y z"], Float[Tensor, "row token feature"]]:
    tokens = tokens.clone()
    keep = torch.ones(conditions.shape[:2], device=conditions.device)
    bare = gone[EVERYTHING]
    lost = {name: (part | bare).to(conditions.device) for name, part in gone.items()}

    channels = lost["image channel"].reshape(-1, preset.history, len(CHANNELS))
    values = _kept(lost["clinical value"].repeat_interleave(2, dim=1))
    of_patient, of_visits = values[:, : 2 * CLINICAL_VALUES], values[:, 2 * CLINICAL_VALUES :]
    of_visits = of_visits.reshape(-1, preset.history, 2 * VISIT_CLINICAL_VALUES)
    for slot in range(preset.history):
        visit = keep[:, slot * VISIT_CHANNELS : (slot + 1) * VISIT_CHANNELS]
        row = tokens[:, FIRST_VISIT + slot]
        images = _kept(channels[:, slot] | lost["all images"])
        visit[:, len(REGIONS) : FIELDS] *= images
        row[:, VISIT_IMAGES] *= images
        row[:, VISIT_GIVEN] *= _kept(lost["given treatment"][:, slot : slot + 1])
        row[:, VISIT_CLINICAL] *= of_visits[:, slot]
        if slot > 0:
            there = _kept(lost["earlier visit"][:, slot - 1 : slot])
            visit *= there
            row *= there
    maps = keep[:, preset.history * VISIT_CHANNELS :]
    tissue = len(TISSUES) + 1
    maps[:, :tissue] *= _kept(lost["tissue"])
    maps[:, tissue : tissue + 2] *= _kept(lost["dose"])
    tokens[:, HORIZON, PLAN] *= _kept(lost["plan"])
    lawful = _kept(lost["physics"])
    maps[:, -EXPECTED_MAPS:] *= lawful
    tokens[:, PHYSICS] *= lawful
    tokens[:, CLINICAL, : 2 * CLINICAL_VALUES] *= of_patient
    return conditions * keep[..., None, None, None], tokens


def _kept(gone: Bool[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    return (~gone).float()
