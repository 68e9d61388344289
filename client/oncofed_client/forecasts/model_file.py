"""Which model does a weights file hold: a whole network, or a release's trained tensors?

A whole network says in its header what it is. A release holds only what was trained; the study beside
it says of which preset and on which base, and on any other base those tensors mean nothing. The release's
manifest says that study and tensors belong together.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from oncofed_common.durable import read_object, read_regular
from oncofed_common.errors import ModelRefusal
from oncofed_common.identity import digest
from oncofed_common.model.presets import SMALL, preset
from oncofed_common.model.weights import (
    Weights,
    load_base,
    parse,
    preset_of,
    with_adapters,
    with_card,
)
from oncofed_common.study import Study, read_study

STUDY, MANIFEST = "study.toml", "manifest.json"


def read_model(path: Path | None) -> Weights:
    """The model in ``path``; without a path the shipped base.

    Raises:
        ModelRefusal: not readable, tensors that fit no preset, a release without its study
            (``no_study``) or of another one (``weights_study``), or one trained on another base than the
            shipped one (``weights_base``).
        StudyRefusal, SystemRefusal: a study or a manifest that cannot be read.
    """
    if path is None:
        return load_base(SMALL, sha256=None)
    try:
        data = read_regular(path)
    except OSError:
        raise _not_a_model("weights that cannot be read") from None
    try:
        return _with_card_beside(path, parse(data, preset_of(data), sha256=None))
    except ModelRefusal as refusal:
        if refusal.code != "weights_format":
            raise
    try:
        trained = load(data)
    except SafetensorError:
        raise _not_a_model("a file that is not safetensors") from None
    if not trained:
        raise _not_a_model("weights without any tensor")
    study = _study_beside(path)
    _refuse_another_study(path, data, study, names=set(trained))
    base = _base_of(study)
    return with_adapters(base, trained, sha256=hashlib.sha256(data).hexdigest())


def _with_card_beside(path: Path, weights: Weights) -> Weights:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return weights
    try:
        return with_card(weights, read_object(beside, what="the card of the weights"))
    except (KeyError, TypeError, ValueError):
        return weights


def _study_beside(path: Path) -> Study:
    beside = path.parent / STUDY
    if not beside.is_file():
        raise ModelRefusal(
            "a release's weights without the study that they were trained by",
            allowed=f"the weights in their release folder, with its {STUDY}",
            next="name the weights inside the whole release",
            code="no_study",
        )
    return read_study(beside)


def _refuse_another_study(path: Path, data: bytes, study: Study, *, names: set[str]) -> None:
    listed = read_object(path.parent / MANIFEST, what="the manifest of a release").get("files")
    files = listed if isinstance(listed, dict) else {}
    beside = read_regular(path.parent / STUDY)
    together = files.get(path.name) == digest(data) and files.get(STUDY) == digest(beside)
    if not together or names != {tensor.name for tensor in study.tensors}:
        raise ModelRefusal(
            "weights of another study than the one beside them",
            allowed=f"the weights and the {STUDY} that the release's {MANIFEST} lists",
            next="use the release as it was sent, and verify it",
            code="weights_study",
        )


def _base_of(study: Study) -> Weights:
    base = load_base(preset(study.model.preset), sha256=None)
    if base.sha256 != study.model.base_sha256:
        raise ModelRefusal(
            "a release that was trained on another base",
            allowed=f"one on the shipped base, SHA-256 {base.sha256[:12]}…",
            next="use the version of oncofed by which the study was run",
            code="weights_base",
        )
    return base


def _not_a_model(found: str) -> ModelRefusal:
    return ModelRefusal(
        found,
        allowed="a release's weights.safetensors, or a network that pretrain wrote",
        next="check --weights",
        code="weights_format",
    )
