"""``oncofed-site intake``: a hospital's folder in, a cohort out.

Everything is found and refused before a voxel is read; patients are then taken in one by one, in processes
of their own; the cohort appears as a whole at the end, beside the table of identities. The source is only
read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from threadpoolctl import threadpool_limits

from oncofed_client.codehash import code_hash
from oncofed_client.identities import write_identities
from oncofed_client.intake.begun import Begun, begun, beside, refuse_finished
from oncofed_client.intake.channels import read_series_table
from oncofed_client.intake.dicom import find_dicom
from oncofed_client.intake.found import FoundPatient, Row, Source
from oncofed_client.intake.labels import Scheme, read_scheme
from oncofed_client.intake.names import find_bids, find_brats, find_mapped
from oncofed_client.intake.patient import Job, Outcome, take
from oncofed_client.intake.people import known_people, new_names, read_source_numbers
from oncofed_client.intake.report import Report, nothing_taken, refuse_report
from oncofed_client.intake.tables import read_tables
from oncofed_client.readers.cohort_files import write_tables
from oncofed_common.errors import CohortRefusal, SystemRefusal, UsageRefusal
from oncofed_common.screen import Watch
from oncofed_common.workers import each

Style = Literal["dicom", "brats", "bids", "mapping"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command line."""

    source: Path
    out: Path
    identities: Path
    style: Style
    labels: str
    name: str
    numbers: Path | None = None
    tables: Path | None = None
    mapping: Path | None = None
    series: Path | None = None
    report: Path | None = None
    registered: bool = False


def intake(asked: Asked, *, workers: int, watch: Watch) -> Report:
    """Take everybody in who can be; say of all others why not.

    Raises:
        UsageRefusal, CohortRefusal, SystemRefusal: what cannot be done; nothing is written then. Not a
            single patient taken is such a refusal, with the table beside it.
    """
    _refuse_places(asked)
    scheme = read_scheme(asked.labels)
    known = known_people(asked.identities)
    source = find(asked, watch=watch)
    if not source.patients:
        raise nothing_taken(source.rows, found=0)
    with begun(asked.out) as draft:
        outcomes, names = _take_all(
            asked, source, scheme=scheme, known=known, draft=draft, workers=workers, watch=watch
        )
        rows = [*source.rows, *(row for p in source.patients for row in outcomes[p.name].rows)]
        people = [of.person for of in outcomes.values() if of.person is not None]
        if not people:
            draft.give_up()
            raise nothing_taken(rows, found=len(source.patients))
        draft.only({str(person["participant_id"]) for person in people})
        write_tables(draft.cohort, name=asked.name, participants=people, virtual=source.virtual)
        new = {
            names[patient.name]: patient.number or ""
            for patient in source.patients
            if outcomes[patient.name].person is not None
        }
        _add_identities(asked.identities, new)
    return Report(
        rows=tuple(rows),
        names={name: names[name] for name, of in outcomes.items() if of.person is not None},
        found=len(source.patients),
        visits=sum(of.visits for of in outcomes.values()),
    )


def _add_identities(path: Path, new: Mapping[str, str]) -> None:
    """Add to the table as it is by now: another intake may have written it since this one began."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_identities(path, {**known_people(path), **new})
    finally:
        os.close(folder)


def find(asked: Asked, *, watch: Watch) -> Source:
    """Everything that the source holds, by its stated style.

    Raises:
        CohortRefusal: a table that cannot be read.
    """
    tables, numbers = read_tables(asked.tables), read_source_numbers(asked.numbers)
    if asked.style == "dicom":
        named = read_series_table(asked.series)
        return find_dicom(asked.source, tables, numbers, named=named, watch=watch)
    if asked.style == "brats":
        return find_brats(asked.source, tables, numbers)
    if asked.style == "bids":
        return find_bids(asked.source, tables, numbers)
    assert asked.mapping is not None, "refused before"
    return find_mapped(asked.source, asked.mapping, tables, numbers)


def one_thread() -> None:
    """What every process does once: patients share out the cores, not the threads of one patient."""
    threadpool_limits(1)


def _take_all(
    asked: Asked,
    source: Source,
    *,
    scheme: Scheme,
    known: Mapping[str, str],
    draft: Begun,
    workers: int,
    watch: Watch,
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """What became of each patient, and its participant's name, both by the source's name."""
    notes = {p.name: draft.note(_key(p.name)) for p in source.patients}
    wanted = {p.name: _digest(p, scheme, registered=asked.registered) for p in source.patients}
    begun_names = {name: note["name"] for name, note in notes.items() if note is not None}
    names = new_names(source.patients, known, begun_names)
    outcomes: dict[str, Outcome] = {}
    jobs = []
    for patient in source.patients:
        note = notes[patient.name]
        same = note is not None and note["digest"] == wanted[patient.name]
        if note is not None and same and note["name"] == names[patient.name]:
            outcomes[patient.name] = _outcome(note)
            continue
        jobs.append(
            Job(
                patient=patient,
                participant=names[patient.name],
                folder=draft.doing(_key(patient.name)),
                scheme=scheme,
                registered=asked.registered,
            )
        )
    total = len(source.patients)
    watch("patients", len(outcomes), total)
    for job, outcome in each(take, jobs, workers=workers, prepare=one_thread):
        name = job.patient.name
        draft.keep(
            _key(name),
            job.participant,
            {
                "digest": wanted[name],
                "name": job.participant,
                "person": None if outcome.person is None else dict(outcome.person),
                "visits": outcome.visits,
                "rows": [vars(row) for row in outcome.rows],
            },
        )
        outcomes[name] = outcome
        watch("patients", len(outcomes), total)
    return outcomes, names


def _outcome(note: Mapping[str, Any]) -> Outcome:
    rows = tuple(Row(**row) for row in note["rows"])
    return Outcome(rows=rows, person=note["person"], visits=note["visits"])


def _key(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:24]


def _digest(patient: FoundPatient, scheme: Scheme, *, registered: bool) -> str:
    """Everything that this patient's files in the cohort follow from: its own files by size and time of
    change, tables, options and code."""
    items = [item for visit in patient.visits for item in visit.items]
    files = [path for item in items for path in (*item.files, *item.beside)]
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    words = repr((patient, scheme, registered, stamps, code_hash()))  # escapes what no UTF-8 holds
    return hashlib.sha256(words.encode()).hexdigest()


def _refuse_places(asked: Asked) -> None:
    """Raises UsageRefusal, CohortRefusal, SystemRefusal: what cannot be a source, a cohort or a table."""
    if not asked.source.is_dir():
        raise CohortRefusal(
            "a source that is no folder",
            allowed="a folder with DICOM or NIfTI files",
            next="correct --from",
            code="no_source",
        )
    refuse_finished(asked.out)
    source, out = asked.source.resolve(), asked.out.resolve()
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise UsageRefusal(
            "a source and a cohort of which one lies in the other",
            allowed="two folders apart",
            next="correct --out",
        )
    _refuse_place(asked, asked.identities, option="--identities", what="a table of identities")
    _refuse_shared(asked)
    if asked.report is not None:
        _refuse_place(asked, asked.report, option="--report", what="a report")
        refuse_report(asked.report)
    _refuse_words(asked)


def _refuse_place(asked: Asked, path: Path, *, option: str, what: str) -> None:
    """Refuse now where a file with the hospital's names may not lie, or could not be written at the end."""
    place, correct = path.resolve(), f"correct {option}"
    apart = (asked.source, asked.out, beside(asked.out))
    if any(place.is_relative_to(one.resolve()) for one in apart):
        raise UsageRefusal(
            f"{what} in the source or in the cohort",
            allowed="a place outside both, on this machine",
            next=correct,
        )
    faults = {
        f"{what} in a folder that is not there": not os.path.isdir(place.parent),
        f"a folder in the place of {what}": os.path.isdir(place),
        f"a link in the place of {what}": path.is_symlink(),
        f"{what} in a folder that this account may not write": not os.access(place.parent, os.W_OK),
    }
    for found, wrong in faults.items():
        if wrong:
            raise SystemRefusal(
                found,
                allowed="a new or earlier file in a folder that takes writes",
                next=correct,
                code="disk",
            )


def _refuse_shared(asked: Asked) -> None:
    """Refuse one file for two things of which one is written: the other would be lost."""
    tables = [] if asked.tables is None else list(asked.tables.glob("*.tsv"))
    read = [asked.numbers, asked.mapping, asked.series, Path(asked.labels), *tables]
    given = [one.resolve() for one in read if one is not None]
    written = [one.resolve() for one in (asked.identities, asked.report) if one is not None]
    if len({*written}) < len(written) or {*written} & {*given}:
        raise UsageRefusal(
            "one file for two options",
            allowed="a file of its own for --identities, and one for --report",
            next="name another file",
        )


def _refuse_words(asked: Asked) -> None:
    wants: Sequence[tuple[bool, str, str]] = (
        (asked.style == "mapping" and asked.mapping is None, "no --mapping", "--mapping TABLE"),
        (asked.style != "mapping" and asked.mapping is not None, "a --mapping", "no --mapping"),
        (asked.style != "dicom" and asked.series is not None, "a --series", "no --series"),
        (asked.style != "dicom" and asked.numbers is None, "no --numbers", "--numbers TABLE"),
    )
    for wrong, found, allowed in wants:
        if wrong:
            raise UsageRefusal(
                f"{found} with --style {asked.style}",
                allowed=f"{allowed} with this style",
                next="correct the options",
            )
