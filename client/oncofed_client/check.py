"""Does a cohort keep the cohort contract, and who of it can take part in a study?

Patients are examined one at a time, each in memory on its own, in as many processes as the caller asks
for: what one patient holds never stops, and never changes, what is said about another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from oncofed_client.findings import Excludes, Finding, Notes
from oncofed_client.identities import read_identities, unknown
from oncofed_client.plausible import Scan, doubtful, echoes
from oncofed_client.readers.cohort import Cohort, open_cohort
from oncofed_client.readers.patient import examine
from oncofed_common.cohort import LABELS
from oncofed_common.durable import refuse_foreign, write_atomic
from oncofed_common.errors import CohortRefusal, SystemRefusal
from oncofed_common.study_terms import CohortTerms
from oncofed_common.workers import each

HARMLESS = ("few_visits",)
"""Codes that exclude a patient without anything being broken."""

OnProgress = Callable[[int, int], None]
"""Patients done, patients in all."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the check of a cohort found.

    ``participants`` can be read, in the order of the table; ``takes_part`` are those that no finding
    excludes (in the study, if the check was given one's terms). Findings stand in the order of the
    participants, those about the cohort first.
    """

    participants: tuple[str, ...]
    takes_part: tuple[str, ...]
    findings: tuple[Finding, ...]

    def counts(self) -> Mapping[Excludes, int]:
        """How many findings exclude a visit, a patient, the cohort, or nothing."""
        counted = Counter(made.excludes for made in self.findings)
        return {what: counted[what] for what in get_args(Excludes)}

    def refusal(self) -> CohortRefusal | None:
        """The one line for a cohort that cannot be used as it is, without names; None if it can.

        Patients with too few visits and findings that exclude nothing break no cohort, unless nobody is
        left who can take part.
        """
        harm = [f for f in self.findings if f.excludes != "nothing"]
        broken = [f for f in harm if f.code not in HARMLESS] or ([] if self.takes_part else harm)
        if not broken:
            return None
        rank = {"cohort": 0, "patient": 1, "visit": 2}
        worst = min(broken, key=lambda made: rank[made.excludes])
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        left = f"{len(self.takes_part)} patients" if self.takes_part else "not a single patient"
        return CohortRefusal(
            f"{worst.subject}: {worst.found}{more}; {left} can take part",
            allowed=worst.allowed,
            next=worst.fix,
            code=worst.code,
        )

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints and ``findings.json`` holds; it names patients."""
        return {
            "patients": len(self.participants),
            "takes_part": list(self.takes_part),
            "excludes": dict(self.counts()),
            "findings": [made.as_dict() for made in self.findings],
        }


def check(
    path: Path,
    *,
    terms: CohortTerms | None = None,
    identities: Path | None = None,
    workers: int = 1,
    progress: OnProgress | None = None,
) -> Report:
    """Examine every file of a cohort, once.

    Args:
        terms: the cohort terms of a study; None checks the contract alone.
        identities: the table of hospital numbers, to find out who is there twice.
        workers: processes; 1 examines in this one.
        progress: called after each patient.

    Raises:
        CohortRefusal: ``no_identity``; the table of hospital numbers cannot be read.
        SystemRefusal: ``workers``, if there would be none; ``worker_ended``, if one is killed.
    """
    if workers < 1:
        raise SystemRefusal(
            f"{workers} workers", allowed="1 or more", next="state 1 or more", code="workers"
        )
    numbers = None if identities is None else read_identities(identities)
    cohort, findings = open_cohort(path)
    if cohort is None:
        return Report(participants=(), takes_part=(), findings=findings)
    found = list(findings)
    if terms is not None:
        found += _lacking(cohort, terms)
    takes_part: list[str] = []
    names = cohort.participants
    about: dict[str, tuple[Finding, ...]] = {}
    scans: dict[str, tuple[Scan, ...]] = {}
    for name, (made, held) in each(partial(_findings, cohort, terms), names, workers=workers):
        about[name], scans[name] = made, held
        if progress is not None:
            progress(len(about), len(names))
    who = {} if numbers is None else unknown(names, numbers)
    shared = echoes(scan for name in names for scan in scans[name])
    for name in names:
        if name in who:
            about[name] = (*about[name], who[name])
        found += [*about[name], *shared.get(name, ())]
        if not any(made.excludes == "patient" for made in about[name]):
            takes_part.append(name)
    return Report(participants=names, takes_part=tuple(takes_part), findings=tuple(found))


def refuse_findings(path: Path) -> None:
    """Refuse a place for findings where something else stands, before anything is examined.

    Raises:
        SystemRefusal: code ``out_exists``.
    """
    refuse_foreign(path, keys={"patients", "takes_part", "findings"}, what="findings")


def write_findings(report: Report, path: Path) -> None:
    """Write ``findings.json`` for this account's eyes only (mode 0600), whole or not at all.

    Raises:
        SystemRefusal: codes ``disk_full``, ``disk``.
    """
    refuse_findings(path)
    text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode(), mode=0o600)


def findings_table(report: Report) -> Table:
    """The findings for the hospital's own screen; it names patients. Codes and names never wrap."""
    table = Table("excludes", box=SIMPLE, show_lines=True)
    table.add_column("patient, visit", no_wrap=True)
    table.add_column("code", no_wrap=True)
    table.add_column("found, and how to mend it")
    for made in report.findings:
        where = [name for name in (made.participant, made.session) if name]
        what = f"{made.file} {made.path}" if made.path else made.file
        words = f"{what}: {made.found}\n-> {made.fix}"
        table.add_row(made.excludes, Text("\n".join(where)), made.code, Text(words))
    return table


def _findings(
    cohort: Cohort, terms: CohortTerms | None, name: str
) -> tuple[tuple[Finding, ...], tuple[Scan, ...]]:
    """What is wrong with one patient, what is doubtful, and what its images are known by."""
    examined = examine(cohort, name, terms=terms)
    if examined.patient is None:
        return examined.findings, ()
    notes = Notes(name)
    scans = doubtful(examined.patient, notes)
    return (*examined.findings, *notes.findings), scans


def _lacking(cohort: Cohort, terms: CohortTerms) -> list[Finding]:
    """Compartments that the study forecasts and this site's labels do not name."""
    notes = Notes()
    for name in terms.label_scheme:
        if LABELS[name] not in cohort.scheme.values():
            notes.add("scheme_lacks_compartment", "label table", found=f"no label for {name}")
    return notes.findings
