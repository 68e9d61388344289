"""A home restored from a backup: what it lost must not be spent twice, whoever asks first."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from site_builder import (
    PASSPHRASE,
    Coordinator,
    Site,
    a_home,
    approved,
    code_of,
    joined,
    reply_of,
    study_for,
)

from oncofed_client.carried_head import NAME, carried_head, keep_head
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.settling import settle
from oncofed_client.trainer.log import open_log
from oncofed_common.errors import BudgetRefusal
from oncofed_common.study import Study
from oncofed_common.wire import Head


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def reopened(home: Home, study: Study) -> Site:
    """The site in a new process."""
    opened = ExitStack()
    ledger = opened.enter_context(Ledger.open(home))
    log = opened.enter_context(
        open_log(home.trainer / "log.jsonl", head=home.refused_head_path, key=home.trainer_key())
    )
    return Site(home=home, study=study, ledger=ledger, log=log, open=opened)


def spent_on(site: Site, coordinator: Coordinator) -> Head:
    """Train one round of the site's study; the head that its reply shows."""
    body, _ = site.desk().answer(coordinator.task(site))
    assert code_of(body) == "ok"
    head = reply_of(body).ledger_head
    assert head is not None
    return head


def restored(home: Home, backup: Path) -> None:
    shutil.rmtree(home.root)
    shutil.copytree(backup, home.root)


def test_a_backup_that_lost_a_whole_study_is_noticed_by_that_studys_next_task(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """The restored home knows nothing of the approval; from then on nobody gets anything, also who
    knows less."""
    home = joined(a_home(tmp_path), coordinator)
    kept = approved(tmp_path, home, study_for(home), coordinator)
    kept.open.close()
    shutil.copytree(home.root, tmp_path / "backup")
    other = study_for(home, training={"learning_rate": 0.5})
    lost = approved(tmp_path, home, other, coordinator)
    shown = spent_on(lost, coordinator)
    lost.open.close()
    restored(home, tmp_path / "backup")
    now = reopened(home, kept.study)
    with now.open:
        task = coordinator.task(lost, number=2, ledger_head=shown)
        assert code_of(now.desk().answer(task)[0]) == "ledger_behind"
        assert code_of(now.desk().answer(coordinator.task(now))[0]) == "ledger_behind"
        assert now.trained == []
        with pytest.raises(BudgetRefusal):
            now.ledger.refuse_alarm()
        now.ledger.close()
        budget = settle(home, passphrase=PASSPHRASE)
    assert float(budget["spent"]) == pytest.approx(float(budget["allowed"]), rel=1e-9)


def test_a_stored_reply_waits_too_while_the_ledger_is_behind(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """Until the approver settles, the site says nothing but that."""
    home = joined(a_home(tmp_path), coordinator)
    site = approved(tmp_path, home, study_for(home), coordinator)
    with site.open:
        task = coordinator.task(site)
        first = site.desk().answer(task)[0]
        shutil.copytree(home.root, tmp_path / "backup")
        record = coordinator.record(site, number=1, reply=first)
        second = site.desk().answer(coordinator.task(site, number=2, record=record))[0]
        shown = reply_of(second).ledger_head
    restored(home, tmp_path / "backup")
    now = reopened(home, site.study)
    with now.open:
        assert now.desk().answer(task)[0] == first
        late = coordinator.task(site, number=3, ledger_head=shown)
        assert code_of(now.desk().answer(late)[0]) == "ledger_behind"
        assert code_of(now.desk().answer(task)[0]) == "ledger_behind"


def test_the_couriers_copy_of_the_head_tells_of_a_restored_home_before_any_task(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """The courier's folder was not in the backup; what it writes there itself means nothing."""
    home = joined(a_home(tmp_path), coordinator)
    site = approved(tmp_path, home, study_for(home), coordinator)
    shutil.copytree(home.root, tmp_path / "backup", ignore=lambda *_: ["courier"])
    with site.open:
        body, _ = site.desk().answer(coordinator.task(site))
    keep_head(body, home.courier)
    shown = carried_head(home.courier)
    assert shown == reply_of(body).ledger_head
    for name in ("trainer", "head"):
        shutil.rmtree(home.root / name)
        shutil.copytree(tmp_path / "backup" / name, home.root / name)
    lie = Head(sequence=99, commitment="a" * 64)
    with Ledger.open(home) as ledger:
        ledger.check_head(lie, carried=True)
        ledger.check_head(None, carried=True)
        with pytest.raises(BudgetRefusal):
            ledger.check_head(shown, carried=True)
        with pytest.raises(BudgetRefusal):
            ledger.refuse_alarm()


def test_the_courier_keeps_the_latest_head_and_minds_nothing_else(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """Refusals tell none, earlier ones and broken bytes change nothing, and no disk stops a reply."""
    home = joined(a_home(tmp_path), coordinator)
    site = approved(tmp_path, home, study_for(home), coordinator)
    with site.open:
        first, _ = site.desk().answer(coordinator.task(site))
        record = coordinator.record(site, number=1, reply=first)
        second, _ = site.desk().answer(coordinator.task(site, number=2, record=record))
        refusal, _ = site.desk().answer(b"no task")
    folder = tmp_path / "courier"
    folder.mkdir()
    assert carried_head(folder) is None
    keep_head(refusal, folder)
    assert carried_head(folder) is None
    for body in (second, first, b"no reply", refusal):
        keep_head(body, folder)
        assert carried_head(folder) == reply_of(second).ledger_head
    (folder / NAME).write_bytes(b"x" * 10_000)
    assert carried_head(folder) is None
    keep_head(second, tmp_path / "nowhere")
