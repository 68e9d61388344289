"""Rectified flow: straight paths, x_t = (1 - s) x + s e (Liu et al. 2022; Lipman et al. 2022).

``s = shift u / (1 + (shift - 1) u)`` with ``u = t^2``: the shift multiplies noise over signal (Esser et
al. 2024, eq. 23), and the square lets equal steps of time serve what is spread over a tenth of the
noise as well as what is spread over several times the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

SHIFT = 2.0


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """alpha = 1 - sigma."""

    shift: float = SHIFT

    def alpha(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1.0 - self.sigma(time)

    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        usual = time.square()
        return self.shift * usual / (1.0 + (self.shift - 1.0) * usual)
