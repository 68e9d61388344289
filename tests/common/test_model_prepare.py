"""From a patient to tensors: what may touch a condition, and what must not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour, unforeseen

from oncofed_common.cohort import CHANNELS, LABELS, Patient, Visit, Volume
from oncofed_common.errors import CohortRefusal
from oncofed_common.model.frame import frame, sample_labels
from oncofed_common.model.prepare import (
    EXPECTED_MAPS,
    FIELDS,
    VISIT_CHANNELS,
    examples,
    gains,
    pairs,
    query,
    stack,
    states,
)
from oncofed_common.model.presets import SMALL, preset
from oncofed_common.model.regions import REGIONS, distances, labels_from, masks, volumes_ml
from oncofed_common.outlook import outlook


@pytest.fixture(scope="module")
def patient() -> Patient:
    return growing_tumour()


def _moved(volume: Volume, by_mm: np.ndarray) -> Volume:
    affine = volume.affine_mm.copy()
    affine[:3, 3] += by_mm
    return Volume(data=volume.data, affine_mm=affine)


def _mirrored_storage(volume: Volume) -> Volume:
    """The same voxels at the same places, stored back to front along x and y."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(volume.data.shape[:2]) - 1
    return Volume(data=volume.data[::-1, ::-1], affine_mm=volume.affine_mm @ flip)


def _each_volume(patient: Patient, change) -> Patient:
    visits = tuple(
        replace(
            visit,
            images={name: change(image) for name, image in visit.images.items()},
            tumor=change(visit.tumor),
        )
        for visit in patient.visits
    )
    return replace(
        patient, visits=visits, tissue=change(patient.tissue), brain=change(patient.brain)
    )


def test_changing_a_future_visit_changes_no_input(patient):
    future = patient.visits[2]
    altered = replace(
        future,
        images={
            name: Volume(data=7.0 - 3.0 * image.data, affine_mm=image.affine_mm)
            for name, image in future.images.items()
        },
        tumor=Volume(data=np.roll(future.tumor.data, 4, axis=0), affine_mm=future.tumor.affine_mm),
        dose_gy=future.images["T1w"],
        kps=40.0,
    )
    changed = replace(patient, visits=(*patient.visits[:2], altered))
    before, after = (
        query(one, SMALL, history=[0, 1], day=future.day, foresee=outlook)
        for one in (patient, changed)
    )
    assert torch.equal(before.conditions, after.conditions)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.reference, after.reference)
    assert before.frame == after.frame
    targets = [
        next(e.target for e in examples(one, SMALL, limit_pairs=1, foresee=outlook))
        for one in (patient, changed)
    ]
    assert not torch.equal(*targets), "the fault planted above did reach the target"


def test_the_window_is_centred_on_the_last_outlined_tumour(patient):
    place = frame(patient.visits[:2], SMALL)
    assert place.centre_mm == pytest.approx((5.0, -4.0, 3.0), abs=0.2)
    corner = place.affine_mm @ [0.0, 0.0, 0.0, 1.0]
    assert corner[:3] == pytest.approx(np.array(place.centre_mm) - 46.5)


def test_moving_the_whole_patient_through_the_world_moves_only_the_window(patient):
    by_mm = np.array([17.0, -230.0, 4.5])
    here = examples(patient, SMALL, limit_pairs=1, foresee=outlook)[0]
    there = examples(
        _each_volume(patient, lambda v: _moved(v, by_mm)),
        SMALL,
        limit_pairs=1,
        foresee=outlook,
    )[0]
    torch.testing.assert_close(there.query.conditions, here.query.conditions, atol=1e-4, rtol=0)
    torch.testing.assert_close(there.target, here.target, atol=1e-3, rtol=0)
    shift = np.array(there.query.frame.centre_mm) - np.array(here.query.frame.centre_mm)
    assert shift == pytest.approx(by_mm)


def test_how_the_axes_are_stored_makes_no_difference(patient):
    plain = examples(patient, SMALL, limit_pairs=1, foresee=outlook)[0]
    other = examples(
        _each_volume(patient, _mirrored_storage), SMALL, limit_pairs=1, foresee=outlook
    )[0]
    # Percentiles come from every k-th voxel, counted from the other end: a little less than equal.
    torch.testing.assert_close(other.query.conditions, plain.query.conditions, atol=0.05, rtol=0)
    outlines = slice(0, len(REGIONS))
    assert torch.equal(other.target[outlines], plain.target[outlines])


def test_gain_and_offset_of_a_scanner_are_scaled_away(patient):
    louder = tuple(
        replace(
            visit,
            images={
                name: Volume(data=11.0 * image.data + 70.0, affine_mm=image.affine_mm)
                for name, image in visit.images.items()
            },
        )
        for visit in patient.visits
    )
    plain = query(patient, SMALL, history=[0, 1], day=150, foresee=outlook)
    other = query(replace(patient, visits=louder), SMALL, history=[0, 1], day=150, foresee=outlook)
    torch.testing.assert_close(other.conditions, plain.conditions, atol=1e-4, rtol=0)


def test_another_patient_leaves_the_tensors_bit_identical(patient):
    alone = stack(examples(patient, SMALL, limit_pairs=2, foresee=outlook))
    examples(
        growing_tumour(radii_mm=(20.0, 25.0), days=(0, 30), seed=5),
        SMALL,
        limit_pairs=2,
        foresee=outlook,
    )
    again = stack(examples(patient, SMALL, limit_pairs=2, foresee=outlook))
    assert all(torch.equal(getattr(alone, name), getattr(again, name)) for name in vars(alone))


@pytest.mark.parametrize(("spacing_mm", "within"), [(1.5, 0.02), (3.0, 0.02), (4.0, 0.06)])
def test_a_sphere_keeps_its_volume_whatever_grid_it_was_outlined_on(spacing_mm, within):
    patient = growing_tumour(radii_mm=(18.0,), days=(0,), spacing_mm=spacing_mm)
    labels = sample_labels(patient.visits[0].tumor, frame(patient.visits, SMALL))
    outlined = patient.visits[0].tumor
    drawn_ml = (outlined.data > 0).sum() * spacing_mm**3 / 1000
    assert volumes_ml(labels, SMALL)[0] == pytest.approx(drawn_ml, rel=within)
    assert drawn_ml == pytest.approx(4 / 3 * np.pi * 18.0**3 / 1000, rel=0.05)


def test_distances_of_a_sphere_are_radius_minus_r():
    n = SMALL.size
    axis = SMALL.spacing_mm * (np.arange(n) - (n - 1) / 2)
    r = np.sqrt(sum(np.meshgrid(axis**2, axis**2, axis**2, indexing="ij", sparse=True)))
    labels = np.where(r < 20.0, LABELS["ET"], 0).astype(np.uint8)
    found = distances(labels, SMALL)[0] * SMALL.distance_limit_mm
    exact = np.clip(r - 20.0, -15.0, 15.0)
    assert np.abs(found - exact).max() < SMALL.spacing_mm
    assert np.abs(found - exact).mean() < SMALL.spacing_mm / 4


def test_any_label_map_comes_back_from_its_distances():
    labels = np.random.default_rng(3).integers(0, 5, (32, 32, 32)).astype(np.uint8)
    assert np.array_equal(labels_from(distances(labels, SMALL)), labels)
    whole, core, enhancing, cavity = masks(labels)
    assert (core <= whole).all()
    assert (enhancing <= core).all()
    assert not (cavity & whole).any()


def test_zero_change_is_the_last_visit_and_the_target_is_the_next(patient):
    example = examples(patient, SMALL, limit_pairs=1, foresee=outlook)[0]
    unchanged = states(example.query, torch.zeros_like(example.target)[None], SMALL)[0]
    assert torch.equal(unchanged, example.query.reference)
    came = states(example.query, example.target[None], SMALL)[0]
    truth = sample_labels(patient.visits[2].tumor, example.query.frame)
    assert np.array_equal(labels_from(came[: len(REGIONS)].numpy()), truth)
    assert gains(SMALL).shape == (FIELDS, 1, 1, 1)


def test_pairs_are_the_same_every_time_neighbours_first_and_limited(patient):
    assert pairs(patient, limit=9) == [((0, 1), 2), ((0,), 1), ((0,), 2)]
    assert pairs(patient, limit=2) == pairs(patient, limit=9)[:2]
    assert pairs(replace(patient, visits=patient.visits[:1]), limit=9) == []


def test_a_visit_before_any_tumour_is_no_history_of_its_own(patient):
    empty = Volume(
        data=np.zeros_like(patient.visits[0].tumor.data),
        affine_mm=patient.visits[0].tumor.affine_mm,
    )
    late = replace(patient, visits=(replace(patient.visits[0], tumor=empty), *patient.visits[1:]))
    assert pairs(late, limit=9) == [((0, 1), 2)]
    with pytest.raises(CohortRefusal) as refusal:
        query(late, SMALL, history=[0], day=60, foresee=outlook)
    assert refusal.value.code == "no_tumor"


def test_after_a_resection_the_window_stays_where_the_tumour_was(patient):
    gone: Visit = replace(
        patient.visits[1],
        tumor=Volume(
            data=np.zeros_like(patient.visits[1].tumor.data),
            affine_mm=patient.visits[1].tumor.affine_mm,
        ),
    )
    assert frame([patient.visits[0], gone], SMALL) == frame(patient.visits[:1], SMALL)


def test_a_tumour_gone_for_longer_than_the_model_looks_back_can_still_be_forecast(patient):
    """Its window stays where the tumour was, though no visit that is shown has any."""
    first = patient.visits[0]
    empty = Volume(data=np.zeros_like(first.tumor.data), affine_mm=first.tumor.affine_mm)
    gone = [
        replace(first, session=f"ses-1{at}", day=first.day + 30 * at, tumor=empty)
        for at in range(1, SMALL.history + 1)
    ]
    vanished = replace(patient, visits=(first, *gone))
    asked = query(vanished, SMALL, history=range(4), day=300, foresee=outlook)
    assert asked.frame == frame([first], SMALL)
    assert not (asked.reference[:4] < 0).any()
    assert len(examples(vanished, SMALL, limit_pairs=9, foresee=outlook)) == 6


def test_what_a_hospital_does_not_have_is_zero_with_flag_zero(patient):
    bare = replace(
        patient,
        tissue=None,
        brain=None,
        visits=tuple(replace(v, images={"FLAIR": v.images["FLAIR"]}) for v in patient.visits),
    )
    asked = query(bare, SMALL, history=[0, 1], day=150, foresee=outlook)
    third = asked.conditions[2 * VISIT_CHANNELS : 3 * VISIT_CHANNELS]
    assert not third.any(), "there are two past visits only"
    assert not asked.conditions[3 * VISIT_CHANNELS :].any(), "neither tissue nor dose"
    flair = len(REGIONS) + CHANNELS.index("FLAIR")
    assert asked.conditions[flair].any()
    assert not asked.conditions[len(REGIONS) : flair].any()
    assert asked.acquired.tolist() == [1, 1, 1, 1, 0, 0, 0, 1]
    assert examples(bare, SMALL, limit_pairs=1, foresee=outlook)[0].known.tolist() == [
        1,
        1,
        1,
        1,
        0,
        0,
        0,
        1,
    ]


def test_the_dose_map_of_the_history_is_seen_in_units_of_sixty_gray(patient):
    dose = Volume(
        data=np.full_like(patient.visits[0].tumor.data, 30.0, dtype=np.float32),
        affine_mm=patient.visits[0].tumor.affine_mm,
    )
    treated = replace(
        patient, visits=(replace(patient.visits[0], dose_gy=dose), *patient.visits[1:])
    )
    asked = query(treated, SMALL, history=[0, 1], day=150, foresee=outlook)
    assert asked.conditions[-EXPECTED_MAPS - 1].eq(1.0).all()
    assert asked.conditions[-EXPECTED_MAPS - 2, 16, 16, 16] == pytest.approx(0.5)


def test_a_dose_map_of_zero_gray_is_no_map(patient):
    empty = Volume(
        data=np.zeros_like(patient.visits[0].tumor.data, dtype=np.float32),
        affine_mm=patient.visits[0].tumor.affine_mm,
    )
    planned = replace(
        patient, visits=(replace(patient.visits[0], dose_gy=empty), *patient.visits[1:])
    )
    without, beside = (
        query(one, SMALL, history=[0, 1], day=150, foresee=unforeseen) for one in (patient, planned)
    )
    assert torch.equal(without.conditions, beside.conditions)


@pytest.mark.parametrize(
    ("history", "day", "code"),
    [([], 60, "bad_history"), ([1, 0], 200, "bad_history"), ([0, 1], 60, "day_not_after_history")],
)
def test_a_question_that_makes_no_sense_is_refused(patient, history, day, code):
    with pytest.raises(CohortRefusal) as refusal:
        query(patient, SMALL, history=history, day=day, foresee=outlook)
    assert refusal.value.code == code


def test_no_pairs_make_no_batch():
    with pytest.raises(CohortRefusal) as refusal:
        stack([])
    assert refusal.value.code == "no_pairs"


def test_an_unknown_preset_is_refused():
    with pytest.raises(Exception, match="unknown name") as refusal:
        preset("tiny")
    assert refusal.value.code == "unknown_preset"
