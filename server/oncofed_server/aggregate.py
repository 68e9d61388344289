"""How are replies added up exactly, so that the order of arrival cannot change a bit?

With weight_k the study's integer weight of site k and u_k its int32 update in units of 2^-24,

    S = sum over counted sites of weight_k u_k

S is an integer, so any order and any grouping give the same S. ``strategies`` makes the next weights of it.

Adding up is bound by memory, so totals have 32 bits each as long as

    sum over counted sites of weight_k max|u_k| < 2^31

and 64 from then on, in the room that was set aside for them. An update is measured in the pass in which it
is added: one that turns out to be longer than it may be is subtracted again, which whole numbers can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.errors import WireRefusal
from oncofed_common.study import Study
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import UPDATE_SCALE, Schema, TensorTerm, check_tensors
from oncofed_common.update_bound import BLOCK, Length
from oncofed_common.wire import Participation

WEIGHT_CAP = 2**32
"""Sum of all weights: below it 32-bit updates cannot wrap a signed 64-bit sum."""
_NARROW = 2**31


@dataclass(frozen=True, kw_only=True)
class Sum:
    """The exact sum so far, and the weights that are in it.

    ``reach`` says of each tensor what none of its totals can be larger than, whatever their signs.
    """

    totals: Mapping[str, NDArray[Any]]
    weight: int
    reach: Mapping[str, int] = field(default_factory=dict)


def empty_sum(schema: Schema) -> Sum:
    """The sum over no sites."""
    return Sum(
        totals={term.name: _narrow(term) for term in schema},
        weight=0,
        reach={term.name: 0 for term in schema},
    )


def check(update: Mapping[str, NDArray[Any]], *, schema: Schema) -> None:
    """Nothing, if an update is int32 and has the names and shapes of ``schema``.

    Raises:
        WireRefusal: it has others.
    """
    check_tensors(update, schema=schema, dtype="int32")


def fold(
    total: Sum,
    update: Mapping[str, NDArray[Any]],
    *,
    weight: int,
    schema: Schema,
    limit_units: int | None,
) -> Sum:
    """``total`` with one site's int32 ``update`` in it.

    The arrays of ``total`` are added to in place, so that memory stays at one sum: use the result only. After
    a refusal ``total`` is what it was.

    Args:
        limit_units: the largest L2 norm of what was trained (the metrics are not in it), in units of 2^-24;
            None for an update that was measured before.

    Raises:
        WireRefusal: other names, shapes or dtypes than ``schema``, or a weight beyond ``WEIGHT_CAP``; code
            ``too_large``, an update that is longer than ``limit_units``.
    """
    check(update, schema=schema)
    if not 0 < weight <= WEIGHT_CAP - total.weight:
        raise _refusal("a weight that is not positive, or a sum of weights beyond 2^32")
    totals, reach, length = dict(total.totals), dict(total.reach), Length()
    for name, part in ((name, np.ravel(update[name])) for name in totals):
        for first in range(0, part.size, BLOCK):
            block = part[first : first + BLOCK]
            if limit_units is not None and name != METRICS:
                length.add(block)
            most = total.reach[name] + weight * max(int(block.max()), -int(block.min()))
            if max(most, weight) >= _NARROW and totals[name].dtype == np.int32:
                totals[name] = _widened(totals[name])
            sums = totals[name].reshape(-1)[first : first + BLOCK]
            sums += block * sums.dtype.type(weight)
            reach[name] = max(reach[name], most)
    trained = {name: values for name, values in update.items() if name != METRICS}
    if limit_units is not None and length.is_beyond(limit_units, update=trained):
        _take_back(totals, total, update, weight=weight)
        raise too_long()
    return Sum(totals=totals, weight=total.weight + weight, reach=reach)


def _take_back(
    totals: Mapping[str, NDArray[Any]],
    total: Sum,
    update: Mapping[str, NDArray[Any]],
    *,
    weight: int,
) -> None:
    """Make of ``totals`` with an update in them what ``total`` was, narrow where that was narrow."""
    for name, sums in totals.items():
        part, before = np.ravel(update[name]), total.totals[name].reshape(-1)
        for first in range(0, part.size, BLOCK):
            here = slice(first, first + BLOCK)
            before[here] = sums.reshape(-1)[here] - part[here] * sums.dtype.type(weight)


def _narrow(term: TensorTerm) -> NDArray[np.int32]:
    """Zeros of 32 bits, in the first half of a room for 64, of which the system gives what is written to."""
    room = np.zeros(math.prod(term.shape), dtype=np.int64)
    return room.view(np.int32)[: room.size].reshape(term.shape)


def _widened(narrow: NDArray[np.int32]) -> NDArray[np.int64]:
    """The same totals in 64 bits, in their room, the last first: what is read is not written over yet."""
    room, flat = narrow.base, narrow.reshape(-1)
    assert room is not None
    for first in reversed(range(0, flat.size, BLOCK)):
        room[first : first + BLOCK] = flat[first : first + BLOCK].copy()
    return room.reshape(narrow.shape)


def refuse_empty(total: Sum) -> None:
    """Nothing, if anything was counted.

    Raises:
        WireRefusal: nothing was.
    """
    if total.weight <= 0:
        raise _refusal("a sum over no sites")


def metrics_of(total: Sum) -> dict[str, Any]:
    """The fields of a participation record that tell of the metrics in a sum; none, where there are none."""
    if METRICS not in total.totals:
        return {"metrics": (), "metrics_weight": 0}
    sums = tuple(str(int(one)) for one in total.totals[METRICS])
    return {"metrics": sums, "metrics_weight": total.weight}


def mean_metrics(record: Participation, study: Study) -> dict[str, float]:
    """Each group's noised mean over the counted sites, as the weights of the round's beginning had it."""
    if not record.metrics_weight:
        return {}
    pairs = zip(study.outbound.metrics, record.metrics, strict=True)
    return {name: int(sums) * UPDATE_SCALE / record.metrics_weight for name, sums in pairs}


def too_long() -> WireRefusal:
    """The refusal of an update that is longer than its study allows."""
    return WireRefusal(
        "an update longer than any that its study can give",
        allowed="what a trainer makes by the study's steps, clip norm and noise",
        next="look at the site's audit for this round",
        code="too_large",
    )


def _refusal(found: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="a sum over at least one site, with the study's weights",
        next="check sites[].weight in the study",
        code="malformed",
    )
