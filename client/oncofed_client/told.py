"""What does a hospital see on its screen while trainer and courier run?

Whether the coordinator knows this site and answers it, and what became of each task: from the courier's
marks and the trainer's log, in our own words. What is said of a study already is not said again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from oncofed_client.courier.enrolled import is_unknown, not_enrolled
from oncofed_client.courier.node import HEARD_FILE

OnEvent = Callable[[str], None]
"""Told in a few words what happened, for the hospital's own screen."""

_WORDS = {
    "accepted": "round {round} of study {study}: at work",
    "answered": "round {round} of study {study}: answered",
    "failed": "round {round} of study {study}: not computed; trainer/log.jsonl says where it failed",
    "held_back": "round {round} of study {study}: the reply was held back",
    "refused": "refused a task of study {study}: {code}",
    "broken": "refused a task of study {study}: unavailable",
}
_NEXT = {
    "not_approved": "; look at the study, then run oncofed-site approve",
    "budget": "; oncofed-site budget says what is left",
    "expired": "; ask the coordinator when the next study begins",
}

SILENT_S = 35.0
"""Without any answer, where the courier's heartbeat asks for one every ten seconds."""


class Told:
    """Looks, as often as it is asked to, and says what is new."""

    def __init__(self, *, trainer: Path, courier: Path, on_event: OnEvent) -> None:
        self._courier, self._on_event = courier, on_event
        self._log = trainer / "log.jsonl"
        self._read = self._log.stat().st_size if self._log.exists() else 0
        self._said: dict[str, str] = {}
        self._unknown = self._heard = False
        self._since_s = time.time()

    def courier_started(self) -> None:
        """What an earlier courier heard is no news of this one."""
        self._heard, self._since_s = False, time.time()
        self._on_event("courier started")

    def look(self) -> None:
        """Say what happened since the last look."""
        unknown, before = is_unknown(self._courier), self._unknown
        self._unknown = unknown
        if unknown and not before:
            self._on_event(f"{not_enrolled()}")
        elif before and not unknown:
            self._on_event("the coordinator knows this site's node key now")
        if not self._heard and self._hears():
            self._heard = True
            self._on_event("connected: the coordinator answers")
        elif self._heard and self._silent_s() > SILENT_S:
            self._heard, self._since_s = False, time.time()
            self._on_event("the coordinator does not answer; the courier asks until it does")
        for row in self._rows():
            self._say(row)

    def _hears(self) -> bool:
        try:
            return (self._courier / HEARD_FILE).stat().st_mtime >= self._since_s
        except OSError:  # not heard yet
            return False

    def _silent_s(self) -> float:
        try:
            return time.time() - (self._courier / HEARD_FILE).stat().st_mtime
        except OSError:  # taken away: nothing is known
            return 0.0

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """What the trainer logged since, whole lines only; a new file, where the old one was full."""
        try:
            with self._log.open("rb") as file:
                begin = self._read if os.fstat(file.fileno()).st_size >= self._read else 0
                file.seek(begin)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:  # not there yet, or on its way to its second name: the next look finds it
            return
        self._read = begin + len(whole) + bool(whole)
        for line in whole.splitlines():
            with suppress(ValueError, RecursionError):  # cut short by a full disk: no reason to end
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row

    def _say(self, row: Mapping[str, Any]) -> None:
        event, study, code = (str(row.get(name, "")) for name in ("event", "study", "code"))
        if event not in _WORDS or not study:
            return
        said = _WORDS[event].format(round=row.get("round"), study=study, code=code)
        said += _NEXT.get(code, "") if event == "refused" else ""
        if self._said.get(study) != said:
            self._said[study] = said
            self._on_event(said)
