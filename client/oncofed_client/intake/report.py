"""What was taken, what not, and why? The table for the hospital's own screen and its report file (mode
0600).

It has the source's names of patients and files: it stays in the hospital, outside the cohort.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from oncofed_client.intake.found import Row
from oncofed_common.durable import refuse_foreign, write_atomic
from oncofed_common.errors import CohortRefusal
from oncofed_common.screen import grid

KEYS = {"found", "taken", "rows"}
OF_ANOTHER_STYLE = {"unknown_name", "not_dicom"}
EACH = 20
"""So many rows of one reason are shown one by one."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """``names``: participant by the source's name, of everybody who was taken; ``found``: how many there
    were."""

    rows: tuple[Row, ...]
    names: Mapping[str, str]
    found: int
    visits: int

    @property
    def left_out(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.taken)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints and the report holds; it names patients."""
        return {
            "found": self.found,
            "taken": len(self.names),
            "visits": self.visits,
            "left_out": len(self.left_out),
            "names": dict(self.names),
            "rows": [row.as_dict() for row in self.rows],
        }


class NobodyTaken(CohortRefusal):
    """Nobody could be taken; ``report`` says why of each file."""

    report: Report


def nothing_taken(rows: Sequence[Row], *, found: int) -> CohortRefusal:
    """The one line for a source of which nobody could be taken, without names, and the table beside it."""
    faults = [row for row in rows if not row.taken]
    about_patients = [row for row in faults if row.patient] or faults
    if not about_patients:
        return CohortRefusal(
            "a source without a single scan of the stated style",
            allowed="a folder with DICOM files, or with NIfTI files named in the stated style",
            next="correct --from or --style",
            code="no_scans",
        )
    counts = Counter(row.code for row in about_patients)
    code, _ = counts.most_common(1)[0]
    first = next(row for row in about_patients if row.code == code)
    foreign = set(counts) <= OF_ANOTHER_STYLE
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    refusal = NobodyTaken(
        f"{first.found}{more}; not a single patient was taken",
        allowed="a source with one patient at least who has two whole visits",
        next="correct --from or --style" if foreign else first.next,
        code=code,
    )
    refusal.report = Report(rows=tuple(rows), names={}, found=found, visits=0)
    refusal.beside({"taken": 0, "rows": [row.as_dict() for row in rows]})
    return refusal


def refuse_report(path: Path) -> None:
    """Refuse a place for the report where something else stands, before anything is read.

    Raises:
        SystemRefusal: code ``out_exists``.
    """
    refuse_foreign(path, keys=KEYS, what="a report")


def write_report(report: Report, path: Path) -> None:
    """Write the report for this account's eyes only, whole or not at all.

    Raises:
        SystemRefusal: codes ``disk_full``, ``disk``.
    """
    text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode(), mode=0o600)


def left_out_table(told: Iterable[Mapping[str, Any]]) -> Table:
    """What was not taken, with why and what to do, from rows as ``Row.as_dict`` gives them.

    Of a reason with more than ``EACH`` rows there is one, with their number: ``--report`` has each.
    """
    by_code: dict[str, list[Mapping[str, Any]]] = {}
    for row in told:
        if not row["taken"]:
            by_code.setdefault(row["code"], []).append(row)
    columns = ("patient", "visit", "what", "code", "why, and what to do")
    rows = (
        row
        for code, alike in by_code.items()
        for row in (_summed(alike) if len(alike) > EACH else map(_whole, alike))
    )
    return grid(columns, rows, title="Not taken")


def _whole(row: Mapping[str, Any]) -> tuple[str, ...]:
    why = f"{row['found']}; {row['next']}"
    return (row["patient"], row["visit"], row["what"], row["code"], why)


def _summed(alike: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    patients = {row["patient"] for row in alike}
    count = len(patients - {""})
    whose = "".join(patients) if len(patients) == 1 else f"{count} patient{'s' * (count > 1)}"
    first = alike[0]
    why = f"{first['found']}; {first['next']}; --report has each"
    return [(whose, "", f"{first['what']} and {len(alike) - 1} more", first["code"], why)]
