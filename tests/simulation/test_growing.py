"""``oncofed-simulate grow``: one tumour on a tissue map, and everything that makes none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from oncofed_client.readers.nifti import read_volume
from oncofed_client.readers.outputs import write_volume
from oncofed_client.readers.tables import TreatmentRow
from oncofed_common.cohort import Volume
from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics import fine
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.therapy import Radiosensitivity
from oncofed_common.terminal import run_app
from oncofed_simulation.__main__ import app
from oncofed_simulation.growing import Asked, grow_tumour, spread_over

AFFINE = np.array([[-1.0, 0, 0, 15], [0, 1.25, 0, -10], [0, 0, 1.0, 4], [0, 0, 0, 1]])
LAW = Growth(diffusion_white_mm2_per_day=0.1, diffusion_grey_mm2_per_day=0.05, rate_per_day=0.02)
HEADER = "kind\tstart_day\tend_day\tdose_gy\tfractions\tagent\tdose_mg_m2\n"
COURSE = "radiotherapy\t20\t61\t60\t30\tn/a\tn/a\n"


def brain() -> np.ndarray:
    tissue = np.zeros((30, 24, 28))
    tissue[2:-2, 2:-2, 2:-2] = 3
    tissue[:8, 2:-2, 2:-2] = 2
    tissue[24:26] = 1
    return tissue


@pytest.fixture
def words(tmp_path):
    write_volume(tmp_path / "t.nii.gz", Volume(data=brain(), affine_mm=AFFINE), description="-")
    return {
        "--tissue": tmp_path / "t.nii.gz",
        "--seed-mm": "2,5,18",
        "--diffusion-white": "0.1",
        "--diffusion-grey": "0.05",
        "--rate": "0.02",
        "--days": "120",
        "--out": tmp_path / "u.nii.gz",
    }


def say(words, *more):
    return ["grow", *(str(part) for pair in words.items() for part in pair), *more, "--json"]


def grown(words, capsys, *more):
    assert run_app(app, say(words, *more)) == 0
    report = json.loads(capsys.readouterr().out)
    return report, read_volume(words["--out"])


def refused(words, capsys, *more):
    assert run_app(app, say(words, *more)) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    return json.loads(printed.out)["error"]


def test_a_tumour_grows_around_its_seed_on_the_grid_of_the_tissue(words, capsys):
    report, density = grown(words, capsys)
    np.testing.assert_allclose(density.affine_mm, AFFINE, atol=1e-5)
    u = density.data
    assert u.shape == brain().shape
    assert 0 <= u.min() <= u.max() <= 1
    assert np.abs(u[brain() < 2]).max() == 0
    centre = AFFINE[:3, :3] @ (np.argwhere(u > 0).T * u[u > 0]).sum(1) / u.sum() + AFFINE[:3, 3]
    np.testing.assert_allclose(centre, (2, 5, 18), atol=0.5)
    assert report["mass_ml"] == pytest.approx(float(u.sum()) * 1.25e-3, rel=1e-4)
    ratios = {"white": 1.25 / 5**0.5, "grey": 1.25 / 2.5**0.5}
    assert report["dx_over_width"] == pytest.approx(ratios)
    assert report["coarse"] == []
    assert report["steps"] >= 120 * 0.02 / 0.15


def test_a_coarse_grid_is_refined_or_allowed_and_both_say_so(words, capsys):
    narrow = words | {"--diffusion-grey": "0.01"}
    fine_report, fine_one = grown(narrow, capsys)
    assert fine_report["parts_of_a_voxel"] == [2, 2, 2]
    assert max(fine_report["dx_over_width"].values()) <= 1
    assert fine_report["coarse"] == []
    words["--out"].unlink()
    coarse_report, coarse_one = grown(narrow, capsys, "--allow-coarse")
    assert coarse_report["parts_of_a_voxel"] == [1, 1, 1]
    assert coarse_report["coarse"] == ["grey"]
    assert coarse_report["dx_over_width"]["grey"] == pytest.approx(1.25 / 0.5**0.5)
    difference = np.abs(fine_one.data - coarse_one.data).sum()
    assert difference < 0.1 * fine_one.data.sum()


def test_treatment_shrinks_the_tumour_and_a_dose_map_of_the_same_dose_is_the_course(
    words, tmp_path, capsys
):
    untreated, _ = grown(words, capsys)
    (tmp_path / "plan.tsv").write_text(HEADER + COURSE)
    words["--out"] = tmp_path / "everywhere.nii.gz"
    everywhere, one = grown(words | {"--treatments": tmp_path / "plan.tsv"}, capsys)
    assert everywhere["mass_ml"] < 0.4 * untreated["mass_ml"]
    other_grid = np.diag([-2.0, -2.0, 2.0, 1.0])
    other_grid[:3, 3] = (40, 40, -10)
    dose = Volume(data=np.full((40, 40, 30), 60.0), affine_mm=other_grid)
    write_volume(tmp_path / "dose.nii.gz", dose, description="-")
    words["--out"] = tmp_path / "mapped.nii.gz"
    plan = words | {"--treatments": tmp_path / "plan.tsv", "--dose": tmp_path / "dose.nii.gz"}
    _, other = grown(plan, capsys)
    np.testing.assert_allclose(one.data, other.data, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"--rate": "-0.02"}, "growth_not_positive"),
        ({"--rate": "0"}, "growth_not_positive"),
        ({"--diffusion-white": "nan"}, "growth_not_positive"),
        ({"--days": "0"}, "days"),
        ({"--days": "-3"}, "days"),
        ({"--seed-mm": "-10,5,18"}, "seed_outside"),
        ({"--seed-mm": "500,5,18"}, "seed_outside"),
        ({"--seed-mm": "nan,5,18"}, "seed_outside"),
        ({"--seed-mm": "1,2"}, "usage"),
        ({"--diffusion-grey": "1e-9"}, "memory"),
        ({"--alpha": "-1"}, "radiosensitivity"),
    ],
)
def test_numbers_that_grow_no_tumour_are_refused(words, capsys, change, code):
    assert refused(words | change, capsys)["code"] == code
    assert not words["--out"].exists()


def test_memory_is_refused_before_it_is_taken_and_the_refusal_says_how_much(words, capsys):
    error = refused(words | {"--diffusion-grey": "1e-9"}, capsys)
    assert "GiB of memory" in error["found"]
    assert "GiB" in error["allowed"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("radiotherapy\t120\t161\t60\t30\tn/a\tn/a\n", "when growth ends on day 120"),
        ("radiotherapy\t-1\t41\t60\t30\tn/a\tn/a\n", "from day -1"),
        ("radiotherapy\t41\t20\t60\t30\tn/a\tn/a\n", "from day 41 to 20"),
        (COURSE + COURSE.replace("20\t61", "60\t90"), "overlap on day 60"),
        ("radiotherapy\t20\t61\tn/a\t30\tn/a\tn/a\n", "without fractions or dose_gy"),
        ("radiotherapy\t20\t61\t-60\t30\tn/a\tn/a\n", "dose_gy cannot be read"),
        ("surgery\t20\t20\tn/a\tn/a\tn/a\tn/a\n", "kind surgery"),
    ],
)
def test_treatment_that_cannot_be_meant_is_refused(words, tmp_path, capsys, rows, said):
    (tmp_path / "plan.tsv").write_text(HEADER + rows)
    error = refused(words | {"--treatments": tmp_path / "plan.tsv"}, capsys)
    assert error["code"] == "treatment"
    assert said in error["found"]
    assert not words["--out"].exists()


def test_files_that_do_not_belong_are_refused(words, tmp_path, capsys):
    far = np.eye(4)
    far[:3, 3] = 900
    write_volume(
        tmp_path / "far.nii.gz",
        Volume(data=np.ones((9, 9, 9)), affine_mm=far),
        description="-",
    )
    (tmp_path / "plan.tsv").write_text(HEADER + COURSE)
    plan = words | {"--treatments": tmp_path / "plan.tsv"}
    assert refused(plan | {"--dose": tmp_path / "far.nii.gz"}, capsys)["code"] == "dose_grid"
    assert refused(words | {"--dose": tmp_path / "far.nii.gz"}, capsys)["code"] == "treatment"
    for value in (4.0, 1.5):
        write_volume(
            tmp_path / "bad.nii.gz",
            Volume(data=np.where(brain() == 1, value, brain()), affine_mm=AFFINE),
            description="-",
        )
        error = refused(words | {"--tissue": tmp_path / "bad.nii.gz"}, capsys)
        assert error["code"] == "tissue_label"
    refused(words | {"--tissue": tmp_path / "nowhere.nii.gz"}, capsys)
    assert refused(words | {"--out": tmp_path / "plan.tsv"}, capsys)["code"] == "out_name"
    assert refused(words | {"--out": tmp_path / "t.nii.gz"}, capsys)["code"] == "out_exists"


def test_fractions_are_spread_from_the_first_to_the_last_day():
    row = TreatmentRow.model_validate(dict(zip(HEADER.split(), COURSE.split(), strict=True)))
    days = spread_over(row, 30)
    assert (days[0], days[-1], len(set(days))) == (20, 61, 30)
    assert days == sorted(days)


def test_what_is_cut_and_joined_is_as_before():
    from torch import allclose, rand

    field = rand(3, 4, 5, 6)
    assert allclose(fine.joined(fine.cut(field, (3, 1, 2)), (3, 1, 2)), field)


def test_too_little_memory_is_named_for_the_refined_grid():
    asked = Asked(
        growth=LAW,
        seed_mm=(2.0, 5.0, 18.0),
        days=10,
        sensitivity=Radiosensitivity(alpha_per_gy=0.03, beta_per_gy2=0.003),
        log_kill_per_dose=0.1,
        allow_coarse=False,
    )
    with pytest.raises(PhysicsRefusal) as caught:
        grow_tumour(
            asked,
            tissue=Volume(data=brain(), affine_mm=AFFINE),
            courses=[],
            dose_gy=None,
            free_bytes=1000,
            watch=lambda *_: None,
        )
    assert caught.value.code == "memory"
