"""FedProx at the trainer: a round is pulled back to where it began."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from crash_site import a_network
from study_builder import a_study

from oncofed_client.trainer.training import Setup, train_round
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.privacy.stream import Stream

STEPS, RATE = 4, 0.1


def moved(*, steps: int, proximal: float | None) -> np.ndarray:
    """By how much a round of an empty cohort moves the weights: noise alone, the same in every call."""
    training = {"steps_per_round": steps, "learning_rate": RATE}
    study = a_study(training=training | ({} if proximal is None else {"proximal": proximal}))
    setup = Setup(
        study=study,
        declared_patients=20,
        network=a_network(),
        trained={t.name: torch.nn.Parameter(torch.zeros(t.shape)) for t in study.schema_terms},
        process=PROCESSES[DEFAULT],
        device=torch.device("cpu"),
    )
    weights = {t.name: np.full(t.shape, 3.0, np.float32) for t in study.schema_terms}
    stream = Stream.from_seed(b"s" * 32)
    done = train_round((), setup=setup, weights=weights, stream=stream, on_step=lambda *_: None)
    return np.concatenate([done.update[name].ravel() for name in sorted(done.update)])


@pytest.mark.parametrize("proximal", [None, 0.5, 4.0])
def test_each_step_also_goes_back_by_a_share_of_the_way_so_far(proximal: float | None) -> None:
    """With gradients g and plain SGD: x' = x - rate (g + proximal x), x the way from the beginning."""
    ways = [np.zeros(8), *(moved(steps=n, proximal=None) for n in range(1, STEPS + 1))]
    x = np.zeros(8)
    for before, after in pairwise(ways):
        x = x - RATE * (proximal or 0.0) * x + (after - before)
    np.testing.assert_allclose(moved(steps=STEPS, proximal=proximal), x, atol=2e-6)
    assert (np.abs(x) > 1e-3).any()
