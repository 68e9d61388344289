"""``oncofed-coordinator`` as its operator uses it: what it prints, what it refuses, how it exits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
from honest_sites import (
    Site,
    drafted,
    enrolled_home,
    federation,
)

from oncofed_server.draft import study_toml

WEIGHTS = {"north": 3, "south": 5}
COMMANDS = (
    "init",
    "enrol",
    "revoke",
    "draft",
    "statement",
    "publish",
    "start",
    "run",
    "resume",
    "stop",
    "status",
    "verify",
)


def make_home(cli, tmp_path, passphrase):
    return cli(
        "init", "--home", tmp_path / "home", "--name", "office", "--address", "127.0.0.1:8443",
        "--passphrase-file", passphrase, "--json",
    )  # fmt: skip


def test_every_command_explains_itself(cli):
    code, text, _ = cli("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in text
        assert cli(command, "--help")[0] == 0


def test_a_home_is_made_sites_enrol_and_a_study_is_published_with_its_price(
    cli, tmp_path, passphrase
):
    code, made, _ = make_home(cli, tmp_path, passphrase)
    assert code == 0
    home = tmp_path / "home"
    for name in WEIGHTS:
        (tmp_path / f"{name}.json").write_text(
            json.dumps(Site(name=name, now_s=int(time.time())).request())
        )
        code, printed, _ = cli(
            "enrol", tmp_path / f"{name}.json", "--home", home, "--out", tmp_path / f"{name}.answer",
            "--json",
        )  # fmt: skip
        assert code == 0
        answer = json.loads((tmp_path / f"{name}.answer").read_text())
        assert answer["ca_pem"].startswith("-----BEGIN CERTIFICATE-----")
        assert answer["address"] == "127.0.0.1:8443"
        assert printed["coordinator_fingerprint"] == made["fingerprint"]
    enrolled_home(tmp_path / "elsewhere", ())  # for its base weights
    shutil.copy(tmp_path / "elsewhere/base.safetensors", tmp_path)
    study = drafted(tmp_path, WEIGHTS)
    (tmp_path / "study.toml").write_text(study_toml(study))
    words = ("publish", tmp_path / "study.toml", "--home", home, "--passphrase-file", passphrase)
    code, printed, _ = cli(*words, "--base", tmp_path / "base.safetensors", "--json")
    assert code == 0
    assert printed["published"] == study.hash
    assert printed["epsilon"] == study.privacy.epsilon
    assert (home / "studies" / study.hash / "study.sig").is_file()
    code, text, _ = cli(*words, "--base", tmp_path / "base.safetensors")
    assert code == 0
    assert f"{study.privacy.epsilon}" in text
    code, found, _ = cli("status", "--home", home, "--json")
    assert [site["name"] for site in found["sites"]] == list(WEIGHTS)
    assert found["studies"] == [study.hash]
    assert found["not_run"] == [{"study_hash": study.hash, "title": study.study.title}]
    text = cli("status", "--home", home)[1]
    assert study.study.title in text
    assert "…" not in text
    code, _, err = cli(*words, "--json")
    assert (code, err.count("\n")) == (2, 1)
    assert "--base" in err


def test_a_study_key_needs_as_long_a_passphrase_as_an_approvers(cli, tmp_path, passphrase):
    passphrase.write_text("short")
    code, printed, _ = make_home(cli, tmp_path, passphrase)
    assert (code, printed["error"]["code"]) == (2, "weak_passphrase")
    assert not (tmp_path / "home").exists()


def test_a_site_whose_answer_cannot_be_written_is_not_enrolled(cli, tmp_path, passphrase):
    make_home(cli, tmp_path, passphrase)
    home, request, folder = (tmp_path / name for name in ("home", "request.json", "folder"))
    request.write_text(json.dumps(Site(name="north", now_s=int(time.time())).request()))
    folder.mkdir()
    assert cli("enrol", request, "--home", home, "--out", folder, "--json")[0] == 2
    assert cli("status", "--home", home, "--json")[1]["sites"] == []
    assert cli("enrol", request, "--home", home, "--out", folder / "answer", "--json")[0] == 0


def test_revoking_is_seen_in_the_status(cli, tmp_path):
    enrolled_home(tmp_path, tuple(WEIGHTS))
    assert cli("revoke", "north", "--home", tmp_path / "home", "--json")[1] == {
        "revoked": "north",
        "revocation_epoch": 1,
    }
    found = cli("status", "--home", tmp_path / "home", "--json")[1]
    assert [site["revoked"] for site in found["sites"]] == [True, False]
    assert "north" in cli("status", "--home", tmp_path / "home")[1]


@pytest.mark.parametrize(
    "words",
    [
        (
            "init",
            "--home",
            "HOME",
            "--name",
            "x",
            "--address",
            "a:1",
            "--passphrase-file",
            "NOWHERE",
        ),
        ("enrol", "NOWHERE", "--home", "HOME", "--out", "OUT"),
        ("enrol", "NOWHERE", "--home", "NOWHERE", "--out", "OUT"),
        ("revoke", "west", "--home", "HOME"),
        ("publish",),
        ("draft",),
        ("draft", "NOWHERE", "--home", "HOME", "--out", "OUT"),
        ("draft", "PASS", "--home", "HOME", "--out", "OUT"),
        ("draft", "PASS", "--home", "HOME", "--out", "PASS"),
        ("publish", "NOWHERE", "--home", "HOME", "--passphrase-file", "PASS"),
        ("run", "abc", "--home", "HOME"),
        ("resume", "abc", "--home", "HOME"),
        ("stop", "abc", "--home", "HOME"),
        ("status", "abc", "--home", "HOME"),
        ("status", "--home", "NOWHERE"),
        ("start", "--home", "NOWHERE"),
        ("verify", "NOWHERE"),
        ("verify", "HOME"),
        ("verify", "NOWHERE", "--trust", "NOWHERE"),
        ("unknown",),
        ("status", "--no-such-option"),
    ],
)
def test_bad_input_gets_one_line_exit_2_and_its_error_as_json(cli, tmp_path, passphrase, words):
    enrolled_home(tmp_path, tuple(WEIGHTS))
    places = {"HOME": "home", "NOWHERE": "nowhere", "OUT": "out", "PASS": "passphrase"}
    before = sorted(tmp_path.rglob("*"))
    named = [str(tmp_path / places[word]) if word in places else word for word in words]
    code, printed, err = cli(*named, "--json")
    assert code == 2
    assert err.startswith("oncofed: ")
    assert err.count("\n") == 1
    assert "allowed: " in err
    assert "next: " in err
    assert set(printed["error"]) == {"code", "found", "allowed", "next"}
    assert str(tmp_path) not in err
    made = set(tmp_path.rglob("*")) - set(before)
    assert {path.name for path in made} <= {"roster.lock"}


def test_a_study_is_drafted_from_the_template_and_published_with_no_hand_on_it(
    cli, tmp_path, passphrase
):
    make_home(cli, tmp_path, passphrase)
    home, settings, study = (tmp_path / name for name in ("home", "settings.toml", "study.toml"))
    for name in ("north", "south", "west"):
        request = Site(name=name, virtual=False, now_s=int(time.time())).request()
        (tmp_path / f"{name}.json").write_text(json.dumps(request))
        cli(
            "enrol", tmp_path / f"{name}.json", "--home", home, "--out", tmp_path / f"answer-{name}"
        )
    cli("revoke", "west", "--home", home)
    request = Site(name="virtual", now_s=int(time.time())).request()
    (tmp_path / "virtual.json").write_text(json.dumps(request))
    cli("enrol", tmp_path / "virtual.json", "--home", home, "--out", tmp_path / "answer-virtual")
    settings.write_text(cli("draft", "--template")[1])
    assert cli("draft", "--template", "--json")[1]["template"] == settings.read_text()
    words = ("draft", settings, "--home", home, "--json", "--out")
    assert cli(*words, study)[1]["error"]["found"] == "study.contact as the template has it"
    own = settings.read_text().replace("study-office@example.org", "the study office")
    own = own.replace("2026-0147", "2026-7")
    for wrong, more, code in (
        (re.sub(r"expires = .*", "expires = 2020-01-01", own), (), "expired"),
        (own, ("--site", "north", "--site", "virtual"), "virtual"),
    ):
        settings.write_text(wrong)
        assert cli(*words, study, *more)[1]["error"]["code"] == code
        assert not study.exists()
    settings.write_text(own)
    code, drafted_now, _ = cli(*words, study, "--site", "north", "--site", "south")
    assert (code, drafted_now["sites"]) == (0, ["north", "south"])
    assert drafted_now["epsilon"] <= 4.0
    code, printed, _ = cli(
        "publish", study, "--home", home, "--passphrase-file", passphrase, "--json"
    )
    assert (code, printed["published"]) == (0, drafted_now["hash"])
    before = study.read_text()
    code, printed, _ = cli(*words, study)
    assert (code, printed["error"]["code"], study.read_text()) == (2, "out_exists", before)
    assert cli(*words, tmp_path / "other", "--site", "north")[1]["error"]["code"] == "study"
    code, printed, _ = cli(
        "publish", settings, "--home", home, "--passphrase-file", passphrase, "--json"
    )
    assert (code, "draft" in printed["error"]["next"]) == (2, True)


def test_a_tampered_release_exits_1_and_names_the_file(cli, tmp_path):
    fed = federation(tmp_path, WEIGHTS)
    outcome = fed.conduct()
    words = ("verify", outcome.release, "--audit", outcome.audit, "--base", fed.base)
    assert cli(*words)[::2] == (0, "")
    path = outcome.release / "study.toml"
    path.write_bytes(path.read_bytes().replace(b"A study", b"a study"))
    code, verdict, err = cli(*words, "--json")
    assert code == 1
    assert verdict["first_fault"] == {"path": "study.toml", "check": "digest"}
    assert verdict["error"]["code"] == "not_verified"
    assert "study.toml: digest" in verdict["error"]["found"]
    assert in_one_line(err)
    code, text, again = cli(*words)
    assert (code, "study.toml: digest" in text, again) == (1, True, err)


def in_one_line(err):
    parts = ("oncofed: ", "; allowed: ", "; next: ")
    return err.count("\n") == 1 and [err.count(part) for part in parts] == [1, 1, 1]


def test_a_foreign_file_in_a_release_is_named_in_the_verdict_and_in_no_error(cli, tmp_path):
    outcome = federation(tmp_path, WEIGHTS).conduct()
    (outcome.release / "Jane\nDoe.txt").write_text("")
    code, verdict, err = cli("verify", outcome.release, "--json")
    assert (code, verdict["first_fault"]["path"]) == (1, "Jane\nDoe.txt")
    assert in_one_line(err)
    assert "Jane" not in err + verdict["error"]["found"]
    code, text, again = cli("verify", outcome.release)
    assert (code, "Doe.txt: unlisted" in in_a_line(text), again) == (1, True, err)


def test_a_trust_file_makes_the_verdict_full(cli, tmp_path):
    fed = federation(tmp_path, WEIGHTS)
    outcome = fed.conduct()
    found = cli("status", "--home", fed.home, "--json")[1]
    trust = {
        "coordinator": found["fingerprint"],
        "sites": {site["name"]: site["fingerprint"] for site in found["sites"]},
    }
    (tmp_path / "trust.json").write_text(json.dumps(trust))
    verdict = cli("verify", outcome.release, "--trust", tmp_path / "trust.json", "--json")[1]
    assert (verdict["ok"], verdict["trust"], verdict["unproven"]) == (True, "full", [])
    assert cli("verify", outcome.release, "--json")[1]["trust"] == "integrity only"
    assert "not proven coordinator, north" in in_a_line(cli("verify", outcome.release)[1])
    (tmp_path / "trust.json").write_text(json.dumps(trust | {"coordinator": "f" * 64}))
    code, text, _ = cli("verify", outcome.release, "--trust", tmp_path / "trust.json")
    assert code == 1
    assert "another key for the coordinator than the trust file" in in_a_line(text)
    assert "not looked at before the first fault" in in_a_line(text)


def in_a_line(text):
    """A table's words without its lines."""
    return " ".join(re.sub("[│─╭╮╰╯┌┐└┘├┤]", " ", text).split())


def test_the_coordinator_loads_neither_torch_nor_anything_that_reads_a_scan(tmp_path):
    script = (
        "import sys, pkgutil, importlib, oncofed_server\n"
        "for part in pkgutil.iter_modules(oncofed_server.__path__):\n"
        "    importlib.import_module('oncofed_server.' + part.name)\n"
        "print([name for name in ('torch', 'monai', 'nibabel', 'opacus') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
