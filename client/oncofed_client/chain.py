"""A file of rows that can only grow: SQLite, hash-chained, signed, synced.

    hash[n] = SHA-256(canonical {sequence, kind, body, previous = hash[n-1]})
    signature[n] = trainer key over {sequence, hash[n]}

Each row is one transaction that is on the disk when it returns (write-ahead log, ``synchronous=FULL``: one
sync a row); triggers refuse updates, deletions and gaps. The **head** (sequence, hash, signature of the
last row) is copied to a file on another volume after every row: a ledger that does not reach its copied
head has lost rows.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oncofed_common.durable import sync_folder
from oncofed_common.errors import BudgetRefusal, IdentityRefusal, SystemRefusal
from oncofed_common.identity import PublicKey, SigningKey, canonical, digest

NO_ROW = "0" * 64
SPARE_BYTES = 1 << 20
"""Room that must be left on both volumes before a row is added."""
SLOT_BYTES = 512
"""Of the copied head's two slots; a head is about 280 bytes."""

SCHEMA = (
    "CREATE TABLE ledger (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL,"
    " previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, signature TEXT NOT NULL) STRICT",
    "CREATE TRIGGER no_update BEFORE UPDATE ON ledger"
    " BEGIN SELECT RAISE(ABORT, 'rows are never changed'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON ledger"
    " BEGIN SELECT RAISE(ABORT, 'rows are never deleted'); END",
    "CREATE TRIGGER no_gap BEFORE INSERT ON ledger"
    " WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM ledger)"
    " BEGIN SELECT RAISE(ABORT, 'rows follow each other'); END",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; ``body`` holds integers, strings, lists and objects of them."""

    sequence: int
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str
    signature: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """How far a ledger has come."""

    sequence: int
    hash: str
    signature: str


@dataclass(frozen=True, kw_only=True)
class CopiedHead:
    """The copy of a head that is kept apart from the ledger: what a lost ledger held at least.

    Args:
        approvals: how many studies were approved so far.
        draws: the number of the last draw.
        everyone: what settlements charged everybody so far, in billionths.
    """

    sequence: int
    hash: str
    approvals: int
    draws: int
    everyone: int
    signature: str

    def payload(self) -> dict[str, Any]:
        """What is signed."""
        fields = asdict(self)
        del fields["signature"]
        return fields


def make_row(kind: str, body: Mapping[str, Any], *, after: Row | None, key: SigningKey) -> Row:
    """The row that follows ``after``, signed by the trainer key."""
    sequence = after.sequence + 1 if after else 1
    previous = after.hash if after else NO_ROW
    found = row_hash(sequence, kind, body, previous=previous)
    return Row(
        sequence=sequence,
        kind=kind,
        body=body,
        previous=previous,
        hash=found,
        signature=key.sign("ledger-row", {"sequence": sequence, "hash": found}),
    )


def row_hash(sequence: int, kind: str, body: Mapping[str, Any], *, previous: str) -> str:
    """SHA-256 of everything that a row says and of the row before it."""
    return digest(
        canonical({"sequence": sequence, "kind": kind, "body": body, "previous": previous})
    )


def verify_row(row: Row, *, after: Row | None, key: PublicKey) -> None:
    """Nothing, if ``row`` follows ``after`` unchanged and ``key`` signed it.

    Raises:
        SystemRefusal: code ``ledger_damaged``.
    """
    follows = row.sequence == (after.sequence + 1 if after else 1)
    chained = row.previous == (after.hash if after else NO_ROW)
    try:
        intact = row.hash == row_hash(row.sequence, row.kind, row.body, previous=row.previous)
        key.verify("ledger-row", {"sequence": row.sequence, "hash": row.hash}, row.signature)
    except IdentityRefusal:
        intact = False
    if not (follows and chained and intact):
        raise damaged(f"row {row.sequence} of the ledger that is not as it was written")


class Chain:
    """An open ledger file, for one process; safe against others that write to it too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        with _as_refusals():
            self._connection = sqlite3.connect(
                path.absolute().as_uri() + "?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")

    @classmethod
    def create(cls, path: Path, first: Row) -> Chain:
        """A new file (mode 0600) with its first row.

        Raises:
            SystemRefusal: codes ``ledger_exists``, ``disk_full``, ``ledger_unwritable``.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise SystemRefusal(
                "a ledger that exists already",
                allowed="one ledger for a home, for life",
                next="use the home as it is",
                code="ledger_exists",
            ) from None
        chain = cls(path)
        with chain._transaction():
            for statement in SCHEMA:
                chain._connection.execute(statement)
            chain._insert(first)
        return chain

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One writer at a time, from the check to the copied head."""
        try:
            handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unwritable(error.errno == errno.ENOSPC) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def rows(self, *, after: int) -> list[Row]:
        """Rows with a higher sequence, in order; not verified.

        Raises:
            SystemRefusal: code ``ledger_damaged``.
        """
        columns = "sequence, kind, body, previous, hash, signature"
        with _as_refusals():
            self._refuse_other_schema()
            found = self._connection.execute(
                f"SELECT {columns} FROM ledger WHERE sequence > ? ORDER BY sequence",  # noqa: S608
                (after,),
            ).fetchall()
        return [_row(*values) for values in found]

    def holds(self, row: Row) -> bool:
        """Whether the file still has this very row."""
        with _as_refusals():
            found = self._connection.execute(
                "SELECT hash FROM ledger WHERE sequence = ?", (row.sequence,)
            ).fetchone()
        return found is not None and found[0] == row.hash

    def add(self, row: Row) -> None:
        """Write one row durably; when this returns it is on the disk.

        Raises:
            SystemRefusal: codes ``disk_full``, ``ledger_unwritable``; then nothing was added.
        """
        refuse_full(self._path.parent)
        with self._transaction():
            self._insert(row)

    def close(self) -> None:
        self._connection.close()

    def _insert(self, row: Row) -> None:
        self._connection.execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
            (
                row.sequence,
                row.kind,
                canonical(row.body),
                row.previous,
                row.hash,
                row.signature,
            ),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _as_refusals():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _refuse_other_schema(self) -> None:
        found = self._connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
        ).fetchall()
        if tuple(sql for (sql,) in found) != SCHEMA:
            raise damaged("a ledger whose table or triggers were changed")


def read_head(path: Path) -> CopiedHead | None:
    """The newer of the two copied heads, or None where there is no copy.

    Raises:
        BudgetRefusal: code ``ledger_behind``: there is a copy, and nobody can tell what it says.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        content = b""
    slots = (content[:SLOT_BYTES], content[SLOT_BYTES:])
    heads = [head for head in map(_head, slots) if head is not None]
    if not heads:
        raise behind("a copy of the ledger's head that cannot be read")
    return max(heads, key=lambda head: head.sequence)


def write_head(
    path: Path, row: Row, *, approvals: int, draws: int, everyone: int, key: SigningKey
) -> None:
    """Copy a row's head durably, and what is told by ``CopiedHead`` with it.

    Odd and even rows have a slot each, so that a write which was cut short leaves the head before.

    Raises:
        SystemRefusal: codes ``disk_full``, ``ledger_unwritable``.
    """
    payload = {
        "sequence": row.sequence,
        "hash": row.hash,
        "approvals": approvals,
        "draws": draws,
        "everyone": everyone,
    }
    line = canonical(payload | {"signature": key.sign("ledger-head", payload)})
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(handle).st_size == 0:
                sync_folder(path.parent)  # before it says anything: else nobody would sync it again
            os.pwrite(handle, line.ljust(SLOT_BYTES - 1) + b"\n", row.sequence % 2 * SLOT_BYTES)
            os.fdatasync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise unwritable(error.errno == errno.ENOSPC) from None


def refuse_full(folder: Path) -> None:
    """Nothing, if the volume has room and takes a file.

    Raises:
        SystemRefusal: codes ``disk_full``, ``ledger_unwritable``.
    """
    trial = folder / ".room.tmp"
    try:
        state = os.statvfs(folder)
        full = state.f_bavail * state.f_frsize < SPARE_BYTES
        if not full:
            trial.write_bytes(bytes(4096))
            trial.unlink()
    except OSError as error:
        raise unwritable(error.errno == errno.ENOSPC) from None
    if full:
        raise unwritable(True)


def behind(found: str) -> BudgetRefusal:
    """The refusal of a ledger that is not the newest one."""
    return BudgetRefusal(
        found,
        allowed="a ledger that reaches every head that was ever seen of it",
        next="restore the newest ledger, or have the approver settle the loss",
        code="ledger_behind",
    )


def damaged(found: str) -> SystemRefusal:
    """The refusal of a ledger that was changed."""
    return SystemRefusal(
        found,
        allowed="the rows as they were written and signed",
        next="restore the newest intact copy of the ledger, then settle what is missing",
        code="ledger_damaged",
    )


def _head(slot: bytes) -> CopiedHead | None:
    try:
        fields = json.loads(slot)
        return CopiedHead(
            sequence=int(fields["sequence"]),
            hash=str(fields["hash"]),
            approvals=int(fields["approvals"]),
            draws=int(fields["draws"]),
            everyone=int(fields["everyone"]),
            signature=str(fields["signature"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _row(*values: Any) -> Row:
    sequence, kind, body, previous, found, signature = values
    try:
        fields = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise damaged(f"row {sequence} of the ledger that cannot be read")
    return Row(
        sequence=sequence,
        kind=kind,
        body=fields,
        previous=previous,
        hash=found,
        signature=signature,
    )


def unwritable(full: bool) -> SystemRefusal:
    """The refusal of a volume that takes no row; ``full`` says why."""
    if full:
        return SystemRefusal(
            "a volume of the ledger that is full",
            allowed=f"{SPARE_BYTES} bytes free for the ledger and for its copied head",
            next="free space on both volumes",
            code="disk_full",
        )
    return SystemRefusal(
        "a ledger or copied head that cannot be written",
        allowed="two writable volumes",
        next="check that both are mounted for writing and belong to the trainer's user",
        code="ledger_unwritable",
    )


@contextmanager
def _as_refusals() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        name = getattr(error, "sqlite_errorname", "")
        raise unwritable(name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")) from None
    except sqlite3.DatabaseError:
        raise damaged("a ledger file that is not intact") from None
