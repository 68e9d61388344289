"""What was refused at the socket: code, time, size and digest, for the hospital; never a word of a caller's.

A chain of its own beside the ledger, ``refused.sqlite``: rows are only added, chained, signed by the trainer
and synced (``chain.py``); after each the head is copied to ``head/`` of the home, which lies outside of the
trainer's folder and its backups, so that rows taken off the end are missed. One row a refusal:

    at_s, code, size, digest (of the request), sent_size, sent_digest (of what was answered), unlogged

However many requests come, the chain does not fill the disk: ``AT_ONCE`` rows, then one every ``EVERY_S``
seconds. ``unlogged`` counts the refusals since the row before that got no row of their own.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oncofed_client.chain import Chain, Row, damaged, make_row, unwritable, verify_row
from oncofed_common.durable import discard_drafts, read_regular, sync_folder, write_private
from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import PublicKey, SigningKey, digest
from oncofed_common.wire import Code

AT_ONCE = 200
EVERY_S = 600.0

NAME = "refused.sqlite"

Word = Code | Literal["no_route", "no_http", "cut", "stalled", "too_many", "failed", "unlogged"]
"""A code of the wire, or what the service answered to something that was no task."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """One refusal: what came, and what was said to it."""

    code: Word
    request: bytes
    sent: bytes


class Allowance:
    """How many rows may be written: ``at_once`` to begin with, one more after every ``every_s``."""

    def __init__(self, *, at_once: int, every_s: float) -> None:
        self._most, self._every_s = float(at_once), every_s
        self._left, self._seen_s = self._most, float("-inf")

    def take(self, now_s: float) -> bool:
        """Whether one more may be written at ``now_s`` (seconds); if so, it counts."""
        if now_s > self._seen_s:
            self._left = min(self._most, self._left + (now_s - self._seen_s) / self._every_s)
        self._seen_s = now_s  # a clock that was set back gives nothing, and costs nothing
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RefusedChain(logging.Handler):
    """The chain of refusals at ``path``, its head copied to ``head``; it takes the records that
    ``note_refusal`` makes, and no other.

    Raises:
        SystemRefusal: codes ``refusals_damaged``, ``refusals_unwritable``; the disk.
    """

    def __init__(self, path: Path, *, head: Path, key: SigningKey) -> None:
        super().__init__()
        self._allowance = Allowance(at_once=AT_ONCE, every_s=EVERY_S)
        self._unlogged = 0
        self._key, self._head = key, head
        discard_drafts(head)  # of a trainer that died while it copied
        with _of_refusals():
            copied = _copied(head)
            if not path.exists():
                _refuse_shorter([], copied)
                _begin(path, key=key)
            self._chain = Chain(path)
            rows = self._chain.rows(after=0)
            _refuse_shorter(rows, copied)
            self._last = rows[-1]
        if len(rows) > 1:
            with suppress(SystemRefusal, OSError):  # it may be behind, or lost
                _copy_head(self._last, head)

    def emit(self, record: logging.LogRecord) -> None:
        refusal = getattr(record, "refusal", None)
        if not isinstance(refusal, Refused):
            return
        if not self._allowance.take(record.created):
            self._unlogged += 1
            return
        self._write(refusal, at_s=record.created)

    def close(self) -> None:
        """The count of what got no row becomes the last one."""
        if self._unlogged:
            self._write(Refused(code="unlogged", request=b"", sent=b""), at_s=time.time())
            self._unlogged = 0
        self._chain.close()
        super().close()

    def _write(self, refusal: Refused, *, at_s: float) -> None:
        body = {
            "at_s": int(at_s),
            "code": refusal.code,
            "size": len(refusal.request),
            "digest": digest(refusal.request),
            "sent_size": len(refusal.sent),
            "sent_digest": digest(refusal.sent),
            "unlogged": self._unlogged,
        }
        row = make_row("refused", body, after=self._last, key=self._key)
        try:
            self._chain.add(row)
        except SystemRefusal:  # a full disk: whoever was refused is refused all the same
            self._unlogged += 1
            return
        self._last, self._unlogged = row, 0
        with suppress(SystemRefusal, OSError):  # a full disk, or none: the copy stays behind
            _copy_head(row, self._head)


def note_refusal(
    log: logging.Logger, code: Word, *, request: bytes, sent: bytes, at_s: float = 0.0
) -> None:
    """Let the hospital know that ``request`` was refused; ``at_s``: the answer leaves then, not before."""
    refusal = Refused(code=code, request=request, sent=sent)
    log.warning("", extra={"refusal": refusal, "at_s": at_s})


def by_code(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """How often each code was said, most often first; ``unlogged`` for those that got no row."""
    times = Counter(str(row["code"]) for row in rows if row["code"] != "unlogged")
    times["unlogged"] = sum(int(row["unlogged"]) for row in rows)
    return [(code, count) for code, count in times.most_common() if count]


def read_refusals(folder: Path, keys: Sequence[PublicKey], *, head: Path) -> list[dict[str, Any]]:
    """All rows, oldest first, every one verified, and none missing up to the copied head.

    Args:
        keys: every key that this site's trainer ever had.

    Raises:
        SystemRefusal: codes ``refusals_damaged``, ``refusals_unwritable``.
    """
    path = folder / NAME
    with _of_refusals():
        copied = _copied(head)  # before the rows: a trainer that runs may add some meanwhile
        if not path.exists():
            _refuse_shorter([], copied)
            return []
    with _of_refusals(), closing(Chain(path)) as chain:
        rows = chain.rows(after=0)
        _refuse_shorter(rows, copied)
        before: Row | None = None
        for row in rows:
            _verify(row, after=before, keys=keys)
            before = row
    return [dict(row.body) for row in rows if row.kind == "refused"]


def _begin(path: Path, *, key: SigningKey) -> None:
    """A chain with its first row at ``path``, whole or not at all."""
    if any(path.with_name(f"{path.name}{end}").exists() for end in ("-wal", "-shm")):
        raise damaged("rows whose file was taken away")
    draft = path.with_suffix(".draft")
    for left in path.parent.glob(f"{draft.name}*"):  # by a trainer that died here
        left.unlink()
    Chain.create(draft, make_row("begun", {}, after=None, key=key)).close()
    draft.rename(path)
    sync_folder(path.parent)


def _copy_head(row: Row, path: Path) -> None:
    """Raises SystemRefusal: the disk."""
    write_private(path, json.dumps({"sequence": row.sequence, "hash": row.hash}).encode())


def _copied(head: Path) -> tuple[int, str] | None:
    """Sequence and hash of the copied head; None where there is no copy.

    Raises:
        SystemRefusal: as a chain says it: ``ledger_unwritable`` for what is there and cannot be read,
            ``ledger_damaged`` for what is no head.
    """
    if not os.path.lexists(head):
        return None
    try:
        found = json.loads(read_regular(head))
        return int(found["sequence"]), str(found["hash"])
    except OSError:
        raise unwritable(False) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged("a copied head that is none") from None


def _refuse_shorter(rows: Sequence[Row], copied: tuple[int, str] | None) -> None:
    """Nothing, where the chain reaches its copied head, or where there is no copy.

    Raises:
        SystemRefusal: code ``ledger_damaged``, as a chain says it.
    """
    if copied is not None and copied not in {(row.sequence, row.hash) for row in rows}:
        raise damaged("refusals that do not reach their copied head")


def _verify(row: Row, *, after: Row | None, keys: Sequence[PublicKey]) -> None:
    """Nothing, if the row follows and one of the keys signed it; the newest is asked first."""
    *older, newest = keys
    try:
        verify_row(row, after=after, key=newest)
    except SystemRefusal:
        if not older:
            raise
        _verify(row, after=after, keys=older)


@contextmanager
def _of_refusals() -> Iterator[None]:
    """What is said of a ledger's file, said of this one."""
    try:
        yield
    except SystemRefusal as error:
        if error.code == "disk_full":
            raise
        if error.code == "ledger_unwritable":
            raise SystemRefusal(
                "a chain of refusals, or its copied head, that cannot be read and written",
                allowed="trainer/refused.sqlite and head/refused-head.json, files of the trainer's user",
                next="check volumes, owners and permissions; what is no file there, move away",
                code="refusals_unwritable",
            ) from None
        raise SystemRefusal(
            "a chain of refusals that is not as the trainer wrote it",
            allowed="rows that were added, chained and signed, and never changed",
            next="where the home was restored, that is why; else find out who changed it. Stop the trainer, "
            "move trainer/refused.sqlite* and head/refused-head.json away together, keep them, start again",
            code="refusals_damaged",
        ) from None
