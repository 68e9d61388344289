"""Time at a site never goes back: what was over stays over, whatever the machine's clock says."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from grown_ledger import A, draw, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_site import NOW_S, LedgerSite, new_site
from site_builder import NOW_S as TASKS_AT_S
from site_builder import PASSPHRASE, Coordinator, Site, a_site, code_of

from oncofed_client.__main__ import app
from oncofed_client.chain import make_row
from oncofed_client.charges import Charges
from oncofed_client.ledger import Ledger
from oncofed_common.errors import BudgetRefusal, IdentityRefusal, PolicyRefusal
from oncofed_common.identity import SigningKey
from oncofed_common.terminal import run_app

DAY_S = 86_400
KEY = SigningKey.generate()


@settings(deadline=None)
@given(times=st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_now_is_never_before_the_latest_row(times: list[int]) -> None:
    """Whatever the clock does between the rows."""
    charges, before = Charges(), None
    for count, at_s in enumerate(times):
        kind = "init" if count == 0 else "distrust"
        body = {"trainer_key": "", "secret_mark": "", "fingerprint": "", "at_s": at_s}
        before = make_row(kind, body, after=before, key=KEY)
        charges.apply(before)
        assert charges.latest_s == max(times[: count + 1])


def test_a_study_that_expired_does_not_come_back_with_the_clock(site: LedgerSite) -> None:
    """Nor is its reservation taken for open again."""
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1, rounds=3, expires="2027-01-20"))
        draw(ledger, 1)
        site.now[0] += 10 * DAY_S
        ledger.keep_epoch(1)
        site.now[0] -= 10 * DAY_S
        with pytest.raises(BudgetRefusal):
            draw(ledger, 2)
        assert [study["state"] for study in ledger.budget()["studies"]] == ["expired"]


def test_a_clock_that_is_set_back_frees_no_bytes(tmp_path: Path) -> None:
    """What left after the time that the clock shows now has left all the same."""
    site = new_site(tmp_path / "home")
    site = site.but(limits=site.limits.model_copy(update={"bytes_per_day": 150_000}))
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1))
        for back_s in (0, 40 * DAY_S):
            site.now[0] = NOW_S - back_s
            if back_s:
                with pytest.raises(PolicyRefusal) as refusal:
                    draw(ledger, 2)
                assert refusal.value.code == "bytes_per_day"
            else:
                draw(ledger, 1)
                ledger.record_reply(A, round=1, reply_digest="1" * 64, size=90_000)
        assert ledger.left()[0]["at_s"] == NOW_S


def test_when_training_ended_is_no_time_that_counts(site: LedgerSite) -> None:
    """A reply's row tells that moment; a task's refusal as expired must not depend on it."""
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1))
        draw(ledger, 1)
        site.now[0] += 50
        ledger.record_reply(A, round=1, reply_digest="1" * 64, size=9)
        assert ledger.latest_s() == NOW_S


def test_only_the_approver_says_that_the_clock_is_right_now(grown: LedgerSite) -> None:
    """Then time counts from that moment on, for this process and for the next."""
    grown.now[0] = NOW_S + 900 * DAY_S
    with opened(grown) as ledger:
        ledger.keep_epoch(1)
        grown.now[0] = NOW_S
        with pytest.raises(IdentityRefusal):
            ledger.trust_clock(key=grown.trainer_signing)
        assert ledger.latest_s() == NOW_S + 900 * DAY_S
        ledger.trust_clock(key=grown.approver_signing)
        assert ledger.latest_s() == NOW_S
    with opened(grown) as ledger:
        assert ledger.latest_s() == NOW_S


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def at_site(tmp_path: Path, coordinator: Coordinator) -> Site:
    made = a_site(tmp_path, coordinator)
    (tmp_path / "pass").write_bytes(PASSPHRASE)
    return made


def test_a_task_that_expired_is_not_answered_after_the_clock_was_set_back(
    at_site: Site, coordinator: Coordinator
) -> None:
    """The ledger knows that it was later already."""
    with at_site.open:
        task = coordinator.task(at_site, revocation_epoch=1)
        with Ledger.open(at_site.home, clock=lambda: TASKS_AT_S + 601.0) as ahead:
            ahead.keep_epoch(1)
        assert code_of(at_site.desk().answer(task)[0]) == "expired"
        assert at_site.trained == []


def settle_clock(site: Site) -> int:
    home = site.home.root
    words = f"settle --clock --yes --json --home {home} --passphrase-file {home.parent / 'pass'}"
    return run_app(app, words.split())


def test_the_clock_is_settled_where_it_was_ahead_and_nobody_pays(
    at_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once; a clock that is right is left alone, and the audit says how it stands."""
    at_site.open.close()
    assert settle_clock(at_site) == 2
    assert "nothing_to_settle" in capsys.readouterr().out
    with Ledger.open(at_site.home, clock=lambda: time.time() + 5 * DAY_S) as ahead:
        ahead.keep_epoch(1)
        before = ahead.budget()
    assert run_app(app, ["audit", "--json", "--home", str(at_site.home.root)]) == 0
    assert json.loads(capsys.readouterr().out)["clock_behind_s"] > 4 * DAY_S
    assert settle_clock(at_site) == 0
    assert json.loads(capsys.readouterr().out)["clock_set_back_s"] > 4 * DAY_S
    with Ledger.open(at_site.home) as ledger:
        assert ledger.budget() == before
        assert ledger.is_standing(at_site.study.hash)
    assert settle_clock(at_site) == 2


def test_a_coordinator_whose_clock_is_ahead_is_reported_and_served(
    at_site: Site, coordinator: Coordinator
) -> None:
    """Up to five minutes; the trainer's log says by how much."""
    at_site.now_s = TASKS_AT_S - 200.0
    with at_site.open:
        reply, _ = at_site.desk().answer(coordinator.task(at_site))
        at_site.log.release(math.inf)
    assert code_of(reply) == "ok"
    lines = (at_site.home.trainer / "log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [one["behind_s"] for one in log if one["event"] == "clock_behind"] == [200]
