"""The trainer's log: one JSON line an event, from a fixed list of fields.

A field that is not on the list is dropped, whatever it holds. Exceptions appear by class, module and
line with a random incident id; their text never does, for it may hold a path or a patient's name.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from oncofed_common.errors import OncofedError
from oncofed_common.places import place_refusal

Say = Callable[[str], Any]

FIELDS = ("event", "study", "run", "round", "site", "code", "error_class", "where", "incident")


class AllowListed(logging.Formatter):
    """A record as JSON: time, level, and the fields of ``FIELDS`` that it carries."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        return json.dumps({"time_s": int(time.time()), "level": record.levelname, **known})


class _File(logging.FileHandler):
    """A log file; a line that its disk does not take goes to ``spare`` instead."""

    def __init__(self, path: Path, *, spare: Say | None) -> None:
        super().__init__(path, encoding="utf-8")
        self._spare = spare

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        if self._spare is not None:
            with suppress(OSError, ValueError, TypeError):
                self._spare(self.format(record) + "\n")


@contextmanager
def open_log(path: Path, *, spare: Say | None = None) -> Iterator[logging.Logger]:
    """A logger that writes to ``path`` (mode by umask), to ``spare`` what its disk does not take, and nowhere
    else."""
    logger = logging.Logger("oncofed.trainer", logging.INFO)
    handler = _File(path, spare=spare)
    handler.setFormatter(AllowListed())
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        with suppress(OSError):  # a full disk: what it did not take went to ``spare``
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
    known = place_refusal(error) if isinstance(error, OSError) else error
    if isinstance(known, OncofedError):
        fields["code"] = known.code
    return fields
