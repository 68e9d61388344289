"""Faults that would charge too little or let out too much: each is planted, and some crash shows it."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_site import a_life, check_all
from grown_ledger import by_force
from site_builder import Coordinator, Site, a_site

from oncofed_client import chain, rules
from oncofed_client.chain import Chain, write_head
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.trainer import spool
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_common import durable
from oncofed_common.privacy.stream import Stream

pytestmark = pytest.mark.slow

Patch = pytest.MonkeyPatch


COORDINATOR = Coordinator()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = a_site(tmp_path_factory.mktemp("site"), COORDINATOR)
    made.open.close()
    return made


@pytest.fixture(scope="module")
def task(site: Site) -> bytes:
    return COORDINATOR.task(site)


def a_charge_after_the_reply(patch: Patch) -> None:
    """What is due is written when somebody next looks at the ledger of this process."""
    late: defaultdict[Ledger, list[Callable[[], Any]]] = defaultdict(list)
    draw, record, look = Ledger.draw, Ledger.record_reply, Ledger.budget

    def draws(ledger: Ledger, study: str, **fields: Any) -> Any:
        late[ledger].append(lambda: draw(ledger, study, **fields))
        return fields["frame"]

    def records(ledger: Ledger, study: str, **fields: Any) -> None:
        late[ledger].append(lambda: record(ledger, study, **fields))

    def looks(ledger: Ledger) -> Any:
        while late[ledger]:
            late[ledger].pop(0)()
        return look(ledger)

    patch.setattr(Ledger, "draw", draws)
    patch.setattr(Ledger, "record_reply", records)
    patch.setattr(Ledger, "budget", looks)
    patch.setattr(Ledger, "is_drawn", lambda *_, **__: True)


def a_refund_after_a_crash(patch: Patch) -> None:
    """A ledger that was not closed gives back what was drawn, and its head says so too."""
    opened = Ledger.open.__func__

    def refunding(kind: type[Ledger], home: Home, **more: Any) -> Ledger:
        log = home.ledger_path.with_name(home.ledger_path.name + "-wal")
        if log.exists() and log.stat().st_size:
            by_force(home.ledger_path, ("DELETE FROM ledger WHERE sequence > 2",))
            home.head_path.unlink()
            rows = Chain(home.ledger_path)
            first = rows.rows(after=1)[0]
            write_head(
                home.head_path, first, approvals=1, draws=0, everyone=0, key=home.trainer_key()
            )
            rows.close()
        return opened(kind, home, **more)

    patch.setattr(Ledger, "open", classmethod(refunding))


def a_reply_without_fsync(patch: Patch) -> None:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    patch.setattr(spool, "write_private", write)


def a_reply_renamed_before_its_bytes_are_synced(patch: Patch) -> None:
    def write(path: Path, data: bytes) -> None:
        draft = path.with_name(f".{path.name}.1.tmp")
        draft.write_bytes(data)
        draft.replace(path)
        durable.sync_folder(path.parent)

    patch.setattr(spool, "write_private", write)


def a_reply_whose_name_is_not_synced(patch: Patch) -> None:
    patch.setattr(durable, "sync_folder", lambda _folder: None)
    patch.setattr(spool, "sync_folder", lambda _folder: None)


def the_same_noise_again(patch: Patch) -> None:
    patch.setattr(Stream, "from_os", lambda: Stream(b"k" * 32, protected=True))


def a_second_result_for_who_asks_again(patch: Patch) -> None:
    there = os.path.exists
    patch.setattr(TaskDesk, "_recall", lambda *_, **__: None)
    patch.setattr(rules, "refuse_lost_reply", lambda *_: None)
    patch.setattr(Ledger, "record_reply", lambda *_, **__: None)
    patch.setattr(spool.Path, "exists", lambda path: there(path) and path.suffix != ".reply")


def what_a_dead_attempt_left_stays(patch: Patch) -> None:
    patch.setattr(spool, "discard_drafts", lambda _path: None)


def a_row_whose_transaction_ends_later(patch: Patch) -> None:
    insert, close = Chain._insert, Chain.close

    def inserts(rows: Chain, row: chain.Row) -> None:
        if not rows._connection.in_transaction:
            rows._connection.execute("BEGIN IMMEDIATE")
        insert(rows, row)

    def closes(rows: Chain) -> None:
        if rows._connection.in_transaction:
            rows._connection.execute("COMMIT")
        close(rows)

    patch.setattr(Chain, "_insert", inserts)
    patch.setattr(Chain, "_transaction", lambda _rows: chain._as_refusals())
    patch.setattr(Chain, "close", closes)


def a_ledger_that_is_not_synced(patch: Patch) -> None:
    start = Chain.__init__

    def loose(rows: Chain, path: Path) -> None:
        start(rows, path)
        rows._connection.execute("PRAGMA synchronous=NORMAL")

    patch.setattr(Chain, "__init__", loose)


SEEN = {
    a_charge_after_the_reply: "less was charged than left",
    a_refund_after_a_crash: "less was charged than left",
    a_reply_without_fsync: "cannot be finished",
    a_reply_renamed_before_its_bytes_are_synced: "cannot be finished",
    a_reply_whose_name_is_not_synced: "cannot be finished",
    the_same_noise_again: "two attempts under one noise",
    a_second_result_for_who_asks_again: "a second result left",
    what_a_dead_attempt_left_stays: "two results of one round",
    a_row_whose_transaction_ends_later: "does not open",
    a_ledger_that_is_not_synced: "does not open",
}


@pytest.mark.parametrize("plant", SEEN)
def test_some_crash_shows_the_fault(
    site: Site, task: bytes, tmp_path: Path, monkeypatch: Patch, plant: Callable[[Patch], None]
) -> None:
    """The same checks that hold for the trainer as it is."""
    root = shutil.copytree(site.home.root, tmp_path / "north")
    plant(monkeypatch)
    images = a_life(root, task)
    with pytest.raises(AssertionError, match=SEEN[plant]):
        check_all(images, images.crashes[::-1], tmp_path / "after", site=site, task=task)
