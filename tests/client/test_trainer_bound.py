"""However long an update is, what leaves is no longer than the study says, and nobody is refused for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from study_builder import a_study

from oncofed_client.trainer.bound import saturate
from oncofed_common.study import Study
from oncofed_common.tensors import UNITS_MOST, UPDATE_SCALE, to_units
from oncofed_common.update_bound import norm_limit_units

DECLARED = 20
INT32 = st.integers(-(2**31), 2**31 - 1)


def squared(units: dict[str, np.ndarray]) -> int:
    return sum(int(value) ** 2 for tensor in units.values() for value in tensor.ravel())


def limit_of(study: Study) -> int:
    return norm_limit_units(study, declared_patients=DECLARED)


def one_tensor(weights: int) -> list[dict[str, object]]:
    return [{"name": "w", "shape": [weights], "dtype": "float32"}]


@given(
    values=arrays(np.int32, st.integers(1, 30), elements=INT32),
    limit=st.integers(0, 2**34),
)
def test_no_update_leaves_longer_than_its_limit(values: np.ndarray, limit: int) -> None:
    """Exactly, in whole numbers; a value keeps its sign, and never grows."""
    found = saturate({"a": values[:1], "b": values[1:]}, limit_units=limit)
    joined = np.concatenate([found["a"], found["b"]])
    assert squared(found) <= limit**2
    assert all(tensor.dtype == np.int32 for tensor in found.values())
    for before, after in zip(values.tolist(), joined.tolist(), strict=True):
        assert before * after >= 0
        assert abs(after) <= min(abs(before), UNITS_MOST)


@given(values=arrays(np.int32, st.integers(1, 30), elements=st.integers(-(2**20), 2**20)))
def test_an_update_within_its_limit_leaves_as_it_is(values: np.ndarray) -> None:
    """Up to the limit itself."""
    limit = math.isqrt(squared({"a": values})) + 1
    assert np.array_equal(saturate({"a": values}, limit_units=limit)["a"], values)


@given(
    values=arrays(np.int32, 12, elements=INT32),
    share=st.floats(0.01, 0.99),
)
def test_a_longer_update_keeps_its_direction(values: np.ndarray, share: float) -> None:
    """Each weight lands within three units of its share of the limit, one for each rounding."""
    inside = np.maximum(values.astype(np.int64), -UNITS_MOST)
    norm = math.sqrt(squared({"a": inside}))
    limit = int(share * norm)
    if norm > limit + 1:
        found = saturate({"a": values}, limit_units=limit)["a"]
        assert np.abs(found - inside * (limit / norm)).max() <= 3


def test_the_value_without_a_counterpart_never_leaves() -> None:
    """-2^31 is no value that rounding gives: it could only say something else."""
    found = saturate({"a": np.full(3, -(2**31), dtype=np.int32)}, limit_units=2**60)
    assert found["a"].tolist() == [-UNITS_MOST] * 3


@given(
    steps=st.integers(1, 6),
    weights=st.integers(1, 40),
    privacy=st.fixed_dictionaries(
        {"noise_multiplier": st.floats(0.1, 20), "clip_norm": st.floats(0.01, 5)}
    ),
    rate=st.floats(0.05, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_honest_update_by_sgd_is_never_shrunk(
    *, steps: int, weights: int, privacy: dict[str, float], rate: float, seed: int
) -> None:
    """Though every declared patient is drawn in each step, and all of them pull the same way."""
    study = a_study(
        training={"steps_per_round": steps, "sampling_rate": rate, "learning_rate": 0.01},
        privacy=privacy,
        tensors=one_tensor(weights),
    )
    clip, noise = privacy["clip_norm"], privacy["noise_multiplier"] * privacy["clip_norm"]
    pull = np.full(weights, clip / math.sqrt(weights)) * DECLARED
    noises = np.random.default_rng(seed).normal(0, noise, (steps, weights))
    update = -0.01 * (steps * pull + noises.sum(0)) / (rate * DECLARED)
    assert squared(to_units({"w": update.astype(np.float32)})) <= limit_of(study) ** 2


@given(
    gradients=arrays(np.float64, (5, 3), elements=st.floats(-100, 100)),
)
def test_an_honest_update_by_adam_is_never_shrunk(gradients: np.ndarray) -> None:
    """Whatever the gradients were (Kingma & Ba 2015, algorithm 1, as they wrote it)."""
    study = a_study(
        training={"steps_per_round": 5, "optimizer": "adam", "learning_rate": 0.01},
        tensors=one_tensor(3),
    )
    weight, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
    for step, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        weight -= 0.01 * first / (1 - 0.9**step) / scale
    assert squared(to_units({"w": weight})) <= limit_of(study) ** 2


def test_adam_comes_close_to_its_limit() -> None:
    """The bound is met by gradients that go on alike: it holds nothing back, and lets nothing more pass."""
    study = a_study(
        training={"steps_per_round": 1, "optimizer": "adam", "learning_rate": 0.01},
        tensors=one_tensor(3),
    )
    assert limit_of(study) == pytest.approx(0.01 * math.sqrt(3) / UPDATE_SCALE, rel=1e-4)


def test_the_limit_is_what_the_study_says_and_nothing_else() -> None:
    """By hand: η (T C / q + √T σ C (√d + 10) / (q n)), and a unit of rounding a step and weight."""
    study = a_study(
        training={"steps_per_round": 4, "sampling_rate": 0.5, "learning_rate": 0.1},
        privacy={"noise_multiplier": 3.0, "clip_norm": 2.0},
        tensors=one_tensor(9),
    )
    by_hand = 0.1 * (4 * 2 / 0.5 + 2 * 3 * 2 * (3 + 10) / (0.5 * 20))
    assert limit_of(study) == math.ceil(by_hand / UPDATE_SCALE + 5 * 3)


def test_a_study_that_learns_nothing_lets_nothing_out_but_rounding() -> None:
    """At a learning rate of zero an update has no room for anything."""
    study = a_study(training={"learning_rate": 0.0, "steps_per_round": 1})
    assert limit_of(study) == math.ceil(2 * math.sqrt(8))
