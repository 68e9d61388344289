"""Virtual patients: reproducible, anatomically possible, and different in the future from now."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from oncofed_common.cohort import CHANNELS, LABELS, TISSUES, Patient, Volume
from oncofed_common.physics.mechanics import Swelling
from oncofed_common.physics.solver import grow
from oncofed_simulation.patients import Hospital, VirtualPatient, hospital, virtual_patient
from oncofed_simulation.patients.anatomy import Grid, Head, mni152, sample
from oncofed_simulation.patients.clinic import Calendar, Severity, calendar, dose_map_gy, person
from oncofed_simulation.patients.deform import room, shift
from oncofed_simulation.patients.fibres import largest_share, sheet_tensor
from oncofed_simulation.patients.growth import biology, box, onset, origin_mm
from oncofed_simulation.patients.hospitals import stream

SEED = 5
UNBENT = Head(
    to_mni=np.eye(4), bend_mm=np.zeros((1, 3)), bend_wave=np.ones((1, 3)), bend_phase=np.zeros(1)
)


def with_radiotherapy(share: float) -> Hospital:
    site = hospital(SEED, 1)
    habits = replace(site.habits, radiotherapy=share, chemotherapy=0.0, surgery=0.0)
    return replace(site, habits=habits)


def with_surgery() -> Hospital:
    site = with_radiotherapy(0.0)
    return replace(site, habits=replace(site.habits, surgery=1.0))


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
        assert np.linalg.norm(centre_mm(one.tumor) - centre_mm(other.tumor)) < 1.5  # raters differ


def test_an_undistorted_head_is_the_atlas_itself():
    atlas = mni152()
    grid = Grid(shape=atlas.maps.shape[1:], affine_mm=atlas.affine_mm)
    found = UNBENT.fractions(grid, blur_mm=(0.0, 0.0, 0.0))
    assert np.abs(np.stack([found.grey, found.white, found.brain]) - atlas.maps).max() < 1e-3


def test_a_field_is_read_at_the_same_place_whatever_the_grids():
    grid = Grid(shape=(20, 22, 24), affine_mm=np.diag([2.0, 2.0, 2.0, 1.0]))
    x, y, z = grid.points_mm()
    affine = np.diag([-1.5, 1.0, 3.0, 1.0])
    affine[:3, 3] = (30.0, 5.0, 6.0)
    other = Grid(shape=(12, 20, 9), affine_mm=affine)
    a, b, c = other.points_mm()
    np.testing.assert_allclose(sample(x + 2 * y - z, grid, other), a + 2 * b - c, atol=1e-3)


AVERAGE = Severity(size=0.0, speed=0.0)


def plans(site: Hospital, found: Severity, count: int) -> list[Calendar]:
    made = []
    for number in range(count):
        rng = stream("test", number)
        speed = float(rng.uniform(0.01, 0.15))
        who = person(site, rng)
        made.append(calendar(site, who, severity=found, front_speed_mm_per_day=speed, rng=rng))
    return made


@pytest.mark.parametrize("surgery", [0.0, 1.0])
def test_no_visit_falls_into_radiotherapy_or_the_four_weeks_after(surgery):
    site = with_radiotherapy(1.0)
    site = replace(site, habits=replace(site.habits, surgery=surgery, drop_out=0.0))
    for plan in plans(site, AVERAGE, 200):
        days = plan.visit_days
        assert days[0] == 0
        assert 3 <= len(days) <= 6
        assert np.diff(days).min() >= (23 if surgery else 30)
        course = plan.radiotherapy
        assert course is not None
        assert not any(course.start_day <= day < course.end_day + 28 for day in days)
        assert plan.planning_visit == sum(day < course.start_day for day in days) - 1
        if surgery:
            assert plan.surgery is not None
            assert days[0] < plan.surgery.start_day < days[1] < course.start_day


def test_worse_tumours_are_treated_more_so_treatment_and_outcome_are_confounded():
    site = hospital(SEED, 1)
    site = replace(site, habits=replace(site.habits, severity_weight=1.0, surgery=0.3))
    shares = [
        sum(plan.radiotherapy is not None for plan in plans(site, found, 300)) / 300
        for found in (Severity(size=-1.0, speed=-1.0), AVERAGE, Severity(size=1.0, speed=1.0))
    ]
    assert shares[0] + 0.15 < shares[1] < shares[2] - 0.15
    assert shares[1] == pytest.approx(site.habits.radiotherapy, abs=0.09)
    same = replace(site, habits=replace(site.habits, severity_weight=0.0))
    light, grave = (
        [plan.radiotherapy for plan in plans(same, found, 50)]
        for found in (Severity(size=-1.0, speed=-1.0), Severity(size=0.9, speed=1.0))
    )
    assert light == grave


def test_patients_who_drop_out_have_fewer_visits_and_never_fewer_than_three():
    site = with_radiotherapy(0.0)

    def visits(drop_out: float) -> list[int]:
        habits = replace(site.habits, drop_out=drop_out)
        return [len(p.visit_days) for p in plans(replace(site, habits=habits), AVERAGE, 100)]

    assert set(visits(1.0)) == {3}
    assert np.mean(visits(0.0)) > np.mean(visits(0.3)) > 3


def test_idh_mutant_tumours_are_slower_younger_and_further_in_front():
    site = replace(hospital(SEED, 1), idh_mutant=0.5)
    rows = []
    for number in range(150):
        rng = stream("idh", number)
        who = person(site, rng)
        law = biology(site, who, rng)
        y = origin_mm(UNBENT, who, rng)[1]
        rows.append((who, law.growth.front_speed_mm_per_day, y, law.log_kill_per_dose))
    mutant = [row for row in rows if row[0].idh == "mutant"]
    wild = [row for row in rows if row[0].idh == "wildtype"]

    def means(group):
        return [np.mean([r[0].age_years for r in group]), *np.mean([r[1:3] for r in group], axis=0)]

    (age_m, speed_m, y_m), (age_w, speed_w, y_w) = means(mutant), means(wild)
    assert age_m < age_w - 10
    assert speed_m < 0.85 * speed_w
    assert y_m > y_w + 3
    kills = {m: np.mean([r[3] for r in rows if r[0].methylated is m]) for m in (True, False)}
    assert kills[True] == pytest.approx(2 * kills[False], rel=0.15)


def test_surgery_takes_the_core_out_and_nothing_lives_in_the_cavity():
    virtual = virtual_patient(with_surgery(), seed=SEED, number=4)
    surgery = next(t for t in virtual.patient.treatments if t.kind == "surgery")
    (resection,) = virtual.worlds["actual"].therapy.resections
    assert resection.day == surgery.start_day
    before, after = virtual.worlds["actual"].states[:2]
    assert before.visible[resection.cavity].min() >= 0.35
    for cells in virtual.worlds["actual"].states[1:]:
        assert cells.visible[resection.cavity].max() == 0
    assert virtual.truth.volume_ml[1] < 0.7 * virtual.truth.volume_ml[0]
    assert after.visible.sum() > 0


def test_other_worlds_are_the_same_patient_under_another_plan(treated):
    site = with_radiotherapy(1.0)
    virtual = virtual_patient(site, seed=SEED, number=1, with_worlds=True)
    assert virtual.truth == treated.truth
    assert everything(virtual.patient) == everything(treated.patient)
    volumes = {name: world.volumes_ml for name, world in virtual.worlds.items()}
    assert set(volumes) == {"actual", "untreated", "half_dose", "dose_plus_quarter"}
    assert volumes["actual"] == virtual.truth.volume_ml
    planned = next(i for i, v in enumerate(virtual.patient.visits) if v.dose_gy is not None)
    for name, of_world in volumes.items():
        assert of_world[: planned + 1] == volumes["actual"][: planned + 1], name
    last = [volumes[n][-1] for n in ("dose_plus_quarter", "actual", "half_dose", "untreated")]
    assert all(more < less for more, less in pairwise(last)), last


def test_a_tumour_pushes_what_lies_around_it_and_the_ventricles_narrow():
    within = room(UNBENT)
    grid = Grid(shape=(41,) * 3, affine_mm=np.diag([1.5, 1.5, 1.5, 1.0]))
    grid.affine_mm[:3, 3] = (2.0, -50.0, -2.0)
    x, y, z = grid.points_mm()
    density = ((x - 32) ** 2 + (y + 20) ** 2 + (z - 28) ** 2 < 15**2).astype(np.float32)
    moved = shift(within, density, grid, swelling=Swelling(strain=0.25, poisson_ratio=0.4))
    points = np.array([[17.0, -20, 28], [47.0, -20, 28], [-40.0, -20, 28]]).T[..., None, None]
    there = moved.goes_to_mm(points.astype(np.float32))
    inward, outward, far = (there - points)[0, :, 0, 0]
    assert inward < -1 < 1 < outward
    assert abs(far) < 0.5 * abs(inward)
    np.testing.assert_allclose(moved.came_from_mm(there), points, atol=0.4)  # of a 5 mm grid
    where = Grid(shape=(60, 60, 40), affine_mm=np.diag([2.0, 2.0, 2.0, 1.0]))
    where.affine_mm[:3, 3] = (-60, -80, -10)
    plain = UNBENT.fractions(where, blur_mm=(2.0, 2.0, 2.0))
    pushed = UNBENT.fractions_at(moved.came_from_mm(where.points_mm()), blur_mm=(2.0, 2.0, 2.0))
    px, py, pz = where.points_mm()
    ventricle = (np.abs(px) < 25) & (py > -45) & (py < 15) & (pz > 0) & (pz < 30)

    def fluid_ml(tissue):
        return (tissue.brain - tissue.grey - tissue.white).clip(0)[ventricle].sum() * 8 / 1000

    assert fluid_ml(pushed) < 0.97 * fluid_ml(plain)


def test_sheets_conduct_along_themselves_and_keep_their_trace():
    white = np.zeros((24, 24, 24), dtype=np.float32)
    white[:, 10:14] = 1
    tensor = sheet_tensor(white, (1.0, 1.0, 1.0), ratio=4.0)
    np.testing.assert_allclose(np.einsum("aaxyz->xyz", tensor), 3, rtol=1e-5)
    edge = tensor[..., 12, 9, 12]
    assert edge[0, 0] == pytest.approx(4 * edge[1, 1], rel=0.01)
    assert edge[2, 2] == pytest.approx(edge[0, 0])
    flat = sheet_tensor(np.ones_like(white), (1.0, 1.0, 1.0), ratio=4.0)
    np.testing.assert_allclose(flat, np.broadcast_to(np.eye(3)[..., None, None, None], flat.shape))
    values = np.linalg.eigvalsh(np.moveaxis(tensor, (0, 1), (-2, -1)))
    assert values.min() > 0
    assert values.max() <= largest_share(4.0) + 1e-5


def test_a_patient_with_fibres_is_another_one_of_the_same_law():
    site = with_radiotherapy(0.0)
    site = replace(
        site,
        prior=replace(site.prior, first_volume_ml=(3.0, 4.0)),
        habits=replace(site.habits, drop_out=1.0, gap_day=(30, 40)),
    )
    fibrous = replace(site, prior=replace(site.prior, fibre_ratio=3.0))
    one = virtual_patient(site, seed=SEED, number=2)
    other = virtual_patient(fibrous, seed=SEED, number=2)
    assert other.truth.growth == one.truth.growth
    assert other.truth.fibre_ratio == 3.0
    assert other.truth.volume_ml != one.truth.volume_ml
    assert other.truth.volume_ml[-1] > other.truth.volume_ml[0]


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
    where = box(UNBENT, law, fibre_ratio=1.0, origin_mm=(28.0, -20.0, 28.0), follow_up_days=180)
    cells, age_day = onset(where, law)
    assert age_day > 0
    u = grow(cells.viable, where.medium, days=180.0)
    faces = [u.select(dim, end) for dim in range(3) for end in (0, -1)]
    assert max(float(face.max()) for face in faces) < 0.05
    assert torch.equal(u * ~where.medium.solid, torch.zeros_like(u))
    assert 1.5 / law.growth.front_width_mm <= 1
