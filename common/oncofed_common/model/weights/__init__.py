"""Where do weights come from, and do they fit?

A weights file is a safetensors file whose header names this format and the preset. The base weights
of each preset lie in this folder, beside the card that says how they were made. Weights are for
research use only; so says the card, and so says the header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as _read_tensors
from safetensors.torch import save as _write_tensors
from torch import Tensor

from oncofed_common.errors import ModelRefusal
from oncofed_common.model.network import Network, build
from oncofed_common.model.presets import Preset, preset

FORMAT = "oncofed-weights/1"
LIMITS = "research use only"
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Every weight of a network of one preset.

    Args:
        tensors: name to float32 tensor, as in the network's ``state_dict``.
        sha256: digest of the file they came from, in hex.
        days_ahead: between which days ahead the network has practised (1 % and 99 % of the pairs that it was
            shown), as its card says; None where no card is at hand.
    """

    preset: Preset
    tensors: Mapping[str, Tensor]
    sha256: str
    days_ahead: tuple[int, int] | None = None


MOST_BYTES = 16_000_000
"""Of a weights file: what would be longer in float32 is written in bfloat16."""


def dump(network: Network) -> bytes:
    """The network's weights as a file; the same weights give the same bytes."""
    size = 4 * sum(value.numel() for value in network.state_dict().values())
    dtype = torch.float32 if size < MOST_BYTES else torch.bfloat16
    tensors = {
        name: value.detach().cpu().to(dtype).contiguous()
        for name, value in sorted(network.state_dict().items())
    }
    return bytes(_write_tensors(tensors, metadata={"oncofed": _header(network.preset)}))


def parse(data: bytes, shape: Preset, *, sha256: str | None) -> Weights:
    """The weights in a file.

    Args:
        data: the file's bytes.
        shape: the preset that they must be of.
        sha256: the digest that the file must have; None where nobody has stated one.

    Raises:
        ModelRefusal: another digest (``weights_hash``), no weights file (``weights_format``),
            another preset (``weights_preset``), a tensor that is missing, extra or of another shape
            or dtype (``weights_tensors``), a value that is not finite (``weights_not_finite``).
    """
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ModelRefusal(
            f"weights with SHA-256 {found[:12]}…",
            allowed=f"SHA-256 {sha256[:12]}…",
            next="use the weights that the study names",
            code="weights_hash",
        )
    tensors = _tensors(data, shape)
    _fit(tensors, build(shape, seed=0).state_dict())
    return Weights(preset=shape, tensors=tensors, sha256=found)


def load_base(shape: Preset, *, sha256: str | None) -> Weights:
    """The shipped base weights of a preset.

    Raises:
        ModelRefusal: none are shipped for it (``no_base``), or what ``parse`` refuses.
    """
    weights = parse(base_path(shape).read_bytes(), shape, sha256=sha256)
    return with_card(weights, card(shape))


def with_card(weights: Weights, told: Mapping[str, Any]) -> Weights:
    """The weights, with what their card tells of them; as they are, if it is the card of others."""
    if told.get("sha256") != weights.sha256:
        return weights
    first, last = told["days_ahead"]
    return replace(weights, days_ahead=(int(first), int(last)))


def base_path(shape: Preset) -> Path:
    """Where the shipped base weights of a preset lie.

    Raises:
        ModelRefusal: none are shipped for it (``no_base``).
    """
    path = FOLDER / f"{shape.name}.safetensors"
    if not path.is_file():
        raise ModelRefusal(
            "a preset without shipped weights",
            allowed="a preset whose base weights are part of the installation",
            next="pretrain this preset, or choose another",
            code="no_base",
        )
    return path


def card(shape: Preset) -> dict[str, Any]:
    """How the shipped base weights of a preset were made, and how well they forecast.

    Raises:
        ModelRefusal: none are shipped for it (``no_base``).
    """
    path = FOLDER / f"{shape.name}.json"
    if not path.is_file():
        raise ModelRefusal(
            "a preset without a weight card",
            allowed="a preset whose base weights are part of the installation",
            next="pretrain this preset, or choose another",
            code="no_base",
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def with_adapters(base: Weights, trained: Mapping[str, Tensor], *, sha256: str) -> Weights:
    """The base with some tensors replaced by trained ones.

    Args:
        sha256: digest of the file that holds the trained tensors.

    Raises:
        ModelRefusal: a trained tensor that the network has not, or that has another shape or dtype
            (``weights_tensors``), or a value that is not finite (``weights_not_finite``).
    """
    known = {name: base.tensors[name] for name in trained if name in base.tensors}
    _fit(trained, known)
    return replace(base, tensors={**base.tensors, **trained}, sha256=sha256)


def network_of(weights: Weights) -> Network:
    """A network that holds these weights."""
    network = build(weights.preset, seed=0)
    network.load_state_dict(dict(weights.tensors))
    return network


def preset_of(data: bytes) -> Preset:
    """The preset that a weights file says it is of.

    Raises:
        ModelRefusal: no weights file (``weights_format``), or an unknown preset.
    """
    header = _metadata(data)
    if not header.startswith(f"{FORMAT} "):
        raise _not_weights()
    return preset(header.removeprefix(f"{FORMAT} ").split(";")[0])


def _header(shape: Preset) -> str:
    return f"{FORMAT} {shape.name}; {LIMITS}"


def _tensors(data: bytes, shape: Preset) -> dict[str, Tensor]:
    if _metadata(data) != _header(shape):
        raise ModelRefusal(
            "weights of another preset or format",
            allowed=f"weights of preset {shape.name}",
            next="choose the preset that the weights were made for",
            code="weights_preset",
        )
    found = _read_tensors(data)
    return {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in found.items()}


def _metadata(data: bytes) -> str:
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]  # ships no types
        return str(header["__metadata__"]["oncofed"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_weights() from error


def _not_weights() -> ModelRefusal:
    return ModelRefusal(
        "a file that is not oncofed weights",
        allowed=f"a safetensors file of format {FORMAT}",
        next="fetch the weights again from where they were released",
        code="weights_format",
    )


def _fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    odd = set(found) ^ set(expected)
    odd |= {
        name
        for name in set(found) & set(expected)
        if found[name].shape != expected[name].shape or found[name].dtype != torch.float32
    }
    if odd:
        raise ModelRefusal(
            f"{len(odd)} tensors that are missing, extra, or of another shape or dtype",
            allowed="the tensors of the network, as float32 (or bfloat16, a whole network's)",
            next="choose the preset that the weights were made for",
            code="weights_tensors",
        )
    if not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise ModelRefusal(
            "weights with a value that is not finite",
            allowed="finite weights",
            next="fetch the weights again from where they were released",
            code="weights_not_finite",
        )
