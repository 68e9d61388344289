"""What was found in a hospital's folder, before a voxel is read: patients, visits, files; and what becomes
of each.

Names in here are the source's own. They stay on the hospital's screen and in its report (mode 0600); a
cohort gets new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from oncofed_client.intake.reasons import reason
from oncofed_common.cohort import CHANNELS, TreatmentKind

OUTLINE, DOSE = "outline", "dose"
KINDS = (*CHANNELS, OUTLINE, DOSE)
"""What a file of a visit can be."""

Form = Literal["nifti", "series", "seg", "rtstruct", "rtdose"]
When = date | int
"""A date, or a day on the source's own clock."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing of a visit: a NIfTI file, or the files of one DICOM series or object.

    Args:
        shown: what the hospital's own table calls it.
        beside: the image whose voxels an RTSTRUCT's contours are filled on, or the planning CT in whose
            world an RTDOSE lies; empty otherwise.
    """

    kind: str
    form: Form
    files: tuple[Path, ...]
    shown: str
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoundVisit:
    """One visit; ``when`` is None where nothing says it."""

    session: str
    when: When | None
    items: tuple[Item, ...]
    steroid_mg: float | None = None
    kps: float | None = None


@dataclass(frozen=True, kw_only=True)
class FoundTreatment:
    """One course, on the clock of the visits, or in days since the first of them."""

    kind: TreatmentKind
    start: When
    end: When
    dose_gy: float | None = None
    fractions: int | None = None
    agent: str | None = None
    dose_mg_m2: float | None = None


@dataclass(frozen=True, kw_only=True)
class FoundPatient:
    """One patient under the source's name.

    ``person`` has the columns of a participants table but the name, as far as they are known.
    """

    name: str
    number: str | None
    visits: tuple[FoundVisit, ...]
    treatments: tuple[FoundTreatment, ...] = ()
    person: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    """The code of why nothing of this patient can be taken, if that is known before a voxel is read."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was taken, what not, and why.

    ``patient``, ``visit`` and ``what`` are the source's words; ``code`` is empty for what was taken.
    """

    patient: str
    visit: str
    what: str
    code: str = ""
    found: str = ""
    next: str = ""

    @property
    def taken(self) -> bool:
        return not self.code

    def as_dict(self) -> dict[str, Any]:
        return {
            "patient": self.patient,
            "visit": self.visit,
            "what": self.what,
            "taken": self.taken,
            "code": self.code or None,
            "found": self.found or None,
            "next": self.next or None,
        }


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that was found: patients in order of name, and rows about what no patient can have."""

    patients: tuple[FoundPatient, ...]
    rows: tuple[Row, ...] = ()
    virtual: bool = False


def left_out(code: str, *, patient: str, visit: str = "", what: str = "", found: str = "") -> Row:
    """The row of something that is not taken; ``found`` is more exact than the code's own words."""
    why = reason(code)
    return Row(
        patient=_text(patient),
        visit=_text(visit),
        what=_text(what),
        code=code,
        found=found or why.found,
        next=why.next,
    )


def _text(name: str) -> str:
    """A name as UTF-8 can hold it: bytes of a file's name that are none are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
