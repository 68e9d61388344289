"""DDPM (Ho et al. 2020) in continuous time, with the cosine schedule of Nichol & Dhariwal (2021):
alpha = cos(pi / 2 (t + o) / (1 + o)) / cos(pi / 2 o / (1 + o)), o = 0.008."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

OFFSET = 0.008


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """alpha^2 + sigma^2 = 1."""

    def alpha(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        start = math.cos(math.pi / 2 * OFFSET / (1 + OFFSET))
        return (torch.cos(math.pi / 2 * (time + OFFSET) / (1 + OFFSET)) / start).clamp(0.0, 1.0)

    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (1.0 - self.alpha(time).square()).clamp(min=0.0).sqrt()
