"""The round loop: from tasks to a release, whoever answers, and whenever the process dies."""

from __future__ import annotations

import shutil
from datetime import date
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from honest_sites import (
    FIRST,
    NOW_S,
    SCHEMA,
    FakeClock,
    HonestSites,
    Site,
    deaf,
    federation,
    honest,
    refusing,
    silent,
    update_of,
)

from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.tensors import pack_tensors, unpack_tensors
from oncofed_common.wire import Head, frame, read_task, unframe
from oncofed_server.home import coordinator_lock, read_heads
from oncofed_server.participation import read_record
from oncofed_server.registry import revoke
from oncofed_server.rounds import conduct, finish
from oncofed_server.runlog import parse_log
from oncofed_server.runs import describe, request_stop
from oncofed_server.sites import Arrival

WEIGHTS = {"north": 3, "south": 5, "west": 1}


@pytest.fixture
def fed(tmp_path):
    return federation(tmp_path, WEIGHTS)


def released(outcome):
    data = (outcome.release / "weights.safetensors").read_bytes()
    return unpack_tensors(data, schema=SCHEMA, dtype="float32")


def expected(counted_by_round, *, rate=0.75):
    """The weights by another way: exact fractions, rounded once a round to float32."""
    weights = {name: value.copy() for name, value in FIRST.items()}
    for number, counted in enumerate(counted_by_round, start=1):
        divisor = sum(WEIGHTS[site] for site in counted)
        for name, value in weights.items():
            units = sum(WEIGHTS[s] * update_of(s, number)[name].astype(object) for s in counted)
            flat = [
                np.float32(
                    float(Fraction(float(w)) + Fraction(rate) * Fraction(int(u), 2**24) / divisor)
                )
                for w, u in zip(value.ravel(), np.ravel(units), strict=True)
            ]
            weights[name] = np.array(flat, dtype=np.float32).reshape(value.shape)
    return weights


def record(fed, number):
    signed = read_record(fed.folder / f"rounds/{number:04d}/participation.json")
    return {site.site: (site.outcome, site.reason, site.code) for site in signed.record.sites}


def events(fed):
    return [row.event for row in parse_log((fed.folder / "log.jsonl").read_bytes())]


def test_a_run_in_which_everybody_answers_is_complete_and_its_weights_are_the_weighted_mean(fed):
    outcome = fed.conduct()
    assert (outcome.status, outcome.rounds) == ("complete", 3)
    weights, wanted = released(outcome), expected([list(WEIGHTS)] * 3)
    for name in FIRST:
        np.testing.assert_array_max_ulp(weights[name], wanted[name], maxulp=1)
        assert (weights[name] != FIRST[name]).any()


def test_the_order_in_which_replies_arrive_changes_no_bit(tmp_path):
    found = set()
    for number, order in enumerate((list, lambda a: a[::-1], lambda a: a[1:] + a[:1])):
        fed = federation(tmp_path / str(number), WEIGHTS)
        outcome = fed.conduct(HonestSites(fed.sites, order=order))
        found.add((outcome.release / "weights.safetensors").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (silent, ("left_out", "no_reply", "")),
        (deaf, ("left_out", "unavailable", "unavailable")),
        (refusing("budget"), ("left_out", "refused", "budget")),
        (refusing("unavailable"), ("left_out", "unavailable", "unavailable")),
    ],
)
def test_a_site_that_gives_no_update_is_left_out_by_reason_and_the_run_is_partial(
    fed, behaviour, outcome
):
    sites = HonestSites(fed.sites, script={("west", 2): behaviour})
    done = fed.conduct(sites)
    assert done.status == "partial"
    assert record(fed, 2)["west"] == outcome
    assert record(fed, 1)["west"] == ("counted", "", "ok")
    wanted = expected([list(WEIGHTS), ["north", "south"], list(WEIGHTS)])
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)


def test_a_site_that_is_never_online_is_left_out_as_offline_at_the_deadline(fed):
    clock = FakeClock()
    done = fed.conduct(HonestSites(fed.sites, offline=frozenset({"west"})), clock)
    assert done.status == "partial"
    assert record(fed, 1)["west"] == ("left_out", "offline", "")
    assert 180 <= clock.now_s() - NOW_S <= 190  # three deadlines of a minute, and no more


def test_a_round_ends_as_soon_as_everybody_has_answered(fed):
    clock = FakeClock()
    fed.conduct(clock=clock)
    assert clock.now_s() - NOW_S < 5


def test_a_site_that_comes_online_in_the_middle_of_a_round_still_takes_part(fed):
    clock = FakeClock()

    class Late(HonestSites):
        def online(self, wait_s):
            return frozenset(self.sites) - ({"west"} if clock.now_s() < NOW_S + 30 else frozenset())

    assert fed.conduct(Late(fed.sites), clock).status == "complete"


@pytest.mark.parametrize("present", list(product([True, False], repeat=3)))
def test_every_pattern_of_drop_out_gets_the_right_word(tmp_path, present):
    fed = federation(tmp_path, WEIGHTS, training={"rounds": 1})
    gone = frozenset(name for name, here in zip(WEIGHTS, present, strict=True) if not here)
    done = fed.conduct(HonestSites(fed.sites, offline=gone))
    counted = sum(present)
    assert done.status == ("complete" if counted == 3 else "partial" if counted == 2 else "failed")
    assert describe(fed.home, fed.run)["status"] == done.status


def test_a_round_below_the_fewest_sites_fails_the_run_and_leaves_the_weights(fed):
    script = {("west", 2): silent, ("south", 2): silent}
    done = fed.conduct(HonestSites(fed.sites, script=script))
    assert (done.status, done.rounds) == ("failed", 2)
    signed = read_record(fed.folder / "rounds/0002/participation.json")
    assert signed.record.status == "failed"
    assert signed.record.weights_after == signed.record.weights_before
    wanted = expected([list(WEIGHTS)])
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)


def test_a_courier_that_fails_for_a_while_costs_nobody_the_round(fed):
    failures = []

    def flaky(site, task):
        failures.append(site.name)
        return deaf(site, task) if len(failures) <= 3 else honest(site, task)

    assert fed.conduct(HonestSites(fed.sites, script={("west", 1): flaky})).status == "complete"
    assert fed.sites["west"].trained == 3
    assert events(fed).count("carrier_failed") == 3


def test_a_courier_that_only_fails_is_asked_a_bounded_number_of_times(fed):
    """At 0, 2, 6, 14 and 30 s; the next would be after the deadline."""
    sites = HonestSites(fed.sites, script={("west", 1): deaf})
    clock = FakeClock()
    fed.conduct(sites, clock)
    assert (
        sum((name, number) == ("west", 1) for name, number, _ in sites.sent) == 5
    )  # at 0, 2, 6, 14 and 30 s; the next would be after the deadline
    assert clock.now_s() - NOW_S < 70


def flip(place):
    def tampered(site, task):
        body = bytearray(site.answer(task))
        body[place] ^= 1
        return Arrival(site=site.name, frame=bytes(body), code="ok")

    return tampered


def by_another(site, task):
    return Arrival(site=site.name, frame=Site(name=site.name).reply(task), code="ok")


def by_another_trainer(site, task):
    """A key that the site's approver certified, but not the one that the task names."""
    other = Site(name=site.name, approver=site.approver)
    return Arrival(site=site.name, frame=other.reply(task), code="ok")


def changed(**changes):
    return lambda site, task: Arrival(site=site.name, frame=site.reply(task, **changes), code="ok")


def wrong_shape(site, task):
    update = {**update_of(site.name, 1), "norm.bias": np.zeros(4, dtype=np.int32)}
    return Arrival(site=site.name, frame=site.reply(task, update=update), code="ok")


def extra_tensor(site, task):
    update = {**update_of(site.name, 1), "scan": np.zeros(4, dtype=np.int32)}
    return Arrival(site=site.name, frame=site.reply(task, update=update), code="ok")


def floats(site, task):
    update = {name: value.astype(np.float32) for name, value in update_of(site.name, 1).items()}
    return Arrival(site=site.name, frame=site.reply(task, update=update), code="ok")


def oversize(site, task):
    return Arrival(site=site.name, frame=site.answer(task) + b"x" * 30_000, code="ok")


def swapped(site, task):
    """The envelope of one reply with the update of another."""
    envelope, _ = unframe(site.answer(task), cap_bytes=10**6)
    other = pack_tensors(update_of("somebody else", 1))
    return Arrival(site=site.name, frame=frame(envelope, other), code="ok")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (flip(50), "malformed"),
        (flip(-200), "bad_signature"),
        (flip(-1), "malformed"),
        (swapped, "malformed"),
        (by_another, "bad_certificate"),
        (by_another_trainer, "bad_certificate"),
        (changed(site="south"), "wrong_site"),
        (changed(study_hash="a" * 64), "wrong_study"),
        (changed(run="a" * 32), "wrong_run"),
        (changed(round=2), "wrong_round"),
        (changed(task_digest="a" * 64), "task_conflict"),
        (changed(code="budget", update_digest="a" * 64), "malformed"),
        (changed(payload_kind="none"), "malformed"),
        (wrong_shape, "wrong_tensors"),
        (extra_tensor, "wrong_tensors"),
        (floats, "wrong_tensors"),
        (oversize, "too_large"),
    ],
)
def test_a_reply_that_does_not_bind_or_fit_never_reaches_the_sum(fed, behaviour, code):
    done = fed.conduct(HonestSites(fed.sites, script={("west", 1): behaviour}))
    assert record(fed, 1)["west"] == ("left_out", "bad_reply", code)
    wanted = expected([["north", "south"], list(WEIGHTS), list(WEIGHTS)])
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)
    assert not (fed.folder / "audit/rounds/0001/west.reply").exists()


def test_a_trainer_that_could_not_read_its_task_refuses_it_by_digest(fed):
    unread = changed(code="unknown_version", study_hash="0" * 64, run="0" * 32, round=0)
    fed.conduct(HonestSites(fed.sites, script={("west", 1): unread}))
    assert record(fed, 1)["west"] == ("left_out", "refused", "unknown_version")


def test_a_second_reply_of_a_site_is_counted_once(fed):
    class Twice(HonestSites):
        def poll(self):
            arrived = super().poll()
            return [*arrived, *arrived]

    done = fed.conduct(Twice(fed.sites))
    wanted = expected([list(WEIGHTS)] * 3)
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)
    assert "reply_again" in events(fed)


def test_a_reply_that_comes_after_its_round_is_logged_as_late_and_not_counted(fed):
    kept = []

    def slow(site, task):
        kept.append(Arrival(site=site.name, frame=site.answer(task), code="ok"))

    def both(site, task):
        return kept[0]

    script = {("west", 1): slow, ("west", 2): both}
    fed.conduct(HonestSites(fed.sites, script=script))
    assert "reply_late" in events(fed)
    assert record(fed, 1)["west"][1] == "no_reply"
    assert record(fed, 2)["west"][1] == "no_reply"


def test_something_from_a_site_that_is_not_invited_is_ignored(fed):
    class Noisy(HonestSites):
        def poll(self):
            return [Arrival(site="stranger", frame=b"hello", code="ok"), *super().poll()]

    assert fed.conduct(Noisy(fed.sites)).status == "complete"


def test_a_task_binds_the_weights_the_record_before_and_the_head_seen_last(fed):
    sites = HonestSites(fed.sites)
    fed.conduct(sites)
    for name, number, body in sites.sent:
        task, _ = read_task(unframe(body, cap_bytes=10**9)[0])
        assert (task.site, task.round, task.expires_s - task.not_before_s) == (name, number, 60)
        assert task.trainer_key == fed.sites[name].trainer.public.fingerprint
        if number == 1:
            assert task.participation is None
            assert task.ledger_head is None
        else:
            before = read_record(fed.folder / f"rounds/{number - 1:04d}/participation.json")
            assert task.participation == before
            assert task.participation_digest == before.record.digest()
            assert task.weights_digest == before.record.weights_after
            assert task.ledger_head.sequence == number - 1
    assert read_heads(fed.home)["west"].sequence == 3


def test_a_ledger_head_that_falls_back_is_not_taken_for_the_newest(fed):
    head = Head(sequence=0, commitment="0" * 64)
    fed.conduct(HonestSites(fed.sites, script={("west", 3): changed(ledger_head=head)}))
    assert read_heads(fed.home)["west"].sequence == 2


def test_a_revoked_site_is_left_out_from_the_next_round_on(fed):
    def revoking(site, task):
        if site.name == "west":
            revoke(fed.home, "west")
        return honest(site, task)

    sites = HonestSites(fed.sites, script={("west", 1): revoking})
    assert fed.conduct(sites).status == "partial"
    assert record(fed, 1)["west"] == ("counted", "", "ok")
    assert record(fed, 2)["west"] == ("left_out", "revoked", "")
    later = [body for name, number, body in sites.sent if number == 2]
    epochs = {read_task(unframe(body, cap_bytes=10**9)[0])[0].revocation_epoch for body in later}
    assert epochs == {1}
    assert {name for name, number, _ in sites.sent if number > 1} == {"north", "south"}


def test_a_round_that_was_cut_short_repeats_its_tasks_word_for_word_and_trains_nobody_twice(fed):
    class Dying(HonestSites):
        def poll(self):
            arrived = super().poll()
            if any(number == 2 for _, number, _ in self.sent) and arrived:
                self.waiting = arrived[1:]
                arrived = arrived[:1]
                if any(path.exists() for path in self.stored):
                    raise KeyboardInterrupt
            return arrived

    dying = Dying(fed.sites)
    dying.stored = [fed.folder / f"audit/rounds/0002/{name}.reply" for name in WEIGHTS]
    with pytest.raises(KeyboardInterrupt):
        fed.conduct(dying)
    assert describe(fed.home, fed.run)["status"] == "interrupted"
    first = {name: body for name, number, body in dying.sent if number == 2}
    resumed = HonestSites(fed.sites)
    done = fed.conduct(resumed, FakeClock(NOW_S + 10_000))  # long after the deadline
    again = {name: body for name, number, body in resumed.sent if number == 2}
    assert done.status == "complete"
    assert len(again) == 2  # the third reply was stored before the loop died
    assert all(first[name] == body for name, body in again.items())
    assert all(site.trained == 3 for site in fed.sites.values())
    wanted = expected([list(WEIGHTS)] * 3)
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)


def test_a_run_that_dies_again_and_again_ends_with_the_same_bytes(fed, tmp_path):
    """Life number n ends before its n-th poll or send; the next goes on from what was stored."""
    whole = federation(tmp_path / "whole", WEIGHTS)
    wanted = (whole.conduct().release / "weights.safetensors").read_bytes()

    class Mortal(HonestSites):
        left = 0

        def _live(self):
            self.left -= 1
            if self.left == 0:
                raise OSError("the process is gone")

        def poll(self):
            self._live()
            return super().poll()

        def send(self, tasks, *, expires_s):
            self._live()
            super().send(tasks, expires_s=expires_s)

    for life in range(1, 20):
        mortal = Mortal(fed.sites)
        mortal.left = life
        try:
            done = fed.conduct(mortal)
        except OSError:
            continue
        break
    assert life > 5
    assert (done.release / "weights.safetensors").read_bytes() == wanted
    assert done.status == "complete"
    assert all(site.trained == 3 for site in fed.sites.values())


@pytest.mark.parametrize("release", ["weights", "weights_and_audit"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_its_round_closed_again(
    tmp_path, damage, release
):
    fed = federation(tmp_path, WEIGHTS, study={"release": release})

    class Stopping(HonestSites):
        def send(self, tasks, *, expires_s):
            super().send(tasks, expires_s=expires_s)
            if self.sent[-1][1] == 3:
                raise OSError("the machine is gone")

    with pytest.raises(OSError, match="machine"):
        fed.conduct(Stopping(fed.sites))
    newest = fed.folder / "checkpoints/0002.ckpt"
    data = newest.read_bytes()
    signed = (fed.folder / "rounds/0002/participation.json").read_bytes()
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes(data[:-7] if damage == "cut" else data[:-7] + b"\x01" + data[-6:])
    resumed = HonestSites(fed.sites)
    done = fed.conduct(resumed)
    assert (fed.folder / "rounds/0002/participation.json").read_bytes() == signed
    assert not [number for _, number, _ in resumed.sent if number == 2]
    assert ("checkpoint_skipped" in events(fed)) == (damage != "missing")
    wanted = expected([list(WEIGHTS)] * 3)
    for name in FIRST:
        np.testing.assert_array_max_ulp(released(done)[name], wanted[name], maxulp=1)


def test_a_recorded_round_whose_stored_replies_are_gone_is_not_made_up(fed):
    class Stopping(HonestSites):
        def send(self, tasks, *, expires_s):
            super().send(tasks, expires_s=expires_s)
            if self.sent[-1][1] == 2:
                raise OSError("the machine is gone")

    with pytest.raises(OSError, match="machine"):
        fed.conduct(Stopping(fed.sites))
    (fed.folder / "checkpoints/0001.ckpt").unlink()
    (fed.folder / "audit/rounds/0001/west.reply").unlink()
    with pytest.raises(OncofedError) as failed:
        fed.conduct()
    assert failed.value.code == "replies_missing"


def test_no_whole_checkpoint_at_all_is_refused_rather_than_begun_again(fed):
    class Stopping(HonestSites):
        def poll(self):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fed.conduct(Stopping(fed.sites))
    (fed.folder / "checkpoints/0000.ckpt").write_bytes(b"rust")
    with pytest.raises(SystemRefusal) as refused:
        fed.conduct()
    assert refused.value.code == "no_checkpoint"


def test_of_two_coordinators_on_one_home_the_second_refuses(fed):
    with coordinator_lock(fed.home), pytest.raises(SystemRefusal) as refused:
        fed.conduct()
    assert refused.value.code == "home_in_use"
    assert refused.value.exit_code == 2
    assert fed.conduct().status == "complete"


def test_a_run_that_has_ended_is_not_conducted_again(fed):
    fed.conduct()
    with pytest.raises(SystemRefusal) as refused:
        fed.conduct()
    assert refused.value.code == "run_ended"


def test_a_run_of_another_home_is_unknown(fed, tmp_path):
    other = federation(tmp_path / "other", WEIGHTS)
    with pytest.raises(SystemRefusal) as refused:
        conduct(other.home, fed.run, HonestSites(fed.sites), clock=FakeClock())
    assert refused.value.code == "unknown_run"


def test_a_disk_without_room_for_the_replies_refuses_before_anything_is_sent(tmp_path):
    cap = 10**15  # more than any disk of these days
    fed = federation(tmp_path, WEIGHTS, outbound={"bytes_per_round": cap})
    sites = HonestSites(fed.sites)
    with pytest.raises(SystemRefusal) as refused:
        fed.conduct(sites)
    assert refused.value.code == "disk_full"
    assert sites.sent == []
    assert list((fed.folder / "tasks").iterdir()) == []


def test_a_stopped_run_releases_what_was_counted_as_partial(fed):
    def stopping(site, task):
        request_stop(fed.home, fed.run)

    done = fed.conduct(HonestSites(fed.sites, script={("west", 2): stopping}))
    assert (done.status, done.rounds) == ("partial", 2)
    assert record(fed, 2)["west"] == ("left_out", "no_reply", "")


def test_a_stop_with_too_few_replies_gives_the_open_round_up(fed):
    def stopping(site, task):
        request_stop(fed.home, fed.run)

    script = {("west", 2): stopping, ("south", 2): silent}
    done = fed.conduct(HonestSites(fed.sites, script=script))
    assert (done.status, done.rounds) == ("partial", 1)
    assert "round_abandoned" in events(fed)
    assert not (fed.folder / "audit/rounds/0002").exists()


def test_an_interrupted_run_can_be_ended_without_any_site(fed):
    class Stopping(HonestSites):
        def send(self, tasks, *, expires_s):
            if any(number == 1 for _, number, _ in self.sent[3:]) or len(self.sent) == 3:
                raise OSError("gone")
            super().send(tasks, expires_s=expires_s)

    with pytest.raises(OSError, match="gone"):
        fed.conduct(Stopping(fed.sites))
    request_stop(fed.home, fed.run)
    done = finish(fed.home, fed.run, clock=FakeClock())
    assert (done.status, done.rounds) == ("partial", 1)


def test_a_study_that_expires_in_the_middle_begins_no_further_round(tmp_path):
    fed = federation(tmp_path, WEIGHTS, study={"expires": date(2027, 1, 15)})  # the day of NOW_S
    clock = FakeClock()

    def next_day(site, task):
        clock.at_s = NOW_S + 86_400
        return honest(site, task)

    done = fed.conduct(HonestSites(fed.sites, script={("west", 2): next_day}), clock)
    assert (done.status, done.rounds) == ("partial", 2)
    row = parse_log((fed.folder / "log.jsonl").read_bytes())[-2]
    assert (row.event, row.round, row.code) == ("round_abandoned", 3, "expired")


def test_replies_do_not_stay_where_the_study_releases_weights_only(tmp_path):
    fed = federation(tmp_path, WEIGHTS, study={"release": "weights"})
    done = fed.conduct()
    assert done.audit is None
    assert not list(fed.folder.rglob("*.reply"))


def test_nothing_half_written_is_left_in_a_finished_run(fed):
    fed.conduct()
    assert not [path for path in fed.home.rglob("*") if ".tmp" in path.name]


def test_a_home_that_lost_its_tasks_is_refused(fed):
    class Stopping(HonestSites):
        def send(self, tasks, *, expires_s):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fed.conduct(Stopping(fed.sites))
    shutil.copy(fed.folder / "tasks/0001/north.task", fed.folder / "tasks/0001/south.task")
    with pytest.raises(OncofedError) as refused:
        fed.conduct()
    assert refused.value.code == "task_conflict"
