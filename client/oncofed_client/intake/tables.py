"""What does a hospital know of its patients beyond their scans, and where does it say so?

Three tables in the folder ``--tables``, each of which may be missing; the names in them are the source's
own:

    participants.tsv   as in a cohort: participant_id, age_years, sex, diagnosis, grade, idh, mgmt
    sessions.tsv       participant_id, session_id, when, steroid_mg, kps
    treatments.tsv     participant_id, kind, start, end, dose_gy, fractions, agent, dose_mg_m2

``when``, ``start`` and ``end`` are dates or whole days. A source in the BIDS style may bring the same in
its own tables, with dates in ``acq_time`` or days in ``days_from_baseline``; --tables goes before them,
table by table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from oncofed_client.intake.clock import read_when
from oncofed_client.intake.found import FoundTreatment, When
from oncofed_client.readers.tables import (
    Maybe,
    ParticipantRow,
    Table,
    TableRow,
    Text,
    TreatmentRow,
    read_table,
)
from oncofed_common.cohort import TreatmentKind
from oncofed_common.errors import CohortRefusal


def _when(value: object) -> object:
    return read_when(value) if isinstance(value, str) else value


MaybeWhen = Annotated[date | int | None, BeforeValidator(_when)]
SomeTime = Annotated[date | int, BeforeValidator(_when)]
Steroid = Maybe[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]]
Kps = Maybe[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]]


class PersonRow(ParticipantRow):
    """A row of the source's participants table: any name."""

    participant_id: Text


class TimedSession(TableRow):
    """A row of ``sessions.tsv``."""

    participant_id: Text
    session_id: Text
    when: MaybeWhen
    steroid_mg: Steroid
    kps: Kps


class TimedTreatment(TableRow):
    """A row of ``treatments.tsv``."""

    participant_id: Text
    kind: TreatmentKind
    start: SomeTime
    end: SomeTime
    dose_gy: Maybe[Annotated[float, Field(gt=0, le=120, allow_inf_nan=False)]]
    fractions: Maybe[Annotated[int, Field(ge=1, le=100)]]
    agent: Maybe[Text]
    dose_mg_m2: Maybe[Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]]


class BidsSession(TableRow):
    """A row of a BIDS source's own sessions table."""

    session_id: Text
    acq_time: MaybeWhen
    days_from_baseline: MaybeWhen
    steroid_mg: Steroid
    kps: Kps


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the tables say of a visit."""

    when: When | None = None
    steroid_mg: float | None = None
    kps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What the tables say, by the source's name of a patient; ``bad`` are patients with a row that cannot
    be read. None for a table that is not there."""

    people: Mapping[str, Mapping[str, Any]] | None = None
    sessions: Mapping[str, Mapping[str, Told]] | None = None
    treatments: Mapping[str, tuple[FoundTreatment, ...]] | None = None
    bad: frozenset[str] = field(default_factory=frozenset)

    def before(self, other: Tables) -> Tables:
        """These tables, and those of ``other`` where there is none here."""
        return Tables(
            people=self.people if self.people is not None else other.people,
            sessions=self.sessions if self.sessions is not None else other.sessions,
            treatments=self.treatments if self.treatments is not None else other.treatments,
            bad=self.bad | other.bad,
        )

    def told(self, patient: str, session: str) -> Told:
        """What is known of a visit."""
        return (self.sessions or {}).get(patient, {}).get(session, Told())


def read_tables(folder: Path | None) -> Tables:
    """The tables of ``--tables``.

    Raises:
        CohortRefusal: ``no_tables``, or a table that cannot be read as one.
    """
    if folder is None:
        return Tables()
    names = ("participants.tsv", "sessions.tsv", "treatments.tsv")
    if not folder.is_dir() or not any((folder / name).is_file() for name in names):
        raise CohortRefusal(
            "a folder of tables without one of them",
            allowed=f"a folder with {', '.join(names)}, or some of them",
            next="correct --tables",
            code="no_tables",
        )
    bad: set[str] = set()
    people: dict[str, dict[str, Any]] | None = None
    sessions: dict[str, dict[str, Told]] | None = None
    treatments: dict[str, tuple[FoundTreatment, ...]] | None = None
    if (folder / names[0]).is_file():
        people = _people(read_table(folder / names[0], PersonRow), bad)
    if (folder / names[1]).is_file():
        timed = read_table(folder / names[1], TimedSession)
        bad |= {row.key for row in timed.bad}
        sessions = {}
        for row in timed.rows:
            told = Told(when=row.when, steroid_mg=row.steroid_mg, kps=row.kps)
            of_patient = sessions.setdefault(row.participant_id, {})
            if row.session_id in of_patient:
                bad.add(row.participant_id)
            of_patient[row.session_id] = told
    if (folder / names[2]).is_file():
        courses = read_table(folder / names[2], TimedTreatment)
        bad |= {row.key for row in courses.bad}
        treatments = {}
        for course in courses.rows:
            said = course.model_dump(exclude={"participant_id"})
            before = treatments.get(course.participant_id, ())
            treatments[course.participant_id] = (*before, FoundTreatment(**said))
    return Tables(people=people, sessions=sessions, treatments=treatments, bad=frozenset(bad))


def bids_tables(source: Path, patients: list[str]) -> Tables:
    """What a BIDS source says itself; a column that it does not have is unknown.

    Raises:
        CohortRefusal: a participants table that cannot be read as one.
    """
    bad: set[str] = set()
    people = None
    if (source / "participants.tsv").is_file():
        lacking = frozenset(PersonRow.model_fields) - {"participant_id"}
        people = _people(read_table(source / "participants.tsv", PersonRow, may_lack=lacking), bad)
    sessions: dict[str, dict[str, Told]] = {}
    treatments: dict[str, tuple[FoundTreatment, ...]] = {}
    for name in patients:
        try:
            sessions[name] = _own_sessions(source / name / f"{name}_sessions.tsv")
            treatments[name] = _own_treatments(source / name / f"{name}_treatments.tsv")
        except CohortRefusal:
            bad.add(name)
    return Tables(people=people, sessions=sessions, treatments=treatments, bad=frozenset(bad))


def _people(table: Table[PersonRow], bad: set[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    bad |= {row.key for row in table.bad}
    for row in table.rows:
        if row.participant_id in found:
            bad.add(row.participant_id)
        found[row.participant_id] = row.model_dump(exclude={"participant_id"})
    return found


def _own_sessions(path: Path) -> dict[str, Told]:
    """Raises CohortRefusal: a row that cannot be read, or a table that is none."""
    if not path.is_file():
        return {}
    lacking = frozenset(BidsSession.model_fields) - {"session_id"}
    table = read_table(path, BidsSession, may_lack=lacking)
    _refuse_bad(table)
    return {
        row.session_id: Told(
            when=row.days_from_baseline if row.acq_time is None else row.acq_time,
            steroid_mg=row.steroid_mg,
            kps=row.kps,
        )
        for row in table.rows
    }


def _own_treatments(path: Path) -> tuple[FoundTreatment, ...]:
    """Raises CohortRefusal: a row that cannot be read, or a table that is none."""
    if not path.is_file():
        return ()
    table = read_table(path, TreatmentRow)
    _refuse_bad(table)
    made = []
    for row in table.rows:
        said = row.model_dump(exclude={"start_day", "end_day"})
        made.append(FoundTreatment(start=row.start_day, end=row.end_day, **said))
    return tuple(made)


def _refuse_bad(table: Table[Any]) -> None:
    if table.bad:
        raise CohortRefusal(
            "a table with a row that cannot be read",
            allowed="values of the kind and range that the column states, or n/a",
            next="correct the row, or write n/a",
            code="row_invalid",
        )
