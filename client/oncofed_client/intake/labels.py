"""What does each label of an outline mean? Named by the site, never guessed.

A scheme is one of those that the field knows by name, or a table with the columns ``index`` (a voxel's
value) or ``label`` (the name of a DICOM segment or structure), and ``name`` (NETC, SNFH, ET, RC). Several
labels may mean the same compartment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oncofed_common.cohort import LABELS
from oncofed_common.durable import read_regular
from oncofed_common.errors import CohortRefusal

NAMED: Mapping[str, Mapping[int, str]] = {
    "brats-2023": {1: "NETC", 2: "SNFH", 3: "ET", 4: "RC"},
    "brats-2021": {1: "NETC", 2: "SNFH", 4: "ET"},
    "brats-2013": {1: "NETC", 2: "SNFH", 3: "NETC", 4: "ET"},
}
"""BraTS 2013 parts the core into necrosis (1) and non-enhancing tumour (3)."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Label values, and names of structures (lower case), as values of ``LABELS``."""

    values: Mapping[int, int]
    structures: Mapping[str, int]

    def of(self, structure: str) -> int | None:
        """The compartment of a DICOM structure; None if the scheme does not name it."""
        return self.structures.get(_plain(structure))


def read_scheme(words: str) -> Scheme:
    """The scheme that ``--labels`` names: one known by name, or a table.

    Raises:
        CohortRefusal: code ``bad_labels``.
    """
    if words in NAMED:
        values = {index: LABELS[name] for index, name in NAMED[words].items()}
        return Scheme(values=values, structures={})
    try:
        text = read_regular(Path(words)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError):
        raise _refusal("a label scheme that is neither a known name nor a table") from None
    lines: list[tuple[str, ...]] = [
        tuple(cell.strip() for cell in line.split("\t"))
        for line in text.splitlines()
        if line.strip()
    ] or [()]
    column = "\t".join(lines[0])
    rows = [row for row in lines[1:] if row[0] != "0"]  # a table may say what the background is
    if column not in ("index\tname", "label\tname") or not rows:
        raise _refusal("a label table without its two columns, or without rows")
    if any(len(row) != 2 or row[1] not in LABELS for row in rows):
        raise _refusal("a label table with a row that names no compartment")
    named = {row[0]: LABELS[row[1]] for row in rows}
    if len(named) != len(rows):
        raise _refusal("a label table that names a label twice")
    if column == "label\tname":
        return Scheme(values={}, structures={_plain(key): value for key, value in named.items()})
    if not all(key.isascii() and key.isdigit() and len(key) < 8 and key[0] != "0" for key in named):
        raise _refusal(
            "a label table with an index that is no whole number above 0, without zeros before it"
        )
    return Scheme(values={int(key): value for key, value in named.items()}, structures={})


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _refusal(found: str) -> CohortRefusal:
    return CohortRefusal(
        found,
        allowed=f"one of {', '.join(NAMED)}; or a table with the columns index (or label) and name, "
        f"where a name is one of {', '.join(LABELS)}",
        next="correct --labels",
        code="bad_labels",
    )
