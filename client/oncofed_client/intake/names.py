"""Which NIfTI files belong to which patient, visit and channel? By their names, in one of three styles.

    brats     BraTS-GLI-00005-100-t1c.nii.gz (visit 100), or BraTS2021_00005_t1ce.nii.gz (one visit)
    bids      sub-X/ses-Y/anat/sub-X_ses-Y_ce-gadolinium_T1w.nii.gz; outlines are *_dseg, doses *_dose
    mapping   a table: participant_id, session_id, kind, path

A name is read, never guessed: what no rule reads is listed as not taken, and two files for one thing are
both left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import StringConstraints

from oncofed_client.intake.assemble import Placed, assemble
from oncofed_client.intake.found import DOSE, KINDS, OUTLINE, Item, Row, Source, left_out
from oncofed_client.intake.tables import Tables, bids_tables
from oncofed_client.readers.cohort import DESCRIPTION
from oncofed_client.readers.tables import TableRow, Text, read_description, read_table
from oncofed_common.errors import CohortRefusal

ENDING = r"\.nii(?:\.gz)?"
BRATS = re.compile(rf"(?P<patient>.+)-(?P<visit>\d{{3}})-(?P<kind>t1n|t1c|t2w|t2f|seg){ENDING}")
BRATS_BEFORE = re.compile(rf"(?P<patient>.+)_(?P<kind>t1|t1ce|t2|flair|seg){ENDING}")
BRATS_KINDS: Mapping[str, str] = {
    "t1n": "T1w",
    "t1c": "ce-gadolinium_T1w",
    "t2w": "T2w",
    "t2f": "FLAIR",
    "t1": "T1w",
    "t1ce": "ce-gadolinium_T1w",
    "t2": "T2w",
    "flair": "FLAIR",
    "seg": OUTLINE,
}
BIDS = re.compile(
    r"(?P<patient>sub-[A-Za-z0-9]+)_(?P<visit>ses-[A-Za-z0-9]+)(?P<entities>(?:_[a-z]+-[A-Za-z0-9]+)*)"
    rf"_(?P<suffix>T1w|T2w|FLAIR|dseg|dose){ENDING}"
)


class MappingRow(TableRow):
    """One row of the table that ``--mapping`` names."""

    participant_id: Text
    session_id: Text
    kind: Literal["T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "outline", "dose"]
    path: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]


def find_brats(source: Path, tables: Tables, numbers: Mapping[str, str]) -> Source:
    """What a folder in the style of the BraTS challenges holds."""
    placed, rows = _read_names(source, _brats)
    return assemble(placed, rows, tables=tables, numbers=numbers)


def find_bids(source: Path, tables: Tables, numbers: Mapping[str, str]) -> Source:
    """What a BIDS folder holds; a cohort of virtual patients stays one."""
    placed, rows = _read_names(source, _bids)
    own = bids_tables(source, sorted({one.patient for one in placed}))
    try:
        virtual = read_description(source / DESCRIPTION).virtual
    except CohortRefusal:
        virtual = False
    found = assemble(placed, rows, tables=tables.before(own), numbers=numbers)
    return replace(found, virtual=virtual)


def find_mapped(source: Path, mapping: Path, tables: Tables, numbers: Mapping[str, str]) -> Source:
    """What the table ``mapping`` names; paths count from ``source`` and stay in it.

    Raises:
        CohortRefusal: a mapping that cannot be read, or has a row that cannot.
    """
    table = read_table(mapping, MappingRow)
    if table.bad:
        raise CohortRefusal(
            f"a mapping with {len(table.bad)} rows that cannot be read (a wrong {table.bad[0].what})",
            allowed=f"participant_id, session_id, a kind of {', '.join(KINDS)}, and a path",
            next="correct --mapping",
            code="bad_mapping",
        )
    placed, rows = [], []
    for row in table.rows:
        about = {"patient": row.participant_id, "visit": row.session_id, "what": row.path}
        path = source / row.path
        try:
            inside = not PurePosixPath(row.path).is_absolute() and _inside(path, source)
            there = path.exists()
            amiss = _amiss(path)
        except (OSError, ValueError, RuntimeError):  # a path too long, closed, or led in a circle
            rows.append(left_out("unreachable", **about))
            continue
        if not inside:
            rows.append(left_out("link_outside", **about))
        elif not there:
            rows.append(left_out("file_missing", **about))
        elif amiss:
            rows.append(left_out(amiss, **about))
        else:
            placed.append(_placed(row.participant_id, row.session_id, row.kind, path))
    return assemble(placed, rows, tables=tables, numbers=numbers)


def files_below(source: Path, rows: list[Row]) -> Iterator[Path]:
    """Every file of a folder in order of path, but for hidden ones.

    Args:
        rows: gets a row for each link that leads out of the source or nowhere, for whatever this
            account cannot reach or read, and for pipes and devices.
    """

    def leave_out(code: str, path: Path) -> None:
        rows.append(left_out(code, patient="", what=path.relative_to(source).as_posix()))

    def not_listed(error: OSError) -> None:
        leave_out("unreachable", Path(error.filename))

    for folder, below, names in os.walk(source, onerror=not_listed):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted([*below, *names]):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            try:
                leads_away = path.is_symlink() and not _within(path, source)
                is_folder, amiss = path.is_dir(), _amiss(path)
            except OSError:
                leave_out("unreachable", path)
                below[:] = [one for one in below if one != name]
                continue
            if leads_away:
                leave_out("link_outside", path)
            elif amiss and not is_folder:
                leave_out(amiss, path)
            elif not is_folder:
                yield path


def _amiss(path: Path) -> str:
    """The reason why something that is there cannot be read as a file; empty: it can."""
    if not path.is_file():
        return "no_file"
    return "" if os.access(path, os.R_OK) else "unreachable"


def _within(path: Path, source: Path) -> bool:
    """Whether something is there, and lies in the source whatever links lead to it."""
    return path.exists() and _inside(path, source)


def _inside(path: Path, source: Path) -> bool:
    return path.resolve().is_relative_to(source.resolve())


def _brats(path: Path) -> Placed | None:
    found = BRATS.fullmatch(path.name) or BRATS_BEFORE.fullmatch(path.name)
    if found is None:
        return None
    said = found.groupdict()
    return _placed(said["patient"], said.get("visit") or "1", BRATS_KINDS[said["kind"]], path)


def _bids(path: Path) -> Placed | None:
    found = BIDS.fullmatch(path.name)
    if found is None:
        return None
    kind = found["suffix"]
    if kind == "T1w" and "_ce-" in found["entities"]:
        kind = "ce-gadolinium_T1w"
    kind = {"dseg": OUTLINE, "dose": DOSE}.get(kind, kind)
    return _placed(found["patient"], found["visit"], kind, path)


def _placed(patient: str, visit: str, kind: str, path: Path) -> Placed:
    item = Item(kind=kind, form="nifti", files=(path,), shown=path.name)
    return Placed(patient=patient, visit=visit, item=item)


def _read_names(
    source: Path, read: Callable[[Path], Placed | None]
) -> tuple[list[Placed], list[Row]]:
    """Every NIfTI file of the source with what its name says, and rows for those that say nothing."""
    placed: list[Placed] = []
    rows: list[Row] = []
    for path in files_below(source, rows):
        if not re.search(rf"{ENDING}$", path.name):
            continue
        one = read(path)
        if one is None:
            shown = path.relative_to(source).as_posix()
            rows.append(left_out("unknown_name", patient="", what=shown))
        else:
            placed.append(one)
    return placed, rows
