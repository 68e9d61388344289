"""Visits are laid on each other and on the atlas; brain, tissue and bias are found where they are known."""

import numpy as np
import pytest
from scipy import ndimage

from oncofed_client.intake.anatomy import anatomy, in_brain
from oncofed_client.intake.found import FoundVisit
from oncofed_client.intake.intensities import even, scaled
from oncofed_client.intake.lattice import on_lattice
from oncofed_client.intake.registration import affine, moved, rigid, turned_deg
from oncofed_client.intake.scans import Scans
from oncofed_client.intake.space import by_planning
from oncofed_client.readers.atlas import read_atlas
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal
from oncofed_common.resample import resampled
from oncofed_simulation.patients.anatomy import Grid, head

SHAPE, SPACING_MM = (66, 80, 64), 3.0
T1 = {"fluid": 40.0, "grey": 110.0, "white": 170.0}
T2 = {"fluid": 200.0, "grey": 120.0, "white": 80.0}


def turn(degrees, shift_mm):
    """A turn about x, then y, then z, and a shift."""
    made = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        one = np.eye(4)
        i, j = [k for k in range(3) if k != axis]
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        made = one @ made
    made[:3, 3] = shift_mm
    return made


pytestmark = pytest.mark.xdist_group("space")


@pytest.fixture(scope="module")
def someone():
    """A virtual head whose tissue is known: T1, T2, tissue labels and brain on one grid."""
    affine_mm = np.diag([SPACING_MM] * 3 + [1.0])
    affine_mm[:3, 3] = -np.asarray(SHAPE) * SPACING_MM / 2 + [0, -17, 9]
    grid = Grid(shape=SHAPE, affine_mm=affine_mm)
    found = head(np.random.default_rng(5)).fractions(grid, blur_mm=(3.0, 3.0, 3.0))
    fluid = (found.brain - found.grey - found.white).clip(0)
    noise = np.random.default_rng(6).normal(0, 3, (2, *SHAPE)) * (found.brain > 0.5)
    images = [
        Volume(
            data=np.where(
                found.brain > 0.5,
                fluid * signal["fluid"]
                + found.grey * signal["grey"]
                + found.white * signal["white"],
                0,
            ).astype(np.float32)
            + noise[number].astype(np.float32),
            affine_mm=affine_mm,
        )
        for number, signal in enumerate((T1, T2))
    ]
    tumor = np.zeros(SHAPE, dtype=np.uint8)
    tumor[22:30, 44:52, 38:46] = 2
    return {
        "T1w": images[0],
        "T2w": images[1],
        "tissue": found.labels(),
        "tumor": Volume(data=tumor, affine_mm=affine_mm),
        "affine_mm": affine_mm,
    }


@pytest.fixture(scope="module")
def found(someone):
    return anatomy(someone["T1w"], read_atlas(), tumor=someone["tumor"], is_t1=True)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def read_at(volume, affine_mm):
    to_source = np.linalg.inv(volume.affine_mm) @ affine_mm
    return resampled(volume.data, to_source, shape=SHAPE, order=0, outside=0.0)


@pytest.mark.parametrize(
    ("channel", "degrees", "shift_mm"),
    [
        ("T1w", (7, -4, 9), (12, -20, 8)),
        pytest.param("T2w", (-5, 3, 6), (40, 25, -60), marks=pytest.mark.slow),
        ("T1w", (0, 0, 0), 0),
    ],
)
def test_a_head_that_was_moved_is_laid_back_within_a_millimetre(
    someone, channel, degrees, shift_mm
):
    """What was moved by a known amount comes back, in another contrast too; what lies right is not
    touched."""
    away = turn(degrees, shift_mm)
    fit = rigid(someone["T1w"], moved(someone[channel], away))
    rest = fit.move @ away
    assert turned_deg(rest) < 0.6
    centre = np.array([0, -17, 9, 1])
    assert np.linalg.norm((rest @ centre - centre)[:3]) < 1.0
    if not any(degrees):
        np.testing.assert_array_equal(fit.move, np.eye(4))


def hounsfield(someone):
    """A CT of the same head: brain and fluid, and bone around them."""
    tissue = someone["tissue"]
    away = ndimage.distance_transform_edt(tissue == 0, sampling=SPACING_MM)
    values = np.select(
        [tissue == 1, tissue == 2, tissue == 3, away <= 2, away <= 8, away <= 14],
        [5.0, 38.0, 30.0, 5.0, 900.0, 40.0],
        default=-1000.0,
    )
    noise = np.random.default_rng(8).normal(0, 6, SHAPE)
    return Volume(data=(values + noise).astype(np.float32), affine_mm=someone["affine_mm"])


def visit_with(someone, planning, dose):
    return Scans(
        visit=FoundVisit(session="1", when=0, items=()),
        images={"T1w": someone["T1w"]},
        tumor=someone["tumor"],
        dose_gy=dose,
        planning=planning,
    )


def test_a_dose_comes_with_its_planning_ct(someone):
    """However the head lay under the CT: within a millimetre of where it was planned."""
    away = turn((5, -3, 8), (12, -20, 30))
    dose = moved(someone["tumor"], away)
    placed = by_planning(visit_with(someone, moved(hounsfield(someone), away), dose))
    centre = np.array([*(np.argwhere(someone["tumor"].data).mean(axis=0)), 1])
    apart = (placed.dose_gy.affine_mm - someone["affine_mm"]) @ centre
    assert np.linalg.norm(apart) < 1.0
    assert placed.tumor is someone["tumor"]


def test_a_dose_whose_planning_ct_shows_no_head_is_refused(someone):
    noise = np.random.default_rng(9).normal(0, 30, SHAPE).astype(np.float32)
    planning = Volume(data=noise, affine_mm=someone["affine_mm"])
    with pytest.raises(CohortRefusal) as found:
        by_planning(visit_with(someone, planning, someone["tumor"]))
    assert found.value.code == "planning_not_found"


def test_a_move_changes_no_voxel_and_no_volume(someone):
    """A file goes elsewhere through its affine alone: its determinant, and so every volume, stays."""
    move = turn((7, -4, 9), (12, -20, 8))
    there = moved(someone["T1w"], move)
    assert there.data is someone["T1w"].data
    assert np.linalg.det(there.affine_mm) == pytest.approx(SPACING_MM**3)


@pytest.mark.slow
def test_the_same_files_give_the_same_move(someone):
    """An intake that goes on after an interrupt ends where one without it does."""
    away = moved(someone["T2w"], turn((3, 2, 1), (5, 5, 5)))
    first, again = (rigid(someone["T1w"], away).move for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.slow
def test_brain_and_tissue_are_those_of_the_head(someone, found):
    """Dice against the truth of a head that no affine move makes equal to the atlas."""
    truth = someone["tissue"]
    brain, tissue = (read_at(v, someone["affine_mm"]) for v in (found.brain, found.tissue))
    assert dice(brain > 0, truth > 0) > 0.95
    assert dice(tissue == 2, truth == 2) > 0.80
    assert dice(tissue == 3, truth == 3) > 0.82
    assert dice(tissue == 1, truth == 1) > 0.35


@pytest.mark.slow
def test_a_head_lies_on_the_atlas_after_its_move(someone, found):
    """What was moved onto the atlas is not moved there again by more than noise."""
    there = moved(someone["T1w"], found.to_atlas)
    atlas = read_atlas()
    again, _ = affine(atlas.t1, there, within=atlas.brain, without=someone["tumor"])
    assert turned_deg(again.move) < 1.5
    assert np.linalg.norm(again.move[:3, 3]) < 3.0


@pytest.mark.slow
def test_the_skull_of_a_head_is_left_out(someone):
    """Where the skull is still on, the atlas says where the brain is; skin does not come into the
    cohort."""
    plain = np.pad(someone["T1w"].data, 12)
    affine_mm = someone["affine_mm"].copy()
    affine_mm[:3, 3] -= 12 * SPACING_MM
    away = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(plain > 0)) * SPACING_MM
    skin = (away > 7) & (away <= 16)
    noise = np.abs(np.random.default_rng(7).normal(0, 3, plain.shape))
    whole = Volume(
        data=(np.where(skin, 190.0, plain) + noise).astype(np.float32), affine_mm=affine_mm
    )
    made = anatomy(whole, read_atlas(), tumor=someone["tumor"], is_t1=True)
    inside = in_brain(whole, made.brain)
    assert inside[skin].mean() < 0.05
    assert inside[plain > 0].mean() > 0.93
    assert dice(read_at(made.brain, someone["affine_mm"]) > 0, someone["tissue"] > 0) > 0.93


@pytest.mark.slow
def test_a_smooth_bias_is_taken_out_and_a_tumour_is_not(someone, found):
    """White matter becomes even again; the contrast of a tumour, which is no bias, stays."""
    ramp = np.linspace(-1, 1, SHAPE[0])[:, None, None] * np.ones(SHAPE)
    field = np.exp(0.35 * ramp).astype(np.float32)
    bright = someone["tumor"].data > 0
    plain = np.where(bright, 260.0, someone["T1w"].data)
    biased = Volume(data=(plain * field).astype(np.float32), affine_mm=someone["affine_mm"])
    made = even(biased, found.brain, someone["tumor"])
    white = (someone["tissue"] == 3) & ~bright & (someone["T1w"].data > 150)
    was, now = (image.data[white].std() / image.data[white].mean() for image in (biased, made))
    assert now < 0.5 * was
    ratio = made.data[bright].mean() / made.data[white].mean()
    assert ratio == pytest.approx(260.0 / plain[white].mean(), rel=0.12)


def test_a_scale_depends_on_this_image_alone_and_air_is_zero(someone):
    """Twice as bright is the same image; the brain's robust range is 100 to 1000."""
    image = someone["T1w"]
    brain = (someone["tissue"] > 0).astype(np.uint8)
    inside = in_brain(image, Volume(data=brain, affine_mm=someone["affine_mm"]))
    made = scaled(image, inside)
    double = scaled(Volume(data=2 * image.data + 50, affine_mm=image.affine_mm), inside)
    assert np.abs(made.astype(int) - double.astype(int)).max() <= 1
    low, high = np.percentile(made[inside], (2, 98))
    assert (round(low), round(high)) == (100, 1000)
    assert made[~inside].max() == 0
    assert made[inside].min() >= 1
    with pytest.raises(CohortRefusal) as caught:
        scaled(Volume(data=np.ones(SHAPE, np.float32), affine_mm=image.affine_mm), inside)
    assert caught.value.code == "blank"


def test_a_lattice_shows_what_lies_at_its_points(someone):
    """A linear ramp in world millimetres is itself on every lattice, however the grid was turned."""
    affine_mm = turn((20, -30, 40), (3, -8, 21)) @ someone["affine_mm"]
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    world = index @ affine_mm[:3, :3].T + affine_mm[:3, 3]
    ramp = Volume(data=(world @ [1.0, 2.0, -1.0]).astype(np.float32), affine_mm=affine_mm)
    lattice = on_lattice(ramp, pitch_mm=4.0)
    centre = np.array(lattice.values.shape) // 2
    for step in ((0, 0, 0), (1, 2, 3), (-4, 3, -2)):
        at = tuple(centre + step)
        point = np.asarray(lattice.origin_mm) + 4.0 * np.asarray(at)
        assert lattice.values[at] == pytest.approx(point @ [1.0, 2.0, -1.0], abs=0.05)
