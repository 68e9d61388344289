"""What happened in a run, one line an event, each line bound to the one before it.

A row is RFC 8785 JSON with allow-listed fields only: no text of an exception, no path, nothing about a
patient. ``previous`` is the SHA-256 of the line before, so a removed or changed line is found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from oncofed_common.durable import append_line, disk_refusal
from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import canonical, digest
from oncofed_common.wire import NO_DIGEST, Count, Hex32, Hex64, Name

Event = Literal[
    "run_started",
    "run_resumed",
    "checkpoint_skipped",
    "round_opened",
    "task_sent",
    "carrier_failed",
    "reply_overdue",
    "reply_counted",
    "reply_refused",
    "reply_bad",
    "reply_late",
    "reply_again",
    "round_closed",
    "round_abandoned",
    "stop_requested",
    "run_interrupted",
    "run_ended",
]
SYNCED = ("run_started", "round_closed", "round_abandoned", "run_ended")
"""Rows that are durable before anything else happens, with all rows before them. The others may be
lost in a crash: tasks, replies and records are kept elsewhere."""

Watch = Callable[[Mapping[str, Any]], None]


class Row(BaseModel):
    """One event. Empty strings and zeros where a field says nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sequence: Count
    at_s: Count
    event: Event
    run: Hex32
    round: Count
    site: Name | Literal[""]
    code: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:]{0,80}$")]
    digest: Hex64 | Literal[""]
    size_bytes: Count
    previous: Hex64


class RunLog:
    """The open log of one run. A line cut short by a crash is removed when the log is opened."""

    def __init__(
        self, handle: int, *, run: str, sequence: int, previous: str, watch: Watch | None
    ) -> None:
        self._handle = handle
        self._run = run
        self._sequence = sequence
        self._previous = previous
        self._watch = watch

    @classmethod
    def open(cls, path: Path, *, run: str, watch: Watch | None) -> RunLog:
        """Go on with the log at ``path``, or begin it.

        Raises:
            SystemRefusal: code ``log_broken``, or the disk.
        """
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            rows = parse_log(whole)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(handle, len(whole))
        except OSError as error:
            raise disk_refusal(error) from None
        previous = digest(whole.splitlines()[-1]) if rows else NO_DIGEST
        return cls(handle, run=run, sequence=len(rows), previous=previous, watch=watch)

    def write(
        self,
        event: Event,
        *,
        at_s: int,
        round: int = 0,
        site: str = "",
        code: str = "",
        digest_hex: str = "",
        size_bytes: int = 0,
    ) -> None:
        """Add one row.

        Raises:
            SystemRefusal: the disk.
        """
        row = Row(
            sequence=self._sequence,
            at_s=at_s,
            event=event,
            run=self._run,
            round=round,
            site=site,
            code=code,
            digest=digest_hex,
            size_bytes=size_bytes,
            previous=self._previous,
        ).model_dump(mode="json")
        line = canonical(row)
        append_line(self._handle, line + b"\n", sync=event in SYNCED)
        self._sequence += 1
        self._previous = digest(line)
        if self._watch is not None:
            self._watch(row)

    def close(self) -> None:
        os.close(self._handle)


def read_log(path: Path) -> list[Row]:
    """Every whole row of a run's own log, which may not be there yet, or end in a line that is being
    written, or that a crash cut short.

    Raises:
        SystemRefusal: code ``log_broken``, or the disk.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise disk_refusal(error) from None
    return parse_log(data[: data.rfind(b"\n") + 1])


def parse_log(data: bytes) -> list[Row]:
    """Every row of a log, if the chain holds from the first line to the last.

    Raises:
        SystemRefusal: code ``log_broken``.
    """
    rows: list[Row] = []
    previous = NO_DIGEST
    if data and not data.endswith(b"\n"):
        raise _broken(len(data.splitlines()))
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            row = Row.model_validate(json.loads(line))
            spelled = canonical(row.model_dump(mode="json"))
        except (ValidationError, ValueError, RecursionError):
            raise _broken(number) from None
        if spelled != line or row.previous != previous or row.sequence != len(rows):
            raise _broken(number)
        rows.append(row)
        previous = digest(line)
    return rows


def _broken(number: int) -> SystemRefusal:
    return SystemRefusal(
        f"a run log whose line {number} does not follow from the lines before it",
        allowed="the log as the run wrote it",
        next="restore log.jsonl of this run from a backup",
        code="log_broken",
    )
