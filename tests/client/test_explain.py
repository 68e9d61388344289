"""An explanation, on networks of which it is known what they look at."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_client.forecasts.explain import Explanation, as_dict, explain
from oncofed_common.diffusion.generate import Sampling
from oncofed_common.model.lacking import ask_without, remembered
from oncofed_common.model.network import Network, build
from oncofed_common.model.prepare import FIELDS, query
from oncofed_common.model.presets import SMALL
from oncofed_common.outlook import outlook

HOW = Sampling(samples=3, evaluations=3, dtype=torch.float32)
PATIENT = growing_tumour()
ABOUT = {"history": [0, 1], "day": 120, "foresee": remembered(outlook)}
ASKED = query(PATIENT, SMALL, **ABOUT)


class _OnePlaceReader(Network):
    """Its answer moves with the FLAIR of one place alone."""

    def context(self, conditions, tokens):
        self.seen = conditions[:, FIELDS - 1, 16:20, 12:16, 16:20].mean(dim=(1, 2, 3))
        return super().context(conditions, tokens)

    def forward(self, noised, angle, context):
        return super().forward(noised, angle, context) + self.seen[:, None, None, None, None]


def _lacking(name):
    return ask_without(PATIENT, SMALL, name=name, **ABOUT)


@pytest.fixture(scope="module")
def found() -> Explanation:
    return explain(_OnePlaceReader(SMALL), ASKED, HOW, seed=3, lacking=_lacking)


@pytest.mark.slow
def test_the_place_that_alone_matters_is_found_and_the_test_of_it_passes(found):
    inside = np.zeros(found.places_mm.shape, dtype=bool)
    inside[16:20, 12:16, 16:20] = True
    assert (found.places_mm[inside] > 0).all()
    assert np.abs(found.places_mm[~inside]).max() < 1e-4 * found.places_mm.max()
    assert found.faithful
    assert found.most_first_mm[1] == pytest.approx(found.most_first_mm[-1], rel=1e-3)
    assert found.random_mm[1] < found.most_first_mm[1]


@pytest.mark.slow
def test_a_map_that_points_at_the_wrong_places_fails_its_test(found):
    wrong = replace(found, most_first_mm=(*(0.0 for _ in found.shares[:-1]), found.random_mm[-1]))
    assert not wrong.faithful


def test_conditions_are_those_the_patient_has_and_physics_matters_to_a_fresh_network(
    found, monkeypatch
):
    assert "everything" not in found.conditions
    assert "dose" not in found.conditions, "no dose was planned"
    sizes = [size for size, _ in found.conditions.values()]
    assert sizes == sorted(sizes, reverse=True)
    monkeypatch.setattr("oncofed_client.forecasts.explain.CUBE", 16)  # nobody looks at the places
    fresh = explain(build(SMALL, seed=0), ASKED, HOW, seed=3, lacking=_lacking).conditions
    assert set(list(fresh)[:2]) == {"physics", "tissue"}, "without a tissue map there is no physics"
    assert fresh["tissue"] == fresh["physics"]
    assert fresh["clinical value"] == (0.0, 0.0)


@pytest.mark.slow
def test_an_explanation_is_plain_json(found):
    again = json.loads(json.dumps(as_dict(found)))
    assert again["faithful"] is True
    assert len(again["deletion"]["share"]) == len(again["deletion"]["random_mm"])
