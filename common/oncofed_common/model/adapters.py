"""Which weights are trained under privacy?

The noise of differential privacy grows with the square root of the number of trained weights, so
only a named few thousand are trained; the others keep the values of the base weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from oncofed_common.errors import ModelRefusal
from oncofed_common.model.modulation import FiLM, LowRank
from oncofed_common.model.network import Network
from oncofed_common.model.prior import Prior

TensorSpec = tuple[str, tuple[int, ...], str]
"""Name, shape, dtype of one trained tensor."""


def _norm(module: nn.Module, key: str) -> bool:
    return isinstance(module, nn.GroupNorm | nn.LayerNorm)


def _film(module: nn.Module, key: str) -> bool:
    return isinstance(module, FiLM)


def _low_rank(module: nn.Module, key: str) -> bool:
    return isinstance(module, LowRank) and key == "up"


def _prior(module: nn.Module, key: str) -> bool:
    return isinstance(module, Prior)


ADAPTERS: Mapping[str, Callable[[nn.Module, str], bool]] = {
    "norm": _norm,
    "film": _film,
    "low_rank": _low_rank,
    "prior": _prior,
}
"""Adapter sets: which modules' own weights are trained. ``norm``: scales and shifts of every GroupNorm
and LayerNorm. ``film``, ``low_rank``: see ``modulation``. ``prior``: how much of physics is believed and how
far off it may be; how its tokens are heard stays as it is. Biases of convolutions are in none: on a CPU they
cost a whole weight gradient."""


def select(network: Network, name: str) -> dict[str, nn.Parameter]:
    """The trained weights in order of name; every other weight of the network is frozen.

    Raises:
        ModelRefusal: no adapter set of that name (``unknown_adapters``).
    """
    chosen = _chosen(network, name)
    for key, weight in network.named_parameters():
        weight.requires_grad_(key in chosen)
    return chosen


def schema(network: Network, name: str) -> list[TensorSpec]:
    """Name, shape and dtype of every trained tensor, in order of name; changes nothing.

    Raises:
        ModelRefusal: no adapter set of that name (``unknown_adapters``).
    """
    return [
        (key, tuple(weight.shape), str(weight.dtype).removeprefix("torch."))
        for key, weight in _chosen(network, name).items()
    ]


def _chosen(network: Network, name: str) -> dict[str, nn.Parameter]:
    if name not in ADAPTERS:
        raise ModelRefusal(
            "an adapter set of an unknown name",
            allowed=", ".join(sorted(ADAPTERS)),
            next="choose one of these adapter sets",
            code="unknown_adapters",
        )
    wanted = ADAPTERS[name]
    found = {
        f"{path}.{key}": weight
        for path, module in network.named_modules()
        for key, weight in module.named_parameters(recurse=False)
        if wanted(module, key)
    }
    return dict(sorted(found.items()))
