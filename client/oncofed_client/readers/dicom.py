"""What does one DICOM file say about itself? Only the fields below are ever looked at.

Nothing else of a header is read, kept or shown. Names and dates in it stay in this process: they say which
files belong together and how many days lie between them.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

logging.getLogger("pydicom").disabled = True  # its remarks quote values, which may name a patient
warnings.filterwarnings("ignore", module="pydicom")  # it says them by warnings, too
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

TAGS = (
    "PatientID",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "FrameOfReferenceUID",
    "ReferencedFrameOfReferenceSequence",
    "Modality",
    "SOPClassUID",
    "ContrastBolusAgent",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "NumberOfFrames",
)
DIRECTORY = "1.2.840.10008.1.3.10"
"""The SOP class of a DICOMDIR: a table of contents."""

MALFORMED = (InvalidDicomError, EOFError, ValueError, TypeError, KeyError, AttributeError)
"""What pydicom raises for a file that is cut, damaged or something else."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file. Empty text where a field is missing; times in milliseconds, 0 where missing."""

    path: Path
    patient: str
    study: str
    series: str
    frames_of_reference: tuple[str, ...]
    modality: str
    taken_on: date | None
    description: str
    contrast: bool
    echo_ms: float
    repetition_ms: float
    inversion_ms: float
    frames: int
    sex: str | None
    age_years: float | None


def read_header(path: Path) -> Header | None:
    """The fields of one file; None for what is not DICOM, cut within them, or a table of contents."""
    try:
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        if _text(found, "SOPClassUID") in ("", DIRECTORY) or _is_directory(found):
            return None
        return _header(path, found)
    except (*MALFORMED, OSError, NotImplementedError, RecursionError):
        return None


def is_dicom(path: Path) -> bool:
    """Does it have DICOM's mark, whatever comes after?"""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_directory(found: Any) -> bool:
    return str(getattr(found.file_meta, "MediaStorageSOPClassUID", "")) == DIRECTORY


def _header(path: Path, found: Any) -> Header:
    taken_on = _date(_text(found, "StudyDate"))
    sex = _text(found, "PatientSex").upper()
    frames = [_text(found, "FrameOfReferenceUID")]
    frames += [
        _text(one, "FrameOfReferenceUID")
        for one in found.get("ReferencedFrameOfReferenceSequence", None) or ()
    ]
    return Header(
        path=path,
        patient=_text(found, "PatientID"),
        study=_text(found, "StudyInstanceUID"),
        series=_text(found, "SeriesInstanceUID"),
        frames_of_reference=tuple(frame for frame in frames if frame),
        modality=_text(found, "Modality").upper(),
        taken_on=taken_on,
        description=_text(found, "SeriesDescription"),
        contrast=_text(found, "ContrastBolusAgent").upper() not in ("", "NONE", "NO", "N"),
        echo_ms=_number(found, "EchoTime"),
        repetition_ms=_number(found, "RepetitionTime"),
        inversion_ms=_number(found, "InversionTime"),
        frames=int(_number(found, "NumberOfFrames") or 1),
        sex=sex if sex in ("M", "F") else None,
        age_years=_age_years(found, taken_on),
    )


def _text(found: Any, field: str) -> str:
    value = found.get(field, "")
    return " ".join(str("" if value is None else value).split())


def _number(found: Any, field: str) -> float:
    try:
        return float(_text(found, field) or 0)
    except ValueError:
        return 0.0


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None


def _age_years(found: Any, taken_on: date | None) -> float | None:
    """From the birth date in whole years, else as the scanner wrote it (``061Y``)."""
    born = _date(_text(found, "PatientBirthDate"))
    if born is not None and taken_on is not None and born <= taken_on:
        before = (taken_on.month, taken_on.day) < (born.month, born.day)
        years = float(taken_on.year - born.year - before)
    else:
        said = _text(found, "PatientAge")
        if not (said.endswith("Y") and said[:-1].isascii() and said[:-1].isdigit()):
            return None
        years = float(said[:-1])
    return years if years <= 120 else None
