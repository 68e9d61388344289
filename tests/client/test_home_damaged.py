"""A home with a file that is missing or damaged: every command says so in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cohort_builder import write_cohort
from site_builder import PASSPHRASE, Coordinator, a_site, published, study_for

from oncofed_client.__main__ import app
from oncofed_client.home import Home
from oncofed_common.terminal import run_app

FAULTS = {"missing": None, "empty": b"", "list": b"[]", "object": b"{}", "binary": bytes(256)}


@pytest.fixture
def commands(tmp_path: Path) -> tuple[Home, dict[str, list[str]]]:
    """A home with an approved study, and every command that reads it."""
    coordinator = Coordinator()
    site = a_site(tmp_path, coordinator)
    site.open.close()
    other = published(tmp_path, study_for(site.home, training={"rounds": 2}), coordinator)
    cohort = write_cohort(tmp_path / "cohort", patients=1)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    table = tmp_path / "table.tsv"
    table.write_text("participant_id\thospital_number\nsub-001\t1\n")
    home = ["--home", str(site.home.root)]
    key = [*home, "--passphrase-file", str(tmp_path / "word")]
    base = ["--base", str(tmp_path / "base.safetensors"), "--yes"]
    return site.home, {
        "budget": home,
        "stop": home,
        "start": [*home, "--cohort", str(cohort), "--identities", str(table)],
        "exclude": ["sub-001", *key, "--identities", str(table)],
        "distrust": ["a" * 64, *key],
        "approve": [str(other), *key, *base],
    }


def refused(capsys, words: list[str], *, as_json: bool = True) -> str:
    code = run_app(app, [*words, "--json"] if as_json else words)
    printed = capsys.readouterr()
    assert (code, printed.err.count("\n")) == (2, 1), printed
    return json.loads(printed.out)["error"]["code"] if as_json else printed.err


def damage(path: Path, fault: str) -> None:
    content = FAULTS[fault]
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_home_without_its_secret_recognises_nobody_and_says_so(commands, capsys, fault):
    home, given = commands
    damage(home.trainer / "secret", fault)
    for name in ("budget", "exclude"):
        assert refused(capsys, [name, *given[name]]) == "no_secret"


@pytest.mark.parametrize("fault", ["empty", "list", "object", "binary", "other"])
def test_an_answer_that_join_did_not_keep_starts_nothing(commands, capsys, fault):
    home, given = commands
    kept = json.loads((home.root / "answer.json").read_text())
    if fault == "other":
        (home.root / "answer.json").write_text(json.dumps(kept | {"address": "nowhere"}))
    else:
        damage(home.root / "answer.json", fault)
    said = refused(capsys, ["start", *given["start"]], as_json=False)
    assert "an answer of the coordinator that" in said
    assert refused(capsys, ["distrust", *given["distrust"]]) in {"bad_answer", "unreadable"}
    assert not (home.root / "processes.json").exists()


@pytest.mark.parametrize("fault", ["empty", "object", "binary"])
def test_a_damaged_list_of_processes_is_not_a_home_where_nothing_runs(commands, capsys, fault):
    home, given = commands
    (home.root / "processes.json").touch()
    damage(home.root / "processes.json", fault)
    assert refused(capsys, ["stop", *given["stop"]]) == "bad_marks"
    assert (home.root / "stopped").exists()  # a start that still runs ends by this
    refused(capsys, ["start", *given["start"]], as_json=False)
    (home.root / "processes.json").unlink()
    assert run_app(app, ["stop", *given["stop"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": []}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_earlier_approval_that_is_damaged_is_no_unexpected_error(commands, capsys, fault):
    home, given = commands
    (study,) = home.studies()
    damage(home.study_folder(study) / "approval.json", fault)
    assert refused(capsys, ["approve", *given["approve"]]) in {"unreadable", "not_approved"}
    shutil.rmtree(home.study_folder(study))
