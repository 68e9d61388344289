"""How are replies added up exactly, so that the order of arrival cannot change a bit?

With weight_k the study's integer weight of site k and u_k its int32 update in units of 2^-24,

    S = sum over counted sites of weight_k u_k                    in int64, modulo 2^64

S is an integer, so any order and any grouping give the same S. ``strategies`` makes the next weights of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.errors import WireRefusal
from oncofed_common.study import Study
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import UPDATE_SCALE, Schema, check_tensors
from oncofed_common.wire import Participation

BLOCK = 1 << 16
"""So many values are added at a time: their products stay in the processor's cache."""
WEIGHT_CAP = 2**32
"""Sum of all weights: below it 32-bit updates cannot wrap a signed 64-bit sum."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """The exact sum so far, and the weights that are in it."""

    totals: Mapping[str, NDArray[np.int64]]
    weight: int


def empty_sum(schema: Schema) -> Sum:
    """The sum over no sites."""
    totals = {term.name: np.zeros(term.shape, dtype=np.int64) for term in schema}
    return Sum(totals=totals, weight=0)


def check(update: Mapping[str, NDArray[Any]], *, schema: Schema) -> None:
    """Nothing, if an update is int32 and has the names and shapes of ``schema``.

    Raises:
        WireRefusal: it has others.
    """
    check_tensors(update, schema=schema, dtype="int32")


def fold(total: Sum, update: Mapping[str, NDArray[Any]], *, weight: int, schema: Schema) -> Sum:
    """``total`` with one site's int32 ``update`` in it; everything is checked before anything is added.

    The arrays of ``total`` are added to in place, so that memory stays at one sum: use the result only.

    Raises:
        WireRefusal: other names, shapes or dtypes than ``schema``, or a weight beyond ``WEIGHT_CAP``.
    """
    check(update, schema=schema)
    if not 0 < weight <= WEIGHT_CAP - total.weight:
        raise _refusal("a weight that is not positive, or a sum of weights beyond 2^32")
    for name, sums in total.totals.items():
        whole, part = sums.reshape(-1), np.ravel(update[name])
        for first in range(0, whole.size, BLOCK):
            block = whole[first : first + BLOCK]
            block += part[first : first + BLOCK] * np.int64(weight)
    return Sum(totals=total.totals, weight=total.weight + weight)


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


def _refusal(found: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="a sum over at least one site, with the study's weights",
        next="check sites[].weight in the study",
        code="malformed",
    )
