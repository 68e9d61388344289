"""A run whose files were damaged, or of which half came back from a backup: named, and nothing released."""

from __future__ import annotations

import shutil

import pytest
from honest_sites import FakeClock, HonestSites, silent
from round_checks import WEIGHTS, record

from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import SigningKey
from oncofed_server.overview import overview
from oncofed_server.retention import discard, ended_before
from oncofed_server.rounds import finish
from oncofed_server.runs import describe, open_run, request_stop, resolve_run


def interrupted(fed, *, number):
    """Its loop ends when one reply of that round is stored."""

    class Dying(HonestSites):
        def poll(self):
            arrived = super().poll()
            if any((fed.folder / f"audit/rounds/{number:04d}").glob("*.reply")):
                raise OSError("gone")
            return arrived[:1] if self.sent[-1:] and self.sent[-1][1] == number else arrived

    with pytest.raises(OSError, match="gone"):
        fed.conduct(Dying(fed.sites))


@pytest.mark.parametrize("number", [1, 2])
def test_a_stored_reply_whose_task_was_lost_is_not_thrown_out_of_the_sum(fed, number):
    """Nor is its site called revoked: no crash leaves that, but half a backup."""
    interrupted(fed, number=number)
    (reply,) = (fed.folder / f"audit/rounds/{number:04d}").glob("*.reply")
    task = fed.folder / f"tasks/{number:04d}/{reply.stem}.task"
    kept = task.read_bytes()
    task.unlink()
    with pytest.raises(SystemRefusal, match="no task that it answers") as refused:
        fed.conduct()
    assert refused.value.code == "task_conflict"
    assert not task.exists(), "a restored folder would have two"
    task.write_bytes(kept)
    assert fed.conduct().status == "complete"


def test_a_task_key_that_is_not_the_certified_one_signs_nothing(fed):
    interrupted(fed, number=2)
    path = fed.home / "keys/task.pem"
    kept = path.read_bytes()
    path.unlink()
    SigningKey.generate().save(path, passphrase=None)
    for work in (fed.conduct, lambda: finish(fed.home, fed.run, clock=FakeClock())):
        with pytest.raises(SystemRefusal) as refused:
            work()
        assert refused.value.code == "other_task_key"
    assert not (fed.folder / "release").exists()
    path.write_bytes(kept)
    assert fed.conduct().status == "complete"


@pytest.mark.parametrize("number", [1, 2])
def test_a_site_whose_task_was_lost_before_it_answered_gets_another(fed, number):
    """It is not called revoked."""
    interrupted(fed, number=number)
    (reply,) = (fed.folder / f"audit/rounds/{number:04d}").glob("*.reply")
    silent = next(site for site in WEIGHTS if site != reply.stem)
    (fed.folder / f"tasks/{number:04d}/{silent}.task").unlink()
    sites = HonestSites(fed.sites)
    assert fed.conduct(sites).status == "partial"
    asked = [site for site, at, _ in sites.sent if at == number]
    assert silent in asked
    assert reply.stem not in asked
    outcome, reason, code = record(fed, number)[silent]  # it had trained on the task before
    assert (outcome, code) == ("left_out", "task_conflict")
    assert reason != "revoked"


def put(path, data):
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def cut(data):
    return data[:100]


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def gone(data):
    return None


@pytest.mark.parametrize("damage", [cut, flipped, gone])
def test_a_stored_reply_that_was_damaged_later_is_named_and_nothing_is_released(fed, damage):
    interrupted(fed, number=3)
    reply = fed.folder / "audit/rounds/0001/north.reply"
    whole = reply.read_bytes()
    put(reply, damage(whole))
    with pytest.raises(SystemRefusal, match="reply of north in round 1") as refused:
        fed.conduct()
    assert refused.value.code == "replies_missing"
    assert not (fed.folder / "release").exists()
    reply.write_bytes(whole)
    assert fed.conduct().status == "complete"


def signed_otherwise(data):
    return data.replace(b'"signature":"', b'"signature":"00')[:-4] + b'"}'


@pytest.mark.parametrize("damage", [cut, flipped, gone, signed_otherwise])
def test_a_record_that_was_damaged_later_is_named_and_nothing_is_released(fed, damage):
    interrupted(fed, number=3)
    path = fed.folder / "rounds/0001/participation.json"
    whole = path.read_bytes()
    put(path, damage(whole))
    with pytest.raises(SystemRefusal, match="record of round 1") as refused:
        fed.conduct()
    assert refused.value.code == "record_damaged"
    assert not (fed.folder / "release").exists()
    path.write_bytes(whole)
    assert fed.conduct().status == "complete"


@pytest.mark.parametrize("site", ["north", "west"])
def test_a_task_that_was_lost_after_its_round_is_named_and_nothing_is_released(fed, site):
    """Also that of a site which never answered it: verify asks for it."""
    fed.conduct(HonestSites(fed.sites, script={("west", 1): silent}))
    shutil.rmtree(fed.folder / "release")
    task = fed.folder / f"tasks/0001/{site}.task"
    whole = task.read_bytes()
    task.unlink()
    with pytest.raises(SystemRefusal, match=f"task of {site} in round 1") as refused:
        fed.conduct()
    assert refused.value.code == "task_conflict"
    task.write_bytes(whole)
    assert fed.conduct().status == "partial"


def test_a_record_of_another_life_of_the_run_is_not_released_with_the_weights_of_this_one(fed):
    """Signed as well as the other, and following from the same rounds: half a backup."""
    interrupted(fed, number=3)
    kept = fed.folder.with_name("kept")
    shutil.copytree(fed.folder, kept)
    (reply,) = (fed.folder / "audit/rounds/0003").glob("*.reply")
    late = next(site for site in WEIGHTS if site != reply.stem)
    path = fed.folder / "rounds/0003/participation.json"
    fed.conduct()
    other = path.read_bytes()
    shutil.rmtree(fed.folder)
    kept.rename(fed.folder)
    assert fed.conduct(HonestSites(fed.sites, script={(late, 3): silent})).status == "partial"
    shutil.rmtree(fed.folder / "release")
    own = path.read_bytes()
    path.write_bytes(other)
    with pytest.raises(SystemRefusal, match="record of round 3") as refused:
        fed.conduct()
    assert refused.value.code == "record_damaged"
    path.write_bytes(own)
    assert fed.conduct().status == "partial"


def test_what_cannot_be_read_of_a_home_hides_nothing_else(fed, cli):
    """A record that is a folder, a study that is none: the rest is shown."""
    interrupted(fed, number=2)
    path = fed.folder / "rounds/0001/participation.json"
    whole = path.read_bytes()
    path.unlink()
    path.mkdir()
    study = next((fed.home / "studies").iterdir())
    for name in ("first.safetensors", "study.toml"):
        found = overview(fed.home)
        assert [run["status"] for run in found["runs"]] == ["unreadable"]
        assert ended_before(fed.home, days=0, now_s=2**40) == []
        (study / name).unlink()
    path.rmdir()
    path.write_bytes(whole)
    found = overview(fed.home)
    assert [one["title"] for one in found["not_run"]] == ["(unreadable)"]
    code, text, _ = cli("status", "--home", fed.home)
    assert (code, "unreadable" in text) == (0, True)


def test_a_run_whose_card_cannot_be_read_stands_in_nobodys_way(fed):
    other = fed.home / "runs" / ("b" * 32)
    other.mkdir()
    (other / "run.json").write_bytes(b"")
    assert resolve_run(fed.home, fed.run[:6]) == fed.run
    assert fed.conduct().status == "complete"
    with pytest.raises(SystemRefusal):
        open_run(fed.home, other.name)

    shown = overview(fed.home)["runs"]
    assert [(run["run"], run["status"]) for run in shown] == [
        (fed.run, "complete"),
        (other.name, "unreadable"),
    ]
    with pytest.raises(SystemRefusal, match=f"card of run {other.name}"):
        describe(fed.home, other.name)


def test_an_empty_folder_in_the_place_of_a_release_is_none(fed):
    interrupted(fed, number=2)
    (fed.folder / "release").mkdir()
    assert describe(fed.home, fed.run)["status"] == "interrupted"
    request_stop(fed.home, fed.run)
    done = finish(fed.home, fed.run, clock=FakeClock())
    assert describe(fed.home, fed.run)["status"] == done.status == "partial"


@pytest.mark.parametrize("manifest", [b"{}", b'{"status":"running"}', b"", None])
def test_a_release_that_does_not_say_how_its_run_ended_is_neither_an_end_nor_none(fed, manifest):
    fed.conduct()
    path = fed.folder / "release/manifest.json"
    whole = path.read_bytes()
    if manifest is None:
        path.unlink()
    else:
        path.write_bytes(manifest)
    for work in (
        lambda: describe(fed.home, fed.run),
        lambda: request_stop(fed.home, fed.run),
        lambda: discard(fed.home, fed.run, audit=True),
        fed.conduct,
    ):
        with pytest.raises(SystemRefusal) as refused:
            work()
        assert refused.value.code == "unreadable"
    assert overview(fed.home)["runs"][0]["status"] == "unreadable"
    path.write_bytes(whole)
    assert describe(fed.home, fed.run)["status"] == "complete"
