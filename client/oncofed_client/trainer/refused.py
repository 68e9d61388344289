"""What was refused at the socket: code, time, size and digest, for the hospital; never a word of a caller's.

One JSON line a refusal, in ``refused.jsonl`` beside the trainer's log:

    at_s, code, size, digest (of the request), sent_size, sent_digest (of what was answered), unlogged

However many requests come, the file does not fill the disk: ``AT_ONCE`` rows, then one every ``EVERY_S``
seconds, in two files of ``FILE_BYTES`` at most. ``unlogged`` counts the refusals since the row before that
got no row of their own.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import digest
from oncofed_common.wire import Code

AT_ONCE = 200
EVERY_S = 60.0
FILE_BYTES = 8 * 1024 * 1024

NAME = "refused.jsonl"

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


class RefusedFile(logging.handlers.RotatingFileHandler):
    """The file of refusals; it takes the records that ``note_refusal`` makes, and no other."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=1, encoding="utf-8")
        self._allowance = Allowance(at_once=AT_ONCE, every_s=EVERY_S)
        self._unlogged = 0

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
        if self._unlogged and self.stream is not None:
            last = logging.makeLogRecord({})
            self._write(Refused(code="unlogged", request=b"", sent=b""), at_s=last.created)
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        """A row that a full disk does not take is counted; whoever was refused is refused all the same."""
        self._unlogged += 1

    def _write(self, refusal: Refused, *, at_s: float) -> None:
        row = {
            "at_s": int(at_s),
            "code": refusal.code,
            "size": len(refusal.request),
            "digest": digest(refusal.request),
            "sent_size": len(refusal.sent),
            "sent_digest": digest(refusal.sent),
            "unlogged": self._unlogged,
        }
        before, self._unlogged = self._unlogged, 0
        super().emit(logging.makeLogRecord({"msg": json.dumps(row)}))
        if self._unlogged:  # the row was not taken
            self._unlogged += before


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


def read_refusals(folder: Path) -> list[dict[str, Any]]:
    """All rows that are kept, oldest first; a row that a crash cut short is left out.

    Raises:
        SystemRefusal: code ``unreadable``.
    """
    lines: list[str] = []
    try:
        for name in (f"{NAME}.1", NAME):
            if (folder / name).exists():
                lines += (folder / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise SystemRefusal(
            "a file of refusals that cannot be read",
            allowed="the trainer's own files",
            next="check owner and permissions of the home",
            code="unreadable",
        ) from None
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"code", "unlogged"} <= set(row):
            rows.append(row)
    return rows
