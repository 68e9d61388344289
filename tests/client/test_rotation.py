"""New keys for a site: the approver's word, a higher epoch, and a coordinator that takes them in."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)
from site_builder import PASSPHRASE, a_home

from oncofed_client import rotation
from oncofed_client.__main__ import app
from oncofed_client.audit_trail import read_rows, trail
from oncofed_client.courier.node import make_node_key
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.rotation import rotate
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import SigningKey
from oncofed_common.processes import Mark, mark, save_marks
from oncofed_common.terminal import run_app
from oncofed_server.home import init_home
from oncofed_server.registry import enrol
from oncofed_server.roster import Member, read_roster


def files(home: Home) -> dict[str, bytes]:
    """All of the home, but for what tells a time."""
    return {str(p): p.read_bytes() for p in sorted(home.root.rglob("*")) if p.is_file()}


def enrolled(home: Home, office: Path) -> Member:
    """What the coordinator's roster says once it took the home's request."""
    if not office.exists():
        init_home(
            office,
            name="office",
            address="127.0.0.1:8443",
            passphrase=None,
            task_key_days=30,
            now_s=int(time.time()),
        )
    path = home.root / "enrolment.json"
    enrol(office, path, address="127.0.0.1:8443", ca_pem="a CA", now_s=int(time.time()))
    member = read_roster(office).member(home.site)
    assert member is not None
    return member


def node_line(home: Home) -> str:
    key = load_ssh_private_key((home.courier / "node_key").read_bytes(), password=None)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return public.decode()


def agrees(home: Home, member: Member) -> bool:
    """Whether the roster names the keys that the home has."""
    trainer = home.trainer_key().public
    certified = home.trainer_certificate()
    return (
        member.trainer == trainer
        and certified.subject == trainer.hex
        and certified.as_dict() == member.trainer_certificate
        and member.node_key == node_line(home)
        and member.fingerprint == home.approver.fingerprint
    )


def test_new_keys_are_those_that_the_coordinator_takes_in(tmp_path: Path) -> None:
    home, office = a_home(tmp_path), tmp_path / "office"
    before = enrolled(home, office)
    assert agrees(home, before)
    kept = {name: data for name, data in files(home).items() if "key" not in Path(name).name}
    fingerprint = rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
    assert not agrees(home, before)
    assert home.trainer_certificate().epoch == 2
    after = enrolled(home, office)
    assert agrees(home, after)
    assert after.trainer.fingerprint == fingerprint
    changed = {name for name, data in files(home).items() if kept.get(name, data) != data}
    told = {"certificate.json", "enrolment.json", "ledger.sqlite", "ledger-head.json"}
    assert {Path(name).name for name in changed} == told
    assert (home.trainer / "key.pem").stat().st_mode & 0o777 == 0o600


def test_a_rotation_that_died_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was cut, the next one ends with keys that go together."""
    home, office = a_home(tmp_path), tmp_path / "office"
    enrolled(home, office)
    for cut in ("write_private", "sync_folder", "write_request"):
        with monkeypatch.context() as patch:

            def dies(*_words: object, **_more: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(rotation, cut, dies)
            with pytest.raises(KeyboardInterrupt):
                rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
        rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
        assert agrees(home, enrolled(home, office)), cut
        Ledger.open(home).close()


def test_the_ledger_goes_on_under_the_new_key(tmp_path: Path) -> None:
    """As often as keys are renewed: each is a row that the old, the new and the approver's key signed."""
    home = a_home(tmp_path)
    for rotations in (1, 2):
        fingerprint = rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
        with Ledger.open(home) as ledger:
            assert ledger.head().sequence == 1 + rotations
        (*_, last) = trail(read_rows(home))
        assert (last["kind"], last["said"]["fingerprint"]) == ("key", fingerprint)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_rotation_that_died_beside_the_ledgers_row_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Behind the row the ledger knows a key that is not in place yet."""
    home, office = a_home(tmp_path), tmp_path / "office"
    enrolled(home, office)
    notes = Ledger.rotate

    def dies(ledger: Ledger, new: SigningKey, *, key: SigningKey) -> None:
        if moment == "after":
            notes(ledger, new, key=key)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "rotate", dies)
        with pytest.raises(KeyboardInterrupt):
            rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
    if moment == "after":
        with pytest.raises(SystemRefusal) as refused:
            Ledger.open(home)
        assert refused.value.code == "key_mismatch"
    rotate(home, passphrase=PASSPHRASE, node_key=make_node_key())
    assert agrees(home, enrolled(home, office))
    Ledger.open(home).close()


@pytest.mark.parametrize("why", ["running", "passphrase"])
def test_a_rotation_that_is_refused_changes_nothing(tmp_path: Path, why: str) -> None:
    home, passphrase = a_home(tmp_path), PASSPHRASE
    if why == "running":
        here = mark("trainer", os.getpid())
        assert isinstance(here, Mark)
        save_marks(home.root / "processes.json", [here])
    else:
        passphrase = b"another passphrase"
    before = files(home)
    with pytest.raises(OncofedError) as refused:
        rotate(home, passphrase=passphrase, node_key=make_node_key())
    assert isinstance(refused.value, SystemRefusal) == (why == "running")
    assert files(home) == before


def test_the_command_says_which_request_to_send(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = a_home(tmp_path)
    (tmp_path / "word").write_bytes(PASSPHRASE)
    line = ["rotate", "--home", str(home.root), "--passphrase-file", str(tmp_path / "word")]
    assert run_app(app, [*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["site"], said["epoch"]) == (home.site, 2)
    assert said["trainer_fingerprint"] == home.trainer_key().public.fingerprint
    assert Path(said["request"]).is_file()
