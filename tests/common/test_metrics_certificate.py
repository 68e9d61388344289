"""The certificate, on futures of which it is known what they break."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.metrics.certificate import LAWS, certify
from oncofed_common.model.barren import barren, kept_out
from oncofed_common.model.prepare import EXPECTED_MAPS, query, states
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import PHYSICS
from oncofed_common.outlook import outlook

PATIENT = growing_tumour()
DAY = 120
MM = 1 / SMALL.distance_limit_mm


def _asked(patient=PATIENT):
    return query(patient, SMALL, history=[0, 1], day=DAY, foresee=outlook)


@pytest.fixture(scope="module")
def asked():
    return _asked()


def _moved(asked, *mm):
    """The last visit with every outline moved outwards by so many millimetres."""
    last = asked.reference.numpy()
    return np.stack(
        [np.concatenate([last[: len(REGIONS)] - far * MM, last[len(REGIONS) :]]) for far in mm]
    ).astype(np.float32)


def _expected(asked):
    change = torch.zeros((1, *asked.reference.shape))
    change[0, : len(REGIONS) - 2] = asked.conditions[-7:-5]
    return states(asked, change, SMALL).numpy()


def test_what_the_fitted_physics_expects_keeps_every_law(asked):
    found = certify(asked, _expected(asked), SMALL)
    assert set(found.kept) == set(LAWS)
    assert found.passed.all()
    assert found.rms[0] < 0.6


def test_a_front_that_runs_away_breaks_the_equation(asked):
    found = certify(asked, _moved(asked, 0.0, 14.0), SMALL)
    assert found.front_mm[1] > found.front_mm[0] + 8
    assert found.growth[1] > found.growth[0] + 1.0
    assert found.rms[1] > found.rms[0] + 1.0
    assert found.kept["equation"].tolist() == [True, False]
    assert found.passed.tolist() == [True, False]


def test_a_tumour_that_hardly_grows_may_neither_advance_nor_multiply(asked):
    """With v = 0.06 / e^4 mm a day and width 2.6 mm for certain, limits are those of the outline's error."""
    rows = asked.tokens.clone()
    rows[PHYSICS, 1:5] = torch.tensor([-4.0, 0.0, 0.0, 0.0])
    slow = replace(asked, tokens=rows)
    found = certify(slow, _moved(slow, 0.0, 14.0), SMALL)
    days, slack_mm = DAY - 60, 1.96 * 2**0.5 * 2.0 + 1.5
    speed = 0.06 * np.exp(-4.0)
    assert found.permitted_mm == pytest.approx(speed * days + slack_mm, rel=1e-5)
    least = speed / (2 * 2.6) * days
    assert least < found.permitted_growth < least + 3 * slack_mm / 10
    for law in ("speed", "mass"):
        assert found.kept[law].tolist() == [True, False], law


def test_a_second_tumour_far_away_breaks_the_speed(asked):
    state = _moved(asked, 0.0)
    far = np.zeros((32, 32, 32), dtype=bool)
    far[1:7, 1:7, 1:7] = True
    far &= ~barren(asked, SMALL)
    assert far.any()
    state[0, 0][far] = -0.5
    found = certify(asked, state, SMALL)
    assert not found.kept["speed"][0]


def test_tumour_where_there_is_no_tissue_breaks_the_place_and_sampling_keeps_it_out(asked):
    nowhere = barren(asked, SMALL)
    assert nowhere.any()
    assert not nowhere[asked.reference[0].numpy() < 0].any()
    state = _moved(asked, 0.0)
    state[0, 0][nowhere] = -1.0
    assert not certify(asked, state, SMALL).kept["place"][0]
    kept = kept_out(torch.from_numpy(state), nowhere).numpy()
    assert certify(asked, kept, SMALL).kept["place"][0]
    assert np.array_equal(kept[:, len(REGIONS) - 1 :], state[:, len(REGIONS) - 1 :])
    assert np.array_equal(kept[0, 0][~nowhere], state[0, 0][~nowhere])


def test_without_a_fit_only_the_place_is_certified(asked):
    tokens, conditions = asked.tokens.clone(), asked.conditions.clone()
    tokens[PHYSICS] = 0.0
    conditions[-EXPECTED_MAPS:] = 0.0
    unfitted = replace(asked, tokens=tokens, conditions=conditions)
    found = certify(unfitted, _moved(unfitted, 0.0), SMALL)
    assert list(found.kept) == ["place"]
    assert found.passed.all()


def test_without_a_tissue_map_nothing_is_ruled_out_and_nothing_certified():
    bare = _asked(replace(PATIENT, tissue=None))
    found = certify(bare, _moved(bare, 30.0), SMALL)
    assert found.kept == {}
    assert found.passed.tolist() == [True]
    assert not barren(bare, SMALL).any()
