"""What the laws of growth expect of one patient, out of the history alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour, unforeseen

from oncofed_common.cohort import LABELS, Treatment, Volume
from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.model.network import build
from oncofed_common.model.prepare import (
    EXPECTED_MAPS,
    gains,
    query,
    view,
)
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS
from oncofed_common.outlook import outlook

GROWING = growing_tumour(radii_mm=(12.0, 15.0, 18.0), days=(0, 60, 120))
WHOLE = 0
LOG_RATIO, LOG_SPREAD = 5, 6
"""Columns of ``Expected.numbers``: the mean and the spread of the whole tumour's log ratio."""
COURSE = Treatment(kind="radiotherapy", start_day=70, end_day=111, dose_gy=60.0, fractions=30)


def _outlook(patient, *, history=(0, 1), days=(120,)):
    return outlook(patient, SMALL, view(patient, SMALL, history=history), days=days)


def _expected(patient, **asked):
    (found,) = _outlook(patient, **asked)
    assert found is not None
    return found


def test_a_tumour_that_grew_is_expected_to_grow_on_at_about_that_speed():
    found = _expected(GROWING)
    truth = 3 * np.log(18.0 / 15.0)
    assert found.numbers[LOG_RATIO] == pytest.approx(
        truth, abs=2 * float(found.numbers[LOG_SPREAD])
    )
    assert 0 < found.numbers[LOG_SPREAD] < 0.5
    rim = np.abs(_query(GROWING).reference[WHOLE].numpy()) < 0.2
    moved_mm = -found.change[WHOLE][rim].mean() * SMALL.distance_limit_mm
    assert moved_mm == pytest.approx(3.0, abs=1.5)


def test_one_outline_leaves_the_speed_open_and_two_do_not():
    one, two = (_expected(GROWING, history=h) for h in ((0,), (0, 1)))
    assert one.numbers[LOG_SPREAD] > 1.5 * two.numbers[LOG_SPREAD]
    assert one.spread.max() > two.spread.max()


def test_a_later_day_is_farther_away():
    near, far = _outlook(GROWING, days=(90, 200))
    assert near is not None
    assert far is not None
    assert far.numbers[LOG_RATIO] > near.numbers[LOG_RATIO] > 0
    assert far.share[WHOLE].sum() > near.share[WHOLE].sum()


def test_days_may_come_in_any_order_and_a_day_alone_is_no_other():
    far, near = _outlook(GROWING, days=(200, 90))
    (alone,) = _outlook(GROWING, days=(90,))
    again, _ = _outlook(GROWING, days=(90, 200))
    for name in ("change", "spread", "share", "numbers"):
        assert np.array_equal(getattr(near, name), getattr(again, name))
        np.testing.assert_allclose(getattr(near, name), getattr(alone, name), atol=0.05)
    assert far.numbers[LOG_RATIO] > near.numbers[LOG_RATIO]


def test_more_planned_dose_is_never_expected_to_leave_more_tumour():
    sizes = []
    for dose_gy in (0.0, 30.0, 60.0, 75.0):
        course = replace(COURSE, dose_gy=dose_gy)
        sizes.append(float(_expected(replace(GROWING, treatments=(course,))).numbers[LOG_RATIO]))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert sizes[0] == float(_expected(GROWING).numbers[LOG_RATIO])


def test_a_dose_map_is_used_where_there_is_one():
    treated = replace(GROWING, treatments=(COURSE,))
    outlined = GROWING.visits[1].tumor
    elsewhere = Volume(
        data=np.zeros(outlined.data.shape, dtype=np.float32), affine_mm=outlined.affine_mm
    )
    planned = replace(GROWING.visits[1], dose_gy=elsewhere)
    missed = replace(treated, visits=(GROWING.visits[0], planned, GROWING.visits[2]))
    assert _expected(missed).numbers[LOG_RATIO] > _expected(treated).numbers[LOG_RATIO] + 0.1


def test_surgery_that_is_planned_takes_the_core_and_surgery_that_was_leaves_its_cavity():
    cut = Treatment(kind="surgery", start_day=65, end_day=65)
    operated = replace(GROWING, treatments=(cut,))
    assert _expected(operated).numbers[LOG_RATIO] < _expected(GROWING).numbers[LOG_RATIO] - 0.2
    after = GROWING.visits[2].tumor
    labels = after.data.copy()
    labels[np.isin(labels, (LABELS["NETC"], LABELS["ET"]))] = LABELS["RC"]
    seen = replace(GROWING.visits[2], tumor=Volume(data=labels, affine_mm=after.affine_mm))
    followed = replace(operated, visits=(*GROWING.visits[:2], seen))
    found = _expected(followed, history=(0, 1, 2), days=(160,))
    hollow = _query(followed, history=[0, 1, 2], day=160).reference[3].numpy() < -0.2
    assert hollow.any()
    assert not found.share[WHOLE][hollow].any()


def test_drugs_are_expected_to_slow_what_they_are_believed_to_kill():
    drug = Treatment(kind="chemotherapy", start_day=62, end_day=150, agent="temozolomide")
    treated = replace(GROWING, treatments=(drug,))
    assert _expected(treated).numbers[LOG_RATIO] < _expected(GROWING).numbers[LOG_RATIO]


def test_without_tissue_or_without_tumour_physics_is_silent():
    assert _outlook(replace(GROWING, tissue=None), days=(90, 120)) == [None, None]
    empty = [
        replace(visit, tumor=Volume(data=visit.tumor.data * 0 + 4, affine_mm=visit.tumor.affine_mm))
        for visit in GROWING.visits
    ]
    assert _outlook(replace(GROWING, visits=tuple(empty))) == [None]


def test_physics_stands_in_its_own_channels_and_changes_no_other():
    plain, foreseen = (_query(GROWING, foresee=f) for f in (unforeseen, outlook))
    assert torch.equal(plain.conditions[:-EXPECTED_MAPS], foreseen.conditions[:-EXPECTED_MAPS])
    assert not plain.conditions[-EXPECTED_MAPS:].any()
    assert foreseen.conditions[-1].eq(1.0).all()
    shares = foreseen.conditions[-3:-1]
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert foreseen.conditions[-5:-3].min() >= 0
    assert torch.isfinite(foreseen.conditions).all()


@pytest.mark.slow
def test_a_network_that_has_learned_nothing_samples_physics_with_its_spread():
    asked = _query(GROWING)
    network = build(SMALL, seed=0).eval()
    how = Sampling(samples=24, evaluations=12, dtype=torch.float32)
    changes = (futures(network, asked, how, seed=1) - asked.reference) * gains(SMALL)
    with torch.no_grad():
        expected, spread = network.prior(asked.conditions[None], asked.tokens[None])
    surface = asked.conditions[-EXPECTED_MAPS + 2] > 0.1
    found, wide = changes[:, WHOLE][:, surface], spread[0, WHOLE][surface]
    off = (found.mean(dim=0) - expected[0, WHOLE][surface]) / wide
    assert off.abs().mean() < 0.5
    assert (found.std(dim=0) / wide).mean().item() == pytest.approx(1.0, rel=0.2)


def _query(patient, *, history=(0, 1), day=120, foresee=outlook):
    return query(patient, SMALL, history=list(history), day=day, foresee=foresee)


def test_samples_are_shifted_by_what_the_network_foresees_once_and_not_twice():
    """A network that states the same shift of z at every angle, whatever it sees."""
    asked = _query(GROWING)
    shift, network = 0.3, build(SMALL, seed=0).eval()
    how = Sampling(samples=2, evaluations=20, dtype=torch.float32)
    plain = futures(network, asked, how, seed=1)
    with torch.no_grad():
        network.unet.out[-1].conv.bias.fill_(shift)
        _, spread = network.prior(asked.conditions[None], asked.tokens[None])
    moved = (futures(network, asked, how, seed=1) - plain) * gains(SMALL)
    images = slice(len(REGIONS), None)  # no image is kept out of anywhere
    torch.testing.assert_close(
        moved[:, images], (shift * spread).expand(2, -1, -1, -1, -1)[:, images], rtol=0.01, atol=0
    )
