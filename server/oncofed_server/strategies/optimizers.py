"""How do the weights move by a mean update? With + - x / and roots in float64 alone, and one rounding at the
end, so that every machine finds the same bits.

    none        w + eta d
    momentum    m' = beta m + d                   w + eta m'
    adam        m' = beta m + (1 - beta) d        w + eta m' / (sqrt(v') + tau)
                v' = beta2 v + (1 - beta2) d^2
    yogi        as adam, but                      v' = v - (1 - beta2) d^2 sign(v - d^2)

d is the mean update, v begins at tau^2 (Reddi et al. 2021, "Adaptive federated optimization").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.aggregation_terms import AggregationTerms
from oncofed_common.tensors import UPDATE_SCALE, Schema, check_tensors
from oncofed_server.aggregate import Sum, refuse_empty

Moments = Mapping[str, NDArray[Any]]
"""What an optimiser remembers, float32, by what it is and the name of the tensor."""
Exact = NDArray[np.float64]

FIRST, SECOND = "first.", "second."


def moments(terms: AggregationTerms, schema: Schema) -> dict[str, NDArray[Any]]:
    """What an optimiser remembers before the first round."""
    found = {}
    for term in schema:
        if terms.server_optimizer is not None:
            found[FIRST + term.name] = np.zeros(term.shape, dtype=np.float32)
        if terms.server_floor is not None:
            found[SECOND + term.name] = np.full(term.shape, terms.server_floor**2, dtype=np.float32)
    return found


def moved(
    weights: Mapping[str, NDArray[Any]],
    total: Sum,
    *,
    before: Moments,
    terms: AggregationTerms,
    schema: Schema,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The next float32 weights, and what the optimiser remembers then.

    Raises:
        WireRefusal: nothing was counted, or a weight leaves the range of float32.
    """
    refuse_empty(total)
    after: dict[str, NDArray[Any]] = {}
    kept: dict[str, NDArray[Any]] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        for term in schema:
            name = term.name
            if terms.server_optimizer is None:  # one unit for all: the fewest roundings
                step = terms.server_learning_rate * UPDATE_SCALE * total.totals[name] / total.weight
            else:
                mean = UPDATE_SCALE * total.totals[name] / total.weight
                direction, remembered = _direction(mean, before, terms, name=name)
                step = terms.server_learning_rate * direction
                kept |= remembered
            after[name] = np.asarray(weights[name].astype(np.float64) + step, dtype=np.float32)
    check_tensors(after, schema=schema, dtype="float32")
    return after, kept


def _direction(
    mean: Exact, before: Moments, terms: AggregationTerms, *, name: str
) -> tuple[Exact, dict[str, NDArray[Any]]]:
    """Where the weights go, and what is remembered of it."""
    beta = terms.server_momentum or 0.0
    was = before[FIRST + name].astype(np.float64)
    if terms.server_optimizer == "momentum":
        first = beta * was + mean
        return first, {FIRST + name: _rounded(first)}
    first = beta * was + (1.0 - beta) * mean
    share, floor = 1.0 - (terms.server_second_momentum or 0.0), terms.server_floor or 0.0
    squares, old = mean * mean, before[SECOND + name].astype(np.float64)
    if terms.server_optimizer == "adam":
        second = (1.0 - share) * old + share * squares
    else:
        second = old - share * squares * np.sign(old - squares)
    kept = {FIRST + name: _rounded(first), SECOND + name: _rounded(second)}
    return first / (np.sqrt(second) + floor), kept


def _rounded(values: Exact) -> NDArray[Any]:
    return np.asarray(values, dtype=np.float32)
