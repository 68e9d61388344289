"""A ledger that was edited, cut, copied back or cannot be written is noticed."""

from __future__ import annotations

import shutil
import sqlite3
import stat

import pytest
from grown_ledger import by_force, draw, opened, refused_code

from oncofed_client import chain
from oncofed_client.ledger import Ledger
from oncofed_common.errors import BudgetRefusal, SystemRefusal
from oncofed_common.identity import SigningKey, canonical


def test_a_ledger_is_its_owners_alone_and_is_made_once(grown):
    path = grown.ledger_path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(grown.head_path.stat().st_mode) == 0o600
    with pytest.raises(SystemRefusal) as refusal:
        Ledger.create(grown, clock=grown.clock)
    assert refusal.value.code == "ledger_exists"


def test_the_file_itself_refuses_changes_deletions_and_gaps(grown):
    with sqlite3.connect(grown.ledger_path) as connection:
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
def test_any_column_of_any_row_that_is_edited_is_noticed(grown, row, column):
    path = grown.ledger_path
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
    assert refused_code(grown) in {"ledger_damaged", "ledger_behind"}


def test_a_row_rewritten_with_a_right_hash_still_lacks_the_signature(grown):
    """Planted: the charge of a draw is made empty, hash and chain recomputed, under another key."""
    path = grown.ledger_path
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
    assert refused_code(grown) == "ledger_damaged"


def test_a_ledger_without_its_triggers_is_noticed(grown):
    path = grown.ledger_path
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_delete")
    connection.close()
    assert refused_code(grown) == "ledger_damaged"


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_deleted_tail_is_noticed_by_the_copied_head(grown, cut):
    path = grown.ledger_path
    by_force(path, ("DELETE FROM ledger WHERE sequence > ?", (5 - cut,)))
    assert refused_code(grown) == "ledger_behind"


def test_rows_that_vanish_under_an_open_ledger_are_noticed(grown):
    path = grown.ledger_path
    with opened(grown) as ledger:
        by_force(path, ("DELETE FROM ledger WHERE sequence > 3",))
        with pytest.raises(BudgetRefusal):
            draw(ledger, 3)


def test_a_restored_backup_is_noticed(grown, tmp_path):
    path = grown.ledger_path
    shutil.copy(path, tmp_path / "backup")
    with opened(grown) as ledger:
        draw(ledger, 3)
    shutil.copy(tmp_path / "backup", path)
    assert refused_code(grown) == "ledger_behind"


def test_a_backup_restored_with_its_head_is_noticed_by_the_first_task_that_shows_a_later_one(
    grown, tmp_path
):
    """And from then on by every task, also of a coordinator that knows less."""
    shutil.copytree(grown.root, tmp_path / "backup")
    with opened(grown) as ledger:
        draw(ledger, 3)
        later = ledger.commit_head()
    shutil.rmtree(grown.root)
    shutil.copytree(tmp_path / "backup", grown.root)
    with opened(grown) as ledger:
        with pytest.raises(BudgetRefusal) as refusal:
            ledger.check_head(later)
        assert refusal.value.code == "ledger_behind"
    with opened(grown) as ledger:
        for attempt in (
            lambda: ledger.check_head(None),
            lambda: draw(ledger, 3),
            lambda: ledger.reserve(grown.approval("b", number=2)),
        ):
            with pytest.raises(BudgetRefusal):
                attempt()


def test_a_cloned_disk_is_noticed_as_soon_as_one_copy_sees_the_others_head(grown, tmp_path):
    clone = grown.but(root=tmp_path / "clone")
    shutil.copytree(grown.root, clone.root)
    with opened(grown) as ledger, opened(clone) as twin:
        draw(ledger, 3)
        draw(twin, 4)
        shown = ledger.commit_head()
        assert shown.sequence == twin.commit_head().sequence
        with pytest.raises(BudgetRefusal):
            twin.check_head(shown)
        with pytest.raises(BudgetRefusal):
            draw(twin, 5)


@pytest.mark.parametrize("what", ["ledger", "head", "unreadable"])
def test_a_missing_ledger_or_head_is_never_silently_begun_anew(grown, what):
    path = grown.ledger_path
    if what == "ledger":
        path.unlink()
    elif what == "head":
        grown.head_path.unlink()
    else:
        grown.head_path.write_bytes(b"{")
    assert refused_code(grown) == "ledger_behind"


def test_a_file_that_is_no_ledger_is_refused(grown):
    path = grown.ledger_path
    path.write_bytes(b"this is not a database, and it is long enough to be looked at" * 100)
    assert refused_code(grown) == "ledger_damaged"


def test_a_head_copy_that_a_crash_left_one_row_behind_is_renewed(grown):
    old = grown.head_path.read_bytes()
    with opened(grown) as ledger:
        draw(ledger, 3)
    grown.head_path.write_bytes(old)
    opened(grown).close()
    assert grown.head_path.read_bytes() != old
    assert chain.read_head(grown.head_path).sequence == 6


@pytest.mark.parametrize("slot", [0, 1])
def test_a_head_copy_cut_short_in_one_slot_leaves_the_other(grown, slot):
    """Row 5 went to slot 1, row 4 to slot 0; whichever was torn, the ledger opens and renews it."""
    whole = grown.head_path.read_bytes()
    torn = bytearray(whole)
    torn[slot * 512 + 100 : (slot + 1) * 512] = bytes(412)
    grown.head_path.write_bytes(bytes(torn))
    assert chain.read_head(grown.head_path).sequence == (5 if slot == 0 else 4)
    opened(grown).close()
    assert chain.read_head(grown.head_path).sequence == 5
