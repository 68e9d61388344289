"""How large is the window that the model looks through, and how wide is its network?

A preset fixes every constant on which tensors and weights depend. Weights of one preset never fit
another. ``small`` is meant for a CPU, ``medium`` and ``large`` for a GPU; ``small_2d`` is ``small``
with a network that looks at one axial slice at a time, to measure what the third dimension is worth.
One code serves all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from oncofed_common.errors import ModelRefusal


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Constants of window and network.

    Args:
        size: voxels along each edge of the window.
        spacing_mm: edge length of one voxel.
        history: most past visits that the model sees.
        distance_limit_mm: signed distances are cut off here; the model sees them divided by it.
        spatial_dims: of the network's convolutions; 2 takes each axial slice of the window by itself.
        patch: voxels along each edge of the patch that the network takes as one position.
        widths: channels of the network's levels, finest first; each a multiple of ``groups``.
        groups: groups of each GroupNorm.
        context_width: features of one context token.
        head_width: features of one attention head.
        checkpointing: whether training computes activations a second time instead of keeping them.
        distance_gain, image_gain: a change of one distance limit, or of one unit of scaled
            intensity, becomes this many units of the generated field.
    """

    name: str
    size: int
    spacing_mm: float
    history: int
    distance_limit_mm: float
    spatial_dims: int
    patch: int
    widths: tuple[int, ...]
    groups: int
    context_width: int
    head_width: int
    checkpointing: bool
    distance_gain: float
    image_gain: float


SMALL = Preset(
    name="small",
    size=32,
    spacing_mm=3.0,
    history=3,
    distance_limit_mm=15.0,
    spatial_dims=3,
    patch=2,
    widths=(32, 40, 48),
    groups=8,
    context_width=64,
    head_width=16,
    checkpointing=False,
    distance_gain=3.0,
    image_gain=3.0,
)

SMALL_2D = replace(SMALL, name="small_2d", spatial_dims=2)
MEDIUM = replace(SMALL, name="medium", size=64, spacing_mm=2.0, widths=(48, 64, 96))
LARGE = replace(
    SMALL,
    name="large",
    size=96,
    spacing_mm=1.5,
    patch=3,
    widths=(48, 72, 96),
    checkpointing=True,
)

PRESETS: Mapping[str, Preset] = {shape.name: shape for shape in (SMALL, SMALL_2D, MEDIUM, LARGE)}


def preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        ModelRefusal: there is none of that name.
    """
    if name not in PRESETS:
        raise ModelRefusal(
            "a model preset of an unknown name",
            allowed=", ".join(sorted(PRESETS)),
            next="choose one of these presets",
            code="unknown_preset",
        )
    return PRESETS[name]
