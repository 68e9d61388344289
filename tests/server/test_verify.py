"""Does a release prove its story? One changed byte is found and located, a forged story is told apart."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from honest_sites import HonestSites, Site, federation, refusing, silent

from oncofed_common.errors import ModelRefusal, SystemRefusal
from oncofed_common.identity import canonical, digest
from oncofed_common.tensors import pack_tensors, unpack_tensors
from oncofed_server.home import load_task_key
from oncofed_server.participation import parse_record, sign_record, spell
from oncofed_server.runlog import parse_log
from oncofed_server.verify import Fingerprints, read_fingerprints, verify

WEIGHTS = {"north": 3, "south": 5, "west": 1}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A finished run with a refusal and a silent site in it."""
    fed = federation(tmp_path_factory.mktemp("told"), WEIGHTS, training={"rounds": 2})
    script = {("west", 1): refusing("budget"), ("west", 2): silent}
    return fed, fed.conduct(HonestSites(fed.sites, script=script))


@pytest.fixture
def story(told, tmp_path):
    """A copy of its release and audit folder, and what is needed to check them."""
    fed, outcome = told
    shutil.copytree(outcome.release, tmp_path / "release")
    shutil.copytree(outcome.audit, tmp_path / "audit")
    return Story(fed, tmp_path / "release", tmp_path / "audit")


class Story:
    def __init__(self, fed, release: Path, audit: Path) -> None:
        self.fed, self.release, self.audit = fed, release, audit
        roster = json.loads((release / "roster.json").read_bytes())
        key = roster["coordinator"]["study_key"]
        self.trust = Fingerprints(
            coordinator=digest(bytes.fromhex(key)),
            sites={name: site.approver.public.fingerprint for name, site in fed.sites.items()},
        )

    def verify(self, **changes):
        settings = {"audit": self.audit, "trust": self.trust, "base": self.fed.base}
        return verify(self.release, **{**settings, **changes})

    def fault(self, **changes):
        verdict = self.verify(**changes)
        assert not verdict.ok
        return verdict.first_fault.path, verdict.first_fault.check

    def relist(self, *, sign: bool) -> None:
        """Make the manifest agree with the files again; with the task key also its signature."""
        manifest = json.loads((self.release / "manifest.json").read_bytes())
        manifest["files"] = {
            path: digest((self.release / path).read_bytes()) for path in manifest["files"]
        }
        if sign:
            del manifest["signature"]
            manifest["signature"] = load_task_key(self.fed.home).sign("release", manifest)
        (self.release / "manifest.json").write_bytes(canonical(manifest))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_an_honest_release_holds_and_every_sum_is_recomputed(story):
    verdict = story.verify()
    assert verdict.as_dict() == {
        "ok": True,
        "trust": "full",
        "first_fault": None,
        "unproven": [],
        "status": "partial",
        "checked": {"files": 7, "rounds": 2, "replies": 5, "sums": 2},
    }


def test_without_fingerprints_it_says_integrity_only(story):
    verdict = story.verify(trust=None)
    assert verdict.ok
    assert verdict.trust == "integrity only"
    assert verdict.unproven == ("coordinator", "north", "south", "west")
    some = Fingerprints(coordinator=story.trust.coordinator, sites={})
    assert story.verify(trust=some).trust == "integrity only"
    assert story.verify(trust=some).unproven == ("north", "south", "west")


def test_without_the_audit_folder_no_sum_is_claimed(story):
    assert story.verify(audit=None).sums == 0
    assert story.verify(audit=None, base=None).ok


FILES = (
    "weights.safetensors",
    "study.toml",
    "study.sig",
    "roster.json",
    "log.jsonl",
    "rounds/0001/participation.json",
    "rounds/0002/participation.json",
)


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("place", [0, 0.3, 0.7, -1])
def test_one_changed_byte_is_found_in_its_file(story, path, place):
    size = (story.release / path).stat().st_size
    flip(story.release / path, int(place * size) if place != -1 else -1)
    assert story.fault() == (path, "digest")
    assert story.fault(audit=None, trust=None, base=None) == (path, "digest")


def test_one_changed_byte_of_the_manifest_is_found_in_the_manifest(story):
    path = story.release / "manifest.json"
    for place in range(0, path.stat().st_size, 7):
        flip(path, place)
        assert story.fault()[0] == "manifest.json"
        flip(path, place)
    assert story.verify().ok


def test_a_manifest_of_more_rounds_than_memory_could_hold_is_found_at_once(story):
    path = story.release / "manifest.json"
    manifest = json.loads(path.read_bytes()) | {"rounds": 2**53 - 1}
    path.write_bytes(canonical(manifest))
    assert story.fault() == ("manifest.json", "form")


@pytest.mark.parametrize("path", FILES)
def test_a_changed_byte_is_found_though_the_manifest_was_made_to_agree(story, path):
    place = (story.release / path).stat().st_size // 2
    flip(story.release / path, place)
    story.relist(sign=False)
    assert story.fault()[0] in {path, "manifest.json"}


@pytest.mark.parametrize("part", ["reply", "sig", "task"])
@pytest.mark.parametrize("place", [0, 0.1, 0.5, 0.9, -1])
def test_one_changed_byte_in_the_audit_folder_is_found_in_its_file(story, part, place):
    path = f"rounds/0002/south.{part}"
    size = (story.audit / path).stat().st_size
    flip(story.audit / path, int(place * size) if place != -1 else -1)
    assert story.fault()[0] == path


def test_weights_that_are_not_the_sum_are_found_though_the_task_key_signed_them(story):
    """The coordinator itself cheats: it changes the weights, the record and the manifest."""
    path = story.release / "weights.safetensors"
    schema = story.fed.study.schema_terms
    weights = unpack_tensors(path.read_bytes(), schema=schema, dtype="float32")
    weights["norm.bias"] = np.nextafter(weights["norm.bias"], np.float32(9))
    path.write_bytes(pack_tensors(weights))
    last = story.release / "rounds/0002/participation.json"
    record = parse_record(last.read_bytes()).record
    forged = record.model_copy(update={"weights_after": digest(path.read_bytes())})
    last.write_bytes(spell(sign_record(forged, load_task_key(story.fed.home))))
    story.relist(sign=True)
    assert story.fault() == ("rounds/0002/participation.json", "sum")
    assert story.verify(audit=None).ok  # nothing but the replies can tell


def test_weights_other_than_the_last_record_names_are_found(story):
    flip(story.release / "weights.safetensors", -1)
    story.relist(sign=True)
    assert story.fault() == ("weights.safetensors", "record")


def test_a_record_that_somebody_else_signed_is_found(story):
    path = story.release / "rounds/0001/participation.json"
    record = parse_record(path.read_bytes()).record
    path.write_bytes(spell(sign_record(record, story.fed.sites["north"].trainer)))
    story.relist(sign=True)
    assert story.fault() == ("rounds/0001/participation.json", "bad_signature")


def untold(sites):
    """One site is counted without any reply; of one that said nothing there is one."""
    reply = next(site.reply_digest for site in sites if site.outcome == "counted")
    for at, site in enumerate(sites):
        silent = {"outcome": "left_out", "reason": "revoked", "code": ""}
        change = {"reply_digest": "0" * 64} if site.outcome == "counted" else silent
        for forged in (change, silent | {"reply_digest": reply}):
            changed = site.model_copy(update=forged)
            if (changed.outcome, changed.reply_digest) != ("left_out", "0" * 64):
                yield (*sites[:at], changed, *sites[at + 1 :])


def test_a_record_that_was_cut_out_of_the_chain_is_found(story):
    first = story.release / "rounds/0001/participation.json"
    second = story.release / "rounds/0002/participation.json"
    record = parse_record(second.read_bytes()).record
    key = load_task_key(story.fed.home)
    for change, check in (
        ({"previous": "0" * 64}, "wrong_chain"),
        ({"status": "complete"}, "wrong_status"),
        ({"run": "0" * 32}, "wrong_run"),
        ({"sites": record.sites[:2]}, "wrong_sites"),
        *(({"sites": sites}, "wrong_sites") for sites in untold(record.sites)),
        ({"round": 1}, "wrong_round"),
        ({"study_hash": "0" * 64}, "wrong_study"),
    ):
        second.write_bytes(spell(sign_record(record.model_copy(update=change), key)))
        story.relist(sign=True)
        assert story.fault() == ("rounds/0002/participation.json", check)
    second.write_bytes(first.read_bytes())
    story.relist(sign=True)
    assert story.fault() == ("rounds/0002/participation.json", "wrong_round")


def test_a_site_that_is_said_to_have_refused_though_it_replied_is_found(story):
    path = story.release / "rounds/0002/participation.json"
    record = parse_record(path.read_bytes()).record
    left = record.sites[1].model_copy(
        update={"outcome": "left_out", "reason": "refused", "code": "budget"}
    )
    sites = (record.sites[0], left, record.sites[2])
    forged = record.model_copy(
        update={"sites": sites, "status": "failed", "weights_after": record.weights_before}
    )
    path.write_bytes(spell(sign_record(forged, load_task_key(story.fed.home))))
    story.relist(sign=True)
    verdict = story.verify()
    assert not verdict.ok


def test_a_log_that_lost_a_line_is_found(story):
    path = story.release / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    story.relist(sign=True)
    assert story.fault() == ("log.jsonl", "chain")
    path.write_bytes(b"".join(lines[:-1]))
    story.relist(sign=True)
    assert story.fault() == ("log.jsonl", "end")


def test_a_manifest_that_the_task_key_did_not_sign_is_found(story):
    path = story.release / "log.jsonl"
    lines = path.read_bytes().splitlines()
    rows, previous = [], "0" * 64
    for line in lines:  # a whole other log, with a chain that holds
        row = json.loads(line) | {"at_s": 1, "previous": previous}
        rows.append(canonical(row))
        previous = digest(rows[-1])
    path.write_bytes(b"\n".join(rows) + b"\n")
    assert parse_log(path.read_bytes())
    story.relist(sign=False)
    assert story.fault() == ("manifest.json", "signature")


def test_a_whole_story_of_invented_parties_has_integrity_and_no_trust(tmp_path, story):
    """Somebody makes the same release with keys of their own."""
    other = federation(tmp_path / "forger", WEIGHTS, training={"rounds": 2})
    outcome = other.conduct()
    forged = Story(other, outcome.release, outcome.audit)
    assert forged.verify(trust=None).ok
    assert forged.verify(trust=None).trust == "integrity only"
    assert forged.fault(trust=story.trust) == ("study.sig", "coordinator_fingerprint")


def test_sites_that_the_coordinator_invented_are_found_by_their_fingerprints(story):
    wrong = {**story.trust.sites, "west": Site(name="west").approver.public.fingerprint}
    trust = Fingerprints(coordinator=story.trust.coordinator, sites=wrong)
    assert story.fault(trust=trust) == ("study.toml", "site_fingerprint")


@pytest.mark.parametrize("path", [*FILES, "manifest.json"])
def test_a_release_with_a_missing_file_is_refused_by_its_name(story, path):
    (story.release / path).unlink()
    with pytest.raises(SystemRefusal) as refused:
        story.verify()
    assert refused.value.code == "missing_files"
    assert refused.value.exit_code == 2
    assert path in refused.value.found


@pytest.mark.parametrize("part", ["reply", "sig", "task"])
def test_an_audit_folder_with_a_missing_file_is_refused_by_its_name(story, part):
    (story.audit / f"rounds/0001/north.{part}").unlink()
    with pytest.raises(SystemRefusal) as refused:
        story.verify()
    assert f"north.{part}" in refused.value.found


def test_what_nobody_listed_is_found(story):
    (story.audit / "rounds/0001/stranger.reply").write_bytes(b"hello")
    assert story.fault() == ("rounds/0001/stranger.reply", "unlisted")
    (story.release / "notes.txt").write_bytes(b"hello")
    assert story.fault() == ("notes.txt", "unlisted")


def test_a_link_in_the_place_of_a_file_is_found(story):
    path = story.release / "study.sig"
    path.rename(story.release.parent / "study.sig")
    path.symlink_to(story.release.parent / "study.sig")
    assert story.fault() == ("study.sig", "kind")


def test_other_base_weights_are_refused_and_missing_ones_too(story, tmp_path):
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(ModelRefusal) as refused:
        story.verify(base=tmp_path / "other")
    assert refused.value.code == "base_hash"
    with pytest.raises(SystemRefusal) as missing:
        story.verify(base=None)  # the preset of these tests is not installed
    assert missing.value.code == "missing_files"


def test_a_failed_round_is_proven_too(tmp_path):
    fed = federation(tmp_path, WEIGHTS, training={"rounds": 2})
    script = {("west", 2): silent, ("south", 2): silent}
    outcome = fed.conduct(HonestSites(fed.sites, script=script))
    story = Story(fed, outcome.release, outcome.audit)
    assert story.verify().ok
    assert story.verify().status == "failed"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"coordinator": 3}',
        '{"coordinator": "ab"}',
        '{"coordinator": "%s", "x": 1}' % ("a" * 64),
    ],
)
def test_a_trust_file_that_is_not_one_is_refused(tmp_path, text):
    (tmp_path / "trust.json").write_text(text)
    with pytest.raises(SystemRefusal):
        read_fingerprints(tmp_path / "trust.json")


def test_a_trust_file_is_read(tmp_path):
    aloud = " ".join(["AAAA"] * 16)  # as it is printed, in groups of four
    text = json.dumps({"coordinator": aloud, "sites": {"north": "b" * 64}})
    (tmp_path / "trust.json").write_text(text)
    found = read_fingerprints(tmp_path / "trust.json")
    assert (found.coordinator, found.sites) == ("a" * 64, {"north": "b" * 64})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ending", ["task", "reply", "sig"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_or_link_in_the_audit_folder_is_a_fault_and_not_waited_for(story, ending, kind):
    path = story.audit / f"rounds/0001/north.{ending}"
    path.rename(story.audit.parent / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(story.audit.parent / "elsewhere")
    assert story.fault() == (f"rounds/0001/north.{ending}", "kind")


def test_a_link_to_a_folder_is_nothing_that_a_record_names(story):
    (story.audit / "more").symlink_to(story.release)
    assert story.fault() == ("more", "unlisted")


def test_a_link_in_the_place_of_a_folder_is_a_fault(story):
    path = story.audit / "rounds/0001"
    path.rename(story.audit.parent / "elsewhere")
    path.symlink_to(story.audit.parent / "elsewhere")
    assert story.fault() == ("rounds/0001", "kind")


def test_a_file_that_does_not_belong_there_is_not_read_however_long_it_is(story):
    with (story.release / "more").open("wb") as file:
        file.truncate(2**40)
    assert story.fault() == ("more", "unlisted")
