"""How replies become the next weights: the study's ``[aggregation]``.

A strategy makes one update out of the sites' updates, and the server's optimiser moves the weights by it.
A parameter stands where one of the two needs it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from oncofed_common.study_terms import Terms

Strategy = Literal[
    "weighted_mean",
    "norm_bounded_mean",
    "adaptive_clipping",
    "coordinate_median",
    "trimmed_mean",
    "krum",
    "multi_krum",
]
ServerOptimizer = Literal["momentum", "adam", "yogi"]

NEEDS: Mapping[str, tuple[str, ...]] = {
    "norm_bounded_mean": ("update_bound",),
    "adaptive_clipping": ("update_bound", "bound_quantile", "bound_step"),
    "trimmed_mean": ("attackers",),
    "krum": ("attackers",),
    "multi_krum": ("attackers",),
    "momentum": ("server_momentum",),
    "adam": ("server_momentum", "server_second_momentum", "server_floor"),
    "yogi": ("server_momentum", "server_second_momentum", "server_floor"),
}
"""The parameters of each strategy and each optimiser that has any."""

KEEPS_UPDATES = frozenset({"coordinate_median", "trimmed_mean", "krum", "multi_krum"})
"""Strategies that look at every site's update beside the others': their sums cannot be secret ones."""

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Inner = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class AggregationTerms(Terms):
    """How replies become the next weights.

    Attributes:
        server_learning_rate: of the server's optimiser; without one, the share of the update that is made.
        straggler_grace_s: a round goes on without those who have not answered so long after the fewest sites
            were counted. Without it, it waits for everybody until its deadline.
        attackers: so many sites may send anything at all, and the others still decide. A trimmed mean leaves
            out so many values at either end, Krum takes an update that is near all others but so many.
        update_bound: the most that one site's update may be long (L2 norm over all trained weights).
        bound_quantile: the share of sites whose updates are to be within the bound that adapts.
        bound_step: by what share the bound moves, where all sites or none are within it.
        server_momentum: share of the mean update that is kept from round to round.
        server_second_momentum: the same of its squares.
        server_floor: what the root of the squares is at least taken for.
    """

    strategy: Strategy
    server_learning_rate: Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)]
    fewest_sites: Annotated[int, Field(ge=1)]
    round_deadline_s: Annotated[int, Field(ge=10, le=7 * 86_400)]
    straggler_grace_s: Annotated[int, Field(ge=0, le=7 * 86_400)] | None = None
    attackers: Annotated[int, Field(ge=1, le=1000)] | None = None
    update_bound: Annotated[float, Field(ge=2**-20, le=2**20, allow_inf_nan=False)] | None = None
    bound_quantile: Inner | None = None
    bound_step: Inner | None = None
    server_optimizer: ServerOptimizer | None = None
    server_momentum: Share | None = None
    server_second_momentum: Share | None = None
    server_floor: Annotated[float, Field(ge=1e-9, le=1, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _each_where_it_is_needed(self) -> AggregationTerms:
        needed = {
            name
            for rule in (self.strategy, self.server_optimizer)
            for name in NEEDS.get(rule or "", ())
        }
        for name in sorted({one for names in NEEDS.values() for one in names}):
            if (getattr(self, name) is not None) != (name in needed):
                rule = "needs" if name in needed else "has no"
                raise ValueError(f"{self._rules()} {rule} {name}")
        if self.fewest_sites < self.least_sites:
            raise ValueError(
                f"{self.strategy} against {self.attackers} needs fewest_sites of {self.least_sites}"
            )
        return self

    @model_validator(mode="after")
    def _grace_ends_before_the_deadline(self) -> AggregationTerms:
        if (self.straggler_grace_s or 0) >= self.round_deadline_s:
            raise ValueError("straggler_grace_s is not shorter than round_deadline_s")
        return self

    @property
    def least_sites(self) -> int:
        """With fewer counted sites the strategy cannot keep what it promises."""
        attackers = self.attackers or 0
        if self.strategy in ("krum", "multi_krum"):
            return 2 * attackers + 3
        return 2 * attackers + 1

    def _rules(self) -> str:
        return " with ".join(filter(None, (self.strategy, self.server_optimizer)))
