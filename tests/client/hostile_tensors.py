"""Tensor files that no honest coordinator sends, each signed and bound by digest as it should be."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hostile_kit import Attack, Kit, Make
from hostile_requests import CANARY
from site_builder import zeros

from oncofed_common.tensors import pack_tensors

FAR = 2**63 - 1


def _safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _info(
    dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16), **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


BIAS, WEIGHT = "norm.bias", "norm.weight"
TWO = {BIAS: _info(), WEIGHT: _info(offsets=(16, 32))}


def _file(changes: Mapping[str, Any] | None = None, *, data: bytes = bytes(32)) -> Make:
    """A tensor file of the study's two tensors, with some of its header changed."""
    header = {name: info for name, info in (TWO | dict(changes or {})).items() if info is not None}
    return lambda kit: kit.second(packed=_safetensors(header, data))


def _bytes(packed: bytes) -> Make:
    return lambda kit: kit.second(packed=packed)


def _weights(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Make:
    def make(kit: Kit) -> bytes:
        return kit.second(packed=pack_tensors(change(zeros(kit.site.study))))

    return make


def _value(bits: int) -> Make:
    """One weight whose 32 bits are these."""
    data = struct.pack("<I", bits)
    return _weights(lambda w: w | {BIAS: np.frombuffer(data * 4, dtype="<f4").copy()})


TENSORS: list[Attack] = [
    ("no tensor file", "malformed", _bytes(b"")),
    ("a pickle for weights", "malformed", _bytes(pickle.dumps({BIAS: [0.0] * 4}))),
    ("a zip for weights", "malformed", _bytes(b"PK\x03\x04" + bytes(100))),
    ("a header beyond all memory", "malformed", _bytes(struct.pack("<Q", FAR) + bytes(100))),
    ("a header longer than the file", "malformed", _bytes(struct.pack("<Q", 400) + b"{}")),
    ("a header that is no JSON", "malformed", _bytes(_safetensors(b"{" * 80, bytes(32)))),
    ("a header that is a list", "malformed", _bytes(_safetensors([TWO], bytes(32)))),
    ("an empty header", "malformed", _bytes(_safetensors(b"", b""))),
    ("no tensors", "malformed", _bytes(_safetensors({}, b""))),
    (
        "a scan beside the weights",
        "wrong_tensors",
        _weights(lambda w: w | {"scan": np.zeros((4, 4), np.float32)}),
    ),
    (
        "a scan in bytes",
        "wrong_tensors",
        _weights(lambda w: w | {"scan": np.arange(16, dtype=np.uint8)}),
    ),
    (
        "a scan for the weights",
        "wrong_tensors",
        _weights(lambda w: {"scan": np.zeros((8,), np.float32)}),
    ),
    (
        "a scan in the place of the weights",
        "wrong_tensors",
        _weights(lambda w: w | {BIAS: np.zeros((16, 16), np.float32)}),
    ),
    (
        "a scan of 256 KB",
        "too_large",
        _weights(lambda w: w | {BIAS: np.zeros((256, 256), np.float32)}),
    ),
    (
        "an empty tensor more",
        "wrong_tensors",
        _weights(lambda w: w | {"more": np.zeros((0,), np.float32)}),
    ),
    (
        "a tensor renamed",
        "wrong_tensors",
        _weights(lambda w: {BIAS: w[BIAS], "norm.wEight": w[WEIGHT]}),
    ),
    ("a tensor missing", "wrong_tensors", _weights(lambda w: {BIAS: w[BIAS]})),
    (
        "a name that is a path",
        "wrong_tensors",
        _weights(lambda w: w | {"../../etc/passwd": w[BIAS]}),
    ),
    ("a name with a NUL", "wrong_tensors", _weights(lambda w: w | {"norm\x00": w[BIAS]})),
    ("a name without a letter", "wrong_tensors", _weights(lambda w: w | {"": w[BIAS]})),
    ("a name of 20 KB", "too_large", _weights(lambda w: w | {"n" * 20_000: w[BIAS]})),
    ("a name that says something", "wrong_tensors", _weights(lambda w: w | {CANARY: w[BIAS]})),
    *(
        (
            f"weights of type {kind}",
            "wrong_tensors",
            _weights(lambda w, k=kind: {n: t.astype(k) for n, t in w.items()}),
        )
        for kind in ("float64", "float16", "int32", "int64", "uint8", "bool", "uint32")
    ),
    ("bfloat16", "malformed", _file({BIAS: _info("BF16", (8,))})),
    ("eight bits", "malformed", _file({BIAS: _info("F8_E4M3", (16,))})),
    ("a type that is none", "malformed", _file({BIAS: _info("PICKLE")})),
    (
        "another shape of one size",
        "wrong_tensors",
        _weights(lambda w: w | {BIAS: w[BIAS].reshape(2, 2)}),
    ),
    ("an axis more", "wrong_tensors", _weights(lambda w: w | {BIAS: w[BIAS][None]})),
    ("no axis", "wrong_tensors", _weights(lambda w: w | {BIAS: np.zeros((), np.float32)})),
    ("a negative shape", "malformed", _file({BIAS: _info(shape=(-4,))})),
    ("two negative axes", "malformed", _file({BIAS: _info(shape=(-2, -2))})),
    ("an axis of 2^63", "malformed", _file({BIAS: _info(shape=(2**63,))})),
    (
        "axes whose product overflows to four",
        "malformed",
        _file({BIAS: _info(shape=(2**62 + 1, 4))}),
    ),
    ("a terabyte of shape", "malformed", _file({BIAS: _info(shape=(2**20, 2**20))})),
    ("a thousand axes", "malformed", _file({BIAS: _info(shape=(4, *[1] * 1000))})),
    ("an axis with a fraction", "malformed", _file({BIAS: _info(shape=(4.0,))})),
    ("an axis in words", "malformed", _file({BIAS: _info(shape=("4",))})),
    ("tensors that overlap", "malformed", _file({WEIGHT: _info(offsets=(0, 16))}, data=bytes(16))),
    (
        "tensors that overlap by half",
        "malformed",
        _file({WEIGHT: _info(offsets=(8, 24))}, data=bytes(24)),
    ),
    (
        "a hole between tensors",
        "malformed",
        _file({WEIGHT: _info(offsets=(24, 40))}, data=bytes(40)),
    ),
    ("an end beyond the file", "malformed", _file({WEIGHT: _info(offsets=(16, 2**40))})),
    ("an end before its beginning", "malformed", _file({WEIGHT: _info(offsets=(32, 16))})),
    ("a negative offset", "malformed", _file({WEIGHT: _info(offsets=(-16, 0))})),
    ("one offset", "malformed", _file({WEIGHT: _info(offsets=(16,))})),
    ("bytes behind the tensors", "malformed", _file(data=bytes(33))),
    ("too few bytes", "malformed", _file(data=bytes(31))),
    (
        "tensors in another order",
        "malformed",
        _file({BIAS: _info(offsets=(16, 32)), WEIGHT: _info()}),
    ),
    ("metadata", "malformed", _file({"__metadata__": {"note": CANARY}})),
    ("a field more of a tensor", "malformed", _file({BIAS: _info(note=CANARY)})),
    (
        "a tensor given twice",
        "malformed",
        _bytes(
            _safetensors(
                json.dumps(TWO).encode()[:-1] + b"," + json.dumps({BIAS: _info()}).encode()[1:],
                bytes(32),
            )
        ),
    ),
    (
        "a header with other spaces",
        "malformed",
        _bytes(_safetensors(json.dumps(TWO, indent=1).encode(), bytes(32))),
    ),
    ("not a number", "not_finite", _value(0x7FC00000)),
    ("not a number, with a payload", "not_finite", _value(0x7FC0BEEF)),
    ("not a number, signalling", "not_finite", _value(0x7F80BEEF)),
    ("not a number, negative", "not_finite", _value(0xFFFFFFFF)),
    ("infinity", "not_finite", _value(0x7F800000)),
    ("infinity, negative", "not_finite", _value(0xFF800000)),
    (
        "one value of eight that is none",
        "not_finite",
        _weights(lambda w: w | {WEIGHT: np.array([0, 0, 0, np.nan], np.float32)}),
    ),
]
