"""Which update do many sites speak for, when some may send anything at all?

Every rule looks at all updates side by side, and every site counts alike: a declared weight would give a
liar the more to say. What comes out is a sum of whole numbers and what to divide it by, as exact as the
plain mean, and the same in whatever order the updates came.

    coordinate_median     the median of each value (Yin et al. 2018)
    trimmed_mean          the mean of each value without the f largest and the f smallest (Yin et al. 2018)
    krum                  the update with the least sum of squared distances to its n - f - 2 nearest
    multi_krum            the mean of the n - f updates of which that is least (Blanchard et al. 2017)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.tensors import Schema
from oncofed_common.update_bound import squared_length
from oncofed_server.aggregate import Sum, empty_sum, fold
from oncofed_server.strategies.bounded import Update

BLOCK = 1 << 16
"""So many values of every site are sorted at a time."""


def coordinate_median(updates: Mapping[str, Update], schema: Schema, *, attackers: int) -> Sum:
    """Twice the median of each value, over 2: with an even number of sites the two in the middle."""
    del attackers  # fewer than half of the sites, whoever they are
    sites = len(updates)

    def middle(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
        both: NDArray[np.int64] = ordered[(sites - 1) // 2] + ordered[sites // 2]
        return both

    return Sum(totals=_by_value(updates, schema, middle), weight=2)


def trimmed_mean(updates: Mapping[str, Update], schema: Schema, *, attackers: int) -> Sum:
    """Of each value, all but the ``attackers`` largest and smallest."""
    kept = slice(attackers, len(updates) - attackers)

    def inner(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
        total: NDArray[np.int64] = ordered[kept].sum(axis=0)
        return total

    return Sum(totals=_by_value(updates, schema, inner), weight=len(updates) - 2 * attackers)


def krum(updates: Mapping[str, Update], schema: Schema, *, attackers: int) -> Sum:
    """The one update that Krum chooses."""
    return _sum_of(updates, schema, nearest(updates, attackers=attackers)[:1])


def multi_krum(updates: Mapping[str, Update], schema: Schema, *, attackers: int) -> Sum:
    """The ``n - attackers`` updates that Krum likes best."""
    chosen = nearest(updates, attackers=attackers)[: len(updates) - attackers]
    return _sum_of(updates, schema, chosen)


Rule = Callable[..., Sum]
RULES: Mapping[str, Rule] = {
    "coordinate_median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
}


def nearest(updates: Mapping[str, Update], *, attackers: int) -> list[str]:
    """Sites by Krum's score, the best first; among equals by name."""
    sites = sorted(updates)
    apart = {
        (one, other): squared_length(
            {
                name: np.asarray(values.astype(np.int64) - updates[other][name])
                for name, values in updates[one].items()
            }
        )
        for at, one in enumerate(sites)
        for other in sites[:at]
    }

    def score(site: str) -> int:
        distances = (apart[max(site, other), min(site, other)] for other in sites if other != site)
        return sum(sorted(distances)[: len(sites) - attackers - 2])

    return sorted(sites, key=lambda site: (score(site), site))


def _sum_of(updates: Mapping[str, Update], schema: Schema, sites: Sequence[str]) -> Sum:
    total = empty_sum(schema)
    for site in sites:
        total = fold(total, updates[site], weight=1, schema=schema, limit_units=None)
    return total


def _by_value(
    updates: Mapping[str, Update],
    schema: Schema,
    rule: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> dict[str, NDArray[Any]]:
    """What ``rule`` makes of each value's column of sites, in order of size."""
    found = {}
    for term in schema:
        rows = [np.ravel(update[term.name]) for update in updates.values()]
        made = np.empty(rows[0].size, dtype=np.int64)
        for part in _blocks(made.size):
            column = np.stack([row[part] for row in rows]).astype(np.int64)
            made[part] = rule(np.sort(column, axis=0))
        found[term.name] = made.reshape(term.shape)
    return found


def _blocks(size: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK) for first in range(0, size, BLOCK))
