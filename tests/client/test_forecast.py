"""The forecast of one patient, and the folder it is handed over in."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour
from scipy import ndimage

from oncofed_client.__main__ import app
from oncofed_client.forecasts.cautions import unusual
from oncofed_client.forecasts.command import sampling
from oncofed_client.forecasts.files import unwritten, write, write_plans
from oncofed_client.forecasts.forecast import NOTICE, REDRAWS, as_dict, forecast
from oncofed_common.cohort import CHANNELS, LABELS, Treatment
from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.durable import locked_folder
from oncofed_common.errors import CohortRefusal, ModelRefusal, SystemRefusal
from oncofed_common.metrics import certificate
from oncofed_common.model.network import build
from oncofed_common.model.prepare import query
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS, labels_from, volumes_ml
from oncofed_common.model.weights import dump, network_of, parse
from oncofed_common.outlook import outlook
from oncofed_common.terminal import run_app

RADIOTHERAPY = Treatment(kind="radiotherapy", start_day=70, end_day=111, dose_gy=60.0, fractions=30)


@pytest.fixture(scope="module")
def patient():
    return growing_tumour(treatments=(RADIOTHERAPY,))


@pytest.fixture(scope="module")
def weights():
    """A network that moves outlines a little, differently in each sample."""
    network = build(SMALL, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return replace(parse(dump(network), SMALL, sha256=None), days_ahead=(27, 420))


def _ask(patient, weights, *, history=(0, 1), day=150, samples=4, steps=3, seed=9):
    return forecast(
        patient,
        history=history,
        day=day,
        weights=weights,
        how=Sampling(samples=samples, evaluations=steps, dtype=torch.float32),
        seed=seed,
    )


@pytest.fixture(scope="module")
def found(patient, weights):
    return _ask(patient, weights)


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    out = tmp_path_factory.mktemp("forecast") / "out"
    write(found, out)
    return out


def test_probabilities_are_shares_of_the_samples(found):
    shares = np.stack([found.probability[name] for name in LABELS])
    assert np.isin(np.round(shares * 4, 4), np.arange(5)).all()
    assert shares.sum(axis=0).max() <= 1.0 + 1e-6
    whole = sum(found.probability[name] for name in ("NETC", "SNFH", "ET"))
    np.testing.assert_allclose(found.probability["whole"], whole, atol=1e-6)


def test_the_mean_volume_is_the_integral_of_the_probability(found):
    voxel_ml = SMALL.spacing_mm**3 / 1000
    mean_ml = found.volumes_ml[:, list(REGIONS).index("whole")].mean()
    assert found.probability["whole"].sum() * voxel_ml == pytest.approx(mean_ml, rel=1e-5)


def test_intervals_nest_and_hold_the_median(found):
    for volume in as_dict(found)["volumes_ml"].values():
        (low90, high90), (low50, high50) = volume["interval_90"], volume["interval_50"]
        assert low90 <= low50 <= volume["median"] <= high50 <= high90


def test_what_came_stands_beside_the_forecast_and_takes_no_part_in_it(patient, weights, found):
    assert found.truth is not None
    exact_ml = 4 / 3 * np.pi * 18**3 / 1000
    assert found.truth.volumes_ml[0] == pytest.approx(exact_ml, rel=0.05)
    blind = _ask(replace(patient, visits=patient.visits[:2]), weights)
    assert blind.truth is None
    for name, share in found.probability.items():
        assert np.array_equal(blind.probability[name], share)


def test_a_seed_repeats_also_where_sessions_are_named_and_another_differs(patient, weights, found):
    named = _ask(patient, weights, history=("ses-01", "ses-02"))
    assert np.array_equal(named.volumes_ml, found.volumes_ml)
    assert not np.array_equal(_ask(patient, weights, seed=10).volumes_ml, found.volumes_ml)


def test_a_far_day_and_a_cut_off_tumour_are_warned_of(patient, weights, found):
    assert found.warnings == ()
    far = _ask(patient, weights, day=500, steps=2, samples=2)
    assert any("440 days ahead" in text for text in far.warnings)
    unknown = _ask(patient, replace(weights, days_ahead=None), steps=2, samples=2)
    assert any("no card" in text for text in unknown.warnings)
    huge = growing_tumour(radii_mm=(44.0, 47.0), days=(0, 50))
    edge = _ask(huge, weights, history=(0,), day=50, steps=2, samples=2)
    assert any("edge" in text for text in edge.warnings)


@pytest.mark.parametrize(("share", "warned"), [(0.5, True), (0.49, False)])
def test_a_forecast_that_is_cut_off_by_the_window_says_so(found, share, warned):
    ahead = np.zeros_like(found.probability["whole"])
    ahead[16, 30, 16] = share
    said = unusual(found.past[-1], ahead=ahead, day=found.day, practised=(1, 1000))
    assert [("cut off" in one) for one in said] == [True] * warned
    ahead[16, 30, 16], ahead[16, 29, 16] = 0, 1  # three voxels from the end: inside
    assert unusual(found.past[-1], ahead=ahead, day=found.day, practised=(1, 1000)) == ()


def test_images_are_the_mean_of_the_samples_and_maps_their_share(patient, weights, found):
    """Drawn again from the same seed, and summed up by hand."""
    asked = query(patient, SMALL, history=[0, 1], day=150, foresee=outlook)
    drawn = futures(network_of(weights), asked, found.how, seed=9).numpy()
    assert found.certified.redrawn == 0
    for at, channel in enumerate(CHANNELS):
        if channel in found.images:
            mean = sum(state[len(REGIONS) + at] for state in drawn) / len(drawn)
            np.testing.assert_allclose(found.images[channel], mean, atol=1e-6)
    assert found.images
    inside = [
        np.isin(labels_from(state[: len(REGIONS)]), [LABELS[n] for n in ("NETC", "SNFH", "ET")])
        for state in drawn
    ]
    np.testing.assert_allclose(found.probability["whole"], sum(inside) / len(inside), atol=1e-6)


def test_the_sampler_and_the_guidance_are_a_setting_and_are_told(patient, weights, found):
    """Four evaluations for the distilled one, twelve for the others, unless somebody says otherwise."""
    few = sampling(samples=4, evaluations=None, sampler="distilled", guidance=1.0)
    assert few.evaluations == 4
    assert sampling(samples=4, evaluations=None, sampler="heun", guidance=1.0).evaluations == 12
    for how in (few, replace(found.how, guidance=2.0)):
        other = forecast(patient, history=(0, 1), day=150, weights=weights, how=how, seed=9)
        told = as_dict(other)
        assert (told["sampler"], told["guidance"]) == (how.sampler, how.guidance)
        assert not np.array_equal(other.volumes_ml, found.volumes_ml)


def test_visits_that_the_model_does_not_read_are_warned_of(weights):
    long = growing_tumour(radii_mm=(12.0, 13.0, 14.0, 15.0), days=(0, 50, 100, 150))
    found = _ask(long, weights, history=(0, 1, 2, 3), day=200, steps=2, samples=2)
    assert found.warnings == ("3 of 4 visits read: the model sees the latest 3",)
    assert [visit.day for visit in found.past] == [50, 100, 150]


def test_every_file_says_that_it_is_for_research_only(folder):
    assert json.loads((folder / "forecast.json").read_text())["notice"] == NOTICE
    assert NOTICE.encode() in (folder / "forecast.png").read_bytes()
    maps = sorted(folder.glob("*.nii.gz"))
    assert len(maps) == 5 + 4
    for path in maps:
        assert NOTICE in nib.load(path).header["descrip"].item().decode()


def test_the_maps_lie_on_the_grid_of_the_last_outline_and_over_the_tumour(folder, found, patient):
    image = nib.load(folder / "probability-whole.nii.gz")
    outline = patient.visits[1].tumor
    np.testing.assert_allclose(image.affine, outline.affine_mm, atol=1e-4)
    assert image.shape == outline.data.shape
    share = image.get_fdata()
    voxels = np.argwhere(np.ones(share.shape))
    there = voxels @ outline.affine_mm[:3, :3].T + outline.affine_mm[:3, 3]
    here = np.linalg.inv(found.frame.affine_mm)
    window = np.moveaxis((there @ here[:3, :3].T + here[:3, 3]).reshape(*share.shape, 3), -1, 0)
    exact = ndimage.map_coordinates(
        found.probability["whole"], window, order=1, mode="constant", prefilter=False
    )
    np.testing.assert_allclose(share, exact, atol=1e-3)
    centre = (np.argwhere(share > 0.5).mean(axis=0) @ image.affine[:3, :3].T) + image.affine[:3, 3]
    assert np.linalg.norm(centre - [5.0, -4.0, 3.0]) < 10.0


def test_the_picture_shows_scans_and_the_curve(folder):
    picture = matplotlib.image.imread(folder / "forecast.png")
    assert picture.shape[1] > 1500
    colours = {tuple(colour) for colour in np.round(picture[::3, ::3, :3].reshape(-1, 3), 2)}
    assert len(colours) > 200


def test_a_sample_that_breaks_a_law_is_drawn_again_and_counted(patient, weights, monkeypatch):
    verdicts = iter([[True, False, True, False], [False, True], [True]])
    drawn = []

    def certify(asked, states, preset):
        verdict = np.array(next(verdicts))
        drawn.append(states.copy())
        assert len(states) == len(verdict)
        real = certificate.certify(asked, states, preset)
        return replace(real, kept=dict.fromkeys(real.kept, verdict))

    monkeypatch.setattr("oncofed_client.forecasts.forecast.certify", certify)
    found = _ask(patient, weights)
    numbers = as_dict(found)["certificate"]
    assert (numbers["passed"], numbers["redrawn"], numbers["failing"]) == (0.5, 3, 0)
    first, second, third = drawn
    kept = [first[0], third[0], first[2], second[1]]
    ml = [volumes_ml(labels_from(state[: len(REGIONS)]), SMALL) for state in kept]
    np.testing.assert_allclose(found.volumes_ml, np.stack(ml))


def test_samples_that_cannot_be_mended_are_kept_with_a_warning(patient, weights, monkeypatch):
    def never(asked, states, preset):
        real = certificate.certify(asked, states, preset)
        return replace(real, kept={name: np.zeros(len(states), dtype=bool) for name in real.kept})

    monkeypatch.setattr("oncofed_client.forecasts.forecast.certify", never)
    found = _ask(patient, weights, samples=2, steps=2)
    assert found.warnings == ("2 of 2 samples break a fitted law of growth",)
    assert as_dict(found)["certificate"]["redrawn"] == 2 * REDRAWS


def test_the_odds_of_response_are_by_the_enhancing_tumour_where_it_was_measurable(found):
    what = as_dict(found)["response"]
    assert what["by"] == "enhancing"
    assert what["baseline_ml"] == pytest.approx(found.history_ml[0, 2])
    assert sum(what["odds"].values()) == pytest.approx(1.0)


def test_a_forecast_can_be_drawn_without_truth_or_images(patient, weights, tmp_path):
    bare = replace(patient, visits=tuple(replace(visit, images={}) for visit in patient.visits[:2]))
    found = _ask(bare, weights, steps=2, samples=2)
    assert found.images == {}
    assert "probability-whole.nii.gz" in write(found, tmp_path / "bare")


def test_an_existing_folder_is_left_alone(found, folder):
    before = sorted(folder.iterdir())
    with pytest.raises(SystemRefusal) as refusal:
        write(found, folder)
    assert refusal.value.code == "out_exists"
    assert sorted(folder.iterdir()) == before


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemRefusal) as refusal:
        write(found, tmp_path / "file" / "out")
    assert refusal.value.code == "out_write"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"history": ("ses-09",)}, "unknown_session"),
        ({"history": (7,)}, "unknown_session"),
        ({"history": ()}, "bad_history"),
        ({"day": 60}, "day_not_after_history"),
    ],
)
def test_a_question_about_the_wrong_visits_is_refused(patient, weights, change, code):
    with pytest.raises(CohortRefusal) as refusal:
        _ask(patient, weights, **change)
    assert refusal.value.code == code


def test_too_many_steps_are_refused(patient, weights):
    with pytest.raises(ModelRefusal) as refusal:
        _ask(patient, weights, steps=50)
    assert refusal.value.code == "bad_sampling"


def test_two_forecasts_into_one_folder_are_one_of_them_whole(found, tmp_path):
    """While one is written, another is refused; what a killed one left is in nobody's way."""
    left = tmp_path / ".out.draft" / "1"
    left.mkdir(parents=True)
    (left / "forecast.json").write_text("of a killed one")
    with (
        locked_folder(tmp_path / ".out.draft", busy="held"),
        pytest.raises(SystemRefusal) as refusal,
    ):
        write(found, tmp_path / "out")
    assert refusal.value.code == "output_in_use"
    files = write(found, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "forecast.json").read_text()) == as_dict(found)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.filterwarnings("error")
def test_a_plan_may_be_called_as_its_owner_likes(found, tmp_path):
    """Signs of mathematics mean nothing in a title, and the font need not know every script."""
    names = {"a$\\frac$": found, "h\u6f22": found}
    files = write_plans(names, tmp_path / "out")
    assert {"a$\\frac$/forecast.json", "h\u6f22/forecast.json", "comparison.png"} < set(files)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_drawn(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, code in ((tmp_path / "file" / "out", "out_write"), (tmp_path / "link", "out_exists")):
        with pytest.raises(SystemRefusal) as refusal:
            unwritten(out)
        assert refusal.value.code == code


def test_a_forecast_that_fails_on_the_way_leaves_no_folder(found, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise TypeError

    monkeypatch.setattr("oncofed_client.forecasts.files.draw", fail)
    with pytest.raises(TypeError):
        write(found, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "value"), [("day", "9" * 26), ("samples", "9" * 11)])
def test_a_number_beyond_all_use_is_refused_before_anything_is_read(tmp_path, capsys, word, value):
    asked = {"cohort": "none", "participant": "sub-1", "history": "ses-1", "day": "9"}
    asked |= {"out": str(tmp_path / "out"), word: value}
    words = [part for name, text in asked.items() for part in (f"--{name}", text)]
    assert run_app(app, ["forecast", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_not_remarked_upon_with_its_path(tmp_path):
    (tmp_path / "home").write_text("no folder")  # root may write every folder, but not in a file
    hidden = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "oncofed_client",
            "forecast",
            "--cohort",
            str(tmp_path / "none"),
            "--participant",
            "sub-1",
            "--history",
            "ses-01",
            "--day",
            "9",
            "--out",
            str(tmp_path / "out"),
        ],
        env=inherited | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("oncofed: ")
    assert done.stderr.count("\n") == 1
