"""Where can no tumour grow?

Outside the brain and in fluid: where a voxel of the window holds neither grey nor white matter, and
nothing was outlined in the history (a tissue map takes a necrosis or a cavity for fluid). Sampled
outlines are kept out of there, whatever the network says: the tissue map is known, so there is nothing
to guess.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from oncofed_common.cohort import TISSUES
from oncofed_common.model.prepare import FIELDS, VISIT_CHANNELS, Query
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS

NO_TISSUE = 0.05
"""Less grey and white matter than this is none."""
OUTSIDE = 0.1
"""The distance that a voxel without tissue keeps at least, in units of the limit."""
TUMORS = len(REGIONS) - 1
"""The last region is the cavity."""


def knows_tissue(asked: Query, preset: Preset) -> bool:
    """Whether there is a tissue map."""
    return bool(asked.conditions[preset.history * VISIT_CHANNELS + len(TISSUES)].any())


def barren(asked: Query, preset: Preset) -> Bool[ndarray, "x y z"]:
    """Where no tumour can grow; nowhere, where the tissue is unknown."""
    channels = asked.conditions.numpy()
    maps = channels[preset.history * VISIT_CHANNELS :]
    matter = sum(maps[at] for at, name in enumerate(TISSUES) if name != "CSF")
    known = maps[len(TISSUES)] > 0
    outlined = np.zeros(known.shape, dtype=bool)
    for slot in range(preset.history):
        state = channels[slot * VISIT_CHANNELS :][: FIELDS + 1]
        outlined |= (state[: len(REGIONS)] < 0).any(axis=0) & (state[FIELDS] > 0)
    return np.asarray(known & (matter < NO_TISSUE) & ~outlined)


def kept_out(
    states: Float[Tensor, "sample field x y z"], where: Bool[ndarray, "x y z"]
) -> Float[Tensor, "sample field x y z"]:
    """The same states without tumour ``where`` none can grow."""
    found = states.clone()
    tumors = found[:, :TUMORS]
    tumors.copy_(torch.where(torch.from_numpy(where), tumors.clamp(min=OUTSIDE), tumors))
    return found
