"""From replies to the next weights, by the study's strategy: ``init``, ``fold`` as replies arrive, ``apply``.

All three are pure: what comes out follows from study, weights, memory and replies alone, in whatever order
the replies came, to the last bit. So a run that was cut short goes on with the same bytes, and whoever
holds the audit folder finds them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_common.aggregation_terms import KEEPS_UPDATES, AggregationTerms
from oncofed_common.study import Study
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import TensorTerm
from oncofed_common.update_bound import is_longer, norm_limit_units
from oncofed_server import aggregate
from oncofed_server.aggregate import Sum, empty_sum
from oncofed_server.strategies.bounded import Update, is_within, shortened
from oncofed_server.strategies.optimizers import moments, moved
from oncofed_server.strategies.robust import RULES

Memory = Mapping[str, NDArray[Any]]
"""What a strategy remembers from round to round: float32 tensors by name."""
BOUND = "bound"
BOUNDED = frozenset({"norm_bounded_mean", "adaptive_clipping"})


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a round has so far.

    Attributes:
        total: the exact weighted sum, metrics with it.
        kept: each site's update, where the strategy looks at them side by side.
        within: how many sites' updates were no longer than the bound, where there is one.
        sites: how many there are in it.
    """

    total: Sum
    kept: Mapping[str, Update] = field(default_factory=dict)
    within: int = 0
    sites: int = 0


def init(study: Study) -> dict[str, NDArray[Any]]:
    """What the strategy remembers before the first round."""
    terms = study.aggregation
    memory = moments(terms, study.schema_terms)
    if terms.strategy == "adaptive_clipping":
        memory[BOUND] = np.array(terms.update_bound, dtype=np.float32)
    return memory


def memory_schema(study: Study) -> tuple[TensorTerm, ...]:
    """Names and shapes of what the strategy remembers."""
    return tuple(TensorTerm(name=name, shape=one.shape) for name, one in init(study).items())


def nothing(study: Study) -> Gathered:
    """A round without any reply."""
    return Gathered(total=empty_sum(study.reply_terms))


def fold(
    gathered: Gathered, update: Update, *, site: str, memory: Memory, study: Study
) -> Gathered:
    """``gathered`` with one site's int32 update in it; use the result only.

    Raises:
        WireRefusal: other names, shapes or dtypes than the study's, or too large a sum of weights; code
            ``too_large``, longer than any update that the study can give. ``gathered`` is what it was.
    """
    terms, invited = study.aggregation, study.site(site)
    limit = norm_limit_units(study, declared_patients=invited.declared_patients)
    bound = _bound(terms, memory)
    within = gathered.within
    if bound is not None:
        aggregate.check(update, schema=study.reply_terms)
        trained = {term.name: update[term.name] for term in study.schema_terms}
        if is_longer(trained, limit_units=limit):
            raise aggregate.too_long()
        within += is_within(trained, bound=bound)
        update = {**update, **shortened(trained, bound=bound)}
    total = aggregate.fold(
        gathered.total,
        update,
        weight=invited.weight,
        schema=study.reply_terms,
        limit_units=limit,
    )
    kept = gathered.kept
    if terms.strategy in KEEPS_UPDATES:
        kept = {**kept, site: {name: one for name, one in update.items() if name != METRICS}}
    return Gathered(total=total, kept=kept, within=within, sites=gathered.sites + 1)


def apply(
    weights: Mapping[str, NDArray[Any]], gathered: Gathered, *, memory: Memory, study: Study
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The next float32 weights, and what is remembered then.

    Raises:
        WireRefusal: nothing was counted, or a weight leaves the range of float32.
    """
    terms, schema = study.aggregation, study.schema_terms
    total = gathered.total
    aggregate.refuse_empty(total)
    if terms.strategy in KEEPS_UPDATES:
        rule = RULES[terms.strategy]
        total = rule(gathered.kept, schema, attackers=terms.attackers or 0)
    after, kept = moved(weights, total, before=memory, terms=terms, schema=schema)
    if terms.strategy == "adaptive_clipping":
        kept[BOUND] = _next_bound(terms, memory, share=gathered.within / gathered.sites)
    return after, kept


def _bound(terms: AggregationTerms, memory: Memory) -> float | None:
    if terms.strategy not in BOUNDED:
        return None
    return float(memory[BOUND]) if BOUND in memory else terms.update_bound


def _next_bound(terms: AggregationTerms, memory: Memory, *, share: float) -> NDArray[Any]:
    """A step towards the quantile (Andrew et al. 2021), ``1 - x`` for their ``exp(-x)``: no machine's own."""
    step, quantile = terms.bound_step or 0.0, terms.bound_quantile or 0.0
    return np.array(float(memory[BOUND]) * (1.0 - step * (share - quantile)), dtype=np.float32)
