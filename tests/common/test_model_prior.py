"""What the tokens may do to the prior, and what they may not."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.model.prepare import EXPECTED_MAPS, condition_channels
from oncofed_common.model.presets import SMALL
from oncofed_common.model.prior import ALONE, FOLLOWS, FURTHEST, Prior
from oncofed_common.model.tokens import FEATURES, PHYSICS, TOKENS

REGIONS = len(FOLLOWS)
GAIN = SMALL.distance_gain
SHARE, SHIFT, OF_SPREAD = 0, 1, 2
"""Places of a region's numbers among those that the tokens move."""


def _prior():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Prior(GAIN)


def _conditions(*, known=1.0):
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(2, condition_channels(SMALL), 4, 4, 4, generator=generator)
    drawn[:, :REGIONS] -= 0.5
    drawn[:, -EXPECTED_MAPS:] *= known
    drawn[:, -1] = known
    return drawn


def _tokens(seed, scale=1.0):
    return scale * torch.randn(2, TOKENS, FEATURES, generator=torch.Generator().manual_seed(seed))


def _telling(prior, place, value):
    """Make one number of every region follow the first number of what physics says of itself."""
    with torch.no_grad():
        prior.hear.weight.zero_()
        prior.hear.bias.zero_()
        prior.hear.weight[0, PHYSICS * FEATURES] = 20.0  # silu(20) = 20
        prior.moved[place::6, 0] = value / 20.0


def test_a_fresh_prior_hears_no_token():
    prior = _prior()
    one, other = (prior(_conditions(), _tokens(seed)) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(seed=st.integers(0, 99), scale=st.floats(0, 1e4), known=st.booleans())
def test_no_token_moves_anything_further_than_allowed(seed, scale, known):
    plain, told = _prior(), _prior()
    shown = _conditions(known=float(known))
    with torch.no_grad():
        told.moved.copy_(torch.randn(told.moved.shape, generator=torch.Generator().manual_seed(9)))
        told.moved[SHARE::6] = 0.0
        told.moved[SHIFT::6] = 0.0
        still, wide = plain(shown, _tokens(seed))
        moved, wider = told(shown, _tokens(seed, scale))
        assert (wider / wide).log().abs().max() <= FURTHEST + 1e-5
        assert torch.equal(moved, still)
        told.moved.copy_(torch.randn(told.moved.shape, generator=torch.Generator().manual_seed(9)))
        moved, wider = told(shown, _tokens(seed, scale))
    state = shown[:, :REGIONS] + moved[:, :REGIONS] / GAIN
    assert state.abs().max() <= 1.0 + 1e-5, "distances stay within their limits"
    assert torch.equal(wider[:, REGIONS:], wide[:, REGIONS:]), "images and cavity as they were"
    assert torch.equal(moved[:, REGIONS:], still[:, REGIONS:])


def test_each_row_is_moved_by_its_own_tokens():
    prior, fresh = _prior(), _prior()
    _telling(prior, OF_SPREAD, math.log(2.0))
    tokens = torch.zeros(2, TOKENS, FEATURES)
    tokens[1, PHYSICS, 0] = 1.0
    with torch.no_grad():
        expected, spread = prior(_conditions(), tokens)
        usual, width = fresh(_conditions(), tokens)
    assert torch.equal(expected, usual)
    assert torch.equal(spread[0], width[0])
    assert (spread[1, :REGIONS] > width[1, :REGIONS]).all()


def test_an_outline_that_lies_further_in_is_shifted_everywhere_alike_but_for_the_limits():
    prior = _prior()
    _telling(prior, SHIFT, 0.3)
    tokens = torch.zeros(2, TOKENS, FEATURES)
    tokens[1, PHYSICS, 0] = 1.0
    shown = _conditions(known=0.0)
    with torch.no_grad():
        expected, _ = prior(shown, tokens)
    moved = FURTHEST * math.tanh(0.3 / FURTHEST)
    outlines = shown[1, :REGIONS]
    torch.testing.assert_close(
        outlines + expected[1, :REGIONS] / GAIN, (outlines + moved).clamp(max=1.0)
    )
    assert not expected[0].any()


def test_without_physics_the_deviation_is_the_same_everywhere():
    prior = _prior()
    with torch.no_grad():
        expected, spread = prior(_conditions(known=0.0), _tokens(1))
    assert not expected.any()
    constant = torch.tensor(ALONE)[None, :REGIONS, None, None, None].expand(2, -1, 4, 4, 4)
    torch.testing.assert_close(spread[:, :REGIONS], constant)


def test_a_region_that_physics_makes_vanish_ends_at_the_limit_and_no_further():
    prior, shown = _prior(), _conditions()
    shown[:, -EXPECTED_MAPS:-1] = 0.0
    shown[:, -EXPECTED_MAPS] = 100.0
    with torch.no_grad():
        expected, _ = prior(shown, torch.zeros(2, TOKENS, FEATURES))
    torch.testing.assert_close(shown[:, 0] + expected[:, 0] / GAIN, torch.ones(2, 4, 4, 4))
