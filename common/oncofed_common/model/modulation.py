"""Which small parts of the network are there to be trained on few patients?

``FiLM`` (Perez et al. 2018): the tokens scale and shift what is seen of the conditions, channel by channel.

``LowRank`` (Hu et al. 2022): a linear layer with an update up (down x). ``up`` is zero until somebody
trains it; ``down`` stays as it was drawn. Then what several hospitals add to ``up`` is the same as what
they add to the layer: the mean of products would not be the product of means (Sun et al. 2024, who also
find it to suffer less from the noise of privacy).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

RANK = 2
UPDATED = ("time_emb_proj", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.out_proj")
"""The layers through which conditions act: the embedding in every residual block, and cross-attention."""


class FiLM(nn.Module):
    """``features, told -> features (1 + scale(told)) + shift(told)``; of a fresh one, the features."""

    def __init__(self, told: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * width, told))
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(
        self, features: Float[Tensor, "row width i j k"], told: Float[Tensor, "row feature"]
    ) -> Float[Tensor, "row width i j k"]:
        """Each channel by its own scale and shift."""
        both = nn.functional.linear(told, self.weight, self.bias)[..., None, None, None]
        scale, shift = both.chunk(2, dim=1)
        return features * (1.0 + scale) + shift


class LowRank(nn.Linear):
    """``x -> weight x + bias + up (down x)`` with ``RANK`` rows of ``down``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        drawn = torch.randn(RANK, layer.in_features) / math.sqrt(layer.in_features)
        self.down = nn.Parameter(drawn, requires_grad=False)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK), requires_grad=False)

    def forward(self, input: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows answer"]:
        """Of a fresh one, the layer's own answer."""
        inner = nn.functional.linear(input, self.down)
        return super().forward(input) + nn.functional.linear(inner, self.up)


def with_updates(network: nn.Module) -> None:
    """Give every layer of ``UPDATED`` its update, in place."""
    found = [
        (path, layer)
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and path.endswith(UPDATED)
    ]
    for path, layer in found:
        network.set_submodule(path, LowRank(layer))
