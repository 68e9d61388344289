"""Who is who: the hospital number of each participant, from the table that stays beside the cohort.

From it the ledger knows a patient again, for life, under whatever name. Two participants with one hospital
number are one patient, of whom the first name, as they are sorted, takes part.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from oncofed_client.findings import Finding, Notes
from oncofed_common.durable import read_regular
from oncofed_common.errors import CohortRefusal


def read_identities(path: Path) -> dict[str, str]:
    """The one hospital number of each participant who has one, spelt in one way.

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
    if not columns >= {"participant_id", "hospital_number"}:
        raise CohortRefusal(
            "an identity table that cannot be read",
            allowed="a TSV file with participant_id and hospital_number",
            next="name the table that the intake wrote beside the cohort",
            code="no_identity",
        )
    numbers: dict[str, set[str]] = {}
    for name, number in rows:
        numbers.setdefault(name.strip(), set()).add(_normal(number))
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


def _normal(number: str) -> str:
    """One spelling of a hospital number: two patients taken for one cost less than one taken for two."""
    compact = "".join(unicodedata.normalize("NFKC", number).casefold().split())
    return compact.lstrip("0") or compact[:1]
