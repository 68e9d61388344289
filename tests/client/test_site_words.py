"""Words on a hospital's command line that would make a home, or a trust, that nothing fits."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from site_builder import (
    CA_PEM,
    PASSPHRASE,
    Coordinator,
    a_home,
    a_site,
    joined,
    published,
    study_for,
)

from oncofed_client.__main__ import app
from oncofed_client.ledger import Ledger
from oncofed_common.terminal import run_app


def words(home: Path, name: str, passphrase: Path) -> list[str]:
    passphrase.write_text("a passphrase")
    numbers = "--declared-patients 100 --lifetime-epsilon 8 --lifetime-delta 0.00001"
    rest = f"{numbers} --filter-order 8 --bytes-per-round 300000 --json".split()
    paths = ["--home", str(home), "--passphrase-file", str(passphrase)]
    return ["init", "--name", name, *paths, *rest]


@pytest.mark.parametrize("name", ["", "A b", "../north", "a\nb", "n" * 64])
def test_a_site_name_that_no_coordinator_takes_makes_no_home(tmp_path, capsys, name):
    assert run_app(app, words(tmp_path / "home", name, tmp_path / "word")) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_name"
    assert [path.name for path in tmp_path.iterdir()] == ["word"]


@pytest.mark.parametrize("place", ["file", "file/home"])
def test_a_home_where_no_folder_can_be_is_refused(tmp_path, capsys, place):
    (tmp_path / "file").write_text("mine")
    assert run_app(app, words(tmp_path / place, "north", tmp_path / "word")) == 2
    assert str(tmp_path) not in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("key", ["", "junk", "f" * 63])
def test_what_is_no_fingerprint_cannot_be_distrusted(tmp_path, capsys, key):
    home = tmp_path / "home"
    assert run_app(app, words(home, "north", tmp_path / "word")) == 0
    capsys.readouterr()
    line = ["distrust", key, "--home", str(home), "--passphrase-file", str(tmp_path / "word")]
    assert run_app(app, [*line, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_fingerprint"


def refused(capsys, *argv: object) -> dict[str, str]:
    """The one refusal of a command: one line for people, one object for programs."""
    assert run_app(app, [*(str(word) for word in argv), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    (error,) = json.loads(printed.out).values()
    assert set(error) == {"code", "found", "allowed", "next"}
    return error


@pytest.mark.parametrize(
    "change",
    [
        {"ca_pem": ""},
        {"ca_pem": CA_PEM.replace("A", "B")},
        {"ca_pem": 2 * CA_PEM},
        {"address": ""},
        {"address": "fed.example.org"},
        {"address": "fed.example.org:443/path"},
        {"address": "fed.example.org:0"},
        {"address": "fed.example.org:65536"},
        {"address": 8443},
        {"site": "south"},
        {"approver_key": "a" * 64},  # this home was made anew since its request was sent
        {"more": "x"},
    ],
)
def test_an_answer_that_no_courier_could_use_is_not_kept(tmp_path, capsys, change):
    home, coordinator = a_home(tmp_path), Coordinator()
    answer = {
        "site": "north",
        "approver_key": home.approver.hex,
        "address": "fed.example.org:443",
        "ca_pem": CA_PEM,
        "coordinator_key": coordinator.study_key.public.hex,
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer | change))
    aloud = coordinator.study_key.public.fingerprint
    words = ["join", tmp_path / "answer.json", "--home", home.root, "--coordinator", aloud]
    refused(capsys, *words)
    assert not (home.root / "answer.json").exists()
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    assert run_app(app, [str(word) for word in words]) == 0


def test_a_start_without_cohort_or_hospital_numbers_starts_nothing(tmp_path, capsys):
    home = joined(a_home(tmp_path), Coordinator())
    cohort, table = tmp_path / "cohort", tmp_path / "identities.tsv"
    words = ["start", "--home", home.root, "--cohort", cohort, "--identities", table]
    assert run_app(app, [str(word) for word in words]) == 2
    assert "not a cohort" in capsys.readouterr().err
    cohort.mkdir()
    (cohort / "dataset_description.json").write_text("{}")
    assert run_app(app, [str(word) for word in words]) == 2
    assert "hospital numbers" in capsys.readouterr().err
    assert not (home.root / "processes.json").exists()


@pytest.mark.parametrize("name", ["study.toml", "study.sig", "bundle.json"])
@pytest.mark.parametrize("fault", ["pipe", "missing", "deep", "empty", "binary", "folder"])
def test_a_published_folder_with_a_broken_file_is_not_approved(tmp_path, capsys, name, fault):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    folder = published(tmp_path, study_for(home), coordinator)
    (folder / name).unlink()
    if fault == "pipe":
        os.mkfifo(folder / name)
    elif fault == "folder":
        (folder / name).mkdir()
    elif fault != "missing":
        content = {"deep": b"[" * 100_000, "empty": b"", "binary": bytes(range(256))}[fault]
        (folder / name).write_bytes(content)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    words = ["approve", folder, "--home", home.root, "--passphrase-file", tmp_path / "word"]
    words += ["--base", tmp_path / "base.safetensors", "--yes"]
    error = refused(capsys, *words)
    assert str(tmp_path) not in json.dumps(error)
    assert home.studies() == []


@pytest.mark.parametrize(("place", "words"), [("typed_wrong", "no such"), ("word", "a file")])
def test_what_is_no_published_folder_is_said_to_be_none(tmp_path, capsys, place, words):
    home = joined(a_home(tmp_path), Coordinator())
    (tmp_path / "word").write_bytes(PASSPHRASE)
    given = ["approve", tmp_path / place, "--home", home.root, "--yes"]
    assert refused(capsys, *given, "--passphrase-file", tmp_path / "word")["found"].startswith(
        words
    )


def test_base_weights_of_another_hash_are_not_approved(tmp_path, capsys):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    folder = published(tmp_path, study_for(home), coordinator)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    (tmp_path / "other").write_bytes(b"other weights")
    os.mkfifo(tmp_path / "pipe")
    words = ["approve", folder, "--home", home.root, "--passphrase-file", tmp_path / "word"]
    for base in ("other", "pipe", "nowhere"):
        assert refused(capsys, *words, "--base", tmp_path / base, "--yes")["code"] == "wrong_base"
    assert home.studies() == []


def test_a_study_whose_replies_leave_as_training_ends_is_not_approved(tmp_path, capsys):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    (tmp_path / "word").write_bytes(PASSPHRASE)

    def words(study):
        folder = published(tmp_path, study, coordinator)
        given = ["approve", folder, "--home", home.root, "--passphrase-file", tmp_path / "word"]
        return [str(word) for word in (*given, "--base", tmp_path / "base.safetensors", "--yes")]

    at_once = study_for(home, outbound={"reply_after_s": 0})
    assert refused(capsys, *words(at_once))["code"] == "no_slot"
    assert home.studies() == []
    assert run_app(app, words(study_for(home, outbound={"reply_after_s": 45}))) == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "45 s from the round's beginning" in page
    with Ledger.open(home) as ledger:
        allowed = ledger.budget()["allowed"]
    assert f"before it {allowed} of {allowed} left" in page


def test_an_approval_is_taken_back_by_the_start_of_its_hash_if_there_is_one(tmp_path, capsys):
    site = a_site(tmp_path, Coordinator())
    site.open.close()
    (tmp_path / "word").write_bytes(PASSPHRASE)
    rest = ["--home", site.home.root, "--passphrase-file", tmp_path / "word"]
    for unknown in ("", "f" * 70):
        assert refused(capsys, "withdraw", unknown, *rest)["code"] == "unknown_study"
    words = [str(word) for word in ("withdraw", site.study.hash[:10], *rest, "--json")]
    assert run_app(app, words) == 0
    assert json.loads(capsys.readouterr().out) == {"withdrawn": site.study.hash}
    with Ledger.open(site.home) as ledger:
        assert not ledger.is_standing(site.study.hash)


def test_a_study_is_approved_once_and_a_no_signs_nothing(tmp_path, capsys, monkeypatch):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    folder = published(tmp_path, study_for(home), coordinator)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    given = ["approve", folder, "--home", home.root, "--passphrase-file", tmp_path / "word"]
    words = [str(word) for word in (*given, "--base", tmp_path / "base.safetensors")]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run_app(app, words) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("not approved, nothing signed\n")
    assert "interrupted" not in printed.err
    assert home.studies() == []
    assert run_app(app, [*words, "--yes"]) == 0
    capsys.readouterr()
    error = refused(capsys, *words, "--yes")
    assert error["code"] == "already_approved"
    assert "its approval stands" in error["next"]


def test_a_participant_that_the_table_does_not_know_is_not_excluded(tmp_path, capsys):
    home = a_home(tmp_path)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    (tmp_path / "table.tsv").write_text("participant_id\thospital_number\nsub-001\t1\n")
    rest = ["--home", home.root, "--passphrase-file", tmp_path / "word"]
    error = refused(capsys, "exclude", "sub-01", *rest, "--identities", tmp_path / "table.tsv")
    assert error["code"] == "no_identity"
    assert "correct the participant's name" in error["next"]


def test_a_limit_of_the_policy_is_named(tmp_path, capsys):
    line = words(tmp_path / "home", "north", tmp_path / "word")
    line[line.index("--bytes-per-round") + 1] = "10"
    error = refused(capsys, *line[:-1])
    assert (error["found"], error["allowed"]) == (
        "bytes_per_round: 10",
        "greater than or equal to 1024",
    )


def test_the_name_alone_shows_what_there_is_and_no_empty_error(capsys):
    assert run_app(app, []) == 2
    printed = capsys.readouterr()
    assert "approve" in printed.out
    assert printed.err == ""


def test_a_coordinator_that_is_distrusted_is_not_joined_again(tmp_path, capsys):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    aloud = coordinator.study_key.public.fingerprint
    rest = ["--home", str(home.root), "--passphrase-file", str(tmp_path / "word")]
    assert run_app(app, ["distrust", "f" * 64, *rest]) == 0
    assert "still trusts" in capsys.readouterr().out
    assert run_app(app, ["distrust", aloud, *rest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["this_sites_coordinator"] is True
    (tmp_path / "answer.json").write_bytes((home.root / "answer.json").read_bytes())
    words = ["join", tmp_path / "answer.json", "--home", home.root, "--coordinator", aloud]
    assert "distrusts" in refused(capsys, *words)["found"]
