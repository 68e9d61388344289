"""What of an ended run has to stay, and what may go?

The release has to: it says what came of the study, and no second run of one is allowed. Checkpoints and
tasks are of no use to anybody any more. The signed replies in the audit folder let anyone recompute
the release; they go only when somebody says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from oncofed_common.durable import disk_refusal, locked
from oncofed_common.errors import SystemRefusal
from oncofed_server.home import DAY_S
from oncofed_server.runs import ENDED, RunFolder, describe_all, ended_as, open_run


def ended_before(home: Path, *, days: int, now_s: int) -> list[str]:
    """Runs that ended so many days ago or earlier, the oldest first."""
    return [
        told["run"]
        for told in describe_all(home)[0]
        if told["status"] in ENDED and told["last_event_s"] <= now_s - days * DAY_S
    ]


def discard(home: Path, run: str, *, audit: bool) -> int:
    """Remove what an ended run no longer needs; with ``audit`` its signed replies too. The bytes freed.

    Raises:
        SystemRefusal: codes ``unknown_run``, ``run_not_ended``, ``unreadable``, ``home_in_use``, or the disk.
    """
    _, folder = open_run(home, run)
    with locked(folder.lock, wait=False, busy="another process that works on this run"):
        if ended_as(folder) is None:
            raise SystemRefusal(
                "a run that has not ended",
                allowed="a run that is complete, partial or failed",
                next="let it end, or end it with oncofed-coordinator stop",
                code="run_not_ended",
            )
        freed = 0
        try:
            for part in _superfluous(folder, audit=audit):
                freed += sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
                shutil.rmtree(part)
        except OSError as error:
            raise disk_refusal(error) from None
    return freed


def _superfluous(folder: RunFolder, *, audit: bool) -> Iterator[Path]:
    parts = [folder.checkpoints, folder.all_tasks, *([folder.audit] if audit else [])]
    return (part for part in parts if part.exists())
