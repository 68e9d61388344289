"""The round loop: from tasks to a release, whoever answers, and whenever the process dies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from honest_sites import (
    FIRST,
    NOW_S,
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
from round_checks import WEIGHTS, events, expected, record, released

from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import Head, frame, read_task, unframe
from oncofed_server.collect import FIRST_PAUSE_S, POLL_S, SILENCE_S
from oncofed_server.home import read_heads
from oncofed_server.participation import read_record
from oncofed_server.registry import revoke
from oncofed_server.runs import describe
from oncofed_server.sites import Arrival


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


def test_a_site_whose_courier_dies_with_the_task_or_the_reply_is_asked_again_and_trains_once(fed):
    """Nobody says that a message is lost; the slot's end does. The same task, and the same reply."""
    told = []

    def lost(site, task):
        told.append(task)
        if len(told) == 2:
            site.answer(task)  # trained, and the reply never left
        return honest(site, task) if len(told) == 3 else None

    clock = FakeClock()
    done = fed.conduct(HonestSites(fed.sites, script={("west", 2): lost}), clock)
    assert done.status == "complete"
    assert len(told) == 3
    assert len(set(told)) == 1
    assert fed.sites["west"].trained == 3
    assert events(fed).count("reply_overdue") == 2
    assert clock.now_s() - NOW_S < 60


def test_tasks_that_fail_together_are_one_failure_and_are_sent_again_after_the_first_pause(fed):
    """A courier dies, its silence is noticed, and Flower hands back all that it had been sent at once."""
    asked_s, clock = [], FakeClock()

    def dies(site, task):
        asked_s.append(clock.at_s)
        if len(asked_s) == 2:
            sites.waiting += [deaf(site, task)] * 2
        return honest(site, task) if len(asked_s) == 3 else None

    sites = HonestSites(fed.sites, script={("west", 2): dies})
    assert fed.conduct(sites, clock).status == "complete"
    assert events(fed).count("carrier_failed") == 2
    assert asked_s[1] - asked_s[0] >= SILENCE_S
    assert FIRST_PAUSE_S <= asked_s[2] - asked_s[1] <= FIRST_PAUSE_S + 4 * POLL_S


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


def late_by(seconds, clock):
    """A site that answers, and a link that holds the answer back."""

    def behave(site, task):
        behave.arrives.append((clock.at_s + seconds, honest(site, task)))

    behave.arrives = []
    return behave


class Held(HonestSites):
    """Replies that are due at a time of the clock."""

    def __init__(self, sites, *, clock, held):
        super().__init__(sites, script={("west", 1): held, ("west", 2): held})
        self.clock, self.held = clock, held

    def poll(self):
        due = [one for one in self.held.arrives if one[0] <= self.clock.at_s]
        self.held.arrives = [one for one in self.held.arrives if one[0] > self.clock.at_s]
        return [*super().poll(), *(arrival for _, arrival in due)]


@pytest.mark.parametrize(
    ("grace_s", "delay_s", "counted"), [(None, 30, 3), (10, 8, 3), (10, 30, 2), (0, 1, 2)]
)
def test_a_study_says_how_long_a_round_waits_for_stragglers(tmp_path, grace_s, delay_s, counted):
    """A late reply is known for what it is; the run says partial, and goes on without waiting."""
    terms = {} if grace_s is None else {"straggler_grace_s": grace_s}
    fed = federation(tmp_path, WEIGHTS, aggregation=terms)
    clock = FakeClock()
    done = fed.conduct(Held(fed.sites, clock=clock, held=late_by(delay_s, clock)), clock)
    assert done.status == ("complete" if counted == 3 else "partial")
    late = ("left_out", "no_reply", "")
    assert record(fed, 1)["west"] == (("counted", "", "ok") if counted == 3 else late)
    assert record(fed, 3)["west"] == ("counted", "", "ok")
    waited_s = clock.at_s - NOW_S
    most_s = delay_s if counted == 3 else grace_s
    assert 2 * most_s <= waited_s <= 2 * most_s + 2
