"""The third copy of the ledger's head: what the courier saw leave, kept in its own folder.

A reply tells a commitment to the newest draw. The courier keeps the latest that it carried, and the trainer
compares it with its ledger when it starts: a home that was restored with both of its own copies is noticed
before any task comes. Nobody but the site can make a commitment that it takes for its own, so a courier that
writes here what it likes achieves nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from oncofed_common.durable import read_regular, write_atomic
from oncofed_common.errors import OncofedError
from oncofed_common.wire import Head, read_reply, unframe

NAME = "ledger-head.json"
CAP_BYTES = 4096


def keep_head(reply: bytes, folder: Path) -> None:
    """Keep the head that a reply tells, if it is a later one; a disk that does not take it stops nothing."""
    with suppress(OncofedError):
        head = read_reply(unframe(reply, cap_bytes=len(reply))[0])[0].ledger_head
        kept = carried_head(folder)
        if head is not None and (kept is None or head.sequence > kept.sequence):
            write_atomic(folder / NAME, json.dumps(head.model_dump(mode="json")).encode())


def carried_head(folder: Path) -> Head | None:
    """The latest head that the courier carried; None where there is none, or none that can be read."""
    try:
        content = read_regular(folder / NAME)
        return Head.model_validate_json(content) if len(content) <= CAP_BYTES else None
    except (OSError, ValidationError):
        return None
