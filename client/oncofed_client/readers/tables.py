"""How the tables of a cohort become values, or are refused.

Tab-separated UTF-8 with one header; ``n/a`` is "unknown". Every column of the contract must be there
(a misspelt column would otherwise turn into "unknown" without a word); further columns are tolerated,
as BIDS allows, and not read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from oncofed_client.findings import refusal
from oncofed_common.cohort import TreatmentKind

PARTICIPANT = r"^sub-[A-Za-z0-9]{1,64}$"
VIRTUAL = "oncofed-simulate"
"""The generator that virtual hospitals name in ``dataset_description.json``."""
SESSION = r"^ses-[A-Za-z0-9]{1,64}$"

Day = Annotated[int, Field(ge=-36_500, le=36_500)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class TableRow(BaseModel):
    """One row of some table: columns that it does not name are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def known(value: object) -> object:
    """A cell's value; ``n/a`` is None."""
    return None if value == "n/a" else value


T = TypeVar("T")
Maybe = Annotated[T | None, BeforeValidator(known)]


class ParticipantRow(TableRow):
    """One row of ``participants.tsv``."""

    participant_id: Annotated[str, StringConstraints(pattern=PARTICIPANT)]
    age_years: Maybe[Annotated[float, Field(ge=0, le=120, allow_inf_nan=False)]]
    sex: Maybe[Literal["M", "F"]]
    diagnosis: Maybe[Text]
    grade: Maybe[Annotated[int, Field(ge=1, le=4)]]
    idh: Maybe[Literal["mutant", "wildtype"]]
    mgmt: Maybe[Literal["methylated", "unmethylated"]]


class SessionRow(TableRow):
    """One row of ``sub-X_sessions.tsv``."""

    session_id: Annotated[str, StringConstraints(pattern=SESSION)]
    days_from_baseline: Day
    steroid_mg: Maybe[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]]
    kps: Maybe[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]]


class TreatmentRow(TableRow):
    """One row of ``sub-X_treatments.tsv``."""

    kind: TreatmentKind
    start_day: Day
    end_day: Day
    dose_gy: Maybe[Annotated[float, Field(gt=0, le=120, allow_inf_nan=False)]]
    fractions: Maybe[Annotated[int, Field(ge=1, le=100)]]
    agent: Maybe[Text]
    dose_mg_m2: Maybe[Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]]


class LabelRow(TableRow):
    """One row of ``derivatives/tumor/dseg.tsv``."""

    index: Annotated[int, Field(ge=0, le=2**24)]
    name: Text


class Generator(BaseModel):
    """One entry of BIDS' ``GeneratedBy``."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    Name: Text


class Description(BaseModel):
    """``dataset_description.json``, as far as the contract asks for it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    Name: Text
    BIDSVersion: Text
    DatasetType: Text
    GeneratedBy: list[Generator] = []

    @property
    def virtual(self) -> bool:
        """Was it written by a virtual hospital?"""
        return any(entry.Name == VIRTUAL for entry in self.GeneratedBy)


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be read: its first cell, and the columns that are wrong."""

    key: str
    what: str


Row = TypeVar("Row", bound=TableRow)


@dataclass(frozen=True, kw_only=True)
class Table(Generic[Row]):
    """What a table holds: its good rows and its bad ones, each in order."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]


def read_table(
    path: Path, kind: type[Row], *, may_lack: frozenset[str] = frozenset()
) -> Table[Row]:
    """Read a table whose rows are of ``kind``.

    Args:
        may_lack: columns that need not be there; their values are ``n/a`` then.

    Raises:
        CohortRefusal: ``table_missing``, ``table_malformed`` or ``column_missing``.
    """
    rows: list[Row] = []
    bad: list[BadRow] = []
    required = tuple(name for name in kind.model_fields if name not in may_lack)
    for fields in _records(path, required=required):
        try:
            rows.append(kind.model_validate(dict.fromkeys(may_lack, "n/a") | fields))
        except ValidationError as error:
            wrong = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
            key = fields.get(next(iter(kind.model_fields)), "")
            bad.append(BadRow(key=key, what=", ".join(wrong)))
    return Table(rows=tuple(rows), bad=tuple(bad))


def read_description(path: Path) -> Description:
    """Read ``dataset_description.json``.

    Raises:
        CohortRefusal: ``table_missing`` or ``description_malformed``.
    """
    try:
        return Description.model_validate(json.loads(_text(path)))
    except (ValidationError, ValueError, RecursionError):
        raise refusal("description_malformed", "a dataset description that lacks a key") from None


def _records(path: Path, *, required: tuple[str, ...]) -> Iterator[dict[str, str]]:
    lines = _text(path).replace("\r\n", "\n").split("\n")
    header, *rows = [
        [cell.strip() for cell in line.split("\t")] for line in lines if line.strip()
    ] or [[]]
    if any(count > 1 for count in Counter(header).values()):
        raise refusal("table_malformed", "a table with two columns of one name")
    missing = [column for column in required if column not in header]
    if missing:
        raise refusal("column_missing", f"a table without the column {', '.join(missing)}")
    if any(len(row) != len(header) for row in rows):
        raise refusal("table_malformed", "a table with a row longer or shorter than its header")
    return (dict(zip(header, row, strict=True)) for row in rows)


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe or a device would never end
        raise refusal("table_malformed", "a table that is not a regular file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise refusal("table_missing", "a table that is not there") from None
    except (OSError, UnicodeDecodeError):
        raise refusal("table_malformed", "a table that cannot be read as UTF-8") from None
