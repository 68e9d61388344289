"""Which of the four channels is a DICOM series? By what was measured, by what it is called, or by the site.

Echo, repetition and inversion time say the contrast; the description says it in words; where both speak
they must agree, and where neither does the series is left out. A site names a series itself in the table
``--series`` (columns ``description`` and ``channel``, ``-`` for one that is not wanted): that goes before
everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from oncofed_client.readers.dicom import Header
from oncofed_client.readers.tables import TableRow, Text, read_table
from oncofed_common.errors import CohortRefusal

NOT_WANTED = "-"
OTHER = re.compile(
    r"loc|scout|survey|dwi|diff|adc|trace|dti|swi|swan|perf|dsc|dce|asl|cbv|cbf|mtt|tof|angio|mra|bold|fmri|"
    r"spectro|mrs|phase|field ?map|t2 ?\*|t2star|hemo|mip|subtr|calib|screen|report|mt ?on|pd\b|proton"
)
WORDS: Mapping[str, re.Pattern[str]] = {
    "FLAIR": re.compile(r"flair|dark ?fluid|tirm"),
    "T1w": re.compile(r"\bt1|t1\b|mp ?rage|mprage|bravo|spgr|fspgr|tfe\b|vibe"),
    "T2w": re.compile(r"\bt2|t2\b|space_t2"),
}
CONTRAST = re.compile(
    r"\b(?:gd|gad|gado\w*|ce|post|contrast|kontrast|km|mdc|dotarem|gadovist|c)\b|\+ ?c\b|c ?\+"
)
NATIVE = re.compile(r"\b(?:pre|nativ\w*|native|non ?contrast|without|ohne|sans|unenhanced)\b")


class SeriesRow(TableRow):
    """One row of the table that ``--series`` names."""

    description: Text
    channel: Literal["T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "-"]


def read_series_table(path: Path | None) -> dict[str, str]:
    """The channel of each description, in small letters.

    Raises:
        CohortRefusal: ``bad_series``, or a table that cannot be read as one.
    """
    if path is None:
        return {}
    table = read_table(path, SeriesRow)
    named: dict[str, str] = {_plain(row.description): row.channel for row in table.rows}
    if table.bad or len(named) != len(table.rows):
        raise CohortRefusal(
            "a table of series with a row that cannot be read, or with a description twice",
            allowed="description, and channel: T1w, ce-gadolinium_T1w, T2w, FLAIR or -",
            next="correct --series",
            code="bad_series",
        )
    return named


def channel_of(header: Header, named: Mapping[str, str]) -> str | None:
    """The channel of a series, ``NOT_WANTED``, or None where it is not clear."""
    words = _plain(header.description)
    if words in named:
        return named[words]
    words = words.replace("_", " ").replace("-", " ")
    if OTHER.search(words):
        return None
    measured, called = _measured(header), _called(words)
    kind = measured or called
    if kind is None or (measured and called and measured != called):
        return None
    if kind != "T1w":
        return kind
    native, contrast = bool(NATIVE.search(words)), bool(CONTRAST.search(words))
    if native and (header.contrast or contrast):
        return None
    return "ce-gadolinium_T1w" if contrast or header.contrast else "T1w"


def _measured(header: Header) -> str | None:
    """Echo, repetition and inversion times of the sequences in use at 1.5 and 3 T."""
    echo, repetition, inversion = header.echo_ms, header.repetition_ms, header.inversion_ms
    if echo <= 0 or repetition <= 0:
        return None
    if inversion >= 1500 and repetition >= 4000:
        return "FLAIR"
    if echo >= 60 and repetition >= 2000 and inversion < 1500:
        return "T2w"
    if echo < 30 and repetition <= 3000:
        return "T1w"
    return None


def _called(words: str) -> str | None:
    if WORDS["FLAIR"].search(words):
        return None if "t1" in words else "FLAIR"
    said = [name for name in ("T1w", "T2w") if WORDS[name].search(words)]
    return said[0] if len(said) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
