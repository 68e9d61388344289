"""The exact sum: no order, no grouping and no machine changes a bit of it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oncofed_common.aggregation_terms import AggregationTerms
from oncofed_common.errors import WireRefusal
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import TensorTerm, pack_tensors
from oncofed_common.update_bound import squared_length
from oncofed_server.aggregate import BLOCK, WEIGHT_CAP, Sum, empty_sum, fold
from oncofed_server.strategies.optimizers import moved

SCHEMA = (TensorTerm(name="a", shape=(2, 3)), TensorTerm(name="b", shape=()))
MOST = 2**31 - 1

values = st.integers(-MOST, MOST)
updates = st.fixed_dictionaries(
    {
        "a": hnp.arrays(np.int32, (2, 3), elements=values),
        "b": hnp.arrays(np.int32, (), elements=values),
    }
)
replies = st.lists(st.tuples(updates, st.integers(1, 2**20)), min_size=1, max_size=8)
weights = st.fixed_dictionaries(
    {
        "a": hnp.arrays(np.float32, (2, 3), elements=st.floats(-1e3, 1e3, width=32)),
        "b": hnp.arrays(np.float32, (), elements=st.floats(-1e3, 1e3, width=32)),
    }
)


def summed(pairs) -> Sum:
    total = empty_sum(SCHEMA)
    for update, weight in pairs:
        total = fold(total, update, weight=weight, schema=SCHEMA, limit_units=None)
    return total


def after_sum(before, total: Sum, *, rate: float):
    """The next weights of the plain weighted mean."""
    terms = AggregationTerms(
        strategy="weighted_mean", server_learning_rate=1.0, fewest_sites=1, round_deadline_s=60
    )
    terms = terms.model_copy(update={"server_learning_rate": rate})
    weights, memory = moved(before, total, before={}, terms=terms, schema=SCHEMA)
    assert memory == {}
    return weights


def as_bytes(total: Sum):
    return {name: value.tobytes() for name, value in total.totals.items()}, total.weight


@given(data=st.data(), pairs=replies)
def test_any_order_of_replies_gives_the_same_bytes(data, pairs):
    shuffled = data.draw(st.permutations(pairs))
    assert as_bytes(summed(shuffled)) == as_bytes(summed(pairs))


@given(pairs=replies)
def test_the_sum_is_that_of_whole_numbers_without_limit(pairs):
    total = summed(pairs)
    for name in ("a", "b"):
        exact = sum(update[name].astype(object) * weight for update, weight in pairs)
        assert np.array_equal(total.totals[name].astype(object), exact)
    assert total.weight == sum(weight for _, weight in pairs)


@given(pairs=replies, cut=st.integers(0, 8))
def test_sums_of_two_groups_add_up_to_the_sum_of_all(pairs, cut):
    left, right = summed(pairs[:cut]), summed(pairs[cut:])
    whole = summed(pairs)
    for name in ("a", "b"):
        together = left.totals[name].astype(np.int64) + right.totals[name]
        assert np.array_equal(together, whole.totals[name])


@given(before=weights, pairs=replies, rate=st.sampled_from([1.0, 0.5, 0.75, 0.1]))
def test_the_next_weights_are_within_a_rounding_of_the_exact_mean(before, pairs, rate):
    total = summed(pairs)
    after = after_sum(before, total, rate=rate)
    for name in ("a", "b"):
        for old, units, new in zip(
            np.ravel(before[name]), np.ravel(total.totals[name]), np.ravel(after[name]), strict=True
        ):
            exact = Fraction(float(old)) + Fraction(rate) * int(units) / (2**24 * total.weight)
            assert abs(Fraction(float(new)) - exact) <= Fraction(float(np.spacing(np.abs(new))))


@given(before=weights, pairs=replies)
def test_the_weights_before_are_left_as_they_were(before, pairs):
    packed = pack_tensors(before)
    after_sum(before, summed(pairs), rate=1.0)
    assert pack_tensors(before) == packed


@given(before=weights, update=updates, weight=st.integers(1, 2**20))
def test_one_site_alone_moves_the_weights_by_its_own_update_whatever_its_weight(
    before, update, weight
):
    alone = after_sum(before, summed([(update, weight)]), rate=1.0)
    for name in ("a", "b"):
        moved = before[name].astype(np.float64) + update[name] * 2.0**-24
        np.testing.assert_array_max_ulp(alone[name], moved.astype(np.float32), maxulp=1)


@pytest.mark.parametrize(
    "update",
    [
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.zeros((3, 2), np.int32), "b": np.zeros((), np.int32)},
        {"a": np.zeros((2, 3), np.int64), "b": np.zeros((), np.int32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int32)},
        {"a": np.zeros((1, 3), np.int32), "b": np.zeros((), np.int32)},
        {"a": np.zeros((2, 3), np.int32), "b": np.zeros((), np.int32), "c": np.zeros(1, np.int32)},
    ],
)
def test_what_does_not_fit_the_schema_adds_nothing(update):
    total = summed([({"a": np.ones((2, 3), np.int32), "b": np.ones((), np.int32)}, 2)])
    before = as_bytes(total)
    with pytest.raises(WireRefusal) as refused:
        fold(total, update, weight=1, schema=SCHEMA, limit_units=None)
    assert refused.value.code == "wrong_tensors"
    assert as_bytes(total) == before


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_CAP - 1])
def test_a_weight_that_could_wrap_the_sum_is_refused(weight):
    ones = {"a": np.ones((2, 3), np.int32), "b": np.ones((), np.int32)}
    with pytest.raises(WireRefusal):
        fold(summed([(ones, 2)]), ones, weight=weight, schema=SCHEMA, limit_units=None)


def test_the_largest_sum_that_is_allowed_does_not_wrap():
    largest = {"a": np.full((2, 3), MOST, np.int32), "b": np.full((), -MOST, np.int32)}
    total = summed([(largest, 2**31), (largest, 2**31)])
    assert int(total.totals["b"]) == -MOST * 2**32
    zeros = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
    after = after_sum(zeros, total, rate=1.0)
    assert after["a"][0, 0] == np.float32(MOST / 2**24)


@pytest.mark.parametrize("last", [1, -1])
def test_totals_have_32_bits_up_to_the_last_unit_that_fits_them_and_then_64(last):
    flat = {"a": np.zeros((2, 3), np.int32), "b": np.array(last * (2**30 - 1), np.int32)}
    one = {"a": np.zeros((2, 3), np.int32), "b": np.array(last, np.int32)}
    total = summed([(flat, 2), (one, 1)])
    assert (int(total.totals["b"]), total.totals["b"].dtype) == (last * (2**31 - 1), np.int32)
    total = fold(total, one, weight=1, schema=SCHEMA, limit_units=None)
    assert (int(total.totals["b"]), total.totals["b"].dtype) == (last * 2**31, np.int64)
    assert total.totals["a"].dtype == np.int32


def test_zeros_of_a_weight_beyond_32_bits_are_added():
    zeros = {"a": np.zeros((2, 3), np.int32), "b": np.zeros((), np.int32)}
    assert as_bytes(summed([(zeros, 2**31)]))[1] == 2**31


def test_totals_that_are_widened_in_their_room_stay_what_they_were():
    """Several blocks; a value of the last alone does not fit, and another update comes after."""
    size = 3 * BLOCK + 5
    schema = (TensorTerm(name="w", shape=(size,)),)
    drawn = np.random.default_rng(1).integers(-(2**20), 2**20, (3, size), dtype=np.int32)
    drawn[1, -1] = MOST
    total = empty_sum(schema)
    for update in drawn:
        total = fold(total, {"w": update}, weight=7, schema=schema, limit_units=None)
    assert np.array_equal(total.totals["w"], 7 * drawn.astype(np.int64).sum(axis=0))


@given(pairs=replies, update=updates, weight=st.integers(1, 2**20), more=st.integers(-2, 2))
def test_an_update_longer_than_its_limit_adds_nothing_and_the_sum_goes_on(
    pairs, update, weight, more
):
    """Decided in whole numbers; whatever totals it widened on its way are narrow again."""
    squared = squared_length(update)
    limit = max(0, math.isqrt(squared) + more)
    total = summed(pairs)
    before, kinds = as_bytes(total), {name: one.dtype for name, one in total.totals.items()}
    if squared <= limit**2:
        whole = fold(total, update, weight=weight, schema=SCHEMA, limit_units=limit)
        assert as_bytes(whole) == as_bytes(summed([*pairs, (update, weight)]))
        return
    with pytest.raises(WireRefusal) as refused:
        fold(total, update, weight=weight, schema=SCHEMA, limit_units=limit)
    assert refused.value.code == "too_large"
    assert as_bytes(total) == before
    assert {name: one.dtype for name, one in total.totals.items()} == kinds
    for other, times in pairs:
        total = fold(total, other, weight=times, schema=SCHEMA, limit_units=None)
    assert as_bytes(total) == as_bytes(summed([*pairs, *pairs]))


@pytest.mark.parametrize("before", [1, MOST])
def test_many_blocks_are_taken_back_from_narrow_and_from_wide_totals(before):
    size = 3 * BLOCK + 5
    schema = (TensorTerm(name="w", shape=(size,)),)
    first, lie = np.random.default_rng(1).integers(-(2**20), 2**20, (2, size), dtype=np.int32)
    first[0], lie[BLOCK] = before, MOST
    total = fold(empty_sum(schema), {"w": first}, weight=7, schema=schema, limit_units=None)
    with pytest.raises(WireRefusal):
        fold(total, {"w": lie}, weight=7, schema=schema, limit_units=2**31)
    assert np.array_equal(total.totals["w"], 7 * first.astype(np.int64))
    total = fold(total, {"w": first}, weight=7, schema=schema, limit_units=2**40)
    assert np.array_equal(total.totals["w"], 14 * first.astype(np.int64))


def test_metrics_have_no_part_in_the_length():
    schema = (TensorTerm(name="w", shape=(2,)), TensorTerm(name=METRICS, shape=(1,)))
    update = {"w": np.array([3, 4], np.int32), METRICS: np.array([MOST], np.int32)}
    total = fold(empty_sum(schema), update, weight=1, schema=schema, limit_units=5)
    assert int(total.totals[METRICS][0]) == MOST
    with pytest.raises(WireRefusal):
        fold(empty_sum(schema), update, weight=1, schema=schema, limit_units=4)


def test_nothing_counted_and_weights_beyond_float32_are_refused():
    zeros = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
    with pytest.raises(WireRefusal):
        after_sum(zeros, empty_sum(SCHEMA), rate=1.0)
    largest = {"a": np.full((2, 3), MOST, np.int32), "b": np.zeros((), np.int32)}
    with pytest.raises(WireRefusal) as refused:
        after_sum(zeros, summed([(largest, 1)]), rate=1e300)
    assert refused.value.code == "not_finite"
