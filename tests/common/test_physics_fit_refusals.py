"""Outlines, treatments and days from which nothing can be fitted or forecast."""

from __future__ import annotations

import pytest
import torch
from fitted_tumour import (
    SEEN_MM,
    WHITE,
    affine,
    fitted,
    grown,
    tissue,
)

from oncofed_common.cohort import LABELS
from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.candidates import (
    Drug,
    Irradiation,
    Treatments,
)
from oncofed_common.physics.evidence import EXACT
from oncofed_common.physics.fit import PUBLISHED, fit
from oncofed_common.physics.outline import Outline
from oncofed_common.physics.posterior import forecast
from oncofed_common.physics.therapy import (
    Resection,
)


def outline(day: int = 0, *, shape=(6, 6, 6), empty: bool = False) -> Outline:
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[2:4, 2:4, 2:4] = 0 if empty else LABELS["ET"]
    return Outline(day=day, labels=labels)


def rays(*shape: int) -> Treatments:
    return Treatments(irradiations=(Irradiation(total_dose_gy=torch.ones(shape), days=(1,)),))


@pytest.mark.parametrize(
    ("outlines", "treatments", "code"),
    [
        ([], Treatments(), "nothing_to_fit"),
        ([outline(empty=True), outline(day=9)], Treatments(), "nothing_to_fit"),
        ([outline(), outline()], Treatments(), "day_order"),
        ([outline(day=9), outline(day=3)], Treatments(), "day_order"),
        ([outline(), outline(day=9, shape=(6, 6, 7))], Treatments(), "other_grid"),
        ([outline()], rays(6, 7, 6), "other_grid"),
        (
            [outline()],
            Treatments(
                resections=(Resection(day=1, cavity=torch.ones((5, 6, 6), dtype=torch.bool)),)
            ),
            "other_grid",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(outlines, treatments, code):
    with pytest.raises(PhysicsRefusal) as refused:
        fit(
            outlines,
            tissue=torch.full((6, 6, 6), WHITE),
            affine_mm=affine(),
            treatments=treatments,
            priors=PUBLISHED,
            error=EXACT,
        )
    assert refused.value.code == code


def test_a_tissue_map_with_an_unknown_label_is_refused():
    with pytest.raises(PhysicsRefusal) as refused:
        fit(
            [outline()],
            tissue=torch.full((6, 6, 6), 9),
            affine_mm=affine(),
            treatments=Treatments(),
            priors=PUBLISHED,
            error=EXACT,
        )
    assert refused.value.code == "tissue_label"


@pytest.mark.parametrize("days", [[], [-1, 5], [9, 3], [4, 4]])
def test_a_forecast_of_days_that_do_not_rise_is_refused(days):
    found = fitted(grown(), (0,))
    with pytest.raises(PhysicsRefusal) as refused:
        forecast(
            found, tissue=tissue(SEEN_MM), treatments=Treatments(), days=days, samples=2, seed=0
        )
    assert refused.value.code == "day_order"


def test_a_course_without_fractions_or_with_a_negative_dose_is_refused():
    for dose_gy, days, code in ((1.0, (), "fractions"), (-1.0, (1,), "dose_value")):
        with pytest.raises(PhysicsRefusal) as refused:
            Irradiation(total_dose_gy=torch.full((2, 2, 2), dose_gy), days=days)
        assert refused.value.code == code


def test_a_drug_that_never_decays_is_refused():
    with pytest.raises(PhysicsRefusal) as refused:
        Drug(days=(1,), half_life_day=0.0)
    assert refused.value.code == "drug"
