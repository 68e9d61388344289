"""Which model does a weights file hold: a whole network, or a release's trained tensors?

A release holds only what was trained; the rest is the base that it was trained on, whose preset is the
one shipped. A whole network says in its header what it is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from oncofed_common.durable import read_regular
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import Weights, load_base, parse, preset_of, with_adapters


def read_model(path: Path | None) -> Weights:
    """The model in ``path``; without a path the shipped base.

    Raises:
        ModelRefusal: not readable, or tensors that fit no preset.
    """
    if path is None:
        return load_base(SMALL, sha256=None)
    try:
        data = read_regular(path)
    except OSError:
        raise _not_a_model("weights that cannot be read") from None
    try:
        return parse(data, preset_of(data), sha256=None)
    except ModelRefusal as refusal:
        if refusal.code != "weights_format":
            raise
    try:
        trained = load(data)
    except SafetensorError:
        raise _not_a_model("a file that is not safetensors") from None
    if not trained:
        raise _not_a_model("weights without any tensor")
    base = load_base(SMALL, sha256=None)
    return with_adapters(base, trained, sha256=hashlib.sha256(data).hexdigest())


def _not_a_model(found: str) -> ModelRefusal:
    return ModelRefusal(
        found,
        allowed="a release's weights.safetensors, or a network that pretrain wrote",
        next="check --weights",
        code="weights_format",
    )
