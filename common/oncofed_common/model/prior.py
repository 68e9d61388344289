"""What is expected before the network says a word, and how far off may it be?

Physics' change of the outlines, and around it a standard deviation for every voxel. The network then
states only by how many of these deviations the clean field differs from what such a Gaussian prior and
the noised field imply together (the preconditioning of Karras et al. 2022, with a prior of the
patient's own): a fresh network samples physics with its uncertainty, and learning makes it better from
there.

The deviation is that of physics' draws in a share, plus one for what no draw knows wherever physics
expects a surface at all, plus a floor. How much of the expected change to believe, and how far off it
may be, depends on the tokens: over half a year or after radiotherapy physics errs more than over a
month. First values follow the errors of physics on virtual patients; they are learned with the rest.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oncofed_common.cohort import CHANNELS
from oncofed_common.model.prepare import EXPECTED_MAPS, EXPECTED_REGIONS, FIELDS
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import FEATURES, FIRST_VISIT, HORIZON, PHYSICS

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
HEARD = (HORIZON, FIRST_VISIT, PHYSICS)
"""The tokens that move belief and deviations: days and plan, the last visit, what physics says of itself."""
FURTHEST = 1.5
"""No token moves the logarithm of a deviation, or a share, by more than this."""


class Prior(nn.Module):
    """``conditions, tokens -> expected change, its standard deviation``, both (row, field, x, y, z)."""

    def __init__(self) -> None:
        super().__init__()
        count = len(FOLLOWS)
        self.share = nn.Parameter(torch.tensor(SHARES))
        self.log_spread = nn.Parameter(
            torch.full((count, 3), 1.0) * _logs(OF_SPREAD, UNKNOWN, FLOOR)
        )
        self.log_alone = nn.Parameter(_logs(*ALONE, *[IMAGES] * len(CHANNELS)))
        self.moved = nn.Parameter(torch.zeros(4 * count, len(HEARD) * FEATURES))

    def forward(
        self,
        conditions: Float[Tensor, "row condition x y z"],
        tokens: Float[Tensor, "row token feature"],
    ) -> tuple[Float[Tensor, "row field x y z"], Float[Tensor, "row field x y z"]]:
        """Without physics: nothing is expected, and the deviations are constants."""
        physics, regions = conditions[:, -EXPECTED_MAPS:], len(EXPECTED_REGIONS)
        follows, rest = list(FOLLOWS), FIELDS - len(FOLLOWS)
        share, log_spread = self._told(tokens)
        change = physics[:, :regions][:, follows] * _column(share)
        drawn = physics[:, regions : 2 * regions][:, follows]
        scale, unknown, floor = (_column(part) for part in log_spread.exp().unbind(-1))
        spread = scale * drawn + unknown * drawn / (drawn + SURFACE) + floor
        alone = _column(self.log_alone.exp()[None]).expand(
            len(conditions), -1, *conditions.shape[2:]
        )
        known = physics[:, -1:]
        spread = known * spread + (1.0 - known) * alone[:, : len(FOLLOWS)]
        expected = nn.functional.pad(change, (0, 0) * 3 + (0, rest))
        return expected, torch.cat([spread, alone[:, len(FOLLOWS) :]], dim=1)

    def _told(
        self, tokens: Float[Tensor, "row token feature"]
    ) -> tuple[Float[Tensor, "row region"], Float[Tensor, "row region 3"]]:
        """Shares and logarithms of deviations for each row's tokens."""
        heard = tokens[:, list(HEARD)].flatten(1)
        moved = nn.functional.linear(heard, self.moved).float()
        moved = FURTHEST * torch.tanh(moved / FURTHEST).reshape(len(tokens), len(FOLLOWS), 4)
        return self.share + moved[..., 0], self.log_spread + moved[..., 1:]


def _logs(*values: float) -> Float[Tensor, " value"]:
    return torch.tensor(values).log()


def _column(values: Float[Tensor, "row field"]) -> Float[Tensor, "row field 1 1 1"]:
    return values[..., None, None, None]


assert len(FOLLOWS) < len(REGIONS)
