"""How do the files of a source become patients with visits, and who cannot be taken at all?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oncofed_client.identities import is_number, spelling
from oncofed_client.intake.found import (
    FoundPatient,
    FoundVisit,
    Item,
    Row,
    Source,
    When,
    left_out,
)
from oncofed_client.intake.tables import Tables


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One thing with the patient and the visit that it belongs to, in the source's words; ``when`` where
    the thing itself says it, as DICOM does."""

    patient: str
    visit: str
    item: Item
    when: When | None = None


def assemble(
    placed: Sequence[Placed],
    rows: Sequence[Row],
    *,
    tables: Tables,
    numbers: Mapping[str, str],
    people: Mapping[str, Mapping[str, Any]] | None = None,
) -> Source:
    """Things by patient and visit; two for one thing of a visit are neither.

    Args:
        rows: what was left out before.
        numbers: hospital number by the source's name of a patient.
        people: what the files themselves say of a patient; the tables go before it.
    """
    visits: dict[str, dict[str, list[Placed]]] = defaultdict(lambda: defaultdict(list))
    for one in placed:
        visits[one.patient][one.visit].append(one)
    shared = Counter(spelling(numbers[name]) for name in visits if name in numbers)
    more = list(rows)
    patients = []
    for name, of_patient in sorted(visits.items()):
        found = [
            _visit(name, session, things, tables=tables, rows=more)
            for session, things in sorted(of_patient.items())
        ]
        number = numbers.get(name, "").strip()
        patients.append(
            FoundPatient(
                name=name,
                number=number or None,
                visits=tuple(found),
                treatments=(tables.treatments or {}).get(name, ()),
                person=(tables.people or {}).get(name) or (people or {}).get(name, {}),
                refused=_refused(name, number, shared=shared, tables=tables),
            )
        )
    return Source(patients=tuple(patients), rows=(*more, *_unused(visits, tables)))


def _visit(
    patient: str, session: str, things: Sequence[Placed], *, tables: Tables, rows: list[Row]
) -> FoundVisit:
    """One visit; a row for each of several things of one kind."""
    by_kind: dict[str, list[Placed]] = defaultdict(list)
    for one in things:
        by_kind[one.item.kind].append(one)
    items = []
    for alike in by_kind.values():
        if len(alike) == 1:
            items.append(alike[0].item)
            continue
        rows += [
            left_out(
                "ambiguous" if one.item.form == "nifti" else "series_alike",
                patient=patient,
                visit=session,
                what=one.item.shown,
            )
            for one in alike
        ]
    told = tables.told(patient, session)
    own = next((one.when for one in things if one.when is not None), None)
    return FoundVisit(
        session=session,
        when=own if told.when is None else told.when,
        items=tuple(items),
        steroid_mg=told.steroid_mg,
        kps=told.kps,
    )


def _unused(visits: Mapping[str, Mapping[str, Any]], tables: Tables) -> Iterator[Row]:
    """A row for each name of a table that no patient, or no visit, of the source has: it may be misspelt."""
    told: tuple[tuple[str, Mapping[str, Any] | None], ...] = (
        ("participants", tables.people),
        ("sessions", tables.sessions),
        ("treatments", tables.treatments),
    )
    for what, table in told:
        for name in sorted(set(table or {}) - set(visits)):
            yield left_out("not_in_source", patient=name, what=what)
    for name, of_patient in sorted((tables.sessions or {}).items()):
        for session in sorted(set(of_patient) - set(visits.get(name, of_patient))):
            yield left_out("not_in_source", patient=name, visit=session, what="sessions")
    for name in sorted(tables.bad - set(visits)):
        yield left_out("row_invalid", patient=name)


def _refused(name: str, number: str, *, shared: Mapping[str, int], tables: Tables) -> str | None:
    if name in tables.bad:
        return "row_invalid"
    if not is_number(number):
        return "no_number"
    return "number_twice" if shared[spelling(number)] > 1 else None
