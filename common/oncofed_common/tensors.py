"""Tensors as bytes that have exactly one spelling: safetensors, no pickle, no metadata.

A file is accepted only if packing what was read gives the same bytes back: a header with other
spaces, other order, padding or metadata could carry something that nobody approved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from oncofed_common.errors import WireRefusal
from oncofed_common.identity import canonical, digest

Tensors = Mapping[str, NDArray[Any]]
Dtype = Literal["float32", "int32"]

UPDATE_SCALE = 2.0**-24
"""One unit of an int32 update."""
UNITS_MOST = 2**31 - 1
_SAFETENSORS: Mapping[Dtype, str] = {"float32": "F32", "int32": "I32"}
REPLY_ROOM_BYTES = 8192
"""What envelope, certificate and framing of a reply take at most, and the header of its tensors."""


@dataclass(frozen=True, kw_only=True)
class TensorTerm:
    """One tensor of the study's vocabulary. ``dtype`` is that of the weights."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"


Schema = Sequence[TensorTerm]


def pack_tensors(tensors: Tensors) -> bytes:
    """The one spelling of ``tensors``: the same values give the same bytes, in any order."""
    data: bytes = save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})
    return data


def unpack_tensors(data: bytes, *, schema: Schema, dtype: Dtype) -> dict[str, NDArray[Any]]:
    """Read exactly the tensors of ``schema`` as ``dtype``, finite, in the one spelling.

    What has it is not copied: the arrays are read-only views of ``data``.

    Raises:
        WireRefusal: codes ``malformed``, ``wrong_tensors``, ``not_finite``.
    """
    if len(data) > 4096 + 512 * len(schema) + 4 * value_count(schema):
        raise _refusal("a tensor file longer than its schema", code="too_large")
    header = spelled_header(schema, dtype=dtype)
    if data.startswith(header) and len(data) == len(header) + 4 * value_count(schema):
        tensors = _views(data, len(header), schema=schema, dtype=dtype)
    else:
        tensors = read_tensors(data)  # says what is wrong with it
    check_tensors(tensors, schema=schema, dtype=dtype)
    return tensors


def spelled_header(schema: Schema, *, dtype: Dtype) -> bytes:
    """How ``pack_tensors`` begins a file of ``schema``; what begins so and is as long has that spelling."""
    fields, first = [], 0
    for term in sorted(schema, key=lambda term: term.name):
        last = first + 4 * math.prod(term.shape)
        kind = {
            "dtype": _SAFETENSORS[dtype],
            "shape": list(term.shape),
            "data_offsets": [first, last],
        }
        fields.append(f"{json.dumps(term.name)}:{json.dumps(kind, separators=(',', ':'))}")
        first = last
    text = ("{" + ",".join(fields) + "}").encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _views(data: bytes, first: int, *, schema: Schema, dtype: Dtype) -> dict[str, NDArray[Any]]:
    found = {}
    for term in sorted(schema, key=lambda term: term.name):
        count = math.prod(term.shape)
        part = np.frombuffer(
            data, dtype=np.dtype(dtype).newbyteorder("<"), count=count, offset=first
        )
        found[term.name] = part.reshape(term.shape)
        first += 4 * count
    return found


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Whatever tensors ``data`` holds in the one spelling, without a schema.

    Raises:
        WireRefusal: code ``malformed``.
    """
    try:
        tensors: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError):
        raise _refusal("bytes that are not a safetensors file", code="malformed") from None
    if pack_tensors(tensors) != data:
        raise _refusal("a safetensors file in another spelling", code="malformed")
    return tensors


def check_tensors(tensors: Tensors, *, schema: Schema, dtype: Dtype) -> None:
    """Names, shapes, dtypes and finiteness, as the study says and nothing else.

    Raises:
        WireRefusal: codes ``wrong_tensors``, ``not_finite``.
    """
    wanted = {term.name: term.shape for term in schema}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != wanted:
        raise _refusal("tensors with other names or shapes", code="wrong_tensors")
    if any(tensor.dtype != np.dtype(dtype) for tensor in tensors.values()):
        raise _refusal("tensors of another dtype", code="wrong_tensors")
    if dtype == "float32" and not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise _refusal("tensors that are not finite", code="not_finite")


def value_count(schema: Schema) -> int:
    """How many numbers the schema holds."""
    return sum(math.prod(term.shape) for term in schema)


def schema_digest(schema: Schema) -> str:
    """SHA-256 of the vocabulary: names, shapes and dtypes in order of name."""
    rows = [[t.name, list(t.shape), t.dtype] for t in sorted(schema, key=lambda t: t.name)]
    return digest(canonical({"tensors": rows}))


def reply_bytes(schema: Schema) -> int:
    """The most bytes that a reply with an update of ``schema`` takes."""
    header = sum(len(term.name) + 96 for term in schema)
    return 4 * value_count(schema) + header + REPLY_ROOM_BYTES


def to_units(update: Tensors) -> dict[str, NDArray[np.int32]]:
    """Round float updates to int32 multiples of 2^-24, to nearest, ties to even.

    A value beyond the range (±128) becomes its end: to refuse an update for its values would tell of them.

    Raises:
        WireRefusal: code ``not_finite``; a value is not finite.
    """
    units: dict[str, NDArray[np.int32]] = {}
    for name, tensor in update.items():
        scaled = np.rint(np.asarray(tensor, dtype=np.float64) / UPDATE_SCALE)
        if not np.isfinite(scaled).all():
            raise _refusal("an update that is not finite", code="not_finite")
        units[name] = scaled.clip(-UNITS_MOST, UNITS_MOST).astype(np.int32)
    return units


def _refusal(found: str, *, code: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="the tensors of the study, finite, in canonical safetensors",
        next="send exactly what the study lists",
        code=code,
    )
