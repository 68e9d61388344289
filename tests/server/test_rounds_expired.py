"""A round that is resumed after its tasks expired: what was answered counts, and a lost round says so."""

from __future__ import annotations

import pytest
from honest_sites import NOW_S, FakeClock, HonestSites, honest, refusing, silent
from round_checks import record

from oncofed_common.wire import read_task, unframe
from oncofed_server.ending import why_failed
from oncofed_server.sites import Arrival

LATER_S = NOW_S + 10_000


def task_in(body):
    return read_task(unframe(body, cap_bytes=10**9)[0])[0]


def punctual(site, body):
    """As a trainer does: the stored reply at any time, a new one only until the task expires."""
    task = task_in(body)
    if task.round in site.answered or task.expires_s > LATER_S:
        return honest(site, body)
    return refusing("expired")(site, body)


def later(fed):
    script = {(name, number): punctual for name in fed.sites for number in (1, 2, 3)}
    return HonestSites(fed.sites, script=script)


class Dying(HonestSites):
    """The process is gone ``left`` polls after the first that brings something."""

    left = 1

    def poll(self):
        if self.left < 0:
            raise OSError("the process is gone")
        arrived = super().poll()
        self.left -= bool(arrived) or self.left < 1
        return arrived


def cut_short(fed, script):
    dying = Dying(fed.sites, script=script)
    with pytest.raises(OSError, match="gone"):
        fed.conduct(dying)
    return dying


def test_a_resumed_round_counts_what_was_answered_in_time_and_the_run_goes_on(fed):
    cut_short(fed, {("west", 1): silent})
    done = fed.conduct(later(fed), FakeClock(LATER_S))
    assert (done.status, done.rounds) == ("partial", 3)
    assert record(fed, 1)["west"] == ("left_out", "refused", "expired")
    assert record(fed, 2)["west"] == ("counted", "", "ok")
    assert fed.sites["north"].trained == 3


def test_a_trainer_that_answered_unheard_gives_its_reply_after_the_deadline_too(fed):
    def unheard(site, body):
        site.answer(body)

    cut_short(fed, {("south", 1): unheard, ("west", 1): unheard})
    done = fed.conduct(later(fed), FakeClock(LATER_S))
    assert done.status == "complete"
    assert all(site.trained == 3 for site in fed.sites.values())


def test_a_round_that_was_lost_says_what_was_spent_and_what_to_do(fed):
    dying = cut_short(fed, {("south", 1): silent, ("west", 1): silent})
    resumed = later(fed)
    done = fed.conduct(resumed, FakeClock(LATER_S))
    first = {name: body for name, _, body in dying.sent}
    assert {name: body for name, _, body in resumed.sent} == {
        name: first[name] for name in ("south", "west")
    }  # word for word, and nobody is asked for a second task
    assert (done.status, done.rounds) == ("failed", 1)
    assert record(fed, 1)["south"] == ("left_out", "refused", "expired")
    error = why_failed(fed.home, fed.run)
    assert (error.code, error.exit_code) == ("run_failed", 1)
    assert "1 of 3 sites counted, not south (expired), west (expired)" in error.found
    assert error.allowed.startswith("2 sites")
    assert "of the 3 rounds of epsilon" in error.next
    assert "north 1" in error.next
    assert "new study" in error.next
    assert "resumed within its round's 60 s" in error.next
    assert "\n" not in str(error)


def test_who_had_not_approved_when_the_round_was_cut_short_gets_a_new_task(fed):
    def unapproved(site, body):
        return Arrival(site=site.name, frame=None, code="not_approved")

    dying = cut_short(fed, {("south", 1): unapproved, ("west", 1): refusing("not_approved")})
    resumed = later(fed)
    done = fed.conduct(resumed, FakeClock(LATER_S))
    first = {name: body for name, _, body in dying.sent}
    again = {name: body for name, number, body in resumed.sent if number == 1}
    assert done.status == "complete"
    assert again.keys() == {"south", "west"}
    assert all(task_in(body).expires_s > LATER_S for body in again.values())
    assert all(body != first[name] for name, body in again.items())


def test_who_had_not_approved_keeps_a_task_that_has_not_expired(fed):
    dying = cut_short(fed, {("west", 1): refusing("not_approved")})
    resumed = HonestSites(fed.sites)
    assert fed.conduct(resumed).status == "complete"
    first = {name: body for name, _, body in dying.sent}
    assert {body for name, number, body in resumed.sent if number == 1} == {first["west"]}


def test_who_was_asked_again_may_have_trained_and_gets_no_second_task(fed):
    """It approved, trained, and was not heard: its stored reply counts."""
    asked = []

    def late(site, body):
        asked.append(body)
        if len(asked) == 1:
            return refusing("not_approved")(site, body)
        site.answer(body)
        raise OSError("the process is gone")

    with pytest.raises(OSError, match="gone"):
        fed.conduct(HonestSites(fed.sites, script={("west", 1): late}))
    resumed = later(fed)
    done = fed.conduct(resumed, FakeClock(LATER_S))
    assert done.status == "complete"
    assert {body for name, number, body in resumed.sent if number == 1} == {asked[0]}
    assert fed.sites["west"].trained == 3
