"""What is expected before the network says a word, and how far off may it be?

Physics' change of the outlines, and around it a standard deviation for every voxel. The network then
states only by how many of these deviations the clean field differs from what such a Gaussian prior and
the noised field imply together (the preconditioning of Karras et al. 2022, with a prior of the
patient's own): a fresh network samples physics with its uncertainty, and learning makes it better from
there.

The deviation is that of physics' draws in a share, plus one for what no draw knows wherever physics expects a
surface at all, plus a floor. First values follow the errors of physics on virtual patients; they are learned
with the rest.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oncofed_common.cohort import CHANNELS
from oncofed_common.model.prepare import EXPECTED_MAPS, EXPECTED_REGIONS, FIELDS
from oncofed_common.model.regions import REGIONS

FOLLOWS = (0, 1, 1)
"""Which of ``EXPECTED_REGIONS`` the whole tumour, the core and its enhancing part go with."""
SHARES = (1.0, 1.0, 0.75)
"""How much of that region's expected change is theirs."""
OF_SPREAD, UNKNOWN, FLOOR = 0.4, 0.22, 0.05
SURFACE = 0.05
"""Standard deviation of the draws (in generated units) at which half of ``UNKNOWN`` is added."""
ALONE = (0.45, 0.4, 0.4, 0.25)
"""Standard deviation of each region's change without physics."""
IMAGES = 0.6


class Prior(nn.Module):
    """``conditions -> expected change, its standard deviation``, both (row, field, x, y, z)."""

    def __init__(self) -> None:
        super().__init__()
        count = len(FOLLOWS)
        self.share = nn.Parameter(torch.tensor(SHARES))
        self.log_spread = nn.Parameter(
            torch.full((count, 3), 1.0) * _logs(OF_SPREAD, UNKNOWN, FLOOR)
        )
        self.log_alone = nn.Parameter(_logs(*ALONE, *[IMAGES] * len(CHANNELS)))

    def forward(
        self, conditions: Float[Tensor, "row condition x y z"]
    ) -> tuple[Float[Tensor, "row field x y z"], Float[Tensor, "row field x y z"]]:
        """Without physics: nothing is expected, and the deviations are constants."""
        physics, regions = conditions[:, -EXPECTED_MAPS:], len(EXPECTED_REGIONS)
        follows, rest = list(FOLLOWS), FIELDS - len(FOLLOWS)
        change = physics[:, :regions][:, follows] * _column(self.share)
        drawn = physics[:, regions : 2 * regions][:, follows]
        scale, unknown, floor = (_column(part) for part in self.log_spread.exp().unbind(1))
        spread = scale * drawn + unknown * drawn / (drawn + SURFACE) + floor
        alone = _column(self.log_alone.exp()).expand(len(conditions), -1, *conditions.shape[2:])
        known = physics[:, -1:]
        spread = known * spread + (1.0 - known) * alone[:, : len(FOLLOWS)]
        expected = nn.functional.pad(change, (0, 0) * 3 + (0, rest))
        return expected, torch.cat([spread, alone[:, len(FOLLOWS) :]], dim=1)


def _logs(*values: float) -> Float[Tensor, " value"]:
    return torch.tensor(values).log()


def _column(values: Float[Tensor, " field"]) -> Float[Tensor, "field 1 1 1"]:
    return values[:, None, None, None]


assert len(FOLLOWS) < len(REGIONS)
