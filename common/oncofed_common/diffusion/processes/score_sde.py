"""The variance-preserving stochastic differential equation of Song et al. (2021, eq. 11 and appendix C),
dx = -b x / 2 dt + b^(1/2) dw, b(t) from 0.1 to 20: alpha = exp(-(b(t) + b(0)) t / 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEAST, MOST = 0.1, 20.0


@dataclass(frozen=True, kw_only=True)
class ScoreSde:
    """alpha^2 + sigma^2 = 1."""

    def alpha(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.exp(-self._integral(time) / 2)

    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (-torch.expm1(-self._integral(time))).sqrt()

    def _integral(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return LEAST * time + (MOST - LEAST) * time.square() / 2
