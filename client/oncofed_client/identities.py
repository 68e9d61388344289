"""Which patient of the hospital is which participant of a cohort? The table that lies outside every cohort.

Two columns, ``participant_id`` and ``hospital_number``, parted by a tab; mode 0600. From the numbers in it,
and the site's secret, the ledger knows a patient again for life. Only this file of the hospital knows both
names. Two participants with one hospital number are one patient, of whom the first name, as they are sorted,
takes part.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from oncofed_client.findings import Finding, Notes
from oncofed_common.durable import read_regular, write_private
from oncofed_common.errors import CohortRefusal

COLUMNS = ("participant_id", "hospital_number")


def read_identities(path: Path) -> dict[str, str]:
    """The one hospital number, in its one spelling, of each participant who has one.

    Raises:
        CohortRefusal: the table cannot be read (``no_identity``).
    """
    rows = read_numbers(path)
    numbers: dict[str, set[str]] = {}
    for name, number in rows:
        numbers.setdefault(name.strip(), set()).add(spelling(number))
    return {name: next(iter(of)) for name, of in numbers.items() if len(of) == 1 and "" not in of}


def unknown(participants: Sequence[str], numbers: Mapping[str, str]) -> dict[str, Finding]:
    """The finding about each participant who has no number, or one that is known under another name."""
    first: dict[str, str] = {}
    found: dict[str, Finding] = {}
    for name in sorted(participants):
        notes = Notes(name)
        if name not in numbers:
            notes.add("identity_missing", "identity table", found="not one hospital number")
        elif first.setdefault(numbers[name], name) != name:
            words = f"a patient who is known as {first[numbers[name]]} already"
            notes.add("identity_shared", "identity table", found=words)
        if notes.findings:
            (found[name],) = notes.findings
    return found


def read_numbers(path: Path) -> list[tuple[str, str]]:
    """The rows of the table as they are written.

    Raises:
        CohortRefusal: the table cannot be read (``no_identity``).
    """
    try:
        lines = io.StringIO(read_regular(path).decode("utf-8"), newline="")
        table = csv.DictReader(lines, delimiter="\t")
        rows = [(row["participant_id"] or "", row["hospital_number"] or "") for row in table]
        columns = set(table.fieldnames or ())
    except (OSError, UnicodeDecodeError, KeyError, csv.Error):
        rows, columns = [], set()
    if not columns >= set(COLUMNS):
        raise CohortRefusal(
            "an identity table that cannot be read",
            allowed="a TSV file with participant_id and hospital_number",
            next="name the table that the intake wrote beside the cohort",
            code="no_identity",
        )
    return rows


def write_identities(path: Path, numbers: Mapping[str, str]) -> None:
    """Write the table for this account's eyes only, in order of participant, whole or not at all.

    Raises:
        SystemRefusal: the disk.
    """
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(
        [COLUMNS, *sorted(numbers.items())]
    )
    write_private(path, text.getvalue().encode())


def is_number(text: str) -> bool:
    """Whether this can be a hospital number: something is there, and no control character in it."""
    return bool(spelling(text)) and not any(unicodedata.category(one) == "Cc" for one in text)


def spelling(number: str) -> str:
    """One spelling of a hospital number: two patients taken for one cost less than one taken for two."""
    compact = "".join(unicodedata.normalize("NFKC", number).casefold().split())
    return compact.lstrip("0") or compact[:1]
