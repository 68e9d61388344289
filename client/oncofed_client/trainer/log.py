"""The trainer's log: one JSON line an event, from a fixed list of fields.

A field that is not on the list is dropped, whatever it holds. Exceptions appear by class, module and
line with a random incident id; their text never does, for it may hold a path or a patient's name.

What a caller can bring about as often as he likes is written as seldom as refusals are (``refused``), and
the file is followed by a new one when it is full: nobody fills the disk by asking.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oncofed_client.trainer.refused import (
    AT_ONCE,
    EVERY_S,
    FILE_BYTES,
    NAME,
    Allowance,
    RefusedFile,
)
from oncofed_common.errors import OncofedError

FROM_CALLERS = frozenset({"refused", "broken", "repeated", "request_failed"})
"""Events that a caller can bring about at will."""

FIELDS = ("event", "study", "run", "round", "site", "code", "error_class", "where", "incident")


class AllowListed(logging.Formatter):
    """A record as JSON: time, level, and the fields of ``FIELDS`` that it carries."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        return json.dumps({"time_s": int(time.time()), "level": record.levelname, **known})


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


@contextmanager
def open_log(path: Path) -> Iterator[logging.Logger]:
    """A logger that writes to ``path`` and to the file of refusals beside it (mode by umask)."""
    logger = logging.Logger("oncofed.trainer", logging.INFO)
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=FILE_BYTES, backupCount=1, encoding="utf-8"
    )
    handler.setFormatter(AllowListed())
    handler.addFilter(Seldom())
    refusals = RefusedFile(path.with_name(NAME))
    logger.addHandler(handler)
    logger.addHandler(refusals)
    try:
        yield logger
    finally:
        refusals.close()
        handler.close()


def silence_libraries() -> None:
    """What the server under us would print may hold anything: none of it is kept."""
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "fastapi"):
        logging.getLogger(noisy).handlers = [logging.NullHandler()]
        logging.getLogger(noisy).propagate = False


def where(error: BaseException) -> dict[str, str]:
    """Class and place of an error, for the log."""
    frames = traceback.extract_tb(error.__traceback__)
    place = "unknown"
    if frames:
        parts = frames[-1].filename.replace("\\", "/").rsplit("/", 2)
        place = ".".join(parts[-2:]).removesuffix(".py") + f":{frames[-1].lineno}"
    fields = {"error_class": type(error).__name__, "where": place}
    if isinstance(error, OncofedError):
        fields["code"] = error.code
    return fields
