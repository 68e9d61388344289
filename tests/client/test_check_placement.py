"""Which files and visits lie where the others do: no false alarm, and no misplaced file unseen."""

import itertools
from dataclasses import replace

import cohort_builder as build
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.alignment import align
from oncofed_client.findings import Notes
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.cohort import Volume

FLIPS = [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)]
SLOW = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    root = build.write_cohort(tmp_path_factory.mktemp("placement") / "c", visits=3)
    return read_patient(read_cohort(root), "sub-001")


def found(patient, visits):
    notes = Notes(patient.participant)
    align(visits, tissue=patient.tissue, brain=patient.brain, notes=notes)
    return [(made.code, made.file, made.session) for made in notes.findings]


def with_image(visit, channel, volume):
    return replace(visit, images={**visit.images, channel: volume})


def seen_on(patient_number, visit, *, channel, affine, shape):
    """The builder's head on any grid."""
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    made = build.materials(np.moveaxis(points, -1, 0), patient=patient_number, visit=visit)
    values = build.SIGNAL[channel] if channel else build.OUTLINE
    return Volume(data=np.asarray(values)[made].astype(np.float32), affine_mm=affine)


@SLOW
@given(
    angles=st.lists(st.floats(-0.4, 0.4), min_size=3, max_size=3),
    spacing=st.lists(st.floats(3.0, 7.0), min_size=3, max_size=3),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3),
    axes=st.sampled_from(list(itertools.permutations(range(3)))),
)
def test_channels_and_outlines_may_lie_on_grids_of_their_own(patient, angles, spacing, signs, axes):
    turn = np.eye(3)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        about = np.eye(3)
        about[[i, i, j, j], [i, j, i, j]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        turn = turn @ about
    shape = tuple(int(np.ceil(210 / edge)) for edge in spacing)
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag(np.multiply(spacing, signs)))[:, axes]
    shape = tuple(shape[axis] for axis in axes)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    visits = list(patient.visits)
    flair = seen_on(0, 1, channel="FLAIR", affine=affine, shape=shape)
    outline = seen_on(0, 1, channel=None, affine=affine, shape=shape)
    visits[1] = replace(with_image(visits[1], "FLAIR", flair), tumor=outline)
    assert found(patient, visits) == []


@SLOW
@given(
    slope=st.floats(-50, 50).filter(lambda slope: abs(slope) > 0.01),
    intercept=st.floats(-1000, 1000),
    noise=st.floats(0, 0.08),
    stripped=st.booleans(),
)
def test_contrast_scale_and_noise_of_a_scanner_are_not_a_misplacement(
    patient, slope, intercept, noise, stripped
):
    rng = np.random.default_rng(0)
    visits = []
    for visit in patient.visits:
        images = {}
        for channel, image in visit.images.items():
            real, imaginary = rng.normal(size=(2, *image.data.shape)) * noise * 100
            data = np.hypot(image.data + real, imaginary) * slope + intercept
            if stripped:
                brain = patient.brain.data > 0
                data = np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0)
            images[channel] = Volume(data=data.astype(np.float32), affine_mm=image.affine_mm)
        visits.append(replace(visit, images=images))
    assert found(patient, visits) == []


@pytest.mark.parametrize(
    ("channel", "axes"),
    [(channel, (0,)) for channel in build.CHANNELS[:3]]
    + [(channel, axes) for channel in ("FLAIR", None) for axes in FLIPS],
)
def test_a_file_mirrored_along_any_axes_is_seen(patient, axes, channel):
    visits = list(patient.visits)
    if channel is None:
        tumor = visits[1].tumor
        flipped = Volume(data=np.flip(tumor.data, axes), affine_mm=tumor.affine_mm)
        visits[1] = replace(visits[1], tumor=flipped)
    else:
        image = visits[1].images[channel]
        flipped = Volume(data=np.flip(image.data, axes), affine_mm=image.affine_mm)
        visits[1] = with_image(visits[1], channel, flipped)
    ((code, file, session),) = found(patient, visits)
    assert (file, session) == ("image" if channel else "outline", "ses-02")
    assert code in ({"mirrored"} if channel else {"mirrored", "off_brain", "elsewhere"})


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, 1), (-1, 1, 1)])
@pytest.mark.parametrize("channel", ["FLAIR", None])
def test_world_axes_of_another_convention_are_seen_in_a_head_off_the_origin(
    patient, signs, channel
):
    def moved(volume, *, signs=(1, 1, 1)):
        affine = volume.affine_mm.copy()
        affine[1, 3] -= 17
        return Volume(data=volume.data, affine_mm=np.diag([*signs, 1.0]) @ affine)

    visits = [
        replace(
            visit,
            images={name: moved(image) for name, image in visit.images.items()},
            tumor=moved(visit.tumor),
            dose_gy=None,
        )
        for visit in patient.visits
    ]
    there = replace(patient, tissue=moved(patient.tissue), brain=moved(patient.brain))
    assert found(there, visits) == []
    if channel:
        turned = moved(patient.visits[1].images[channel], signs=signs)
        visits[1] = with_image(visits[1], channel, turned)
    else:
        visits[1] = replace(visits[1], tumor=moved(patient.visits[1].tumor, signs=signs))
    ((code, file, session),) = found(there, visits)
    assert code in {"mirrored", "elsewhere", "off_brain"}
    assert (file, session) == ("image" if channel else "outline", "ses-02")


def test_two_images_kilometres_apart_cost_no_memory(patient):
    visits = list(patient.visits)
    affine = build.affine_mm()
    affine[:3, 3] += 5e6
    image = visits[0].images["T1w"]
    far = Volume(data=image.data, affine_mm=affine)
    visits[0] = replace(visits[0], images={"T1w": image, "FLAIR": far})
    assert {("elsewhere", "image", "ses-01")} <= set(found(patient, visits))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_image_that_lies_half_a_head_away_is_seen_and_its_neighbours_are_not_blamed(
    patient, axis, sign
):
    visits = list(patient.visits)
    image = visits[1].images["T2w"]
    affine = image.affine_mm.copy()
    affine[axis, 3] += sign * 75
    visits[1] = with_image(visits[1], "T2w", Volume(data=image.data, affine_mm=affine))
    assert found(patient, visits) == [("elsewhere", "image", "ses-02")]


def test_a_small_movement_of_the_head_is_not_a_misplacement(patient):
    visits = list(patient.visits)
    for number, move in enumerate(((4, 0, 0), (0, -4, 0), (0, 0, 4))):
        visit = visits[number]
        images = {}
        for channel, image in visit.images.items():
            affine = image.affine_mm.copy()
            affine[:3, 3] += move
            images[channel] = Volume(data=image.data, affine_mm=affine)
        visits[number] = replace(visit, images=images)
    assert found(patient, visits) == []


def test_between_two_visits_that_disagree_neither_is_trusted(patient):
    visits = list(patient.visits[:2])
    images = {}
    for channel, image in visits[1].images.items():
        affine = image.affine_mm.copy()
        affine[0, 3] += 90
        images[channel] = Volume(data=image.data, affine_mm=affine)
    visits[1] = replace(visits[1], images=images)
    codes = {(code, session) for code, _, session in found(patient, visits)}
    assert {("world_differs", "ses-01"), ("world_differs", "ses-02")} <= codes


def test_a_misplaced_brain_mask_is_left_out_and_blames_no_outline(patient):
    brain = patient.brain
    affine = brain.affine_mm.copy()
    affine[1, 3] += 90
    moved = replace(patient, brain=Volume(data=brain.data, affine_mm=affine))
    assert found(moved, moved.visits) == [("elsewhere", "brain mask", None)]
