"""Sites that lie, and how far what comes of a round then lies from what the honest ones alone would give.

Honest updates are one direction with as much noise of each site's own as the privacy of sixty patients
leaves: of the same length as the direction. Two of nine sites lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from oncofed_common.aggregation_terms import KEEPS_UPDATES, NEEDS, AggregationTerms
from oncofed_common.study import Study
from oncofed_common.study_terms import (
    OutboundTerms,
    PrivacyTerms,
    SiteTerms,
    TensorTerms,
    TrainingTerms,
)
from oncofed_server.strategies.strategy import apply, fold, init, nothing

SITES, LIARS, VALUES = 9, 2, 400
NAMES = [f"s{number}" for number in range(SITES)]
PARAMETERS = {
    "attackers": LIARS,
    "update_bound": 0.02,
    "bound_quantile": 0.5,
    "bound_step": 0.2,
    "server_momentum": 0.9,
    "server_second_momentum": 0.99,
    "server_floor": 1e-3,
}

Lie = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From what an honest site would have sent and chance, to what is sent."""

LIES: Mapping[str, Lie] = {
    "sign flip": lambda honest, _: -honest,
    "scaled": lambda honest, _: 100.0 * honest,
    "noise": lambda honest, rng: rng.normal(size=honest.shape) * 20.0 * np.abs(honest).mean(),
    "colluding": lambda honest, _: np.full_like(honest, 3.0 * np.abs(honest).mean()),
    "free rider": lambda honest, _: np.zeros_like(honest),
}


def a_study_with(strategy: str, optimizer: str | None = None, *, sites: int = SITES) -> Study:
    """One tensor of ``VALUES`` values, sites of equal weight; updates of up to 12, which no lie comes to."""
    needed = {*NEEDS.get(strategy, ()), *NEEDS.get(optimizer or "", ())}
    more = {name: PARAMETERS[name] for name in needed}
    if optimizer is not None:
        more["server_optimizer"] = optimizer
    return Study.model_construct(
        training=TrainingTerms(
            rounds=1,
            steps_per_round=10,
            sampling_rate=0.1,
            pairs_per_patient=1,
            draws_per_patient=2,
            optimizer="sgd",
            learning_rate=0.1,
            dtype="float32",
            threads=1,
        ),
        privacy=PrivacyTerms(clip_norm=1.0, noise_multiplier=1.0, epsilon=8.0, delta=1e-5),
        aggregation=AggregationTerms(
            strategy=strategy,
            server_learning_rate=1.0,
            fewest_sites=sites,
            round_deadline_s=60,
            **more,
        ),
        outbound=OutboundTerms(bytes_per_round=200_000, reply_after_s=1, metrics=()),
        sites=tuple(
            SiteTerms(name=name, fingerprint=f"{at:064x}", declared_patients=20, weight=20)
            for at, name in enumerate(NAMES[:sites])
        ),
        tensors=(TensorTerms(name="w", shape=(VALUES,), dtype="float32"),),
    )


def honest_updates(rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """The direction, of length 0.01, and every site's update."""
    direction = rng.normal(size=VALUES)
    direction *= 0.01 / np.linalg.norm(direction)
    own = rng.normal(size=(SITES, VALUES)) * 0.01 / np.sqrt(VALUES)
    return direction, list(direction + own)


def in_units(update: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": np.rint(update * 2**24).astype(np.int32)}


def moved(study: Study, updates: Mapping[str, dict[str, np.ndarray]]) -> np.ndarray:
    """By how much the weights move in a first round with these updates."""
    memory, gathered = init(study), nothing(study)
    for site, update in updates.items():
        gathered = fold(gathered, update, site=site, memory=memory, study=study)
    after, _ = apply({"w": np.zeros(VALUES, np.float32)}, gathered, memory=memory, study=study)
    return after["w"].astype(np.float64)


def error(strategy: str, lie: str | None, *, seed: int) -> float:
    """How far the round's step is from the direction, in lengths of the direction."""
    rng = np.random.default_rng(seed)
    direction, updates = honest_updates(rng)
    if lie is not None:
        updates[:LIARS] = [LIES[lie](update, rng) for update in updates[:LIARS]]
    study = a_study_with(strategy)
    step = moved(study, {name: in_units(one) for name, one in zip(NAMES, updates, strict=True)})
    return float(np.linalg.norm(step - direction) / np.linalg.norm(direction))


STRATEGIES = ("weighted_mean", "norm_bounded_mean", "adaptive_clipping", *sorted(KEEPS_UPDATES))


def table(*, rounds: int) -> dict[str, dict[str, float]]:
    """The mean error over so many rounds, by strategy and lie; ``honest`` is without one."""
    return {
        strategy: {
            lie or "honest": float(np.mean([error(strategy, lie, seed=n) for n in range(rounds)]))
            for lie in (None, *LIES)
        }
        for strategy in STRATEGIES
    }
