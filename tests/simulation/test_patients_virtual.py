"""Virtual patients: reproducible, anatomically possible, and different in the future from now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oncofed_common.cohort import CHANNELS, LABELS, TISSUES, Patient, Volume
from oncofed_common.physics.solver import grow
from oncofed_simulation.patients import Hospital, VirtualPatient, hospital, virtual_patient
from oncofed_simulation.patients.anatomy import Grid, Head, mni152, sample
from oncofed_simulation.patients.clinic import calendar, dose_map_gy, person
from oncofed_simulation.patients.growth import biology, box, onset
from oncofed_simulation.patients.hospitals import stream

SEED = 5


def with_radiotherapy(share: float) -> Hospital:
    site = hospital(SEED, 1)
    return replace(site, habits=replace(site.habits, radiotherapy=share, chemotherapy=0.0))


@pytest.fixture(scope="module")
def treated() -> VirtualPatient:
    return virtual_patient(with_radiotherapy(1.0), seed=SEED, number=1)


@pytest.fixture(scope="module")
def untreated() -> VirtualPatient:
    return virtual_patient(with_radiotherapy(0.0), seed=SEED, number=2)


def everything(patient: Patient) -> list[bytes]:
    volumes = [v for visit in patient.visits for v in (*visit.images.values(), visit.tumor)]
    assert patient.tissue is not None
    return [v.data.tobytes() + v.affine_mm.tobytes() for v in (*volumes, patient.tissue)]


def centre_mm(outline: Volume) -> np.ndarray:
    middle = np.argwhere(outline.data > 0).mean(axis=0)
    return outline.affine_mm[:3, :3] @ middle + outline.affine_mm[:3, 3]


def test_the_same_hospital_seed_and_number_give_the_same_patient_and_no_other_does(untreated):
    site = with_radiotherapy(0.0)
    again = virtual_patient(site, seed=SEED, number=2)
    assert again.truth == untreated.truth
    assert again.hospital_number == untreated.hospital_number
    assert everything(again.patient) == everything(untreated.patient)
    other = virtual_patient(site, seed=SEED, number=3)
    assert other.patient.participant != untreated.patient.participant
    assert other.truth.origin_mm != untreated.truth.origin_mm


def test_hospitals_differ_in_scanner_case_mix_and_habits():
    sites = [hospital(SEED, number) for number in (1, 2, 3)]
    assert hospital(SEED, 2) == sites[1]
    assert [s.name for s in sites] == ["hospital-1", "hospital-2", "hospital-3"]
    for what in (
        lambda s: s.scanner.voxel_mm,
        lambda s: s.scanner.noise,
        lambda s: s.scanner.contrast["FLAIR"],
        lambda s: s.prior.front_speed_mm_per_day,
        lambda s: s.habits.radiotherapy,
    ):
        assert len({what(s) for s in sites}) == 3


def test_the_tumour_lies_in_grey_and_white_matter_around_its_origin(treated, untreated):
    for virtual in (treated, untreated):
        patient = virtual.patient
        tissue = patient.tissue
        assert tissue is not None
        grid = Grid(shape=tissue.data.shape, affine_mm=tissue.affine_mm)
        for visit in patient.visits:
            outline = visit.tumor
            here = Grid(shape=outline.data.shape, affine_mm=outline.affine_mm)
            solid = sample(tissue.data >= TISSUES["grey"], grid, here)
            inside = outline.data > 0
            assert inside.sum() > 20
            assert set(np.unique(outline.data)) <= {0, *LABELS.values()}
            assert (solid[inside] > 0).mean() > 0.98
            assert solid[inside].mean() > 0.85
        first = centre_mm(patient.visits[0].tumor)
        assert np.linalg.norm(first - virtual.truth.origin_mm) < 15


def test_an_untreated_tumour_only_grows_and_by_enough_to_see(untreated):
    volumes = untreated.truth.volume_ml
    assert untreated.patient.treatments == ()
    assert list(volumes) == sorted(volumes)
    assert volumes[-1] > 1.2 * volumes[0]
    counted = [
        float((v.tumor.data > 0).sum() * np.prod(v.tumor.spacing_mm)) / 1000
        for v in untreated.patient.visits
    ]
    assert counted == pytest.approx(volumes, rel=0.15)


def test_radiotherapy_is_planned_on_a_visit_and_stops_the_growth(treated):
    patient = treated.patient
    planned = [i for i, v in enumerate(patient.visits) if v.dose_gy is not None]
    assert len(planned) == 1
    before, after = patient.visits[planned[0]], patient.visits[planned[0] + 1]
    (course,) = patient.treatments
    assert before.day < course.start_day < course.end_day < after.day
    dose = before.dose_gy
    assert dose is not None
    assert course.dose_gy is not None
    assert dose.data.max() <= course.dose_gy
    core = np.isin(before.tumor.data, (LABELS["ET"], LABELS["NETC"]))
    assert dose.data[core].min() > 0.95 * course.dose_gy
    assert (dose.data == 0).mean() > 0.7
    assert (dose.data[before.images["T1w"].data == 0] == 0).all()

    volumes = treated.truth.volume_ml
    slowed = np.diff(np.log(volumes))[planned[0]]
    free = treated.truth.growth.front_speed_mm_per_day * (after.day - before.day)
    radius = (volumes[planned[0]] * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    assert slowed < 0.5 * 3 * np.log1p(free / radius)


def test_images_are_zero_outside_the_brain_and_show_each_compartment(untreated):
    visit = untreated.patient.visits[-1]
    assert tuple(visit.images) == CHANNELS
    shown = visit.tumor.data
    brains = {image.data.astype(bool).tobytes() for image in visit.images.values()}
    assert len(brains) == 1
    assert all(image.data.dtype == np.int16 for image in visit.images.values())

    def signal(channel: str, where: np.ndarray) -> float:
        return float(np.median(visit.images[channel].data[where]))

    healthy = (visit.images["T1w"].data > 0) & (shown == 0)
    assert signal("FLAIR", shown == LABELS["SNFH"]) > 1.4 * signal("FLAIR", healthy)
    enhancing = shown == LABELS["ET"]
    assert enhancing.any()
    assert signal("ce-gadolinium_T1w", enhancing) > 1.25 * signal("ce-gadolinium_T1w", healthy)
    assert signal("T1w", enhancing) < signal("T1w", healthy)


def test_another_scanner_shows_the_same_tumour_in_the_same_place(untreated):
    site = with_radiotherapy(0.0)
    signs = tuple(-s for s in site.scanner.axis_signs)
    scanner = replace(site.scanner, axis_signs=signs, voxel_mm=(2.0, 3.0, 3.5))
    elsewhere = virtual_patient(replace(site, scanner=scanner), seed=SEED, number=2)
    assert elsewhere.truth == untreated.truth
    for one, other in zip(untreated.patient.visits, elsewhere.patient.visits, strict=True):
        handed = np.linalg.det(one.tumor.affine_mm) * np.linalg.det(other.tumor.affine_mm)
        assert handed < 0
        assert np.linalg.norm(centre_mm(one.tumor) - centre_mm(other.tumor)) < 1.0


def test_an_undistorted_head_is_the_atlas_itself():
    atlas = mni152()
    plain = Head(
        to_mni=np.eye(4),
        bend_mm=np.zeros((1, 3)),
        bend_wave=np.ones((1, 3)),
        bend_phase=np.zeros(1),
    )
    grid = Grid(shape=atlas.maps.shape[1:], affine_mm=atlas.affine_mm)
    found = plain.fractions(grid, blur_mm=(0.0, 0.0, 0.0))
    assert np.abs(np.stack([found.grey, found.white, found.brain]) - atlas.maps).max() < 1e-3


def test_a_field_is_read_at_the_same_place_whatever_the_grids():
    grid = Grid(shape=(20, 22, 24), affine_mm=np.diag([2.0, 2.0, 2.0, 1.0]))
    x, y, z = grid.points_mm()
    affine = np.diag([-1.5, 1.0, 3.0, 1.0])
    affine[:3, 3] = (30.0, 5.0, 6.0)
    other = Grid(shape=(12, 20, 9), affine_mm=affine)
    a, b, c = other.points_mm()
    np.testing.assert_allclose(sample(x + 2 * y - z, grid, other), a + 2 * b - c, atol=1e-3)


def test_no_visit_falls_into_radiotherapy_or_the_four_weeks_after():
    site = with_radiotherapy(1.0)
    for number in range(200):
        rng = stream("test", number)
        speed = float(rng.uniform(0.01, 0.15))
        plan = calendar(site, person(site, rng), front_speed_mm_per_day=speed, rng=rng)
        days = plan.visit_days
        assert days[0] == 0
        assert 3 <= len(days) <= 5
        assert np.diff(days).min() >= 30
        course = plan.radiotherapy
        assert course is not None
        assert not any(course.start_day <= day < course.end_day + 28 for day in days)
        assert plan.planning_visit == sum(day < course.start_day for day in days) - 1


def test_dose_falls_from_full_to_half_to_nothing_around_the_target():
    tumour = np.zeros((81, 3, 3), dtype=bool)
    tumour[40] = True
    dose = dose_map_gy(tumour, np.ones_like(tumour), total_gy=60.0, spacing_mm=(1.0, 1.0, 1.0))
    profile = dose[40:, 1, 1]
    assert profile[0] > 59.9
    assert profile[21] == pytest.approx(30.0, abs=0.01)
    assert profile[40] == 0
    assert (np.diff(profile) <= 0).all()


@pytest.mark.parametrize("number", range(3))
def test_fronts_are_resolved_and_stay_inside_their_box(number):
    """The fastest tumours of the priors, for the longest time that their calendar allows."""
    site = hospital(SEED, 1)
    fast = replace(site, prior=replace(site.prior, front_speed_mm_per_day=0.14))
    rng = stream("fast", number)
    who = person(fast, rng)
    law = biology(fast, who, rng)
    skull = Head(
        to_mni=np.eye(4),
        bend_mm=np.zeros((1, 3)),
        bend_wave=np.ones((1, 3)),
        bend_phase=np.zeros(1),
    )
    where = box(skull, law, origin_mm=(28.0, -20.0, 28.0), follow_up_days=180)
    cells, age_day = onset(where, law)
    assert age_day > 0
    u = grow(cells.viable, where.medium, days=180.0)
    faces = [u.select(dim, end) for dim in range(3) for end in (0, -1)]
    assert max(float(face.max()) for face in faces) < 0.05
    assert torch.equal(u * ~where.medium.solid, torch.zeros_like(u))
    assert 1.5 / law.growth.front_width_mm <= 1
