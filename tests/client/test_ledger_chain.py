"""A ledger that was edited, cut, copied back or cannot be written is noticed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import stat
from decimal import Decimal

import pytest
from ledger_site import new_site, patient, study_hash

from oncofed_client import chain
from oncofed_client.ledger import Ledger
from oncofed_common.errors import BudgetRefusal, IdentityRefusal, Refusal, SystemRefusal
from oncofed_common.identity import SigningKey, canonical

RUN = "5" * 32
A = study_hash("a")
PATIENTS = [patient(n) for n in range(4)]


def draw(ledger, round_number, frame=PATIENTS):
    return ledger.draw(
        A, run=RUN, round=round_number, task_digest=f"{round_number:064x}", frame=frame
    )


@pytest.fixture(scope="module")
def grown_site(tmp_path_factory):
    """Five rows: init, approval of 9 rounds at 0.1 each, two draws, one reply."""
    site = new_site(tmp_path_factory.mktemp("grown") / "home")
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1, rounds=9, rdp="0.9"))
        draw(ledger, 1)
        draw(ledger, 2)
        ledger.record_reply(A, round=1, reply_digest="1" * 64, size=7)
    return site


@pytest.fixture
def site(grown_site, tmp_path):
    """A copy of the grown home, for one test."""
    shutil.copytree(grown_site.root, tmp_path / "home")
    return grown_site.but(root=tmp_path / "home")


def opened(site):
    return Ledger.open(site, clock=site.clock)


def by_force(path, *statements):
    """Edit the file as somebody would who has it: the triggers are taken off and put back."""
    with sqlite3.connect(path) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*statement)
        for _, sql in triggers:
            connection.execute(sql)
    connection.close()


def refused_code(site) -> str:
    with pytest.raises(Refusal) as refusal:
        opened(site)
    return refusal.value.code


def test_a_ledger_is_its_owners_alone_and_is_made_once(site):
    path = site.ledger_path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.head_path.stat().st_mode) == 0o600
    with pytest.raises(SystemRefusal) as refusal:
        Ledger.create(site, clock=site.clock)
    assert refusal.value.code == "ledger_exists"


def test_the_file_itself_refuses_changes_deletions_and_gaps(site):
    with sqlite3.connect(site.ledger_path) as connection:
        for statement in (
            "UPDATE ledger SET kind = 'draw' WHERE sequence = 1",
            "DELETE FROM ledger WHERE sequence = 4",
            "INSERT INTO ledger SELECT 9, kind, body, previous, 'x', signature FROM ledger LIMIT 1",
            "INSERT OR REPLACE INTO ledger SELECT * FROM ledger WHERE sequence = 2",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("row", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("column", ["kind", "body", "previous", "hash", "signature"])
def test_any_column_of_any_row_that_is_edited_is_noticed(site, row, column):
    path = site.ledger_path
    with sqlite3.connect(path) as connection:
        (before,) = connection.execute(
            f"SELECT {column} FROM ledger WHERE sequence = ?", (row,)
        ).fetchone()
    connection.close()
    if column == "body":
        after: object = before.replace(b"0", b"1", 1) if b"0" in before else before + b" "
        assert after != before
    elif column == "kind":
        after = "epoch" if before != "epoch" else "draw"
    else:
        after = ("0" if before[0] != "0" else "1") + before[1:]
    by_force(path, (f"UPDATE ledger SET {column} = ? WHERE sequence = ?", (after, row)))
    assert refused_code(site) in {"ledger_damaged", "ledger_behind"}


def test_a_row_rewritten_with_a_right_hash_still_lacks_the_signature(site):
    """Planted: the charge of a draw is made empty, hash and chain recomputed, under another key."""
    path = site.ledger_path
    forger = SigningKey.generate()
    rows = chain.Chain(path)
    found = rows.rows(after=0)
    rows.close()
    after, statements = found[1], []
    for row in found[2:]:
        body = dict(row.body) | ({"frame": "0"} if row.kind == "draw" else {})
        made = chain.make_row(row.kind, body, after=after, key=forger)
        statements.append(
            (
                "UPDATE ledger SET body = ?, previous = ?, hash = ?, signature = ?"
                " WHERE sequence = ?",
                (canonical(made.body), made.previous, made.hash, made.signature, made.sequence),
            )
        )
        after = made
    by_force(path, *statements)
    assert refused_code(site) == "ledger_damaged"


def test_a_ledger_without_its_triggers_is_noticed(site):
    path = site.ledger_path
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_delete")
    connection.close()
    assert refused_code(site) == "ledger_damaged"


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_deleted_tail_is_noticed_by_the_copied_head(site, cut):
    path = site.ledger_path
    by_force(path, ("DELETE FROM ledger WHERE sequence > ?", (5 - cut,)))
    assert refused_code(site) == "ledger_behind"


def test_rows_that_vanish_under_an_open_ledger_are_noticed(site):
    path = site.ledger_path
    with opened(site) as ledger:
        by_force(path, ("DELETE FROM ledger WHERE sequence > 3",))
        with pytest.raises(BudgetRefusal):
            draw(ledger, 3)


def test_a_restored_backup_is_noticed(site, tmp_path):
    path = site.ledger_path
    shutil.copy(path, tmp_path / "backup")
    with opened(site) as ledger:
        draw(ledger, 3)
    shutil.copy(tmp_path / "backup", path)
    assert refused_code(site) == "ledger_behind"


def test_a_backup_restored_with_its_head_is_noticed_by_the_first_task_that_shows_a_later_one(
    site, tmp_path
):
    """And from then on by every task, also of a coordinator that knows less."""
    shutil.copytree(site.root, tmp_path / "backup")
    with opened(site) as ledger:
        draw(ledger, 3)
        later = ledger.commit_head()
    shutil.rmtree(site.root)
    shutil.copytree(tmp_path / "backup", site.root)
    with opened(site) as ledger:
        with pytest.raises(BudgetRefusal) as refusal:
            ledger.check_echo(later, revocation_epoch=0)
        assert refusal.value.code == "ledger_behind"
    with opened(site) as ledger:
        for attempt in (
            lambda: ledger.check_echo(None, revocation_epoch=0),
            lambda: draw(ledger, 3),
            lambda: ledger.reserve(site.approval("b", number=2)),
        ):
            with pytest.raises(BudgetRefusal):
                attempt()


def test_a_cloned_disk_is_noticed_as_soon_as_one_copy_sees_the_others_head(site, tmp_path):
    clone = site.but(root=tmp_path / "clone")
    shutil.copytree(site.root, clone.root)
    with opened(site) as ledger, opened(clone) as twin:
        draw(ledger, 3)
        draw(twin, 4)
        shown = ledger.commit_head()
        assert shown.sequence == twin.commit_head().sequence
        with pytest.raises(BudgetRefusal):
            twin.check_echo(shown, revocation_epoch=0)
        with pytest.raises(BudgetRefusal):
            draw(twin, 5)


@pytest.mark.parametrize("what", ["ledger", "head", "unreadable"])
def test_a_missing_ledger_or_head_is_never_silently_begun_anew(site, what):
    path = site.ledger_path
    if what == "ledger":
        path.unlink()
    elif what == "head":
        site.head_path.unlink()
    else:
        site.head_path.write_bytes(b"{")
    assert refused_code(site) == "ledger_behind"


def test_a_file_that_is_no_ledger_is_refused(site):
    path = site.ledger_path
    path.write_bytes(b"this is not a database, and it is long enough to be looked at" * 100)
    assert refused_code(site) == "ledger_damaged"


def test_a_head_copy_that_a_crash_left_one_row_behind_is_renewed(site):
    old = site.head_path.read_bytes()
    with opened(site) as ledger:
        draw(ledger, 3)
    site.head_path.write_bytes(old)
    opened(site).close()
    assert site.head_path.read_bytes() != old
    assert chain.read_head(site.head_path).sequence == 6


@pytest.mark.parametrize("slot", [0, 1])
def test_a_head_copy_cut_short_in_one_slot_leaves_the_other(site, slot):
    """Row 5 went to slot 1, row 4 to slot 0; whichever was torn, the ledger opens and renews it."""
    whole = site.head_path.read_bytes()
    torn = bytearray(whole)
    torn[slot * 512 + 100 : (slot + 1) * 512] = bytes(412)
    site.head_path.write_bytes(bytes(torn))
    assert chain.read_head(site.head_path).sequence == (5 if slot == 0 else 4)
    opened(site).close()
    assert chain.read_head(site.head_path).sequence == 5


def test_settling_charges_everybody_the_most_that_can_have_been_lost(site, tmp_path):
    path = site.ledger_path
    shutil.copy(path, tmp_path / "backup")
    newcomer = patient(77)
    with opened(site) as ledger:
        draw(ledger, 3, [*PATIENTS, newcomer])
        lost_head = ledger.commit_head()
    shutil.copy(tmp_path / "backup", path)
    unknown = site.approval("c", number=2, rounds=2, rdp="0.5")["approval"]
    with Ledger.settle(site, key=site.approver_signing, lost=[unknown], clock=site.clock) as ledger:
        spent = ledger.spent_by_patient()
        # 2 of 9 rounds are known (0.2); the other 7 and all of the unknown study are charged.
        assert {str(loss) for loss in spent.values()} == {"1.4"}
        assert ledger.exhausted([newcomer], charge=ledger_room(site, "1.2")) == []
        assert ledger.exhausted([newcomer], charge=ledger_room(site, "1.1")) == [newcomer]
        assert not ledger.is_standing(A)
        ledger.check_echo(lost_head, revocation_epoch=0)
        ledger.reserve(site.approval("b", number=2))
        ledger.draw(study_hash("b"), run=RUN, round=1, task_digest="4" * 64, frame=PATIENTS)
        assert ledger.commit_head().sequence > lost_head.sequence
    opened(site).close()


def ledger_room(site, spent: str):
    """The loss that is left when ``spent`` was spent."""
    return Decimal(site.limits.room_units) / 10**9 - Decimal(spent)


def test_only_the_approver_can_settle(site):
    path = site.ledger_path
    by_force(path, ("DELETE FROM ledger WHERE sequence > 3",))
    with pytest.raises(IdentityRefusal):
        Ledger.settle(site, key=site.trainer_signing, lost=[], clock=site.clock)
    Ledger.settle(site, key=site.approver_signing, lost=[], clock=site.clock).close()
    opened(site).close()


def test_without_the_site_secret_every_charge_falls_on_everybody(site):
    with opened(site) as ledger:
        draw(ledger, 3)
        draw(ledger, 4, PATIENTS[:1])
    other = site.but(site_secret=b"another secret: nobody is known.")
    assert refused_code(other) == "secret_changed"
    with Ledger.settle(other, key=site.approver_signing, lost=[], clock=site.clock) as ledger:
        # The dearest patient stood at 0.4; the 5 rounds left of 9 make 0.5 more.
        assert str(ledger.budget()["most_charged"]) == "0.9"
        assert ledger.exhausted([patient(500)], charge=ledger_room(site, "0.8")) == [patient(500)]


def test_a_trainer_key_changes_only_with_old_new_and_approver(site):
    new = SigningKey.generate()
    with opened(site) as ledger:
        ledger.rotate(new, key=site.approver_signing)
        draw(ledger, 3)
    assert refused_code(site) == "key_mismatch"
    with opened(site.but(trainer_signing=new)) as ledger:
        draw(ledger, 4)


def test_acts_of_the_approver_need_the_approvers_signature(site):
    with opened(site) as ledger:
        for act in (
            lambda key: ledger.withdraw(A, key=key),
            lambda key: ledger.exclude(PATIENTS[0], key=key),
            lambda key: ledger.distrust("7" * 64, key=key),
        ):
            with pytest.raises(IdentityRefusal):
                act(site.trainer_signing)
    opened(site).close()


def test_an_exclusion_that_only_the_trainer_signed_is_noticed(site):
    """Planted: a row as the trainer could write it alone."""
    rows = chain.Chain(site.ledger_path)
    body = {"patient": PATIENTS[0], "at_s": 1, "approver": "0" * 128}
    rows.add(chain.make_row("exclude", body, after=rows.rows(after=4)[0], key=site.trainer_signing))
    rows.close()
    assert refused_code(site) == "ledger_damaged"


def test_a_disk_without_room_refuses_before_anything_is_charged(site, monkeypatch):
    with opened(site) as ledger:
        rows = ledger.head().sequence
        real = os.statvfs(site.root)
        monkeypatch.setattr(
            os, "statvfs", lambda path: os.statvfs_result((*real[:4], 10, *real[5:10]))
        )
        with pytest.raises(SystemRefusal) as refusal:
            draw(ledger, 3)
        monkeypatch.undo()
        assert refusal.value.code == "disk_full"
        assert ledger.head().sequence == rows


def test_a_database_that_is_full_keeps_what_it_had(site):
    """SQLite's own limit on pages stands in for a full disk."""
    with opened(site) as ledger:
        ledger._book._chain._connection.execute("PRAGMA max_page_count = 1")
        codes = set()
        for number in range(3, 9):
            try:
                draw(ledger, number, [patient(100 * number + n) for n in range(40)])
            except SystemRefusal as refusal:
                codes.add(refusal.code)
        assert codes == {"disk_full"}
        rows = ledger.head().sequence
    with opened(site) as ledger:
        assert ledger.head().sequence == rows


def test_two_processes_write_one_chain(site):
    with opened(site) as ledger:
        writers = [
            multiprocessing.get_context("fork").Process(target=_exclude, args=(site, start))
            for start in (100, 200)
        ]
        for writer in writers:
            writer.start()
        for number in range(3, 8):
            draw(ledger, number)
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0]
        assert len(ledger.excluded()) == 10
    with opened(site) as ledger:
        assert ledger.head().sequence == 5 + 5 + 10


def _exclude(site, start):
    with Ledger.open(site, clock=site.clock) as ledger:
        for number in range(start, start + 5):
            ledger.exclude(patient(number), key=site.approver_signing)


@pytest.mark.parametrize("step", ["chain.add", "write_head"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_either_side_of_a_write_charges_once_and_never_less(
    site, monkeypatch, step, when
):
    """The row is written, or not; the repeated task then finds it, or writes it."""

    class Killed(BaseException):
        pass

    real_add, real_head = chain.Chain.add, chain.write_head

    def add(self, row):
        if when == "after":
            real_add(self, row)
        raise Killed

    def head(path, row, *, key):
        if when == "after":
            real_head(path, row, key=key)
        raise Killed

    ledger = opened(site)
    if step == "chain.add":
        monkeypatch.setattr(chain.Chain, "add", add)
    else:
        monkeypatch.setattr("oncofed_client.book.write_head", head)
    with pytest.raises(Killed):
        draw(ledger, 3)
    monkeypatch.undo()
    ledger.close()
    with opened(site) as ledger:
        assert draw(ledger, 3) == PATIENTS
        assert {str(loss) for loss in ledger.spent_by_patient().values()} == {"0.3"}
