"""``oncofed-simulate`` as a researcher types it: a whole run, and words that make none."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from oncofed_client.__main__ import app as site
from oncofed_common.errors import OncofedError
from oncofed_common.terminal import run_app
from oncofed_server.__main__ import app as coordinator
from oncofed_simulation.__main__ import app
from oncofed_simulation.demo import PLAN, Screen, demo
from oncofed_simulation.local_run import local_run

SETTINGS = (
    PLAN.settings.read_text()
    .replace("rounds = 3", "rounds = 1")
    .replace("steps_per_round = 6", "steps_per_round = 1")
    .replace("reply_after_s = 20", "reply_after_s = 1")
    .replace("held_out_fraction = 0.12", "held_out_fraction = 0.001")
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The command that makes cohorts: where, and what it said."""
    out = tmp_path_factory.mktemp("virtual") / "cohorts"
    words = ["--sites", "2", "--patients", "2", "--seed", "5", "--workers", "1", "--out", str(out)]
    with redirect_stdout(StringIO()) as said:
        assert run_app(app, ["cohort", *words, "--json"]) == 0
    return out, json.loads(said.getvalue())


@pytest.fixture(scope="module")
def cohorts(made):
    return made[0]


@pytest.fixture
def words(cohorts, tmp_path):
    return words_in(tmp_path, cohorts)


def words_in(folder, cohorts):
    (folder / "study.toml").write_text(SETTINGS)
    return {
        "study": folder / "study.toml",
        "--cohorts": cohorts,
        "--out": folder / "run",
    }


def say(command, words, *more):
    options = [part for name, value in words.items() if name != "study" for part in (name, value)]
    return [str(word) for word in (command, words["study"], *options, *more)]


def refused(capsys, argv, *, code=2, program=app):
    found = run_app(program, [*argv, "--json"])
    printed = capsys.readouterr()
    return refusal_in(code=found, out=printed.out, err=printed.err, wanted=code)


def refusal_in(*, code, out, err, wanted=2):
    """The code of the one refusal that a command printed."""
    assert code == wanted
    assert err.count("\n") == 1
    (error,) = json.loads(out).values()
    assert set(error) == {"code", "found", "allowed", "next"}
    return error["code"]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A run that took over what a killed one had left.

    ``met``: what a run was told that came while the first was alive. ``left``: whether the killed one's
    folder, and whether a run, was there. ``said``: by the run that went through.
    """

    root: Path
    words: dict[str, Path]
    met: dict[str, Any]
    left: tuple[bool, bool]
    code: int
    said: str


@pytest.fixture(scope="module")
def ran(cohorts, tmp_path_factory):
    root = tmp_path_factory.mktemp("taken-over")
    words = words_in(root, cohorts)
    begun = root / ".run.tmp"
    argv = [sys.executable, "-m", "oncofed_simulation", *say("run", words)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as killed:
        while not (begun / "sites" / "hospital-1").exists():
            assert killed.poll() is None
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGSTOP)
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = run_app(app, say("run", words, "--json"))
        killed.kill()
    left = (begun.exists(), (root / "run").exists())
    met = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    with redirect_stdout(StringIO()) as out:
        code = run_app(app, say("run", words, "--json"))
    return Ran(root=root, words=words, met=met, left=left, code=code, said=out.getvalue())


@pytest.mark.slow
def test_a_study_runs_from_the_command_line_and_its_release_is_verified(ran, capsys):
    assert ran.code == 0
    summary = json.loads(ran.said)
    assert (summary["status"], summary["rounds"], summary["verified"]) == ("complete", 1, True)
    assert summary["epsilon"] <= tomllib.loads(SETTINGS)["privacy"]["epsilon"]
    assert json.loads((ran.root / "run" / "summary.json").read_text()) == summary
    release, audit = (str(ran.root / "run" / name) for name in ("release", "audit"))
    assert run_app(coordinator, ["verify", release, "--audit", audit, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["ok"], verdict["checked"]["sums"]) == (True, 1)
    assert refused(capsys, say("run", ran.words)) == "out_exists"


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("epsilon = 8.0", "epsilon = -8.0"),
        ("epsilon = 8.0", ""),
        ("epsilon = 8.0", "epsilon = nan"),
        ("clip_norm", "clip_nrom"),
        ("[outbound]", "[inbound]"),
        ("[study]", "[study]\nexpires = 2020-01-01"),
        ("[study]", "[study"),
        ('preset = "small"', 'preset = "tiny"'),
        ("reply_after_s = 1", "reply_after_s = 0"),
        ("metrics = []", "metrics = []\n[virtual]\nseed = -1"),
        ("metrics = []", "metrics = []\n[virtual]\nsede = 5"),
        ("metrics = []", "metrics = []\n[virtual]\nseed = 5\nsead = 3"),
        ("metrics = []", "metrics = []\n[virtual]"),
        ("[study]", "virtual = 3\n[study]"),
        ("epsilon = 8.0", 'epsilon = "abc"'),
        ("epsilon = 8.0", "epsilon = [8.0]"),
        ("delta = 1e-5", "delta = [1e-5]"),
        ("rounds = 1", "rounds = inf"),
        ("steps_per_round = 1", "steps_per_round = nan"),
        *(
            ("bytes_per_round = 200000", f"bytes_per_round = {wrong}")
            for wrong in ('"many"', "[1]", "nan", "inf")
        ),
        ('adapters = "prior"', 'adapters = "all"'),
        ("bytes_per_round = 200000", "bytes_per_round = 100"),
    ],
)
def test_settings_that_make_no_study_are_refused_and_leave_nothing(
    words, tmp_path, capsys, good, bad
):
    assert good in SETTINGS
    words["study"].write_text(SETTINGS.replace(good, bad))
    refused(capsys, say("run", words))
    assert not (tmp_path / "run").exists()


def test_a_run_needs_settings_cohorts_and_a_place_of_its_own(words, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").mkdir()
    assert refused(capsys, say("run", words | {"--out": tmp_path / "file"})) == "out_exists"
    assert refused(capsys, say("run", words | {"--out": tmp_path / "file" / "run"})) == "disk"
    assert refused(capsys, say("run", words | {"--cohorts": tmp_path / "empty"})) == "no_cohort"
    refused(capsys, say("run", words | {"study": tmp_path / "nowhere.toml"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "study.toml"]


@pytest.mark.slow
def test_what_a_killed_run_left_is_taken_over_and_a_living_one_is_left_alone(ran):
    assert refusal_in(**ran.met) == "output_in_use"
    assert ran.left == (True, False)
    assert ran.code == 0
    assert sorted(path.name for path in ran.root.iterdir()) == ["run", "study.toml"]
    texts = [path for path in (ran.root / "run").rglob("*") if path.is_file()]
    assert not [path for path in texts if b".run.tmp" in path.read_bytes()]


@pytest.mark.slow
def test_homes_of_a_run_are_used_where_it_ended(ran, cohorts, tmp_path, capsys):
    assert ran.code == 0
    home = ran.root / "run" / "sites" / "hospital-1"
    assert run_app(site, ["budget", "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"][0]["rounds"] == "1/1"
    weights = str(ran.root / "run" / "release" / "weights.safetensors")
    patient = min(cohorts.glob("hospital-1/sub-*"))
    forecast = ["forecast", "--weights", weights, "--cohort", str(patient.parent)]
    forecast += ["--participant", patient.name, "--history", "ses-01", "--day", "60"]
    forecast += ["--samples", "2", "--evaluations", "2", "--out", str(tmp_path / "forecast")]
    assert run_app(site, [*forecast, "--json"]) == 0, capsys.readouterr()


def test_an_interrupted_run_leaves_nothing(words, cohorts, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_run(words["study"], cohorts=cohorts, out=tmp_path / "run", on_progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_run_on_a_mount_point_or_through_a_link_is_refused_before_it_begins(
    words, tmp_path, capsys
):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for out in ("/dev/shm", tmp_path / "round", tmp_path / "round" / "run"):
        refused(capsys, say("run", words | {"--out": out}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round", "study.toml"]


@pytest.mark.slow
def test_a_federation_that_fails_says_so_with_its_exit_code_and_keeps_its_summary(
    words, cohorts, tmp_path
):
    late = SETTINGS.replace("round_deadline_s = 180", "round_deadline_s = 10")
    words["study"].write_text(late)
    slept = []

    def misses_the_deadline(*_):
        if not slept:
            time.sleep(11)
        slept.append(True)

    with pytest.raises(OncofedError) as failed:
        local_run(
            words["study"], cohorts=cohorts, out=tmp_path / "run", on_progress=misses_the_deadline
        )
    assert (failed.value.code, failed.value.exit_code) == ("run_failed", 1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_a_demo_takes_a_folder_that_it_may_write_and_no_file(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert refused(capsys, ["demo", "--out", str(tmp_path / "file")]) == "out_exists"
    assert refused(capsys, ["demo", "--out", "/proc/demo-out"]) == "disk"
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert refused(capsys, ["demo", "--out", str(tmp_path / "round")]) == "disk"
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_running_demo_keeps_its_folder_and_a_dead_ones_is_taken_over(tmp_path, capsys):
    out = tmp_path / "demo"

    class Dies(Exception):
        """The first demo, at its first word."""

    def dies(_what):
        (out / "mine").write_text("of the running demo")
        assert refused(capsys, ["demo", "--out", str(out)]) == "output_in_use"
        assert (out / "mine").read_text() == "of the running demo"
        raise Dies

    def finds(_what):
        assert not (out / "mine").exists()
        raise Dies

    for say_it in (dies, finds):
        with pytest.raises(Dies):
            demo(out, plan=PLAN, screen=Screen(say=say_it, bar=lambda *_: None))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--preset", "nosuch"],
        ["--steps", "0"],
        ["--patients", "0"],
        ["--seed", "1000000000"],
        ["--scored", "0"],
        ["--processes", "0"],
        ["--minutes", "-1"],
        ["--minutes", "nan"],
        ["--out", ""],
        ["--out", "/proc/pretrained"],
        ["--out", "/dev/null"],
    ],
)
def test_a_pretraining_that_cannot_be_is_refused_before_a_patient_is_made(tmp_path, capsys, wrong):
    refused(capsys, ["pretrain", "--out", str(tmp_path / "out"), *wrong])
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused_before_a_patient_is_made(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut short")
    words = ["pretrain", "--resume", "--out", str(tmp_path)]
    assert refused(capsys, words) == "damaged_checkpoint"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_cohort_says_what_it_holds(made):
    cohorts, said = made
    assert said["visits"] == len(list(cohorts.glob("hospital-*/sub-*/ses-*")))
    assert (said["patients"], said["cohorts"]) == (4, ["hospital-1", "hospital-2"])
