"""Which series and objects of a DICOM folder belong to which patient and visit?

A patient is a PatientID, which is the hospital number too unless --numbers says another; a visit is a day
on which images were taken. Segmentations, structure sets and doses belong to the visit whose images share
their frame of reference, or their study. A dose that lies on a planning CT belongs to the latest visit up
to the CT's day. Only headers are read here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from oncofed_client.intake.assemble import Placed, assemble
from oncofed_client.intake.channels import NOT_WANTED, channel_of
from oncofed_client.intake.found import DOSE, OUTLINE, Form, Item, Row, Source, left_out
from oncofed_client.intake.names import files_below
from oncofed_client.intake.tables import Tables
from oncofed_client.readers.dicom import Header, is_dicom, read_header
from oncofed_common.screen import Watch

OBJECTS: Mapping[str, tuple[str, Form]] = {
    "SEG": (OUTLINE, "seg"),
    "RTSTRUCT": (OUTLINE, "rtstruct"),
    "RTDOSE": (DOSE, "rtdose"),
}
IMAGES = ("MR",)
PLANNING = "CT"
MOST_DAYS_TO_PLANNING = 90
"""Beyond so many days from a visit to a planning CT, the plan was made on other images."""

BESIDE = ("ce-gadolinium_T1w", "T1w", "FLAIR", "T2w")
"""On which image contours are filled, where their own is not known."""


def find_dicom(
    source: Path,
    tables: Tables,
    numbers: Mapping[str, str],
    *,
    named: Mapping[str, str],
    watch: Watch,
) -> Source:
    """What a DICOM folder holds.

    Args:
        named: the channel of a series by its description, as the site states it.
    """
    rows: list[Row] = []
    groups: dict[str, list[Header]] = defaultdict(list)
    paths = list(files_below(source, rows))
    for number, path in enumerate(paths):
        watch("reading headers", number, len(paths))
        shown = path.relative_to(source).as_posix()
        header = read_header(path)
        if header is None:
            if is_dicom(path) and path.name.upper() != "DICOMDIR":
                rows.append(left_out("truncated", patient="", what=shown))
            elif path.name.upper() != "DICOMDIR":
                rows.append(left_out("not_dicom", patient="", what=shown))
        elif not header.patient or not header.series:
            rows.append(left_out("no_patient", patient=header.patient, what=shown))
        else:
            groups[header.series].append(header)
    watch("reading headers", len(paths), max(1, len(paths)))
    whole = _of_one_patient(groups, rows)
    images = [placed for series in whole if (placed := _image(series, named, rows)) is not None]
    images = _finest(images, rows)
    objects = [one for series in whole for one in _objects(series, images, whole, rows)]
    rows += _plannings(whole, objects)
    patients = {header.patient for series in whole for header in series}
    return assemble(
        [*images, *objects],
        rows,
        tables=tables,
        numbers={name: numbers.get(name, name) for name in patients},
        people=_people(whole),
    )


def _of_one_patient(groups: Mapping[str, list[Header]], rows: list[Row]) -> list[list[Header]]:
    """The series, in order of day and name, that are one patient's and one visit's."""
    kept = []
    for series in groups.values():
        patients = sorted({header.patient for header in series})
        if len(patients) > 1:
            rows += [
                left_out("mixed_patients", patient=name, visit=_visit(series), what=_shown(series))
                for name in patients
            ]
        else:
            kept.append(series)
    return sorted(kept, key=lambda series: (series[0].patient, _visit(series), _shown(series)))


def _image(series: list[Header], named: Mapping[str, str], rows: list[Row]) -> Placed | None:
    first = series[0]
    if first.modality in OBJECTS or first.modality == PLANNING:
        return None
    kind = channel_of(first, named) if first.modality in IMAGES else None
    if kind == NOT_WANTED:
        return None
    if kind is None:
        rows.append(
            left_out(
                "channel_unclear",
                patient=first.patient,
                visit=_visit(series),
                what=_shown(series),
            )
        )
        return None
    files = tuple(sorted(header.path for header in series))
    item = Item(kind=kind, form="series", files=files, shown=_shown(series))
    return Placed(patient=first.patient, visit=_visit(series), item=item, when=first.taken_on)


def _finest(images: Sequence[Placed], rows: list[Row]) -> list[Placed]:
    """Of several series of one channel in a visit the one with most slices; where two have as many, all of
    them, which ``assemble`` leaves out."""
    alike: dict[tuple[str, str, str], list[Placed]] = defaultdict(list)
    for one in images:
        alike[one.patient, one.visit, one.item.kind].append(one)
    kept = []
    for several in alike.values():
        most = max(len(one.item.files) for one in several)
        for one in several:
            if len(one.item.files) == most:
                kept.append(one)
            else:
                about = {"patient": one.patient, "visit": one.visit, "what": one.item.shown}
                rows.append(left_out("finer_taken", **about))
    return kept


def _objects(
    series: list[Header],
    images: Sequence[Placed],
    whole: Sequence[list[Header]],
    rows: list[Row],
) -> list[Placed]:
    """Each SEG, RTSTRUCT or RTDOSE of a series with the visit that it belongs to."""
    if series[0].modality not in OBJECTS:
        return []
    kind, form = OBJECTS[series[0].modality]
    made = []
    for header in series:
        beside = _beside(header, images, whole)
        planning, code = None, "no_image_beside"
        if beside is None and form == "rtdose":
            planning = _planned_on(header, whole)
            beside = _latest(images, planning) if planning else None
            if beside is not None and planning is not None and _is_late(planning, beside):
                beside, code = None, "planning_late"
        if beside is None:
            about = {"patient": header.patient, "visit": _visit(series), "what": _shown(series)}
            rows.append(left_out(code, **about))
            continue
        item = Item(
            kind=kind,
            form=form,
            files=(header.path,),
            shown=_shown(series),
            beside=tuple(sorted(one.path for one in planning or ()))
            or (beside.item.files if form == "rtstruct" else ()),
        )
        made.append(replace(beside, item=item))
    return made


def _beside(
    header: Header, images: Sequence[Placed], whole: Sequence[list[Header]]
) -> Placed | None:
    """The image that shares the object's frame of reference, else its study."""
    of_path = {one.path: one for series in whole for one in series}
    own = sorted(
        (one for one in images if one.patient == header.patient),
        key=lambda one: BESIDE.index(one.item.kind),
    )
    heads = [(one, of_path[one.item.files[0]]) for one in own]
    frames = set(header.frames_of_reference)
    for one, head in heads:
        if frames & set(head.frames_of_reference):
            return one
    if frames:
        return None
    return next((one for one, head in heads if head.study == header.study), None)


def _planned_on(header: Header, whole: Sequence[list[Header]]) -> list[Header] | None:
    """The CT in whose frame of reference a dose lies; where it states none, the one of its study."""
    scans = [
        one for one in whole if (one[0].patient, one[0].modality) == (header.patient, PLANNING)
    ]
    frames = set(header.frames_of_reference)
    fitting = [
        one
        for one in scans
        if (frames & set(one[0].frames_of_reference) if frames else one[0].study == header.study)
    ]
    return max(fitting, key=len, default=None)  # a topogram has the frame too


def _plannings(whole: Sequence[list[Header]], objects: Sequence[Placed]) -> Iterator[Row]:
    """A row for each CT: none is taken, but a dose may lie by it."""
    asked = {path for one in objects for path in one.item.beside}
    for series in whole:
        first = series[0]
        if first.modality == PLANNING:
            code = "planning_ct" if first.path in asked else "channel_unclear"
            about = {"patient": first.patient, "visit": _visit(series), "what": _shown(series)}
            yield left_out(code, **about)


def _latest(images: Sequence[Placed], planning: list[Header]) -> Placed | None:
    """An image of the patient's latest visit up to the day of a planning CT: what was planned on."""
    patient, day = planning[0].patient, planning[0].taken_on
    if day is None:
        return None
    known = [
        (when, one)
        for one in images
        if one.patient == patient and isinstance(when := one.when, date) and when <= day
    ]
    return max(known, key=lambda of: of[0], default=(day, None))[1]


def _is_late(planning: list[Header], visit: Placed) -> bool:
    day, before = planning[0].taken_on, visit.when
    if day is None or not isinstance(before, date):
        return True
    return (day - before).days > MOST_DAYS_TO_PLANNING


def _people(whole: Sequence[list[Header]]) -> dict[str, dict[str, Any]]:
    """Sex, and age at the first visit, as the headers say them."""
    people: dict[str, dict[str, Any]] = {}
    for series in whole:
        first = series[0]
        said = people.setdefault(first.patient, {})
        if first.sex is not None:
            said.setdefault("sex", first.sex)
        if first.age_years is not None:
            said.setdefault("age_years", first.age_years)
    return people


def _visit(series: Sequence[Header]) -> str:
    first = series[0]
    return first.taken_on.isoformat() if first.taken_on is not None else first.study


def _shown(series: Sequence[Header]) -> str:
    first = series[0]
    return f"{first.modality} {first.description or 'without description'}".strip()
