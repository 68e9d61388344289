"""Conditions that are taken away in training look like conditions that never were."""

from dataclasses import replace

import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.model.dropout import LOSS_RATES, drop
from oncofed_common.model.prepare import (
    EXPECTED_MAPS,
    FIELDS,
    VISIT_CHANNELS,
    Batch,
    examples,
    stack,
)
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.tokens import (
    CLINICAL,
    FIRST_VISIT,
    HORIZON,
    PHYSICS,
    VISIT_CLINICAL,
    VISIT_GIVEN,
)
from oncofed_common.outlook import outlook

ROWS = 60


@pytest.fixture(scope="module")
def batch() -> Batch:
    patient = growing_tumour(spacing_mm=4.0)
    visits = tuple(replace(visit, kps=90.0, steroid_mg=4.0) for visit in patient.visits)
    known = replace(patient, visits=visits)
    return stack(examples(known, SMALL, limit_pairs=1, foresee=outlook))


@pytest.fixture(scope="module")
def dropped(batch):
    conditions = batch.conditions.repeat(ROWS, 1, 1, 1, 1)
    tokens = batch.tokens.repeat(ROWS, 1, 1)
    generator = torch.Generator().manual_seed(8)
    return drop(conditions, tokens, preset=SMALL, generator=generator)


def test_outlines_of_the_last_visit_and_the_days_always_stay(batch, dropped):
    conditions, tokens = dropped
    outlines = slice(0, len(REGIONS))
    assert conditions[:, outlines].eq(batch.conditions[:, outlines]).all()
    assert tokens[:, HORIZON, :3].eq(batch.tokens[:, HORIZON, :3]).all()
    assert tokens[:, FIRST_VISIT, 0].eq(1.0).all()


def test_an_earlier_visit_goes_as_a_whole(dropped):
    conditions, tokens = dropped
    earlier = conditions[:, VISIT_CHANNELS : 2 * VISIT_CHANNELS]
    gone = earlier[:, FIELDS, 0, 0, 0] == 0
    assert 0 < gone.sum() < ROWS
    assert not earlier[gone].any()
    assert not tokens[gone, FIRST_VISIT + 1].any()
    assert tokens[~gone, FIRST_VISIT + 1, 0].eq(1.0).all()


def test_tissue_goes_with_its_flag(dropped):
    tissue = dropped[0][:, 3 * VISIT_CHANNELS : 3 * VISIT_CHANNELS + 4]
    gone = tissue[:, 3, 0, 0, 0] == 0
    assert 0 < gone.sum() < ROWS
    assert not tissue[gone].any()
    assert tissue[~gone].flatten(1).any(dim=1).all()


def test_physics_goes_with_its_flag_and_its_numbers(dropped):
    conditions, tokens = dropped
    expected = conditions[:, -EXPECTED_MAPS:]
    gone = expected[:, -1, 0, 0, 0] == 0
    assert 0 < gone.sum() < ROWS
    assert not expected[gone].any()
    assert not tokens[gone, PHYSICS].any()
    assert expected[~gone, 0].flatten(1).any(dim=1).all()
    assert tokens[~gone, PHYSICS, 0].eq(1.0).all()


def test_now_and_then_nothing_is_left_but_the_last_outlines_and_the_days(batch, dropped):
    conditions, tokens = dropped
    bare = ~conditions[:, len(REGIONS) : FIELDS].flatten(1).any(dim=1)
    bare &= ~conditions[:, VISIT_CHANNELS:].flatten(1).any(dim=1)
    assert 0 < bare.sum() < ROWS / 2
    assert not tokens[bare, CLINICAL].any()
    assert not tokens[bare, HORIZON, 3:].any()
    assert not tokens[bare, FIRST_VISIT, VISIT_GIVEN.start :].any()


def test_a_value_goes_as_often_as_stated(dropped):
    age_known = dropped[1][:, CLINICAL, 1]
    rate = 1 - (1 - LOSS_RATES["clinical value"]) * (1 - LOSS_RATES["everything"])
    assert 1 - age_known.mean().item() == pytest.approx(rate, abs=3 * (rate / ROWS) ** 0.5)


@pytest.mark.parametrize("columns", [VISIT_GIVEN, VISIT_CLINICAL])
def test_what_led_to_a_visit_and_how_the_patient_was_go_at_every_visit_the_last_included(
    batch, dropped, columns
):
    for slot in range(2):
        before = batch.tokens[0, FIRST_VISIT + slot, columns]
        assert before.any()
        after = dropped[1][:, FIRST_VISIT + slot, columns]
        there = dropped[1][:, FIRST_VISIT + slot, 0] == 1
        gone = (after == 0) & (before != 0)
        assert 0 < gone[there].any(dim=1).sum() < there.sum()
        assert ((after == before) | gone).all()


def test_the_originals_are_left_alone_and_a_seed_repeats(batch):
    before = batch.conditions.clone()
    first, second = (
        drop(
            batch.conditions,
            batch.tokens,
            preset=SMALL,
            generator=torch.Generator().manual_seed(3),
        )
        for _ in range(2)
    )
    assert torch.equal(batch.conditions, before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
