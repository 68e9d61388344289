"""Tensors as bytes: one spelling, the study's vocabulary, nothing that hides between the lines."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oncofed_common.errors import WireRefusal
from oncofed_common.tensors import (
    UPDATE_SCALE,
    TensorTerm,
    check_tensors,
    pack_tensors,
    read_tensors,
    schema_digest,
    spelled_header,
    to_units,
    unpack_tensors,
    value_count,
)

SCHEMA = [TensorTerm(name="a.weight", shape=(2, 3)), TensorTerm(name="b", shape=(4,))]
GOOD = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.full(4, -0.5, dtype=np.float32),
}

names = st.text("abcdefghijklmnop.-_", min_size=1, max_size=12)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
floats = st.dictionaries(names, hnp.arrays(np.float32, shapes, elements=finite), max_size=4)
whole = st.dictionaries(names, hnp.arrays(np.int32, shapes), max_size=4)


def schema_of(tensors):
    return [TensorTerm(name=name, shape=value.shape) for name, value in tensors.items()]


def spelled(header: dict, body: bytes, *, spaces: int = 0) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode() + b" " * spaces
    return struct.pack("<Q", len(text)) + text + body


@given(tensors=floats)
def test_what_is_packed_is_read_back_bit_for_bit(tensors):
    back = unpack_tensors(pack_tensors(tensors), schema=schema_of(tensors), dtype="float32")
    assert {k: (v.shape, v.tobytes()) for k, v in back.items()} == {
        k: (v.shape, v.tobytes()) for k, v in tensors.items()
    }


@given(tensors=floats.filter(bool) | whole)
def test_a_header_is_spelled_as_the_library_spells_it(tensors):
    """So a file that begins with it needs no second packing to be known as the one spelling."""
    dtype = "int32" if all(value.dtype == np.int32 for value in tensors.values()) else "float32"
    header = spelled_header(schema_of(tensors), dtype=dtype)
    data = pack_tensors(tensors)
    assert data.startswith(header)
    assert len(data) == len(header) + 4 * value_count(schema_of(tensors))


@given(tensors=whole)
def test_the_order_of_names_and_of_memory_changes_no_byte(tensors):
    turned = {name: np.array(value, order="F") for name, value in reversed(tensors.items())}
    assert pack_tensors(turned) == pack_tensors(tensors)


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_malformed(data):
    with pytest.raises(WireRefusal) as refused:
        read_tensors(data)
    assert refused.value.code == "malformed"


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused_or_changes_a_value(place, bit):
    packed = bytearray(pack_tensors(GOOD))
    packed[place % len(packed)] ^= 1 << bit
    try:
        back = unpack_tensors(bytes(packed), schema=SCHEMA, dtype="float32")
    except WireRefusal:
        return
    assert any(back[name].tobytes() != GOOD[name].tobytes() for name in GOOD)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    tensors = {**GOOD, "b": np.array([0, bad, 0, 0], dtype=np.float32)}
    with pytest.raises(WireRefusal) as refused:
        unpack_tensors(pack_tensors(tensors), schema=SCHEMA, dtype="float32")
    assert refused.value.code == "not_finite"


@pytest.mark.parametrize(
    "tensors",
    [
        {"b": GOOD["b"]},
        {**GOOD, "c": np.zeros(0, dtype=np.float32)},
        {"a.weight": GOOD["a.weight"], "B": GOOD["b"]},
        {**GOOD, "a.weight": GOOD["a.weight"].T.copy()},
        {**GOOD, "b": GOOD["b"].astype(np.int32)},
        {**GOOD, "b": GOOD["b"].astype(np.float16)},
        {**GOOD, "b": GOOD["b"].astype(np.float64)},
    ],
)
def test_a_missing_extra_renamed_reshaped_or_retyped_tensor_is_refused(tensors):
    with pytest.raises(WireRefusal) as refused:
        unpack_tensors(pack_tensors(tensors), schema=SCHEMA, dtype="float32")
    assert refused.value.code == "wrong_tensors"
    with pytest.raises(WireRefusal):
        check_tensors(tensors, schema=SCHEMA, dtype="float32")


def test_another_spelling_of_the_same_tensors_is_refused():
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    two = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    schema = [TensorTerm(name="x", shape=(1,)), TensorTerm(name="y", shape=(1,))]
    body = struct.pack("<ff", 1.0, 2.0)
    canonical = pack_tensors({"x": np.ones(1, np.float32), "y": np.full(1, 2, np.float32)})
    others = [
        spelled({"x": one, "y": two}, body, spaces=16),
        spelled({"y": two, "x": one}, body),
        spelled({"__metadata__": {"patient": "seven"}, "x": one, "y": two}, body),
        spelled({"x": two, "y": one}, struct.pack("<ff", 2.0, 1.0)),
    ]
    unpack_tensors(canonical, schema=schema, dtype="float32")
    for other in others:
        assert other != canonical
        with pytest.raises(WireRefusal) as refused:
            unpack_tensors(other, schema=schema, dtype="float32")
        assert refused.value.code == "malformed"


def test_a_file_longer_than_its_schema_is_refused_before_it_is_parsed():
    with pytest.raises(WireRefusal) as refused:
        unpack_tensors(b"\xff" * 100_000, schema=SCHEMA, dtype="float32")
    assert refused.value.code == "too_large"


@pytest.mark.parametrize("shape", [[2**62, 4], [2**31, 2**31], [-1, 4]])
def test_a_header_that_claims_absurd_shapes_is_malformed(shape):
    data = spelled({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}, b"\0" * 16)
    with pytest.raises(WireRefusal) as refused:
        read_tensors(data)
    assert refused.value.code == "malformed"


def test_a_schema_counts_its_values_and_its_digest_does_not_depend_on_order():
    assert value_count(SCHEMA) == 10
    assert value_count([TensorTerm(name="scalar", shape=())]) == 1
    assert schema_digest(SCHEMA) == schema_digest(SCHEMA[::-1])
    assert schema_digest(SCHEMA) != schema_digest(
        [TensorTerm(name="a.weight", shape=(3, 2)), SCHEMA[1]]
    )


@given(units=hnp.arrays(np.int32, 8, elements=st.integers(-(2**31) + 1, 2**31 - 1)))
def test_units_that_float64_holds_come_back_exactly(units):
    assert (to_units({"x": units * np.float64(UPDATE_SCALE)})["x"] == units).all()


def test_units_are_rounded_to_nearest_with_ties_to_even():
    halves = np.array([0.5, 1.5, 2.5, -0.5, 0.49, -1.51]) * UPDATE_SCALE
    assert to_units({"x": halves})["x"].tolist() == [0, 2, 2, 0, 0, -2]


@pytest.mark.parametrize("much", [128.0, 1e30])
def test_a_value_beyond_the_range_of_the_wire_becomes_its_end(much):
    assert to_units({"x": np.array([much, -much])})["x"].tolist() == [2**31 - 1, 1 - 2**31]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(bad):
    with pytest.raises(WireRefusal) as refused:
        to_units({"x": np.array([0.0, bad])})
    assert refused.value.code == "not_finite"
