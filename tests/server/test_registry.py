"""Enrolment and revocation: one name, one key, one hospital."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from honest_sites import NOW_S, Site

from oncofed_common.errors import IdentityRefusal, Refusal, SystemRefusal
from oncofed_common.identity import SigningKey
from oncofed_server.home import (
    init_home,
    load_study_key,
    load_task_key,
    renew_task_certificate,
)
from oncofed_server.registry import enrol, revoke
from oncofed_server.roster import parse_roster, read_roster


@pytest.fixture
def home(tmp_path):
    make(tmp_path / "home")
    return tmp_path / "home"


def make(path, **changes):
    settings = {
        "name": "office",
        "address": "fed.example.org:443",
        "passphrase": b"a long passphrase",
        "task_key_days": 30,
        "now_s": NOW_S,
    }
    return init_home(path, **{**settings, **changes})


def ask(home, signed, name="request.json"):
    path = home.parent / name
    path.write_text(signed if isinstance(signed, str) else json.dumps(signed))
    return enrol(home, path, address="fed.example.org:443", ca_pem="CA", now_s=NOW_S)


def line_of(key) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_a_site_gets_the_answer_that_join_needs_and_is_in_the_roster(home):
    site = Site(name="north")
    answer = ask(home, site.request())
    roster = read_roster(home)
    assert answer == {
        "site": "north",
        "approver_key": site.approver.public.hex,
        "address": "fed.example.org:443",
        "ca_pem": "CA",
        "coordinator_key": load_study_key(home, passphrase=b"a long passphrase").public.hex,
    }
    member = roster.member("north")
    assert member.fingerprint == site.approver.public.fingerprint
    assert member.trainer == site.trainer.public
    assert member.node_key == site.node_line()  # in its one spelling, without the comment
    assert (member.declared_patients, member.virtual, member.revoked) == (20, 1, 0)


def test_the_task_key_is_certified_by_the_study_key_for_its_days_only(home):
    roster = read_roster(home)
    assert roster.task_key(now_s=NOW_S + 30 * 86_400 - 1) == load_task_key(home).public
    with pytest.raises(IdentityRefusal):
        roster.task_key(now_s=NOW_S + 30 * 86_400)


def test_renewing_keeps_the_task_key_and_its_epoch(home):
    key = load_study_key(home, passphrase=b"a long passphrase")
    renew_task_certificate(home, key, until_s=NOW_S + 50 * 86_400 + 1, now_s=NOW_S + 86_400)
    roster = read_roster(home)
    assert roster.task_key(now_s=NOW_S + 50 * 86_400) == load_task_key(home).public
    assert roster.coordinator.task_certificate["epoch"] == 1
    before = roster.coordinator.task_certificate
    renew_task_certificate(home, key, until_s=NOW_S + 5, now_s=NOW_S + 86_400)
    assert read_roster(home).coordinator.task_certificate == before
    with pytest.raises(IdentityRefusal) as refused:
        renew_task_certificate(home, SigningKey.generate(), until_s=NOW_S * 2, now_s=NOW_S)
    assert refused.value.code == "wrong_key"


def test_private_keys_are_readable_by_their_owner_alone(home):
    for name in ("study.pem", "task.pem"):
        assert stat.S_IMODE((home / "keys" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
    assert b"ENCRYPTED" in (home / "keys/study.pem").read_bytes()


def test_a_home_is_never_made_over_another(home):
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(SystemRefusal) as refused:
        make(home)
    assert refused.value.code == "home_exists"
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "The Office"}, "bad_name"),
        ({"name": ""}, "bad_name"),
        ({"address": "fed.example.org"}, "bad_address"),
        ({"address": "a:99999"}, "bad_address"),
    ],
)
def test_a_bad_name_or_address_leaves_nothing_behind(tmp_path, change, code):
    with pytest.raises(SystemRefusal) as refused:
        make(tmp_path / "new", **change)
    assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_second_site_of_one_name_is_refused_also_after_revocation(home):
    ask(home, Site(name="north").request())
    revoke(home, "north")
    with pytest.raises(IdentityRefusal) as refused:
        ask(home, Site(name="north").request())
    assert refused.value.code == "duplicate_name"
    assert refused.value.exit_code == 2


def test_the_same_request_gets_the_same_answer_again_and_another_or_revoked_one_does_not(home):
    site = Site(name="north")
    answer = ask(home, site.request())
    before = (home / "roster.json").read_bytes()
    assert ask(home, site.request()) == answer
    assert (home / "roster.json").read_bytes() == before
    with pytest.raises(IdentityRefusal):
        ask(home, Site(name="north", approver=site.approver).request())
    revoke(home, "north")
    with pytest.raises(IdentityRefusal) as refused:
        ask(home, site.request())
    assert refused.value.code == "duplicate_name"


def test_a_request_through_a_pipe_is_not_waited_for(home, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SystemRefusal) as refused:
        enrol(home, tmp_path / "pipe", address="fed.example.org:443", ca_pem="CA", now_s=NOW_S)
    assert refused.value.code == "unreadable"


def test_a_key_that_is_in_the_roster_already_is_refused_whatever_it_is_for(home):
    first, coordinator = Site(name="north"), load_task_key(home)
    ask(home, first.request())
    before = (home / "roster.json").read_bytes()
    for site in (
        Site(name="south", approver=first.approver),
        Site(name="south", trainer=first.trainer),
        Site(name="south", trainer=first.approver),
        Site(name="south", node=first.node),
        Site(name="south", trainer=coordinator),
    ):
        with pytest.raises(IdentityRefusal) as refused:
            ask(home, site.request())
        assert refused.value.code == "duplicate_key"
    assert (home / "roster.json").read_bytes() == before


def test_a_request_changed_after_signing_is_refused(home):
    signed = Site(name="north").request()
    for change in ({"declared_patients": 21}, {"site": "south"}, {"virtual": 0}):
        with pytest.raises(IdentityRefusal) as refused:
            ask(home, {**signed, "request": signed["request"] | change})
        assert refused.value.code in {"bad_signature", "bad_request"}


@pytest.mark.parametrize(
    "change",
    [
        {"site": "North"},
        {"site": "../north"},
        {"declared_patients": 0},
        {"declared_patients": "20"},
        {"virtual": 2},
        {"note": "hello"},
        {"node_key": "ssh-ed25519 AAAA"},
        {"node_key": "ssh-unheard-of AAAA"},
        {"node_key": line_of(ed25519.Ed25519PrivateKey.generate())},
        {"node_key": line_of(ec.generate_private_key(ec.SECP256R1()))},
        {"node_key": "ecdsa-sha2-nistp384 ÄÖÜ"},
    ],
)
def test_a_signed_request_with_faulty_fields_is_refused(home, change):
    with pytest.raises(IdentityRefusal) as refused:
        ask(home, Site(name="north").request(**change))
    assert refused.value.code == "bad_request"
    assert read_roster(home).sites == ()


def test_a_trainer_certificate_of_another_site_approver_or_time_is_refused(home):
    site, other = Site(name="north"), Site(name="south")
    expired = site.certificate().as_dict()
    for certificate, code in (
        (other.certificate().as_dict(), "bad_certificate"),
        (Site(name="east", approver=site.approver).certificate().as_dict(), "bad_request"),
        (expired | {"not_after_s": NOW_S}, "bad_certificate"),
        ({"holder": "north"}, "bad_certificate"),
    ):
        with pytest.raises(IdentityRefusal) as refused:
            ask(home, site.request(trainer_certificate=certificate))
        assert refused.value.code == code


@pytest.mark.parametrize("text", ["", "[]", "{", '{"request": 1}', "x" * 70_000, "[" * 10_000])
def test_a_file_that_is_no_request_is_refused_in_words(home, text):
    with pytest.raises(Refusal) as refused:
        ask(home, text)
    assert refused.value.exit_code == 2


def test_a_revoked_site_stays_in_the_roster_and_the_epoch_only_rises(home):
    for name in ("north", "south"):
        ask(home, Site(name=name).request())
    assert revoke(home, "north").revocation_epoch == 1
    assert revoke(home, "south").revocation_epoch == 2
    assert [member.revoked for member in read_roster(home).sites] == [1, 1]
    for name, code in (("north", "already_revoked"), ("west", "unknown_site")):
        with pytest.raises(IdentityRefusal) as refused:
            revoke(home, name)
        assert refused.value.code == code
    assert read_roster(home).revocation_epoch == 2


def test_a_roster_with_two_sites_of_one_key_is_refused(home):
    ask(home, Site(name="north").request())
    fields = json.loads((home / "roster.json").read_bytes())
    twin = fields["sites"][0] | {"site": "south"}
    with pytest.raises(SystemRefusal) as refused:
        parse_roster(fields | {"sites": [*fields["sites"], twin]})
    assert refused.value.code == "bad_roster"


@pytest.mark.parametrize("text", ["{}", "[]", '{"sites": 3}', "rust"])
def test_a_roster_that_is_not_one_is_refused(home, text):
    (home / "roster.json").write_text(text)
    with pytest.raises(SystemRefusal):
        read_roster(home)


def test_a_folder_that_is_no_home_is_refused(tmp_path):
    with pytest.raises(SystemRefusal) as refused:
        read_roster(tmp_path)
    assert refused.value.code == "no_home"


def renewed(site, *, epoch=2, **changes):
    """The same hospital with a new trainer and node key."""
    node = ec.generate_private_key(ec.SECP384R1())
    again = replace(site, trainer=SigningKey.generate(), node=node, epoch=epoch)
    return again, again.request(**changes)


def test_a_site_renews_its_keys_and_no_other_site_notices(home):
    north, south = Site(name="north"), Site(name="south")
    answer = ask(home, north.request())
    ask(home, south.request())
    before = read_roster(home)
    again, request = renewed(north)
    assert ask(home, request) == answer  # it need not join again
    after = read_roster(home)
    assert after.member("north").trainer == again.trainer.public
    assert after.member("north").node_key == again.node_line()
    assert after.member("north").fingerprint == before.member("north").fingerprint
    assert after.member("south") == before.member("south")
    assert [m.site for m in after.sites] == ["north", "south"]
    assert after.revocation_epoch == before.revocation_epoch
    assert ask(home, request) == answer  # its answer may have been lost


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("an older epoch", "duplicate_name"),
        ("the same epoch", "duplicate_name"),
        ("another approver", "duplicate_name"),
        ("another size", "duplicate_name"),
        ("the old trainer key", "duplicate_name"),
        ("the key of another site", "duplicate_key"),
        ("revoked", "duplicate_name"),
    ],
)
def test_keys_are_renewed_by_the_same_approver_with_a_higher_epoch_alone(home, what, code):
    """A request that was sent before, perhaps kept by a thief of the old keys, brings nothing back."""
    north, south = Site(name="north"), Site(name="south")
    ask(home, north.request())
    ask(home, south.request())
    again, request = renewed(north)
    if what == "an older epoch":
        ask(home, renewed(north, epoch=3)[1])
    elif what == "the same epoch":
        request = renewed(north, epoch=1)[1]
    elif what == "another approver":
        request = replace(again, approver=SigningKey.generate()).request()
    elif what == "another size":
        request = again.request(declared_patients=30)
    elif what == "the old trainer key":
        request = replace(again, trainer=north.trainer).request()
    elif what == "the key of another site":
        request = replace(again, trainer=south.trainer).request()
    else:
        revoke(home, "north")
    before = read_roster(home)
    with pytest.raises(IdentityRefusal) as refused:
        ask(home, request)
    assert refused.value.code == code
    assert read_roster(home) == before
