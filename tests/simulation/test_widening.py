"""How much surer a network is than it may be: found by patients that took no part, and mended by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.diffusion.generate import Sampling
from oncofed_common.metrics.scores import gaussian_scale
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_simulation.widening import common_error, errors, widen

NUMBERS = st.floats(-5, 5)


@given(
    parts=st.lists(NUMBERS, min_size=2, max_size=9, unique=True),
    came=NUMBERS,
    seed=st.integers(0, 99),
)
def test_the_common_error_is_that_of_the_multiples_of_the_spread_whatever_else_differs(
    parts, came, seed
):
    """By the mean and standard deviation of the numbers; what is orthogonal to the spread says nothing."""
    spread, mean, *details = torch.from_numpy(
        np.random.default_rng(seed).uniform(0.1, 1.0, (len(parts) + 3, 4, 4, 4))
    )
    details = [one - spread * (one * spread).sum() / spread.square().sum() for one in details]
    drawn = torch.stack(
        [mean + part * spread + detail for part, detail in zip(parts, details, strict=False)]
    )
    apart = np.std(parts, ddof=1)
    if apart > 1e-3:
        found = common_error(drawn, mean + came * spread + details[-1], spread)
        assert found == pytest.approx((came - np.mean(parts)) / apart, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_patient_has_the_same_error_whoever_is_asked_beside_it():
    network = build(SMALL, seed=0)
    how = Sampling(samples=4, evaluations=2, dtype=torch.float32)
    found = dict(errors(network, seed=3, patients=2, how=how, processes=1))
    assert all(np.isfinite(error) for error in found.values())
    assert dict(errors(network, seed=3, patients=1, how=how, processes=1)) == {0: found[0]}


def test_the_width_does_not_hang_on_the_order_in_which_patients_come():
    network, again = (build(SMALL, seed=0) for _ in range(2))
    found = {2: 1.5, 0: -0.5, 1: None, 3: 2.5}
    scale = gaussian_scale(np.array([-0.5, 1.5, 2.5]))
    assert widen(network, found) == {"factor": pytest.approx(scale, abs=1e-4), "patients": 3}
    assert float(network.widening) == pytest.approx(scale)
    widen(again, dict(sorted(found.items())))
    assert torch.equal(network.widening, again.widening)
