"""The network, and which of its weights train under privacy."""

from dataclasses import replace

import pytest
import torch
from opacus.validators import ModuleValidator

from oncofed_common.diffusion.losses import denoising_loss
from oncofed_common.diffusion.processes.rectified_flow import RectifiedFlow
from oncofed_common.errors import ModelRefusal
from oncofed_common.model.adapters import ADAPTERS, schema, select
from oncofed_common.model.network import _from_patches, _to_patches, best_dtype, build
from oncofed_common.model.prepare import EXPECTED_MAPS, FIELDS, Batch, condition_channels
from oncofed_common.model.presets import PRESETS, SMALL, preset
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import FEATURES, TOKENS

N = SMALL.size


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Random, but distances lie within their limits, and physics' maps and flags are not negative."""
    generator = torch.Generator().manual_seed(4)
    conditions = torch.randn(2, condition_channels(SMALL), N, N, N, generator=generator)
    conditions[:, : len(REGIONS)] = conditions[:, : len(REGIONS)].clamp(-1.0, 1.0)
    conditions[:, -EXPECTED_MAPS:] = conditions[:, -EXPECTED_MAPS:].abs()
    return Batch(
        conditions=conditions,
        tokens=torch.randn(2, TOKENS, FEATURES, generator=generator),
        target=torch.randn(2, FIELDS, N, N, N, generator=generator),
        known=torch.ones(2, FIELDS),
    )


@pytest.fixture(scope="module")
def lively():
    return _lively(SMALL)


def _lively(shape):
    """A network without the zero layers of a fresh one, so that every weight matters."""
    network = build(shape, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return network


def test_the_small_network_has_two_million_weights_at_most():
    assert sum(weight.numel() for weight in build(SMALL, seed=0).parameters()) <= 2_000_000


def test_every_module_can_be_trained_under_privacy():
    network = build(SMALL, seed=0)
    assert ModuleValidator.validate(network, strict=False) == []
    network.unet.conv_in = torch.nn.Sequential(network.unet.conv_in, torch.nn.BatchNorm3d(32))
    assert ModuleValidator.validate(network, strict=False) != []


def test_a_seed_fixes_the_weights_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    one, two, other = (build(SMALL, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_fresh_network_answers_as_its_gaussian_prior_does(batch):
    """x ~ N(m, v^2) and y = cos(a) x + sin(a) e: E[x | y] = m + c v^2 (y - c m) / (c^2 v^2 + s^2)."""
    network = build(SMALL, seed=0)
    angle = torch.tensor([0.2, 1.2])
    for known in (0.0, 1.0):
        conditions = batch.conditions.clone()
        conditions[:, -EXPECTED_MAPS:] *= known
        conditions[:, -1] = known
        mean, deviation = network.prior(conditions, batch.tokens)
        keep, add = (part[:, None, None, None, None] for part in (angle.cos(), angle.sin()))
        gain = keep * deviation**2 / (keep**2 * deviation**2 + add**2)
        found = network(batch.target, angle, network.context(conditions, batch.tokens))
        torch.testing.assert_close(found, mean + gain * (batch.target - keep * mean))
        assert mean.any() == bool(known)


def test_at_its_clean_end_a_network_repeats_what_it_sees_and_at_pure_noise_it_ignores_it(batch):
    network = build(SMALL, seed=0)
    shown = batch.conditions.abs()
    context = network.context(shown, batch.tokens)
    clean = network(batch.target, torch.zeros(2), context)
    torch.testing.assert_close(clean, batch.target)
    noise = network(batch.target, torch.full((2,), torch.pi / 2), context)
    torch.testing.assert_close(noise, context.expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [(2, 2, 2), (2, 2, 1), (4, 2, 1)])
def test_patches_come_back_as_they_were_cut(patch):
    fields = torch.arange(2 * 3 * 4**3, dtype=torch.float32).reshape(2, 3, 4, 4, 4)
    patches = _to_patches(fields, patch)
    a, b, c = patch
    cells = a * b * c
    assert patches.shape == (2, 3 * cells, 4 // a, 4 // b, 4 // c)
    first = fields[0, 0, :a, :b, :c].flatten().tolist()
    assert patches[0, :cells, 0, 0, 0].tolist() == first
    assert torch.equal(_from_patches(patches, patch), fields)


def test_a_flat_network_takes_each_slice_by_itself(batch):
    """What lies in another slice changes nothing, whereas a deep one looks across."""
    angle = torch.tensor([0.4, 0.9])
    noised = batch.target.clone()
    noised[..., 20] += 3.0
    for name, across in (("small_2d", False), ("small", True)):
        network = _lively(preset(name))
        context = network.context(batch.conditions, batch.tokens)
        with torch.no_grad():
            before, after = (network(field, angle, context) for field in (batch.target, noised))
        moved = (after - before).abs().amax(dim=(0, 1, 2, 3))
        assert moved[20] > 0.1
        assert bool(moved[10] > 0) == across


def test_computing_activations_twice_changes_no_gradient(batch):
    computed = []

    def gradients(**changes):
        network = _lively(replace(SMALL, **changes))
        computed.append(0)
        network.unet.middle_block.register_forward_pre_hook(_count(computed))
        answer = network(
            batch.target, torch.tensor([0.4, 0.9]), network.context(batch.conditions, batch.tokens)
        )
        answer.square().mean().backward()
        return {key: weight.grad for key, weight in network.named_parameters()}

    kept, again = gradients(checkpointing=False), gradients(checkpointing=True)
    assert computed == [1, 2]
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient)


def _count(computed):
    def hook(*_):
        computed[-1] += 1

    return hook


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_its_weights_fit_a_file_of_sixteen_megabytes(name):
    shape = preset(name)
    network = build(shape, seed=0)
    assert sum(weight.numel() for weight in network.parameters()) <= 8_000_000, "in bfloat16"
    assert shape.size % (shape.patch * 2 ** (len(shape.widths) - 1)) == 0


def test_rows_know_nothing_of_each_other(lively, batch):
    time = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        both = lively(batch.target, time, lively.context(batch.conditions, batch.tokens))
        swapped = lively(
            batch.target.flip(0),
            time.flip(0),
            lively.context(batch.conditions.flip(0), batch.tokens.flip(0)),
        )
    torch.testing.assert_close(swapped.flip(0), both, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_one_context_serves_every_sample_of_a_forecast(lively, batch):
    time = torch.full((2,), 0.5)
    with torch.no_grad():
        shared = lively.context(batch.conditions[:1], batch.tokens[:1])
        repeated = lively.context(
            batch.conditions[:1].repeat(2, 1, 1, 1, 1), batch.tokens[:1].repeat(2, 1, 1)
        )
        torch.testing.assert_close(
            lively(batch.target, time, shared),
            lively(batch.target, time, repeated),
            atol=1e-4,
            rtol=1e-4,
        )


def test_days_reach_the_answer_through_the_tokens(lively, batch):
    time = torch.full((2,), 0.5)
    later = batch.tokens.clone()
    later[:, 0, 0] += 1.0
    with torch.no_grad():
        now, then = (
            lively(batch.target, time, lively.context(batch.conditions, tokens))
            for tokens in (batch.tokens, later)
        )
    assert not torch.allclose(now, then, atol=1e-3)


def test_norm_adapters_are_a_few_thousand_weights_in_order_of_name():
    network = build(SMALL, seed=0)
    specs = schema(network, "norm")
    assert [name for name, _, _ in specs] == sorted(name for name, _, _ in specs)
    assert {dtype for _, _, dtype in specs} == {"float32"}
    asleep = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in asleep} == {"up", "down"}, "schema changes nothing"
    chosen = select(network, "norm")
    assert [(name, tuple(weight.shape)) for name, weight in chosen.items()] == [
        (name, shape) for name, shape, _ in specs
    ]
    assert 1_000 <= sum(weight.numel() for weight in chosen.values()) <= 20_000


@pytest.mark.parametrize("adapters", ADAPTERS)
def test_every_adapter_weight_learns_and_no_other(lively, batch, adapters):
    chosen = select(lively, adapters)
    assert sum(weight.numel() for weight in chosen.values()) <= 20_000
    loss = denoising_loss(
        lively, RectifiedFlow(), batch, draws=2, generator=torch.Generator().manual_seed(0)
    )
    torch.autograd.backward(loss)
    for name, weight in lively.named_parameters():
        if name in chosen:
            assert weight.grad is not None
            assert weight.grad.abs().max() > 0, name
        else:
            assert weight.grad is None, name
    lively.zero_grad()


def test_unknown_adapters_are_refused():
    with pytest.raises(ModelRefusal) as refusal:
        select(build(SMALL, seed=0), "everything")
    assert refusal.value.code == "unknown_adapters"


def test_the_fast_number_format_is_one_that_autocast_knows():
    assert best_dtype() in (torch.float32, torch.bfloat16)
