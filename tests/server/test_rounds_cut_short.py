"""A run that dies, is stopped, expires or cannot begin: nothing is lost, made up or counted twice."""

from __future__ import annotations

import shutil
from datetime import date

import numpy as np
import pytest
from honest_sites import (
    FIRST,
    NOW_S,
    FakeClock,
    HonestSites,
    federation,
    honest,
    refusing,
    silent,
)
from round_checks import WEIGHTS, events, expected, record, released

from oncofed_common.durable import is_locked
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.wire import read_task, unframe
from oncofed_server.rounds import conduct, finish
from oncofed_server.runlog import parse_log
from oncofed_server.runs import describe, request_stop
from oncofed_server.sites import Arrival


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


def test_of_two_coordinators_on_one_run_the_second_refuses(fed):
    class Second(HonestSites):
        def poll(self):
            with pytest.raises(SystemRefusal) as refused:
                conduct(fed.home, fed.run, Second(fed.sites), alone=lambda: alone.append("second"))
            self.refused = refused.value
            return super().poll()

    def only() -> None:
        assert is_locked(fed.folder / "run.lock")
        alone.append((fed.folder / "log.jsonl").exists())

    first, alone = Second(fed.sites), []
    assert conduct(fed.home, fed.run, first, clock=FakeClock(), alone=only).status == "complete"
    assert first.refused.code == "home_in_use"
    assert alone == [False]  # once, by the first, and before anything had happened
    assert first.refused.exit_code == 2
    assert all(site.trained == 3 for site in fed.sites.values())


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


def unapproved(site, task):
    """The courier knows no bundle that may run: the site has not approved anything."""
    return Arrival(site=site.name, frame=None, code="not_approved")


@pytest.mark.parametrize("late", [refusing("not_approved"), unapproved])
def test_a_site_that_approves_while_the_first_round_is_open_still_takes_part(fed, late):
    asked = []

    def in_time(site, task):
        asked.append(task)
        return late(site, task) if len(asked) < 2 else honest(site, task)

    done = fed.conduct(HonestSites(fed.sites, script={("west", 1): in_time}))
    assert done.status == "complete"
    assert asked[0] == asked[1]


@pytest.mark.parametrize("late", [refusing("not_approved"), unapproved])
def test_a_first_round_that_came_before_the_approvals_does_not_cost_the_study(fed, late):
    script = {("south", 1): late, ("west", 1): late}
    early = HonestSites(fed.sites, script=script)
    with pytest.raises(OncofedError) as waiting:
        fed.conduct(early)
    assert waiting.value.code == "not_approved"
    found = describe(fed.home, fed.run)
    assert (found["status"], found["last_code"]) == ("interrupted", "not_approved")
    assert {site["name"]: site["last_code"] for site in found["sites"]} == {
        "north": "ok",
        "south": "not_approved",
        "west": "not_approved",
    }
    resumed = HonestSites(fed.sites)
    done = fed.conduct(resumed, FakeClock(NOW_S + 10_000))  # long after those tasks expired
    assert done.status == "complete"
    first = {name: body for name, number, body in early.sent if number == 1}
    again = {name: body for name, number, body in resumed.sent if number == 1}
    assert again.keys() == {"south", "west"}  # north's reply was stored, and is counted once
    for name, body in again.items():
        task = read_task(unframe(body, cap_bytes=10**9)[0])[0]
        assert body != first[name]
        assert task.expires_s > NOW_S + 10_000
    assert all(site.trained == 3 for site in fed.sites.values())


def test_a_first_round_with_enough_sites_goes_on_without_one_that_has_not_approved(fed):
    done = fed.conduct(HonestSites(fed.sites, script={("west", 1): unapproved}))
    assert done.status == "partial"
    assert record(fed, 1)["west"] == ("left_out", "refused", "not_approved")
    assert record(fed, 2)["west"] == ("counted", "", "ok")


def test_a_later_round_takes_a_site_that_took_its_approval_back_at_its_word(fed):
    asked = []

    def gone(site, task):
        asked.append(task)
        return unapproved(site, task)

    fed.conduct(HonestSites(fed.sites, script={("west", 2): gone}))
    assert record(fed, 2)["west"] == ("left_out", "refused", "not_approved")
    assert len(asked) == 1
