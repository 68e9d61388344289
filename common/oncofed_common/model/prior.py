"""What is expected before the network says a word, and how far off may it be?

Physics' change of the outlines, and around it a standard deviation for every voxel. The network then
states only by how many of these deviations the clean field differs from what such a Gaussian prior and
the noised field imply together (the preconditioning of Karras et al. 2022, with a prior of the
patient's own): a fresh network samples physics with its uncertainty, and learning makes it better from
there.

The deviation is that of physics' draws in a share, plus a share of the expected change itself, plus one
for what no draw knows wherever physics expects a surface at all, plus a floor. How much of the expected
change to believe, how far off it may be, and by how much every outline lies further out or in than physics
has it, depends on the tokens: over half a year or after radiotherapy physics errs more than over a month,
and where all of its draws say that a tumour vanishes, it often does not. First values follow the errors of
physics on virtual patients; they are learned by a loss of their own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oncofed_common.cohort import CHANNELS
from oncofed_common.model.prepare import EXPECTED_MAPS, EXPECTED_REGIONS, FIELDS
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import FEATURES, TOKENS

FOLLOWS = (0, 1, 1)
"""Which of ``EXPECTED_REGIONS`` the whole tumour, the core and its enhancing part go with."""
SHARES = (1.0, 1.0, 0.75)
"""How much of that region's expected change is theirs."""
OF_SPREAD, OF_CHANGE, UNKNOWN, FLOOR = 0.4, 0.1, 0.22, 0.05
SURFACE = 0.05
"""Standard deviation of the draws (in generated units) at which half of ``UNKNOWN`` is added."""
ALONE = (0.45, 0.4, 0.4, 0.25)
"""Standard deviation of each region's change without physics, and of the cavity's always."""
IMAGES = 0.6
HIDDEN = 24
FURTHEST = 1.5
"""No token moves the logarithm of a deviation, a share, or an outline by more than this; an outline in
units of the distance limit."""


class Prior(nn.Module):
    """``conditions, tokens -> expected change, its standard deviation``, both (row, field, x, y, z).

    Args:
        distance_gain: the preset's.
    """

    def __init__(self, distance_gain: float) -> None:
        super().__init__()
        count = len(FOLLOWS)
        self.distance_gain = distance_gain
        self.share = nn.Parameter(torch.tensor(SHARES))
        self.log_spread = nn.Parameter(
            torch.ones(count, 4) * _logs(OF_SPREAD, OF_CHANGE, UNKNOWN, FLOOR)
        )
        self.log_alone = nn.Parameter(_logs(*ALONE, *[IMAGES] * len(CHANNELS)))
        self.hear = nn.Linear(TOKENS * FEATURES, HIDDEN)
        self.moved = nn.Parameter(torch.zeros(6 * count, HIDDEN))

    def forward(
        self,
        conditions: Float[Tensor, "row condition x y z"],
        tokens: Float[Tensor, "row token feature"],
    ) -> tuple[Float[Tensor, "row field x y z"], Float[Tensor, "row field x y z"]]:
        """Without physics only the tokens move an outline, and its deviation is the same everywhere."""
        count, follows, regions = len(FOLLOWS), list(FOLLOWS), len(EXPECTED_REGIONS)
        physics = conditions[:, -EXPECTED_MAPS:]
        known = physics[:, -1:, 0, 0, 0]
        moved = self._moved(tokens)
        share, shift = self.share + moved[..., 0], moved[..., 1]
        floor = torch.lerp(self.log_alone[:count], self.log_spread[:, 3], known)[..., None]
        usual = self.log_spread[:, :3].expand(len(tokens), -1, -1)
        logs = torch.cat([usual, floor], dim=-1) + moved[..., 2:]
        of_spread, of_change, unknown, least = (_column(part) for part in logs.exp().unbind(-1))

        outlines = conditions[:, :count]
        foreseen = outlines + physics[:, :regions][:, follows] * _column(share) / self.distance_gain
        change = (foreseen + _column(shift)).clamp(-1.0, 1.0) - outlines
        change = self.distance_gain * change
        drawn = physics[:, regions : 2 * regions][:, follows]
        spread = of_spread * drawn + of_change * change.abs()
        spread = spread + unknown * drawn / (drawn + SURFACE) + least
        rest = _column(self.log_alone[None, count:].exp()).expand(
            len(tokens), -1, *conditions.shape[2:]
        )
        expected = nn.functional.pad(change, (0, 0) * 3 + (0, FIELDS - count))
        return expected, torch.cat([spread, rest], dim=1)

    def _moved(self, tokens: Float[Tensor, "row token feature"]) -> Float[Tensor, "row region 6"]:
        """What each row's tokens add to a share, an outline and the logarithms of four deviations."""
        heard = nn.functional.silu(self.hear(tokens.flatten(1)))
        moved = nn.functional.linear(heard, self.moved).float()
        return FURTHEST * torch.tanh(moved / FURTHEST).reshape(len(tokens), len(FOLLOWS), 6)


def _logs(*values: float) -> Float[Tensor, " value"]:
    return torch.tensor(values).log()


def _column(values: Float[Tensor, "row field"]) -> Float[Tensor, "row field 1 1 1"]:
    return values[..., None, None, None]


assert len(FOLLOWS) < len(REGIONS)
