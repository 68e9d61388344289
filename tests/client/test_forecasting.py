"""``oncofed-site forecast``, from the words to the folder, on a cohort's files."""

import json
from contextlib import redirect_stdout
from io import StringIO

import nibabel as nib
import numpy as np
import pytest
from cohort_builder import DAYS, outline_path, rewrite, write_cohort

from oncofed_client.__main__ import app
from oncofed_common.metrics.response import CATEGORIES
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import dump
from oncofed_common.terminal import run_app

HEADER = "kind\tstart_day\tend_day\tdose_gy\tfractions\tagent\tdose_mg_m2\n"
COURSE = "radiotherapy\t{}\t{}\t{}\t30\tn/a\tn/a\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cohort, the weights of a fresh network, and three plans."""
    root = tmp_path_factory.mktemp("forecasting")
    write_cohort(root / "cohort", visits=3)
    (root / "weights.safetensors").write_bytes(dump(build(SMALL, seed=0)))
    for name, rows in {
        "nothing": "",
        "low": COURSE.format(70, 110, 20),
        "high": COURSE.format(70, 110, 70),
        "past": COURSE.format(50, 70, 60),
    }.items():
        (root / f"{name}.tsv").write_text(HEADER + rows)
    return root


def _words(place, out, *more, participant="sub-001", history="ses-01,ses-02", day=DAYS[2]):
    asked = {"cohort": place / "cohort", "weights": place / "weights.safetensors", "out": out}
    asked |= {"participant": participant, "history": history, "day": day}
    asked |= {"samples": 4, "evaluations": 3}
    return [
        "forecast",
        *(word for name, value in asked.items() for word in (f"--{name}", str(value))),
        *more,
        "--json",
    ]


def _refused(capsys, words) -> str:
    assert run_app(app, words) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    return json.loads(out)["error"]["code"]


@pytest.fixture(scope="module")
def explained(place, tmp_path_factory):
    """A forecast with its reasons: the folder, the exit code and what was printed.

    Of coarse cubes, an eighth of their number; ``test_explain.py`` has them as they are.
    """
    out = tmp_path_factory.mktemp("explained") / "out"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setattr("oncofed_client.forecasts.explain.CUBE", 8)
        code = run_app(app, _words(place, out, "--explain"))
    return out, code, said.getvalue()


@pytest.mark.slow
def test_a_forecast_with_its_reasons_is_a_folder_of_maps_numbers_and_pictures(explained):
    out, code, said = explained
    assert code == 0
    printed = json.loads(said)
    written = json.loads((out / "forecast.json").read_text())
    files = printed.pop("files")
    assert printed == written
    assert sorted(path.name for path in out.iterdir()) == files
    assert {"forecast.png", "explanation.png", "probability-ET.nii.gz", "mean-FLAIR.nii.gz"} < {
        *files
    }
    assert set(written["response"]["odds"]) == set(CATEGORIES)
    assert written["certificate"]["fitted"]
    assert written["explanation"]["conditions"]["physics"]["mean_absolute_log_volume"] > 0


@pytest.mark.slow
def test_several_plans_are_one_page_and_more_dose_is_less_tumour(place, tmp_path, capsys):
    plans = [word for name in ("nothing", "low", "high") for word in ("--treatments", place / name)]
    plans = [f"{word}.tsv" if word != "--treatments" else word for word in plans]
    assert run_app(app, _words(place, tmp_path / "out", *plans)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"comparison.png", "comparison.json", "low/forecast.json"} < set(printed["files"])
    medians = [printed["plans"][n]["volumes_ml"]["whole"]["median"] for n in printed["plans"]]
    assert list(printed["plans"]) == ["nothing", "low", "high"]
    assert medians[0] > medians[1] > medians[2]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"participant": "sub-009"}, "unknown_participant"),
        ({"history": "ses-01,ses-07"}, "unknown_session"),
        ({"history": "ses-02,ses-03", "day": DAYS[1]}, "day_not_after_history"),
        ({"history": "ses-02,ses-01"}, "bad_history"),
    ],
)
def test_a_wrong_question_is_one_line_and_no_folder(place, tmp_path, capsys, change, code):
    assert _refused(capsys, _words(place, tmp_path / "out", **change)) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--treatments", "past.tsv"), "plan_in_past"),
        (("--treatments", "missing.tsv"), "table_missing"),
        (("--treatments", "low.tsv", "--treatments", "low.tsv"), "usage"),
        (("--explain", "--treatments", "low.tsv", "--treatments", "high.tsv"), "usage"),
        (("--treatments", "low.tsv", "--treatments", "..tsv"), "usage"),
        (("--treatments", "low.tsv", "--treatments", "comparison.png.tsv"), "usage"),
        (("--seed", "-1"), "usage"),
        (("--seed", str(2**63)), "usage"),
    ],
)
def test_a_wrong_plan_is_one_line_and_no_folder(place, tmp_path, capsys, more, code):
    words = [str(place / word) if word.endswith(".tsv") else word for word in more]
    assert _refused(capsys, _words(place, tmp_path / "out", *words)) == code
    assert list(tmp_path.iterdir()) == []


def _of_cohort(words, cohort):
    words[words.index("--cohort") + 1] = str(cohort)
    return words


def test_a_history_without_tumour_has_nothing_to_forecast(tmp_path, place, capsys):
    """To train on, its empty outline would be one that was forgotten."""
    cohort = write_cohort(tmp_path / "cohort", visits=4)
    empty = outline_path(cohort, "sub-001", "ses-01")
    rewrite(empty, lambda data, affine: (data * 0, affine))
    words = _of_cohort(_words(place, tmp_path / "out", history="ses-01"), cohort)
    assert _refused(capsys, words) == "no_tumor"
    assert not (tmp_path / "out").exists()


def test_a_visit_without_any_image_can_be_forecast_from(tmp_path, place):
    """To train on, it could not be used."""
    cohort = write_cohort(tmp_path / "cohort", visits=4)
    for image in (cohort / "sub-001" / "ses-02" / "anat").glob("*.nii.gz"):
        image.unlink()
    words = _of_cohort(_words(place, tmp_path / "out"), cohort)
    assert run_app(app, words) == 0
    numbers = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert any("no images" in warning for warning in numbers["warnings"])
    assert not list((tmp_path / "out").glob("mean-*"))


def test_one_visit_is_enough(tmp_path, place):
    """To train on, there have to be two."""
    cohort = write_cohort(tmp_path / "cohort", visits=1)
    words = _of_cohort(_words(place, tmp_path / "out", history="ses-01"), cohort)
    assert run_app(app, words) == 0


def test_an_outline_of_another_geometry_is_refused_though_its_visit_has_no_image(
    tmp_path, place, capsys
):
    """It is compared with the head that the other visits show."""
    cohort = write_cohort(tmp_path / "cohort", visits=4)
    for image in (cohort / "sub-001" / "ses-02" / "anat").glob("*.nii.gz"):
        image.unlink()
    away = np.diag([1.0, 1.0, 1.0, 1.0])
    away[:3, 3] = 500.0
    rewrite(outline_path(cohort, "sub-001", "ses-02"), lambda data, affine: (data, away @ affine))
    words = _of_cohort(_words(place, tmp_path / "out"), cohort)
    assert _refused(capsys, words) == "unknown_session"


def test_weights_of_something_else_are_refused(place, tmp_path, capsys):
    words = _words(place, tmp_path / "out")
    path = tmp_path / "other.safetensors"
    words[words.index("--weights") + 1] = str(path)
    whole = dump(build(SMALL, seed=0))
    assert whole.count(b"small") == 1
    path.write_bytes(whole.replace(b"small", b"other"))
    assert _refused(capsys, words) == "unknown_preset"
    path.write_bytes(whole[: len(whole) // 2])
    assert _refused(capsys, words) == "weights_format"


@pytest.mark.slow
def test_maps_lie_on_the_hospitals_own_grid(place, explained):
    out, code, _ = explained
    assert code == 0
    outline = nib.load(outline_path(place / "cohort", "sub-001", "ses-02"))
    share = nib.load(out / "probability-whole.nii.gz")
    assert share.shape == outline.shape
    np.testing.assert_allclose(share.affine, outline.affine, atol=1e-4)
    drawn = np.asarray(outline.dataobj) > 0
    assert share.get_fdata()[drawn].mean() > 5 * share.get_fdata()[~drawn].mean()
