"""What the tokens may do to the prior, and what they may not."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.model.prepare import EXPECTED_MAPS, condition_channels
from oncofed_common.model.presets import SMALL
from oncofed_common.model.prior import FOLLOWS, FURTHEST, HEARD, Prior
from oncofed_common.model.tokens import FEATURES, TOKENS

REGIONS = len(FOLLOWS)


def _conditions(*, known=1.0):
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(2, condition_channels(SMALL), 4, 4, 4, generator=generator)
    drawn[:, -EXPECTED_MAPS:] *= known
    drawn[:, -1] = known
    return drawn


def _tokens(seed, scale=1.0):
    return scale * torch.randn(2, TOKENS, FEATURES, generator=torch.Generator().manual_seed(seed))


def test_a_fresh_prior_hears_no_token():
    prior = Prior()
    one, other = (prior(_conditions(), _tokens(seed)) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(seed=st.integers(0, 99), scale=st.floats(0, 1e4))
def test_no_token_moves_a_deviation_further_than_allowed(seed, scale):
    plain, told = Prior(), Prior()
    with torch.no_grad():
        told.moved.copy_(torch.randn(told.moved.shape, generator=torch.Generator().manual_seed(9)))
        still, wide = plain(_conditions(), _tokens(seed))
        moved, wider = told(_conditions(), _tokens(seed, scale))
    factor = (wider / wide).log().abs()
    assert factor.max() <= FURTHEST + 1e-5
    assert torch.equal(wider[:, REGIONS:], wide[:, REGIONS:]), "images and cavity as they were"
    assert torch.equal(moved[:, REGIONS:], still[:, REGIONS:])


def test_each_row_is_moved_by_its_own_tokens_and_only_by_those_that_are_heard():
    prior = Prior()
    with torch.no_grad():
        prior.moved[0, 0] = 0.5  # the share of the whole tumour, by the first number of the horizon
        prior.moved[1, 0] = math.log(2.0)  # its deviation where draws differ
    tokens = torch.zeros(2, TOKENS, FEATURES)
    tokens[1, HEARD[0], 0] = 0.1
    quiet = [number for number in range(TOKENS) if number not in HEARD]
    tokens[:, quiet] = 7.0
    with torch.no_grad():
        expected, spread = prior(_conditions(), tokens)
        fresh, usual = Prior()(_conditions(), tokens)
    assert torch.equal(expected[0], fresh[0])
    assert torch.equal(spread[0], usual[0])
    torch.testing.assert_close(expected[1, 0], fresh[1, 0] * 1.05, atol=1e-4, rtol=1e-3)
    assert (spread[1, 0] > usual[1, 0]).all()
    assert torch.equal(spread[1, 1:], usual[1, 1:])


def test_without_physics_no_token_moves_anything():
    prior = Prior()
    with torch.no_grad():
        prior.moved.fill_(1.0)
        one, other = (prior(_conditions(known=0.0), _tokens(seed)) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
