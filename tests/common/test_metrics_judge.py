"""Judging a model against the guess that nothing changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.diffusion.generate import Sampling, as_answered, futures, read
from oncofed_common.errors import ModelRefusal
from oncofed_common.metrics.judge import evaluate, judge_no_change, last_visit
from oncofed_common.model.barren import barren
from oncofed_common.model.dropout import EVERYTHING, without
from oncofed_common.model.network import build
from oncofed_common.model.prepare import gains
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.weights import dump, load_base, network_of, parse

HOW = Sampling(samples=2, evaluations=2, dtype=torch.float32)


@pytest.fixture(scope="module")
def patients():
    return [
        growing_tumour(),
        growing_tumour(radii_mm=(15.0, 15.0, 15.0), seed=1),
    ]


def test_a_certain_network_without_physics_scores_as_no_change(patients):
    network = build(SMALL, seed=0)
    with torch.no_grad():
        network.prior.log_alone.fill_(-7.0)
    weights = parse(dump(network), SMALL, sha256=None)
    lawless = [replace(patient, tissue=None) for patient in patients]
    scores = evaluate(lawless, {"model": weights}, how=HOW, seed=5)
    for what in ("crps_log_volume", "dice"):
        assert scores[what]["model"] == pytest.approx(scores[what]["no_change"], abs=1e-3)
    assert set(scores["coverage_90"]) == {"model"}


def test_physics_alone_is_better_than_no_change_on_a_tumour_that_grows(patients):
    weights = parse(dump(build(SMALL, seed=0)), SMALL, sha256=None)
    how = Sampling(samples=12, evaluations=8, dtype=torch.float32)
    scores = evaluate(patients[:1], {"model": weights}, how=how, seed=5)
    assert scores["crps_log_volume"]["model"] < 0.8 * scores["crps_log_volume"]["no_change"]
    assert scores["dice"]["model"] > scores["dice"]["no_change"]


def test_no_change_is_right_about_a_tumour_that_does_not_change(patients):
    still = judge_no_change(last_visit(patients[1], SMALL), SMALL)
    assert still.crps_log_volume == 0.0
    assert still.dice == 1.0
    grown = judge_no_change(last_visit(patients[0], SMALL), SMALL)
    assert grown.crps_log_volume == pytest.approx(3 * np.log(18 / 15), rel=0.1)
    assert 0.5 < grown.dice < 0.9


def test_half_precision_draws_nearly_the_same_futures(patients):
    """From the same noise with the shipped weights: the median volume within 2 %, no image far off."""
    network = network_of(load_base(SMALL, sha256=None))
    asked = last_visit(patients[0], SMALL).query
    how = replace(HOW, samples=4, evaluations=4)
    whole, half = (
        futures(network, asked, replace(how, dtype=dtype), seed=1)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert not torch.equal(whole, half)
    assert float((whole - half).abs().mean()) < 0.01
    volumes = [(state[:, 0] < 0).sum(dim=(1, 2, 3)).float().median() for state in (whole, half)]
    assert float((volumes[0] / volumes[1] - 1).abs()) < 0.02


def test_a_seed_repeats_the_futures(patients):
    network = build(SMALL, seed=0)
    with torch.no_grad():
        for weight in network.unet.out.parameters():
            weight.add_(0.1)
    asked = last_visit(patients[0], SMALL).query
    first, again, other = (futures(network, asked, HOW, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_sample_has_tumour_where_none_can_grow_whatever_the_network_says(patients):
    network = build(SMALL, seed=0)
    asked = last_visit(patients[0], SMALL).query
    nowhere = torch.from_numpy(barren(asked, SMALL))
    assert nowhere.any()
    with torch.no_grad():
        network.prior.log_alone.fill_(2.0)
        network.prior.log_spread.fill_(2.0)
    drawn = futures(network, asked, replace(HOW, samples=4, evaluations=4), seed=3)
    assert (drawn[:, :3, ~nowhere] < 0).any(dim=2).all(), "it would put tumour anywhere"
    assert not (drawn[:, :3, nowhere] < 0).any()


@pytest.mark.parametrize("by", [0.5, 1.0, 1.6])
def test_widening_moves_what_the_window_has_in_common_and_nothing_else(patients, by):
    """Of a fresh network, whose futures are those of its prior: exactly so much farther."""
    network = build(SMALL, seed=0)
    asked = last_visit(patients[0], SMALL).query
    how = replace(HOW, samples=3, evaluations=4)
    _, path = read(network, asked, how)

    def whitened():
        drawn = as_answered(network, asked, how, seed=1)
        found = path.whiten((drawn - asked.reference) * gains(SMALL))
        common = found.mean(dim=(2, 3, 4), keepdim=True)
        return common, found - common

    common, rest = whitened()
    network.widening.fill_(by)
    after, rest_after = whitened()
    regions = len(REGIONS)
    torch.testing.assert_close(after[:, :regions], by * common[:, :regions], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after[:, regions:], common[:, regions:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rest_after, rest, atol=1e-3, rtol=1e-3)


def test_guidance_of_zero_forgets_every_condition_and_of_one_changes_nothing(patients):
    network = build(SMALL, seed=0)
    with torch.no_grad():
        for weight in network.unet.out.parameters():
            weight.add_(0.1)
    asked = last_visit(patients[0], SMALL).query
    shown = (asked.conditions[None], asked.tokens[None])
    conditions, tokens = without(*shown, [EVERYTHING], preset=SMALL)
    bare = replace(asked, conditions=conditions[0], tokens=tokens[0])
    plain, none, one, harder, blind = (
        futures(network, of, replace(HOW, evaluations=12, guidance=guidance), seed=1)
        for of, guidance in ((asked, 1.0), (asked, 0.0), (asked, 1.0), (asked, 2.0), (bare, 1.0))
    )
    astray = (none - blind).abs().mean() / (one - blind).abs().mean()
    assert astray < 0.2, "but for the steps' error: they are taken in units of another prior"
    assert torch.equal(plain, one)
    assert not torch.allclose(none, one, atol=1e-5)
    assert not torch.allclose(harder, one, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 1},
        {"evaluations": 1},
        {"evaluations": 21},
        {"sampler": "guess"},
        {"process": "guess"},
        {"guidance": 4.5},
        {"sampler": "distilled", "evaluations": 8},
        {"sampler": "distilled", "evaluations": 4, "process": "ddpm"},
    ],
)
def test_sampling_outside_its_bounds_is_refused(wrong):
    with pytest.raises(ModelRefusal) as refusal:
        replace(HOW, **wrong)
    assert refusal.value.code == "bad_sampling"
