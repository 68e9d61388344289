"""The cipher stream and the Poisson draw from it."""

from __future__ import annotations

import copy
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.sampling import inclusion_threshold, poisson_draw
from oncofed_common.privacy.stream import Stream

SEED = bytes(range(32))


def test_a_seeded_stream_is_the_encryption_of_zeros_by_the_block_cipher_itself():
    """CTR mode written out: counter blocks through single-block AES."""
    block = Cipher(algorithms.AES256(SEED), modes.ECB()).encryptor()
    expected = block.update(b"".join(n.to_bytes(16, "big") for n in range(8)))
    stream = Stream.from_seed(SEED)
    assert stream.bytes(5) + stream.bytes(123) == expected


def test_one_seed_gives_one_stream_and_two_keys_of_the_system_give_two():
    first, again = Stream.from_seed(SEED), Stream.from_seed(SEED)
    assert (first.uint64(100) == again.uint64(100)).all()
    assert Stream.from_os().bytes(32) != Stream.from_os().bytes(32)


def test_only_a_key_of_the_operating_system_protects():
    assert Stream.from_os().protected
    assert not Stream.from_seed(SEED).protected


def test_a_stream_shows_no_key_and_cannot_be_copied_or_pickled():
    stream = Stream.from_seed(SEED)
    assert repr(stream) == "Stream(protected=False)"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyRefusal) as refusal:
            attempt(stream)
        assert refusal.value.code == "stream_copied"
    assert not any(SEED in repr(getattr(stream, name)).encode() for name in Stream.__slots__)


def test_a_forked_child_gets_no_noise_that_its_parent_will_use():
    stream = Stream.from_os()
    child = os.fork()
    if child == 0:
        try:
            stream.bytes(1)
        except PrivacyRefusal as refusal:
            os._exit(7 if refusal.code == "stream_forked" else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(stream.bytes(1)) == 1


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length):
    with pytest.raises(PrivacyRefusal):
        Stream.from_seed(bytes(length))


def test_words_are_the_bytes_in_little_endian_order():
    as_bytes, as_words = Stream.from_seed(SEED), Stream.from_seed(SEED)
    raw = as_bytes.bytes(80)
    expected = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 80, 8)]
    high, low = as_words.uint128(5)
    assert [*map(int, high), *map(int, low)] == expected


def test_coins_are_fair_and_seeds_fit_into_63_bits():
    stream = Stream.from_seed(SEED)
    coins = stream.bits(100_000)
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / np.sqrt(100_000)
    assert len(stream.bits(13)) == 13
    seeds = [stream.torch_seed() for _ in range(200)]
    assert len(set(seeds)) == 200
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    assert max(seeds) > 2**62


@given(rate=st.floats(min_value=0, max_value=1, exclude_min=True, allow_subnormal=True))
def test_the_rate_in_effect_is_never_above_the_accounted_one(rate):
    threshold = inclusion_threshold(rate)
    assert Fraction(threshold, 2**64) <= Fraction(rate) < Fraction(threshold + 1, 2**64)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, float("nan"), float("inf")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(PrivacyRefusal):
        inclusion_threshold(rate)


def test_a_rate_of_one_draws_everybody():
    assert poisson_draw(Stream.from_os(), patients=1000, rate=1.0).all()


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.93])
def test_draws_are_poisson_sampling(rate):
    """Each patient as often as the rate says, batch sizes binomial, patients independent."""
    draws, patients = 4000, 40
    stream = Stream.from_seed(SEED)
    taken = np.stack([poisson_draw(stream, patients=patients, rate=rate) for _ in range(draws)])
    spread = rate * (1 - rate)
    assert np.abs(taken.mean(axis=0) - rate).max() < 5 * np.sqrt(spread / draws)
    # A shuffled, fixed-size batch would have variance zero here.
    sizes = taken.sum(axis=1)
    assert sizes.var() == pytest.approx(patients * spread, rel=0.15)
    correlation = np.corrcoef(taken.T.astype(float)) - np.eye(patients)
    assert np.abs(correlation).max() < 6 / np.sqrt(draws)


def test_nobody_in_the_frame_is_an_empty_draw():
    assert poisson_draw(Stream.from_os(), patients=0, rate=0.5).shape == (0,)
