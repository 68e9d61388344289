"""The base weights that a study starts from, as far as the coordinator needs them: by hash, without torch.

The file holds the first value of every trained tensor beside the frozen network, so that anybody can
begin a recomputation from it.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from oncofed_common.errors import ModelRefusal, WireRefusal
from oncofed_common.study import Study
from oncofed_common.tensors import Schema, TensorTerm, check_tensors


def first_values(base: Path, *, sha256: str, schema: Schema) -> dict[str, NDArray[Any]]:
    """The trained tensors in the base weights.

    Raises:
        ModelRefusal: codes ``base_missing``, ``base_hash``, ``base_tensors``.
    """
    if file_sha256(base) != sha256:
        raise ModelRefusal(
            "base weights whose SHA-256 differs from the study's",
            allowed="the file that model.base_sha256 names",
            next="use the base weights that the study was written for, or correct the study",
            code="base_hash",
        )
    try:
        with safe_open(base, framework="np") as file:
            names = set(file.keys())
            tensors = {t.name: file.get_tensor(t.name) for t in schema if t.name in names}
        check_tensors(tensors, schema=schema, dtype="float32")
    except (SafetensorError, WireRefusal, TypeError, ValueError):
        raise _bad_base() from None
    return tensors


def shipped_base(study: Study) -> Path | None:
    """The installed base weights of the study's preset, if they are the ones that it names."""
    found = _shipped(f"{study.model.preset}.safetensors")
    return found if found and file_sha256(found) == study.model.base_sha256 else None


def base_of_preset(preset: str) -> Path:
    """The base weights that are installed for a preset.

    Raises:
        ModelRefusal: code ``no_base``.
    """
    return _shipped(f"{preset}.safetensors") or _refuse_preset()


def trained_tensors(base: Path, *, preset: str, adapters: str) -> Schema:
    """The tensors that an adapter set trains: named by the preset's weight card, as large as in ``base``.

    Raises:
        ModelRefusal: codes ``no_base``, ``unknown_adapters``, ``base_missing``, ``base_tensors``.
    """
    card = _shipped(f"{preset}.json") or _refuse_preset()
    sets = json.loads(card.read_text(encoding="utf-8"))["adapters"]
    if adapters not in sets:
        raise ModelRefusal(
            "an adapter set of an unknown name",
            allowed=", ".join(sorted(sets)),
            next="choose one of these adapter sets",
            code="unknown_adapters",
        )
    try:
        with safe_open(base, framework="np") as file:
            return [
                TensorTerm(name=name, shape=tuple(file.get_slice(name).get_shape()))
                for name in sets[adapters]
            ]
    except OSError:
        raise _unreadable() from None
    except SafetensorError:
        raise _bad_base() from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex.

    Raises:
        ModelRefusal: code ``base_missing``.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise _unreadable() from None


def _shipped(name: str) -> Path | None:
    """A file of the installed folder of base weights, which is looked through, not joined to."""
    known = resources.files("oncofed_common").joinpath("model", "weights")
    found = (entry for entry in known.iterdir() if entry.name == name and isinstance(entry, Path))
    return next(found, None)


def _refuse_preset() -> NoReturn:
    raise ModelRefusal(
        "a preset without installed base weights and card",
        allowed="a preset that comes with oncofed, such as small",
        next="correct model.preset",
        code="no_base",
    )


def _unreadable() -> ModelRefusal:
    return ModelRefusal(
        "base weights that cannot be read",
        allowed="a safetensors file",
        next="check --base, then its permissions",
        code="base_missing",
    )


def _bad_base() -> ModelRefusal:
    return ModelRefusal(
        "base weights without the tensors that the study trains, as finite float32",
        allowed="every tensors[] entry of the study, by name and shape",
        next="use the preset and adapters that the study names",
        code="base_tensors",
    )
