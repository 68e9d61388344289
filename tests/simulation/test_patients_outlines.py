"""Compartments of a tumour: where each lies, and what none of them may do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from oncofed_common.cohort import LABELS
from oncofed_simulation.patients.growth import VISIBLE
from oncofed_simulation.patients.outlines import CORE, DEAD, EMPTIED, NECROTIC, Lesion, compartments

NETC, SNFH, ET, RC = (LABELS[name] for name in ("NETC", "SNFH", "ET", "RC"))
shares = st.floats(0, 1, width=32)


def ball(radius: float, *, half: int = 20) -> np.ndarray:
    """Density of a tumour whose front at ``radius`` voxels is 2.5 voxels wide."""
    x = np.arange(-half, half + 1)
    away = np.sqrt(sum(np.square(np.meshgrid(x, x, x, indexing="ij"))))
    return (1 / (1 + np.exp((away - radius) / 2.5))).astype(np.float32)


def at(viable: float, debris: float, cavity: float | bool | None) -> int:
    one = np.ones((1, 1, 1), dtype=np.float32)
    field = None
    if cavity is not None:
        field = np.full((1, 1, 1), cavity, dtype=bool if isinstance(cavity, bool) else np.float32)
    lesion = Lesion(viable=np.float32(viable) * one, debris=np.float32(debris) * one, cavity=field)
    return int(compartments(lesion)[0, 0, 0])


@given(viable=shares, debris=shares, cavity=st.none() | shares | st.booleans())
def test_what_surgery_took_is_cavity_whatever_lay_there_and_the_rest_goes_by_density(
    viable, debris, cavity
):
    label = at(viable, debris, cavity)
    if cavity is not None and cavity >= EMPTIED:
        assert label == RC
        return
    visible = np.float32(viable) + np.float32(debris)
    core, starved_or_died = (
        visible >= np.float32(CORE),
        viable >= np.float32(NECROTIC) or debris >= np.float32(DEAD),
    )
    assert (label > 0) == (visible >= VISIBLE)
    assert (label in {NETC, ET}) == core
    assert (label == NETC) == (core and starved_or_died)


@pytest.mark.parametrize(
    ("viable", "debris", "cavity", "label"),
    [
        (VISIBLE, 0.0, None, SNFH),
        (CORE, 0.0, None, ET),
        (NECROTIC, 0.0, None, NETC),
        (0.125, DEAD, None, NETC),
        (CORE, 0.0, EMPTIED, RC),
    ],
)
def test_a_compartment_begins_at_its_threshold(viable, debris, cavity, label):
    assert at(viable, debris, cavity) == label
    below = np.float32(0.999)
    assert at(viable * below, debris * below, cavity and cavity * below) != label


@given(viable=shares, debris=shares, more=st.floats(0, 0.5, width=32))
def test_more_cells_never_make_a_voxel_look_healthier(viable, debris, more):
    severity = {0: 0, SNFH: 1, ET: 2, NETC: 3}
    assert severity[at(viable + more, debris, None)] >= severity[at(viable, debris, None)]
    assert severity[at(viable, debris + more, None)] >= severity[at(viable, debris, None)]


def test_a_grown_tumour_is_a_necrotic_core_in_a_rim_in_an_oedema():
    density = ball(12.0)
    labels = compartments(Lesion(viable=density, debris=np.zeros_like(density)))
    assert set(np.unique(labels)) == {0, NETC, SNFH, ET}
    for inner, outer in ((NETC, ET), (ET, SNFH)):
        shell = ndimage.binary_dilation(labels == inner) & (labels != inner)
        outside = shell & (density < density[labels == inner].min())
        assert set(np.unique(labels[outside])) == {outer}


def test_a_young_tumour_has_no_necrosis_and_a_faint_one_no_rim():
    density = ball(12.0)
    nothing = np.zeros_like(density)
    young = compartments(Lesion(viable=density * 0.8, debris=nothing))
    faint = compartments(Lesion(viable=density * 0.5, debris=nothing))
    assert set(np.unique(young)) == {0, SNFH, ET}
    assert set(np.unique(faint)) == {0, SNFH}


def test_killing_the_middle_of_a_tumour_turns_its_rim_into_necrosis():
    density = ball(12.0) * np.float32(0.8)
    dead = np.where(density > 0.7, density, 0).astype(np.float32)
    labels = compartments(Lesion(viable=density - dead, debris=dead))
    assert (labels[density > 0.7] == NETC).all()
    assert (labels[(density >= CORE) & (density <= 0.7)] == ET).all()


@pytest.mark.parametrize("cavity", [None, np.zeros((41, 41, 41), dtype=bool)])
def test_without_surgery_there_is_no_cavity(cavity):
    density = ball(12.0)
    lesion = Lesion(viable=density, debris=np.zeros_like(density), cavity=cavity)
    assert not (compartments(lesion) == RC).any()
    assert not lesion.emptied.any()
