"""Which voxels of an image are necrotic core, enhancing rim, oedema and cavity?

Compartments by thresholds on cell density. Visible density is living plus not yet cleared cells; FLAIR
shows it from 0.25, contrast-enhanced T1w from 0.60, both within the ranges that Lipková et al. (IEEE
Trans. Med. Imaging 38, 2019) infer from patients; the core is necrotic where cells are near their
capacity (the nutrient-starved centre of Swanson et al., Cancer Res. 71, 2011) or mostly dead; the rest of
the core is the enhancing rim. The resection cavity is what surgery has taken out, as in the labels of
BraTS 2023 post-treatment (de Verdier et al., arXiv 2405.18368, 2024), whatever lay there before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_common.cohort import LABELS
from oncofed_simulation.patients.anatomy import FloatArray
from oncofed_simulation.patients.growth import VISIBLE

CORE = 0.60
NECROTIC = 0.88
DEAD = 0.55
EMPTIED = 0.5
"""Share of a voxel from which it counts as cavity."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A tumour on the grid of an image, all of one shape.

    ``viable`` and ``debris``: density of living and of killed cells, zero outside grey and white matter.
    ``cavity``: share of each voxel that surgery emptied (booleans will do, with edges as coarse as the
    voxels); ``None``: nobody operated.
    """

    viable: FloatArray
    debris: FloatArray
    cavity: FloatArray | NDArray[np.bool_] | None = None

    @property
    def visible(self) -> FloatArray:
        return self.viable + self.debris

    @property
    def emptied(self) -> FloatArray:
        """The cavity's share of each voxel, 0 everywhere where nobody operated."""
        if self.cavity is None:
            return np.zeros_like(self.viable)
        return self.cavity.astype(np.float32, copy=False)


def compartments(lesion: Lesion) -> NDArray[np.uint8]:
    """The true outlines in the values of ``LABELS``."""
    return labelled(
        visible=lesion.visible, viable=lesion.viable, debris=lesion.debris, emptied=lesion.emptied
    )


def labelled(
    *, visible: FloatArray, viable: FloatArray, debris: FloatArray, emptied: FloatArray
) -> NDArray[np.uint8]:
    """Outlines of four fields of one shape. A core is always visible, a necrosis always in a core."""
    lesional = visible >= VISIBLE
    core = lesional & (visible >= CORE)
    necrotic = core & ((viable >= NECROTIC) | (debris >= DEAD))
    labels = np.where(lesional, LABELS["SNFH"], 0)
    labels = np.where(core, LABELS["ET"], labels)
    labels = np.where(necrotic, LABELS["NETC"], labels)
    return np.where(emptied >= EMPTIED, LABELS["RC"], labels).astype(np.uint8)
