"""Which patients could not be computed: a count for the hospital's own eyes, in a file that is no log.

A log may be handed to whoever helps, so that nothing in it may depend on a patient. This file does: one JSON
line for each round in which somebody contributed nothing, with how often and the class of what went wrong. It
stays where it is, and a disk that does not take it stops nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NAME = "own-eyes-only.jsonl"
MOST_BYTES = 4 * 1024 * 1024


def note_faults(folder: Path, faults: Sequence[str], *, study_hash: str, round_number: int) -> None:
    """Add a round's line, where there is anything to tell and room for it."""
    if not faults:
        return
    row = {"study": study_hash, "round": round_number, "contributed_nothing": Counter(faults)}
    path = folder / NAME
    with suppress(OSError):
        if path.exists() and path.stat().st_size > MOST_BYTES:
            return
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, sort_keys=True) + "\n")
