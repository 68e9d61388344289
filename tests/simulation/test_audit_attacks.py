"""Attacks that must succeed where something was given away, and say nothing where it was not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.diffusion.generate import Sampling
from oncofed_common.errors import UsageRefusal
from oncofed_common.metrics.judge import last_visit
from oncofed_common.model.adapters import select
from oncofed_common.model.network import build
from oncofed_common.model.prepare import stack, states
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import load_base, network_of
from oncofed_common.terminal import run_app
from oncofed_simulation.__main__ import app
from oncofed_simulation.arms import shipped
from oncofed_simulation.auditing import audit, memorisation
from oncofed_simulation.auditing.inversion import gradient_of, inverted
from oncofed_simulation.auditing.membership import LOOKS, attacked, told
from oncofed_simulation.auditing.told import tables

TERMS = shipped()
HOW = Sampling(samples=2, evaluations=2, dtype=torch.float32)


@pytest.fixture(scope="module")
def patients():
    radii = [(15.0, 18.0), (15.0, 15.0), (12.0, 19.0), (17.0, 14.0)]
    return [
        last_visit(growing_tumour(radii_mm=of, days=(0, 60), seed=seed), SMALL)
        for seed, of in enumerate(radii)
    ]


def test_the_area_is_the_share_of_pairs_in_order():
    found = told(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.5]))
    assert found.area == pytest.approx(4 / 6)
    assert 0 <= found.low <= found.area <= found.high <= 1
    assert told(np.arange(5.0), np.arange(5.0)).area == 0.5


def test_a_step_along_a_members_gradient_is_recognised(patients):
    """The plainest leak: the weights moved by the member's own gradient, unclipped and without noise. Nobody
    else's points farther that way, by Cauchy and Schwarz."""
    base, moved = (network_of(load_base(SMALL, sha256=None)) for _ in range(2))
    member, *others = (stack([one]) for one in patients)
    looks = [gradient_of(base, member, TERMS, seed=look) for look in range(LOOKS)]
    gradient = torch.stack(looks).mean(dim=0)
    at = 0
    with torch.no_grad():
        for weights in select(moved, TERMS.adapters).values():
            part = gradient[at : at + weights.numel()].reshape(weights.shape)
            weights.sub_(0.02 * part / gradient.norm())
            at += weights.numel()
    found = attacked(base, moved, TERMS, members=[member], others=others)
    assert found["own gradient"].area == 1.0
    still = attacked(base, base, TERMS, members=[member], others=others)
    assert {one.area for one in still.values()} == {0.5}


@pytest.mark.slow
def test_a_plain_gradient_gives_back_more_of_a_follow_up_than_a_noised_one(patients):
    network = network_of(load_base(SMALL, sha256=None))
    found = inverted(network, [stack([patients[0]])], TERMS, seed=1)
    assert np.mean(found.plain) > 0.05
    assert abs(np.mean(found.private)) < np.mean(found.plain)


def test_a_model_that_draws_what_it_was_trained_on_is_noticed(patients, monkeypatch):
    """Members get their own follow-up back, others somebody else's."""
    network = build(SMALL, seed=0)
    truths = [states(of.query, of.target[None], SMALL) for of in patients]
    moves = [truth - of.query.reference for truth, of in zip(truths, patients, strict=True)]
    source = {0: 0, 1: 1, 2: 0, 3: 1}

    def from_memory(_network, asked, _how, *, seed):
        return asked.reference + moves[source[seed]]

    monkeypatch.setattr(memorisation, "futures", from_memory)
    found = memorisation.remembered(network, HOW, members=patients[:2], others=patients[2:], seed=0)
    assert found.members == 0.0
    assert found.others > 0.2


def test_an_audit_too_small_to_say_anything_is_refused():
    with pytest.raises(UsageRefusal):
        audit.Asked(patients=4, canaries=100, adapters="norm", seed=0)


def test_a_refuted_claim_ends_with_an_error_and_says_so(monkeypatch, capsys):
    """With the figures of an audit, whole as they are printed."""
    run = {
        "membership": {"own loss": {"area": 0.5, "low": 0.4, "high": 0.6}},
        "memorisation": {"members": 0.4, "others": 0.5},
        "inversion": 0.1,
    }
    found = {
        "holds": False,
        "canaries": {
            "canaries": 10,
            "guesses": 2,
            "right": 2,
            "claimed_epsilon": 1.0,
            "delta": 1e-5,
            "least_epsilon": 3.0,
            "adapters": "norm",
        },
        "runs": {"private": run, "without privacy": run},
        "private_epsilon": 8.0,
        "adapters": "prior",
        "patients": 8,
        "seed": 1,
        "note": "",
    }
    monkeypatch.setattr(audit, "audit", lambda asked, *, watch: found)
    assert run_app(app, ["audit"]) == 1
    printed = capsys.readouterr().out
    assert "REFUTED" in printed
    assert run_app(app, ["audit", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == found
    assert len(list(tables(replace_holds(found)))) == 2


def replace_holds(found):
    return {**found, "holds": True}


@pytest.mark.slow
def test_a_small_audit_runs_to_its_end(capsys):
    assert run_app(app, ["audit", "--patients", "8", "--canaries", "400", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"]
    assert found["canaries"]["canaries"] == 400
    assert set(found["runs"]) == {"private", "without privacy"}
