"""The trainer's log: one JSON line an event, from a fixed list of fields.

A field that is not on the list is dropped, whatever it holds. Exceptions appear by class, module and
line with a random incident id; their text never does, for it may hold a path or a patient's name.

What becomes of a round is written when its reply leaves (``Slotted``): when training ended depends on who
was drawn. What a caller can bring about as often as he likes is written as seldom as refusals are
(``refused``), and the file is followed by a new one when it is full: nobody fills the disk by asking.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from oncofed_client.trainer.refused import AT_ONCE, EVERY_S, NAME, Allowance, RefusedChain
from oncofed_common.errors import OncofedError
from oncofed_common.identity import SigningKey
from oncofed_common.places import place_refusal

FILE_BYTES = 8 * 1024 * 1024

Say = Callable[[str], Any]

FROM_CALLERS = frozenset({"refused", "broken", "repeated", "request_failed"})
"""Events that a caller can bring about at will."""

FIELDS = (
    "event",
    "study",
    "run",
    "round",
    "site",
    "code",
    "error_class",
    "where",
    "incident",
    "behind_s",
)


class AllowListed(logging.Formatter):
    """A record as JSON: time, level, and the fields of ``FIELDS`` that it carries."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        return json.dumps({"time_s": int(record.created), "level": record.levelname, **known})


class Slotted(logging.Logger):
    """Writes what becomes of a round when its reply leaves, and not when training ends: a record with
    ``at_s`` (seconds since 1970) waits until then for its turn and bears that time."""

    def __init__(self, name: str) -> None:
        super().__init__(name, logging.INFO)
        self._waiting: list[logging.LogRecord] = []
        self._turn = threading.Lock()

    def handle(self, record: logging.LogRecord) -> None:
        now_s = record.created
        record.created = max(now_s, getattr(record, "at_s", now_s))
        with self._turn:
            self._waiting.append(record)
        self.release(now_s)

    def release(self, until_s: float) -> None:
        """Write, in the order of their times, what waits until then at most."""
        with self._turn:
            due = sorted(
                (record for record in self._waiting if record.created <= until_s),
                key=lambda record: record.created,
            )
            self._waiting = [record for record in self._waiting if record.created > until_s]
            for record in due:
                super().handle(record)


class Seldom(logging.Filter):
    """Lets pass what callers bring about as often as an allowance says, and everything else."""

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance(at_once=AT_ONCE, every_s=EVERY_S)

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "refusal"):
            return False  # it has a file of its own
        if getattr(record, "event", None) in FROM_CALLERS:
            return self._allowance.take(record.created)
        return True


class _File(logging.handlers.RotatingFileHandler):
    """A log file; a line that its disk does not take goes to ``spare`` instead."""

    def __init__(self, path: Path, *, spare: Say | None) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=1, encoding="utf-8")
        self._spare = spare

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        if self._spare is not None:
            with suppress(OSError, ValueError, TypeError):
                self._spare(self.format(record) + "\n")


@contextmanager
def open_log(
    path: Path, *, head: Path, key: SigningKey, spare: Say | None = None
) -> Iterator[Slotted]:
    """A logger that writes to ``path`` (mode by umask), refusals to their chain beside it, signed by the
    trainer's ``key``, with its head copied to ``head``, and to ``spare`` what the disk of ``path`` does not
    take.

    Raises:
        SystemRefusal: as ``RefusedChain``.
    """
    logger = Slotted("oncofed.trainer")
    refusals = RefusedChain(path.with_name(NAME), head=head, key=key)
    handler = _File(path, spare=spare)
    handler.setFormatter(AllowListed())
    handler.addFilter(Seldom())
    logger.addHandler(handler)
    logger.addHandler(refusals)
    try:
        yield logger
    finally:
        logger.release(float("inf"))
        for one in (refusals, handler):
            with suppress(OSError):  # a full disk: what it did not take went to ``spare``
                one.close()


def silence_libraries() -> None:
    """What the server under us would print may hold anything: none of it is kept."""
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "fastapi"):
        logging.getLogger(noisy).handlers = [logging.NullHandler()]
        logging.getLogger(noisy).propagate = False


def note_clock(log: logging.Logger, site: str, *, behind_s: int) -> None:
    """This machine's clock is behind another, by so many seconds at least; nothing for 1 or less."""
    if behind_s > 1:
        log.warning("", extra={"event": "clock_behind", "site": site, "behind_s": behind_s})


def where(error: BaseException) -> dict[str, str]:
    """Class and place of an error, for the log."""
    frames = traceback.extract_tb(error.__traceback__)
    place = "unknown"
    if frames:
        parts = frames[-1].filename.replace("\\", "/").rsplit("/", 2)
        place = ".".join(parts[-2:]).removesuffix(".py") + f":{frames[-1].lineno}"
    fields = {"error_class": type(error).__name__, "where": place}
    known = place_refusal(error) if isinstance(error, OSError) else error
    if isinstance(known, OncofedError):
        fields["code"] = known.code
    return fields
