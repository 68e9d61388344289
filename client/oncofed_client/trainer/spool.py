"""Stored replies: one for each study and round, written once, given again byte for byte.

A reply is durable before it leaves. Whoever asks again, in whatever way, gets these bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from oncofed_common.durable import discard_drafts, make_folder, sync_folder, write_private
from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import canonical, digest


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One reply, the task it answers, and when (seconds since 1970) it may leave."""

    task_digest: str
    run: str
    leaves_at_s: float
    body: bytes


def store(spool: Path, *, study_hash: str, round_number: int, stored: Stored) -> None:
    """Write the reply durably; what an attempt that died in here has left goes first.

    Raises:
        SystemRefusal: code ``reply_exists``: a second result for one round is never stored.
    """
    path = _path(spool, study_hash, round_number)
    make_folder(path.parent, mode=0o700)
    sync_folder(spool)  # who made the folder may have died before this
    if path.exists():
        raise SystemRefusal(
            "a second reply for one round",
            allowed="one stored reply for each study and round",
            next="ask for the stored reply",
            code="reply_exists",
        )
    discard_drafts(path)
    label = canonical(
        {
            "task_digest": stored.task_digest,
            "run": stored.run,
            "leaves_at_s": repr(stored.leaves_at_s),
            "body_digest": digest(stored.body),
        }
    )
    write_private(path, label + b"\n" + stored.body)


def recall(spool: Path, *, study_hash: str, round_number: int) -> Stored | None:
    """The stored reply, or None if there is none yet.

    Raises:
        SystemRefusal: code ``reply_damaged``: the file is not what was written.
    """
    path = _path(spool, study_hash, round_number)
    if not path.exists():
        return None
    sync_folder(path.parent)  # who stored it may have died before this
    label, _, body = path.read_bytes().partition(b"\n")
    try:
        fields = json.loads(label)
        stored = Stored(
            task_digest=fields["task_digest"],
            run=fields["run"],
            leaves_at_s=float(fields["leaves_at_s"]),
            body=body,
        )
        intact = fields["body_digest"] == digest(body)
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise SystemRefusal(
            "a stored reply that is damaged",
            allowed="the bytes that were written",
            next="restore the trainer's spool from its backup",
            code="reply_damaged",
        )
    return stored


def _path(spool: Path, study_hash: str, round_number: int) -> Path:
    return spool / study_hash / f"{round_number:04d}.reply"
